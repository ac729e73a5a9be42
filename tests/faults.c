/* Makes calls of the C library fail, and changes the floating-point environment, for test_faults_engine.py:

       cc -shared -fPIC -O1 faults.c -o faults.so -ldl -lm

   Preloaded, so that its functions stand before those of the library; switched by ctypes. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <stddef.h>

static volatile int no_threads;
static volatile size_t too_large;       /* 0, or bytes from which memory is refused */
static volatile long countdown = -1;    /* the allocation after so many is refused */

void refuse_threads(int refuse) { no_threads = refuse; }
void refuse_memory_from(size_t bytes) { too_large = bytes; }
void refuse_memory_after(long allocations) { countdown = allocations; }
int refused_memory(void) { return countdown < 0; }

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*work)(void *), void *argument) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (no_threads)
        return EAGAIN;
    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    return real(thread, attributes, work, argument);
}

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

static int refused(size_t bytes) {
    if (too_large != 0 && bytes >= too_large)
        return 1;
    return countdown >= 0 && countdown-- == 0;
}
void *malloc(size_t bytes) {
    if (!refused(bytes))
        return __libc_malloc(bytes);
    errno = ENOMEM;
    return NULL;
}
void *calloc(size_t count, size_t bytes) {
    if (!refused(count * bytes))
        return __libc_calloc(count, bytes);
    errno = ENOMEM;
    return NULL;
}
void *realloc(void *memory, size_t bytes) {
    if (!refused(bytes))
        return __libc_realloc(memory, bytes);
    errno = ENOMEM;
    return NULL;
}

#if defined(__x86_64__)
static unsigned long control(void) { return __builtin_ia32_stmxcsr() & ~0x3ful; }
static void set_control(unsigned long word) { __builtin_ia32_ldmxcsr((unsigned)word); }
enum { FLUSH = 0x8040 };
#elif defined(__aarch64__)
static unsigned long control(void) {
    unsigned long word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
}
static void set_control(unsigned long word) { __asm__ volatile("msr fpcr, %0" : : "r"(word)); }
enum { FLUSH = 1 << 24 };
#endif

static const int roundings[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};

/* 0: the default; 1 to 3: another rounding; 4: subnormals count as 0; 5: exceptions are signals. */
void set_mode(int mode) {
    fedisableexcept(FE_ALL_EXCEPT);
    feclearexcept(FE_ALL_EXCEPT);
    set_control(control() & ~(unsigned long)FLUSH);
    fesetround(mode < 4 ? roundings[mode] : FE_TONEAREST);
    if (mode == 4)
        set_control(control() | FLUSH);
    if (mode == 5)
        feenableexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW | FE_UNDERFLOW);
}
unsigned long mode_in_force(void) { return control(); }

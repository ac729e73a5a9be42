/* What depends on compiler, processor and system: inlining, atomics, bit patterns, the floating-point
   environment, a clock, signals. GCC's extensions are spoken by clang too, clang-cl included. */

#ifndef SL_PLATFORM_H
#define SL_PLATFORM_H

#include <stdint.h>
#include <string.h>

#if !defined(__GNUC__) && !defined(__clang__)
#error "stableloss needs GCC or clang (clang-cl on Windows): its kernels are written in their vector extensions"
#endif

/* A loop that calls a function does not vectorise, and GCC was seen to inline `inline` functions or not by how
   much else the file holds. */
#define SL_ALWAYS_INLINE __inline__ __attribute__((always_inline))

/* The level that this is compiled for: base, v3, v4. */
#if defined(__AVX512F__)
#define SL_LEVEL 2
#elif defined(__AVX2__)
#define SL_LEVEL 1
#else
#define SL_LEVEL 0
#endif

#define SL_INFINITY __builtin_inff()
#define SL_ABSF(x) __builtin_fabsf(x)
#define SL_ABS(x) __builtin_fabs(x)
#define SL_ISFINITE(x) __builtin_isfinite(x)

/* Atomics on integers and pointers of at most a machine word. */
#define SL_LOAD(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
#define SL_PEEK(place) __atomic_load_n(place, __ATOMIC_RELAXED)
#define SL_STORE(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
#define SL_SWAP(place, value) __atomic_exchange_n(place, value, __ATOMIC_ACQ_REL)
#define SL_FETCH_ADD(place, value) __atomic_fetch_add(place, value, __ATOMIC_ACQ_REL)
/* Whether *place was `from`, and is `to` now. */
#define SL_REPLACE(place, from, to) \
    __atomic_compare_exchange_n(place, &(__typeof__(*(place))){from}, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

/* Tells the processor that this is a loop that waits. */
#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
#define SL_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__) || defined(_M_ARM64)
#define SL_PAUSE() __asm__ volatile("yield")
#else
#define SL_PAUSE() ((void)0)
#endif

/* Bit patterns; memcpy is the cast that C allows. */
static inline uint64_t sl_bits_f64(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline double sl_from_bits_f64(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline float sl_float_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline uint32_t sl_bits_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The floating-point environment: rounding, subnormals and traps are set to the default for the time of a
   call, as the kernels' arithmetic assumes it; and what overflows, underflows or is NaN in there is a result,
   not an event, so that the flags are those of before afterwards. fenv.h would switch the x87 unit too, at
   many times the cost, and knows nothing of subnormals. These can be flushed to 0 within it. */
#if defined(__SSE2__) || defined(_M_X64)
typedef unsigned sl_environment;
#define SL_MXCSR_FLAGS 0x3fu
#define SL_MXCSR_DEFAULT 0x1f80u        /* round to nearest, subnormals as they are, every exception masked */
static inline sl_environment sl_default_environment(void) {
    unsigned before = __builtin_ia32_stmxcsr();
    if ((before & ~SL_MXCSR_FLAGS) != SL_MXCSR_DEFAULT)
        __builtin_ia32_ldmxcsr(SL_MXCSR_DEFAULT);
    return before;
}
static inline void sl_restore_environment(sl_environment before) { __builtin_ia32_ldmxcsr(before); }
static inline void sl_flush_subnormals(void) { __builtin_ia32_ldmxcsr(SL_MXCSR_DEFAULT | 0x8000u); }
#elif defined(__aarch64__) || defined(_M_ARM64)
typedef struct {
    uint64_t control, flags;
} sl_environment;
static inline void sl_set_control(uint64_t control) { __asm__ volatile("msr fpcr, %0" : : "r"(control) : "memory"); }
static inline uint64_t sl_get_control(void) {
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control) : : "memory");
    return control;
}
static inline sl_environment sl_default_environment(void) {
    sl_environment before;
    before.control = sl_get_control();
    __asm__ volatile("mrs %0, fpsr" : "=r"(before.flags) : : "memory");
    /* every bit is 0 by default; writing the register takes long */
    if (before.control != 0)
        sl_set_control(0);
    return before;
}
static inline void sl_restore_environment(sl_environment before) {
    __asm__ volatile("msr fpsr, %0" : : "r"(before.flags) : "memory");
    if (before.control != sl_get_control())
        sl_set_control(before.control);
}
static inline void sl_flush_subnormals(void) { sl_set_control((uint64_t)1 << 24); }
#else
#include <fenv.h>
typedef fenv_t sl_environment;
static inline sl_environment sl_default_environment(void) {
    fenv_t before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    return before;
}
static inline void sl_restore_environment(sl_environment before) { fesetenv(&before); }
static inline void sl_flush_subnormals(void) {}
#endif

/* Nanoseconds since some moment. */
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
/* keywords of 16-bit compilers, which its headers define away */
#undef near
#undef far
static inline int64_t sl_clock(void) {
    LARGE_INTEGER count, frequency;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&frequency);
    return count.QuadPart / frequency.QuadPart * 1000000000
         + count.QuadPart % frequency.QuadPart * 1000000000 / frequency.QuadPart;
}
#else
#include <time.h>
static inline int64_t sl_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
#endif

/* Leaves the signals that are sent to the process to threads that may be waiting for one. What this thread
   raises by a fault of its own, or a profiler sends to each, still arrives. */
#if defined(_WIN32)
static inline void sl_block_signals(void) {}
#else
#include <signal.h>
static inline void sl_block_signals(void) {
    static const int own[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGPROF, SIGSEGV, SIGSYS, SIGTRAP};
    sigset_t blocked;
    size_t i;
    sigfillset(&blocked);
    for (i = 0; i < sizeof own / sizeof *own; i++)
        sigdelset(&blocked, own[i]);
    /* On Linux sigprocmask is of the thread too, and as old as the C library, which has given pthread_sigmask a new
       symbol in 2.32: a wheel with it would run on nothing older. */
#if defined(__linux__)
    sigprocmask(SIG_BLOCK, &blocked, NULL);
#else
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
#endif
}
#endif

#endif

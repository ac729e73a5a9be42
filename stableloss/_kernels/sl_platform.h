/* What depends on compiler and processor: inlining, atomics, bit patterns, floating-point flags, scratch memory. */

#ifndef SL_PLATFORM_H
#define SL_PLATFORM_H

#include <stdint.h>
#include <string.h>

/* A loop that calls a function does not vectorise, and GCC was seen to inline `inline` functions or not by how
   much else the file holds. */
#if defined(__GNUC__)
#define SL_ALWAYS_INLINE __inline__ __attribute__((always_inline))
#else
#define SL_ALWAYS_INLINE inline
#endif

#define SL_INFINITY __builtin_inff()
#define SL_ABSF(x) __builtin_fabsf(x)
#define SL_ABS(x) __builtin_fabs(x)

/* Each block is taken once; who takes it does not matter, so no order is needed. */
#define SL_TAKE(counter) __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)
#define SL_ISFINITE(x) __builtin_isfinite(x)

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

/* Underflow and NaN in the kernels are results, not events: the exception flags of the caller's
   thread are put back afterwards. fenv.h would switch the x87 unit too, at many times the cost. */
#if defined(__SSE2__)
static inline unsigned sl_get_flags(void) { return __builtin_ia32_stmxcsr(); }
static inline void sl_set_flags(unsigned flags) { __builtin_ia32_ldmxcsr(flags); }
#else
#include <fenv.h>
static inline unsigned sl_get_flags(void) { return (unsigned)fetestexcept(FE_ALL_EXCEPT); }
static inline void sl_set_flags(unsigned flags) {
    feclearexcept(FE_ALL_EXCEPT & ~(int)flags);
}
#endif

/* The working memory of a kernel, one per thread. Not on the stack: threads of musl have 128 KiB. */
#if defined(_MSC_VER)
static __declspec(thread) __declspec(align(64)) char sl_scratch[262144];
#else
static __thread char sl_scratch[262144] __attribute__((aligned(64)));
#endif
static inline void *sl_get_scratch(void) { return sl_scratch; }

#endif

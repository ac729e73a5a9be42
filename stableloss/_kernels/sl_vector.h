/* Vectors as wide as the level's registers, for loops of which compilers make less than the registers allow:
   GCC 12 turns a maximum into a compare and a blend, converts floats in eighths, and gives up on long bodies.
   Types and operators are those that GCC and clang share. What those lack, fused multiply-add and the
   maximum, is named for each instruction set, and spelled out in C elsewhere; results are the same bits. */

#ifndef SL_VECTOR_H
#define SL_VECTOR_H

#include "sl_platform.h"

#if defined(__AVX512F__)
#define SL_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SL_VECTOR_BYTES 32
#else
#define SL_VECTOR_BYTES 16
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef float sl_vector_f32 __attribute__((vector_size(SL_VECTOR_BYTES), aligned(4), may_alias));
typedef double sl_vector_f64 __attribute__((vector_size(SL_VECTOR_BYTES), aligned(8), may_alias));
typedef uint32_t sl_bits_vector_f32 __attribute__((vector_size(SL_VECTOR_BYTES)));
typedef uint64_t sl_bits_vector_f64 __attribute__((vector_size(SL_VECTOR_BYTES)));

#define SL_READ(type, from) (*(const type *)(from))
#define SL_WRITE(type, to, v) (*(type *)(to) = (v))

static SL_ALWAYS_INLINE sl_vector_f32 sl_all_f32(float x) { return x - (sl_vector_f32){0}; }
static SL_ALWAYS_INLINE sl_vector_f64 sl_all_f64(double x) { return x - (sl_vector_f64){0}; }

/* sl_max: a > b ? a : b, so that b wins where either is NaN; sl_read_as_f64: a vector of doubles from floats */
#if SL_VECTOR_BYTES == 64
#define sl_fma_f32(a, b, c) ((sl_vector_f32)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define sl_fma_f64(a, b, c) ((sl_vector_f64)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#define sl_max_f32(a, b) ((sl_vector_f32)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define sl_max_f64(a, b) ((sl_vector_f64)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#define sl_read_as_f64(from) ((sl_vector_f64)_mm512_cvtps_pd(_mm256_loadu_ps(from)))
#elif SL_VECTOR_BYTES == 32
#define sl_fma_f32(a, b, c) ((sl_vector_f32)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define sl_fma_f64(a, b, c) ((sl_vector_f64)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#define sl_max_f32(a, b) ((sl_vector_f32)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define sl_max_f64(a, b) ((sl_vector_f64)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
#define sl_read_as_f64(from) ((sl_vector_f64)_mm256_cvtps_pd(_mm_loadu_ps(from)))
#elif defined(__SSE2__)
#define sl_fma_f32(a, b, c) ((a) * (b) + (c))
#define sl_fma_f64(a, b, c) ((a) * (b) + (c))
#define sl_max_f32(a, b) ((sl_vector_f32)_mm_max_ps((__m128)(a), (__m128)(b)))
#define sl_max_f64(a, b) ((sl_vector_f64)_mm_max_pd((__m128d)(a), (__m128d)(b)))
#define sl_read_as_f64(from) ((sl_vector_f64){(from)[0], (from)[1]})
#else
#define sl_read_as_f64(from) ((sl_vector_f64){(from)[0], (from)[1]})
#if defined(__aarch64__)
#define sl_fma_f32(a, b, c) ((sl_vector_f32)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define sl_fma_f64(a, b, c) ((sl_vector_f64)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b)))
#else
#define sl_fma_f32(a, b, c) ((a) * (b) + (c))
#define sl_fma_f64(a, b, c) ((a) * (b) + (c))
#endif
/* aarch64's own instruction returns NaN for either */
static SL_ALWAYS_INLINE sl_vector_f32 sl_max_f32(sl_vector_f32 a, sl_vector_f32 b) {
    sl_bits_vector_f32 larger = (sl_bits_vector_f32)(a > b);
    return (sl_vector_f32)((larger & (sl_bits_vector_f32)a) | (~larger & (sl_bits_vector_f32)b));
}
static SL_ALWAYS_INLINE sl_vector_f64 sl_max_f64(sl_vector_f64 a, sl_vector_f64 b) {
    sl_bits_vector_f64 larger = (sl_bits_vector_f64)(a > b);
    return (sl_vector_f64)((larger & (sl_bits_vector_f64)a) | (~larger & (sl_bits_vector_f64)b));
}
#endif

/* a * b - product, exactly, for product = a * b rounded and factors that are far from overflow */
#if defined(__FMA__) || defined(__aarch64__)
#define sl_product_error_f32(a, b, product) sl_fma_f32(a, b, -(product))
#define sl_product_error_f64(a, b, product) sl_fma_f64(a, b, -(product))
#else
/* Dekker's splitting */
#define SL_VECTOR_PRODUCT_ERROR(name, type, splitter) \
    static SL_ALWAYS_INLINE type name(type a, type b, type product) { \
        type t = a * splitter, a_hi = t - (t - a), a_lo = a - a_hi; \
        type u = b * splitter, b_hi = u - (u - b), b_lo = b - b_hi; \
        return ((a_hi * b_hi - product) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo; \
    }
SL_VECTOR_PRODUCT_ERROR(sl_product_error_f32, sl_vector_f32, 4097.0f)           /* 2**12 + 1 */
SL_VECTOR_PRODUCT_ERROR(sl_product_error_f64, sl_vector_f64, 134217729.0)       /* 2**27 + 1 */
#endif

#endif

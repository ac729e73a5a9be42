/* Vectors as wide as the level's registers, for loops of which compilers make less than the registers allow:
   GCC 12 turns a maximum into a compare and a blend, converts floats in eighths, and gives up on long bodies.
   Types and operators are those that GCC and clang share. What those lack, fused multiply-add and the
   maximum, is named for each instruction set, and spelled out in C elsewhere; results are the same bits. */

#ifndef SL_VECTOR_H
#define SL_VECTOR_H

#include "sl_math.h"

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

#define SL_DOUBLES (SL_VECTOR_BYTES / 8)        /* in a vector */

#define SL_READ(type, from) (*(const type *)(from))
#define SL_WRITE(type, to, v) (*(type *)(to) = (v))

/* Memory that is to be read, or written, soon; an address at which there is none does no harm. */
static SL_ALWAYS_INLINE void sl_fetch_read(uintptr_t at, Py_ssize_t bytes) {
    Py_ssize_t i;
    for (i = 0; i < bytes; i += 64) __builtin_prefetch((const void *)(at + i), 0);
}
static SL_ALWAYS_INLINE void sl_fetch_write(uintptr_t at, Py_ssize_t bytes) {
    Py_ssize_t i;
    for (i = 0; i < bytes; i += 64) __builtin_prefetch((const void *)(at + i), 1);
}

static SL_ALWAYS_INLINE sl_vector_f32 sl_all_f32(float x) { return x - (sl_vector_f32){0}; }
static SL_ALWAYS_INLINE sl_vector_f64 sl_all_f64(double x) { return x - (sl_vector_f64){0}; }

/* Lane i of the result is lane i + by, modulo their number. */
#if SL_VECTOR_BYTES == 64
#define SL_LANES_F32 (sl_bits_vector_f32){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#define SL_LANES_F64 (sl_bits_vector_f64){0, 1, 2, 3, 4, 5, 6, 7}
#elif SL_VECTOR_BYTES == 32
#define SL_LANES_F32 (sl_bits_vector_f32){0, 1, 2, 3, 4, 5, 6, 7}
#define SL_LANES_F64 (sl_bits_vector_f64){0, 1, 2, 3}
#else
#define SL_LANES_F32 (sl_bits_vector_f32){0, 1, 2, 3}
#define SL_LANES_F64 (sl_bits_vector_f64){0, 1}
#endif
#if defined(__clang__)
static SL_ALWAYS_INLINE sl_vector_f32 sl_rotate_f32(sl_vector_f32 v, int by) {
    sl_vector_f32 to;
    int i, lanes = SL_VECTOR_BYTES / 4;
    for (i = 0; i < lanes; i++) to[i] = v[(i + by) % lanes];
    return to;
}
static SL_ALWAYS_INLINE sl_vector_f64 sl_rotate_f64(sl_vector_f64 v, int by) {
    sl_vector_f64 to;
    int i, lanes = SL_VECTOR_BYTES / 8;
    for (i = 0; i < lanes; i++) to[i] = v[(i + by) % lanes];
    return to;
}
#else
#define sl_rotate_f32(v, by) __builtin_shuffle(v, SL_LANES_F32 + (uint32_t)(by))
#define sl_rotate_f64(v, by) __builtin_shuffle(v, SL_LANES_F64 + (uint64_t)(by))
#endif

/* sl_max: a > b ? a : b, so that b wins where either is NaN; sl_min likewise; sl_where_less: a < b ? x : y;
   sl_read_as_f64: a vector of doubles from floats; sl_read_first: the first n numbers, fewer than a vector
   has, and those of `rest` beside them; sl_write_first; sl_any: whether any number is not 0 */
#if SL_VECTOR_BYTES == 64
#define sl_fma_f32(a, b, c) ((sl_vector_f32)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define sl_fma_f64(a, b, c) ((sl_vector_f64)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#define sl_max_f32(a, b) ((sl_vector_f32)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define sl_max_f64(a, b) ((sl_vector_f64)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#define sl_min_f32(a, b) ((sl_vector_f32)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define sl_min_f64(a, b) ((sl_vector_f64)_mm512_min_pd((__m512d)(a), (__m512d)(b)))
#define sl_where_less_f32(a, b, x, y) \
    ((sl_vector_f32)_mm512_mask_blend_ps( \
        _mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_LT_OQ), (__m512)(y), (__m512)(x)))
#define sl_where_less_f64(a, b, x, y) \
    ((sl_vector_f64)_mm512_mask_blend_pd( \
        _mm512_cmp_pd_mask((__m512d)(a), (__m512d)(b), _CMP_LT_OQ), (__m512d)(y), (__m512d)(x)))
#define sl_read_as_f64(from) ((sl_vector_f64)_mm512_cvtps_pd(_mm256_loadu_ps(from)))
#define sl_any_f64(v) (_mm512_cmp_pd_mask((__m512d)(v), _mm512_setzero_pd(), _CMP_NEQ_UQ) != 0)
#define sl_read_first_f32(from, n, rest) \
    ((sl_vector_f32)_mm512_mask_loadu_ps((__m512)(rest), (__mmask16)((1u << (n)) - 1), from))
#define sl_read_first_f64(from, n, rest) \
    ((sl_vector_f64)_mm512_mask_loadu_pd((__m512d)(rest), (__mmask8)((1u << (n)) - 1), from))
#define sl_write_first_f32(to, n, v) _mm512_mask_storeu_ps(to, (__mmask16)((1u << (n)) - 1), (__m512)(v))
#define sl_write_first_f64(to, n, v) _mm512_mask_storeu_pd(to, (__mmask8)((1u << (n)) - 1), (__m512d)(v))
#elif SL_VECTOR_BYTES == 32
#define sl_fma_f32(a, b, c) ((sl_vector_f32)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define sl_fma_f64(a, b, c) ((sl_vector_f64)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#define sl_max_f32(a, b) ((sl_vector_f32)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define sl_max_f64(a, b) ((sl_vector_f64)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
#define sl_min_f32(a, b) ((sl_vector_f32)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define sl_min_f64(a, b) ((sl_vector_f64)_mm256_min_pd((__m256d)(a), (__m256d)(b)))
#define sl_where_less_f32(a, b, x, y) \
    ((sl_vector_f32)_mm256_blendv_ps( \
        (__m256)(y), (__m256)(x), _mm256_cmp_ps((__m256)(a), (__m256)(b), _CMP_LT_OQ)))
#define sl_where_less_f64(a, b, x, y) \
    ((sl_vector_f64)_mm256_blendv_pd( \
        (__m256d)(y), (__m256d)(x), _mm256_cmp_pd((__m256d)(a), (__m256d)(b), _CMP_LT_OQ)))
#define sl_read_as_f64(from) ((sl_vector_f64)_mm256_cvtps_pd(_mm_loadu_ps(from)))
#define sl_any_f64(v) \
    (_mm256_movemask_pd(_mm256_cmp_pd((__m256d)(v), _mm256_setzero_pd(), _CMP_NEQ_UQ)) != 0)
static SL_ALWAYS_INLINE __m256i sl_first_f32(Py_ssize_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static SL_ALWAYS_INLINE __m256i sl_first_f64(Py_ssize_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
#define sl_read_first_f32(from, n, rest) \
    ((sl_vector_f32)_mm256_blendv_ps((__m256)(rest), _mm256_maskload_ps(from, sl_first_f32(n)), \
                                     (__m256)sl_first_f32(n)))
#define sl_read_first_f64(from, n, rest) \
    ((sl_vector_f64)_mm256_blendv_pd((__m256d)(rest), _mm256_maskload_pd(from, sl_first_f64(n)), \
                                     (__m256d)sl_first_f64(n)))
#define sl_write_first_f32(to, n, v) _mm256_maskstore_ps(to, sl_first_f32(n), (__m256)(v))
#define sl_write_first_f64(to, n, v) _mm256_maskstore_pd(to, sl_first_f64(n), (__m256d)(v))
#elif defined(__SSE2__)
#define sl_fma_f32(a, b, c) ((a) * (b) + (c))
#define sl_fma_f64(a, b, c) ((a) * (b) + (c))
#define sl_max_f32(a, b) ((sl_vector_f32)_mm_max_ps((__m128)(a), (__m128)(b)))
#define sl_max_f64(a, b) ((sl_vector_f64)_mm_max_pd((__m128d)(a), (__m128d)(b)))
#define sl_min_f32(a, b) ((sl_vector_f32)_mm_min_ps((__m128)(a), (__m128)(b)))
#define sl_min_f64(a, b) ((sl_vector_f64)_mm_min_pd((__m128d)(a), (__m128d)(b)))
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
/* aarch64's own instructions return NaN for either */
#define sl_max_f32(a, b) sl_where_less_f32(b, a, a, b)
#define sl_max_f64(a, b) sl_where_less_f64(b, a, a, b)
#define sl_min_f32(a, b) sl_where_less_f32(a, b, a, b)
#define sl_min_f64(a, b) sl_where_less_f64(a, b, a, b)
#endif
#if !defined(__AVX2__)
#define sl_any_f64(v) (((v)[0] != 0) | ((v)[1] != 0))
static SL_ALWAYS_INLINE sl_vector_f32 sl_read_first_f32(const float *from, Py_ssize_t n, sl_vector_f32 rest) {
    int i;
    for (i = 0; i < n; i++) rest[i] = from[i];
    return rest;
}
static SL_ALWAYS_INLINE sl_vector_f64 sl_read_first_f64(const double *from, Py_ssize_t n, sl_vector_f64 rest) {
    int i;
    for (i = 0; i < n; i++) rest[i] = from[i];
    return rest;
}
static SL_ALWAYS_INLINE void sl_write_first_f32(float *to, Py_ssize_t n, sl_vector_f32 v) {
    int i;
    for (i = 0; i < n; i++) to[i] = v[i];
}
static SL_ALWAYS_INLINE void sl_write_first_f64(double *to, Py_ssize_t n, sl_vector_f64 v) {
    int i;
    for (i = 0; i < n; i++) to[i] = v[i];
}
static SL_ALWAYS_INLINE sl_vector_f32 sl_where_less_f32(
        sl_vector_f32 a, sl_vector_f32 b, sl_vector_f32 x, sl_vector_f32 y) {
    sl_bits_vector_f32 less = (sl_bits_vector_f32)(a < b);
    return (sl_vector_f32)((less & (sl_bits_vector_f32)x) | (~less & (sl_bits_vector_f32)y));
}
static SL_ALWAYS_INLINE sl_vector_f64 sl_where_less_f64(
        sl_vector_f64 a, sl_vector_f64 b, sl_vector_f64 x, sl_vector_f64 y) {
    sl_bits_vector_f64 less = (sl_bits_vector_f64)(a < b);
    return (sl_vector_f64)((less & (sl_bits_vector_f64)x) | (~less & (sl_bits_vector_f64)y));
}
#endif

/* the halves of a vector of floats as doubles */
#if SL_VECTOR_BYTES == 64
#define sl_low_as_f64(v) ((sl_vector_f64)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)(v))))
#define sl_high_as_f64(v) \
    ((sl_vector_f64)_mm512_cvtps_pd((__m256)_mm512_extractf64x4_pd((__m512d)(v), 1)))
#elif SL_VECTOR_BYTES == 32
#define sl_low_as_f64(v) ((sl_vector_f64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)(v))))
#define sl_high_as_f64(v) ((sl_vector_f64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)(v), 1)))
#else
#define sl_low_as_f64(v) ((sl_vector_f64){(v)[0], (v)[1]})
#define sl_high_as_f64(v) ((sl_vector_f64){(v)[2], (v)[3]})
#endif

/* a * b - product, exactly, for product = a * b rounded */
#if defined(__FMA__) || defined(__aarch64__)
#define sl_product_error_f32(a, b, product) sl_fma_f32(a, b, -(product))
#define sl_product_error_f64(a, b, product) sl_fma_f64(a, b, -(product))
#else
static SL_ALWAYS_INLINE sl_vector_f32 sl_product_error_f32(sl_vector_f32 a, sl_vector_f32 b, sl_vector_f32 product) {
    int i;
    for (i = 0; i < SL_VECTOR_BYTES / 4; i++) product[i] = SL_PRODUCT_ERRORF(a[i], b[i], product[i]);
    return product;
}
static SL_ALWAYS_INLINE sl_vector_f64 sl_product_error_f64(sl_vector_f64 a, sl_vector_f64 b, sl_vector_f64 product) {
    int i;
    for (i = 0; i < SL_VECTOR_BYTES / 8; i++) product[i] = SL_PRODUCT_ERROR(a[i], b[i], product[i]);
    return product;
}
#endif

#endif

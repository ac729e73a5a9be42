/* Sigmoids and what the sigmoid losses are made of, element by element; sl_elements_of.h has what is the same
   text for both types. A vector is read before it is written, so that results may overwrite the logits; the
   last one may reach beyond what is asked for, and finds memory there. */

#ifndef SL_ELEMENTS_H
#define SL_ELEMENTS_H

#include "sl_columns.h"

/* What is so far ahead is wanted soon; an address at which there is no memory does no harm. */
#define SL_FETCH(at, write) \
    __builtin_prefetch((const void *)((uintptr_t)(at) + SL_CHUNK * sizeof *(at)), write)

/* log(1 + t) for 0 <= t <= 1; NaN for NaN. */
static SL_ALWAYS_INLINE sl_vector_f32 sl_log1p_unit_f32(sl_vector_f32 t) {
    sl_vector_f32 q = sl_fma_f32(sl_all_f32(SL_LOG9_F32), t, sl_all_f32(SL_LOG8_F32));
    q = sl_fma_f32(q, t, sl_all_f32(SL_LOG7_F32));
    q = sl_fma_f32(q, t, sl_all_f32(SL_LOG6_F32));
    q = sl_fma_f32(q, t, sl_all_f32(SL_LOG5_F32));
    q = sl_fma_f32(q, t, sl_all_f32(SL_LOG4_F32));
    q = sl_fma_f32(q, t, sl_all_f32(SL_LOG3_F32));
    q = sl_fma_f32(q, t, sl_all_f32(SL_LOG2_F32));
    q = sl_fma_f32(q, t, sl_all_f32(SL_LOG1_F32));
    q = sl_fma_f32(q, t, sl_all_f32(SL_LOG0_F32));
    return sl_fma_f32(t * t, q, t);
}

/* The arithmetic of log1p_positive, whose n is 0 or 1 here: (1 + t) / 2 - 1 is exact. */
static SL_ALWAYS_INLINE sl_vector_f64 sl_log1p_unit_f64(sl_vector_f64 t) {
    sl_vector_f64 half = sl_all_f64(0.5), zero = sl_all_f64(0);
    sl_vector_f64 f = sl_where_less_f64(t, half, t, 0.5 * t - half);
    sl_vector_f64 n_hi = sl_where_less_f64(t, half, zero, sl_all_f64(SL_LN2_HI_F64));
    sl_vector_f64 n_lo = sl_where_less_f64(t, half, zero, sl_all_f64(SL_LN2_LO_F64));
    sl_vector_f64 s = f / (2 + f), z = s * s, half_square = 0.5 * f * f;
    sl_vector_f64 p = sl_fma_f64(sl_all_f64(SL_LOG7_F64), z, sl_all_f64(SL_LOG6_F64));
    p = sl_fma_f64(p, z, sl_all_f64(SL_LOG5_F64));
    p = sl_fma_f64(p, z, sl_all_f64(SL_LOG4_F64));
    p = sl_fma_f64(p, z, sl_all_f64(SL_LOG3_F64));
    p = sl_fma_f64(p, z, sl_all_f64(SL_LOG2_F64));
    p = sl_fma_f64(p, z, sl_all_f64(SL_LOG1_F64));
    p = sl_fma_f64(p, z, sl_all_f64(SL_LOG0_F64));
    return n_hi + (f - (half_square - sl_fma_f64(s, sl_fma_f64(p, z, half_square), n_lo)));
}

/* The sum of n losses times their weights, n a multiple of SL_GROUP, in float64, which holds each product as it
   is; a weight of 0 takes out its loss, NaN and all. */
static double sl_weighed_sum_f32(const float *loss, const float *weight, Py_ssize_t n, int ahead) {
    sl_vector_f64 sum[SL_GROUP / SL_DOUBLES], w, product;
    double hi[SL_GROUP];
    Py_ssize_t i;
    int j;
#pragma GCC unroll 16
    for (j = 0; j < SL_GROUP / SL_DOUBLES; j++) sum[j] = sl_all_f64(0);
    for (i = 0; i < n; i += SL_GROUP)
#pragma GCC unroll 16
        for (j = 0; j < SL_GROUP / SL_DOUBLES; j++) {
            w = sl_read_as_f64(weight + i + j * SL_DOUBLES);
            if (ahead && j % 2 == 0) SL_FETCH(weight + i + j * SL_DOUBLES, 0);
            product = sl_read_as_f64(loss + i + j * SL_DOUBLES) * w;
            sum[j] += (sl_vector_f64)((sl_bits_vector_f64)(w != 0) & (sl_bits_vector_f64)product);
        }
#pragma GCC unroll 16
    for (j = 0; j < SL_GROUP / SL_DOUBLES; j++) SL_WRITE(sl_vector_f64, hi + j * SL_DOUBLES, sum[j]);
    return sl_fold_lanes(hi, SL_GROUP);
}

#define SL_OF(name) name##_f32
#define SL_CONSTANT(name) name##_F32
#define SL_REAL float
#define SL_VANISHES 88.0f      /* 126.96 ln 2: n is 127, and the exponent field of 2**-n is 0 */
#define SL_OVERFLOWS 88.8f      /* 128.1 ln 2: n is 128, and the exponent field of 2**n that of inf */
#define SL_REAL_BITS 23
#include "sl_elements_of.h"

#define SL_OF(name) name##_f64
#define SL_CONSTANT(name) name##_F64
#define SL_REAL double
#define SL_VANISHES 709.0      /* 1022.9 ln 2: n is 1023 */
#define SL_OVERFLOWS 709.8      /* 1024.03 ln 2: n is 1024 */
#define SL_REAL_BITS 52
#include "sl_elements_of.h"

#endif

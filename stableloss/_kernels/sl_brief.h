/* Exponentials, logarithms and caps in float64 to the digits of float32, for its losses whose options multiply
   errors: they are exact to 2**-34, and take two thirds of the time of all digits. */

#ifndef SL_BRIEF_H
#define SL_BRIEF_H

#include "sl_math.h"
#include "sl_vector.h"

/* e**r - 1 of d = r + n ln 2, and 2**n times the power of two that `magic` stands for. */
static SL_ALWAYS_INLINE sl_vector_f64 sl_brief_expm1(sl_vector_f64 d, double magic, sl_vector_f64 *power) {
    sl_vector_f64 shifted = sl_fma_f64(d, sl_all_f64(SL_LOG2E_F64), sl_all_f64(magic));
    sl_vector_f64 r = sl_fma_f64(shifted - magic, sl_all_f64(-SL_LN2_F64), d);
    sl_vector_f64 q = sl_fma_f64(sl_all_f64(SL_BRIEF5_F64), r, sl_all_f64(SL_BRIEF4_F64));
    q = sl_fma_f64(q, r, sl_all_f64(SL_BRIEF3_F64));
    q = sl_fma_f64(q, r, sl_all_f64(SL_BRIEF2_F64));
    q = sl_fma_f64(q, r, sl_all_f64(SL_BRIEF1_F64));
    q = sl_fma_f64(q, r, sl_all_f64(SL_BRIEF0_F64));
    *power = (sl_vector_f64)((sl_bits_vector_f64)shifted << 52);
    return sl_fma_f64(r * r, q, r);
}

static SL_ALWAYS_INLINE sl_vector_f64 sl_brief_exp(sl_vector_f64 d, double magic) {
    sl_vector_f64 power, p = sl_brief_expm1(d, magic, &power);
    return sl_fma_f64(p, power, power);
}

/* log(1 + t) for 0 <= t <= 1 */
static SL_ALWAYS_INLINE sl_vector_f64 sl_brief_log1p(sl_vector_f64 t) {
    sl_vector_f64 q = sl_fma_f64(sl_all_f64(SL_BRIEFLOG11_F64), t, sl_all_f64(SL_BRIEFLOG10_F64));
    q = sl_fma_f64(q, t, sl_all_f64(SL_BRIEFLOG9_F64));
    q = sl_fma_f64(q, t, sl_all_f64(SL_BRIEFLOG8_F64));
    q = sl_fma_f64(q, t, sl_all_f64(SL_BRIEFLOG7_F64));
    q = sl_fma_f64(q, t, sl_all_f64(SL_BRIEFLOG6_F64));
    q = sl_fma_f64(q, t, sl_all_f64(SL_BRIEFLOG5_F64));
    q = sl_fma_f64(q, t, sl_all_f64(SL_BRIEFLOG4_F64));
    q = sl_fma_f64(q, t, sl_all_f64(SL_BRIEFLOG3_F64));
    q = sl_fma_f64(q, t, sl_all_f64(SL_BRIEFLOG2_F64));
    q = sl_fma_f64(q, t, sl_all_f64(SL_BRIEFLOG1_F64));
    q = sl_fma_f64(q, t, sl_all_f64(SL_BRIEFLOG0_F64));
    return sl_fma_f64(t * t, q, t);
}

/* e**-|x|, and -log of 1 / (1 + e**-x) and of the rest to 1, of n logits and of those that fill the last vector. */
static void sl_brief_logs(const double *x, Py_ssize_t n, double *e, double *on, double *off) {
    sl_vector_f64 zero = sl_all_f64(0), least = sl_all_f64(SL_EXP_MIN_F64), v, d, t, both;
    Py_ssize_t i;
    for (i = 0; i < n; i += SL_DOUBLES) {
        v = SL_READ(sl_vector_f64, x + i);
        d = (sl_vector_f64)((sl_bits_vector_f64)v | (sl_bits_vector_f64)sl_all_f64(-0.0));
        t = sl_where_less_f64(d, least, zero, sl_brief_exp(sl_max_f64(least, d), SL_MAGIC_F64));
        both = sl_brief_log1p(t);
        SL_WRITE(sl_vector_f64, e + i, t);
        SL_WRITE(sl_vector_f64, on + i, both - sl_min_f64(zero, v));
        SL_WRITE(sl_vector_f64, off + i, both + sl_max_f64(zero, v));
    }
}

/* 1 / (1 + e**-x) and the rest to 1, from e**-|x|. */
static void sl_brief_shares(const double *x, const double *e, Py_ssize_t n, double *share, double *rest) {
    sl_vector_f64 zero = sl_all_f64(0), v, t, large, small;
    Py_ssize_t i;
    for (i = 0; i < n; i += SL_DOUBLES) {
        v = SL_READ(sl_vector_f64, x + i);
        t = SL_READ(sl_vector_f64, e + i);
        large = 1 / (1 + t);
        small = t * large;
        SL_WRITE(sl_vector_f64, share + i, sl_where_less_f64(v, zero, small, large));
        SL_WRITE(sl_vector_f64, rest + i, sl_where_less_f64(v, zero, large, small));
    }
}

/* cap * tanh(t) and its derivative by x for t = x / cap, from t**2 <= 1. */
static SL_ALWAYS_INLINE sl_vector_f64 sl_brief_near_cap(
        sl_vector_f64 x, sl_vector_f64 t, sl_vector_f64 square, sl_vector_f64 *slope) {
    sl_vector_f64 q = sl_fma_f64(sl_all_f64(SL_BRIEFTANH8_F64), square, sl_all_f64(SL_BRIEFTANH7_F64));
    q = sl_fma_f64(q, square, sl_all_f64(SL_BRIEFTANH6_F64));
    q = sl_fma_f64(q, square, sl_all_f64(SL_BRIEFTANH5_F64));
    q = sl_fma_f64(q, square, sl_all_f64(SL_BRIEFTANH4_F64));
    q = sl_fma_f64(q, square, sl_all_f64(SL_BRIEFTANH3_F64));
    q = sl_fma_f64(q, square, sl_all_f64(SL_BRIEFTANH2_F64));
    q = sl_fma_f64(q, square, sl_all_f64(SL_BRIEFTANH1_F64));
    q = sl_fma_f64(q, square, sl_all_f64(SL_BRIEFTANH0_F64));
    q = sl_fma_f64(q, square, sl_all_f64(1));
    t *= q;
    *slope = sl_fma_f64(-t, t, sl_all_f64(1));
    return x * q;
}

/* The same for t**2 >= 1: with e = e**-2|t|, tanh is 1 - 2e / (1 + e), and its derivative 4e / (1 + e)**2. */
static SL_ALWAYS_INLINE sl_vector_f64 sl_brief_far_cap(
        sl_vector_f64 t, double cap, sl_vector_f64 *slope) {
    sl_bits_vector_f64 sign = (sl_bits_vector_f64)sl_all_f64(-0.0);
    sl_vector_f64 d = 2 * (sl_vector_f64)((sl_bits_vector_f64)t | sign), power;
    sl_vector_f64 p = sl_brief_expm1(sl_max_f64(sl_all_f64(SL_EXP_MIN_F64), d), SL_MAGIC_F64, &power);
    sl_vector_f64 e = sl_fma_f64(p, power, power), capped;
    sl_vector_f64 q = sl_fma_f64(sl_all_f64(SL_SHARE5_F64), e, sl_all_f64(SL_SHARE4_F64));
    q = sl_fma_f64(q, e, sl_all_f64(SL_SHARE3_F64));
    q = sl_fma_f64(q, e, sl_all_f64(SL_SHARE2_F64));
    q = sl_fma_f64(q, e, sl_all_f64(SL_SHARE1_F64));
    q = sl_fma_f64(q, e, sl_all_f64(SL_SHARE0_F64));
    q = sl_fma_f64(q, e, sl_all_f64(1));
    e = 2 * e * q;
    capped = sl_fma_f64(e, sl_all_f64(-cap), sl_all_f64(cap));
    *slope = 2 * e * q;
    return (sl_vector_f64)((sl_bits_vector_f64)capped | ((sl_bits_vector_f64)t & sign));
}

/* What lies beyond the cap, as few logits do, takes a second way; all go the first, whatever is beside them. */
static SL_ALWAYS_INLINE sl_vector_f64 sl_brief_cap(
        sl_vector_f64 x, double cap, double inverse, sl_vector_f64 *slope) {
    sl_vector_f64 one = sl_all_f64(1), t = x * inverse, square = t * t, far_slope, far;
    sl_vector_f64 near = sl_brief_near_cap(x, t, square, slope);
    if (sl_any_f64((sl_vector_f64)(square > one))) {
        far = sl_brief_far_cap(t, cap, &far_slope);
        near = sl_where_less_f64(one, square, far, near);
        *slope = sl_where_less_f64(one, square, far_slope, *slope);
    }
    return near;
}

/* Of n logits in place. */
static void sl_brief_caps(double *x, Py_ssize_t n, double cap, double *slope) {
    double inverse = 1 / cap;
    sl_vector_f64 v, s;
    Py_ssize_t i = 0;
    if (inverse > __DBL_MAX__) inverse = __DBL_MAX__;   /* of a tiny cap: 0 * inf would be NaN */
    for (; i + SL_DOUBLES <= n; i += SL_DOUBLES) {
        v = SL_READ(sl_vector_f64, x + i);
        SL_WRITE(sl_vector_f64, x + i, sl_brief_cap(v, cap, inverse, &s));
        SL_WRITE(sl_vector_f64, slope + i, s);
    }
    if (i < n) {
        v = sl_brief_cap(sl_read_first_f64(x + i, n - i, sl_all_f64(0)), cap, inverse, &s);
        sl_write_first_f64(x + i, n - i, v);
        sl_write_first_f64(slope + i, n - i, s);
    }
}

#endif

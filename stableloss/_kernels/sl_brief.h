/* Exponentials and caps in float64 to the digits of float32, for its losses whose options multiply errors: they
   are exact to 2**-34, and take two thirds of the time of all digits. */

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

/* cap * tanh(x / cap), and its derivative: see `capped` in _logits.pxi, which has all digits. `rate` is 2 / cap. */
static SL_ALWAYS_INLINE sl_vector_f64 sl_brief_cap(
        sl_vector_f64 x, double cap, double rate, sl_vector_f64 *slope) {
    sl_bits_vector_f64 sign = (sl_bits_vector_f64)sl_all_f64(-0.0);
    sl_vector_f64 d = (sl_vector_f64)((sl_bits_vector_f64)x | sign) * rate, power;
    sl_vector_f64 p = sl_brief_expm1(sl_max_f64(sl_all_f64(SL_EXP_MIN_F64), d), SL_MAGIC_F64, &power);
    sl_vector_f64 e = sl_fma_f64(p, power, power), share = 1 / (1 + e);
    sl_vector_f64 t = cap * share * sl_fma_f64(p, power, power - 1);
    *slope = 4 * e * share * share;
    return (sl_vector_f64)((~sign & (sl_bits_vector_f64)t) | ((sl_bits_vector_f64)x & sign));
}

/* Of n logits in place. */
static void sl_brief_caps(double *x, Py_ssize_t n, double cap, double *slope) {
    double rate = 2 / cap;
    sl_vector_f64 v, s;
    Py_ssize_t i = 0;
    if (rate > __DBL_MAX__) rate = __DBL_MAX__;     /* of a tiny cap: 0 * inf would be NaN */
    for (; i + SL_DOUBLES <= n; i += SL_DOUBLES) {
        v = SL_READ(sl_vector_f64, x + i);
        SL_WRITE(sl_vector_f64, x + i, sl_brief_cap(v, cap, rate, &s));
        SL_WRITE(sl_vector_f64, slope + i, s);
    }
    if (i < n) {
        v = sl_brief_cap(sl_read_first_f64(x + i, n - i, sl_all_f64(0)), cap, rate, &s);
        sl_write_first_f64(x + i, n - i, v);
        sl_write_first_f64(slope + i, n - i, s);
    }
}

#endif

/* Rows of probabilities that take the place of exponentials: their sums without the target, and their
   quotients. A probability counts as `tiny` at least. */

#ifndef SL_PROBABILITIES_H
#define SL_PROBABILITIES_H

#include "sl_columns.h"

#define SL_OF(name) name##_f32
#define SL_REAL float
#define SL_BITS uint32_t
#define SL_LANES SL_LANES_F32
#define SL_LINE SL_GROUP
#include "sl_probabilities_of.h"

#define SL_OF(name) name##_f64
#define SL_REAL double
#define SL_BITS uint64_t
#define SL_LANES SL_LANES_F64
#define SL_LINE (SL_GROUP / 2)
#include "sl_probabilities_of.h"

/* max(least, p) of a line to the sums of its lanes, of float32 two and two: the sum of a pair has an error of
   half an ulp, and takes half of the conversions. */
static SL_ALWAYS_INLINE void sl_add_probabilities_f32(const float *p, sl_vector_f32 least, sl_vector_f64 *sum) {
    enum { WIDTH = SL_VECTOR_BYTES / sizeof(float) };
    sl_vector_f32 upper, lower;
    int i;
#pragma GCC unroll 4
    for (i = 0; i < SL_GROUP / 2 / WIDTH; i++) {
        upper = SL_READ(sl_vector_f32, p + i * WIDTH);
        lower = SL_READ(sl_vector_f32, p + SL_GROUP / 2 + i * WIDTH);
        upper = sl_max_f32(least, upper);
        upper += sl_max_f32(least, lower);
        sum[2 * i] += sl_low_as_f64(upper);
        sum[2 * i + 1] += sl_high_as_f64(upper);
    }
}

static SL_ALWAYS_INLINE void sl_add_probabilities_f64(
        const double *p, sl_vector_f64 least, sl_vector_f64 *sum, sl_vector_f64 *lost) {
    sl_vector_f64 v, s;
    int i;
#pragma GCC unroll 8
    for (i = 0; i < SL_GROUP / 2 / SL_DOUBLES; i++) {
        v = SL_READ(sl_vector_f64, p + i * SL_DOUBLES);
        v = sl_max_f64(least, v);
        s = sum[i] + v;
        lost[i] += (sum[i] - s) + v;
        sum[i] = s;
    }
}

/* The sum of n probabilities but that of class y, if that is one of them. The line of that class is read from a
   copy, without a branch: which one it is can not be foreseen. */
static double sl_probability_sum_f32(const float *p, Py_ssize_t n, Py_ssize_t y, float tiny) {
    enum { LANES = SL_GROUP / 2 };
    sl_vector_f64 sum[LANES / SL_DOUBLES];
    float line[SL_GROUP], last[SL_GROUP], least[2] = {tiny, 0};
    double hi[LANES];
    Py_ssize_t i, whole = n / SL_GROUP * SL_GROUP, at = y < 0 ? n : y / SL_GROUP * SL_GROUP;
    int j;
    if (whole > 0) sl_raise_line_f32(p + (at < whole ? at : 0), SL_GROUP, y - at, tiny, line);
    if (whole < n) sl_raise_line_f32(p + whole, n - whole, y - whole, tiny, last);
#pragma GCC unroll 16
    for (j = 0; j < LANES / SL_DOUBLES; j++) sum[j] = sl_all_f64(0);
    for (i = 0; i < whole; i += SL_GROUP)
        sl_add_probabilities_f32(sl_either_f32(i == at, line, p + i), sl_all_f32(least[i == at]), sum);
    if (whole < n) sl_add_probabilities_f32(last, sl_all_f32(0), sum);
#pragma GCC unroll 16
    for (j = 0; j < LANES / SL_DOUBLES; j++) SL_WRITE(sl_vector_f64, hi + j * SL_DOUBLES, sum[j]);
    return sl_fold_lanes(hi, LANES);
}

static double sl_probability_sum_f64(const double *p, Py_ssize_t n, Py_ssize_t y, double tiny, double *lo) {
    enum { LINE = SL_GROUP / 2 };
    sl_vector_f64 sum[LINE / SL_DOUBLES], lost[LINE / SL_DOUBLES];
    double line[LINE], last[LINE], hi[LINE], low[LINE], least[2] = {tiny, 0};
    Py_ssize_t i, whole = n / LINE * LINE, at = y < 0 ? n : y / LINE * LINE;
    int j;
    if (whole > 0) sl_raise_line_f64(p + (at < whole ? at : 0), LINE, y - at, tiny, line);
    if (whole < n) sl_raise_line_f64(p + whole, n - whole, y - whole, tiny, last);
#pragma GCC unroll 8
    for (j = 0; j < LINE / SL_DOUBLES; j++) sum[j] = lost[j] = sl_all_f64(0);
    for (i = 0; i < whole; i += LINE)
        sl_add_probabilities_f64(
            sl_either_f64(i == at, line, p + i), sl_all_f64(least[i == at]), sum, lost);
    if (whole < n) sl_add_probabilities_f64(last, sl_all_f64(0), sum, lost);
#pragma GCC unroll 8
    for (j = 0; j < LINE / SL_DOUBLES; j++) {
        SL_WRITE(sl_vector_f64, hi + j * SL_DOUBLES, sum[j]);
        SL_WRITE(sl_vector_f64, low + j * SL_DOUBLES, lost[j]);
    }
    return sl_fold_lanes_and_lost(hi, low, lo);
}

#endif

/* Maxima, exponentials and sums of tiles: matrices of SL_GROUP columns, line after line. A column is a row of
   the batch, or a lane of one row. sl_columns_of.h has what is the same text for both types. */

#ifndef SL_COLUMNS_H
#define SL_COLUMNS_H

#include "sl_brief.h"
#include "sl_math.h"
#include "sl_sizes.h"
#include "sl_vector.h"

/* Memory that is to be read and written soon; numbers there may be smaller than those computed with. */
typedef struct {
    uintptr_t read, write;
    int halvings;
} sl_ahead;

/* As many numbers as take so many bytes, two cache lines at most, in the type that is computed with. */
static SL_ALWAYS_INLINE void sl_fetch(sl_ahead *ahead, int bytes) {
    if (ahead->halvings) {
        bytes >>= ahead->halvings;
        sl_fetch_read(ahead->read, 1);
        sl_fetch_write(ahead->write, 1);
    } else {
        sl_fetch_read(ahead->read, bytes);
        sl_fetch_write(ahead->write, bytes);
    }
    ahead->read += bytes;
    ahead->write += bytes;
}

enum { SL_PLAIN, SL_COMPENSATED, SL_SCALED, SL_BRIEF };    /* exponentials, see sl_columns_of.h */
enum { SL_EACH = 1, SL_SUM };      /* what compensated ones lack: of each, or the sum of a lane; 0: neither */

#define SL_OF(name) name##_f32
#define SL_CONSTANT(name) name##_F32
#define SL_REAL float
#define SL_MAGNITUDE SL_ABSF
#define SL_SPLIT_FROM 256.0f
#define SL_NOTHING -110.0f      /* -158.7 ln 2: n is -159 */
#define SL_REAL_BITS 23
#include "sl_columns_of.h"

#define SL_OF(name) name##_f64
#define SL_CONSTANT(name) name##_F64
#define SL_REAL double
#define SL_MAGNITUDE SL_ABS
#define SL_SPLIT_FROM 2048.0
#define SL_NOTHING -753.4       /* -1086.9 ln 2: n is -1087 */
#define SL_REAL_BITS 52
#include "sl_columns_of.h"

/* Columns whose sums stay in registers together, with float64's what their roundings lost: few enough to find
   room there, and enough for additions not to wait for each other. */
#define SL_SUMS_F32 (SL_VECTOR_BYTES == 16 ? 16 : 32)
#define SL_SUMS_F64 (SL_VECTOR_BYTES == 16 ? 8 : 16)

/* Add lines of columns to hi. */
static SL_ALWAYS_INLINE void sl_add_lines_f32(const float *v, Py_ssize_t lines, double *hi) {
    sl_vector_f64 sum[SL_SUMS_F32 / SL_DOUBLES];
    Py_ssize_t c;
    int i, j;
    for (j = 0; j < SL_GROUP; j += SL_SUMS_F32) {
#pragma GCC unroll 16
        for (i = 0; i < SL_SUMS_F32 / SL_DOUBLES; i++) sum[i] = SL_READ(sl_vector_f64, hi + j + i * SL_DOUBLES);
        for (c = 0; c < lines; c++)
#pragma GCC unroll 16
            for (i = 0; i < SL_SUMS_F32 / SL_DOUBLES; i++)
                sum[i] += sl_read_as_f64(v + c * SL_GROUP + j + i * SL_DOUBLES);
#pragma GCC unroll 16
        for (i = 0; i < SL_SUMS_F32 / SL_DOUBLES; i++) SL_WRITE(sl_vector_f64, hi + j + i * SL_DOUBLES, sum[i]);
    }
}

/* The same of `width` columns, GROUP or half of it, with what the roundings lose added to lo, unless that is
   NULL. The short form of the two-sum is enough: a sum of non-negative terms is rarely smaller than the term that
   it meets, and such a step costs one rounding. */
static SL_ALWAYS_INLINE void sl_add_lines_f64(
        const double *v, Py_ssize_t lines, int width, double *hi, double *lo) {
    sl_vector_f64 sum[SL_SUMS_F64 / SL_DOUBLES], lost[SL_SUMS_F64 / SL_DOUBLES], s, x;
    Py_ssize_t c;
    int i, j;
    for (j = 0; j < width; j += SL_SUMS_F64) {
#pragma GCC unroll 16
        for (i = 0; i < SL_SUMS_F64 / SL_DOUBLES; i++) {
            sum[i] = SL_READ(sl_vector_f64, hi + j + i * SL_DOUBLES);
            if (lo != NULL) lost[i] = SL_READ(sl_vector_f64, lo + j + i * SL_DOUBLES);
        }
        for (c = 0; c < lines; c++)
#pragma GCC unroll 16
            for (i = 0; i < SL_SUMS_F64 / SL_DOUBLES; i++) {
                x = SL_READ(sl_vector_f64, v + c * width + j + i * SL_DOUBLES);
                s = sum[i] + x;
                if (lo != NULL) lost[i] += (sum[i] - s) + x;
                sum[i] = s;
            }
#pragma GCC unroll 16
        for (i = 0; i < SL_SUMS_F64 / SL_DOUBLES; i++) {
            SL_WRITE(sl_vector_f64, hi + j + i * SL_DOUBLES, sum[i]);
            if (lo != NULL) SL_WRITE(sl_vector_f64, lo + j + i * SL_DOUBLES, lost[i]);
        }
    }
}

/* The sum of lanes, SL_GROUP or half of them: the halves of a vector after whole vectors. */
static SL_ALWAYS_INLINE double sl_fold_lanes(const double *hi, int lanes) {
    sl_vector_f64 sum[SL_GROUP / SL_DOUBLES];
    int i, count;
#pragma GCC unroll 16
    for (i = 0; i < lanes / SL_DOUBLES; i++) sum[i] = SL_READ(sl_vector_f64, hi + i * SL_DOUBLES);
#pragma GCC unroll 4
    for (count = lanes / SL_DOUBLES / 2; count > 0; count /= 2)
#pragma GCC unroll 8
        for (i = 0; i < count; i++) sum[i] += sum[i + count];
#pragma GCC unroll 4
    for (count = SL_DOUBLES / 2; count > 0; count /= 2) sum[0] += sl_rotate_f64(sum[0], count);
    return sum[0][0];
}

/* That of SL_GROUP / 2; `lo` gets what the roundings lost and lose, those of these additions by Knuth's
   two-sum. */
static SL_ALWAYS_INLINE double sl_fold_lanes_and_lost(const double *hi, const double *low, double *lo) {
    sl_vector_f64 sum[SL_GROUP / 2 / SL_DOUBLES], lost[SL_GROUP / 2 / SL_DOUBLES], other, other_lost, s, part;
    int i, count;
#pragma GCC unroll 8
    for (i = 0; i < SL_GROUP / 2 / SL_DOUBLES; i++) {
        sum[i] = SL_READ(sl_vector_f64, hi + i * SL_DOUBLES);
        lost[i] = SL_READ(sl_vector_f64, low + i * SL_DOUBLES);
    }
#pragma GCC unroll 8
    for (count = SL_GROUP / 4; count > 0; count /= 2)
#pragma GCC unroll 4
        for (i = 0; i < (count > SL_DOUBLES ? count / SL_DOUBLES : 1); i++) {
            other = count < SL_DOUBLES ? sl_rotate_f64(sum[0], count) : sum[i + count / SL_DOUBLES];
            other_lost = count < SL_DOUBLES ? sl_rotate_f64(lost[0], count) : lost[i + count / SL_DOUBLES];
            s = sum[i] + other;
            part = s - sum[i];
            lost[i] += other_lost + ((sum[i] - (s - part)) + (other - part));
            sum[i] = s;
        }
    *lo = lost[0][0];
    return sum[0][0];
}

/* Sums of n numbers of a row, n a multiple of SL_GROUP, in lanes that are added in the end. */
static double sl_lane_sum_f32(const float *v, Py_ssize_t n) {
    double hi[SL_GROUP] = {0};
    sl_add_lines_f32(v, n / SL_GROUP, hi);
    return sl_fold_lanes(hi, SL_GROUP);
}

static double sl_lane_sum_f64(const double *v, Py_ssize_t n, double *lo) {
    double hi[SL_GROUP / 2] = {0}, low[SL_GROUP / 2] = {0};
    sl_add_lines_f64(v, n / (SL_GROUP / 2), SL_GROUP / 2, hi, low);
    return sl_fold_lanes_and_lost(hi, low, lo);
}

/* Brief sums are the same without what the roundings lose. */
static double sl_brief_lane_sum(const double *v, Py_ssize_t n) {
    double hi[SL_GROUP / 2] = {0};
    sl_add_lines_f64(v, n / (SL_GROUP / 2), SL_GROUP / 2, hi, NULL);
    return sl_fold_lanes(hi, SL_GROUP / 2);
}

/* Every fourth line apart: a row of few classes is added up in the same order, and its additions are not to
   wait for each other. */
static void sl_column_sums_f32(const float *v, Py_ssize_t lines, double *hi) {
    sl_vector_f64 sum[4][2];
    const float *at;
    Py_ssize_t c;
    int i, j, q;
    for (j = 0; j < SL_GROUP; j += 2 * SL_DOUBLES) {
#pragma GCC unroll 4
        for (q = 0; q < 4; q++) sum[q][0] = sum[q][1] = sl_all_f64(0);
        for (c = 0, at = v + j; c + 3 < lines; c += 4, at += 4 * SL_GROUP)
#pragma GCC unroll 4
            for (q = 0; q < 4; q++)
#pragma GCC unroll 2
                for (i = 0; i < 2; i++) sum[q][i] += sl_read_as_f64(at + q * SL_GROUP + i * SL_DOUBLES);
#pragma GCC unroll 3
        for (q = 0; q < 3; q++)
            if (c + q < lines)
#pragma GCC unroll 2
                for (i = 0; i < 2; i++) sum[q][i] += sl_read_as_f64(at + q * SL_GROUP + i * SL_DOUBLES);
#pragma GCC unroll 2
        for (i = 0; i < 2; i++)
            SL_WRITE(sl_vector_f64, hi + j + i * SL_DOUBLES,
                     (sum[0][i] + sum[1][i]) + (sum[2][i] + sum[3][i]));
    }
}

/* The sum of n numbers in that order. */
static double sl_ordered_sum_f32(const float *v, Py_ssize_t n) {
    double sum[4] = {0};
    Py_ssize_t i;
    int q;
    for (i = 0; i + 3 < n; i += 4)
        for (q = 0; q < 4; q++) sum[q] += v[i + q];
    for (q = 0; i + q < n; q++) sum[q] += v[i + q];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Of what the n exponentials of a row lack: of few classes in the order of a column, else in lanes. */
static double sl_lost_sum(const float *lost, Py_ssize_t n, int few) {
    enum { WIDTH = 2 * SL_DOUBLES };
    sl_vector_f32 sum[SL_GROUP / WIDTH];
    double hi[SL_GROUP];
    float in_order = 0;
    Py_ssize_t i;
    int j;
    if (few) {
        for (i = 0; i < n; i++) in_order += lost[i];
        return in_order;
    }
#pragma GCC unroll 8
    for (j = 0; j < SL_GROUP / WIDTH; j++) sum[j] = sl_all_f32(0);
    for (i = 0; i < n; i += SL_GROUP)
#pragma GCC unroll 8
        for (j = 0; j < SL_GROUP / WIDTH; j++) sum[j] += SL_READ(sl_vector_f32, lost + i + j * WIDTH);
#pragma GCC unroll 8
    for (j = 0; j < SL_GROUP; j++) hi[j] = sum[j / WIDTH][j % WIDTH];
    return sl_fold_lanes(hi, SL_GROUP);
}

static void sl_column_sums_f64(const double *v, Py_ssize_t lines, double *hi, double *lo) {
    sl_add_lines_f64(v, lines, SL_GROUP, hi, lo);
}

static void sl_brief_column_sums(const double *v, Py_ssize_t lines, double *hi) {
    sl_add_lines_f64(v, lines, SL_GROUP, hi, NULL);
}

#endif

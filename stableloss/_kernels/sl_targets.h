/* Sums over the columns of tiles (see sl_columns.h) that targets other than class indices need, for both
   types. Accumulators stay in registers, which GCC does not see to by itself. */

#ifndef SL_TARGETS_H
#define SL_TARGETS_H

#include "sl_columns.h"
#include "sl_math.h"
#include "sl_sizes.h"
#include "sl_vector.h"

/* columns that go together, few enough for what belongs to them to find room in registers */
#define SL_COLUMN_VECTORS (SL_VECTOR_BYTES == 64 ? 4 : 2)

static SL_ALWAYS_INLINE sl_vector_f64 sl_where_f64(sl_bits_vector_f64 which, sl_vector_f64 v) {
    return (sl_vector_f64)(which & (sl_bits_vector_f64)v);
}

/* Columns to 0, by stores: GCC would make it an instruction that takes as long as a hundred additions. */
static SL_ALWAYS_INLINE void sl_clear(double *to) {
    int j;
    for (j = 0; j < SL_GROUP; j += SL_DOUBLES) {
        SL_WRITE(sl_vector_f64, to + j, (sl_vector_f64){0});
        __asm__ volatile("");
    }
}

/* hi += v, and to lo what v lacks and the rounding loses. */
static SL_ALWAYS_INLINE void sl_add_pair(
        sl_vector_f64 *hi, sl_vector_f64 *lo, sl_vector_f64 v, sl_vector_f64 v_lo) {
    sl_vector_f64 s = *hi + v, part = s - *hi;
    *lo += v_lo + ((*hi - (s - part)) + (v - part));
    *hi = s;
}

/* Add across columns in a tree: SL_GROUP of hi and lo, to the first of both. */
static void sl_fold(double *hi, double *lo) {
    sl_vector_f64 sum[SL_GROUP / SL_DOUBLES], lost[SL_GROUP / SL_DOUBLES];
    int i, count;
#pragma GCC unroll 16
    for (i = 0; i < SL_GROUP / SL_DOUBLES; i++) {
        sum[i] = SL_READ(sl_vector_f64, hi + i * SL_DOUBLES);
        lost[i] = SL_READ(sl_vector_f64, lo + i * SL_DOUBLES);
    }
#pragma GCC unroll 4
    for (count = SL_GROUP / SL_DOUBLES / 2; count > 0; count /= 2)
#pragma GCC unroll 8
        for (i = 0; i < count; i++) sl_add_pair(&sum[i], &lost[i], sum[i + count], lost[i + count]);
#pragma GCC unroll 4
    for (count = SL_DOUBLES / 2; count > 0; count /= 2)
        sl_add_pair(&sum[0], &lost[0], sl_rotate_f64(sum[0], count), sl_rotate_f64(lost[0], count));
    *hi = sum[0][0];
    *lo = lost[0][0];
}

/* v where it is less than the limit, else 0 */
#if SL_VECTOR_BYTES == 64
#define sl_below_f32(v, limit) ((sl_vector_f32)_mm512_maskz_mov_ps( \
    _mm512_cmp_ps_mask((__m512)(v), (__m512)(limit), _CMP_LT_OQ), (__m512)(v)))
#define sl_below_f64(v, limit) ((sl_vector_f64)_mm512_maskz_mov_pd( \
    _mm512_cmp_pd_mask((__m512d)(v), (__m512d)(limit), _CMP_LT_OQ), (__m512d)(v)))
#else
#define sl_below_f32(v, limit) \
    ((sl_vector_f32)((sl_bits_vector_f32)((v) < (limit)) & (sl_bits_vector_f32)(v)))
#define sl_below_f64(v, limit) \
    ((sl_vector_f64)((sl_bits_vector_f64)((v) < (limit)) & (sl_bits_vector_f64)(v)))
#endif

#define SL_OF(name) name##_f32
#define SL_REAL float
#define SL_PARTS 2
#define SL_PART(v, i) ((i) == 0 ? sl_low_as_f64(v) : sl_high_as_f64(v))
#define SL_UNIT SL_UNIT_F32
#define SL_READ_AS_F64(from) sl_read_as_f64(from)
#define SL_CARRIES 0
#define SL_SCALAR_FMA SL_FMAF
#include "sl_targets_of.h"

#define SL_OF(name) name##_f64
#define SL_REAL double
#define SL_PARTS 1
#define SL_PART(v, i) (v)
#define SL_UNIT SL_UNIT_F64
#define SL_READ_AS_F64(from) SL_READ(sl_vector_f64, from)
#define SL_CARRIES 1
#define SL_SCALAR_FMA SL_FMA
#include "sl_targets_of.h"

/* Add up exponentials below `unit`, and apart those that are equal to it. */
static void sl_split_sums_f64(
        const double *e, Py_ssize_t lines, double unit, double *rest, double *rest_lo, double *max) {
    sl_vector_f64 sum[SL_COLUMN_VECTORS], lost[SL_COLUMN_VECTORS], top[SL_COLUMN_VECTORS], v, below;
    sl_vector_f64 limit = sl_all_f64(unit);
    Py_ssize_t c;
    int i, j;
    for (j = 0; j < SL_GROUP; j += SL_COLUMN_VECTORS * SL_DOUBLES) {
#pragma GCC unroll 4
        for (i = 0; i < SL_COLUMN_VECTORS; i++) {
            sum[i] = SL_READ(sl_vector_f64, rest + j + i * SL_DOUBLES);
            lost[i] = SL_READ(sl_vector_f64, rest_lo + j + i * SL_DOUBLES);
            top[i] = SL_READ(sl_vector_f64, max + j + i * SL_DOUBLES);
        }
        for (c = 0; c < lines; c++)
#pragma GCC unroll 4
            for (i = 0; i < SL_COLUMN_VECTORS; i++) {
                v = SL_READ(sl_vector_f64, e + c * SL_GROUP + j + i * SL_DOUBLES);
                below = sl_below_f64(v, limit);
                top[i] += v - below;
                sl_accumulate_f64(&sum[i], &lost[i], below);
            }
#pragma GCC unroll 4
        for (i = 0; i < SL_COLUMN_VECTORS; i++) {
            SL_WRITE(sl_vector_f64, rest + j + i * SL_DOUBLES, sum[i]);
            SL_WRITE(sl_vector_f64, rest_lo + j + i * SL_DOUBLES, lost[i]);
            SL_WRITE(sl_vector_f64, max + j + i * SL_DOUBLES, top[i]);
        }
    }
}

/* v below the limit; what is not goes to `top`. */
static SL_ALWAYS_INLINE sl_vector_f32 sl_take_below_f32(const float *from, sl_vector_f32 limit, sl_vector_f32 *top) {
    sl_vector_f32 v = SL_READ(sl_vector_f32, from), below = sl_below_f32(v, limit);
    *top += v - below;
    return below;
}

/* Pairs of lines are added in float32, which holds whole numbers of `unit` exactly. */
static void sl_split_sums_f32(
        const float *e, Py_ssize_t lines, double unit, double *rest, double *max) {
    sl_vector_f64 low[2], high[2];
    sl_vector_f32 top[2], v, limit = sl_all_f32((float)unit);
    float counted[SL_GROUP];
    const float *at;
    Py_ssize_t c;
    int i, j;
    for (j = 0; j < SL_GROUP; j += 4 * SL_DOUBLES) {
#pragma GCC unroll 2
        for (i = 0; i < 2; i++) {
            low[i] = SL_READ(sl_vector_f64, rest + j + 2 * i * SL_DOUBLES);
            high[i] = SL_READ(sl_vector_f64, rest + j + (2 * i + 1) * SL_DOUBLES);
            top[i] = sl_all_f32(0);
        }
        at = e + j;
        for (c = 0; c + 1 < lines; c += 2, at += 2 * SL_GROUP)
#pragma GCC unroll 2
            for (i = 0; i < 2; i++) {
                v = sl_take_below_f32(at + 2 * i * SL_DOUBLES, limit, &top[i]);
                v += sl_take_below_f32(at + SL_GROUP + 2 * i * SL_DOUBLES, limit, &top[i]);
                low[i] += sl_low_as_f64(v);
                high[i] += sl_high_as_f64(v);
            }
#pragma GCC unroll 2
        for (i = 0; i < 2; i++) {
            if (c < lines) {
                v = sl_take_below_f32(at + 2 * i * SL_DOUBLES, limit, &top[i]);
                low[i] += sl_low_as_f64(v);
                high[i] += sl_high_as_f64(v);
            }
            SL_WRITE(sl_vector_f64, rest + j + 2 * i * SL_DOUBLES, low[i]);
            SL_WRITE(sl_vector_f64, rest + j + (2 * i + 1) * SL_DOUBLES, high[i]);
            SL_WRITE(sl_vector_f32, counted + j + 2 * i * SL_DOUBLES, top[i]);
        }
    }
    for (j = 0; j < SL_GROUP; j++) max[j] += counted[j];
}

#endif

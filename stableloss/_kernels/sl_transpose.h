/* Transpose a tile of rows, 8 x 4 float32 or 4 x 2 float64, to columns, and back with a factor for each
   row; rows and columns (`lanes`) lie so many elements apart, and rows are written in order.
   Compilers turn neither a loop nor as many scalar moves into shuffles. Where vectors are long
   enough, their halves are those of the tile, and nothing crosses from one to the other. */

#ifndef SL_TRANSPOSE_H
#define SL_TRANSPOSE_H

#include <Python.h>

#include "sl_platform.h"

typedef float sl_f32x4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef double sl_f64x2 __attribute__((vector_size(16), aligned(8), may_alias));
#if defined(__AVX__) && (defined(__clang__) || __GNUC__ >= 12)
typedef float sl_f32x8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef double sl_f64x4 __attribute__((vector_size(32), aligned(8), may_alias));
#define SL_SHUFFLE __builtin_shufflevector
#define SL_LOW_HALF4(v) SL_SHUFFLE(v, v, 0, 1, 2, 3)
#define SL_HIGH_HALF4(v) SL_SHUFFLE(v, v, 4, 5, 6, 7)
#define SL_LOW_HALF2(v) SL_SHUFFLE(v, v, 0, 1)
#define SL_HIGH_HALF2(v) SL_SHUFFLE(v, v, 2, 3)
static SL_ALWAYS_INLINE sl_f32x8 sl_join_f32(const float *upper, const float *lower) {
    return SL_SHUFFLE(*(const sl_f32x4 *)upper, *(const sl_f32x4 *)lower, 0, 1, 2, 3, 4, 5, 6, 7);
}
static SL_ALWAYS_INLINE sl_f64x4 sl_join_f64(const double *upper, const double *lower) {
    return SL_SHUFFLE(*(const sl_f64x2 *)upper, *(const sl_f64x2 *)lower, 0, 1, 2, 3);
}
static SL_ALWAYS_INLINE void sl_transpose_f32(sl_f32x8 *a, sl_f32x8 *b, sl_f32x8 *c, sl_f32x8 *d) {
    sl_f32x8 ab_low = SL_SHUFFLE(*a, *b, 0, 8, 1, 9, 4, 12, 5, 13);
    sl_f32x8 ab_high = SL_SHUFFLE(*a, *b, 2, 10, 3, 11, 6, 14, 7, 15);
    sl_f32x8 cd_low = SL_SHUFFLE(*c, *d, 0, 8, 1, 9, 4, 12, 5, 13);
    sl_f32x8 cd_high = SL_SHUFFLE(*c, *d, 2, 10, 3, 11, 6, 14, 7, 15);
    *a = SL_SHUFFLE(ab_low, cd_low, 0, 1, 8, 9, 4, 5, 12, 13);
    *b = SL_SHUFFLE(ab_low, cd_low, 2, 3, 10, 11, 6, 7, 14, 15);
    *c = SL_SHUFFLE(ab_high, cd_high, 0, 1, 8, 9, 4, 5, 12, 13);
    *d = SL_SHUFFLE(ab_high, cd_high, 2, 3, 10, 11, 6, 7, 14, 15);
}
static SL_ALWAYS_INLINE void sl_to_lanes_f32(
        const float *from, Py_ssize_t rows, float *to, Py_ssize_t lanes) {
    const float *lower = from + 4 * rows;
    sl_f32x8 a = sl_join_f32(from, lower), b = sl_join_f32(from + rows, lower + rows);
    sl_f32x8 c = sl_join_f32(from + 2 * rows, lower + 2 * rows);
    sl_f32x8 d = sl_join_f32(from + 3 * rows, lower + 3 * rows);
    sl_transpose_f32(&a, &b, &c, &d);
    *(sl_f32x8 *)to = a;
    *(sl_f32x8 *)(to + lanes) = b;
    *(sl_f32x8 *)(to + 2 * lanes) = c;
    *(sl_f32x8 *)(to + 3 * lanes) = d;
}
static SL_ALWAYS_INLINE void sl_to_lanes_f64(
        const double *from, Py_ssize_t rows, double *to, Py_ssize_t lanes) {
    const double *lower = from + 2 * rows;
    sl_f64x4 a = sl_join_f64(from, lower), b = sl_join_f64(from + rows, lower + rows);
    *(sl_f64x4 *)to = SL_SHUFFLE(a, b, 0, 4, 2, 6);
    *(sl_f64x4 *)(to + lanes) = SL_SHUFFLE(a, b, 1, 5, 3, 7);
}
static SL_ALWAYS_INLINE void sl_from_lanes_f32(
        const float *from, Py_ssize_t lanes, const float *factor, float *to, Py_ssize_t rows) {
    float *lower = to + 4 * rows;
    sl_f32x8 v = *(const sl_f32x8 *)factor;
    sl_f32x8 a = v * *(const sl_f32x8 *)from, b = v * *(const sl_f32x8 *)(from + lanes);
    sl_f32x8 c = v * *(const sl_f32x8 *)(from + 2 * lanes), d = v * *(const sl_f32x8 *)(from + 3 * lanes);
    sl_transpose_f32(&a, &b, &c, &d);
    *(sl_f32x4 *)to = SL_LOW_HALF4(a);
    *(sl_f32x4 *)(to + rows) = SL_LOW_HALF4(b);
    *(sl_f32x4 *)(to + 2 * rows) = SL_LOW_HALF4(c);
    *(sl_f32x4 *)(to + 3 * rows) = SL_LOW_HALF4(d);
    *(sl_f32x4 *)lower = SL_HIGH_HALF4(a);
    *(sl_f32x4 *)(lower + rows) = SL_HIGH_HALF4(b);
    *(sl_f32x4 *)(lower + 2 * rows) = SL_HIGH_HALF4(c);
    *(sl_f32x4 *)(lower + 3 * rows) = SL_HIGH_HALF4(d);
}
static SL_ALWAYS_INLINE void sl_from_lanes_f64(
        const double *from, Py_ssize_t lanes, const double *factor, double *to, Py_ssize_t rows) {
    sl_f64x4 v = *(const sl_f64x4 *)factor;
    sl_f64x4 c = v * *(const sl_f64x4 *)from, d = v * *(const sl_f64x4 *)(from + lanes);
    sl_f64x4 a = SL_SHUFFLE(c, d, 0, 4, 2, 6), b = SL_SHUFFLE(c, d, 1, 5, 3, 7);
    *(sl_f64x2 *)to = SL_LOW_HALF2(a);
    *(sl_f64x2 *)(to + rows) = SL_LOW_HALF2(b);
    *(sl_f64x2 *)(to + 2 * rows) = SL_HIGH_HALF2(a);
    *(sl_f64x2 *)(to + 3 * rows) = SL_HIGH_HALF2(b);
}
#else
#if defined(__clang__) || __GNUC__ >= 12
#define SL_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#define SL_SHUFFLE2(a, b, i, j) __builtin_shufflevector(a, b, i, j)
#else
typedef int32_t sl_i32x4 __attribute__((vector_size(16)));
typedef int64_t sl_i64x2 __attribute__((vector_size(16)));
#define SL_SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (sl_i32x4){i, j, k, l})
#define SL_SHUFFLE2(a, b, i, j) __builtin_shuffle(a, b, (sl_i64x2){i, j})
#endif
static inline void sl_transpose_f32(sl_f32x4 *a, sl_f32x4 *b, sl_f32x4 *c, sl_f32x4 *d) {
    sl_f32x4 ab_low = SL_SHUFFLE4(*a, *b, 0, 4, 1, 5), ab_high = SL_SHUFFLE4(*a, *b, 2, 6, 3, 7);
    sl_f32x4 cd_low = SL_SHUFFLE4(*c, *d, 0, 4, 1, 5), cd_high = SL_SHUFFLE4(*c, *d, 2, 6, 3, 7);
    *a = SL_SHUFFLE4(ab_low, cd_low, 0, 1, 4, 5);
    *b = SL_SHUFFLE4(ab_low, cd_low, 2, 3, 6, 7);
    *c = SL_SHUFFLE4(ab_high, cd_high, 0, 1, 4, 5);
    *d = SL_SHUFFLE4(ab_high, cd_high, 2, 3, 6, 7);
}
static inline void sl_to_lanes_f32(const float *from, Py_ssize_t rows, float *to, Py_ssize_t lanes) {
    sl_f32x4 a, b, c, d;
    int half;
    for (half = 0; half < 2; half++, from += 4 * rows, to += 4) {
        a = *(const sl_f32x4 *)from;
        b = *(const sl_f32x4 *)(from + rows);
        c = *(const sl_f32x4 *)(from + 2 * rows);
        d = *(const sl_f32x4 *)(from + 3 * rows);
        sl_transpose_f32(&a, &b, &c, &d);
        *(sl_f32x4 *)to = a;
        *(sl_f32x4 *)(to + lanes) = b;
        *(sl_f32x4 *)(to + 2 * lanes) = c;
        *(sl_f32x4 *)(to + 3 * lanes) = d;
    }
}
static inline void sl_to_lanes_f64(const double *from, Py_ssize_t rows, double *to, Py_ssize_t lanes) {
    sl_f64x2 a, b;
    int half;
    for (half = 0; half < 2; half++, from += 2 * rows, to += 2) {
        a = *(const sl_f64x2 *)from;
        b = *(const sl_f64x2 *)(from + rows);
        *(sl_f64x2 *)to = SL_SHUFFLE2(a, b, 0, 2);
        *(sl_f64x2 *)(to + lanes) = SL_SHUFFLE2(a, b, 1, 3);
    }
}
static inline void sl_from_lanes_f32(
        const float *from, Py_ssize_t lanes, const float *factor, float *to, Py_ssize_t rows) {
    sl_f32x4 v, a, b, c, d;
    int half;
    for (half = 0; half < 2; half++, from += 4, factor += 4, to += 4 * rows) {
        v = *(const sl_f32x4 *)factor;
        a = v * *(const sl_f32x4 *)from;
        b = v * *(const sl_f32x4 *)(from + lanes);
        c = v * *(const sl_f32x4 *)(from + 2 * lanes);
        d = v * *(const sl_f32x4 *)(from + 3 * lanes);
        sl_transpose_f32(&a, &b, &c, &d);
        *(sl_f32x4 *)to = a;
        *(sl_f32x4 *)(to + rows) = b;
        *(sl_f32x4 *)(to + 2 * rows) = c;
        *(sl_f32x4 *)(to + 3 * rows) = d;
    }
}
static inline void sl_from_lanes_f64(
        const double *from, Py_ssize_t lanes, const double *factor, double *to, Py_ssize_t rows) {
    sl_f64x2 v, a, b;
    int half;
    for (half = 0; half < 2; half++, from += 2, factor += 2, to += 2 * rows) {
        v = *(const sl_f64x2 *)factor;
        a = v * *(const sl_f64x2 *)from;
        b = v * *(const sl_f64x2 *)(from + lanes);
        *(sl_f64x2 *)to = SL_SHUFFLE2(a, b, 0, 2);
        *(sl_f64x2 *)(to + rows) = SL_SHUFFLE2(a, b, 1, 3);
    }
}
#endif

#endif

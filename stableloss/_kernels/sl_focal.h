/* Cross-entropy with focusing by a whole exponent, of float32 that is computed in float64. Of a class with the
   target q, and o = 1 - p, S = -log p:

     loss   q o**gamma S
     first  p d/dp of it  =  -q (o**gamma + gamma o**(gamma - 1) p S)

   softmax_ce_options.pxi has the same with second derivatives, for any exponent, and to all digits. */

#ifndef SL_FOCAL_H
#define SL_FOCAL_H

#include "sl_columns.h"

typedef struct {
    int exponent;       /* gamma */
    int lines;
    double m[SL_GROUP], log_sum[SL_GROUP], sum_max[SL_GROUP], sum_rest[SL_GROUP], inverse[SL_GROUP];
} sl_focal_columns;

typedef struct {
    sl_vector_f64 m, log_sum, sum_max, sum_rest, inverse;
} sl_focal_vector;

static SL_ALWAYS_INLINE sl_focal_vector sl_focal_at(const sl_focal_columns *columns, int j) {
    sl_focal_vector of;
    of.m = SL_READ(sl_vector_f64, columns->m + j);
    of.log_sum = SL_READ(sl_vector_f64, columns->log_sum + j);
    of.sum_max = SL_READ(sl_vector_f64, columns->sum_max + j);
    of.sum_rest = SL_READ(sl_vector_f64, columns->sum_rest + j);
    of.inverse = SL_READ(sl_vector_f64, columns->inverse + j);
    return of;
}

static SL_ALWAYS_INLINE sl_vector_f64 sl_focal_terms(
        sl_vector_f64 e, sl_vector_f64 x, sl_vector_f64 q, int exponent, const sl_focal_vector *of,
        sl_vector_f64 *loss) {
    sl_vector_f64 d = of->sum_max - e;
    sl_vector_f64 others = (d + (of->sum_rest + ((of->sum_max - d) - e))) * of->inverse;
    sl_vector_f64 minus_log = (of->m - x) + of->log_sum, power = sl_all_f64(1), near, whole;
    int i;
    for (i = 1; i < exponent; i++) power *= others;
    near = (double)exponent * power * (e * of->inverse) * minus_log;
    near = (sl_vector_f64)((sl_bits_vector_f64)(e != 0) & (sl_bits_vector_f64)near);      /* of 0 * inf */
    whole = power * others;
    *loss = (sl_vector_f64)((sl_bits_vector_f64)(q != 0) & (sl_bits_vector_f64)(whole != 0)
                            & (sl_bits_vector_f64)(q * whole * minus_log));
    return (sl_vector_f64)((sl_bits_vector_f64)(q != 0) & (sl_bits_vector_f64)(-q * (whole + near)));
}

/* Of the lines of columns. Losses are added up, and first apart for exponentials below UNIT and for those equal
   to it: `sums` has both, each followed by as many numbers that these sums lack. */
static void sl_focal_lines(
        const double *e, const double *x, const double *q, const sl_focal_columns *columns, double *first,
        double *sums) {
    sl_focal_vector of;
    sl_vector_f64 v, share, terms, losses, sum, below, above, unit = sl_all_f64(SL_UNIT_F64), zero = sl_all_f64(0);
    double *loss = sums, *rest = sums + 2 * SL_GROUP, *top = sums + 4 * SL_GROUP;
    Py_ssize_t i, end = columns->lines * SL_GROUP;
    int j;
    for (j = 0; j < SL_GROUP; j += SL_DOUBLES) {
        of = sl_focal_at(columns, j);
        sum = SL_READ(sl_vector_f64, loss + j);
        below = SL_READ(sl_vector_f64, rest + j);
        above = SL_READ(sl_vector_f64, top + j);
        for (i = j; i < end; i += SL_GROUP) {
            v = SL_READ(sl_vector_f64, e + i);
            share = SL_READ(sl_vector_f64, q + i);
            if (!sl_any_f64(share)) {       /* most, of rows with one target */
                SL_WRITE(sl_vector_f64, first + i, zero);
                continue;
            }
            terms = sl_focal_terms(v, SL_READ(sl_vector_f64, x + i), share, columns->exponent, &of, &losses);
            SL_WRITE(sl_vector_f64, first + i, terms);
            sum += losses;
            below += sl_where_less_f64(v, unit, terms, zero);
            above += sl_where_less_f64(v, unit, zero, terms);
        }
        SL_WRITE(sl_vector_f64, loss + j, sum);
        SL_WRITE(sl_vector_f64, rest + j, below);
        SL_WRITE(sl_vector_f64, top + j, above);
    }
}

#endif

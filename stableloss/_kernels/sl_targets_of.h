/* What sl_targets.h includes once for each type, with these defined: SL_OF and what follows it there. */

#define V sl_vector_f64
#define R SL_OF(sl_vector)
#define WIDTH ((int)(SL_VECTOR_BYTES / sizeof(SL_REAL)))
#define READ(from) SL_READ(V, from)

/* hi += v, and to lo what the rounding loses. The short form of the two-sum is enough: a sum of non-negative
   terms is rarely smaller than the term that it meets, and such a step costs one rounding. */
static SL_ALWAYS_INLINE void SL_OF(sl_accumulate)(V *hi, V *lo, V v) {
    V s = *hi + v;
#if SL_CARRIES
    *lo += (*hi - s) + v;
#endif
    *hi = s;
}

/* The same in any order: mass without a class of nearly all of it is to keep the digits of the rest. */
static SL_ALWAYS_INLINE void SL_OF(sl_add)(V *hi, V *lo, V v) {
    V s = *hi + v;
#if SL_CARRIES
    V part = s - *hi;
    *lo += (*hi - (s - part)) + (v - part);
#endif
    *hi = s;
}

/* Add (m - x) times `unit` of lines of columns, a power of two for which the sum does not overflow. */
static void SL_OF(sl_column_gaps)(
        const SL_REAL *x, Py_ssize_t lines, const SL_REAL *m, double unit, double *hi, double *lo) {
    V top[SL_COLUMN_VECTORS], sum[SL_COLUMN_VECTORS], lost[SL_COLUMN_VECTORS], minus = sl_all_f64(-unit);
    Py_ssize_t c;
    int i, j;
    for (j = 0; j < SL_GROUP; j += SL_COLUMN_VECTORS * SL_DOUBLES) {
#pragma GCC unroll 4
        for (i = 0; i < SL_COLUMN_VECTORS; i++) {
            top[i] = SL_READ_AS_F64(m + j + i * SL_DOUBLES) * unit;
            sum[i] = READ(hi + j + i * SL_DOUBLES);
            lost[i] = READ(lo + j + i * SL_DOUBLES);
        }
        for (c = 0; c < lines; c++)
#pragma GCC unroll 4
            for (i = 0; i < SL_COLUMN_VECTORS; i++)
                SL_OF(sl_accumulate)(&sum[i], &lost[i], sl_fma_f64(
                    minus, SL_READ_AS_F64(x + c * SL_GROUP + j + i * SL_DOUBLES), top[i]));
#pragma GCC unroll 4
        for (i = 0; i < SL_COLUMN_VECTORS; i++) {
            SL_WRITE(V, hi + j + i * SL_DOUBLES, sum[i]);
            SL_WRITE(V, lo + j + i * SL_DOUBLES, lost[i]);
        }
    }
}

/* Add q (m - x) / 2, of which half overflows only where its product with q may, and q. `masked`: what is absent
   (q = 0) costs nothing even where x is -inf. */
static SL_ALWAYS_INLINE void SL_OF(sl_add_target)(
        const SL_REAL *x, const SL_REAL *q, V half_top, int masked, V *loss, V *loss_lost, V *mass, V *mass_lost) {
    V share = SL_READ_AS_F64(q), none = {0};
    V gap = sl_fma_f64(sl_all_f64(-0.5), SL_READ_AS_F64(x), half_top);
    if (masked) gap = sl_where_f64((sl_bits_vector_f64)(share != none), gap);
#if SL_CARRIES
    SL_OF(sl_accumulate)(loss, loss_lost, gap * share);
#else
    *loss = sl_fma_f64(gap, share, *loss);
#endif
    SL_OF(sl_add)(mass, mass_lost, share);
}

/* The same of lines of columns. */
static SL_ALWAYS_INLINE void SL_OF(sl_add_targets)(
        const SL_REAL *x, const SL_REAL *q, Py_ssize_t lines, const double *m, double *loss, double *mass,
        int masked) {
    V top[SL_COLUMN_VECTORS], sum[SL_COLUMN_VECTORS], lost[SL_COLUMN_VECTORS];
    V all[SL_COLUMN_VECTORS], all_lost[SL_COLUMN_VECTORS];
    Py_ssize_t c;
    int i, j, at;
    for (j = 0; j < SL_GROUP; j += SL_COLUMN_VECTORS * SL_DOUBLES) {
#pragma GCC unroll 4
        for (i = 0; i < SL_COLUMN_VECTORS; i++) {
            at = j + i * SL_DOUBLES;
            top[i] = READ(m + at) * 0.5;
            sum[i] = READ(loss + at);
            all[i] = READ(mass + at);
#if SL_CARRIES
            lost[i] = READ(loss + SL_GROUP + at);
            all_lost[i] = READ(mass + SL_GROUP + at);
#endif
        }
        for (c = 0; c < lines; c++)
#pragma GCC unroll 4
            for (i = 0; i < SL_COLUMN_VECTORS; i++) {
                at = c * SL_GROUP + j + i * SL_DOUBLES;
                SL_OF(sl_add_target)(x + at, q + at, top[i], masked, &sum[i], &lost[i], &all[i], &all_lost[i]);
            }
#pragma GCC unroll 4
        for (i = 0; i < SL_COLUMN_VECTORS; i++) {
            at = j + i * SL_DOUBLES;
            SL_WRITE(V, loss + at, sum[i]);
            SL_WRITE(V, mass + at, all[i]);
#if SL_CARRIES
            SL_WRITE(V, loss + SL_GROUP + at, lost[i]);
            SL_WRITE(V, mass + SL_GROUP + at, all_lost[i]);
#endif
        }
    }
}

/* loss and mass, both 0 so far: columns, followed by as many of what they lack. */
static void SL_OF(sl_target_sums)(
        const SL_REAL *x, const SL_REAL *q, Py_ssize_t lines, const double *m, double *loss, double *mass) {
    Py_ssize_t last = (lines - 1) * SL_GROUP;
    int j, undefined = 0;
    /* infinite logits are rare, but for those that fill the last line: of all else the bits are the same */
    SL_OF(sl_add_targets)(x, q, lines - 1, m, loss, mass, 0);
    SL_OF(sl_add_targets)(x + last, q + last, 1, m, loss, mass, 1);
    for (j = 0; j < SL_GROUP; j++) undefined |= loss[j] != loss[j];
    if (!undefined) return;
    sl_clear(loss);
    sl_clear(loss + SL_GROUP);
    sl_clear(mass);
    sl_clear(mass + SL_GROUP);
    SL_OF(sl_add_targets)(x, q, lines, m, loss, mass, 1);
}

/* What is added up of exponentials and targets of the vector of columns at `j`: see sl_soft_sums. */
typedef struct {
    V rest[SL_PARTS], rest_lost[SL_PARTS], half_top[SL_PARTS];
    V loss[SL_PARTS], loss_lost[SL_PARTS], mass[SL_PARTS], mass_lost[SL_PARTS];
    R top;
} SL_OF(sl_soft);

/* Exponentials of the next line below UNIT; those equal to it are counted apart. */
static SL_ALWAYS_INLINE R SL_OF(sl_next_below)(const SL_REAL *e, SL_OF(sl_soft) *sums) {
    R v = SL_READ(R, e), below = SL_OF(sl_below)(v, SL_OF(sl_all)(SL_UNIT));
    sums->top += v - below;
    return below;
}

static SL_ALWAYS_INLINE void SL_OF(sl_add_below)(R below, SL_OF(sl_soft) *sums) {
    int i;
#pragma GCC unroll 2
    for (i = 0; i < SL_PARTS; i++)
        SL_OF(sl_accumulate)(&sums->rest[i], &sums->rest_lost[i], SL_PART(below, i));
}

static SL_ALWAYS_INLINE void SL_OF(sl_add_targets_of_line)(
        const SL_REAL *x, const SL_REAL *q, int masked, SL_OF(sl_soft) *sums) {
    int i;
#pragma GCC unroll 2
    for (i = 0; i < SL_PARTS; i++)
        SL_OF(sl_add_target)(x + i * SL_DOUBLES, q + i * SL_DOUBLES, sums->half_top[i], masked, &sums->loss[i],
                             &sums->loss_lost[i], &sums->mass[i], &sums->mass_lost[i]);
}

/* Two lines, or one. float32 adds pairs of exponentials before it converts them. */
static SL_ALWAYS_INLINE void SL_OF(sl_add_soft_lines)(
        const SL_REAL *e, const SL_REAL *x, const SL_REAL *q, int two, int masked, SL_OF(sl_soft) *sums) {
    R below = SL_OF(sl_next_below)(e, sums);
#if SL_CARRIES
    SL_OF(sl_add_below)(below, sums);
    if (two) SL_OF(sl_add_below)(SL_OF(sl_next_below)(e + SL_GROUP, sums), sums);
#else
    if (two) below += SL_OF(sl_next_below)(e + SL_GROUP, sums);
    SL_OF(sl_add_below)(below, sums);
#endif
    SL_OF(sl_add_targets_of_line)(x, q, masked, sums);
    if (two) SL_OF(sl_add_targets_of_line)(x + SL_GROUP, q + SL_GROUP, masked, sums);
}

/* Lines of columns, and the last one or two, which may lie elsewhere; whether a loss is NaN. */
static SL_ALWAYS_INLINE int SL_OF(sl_add_soft)(
        const SL_REAL *e, const SL_REAL *x, const SL_REAL *q, Py_ssize_t lines, const SL_REAL *last_x,
        const SL_REAL *last_q, int two, const double *m, double *to, uintptr_t ahead) {
    double *loss = to, *mass = to + 2 * SL_GROUP, *exps = to + 4 * SL_GROUP;
    SL_OF(sl_soft) sums;
    V all = {0};
    Py_ssize_t at, end = lines * SL_GROUP;
    int i, j, place, undefined = 0;
    for (j = 0; j < SL_GROUP; j += WIDTH) {
        sums.top = (R){0};
#pragma GCC unroll 2
        for (i = 0; i < SL_PARTS; i++) {
            place = j + i * SL_DOUBLES;
            sums.half_top[i] = READ(m + place) * 0.5;
            sums.loss[i] = sums.loss_lost[i] = sums.mass[i] = sums.mass_lost[i] = (V){0};
            sums.rest[i] = sums.rest_lost[i] = (V){0};
        }
        for (at = j; at < end; at += 2 * SL_GROUP) {
            if (ahead) {
                sl_fetch_read(ahead + at * sizeof(SL_REAL), sizeof(R));
                sl_fetch_read(ahead + (at + SL_GROUP) * sizeof(SL_REAL), sizeof(R));
            }
            SL_OF(sl_add_soft_lines)(e + at, x + at, q + at, 1, 0, &sums);
        }
        if (two)
            SL_OF(sl_add_soft_lines)(e + at, last_x + j, last_q + j, 1, 1, &sums);
        else
            SL_OF(sl_add_soft_lines)(e + at, last_x + j, last_q + j, 0, 1, &sums);
#pragma GCC unroll 2
        for (i = 0; i < SL_PARTS; i++) {
            place = j + i * SL_DOUBLES;
            all += sums.loss[i];
            SL_WRITE(V, loss + place, sums.loss[i]);
            SL_WRITE(V, loss + SL_GROUP + place, sums.loss_lost[i]);
            SL_WRITE(V, mass + place, sums.mass[i]);
            SL_WRITE(V, mass + SL_GROUP + place, sums.mass_lost[i]);
            SL_WRITE(V, exps + place, sums.rest[i]);
            SL_WRITE(V, exps + SL_GROUP + place, sums.rest_lost[i]);
            SL_WRITE(V, exps + 2 * SL_GROUP + place, SL_PART(sums.top, i));
            SL_WRITE(V, exps + 3 * SL_GROUP + place, (V){0});
        }
    }
    for (i = 0; i < SL_DOUBLES; i++) undefined |= all[i] != all[i];
    return undefined;
}

/* n numbers, and zeros up to whole lines */
static SL_ALWAYS_INLINE void SL_OF(sl_copy_to_lines)(const SL_REAL *x, Py_ssize_t n, SL_REAL *to) {
    Py_ssize_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) SL_WRITE(R, to + i, SL_READ(R, x + i));
    if (i < n) {
        SL_WRITE(R, to + i, SL_OF(sl_read_first)(x + i, n - i, (R){0}));
        i += WIDTH;
    }
    for (; i % SL_GROUP; i += WIDTH) SL_WRITE(R, to + i, (R){0});
}

/* What sl_split_sums and sl_target_sums add up, with the same bits, of n targets: loss, mass, and exponentials
   below UNIT and equal to it, each columns followed by as many of what they lack. The exponentials alone are
   padded to whole lines. */
static void SL_OF(sl_soft_sums)(
        const SL_REAL *e, const SL_REAL *x, const SL_REAL *q, Py_ssize_t n, const double *m, double *to,
        uintptr_t ahead) {
    SL_REAL padded[4 * SL_GROUP];
    Py_ssize_t last = (n + SL_GROUP - 1) / SL_GROUP, lines = (last - 1) & ~(Py_ssize_t)1, i;
    const SL_REAL *last_x = x + lines * SL_GROUP, *last_q = q + lines * SL_GROUP;
    int undefined, two = last - lines == 2;
    if (n % SL_GROUP) {
        SL_OF(sl_copy_to_lines)(last_x, n - lines * SL_GROUP, padded);
        SL_OF(sl_copy_to_lines)(last_q, n - lines * SL_GROUP, padded + 2 * SL_GROUP);
        last_x = padded;
        last_q = padded + 2 * SL_GROUP;
    }
    /* infinite logits are rare, but for those that fill the last line: of all else the bits are the same */
    if (ahead)
        undefined = SL_OF(sl_add_soft)(e, x, q, lines, last_x, last_q, two, m, to, ahead);
    else
        undefined = SL_OF(sl_add_soft)(e, x, q, lines, last_x, last_q, two, m, to, 0);
    if (!undefined) return;
    for (i = 0; i < 4 * SL_GROUP; i += SL_GROUP) sl_clear(to + i);
    SL_OF(sl_add_targets)(x, q, lines, m, to, to + 2 * SL_GROUP, 1);
    SL_OF(sl_add_targets)(last_x, last_q, last - lines, m, to, to + 2 * SL_GROUP, 1);
}

/* e * of_exp + q * (of_target + of_target_lo). Only the product with the exponential is rounded before the sum:
   that with a target may be nearly twice as large as what is left of it. */
static SL_ALWAYS_INLINE R SL_OF(sl_slope)(R e, R q, R of_exp, R of_target, R of_target_lo) {
    return SL_OF(sl_fma)(q, of_target, SL_OF(sl_fma)(e, of_exp, q * of_target_lo));
}

/* Gradients of columns by lines of factors: of_exp, of_target, of_target_lo; and with `peaks` two more, from
   which exponential on a gradient is not formed from these, and what it is there. */
static SL_ALWAYS_INLINE void SL_OF(sl_slope_lines)(
        const SL_REAL *e, const SL_REAL *q, Py_ssize_t lines, const SL_REAL *by, int peaks, SL_REAL *to) {
    R of_exp, of_target, of_target_lo, top, at_top, v;
    Py_ssize_t i;
    int j;
    for (j = 0; j < SL_GROUP; j += WIDTH) {
        of_exp = SL_READ(R, by + j);
        of_target = SL_READ(R, by + SL_GROUP + j);
        of_target_lo = SL_READ(R, by + 2 * SL_GROUP + j);
        top = SL_READ(R, by + 3 * SL_GROUP + j);
        at_top = SL_READ(R, by + 4 * SL_GROUP + j);
        for (i = j; i < lines * SL_GROUP; i += SL_GROUP) {
            v = SL_OF(sl_slope)(SL_READ(R, e + i), SL_READ(R, q + i), of_exp, of_target, of_target_lo);
            if (peaks) v = SL_OF(sl_where_less)(SL_READ(R, e + i), top, v, at_top);
            SL_WRITE(R, to + i, v);
        }
    }
}

static void SL_OF(sl_column_slopes)(
        const SL_REAL *e, const SL_REAL *q, Py_ssize_t lines, const SL_REAL *by, int peaks, SL_REAL *to) {
    if (peaks)
        SL_OF(sl_slope_lines)(e, q, lines, by, 1, to);
    else
        SL_OF(sl_slope_lines)(e, q, lines, by, 0, to);
}

/* The same of a row, with the first of each line of factors. */
static void SL_OF(sl_row_slopes)(
        const SL_REAL *e, const SL_REAL *q, Py_ssize_t n, const SL_REAL *by, SL_REAL *to) {
    R of_exp = SL_OF(sl_all)(by[0]), of_target = SL_OF(sl_all)(by[SL_GROUP]);
    R of_target_lo = SL_OF(sl_all)(by[2 * SL_GROUP]);
    Py_ssize_t i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        R upper = SL_OF(sl_slope)(SL_READ(R, e + i), SL_READ(R, q + i), of_exp, of_target, of_target_lo);
        R lower = SL_OF(sl_slope)(
            SL_READ(R, e + i + WIDTH), SL_READ(R, q + i + WIDTH), of_exp, of_target, of_target_lo);
        SL_WRITE(R, to + i, upper);
        SL_WRITE(R, to + i + WIDTH, lower);
    }
    for (; i < n; i += WIDTH) {
        Py_ssize_t rest = n - i;
        R share = rest < WIDTH ? SL_OF(sl_read_first)(q + i, rest, (R){0}) : SL_READ(R, q + i);
        R v = rest < WIDTH ? SL_OF(sl_read_first)(e + i, rest, (R){0}) : SL_READ(R, e + i);
        v = SL_OF(sl_slope)(v, share, of_exp, of_target, of_target_lo);
        if (rest < WIDTH)
            SL_OF(sl_write_first)(to + i, rest, v);
        else
            SL_WRITE(R, to + i, v);
    }
}

/* The target of the exponential that is equal to `unit`, of each column that has one such. */
static void SL_OF(sl_targets_at)(
        const SL_REAL *e, const SL_REAL *q, Py_ssize_t lines, SL_REAL unit, SL_REAL *to) {
    R limit = SL_OF(sl_all)(unit), found;
    Py_ssize_t i;
    int j;
    for (j = 0; j < SL_GROUP; j += WIDTH) {
        found = (R){0};
        for (i = j; i < lines * SL_GROUP; i += SL_GROUP)
            found = SL_OF(sl_where_less)(SL_READ(R, e + i), limit, found, SL_READ(R, q + i));
        SL_WRITE(R, to + j, found);
    }
}

/* to = e * factor - less, in place or not. */
static void SL_OF(sl_scale_and_subtract)(
        const SL_REAL *e, Py_ssize_t n, SL_REAL factor, SL_REAL less, SL_REAL *to) {
    SL_OF(sl_vector) by = SL_OF(sl_all)(factor), minus = SL_OF(sl_all)(-less);
    Py_ssize_t i = 0, width = SL_VECTOR_BYTES / sizeof(SL_REAL);
    for (; i + width <= n; i += width)
        SL_WRITE(SL_OF(sl_vector), to + i, SL_OF(sl_fma)(SL_READ(SL_OF(sl_vector), e + i), by, minus));
    for (; i < n; i++) to[i] = SL_SCALAR_FMA(e[i], factor, -less);
}

#undef V
#undef R
#undef WIDTH
#undef READ
#undef SL_OF
#undef SL_REAL
#undef SL_PARTS
#undef SL_PART
#undef SL_UNIT
#undef SL_READ_AS_F64
#undef SL_CARRIES
#undef SL_SCALAR_FMA

/* What sl_columns.h includes once for each type, with these defined: SL_OF and what follows it there. */

#define V SL_OF(sl_vector)
#define ALL(x) SL_OF(sl_all)(SL_CONSTANT(x))
#define FMA SL_OF(sl_fma)
#define WIDTH ((int)(SL_VECTOR_BYTES / sizeof(SL_REAL)))

/* What belongs to the exponentials of scale * (x - m), for one m or one per lane. */
typedef struct {
    V a, b, hi, lo, least, scale, scale_lo;
} SL_OF(sl_shift);

/* A finite maximum m = a + b, exactly, where hi + lo is b times the scale; `least` is what x - a counts as at
   least: there n is so small that the exponent field of 2**n is 0, and with it the result.

   Where |m| is large, every x with e**(x - m) > 0 lies within a factor of 2 of m, so that x - m is exact
   (Sterbenz) and all of m goes into a. Below that a is 0, and hi is b rounded to a grid on which
   hi + n * LN2_HI is exact. */
static SL_ALWAYS_INLINE SL_REAL SL_OF(sl_split)(
        SL_REAL m, SL_REAL *b, SL_REAL *hi, SL_REAL *lo, SL_REAL *least) {
    SL_REAL a = SL_MAGNITUDE(m) >= SL_SPLIT_FROM ? m : 0;
    *b = m - a;
    *hi = (*b + 3 * SL_SPLIT_FROM) - 3 * SL_SPLIT_FROM;
    *lo = *b - *hi;
    *least = *b + SL_NOTHING;
    return a;
}

static SL_ALWAYS_INLINE SL_REAL SL_OF(sl_split_scaled)(
        SL_REAL m, double scale, SL_REAL *b, SL_REAL *hi, SL_REAL *lo, SL_REAL *least) {
    SL_REAL a = SL_ABS(scale * m) >= SL_SPLIT_FROM ? m : 0;
    double rest = m - a, product = scale * rest;
    *b = (SL_REAL)product;
    *hi = (*b + 3 * SL_SPLIT_FROM) - 3 * SL_SPLIT_FROM;
    *lo = (SL_REAL)((product - *hi) + SL_PRODUCT_ERROR(scale, rest, product));
    *least = (SL_REAL)(rest + SL_NOTHING / scale);
    return a;
}

/* e**r - 1 for |r| <= ln(2)/2, where `start` is r; without r where it is 0. */
static SL_ALWAYS_INLINE V SL_OF(sl_expm1_reduced)(V r, V start) {
#if SL_REAL_BITS == 23
    V q = FMA(ALL(SL_EXP4), r, ALL(SL_EXP3));
#else
    V q = FMA(ALL(SL_EXP9), r, ALL(SL_EXP8));
    q = FMA(q, r, ALL(SL_EXP7));
    q = FMA(q, r, ALL(SL_EXP6));
    q = FMA(q, r, ALL(SL_EXP5));
    q = FMA(q, r, ALL(SL_EXP4));
    q = FMA(q, r, ALL(SL_EXP3));
#endif
    q = FMA(q, r, ALL(SL_EXP2));
    q = FMA(q, r, ALL(SL_EXP1));
    q = FMA(q, r, ALL(SL_EXP0));
    return FMA(r * r, q, start);
}

/* UNIT * e**(x - m) for x <= m; NaN for NaN.

   Rounding x - m first would cost half an ulp of the difference, 32 ulp of the result at float32 and -64.
   Here only the choice of n sees the rounded difference; the reduced argument is taken as
   (x - (m + n ln 2)), a subtraction of neighbours, and is as good as if x - m were exact.

   `how` says what else there is. Losses that take products of exponentials have them compensated: that carries
   the rounding errors of the reduced argument and of 1 + r, and leaves little more than the last rounding. A
   scale of the logits is carried with what the product with it loses, and lacks no digit for it. Brief ones have
   the digits that float32 needs: it is computed in float64 where an option multiplies errors. Float32's own
   compensated ones come with `lost`, what their last rounding lost, and do not carry what z - shift may lose,
   which took a tenth of the time: both together have a relative error of 0.523 * 2**-24 at
   x = -0x1.7c6692p-3, m = 0x1.494bcep-3, the exponentials alone of 1.187 * 2**-24.

   Largest errors found, in ulps, of 6 * 10**7 pairs each: float32 1.188 at x = -0x1.ec3fcep-3,
   m = 0x1.0e80ccp-4; float64 1.201 at x = -0x1.24e54c0b389a3p+9, m = 0x1.f97452d3477abp-3, compensated 0.866 at
   x = -0x1.7140613916676p+9, m = 0x1.2b037616450fcp-5. Brief ones have an error of 2**-34. Below the smallest
   normal number results have the digits that are left. */
static SL_ALWAYS_INLINE V SL_OF(sl_exp_shifted)(V x, const SL_OF(sl_shift) *to, int how, V *lost) {
    V y = SL_OF(sl_max)(to->least, x - to->a);
    V z = y, shifted, n, shift, rest, head, power, r;
#if SL_REAL_BITS == 52
    if (how == SL_BRIEF) return sl_brief_exp(y, SL_UNIT_MAGIC_F64);
#endif
    if (how == SL_SCALED) z = y * to->scale;
    shifted = FMA(z - to->b, ALL(SL_LOG2E), ALL(SL_UNIT_MAGIC));
    n = shifted - ALL(SL_UNIT_MAGIC);
    shift = FMA(n, ALL(SL_LN2_HI), to->hi);
    rest = FMA(n, ALL(SL_LN2_LO), to->lo);
    head = z - shift;
    power = (V)((SL_OF(sl_bits_vector))shifted << SL_REAL_BITS);
    if (how == SL_COMPENSATED) {
        V part, one;
#if SL_REAL_BITS == 52
        part = head - z;
        rest -= (z - (head - part)) - (shift + part);       /* head + shift may not be z: two-sum */
#endif
        r = head - rest;
        one = 1 + r;
        part = ((1 - one) + r) + SL_OF(sl_expm1_reduced)(r, (head - r) - rest);
        r = one + part;
        *lost = ((one - r) + part) * power;
        return r * power;
    }
    if (how == SL_SCALED)
        rest -= FMA(to->scale_lo, y, SL_OF(sl_product_error)(y, to->scale, z));
    r = head - rest;
    return (1 + SL_OF(sl_expm1_reduced)(r, r)) * power;
}

/* The lanes of one vector, line by line: `step` apart, up to n. Meanwhile as much memory comes closer that
   will be read and written next, if that lies out of the caches: in one go it would be waited for. */
static SL_ALWAYS_INLINE void SL_OF(sl_exp_lanes)(
        const SL_REAL *x, SL_REAL *e, Py_ssize_t step, Py_ssize_t n, const SL_OF(sl_shift) *to, int how,
        int loses, SL_REAL *lost, sl_ahead *ahead) {
    V first, second, sum = (V){0};
    Py_ssize_t i = 0;
    for (; i + step < n; i += 2 * step) {
        V upper = SL_READ(V, x + i), lower = SL_READ(V, x + i + step);
        if (ahead != NULL) sl_fetch(ahead, 2 * sizeof(V));
        SL_WRITE(V, e + i, SL_OF(sl_exp_shifted)(upper, to, how, &first));
        SL_WRITE(V, e + i + step, SL_OF(sl_exp_shifted)(lower, to, how, &second));
        if (loses == SL_EACH) {
            SL_WRITE(V, lost + i, first);
            SL_WRITE(V, lost + i + step, second);
        }
        if (loses == SL_SUM) sum = (sum + first) + second;
    }
    if (i < n) {
        SL_WRITE(V, e + i, SL_OF(sl_exp_shifted)(SL_READ(V, x + i), to, how, &first));
        if (loses == SL_EACH) SL_WRITE(V, lost + i, first);
        if (loses == SL_SUM) sum += first;
    }
    if (loses == SL_SUM) SL_WRITE(V, lost, sum);
}

static SL_ALWAYS_INLINE void SL_OF(sl_set_scale)(SL_OF(sl_shift) *to, double scale) {
    to->scale = SL_OF(sl_all)((SL_REAL)scale);
    to->scale_lo = SL_OF(sl_all)((SL_REAL)(scale - (SL_REAL)scale));
}

static SL_ALWAYS_INLINE SL_REAL SL_OF(sl_split_as)(
        int how, SL_REAL m, double scale, SL_REAL *b, SL_REAL *hi, SL_REAL *lo, SL_REAL *least) {
    if (how == SL_SCALED) return SL_OF(sl_split_scaled)(m, scale, b, hi, lo, least);
    if (how != SL_BRIEF) return SL_OF(sl_split)(m, b, hi, lo, least);
    *b = *hi = *lo = 0;
    *least = SL_NOTHING;
    return m;
}

static SL_ALWAYS_INLINE void SL_OF(sl_exp_columns)(
        const SL_REAL *x, SL_REAL *e, Py_ssize_t lines, const SL_REAL *m, double scale, int how,
        int loses, SL_REAL *lost, const sl_ahead *ahead) {
    SL_REAL a[SL_GROUP], b[SL_GROUP], hi[SL_GROUP], lo[SL_GROUP], least[SL_GROUP];
    SL_OF(sl_shift) to;
    sl_ahead next;
    int j;
    for (j = 0; j < SL_GROUP; j++)
        a[j] = SL_OF(sl_split_as)(how, m[j], scale, &b[j], &hi[j], &lo[j], &least[j]);
    SL_OF(sl_set_scale)(&to, scale);
    if (ahead != NULL) next = *ahead;
    /* so that what belongs to a column stays in registers */
    for (j = 0; j < SL_GROUP; j += WIDTH) {
        to.a = SL_READ(V, a + j);
        to.b = SL_READ(V, b + j);
        to.hi = SL_READ(V, hi + j);
        to.lo = SL_READ(V, lo + j);
        to.least = SL_READ(V, least + j);
        SL_OF(sl_exp_lanes)(x + j, e + j, SL_GROUP, lines * SL_GROUP, &to, how, loses,
                            loses ? lost + j : NULL, ahead != NULL ? &next : NULL);
    }
}

static SL_ALWAYS_INLINE void SL_OF(sl_exp_row)(
        const SL_REAL *x, SL_REAL *e, Py_ssize_t n, SL_REAL m, double scale, int how, int loses,
        SL_REAL *lost, const sl_ahead *ahead) {
    SL_REAL b, hi, lo, least;
    SL_REAL a = SL_OF(sl_split_as)(how, m, scale, &b, &hi, &lo, &least);
    SL_OF(sl_shift) to;
    sl_ahead next;
    to.a = SL_OF(sl_all)(a);
    to.b = SL_OF(sl_all)(b);
    to.hi = SL_OF(sl_all)(hi);
    to.lo = SL_OF(sl_all)(lo);
    to.least = SL_OF(sl_all)(least);
    SL_OF(sl_set_scale)(&to, scale);
    if (ahead != NULL) next = *ahead;
    SL_OF(sl_exp_lanes)(x, e, WIDTH, n, &to, how, loses, lost, ahead != NULL ? &next : NULL);
}

/* e = UNIT * e**(scale * (x - m)), in place or not: of columns, each with its maximum, or of n logits of one
   row and those that fill the last vector. Others than plain ones have no scale but 1. `ahead` may be NULL. */
static void SL_OF(sl_column_exponentials)(
        const SL_REAL *x, SL_REAL *e, Py_ssize_t lines, const SL_REAL *m, int how, double scale,
        const sl_ahead *ahead) {
    if (scale != 1)
        SL_OF(sl_exp_columns)(x, e, lines, m, scale, SL_SCALED, 0, NULL, ahead);
#if SL_REAL_BITS == 52
    else if (how == SL_COMPENSATED && ahead != NULL)
        SL_OF(sl_exp_columns)(x, e, lines, m, 1, SL_COMPENSATED, 0, NULL, ahead);
    else if (how == SL_COMPENSATED)
        SL_OF(sl_exp_columns)(x, e, lines, m, 1, SL_COMPENSATED, 0, NULL, NULL);
    else if (how == SL_BRIEF)
        SL_OF(sl_exp_columns)(x, e, lines, m, 1, SL_BRIEF, 0, NULL, ahead);
#endif
    else if (ahead != NULL)
        SL_OF(sl_exp_columns)(x, e, lines, m, 1, SL_PLAIN, 0, NULL, ahead);
    else
        SL_OF(sl_exp_columns)(x, e, lines, m, 1, SL_PLAIN, 0, NULL, NULL);
}

static void SL_OF(sl_row_exponentials)(
        const SL_REAL *x, SL_REAL *e, Py_ssize_t n, SL_REAL m, int how, double scale, const sl_ahead *ahead) {
    if (scale != 1)
        SL_OF(sl_exp_row)(x, e, n, m, scale, SL_SCALED, 0, NULL, ahead);
#if SL_REAL_BITS == 52
    else if (how == SL_COMPENSATED && ahead != NULL)
        SL_OF(sl_exp_row)(x, e, n, m, 1, SL_COMPENSATED, 0, NULL, ahead);
    else if (how == SL_COMPENSATED)
        SL_OF(sl_exp_row)(x, e, n, m, 1, SL_COMPENSATED, 0, NULL, NULL);
    else if (how == SL_BRIEF)
        SL_OF(sl_exp_row)(x, e, n, m, 1, SL_BRIEF, 0, NULL, ahead);
#endif
    else if (ahead != NULL)
        SL_OF(sl_exp_row)(x, e, n, m, 1, SL_PLAIN, 0, NULL, ahead);
    else
        SL_OF(sl_exp_row)(x, e, n, m, 1, SL_PLAIN, 0, NULL, NULL);
}

#if SL_REAL_BITS == 23
/* Compensated ones, and what they lack: the sum of that for each column, or each of a row. */
static void sl_compensated_columns(
        const float *x, float *e, Py_ssize_t lines, const float *m, float *lost, const sl_ahead *ahead) {
    sl_exp_columns_f32(x, e, lines, m, 1, SL_COMPENSATED, SL_SUM, lost, ahead);
}

static void sl_compensated_row(
        const float *x, float *e, Py_ssize_t n, float m, float *lost, const sl_ahead *ahead) {
    sl_exp_row_f32(x, e, n, m, 1, SL_COMPENSATED, SL_EACH, lost, ahead);
}
#endif

/* Raise each m to the maximum of its column. NaN may lose: it comes back as its class's exponential. */
static void SL_OF(sl_column_maxima)(const SL_REAL *x, Py_ssize_t lines, SL_REAL *m) {
    V top[SL_GROUP / WIDTH > 8 ? 8 : SL_GROUP / WIDTH];
    const SL_REAL *at;
    Py_ssize_t c;
    int i, j;
    for (j = 0; j < SL_GROUP; j += (int)(sizeof top / (sizeof(SL_REAL)))) {
#pragma GCC unroll 8
        for (i = 0; i < (int)(sizeof top / sizeof(V)); i++) top[i] = SL_READ(V, m + j + i * WIDTH);
        for (c = 0; c + 1 < lines; c += 2)
#pragma GCC unroll 8
            for (i = 0; i < (int)(sizeof top / sizeof(V)); i++) {
                at = x + c * SL_GROUP + j + i * WIDTH;
                top[i] = SL_OF(sl_max)(SL_READ(V, at + SL_GROUP), SL_OF(sl_max)(SL_READ(V, at), top[i]));
            }
        if (c < lines)
#pragma GCC unroll 8
            for (i = 0; i < (int)(sizeof top / sizeof(V)); i++)
                top[i] = SL_OF(sl_max)(SL_READ(V, x + c * SL_GROUP + j + i * WIDTH), top[i]);
#pragma GCC unroll 8
        for (i = 0; i < (int)(sizeof top / sizeof(V)); i++) SL_WRITE(V, m + j + i * WIDTH, top[i]);
    }
}

/* Inline, where memcpy would be called: rows are short. */
static SL_ALWAYS_INLINE void SL_OF(sl_copy)(const SL_REAL *x, Py_ssize_t n, SL_REAL *to) {
    Py_ssize_t i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        V upper = SL_READ(V, x + i), lower = SL_READ(V, x + i + WIDTH);
        SL_WRITE(V, to + i, upper);
        SL_WRITE(V, to + i + WIDTH, lower);
    }
    for (; i + WIDTH <= n; i += WIDTH) SL_WRITE(V, to + i, SL_READ(V, x + i));
    if (i < n) SL_OF(sl_write_first)(to + i, n - i, SL_OF(sl_read_first)(x + i, n - i, (V){0}));
}

/* to = x * factor, in place or not. */
static void SL_OF(sl_scale)(const SL_REAL *x, Py_ssize_t n, SL_REAL factor, SL_REAL *to) {
    Py_ssize_t i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        V upper = SL_READ(V, x + i) * factor, lower = SL_READ(V, x + i + WIDTH) * factor;
        SL_WRITE(V, to + i, upper);
        SL_WRITE(V, to + i + WIDTH, lower);
    }
    for (; i + WIDTH <= n; i += WIDTH) SL_WRITE(V, to + i, SL_READ(V, x + i) * factor);
    if (i < n) SL_OF(sl_write_first)(to + i, n - i, SL_OF(sl_read_first)(x + i, n - i, (V){0}) * factor);
}

/* n logits padded with -inf to whole lines: what is written number by number before a vector of it is read
   would be waited for. */
static void SL_OF(sl_padded_copy)(const SL_REAL *x, Py_ssize_t n, SL_REAL *to) {
    V nothing = SL_OF(sl_all)(-SL_INFINITY);
    Py_ssize_t i = n / WIDTH * WIDTH, end = (n + SL_GROUP - 1) / SL_GROUP * SL_GROUP;
    SL_OF(sl_copy)(x, i, to);
    if (i < n) {
        SL_WRITE(V, to + i, SL_OF(sl_read_first)(x + i, n - i, nothing));
        i += WIDTH;
    }
    for (; i < end; i += WIDTH) SL_WRITE(V, to + i, nothing);
}

/* Zeros after the vectors of n exponentials up to whole lines. */
static void SL_OF(sl_clear_padding)(SL_REAL *e, Py_ssize_t n) {
    Py_ssize_t i = (n + WIDTH - 1) / WIDTH * WIDTH, end = (n + SL_GROUP - 1) / SL_GROUP * SL_GROUP;
    for (; i < end; i += WIDTH) SL_WRITE(V, e + i, (V){0});
}

/* The maximum of m and n numbers, n a multiple of SL_GROUP; NaN may lose. */
static SL_REAL SL_OF(sl_row_maximum)(const SL_REAL *x, Py_ssize_t n, SL_REAL m) {
    V top[4];
    Py_ssize_t c = 0;
    int i;
#pragma GCC unroll 4
    for (i = 0; i < 4; i++) top[i] = SL_OF(sl_all)(m);
    for (; c + 4 * WIDTH <= n; c += 4 * WIDTH)
#pragma GCC unroll 4
        for (i = 0; i < 4; i++) top[i] = SL_OF(sl_max)(SL_READ(V, x + c + i * WIDTH), top[i]);
    for (; c < n; c += WIDTH) top[0] = SL_OF(sl_max)(SL_READ(V, x + c), top[0]);
    top[0] = SL_OF(sl_max)(SL_OF(sl_max)(top[3], top[2]), SL_OF(sl_max)(top[1], top[0]));
#pragma GCC unroll 4
    for (i = WIDTH / 2; i > 0; i /= 2) top[0] = SL_OF(sl_max)(SL_OF(sl_rotate)(top[0], i), top[0]);
    return top[0][0];
}

/* to = (x - hi) - lo, in place or not. */
static void SL_OF(sl_subtract)(const SL_REAL *x, Py_ssize_t n, SL_REAL hi, SL_REAL lo, SL_REAL *to) {
    Py_ssize_t i = 0;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        V upper = (SL_READ(V, x + i) - hi) - lo, lower = (SL_READ(V, x + i + WIDTH) - hi) - lo;
        SL_WRITE(V, to + i, upper);
        SL_WRITE(V, to + i + WIDTH, lower);
    }
    for (; i + WIDTH <= n; i += WIDTH) SL_WRITE(V, to + i, (SL_READ(V, x + i) - hi) - lo);
    if (i < n)
        SL_OF(sl_write_first)(to + i, n - i, (SL_OF(sl_read_first)(x + i, n - i, (V){0}) - hi) - lo);
}

#undef V
#undef ALL
#undef FMA
#undef WIDTH
#undef SL_OF
#undef SL_CONSTANT
#undef SL_REAL
#undef SL_MAGNITUDE
#undef SL_SPLIT_FROM
#undef SL_NOTHING
#undef SL_REAL_BITS

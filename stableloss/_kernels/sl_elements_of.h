/* What sl_elements.h includes once for each type, with these defined: SL_OF and what follows it there. */

#define V SL_OF(sl_vector)
#define BITS SL_OF(sl_bits_vector)
#define ALL(x) SL_OF(sl_all)(SL_CONSTANT(x))
#define FMA SL_OF(sl_fma)
#define WIDTH ((int)(SL_VECTOR_BYTES / sizeof(SL_REAL)))

static SL_ALWAYS_INLINE V SL_OF(sl_magnitude)(V x) { return (V)((BITS)x & ~(BITS)SL_OF(sl_all)(-(SL_REAL)0)); }

/* e**d for d with the n of d / ln 2 in the range of exponents; NaN for NaN. */
static SL_ALWAYS_INLINE V SL_OF(sl_exp_within)(V d) {
    V shifted = FMA(d, ALL(SL_LOG2E), ALL(SL_MAGIC));
    V n = shifted - ALL(SL_MAGIC);
    V r = FMA(n, -ALL(SL_LN2_LO), FMA(n, -ALL(SL_LN2_HI), d));
    V power = (V)((BITS)shifted << SL_REAL_BITS);
    return (1 + SL_OF(sl_expm1_reduced)(r, r)) * power;
}

/* e**-|x|: subnormal or 0 below the smallest normal number. */
static SL_ALWAYS_INLINE V SL_OF(sl_exp_minus)(V x) {
    V d = (V)((BITS)x | (BITS)SL_OF(sl_all)(-(SL_REAL)0));
    return SL_OF(sl_exp_within)(SL_OF(sl_max)(SL_OF(sl_all)(-SL_VANISHES), d));
}

/* 1 / (1 + e**-x), whose denominator loses nothing where it is large. */
static SL_ALWAYS_INLINE V SL_OF(sl_sigmoid)(V x) {
    V d = SL_OF(sl_min)(SL_OF(sl_all)(SL_OVERFLOWS), SL_OF(sl_max)(SL_OF(sl_all)(-SL_VANISHES), -x));
    return 1 / (1 + SL_OF(sl_exp_within)(d));
}

static SL_ALWAYS_INLINE V SL_OF(sl_log_sigmoid)(V x) {
    V below = SL_OF(sl_min)(SL_OF(sl_all)(0), x);
    return below - SL_OF(sl_log1p_unit)(SL_OF(sl_exp_minus)(x));
}

/* Of n numbers, and of those that fill the last vector. Where `ahead`, they come from memory and go there. */
#define EACH(name, function)                                                            \
    static void SL_OF(name)(const SL_REAL *x, Py_ssize_t n, SL_REAL *to, int ahead) {   \
        Py_ssize_t i;                                                                   \
        for (i = 0; i < n; i += WIDTH) {                                                \
            V v = SL_READ(V, x + i);                                                    \
            if (ahead) {                                                                \
                SL_FETCH(x + i, 0);                                                     \
                SL_FETCH(to + i, 1);                                                    \
            }                                                                           \
            SL_WRITE(V, to + i, SL_OF(function)(v));                                    \
        }                                                                               \
    }
EACH(sl_sigmoids, sl_sigmoid)
EACH(sl_log_sigmoids, sl_log_sigmoid)
#undef EACH

/* (1 + e) (a - y) */
static SL_ALWAYS_INLINE V SL_OF(sl_residual_numerator)(V z, V y, V e) {
    return SL_OF(sl_where_less)(z, SL_OF(sl_all)(0), FMA(1 - y, e, -y), FMA(-y, e, 1 - y));
}

/* Of the cross-entropy (see sigmoid_bce.pxi) what there is a place for. */
static void SL_OF(sl_bce)(
        const SL_REAL *z, const SL_REAL *y, Py_ssize_t n, SL_REAL divisor,
        SL_REAL *loss, SL_REAL *grad, SL_REAL *hess, int ahead) {
    V by = SL_OF(sl_all)(divisor), zero = SL_OF(sl_all)(0);
    Py_ssize_t i;
    for (i = 0; i < n; i += WIDTH) {
        V x = SL_READ(V, z + i), t = SL_READ(V, y + i), e = SL_OF(sl_exp_minus)(x);
        if (ahead) {
            SL_FETCH(z + i, 0);
            SL_FETCH(y + i, 0);
            if (grad != NULL) SL_FETCH(grad + i, 1);
        }
        if (loss != NULL) {
            /* abs(z) times the target's share on the other side; 0 * inf counts as 0, so that an infinite
               logit on the side of its target costs nothing */
            V against = SL_OF(sl_where_less)(zero, x, 1 - t, t);
            V margin = (V)((BITS)(against != zero) & (BITS)(SL_OF(sl_magnitude)(x) * against));
            SL_WRITE(V, loss + i, margin + SL_OF(sl_log1p_unit)(e));
        }
        /* the divisor goes into 1 + e, where it costs no rounding of its own */
        if (grad != NULL) SL_WRITE(V, grad + i, SL_OF(sl_residual_numerator)(x, t, e) / FMA(by, e, by));
        if (hess != NULL) SL_WRITE(V, hess + i, e / FMA(e, e + 2, SL_OF(sl_all)(1)));
    }
}

/* ab and what its rounding lost, of a + a_lo and b + b_lo */
static SL_ALWAYS_INLINE V SL_OF(sl_product)(V a, V a_lo, V b, V b_lo, V *lo) {
    V ab = a * b;
    *lo = FMA(a, b_lo, FMA(a_lo, b, SL_OF(sl_lost)(a, b, ab)));
    return ab;
}

/* Of the quadratic cost (see sigmoid_mse.pxi) what curvatures are made from too. */
typedef struct {
    V e, inverse, inverse_lo, difference, difference_lo;
} SL_OF(sl_mse_parts);

static SL_ALWAYS_INLINE SL_OF(sl_mse_parts) SL_OF(sl_mse_vector)(V z, V y) {
    SL_OF(sl_mse_parts) p;
    V zero = SL_OF(sl_all)(0), one, lost, numerator;
    p.e = SL_OF(sl_exp_minus)(z);
    one = 1 + p.e;
    p.inverse = 1 / one;
    p.inverse_lo = p.inverse * FMA(-p.inverse, p.e - (one - 1),
                                   -SL_OF(sl_lost)(p.inverse, one, SL_OF(sl_all)(1)));
    lost = (1 - (1 - y)) - y;
    lost = SL_OF(sl_where_less)(z, zero, lost * p.e, lost);
    numerator = SL_OF(sl_residual_numerator)(z, y, p.e);
    p.difference = SL_OF(sl_product)(numerator, lost, p.inverse, p.inverse_lo, &p.difference_lo);
    return p;
}

static SL_ALWAYS_INLINE V SL_OF(sl_mse_loss)(const SL_OF(sl_mse_parts) *p) {
    return FMA(SL_OF(sl_all)(0.5) * p->difference, p->difference, p->difference * p->difference_lo);
}

static SL_ALWAYS_INLINE V SL_OF(sl_mse_grad)(const SL_OF(sl_mse_parts) *p, V scale, V scale_lo) {
    V a = p->e * p->inverse, lo = FMA(p->e, p->inverse_lo, SL_OF(sl_lost)(p->e, p->inverse, a));
    V c = SL_OF(sl_product)(a, lo, p->inverse, p->inverse_lo, &lo);
    /* the divisor before the difference: both may be far below 1 */
    c = SL_OF(sl_product)(c, lo, scale, scale_lo, &lo);
    return FMA(c, p->difference, FMA(c, p->difference_lo, lo * p->difference));
}

/* Losses, and gradient and parts where there is a place for them. `scale` is the divisor's inverse in two
   numbers; parts are SL_CHUNK numbers each. */
static void SL_OF(sl_mse)(
        const SL_REAL *z, const SL_REAL *y, Py_ssize_t n, const SL_REAL *scale,
        SL_REAL *loss, SL_REAL *grad, SL_REAL *parts, int ahead) {
    V by = SL_OF(sl_all)(scale[0]), by_lo = SL_OF(sl_all)(scale[1]);
    SL_OF(sl_mse_parts) p;
    Py_ssize_t i;
    for (i = 0; i < n; i += WIDTH) {
        if (ahead) {
            SL_FETCH(z + i, 0);
            SL_FETCH(y + i, 0);
            if (grad != NULL) SL_FETCH(grad + i, 1);
        }
        p = SL_OF(sl_mse_vector)(SL_READ(V, z + i), SL_READ(V, y + i));
        SL_WRITE(V, loss + i, SL_OF(sl_mse_loss)(&p));
        if (grad != NULL) SL_WRITE(V, grad + i, SL_OF(sl_mse_grad)(&p, by, by_lo));
        if (parts != NULL) {
            SL_WRITE(V, parts + i, p.e);
            SL_WRITE(V, parts + SL_CHUNK + i, p.inverse);
            SL_WRITE(V, parts + 2 * SL_CHUNK + i, p.inverse_lo);
            SL_WRITE(V, parts + 3 * SL_CHUNK + i, p.difference);
            SL_WRITE(V, parts + 4 * SL_CHUNK + i, p.difference_lo);
        }
    }
}

#undef V
#undef BITS
#undef ALL
#undef FMA
#undef WIDTH
#undef SL_OF
#undef SL_CONSTANT
#undef SL_REAL
#undef SL_VANISHES
#undef SL_OVERFLOWS
#undef SL_REAL_BITS

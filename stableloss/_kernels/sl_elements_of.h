/* What sl_elements.h includes once for each type, with these defined: SL_OF and what follows it there. */

#define V SL_OF(sl_vector)
#define BITS SL_OF(sl_bits_vector)
#define ALL(x) SL_OF(sl_all)(SL_CONSTANT(x))
#define FMA SL_OF(sl_fma)
#define WIDTH ((int)(SL_VECTOR_BYTES / sizeof(SL_REAL)))

static SL_ALWAYS_INLINE V SL_OF(sl_magnitude)(V x) { return (V)((BITS)x & ~(BITS)SL_OF(sl_all)(-(SL_REAL)0)); }

/* e**d = (1 + result) * power for d with the n of d / ln 2 in the range of exponents; NaN for NaN. */
static SL_ALWAYS_INLINE V SL_OF(sl_exp_within)(V d, V *power) {
    V shifted = FMA(d, ALL(SL_LOG2E), ALL(SL_MAGIC));
    V n = shifted - ALL(SL_MAGIC);
    V r = FMA(n, -ALL(SL_LN2_LO), FMA(n, -ALL(SL_LN2_HI), d));
    *power = (V)((BITS)shifted << SL_REAL_BITS);
    return SL_OF(sl_expm1_reduced)(r, r);
}

/* e**-|x|: subnormal or 0 below the smallest normal number. */
static SL_ALWAYS_INLINE V SL_OF(sl_exp_minus)(V x) {
    V d = (V)((BITS)x | (BITS)SL_OF(sl_all)(-(SL_REAL)0)), power;
    V p = SL_OF(sl_exp_within)(SL_OF(sl_max)(SL_OF(sl_all)(-SL_VANISHES), d), &power);
    return FMA(p, power, power);
}

/* 1 / (1 + e**-x), whose denominator loses nothing where it is large. */
static SL_ALWAYS_INLINE V SL_OF(sl_sigmoid)(V x) {
    V d = SL_OF(sl_min)(SL_OF(sl_all)(SL_OVERFLOWS), SL_OF(sl_max)(SL_OF(sl_all)(-SL_VANISHES), -x)), power;
    V p = SL_OF(sl_exp_within)(d, &power);
    return 1 / (1 + (1 + p) * power);       /* the power may be infinite */
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

/* Losses and derivatives take a loop each: with one chain of dependent instructions for all of it, processors
   see too few elements at a time. In the first one, targets and gradient come closer too, if they are given. */
static void SL_OF(sl_exponentials)(
        const SL_REAL *z, Py_ssize_t n, SL_REAL *e, int ahead, const SL_REAL *y, const SL_REAL *grad) {
    Py_ssize_t i;
#pragma GCC unroll 2
    for (i = 0; i < n; i += WIDTH) {
        if (ahead) {
            SL_FETCH(z + i, 0);
            if (y != NULL) SL_FETCH(y + i, 0);
            if (grad != NULL) SL_FETCH(grad + i, 1);
        }
        SL_WRITE(V, e + i, SL_OF(sl_exp_minus)(SL_READ(V, z + i)));
    }
}

/* (1 + e) (a - y) */
static SL_ALWAYS_INLINE V SL_OF(sl_residual_numerator)(V z, V y, V e) {
    return SL_OF(sl_where_less)(z, SL_OF(sl_all)(0), FMA(1 - y, e, -y), FMA(-y, e, 1 - y));
}

/* ---- cross-entropy: see sigmoid_bce.pxi ---- */

static void SL_OF(sl_bce_losses)(
        const SL_REAL *z, const SL_REAL *y, const SL_REAL *e, Py_ssize_t n, SL_REAL *loss) {
    V zero = SL_OF(sl_all)(0), x, t, against, margin;
    Py_ssize_t i;
#pragma GCC unroll 2
    for (i = 0; i < n; i += WIDTH) {
        x = SL_READ(V, z + i);
        t = SL_READ(V, y + i);
        /* abs(z) times the target's share on the other side; 0 * inf counts as 0, so that an infinite logit
           on the side of its target costs nothing */
        against = SL_OF(sl_where_less)(zero, x, 1 - t, t);
        margin = (V)((BITS)(against != zero) & (BITS)(SL_OF(sl_magnitude)(x) * against));
        SL_WRITE(V, loss + i, margin + SL_OF(sl_log1p_unit)(SL_READ(V, e + i)));
    }
}

/* The divisor goes into 1 + e, where it costs no rounding of its own. */
static void SL_OF(sl_bce_gradients)(
        const SL_REAL *z, const SL_REAL *y, const SL_REAL *e, Py_ssize_t n, SL_REAL divisor, SL_REAL *grad) {
    V by = SL_OF(sl_all)(divisor), power;
    Py_ssize_t i;
#pragma GCC unroll 2
    for (i = 0; i < n; i += WIDTH) {
        power = SL_READ(V, e + i);
        SL_WRITE(V, grad + i, SL_OF(sl_residual_numerator)(SL_READ(V, z + i), SL_READ(V, y + i), power)
                              / FMA(by, power, by));
    }
}

/* ---- quadratic cost: see sigmoid_mse.pxi ---- */

/* ab and what its rounding lost, of a + a_lo and b + b_lo */
static SL_ALWAYS_INLINE V SL_OF(sl_product)(V a, V a_lo, V b, V b_lo, V *lo) {
    V ab = a * b;
    *lo = FMA(a, b_lo, FMA(a_lo, b, SL_OF(sl_product_error)(a, b, ab)));
    return ab;
}

/* Losses, and after e, SL_CHUNK numbers each, the high and low parts of 1 / (1 + e) and of a - y. */
static void SL_OF(sl_mse_losses)(
        const SL_REAL *z, const SL_REAL *y, Py_ssize_t n, SL_REAL *parts, SL_REAL *loss) {
    V zero = SL_OF(sl_all)(0), half = SL_OF(sl_all)(0.5), unity = SL_OF(sl_all)(1);
    V x, t, e, one, q, q_lo, lost, d, d_lo;
    Py_ssize_t i;
#pragma GCC unroll 2
    for (i = 0; i < n; i += WIDTH) {
        x = SL_READ(V, z + i);
        t = SL_READ(V, y + i);
        e = SL_READ(V, parts + i);
        one = 1 + e;
        q = 1 / one;
        q_lo = q * FMA(-q, e - (one - 1), -SL_OF(sl_product_error)(q, one, unity));
        lost = (1 - (1 - t)) - t;
        lost = SL_OF(sl_where_less)(x, zero, lost * e, lost);
        d = SL_OF(sl_product)(SL_OF(sl_residual_numerator)(x, t, e), lost, q, q_lo, &d_lo);
        SL_WRITE(V, loss + i, FMA(half * d, d, d * d_lo));
        SL_WRITE(V, parts + SL_CHUNK + i, q);
        SL_WRITE(V, parts + 2 * SL_CHUNK + i, q_lo);
        SL_WRITE(V, parts + 3 * SL_CHUNK + i, d);
        SL_WRITE(V, parts + 4 * SL_CHUNK + i, d_lo);
    }
}

/* From these, and the divisor's inverse in two numbers. */
static void SL_OF(sl_mse_gradients)(
        const SL_REAL *parts, Py_ssize_t n, SL_REAL scale, SL_REAL scale_lo, SL_REAL *grad) {
    V by = SL_OF(sl_all)(scale), by_lo = SL_OF(sl_all)(scale_lo), e, q, q_lo, d, a, c, lo;
    Py_ssize_t i;
#pragma GCC unroll 2
    for (i = 0; i < n; i += WIDTH) {
        e = SL_READ(V, parts + i);
        q = SL_READ(V, parts + SL_CHUNK + i);
        q_lo = SL_READ(V, parts + 2 * SL_CHUNK + i);
        d = SL_READ(V, parts + 3 * SL_CHUNK + i);
        a = e * q;
        lo = FMA(e, q_lo, SL_OF(sl_product_error)(e, q, a));
        c = SL_OF(sl_product)(a, lo, q, q_lo, &lo);
        /* the divisor before the difference: both may be far below 1 */
        c = SL_OF(sl_product)(c, lo, by, by_lo, &lo);
        SL_WRITE(V, grad + i, FMA(c, d, FMA(c, SL_READ(V, parts + 4 * SL_CHUNK + i), lo * d)));
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

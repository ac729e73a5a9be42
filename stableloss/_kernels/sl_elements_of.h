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

/* Exponentials take a loop of their own: with one chain of dependent instructions for all of it, processors see
   too few elements at a time (1.1 to 1.35 times the time). Where `ahead`, each loop fetches what the next chunk
   has of the arrays that it is the first to use: all at once, in the shorter loop, had to wait for memory. */
static void SL_OF(sl_exponentials)(const SL_REAL *z, Py_ssize_t n, SL_REAL *e, int ahead) {
    Py_ssize_t i;
#pragma GCC unroll 2
    for (i = 0; i < n; i += WIDTH) {
        if (ahead) SL_FETCH(z + i, 0);
        SL_WRITE(V, e + i, SL_OF(sl_exp_minus)(SL_READ(V, z + i)));
    }
}

/* values *= weight; a weight of 0 takes the element out, NaN and all. */
static void SL_OF(sl_weigh)(SL_REAL *values, const SL_REAL *weight, Py_ssize_t n, int ahead) {
    V w;
    Py_ssize_t i;
#pragma GCC unroll 2
    for (i = 0; i < n; i += WIDTH) {
        w = SL_READ(V, weight + i);
        if (ahead) SL_FETCH(weight + i, 0);
        SL_WRITE(V, values + i, (V)((BITS)(w != 0) & (BITS)(SL_READ(V, values + i) * w)));
    }
}

/* (1 + e) (a - y) */
static SL_ALWAYS_INLINE V SL_OF(sl_residual_numerator)(V z, V y, V e) {
    return SL_OF(sl_where_less)(z, SL_OF(sl_all)(0), FMA(1 - y, e, -y), FMA(-y, e, 1 - y));
}

/* ---- cross-entropy: see sigmoid_bce.pxi ---- */

static SL_ALWAYS_INLINE V SL_OF(sl_bce_loss)(V z, V y, V e) {
    V zero = SL_OF(sl_all)(0);
    /* abs(z) times the target's share on the other side; 0 * inf counts as 0, so that an infinite logit on the
       side of its target costs nothing */
    V against = SL_OF(sl_where_less)(zero, z, 1 - y, y);
    V margin = (V)((BITS)(against != zero) & (BITS)(SL_OF(sl_magnitude)(z) * against));
    return margin + SL_OF(sl_log1p_unit)(e);
}

/* The divisor goes into 1 + e, where it costs no rounding of its own. */
static SL_ALWAYS_INLINE V SL_OF(sl_bce_gradient)(V z, V y, V e, V divisor) {
    return SL_OF(sl_residual_numerator)(z, y, e) / FMA(divisor, e, divisor);
}

static SL_ALWAYS_INLINE void SL_OF(sl_bce_of)(
        const SL_REAL *z, const SL_REAL *y, const SL_REAL *e, Py_ssize_t n, SL_REAL divisor, SL_REAL *loss,
        SL_REAL *grad, int ahead) {
    V by = SL_OF(sl_all)(divisor), x, t, power;
    Py_ssize_t i;
#pragma GCC unroll 2
    for (i = 0; i < n; i += WIDTH) {
        x = SL_READ(V, z + i);
        t = SL_READ(V, y + i);
        power = SL_READ(V, e + i);
        if (ahead && loss != NULL) SL_FETCH(y + i, 0);
        if (loss != NULL) SL_WRITE(V, loss + i, SL_OF(sl_bce_loss)(x, t, power));
        if (grad == NULL) continue;
        if (ahead) SL_FETCH(grad + i, 1);
        SL_WRITE(V, grad + i, SL_OF(sl_bce_gradient)(x, t, power, by));
    }
}

/* Losses and gradients; either may be NULL. In one loop where there are 32 registers: with 16 it has a tenth more
   instructions than two. */
static void SL_OF(sl_bce)(
        const SL_REAL *z, const SL_REAL *y, const SL_REAL *e, Py_ssize_t n, SL_REAL divisor, SL_REAL *loss,
        SL_REAL *grad, int ahead) {
    if (SL_VECTOR_BYTES == 64 && loss != NULL && grad != NULL) {
        SL_OF(sl_bce_of)(z, y, e, n, divisor, loss, grad, ahead);
        return;
    }
    if (loss != NULL) SL_OF(sl_bce_of)(z, y, e, n, divisor, loss, NULL, ahead);
    if (grad != NULL) SL_OF(sl_bce_of)(z, y, e, n, divisor, NULL, grad, ahead);
}

/* ---- quadratic cost: see sigmoid_mse.pxi ---- */

/* ab and what its rounding lost, of a + a_lo and b + b_lo */
static SL_ALWAYS_INLINE V SL_OF(sl_product)(V a, V a_lo, V b, V b_lo, V *lo) {
    V ab = a * b;
    *lo = FMA(a, b_lo, FMA(a_lo, b, SL_OF(sl_product_error)(a, b, ab)));
    return ab;
}

static SL_ALWAYS_INLINE void SL_OF(sl_mse_of)(
        const SL_REAL *z, const SL_REAL *y, Py_ssize_t n, double divisor, SL_REAL *parts, SL_REAL *loss,
        SL_REAL *grad, int kept, int ahead) {
    SL_REAL scale = (SL_REAL)(1 / divisor);
    V by = SL_OF(sl_all)(scale);
    V by_lo = SL_OF(sl_all)((SL_REAL)(-SL_PRODUCT_ERROR((double)scale, divisor, 1.0) / divisor));
    V zero = SL_OF(sl_all)(0), half = SL_OF(sl_all)(0.5), unity = SL_OF(sl_all)(1);
    V x, t, e, one, q, q_lo, lost, d, d_lo, a, c, lo;
    Py_ssize_t i;
#pragma GCC unroll 2
    for (i = 0; i < n; i += WIDTH) {
        x = SL_READ(V, z + i);
        t = SL_READ(V, y + i);
        e = SL_READ(V, parts + i);
        if (ahead) SL_FETCH(y + i, 0);
        one = 1 + e;
        q = 1 / one;
        q_lo = q * FMA(-q, e - (one - 1), -SL_OF(sl_product_error)(q, one, unity));
        lost = (1 - (1 - t)) - t;
        lost = SL_OF(sl_where_less)(x, zero, lost * e, lost);
        d = SL_OF(sl_product)(SL_OF(sl_residual_numerator)(x, t, e), lost, q, q_lo, &d_lo);
        SL_WRITE(V, loss + i, FMA(half * d, d, d * d_lo));
        if (kept) {
            SL_WRITE(V, parts + SL_CHUNK + i, q);
            SL_WRITE(V, parts + 2 * SL_CHUNK + i, q_lo);
            SL_WRITE(V, parts + 3 * SL_CHUNK + i, d);
            SL_WRITE(V, parts + 4 * SL_CHUNK + i, d_lo);
        }
        if (grad == NULL) continue;
        if (ahead) SL_FETCH(grad + i, 1);
        a = e * q;
        lo = FMA(e, q_lo, SL_OF(sl_product_error)(e, q, a));
        c = SL_OF(sl_product)(a, lo, q, q_lo, &lo);
        /* the divisor before the difference: both may be far below 1 */
        c = SL_OF(sl_product)(c, lo, by, by_lo, &lo);
        SL_WRITE(V, grad + i, FMA(c, d, FMA(c, d_lo, lo * d)));
    }
}

/* Losses, and gradients unless they are NULL, from e at the beginning of `parts`. Where they are to be kept, the
   high and low parts of 1 / (1 + e) and of a - y follow it, SL_CHUNK numbers each. */
static void SL_OF(sl_mse)(
        const SL_REAL *z, const SL_REAL *y, Py_ssize_t n, double divisor, SL_REAL *parts, SL_REAL *loss,
        SL_REAL *grad, int kept, int ahead) {
    if (grad == NULL)
        SL_OF(sl_mse_of)(z, y, n, divisor, parts, loss, NULL, kept, ahead);
    else if (kept)
        SL_OF(sl_mse_of)(z, y, n, divisor, parts, loss, grad, 1, ahead);
    else
        SL_OF(sl_mse_of)(z, y, n, divisor, parts, loss, grad, 0, ahead);
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

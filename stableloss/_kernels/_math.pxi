# exp and log1p as plain arithmetic that the compiler turns into SIMD, for float32 and float64.
#
# The same source gives the same bits on every level with fused multiply-add: each fma is written out
# and the build passes -ffp-contract=off. The base level of x86-64 has no such instruction; there fma
# is a product and a sum, and results may differ in the last bits.
#
# Polynomial coefficients are minimax fits (Remez, 60 digits) rounded to the type; the fitted error
# stands with each set. The measured worst cases stand above each function.

from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #if defined(__FMA__) || defined(__aarch64__)
    #define SL_FMAF(a, b, c) __builtin_fmaf(a, b, c)
    #define SL_FMA(a, b, c) __builtin_fma(a, b, c)
    #define SL_PRODUCT_ERRORF(a, b, product) __builtin_fmaf(a, b, -(product))
    #define SL_PRODUCT_ERROR(a, b, product) __builtin_fma(a, b, -(product))
    #else
    #define SL_FMAF(a, b, c) ((a) * (b) + (c))
    #define SL_FMA(a, b, c) ((a) * (b) + (c))
    #define SL_PRODUCT_ERRORF(a, b, product) ((float)((double)(a) * (b) - (product)))
    /* Dekker's splitting; it overflows, and then no correction is made, from 2**996 */
    static inline double SL_PRODUCT_ERROR(double a, double b, double product) {
        double t = a * 134217729.0, a_hi = t - (t - a), a_lo = a - a_hi;    /* 2**27 + 1 */
        double u = b * 134217729.0, b_hi = u - (u - b), b_lo = b - b_hi;
        double error = ((a_hi * b_hi - product) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo;
        return error - error == 0 ? error : 0;
    }
    #endif

    /* 1.5 * 2**(mantissa bits) rounds an added number to an integer n; the exponent bias on top
       leaves n + bias in the low bits, ready to be shifted into the exponent field. */
    #define SL_MAGIC_F32 0x1.8000fep+23f                /* 12583039 */
    #define SL_MAGIC_F64 0x1.80000000003ffp+52          /* 6755399441056767 */

    #define SL_INFINITY __builtin_inff()
    #define SL_ABSF(x) __builtin_fabsf(x)
    #define SL_ABS(x) __builtin_fabs(x)

    /* exp_shifted returns its result times UNIT: a sum over 10**9 classes, each far below the smallest
       normal number, may itself lie above it. The limit is that of exp_shifted's own underflow. */
    #define SL_UNIT_F32 0x1p32f
    #define SL_UNIT_F64 0x1p64
    #define SL_UNIT_MAGIC_F32 0x1.80013ep+23f           /* 12583071 */
    #define SL_UNIT_MAGIC_F64 0x1.800000000043fp+52     /* 6755399441056831 */
    #define SL_UNIT_MIN_F32 -0x1.b611aap+6f             /* -109.517250 */
    #define SL_UNIT_MIN_F64 -0x1.786100d6a6071p+9       /* -752.7578380881006 */

    static inline float sl_pow2_f32(float shifted) {
        uint32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        bits <<= 23;
        memcpy(&shifted, &bits, sizeof bits);
        return shifted;
    }
    static inline double sl_pow2_f64(double shifted) {
        uint64_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        bits <<= 52;
        memcpy(&shifted, &bits, sizeof bits);
        return shifted;
    }
    static inline uint64_t sl_bits_f64(double x) {
        uint64_t bits;
        memcpy(&bits, &x, sizeof bits);
        return bits;
    }
    static inline double sl_from_bits_f64(uint64_t bits) {
        double x;
        memcpy(&x, &bits, sizeof x);
        return x;
    }

    #define SL_LOG2E_F32 0x1.715476p+0f                 /* 1.44269502 */
    #define SL_LOG2E_F64 0x1.71547652b82fep+0           /* 1.4426950408889634 */
    /* ln 2 in two parts. The first is a multiple of 2**-15 (2**-41), so that n * LN2_HI and the sums
       with numbers on that grid are exact. */
    #define SL_LN2_HI_F32 0x1.62e4p-1f                  /* 0.693145752 */
    #define SL_LN2_LO_F32 0x1.7f7d1cp-20f               /* 1.42860677e-06 */
    #define SL_LN2_HI_F64 0x1.62e42fefa4p-1             /* 0.69314718056011770 */
    #define SL_LN2_LO_F64 -0x1.8432a1b0e2634p-43        /* -1.7239444525614835e-13 */
    /* the smallest normal number is e**EXP_MIN, rounded towards 0: results below it are 0 */
    #define SL_EXP_MIN_F32 -0x1.5d589ep+6f              /* -87.3365402 */
    #define SL_EXP_MIN_F64 -0x1.6232bdd7abcd2p+9        /* -708.3964185322641 */

    /* e**r = 1 + r + r**2 q(r), |r| <= ln(2)/2: relative error 2**-28.3 and 2**-57.9 */
    #define SL_EXP0_F32 0x1.fffffcp-2f                  /* 0.49999994 */
    #define SL_EXP1_F32 0x1.555492p-3f                  /* 0.166665211 */
    #define SL_EXP2_F32 0x1.5558f2p-5f                  /* 0.0416683890 */
    #define SL_EXP3_F32 0x1.1239e2p-7f                  /* 0.00836871658 */
    #define SL_EXP4_F32 0x1.6a247ap-10f                 /* 0.00138146395 */
    #define SL_EXP0_F64 0x1.000000000000ap-1            /* 0.50000000000000111 */
    #define SL_EXP1_F64 0x1.55555555554fap-3            /* 0.16666666666666413 */
    #define SL_EXP2_F64 0x1.555555555087cp-5            /* 0.041666666666530155 */
    #define SL_EXP3_F64 0x1.1111111127beap-7            /* 0.0083333333334944699 */
    #define SL_EXP4_F64 0x1.6c16c1842a18fp-10           /* 0.0013888888943630361 */
    #define SL_EXP5_F64 0x1.a01a012a559b1p-13           /* 0.00019841269506555356 */
    #define SL_EXP6_F64 0x1.a0199a0c5affdp-16           /* 2.4801493098733352e-05 */
    #define SL_EXP7_F64 0x1.71df255761396p-19           /* 2.7557586396741581e-06 */
    #define SL_EXP8_F64 0x1.28ad72d3fa16fp-22           /* 2.7630248422432849e-07 */
    #define SL_EXP9_F64 0x1.ad7f6655530e7p-26           /* 2.5000053878886233e-08 */

    /* log1p(t) = t + t**2 q(t), 0 <= t <= 1: relative error 2**-30.2 */
    #define SL_LOG0_F32 -0x1.fffff8p-2f                 /* -0.499999881 */
    #define SL_LOG1_F32 0x1.5553a6p-2f                  /* 0.333326906 */
    #define SL_LOG2_F32 -0x1.ffc42p-3f                  /* -0.249885798 */
    #define SL_LOG3_F32 0x1.97827ap-3f                  /* 0.198979333 */
    #define SL_LOG4_F32 -0x1.4a542ep-3f                 /* -0.161293373 */
    #define SL_LOG5_F32 0x1.fea74cp-4f                  /* 0.124671265 */
    #define SL_LOG6_F32 -0x1.544588p-4f                 /* -0.0830741227 */
    #define SL_LOG7_F32 0x1.57e962p-5f                  /* 0.0419814028 */
    #define SL_LOG8_F32 -0x1.bead4ep-7f                 /* -0.0136314994 */
    #define SL_LOG9_F32 0x1.0fb4b4p-9f                  /* 0.00207295129 */
    /* atanh(s) = s + s**3 p(s**2) / 2, |s| <= 1/5: error of the logarithm 2**-62.7 */
    #define SL_LOG0_F64 0x1.555555555554fp-1            /* 0.66666666666666596 */
    #define SL_LOG1_F64 0x1.999999999c1adp-2            /* 0.40000000000056951 */
    #define SL_LOG2_F64 0x1.24924921e1858p-2            /* 0.28571428555767886 */
    #define SL_LOG3_F64 0x1.c71c7492029cdp-3            /* 0.22222224302852425 */
    #define SL_LOG4_F64 0x1.745c4a5ce8126p-3            /* 0.18181665512111883 */
    #define SL_LOG5_F64 0x1.3b35d01b14e25p-3            /* 0.15391123373648088 */
    #define SL_LOG6_F64 0x1.0dca9f78bef3ap-3            /* 0.13173412883031138 */
    #define SL_LOG7_F64 0x1.1b87db074a261p-3            /* 0.13844271770473696 */

    /* log(1 + t) for finite t >= 0; NaN for NaN.

       1 + t = 2**n (1 + f) with f in [-1/4, 1/2]; below 1/2, f is t itself, so that no digit of a
       small t is lost, and above, f takes up the rounding error of 1 + t. log(1 + f) as in fdlibm,
       through s = f / (2 + f).

       In C for its attribute alone: a loop that calls a function does not vectorise, and GCC was seen
       to inline this one or not by how much else the file holds. */
    #if defined(__GNUC__)
    #define SL_ALWAYS_INLINE __inline__ __attribute__((always_inline))
    #else
    #define SL_ALWAYS_INLINE inline
    #endif
    static SL_ALWAYS_INLINE double log1p_positive(double t) {
        double u = 1 + t, error = t - (u - 1);
        uint64_t bits = sl_bits_f64(u);
        uint64_t n = (bits - 0x3fe8000000000000u) >> 52;                    /* 0.75 */
        double nn = sl_from_bits_f64(n | 0x4330000000000000u) - 0x1p52;
        double unit = sl_from_bits_f64((1023 - n) << 52);
        double f = (sl_from_bits_f64(bits - (n << 52)) - 1) + error * unit;
        double s, z, p, half_square;
        f = t < 0.5 ? t : f;
        nn = t < 0.5 ? 0 : nn;
        s = f / (2 + f);
        z = s * s;
        p = SL_FMA(SL_LOG7_F64, z, SL_LOG6_F64);
        p = SL_FMA(p, z, SL_LOG5_F64);
        p = SL_FMA(p, z, SL_LOG4_F64);
        p = SL_FMA(p, z, SL_LOG3_F64);
        p = SL_FMA(p, z, SL_LOG2_F64);
        p = SL_FMA(p, z, SL_LOG1_F64);
        p = SL_FMA(p, z, SL_LOG0_F64);
        half_square = 0.5 * f * f;
        return nn * SL_LN2_HI_F64
             + (f - (half_square - SL_FMA(s, SL_FMA(p, z, half_square), nn * SL_LN2_LO_F64)));
    }
    """
    double log1p_positive(double) noexcept nogil
    float SL_FMAF(float, float, float) noexcept nogil
    double SL_FMA(double, double, double) noexcept nogil
    float SL_PRODUCT_ERRORF(float, float, float) noexcept nogil
    double SL_PRODUCT_ERROR(double, double, double) noexcept nogil
    const float SL_INFINITY
    float SL_ABSF(float) noexcept nogil
    double SL_ABS(double) noexcept nogil
    float sl_pow2_f32(float) noexcept nogil
    double sl_pow2_f64(double) noexcept nogil
    const float SL_MAGIC_F32, SL_LOG2E_F32, SL_LN2_HI_F32, SL_LN2_LO_F32, SL_EXP_MIN_F32
    const double SL_MAGIC_F64, SL_LOG2E_F64, SL_LN2_HI_F64, SL_LN2_LO_F64, SL_EXP_MIN_F64
    const float SL_EXP0_F32, SL_EXP1_F32, SL_EXP2_F32, SL_EXP3_F32, SL_EXP4_F32
    const double SL_EXP0_F64, SL_EXP1_F64, SL_EXP2_F64, SL_EXP3_F64, SL_EXP4_F64
    const double SL_EXP5_F64, SL_EXP6_F64, SL_EXP7_F64, SL_EXP8_F64, SL_EXP9_F64
    const float SL_UNIT_F32, SL_UNIT_MAGIC_F32, SL_UNIT_MIN_F32
    const double SL_UNIT_F64, SL_UNIT_MAGIC_F64, SL_UNIT_MIN_F64
    const float SL_LOG0_F32, SL_LOG1_F32, SL_LOG2_F32, SL_LOG3_F32, SL_LOG4_F32
    const float SL_LOG5_F32, SL_LOG6_F32, SL_LOG7_F32, SL_LOG8_F32, SL_LOG9_F32

# A literal beside a float is cast to `real`: as it stands it would be a C double, and take the whole
# expression to float64 with it.
ctypedef fused real:
    float
    double


cdef inline real fma(real a, real b, real c) noexcept nogil:
    if real is float:
        return SL_FMAF(a, b, c)
    else:
        return SL_FMA(a, b, c)


cdef inline real product_error(real a, real b, real product) noexcept nogil:
    """a * b - product, exactly, for product = a * b rounded."""
    if real is float:
        return SL_PRODUCT_ERRORF(a, b, product)
    else:
        return SL_PRODUCT_ERROR(a, b, product)


cdef inline real product(real a, real a_low, real b, real b_low, real* low) noexcept nogil:
    """a b, of two numbers and what they lack."""
    cdef real ab = a * b
    low[0] = fma(a, b_low, fma(a_low, b, product_error(a, b, ab)))
    return ab


cdef inline real absolute(real x) noexcept nogil:
    if real is float:
        return SL_ABSF(x)
    else:
        return SL_ABS(x)


cdef inline real expm1_reduced(real r, real start) noexcept nogil:
    """e**r - 1 for |r| <= ln(2)/2, where `start` is r; without r where it is 0."""
    cdef real q
    if real is float:
        q = fma(SL_EXP4_F32, r, SL_EXP3_F32)
        q = fma(q, r, SL_EXP2_F32)
        q = fma(q, r, SL_EXP1_F32)
        q = fma(q, r, SL_EXP0_F32)
        return fma(r * r, q, start)
    else:
        q = fma(SL_EXP9_F64, r, SL_EXP8_F64)
        q = fma(q, r, SL_EXP7_F64)
        q = fma(q, r, SL_EXP6_F64)
        q = fma(q, r, SL_EXP5_F64)
        q = fma(q, r, SL_EXP4_F64)
        q = fma(q, r, SL_EXP3_F64)
        q = fma(q, r, SL_EXP2_F64)
        q = fma(q, r, SL_EXP1_F64)
        q = fma(q, r, SL_EXP0_F64)
        return fma(r * r, q, start)


cdef inline real exp_tail(real shifted, real r) noexcept nogil:
    """e**r * 2**n for |r| <= ln(2)/2, with n in the low bits of `shifted`."""
    if real is float:
        return (<real>1 + expm1_reduced(r, r)) * sl_pow2_f32(shifted)
    else:
        return (1 + expm1_reduced(r, r)) * sl_pow2_f64(shifted)


cdef inline real careful_tail(real shifted, real r, real r_low) noexcept nogil:
    """The same for r + r_low, with the rounding error of 1 + r carried along."""
    cdef real one = <real>1 + r
    cdef real e = one + (((<real>1 - one) + r) + expm1_reduced(r, r_low))
    if real is float:
        return e * sl_pow2_f32(shifted)
    else:
        return e * sl_pow2_f64(shifted)


cdef inline real exp_negative(real d) noexcept nogil:
    """e**d for d <= 0; NaN for NaN; 0 below the smallest normal number."""
    cdef real low, shifted, n, r
    if real is float:
        low = SL_EXP_MIN_F32
        shifted = fma(low if d < low else d, SL_LOG2E_F32, SL_MAGIC_F32)
        n = shifted - SL_MAGIC_F32
        r = fma(-n, SL_LN2_LO_F32, fma(-n, SL_LN2_HI_F32, d))
    else:
        low = SL_EXP_MIN_F64
        shifted = fma(low if d < low else d, SL_LOG2E_F64, SL_MAGIC_F64)
        n = shifted - SL_MAGIC_F64
        r = fma(-n, SL_LN2_LO_F64, fma(-n, SL_LN2_HI_F64, d))
    return 0 if d < low else exp_tail(shifted, r)


cdef inline real capped(real x, real cap, real* slope) noexcept nogil:
    """cap * tanh(x / cap), and its derivative.

    tanh(t) is -expm1(-2t) / (2 + expm1(-2t)) for t >= 0, which loses no digit of a small t, and the
    derivative 4e / (1 + e)**2 with e = exp(-2t), which loses none of a large one.
    """
    cdef real t = absolute(x / cap)
    cdef real d = -(t + t)
    cdef real low, shifted, n, r, q, power, minus, e, tanh
    if real is float:
        low = SL_EXP_MIN_F32
        shifted = fma(low if d < low else d, SL_LOG2E_F32, SL_MAGIC_F32)
        n = shifted - SL_MAGIC_F32
        r = fma(-n, SL_LN2_LO_F32, fma(-n, SL_LN2_HI_F32, d))
        power = sl_pow2_f32(shifted)
    else:
        low = SL_EXP_MIN_F64
        shifted = fma(low if d < low else d, SL_LOG2E_F64, SL_MAGIC_F64)
        n = shifted - SL_MAGIC_F64
        r = fma(-n, SL_LN2_LO_F64, fma(-n, SL_LN2_HI_F64, d))
        power = sl_pow2_f64(shifted)
    q = expm1_reduced(r, r)
    e = 0 if d < low else fma(power, q, power)
    minus = -<real>1 if d < low else fma(power, q, power - <real>1)
    tanh = -minus / (minus + <real>2)
    slope[0] = <real>4 * e / ((<real>1 + e) * (<real>1 + e))
    return cap * (-tanh if x < 0 else tanh)


cdef inline void split_maximum(real m, real* a, real* b_hi, real* b_lo) noexcept nogil:
    """Split a finite row maximum as m = a + b_hi + b_lo, exactly, for `exp_shifted`.

    Where |m| is large, every x with e**(x - m) > 0 lies within a factor of 2 of m, so that x - m is
    exact (Sterbenz) and all of m goes into `a`. Below that `a` is 0, and b_hi is m rounded to a grid
    on which b_hi + n * LN2_HI is exact.
    """
    cdef real b
    if real is float:
        a[0] = m if absolute(m) >= <real>256 else 0
        b = m - a[0]
        b_hi[0] = (b + <real>768) - <real>768
    else:
        a[0] = m if absolute(m) >= 2048 else 0
        b = m - a[0]
        b_hi[0] = (b + 6144) - 6144
    b_lo[0] = b - b_hi[0]


cdef inline real unit(real hint) noexcept nogil:
    if real is float:
        return SL_UNIT_F32
    else:
        return SL_UNIT_F64


cdef inline real exp_shifted(real x, real a, real b_hi, real b_lo, bint careful) noexcept nogil:
    """UNIT * e**(x - m) for x <= m = a + b_hi + b_lo as split by `split_maximum`.

    Rounding x - m first would cost half an ulp of the difference, 32 ulp of the result at float32
    and -64. Here only the choice of n sees the rounded difference; the reduced argument is taken as
    (x - (m + n ln 2)), a subtraction of neighbours, and is as good as if x - m were exact.

    `careful` is for the losses that take products of exponentials: it carries the rounding errors of
    the reduced argument and of 1 + r, and leaves little more than the last rounding.
    """
    cdef real y, d, low, shifted, n, r, shift, near, part, rest
    y = x - a
    d = y - (b_hi + b_lo)
    if real is float:
        low = SL_UNIT_MIN_F32
        shifted = fma(low if d < low else d, SL_LOG2E_F32, SL_UNIT_MAGIC_F32)
        n = shifted - SL_UNIT_MAGIC_F32
        shift = fma(n, SL_LN2_HI_F32, b_hi)
        rest = fma(n, SL_LN2_LO_F32, b_lo)
    else:
        low = SL_UNIT_MIN_F64
        shifted = fma(low if d < low else d, SL_LOG2E_F64, SL_UNIT_MAGIC_F64)
        n = shifted - SL_UNIT_MAGIC_F64
        shift = fma(n, SL_LN2_HI_F64, b_hi)
        rest = fma(n, SL_LN2_LO_F64, b_lo)
    near = y - shift
    if careful:
        part = near - y
        rest -= (y - (near - part)) - (shift + part)        # near + shift may not be y: two-sum
    r = near - rest
    if careful:
        return 0 if d < low else careful_tail(shifted, r, (near - r) - rest)
    return 0 if d < low else exp_tail(shifted, r)


cdef inline real log1p_unit(real t) noexcept nogil:
    """log(1 + t) for 0 <= t <= 1; NaN for NaN."""
    cdef real q
    if real is float:
        q = fma(SL_LOG9_F32, t, SL_LOG8_F32)
        q = fma(q, t, SL_LOG7_F32)
        q = fma(q, t, SL_LOG6_F32)
        q = fma(q, t, SL_LOG5_F32)
        q = fma(q, t, SL_LOG4_F32)
        q = fma(q, t, SL_LOG3_F32)
        q = fma(q, t, SL_LOG2_F32)
        q = fma(q, t, SL_LOG1_F32)
        q = fma(q, t, SL_LOG0_F32)
        return fma(t * t, q, t)
    else:
        return log1p_positive(t)

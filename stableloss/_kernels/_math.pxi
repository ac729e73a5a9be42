# The arithmetic of one element, for float32 and float64: exp, log1p, and sums and products with what their
# rounding lost. Constants and the errors of their fits are in sl_math.h.
#
# Bounds are in ulps of the exact result, with fused multiply-add: the largest error found, of all float32
# arguments where there is one, else of 6 * 10**7 drawn ones, and where.

cimport cython
cimport numpy as np
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t,
)
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from numpy cimport PyArrayObject

np.import_array()

cdef extern from "sl_platform.h":
    const float SL_INFINITY
    float SL_ABSF(float) noexcept nogil
    double SL_ABS(double) noexcept nogil
    bint SL_ISFINITE(double) noexcept nogil
    uint32_t sl_bits_from_float(float) noexcept nogil
    float sl_float_from_bits(uint32_t) noexcept nogil
    uint64_t sl_bits_f64(double) noexcept nogil
    double sl_from_bits_f64(uint64_t) noexcept nogil

cdef extern from "sl_math.h":
    double log1p_positive(double) noexcept nogil
    double sl_log_of_ratio(double) noexcept nogil
    float SL_FMAF(float, float, float) noexcept nogil
    double SL_FMA(double, double, double) noexcept nogil
    float SL_PRODUCT_ERRORF(float, float, float) noexcept nogil
    double SL_PRODUCT_ERROR(double, double, double) noexcept nogil
    float sl_pow2_f32(float) noexcept nogil
    double sl_pow2_f64(double) noexcept nogil
    const float SL_MAGIC_F32, SL_LOG2E_F32, SL_LN2_HI_F32, SL_LN2_LO_F32, SL_EXP_MIN_F32
    const double SL_MAGIC_F64, SL_LOG2E_F64, SL_LN2_HI_F64, SL_LN2_LO_F64, SL_EXP_MIN_F64
    const float SL_EXP0_F32, SL_EXP1_F32, SL_EXP2_F32, SL_EXP3_F32, SL_EXP4_F32
    const double SL_EXP0_F64, SL_EXP1_F64, SL_EXP2_F64, SL_EXP3_F64, SL_EXP4_F64
    const double SL_EXP5_F64, SL_EXP6_F64, SL_EXP7_F64, SL_EXP8_F64, SL_EXP9_F64
    const float SL_UNIT_F32
    const double SL_UNIT_F64
    const float SL_LOG0_F32, SL_LOG1_F32, SL_LOG2_F32, SL_LOG3_F32, SL_LOG4_F32
    const float SL_LOG5_F32, SL_LOG6_F32, SL_LOG7_F32, SL_LOG8_F32, SL_LOG9_F32
    const double SL_TANH0_F64, SL_TANH1_F64, SL_TANH2_F64, SL_TANH3_F64, SL_TANH4_F64
    const double SL_TANH5_F64, SL_TANH6_F64, SL_TANH7_F64, SL_TANH8_F64, SL_TANH9_F64

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


cdef inline real absolute(real x) noexcept nogil:
    if real is float:
        return SL_ABSF(x)
    else:
        return SL_ABS(x)


cdef inline bint is_positive_infinity(real x) noexcept nogil:
    return x == SL_INFINITY


# ---- sums and products as hi + lo -----------------------------------------------------------------
# A number of twice the digits is an unevaluated sum; where one argument or result of a function stands for
# such a number, `_lo` is what it lacks.

cdef inline double two_sum(double a, double b, double* lo) noexcept nogil:
    """a + b rounded, and the exact error of the rounding (Knuth)."""
    cdef double s = a + b
    cdef double b_part = s - a
    lo[0] = (a - (s - b_part)) + (b - b_part)
    return s


cdef inline real product_error(real a, real b, real product) noexcept nogil:
    """a * b - product, exactly, for product = a * b rounded."""
    if real is float:
        return SL_PRODUCT_ERRORF(a, b, product)
    else:
        return SL_PRODUCT_ERROR(a, b, product)


cdef inline real product(real a, real a_lo, real b, real b_lo, real* lo) noexcept nogil:
    cdef real ab = a * b
    lo[0] = fma(a, b_lo, fma(a_lo, b, product_error(a, b, ab)))
    return ab


cdef inline double row_scale(double weight, double divisor, double total, double total_lo) noexcept nogil:
    """weight / (divisor * (total + total_lo)), rounded once: 0.5000."""
    cdef double product = divisor * total
    cdef double lo = product_error(divisor, total, product) + divisor * total_lo
    cdef double q = weight / product
    cdef double qp = q * product
    cdef double residual = ((weight - qp) - product_error(q, product, qp)) - q * lo
    cdef double corrected = q + residual / product
    return corrected if corrected - corrected == 0 else q


cdef inline real square_of_one_plus(real e) noexcept nogil:
    """(1 + e)**2 for 0 <= e <= 1: float32 1.000 at 0x1.ffffecp-1, float64 0.999 at 0x1.ff19e7b3c19aep-1."""
    return fma(e, e + <real>2, <real>1)


cdef inline int whole_exponent(double exponent, int most) noexcept nogil:
    """An exponent, not negative, as an integer where it is one up to `most`, else -1."""
    cdef int whole = <int>exponent if exponent <= most else -1
    return whole if whole == exponent else -1


# ---- e**d for d <= 0 ------------------------------------------------------------------------------

cdef inline real exp_min(real hint) noexcept nogil:
    if real is float:
        return SL_EXP_MIN_F32
    else:
        return SL_EXP_MIN_F64


cdef inline real power_of_2(real shifted) noexcept nogil:
    """2**n, with n in the low bits of `shifted`."""
    if real is float:
        return sl_pow2_f32(shifted)
    else:
        return sl_pow2_f64(shifted)


cdef inline real reduced(real d, real* shifted) noexcept nogil:
    """r, |r| <= ln(2)/2, of d = n ln 2 + r, and n in the low bits of `shifted`; of no use for d < EXP_MIN."""
    cdef real n
    cdef real low = exp_min(d)
    if real is float:
        shifted[0] = fma(low if d < low else d, SL_LOG2E_F32, SL_MAGIC_F32)
        n = shifted[0] - SL_MAGIC_F32
        return fma(-n, SL_LN2_LO_F32, fma(-n, SL_LN2_HI_F32, d))
    else:
        shifted[0] = fma(low if d < low else d, SL_LOG2E_F64, SL_MAGIC_F64)
        n = shifted[0] - SL_MAGIC_F64
        return fma(-n, SL_LN2_LO_F64, fma(-n, SL_LN2_HI_F64, d))


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
    return (<real>1 + expm1_reduced(r, r)) * power_of_2(shifted)


cdef inline real exp_negative(real d) noexcept nogil:
    """e**d for d <= 0; NaN for NaN; 0 below the smallest normal number.

    float32 1.009 at -0x1.b610fp+4, float64 1.035 at -0x1.22f163befc07ap+9."""
    cdef real shifted
    cdef real r = reduced(d, &shifted)
    return 0 if d < exp_min(d) else exp_tail(shifted, r)


# ---- exponentials of rows, which come times UNIT: see sl_columns.h --------------------------------

cdef inline real unit(real hint) noexcept nogil:
    if real is float:
        return SL_UNIT_F32
    else:
        return SL_UNIT_F64


cdef inline real remainder_of(real e, real sum_max, real sum_rest) noexcept nogil:
    """Sum of the other exponentials, (sum_max - e) + sum_rest, without the rounding of the difference."""
    cdef real d = sum_max - e
    return d + (sum_rest + ((sum_max - d) - e))


# ---- logarithms -----------------------------------------------------------------------------------

cdef inline real log1p_unit(real t) noexcept nogil:
    """log(1 + t) for 0 <= t <= 1; NaN for NaN. float32 1.213 at 0x1.fd052p-1."""
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


cdef inline real log_of_ratio(real r) noexcept nogil:
    """log(r) for normal r <= 1 as part of a difference: near 1 with an error of an ulp of log(2). NaN for
    NaN."""
    cdef uint32_t bits
    cdef float n, v
    if real is float:
        bits = sl_bits_from_float(r)
        n = <float>(<int32_t>(bits >> 23) - 127)
        v = log1p_unit(sl_float_from_bits((bits & 0x7fffff) | 0x3f800000) - <float>1)
        return r if r != r else fma(n, SL_LN2_HI_F32, fma(n, SL_LN2_LO_F32, v))
    else:
        return sl_log_of_ratio(r)

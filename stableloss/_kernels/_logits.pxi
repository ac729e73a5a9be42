# Logits z as they enter an activation, x = cap tanh(scale clamp(z) / cap), and derivatives by z from those
# by x. A logit that is clamped passes its derivative on unchanged.
#
# uses _job: Job SL_BRIEF
# uses _math: SL_FMA SL_INFINITY SL_TANH0_F64 SL_TANH1_F64 SL_TANH2_F64 SL_TANH3_F64 SL_TANH4_F64 SL_TANH5_F64
# uses _math: SL_TANH6_F64 SL_TANH7_F64 absolute exp_min expm1_reduced fma is_positive_infinity power_of_2
# uses _math: real reduced sl_bits_f64 sl_from_bits_f64
# uses _options: Settings
# uses _sums: GROUP

cdef extern from "sl_brief.h":
    void sl_brief_caps(double*, Py_ssize_t, double, double*) noexcept nogil


cdef void clamp(real* x, Py_ssize_t n, double clip) noexcept nogil:
    """Clamp to [-clip, clip]; NaN stays NaN."""
    cdef real bound = <real>clip
    cdef Py_ssize_t i
    cdef real v
    for i in range(n):
        v = x[i]
        v = bound if v > bound else v
        x[i] = -bound if v < -bound else v


cdef inline double quotient_of(double a, double b, double inverse) noexcept nogil:
    """a / b from 1 / b, with an error of half an ulp where fma is one operation."""
    cdef double q = a * inverse
    return fma(fma(-q, b, a), inverse, q)


cdef inline double capped(
    double x, double cap, double power, double scaled, double inverse, double* slope
) noexcept nogil:
    """cap * tanh(x / cap), and its derivative; the others are those of `cap_logits`.

    tanh(t) is -expm1(-2t) / (1 + e) for t >= 0 and e = exp(-2t), which loses no digit of a small t, and the
    derivative 4e / (1 + e)**2, which loses none of a large one. Beside the rounding of x / cap, float64's
    tanh has 2.51 ulp at t = 0x1.ae16efa585358p-3, the derivative 3.26 at 0x1.8f162a716e862p+1 (of
    6 * 10**7); float32 is computed in float64.
    """
    cdef double size = absolute(x) * power
    cdef double whole = size * inverse
    # of an infinite quotient the remainder is NaN
    cdef double t = whole if whole > 1e4 else quotient_of(size, scaled, inverse)
    cdef double d = -(t + t)
    cdef double shifted
    cdef double r = reduced(d, &shifted)
    cdef double q = expm1_reduced(r, r)
    cdef double power_of_e = power_of_2(shifted)
    cdef double e = 0 if d < exp_min(d) else fma(power_of_e, q, power_of_e)
    cdef double minus = -1 if d < exp_min(d) else fma(power_of_e, q, power_of_e - <double>1)
    # 1 / (1 + e), with what both roundings lose: the derivative has its square
    cdef double one = <double>1 + e
    cdef double part = <double>1 / one
    cdef double share = fma(fma(-part, one, <double>1) - part * (e - (one - <double>1)), part, part)
    cdef double tanh = quotient_of(-minus, one, share)
    slope[0] = 4 * e * share * share
    return cap * (-tanh if x < 0 else tanh)


cdef inline double near_capped(double x, double power, double inverse, double* slope) noexcept nogil:
    """The same for |t| up to 1/2, without exponential and division.

    1.25 ulp at x = 0x1.0eafb870dfc75p+1 of the cap 0x1.0fb7489b1747p+2, the derivative 1.42 at
    0x1.f4856ed8c0124p+1 of 0x1.f893bae4327b8p+2 (of as many)."""
    cdef double t = x * power * inverse
    cdef double square = t * t
    cdef double q = SL_FMA(SL_TANH9_F64, square, SL_TANH8_F64)
    q = SL_FMA(q, square, SL_TANH7_F64)
    q = SL_FMA(q, square, SL_TANH6_F64)
    q = SL_FMA(q, square, SL_TANH5_F64)
    q = SL_FMA(q, square, SL_TANH4_F64)
    q = SL_FMA(q, square, SL_TANH3_F64)
    q = SL_FMA(q, square, SL_TANH2_F64)
    q = SL_FMA(q, square, SL_TANH1_F64)
    q = SL_FMA(q, square, SL_TANH0_F64)
    q = SL_FMA(q, square, 1)
    t *= q
    slope[0] = SL_FMA(-t, t, 1)
    return x * q


cdef void cap_logits(const Job* job, Py_ssize_t n, double* x, double* slope) noexcept nogil:
    """In place; `slope` gets the derivative. Logits far below the cap, as most are, take less time where
    GROUP of them are so; what is beside one does not change its result."""
    cdef double cap = job.o.softcap
    cdef double half = 0.5 * cap
    cdef double power, scaled, inverse
    cdef double logit[GROUP]
    cdef double far[GROUP]
    cdef double far_slope[GROUP]
    cdef int64_t exponent
    cdef Py_ssize_t at, i, m
    cdef int beyond
    if job.how == SL_BRIEF:
        sl_brief_caps(x, n, cap, slope)
        return
    # a power of two brings the cap near 1, where its inverse is a number: three divisions per logit would
    # take longer than everything else
    exponent = <int64_t>(sl_bits_f64(cap) >> 52)
    power = sl_from_bits_f64(<uint64_t>max(<int64_t>1, 2046 - exponent) << 52)
    scaled = cap * power
    inverse = 1 / scaled
    for at from 0 <= at < n by GROUP:
        m = min(<Py_ssize_t>GROUP, n - at)
        beyond = 0
        for i in range(m):
            logit[i] = x[at + i]
            beyond |= absolute(logit[i]) > half
        for i in range(m):
            x[at + i] = near_capped(logit[i], power, inverse, &slope[at + i])
        if not beyond:
            continue
        for i in range(m):
            far[i] = capped(logit[i], cap, power, scaled, inverse, &far_slope[i])
        for i in range(m):
            x[at + i] = far[i] if absolute(logit[i]) > half else x[at + i]
            slope[at + i] = far_slope[i] if absolute(logit[i]) > half else slope[at + i]


cdef inline real slope_of_slope(real x, real slope, real cap) noexcept nogil:
    """Second derivative of the cap, where it gave x and `slope`."""
    return -<real>2 * (x / cap) * slope / cap


cdef void transform_logits(const Job* job, Py_ssize_t n, real* x, real* slope) noexcept nogil:
    """Clip, scale and cap in place; `slope` gets the derivative of the cap, where there is one."""
    cdef const Settings* o = job.o
    cdef real scale = <real>job.logit_scale
    cdef Py_ssize_t i
    if o.logit_clip < SL_INFINITY:
        clamp(x, n, o.logit_clip)
    if job.logit_scale != 1:
        for i in range(n):
            x[i] *= scale
    if real is double:
        # of float32 as well, see `in_float64`
        if o.softcap != 0:
            cap_logits(job, n, x, slope)


cdef void chain_first(const Settings* o, Py_ssize_t n, const real* slope, real* values) noexcept nogil:
    """First derivatives by x to those by the logits; a direction of the logits to one of x."""
    cdef real scale = <real>o.logit_scale
    cdef Py_ssize_t i
    if o.softcap != 0:
        for i in range(n):
            values[i] *= scale * slope[i]
    elif o.logit_scale != 1:
        for i in range(n):
            values[i] *= scale


cdef void chain_second(
    const Settings* o, Py_ssize_t n, const real* x, const real* slope, const real* grad, real* hess
) noexcept nogil:
    """Second derivatives by x, and the first ones, to second derivatives by the logits."""
    cdef real scale = <real>o.logit_scale
    cdef real cap = <real>o.softcap
    cdef real bend
    cdef Py_ssize_t i
    if o.softcap != 0:
        for i in range(n):
            bend = slope_of_slope(x[i], slope[i], cap)
            hess[i] = scale * (scale * (slope[i] * slope[i] * hess[i] + bend * grad[i]))
    elif o.logit_scale != 1:
        for i in range(n):
            hess[i] = scale * (scale * hess[i])


cdef void chain_product(
    const Settings* o,
    Py_ssize_t n,
    const real* x,
    const real* slope,
    const real* grad,
    const real* v,
    real* product,
) noexcept nogil:
    """The Hessian by x times the direction v of x, and first derivatives, to the product of the Hessian by
    the logits with the direction that v was made from."""
    cdef real scale = <real>o.logit_scale
    cdef real cap = <real>o.softcap
    cdef Py_ssize_t i
    chain_first(o, n, slope, product)
    if o.softcap != 0:
        for i in range(n):
            product[i] -= <real>2 * (x[i] / cap) / cap * scale * v[i] * grad[i]


cdef inline real indicator_logit(real x) noexcept nogil:
    """Logits of the limit in which every +inf of a row is an equal maximum: 0 there, -inf elsewhere."""
    if x != x:
        return x
    return 0 if is_positive_infinity(x) else -SL_INFINITY


cdef inline real smallest_normal(const Job* job, real hint) noexcept nogil:
    """What a probability counts as at least: by the logits' type, not by that of the arithmetic."""
    return <real>1.1754943508222875e-38 if job.value_kind == np.NPY_FLOAT else <real>2.2250738585072014e-308

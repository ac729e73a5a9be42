# Logits z as they enter an activation, x = cap tanh(scale clamp(z) / cap), and derivatives by z from those
# by x. A logit that is clamped passes its derivative on unchanged.
#
# uses _job: Job SL_BRIEF
# uses _math: SL_INFINITY absolute exp_min expm1_reduced fma is_positive_infinity power_of_2 real reduced
# uses _math: sl_bits_f64 sl_from_bits_f64
# uses _options: Settings

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


cdef inline real quotient_of(real a, real b, real inverse) noexcept nogil:
    """a / b from 1 / b, with an error of half an ulp where fma is one operation."""
    cdef real q = a * inverse
    return fma(fma(-q, b, a), inverse, q)


cdef inline real capped(real x, real cap, real power, real scaled, real inverse, real* slope) noexcept nogil:
    """cap * tanh(x / cap), and its derivative; the others are those of `cap_logits`.

    tanh(t) is -expm1(-2t) / (1 + e) for t >= 0 and e = exp(-2t), which loses no digit of a small t, and the
    derivative 4e / (1 + e)**2, which loses none of a large one. Beside the rounding of x / cap, float64's
    tanh has 2.51 ulp at t = 0x1.ae16efa585358p-3, the derivative 3.26 at 0x1.8f162a716e862p+1 (of
    6 * 10**7); float32 is computed in float64.
    """
    cdef real size = absolute(x) * power
    cdef real whole = size * inverse
    # of an infinite quotient the remainder is NaN
    cdef real t = whole if whole > <real>1e4 else quotient_of(size, scaled, inverse)
    cdef real d = -(t + t)
    cdef real shifted
    cdef real r = reduced(d, &shifted)
    cdef real q = expm1_reduced(r, r)
    cdef real power_of_e = power_of_2(shifted)
    cdef real e = 0 if d < exp_min(d) else fma(power_of_e, q, power_of_e)
    cdef real minus = -<real>1 if d < exp_min(d) else fma(power_of_e, q, power_of_e - <real>1)
    # 1 / (1 + e), with what both roundings lose: the derivative has its square
    cdef real one = <real>1 + e
    cdef real part = <real>1 / one
    cdef real share = fma(fma(-part, one, <real>1) - part * (e - (one - <real>1)), part, part)
    cdef real tanh = quotient_of(-minus, one, share)
    slope[0] = <real>4 * e * share * share
    return cap * (-tanh if x < 0 else tanh)


cdef void cap_logits(const Job* job, Py_ssize_t n, real* x, real* slope) noexcept nogil:
    """In place; `slope` gets the derivative."""
    cdef double cap = job.o.softcap
    cdef double power, scaled, inverse
    cdef int64_t exponent
    cdef Py_ssize_t i
    if real is double:
        if job.how == SL_BRIEF:
            sl_brief_caps(x, n, cap, slope)
            return
    # a power of two brings the cap near 1, where its inverse is a number: three divisions per logit would
    # take longer than everything else
    exponent = <int64_t>(sl_bits_f64(cap) >> 52)
    power = sl_from_bits_f64(<uint64_t>max(<int64_t>1, 2046 - exponent) << 52)
    scaled = cap * power
    inverse = 1 / scaled
    for i in range(n):
        x[i] = capped(x[i], <real>cap, <real>power, <real>scaled, <real>inverse, &slope[i])


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

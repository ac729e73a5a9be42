# Logits z as they enter an activation, x = cap tanh(scale clamp(z) / cap), and derivatives by z from those
# by x. A logit that is clamped passes its derivative on unchanged.
#
# uses _job: Job
# uses _math: SL_INFINITY absolute exp_min expm1_reduced fma is_positive_infinity power_of_2 real reduced
# uses _options: Settings

cdef void clamp(real* x, Py_ssize_t n, double clip) noexcept nogil:
    """Clamp to [-clip, clip]; NaN stays NaN."""
    cdef real bound = <real>clip
    cdef Py_ssize_t i
    cdef real v
    for i in range(n):
        v = x[i]
        v = bound if v > bound else v
        x[i] = -bound if v < -bound else v


cdef inline real capped(real x, real cap, real* slope) noexcept nogil:
    """cap * tanh(x / cap), and its derivative.

    tanh(t) is -expm1(-2t) / (2 + expm1(-2t)) for t >= 0, which loses no digit of a small t, and the
    derivative 4e / (1 + e)**2 with e = exp(-2t), which loses none of a large one. Beside the rounding of
    x / cap, float64's tanh has 2.50 ulp at t = 0x1.9e048f28d604bp+2, the derivative 4.22 at
    0x1.8f2f33d560ca2p+1 (of 6 * 10**7); float32 is computed in float64.
    """
    cdef real t = absolute(x / cap)
    cdef real d = -(t + t)
    cdef real shifted
    cdef real r = reduced(d, &shifted)
    cdef real q = expm1_reduced(r, r)
    cdef real power = power_of_2(shifted)
    cdef real e = 0 if d < exp_min(d) else fma(power, q, power)
    cdef real minus = -<real>1 if d < exp_min(d) else fma(power, q, power - <real>1)
    cdef real tanh = -minus / (minus + <real>2)
    slope[0] = <real>4 * e / ((<real>1 + e) * (<real>1 + e))
    return cap * (-tanh if x < 0 else tanh)


cdef inline real slope_of_slope(real x, real slope, real cap) noexcept nogil:
    """Second derivative of the cap, where it gave x and `slope`."""
    return -<real>2 * (x / cap) * slope / cap


cdef void transform_logits(const Job* job, Py_ssize_t n, real* x, real* slope) noexcept nogil:
    """Clip, scale and cap in place; `slope` gets the derivative of the cap, where there is one."""
    cdef const Settings* o = job.o
    cdef real scale = <real>job.logit_scale
    cdef real cap = <real>o.softcap
    cdef Py_ssize_t i
    if o.logit_clip < SL_INFINITY:
        clamp(x, n, o.logit_clip)
    if job.logit_scale != 1:
        for i in range(n):
            x[i] *= scale
    if o.softcap != 0:
        for i in range(n):
            x[i] = capped(x[i], cap, &slope[i])


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

# Logits as they enter an activation: clamped, scaled, capped.

cdef void clamp(const real* x, Py_ssize_t n, double clip, real* to) noexcept nogil:
    """Clamp to [-clip, clip]; NaN stays NaN."""
    cdef real top = <real>clip
    cdef Py_ssize_t i
    cdef real v
    for i in range(n):
        v = x[i]
        v = top if v > top else v
        to[i] = -top if v < -top else v


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


cdef inline real indicator_logit(real x) noexcept nogil:
    """Logits of the limit in which every +inf of a row is an equal maximum: 0 there, -inf elsewhere."""
    if x != x:
        return x
    return 0 if is_positive_infinity(x) else -SL_INFINITY

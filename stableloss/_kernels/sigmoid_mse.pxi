# Sigmoid + quadratic cost, from logits z and targets y in [0, 1], a = 1 / (1 + e**-z), e = e**-|z|.
#
#   loss  d**2 / 2,  d = a - y
#   grad  d c,  c = a (1 - a) = e / (1 + e)**2
#   hess  c (c + d (1 - 2a)),  1 - 2a = sign(z) (e - 1) / (1 + e)
#
# d has the numerator of the cross-entropy's gradient: for y of 0 or 1 it is 1 or e over 1 + e, never
# 1 - a, so that a confident prediction keeps its gradient however small it is.
#
# These products have the relative error of e two or three times, up to 2.9 ulp. For 4 ulp, everything
# else is carried along with what its rounding lost, so that only the last rounding is added.
#
# uses _elements: EXPONENTIAL HESS LOGIT LOG_OFF LOG_ON NEGATIVE POSITIVE SLOPE VALUE chunk_exponentials
# uses _elements: close_chunk open_chunk place_gradient
# uses _job: Job loss_kernel
# uses _math: fma log1p_unit product product_error real two_sum
# uses _options: WANT_GRAD WANT_HESS WANT_PRODUCT WANT_STATS
# uses _stats: chunk_statistics
# uses _sums: Sum


cdef extern from "sl_elements.h" nogil:
    void sl_mse_f32(
        const float*, const float*, Py_ssize_t, double, float*, float*, float*, bint, bint) noexcept
    void sl_mse_f64(
        const double*, const double*, Py_ssize_t, double, double*, double*, double*, bint, bint) noexcept

cdef enum:
    # 1 / (1 + e) and a - y, after e
    QUOTIENT = LOGIT
    QUOTIENT_LO = SLOPE
    RESIDUAL = POSITIVE
    RESIDUAL_LO = NEGATIVE


cdef inline void sigmoid_mse_values(
    const Job* job, const real* z, const real* y, Py_ssize_t n, real* scratch, real* grad
) noexcept nogil:
    """Losses, the gradient if there is a place for it, and what curvatures are made from."""
    cdef real* parts = scratch + EXPONENTIAL
    cdef bint curved = job.want & (WANT_HESS | WANT_PRODUCT) != 0
    chunk_exponentials(job, z, n, parts)
    if real is float:
        sl_mse_f32(z, y, n, job.divisor, parts, scratch + VALUE, grad, curved, job.streams)
    else:
        sl_mse_f64(z, y, n, job.divisor, parts, scratch + VALUE, grad, curved, job.streams)


# It finds its buffers by their places in scratch, so that the compiler sees that they are apart.

cdef void sigmoid_mse_curvatures(const real* z, Py_ssize_t n, real* scratch) noexcept nogil:
    cdef const real* e = scratch + EXPONENTIAL
    cdef const real* q = scratch + QUOTIENT
    cdef const real* q_lo = scratch + QUOTIENT_LO
    cdef const real* d = scratch + RESIDUAL
    cdef const real* d_lo = scratch + RESIDUAL_LO
    cdef real* hess = scratch + HESS
    cdef real a, c, slope, slope_lo, lo, c_lo
    cdef double near, bracket, bracket_lo
    cdef Py_ssize_t i
    for i in range(n):
        a = e[i] * q[i]
        lo = fma(e[i], q_lo[i], product_error(e[i], q[i], a))
        c = product(a, lo, q[i], q_lo[i], &c_lo)
        slope = <real>1 - e[i]
        slope_lo = (<real>1 - slope) - e[i]
        slope = product(
            slope, slope_lo, -q[i] if z[i] > 0 else q[i], -q_lo[i] if z[i] > 0 else q_lo[i], &slope_lo)
        # the sum without its low parts took up to 4.33 ulp
        if real is float:
            near = <double>c + c_lo
            hess[i] = <real>(near * ((<double>d[i] + d_lo[i]) * (<double>slope + slope_lo) + near))
        else:
            lo = fma(d[i], slope_lo, fma(d_lo[i], slope, c_lo))
            near = d[i] * slope
            bracket = two_sum(near, c, &bracket_lo)
            lo += bracket_lo + product_error(d[i], slope, near)
            hess[i] = fma(c, bracket, fma(c_lo, bracket, c * lo))


cdef void sigmoid_mse_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    cdef const real* e = scratch + EXPONENTIAL
    cdef real* log_on = scratch + LOG_ON
    cdef real* log_off = scratch + LOG_OFF
    cdef const real* z
    cdef const real* y
    cdef Py_ssize_t at, n, i
    for at from start <= at < stop by CHUNK:
        n = min(<Py_ssize_t>CHUNK, stop - at)
        z = open_chunk(job, at, n, scratch, &y)
        sigmoid_mse_values(job, z, y, n, scratch,
                           place_gradient(job, at, n, scratch) if job.want & WANT_GRAD else NULL)
        if job.want & (WANT_HESS | WANT_PRODUCT):
            sigmoid_mse_curvatures(z, n, scratch)
        if job.want & WANT_STATS:
            for i in range(n):
                log_on[i] = (-z[i] if z[i] < 0 else 0) + log1p_unit(e[i])
                log_off[i] = (z[i] if z[i] > 0 else 0) + log1p_unit(e[i])
            chunk_statistics(job, at, n, z, scratch)
        close_chunk(job, at, n, scratch, total)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 grad 3.170 at 0x1.4caa68p+2, target 1
#   float32 hess 3.065 at 0x1.4ca80ep+2, target 1
#   float32 loss 3.162 at 0x1.4c64eap+2, target 1
#   float32 soft grad 3.755 at -0x1.4c4424p+2, target 0x1.8d7c9cp-21
#   float32 soft hess 3.396 at -0x1.4c6f06p+2, target 0x1.8d7c9cp-21
#   float32 soft loss 2.191 at -0x1.4c6bc8p+2, target 0x1.8d7c9cp-21
#   float64 grad 3.254 at 0x1.1fd8ca71f8d9ep+2, target 1
#   float64 hess 3.222 at 0x1.1fd8caf50a43dp+2, target 1
#   float64 loss 3.316 at 0x1.1fe4de83cdc52p+2, target 1
#   float64 soft grad 3.444 at -0x1.8f32e53c99747p+2, target 0x1.4d5a26743ac3ep-21
#   float64 soft hess 3.758 at -0x1.e8a7b002436f3p+1, target 0x1.4b039325dc81p-6
#   float64 soft loss 2.203 at -0x1.8f32e53c9ac19p+2, target 0x1.4d5a26743ac3ep-21
sigmoid_mse = loss_kernel(sigmoid_mse_kernel[float], sigmoid_mse_kernel[double], rowwise=False)

# Sigmoid + quadratic cost, from logits z and targets y in [0, 1], a = 1 / (1 + e**-z), e = e**-|z|.
#
#   loss  (a - y)**2 / 2
#   grad  (a - y) a (1 - a)
#   hess  c (c + (a - y)(1 - 2a)),  c = a (1 - a) = e / (1 + e)**2,  1 - 2a = (e - 1)/(1 + e) sign z
#
# a - y has the numerator of the cross-entropy's gradient: for y of 0 or 1 it is 1 or e over 1 + e,
# never 1 - a, so that a confident prediction keeps its gradient however small it is.


cdef inline real reciprocal(real t, real t_error) noexcept nogil:
    """1 / (t + t_error), with one rounding: the quotient corrected by its own residual."""
    cdef real q = <real>1 / t
    return fma(q, fma(-t, q, 1) - t_error * q, q)


cdef void sigmoid_mse_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef real scale = <real>(1 / job.divisor)
    cdef real half = <real>0.5
    cdef real* value = scratch + VALUE
    cdef real* grad = scratch + GRAD
    cdef real* hess = scratch + HESS
    cdef const real* z
    cdef const real* y
    cdef real e, t, q, d, c
    cdef Py_ssize_t at, n, i
    for at from start <= at < stop by CHUNK:
        n = min(<Py_ssize_t>CHUNK, stop - at)
        z = open_chunk(job, at, n, scratch, &y)
        for i in range(n):
            e = exp_negative(-absolute(z[i]))
            t = <real>1 + e
            q = reciprocal(t, e - (t - <real>1))
            d = bce_numerator(z[i], y[i], e) * q
            c = e * q * q
            value[i] = half * d * d
            grad[i] = d * c * scale
        if job.want & WANT_HESS:
            for i in range(n):
                hess[i] = mse_curvature(z[i], y[i])
        close_chunk(job, at, n, scratch, total)


cdef inline real mse_curvature(real z, real y) noexcept nogil:
    # float32 goes through float64: for y of 0 or 1 the second derivative has a zero near |z| = ln 2,
    # beside which the two terms cancel
    cdef double e = exp_negative(-absolute(<double>z))
    cdef double q = 1 / (1 + e)
    cdef double c = e * q * q
    cdef double d = bce_numerator(<double>z, <double>y, e) * q
    cdef double slope = (e - 1) * q if z > 0 else (1 - e) * q
    return <real>(c * (c + d * slope))


def sigmoid_mse(logits, targets, weight, out, hess, int want, int reduction, double clip):
    cdef Kernel kernel = Kernel(sigmoid_mse_kernel[float], sigmoid_mse_kernel[double])
    return sigmoid_loss(logits, targets, weight, out, hess, want, reduction, clip, &kernel)

# Sigmoid + quadratic cost, from logits z and targets y in [0, 1], a = 1 / (1 + e**-z), e = e**-|z|.
#
#   loss  (a - y)**2 / 2
#   grad  (a - y) a (1 - a)
#   hess  c (c + (a - y)(1 - 2a)),  c = a (1 - a) = e / (1 + e)**2,  1 - 2a = sign(z) (e - 1)/(1 + e)
#
# a - y has the numerator of the cross-entropy's gradient: for y of 0 or 1 it is 1 or e over 1 + e,
# never 1 - a, so that a confident prediction keeps its gradient however small it is.


cdef inline double scaled_curvature(double z, double numerator, double e) noexcept nogil:
    """(1 + e)**2 (c + (a - y)(1 - 2a)), which for y of 0 or 1 has a zero at e = 1/2."""
    return fma(numerator, e - 1 if z > 0 else 1 - e, e)


cdef void sigmoid_mse_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef real* value = scratch + VALUE
    cdef real* grad = scratch + GRAD
    cdef real* hess = scratch + HESS
    cdef real* e = scratch + EXPONENTIAL
    cdef real* log_on = scratch + LOG_ON
    cdef real* log_off = scratch + LOG_OFF
    cdef const real* z
    cdef const real* y
    cdef double ed, numerator, q, d, square
    cdef double scale = 1 / job.divisor
    cdef Py_ssize_t at, n, i
    for at from start <= at < stop by CHUNK:
        n = min(<Py_ssize_t>CHUNK, stop - at)
        z = open_chunk(job, at, n, scratch, &y)
        for i in range(n):
            e[i] = exp_negative(-absolute(z[i]))
        # powers of e and 1 + e multiply their relative errors: float32 takes them in float64, and
        # float64 through polynomials of e, one rounding for several
        for i in range(n):
            ed = e[i]
            numerator = bce_numerator(<double>z[i], <double>y[i], ed)
            if real is float:
                q = 1 / (1 + ed)
                d = numerator * q
                value[i] = <real>(0.5 * d * d)
                grad[i] = <real>(d * (ed * q * q) * scale)
            else:
                square = square_of_one_plus(ed)
                value[i] = 0.5 * (numerator * numerator) / square
                grad[i] = numerator * ed / (fma(square, ed, square) * job.divisor)
        if job.want & (WANT_HESS | WANT_PRODUCT):
            for i in range(n):
                ed = exp_negative(-absolute(<double>z[i]))
                square = square_of_one_plus(ed)
                numerator = bce_numerator(<double>z[i], <double>y[i], ed)
                hess[i] = <real>(ed * scaled_curvature(z[i], numerator, ed) / (square * square))
        if job.want & WANT_STATS:
            for i in range(n):
                log_on[i] = (-z[i] if z[i] < 0 else 0) + log1p_unit(e[i])
                log_off[i] = (z[i] if z[i] > 0 else 0) + log1p_unit(e[i])
            chunk_statistics(job, at, n, z, scratch)
        close_chunk(job, at, n, scratch, total)


def sigmoid_mse(logits, targets, weight, mask, denominator, out, hess, vector, probabilities, int want, Options options):
    cdef Kernel kernel = Kernel(sigmoid_mse_kernel[float], sigmoid_mse_kernel[double])
    return loss_call(logits, targets, weight, mask, denominator, out, hess, vector, probabilities, want, options, False, &kernel)

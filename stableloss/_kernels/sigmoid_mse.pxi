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


cdef inline double corrected_quotient(double a, double a_low, double b, double b_low) noexcept nogil:
    """(a + a_low) / (b + b_low), rounded nearly once."""
    cdef double inverse = 1 / b
    cdef double q = a * inverse
    cdef double qb = q * b
    return q + (((a - qb) - product_error(q, b, qb) + a_low) - q * b_low) * inverse


cdef inline void times(double* a, double* a_low, double b, double b_low) noexcept nogil:
    """a times b, each a number and what it lacks."""
    cdef double product = a[0] * b
    a_low[0] = product_error(a[0], b, product) + (a[0] * b_low + a_low[0] * b)
    a[0] = product


cdef inline double mse_gradient_64(double numerator, double e, double divisor) noexcept nogil:
    """Takes along the errors of the last three roundings, enough for 4 ulp."""
    cdef double square = square_of_one_plus(e)
    cdef double a = numerator
    cdef double a_low = 0
    cdef double b = fma(square, e, square)
    cdef double b_low = 0
    times(&a, &a_low, e, 0)
    times(&b, &b_low, divisor, 0)
    return corrected_quotient(a, a_low, b, b_low)


cdef inline double mse_curvature_64(double z, double numerator, double e) noexcept nogil:
    """Takes along the errors of all roundings after those of e and the bracket."""
    cdef double one = 1 + e
    cdef double one_low = e - (one - 1)
    cdef double a = scaled_curvature(z, numerator, e)
    cdef double a_low = 0
    cdef double b = one
    cdef double b_low = one_low
    times(&a, &a_low, e, 0)
    times(&b, &b_low, one, one_low)
    times(&b, &b_low, b, b_low)
    return corrected_quotient(a, a_low, b, b_low)


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
        # float64 takes errors along
        for i in range(n):
            ed = e[i]
            numerator = bce_numerator(<double>z[i], <double>y[i], ed)
            if real is float:
                q = 1 / (1 + ed)
                d = numerator * q
                value[i] = <real>(0.5 * d * d)
                grad[i] = <real>(d * (ed * q * q) * scale)
            else:
                value[i] = 0.5 * (numerator * numerator) / square_of_one_plus(ed)
                grad[i] = mse_gradient_64(numerator, ed, job.divisor)
        if job.want & (WANT_HESS | WANT_PRODUCT):
            for i in range(n):
                ed = exp_negative(-absolute(<double>z[i])) if real is float else e[i]
                numerator = bce_numerator(<double>z[i], <double>y[i], ed)
                if real is float:
                    square = square_of_one_plus(ed)
                    hess[i] = <real>(ed * scaled_curvature(z[i], numerator, ed) / (square * square))
                else:
                    hess[i] = mse_curvature_64(z[i], numerator, ed)
        if job.want & WANT_STATS:
            for i in range(n):
                log_on[i] = (-z[i] if z[i] < 0 else 0) + log1p_unit(e[i])
                log_off[i] = (z[i] if z[i] > 0 else 0) + log1p_unit(e[i])
            chunk_statistics(job, at, n, z, scratch)
        close_chunk(job, at, n, scratch, total)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 grad 3.170 at 0x1.4caa68p+2, target 1
#   float32 hess 0.501 at 0x1.c68678p+2, target 1
#   float32 loss 3.162 at 0x1.4c64eap+2, target 1
#   float32 soft grad 3.043 at -0x1.4c9ab6p+2, target 0x1.be5e52p-22
#   float32 soft hess 0.500 at -0x1.227d72p+1, target 0x1.9ceae4p-21
#   float32 soft loss 1.508 at -0x1.4c9b0ap+2, target 0x1.be5e52p-22
#   float64 grad 4.618 at 0x1.1fe4dfb5987adp+2, target 1
#   float64 hess 3.790 at 0x1.200d0c8387588p+2, target 1
#   float64 loss 4.812 at 0x1.1fe4decc52e7ep+2, target 1
#   float64 soft grad 5.451 at -0x1.1fcd835f8fb23p+2, target 0x1.87eb9cd174de1p-21
#   float64 soft hess 4.098 at -0x1.1f6336cf0199cp+2, target 0x1.87eb9cd174de1p-21
#   float64 soft loss 3.510 at -0x1.1fcd81cabb92bp+2, target 0x1.87eb9cd174de1p-21
def sigmoid_mse(logits, targets, weight, mask, denominator, out, hess, vector, probabilities, int want, Options options):
    cdef Kernel kernel = Kernel(sigmoid_mse_kernel[float], sigmoid_mse_kernel[double])
    return loss_call(logits, targets, weight, mask, denominator, out, hess, vector, probabilities, want, options, False, &kernel)

# Sigmoid + binary cross-entropy, from logits z and targets y in [0, 1], a = 1 / (1 + e**-z).
#
#   loss  -y log a - (1 - y) log(1 - a)  =  |z| (1 - y if z > 0 else y) + log1p(e),  e = e**-|z|
#   grad  a - y                          =  ((1 - y) - y e  if z >= 0 else  (1 - y) e - y) / (1 + e)
#   hess  a (1 - a)                      =  e / (1 + e)**2
#
# No term overflows, and for y of 0 or 1 none is a difference: each is exact until its own underflow.


cdef inline real bce_margin(real z, real y) noexcept nogil:
    """abs(z) times the target's share on the other side; 0 * inf counts as 0, so that an infinite
    logit on the side of its target costs nothing."""
    cdef real against = <real>1 - y if z > 0 else y
    return 0 if against == 0 else absolute(z) * against


cdef inline real bce_numerator(real z, real y, real e) noexcept nogil:
    """(1 + e) (a - y)."""
    return fma(-y, e, <real>1 - y) if z >= 0 else fma(<real>1 - y, e, -y)


cdef void sigmoid_bce_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef real divisor = <real>job.divisor
    cdef real* value = scratch + VALUE
    cdef real* grad = scratch + GRAD
    cdef real* hess = scratch + HESS
    cdef const real* z
    cdef const real* y
    cdef real* e = scratch + EXPONENTIAL
    cdef Py_ssize_t at, n, i
    for at from start <= at < stop by CHUNK:
        n = min(<Py_ssize_t>CHUNK, stop - at)
        z = open_chunk(job, at, n, scratch, &y)
        # one short loop per quantity: each fits the vector registers
        for i in range(n):
            e[i] = exp_negative(-absolute(z[i]))
        if job.want & WANT_LOSS:
            for i in range(n):
                value[i] = bce_margin(z[i], y[i]) + log1p_unit(e[i])
        if job.want & WANT_GRAD:
            # the divisor goes into 1 + e, where it costs no rounding of its own
            for i in range(n):
                grad[i] = bce_numerator(z[i], y[i], e[i]) / fma(divisor, e[i], divisor)
        if job.want & WANT_HESS:
            for i in range(n):
                hess[i] = e[i] / square_of_one_plus(e[i])
        close_chunk(job, at, n, scratch, total)


def sigmoid_bce(logits, targets, weight, out, hess, int want, int reduction, double clip):
    cdef Kernel kernel = Kernel(sigmoid_bce_kernel[float], sigmoid_bce_kernel[double])
    return sigmoid_loss(logits, targets, weight, out, hess, want, reduction, clip, &kernel)

# Sigmoid + binary cross-entropy, from logits z and targets y in [0, 1], a = 1 / (1 + e**-z).
#
#   loss  -y log a - (1 - y) log(1 - a)  =  |z| (1 - y if z > 0 else y) + log1p(e),  e = e**-|z|
#   grad  a - y                          =  ((1 - y) - y e  if z >= 0 else  (1 - y) e - y) / (1 + e)
#   hess  a (1 - a)                      =  e / (1 + e)**2
#
# No term overflows, and for y of 0 or 1 none is a difference: each is exact until its own underflow.
#
# With further options the loss is A b**g S + B a**h T, where b = 1 - a, S = -log a, T = -log b, A and B
# hold target, smoothing and weights, and a belongs to x = cap tanh(scale clamp(z) / cap). By x,
#
#   grad  -A b**g (b + g a S) + B a**h (a + h b T)
#   hess  A b**g (a b (1 + 2g) + g a S (g a - b)) + B a**h (a b (1 + 2h) + h b T (h b - a))
#
# uses _elements: EXPONENTIAL GRAD HESS LOGIT LOG_OFF LOG_ON NEGATIVE POSITIVE PRODUCT SLOPE VALUE WEIGHT
# uses _elements: chunk_exponentials close_chunk open_chunk place_gradient
# uses _job: Job SL_BRIEF loss_kernel
# uses _logits: chain_first chain_second smallest_normal transform_logits
# uses _math: absolute exp_negative fma log1p_positive log1p_unit product_error real square_of_one_plus
# uses _math: whole_exponent
# uses _operand: load_flat
# uses _options: WANT_GRAD WANT_HESS WANT_LOSS WANT_PRODUCT WANT_STATS WANT_TARGET_GRAD
# uses _stats: chunk_statistics
# uses _sums: Sum
# uses _weights: output_weights


cdef extern from "sl_elements.h" nogil:
    void sl_bce_f32(
        const float*, const float*, const float*, Py_ssize_t, float, float*, float*, bint) noexcept
    void sl_bce_f64(
        const double*, const double*, const double*, Py_ssize_t, double, double*, double*, bint) noexcept


cdef extern from "sl_brief.h" nogil:
    void sl_brief_logs(const double*, Py_ssize_t, double*, double*, double*) noexcept
    void sl_brief_shares(const double*, const double*, Py_ssize_t, double*, double*) noexcept


cdef enum:
    WHOLE_EXPONENT = 7      # focusing exponents of float32 up to here that are whole numbers are products


cdef void plain_chunks(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    cdef real* hess = scratch + HESS
    cdef real* e = scratch + EXPONENTIAL
    cdef real* loss = scratch + VALUE if job.want & WANT_LOSS else NULL
    cdef real* grad = NULL
    cdef const real* z
    cdef const real* y
    cdef Py_ssize_t at, n, i
    for at from start <= at < stop by CHUNK:
        n = min(<Py_ssize_t>CHUNK, stop - at)
        z = open_chunk(job, at, n, scratch, &y)
        if job.want & WANT_GRAD:
            grad = place_gradient(job, at, n, scratch)
        chunk_exponentials(job, z, n, e)
        if real is float:
            sl_bce_f32(z, y, <const real*>e, n, <float>job.divisor, loss, grad, job.streams)
        else:
            sl_bce_f64(z, y, <const real*>e, n, job.divisor, loss, grad, job.streams)
        if job.want & WANT_HESS:
            for i in range(n):
                hess[i] = e[i] / square_of_one_plus(e[i])
        close_chunk(job, at, n, scratch, total)


# ---- further options ------------------------------------------------------------------------------

cdef inline real bounded_product(real a, real b) noexcept nogil:
    """a b, where an absent term (a = 0) of an infinite factor counts as 0."""
    return 0 if a == 0 else a * b


cdef void option_logits(const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch) noexcept nogil:
    """Logits of a chunk after clip, scale and cap, their e**-|x|, and both negative logarithms."""
    cdef real* x = scratch + LOGIT
    cdef real* e = scratch + EXPONENTIAL
    cdef real* on = scratch + LOG_ON
    cdef real* off = scratch + LOG_OFF
    cdef real tiny = smallest_normal(job, scratch[0])
    cdef real a, b, large, small, log_large, log_small
    cdef Py_ssize_t i
    load_flat(&job.x, start, n, x)
    if job.o.from_probabilities:
        # From activations, whose sum is 1: both logarithms by log1p of one over the other.
        for i in range(n):
            a = x[i]
            b = <real>1 - a
            a = tiny if a < tiny else a
            b = tiny if b < tiny else b
            large = b if a < b else a
            small = a if a < b else b
            e[i] = small / large
            log_large = <real>log1p_positive(<double>(small / large))
            log_small = <real>log1p_positive(<double>(large / small))
            on[i] = log_small if a < b else log_large
            off[i] = log_large if a < b else log_small
            x[i] = a - b
        return
    transform_logits(job, n, x, scratch + SLOPE)
    if real is double:
        if job.how == SL_BRIEF:
            sl_brief_logs(x, n, e, on, off)
            return
    for i in range(n):
        e[i] = exp_negative(-absolute(x[i]))
    for i in range(n):
        on[i] = (-x[i] if x[i] < 0 else 0) + log1p_unit(e[i])
        off[i] = (x[i] if x[i] > 0 else 0) + log1p_unit(e[i])


cdef void option_factors(const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch) noexcept nogil:
    """The factors A and B of a chunk."""
    cdef real* on = scratch + POSITIVE
    cdef real* off = scratch + NEGATIVE
    cdef real stays = <real>(1 - job.o.label_smoothing)
    cdef real share = <real>(0.5 * job.o.label_smoothing)
    cdef real positive = <real>job.o.positive
    cdef real negative = <real>job.o.negative
    cdef real y
    cdef Py_ssize_t i
    load_flat(&job.t, start, n, on)
    for i in range(n):
        y = on[i]
        on[i] = positive * fma(stays, y, share)
        off[i] = negative * fma(stays, <real>1 - y, share)
    if job.o.pos_weight != NULL:
        output_weights(job, job.o.pos_weight, job.o.n_pos_weight, start, n, on)


cdef void option_chunk(const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch) noexcept nogil:
    """Loss and derivatives of a chunk, without focusing."""
    cdef const real* x = scratch + LOGIT
    cdef const real* e = scratch + EXPONENTIAL
    cdef const real* on = scratch + POSITIVE
    cdef const real* off = scratch + NEGATIVE
    cdef const real* log_on = scratch + LOG_ON
    cdef const real* log_off = scratch + LOG_OFF
    cdef real* value = scratch + VALUE
    cdef real* grad = scratch + GRAD
    cdef real* hess = scratch + HESS
    cdef Py_ssize_t i
    for i in range(n):
        value[i] = bounded_product(on[i], log_on[i]) + bounded_product(off[i], log_off[i])
    for i in range(n):
        grad[i] = (fma(-on[i], e[i], off[i]) if x[i] >= 0 else fma(off[i], e[i], -on[i])) / (<real>1 + e[i])
    if job.want & (WANT_HESS | WANT_PRODUCT):
        for i in range(n):
            hess[i] = (on[i] + off[i]) * e[i] / square_of_one_plus(e[i])


cdef inline real focal_power(real gamma, real minus_log) noexcept nogil:
    """(1 - a)**gamma from S = -log(1 - a), also where 1 - a is 0: 1 if gamma is 0. The rounding of a large
    exponent, which is many ulp of the power, is made up for."""
    cdef real exponent = bounded_product(gamma, minus_log)
    cdef real lo = product_error(gamma, minus_log, exponent)
    # not a number where the exponent is infinite
    lo = lo if absolute(lo) < <real>1 else 0
    return exp_negative(-exponent) * (<real>1 - lo)


cdef void brief_powers(
    Py_ssize_t n, const double* base, const double* minus_log, double gamma, double* power
) noexcept nogil:
    """base**gamma for float32, of which minus_log is -log(base)."""
    cdef int whole = whole_exponent(gamma, WHOLE_EXPONENT)
    cdef double square
    cdef Py_ssize_t i
    if whole < 0:
        for i in range(n):
            power[i] = focal_power(gamma, minus_log[i])
        return
    for i in range(n):
        square = base[i] * base[i]
        power[i] = ((base[i] if whole & 1 else 1) * (square if whole & 2 else 1)
                    * (square * square if whole & 4 else 1))


cdef inline void focal_element(
    Py_ssize_t i, real a, real b, real a_power, real b_power, const real* gamma, bint curved, real* scratch
) noexcept nogil:
    """From a and b = 1 - a, and their powers with gamma[1] and gamma[0]."""
    cdef real on = scratch[POSITIVE + i]
    cdef real off = scratch[NEGATIVE + i]
    cdef real log_on = scratch[LOG_ON + i]
    cdef real log_off = scratch[LOG_OFF + i]
    # a S tends to 0 with a
    cdef real a_log = gamma[0] * bounded_product(a, log_on)
    cdef real b_log = gamma[1] * bounded_product(b, log_off)
    scratch[VALUE + i] = bounded_product(on * b_power, log_on) + bounded_product(off * a_power, log_off)
    scratch[GRAD + i] = off * a_power * (a + b_log) - on * b_power * (b + a_log)
    if curved:
        scratch[HESS + i] = (
            on * b_power * (a * b * (<real>1 + <real>2 * gamma[0]) + a_log * (gamma[0] * a - b))
            + off * a_power * (a * b * (<real>1 + <real>2 * gamma[1]) + b_log * (gamma[1] * b - a)))


cdef void focal_chunk(const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch) noexcept nogil:
    """The same with focusing."""
    cdef const real* x = scratch + LOGIT
    cdef const real* e = scratch + EXPONENTIAL
    cdef const real* log_on = scratch + LOG_ON
    cdef const real* log_off = scratch + LOG_OFF
    cdef bint curved = job.want & (WANT_HESS | WANT_PRODUCT) != 0
    cdef real[2] gamma = [<real>job.o.focal_gamma, <real>job.o.focal_gamma_negative]
    cdef real* share = scratch + WEIGHT         # these two until the chunk is closed
    cdef real* rest = scratch + PRODUCT
    cdef real* share_power = scratch + VALUE    # and these until they are overwritten by results
    cdef real* rest_power = scratch + GRAD
    cdef real a, b
    cdef Py_ssize_t i
    if real is double:
        if job.how == SL_BRIEF:
            sl_brief_shares(x, e, n, share, rest)
            brief_powers(n, rest, log_off, job.o.focal_gamma, rest_power)
            brief_powers(n, share, log_on, job.o.focal_gamma_negative, share_power)
            for i in range(n):
                focal_element(i, share[i], rest[i], share_power[i], rest_power[i], gamma, curved, scratch)
            return
    for i in range(n):
        a = (e[i] if x[i] < 0 else <real>1) / (<real>1 + e[i])
        b = (<real>1 if x[i] < 0 else e[i]) / (<real>1 + e[i])
        focal_element(i, a, b, focal_power(gamma[1], log_on[i]), focal_power(gamma[0], log_off[i]), gamma,
                      curved, scratch)


cdef void target_chunk(const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch) noexcept nogil:
    """Derivative by the target, in the gradient's buffer: A' b**g S - B' a**h T."""
    cdef real* on = scratch + POSITIVE
    cdef const real* log_on = scratch + LOG_ON
    cdef const real* log_off = scratch + LOG_OFF
    cdef real* grad = scratch + GRAD
    cdef real gamma = <real>job.o.focal_gamma
    cdef real gamma_off = <real>job.o.focal_gamma_negative
    cdef real stays = <real>((1 - job.o.label_smoothing) / job.divisor)
    cdef real positive = <real>job.o.positive
    cdef real negative = <real>job.o.negative
    cdef real more, less
    cdef Py_ssize_t i
    for i in range(n):
        on[i] = positive
    if job.o.pos_weight != NULL:
        output_weights(job, job.o.pos_weight, job.o.n_pos_weight, start, n, on)
    for i in range(n):
        more = on[i] * focal_power(gamma, log_off[i])
        less = negative * focal_power(gamma_off, log_on[i])
        grad[i] = stays * (bounded_product(more, log_on[i]) - bounded_product(less, log_off[i]))


cdef void chain_options(const Job* job, Py_ssize_t n, real* scratch) noexcept nogil:
    """Derivatives by x to derivatives by the logits; the divisor goes into the gradient."""
    cdef const real* slope = scratch + SLOPE
    cdef real* grad = scratch + GRAD
    cdef double factor = 1 / job.divisor
    cdef Py_ssize_t i
    if job.want & (WANT_HESS | WANT_PRODUCT):
        chain_second(job.o, n, <const real*>(scratch + LOGIT), slope, <const real*>grad, scratch + HESS)
    chain_first(job.o, n, slope, grad)
    for i in range(n):
        grad[i] = <real>(grad[i] * factor)


cdef void option_chunks(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    cdef Py_ssize_t at, n
    for at from start <= at < stop by CHUNK:
        n = min(<Py_ssize_t>CHUNK, stop - at)
        option_logits(job, at, n, scratch)
        if job.want & WANT_TARGET_GRAD:
            target_chunk(job, at, n, scratch)
        else:
            option_factors(job, at, n, scratch)
            if job.o.focal_gamma == 0 and job.o.focal_gamma_negative == 0:
                option_chunk(job, at, n, scratch)
            else:
                focal_chunk(job, at, n, scratch)
            chain_options(job, n, scratch)
        if job.want & WANT_STATS:
            chunk_statistics(job, at, n, <const real*>(scratch + LOGIT), scratch)
        close_chunk(job, at, n, scratch, total)


cdef void sigmoid_bce_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    if job.has_options:
        option_chunks(job, start, stop, total, scratch)
    else:
        plain_chunks(job, start, stop, total, scratch)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 grad 2.402 at 0x1.0a111ap+2, target 1
#   float32 hess 2.380 at 0x1.6275dcp+2, target 0
#   float32 loss 1.837 at 0x1.074dfp-5, target 0
#   float32 soft grad 2.950 at -0x1.09985ep+2, target 0x1.5b2af2p-22
#   float32 soft hess 2.332 at -0x1.367326p+2, target 0x1.819336p-2
#   float32 soft loss 1.951 at 0x1.e81cap+3, target 0x1.f4db1ep-2
#   float64 grad 2.403 at 0x1.366b4246fe46fp+2, target 1
#   float64 hess 2.400 at 0x1.3653f675d65ffp+2, target 0
#   float64 loss 1.557 at 0x1.88a3393bc7705p-2, target 0
#   float64 soft grad 3.201 at -0x1.00d0d44d9d174p+1, target 0x1.f9b644c34dcap-22
#   float64 soft hess 2.415 at 0x1.35d2899120da7p+2, target 0x1.ec34d9a9ce478p-21
#   float64 soft loss 1.970 at 0x1.f0be4febed90ap+4, target 0x1.fdc0c34503283p-2
sigmoid_bce = loss_kernel(sigmoid_bce_kernel[float], sigmoid_bce_kernel[double], rowwise=False)

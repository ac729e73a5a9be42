# What the sigmoid losses share: they work element by element, in chunks that stay in the L1 cache.
#
# A kernel opens a chunk, computes its losses and derivatives into the chunk's buffers, and closes it.
# The buffers are never the caller's memory, so that the loops over them vectorise whether or not
# the gradient overwrites the logits.

cdef enum:
    CHUNK = 512
    # the buffers of a chunk within the scratch memory
    VALUE = 2 * CHUNK
    GRAD = 3 * CHUNK
    HESS = 4 * CHUNK
    EXPONENTIAL = 5 * CHUNK
    WEIGHT = 6 * CHUNK
    # of all else than the plain loss
    LOGIT = 7 * CHUNK
    SLOPE = 8 * CHUNK
    POSITIVE = 9 * CHUNK
    NEGATIVE = 10 * CHUNK
    LOG_ON = 11 * CHUNK
    LOG_OFF = 12 * CHUNK
    PRODUCT = 13 * CHUNK
    KEPT = 14 * CHUNK

cdef inline real square_of_one_plus(real e) noexcept nogil:
    """(1 + e)**2 for 0 <= e <= 1, with little more than one rounding."""
    return fma(e, e + <real>2, <real>1)


cdef inline real reciprocal(real t, real t_error) noexcept nogil:
    """1 / (t + t_error), with one rounding: the quotient corrected by its own residual."""
    cdef real q = <real>1 / t
    return fma(q, fma(-t, q, <real>1) - t_error * q, q)


cdef void clamp(const real* x, Py_ssize_t n, double clip, real* to) noexcept nogil:
    """Clamp to [-clip, clip]; NaN stays NaN."""
    cdef real top = <real>clip
    cdef Py_ssize_t i
    cdef real v
    for i in range(n):
        v = x[i]
        v = top if v > top else v
        to[i] = -top if v < -top else v


cdef const real* view_targets(const Job* job, Py_ssize_t start, Py_ssize_t n, real* buffer) noexcept nogil:
    """The targets of a chunk. Those that count are in [0, 1], where 64-bit integers need not take the slow
    conversion of all their digits."""
    cdef const int64_t* labels
    cdef Py_ssize_t i
    if job.t.kind != np.NPY_INT64 or job.t.ndim != 1 or job.t.stride[0] != 8:
        return view_flat(&job.t, start, n, buffer)
    labels = <const int64_t*>job.t.data + start
    for i in range(n):
        buffer[i] = <real><int32_t>labels[i]
    return buffer


cdef const real* open_chunk(const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch, const real** targets) noexcept nogil:
    """The logits of a chunk, clamped where asked, and its targets."""
    cdef const real* z = view_flat(&job.x, start, n, scratch)
    targets[0] = view_targets(job, start, n, scratch + CHUNK)
    if job.o.clip < SL_INFINITY:
        clamp(z, n, job.o.clip, scratch)
        return scratch
    return z


cdef void weigh(real* values, const real* weight, Py_ssize_t n) noexcept nogil:
    # a weight of 0 takes the element out, NaN and all
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = 0 if weight[i] == 0 else values[i] * weight[i]


cdef void output_weights(const double* weight, Py_ssize_t weights, Py_ssize_t outputs, Py_ssize_t start, Py_ssize_t n, real* to) noexcept nogil:
    """Multiply elements start ... start + n - 1 by the weights of their outputs."""
    cdef Py_ssize_t i, output = start % outputs
    if weights == 1:
        for i in range(n):
            to[i] *= <real>weight[0]
        return
    for i in range(n):
        to[i] *= <real>weight[output]
        output = output + 1 if output + 1 < outputs else 0


cdef void element_weights(const Job* job, Py_ssize_t start, Py_ssize_t n, bint classes, real* scratch) noexcept nogil:
    """What the elements of a chunk count for: 0 where masked, else their weight, with `classes` times
    that of their output."""
    cdef real* weight = scratch + WEIGHT
    cdef real* kept = scratch + KEPT
    cdef Py_ssize_t i
    if job.weights:
        load_flat(&job.w, start, n, weight)
    else:
        for i in range(n):
            weight[i] = 1
    if classes and job.o.class_weight != NULL:
        output_weights(job.o.class_weight, job.o.class_weights, job.outputs, start, n, weight)
    if job.masked:
        load_flat(&job.keep, start, n, kept)
        weigh(weight, <const real*>kept, n)


cdef void close_chunk(const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch, Sum* total) noexcept nogil:
    """Apply the weights, add up or store the losses, store the derivatives."""
    cdef Py_ssize_t i, padded = (n + LANES - 1) & ~(LANES - 1)
    cdef double error
    cdef real* value = scratch + VALUE
    cdef real* hess = scratch + HESS
    cdef real* product = scratch + PRODUCT
    cdef real factor = <real>(1 / job.divisor)
    if job.want & WANT_PRODUCT:
        load_flat(&job.v, start, n, product)
        for i in range(n):
            product[i] *= hess[i] * factor
    if job.weighted:
        element_weights(job, start, n, True, scratch)
        weigh(value, <const real*>(scratch + WEIGHT), n)
        weigh(scratch + GRAD, <const real*>(scratch + WEIGHT), n)
        weigh(hess, <const real*>(scratch + WEIGHT), n)
        if job.want & WANT_PRODUCT:
            weigh(product, <const real*>(scratch + WEIGHT), n)
    if job.loss != NULL:
        store_values(job.loss, job.value_kind, start, <const real*>value, n)
    elif job.want & WANT_LOSS:
        for i in range(n, padded):
            value[i] = 0
        add(total, lane_sum(<const real*>value, padded, &error))
        total.lo += error
    if job.want & (WANT_GRAD | WANT_TARGET_GRAD):
        store_flat(&job.g, start, n, <const real*>(scratch + GRAD))
    if job.want & WANT_PRODUCT:
        store_flat(&job.g, start, n, <const real*>product)
    if job.want & WANT_HESS:
        store_flat(&job.h, start, n, <const real*>hess)


cdef void store_values(char* values, int kind, Py_ssize_t start, const real* from_, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t size = 4 if kind == np.NPY_FLOAT else 8
    scatter(from_, values + start * size, kind, size, n)


# ---- statistics -----------------------------------------------------------------------------------

cdef void chunk_statistics(const Job* job, Py_ssize_t start, Py_ssize_t n, const real* x, real* scratch) noexcept nogil:
    """Prediction, log(1 + e**x) and entropy of a chunk. Of x = log(a / (1 - a)), both logarithms and
    a / (1 - a) or its inverse, whichever is below 1, are at hand."""
    cdef const real* e = scratch + EXPONENTIAL
    cdef const real* minus_log_on = scratch + LOG_ON
    cdef const real* minus_log_off = scratch + LOG_OFF
    cdef real* to = scratch + PRODUCT
    cdef const real* weight = scratch + WEIGHT
    cdef double large, small
    cdef Py_ssize_t i
    if job.weighted:
        element_weights(job, start, n, False, scratch)
    for i in range(n):
        (<char*>job.predicted)[start + i] = x[i] > 0 and not (job.weighted and weight[i] == 0)
    for i in range(n):
        to[i] = 0 if job.weighted and weight[i] == 0 else minus_log_off[i]
    store_values(job.lse, job.value_kind, start, <const real*>to, n)
    for i in range(n):
        # a S(a) + (1 - a) S(1 - a) over 1 + e
        large = minus_log_off[i] if x[i] < 0 else minus_log_on[i]
        small = 0 if e[i] == 0 else e[i] * <double>(minus_log_on[i] if x[i] < 0 else minus_log_off[i])
        to[i] = 0 if job.weighted and weight[i] == 0 else <real>((large + small) / (1 + <double>e[i]))
    store_values(job.entropy, job.value_kind, start, <const real*>to, n)
    if job.fills:
        for i in range(n):
            to[i] = (e[i] if x[i] < 0 else <real>1) / (<real>1 + e[i])
            to[i] = 0 if job.weighted and weight[i] == 0 else to[i]
        store_flat(&job.p, start, n, <const real*>to)

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
    if job.o.logit_clip < SL_INFINITY:
        clamp(z, n, job.o.logit_clip, scratch)
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
    if job.has_weight:
        load_flat(&job.w, start, n, weight)
    else:
        for i in range(n):
            weight[i] = 1
    if classes and job.o.class_weight != NULL:
        output_weights(job.o.class_weight, job.o.n_class_weight, job.outputs, start, n, weight)
    if job.masked:
        load_flat(&job.mask, start, n, kept)
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
    if job.any_weight:
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

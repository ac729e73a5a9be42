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

cdef inline real square_of_one_plus(real e) noexcept nogil:
    """(1 + e)**2 for 0 <= e <= 1, with little more than one rounding."""
    return fma(e, e + <real>2, <real>1)


cdef inline real reciprocal(real t, real t_error) noexcept nogil:
    """1 / (t + t_error), with one rounding: the quotient corrected by its own residual."""
    cdef real q = <real>1 / t
    return fma(q, fma(-t, q, <real>1) - t_error * q, q)


cdef inline void clamp(const real* x, Py_ssize_t n, double clip, real* to) noexcept nogil:
    """Clamp to [-clip, clip]; NaN stays NaN."""
    cdef real top = <real>clip
    cdef Py_ssize_t i
    cdef real v
    for i in range(n):
        v = x[i]
        v = top if v > top else v
        to[i] = -top if v < -top else v


cdef inline const real* open_chunk(const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch, const real** targets) noexcept nogil:
    """The logits of a chunk, clamped where asked, and its targets."""
    cdef const real* z = view_flat(&job.x, start, n, scratch)
    targets[0] = view_flat(&job.t, start, n, scratch + CHUNK)
    if job.clip < 1e300:
        clamp(z, n, job.clip, scratch)
        return scratch
    return z


cdef inline void weigh(real* values, const real* weight, Py_ssize_t n) noexcept nogil:
    # a weight of 0 takes the element out, NaN and all
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = 0 if weight[i] == 0 else values[i] * weight[i]


cdef inline void close_chunk(const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch, Sum* total) noexcept nogil:
    """Apply the weights, add up or store the losses, store the derivatives."""
    cdef Py_ssize_t i, padded = (n + LANES - 1) & ~(LANES - 1)
    cdef double error
    cdef real* value = scratch + VALUE
    if job.weighted:
        load_flat(&job.w, start, n, scratch)        # the logits are done with
        weigh(value, scratch, n)
        weigh(scratch + GRAD, scratch, n)
        weigh(scratch + HESS, scratch, n)
    if job.loss != NULL:
        memcpy(job.loss + start * sizeof(real), value, n * sizeof(real))
    elif job.want & WANT_LOSS:
        for i in range(n, padded):
            value[i] = 0
        add(total, lane_sum(<const real*>value, padded, &error))
        total.lo += error
    if job.want & WANT_GRAD:
        store_flat(&job.g, start, n, <const real*>(scratch + GRAD))
    if job.want & WANT_HESS:
        store_flat(&job.h, start, n, <const real*>(scratch + HESS))


cdef object sigmoid_loss(object logits, object targets, object weight, object out, object hess,
                         int want, int reduction, double clip, const Kernel* kernel):
    """Run a sigmoid loss, or return None where `_arrays` has to prepare the call or to refuse it."""
    cdef Job job
    cdef int ndim, kind
    cdef np.ndarray losses = None
    cdef double total
    if not (np.PyArray_CheckExact(logits) and np.PyArray_CheckExact(targets)):
        return None
    kind = element_kind(logits)
    ndim = np.PyArray_NDIM(logits)
    if kind != np.NPY_FLOAT and kind != np.NPY_DOUBLE:
        return None
    if element_kind(targets) < 0 or not same_shape(targets, logits, ndim):
        return None
    job.n = np.PyArray_SIZE(logits)
    job.k = 1
    job.want = want
    job.clip = clip
    job.block = BLOCK_ITEMS
    job.hard = False
    job.loss = NULL
    bind(&job.x, logits, kind, ndim)
    bind(&job.t, targets, element_kind(targets), ndim)
    if not in_range(&job.t, job.n, 1, False):
        return None
    job.weighted = weight is not None
    if job.weighted:
        if not (np.PyArray_CheckExact(weight) and element_kind(weight) >= 0 and same_shape(weight, logits, ndim)):
            return None
        bind(&job.w, weight, element_kind(weight), ndim)
        if not in_range(&job.w, job.n, 1.7976931348623157e308, False):
            return None
    if want & WANT_GRAD:
        out = derivative_array(out, logits, targets, weight)
        if out is None:
            return None
        bind(&job.g, out, kind, ndim)
    if want & WANT_HESS:
        hess = derivative_array(hess, logits, targets, weight)
        if hess is None or not disjoint(hess, out):
            return None
        bind(&job.h, hess, kind, ndim)
    job.divisor = 1
    if reduction == REDUCE_NONE:
        if want & WANT_LOSS:
            losses = np.PyArray_EMPTY(ndim, np.PyArray_DIMS(logits), kind, 0)
            job.loss = np.PyArray_BYTES(losses)
    elif reduction == REDUCE_MEAN:
        job.divisor = job.n
    elif reduction == REDUCE_BATCHMEAN and ndim > 1:
        job.divisor = job.n / np.PyArray_DIMS(logits)[ndim - 1] if job.n else 1
    total = run(&job, kernel, (logits, targets, weight, out, hess, losses))
    return results(want, reduction, total / job.divisor if job.n else 0.0, losses, out, hess)

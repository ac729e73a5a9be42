# What the sigmoid losses share: they work element by element, in chunks that stay in the L1 cache.
#
# A kernel opens a chunk, computes its losses and derivatives into the chunk's buffers, and closes it.
# The buffers are never the caller's memory, so that the loops over them vectorise whether or not
# the gradient overwrites the logits. The plain loops are in sl_elements_of.h and need no buffer, but for what
# is no whole vector.
#
# uses _job: Job
# uses _logits: transform_logits
# uses _math: SL_INFINITY absolute real
# uses _operand: Operand kind_of load_flat store_flat store_values
# uses _options: WANT_GRAD WANT_HESS WANT_LOSS WANT_PRODUCT WANT_TARGET_GRAD
# uses _sums: CHUNK FAR GROUP Sum add add_far clear_padding lane_sum padded
# uses _weights: in_line load_weights output_weights

cdef enum:
    # places of chunks in scratch, after logits and targets
    VALUE = 2 * CHUNK
    GRAD = 3 * CHUNK
    HESS = 4 * CHUNK
    WEIGHT = 5 * CHUNK
    EXPONENTIAL = 6 * CHUNK
    # of all else than the plain loss
    LOGIT = 7 * CHUNK
    SLOPE = 8 * CHUNK
    POSITIVE = 9 * CHUNK
    NEGATIVE = 10 * CHUNK
    LOG_ON = 11 * CHUNK
    LOG_OFF = 12 * CHUNK
    PRODUCT = 13 * CHUNK


cdef inline bint in_vectors(const Operand* op, Py_ssize_t n, real hint) noexcept nogil:
    """Whether n elements in a row are whole vectors of the type of the arithmetic."""
    return (n % GROUP == 0 and op.ndim == 1 and op.kind == kind_of(hint)
            and op.stride[0] == <Py_ssize_t>sizeof(real))


cdef inline const real* view_vectors(
    const Operand* op, Py_ssize_t start, Py_ssize_t n, real* buffer
) noexcept nogil:
    """Elements as whole vectors: in place where they are that already."""
    if in_vectors(op, n, buffer[0]):
        return <const real*>op.data + start
    load_flat(op, start, n, buffer)
    return buffer


cdef inline real* place_vectors(
    const Operand* op, Py_ssize_t start, Py_ssize_t n, real* buffer
) noexcept nogil:
    """Where elements can be written as whole vectors: in place, or in the buffer."""
    return <real*>op.data + start if in_vectors(op, n, buffer[0]) else buffer


cdef inline real* place_gradient(
    const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch
) noexcept nogil:
    """Where the gradient of a chunk is computed."""
    if job.has_options:
        return scratch + GRAD
    return place_vectors(&job.g, start, n, scratch + GRAD)


cdef extern from "sl_elements.h" nogil:
    void sl_exponentials_f32(const float*, Py_ssize_t, float*, bint) noexcept
    void sl_exponentials_f64(const double*, Py_ssize_t, double*, bint) noexcept
    void sl_weigh_f32(float*, const float*, Py_ssize_t, bint) noexcept
    void sl_weigh_f64(double*, const double*, Py_ssize_t, bint) noexcept
    double sl_weighed_sum_f32(const float*, const float*, Py_ssize_t, bint) noexcept


cdef inline void chunk_exponentials(const Job* job, const real* z, Py_ssize_t n, real* e) noexcept nogil:
    """e**-abs(z)."""
    if real is float:
        sl_exponentials_f32(z, n, e, job.streams)
    else:
        sl_exponentials_f64(z, n, e, job.streams)


cdef const real* view_targets(const Job* job, Py_ssize_t start, Py_ssize_t n, real* buffer) noexcept nogil:
    """The targets of a chunk. Where those that count are in [0, 1], 64-bit integers need not take the slow
    conversion of all their digits."""
    cdef const int64_t* labels
    cdef Py_ssize_t i
    if job.target_max > 1 or not in_line(&job.t, np.NPY_INT64, 8):
        return view_vectors(&job.t, start, n, buffer)
    labels = <const int64_t*>job.t.data + start
    for i in range(n):
        buffer[i] = <real><int32_t>labels[i]
    return buffer


cdef const real* open_chunk(
    const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch, const real** targets
) noexcept nogil:
    """The logits of a chunk, as they enter the activation where there is no cap, and its targets."""
    targets[0] = view_targets(job, start, n, scratch + CHUNK)
    if job.o.logit_clip == SL_INFINITY:
        return view_vectors(&job.x, start, n, scratch)
    load_flat(&job.x, start, n, scratch)
    transform_logits(job, n, scratch, scratch + SLOPE)
    return scratch


cdef inline void weigh(real* values, const real* weight, Py_ssize_t n, bint ahead) noexcept nogil:
    """A weight of 0 takes the element out, NaN and all. Where `ahead`, the next weights come closer."""
    if real is float:
        sl_weigh_f32(values, weight, n, ahead)
    else:
        sl_weigh_f64(values, weight, n, ahead)


cdef const real* view_weights(const Job* job, Py_ssize_t start, Py_ssize_t n, real* buffer) noexcept nogil:
    """What the elements of a chunk count for, followed by 0 up to whole vectors."""
    if (job.has_weight and not job.masked and not job.extreme and job.o.class_weight == NULL
            and in_vectors(&job.w, n, buffer[0])):
        return <const real*>job.w.data + start
    load_weights(job, start, n, True, NULL, buffer)
    if job.o.class_weight != NULL:
        output_weights(job, job.o.class_weight, job.o.n_class_weight, start, n, buffer)
    clear_padding(buffer, n)
    return buffer


cdef inline double far_product(double a, double b) noexcept nogil:
    return 0 if a == 0 else a * FAR * b


cdef void add_far_losses(
    const Job* job, Py_ssize_t n, const real* weight, const real* scratch, Sum* total
) noexcept nogil:
    """Add the weighted losses of a chunk that the type of the arithmetic does not hold, or their sum."""
    cdef const real* value = scratch + VALUE
    cdef double loss
    cdef Py_ssize_t i
    for i in range(n):
        if job.any_weight and weight[i] == 0:
            continue
        loss = value[i] * FAR
        if job.has_options and absolute(loss) == SL_INFINITY:
            loss = (far_product(scratch[POSITIVE + i], scratch[LOG_ON + i])
                    + far_product(scratch[NEGATIVE + i], scratch[LOG_OFF + i]))
        add_far(total, loss * weight[i] if job.any_weight else loss)


cdef double sum_of_losses(
    const Job* job, Py_ssize_t n, const real* weight, real* scratch, double* lo
) noexcept nogil:
    """Of a chunk, times their weights: the product of a small loss with a small weight may have no digits
    left in float32, where their mean has. A mask has no such products."""
    cdef real* value = scratch + VALUE
    cdef bint weighted = job.has_weight or job.o.class_weight != NULL or job.extreme
    cdef bint ahead = job.streams and not job.want & WANT_GRAD      # which met the weights before
    cdef real* weighed = scratch + PRODUCT      # no loss is wanted beside a product
    cdef Py_ssize_t i
    clear_padding(value, n)
    if not weighted:
        if job.masked:
            weigh(value, weight, padded(n), False)
        return lane_sum(<const real*>value, padded(n), lo)
    if real is float:
        lo[0] = 0
        return sl_weighed_sum_f32(value, weight, padded(n), ahead)
    else:
        # beside the losses, which may be needed again
        for i in range(padded(n)):
            weighed[i] = value[i]
        weigh(weighed, weight, padded(n), ahead)
        return lane_sum(<const real*>weighed, padded(n), lo)


cdef void close_chunk(
    const Job* job, Py_ssize_t start, Py_ssize_t n, real* scratch, Sum* total
) noexcept nogil:
    """Apply the weights, add up or store the losses, store the derivatives."""
    cdef Py_ssize_t i
    cdef double lo, sum_
    cdef real* value = scratch + VALUE
    cdef real* hess = scratch + HESS
    cdef real* product = scratch + PRODUCT
    cdef real* grad = NULL
    cdef const real* weight = NULL
    cdef real factor = <real>(1 / job.divisor)
    if job.want & (WANT_GRAD | WANT_TARGET_GRAD):
        grad = place_gradient(job, start, n, scratch)
    if job.want & WANT_PRODUCT:
        load_flat(&job.v, start, n, product)
        # a direction that leaves a logit where it is gets nothing from it, however large its Hessian
        for i in range(n):
            product[i] = (0 if product[i] == 0 and absolute(hess[i]) == SL_INFINITY
                          else product[i] * (hess[i] * factor))
    if job.any_weight:
        weight = view_weights(job, start, n, scratch + WEIGHT)
        if grad != NULL:
            weigh(grad, weight, n, job.streams)
        if job.want & WANT_HESS:
            weigh(hess, weight, n, False)
        if job.want & WANT_PRODUCT:
            weigh(product, weight, n, False)
    if job.loss != NULL:
        if job.any_weight:
            weigh(value, weight, n, False)
        store_values(job.loss, job.value_kind, start, <const real*>value, n)
    elif job.want & WANT_LOSS:
        sum_ = sum_of_losses(job, n, weight, scratch, &lo)
        if absolute(sum_) == SL_INFINITY or (job.any_weight and sum_ != sum_):
            add_far_losses(job, n, weight, <const real*>scratch, total)
        else:
            add(total, sum_, lo)
    if grad == scratch + GRAD:
        store_flat(&job.g, start, n, <const real*>grad)
    if job.want & WANT_PRODUCT:
        store_flat(&job.g, start, n, <const real*>product)
    if job.want & WANT_HESS:
        store_flat(&job.h, start, n, <const real*>hess)

# One call of a loss: its arrays and arguments, from Python to a job and back.
#
# uses _blocks: run shareable
# uses _checks: DOUBLE_MAX activations_in_range counted_rows_in_range divisor_of in_range targets_in_range
# uses _job: BLOCK_ITEMS Job Kernel
# uses _operand: Operand PyArray_NewLikeArray bind element_kind is_floating
# uses _options: Options REDUCE_MEAN REDUCE_NONE WANT_GRAD WANT_HESS WANT_LOSS WANT_PRODUCT WANT_STATS
# uses _options: WANT_TARGET_GRAD
# uses _sums: GROUP

cdef bint same_shape(np.ndarray a, np.ndarray b, int ndim):
    """Whether a has exactly the first `ndim` dimensions of b."""
    cdef int d
    if np.PyArray_NDIM(a) != ndim:
        return False
    for d in range(ndim):
        if np.PyArray_DIMS(a)[d] != np.PyArray_DIMS(b)[d]:
            return False
    return True


cdef bint same_memory(np.ndarray a, np.ndarray b):
    """Whether two arrays of one shape and type are the same elements in the same order."""
    cdef int d
    if np.PyArray_DATA(a) != np.PyArray_DATA(b):
        return False
    for d in range(np.PyArray_NDIM(a)):
        if np.PyArray_STRIDES(a)[d] != np.PyArray_STRIDES(b)[d]:
            return False
    return True


cdef void extent(np.ndarray a, char** low, char** high) noexcept:
    cdef int d
    cdef Py_ssize_t reach
    low[0] = np.PyArray_BYTES(a)
    high[0] = low[0] + np.PyArray_ITEMSIZE(a)
    for d in range(np.PyArray_NDIM(a)):
        reach = (np.PyArray_DIMS(a)[d] - 1) * np.PyArray_STRIDES(a)[d]
        if reach > 0:
            high[0] += reach
        else:
            low[0] += reach


cdef bint disjoint(np.ndarray a, np.ndarray b):
    cdef char *a_low
    cdef char *a_high
    cdef char *b_low
    cdef char *b_high
    if np.PyArray_SIZE(a) == 0 or np.PyArray_SIZE(b) == 0:
        return True
    extent(a, &a_low, &a_high)
    extent(b, &b_low, &b_high)
    return a_high <= b_low or b_high <= a_low


cdef bint writable_like(np.ndarray out, np.ndarray logits):
    return (np.PyArray_TYPE(out) == np.PyArray_TYPE(logits)
            and same_shape(out, logits, np.PyArray_NDIM(logits))
            and np.PyArray_ISWRITEABLE(out) and np.PyArray_ISALIGNED(out)
            and np.PyArray_ISNOTSWAPPED(out))


cdef inline np.ndarray empty_like(np.ndarray logits):
    """A new array in the memory order of the logits."""
    if np.PyArray_IS_C_CONTIGUOUS(logits):
        return np.PyArray_EMPTY(np.PyArray_NDIM(logits), np.PyArray_DIMS(logits), np.PyArray_TYPE(logits), 0)
    return PyArray_NewLikeArray(logits, np.NPY_KEEPORDER, NULL, 0)


cdef np.ndarray derivative_array(object out, np.ndarray logits, object targets, object weight, object mask, object vector):
    """`out` where it can be written as it is, a new array where it is None; None where neither."""
    if out is None:
        return empty_like(logits)
    if not (np.PyArray_CheckExact(out) and writable_like(out, logits)):
        return None
    if not (disjoint(out, logits) or same_memory(out, logits)):
        return None
    if (targets is not None and not disjoint(out, targets)) or (weight is not None and not disjoint(out, weight)):
        return None
    if (mask is not None and not disjoint(out, mask)) or (vector is not None and not disjoint(out, vector)):
        return None
    return out


cdef bint plain_array(object a, np.ndarray logits, int ndim):
    """Whether `a` is an array that the kernels can read, of the first `ndim` dimensions of the logits."""
    return np.PyArray_CheckExact(a) and element_kind(a) >= 0 and same_shape(a, logits, ndim)


cdef object loss_call(object logits, object targets, object weight, object mask, object denominator, object out,
                      object hess, object vector, object probabilities, int want, Options options, bint rowwise,
                      const Kernel* kernel):
    """Run a loss, or return None where `_arrays` has to prepare the call or to refuse it. The rows of
    a softmax loss (`rowwise`) are its unit, of a sigmoid loss the elements."""
    cdef Job job
    cdef Operand every
    cdef int ndim, kind, lead
    cdef int reduction = options.reduction
    cdef np.ndarray losses = None
    cdef np.ndarray predicted = None
    cdef np.ndarray lse = None
    cdef np.ndarray entropy = None
    cdef tuple arrays = None
    cdef double total
    if not (np.PyArray_CheckExact(logits) and np.PyArray_CheckExact(targets)):
        return None
    kind = element_kind(logits)
    if not is_floating(kind):
        return None
    ndim = np.PyArray_NDIM(logits)
    lead = ndim - 1 if rowwise else ndim
    if lead < 0:
        return None
    job.o = &options.settings
    job.outputs = np.PyArray_DIMS(logits)[ndim - 1] if ndim else 1
    job.hard = rowwise and np.PyArray_NDIM(targets) == lead
    job.k = job.outputs if rowwise else 1
    if want & WANT_TARGET_GRAD and job.hard:
        return None
    if job.k == 0 or not plain_array(targets, logits, lead if job.hard else ndim):
        return None
    if job.o.class_weight != NULL and job.o.n_class_weight != job.outputs:
        return None
    if job.o.pos_weight != NULL and not job.o.pos_weight_shared and job.o.n_pos_weight != job.outputs:
        return None
    job.n = np.PyArray_SIZE(logits) // job.k
    job.want = want
    job.block = max(1, BLOCK_ITEMS // job.k)
    if job.block > GROUP:
        job.block -= job.block % GROUP
    job.loss = job.lse = job.entropy = job.predicted = NULL
    job.value_kind = np.NPY_DOUBLE if kind == np.NPY_DOUBLE else np.NPY_FLOAT
    job.has_options = options.has_options or want & (WANT_PRODUCT | WANT_TARGET_GRAD | WANT_STATS) != 0
    # sums of products of either sign lose digits
    job.in_float64 = options.in_float64 or want & (WANT_PRODUCT | WANT_TARGET_GRAD) != 0
    job.ignoring = False
    job.wants_probabilities = probabilities is not None
    bind(&job.x, logits, kind, lead)
    bind(&job.t, targets, element_kind(targets), lead)
    job.masked = mask is not None
    if job.masked:
        if not plain_array(mask, logits, lead) or np.PyArray_TYPE(mask) != np.NPY_BOOL:
            return None
        bind(&job.mask, mask, np.NPY_UINT8, lead)
    job.has_weight = weight is not None
    if job.has_weight:
        if not plain_array(weight, logits, lead):
            return None
        bind(&job.w, weight, element_kind(weight), lead)
        if not in_range(&job.w, job.n, DOUBLE_MAX, False):
            return None
    job.any_weight = job.has_weight or job.masked or job.o.class_weight != NULL
    if not targets_in_range(&job, targets, rowwise):
        return None
    job.any_weight = job.any_weight or job.ignoring
    if job.o.from_probabilities:
        bind(&every, logits, kind, ndim)
        if not activations_in_range(&every, np.PyArray_SIZE(logits)) and not counted_rows_in_range(&job, &job.x, 1, False):
            return None
    if want & WANT_PRODUCT:
        if not plain_array(vector, logits, ndim):
            return None
        bind(&job.v, vector, element_kind(vector), lead)
    if want & (WANT_GRAD | WANT_PRODUCT | WANT_TARGET_GRAD):
        out = derivative_array(out, logits, targets, weight, mask, vector)
        if out is None:
            return None
        bind(&job.g, out, kind, lead)
    if want & WANT_HESS:
        hess = derivative_array(hess, logits, targets, weight, mask, vector)
        # the Hessian is written before the gradient is computed
        if hess is None or not disjoint(hess, out) or (rowwise and not disjoint(hess, logits)):
            return None
        bind(&job.h, hess, kind, lead)
    if job.wants_probabilities:
        if derivative_array(probabilities, logits, targets, weight, mask, vector) is None or not disjoint(probabilities, logits):
            return None
        if want & WANT_GRAD and not disjoint(probabilities, out):
            return None
        bind(&job.p, probabilities, kind, lead)
    job.divisor = 1
    if denominator is not None:
        if not isinstance(denominator, (int, float)):
            return None
        job.divisor = denominator
        if not (job.divisor > 0 and job.divisor <= DOUBLE_MAX) or reduction < REDUCE_MEAN:
            return None
    elif reduction >= REDUCE_MEAN and not want & WANT_HESS:
        job.divisor = divisor_of(&job, reduction, rowwise)
        if job.divisor == 0:
            job.divisor = 1         # nothing counts: the loss is 0, the gradient 0 (or empty)
    if want & WANT_LOSS and reduction == REDUCE_NONE:
        losses = np.PyArray_EMPTY(lead, np.PyArray_DIMS(logits), job.value_kind, 0)
        job.loss = np.PyArray_BYTES(losses)
    if want & WANT_STATS:
        predicted = np.PyArray_EMPTY(lead, np.PyArray_DIMS(logits), np.NPY_INT64 if rowwise else np.NPY_BOOL, 0)
        lse = np.PyArray_EMPTY(lead, np.PyArray_DIMS(logits), job.value_kind, 0)
        entropy = np.PyArray_EMPTY(lead, np.PyArray_DIMS(logits), job.value_kind, 0)
        job.predicted = np.PyArray_BYTES(predicted)
        job.lse = np.PyArray_BYTES(lse)
        job.entropy = np.PyArray_BYTES(entropy)
    if shareable(&job):
        arrays = (logits, targets, weight, mask, vector, out, hess, probabilities, losses, predicted, lse, entropy, options)
    total = run(&job, kernel, arrays)
    if want & WANT_HESS:
        return out, hess
    if not want & WANT_LOSS:
        return out
    if reduction == REDUCE_NONE:
        loss = losses if lead else losses[()]
    else:
        loss = total / job.divisor
    if want & WANT_STATS:
        return loss, out, (predicted, lse, entropy)
    return (loss, out) if want & WANT_GRAD else loss

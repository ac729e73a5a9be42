# One call of a loss: its options, its arrays, its rows shared out in blocks.

from libc.stdlib cimport free, malloc

from stableloss._threads import get_num_threads, work_together


# ---- options --------------------------------------------------------------------------------------

cdef struct Settings:
    # The options of a loss as numbers; the comment names the value that takes no part.
    double clip                     # inf
    double scale                    # 1
    double cap                      # 0
    double smoothing                # 0
    double focal                    # 0
    double z_loss                   # 0
    double positive                 # 1: factor of -log a ...
    double negative                 # 1: ... and of -log(1 - a)
    bint ignores                    # False: has it a class index whose rows do not count?
    double ignore
    const double* class_weight      # NULL: one per class or output
    const double* positive_weight   # NULL: one per output
    Py_ssize_t class_weights
    Py_ssize_t positive_weights
    bint positive_shared            # one for all outputs
    bint probabilities              # the logits are given as activations


@cython.final
cdef class Options:
    """The options of a loss, checked by its class, in the form that kernels read."""

    cdef Settings settings
    cdef int reduction
    cdef bint general               # beyond what the kernels for plain losses do
    cdef bint precise               # float32 logits are computed in float64
    cdef object weights

    def __init__(self, int reduction, *, double clip=SL_INFINITY, double scale=1, double cap=0, double smoothing=0,
                 double focal=0, double z_loss=0, double positive=1, double negative=1, object ignore=None,
                 np.ndarray class_weight=None, np.ndarray positive_weight=None, bint positive_shared=False,
                 bint probabilities=False):
        cdef Settings* o = &self.settings
        self.reduction = reduction
        o.clip = clip
        o.scale = scale
        o.cap = cap
        o.smoothing = smoothing
        o.focal = focal
        o.z_loss = z_loss
        o.positive = positive
        o.negative = negative
        o.ignores = ignore is not None
        o.ignore = ignore if o.ignores else 0
        o.probabilities = probabilities
        o.positive_shared = positive_shared
        o.class_weight = o.positive_weight = NULL
        o.class_weights = o.positive_weights = 0
        self.weights = class_weight, positive_weight
        if class_weight is not None:
            o.class_weight = <const double*>np.PyArray_DATA(class_weight)
            o.class_weights = np.PyArray_SIZE(class_weight)
        if positive_weight is not None:
            o.positive_weight = <const double*>np.PyArray_DATA(positive_weight)
            o.positive_weights = np.PyArray_SIZE(positive_weight)
        # The rounding of a scaled or bent logit, or of a logarithm that is raised to a power, would be
        # many ulps of the result; float64 has the digits to spare.
        self.precise = scale != 1 or cap != 0 or focal != 0 or probabilities
        self.general = (self.precise or smoothing != 0 or z_loss != 0 or positive != 1 or negative != 1
                        or positive_weight is not None)


# ---- one call -------------------------------------------------------------------------------------

cdef struct Job:
    # x, t, w, keep: logits, targets, weights, mask; g, h: gradient (or what else has its shape) and
    # Hessian diagonal; v: vector; p: probabilities. Softmax losses bind them as rows, sigmoid losses
    # element by element.
    Operand x
    Operand t
    Operand w
    Operand keep
    Operand g
    Operand h
    Operand v
    Operand p
    const Settings* o
    char* loss              # one value per row or element, or NULL
    char* lse               # statistics, likewise
    char* entropy
    char* predicted
    int value_kind          # of losses and statistics
    bint weights            # is w bound?
    bint masked             # is keep bound?
    bint ignoring           # may a row's target be the ignored index?
    bint weighted           # may a row's weight differ from 1?
    bint hard               # targets are class indices
    bint general            # not for a kernel of the plain loss
    bint precise            # computed in float64 whatever the logits' type
    bint fills              # is p bound?
    int want
    Py_ssize_t n
    Py_ssize_t k
    Py_ssize_t outputs      # length of the last axis
    Py_ssize_t block        # rows (elements) per block
    double divisor


# One kernel: rows (elements) start ... stop - 1 of a job, whose weighted losses it adds to the sum.
# The last argument is the thread's scratch memory, aligned to a cache line.
ctypedef void (*Kernel32)(const Job*, Py_ssize_t, Py_ssize_t, Sum*, float*) noexcept nogil
ctypedef void (*Kernel64)(const Job*, Py_ssize_t, Py_ssize_t, Sum*, double*) noexcept nogil

cdef struct Kernel:
    Kernel32 single
    Kernel64 double


cdef struct Shared:
    # A job that several threads work on. Each takes the next block that nobody has taken yet, and
    # leaves its sum in the block's place.
    Job job
    Kernel kernel
    Sum* part
    Py_ssize_t blocks
    Py_ssize_t taken


cdef void run_block(const Job* job, const Kernel* kernel, Py_ssize_t block, void* scratch, Sum* part) noexcept nogil:
    cdef Py_ssize_t start = block * job.block
    cdef Py_ssize_t stop = min(start + job.block, job.n)
    part.hi = part.lo = 0
    if job.precise or job.x.kind == np.NPY_DOUBLE:
        kernel.double(job, start, stop, part, <double*>scratch)
    else:
        kernel.single(job, start, stop, part, <float*>scratch)


cdef inline void add_part(Sum* total, const Sum* part) noexcept nogil:
    add(total, part.hi)
    total.lo += part.lo


cdef void run_alone(const Job* job, const Kernel* kernel, Py_ssize_t blocks, Sum* total) noexcept nogil:
    cdef void* scratch = sl_get_scratch()
    cdef Py_ssize_t block
    cdef Sum part
    for block in range(blocks):
        run_block(job, kernel, block, scratch, &part)
        add_part(total, &part)


cdef void run_shared(Shared* shared) noexcept nogil:
    cdef void* scratch = sl_get_scratch()
    cdef unsigned int flags = sl_get_flags()
    cdef Py_ssize_t block = SL_TAKE(&shared.taken)
    while block < shared.blocks:
        run_block(&shared.job, &shared.kernel, block, scratch, &shared.part[block])
        block = SL_TAKE(&shared.taken)
    sl_set_flags(flags)


@cython.final
cdef class Task:
    """A shared job as something that any thread can call; keeps its arrays alive meanwhile."""

    cdef Shared shared
    cdef object arrays

    def __dealloc__(self):
        free(self.shared.part)

    def __call__(self):
        with nogil:
            run_shared(&self.shared)


cdef int run_together(const Job* job, const Kernel* kernel, Py_ssize_t blocks, int threads, object arrays, Sum* total) except -1:
    cdef Task task = Task()
    cdef Py_ssize_t block
    task.arrays = arrays
    task.shared.job = job[0]
    task.shared.kernel = kernel[0]
    task.shared.blocks = blocks
    task.shared.taken = 0
    task.shared.part = <Sum*>malloc(blocks * sizeof(Sum))
    if task.shared.part == NULL:
        raise MemoryError()
    work_together(task, min(<Py_ssize_t>threads, blocks) - 1)
    for block in range(blocks):
        add_part(total, &task.shared.part[block])
    return 0


cdef bint shareable(const Job* job) noexcept:
    """Whether several threads may get to work on the job."""
    return job.n * job.k >= SHARE_WORK and job.n > job.block


cdef double run(const Job* job, const Kernel* kernel, tuple arrays) except? -1:
    """All rows of a job; returns the sum of their weighted losses. If the job is shareable, its memory
    belongs to `arrays`."""
    cdef unsigned int flags = sl_get_flags()
    cdef Py_ssize_t blocks = (job.n + job.block - 1) // job.block
    cdef int threads = 1
    cdef Sum total
    cdef double value
    total.hi = total.lo = 0
    if shareable(job):
        threads = get_num_threads()
    if threads > 1:
        run_together(job, kernel, blocks, threads, arrays, &total)
    elif job.n * job.k < RELEASE_GIL:
        run_alone(job, kernel, blocks, &total)
    else:
        with nogil:
            run_alone(job, kernel, blocks, &total)
    value = evaluate(&total)
    sl_set_flags(flags)
    return value


# ---- the arrays of a call -------------------------------------------------------------------------

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


cdef enum:
    CHECKED = 512           # rows whose weights and targets are looked at together

cdef double DOUBLE_MAX = 1.7976931348623157e308


cdef bint plain_array(object a, np.ndarray logits, int ndim):
    """Whether `a` is an array that the kernels can read, of the first `ndim` dimensions of the logits."""
    return np.PyArray_CheckExact(a) and element_kind(a) >= 0 and same_shape(a, logits, ndim)


cdef void load_weights(const Job* job, Py_ssize_t start, Py_ssize_t count, bint samples, bint classes, double* weight) noexcept nogil:
    """What rows (elements) start ... start + count - 1 count for, at most CHECKED of them: 0 where masked
    or ignored, else the product of their weight (`samples`) and that of their class (`classes`)."""
    cdef double value[CHECKED]
    cdef Py_ssize_t i
    for i in range(count):
        weight[i] = 1
    if not job.weighted:
        return
    if samples and job.weights:
        load_flat(&job.w, start, count, weight)
    if job.masked:
        load_flat(&job.keep, start, count, value)
        for i in range(count):
            weight[i] = 0 if value[i] == 0 else weight[i]
    if job.hard and (job.ignoring or (classes and job.o.class_weight != NULL)):
        load_flat(&job.t, start, count, value)
        for i in range(count):
            if job.ignoring and value[i] == job.o.ignore:
                weight[i] = 0
            elif classes and job.o.class_weight != NULL and weight[i] != 0:
                weight[i] *= job.o.class_weight[<Py_ssize_t>value[i]]


cdef double weight_total(const Job* job, bint samples, bint classes) noexcept nogil:
    cdef double weight[CHECKED]
    cdef Py_ssize_t start, i, n
    cdef Sum total
    total.hi = total.lo = 0
    for start from 0 <= start < job.n by CHECKED:
        n = min(<Py_ssize_t>CHECKED, job.n - start)
        load_weights(job, start, n, samples, classes, weight)
        for i in range(n):
            add(&total, weight[i])
    return evaluate(&total)


cdef double rows_that_count(const Job* job) noexcept nogil:
    """Rows of a sigmoid loss with an element that is not masked."""
    cdef double value[CHECKED]
    cdef Py_ssize_t row, start, i, n
    cdef double rows = 0
    cdef bint any
    for row in range(job.n // job.outputs):
        any = False
        for start from 0 <= start < job.outputs by CHECKED:
            n = min(<Py_ssize_t>CHECKED, job.outputs - start)
            load_flat(&job.keep, row * job.outputs + start, n, value)
            for i in range(n):
                any |= value[i] != 0
        rows += any
    return rows


cdef double divisor_of(const Job* job, int reduction, bint rowwise) noexcept nogil:
    """What the sum of the losses is divided by; 0 where nothing counts."""
    if reduction == REDUCE_MEAN:
        if rowwise:
            return weight_total(job, True, True) if job.weighted else job.n
        return weight_total(job, False, False) if job.masked else job.n
    if reduction == REDUCE_BATCHMEAN:
        if rowwise:
            return weight_total(job, False, False) if job.masked or job.ignoring else job.n
        if job.n == 0:
            return 0
        return rows_that_count(job) if job.masked else job.n / job.outputs
    return 1


cdef bint counted_in_range(Job* job, double top, bint whole) noexcept nogil:
    """`in_range` for the targets of rows (elements) that count; notes whether any has the ignored index."""
    cdef double target[CHECKED]
    cdef double kept[CHECKED]
    cdef Py_ssize_t start, i, n
    for i in range(CHECKED):
        kept[i] = 1
    for start from 0 <= start < job.n by CHECKED:
        n = min(<Py_ssize_t>CHECKED, job.n - start)
        load_flat(&job.t, start, n, target)
        if job.masked:
            load_flat(&job.keep, start, n, kept)
        for i in range(n):
            if kept[i] == 0:
                continue
            if whole and job.o.ignores and target[i] == job.o.ignore:
                job.ignoring = True
            elif not (target[i] >= 0 and target[i] <= top) or (whole and target[i] != <double><int64_t>target[i]):
                return False
    return True


cdef bint counted_rows_in_range(const Job* job, const Operand* op, double top, bint targets) noexcept nogil:
    """The same for all classes of the rows that count: of `targets`, of which NaN is none and which a
    weight of 0 does not excuse, or of activations."""
    cdef double counted[CHECKED]
    cdef Py_ssize_t offset[CHECKED]
    cdef double value[CHECKED]
    cdef Py_ssize_t start, at, i, c, n, m
    for start from 0 <= start < job.n by CHECKED:
        n = min(<Py_ssize_t>CHECKED, job.n - start)
        load_weights(job, start, n, not targets, False, counted)
        row_offsets(op, start, n, offset)
        for i in range(n):
            if counted[i] == 0:
                continue
            for at from 0 <= at < job.k by CHECKED:
                m = min(<Py_ssize_t>CHECKED, job.k - at)
                gather(op.data + offset[i] + at * op.inner, op.kind, op.inner, m, value)
                for c in range(m):
                    if value[c] < 0 or value[c] > top or (targets and value[c] != value[c]):
                        return False
    return True


cdef bint targets_in_range(Job* job, np.ndarray targets, bint rowwise) noexcept:
    cdef Operand every
    cdef double top = job.k - 1 if job.hard else DOUBLE_MAX if rowwise else 1
    cdef bint may_ignore = job.hard and job.o.ignores and 0 <= job.o.ignore <= top
    if not job.masked and not may_ignore:
        bind(&every, targets, job.t.kind, np.PyArray_NDIM(targets))
        if in_range(&every, np.PyArray_SIZE(targets), top, job.hard):
            return True
        if not job.hard:
            return False
    if rowwise and not job.hard:
        return counted_rows_in_range(job, &job.t, top, True)
    return counted_in_range(job, top, job.hard)


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
    if job.o.class_weight != NULL and job.o.class_weights != job.outputs:
        return None
    if job.o.positive_weight != NULL and not job.o.positive_shared and job.o.positive_weights != job.outputs:
        return None
    job.n = np.PyArray_SIZE(logits) // job.k
    job.want = want
    job.block = max(1, BLOCK_ITEMS // job.k)
    if job.block > GROUP:
        job.block -= job.block % GROUP
    job.loss = job.lse = job.entropy = job.predicted = NULL
    job.value_kind = np.NPY_DOUBLE if kind == np.NPY_DOUBLE else np.NPY_FLOAT
    job.general = options.general or want & (WANT_PRODUCT | WANT_TARGET_GRAD | WANT_STATS) != 0
    # sums of products of either sign lose digits
    job.precise = options.precise or want & (WANT_PRODUCT | WANT_TARGET_GRAD) != 0
    job.ignoring = False
    job.fills = probabilities is not None
    bind(&job.x, logits, kind, lead)
    bind(&job.t, targets, element_kind(targets), lead)
    job.masked = mask is not None
    if job.masked:
        if not plain_array(mask, logits, lead) or np.PyArray_TYPE(mask) != np.NPY_BOOL:
            return None
        bind(&job.keep, mask, np.NPY_UINT8, lead)
    job.weights = weight is not None
    if job.weights:
        if not plain_array(weight, logits, lead):
            return None
        bind(&job.w, weight, element_kind(weight), lead)
        if not in_range(&job.w, job.n, DOUBLE_MAX, False):
            return None
    job.weighted = job.weights or job.masked or job.o.class_weight != NULL
    if not targets_in_range(&job, targets, rowwise):
        return None
    job.weighted = job.weighted or job.ignoring
    if job.o.probabilities:
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
    if job.fills:
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


cdef inline void store_value(char* values, int kind, Py_ssize_t at, double value) noexcept nogil:
    if kind == np.NPY_FLOAT:
        (<float*>values)[at] = <float>value
    else:
        (<double*>values)[at] = value

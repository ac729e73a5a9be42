# A job: what a kernel is to do with which arrays.
#
# uses _math: PyArrayObject
# uses _operand: Operand PyArray_DIMS PyArray_NDIM PyArray_SIZE bind element_kind
# uses _options: Settings
# uses _sums: GROUP Sum

cdef extern from "sl_columns.h":
    enum: SL_PLAIN
    enum: SL_COMPENSATED
    enum: SL_BRIEF

cdef enum:
    BLOCK_ITEMS = 32768     # logits per block: a block is the unit of partial sums and of threads

cdef struct Job:
    # x, t, w, mask: logits, targets, weights, mask; g, h: gradient (or what else has its shape) and
    # Hessian diagonal; v: vector; p: probabilities. Softmax losses bind them as rows, sigmoid losses
    # element by element.
    Operand x
    Operand t
    Operand w
    Operand mask
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
    bint has_weight         # is w bound?
    bint masked             # is mask bound?
    bint ignoring           # may a row's target be the ignored index?
    bint any_weight         # may a row's weight differ from 1?
    bint extreme            # are weights or divisor so far from 1 that products with them leave float64?
    bint signed_            # may a weight be negative?
    int exponent            # of the power of two by which weights and divisor are divided, where extreme
    bint hard               # targets are class indices
    bint has_options        # not for a kernel of the plain loss
    bint indexed            # class indices whose rows need no more than the sum of the others' exponentials
    bint in_float64         # computed in float64 whatever the logits' type
    int how                 # exponentials are computed that no products are made of, see sl_columns_of.h
    bint wants_probabilities    # is p bound?
    bint streams            # are logits and gradient contiguous rows of one type, and many?
    int halvings            # from the size of the arithmetic's numbers to that of theirs
    int want
    Py_ssize_t n
    Py_ssize_t k
    Py_ssize_t outputs      # length of the axis of the outputs, rows of a softmax loss
    Py_ssize_t inner        # elements of a sigmoid loss from one output to the next
    Py_ssize_t block        # rows (elements) per block
    double logit_scale      # logits are multiplied by it when they are loaded ...
    double exponent_scale   # ... or in the exponent: one of both is 1
    double target_max       # targets that are no class indices lie between 0 and this
    double divisor
    void* call              # of which `stopped` asks; NULL while the GIL is held


# One kernel: rows (elements) start ... stop - 1 of a job, whose weighted losses it adds to the sum.
# The last argument is the thread's scratch memory, aligned to a cache line.
ctypedef void (*Kernel32)(const Job*, Py_ssize_t, Py_ssize_t, Sum*, float*) noexcept nogil
ctypedef void (*Kernel64)(const Job*, Py_ssize_t, Py_ssize_t, Sum*, double*) noexcept nogil

cdef struct Kernel:
    Kernel32 single
    Kernel64 double


@cython.final
@cython.auto_pickle(False)
cdef class LossKernel:
    """The kernel of a loss, as an object that its class finds by the stem; `loss_kernel` alone makes usable
    ones."""

    cdef Kernel functions
    cdef readonly bint rowwise      # has it a loss for each row, or for each element?


cdef LossKernel loss_kernel(Kernel32 single, Kernel64 double_, bint rowwise):
    cdef LossKernel kernel = LossKernel.__new__(LossKernel)
    kernel.functions.single = single
    kernel.functions.double = double_
    kernel.rowwise = rowwise
    return kernel


cdef void open_job(Job* job, PyArrayObject* x, int axis) noexcept:
    """Bind the logits as rows along an axis that is not empty, or one by one (NO_AXIS)."""
    cdef int kind = element_kind(x)
    job.o = &PLAIN
    job.k = PyArray_DIMS(x)[axis] if axis < PyArray_NDIM(x) else 1
    job.n = PyArray_SIZE(x) // job.k
    job.outputs = job.k
    job.inner = 1
    job.block = max(1, BLOCK_ITEMS // job.k)
    if job.block > GROUP:
        job.block -= job.block % GROUP
    job.want = 0
    job.divisor = job.logit_scale = job.exponent_scale = 1
    job.loss = job.lse = job.entropy = job.predicted = NULL
    job.call = NULL
    job.value_kind = np.NPY_DOUBLE if kind == np.NPY_DOUBLE else np.NPY_FLOAT
    job.has_weight = job.masked = job.ignoring = job.any_weight = job.hard = False
    job.extreme = job.signed_ = False
    job.exponent = 0
    job.how = SL_PLAIN
    job.has_options = job.indexed = job.in_float64 = job.wants_probabilities = job.streams = False
    bind(&job.x, x, kind, axis)

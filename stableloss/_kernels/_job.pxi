# A job: what a kernel is to do with which arrays.
#
# uses _operand: Operand
# uses _options: Settings
# uses _sums: Sum

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
    bint hard               # targets are class indices
    bint has_options        # not for a kernel of the plain loss
    bint in_float64         # computed in float64 whatever the logits' type
    bint wants_probabilities    # is p bound?
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

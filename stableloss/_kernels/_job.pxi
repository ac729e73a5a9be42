# A job: what a kernel is to do with which arrays.

cdef enum:
    BLOCK_ITEMS = 32768     # logits per block: a block is the unit of partial sums and of threads

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
    void* call              # of which `stopped` asks; NULL while the GIL is held


# One kernel: rows (elements) start ... stop - 1 of a job, whose weighted losses it adds to the sum.
# The last argument is the thread's scratch memory, aligned to a cache line.
ctypedef void (*Kernel32)(const Job*, Py_ssize_t, Py_ssize_t, Sum*, float*) noexcept nogil
ctypedef void (*Kernel64)(const Job*, Py_ssize_t, Py_ssize_t, Sum*, double*) noexcept nogil

cdef struct Kernel:
    Kernel32 single
    Kernel64 double

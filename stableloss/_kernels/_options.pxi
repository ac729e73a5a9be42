# What can be asked of a call, and the options of a loss as numbers.
#
# uses _math: SL_INFINITY

cdef enum:
    WANT_LOSS = 1
    WANT_GRAD = 2
    WANT_HESS = 4
    WANT_PRODUCT = 8        # Hessian times a vector
    WANT_TARGET_GRAD = 16
    WANT_STATS = 32

cdef enum:
    REDUCE_NONE = 0
    REDUCE_SUM = 1
    REDUCE_MEAN = 2
    REDUCE_BATCHMEAN = 3

# Weights and divisors between these and their inverses leave room for their products with results, in
# float32 (a sample's, a class's and the positive term's weight, and a divisor) and in float64. A sample's
# weight below 1 takes no digit from a result that has any, and may be as small as a divisor.
cdef double ORDINARY_SINGLE = 1048576.0                 # 2**20
cdef double ORDINARY_DIVISOR = 1152921504606846976.0    # 2**60
cdef double ORDINARY_DOUBLE = 1.6069380442589903e60     # 2**200


cdef struct Settings:
    # The options of a loss as numbers; the comment names the value that takes no part.
    double logit_clip               # inf
    double logit_scale              # 1
    double softcap                  # 0
    double label_smoothing          # 0
    double focal_gamma              # 0: of -log a ...
    double focal_gamma_negative     # 0: ... and of -log(1 - a)
    double z_loss                   # 0
    double positive                 # 1: factor of -log a ...
    double negative                 # 1: ... and of -log(1 - a)
    bint has_ignore_index           # False: has it a class index whose rows do not count?
    double ignore_index
    const double* class_weight      # NULL: one per class or output
    const double* pos_weight        # NULL: one per output
    Py_ssize_t n_class_weight
    Py_ssize_t n_pos_weight
    bint pos_weight_shared          # one for all outputs
    bint from_probabilities         # the logits are given as activations
    bint flushes                    # False: are results below the smallest normal number 0?


cdef void set_neutral(Settings* o) noexcept:
    """The settings of a loss without options."""
    memset(o, 0, sizeof(Settings))
    o.logit_clip = SL_INFINITY
    o.logit_scale = o.positive = o.negative = 1


cdef Settings PLAIN
set_neutral(&PLAIN)

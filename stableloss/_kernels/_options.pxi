# The options of a loss as numbers, and what can be asked of a call.
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

cdef struct Settings:
    # The options of a loss as numbers; the comment names the value that takes no part.
    double logit_clip               # inf
    double logit_scale              # 1
    double softcap                  # 0
    double label_smoothing          # 0
    double focal_gamma              # 0
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


@cython.final
cdef class Options:
    """The options of a loss, checked by its class, in the form that kernels read."""

    cdef Settings settings
    cdef int reduction
    cdef bint has_options           # beyond what the kernels for plain losses do
    cdef bint in_float64            # float32 logits are computed in float64
    cdef object weights

    def __init__(self, int reduction, *, double clip=SL_INFINITY, double scale=1, double cap=0, double smoothing=0,
                 double focal=0, double z_loss=0, double positive=1, double negative=1, object ignore=None,
                 np.ndarray class_weight=None, np.ndarray positive_weight=None, bint positive_shared=False,
                 bint probabilities=False):
        cdef Settings* o = &self.settings
        self.reduction = reduction
        o.logit_clip = clip
        o.logit_scale = scale
        o.softcap = cap
        o.label_smoothing = smoothing
        o.focal_gamma = focal
        o.z_loss = z_loss
        o.positive = positive
        o.negative = negative
        o.has_ignore_index = ignore is not None
        o.ignore_index = ignore if o.has_ignore_index else 0
        o.from_probabilities = probabilities
        o.pos_weight_shared = positive_shared
        o.class_weight = o.pos_weight = NULL
        o.n_class_weight = o.n_pos_weight = 0
        self.weights = class_weight, positive_weight
        if class_weight is not None:
            o.class_weight = <const double*>np.PyArray_DATA(class_weight)
            o.n_class_weight = np.PyArray_SIZE(class_weight)
        if positive_weight is not None:
            o.pos_weight = <const double*>np.PyArray_DATA(positive_weight)
            o.n_pos_weight = np.PyArray_SIZE(positive_weight)
        # The rounding of a scaled or bent logit, or of a logarithm that is raised to a power, would be
        # many ulps of the result; float64 has the digits to spare.
        self.in_float64 = scale != 1 or cap != 0 or focal != 0 or probabilities
        self.has_options = (self.in_float64 or smoothing != 0 or z_loss != 0 or positive != 1 or negative != 1
                        or positive_weight is not None)

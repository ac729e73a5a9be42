# What the kernels know of a loss: its kernel, and its options in the form that kernels read.
#
# uses _job: LossKernel
# uses _operand: NO_AXIS
# uses _options: ORDINARY_DOUBLE ORDINARY_SINGLE REDUCE_BATCHMEAN REDUCE_MEAN REDUCE_NONE REDUCE_SUM Settings
# uses _options: set_neutral

cdef extern from "Python.h":
    object PyDictProxy_New(object)

REDUCTIONS = {"none": REDUCE_NONE, "sum": REDUCE_SUM, "mean": REDUCE_MEAN, "batchmean": REDUCE_BATCHMEAN}


cdef int read_number(dict options, str name, double* number) except -1:
    """An option as a number; left as it is where the option is None or another loss's."""
    value = options.get(name)
    if value is not None:
        number[0] = value
    return 0


cdef np.ndarray doubles(tuple numbers):
    cdef np.npy_intp length = len(numbers), i
    cdef np.ndarray array = np.PyArray_EMPTY(1, &length, np.NPY_DOUBLE, 0)
    for i in range(length):
        (<double*>np.PyArray_DATA(array))[i] = numbers[i]
    return array


cdef int bounded_axis(object axis) except -9999:
    """An axis as a C integer; one that no array has stays such."""
    return max(<object>-NO_AXIS - 1, min(<object>NO_AXIS, axis))


cdef bint all_between(np.ndarray weights, double low, double high) noexcept:
    """Whether all weights but 0 are."""
    cdef const double* w = <const double*>np.PyArray_DATA(weights)
    cdef Py_ssize_t i
    for i in range(np.PyArray_SIZE(weights)):
        if w[i] != 0 and not low <= w[i] <= high:
            return False
    return True


@cython.auto_pickle(False)
cdef class Loss:
    """What the kernels know of a loss; the classes of losses.py derive from it. It is configured once."""

    cdef Settings settings
    cdef LossKernel kernel                # None until the loss is configured
    cdef object options                 # read-only, by their names
    cdef np.ndarray class_weight        # the memory of the settings'
    cdef np.ndarray pos_weight
    cdef tuple masked_labels            # ignored labels that the kernels do not look for, or None
    cdef double target_max              # targets that are no class indices lie between 0 and this
    cdef bint has_statistics            # are its activations probabilities?
    cdef bint rowwise                   # a loss for each row, or for each element?
    cdef int axis
    cdef int reduction
    cdef bint has_options               # beyond what the kernels for plain losses do
    cdef bint in_tiles                  # class indices need more than the sum of the others' exponentials
    cdef bint in_float64                # float32 logits are computed in float64
    cdef bint scales_exponents          # the plain kernel for class indices can take the scale of logits
    cdef bint wide_weights              # a weight of a class is one that products in float32 may not hold
    cdef bint extreme_weights           # likewise in float64

    @property
    def _options(self):
        self.require_configured()
        return self.options

    def _set(
        self, LossKernel kernel not None, dict options not None, double target_max, bint flushes=False
    ):
        """Take over options that the class has checked."""
        if self.kernel is not None:
            raise AttributeError(f"{type(self).__name__} is immutable: its options cannot be set again")
        if kernel.functions.single == NULL:
            raise TypeError("a kernel that was not made by the kernels")
        self.reduction = REDUCTIONS[options["reduction"]]
        self.rowwise = kernel.rowwise
        self.target_max = target_max
        self.has_statistics = kernel.rowwise or target_max <= 1
        self.axis = -1
        if "axis" in options:
            self.axis = bounded_axis(options["axis"])
        self.set_numbers(options)
        self.settings.flushes = flushes
        self.set_weights(options)
        self.set_ignore_index(options.get("ignore_index"))
        # The rounding of a scaled or bent logit, or of a logarithm that is raised to a power, would be
        # many ulps of the result; float64 has the digits to spare.
        self.scales_exponents = self.rowwise and self.settings.softcap == 0 and (
            1 / ORDINARY_SINGLE <= self.settings.logit_scale <= ORDINARY_SINGLE)
        self.in_float64 = (not self.scales_exponents and self.settings.logit_scale != 1
                           or self.settings.softcap != 0
                           or self.settings.focal_gamma != 0 or self.settings.focal_gamma_negative != 0
                           or (self.settings.from_probabilities and not kernel.rowwise))
        self.in_tiles = self.settings.z_loss != 0 and (
            self.settings.class_weight != NULL or self.settings.focal_gamma != 0
        ) or self.settings.label_smoothing != 0 and (
            self.settings.class_weight != NULL or self.settings.focal_gamma != 0
            or self.settings.z_loss != 0 or self.settings.softcap != 0 or self.settings.from_probabilities)
        self.has_options = (self.in_float64 or self.in_tiles or self.settings.from_probabilities
                            or self.settings.z_loss != 0
                            or self.settings.label_smoothing != 0
                            or self.settings.positive != 1 or self.settings.negative != 1
                            or self.settings.pos_weight != NULL)
        self.options = PyDictProxy_New(options)
        self.kernel = kernel

    cdef int require_configured(self) except -1:
        if self.kernel is None:
            raise AttributeError(f"{type(self).__name__} has no options: its __init__ has not been called")
        return 0

    cdef int set_numbers(self, dict options) except -1:
        cdef Settings* o = &self.settings
        set_neutral(o)
        read_number(options, "logit_clip", &o.logit_clip)
        read_number(options, "logit_scale", &o.logit_scale)
        read_number(options, "softcap", &o.softcap)
        read_number(options, "label_smoothing", &o.label_smoothing)
        gamma = options.get("focal_gamma", 0)
        o.focal_gamma, o.focal_gamma_negative = gamma if isinstance(gamma, tuple) else (gamma, gamma)
        read_number(options, "z_loss", &o.z_loss)
        o.from_probabilities = bool(options.get("from_probabilities"))
        if options.get("focal_alpha") is not None:
            o.positive = options["focal_alpha"]
            o.negative = 1 - o.positive
        return 0

    cdef int set_weights(self, dict options) except -1:
        cdef Settings* o = &self.settings
        weight = options.get("class_weight")
        if weight is not None:
            self.class_weight = doubles(weight)
            o.class_weight = <const double*>np.PyArray_DATA(self.class_weight)
            o.n_class_weight = np.PyArray_SIZE(self.class_weight)
        weight = options.get("pos_weight")
        if weight is not None:
            o.pos_weight_shared = not isinstance(weight, tuple)
            self.pos_weight = doubles((weight,) if o.pos_weight_shared else weight)
            o.pos_weight = <const double*>np.PyArray_DATA(self.pos_weight)
            o.n_pos_weight = np.PyArray_SIZE(self.pos_weight)
        for array in (self.class_weight, self.pos_weight):
            if array is not None:
                self.wide_weights |= not all_between(array, 1 / ORDINARY_SINGLE, ORDINARY_SINGLE)
                self.extreme_weights |= not all_between(array, 1 / ORDINARY_DOUBLE, ORDINARY_DOUBLE)
        return 0

    cdef int set_ignore_index(self, object index) except -1:
        if index is None:
            return 0
        if not self.rowwise or isinstance(index, tuple):
            self.masked_labels = index if isinstance(index, tuple) else (index,)
        # labels are compared as float64, which holds every integer up to 2**53
        elif -2**53 < index < 2**53:
            self.settings.has_ignore_index = True
            self.settings.ignore_index = index
        else:
            self.masked_labels = (index,)
        return 0

# One call of a loss or an activation, from Python to a job and back.
#
# Arguments are converted first: that may run code of the caller's (`__array__`, `__float__`), which may
# change or resize any array. Then memory is allocated, and arrays are checked and bound: from there until the
# kernel has returned no line of Python runs in this thread but handlers of signals, so that what was checked
# is what is read and written.
#
# uses _blocks: run sl_default_environment sl_restore_environment
# uses _checks: DOUBLE_MAX NO_EXPONENT activations_in_range counted_in_range counted_rows_in_range
# uses _checks: find_divisor in_range largest_exponent mark_counted targets_in_range weights_in_range
# uses _job: Job SL_BRIEF SL_COMPENSATED open_job
# uses _loss: Loss bounded_axis
# uses _math: PyArrayObject PyObject Py_INCREF Py_XDECREF
# uses _operand: MAX_DIMS NO_AXIS Operand PyArray_BYTES PyArray_DIMS PyArray_ISALIGNED PyArray_ISNOTSWAPPED
# uses _operand: PyArray_ISWRITEABLE PyArray_ITEMSIZE PyArray_NDIM PyArray_SIZE PyArray_TYPE bind bind_weights
# uses _operand: disjoint element_kind empty_like empty_per_row gather is_floating load_flat one_per_row
# uses _operand: prefix_of_rows row_offsets same_memory same_shape
# uses _options: ORDINARY_DIVISOR ORDINARY_DOUBLE ORDINARY_SINGLE REDUCE_MEAN REDUCE_NONE Settings WANT_GRAD
# uses _options: WANT_HESS WANT_LOSS WANT_PRODUCT WANT_STATS WANT_TARGET_GRAD
# uses _sums: Sum quotient
# uses _weights: drops_by_class frexp ldexp load_weights

from stableloss._arrays import (
    Stats, index, mask_array, multiply_by_power, over_axes, place_of, real_array, refuse_axis,
    refuse_denominator, refuse_missing, refuse_shapes, refuse_total, refuse_value, refuse_weights,
    require_denominator, require_out, rounded_to_bounds, sign_hint, without_labels,
)

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int*) except? -1

from libc.math cimport NAN


# ---- arguments ------------------------------------------------------------------------------------

cdef double python_number(object value) noexcept:
    """A Python float, or an integer of at most 64 bits; NaN for anything else."""
    cdef int overflow = 0
    cdef double number
    if type(value) is float:
        return value
    if type(value) is not int:
        return NAN
    number = <double>PyLong_AsLongLongAndOverflow(value, &overflow)
    return NAN if overflow else number


cdef np.ndarray listed_numbers(object value):
    """A list or tuple of Python integers and floats as an array, in a fifth of the time that numpy takes for
    a short one; None where anything else is in it."""
    cdef np.npy_intp length = len(value), i = 0
    cdef bint integers = length > 0
    cdef int overflow = 0
    cdef char* to
    cdef np.ndarray array
    for item in value:
        if type(item) is float:
            integers = False
        elif type(item) is not int:
            return None
    array = np.PyArray_EMPTY(1, &length, np.NPY_INT64 if integers else np.NPY_DOUBLE, 0)
    to = np.PyArray_BYTES(array)
    for item in value:
        if i == length:
            return None
        if integers:
            (<int64_t*>to)[i] = PyLong_AsLongLongAndOverflow(item, &overflow)
        else:
            (<double*>to)[i] = python_number(item)
            overflow = type(item) is int and (<double*>to)[i] != (<double*>to)[i]
        if overflow:
            return None
        i += 1
    return array if i == length else None


cdef np.ndarray readable(object value, str name):
    """A plain array of real numbers that the kernels can read."""
    cdef np.ndarray array
    if np.PyArray_CheckExact(value) and element_kind(<PyArrayObject*>value) >= 0:
        return <np.ndarray>value
    array = None
    if type(value) is list or type(value) is tuple:
        array = listed_numbers(value)
    elif np.PyArray_IsAnyScalar(value):
        array = np.PyArray_FROM_O(value)
    if array is not None and element_kind(<PyArrayObject*>array) >= 0:
        return array
    return real_array(value, name)


cdef np.ndarray floating(np.ndarray array):
    """The same as floating point: integers and bool as float64, in the memory order that they have."""
    return array if is_floating(element_kind(<PyArrayObject*>array)) else array.astype("d")


def weights(str name, value):
    """Weights of classes or outputs as a tuple of floats."""
    cdef Operand op
    cdef np.ndarray numbers
    cdef np.ndarray array = readable(value, name)
    cdef np.npy_intp length = np.PyArray_SIZE(array)
    cdef Py_ssize_t place
    if np.PyArray_NDIM(array) != 1 or length == 0:
        refuse_weights((<object>array).shape, name)
    numbers = np.PyArray_EMPTY(1, &length, np.NPY_DOUBLE, 0)
    bind(&op, <PyArrayObject*>array, element_kind(<PyArrayObject*>array), NO_AXIS)
    load_flat(&op, 0, length, <double*>np.PyArray_DATA(numbers))
    bind(&op, <PyArrayObject*>numbers, np.NPY_DOUBLE, NO_AXIS)
    if not in_range(&op, length, DOUBLE_MAX, False):
        place = 0
        while in_range(&op, place + 1, DOUBLE_MAX, False):
            place += 1
        refuse_value(array, (place,), name, "not a non-negative finite number")
    return tuple(numbers.tolist())


cdef np.ndarray readable_mask(object value):
    if np.PyArray_CheckExact(value) and element_kind(<PyArrayObject*>value) == np.NPY_BOOL:
        return value
    return mask_array(value)


cdef int axis_of(object axis) except -9999:
    return bounded_axis(axis if type(axis) is int else index("axis", axis))


cdef inline int counted_axis(PyArrayObject* array, int axis) noexcept:
    """An axis counted from the first; NO_AXIS or beyond where the array does not have it."""
    cdef int ndim = PyArray_NDIM(array)
    if axis < 0:
        axis += ndim
    return axis if 0 <= axis < ndim else NO_AXIS


# the memory of all elements of an array that `shaped` makes
cdef double ELEMENT = 0


cdef np.ndarray shaped(object shape, int kind):
    """An array of a shape that takes no memory, in the place of logits that are not looked at."""
    cdef np.npy_intp lengths[MAX_DIMS]
    cdef np.npy_intp strides[MAX_DIMS]
    cdef Py_ssize_t length
    cdef int ndim = 0
    try:
        for length in shape:
            if length < 0:
                raise ValueError(f"shape is {shape!r}, which has a negative length")
            if ndim == MAX_DIMS:
                raise ValueError(f"shape is {shape!r}, which has more than {MAX_DIMS} dimensions")
            lengths[ndim] = length
            strides[ndim] = 0
            ndim += 1
    except TypeError:
        raise TypeError(f"shape must be that of the logits, a tuple of integers, not {shape!r}") from None
    return np.PyArray_New(np.ndarray, ndim, lengths, kind, strides, &ELEMENT, 0, 0, None)


# ---- results --------------------------------------------------------------------------------------

cdef bint wider(PyArrayObject* out, PyArrayObject* x) noexcept:
    """Whether out can take unrounded what is computed of half-precision logits."""
    cdef int kind = PyArray_TYPE(out)
    return (kind == np.NPY_FLOAT or kind == np.NPY_DOUBLE) and PyArray_ITEMSIZE(x) == 2


cdef bint writable_like(PyArrayObject* out, PyArrayObject* x) noexcept:
    return (PyArray_TYPE(out) == PyArray_TYPE(x) and PyArray_ISWRITEABLE(out)
            and PyArray_ISNOTSWAPPED(out))


cdef np.ndarray plain_output(object out, PyArrayObject* x, str name):
    """`out` as a plain array of the type and shape of x."""
    cdef PyArrayObject* plain = <PyArrayObject*>out
    if np.PyArray_CheckExact(out) and writable_like(plain, x) and same_shape(plain, x):
        return <np.ndarray>out
    return require_out(out, (<object>x).shape, (<object>x).dtype, name, True)


cdef object returned(PyArrayObject* result):
    """A result as numpy returns it: a scalar where it has no dimension."""
    return <object>result if PyArray_NDIM(result) else (<object>result)[()]


cdef object delivered(object out, PyArrayObject* result):
    """`out`, which is to hold a result; the result itself, where it is None."""
    cdef np.ndarray plain
    if out is None or <PyArrayObject*>out == result:
        return <object>result
    plain = np.PyArray_FROM_OF(out, np.NPY_ARRAY_ENSUREARRAY)
    if not same_memory(<PyArrayObject*>plain, result):
        np.PyArray_CopyInto(plain, <np.ndarray>result)
    return out


cdef object object_of(PyArrayObject* array):
    return None if array == NULL else <object>array


cdef void keep(PyArrayObject** place, np.ndarray array) noexcept:
    """Own an array in the place of the one that was there, if any."""
    cdef PyArrayObject* before = place[0]
    Py_INCREF(array)
    place[0] = <PyArrayObject*>array
    Py_XDECREF(<PyObject*>before)


# ---- statistics -----------------------------------------------------------------------------------

cdef Py_ssize_t first_largest(const char* row, const Operand* op, Py_ssize_t k) noexcept nogil:
    """The class of the largest target, the first of several."""
    cdef double value[CHECKED]
    cdef double best = -1
    cdef Py_ssize_t start, n, c, place = 0
    for start from 0 <= start < k by CHECKED:
        n = min(<Py_ssize_t>CHECKED, k - start)
        gather(row + start * op.inner, op.kind, op.inner, n, value)
        for c in range(n):
            if value[c] > best:
                best = value[c]
                place = start + c
    return place


cdef bint is_number(const Job* job, Py_ssize_t row) noexcept nogil:
    """Whether a row has a normaliser: a prediction from NaN is none."""
    if job.value_kind == np.NPY_DOUBLE:
        return (<double*>job.lse)[row] == (<double*>job.lse)[row]
    return (<float*>job.lse)[row] == (<float*>job.lse)[row]


cdef Py_ssize_t correct_rows(const Job* job) noexcept nogil:
    """Rows that count and whose prediction is the target; -1 is predicted where a row does not count."""
    cdef const int64_t* predicted = <const int64_t*>job.predicted
    cdef double target[CHECKED]
    cdef Py_ssize_t offset[CHECKED]
    cdef Py_ssize_t start, n, i, correct = 0
    for start from 0 <= start < job.n by CHECKED:
        n = min(<Py_ssize_t>CHECKED, job.n - start)
        if job.hard:
            load_flat(&job.t, start, n, target)
        else:
            row_offsets(&job.t, start, n, offset)
            for i in range(n):
                target[i] = first_largest(job.t.data + offset[i], &job.t, job.k)
        for i in range(n):
            correct += (predicted[start + i] >= 0 and predicted[start + i] == target[i]
                        and is_number(job, start + i))
    return correct


cdef Py_ssize_t correct_elements(const Job* job) noexcept nogil:
    """Elements that count and of which prediction and target are on the same side of 1/2."""
    cdef double target[CHECKED]
    cdef double weight[CHECKED]
    cdef Py_ssize_t start, n, i, correct = 0
    for start from 0 <= start < job.n by CHECKED:
        n = min(<Py_ssize_t>CHECKED, job.n - start)
        load_flat(&job.t, start, n, target)
        load_weights(job, start, n, True, NULL, weight)
        for i in range(n):
            correct += (weight[i] != 0 and job.predicted[start + i] == (target[i] > 0.5)
                        and is_number(job, start + i))
    return correct


# ---- values out of range --------------------------------------------------------------------------
# A call finds out that some value is out of range; only then, where the first one is.

cdef enum:
    FIT = 0
    UNFIT_WEIGHT = 1
    UNFIT_TARGET = 2
    UNFIT_ACTIVATION = 3


cdef bint values_fit(Job* job, int what) except -1:
    """Whether values of the rows that count are in range."""
    if what == UNFIT_WEIGHT:
        return weights_in_range(job, 1 / ORDINARY_DOUBLE, ORDINARY_DOUBLE)
    if what == UNFIT_ACTIVATION:
        return counted_rows_in_range(job, &job.x, 1, False)
    if job.hard:
        return counted_in_range(job, job.k - 1, True)
    return counted_rows_in_range(job, &job.t, min(job.target_max, DOUBLE_MAX), True)


cdef Py_ssize_t first_unfit_row(const Job* job, int what) except -1:
    cdef Job part = job[0]
    cdef Py_ssize_t fit = 0, unfit = job.n
    while unfit - fit > 1:
        part.n = fit + (unfit - fit) // 2
        if values_fit(&part, what):
            fit = part.n
        else:
            unfit = part.n
    return fit


cdef Py_ssize_t first_unfit_class(const Job* job, int what, Py_ssize_t row) except -1:
    """Of a row before which all fit; 0 where it has a single value."""
    cdef Job part = job[0]
    cdef Py_ssize_t fit = 0, unfit = 1
    if what == UNFIT_ACTIVATION or (what == UNFIT_TARGET and not job.hard):
        unfit = job.k
    part.n = row + 1
    while unfit - fit > 1:
        part.k = fit + (unfit - fit) // 2
        if values_fit(&part, what):
            fit = part.k
        else:
            unfit = part.k
    return fit


cdef enum:
    # Factors from a row's exponentials to its results are down to 2**-230 of the results' own factor: one
    # that is smaller than 2**-400 is left out, and its power of two multiplied in at the end.
    FAR_BELOW_1 = 400


cdef enum:
    BRIEF_GAMMA = 64        # focusing exponent up to which it multiplies an error of 2**-34 by less than 2**6
    SINGLE_GAMMA = 2        # and that of float32 exponentials, with what they lack, to no more than 4 ulp


# ---- losses ---------------------------------------------------------------------------------------

@cython.final
@cython.no_gc
@cython.freelist(8)
@cython.auto_pickle(False)
cdef class Call:
    """A call of a loss: its arguments as arrays, and its results. It keeps their memory alive, and lasts as
    long as the default floating-point environment is in force."""

    cdef sl_environment environment     # the caller's
    cdef Loss loss
    cdef int want
    cdef bint in_shards             # the rows are those of all classes, of which a shard has some
    cdef int axis
    cdef bint integer_logits
    cdef double divisor             # -1: the reduction's; 0: nothing is to count
    cdef object denominator         # as it was given
    cdef double value               # the loss, where it is reduced
    # each owned (see `keep`), or NULL
    cdef PyArrayObject* logits
    cdef PyArrayObject* targets
    cdef PyArrayObject* weight
    cdef PyArrayObject* mask
    cdef PyArrayObject* vector
    cdef PyArrayObject* grad        # or what else has its shape
    cdef PyArrayObject* hess
    cdef PyArrayObject* probabilities
    cdef PyArrayObject* losses
    cdef PyArrayObject* predicted
    cdef PyArrayObject* lse
    cdef PyArrayObject* entropy
    cdef Py_ssize_t correct
    cdef bint rounded               # whether targets were, to their bounds
    cdef int missing                # power of two by which the results are divided in the end

    def __cinit__(self):
        self.environment = sl_default_environment()

    def __dealloc__(self):
        sl_restore_environment(self.environment)
        Py_XDECREF(<PyObject*>self.logits)
        Py_XDECREF(<PyObject*>self.targets)
        Py_XDECREF(<PyObject*>self.weight)
        Py_XDECREF(<PyObject*>self.mask)
        Py_XDECREF(<PyObject*>self.vector)
        Py_XDECREF(<PyObject*>self.grad)
        Py_XDECREF(<PyObject*>self.hess)
        Py_XDECREF(<PyObject*>self.probabilities)
        Py_XDECREF(<PyObject*>self.losses)
        Py_XDECREF(<PyObject*>self.predicted)
        Py_XDECREF(<PyObject*>self.lse)
        Py_XDECREF(<PyObject*>self.entropy)

    cdef int set_divisor(self, object denominator) except -1:
        self.divisor = -1
        if denominator is None:
            return 0
        self.denominator = denominator
        self.divisor = python_number(denominator)
        if not (self.loss.reduction >= REDUCE_MEAN and 0 <= self.divisor <= DOUBLE_MAX):
            self.divisor = require_denominator(denominator, self.loss.options["reduction"])
        return 0

    cdef int convert(self, object logits, object targets, object weight, object mask) except -1:
        keep(&self.logits, readable(logits, "logits"))
        self.integer_logits = not is_floating(element_kind(self.logits))
        if self.integer_logits:
            keep(&self.logits, floating(<np.ndarray>self.logits))
        keep(&self.targets, readable(targets, "targets"))
        if weight is not None:
            keep(&self.weight, readable(weight, "sample_weight"))
        if mask is not None:
            keep(&self.mask, readable_mask(mask))
        if self.loss.masked_labels is not None and not (
                self.loss.rowwise and PyArray_NDIM(self.targets) == PyArray_NDIM(self.logits)):
            keep(&self.mask, without_labels(self.loss, <object>self.targets, object_of(self.mask)))
        return 0

    # Nothing below runs Python before the kernel has returned, but what raises an error, and handlers of
    # signals.

    cdef bint may_write(self, PyArrayObject* out, bint over_logits) noexcept:
        """Whether the kernel disturbs no input where it writes a result to `out`."""
        return (PyArray_ISALIGNED(out) and disjoint(out, self.targets)
                and (disjoint(out, self.logits) or (over_logits and same_memory(out, self.logits)))
                and (self.weight == NULL or disjoint(out, self.weight))
                and (self.mask == NULL or disjoint(out, self.mask))
                and (self.vector == NULL or disjoint(out, self.vector)))

    cdef int place(self, PyArrayObject** result, bint over_logits) except -1:
        """Let the kernel write a result to memory of its own where it may not to the caller's, or there is
        none."""
        if result[0] == NULL:
            keep(result, empty_like(self.logits))
        elif not self.may_write(result[0], over_logits):
            keep(result, empty_like(result[0]))
        return 0

    cdef int place_values(self, PyArrayObject** result, int kind) except -1:
        """Likewise what has a number for each row or, for a loss by element, for each element."""
        keep(result, empty_per_row(self.logits, self.axis if self.loss.rowwise else NO_AXIS, kind))
        return 0

    cdef int allocate(self) except -1:
        cdef int value_kind = np.NPY_DOUBLE if PyArray_TYPE(self.logits) == np.NPY_DOUBLE else np.NPY_FLOAT
        if self.want & (WANT_GRAD | WANT_PRODUCT | WANT_TARGET_GRAD):
            self.place(&self.grad, True)
        if self.want & WANT_HESS:
            # the Hessian of a row is written before the gradient is computed
            self.place(&self.hess, not self.loss.rowwise)
        if self.probabilities != NULL:
            self.place(&self.probabilities, False)
        if self.want & WANT_LOSS and self.loss.reduction == REDUCE_NONE:
            self.place_values(&self.losses, value_kind)
        if self.want & WANT_STATS:
            self.place_values(&self.predicted, np.NPY_INT64 if self.loss.rowwise else np.NPY_BOOL)
            self.place_values(&self.lse, value_kind)
            self.place_values(&self.entropy, value_kind)
        return 0

    cdef bint weights_fit(self, PyArrayObject* weight) noexcept:
        """Whether weights or a mask have a number for each row or, for a loss by element, for each
        element."""
        return (weight == NULL or prefix_of_rows(weight, self.logits, self.axis)
                or one_per_row(weight, self.logits, self.axis)
                or (not self.loss.rowwise and same_shape(weight, self.logits)))

    cdef bint output_fits(self, PyArrayObject* out) noexcept:
        return out == NULL or (same_shape(out, self.logits) and (
            writable_like(out, self.logits)
            or (wider(out, self.logits) and PyArray_ISWRITEABLE(out) and PyArray_ISNOTSWAPPED(out))))

    cdef bint shapes_fit(self, const Job* job) noexcept:
        cdef const Settings* o = job.o
        if job.hard and (self.want & WANT_TARGET_GRAD
                         or not one_per_row(self.targets, self.logits, self.axis)):
            return False
        if not job.hard and not same_shape(self.targets, self.logits):
            return False
        if not (self.weights_fit(self.weight) and self.weights_fit(self.mask)):
            return False
        if self.vector != NULL and not same_shape(self.vector, self.logits):
            return False
        if not (self.output_fits(self.grad) and self.output_fits(self.hess)
                and self.output_fits(self.probabilities)):
            return False
        return ((o.class_weight == NULL or self.outputs_fit(job, o.n_class_weight))
                and (o.pos_weight == NULL or o.pos_weight_shared or self.outputs_fit(job, o.n_pos_weight)))

    cdef bint outputs_fit(self, const Job* job, Py_ssize_t weights) noexcept:
        """A number for each class or output, or the one output of logits without an axis of outputs."""
        return weights == job.outputs or (
            weights == 1 and not self.loss.rowwise and PyArray_NDIM(self.logits) == 1)

    cdef void bind_results(self, Job* job, int axis) noexcept:
        if self.grad != NULL:
            bind(&job.g, self.grad, element_kind(self.grad), axis)
        if self.hess != NULL:
            bind(&job.h, self.hess, element_kind(self.hess), axis)
        if self.probabilities != NULL:
            job.wants_probabilities = True
            bind(&job.p, self.probabilities, element_kind(self.probabilities), axis)
        if self.losses != NULL:
            job.loss = PyArray_BYTES(self.losses)
        if self.predicted != NULL:
            job.predicted = PyArray_BYTES(self.predicted)
            job.lse = PyArray_BYTES(self.lse)
            job.entropy = PyArray_BYTES(self.entropy)

    cdef void choose_way(self, Job* job) noexcept:
        """Whether rows have to go through tiles, in which type, and where logits are scaled."""
        cdef Loss loss = self.loss
        cdef int values = WANT_PRODUCT | WANT_TARGET_GRAD | WANT_STATS
        job.has_options = loss.has_options or self.want & values != 0
        job.indexed = job.hard and not loss.in_tiles and not self.want & (
            values | (WANT_HESS if job.has_options else 0))
        # the share that label smoothing gives to a class is known to the whole of them
        job.indexed = job.indexed and not (self.in_shards and loss.settings.label_smoothing != 0)
        if loss.scales_exponents and job.indexed and not self.want & WANT_HESS:
            job.exponent_scale = loss.settings.logit_scale
        else:
            job.logit_scale = loss.settings.logit_scale
            job.has_options = job.has_options or job.logit_scale != 1
            job.indexed = job.indexed and (job.logit_scale == 1 or loss.settings.softcap != 0)
        # sums of products of either sign lose digits
        job.in_float64 = (loss.in_float64 or job.logit_scale != 1
                          or self.want & (WANT_PRODUCT | WANT_TARGET_GRAD) != 0
                          or (loss.wide_weights and not job.indexed))
        # float64 is there for an option that multiplies errors, not for digits that sums would lose
        if (job.in_float64 and job.value_kind == np.NPY_FLOAT
                and not self.want & (WANT_PRODUCT | WANT_TARGET_GRAD) and not loss.wide_weights):
            if self.focuses_singles(job):
                job.in_float64 = False
                job.how = SL_COMPENSATED
            elif max(loss.settings.focal_gamma, loss.settings.focal_gamma_negative) <= BRIEF_GAMMA:
                job.how = SL_BRIEF

    cdef bint focuses_singles(self, const Job* job) noexcept:
        """Whether focusing is all that asks for more digits than float32's, and is gentle enough for them
        together with what the exponentials lack."""
        cdef const Settings* o = job.o
        return (0 < o.focal_gamma <= SINGLE_GAMMA and job.indexed and o.softcap == 0 and o.logit_scale == 1
                and not o.from_probabilities)

    cdef bint describe(self, Job* job) noexcept:
        """Describe the call to the kernel; False where the arrays do not fit each other."""
        cdef PyArrayObject* x = self.logits
        cdef bint rowwise = self.loss.rowwise
        cdef int d, ndim = PyArray_NDIM(x)
        cdef int axis = self.axis if rowwise else NO_AXIS
        if rowwise and (self.axis == NO_AXIS or PyArray_DIMS(x)[self.axis] == 0):
            return False
        if self.axis == NO_AXIS and self.loss.axis != -1:
            return False
        open_job(job, x, axis)
        job.o = &self.loss.settings
        job.want = self.want
        job.outputs = PyArray_DIMS(x)[self.axis] if self.axis < ndim else 1
        if not rowwise and self.loss.axis != -1:
            for d in range(self.axis + 1, ndim):
                job.inner *= max(<Py_ssize_t>1, PyArray_DIMS(x)[d])
        job.hard = rowwise and PyArray_NDIM(self.targets) == ndim - 1
        job.target_max = self.loss.target_max
        self.choose_way(job)
        if not self.shapes_fit(job):
            return False
        bind(&job.t, self.targets, element_kind(self.targets), NO_AXIS if job.hard else axis)
        job.has_weight = self.weight != NULL
        if job.has_weight:
            bind_weights(&job.w, self.weight, x, self.axis, rowwise)
        job.masked = self.mask != NULL
        if job.masked:
            bind_weights(&job.mask, self.mask, x, self.axis, rowwise)
        if self.vector != NULL:
            bind(&job.v, self.vector, element_kind(self.vector), axis)
        self.bind_results(job, axis)
        return True

    cdef int unfit_values(self, Job* job) except -1:
        """Which values of rows that count are out of range, if any; notes whether rows may be ignored."""
        cdef Operand every
        cdef bint rowwise = self.loss.rowwise
        cdef bint single = not rowwise and PyArray_TYPE(self.logits) != np.NPY_DOUBLE
        job.extreme = self.loss.extreme_weights
        if job.has_weight and not weights_in_range(
                job, 1 / (ORDINARY_DIVISOR if single else ORDINARY_DOUBLE),
                ORDINARY_SINGLE if single else ORDINARY_DOUBLE):
            return UNFIT_WEIGHT
        job.any_weight = job.has_weight or job.masked or job.o.class_weight != NULL
        if not targets_in_range(job, self.targets, rowwise):
            return UNFIT_TARGET
        job.any_weight = job.any_weight or job.ignoring
        if not (job.o.from_probabilities and self.want):
            return FIT
        bind(&every, self.logits, job.x.kind, NO_AXIS)
        if activations_in_range(&every, PyArray_SIZE(self.logits)) or values_fit(job, UNFIT_ACTIVATION):
            return FIT
        return UNFIT_ACTIVATION

    cdef bint round_to_bounds(self) except -1:
        """Take what rounding has carried over its bound for the bound; whether anything was."""
        cdef np.ndarray targets = None
        cdef np.ndarray logits = None
        if not (self.loss.rowwise and PyArray_NDIM(self.targets) < PyArray_NDIM(self.logits)):
            targets = rounded_to_bounds(<object>self.targets, self.loss.target_max)
        if self.loss.settings.from_probabilities:
            logits = rounded_to_bounds(<object>self.logits, 1)
        if targets is not None:
            keep(&self.targets, targets)
        if logits is not None:
            keep(&self.logits, logits)
        return targets is not None or logits is not None

    cdef int set_total(self, Job* job, int reduction) except -1:
        """What a mean divides by, with weights far from 1 over a power of two as they are; 0 where nothing
        counts."""
        cdef int largest
        if job.extreme and self.loss.rowwise and reduction == REDUCE_MEAN:
            largest = largest_exponent(job)
            job.exponent = 0 if largest == NO_EXPONENT else largest
        return find_divisor(job, reduction, self.loss.rowwise)

    cdef int set_job_divisor(self, Job* job) except -1:
        """What the sum is divided by; with weights far from 1, weights and divisor over one power of two."""
        cdef int exponent
        cdef int largest
        if self.divisor > 0:
            job.divisor = self.divisor
            if job.extreme or not 1 / ORDINARY_DIVISOR <= self.divisor <= ORDINARY_DIVISOR:
                job.extreme = job.any_weight = True
                job.divisor = frexp(self.divisor, &exponent)
                largest = largest_exponent(job) if self.loss.rowwise and exponent > FAR_BELOW_1 else exponent
                if largest != NO_EXPONENT and exponent - largest > FAR_BELOW_1:
                    self.missing = exponent - largest
                job.exponent = exponent - self.missing
        elif self.loss.reduction >= REDUCE_MEAN and not self.want & WANT_HESS:
            self.set_total(job, self.loss.reduction)
            if job.signed_ and not job.divisor > 0 and largest_exponent(job) != NO_EXPONENT:
                refuse_total(job.divisor, job.exponent)
            if self.divisor == 0 and job.divisor != 0:
                refuse_denominator(self.denominator, ldexp(job.divisor, job.exponent))
            if job.divisor == 0:
                job.divisor = 1     # nothing counts: the loss is 0, the gradient 0 (or empty)
        if job.extreme and not self.loss.rowwise:
            job.in_float64 = True
        return 0

    cdef int refuse(self, const Job* job, int unfit) except -1:
        """Raise the error that says which value is out of range."""
        cdef Py_ssize_t row = first_unfit_row(job, unfit)
        cdef Py_ssize_t c = first_unfit_class(job, unfit, row)
        cdef np.ndarray array = <np.ndarray>self.logits
        shape = (<object>array).shape
        demand = "not a non-negative finite number" if job.target_max > 1 else "not in [0, 1]"
        if self.loss.rowwise:
            place = place_of(row, shape[:self.axis] + shape[self.axis + 1:])
            place = place[:self.axis] + (c,) + place[self.axis:]
        else:
            place = place_of(row, shape)
        if unfit == UNFIT_ACTIVATION:
            refuse_value(array, place, "probability", "not in [0, 1] (from_probabilities=True)")
        array = <np.ndarray>(self.weight if unfit == UNFIT_WEIGHT else self.targets)
        if np.PyArray_NDIM(array) < len(shape):
            place = place[:self.axis] + place[self.axis + 1:]
        if unfit == UNFIT_WEIGHT:
            refuse_value(array, place[:np.PyArray_NDIM(array)], "sample_weight", "not a finite number")
        if job.hard:
            demand = f"not a whole number from 0 to {job.k - 1} ({job.k} classes)"
            refuse_value(array, place, "class index", demand + (sign_hint(array, "//") if job.k == 2 else ""))
        if self.loss.rowwise:
            refuse_value(array, place, "target probability", demand)
        refuse_value(array, place, "target", demand + (sign_hint(array, "/") if job.target_max == 1 else ""))
        return 0

    cdef int refuse_arrays(self, bint by_targets, bint integer_logits) except -1:
        """Raise the error that says why the arrays do not fit each other."""
        refuse_shapes(self.loss, <object>self.logits, <object>self.targets, object_of(self.weight),
                      object_of(self.mask), object_of(self.vector), by_targets, integer_logits)
        return 0

    # an error that finds no memory for itself can get lost: no function below returns a number beside it
    cdef int open(self, Job* job) except -1:
        """Describe the call to the kernel, having allocated what it needs, or refuse it."""
        cdef int unfit
        self.axis = counted_axis(self.logits, self.loss.axis)
        self.allocate()
        if not self.describe(job):
            self.refuse_arrays(self.want & WANT_TARGET_GRAD != 0, self.integer_logits)
        unfit = self.unfit_values(job)
        self.rounded = unfit != FIT and self.round_to_bounds()
        if self.rounded:
            # numpy has run: everything is looked at again
            if not self.describe(job):
                self.refuse_arrays(False, False)
            unfit = self.unfit_values(job)
        if unfit:
            self.refuse(job, unfit)
        return 0

    cdef int compute(self) except -1:
        """Run the kernel."""
        cdef Job job
        cdef Sum total
        self.open(&job)
        self.set_job_divisor(&job)
        run(&job, &self.loss.kernel.functions, &total)
        self.value = quotient(&total, job.divisor)
        if self.missing:
            if self.grad != NULL:
                multiply_by_power(<object>self.grad, -self.missing)
            self.value = ldexp(self.value, -self.missing)
        if self.want & WANT_STATS:
            # before a result is copied to where the targets are
            with nogil:
                self.correct = correct_rows(&job) if self.loss.rowwise else correct_elements(&job)
        return 0

    cdef int compute_divisor(self) except -1:
        """What the reduction divides by, or "mean" where it does not divide; 0 where nothing counts."""
        cdef Job job
        self.open(&job)
        self.set_total(&job, max(self.loss.reduction, REDUCE_MEAN))
        self.value = ldexp(job.divisor, job.exponent)
        return 0

    cdef np.ndarray marked(self, Job* job, bint classes):
        """For each row whether it counts, with the weight of its class index or without; None where all
        do."""
        cdef np.npy_intp rows = job.n if self.loss.rowwise else job.n // job.outputs
        cdef np.ndarray marks = np.PyArray_EMPTY(1, &rows, np.NPY_BOOL, 0)
        if mark_counted(job, self.loss.rowwise, classes, <uint8_t*>np.PyArray_DATA(marks)):
            return None
        return marks

    cdef tuple survey(self):
        """What a mean divides by, and whether that has to be positive; which rows count, for loss and
        gradient and for statistics (None: all); whether the targets are rounded to their bounds."""
        cdef Job job
        self.open(&job)
        self.set_total(&job, max(self.loss.reduction, REDUCE_MEAN))
        total = ldexp(job.divisor, job.exponent)
        signed_ = job.signed_ and largest_exponent(&job) != NO_EXPONENT
        if not job.any_weight or job.n == 0:
            return total, signed_, None, None, self.rounded
        measured = self.marked(&job, False)
        counts = self.marked(&job, True) if drops_by_class(&job) else measured
        return total, signed_, counts, measured, self.rounded

    cdef int write_to(self, PyArrayObject** result, object out, str name) except -1:
        """Let a result go to an array of the caller's, if there is one."""
        if out is not None:
            keep(result, plain_output(out, self.logits, name))
        return 0

    cdef object run(self, object out, object hess, object probabilities):
        """The results; `out`, `hess` and `probabilities` are the caller's arrays for them, or None."""
        self.write_to(&self.grad, out, "out")
        self.write_to(&self.hess, hess, "out")
        self.write_to(&self.probabilities, probabilities, "probabilities")
        if self.grad != NULL and self.hess != NULL and not disjoint(self.grad, self.hess):
            raise ValueError("out shares memory with another array to write to")
        if self.grad != NULL and self.probabilities != NULL and not disjoint(self.grad, self.probabilities):
            raise ValueError("probabilities shares memory with another array to write to")
        self.compute()
        value = self.value if self.losses == NULL else returned(self.losses)
        if self.want & WANT_STATS:
            if probabilities is not None:
                delivered(probabilities, self.probabilities)
            stats = Stats(<object>self.predicted, self.correct, <object>self.lse, <object>self.entropy,
                          probabilities)
        if self.want & WANT_HESS:
            return delivered(out, self.grad), delivered(hess, self.hess)
        if not self.want & WANT_LOSS:
            return delivered(out, self.grad)
        if self.want & WANT_GRAD:
            grad = delivered(out, self.grad)
            return (value, grad, stats) if self.want & WANT_STATS else (value, grad)
        return (value, stats) if self.want & WANT_STATS else value


cdef Call open_call(
    Loss loss, int want, object logits, object targets, object weight, object mask, object denominator
):
    """A call with the arguments that all have."""
    cdef Call call
    loss.require_configured()
    if want & WANT_STATS and not loss.has_statistics:
        raise ValueError(f"{type(loss).__name__} has no statistics: its activations are no probabilities")
    call = Call.__new__(Call)
    call.loss = loss
    call.want = want
    call.set_divisor(denominator)
    call.convert(logits, targets, weight, mask)
    return call


cdef int statistics_wanted(bint with_stats, object probabilities) except -1:
    if probabilities is not None and not with_stats:
        raise ValueError("probabilities is filled only with with_stats=True")
    return WANT_STATS if with_stats else 0


# The methods of losses.py, where they are declared and described. What is required has a default, `...`: of
# what is missing, Cython would not say more than how many arguments there have to be.

def value(
    Loss self not None, logits=..., targets=..., *, sample_weight=None, mask=None, denominator=None,
    bint with_stats=False, probabilities=None,
):
    cdef int want = WANT_LOSS | statistics_wanted(with_stats, probabilities)
    cdef Call call
    if logits is ... or targets is ...:
        refuse_missing(self, "__call__", logits=logits, targets=targets)
    call = open_call(self, want, logits, targets, sample_weight, mask, denominator)
    return call.run(None, None, probabilities)


def value_and_grad(
    Loss self not None, logits=..., targets=..., *, sample_weight=None, mask=None, denominator=None,
    out=None, bint with_stats=False, probabilities=None,
):
    cdef int want = WANT_LOSS | WANT_GRAD | statistics_wanted(with_stats, probabilities)
    cdef Call call
    if logits is ... or targets is ...:
        refuse_missing(self, "value_and_grad", logits=logits, targets=targets)
    call = open_call(self, want, logits, targets, sample_weight, mask, denominator)
    return call.run(out, None, probabilities)


def divisor(Loss self not None, shape=..., targets=..., *, sample_weight=None, mask=None):
    cdef Call call
    if shape is ... or targets is ...:
        refuse_missing(self, "divisor", shape=shape, targets=targets)
    call = open_call(self, 0, shaped(shape, np.NPY_FLOAT), targets, sample_weight, mask, None)
    call.compute_divisor()
    return call.value


def survey(Loss self not None, shape, targets, sample_weight, mask):
    """Of logits of a shape, what linear.py goes by (see Call.survey); arguments that do not fit are
    refused."""
    return open_call(self, 0, shaped(shape, np.NPY_FLOAT), targets, sample_weight, mask, None).survey()


def grad_and_hess(Loss self not None, logits=..., targets=..., *, sample_weight=None, mask=None, out=None):
    cdef Call call
    grad = hess = None
    if logits is ... or targets is ...:
        refuse_missing(self, "grad_and_hess", logits=logits, targets=targets)
    if out is not None:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise TypeError(f"out must be a pair of arrays, not {type(out).__name__}")
        grad, hess = out
    call = open_call(self, WANT_GRAD | WANT_HESS, logits, targets, sample_weight, mask, None)
    return call.run(grad, hess, None)


def hessian_vector_product(
    Loss self not None, logits=..., targets=..., v=..., *, sample_weight=None, mask=None, denominator=None,
    out=None,
):
    cdef Call call
    if logits is ... or targets is ... or v is ...:
        refuse_missing(self, "hessian_vector_product", logits=logits, targets=targets, v=v)
    call = open_call(self, WANT_PRODUCT, logits, targets, sample_weight, mask, denominator)
    keep(&call.vector, readable(v, "v"))
    return call.run(out, None, None)


def target_grad(
    Loss self not None, logits=..., targets=..., *, sample_weight=None, mask=None, denominator=None,
    out=None,
):
    cdef Call call
    if logits is ... or targets is ...:
        refuse_missing(self, "target_grad", logits=logits, targets=targets)
    call = open_call(self, WANT_TARGET_GRAD, logits, targets, sample_weight, mask, denominator)
    return call.run(out, None, None)

# Calls for a shard of the classes, from Python to a job and back; their arithmetic is in _shards.pxi.
#
# A call is opened as one for all the classes, with an array of no memory in the place of their logits: so
# targets, weights and divisor are checked and found as ever. Then the shard's logits take that array's place.
#
# uses _blocks: SL_LEVEL Summand sl_default_environment sl_flush_subnormals sum_blocks
# uses _call: Call UNFIT_TARGET counted_axis delivered floating keep multiply_by_power plain_output readable
# uses _call: refuse_missing returned rounded_to_bounds shaped
# uses _checks: targets_in_range
# uses _job: Job
# uses _loss: Loss
# uses _math: PyArrayObject PyObject Py_XDECREF
# uses _operand: NO_AXIS PyArray_DIMS PyArray_NDIM PyArray_TYPE bind element_kind same_shape
# uses _options: REDUCE_MEAN WANT_GRAD WANT_LOSS
# uses _shards: INDEX_REST INDEX_SQUARES PART_CLASSES PART_FIRST PART_HEAD PART_PEAK PART_PEAKED_HEAD
# uses _shards: PART_STOP PART_WIDTH Shard TILE_LOSS finish_rows part_of_rows
# uses _sums: PIECE Sum clear_sum quotient
# uses _weights: ldexp

from stableloss._arrays import require_rows
from stableloss.shards import Part, inputs_of, refuse_option

cdef void run_parts(const void* context, Py_ssize_t block, void* scratch, Sum* part) noexcept nogil:
    cdef const Shard* shard = <const Shard*>context
    cdef Py_ssize_t start = block * shard.job.block
    cdef Py_ssize_t stop = min(start + shard.job.block, shard.job.n)
    if shard.job.in_float64 or shard.job.x.kind == np.NPY_DOUBLE:
        part_of_rows(shard, start, stop, <double*>scratch)
    else:
        part_of_rows(shard, start, stop, <float*>scratch)


cdef void run_finish(const void* context, Py_ssize_t block, void* scratch, Sum* part) noexcept nogil:
    cdef const Shard* shard = <const Shard*>context
    cdef Py_ssize_t start = block * shard.job.block
    cdef Py_ssize_t stop = min(start + shard.job.block, shard.job.n)
    if shard.job.o.flushes:
        sl_flush_subnormals()
    if shard.job.in_float64 or shard.job.x.kind == np.NPY_DOUBLE:
        finish_rows(shard, start, stop, part, <double*>scratch)
    else:
        finish_rows(shard, start, stop, part, <float*>scratch)
    if shard.job.o.flushes:
        sl_default_environment()


cdef int run_shard(Shard* shard, Summand summand, Sum* total) except -1:
    """All rows of a shard, in blocks as large as those of the whole: losses are added in the same order."""
    cdef Job* job = &shard.job
    cdef Py_ssize_t blocks = (job.n + job.block - 1) // job.block
    cdef int column = 2 + (1 if job.in_float64 or job.x.kind == np.NPY_DOUBLE else 0)
    clear_sum(total)
    if blocks == 0:
        return 0
    return sum_blocks(
        summand, shard, &job.call, blocks, <double>job.n * job.k * COST[SL_LEVEL][column], total)


cdef class ShardCall:
    """A call for a shard: its arguments as arrays, and the shard as the kernels know it."""

    cdef Shard shard
    cdef Call call                  # for all the classes
    # owned, or NULL
    cdef PyArrayObject* logits      # of the shard
    cdef PyArrayObject* targets     # class indices, or the shard's own
    cdef PyArrayObject* maximum
    cdef int axis

    def __dealloc__(self):
        Py_XDECREF(<PyObject*>self.logits)
        Py_XDECREF(<PyObject*>self.targets)
        Py_XDECREF(<PyObject*>self.maximum)

    cdef int convert(self, Loss loss, object logits, object targets, object maximum) except -1:
        keep(&self.logits, floating(readable(logits, "logits")))
        keep(&self.targets, readable(targets, "targets"))
        self.shard.quadratic = loss._quadratic
        self.axis = counted_axis(self.logits, loss.axis)
        shape = (<object>self.logits).shape
        if self.axis == NO_AXIS:
            raise ValueError(f"logits of shape {shape} have no axis {loss.axis}")
        if maximum is not None:
            maximum = readable(maximum, "maximum")
            keep(&self.maximum, require_rows(maximum, <object>self.logits, self.axis, "maximum"))
        dense = PyArray_NDIM(self.targets) >= PyArray_NDIM(self.logits)
        if dense and not same_shape(self.targets, self.logits):
            given = (<object>self.targets).shape
            raise ValueError(
                f"targets have shape {given} where the shard's logits have {shape}: pass the shard's targets")
        return 0

    cdef int open_call(
        self, Loss loss, Py_ssize_t n_classes, object weight, object mask, object denominator
    ) except -1:
        cdef Call call = Call.__new__(Call)
        self.call = call
        call.loss = loss
        call.want = WANT_LOSS
        call.in_shards = True
        call.set_divisor(denominator)
        shape = list((<object>self.logits).shape)
        shape[self.axis] = n_classes
        everything = shaped(shape, PyArray_TYPE(self.logits))
        soft = PyArray_NDIM(self.targets) == PyArray_NDIM(self.logits)
        call.convert(everything, everything if soft else <object>self.targets, weight, mask)
        return 0

    cdef int open(self, Py_ssize_t first, bint finishing) except -1:
        """Check what is asked for, and describe the shard to its kernels."""
        cdef Call call = self.call
        cdef Loss loss = call.loss
        cdef Shard* shard = &self.shard
        call.open(&shard.whole)
        if finishing:
            call.set_job_divisor(&shard.whole)
        else:
            # weights far from 1 are to count for the same as in the end
            call.set_total(&shard.whole, REDUCE_MEAN)
        shard.first = first
        shard.settings = loss.settings
        if shard.settings.class_weight != NULL:
            shard.settings.class_weight += first
        self.set_job()
        shard.width = piece_width(shard)
        shard.head = PART_PEAKED_HEAD if shard.quadratic and shard.job.indexed else PART_HEAD
        shard.has_maximum = self.maximum != NULL
        if shard.has_maximum:
            bind(&shard.maximum, self.maximum, element_kind(self.maximum), NO_AXIS)
        return 0

    cdef int set_job(self) except -1:
        cdef Shard* shard = &self.shard
        cdef Job* job = &shard.job
        job[0] = shard.whole
        job.k = job.outputs = PyArray_DIMS(self.logits)[self.axis]
        job.o = &shard.settings
        job.call = NULL
        job.streams = False
        shard.pieces = (job.k + PIECE - 1) // PIECE
        bind(&job.x, self.logits, element_kind(self.logits), self.axis)
        if not job.hard and job.k:
            self.check_targets()
        return 0

    cdef int check_targets(self) except -1:
        """Soft targets of the shard."""
        cdef Job* job = &self.shard.job
        cdef np.ndarray rounded
        bind(&job.t, self.targets, element_kind(self.targets), self.axis)
        if targets_in_range(job, self.targets, True):
            return 0
        rounded = rounded_to_bounds(<object>self.targets, job.target_max)
        if rounded is not None:
            keep(&self.targets, rounded)
            bind(&job.t, self.targets, element_kind(self.targets), self.axis)
            if targets_in_range(job, self.targets, True):
                return 0
        keep(&self.call.logits, <np.ndarray>self.logits)
        keep(&self.call.targets, <np.ndarray>self.targets)
        return self.call.refuse(job, UNFIT_TARGET)


cdef int piece_width(const Shard* shard) noexcept:
    if shard.job.indexed:
        return INDEX_SQUARES + 2 if shard.quadratic else INDEX_REST + 2
    if shard.quadratic:
        return QUADRATIC_WIDTH
    return TILE_LOSS + 4 * ((not shard.job.hard) + (shard.job.o.label_smoothing != 0))


cdef ShardCall open_shard(Loss loss, object inputs, object denominator):
    cdef ShardCall call = ShardCall.__new__(ShardCall)
    call.convert(loss, inputs.logits, inputs.targets, inputs.maximum)
    call.open_call(loss, inputs.n_classes, inputs.sample_weight, inputs.mask, denominator)
    return call


def partial(
    Loss self not None, logits=..., targets=..., first_class=..., n_classes=..., *, maximum=None,
    sample_weight=None, mask=None,
):
    cdef ShardCall call
    cdef np.ndarray array
    cdef Sum total
    if logits is ... or targets is ... or first_class is ... or n_classes is ...:
        refuse_missing(self, "partial", logits=logits, targets=targets, first_class=first_class,
                       n_classes=n_classes)
    self.require_configured()
    inputs = inputs_of(self, logits, targets, first_class, n_classes, maximum, sample_weight, mask)
    call = open_shard(self, inputs, None)
    inputs = inputs._replace(logits=<object>call.logits)
    inputs.require_classes(PyArray_DIMS(call.logits)[call.axis])
    refuse_option(self, PyArray_NDIM(call.targets) < PyArray_NDIM(call.logits))
    call.open(inputs.first_class, False)
    array = new_part(&call.shard)
    run_shard(&call.shard, run_parts, &total)
    return Part.of(array, inputs)


cdef np.ndarray new_part(Shard* shard):
    cdef np.npy_intp shape[2]
    cdef np.ndarray array
    cdef double* row
    cdef Py_ssize_t i
    shard.length = shard.head + shard.pieces * shard.width
    shape[0] = shard.job.n
    shape[1] = shard.length
    array = np.PyArray_ZEROS(2, shape, np.NPY_DOUBLE, 0)
    shard.part = <double*>np.PyArray_DATA(array)
    for i in range(shard.job.n):
        row = shard.part + i * shard.length
        row[PART_FIRST] = shard.first
        row[PART_STOP] = shard.first + shard.job.k
        row[PART_CLASSES] = shard.whole.k
        row[PART_WIDTH] = shard.width
        if shard.head == PART_PEAKED_HEAD:
            row[PART_PEAK] = -1
    return array


def finish(Loss self not None, part=..., whole=..., *, denominator=None, out=None):
    cdef ShardCall call
    cdef Call all_classes
    cdef np.ndarray array
    cdef Sum total
    if part is ... or whole is ...:
        refuse_missing(self, "finish", part=part, whole=whole)
    self.require_configured()
    inputs = part.inputs_for(self, whole)
    call = open_shard(self, inputs, denominator)
    all_classes = call.call
    plain = None if out is None else plain_output(out, call.logits, "out")
    call.open(inputs.first_class, True)
    array = whole.array
    call.shard.part = <double*>np.PyArray_DATA(array)
    call.shard.length = np.PyArray_DIMS(array)[1]
    call.shard.job.want = call.shard.whole.want = WANT_LOSS | WANT_GRAD
    keep(&all_classes.logits, <np.ndarray>call.logits)
    keep(&all_classes.targets, <np.ndarray>call.targets)
    if plain is not None:
        keep(&all_classes.grad, plain)
    all_classes.place(&all_classes.grad, True)
    bind(&call.shard.job.g, all_classes.grad, element_kind(all_classes.grad), call.axis)
    run_shard(&call.shard, run_finish, &total)
    all_classes.value = quotient(&total, call.shard.job.divisor)
    if all_classes.missing:
        multiply_by_power(<object>all_classes.grad, -all_classes.missing)
        all_classes.value = ldexp(all_classes.value, -all_classes.missing)
    value = all_classes.value if all_classes.losses == NULL else returned(all_classes.losses)
    return value, delivered(out, all_classes.grad)

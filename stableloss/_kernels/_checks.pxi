# Whether targets, weights and activations are in range, what rows count for, and what a mean divides by.
#
# uses _blocks: SL_PEEK SL_STORE stopped sum_blocks
# uses _job: BLOCK_ITEMS Job
# uses _math: PyArrayObject SL_INFINITY SL_ISFINITE absolute real sl_bits_f64 sl_bits_from_float
# uses _operand: Operand PyArray_NDIM bind gather is_floating row_offsets view_flat
# uses _options: REDUCE_BATCHMEAN REDUCE_MEAN
# uses _sums: Sum add clear_padding clear_sum lane_sum padded quotient
# uses _weights: CHECKED frexp in_line load_class_weights load_classes load_weights mark_kept weighs_classes

# Nanoseconds that a look takes at least, outside the innermost cache: at the bits of an element, by the byte,
# and at one that is read as a float64 first. Found as those of `COST`, level v4.
cdef double LOOK = 0.03
cdef double CONVERTED_LOOK = 0.2

cdef enum:
    # no exponent that the product of two float64 numbers can have, as `frexp` gives them, and the least
    NO_EXPONENT = -1000000
    LEAST_EXPONENT = -2146
    EXPONENTS = 4195

cdef double DOUBLE_MAX = 1.7976931348623157e308


cdef inline float single_within(double top) noexcept nogil:
    """As float32, converted within its range, or the caller would find an overflow flag."""
    return <float>min(top, 3.4028234e38)


cdef bint bits_in_range(const Operand* op, Py_ssize_t start, Py_ssize_t count, double top) noexcept nogil:
    """Whether 0 <= v <= top for elements start ... start + count - 1, told from their bits as unsigned
    numbers, in whose order the numbers from 0 up stand. -0 is missed, and what is not contiguous or has 16
    bits."""
    cdef const char* data = op.data + start * op.stride[0]
    cdef const uint8_t* bytes = <const uint8_t*>data
    cdef const uint32_t* words = <const uint32_t*>data
    cdef const uint64_t* longs = <const uint64_t*>data
    cdef uint8_t byte = 0
    cdef uint32_t word = 0, last_word
    cdef uint64_t signs = 0, last_long
    cdef Py_ssize_t i
    if op.kind == np.NPY_BOOL and top >= 1:
        return True
    if op.ndim != 1 or top < 0:
        return False
    if (op.kind == np.NPY_UINT8 or op.kind == np.NPY_INT8) and op.stride[0] == 1:
        for i in range(count):
            byte = max(byte, bytes[i])
        return byte <= min(top, <double>(127 if op.kind == np.NPY_INT8 else 255))
    if (op.kind == np.NPY_FLOAT or op.kind == np.NPY_INT32 or op.kind == np.NPY_UINT32) and op.stride[0] == 4:
        if op.kind == np.NPY_FLOAT:
            last_word = sl_bits_from_float(single_within(top))
        else:
            last_word = <uint32_t>min(top, <double>(0x7fffffff if op.kind == np.NPY_INT32 else 0xffffffff))
        for i in range(count):
            word = max(word, words[i])
        return word <= last_word
    if (op.kind == np.NPY_DOUBLE or op.kind == np.NPY_INT64) and op.stride[0] == 8:
        last_long = sl_bits_f64(top) if op.kind == np.NPY_DOUBLE else <uint64_t>min(top, 9e18)
        for i in range(count):
            # the sign bit of v, or that of top - v
            signs |= longs[i] | (last_long - longs[i])
        return signs >> 63 == 0
    return False


cdef bint elements_in_range(
    const Operand* op, Py_ssize_t start, Py_ssize_t count, double top, bint whole
) noexcept nogil:
    """Whether 0 <= v <= top for elements start ... start + count - 1, and v is an integer where `whole`."""
    cdef float singles[CHECKED]
    cdef double doubles[CHECKED]
    cdef const float* s
    cdef const double* v
    cdef float top_single = single_within(top)
    cdef Py_ssize_t at, n, i
    cdef int ok = 1
    if not (whole and is_floating(op.kind)) and bits_in_range(op, start, count, top):
        return True
    for at from start <= at < start + count by CHECKED:
        n = min(<Py_ssize_t>CHECKED, start + count - at)
        if op.kind == np.NPY_FLOAT and not whole:
            s = view_flat(op, at, n, singles)
            for i in range(n):
                ok &= (s[i] >= 0) & (s[i] <= top_single)
        else:
            v = view_flat(op, at, n, doubles)
            for i in range(n):
                ok &= (v[i] >= 0) & (v[i] <= top)
            if whole and ok and is_floating(op.kind):
                for i in range(n):
                    ok &= v[i] == <double><int64_t>v[i]
        if not ok:
            return False
    return True


cdef struct Check:
    # A look at `count` elements or rows, in blocks of `block` of them. Whoever comes upon something sets a
    # flag.
    void (*look)(Check*, Py_ssize_t, Py_ssize_t, Sum*) noexcept nogil
    Job* job
    const Operand* op
    Py_ssize_t count
    Py_ssize_t block
    double top
    bint whole              # only integers are in range
    bint targets            # op is of targets: NaN is none, and a weight of 0 does not excuse
    bint samples            # weights to be added up: of samples, of classes
    bint classes
    uint8_t* marks          # one for each row
    int outside             # flag: something that counts is out of range
    int ignoring            # flag: something has the ignored index
    double low              # weights beyond these are extreme
    double high
    int extreme             # flag: a weight is
    int negative            # flag: a weight is
    int* exponents          # flags: a weight has the exponent
    Sum total               # what all that was looked at adds up to


cdef void look_at_block(const void* context, Py_ssize_t block, void* scratch, Sum* part) noexcept nogil:
    cdef Check* check = <Check*>context
    cdef Py_ssize_t start = block * check.block
    if not SL_PEEK(&check.outside):
        check.look(check, start, min(check.block, check.count - start), part)


cdef int look_at_all(Check* check, Py_ssize_t elements, double nanoseconds) except -1:
    """Look at everything, `elements` numbers of so many nanoseconds each. Few are looked at with the GIL
    held."""
    check.outside = check.ignoring = False
    if elements <= BLOCK_ITEMS:
        clear_sum(&check.total)
        check.look(check, 0, check.count, &check.total)
        return 0
    return sum_blocks(look_at_block, check, NULL if check.job == NULL else &check.job.call,
                      (check.count + check.block - 1) // check.block, elements * nanoseconds, &check.total)


cdef void look_for_range(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    if not elements_in_range(check.op, start, count, check.top, check.whole):
        SL_STORE(&check.outside, 1)


cdef inline double time_to_look(const Operand* op) noexcept:
    return LOOK * op.stride[0] if op.ndim == 1 and 0 < op.stride[0] <= 8 else CONVERTED_LOOK


cdef bint in_range(const Operand* op, Py_ssize_t count, double top, bint whole) except -1:
    """Whether 0 <= v <= top for every element v, and v is an integer where `whole`."""
    cdef Check check
    if count <= BLOCK_ITEMS:
        return elements_in_range(op, 0, count, top, whole)
    check.look = look_for_range
    check.job = NULL
    check.op = op
    check.count = count
    check.block = BLOCK_ITEMS
    check.top = top
    check.whole = whole
    look_at_all(&check, count, time_to_look(op))
    return not check.outside


cdef inline void judge_weights(Check* check, const real* w, Py_ssize_t n) noexcept nogil:
    # converted within float32's range, or the caller would find flags
    cdef real low = <real>max(check.low, 1.1754944e-38 if real is float else 0.0)
    cdef real high = <real>min(check.high, 3.4028234e38 if real is float else DOUBLE_MAX)
    cdef real size
    cdef int beyond = 0, negative = 0, undefined = 0
    cdef Py_ssize_t i
    for i in range(n):
        size = absolute(w[i])
        beyond |= (size != 0) & ((size < low) | (size > high) | (size != size))
        negative |= w[i] < 0
    if negative:
        SL_STORE(&check.negative, 1)
    if beyond:
        SL_STORE(&check.extreme, 1)
        for i in range(n):
            undefined |= not absolute(w[i]) < SL_INFINITY
        if undefined:
            SL_STORE(&check.outside, 1)


cdef void look_at_weights(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    cdef float singles[CHECKED]
    cdef double doubles[CHECKED]
    cdef Py_ssize_t at, n
    for at from start <= at < start + count by CHECKED:
        n = min(<Py_ssize_t>CHECKED, start + count - at)
        if check.op.kind == np.NPY_FLOAT:
            judge_weights(check, view_flat(check.op, at, n, singles), n)
        else:
            judge_weights(check, view_flat(check.op, at, n, doubles), n)


cdef Py_ssize_t without_repeats(Operand* op, Py_ssize_t n) noexcept:
    """Leave each number once that the innermost dimension repeats; returns how many that is of n elements."""
    cdef Py_ssize_t length = op.shape[0]
    cdef int d
    if n == 0 or op.ndim == 1 or op.stride[0] != 0:
        return n
    op.ndim -= 1
    for d in range(op.ndim):
        op.shape[d] = op.shape[d + 1]
        op.stride[d] = op.stride[d + 1]
    return (n + length - 1) // length


cdef bint weights_in_range(Job* job, double low, double high) except -1:
    """Whether all sample weights are finite; notes whether any but 0 is not between `low` and `high`, and
    whether any is negative."""
    cdef Check check
    cdef Operand weights = job.w
    check.look = look_at_weights
    check.job = NULL
    check.op = &weights
    check.count = without_repeats(&weights, job.n)
    check.block = BLOCK_ITEMS
    check.low = low
    check.high = high
    check.extreme = check.negative = False
    look_at_all(&check, check.count, CONVERTED_LOOK)
    job.extreme = job.extreme or check.extreme
    job.signed_ = check.negative
    return not check.outside


cdef void look_for_activations(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    cdef double values[CHECKED]
    cdef const double* v
    cdef Py_ssize_t at, n, i
    cdef int outside = 0
    if bits_in_range(check.op, start, count, 1):
        return
    for at from start <= at < start + count by CHECKED:
        n = min(<Py_ssize_t>CHECKED, start + count - at)
        v = view_flat(check.op, at, n, values)
        for i in range(n):
            outside |= (v[i] < 0) | (v[i] > 1)
    if outside:
        SL_STORE(&check.outside, 1)


cdef bint activations_in_range(const Operand* op, Py_ssize_t count) except -1:
    """Whether every element is in [0, 1], or NaN."""
    cdef Check check
    check.look = look_for_activations
    check.job = NULL
    check.op = op
    check.count = count
    check.block = BLOCK_ITEMS
    look_at_all(&check, count, time_to_look(op))
    return not check.outside


cdef void count_kept(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    cdef uint8_t kept[CHECKED]
    cdef Py_ssize_t at, i, n
    cdef int sum_
    for at from start <= at < start + count by CHECKED:
        n = min(<Py_ssize_t>CHECKED, start + count - at)
        mark_kept(check.job, at, n, kept)
        sum_ = 0
        for i in range(n):
            sum_ += kept[i]
        total.hi += sum_


cdef void add_weights(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    cdef double weight[CHECKED]
    cdef double sum_, lo
    cdef Py_ssize_t at, i, n
    for at from start <= at < start + count by CHECKED:
        n = min(<Py_ssize_t>CHECKED, start + count - at)
        load_class_weights(check.job, at, n, check.samples, check.classes, weight)
        clear_padding(weight, n)
        sum_ = lane_sum(<const double*>weight, padded(n), &lo)
        if SL_ISFINITE(sum_):
            add(total, sum_, lo)
        else:
            for i in range(n):
                add(total, weight[i], 0)


cdef int weight_total(Job* job, bint samples, bint classes) except -1:
    """To the job's divisor."""
    cdef Check check
    cdef bint weighted = samples and job.has_weight or classes and weighs_classes(job)
    check.look = add_weights if weighted or job.extreme else count_kept
    check.job = job
    check.count = job.n
    check.block = BLOCK_ITEMS
    check.samples = samples
    check.classes = classes
    look_at_all(&check, job.n, CONVERTED_LOOK)
    job.divisor = quotient(&check.total, 1)
    return 0


cdef void mark_rows(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    cdef double weight[CHECKED]
    cdef Py_ssize_t at, i, n
    for at from start <= at < start + count by CHECKED:
        n = min(<Py_ssize_t>CHECKED, start + count - at)
        load_class_weights(check.job, at, n, check.samples, check.classes, weight)
        for i in range(n):
            check.marks[at + i] = weight[i] != 0
            total.hi += check.marks[at + i]


cdef void look_for_exponents(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    cdef double weight[CHECKED]
    cdef double one[CHECKED]
    cdef Py_ssize_t y[CHECKED]
    cdef const Job* job = check.job
    cdef Py_ssize_t at, i, n
    cdef int exponent, of_class
    cdef bint classes = weighs_classes(job)
    for at from start <= at < start + count by CHECKED:
        n = min(<Py_ssize_t>CHECKED, start + count - at)
        load_weights(job, at, n, True, NULL, weight)
        if classes:
            load_classes(job, at, n, y)
        load_weights(job, at, n, False, y if classes else NULL, one)    # 0 for what does not count
        for i in range(n):
            if weight[i] == 0 or one[i] == 0:
                continue
            frexp(weight[i], &exponent)
            if classes:
                frexp(job.o.class_weight[y[i]], &of_class)
                exponent += of_class
            SL_STORE(&check.exponents[exponent - LEAST_EXPONENT], 1)


cdef int largest_exponent(Job* job) except? -1000001:
    """The exponent of the largest weight of a row; NO_EXPONENT where all are 0."""
    cdef Check check
    cdef int[EXPONENTS] exponents
    cdef int i
    memset(exponents, 0, sizeof(exponents))
    check.look = look_for_exponents
    check.job = job
    check.count = job.n
    check.block = BLOCK_ITEMS
    check.exponents = exponents
    look_at_all(&check, job.n, CONVERTED_LOOK)
    for i in range(EXPONENTS - 1, -1, -1):
        if exponents[i]:
            return i + LEAST_EXPONENT
    return NO_EXPONENT


cdef void count_rows(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    cdef const Job* job = check.job
    cdef double weight[CHECKED]
    cdef Py_ssize_t row, at, i, n
    cdef bint any
    for row in range(start, start + count):
        any = False
        if job.inner > 1:
            at = row // job.inner * job.inner * job.outputs + row % job.inner
            for i in range(job.outputs):
                load_weights(job, at + i * job.inner, 1, check.samples, NULL, weight)
                any |= weight[0] != 0
            if check.marks != NULL:
                check.marks[row] = any
            total.hi += any
            continue
        for at from 0 <= at < job.outputs by CHECKED:
            if at % BLOCK_ITEMS == 0 and stopped(job):
                return
            n = min(<Py_ssize_t>CHECKED, job.outputs - at)
            load_weights(job, row * job.outputs + at, n, check.samples, NULL, weight)
            for i in range(n):
                any |= weight[i] != 0
        if check.marks != NULL:
            check.marks[row] = any
        total.hi += any


cdef int rows_that_count(Job* job) except -1:
    """Rows of a sigmoid loss with an element that is not masked, to the job's divisor."""
    cdef Check check
    check.look = count_rows
    check.job = job
    check.count = job.n // job.outputs
    check.block = max(1, BLOCK_ITEMS // job.outputs)
    check.samples = False
    check.marks = NULL
    look_at_all(&check, job.n, CONVERTED_LOOK)
    job.divisor = check.total.hi
    return 0


cdef int mark_counted(Job* job, bint rowwise, bint classes, uint8_t* marks) except -1:
    """Mark, for each row, whether it has a weight other than 0, or an element that has; `classes`: also of
    its class index. Returns whether all have."""
    cdef Check check
    check.look = mark_rows if rowwise else count_rows
    check.job = job
    check.count = job.n if rowwise else job.n // job.outputs
    check.block = BLOCK_ITEMS if rowwise else max(1, BLOCK_ITEMS // job.outputs)
    check.samples = True
    check.classes = classes
    check.marks = marks
    look_at_all(&check, job.n, CONVERTED_LOOK)
    return check.total.hi == check.count


cdef int find_divisor(Job* job, int reduction, bint rowwise) except -1:
    """What the sum of the losses is divided by, to the job's divisor; 0 where nothing counts."""
    cdef bint batch = reduction == REDUCE_BATCHMEAN
    job.divisor = 1
    if reduction < REDUCE_MEAN:
        return 0
    job.divisor = job.n // job.outputs if batch and not rowwise and job.n else job.n
    if rowwise and (job.masked or job.ignoring if batch else job.any_weight):
        return weight_total(job, not batch, not batch)
    if job.masked and not rowwise and job.n:
        return rows_that_count(job) if batch else weight_total(job, False, False)
    return 0


cdef inline int kept_outside(const real* v, const uint8_t* kept, Py_ssize_t n, real top) noexcept nogil:
    """Whether any number that is kept is not in [0, top]."""
    cdef int outside = 0
    cdef Py_ssize_t i
    for i in range(n):
        outside |= (kept[i] != 0) & (1 - ((v[i] >= 0) & (v[i] <= top)))
    return outside


cdef void look_at_counted(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    cdef const Job* job = check.job
    cdef float single[CHECKED]
    cdef double target[CHECKED]
    cdef uint8_t kept[CHECKED]
    cdef float top = single_within(check.top)
    cdef Py_ssize_t at, n
    cdef int outside
    for at from start <= at < start + count by CHECKED:
        n = min(<Py_ssize_t>CHECKED, start + count - at)
        mark_kept(job, at, n, kept)
        if job.t.kind == np.NPY_FLOAT:
            outside = kept_outside(view_flat(&job.t, at, n, single), kept, n, top)
        else:
            outside = kept_outside(view_flat(&job.t, at, n, target), kept, n, check.top)
        if outside:
            SL_STORE(&check.outside, 1)
            return


cdef void look_at_labels(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    cdef const Job* job = check.job
    cdef double buffer[CHECKED]
    cdef uint8_t kept[CHECKED]
    cdef const int64_t* label
    cdef const double* target
    cdef int64_t last = <int64_t>check.top
    cdef int64_t index = <int64_t>job.o.ignore_index
    # the next whole number to one that is in range is the sum with this, if that is taken off again
    cdef double magic = 4503599627370496.0          # 2**52
    cdef int may_ignore = job.o.has_ignore_index
    cdef int ignoring = 0, outside = 0, missing
    cdef Py_ssize_t at, i, n
    for at from start <= at < start + count by CHECKED:
        n = min(<Py_ssize_t>CHECKED, start + count - at)
        mark_kept(job, at, n, kept)
        if in_line(&job.t, np.NPY_INT64, 8):
            label = <const int64_t*>job.t.data + at
            for i in range(n):
                missing = may_ignore & (label[i] == index)
                ignoring |= kept[i] & missing
                outside |= kept[i] & (1 - missing) & ((label[i] < 0) | (label[i] > last))
        else:
            target = view_flat(&job.t, at, n, buffer)
            for i in range(n):
                missing = may_ignore & (target[i] == job.o.ignore_index)
                ignoring |= kept[i] & missing
                outside |= kept[i] & (1 - missing) & (1 - (
                    (target[i] >= 0) & (target[i] <= check.top) & ((target[i] + magic) - magic == target[i])))
        if ignoring:
            SL_STORE(&check.ignoring, 1)
        if outside:
            SL_STORE(&check.outside, 1)
            return


cdef bint counted_in_range(Job* job, double top, bint labels) except -1:
    """Whether the targets of rows (elements) that count are from 0 to `top`; of labels, also whether they are
    whole, or have the ignored index, which is noted."""
    cdef Check check
    check.look = look_at_labels if labels else look_at_counted
    check.job = job
    check.count = job.n
    check.block = BLOCK_ITEMS
    check.top = top
    look_at_all(&check, job.n, CONVERTED_LOOK)
    job.ignoring = job.ignoring or check.ignoring
    return not check.outside


cdef void look_at_counted_rows(Check* check, Py_ssize_t start, Py_ssize_t count, Sum* total) noexcept nogil:
    cdef const Job* job = check.job
    cdef const Operand* op = check.op
    cdef double counted[CHECKED]
    cdef Py_ssize_t offset[CHECKED]
    cdef double value[CHECKED]
    cdef Py_ssize_t first, at, i, c, n, m
    for first from start <= first < start + count by CHECKED:
        n = min(<Py_ssize_t>CHECKED, start + count - first)
        load_weights(job, first, n, not check.targets, NULL, counted)
        row_offsets(op, first, n, offset)
        for i in range(n):
            if counted[i] == 0:
                continue
            for at from 0 <= at < job.k by CHECKED:
                if at % BLOCK_ITEMS == 0 and stopped(job):
                    return
                m = min(<Py_ssize_t>CHECKED, job.k - at)
                gather(op.data + offset[i] + at * op.inner, op.kind, op.inner, m, value)
                for c in range(m):
                    if value[c] < 0 or value[c] > check.top or (check.targets and value[c] != value[c]):
                        SL_STORE(&check.outside, 1)
                        return


cdef bint counted_rows_in_range(Job* job, const Operand* op, double top, bint targets) except -1:
    """The same for all classes of the rows that count: of `targets`, of which NaN is none and which a
    weight of 0 does not excuse, or of activations."""
    cdef Check check
    check.look = look_at_counted_rows
    check.job = job
    check.op = op
    check.count = job.n
    check.block = job.block
    check.top = top
    check.targets = targets
    look_at_all(&check, job.n * job.k, CONVERTED_LOOK)
    return not check.outside


cdef bint targets_in_range(Job* job, PyArrayObject* targets, bint rowwise) except -1:
    cdef Operand every
    cdef double top = job.k - 1 if job.hard else min(job.target_max, DOUBLE_MAX)
    cdef bint may_ignore = job.hard and job.o.has_ignore_index and 0 <= job.o.ignore_index <= top
    if not may_ignore:
        # what is masked as well: where all are right, the mask need not be looked at
        bind(&every, targets, job.t.kind, PyArray_NDIM(targets))
        if in_range(&every, job.n if job.hard else job.n * job.k, top, job.hard):
            return True
        if not job.hard and not job.masked:
            return False
    if rowwise and not job.hard:
        return counted_rows_in_range(job, &job.t, top, True)
    return counted_in_range(job, top, job.hard)

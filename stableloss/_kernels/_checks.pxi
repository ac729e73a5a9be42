# Whether targets, weights and activations are in range, what rows count for, and what a mean divides by.
#
# uses _job: Job
# uses _math: sl_bits_f64 sl_bits_from_float
# uses _operand: Operand bind gather is_floating load_flat row_offsets view_flat
# uses _options: REDUCE_BATCHMEAN REDUCE_MEAN
# uses _sums: Sum add evaluate
# uses _weights: CHECKED load_weights

cdef double DOUBLE_MAX = 1.7976931348623157e308


cdef bint bits_in_range(const Operand* op, Py_ssize_t count, double top) noexcept nogil:
    """Whether 0 <= v <= top for every element v, told from its bits as an unsigned number, in whose order
    the numbers from 0 up stand. -0 is missed, and what is not contiguous or has 16 bits."""
    cdef const uint8_t* bytes = <const uint8_t*>op.data
    cdef const uint32_t* words = <const uint32_t*>op.data
    cdef const uint64_t* longs = <const uint64_t*>op.data
    cdef uint8_t byte = 0
    cdef uint32_t word = 0, last_word
    cdef uint64_t signs = 0, last_long
    cdef Py_ssize_t i
    if op.ndim != 1 or top < 0:
        return False
    if (op.kind == np.NPY_UINT8 or op.kind == np.NPY_INT8) and op.stride[0] == 1:
        for i in range(count):
            byte = max(byte, bytes[i])
        return byte <= min(top, <double>(127 if op.kind == np.NPY_INT8 else 255))
    if (op.kind == np.NPY_FLOAT or op.kind == np.NPY_INT32 or op.kind == np.NPY_UINT32) and op.stride[0] == 4:
        if op.kind == np.NPY_FLOAT:
            # converted within its range, or the caller would find an overflow flag
            last_word = sl_bits_from_float(<float>min(top, 3.4028234e38))
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


cdef bint in_range(const Operand* op, Py_ssize_t count, double top, bint whole) noexcept nogil:
    """Whether 0 <= v <= top for every element v, and v is an integer where `whole`."""
    cdef float singles[512]
    cdef double doubles[512]
    cdef const float* s
    cdef const double* v
    cdef float top_single
    cdef Py_ssize_t start, n, i
    cdef int ok = 1
    if not (whole and is_floating(op.kind)) and bits_in_range(op, count, top):
        return True
    for start from 0 <= start < count by 512:
        n = min(512, count - start)
        if op.kind == np.NPY_FLOAT and not whole:
            # converted within its range, or the caller would find an overflow flag
            top_single = <float>min(top, 3.4028234e38)
            s = view_flat(op, start, n, singles)
            for i in range(n):
                ok &= (s[i] >= 0) & (s[i] <= top_single)
        else:
            v = view_flat(op, start, n, doubles)
            for i in range(n):
                ok &= (v[i] >= 0) & (v[i] <= top)
            if whole and ok and is_floating(op.kind):
                for i in range(n):
                    ok &= v[i] == <double><int64_t>v[i]
        if not ok:
            return False
    return True


cdef bint activations_in_range(const Operand* op, Py_ssize_t count) noexcept nogil:
    """Whether every element is in [0, 1], or NaN."""
    cdef double values[512]
    cdef const double* v
    cdef Py_ssize_t start, n, i
    cdef int out = 0
    for start from 0 <= start < count by 512:
        n = min(512, count - start)
        v = view_flat(op, start, n, values)
        for i in range(n):
            out |= (v[i] < 0) | (v[i] > 1)
    return out == 0


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
            load_flat(&job.mask, row * job.outputs + start, n, value)
            for i in range(n):
                any |= value[i] != 0
        rows += any
    return rows


cdef double divisor_of(const Job* job, int reduction, bint rowwise) noexcept nogil:
    """What the sum of the losses is divided by; 0 where nothing counts."""
    if reduction == REDUCE_MEAN:
        if rowwise:
            return weight_total(job, True, True) if job.any_weight else job.n
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
            load_flat(&job.mask, start, n, kept)
        for i in range(n):
            if kept[i] == 0:
                continue
            if whole and job.o.has_ignore_index and target[i] == job.o.ignore_index:
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
    cdef bint may_ignore = job.hard and job.o.has_ignore_index and 0 <= job.o.ignore_index <= top
    if not job.masked and not may_ignore:
        bind(&every, targets, job.t.kind, np.PyArray_NDIM(targets))
        if in_range(&every, np.PyArray_SIZE(targets), top, job.hard):
            return True
        if not job.hard:
            return False
    if rowwise and not job.hard:
        return counted_rows_in_range(job, &job.t, top, True)
    return counted_in_range(job, top, job.hard)

# What rows and elements count for, and the classes of rows.
#
# An array of the caller's may change during a call. A label is therefore clamped at each place where it
# becomes an address, however often it has been checked before.
#
# Only a weight over the divisor matters. Where one of the two is far from 1, both are divided by one power of
# two, and a product of weights is formed from mantissas and exponents, so that it is in range wherever that
# quotient is.
#
# uses _job: Job
# uses _math: absolute real sl_from_bits_f64
# uses _operand: Operand load_flat
# uses _sums: CHUNK

from libc.math cimport frexp, ldexp

cdef enum:
    CHECKED = 512           # rows whose weights and targets are looked at together


cdef inline Py_ssize_t class_at(double label, Py_ssize_t k) noexcept nogil:
    """The class of a label; 0 where it is none, NaN included."""
    return <Py_ssize_t>(label if 0 <= label < k else 0)


cdef inline bint in_line(const Operand* op, int kind, Py_ssize_t size) noexcept nogil:
    """Whether elements of that kind, of so many bytes each, follow one another."""
    return op.ndim == 1 and op.kind == kind and op.stride[0] == size


cdef void load_classes(const Job* job, Py_ssize_t start, Py_ssize_t count, Py_ssize_t* y) noexcept nogil:
    """Class indices of rows, at most CHECKED of them; those of rows that do not count, which may be anything,
    as ones in range. They are copied before they are clamped: a compiler may read an array twice, and GCC
    does, once to compare and once to use."""
    cdef double label[CHECKED]
    cdef Py_ssize_t at, j, k = job.k
    if in_line(&job.t, np.NPY_INT64, 8):
        memcpy(y, job.t.data + start * 8, count * 8)
    elif in_line(&job.t, np.NPY_INT32, 4):
        for j in range(count):
            y[j] = (<const int32_t*>job.t.data)[start + j]
    else:
        load_flat(&job.t, start, count, label)
        for j in range(count):
            y[j] = class_at(label[j], k)
    for j in range(count):
        at = 0 if y[j] < 0 else y[j]
        y[j] = at if at < k else 0


cdef inline double scaled_product(double a, double b, int exponent) noexcept nogil:
    """a b 2**-exponent."""
    cdef int of_a, of_b
    cdef double product = a * b
    # exactly the same, and no call; nearly all weights are so
    if 2.0**-400 < absolute(product) < 2.0**400 and -400 < exponent < 400:
        return product * sl_from_bits_f64(<uint64_t>(1023 - exponent) << 52)
    product = frexp(a, &of_a) * frexp(b, &of_b)
    return ldexp(product, of_a + of_b - exponent)


cdef inline bint weighs_classes(const Job* job) noexcept nogil:
    """Whether rows have the weights of their class indices."""
    return job.hard and job.o.class_weight != NULL


cdef void mark_kept(const Job* job, Py_ssize_t start, Py_ssize_t count, uint8_t* kept) noexcept nogil:
    """Mark rows (elements), at most CHECKED of them, with 0 where they are masked or ignored, else with 1."""
    cdef double value[CHECKED]
    cdef const uint8_t* mask
    cdef const int64_t* label
    cdef int64_t ignored
    cdef Py_ssize_t i
    if not job.masked:
        memset(kept, 1, count)
    elif in_line(&job.mask, np.NPY_BOOL, 1):
        mask = <const uint8_t*>job.mask.data + start
        for i in range(count):
            kept[i] = mask[i] != 0
    else:
        load_flat(&job.mask, start, count, value)
        for i in range(count):
            kept[i] = value[i] != 0
    if not (job.hard and job.ignoring):
        return
    if in_line(&job.t, np.NPY_INT64, 8):
        label = <const int64_t*>job.t.data + start
        ignored = <int64_t>job.o.ignore_index
        for i in range(count):
            kept[i] &= label[i] != ignored
    else:
        load_flat(&job.t, start, count, value)
        for i in range(count):
            kept[i] &= value[i] != job.o.ignore_index


cdef void load_weights(
    const Job* job, Py_ssize_t start, Py_ssize_t count, bint samples, const Py_ssize_t* y, real* weight
) noexcept nogil:
    """What rows (elements) start ... start + count - 1 count for, at most CHECKED of them: 0 where masked
    or ignored, else the product of their weight (`samples`) and that of their class y (unless NULL, or the
    job has none), over its power of two."""
    cdef uint8_t kept[CHECKED]
    cdef bint some = job.masked or (job.hard and job.ignoring)
    cdef Py_ssize_t i
    samples = samples and job.has_weight
    y = NULL if job.o.class_weight == NULL else y
    if samples:
        load_flat(&job.w, start, count, weight)
    if some:
        mark_kept(job, start, count, kept)
    if some and samples:
        for i in range(count):
            weight[i] = 0 if kept[i] == 0 else weight[i]
    elif some:
        for i in range(count):
            weight[i] = kept[i]
    elif not samples:
        for i in range(count):
            weight[i] = 1
    if job.extreme:
        scale_weights(job, count, y, weight)
    elif y != NULL:
        for i in range(count):
            weight[i] *= <real>job.o.class_weight[y[i]]


cdef void scale_weights(const Job* job, Py_ssize_t count, const Py_ssize_t* y, real* weight) noexcept nogil:
    """Multiply weights by those of their classes, and divide them by the job's power of two."""
    cdef double of_class
    cdef Py_ssize_t i
    for i in range(count):
        if weight[i] != 0:
            of_class = 1 if y == NULL else job.o.class_weight[y[i]]
            weight[i] = <real>scaled_product(weight[i], of_class, job.exponent)


cdef void load_class_weights(
    const Job* job, Py_ssize_t start, Py_ssize_t count, bint samples, bint classes, real* weight
) noexcept nogil:
    """The same; `classes`: with the weights of class indices."""
    cdef Py_ssize_t y[CHECKED]
    classes = classes and weighs_classes(job)
    if classes:
        load_classes(job, start, count, y)
    load_weights(job, start, count, samples, y if classes else NULL, weight)


cdef bint drops_by_class(const Job* job) noexcept nogil:
    """Whether a class weight of 0 leaves nothing of a row."""
    return weighs_classes(job) and job.o.label_smoothing == 0 and job.o.z_loss == 0


cdef void output_weights(
    const Job* job, const double* weight, Py_ssize_t weights, Py_ssize_t start, Py_ssize_t n, real* to
) noexcept nogil:
    """Multiply elements start ... start + n - 1, at most CHUNK of them, by the weights of their outputs."""
    cdef real every[CHUNK]
    cdef Py_ssize_t outputs = job.outputs
    cdef Py_ssize_t i, until, have, output = start // job.inner % outputs
    if weights == 1:
        for i in range(n):
            to[i] *= <real>weight[0]
        return
    if job.inner == 1:
        # one period after another, twice as many in each step
        have = min(outputs, n)
        until = min(outputs - output, have)
        for i in range(until):
            every[i] = <real>weight[output + i]
        for i in range(have - until):
            every[until + i] = <real>weight[i]
        while have < n:
            memcpy(every + have, every, min(have, n - have) * sizeof(real))
            have += min(have, n - have)
        for i in range(n):
            to[i] *= every[i]
        return
    until = job.inner - start % job.inner
    for i in range(n):
        if i == until:
            output = output + 1 if output + 1 < outputs else 0
            until += job.inner
        to[i] *= <real>weight[output]

# The activations at prediction time, from the same exponentials as the losses.
#
#   sigmoid      a = 1 / (1 + e**-x)
#   log_sigmoid  min(x, 0) - log1p(e**-|x|)
#   softmax      p_k = e_k / sum
#   log_softmax  (x_k - m) - log1p(sum - 1)
#   logsumexp    m + log1p(sum - 1)


cdef void sigmoid_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef const real* x
    cdef real* y = scratch + VALUE
    cdef real e, t, q
    cdef Py_ssize_t at, n, i
    for at from start <= at < stop by CHUNK:
        n = min(<Py_ssize_t>CHUNK, stop - at)
        x = view_flat(&job.x, at, n, scratch)
        for i in range(n):
            e = exp_negative(-absolute(x[i]))
            t = <real>1 + e
            q = reciprocal(t, e - (t - <real>1))
            y[i] = e * q if x[i] < 0 else q
        store_flat(&job.g, at, n, <const real*>y)


cdef void log_sigmoid_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef const real* x
    cdef real* y = scratch + VALUE
    cdef Py_ssize_t at, n, i
    for at from start <= at < stop by CHUNK:
        n = min(<Py_ssize_t>CHUNK, stop - at)
        x = view_flat(&job.x, at, n, scratch)
        for i in range(n):
            y[i] = (x[i] if x[i] < 0 else 0) - log1p_unit(exp_negative(-absolute(x[i])))
        store_flat(&job.g, at, n, <const real*>y)


cdef object elementwise(object x, object out, const Kernel* kernel):
    cdef Job job
    cdef int kind, ndim
    if not np.PyArray_CheckExact(x):
        return None
    kind = element_kind(x)
    ndim = np.PyArray_NDIM(x)
    if kind != np.NPY_FLOAT and kind != np.NPY_DOUBLE:
        return None
    out = derivative_array(out, x, x, None)
    if out is None:
        return None
    job.n = np.PyArray_SIZE(x)
    job.k = 1
    job.want = 0
    job.loss = NULL
    job.block = BLOCK_ITEMS
    bind(&job.x, x, kind, ndim)
    bind(&job.g, out, kind, ndim)
    run(&job, kernel, (x, out))
    return out


def sigmoid(x, out):
    cdef Kernel kernel = Kernel(sigmoid_kernel[float], sigmoid_kernel[double])
    return elementwise(x, out, &kernel)


def log_sigmoid(x, out):
    cdef Kernel kernel = Kernel(log_sigmoid_kernel[float], log_sigmoid_kernel[double])
    return elementwise(x, out, &kernel)


cdef enum:
    # what `Job.want` asks the row kernel for
    SOFTMAX = 0
    LOG_SOFTMAX = 1
    LOGSUMEXP = 2


cdef inline double whole_logsumexp(double m, double log_sum, bint infinite) noexcept nogil:
    """m + log_sum; the limit +inf where m stands for it, and -inf for a row of nothing else."""
    if infinite:
        return <double>SL_INFINITY + log_sum
    return m if m == -SL_INFINITY else m + log_sum


cdef void activation_lanes(const Job* job, Py_ssize_t start, int count, real* s) noexcept nogil:
    cdef Py_ssize_t offset[GROUP]
    cdef real m[GROUP]
    cdef real inverse[GROUP]
    cdef bint infinite[GROUP]
    cdef double below[GROUP]
    cdef double lost[GROUP]
    cdef double ones[GROUP]
    cdef double log_sum[GROUP]
    cdef real* e = s + BUFFER
    cdef Py_ssize_t c, k = job.k
    cdef int j
    load_lanes(&job.x, start, count, k, s)
    for j in range(GROUP):
        infinite[j] = False
        for c in range(k):
            infinite[j] |= is_positive_infinity(s[c * GROUP + j])
    lane_maximum(s, k, m)
    memcpy(e, s, k * GROUP * sizeof(real))
    lane_exponentials(e, k, m)
    lane_totals_apart(<const real*>e, k, below, lost, ones)
    for j in range(GROUP):
        log_sum[j] = log_of_sum(m[j], below[j], lost[j], ones[j])
        inverse[j] = <real>soft_scale(m[j], 1, 1, below[j], lost[j], ones[j])
    if job.want == LOGSUMEXP:
        row_offsets(&job.g, start, count, offset)
        for j in range(count):
            if m[j] == -SL_INFINITY:
                for c in range(k):
                    m[j] += s[c * GROUP + j]        # a NaN beside the -inf shows in the sum
            (<real*>(job.g.data + offset[j]))[0] = <real>whole_logsumexp(m[j], log_sum[j], infinite[j])
        return
    for c in range(k):
        for j in range(GROUP):
            if job.want == SOFTMAX:
                s[c * GROUP + j] = e[c * GROUP + j] * inverse[j]
            else:
                s[c * GROUP + j] = <real>((<double>s[c * GROUP + j] - <double>m[j]) - log_sum[j])
    store_lanes(<const real*>s, &job.g, start, count, k)


cdef void activation_row(const Job* job, const char* row, char* to, real* s) noexcept nogil:
    cdef Py_ssize_t start, n, i
    cdef bint infinite
    cdef real m = row_maximum(job, row, True, &infinite, s)
    cdef double below = 0, lost = 0, ones = 0, error, piece_lost, log_sum
    cdef real inverse, seen = m
    for start from 0 <= start < job.k by PIECE:
        n = min(<Py_ssize_t>PIECE, job.k - start)
        load_piece(job, row, start, n, infinite, s)
        if m == -SL_INFINITY:
            for i in range(n):
                seen += s[i]                        # a NaN beside the -inf shows in the sum
        exponentials(s, padded(n), m)
        below = two_sum(below, totals_apart(s, padded(n), &piece_lost, &ones), &error)
        lost += piece_lost + error
    log_sum = log_of_sum(m, below, lost, ones)
    if job.want == LOGSUMEXP:
        (<real*>to)[0] = <real>whole_logsumexp(seen, log_sum, infinite)
        return
    inverse = <real>soft_scale(m, 1, 1, below, lost, ones)
    for start from 0 <= start < job.k by PIECE:
        n = min(<Py_ssize_t>PIECE, job.k - start)
        load_piece(job, row, start, n, infinite, s)
        if job.want == SOFTMAX:
            exponentials(s, padded(n), m)
            for i in range(n):
                s[i] *= inverse
        else:
            for i in range(n):
                s[i] = <real>((<double>s[i] - <double>m) - log_sum)
        scatter(<const real*>s, to + start * job.g.inner, job.g.inner, n)


cdef void rows_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef Py_ssize_t offset[GROUP]
    cdef Py_ssize_t to[GROUP]
    cdef Py_ssize_t at
    cdef int count, j
    for at from start <= at < stop by GROUP:
        count = <int>min(<Py_ssize_t>GROUP, stop - at)
        if job.k <= NARROW:
            activation_lanes(job, at, count, scratch)
            continue
        row_offsets(&job.x, at, count, offset)
        row_offsets(&job.g, at, count, to)
        for j in range(count):
            activation_row(job, job.x.data + offset[j], job.g.data + to[j], scratch)


cdef object rowwise(object x, object out, int want):
    """Along the last axis of an array whose last axis is not empty."""
    cdef Job job
    cdef Kernel kernel = Kernel(rows_kernel[float], rows_kernel[double])
    cdef int kind, ndim
    if not (np.PyArray_CheckExact(x) and np.PyArray_CheckExact(out)):
        return None
    kind = element_kind(x)
    ndim = np.PyArray_NDIM(x)
    if (kind != np.NPY_FLOAT and kind != np.NPY_DOUBLE) or element_kind(out) != kind:
        return None
    if not (same_memory(out, x) if same_shape(out, x, ndim) and not disjoint(out, x) else disjoint(out, x)):
        return None
    job.k = np.PyArray_DIMS(x)[ndim - 1]
    job.n = np.PyArray_SIZE(x) // job.k
    job.want = want
    job.clip = SL_INFINITY
    job.hard = False
    job.loss = NULL
    job.block = max(1, BLOCK_ITEMS // job.k)
    if job.block > GROUP:
        job.block -= job.block % GROUP
    bind(&job.x, x, kind, ndim - 1)
    bind(&job.g, out, kind, ndim - 1)
    run(&job, &kernel, (x, out))
    return out


def softmax(x, out):
    return rowwise(x, out, SOFTMAX)


def log_softmax(x, out):
    return rowwise(x, out, LOG_SOFTMAX)


def logsumexp(x, out):
    return rowwise(x, out, LOGSUMEXP)

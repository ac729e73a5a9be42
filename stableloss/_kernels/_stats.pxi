# Statistics of a call: predictions, logsumexp, entropy, probabilities.

cdef double FAR = 1e30              # beyond every class


cdef struct Statistics:
    Total entropy                   # sum of e (m - x) / 2
    double predicted[GROUP]         # the first class at the maximum
    double undefined[GROUP]         # the first class that is NaN


cdef void start_statistics(Statistics* statistics) noexcept nogil:
    cdef int j
    start_total(&statistics.entropy)
    for j in range(GROUP):
        statistics.predicted[j] = statistics.undefined[j] = FAR


cdef void tile_statistics(const Tile* tile, const Columns* columns, bint quotients, const real* x, const real* e, Statistics* statistics) noexcept nogil:
    # classes as floats, exact to 2**24 of them, so that comparisons and choices are vectors of one width
    cdef real best[GROUP]
    cdef real undefined[GROUP]
    cdef real at[GROUP]
    cdef real top[GROUP]
    cdef double m[GROUP]
    cdef double s[GROUP]
    cdef double lost[GROUP]
    cdef real v, here
    cdef real never = <real>FAR
    cdef real step = <real>(GROUP if tile.wide else 1)
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        m[j] = 0 if quotients else columns.m[j]
        top[j] = <real>m[j]
        best[j] = undefined[j] = never
        at[j] = <real>(tile.first + j if tile.wide else 0)
        s[j] = statistics.entropy.sum[j]
        lost[j] = statistics.entropy.lost[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            v = x[c * GROUP + j]
            here = at[j] if v == top[j] else never
            best[j] = here if here < best[j] else best[j]
            here = never if v == v else at[j]
            undefined[j] = here if here < undefined[j] else undefined[j]
            at[j] += step
    for c in range(tile.lines):
        for j in range(GROUP):
            accumulate(e[0], &s[j], &lost[j],
                       0 if e[c * GROUP + j] == 0 else e[c * GROUP + j] * gap_of(m[j], x[c * GROUP + j]))
    for j in range(GROUP):
        statistics.predicted[j] = min(statistics.predicted[j], <double>best[j])
        statistics.undefined[j] = min(statistics.undefined[j], <double>undefined[j])
        statistics.entropy.sum[j] = s[j]
        statistics.entropy.lost[j] = lost[j]


cdef void store_row_statistics(const Job* job, Py_ssize_t row, int64_t predicted, double lse, double entropy) noexcept nogil:
    (<int64_t*>job.predicted)[row] = predicted
    store_value(job.lse, job.value_kind, row, lse)
    store_value(job.entropy, job.value_kind, row, entropy)


cdef void store_statistics(const Job* job, const Tile* tile, const Columns* columns, Statistics* statistics, real hint) noexcept nogil:
    cdef double top, m, entropy
    cdef Py_ssize_t row
    cdef int j
    settle_whole(&statistics.entropy, tile.wide)
    if tile.wide:
        for j in range(1, GROUP):
            statistics.predicted[0] = min(statistics.predicted[0], statistics.predicted[j])
            statistics.undefined[0] = min(statistics.undefined[0], statistics.undefined[j])
    for j in range(tile.count):
        row = tile.start + j
        if columns.weight[j] == 0:
            store_row_statistics(job, row, -1, 0, 0)
            continue
        top = statistics.undefined[j] if statistics.undefined[j] < FAR else statistics.predicted[j]
        if job.o.from_probabilities:
            m = max(columns.m[j], <double>smallest_normal(job, hint))
            m = -log1p_positive((1 - m) / m)
        else:
            m = SL_INFINITY if columns.limit[j] else columns.m[j]
        entropy = 2 * statistics.entropy.sum[j] / columns.whole[j] + columns.log_sum[j]
        store_row_statistics(job, row, <int64_t>top if top < FAR else 0, m + columns.log_sum[j], entropy)


cdef void tile_probabilities(const Job* job, const Tile* tile, const Columns* columns, const real* e, real* p) noexcept nogil:
    cdef real inverse[GROUP]
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        inverse[j] = <real>(0 if columns.weight[j] == 0 else inverse_sum(columns, j, 1, 1, e[0]))
    for c in range(tile.lines):
        for j in range(GROUP):
            p[c * GROUP + j] = e[c * GROUP + j] * inverse[j]
    write_tile(<const real*>p, &job.p, tile)


cdef void chunk_statistics(const Job* job, Py_ssize_t start, Py_ssize_t n, const real* x, real* scratch) noexcept nogil:
    """Prediction, log(1 + e**x) and entropy of a chunk. Of x = log(a / (1 - a)), both logarithms and
    a / (1 - a) or its inverse, whichever is below 1, are at hand."""
    cdef const real* e = scratch + EXPONENTIAL
    cdef const real* minus_log_on = scratch + LOG_ON
    cdef const real* minus_log_off = scratch + LOG_OFF
    cdef real* to = scratch + PRODUCT
    cdef const real* weight = scratch + WEIGHT
    cdef double large, small
    cdef Py_ssize_t i
    if job.any_weight:
        element_weights(job, start, n, False, scratch)
    for i in range(n):
        (<char*>job.predicted)[start + i] = x[i] > 0 and not (job.any_weight and weight[i] == 0)
    for i in range(n):
        to[i] = 0 if job.any_weight and weight[i] == 0 else minus_log_off[i]
    store_values(job.lse, job.value_kind, start, <const real*>to, n)
    for i in range(n):
        # a S(a) + (1 - a) S(1 - a) over 1 + e
        large = minus_log_off[i] if x[i] < 0 else minus_log_on[i]
        small = 0 if e[i] == 0 else e[i] * <double>(minus_log_on[i] if x[i] < 0 else minus_log_off[i])
        to[i] = 0 if job.any_weight and weight[i] == 0 else <real>((large + small) / (1 + <double>e[i]))
    store_values(job.entropy, job.value_kind, start, <const real*>to, n)
    if job.wants_probabilities:
        for i in range(n):
            to[i] = (e[i] if x[i] < 0 else <real>1) / (<real>1 + e[i])
            to[i] = 0 if job.any_weight and weight[i] == 0 else to[i]
        store_flat(&job.p, start, n, <const real*>to)

# Statistics of a call: predictions, logsumexp, entropy, probabilities.
#
# uses _elements: EXPONENTIAL LOG_OFF LOG_ON PRODUCT
# uses _job: Job
# uses _logits: smallest_normal
# uses _math: SL_INFINITY log1p_positive real
# uses _operand: Operand store_flat store_value store_values
# uses _rows: Columns broadcast columns_of gap_of inverse_sum to_real
# uses _sums: GROUP Pairs accumulate clear_pairs copy_pairs reduce_columns
# uses _tiles: TILE_EXPS TILE_LOGITS TILE_OUT Tile write_tile
# uses _weights: load_weights

cdef int64_t NO_CLASS = 0x7fffffffffffffff


# ---- of softmax losses ----------------------------------------------------------------------------

cdef struct Statistics:
    Pairs entropy                   # sum of e (m - x) / 2
    int64_t predicted[GROUP]        # the first class at the maximum
    int64_t undefined[GROUP]        # the first class that is NaN


cdef void start_statistics(Statistics* statistics) noexcept nogil:
    cdef int j
    clear_pairs(&statistics.entropy)
    for j in range(GROUP):
        statistics.predicted[j] = statistics.undefined[j] = NO_CLASS


cdef inline int64_t class_of_line(const Tile* tile, double line, int j) noexcept nogil:
    """The class at a line of a column; NO_CLASS for a line beyond all."""
    if line >= tile.lines:
        return NO_CLASS
    return tile.first + <int64_t>line * GROUP + j if tile.wide else <int64_t>line


cdef void tile_predictions(
    const Tile* tile, const Columns* columns, const real* x, Statistics* statistics
) noexcept nogil:
    # lines as floats, so that comparisons and choices are vectors of one width
    cdef real top[GROUP]
    cdef real best[GROUP]
    cdef real undefined[GROUP]
    cdef real beyond = <real>tile.lines
    cdef real line = 0
    cdef real v, here
    cdef Py_ssize_t c, j
    to_real(columns.m, top)
    for j in range(GROUP):
        best[j] = undefined[j] = beyond
    for c in range(tile.lines):
        for j in range(GROUP):
            v = x[c * GROUP + j]
            here = line if v == top[j] else beyond
            best[j] = here if here < best[j] else best[j]
            here = beyond if v == v else line
            undefined[j] = here if here < undefined[j] else undefined[j]
        line += 1
    for j in range(GROUP):
        statistics.predicted[j] = min(statistics.predicted[j], class_of_line(tile, best[j], j))
        statistics.undefined[j] = min(statistics.undefined[j], class_of_line(tile, undefined[j], j))


cdef void tile_statistics(
    const Tile* tile, const Columns* columns, const real* scratch, Statistics* statistics
) noexcept nogil:
    cdef const real* x = scratch + TILE_LOGITS
    cdef const real* e = scratch + TILE_EXPS
    cdef Pairs entropy
    cdef double m[GROUP]
    cdef Py_ssize_t c, i, j
    copy_pairs(&statistics.entropy, &entropy)
    tile_predictions(tile, columns, x, statistics)
    to_real(columns.m, m)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            accumulate(e[0], &entropy.hi[j], &entropy.lo[j], 0 if e[i] == 0 else e[i] * gap_of(m[j], x[i]))
    copy_pairs(&entropy, &statistics.entropy)


cdef void store_row_statistics(
    const Job* job, Py_ssize_t row, int64_t predicted, double lse, double entropy
) noexcept nogil:
    (<int64_t*>job.predicted)[row] = predicted
    store_value(job.lse, job.value_kind, row, lse)
    store_value(job.entropy, job.value_kind, row, entropy)


cdef void store_statistics(
    const Tile* tile, const Columns* columns, Statistics* statistics, real hint
) noexcept nogil:
    cdef int64_t predicted
    cdef double m, entropy
    cdef Py_ssize_t row, j
    reduce_columns(&statistics.entropy, tile.wide)
    if tile.wide:
        for j in range(1, GROUP):
            statistics.predicted[0] = min(statistics.predicted[0], statistics.predicted[j])
            statistics.undefined[0] = min(statistics.undefined[0], statistics.undefined[j])
    for j in range(tile.count):
        row = tile.start + j
        if columns.weight[j] == 0:
            store_row_statistics(tile.job, row, -1, 0, 0)
            continue
        predicted = statistics.undefined[j] if statistics.undefined[j] < NO_CLASS else statistics.predicted[j]
        if tile.job.o.from_probabilities:
            m = max(columns.p_max[j], <double>smallest_normal(tile.job, hint))
            m = -log1p_positive((1 - m) / m)
        else:
            m = SL_INFINITY if columns.limit[j] else columns.m[j]
        entropy = 2 * statistics.entropy.hi[j] / columns.total.hi[j] + columns.log_sum[j]
        predicted = predicted if predicted < NO_CLASS else 0
        store_row_statistics(tile.job, row, predicted, m + columns.log_sum[j], entropy)


cdef void tile_probabilities(
    const Operand* op, const Tile* tile, const Columns* columns, real* scratch
) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef real* p = scratch + TILE_OUT
    cdef double inverse[GROUP]
    cdef Py_ssize_t c, j
    for j in range(columns_of(tile.wide)):
        inverse[j] = 0 if columns.weight[j] == 0 else inverse_sum(columns, j, 1, 1, e[0])
    broadcast(inverse, tile.wide)
    for c in range(tile.lines):
        for j in range(GROUP):
            p[c * GROUP + j] = e[c * GROUP + j] * <real>inverse[j]
    write_tile(<const real*>p, op, tile)


# ---- of sigmoid losses ----------------------------------------------------------------------------

cdef void chunk_statistics(
    const Job* job, Py_ssize_t start, Py_ssize_t n, const real* x, real* scratch
) noexcept nogil:
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
        load_weights(job, start, n, True, NULL, scratch + WEIGHT)
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

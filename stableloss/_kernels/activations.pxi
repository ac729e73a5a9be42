# The activations at prediction time, from the same exponentials as the losses.
#
#   sigmoid      a = 1 / (1 + e**-x)
#   log_sigmoid  min(x, 0) - log1p(e**-|x|)
#   softmax      p_k = e_k / sum
#   log_softmax  (x_k - m) - log1p(sum - 1)
#   logsumexp    m + log1p(sum - 1)
#
# uses _blocks: run
# uses _call: derivative_array disjoint same_memory same_shape
# uses _elements: VALUE
# uses _job: BLOCK_ITEMS Job Kernel
# uses _math: SL_INFINITY absolute exp_negative log1p_unit real reciprocal
# uses _operand: bind element_kind is_floating row_offsets scatter store_flat view_flat
# uses _options: Options REDUCE_SUM
# uses _rows: Columns columns_of finish_exponentials inverse_sum limit_columns load_tile open_columns
# uses _rows: tile_exponentials
# uses _sums: CHUNK GROUP NARROW Sum sum_exponentials
# uses _tiles: TILE_EXPS TILE_LOGITS TILE_OUT TILE_SLOPE Tile open_rows place_tile write_tile


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


cdef Options PLAIN = Options(REDUCE_SUM)


cdef object elementwise(object x, object out, const Kernel* kernel):
    cdef Job job
    cdef int kind, ndim
    if not np.PyArray_CheckExact(x):
        return None
    kind = element_kind(x)
    ndim = np.PyArray_NDIM(x)
    if not is_floating(kind):
        return None
    out = derivative_array(out, x, None, None, None, None)
    if out is None:
        return None
    job.n = np.PyArray_SIZE(x)
    job.k = 1
    job.want = 0
    job.in_float64 = False
    job.block = BLOCK_ITEMS
    bind(&job.x, x, kind, ndim)
    bind(&job.g, out, kind, ndim)
    run(&job, kernel, (x, out))
    return out


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.978 at -0x1.f317eap+0
#   float64 value 1.881 at -0x1.2277bf6e81c68p+0
def sigmoid(x, out):
    cdef Kernel kernel = Kernel(sigmoid_kernel[float], sigmoid_kernel[double])
    return elementwise(x, out, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.837 at -0x1.074dfp-5
#   float64 value 1.558 at -0x1.88a3393bc92bdp-2
def log_sigmoid(x, out):
    cdef Kernel kernel = Kernel(log_sigmoid_kernel[float], log_sigmoid_kernel[double])
    return elementwise(x, out, &kernel)


cdef enum:
    # what `Job.want` asks the row kernel for
    SOFTMAX = 0
    LOG_SOFTMAX = 1
    LOGSUMEXP = 2


cdef void store_logsumexp(const Job* job, const Tile* tile, Columns* columns, real hint) noexcept nogil:
    """m + log_sum; the limit +inf where m stands for it, and -inf for a row of nothing else."""
    cdef Py_ssize_t to[GROUP]
    cdef double m
    cdef real value
    cdef int j
    if tile.wide:
        for j in range(1, GROUP):
            columns.m[0] = columns.m[j] if columns.m[j] != columns.m[j] else columns.m[0]
    row_offsets(&job.g, tile.start, tile.count, to)
    for j in range(tile.count):
        m = <double>SL_INFINITY if columns.limit[j] else columns.m[j]
        value = <real>(m if m == -SL_INFINITY else m + columns.log_sum[j])
        scatter(<const real*>&value, job.g.data + to[j], job.g.kind, sizeof(real), 1)


cdef void emit_activation(const Job* job, const Tile* tile, const Columns* columns, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* x = scratch + TILE_LOGITS
    cdef real* to = scratch + TILE_OUT
    cdef real inverse[GROUP]
    cdef Py_ssize_t c
    cdef int j
    if job.want == SOFTMAX:
        for j in range(columns_of(tile.wide)):
            inverse[j] = <real>inverse_sum(columns, j, 1, 1, e[0])
        if tile.wide:
            for j in range(1, GROUP):
                inverse[j] = inverse[0]
        for c in range(tile.lines):
            for j in range(GROUP):
                to[c * GROUP + j] = e[c * GROUP + j] * inverse[j]
    else:
        for c in range(tile.lines):
            for j in range(GROUP):
                to[c * GROUP + j] = <real>((<double>x[c * GROUP + j] - columns.m[j]) - columns.log_sum[j])
    write_tile(<const real*>to, &job.g, tile)


cdef void activation_tiles(const Job* job, Tile* tile, real* scratch) noexcept nogil:
    cdef real* x = scratch + TILE_LOGITS
    cdef Columns columns
    cdef Py_ssize_t index, c
    cdef int j
    open_columns(job, tile, &columns, x, scratch + TILE_SLOPE)
    for index in range(tile.tiles):
        if not place_tile(job, index, tile):
            return
        if tile.tiles > 1:
            load_tile(job, tile, columns.weight, x, scratch + TILE_SLOPE)
        tile_exponentials(tile, &columns, False, x, scratch + TILE_EXPS)
        sum_exponentials(<const real*>(scratch + TILE_EXPS), tile.lines, &columns.sums)
        if job.want == LOGSUMEXP:
            for j in range(GROUP):
                if columns.m[j] == -SL_INFINITY:
                    for c in range(tile.lines):
                        columns.m[j] += x[c * GROUP + j]    # a NaN beside the -inf shows in the sum
    finish_exponentials(&columns, tile.wide, scratch[0])
    if job.want == LOGSUMEXP:
        store_logsumexp(job, tile, &columns, scratch[0])
        return
    for index in range(tile.tiles):
        if not place_tile(job, index, tile):
            return
        if tile.tiles > 1:
            load_tile(job, tile, columns.weight, x, scratch + TILE_SLOPE)
            if job.want == SOFTMAX:
                tile_exponentials(tile, &columns, False, x, scratch + TILE_EXPS)
            elif columns.any_limit:
                limit_columns(x, tile.lines, columns.limit)
        emit_activation(job, tile, &columns, scratch)


cdef void rows_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef double one[GROUP]
    cdef Tile tile
    cdef bint wide = job.k > NARROW
    cdef Py_ssize_t at
    cdef int j
    for j in range(GROUP):
        one[j] = 1
    tile.weight = one
    for at from start <= at < stop by (1 if wide else GROUP):
        open_rows(job, at, <int>min(<Py_ssize_t>(1 if wide else GROUP), stop - at), wide, &tile)
        activation_tiles(job, &tile, scratch)


cdef object rowwise(object x, object out, int want):
    """Along the last axis of an array whose last axis is not empty."""
    cdef Job job
    cdef Kernel kernel = Kernel(rows_kernel[float], rows_kernel[double])
    cdef int kind, ndim
    if not (np.PyArray_CheckExact(x) and np.PyArray_CheckExact(out)):
        return None
    kind = element_kind(x)
    ndim = np.PyArray_NDIM(x)
    if not is_floating(kind) or element_kind(out) != kind:
        return None
    if not (same_memory(out, x) if same_shape(out, x, ndim) and not disjoint(out, x) else disjoint(out, x)):
        return None
    job.k = np.PyArray_DIMS(x)[ndim - 1]
    job.n = np.PyArray_SIZE(x) // job.k
    job.want = want
    job.o = &PLAIN.settings
    job.any_weight = False
    job.hard = False
    job.in_float64 = False
    job.block = max(1, BLOCK_ITEMS // job.k)
    if job.block > GROUP:
        job.block -= job.block % GROUP
    bind(&job.x, x, kind, ndim - 1)
    bind(&job.g, out, kind, ndim - 1)
    run(&job, &kernel, (x, out))
    return out


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 2.299 in a row of 10
#   float64 value 2.322 in a row of 100
def softmax(x, out):
    return rowwise(x, out, SOFTMAX)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.476 at -0x1.9e5b68p-5, 0x1.47fab2p+2
#   float64 value 2.259 in a row of 100
def log_softmax(x, out):
    return rowwise(x, out, LOG_SOFTMAX)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.352 at -0x1.aea892p-3, -0x1.4c37fp-1
#   float64 value 2.125 in a row of 3
def logsumexp(x, out):
    return rowwise(x, out, LOGSUMEXP)

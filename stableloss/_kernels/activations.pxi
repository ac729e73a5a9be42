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
# uses _groups: sum_tiles
# uses _job: BLOCK_ITEMS Job Kernel
# uses _math: SL_INFINITY absolute exp_negative log1p_unit real reciprocal
# uses _operand: bind element_kind is_floating row_offsets scatter store_flat view_flat
# uses _options: Options REDUCE_SUM
# uses _rows: Columns limit_columns open_columns reload_tile tile_exponentials
# uses _stats: tile_probabilities
# uses _sums: CHUNK GROUP NARROW Sum
# uses _tiles: TILE_LOGITS TILE_OUT Tile open_rows place_tile write_tile


cdef void sigmoid_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
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


cdef void log_sigmoid_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
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


cdef bint add_undefined(Tile* tile, Columns* columns, real* scratch) noexcept nogil:
    """Maxima of -inf with a NaN beside become NaN; False where the call is to end."""
    cdef const real* x = scratch + TILE_LOGITS
    cdef Py_ssize_t index, c, j
    for index in range(tile.tiles):
        if not place_tile(index, tile):
            return False
        reload_tile(tile, columns, scratch)
        for j in range(GROUP):
            if columns.m[j] == -SL_INFINITY:
                for c in range(tile.lines):
                    columns.m[j] += x[c * GROUP + j]
    if tile.wide:
        for j in range(1, GROUP):
            columns.m[0] = columns.m[j] if columns.m[j] != columns.m[j] else columns.m[0]
    return True


cdef void store_logsumexp(Tile* tile, Columns* columns, real* scratch) noexcept nogil:
    """m + log_sum; the limit +inf where m stands for it, and -inf for a row of nothing else."""
    cdef Py_ssize_t to[GROUP]
    cdef double m = 0
    cdef real value
    cdef int j
    for j in range(GROUP):
        m = min(m, columns.m[j])
    if m == -SL_INFINITY and not add_undefined(tile, columns, scratch):
        return
    row_offsets(&tile.job.g, tile.start, tile.count, to)
    for j in range(tile.count):
        m = <double>SL_INFINITY if columns.limit[j] else columns.m[j]
        value = <real>(m if m == -SL_INFINITY else m + columns.log_sum[j])
        scatter(<const real*>&value, tile.job.g.data + to[j], tile.job.g.kind, sizeof(real), 1)


cdef void emit_log_softmax(const Tile* tile, const Columns* columns, real* scratch) noexcept nogil:
    cdef const real* x = scratch + TILE_LOGITS
    cdef real* to = scratch + TILE_OUT
    cdef Py_ssize_t c, j
    for c in range(tile.lines):
        for j in range(GROUP):
            to[c * GROUP + j] = <real>((<double>x[c * GROUP + j] - columns.m[j]) - columns.log_sum[j])
    write_tile(<const real*>to, &tile.job.g, tile)


cdef void activation_tiles(Tile* tile, real* scratch) noexcept nogil:
    cdef Columns columns
    cdef Py_ssize_t index
    columns.compensated = columns.linear = False
    open_columns(tile, &columns, scratch)
    if not sum_tiles(tile, &columns, NULL, scratch):
        return
    if tile.job.want == LOGSUMEXP:
        store_logsumexp(tile, &columns, scratch)
        return
    for index in range(tile.tiles):
        if not place_tile(index, tile):
            return
        reload_tile(tile, &columns, scratch)
        if tile.job.want == SOFTMAX and tile.tiles > 1:
            tile_exponentials(tile, &columns, scratch)
        elif tile.tiles > 1 and columns.any_limit:
            limit_columns(scratch + TILE_LOGITS, tile.lines, columns.limit)
        if tile.job.want == SOFTMAX:
            tile_probabilities(&tile.job.g, tile, &columns, scratch)
        else:
            emit_log_softmax(tile, &columns, scratch)


cdef void rows_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    cdef double one[GROUP]
    cdef Tile tile
    cdef bint wide = job.k > NARROW
    cdef Py_ssize_t at, j
    for j in range(GROUP):
        one[j] = 1
    tile.want = 0
    tile.weight = one
    for at from start <= at < stop by (1 if wide else GROUP):
        open_rows(job, at, <int>min(<Py_ssize_t>(1 if wide else GROUP), stop - at), wide, &tile)
        activation_tiles(&tile, scratch)


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

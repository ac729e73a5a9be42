# The activations at prediction time, from the same exponentials as the losses.
#
#   sigmoid      a = 1 / (1 + e**-x)
#   log_sigmoid  min(x, 0) - log1p(e**-|x|)
#   softmax      p_k = e_k / sum
#   log_softmax  (x_k - m) - log1p(sum - 1)
#   logsumexp    m + log1p(sum - 1)
#
# uses _blocks: run sl_default_environment sl_restore_environment
# uses _call: axis_of counted_axis delivered floating over_axes readable refuse_axis refuse_missing
# uses _call: require_out returned writable_like
# uses _elements: VALUE
# uses _groups: sum_tiles
# uses _job: Job Kernel open_job
# uses _math: PyArrayObject SL_INFINITY absolute exp_negative log1p_unit real reciprocal
# uses _operand: NO_AXIS PyArray_DIMS PyArray_ISALIGNED PyArray_NDIM PyArray_TYPE bind disjoint empty_like
# uses _operand: empty_per_row one_per_row row_offsets same_memory same_shape scatter store_flat view_flat
# uses _rows: Columns limit_columns open_columns reload_tile tile_exponentials
# uses _stats: tile_probabilities
# uses _sums: GROUP NARROW Sum
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


# ---- calls ----------------------------------------------------------------------------------------

cdef bint activation_fits(PyArrayObject* out, PyArrayObject* x, int axis, bint per_row) noexcept:
    if axis != NO_AXIS and (axis >= PyArray_NDIM(x) or PyArray_DIMS(x)[axis] == 0):
        return False
    return writable_like(out, x) and (one_per_row(out, x, axis) if per_row else same_shape(out, x))


cdef np.ndarray activation_memory(object out, PyArrayObject* x, int along, bint per_row):
    """Where the kernel writes an activation: to `out`, or to memory of its own where there is none or that
    would disturb x."""
    cdef np.ndarray plain
    cdef PyArrayObject* to
    if out is None:
        return empty_per_row(x, along, PyArray_TYPE(x)) if per_row else empty_like(x)
    if np.PyArray_CheckExact(out) and activation_fits(<PyArrayObject*>out, x, along, per_row):
        plain = <np.ndarray>out
    else:
        shape = (<object>x).shape
        plain = require_out(
            out, shape[:along] + shape[along + 1:] if per_row else shape, (<object>x).dtype, "out")
    to = <PyArrayObject*>plain
    if PyArray_ISALIGNED(to) and (disjoint(to, x) or (not per_row and same_memory(to, x))):
        return plain
    return empty_like(to)


cdef object activation(object value, object out, bint rowwise, object axis, int want, const Kernel* kernel):
    cdef Job job
    cdef Sum total
    cdef bint per_row = rowwise and want == LOGSUMEXP
    cdef int given = axis_of(axis) if rowwise else NO_AXIS
    cdef np.ndarray array = floating(readable(value, "x"))
    cdef PyArrayObject* x = <PyArrayObject*>array
    cdef int along = counted_axis(x, given)
    cdef np.ndarray result
    cdef PyArrayObject* memory
    if rowwise and (along == NO_AXIS or PyArray_DIMS(x)[along] == 0):
        refuse_axis((<object>x).shape, axis)
    result = activation_memory(out, x, along, per_row)
    memory = <PyArrayObject*>result
    # from here on no line of Python runs but handlers of signals: see _call.pxi
    if not activation_fits(memory, x, along, per_row):
        raise RuntimeError("x or out was changed during the call")
    open_job(&job, x, along)
    job.want = want
    bind(&job.g, memory, job.x.kind, NO_AXIS if per_row else along)
    run(&job, kernel, &total)
    return returned(memory) if out is None else delivered(out, memory)


cdef object activate(object value, object out, bint rowwise, object axis, int want, const Kernel* kernel):
    """An activation along an axis, or element by element, in the default floating-point environment."""
    cdef sl_environment environment = sl_default_environment()
    try:
        return activation(value, out, rowwise, axis, want, kernel)
    finally:
        sl_restore_environment(environment)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.978 at -0x1.f317eap+0
#   float64 value 1.881 at -0x1.2277bf6e81c68p+0
def sigmoid(x=..., out=None):
    if x is ...:
        refuse_missing(None, "sigmoid", x=x)
    cdef Kernel kernel = Kernel(sigmoid_kernel[float], sigmoid_kernel[double])
    return activate(x, out, False, None, 0, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.837 at -0x1.074dfp-5
#   float64 value 1.558 at -0x1.88a3393bc92bdp-2
def log_sigmoid(x=..., out=None):
    if x is ...:
        refuse_missing(None, "log_sigmoid", x=x)
    cdef Kernel kernel = Kernel(log_sigmoid_kernel[float], log_sigmoid_kernel[double])
    return activate(x, out, False, None, 0, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 2.299 in a row of 10
#   float64 value 2.322 in a row of 100
def softmax(x=..., axis=-1, out=None):
    if x is ...:
        refuse_missing(None, "softmax", x=x)
    if axis is None or type(axis) is tuple:
        return over_axes(softmax, x, axis, out)
    cdef Kernel kernel = Kernel(rows_kernel[float], rows_kernel[double])
    return activate(x, out, True, axis, SOFTMAX, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.476 at -0x1.9e5b68p-5, 0x1.47fab2p+2
#   float64 value 2.259 in a row of 100
def log_softmax(x=..., axis=-1, out=None):
    if x is ...:
        refuse_missing(None, "log_softmax", x=x)
    if axis is None or type(axis) is tuple:
        return over_axes(log_softmax, x, axis, out)
    cdef Kernel kernel = Kernel(rows_kernel[float], rows_kernel[double])
    return activate(x, out, True, axis, LOG_SOFTMAX, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.352 at -0x1.aea892p-3, -0x1.4c37fp-1
#   float64 value 2.125 in a row of 3
def logsumexp(x=..., axis=-1, out=None, bint keepdims=False):
    if x is ...:
        refuse_missing(None, "logsumexp", x=x)
    if keepdims or axis is None or type(axis) is tuple:
        return over_axes(logsumexp, x, axis, out, keepdims, reduces=True)
    cdef Kernel kernel = Kernel(rows_kernel[float], rows_kernel[double])
    return activate(x, out, True, axis, LOGSUMEXP, &kernel)

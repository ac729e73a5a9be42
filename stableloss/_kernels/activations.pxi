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


cdef void activation_tiles(const Job* job, Py_ssize_t start, int count, bint wide, real* scratch) noexcept nogil:
    cdef real* e = scratch
    cdef real* x = scratch + TILE
    cdef real* slope = scratch + 2 * TILE
    cdef Py_ssize_t index, c, tiles = tiles_of(job, wide)
    cdef Py_ssize_t to[GROUP]
    cdef double one[GROUP]
    cdef real inverse[GROUP]
    cdef int j
    cdef Tile tile
    cdef Columns columns
    for j in range(GROUP):
        one[j] = 1
    open_columns(job, start, count, wide, one, &columns)
    tile_maxima(job, start, count, wide, &columns, x, slope)
    for index in range(tiles):
        place_tile(job, start, count, wide, index, &tile)
        if tiles > 1:
            tile_logits(job, &tile, columns.weight, x, slope)
        tile_limits(&tile, &columns, x)
        tile_exponentials(&tile, &columns, <const real*>x, e)
        tile_totals(<const real*>e, tile.lines, &columns.below, &columns.ones)
        if job.want == LOGSUMEXP:
            for j in range(GROUP):
                if columns.m[j] == -SL_INFINITY:
                    for c in range(tile.lines):
                        columns.m[j] += x[c * GROUP + j]    # a NaN beside the -inf shows in the sum
    settle_exponentials(&columns, wide, scratch[0])
    if job.want == LOGSUMEXP:
        if wide:
            for j in range(1, GROUP):
                columns.m[0] = columns.m[j] if columns.m[j] != columns.m[j] else columns.m[0]
        row_offsets(&job.g, start, count, to)
        for j in range(count):
            inverse[0] = <real>whole_logsumexp(columns.m[j], columns.log_sum[j], columns.limit[j])
            scatter(<const real*>inverse, job.g.data + to[j], job.g.kind, sizeof(real), 1)
        return
    for j in range(columns_of(wide)):
        inverse[j] = <real>inverse_sum(&columns, j, 1, 1, scratch[0])
    if wide:
        for j in range(1, GROUP):
            inverse[j] = inverse[0]
    for index in range(tiles):
        place_tile(job, start, count, wide, index, &tile)
        if tiles > 1:
            tile_logits(job, &tile, columns.weight, x, slope)
            tile_limits(&tile, &columns, x)
        if tiles > 1 and job.want == SOFTMAX:
            tile_exponentials(&tile, &columns, <const real*>x, e)
        for c in range(tile.lines):
            for j in range(GROUP):
                if job.want == SOFTMAX:
                    x[c * GROUP + j] = e[c * GROUP + j] * inverse[j]
                else:
                    x[c * GROUP + j] = <real>((<double>x[c * GROUP + j] - columns.m[j]) - columns.log_sum[j])
        write_tile(<const real*>x, &job.g, &tile)


cdef void rows_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef Py_ssize_t at, row
    for at from start <= at < stop by GROUP:
        if job.k <= NARROW:
            activation_tiles(job, at, <int>min(<Py_ssize_t>GROUP, stop - at), False, scratch)
            continue
        for row in range(at, min(at + GROUP, stop)):
            activation_tiles(job, row, 1, True, scratch)


# ---- calls ----------------------------------------------------------------------------------------

cdef bint activation_fits(np.ndarray out, np.ndarray x, int axis, bint per_row) noexcept:
    if axis != NO_AXIS and (axis >= np.PyArray_NDIM(x) or np.PyArray_DIMS(x)[axis] == 0):
        return False
    return writable_like(out, x) and (one_per_row(out, x, axis) if per_row else same_shape(out, x))


cdef object activation(object value, object out, bint rowwise, object axis, int want, const Kernel* kernel):
    cdef Job job
    cdef np.ndarray result
    cdef np.ndarray memory
    cdef bint per_row = rowwise and want == LOGSUMEXP
    cdef int given = axis_of(axis) if rowwise else NO_AXIS
    cdef np.ndarray x = floating(readable(value, "x"))
    cdef int along = counted_axis(x, given)
    if rowwise and (along == NO_AXIS or np.PyArray_DIMS(x)[along] == 0):
        refuse_axis((<object>x).shape, axis)
    if out is not None:
        shape = (<object>x).shape
        result = require_out(out, shape[:along] + shape[along + 1:] if per_row else shape, x.dtype, "out")
    else:
        result = empty_per_row(x, along, np.PyArray_TYPE(x)) if per_row else empty_like(x)
    memory = result
    if not (np.PyArray_ISALIGNED(result) and (disjoint(result, x) or (not per_row and same_memory(result, x)))):
        memory = empty_like(result)
    # from here on no line of Python runs but handlers of signals: see _call.pxi
    if not activation_fits(memory, x, along, per_row):
        raise RuntimeError("x or out was changed during the call")
    open_job(&job, x, along)
    job.want = want
    bind(&job.g, memory, job.x.kind, NO_AXIS if per_row else along)
    run(&job, kernel)
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
def sigmoid(x, out=None):
    cdef Kernel kernel = Kernel(sigmoid_kernel[float], sigmoid_kernel[double])
    return activate(x, out, False, None, 0, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.837 at -0x1.074dfp-5
#   float64 value 1.558 at -0x1.88a3393bc92bdp-2
def log_sigmoid(x, out=None):
    cdef Kernel kernel = Kernel(log_sigmoid_kernel[float], log_sigmoid_kernel[double])
    return activate(x, out, False, None, 0, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 2.299 in a row of 10
#   float64 value 2.322 in a row of 100
def softmax(x, axis=-1, out=None):
    cdef Kernel kernel = Kernel(rows_kernel[float], rows_kernel[double])
    return activate(x, out, True, axis, SOFTMAX, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.476 at -0x1.9e5b68p-5, 0x1.47fab2p+2
#   float64 value 2.259 in a row of 100
def log_softmax(x, axis=-1, out=None):
    cdef Kernel kernel = Kernel(rows_kernel[float], rows_kernel[double])
    return activate(x, out, True, axis, LOG_SOFTMAX, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.352 at -0x1.aea892p-3, -0x1.4c37fp-1
#   float64 value 2.125 in a row of 3
def logsumexp(x, axis=-1, out=None):
    cdef Kernel kernel = Kernel(rows_kernel[float], rows_kernel[double])
    return activate(x, out, True, axis, LOGSUMEXP, &kernel)

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
# uses _elements: VALUE place_vectors view_vectors
# uses _groups: Group GroupStep TargetSums as_columns each_row group_ahead index_scale open_group plain_losses
# uses _job: Job Kernel SL_PLAIN open_job
# uses _math: PyArrayObject SL_INFINITY is_positive_infinity real two_sum unit
# uses _operand: NO_AXIS PyArray_DIMS PyArray_ISALIGNED PyArray_NDIM PyArray_TYPE bind disjoint empty_like
# uses _operand: empty_per_row one_per_row same_memory same_shape store_flat
# uses _options: WANT_GRAD
# uses _pieces: Row add_piece logits_of_piece open_row piece_exponentials place_piece place_row scale_row
# uses _pieces: write_piece
# uses _rows: column_exponentials
# uses _sums: GROUP Pairs Split Sum accumulate clear_split column_sums few_classes padded sl_fold
# uses _sums: sum_exponentials
# uses _tiles: TILE_TARGETS write_columns write_scaled_columns


cdef extern from "sl_columns.h" nogil:
    void sl_subtract_f32(const float*, Py_ssize_t, float, float, float*) noexcept
    void sl_subtract_f64(const double*, Py_ssize_t, double, double, double*) noexcept

cdef extern from "sl_elements.h" nogil:
    void sl_sigmoids_f32(const float*, Py_ssize_t, float*, bint) noexcept
    void sl_sigmoids_f64(const double*, Py_ssize_t, double*, bint) noexcept
    void sl_log_sigmoids_f32(const float*, Py_ssize_t, float*, bint) noexcept
    void sl_log_sigmoids_f64(const double*, Py_ssize_t, double*, bint) noexcept


# ---- sigmoid --------------------------------------------------------------------------------------

cdef inline void each_chunk(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, bint logarithm, real* scratch
) noexcept nogil:
    cdef const real* x
    cdef real* y
    cdef Py_ssize_t at, n
    for at from start <= at < stop by CHUNK:
        n = min(<Py_ssize_t>CHUNK, stop - at)
        x = view_vectors(&job.x, at, n, scratch)
        y = place_vectors(&job.g, at, n, scratch + VALUE)
        if real is float:
            if logarithm:
                sl_log_sigmoids_f32(x, n, y, job.streams)
            else:
                sl_sigmoids_f32(x, n, y, job.streams)
        elif logarithm:
            sl_log_sigmoids_f64(x, n, y, job.streams)
        else:
            sl_sigmoids_f64(x, n, y, job.streams)
        if y == scratch + VALUE:
            store_flat(&job.g, at, n, <const real*>y)


cdef void sigmoid_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    each_chunk(job, start, stop, False, scratch)


cdef void log_sigmoid_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    each_chunk(job, start, stop, True, scratch)


# ---- softmax --------------------------------------------------------------------------------------
# The gradient of class indices, of a row without a target.

cdef void softmax_columns(Group* group, real* s) noexcept nogil:
    cdef bint limit[GROUP]
    cdef real m[GROUP]
    cdef real scale[GROUP]
    cdef sl_ahead ahead
    cdef Py_ssize_t j, k = group.job.k
    open_group(group, s, m, limit)
    column_exponentials(<const real*>s, s, k, <const real*>m, SL_PLAIN, 1, group_ahead(group, &ahead))
    column_sums(<const real*>s, k, False, False, &group.sums.rest)
    for j in range(GROUP):
        group.sums.e_target[j] = 0
    for j in range(GROUP):
        scale[j] = <real>index_scale(s[0], &group.sums, j, 1, group.job)
    write_scaled_columns(<const real*>s, <const real*>scale, &group.job.g, group.start, group.count, k)


cdef bint sum_row(Row* row, double* total, double* lo, real* s) noexcept nogil:
    """Exponentials of a row and their sum, which is 0 so far; False where the call is to end."""
    cdef Py_ssize_t index
    for index in range(row.pieces):
        if not place_piece(index, row):
            return False
        piece_exponentials(row, s)
        add_piece(row, <const real*>s, False, total, lo)
        if row.cached:
            write_piece(row, <const real*>s)
    return True


cdef void softmax_row(Row* row, Group* group, int j, real* s) noexcept nogil:
    cdef TargetSums* sums = &group.sums
    row.how = SL_PLAIN
    open_row(row, s)
    sums.rest.hi[j] = sums.rest.lo[j] = sums.e_target[j] = 0
    if sum_row(row, &sums.rest.hi[j], &sums.rest.lo[j], s):
        scale_row(row, index_scale(s[0], sums, j, 1, group.job), False, s)


cdef void softmax_group(Group* group, real* s) noexcept nogil:
    if as_columns(s[0], group):
        softmax_columns(group, s)
    else:
        each_row(group, softmax_row[real], s)


# ---- logarithms of sums ---------------------------------------------------------------------------
# The loss of class indices, of a row whose target is its maximum, is log(sum e**(x - m)).

cdef inline bint saturated(real hint, double total) noexcept nogil:
    """Whether a maximum holds so much of a sum that what is left has lost digits, unless it is summed apart.
    float64 always does."""
    if real is float:
        return total < <double>(unit(hint) * <real>(1 + 2.0**-14))
    else:
        return True


cdef inline void finish_split(
    real hint, const Split* sums, int column, TargetSums* to, int j
) noexcept nogil:
    """What is summed apart (see _sums.pxi) as the sum of all exponentials but one maximum."""
    cdef double error
    to.rest.hi[j] = two_sum(sums.max.hi[column] - unit(hint), sums.rest.hi[column], &error)
    to.rest.lo[j] = sums.rest.lo[column] + error


cdef inline void finish_total(real hint, double total, TargetSums* to, int j) noexcept nogil:
    to.rest.hi[j] = total - unit(hint)
    to.rest.lo[j] = 0


cdef void log_columns(Group* group, real* s) noexcept nogil:
    """Maxima and sums of a group as columns, whose logits stay in s."""
    cdef bint limit[GROUP]
    cdef bint undefined = False, apart = False
    cdef real m[GROUP]
    cdef Pairs total
    cdef Split sums
    cdef sl_ahead ahead
    cdef Py_ssize_t c, j, k = group.job.k
    cdef bint limited = open_group(group, s, m, limit)
    for j in range(GROUP):
        group.m[j] = SL_INFINITY if limited and limit[j] else m[j]
        undefined |= m[j] == -SL_INFINITY
    if undefined:
        for j in range(GROUP):
            for c in range(k if m[j] == -SL_INFINITY else 0):
                group.m[j] += s[c * GROUP + j]
    column_exponentials(
        <const real*>s, s + TILE_TARGETS, k, <const real*>m, SL_PLAIN, 1, group_ahead(group, &ahead))
    if real is float:
        column_sums(<const real*>(s + TILE_TARGETS), k, False, False, &total)
        for j in range(GROUP):
            apart |= saturated(s[0], total.hi[j])
            finish_total(s[0], total.hi[j], &group.sums, j)
        if not apart:
            return
    clear_split(&sums)
    sum_exponentials(<const real*>(s + TILE_TARGETS), k, &sums)
    for j in range(GROUP):
        if real is double or saturated(s[0], total.hi[j]):
            finish_split(s[0], &sums, j, &group.sums, j)


cdef double undefined_maximum(Row* row, real* s) noexcept nogil:
    """Of a row without a maximum above -inf: NaN if the row has one, else -inf."""
    cdef double m = -SL_INFINITY
    cdef const real* x
    cdef Py_ssize_t index, i
    for index in range(row.pieces):
        if not place_piece(index, row):
            break
        x = logits_of_piece(row, s)
        for i in range(row.n):
            m += x[i]
    return m


cdef inline real below_unit(real e, Split* sums) noexcept nogil:
    """e, or 0 where it is UNIT and goes to the maxima."""
    cdef real below = e if e < unit(e) else 0
    sums.max.hi[0] += e - below
    return below


cdef void add_split(const Row* row, const real* e, Split* sums) noexcept nogil:
    """Add up a piece: of few classes in the order in which a column is added up, float32 in pairs."""
    cdef Py_ssize_t i
    cdef real below
    if not few_classes(e[0], row.job.k):
        sum_exponentials(e, padded(row.n) // GROUP, sums)
        return
    for i from 0 <= i < row.n by (2 if real is float else 1):
        below = below_unit(e[i], sums)
        if real is float and i + 1 < row.n:
            below += below_unit(e[i + 1], sums)
        accumulate(e[0], &sums.rest.hi[0], &sums.rest.lo[0], below)


cdef void split_row(Row* row, TargetSums* to, int j, real* s) noexcept nogil:
    """The sum of a row with the maxima apart. The exponentials of a row of one piece may be in s already."""
    cdef Split sums
    cdef Py_ssize_t index
    clear_split(&sums)
    for index in range(row.pieces):
        if not place_piece(index, row):
            return
        if real is double or row.pieces > 1:
            piece_exponentials(row, s)
        add_split(row, <const real*>s, &sums)
    sl_fold(sums.rest.hi, sums.rest.lo)
    sl_fold(sums.max.hi, sums.max.lo)
    finish_split(s[0], &sums, 0, to, j)


cdef void log_row(Row* row, Group* group, int j, real* s) noexcept nogil:
    """Maximum and sums of a row."""
    cdef double total = 0, lo = 0
    row.how = SL_PLAIN
    open_row(row, s)
    row.cached = False      # where the results go the logits may lie, which are read again
    group.m[j] = SL_INFINITY if row.limit else row.m
    if row.m == -SL_INFINITY:
        group.m[j] = undefined_maximum(row, s)
    if real is float:
        if not sum_row(row, &total, &lo, s):
            return
        finish_total(s[0], total, &group.sums, j)
    if saturated(s[0], total):
        split_row(row, &group.sums, j, s)


cdef void log_sums(Group* group, real* s) noexcept nogil:
    """Maxima of rows (+inf for the limit), and as losses the logarithms of their sums."""
    cdef int j
    for j in range(GROUP):
        group.sums.gap[j] = 0
    if as_columns(s[0], group):
        log_columns(group, s)
        plain_losses(s[0], &group.sums, 0, GROUP, group.loss)
    else:
        each_row(group, log_row[real], s)
        plain_losses(s[0], &group.sums, 0, group.count, group.loss)


cdef void logsumexp_group(Group* group, real* s) noexcept nogil:
    cdef real value[GROUP]
    cdef Py_ssize_t j
    log_sums(group, s)
    for j in range(group.count):
        value[j] = <real>(group.m[j] if group.m[j] == -SL_INFINITY else group.m[j] + group.loss[j])
    store_flat(&group.job.g, group.start, group.count, <const real*>value)


# x - (m + log_sum), with a constant in two parts, is as good as (x - m) - log_sum in twice the digits.

cdef inline void split_constant(double m, double log_sum, real* hi, real* lo) noexcept nogil:
    cdef double error
    cdef double c = two_sum(0 if is_positive_infinity(m) else m, log_sum, &error)
    hi[0] = <real>c
    lo[0] = <real>((c - hi[0]) + error)


cdef void log_softmax_columns(Group* group, real* s) noexcept nogil:
    cdef real hi[GROUP]
    cdef real lo[GROUP]
    cdef Py_ssize_t c, j
    for j in range(GROUP):
        split_constant(group.m[j], group.loss[j], &hi[j], &lo[j])
    for c in range(group.job.k):
        for j in range(GROUP):
            s[c * GROUP + j] = (s[c * GROUP + j] - hi[j]) - lo[j]
    write_columns(<const real*>s, &group.job.g, group.start, group.count, group.job.k)


cdef void log_softmax_row(Row* row, Group* group, int j, real* s) noexcept nogil:
    cdef real hi, lo
    cdef const real* x
    cdef real* to
    cdef Py_ssize_t index
    place_row(row, s[0])
    row.limit = is_positive_infinity(group.m[j])
    split_constant(group.m[j], group.loss[j], &hi, &lo)
    for index in range(row.pieces):
        if not place_piece(index, row):
            return
        x = logits_of_piece(row, s)
        to = <real*>row.grad + row.first if row.in_place else s
        if real is float:
            sl_subtract_f32(x, row.n, hi, lo, to)
        else:
            sl_subtract_f64(x, row.n, hi, lo, to)
        if not row.in_place:
            write_piece(row, <const real*>s)


cdef void log_softmax_group(Group* group, real* s) noexcept nogil:
    log_sums(group, s)
    if as_columns(s[0], group):
        log_softmax_columns(group, s)
    else:
        each_row(group, log_softmax_row[real], s)


# ---- kernels --------------------------------------------------------------------------------------

cdef inline void each_group(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, GroupStep step, real* scratch
) noexcept nogil:
    cdef Group group
    cdef Py_ssize_t at, j
    group.job = job
    for j in range(GROUP):
        group.weight[j] = 1
        group.y[j] = 0
    for at from start <= at < stop by GROUP:
        group.start = at
        group.count = <int>min(<Py_ssize_t>GROUP, stop - at)
        step(&group, scratch)


cdef void softmax_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    each_group(job, start, stop, softmax_group[real], scratch)


cdef void log_softmax_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    each_group(job, start, stop, log_softmax_group[real], scratch)


cdef void logsumexp_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    each_group(job, start, stop, logsumexp_group[real], scratch)


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


cdef object activation(
    object value, object out, bint rowwise, object axis, bint per_row, const Kernel* kernel
):
    cdef Job job
    cdef Sum total
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
    job.want = 0 if per_row else WANT_GRAD
    job.hard = rowwise          # takes what class indices take
    bind(&job.g, memory, job.x.kind, NO_AXIS if per_row else along)
    run(&job, kernel, &total)
    return returned(memory) if out is None else delivered(out, memory)


cdef object activate(object value, object out, bint rowwise, object axis, bint per_row, const Kernel* kernel):
    """An activation along an axis, or element by element, in the default floating-point environment."""
    cdef sl_environment environment = sl_default_environment()
    try:
        return activation(value, out, rowwise, axis, per_row, kernel)
    finally:
        sl_restore_environment(environment)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 2.481 at -0x1.0a2bd8p+4
#   float64 value 2.424 at -0x1.26051dd3aef4p+5
def sigmoid(x=..., out=None):
    if x is ...:
        refuse_missing(None, "sigmoid", x=x)
    cdef Kernel kernel = Kernel(sigmoid_kernel[float], sigmoid_kernel[double])
    return activate(x, out, False, None, False, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.837 at -0x1.074dfp-5
#   float64 value 1.558 at -0x1.88a3393bc92bdp-2
def log_sigmoid(x=..., out=None):
    if x is ...:
        refuse_missing(None, "log_sigmoid", x=x)
    cdef Kernel kernel = Kernel(log_sigmoid_kernel[float], log_sigmoid_kernel[double])
    return activate(x, out, False, None, False, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 2.299 in a row of 10
#   float64 value 2.716 in a row of 100
def softmax(x=..., axis=-1, out=None):
    if x is ...:
        refuse_missing(None, "softmax", x=x)
    if axis is None or type(axis) is tuple:
        return over_axes(softmax, x, axis, out)
    cdef Kernel kernel = Kernel(softmax_kernel[float], softmax_kernel[double])
    return activate(x, out, True, axis, False, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.749 in a row of 10
#   float64 value 2.259 in a row of 100
def log_softmax(x=..., axis=-1, out=None):
    if x is ...:
        refuse_missing(None, "log_softmax", x=x)
    if axis is None or type(axis) is tuple:
        return over_axes(log_softmax, x, axis, out)
    cdef Kernel kernel = Kernel(log_softmax_kernel[float], log_softmax_kernel[double])
    return activate(x, out, True, axis, False, &kernel)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 value 1.352 at -0x1.aea892p-3, -0x1.4c37fp-1
#   float64 value 2.125 in a row of 3
def logsumexp(x=..., axis=-1, out=None, bint keepdims=False):
    if x is ...:
        refuse_missing(None, "logsumexp", x=x)
    if keepdims or axis is None or type(axis) is tuple:
        return over_axes(logsumexp, x, axis, out, keepdims, reduces=True)
    cdef Kernel kernel = Kernel(logsumexp_kernel[float], logsumexp_kernel[double])
    return activate(x, out, True, axis, True, &kernel)

# Softmax + cross-entropy, from logits x and class indices y or target probabilities t, p = softmax(x).
#
#   loss  -sum_k t_k log p_k  =  (m - x_y) + log1p(sum - 1), or log1p(rest) where y is the maximum
#   grad  p_k sum(t) - t_k    =  e_k / sum for k != y,  -rest / sum for k = y
#   hess  p_k (1 - p_k) sum(t)
#
# with e_k = e**(x_k - m), m the maximum, sum their sum, rest the sum without the target's (see _rows.pxi).
# Here are the loss and gradient of class indices without further options. All else is in softmax_ce_options.pxi.
#
# uses _blocks: stopped
# uses _groups: FEW Group each_row softmax_rows
# uses _job: Job loss_kernel
# uses _math: SL_INFINITY log1p_positive real row_scale two_sum unit
# uses _operand: scatter
# uses _options: WANT_GRAD
# uses _rows: Row add_piece any_extreme close_piece column_exponentials column_maxima limit_columns
# uses _rows: load_columns open_row piece_exponentials piece_output return_to_piece start_limits store_class
# uses _rows: take_out
# uses _sums: GROUP NARROW PIECE Sum column_sums
# uses _tiles: columns_to_rows transposable write_columns
# uses softmax_ce_options: cross_entropy_of_tile


cdef inline double whole_rest(real hint, double rest, double rest_lo) noexcept nogil:
    """The sum without the target, to all of its digits; float32 loses none of them."""
    if real is float:
        return rest
    else:
        return rest + rest_lo


cdef inline double index_scale(real hint, double weight, double divisor, double rest, double rest_lo, double e_target) noexcept nogil:
    """Factor from an exponential to its gradient."""
    cdef double lo, total
    if real is float:
        return weight / (divisor * (rest + e_target))
    else:
        total = two_sum(rest, e_target, &lo)
        return row_scale(weight, divisor, total, lo + rest_lo)


cdef void index_losses(real hint, Group* group, int n) noexcept nogil:
    """Losses of the first n rows."""
    cdef double e_max = unit(hint)
    cdef double inverse = 1 / e_max
    cdef double above
    cdef int j
    for j in range(n):
        # where the target is not the maximum, rest holds the maximum's UNIT
        above = (whole_rest(hint, group.rest[j], group.rest_lo[j]) if group.gap[j] == 0
                 else (group.rest[j] - e_max) + whole_rest(hint, group.e_target[j], group.rest_lo[j]))
        group.loss[j] = group.gap[j] + log1p_positive(above * inverse)


# ---- rows as columns ------------------------------------------------------------------------------

cdef inline void store_gradients(const Job* job, const Group* group, const real* target, const real* scale, real* s) noexcept nogil:
    """Scale the exponentials of a group to its gradient; `target` has that of the targets."""
    cdef Py_ssize_t place[GROUP]
    cdef Py_ssize_t c, distance
    cdef real* row
    cdef int i, j, aligned = group.count - group.count % 8
    if transposable(&job.g, s[0]):
        distance = job.g.stride[0] // <Py_ssize_t>sizeof(real)
        row = <real*>job.g.data + group.start * distance
        columns_to_rows(<const real*>s, scale, group.count, job.k, row, distance)
        for j in range(GROUP):
            place[j] = j * distance + group.y[j]
        for i from 0 <= i < aligned by 8:
            for j in range(i, i + 8):
                row[place[j]] = target[j]
        for j in range(aligned, group.count):
            row[place[j]] = target[j]
        return
    for c in range(job.k):
        for j in range(GROUP):
            s[c * GROUP + j] *= scale[j]
    for j in range(GROUP):
        s[group.y[j] * GROUP + j] = target[j]
    write_columns(<const real*>s, &job.g, group.start, group.count, job.k)


cdef void index_gradients(const Job* job, Group* group, real* target, real* s) noexcept nogil:
    """Gradient of a group from its exponentials; `target` gets that of the targets."""
    cdef double factor[GROUP]
    cdef real scale[GROUP]
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        factor[j] = index_scale(s[0], group.weight[j], job.divisor, group.rest[j], group.rest_lo[j], group.e_target[j])
    for j in range(GROUP):
        scale[j] = <real>factor[j]
        target[j] = <real>(0 if group.weight[j] == 0
                           else -whole_rest(s[0], group.rest[j], group.rest_lo[j]) * factor[j])
    if any_extreme(job, factor, GROUP, s[0]):
        for c in range(job.k):
            for j in range(GROUP):
                s[c * GROUP + j] = <real>(s[c * GROUP + j] * factor[j])
        for j in range(GROUP):
            scale[j] = 1
    store_gradients(job, group, <const real*>target, <const real*>scale, s)


cdef void index_columns(const Job* job, Group* group, real* s) noexcept nogil:
    """Gradient of a group as columns, and what its losses are made from."""
    cdef Py_ssize_t place[GROUP]
    cdef bint limit[GROUP]
    cdef real m[GROUP]
    cdef Py_ssize_t k = job.k
    cdef real* target = s + k * GROUP       # the logits of the targets, as one more class (see sl_sizes.h)
    cdef int i, j
    load_columns(job, group.start, group.count, group.weight, s, target)
    for j in range(GROUP):
        m[j] = -SL_INFINITY
    column_maxima(<const real*>s, k, m)
    if start_limits(m, limit):
        limit_columns(s, k, limit)
    for j in range(GROUP):
        place[j] = group.y[j] * GROUP + j
    # the target leaves its column for the sum of the others
    for i from 0 <= i < GROUP by 8:
        for j in range(i, i + 8):
            target[j] = s[place[j]]
            s[place[j]] = -SL_INFINITY
    for j in range(GROUP):
        group.gap[j] = <double>m[j] - <double>target[j]
    column_exponentials(<const real*>s, s, k + 1, <const real*>m, False)
    column_sums(<const real*>s, k, group.rest, group.rest_lo)
    for j in range(GROUP):
        group.e_target[j] = target[j]
    if job.want & WANT_GRAD:
        index_gradients(job, group, target, s)


# ---- a row by itself ------------------------------------------------------------------------------

cdef inline void scale_values(const real* values, Py_ssize_t n, double factor, bint extreme, real* to) noexcept nogil:
    cdef real scale = <real>factor
    cdef Py_ssize_t i
    if extreme:
        for i in range(n):
            to[i] = <real>(values[i] * factor)
    else:
        for i in range(n):
            to[i] = values[i] * scale


cdef void index_row(const Job* job, Row* row, Group* group, int j, real* s) noexcept nogil:
    """Gradient of a row, and what its loss is made from: the bits of `index_columns` where that could take it."""
    cdef Py_ssize_t first, n, k = job.k
    cdef double rest = 0, rest_lo = 0, e_target = 1, factor
    cdef bint extreme
    cdef const real* e
    cdef real* to
    open_row(job, row, s)
    for first from 0 <= first < k by PIECE:
        if not row.one_piece and stopped(job):
            return
        n = min(<Py_ssize_t>PIECE, k - first)
        piece_exponentials(job, row, first, n, False, s)
        if first <= row.y < first + n:
            e_target = take_out(s + (row.y - first))
        add_piece(job, <const real*>s, n, False, &rest, &rest_lo)
        if row.cached:
            scatter(<const real*>s, row.grad + first * job.g.inner, job.g.kind, job.g.inner, n)
    group.gap[j] = row.m - row.x_target
    group.rest[j] = rest
    group.rest_lo[j] = rest_lo
    group.e_target[j] = e_target
    if row.grad == NULL:
        return
    factor = index_scale(s[0], row.weight, job.divisor, rest, rest_lo, e_target)
    extreme = any_extreme(job, &factor, 1, s[0])
    for first from 0 <= first < k by PIECE:
        if not row.one_piece and stopped(job):
            return
        n = min(<Py_ssize_t>PIECE, k - first)
        e = return_to_piece(job, row, first, n, False, s)
        to = piece_output(job, row, first, s)
        if e == to:
            scale_values(<const real*>to, n, factor, extreme, to)
        else:
            scale_values(e, n, factor, extreme, to)
        close_piece(job, row, first, n, <const real*>s)
    store_class(job, row, row.y, <real>(-(rest + rest_lo) * factor))


cdef void cross_entropy_of_indices(const Job* job, Group* group, real* s) noexcept nogil:
    if job.k <= NARROW and group.count > FEW:
        index_columns(job, group, s)
        index_losses(s[0], group, GROUP)
    else:
        each_row(job, group, index_row[real], s)
        index_losses(s[0], group, group.count)


cdef void softmax_ce_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    softmax_rows(job, start, stop, cross_entropy_of_indices[real], cross_entropy_of_tile[real], total, scratch)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 grad 2.270 in a row of 100
#   float32 hess 3.145 in a row of 100
#   float32 loss 1.570 at 0x1.46016ep+2, -0x1.a5bdf4p-4, target 0
#   float32 soft grad 3.375 in a row of 10
#   float32 soft hess 3.432 in a row of 100
#   float32 soft loss 1.208 in a row of 2
#   float64 grad 2.609 in a row of 1000
#   float64 hess 3.149 in a row of 100
#   float64 loss 2.290 in a row of 10
#   float64 soft grad 3.877 in a row of 1000
#   float64 soft hess 3.892 in a row of 1000
#   float64 soft loss 3.445 in a row of 3
softmax_ce = loss_kernel(softmax_ce_kernel[float], softmax_ce_kernel[double], rowwise=True)

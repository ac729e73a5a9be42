# Softmax + cross-entropy, from logits x and class indices y or target probabilities t, p = softmax(x).
#
#   loss  -sum_k t_k log p_k  =  (m - x_y) + log1p(sum - 1), or log1p(rest) where y is the maximum
#   grad  p_k sum(t) - t_k    =  e_k / sum for k != y,  -rest / sum for k = y
#   hess  p_k (1 - p_k) sum(t)
#
# with e_k = e**(x_k - m), m the maximum, sum their sum, rest the sum without the target's (see _rows.pxi).
# Here are loss and gradient of class indices without further options; all else is in softmax_ce_options.pxi.
#
# uses _groups: Group TargetSums as_columns each_row group_ahead index_losses index_scale open_group
# uses _groups: softmax_rows whole_rest
# uses _job: Job loss_kernel
# uses _math: real
# uses _operand: kind_of row_offsets
# uses _options: WANT_GRAD
# uses _pieces: Row add_piece open_row piece_exponentials place_piece scale_row store_class take_out
# uses _pieces: write_piece
# uses _rows: any_extreme column_exponentials
# uses _sums: GROUP Sum column_sums
# uses _tiles: columns_to_rows transposable write_columns
# uses softmax_ce_options: tile_cross_entropy


# ---- rows as columns ------------------------------------------------------------------------------

cdef inline void store_gradients(
    const Group* group, const real* target, const real* scale, real* s
) noexcept nogil:
    """Scale the exponentials of a group to its gradient; `target` has that of the targets."""
    cdef Py_ssize_t place[GROUP]
    cdef Py_ssize_t c, distance
    cdef real one[GROUP]
    cdef real* row
    cdef int i, j, aligned = group.count - group.count % 8
    if transposable(&group.job.g, s[0]):
        distance = group.job.g.stride[0] // <Py_ssize_t>sizeof(real)
        row = <real*>group.job.g.data + group.start * distance
        columns_to_rows(<const real*>s, scale, group.count, group.job.k, row, distance)
        for j in range(GROUP):
            place[j] = j * distance + group.y[j]
        for i from 0 <= i < aligned by 8:
            for j in range(i, i + 8):
                row[place[j]] = target[j]
        for j in range(aligned, group.count):
            row[place[j]] = target[j]
        return
    if group.job.g.kind == kind_of(s[0]):
        write_columns(<const real*>s, scale, &group.job.g, group.start, group.count, group.job.k)
        row_offsets(&group.job.g, group.start, group.count, place)
        for j in range(group.count):
            (<real*>(group.job.g.data + place[j] + group.y[j] * group.job.g.inner))[0] = target[j]
        return
    for c in range(group.job.k):
        for j in range(GROUP):
            s[c * GROUP + j] *= scale[j]
    for j in range(GROUP):
        s[group.y[j] * GROUP + j] = target[j]
        one[j] = 1
    write_columns(<const real*>s, <const real*>one, &group.job.g, group.start, group.count, group.job.k)


cdef inline void index_gradients(
    const Group* group, const TargetSums* sums, real* target, real* s
) noexcept nogil:
    """Gradient of a group from its exponentials; `target` gets that of the targets."""
    cdef double factor[GROUP]
    cdef real scale[GROUP]
    cdef Py_ssize_t c, j
    for j in range(GROUP):
        factor[j] = index_scale(s[0], sums, j, group.weight[j], group.job.divisor)
    for j in range(GROUP):
        scale[j] = <real>factor[j]
        target[j] = <real>(0 if group.weight[j] == 0
                           else -whole_rest(s[0], sums.rest.hi[j], sums.rest.lo[j]) * factor[j])
    if any_extreme(group.job, factor, GROUP, s[0]):
        for c in range(group.job.k):
            for j in range(GROUP):
                s[c * GROUP + j] = <real>(s[c * GROUP + j] * factor[j])
        for j in range(GROUP):
            scale[j] = 1
    store_gradients(group, <const real*>target, <const real*>scale, s)


cdef void index_columns(Group* group, real* s) noexcept nogil:
    """Losses and gradient of a group as columns."""
    cdef Py_ssize_t place[GROUP]
    cdef bint limit[GROUP]
    cdef real m[GROUP]
    cdef real target[GROUP]
    # where stores to s can not reach: sums in `group` of float64 would be loaded and stored for every class;
    # for float32 they are, and GCC makes more of them than of an array of its own
    cdef TargetSums apart
    cdef TargetSums* sums = &group.sums if real is float else &apart
    cdef sl_ahead ahead
    cdef Py_ssize_t i, j, k = group.job.k
    open_group(group, s, m, limit)
    for j in range(GROUP):
        place[j] = group.y[j] * GROUP + j
    for i from 0 <= i < GROUP by 8:
        for j in range(i, i + 8):
            target[j] = s[place[j]]
    for j in range(GROUP):
        sums.gap[j] = <double>m[j] - <double>target[j]
    column_exponentials(<const real*>s, s, k, <const real*>m, False, group_ahead(group, &ahead))
    # the target leaves its column for the sum of the others
    for i from 0 <= i < GROUP by 8:
        for j in range(i, i + 8):
            target[j] = take_out(s + place[j])
    column_sums(<const real*>s, k, False, &sums.rest)
    for j in range(GROUP):
        sums.e_target[j] = target[j]
    if group.job.want & WANT_GRAD:
        index_gradients(group, sums, target, s)
    index_losses(s[0], sums, GROUP, group.loss)


# ---- a row by itself ------------------------------------------------------------------------------

cdef void index_row(Row* row, Group* group, int j, real* s) noexcept nogil:
    """Gradient of a row, and what its loss is made from; of few classes with the bits of `index_columns`."""
    cdef double rest = 0, rest_lo = 0, e_target = 1, factor
    cdef Py_ssize_t index
    row.compensated = False
    open_row(row, s)
    for index in range(row.pieces):
        if not place_piece(index, row):
            return
        piece_exponentials(row, s)
        if row.first <= row.y < row.first + row.n:
            e_target = take_out(s + (row.y - row.first))
        add_piece(row, <const real*>s, False, &rest, &rest_lo)
        if row.cached:
            write_piece(row, <const real*>s)
    group.sums.gap[j] = row.m - row.x_target
    group.sums.rest.hi[j] = rest
    group.sums.rest.lo[j] = rest_lo
    group.sums.e_target[j] = e_target
    if row.grad == NULL:
        return
    factor = index_scale(s[0], &group.sums, j, row.weight, row.job.divisor)
    if scale_row(row, factor, any_extreme(row.job, &factor, 1, s[0]), s):
        store_class(row, row.y, <real>(-(rest + rest_lo) * factor))


cdef void index_cross_entropy(Group* group, real* s) noexcept nogil:
    if as_columns(group):
        index_columns(group, s)
    else:
        each_row(group, index_row[real], s)
        index_losses(s[0], &group.sums, group.count, group.loss)


cdef void softmax_ce_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    softmax_rows(job, start, stop, index_cross_entropy[real], tile_cross_entropy[real], total, scratch)


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
#   float64 soft grad 3.520 in a row of 100
#   float64 soft hess 3.892 in a row of 1000
#   float64 soft loss 2.517 in a row of 2
softmax_ce = loss_kernel(softmax_ce_kernel[float], softmax_ce_kernel[double], rowwise=True)

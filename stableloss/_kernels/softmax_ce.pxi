# Softmax + cross-entropy, from logits x and class indices y or target probabilities t, p = softmax(x).
#
#   loss  -sum_k t_k log p_k  =  (m - x_y) + log1p(sum - 1), or log1p(rest) where y is the maximum
#   grad  p_k sum(t) - t_k    =  e_k / sum for k != y,  -rest / sum for k = y
#   hess  p_k (1 - p_k) sum(t)
#
# with e_k = e**(x_k - m), m the maximum, sum their sum, rest the sum without the target's (see _rows.pxi).
# From probabilities, these take the place of the exponentials, and the loss is log1p(rest / e_y). Focusing
# multiplies the gradient of a row by a number; z lse**2 adds its derivative by lse times p; and a cap
# multiplies each entry by its own derivative (see _logits.pxi).
#
# Here are loss and gradient of class indices, for which that is all there is to do; those of soft targets are
# in softmax_ce_soft.pxi, and all else in softmax_ce_options.pxi.
#
# uses _groups: Group TargetSums above_maximum as_columns each_row group_ahead index_scale open_group
# uses _groups: plain_losses softmax_rows whole_rest
# uses _job: Job SL_BRIEF loss_kernel
# uses _math: SL_FMA SL_INFINITY log1p_positive real unit
# uses _operand: kind_of row_offsets
# uses _options: Settings WANT_GRAD
# uses _pieces: Row add_piece open_row piece_exponentials place_piece return_to_piece scale_row store_class
# uses _pieces: take_out write_piece
# uses _rows: column_exponentials is_compensated is_extreme mark_extremes sl_compensated_columns
# uses _smoothing: mark_dead mark_piece open_smoothing smooth_columns smooth_gradients smooth_losses
# uses _smoothing: smooth_piece smooth_target smooth_values
# uses _sums: GROUP Sum column_sums
# uses _tiles: TILE_LOST TILE_SLOPE TILE_TARGETS columns_to_rows transposable write_columns
# uses _tiles: write_scaled_columns
# uses softmax_ce_options: focal_factor focal_slopes odds_of
# uses softmax_ce_probabilities: few_probabilities raised_columns sum_probabilities sum_probability_rows
# uses softmax_ce_probabilities: together write_quotient_rows write_quotients
# uses softmax_ce_soft: soft_cross_entropy


cdef double FAR_QUOTIENT = 2.0**-600


cdef inline double log1p_quotient(real hint, double above, double below) noexcept nogil:
    """log(1 + above / below), where the quotient may be beyond float64; that of float32 numbers is not."""
    cdef bint far
    if real is float:
        return log1p_positive(above / below)
    else:
        far = above * FAR_QUOTIENT > below * 1267650600228229401496703205376.0      # 2**100
        return (log1p_positive(above * (FAR_QUOTIENT if far else 1.0) / below)
                + (415.88830833596717 if far else 0.0))         # 600 log(2)


cdef inline void index_losses(
    real hint, Group* group, const TargetSums* sums, int start, int stop
) noexcept nogil:
    """Losses of rows start ... stop - 1 of a group."""
    cdef int j
    if group.job.o.from_probabilities:
        for j in range(start, stop):
            group.loss[j] = log1p_quotient(
                hint, whole_rest(hint, sums.rest.hi[j], sums.rest.lo[j]), sums.e_target[j])
    elif group.job.o.label_smoothing != 0:
        smooth_losses(hint, group, sums, start, stop)
    else:
        plain_losses(hint, sums, start, stop, group.loss)
    if group.job.o.focal_gamma != 0:
        focus_losses(hint, group, sums, start, stop)
    if group.job.o.z_loss != 0:
        z_losses(hint, group, sums, start, stop)


cdef void focus_losses(
    real hint, Group* group, const TargetSums* sums, int start, int stop
) noexcept nogil:
    """Multiply losses -log p by (1 - p)**gamma; with G the derivative of that by log p, the gradient is
    p_k G elsewhere and -(1 - p) G at the target: -G times that of -log p."""
    cdef double gamma = group.job.o.focal_gamma
    cdef double others, odds, power, first, second
    cdef int j
    for j in range(start, stop):
        others = whole_rest(hint, sums.rest.hi[j], sums.rest.lo[j])
        odds = odds_of(sums.e_target[j], others)
        power = focal_factor(odds, gamma)
        focal_slopes(odds, others, group.loss[j], gamma, power, &first, &second)
        group.focus[j] = -first
        group.loss[j] = 0 if power == 0 else power * group.loss[j]


cdef inline double scaled_maximum(const Job* job, double m, bint limit) noexcept nogil:
    """The maximum as it is part of lse."""
    return SL_INFINITY if limit else m * job.exponent_scale


cdef inline void z_losses(
    real hint, Group* group, const TargetSums* sums, int start, int stop
) noexcept nogil:
    """Add z lse**2, which adds 2 z lse p to the gradient."""
    cdef double inverse = 1 / <double>unit(hint)
    cdef double z = group.job.o.z_loss
    cdef double lse, limit
    cdef int j
    for j in range(start, stop):
        lse = group.m[j] + log1p_positive(above_maximum(hint, sums, j) * inverse)
        group.loss[j] += z * lse * lse
        # in place of inf, whose product with a probability of 0 has to be 0
        limit = 1e37 if real is float else 1e300
        group.z_slope[j] = limit if lse == SL_INFINITY else 2 * z * lse


cdef inline double z_target(
    const Group* group, const TargetSums* sums, int j, double* factor, double target
) noexcept nogil:
    """The target's entry, of which both parts have opposite signs, from that of the plain loss; `factor` is
    that from other exponentials to their gradient."""
    cdef double slope = group.z_slope[j]
    target = SL_FMA(sums.e_target[j] * factor[0], slope, target)
    factor[0] *= 1 + slope
    return target


cdef inline double index_target(
    real hint, const Group* group, int j, double* factor
) noexcept nogil:
    """Gradient of a row's target; that of another class is its exponential times `factor`."""
    cdef const TargetSums* sums = &group.sums
    cdef double target
    factor[0] = index_scale(hint, sums, j, group.weight[j], group.job)
    if group.job.o.focal_gamma != 0:
        factor[0] *= group.focus[j]
    target = -whole_rest(hint, sums.rest.hi[j], sums.rest.lo[j]) * factor[0]
    if group.job.o.z_loss != 0:
        target = z_target(group, sums, j, factor, target)
    return target


cdef inline bint losses_first(const Settings* o) noexcept nogil:
    """Whether gradients need what the losses are made from."""
    return o.focal_gamma != 0 or o.label_smoothing != 0 or o.z_loss != 0


# ---- rows as columns ------------------------------------------------------------------------------

cdef inline void store_gradients(
    const Group* group, const real* target, const real* scale, real* s
) noexcept nogil:
    """Scale the exponentials of a group to its gradient; `target` has that of the targets."""
    cdef Py_ssize_t place[GROUP]
    cdef Py_ssize_t c, distance
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
        write_scaled_columns(<const real*>s, scale, &group.job.g, group.start, group.count, group.job.k)
        row_offsets(&group.job.g, group.start, group.count, place)
        for j in range(group.count):
            (<real*>(group.job.g.data + place[j] + group.y[j] * group.job.g.inner))[0] = target[j]
        return
    for c in range(group.job.k):
        for j in range(GROUP):
            s[c * GROUP + j] *= scale[j]
    for j in range(GROUP):
        s[group.y[j] * GROUP + j] = target[j]
    write_columns(<const real*>s, &group.job.g, group.start, group.count, group.job.k)


cdef void bend_columns(
    const Group* group, const double* factor, real* target, real* s
) noexcept nogil:
    """Scale the exponentials of a group, where the logits are capped, to its gradient."""
    cdef const real* slope = s + TILE_SLOPE
    cdef double scale = group.job.logit_scale
    cdef Py_ssize_t c, i
    cdef int j
    for c in range(group.job.k):
        for j in range(GROUP):
            i = c * GROUP + j
            s[i] = <real>(s[i] * factor[j] * (scale * slope[i]))
    for j in range(GROUP):
        target[j] = <real>(target[j] * (scale * slope[group.y[j] * GROUP + j]))


cdef inline void index_gradients(
    const Group* group, const TargetSums* sums, real* target, real* s
) noexcept nogil:
    """Gradient of a group from its exponentials; `target` gets that of the targets."""
    cdef double factor[GROUP]
    cdef bint extreme[GROUP]
    cdef real scale[GROUP]
    cdef double value
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        factor[j] = index_scale(s[0], sums, j, group.weight[j], group.job)
    if group.job.o.focal_gamma != 0:
        for j in range(GROUP):
            factor[j] *= group.focus[j]
    if group.job.o.label_smoothing != 0:
        smooth_gradients(group, sums, factor, target, s)
        for j in range(GROUP):
            scale[j] = 1
        store_gradients(group, <const real*>target, <const real*>scale, s)
        return
    for j in range(GROUP):
        scale[j] = <real>factor[j]
        target[j] = <real>(0 if group.weight[j] == 0
                           else -whole_rest(s[0], sums.rest.hi[j], sums.rest.lo[j]) * factor[j])
    if group.job.o.z_loss != 0:
        for j in range(GROUP):
            value = -whole_rest(s[0], sums.rest.hi[j], sums.rest.lo[j]) * factor[j]
            value = z_target(group, sums, j, &factor[j], value)
            target[j] = <real>(0 if group.weight[j] == 0 else value)
            scale[j] = <real>factor[j]
    if group.job.o.softcap != 0:
        bend_columns(group, factor, target, s)
        for j in range(GROUP):
            scale[j] = 1
    elif mark_extremes(s[0], group.job, factor, extreme):
        for c in range(group.job.k):
            for j in range(GROUP):
                value = s[c * GROUP + j] * factor[j]
                s[c * GROUP + j] = <real>value if extreme[j] else s[c * GROUP + j]
        for j in range(GROUP):
            scale[j] = 1 if extreme[j] else scale[j]
    store_gradients(group, <const real*>target, <const real*>scale, s)


cdef inline void compensated_columns(
    Group* group, const real* m, const real* target, const sl_ahead* ahead, real* s
) noexcept nogil:
    """Exponentials in place, and what they lack."""
    cdef float lost[GROUP]
    cdef float lost_target[GROUP]
    cdef float e[GROUP]
    cdef int j
    if real is float:
        sl_compensated_columns(s, s, group.job.k, m, lost, ahead)
        sl_compensated_columns(target, e, 1, m, lost_target, NULL)
        for j in range(GROUP):
            group.lost[j] = <double>lost[j] - <double>lost_target[j]
            group.lost_target[j] = lost_target[j]


cdef inline void index_exponentials(
    Group* group, const Py_ssize_t* place, TargetSums* sums, real* s
) noexcept nogil:
    """Exponentials of a group, and m - x of the targets, of which `place` says where in s they are."""
    cdef bint limit[GROUP]
    cdef bint limited
    cdef real m[GROUP]
    cdef real target[GROUP]
    cdef sl_ahead ahead
    cdef int i, j
    if group.job.o.from_probabilities:
        raised_columns(group, s)
        return
    limited = open_group(group, s, m, limit)
    if group.job.o.z_loss != 0:
        for j in range(GROUP):
            group.m[j] = scaled_maximum(group.job, m[j], limited and limit[j])
    for i from 0 <= i < GROUP by 8:
        for j in range(i, i + 8):
            target[j] = s[place[j]]
    for j in range(GROUP):
        sums.gap[j] = (<double>m[j] - <double>target[j]) * group.job.exponent_scale
    if group.job.o.label_smoothing != 0:
        smooth_columns(group, <const real*>m, s)
    if is_compensated(group.job.how, s[0]):
        compensated_columns(group, <const real*>m, <const real*>target, group_ahead(group, &ahead), s)
    else:
        column_exponentials(<const real*>s, s, group.job.k, <const real*>m, group.job.how,
                            group.job.exponent_scale, group_ahead(group, &ahead))
    if group.job.o.label_smoothing != 0 and group.smooth.any_dead:
        mark_dead(<const real*>(s + TILE_TARGETS), group.job.k * GROUP, s)


cdef void index_columns(Group* group, real* s) noexcept nogil:
    """Losses and gradient of a group as columns."""
    cdef Py_ssize_t place[GROUP]
    cdef real target[GROUP]
    # where stores to s can not reach: sums in `group` of float64 would be loaded and stored for every class;
    # for float32 they are, and GCC makes more of them than of an array of its own
    cdef TargetSums apart
    cdef TargetSums* sums = &group.sums if real is float else &apart
    cdef Py_ssize_t i, j
    for j in range(GROUP):
        place[j] = group.y[j] * GROUP + j
    index_exponentials(group, place, sums, s)
    # the target leaves its column for the sum of the others
    for i from 0 <= i < GROUP by 8:
        for j in range(i, i + 8):
            target[j] = take_out(s + place[j])
    column_sums(<const real*>s, group.job.k, False, group.job.how == SL_BRIEF, &sums.rest)
    for j in range(GROUP):
        sums.e_target[j] = target[j]
    if is_compensated(group.job.how, s[0]):
        for j in range(GROUP):
            sums.rest.hi[j] += group.lost[j]
            sums.e_target[j] += group.lost_target[j]
    index_losses(s[0], group, sums, 0, GROUP)
    if group.job.want & WANT_GRAD:
        index_gradients(group, sums, target, s)


cdef void index_quotients(Group* group, real* s) noexcept nogil:
    """Losses and gradient of a group of probabilities where they lie."""
    cdef double factor[GROUP]
    cdef double target[GROUP]
    cdef int j
    sum_probability_rows(group, s[0])
    index_losses(s[0], group, &group.sums, 0, GROUP)
    if group.job.want & WANT_GRAD:
        for j in range(GROUP):
            target[j] = index_target(s[0], group, j, &factor[j])
        write_quotient_rows(group, factor, target, s)


# ---- a row by itself ------------------------------------------------------------------------------

cdef bint smooth_row(
    Row* row, const Group* group, double factor, double less, bint extreme, real* s
) noexcept nogil:
    """Scale the exponentials of a row to the gradient of smoothed targets; False where the call is to end."""
    cdef bint dead = group.smooth.any_dead
    cdef const real* e
    cdef Py_ssize_t index
    for index in range(row.pieces):
        if not place_piece(index, row):
            return False
        e = return_to_piece(row, s)
        if dead and row.pieces > 1 and not row.cached:
            mark_piece(row, s)
        smooth_values(
            e, row.n, factor, less, extreme, dead, <real*>row.grad + row.first if row.in_place else s)
        if not row.in_place:
            write_piece(row, <const real*>s)
    return True


cdef bint sum_others(Row* row, Group* group, int j, real* s) noexcept nogil:
    """What the loss of a row is made from; False where the call is to end."""
    cdef double rest = 0, rest_lo = 0, e_target = 1
    cdef bint smooth = row.job.o.label_smoothing != 0
    cdef bint dead
    cdef Py_ssize_t index
    row.how = row.job.how
    open_row(row, s)
    open_smoothing(group, j)
    for index in range(row.pieces):
        if not place_piece(index, row):
            return False
        dead = smooth and smooth_piece(row, group, j, s)
        piece_exponentials(row, s)
        if dead:
            mark_piece(row, s)
        if row.first <= row.y < row.first + row.n:
            e_target = take_out(s + (row.y - row.first))
            if is_compensated(row.how, s[0]):
                e_target += s[TILE_LOST + row.y - row.first]
        add_piece(row, <const real*>s, False, &rest, &rest_lo)
        if row.cached:
            write_piece(row, <const real*>s)
    group.sums.gap[j] = (row.m - row.x_target) * row.job.exponent_scale
    group.sums.rest.hi[j] = rest
    group.sums.rest.lo[j] = rest_lo
    group.sums.e_target[j] = e_target
    if row.job.o.z_loss != 0:
        group.m[j] = scaled_maximum(row.job, row.m, row.limit)
    return True


cdef void index_row(Row* row, Group* group, int j, real* s) noexcept nogil:
    """Gradient of a row, and what its loss is made from; of few classes with the bits of `index_columns`."""
    cdef const Settings* o = row.job.o
    cdef bint smooth = o.label_smoothing != 0
    cdef double less = 0, factor, target
    cdef bint extreme, done
    if o.from_probabilities:
        done = sum_probabilities(row, &group.sums, j, s)
    else:
        done = sum_others(row, group, j, s)
    if not done:
        return
    if losses_first(o):
        index_losses(s[0], group, &group.sums, j, j + 1)
    if row.grad == NULL:
        return
    target = index_target(s[0], group, j, &factor)
    if o.softcap != 0:
        target *= row.job.logit_scale * row.slope_target
    if smooth:
        target = smooth_target(s[0], group, &group.sums, j, &factor, &less)
    extreme = is_extreme(s[0], factor) or is_extreme(s[0], less)
    if smooth:
        done = smooth_row(row, group, factor, less, extreme, s)
    elif o.from_probabilities:
        done = write_quotients(row, factor, extreme, s)
    else:
        done = scale_row(row, factor, extreme, s)
    if done:
        store_class(row, row.y, <real>target)


cdef inline void close_indices(real hint, Group* group) noexcept nogil:
    """The losses of rows by themselves, if their gradients did without them."""
    if not losses_first(group.job.o):
        index_losses(hint, group, &group.sums, 0, group.count)


cdef void index_cross_entropy(Group* group, real* s) noexcept nogil:
    if together(s[0], group.job):
        index_quotients(group, s)
    elif as_columns(s[0], group) and (
            not group.job.o.from_probabilities or few_probabilities(s[0], group.job.k)):
        index_columns(group, s)
    else:
        each_row(group, index_row[real], s)
        close_indices(s[0], group)


cdef void softmax_ce_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    softmax_rows(job, start, stop, index_cross_entropy[real], soft_cross_entropy[real], total, scratch)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 grad 2.282 in a row of 100
#   float32 hess 3.849 in a row of 10
#   float32 loss 1.570 at 0x1.46016ep+2, -0x1.a5bdf4p-4, target 0
#   float32 soft grad 2.681 in a row of 1000
#   float32 soft hess 3.432 in a row of 100
#   float32 soft loss 1.519 in a row of 3
#   float64 grad 2.609 in a row of 1000
#   float64 hess 3.149 in a row of 100
#   float64 loss 2.290 in a row of 10
#   float64 soft grad 3.244 in a row of 10
#   float64 soft hess 3.892 in a row of 1000
#   float64 soft loss 2.517 in a row of 2
softmax_ce = loss_kernel(softmax_ce_kernel[float], softmax_ce_kernel[double], rowwise=True)

# The rows of a softmax loss, GROUP of them at a time: what its kernels have in common around the arithmetic.
#
# uses _job: Job
# uses _math: SL_ISFINITE log1p_positive real row_scale two_sum unit
# uses _operand: Operand row_offsets store_value
# uses _options: WANT_GRAD WANT_HESS WANT_LOSS WANT_PRODUCT WANT_STATS WANT_TARGET_GRAD
# uses _pieces: Row
# uses _rows: Columns column_maxima finish_exponentials limit_columns load_columns open_tile rows_ahead
# uses _rows: soft_sums start_limits tile_vector
# uses _stats: Statistics store_row_statistics store_statistics tile_statistics
# uses _sums: FAR GROUP NARROW Pairs Split Sum add add_before add_far clear_pairs clear_split copy_pairs
# uses _sums: copy_split few_classes fold_columns fold_half reduce_split sum_exponentials sum_split
# uses _tiles: TILE_EV TILE_EXPS TILE_LOGITS TILE_TARGETS Tile open_rows place_tile write_tile
# uses _weights: load_classes load_weights

cdef struct TargetSums:
    # Per row, for the cross-entropy of class indices.
    double gap[GROUP]       # m - x_y
    double e_target[GROUP]
    Pairs rest              # sum of the other exponentials


cdef inline double whole_rest(real hint, double rest, double rest_lo) noexcept nogil:
    """The sum without the target, to all of its digits; float32 loses none of them."""
    if real is float:
        return rest
    else:
        return rest + rest_lo


cdef inline double above_maximum(real hint, const TargetSums* sums, int j) noexcept nogil:
    """The sum without a maximum: where the target is not one, `rest` holds the maximum's UNIT."""
    return (whole_rest(hint, sums.rest.hi[j], sums.rest.lo[j]) if sums.gap[j] == 0 else
            (sums.rest.hi[j] - <double>unit(hint)) + whole_rest(hint, sums.e_target[j], sums.rest.lo[j]))


cdef struct Smoothing:
    # Per row, for label smoothing (see _smoothing.pxi): of the classes above -inf
    Pairs gaps              # GAP_UNIT (m - x)
    double live[GROUP]      # their number
    double share[GROUP]     # smoothing / number
    bint dead_target[GROUP]     # the target is none of them
    bint any_dead               # of this row, or one that is gone through with it, any class is none


cdef struct Group:
    # Rows start ... start + count - 1: what they count for, and what their losses are made from.
    const Job* job
    Py_ssize_t start
    int count
    double weight[GROUP]
    double loss[GROUP]
    double focus[GROUP]     # with focusing, what it multiplies the gradient by
    Py_ssize_t y[GROUP]     # class indices
    double m[GROUP]         # maxima, of activations and with z
    double z_slope[GROUP]   # 2 z lse
    double lost[GROUP]      # what the sum of the others' exponentials lacks, and ...
    double lost_target[GROUP]   # ... the target's, where they come with that
    TargetSums sums
    Smoothing smooth

ctypedef void (*RowStep)(Row*, Group*, int, real*) noexcept nogil
ctypedef void (*GroupStep)(Group*, real*) noexcept nogil
ctypedef void (*TileStep)(Tile*, real*) noexcept nogil


cdef void clear_row(const Job* job, const Operand* op, Py_ssize_t row, real* s) noexcept nogil:
    cdef Tile tile
    cdef Py_ssize_t index, i
    for i in range(min(<Py_ssize_t>PIECE, job.k)):
        s[i] = 0
    open_rows(job, row, 1, True, &tile)
    for index in range(tile.tiles):
        if not place_tile(index, &tile):
            return
        write_tile(<const real*>s, op, &tile)


cdef void clear_derivatives(const Job* job, Py_ssize_t row, int want, real* s) noexcept nogil:
    if want & (WANT_GRAD | WANT_PRODUCT | WANT_TARGET_GRAD):
        clear_row(job, &job.g, row, s)
    if want & WANT_HESS:
        clear_row(job, &job.h, row, s)


cdef void clear_results(const Job* job, Py_ssize_t row, int want, real* s) noexcept nogil:
    """The results of a row that does not count, whatever it holds."""
    clear_derivatives(job, row, want, s)
    if job.wants_probabilities:
        clear_row(job, &job.p, row, s)
    if want & WANT_STATS:
        store_row_statistics(job, row, -1, 0, 0)


cdef inline bint as_columns(real hint, const Group* group) noexcept nogil:
    """Whether rows take less time as columns, empty ones beside them, than each by itself."""
    return few_classes(hint, group.job.k) and group.count > 3 + group.job.k // 8


cdef inline bint open_group(const Group* group, real* s, real* m, bint* limit) noexcept nogil:
    """Logits of a group as columns, and their maxima; whether any is that of a limit, and then which."""
    cdef int j
    load_columns(group.job, group.start, group.count, group.weight, s, s + TILE_SLOPE)
    for j in range(GROUP):
        m[j] = s[j]
    column_maxima(<const real*>(s + GROUP), group.job.k - 1, m)
    if not start_limits(m, limit):
        return False
    limit_columns(s, group.job.k, limit)
    return True


cdef inline sl_ahead* group_ahead(const Group* group, sl_ahead* ahead) noexcept nogil:
    cdef const Job* job = group.job
    cdef Py_ssize_t row = job.k * job.x.inner
    return rows_ahead(job, group.start * row, group.count * row, ahead)


# ---- sums of a row and its target ----------------------------------------------------------------

cdef inline double index_scale(
    real hint, const TargetSums* sums, int j, double weight, const Job* job
) noexcept nogil:
    """Factor from an exponential to its gradient."""
    cdef double lo, total, divisor = job.divisor
    weight *= job.exponent_scale
    if real is float:
        return weight / (divisor * (sums.rest.hi[j] + sums.e_target[j]))
    else:
        total = two_sum(sums.rest.hi[j], sums.e_target[j], &lo)
        return row_scale(weight, divisor, total, lo + sums.rest.lo[j])


cdef inline void plain_losses(
    real hint, const TargetSums* sums, int start, int stop, double* loss
) noexcept nogil:
    """Losses of rows start ... stop - 1 without further options."""
    cdef double inverse = 1 / <double>unit(hint)
    cdef int j
    for j in range(start, stop):
        loss[j] = sums.gap[j] + log1p_positive(above_maximum(hint, sums, j) * inverse)


# ---- rows ----------------------------------------------------------------------------------------

cdef void each_row(Group* group, RowStep step, real* s) noexcept nogil:
    """Rows of class indices by themselves."""
    cdef Py_ssize_t x[GROUP]
    cdef Py_ssize_t grad[GROUP]
    cdef bint wanted = group.job.want & WANT_GRAD != 0
    cdef Row row
    cdef int j
    row.job = group.job
    row_offsets(&group.job.x, group.start, group.count, x)
    if wanted:
        row_offsets(&group.job.g, group.start, group.count, grad)
    for j in range(group.count):
        if group.weight[j] == 0:
            group.sums.gap[j] = group.sums.rest.hi[j] = group.sums.rest.lo[j] = 0
            group.sums.e_target[j] = 1
            group.loss[j] = 0
            if wanted:
                clear_row(group.job, &group.job.g, group.start + j, s)
            continue
        row.x = group.job.x.data + x[j]
        row.grad = group.job.g.data + grad[j] if wanted else NULL
        row.y = group.y[j]
        row.weight = group.weight[j]
        step(&row, group, j, s)


cdef void add_tile(Pairs* tile, const Pairs* before) noexcept nogil:
    """Sums of a tile of a wide row to those of the tiles up to it."""
    cdef double hi, lo
    fold_columns(tile, True)
    add_before(before.hi[0], before.lo[0], tile)
    hi = tile.hi[0]
    lo = tile.lo[0]
    clear_pairs(tile)
    tile.hi[0] = hi
    tile.lo[0] = lo


cdef void sum_tile(const Tile* tile, Columns* columns, const real* scratch) noexcept nogil:
    """Add up a tile; one of several by itself first, as shards of a row do that have some of its tiles."""
    cdef Split sums
    cdef Pairs loss
    cdef Pairs mass
    if tile.tiles > 1:
        copy_split(&columns.sums, &sums)
        clear_split(&columns.sums)
        if columns.linear:
            copy_pairs(&columns.loss, &loss)
            copy_pairs(&columns.mass, &mass)
            clear_pairs(&columns.loss)
            clear_pairs(&columns.mass)
    if columns.linear:
        soft_sums(tile, scratch + TILE_EXPS, scratch + TILE_LOGITS, scratch + TILE_TARGETS,
                  tile.lines * GROUP, columns)
    else:
        sum_exponentials(scratch + TILE_EXPS, tile.lines, &columns.sums)
    if tile.tiles > 1:
        add_tile(&columns.sums.max, &sums.max)
        add_tile(&columns.sums.rest, &sums.rest)
        if columns.linear:
            add_tile(&columns.loss, &loss)
            add_tile(&columns.mass, &mass)


cdef bint sum_tiles(Tile* tile, Columns* columns, Statistics* statistics, real* scratch) noexcept nogil:
    """The first time through the tiles of rows: exponentials, and what is summed without their total.
    False where the call is to end."""
    cdef const real* e = scratch + TILE_EXPS
    cdef Py_ssize_t index
    for index in range(tile.tiles):
        if not place_tile(index, tile):
            return False
        open_tile(tile, columns, scratch)
        sum_tile(tile, columns, <const real*>scratch)
        if tile.want & WANT_PRODUCT:
            tile_vector(tile, columns, scratch)
            sum_split(e, <const real*>(scratch + TILE_EV), tile.lines, &columns.ev)
        if tile.want & WANT_STATS:
            tile_statistics(tile, columns, <const real*>scratch, statistics)
        if columns.cached:
            write_tile(e, &tile.job.g, tile)
    finish_exponentials(columns, tile.wide, scratch[0])
    if tile.want & WANT_PRODUCT:
        reduce_split(&columns.ev, tile.wide)
    if tile.want & WANT_STATS:
        store_statistics(tile, columns, statistics, scratch[0])
    return True


cdef void tile_rows(Group* group, int want, TileStep step, real* scratch) noexcept nogil:
    """Rows in tiles."""
    cdef Tile tile
    cdef int j
    tile.want = want
    tile.weight = group.weight
    tile.loss = group.loss
    if group.job.k <= NARROW:
        open_rows(group.job, group.start, group.count, False, &tile)
        step(&tile, scratch)
        return
    for j in range(group.count):
        if group.weight[j] == 0:
            clear_results(group.job, group.start + j, want, scratch)
            continue
        tile.weight = &group.weight[j]
        tile.loss = &group.loss[j]
        open_rows(group.job, group.start + j, 1, True, &tile)
        step(&tile, scratch)


cdef inline void add_losses(const Group* group, Sum* total, double sum_, double lo) noexcept nogil:
    """Add the losses of a group, of which this is the sum if float64 holds it."""
    cdef int j
    if SL_ISFINITE(sum_):
        add(total, sum_, lo)
        return
    for j in range(group.count):
        if group.weight[j] != 0:
            add_far(total, group.loss[j] * FAR * group.weight[j])


cdef void close_group(const Group* group, Sum* total) noexcept nogil:
    """Weigh the losses, and store them or add them up."""
    cdef double value[GROUP]
    cdef double lo[GROUP]
    cdef int j
    if not group.job.want & WANT_LOSS:
        return
    if group.count == 1 and group.job.loss == NULL:
        add_losses(group, total, group.loss[0] * group.weight[0] if group.weight[0] != 0 else 0, 0)
        return
    for j in range(GROUP):
        value[j] = 0 if group.weight[j] == 0 else group.loss[j] * group.weight[j]
    for j in range(group.count, GROUP):
        value[j] = 0
    if group.job.loss != NULL:
        for j in range(group.count):
            store_value(group.job.loss, group.job.value_kind, group.start + j, value[j])
    else:
        for j in range(GROUP // 2):
            value[j] = two_sum(value[j], value[j + GROUP // 2], &lo[j])
        fold_half(value, lo)
        add_losses(group, total, value[0], lo[0])


cdef void softmax_rows(
    const Job* job,
    Py_ssize_t start,
    Py_ssize_t stop,
    GroupStep indices,
    TileStep tiles,
    Sum* total,
    real* scratch,
) noexcept nogil:
    """Class indices have their own way to loss and gradient, which a Hessian beside it does not change; all
    else goes through tiles."""
    cdef int want = job.want & WANT_HESS if job.indexed else job.want
    cdef Group group
    cdef Py_ssize_t at, j
    group.job = job
    for j in range(GROUP):
        group.weight[j] = 1
        group.y[j] = 0
    for at from start <= at < stop by GROUP:
        group.start = at
        group.count = <int>min(<Py_ssize_t>GROUP, stop - at)
        if job.indexed:
            load_classes(job, at, group.count, group.y)
        if job.any_weight:
            # in tiles the weights of classes are part of the targets
            load_weights(job, at, group.count, True, group.y if job.indexed else NULL, group.weight)
        if want:
            tile_rows(&group, want, tiles, scratch)
        if job.indexed:
            indices(&group, scratch)
        close_group(&group, total)

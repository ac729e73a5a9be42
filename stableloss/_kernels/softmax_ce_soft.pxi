# Softmax + cross-entropy of soft targets, and of class indices whose options make them such: loss and
# gradient without focusing and what else is made of logits. With the bits of tiles (see
# softmax_ce_options.pxi), but with less in the L1 cache at once: logits, targets and gradient of a wide row
# stay where they lie, and exponentials of columns take the place of the logits.
#
# uses _job: Job SL_PLAIN
# uses _math: SL_INFINITY real
# uses _operand: has_rows
# uses _options: Settings WANT_GRAD WANT_LOSS
# uses _pieces: row_maximum
# uses _rows: Columns column_exponentials column_maxima count_live finish_exponentials finish_log_sum
# uses _rows: finish_sum inverse_sum load_columns open_classes padded_copy row_exponentials rows_ahead
# uses _rows: soft_sums target_sums tile_targets
# uses _sums: GROUP Pairs add_before clear_pairs clear_split copy_pairs reduce_column reduce_columns sl_fold
# uses _sums: spread sum_exponentials
# uses _tiles: TILE_EXPS TILE_TARGETS Tile place_tile view_row write_tile
# uses softmax_ce_options: CrossEntropy finish_factors linear_loss row_gradient tile_cross_entropy
# uses softmax_ce_options: write_plain_gradient

cdef bint is_plain(const Tile* tile) noexcept nogil:
    """Whether loss and gradient, linear in the targets, of logits as they are given are all that is asked
    for. Class indices are here with the options that make them soft targets."""
    cdef const Job* job = tile.job
    cdef const Settings* o = job.o
    return (tile.want & ~(WANT_LOSS | WANT_GRAD) == 0 and not job.wants_probabilities
            and (not job.hard or o.label_smoothing != 0)
            and job.logit_scale == 1 and o.logit_clip == SL_INFINITY and o.focal_gamma == 0
            and o.z_loss == 0 and o.softcap == 0 and not o.from_probabilities)


cdef inline bint has_targets(const Job* job) noexcept nogil:
    """Whether targets are as they are given."""
    return not job.hard and job.o.label_smoothing == 0 and job.o.class_weight == NULL


cdef bint stays_in_place(const Tile* tile, real hint) noexcept nogil:
    cdef const Job* job = tile.job
    return (has_rows(&job.x, hint) and (not has_targets(job) or has_rows(&job.t, hint))
            and (not tile.want & WANT_GRAD or has_rows(&job.g, hint))
            # the gradient may take the place of logits that the targets are made from
            and (tile.tiles == 1 or job.o.label_smoothing == 0))


cdef inline const real* targets_in_place(const Tile* tile, Columns* columns, real* scratch) noexcept nogil:
    """The targets of a wide tile, where they lie or in scratch."""
    if has_targets(tile.job):
        return view_row(&tile.job.t, tile, scratch)
    tile_targets(tile, columns, <const real*>view_row(&tile.job.x, tile, scratch), scratch)
    return scratch + TILE_TARGETS


cdef void count_in_place(const Tile* tile, Columns* columns, real* scratch) noexcept nogil:
    """The classes above -inf of a row of one tile."""
    cdef const real* x = view_row(&tile.job.x, tile, scratch)
    cdef Py_ssize_t i
    cdef int live = 0
    for i in range(tile.n):
        live += x[i] != -SL_INFINITY
    columns.live[0] = live
    spread(columns.live)


cdef real maximum_in_place(Tile* tile, real* scratch) noexcept nogil:
    """Of no use where the call is to end."""
    cdef const real* x
    cdef real m = -SL_INFINITY
    cdef Py_ssize_t index, whole
    for index in range(tile.tiles):
        if not place_tile(index, tile):
            break
        x = view_row(&tile.job.x, tile, scratch)
        whole = tile.n & ~(GROUP - 1)
        m = row_maximum(x, whole, m)
        if whole < tile.n:
            padded_copy(x + whole, tile.n - whole, scratch)
            m = row_maximum(<const real*>scratch, GROUP, m)
    return m


cdef inline bint keeps_exponentials(const Tile* tile) noexcept nogil:
    """Whether the exponentials of a tile can be formed where its gradient will be: those of several tiles
    wait there. The sums need the logits after them, and whole lines."""
    return (tile.tiles > 1 and tile.want & WANT_GRAD != 0 and tile.n % GROUP == 0
            and tile.job.g.data != tile.job.x.data)


cdef void add_in_place(const Tile* tile, Columns* columns, real* scratch) noexcept nogil:
    """Exponentials of a tile, and its sums, which are added across the columns."""
    cdef const real* x = view_row(&tile.job.x, tile, scratch)
    cdef const real* q = targets_in_place(tile, columns, scratch)
    cdef real* e = scratch + TILE_EXPS
    cdef Py_ssize_t whole = tile.n & ~(GROUP - 1)
    cdef real m = <real>columns.m[0]
    cdef sl_ahead ahead
    if keeps_exponentials(tile):
        e = view_row(&tile.job.g, tile, scratch)
    row_exponentials(x, e, whole, m, SL_PLAIN, 1, rows_ahead(
        tile.job, <const char*>x - tile.job.x.data, tile.job.k * tile.job.x.inner, &ahead))
    if whole < tile.n:
        padded_copy(x + whole, tile.n - whole, e + whole)
        row_exponentials(<const real*>(e + whole), e + whole, GROUP, m, SL_PLAIN, 1, NULL)
    soft_sums(tile, <const real*>e, x, q, tile.n, columns)
    sl_fold(columns.sums.rest.hi, columns.sums.rest.lo)
    sl_fold(columns.sums.max.hi, columns.sums.max.lo)
    sl_fold(columns.loss.hi, columns.loss.lo)
    sl_fold(columns.mass.hi, columns.mass.lo)


cdef bint sum_in_place(Tile* tile, Columns* columns, real* scratch) noexcept nogil:
    """All sums of a row; False where the call is to end. Exponentials of several tiles wait in the gradient's
    place."""
    cdef Pairs* sums[4]
    cdef double hi[4]
    cdef double lo[4]
    cdef Py_ssize_t index
    cdef int i
    sums[0] = &columns.sums.rest
    sums[1] = &columns.sums.max
    sums[2] = &columns.loss
    sums[3] = &columns.mass
    for i in range(4):
        hi[i] = lo[i] = 0
    for index in range(tile.tiles):
        if not place_tile(index, tile):
            return False
        add_in_place(tile, columns, scratch)
        for i in range(4):
            add_before(hi[i], lo[i], sums[i])
            hi[i] = sums[i].hi[0]
            lo[i] = sums[i].lo[0]
        if tile.tiles > 1 and tile.want & WANT_GRAD and not keeps_exponentials(tile):
            write_tile(<const real*>(scratch + TILE_EXPS), &tile.job.g, tile)
    return True


cdef bint row_in_place(Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """Loss and gradient of a row; False where it is one for tiles."""
    cdef Columns* columns = &state.columns
    cdef real m
    cdef real* to
    cdef const real* q
    cdef Py_ssize_t index, j
    if not stays_in_place(tile, scratch[0]):
        return False
    m = maximum_in_place(tile, scratch)
    if m == SL_INFINITY:
        return False
    for j in range(GROUP):
        columns.m[j] = m
    open_classes(tile, columns)
    if tile.job.o.label_smoothing != 0:
        count_in_place(tile, columns, scratch)
    if not sum_in_place(tile, columns, scratch):
        return True
    finish_sum(columns, 0)
    finish_log_sum(columns, 0, m)
    reduce_column(&columns.loss, 0)
    reduce_column(&columns.mass, 0)
    tile.loss[0] = linear_loss(columns, 0)
    if not tile.want & WANT_GRAD:
        return True
    columns.weight[0] = tile.weight[0]
    state.mass.hi[0] = columns.mass.hi[0]
    state.mass.lo[0] = columns.mass.lo[0]
    state.factor[0] = inverse_sum(columns, 0, columns.weight[0], tile.job.divisor, m)
    for index in range(tile.tiles):
        if not place_tile(index, tile):
            return True
        to = view_row(&tile.job.g, tile, scratch)
        q = scratch + TILE_TARGETS
        if tile.tiles > 1 or has_targets(tile.job):
            q = targets_in_place(tile, columns, scratch)
        row_gradient(
            tile, state, tile.n, <const real*>(scratch + TILE_EXPS if tile.tiles == 1 else to), q, to)
    return True


cdef inline bint open_plain_columns(const Tile* tile, Columns* columns, real* x, real* m) noexcept nogil:
    """Logits and maxima; whether all of these are below +inf."""
    cdef int j, above = 0
    for j in range(GROUP):
        columns.weight[j] = tile.weight[j]
        m[j] = -SL_INFINITY
    load_columns(tile.job, tile.start, tile.count, columns.weight, x, x)
    column_maxima(<const real*>x, tile.lines, m)
    for j in range(GROUP):
        columns.m[j] = m[j]
        above |= m[j] == SL_INFINITY
    return above == 0


cdef bint columns_in_place(Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """Losses and gradient of a group as columns; False where it is one for tiles."""
    cdef Columns* columns = &state.columns
    cdef const Job* job = tile.job
    cdef real* e = scratch + TILE_EXPS
    cdef Py_ssize_t row = job.k * job.x.inner
    cdef sl_ahead ahead
    cdef real m[GROUP]
    cdef int j
    place_tile(0, tile)
    if not open_plain_columns(tile, columns, e, m):
        return False
    open_classes(tile, columns)
    if job.o.label_smoothing != 0:
        for j in range(GROUP):
            columns.live[j] = 0
        count_live(<const real*>e, tile.lines, columns.live)
    tile_targets(tile, columns, <const real*>e, scratch)
    clear_pairs(&columns.loss)
    clear_pairs(&columns.mass)
    clear_split(&columns.sums)
    target_sums(<const real*>e, <const real*>(scratch + TILE_TARGETS), tile.lines, columns)
    column_exponentials(<const real*>e, e, tile.lines, <const real*>m, SL_PLAIN, 1,
                        rows_ahead(job, tile.start * row, tile.count * row, &ahead))
    sum_exponentials(<const real*>e, tile.lines, &columns.sums)
    finish_exponentials(columns, False, m[0])
    reduce_columns(&columns.loss, False)
    reduce_columns(&columns.mass, False)
    if tile.want & WANT_LOSS:
        for j in range(GROUP):
            tile.loss[j] = linear_loss(columns, j)
    if tile.want & WANT_GRAD:
        copy_pairs(&columns.mass, &state.mass)
        finish_factors(tile, state, m[0])
        write_plain_gradient(tile, state, scratch)
    return True


cdef void soft_cross_entropy(Tile* tile, real* scratch) noexcept nogil:
    """A tile of whatever is not for class indices as they are."""
    cdef CrossEntropy state
    if is_plain(tile):
        state.columns.how = SL_PLAIN
        state.columns.plain = False
        state.columns.linear = True
        if row_in_place(tile, &state, scratch) if tile.wide else columns_in_place(tile, &state, scratch):
            return
    tile_cross_entropy(tile, scratch)

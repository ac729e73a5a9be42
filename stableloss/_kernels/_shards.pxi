# Rows of a softmax loss whose classes are in shards. A part has, for each row, what the loss needs to know of
# a shard: a head, and for each PIECE of the shard's classes sums relative to a maximum. Parts are merged by
# writing their pieces one after the other (see shards.py), and all sums of the whole are formed in the end.
#
# With the maximum of the whole row at hand, the pieces of shards that are cut at multiples of PIECE are those
# of the row itself: they are added in its order, and results have its bits. Otherwise each piece has the
# maximum of its shard, and is multiplied by e**(its maximum - that of the row) in the end.
#
# uses _groups: Group clear_row close_group
# uses _job: Job
# uses _logits: chain_first indicator_logit transform_logits
# uses _math: SL_INFINITY SL_ISFINITE SL_UNIT_F64 is_positive_infinity product product_error real two_sum unit
# uses _operand: Operand has_rows load_flat row_offsets
# uses _options: Settings WANT_GRAD WANT_LOSS
# uses _pieces: Row exponentials_of_piece load_limited maximum_of_pieces piece_exponentials piece_sum
# uses _pieces: place_piece scale_piece store_class take_out write_piece
# uses _rows: Columns column_exponentials column_maxima count_live finish_exponentials for_products gap_of
# uses _rows: given_targets inverse_square is_compensated is_extreme load_tile open_tile row_exponentials
# uses _rows: target_sums tile_exponentials to_real
# uses _sums: GROUP PIECE Pairs Split Sum clear_pairs clear_split few_classes fold_columns maximum_of padded
# uses _sums: reduce_split sum_exponentials
# uses _tiles: TILE_EXPS TILE_FIRST TILE_GRAD TILE_LOGITS TILE_LOST TILE_SLOPE TILE_TARGETS Tile open_rows
# uses _tiles: place_tile write_tile
# uses _weights: drops_by_class load_class_weights load_classes load_weights
# uses softmax_ce: close_indices index_losses index_target losses_first scaled_maximum
# uses softmax_ce_options: CrossEntropy FocalColumns FocalEntries FocalSums ce_gradient clear_focal
# uses softmax_ce_options: finish_factors finish_losses focal_columns focal_derivatives focal_entries
# uses softmax_mse: Gradients Quadratic RestSums finish_column finish_powers first_maximum gradient_entries
# uses softmax_mse: last_maximum quadratic_emit_gradient

cdef enum:
    # columns of a part: its head ...
    PART_FIRST = 0          # its classes, from this one
    PART_STOP = 1           # to before this one
    PART_CLASSES = 2        # of the whole row
    PART_WIDTH = 3          # columns per piece
    PART_MAXIMUM = 4        # that its pieces are relative to, or the largest of them
    PART_OWN = 5            # largest logit of its classes
    PART_TARGET = 6         # the target's logit ...
    PART_OWNED = 7          # ... where the target is one of its classes: 0 or 1
    PART_LIVE = 8           # classes above -inf
    PART_HEAD = 9
    # and for class indices with the quadratic cost the class that is left out as the maximum (-1: none), its
    # piece, and the sums of that piece without it
    PART_PEAK = 9
    PART_PEAK_PIECE = 10
    PART_PEAK_SUM = 11
    PART_PEAK_SQUARES = 13
    PART_PEAKED_HEAD = 15

    # columns of a piece; sums take two, hi and lo
    PIECE_MAXIMUM = 0
    # class indices without further options: exponentials but the target's, and their squares
    INDEX_REST = 1
    INDEX_SQUARES = 3
    # otherwise: exponentials equal to UNIT, and those below
    TILE_MAX = 1
    TILE_REST = 2
    # cross-entropy: q (m - x) / 2 and q of the targets, and with q = 1 of all classes, for label smoothing
    TILE_LOSS = 4
    # quadratic cost: of the exponentials e below UNIT e**2, e t, t**2; of those equal to it
    # 1 - t, t, (1 - t)**2, t (1 - t), t**2
    QUADRATIC_SUMS = 4
    QUADRATIC_WIDTH = 20


cdef struct Shard:
    Job whole               # the rows as those of all classes: targets, weights, divisor
    Job job                 # the shard's logits, soft targets and gradient as rows
    Settings settings       # the job's, whose class weights begin with the shard's
    Operand maximum         # of the raw logits of the whole rows
    bint has_maximum
    bint quadratic
    Py_ssize_t first        # class of the whole that is the shard's first
    Py_ssize_t pieces       # of the shard
    double* part            # of the shard, or of all of them
    Py_ssize_t length       # columns
    int head
    int width


cdef inline double* part_row(const Shard* shard, Py_ssize_t row) noexcept nogil:
    return shard.part + row * shard.length


cdef inline Py_ssize_t whole_pieces(const Shard* shard) noexcept nogil:
    return (shard.length - shard.head) // shard.width


# ---- maxima ---------------------------------------------------------------------------------------

cdef real part_maximum(const Shard* shard, Py_ssize_t row, real own) noexcept nogil:
    """What the pieces of a row are relative to: the given maximum, transformed, or the shard's own."""
    cdef real m[1]
    cdef real slope[1]
    cdef double* part = part_row(shard, row)
    m[0] = own
    if shard.has_maximum:
        load_flat(&shard.maximum, row, 1, m)
        transform_logits(&shard.job, 1, m, slope)
    part[PART_MAXIMUM] = m[0]
    part[PART_OWN] = own
    return m[0]


cdef inline real finite_reference(real m) noexcept nogil:
    """The maximum that exponentials are formed with: of a limit, and of nothing but -inf, it is 0."""
    return 0 if is_positive_infinity(m) or m == -SL_INFINITY else m


cdef struct Rescale:
    # From sums relative to a piece's maximum to those relative to the row's: times factor / UNIT.
    bint same
    double factor


cdef Rescale rescale_of(const Shard* shard, double m, double whole) noexcept nogil:
    cdef Rescale to
    cdef double factor[GROUP]
    cdef int j
    to.same = m == whole
    to.factor = 0
    if not (to.same or m == -SL_INFINITY or whole == SL_INFINITY):
        for j in range(GROUP):
            factor[j] = m
        row_exponentials(
            <const double*>factor, factor, GROUP, whole, True, shard.job.exponent_scale, NULL)
        to.factor = factor[0]
        # so near that exponentials equal to UNIT remain so
        to.same = to.factor == SL_UNIT_F64
    return to


cdef inline void add_rescaled(const Rescale* to, const double* pair, double* hi, double* lo) noexcept nogil:
    """Add a sum of a piece to that of a row, as the pieces of a row by itself are added."""
    cdef double value = pair[0]
    cdef double value_lo = pair[1]
    cdef double error
    if not to.same:
        value = pair[0] * to.factor
        value_lo = (product_error(pair[0], to.factor, value) + pair[1] * to.factor) / SL_UNIT_F64
        value /= SL_UNIT_F64
    hi[0] = two_sum(hi[0], value, &error)
    lo[0] += value_lo + error


# ---- blocks of rows -------------------------------------------------------------------------------

cdef void to_local_classes(const Shard* shard, int count, Py_ssize_t* y) noexcept nogil:
    """Class indices to classes of the shard, -1 where they are in another."""
    cdef Py_ssize_t j, at
    for j in range(count):
        at = y[j] - shard.first
        y[j] = at if 0 <= at < shard.job.k else -1


cdef void open_shard_group(
    const Shard* shard, Py_ssize_t start, Py_ssize_t stop, Group* group
) noexcept nogil:
    cdef Py_ssize_t j
    group.job = &shard.job
    group.start = start
    group.count = <int>min(<Py_ssize_t>GROUP, stop - start)
    for j in range(GROUP):
        group.weight[j] = 1
        group.y[j] = -1
    if shard.job.hard:
        load_classes(&shard.whole, start, group.count, group.y)
    if shard.whole.any_weight:
        load_weights(&shard.whole, start, group.count, True, group.y if shard.job.indexed else NULL,
                     group.weight)
    if shard.job.hard:
        to_local_classes(shard, group.count, group.y)


cdef void part_of_rows(const Shard* shard, Py_ssize_t start, Py_ssize_t stop, real* scratch) noexcept nogil:
    cdef Group group
    cdef Py_ssize_t at, i
    cdef double* part
    for at from start <= at < stop by GROUP:
        open_shard_group(shard, at, stop, &group)
        for i in range(group.count):
            part = part_row(shard, at + i)
            part[PART_MAXIMUM] = part[PART_OWN] = -SL_INFINITY
            if group.weight[i] == 0:
                continue
            if shard.job.indexed:
                part_of_indices(shard, &group, <int>i, scratch)
            else:
                part_of_tiles(shard, &group, <int>i, scratch)


cdef void finish_rows(
    const Shard* shard, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    cdef Group group
    cdef Py_ssize_t at, i
    for at from start <= at < stop by GROUP:
        open_shard_group(shard, at, stop, &group)
        for i in range(group.count):
            if group.weight[i] == 0:
                group.loss[i] = group.sums.gap[i] = group.sums.rest.hi[i] = group.sums.rest.lo[i] = 0
                group.sums.e_target[i] = 1
                clear_shard_row(shard, at + i, scratch)
            elif not shard.job.indexed:
                finish_tiles(shard, &group, <int>i, scratch)
            elif shard.quadratic:
                finish_quadratic_indices(shard, &group, <int>i, scratch)
            else:
                finish_indices(shard, &group, <int>i, scratch)
        if shard.job.indexed and not shard.quadratic:
            close_indices(scratch[0], &group)
        close_group(&group, total)


cdef void clear_shard_row(const Shard* shard, Py_ssize_t row, real* scratch) noexcept nogil:
    if shard.job.k:
        clear_row(&shard.job, &shard.job.g, row, scratch)


# ---- class indices without further options --------------------------------------------------------

cdef void open_shard_row(const Shard* shard, const Group* group, int j, Row* row) noexcept nogil:
    cdef Py_ssize_t offset
    row.job = &shard.job
    row_offsets(&shard.job.x, group.start + j, 1, &offset)
    row.x = shard.job.x.data + offset
    row.grad = NULL
    row.y = group.y[j]
    row.weight = group.weight[j]
    row.limit = row.cached = row.in_place = False
    # one more than there are: a single piece is read where it lies too
    row.pieces = shard.pieces + 1


cdef inline void store_piece_sum(
    const Shard* shard, const Row* row, const real* s, bint squares, double* to
) noexcept nogil:
    """The sum of a piece of a row of all the classes, see `add_piece`."""
    to[0] = piece_sum(row, shard.whole.k, s, squares, &to[1])


cdef void note_peak(const Shard* shard, const Row* row, double* part, real* s) noexcept nogil:
    """Sums of a piece without the row's maximum, if it is the first that has one."""
    cdef Py_ssize_t found
    if part[PART_PEAK] >= 0:
        return
    if few_classes(s[0], shard.whole.k):
        found = last_maximum(<const real*>s, row.n)
    else:
        found = first_maximum(<const real*>s, padded(row.n))
    if found >= row.n:
        return
    part[PART_PEAK] = shard.first + row.first + found
    part[PART_PEAK_PIECE] = row.first // PIECE
    take_out(s + found)
    store_piece_sum(shard, row, <const real*>s, False, &part[PART_PEAK_SUM])
    store_piece_sum(shard, row, <const real*>s, True, &part[PART_PEAK_SQUARES])


cdef void part_of_indices(const Shard* shard, const Group* group, int j, real* s) noexcept nogil:
    cdef double* part = part_row(shard, group.start + j)
    cdef double* piece = part + shard.head
    cdef Py_ssize_t index
    cdef real m
    cdef Row row
    open_shard_row(shard, group, j, &row)
    row.how = for_products(s[0]) if shard.quadratic else shard.job.how
    m = part_maximum(shard, group.start + j, maximum_of_pieces(&row, shard.pieces, s))
    if row.y >= 0:
        load_limited(&row, row.y, 1, s)
        part[PART_TARGET] = s[0]
        part[PART_OWNED] = 1
    row.limit = is_positive_infinity(m)
    row.m = finite_reference(m)
    for index in range(shard.pieces):
        if not place_piece(index, &row):
            return
        piece_exponentials(&row, s)
        if row.first <= row.y < row.first + row.n:
            take_out(s + (row.y - row.first))
        piece[PIECE_MAXIMUM] = m
        store_piece_sum(shard, &row, <const real*>s, False, &piece[INDEX_REST])
        if shard.quadratic:
            store_piece_sum(shard, &row, <const real*>s, True, &piece[INDEX_SQUARES])
            note_peak(shard, &row, part, s)
        piece += shard.width


cdef real open_whole(const Shard* shard, Row* row, Py_ssize_t at, real* s) noexcept nogil:
    """Begin to finish a row; returns the target's exponential."""
    cdef const double* whole = part_row(shard, at)
    cdef Py_ssize_t offset
    row.m = whole[PART_MAXIMUM]
    row.limit = is_positive_infinity(row.m)
    row.x_target = whole[PART_TARGET]
    if row.limit:
        row.m = 0
        row.x_target = indicator_logit(row.x_target)
    if shard.pieces:
        row_offsets(&shard.job.g, at, 1, &offset)
        row.grad = shard.job.g.data + offset
        row.in_place = has_rows(&shard.job.g, s[0])
    for offset in range(GROUP):
        s[offset] = <real>row.x_target
    exponentials_of_piece(row, <const real*>s, GROUP, NULL, s, s + TILE_LOST)
    return s[0]


cdef void finish_indices(const Shard* shard, Group* group, int j, real* s) noexcept nogil:
    """Gradient of a row by a shard, and what its loss is made from, with the arithmetic of `index_row`."""
    cdef const double* whole = part_row(shard, group.start + j)
    cdef const double* piece = whole + shard.head
    cdef double rest = 0, rest_lo = 0, factor = 0, target
    cdef bint extreme
    cdef Py_ssize_t index
    cdef Rescale to
    cdef Row row
    open_shard_row(shard, group, j, &row)
    row.how = shard.job.how
    group.sums.e_target[j] = open_whole(shard, &row, group.start + j, s)
    if is_compensated(row.how, s[0]):
        group.sums.e_target[j] += s[TILE_LOST]
    for index in range(whole_pieces(shard)):
        to = rescale_of(shard, piece[PIECE_MAXIMUM], whole[PART_MAXIMUM])
        add_rescaled(&to, &piece[INDEX_REST], &rest, &rest_lo)
        piece += shard.width
    group.sums.gap[j] = (row.m - row.x_target) * shard.job.exponent_scale
    group.sums.rest.hi[j] = rest
    group.sums.rest.lo[j] = rest_lo
    if shard.job.o.z_loss != 0:
        group.m[j] = scaled_maximum(&shard.job, row.m, row.limit)
    if losses_first(shard.job.o):
        index_losses(s[0], group, &group.sums, j, j + 1)
    if shard.pieces == 0:
        return
    target = index_target(s[0], group, j, &factor)
    extreme = is_extreme(s[0], factor)
    for index in range(shard.pieces):
        if not place_piece(index, &row):
            return
        piece_exponentials(&row, s)
        if shard.job.o.softcap != 0 and row.first <= row.y < row.first + row.n:
            target *= shard.job.logit_scale * s[TILE_SLOPE + row.y - row.first]
        scale_piece(&row, <const real*>s, factor, extreme, s)
    if row.y >= 0:
        store_class(&row, row.y, <real>target)


cdef Py_ssize_t whole_rest_sums(
    const Shard* shard, const Row* row, const double* whole, real e_target, RestSums* rest
) noexcept nogil:
    """The sums of `sum_pieces`; returns the class of the maximum, -1 where it is the target."""
    cdef const double* piece = whole + shard.head
    cdef bint few = few_classes(e_target, shard.whole.k)
    cdef bint apart = e_target != unit(e_target) if few else row.x_target != row.m
    cdef Py_ssize_t at = <Py_ssize_t>whole[PART_PEAK]
    cdef Py_ssize_t index
    cdef Rescale to
    apart = apart and at >= 0
    rest.sum.hi[0] = rest.sum.lo[0] = rest.squares.hi[0] = rest.squares.lo[0] = 0
    rest.target[0] = e_target
    rest.max[0] = unit(e_target) if apart else 0
    for index in range(whole_pieces(shard)):
        to = rescale_of(shard, piece[PIECE_MAXIMUM], whole[PART_MAXIMUM])
        if apart and index == <Py_ssize_t>whole[PART_PEAK_PIECE]:
            add_rescaled(&to, &whole[PART_PEAK_SUM], &rest.sum.hi[0], &rest.sum.lo[0])
            add_squares(&to, &whole[PART_PEAK_SQUARES], &rest.squares.hi[0], &rest.squares.lo[0])
        else:
            add_rescaled(&to, &piece[INDEX_REST], &rest.sum.hi[0], &rest.sum.lo[0])
            add_squares(&to, &piece[INDEX_SQUARES], &rest.squares.hi[0], &rest.squares.lo[0])
        piece += shard.width
    return at if apart else -1


cdef inline void add_squares(const Rescale* to, const double* pair, double* hi, double* lo) noexcept nogil:
    """Add a sum of squares, which is multiplied by the square of the factor."""
    cdef double once[2]
    cdef double at = 0, at_lo = 0
    if to.same:
        add_rescaled(to, pair, hi, lo)
        return
    add_rescaled(to, pair, &at, &at_lo)
    once[0] = at
    once[1] = at_lo
    add_rescaled(to, once, hi, lo)


cdef void finish_quadratic_indices(const Shard* shard, Group* group, int j, real* s) noexcept nogil:
    """Loss of a row, and its gradient by a shard, with the arithmetic of `quadratic_row`."""
    cdef const double* whole = part_row(shard, group.start + j)
    cdef RestSums rest
    cdef Gradients out
    cdef Py_ssize_t index, at
    cdef real e_target
    cdef Row row
    open_shard_row(shard, group, j, &row)
    row.how = for_products(s[0])
    e_target = open_whole(shard, &row, group.start + j, s)
    at = whole_rest_sums(shard, &row, whole, e_target, &rest)
    group.loss[j] = finish_column(s[0], &rest, 0, row.weight, shard.job.divisor, &out)
    for index in range(shard.pieces):
        if not place_piece(index, &row):
            return
        piece_exponentials(&row, s)
        if row.in_place:
            gradient_entries(<const real*>s, row.n, &out, <real*>row.grad + row.first)
        else:
            gradient_entries(<const real*>s, row.n, &out, s)
            write_piece(&row, <const real*>s)
    if row.y >= 0:
        store_class(&row, row.y, <real>out.target[0])
    at -= shard.first
    if 0 <= at < shard.job.k:
        store_class(&row, at, <real>out.max[0])


# ---- all else, in tiles ---------------------------------------------------------------------------

cdef void open_shard_tiles(
    const Shard* shard, Group* group, int j, Tile* tile, Columns* columns, real hint
) noexcept nogil:
    cdef int i
    open_rows(&shard.job, group.start + j, 1, True, tile)
    # one more than there are: a single tile is loaded again too
    tile.tiles = shard.pieces + 1
    tile.want = WANT_LOSS | WANT_GRAD
    tile.weight = &group.weight[j]
    tile.loss = &group.loss[j]
    columns.how = for_products(hint) if shard.quadratic else shard.job.how
    columns.plain = False
    columns.linear = shard.job.o.focal_gamma == 0
    columns.cached = False
    clear_split(&columns.sums)
    clear_pairs(&columns.loss)
    clear_pairs(&columns.mass)
    for i in range(GROUP):
        columns.weight[i] = group.weight[j]
        columns.y[i] = group.y[j]
        columns.live[i] = 0


cdef void set_reference(Columns* columns, double m, double reference) noexcept nogil:
    """The maximum, and in its place where exponentials are formed `reference`."""
    cdef int j
    columns.any_limit = is_positive_infinity(m)
    for j in range(GROUP):
        columns.limit[j] = columns.any_limit
        columns.m[j] = reference


cdef void open_part(
    const Shard* shard, Tile* tile, Columns* columns, double* part, real* scratch
) noexcept nogil:
    """The maximum, the target's logit and the number of classes above -inf."""
    cdef real* x = scratch + TILE_LOGITS
    cdef real m[GROUP]
    cdef real reference
    cdef Py_ssize_t index, j
    for j in range(GROUP):
        m[j] = -SL_INFINITY
    for index in range(shard.pieces):
        if not place_tile(index, tile):
            return
        load_tile(tile, columns.weight, x, scratch + TILE_SLOPE)
        column_maxima(<const real*>x, tile.lines, m)
        if shard.job.o.label_smoothing != 0:
            count_live(<const real*>x, tile.lines, columns.live)
        if shard.job.hard and tile.first <= columns.y[0] < tile.first + tile.n:
            part[PART_TARGET] = x[columns.y[0] - tile.first]
            part[PART_OWNED] = 1
    for j in range(GROUP):
        part[PART_LIVE] += columns.live[j]
    reference = part_maximum(shard, tile.start, maximum_of(m))
    set_reference(columns, reference, finite_reference(reference))


cdef void live_targets(const Tile* tile, real* scratch) noexcept nogil:
    """The weight of each class above -inf, by raw logits."""
    cdef const real* x = scratch + TILE_LOGITS
    cdef real* q = scratch + TILE_FIRST
    cdef const double* class_weight = tile.job.o.class_weight
    cdef Py_ssize_t i
    for i in range(tile.lines * GROUP):
        q[i] = 0 if x[i] == -SL_INFINITY else 1
    if class_weight != NULL:
        for i in range(tile.n):
            q[i] *= <real>class_weight[i + tile.first]


cdef void weighted_targets(const Tile* tile, const Columns* columns, real* scratch) noexcept nogil:
    """Soft targets times the weights of their classes, not smoothed."""
    cdef real* q = scratch + TILE_TARGETS
    cdef const double* class_weight = tile.job.o.class_weight
    cdef Py_ssize_t i
    given_targets(tile, columns, q)
    if class_weight != NULL:
        for i in range(tile.n):
            q[i] *= <real>class_weight[i + tile.first]


cdef inline void store_pairs(Pairs* sums, double* to) noexcept nogil:
    """Add across the columns of a wide tile, and store."""
    fold_columns(sums, True)
    to[0] = sums.hi[0]
    to[1] = sums.lo[0]


cdef void store_losses(const Tile* tile, Columns* columns, const real* scratch, double* to) noexcept nogil:
    """q (m - x) / 2 and q of a tile."""
    clear_pairs(&columns.loss)
    clear_pairs(&columns.mass)
    target_sums(scratch + TILE_LOGITS, scratch + TILE_TARGETS, tile.lines, columns)
    store_pairs(&columns.loss, &to[0])
    store_pairs(&columns.mass, &to[2])


cdef void part_of_tiles(const Shard* shard, Group* group, int j, real* scratch) noexcept nogil:
    cdef double* part = part_row(shard, group.start + j)
    cdef double* piece = part + shard.head
    cdef bint smooth = shard.job.o.label_smoothing != 0
    cdef Columns columns
    cdef Tile tile
    cdef Py_ssize_t index, i
    open_shard_tiles(shard, group, j, &tile, &columns, scratch[0])
    open_part(shard, &tile, &columns, part, scratch)
    for index in range(shard.pieces):
        if not place_tile(index, &tile):
            return
        load_tile(&tile, columns.weight, scratch + TILE_LOGITS, scratch + TILE_SLOPE)
        if smooth:
            live_targets(&tile, scratch)
        if not shard.job.hard:
            weighted_targets(&tile, &columns, scratch)
        tile_exponentials(&tile, &columns, scratch)
        clear_split(&columns.sums)
        sum_exponentials(<const real*>(scratch + TILE_EXPS), tile.lines, &columns.sums)
        fold_columns(&columns.sums.max, True)
        piece[PIECE_MAXIMUM] = part[PART_MAXIMUM]
        piece[TILE_MAX] = columns.sums.max.hi[0]
        store_pairs(&columns.sums.rest, &piece[TILE_REST])
        i = TILE_LOSS
        if shard.quadratic:
            quadratic_part(&tile, <const real*>scratch, &piece[QUADRATIC_SUMS])
        elif not shard.job.hard:
            store_losses(&tile, &columns, <const real*>scratch, &piece[i])
            i += 4
        if smooth:
            memcpy(scratch + TILE_TARGETS, scratch + TILE_FIRST, tile.lines * GROUP * sizeof(real))
            store_losses(&tile, &columns, <const real*>scratch, &piece[i])
        piece += shard.width


cdef void add_shifted_losses(
    const double* piece, const Rescale* to, double m, double whole, double* loss, double* mass
) noexcept nogil:
    """Add sums of q (m - x) / 2 and q, the first relative to the maximum of the row."""
    cdef Rescale same
    cdef double shift[2]
    same.same = True
    add_rescaled(&same, &piece[0], &loss[0], &loss[1])
    add_rescaled(&same, &piece[2], &mass[0], &mass[1])
    if to.same or piece[2] == 0 or m == -SL_INFINITY:
        return
    # the limit of a row with a +inf elsewhere
    shift[0] = 0.5 * whole - 0.5 * m
    shift[1] = 0
    if whole != SL_INFINITY:
        shift[0] = product(piece[2], piece[3], shift[0], <double>0, &shift[1])
    add_rescaled(&same, shift, &loss[0], &loss[1])


cdef inline double pair_value(const double* pair) noexcept nogil:
    # what an infinite sum lost is inf - inf
    return pair[0] + pair[1] if SL_ISFINITE(pair[0]) else pair[0]


cdef void whole_losses(
    const Shard* shard, const double* whole, Columns* columns, double target
) noexcept nogil:
    """q (m - x) / 2 and q of all classes, smoothed or not; `target` is q of a class index."""
    cdef const double* piece = whole + shard.head
    cdef double given[4]        # of the targets: both sums as hi and lo
    cdef double live[4]         # of all classes
    cdef double stays = 1 - shard.job.o.label_smoothing
    cdef double share = shard.job.o.label_smoothing / whole[PART_LIVE] if stays != 1 else 0
    cdef Rescale to
    cdef Py_ssize_t index, i
    for i in range(4):
        given[i] = live[i] = 0
    for index in range(whole_pieces(shard)):
        to = rescale_of(shard, piece[PIECE_MAXIMUM], whole[PART_MAXIMUM])
        i = TILE_LOSS
        if not shard.job.hard:
            add_shifted_losses(
                &piece[i], &to, piece[PIECE_MAXIMUM], whole[PART_MAXIMUM], &given[0], &given[2])
            i += 4
        if stays != 1:
            add_shifted_losses(&piece[i], &to, piece[PIECE_MAXIMUM], whole[PART_MAXIMUM], &live[0], &live[2])
        piece += shard.width
    if shard.job.hard:
        given[2] = target
        given[0] = 0 if target == 0 else target * gap_of(columns.m[0], target_logit(whole, columns))
    clear_pairs(&columns.loss)
    clear_pairs(&columns.mass)
    columns.loss.hi[0] = given[0]
    columns.loss.lo[0] = given[1]
    columns.mass.hi[0] = given[2]
    columns.mass.lo[0] = given[3]
    if stays != 1:
        columns.loss.hi[0] = stays * pair_value(&given[0]) + share * pair_value(&live[0])
        columns.mass.hi[0] = stays * pair_value(&given[2]) + share * pair_value(&live[2])
        columns.loss.lo[0] = columns.mass.lo[0] = 0


cdef inline double target_logit(const double* whole, const Columns* columns) noexcept nogil:
    return indicator_logit(whole[PART_TARGET]) if columns.any_limit else whole[PART_TARGET]


cdef double target_weight(const Shard* shard, Py_ssize_t row, real hint) noexcept nogil:
    """What the class index of a row counts for, whichever shard has it."""
    cdef Py_ssize_t y[GROUP]
    if shard.whole.o.class_weight == NULL or not shard.job.hard:
        return 1
    load_classes(&shard.whole, row, 1, y)
    return <real>shard.whole.o.class_weight[y[0]]


cdef void whole_sums(const Shard* shard, const double* whole, Columns* columns) noexcept nogil:
    """Sums of the exponentials: of those equal to UNIT for the maximum of the row, and of all others."""
    cdef const double* piece = whole + shard.head
    cdef double max_[2]
    cdef Rescale to
    cdef Py_ssize_t index
    for index in range(whole_pieces(shard)):
        to = rescale_of(shard, piece[PIECE_MAXIMUM], whole[PART_MAXIMUM])
        if to.same:
            columns.sums.max.hi[0] += piece[TILE_MAX]
        else:
            max_[0] = piece[TILE_MAX]
            max_[1] = 0
            add_rescaled(&to, max_, &columns.sums.rest.hi[0], &columns.sums.rest.lo[0])
        add_rescaled(&to, &piece[TILE_REST], &columns.sums.rest.hi[0], &columns.sums.rest.lo[0])
        piece += shard.width
    if whole[PART_MAXIMUM] == -SL_INFINITY:
        # the exponentials of the row itself are NaN
        columns.sums.rest.hi[0] = whole[PART_MAXIMUM] - whole[PART_MAXIMUM]


cdef void whole_focal(
    const Shard* shard, const double* whole, CrossEntropy* state, double target, real* scratch
) noexcept nogil:
    """The loss of the target's class, first and second, from its logit."""
    cdef FocalColumns focal
    cdef FocalEntries of
    cdef real x[GROUP]
    cdef real e[GROUP]
    cdef real m[GROUP]
    cdef real q[GROUP]
    cdef Split* first = &state.focal.first
    cdef int j
    to_real(state.columns.m, m)
    for j in range(GROUP):
        x[j] = <real>target_logit(whole, &state.columns)
        q[j] = <real>target
    column_exponentials(<const real*>x, e, 1, <const real*>m, shard.job.how, 1, NULL)
    focal_columns(&shard.job, &state.columns, &focal)
    focal_entries(&focal, <const real*>e, <const real*>x, <const real*>q, &of)
    clear_focal(&state.focal)
    for j in range(GROUP):
        state.focal.loss.hi[j] = of.loss[j]
        (&first.rest if e[j] < unit(e[j]) else &first.max).hi[j] = of.first[j]


cdef void finish_tiles(const Shard* shard, Group* group, int j, real* scratch) noexcept nogil:
    cdef const double* whole = part_row(shard, group.start + j)
    cdef CrossEntropy entropy
    cdef Quadratic quadratic
    cdef Columns* columns = &quadratic.columns if shard.quadratic else &entropy.columns
    cdef Tile tile
    cdef int i
    open_shard_tiles(shard, group, j, &tile, columns, scratch[0])
    set_reference(columns, whole[PART_MAXIMUM],
                  0 if is_positive_infinity(whole[PART_MAXIMUM]) else whole[PART_MAXIMUM])
    for i in range(GROUP):
        columns.live[i] = whole[PART_LIVE]
    whole_sums(shard, whole, columns)
    finish_exponentials(columns, True, scratch[0])
    if shard.quadratic:
        finish_quadratic_tiles(shard, whole, &tile, &quadratic, scratch)
    else:
        finish_entropy_tiles(shard, whole, &tile, &entropy, scratch)


cdef void finish_entropy_tiles(
    const Shard* shard, const double* whole, Tile* tile, CrossEntropy* state, real* scratch
) noexcept nogil:
    cdef FocalSums again
    cdef Py_ssize_t index
    cdef double present = 1
    cdef double target = target_weight(shard, tile.start, scratch[0])
    finish_factors(tile, state, scratch[0])
    if state.columns.linear:
        whole_losses(shard, whole, &state.columns, target)
    else:
        whole_focal(shard, whole, state, target, scratch)
    finish_losses(tile, state, scratch[0])
    clear_focal(&again)
    if drops_by_class(&shard.whole):
        load_class_weights(&shard.whole, tile.start, 1, False, True, &present)
    if present == 0:
        tile.weight[0] = 0
        clear_shard_row(shard, tile.start, scratch)
        return
    for index in range(shard.pieces):
        if not place_tile(index, tile):
            return
        open_tile(tile, &state.columns, scratch)
        if not state.columns.linear:
            focal_derivatives(tile, &state.columns, &again, scratch)
        ce_gradient(tile, state, scratch)
        chain_first(shard.job.o, tile.lines * GROUP, <const real*>(scratch + TILE_SLOPE), scratch + TILE_GRAD)
        write_tile(<const real*>(scratch + TILE_GRAD), &shard.job.g, tile)


# ---- quadratic cost of soft targets ---------------------------------------------------------------
#
# With S the sum, (d S)**2 = (e - t S)**2 of the exponentials below UNIT is e**2 - 2 S e t + S**2 t**2, and
# e d S is e**2 - S e t: differences no larger than their terms, in twice the digits. At an exponential U of
# UNIT, where t may be 1 and S nearly U, d S is U (1 - t) - t R with R = S - U, which needs sums of its own.

cdef void quadratic_part(const Tile* tile, const real* scratch, double* to) noexcept nogil:
    """Eight sums of a tile."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef double e_max = unit(e[0])
    cdef double v, below, share, off
    cdef double term[8]
    cdef double error
    cdef Py_ssize_t i, c
    for i in range(16):
        to[i] = 0
    for i in range(tile.n):
        v = e[i]
        below = 0 if v == e_max else 1
        share = t[i]
        off = 0 if v < e_max else 1 - share
        term[0] = v * v * below
        term[1] = v * share * below
        term[2] = share * share * below
        term[3] = off
        term[4] = share * (1 - below)
        term[5] = off * off
        term[6] = term[4] * off
        term[7] = term[4] * term[4]
        for c in range(8):
            to[2 * c] = two_sum(to[2 * c], term[c], &error)
            to[2 * c + 1] += error
        if real is double:
            to[1] += product_error(v, v, term[0]) * below
            to[3] += product_error(v, share, term[1]) * below
            to[5] += product_error(share, share, term[2]) * below
            to[11] += product_error(off, off, term[5])
            to[13] += product_error(term[4], off, term[6])
            to[15] += product_error(term[4], term[4], term[7])


cdef struct QuadraticSums:
    double hi[8]
    double lo[8]


cdef inline void add_pair(QuadraticSums* sums, int at, double value, double value_lo) noexcept nogil:
    cdef double error
    sums.hi[at] = two_sum(sums.hi[at], value, &error)
    sums.lo[at] += value_lo + error


cdef void whole_quadratic(
    const Shard* shard, const double* whole, QuadraticSums* sums, double e_max
) noexcept nogil:
    """The eight sums of a row, in which the exponentials equal to UNIT are those of its maximum."""
    cdef const double* piece = whole + shard.head
    cdef const double* own
    cdef double pair[2]
    cdef Rescale to
    cdef Py_ssize_t index
    cdef int i
    for i in range(8):
        sums.hi[i] = sums.lo[i] = 0
    for index in range(whole_pieces(shard)):
        to = rescale_of(shard, piece[PIECE_MAXIMUM], whole[PART_MAXIMUM])
        own = &piece[QUADRATIC_SUMS]
        add_squares(&to, &own[0], &sums.hi[0], &sums.lo[0])
        add_rescaled(&to, &own[2], &sums.hi[1], &sums.lo[1])
        add_pair(sums, 2, own[4], own[5])
        if to.same:
            for i in range(3, 8):
                add_pair(sums, i, own[2 * i], own[2 * i + 1])
        else:
            pair[0] = piece[TILE_MAX] * e_max
            pair[1] = 0
            add_squares(&to, pair, &sums.hi[0], &sums.lo[0])
            pair[0] = own[8] * e_max
            pair[1] = own[9] * e_max
            add_rescaled(&to, pair, &sums.hi[1], &sums.lo[1])
            add_pair(sums, 2, own[14], own[15])
        piece += shard.width


cdef void finish_differences(
    const QuadraticSums* sums, Quadratic* state, double e_max, double* value
) noexcept nogil:
    """(d S)**2 and e d S, of exponentials equal to UNIT and of those below it."""
    cdef double total = state.columns.total.hi[0]
    cdef double total_lo = state.columns.total.lo[0]
    cdef double rest, rest_lo, at, lo, term, term_lo, error
    cdef int j
    clear_split(&state.ed)
    # those below: (e**2 - S e t) and e**2 - 2 S e t + S**2 t**2
    at = product(sums.hi[1], sums.lo[1], total, total_lo, &lo)
    state.ed.rest.hi[0] = two_sum(sums.hi[0], -at, &error)
    state.ed.rest.lo[0] = error + (sums.lo[0] - lo)
    term = product(total, total_lo, total, total_lo, &term_lo)
    term = product(term, term_lo, sums.hi[2], sums.lo[2], &term_lo)
    term = two_sum(term, -at, &error)
    term_lo += error - lo
    value[0] = two_sum(term, state.ed.rest.hi[0], &error)
    value[0] += error + (term_lo + state.ed.rest.lo[0])
    # those equal: U (U (1 - t) - t R) and U**2 (1 - t)**2 - 2 U R t (1 - t) + R**2 t**2
    rest = two_sum(total, -e_max, &error)
    rest = two_sum(rest, error + total_lo, &rest_lo)
    at = product(sums.hi[4], sums.lo[4], rest, rest_lo, &lo)
    term = two_sum(sums.hi[3] * e_max, -at, &error)
    # rounded, as the one term that it may be: `bracket_of` leaves out only what is in hi
    state.ed.max.hi[0] = e_max * (term + (error + (sums.lo[3] * e_max - lo)))
    at = product(sums.hi[6], sums.lo[6], rest, rest_lo, &lo)
    term = two_sum(e_max * e_max * sums.hi[5], -2 * e_max * at, &error)
    term_lo = error + (e_max * e_max * sums.lo[5] - 2 * e_max * lo)
    at = product(rest, rest_lo, rest, rest_lo, &lo)
    at = product(at, lo, sums.hi[7], sums.lo[7], &lo)
    term = two_sum(term, at, &error)
    value[0] += term + (error + (term_lo + lo))
    reduce_split(&state.ed, True)


cdef void finish_quadratic_tiles(
    const Shard* shard, const double* whole, Tile* tile, Quadratic* state, real* scratch
) noexcept nogil:
    cdef QuadraticSums sums
    cdef double e_max = unit(scratch[0])
    cdef double value
    cdef Py_ssize_t index
    whole_quadratic(shard, whole, &sums, e_max)
    finish_differences(&sums, state, e_max, &value)
    finish_powers(tile, state)
    tile.loss[0] = 0.5 * value * inverse_square(&state.columns, 0, 1, scratch[0])
    for index in range(shard.pieces):
        if not place_tile(index, tile):
            return
        open_tile(tile, &state.columns, scratch)
        quadratic_emit_gradient(tile, state, scratch)

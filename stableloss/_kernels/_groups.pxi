# The rows of a softmax loss, GROUP of them at a time: what their kernels have in common around the arithmetic.
#
# uses _job: Job
# uses _math: real two_sum
# uses _operand: Operand row_offsets store_value
# uses _options: WANT_GRAD WANT_HESS WANT_LOSS WANT_PRODUCT WANT_STATS WANT_TARGET_GRAD
# uses _rows: Row
# uses _stats: store_row_statistics
# uses _sums: GROUP NARROW Sum add fold_all
# uses _tiles: Tile open_rows place_tile write_tile
# uses _weights: load_classes load_weights

cdef enum:
    FEW = 8                 # rows that take less time by themselves than as columns beside empty ones

cdef struct Group:
    # Rows start ... start + count - 1: what they count for, and what their losses are made from.
    Py_ssize_t start
    int count
    double weight[GROUP]
    double loss[GROUP]
    Py_ssize_t y[GROUP]     # class indices
    # of the cross-entropy of class indices
    double gap[GROUP]       # m - x_y
    double e_target[GROUP]
    double rest[GROUP]      # sum of the other exponentials
    double rest_lo[GROUP]

ctypedef void (*RowStep)(const Job*, Row*, Group*, int, real*) noexcept nogil
ctypedef void (*GroupStep)(const Job*, Group*, real*) noexcept nogil
ctypedef void (*TileStep)(const Job*, Tile*, real*) noexcept nogil


cdef void clear_row(const Job* job, const Operand* op, Py_ssize_t row, real* s) noexcept nogil:
    cdef Tile tile
    cdef Py_ssize_t index, i
    for i in range(min(<Py_ssize_t>PIECE, job.k)):
        s[i] = 0
    open_rows(job, row, 1, True, &tile)
    for index in range(tile.tiles):
        if not place_tile(job, index, &tile):
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


cdef void each_row(const Job* job, Group* group, RowStep step, real* s) noexcept nogil:
    """Rows of class indices by themselves."""
    cdef Py_ssize_t x[GROUP]
    cdef Py_ssize_t grad[GROUP]
    cdef bint wanted = job.want & WANT_GRAD != 0
    cdef Row row
    cdef int j
    row_offsets(&job.x, group.start, group.count, x)
    if wanted:
        row_offsets(&job.g, group.start, group.count, grad)
    for j in range(group.count):
        if group.weight[j] == 0:
            group.gap[j] = group.rest[j] = group.rest_lo[j] = 0
            group.e_target[j] = 1
            if wanted:
                clear_row(job, &job.g, group.start + j, s)
            continue
        row.x = job.x.data + x[j]
        row.grad = job.g.data + grad[j] if wanted else NULL
        row.y = group.y[j]
        row.weight = group.weight[j]
        step(job, &row, group, j, s)


cdef void tile_rows(const Job* job, Group* group, int want, TileStep step, real* scratch) noexcept nogil:
    """Rows in tiles."""
    cdef Tile tile
    cdef int j
    tile.want = want
    tile.weight = group.weight
    tile.loss = group.loss
    if job.k <= NARROW:
        open_rows(job, group.start, group.count, False, &tile)
        step(job, &tile, scratch)
        return
    for j in range(group.count):
        if group.weight[j] == 0:
            clear_results(job, group.start + j, want, scratch)
            continue
        tile.weight = &group.weight[j]
        tile.loss = &group.loss[j]
        open_rows(job, group.start + j, 1, True, &tile)
        step(job, &tile, scratch)


cdef void close_group(const Job* job, const Group* group, Sum* total) noexcept nogil:
    """Weigh the losses, and store them or add them up."""
    cdef double value[GROUP]
    cdef double lo[GROUP]
    cdef int j
    if not job.want & WANT_LOSS:
        return
    if group.count == 1 and job.loss == NULL:
        add(total, group.loss[0] * group.weight[0] if group.weight[0] != 0 else 0)
        return
    for j in range(GROUP):
        value[j] = group.loss[j] * group.weight[j] if (group.weight[j] != 0) & (j < group.count) else 0
    if job.loss != NULL:
        for j in range(group.count):
            store_value(job.loss, job.value_kind, group.start + j, value[j])
    else:
        for j in range(GROUP // 2):
            value[j] = two_sum(value[j], value[j + GROUP // 2], &lo[j])
        fold_all(value, lo, GROUP // 2)
        add(total, value[0])
        total.lo += lo[0]


cdef void softmax_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, GroupStep indices, TileStep tiles, Sum* total, real* scratch) noexcept nogil:
    """Class indices without further options have their own way to loss and gradient, which a Hessian beside it
    does not change; all else goes through tiles."""
    cdef bint plain = job.hard and not job.has_options
    cdef int want = job.want & WANT_HESS if plain else job.want
    cdef Group group
    cdef Py_ssize_t at
    cdef int j
    for j in range(GROUP):
        group.weight[j] = 1
    for at from start <= at < stop by GROUP:
        group.start = at
        group.count = <int>min(<Py_ssize_t>GROUP, stop - at)
        if job.any_weight:
            # in tiles the weights of classes are part of the targets
            load_weights(job, at, group.count, True, plain, group.weight)
        if want:
            tile_rows(job, &group, want, tiles, scratch)
        if plain:
            load_classes(job, at, group.count, group.y)
            indices(job, &group, scratch)
        close_group(job, &group, total)

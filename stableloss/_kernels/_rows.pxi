# Rows of k logits to exponentials e_k = e**(x_k - m), m the maximum, and their sums: what the softmax losses share.
#
# load -> transform -> maximum -> exp -> take the target out -> sums -> fold -> finish columns -> emit -> store,
# of tiles (see _tiles.pxi), or of a row by itself, a piece at a time, of which the columns are lanes. A piece is in
# and out of cache once, however the caller's array lies in memory.
#
# Exponentials come times UNIT (see _math.pxi), which cancels in every quotient.
#
# 1 - p is never formed: a class index's exponential is taken out of the sum, and everything else forms the sum of
# the other exponentials. For that, exponentials equal to UNIT are added apart from those below, so that others =
# (sum_max - e) + sum_rest loses nothing for the maximum, nor for the rest; sums over other quantities likewise.
#
# uses _blocks: stopped
# uses _job: Job
# uses _logits: chain_first indicator_logit transform_logits
# uses _math: SL_INFINITY absolute exp_shifted is_positive_infinity log1p_positive real row_scale
# uses _math: split_maximum two_sum unit
# uses _operand: gather kind_of row_offsets scatter
# uses _sums: GROUP NARROW PIECE Split fold_columns lane_squares lane_sum maximum_of ordered_sum padded
# uses _sums: start_split
# uses _tiles: Tile clear_columns place_tile read_columns read_tile
# uses _weights: load_classes


# ---- columns --------------------------------------------------------------------------------------

cdef struct Columns:
    # What is known of each column: of all columns the same where the tile is wide.
    double weight[GROUP]
    Py_ssize_t y[GROUP]     # target class
    double m[GROUP]         # maximum
    bint limit[GROUP]       # the row has a +inf and stands for its limit
    bint any_limit
    double live[GROUP]      # classes above -inf
    Split sums              # of the exponentials, and finished:
    double sum_max[GROUP]
    double sum_rest[GROUP]
    double total[GROUP]
    double total_lo[GROUP]
    double log_sum[GROUP]   # log(sum e**(x - m))


cdef inline void to_real(const double* columns, real* to) noexcept nogil:
    """A copy of columns, which a store to results can not reach: loops that read the original stay scalar."""
    cdef int j
    for j in range(GROUP):
        to[j] = <real>columns[j]


cdef inline int columns_of(bint wide) noexcept nogil:
    """Columns that differ."""
    return 1 if wide else GROUP


cdef inline void broadcast(double* columns, bint wide) noexcept nogil:
    cdef int j
    if wide:
        for j in range(1, GROUP):
            columns[j] = columns[0]


# ---- load -----------------------------------------------------------------------------------------

cdef void load_columns(const Job* job, Py_ssize_t start, int count, const double* weight, real* x, real* slope) noexcept nogil:
    """Logits as they enter the softmax, of rows as columns. Those of weight 0 are 0, whatever they hold."""
    read_columns(&job.x, start, count, job.k, x)
    if job.any_weight:
        clear_columns(x, job.k, weight)
    transform_logits(job.o, job.k * GROUP, x, slope)


cdef void load_piece(const Job* job, const char* row, Py_ssize_t first, Py_ssize_t n, real* x, real* slope) noexcept nogil:
    """Logits first ... first + n - 1 of a row as they enter the softmax, padded with -inf to whole lines."""
    cdef Py_ssize_t i
    gather(row + first * job.x.inner, job.x.kind, job.x.inner, n, x)
    transform_logits(job.o, n, x, slope)
    for i in range(n, padded(n)):
        x[i] = -SL_INFINITY


cdef void load_tile(const Job* job, const Tile* tile, const double* weight, real* x, real* slope) noexcept nogil:
    """Logits as they enter the softmax; `slope` gets the derivative of the cap."""
    cdef Py_ssize_t offset, i
    if not tile.wide:
        load_columns(job, tile.start, tile.count, weight, x, slope)
        return
    row_offsets(&job.x, tile.start, 1, &offset)
    load_piece(job, job.x.data + offset, tile.first, tile.n, x, slope)
    if job.o.softcap != 0:
        for i in range(tile.n, tile.lines * GROUP):
            slope[i] = 0


# ---- maximum --------------------------------------------------------------------------------------

cdef inline void column_maxima(const real* x, Py_ssize_t lines, real* m) noexcept nogil:
    """Raise each m to the maximum of its column. NaN may lose: it comes back as the exponential of its class."""
    cdef Py_ssize_t c
    cdef int j
    for c in range(lines):
        for j in range(GROUP):
            m[j] = x[c * GROUP + j] if x[c * GROUP + j] > m[j] else m[j]


cdef inline bint start_limits(real* m, bint* limit) noexcept nogil:
    """Whether any maximum is +inf; if so, note which ones, and replace them by that of the limit, 0."""
    cdef int j
    cdef bint found = False
    for j in range(GROUP):
        found |= is_positive_infinity(m[j])
    if found:
        for j in range(GROUP):
            limit[j] = is_positive_infinity(m[j])
            m[j] = 0 if limit[j] else m[j]
    return found


cdef void limit_columns(real* x, Py_ssize_t lines, const bint* limit) noexcept nogil:
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        if limit[j]:
            for c in range(lines):
                x[c * GROUP + j] = indicator_logit(x[c * GROUP + j])


cdef void count_live(const real* x, Py_ssize_t lines, double* live) noexcept nogil:
    cdef Py_ssize_t c
    cdef int j
    for c in range(lines):
        for j in range(GROUP):
            live[j] += 0 if x[c * GROUP + j] == -SL_INFINITY else 1


cdef void open_columns(const Job* job, Tile* tile, Columns* columns, real* x, real* slope) noexcept nogil:
    """Weights, targets and maxima of the columns. Where there is one tile, its logits stay in x."""
    cdef Py_ssize_t index
    cdef real m[GROUP]
    cdef int j
    for j in range(GROUP):
        columns.weight[j] = tile.weight[0 if tile.wide else j]
        columns.live[j] = columns.limit[j] = 0
        m[j] = -SL_INFINITY
    if job.hard:
        load_classes(job, tile.start, tile.count, columns.y)
        if tile.wide:
            for j in range(1, GROUP):
                columns.y[j] = columns.y[0]
    start_split(&columns.sums)
    for index in range(tile.tiles):
        if not place_tile(job, index, tile):
            return
        load_tile(job, tile, columns.weight, x, slope)
        column_maxima(<const real*>x, tile.lines, m)
        if job.o.label_smoothing != 0:
            count_live(<const real*>x, tile.lines, columns.live)
    if tile.wide:
        m[0] = maximum_of(m)
        for j in range(1, GROUP):
            m[j] = m[0]
            columns.live[0] += columns.live[j]
        broadcast(columns.live, True)
    columns.any_limit = start_limits(m, columns.limit)
    for j in range(GROUP):
        columns.m[j] = m[j]


# ---- exp ------------------------------------------------------------------------------------------

cdef inline void column_exponentials(const real* x, real* e, Py_ssize_t lines, const real* m, bint compensated) noexcept nogil:
    cdef real a[GROUP]
    cdef real b_hi[GROUP]
    cdef real b_lo[GROUP]
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        split_maximum(m[j], &a[j], &b_hi[j], &b_lo[j])
    for c in range(lines):
        for j in range(GROUP):
            e[c * GROUP + j] = exp_shifted(x[c * GROUP + j], a[j], b_hi[j], b_lo[j], compensated)


cdef inline void line_exponentials(real* s, Py_ssize_t lines, real m, bint compensated) noexcept nogil:
    cdef real a, b_hi, b_lo
    cdef Py_ssize_t c
    cdef int j
    split_maximum(m, &a, &b_hi, &b_lo)
    for c in range(lines):
        for j in range(GROUP):
            s[c * GROUP + j] = exp_shifted(s[c * GROUP + j], a, b_hi, b_lo, compensated)


cdef void row_exponentials(real* s, Py_ssize_t lines, real m, bint compensated) noexcept nogil:
    """Of lines of one row, in place."""
    if compensated:
        line_exponentials(s, lines, m, True)
    else:
        line_exponentials(s, lines, m, False)


cdef void tile_exponentials(const Tile* tile, const Columns* columns, bint compensated, real* x, real* e) noexcept nogil:
    cdef real m[GROUP]
    to_real(columns.m, m)
    if columns.any_limit:
        limit_columns(x, tile.lines, columns.limit)
    if compensated:
        column_exponentials(<const real*>x, e, tile.lines, <const real*>m, True)
    else:
        column_exponentials(<const real*>x, e, tile.lines, <const real*>m, False)


# ---- finish columns -------------------------------------------------------------------------------

cdef void finish_exponentials(Columns* columns, bint wide, real hint) noexcept nogil:
    cdef double e_max = unit(hint)
    cdef double lo
    cdef int j
    fold_columns(&columns.sums.rest, wide)
    fold_columns(&columns.sums.max, wide)
    for j in range(GROUP):
        columns.sum_max[j] = columns.sums.max.hi[j]
        columns.sum_rest[j] = columns.sums.rest.hi[j] + columns.sums.rest.lo[j]
        columns.total[j] = two_sum(columns.sums.max.hi[j], columns.sums.rest.hi[j], &lo)
        columns.total_lo[j] = lo + columns.sums.rest.lo[j]
    for j in range(columns_of(wide)):
        columns.log_sum[j] = log1p_positive(((columns.sum_max[j] - e_max) + columns.sum_rest[j]) * (1 / e_max))
    broadcast(columns.log_sum, wide)


cdef inline double inverse_sum(const Columns* columns, int j, double weight, double divisor, real hint) noexcept nogil:
    """weight / (divisor * sum)."""
    if real is float:
        return weight / (divisor * columns.total[j])
    else:
        return row_scale(weight, divisor, columns.total[j], columns.total_lo[j])


cdef inline double inverse_square(const Columns* columns, int j, double weight, real hint) noexcept nogil:
    """weight / sum**2."""
    if real is float:
        return weight / (columns.total[j] * columns.total[j])
    else:
        return row_scale(weight, columns.total[j], columns.total[j], 2 * columns.total_lo[j])


cdef inline double gap_of(double m, double x) noexcept nogil:
    """m - x, halved: the difference may overflow where its product with a probability does not."""
    return 0.5 * m - 0.5 * x


cdef bint any_extreme(const Job* job, const double* factor, int n, real hint) noexcept nogil:
    """Whether any factor from exponentials to a gradient is one of which float32 does not hold all digits."""
    cdef int j, out = 0
    if real is float:
        if not job.any_weight:
            return False
        for j in range(n):
            out |= (absolute(factor[j]) > 3e38) | ((absolute(factor[j]) < 1.2e-38) & (factor[j] != 0))
    return out != 0


# ---- targets and directions -----------------------------------------------------------------------

cdef void tile_targets(const Job* job, const Tile* tile, const Columns* columns, real* t) noexcept nogil:
    """Target probabilities."""
    cdef Py_ssize_t i
    cdef int j
    if job.hard:
        for i in range(tile.lines * GROUP):
            t[i] = 0
        if tile.wide:
            if tile.first <= columns.y[0] < tile.first + tile.n:
                t[columns.y[0] - tile.first] = 1
        else:
            for j in range(GROUP):
                t[columns.y[j] * GROUP + j] = 0 if columns.weight[j] == 0 else 1
    else:
        read_tile(&job.t, tile, t)
        if job.any_weight and not tile.wide:
            clear_columns(t, tile.lines, columns.weight)


cdef void tile_vector(const Job* job, const Tile* tile, const Columns* columns, const real* slope, const real* e, real* v, real* ev) noexcept nogil:
    """The vector of a Hessian product, as a direction of the logits that enter the softmax, and e v."""
    cdef Py_ssize_t i
    read_tile(&job.v, tile, v)
    if job.any_weight and not tile.wide:
        clear_columns(v, tile.lines, columns.weight)
    chain_first(job.o, tile.lines * GROUP, slope, v)
    for i in range(tile.lines * GROUP):
        ev[i] = 0 if e[i] == 0 else e[i] * v[i]


# ---- a row by itself ------------------------------------------------------------------------------

cdef struct Row:
    const char* x
    char* grad              # NULL where none is wanted
    Py_ssize_t y            # target class
    double weight
    bint one_piece
    bint cached             # exponentials of several pieces wait in the gradient's place, if it can hold them
    double m                # maximum
    bint limit              # the row has a +inf and stands for its limit
    double x_target         # the target's logit


cdef void load_limited(const Job* job, const Row* row, Py_ssize_t first, Py_ssize_t n, real* s) noexcept nogil:
    cdef Py_ssize_t i
    load_piece(job, row.x, first, n, s, s)      # plain losses have no cap, and so no slope
    if row.limit:
        for i in range(n):
            s[i] = indicator_logit(s[i])


cdef void open_row(const Job* job, Row* row, real* s) noexcept nogil:
    """The maximum of a row and the logit of its target. A row of one piece is left in s."""
    cdef Py_ssize_t first, n
    cdef real m[GROUP]
    cdef int j
    row.one_piece = job.k <= PIECE
    row.cached = row.grad != NULL and not row.one_piece and job.g.kind == kind_of(s[0])
    row.limit = False
    for j in range(GROUP):
        m[j] = -SL_INFINITY
    for first from 0 <= first < job.k by PIECE:
        if not row.one_piece and stopped(job):
            return
        n = min(<Py_ssize_t>PIECE, job.k - first)
        load_limited(job, row, first, n, s)
        column_maxima(<const real*>s, padded(n) // GROUP, m)
    row.m = maximum_of(m)
    if is_positive_infinity(row.m):
        row.limit = True
        row.m = 0
        if row.one_piece:
            load_limited(job, row, 0, job.k, s)
    if not row.one_piece:
        load_limited(job, row, row.y, 1, s)
    row.x_target = s[row.y if row.one_piece else 0]


cdef void piece_exponentials(const Job* job, const Row* row, Py_ssize_t first, Py_ssize_t n, bint compensated, real* s) noexcept nogil:
    """The exponentials of a piece in s, where the logits of a row of one piece are already."""
    if not row.one_piece:
        load_limited(job, row, first, n, s)
    row_exponentials(s, padded(n) // GROUP, <real>row.m, compensated)


cdef inline real take_out(real* at) noexcept nogil:
    cdef real value = at[0]
    at[0] = 0
    return value


cdef inline void add_piece(const Job* job, const real* s, Py_ssize_t n, bint squares, double* hi, double* lo) noexcept nogil:
    """Add up a piece or its squares: of few classes in the order in which a column is added up."""
    cdef double part, part_lo, error
    if job.k <= NARROW:
        part = ordered_sum(s, n, squares, &part_lo)
    elif squares:
        part = lane_squares(s, padded(n), &part_lo)
    else:
        part = lane_sum(s, padded(n), &part_lo)
    hi[0] = two_sum(hi[0], part, &error)
    lo[0] += part_lo + error


cdef inline bint holds_floats(const Job* job, real hint) noexcept nogil:
    """Whether rows of the gradient are contiguous, and of the type of the arithmetic."""
    return job.g.kind == kind_of(hint) and job.g.inner == <Py_ssize_t>sizeof(real)


cdef const real* return_to_piece(const Job* job, const Row* row, Py_ssize_t first, Py_ssize_t n, bint compensated, real* s) noexcept nogil:
    """Where the exponentials of a piece are that has been gone through once."""
    cdef char* cached = row.grad + first * job.g.inner
    if row.cached and holds_floats(job, s[0]):
        return <const real*>cached
    if row.cached:
        gather(cached, job.g.kind, job.g.inner, n, s)
    elif not row.one_piece:
        piece_exponentials(job, row, first, n, compensated, s)
    return s


cdef inline real* piece_output(const Job* job, const Row* row, Py_ssize_t first, real* s) noexcept nogil:
    """Where the gradient of a piece is to be written: in its place, or in s for `close_piece` to bring there."""
    return <real*>row.grad + first if holds_floats(job, s[0]) else s


cdef inline void close_piece(const Job* job, const Row* row, Py_ssize_t first, Py_ssize_t n, const real* s) noexcept nogil:
    if not holds_floats(job, s[0]):
        scatter(s, row.grad + first * job.g.inner, job.g.kind, job.g.inner, n)


cdef inline void store_class(const Job* job, const Row* row, Py_ssize_t c, real value) noexcept nogil:
    scatter(<const real*>&value, row.grad + c * job.g.inner, job.g.kind, job.g.inner, 1)

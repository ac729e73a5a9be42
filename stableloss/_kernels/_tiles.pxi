# Softmax work beside the fast path of class indices, with one code for few classes and for many.
#
# A tile is a matrix of GROUP columns in scratch. With few classes a column is a row of the batch and a
# line of the tile is a class; with many, a tile is a stretch of one row, and what has been added up in
# the columns is added across them at the end. A row of several tiles is gone through once per stage.
#
# Exponentials equal to UNIT are added apart from those below, so that `others` = (ones - e) + below
# loses nothing for the maximum, nor for the rest. Sums over other quantities are split in the same way.

cdef enum:
    TILE = BUFFER           # entries at most; PIECE where the tile is wide


cdef struct Tile:
    Py_ssize_t start        # first row of the batch
    int count               # rows: as columns, or one where the tile is wide
    bint wide
    Py_ssize_t first        # first class
    Py_ssize_t n            # classes
    Py_ssize_t lines


cdef struct Total:
    # A sum per column, and what its rounding lost.
    double sum[GROUP]
    double lost[GROUP]


cdef struct Columns:
    # What is known of each column: of all columns the same where the tile is wide.
    double weight[GROUP]
    double m[GROUP]         # maximum
    bint limit[GROUP]       # the row has a +inf and stands for its limit
    double live[GROUP]      # classes above -inf
    Total below             # exponentials below UNIT
    Total ones              # the others
    double whole[GROUP]     # their sum
    double log_sum[GROUP]   # log(sum e**(x - m))
    Py_ssize_t y[GROUP]     # target class
    bint careful            # exponentials for products of them, see `exp_shifted`


cdef inline Py_ssize_t tiles_of(const Job* job, bint wide) noexcept nogil:
    return (job.k + PIECE - 1) // PIECE if wide else 1


cdef inline void place_tile(const Job* job, Py_ssize_t start, int count, bint wide, Py_ssize_t index, Tile* tile) noexcept nogil:
    tile.start = start
    tile.count = count
    tile.wide = wide
    tile.first = index * PIECE
    tile.n = min(<Py_ssize_t>PIECE, job.k - tile.first)
    tile.lines = padded(tile.n) // GROUP if wide else tile.n


cdef void read_tile(const Operand* op, const Tile* tile, real* to) noexcept nogil:
    """Entries of an operand; 0 where there is no row or class."""
    cdef Py_ssize_t offset, i
    if tile.wide:
        row_offsets(op, tile.start, 1, &offset)
        gather(op.data + offset + tile.first * op.inner, op.kind, op.inner, tile.n, to)
        for i in range(tile.n, tile.lines * GROUP):
            to[i] = 0
    else:
        load_lanes(op, tile.start, tile.count, tile.n, to)


cdef void write_tile(const real* s, const Operand* op, const Tile* tile) noexcept nogil:
    cdef Py_ssize_t offset
    if tile.wide:
        row_offsets(op, tile.start, 1, &offset)
        scatter(s, op.data + offset + tile.first * op.inner, op.kind, op.inner, tile.n)
    else:
        store_lanes(s, op, tile.start, tile.count, tile.n)


cdef void clear_row(const Job* job, const Operand* op, Py_ssize_t row, real* s) noexcept nogil:
    cdef Tile tile
    cdef Py_ssize_t index, i
    for i in range(min(<Py_ssize_t>PIECE, job.k)):
        s[i] = 0
    for index in range(tiles_of(job, True)):
        place_tile(job, row, 1, True, index, &tile)
        write_tile(<const real*>s, op, &tile)


cdef void start_total(Total* total) noexcept nogil:
    cdef int j
    for j in range(GROUP):
        total.sum[j] = total.lost[j] = 0


cdef inline void accumulate(real hint, double* total, double* lost, double term) noexcept nogil:
    """Add a term: float64 ones with the rounding errors carried along."""
    cdef double s = total[0] + term
    if real is double:
        lost[0] += (total[0] - s) + term
    total[0] = s


cdef void settle(Total* total, bint wide) noexcept nogil:
    """Add across the columns where they are parts of one row."""
    cdef int j
    if not wide:
        return
    fold_exactly(total.sum, total.lost, 16)
    fold_exactly(total.sum, total.lost, 8)
    fold_exactly(total.sum, total.lost, 4)
    fold_exactly(total.sum, total.lost, 2)
    fold_exactly(total.sum, total.lost, 1)
    for j in range(1, GROUP):
        total.sum[j] = total.sum[0]
        total.lost[j] = total.lost[0]


cdef void settle_whole(Total* total, bint wide) noexcept nogil:
    """The same, with the lost parts added in; `lost` keeps what that rounds away."""
    cdef double whole
    cdef int j
    settle(total, wide)
    for j in range(GROUP):
        # the lost part of an infinite sum is inf - inf
        whole = total.sum[j] + total.lost[j] if SL_ISFINITE(total.sum[j]) else total.sum[j]
        total.lost[j] -= whole - total.sum[j]
        total.sum[j] = whole


# ---- logits ---------------------------------------------------------------------------------------

cdef void tile_logits(const Job* job, const Tile* tile, const double* weight, real* x, real* slope) noexcept nogil:
    """Logits as they enter the softmax, -inf where there is no class; `slope` gets the derivative of
    the cap. Columns of weight 0 are 0, whatever they hold."""
    cdef Py_ssize_t i, n = tile.n if tile.wide else tile.lines * GROUP
    cdef real scale, cap
    read_tile(&job.x, tile, x)
    if job.weighted and not tile.wide:
        clear_lanes(x, tile.lines, weight)
    if job.o.clip < SL_INFINITY:
        clamp(x, n, job.o.clip, x)
    if job.o.scale != 1:
        scale = <real>job.o.scale
        for i in range(n):
            x[i] *= scale
    if job.o.cap != 0:
        cap = <real>job.o.cap
        for i in range(n):
            x[i] = capped(x[i], cap, &slope[i])
    for i in range(n, tile.lines * GROUP):
        x[i] = -SL_INFINITY
        slope[i] = 0


cdef void tile_limits(const Tile* tile, const Columns* columns, real* x) noexcept nogil:
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        if columns.limit[j]:
            for c in range(tile.lines):
                x[c * GROUP + j] = indicator_logit(x[c * GROUP + j])


cdef void tile_maximum(const real* x, Py_ssize_t lines, real* m) noexcept nogil:
    """Raise each m to the maximum of its column; NaN may lose."""
    cdef Py_ssize_t c
    cdef int j
    for c in range(lines):
        for j in range(GROUP):
            m[j] = x[c * GROUP + j] if x[c * GROUP + j] > m[j] else m[j]


cdef void tile_live(const real* x, Py_ssize_t lines, double* live) noexcept nogil:
    cdef Py_ssize_t c
    cdef int j
    for c in range(lines):
        for j in range(GROUP):
            live[j] += 0 if x[c * GROUP + j] == -SL_INFINITY else 1


cdef void tile_maxima(const Job* job, Py_ssize_t start, int count, bint wide, Columns* columns, real* x, real* slope) noexcept nogil:
    """Maxima of the columns. Where there is one tile, its logits stay in x."""
    cdef Py_ssize_t index
    cdef Tile tile
    cdef real m[GROUP]
    cdef int j
    for j in range(GROUP):
        m[j] = -SL_INFINITY
        columns.live[j] = 0
    for index in range(tiles_of(job, wide)):
        place_tile(job, start, count, wide, index, &tile)
        tile_logits(job, &tile, columns.weight, x, slope)
        tile_maximum(<const real*>x, tile.lines, m)
        if job.o.smoothing != 0:
            tile_live(<const real*>x, tile.lines, columns.live)
    if wide:
        fold_maximum(m, 16)
        fold_maximum(m, 8)
        fold_maximum(m, 4)
        fold_maximum(m, 2)
        fold_maximum(m, 1)
        for j in range(1, GROUP):
            m[j] = m[0]
            columns.live[0] += columns.live[j]
        for j in range(1, GROUP):
            columns.live[j] = columns.live[0]
    for j in range(GROUP):
        columns.limit[j] = is_positive_infinity(m[j])
        columns.m[j] = 0 if columns.limit[j] else m[j]


# ---- exponentials and their sums ------------------------------------------------------------------

cdef void tile_exponentials(const Tile* tile, const Columns* columns, const real* x, real* e) noexcept nogil:
    cdef real a[GROUP]
    cdef real b_hi[GROUP]
    cdef real b_lo[GROUP]
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        split_maximum(<real>columns.m[j], &a[j], &b_hi[j], &b_lo[j])
    if columns.careful:
        for c in range(tile.lines):
            for j in range(GROUP):
                e[c * GROUP + j] = exp_shifted(x[c * GROUP + j], a[j], b_hi[j], b_lo[j], True)
        return
    for c in range(tile.lines):
        for j in range(GROUP):
            e[c * GROUP + j] = exp_shifted(x[c * GROUP + j], a[j], b_hi[j], b_lo[j], False)


cdef inline real smallest_normal(const Job* job, real hint) noexcept nogil:
    """What a probability counts as at least: by the logits' type, not by that of the arithmetic."""
    return <real>1.1754943508222875e-38 if job.value_kind == np.NPY_FLOAT else <real>2.2250738585072014e-308


cdef void tile_quotients(const Job* job, const Tile* tile, Columns* columns, real* x, real* e) noexcept nogil:
    """The same from probabilities p in x: e = UNIT p / p_max, and x = log(p / p_max), for which 0 takes
    the place of the maximum. The logarithm is that of 1 + (p_max - p) / p, for p near p_max too."""
    cdef real tiny = smallest_normal(job, x[0])
    cdef real top = unit(x[0])
    cdef real m[GROUP]
    cdef real p
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        m[j] = <real>columns.m[j]
        m[j] = tiny if m[j] < tiny else m[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            p = x[c * GROUP + j]
            p = tiny if p < tiny and p >= 0 else p          # -inf is not a class
            e[c * GROUP + j] = 0 if p < 0 else top * (p / m[j])
            x[c * GROUP + j] = p if p < 0 else -<real>log1p_positive(<double>((m[j] - p) / p))


cdef void tile_totals(const real* e, Py_ssize_t lines, Total* below, Total* ones) noexcept nogil:
    """Add up the exponentials of each column: those below UNIT, and those equal to it."""
    cdef double b[GROUP]
    cdef double b_lost[GROUP]
    cdef double o[GROUP]
    cdef Py_ssize_t c
    cdef int j
    cdef real v, small
    cdef real top = unit(e[0])
    for j in range(GROUP):
        b[j] = below.sum[j]
        b_lost[j] = below.lost[j]
        o[j] = ones.sum[j]
    for c in range(lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            small = v if v < top else 0
            accumulate(v, &b[j], &b_lost[j], small)
            o[j] += <double>(v - small)
    for j in range(GROUP):
        below.sum[j] = b[j]
        below.lost[j] = b_lost[j]
        ones.sum[j] = o[j]


cdef void tile_split_sum(const real* e, const real* v, Py_ssize_t lines, Total* below, Total* ones) noexcept nogil:
    """Add up v in each column, apart where the exponential is UNIT."""
    cdef double b[GROUP]
    cdef double b_lost[GROUP]
    cdef double o[GROUP]
    cdef double o_lost[GROUP]
    cdef Py_ssize_t c
    cdef int j
    cdef bint small
    cdef real top = unit(e[0])
    for j in range(GROUP):
        b[j] = below.sum[j]
        b_lost[j] = below.lost[j]
        o[j] = ones.sum[j]
        o_lost[j] = ones.lost[j]
    for c in range(lines):
        for j in range(GROUP):
            small = e[c * GROUP + j] < top
            accumulate(e[0], &b[j], &b_lost[j], v[c * GROUP + j] if small else 0)
            accumulate(e[0], &o[j], &o_lost[j], 0 if small else v[c * GROUP + j])
    for j in range(GROUP):
        below.sum[j] = b[j]
        below.lost[j] = b_lost[j]
        ones.sum[j] = o[j]
        ones.lost[j] = o_lost[j]


cdef inline int columns_of(bint wide) noexcept nogil:
    """Columns that differ."""
    return 1 if wide else GROUP


cdef inline void spread(double* values, bint wide) noexcept nogil:
    cdef int j
    if wide:
        for j in range(1, GROUP):
            values[j] = values[0]


cdef void settle_exponentials(Columns* columns, bint wide, real hint) noexcept nogil:
    cdef double top = unit(hint)
    cdef int j
    settle(&columns.below, wide)
    settle(&columns.ones, wide)
    for j in range(columns_of(wide)):
        columns.whole[j] = columns.ones.sum[j] + columns.below.sum[j]
        columns.log_sum[j] = log1p_positive(
            ((columns.ones.sum[j] - top) + (columns.below.sum[j] + columns.below.lost[j])) * (1 / top))
    spread(columns.whole, wide)
    spread(columns.log_sum, wide)


cdef inline real remainder_of(real e, real ones, real below) noexcept nogil:
    """Sum of the other exponentials, (ones - e) + below, without the rounding of the difference."""
    cdef real d = ones - e
    return d + (below + ((ones - d) - e))


cdef inline double inverse_sum(const Columns* columns, int j, double weight, double divisor, real hint) noexcept nogil:
    """weight / (divisor * sum)."""
    cdef double error, total
    if real is float:
        return weight / (divisor * columns.whole[j])
    else:
        total = two_sum(columns.ones.sum[j], columns.below.sum[j], &error)
        return row_scale(weight, divisor, total, error + columns.below.lost[j])


cdef inline double inverse_square(const Columns* columns, int j, double weight, real hint) noexcept nogil:
    """weight / sum**2."""
    cdef double error, total
    if real is float:
        return weight / (columns.whole[j] * columns.whole[j])
    else:
        total = two_sum(columns.ones.sum[j], columns.below.sum[j], &error)
        return row_scale(weight, total, total, 2 * (error + columns.below.lost[j]))


cdef inline double gap_of(double m, double x) noexcept nogil:
    """m - x, halved: the difference may overflow where its product with a probability does not."""
    return 0.5 * m - 0.5 * x


# ---- targets --------------------------------------------------------------------------------------

cdef void open_columns(const Job* job, Py_ssize_t start, int count, bint wide, const double* weight, Columns* columns) noexcept nogil:
    cdef int j
    for j in range(GROUP):
        columns.weight[j] = weight[0] if wide else weight[j]
    if job.hard:
        load_classes(job, start, count, columns.y)
        if wide:
            for j in range(1, GROUP):
                columns.y[j] = columns.y[0]
    start_total(&columns.below)
    start_total(&columns.ones)
    columns.careful = False


cdef void tile_targets(const Job* job, const Tile* tile, const Columns* columns, bint plain, const real* x, real* q) noexcept nogil:
    """Target probabilities; if not `plain`, smoothed and times the weights of their classes. x still holds
    the logits, from which the disabled classes are known."""
    cdef Py_ssize_t i, c
    cdef int j
    cdef real share[GROUP]
    cdef real stays, w
    cdef const double* class_weight = job.o.class_weight
    if job.hard:
        for i in range(tile.lines * GROUP):
            q[i] = 0
        if tile.wide:
            if tile.first <= columns.y[0] < tile.first + tile.n:
                q[columns.y[0] - tile.first] = 1
        else:
            for j in range(GROUP):
                q[columns.y[j] * GROUP + j] = 0 if columns.weight[j] == 0 else 1
    else:
        read_tile(&job.t, tile, q)
        if job.weighted and not tile.wide:
            clear_lanes(q, tile.lines, columns.weight)
    if plain:
        return
    if job.o.smoothing != 0:
        stays = <real>(1 - job.o.smoothing)
        for j in range(GROUP):
            share[j] = <real>(job.o.smoothing / columns.live[j])
        for c in range(tile.lines):
            for j in range(GROUP):
                q[c * GROUP + j] = fma(stays, q[c * GROUP + j], 0 if x[c * GROUP + j] == -SL_INFINITY else share[j])
    if class_weight != NULL:
        if tile.wide:
            for i in range(tile.n):
                q[i] *= <real>class_weight[tile.first + i]
        else:
            for c in range(tile.lines):
                w = <real>class_weight[c]
                for j in range(GROUP):
                    q[c * GROUP + j] *= w


# ---- statistics -----------------------------------------------------------------------------------

cdef double FAR = 1e30              # beyond every class


cdef struct Statistics:
    Total entropy                   # sum of e (m - x) / 2
    double predicted[GROUP]         # the first class at the maximum
    double undefined[GROUP]         # the first class that is NaN


cdef void start_statistics(Statistics* statistics) noexcept nogil:
    cdef int j
    start_total(&statistics.entropy)
    for j in range(GROUP):
        statistics.predicted[j] = statistics.undefined[j] = FAR


cdef void tile_statistics(const Tile* tile, const Columns* columns, bint quotients, const real* x, const real* e, Statistics* statistics) noexcept nogil:
    # classes as floats, exact to 2**24 of them, so that comparisons and choices are vectors of one width
    cdef real best[GROUP]
    cdef real undefined[GROUP]
    cdef real at[GROUP]
    cdef real top[GROUP]
    cdef double m[GROUP]
    cdef double s[GROUP]
    cdef double lost[GROUP]
    cdef real v, here
    cdef real never = <real>FAR
    cdef real step = <real>(GROUP if tile.wide else 1)
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        m[j] = 0 if quotients else columns.m[j]
        top[j] = <real>m[j]
        best[j] = undefined[j] = never
        at[j] = <real>(tile.first + j if tile.wide else 0)
        s[j] = statistics.entropy.sum[j]
        lost[j] = statistics.entropy.lost[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            v = x[c * GROUP + j]
            here = at[j] if v == top[j] else never
            best[j] = here if here < best[j] else best[j]
            here = never if v == v else at[j]
            undefined[j] = here if here < undefined[j] else undefined[j]
            at[j] += step
    for c in range(tile.lines):
        for j in range(GROUP):
            accumulate(e[0], &s[j], &lost[j],
                       0 if e[c * GROUP + j] == 0 else e[c * GROUP + j] * gap_of(m[j], x[c * GROUP + j]))
    for j in range(GROUP):
        statistics.predicted[j] = min(statistics.predicted[j], <double>best[j])
        statistics.undefined[j] = min(statistics.undefined[j], <double>undefined[j])
        statistics.entropy.sum[j] = s[j]
        statistics.entropy.lost[j] = lost[j]


cdef void store_row_statistics(const Job* job, Py_ssize_t row, int64_t predicted, double lse, double entropy) noexcept nogil:
    (<int64_t*>job.predicted)[row] = predicted
    store_value(job.lse, job.value_kind, row, lse)
    store_value(job.entropy, job.value_kind, row, entropy)


cdef void store_statistics(const Job* job, const Tile* tile, const Columns* columns, Statistics* statistics, real hint) noexcept nogil:
    cdef double top, m, entropy
    cdef Py_ssize_t row
    cdef int j
    settle_whole(&statistics.entropy, tile.wide)
    if tile.wide:
        for j in range(1, GROUP):
            statistics.predicted[0] = min(statistics.predicted[0], statistics.predicted[j])
            statistics.undefined[0] = min(statistics.undefined[0], statistics.undefined[j])
    for j in range(tile.count):
        row = tile.start + j
        if columns.weight[j] == 0:
            store_row_statistics(job, row, -1, 0, 0)
            continue
        top = statistics.undefined[j] if statistics.undefined[j] < FAR else statistics.predicted[j]
        if job.o.probabilities:
            m = max(columns.m[j], <double>smallest_normal(job, hint))
            m = -log1p_positive((1 - m) / m)
        else:
            m = SL_INFINITY if columns.limit[j] else columns.m[j]
        entropy = 2 * statistics.entropy.sum[j] / columns.whole[j] + columns.log_sum[j]
        store_row_statistics(job, row, <int64_t>top if top < FAR else 0, m + columns.log_sum[j], entropy)


cdef void tile_probabilities(const Job* job, const Tile* tile, const Columns* columns, const real* e, real* p) noexcept nogil:
    cdef real inverse[GROUP]
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        inverse[j] = <real>(0 if columns.weight[j] == 0 else inverse_sum(columns, j, 1, 1, e[0]))
    for c in range(tile.lines):
        for j in range(GROUP):
            p[c * GROUP + j] = e[c * GROUP + j] * inverse[j]
    write_tile(<const real*>p, &job.p, tile)


cdef void clear_outputs(const Job* job, Py_ssize_t row, int want, real* s) noexcept nogil:
    """The results of a row that does not count, whatever it holds."""
    if want & (WANT_GRAD | WANT_PRODUCT | WANT_TARGET_GRAD):
        clear_row(job, &job.g, row, s)
    if want & WANT_HESS:
        clear_row(job, &job.h, row, s)
    if job.fills:
        clear_row(job, &job.p, row, s)
    if want & WANT_STATS:
        store_row_statistics(job, row, -1, 0, 0)


# ---- one stage's beginning ------------------------------------------------------------------------

cdef void prepare_tile(const Job* job, const Tile* tile, Columns* columns, bint plain, real* e, real* x, real* q) noexcept nogil:
    """Targets and exponentials of a tile whose logits are in x."""
    tile_targets(job, tile, columns, plain, <const real*>x, q)
    if job.o.probabilities:
        tile_quotients(job, tile, columns, x, e)
    else:
        tile_limits(tile, columns, x)
        tile_exponentials(tile, columns, <const real*>x, e)


cdef void restore_tile(const Job* job, const Tile* tile, Columns* columns, bint kept, real* e, real* x, real* q, real* slope) noexcept nogil:
    """Logits, targets and exponentials of a tile; with `kept`, the exponentials wait in the gradient."""
    cdef bint plain = job.hard and not job.general
    if kept:
        tile_targets(job, tile, columns, plain, <const real*>x, q)
        read_tile(&job.g, tile, e)
        return
    tile_logits(job, tile, columns.weight, x, slope)
    prepare_tile(job, tile, columns, plain, e, x, q)


cdef void steer(const Job* job, const Tile* tile, const real* slope, real* values) noexcept nogil:
    """Times the derivative of scale and cap."""
    cdef real scale = <real>job.o.scale
    cdef Py_ssize_t i
    if job.o.cap != 0:
        for i in range(tile.lines * GROUP):
            values[i] *= scale * slope[i]
    elif job.o.scale != 1:
        for i in range(tile.lines * GROUP):
            values[i] *= scale


cdef void read_vector(const Job* job, const Tile* tile, const double* weight, const real* slope, const real* e, real* v, real* ev) noexcept nogil:
    """The vector of the product, along the logits after scale and cap, and e v."""
    cdef Py_ssize_t i
    read_tile(&job.v, tile, v)
    if job.weighted and not tile.wide:
        clear_lanes(v, tile.lines, weight)
    steer(job, tile, slope, v)
    for i in range(tile.lines * GROUP):
        ev[i] = 0 if e[i] == 0 else e[i] * v[i]

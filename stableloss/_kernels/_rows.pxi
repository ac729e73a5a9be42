# Rows of k logits to exponentials e_k = e**(x_k - m), m the maximum, and their sums, for all softmax losses:
#
#   load -> transform -> maximum -> exp -> take the target out -> sums -> fold -> finish columns
#        -> emit -> store
#
# of tiles (see _tiles.pxi) or, for class indices, of a row by itself (see _pieces.pxi).
#
# Exponentials come times UNIT (see _math.pxi), which cancels in every quotient.
#
# 1 - p is never formed: a class index's exponential is taken out of the sum, and everything else forms the
# sum of the other exponentials. For that, exponentials equal to UNIT are added apart from those below, so
# that others = (sum_max - e) + sum_rest loses nothing for the maximum, nor for the rest; other sums likewise.
#
# uses _job: Job SL_COMPENSATED
# uses _logits: chain_first indicator_logit smallest_normal transform_logits
# uses _math: SL_INFINITY absolute fma is_positive_infinity log1p_positive log_of_ratio real row_scale two_sum
# uses _math: uintptr_t unit
# uses _operand: Operand gather has_rows kind_of row_offsets
# uses _options: Settings WANT_GRAD WANT_PRODUCT WANT_TARGET_GRAD
# uses _sums: GROUP Pairs Split clear_pairs clear_split fold_columns maximum_of padded spread
# uses _tiles: TILE_EV TILE_EXPS TILE_LOGITS TILE_SLOPE TILE_TARGETS TILE_VECTOR Tile clear_columns place_tile
# uses _tiles: read_columns read_tile write_tile
# uses _weights: load_classes


cdef extern from "sl_columns.h" nogil:
    ctypedef struct sl_ahead:
        uintptr_t read
        uintptr_t write
        int halvings
    void sl_padded_copy_f32(const float*, Py_ssize_t, float*) noexcept
    void sl_padded_copy_f64(const double*, Py_ssize_t, double*) noexcept
    void sl_column_maxima_f32(const float*, Py_ssize_t, float*) noexcept
    void sl_column_maxima_f64(const double*, Py_ssize_t, double*) noexcept
    void sl_column_exponentials_f32(
        const float*, float*, Py_ssize_t, const float*, int, double, const sl_ahead*) noexcept
    void sl_column_exponentials_f64(
        const double*, double*, Py_ssize_t, const double*, int, double, const sl_ahead*) noexcept
    void sl_row_exponentials_f32(
        const float*, float*, Py_ssize_t, float, int, double, const sl_ahead*) noexcept
    void sl_row_exponentials_f64(
        const double*, double*, Py_ssize_t, double, int, double, const sl_ahead*) noexcept
    void sl_compensated_columns(
        const float*, float*, Py_ssize_t, const float*, float*, const sl_ahead*) noexcept
    void sl_compensated_row(const float*, float*, Py_ssize_t, float, float*, const sl_ahead*) noexcept


cdef double ORDINARY_VECTOR = 2.0**600
cdef double LESS = 2.0**-400


cdef extern from "sl_targets.h" nogil:
    void sl_target_sums_f32(
        const float*, const float*, Py_ssize_t, const double*, double*, double*) noexcept
    void sl_target_sums_f64(
        const double*, const double*, Py_ssize_t, const double*, double*, double*) noexcept
    void sl_soft_sums_f32(
        const float*, const float*, const float*, Py_ssize_t, const double*, double*, uintptr_t) noexcept
    void sl_soft_sums_f64(
        const double*, const double*, const double*, Py_ssize_t, const double*, double*, uintptr_t) noexcept


# ---- columns --------------------------------------------------------------------------------------

cdef struct Columns:
    # What is known of each column: of all columns the same where the tile is wide.
    int how                 # exponentials are computed, see sl_columns_of.h
    bint plain              # targets are as they are given, neither smoothed nor weighted
    bint linear             # the loss is sum q S, S = -log p
    bint cached             # exponentials of several tiles wait in the gradient's place
    double weight[GROUP]
    Py_ssize_t y[GROUP]     # target class
    double m[GROUP]         # maximum; S = m - x + log_sum
    double p_max[GROUP]     # of probabilities, for which m is 0
    bint limit[GROUP]       # the row has a +inf and stands for its limit
    bint any_limit
    double live[GROUP]      # classes above -inf
    double v_scale[GROUP]   # power of 2 that the vector of a Hessian product is multiplied by meanwhile
    Split ev                # e v
    # in this order for sl_targets_of.h:
    Pairs loss              # q (m - x) / 2
    Pairs mass              # q
    Split sums              # of the exponentials, and finished:
    double sum_max[GROUP]
    double sum_rest[GROUP]
    Pairs total
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
    if wide:
        spread(columns)


# ---- load -----------------------------------------------------------------------------------------

cdef void load_columns(
    const Job* job, Py_ssize_t start, int count, const double* weight, real* x, real* slope
) noexcept nogil:
    """Logits as they enter the softmax, of rows as columns. Those of weight 0 are 0, whatever they hold."""
    read_columns(&job.x, start, count, job.k, x)
    if job.any_weight:
        clear_columns(x, job.k, weight)
    transform_logits(job, job.k * GROUP, x, slope)


cdef inline void padded_copy(const real* x, Py_ssize_t n, real* to) noexcept nogil:
    """Logits, padded with -inf to whole lines."""
    if real is float:
        sl_padded_copy_f32(x, n, to)
    else:
        sl_padded_copy_f64(x, n, to)


cdef void load_logits(
    const Job* job, const char* row, Py_ssize_t first, Py_ssize_t n, real* x, real* slope
) noexcept nogil:
    """Logits first ... first + n - 1 of a row as they enter the softmax, padded with -inf to whole lines."""
    cdef Py_ssize_t i
    row += first * job.x.inner
    if has_rows(&job.x, x[0]):
        padded_copy(<const real*>row, n, x)
    else:
        gather(row, job.x.kind, job.x.inner, n, x)
        for i in range(n, padded(n)):
            x[i] = -SL_INFINITY
    transform_logits(job, n, x, slope)


cdef void load_tile(const Tile* tile, const double* weight, real* x, real* slope) noexcept nogil:
    """Logits as they enter the softmax; `slope` gets the derivative of the cap."""
    cdef Py_ssize_t offset, i
    if not tile.wide:
        load_columns(tile.job, tile.start, tile.count, weight, x, slope)
        return
    row_offsets(&tile.job.x, tile.start, 1, &offset)
    load_logits(tile.job, tile.job.x.data + offset, tile.first, tile.n, x, slope)
    if tile.job.o.softcap != 0:
        for i in range(tile.n, tile.lines * GROUP):
            slope[i] = 0


# ---- maximum --------------------------------------------------------------------------------------

cdef inline void column_maxima(const real* x, Py_ssize_t lines, real* m) noexcept nogil:
    """Raise each m to the maximum of its column. NaN may lose: it comes back as its class's exponential."""
    if real is float:
        sl_column_maxima_f32(x, lines, m)
    else:
        sl_column_maxima_f64(x, lines, m)


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
    cdef Py_ssize_t c, j
    for j in range(GROUP):
        if limit[j]:
            for c in range(lines):
                x[c * GROUP + j] = indicator_logit(x[c * GROUP + j])


cdef void count_live(const real* x, Py_ssize_t lines, double* live) noexcept nogil:
    cdef Py_ssize_t c, j
    for c in range(lines):
        for j in range(GROUP):
            live[j] += 0 if x[c * GROUP + j] == -SL_INFINITY else 1


cdef void open_maxima(Tile* tile, Columns* columns, real* scratch) noexcept nogil:
    """Maxima of the columns. Where there is one tile, its logits stay in scratch."""
    cdef real* x = scratch + TILE_LOGITS
    cdef real m[GROUP]
    cdef Py_ssize_t index, j
    for j in range(GROUP):
        m[j] = -SL_INFINITY
        columns.limit[j] = 0
        columns.live[j] = 0
    for index in range(tile.tiles):
        if not place_tile(index, tile):
            return
        load_tile(tile, columns.weight, x, scratch + TILE_SLOPE)
        column_maxima(<const real*>x, tile.lines, m)
        if tile.job.o.label_smoothing != 0:
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
    if tile.job.o.from_probabilities:
        for j in range(GROUP):
            columns.p_max[j] = m[j]
            columns.m[j] = 0


cdef void open_columns(Tile* tile, Columns* columns, real* scratch) noexcept nogil:
    """Begin with rows: weights, targets and maxima of the columns."""
    cdef const Settings* o = tile.job.o
    cdef Py_ssize_t j
    columns.plain = tile.job.indexed
    # where the gradient can hold the exponentials, and nothing that is read again lies there
    columns.cached = (tile.tiles > 1 and tile.want & WANT_GRAD and tile.job.g.kind == kind_of(scratch[0])
                      and o.focal_gamma == 0 and o.label_smoothing == 0 and o.softcap == 0
                      and not o.from_probabilities)
    for j in range(GROUP):
        columns.weight[j] = tile.weight[0 if tile.wide else j]
    open_classes(tile, columns)
    clear_split(&columns.sums)
    if columns.linear:
        clear_pairs(&columns.loss)
        clear_pairs(&columns.mass)
    if tile.want & WANT_PRODUCT:
        clear_split(&columns.ev)
        open_vector(tile, columns, scratch)
    open_maxima(tile, columns, scratch)


# ---- exp ------------------------------------------------------------------------------------------

cdef inline int for_products(real hint) noexcept nogil:
    """How exponentials are computed that products are made of, which of float32 are added in float64."""
    return SL_COMPENSATED if real is double else SL_PLAIN


cdef inline void column_exponentials(
    const real* x,
    real* e,
    Py_ssize_t lines,
    const real* m,
    int how,
    double scale,
    const sl_ahead* ahead,
) noexcept nogil:
    """e = UNIT e**(scale (x - m)), in place or not."""
    if real is float:
        sl_column_exponentials_f32(x, e, lines, m, how, scale, ahead)
    else:
        sl_column_exponentials_f64(x, e, lines, m, how, scale, ahead)


cdef inline void row_exponentials(
    const real* x, real* e, Py_ssize_t n, real m, int how, double scale, const sl_ahead* ahead
) noexcept nogil:
    """Of n logits of one row, and those that fill the last vector."""
    if real is float:
        sl_row_exponentials_f32(x, e, n, m, how, scale, ahead)
    else:
        sl_row_exponentials_f64(x, e, n, m, how, scale, ahead)


cdef inline bint is_compensated(int how, real hint) noexcept nogil:
    """Whether exponentials of class indices come with what they lack, which their sum is not to."""
    return real is float and how == SL_COMPENSATED


cdef inline sl_ahead* rows_ahead(
    const Job* job, Py_ssize_t at, Py_ssize_t bytes, sl_ahead* ahead
) noexcept nogil:
    """What is next at byte `at` of the logits: those `bytes` further on, and the gradient there; NULL where
    caches hold it all."""
    if not job.streams:
        return NULL
    ahead.read = <uintptr_t>job.x.data + at + bytes
    ahead.write = <uintptr_t>job.g.data + at if job.want & WANT_GRAD else ahead.read
    ahead.halvings = job.halvings
    return ahead


cdef void tile_exponentials(const Tile* tile, const Columns* columns, real* scratch) noexcept nogil:
    cdef real m[GROUP]
    cdef sl_ahead ahead
    cdef const Job* job = tile.job
    cdef Py_ssize_t row = job.k * job.x.inner
    to_real(columns.m, m)
    if columns.any_limit:
        limit_columns(scratch + TILE_LOGITS, tile.lines, columns.limit)
    column_exponentials(
        <const real*>(scratch + TILE_LOGITS), scratch + TILE_EXPS, tile.lines, <const real*>m,
        columns.how, 1,
        rows_ahead(job, tile.start * row + tile.first * job.x.inner, tile.count * row, &ahead))


cdef void tile_quotients(const Tile* tile, const Columns* columns, real* scratch) noexcept nogil:
    """Exponentials from probabilities p in x: e = UNIT p / p_max, and x = log(p / p_max), for which 0 takes
    the place of the maximum. Where p is near p_max, another class has that: x is part of a sum of at least
    log(2)."""
    cdef real* x = scratch + TILE_LOGITS
    cdef real* e = scratch + TILE_EXPS
    cdef real tiny = smallest_normal(tile.job, x[0])
    cdef real e_max = unit(x[0])
    cdef real m[GROUP]
    cdef real p, ratio
    cdef Py_ssize_t c, i, j
    for j in range(GROUP):
        m[j] = <real>columns.p_max[j]
        m[j] = tiny if m[j] < tiny else m[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            p = x[i]
            ratio = (tiny if p < tiny else p) / m[j]
            # -inf is not a class
            e[i] = 0 if p < 0 else e_max * ratio
            x[i] = p if p < 0 else log_of_ratio(ratio)


# ---- finish columns -------------------------------------------------------------------------------

cdef inline void finish_sum(Columns* columns, int j) noexcept nogil:
    cdef double lo
    columns.sum_max[j] = columns.sums.max.hi[j]
    columns.sum_rest[j] = columns.sums.rest.hi[j] + columns.sums.rest.lo[j]
    columns.total.hi[j] = two_sum(columns.sums.max.hi[j], columns.sums.rest.hi[j], &lo)
    columns.total.lo[j] = lo + columns.sums.rest.lo[j]


cdef inline void finish_log_sum(Columns* columns, int j, real hint) noexcept nogil:
    cdef double e_max = unit(hint)
    cdef double above = (columns.sum_max[j] - e_max) + columns.sum_rest[j]
    columns.log_sum[j] = log1p_positive(above * (1 / e_max))


cdef void finish_exponentials(Columns* columns, bint wide, real hint) noexcept nogil:
    cdef int j
    fold_columns(&columns.sums.rest, wide)
    fold_columns(&columns.sums.max, wide)
    for j in range(GROUP):
        finish_sum(columns, j)
    for j in range(columns_of(wide)):
        finish_log_sum(columns, j, hint)
    broadcast(columns.log_sum, wide)


cdef inline double inverse_sum(
    const Columns* columns, int j, double weight, double divisor, real hint
) noexcept nogil:
    """weight / (divisor * sum)."""
    if real is float:
        return weight / (divisor * columns.total.hi[j])
    else:
        return row_scale(weight, divisor, columns.total.hi[j], columns.total.lo[j])


cdef inline double inverse_square(const Columns* columns, int j, double weight, real hint) noexcept nogil:
    """weight / sum**2."""
    if real is float:
        return weight / (columns.total.hi[j] * columns.total.hi[j])
    else:
        return row_scale(weight, columns.total.hi[j], columns.total.hi[j], 2 * columns.total.lo[j])


cdef inline double gap_of(double m, double x) noexcept nogil:
    """m - x, halved: the difference may overflow where its product with a probability does not."""
    return 0.5 * m - 0.5 * x


cdef inline bint is_extreme(real hint, double factor) noexcept nogil:
    """Whether a factor from exponentials to a gradient is one of which float32 does not hold all digits."""
    if real is float:
        return (absolute(factor) > 3e38) | ((absolute(factor) < 1.2e-38) & (factor != 0))
    else:
        return False


cdef inline bint mark_extremes(real hint, const Job* job, const double* factor, bint* extreme) noexcept nogil:
    """Which factors of a group are, and whether any is; without weights, z and focusing they are not
    looked at, nor marked."""
    cdef int j, any = 0
    if real is float:
        if job.any_weight or job.o.z_loss != 0 or job.o.focal_gamma != 0:
            for j in range(GROUP):
                extreme[j] = is_extreme(hint, factor[j])
                any |= extreme[j]
    return any != 0


# ---- targets and directions -----------------------------------------------------------------------

cdef void given_targets(const Tile* tile, const Columns* columns, real* t) noexcept nogil:
    """Target probabilities."""
    cdef Py_ssize_t i, j
    if not tile.job.hard:
        read_tile(&tile.job.t, tile, t)
        if tile.job.any_weight and not tile.wide:
            clear_columns(t, tile.lines, columns.weight)
        return
    for i in range(tile.lines * GROUP):
        t[i] = 0
    if not tile.wide:
        for j in range(GROUP):
            t[columns.y[j] * GROUP + j] = 0 if columns.weight[j] == 0 else 1
    elif tile.first <= columns.y[0] < tile.first + tile.n:
        t[columns.y[0] - tile.first] = 1


cdef void option_targets(const Tile* tile, const Columns* columns, const real* x, real* q) noexcept nogil:
    """Smooth target probabilities, and multiply by the weights of their classes. From the logits the disabled
    classes are known."""
    cdef real share[GROUP]
    cdef real stays, w
    cdef const double* class_weight = tile.job.o.class_weight
    cdef Py_ssize_t c, i, j
    if tile.job.o.label_smoothing != 0:
        stays = <real>(1 - tile.job.o.label_smoothing)
        for j in range(GROUP):
            share[j] = <real>(tile.job.o.label_smoothing / columns.live[j])
        if tile.wide:
            for i in range(tile.n):
                q[i] = fma(stays, q[i], 0 if x[i] == -SL_INFINITY else share[0])
        else:
            for c in range(tile.lines):
                for j in range(GROUP):
                    i = c * GROUP + j
                    q[i] = fma(stays, q[i], 0 if x[i] == -SL_INFINITY else share[j])
    if class_weight == NULL:
        return
    if tile.wide:
        for i in range(tile.n):
            q[i] *= <real>class_weight[tile.first + i]
    else:
        for c in range(tile.lines):
            w = <real>class_weight[c]
            for j in range(GROUP):
                q[c * GROUP + j] *= w


cdef void tile_targets(const Tile* tile, const Columns* columns, const real* x, real* scratch) noexcept nogil:
    given_targets(tile, columns, scratch + TILE_TARGETS)
    if not columns.plain:
        option_targets(tile, columns, x, scratch + TILE_TARGETS)


cdef void open_classes(const Tile* tile, Columns* columns) noexcept nogil:
    """Class indices, which are targets too."""
    cdef int j
    if tile.job.hard:
        for j in range(GROUP):
            columns.y[j] = 0
        load_classes(tile.job, tile.start, tile.count, columns.y)
        if tile.wide:
            for j in range(1, GROUP):
                columns.y[j] = columns.y[0]


cdef void open_vector(Tile* tile, Columns* columns, real* scratch) noexcept nogil:
    """Where entries of a row's vector are so large that their products with three exponentials, which come
    times UNIT, might not stay within float64, all of them count as less until the product is written."""
    cdef real* v = scratch + TILE_VECTOR
    cdef double largest[GROUP]
    cdef Py_ssize_t index, c, j
    for j in range(GROUP):
        largest[j] = 0
    for index in range(tile.tiles):
        if not place_tile(index, tile):
            return
        read_tile(&tile.job.v, tile, v)
        for c in range(tile.lines):
            for j in range(GROUP):
                largest[j] = max(largest[j], <double>absolute(v[c * GROUP + j]))
    if tile.wide:
        largest[0] = maximum_of(largest)
        broadcast(largest, True)
    for j in range(GROUP):
        columns.v_scale[j] = LESS if largest[j] > ORDINARY_VECTOR else 1


cdef void scale_vector(const Tile* tile, const Columns* columns, bint back, real* v) noexcept nogil:
    cdef real scale[GROUP]
    cdef Py_ssize_t c, j
    for j in range(GROUP):
        scale[j] = <real>(1 / columns.v_scale[j] if back else columns.v_scale[j])
    for c in range(tile.lines):
        for j in range(GROUP):
            v[c * GROUP + j] *= scale[j]


cdef void write_product(const Tile* tile, const Columns* columns, real* product) noexcept nogil:
    scale_vector(tile, columns, True, product)
    write_tile(<const real*>product, &tile.job.g, tile)


cdef void tile_vector(const Tile* tile, const Columns* columns, real* scratch) noexcept nogil:
    """The vector of a Hessian product, as a direction of the logits that enter the softmax, and e v."""
    cdef const real* e = scratch + TILE_EXPS
    cdef real* v = scratch + TILE_VECTOR
    cdef real* ev = scratch + TILE_EV
    cdef Py_ssize_t i
    read_tile(&tile.job.v, tile, v)
    if tile.job.any_weight and not tile.wide:
        clear_columns(v, tile.lines, columns.weight)
    scale_vector(tile, columns, False, v)
    chain_first(tile.job.o, tile.lines * GROUP, <const real*>(scratch + TILE_SLOPE), v)
    for i in range(tile.lines * GROUP):
        ev[i] = 0 if e[i] == 0 else e[i] * v[i]


cdef inline void target_sums(
    const real* x, const real* q, Py_ssize_t lines, Columns* columns
) noexcept nogil:
    """q (m - x) / 2 and q, both 0 so far; an absent class costs nothing even where x is -inf."""
    if real is float:
        sl_target_sums_f32(x, q, lines, columns.m, columns.loss.hi, columns.mass.hi)
    else:
        sl_target_sums_f64(x, q, lines, columns.m, columns.loss.hi, columns.mass.hi)


cdef inline uintptr_t targets_ahead(const Tile* tile) noexcept nogil:
    """Where the targets of the next row are, if they come from memory, else 0: meanwhile they come closer."""
    cdef const Operand* t = &tile.job.t
    if not (tile.wide and tile.job.streams) or tile.job.hard or tile.job.halvings:
        return 0
    return <uintptr_t>t.data + (tile.start + 1) * t.stride[0] + tile.first * t.inner


cdef inline void soft_sums(
    const Tile* tile, const real* e, const real* x, const real* q, Py_ssize_t n, Columns* columns
) noexcept nogil:
    """Sums of the exponentials, of q (m - x) / 2 and of q."""
    if real is float:
        sl_soft_sums_f32(e, x, q, n, columns.m, columns.loss.hi, targets_ahead(tile))
    else:
        sl_soft_sums_f64(e, x, q, n, columns.m, columns.loss.hi, targets_ahead(tile))


# ---- tiles ----------------------------------------------------------------------------------------

cdef void reload_tile(const Tile* tile, const Columns* columns, real* scratch) noexcept nogil:
    """Logits of a tile; where there is one, they are there already."""
    if tile.tiles > 1:
        load_tile(tile, columns.weight, scratch + TILE_LOGITS, scratch + TILE_SLOPE)


cdef void open_tile(const Tile* tile, const Columns* columns, real* scratch) noexcept nogil:
    """Logits, targets and exponentials of a tile."""
    reload_tile(tile, columns, scratch)
    if tile.want & ~WANT_TARGET_GRAD:
        tile_targets(tile, columns, <const real*>(scratch + TILE_LOGITS), scratch)
    if tile.job.o.from_probabilities:
        tile_quotients(tile, columns, scratch)
    else:
        tile_exponentials(tile, columns, scratch)


cdef bint return_to_tile(Py_ssize_t index, Tile* tile, const Columns* columns, real* scratch) noexcept nogil:
    """A tile as `open_tile` left it; False where the call is to end."""
    if not place_tile(index, tile):
        return False
    if columns.cached:
        tile_targets(tile, columns, <const real*>(scratch + TILE_LOGITS), scratch)
        read_tile(&tile.job.g, tile, scratch + TILE_EXPS)
    elif tile.tiles > 1:
        open_tile(tile, columns, scratch)
    return True

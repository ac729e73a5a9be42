# Softmax + cross-entropy beyond class indices: soft targets, further options, second derivatives, statistics, in
# tiles (see _tiles.pxi). With q the weighted and smoothed targets and S = -log p, the loss of a row is
#
#   sum_k q_k (1 - p_k)**g S_k + z lse**2,  x = cap tanh(scale clamp(logit) / cap)
#
# With first = q p d/dp and second = q (p d/dp)**2 of (1 - p)**g S, and sums G, H of these over the classes,
#
#   grad  first_k - p_k G  =  (first_k others_k - e_k (G - first_k)) / sum,  others = sum - e
#   hess  second_k (1 - p_k)**2 + p_k**2 (H - second_k) - p_k (1 - p_k) G
#   Hv    second_k d_k (1 - p_k) - p_k (d_k G + D - second_k d_k),  d = v - p.v,  D the sum of second d
#
# to which z adds -2 z lse to G, and its own square term. Without focusing (g = 0) first is -q and
# second 0. The sums without k are formed from those over exponentials equal to UNIT and below it.
#
# Three pipelines have this in common: open -> sum tiles -> finish columns -> emit tiles, where focusing, which
# needs the probabilities, sums a second time.
#
# uses _groups: clear_derivatives
# uses _job: Job
# uses _logits: chain_first chain_product chain_second smallest_normal
# uses _math: SL_FMA SL_INFINITY exp_negative fma log1p_positive product_error real remainder_of unit
# uses _operand: kind_of
# uses _options: WANT_GRAD WANT_HESS WANT_LOSS WANT_PRODUCT WANT_STATS WANT_TARGET_GRAD
# uses _rows: Columns any_extreme broadcast columns_of finish_exponentials gap_of inverse_square inverse_sum
# uses _rows: load_tile open_columns tile_exponentials tile_targets tile_vector to_real
# uses _stats: Statistics start_statistics store_statistics tile_probabilities tile_statistics
# uses _sums: GROUP Split TILE Total accumulate reduce_columns reduce_split start_split start_total
# uses _sums: sum_exponentials sum_split
# uses _tiles: TILE_DIRECTION TILE_EV TILE_EXPS TILE_FIRST TILE_GRAD TILE_LOGITS TILE_OUT TILE_SECOND
# uses _tiles: TILE_SLOPE TILE_TARGETS TILE_VECTOR Tile place_tile read_tile write_tile
# uses _weights: drops_by_class load_weights

cdef struct CrossEntropy:
    # What is known of each column.
    Columns columns
    bint plain_targets          # neither smoothed nor weighted
    bint cached                 # exponentials wait in the gradient's place
    double m[GROUP]             # -log p = m - x + log_sum
    Total loss                  # q (m - x) / 2; with focusing q (1 - p)**g S
    Total mass                  # q
    Split first
    Split second
    Split ev                    # e v
    Split hvp                   # second d
    double shift[GROUP]         # -2 z lse
    double slope_total[GROUP]   # G - 2 z lse
    double inverse[GROUP]       # 1 / sum
    double factor[GROUP]        # weight / (divisor sum)
    double curvature[GROUP]     # weight / sum**2


# ---- open -----------------------------------------------------------------------------------------

cdef void option_targets(const Job* job, const Tile* tile, const Columns* columns, const real* x, real* q) noexcept nogil:
    """Smooth target probabilities, and multiply by the weights of their classes. x still holds the logits, from
    which the disabled classes are known."""
    cdef real share[GROUP]
    cdef real stays, w
    cdef const double* class_weight = job.o.class_weight
    cdef Py_ssize_t i, c
    cdef int j
    if job.o.label_smoothing != 0:
        stays = <real>(1 - job.o.label_smoothing)
        for j in range(GROUP):
            share[j] = <real>(job.o.label_smoothing / columns.live[j])
        for c in range(tile.lines):
            for j in range(GROUP):
                q[c * GROUP + j] = fma(stays, q[c * GROUP + j], 0 if x[c * GROUP + j] == -SL_INFINITY else share[j])
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


cdef void tile_quotients(const Job* job, const Tile* tile, const Columns* columns, real* x, real* e) noexcept nogil:
    """Exponentials from probabilities p in x: e = UNIT p / p_max, and x = log(p / p_max), for which 0 takes
    the place of the maximum. The logarithm is that of 1 + (p_max - p) / p, for p near p_max too."""
    cdef real tiny = smallest_normal(job, x[0])
    cdef real e_max = unit(x[0])
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
            e[c * GROUP + j] = 0 if p < 0 else e_max * (p / m[j])
            x[c * GROUP + j] = p if p < 0 else -<real>log1p_positive(<double>((m[j] - p) / p))


cdef void ce_open(const Job* job, Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    cdef int j
    state.plain_targets = job.hard and not job.has_options
    # where the gradient can hold the exponentials, and nothing that is read again lies there
    state.cached = (tile.tiles > 1 and tile.want & WANT_GRAD and job.g.kind == kind_of(scratch[0])
                    and job.o.focal_gamma == 0 and job.o.label_smoothing == 0 and job.o.softcap == 0
                    and not job.o.from_probabilities)
    open_columns(job, tile, &state.columns, scratch + TILE_LOGITS, scratch + TILE_SLOPE)
    for j in range(GROUP):
        state.m[j] = 0 if job.o.from_probabilities else state.columns.m[j]
    start_total(&state.loss)
    start_total(&state.mass)
    if job.o.focal_gamma != 0:
        start_split(&state.first)
        start_split(&state.second)
    if tile.want & WANT_PRODUCT:
        start_split(&state.ev)
        start_split(&state.hvp)


cdef void ce_open_tile(const Job* job, const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    """Logits, targets and exponentials of a tile; where there is one, its logits are there already."""
    if tile.tiles > 1:
        load_tile(job, tile, state.columns.weight, scratch + TILE_LOGITS, scratch + TILE_SLOPE)
    tile_targets(job, tile, &state.columns, scratch + TILE_TARGETS)
    if not state.plain_targets:
        option_targets(job, tile, &state.columns, <const real*>(scratch + TILE_LOGITS), scratch + TILE_TARGETS)
    if job.o.from_probabilities:
        tile_quotients(job, tile, &state.columns, scratch + TILE_LOGITS, scratch + TILE_EXPS)
    else:
        tile_exponentials(tile, &state.columns, False, scratch + TILE_LOGITS, scratch + TILE_EXPS)


cdef bint ce_return_to(const Job* job, Py_ssize_t index, Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    """A tile as `ce_open_tile` left it; False where the call is to end."""
    if not place_tile(job, index, tile):
        return False
    if state.cached:
        tile_targets(job, tile, &state.columns, scratch + TILE_TARGETS)
        if not state.plain_targets:
            option_targets(job, tile, &state.columns, <const real*>(scratch + TILE_LOGITS), scratch + TILE_TARGETS)
        read_tile(&job.g, tile, scratch + TILE_EXPS)
    elif tile.tiles > 1:
        ce_open_tile(job, tile, state, scratch)
    return True


# ---- sum tiles ------------------------------------------------------------------------------------

cdef void sum_losses(const Tile* tile, CrossEntropy* state, const real* scratch) noexcept nogil:
    """Add up q (m - x) / 2 and q; an absent class costs nothing even where x is -inf."""
    cdef const real* x = scratch + TILE_LOGITS
    cdef const real* q = scratch + TILE_TARGETS
    cdef double m[GROUP]
    cdef Total loss = state.loss
    cdef Total mass = state.mass
    cdef double share
    cdef Py_ssize_t c
    cdef int j
    to_real(state.m, m)
    for c in range(tile.lines):
        for j in range(GROUP):
            share = q[c * GROUP + j]
            accumulate(x[0], &loss.hi[j], &loss.lo[j], 0 if share == 0 else gap_of(m[j], x[c * GROUP + j]) * share)
            accumulate(x[0], &mass.hi[j], &mass.lo[j], share)
    state.loss = loss
    state.mass = mass


cdef inline void focal_terms(double e, double others, double minus_log, double gamma, double* power, double* first, double* second) noexcept nogil:
    """(1 - p)**gamma, and p d/dp and (p d/dp)**2 of its product with S = -log p.

    With odds = p / (1 - p) the power is exp(-gamma log1p(odds)), and the derivatives have odds * S,
    which tends to 1 as p tends to 1, and to 0 as p tends to 0.
    """
    cdef double odds = e / others
    cdef double near
    odds = 1e300 if odds > 1e300 else odds
    near = 1 if minus_log < 1e-290 else odds * minus_log
    near = 0 if odds == 0 else near
    power[0] = exp_negative(-gamma * log1p_positive(odds))
    first[0] = -power[0] * (1 + gamma * near)
    second[0] = 0 if odds == 0 or others == 0 else gamma * odds * power[0] * (2 - minus_log + (gamma - 1) * near)


cdef struct FocalColumns:
    double gamma
    double m[GROUP]
    double log_sum[GROUP]
    double sum_max[GROUP]
    double sum_rest[GROUP]


cdef inline void focal_columns(const Job* job, const CrossEntropy* state, FocalColumns* columns) noexcept nogil:
    columns.gamma = job.o.focal_gamma
    to_real(state.m, columns.m)
    to_real(state.columns.log_sum, columns.log_sum)
    to_real(state.columns.sum_max, columns.sum_max)
    to_real(state.columns.sum_rest, columns.sum_rest)


cdef inline double focal_entry(const FocalColumns* columns, int j, double e, double x, double q, real* first, real* second) noexcept nogil:
    """The loss of one class; its derivatives by log p."""
    cdef double power, one, two
    cdef double minus_log = 2 * gap_of(columns.m[j], x) + columns.log_sum[j]
    focal_terms(e, remainder_of(e, columns.sum_max[j], columns.sum_rest[j]), minus_log, columns.gamma,
                &power, &one, &two)
    first[0] = <real>(0 if q == 0 else q * one)
    second[0] = <real>(0 if q == 0 else q * two)
    return 0 if q == 0 or power == 0 else q * power * minus_log


cdef void focal_derivatives(const Job* job, const Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """first and second of a tile; adds up the loss."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* x = scratch + TILE_LOGITS
    cdef const real* q = scratch + TILE_TARGETS
    cdef real* first = scratch + TILE_FIRST
    cdef real* second = scratch + TILE_SECOND
    cdef FocalColumns columns
    cdef Total loss = state.loss
    cdef Py_ssize_t c, i
    cdef int j
    focal_columns(job, state, &columns)
    if not job.hard or job.o.label_smoothing != 0:
        for c in range(tile.lines):
            for j in range(GROUP):
                i = c * GROUP + j
                accumulate(e[0], &loss.hi[j], &loss.lo[j],
                           focal_entry(&columns, j, e[i], x[i], q[i], &first[i], &second[i]))
    else:
        for i in range(tile.lines * GROUP):
            first[i] = second[i] = 0
        for j in range(columns_of(tile.wide)):
            i = state.columns.y[j] - tile.first if tile.wide else state.columns.y[j] * GROUP + j
            if not tile.wide or 0 <= i < tile.n:
                accumulate(e[0], &loss.hi[j], &loss.lo[j],
                           focal_entry(&columns, j, e[i], x[i], q[i], &first[i], &second[i]))
    state.loss = loss


cdef bint sum_focal(const Job* job, Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """Add up the loss, first and second; False where the call is to end."""
    cdef Py_ssize_t index
    for index in range(tile.tiles):
        if not ce_return_to(job, index, tile, state, scratch):
            return False
        focal_derivatives(job, tile, state, scratch)
        sum_split(<const real*>(scratch + TILE_EXPS), <const real*>(scratch + TILE_FIRST), tile.lines, &state.first)
        sum_split(<const real*>(scratch + TILE_EXPS), <const real*>(scratch + TILE_SECOND), tile.lines, &state.second)
    return True


# ---- finish columns -------------------------------------------------------------------------------

cdef void ce_finish_exponentials(const Job* job, const Tile* tile, CrossEntropy* state, real hint) noexcept nogil:
    cdef Columns* columns = &state.columns
    cdef bint wide = tile.wide
    cdef int j
    finish_exponentials(columns, wide, hint)
    for j in range(columns_of(wide)):
        state.factor[j] = inverse_sum(columns, j, columns.weight[j], job.divisor, hint)
    broadcast(state.factor, wide)
    if tile.want & WANT_PRODUCT:
        for j in range(columns_of(wide)):
            state.inverse[j] = inverse_sum(columns, j, 1, 1, hint)
        broadcast(state.inverse, wide)
    if tile.want & WANT_HESS:
        for j in range(columns_of(wide)):
            state.curvature[j] = inverse_square(columns, j, columns.weight[j], hint)
        broadcast(state.curvature, wide)


cdef void ce_finish_sums(const Job* job, const Tile* tile, CrossEntropy* state, real hint) noexcept nogil:
    """G, and the losses."""
    cdef const Columns* columns = &state.columns
    cdef bint wide = tile.wide
    cdef bint focal = job.o.focal_gamma != 0
    cdef double z = job.o.z_loss
    cdef double lse
    cdef int j
    reduce_columns(&state.loss, wide)
    if focal:
        reduce_split(&state.first, wide)
        reduce_split(&state.second, wide)
        for j in range(GROUP):
            state.mass.hi[j] = -(state.first.rest.hi[j] + state.first.max.hi[j])
    else:
        reduce_columns(&state.mass, wide)
    for j in range(columns_of(wide)):
        lse = (SL_INFINITY if columns.limit[j] else columns.m[j]) + columns.log_sum[j]
        state.shift[j] = 0 if z == 0 else -2 * z * lse
        if columns.limit[j] and z != 0:
            # in place of inf, whose product with a probability of 0 has to be 0
            state.shift[j] = -1e37 if real is float else -1e300
        state.slope_total[j] = state.shift[j] - state.mass.hi[j]
        if tile.want & WANT_LOSS:
            tile.loss[j] = (state.loss.hi[j] if focal
                            else 2 * state.loss.hi[j] + state.mass.hi[j] * columns.log_sum[j])
            if z != 0:
                # not multiplied by a weight that stands for the class
                tile.loss[j] += z * lse * lse
    broadcast(state.shift, wide)
    broadcast(state.slope_total, wide)


# ---- emit tiles -----------------------------------------------------------------------------------

cdef inline real without(real term, bint at_max, real sum_rest, real sum_max) noexcept nogil:
    """A sum without one of its terms, of an exponential equal to UNIT or below it."""
    return (sum_max - term) + sum_rest if at_max else (sum_rest - term) + sum_max


cdef void plain_gradient(const Job* job, const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    """p mass - q, as e (mass - q) - q others over the sum: for a one-hot row either term is 0, and the
    other keeps its digits."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* q = scratch + TILE_TARGETS
    cdef real* to = scratch + TILE_GRAD
    cdef real sum_max[GROUP]
    cdef real sum_rest[GROUP]
    cdef real mass[GROUP]
    cdef real factor[GROUP]
    cdef bint extreme = any_extreme(job, state.factor, GROUP, e[0])
    cdef Py_ssize_t c
    cdef int j
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    for j in range(GROUP):
        mass[j] = -<real>state.slope_total[j]
        factor[j] = <real>(1 if extreme else state.factor[j])
    for c in range(tile.lines):
        for j in range(GROUP):
            to[c * GROUP + j] = fma(
                e[c * GROUP + j], mass[j] - q[c * GROUP + j],
                -(q[c * GROUP + j] * remainder_of(e[c * GROUP + j], sum_max[j], sum_rest[j]))) * factor[j]
    if extreme:
        for c in range(tile.lines):
            for j in range(GROUP):
                to[c * GROUP + j] = <real>(to[c * GROUP + j] * state.factor[j])


cdef void focal_gradient(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef real* to = scratch + TILE_GRAD
    cdef real sum_max[GROUP]
    cdef real sum_rest[GROUP]
    cdef real g_max[GROUP]
    cdef real g_rest[GROUP]
    cdef real g_max_shifted[GROUP]
    cdef real g_rest_shifted[GROUP]
    cdef real factor[GROUP]
    cdef real e_max = unit(e[0])
    cdef real first, rest
    cdef Py_ssize_t c, i
    cdef int j
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    to_real(state.first.max.hi, g_max)
    to_real(state.first.rest.hi, g_rest)
    to_real(state.factor, factor)
    for j in range(GROUP):
        g_max_shifted[j] = <real>(state.first.max.hi[j] + state.shift[j])
        g_rest_shifted[j] = <real>(state.first.rest.hi[j] + state.shift[j])
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            first = scratch[TILE_FIRST + i]
            rest = (g_max[j] - first) + g_rest_shifted[j] if e[i] == e_max else (g_rest[j] - first) + g_max_shifted[j]
            to[i] = fma(-e[i], rest, first * remainder_of(e[i], sum_max[j], sum_rest[j])) * factor[j]


cdef void ce_gradient(const Job* job, const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    if job.o.focal_gamma != 0:
        focal_gradient(tile, state, scratch)
    else:
        plain_gradient(job, tile, state, scratch)


cdef void plain_hessian(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef real* to = scratch + TILE_OUT
    cdef real sum_max[GROUP]
    cdef real sum_rest[GROUP]
    # in float64, which their product with extreme weights does not leave
    cdef double factor[GROUP]
    cdef double factor_lo[GROUP]
    cdef real others, rest
    cdef Py_ssize_t c, i
    cdef int j
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    for j in range(GROUP):
        factor[j] = -state.slope_total[j] * state.curvature[j]
        factor_lo[j] = product_error(-state.slope_total[j], state.curvature[j], factor[j])
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            others = remainder_of(e[i], sum_max[j], sum_rest[j])
            rest = e[i] * others
            if real is float:
                to[i] = <real>(rest * factor[j])
            else:
                to[i] = SL_FMA(rest, factor[j],
                               SL_FMA(rest, factor_lo[j], product_error(e[i], others, rest) * factor[j]))


cdef void option_hessian(const Job* job, const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    """With focusing or z."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* second = scratch + TILE_SECOND
    cdef real* to = scratch + TILE_OUT
    cdef real sum_max[GROUP]
    cdef real sum_rest[GROUP]
    cdef double curvature[GROUP]
    cdef double total[GROUP]
    cdef double square = 2 * job.o.z_loss
    cdef bint focal = job.o.focal_gamma != 0
    cdef real e_max = unit(e[0])
    cdef real others, rest
    cdef double own
    cdef Py_ssize_t c, i
    cdef int j
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    to_real(state.curvature, curvature)
    to_real(state.slope_total, total)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            others = remainder_of(e[i], sum_max[j], sum_rest[j])
            rest = 0
            own = 0
            if focal:
                rest = e[i] * without(second[i], e[i] == e_max,
                                      <real>state.second.rest.hi[j], <real>state.second.max.hi[j])
                own = second[i] * others * others * curvature[j]
            to[i] = <real>(own + e[i] * (rest + square * e[i] - others * total[j]) * curvature[j])


cdef void ce_emit_values(const Job* job, const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    cdef real* grad = scratch + TILE_GRAD
    cdef const real* slope = scratch + TILE_SLOPE
    if job.wants_probabilities:
        tile_probabilities(job, tile, &state.columns, <const real*>(scratch + TILE_EXPS), scratch + TILE_OUT)
    if tile.want & WANT_GRAD or job.o.softcap != 0:
        ce_gradient(job, tile, state, scratch)
    if tile.want & WANT_HESS:
        if job.o.z_loss == 0 and job.o.focal_gamma == 0:
            plain_hessian(tile, state, scratch)
        else:
            option_hessian(job, tile, state, scratch)
        chain_second(job.o, tile.lines * GROUP, <const real*>(scratch + TILE_LOGITS), slope, <const real*>grad, scratch + TILE_OUT)
        write_tile(<const real*>(scratch + TILE_OUT), &job.h, tile)
    if tile.want & WANT_GRAD:
        chain_first(job.o, tile.lines * GROUP, slope, grad)
        write_tile(<const real*>grad, &job.g, tile)


# ---- loss, gradient, Hessian, statistics ----------------------------------------------------------

cdef void ce_values(const Job* job, Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    cdef Statistics statistics
    cdef bint focal = job.o.focal_gamma != 0
    cdef Py_ssize_t index
    if tile.want & WANT_STATS:
        start_statistics(&statistics)
    for index in range(tile.tiles):
        if not place_tile(job, index, tile):
            return
        ce_open_tile(job, tile, state, scratch)
        sum_exponentials(<const real*>(scratch + TILE_EXPS), tile.lines, &state.columns.sums)
        if not focal:
            sum_losses(tile, state, <const real*>scratch)
        if tile.want & WANT_STATS:
            tile_statistics(tile, state.m, <const real*>(scratch + TILE_LOGITS), <const real*>(scratch + TILE_EXPS), &statistics)
        if state.cached:
            write_tile(<const real*>(scratch + TILE_EXPS), &job.g, tile)
    ce_finish_exponentials(job, tile, state, scratch[0])
    if focal and not sum_focal(job, tile, state, scratch):
        return
    ce_finish_sums(job, tile, state, scratch[0])
    if tile.want & WANT_STATS:
        store_statistics(job, tile, &state.columns, &statistics, scratch[0])
    if not (tile.want & (WANT_GRAD | WANT_HESS) or job.wants_probabilities):
        return
    for index in range(tile.tiles):
        if not ce_return_to(job, index, tile, state, scratch):
            return
        if focal and tile.tiles > 1:
            focal_derivatives(job, tile, state, scratch)
        ce_emit_values(job, tile, state, scratch)


# ---- Hessian times a vector -----------------------------------------------------------------------

cdef void tile_directions(const Job* job, const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    """d, for which the vector is read again."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* v = scratch + TILE_VECTOR
    cdef real* d = scratch + TILE_DIRECTION
    cdef real sum_max[GROUP]
    cdef real sum_rest[GROUP]
    cdef real v_max[GROUP]
    cdef real v_rest[GROUP]
    cdef real inverse[GROUP]
    cdef real e_max = unit(e[0])
    cdef real others, rest
    cdef Py_ssize_t c, i
    cdef int j
    tile_vector(job, tile, &state.columns, <const real*>(scratch + TILE_SLOPE), e, scratch + TILE_VECTOR, scratch + TILE_EV)
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    to_real(state.ev.max.hi, v_max)
    to_real(state.ev.rest.hi, v_rest)
    to_real(state.inverse, inverse)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            others = remainder_of(e[i], sum_max[j], sum_rest[j])
            rest = without(scratch[TILE_EV + i], e[i] == e_max, v_rest[j], v_max[j])
            d[i] = 0 if e[i] == 0 else (v[i] * others - rest) * inverse[j]


cdef bint ce_sum_hvp(const Job* job, Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """Add up second d; False where the call is to end."""
    cdef real* d = scratch + TILE_DIRECTION
    cdef Py_ssize_t index, i
    for index in range(tile.tiles):
        if not ce_return_to(job, index, tile, state, scratch):
            return False
        if tile.tiles > 1:
            focal_derivatives(job, tile, state, scratch)
        tile_directions(job, tile, state, scratch)
        for i in range(tile.lines * GROUP):
            d[i] *= scratch[TILE_SECOND + i]
        sum_split(<const real*>(scratch + TILE_EXPS), <const real*>d, tile.lines, &state.hvp)
    reduce_split(&state.hvp, tile.wide)
    return True


cdef void emit_product(const Job* job, const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* second = scratch + TILE_SECOND
    cdef real* to = scratch + TILE_OUT               # in place of d
    cdef real square = <real>(2 * job.o.z_loss)
    cdef real e_max = unit(e[0])
    cdef real others, hvp, p
    cdef Py_ssize_t c, i
    cdef int j
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            others = (remainder_of(e[i], <real>state.columns.sum_max[j], <real>state.columns.sum_rest[j])
                      * <real>state.inverse[j])
            hvp = second[i] * scratch[TILE_DIRECTION + i]
            p = e[i] * <real>state.inverse[j]
            to[i] = hvp * others - p * (
                <real>state.slope_total[j] * scratch[TILE_DIRECTION + i]
                + without(hvp, e[i] == e_max, <real>state.hvp.rest.hi[j], <real>state.hvp.max.hi[j])
                - square * <real>((state.ev.rest.hi[j] + state.ev.max.hi[j]) * state.inverse[j]))
            to[i] *= <real>(state.factor[j] / state.inverse[j])


cdef void ce_product(const Job* job, Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    cdef bint focal = job.o.focal_gamma != 0
    cdef Py_ssize_t index, i
    for index in range(tile.tiles):
        if not place_tile(job, index, tile):
            return
        ce_open_tile(job, tile, state, scratch)
        sum_exponentials(<const real*>(scratch + TILE_EXPS), tile.lines, &state.columns.sums)
        if not focal:
            sum_losses(tile, state, <const real*>scratch)
        tile_vector(job, tile, &state.columns, <const real*>(scratch + TILE_SLOPE), <const real*>(scratch + TILE_EXPS),
                    scratch + TILE_VECTOR, scratch + TILE_EV)
        sum_split(<const real*>(scratch + TILE_EXPS), <const real*>(scratch + TILE_EV), tile.lines, &state.ev)
    ce_finish_exponentials(job, tile, state, scratch[0])
    if focal and not sum_focal(job, tile, state, scratch):
        return
    ce_finish_sums(job, tile, state, scratch[0])
    reduce_split(&state.ev, tile.wide)
    if focal and not ce_sum_hvp(job, tile, state, scratch):
        return
    if not focal:
        for i in range(TILE):
            scratch[TILE_SECOND + i] = 0
    for index in range(tile.tiles):
        if not ce_return_to(job, index, tile, state, scratch):
            return
        if focal and tile.tiles > 1:
            focal_derivatives(job, tile, state, scratch)
        tile_directions(job, tile, state, scratch)
        emit_product(job, tile, state, scratch)
        if job.o.softcap != 0:
            ce_gradient(job, tile, state, scratch)
        chain_product(job.o, tile.lines * GROUP, <const real*>(scratch + TILE_LOGITS), <const real*>(scratch + TILE_SLOPE),
                      <const real*>(scratch + TILE_GRAD), <const real*>(scratch + TILE_VECTOR), scratch + TILE_OUT)
        write_tile(<const real*>(scratch + TILE_OUT), &job.g, tile)


# ---- derivative by the targets --------------------------------------------------------------------

cdef void emit_target_gradient(const Job* job, const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    """(1 - smoothing) class weight (1 - p)**gamma S."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* x = scratch + TILE_LOGITS
    cdef real* to = scratch + TILE_OUT
    cdef FocalColumns columns
    cdef Py_ssize_t c, i, k
    cdef int j
    cdef double others, minus_log, power, first, second
    focal_columns(job, state, &columns)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            minus_log = 2 * gap_of(columns.m[j], x[i]) + columns.log_sum[j]
            power = 1
            if job.o.focal_gamma != 0:
                others = remainder_of(<double>e[i], columns.sum_max[j], columns.sum_rest[j])
                focal_terms(e[i], others, minus_log, columns.gamma, &power, &first, &second)
            if job.o.class_weight != NULL:
                k = tile.first + i if tile.wide else c
                power *= job.o.class_weight[k] if k < job.k else 0
            power *= (1 - job.o.label_smoothing) * state.columns.weight[j] / job.divisor
            to[i] = <real>(0 if power == 0 else power * minus_log)


cdef void ce_target_gradient(const Job* job, Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    cdef Py_ssize_t index
    for index in range(tile.tiles):
        if not place_tile(job, index, tile):
            return
        ce_open_tile(job, tile, state, scratch)
        sum_exponentials(<const real*>(scratch + TILE_EXPS), tile.lines, &state.columns.sums)
    finish_exponentials(&state.columns, tile.wide, scratch[0])
    for index in range(tile.tiles):
        if not ce_return_to(job, index, tile, state, scratch):
            return
        emit_target_gradient(job, tile, state, scratch)
        write_tile(<const real*>(scratch + TILE_OUT), &job.g, tile)


# ---- all three ------------------------------------------------------------------------------------

cdef void drop_absent_rows(const Job* job, Tile* tile, real* scratch) noexcept nogil:
    """Take out of the results, NaN and all, what a class weight of 0 leaves nothing of."""
    cdef double present[GROUP]
    cdef int j
    if not drops_by_class(job):
        return
    load_weights(job, tile.start, tile.count, False, True, present)
    for j in range(tile.count):
        if present[j] == 0:
            tile.weight[j] = 0
            clear_derivatives(job, tile.start + j, tile.want, scratch)


cdef void cross_entropy_of_tile(const Job* job, Tile* tile, real* scratch) noexcept nogil:
    cdef CrossEntropy state
    ce_open(job, tile, &state, scratch)
    if tile.want & WANT_PRODUCT:
        ce_product(job, tile, &state, scratch)
    elif tile.want & WANT_TARGET_GRAD:
        ce_target_gradient(job, tile, &state, scratch)
    else:
        ce_values(job, tile, &state, scratch)
    if not state.plain_targets:
        drop_absent_rows(job, tile, scratch)

# Softmax + cross-entropy beyond class indices: soft targets, further options, second derivatives and
# statistics, in tiles (see _tiles.pxi). With q the weighted and smoothed targets and S = -log p, the loss is
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
# Three pipelines have this in common: open -> sum tiles -> finish columns -> emit tiles, where focusing,
# which needs the probabilities, sums tiles a second time.
#
# uses _groups: clear_derivatives sum_tiles
# uses _job: Job
# uses _logits: chain_first chain_product chain_second
# uses _math: SL_FMA SL_INFINITY exp_negative fma log1p_positive product_error real remainder_of unit
# uses _options: Settings WANT_GRAD WANT_HESS WANT_LOSS WANT_PRODUCT WANT_STATS WANT_TARGET_GRAD
# uses _rows: Columns any_extreme broadcast columns_of gap_of inverse_square inverse_sum open_columns
# uses _rows: return_to_tile tile_vector to_real write_product
# uses _stats: Statistics start_statistics tile_probabilities
# uses _sums: GROUP Pairs Split TILE accumulate clear_pairs clear_split copy_pairs reduce_columns reduce_split
# uses _sums: sum_split
# uses _tiles: TILE_DIRECTION TILE_EV TILE_EXPS TILE_FIRST TILE_GRAD TILE_LOGITS TILE_OUT TILE_SECOND
# uses _tiles: TILE_SLOPE TILE_TARGETS TILE_VECTOR Tile write_tile
# uses _weights: drops_by_class load_weights

cdef struct CrossEntropy:
    # What is known of each column beside its exponentials.
    Pairs loss                  # with focusing q (1 - p)**g S
    Split first
    Split second
    Split hvp                   # second d
    Pairs mass                  # -G
    double shift[GROUP]         # -2 z lse
    double slope_total[GROUP]   # G - 2 z lse
    double inverse[GROUP]       # 1 / sum
    double factor[GROUP]        # weight / (divisor sum)
    double curvature[GROUP]     # weight / sum**2
    Columns columns


# ---- sum tiles ------------------------------------------------------------------------------------

cdef inline void focal_terms(
    double e, double others, double minus_log, double gamma, double* power, double* first, double* second
) noexcept nogil:
    """(1 - p)**gamma, and p d/dp and (p d/dp)**2 of its product with S = -log p.

    With odds = p / (1 - p) the power is exp(-gamma log1p(odds)), and the derivatives have odds * S,
    which tends to 1 as p tends to 1, and to 0 as p tends to 0.
    """
    cdef double odds = e / others
    cdef double near, bend
    odds = 1e300 if odds > 1e300 else odds
    near = 1 if minus_log < 1e-290 else odds * minus_log
    near = 0 if odds == 0 else near
    power[0] = exp_negative(-gamma * log1p_positive(odds))
    first[0] = -power[0] * (1 + gamma * near)
    bend = 2 - minus_log + (gamma - 1) * near
    second[0] = 0 if odds == 0 or others == 0 else gamma * odds * power[0] * bend


cdef struct FocalColumns:
    double gamma
    double m[GROUP]
    double log_sum[GROUP]
    double sum_max[GROUP]
    double sum_rest[GROUP]


cdef inline void focal_columns(const Job* job, const Columns* columns, FocalColumns* focal) noexcept nogil:
    focal.gamma = job.o.focal_gamma
    to_real(columns.m, focal.m)
    to_real(columns.log_sum, focal.log_sum)
    to_real(columns.sum_max, focal.sum_max)
    to_real(columns.sum_rest, focal.sum_rest)


cdef inline double focal_entry(
    const FocalColumns* focal, int j, double e, double x, double q, real* first, real* second
) noexcept nogil:
    """The loss of one class; its derivatives by log p."""
    cdef double power, one, two
    cdef double minus_log = 2 * gap_of(focal.m[j], x) + focal.log_sum[j]
    cdef double others = remainder_of(e, focal.sum_max[j], focal.sum_rest[j])
    focal_terms(e, others, minus_log, focal.gamma, &power, &one, &two)
    first[0] = <real>(0 if q == 0 else q * one)
    second[0] = <real>(0 if q == 0 else q * two)
    return 0 if q == 0 or power == 0 else q * power * minus_log


cdef void focal_derivatives(const Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """first and second of a tile; adds up the loss, which is read after the first time."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* x = scratch + TILE_LOGITS
    cdef const real* q = scratch + TILE_TARGETS
    cdef real* first = scratch + TILE_FIRST
    cdef real* second = scratch + TILE_SECOND
    cdef Pairs loss
    cdef FocalColumns focal
    cdef Py_ssize_t c, i, j
    copy_pairs(&state.loss, &loss)
    focal_columns(tile.job, &state.columns, &focal)
    if not tile.job.hard or tile.job.o.label_smoothing != 0:
        for c in range(tile.lines):
            for j in range(GROUP):
                i = c * GROUP + j
                accumulate(e[0], &loss.hi[j], &loss.lo[j],
                           focal_entry(&focal, j, e[i], x[i], q[i], &first[i], &second[i]))
    else:
        for i in range(tile.lines * GROUP):
            first[i] = second[i] = 0
        for j in range(columns_of(tile.wide)):
            i = state.columns.y[j] - tile.first if tile.wide else state.columns.y[j] * GROUP + j
            if not tile.wide or 0 <= i < tile.n:
                accumulate(e[0], &loss.hi[j], &loss.lo[j],
                           focal_entry(&focal, j, e[i], x[i], q[i], &first[i], &second[i]))
    copy_pairs(&loss, &state.loss)


cdef bint return_to_derivatives(
    Py_ssize_t index, Tile* tile, CrossEntropy* state, real* scratch
) noexcept nogil:
    """A tile with first and second, of which all have been there once; False where the call is to end."""
    if not return_to_tile(index, tile, &state.columns, scratch):
        return False
    if tile.tiles > 1 and tile.job.o.focal_gamma != 0:
        focal_derivatives(tile, state, scratch)
    return True


cdef bint sum_focal(Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """The second time through the tiles: the loss, first and second. False where the call is to end."""
    cdef const real* e = scratch + TILE_EXPS
    cdef Py_ssize_t index
    clear_pairs(&state.loss)
    clear_split(&state.first)
    clear_split(&state.second)
    for index in range(tile.tiles):
        if not return_to_tile(index, tile, &state.columns, scratch):
            return False
        focal_derivatives(tile, state, scratch)
        sum_split(e, <const real*>(scratch + TILE_FIRST), tile.lines, &state.first)
        sum_split(e, <const real*>(scratch + TILE_SECOND), tile.lines, &state.second)
    reduce_columns(&state.loss, tile.wide)
    reduce_split(&state.first, tile.wide)
    reduce_split(&state.second, tile.wide)
    return True


# ---- finish columns -------------------------------------------------------------------------------

cdef void finish_factors(const Tile* tile, CrossEntropy* state, real hint) noexcept nogil:
    cdef const Columns* columns = &state.columns
    cdef int j
    for j in range(columns_of(tile.wide)):
        state.factor[j] = inverse_sum(columns, j, columns.weight[j], tile.job.divisor, hint)
        if tile.want & WANT_PRODUCT:
            state.inverse[j] = inverse_sum(columns, j, 1, 1, hint)
        if tile.want & WANT_HESS:
            state.curvature[j] = inverse_square(columns, j, columns.weight[j], hint)
    broadcast(state.factor, tile.wide)
    broadcast(state.inverse, tile.wide)
    broadcast(state.curvature, tile.wide)


cdef void finish_losses(const Tile* tile, CrossEntropy* state, real hint) noexcept nogil:
    """G and the losses."""
    cdef Columns* columns = &state.columns
    cdef double z = tile.job.o.z_loss
    cdef double lse, mass
    cdef int j
    if columns.linear:
        reduce_columns(&columns.loss, tile.wide)
        reduce_columns(&columns.mass, tile.wide)
    for j in range(columns_of(tile.wide)):
        mass = columns.mass.hi[j] if columns.linear else -(state.first.rest.hi[j] + state.first.max.hi[j])
        lse = (SL_INFINITY if columns.limit[j] else columns.m[j]) + columns.log_sum[j]
        state.shift[j] = 0 if z == 0 else -2 * z * lse
        if columns.limit[j] and z != 0:
            # in place of inf, whose product with a probability of 0 has to be 0
            state.shift[j] = -1e37 if real is float else -1e300
        state.mass.hi[j] = mass
        state.mass.lo[j] = (columns.mass.lo[j] if columns.linear
                            else -(state.first.rest.lo[j] + state.first.max.lo[j]))
        state.slope_total[j] = state.shift[j] - mass
        if tile.want & WANT_LOSS:
            tile.loss[j] = (2 * columns.loss.hi[j] + mass * columns.log_sum[j] if columns.linear
                            else state.loss.hi[j])
            if z != 0:
                # not multiplied by a weight that stands for the class
                tile.loss[j] += z * lse * lse
    broadcast(state.mass.hi, tile.wide)
    broadcast(state.mass.lo, tile.wide)
    broadcast(state.shift, tile.wide)
    broadcast(state.slope_total, tile.wide)


cdef bint finish_columns(Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """All that is known of the columns before results are formed; False where the call is to end."""
    finish_factors(tile, state, scratch[0])
    if not state.columns.linear and not sum_focal(tile, state, scratch):
        return False
    finish_losses(tile, state, scratch[0])
    return True


# ---- emit tiles -----------------------------------------------------------------------------------

cdef inline real without(real term, bint at_max, real sum_rest, real sum_max) noexcept nogil:
    """A sum without one of its terms, of an exponential equal to UNIT or below it."""
    return (sum_max - term) + sum_rest if at_max else (sum_rest - term) + sum_max


cdef void plain_gradient(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    """p mass - q, as e (mass - q) - q others over the sum: for a one-hot row either term is 0, and the
    other keeps its digits. So does what a class of nearly all the mass leaves to the others."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* q = scratch + TILE_TARGETS
    cdef real* to = scratch + TILE_GRAD
    cdef real sum_max[GROUP]
    cdef real sum_rest[GROUP]
    cdef real mass[GROUP]
    cdef real mass_lo[GROUP]
    cdef real factor[GROUP]
    cdef bint extreme = any_extreme(tile.job, state.factor, GROUP, e[0])
    cdef Py_ssize_t c, j
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    for j in range(GROUP):
        mass[j] = <real>state.mass.hi[j]
        mass_lo[j] = <real>((state.mass.hi[j] - mass[j]) + state.mass.lo[j])
        factor[j] = <real>(1 if extreme else state.factor[j])
    for c in range(tile.lines):
        for j in range(GROUP):
            to[c * GROUP + j] = fma(
                e[c * GROUP + j], (mass[j] - q[c * GROUP + j]) + mass_lo[j],
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
    cdef real g_lo[GROUP]
    cdef real factor[GROUP]
    cdef real e_max = unit(e[0])
    cdef real first, rest
    cdef Py_ssize_t c, i, j
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    to_real(state.first.max.hi, g_max)
    to_real(state.first.rest.hi, g_rest)
    to_real(state.factor, factor)
    for j in range(GROUP):
        g_lo[j] = -<real>state.mass.lo[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            first = scratch[TILE_FIRST + i]
            rest = without(first, e[i] == e_max, g_rest[j], g_max[j]) + g_lo[j]
            to[i] = fma(-e[i], rest, first * remainder_of(e[i], sum_max[j], sum_rest[j])) * factor[j]


cdef void z_gradient(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    """With z, whose part 2 z lse p is added to the cross-entropy's as it is: for the target's entry they have
    opposite signs. In float64, since each would have a rounding of its own where they cancel."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* q = scratch + TILE_TARGETS
    cdef const real* first = scratch + TILE_FIRST
    cdef real* to = scratch + TILE_GRAD
    cdef const Columns* columns = &state.columns
    cdef bint focal = tile.job.o.focal_gamma != 0
    cdef double e_max = unit(e[0])
    cdef double own, others, value
    cdef Py_ssize_t c, i, j
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            value = e[i]
            others = remainder_of(value, columns.sum_max[j], columns.sum_rest[j])
            if focal:
                own = without(<double>first[i], value == e_max,
                              state.first.rest.hi[j], state.first.max.hi[j])
                own = SL_FMA(-value, own - state.mass.lo[j], first[i] * others)
            else:
                own = SL_FMA(value, (state.mass.hi[j] - q[i]) + state.mass.lo[j], -(q[i] * others))
            # the factor first: a huge logsumexp times an exponential, which comes times UNIT, may overflow
            to[i] = <real>SL_FMA(-(value * state.factor[j]), state.shift[j], own * state.factor[j])


cdef void ce_gradient(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    if tile.job.o.z_loss != 0:
        z_gradient(tile, state, scratch)
    elif tile.job.o.focal_gamma != 0:
        focal_gradient(tile, state, scratch)
    else:
        plain_gradient(tile, state, scratch)


cdef void plain_hessian(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef real* to = scratch + TILE_OUT
    cdef real sum_max[GROUP]
    cdef real sum_rest[GROUP]
    # in float64, which their product with extreme weights does not leave
    cdef double factor[GROUP]
    cdef double factor_lo[GROUP]
    cdef real others, rest
    cdef Py_ssize_t c, i, j
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


cdef void z_hessian(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    """With z, in float64 and exponentials without UNIT: a huge logsumexp times them is not to overflow."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* second = scratch + TILE_SECOND
    cdef real* to = scratch + TILE_OUT
    cdef const Columns* columns = &state.columns
    cdef double square = 2 * tile.job.o.z_loss
    cdef bint focal = tile.job.o.focal_gamma != 0
    cdef double e_max = unit(e[0])
    cdef double value, others, rest, own
    cdef Py_ssize_t c, i, j
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            value = e[i]
            others = remainder_of(value, columns.sum_max[j], columns.sum_rest[j])
            rest = square
            own = 0
            if focal:
                rest += without(<double>second[i], value == e_max,
                                state.second.rest.hi[j], state.second.max.hi[j])
                own = second[i] * others * others * state.curvature[j]
            rest = value * (1 / e_max) * rest - others * (1 / e_max) * state.slope_total[j]
            to[i] = <real>(own + value * (state.curvature[j] * e_max) * rest)


cdef void focal_hessian(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* second = scratch + TILE_SECOND
    cdef real* to = scratch + TILE_OUT
    cdef real sum_max[GROUP]
    cdef real sum_rest[GROUP]
    cdef double curvature[GROUP]
    cdef double total[GROUP]
    cdef real e_max = unit(e[0])
    cdef real others, rest
    cdef double own
    cdef Py_ssize_t c, i, j
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    to_real(state.curvature, curvature)
    to_real(state.slope_total, total)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            others = remainder_of(e[i], sum_max[j], sum_rest[j])
            rest = e[i] * without(second[i], e[i] == e_max,
                                  <real>state.second.rest.hi[j], <real>state.second.max.hi[j])
            own = second[i] * others * others * curvature[j]
            to[i] = <real>(own + e[i] * (rest - others * total[j]) * curvature[j])


cdef void emit_values(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    cdef Py_ssize_t n = tile.lines * GROUP
    cdef const real* slope = scratch + TILE_SLOPE
    cdef real* grad = scratch + TILE_GRAD
    cdef real* hess = scratch + TILE_OUT
    if tile.job.wants_probabilities:
        tile_probabilities(&tile.job.p, tile, &state.columns, scratch)
    if tile.want & WANT_GRAD or tile.job.o.softcap != 0:
        ce_gradient(tile, state, scratch)
    if tile.want & WANT_HESS:
        if tile.job.o.z_loss != 0:
            z_hessian(tile, state, scratch)
        elif tile.job.o.focal_gamma != 0:
            focal_hessian(tile, state, scratch)
        else:
            plain_hessian(tile, state, scratch)
        chain_second(tile.job.o, n, <const real*>(scratch + TILE_LOGITS), slope, <const real*>grad, hess)
        write_tile(<const real*>hess, &tile.job.h, tile)
    if tile.want & WANT_GRAD:
        chain_first(tile.job.o, n, slope, grad)
        write_tile(<const real*>grad, &tile.job.g, tile)


# ---- loss, gradient, Hessian, statistics ----------------------------------------------------------

cdef void ce_values(Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    cdef Statistics statistics
    cdef Py_ssize_t index
    if tile.want & WANT_STATS:
        start_statistics(&statistics)
    if not sum_tiles(tile, &state.columns, &statistics, scratch):
        return
    if not finish_columns(tile, state, scratch):
        return
    if not (tile.want & (WANT_GRAD | WANT_HESS) or tile.job.wants_probabilities):
        return
    for index in range(tile.tiles):
        if not return_to_derivatives(index, tile, state, scratch):
            return
        emit_values(tile, state, scratch)


# ---- Hessian times a vector -----------------------------------------------------------------------

cdef void tile_directions(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
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
    cdef Py_ssize_t c, i, j
    tile_vector(tile, &state.columns, scratch)
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    to_real(state.columns.ev.max.hi, v_max)
    to_real(state.columns.ev.rest.hi, v_rest)
    to_real(state.inverse, inverse)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            others = remainder_of(e[i], sum_max[j], sum_rest[j])
            rest = without(scratch[TILE_EV + i], e[i] == e_max, v_rest[j], v_max[j])
            d[i] = 0 if e[i] == 0 else (v[i] * others - rest) * inverse[j]


cdef bint sum_hvp(Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """Add up second d; False where the call is to end."""
    cdef real* d = scratch + TILE_DIRECTION
    cdef Py_ssize_t index, i
    for index in range(tile.tiles):
        if not return_to_derivatives(index, tile, state, scratch):
            return False
        tile_directions(tile, state, scratch)
        for i in range(tile.lines * GROUP):
            d[i] *= scratch[TILE_SECOND + i]
        sum_split(<const real*>(scratch + TILE_EXPS), <const real*>d, tile.lines, &state.hvp)
    reduce_split(&state.hvp, tile.wide)
    return True


cdef void emit_product(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    cdef const Columns* columns = &state.columns
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* second = scratch + TILE_SECOND
    cdef real* to = scratch + TILE_OUT          # in place of d
    cdef real square = <real>(2 * tile.job.o.z_loss)
    cdef real e_max = unit(e[0])
    cdef real others, hvp, p
    cdef Py_ssize_t c, i, j
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            others = remainder_of(e[i], <real>columns.sum_max[j], <real>columns.sum_rest[j])
            others *= <real>state.inverse[j]
            hvp = second[i] * scratch[TILE_DIRECTION + i]
            p = e[i] * <real>state.inverse[j]
            to[i] = hvp * others - p * (
                <real>state.slope_total[j] * scratch[TILE_DIRECTION + i]
                + without(hvp, e[i] == e_max, <real>state.hvp.rest.hi[j], <real>state.hvp.max.hi[j])
                - square * <real>((columns.ev.rest.hi[j] + columns.ev.max.hi[j]) * state.inverse[j]))
            to[i] *= <real>(state.factor[j] / state.inverse[j])
    if tile.job.o.softcap != 0:
        ce_gradient(tile, state, scratch)
    chain_product(tile.job.o, tile.lines * GROUP, <const real*>(scratch + TILE_LOGITS),
                  <const real*>(scratch + TILE_SLOPE), <const real*>(scratch + TILE_GRAD),
                  <const real*>(scratch + TILE_VECTOR), to)
    write_product(tile, columns, to)


cdef void ce_product(Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    cdef Py_ssize_t index, i
    if not sum_tiles(tile, &state.columns, NULL, scratch):
        return
    if not finish_columns(tile, state, scratch):
        return
    clear_split(&state.hvp)
    if state.columns.linear:
        for i in range(TILE):
            scratch[TILE_SECOND + i] = 0
    elif not sum_hvp(tile, state, scratch):
        return
    for index in range(tile.tiles):
        if not return_to_derivatives(index, tile, state, scratch):
            return
        tile_directions(tile, state, scratch)
        emit_product(tile, state, scratch)


# ---- derivative by the targets --------------------------------------------------------------------

cdef void emit_target_gradient(const Tile* tile, const Columns* columns, real* scratch) noexcept nogil:
    """(1 - smoothing) class weight (1 - p)**gamma S."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* x = scratch + TILE_LOGITS
    cdef real* to = scratch + TILE_OUT
    cdef FocalColumns focal
    cdef double others, minus_log, power, first, second
    cdef Py_ssize_t c, i, j, k
    focal_columns(tile.job, columns, &focal)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            minus_log = 2 * gap_of(focal.m[j], x[i]) + focal.log_sum[j]
            power = 1
            if tile.job.o.focal_gamma != 0:
                others = remainder_of(<double>e[i], focal.sum_max[j], focal.sum_rest[j])
                focal_terms(e[i], others, minus_log, focal.gamma, &power, &first, &second)
            if tile.job.o.class_weight != NULL:
                k = tile.first + i if tile.wide else c
                power *= tile.job.o.class_weight[k] if k < tile.job.k else 0
            power *= (1 - tile.job.o.label_smoothing) * columns.weight[j] / tile.job.divisor
            to[i] = <real>(0 if power == 0 else power * minus_log)
    write_tile(<const real*>to, &tile.job.g, tile)


cdef void ce_target_gradient(Tile* tile, Columns* columns, real* scratch) noexcept nogil:
    cdef Py_ssize_t index
    if not sum_tiles(tile, columns, NULL, scratch):
        return
    for index in range(tile.tiles):
        if not return_to_tile(index, tile, columns, scratch):
            return
        emit_target_gradient(tile, columns, scratch)


# ---- all three ------------------------------------------------------------------------------------

cdef void drop_absent_rows(Tile* tile, real* scratch) noexcept nogil:
    """Take out of the results, NaN and all, what a class weight of 0 leaves nothing of."""
    cdef const Settings* o = tile.job.o
    cdef double present[GROUP]
    cdef int j
    if not drops_by_class(tile.job):
        return
    load_weights(tile.job, tile.start, tile.count, False, True, present)
    for j in range(tile.count):
        if present[j] == 0:
            tile.weight[j] = 0
            clear_derivatives(tile.job, tile.start + j, tile.want, scratch)


cdef void tile_cross_entropy(Tile* tile, real* scratch) noexcept nogil:
    cdef CrossEntropy state
    state.columns.compensated = False
    state.columns.linear = tile.job.o.focal_gamma == 0 and not tile.want & WANT_TARGET_GRAD
    open_columns(tile, &state.columns, scratch)
    if tile.want & WANT_PRODUCT:
        ce_product(tile, &state, scratch)
    elif tile.want & WANT_TARGET_GRAD:
        ce_target_gradient(tile, &state.columns, scratch)
    else:
        ce_values(tile, &state, scratch)
    if not state.columns.plain:
        drop_absent_rows(tile, scratch)

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
# uses _job: Job SL_BRIEF
# uses _logits: chain_first chain_product chain_second
# uses _math: SL_FMA SL_INFINITY absolute exp_negative fma log1p_positive product product_error real
# uses _math: remainder_of two_sum unit whole_exponent
# uses _operand: has_rows
# uses _options: Settings WANT_GRAD WANT_HESS WANT_LOSS WANT_PRODUCT WANT_STATS WANT_TARGET_GRAD
# uses _pieces: row_maximum
# uses _rows: Columns broadcast columns_of gap_of inverse_square inverse_sum open_columns return_to_tile
# uses _rows: tile_vector to_real write_product
# uses _stats: Statistics start_statistics tile_probabilities
# uses _sums: GROUP Pairs Split TILE accumulate clear_pairs clear_split copy_pairs reduce_columns reduce_split
# uses _sums: sum_split
# uses _tiles: TILE_DIRECTION TILE_EV TILE_EXPS TILE_FIRST TILE_GRAD TILE_LOGITS TILE_OUT TILE_SECOND
# uses _tiles: TILE_SLOPE TILE_TARGETS TILE_VECTOR Tile view_row write_tile
# uses _weights: drops_by_class load_class_weights

cdef struct FocalSums:
    # in this order for sl_focal.h:
    Pairs loss                  # q (1 - p)**g S
    Split first
    Split second


cdef struct CrossEntropy:
    # What is known of each column beside its exponentials.
    FocalSums focal
    Split hvp                   # second d
    Pairs mass                  # -G
    double shift[GROUP]         # -2 z lse
    double slope_total[GROUP]   # G - 2 z lse
    double inverse[GROUP]       # 1 / sum
    double factor[GROUP]        # weight / (divisor sum)
    double curvature[GROUP]     # weight / sum**2
    Columns columns


# ---- focusing -------------------------------------------------------------------------------------

cdef enum:
    WHOLE_GAMMA = 16        # exponents up to here that are whole numbers are products, the others logarithms


cdef inline double odds_of(double e, double others) noexcept nogil:
    """p / (1 - p)."""
    cdef double odds = e / others
    return 1e300 if odds > 1e300 else odds


cdef inline double focal_factor(double odds, double gamma) noexcept nogil:
    """(1 - p)**gamma."""
    return exp_negative(-gamma * log1p_positive(odds))


cdef inline void focal_slopes(
    double odds, double others, double minus_log, double gamma, double power, double* first, double* second
) noexcept nogil:
    """p d/dp and (p d/dp)**2 of the product of (1 - p)**gamma with S = -log p.

    They have odds * S, which tends to 1 as p tends to 1, and to 0 as p tends to 0.
    """
    cdef double near = 1 if minus_log < 1e-290 else odds * minus_log
    near = 0 if odds == 0 else near
    first[0] = -power * (1 + gamma * near)
    second[0] = gamma * odds * power * (2 - minus_log + (gamma - 1) * near)
    second[0] = 0 if (odds == 0) | (others == 0) else second[0]


cdef struct FocalColumns:
    # Of the columns of GROUP entries.
    double gamma
    int whole               # see `whole_gamma`
    double m[GROUP]
    double log_sum[GROUP]
    double sum_max[GROUP]
    double sum_rest[GROUP]
    double total[GROUP]
    double total_lo[GROUP]
    double inverse[GROUP]   # 1 / total


cdef struct FocalEntries:
    # Of GROUP entries: the loss, and its derivatives by log p.
    double loss[GROUP]
    double first[GROUP]
    double second[GROUP]


cdef inline int whole_gamma(const Job* job) noexcept nogil:
    """gamma, if it is small and whole, else 0."""
    return max(whole_exponent(job.o.focal_gamma, WHOLE_GAMMA), 0)


cdef void focal_columns(const Job* job, const Columns* columns, FocalColumns* focal) noexcept nogil:
    cdef int j
    focal.gamma = job.o.focal_gamma
    focal.whole = whole_gamma(job)
    to_real(columns.m, focal.m)
    to_real(columns.log_sum, focal.log_sum)
    to_real(columns.sum_max, focal.sum_max)
    to_real(columns.sum_rest, focal.sum_rest)
    to_real(columns.total.hi, focal.total)
    to_real(columns.total.lo, focal.total_lo)
    for j in range(GROUP):
        focal.inverse[j] = 1 / focal.total[j]


cdef void whole_powers(const FocalColumns* focal, const double* e, double* power) noexcept nogil:
    """(1 - p)**gamma of GROUP entries as products, in twice the digits: an error of 1 - p would count gamma
    times."""
    cdef double base[GROUP]
    cdef double base_lo[GROUP]
    cdef double lo[GROUP]
    cdef double d, others, q, whole
    cdef int j, gamma = focal.whole
    for j in range(GROUP):
        d = focal.sum_max[j] - e[j]
        others = two_sum(d, focal.sum_rest[j] + ((focal.sum_max[j] - d) - e[j]), &lo[j])
        # of a small p, to more digits than sum_rest has
        d = focal.total[j] - e[j]
        lo[j] = ((focal.total[j] - d) - e[j]) + focal.total_lo[j] if e[j] + e[j] < focal.total[j] else lo[j]
        others = d if e[j] + e[j] < focal.total[j] else others
        q = others * focal.inverse[j]
        whole = q * focal.total[j]
        d = ((others - whole) - product_error(q, focal.total[j], whole)) - q * focal.total_lo[j]
        base[j] = q
        base_lo[j] = (d + lo[j]) * focal.inverse[j]
        power[j] = 1
        lo[j] = 0
    while gamma:
        if gamma & 1:
            for j in range(GROUP):
                power[j] = product(power[j], lo[j], base[j], base_lo[j], &lo[j])
        gamma >>= 1
        if gamma:
            for j in range(GROUP):
                base[j] = product(base[j], base_lo[j], base[j], base_lo[j], &base_lo[j])
    for j in range(GROUP):
        power[j] += lo[j]


cdef void focal_entries(
    const FocalColumns* focal, const real* e, const real* x, const real* q, FocalEntries* entries
) noexcept nogil:
    cdef double value[GROUP]
    cdef double odds[GROUP]
    cdef double others[GROUP]
    cdef double power[GROUP]
    cdef FocalEntries of
    cdef double minus_log, share
    cdef int j
    for j in range(GROUP):
        value[j] = e[j]
        others[j] = remainder_of(value[j], focal.sum_max[j], focal.sum_rest[j])
        odds[j] = odds_of(value[j], others[j])
    if focal.whole:
        whole_powers(focal, value, power)
    else:
        for j in range(GROUP):
            power[j] = focal_factor(odds[j], focal.gamma)
    for j in range(GROUP):
        share = q[j]
        minus_log = 2 * gap_of(focal.m[j], <double>x[j]) + focal.log_sum[j]
        focal_slopes(odds[j], others[j], minus_log, focal.gamma, power[j], &of.first[j], &of.second[j])
        of.first[j] = 0 if share == 0 else share * of.first[j]
        of.second[j] = 0 if share == 0 else share * of.second[j]
        of.loss[j] = 0 if (share == 0) | (power[j] == 0) else share * power[j] * minus_log
    entries[0] = of


cdef inline void add_apart(real hint, Split* sums, int j, bint below, double term) noexcept nogil:
    """To a sum apart for exponentials below UNIT."""
    accumulate(hint, &sums.rest.hi[j], &sums.rest.lo[j], term if below else 0)
    accumulate(hint, &sums.max.hi[j], &sums.max.lo[j], 0 if below else term)


cdef void focal_lines(
    const Tile* tile, const FocalColumns* focal, FocalSums* to, real* scratch
) noexcept nogil:
    """Every entry of a tile."""
    cdef FocalEntries of
    cdef FocalSums sums = to[0]
    cdef bint second = tile.want & (WANT_HESS | WANT_PRODUCT) != 0
    cdef bint below[GROUP]
    cdef real e_max = unit(scratch[0])
    cdef Py_ssize_t c, i
    cdef int j
    for c in range(tile.lines):
        i = c * GROUP
        focal_entries(
            focal, scratch + TILE_EXPS + i, scratch + TILE_LOGITS + i, scratch + TILE_TARGETS + i, &of)
        for j in range(GROUP):
            below[j] = scratch[TILE_EXPS + i + j] < e_max
            scratch[TILE_FIRST + i + j] = <real>of.first[j]
        for j in range(GROUP):
            accumulate(e_max, &sums.loss.hi[j], &sums.loss.lo[j], of.loss[j])
            add_apart(e_max, &sums.first, j, below[j], of.first[j])
        if second:
            for j in range(GROUP):
                scratch[TILE_SECOND + i + j] = <real>of.second[j]
                add_apart(e_max, &sums.second, j, below[j], of.second[j])
    to[0] = sums


cdef void few_focal_entries(
    const FocalColumns* focal, const int32_t* at, int n, FocalSums* sums, real* scratch
) noexcept nogil:
    """At most GROUP entries, of anywhere in a tile."""
    cdef FocalColumns near
    cdef FocalEntries of
    cdef real e[GROUP]
    cdef real x[GROUP]
    cdef real q[GROUP]
    cdef real e_max = unit(scratch[0])
    cdef int i, j
    near.gamma = focal.gamma
    near.whole = focal.whole
    for i in range(GROUP):
        e[i] = scratch[TILE_EXPS + at[i if i < n else 0]]
        x[i] = scratch[TILE_LOGITS + at[i if i < n else 0]]
        q[i] = scratch[TILE_TARGETS + at[i if i < n else 0]]
        j = at[i if i < n else 0] % GROUP
        near.m[i] = focal.m[j]
        near.log_sum[i] = focal.log_sum[j]
        near.sum_max[i] = focal.sum_max[j]
        near.sum_rest[i] = focal.sum_rest[j]
        near.total[i] = focal.total[j]
        near.total_lo[i] = focal.total_lo[j]
        near.inverse[i] = focal.inverse[j]
    focal_entries(&near, <const real*>e, <const real*>x, <const real*>q, &of)
    for i in range(n):
        j = at[i] % GROUP
        scratch[TILE_FIRST + at[i]] = <real>of.first[i]
        scratch[TILE_SECOND + at[i]] = <real>of.second[i]
        accumulate(e_max, &sums.loss.hi[j], &sums.loss.lo[j], of.loss[i])
        add_apart(e_max, &sums.first, j, e[i] < e_max, of.first[i])
        add_apart(e_max, &sums.second, j, e[i] < e_max, of.second[i])


cdef void sparse_focal_lines(
    const Tile* tile, const FocalColumns* focal, FocalSums* sums, real* scratch
) noexcept nogil:
    """The entries of a tile that have a target; the others are 0."""
    cdef const real* q = scratch + TILE_TARGETS
    cdef int32_t at[2 * GROUP + 1]
    cdef Py_ssize_t c, i
    cdef int j, found, n = 0
    for i in range(tile.lines * GROUP):
        scratch[TILE_FIRST + i] = scratch[TILE_SECOND + i] = 0
    for c in range(tile.lines):
        found = 0
        for j in range(GROUP):
            found |= q[c * GROUP + j] != 0
        if not found:
            continue
        for j in range(GROUP):
            at[n] = <int32_t>(c * GROUP + j)
            n += q[c * GROUP + j] != 0
        if n >= GROUP:
            few_focal_entries(focal, at, GROUP, sums, scratch)
            n -= GROUP
            for j in range(n):
                at[j] = at[GROUP + j]
    if n > 0:
        few_focal_entries(focal, at, n, sums, scratch)


# ---- focusing float32 by a whole exponent ---------------------------------------------------------

cdef extern from "sl_focal.h" nogil:
    ctypedef struct sl_focal_columns:
        int exponent
        int lines
        double m[GROUP]
        double log_sum[GROUP]
        double sum_max[GROUP]
        double sum_rest[GROUP]
        double inverse[GROUP]
    void sl_focal_lines(
        const double*, const double*, const double*, const sl_focal_columns*, double*, double*) noexcept


cdef inline bint is_brief(const Job* job) noexcept nogil:
    return job.how == SL_BRIEF and whole_gamma(job) != 0 and not job.want & WANT_HESS


cdef void brief_derivatives(
    const Tile* tile, const Columns* columns, FocalSums* sums, double* scratch
) noexcept nogil:
    cdef sl_focal_columns focal
    cdef int j
    focal.exponent = whole_gamma(tile.job)
    focal.lines = <int>tile.lines
    to_real(columns.m, focal.m)
    to_real(columns.log_sum, focal.log_sum)
    to_real(columns.sum_max, focal.sum_max)
    to_real(columns.sum_rest, focal.sum_rest)
    for j in range(GROUP):
        focal.inverse[j] = 1 / columns.total.hi[j]
    sl_focal_lines(scratch + TILE_EXPS, scratch + TILE_LOGITS, scratch + TILE_TARGETS, &focal,
                   scratch + TILE_FIRST, sums.loss.hi)


# ---- the second time through tiles ----------------------------------------------------------------


cdef void focal_derivatives(
    const Tile* tile, const Columns* columns, FocalSums* sums, real* scratch
) noexcept nogil:
    """first and second of a tile, which are added up with the loss."""
    cdef const real* q = scratch + TILE_TARGETS
    cdef FocalColumns focal
    cdef Py_ssize_t i, n = tile.lines * GROUP
    cdef int targets = 0
    if real is double:
        if is_brief(tile.job):
            brief_derivatives(tile, columns, sums, scratch)
            return
    focal_columns(tile.job, columns, &focal)
    for i in range(n):
        targets += q[i] != 0
    # with the same bits
    if 4 * targets < n:
        sparse_focal_lines(tile, &focal, sums, scratch)
    else:
        focal_lines(tile, &focal, sums, scratch)


cdef bint return_to_derivatives(
    Py_ssize_t index, Tile* tile, CrossEntropy* state, real* scratch
) noexcept nogil:
    """A tile with first and second, of which all have been there once; False where the call is to end."""
    cdef FocalSums again
    if not return_to_tile(index, tile, &state.columns, scratch):
        return False
    if tile.tiles > 1 and tile.job.o.focal_gamma != 0:
        clear_focal(&again)
        focal_derivatives(tile, &state.columns, &again, scratch)
    return True


cdef void clear_focal(FocalSums* sums) noexcept nogil:
    clear_pairs(&sums.loss)
    clear_split(&sums.first)
    clear_split(&sums.second)


cdef bint sum_focal(Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """The second time through the tiles: the loss, first and second. False where the call is to end."""
    cdef Py_ssize_t index
    clear_focal(&state.focal)
    for index in range(tile.tiles):
        if not return_to_tile(index, tile, &state.columns, scratch):
            return False
        focal_derivatives(tile, &state.columns, &state.focal, scratch)
    reduce_columns(&state.focal.loss, tile.wide)
    reduce_split(&state.focal.first, tile.wide)
    reduce_split(&state.focal.second, tile.wide)
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


cdef inline double linear_loss(const Columns* columns, int j) noexcept nogil:
    """sum q S, from its sums."""
    return 2 * columns.loss.hi[j] + columns.mass.hi[j] * columns.log_sum[j]


cdef void finish_losses(const Tile* tile, CrossEntropy* state, real hint) noexcept nogil:
    """G and the losses."""
    cdef Columns* columns = &state.columns
    cdef double z = tile.job.o.z_loss
    cdef double lse[GROUP]
    cdef double loss[GROUP]
    cdef int j
    if columns.linear:
        reduce_columns(&columns.loss, tile.wide)
        reduce_columns(&columns.mass, tile.wide)
        copy_pairs(&columns.mass, &state.mass)
        for j in range(GROUP):
            loss[j] = linear_loss(columns, j)
    else:
        for j in range(GROUP):
            state.mass.hi[j] = -(state.focal.first.rest.hi[j] + state.focal.first.max.hi[j])
            state.mass.lo[j] = -(state.focal.first.rest.lo[j] + state.focal.first.max.lo[j])
            loss[j] = state.focal.loss.hi[j]
    for j in range(GROUP):
        lse[j] = columns.m[j] + columns.log_sum[j]
        state.shift[j] = 0 if z == 0 else -2 * z * lse[j]
    if columns.any_limit:
        for j in range(GROUP):
            if columns.limit[j]:
                lse[j] = SL_INFINITY
                # in place of inf, whose product with a probability of 0 has to be 0
                state.shift[j] = 0 if z == 0 else -1e37 if real is float else -1e300
    for j in range(GROUP):
        state.slope_total[j] = state.shift[j] - state.mass.hi[j]
        # not multiplied by a weight that stands for the class
        loss[j] += 0 if z == 0 else z * lse[j] * lse[j]
    if tile.want & WANT_LOSS:
        for j in range(columns_of(tile.wide)):
            tile.loss[j] = loss[j]


cdef bint finish_columns(Tile* tile, CrossEntropy* state, real* scratch) noexcept nogil:
    """All that is known of the columns before results are formed; False where the call is to end."""
    finish_factors(tile, state, scratch[0])
    if not state.columns.linear and not sum_focal(tile, state, scratch):
        return False
    finish_losses(tile, state, scratch[0])
    return True


# ---- emit tiles -----------------------------------------------------------------------------------

cdef enum:
    # factors of columns for their gradients, see sl_targets_of.h
    OF_EXP = 0
    OF_TARGET = GROUP
    OF_TARGET_LO = 2 * GROUP
    TOP = 3 * GROUP
    AT_TOP = 4 * GROUP
    LINES_OF_SLOPES = 5 * GROUP

cdef extern from "sl_targets.h" nogil:
    void sl_column_slopes_f32(const float*, const float*, Py_ssize_t, const float*, bint, float*) noexcept
    void sl_column_slopes_f64(const double*, const double*, Py_ssize_t, const double*, bint, double*) noexcept
    void sl_row_slopes_f32(const float*, const float*, Py_ssize_t, const float*, float*) noexcept
    void sl_row_slopes_f64(const double*, const double*, Py_ssize_t, const double*, double*) noexcept
    void sl_targets_at_f32(const float*, const float*, Py_ssize_t, float, float*) noexcept
    void sl_targets_at_f64(const double*, const double*, Py_ssize_t, double, double*) noexcept


cdef inline void targets_at(
    const real* e, const real* q, Py_ssize_t lines, real e_max, real* to
) noexcept nogil:
    if real is float:
        sl_targets_at_f32(e, q, lines, e_max, to)
    else:
        sl_targets_at_f64(e, q, lines, e_max, to)


cdef inline real without(real term, bint at_max, real sum_rest, real sum_max) noexcept nogil:
    """A sum without one of its terms, of an exponential equal to UNIT or below it."""
    return (sum_max - term) + sum_rest if at_max else (sum_rest - term) + sum_max


cdef inline double exact_slope(const CrossEntropy* state, int j, double e, double q) noexcept nogil:
    """p mass - q, as e (mass - q) - q others over the sum: for a one-hot row either term is 0, and the other
    keeps its digits. So does what a class of nearly all the mass leaves to the others."""
    cdef const Columns* columns = &state.columns
    cdef double others = remainder_of(e, columns.sum_max[j], columns.sum_rest[j])
    cdef double rest = (state.mass.hi[j] - q) + state.mass.lo[j]
    return SL_FMA(e, rest, -(q * others)) * state.factor[j]


cdef inline int is_far(real hint, double value) noexcept nogil:
    """Whether a factor has not all its digits as a float."""
    cdef double least = 1.1754943508222875e-38 if real is float else 2.2250738585072014e-308
    cdef double most = 3.4028234663852886e38 if real is float else 1.7976931348623157e308
    return (absolute(value) > most) | ((absolute(value) < least) & (value != 0))


cdef bint open_slopes(const Tile* tile, const CrossEntropy* state, int* far, real* by) noexcept nogil:
    """Factors of exponentials and targets for p mass - q = e mass / sum - q. An exponential of more than half
    the sum can not do with that; whether there may be one. `far` marks columns that can not either."""
    cdef const Columns* columns = &state.columns
    cdef double divisor = tile.job.divisor
    cdef double e_max = unit(by[0])
    cdef double of_exp, of_target, lost
    cdef int j, peaks = 0
    for j in range(columns_of(tile.wide)):
        of_exp = inverse_sum(columns, j, columns.weight[j] * state.mass.hi[j], divisor, by[0])
        of_target = -columns.weight[j] / divisor
        lost = -SL_FMA(of_target, divisor, columns.weight[j]) / divisor
        by[OF_EXP + j] = <real>of_exp
        by[OF_TARGET + j] = <real>of_target
        by[OF_TARGET_LO + j] = <real>((of_target - by[OF_TARGET + j]) + lost)
        far[j] = is_far(by[0], of_exp) | is_far(by[0], of_target)
    for j in range(columns_of(tile.wide)):
        peaks |= (columns.sum_max[j] == e_max) & (columns.sum_rest[j] < e_max)
    return peaks != 0


cdef void column_gradients(
    const Tile* tile, const CrossEntropy* state, real* to, real* scratch
) noexcept nogil:
    """In place of the exponentials or not."""
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* q = scratch + TILE_TARGETS
    cdef const Columns* columns = &state.columns
    cdef double e_max = unit(e[0])
    cdef int far[GROUP]
    cdef real by[LINES_OF_SLOPES]
    cdef real target[GROUP]
    cdef bint peaks = open_slopes(tile, state, far, by)
    cdef Py_ssize_t i
    cdef int j, any_far = 0
    if peaks:
        targets_at(e, q, tile.lines, <real>e_max, target)
        for j in range(GROUP):
            by[TOP + j] = <real>(e_max if (columns.sum_max[j] == e_max) & (columns.sum_rest[j] < e_max)
                                 else SL_INFINITY)
            by[AT_TOP + j] = <real>exact_slope(state, j, e_max, target[j])
    for j in range(GROUP):
        any_far |= far[j]
    if any_far and to == e:
        for i in range(tile.lines * GROUP):
            scratch[TILE_GRAD + i] = e[i]
        e = scratch + TILE_GRAD
    if real is float:
        sl_column_slopes_f32(e, q, tile.lines, by, peaks, to)
    else:
        sl_column_slopes_f64(e, q, tile.lines, by, peaks, to)
    if any_far:
        for i in range(tile.lines * GROUP):
            if far[i % GROUP]:
                to[i] = <real>exact_slope(state, i % GROUP, e[i], q[i])


cdef void row_gradient(
    const Tile* tile, const CrossEntropy* state, Py_ssize_t n, const real* e, const real* q, real* to
) noexcept nogil:
    """The first n entries of a wide tile, in place of the exponentials or not."""
    cdef double e_max = unit(e[0])
    cdef int far[GROUP]
    cdef real by[LINES_OF_SLOPES]
    cdef bint peak = open_slopes(tile, state, far, by)
    cdef Py_ssize_t i, at
    if far[0]:
        for i in range(n):
            to[i] = <real>exact_slope(state, 0, e[i], q[i])
        return
    at = place_of_unit(e, n) if peak else -1
    if real is float:
        sl_row_slopes_f32(e, q, n, by, to)
    else:
        sl_row_slopes_f64(e, q, n, by, to)
    if at >= 0:
        to[at] = <real>exact_slope(state, 0, e_max, q[at])


cdef inline Py_ssize_t place_of_unit(const real* e, Py_ssize_t n) noexcept nogil:
    """Where the exponential of a maximum is, or -1."""
    cdef real e_max = unit(e[0])
    cdef Py_ssize_t at = 0
    while at + 4 * GROUP <= n and row_maximum(e + at, 4 * GROUP, <real>0) != e_max:
        at += 4 * GROUP
    for at in range(at, n):
        if e[at] == e_max:
            return at
    return -1


cdef inline void plain_gradient(
    const Tile* tile, const CrossEntropy* state, real* to, real* scratch
) noexcept nogil:
    """Whole lines."""
    if tile.wide:
        row_gradient(tile, state, tile.lines * GROUP, <const real*>(scratch + TILE_EXPS),
                     <const real*>(scratch + TILE_TARGETS), to)
    else:
        column_gradients(tile, state, to, scratch)


cdef void write_plain_gradient(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    """Without a copy, where the caller's array has the place for a row."""
    if tile.wide and has_rows(&tile.job.g, scratch[0]):
        row_gradient(tile, state, tile.n, <const real*>(scratch + TILE_EXPS),
                     <const real*>(scratch + TILE_TARGETS), view_row(&tile.job.g, tile, scratch))
        return
    # in place: another tile of a group's columns would not fit into the L1 cache beside the others
    plain_gradient(tile, state, scratch + TILE_EXPS, scratch)
    write_tile(<const real*>(scratch + TILE_EXPS), &tile.job.g, tile)


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
    to_real(state.focal.first.max.hi, g_max)
    to_real(state.focal.first.rest.hi, g_rest)
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
    cdef bint focal = tile.job.o.focal_gamma != 0
    cdef double e_max = unit(e[0])
    cdef double sum_max[GROUP]
    cdef double sum_rest[GROUP]
    cdef double mass[GROUP]
    cdef double mass_lo[GROUP]
    cdef double g_max[GROUP]
    cdef double g_rest[GROUP]
    cdef double factor[GROUP]
    cdef double shift[GROUP]
    cdef double line[GROUP]         # no store to it reaches what is read
    cdef double others, value
    cdef Py_ssize_t c, j
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    to_real(state.mass.hi, mass)
    to_real(state.mass.lo, mass_lo)
    to_real(state.focal.first.max.hi, g_max)
    to_real(state.focal.first.rest.hi, g_rest)
    to_real(state.factor, factor)
    to_real(state.shift, shift)
    for c in range(tile.lines):
        if focal:
            for j in range(GROUP):
                value = e[c * GROUP + j]
                others = remainder_of(value, sum_max[j], sum_rest[j])
                line[j] = without(<double>first[c * GROUP + j], value == e_max, g_rest[j], g_max[j])
                line[j] = SL_FMA(-value, line[j] - mass_lo[j], first[c * GROUP + j] * others)
        else:
            for j in range(GROUP):
                value = e[c * GROUP + j]
                others = remainder_of(value, sum_max[j], sum_rest[j])
                line[j] = SL_FMA(value, (mass[j] - q[c * GROUP + j]) + mass_lo[j],
                                 -(q[c * GROUP + j] * others))
        # the factor first: a huge logsumexp times an exponential, which comes times UNIT, may overflow
        for j in range(GROUP):
            line[j] = SL_FMA(-(e[c * GROUP + j] * factor[j]), shift[j], line[j] * factor[j])
        for j in range(GROUP):
            to[c * GROUP + j] = <real>line[j]


cdef void ce_gradient(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    if tile.job.o.z_loss != 0:
        z_gradient(tile, state, scratch)
    elif tile.job.o.focal_gamma != 0:
        focal_gradient(tile, state, scratch)
    else:
        plain_gradient(tile, state, scratch + TILE_GRAD, scratch)


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
                                state.focal.second.rest.hi[j], state.focal.second.max.hi[j])
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
                                  <real>state.focal.second.rest.hi[j], <real>state.focal.second.max.hi[j])
            own = second[i] * others * others * curvature[j]
            to[i] = <real>(own + e[i] * (rest - others * total[j]) * curvature[j])


cdef void emit_values(const Tile* tile, const CrossEntropy* state, real* scratch) noexcept nogil:
    cdef Py_ssize_t n = tile.lines * GROUP
    cdef const real* slope = scratch + TILE_SLOPE
    cdef real* grad = scratch + TILE_GRAD
    cdef real* hess = scratch + TILE_OUT
    if tile.job.wants_probabilities:
        tile_probabilities(&tile.job.p, tile, &state.columns, scratch)
    if (tile.want & ~(WANT_LOSS | WANT_STATS) == WANT_GRAD and state.columns.linear
            and tile.job.o.z_loss == 0 and tile.job.o.softcap == 0 and tile.job.logit_scale == 1):
        write_plain_gradient(tile, state, scratch)
        return
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
    cdef double others, minus_log, power
    cdef Py_ssize_t c, i, j, k
    focal_columns(tile.job, columns, &focal)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            minus_log = 2 * gap_of(focal.m[j], x[i]) + focal.log_sum[j]
            power = 1
            if tile.job.o.focal_gamma != 0:
                others = remainder_of(<double>e[i], focal.sum_max[j], focal.sum_rest[j])
                power = focal_factor(odds_of(e[i], others), focal.gamma)
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
    load_class_weights(tile.job, tile.start, tile.count, False, True, present)
    for j in range(tile.count):
        if present[j] == 0:
            tile.weight[j] = 0
            clear_derivatives(tile.job, tile.start + j, tile.want, scratch)


cdef void tile_cross_entropy(Tile* tile, real* scratch) noexcept nogil:
    cdef CrossEntropy state
    state.columns.how = tile.job.how
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

# Softmax + quadratic cost, from logits x and class indices or target probabilities t, p = softmax(x).
#
#   loss  1/2 sum_k d_k**2,  d = p - t
#   grad  p_k b_k,  b_k = d_k - sum_j p_j d_j
#   hess  p_k (b_k (1 - 2 p_k) + p_k (1 - 2 p_k + sum_j p_j**2))
#   Hv    p_k (f_k (b_k + p_k) - sum_j p_j f_j (d_j + p_j)),  f = v - p.v
#
# All is computed from the exponentials e, their sum and others = sum - e, and divided by powers of the
# sum at the end: d sum = e (1 - t) - t others, of which a one-hot target leaves one term. Where one
# class m takes nearly all of the probability, d_m - p_m d_m is d_m (1 - p_m), which is formed as that
# and its own terms kept out of the sums: b_m = d_m (1 - p_m) - sum_{j != m} p_j d_j, and
# 1 - 2 p_m + sum p**2 = (1 - p_m)**2 + sum_{j != m} p_j**2.
#
# Each result is a product of several quantities, so float32 goes through float64 from the
# exponentials on.


cdef inline double mse_others(real hint, double e, double ones, double below) noexcept nogil:
    if real is float:
        return (ones - e) + below       # float64 has digits to spare
    else:
        return remainder_of(e, ones, below)


cdef inline double mse_difference(double e, double t, double others) noexcept nogil:
    """(p - t) sum."""
    return SL_FMA(e, 1 - t, -(t * others))


cdef inline double mse_bracket(double d, double others, double total, double ed_below, double ed_ones, bint apart) noexcept nogil:
    """b sum**2; `apart` for the one class whose exponential is UNIT."""
    return SL_FMA(d, others, -ed_below) if apart else SL_FMA(d, total, -ed_ones) - ed_below


cdef inline double mse_second(double e, double others, double bracket, double ee_rest) noexcept nogil:
    """Second derivative times sum**4 / e."""
    return SL_FMA(bracket, others - e, e * SL_FMA(others, others, ee_rest))


cdef struct MseColumns:
    # Per column, of the exponentials: the sum, that of those equal to UNIT and of those below, and powers.
    double ones[GROUP]
    double below[GROUP]
    double whole[GROUP]
    double factor[GROUP]        # weight / (divisor sum)
    double square[GROUP]        # 1 / sum**2
    Total value                 # (d sum)**2
    Total ed_below              # e d sum
    Total ed_ones
    Total ee_below              # e**2
    Total ee_ones
    Total ev                    # e v
    Total bent                  # e f (d + p) sum


cdef void mse_sums(const Tile* tile, MseColumns* mse, const real* e, const real* t) noexcept nogil:
    cdef double value[GROUP]
    cdef double below[GROUP]
    cdef double ones[GROUP]
    cdef double value_lost[GROUP]
    cdef double below_lost[GROUP]
    cdef double ones_lost[GROUP]
    cdef double e_ones[GROUP]
    cdef double e_below[GROUP]
    cdef double top = unit(e[0])
    cdef double v, d
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        e_ones[j] = mse.ones[j]
        e_below[j] = mse.below[j]
        value[j] = mse.value.sum[j]
        below[j] = mse.ed_below.sum[j]
        ones[j] = mse.ed_ones.sum[j]
        value_lost[j] = mse.value.lost[j]
        below_lost[j] = mse.ed_below.lost[j]
        ones_lost[j] = mse.ed_ones.lost[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            d = mse_difference(v, t[c * GROUP + j], mse_others(e[0], v, e_ones[j], e_below[j]))
            accumulate(e[0], &value[j], &value_lost[j], d * d)
            accumulate(e[0], &below[j], &below_lost[j], v * d if v < top else 0)
            accumulate(e[0], &ones[j], &ones_lost[j], 0 if v < top else v * d)
    for j in range(GROUP):
        mse.value.sum[j] = value[j]
        mse.ed_below.sum[j] = below[j]
        mse.ed_ones.sum[j] = ones[j]
        mse.value.lost[j] = value_lost[j]
        mse.ed_below.lost[j] = below_lost[j]
        mse.ed_ones.lost[j] = ones_lost[j]


cdef void mse_squares(const Tile* tile, MseColumns* mse, const real* e) noexcept nogil:
    cdef double top = unit(e[0])
    cdef double v
    cdef Py_ssize_t c
    cdef int j
    for c in range(tile.lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            accumulate(e[0], &mse.ee_below.sum[j], &mse.ee_below.lost[j], v * v if v < top else 0)
            accumulate(e[0], &mse.ee_ones.sum[j], &mse.ee_ones.lost[j], 0 if v < top else v * v)


cdef inline double mse_bracket_at(const MseColumns* mse, int j, real hint, double e, double t) noexcept nogil:
    cdef double top = unit(hint)
    cdef double others = mse_others(hint, e, mse.ones[j], mse.below[j])
    return mse_bracket(mse_difference(e, t, others), others, mse.whole[j], mse.ed_below.sum[j], mse.ed_ones.sum[j],
                       (mse.ones[j] == top) & (e == top))


cdef void mse_hessian(const Tile* tile, const MseColumns* mse, const Columns* columns, const real* e, const real* t, real* to) noexcept nogil:
    cdef double v
    cdef Py_ssize_t c
    cdef int j
    for c in range(tile.lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            to[c * GROUP + j] = <real>(
                v * mse_second(v, mse_others(e[0], v, mse.ones[j], mse.below[j]),
                               mse_bracket_at(mse, j, e[0], v, t[c * GROUP + j]),
                               (mse.ee_ones.sum[j] - v * v) + mse.ee_below.sum[j])
                * mse.square[j] * (columns.weight[j] * mse.square[j]))


cdef void mse_gradient(const Tile* tile, const MseColumns* mse, const real* e, const real* t, real* to) noexcept nogil:
    # copies, which a store to `to` can not reach
    cdef double ones[GROUP]
    cdef double below[GROUP]
    cdef double whole[GROUP]
    cdef double ed_below[GROUP]
    cdef double ed_ones[GROUP]
    cdef double factor[GROUP]
    cdef double square[GROUP]
    cdef double top = unit(e[0])
    cdef double v, others, bracket
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        ones[j] = mse.ones[j]
        below[j] = mse.below[j]
        whole[j] = mse.whole[j]
        ed_below[j] = mse.ed_below.sum[j]
        ed_ones[j] = mse.ed_ones.sum[j]
        factor[j] = mse.factor[j]
        square[j] = mse.square[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            others = mse_others(e[0], v, ones[j], below[j])
            bracket = mse_bracket(mse_difference(v, t[c * GROUP + j], others), others, whole[j], ed_below[j], ed_ones[j],
                                  (ones[j] == top) & (v == top))
            to[c * GROUP + j] = <real>((v * factor[j]) * (bracket * square[j]))


cdef inline double mse_turn(const MseColumns* mse, int j, double e, double v) noexcept nogil:
    """f = v - p.v."""
    return v - mse.ev.sum[j] * (1 / mse.whole[j])


cdef void mse_bent(const Tile* tile, MseColumns* mse, const real* e, const real* t, const real* v) noexcept nogil:
    cdef double d, at
    cdef Py_ssize_t c
    cdef int j
    for c in range(tile.lines):
        for j in range(GROUP):
            at = e[c * GROUP + j]
            d = mse_difference(at, t[c * GROUP + j], mse_others(e[0], at, mse.ones[j], mse.below[j]))
            accumulate(e[0], &mse.bent.sum[j], &mse.bent.lost[j],
                       0 if at == 0 else at * mse_turn(mse, j, at, v[c * GROUP + j]) * (d + at))


cdef void mse_product(const Tile* tile, const MseColumns* mse, const real* e, const real* t, const real* v, real* to) noexcept nogil:
    cdef double at, bracket
    cdef Py_ssize_t c
    cdef int j
    for c in range(tile.lines):
        for j in range(GROUP):
            at = e[c * GROUP + j]
            bracket = SL_FMA(at, mse.whole[j], mse_bracket_at(mse, j, e[0], at, t[c * GROUP + j]))
            bracket = mse_turn(mse, j, at, v[c * GROUP + j]) * bracket - mse.bent.sum[j]
            to[c * GROUP + j] = <real>(0 if at == 0 else (at * mse.factor[j]) * (bracket * mse.square[j]))


cdef void mse_tiles(const Job* job, Py_ssize_t start, int count, bint wide, const double* weight, double* loss, real* scratch) noexcept nogil:
    """Losses and derivatives of a group of rows, or of a wide one."""
    cdef real* e = scratch
    cdef real* x = scratch + TILE
    cdef real* t = scratch + 2 * TILE
    cdef real* slope = scratch + 3 * TILE
    cdef real* v = scratch + 4 * TILE
    cdef real* to = scratch + 5 * TILE
    cdef int want = job.want
    cdef Py_ssize_t index, tiles = tiles_of(job, wide)
    cdef bint keep = tiles > 1 and want & WANT_GRAD and job.g.kind == kind_of(scratch[0])
    cdef int j
    cdef Tile tile
    cdef Columns columns
    cdef MseColumns mse
    cdef Statistics statistics
    open_columns(job, start, count, wide, weight, &columns)
    tile_maxima(job, start, count, wide, &columns, x, slope)
    if want & WANT_STATS:
        start_statistics(&statistics)
    start_total(&mse.value)
    start_total(&mse.ed_below)
    start_total(&mse.ed_ones)
    if want & WANT_HESS:
        start_total(&mse.ee_below)
        start_total(&mse.ee_ones)
    if want & WANT_PRODUCT:
        start_total(&mse.ev)
        start_total(&mse.bent)

    for index in range(tiles):
        place_tile(job, start, count, wide, index, &tile)
        if tiles > 1:
            tile_logits(job, &tile, columns.weight, x, slope)
        prepare_tile(job, &tile, &columns, True, e, x, t)
        tile_totals(<const real*>e, tile.lines, &columns.below, &columns.ones)
        if want & WANT_PRODUCT:
            read_vector(job, &tile, columns.weight, <const real*>slope, <const real*>e, v, to)
            tile_split_sum(<const real*>e, <const real*>to, tile.lines, &mse.ev, &mse.bent)
        if want & WANT_STATS:
            tile_statistics(&tile, &columns, False, <const real*>x, <const real*>e, &statistics)
        if keep:
            write_tile(<const real*>e, &job.g, &tile)
    settle_exponentials(&columns, wide, scratch[0])
    for j in range(columns_of(wide)):
        mse.ones[j] = columns.ones.sum[j]
        mse.below[j] = columns.below.sum[j] + columns.below.lost[j]
        mse.whole[j] = mse.ones[j] + mse.below[j]
        mse.factor[j] = inverse_sum(&columns, j, columns.weight[j], job.divisor, scratch[0])
        mse.square[j] = inverse_square(&columns, j, 1, scratch[0])
    spread(mse.ones, wide)
    spread(mse.below, wide)
    spread(mse.whole, wide)
    spread(mse.factor, wide)
    spread(mse.square, wide)
    if want & WANT_STATS:
        store_statistics(job, &tile, &columns, &statistics, scratch[0])
    if want & WANT_PRODUCT:
        settle_whole(&mse.ev, wide)
        settle_whole(&mse.bent, wide)
        for j in range(GROUP):
            mse.ev.sum[j] += mse.bent.sum[j]
        start_total(&mse.bent)

    for index in range(tiles):
        place_tile(job, start, count, wide, index, &tile)
        if tiles > 1:
            restore_tile(job, &tile, &columns, keep, e, x, t, slope)
        mse_sums(&tile, &mse, <const real*>e, <const real*>t)
        if want & WANT_HESS:
            mse_squares(&tile, &mse, <const real*>e)
        if want & WANT_PRODUCT:
            read_vector(job, &tile, columns.weight, <const real*>slope, <const real*>e, v, to)
            mse_bent(&tile, &mse, <const real*>e, <const real*>t, <const real*>v)
    settle_whole(&mse.value, wide)
    settle_whole(&mse.ed_below, wide)
    settle_whole(&mse.ed_ones, wide)
    if want & WANT_HESS:
        settle_whole(&mse.ee_below, wide)
        settle_whole(&mse.ee_ones, wide)
    if want & WANT_PRODUCT:
        settle_whole(&mse.bent, wide)
    for j in range(columns_of(wide)):
        loss[j] = 0.5 * mse.value.sum[j] * mse.square[j]

    if not (want & (WANT_GRAD | WANT_HESS | WANT_PRODUCT) or job.fills):
        return
    for index in range(tiles):
        place_tile(job, start, count, wide, index, &tile)
        if tiles > 1:
            restore_tile(job, &tile, &columns, keep, e, x, t, slope)
        if job.fills:
            tile_probabilities(job, &tile, &columns, <const real*>e, to)
        if want & WANT_PRODUCT:
            read_vector(job, &tile, columns.weight, <const real*>slope, <const real*>e, v, to)
            mse_product(&tile, &mse, <const real*>e, <const real*>t, <const real*>v, to)
            write_tile(<const real*>to, &job.g, &tile)
        if want & WANT_HESS:
            mse_hessian(&tile, &mse, &columns, <const real*>e, <const real*>t, to)
            write_tile(<const real*>to, &job.h, &tile)
        if want & WANT_GRAD:
            mse_gradient(&tile, &mse, <const real*>e, <const real*>t, to)
            write_tile(<const real*>to, &job.g, &tile)


cdef void softmax_mse_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef bint wide = job.k > NARROW
    cdef Py_ssize_t at
    cdef int count, j
    cdef double weight[GROUP]
    cdef double loss[GROUP]
    for at from start <= at < stop by GROUP:
        count = <int>min(<Py_ssize_t>GROUP, stop - at)
        for j in range(GROUP):
            weight[j] = 1
            loss[j] = 0
        load_weights(job, at, count, True, True, weight)
        if wide:
            for j in range(count):
                if weight[j] != 0:
                    mse_tiles(job, at + j, 1, True, &weight[j], &loss[j], scratch)
                else:
                    clear_outputs(job, at + j, job.want, scratch)
        else:
            mse_tiles(job, at, count, False, weight, loss, scratch)
        close_rows(job, at, count, loss, weight, total)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 grad 2.524 in a row of 3
#   float32 hess 2.524 in a row of 3
#   float32 loss 2.576 in a row of 3
#   float32 soft grad 2.433 in a row of 100
#   float32 soft hess 3.085 in a row of 100
#   float32 soft loss 0.561 in a row of 2
#   float64 grad 4.129 in a row of 100
#   float64 hess 6.236 in a row of 10
#   float64 loss 4.706 in a row of 10
#   float64 soft grad 4.484 in a row of 10
#   float64 soft hess 5.403 in a row of 10
#   float64 soft loss 1.683 in a row of 10
def softmax_mse(logits, targets, weight, mask, denominator, out, hess, vector, probabilities, int want, Options options):
    cdef Kernel kernel = Kernel(softmax_mse_kernel[float], softmax_mse_kernel[double])
    return loss_call(logits, targets, weight, mask, denominator, out, hess, vector, probabilities, want, options, True, &kernel)

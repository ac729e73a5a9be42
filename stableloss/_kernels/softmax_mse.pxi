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
# Each result is a product of several quantities, so float32 goes through float64 from the exponentials
# on, and float64 carries along, in a second number x_low beside x, what the roundings lost.


cdef inline double mse_others(real hint, double e, double ones, double below) noexcept nogil:
    if real is float:
        return (ones - e) + below       # float64 has digits to spare
    else:
        return remainder_of(e, ones, below)


cdef inline double mse_difference(double e, double t, double others) noexcept nogil:
    """(p - t) sum."""
    return SL_FMA(e, 1 - t, -(t * others))


cdef inline double mse_bracket(real hint, double d, double others, double total, double total_low, double ed_below, double ed_ones, double ed_low, bint apart, double* low) noexcept nogil:
    """b sum**2; `apart` for the one class whose exponential is UNIT."""
    cdef double factor = others if apart else total
    cdef double ones = 0 if apart else ed_ones
    cdef double at, difference, ones_low, below_low
    if real is float:
        low[0] = 0
        return SL_FMA(d, factor, -ones) - ed_below
    else:
        at = d * factor
        difference = two_sum(two_sum(at, -ones, &ones_low), -ed_below, &below_low)
        low[0] = product_error(d, factor, at) + (ones_low + below_low - ed_low) + (0 if apart else d * total_low)
        return difference


cdef inline double mse_second(real hint, double e, double others, double total, double total_low, double bracket, double bracket_low, double ee_rest, double* low) noexcept nogil:
    """Second derivative times sum**4 / e."""
    cdef double others_low, turn, own, own_low, second, sum_low
    if real is float:
        low[0] = 0
        return SL_FMA(bracket, others - e, e * SL_FMA(others, others, ee_rest))
    else:
        others = two_sum(total, -e, &others_low)
        others = two_sum(others, others_low + total_low, &others_low)
        turn = two_sum(others, -e, &sum_low)
        second = product(bracket, bracket_low, turn, sum_low + others_low, low)
        own = product(others, others_low, others, others_low, &own_low)
        own = two_sum(own, ee_rest, &sum_low)
        own = product(own, own_low + sum_low, e, <double>0, &own_low)
        second = two_sum(second, own, &sum_low)
        low[0] += sum_low + own_low
        return second


# ---- class indices --------------------------------------------------------------------------------
#
# d_j is p_j but for the target y, where it is -(1 - p_y). With rest the sum of e_j over j != y and Q that
# of e_j**2,
#
#   loss  (rest**2 + Q) / (2 sum**2)
#   grad  -e_y (rest**2 + Q) / sum**3 at y,  e_j (e_j sum - S) / sum**3 elsewhere,  S = Q - e_y rest
#
# so that one pass over the exponentials finds all there is to add up. If the maximum m is another class
# than y, it is left out of the sums as well: e_m sum - S = e_m (2 e_y + B) + e_y B - Q, with B and Q of
# the classes that remain, is then no difference of large numbers where p_m is nearly 1.

cdef struct Rest:
    # Of the exponentials but those of target and maximum: sum and sum of squares, and what rounding lost.
    double sum
    double sum_low
    double squares
    double squares_low
    double target           # the target's exponential
    double top              # the maximum's, 0 if it is the target


cdef struct Gradient:
    # That of an exponential e is e (e whole - level) scale, each with what its rounding lost.
    double whole
    double whole_low
    double level
    double level_low
    double scale
    double scale_low
    double target
    double top


cdef inline double cubic_scale(double weight, double divisor, double divisor_low, double whole, double whole_low, double* low) noexcept nogil:
    """weight / ((divisor + divisor_low) * (whole + whole_low)**3)."""
    cdef double rest
    cdef double square = product(whole, whole_low, whole, whole_low, &rest)
    cdef double cube = product(square, rest, whole, whole_low, &rest)
    cdef double scale
    cube = product(cube, rest, divisor, divisor_low, &rest)
    scale = weight / cube
    low[0] = (-product_error(scale, cube, weight) - scale * rest) / cube
    return scale


cdef inline real mse_scaled(double e, double bracket, double bracket_low, double scale, double scale_low, real hint) noexcept nogil:
    """Exponential times bracket times scale, rounded once."""
    cdef double at, low
    if real is float:
        return <real>(e * bracket * scale)
    else:
        at = product(e, <double>0, bracket, bracket_low, &low)
        return SL_FMA(at, scale, SL_FMA(at, scale_low, low * scale))


cdef inline double settle_row(real hint, const Rest* row, double weight, double divisor, Gradient* out) noexcept nogil:
    """Loss of a row, and what its gradient is made from."""
    cdef double others, others_low, near, near_low, low, q, q_low, loss, loss_low
    cdef double e = row.target
    cdef double top = row.top
    if real is float:
        others = top + row.sum
        q = top * top + row.squares
        out.whole = others + e
        out.whole_low = out.level_low = out.scale_low = 0
        out.level = q - e * others
        out.scale = weight / (divisor * out.whole * out.whole * out.whole)
        loss = others * others + q
        out.target = -e * loss * out.scale
        out.top = top * (top * (2 * e + row.sum) + (e * row.sum - row.squares)) * out.scale
        return 0.5 * loss / (out.whole * out.whole)
    else:
        others = two_sum(top, row.sum, &others_low)
        others_low += row.sum_low
        out.whole = two_sum(others, e, &out.whole_low)
        out.whole_low += others_low
        q = two_sum(top * top, row.squares, &q_low)
        q_low += row.squares_low
        near = product(e, <double>0, others, others_low, &near_low)
        out.level = two_sum(q, -near, &out.level_low)
        out.level_low += q_low - near_low
        near = product(others, others_low, others, others_low, &near_low)
        loss = two_sum(near, q, &loss_low)
        loss_low += near_low + q_low
        out.scale = cubic_scale(weight, divisor, 0, out.whole, out.whole_low, &out.scale_low)
        out.target = -mse_scaled(e, loss, loss_low, out.scale, out.scale_low, <double>0)
        near = two_sum(2 * e, row.sum, &near_low)
        near_low += row.sum_low
        others = product(e, <double>0, row.sum, row.sum_low, &others_low)
        others = two_sum(others, -row.squares, &low)
        others_low += low - row.squares_low
        near = two_sum(top * near, others, &low)
        out.top = mse_scaled(top, near, low + others_low + top * near_low, out.scale, out.scale_low, <double>0)
        q = product(out.whole, out.whole_low, out.whole, out.whole_low, &q_low)
        return row_scale(0.5 * loss, 1, q, q_low) + 0.5 * loss_low / q


cdef inline real mse_entry(real e, double whole, double whole_low, double level, double level_low, double scale, double scale_low) noexcept nogil:
    cdef double v = e
    cdef double at, bracket, low = 0
    if real is float:
        bracket = SL_FMA(v, whole, -level)
    else:
        at = v * whole
        bracket = two_sum(at, -level, &low)
        low += product_error(v, whole, at) + SL_FMA(v, whole_low, -level_low)
    return mse_scaled(v, bracket, low, scale, scale_low, e)


cdef double lane_squares(const real* v, Py_ssize_t n, double* error) noexcept nogil:
    """Sum of the squares of n numbers, n a multiple of LANES; the lanes as in `lane_sum`."""
    cdef double lane[LANES]
    cdef double lost[LANES]
    cdef double at, square, s
    cdef Py_ssize_t i
    cdef int j
    if real is float:
        for j in range(LANES):
            lane[j] = 0
        for i in range(n // LANES):
            for j in range(LANES):
                at = v[i * LANES + j]
                lane[j] += at * at
        error[0] = 0
        return fold(lane)
    else:
        for j in range(LANES // 2):
            lane[j] = lost[j] = 0
        for i in range(n // (LANES // 2)):
            for j in range(LANES // 2):
                at = v[i * (LANES // 2) + j]
                square = at * at
                s = lane[j] + square
                lost[j] += ((lane[j] - s) + square) + product_error(at, at, square)
                lane[j] = s
        fold_exactly(lane, lost, 8)
        fold_exactly(lane, lost, 4)
        fold_exactly(lane, lost, 2)
        fold_exactly(lane, lost, 1)
        error[0] = lost[0]
        return lane[0]


cdef Py_ssize_t find_top(const real* s, Py_ssize_t n) noexcept nogil:
    """Index of the first exponential of UNIT among n, n a multiple of LANES; n if there is none."""
    cdef real top = unit(s[0])
    cdef Py_ssize_t i
    cdef int j, found
    for i in range(n // LANES):
        found = 0
        for j in range(LANES):
            found |= s[i * LANES + j] == top
        if found:
            for j in range(LANES):
                if s[i * LANES + j] == top:
                    return i * LANES + j
    return n


cdef void mse_in_place(real* values, Py_ssize_t n, const Gradient* row) noexcept nogil:
    cdef double whole = row.whole
    cdef double whole_low = row.whole_low
    cdef double level = row.level
    cdef double level_low = row.level_low
    cdef double scale = row.scale
    cdef double scale_low = row.scale_low
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = mse_entry(values[i], whole, whole_low, level, level_low, scale, scale_low)


cdef inline real take_out(real* at) noexcept nogil:
    cdef real value = at[0]
    at[0] = 0
    return value


cdef double mse_wide(const Job* job, const char* x, Py_ssize_t y, double weight, char* grad, real* s) noexcept nogil:
    """Loss and gradient of a row of class index y."""
    cdef Rest rest
    cdef Gradient row
    cdef Py_ssize_t start, n, at, top = -1, k = job.k
    cdef bint infinite, whole = k <= PIECE
    cdef bint wanted = job.want & WANT_GRAD != 0
    # the exponentials of a row of several pieces wait in the gradient's place, if it can hold them
    cdef bint keep = wanted and not whole and job.g.kind == kind_of(s[0])
    cdef real m = row_maximum(job, x, whole, &infinite, s)
    cdef real value
    cdef double error, lost, loss
    # where the target is the maximum, no other class is taken out
    cdef bint search = True
    rest.sum = rest.sum_low = rest.squares = rest.squares_low = rest.target = rest.top = 0
    if not whole:
        load_piece(job, x + y * job.x.inner, 0, 1, infinite, s)
        search = s[0] != m
    else:
        search = s[y] != m
    for start from 0 <= start < k by PIECE:
        n = min(<Py_ssize_t>PIECE, k - start)
        if not whole:
            load_piece(job, x, start, n, infinite, s)
        exponentials(s, padded(n), m, real is double)
        if start <= y < start + n:
            rest.target = take_out(s + (y - start))
        if search:
            at = find_top(<const real*>s, padded(n))
            if at < n:
                search = False
                top = start + at
                rest.top = take_out(s + at)
        rest.sum = two_sum(rest.sum, lane_sum(<const real*>s, padded(n), &error), &lost)
        rest.sum_low += error + lost
        rest.squares = two_sum(rest.squares, lane_squares(<const real*>s, padded(n), &error), &lost)
        rest.squares_low += error + lost
        if keep:
            scatter(<const real*>s, grad + start * job.g.inner, job.g.kind, job.g.inner, n)
    loss = settle_row(m, &rest, weight, job.divisor, &row)
    if not wanted:
        return loss
    if keep and job.g.inner == <Py_ssize_t>sizeof(real):
        mse_in_place(<real*>grad, k, &row)
    else:
        for start from 0 <= start < k by PIECE:
            n = min(<Py_ssize_t>PIECE, k - start)
            if keep:
                gather(grad + start * job.g.inner, job.g.kind, job.g.inner, n, s)
            elif not whole:
                load_piece(job, x, start, n, infinite, s)
                exponentials(s, padded(n), m, real is double)
            mse_in_place(s, n, &row)
            scatter(<const real*>s, grad + start * job.g.inner, job.g.kind, job.g.inner, n)
    value = <real>row.target
    scatter(<const real*>&value, grad + y * job.g.inner, job.g.kind, job.g.inner, 1)
    if top >= 0:
        value = <real>row.top
        scatter(<const real*>&value, grad + top * job.g.inner, job.g.kind, job.g.inner, 1)
    return loss


cdef void mse_wide_group(const Job* job, Py_ssize_t start, int count, const double* weight, double* loss, real* s) noexcept nogil:
    cdef Py_ssize_t x[GROUP]
    cdef Py_ssize_t to[GROUP]
    cdef Py_ssize_t y[GROUP]
    cdef bint wanted = job.want & WANT_GRAD != 0
    cdef int j
    load_classes(job, start, count, y)
    row_offsets(&job.x, start, count, x)
    if wanted:
        row_offsets(&job.g, start, count, to)
    for j in range(count):
        if weight[j] != 0:
            loss[j] = mse_wide(job, job.x.data + x[j], y[j], weight[j], job.g.data + to[j] if wanted else NULL, s)
        elif wanted:
            clear_row(job, &job.g, start + j, s)


cdef void lane_square_totals(const real* s, Py_ssize_t k, double* total, double* lost) noexcept nogil:
    """`lane_totals` of the squares."""
    cdef Py_ssize_t c
    cdef int j
    cdef double at, square, t
    for j in range(GROUP):
        total[j] = lost[j] = 0
    for c in range(k):
        for j in range(GROUP):
            at = s[c * GROUP + j]
            square = at * at
            t = total[j] + square
            if real is double:
                lost[j] += ((total[j] - t) + square) + product_error(at, at, square)
            total[j] = t


cdef void lane_tops(const real* s, Py_ssize_t k, int32_t* at) noexcept nogil:
    """Of each lane a class whose exponential is UNIT; 0 if there is none."""
    cdef real top = unit(s[0])
    cdef real last[GROUP]
    cdef real here = 0
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        last[j] = 0
    for c in range(1, k):
        here += 1
        for j in range(GROUP):
            last[j] = here if s[c * GROUP + j] == top else last[j]
    for j in range(GROUP):
        at[j] = <int32_t>last[j]


cdef void mse_narrow(const Job* job, Py_ssize_t start, int count, const double* weight, double* loss, real* s) noexcept nogil:
    """A group of rows of class indices, as lanes."""
    cdef Py_ssize_t y[GROUP]
    cdef int32_t top[GROUP]
    cdef real m[GROUP]
    cdef double sums[GROUP]
    cdef double sums_low[GROUP]
    cdef double squares[GROUP]
    cdef double squares_low[GROUP]
    cdef double e_target[GROUP]
    cdef double e_top[GROUP]
    cdef double whole[GROUP]
    cdef double whole_low[GROUP]
    cdef double level[GROUP]
    cdef double level_low[GROUP]
    cdef double scale[GROUP]
    cdef double scale_low[GROUP]
    cdef double at_target[GROUP]
    cdef double at_top[GROUP]
    cdef real unity = unit(s[0])
    cdef Rest rest
    cdef Gradient row
    cdef Py_ssize_t c, k = job.k
    cdef int j
    load_classes(job, start, count, y)
    load_lanes(&job.x, start, count, k, s)
    if job.o.logit_clip < SL_INFINITY:
        clamp(s, k * GROUP, job.o.logit_clip, s)
    if job.any_weight:
        clear_lanes(s, k, weight)
    lane_maximum(s, k, m)
    lane_exponentials(s, k, m, real is double)
    lane_tops(<const real*>s, k, top)
    for j in range(GROUP):
        e_target[j] = take_out(s + y[j] * GROUP + j)
        if e_target[j] == unity or s[top[j] * GROUP + j] != unity:
            top[j] = -1
            e_top[j] = 0
        else:
            e_top[j] = take_out(s + top[j] * GROUP + j)
    lane_totals(<const real*>s, k, sums, sums_low)
    lane_square_totals(<const real*>s, k, squares, squares_low)
    for j in range(GROUP):
        rest.sum = sums[j]
        rest.sum_low = sums_low[j]
        rest.squares = squares[j]
        rest.squares_low = squares_low[j]
        rest.target = e_target[j]
        rest.top = e_top[j]
        loss[j] = settle_row(m[0], &rest, weight[j], job.divisor, &row)
        whole[j] = row.whole
        whole_low[j] = row.whole_low
        level[j] = row.level
        level_low[j] = row.level_low
        scale[j] = row.scale
        scale_low[j] = row.scale_low
        at_target[j] = 0 if weight[j] == 0 else row.target
        at_top[j] = row.top
    if not job.want & WANT_GRAD:
        return
    for c in range(k):
        for j in range(GROUP):
            s[c * GROUP + j] = mse_entry(s[c * GROUP + j], whole[j], whole_low[j], level[j], level_low[j], scale[j], scale_low[j])
    for j in range(GROUP):
        s[y[j] * GROUP + j] = <real>at_target[j]
        if top[j] >= 0:
            s[top[j] * GROUP + j] = <real>at_top[j]
    store_lanes(<const real*>s, &job.g, start, count, k)


# ---- all else, in tiles ---------------------------------------------------------------------------

cdef struct MseColumns:
    # Per column, of the exponentials: the sum, that of those equal to UNIT and of those below, and powers.
    double ones[GROUP]
    double below[GROUP]
    double whole[GROUP]
    double whole_low[GROUP]
    double cube[GROUP]          # weight / (divisor sum**3)
    double cube_low[GROUP]
    double fourth[GROUP]        # weight / sum**4
    double fourth_low[GROUP]
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


cdef inline double mse_bracket_at(const MseColumns* mse, int j, real hint, double e, double t, double* low) noexcept nogil:
    cdef double top = unit(hint)
    cdef double others = mse_others(hint, e, mse.ones[j], mse.below[j])
    return mse_bracket(hint, mse_difference(e, t, others), others, mse.whole[j], mse.whole_low[j], mse.ed_below.sum[j],
                       mse.ed_ones.sum[j], mse.ed_below.lost[j] + mse.ed_ones.lost[j], (mse.ones[j] == top) & (e == top), low)


cdef void mse_hessian(const Tile* tile, const MseColumns* mse, const real* e, const real* t, real* to) noexcept nogil:
    cdef double top = unit(e[0])
    cdef double v, bracket, second, low
    cdef Py_ssize_t c
    cdef int j
    for c in range(tile.lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            bracket = mse_bracket_at(mse, j, e[0], v, t[c * GROUP + j], &low)
            second = mse_second(e[0], v, mse_others(e[0], v, mse.ones[j], mse.below[j]), mse.whole[j], mse.whole_low[j], bracket, low,
                                (SL_FMA(-v, v, mse.ee_below.sum[j]) + mse.ee_ones.sum[j] if v < top
                                 else SL_FMA(-v, v, mse.ee_ones.sum[j]) + mse.ee_below.sum[j]), &low)
            to[c * GROUP + j] = mse_scaled(v, second, low, mse.fourth[j], mse.fourth_low[j], e[0])


cdef void mse_gradient(const Tile* tile, const MseColumns* mse, const real* e, const real* t, real* to) noexcept nogil:
    # copies, which a store to `to` can not reach
    cdef double ones[GROUP]
    cdef double below[GROUP]
    cdef double whole[GROUP]
    cdef double whole_low[GROUP]
    cdef double ed_below[GROUP]
    cdef double ed_ones[GROUP]
    cdef double ed_low[GROUP]
    cdef double cube[GROUP]
    cdef double cube_low[GROUP]
    cdef double top = unit(e[0])
    cdef double v, others, bracket, low
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        ones[j] = mse.ones[j]
        below[j] = mse.below[j]
        whole[j] = mse.whole[j]
        whole_low[j] = mse.whole_low[j]
        ed_below[j] = mse.ed_below.sum[j]
        ed_ones[j] = mse.ed_ones.sum[j]
        ed_low[j] = mse.ed_below.lost[j] + mse.ed_ones.lost[j]
        cube[j] = mse.cube[j]
        cube_low[j] = mse.cube_low[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            others = mse_others(e[0], v, ones[j], below[j])
            bracket = mse_bracket(e[0], mse_difference(v, t[c * GROUP + j], others), others, whole[j], whole_low[j],
                                  ed_below[j], ed_ones[j], ed_low[j], (ones[j] == top) & (v == top), &low)
            to[c * GROUP + j] = mse_scaled(v, bracket, low, cube[j], cube_low[j], e[0])


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
    cdef double at, bracket, low
    cdef Py_ssize_t c
    cdef int j
    for c in range(tile.lines):
        for j in range(GROUP):
            at = e[c * GROUP + j]
            bracket = mse_bracket_at(mse, j, e[0], at, t[c * GROUP + j], &low)
            bracket = SL_FMA(at, mse.whole[j], bracket + low)
            bracket = mse_turn(mse, j, at, v[c * GROUP + j]) * bracket - mse.bent.sum[j]
            to[c * GROUP + j] = 0 if at == 0 else mse_scaled(at, bracket, 0, mse.cube[j], mse.cube_low[j], e[0])


cdef void mse_tiles(const Job* job, Py_ssize_t start, int count, bint wide, int want, const double* weight, double* loss, real* scratch) noexcept nogil:
    """Losses and derivatives of a group of rows, or of a wide one."""
    cdef real* e = scratch
    cdef real* x = scratch + TILE
    cdef real* t = scratch + 2 * TILE
    cdef real* slope = scratch + 3 * TILE
    cdef real* v = scratch + 4 * TILE
    cdef real* to = scratch + 5 * TILE
    cdef Py_ssize_t index, tiles = tiles_of(job, wide)
    cdef bint keep = tiles > 1 and want & WANT_GRAD and job.g.kind == kind_of(scratch[0])
    cdef int j
    cdef Tile tile
    cdef Columns columns
    cdef MseColumns mse
    cdef double square[GROUP]
    cdef double whole, low
    cdef Statistics statistics
    open_columns(job, start, count, wide, weight, &columns)
    columns.careful = real is double
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
        mse.whole[j] = whole = two_sum(mse.ones[j], columns.below.sum[j], &low)
        mse.whole_low[j] = low = low + columns.below.lost[j]
        mse.cube[j] = cubic_scale(columns.weight[j], job.divisor, 0, whole, low, &mse.cube_low[j])
        if want & WANT_HESS:
            mse.fourth[j] = cubic_scale(columns.weight[j], whole, low, whole, low, &mse.fourth_low[j])
        square[j] = inverse_square(&columns, j, 1, scratch[0])
    spread(mse.ones, wide)
    spread(mse.below, wide)
    spread(mse.whole, wide)
    spread(mse.whole_low, wide)
    spread(mse.cube, wide)
    spread(mse.cube_low, wide)
    spread(mse.fourth, wide)
    spread(mse.fourth_low, wide)
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
        loss[j] = 0.5 * mse.value.sum[j] * square[j]

    if not (want & (WANT_GRAD | WANT_HESS | WANT_PRODUCT) or job.wants_probabilities):
        return
    for index in range(tiles):
        place_tile(job, start, count, wide, index, &tile)
        if tiles > 1:
            restore_tile(job, &tile, &columns, keep, e, x, t, slope)
        if job.wants_probabilities:
            tile_probabilities(job, &tile, &columns, <const real*>e, to)
        if want & WANT_PRODUCT:
            read_vector(job, &tile, columns.weight, <const real*>slope, <const real*>e, v, to)
            mse_product(&tile, &mse, <const real*>e, <const real*>t, <const real*>v, to)
            write_tile(<const real*>to, &job.g, &tile)
        if want & WANT_HESS:
            mse_hessian(&tile, &mse, <const real*>e, <const real*>t, to)
            write_tile(<const real*>to, &job.h, &tile)
        if want & WANT_GRAD:
            mse_gradient(&tile, &mse, <const real*>e, <const real*>t, to)
            write_tile(<const real*>to, &job.g, &tile)


cdef void softmax_mse_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    # class indices have their own way to loss and gradient, which a Hessian beside it does not change
    cdef bint fast = job.hard and not job.has_options
    cdef int tiled = job.want & WANT_HESS if fast else job.want
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
        if tiled and not wide:
            mse_tiles(job, at, count, False, tiled, weight, loss, scratch)
        elif tiled:
            for j in range(count):
                if weight[j] != 0:
                    mse_tiles(job, at + j, 1, True, tiled, &weight[j], &loss[j], scratch)
                else:
                    clear_outputs(job, at + j, tiled, scratch)
        if fast and wide:
            mse_wide_group(job, at, count, weight, loss, scratch)
        elif fast:
            mse_narrow(job, at, count, weight, loss, scratch)
        close_rows(job, at, count, loss, weight, total)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 grad 3.030 at 0x1.456ceep+5, 0x1.07b68ap-3, target 0
#   float32 hess 3.030 at 0x1.456ceep+5, 0x1.07b68ap-3, target 0
#   float32 loss 3.030 at 0x1.456ceep+5, 0x1.07b68ap-3, target 0
#   float32 soft grad 2.380 in a row of 1000
#   float32 soft hess 3.389 in a row of 100
#   float32 soft loss 0.747 in a row of 3
#   float64 grad 2.681 in a row of 3
#   float64 hess 3.762 in a row of 1000
#   float64 loss 3.056 in a row of 3
#   float64 soft grad 3.083 in a row of 1000
#   float64 soft hess 3.687 in a row of 1000
#   float64 soft loss 2.265 in a row of 10
def softmax_mse(logits, targets, weight, mask, denominator, out, hess, vector, probabilities, int want, Options options):
    cdef Kernel kernel = Kernel(softmax_mse_kernel[float], softmax_mse_kernel[double])
    return loss_call(logits, targets, weight, mask, denominator, out, hess, vector, probabilities, want, options, True, &kernel)

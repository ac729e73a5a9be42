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
# on, and float64 carries along, in a second number x_lo beside x, what the roundings lost.
#
# uses _blocks: stopped
# uses _groups: FEW Group each_row softmax_rows
# uses _job: Job loss_kernel
# uses _math: SL_FMA SL_INFINITY product product_error real remainder_of row_scale two_sum unit
# uses _operand: kind_of scatter
# uses _options: WANT_GRAD WANT_HESS WANT_PRODUCT WANT_STATS
# uses _rows: Columns Row add_piece broadcast close_piece column_exponentials column_maxima columns_of
# uses _rows: finish_exponentials inverse_square limit_columns load_columns load_tile open_columns open_row
# uses _rows: piece_exponentials piece_output return_to_piece start_limits store_class take_out
# uses _rows: tile_exponentials tile_targets tile_vector to_real
# uses _stats: Statistics start_statistics store_statistics tile_probabilities tile_statistics
# uses _sums: GROUP NARROW PIECE Split Sum Total accumulate column_squares column_sums padded reduce_columns
# uses _sums: reduce_split start_split start_total sum_exponentials sum_split sum_split_squares
# uses _tiles: TILE_EV TILE_EXPS TILE_LOGITS TILE_OUT TILE_SLOPE TILE_TARGETS TILE_VECTOR Tile place_tile
# uses _tiles: read_tile write_columns write_tile


cdef inline double others_of(real hint, double e, double sum_max, double sum_rest) noexcept nogil:
    if real is float:
        return (sum_max - e) + sum_rest     # float64 has digits to spare
    else:
        return remainder_of(e, sum_max, sum_rest)


cdef inline double cubic_scale(double weight, double divisor, double divisor_lo, double total, double total_lo, double* lo) noexcept nogil:
    """weight / ((divisor + divisor_lo) * (total + total_lo)**3)."""
    cdef double rest
    cdef double square = product(total, total_lo, total, total_lo, &rest)
    cdef double cube = product(square, rest, total, total_lo, &rest)
    cdef double scale
    cube = product(cube, rest, divisor, divisor_lo, &rest)
    scale = weight / cube
    lo[0] = (-product_error(scale, cube, weight) - scale * rest) / cube
    return scale


cdef inline real scaled_bracket(double e, double bracket, double bracket_lo, double scale, double scale_lo, real hint) noexcept nogil:
    """Exponential times bracket times scale, rounded once."""
    cdef double at, lo
    if real is float:
        return <real>(e * bracket * scale)
    else:
        at = product(e, <double>0, bracket, bracket_lo, &lo)
        return SL_FMA(at, scale, SL_FMA(at, scale_lo, lo * scale))


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

cdef struct RestSums:
    # Per column, of the exponentials but those of target and maximum.
    double sum[GROUP]
    double sum_lo[GROUP]
    double squares[GROUP]
    double squares_lo[GROUP]
    double target[GROUP]    # the target's exponential
    double max[GROUP]       # the maximum's, 0 if it is the target


cdef struct Gradients:
    # Per column: that of an exponential e is e (e total - level) scale.
    double total[GROUP]
    double total_lo[GROUP]
    double level[GROUP]
    double level_lo[GROUP]
    double scale[GROUP]
    double scale_lo[GROUP]
    double target[GROUP]    # of target and maximum
    double max[GROUP]


cdef inline double finish_column(real hint, const RestSums* row, int j, double weight, double divisor, Gradients* out) noexcept nogil:
    """Loss of a row, and what its gradient is made from."""
    cdef double others, others_lo, near, near_lo, lo, q, q_lo, loss, loss_lo
    cdef double e = row.target[j]
    cdef double e_max = row.max[j]
    if real is float:
        others = e_max + row.sum[j]
        q = e_max * e_max + row.squares[j]
        out.total[j] = others + e
        out.total_lo[j] = out.level_lo[j] = out.scale_lo[j] = 0
        out.level[j] = q - e * others
        out.scale[j] = weight / (divisor * out.total[j] * out.total[j] * out.total[j])
        loss = others * others + q
        out.target[j] = -e * loss * out.scale[j]
        out.max[j] = e_max * (e_max * (2 * e + row.sum[j]) + (e * row.sum[j] - row.squares[j])) * out.scale[j]
        return 0.5 * loss / (out.total[j] * out.total[j])
    else:
        others = two_sum(e_max, row.sum[j], &others_lo)
        others_lo += row.sum_lo[j]
        out.total[j] = two_sum(others, e, &out.total_lo[j])
        out.total_lo[j] += others_lo
        q = two_sum(e_max * e_max, row.squares[j], &q_lo)
        q_lo += row.squares_lo[j]
        near = product(e, <double>0, others, others_lo, &near_lo)
        out.level[j] = two_sum(q, -near, &out.level_lo[j])
        out.level_lo[j] += q_lo - near_lo
        near = product(others, others_lo, others, others_lo, &near_lo)
        loss = two_sum(near, q, &loss_lo)
        loss_lo += near_lo + q_lo
        out.scale[j] = cubic_scale(weight, divisor, 0, out.total[j], out.total_lo[j], &out.scale_lo[j])
        out.target[j] = -scaled_bracket(e, loss, loss_lo, out.scale[j], out.scale_lo[j], <double>0)
        near = two_sum(2 * e, row.sum[j], &near_lo)
        near_lo += row.sum_lo[j]
        others = product(e, <double>0, row.sum[j], row.sum_lo[j], &others_lo)
        others = two_sum(others, -row.squares[j], &lo)
        others_lo += lo - row.squares_lo[j]
        near = two_sum(e_max * near, others, &lo)
        out.max[j] = scaled_bracket(e_max, near, lo + others_lo + e_max * near_lo,
                                    out.scale[j], out.scale_lo[j], <double>0)
        q = product(out.total[j], out.total_lo[j], out.total[j], out.total_lo[j], &q_lo)
        return row_scale(0.5 * loss, 1, q, q_lo) + 0.5 * loss_lo / q


cdef inline real gradient_entry(real e, const Gradients* row, int j) noexcept nogil:
    cdef double v = e
    cdef double at, bracket, lo = 0
    if real is float:
        bracket = SL_FMA(v, row.total[j], -row.level[j])
    else:
        at = v * row.total[j]
        bracket = two_sum(at, -row.level[j], &lo)
        lo += product_error(v, row.total[j], at) + SL_FMA(v, row.total_lo[j], -row.level_lo[j])
    return scaled_bracket(v, bracket, lo, row.scale[j], row.scale_lo[j], e)


cdef void last_maxima(const real* s, Py_ssize_t k, int32_t* at) noexcept nogil:
    """Of each column the last class whose exponential is UNIT; 0 if there is none."""
    cdef real e_max = unit(s[0])
    cdef real last[GROUP]
    cdef real here = 0
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        last[j] = 0
    for c in range(1, k):
        here += 1
        for j in range(GROUP):
            last[j] = here if s[c * GROUP + j] == e_max else last[j]
    for j in range(GROUP):
        at[j] = <int32_t>last[j]


cdef void quadratic_columns(const Job* job, Group* group, real* s) noexcept nogil:
    """Losses and gradient of a group as columns."""
    cdef int32_t at[GROUP]
    cdef bint limit[GROUP]
    cdef real m[GROUP]
    cdef double loss[GROUP]
    cdef RestSums rest
    cdef Gradients out
    cdef real e_max = unit(s[0])
    cdef Py_ssize_t c, k = job.k
    cdef int j
    load_columns(job, group.start, group.count, group.weight, s, s)
    for j in range(GROUP):
        m[j] = -SL_INFINITY
    column_maxima(<const real*>s, k, m)
    if start_limits(m, limit):
        limit_columns(s, k, limit)
    column_exponentials(<const real*>s, s, k, <const real*>m, real is double)
    last_maxima(<const real*>s, k, at)
    for j in range(GROUP):
        rest.target[j] = take_out(s + group.y[j] * GROUP + j)
        if rest.target[j] == e_max or s[at[j] * GROUP + j] != e_max:
            at[j] = -1
            rest.max[j] = 0
        else:
            rest.max[j] = take_out(s + at[j] * GROUP + j)
    column_sums(<const real*>s, k, rest.sum, rest.sum_lo)
    column_squares(<const real*>s, k, rest.squares, rest.squares_lo)
    for j in range(GROUP):
        loss[j] = finish_column(m[0], &rest, j, group.weight[j], job.divisor, &out)
    for j in range(GROUP):
        group.loss[j] = loss[j]
    if not job.want & WANT_GRAD:
        return
    for c in range(k):
        for j in range(GROUP):
            s[c * GROUP + j] = gradient_entry(s[c * GROUP + j], &out, j)
    for j in range(GROUP):
        s[group.y[j] * GROUP + j] = <real>(0 if group.weight[j] == 0 else out.target[j])
        if at[j] >= 0:
            s[at[j] * GROUP + j] = <real>out.max[j]
    write_columns(<const real*>s, &job.g, group.start, group.count, k)


cdef Py_ssize_t first_maximum(const real* s, Py_ssize_t n) noexcept nogil:
    """The first exponential of UNIT among n, n a multiple of GROUP; n if there is none."""
    cdef real e_max = unit(s[0])
    cdef Py_ssize_t i
    cdef int j, found
    for i in range(n // GROUP):
        found = 0
        for j in range(GROUP):
            found |= s[i * GROUP + j] == e_max
        if found:
            for j in range(GROUP):
                if s[i * GROUP + j] == e_max:
                    return i * GROUP + j
    return n


cdef Py_ssize_t last_maximum(const real* s, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n - 1, -1, -1):
        if s[i] == unit(s[0]):
            return i
    return n


cdef inline void gradient_entries(const real* e, Py_ssize_t n, const Gradients* row, real* to) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        to[i] = gradient_entry(e[i], row, 0)


cdef Py_ssize_t sum_pieces(const Job* job, const Row* row, RestSums* rest, real* s) noexcept nogil:
    """Add up a row, target and maximum apart; returns the class of the maximum, -1 where it is the target."""
    cdef Py_ssize_t first, n, found, at = -1
    cdef bint search = row.x_target != row.m
    rest.sum[0] = rest.sum_lo[0] = rest.squares[0] = rest.squares_lo[0] = rest.target[0] = rest.max[0] = 0
    for first from 0 <= first < job.k by PIECE:
        if not row.one_piece and stopped(job):
            return -1
        n = min(<Py_ssize_t>PIECE, job.k - first)
        piece_exponentials(job, row, first, n, real is double, s)
        if first <= row.y < first + n:
            rest.target[0] = take_out(s + (row.y - first))
        if job.k <= NARROW:
            # the class that `quadratic_columns` finds
            found = last_maximum(<const real*>s, n) if rest.target[0] != unit(s[0]) else n
        else:
            found = first_maximum(<const real*>s, padded(n)) if search else n
        if found < n:
            search = False
            at = first + found
            rest.max[0] = take_out(s + found)
        add_piece(job, <const real*>s, n, False, &rest.sum[0], &rest.sum_lo[0])
        add_piece(job, <const real*>s, n, True, &rest.squares[0], &rest.squares_lo[0])
        if row.cached:
            scatter(<const real*>s, row.grad + first * job.g.inner, job.g.kind, job.g.inner, n)
    return at


cdef void quadratic_row(const Job* job, Row* row, Group* group, int j, real* s) noexcept nogil:
    """Loss and gradient of a row: the bits of `quadratic_columns` where that could take it."""
    cdef RestSums rest
    cdef Gradients out
    cdef Py_ssize_t first, n, at
    cdef const real* e
    cdef real* to
    open_row(job, row, s)
    at = sum_pieces(job, row, &rest, s)
    group.loss[j] = finish_column(s[0], &rest, 0, row.weight, job.divisor, &out)
    if row.grad == NULL:
        return
    for first from 0 <= first < job.k by PIECE:
        if not row.one_piece and stopped(job):
            return
        n = min(<Py_ssize_t>PIECE, job.k - first)
        e = return_to_piece(job, row, first, n, real is double, s)
        to = piece_output(job, row, first, s)
        if e == to:
            gradient_entries(<const real*>to, n, &out, to)
        else:
            gradient_entries(e, n, &out, to)
        close_piece(job, row, first, n, <const real*>s)
    store_class(job, row, row.y, <real>out.target[0])
    if at >= 0:
        store_class(job, row, at, <real>out.max[0])


cdef void quadratic_cost_of_indices(const Job* job, Group* group, real* s) noexcept nogil:
    if job.k <= NARROW and group.count > FEW:
        quadratic_columns(job, group, s)
    else:
        each_row(job, group, quadratic_row[real], s)


# ---- all else, in tiles ---------------------------------------------------------------------------

cdef struct Brackets:
    # What b sum**2 is made from.
    double sum_max[GROUP]
    double sum_rest[GROUP]
    double total[GROUP]
    double total_lo[GROUP]
    double ed_max[GROUP]
    double ed_rest[GROUP]
    double ed_lo[GROUP]


cdef struct Quadratic:
    # What is known of each column.
    Columns columns
    bint cached                 # exponentials wait in the gradient's place
    Brackets brackets
    double cube[GROUP]          # weight / (divisor sum**3)
    double cube_lo[GROUP]
    double fourth[GROUP]        # weight / sum**4
    double fourth_lo[GROUP]
    double p_v[GROUP]           # p.v
    Total value                 # (d sum)**2
    Split ed                    # e d sum
    Split ee                    # e**2
    Split ev                    # e v
    Total hvp                   # e f (d + p) sum


cdef inline double scaled_difference(double e, double t, double others) noexcept nogil:
    """(p - t) sum."""
    return SL_FMA(e, 1 - t, -(t * others))


cdef inline double bracket_of(real hint, const Brackets* columns, int j, double e, double t, double* lo) noexcept nogil:
    """b sum**2; apart for the one class whose exponential is UNIT."""
    cdef double e_max = unit(hint)
    cdef double others = others_of(hint, e, columns.sum_max[j], columns.sum_rest[j])
    cdef double d = scaled_difference(e, t, others)
    cdef bint apart = (columns.sum_max[j] == e_max) & (e == e_max)
    cdef double factor = others if apart else columns.total[j]
    cdef double ed_max = 0 if apart else columns.ed_max[j]
    cdef double at, bracket, max_lo, rest_lo
    if real is float:
        lo[0] = 0
        return SL_FMA(d, factor, -ed_max) - columns.ed_rest[j]
    else:
        at = d * factor
        bracket = two_sum(two_sum(at, -ed_max, &max_lo), -columns.ed_rest[j], &rest_lo)
        lo[0] = (product_error(d, factor, at) + (max_lo + rest_lo - columns.ed_lo[j])
                 + (0 if apart else d * columns.total_lo[j]))
        return bracket


cdef inline double second_of(real hint, const Brackets* columns, int j, double e, double bracket, double bracket_lo, double ee_rest, double* lo) noexcept nogil:
    """Second derivative times sum**4 / e."""
    cdef double others, others_lo, less, own, own_lo, second, sum_lo
    if real is float:
        lo[0] = 0
        others = others_of(hint, e, columns.sum_max[j], columns.sum_rest[j])
        return SL_FMA(bracket, others - e, e * SL_FMA(others, others, ee_rest))
    else:
        others = two_sum(columns.total[j], -e, &others_lo)
        others = two_sum(others, others_lo + columns.total_lo[j], &others_lo)
        less = two_sum(others, -e, &sum_lo)
        second = product(bracket, bracket_lo, less, sum_lo + others_lo, lo)
        own = product(others, others_lo, others, others_lo, &own_lo)
        own = two_sum(own, ee_rest, &sum_lo)
        own = product(own, own_lo + sum_lo, e, <double>0, &own_lo)
        second = two_sum(second, own, &sum_lo)
        lo[0] += sum_lo + own_lo
        return second


cdef void quadratic_open(const Job* job, Tile* tile, Quadratic* state, real* scratch) noexcept nogil:
    state.cached = tile.tiles > 1 and tile.want & WANT_GRAD and job.g.kind == kind_of(scratch[0])
    open_columns(job, tile, &state.columns, scratch + TILE_LOGITS, scratch + TILE_SLOPE)
    start_total(&state.value)
    start_split(&state.ed)
    if tile.want & WANT_HESS:
        start_split(&state.ee)
    if tile.want & WANT_PRODUCT:
        start_split(&state.ev)
        start_total(&state.hvp)


cdef void quadratic_open_tile(const Job* job, const Tile* tile, const Quadratic* state, real* scratch) noexcept nogil:
    """Logits, targets and exponentials of a tile; where there is one, its logits are there already."""
    if tile.tiles > 1:
        load_tile(job, tile, state.columns.weight, scratch + TILE_LOGITS, scratch + TILE_SLOPE)
    tile_targets(job, tile, &state.columns, scratch + TILE_TARGETS)
    tile_exponentials(tile, &state.columns, real is double, scratch + TILE_LOGITS, scratch + TILE_EXPS)


cdef bint quadratic_return_to(const Job* job, Py_ssize_t index, Tile* tile, const Quadratic* state, real* scratch) noexcept nogil:
    """A tile as `quadratic_open_tile` left it; False where the call is to end."""
    if not place_tile(job, index, tile):
        return False
    if state.cached:
        tile_targets(job, tile, &state.columns, scratch + TILE_TARGETS)
        read_tile(&job.g, tile, scratch + TILE_EXPS)
    elif tile.tiles > 1:
        quadratic_open_tile(job, tile, state, scratch)
    return True


cdef void quadratic_finish_exponentials(const Job* job, const Tile* tile, Quadratic* state, real hint) noexcept nogil:
    cdef Columns* columns = &state.columns
    cdef double total, lo
    cdef int j
    finish_exponentials(columns, tile.wide, hint)
    to_real(columns.sum_max, state.brackets.sum_max)
    to_real(columns.sum_rest, state.brackets.sum_rest)
    to_real(columns.total, state.brackets.total)
    to_real(columns.total_lo, state.brackets.total_lo)
    for j in range(columns_of(tile.wide)):
        total = columns.total[j]
        lo = columns.total_lo[j]
        state.cube[j] = cubic_scale(columns.weight[j], job.divisor, 0, total, lo, &state.cube_lo[j])
        if tile.want & WANT_HESS:
            state.fourth[j] = cubic_scale(columns.weight[j], total, lo, total, lo, &state.fourth_lo[j])
    broadcast(state.cube, tile.wide)
    broadcast(state.cube_lo, tile.wide)
    broadcast(state.fourth, tile.wide)
    broadcast(state.fourth_lo, tile.wide)


cdef void sum_differences(const Tile* tile, Quadratic* state, const real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef double sum_max[GROUP]
    cdef double sum_rest[GROUP]
    cdef Total value = state.value
    cdef Split ed = state.ed
    cdef double e_max = unit(e[0])
    cdef double v, d
    cdef Py_ssize_t c
    cdef int j
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    for c in range(tile.lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            d = scaled_difference(v, t[c * GROUP + j], others_of(e[0], v, sum_max[j], sum_rest[j]))
            accumulate(e[0], &value.hi[j], &value.lo[j], d * d)
            accumulate(e[0], &ed.rest.hi[j], &ed.rest.lo[j], v * d if v < e_max else 0)
            accumulate(e[0], &ed.max.hi[j], &ed.max.lo[j], 0 if v < e_max else v * d)
    state.value = value
    state.ed = ed


cdef void quadratic_finish_sums(const Tile* tile, Quadratic* state, real hint) noexcept nogil:
    """Losses, and what the brackets lack."""
    cdef int j
    reduce_columns(&state.value, tile.wide)
    reduce_split(&state.ed, tile.wide)
    for j in range(columns_of(tile.wide)):
        tile.loss[j] = 0.5 * state.value.hi[j] * inverse_square(&state.columns, j, 1, hint)
    for j in range(GROUP):
        state.brackets.ed_max[j] = state.ed.max.hi[j]
        state.brackets.ed_rest[j] = state.ed.rest.hi[j]
        state.brackets.ed_lo[j] = state.ed.rest.lo[j] + state.ed.max.lo[j]


# ---- loss, gradient, Hessian, statistics ----------------------------------------------------------

cdef void quadratic_emit_gradient(const Job* job, const Tile* tile, const Quadratic* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef real* to = scratch + TILE_OUT
    cdef Brackets brackets = state.brackets
    cdef double cube[GROUP]
    cdef double cube_lo[GROUP]
    cdef double bracket, lo
    cdef Py_ssize_t c, i
    cdef int j
    to_real(state.cube, cube)
    to_real(state.cube_lo, cube_lo)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            bracket = bracket_of(e[0], &brackets, j, e[i], t[i], &lo)
            to[i] = scaled_bracket(e[i], bracket, lo, cube[j], cube_lo[j], e[0])
    write_tile(<const real*>to, &job.g, tile)


cdef void quadratic_emit_hessian(const Job* job, const Tile* tile, const Quadratic* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef real* to = scratch + TILE_OUT
    cdef Brackets brackets = state.brackets
    cdef double e_max = unit(e[0])
    cdef double v, bracket, second, ee_rest, lo
    cdef Py_ssize_t c, i
    cdef int j
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            v = e[i]
            bracket = bracket_of(e[0], &brackets, j, v, t[i], &lo)
            ee_rest = (SL_FMA(-v, v, state.ee.rest.hi[j]) + state.ee.max.hi[j] if v < e_max
                       else SL_FMA(-v, v, state.ee.max.hi[j]) + state.ee.rest.hi[j])
            second = second_of(e[0], &brackets, j, v, bracket, lo, ee_rest, &lo)
            to[i] = scaled_bracket(v, second, lo, state.fourth[j], state.fourth_lo[j], e[0])
    write_tile(<const real*>to, &job.h, tile)


cdef void quadratic_values(const Job* job, Tile* tile, Quadratic* state, real* scratch) noexcept nogil:
    cdef Statistics statistics
    cdef Py_ssize_t index
    if tile.want & WANT_STATS:
        start_statistics(&statistics)
    for index in range(tile.tiles):
        if not place_tile(job, index, tile):
            return
        quadratic_open_tile(job, tile, state, scratch)
        sum_exponentials(<const real*>(scratch + TILE_EXPS), tile.lines, &state.columns.sums)
        if tile.want & WANT_STATS:
            tile_statistics(tile, state.columns.m, <const real*>(scratch + TILE_LOGITS),
                            <const real*>(scratch + TILE_EXPS), &statistics)
        if state.cached:
            write_tile(<const real*>(scratch + TILE_EXPS), &job.g, tile)
    quadratic_finish_exponentials(job, tile, state, scratch[0])
    if tile.want & WANT_STATS:
        store_statistics(job, tile, &state.columns, &statistics, scratch[0])
    for index in range(tile.tiles):
        if not quadratic_return_to(job, index, tile, state, scratch):
            return
        sum_differences(tile, state, <const real*>scratch)
        if tile.want & WANT_HESS:
            sum_split_squares(<const real*>(scratch + TILE_EXPS), tile.lines, &state.ee)
    quadratic_finish_sums(tile, state, scratch[0])
    if tile.want & WANT_HESS:
        reduce_split(&state.ee, tile.wide)
    if not (tile.want & (WANT_GRAD | WANT_HESS) or job.wants_probabilities):
        return
    for index in range(tile.tiles):
        if not quadratic_return_to(job, index, tile, state, scratch):
            return
        if job.wants_probabilities:
            tile_probabilities(job, tile, &state.columns, <const real*>(scratch + TILE_EXPS), scratch + TILE_OUT)
        if tile.want & WANT_HESS:
            quadratic_emit_hessian(job, tile, state, scratch)
        if tile.want & WANT_GRAD:
            quadratic_emit_gradient(job, tile, state, scratch)


# ---- Hessian times a vector -----------------------------------------------------------------------

cdef void quadratic_sum_hvp(const Job* job, const Tile* tile, Quadratic* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef const real* v = scratch + TILE_VECTOR
    cdef Brackets brackets = state.brackets
    cdef Total hvp = state.hvp
    cdef double at, d
    cdef Py_ssize_t c, i
    cdef int j
    tile_vector(job, tile, &state.columns, <const real*>(scratch + TILE_SLOPE), e, scratch + TILE_VECTOR, scratch + TILE_EV)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            at = e[i]
            d = scaled_difference(at, t[i], others_of(e[0], at, brackets.sum_max[j], brackets.sum_rest[j]))
            accumulate(e[0], &hvp.hi[j], &hvp.lo[j],
                       0 if at == 0 else at * (v[i] - state.p_v[j]) * (d + at))
    state.hvp = hvp


cdef void quadratic_emit_product(const Job* job, const Tile* tile, const Quadratic* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef const real* v = scratch + TILE_VECTOR
    cdef real* to = scratch + TILE_OUT
    cdef Brackets brackets = state.brackets
    cdef double at, bracket, lo
    cdef Py_ssize_t c, i
    cdef int j
    tile_vector(job, tile, &state.columns, <const real*>(scratch + TILE_SLOPE), e, scratch + TILE_VECTOR, scratch + TILE_EV)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            at = e[i]
            bracket = bracket_of(e[0], &brackets, j, at, t[i], &lo)
            bracket = SL_FMA(at, brackets.total[j], bracket + lo)
            bracket = (v[i] - state.p_v[j]) * bracket - state.hvp.hi[j]
            to[i] = 0 if at == 0 else scaled_bracket(at, bracket, 0, state.cube[j], state.cube_lo[j], e[0])
    write_tile(<const real*>to, &job.g, tile)


cdef void quadratic_product(const Job* job, Tile* tile, Quadratic* state, real* scratch) noexcept nogil:
    cdef Py_ssize_t index
    cdef int j
    for index in range(tile.tiles):
        if not place_tile(job, index, tile):
            return
        quadratic_open_tile(job, tile, state, scratch)
        sum_exponentials(<const real*>(scratch + TILE_EXPS), tile.lines, &state.columns.sums)
        tile_vector(job, tile, &state.columns, <const real*>(scratch + TILE_SLOPE), <const real*>(scratch + TILE_EXPS),
                    scratch + TILE_VECTOR, scratch + TILE_EV)
        sum_split(<const real*>(scratch + TILE_EXPS), <const real*>(scratch + TILE_EV), tile.lines, &state.ev)
    quadratic_finish_exponentials(job, tile, state, scratch[0])
    reduce_split(&state.ev, tile.wide)
    for j in range(GROUP):
        state.p_v[j] = (state.ev.rest.hi[j] + state.ev.max.hi[j]) * (1 / state.columns.total[j])
    for index in range(tile.tiles):
        if not quadratic_return_to(job, index, tile, state, scratch):
            return
        sum_differences(tile, state, <const real*>scratch)
        quadratic_sum_hvp(job, tile, state, scratch)
    quadratic_finish_sums(tile, state, scratch[0])
    reduce_columns(&state.hvp, tile.wide)
    for index in range(tile.tiles):
        if not quadratic_return_to(job, index, tile, state, scratch):
            return
        quadratic_emit_product(job, tile, state, scratch)


cdef void quadratic_cost_of_tile(const Job* job, Tile* tile, real* scratch) noexcept nogil:
    cdef Quadratic state
    quadratic_open(job, tile, &state, scratch)
    if tile.want & WANT_PRODUCT:
        quadratic_product(job, tile, &state, scratch)
    else:
        quadratic_values(job, tile, &state, scratch)


cdef void softmax_mse_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    softmax_rows(job, start, stop, quadratic_cost_of_indices[real], quadratic_cost_of_tile[real], total, scratch)


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
softmax_mse = loss_kernel(softmax_mse_kernel[float], softmax_mse_kernel[double], rowwise=True)

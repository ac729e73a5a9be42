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
# uses _groups: Group as_columns each_row group_ahead open_group softmax_rows sum_tiles
# uses _job: Job loss_kernel
# uses _math: SL_FMA product product_error real remainder_of row_scale two_sum unit
# uses _options: WANT_GRAD WANT_HESS WANT_PRODUCT WANT_STATS
# uses _pieces: Row add_piece open_row piece_exponentials place_piece return_to_piece store_class take_out
# uses _pieces: write_piece
# uses _rows: Columns broadcast column_exponentials columns_of for_products inverse_square open_columns
# uses _rows: return_to_tile tile_vector to_real write_product
# uses _stats: Statistics start_statistics tile_probabilities
# uses _sums: GROUP Pairs Split Sum accumulate clear_pairs clear_split column_sums copy_pairs copy_split
# uses _sums: few_classes padded reduce_columns reduce_split sum_split_squares
# uses _tiles: TILE_EXPS TILE_OUT TILE_TARGETS TILE_VECTOR Tile write_columns write_tile


cdef inline double others_of(real hint, double e, double sum_max, double sum_rest) noexcept nogil:
    if real is float:
        return (sum_max - e) + sum_rest     # float64 has digits to spare
    else:
        return remainder_of(e, sum_max, sum_rest)


cdef inline double cubic_scale(
    double weight, double divisor, double divisor_lo, double total, double total_lo, double* lo
) noexcept nogil:
    """weight / ((divisor + divisor_lo) * (total + total_lo)**3)."""
    cdef double rest
    cdef double square = product(total, total_lo, total, total_lo, &rest)
    cdef double cube = product(square, rest, total, total_lo, &rest)
    cdef double scale
    cube = product(cube, rest, divisor, divisor_lo, &rest)
    scale = weight / cube
    lo[0] = (-product_error(scale, cube, weight) - scale * rest) / cube
    return scale


cdef inline real scaled_bracket(
    double e, double bracket, double bracket_lo, double scale, double scale_lo, real hint
) noexcept nogil:
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
    Pairs sum
    Pairs squares
    double target[GROUP]    # the target's exponential
    double max[GROUP]       # the maximum's, 0 if it is the target


cdef struct Gradients:
    # Per column: that of an exponential e is e (e total - level) scale.
    Pairs total
    Pairs level
    Pairs scale
    double target[GROUP]    # of target and maximum
    double max[GROUP]


cdef inline double finish_column(
    real hint, const RestSums* row, int j, double weight, double divisor, Gradients* out
) noexcept nogil:
    """Loss of a row, and what its gradient is made from."""
    cdef double others, others_lo, near, near_lo, lo, q, q_lo, loss, loss_lo
    cdef double e = row.target[j]
    cdef double e_max = row.max[j]
    if real is float:
        others = e_max + row.sum.hi[j]
        q = e_max * e_max + row.squares.hi[j]
        out.total.hi[j] = others + e
        out.total.lo[j] = out.level.lo[j] = out.scale.lo[j] = 0
        out.level.hi[j] = q - e * others
        out.scale.hi[j] = weight / (divisor * out.total.hi[j] * out.total.hi[j] * out.total.hi[j])
        loss = others * others + q
        out.target[j] = -e * loss * out.scale.hi[j]
        near = e_max * (2 * e + row.sum.hi[j]) + (e * row.sum.hi[j] - row.squares.hi[j])
        out.max[j] = e_max * near * out.scale.hi[j]
        return 0.5 * loss / (out.total.hi[j] * out.total.hi[j])
    else:
        others = two_sum(e_max, row.sum.hi[j], &others_lo)
        others_lo += row.sum.lo[j]
        out.total.hi[j] = two_sum(others, e, &out.total.lo[j])
        out.total.lo[j] += others_lo
        q = two_sum(e_max * e_max, row.squares.hi[j], &q_lo)
        q_lo += row.squares.lo[j]
        near = product(e, <double>0, others, others_lo, &near_lo)
        out.level.hi[j] = two_sum(q, -near, &out.level.lo[j])
        out.level.lo[j] += q_lo - near_lo
        near = product(others, others_lo, others, others_lo, &near_lo)
        loss = two_sum(near, q, &loss_lo)
        loss_lo += near_lo + q_lo
        out.scale.hi[j] = cubic_scale(weight, divisor, 0, out.total.hi[j], out.total.lo[j], &out.scale.lo[j])
        out.target[j] = -scaled_bracket(e, loss, loss_lo, out.scale.hi[j], out.scale.lo[j], <double>0)
        near = two_sum(2 * e, row.sum.hi[j], &near_lo)
        near_lo += row.sum.lo[j]
        others = product(e, <double>0, row.sum.hi[j], row.sum.lo[j], &others_lo)
        others = two_sum(others, -row.squares.hi[j], &lo)
        others_lo += lo - row.squares.lo[j]
        near = two_sum(e_max * near, others, &lo)
        out.max[j] = scaled_bracket(e_max, near, lo + others_lo + e_max * near_lo,
                                    out.scale.hi[j], out.scale.lo[j], <double>0)
        q = product(out.total.hi[j], out.total.lo[j], out.total.hi[j], out.total.lo[j], &q_lo)
        return row_scale(0.5 * loss, 1, q, q_lo) + 0.5 * loss_lo / q


cdef inline real gradient_entry(real e, const Gradients* row, int j) noexcept nogil:
    cdef double v = e
    cdef double at, bracket, lo = 0
    if real is float:
        bracket = SL_FMA(v, row.total.hi[j], -row.level.hi[j])
    else:
        at = v * row.total.hi[j]
        bracket = two_sum(at, -row.level.hi[j], &lo)
        lo += product_error(v, row.total.hi[j], at) + SL_FMA(v, row.total.lo[j], -row.level.lo[j])
    return scaled_bracket(v, bracket, lo, row.scale.hi[j], row.scale.lo[j], e)


cdef void last_maxima(const real* s, Py_ssize_t k, int32_t* at) noexcept nogil:
    """Of each column the last class whose exponential is UNIT; 0 if there is none."""
    cdef real e_max = unit(s[0])
    cdef real last[GROUP]
    cdef real here = 0
    cdef Py_ssize_t c, j
    for j in range(GROUP):
        last[j] = 0
    for c in range(1, k):
        here += 1
        for j in range(GROUP):
            last[j] = here if s[c * GROUP + j] == e_max else last[j]
    for j in range(GROUP):
        at[j] = <int32_t>last[j]


cdef void quadratic_columns(Group* group, real* s) noexcept nogil:
    """Losses and gradient of a group as columns."""
    cdef int32_t at[GROUP]
    cdef bint limit[GROUP]
    cdef real m[GROUP]
    cdef RestSums rest
    cdef Gradients out
    cdef real e_max = unit(s[0])
    cdef sl_ahead ahead
    cdef real target[GROUP]
    cdef real found[GROUP]
    cdef Py_ssize_t c, k = group.job.k
    cdef int j, apart
    open_group(group, s, m, limit)
    column_exponentials(
        <const real*>s, s, k, <const real*>m, for_products(m[0]), 1, group_ahead(group, &ahead))
    last_maxima(<const real*>s, k, at)
    # Without a branch: whether the maximum is the target can not be foreseen, which took 1.3 to 1.8 times the
    # time of 3 classes. Where no other class is to be taken out, it is the target again. All is read before
    # anything is written: a load waits for stores that may have been to its place.
    for j in range(GROUP):
        target[j] = s[group.y[j] * GROUP + j]
        found[j] = s[at[j] * GROUP + j]
    for j in range(GROUP):
        apart = (target[j] != e_max) & (found[j] == e_max)
        at[j] = at[j] if apart else <int32_t>group.y[j]
        rest.target[j] = target[j]
        rest.max[j] = found[j] if apart else 0
    for j in range(GROUP):
        s[group.y[j] * GROUP + j] = s[at[j] * GROUP + j] = 0
    column_sums(<const real*>s, k, False, False, &rest.sum)
    column_sums(<const real*>s, k, True, False, &rest.squares)
    for j in range(GROUP):
        group.loss[j] = finish_column(m[0], &rest, j, group.weight[j], group.job.divisor, &out)
    if not group.job.want & WANT_GRAD:
        return
    for c in range(k):
        for j in range(GROUP):
            s[c * GROUP + j] = gradient_entry(s[c * GROUP + j], &out, j)
    for j in range(GROUP):
        s[at[j] * GROUP + j] = <real>out.max[j]
        s[group.y[j] * GROUP + j] = <real>(0 if group.weight[j] == 0 else out.target[j])
    write_columns(<const real*>s, &group.job.g, group.start, group.count, k)


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


cdef Py_ssize_t sum_pieces(Row* row, RestSums* rest, real* s) noexcept nogil:
    """Add up a row, target and maximum apart; returns the class of the maximum, -1 where it is the target."""
    cdef Py_ssize_t index, found, at = -1
    cdef bint search = row.x_target != row.m
    rest.sum.hi[0] = rest.sum.lo[0] = rest.squares.hi[0] = rest.squares.lo[0] = 0
    rest.target[0] = rest.max[0] = 0
    for index in range(row.pieces):
        if not place_piece(index, row):
            return -1
        piece_exponentials(row, s)
        if row.first <= row.y < row.first + row.n:
            rest.target[0] = take_out(s + (row.y - row.first))
        if few_classes(s[0], row.job.k):
            # the class that `quadratic_columns` finds
            found = last_maximum(<const real*>s, row.n) if rest.target[0] != unit(s[0]) else row.n
        else:
            found = first_maximum(<const real*>s, padded(row.n)) if search else row.n
        if found < row.n:
            search = False
            at = row.first + found
            rest.max[0] = take_out(s + found)
        add_piece(row, <const real*>s, False, &rest.sum.hi[0], &rest.sum.lo[0])
        add_piece(row, <const real*>s, True, &rest.squares.hi[0], &rest.squares.lo[0])
        if row.cached:
            write_piece(row, <const real*>s)
    return at


cdef void quadratic_row(Row* row, Group* group, int j, real* s) noexcept nogil:
    """Loss and gradient of a row; of few classes with the bits of `quadratic_columns`."""
    cdef RestSums rest
    cdef Gradients out
    cdef const real* e
    cdef real* to
    cdef Py_ssize_t index, at
    row.how = for_products(s[0])
    open_row(row, s)
    at = sum_pieces(row, &rest, s)
    group.loss[j] = finish_column(s[0], &rest, 0, row.weight, row.job.divisor, &out)
    if row.grad == NULL:
        return
    for index in range(row.pieces):
        if not place_piece(index, row):
            return
        e = return_to_piece(row, s)
        to = <real*>row.grad + row.first if row.in_place else s
        if e == to:
            gradient_entries(<const real*>to, row.n, &out, to)
        else:
            gradient_entries(e, row.n, &out, to)
        if not row.in_place:
            write_piece(row, <const real*>s)
    store_class(row, row.y, <real>out.target[0])
    if at >= 0:
        store_class(row, at, <real>out.max[0])


cdef void index_quadratic(Group* group, real* s) noexcept nogil:
    if as_columns(s[0], group):
        quadratic_columns(group, s)
    else:
        each_row(group, quadratic_row[real], s)


# ---- all else, in tiles ---------------------------------------------------------------------------

cdef struct Brackets:
    # What b sum**2 is made from.
    double sum_max[GROUP]
    double sum_rest[GROUP]
    Pairs total
    double ed_max[GROUP]
    double ed_rest[GROUP]
    double ed_lo[GROUP]


cdef struct Quadratic:
    # What is known of each column beside its exponentials.
    Pairs cube                  # weight / (divisor sum**3)
    Pairs fourth                # weight / sum**4
    double p_v[GROUP]           # p.v
    Pairs value                 # (d sum)**2
    Split ed                    # e d sum
    Split ee                    # e**2
    Pairs hvp                   # e f (d + p) sum
    Columns columns


cdef inline void load_brackets(const Quadratic* state, Brackets* brackets) noexcept nogil:
    cdef int j
    to_real(state.columns.sum_max, brackets.sum_max)
    to_real(state.columns.sum_rest, brackets.sum_rest)
    to_real(state.ed.max.hi, brackets.ed_max)
    to_real(state.ed.rest.hi, brackets.ed_rest)
    for j in range(GROUP):
        brackets.ed_lo[j] = state.ed.rest.lo[j] + state.ed.max.lo[j]
    copy_pairs(&state.columns.total, &brackets.total)


cdef inline double scaled_difference(double e, double t, double others) noexcept nogil:
    """(p - t) sum."""
    return SL_FMA(e, 1 - t, -(t * others))


cdef inline double bracket_of(
    real hint, const Brackets* columns, int j, double e, double t, double* lo
) noexcept nogil:
    """b sum**2; apart for the one class whose exponential is UNIT."""
    cdef double e_max = unit(hint)
    cdef double others = others_of(hint, e, columns.sum_max[j], columns.sum_rest[j])
    cdef double d = scaled_difference(e, t, others)
    cdef bint apart = (columns.sum_max[j] == e_max) & (e == e_max)
    cdef double factor = others if apart else columns.total.hi[j]
    cdef double ed_max = 0 if apart else columns.ed_max[j]
    cdef double at, bracket, max_lo, rest_lo
    if real is float:
        lo[0] = 0
        return SL_FMA(d, factor, -ed_max) - columns.ed_rest[j]
    else:
        at = d * factor
        bracket = two_sum(two_sum(at, -ed_max, &max_lo), -columns.ed_rest[j], &rest_lo)
        lo[0] = (product_error(d, factor, at) + (max_lo + rest_lo - columns.ed_lo[j])
                 + (0 if apart else d * columns.total.lo[j]))
        return bracket


cdef inline double second_of(
    real hint,
    const Brackets* columns,
    int j,
    double e,
    double bracket,
    double bracket_lo,
    double ee_rest,
    double* lo,
) noexcept nogil:
    """Second derivative times sum**4 / e."""
    cdef double others, others_lo, less, own, own_lo, second, sum_lo
    if real is float:
        lo[0] = 0
        others = others_of(hint, e, columns.sum_max[j], columns.sum_rest[j])
        return SL_FMA(bracket, others - e, e * SL_FMA(others, others, ee_rest))
    else:
        others = two_sum(columns.total.hi[j], -e, &others_lo)
        others = two_sum(others, others_lo + columns.total.lo[j], &others_lo)
        less = two_sum(others, -e, &sum_lo)
        second = product(bracket, bracket_lo, less, sum_lo + others_lo, lo)
        own = product(others, others_lo, others, others_lo, &own_lo)
        own = two_sum(own, ee_rest, &sum_lo)
        own = product(own, own_lo + sum_lo, e, <double>0, &own_lo)
        second = two_sum(second, own, &sum_lo)
        lo[0] += sum_lo + own_lo
        return second


cdef void finish_powers(const Tile* tile, Quadratic* state) noexcept nogil:
    cdef const Columns* columns = &state.columns
    cdef double total, lo
    cdef int j
    for j in range(columns_of(tile.wide)):
        total = columns.total.hi[j]
        lo = columns.total.lo[j]
        state.cube.hi[j] = cubic_scale(columns.weight[j], tile.job.divisor, 0, total, lo, &state.cube.lo[j])
        if tile.want & WANT_HESS:
            state.fourth.hi[j] = cubic_scale(columns.weight[j], total, lo, total, lo, &state.fourth.lo[j])
        if tile.want & WANT_PRODUCT:
            state.p_v[j] = (columns.ev.rest.hi[j] + columns.ev.max.hi[j]) * (1 / total)
    broadcast(state.cube.hi, tile.wide)
    broadcast(state.cube.lo, tile.wide)
    broadcast(state.fourth.hi, tile.wide)
    broadcast(state.fourth.lo, tile.wide)
    broadcast(state.p_v, tile.wide)


cdef void add_differences(const Tile* tile, Quadratic* state, const real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef Pairs value
    cdef Split ed
    cdef double sum_max[GROUP]
    cdef double sum_rest[GROUP]
    cdef double e_max = unit(e[0])
    cdef double v, d
    cdef Py_ssize_t c, j
    copy_pairs(&state.value, &value)
    copy_split(&state.ed, &ed)
    to_real(state.columns.sum_max, sum_max)
    to_real(state.columns.sum_rest, sum_rest)
    for c in range(tile.lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            d = scaled_difference(v, t[c * GROUP + j], others_of(e[0], v, sum_max[j], sum_rest[j]))
            accumulate(e[0], &value.hi[j], &value.lo[j], d * d)
            accumulate(e[0], &ed.rest.hi[j], &ed.rest.lo[j], v * d if v < e_max else 0)
            accumulate(e[0], &ed.max.hi[j], &ed.max.lo[j], 0 if v < e_max else v * d)
    copy_pairs(&value, &state.value)
    copy_split(&ed, &state.ed)


cdef void add_hvp(const Tile* tile, Quadratic* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef const real* v = scratch + TILE_VECTOR
    cdef const Columns* columns = &state.columns
    cdef Pairs hvp
    cdef double at, d
    cdef Py_ssize_t c, i, j
    copy_pairs(&state.hvp, &hvp)
    tile_vector(tile, columns, scratch)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            at = e[i]
            d = scaled_difference(at, t[i], others_of(e[0], at, columns.sum_max[j], columns.sum_rest[j]))
            accumulate(e[0], &hvp.hi[j], &hvp.lo[j], 0 if at == 0 else at * (v[i] - state.p_v[j]) * (d + at))
    copy_pairs(&hvp, &state.hvp)


cdef bint sum_quadratic(Tile* tile, Quadratic* state, real* scratch) noexcept nogil:
    """The second time through the tiles: what is summed with the total at hand. False where the call is to
    end."""
    cdef Py_ssize_t index
    clear_pairs(&state.value)
    clear_split(&state.ed)
    if tile.want & WANT_HESS:
        clear_split(&state.ee)
    if tile.want & WANT_PRODUCT:
        clear_pairs(&state.hvp)
    for index in range(tile.tiles):
        if not return_to_tile(index, tile, &state.columns, scratch):
            return False
        add_differences(tile, state, <const real*>scratch)
        if tile.want & WANT_HESS:
            sum_split_squares(<const real*>(scratch + TILE_EXPS), tile.lines, &state.ee)
        if tile.want & WANT_PRODUCT:
            add_hvp(tile, state, scratch)
    reduce_columns(&state.value, tile.wide)
    reduce_split(&state.ed, tile.wide)
    if tile.want & WANT_HESS:
        reduce_split(&state.ee, tile.wide)
    if tile.want & WANT_PRODUCT:
        reduce_columns(&state.hvp, tile.wide)
    return True


cdef bint finish_quadratic(Tile* tile, Quadratic* state, real* scratch) noexcept nogil:
    """Losses, and all that is known of the columns before results are formed; False where the call is to
    end."""
    cdef int j
    finish_powers(tile, state)
    if not sum_quadratic(tile, state, scratch):
        return False
    for j in range(columns_of(tile.wide)):
        tile.loss[j] = 0.5 * state.value.hi[j] * inverse_square(&state.columns, j, 1, scratch[0])
    return True


# ---- loss, gradient, Hessian, statistics ----------------------------------------------------------

cdef void quadratic_emit_gradient(const Tile* tile, const Quadratic* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef real* to = scratch + TILE_OUT
    cdef Brackets brackets
    cdef double cube[GROUP]
    cdef double cube_lo[GROUP]
    cdef double bracket, lo
    cdef Py_ssize_t c, i, j
    to_real(state.cube.hi, cube)
    to_real(state.cube.lo, cube_lo)
    load_brackets(state, &brackets)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            bracket = bracket_of(e[0], &brackets, j, e[i], t[i], &lo)
            to[i] = scaled_bracket(e[i], bracket, lo, cube[j], cube_lo[j], e[0])
    write_tile(<const real*>to, &tile.job.g, tile)


cdef void quadratic_emit_hessian(const Tile* tile, const Quadratic* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef real* to = scratch + TILE_OUT
    cdef Brackets brackets
    cdef double e_max = unit(e[0])
    cdef double v, bracket, second, ee_rest, lo
    cdef Py_ssize_t c, i, j
    load_brackets(state, &brackets)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            v = e[i]
            bracket = bracket_of(e[0], &brackets, j, v, t[i], &lo)
            ee_rest = (SL_FMA(-v, v, state.ee.rest.hi[j]) + state.ee.max.hi[j] if v < e_max
                       else SL_FMA(-v, v, state.ee.max.hi[j]) + state.ee.rest.hi[j])
            second = second_of(e[0], &brackets, j, v, bracket, lo, ee_rest, &lo)
            to[i] = scaled_bracket(v, second, lo, state.fourth.hi[j], state.fourth.lo[j], e[0])
    write_tile(<const real*>to, &tile.job.h, tile)


cdef void quadratic_values(Tile* tile, Quadratic* state, real* scratch) noexcept nogil:
    cdef Statistics statistics
    cdef Py_ssize_t index
    if tile.want & WANT_STATS:
        start_statistics(&statistics)
    if not sum_tiles(tile, &state.columns, &statistics, scratch):
        return
    if not finish_quadratic(tile, state, scratch):
        return
    if not (tile.want & (WANT_GRAD | WANT_HESS) or tile.job.wants_probabilities):
        return
    for index in range(tile.tiles):
        if not return_to_tile(index, tile, &state.columns, scratch):
            return
        if tile.job.wants_probabilities:
            tile_probabilities(&tile.job.p, tile, &state.columns, scratch)
        if tile.want & WANT_HESS:
            quadratic_emit_hessian(tile, state, scratch)
        if tile.want & WANT_GRAD:
            quadratic_emit_gradient(tile, state, scratch)


# ---- Hessian times a vector -----------------------------------------------------------------------

cdef void quadratic_emit_product(const Tile* tile, const Quadratic* state, real* scratch) noexcept nogil:
    cdef const real* e = scratch + TILE_EXPS
    cdef const real* t = scratch + TILE_TARGETS
    cdef const real* v = scratch + TILE_VECTOR
    cdef real* to = scratch + TILE_OUT
    cdef Brackets brackets
    cdef double at, bracket, lo
    cdef Py_ssize_t c, i, j
    tile_vector(tile, &state.columns, scratch)
    load_brackets(state, &brackets)
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            at = e[i]
            bracket = bracket_of(e[0], &brackets, j, at, t[i], &lo)
            bracket = SL_FMA(at, brackets.total.hi[j], bracket + lo)
            bracket = (v[i] - state.p_v[j]) * bracket - state.hvp.hi[j]
            to[i] = 0 if at == 0 else scaled_bracket(at, bracket, 0, state.cube.hi[j], state.cube.lo[j], e[0])
    write_product(tile, &state.columns, to)


cdef void quadratic_product(Tile* tile, Quadratic* state, real* scratch) noexcept nogil:
    cdef Py_ssize_t index
    if not sum_tiles(tile, &state.columns, NULL, scratch):
        return
    if not finish_quadratic(tile, state, scratch):
        return
    for index in range(tile.tiles):
        if not return_to_tile(index, tile, &state.columns, scratch):
            return
        quadratic_emit_product(tile, state, scratch)


cdef void tile_quadratic(Tile* tile, real* scratch) noexcept nogil:
    cdef Quadratic state
    state.columns.how = for_products(scratch[0])
    state.columns.linear = False
    open_columns(tile, &state.columns, scratch)
    if tile.want & WANT_PRODUCT:
        quadratic_product(tile, &state, scratch)
    else:
        quadratic_values(tile, &state, scratch)


cdef void softmax_mse_kernel(
    const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch
) noexcept nogil:
    softmax_rows(job, start, stop, index_quadratic[real], tile_quadratic[real], total, scratch)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 grad 3.030 at 0x1.456ceep+5, 0x1.07b68ap-3, target 0
#   float32 hess 3.030 at 0x1.456ceep+5, 0x1.07b68ap-3, target 0
#   float32 loss 3.030 at 0x1.456ceep+5, 0x1.07b68ap-3, target 0
#   float32 soft grad 2.408 in a row of 1000
#   float32 soft hess 3.389 in a row of 100
#   float32 soft loss 0.747 in a row of 3
#   float64 grad 2.681 in a row of 3
#   float64 hess 3.762 in a row of 1000
#   float64 loss 3.056 in a row of 3
#   float64 soft grad 3.083 in a row of 1000
#   float64 soft hess 3.687 in a row of 1000
#   float64 soft loss 2.265 in a row of 10
softmax_mse = loss_kernel(softmax_mse_kernel[float], softmax_mse_kernel[double], rowwise=True)

# A row of class indices by itself, PIECE logits at a time: in and out of cache once, however the caller's
# array lies in memory. The columns of a piece are lanes.
#
# uses _blocks: stopped
# uses _job: Job SL_BRIEF
# uses _logits: indicator_logit
# uses _math: SL_INFINITY is_positive_infinity real two_sum
# uses _operand: gather has_rows kind_of scatter
# uses _rows: is_compensated load_logits padded_copy row_exponentials rows_ahead sl_compensated_row
# uses _sums: GROUP PIECE few_classes lane_squares ordered_sum padded sum_in_lanes
# uses _tiles: TILE_LOST TILE_SLOPE

cdef extern from "sl_columns.h":
    float sl_row_maximum_f32(const float*, Py_ssize_t, float) noexcept nogil
    double sl_row_maximum_f64(const double*, Py_ssize_t, double) noexcept nogil
    double sl_lost_sum(const float*, Py_ssize_t, bint) noexcept nogil
    void sl_clear_padding_f32(float*, Py_ssize_t) noexcept nogil
    void sl_clear_padding_f64(double*, Py_ssize_t) noexcept nogil
    void sl_scale_f32(const float*, Py_ssize_t, float, float*) noexcept nogil
    void sl_scale_f64(const double*, Py_ssize_t, double, double*) noexcept nogil


cdef struct Row:
    const Job* job
    const char* x
    char* grad              # NULL where none is wanted
    Py_ssize_t y            # target class
    double weight
    int how                 # exponentials are computed, see sl_columns_of.h
    bint cached             # exponentials of several pieces wait in the gradient's place, if it can hold them
    bint in_place           # the gradient is contiguous, and of the type of the arithmetic
    double m                # maximum
    bint limit              # the row has a +inf and stands for its limit
    double x_target         # the target's logit
    double slope_target     # and with a cap its derivative
    Py_ssize_t pieces
    # the piece that is in scratch
    Py_ssize_t first        # first class
    Py_ssize_t n            # classes


cdef inline bint place_piece(Py_ssize_t index, Row* row) noexcept nogil:
    """Go to a piece of the row; False where the call is to end."""
    row.first = index * PIECE
    row.n = min(<Py_ssize_t>PIECE, row.job.k - row.first)
    return row.pieces == 1 or not stopped(row.job)


cdef void load_limited(const Row* row, Py_ssize_t first, Py_ssize_t n, real* s) noexcept nogil:
    cdef Py_ssize_t i
    load_logits(row.job, row.x, first, n, s, s + TILE_SLOPE)
    if row.limit:
        for i in range(n):
            s[i] = indicator_logit(s[i])


cdef const real* logits_of_piece(const Row* row, real* s) noexcept nogil:
    """Where the logits of a piece can be read: where they lie, if they are contiguous and used as they are,
    or in s."""
    if (has_rows(&row.job.x, s[0])
            and row.job.o.logit_clip == SL_INFINITY and row.job.o.softcap == 0 and not row.limit):
        return <const real*>row.x + row.first
    load_limited(row, row.first, row.n, s)
    return s


cdef const real* view_piece(const Row* row, real* s) noexcept nogil:
    """Logits of a piece, of which the last n % GROUP, padded with -inf, are in s wherever the others are."""
    cdef Py_ssize_t whole = row.n & ~(GROUP - 1)
    cdef const real* source
    if row.pieces == 1:
        load_limited(row, row.first, row.n, s)
        return s
    source = logits_of_piece(row, s)
    if source != s:
        padded_copy(source + whole, row.n - whole, s + whole)
    return source


cdef inline real row_maximum(const real* x, Py_ssize_t n, real m) noexcept nogil:
    if real is float:
        return sl_row_maximum_f32(x, n, m)
    else:
        return sl_row_maximum_f64(x, n, m)


cdef inline real maximum_of_pieces(Row* row, Py_ssize_t pieces, real* s) noexcept nogil:
    """The maximum of the first pieces of a row; of no use where the call is to end."""
    cdef const real* source
    cdef real m = -SL_INFINITY
    cdef Py_ssize_t index, n
    for index in range(pieces):
        if not place_piece(index, row):
            break
        source = view_piece(row, s)
        n = 0 if source == s else row.n & ~(GROUP - 1)
        if n:
            m = row_maximum(source, n, m)
        m = row_maximum(<const real*>(s + n), padded(row.n) - n, m)
    return m


cdef inline void place_row(Row* row, real hint) noexcept nogil:
    """How a row is gone through."""
    row.pieces = (row.job.k + PIECE - 1) // PIECE
    # the slopes of a cap come with the logits
    row.cached = (row.grad != NULL and row.pieces > 1 and row.job.g.kind == kind_of(hint)
                  and row.job.o.softcap == 0)
    row.in_place = has_rows(&row.job.g, hint)


cdef void open_row(Row* row, real* s) noexcept nogil:
    """The maximum of a row and the logit of its target. A row of one piece is left in s."""
    place_row(row, s[0])
    row.limit = False
    row.m = maximum_of_pieces(row, row.pieces, s)
    if is_positive_infinity(row.m):
        row.limit = True
        row.m = 0
        if row.pieces == 1:
            load_limited(row, 0, row.n, s)
    if row.pieces > 1:
        load_limited(row, row.y, 1, s)
    row.x_target = s[0 if row.pieces > 1 else row.y]
    if row.job.o.softcap != 0:
        row.slope_target = s[TILE_SLOPE + (0 if row.pieces > 1 else row.y)]


cdef inline void exponentials_of_piece(
    const Row* row, const real* x, Py_ssize_t n, const sl_ahead* ahead, real* e, real* lost
) noexcept nogil:
    if real is float:
        if is_compensated(row.how, e[0]):
            sl_compensated_row(x, e, n, <float>row.m, lost, ahead)
            return
    row_exponentials(x, e, n, <real>row.m, row.how, row.job.exponent_scale, ahead)


cdef void piece_exponentials(const Row* row, real* s) noexcept nogil:
    """The exponentials of a piece in s, where the logits of a row of one piece are already, and in TILE_LOST
    what they lack, if they come with that."""
    cdef Py_ssize_t lines = 0
    cdef const real* source = s
    cdef real* lost = s + TILE_LOST
    cdef sl_ahead ahead
    cdef const Job* job = row.job
    cdef sl_ahead* next = rows_ahead(
        job, row.x - job.x.data + row.first * job.x.inner, job.k * job.x.inner, &ahead)
    if row.pieces > 1:
        source = view_piece(row, s)
    if source != s:
        lines = row.n // GROUP
        exponentials_of_piece(row, source, lines * GROUP, next, s, lost)
    s += lines * GROUP
    lost += lines * GROUP
    exponentials_of_piece(row, <const real*>s, row.n - lines * GROUP, next, s, lost)
    if real is float:
        sl_clear_padding_f32(s, row.n - lines * GROUP)
        if is_compensated(row.how, s[0]):
            sl_clear_padding_f32(lost, row.n - lines * GROUP)
    else:
        sl_clear_padding_f64(s, row.n - lines * GROUP)


cdef inline real take_out(real* at) noexcept nogil:
    cdef real value = at[0]
    at[0] = 0
    return value


cdef inline double lost_by_others(const Row* row, Py_ssize_t k, const real* s) noexcept nogil:
    """What the sum of a piece lacks, whose target has been taken out of the exponentials."""
    cdef const real* lost = s + TILE_LOST
    cdef double part = 0
    if real is float:
        part = sl_lost_sum(lost, row.n, few_classes(s[0], k))
        if row.first <= row.y < row.first + row.n:
            part -= lost[row.y - row.first]
    return part


cdef inline double piece_sum(
    const Row* row, Py_ssize_t k, const real* s, bint squares, double* lo
) noexcept nogil:
    """Sum of a piece of a row of k classes, or of its squares: of few classes in the order of a column."""
    cdef double part
    if few_classes(s[0], k):
        part = ordered_sum(s, row.n, squares, lo)
    elif squares:
        part = lane_squares(s, padded(row.n), lo)
    else:
        part = sum_in_lanes(s, padded(row.n), row.how == SL_BRIEF, lo)
    if row.how == SL_BRIEF:
        lo[0] = 0
    if is_compensated(row.how, s[0]):
        part += lost_by_others(row, k, s)
    return part


cdef inline void add_piece(
    const Row* row, const real* s, bint squares, double* hi, double* lo
) noexcept nogil:
    cdef double part_lo, error
    cdef double part = piece_sum(row, row.job.k, s, squares, &part_lo)
    hi[0] = two_sum(hi[0], part, &error)
    lo[0] += part_lo + error


cdef inline void write_piece(const Row* row, const real* s) noexcept nogil:
    scatter(s, row.grad + row.first * row.job.g.inner, row.job.g.kind, row.job.g.inner, row.n)


cdef const real* return_to_piece(const Row* row, real* s) noexcept nogil:
    """Where the exponentials of a piece are that has been gone through once."""
    cdef char* cached = row.grad + row.first * row.job.g.inner
    if row.cached and row.in_place:
        return <const real*>cached
    if row.cached:
        gather(cached, row.job.g.kind, row.job.g.inner, row.n, s)
    elif row.pieces > 1:
        piece_exponentials(row, s)
    return s


cdef inline void store_class(const Row* row, Py_ssize_t c, real value) noexcept nogil:
    cdef char* to = row.grad + c * row.job.g.inner
    if row.job.g.kind == kind_of(value):
        # a vector of it, as is stored below, would be waited for
        (<real*>to)[0] = value
    else:
        scatter(<const real*>&value, to, row.job.g.kind, row.job.g.inner, 1)


cdef inline void scale_values(
    const real* values, Py_ssize_t n, double factor, bint extreme, real* to
) noexcept nogil:
    cdef Py_ssize_t i
    if extreme:
        for i in range(n):
            to[i] = <real>(values[i] * factor)
    elif real is float:
        sl_scale_f32(values, n, <float>factor, to)
    else:
        sl_scale_f64(values, n, factor, to)


cdef inline void bend_values(
    const Job* job, const real* values, const real* slope, Py_ssize_t n, double factor, real* to
) noexcept nogil:
    """Scale, where the logits are capped, to gradients by them."""
    cdef double scale = job.logit_scale
    cdef Py_ssize_t i
    for i in range(n):
        to[i] = <real>(values[i] * factor * (scale * slope[i]))


cdef inline void scale_piece(
    const Row* row, const real* e, double factor, bint extreme, real* s
) noexcept nogil:
    """Scale the exponentials of a piece to its results."""
    cdef real* to = <real*>row.grad + row.first if row.in_place else s
    if row.job.o.softcap != 0:
        bend_values(row.job, e, <const real*>(s + TILE_SLOPE), row.n, factor, to)
    else:
        scale_values(e, row.n, factor, extreme, to)
    if not row.in_place:
        write_piece(row, <const real*>s)


cdef bint scale_row(Row* row, double factor, bint extreme, real* s) noexcept nogil:
    """Scale the exponentials of a row to its results; False where the call is to end."""
    cdef Py_ssize_t index
    for index in range(row.pieces):
        if not place_piece(index, row):
            return False
        scale_piece(row, return_to_piece(row, s), factor, extreme, s)
    return True

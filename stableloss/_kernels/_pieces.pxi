# A row of class indices by itself, PIECE logits at a time: in and out of cache once, however the caller's
# array lies in memory. The columns of a piece are lanes.
#
# uses _blocks: stopped
# uses _job: Job
# uses _logits: indicator_logit
# uses _math: SL_INFINITY is_positive_infinity real two_sum
# uses _operand: gather kind_of scatter
# uses _rows: column_maxima load_logits row_exponentials rows_ahead scale_probabilities
# uses _sums: GROUP NARROW PIECE lane_squares lane_sum maximum_of ordered_sum padded

cdef struct Row:
    const Job* job
    const char* x
    char* grad              # NULL where none is wanted
    Py_ssize_t y            # target class
    double weight
    bint compensated        # exponentials for products of them, see sl_columns_of.h
    bint cached             # exponentials of several pieces wait in the gradient's place, if it can hold them
    bint in_place           # the gradient is contiguous, and of the type of the arithmetic
    double m                # maximum
    bint limit              # the row has a +inf and stands for its limit
    double x_target         # the target's logit
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
    load_logits(row.job, row.x, first, n, s, s)     # plain losses have no cap, and so no slope
    if row.limit:
        for i in range(n):
            s[i] = indicator_logit(s[i])


cdef const real* view_piece(const Row* row, real* s) noexcept nogil:
    """Where the logits of a piece can be read: where they lie, if they are contiguous and used as they are,
    or in s. The last n % GROUP of them, padded with -inf, are in s in any case."""
    cdef Py_ssize_t i
    cdef const real* source = <const real*>row.x + row.first
    if (row.pieces == 1 or row.job.x.kind != kind_of(s[0]) or row.job.x.inner != <Py_ssize_t>sizeof(real)
            or row.job.o.logit_clip < SL_INFINITY or row.limit):
        load_limited(row, row.first, row.n, s)
        return s
    for i in range(row.n & ~(GROUP - 1), row.n):
        s[i] = source[i]
    for i in range(row.n, padded(row.n)):
        s[i] = -SL_INFINITY
    return source


cdef inline real maximum_of_pieces(Row* row, Py_ssize_t pieces, real* s) noexcept nogil:
    """The maximum of the first pieces of a row; of no use where the call is to end."""
    cdef const real* source
    cdef real m[GROUP]
    cdef Py_ssize_t index, lines, j
    for j in range(GROUP):
        m[j] = -SL_INFINITY
    for index in range(pieces):
        if not place_piece(index, row):
            break
        source = view_piece(row, s)
        lines = 0 if source == s else row.n // GROUP
        if lines:
            column_maxima(source, lines, m)
        column_maxima(<const real*>(s + lines * GROUP), padded(row.n) // GROUP - lines, m)
    return maximum_of(m)


cdef void open_row(Row* row, real* s) noexcept nogil:
    """The maximum of a row and the logit of its target. A row of one piece is left in s."""
    row.pieces = (row.job.k + PIECE - 1) // PIECE
    row.cached = row.grad != NULL and row.pieces > 1 and row.job.g.kind == kind_of(s[0])
    row.in_place = row.job.g.kind == kind_of(s[0]) and row.job.g.inner == <Py_ssize_t>sizeof(real)
    row.limit = False
    if row.job.o.from_probabilities:
        row.m = row.x_target = 0
        if row.pieces == 1 and place_piece(0, row):
            load_limited(row, 0, row.n, s)
        return
    row.m = maximum_of_pieces(row, row.pieces, s)
    if is_positive_infinity(row.m):
        row.limit = True
        row.m = 0
        if row.pieces == 1:
            load_limited(row, 0, row.n, s)
    if row.pieces > 1:
        load_limited(row, row.y, 1, s)
    row.x_target = s[0 if row.pieces > 1 else row.y]


cdef void piece_exponentials(const Row* row, real* s) noexcept nogil:
    """The exponentials of a piece in s, where the logits of a row of one piece are already."""
    cdef Py_ssize_t lines = 0
    cdef const real* source = s
    cdef real m = <real>row.m
    cdef sl_ahead ahead
    cdef const Job* job = row.job
    cdef sl_ahead* next = rows_ahead(
        job, row.x - job.x.data + row.first * job.x.inner, job.k * job.x.inner, &ahead)
    if job.o.from_probabilities:
        if row.pieces > 1:
            load_limited(row, row.first, row.n, s)
        scale_probabilities(job, padded(row.n), s)
        return
    if row.pieces > 1:
        source = view_piece(row, s)
    if source != s:
        lines = row.n // GROUP
        row_exponentials(source, s, lines * GROUP, m, row.compensated, job.exponent_scale, next)
    s += lines * GROUP
    # few classes are added up one by one, without what pads them; shards are of several pieces
    row_exponentials(
        <const real*>s, s, (row.n if row.pieces == 1 and job.k <= NARROW else padded(row.n)) - lines * GROUP,
        m, row.compensated, job.exponent_scale, next)


cdef inline real take_out(real* at) noexcept nogil:
    cdef real value = at[0]
    at[0] = 0
    return value


cdef inline void add_piece(
    const Row* row, const real* s, bint squares, double* hi, double* lo
) noexcept nogil:
    """Add up a piece or its squares: of few classes in the order in which a column is added up."""
    cdef double part, part_lo, error
    if row.job.k <= NARROW:
        part = ordered_sum(s, row.n, squares, &part_lo)
    elif squares:
        part = lane_squares(s, padded(row.n), &part_lo)
    else:
        part = lane_sum(s, padded(row.n), &part_lo)
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
    scatter(<const real*>&value, row.grad + c * row.job.g.inner, row.job.g.kind, row.job.g.inner, 1)

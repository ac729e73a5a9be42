# A tile: a matrix of GROUP columns in scratch, and how rows of any layout get into it and out of it.
#
# With few classes a column is a row of the batch and a line is a class, so that rows are the lanes of the
# vectors and nothing is reduced across a vector. With many, a tile is a stretch of one row, and what has been
# added up in the columns is added across them at the end. A row of several tiles is gone through once per
# stage. Scratch is never the caller's memory, so that loops over it vectorise whether or not results
# overwrite the logits.
#
# uses _blocks: stopped
# uses _job: Job
# uses _math: absolute real
# uses _operand: Operand gather kind_of row_offsets scatter
# uses _sums: GROUP NARROW PIECE TILE padded

cdef enum:
    # places of tiles in scratch
    TILE_LOGITS = 0
    TILE_EXPS = TILE
    TILE_TARGETS = 2 * TILE
    TILE_SLOPE = 3 * TILE           # of the cap
    TILE_FIRST = 4 * TILE           # derivatives of a class's loss by log p (see softmax_ce_options.pxi)
    TILE_SECOND = 5 * TILE
    TILE_GRAD = TILE_FIRST          # formed from it, entry by entry
    TILE_VECTOR = 6 * TILE          # v of a Hessian product
    TILE_EV = 7 * TILE              # e v
    TILE_DIRECTION = TILE_EV        # v - p.v, formed from it, entry by entry
    TILE_OUT = TILE_EV              # formed from that in turn, or what else is written out

cdef extern from "sl_transpose.h":
    void sl_to_lanes_f32(const float*, Py_ssize_t, float*, Py_ssize_t) noexcept nogil
    void sl_to_lanes_f64(const double*, Py_ssize_t, double*, Py_ssize_t) noexcept nogil
    void sl_from_lanes_f32(const float*, Py_ssize_t, const float*, float*, Py_ssize_t) noexcept nogil
    void sl_from_lanes_f64(const double*, Py_ssize_t, const double*, double*, Py_ssize_t) noexcept nogil


# ---- transposition --------------------------------------------------------------------------------

cdef inline void transpose_block(
    real* row, Py_ssize_t stride, real* s, const real* scale, bint back
) noexcept nogil:
    if real is float:
        if back:
            sl_from_lanes_f32(s, GROUP, scale, row, stride)
        else:
            sl_to_lanes_f32(row, stride, s, GROUP)
    else:
        if back:
            sl_from_lanes_f64(s, GROUP, scale, row, stride)
        else:
            sl_to_lanes_f64(row, stride, s, GROUP)


cdef inline void transpose(
    real* row,
    Py_ssize_t stride,
    Py_ssize_t rows,
    Py_ssize_t k,
    real* s,
    const real* scale,
    bint back,
) noexcept nogil:
    """Between rows, `stride` elements apart, and columns, of which some lines more may be written. In blocks,
    of which the last one may overlap the one before."""
    cdef Py_ssize_t height = 8 if real is float else 4
    cdef Py_ssize_t width = 4 if real is float else 2
    cdef Py_ssize_t r = 0, c
    cdef real narrow[4 * GROUP]
    if rows >= height and k >= width:
        while r < rows:
            r = min(r, rows - height)
            c = 0
            while c < k:
                c = min(c, k - width)
                transpose_block(row + r * stride + c, stride, s + c * GROUP + r, scale + r, back)
                c += width
            r += height
    elif rows >= height and stride == k:
        # A block reaches into the next row, and the last one would beyond the array. What a row writes into
        # the next one, that one overwrites.
        if not back:
            memcpy(narrow, row, rows * k * sizeof(real))
        while r < rows:
            r = min(r, rows - height)
            transpose_block(narrow + r * k, k, s + r, scale + r, back)
            r += height
        if back:
            memcpy(row, narrow, rows * k * sizeof(real))
    else:
        for r in range(rows):
            for c in range(k):
                if back:
                    row[r * stride + c] = s[c * GROUP + r] * scale[r]
                else:
                    s[c * GROUP + r] = row[r * stride + c]


cdef void rows_to_columns(
    const real* source, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t k, real* s
) noexcept nogil:
    """s[c, j] = source[j, c]."""
    transpose(<real*>source, stride, rows, k, s, <const real*>s, False)


cdef void columns_to_rows(
    const real* s, const real* scale, Py_ssize_t rows, Py_ssize_t k, real* to, Py_ssize_t stride
) noexcept nogil:
    """to[j, c] = s[c, j] * scale[j]."""
    transpose(to, stride, rows, k, <real*>s, scale, True)


# ---- rows as columns ------------------------------------------------------------------------------

cdef inline bint transposable(const Operand* op, real hint) noexcept nogil:
    """Whether the rows are contiguous floats at one distance."""
    return (op.ndim == 1 and op.kind == kind_of(hint) and op.inner == <Py_ssize_t>sizeof(real)
            and op.stride[0] % <Py_ssize_t>sizeof(real) == 0)


cdef Py_ssize_t row_distance(
    const Operand* op, Py_ssize_t start, int count, Py_ssize_t* offset
) noexcept nogil:
    """Offsets of rows, and the one distance between them if it is less than that of their classes (Fortran
    order, classes on an earlier axis), else 0."""
    cdef Py_ssize_t distance, j
    row_offsets(op, start, count, offset)
    distance = offset[1] - offset[0] if count > 1 else 0
    for j in range(2, count):
        distance = distance if offset[j] - offset[j - 1] == distance else 0
    return distance if absolute(<double>distance) < absolute(<double>op.inner) else 0


cdef void widen_columns(
    const Operand* op, Py_ssize_t start, int count, Py_ssize_t k, double* s
) noexcept nogil:
    """Of contiguous rows of float32, which are transposed as they are."""
    cdef float narrow[NARROW * GROUP]
    cdef Py_ssize_t distance = op.stride[0] // <Py_ssize_t>sizeof(float)
    cdef Py_ssize_t i
    rows_to_columns(<const float*>op.data + start * distance, distance, count, k, narrow)
    for i in range(k * GROUP):
        s[i] = narrow[i]


cdef void narrow_columns(
    const double* s, const Operand* op, Py_ssize_t start, int count, Py_ssize_t k
) noexcept nogil:
    cdef float narrow[NARROW * GROUP]
    cdef Py_ssize_t i
    for i in range(k * GROUP):
        narrow[i] = <float>s[i]
    write_columns(<const float*>narrow, op, start, count, k)


cdef void read_columns(const Operand* op, Py_ssize_t start, int count, Py_ssize_t k, real* s) noexcept nogil:
    """s[c, j] = class c of row start + j, of any element type; columns without a row are 0."""
    cdef Py_ssize_t offset[GROUP]
    cdef Py_ssize_t c, distance, j
    cdef real line[NARROW]
    if transposable(op, s[0]):
        distance = op.stride[0] // <Py_ssize_t>sizeof(real)
        rows_to_columns(<const real*>op.data + start * distance, distance, count, k, s)
    elif real is double and transposable(op, <float>0):
        widen_columns(op, start, count, k, s)
    else:
        distance = row_distance(op, start, count, offset)
        if distance != 0:
            for c in range(k):
                gather(op.data + offset[0] + c * op.inner, op.kind, distance, count, s + c * GROUP)
        else:
            for j in range(count):
                gather(op.data + offset[j], op.kind, op.inner, k, line)
                for c in range(k):
                    s[c * GROUP + j] = line[c]
    for j in range(count, GROUP):
        for c in range(k):
            s[c * GROUP + j] = 0


cdef void write_columns(
    const real* s, const Operand* op, Py_ssize_t start, int count, Py_ssize_t k
) noexcept nogil:
    cdef Py_ssize_t offset[GROUP]
    cdef Py_ssize_t c, distance, j
    cdef real line[NARROW]
    cdef real one[GROUP]
    if transposable(op, s[0]):
        for j in range(GROUP):
            one[j] = 1
        distance = op.stride[0] // <Py_ssize_t>sizeof(real)
        columns_to_rows(s, <const real*>one, count, k, <real*>op.data + start * distance, distance)
        return
    if real is double and transposable(op, <float>0):
        narrow_columns(s, op, start, count, k)
        return
    distance = row_distance(op, start, count, offset)
    if distance != 0:
        for c in range(k):
            scatter(s + c * GROUP, op.data + offset[0] + c * op.inner, op.kind, distance, count)
        return
    for j in range(count):
        for c in range(k):
            line[c] = s[c * GROUP + j]
        scatter(<const real*>line, op.data + offset[j], op.kind, op.inner, k)


cdef void clear_columns(real* s, Py_ssize_t k, const double* weight) noexcept nogil:
    """Zeros in place of every row of weight 0, whatever it holds."""
    cdef Py_ssize_t c, j
    for j in range(GROUP):
        if weight[j] == 0:
            for c in range(k):
                s[c * GROUP + j] = 0


# ---- tiles ----------------------------------------------------------------------------------------

cdef struct Tile:
    const Job* job
    Py_ssize_t start        # first row of the batch
    int count               # rows: as columns, or one where the tile is wide
    bint wide
    Py_ssize_t tiles        # of which these rows consist; more than one only where they are wide
    int want                # what is asked for
    double* weight          # of each row
    double* loss
    # the tile that is in scratch
    Py_ssize_t first        # first class
    Py_ssize_t n            # classes
    Py_ssize_t lines


cdef void open_rows(const Job* job, Py_ssize_t start, int count, bint wide, Tile* tile) noexcept nogil:
    tile.job = job
    tile.start = start
    tile.count = count
    tile.wide = wide
    tile.tiles = (job.k + PIECE - 1) // PIECE if wide else 1


cdef inline bint place_tile(Py_ssize_t index, Tile* tile) noexcept nogil:
    """Go to a tile of the rows; False where the call is to end."""
    tile.first = index * PIECE
    tile.n = min(<Py_ssize_t>PIECE, tile.job.k - tile.first)
    tile.lines = padded(tile.n) // GROUP if tile.wide else tile.n
    return tile.tiles == 1 or not stopped(tile.job)


cdef void read_tile(const Operand* op, const Tile* tile, real* to) noexcept nogil:
    """Entries of an operand; 0 where there is no row or class."""
    cdef Py_ssize_t offset, i
    if tile.wide:
        row_offsets(op, tile.start, 1, &offset)
        gather(op.data + offset + tile.first * op.inner, op.kind, op.inner, tile.n, to)
        for i in range(tile.n, tile.lines * GROUP):
            to[i] = 0
    else:
        read_columns(op, tile.start, tile.count, tile.n, to)


cdef void write_tile(const real* s, const Operand* op, const Tile* tile) noexcept nogil:
    cdef Py_ssize_t offset
    if tile.wide:
        row_offsets(op, tile.start, 1, &offset)
        scatter(s, op.data + offset + tile.first * op.inner, op.kind, op.inner, tile.n)
    else:
        write_columns(s, op, tile.start, tile.count, tile.n)

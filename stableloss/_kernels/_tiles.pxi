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
# uses _math: absolute real uintptr_t
# uses _operand: MAX_DIMS Operand gather has_rows locate row_offsets scatter
# uses _sums: FEW_F32 GROUP NARROW PIECE TILE padded

cdef enum:
    # places of tiles in scratch
    TILE_LOGITS = 0
    TILE_EXPS = TILE
    TILE_TARGETS = 2 * TILE
    TILE_LOST = TILE_TARGETS        # what exponentials of class indices lack, where that counts
    TILE_SLOPE = 3 * TILE           # of the cap
    TILE_FIRST = 4 * TILE           # derivatives of a class's loss by log p (see softmax_ce_options.pxi)
    TILE_SECOND = 5 * TILE
    TILE_GRAD = TILE_FIRST          # formed from it, entry by entry
    TILE_VECTOR = 6 * TILE          # v of a Hessian product
    TILE_EV = 7 * TILE              # e v
    TILE_DIRECTION = TILE_EV        # v - p.v, formed from it, entry by entry
    TILE_OUT = TILE_EV              # formed from that in turn, or what else is written out

    STRIP = 8 * FEW_F32             # entries of rows on their way to columns, or from there

cdef extern from "sl_columns.h":
    void sl_fetch_read(uintptr_t, Py_ssize_t) noexcept nogil
    void sl_fetch_write(uintptr_t, Py_ssize_t) noexcept nogil

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
    return op.ndim == 1 and has_rows(op, hint) and op.stride[0] % <Py_ssize_t>sizeof(real) == 0


cdef Py_ssize_t row_distance(
    const Operand* op, Py_ssize_t start, int count, Py_ssize_t* offset
) noexcept nogil:
    """The one distance between rows where it is less than that of their classes (Fortran order, classes on an
    earlier axis), and the offset of the first; else 0, and the offsets of all."""
    cdef Py_ssize_t index[MAX_DIMS]
    cdef Py_ssize_t distance = op.stride[0]
    offset[0] = locate(op, start, index)
    if (distance != 0 and absolute(<double>distance) < absolute(<double>op.inner)
            and (op.ndim == 1 or index[0] + count <= op.shape[0])):
        return distance
    row_offsets(op, start, count, offset)
    return 0


cdef inline Py_ssize_t bytes_of_line(Py_ssize_t distance, int count) noexcept nogil:
    """What follows a class's line of a group, if it is contiguous, and comes next: these lines lie too far
    from each other for processors to see that."""
    return count * distance if 0 < distance <= 8 else 0


cdef inline Py_ssize_t rows_of_strip(Py_ssize_t k) noexcept nogil:
    """Rows that a strip of them holds: all of a group, or a multiple of the height of a transposition."""
    return min(<Py_ssize_t>GROUP, STRIP // k & ~7)


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
    const double* s, const double* scale, const Operand* op, Py_ssize_t start, int count, Py_ssize_t k
) noexcept nogil:
    """The same back."""
    cdef float narrow[NARROW * GROUP]
    cdef float one[GROUP]
    cdef Py_ssize_t distance = op.stride[0] // <Py_ssize_t>sizeof(float)
    cdef Py_ssize_t c, j
    for j in range(GROUP):
        one[j] = 1
    for c in range(k):
        for j in range(GROUP):
            narrow[c * GROUP + j] = <float>(s[c * GROUP + j] * scale[j])
    columns_to_rows(narrow, one, count, k, <float*>op.data + start * distance, distance)


cdef void read_columns(const Operand* op, Py_ssize_t start, int count, Py_ssize_t k, real* s) noexcept nogil:
    """s[c, j] = class c of row start + j, of any element type; columns without a row are 0."""
    cdef Py_ssize_t offset[GROUP]
    cdef Py_ssize_t c, distance, j, line, r, rows
    cdef const char* at
    cdef real strip[STRIP]
    if transposable(op, s[0]):
        distance = op.stride[0] // <Py_ssize_t>sizeof(real)
        rows_to_columns(<const real*>op.data + start * distance, distance, count, k, s)
    elif real is double and transposable(op, <float>0):
        widen_columns(op, start, count, k, s)
    else:
        distance = row_distance(op, start, count, offset)
        if distance != 0:
            at = op.data + offset[0]
            line = bytes_of_line(distance, count)
            for c in range(k):
                sl_fetch_read(<uintptr_t>at + line, line)
                gather(at, op.kind, distance, count, s + c * GROUP)
                at += op.inner
        else:
            for r from 0 <= r < count by rows_of_strip(k):
                rows = min(rows_of_strip(k), count - r)
                if op.ndim == 1 and op.stride[0] == k * op.inner:
                    gather(op.data + offset[r], op.kind, op.inner, rows * k, strip)
                else:
                    for j in range(rows):
                        gather(op.data + offset[r + j], op.kind, op.inner, k, strip + j * k)
                rows_to_columns(<const real*>strip, k, rows, k, s + r)
    for j in range(count, GROUP):
        for c in range(k):
            s[c * GROUP + j] = 0


cdef void write_scaled_columns(
    const real* s, const real* scale, const Operand* op, Py_ssize_t start, int count, Py_ssize_t k
) noexcept nogil:
    """Class c of row start + j = s[c, j] * scale[j]."""
    cdef Py_ssize_t offset[GROUP]
    cdef Py_ssize_t c, distance, j, line, r, rows
    cdef char* at
    cdef real strip[STRIP]
    cdef real factor[GROUP]
    if transposable(op, s[0]):
        distance = op.stride[0] // <Py_ssize_t>sizeof(real)
        columns_to_rows(s, scale, count, k, <real*>op.data + start * distance, distance)
        return
    if real is double and transposable(op, <float>0):
        narrow_columns(s, scale, op, start, count, k)
        return
    distance = row_distance(op, start, count, offset)
    if distance != 0:
        for j in range(GROUP):
            factor[j] = scale[j]
        at = op.data + offset[0]
        line = bytes_of_line(distance, count)
        for c in range(k):
            sl_fetch_write(<uintptr_t>at + line, line)
            for j in range(GROUP):
                strip[j] = s[c * GROUP + j] * factor[j]
            scatter(<const real*>strip, at, op.kind, distance, count)
            at += op.inner
        return
    for r from 0 <= r < count by rows_of_strip(k):
        rows = min(rows_of_strip(k), count - r)
        columns_to_rows(s + r, scale + r, rows, k, strip, k)
        if op.ndim == 1 and op.stride[0] == k * op.inner:
            scatter(<const real*>strip, op.data + offset[r], op.kind, op.inner, rows * k)
        else:
            for j in range(rows):
                scatter(<const real*>(strip + j * k), op.data + offset[r + j], op.kind, op.inner, k)


cdef void write_columns(
    const real* s, const Operand* op, Py_ssize_t start, int count, Py_ssize_t k
) noexcept nogil:
    cdef real one[GROUP]
    cdef int j
    for j in range(GROUP):
        one[j] = 1
    write_scaled_columns(s, <const real*>one, op, start, count, k)


cdef void clear_columns(real* s, Py_ssize_t k, const double* weight) noexcept nogil:
    """Zeros in place of every row of weight 0, whatever it holds."""
    cdef real counts[GROUP]
    cdef Py_ssize_t c, j
    cdef int absent = 0
    for j in range(GROUP):
        absent |= weight[j] == 0
        counts[j] = weight[j] != 0
    if not absent:
        return
    # all rows: to branch for each takes longer, since which ones are absent can not be foreseen
    for c in range(k):
        for j in range(GROUP):
            s[c * GROUP + j] = 0 if counts[j] == 0 else s[c * GROUP + j]


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


cdef inline real* view_row(const Operand* op, const Tile* tile, real* hint) noexcept nogil:
    """The classes of a wide tile in a row that `has_rows`."""
    cdef Py_ssize_t offset
    row_offsets(op, tile.start, 1, &offset)
    return <real*>(op.data + offset) + tile.first


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

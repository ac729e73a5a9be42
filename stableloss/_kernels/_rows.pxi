# What the softmax losses share: rows of k logits to exponentials e_k = e**(x_k - m), m the maximum.
#
# Two shapes of work. Narrow rows (few classes) are taken GROUP at a time and transposed into scratch,
# so that rows are the lanes of the vectors and nothing is reduced across a vector. A wide row is taken
# PIECE logits at a time, in scratch as well: in and out of cache once, however the caller's array
# lies in memory. Scratch is never the caller's memory, so the loops over it vectorise in place or not.
#
# Exponentials come times UNIT (see _math.pxi), which cancels in every quotient.
#
# 1 - p is never formed: a hard target is left out of the sum (`rest`), and everything else forms the sum
# of the other exponentials (see "tiles" below).

cdef enum:
    NARROW = 128            # classes up to which rows are lanes
    PIECE = 2048            # logits of a wide row in scratch at once: leaves room in the L1 cache
    BUFFER = NARROW * GROUP     # one of the eight buffers in scratch

cdef extern from "sl_transpose.h":
    void sl_to_lanes_f32(const float*, Py_ssize_t, float*, Py_ssize_t) noexcept nogil
    void sl_to_lanes_f64(const double*, Py_ssize_t, double*, Py_ssize_t) noexcept nogil
    void sl_from_lanes_f32(const float*, Py_ssize_t, const float*, float*, Py_ssize_t) noexcept nogil
    void sl_from_lanes_f64(const double*, Py_ssize_t, const double*, double*, Py_ssize_t) noexcept nogil


# ---- rows as lanes --------------------------------------------------------------------------------

cdef inline void tile_to_lanes(const real* source, Py_ssize_t stride, real* s) noexcept nogil:
    if real is float:
        sl_to_lanes_f32(source, stride, s, GROUP)
    else:
        sl_to_lanes_f64(source, stride, s, GROUP)


cdef inline void tile_to_rows(const real* s, const real* scale, real* to, Py_ssize_t stride) noexcept nogil:
    if real is float:
        sl_from_lanes_f32(s, GROUP, scale, to, stride)
    else:
        sl_from_lanes_f64(s, GROUP, scale, to, stride)


cdef void rows_to_lanes(const real* source, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t k, real* s) noexcept nogil:
    """s[c, j] = source[j, c], whose rows lie `stride` elements apart; may write a few lines more."""
    cdef Py_ssize_t height = 8 if real is float else 4
    cdef Py_ssize_t width = 4 if real is float else 2
    cdef Py_ssize_t r = 0, c
    cdef real block[4 * GROUP]
    if rows >= height and k >= width:
        while r < rows:
            r = min(r, rows - height)               # the last tile may overlap the one before
            c = 0
            while c < k:
                c = min(c, k - width)
                tile_to_lanes(source + r * stride + c, stride, s + c * GROUP + r)
                c += width
            r += height
    elif rows >= height and stride == k:
        # a tile reaches into the next row, and the last one would beyond the array
        memcpy(block, source, rows * k * sizeof(real))
        while r < rows:
            r = min(r, rows - height)
            tile_to_lanes(<const real*>(block + r * k), k, s + r)
            r += height
    else:
        for r in range(rows):
            for c in range(k):
                s[c * GROUP + r] = source[r * stride + c]


cdef void lanes_to_rows(const real* s, const real* scale, Py_ssize_t rows, Py_ssize_t k, real* to, Py_ssize_t stride) noexcept nogil:
    """to[j, c] = s[c, j] * scale[j]."""
    cdef Py_ssize_t height = 8 if real is float else 4
    cdef Py_ssize_t width = 4 if real is float else 2
    cdef Py_ssize_t r = 0, c
    cdef real block[4 * GROUP]
    if rows >= height and k >= width:
        while r < rows:
            r = min(r, rows - height)
            c = 0
            while c < k:
                c = min(c, k - width)
                tile_to_rows(s + c * GROUP + r, scale + r, to + r * stride + c, stride)
                c += width
            r += height
    elif rows >= height and stride == k:
        # what a row writes into the next one, that one overwrites
        while r < rows:
            r = min(r, rows - height)
            tile_to_rows(s + r, scale + r, block + r * k, k)
            r += height
        memcpy(to, block, rows * k * sizeof(real))
    else:
        for r in range(rows):
            for c in range(k):
                to[r * stride + c] = s[c * GROUP + r] * scale[r]


cdef inline bint transposable(const Operand* op, real hint) noexcept nogil:
    """Whether the rows are contiguous floats at one distance."""
    return (op.ndim == 1 and op.kind == kind_of(hint) and op.inner == <Py_ssize_t>sizeof(real)
            and op.stride[0] % <Py_ssize_t>sizeof(real) == 0)


cdef void load_lanes(const Operand* op, Py_ssize_t start, int count, Py_ssize_t k, real* s) noexcept nogil:
    """s[c, j] = class c of row start + j, of any element type; lanes without a row are 0."""
    cdef Py_ssize_t offset[GROUP]
    cdef Py_ssize_t c, stride
    cdef int j
    cdef real line[NARROW]
    if transposable(op, s[0]):
        stride = op.stride[0] // <Py_ssize_t>sizeof(real)
        rows_to_lanes(<const real*>op.data + start * stride, stride, count, k, s)
    else:
        row_offsets(op, start, count, offset)
        stride = offset[1] - offset[0] if count > 1 else 0
        for j in range(2, count):
            stride = stride if offset[j] - offset[j - 1] == stride else 0
        if stride != 0 and absolute(<double>stride) < absolute(<double>op.inner):
            # rows lie closer together than classes (Fortran order, classes on an earlier axis)
            for c in range(k):
                gather(op.data + offset[0] + c * op.inner, op.kind, stride, count, s + c * GROUP)
        else:
            for j in range(count):
                gather(op.data + offset[j], op.kind, op.inner, k, line)
                for c in range(k):
                    s[c * GROUP + j] = line[c]
    for j in range(count, GROUP):
        for c in range(k):
            s[c * GROUP + j] = 0


cdef void store_lanes(const real* s, const Operand* op, Py_ssize_t start, int count, Py_ssize_t k) noexcept nogil:
    cdef Py_ssize_t offset[GROUP]
    cdef Py_ssize_t c, stride
    cdef int j
    cdef real line[NARROW]
    cdef real one[GROUP]
    if transposable(op, s[0]):
        for j in range(GROUP):
            one[j] = 1
        stride = op.stride[0] // <Py_ssize_t>sizeof(real)
        lanes_to_rows(s, <const real*>one, count, k, <real*>op.data + start * stride, stride)
        return
    row_offsets(op, start, count, offset)
    stride = offset[1] - offset[0] if count > 1 else 0
    for j in range(2, count):
        stride = stride if offset[j] - offset[j - 1] == stride else 0
    if stride != 0 and absolute(<double>stride) < absolute(<double>op.inner):
        for c in range(k):
            scatter(s + c * GROUP, op.data + offset[0] + c * op.inner, op.kind, stride, count)
        return
    for j in range(count):
        for c in range(k):
            line[c] = s[c * GROUP + j]
        scatter(<const real*>line, op.data + offset[j], op.kind, op.inner, k)


cdef inline void lane_maximum(real* s, Py_ssize_t k, real* m) noexcept nogil:
    """Maximum of each lane. A lane whose maximum is +inf is replaced by its limit, with maximum 0.
    NaN may lose against a number here: it comes back as the exponential of its own class."""
    cdef Py_ssize_t c
    cdef int j
    cdef bint infinite = False
    for j in range(GROUP):
        m[j] = s[j]
    for c in range(1, k):
        for j in range(GROUP):
            m[j] = s[c * GROUP + j] if s[c * GROUP + j] > m[j] else m[j]
    for j in range(GROUP):
        infinite |= is_positive_infinity(m[j])
    if infinite:
        for j in range(GROUP):
            if is_positive_infinity(m[j]):
                m[j] = 0
                for c in range(k):
                    s[c * GROUP + j] = indicator_logit(s[c * GROUP + j])


cdef inline void lane_exponentials(real* s, Py_ssize_t k, const real* m, bint careful) noexcept nogil:
    cdef Py_ssize_t c
    cdef int j
    cdef real a[GROUP]
    cdef real b_hi[GROUP]
    cdef real b_lo[GROUP]
    for j in range(GROUP):
        split_maximum(m[j], &a[j], &b_hi[j], &b_lo[j])
    for c in range(k):
        for j in range(GROUP):
            s[c * GROUP + j] = exp_shifted(s[c * GROUP + j], a[j], b_hi[j], b_lo[j], careful)


cdef void clear_lanes(real* s, Py_ssize_t k, const double* weight) noexcept nogil:
    """Zeros in place of every row of weight 0, whatever it holds."""
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        if weight[j] == 0:
            for c in range(k):
                s[c * GROUP + j] = 0


cdef void load_piece(const Job* job, const char* row, Py_ssize_t start, Py_ssize_t n, bint infinite, real* s) noexcept nogil:
    """Logits start ... start + n - 1 of a row, padded with -inf to a multiple of LANES."""
    cdef Py_ssize_t i
    gather(row + start * job.x.inner, job.x.kind, job.x.inner, n, s)
    if job.o.logit_clip < SL_INFINITY:
        clamp(s, n, job.o.logit_clip, s)
    if infinite:
        for i in range(n):
            s[i] = indicator_logit(s[i])
    for i in range(n, padded(n)):
        s[i] = -SL_INFINITY


cdef real piece_maximum(const real* s, Py_ssize_t n) noexcept nogil:
    """Maximum of n numbers, n a multiple of LANES; NaN may lose."""
    cdef real lane[LANES]
    cdef Py_ssize_t i
    cdef int j
    for j in range(LANES):
        lane[j] = s[j]
    for i in range(1, n // LANES):
        for j in range(LANES):
            lane[j] = s[i * LANES + j] if s[i * LANES + j] > lane[j] else lane[j]
    fold_maximum(lane, 16)
    fold_maximum(lane, 8)
    fold_maximum(lane, 4)
    fold_maximum(lane, 2)
    fold_maximum(lane, 1)
    return lane[0]


cdef const real* piece_source(const Job* job, const char* row, Py_ssize_t start, Py_ssize_t n, bint infinite, real* s) noexcept nogil:
    """Where the logits of a piece can be read: where they lie, if they are contiguous and used as
    they are, or in s. The last n % LANES of them, padded with -inf, are in s in any case."""
    cdef Py_ssize_t i, whole = n & ~(LANES - 1)
    cdef const real* source = <const real*>row + start
    if (job.x.kind != kind_of(s[0]) or job.x.inner != <Py_ssize_t>sizeof(real)
            or job.o.logit_clip < SL_INFINITY or infinite):
        load_piece(job, row, start, n, infinite, s)
        return s
    for i in range(whole, n):
        s[i] = source[i]
    for i in range(n, padded(n)):
        s[i] = -SL_INFINITY
    return source


cdef real row_maximum(const Job* job, const char* row, bint keep, bint* infinite, real* s) noexcept nogil:
    """Maximum of a row, and whether the row stands for its limit. With `keep`, a row of one piece is
    left in s."""
    cdef Py_ssize_t start, n, whole
    cdef const real* source
    cdef real m = -SL_INFINITY, piece
    infinite[0] = False
    for start from 0 <= start < job.k by PIECE:
        n = min(<Py_ssize_t>PIECE, job.k - start)
        whole = n & ~(LANES - 1)
        if keep:
            load_piece(job, row, start, n, False, s)
            source = s
        else:
            source = piece_source(job, row, start, n, False, s)
        if whole:
            piece = piece_maximum(source, whole)
            m = piece if piece > m else m
        if whole < n:
            piece = piece_maximum(<const real*>(s + whole), LANES)
            m = piece if piece > m else m
    if is_positive_infinity(m):
        infinite[0] = True
        m = 0
        if keep and job.k <= PIECE:
            load_piece(job, row, 0, job.k, True, s)
    return m


cdef void exponentials(real* s, Py_ssize_t n, real m, bint careful) noexcept nogil:
    """s = e**(s - m) in place, n a multiple of LANES."""
    cdef real a, b_hi, b_lo
    cdef Py_ssize_t i
    cdef int j
    split_maximum(m, &a, &b_hi, &b_lo)
    if careful:
        for i in range(n // LANES):
            for j in range(LANES):
                s[i * LANES + j] = exp_shifted(s[i * LANES + j], a, b_hi, b_lo, True)
        return
    for i in range(n // LANES):
        for j in range(LANES):
            s[i * LANES + j] = exp_shifted(s[i * LANES + j], a, b_hi, b_lo, False)


cdef inline void scatter_scaled(real* s, real scale, char* data, int kind, Py_ssize_t stride, Py_ssize_t n) noexcept nogil:
    """Write s * scale; may overwrite s."""
    cdef Py_ssize_t i
    if kind == kind_of(scale) and stride == <Py_ssize_t>sizeof(real):
        for i in range(n):
            (<real*>data)[i] = s[i] * scale
        return
    for i in range(n):
        s[i] *= scale
    scatter(<const real*>s, data, kind, stride, n)


cdef void scale_in_place(char* row, Py_ssize_t stride, Py_ssize_t n, real scale) noexcept nogil:
    cdef Py_ssize_t i
    cdef real* values = <real*>row
    if stride == <Py_ssize_t>sizeof(real):
        for i in range(n):
            values[i] *= scale
    else:
        for i in range(n):
            (<real*>(row + i * stride))[0] *= scale


cdef void scale_in_float64(real hint, char* row, Py_ssize_t stride, Py_ssize_t n, double factor) noexcept nogil:
    """The same for a factor that is `extreme`."""
    cdef Py_ssize_t i
    cdef real* value
    for i in range(n):
        value = <real*>(row + i * stride)
        value[0] = <real>(value[0] * factor)


cdef void exponentials_of(const real* source, real* s, Py_ssize_t n, real m) noexcept nogil:
    """s = e**(source - m) for the n logits of a piece from `piece_source`."""
    cdef real a, b_hi, b_lo
    cdef Py_ssize_t i, whole = n & ~(LANES - 1)
    cdef int j
    if source == s:
        exponentials(s, padded(n), m, False)
        return
    split_maximum(m, &a, &b_hi, &b_lo)
    for i in range(whole // LANES):
        for j in range(LANES):
            s[i * LANES + j] = exp_shifted(source[i * LANES + j], a, b_hi, b_lo, False)
    exponentials(s + whole, padded(n) - whole, m, False)


cdef bint extreme(const Job* job, const double* factor, int n, real hint) noexcept nogil:
    """Whether any factor from exponentials to a gradient is one of which float32 does not hold all digits."""
    cdef int j, out = 0
    if real is float:
        if not job.any_weight and 1e-20 <= job.divisor <= 1e20:
            return False
        for j in range(n):
            out |= (factor[j] > 3e38) | ((factor[j] < 1.2e-38) & (factor[j] > 0))
    return out != 0


cdef void load_classes(const Job* job, Py_ssize_t start, int count, Py_ssize_t* y) noexcept nogil:
    """Class indices of a group; those of rows that do not count, which may be anything, as 0."""
    cdef double index[GROUP]
    cdef int j
    for j in range(count, GROUP):
        y[j] = 0
    if not job.ignoring and not job.masked and job.t.ndim == 1:
        # all of them are classes
        if job.t.kind == np.NPY_INT64 and job.t.stride[0] == 8:
            memcpy(y, job.t.data + start * 8, count * 8)
            return
        if job.t.kind == np.NPY_INT32 and job.t.stride[0] == 4:
            for j in range(count):
                y[j] = (<const int32_t*>job.t.data)[start + j]
            return
    load_flat(&job.t, start, count, index)
    for j in range(count):
        y[j] = <Py_ssize_t>index[j] if index[j] >= 0 and index[j] < job.k else 0


cdef void close_rows(const Job* job, Py_ssize_t start, int count, double* loss, const double* weight, Sum* total) noexcept nogil:
    """Weigh the losses of a group, and store them or add them up."""
    cdef double value[GROUP]
    cdef double lost[GROUP]
    cdef int j
    if not job.want & WANT_LOSS:
        return
    for j in range(GROUP):
        value[j] = loss[j] * weight[j] if (weight[j] != 0) & (j < count) else 0
    if job.loss != NULL:
        for j in range(count):
            store_value(job.loss, job.value_kind, start + j, value[j])
    else:
        for j in range(GROUP // 2):
            value[j] = two_sum(value[j], value[j + GROUP // 2], &lost[j])
        fold_exactly(value, lost, 8)
        fold_exactly(value, lost, 4)
        fold_exactly(value, lost, 2)
        fold_exactly(value, lost, 1)
        add(total, value[0])
        total.lo += lost[0]


# ---- tiles ----------------------------------------------------------------------------------------
# Softmax work beside the fast path of class indices, with one code for few classes and for many.
#
# A tile is a matrix of GROUP columns in scratch. With few classes a column is a row of the batch and a
# line of the tile is a class; with many, a tile is a stretch of one row, and what has been added up in
# the columns is added across them at the end. A row of several tiles is gone through once per stage.
#
# Exponentials equal to UNIT are added apart from those below, so that `others` = (ones - e) + below
# loses nothing for the maximum, nor for the rest. Sums over other quantities are split in the same way.

cdef enum:
    TILE = BUFFER           # entries at most; PIECE where the tile is wide


cdef struct Tile:
    Py_ssize_t start        # first row of the batch
    int count               # rows: as columns, or one where the tile is wide
    bint wide
    Py_ssize_t first        # first class
    Py_ssize_t n            # classes
    Py_ssize_t lines


cdef struct Columns:
    # What is known of each column: of all columns the same where the tile is wide.
    double weight[GROUP]
    double m[GROUP]         # maximum
    bint limit[GROUP]       # the row has a +inf and stands for its limit
    double live[GROUP]      # classes above -inf
    Total below             # exponentials below UNIT
    Total ones              # the others
    double whole[GROUP]     # their sum
    double log_sum[GROUP]   # log(sum e**(x - m))
    Py_ssize_t y[GROUP]     # target class
    bint careful            # exponentials for products of them, see `exp_shifted`


cdef inline Py_ssize_t tiles_of(const Job* job, bint wide) noexcept nogil:
    return (job.k + PIECE - 1) // PIECE if wide else 1


cdef inline void place_tile(const Job* job, Py_ssize_t start, int count, bint wide, Py_ssize_t index, Tile* tile) noexcept nogil:
    tile.start = start
    tile.count = count
    tile.wide = wide
    tile.first = index * PIECE
    tile.n = min(<Py_ssize_t>PIECE, job.k - tile.first)
    tile.lines = padded(tile.n) // GROUP if wide else tile.n


cdef void read_tile(const Operand* op, const Tile* tile, real* to) noexcept nogil:
    """Entries of an operand; 0 where there is no row or class."""
    cdef Py_ssize_t offset, i
    if tile.wide:
        row_offsets(op, tile.start, 1, &offset)
        gather(op.data + offset + tile.first * op.inner, op.kind, op.inner, tile.n, to)
        for i in range(tile.n, tile.lines * GROUP):
            to[i] = 0
    else:
        load_lanes(op, tile.start, tile.count, tile.n, to)


cdef void write_tile(const real* s, const Operand* op, const Tile* tile) noexcept nogil:
    cdef Py_ssize_t offset
    if tile.wide:
        row_offsets(op, tile.start, 1, &offset)
        scatter(s, op.data + offset + tile.first * op.inner, op.kind, op.inner, tile.n)
    else:
        store_lanes(s, op, tile.start, tile.count, tile.n)


cdef void clear_row(const Job* job, const Operand* op, Py_ssize_t row, real* s) noexcept nogil:
    cdef Tile tile
    cdef Py_ssize_t index, i
    for i in range(min(<Py_ssize_t>PIECE, job.k)):
        s[i] = 0
    for index in range(tiles_of(job, True)):
        place_tile(job, row, 1, True, index, &tile)
        write_tile(<const real*>s, op, &tile)


# ---- logits ---------------------------------------------------------------------------------------

cdef void tile_logits(const Job* job, const Tile* tile, const double* weight, real* x, real* slope) noexcept nogil:
    """Logits as they enter the softmax, -inf where there is no class; `slope` gets the derivative of
    the cap. Columns of weight 0 are 0, whatever they hold."""
    cdef Py_ssize_t i, n = tile.n if tile.wide else tile.lines * GROUP
    cdef real scale, cap
    read_tile(&job.x, tile, x)
    if job.any_weight and not tile.wide:
        clear_lanes(x, tile.lines, weight)
    if job.o.logit_clip < SL_INFINITY:
        clamp(x, n, job.o.logit_clip, x)
    if job.o.logit_scale != 1:
        scale = <real>job.o.logit_scale
        for i in range(n):
            x[i] *= scale
    if job.o.softcap != 0:
        cap = <real>job.o.softcap
        for i in range(n):
            x[i] = capped(x[i], cap, &slope[i])
    for i in range(n, tile.lines * GROUP):
        x[i] = -SL_INFINITY
        slope[i] = 0


cdef void tile_limits(const Tile* tile, const Columns* columns, real* x) noexcept nogil:
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        if columns.limit[j]:
            for c in range(tile.lines):
                x[c * GROUP + j] = indicator_logit(x[c * GROUP + j])


cdef void tile_maximum(const real* x, Py_ssize_t lines, real* m) noexcept nogil:
    """Raise each m to the maximum of its column; NaN may lose."""
    cdef Py_ssize_t c
    cdef int j
    for c in range(lines):
        for j in range(GROUP):
            m[j] = x[c * GROUP + j] if x[c * GROUP + j] > m[j] else m[j]


cdef void tile_live(const real* x, Py_ssize_t lines, double* live) noexcept nogil:
    cdef Py_ssize_t c
    cdef int j
    for c in range(lines):
        for j in range(GROUP):
            live[j] += 0 if x[c * GROUP + j] == -SL_INFINITY else 1


cdef void tile_maxima(const Job* job, Py_ssize_t start, int count, bint wide, Columns* columns, real* x, real* slope) noexcept nogil:
    """Maxima of the columns. Where there is one tile, its logits stay in x."""
    cdef Py_ssize_t index
    cdef Tile tile
    cdef real m[GROUP]
    cdef int j
    for j in range(GROUP):
        m[j] = -SL_INFINITY
        columns.live[j] = 0
    for index in range(tiles_of(job, wide)):
        place_tile(job, start, count, wide, index, &tile)
        tile_logits(job, &tile, columns.weight, x, slope)
        tile_maximum(<const real*>x, tile.lines, m)
        if job.o.label_smoothing != 0:
            tile_live(<const real*>x, tile.lines, columns.live)
    if wide:
        fold_maximum(m, 16)
        fold_maximum(m, 8)
        fold_maximum(m, 4)
        fold_maximum(m, 2)
        fold_maximum(m, 1)
        for j in range(1, GROUP):
            m[j] = m[0]
            columns.live[0] += columns.live[j]
        for j in range(1, GROUP):
            columns.live[j] = columns.live[0]
    for j in range(GROUP):
        columns.limit[j] = is_positive_infinity(m[j])
        columns.m[j] = 0 if columns.limit[j] else m[j]


# ---- exponentials and their sums ------------------------------------------------------------------

cdef void tile_exponentials(const Tile* tile, const Columns* columns, const real* x, real* e) noexcept nogil:
    cdef real a[GROUP]
    cdef real b_hi[GROUP]
    cdef real b_lo[GROUP]
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        split_maximum(<real>columns.m[j], &a[j], &b_hi[j], &b_lo[j])
    if columns.careful:
        for c in range(tile.lines):
            for j in range(GROUP):
                e[c * GROUP + j] = exp_shifted(x[c * GROUP + j], a[j], b_hi[j], b_lo[j], True)
        return
    for c in range(tile.lines):
        for j in range(GROUP):
            e[c * GROUP + j] = exp_shifted(x[c * GROUP + j], a[j], b_hi[j], b_lo[j], False)


cdef inline real smallest_normal(const Job* job, real hint) noexcept nogil:
    """What a probability counts as at least: by the logits' type, not by that of the arithmetic."""
    return <real>1.1754943508222875e-38 if job.value_kind == np.NPY_FLOAT else <real>2.2250738585072014e-308


cdef void tile_quotients(const Job* job, const Tile* tile, Columns* columns, real* x, real* e) noexcept nogil:
    """The same from probabilities p in x: e = UNIT p / p_max, and x = log(p / p_max), for which 0 takes
    the place of the maximum. The logarithm is that of 1 + (p_max - p) / p, for p near p_max too."""
    cdef real tiny = smallest_normal(job, x[0])
    cdef real top = unit(x[0])
    cdef real m[GROUP]
    cdef real p
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        m[j] = <real>columns.m[j]
        m[j] = tiny if m[j] < tiny else m[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            p = x[c * GROUP + j]
            p = tiny if p < tiny and p >= 0 else p          # -inf is not a class
            e[c * GROUP + j] = 0 if p < 0 else top * (p / m[j])
            x[c * GROUP + j] = p if p < 0 else -<real>log1p_positive(<double>((m[j] - p) / p))


cdef inline int columns_of(bint wide) noexcept nogil:
    """Columns that differ."""
    return 1 if wide else GROUP


cdef inline void spread(double* values, bint wide) noexcept nogil:
    cdef int j
    if wide:
        for j in range(1, GROUP):
            values[j] = values[0]


cdef void settle_exponentials(Columns* columns, bint wide, real hint) noexcept nogil:
    cdef double top = unit(hint)
    cdef int j
    settle(&columns.below, wide)
    settle(&columns.ones, wide)
    for j in range(columns_of(wide)):
        columns.whole[j] = columns.ones.sum[j] + columns.below.sum[j]
        columns.log_sum[j] = log1p_positive(
            ((columns.ones.sum[j] - top) + (columns.below.sum[j] + columns.below.lost[j])) * (1 / top))
    spread(columns.whole, wide)
    spread(columns.log_sum, wide)


cdef inline double inverse_sum(const Columns* columns, int j, double weight, double divisor, real hint) noexcept nogil:
    """weight / (divisor * sum)."""
    cdef double error, total
    if real is float:
        return weight / (divisor * columns.whole[j])
    else:
        total = two_sum(columns.ones.sum[j], columns.below.sum[j], &error)
        return row_scale(weight, divisor, total, error + columns.below.lost[j])


cdef inline double inverse_square(const Columns* columns, int j, double weight, real hint) noexcept nogil:
    """weight / sum**2."""
    cdef double error, total
    if real is float:
        return weight / (columns.whole[j] * columns.whole[j])
    else:
        total = two_sum(columns.ones.sum[j], columns.below.sum[j], &error)
        return row_scale(weight, total, total, 2 * (error + columns.below.lost[j]))


cdef inline double gap_of(double m, double x) noexcept nogil:
    """m - x, halved: the difference may overflow where its product with a probability does not."""
    return 0.5 * m - 0.5 * x


# ---- targets --------------------------------------------------------------------------------------

cdef void open_columns(const Job* job, Py_ssize_t start, int count, bint wide, const double* weight, Columns* columns) noexcept nogil:
    cdef int j
    for j in range(GROUP):
        columns.weight[j] = weight[0] if wide else weight[j]
    if job.hard:
        load_classes(job, start, count, columns.y)
        if wide:
            for j in range(1, GROUP):
                columns.y[j] = columns.y[0]
    start_total(&columns.below)
    start_total(&columns.ones)
    columns.careful = False


cdef void tile_targets(const Job* job, const Tile* tile, const Columns* columns, bint plain, const real* x, real* q) noexcept nogil:
    """Target probabilities; if not `plain`, smoothed and times the weights of their classes. x still holds
    the logits, from which the disabled classes are known."""
    cdef Py_ssize_t i, c
    cdef int j
    cdef real share[GROUP]
    cdef real stays, w
    cdef const double* class_weight = job.o.class_weight
    if job.hard:
        for i in range(tile.lines * GROUP):
            q[i] = 0
        if tile.wide:
            if tile.first <= columns.y[0] < tile.first + tile.n:
                q[columns.y[0] - tile.first] = 1
        else:
            for j in range(GROUP):
                q[columns.y[j] * GROUP + j] = 0 if columns.weight[j] == 0 else 1
    else:
        read_tile(&job.t, tile, q)
        if job.any_weight and not tile.wide:
            clear_lanes(q, tile.lines, columns.weight)
    if plain:
        return
    if job.o.label_smoothing != 0:
        stays = <real>(1 - job.o.label_smoothing)
        for j in range(GROUP):
            share[j] = <real>(job.o.label_smoothing / columns.live[j])
        for c in range(tile.lines):
            for j in range(GROUP):
                q[c * GROUP + j] = fma(stays, q[c * GROUP + j], 0 if x[c * GROUP + j] == -SL_INFINITY else share[j])
    if class_weight != NULL:
        if tile.wide:
            for i in range(tile.n):
                q[i] *= <real>class_weight[tile.first + i]
        else:
            for c in range(tile.lines):
                w = <real>class_weight[c]
                for j in range(GROUP):
                    q[c * GROUP + j] *= w


cdef void clear_outputs(const Job* job, Py_ssize_t row, int want, real* s) noexcept nogil:
    """The results of a row that does not count, whatever it holds."""
    if want & (WANT_GRAD | WANT_PRODUCT | WANT_TARGET_GRAD):
        clear_row(job, &job.g, row, s)
    if want & WANT_HESS:
        clear_row(job, &job.h, row, s)
    if job.wants_probabilities:
        clear_row(job, &job.p, row, s)
    if want & WANT_STATS:
        store_row_statistics(job, row, -1, 0, 0)


# ---- one stage's beginning ------------------------------------------------------------------------

cdef void prepare_tile(const Job* job, const Tile* tile, Columns* columns, bint plain, real* e, real* x, real* q) noexcept nogil:
    """Targets and exponentials of a tile whose logits are in x."""
    tile_targets(job, tile, columns, plain, <const real*>x, q)
    if job.o.from_probabilities:
        tile_quotients(job, tile, columns, x, e)
    else:
        tile_limits(tile, columns, x)
        tile_exponentials(tile, columns, <const real*>x, e)


cdef void restore_tile(const Job* job, const Tile* tile, Columns* columns, bint kept, real* e, real* x, real* q, real* slope) noexcept nogil:
    """Logits, targets and exponentials of a tile; with `kept`, the exponentials wait in the gradient."""
    cdef bint plain = job.hard and not job.has_options
    if kept:
        tile_targets(job, tile, columns, plain, <const real*>x, q)
        read_tile(&job.g, tile, e)
        return
    tile_logits(job, tile, columns.weight, x, slope)
    prepare_tile(job, tile, columns, plain, e, x, q)


cdef void steer(const Job* job, const Tile* tile, const real* slope, real* values) noexcept nogil:
    """Times the derivative of scale and cap."""
    cdef real scale = <real>job.o.logit_scale
    cdef Py_ssize_t i
    if job.o.softcap != 0:
        for i in range(tile.lines * GROUP):
            values[i] *= scale * slope[i]
    elif job.o.logit_scale != 1:
        for i in range(tile.lines * GROUP):
            values[i] *= scale


cdef void read_vector(const Job* job, const Tile* tile, const double* weight, const real* slope, const real* e, real* v, real* ev) noexcept nogil:
    """The vector of the product, along the logits after scale and cap, and e v."""
    cdef Py_ssize_t i
    read_tile(&job.v, tile, v)
    if job.any_weight and not tile.wide:
        clear_lanes(v, tile.lines, weight)
    steer(job, tile, slope, v)
    for i in range(tile.lines * GROUP):
        ev[i] = 0 if e[i] == 0 else e[i] * v[i]

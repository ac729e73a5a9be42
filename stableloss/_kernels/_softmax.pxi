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
# of the other exponentials (see _tiles.pxi).

cdef enum:
    NARROW = 128            # classes up to which rows are lanes
    PIECE = 2048            # logits of a wide row in scratch at once: leaves room in the L1 cache
    BUFFER = NARROW * GROUP     # one of the eight buffers in scratch


cdef inline bint is_positive_infinity(real x) noexcept nogil:
    return x > 0 and x - x != 0


cdef inline real indicator_logit(real x) noexcept nogil:
    """Logits of the limit in which every +inf of a row is an equal maximum: 0 there, -inf elsewhere."""
    if x != x:
        return x
    return 0 if is_positive_infinity(x) else -SL_INFINITY


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


cdef inline void lane_totals(const real* s, Py_ssize_t k, double* total, double* lost) noexcept nogil:
    """Sum over the classes in each lane; float64 with the rounding errors carried along."""
    cdef Py_ssize_t c
    cdef int j
    cdef double t
    for j in range(GROUP):
        total[j] = <double>s[j]
        lost[j] = 0
    for c in range(1, k):
        for j in range(GROUP):
            if real is float:
                total[j] += <double>s[c * GROUP + j]
            else:
                t = total[j] + s[c * GROUP + j]
                lost[j] += (total[j] - t) + s[c * GROUP + j]
                total[j] = t


cdef void clear_lanes(real* s, Py_ssize_t k, const double* weight) noexcept nogil:
    """Zeros in place of every row of weight 0, whatever it holds."""
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        if weight[j] == 0:
            for c in range(k):
                s[c * GROUP + j] = 0


# ---- one wide row ---------------------------------------------------------------------------------

cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    return (n + LANES - 1) & ~(LANES - 1)


cdef void load_piece(const Job* job, const char* row, Py_ssize_t start, Py_ssize_t n, bint infinite, real* s) noexcept nogil:
    """Logits start ... start + n - 1 of a row, padded with -inf to a multiple of LANES."""
    cdef Py_ssize_t i
    gather(row + start * job.x.inner, job.x.kind, job.x.inner, n, s)
    if job.o.clip < SL_INFINITY:
        clamp(s, n, job.o.clip, s)
    if infinite:
        for i in range(n):
            s[i] = indicator_logit(s[i])
    for i in range(n, padded(n)):
        s[i] = -SL_INFINITY


cdef inline void fold_maximum(real* lane, int width) noexcept nogil:
    cdef int j
    for j in range(width):
        lane[j] = lane[j + width] if lane[j + width] > lane[j] else lane[j]


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
            or job.o.clip < SL_INFINITY or infinite):
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


# ---- per-row arithmetic, in float64 ---------------------------------------------------------------

cdef inline double row_scale(double weight, double divisor, double total, double total_error) noexcept nogil:
    """weight / (divisor * (total + total_error)), rounded once."""
    cdef double product = divisor * total
    cdef double error = product_error(divisor, total, product) + divisor * total_error
    cdef double q = weight / product
    cdef double qp = q * product
    cdef double residual = ((weight - qp) - product_error(q, product, qp)) - q * error
    cdef double corrected = q + residual / product
    return corrected if corrected - corrected == 0 else q


cdef bint extreme(const Job* job, const double* factor, int n, real hint) noexcept nogil:
    """Whether any factor from exponentials to a gradient is one of which float32 does not hold all digits."""
    cdef int j, out = 0
    if real is float:
        if not job.weighted and 1e-20 <= job.divisor <= 1e20:
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

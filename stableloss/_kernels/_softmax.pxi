# What the softmax losses share: rows of k logits to exponentials e_k = e**(x_k - m), m the maximum.
#
# Two shapes of work. Narrow rows (few classes) are taken GROUP at a time and transposed into scratch,
# so that rows are the lanes of the vectors and nothing is reduced across a vector. A wide row is taken
# PIECE logits at a time, in scratch as well: in and out of cache once, however the caller's array
# lies in memory. Scratch is never the caller's memory, so the loops over it vectorise in place or not.
#
# Exponentials come times UNIT (see _math.pxi), which cancels in every quotient.
#
# 1 - p is never formed. Where it matters, the sum of the other exponentials is at hand: a hard target
# is left out of the sum (`rest`); otherwise exponentials equal to UNIT are added apart from those below, and `others` = (ones - e) + below loses nothing for the maximum, nor for the rest.

cdef enum:
    GROUP = 32              # rows whose per-row arithmetic is done together, as lanes
    NARROW = 128            # classes up to which rows are lanes
    PIECE = 2048            # logits of a wide row in scratch at once: leaves room in the L1 cache
    BUFFER = NARROW * GROUP     # one of the three buffers in scratch


cdef inline bint is_positive_infinity(real x) noexcept nogil:
    return x > 0 and x - x != 0


cdef inline real indicator_logit(real x) noexcept nogil:
    """Logits of the limit in which every +inf of a row is an equal maximum: 0 there, -inf elsewhere."""
    if x != x:
        return x
    return 0 if is_positive_infinity(x) else -SL_INFINITY


# ---- rows as lanes --------------------------------------------------------------------------------

cdef inline void transpose(const real* source, Py_ssize_t source_stride, Py_ssize_t rows, Py_ssize_t columns, real* to, Py_ssize_t to_stride) noexcept nogil:
    """to[c, r] = source[r, c]; strides in elements."""
    cdef Py_ssize_t side = 4 if real is float else 2
    cdef Py_ssize_t r, c, whole_rows = 0
    if columns >= side:
        whole_rows = rows - rows % side
        for r from 0 <= r < whole_rows by side:
            c = 0
            while c < columns:
                c = min(c, columns - side)              # the last tile may overlap the one before
                if real is float:
                    sl_transpose_f32(source + r * source_stride + c, source_stride, to + c * to_stride + r, to_stride)
                else:
                    sl_transpose_f64(source + r * source_stride + c, source_stride, to + c * to_stride + r, to_stride)
                c += side
    for r in range(whole_rows, rows):
        for c in range(columns):
            to[c * to_stride + r] = source[r * source_stride + c]


cdef inline bint transposable(const Operand* op, real hint) noexcept nogil:
    """Whether the rows are contiguous floats at one distance."""
    cdef int kind = np.NPY_FLOAT if real is float else np.NPY_DOUBLE
    return (op.ndim == 1 and op.kind == kind and op.inner == <Py_ssize_t>sizeof(real)
            and op.stride[0] % <Py_ssize_t>sizeof(real) == 0)


cdef inline void load_lanes(const Operand* op, Py_ssize_t start, int count, Py_ssize_t k, real* s) noexcept nogil:
    """s[c, j] = class c of row start + j, of any element type; lanes without a row are 0."""
    cdef Py_ssize_t offset[GROUP]
    cdef Py_ssize_t c, stride
    cdef int j
    cdef real line[NARROW]
    if transposable(op, s[0]):
        stride = op.stride[0] // <Py_ssize_t>sizeof(real)
        transpose(<const real*>op.data + start * stride, stride, count, k, s, GROUP)
    else:
        row_offsets(op, start, count, offset)
        for j in range(count):
            gather(op.data + offset[j], op.kind, op.inner, k, line)
            for c in range(k):
                s[c * GROUP + j] = line[c]
    for j in range(count, GROUP):
        for c in range(k):
            s[c * GROUP + j] = 0


cdef inline void store_lanes(const real* s, const Operand* op, Py_ssize_t start, int count, Py_ssize_t k) noexcept nogil:
    cdef Py_ssize_t offset[GROUP]
    cdef Py_ssize_t c, stride
    cdef int j
    cdef char* row
    if transposable(op, s[0]):
        stride = op.stride[0] // <Py_ssize_t>sizeof(real)
        if count == GROUP:
            transpose(s, GROUP, k, GROUP, <real*>op.data + start * stride, stride)
        else:
            transpose(s, GROUP, k, count, <real*>op.data + start * stride, stride)
        return
    row_offsets(op, start, count, offset)
    for j in range(count):
        row = op.data + offset[j]
        for c in range(k):
            (<real*>(row + c * op.inner))[0] = s[c * GROUP + j]


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


cdef inline void lane_exponentials(real* s, Py_ssize_t k, const real* m) noexcept nogil:
    cdef Py_ssize_t c
    cdef int j
    cdef real a[GROUP]
    cdef real b_hi[GROUP]
    cdef real b_lo[GROUP]
    for j in range(GROUP):
        split_maximum(m[j], &a[j], &b_hi[j], &b_lo[j])
    for c in range(k):
        for j in range(GROUP):
            s[c * GROUP + j] = exp_shifted(s[c * GROUP + j], a[j], b_hi[j], b_lo[j])


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


cdef inline void clear_lanes(real* s, Py_ssize_t k, const double* weight) noexcept nogil:
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


cdef inline void load_piece(const Job* job, const char* row, Py_ssize_t start, Py_ssize_t n, bint infinite, real* s) noexcept nogil:
    """Logits start ... start + n - 1 of a row, padded with -inf to a multiple of LANES."""
    cdef Py_ssize_t i
    gather(row + start * job.x.inner, job.x.kind, job.x.inner, n, s)
    if job.clip < SL_INFINITY:
        clamp(s, n, job.clip, s)
    if infinite:
        for i in range(n):
            s[i] = indicator_logit(s[i])
    for i in range(n, padded(n)):
        s[i] = -SL_INFINITY


cdef inline void fold_maximum(real* lane, int width) noexcept nogil:
    cdef int j
    for j in range(width):
        lane[j] = lane[j + width] if lane[j + width] > lane[j] else lane[j]


cdef inline real piece_maximum(const real* s, Py_ssize_t n) noexcept nogil:
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


cdef inline const real* piece_source(const Job* job, const char* row, Py_ssize_t start, Py_ssize_t n, bint infinite, real* s) noexcept nogil:
    """Where the logits of a piece can be read: where they lie, if they are contiguous and used as
    they are, or in s. The last n % LANES of them, padded with -inf, are in s in any case."""
    cdef Py_ssize_t i, whole = n & ~(LANES - 1)
    cdef const real* source = <const real*>row + start
    if job.x.inner != <Py_ssize_t>sizeof(real) or job.clip < SL_INFINITY or infinite:
        load_piece(job, row, start, n, infinite, s)
        return s
    for i in range(whole, n):
        s[i] = source[i]
    for i in range(n, padded(n)):
        s[i] = -SL_INFINITY
    return source


cdef inline real row_maximum(const Job* job, const char* row, bint keep, bint* infinite, real* s) noexcept nogil:
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


cdef inline void exponentials(real* s, Py_ssize_t n, real m) noexcept nogil:
    """s = e**(s - m) in place, n a multiple of LANES."""
    cdef real a, b_hi, b_lo
    cdef Py_ssize_t i
    cdef int j
    split_maximum(m, &a, &b_hi, &b_lo)
    for i in range(n // LANES):
        for j in range(LANES):
            s[i * LANES + j] = exp_shifted(s[i * LANES + j], a, b_hi, b_lo)


cdef inline void scale_in_place(char* row, Py_ssize_t stride, Py_ssize_t n, real scale) noexcept nogil:
    cdef Py_ssize_t i
    cdef real* values = <real*>row
    if stride == <Py_ssize_t>sizeof(real):
        for i in range(n):
            values[i] *= scale
    else:
        for i in range(n):
            (<real*>(row + i * stride))[0] *= scale


cdef inline void clear_row(char* row, Py_ssize_t stride, Py_ssize_t n, real hint) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        (<real*>(row + i * stride))[0] = 0


cdef inline void exponentials_of(const real* source, real* s, Py_ssize_t n, real m) noexcept nogil:
    """s = e**(source - m) for the n logits of a piece from `piece_source`."""
    cdef real a, b_hi, b_lo
    cdef Py_ssize_t i, whole = n & ~(LANES - 1)
    cdef int j
    if source == s:
        exponentials(s, padded(n), m)
        return
    split_maximum(m, &a, &b_hi, &b_lo)
    for i in range(whole // LANES):
        for j in range(LANES):
            s[i * LANES + j] = exp_shifted(source[i * LANES + j], a, b_hi, b_lo)
    exponentials(s + whole, padded(n) - whole, m)


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


cdef inline void load_weights(const Job* job, Py_ssize_t start, int count, double* weight) noexcept nogil:
    cdef int j
    for j in range(GROUP):
        weight[j] = 1
    if job.weighted:
        load_flat(&job.w, start, count, weight)


cdef inline void load_classes(const Job* job, Py_ssize_t start, int count, Py_ssize_t* y) noexcept nogil:
    """Class indices of a group; the check at entry found all of them in range."""
    cdef double index[GROUP]
    cdef int j
    for j in range(GROUP):
        y[j] = 0
    load_flat(&job.t, start, count, index)
    for j in range(count):
        y[j] = <Py_ssize_t>index[j]


cdef inline void close_rows(const Job* job, Py_ssize_t start, int count, double* loss, const double* weight, Sum* total, real hint) noexcept nogil:
    """Weigh the losses of a group, and store them or add them up."""
    cdef double lost[GROUP]
    cdef int j
    for j in range(GROUP):
        loss[j] = loss[j] * weight[j] if weight[j] != 0 and j < count else 0
        lost[j] = 0
    if job.loss != NULL:
        for j in range(count):
            (<real*>job.loss)[start + j] = <real>loss[j]
    elif job.want & WANT_LOSS:
        fold_exactly(loss, lost, 16)
        fold_exactly(loss, lost, 8)
        fold_exactly(loss, lost, 4)
        fold_exactly(loss, lost, 2)
        fold_exactly(loss, lost, 1)
        add(total, loss[0])
        total.lo += lost[0]


cdef struct WideGroup:
    # Where each row of a group is, what it counts for, and its loss. Pointers are NULL where the call
    # does not ask for the thing.
    const char* row[GROUP]
    const char* target[GROUP]
    char* grad[GROUP]
    char* hess[GROUP]
    Py_ssize_t y[GROUP]
    double weight[GROUP]
    double loss[GROUP]


cdef inline void open_wide(const Job* job, Py_ssize_t start, int count, WideGroup* group, real hint) noexcept nogil:
    """Locate the rows of a group; those of weight 0 are done with here."""
    cdef Py_ssize_t offset[GROUP]
    cdef int j
    load_weights(job, start, count, group.weight)
    row_offsets(&job.x, start, count, offset)
    for j in range(count):
        group.row[j] = job.x.data + offset[j]
        group.target[j] = NULL
        group.grad[j] = NULL
        group.hess[j] = NULL
        group.loss[j] = 0
    if job.hard:
        load_classes(job, start, count, group.y)
    else:
        row_offsets(&job.t, start, count, offset)
        for j in range(count):
            group.target[j] = job.t.data + offset[j]
    if job.want & WANT_GRAD:
        row_offsets(&job.g, start, count, offset)
        for j in range(count):
            group.grad[j] = job.g.data + offset[j]
            if group.weight[j] == 0:
                clear_row(group.grad[j], job.g.inner, job.k, hint)
    if job.want & WANT_HESS:
        row_offsets(&job.h, start, count, offset)
        for j in range(count):
            group.hess[j] = job.h.data + offset[j]
            if group.weight[j] == 0:
                clear_row(group.hess[j], job.h.inner, job.k, hint)


# ---- targets as probabilities ---------------------------------------------------------------------
# For soft targets and for Hessians; class indices are spread out as one-hot rows.

cdef inline void open_lanes(const Job* job, Py_ssize_t start, int count, double* weight, real* s, real* t, real* m) noexcept nogil:
    """Logits, target probabilities, weights and maxima of a group."""
    cdef Py_ssize_t y[GROUP]
    cdef Py_ssize_t i
    cdef int j
    load_weights(job, start, count, weight)
    load_lanes(&job.x, start, count, job.k, s)
    if job.clip < SL_INFINITY:
        clamp(s, job.k * GROUP, job.clip, s)
    if job.hard:
        load_classes(job, start, count, y)
        for i in range(job.k * GROUP):
            t[i] = 0
        for j in range(GROUP):
            t[y[j] * GROUP + j] = 1
    else:
        load_lanes(&job.t, start, count, job.k, t)
    if job.weighted:
        clear_lanes(s, job.k, weight)
    lane_maximum(s, job.k, m)


cdef inline void lane_totals_apart(const real* s, Py_ssize_t k, double* below, double* lost, double* ones) noexcept nogil:
    """In each lane, the sum of the exponentials below UNIT, and that of those equal to it."""
    cdef Py_ssize_t c
    cdef int j
    cdef real e, small
    cdef real top = unit(s[0])
    cdef double t
    for j in range(GROUP):
        below[j] = 0
        lost[j] = 0
        ones[j] = 0
    for c in range(k):
        for j in range(GROUP):
            e = s[c * GROUP + j]
            small = e if e < top else 0
            if real is float:
                below[j] += <double>small
            else:
                t = below[j] + small
                lost[j] += (below[j] - t) + small
                below[j] = t
            ones[j] += <double>(e - small)


cdef inline void load_target_piece(const Job* job, const char* target, Py_ssize_t y, Py_ssize_t start, Py_ssize_t n, real* t) noexcept nogil:
    """Target probabilities of classes start ... start + n - 1, padded with 0."""
    cdef Py_ssize_t i
    if job.hard:
        for i in range(n):
            t[i] = 0
        if start <= y < start + n:
            t[y - start] = 1
    else:
        gather(target + start * job.t.inner, job.t.kind, job.t.inner, n, t)
    for i in range(n, padded(n)):
        t[i] = 0


cdef inline double totals_apart(real* s, Py_ssize_t n, double* lost, double* ones) noexcept nogil:
    """Sum of the exponentials below UNIT of a piece, n a multiple of LANES; adds the others to `ones`.
    Leaves the piece as it was."""
    cdef real lane[LANES]
    cdef real above[PIECE]
    cdef real top = unit(s[0])
    cdef Py_ssize_t i
    cdef double total, error
    for i in range(n):
        above[i] = 0 if s[i] < top else s[i]
        s[i] -= above[i]
    total = lane_sum(<const real*>s, n, lost)
    for i in range(n):
        s[i] += above[i]
    ones[0] += lane_sum(<const real*>above, n, &error)
    return total


cdef inline void piece_exponentials(const Job* job, const char* row, Py_ssize_t start, Py_ssize_t n, bint infinite, real m, const char* kept, real* s) noexcept nogil:
    """Exponentials of a piece of a row: those kept in its gradient's place, or computed again."""
    cdef Py_ssize_t i
    if kept != NULL:
        gather(kept + start * job.g.inner, job.g.kind, job.g.inner, n, s)
        for i in range(n, padded(n)):
            s[i] = 0
    else:
        load_piece(job, row, start, n, infinite, s)
        exponentials(s, padded(n), m)


cdef inline double half_gap(double m, double x) noexcept nogil:
    # m - x may overflow where its product with a probability does not
    return 0.5 * m - 0.5 * x


cdef inline void lane_products(const real* s, const real* t, Py_ssize_t k, const real* m, double* dot) noexcept nogil:
    """In each lane, sum of t (m - x); a probability of 0 makes it 0 even where x is -inf."""
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        dot[j] = 0
    for c in range(k):
        for j in range(GROUP):
            dot[j] += 0 if t[c * GROUP + j] == 0 else half_gap(m[j], s[c * GROUP + j]) * (2 * <double>t[c * GROUP + j])


cdef inline double products(const real* s, const real* t, Py_ssize_t n, real m) noexcept nogil:
    """Sum of t (m - x) over a piece, n a multiple of LANES."""
    cdef double lane[LANES]
    cdef Py_ssize_t i
    cdef int j
    for j in range(LANES):
        lane[j] = 0
    for i in range(n // LANES):
        for j in range(LANES):
            lane[j] += 0 if t[i * LANES + j] == 0 else half_gap(m, s[i * LANES + j]) * (2 * <double>t[i * LANES + j])
    return fold(lane)


cdef struct SoftRow:
    # Sums over one row: of its targets and of t (m - x), where asked for; of the exponentials below
    # UNIT, and of the others.
    double mass
    double dot
    double below
    double lost
    double ones


cdef inline void soft_sums(const Job* job, const char* row, const char* target, Py_ssize_t y, bint infinite, real m, char* kept, bint with_targets, SoftRow* sums, real* s, real* t) noexcept nogil:
    """Turn a row, whose only piece `row_maximum` left in s, into exponentials, and add up. Those of
    a row of several pieces are kept in its gradient's place, where there is one."""
    cdef Py_ssize_t start, n
    cdef double error, lost
    cdef double mass_lost = 0
    sums.mass = sums.dot = sums.below = sums.lost = sums.ones = 0
    for start from 0 <= start < job.k by PIECE:
        n = min(<Py_ssize_t>PIECE, job.k - start)
        if job.k > PIECE:
            load_piece(job, row, start, n, infinite, s)
        load_target_piece(job, target, y, start, n, t)
        if with_targets:
            sums.mass = two_sum(sums.mass, lane_sum(<const real*>t, padded(n), &lost), &error)
            mass_lost += lost + error
            sums.dot += products(<const real*>s, <const real*>t, padded(n), m)
        exponentials(s, padded(n), m)
        sums.below = two_sum(sums.below, totals_apart(s, padded(n), &lost, &sums.ones), &error)
        sums.lost += lost + error
        if kept != NULL:
            scatter(<const real*>s, kept + start * job.g.inner, job.g.inner, n)
    sums.mass += mass_lost


cdef inline real remainder_of(real e, real ones, real below) noexcept nogil:
    """Sum of the other exponentials, (ones - e) + below, without the rounding of the difference."""
    cdef real d = ones - e
    return d + (below + ((ones - d) - e))


cdef inline double square_scale(real hint, double weight, double below, double lost, double ones) noexcept nogil:
    """weight / sum**2."""
    cdef double error, total
    if real is float:
        return weight / ((ones + below) * (ones + below))
    else:
        total = two_sum(ones, below, &error)
        return row_scale(weight, total, total, 2 * (error + lost))


cdef inline double log_of_sum(real hint, double below, double lost, double ones) noexcept nogil:
    """log(sum e**(x - m))."""
    return log1p_positive(((ones - unit(hint)) + (below + lost)) * (1 / <double>unit(hint)))


cdef inline double soft_scale(real hint, double weight, double divisor, double below, double lost, double ones) noexcept nogil:
    """weight / (divisor * sum)."""
    cdef double error, total
    if real is float:
        return weight / (divisor * (ones + below))
    else:
        total = two_sum(ones, below, &error)
        return row_scale(weight, divisor, total, error + lost)


# ---- entry ----------------------------------------------------------------------------------------

cdef object softmax_loss(object logits, object targets, object weight, object out, object hess,
                         int want, int reduction, double clip, const Kernel* kernel):
    """Run a softmax loss, or return None where `_arrays` has to prepare the call or to refuse it."""
    cdef Job job
    cdef Operand every
    cdef int ndim, kind
    cdef np.ndarray losses = None
    cdef double total
    if not (np.PyArray_CheckExact(logits) and np.PyArray_CheckExact(targets)):
        return None
    kind = element_kind(logits)
    ndim = np.PyArray_NDIM(logits)
    if (kind != np.NPY_FLOAT and kind != np.NPY_DOUBLE) or ndim == 0 or element_kind(targets) < 0:
        return None
    job.k = np.PyArray_DIMS(logits)[ndim - 1]
    job.hard = np.PyArray_NDIM(targets) == ndim - 1
    if job.k == 0 or not same_shape(targets, logits, ndim - 1 if job.hard else ndim):
        return None
    job.n = np.PyArray_SIZE(logits) // job.k
    job.want = want
    job.clip = clip
    job.block = max(1, BLOCK_ITEMS // job.k)
    if job.block > GROUP:
        job.block -= job.block % GROUP
    job.loss = NULL
    bind(&job.x, logits, kind, ndim - 1)
    bind(&job.t, targets, element_kind(targets), ndim - 1)
    bind(&every, targets, job.t.kind, np.PyArray_NDIM(targets))
    if not in_range(&every, np.PyArray_SIZE(targets), job.k - 1 if job.hard else 1.7976931348623157e308, job.hard):
        return None
    job.weighted = weight is not None
    if job.weighted:
        if not (np.PyArray_CheckExact(weight) and element_kind(weight) >= 0 and same_shape(weight, logits, ndim - 1)):
            return None
        bind(&job.w, weight, element_kind(weight), ndim - 1)
        if not in_range(&job.w, job.n, 1.7976931348623157e308, False):
            return None
    if want & WANT_GRAD:
        out = derivative_array(out, logits, targets, weight)
        if out is None:
            return None
        bind(&job.g, out, kind, ndim - 1)
    if want & WANT_HESS:
        hess = derivative_array(hess, logits, targets, weight)
        # the Hessian is written before the gradient is computed
        if hess is None or not disjoint(hess, logits) or not disjoint(hess, out):
            return None
        bind(&job.h, hess, kind, ndim - 1)
    job.divisor = 1
    if reduction == REDUCE_NONE:
        if want & WANT_LOSS:
            losses = np.PyArray_EMPTY(ndim - 1, np.PyArray_DIMS(logits), kind, 0)
            job.loss = np.PyArray_BYTES(losses)
    elif reduction == REDUCE_MEAN and job.weighted:
        job.divisor = weight_total(&job.w, job.n)
    elif reduction == REDUCE_MEAN or reduction == REDUCE_BATCHMEAN:
        job.divisor = job.n
    if job.divisor == 0:
        job.divisor = 1         # no row counts: the loss is 0, the gradient 0 (or empty)
    total = run(&job, kernel, (logits, targets, weight, out, hess, losses))
    return results(want, reduction, total / job.divisor, losses, out, hess)

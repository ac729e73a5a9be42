# Sums in a fixed order: of the losses of rows, of the numbers of a row, of the columns of a tile.
#
# float32 is added in float64. A sum of float64 carries along, in `lo`, what its roundings lost.
#
# uses _math: SL_ISFINITE product_error real two_sum unit

cdef extern from "sl_sizes.h":
    enum: GROUP "SL_GROUP"
    enum: NARROW "SL_NARROW"
    enum: PIECE "SL_PIECE"
    enum: TILE "SL_TILE"
    enum: CHUNK "SL_CHUNK"


cdef struct Sum:
    # An unevaluated hi + lo. Block sums are added in block order, whatever thread made them.
    double hi
    double lo


cdef inline void add(Sum* total, double value) noexcept nogil:
    cdef double lo
    total.hi = two_sum(total.hi, value, &lo)
    total.lo += lo


cdef inline double evaluate(const Sum* total) noexcept nogil:
    cdef double s = total.hi + total.lo
    # the error term of an infinite sum is inf - inf
    return s if SL_ISFINITE(s) else total.hi


# ---- terms ----------------------------------------------------------------------------------------

cdef inline void accumulate(real hint, double* hi, double* lo, double term) noexcept nogil:
    """Add a term. The short form of the two-sum is enough: a sum of non-negative terms is rarely smaller than
    the term that it meets, and such a step costs one rounding at most."""
    cdef double s = hi[0] + term
    if real is double:
        lo[0] += (hi[0] - s) + term
    hi[0] = s


cdef inline void accumulate_square(real v, double* hi, double* lo) noexcept nogil:
    cdef double x = v
    cdef double square = x * x
    cdef double s = hi[0] + square
    if real is double:
        lo[0] += ((hi[0] - s) + square) + product_error(x, x, square)
    hi[0] = s


cdef inline void fold(double* hi, double* lo, int width) noexcept nogil:
    """One step of a tree: `width` numbers and as many after them."""
    cdef double error
    cdef int j
    for j in range(width):
        hi[j] = two_sum(hi[j], hi[j + width], &error)
        lo[j] += lo[j + width] + error


cdef inline void fold_all(double* hi, double* lo, int width) noexcept nogil:
    """Sum of `width` numbers, GROUP or half of it, in hi[0] and lo[0]."""
    if width == GROUP:
        fold(hi, lo, 16)
    fold(hi, lo, 8)
    fold(hi, lo, 4)
    fold(hi, lo, 2)
    fold(hi, lo, 1)


cdef inline void fold_maximum(real* m, int width) noexcept nogil:
    cdef int j
    for j in range(width):
        m[j] = m[j + width] if m[j + width] > m[j] else m[j]


cdef inline real maximum_of(real* m) noexcept nogil:
    """Maximum of GROUP numbers, which are overwritten; NaN may lose."""
    fold_maximum(m, 16)
    fold_maximum(m, 8)
    fold_maximum(m, 4)
    fold_maximum(m, 2)
    fold_maximum(m, 1)
    return m[0]


# ---- numbers of one row ---------------------------------------------------------------------------

cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    return (n + GROUP - 1) & ~(GROUP - 1)


cdef inline void add_term(real v, bint squared, double* hi, double* lo) noexcept nogil:
    if squared:
        accumulate_square(v, hi, lo)
    else:
        accumulate(v, hi, lo, v)


cdef inline double ordered_sum(const real* v, Py_ssize_t n, bint squared, double* lo) noexcept nogil:
    """Sum of n numbers, or of their squares, one after the other."""
    cdef double hi = 0
    cdef Py_ssize_t i
    lo[0] = 0
    for i in range(n):
        add_term(v[i], squared, &hi, lo)
    return hi


cdef inline double sum_in_lanes(const real* v, Py_ssize_t n, bint squared, double* lo) noexcept nogil:
    cdef double hi[GROUP]
    cdef double lost[GROUP]
    cdef int j
    cdef Py_ssize_t i
    if real is float:
        for j in range(GROUP):
            hi[j] = 0
        for i in range(n // GROUP):
            for j in range(GROUP):
                add_term(v[i * GROUP + j], squared, &hi[j], &lost[j])
        fold_all(hi, lost, GROUP)
        lo[0] = 0
    else:
        for j in range(GROUP // 2):
            hi[j] = lost[j] = 0
        for i in range(n // (GROUP // 2)):
            for j in range(GROUP // 2):
                add_term(v[i * (GROUP // 2) + j], squared, &hi[j], &lost[j])
        fold_all(hi, lost, GROUP // 2)
        lo[0] = lost[0]
    return hi[0]


cdef double lane_sum(const real* v, Py_ssize_t n, double* lo) noexcept nogil:
    """Sum of n numbers, n a multiple of GROUP: in lanes that are added in the end."""
    return sum_in_lanes(v, n, False, lo)


cdef double lane_squares(const real* v, Py_ssize_t n, double* lo) noexcept nogil:
    return sum_in_lanes(v, n, True, lo)


# ---- columns of a tile ----------------------------------------------------------------------------

cdef struct Total:
    # A sum per column, and what its rounding lost.
    double hi[GROUP]
    double lo[GROUP]


cdef struct Split:
    # A sum over the classes, apart for exponentials below UNIT and for those equal to it.
    Total rest
    Total max


cdef void start_total(Total* total) noexcept nogil:
    cdef int j
    for j in range(GROUP):
        total.hi[j] = total.lo[j] = 0


cdef void start_split(Split* split) noexcept nogil:
    start_total(&split.rest)
    start_total(&split.max)


cdef void fold_columns(Total* total, bint wide) noexcept nogil:
    """Add across the columns where they are parts of one row."""
    cdef int j
    if not wide:
        return
    fold_all(total.hi, total.lo, GROUP)
    for j in range(1, GROUP):
        total.hi[j] = total.hi[0]
        total.lo[j] = total.lo[0]


cdef void reduce_columns(Total* total, bint wide) noexcept nogil:
    """Add across the columns of a wide row, and what was lost to the sums; `lo` keeps what that rounds away."""
    cdef double s
    cdef int j
    fold_columns(total, wide)
    for j in range(GROUP):
        # what an infinite sum lost is inf - inf
        s = total.hi[j] + total.lo[j] if SL_ISFINITE(total.hi[j]) else total.hi[j]
        total.lo[j] -= s - total.hi[j]
        total.hi[j] = s


cdef void reduce_split(Split* split, bint wide) noexcept nogil:
    reduce_columns(&split.rest, wide)
    reduce_columns(&split.max, wide)


cdef inline void column_sums(const real* s, Py_ssize_t k, double* hi, double* lo) noexcept nogil:
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        hi[j] = <double>s[j]
        lo[j] = 0
    for c in range(1, k):
        for j in range(GROUP):
            accumulate(s[0], &hi[j], &lo[j], <double>s[c * GROUP + j])


cdef void column_squares(const real* s, Py_ssize_t k, double* hi, double* lo) noexcept nogil:
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        hi[j] = lo[j] = 0
    for c in range(k):
        for j in range(GROUP):
            accumulate_square(s[c * GROUP + j], &hi[j], &lo[j])


cdef void sum_exponentials(const real* e, Py_ssize_t lines, Split* sums) noexcept nogil:
    # those equal to UNIT, whole numbers of it, lose nothing
    cdef double rest[GROUP]
    cdef double lo[GROUP]
    cdef double max_[GROUP]
    cdef real v, below
    cdef real e_max = unit(e[0])
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        rest[j] = sums.rest.hi[j]
        lo[j] = sums.rest.lo[j]
        max_[j] = sums.max.hi[j]
    for c in range(lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            below = v if v < e_max else 0
            accumulate(v, &rest[j], &lo[j], below)
            max_[j] += <double>(v - below)
    for j in range(GROUP):
        sums.rest.hi[j] = rest[j]
        sums.rest.lo[j] = lo[j]
        sums.max.hi[j] = max_[j]


cdef void sum_split(const real* e, const real* v, Py_ssize_t lines, Split* sums) noexcept nogil:
    """Add up v, apart where the exponential is UNIT."""
    cdef double rest[GROUP]
    cdef double rest_lo[GROUP]
    cdef double max_[GROUP]
    cdef double max_lo[GROUP]
    cdef real e_max = unit(e[0])
    cdef bint below
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        rest[j] = sums.rest.hi[j]
        rest_lo[j] = sums.rest.lo[j]
        max_[j] = sums.max.hi[j]
        max_lo[j] = sums.max.lo[j]
    for c in range(lines):
        for j in range(GROUP):
            below = e[c * GROUP + j] < e_max
            accumulate(e[0], &rest[j], &rest_lo[j], v[c * GROUP + j] if below else 0)
            accumulate(e[0], &max_[j], &max_lo[j], 0 if below else v[c * GROUP + j])
    for j in range(GROUP):
        sums.rest.hi[j] = rest[j]
        sums.rest.lo[j] = rest_lo[j]
        sums.max.hi[j] = max_[j]
        sums.max.lo[j] = max_lo[j]


cdef void sum_split_squares(const real* e, Py_ssize_t lines, Split* sums) noexcept nogil:
    cdef double e_max = unit(e[0])
    cdef double v
    cdef Py_ssize_t c
    cdef int j
    for c in range(lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            accumulate(e[0], &sums.rest.hi[j], &sums.rest.lo[j], v * v if v < e_max else 0)
            accumulate(e[0], &sums.max.hi[j], &sums.max.lo[j], 0 if v < e_max else v * v)

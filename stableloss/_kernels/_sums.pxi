# Sums in a fixed order: of the losses of rows, of the numbers of a row, of the columns of a tile.
#
# float32 is added in float64. A sum of float64 carries along, in `lo`, what its roundings lost.
#
# uses _math: SL_ISFINITE product_error real two_sum unit

cdef extern from "sl_sizes.h":
    enum: GROUP "SL_GROUP"
    enum: NARROW "SL_NARROW"
    enum: FEW_F32 "SL_FEW_F32"
    enum: FEW_F64 "SL_FEW_F64"
    enum: PIECE "SL_PIECE"
    enum: TILE "SL_TILE"
    enum: CHUNK "SL_CHUNK"

cdef extern from "sl_columns.h":
    void sl_column_sums_f32(const float*, Py_ssize_t, double*) noexcept nogil
    double sl_ordered_sum_f32(const float*, Py_ssize_t) noexcept nogil
    void sl_column_sums_f64(const double*, Py_ssize_t, double*, double*) noexcept nogil
    double sl_lane_sum_f32(const float*, Py_ssize_t) noexcept nogil
    double sl_lane_sum_f64(const double*, Py_ssize_t, double*) noexcept nogil
    void sl_brief_column_sums(const double*, Py_ssize_t, double*) noexcept nogil
    double sl_brief_lane_sum(const double*, Py_ssize_t) noexcept nogil

cdef extern from "sl_targets.h" nogil:
    void sl_clear(double*) noexcept
    void sl_fold(double*, double*) noexcept
    void sl_split_sums_f32(const float*, Py_ssize_t, double, double*, double*) noexcept
    void sl_split_sums_f64(const double*, Py_ssize_t, double, double*, double*, double*) noexcept


cdef double FAR = 2.0**-128     # what a sum that float64 does not hold is multiplied by: it is to be divided


cdef struct Sum:
    # An unevaluated hi + lo, times FAR where `far`. Block sums are added in block order, whatever thread
    # made them.
    double hi
    double lo
    bint far


cdef inline void clear_sum(Sum* total) noexcept nogil:
    total.hi = total.lo = 0
    total.far = False


cdef void add_far(Sum* total, double value) noexcept nogil:
    """Add value / FAR."""
    cdef double lo
    if not total.far:
        total.hi *= FAR
        total.lo *= FAR
        total.far = True
    total.hi = two_sum(total.hi, value, &lo)
    total.lo += lo


cdef inline void add(Sum* total, double value, double value_lo) noexcept nogil:
    cdef double lo
    cdef double s = two_sum(total.hi, value, &lo)
    if total.far or not SL_ISFINITE(s):
        add_far(total, value * FAR)
        return
    total.hi = s
    total.lo += lo + value_lo


cdef inline void add_sum(Sum* total, const Sum* part) noexcept nogil:
    if part.far:
        add_far(total, part.hi)
        total.lo += part.lo
    else:
        add(total, part.hi, 0)
        total.lo += part.lo * FAR if total.far else part.lo


cdef inline double quotient(const Sum* total, double divisor) noexcept nogil:
    cdef double s = total.hi + total.lo
    # the error term of an infinite sum is inf - inf
    s = (s if SL_ISFINITE(s) else total.hi) / divisor
    return s / FAR if total.far else s


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
    """One step of a tree: `width` numbers and as many after them; `sl_fold` takes all steps of GROUP."""
    cdef double error
    cdef int j
    for j in range(width):
        hi[j] = two_sum(hi[j], hi[j + width], &error)
        lo[j] += lo[j + width] + error


cdef inline void fold_half(double* hi, double* lo) noexcept nogil:
    """Sum of half of GROUP numbers, in hi[0] and lo[0]."""
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


cdef inline void clear_padding(real* values, Py_ssize_t n) noexcept nogil:
    """0 after n numbers, up to whole lines."""
    cdef Py_ssize_t i
    for i in range(n, padded(n)):
        values[i] = 0


cdef inline void add_term(real v, bint squared, double* hi, double* lo) noexcept nogil:
    if squared:
        accumulate_square(v, hi, lo)
    else:
        accumulate(v, hi, lo, v)


cdef inline bint few_classes(real hint, Py_ssize_t k) noexcept nogil:
    """Whether rows of class indices may be columns."""
    if real is float:
        return k <= FEW_F32
    else:
        return k <= FEW_F64


cdef inline double ordered_sum(const real* v, Py_ssize_t n, bint squared, double* lo) noexcept nogil:
    """Sum of n numbers, or of their squares, in the order in which a column is added up."""
    cdef double hi = 0
    cdef Py_ssize_t i
    lo[0] = 0
    if real is float:
        if not squared:
            return sl_ordered_sum_f32(v, n)
    for i in range(n):
        add_term(v[i], squared, &hi, lo)
    return hi


cdef inline double lane_sum(const real* v, Py_ssize_t n, double* lo) noexcept nogil:
    """Sum of n numbers, n a multiple of GROUP: in lanes that are added in the end."""
    if real is float:
        lo[0] = 0
        return sl_lane_sum_f32(v, n)
    else:
        return sl_lane_sum_f64(v, n, lo)


cdef inline double sum_in_lanes(const real* v, Py_ssize_t n, bint brief, double* lo) noexcept nogil:
    """The same; brief to the digits of float32, where that is computed in float64."""
    if real is double:
        if brief:
            lo[0] = 0
            return sl_brief_lane_sum(v, n)
    return lane_sum(v, n, lo)


cdef double lane_squares(const real* v, Py_ssize_t n, double* lo) noexcept nogil:
    cdef int width = GROUP if real is float else GROUP // 2
    cdef double hi[GROUP]
    cdef double lost[GROUP]
    cdef Py_ssize_t i, j
    for j in range(width):
        hi[j] = lost[j] = 0
    for i in range(n // width):
        for j in range(width):
            accumulate_square(v[i * width + j], &hi[j], &lost[j])
    if real is float:
        sl_fold(hi, lost)
    else:
        fold_half(hi, lost)
    lo[0] = lost[0] if real is double else 0
    return hi[0]


# ---- columns of a tile ----------------------------------------------------------------------------

cdef struct Pairs:
    # A number per column, as an unevaluated hi + lo; sl_targets_of.h counts on their order.
    double hi[GROUP]
    double lo[GROUP]


cdef struct Split:
    # A sum over the classes, apart for exponentials below UNIT and for those equal to it.
    Pairs rest
    Pairs max


cdef inline void copy_pairs(const Pairs* from_, Pairs* to) noexcept nogil:
    # one column after the other: an assignment becomes two slow block moves
    cdef int j
    for j in range(GROUP):
        to.hi[j] = from_.hi[j]
    for j in range(GROUP):
        to.lo[j] = from_.lo[j]


cdef inline void copy_split(const Split* from_, Split* to) noexcept nogil:
    copy_pairs(&from_.rest, &to.rest)
    copy_pairs(&from_.max, &to.max)


cdef void clear_pairs(Pairs* sums) noexcept nogil:
    sl_clear(sums.hi)
    sl_clear(sums.lo)


cdef void clear_split(Split* split) noexcept nogil:
    clear_pairs(&split.rest)
    clear_pairs(&split.max)


cdef inline void spread(double* columns) noexcept nogil:
    """Set all to the first, which is stored as well: a vector loaded next would wait for two stores."""
    cdef double first = columns[0]
    cdef int j
    for j in range(GROUP):
        columns[j] = first


cdef void fold_columns(Pairs* sums, bint wide) noexcept nogil:
    """Add across the columns where they are parts of one row."""
    if not wide:
        return
    sl_fold(sums.hi, sums.lo)
    spread(sums.hi)
    spread(sums.lo)


cdef inline void add_before(double hi, double lo, Pairs* sums) noexcept nogil:
    """To the sum of a tile of a wide row, that of the tiles before it."""
    cdef double error
    sums.hi[0] = two_sum(hi, sums.hi[0], &error)
    sums.lo[0] = lo + (sums.lo[0] + error)


cdef inline void reduce_column(Pairs* sums, int j) noexcept nogil:
    # what an infinite sum lost is inf - inf
    cdef double s = sums.hi[j] + sums.lo[j] if SL_ISFINITE(sums.hi[j]) else sums.hi[j]
    sums.lo[j] -= s - sums.hi[j]
    sums.hi[j] = s


cdef void reduce_columns(Pairs* sums, bint wide) noexcept nogil:
    """Add across the columns of a wide row, and what was lost to the sums; `lo` keeps what that loses."""
    cdef int j
    fold_columns(sums, wide)
    for j in range(GROUP):
        reduce_column(sums, j)


cdef void reduce_split(Split* split, bint wide) noexcept nogil:
    reduce_columns(&split.rest, wide)
    reduce_columns(&split.max, wide)


cdef inline void column_sums(
    const real* s, Py_ssize_t k, bint squared, bint brief, Pairs* sums
) noexcept nogil:
    cdef Py_ssize_t c, j
    sl_clear(sums.hi)
    sl_clear(sums.lo)
    if squared:
        for c in range(k):
            for j in range(GROUP):
                accumulate_square(s[c * GROUP + j], &sums.hi[j], &sums.lo[j])
    elif real is float:
        sl_column_sums_f32(s, k, sums.hi)
    elif brief:
        sl_brief_column_sums(s, k, sums.hi)
    else:
        sl_column_sums_f64(s, k, sums.hi, sums.lo)


cdef void sum_exponentials(const real* e, Py_ssize_t lines, Split* sums) noexcept nogil:
    # those of the maximum are whole numbers of UNIT, of which nothing is lost
    if real is float:
        sl_split_sums_f32(e, lines, unit(e[0]), sums.rest.hi, sums.max.hi)
    else:
        sl_split_sums_f64(e, lines, unit(e[0]), sums.rest.hi, sums.rest.lo, sums.max.hi)


cdef void sum_split(const real* e, const real* v, Py_ssize_t lines, Split* sums) noexcept nogil:
    """Add up v, apart where the exponential is UNIT."""
    cdef Split sum
    cdef real e_max = unit(e[0])
    cdef bint below
    cdef Py_ssize_t c, i, j
    copy_split(sums, &sum)
    for c in range(lines):
        for j in range(GROUP):
            i = c * GROUP + j
            below = e[i] < e_max
            accumulate(e[0], &sum.rest.hi[j], &sum.rest.lo[j], v[i] if below else 0)
            accumulate(e[0], &sum.max.hi[j], &sum.max.lo[j], 0 if below else v[i])
    copy_split(&sum, sums)


cdef void sum_split_squares(const real* e, Py_ssize_t lines, Split* sums) noexcept nogil:
    cdef Split sum
    cdef double e_max = unit(e[0])
    cdef double v
    cdef Py_ssize_t c, j
    copy_split(sums, &sum)
    for c in range(lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            accumulate(e[0], &sum.rest.hi[j], &sum.rest.lo[j], v * v if v < e_max else 0)
            accumulate(e[0], &sum.max.hi[j], &sum.max.lo[j], 0 if v < e_max else v * v)
    copy_split(&sum, sums)

# Sums in a fixed order: of rows in blocks, of numbers in lanes, of columns of a tile.

cdef enum:
    GROUP = 32              # rows whose per-row arithmetic is done together, as lanes
    LANES = 32              # lanes of a sum; fixed, so that every level adds in the same order

cdef struct Sum:
    # An unevaluated hi + lo. Block sums are added in block order, whatever thread made them.
    double hi
    double lo


cdef inline void add(Sum* total, double value) noexcept nogil:
    cdef double error
    total.hi = two_sum(total.hi, value, &error)
    total.lo += error


cdef inline double evaluate(const Sum* total) noexcept nogil:
    cdef double s = total.hi + total.lo
    # the error term of an infinite sum is inf - inf
    return s if SL_ISFINITE(s) else total.hi


cdef inline double fold(double* lane) noexcept nogil:
    """Sum of LANES numbers, as a tree; overwrites them."""
    cdef int j
    for j in range(16):
        lane[j] += lane[j + 16]
    for j in range(8):
        lane[j] += lane[j + 8]
    for j in range(4):
        lane[j] += lane[j + 4]
    return (lane[0] + lane[2]) + (lane[1] + lane[3])


cdef inline void fold_exactly(double* lane, double* lost, int width) noexcept nogil:
    """One step of the tree, with the rounding errors added to `lost`."""
    cdef double error
    cdef int j
    for j in range(width):
        lane[j] = two_sum(lane[j], lane[j + width], &error)
        lost[j] += lost[j + width] + error


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    return (n + LANES - 1) & ~(LANES - 1)


cdef double lane_sum(const real* v, Py_ssize_t n, double* error) noexcept nogil:
    """Sum of n numbers, n a multiple of LANES, in a fixed order; `error` gets what rounding lost.

    float32 is added in float64. float64 lanes carry the rounding error of each addition along; the
    short form of the two-sum is enough, as a lane of non-negative terms is rarely smaller than the
    term that it meets, and such a step costs one rounding at most.
    """
    cdef Py_ssize_t i
    cdef int j
    cdef double lane[LANES]
    cdef double lost[LANES]
    cdef double s
    if real is float:
        for j in range(LANES):
            lane[j] = 0
        for i in range(n // LANES):
            for j in range(LANES):
                lane[j] += <double>v[i * LANES + j]
        error[0] = 0
        return fold(lane)
    else:
        for j in range(LANES // 2):
            lane[j] = 0
            lost[j] = 0
        for i in range(n // (LANES // 2)):
            for j in range(LANES // 2):
                s = lane[j] + v[i * (LANES // 2) + j]
                lost[j] += (lane[j] - s) + v[i * (LANES // 2) + j]
                lane[j] = s
        fold_exactly(lane, lost, 8)
        fold_exactly(lane, lost, 4)
        fold_exactly(lane, lost, 2)
        fold_exactly(lane, lost, 1)
        error[0] = lost[0]
        return lane[0]


cdef inline void fold_maximum(real* lane, int width) noexcept nogil:
    cdef int j
    for j in range(width):
        lane[j] = lane[j + width] if lane[j + width] > lane[j] else lane[j]


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


cdef struct Total:
    # A sum per column, and what its rounding lost.
    double sum[GROUP]
    double lost[GROUP]


cdef void start_total(Total* total) noexcept nogil:
    cdef int j
    for j in range(GROUP):
        total.sum[j] = total.lost[j] = 0


cdef inline void accumulate(real hint, double* total, double* lost, double term) noexcept nogil:
    """Add a term: float64 ones with the rounding errors carried along."""
    cdef double s = total[0] + term
    if real is double:
        lost[0] += (total[0] - s) + term
    total[0] = s


cdef void settle(Total* total, bint wide) noexcept nogil:
    """Add across the columns where they are parts of one row."""
    cdef int j
    if not wide:
        return
    fold_exactly(total.sum, total.lost, 16)
    fold_exactly(total.sum, total.lost, 8)
    fold_exactly(total.sum, total.lost, 4)
    fold_exactly(total.sum, total.lost, 2)
    fold_exactly(total.sum, total.lost, 1)
    for j in range(1, GROUP):
        total.sum[j] = total.sum[0]
        total.lost[j] = total.lost[0]


cdef void settle_whole(Total* total, bint wide) noexcept nogil:
    """The same, with the lost parts added in; `lost` keeps what that rounds away."""
    cdef double whole
    cdef int j
    settle(total, wide)
    for j in range(GROUP):
        # the lost part of an infinite sum is inf - inf
        whole = total.sum[j] + total.lost[j] if SL_ISFINITE(total.sum[j]) else total.sum[j]
        total.lost[j] -= whole - total.sum[j]
        total.sum[j] = whole


cdef void tile_totals(const real* e, Py_ssize_t lines, Total* below, Total* ones) noexcept nogil:
    """Add up the exponentials of each column: those below UNIT, and those equal to it."""
    cdef double b[GROUP]
    cdef double b_lost[GROUP]
    cdef double o[GROUP]
    cdef Py_ssize_t c
    cdef int j
    cdef real v, small
    cdef real top = unit(e[0])
    for j in range(GROUP):
        b[j] = below.sum[j]
        b_lost[j] = below.lost[j]
        o[j] = ones.sum[j]
    for c in range(lines):
        for j in range(GROUP):
            v = e[c * GROUP + j]
            small = v if v < top else 0
            accumulate(v, &b[j], &b_lost[j], small)
            o[j] += <double>(v - small)
    for j in range(GROUP):
        below.sum[j] = b[j]
        below.lost[j] = b_lost[j]
        ones.sum[j] = o[j]


cdef void tile_split_sum(const real* e, const real* v, Py_ssize_t lines, Total* below, Total* ones) noexcept nogil:
    """Add up v in each column, apart where the exponential is UNIT."""
    cdef double b[GROUP]
    cdef double b_lost[GROUP]
    cdef double o[GROUP]
    cdef double o_lost[GROUP]
    cdef Py_ssize_t c
    cdef int j
    cdef bint small
    cdef real top = unit(e[0])
    for j in range(GROUP):
        b[j] = below.sum[j]
        b_lost[j] = below.lost[j]
        o[j] = ones.sum[j]
        o_lost[j] = ones.lost[j]
    for c in range(lines):
        for j in range(GROUP):
            small = e[c * GROUP + j] < top
            accumulate(e[0], &b[j], &b_lost[j], v[c * GROUP + j] if small else 0)
            accumulate(e[0], &o[j], &o_lost[j], 0 if small else v[c * GROUP + j])
    for j in range(GROUP):
        below.sum[j] = b[j]
        below.lost[j] = b_lost[j]
        ones.sum[j] = o[j]
        ones.lost[j] = o_lost[j]

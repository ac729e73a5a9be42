# Softmax + quadratic cost, from logits x and class indices or target probabilities t, p = softmax(x).
#
#   loss  1/2 sum_k d_k**2,  d = p - t
#   grad  p_k b_k,  b_k = d_k - sum_j p_j d_j
#   hess  p_k (b_k (1 - 2 p_k) + p_k (1 - 2 p_k + sum_j p_j**2))
#
# All is computed from the exponentials e, their sum and others = sum - e, and divided by powers of the
# sum at the end: d sum = e (1 - t) - t others, of which a one-hot target leaves one term. Where one
# class m takes nearly all of the probability, d_m - p_m d_m is d_m (1 - p_m), which is formed as that
# and its own terms kept out of the sums: b_m = d_m (1 - p_m) - sum_{j != m} p_j d_j, and
# 1 - 2 p_m + sum p**2 = (1 - p_m)**2 + sum_{j != m} p_j**2.
#
# Each result is a product of several quantities, so float32 goes through float64 from the
# exponentials on.

cdef enum:
    # fewer lanes than elsewhere, for three sums at once; 8 would be unrolled before they are vectorised
    MSE_LANES = 16


cdef inline double mse_others(real hint, double e, double ones, double below) noexcept nogil:
    if real is float:
        return (ones - e) + below       # float64 has digits to spare
    else:
        return remainder_of(e, ones, below)


cdef inline double mse_difference(double e, double t, double others) noexcept nogil:
    """(p - t) sum."""
    return SL_FMA(e, 1 - t, -(t * others))


cdef inline double mse_bracket(double d, double others, double total, double ed_below, double ed_ones, bint apart) noexcept nogil:
    """b sum**2; `apart` for the one class whose exponential is UNIT."""
    return SL_FMA(d, others, -ed_below) if apart else SL_FMA(d, total, -ed_ones) - ed_below


cdef inline double mse_second(double e, double others, double bracket, double ee_rest) noexcept nogil:
    """Second derivative times sum**4 / e."""
    return SL_FMA(bracket, others - e, e * SL_FMA(others, others, ee_rest))


cdef inline void accumulate(real hint, double* total, double* lost, double term) noexcept nogil:
    cdef double s = total[0] + term
    if real is double:
        lost[0] += (total[0] - s) + term
    total[0] = s


cdef void mse_narrow(const Job* job, Py_ssize_t start, int count, Sum* total, real* s) noexcept nogil:
    cdef real m[GROUP]
    cdef double weight[GROUP]
    cdef double below[GROUP]
    cdef double ones[GROUP]
    cdef double whole[GROUP]
    cdef double factor[GROUP]
    cdef double square[GROUP]
    cdef double value[GROUP]
    cdef double ed_below[GROUP]
    cdef double ed_ones[GROUP]
    cdef double ee_below[GROUP]
    cdef double ee_ones[GROUP]
    cdef double value_lost[GROUP]
    cdef double below_lost[GROUP]
    cdef double ones_lost[GROUP]
    cdef real* t = s + BUFFER
    cdef real* h = s + 2 * BUFFER
    cdef double top = unit(s[0])
    cdef Py_ssize_t c, i, k = job.k
    cdef int j
    cdef double e, d, others, bracket
    open_lanes(job, start, count, weight, s, t, m)
    lane_exponentials(s, k, m)
    lane_totals_apart(<const real*>s, k, below, below_lost, ones)
    for j in range(GROUP):
        factor[j] = soft_scale(m[j], weight[j], job.divisor, below[j], below_lost[j], ones[j])
        square[j] = square_scale(m[j], 1, below[j], below_lost[j], ones[j])
        below[j] += below_lost[j]
        whole[j] = ones[j] + below[j]
        value[j] = ed_below[j] = ed_ones[j] = ee_below[j] = ee_ones[j] = 0
        value_lost[j] = below_lost[j] = ones_lost[j] = 0
    for c in range(k):
        for j in range(GROUP):
            e = s[c * GROUP + j]
            d = mse_difference(e, t[c * GROUP + j], mse_others(s[0], e, ones[j], below[j]))
            accumulate(s[0], &value[j], &value_lost[j], d * d)
            accumulate(s[0], &ed_below[j], &below_lost[j], e * d if e < top else 0)
            accumulate(s[0], &ed_ones[j], &ones_lost[j], 0 if e < top else e * d)
    for j in range(GROUP):
        value[j] = 0.5 * (value[j] + value_lost[j]) * square[j]
        ed_below[j] += below_lost[j]
        ed_ones[j] += ones_lost[j]
    close_rows(job, start, count, value, weight, total, m[0])
    if job.want & WANT_HESS:
        for c in range(k):
            for j in range(GROUP):
                e = s[c * GROUP + j]
                ee_below[j] += e * e if e < top else 0
                ee_ones[j] += 0 if e < top else e * e
        for c in range(k):
            for j in range(GROUP):
                e = s[c * GROUP + j]
                others = mse_others(s[0], e, ones[j], below[j])
                d = mse_difference(e, t[c * GROUP + j], others)
                bracket = mse_bracket(d, others, whole[j], ed_below[j], ed_ones[j], (ones[j] == top) & (e == top))
                h[c * GROUP + j] = <real>(e * mse_second(e, others, bracket, (ee_ones[j] - e * e) + ee_below[j])
                                          * square[j] * (weight[j] * square[j]))
        store_lanes(<const real*>h, &job.h, start, count, k)
    if job.want & WANT_GRAD:
        for c in range(k):
            for j in range(GROUP):
                e = s[c * GROUP + j]
                others = mse_others(s[0], e, ones[j], below[j])
                d = mse_difference(e, t[c * GROUP + j], others)
                bracket = mse_bracket(d, others, whole[j], ed_below[j], ed_ones[j], (ones[j] == top) & (e == top))
                s[c * GROUP + j] = <real>((e * factor[j]) * (bracket * square[j]))
        store_lanes(<const real*>s, &job.g, start, count, k)


cdef struct MseSums:
    # Sums over a row's classes; those over the exponentials equal to UNIT apart from those below.
    double value            # (d sum)**2
    double ed_below         # e d sum
    double ed_ones
    double ee_below         # e**2
    double ee_ones


cdef inline void mse_sums(const real* s, const real* t, Py_ssize_t n, double ones, double below, MseSums* sums) noexcept nogil:
    """Add the sums over a piece, n a multiple of LANES, but for the squares e**2."""
    cdef double value[MSE_LANES]
    cdef double ed_below[MSE_LANES]
    cdef double ed_ones[MSE_LANES]
    cdef double value_lost[MSE_LANES]
    cdef double below_lost[MSE_LANES]
    cdef double ones_lost[MSE_LANES]
    cdef double top = unit(s[0])
    cdef Py_ssize_t i
    cdef int j
    cdef double e, d
    for j in range(MSE_LANES):
        value[j] = ed_below[j] = ed_ones[j] = value_lost[j] = below_lost[j] = ones_lost[j] = 0
    for i in range(n // MSE_LANES):
        for j in range(MSE_LANES):
            e = s[i * MSE_LANES + j]
            d = mse_difference(e, t[i * MSE_LANES + j], mse_others(s[0], e, ones, below))
            accumulate(s[0], &value[j], &value_lost[j], d * d)
            accumulate(s[0], &ed_below[j], &below_lost[j], e * d if e < top else 0)
            accumulate(s[0], &ed_ones[j], &ones_lost[j], 0 if e < top else e * d)
    sums.value += fold_16(value, value_lost)
    sums.ed_below += fold_16(ed_below, below_lost)
    sums.ed_ones += fold_16(ed_ones, ones_lost)


cdef inline double fold_16(double* lane, double* lost) noexcept nogil:
    fold_exactly(lane, lost, 8)
    fold_exactly(lane, lost, 4)
    fold_exactly(lane, lost, 2)
    fold_exactly(lane, lost, 1)
    return lane[0] + lost[0]


cdef inline void mse_squares(const real* s, Py_ssize_t n, MseSums* sums) noexcept nogil:
    cdef double top = unit(s[0])
    cdef Py_ssize_t i
    cdef double e
    for i in range(n):
        e = s[i]
        sums.ee_below += e * e if e < top else 0
        sums.ee_ones += 0 if e < top else e * e


cdef inline double mse_wide(const Job* job, const char* row, const char* target, Py_ssize_t y, double weight, char* grad, char* hess, real* s) noexcept nogil:
    """Loss of one row; stores its derivatives."""
    cdef real* t = s + BUFFER
    cdef char* kept = grad if job.k > PIECE else NULL
    cdef Py_ssize_t start, n, i
    cdef bint infinite, apart
    cdef SoftRow sums
    cdef MseSums mse
    cdef real m = row_maximum(job, row, True, &infinite, s)
    cdef double top = unit(m)
    cdef double factor, square, ones, below, whole, e, d, others, bracket
    soft_sums(job, row, target, y, infinite, m, kept, False, &sums, s, t)
    factor = soft_scale(m, weight, job.divisor, sums.below, sums.lost, sums.ones)
    ones = sums.ones
    below = sums.below + sums.lost
    whole = ones + below
    square = square_scale(m, 1, sums.below, sums.lost, ones)
    mse.value = mse.ed_below = mse.ed_ones = mse.ee_below = mse.ee_ones = 0
    for start from 0 <= start < job.k by PIECE:
        n = min(<Py_ssize_t>PIECE, job.k - start)
        if job.k > PIECE:
            piece_exponentials(job, row, start, n, infinite, m, kept, s)
            load_target_piece(job, target, y, start, n, t)
        mse_sums(<const real*>s, <const real*>t, padded(n), ones, below, &mse)
        if hess != NULL:
            mse_squares(<const real*>s, n, &mse)
    if grad != NULL:
        for start from 0 <= start < job.k by PIECE:
            n = min(<Py_ssize_t>PIECE, job.k - start)
            if job.k > PIECE:
                piece_exponentials(job, row, start, n, infinite, m, kept, s)
                load_target_piece(job, target, y, start, n, t)
            if hess != NULL:
                for i in range(n):
                    e = s[i]
                    others = mse_others(s[0], e, ones, below)
                    d = mse_difference(e, t[i], others)
                    bracket = mse_bracket(d, others, whole, mse.ed_below, mse.ed_ones, (ones == top) & (e == top))
                    (<real*>(hess + (start + i) * job.h.inner))[0] = <real>(
                        e * mse_second(e, others, bracket, (mse.ee_ones - e * e) + mse.ee_below)
                        * square * (weight * square))
            for i in range(n):
                e = s[i]
                others = mse_others(s[0], e, ones, below)
                d = mse_difference(e, t[i], others)
                bracket = mse_bracket(d, others, whole, mse.ed_below, mse.ed_ones, (ones == top) & (e == top))
                s[i] = <real>((e * factor) * (bracket * square))
            scatter(<const real*>s, grad + start * job.g.inner, job.g.inner, n)
    return 0.5 * mse.value * square


cdef void softmax_mse_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef WideGroup group
    cdef Py_ssize_t at
    cdef int count, j
    for at from start <= at < stop by GROUP:
        count = <int>min(<Py_ssize_t>GROUP, stop - at)
        if job.k <= NARROW:
            mse_narrow(job, at, count, total, scratch)
            continue
        open_wide(job, at, count, &group, scratch[0])
        for j in range(count):
            if group.weight[j] != 0:
                group.loss[j] = mse_wide(job, group.row[j], group.target[j], group.y[j], group.weight[j],
                                         group.grad[j], group.hess[j], scratch)
        close_rows(job, at, count, group.loss, group.weight, total, scratch[0])


def softmax_mse(logits, targets, weight, out, hess, int want, int reduction, double clip):
    cdef Kernel kernel = Kernel(softmax_mse_kernel[float], softmax_mse_kernel[double])
    return softmax_loss(logits, targets, weight, out, hess, want, reduction, clip, &kernel)

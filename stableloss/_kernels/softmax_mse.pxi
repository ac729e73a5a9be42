# Softmax + quadratic cost, from logits x and class indices or target probabilities t, p = softmax(x).
#
#   loss  1/2 sum_k d_k**2,  d = p - t
#   grad  p_k b_k,  b_k = d_k - sum_j p_j d_j
#   hess  p_k (b_k (1 - 2 p_k) + p_k (1 - 2 p_k + sum_j p_j**2))
#
# d_k is formed as p_k (1 - t_k) - t_k (1 - p_k), so that a one-hot target leaves one term. Where one
# class m takes nearly all of the probability, d_m - p_m d_m is d_m (1 - p_m), which is formed as that,
# and its terms are kept out of the sums: then b_m = d_m (1 - p_m) - sum_{j != m} p_j d_j, and
# 1 - 2 p_m + sum p**2 = (1 - p_m)**2 + sum_{j != m} p_j**2.


cdef struct MseSums:
    # Sums over a row, those over the exponentials equal to UNIT apart from those below.
    double value            # d**2, all classes
    double pd_below
    double pd_ones
    double pp_below
    double pp_ones


cdef inline real mse_difference(real e, real t, real others, real inverse) noexcept nogil:
    return (e * (<real>1 - t) - t * others) * inverse


cdef inline real mse_bracket(real e, real d, real others, real inverse, real pd_below, real pd_ones, bint single) noexcept nogil:
    return d * (others * inverse) - pd_below if single and e == unit(e) else d - pd_ones - pd_below


cdef inline real mse_row_curvature(real p, real bracket, real others, real pp_rest) noexcept nogil:
    """`others` is 1 - p here, and pp_rest the sum of the other classes' squares."""
    return p * (bracket * (others - p) + p * (others * others + pp_rest))


cdef void mse_narrow(const Job* job, Py_ssize_t start, int count, Sum* total, real* s) noexcept nogil:
    cdef real m[GROUP]
    cdef real ones_r[GROUP]
    cdef real below_r[GROUP]
    cdef real inverse[GROUP]
    cdef real scale[GROUP]
    cdef real pd_below_r[GROUP]
    cdef real pd_ones_r[GROUP]
    cdef double weight[GROUP]
    cdef double below[GROUP]
    cdef double lost[GROUP]
    cdef double ones[GROUP]
    cdef double loss[GROUP]
    cdef double pd_below[GROUP]
    cdef double pd_ones[GROUP]
    cdef double pp_below[GROUP]
    cdef double pp_ones[GROUP]
    cdef real* t = s + PIECE
    cdef real* h = s + 2 * PIECE
    cdef Py_ssize_t c, i, k = job.k
    cdef int j
    cdef real e, p, d, others, bracket, pp
    open_lanes(job, start, count, weight, s, t, m)
    lane_exponentials(s, k, m)
    lane_totals_apart(<const real*>s, k, below, lost, ones)
    for j in range(GROUP):
        inverse[j] = <real>soft_scale(m[j], 1, 1, below[j], lost[j], ones[j])
        scale[j] = <real>(weight[j] / job.divisor)
        ones_r[j] = <real>ones[j]
        below_r[j] = <real>(below[j] + lost[j])
        loss[j] = pd_below[j] = pd_ones[j] = pp_below[j] = pp_ones[j] = 0
    for c in range(k):
        for j in range(GROUP):
            e = s[c * GROUP + j]
            d = mse_difference(e, t[c * GROUP + j], (ones_r[j] - e) + below_r[j], inverse[j])
            t[c * GROUP + j] = d
            p = e * inverse[j]
            loss[j] += <double>d * <double>d
            pd_below[j] += <double>p * <double>d if e < unit(e) else 0
            pd_ones[j] += 0 if e < unit(e) else <double>p * <double>d
    for j in range(GROUP):
        loss[j] *= 0.5
        pd_below_r[j] = <real>pd_below[j]
        pd_ones_r[j] = <real>pd_ones[j]
    close_rows(job, start, count, loss, weight, total, m[0])
    if job.want & WANT_HESS:
        for c in range(k):
            for j in range(GROUP):
                p = s[c * GROUP + j] * inverse[j]
                pp_below[j] += <double>p * <double>p if s[c * GROUP + j] < unit(p) else 0
                pp_ones[j] += 0 if s[c * GROUP + j] < unit(p) else <double>p * <double>p
        for c in range(k):
            for j in range(GROUP):
                e = s[c * GROUP + j]
                others = (ones_r[j] - e) + below_r[j]
                p = e * inverse[j]
                bracket = mse_bracket(e, t[c * GROUP + j], others, inverse[j], pd_below_r[j], pd_ones_r[j], ones[j] == unit(e))
                pp = <real>((pp_ones[j] - <double>p * <double>p) + pp_below[j])
                h[c * GROUP + j] = <real>weight[j] * mse_row_curvature(p, bracket, others * inverse[j], pp)
        store_lanes(<const real*>h, &job.h, start, count, k)
    if job.want & WANT_GRAD:
        for c in range(k):
            for j in range(GROUP):
                e = s[c * GROUP + j]
                bracket = mse_bracket(e, t[c * GROUP + j], (ones_r[j] - e) + below_r[j], inverse[j], pd_below_r[j], pd_ones_r[j], ones[j] == unit(e))
                s[c * GROUP + j] = (e * inverse[j]) * bracket * scale[j]
        store_lanes(<const real*>s, &job.g, start, count, k)


cdef inline void mse_sums(const real* s, const real* t, Py_ssize_t n, real ones, real below, real inverse, MseSums* sums) noexcept nogil:
    """Add the sums over a piece, n a multiple of LANES."""
    cdef double value[8]
    cdef double pd_below[8]
    cdef double pd_ones[8]
    cdef double pp_below[8]
    cdef double pp_ones[8]
    cdef Py_ssize_t i
    cdef int j
    cdef real e
    cdef double p, d
    for j in range(8):
        value[j] = pd_below[j] = pd_ones[j] = pp_below[j] = pp_ones[j] = 0
    for i in range(n // 8):
        for j in range(8):
            e = s[i * 8 + j]
            d = mse_difference(e, t[i * 8 + j], (ones - e) + below, inverse)
            p = e * inverse
            value[j] += d * d
            pd_below[j] += p * d if e < unit(e) else 0
            pd_ones[j] += 0 if e < unit(e) else p * d
            pp_below[j] += p * p if e < unit(e) else 0
            pp_ones[j] += 0 if e < unit(e) else p * p
    for j in range(8):
        sums.value += value[j]
        sums.pd_below += pd_below[j]
        sums.pd_ones += pd_ones[j]
        sums.pp_below += pp_below[j]
        sums.pp_ones += pp_ones[j]


cdef inline double mse_wide(const Job* job, const char* row, const char* target, Py_ssize_t y, double weight, char* grad, char* hess, real* s) noexcept nogil:
    """Loss of one row; stores its derivatives."""
    cdef real* t = s + PIECE
    cdef char* kept = grad if job.k > PIECE else NULL
    cdef Py_ssize_t start, n, i
    cdef bint infinite
    cdef SoftRow sums
    cdef MseSums mse
    cdef real m = row_maximum(job, row, &infinite, s)
    cdef real inverse, scale, ones, below, pd_below, pd_ones, p, d, others, bracket, pp
    soft_sums(job, row, target, y, infinite, m, kept, &sums, s, t)
    inverse = <real>soft_scale(m, 1, 1, sums.below, sums.lost, sums.ones)
    scale = <real>(weight / job.divisor)
    ones = <real>sums.ones
    below = <real>(sums.below + sums.lost)
    mse.value = mse.pd_below = mse.pd_ones = mse.pp_below = mse.pp_ones = 0
    for start from 0 <= start < job.k by PIECE:
        n = min(<Py_ssize_t>PIECE, job.k - start)
        if job.k > PIECE:
            piece_exponentials(job, row, start, n, infinite, m, kept, s)
            load_target_piece(job, target, y, start, n, t)
        mse_sums(<const real*>s, <const real*>t, padded(n), ones, below, inverse, &mse)
    pd_below = <real>mse.pd_below
    pd_ones = <real>mse.pd_ones
    if grad != NULL:
        for start from 0 <= start < job.k by PIECE:
            n = min(<Py_ssize_t>PIECE, job.k - start)
            if job.k > PIECE:
                piece_exponentials(job, row, start, n, infinite, m, kept, s)
                load_target_piece(job, target, y, start, n, t)
            for i in range(n):
                p = s[i] * inverse
                others = (ones - s[i]) + below
                d = mse_difference(s[i], t[i], others, inverse)
                bracket = mse_bracket(s[i], d, others, inverse, pd_below, pd_ones, ones == unit(m))
                if hess != NULL:
                    pp = <real>((mse.pp_ones - <double>p * <double>p) + mse.pp_below)
                    (<real*>(hess + (start + i) * job.h.inner))[0] = <real>weight * mse_row_curvature(
                        p, bracket, others * inverse, pp)
                s[i] = p * bracket * scale
            scatter(<const real*>s, grad + start * job.g.inner, job.g.inner, n)
    return 0.5 * mse.value


cdef void softmax_mse_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    cdef WideGroup group
    cdef Py_ssize_t at
    cdef int count, j
    for at from start <= at < stop by GROUP:
        count = <int>min(<Py_ssize_t>GROUP, stop - at)
        if job.k <= NARROW:
            mse_narrow(job, at, count, total, scratch)
        else:
            open_wide(job, at, count, &group, scratch[0])
            for j in range(count):
                if group.weight[j] != 0:
                    group.loss[j] = mse_wide(job, group.row[j], group.target[j], group.y[j], group.weight[j],
                                      group.grad[j], group.hess[j], scratch)
            close_rows(job, at, count, group.loss, group.weight, total, scratch[0])


def softmax_mse(logits, targets, weight, out, hess, int want, int reduction, double clip):
    cdef Kernel kernel = Kernel(softmax_mse_kernel[float], softmax_mse_kernel[double])
    return softmax_loss(logits, targets, weight, out, hess, want, reduction, clip, &kernel)

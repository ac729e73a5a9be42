# Softmax + cross-entropy, from logits x and class indices y or target probabilities t, p = softmax(x).
#
#   loss  -sum_k t_k log p_k  =  (m - x_y) + log1p(sum - 1), or log1p(rest) where y is the maximum
#   grad  p_k sum(t) - t_k    =  e_k / sum for k != y,  -rest / sum for k = y
#   hess  p_k (1 - p_k) sum(t)
#
# with e_k = e**(x_k - m), m the maximum, sum their sum, rest the sum without the target's (see _softmax.pxi).


# ---- class indices --------------------------------------------------------------------------------

cdef inline void hard_losses(real hint, const double* rest, const double* lost, const double* e_target, const double* gap, double* loss) noexcept nogil:
    """Losses of a group: gap = m - x_y; sum = rest + e_target."""
    cdef double top = unit(hint)
    cdef double inverse = 1 / top
    cdef double above
    cdef int j
    for j in range(GROUP):
        # where the target is not the maximum, rest holds the maximum's UNIT
        above = rest[j] + lost[j] if gap[j] == 0 else (rest[j] - top) + (e_target[j] + lost[j])
        loss[j] = gap[j] + log1p_positive(above * inverse)


cdef inline double hard_scale(real hint, double weight, double divisor, double rest, double lost, double e_target) noexcept nogil:
    """Factor from an exponential to its gradient."""
    cdef double error
    cdef double total
    if real is float:
        return weight / (divisor * (rest + e_target))
    else:
        total = two_sum(rest, e_target, &error)
        return row_scale(weight, divisor, total, error + lost)


cdef void hard_narrow(const Job* job, Py_ssize_t start, int count, Sum* total, real* s) noexcept nogil:
    cdef Py_ssize_t y[GROUP]
    cdef real m[GROUP]
    cdef real scale[GROUP]
    cdef double weight[GROUP]
    cdef double gap[GROUP]
    cdef double e_target[GROUP]
    cdef double rest[GROUP]
    cdef double lost[GROUP]
    cdef double loss[GROUP]
    cdef double factor[GROUP]
    cdef Py_ssize_t c, k = job.k
    cdef int j
    load_weights(job, start, count, weight)
    load_classes(job, start, count, y)
    load_lanes(&job.x, start, count, k, s)
    if job.clip < SL_INFINITY:
        clamp(s, k * GROUP, job.clip, s)
    if job.weighted:
        clear_lanes(s, k, weight)
    lane_maximum(s, k, m)
    for j in range(GROUP):
        gap[j] = <double>m[j] - <double>s[y[j] * GROUP + j]
    lane_exponentials(s, k, m)
    for j in range(GROUP):
        e_target[j] = s[y[j] * GROUP + j]
        s[y[j] * GROUP + j] = 0
    lane_totals(s, k, rest, lost)
    if job.want & WANT_GRAD:
        for j in range(GROUP):
            factor[j] = hard_scale(m[j], weight[j], job.divisor, rest[j], lost[j], e_target[j])
        for j in range(GROUP):
            scale[j] = <real>factor[j]
        for c in range(k):
            for j in range(GROUP):
                s[c * GROUP + j] *= scale[j]
        for j in range(GROUP):
            s[y[j] * GROUP + j] = <real>(-(rest[j] + lost[j]) * factor[j])
        store_lanes(<const real*>s, &job.g, start, count, k)
    hard_losses(m[0], rest, lost, e_target, gap, loss)
    close_rows(job, start, count, loss, weight, total, m[0])


cdef inline void scale_to(const real* s, real scale, Py_ssize_t n, char* row, Py_ssize_t stride) noexcept nogil:
    cdef Py_ssize_t i
    if stride == <Py_ssize_t>sizeof(real):
        for i in range(n):
            (<real*>row)[i] = s[i] * scale
    else:
        for i in range(n):
            (<real*>(row + i * stride))[0] = s[i] * scale


cdef inline void hard_wide(const Job* job, const char* row, Py_ssize_t y, double weight, char* grad, double* rest, double* lost, double* e_target, double* gap, real* s) noexcept nogil:
    """One row: its gradient, and what its loss is made from."""
    cdef Py_ssize_t start, n, k = job.k
    cdef bint infinite, whole = k <= PIECE
    cdef real m = row_maximum(job, row, whole, &infinite, s)
    cdef const real* source
    cdef double error, factor
    rest[0] = lost[0] = 0
    for start from 0 <= start < k by PIECE:
        n = min(<Py_ssize_t>PIECE, k - start)
        if whole:
            gap[0] = <double>m - <double>s[y]
            exponentials(s, padded(n), m)
        else:
            source = piece_source(job, row, start, n, infinite, s)
            if start <= y < start + n:
                gap[0] = <double>m - <double>source[y - start]
            exponentials_of(source, s, n, m)
        if start <= y < start + n:
            e_target[0] = s[y - start]
            s[y - start] = 0
        rest[0] = two_sum(rest[0], lane_sum(<const real*>s, padded(n), &error), &factor)
        lost[0] += error + factor
        if not whole and job.want & WANT_GRAD:
            scatter(<const real*>s, grad + start * job.g.inner, job.g.inner, n)
    if job.want & WANT_GRAD:
        factor = hard_scale(m, weight, job.divisor, rest[0], lost[0], e_target[0])
        if whole:
            scale_to(<const real*>s, <real>factor, k, grad, job.g.inner)
        else:
            scale_in_place(grad, job.g.inner, k, <real>factor)
        (<real*>(grad + y * job.g.inner))[0] = <real>(-(rest[0] + lost[0]) * factor)


cdef void hard_wide_group(const Job* job, int count, WideGroup* group, real* s) noexcept nogil:
    cdef double gap[GROUP]
    cdef double e_target[GROUP]
    cdef double rest[GROUP]
    cdef double lost[GROUP]
    cdef int j
    for j in range(GROUP):
        gap[j] = rest[j] = lost[j] = 0
        e_target[j] = 1
    for j in range(count):
        if group.weight[j] != 0:
            hard_wide(job, group.row[j], group.y[j], group.weight[j], group.grad[j],
                      &rest[j], &lost[j], &e_target[j], &gap[j], s)
    hard_losses(s[0], rest, lost, e_target, gap, group.loss)


# ---- target probabilities, and Hessians -----------------------------------------------------------

cdef inline real ce_gradient(real e, real t, real mass, real others, real factor) noexcept nogil:
    """p mass - t, as e (mass - t) - t others over the sum: for a one-hot row either term is 0, and
    the other keeps its digits."""
    return fma(e, mass - t, -(t * others)) * factor


cdef void soft_narrow(const Job* job, Py_ssize_t start, int count, int want, Sum* total, real* s) noexcept nogil:
    cdef real m[GROUP]
    cdef real mass_r[GROUP]
    cdef real ones_r[GROUP]
    cdef real below_r[GROUP]
    cdef real factor[GROUP]
    cdef real curvature[GROUP]
    cdef double weight[GROUP]
    cdef double mass[GROUP]
    cdef double dot[GROUP]
    cdef double below[GROUP]
    cdef double lost[GROUP]
    cdef double ones[GROUP]
    cdef double loss[GROUP]
    cdef real* t = s + BUFFER
    cdef real* h = s + 2 * BUFFER
    cdef Py_ssize_t c, k = job.k
    cdef int j
    open_lanes(job, start, count, weight, s, t, m)
    lane_totals(<const real*>t, k, mass, lost)
    for j in range(GROUP):
        mass[j] += lost[j]
    lane_products(<const real*>s, <const real*>t, k, m, dot)
    lane_exponentials(s, k, m)
    lane_totals_apart(<const real*>s, k, below, lost, ones)
    for j in range(GROUP):
        loss[j] = dot[j] + mass[j] * log_of_sum(m[j], below[j], lost[j], ones[j])
        factor[j] = <real>soft_scale(m[j], weight[j], job.divisor, below[j], lost[j], ones[j])
        curvature[j] = <real>square_scale(m[j], weight[j] * mass[j], below[j], lost[j], ones[j])
        mass_r[j] = <real>mass[j]
        ones_r[j] = <real>ones[j]
        below_r[j] = <real>(below[j] + lost[j])
    close_rows(job, start, count, loss, weight, total, m[0])
    if want & WANT_HESS:
        for c in range(k):
            for j in range(GROUP):
                h[c * GROUP + j] = s[c * GROUP + j] * remainder_of(s[c * GROUP + j], ones_r[j], below_r[j]) * curvature[j]
        store_lanes(<const real*>h, &job.h, start, count, k)
    if want & WANT_GRAD:
        for c in range(k):
            for j in range(GROUP):
                s[c * GROUP + j] = ce_gradient(
                    s[c * GROUP + j], t[c * GROUP + j], mass_r[j],
                    remainder_of(s[c * GROUP + j], ones_r[j], below_r[j]), factor[j])
        store_lanes(<const real*>s, &job.g, start, count, k)


cdef inline double soft_wide(const Job* job, const char* row, const char* target, Py_ssize_t y, double weight, char* grad, char* hess, real* s) noexcept nogil:
    """Loss of one row; stores its derivatives."""
    cdef real* t = s + BUFFER
    cdef char* kept = grad if job.k > PIECE else NULL
    cdef Py_ssize_t start, n, i
    cdef bint infinite
    cdef SoftRow sums
    cdef real m = row_maximum(job, row, True, &infinite, s)
    cdef real factor, curvature, mass, ones, below
    soft_sums(job, row, target, y, infinite, m, kept, True, &sums, s, t)
    factor = <real>soft_scale(m, weight, job.divisor, sums.below, sums.lost, sums.ones)
    curvature = <real>square_scale(m, weight * sums.mass, sums.below, sums.lost, sums.ones)
    mass = <real>sums.mass
    ones = <real>sums.ones
    below = <real>(sums.below + sums.lost)
    if grad != NULL or hess != NULL:
        for start from 0 <= start < job.k by PIECE:
            n = min(<Py_ssize_t>PIECE, job.k - start)
            if job.k > PIECE:
                piece_exponentials(job, row, start, n, infinite, m, kept, s)
                load_target_piece(job, target, y, start, n, t)
            if hess != NULL:
                for i in range(n):
                    (<real*>(hess + (start + i) * job.h.inner))[0] = s[i] * remainder_of(s[i], ones, below) * curvature
            if grad != NULL:
                for i in range(n):
                    s[i] = ce_gradient(s[i], t[i], mass, remainder_of(s[i], ones, below), factor)
                scatter(<const real*>s, grad + start * job.g.inner, job.g.inner, n)
    return sums.dot + sums.mass * log_of_sum(m, sums.below, sums.lost, sums.ones)


cdef void softmax_ce_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    # class indices have their own way to loss and gradient, which a Hessian beside it does not change
    cdef int soft_want = job.want & WANT_HESS if job.hard else job.want
    cdef WideGroup group
    cdef Py_ssize_t at
    cdef int count, j
    for at from start <= at < stop by GROUP:
        count = <int>min(<Py_ssize_t>GROUP, stop - at)
        if job.k <= NARROW:
            if soft_want:
                soft_narrow(job, at, count, soft_want, total, scratch)
            if job.hard:
                hard_narrow(job, at, count, total, scratch)
            continue
        open_wide(job, at, count, &group, scratch[0])
        if soft_want:
            for j in range(count):
                if group.weight[j] != 0:
                    group.loss[j] = soft_wide(job, group.row[j], group.target[j], group.y[j], group.weight[j],
                                              group.grad[j] if soft_want & WANT_GRAD else NULL, group.hess[j], scratch)
        if job.hard:
            hard_wide_group(job, count, &group, scratch)
        close_rows(job, at, count, group.loss, group.weight, total, scratch[0])


def softmax_ce(logits, targets, weight, out, hess, int want, int reduction, double clip):
    cdef Kernel kernel = Kernel(softmax_ce_kernel[float], softmax_ce_kernel[double])
    return softmax_loss(logits, targets, weight, out, hess, want, reduction, clip, &kernel)

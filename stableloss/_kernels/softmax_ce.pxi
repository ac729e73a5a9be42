# Softmax + cross-entropy, from logits x and class indices y or target probabilities t, p = softmax(x).
#
#   loss  -sum_k t_k log p_k  =  (m - x_y) + log1p(sum - 1), or log1p(rest) where y is the maximum
#   grad  p_k sum(t) - t_k    =  e_k / sum for k != y,  -rest / sum for k = y
#   hess  p_k (1 - p_k) sum(t)
#
# with e_k = e**(x_k - m), m the maximum, sum their sum, rest the sum without the target's (see _rows.pxi).
# Class indices without further options have a fast path of their own. All else goes through tiles,
# where the loss of a row is, with q the weighted and smoothed targets and S = -log p,
#
#   sum_k q_k (1 - p_k)**g S_k + z lse**2,  x = cap tanh(scale clamp(logit) / cap)
#
# With first = q p d/dp and second = q (p d/dp)**2 of (1 - p)**g S, and sums G, H of these over the classes,
#
#   grad  first_k - p_k G  =  (first_k others_k - e_k (G - first_k)) / sum,  others = sum - e
#   hess  second_k (1 - p_k)**2 + p_k**2 (H - second_k) - p_k (1 - p_k) G
#   Hv    second_k d_k (1 - p_k) - p_k (d_k G + D - second_k d_k),  d = v - p.v,  D the sum of second d
#
# to which z adds -2 z lse to G, and its own square term. Without focusing (g = 0) first is -q and
# second 0. The sums without k are formed from those over exponentials equal to UNIT and below it.


# ---- class indices --------------------------------------------------------------------------------

cdef enum:
    FEW = 8                 # rows that take less time one by one than as lanes with the others empty


cdef inline double whole_rest(real hint, double rest, double lost) noexcept nogil:
    """The sum without the target, to all of its digits; float32 loses none of them."""
    if real is float:
        return rest
    else:
        return rest + lost


cdef void hard_losses(real hint, int count, const double* rest, const double* lost, const double* e_target, const double* gap, double* loss) noexcept nogil:
    """Losses of a group: gap = m - x_y; sum = rest + e_target."""
    cdef double top = unit(hint)
    cdef double inverse = 1 / top
    cdef double above
    cdef int j
    for j in range(count):
        # where the target is not the maximum, rest holds the maximum's UNIT
        above = (whole_rest(hint, rest[j], lost[j]) if gap[j] == 0
                 else (rest[j] - top) + whole_rest(hint, e_target[j], lost[j]))
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


cdef inline void hard_store(const Job* job, Py_ssize_t start, int count, const Py_ssize_t* y, const real* target, const real* scale, real* s) noexcept nogil:
    """Scale the exponentials of a group to its gradient; `target` has that of the targets."""
    cdef Py_ssize_t place[GROUP]
    cdef Py_ssize_t c, stride
    cdef real* row
    cdef int i, j, whole = count - count % 8
    if transposable(&job.g, s[0]):
        stride = job.g.stride[0] // <Py_ssize_t>sizeof(real)
        row = <real*>job.g.data + start * stride
        lanes_to_rows(<const real*>s, scale, count, job.k, row, stride)
        for j in range(GROUP):
            place[j] = j * stride + y[j]
        for i from 0 <= i < whole by 8:
            for j in range(i, i + 8):
                row[place[j]] = target[j]
        for j in range(whole, count):
            row[place[j]] = target[j]
        return
    for c in range(job.k):
        for j in range(GROUP):
            s[c * GROUP + j] *= scale[j]
    for j in range(GROUP):
        s[y[j] * GROUP + j] = target[j]
    store_lanes(<const real*>s, &job.g, start, count, job.k)


cdef void hard_narrow(const Job* job, Py_ssize_t start, int count, const double* weight, double* loss, real* s) noexcept nogil:
    cdef Py_ssize_t y[GROUP]
    cdef Py_ssize_t place[GROUP]
    cdef real m[GROUP]
    cdef real scale[GROUP]
    cdef double gap[GROUP]
    cdef double e_target[GROUP]
    cdef double rest[GROUP]
    cdef double lost[GROUP]
    cdef double factor[GROUP]
    cdef Py_ssize_t c, k = job.k
    cdef real* x = s + k * GROUP        # the logits of the targets, as one more class
    cdef int i, j
    load_classes(job, start, count, y)
    load_lanes(&job.x, start, count, k, s)
    if job.o.logit_clip < SL_INFINITY:
        clamp(s, k * GROUP, job.o.logit_clip, s)
    if job.any_weight:
        clear_lanes(s, k, weight)
    lane_maximum(s, k, m)
    for j in range(GROUP):
        place[j] = y[j] * GROUP + j
    # the target leaves its lane for the sum of the others
    for i from 0 <= i < GROUP by 8:
        for j in range(i, i + 8):
            x[j] = s[place[j]]
            s[place[j]] = -SL_INFINITY
    for j in range(GROUP):
        gap[j] = <double>m[j] - <double>x[j]
    lane_exponentials(s, k + 1, m, False)
    lane_totals(s, k, rest, lost)
    for j in range(GROUP):
        e_target[j] = x[j]
    if job.want & WANT_GRAD:
        for j in range(GROUP):
            factor[j] = hard_scale(m[j], weight[j], job.divisor, rest[j], lost[j], e_target[j])
        for j in range(GROUP):
            scale[j] = <real>factor[j]
            x[j] = <real>(0 if weight[j] == 0 else -whole_rest(m[j], rest[j], lost[j]) * factor[j])
        if extreme(job, factor, GROUP, m[0]):
            for c in range(k):
                for j in range(GROUP):
                    s[c * GROUP + j] = <real>(s[c * GROUP + j] * factor[j])
            for j in range(GROUP):
                scale[j] = 1
        hard_store(job, start, count, y, <const real*>x, <const real*>scale, s)
    hard_losses(m[0], GROUP, rest, lost, e_target, gap, loss)


cdef void hard_few(const Job* job, Py_ssize_t start, int count, const double* weight, double* loss, real* s) noexcept nogil:
    """The same for too few rows to fill the lanes, one after the other: with the bits of `hard_narrow`,
    as the sum runs over the classes in the same order."""
    cdef Py_ssize_t row[FEW]
    cdef Py_ssize_t to[FEW]
    cdef Py_ssize_t y[GROUP]
    cdef double gap[FEW]
    cdef double e_target[FEW]
    cdef double rest[FEW]
    cdef double lost[FEW]
    cdef double total, error, t, factor
    cdef real m, scale
    cdef bint infinite
    cdef Py_ssize_t c, k = job.k
    cdef int j
    load_classes(job, start, count, y)
    row_offsets(&job.x, start, count, row)
    if job.want & WANT_GRAD:
        row_offsets(&job.g, start, count, to)
    for j in range(count):
        gap[j] = rest[j] = lost[j] = 0
        e_target[j] = 1
        if weight[j] == 0:
            if job.want & WANT_GRAD:
                clear_row(job, &job.g, start + j, s)
            continue
        m = row_maximum(job, job.x.data + row[j], True, &infinite, s)
        gap[j] = <double>m - <double>s[y[j]]
        exponentials(s, padded(k), m, False)
        e_target[j] = s[y[j]]
        s[y[j]] = 0
        total = s[0]
        error = 0
        for c in range(1, k):
            if real is float:
                total += <double>s[c]
            else:
                t = total + s[c]
                error += (total - t) + s[c]
                total = t
        rest[j] = total
        lost[j] = error
        if job.want & WANT_GRAD:
            factor = hard_scale(m, weight[j], job.divisor, total, error, e_target[j])
            scale = <real>factor
            if extreme(job, &factor, 1, m):
                scale_in_float64(m, <char*>s, sizeof(real), k, factor)
                scale = 1
            for c in range(k):
                s[c] *= scale
            s[y[j]] = <real>(-(total + error) * factor)
            scatter(<const real*>s, job.g.data + to[j], job.g.kind, job.g.inner, k)
    hard_losses(s[0], count, rest, lost, e_target, gap, loss)


cdef void hard_wide(const Job* job, const char* row, Py_ssize_t y, double weight, char* grad, double* rest, double* lost, double* e_target, double* gap, real* s) noexcept nogil:
    """One row: its gradient, and what its loss is made from."""
    cdef Py_ssize_t start, n, k = job.k
    cdef bint infinite, far, whole = k <= PIECE
    cdef bint wanted = job.want & WANT_GRAD != 0
    # the exponentials of a row of several pieces wait in the gradient's place, if it can hold them
    cdef bint keep = wanted and not whole and job.g.kind == kind_of(s[0])
    cdef real m = row_maximum(job, row, whole, &infinite, s)
    cdef real scale
    cdef const real* source
    cdef double error, factor
    rest[0] = lost[0] = 0
    for start from 0 <= start < k by PIECE:
        n = min(<Py_ssize_t>PIECE, k - start)
        if whole:
            gap[0] = <double>m - <double>s[y]
            exponentials(s, padded(n), m, False)
        else:
            source = piece_source(job, row, start, n, infinite, s)
            if start <= y < start + n:
                gap[0] = <double>m - <double>(source[y - start] if y - start < (n & ~(LANES - 1)) else s[y - start])
            exponentials_of(source, s, n, m)
        if start <= y < start + n:
            e_target[0] = s[y - start]
            s[y - start] = 0
        rest[0] = two_sum(rest[0], lane_sum(<const real*>s, padded(n), &error), &factor)
        lost[0] += error + factor
        if keep:
            scatter(<const real*>s, grad + start * job.g.inner, job.g.kind, job.g.inner, n)
    if not wanted:
        return
    factor = hard_scale(m, weight, job.divisor, rest[0], lost[0], e_target[0])
    scale = <real>factor
    far = extreme(job, &factor, 1, m)
    if far:
        scale = 1
    if keep and far:
        scale_in_float64(m, grad, job.g.inner, k, factor)
    elif keep:
        scale_in_place(grad, job.g.inner, k, scale)
    for start from 0 <= start < (0 if keep else k) by PIECE:
        n = min(<Py_ssize_t>PIECE, k - start)
        if not whole:
            source = piece_source(job, row, start, n, infinite, s)
            exponentials_of(source, s, n, m)
        if far:
            scale_in_float64(m, <char*>s, sizeof(real), n, factor)
        scatter_scaled(s, scale, grad + start * job.g.inner, job.g.kind, job.g.inner, n)
    scale = <real>(-(rest[0] + lost[0]) * factor)
    scatter(<const real*>&scale, grad + y * job.g.inner, job.g.kind, job.g.inner, 1)


cdef void hard_wide_group(const Job* job, Py_ssize_t start, int count, const double* weight, double* loss, real* s) noexcept nogil:
    cdef Py_ssize_t row[GROUP]
    cdef Py_ssize_t to[GROUP]
    cdef Py_ssize_t y[GROUP]
    cdef double gap[GROUP]
    cdef double e_target[GROUP]
    cdef double rest[GROUP]
    cdef double lost[GROUP]
    cdef int j
    for j in range(GROUP):
        gap[j] = rest[j] = lost[j] = 0
        e_target[j] = 1
    load_classes(job, start, count, y)
    row_offsets(&job.x, start, count, row)
    if job.want & WANT_GRAD:
        row_offsets(&job.g, start, count, to)
    for j in range(count):
        if weight[j] != 0:
            hard_wide(job, job.x.data + row[j], y[j], weight[j], job.g.data + to[j] if job.want & WANT_GRAD else NULL,
                      &rest[j], &lost[j], &e_target[j], &gap[j], s)
        elif job.want & WANT_GRAD:
            clear_row(job, &job.g, start + j, s)
    hard_losses(s[0], GROUP, rest, lost, e_target, gap, loss)


# ---- all else, in tiles ---------------------------------------------------------------------------

cdef inline void focal_terms(double e, double others, double minus_log, double gamma, double* power, double* first, double* second) noexcept nogil:
    """(1 - p)**gamma, and p d/dp and (p d/dp)**2 of its product with S = -log p.

    With odds = p / (1 - p) the power is exp(-gamma log1p(odds)), and the derivatives have odds * S,
    which tends to 1 as p tends to 1, and to 0 as p tends to 0.
    """
    cdef double odds = e / others
    cdef double near
    odds = 1e300 if odds > 1e300 else odds
    near = 1 if minus_log < 1e-290 else odds * minus_log
    near = 0 if odds == 0 else near
    power[0] = exp_negative(-gamma * log1p_positive(odds))
    first[0] = -power[0] * (1 + gamma * near)
    second[0] = 0 if odds == 0 or others == 0 else gamma * odds * power[0] * (2 - minus_log + (gamma - 1) * near)


cdef struct Terms:
    # Sums over the classes of a column, apart for exponentials below UNIT and equal to it.
    Total loss              # q (m - x) / 2; with focusing q (1 - p)**g S
    Total mass              # q
    Total first_below
    Total first_ones
    Total second_below
    Total second_ones
    Total v_below           # e v
    Total v_ones
    Total turn_below        # second d
    Total turn_ones


cdef void tile_products(const Tile* tile, const double* m, const real* x, const real* q, Total* dot, Total* mass) noexcept nogil:
    """Add up q (m - x) / 2 and q; an absent class costs nothing even where x is -inf."""
    cdef double top[GROUP]
    cdef double s[GROUP]
    cdef double s_lost[GROUP]
    cdef double t[GROUP]
    cdef double t_lost[GROUP]
    cdef double share
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        top[j] = m[j]
        s[j] = dot.sum[j]
        s_lost[j] = dot.lost[j]
        t[j] = mass.sum[j]
        t_lost[j] = mass.lost[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            share = q[c * GROUP + j]
            accumulate(x[0], &s[j], &s_lost[j], 0 if share == 0 else gap_of(top[j], x[c * GROUP + j]) * share)
            accumulate(x[0], &t[j], &t_lost[j], share)
    for j in range(GROUP):
        dot.sum[j] = s[j]
        dot.lost[j] = s_lost[j]
        mass.sum[j] = t[j]
        mass.lost[j] = t_lost[j]


cdef inline double focal_entry(double m, double log_sum, double ones, double below, double gamma, double e, double x, double q, real* first, real* second) noexcept nogil:
    """The loss of one class; its derivatives by log p."""
    cdef double power, one, two
    cdef double minus_log = 2 * gap_of(m, x) + log_sum
    focal_terms(e, remainder_of(e, ones, below), minus_log, gamma, &power, &one, &two)
    first[0] = <real>(0 if q == 0 else q * one)
    second[0] = <real>(0 if q == 0 else q * two)
    return 0 if q == 0 or power == 0 else q * power * minus_log


cdef void tile_focal(const Job* job, const Tile* tile, const Columns* columns, const double* m, const real* e, const real* x, const real* q, real* first, real* second, Total* loss) noexcept nogil:
    # copies, which a store to the results can not reach
    cdef double top[GROUP]
    cdef double log_sum[GROUP]
    cdef double ones[GROUP]
    cdef double below[GROUP]
    cdef double s[GROUP]
    cdef double lost[GROUP]
    cdef double gamma = job.o.focal_gamma
    cdef Py_ssize_t c, i
    cdef int j
    for j in range(GROUP):
        top[j] = m[j]
        log_sum[j] = columns.log_sum[j]
        ones[j] = columns.ones.sum[j]
        below[j] = columns.below.sum[j] + columns.below.lost[j]
        s[j] = loss.sum[j]
        lost[j] = loss.lost[j]
    if not job.hard or job.o.label_smoothing != 0:
        for c in range(tile.lines):
            for j in range(GROUP):
                i = c * GROUP + j
                accumulate(e[0], &s[j], &lost[j], focal_entry(
                    top[j], log_sum[j], ones[j], below[j], gamma, e[i], x[i], q[i], &first[i], &second[i]))
    else:
        for i in range(tile.lines * GROUP):
            first[i] = second[i] = 0
        for j in range(1 if tile.wide else GROUP):
            i = columns.y[j] - tile.first if tile.wide else columns.y[j] * GROUP + j
            if not tile.wide or 0 <= i < tile.n:
                accumulate(e[0], &s[j], &lost[j], focal_entry(
                    top[j], log_sum[j], ones[j], below[j], gamma, e[i], x[i], q[i], &first[i], &second[i]))
    for j in range(GROUP):
        loss.sum[j] = s[j]
        loss.lost[j] = lost[j]


cdef struct Split:
    # What `without` takes a term out of: a sum over exponentials below UNIT, one over those equal to it,
    # and both again with a constant added.
    double below[GROUP]
    double ones[GROUP]
    double below_shifted[GROUP]
    double ones_shifted[GROUP]


cdef void set_split(const Total* below, const Total* ones, const double* shift, Split* split) noexcept nogil:
    cdef int j
    for j in range(GROUP):
        split.below[j] = below.sum[j]
        split.ones[j] = ones.sum[j]
        split.below_shifted[j] = below.sum[j] + shift[j]
        split.ones_shifted[j] = ones.sum[j] + shift[j]


cdef inline real without(real term, bint top, real below, real ones, real below_shifted, real ones_shifted) noexcept nogil:
    return (ones - term) + below_shifted if top else (below - term) + ones_shifted


cdef struct Outcome:
    # The constants of each column that the results are formed with.
    Split first
    Split second
    Split v
    Split turn
    double ones[GROUP]
    double below[GROUP]
    double inverse[GROUP]           # 1 / sum
    double factor[GROUP]            # weight / (divisor sum)
    double curvature[GROUP]         # weight / sum**2
    double slope_total[GROUP]       # G - 2 z lse


cdef void tile_directions(const Tile* tile, const Outcome* out, const real* e, const real* v, const real* ev, real* d) noexcept nogil:
    cdef Py_ssize_t c, i
    cdef int j
    cdef real top = unit(e[0])
    cdef real others, rest
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            others = remainder_of(e[i], <real>out.ones[j], <real>out.below[j])
            rest = without(ev[i], e[i] == top, <real>out.v.below[j], <real>out.v.ones[j],
                           <real>out.v.below[j], <real>out.v.ones[j])
            d[i] = 0 if e[i] == 0 else (v[i] * others - rest) * <real>out.inverse[j]


cdef void plain_gradient(const Job* job, const Tile* tile, const Outcome* out, const real* e, const real* q, real* to) noexcept nogil:
    """p mass - q, as e (mass - q) - q others over the sum: for a one-hot row either term is 0, and the
    other keeps its digits."""
    cdef real ones[GROUP]
    cdef real below[GROUP]
    cdef real mass[GROUP]
    cdef real factor[GROUP]
    cdef bint far = extreme(job, out.factor, GROUP, e[0])
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        ones[j] = <real>out.ones[j]
        below[j] = <real>out.below[j]
        mass[j] = -<real>out.slope_total[j]
        factor[j] = <real>(1 if far else out.factor[j])
    for c in range(tile.lines):
        for j in range(GROUP):
            to[c * GROUP + j] = fma(
                e[c * GROUP + j], mass[j] - q[c * GROUP + j],
                -(q[c * GROUP + j] * remainder_of(e[c * GROUP + j], ones[j], below[j]))) * factor[j]
    if far:
        for c in range(tile.lines):
            for j in range(GROUP):
                to[c * GROUP + j] = <real>(to[c * GROUP + j] * out.factor[j])


cdef void tile_gradient(const Tile* tile, const Outcome* out, const real* e, const real* first, real* to) noexcept nogil:
    cdef real ones[GROUP]
    cdef real below[GROUP]
    cdef real g_below[GROUP]
    cdef real g_ones[GROUP]
    cdef real g_below_shifted[GROUP]
    cdef real g_ones_shifted[GROUP]
    cdef real factor[GROUP]
    cdef real top = unit(e[0])
    cdef real rest
    cdef Py_ssize_t c
    cdef int j
    for j in range(GROUP):
        ones[j] = <real>out.ones[j]
        below[j] = <real>out.below[j]
        g_below[j] = <real>out.first.below[j]
        g_ones[j] = <real>out.first.ones[j]
        g_below_shifted[j] = <real>out.first.below_shifted[j]
        g_ones_shifted[j] = <real>out.first.ones_shifted[j]
        factor[j] = <real>out.factor[j]
    for c in range(tile.lines):
        for j in range(GROUP):
            rest = without(first[c * GROUP + j], e[c * GROUP + j] == top, g_below[j], g_ones[j],
                           g_below_shifted[j], g_ones_shifted[j])
            to[c * GROUP + j] = fma(-e[c * GROUP + j], rest, first[c * GROUP + j]
                                    * remainder_of(e[c * GROUP + j], ones[j], below[j])) * factor[j]


cdef void tile_hessian(const Job* job, const Tile* tile, const Outcome* out, const real* e, const real* x, const real* slope, const real* second, const real* grad, real* to) noexcept nogil:
    cdef real ones[GROUP]
    cdef real below[GROUP]
    # in float64, which their product with extreme weights does not leave
    cdef double curvature[GROUP]
    cdef double total[GROUP]
    cdef double factor[GROUP]
    cdef double factor_low[GROUP]
    cdef double square = 2 * job.o.z_loss
    cdef real top = unit(e[0])
    cdef real scale = <real>job.o.logit_scale
    cdef real cap = <real>job.o.softcap
    cdef real others, rest, bend
    cdef double straight
    cdef Py_ssize_t c, i
    cdef int j
    for j in range(GROUP):
        ones[j] = <real>out.ones[j]
        below[j] = <real>out.below[j]
        curvature[j] = out.curvature[j]
        total[j] = out.slope_total[j]
        factor[j] = -total[j] * curvature[j]
        factor_low[j] = product_error(-total[j], curvature[j], factor[j])
    if job.o.z_loss == 0 and job.o.focal_gamma == 0:
        for c in range(tile.lines):
            for j in range(GROUP):
                i = c * GROUP + j
                others = remainder_of(e[i], ones[j], below[j])
                rest = e[i] * others
                if real is float:
                    to[i] = <real>(rest * factor[j])
                else:
                    to[i] = SL_FMA(rest, factor[j], SL_FMA(rest, factor_low[j], product_error(e[i], others, rest) * factor[j]))
    else:
        for c in range(tile.lines):
            for j in range(GROUP):
                i = c * GROUP + j
                others = remainder_of(e[i], ones[j], below[j])
                rest = 0
                straight = 0
                if job.o.focal_gamma != 0:
                    rest = e[i] * without(second[i], e[i] == top, <real>out.second.below[j], <real>out.second.ones[j],
                                          <real>out.second.below[j], <real>out.second.ones[j])
                    straight = second[i] * others * others * curvature[j]
                to[i] = <real>(straight + e[i] * (rest + square * e[i] - others * total[j]) * curvature[j])
    if job.o.softcap != 0:
        for i in range(tile.lines * GROUP):
            bend = -<real>2 * (x[i] / cap) * slope[i] / cap
            to[i] = scale * (scale * (slope[i] * slope[i] * to[i] + bend * grad[i]))
    elif job.o.logit_scale != 1:
        for i in range(tile.lines * GROUP):
            to[i] = scale * (scale * to[i])


cdef void tile_product(const Job* job, const Tile* tile, const Outcome* out, const real* e, const real* x, const real* slope,
                       const real* grad, const real* second, const real* v, const real* d, real* to) noexcept nogil:
    cdef real top = unit(e[0])
    cdef real cap = <real>job.o.softcap
    cdef real square = <real>(2 * job.o.z_loss)
    cdef real others, turn, p
    cdef Py_ssize_t c, i
    cdef int j
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            others = remainder_of(e[i], <real>out.ones[j], <real>out.below[j]) * <real>out.inverse[j]
            turn = second[i] * d[i]
            p = e[i] * <real>out.inverse[j]
            to[i] = turn * others - p * (
                <real>out.slope_total[j] * d[i]
                + without(turn, e[i] == top, <real>out.turn.below[j], <real>out.turn.ones[j],
                          <real>out.turn.below[j], <real>out.turn.ones[j])
                - square * <real>((out.v.below[j] + out.v.ones[j]) * out.inverse[j]))
            to[i] *= <real>(out.factor[j] / out.inverse[j])
    steer(job, tile, slope, to)
    if job.o.softcap != 0:
        for i in range(tile.lines * GROUP):
            to[i] -= <real>2 * (x[i] / cap) / cap * <real>job.o.logit_scale * v[i] * grad[i]


cdef void tile_target_gradient(const Job* job, const Tile* tile, const Columns* columns, const double* m, const real* e, const real* x, real* to) noexcept nogil:
    """(1 - smoothing) class weight (1 - p)**gamma S."""
    cdef Py_ssize_t c, i, k
    cdef int j
    cdef double others, minus_log, power, first, second
    for c in range(tile.lines):
        for j in range(GROUP):
            i = c * GROUP + j
            minus_log = 2 * gap_of(m[j], x[i]) + columns.log_sum[j]
            power = 1
            if job.o.focal_gamma != 0:
                others = remainder_of(<double>e[i], columns.ones.sum[j], columns.below.sum[j] + columns.below.lost[j])
                focal_terms(e[i], others, minus_log, job.o.focal_gamma, &power, &first, &second)
            if job.o.class_weight != NULL:
                k = tile.first + i if tile.wide else c
                power *= job.o.class_weight[k] if k < job.k else 0
            power *= (1 - job.o.label_smoothing) * columns.weight[j] / job.divisor
            to[i] = <real>(0 if power == 0 else power * minus_log)


cdef void ce_tiles(const Job* job, Py_ssize_t start, int count, bint wide, int want, const double* weight, double* loss, real* scratch) noexcept nogil:
    """Losses and derivatives of a group of rows, or of a wide one."""
    cdef real* e = scratch
    cdef real* x = scratch + TILE
    cdef real* q = scratch + 2 * TILE
    cdef real* slope = scratch + 3 * TILE
    cdef real* v = scratch + 4 * TILE
    cdef real* first = scratch + 5 * TILE
    cdef real* second = scratch + 6 * TILE
    cdef real* to = scratch + 7 * TILE
    cdef real* grad = first             # which the gradient is the last to read
    cdef const Settings* o = job.o
    cdef Py_ssize_t index, i, tiles = tiles_of(job, wide)
    cdef bint focal = o.focal_gamma != 0
    cdef bint product = want & WANT_PRODUCT != 0
    # The exponentials of a row of several tiles wait in its gradient, if that can hold them and nothing
    # that is read again lies there.
    cdef bint keep = (tiles > 1 and want & WANT_GRAD and job.g.kind == kind_of(scratch[0]) and not focal
                      and o.label_smoothing == 0 and o.softcap == 0 and not o.from_probabilities)
    cdef int j
    cdef Tile tile
    cdef Columns columns
    cdef Terms terms
    cdef Statistics statistics
    cdef Outcome out
    cdef double m[GROUP]
    cdef double shift[GROUP]
    cdef double nothing[GROUP]
    cdef double lse
    cdef Total unused
    open_columns(job, start, count, wide, weight, &columns)
    start_total(&terms.loss)
    start_total(&terms.mass)
    if focal:
        start_total(&terms.first_below)
        start_total(&terms.first_ones)
        start_total(&terms.second_below)
        start_total(&terms.second_ones)
        start_total(&unused)
    if product:
        start_total(&terms.v_below)
        start_total(&terms.v_ones)
        start_total(&terms.turn_below)
        start_total(&terms.turn_ones)
    tile_maxima(job, start, count, wide, &columns, x, slope)
    if want & WANT_STATS:
        start_statistics(&statistics)
    for j in range(GROUP):
        m[j] = 0 if o.from_probabilities else columns.m[j]
        nothing[j] = 0

    # exponentials, and what is summed without their total
    for index in range(tiles):
        place_tile(job, start, count, wide, index, &tile)
        if tiles > 1:
            tile_logits(job, &tile, columns.weight, x, slope)
        prepare_tile(job, &tile, &columns, job.hard and not job.has_options, e, x, q)
        tile_totals(<const real*>e, tile.lines, &columns.below, &columns.ones)
        if not focal:
            tile_products(&tile, m, <const real*>x, <const real*>q, &terms.loss, &terms.mass)
        if product:
            read_vector(job, &tile, columns.weight, <const real*>slope, <const real*>e, v, to)
            tile_split_sum(<const real*>e, <const real*>to, tile.lines, &terms.v_below, &terms.v_ones)
        if want & WANT_STATS:
            tile_statistics(&tile, &columns, o.from_probabilities, <const real*>x, <const real*>e, &statistics)
        if keep:
            write_tile(<const real*>e, &job.g, &tile)
    settle_exponentials(&columns, wide, scratch[0])
    for j in range(columns_of(wide)):
        out.ones[j] = columns.ones.sum[j]
        out.below[j] = columns.below.sum[j] + columns.below.lost[j]
        out.factor[j] = inverse_sum(&columns, j, columns.weight[j], job.divisor, scratch[0])
    if product:
        for j in range(columns_of(wide)):
            out.inverse[j] = inverse_sum(&columns, j, 1, 1, scratch[0])
    if want & WANT_HESS:
        for j in range(columns_of(wide)):
            out.curvature[j] = inverse_square(&columns, j, columns.weight[j], scratch[0])
    spread(out.ones, wide)
    spread(out.below, wide)
    spread(out.factor, wide)
    spread(out.inverse, wide)
    spread(out.curvature, wide)

    # focusing needs the probabilities
    if focal:
        for index in range(tiles):
            place_tile(job, start, count, wide, index, &tile)
            if tiles > 1:
                restore_tile(job, &tile, &columns, False, e, x, q, slope)
            tile_focal(job, &tile, &columns, m, <const real*>e, <const real*>x, <const real*>q, first, second, &terms.loss)
            tile_split_sum(<const real*>e, <const real*>first, tile.lines, &terms.first_below, &terms.first_ones)
            tile_split_sum(<const real*>e, <const real*>second, tile.lines, &terms.second_below, &terms.second_ones)
    elif product:
        for i in range(TILE):
            second[i] = 0
    settle_whole(&terms.loss, wide)
    if focal:
        settle_whole(&terms.first_below, wide)
        settle_whole(&terms.first_ones, wide)
        settle_whole(&terms.second_below, wide)
        settle_whole(&terms.second_ones, wide)
        for j in range(GROUP):
            terms.mass.sum[j] = -(terms.first_below.sum[j] + terms.first_ones.sum[j])
    else:
        settle_whole(&terms.mass, wide)
    for j in range(columns_of(wide)):
        lse = (SL_INFINITY if columns.limit[j] else columns.m[j]) + columns.log_sum[j]
        shift[j] = 0 if o.z_loss == 0 else -2 * o.z_loss * lse
        if columns.limit[j] and o.z_loss != 0:
            # in place of inf, whose product with a probability of 0 has to be 0
            shift[j] = -1e37 if kind_of(scratch[0]) == np.NPY_FLOAT else -1e300
        out.slope_total[j] = shift[j] - terms.mass.sum[j]
        if want & WANT_LOSS:
            loss[j] = terms.loss.sum[j] if focal else 2 * terms.loss.sum[j] + terms.mass.sum[j] * columns.log_sum[j]
            if o.z_loss != 0:
                # not multiplied by a weight that stands for the class
                loss[j] += o.z_loss * lse * lse
    spread(out.slope_total, wide)
    if focal:
        spread(shift, wide)
        set_split(&terms.first_below, &terms.first_ones, shift, &out.first)
        set_split(&terms.second_below, &terms.second_ones, nothing, &out.second)
    if product:
        settle_whole(&terms.v_below, wide)
        settle_whole(&terms.v_ones, wide)
        set_split(&terms.v_below, &terms.v_ones, nothing, &out.v)
    if want & WANT_STATS:
        store_statistics(job, &tile, &columns, &statistics, scratch[0])
    if product and focal:
        for index in range(tiles):
            place_tile(job, start, count, wide, index, &tile)
            if tiles > 1:
                restore_tile(job, &tile, &columns, False, e, x, q, slope)
                tile_focal(job, &tile, &columns, m, <const real*>e, <const real*>x, <const real*>q, first, second, &unused)
            read_vector(job, &tile, columns.weight, <const real*>slope, <const real*>e, v, q)
            tile_directions(&tile, &out, <const real*>e, <const real*>v, <const real*>q, to)
            for i in range(tile.lines * GROUP):
                to[i] *= second[i]
            tile_split_sum(<const real*>e, <const real*>to, tile.lines, &terms.turn_below, &terms.turn_ones)
        settle_whole(&terms.turn_below, wide)
        settle_whole(&terms.turn_ones, wide)
    if product:
        set_split(&terms.turn_below, &terms.turn_ones, nothing, &out.turn)

    # results
    if not (want & (WANT_GRAD | WANT_HESS | WANT_PRODUCT | WANT_TARGET_GRAD) or job.wants_probabilities):
        return
    for index in range(tiles):
        place_tile(job, start, count, wide, index, &tile)
        if tiles > 1:
            restore_tile(job, &tile, &columns, keep, e, x, q, slope)
            if focal:
                tile_focal(job, &tile, &columns, m, <const real*>e, <const real*>x, <const real*>q, first, second, &unused)
        if job.wants_probabilities:
            tile_probabilities(job, &tile, &columns, <const real*>e, to)
        if want & WANT_TARGET_GRAD:
            tile_target_gradient(job, &tile, &columns, m, <const real*>e, <const real*>x, to)
            write_tile(<const real*>to, &job.g, &tile)
        if want & WANT_GRAD or o.softcap != 0:
            if focal:
                tile_gradient(&tile, &out, <const real*>e, <const real*>first, grad)
            else:
                plain_gradient(job, &tile, &out, <const real*>e, <const real*>q, grad)
        if product:
            read_vector(job, &tile, columns.weight, <const real*>slope, <const real*>e, v, q)
            tile_directions(&tile, &out, <const real*>e, <const real*>v, <const real*>q, q)
            tile_product(job, &tile, &out, <const real*>e, <const real*>x, <const real*>slope, <const real*>grad,
                         <const real*>second, <const real*>v, <const real*>q, to)
            write_tile(<const real*>to, &job.g, &tile)
        if want & WANT_HESS:
            tile_hessian(job, &tile, &out, <const real*>e, <const real*>x, <const real*>slope, <const real*>second,
                         <const real*>grad, to)
            write_tile(<const real*>to, &job.h, &tile)
        if want & WANT_GRAD:
            steer(job, &tile, <const real*>slope, grad)
            write_tile(<const real*>grad, &job.g, &tile)


cdef void drop_absent_rows(const Job* job, Py_ssize_t start, int count, int want, double* weight, real* s) noexcept nogil:
    """Take out of the results, NaN and all, what a class weight of 0 leaves nothing of."""
    cdef double present[GROUP]
    cdef int j
    if not job.hard or job.o.class_weight == NULL or job.o.label_smoothing != 0 or job.o.z_loss != 0:
        return
    load_weights(job, start, count, False, True, present)
    for j in range(count):
        if present[j] == 0:
            weight[j] = 0
            if want & (WANT_GRAD | WANT_PRODUCT | WANT_TARGET_GRAD):
                clear_row(job, &job.g, start + j, s)
            if want & WANT_HESS:
                clear_row(job, &job.h, start + j, s)


cdef void softmax_ce_kernel(const Job* job, Py_ssize_t start, Py_ssize_t stop, Sum* total, real* scratch) noexcept nogil:
    # class indices have their own way to loss and gradient, which a Hessian beside it does not change
    cdef bint fast = job.hard and not job.has_options
    cdef int tiled = job.want & WANT_HESS if fast else job.want
    cdef bint wide = job.k > NARROW
    cdef Py_ssize_t at
    cdef int count, j
    cdef double weight[GROUP]
    cdef double loss[GROUP]
    for j in range(GROUP):
        weight[j] = 1
    for at from start <= at < stop by GROUP:
        count = <int>min(<Py_ssize_t>GROUP, stop - at)
        if job.any_weight:
            # in tiles the weights of classes are part of the targets
            load_weights(job, at, count, True, fast, weight)
        if tiled and not wide:
            ce_tiles(job, at, count, False, tiled, weight, loss, scratch)
        elif tiled:
            for j in range(count):
                if weight[j] != 0:
                    ce_tiles(job, at + j, 1, True, tiled, &weight[j], &loss[j], scratch)
                else:
                    clear_outputs(job, at + j, tiled, scratch)
        if tiled and not fast:
            drop_absent_rows(job, at, count, tiled, weight, scratch)
        if fast and job.k <= NARROW and count <= FEW:
            hard_few(job, at, count, weight, loss, scratch)
        elif fast and job.k <= NARROW:
            hard_narrow(job, at, count, weight, loss, scratch)
        elif fast:
            hard_wide_group(job, at, count, weight, loss, scratch)
        close_rows(job, at, count, loss, weight, total)


# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:
#   float32 grad 2.270 in a row of 100
#   float32 hess 3.145 in a row of 100
#   float32 loss 1.570 at 0x1.46016ep+2, -0x1.a5bdf4p-4, target 0
#   float32 soft grad 3.375 in a row of 10
#   float32 soft hess 3.432 in a row of 100
#   float32 soft loss 1.208 in a row of 2
#   float64 grad 2.609 in a row of 1000
#   float64 hess 3.149 in a row of 100
#   float64 loss 2.290 in a row of 10
#   float64 soft grad 3.877 in a row of 1000
#   float64 soft hess 3.892 in a row of 1000
#   float64 soft loss 3.445 in a row of 3
def softmax_ce(logits, targets, weight, mask, denominator, out, hess, vector, probabilities, int want, Options options):
    cdef Kernel kernel = Kernel(softmax_ce_kernel[float], softmax_ce_kernel[double])
    return loss_call(logits, targets, weight, mask, denominator, out, hess, vector, probabilities, want, options, True, &kernel)

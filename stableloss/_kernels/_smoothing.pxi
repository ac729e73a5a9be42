# Class indices with label smoothing: with L the classes above -inf, a share of the target's probability is
# spread over them, so that with S = -log p the loss of a row is
#
#   (1 - smoothing) S_y + share sum_L S_k,  share = smoothing / number of L,  S_k = (m - x_k) + log_sum
#
# and its gradient p_k mass - q_k, with q_k the share, more at the target, 0 outside of L. Beside what class
# indices need anyway that is a sum of m - x over L.
#
# A row with classes outside of L is one whose sum is not finite. There these are marked, among the
# exponentials, by -0, which takes part in no sum; but for them no 0 among exponentials is negative.
#
# uses _groups: Group Smoothing TargetSums above_maximum whole_rest
# uses _math: SL_FMA SL_INFINITY SL_ISFINITE fma log1p_positive real sl_bits_f64 sl_bits_from_float two_sum
# uses _math: unit
# uses _pieces: Row load_limited view_piece
# uses _rows: load_columns load_logits mark_extremes
# uses _sums: GROUP Pairs accumulate clear_pairs few_classes sl_fold
# uses _tiles: TILE_TARGETS

cdef extern from "sl_targets.h":
    void sl_column_gaps_f32(const float*, Py_ssize_t, const float*, double, double*, double*) noexcept nogil
    void sl_column_gaps_f64(const double*, Py_ssize_t, const double*, double, double*, double*) noexcept nogil
    void sl_scale_and_subtract_f32(const float*, Py_ssize_t, float, float, float*) noexcept nogil
    void sl_scale_and_subtract_f64(const double*, Py_ssize_t, double, double, double*) noexcept nogil


cdef double GAP_UNIT = 2.0**-32     # a sum of so many differences of any two logits does not overflow


cdef inline double scaled_gap(double m, double x) noexcept nogil:
    return SL_FMA(-GAP_UNIT, x, GAP_UNIT * m)


cdef inline void column_gaps(const real* x, Py_ssize_t lines, const real* m, Pairs* sums) noexcept nogil:
    """Add up m - x, times GAP_UNIT."""
    if real is float:
        sl_column_gaps_f32(x, lines, m, GAP_UNIT, sums.hi, sums.lo)
    else:
        sl_column_gaps_f64(x, lines, m, GAP_UNIT, sums.hi, sums.lo)


cdef inline bint is_mark(real e) noexcept nogil:
    """Whether an exponential is -0."""
    if real is float:
        return sl_bits_from_float(e) == <uint32_t>1 << 31
    else:
        return sl_bits_f64(e) == <uint64_t>1 << 63


cdef inline void live_lines(
    const real* given, const real* x, Py_ssize_t lines, const real* m, Pairs* sums, double* live
) noexcept nogil:
    """The sums and the number of the classes above -inf among the logits as they are given."""
    cdef double alive
    cdef Py_ssize_t c, i
    cdef int j
    clear_pairs(sums)
    for j in range(GROUP):
        live[j] = 0
    for c in range(lines):
        for j in range(GROUP):
            i = c * GROUP + j
            alive = 0 if given[i] == -SL_INFINITY else 1
            live[j] += alive
            accumulate(m[j], &sums.hi[j], &sums.lo[j], 0 if alive == 0 else scaled_gap(m[j], x[i]))


cdef inline void mark_dead(const real* given, Py_ssize_t n, real* e) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        e[i] = <real>-0.0 if given[i] == -SL_INFINITY else e[i]


cdef inline void smooth_losses(
    real hint, Group* group, const TargetSums* sums, int start, int stop
) noexcept nogil:
    cdef Smoothing* smooth = &group.smooth
    cdef double smoothing = group.job.o.label_smoothing
    cdef double inverse = 1 / <double>unit(hint)
    cdef double gaps
    cdef int j
    for j in range(start, stop):
        smooth.share[j] = smoothing / smooth.live[j]
        # what an infinite sum lost is inf - inf
        gaps = smooth.gaps.hi[j] + (smooth.gaps.lo[j] if SL_ISFINITE(smooth.gaps.hi[j]) else 0)
        gaps = (smooth.share[j] / GAP_UNIT * gaps * group.job.exponent_scale
                + log1p_positive(above_maximum(hint, sums, j) * inverse))
        group.loss[j] = gaps + (0 if smoothing == 1 else (1 - smoothing) * sums.gap[j])


cdef inline double smooth_target(
    real hint, const Group* group, const TargetSums* sums, int j, double* factor, double* less
) noexcept nogil:
    """Gradient of a row's target; that of another class is its exponential times `factor`, which comes as the
    one of the plain loss, minus `less`."""
    cdef const Smoothing* smooth = &group.smooth
    cdef double share = smooth.share[j]
    cdef double own = 0 if smooth.dead_target[j] else 1
    cdef double others = share * (smooth.live[j] - own)
    cdef double q = (1 - group.job.o.label_smoothing) + share * own
    cdef double rest = whole_rest(hint, sums.rest.hi[j], sums.rest.lo[j])
    cdef double target = (sums.e_target[j] * others - q * rest) * factor[0]
    less[0] = share * group.weight[j] * group.job.exponent_scale / group.job.divisor
    factor[0] *= q + others
    return target


# ---- rows as columns ------------------------------------------------------------------------------

cdef void smooth_columns(Group* group, const real* m, real* s) noexcept nogil:
    """Sums of the logits of a group in s. Where classes are at -inf, the logits as they are given stay in the
    place of soft targets."""
    cdef Smoothing* smooth = &group.smooth
    cdef real* given = s + TILE_TARGETS
    cdef Py_ssize_t j
    cdef int finite = 1
    clear_pairs(&smooth.gaps)
    column_gaps(<const real*>s, group.job.k, m, &smooth.gaps)
    for j in range(GROUP):
        smooth.live[j] = group.job.k
        smooth.dead_target[j] = False
        finite &= SL_ISFINITE(smooth.gaps.hi[j])
    smooth.any_dead = not finite
    if finite:
        return
    load_columns(group.job, group.start, group.count, group.weight, given, given)
    live_lines(<const real*>given, <const real*>s, group.job.k, m, &smooth.gaps, smooth.live)
    for j in range(GROUP):
        smooth.dead_target[j] = given[group.y[j] * GROUP + j] == -SL_INFINITY


cdef void smooth_gradients(
    const Group* group, const TargetSums* sums, double* factor, real* target, real* s
) noexcept nogil:
    """Gradient of a group from its exponentials; `target` gets that of the targets."""
    cdef double less[GROUP]
    cdef real scale[GROUP]
    cdef real minus[GROUP]
    cdef bint extreme[GROUP]
    cdef bint extreme_less[GROUP]
    cdef bint any
    cdef double value
    cdef real rounded
    cdef Py_ssize_t c, i, n = group.job.k * GROUP
    cdef int j
    for j in range(GROUP):
        value = smooth_target(s[0], group, sums, j, &factor[j], &less[j])
        target[j] = <real>(0 if group.weight[j] == 0 else value)
        scale[j] = <real>factor[j]
        minus[j] = -<real>less[j]
    any = mark_extremes(s[0], group.job, factor, extreme)
    any |= mark_extremes(s[0], group.job, less, extreme_less)
    if any:
        for i in range(n):
            j = i % GROUP
            value = s[i] * factor[j] - (0 if is_mark(s[i]) else less[j])
            rounded = fma(s[i], scale[j], <real>0 if is_mark(s[i]) else minus[j])
            s[i] = <real>value if extreme[j] or extreme_less[j] else rounded
    elif group.smooth.any_dead:
        for i in range(n):
            s[i] = fma(s[i], scale[i % GROUP], <real>0 if is_mark(s[i]) else minus[i % GROUP])
    else:
        for c in range(group.job.k):
            for j in range(GROUP):
                s[c * GROUP + j] = fma(s[c * GROUP + j], scale[j], minus[j])


# ---- a row by itself ------------------------------------------------------------------------------

cdef inline void open_smoothing(Group* group, int j) noexcept nogil:
    group.smooth.gaps.hi[j] = group.smooth.gaps.lo[j] = group.smooth.live[j] = 0
    group.smooth.dead_target[j] = group.smooth.any_dead = False


cdef void add_gaps(
    const Row* row, const real* given, const real* x, Py_ssize_t start, Pairs* sums, double* live
) noexcept nogil:
    """Add up logits from `start` on, but those at -inf as they are given; few classes as one column."""
    cdef real m = <real>row.m
    cdef Py_ssize_t i, lane
    for i in range(start, row.n):
        if given[i] != -SL_INFINITY:
            lane = 0 if few_classes(m, row.job.k) else i % GROUP
            accumulate(m, &sums.hi[lane], &sums.lo[lane], scaled_gap(m, x[i]))
            live[0] += 1


cdef bint smooth_piece(const Row* row, Group* group, int j, real* s) noexcept nogil:
    """Sums of a piece of a row. Whether classes of it are at -inf: then the logits as they are given stay in
    the place of soft targets."""
    cdef Smoothing* smooth = &group.smooth
    cdef real* given = s + TILE_TARGETS
    cdef const real* x = view_piece(row, s) if row.pieces > 1 else s
    cdef Py_ssize_t i, lines = 0 if few_classes(s[0], row.job.k) else row.n // GROUP
    cdef double live = lines * GROUP
    cdef double error
    cdef real m[GROUP]
    cdef Pairs sums
    for i in range(GROUP):
        m[i] = <real>row.m
    clear_pairs(&sums)
    column_gaps(x, lines, <const real*>m, &sums)
    # of several pieces too, the last n % GROUP are in s
    add_gaps(row, <const real*>s, <const real*>s, lines * GROUP, &sums, &live)
    sl_fold(sums.hi, sums.lo)
    if live < row.n or not SL_ISFINITE(sums.hi[0]):
        smooth.any_dead = True
        live = 0
        clear_pairs(&sums)
        load_limited(row, row.first, row.n, s)
        load_logits(row.job, row.x, row.first, row.n, given, given)
        add_gaps(row, <const real*>given, <const real*>s, 0, &sums, &live)
        sl_fold(sums.hi, sums.lo)
        if row.first <= row.y < row.first + row.n:
            smooth.dead_target[j] = given[row.y - row.first] == -SL_INFINITY
    smooth.live[j] += live
    smooth.gaps.hi[j] = two_sum(smooth.gaps.hi[j], sums.hi[0], &error)
    smooth.gaps.lo[j] += sums.lo[0] + error
    return live < row.n


cdef void mark_piece(const Row* row, real* e) noexcept nogil:
    """Mark among the exponentials of a piece the classes at -inf."""
    cdef real* given = e + TILE_TARGETS
    load_logits(row.job, row.x, row.first, row.n, given, given)
    mark_dead(<const real*>given, row.n, e)


cdef void smooth_values(
    const real* e, Py_ssize_t n, double factor, double less, bint extreme, bint dead, real* to
) noexcept nogil:
    """Gradients from exponentials, with the same bits where some are marked."""
    cdef Py_ssize_t i
    if extreme:
        for i in range(n):
            to[i] = <real>(e[i] * factor - (0 if is_mark(e[i]) else less))
    elif dead:
        for i in range(n):
            to[i] = fma(e[i], <real>factor, <real>0 if is_mark(e[i]) else -<real>less)
    elif real is float:
        sl_scale_and_subtract_f32(e, n, <float>factor, <float>less, to)
    else:
        sl_scale_and_subtract_f64(e, n, factor, less, to)

# Softmax + cross-entropy from probabilities and class indices. They take the place of the exponentials as
# they are, for only quotients matter: a row is read twice, for its sum without the target and for its
# quotients. Rows of few classes are columns, with the same bits.
#
# uses _groups: Group TargetSums clear_row group_ahead
# uses _job: Job
# uses _logits: smallest_normal
# uses _math: real two_sum
# uses _operand: gather has_rows row_offsets
# uses _options: WANT_GRAD
# uses _pieces: Row place_piece place_row take_out write_piece
# uses _rows: load_columns mark_extremes rows_ahead
# uses _sums: GROUP NARROW ordered_sum

cdef extern from "sl_probabilities.h" nogil:
    void sl_raise_f32(float*, Py_ssize_t, float, float, const sl_ahead*) noexcept
    void sl_raise_f64(double*, Py_ssize_t, double, double, const sl_ahead*) noexcept
    void sl_raise_and_scale_f32(
        const float*, Py_ssize_t, float, float, float, float*, const sl_ahead*) noexcept
    void sl_raise_and_scale_f64(
        const double*, Py_ssize_t, double, double, double, double*, const sl_ahead*) noexcept
    double sl_probability_sum_f32(const float*, Py_ssize_t, Py_ssize_t, float) noexcept
    double sl_probability_sum_f64(const double*, Py_ssize_t, Py_ssize_t, double, double*) noexcept

cdef inline bint few_probabilities(real hint, Py_ssize_t k) noexcept nogil:
    """Whether rows of so many classes take less time as columns."""
    return k <= 96 if real is float else k <= 64


cdef inline real raising(real hint) noexcept nogil:
    """A power of two that keeps what is made from probabilities in range."""
    return <real>18446744073709551616.0 if real is float else <real>1.3407807929942597e154   # 2**64, 2**512


cdef inline real raised(const Job* job, real p) noexcept nogil:
    cdef real tiny = smallest_normal(job, p)
    return (tiny if p < tiny else p) * raising(p)


cdef inline void raised_columns(Group* group, real* s) noexcept nogil:
    cdef sl_ahead ahead
    cdef Py_ssize_t n = group.job.k * GROUP
    load_columns(group.job, group.start, group.count, group.weight, s, s)
    if real is float:
        sl_raise_f32(s, n, smallest_normal(group.job, s[0]), raising(s[0]), group_ahead(group, &ahead))
    else:
        sl_raise_f64(s, n, smallest_normal(group.job, s[0]), raising(s[0]), group_ahead(group, &ahead))


cdef inline const real* piece_of_probabilities(const Row* row, real* s) noexcept nogil:
    """Where a piece can be read: where it lies, or in s."""
    if has_rows(&row.job.x, s[0]):
        return <const real*>row.x + row.first
    gather(row.x + row.first * row.job.x.inner, row.job.x.kind, row.job.x.inner, row.n, s)
    return s


cdef inline double sum_of_probabilities(
    const real* p, Py_ssize_t n, Py_ssize_t y, real tiny, double* lo
) noexcept nogil:
    """Of all but class y, if that is one of them."""
    lo[0] = 0
    if real is float:
        return sl_probability_sum_f32(p, n, y, tiny)
    else:
        return sl_probability_sum_f64(p, n, y, tiny, lo)


cdef inline void quotients(
    const Job* job, const real* p, Py_ssize_t n, double factor, bint extreme, real* to, const sl_ahead* ahead
) noexcept nogil:
    cdef real tiny = smallest_normal(job, p[0])
    cdef Py_ssize_t i
    if extreme:
        for i in range(n):
            to[i] = <real>(raised(job, p[i]) * factor)
    elif real is float:
        sl_raise_and_scale_f32(p, n, tiny, raising(tiny), <float>factor, to, ahead)
    else:
        sl_raise_and_scale_f64(p, n, tiny, raising(tiny), factor, to, ahead)


# ---- a row by itself ------------------------------------------------------------------------------

cdef void sum_few_probabilities(Row* row, TargetSums* sums, int j, real* s) noexcept nogil:
    """In the order of columns."""
    cdef const real* p
    cdef Py_ssize_t i
    place_piece(0, row)
    p = piece_of_probabilities(row, s)
    for i in range(row.n):
        s[i] = raised(row.job, p[i])
    sums.e_target[j] = take_out(s + row.y)
    sums.rest.hi[j] = ordered_sum(<const real*>s, row.n, False, &sums.rest.lo[j])


cdef bint sum_probabilities(Row* row, TargetSums* sums, int j, real* s) noexcept nogil:
    """False where the call is to end."""
    cdef const Job* job = row.job
    cdef real tiny = smallest_normal(job, s[0])
    cdef double up = raising(s[0])
    cdef double rest = 0, rest_lo = 0, part, part_lo, error
    cdef const real* p
    cdef Py_ssize_t index, y
    place_row(row, s[0])
    if few_probabilities(s[0], job.k):
        sum_few_probabilities(row, sums, j, s)
        return True
    for index in range(row.pieces):
        if not place_piece(index, row):
            return False
        p = piece_of_probabilities(row, s)
        y = row.y - row.first if row.first <= row.y < row.first + row.n else -1
        if y >= 0:
            sums.e_target[j] = raised(job, p[y])
        part = sum_of_probabilities(p, row.n, y, tiny, &part_lo)
        rest = two_sum(rest, part, &error)
        rest_lo += part_lo + error
    sums.rest.hi[j] = rest * up
    sums.rest.lo[j] = rest_lo * up
    return True


cdef bint write_quotients(Row* row, double factor, bint extreme, real* s) noexcept nogil:
    """The gradient of a row; False where the call is to end."""
    cdef const Job* job = row.job
    cdef Py_ssize_t index, at = row.x - job.x.data + job.k * job.x.inner
    cdef const real* p
    cdef sl_ahead ahead
    for index in range(row.pieces):
        if not place_piece(index, row):
            return False
        p = piece_of_probabilities(row, s)
        quotients(job, p, row.n, factor, extreme, <real*>row.grad + row.first if row.in_place else s,
                  rows_ahead(job, at + row.first * job.x.inner, 0, &ahead))
        if not row.in_place:
            write_piece(row, <const real*>s)
    return True


# ---- rows together --------------------------------------------------------------------------------

cdef inline bint together(real hint, const Job* job) noexcept nogil:
    """Whether rows that are no columns lie as they are computed with, and GROUP of them in the L1 cache."""
    return (job.o.from_probabilities and not few_probabilities(hint, job.k) and job.k <= NARROW + NARROW
            and has_rows(&job.x, hint) and (not job.want & WANT_GRAD or has_rows(&job.g, hint)))


cdef void sum_probability_rows(Group* group, real hint) noexcept nogil:
    cdef const Job* job = group.job
    cdef TargetSums* sums = &group.sums
    cdef real tiny = smallest_normal(job, hint)
    cdef double up = raising(hint)
    cdef Py_ssize_t place[GROUP]
    cdef const real* p
    cdef int j
    row_offsets(&job.x, group.start, group.count, place)
    for j in range(GROUP):
        sums.rest.hi[j] = sums.rest.lo[j] = 0
        sums.e_target[j] = 1
    for j in range(group.count):
        if group.weight[j] == 0:
            continue
        p = <const real*>(job.x.data + place[j])
        sums.e_target[j] = raised(job, p[group.y[j]])
        sums.rest.hi[j] = sum_of_probabilities(p, job.k, group.y[j], tiny, &sums.rest.lo[j])
    for j in range(GROUP):
        sums.rest.hi[j] *= up
        sums.rest.lo[j] *= up


cdef void write_quotient_rows(
    const Group* group, const double* factor, const double* target, real* s
) noexcept nogil:
    """Gradients; `target` has those of the targets."""
    cdef const Job* job = group.job
    cdef bint extreme[GROUP]
    cdef bint any = mark_extremes(s[0], job, factor, extreme)
    cdef Py_ssize_t at, row = job.k * job.x.inner
    cdef Py_ssize_t from_[GROUP]
    cdef Py_ssize_t to[GROUP]
    cdef sl_ahead ahead
    cdef real* grad
    cdef int j
    row_offsets(&job.x, group.start, group.count, from_)
    row_offsets(&job.g, group.start, group.count, to)
    for j in range(group.count):
        if group.weight[j] == 0:
            clear_row(job, &job.g, group.start + j, s)
            continue
        grad = <real*>(job.g.data + to[j])
        at = from_[j] + group.count * row
        quotients(job, <const real*>(job.x.data + from_[j]), job.k, factor[j], any and extreme[j], grad,
                  rows_ahead(job, at, 0, &ahead))
        grad[group.y[j]] = <real>target[j]

# What every kernel file shares: operands of any layout, blocks of rows, sums of losses.

cimport cython
cimport numpy as np
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from stableloss._threads import get_num_threads, work_together

np.import_array()

cdef extern from *:
    """
    /* Each block is taken once; who takes it does not matter, so no order is needed. */
    #define SL_TAKE(counter) __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)
    #define SL_ISFINITE(x) __builtin_isfinite(x)

    /* Transpose 4 x 4 float32 or 2 x 2 float64 between rows that lie `stride` elements apart. Compilers
       turn neither a loop nor this many scalar moves into shuffles. */
    typedef float sl_f32x4 __attribute__((vector_size(16), aligned(4), may_alias));
    typedef double sl_f64x2 __attribute__((vector_size(16), aligned(8), may_alias));
    #if defined(__clang__) || __GNUC__ >= 12
    #define SL_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
    #define SL_SHUFFLE2(a, b, i, j) __builtin_shufflevector(a, b, i, j)
    #else
    typedef int32_t sl_i32x4 __attribute__((vector_size(16)));
    typedef int64_t sl_i64x2 __attribute__((vector_size(16)));
    #define SL_SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (sl_i32x4){i, j, k, l})
    #define SL_SHUFFLE2(a, b, i, j) __builtin_shuffle(a, b, (sl_i64x2){i, j})
    #endif
    static inline void sl_transpose_f32(const float *from, Py_ssize_t from_stride, float *to, Py_ssize_t to_stride) {
        sl_f32x4 a = *(const sl_f32x4 *)from, b = *(const sl_f32x4 *)(from + from_stride);
        sl_f32x4 c = *(const sl_f32x4 *)(from + 2 * from_stride), d = *(const sl_f32x4 *)(from + 3 * from_stride);
        sl_f32x4 ab_low = SL_SHUFFLE4(a, b, 0, 4, 1, 5), ab_high = SL_SHUFFLE4(a, b, 2, 6, 3, 7);
        sl_f32x4 cd_low = SL_SHUFFLE4(c, d, 0, 4, 1, 5), cd_high = SL_SHUFFLE4(c, d, 2, 6, 3, 7);
        *(sl_f32x4 *)to = SL_SHUFFLE4(ab_low, cd_low, 0, 1, 4, 5);
        *(sl_f32x4 *)(to + to_stride) = SL_SHUFFLE4(ab_low, cd_low, 2, 3, 6, 7);
        *(sl_f32x4 *)(to + 2 * to_stride) = SL_SHUFFLE4(ab_high, cd_high, 0, 1, 4, 5);
        *(sl_f32x4 *)(to + 3 * to_stride) = SL_SHUFFLE4(ab_high, cd_high, 2, 3, 6, 7);
    }
    static inline void sl_transpose_f64(const double *from, Py_ssize_t from_stride, double *to, Py_ssize_t to_stride) {
        sl_f64x2 a = *(const sl_f64x2 *)from, b = *(const sl_f64x2 *)(from + from_stride);
        *(sl_f64x2 *)to = SL_SHUFFLE2(a, b, 0, 2);
        *(sl_f64x2 *)(to + to_stride) = SL_SHUFFLE2(a, b, 1, 3);
    }

    /* Underflow and NaN in the kernels are results, not events: the exception flags of the caller's
       thread are put back afterwards. fenv.h would switch the x87 unit too, at many times the cost. */
    #if defined(__SSE2__)
    static inline unsigned sl_get_flags(void) { return __builtin_ia32_stmxcsr(); }
    static inline void sl_set_flags(unsigned flags) { __builtin_ia32_ldmxcsr(flags); }
    #else
    #include <fenv.h>
    static inline unsigned sl_get_flags(void) { return (unsigned)fetestexcept(FE_ALL_EXCEPT); }
    static inline void sl_set_flags(unsigned flags) {
        feclearexcept(FE_ALL_EXCEPT & ~(int)flags);
    }
    #endif

    #if defined(__FMA__) || defined(__aarch64__)
    #define SL_PRODUCT_ERROR(a, b, product) __builtin_fma(a, b, -(product))
    #else
    /* Dekker's splitting; it overflows, and then no correction is made, from 2**996 */
    static inline double SL_PRODUCT_ERROR(double a, double b, double product) {
        double t = a * 134217729.0, a_hi = t - (t - a), a_lo = a - a_hi;    /* 2**27 + 1 */
        double u = b * 134217729.0, b_hi = u - (u - b), b_lo = b - b_hi;
        double error = ((a_hi * b_hi - product) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo;
        return error - error == 0 ? error : 0;
    }
    #endif
    """
    double SL_PRODUCT_ERROR(double, double, double) noexcept nogil
    unsigned int sl_get_flags() noexcept nogil
    void sl_set_flags(unsigned int) noexcept nogil
    Py_ssize_t SL_TAKE(Py_ssize_t*) noexcept nogil
    bint SL_ISFINITE(double) noexcept nogil
    void sl_transpose_f32(const float*, Py_ssize_t, float*, Py_ssize_t) noexcept nogil
    void sl_transpose_f64(const double*, Py_ssize_t, double*, Py_ssize_t) noexcept nogil

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewLikeArray(np.ndarray, np.NPY_ORDER, void*, int)

cdef enum:
    WANT_LOSS = 1
    WANT_GRAD = 2
    WANT_HESS = 4

cdef enum:
    REDUCE_NONE = 0
    REDUCE_SUM = 1
    REDUCE_MEAN = 2
    REDUCE_BATCHMEAN = 3

cdef enum:
    MAX_DIMS = 64           # NPY_MAXDIMS of numpy 2
    LANES = 32              # lanes of a sum; fixed, so that every level adds in the same order
    BLOCK_ITEMS = 32768     # logits per block: a block is the unit of partial sums and of threads
    SCRATCH_BYTES = 98304   # per thread, on the stack: three buffers of float64
    RELEASE_GIL = 2048      # logits below which dropping the GIL costs more than it gives
    SHARE_WORK = 262144     # logits below which waking a second thread costs more than it gives

ctypedef fused element:
    int8_t
    uint8_t
    int16_t
    uint16_t
    int32_t
    uint32_t
    int64_t
    uint64_t
    float
    double


# ---- operands -------------------------------------------------------------------------------------

cdef struct Operand:
    # An array seen as rows: leading dimensions merged where their strides allow, innermost first,
    # and the stride in bytes along the last axis.
    char* data
    int kind                # element type: NPY_FLOAT, ...
    Py_ssize_t inner
    int ndim
    Py_ssize_t shape[MAX_DIMS]
    Py_ssize_t stride[MAX_DIMS]


cdef int element_kind(np.ndarray a):
    """The fixed-width type number of an array that the kernels can read, or -1."""
    cdef int kind = np.PyArray_TYPE(a)
    if not (np.PyArray_ISALIGNED(a) and np.PyArray_ISNOTSWAPPED(a)):
        return -1
    if kind == np.NPY_FLOAT or kind == np.NPY_DOUBLE or kind == np.NPY_INT64:
        return kind
    if kind == np.NPY_BOOL:
        return np.NPY_UINT8
    if np.PyArray_ISINTEGER(a):
        # long and long long are two type numbers of one width
        if np.PyArray_ITEMSIZE(a) == 8:
            return np.NPY_INT64 if np.PyArray_ISSIGNED(a) else np.NPY_UINT64
        if np.PyArray_ITEMSIZE(a) == 4:
            return np.NPY_INT32 if np.PyArray_ISSIGNED(a) else np.NPY_UINT32
        return kind
    return -1


cdef void bind(Operand* op, np.ndarray a, int kind, int lead) noexcept:
    """Describe `a` as rows over its first `lead` dimensions; `inner` is the stride of the next one."""
    cdef int d, top
    cdef np.npy_intp* shape = np.PyArray_DIMS(a)
    cdef np.npy_intp* stride = np.PyArray_STRIDES(a)
    op.data = np.PyArray_BYTES(a)
    op.kind = kind
    op.inner = stride[lead] if lead < np.PyArray_NDIM(a) else 0
    op.ndim = 0
    for d in range(lead - 1, -1, -1):
        if shape[d] == 1:
            continue
        top = op.ndim - 1
        if top >= 0 and stride[d] == op.stride[top] * op.shape[top]:
            op.shape[top] *= shape[d]
        else:
            op.ndim += 1
            op.shape[top + 1] = shape[d]
            op.stride[top + 1] = stride[d]
    if op.ndim == 0:
        op.ndim = 1
        op.shape[0] = 1
        op.stride[0] = 0


cdef inline Py_ssize_t advance(const Operand* op, Py_ssize_t* index, Py_ssize_t count) noexcept nogil:
    """Step an index by `count` along the innermost dimension, which it may just reach the end of,
    and carry; returns the change of the byte offset."""
    cdef Py_ssize_t change = count * op.stride[0]
    cdef int d = 0
    index[0] += count
    while d < op.ndim - 1 and index[d] == op.shape[d]:
        change -= index[d] * op.stride[d]
        index[d] = 0
        d += 1
        index[d] += 1
        change += op.stride[d]
    return change


cdef inline Py_ssize_t locate(const Operand* op, Py_ssize_t row, Py_ssize_t* index) noexcept nogil:
    """The index of a row along each dimension, and its byte offset."""
    cdef Py_ssize_t at = 0
    cdef int d
    for d in range(op.ndim - 1):
        index[d] = row % op.shape[d]
        row //= op.shape[d]
        at += index[d] * op.stride[d]
    index[op.ndim - 1] = row
    return at + row * op.stride[op.ndim - 1]


cdef void row_offsets(const Operand* op, Py_ssize_t start, Py_ssize_t count, Py_ssize_t* offset) noexcept nogil:
    """Byte offsets of rows start ... start + count - 1, in C order of the leading dimensions."""
    cdef Py_ssize_t j, at
    cdef Py_ssize_t index[MAX_DIMS]
    if op.ndim == 1:
        for j in range(count):
            offset[j] = (start + j) * op.stride[0]
        return
    at = locate(op, start, index)
    for j in range(count):
        offset[j] = at
        at += advance(op, index, 1)


cdef inline void gather_typed(const element* hint, const char* data, Py_ssize_t stride, Py_ssize_t n, real* to) noexcept nogil:
    cdef Py_ssize_t i
    if stride == <Py_ssize_t>sizeof(element):
        for i in range(n):
            to[i] = <real>(<const element*>data)[i]
    else:
        for i in range(n):
            to[i] = <real>(<const element*>(data + i * stride))[0]


cdef inline void gather(const char* data, int kind, Py_ssize_t stride, Py_ssize_t n, real* to) noexcept nogil:
    """Read n numbers of any element type into contiguous floats."""
    if kind == np.NPY_FLOAT:
        gather_typed(<const float*>NULL, data, stride, n, to)
    elif kind == np.NPY_DOUBLE:
        gather_typed(<const double*>NULL, data, stride, n, to)
    elif kind == np.NPY_UINT8:
        gather_typed(<const uint8_t*>NULL, data, stride, n, to)
    elif kind == np.NPY_INT64:
        gather_typed(<const int64_t*>NULL, data, stride, n, to)
    elif kind == np.NPY_INT32:
        gather_typed(<const int32_t*>NULL, data, stride, n, to)
    elif kind == np.NPY_INT8:
        gather_typed(<const int8_t*>NULL, data, stride, n, to)
    elif kind == np.NPY_INT16:
        gather_typed(<const int16_t*>NULL, data, stride, n, to)
    elif kind == np.NPY_UINT16:
        gather_typed(<const uint16_t*>NULL, data, stride, n, to)
    elif kind == np.NPY_UINT32:
        gather_typed(<const uint32_t*>NULL, data, stride, n, to)
    elif kind == np.NPY_UINT64:
        gather_typed(<const uint64_t*>NULL, data, stride, n, to)


cdef inline void scatter(const real* values, char* data, Py_ssize_t stride, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    if stride == <Py_ssize_t>sizeof(real):
        memcpy(data, values, n * sizeof(real))
    else:
        for i in range(n):
            (<real*>(data + i * stride))[0] = values[i]


# ---- operands read element by element -------------------------------------------------------------
# Bound over all their dimensions, so that every element is a row of its own.

cdef void load_flat(const Operand* op, Py_ssize_t start, Py_ssize_t count, real* to) noexcept nogil:
    """Read elements start ... start + count - 1 in C order, as floats."""
    cdef Py_ssize_t index[MAX_DIMS]
    cdef Py_ssize_t at, take
    if op.ndim == 1:
        gather(op.data + start * op.stride[0], op.kind, op.stride[0], count, to)
        return
    at = locate(op, start, index)
    while count > 0:
        take = min(count, op.shape[0] - index[0])
        gather(op.data + at, op.kind, op.stride[0], take, to)
        to += take
        count -= take
        at += advance(op, index, take)


cdef void store_flat(const Operand* op, Py_ssize_t start, Py_ssize_t count, const real* values) noexcept nogil:
    """Write elements start ... start + count - 1 in C order."""
    cdef Py_ssize_t index[MAX_DIMS]
    cdef Py_ssize_t at, take
    if op.ndim == 1:
        scatter(values, op.data + start * op.stride[0], op.stride[0], count)
        return
    at = locate(op, start, index)
    while count > 0:
        take = min(count, op.shape[0] - index[0])
        scatter(values, op.data + at, op.stride[0], take)
        values += take
        count -= take
        at += advance(op, index, take)


cdef inline const real* view_flat(const Operand* op, Py_ssize_t start, Py_ssize_t count, real* buffer) noexcept nogil:
    """Elements start ... start + count - 1 as contiguous floats: in place where they are that already."""
    cdef int kind = np.NPY_FLOAT if real is float else np.NPY_DOUBLE
    if op.ndim == 1 and op.kind == kind and op.stride[0] == <Py_ssize_t>sizeof(real):
        return <const real*>op.data + start
    load_flat(op, start, count, buffer)
    return buffer


cdef bint in_range(const Operand* op, Py_ssize_t count, double top, bint whole) noexcept nogil:
    """Whether 0 <= v <= top for every element v, and v is an integer where `whole`."""
    cdef float singles[512]
    cdef double doubles[512]
    cdef const float* s
    cdef const double* v
    cdef float top_single
    cdef Py_ssize_t start, n, i
    cdef int ok = 1
    for start from 0 <= start < count by 512:
        n = min(512, count - start)
        if op.kind == np.NPY_FLOAT and not whole:
            top_single = <float>top if top < 3e38 else <float>3.4028234e38
            s = view_flat(op, start, n, singles)
            for i in range(n):
                ok &= (s[i] >= 0) & (s[i] <= top_single)
        else:
            v = view_flat(op, start, n, doubles)
            for i in range(n):
                ok &= (v[i] >= 0) & (v[i] <= top)
            if whole and ok and (op.kind == np.NPY_FLOAT or op.kind == np.NPY_DOUBLE):
                for i in range(n):
                    ok &= v[i] == <double><int64_t>v[i]
        if not ok:
            return False
    return True


# ---- sums -----------------------------------------------------------------------------------------

cdef inline double two_sum(double a, double b, double* error) noexcept nogil:
    """a + b rounded, and the exact error of the rounding (Knuth)."""
    cdef double s = a + b
    cdef double b_part = s - a
    error[0] = (a - (s - b_part)) + (b - b_part)
    return s


cdef inline double product_error(double a, double b, double product) noexcept nogil:
    """a * b - product, exactly, for product = a * b rounded."""
    return SL_PRODUCT_ERROR(a, b, product)


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


cdef inline double lane_sum(const real* v, Py_ssize_t n, double* error) noexcept nogil:
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


cdef double weight_total(const Operand* w, Py_ssize_t count) noexcept nogil:
    cdef double values[512]
    cdef const double* v
    cdef Py_ssize_t start, n, i
    cdef Sum total
    total.hi = total.lo = 0
    for start from 0 <= start < count by 512:
        n = min(512, count - start)
        v = view_flat(w, start, n, values)
        for i in range(n):
            add(&total, v[i])
    return evaluate(&total)


# ---- one call -------------------------------------------------------------------------------------

cdef struct Job:
    # x, t, w: logits, targets, weights; g, h: gradient, Hessian diagonal. Softmax losses bind them
    # as rows, sigmoid losses element by element.
    Operand x
    Operand t
    Operand w
    Operand g
    Operand h
    char* loss              # one value per row or element, or NULL
    bint weighted
    bint hard               # targets are class indices
    int want
    Py_ssize_t n
    Py_ssize_t k
    Py_ssize_t block        # rows (elements) per block
    double divisor
    double clip             # logits are clamped to [-clip, clip]; inf: not at all


# One kernel: rows (elements) start ... stop - 1 of a job, whose weighted losses it adds to the sum.
# The last argument is scratch memory of SCRATCH_BYTES, aligned to a cache line.
ctypedef void (*Kernel32)(const Job*, Py_ssize_t, Py_ssize_t, Sum*, float*) noexcept nogil
ctypedef void (*Kernel64)(const Job*, Py_ssize_t, Py_ssize_t, Sum*, double*) noexcept nogil

cdef struct Kernel:
    Kernel32 single
    Kernel64 double


cdef struct Shared:
    # A job that several threads work on. Each takes the next block that nobody has taken yet, and
    # leaves its sum in the block's place.
    Job job
    Kernel kernel
    Sum* part
    Py_ssize_t blocks
    Py_ssize_t taken


cdef void run_block(const Job* job, const Kernel* kernel, Py_ssize_t block, void* scratch, Sum* part) noexcept nogil:
    cdef Py_ssize_t start = block * job.block
    cdef Py_ssize_t stop = min(start + job.block, job.n)
    part.hi = part.lo = 0
    if job.x.kind == np.NPY_FLOAT:
        kernel.single(job, start, stop, part, <float*>scratch)
    else:
        kernel.double(job, start, stop, part, <double*>scratch)


cdef inline void add_part(Sum* total, const Sum* part) noexcept nogil:
    add(total, part.hi)
    total.lo += part.lo


cdef void run_alone(const Job* job, const Kernel* kernel, Py_ssize_t blocks, Sum* total) noexcept nogil:
    cdef char memory[SCRATCH_BYTES + 64]
    cdef void* scratch = <void*>((<size_t>memory + 63) & ~<size_t>63)
    cdef Py_ssize_t block
    cdef Sum part
    for block in range(blocks):
        run_block(job, kernel, block, scratch, &part)
        add_part(total, &part)


cdef void run_shared(Shared* shared) noexcept nogil:
    cdef char memory[SCRATCH_BYTES + 64]
    cdef void* scratch = <void*>((<size_t>memory + 63) & ~<size_t>63)
    cdef unsigned int flags = sl_get_flags()
    cdef Py_ssize_t block = SL_TAKE(&shared.taken)
    while block < shared.blocks:
        run_block(&shared.job, &shared.kernel, block, scratch, &shared.part[block])
        block = SL_TAKE(&shared.taken)
    sl_set_flags(flags)


@cython.final
cdef class Task:
    """A shared job as something that any thread can call; keeps its arrays alive meanwhile."""

    cdef Shared shared
    cdef object arrays

    def __dealloc__(self):
        free(self.shared.part)

    def __call__(self):
        with nogil:
            run_shared(&self.shared)


cdef int run_together(const Job* job, const Kernel* kernel, Py_ssize_t blocks, int threads, object arrays, Sum* total) except -1:
    cdef Task task = Task()
    cdef Py_ssize_t block
    task.arrays = arrays
    task.shared.job = job[0]
    task.shared.kernel = kernel[0]
    task.shared.blocks = blocks
    task.shared.taken = 0
    task.shared.part = <Sum*>malloc(blocks * sizeof(Sum))
    if task.shared.part == NULL:
        raise MemoryError()
    work_together(task, min(<Py_ssize_t>threads, blocks) - 1)
    for block in range(blocks):
        add_part(total, &task.shared.part[block])
    return 0


cdef double run(const Job* job, const Kernel* kernel, object arrays) except? -1:
    """All rows of a job, whose memory belongs to `arrays`; returns the sum of their weighted losses."""
    cdef unsigned int flags = sl_get_flags()
    cdef Py_ssize_t blocks = (job.n + job.block - 1) // job.block
    cdef int threads = 1
    cdef Sum total
    cdef double value
    total.hi = total.lo = 0
    if job.n * job.k >= SHARE_WORK and blocks > 1:
        threads = get_num_threads()
    if threads > 1:
        run_together(job, kernel, blocks, threads, arrays, &total)
    elif job.n * job.k < RELEASE_GIL:
        run_alone(job, kernel, blocks, &total)
    else:
        with nogil:
            run_alone(job, kernel, blocks, &total)
    value = evaluate(&total)
    sl_set_flags(flags)
    return value


# ---- the arrays of a call -------------------------------------------------------------------------

cdef bint same_shape(np.ndarray a, np.ndarray b, int ndim):
    """Whether a has exactly the first `ndim` dimensions of b."""
    cdef int d
    if np.PyArray_NDIM(a) != ndim:
        return False
    for d in range(ndim):
        if np.PyArray_DIMS(a)[d] != np.PyArray_DIMS(b)[d]:
            return False
    return True


cdef bint same_memory(np.ndarray a, np.ndarray b):
    """Whether two arrays of one shape and type are the same elements in the same order."""
    cdef int d
    if np.PyArray_DATA(a) != np.PyArray_DATA(b):
        return False
    for d in range(np.PyArray_NDIM(a)):
        if np.PyArray_STRIDES(a)[d] != np.PyArray_STRIDES(b)[d]:
            return False
    return True


cdef void extent(np.ndarray a, char** low, char** high) noexcept:
    cdef int d
    cdef Py_ssize_t reach
    low[0] = np.PyArray_BYTES(a)
    high[0] = low[0] + np.PyArray_ITEMSIZE(a)
    for d in range(np.PyArray_NDIM(a)):
        reach = (np.PyArray_DIMS(a)[d] - 1) * np.PyArray_STRIDES(a)[d]
        if reach > 0:
            high[0] += reach
        else:
            low[0] += reach


cdef bint disjoint(np.ndarray a, np.ndarray b):
    cdef char *a_low
    cdef char *a_high
    cdef char *b_low
    cdef char *b_high
    extent(a, &a_low, &a_high)
    extent(b, &b_low, &b_high)
    return a_high <= b_low or b_high <= a_low


cdef bint writable_like(np.ndarray out, np.ndarray logits):
    return (np.PyArray_TYPE(out) == np.PyArray_TYPE(logits)
            and same_shape(out, logits, np.PyArray_NDIM(logits))
            and np.PyArray_ISWRITEABLE(out) and np.PyArray_ISALIGNED(out)
            and np.PyArray_ISNOTSWAPPED(out))


cdef inline np.ndarray empty_like(np.ndarray logits):
    """A new array in the memory order of the logits."""
    if np.PyArray_IS_C_CONTIGUOUS(logits):
        return np.PyArray_EMPTY(np.PyArray_NDIM(logits), np.PyArray_DIMS(logits), np.PyArray_TYPE(logits), 0)
    return PyArray_NewLikeArray(logits, np.NPY_KEEPORDER, NULL, 0)


cdef np.ndarray derivative_array(object out, np.ndarray logits, np.ndarray targets, object weight):
    """`out` where it can be written as it is, a new array where it is None; None where neither."""
    if out is None:
        return empty_like(logits)
    if not (np.PyArray_CheckExact(out) and writable_like(out, logits)):
        return None
    if not (disjoint(out, logits) or same_memory(out, logits)) or not disjoint(out, targets):
        return None
    if weight is not None and not disjoint(out, weight):
        return None
    return out


cdef object results(int want, int reduction, double total, np.ndarray losses, object grad, object hess):
    """What a call returns, of the things it was asked for."""
    cdef object loss
    if want & WANT_HESS:
        return grad, hess
    if reduction == REDUCE_NONE:
        loss = losses if np.PyArray_NDIM(losses) else losses[()]
    else:
        loss = total
    return (loss, grad) if want & WANT_GRAD else loss

# What every kernel file shares: operands of any layout and element type, and sums of losses.

cimport cython
cimport numpy as np
from libc.string cimport memcpy

np.import_array()

cdef extern from *:
    """
    /* Each block is taken once; who takes it does not matter, so no order is needed. */
    #define SL_TAKE(counter) __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED)
    #define SL_ISFINITE(x) __builtin_isfinite(x)

    /* Transpose a tile of rows, 8 x 4 float32 or 4 x 2 float64, to columns, and back with a factor for each
       row; rows and columns (`lanes`) lie so many elements apart, and rows are written in order.
       Compilers turn neither a loop nor as many scalar moves into shuffles. Where vectors are long
       enough, their halves are those of the tile, and nothing crosses from one to the other. */
    typedef float sl_f32x4 __attribute__((vector_size(16), aligned(4), may_alias));
    typedef double sl_f64x2 __attribute__((vector_size(16), aligned(8), may_alias));
    #if defined(__AVX__) && (defined(__clang__) || __GNUC__ >= 12)
    typedef float sl_f32x8 __attribute__((vector_size(32), aligned(4), may_alias));
    typedef double sl_f64x4 __attribute__((vector_size(32), aligned(8), may_alias));
    #define SL_SHUFFLE __builtin_shufflevector
    #define SL_UPPER4(v) SL_SHUFFLE(v, v, 0, 1, 2, 3)
    #define SL_LOWER4(v) SL_SHUFFLE(v, v, 4, 5, 6, 7)
    #define SL_UPPER2(v) SL_SHUFFLE(v, v, 0, 1)
    #define SL_LOWER2(v) SL_SHUFFLE(v, v, 2, 3)
    static SL_ALWAYS_INLINE sl_f32x8 sl_join_f32(const float *upper, const float *lower) {
        return SL_SHUFFLE(*(const sl_f32x4 *)upper, *(const sl_f32x4 *)lower, 0, 1, 2, 3, 4, 5, 6, 7);
    }
    static SL_ALWAYS_INLINE sl_f64x4 sl_join_f64(const double *upper, const double *lower) {
        return SL_SHUFFLE(*(const sl_f64x2 *)upper, *(const sl_f64x2 *)lower, 0, 1, 2, 3);
    }
    static SL_ALWAYS_INLINE void sl_transpose_f32(sl_f32x8 *a, sl_f32x8 *b, sl_f32x8 *c, sl_f32x8 *d) {
        sl_f32x8 ab_low = SL_SHUFFLE(*a, *b, 0, 8, 1, 9, 4, 12, 5, 13);
        sl_f32x8 ab_high = SL_SHUFFLE(*a, *b, 2, 10, 3, 11, 6, 14, 7, 15);
        sl_f32x8 cd_low = SL_SHUFFLE(*c, *d, 0, 8, 1, 9, 4, 12, 5, 13);
        sl_f32x8 cd_high = SL_SHUFFLE(*c, *d, 2, 10, 3, 11, 6, 14, 7, 15);
        *a = SL_SHUFFLE(ab_low, cd_low, 0, 1, 8, 9, 4, 5, 12, 13);
        *b = SL_SHUFFLE(ab_low, cd_low, 2, 3, 10, 11, 6, 7, 14, 15);
        *c = SL_SHUFFLE(ab_high, cd_high, 0, 1, 8, 9, 4, 5, 12, 13);
        *d = SL_SHUFFLE(ab_high, cd_high, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    static SL_ALWAYS_INLINE void sl_to_lanes_f32(const float *from, Py_ssize_t rows, float *to, Py_ssize_t lanes) {
        const float *lower = from + 4 * rows;
        sl_f32x8 a = sl_join_f32(from, lower), b = sl_join_f32(from + rows, lower + rows);
        sl_f32x8 c = sl_join_f32(from + 2 * rows, lower + 2 * rows);
        sl_f32x8 d = sl_join_f32(from + 3 * rows, lower + 3 * rows);
        sl_transpose_f32(&a, &b, &c, &d);
        *(sl_f32x8 *)to = a;
        *(sl_f32x8 *)(to + lanes) = b;
        *(sl_f32x8 *)(to + 2 * lanes) = c;
        *(sl_f32x8 *)(to + 3 * lanes) = d;
    }
    static SL_ALWAYS_INLINE void sl_to_lanes_f64(const double *from, Py_ssize_t rows, double *to, Py_ssize_t lanes) {
        const double *lower = from + 2 * rows;
        sl_f64x4 a = sl_join_f64(from, lower), b = sl_join_f64(from + rows, lower + rows);
        *(sl_f64x4 *)to = SL_SHUFFLE(a, b, 0, 4, 2, 6);
        *(sl_f64x4 *)(to + lanes) = SL_SHUFFLE(a, b, 1, 5, 3, 7);
    }
    static SL_ALWAYS_INLINE void sl_from_lanes_f32(
            const float *from, Py_ssize_t lanes, const float *factor, float *to, Py_ssize_t rows) {
        float *lower = to + 4 * rows;
        sl_f32x8 v = *(const sl_f32x8 *)factor;
        sl_f32x8 a = v * *(const sl_f32x8 *)from, b = v * *(const sl_f32x8 *)(from + lanes);
        sl_f32x8 c = v * *(const sl_f32x8 *)(from + 2 * lanes), d = v * *(const sl_f32x8 *)(from + 3 * lanes);
        sl_transpose_f32(&a, &b, &c, &d);
        *(sl_f32x4 *)to = SL_UPPER4(a);
        *(sl_f32x4 *)(to + rows) = SL_UPPER4(b);
        *(sl_f32x4 *)(to + 2 * rows) = SL_UPPER4(c);
        *(sl_f32x4 *)(to + 3 * rows) = SL_UPPER4(d);
        *(sl_f32x4 *)lower = SL_LOWER4(a);
        *(sl_f32x4 *)(lower + rows) = SL_LOWER4(b);
        *(sl_f32x4 *)(lower + 2 * rows) = SL_LOWER4(c);
        *(sl_f32x4 *)(lower + 3 * rows) = SL_LOWER4(d);
    }
    static SL_ALWAYS_INLINE void sl_from_lanes_f64(
            const double *from, Py_ssize_t lanes, const double *factor, double *to, Py_ssize_t rows) {
        sl_f64x4 v = *(const sl_f64x4 *)factor;
        sl_f64x4 c = v * *(const sl_f64x4 *)from, d = v * *(const sl_f64x4 *)(from + lanes);
        sl_f64x4 a = SL_SHUFFLE(c, d, 0, 4, 2, 6), b = SL_SHUFFLE(c, d, 1, 5, 3, 7);
        *(sl_f64x2 *)to = SL_UPPER2(a);
        *(sl_f64x2 *)(to + rows) = SL_UPPER2(b);
        *(sl_f64x2 *)(to + 2 * rows) = SL_LOWER2(a);
        *(sl_f64x2 *)(to + 3 * rows) = SL_LOWER2(b);
    }
    #else
    #if defined(__clang__) || __GNUC__ >= 12
    #define SL_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
    #define SL_SHUFFLE2(a, b, i, j) __builtin_shufflevector(a, b, i, j)
    #else
    typedef int32_t sl_i32x4 __attribute__((vector_size(16)));
    typedef int64_t sl_i64x2 __attribute__((vector_size(16)));
    #define SL_SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (sl_i32x4){i, j, k, l})
    #define SL_SHUFFLE2(a, b, i, j) __builtin_shuffle(a, b, (sl_i64x2){i, j})
    #endif
    static inline void sl_transpose_f32(sl_f32x4 *a, sl_f32x4 *b, sl_f32x4 *c, sl_f32x4 *d) {
        sl_f32x4 ab_low = SL_SHUFFLE4(*a, *b, 0, 4, 1, 5), ab_high = SL_SHUFFLE4(*a, *b, 2, 6, 3, 7);
        sl_f32x4 cd_low = SL_SHUFFLE4(*c, *d, 0, 4, 1, 5), cd_high = SL_SHUFFLE4(*c, *d, 2, 6, 3, 7);
        *a = SL_SHUFFLE4(ab_low, cd_low, 0, 1, 4, 5);
        *b = SL_SHUFFLE4(ab_low, cd_low, 2, 3, 6, 7);
        *c = SL_SHUFFLE4(ab_high, cd_high, 0, 1, 4, 5);
        *d = SL_SHUFFLE4(ab_high, cd_high, 2, 3, 6, 7);
    }
    static inline void sl_to_lanes_f32(const float *from, Py_ssize_t rows, float *to, Py_ssize_t lanes) {
        sl_f32x4 a, b, c, d;
        int half;
        for (half = 0; half < 2; half++, from += 4 * rows, to += 4) {
            a = *(const sl_f32x4 *)from;
            b = *(const sl_f32x4 *)(from + rows);
            c = *(const sl_f32x4 *)(from + 2 * rows);
            d = *(const sl_f32x4 *)(from + 3 * rows);
            sl_transpose_f32(&a, &b, &c, &d);
            *(sl_f32x4 *)to = a;
            *(sl_f32x4 *)(to + lanes) = b;
            *(sl_f32x4 *)(to + 2 * lanes) = c;
            *(sl_f32x4 *)(to + 3 * lanes) = d;
        }
    }
    static inline void sl_to_lanes_f64(const double *from, Py_ssize_t rows, double *to, Py_ssize_t lanes) {
        sl_f64x2 a, b;
        int half;
        for (half = 0; half < 2; half++, from += 2 * rows, to += 2) {
            a = *(const sl_f64x2 *)from;
            b = *(const sl_f64x2 *)(from + rows);
            *(sl_f64x2 *)to = SL_SHUFFLE2(a, b, 0, 2);
            *(sl_f64x2 *)(to + lanes) = SL_SHUFFLE2(a, b, 1, 3);
        }
    }
    static inline void sl_from_lanes_f32(
            const float *from, Py_ssize_t lanes, const float *factor, float *to, Py_ssize_t rows) {
        sl_f32x4 v, a, b, c, d;
        int half;
        for (half = 0; half < 2; half++, from += 4, factor += 4, to += 4 * rows) {
            v = *(const sl_f32x4 *)factor;
            a = v * *(const sl_f32x4 *)from;
            b = v * *(const sl_f32x4 *)(from + lanes);
            c = v * *(const sl_f32x4 *)(from + 2 * lanes);
            d = v * *(const sl_f32x4 *)(from + 3 * lanes);
            sl_transpose_f32(&a, &b, &c, &d);
            *(sl_f32x4 *)to = a;
            *(sl_f32x4 *)(to + rows) = b;
            *(sl_f32x4 *)(to + 2 * rows) = c;
            *(sl_f32x4 *)(to + 3 * rows) = d;
        }
    }
    static inline void sl_from_lanes_f64(
            const double *from, Py_ssize_t lanes, const double *factor, double *to, Py_ssize_t rows) {
        sl_f64x2 v, a, b;
        int half;
        for (half = 0; half < 2; half++, from += 2, factor += 2, to += 2 * rows) {
            v = *(const sl_f64x2 *)factor;
            a = v * *(const sl_f64x2 *)from;
            b = v * *(const sl_f64x2 *)(from + lanes);
            *(sl_f64x2 *)to = SL_SHUFFLE2(a, b, 0, 2);
            *(sl_f64x2 *)(to + rows) = SL_SHUFFLE2(a, b, 1, 3);
        }
    }
    #endif

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

    /* The working memory of a kernel, one per thread. Not on the stack: threads of musl have 128 KiB. */
    #if defined(_MSC_VER)
    static __declspec(thread) __declspec(align(64)) char sl_scratch[262144];
    #else
    static __thread char sl_scratch[262144] __attribute__((aligned(64)));
    #endif
    static inline void *sl_get_scratch(void) { return sl_scratch; }

    /* float16 and bfloat16 by integer arithmetic, which vectorises and is the same on every level. */
    static inline float sl_float_from_bits(uint32_t bits) {
        float x;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    static inline uint32_t sl_bits_from_float(float x) {
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        return bits;
    }
    static inline float sl_from_half(uint16_t h) {
        uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
        uint32_t normal = (magnitude << 13) + (112u << 23);         /* exponent bias 127 for 15 */
        uint32_t special = (magnitude << 13) | 0x7f800000u;
        uint32_t subnormal = sl_bits_from_float((float)(int32_t)magnitude * 0x1p-24f);
        uint32_t bits = magnitude >= 0x7c00u ? special : magnitude < 0x0400u ? subnormal : normal;
        return sl_float_from_bits(bits | sign);
    }
    static inline uint16_t sl_to_half(float x) {
        uint32_t bits = sl_bits_from_float(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
        /* half an ulp, less where the last bit kept is even: ties go to even */
        uint32_t normal = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
        /* the ulp of numbers just above 1/2 is the smallest half: this addition rounds to it */
        uint32_t subnormal = sl_bits_from_float(sl_float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
        uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
        half = magnitude >= 0x477ff000u ? 0x7c00u : half;           /* 65520 and more */
        half = magnitude > 0x7f800000u ? 0x7e00u : half;
        return (uint16_t)(half | sign);
    }
    static inline float sl_from_bfloat(uint16_t h) { return sl_float_from_bits((uint32_t)h << 16); }
    static inline uint16_t sl_to_bfloat(float x) {
        uint32_t bits = sl_bits_from_float(x);
        uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
    }
    /* ml_dtypes registers bfloat16 with numpy as a user's type, known by its name alone */
    static inline int sl_is_bfloat(PyArrayObject *a) {
        const char *name = PyArray_DESCR(a)->typeobj->tp_name;
        size_t n = strlen(name);
        return PyArray_TYPE(a) >= NPY_USERDEF && n >= 8 && strcmp(name + n - 8, "bfloat16") == 0;
    }
    """
    void* sl_get_scratch() noexcept nogil
    float sl_from_half(uint16_t) noexcept nogil
    float sl_from_bfloat(uint16_t) noexcept nogil
    uint16_t sl_to_half(float) noexcept nogil
    uint16_t sl_to_bfloat(float) noexcept nogil
    bint sl_is_bfloat(np.ndarray)
    unsigned int sl_get_flags() noexcept nogil
    void sl_set_flags(unsigned int) noexcept nogil
    Py_ssize_t SL_TAKE(Py_ssize_t*) noexcept nogil
    bint SL_ISFINITE(double) noexcept nogil
    uint32_t sl_bits_from_float(float) noexcept nogil
    uint64_t sl_bits_f64(double) noexcept nogil
    void sl_to_lanes_f32(const float*, Py_ssize_t, float*, Py_ssize_t) noexcept nogil
    void sl_to_lanes_f64(const double*, Py_ssize_t, double*, Py_ssize_t) noexcept nogil
    void sl_from_lanes_f32(const float*, Py_ssize_t, const float*, float*, Py_ssize_t) noexcept nogil
    void sl_from_lanes_f64(const double*, Py_ssize_t, const double*, double*, Py_ssize_t) noexcept nogil

cdef extern from "numpy/arrayobject.h":
    int NPY_HALF
    object PyArray_NewLikeArray(np.ndarray, np.NPY_ORDER, void*, int)

cdef enum:
    WANT_LOSS = 1
    WANT_GRAD = 2
    WANT_HESS = 4
    WANT_PRODUCT = 8        # Hessian times a vector
    WANT_TARGET_GRAD = 16
    WANT_STATS = 32

cdef enum:
    REDUCE_NONE = 0
    REDUCE_SUM = 1
    REDUCE_MEAN = 2
    REDUCE_BATCHMEAN = 3

cdef enum:
    MAX_DIMS = 64           # NPY_MAXDIMS of numpy 2
    GROUP = 32              # rows whose per-row arithmetic is done together, as lanes
    LANES = 32              # lanes of a sum; fixed, so that every level adds in the same order
    BLOCK_ITEMS = 32768     # logits per block: a block is the unit of partial sums and of threads
    RELEASE_GIL = 2048      # logits below which dropping the GIL costs more than it gives
    SHARE_WORK = 262144     # logits below which waking a second thread costs more than it gives

cdef enum:
    # element types beside numpy's numbers
    KIND_BFLOAT = 10000

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
    if kind == NPY_HALF:
        return kind
    if np.PyArray_ISINTEGER(a):
        # long and long long are two type numbers of one width
        if np.PyArray_ITEMSIZE(a) == 8:
            return np.NPY_INT64 if np.PyArray_ISSIGNED(a) else np.NPY_UINT64
        if np.PyArray_ITEMSIZE(a) == 4:
            return np.NPY_INT32 if np.PyArray_ISSIGNED(a) else np.NPY_UINT32
        return kind
    return KIND_BFLOAT if sl_is_bfloat(a) else -1


cdef inline bint is_floating(int kind) noexcept nogil:
    return kind == np.NPY_FLOAT or kind == np.NPY_DOUBLE or kind == NPY_HALF or kind == KIND_BFLOAT


cdef inline int kind_of(real hint) noexcept nogil:
    return np.NPY_FLOAT if real is float else np.NPY_DOUBLE


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


cdef void gather(const char* data, int kind, Py_ssize_t stride, Py_ssize_t n, real* to) noexcept nogil:
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
    else:
        gather_short(data, kind, stride, n, to)


cdef void gather_short(const char* data, int kind, Py_ssize_t stride, Py_ssize_t n, real* to) noexcept nogil:
    cdef const uint16_t* line = <const uint16_t*>data
    cdef Py_ssize_t i
    if stride == 2 and kind == NPY_HALF:
        for i in range(n):
            to[i] = sl_from_half(line[i])
    elif stride == 2:
        for i in range(n):
            to[i] = sl_from_bfloat(line[i])
    else:
        for i in range(n):
            line = <const uint16_t*>(data + i * stride)
            to[i] = sl_from_half(line[0]) if kind == NPY_HALF else sl_from_bfloat(line[0])


cdef void scatter_short(const real* values, char* data, int kind, Py_ssize_t stride, Py_ssize_t n) noexcept nogil:
    cdef uint16_t* line = <uint16_t*>data
    cdef Py_ssize_t i
    if stride == 2 and kind == NPY_HALF:
        for i in range(n):
            line[i] = sl_to_half(<float>values[i])
    elif stride == 2:
        for i in range(n):
            line[i] = sl_to_bfloat(<float>values[i])
    else:
        for i in range(n):
            line = <uint16_t*>(data + i * stride)
            line[0] = sl_to_half(<float>values[i]) if kind == NPY_HALF else sl_to_bfloat(<float>values[i])


cdef void scatter(const real* values, char* data, int kind, Py_ssize_t stride, Py_ssize_t n) noexcept nogil:
    """Write n floats as elements of any floating-point type."""
    cdef Py_ssize_t i
    if kind == kind_of(values[0]):
        if stride == <Py_ssize_t>sizeof(real):
            memcpy(data, values, n * sizeof(real))
        else:
            for i in range(n):
                (<real*>(data + i * stride))[0] = values[i]
    elif kind == np.NPY_FLOAT:
        for i in range(n):
            (<float*>(data + i * stride))[0] = <float>values[i]
    else:
        scatter_short(values, data, kind, stride, n)


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
        scatter(values, op.data + start * op.stride[0], op.kind, op.stride[0], count)
        return
    at = locate(op, start, index)
    while count > 0:
        take = min(count, op.shape[0] - index[0])
        scatter(values, op.data + at, op.kind, op.stride[0], take)
        values += take
        count -= take
        at += advance(op, index, take)


cdef inline const real* view_flat(const Operand* op, Py_ssize_t start, Py_ssize_t count, real* buffer) noexcept nogil:
    """Elements start ... start + count - 1 as contiguous floats: in place where they are that already."""
    if op.ndim == 1 and op.kind == kind_of(buffer[0]) and op.stride[0] == <Py_ssize_t>sizeof(real):
        return <const real*>op.data + start
    load_flat(op, start, count, buffer)
    return buffer


cdef bint bits_in_range(const Operand* op, Py_ssize_t count, double top) noexcept nogil:
    """Whether 0 <= v <= top for every element v, told from its bits as an unsigned number, in whose order
    the numbers from 0 up stand. -0 is missed, and what is not contiguous or has 16 bits."""
    cdef const uint8_t* bytes = <const uint8_t*>op.data
    cdef const uint32_t* words = <const uint32_t*>op.data
    cdef const uint64_t* longs = <const uint64_t*>op.data
    cdef uint8_t byte = 0
    cdef uint32_t word = 0, last_word
    cdef uint64_t signs = 0, last_long
    cdef Py_ssize_t i
    if op.ndim != 1 or top < 0:
        return False
    if (op.kind == np.NPY_UINT8 or op.kind == np.NPY_INT8) and op.stride[0] == 1:
        for i in range(count):
            byte = max(byte, bytes[i])
        return byte <= min(top, <double>(127 if op.kind == np.NPY_INT8 else 255))
    if (op.kind == np.NPY_FLOAT or op.kind == np.NPY_INT32 or op.kind == np.NPY_UINT32) and op.stride[0] == 4:
        if op.kind == np.NPY_FLOAT:
            # converted within its range, or the caller would find an overflow flag
            last_word = sl_bits_from_float(<float>min(top, 3.4028234e38))
        else:
            last_word = <uint32_t>min(top, <double>(0x7fffffff if op.kind == np.NPY_INT32 else 0xffffffff))
        for i in range(count):
            word = max(word, words[i])
        return word <= last_word
    if (op.kind == np.NPY_DOUBLE or op.kind == np.NPY_INT64) and op.stride[0] == 8:
        last_long = sl_bits_f64(top) if op.kind == np.NPY_DOUBLE else <uint64_t>min(top, 9e18)
        for i in range(count):
            # the sign bit of v, or that of top - v
            signs |= longs[i] | (last_long - longs[i])
        return signs >> 63 == 0
    return False


cdef bint in_range(const Operand* op, Py_ssize_t count, double top, bint whole) noexcept nogil:
    """Whether 0 <= v <= top for every element v, and v is an integer where `whole`."""
    cdef float singles[512]
    cdef double doubles[512]
    cdef const float* s
    cdef const double* v
    cdef float top_single
    cdef Py_ssize_t start, n, i
    cdef int ok = 1
    if not (whole and is_floating(op.kind)) and bits_in_range(op, count, top):
        return True
    for start from 0 <= start < count by 512:
        n = min(512, count - start)
        if op.kind == np.NPY_FLOAT and not whole:
            # converted within its range, or the caller would find an overflow flag
            top_single = <float>min(top, 3.4028234e38)
            s = view_flat(op, start, n, singles)
            for i in range(n):
                ok &= (s[i] >= 0) & (s[i] <= top_single)
        else:
            v = view_flat(op, start, n, doubles)
            for i in range(n):
                ok &= (v[i] >= 0) & (v[i] <= top)
            if whole and ok and is_floating(op.kind):
                for i in range(n):
                    ok &= v[i] == <double><int64_t>v[i]
        if not ok:
            return False
    return True


cdef bint activations_in_range(const Operand* op, Py_ssize_t count) noexcept nogil:
    """Whether every element is in [0, 1], or NaN."""
    cdef double values[512]
    cdef const double* v
    cdef Py_ssize_t start, n, i
    cdef int out = 0
    for start from 0 <= start < count by 512:
        n = min(512, count - start)
        v = view_flat(op, start, n, values)
        for i in range(n):
            out |= (v[i] < 0) | (v[i] > 1)
    return out == 0


# ---- sums -----------------------------------------------------------------------------------------

cdef inline double two_sum(double a, double b, double* error) noexcept nogil:
    """a + b rounded, and the exact error of the rounding (Knuth)."""
    cdef double s = a + b
    cdef double b_part = s - a
    error[0] = (a - (s - b_part)) + (b - b_part)
    return s


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

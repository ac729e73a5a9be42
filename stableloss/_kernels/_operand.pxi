# Arrays of any layout and element type, read and written as rows or element by element.
#
# uses _math: PyArrayObject real

cdef extern from "sl_half.h":
    float sl_from_half(uint16_t) noexcept nogil
    float sl_from_bfloat(uint16_t) noexcept nogil
    uint16_t sl_to_half(float) noexcept nogil
    uint16_t sl_to_bfloat(float) noexcept nogil
    void sl_from_halves_f32(const uint16_t*, Py_ssize_t, float*) noexcept nogil
    void sl_to_halves_f32(const float*, Py_ssize_t, uint16_t*) noexcept nogil

cdef extern from "sl_columns.h":
    void sl_copy_f32(const float*, Py_ssize_t, float*) noexcept nogil
    void sl_copy_f64(const double*, Py_ssize_t, double*) noexcept nogil

# Arrays are passed on as borrowed pointers, and numpy's accessors declared for them: an attribute that is an
# object changes its reference count wherever it is an argument, which the limited API makes a call of a
# function, some ninety in a call of a loss.
cdef extern from "numpy/arrayobject.h":
    int NPY_HALF
    object PyArray_NewLikeArray(PyArrayObject*, np.NPY_ORDER, void*, int)
    int PyArray_NDIM(PyArrayObject*) noexcept nogil
    int PyArray_TYPE(PyArrayObject*) noexcept nogil
    np.npy_intp PyArray_ITEMSIZE(PyArrayObject*) noexcept nogil
    char* PyArray_BYTES(PyArrayObject*) noexcept nogil
    np.npy_intp* PyArray_DIMS(PyArrayObject*) noexcept nogil
    np.npy_intp* PyArray_STRIDES(PyArrayObject*) noexcept nogil
    np.npy_intp PyArray_SIZE(PyArrayObject*) noexcept nogil
    bint PyArray_ISALIGNED(PyArrayObject*) noexcept nogil
    bint PyArray_ISNOTSWAPPED(PyArrayObject*) noexcept nogil
    bint PyArray_ISWRITEABLE(PyArrayObject*) noexcept nogil
    bint PyArray_ISFLOAT(PyArrayObject*) noexcept nogil
    bint PyArray_ISINTEGER(PyArrayObject*) noexcept nogil
    bint PyArray_ISSIGNED(PyArrayObject*) noexcept nogil
    bint PyArray_IS_C_CONTIGUOUS(PyArrayObject*) noexcept nogil

cdef enum:
    MAX_DIMS = 64           # NPY_MAXDIMS of numpy 2
    NO_AXIS = MAX_DIMS      # beyond every axis

cdef enum:
    # element types beside numpy's numbers
    KIND_BFLOAT = 10000

cdef enum:
    TOGETHER = 64           # numbers that are converted, or moved, together

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


cdef struct Operand:
    # An array seen as rows: the dimensions beside the axis of its rows, merged where their strides allow,
    # innermost first, and the stride in bytes along that axis.
    char* data
    int kind                # element type: NPY_FLOAT, ...
    Py_ssize_t inner
    int ndim
    Py_ssize_t shape[MAX_DIMS]
    Py_ssize_t stride[MAX_DIMS]


cdef int element_kind(PyArrayObject* a) noexcept:
    """The fixed-width type number of an array that the kernels can read, or -1."""
    cdef int kind = PyArray_TYPE(a)
    if not (PyArray_ISALIGNED(a) and PyArray_ISNOTSWAPPED(a)):
        return -1
    if kind == np.NPY_FLOAT or kind == np.NPY_DOUBLE or kind == np.NPY_INT64:
        return kind
    if kind == np.NPY_BOOL or kind == NPY_HALF:
        return kind
    if PyArray_ISFLOAT(a) and PyArray_ITEMSIZE(a) == 8:
        # a long double, where it has no more bits than a double
        return np.NPY_DOUBLE
    if PyArray_ISINTEGER(a):
        # long and long long are two type numbers of one width
        if PyArray_ITEMSIZE(a) == 8:
            return np.NPY_INT64 if PyArray_ISSIGNED(a) else np.NPY_UINT64
        if PyArray_ITEMSIZE(a) == 4:
            return np.NPY_INT32 if PyArray_ISSIGNED(a) else np.NPY_UINT32
        return kind
    # ml_dtypes registers bfloat16 with numpy as a user's type, known by its name alone
    if np.PyTypeNum_ISUSERDEF(kind) and (<object>a).dtype.type.__name__ == "bfloat16":
        return KIND_BFLOAT
    return -1


cdef inline bint is_floating(int kind) noexcept nogil:
    return kind == np.NPY_FLOAT or kind == np.NPY_DOUBLE or kind == NPY_HALF or kind == KIND_BFLOAT


cdef inline int kind_of(real hint) noexcept nogil:
    return np.NPY_FLOAT if real is float else np.NPY_DOUBLE


# ---- shapes and memory ----------------------------------------------------------------------------

cdef bint same_shape(PyArrayObject* a, PyArrayObject* b) noexcept:
    cdef int d
    if PyArray_NDIM(a) != PyArray_NDIM(b):
        return False
    for d in range(PyArray_NDIM(b)):
        if PyArray_DIMS(a)[d] != PyArray_DIMS(b)[d]:
            return False
    return True


cdef bint one_per_row(PyArrayObject* a, PyArrayObject* b, int axis) noexcept:
    """Whether a has the dimensions of b without one of them."""
    cdef int d
    if PyArray_NDIM(a) != PyArray_NDIM(b) - 1:
        return False
    for d in range(PyArray_NDIM(a)):
        if PyArray_DIMS(a)[d] != PyArray_DIMS(b)[d + 1 if d >= axis else d]:
            return False
    return True


cdef bint prefix_of_rows(PyArrayObject* a, PyArrayObject* b, int axis) noexcept:
    """Whether a has the first of the dimensions of b without one of them."""
    cdef int d
    if not 0 < PyArray_NDIM(a) < PyArray_NDIM(b):
        return False
    for d in range(PyArray_NDIM(a)):
        if PyArray_DIMS(a)[d] != PyArray_DIMS(b)[d + 1 if d >= axis else d]:
            return False
    return True


cdef bint same_memory(PyArrayObject* a, PyArrayObject* b) noexcept:
    """Whether two arrays of one shape and type are the same elements in the same order."""
    cdef int d
    if PyArray_BYTES(a) != PyArray_BYTES(b):
        return False
    for d in range(PyArray_NDIM(a)):
        if PyArray_STRIDES(a)[d] != PyArray_STRIDES(b)[d]:
            return False
    return True


cdef bint extent(PyArrayObject* a, char** low, char** high) noexcept:
    """The ends of an array's memory; False where it has no element."""
    cdef int d
    cdef Py_ssize_t reach
    low[0] = PyArray_BYTES(a)
    high[0] = low[0] + PyArray_ITEMSIZE(a)
    for d in range(PyArray_NDIM(a)):
        if PyArray_DIMS(a)[d] == 0:
            return False
        reach = (PyArray_DIMS(a)[d] - 1) * PyArray_STRIDES(a)[d]
        if reach > 0:
            high[0] += reach
        else:
            low[0] += reach
    return True


cdef bint disjoint(PyArrayObject* a, PyArrayObject* b) noexcept:
    """Whether the memory between the ends of one array has none of the other's."""
    cdef char *a_low
    cdef char *a_high
    cdef char *b_low
    cdef char *b_high
    if not (extent(a, &a_low, &a_high) and extent(b, &b_low, &b_high)):
        return True
    return a_high <= b_low or b_high <= a_low


cdef np.ndarray empty_like(PyArrayObject* a):
    """A new array of the type and in the memory order of another."""
    if PyArray_IS_C_CONTIGUOUS(a):
        return np.PyArray_EMPTY(PyArray_NDIM(a), PyArray_DIMS(a), PyArray_TYPE(a), 0)
    return PyArray_NewLikeArray(a, np.NPY_KEEPORDER, NULL, 0)


cdef np.ndarray empty_per_row(PyArrayObject* a, int axis, int kind):
    """A new array, in C order, of the dimensions of another without one of them."""
    cdef np.npy_intp shape[MAX_DIMS]
    cdef int d, n = 0
    for d in range(PyArray_NDIM(a)):
        if d != axis:
            shape[n] = PyArray_DIMS(a)[d]
            n += 1
    return np.PyArray_EMPTY(n, shape, kind, 0)


# ---- arrays as rows -------------------------------------------------------------------------------

cdef inline void add_dimension(Operand* op, Py_ssize_t length, Py_ssize_t stride) noexcept:
    """Put a dimension around those that an operand has, merged with the outermost where it goes on from
    it."""
    cdef int top = op.ndim - 1
    if length == 1:
        return
    if top >= 0 and stride == op.stride[top] * op.shape[top]:
        op.shape[top] *= length
        return
    op.shape[op.ndim] = length
    op.stride[op.ndim] = stride
    op.ndim += 1


cdef inline void close_dimensions(Operand* op) noexcept:
    """A single row is a dimension of length 1."""
    if op.ndim == 0:
        op.ndim = 1
        op.shape[0] = 1
        op.stride[0] = 0


cdef void bind(Operand* op, PyArrayObject* a, int kind, int axis) noexcept:
    """Describe `a` as rows along an axis, in C order of its other dimensions; element by element for
    NO_AXIS."""
    cdef int d, ndim = PyArray_NDIM(a)
    op.data = PyArray_BYTES(a)
    op.kind = kind
    op.inner = PyArray_STRIDES(a)[axis] if axis < ndim else 0
    op.ndim = 0
    for d in range(ndim - 1, -1, -1):
        if d != axis:
            add_dimension(op, PyArray_DIMS(a)[d], PyArray_STRIDES(a)[d])
    close_dimensions(op)


cdef void bind_weights(Operand* op, PyArrayObject* a, PyArrayObject* logits, int axis, bint rowwise) noexcept:
    """Describe one number per row along `axis` of the logits: once for each row or, unless `rowwise`,
    repeated for each element of it. An array of as many dimensions as the logits has a number for each
    element; one of fewer than the rows, a number for all rows of an image or sequence."""
    cdef int d, at, ndim = PyArray_NDIM(logits)
    cdef bint per_row = PyArray_NDIM(a) < ndim
    op.data = PyArray_BYTES(a)
    op.kind = element_kind(a)
    op.inner = op.ndim = 0
    for d in range(ndim - 1, -1, -1):
        if not per_row:
            add_dimension(op, PyArray_DIMS(logits)[d], PyArray_STRIDES(a)[d])
        elif d != axis:
            at = d - 1 if d > axis else d
            add_dimension(op, PyArray_DIMS(logits)[d],
                          PyArray_STRIDES(a)[at] if at < PyArray_NDIM(a) else 0)
        elif not rowwise:
            add_dimension(op, PyArray_DIMS(logits)[d], 0)
    close_dimensions(op)


cdef inline Py_ssize_t advance(
    const Operand* op, Py_ssize_t* index, int along, Py_ssize_t count
) noexcept nogil:
    """Step an index by `count` along a dimension, which it may just reach the end of, and carry; returns the
    change of the byte offset."""
    cdef Py_ssize_t change = count * op.stride[along]
    cdef int d = along
    index[d] += count
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


cdef void row_offsets(
    const Operand* op, Py_ssize_t start, Py_ssize_t count, Py_ssize_t* offset
) noexcept nogil:
    """Byte offsets of rows start ... start + count - 1, in C order of the leading dimensions."""
    cdef Py_ssize_t j, at, take
    cdef Py_ssize_t index[MAX_DIMS]
    if op.ndim == 1:
        for j in range(count):
            offset[j] = (start + j) * op.stride[0]
        return
    at = locate(op, start, index)
    while count > 0:
        take = min(count, op.shape[0] - index[0])
        for j in range(take):
            offset[j] = at + j * op.stride[0]
        offset += take
        count -= take
        at += advance(op, index, 0, take)


cdef inline void gather_typed(
    const element* hint, const char* data, Py_ssize_t stride, Py_ssize_t n, real* to
) noexcept nogil:
    cdef Py_ssize_t i
    if stride == <Py_ssize_t>sizeof(element):
        for i in range(n):
            to[i] = <real>(<const element*>data)[i]
    else:
        for i in range(n):
            to[i] = <real>(<const element*>(data + i * stride))[0]


cdef void gather_bool(const uint8_t* data, Py_ssize_t stride, Py_ssize_t n, real* to) noexcept nogil:
    """Any byte but 0 is True: views and foreign buffers hold others than 1."""
    cdef Py_ssize_t i
    if stride == 1:
        for i in range(n):
            to[i] = <real>(data[i] != 0)
    else:
        for i in range(n):
            to[i] = <real>(data[i * stride] != 0)


cdef void gather(const char* data, int kind, Py_ssize_t stride, Py_ssize_t n, real* to) noexcept nogil:
    """Read n numbers of any element type into contiguous floats."""
    if kind == kind_of(to[0]) and stride == <Py_ssize_t>sizeof(real):
        if real is float:
            sl_copy_f32(<const float*>data, n, to)
        else:
            sl_copy_f64(<const double*>data, n, to)
    elif kind == np.NPY_FLOAT:
        gather_typed(<const float*>NULL, data, stride, n, to)
    elif kind == np.NPY_DOUBLE:
        gather_typed(<const double*>NULL, data, stride, n, to)
    elif kind == np.NPY_BOOL:
        gather_bool(<const uint8_t*>data, stride, n, to)
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


cdef void gather_halves(const uint16_t* line, Py_ssize_t n, real* to) noexcept nogil:
    cdef float single[TOGETHER]
    cdef Py_ssize_t at, i, m
    if real is float:
        sl_from_halves_f32(line, n, to)
    else:
        for at from 0 <= at < n by TOGETHER:
            m = min(<Py_ssize_t>TOGETHER, n - at)
            sl_from_halves_f32(line + at, m, single)
            for i in range(m):
                to[at + i] = single[i]


cdef void gather_short(const char* data, int kind, Py_ssize_t stride, Py_ssize_t n, real* to) noexcept nogil:
    cdef const uint16_t* line = <const uint16_t*>data
    cdef Py_ssize_t i
    if stride == 2 and kind == NPY_HALF:
        gather_halves(line, n, to)
    elif stride == 2:
        for i in range(n):
            to[i] = sl_from_bfloat(line[i])
    else:
        for i in range(n):
            line = <const uint16_t*>(data + i * stride)
            to[i] = sl_from_half(line[0]) if kind == NPY_HALF else sl_from_bfloat(line[0])


cdef inline bint has_rows(const Operand* op, real hint) noexcept nogil:
    """Whether each row is contiguous, and of the type of the arithmetic."""
    return op.kind == kind_of(hint) and op.inner == <Py_ssize_t>sizeof(real)


cdef void scatter_halves(const real* values, uint16_t* line, Py_ssize_t n) noexcept nogil:
    cdef float single[TOGETHER]
    cdef Py_ssize_t at, i, m
    if real is float:
        sl_to_halves_f32(values, n, line)
    else:
        for at from 0 <= at < n by TOGETHER:
            m = min(<Py_ssize_t>TOGETHER, n - at)
            for i in range(m):
                single[i] = <float>values[at + i]
            sl_to_halves_f32(single, m, line + at)


cdef void scatter_short(
    const real* values, char* data, int kind, Py_ssize_t stride, Py_ssize_t n
) noexcept nogil:
    cdef uint16_t* line = <uint16_t*>data
    cdef Py_ssize_t i
    if stride == 2 and kind == NPY_HALF:
        scatter_halves(values, line, n)
    elif stride == 2:
        for i in range(n):
            line[i] = sl_to_bfloat(<float>values[i])
    else:
        for i in range(n):
            line = <uint16_t*>(data + i * stride)
            line[0] = sl_to_half(<float>values[i]) if kind == NPY_HALF else sl_to_bfloat(<float>values[i])


cdef void scatter(const real* values, char* data, int kind, Py_ssize_t stride, Py_ssize_t n) noexcept nogil:
    """Write n floats as elements of any floating-point type."""
    cdef float* line = <float*>data
    cdef Py_ssize_t i
    if kind == kind_of(values[0]):
        if stride == <Py_ssize_t>sizeof(real):
            if real is float:
                sl_copy_f32(values, n, <float*>data)
            else:
                sl_copy_f64(values, n, <double*>data)
        else:
            for i in range(n):
                (<real*>(data + i * stride))[0] = values[i]
    elif kind == np.NPY_FLOAT and stride == <Py_ssize_t>sizeof(float):
        # a loop of its own, in vectors
        for i in range(n):
            line[i] = <float>values[i]
    elif kind == np.NPY_FLOAT:
        for i in range(n):
            (<float*>(data + i * stride))[0] = <float>values[i]
    elif kind == np.NPY_DOUBLE:
        for i in range(n):
            (<double*>(data + i * stride))[0] = values[i]
    else:
        scatter_short(values, data, kind, stride, n)


cdef inline void store_value(char* values, int kind, Py_ssize_t at, double value) noexcept nogil:
    if kind == np.NPY_FLOAT:
        (<float*>values)[at] = <float>value
    else:
        (<double*>values)[at] = value


cdef void store_values(
    char* values, int kind, Py_ssize_t start, const real* from_, Py_ssize_t n
) noexcept nogil:
    cdef Py_ssize_t size = 4 if kind == np.NPY_FLOAT else 8
    scatter(from_, values + start * size, kind, size, n)


# ---- operands read element by element -------------------------------------------------------------
# Bound over all their dimensions, so that every element is a row of its own.

# Where the innermost dimension repeats one number, as a weight for all of a row does, or has the longer
# steps, as in Fortran's order, as many of its runs as there are whole ones are read or written together.

cdef inline Py_ssize_t whole_runs(
    const Operand* op, const Py_ssize_t* index, Py_ssize_t count
) noexcept nogil:
    """How many runs of the innermost dimension lie ahead, one after another along the next; 0 where they are
    better taken one by one, as those are that are fewer than they are long."""
    cdef Py_ssize_t step = -op.stride[0] if op.stride[0] < 0 else op.stride[0]
    cdef Py_ssize_t next_step = -op.stride[1] if op.stride[1] < 0 else op.stride[1]
    cdef Py_ssize_t runs = min(count // op.shape[0], op.shape[1] - index[1])
    if index[0] != 0 or 0 < step <= next_step or (step > 0 and runs < op.shape[0]):
        return 0
    return runs


cdef void repeat_numbers(
    const char* data, int kind, Py_ssize_t stride, Py_ssize_t runs, Py_ssize_t length, real* to
) noexcept nogil:
    """Each of as many numbers as there are runs, `length` times."""
    cdef real number[TOGETHER]
    cdef Py_ssize_t first, i, j, n
    for first from 0 <= first < runs by TOGETHER:
        n = min(<Py_ssize_t>TOGETHER, runs - first)
        gather(data + first * stride, kind, stride, n, number)
        for i in range(n):
            for j in range(length):
                to[(first + i) * length + j] = number[i]


cdef void load_runs(const Operand* op, const char* data, Py_ssize_t runs, real* to) noexcept nogil:
    cdef real line[TOGETHER]
    cdef const char* run
    cdef const real* from_
    cdef Py_ssize_t length = op.shape[0]
    cdef Py_ssize_t first, i, j, n
    if op.stride[0] == 0:
        repeat_numbers(data, op.kind, op.stride[1], runs, length, to)
        return
    for j in range(length):
        for first from 0 <= first < runs by TOGETHER:
            n = min(<Py_ssize_t>TOGETHER, runs - first)
            run = data + j * op.stride[0] + first * op.stride[1]
            from_ = <const real*>run
            if op.kind != kind_of(line[0]) or op.stride[1] != <Py_ssize_t>sizeof(real):
                gather(run, op.kind, op.stride[1], n, line)
                from_ = line
            for i in range(n):
                to[(first + i) * length + j] = from_[i]


cdef void store_runs(const Operand* op, char* data, Py_ssize_t runs, const real* values) noexcept nogil:
    cdef real line[TOGETHER]
    cdef Py_ssize_t length = op.shape[0]
    cdef Py_ssize_t first, i, j, n
    for j in range(length):
        for first from 0 <= first < runs by TOGETHER:
            n = min(<Py_ssize_t>TOGETHER, runs - first)
            for i in range(n):
                line[i] = values[(first + i) * length + j]
            scatter(<const real*>line, data + j * op.stride[0] + first * op.stride[1], op.kind, op.stride[1],
                    n)


cdef void load_flat(const Operand* op, Py_ssize_t start, Py_ssize_t count, real* to) noexcept nogil:
    """Read elements start ... start + count - 1 in C order, as floats."""
    cdef Py_ssize_t index[MAX_DIMS]
    cdef Py_ssize_t at, take, runs
    if op.ndim == 1:
        gather(op.data + start * op.stride[0], op.kind, op.stride[0], count, to)
        return
    at = locate(op, start, index)
    while count > 0:
        runs = whole_runs(op, index, count)
        if runs > 0:
            take = runs * op.shape[0]
            load_runs(op, op.data + at, runs, to)
            at += advance(op, index, 1, runs)
        else:
            take = min(count, op.shape[0] - index[0])
            gather(op.data + at, op.kind, op.stride[0], take, to)
            at += advance(op, index, 0, take)
        to += take
        count -= take


cdef void store_flat(
    const Operand* op, Py_ssize_t start, Py_ssize_t count, const real* values
) noexcept nogil:
    """Write elements start ... start + count - 1 in C order."""
    cdef Py_ssize_t index[MAX_DIMS]
    cdef Py_ssize_t at, take, runs
    if op.ndim == 1:
        scatter(values, op.data + start * op.stride[0], op.kind, op.stride[0], count)
        return
    at = locate(op, start, index)
    while count > 0:
        runs = whole_runs(op, index, count)
        if runs > 0:
            take = runs * op.shape[0]
            store_runs(op, op.data + at, runs, values)
            at += advance(op, index, 1, runs)
        else:
            take = min(count, op.shape[0] - index[0])
            scatter(values, op.data + at, op.kind, op.stride[0], take)
            at += advance(op, index, 0, take)
        values += take
        count -= take


cdef inline const real* view_flat(
    const Operand* op, Py_ssize_t start, Py_ssize_t count, real* buffer
) noexcept nogil:
    """Elements start ... start + count - 1 as contiguous floats: in place where they are that already."""
    if op.ndim == 1 and op.kind == kind_of(buffer[0]) and op.stride[0] == <Py_ssize_t>sizeof(real):
        return <const real*>op.data + start
    load_flat(op, start, count, buffer)
    return buffer

# The rows of a job, shared out in blocks among threads.
#
# uses _job: Job Kernel
# uses _math: SL_TAKE sl_get_flags sl_get_scratch sl_set_flags
# uses _sums: Sum add evaluate

from stableloss._threads import get_num_threads, work_together

cdef enum:
    RELEASE_GIL = 2048      # logits below which dropping the GIL costs more than it gives
    SHARE_WORK = 262144     # logits below which waking a second thread costs more than it gives


cdef inline bint stopped(const Job* job) noexcept nogil:
    """Whether the call is to end with nothing more written; asked once per piece of a long row."""
    return False


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
    if job.in_float64 or job.x.kind == np.NPY_DOUBLE:
        kernel.double(job, start, stop, part, <double*>scratch)
    else:
        kernel.single(job, start, stop, part, <float*>scratch)


cdef inline void add_part(Sum* total, const Sum* part) noexcept nogil:
    add(total, part.hi)
    total.lo += part.lo


cdef void run_alone(const Job* job, const Kernel* kernel, Py_ssize_t blocks, Sum* total) noexcept nogil:
    cdef void* scratch = sl_get_scratch()
    cdef Py_ssize_t block
    cdef Sum part
    for block in range(blocks):
        run_block(job, kernel, block, scratch, &part)
        add_part(total, &part)


cdef void run_shared(Shared* shared) noexcept nogil:
    cdef void* scratch = sl_get_scratch()
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


cdef bint shareable(const Job* job) noexcept:
    """Whether several threads may get to work on the job."""
    return job.n * job.k >= SHARE_WORK and job.n > job.block


cdef double run(const Job* job, const Kernel* kernel, tuple arrays) except? -1:
    """All rows of a job; returns the sum of their weighted losses. If the job is shareable, its memory
    belongs to `arrays`."""
    cdef unsigned int flags = sl_get_flags()
    cdef Py_ssize_t blocks = (job.n + job.block - 1) // job.block
    cdef int threads = 1
    cdef Sum total
    cdef double value
    total.hi = total.lo = 0
    if shareable(job):
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

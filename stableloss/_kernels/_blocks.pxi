# The rows of a job, shared out in blocks among threads.
#
# uses _job: Job Kernel
# uses _operand: Operand
# uses _options: WANT_GRAD WANT_HESS
# uses _sums: Sum add_sum clear_sum

import os
import sys
from _thread import get_ident

from stableloss._threads import get_num_threads

cdef extern from "sl_pool.h":
    ctypedef struct sl_workspace:
        void* scratch
    ctypedef struct sl_call:
        pass
    ctypedef void (*sl_work)(void*, Py_ssize_t, void*) noexcept nogil
    int SL_MAX_HELPERS
    unsigned long sl_main_thread
    sl_workspace* sl_take_workspace() noexcept nogil
    void sl_give_workspace(sl_workspace*) noexcept nogil
    int sl_run(sl_call*, sl_work, void*, Py_ssize_t, int, sl_workspace*) noexcept nogil
    bint sl_stopped(sl_call*) noexcept nogil
    void sl_before_fork()
    void sl_after_fork()

cdef extern from "sl_platform.h":
    const int SL_LEVEL      # 0, 1, 2: base, v3, v4
    int SL_PEEK(int*) noexcept nogil
    void SL_STORE(int*, int) noexcept nogil
    ctypedef struct sl_environment:
        pass
    sl_environment sl_default_environment() noexcept nogil
    void sl_restore_environment(sl_environment) noexcept nogil
    void sl_flush_subnormals() noexcept nogil

cdef enum:
    RELEASE_GIL = 2048      # logits below which dropping the GIL costs more than it gives
    # logits from which on the next ones, and the gradient's place, are fetched while these are computed: at
    # v4 0.78 of the time of 64 rows of 1000 classes and 0.86 of 64 of 100, and no loss of 256 of 10
    STREAMS = 2048

# Nanoseconds of work that make a thread worth its while: starting one costs about 10000, and where it gets no
# CPU to itself the call has lost some 6000.
cdef double THREAD_WORK = 40000

# Nanoseconds that a logit takes with value and gradient, in arrays that fit the cache; computed in float32,
# in float64, and the same for what is computed in tiles (soft targets, options, Hessians, statistics). Lower
# bounds over the losses and numbers of classes: plain kernels of v4 as on Zen 5, the others 0.7 of the least
# on Sapphire Rapids (best of 15 calls of 60000 logits each). What costs ten times as much, as a focal loss
# does, is shared from two blocks on anyway; too low a figure makes a call of some 0.1 ms use one thread where
# two would be faster.
cdef double[3][4] COST = [
    [1.4, 4.0, 4.0, 8.0],       # base
    [0.5, 1.2, 1.4, 2.8],       # v3
    [0.3, 0.75, 1.0, 2.0],      # v4
]


def before_fork():
    sl_before_fork()


def after_fork():
    sl_after_fork()


# The thread that signals are for. threading takes as long to import as half of this package, and takes the
# thread that imports it first for the main one.
_threading = sys.modules.get("threading")
sl_main_thread = get_ident() if _threading is None else _threading.main_thread().ident
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=before_fork, after_in_child=after_fork)
# to be called by nobody else
del before_fork, after_fork


cdef inline bint stopped(const Job* job) noexcept nogil:
    """Whether the call is to end with nothing more written; asked once per piece of a long row. Runs the
    handlers of signals in the thread that made the call."""
    return job.call != NULL and sl_stopped(<sl_call*>job.call)


# A part of a sum: what a block adds to it, computed in a thread's scratch memory.
ctypedef void (*Summand)(const void* context, Py_ssize_t block, void* scratch, Sum* part) noexcept nogil

cdef struct Blocks:
    Summand summand
    const void* context
    Sum* part               # of each block, or NULL where one thread adds up as it goes
    Sum total


cdef void run_block(void* context, Py_ssize_t block, void* scratch) noexcept nogil:
    cdef Blocks* blocks = <Blocks*>context
    cdef Sum part
    clear_sum(&part)
    blocks.summand(blocks.context, block, scratch, &part)
    if blocks.part == NULL:
        add_sum(&blocks.total, &part)
    else:
        blocks.part[block] = part


cdef int helpers_for(Py_ssize_t count, double nanoseconds) except -1:
    """How many threads, beside the calling one, `count` blocks of so much work are worth."""
    cdef double threads = min(nanoseconds / THREAD_WORK, <double>min(count, <Py_ssize_t>(SL_MAX_HELPERS + 1)))
    if threads < 2:
        return 0
    return <int>min(threads, <double>get_num_threads()) - 1


cdef int sum_blocks(
    Summand summand, const void* context, void** running, Py_ssize_t count, double nanoseconds, Sum* total
) except -1:
    """Sum over `count` blocks, which take so long in all; the same bits however many threads add it up.
    Raises what the handler of a signal raises meanwhile. `running` is where `stopped` looks for the call."""
    cdef Blocks blocks
    cdef sl_call call
    cdef sl_workspace* own
    cdef Py_ssize_t block
    cdef int helpers = helpers_for(count, nanoseconds)
    cdef int status
    blocks.summand = summand
    blocks.context = context
    blocks.part = NULL
    clear_sum(&blocks.total)
    if helpers:
        blocks.part = <Sum*>malloc(count * sizeof(Sum))
        if blocks.part == NULL:
            raise MemoryError()
    own = sl_take_workspace()
    if own == NULL:
        free(blocks.part)
        raise MemoryError()
    if running != NULL:
        running[0] = &call
    with nogil:
        status = sl_run(&call, run_block, &blocks, count, helpers, own)
        if helpers and status == 0:
            for block in range(count):
                add_sum(&blocks.total, &blocks.part[block])
    if running != NULL:
        running[0] = NULL
    sl_give_workspace(own)
    free(blocks.part)
    total[0] = blocks.total
    return -1 if status else 0


cdef struct Task:
    const Job* job
    const Kernel* kernel


cdef void run_rows(const void* context, Py_ssize_t block, void* scratch, Sum* part) noexcept nogil:
    cdef const Task* task = <const Task*>context
    cdef const Job* job = task.job
    cdef Py_ssize_t start = block * job.block
    cdef Py_ssize_t stop = min(start + job.block, job.n)
    if job.o.flushes:
        sl_flush_subnormals()
    if job.in_float64 or job.x.kind == np.NPY_DOUBLE:
        task.kernel.double(job, start, stop, part, <double*>scratch)
    else:
        task.kernel.single(job, start, stop, part, <float*>scratch)
    if job.o.flushes:
        sl_default_environment()


cdef bint rows_in_order(const Job* job, const Operand* op) noexcept:
    """Whether the rows of an operand, of the logits' type, follow each other in memory."""
    cdef Py_ssize_t size = 8 if op.kind == np.NPY_DOUBLE else 4 if op.kind == np.NPY_FLOAT else 2
    return (op.kind == job.x.kind and (job.k == 1 or op.inner == size)
            and op.ndim == 1 and op.stride[0] == job.k * size)


cdef void set_streams(Job* job) noexcept:
    """Whether memory is fetched ahead."""
    cdef bint wide = job.in_float64 or job.x.kind == np.NPY_DOUBLE
    if job.n * job.k < STREAMS or job.x.kind not in (np.NPY_DOUBLE, np.NPY_FLOAT, NPY_HALF):
        return
    job.halvings = 0 if job.x.kind == np.NPY_DOUBLE else wide + (job.x.kind == NPY_HALF)
    # elements of a sigmoid loss are read where they lie, or not at all
    job.streams = (rows_in_order(job, &job.x) and (not job.want & WANT_GRAD or rows_in_order(job, &job.g))
                   and (job.k > 1 or job.halvings == 0))


cdef int run(Job* job, const Kernel* kernel, Sum* total) except -1:
    """All rows of a job, and the sum of their weighted losses."""
    cdef Task task = Task(job, kernel)
    cdef bint plain = (job.indexed or (job.k == 1 and not job.has_options)) and not job.want & WANT_HESS
    cdef Py_ssize_t blocks = (job.n + job.block - 1) // job.block
    cdef int column = (0 if plain else 2) + (1 if job.in_float64 or job.x.kind == np.NPY_DOUBLE else 0)
    cdef sl_workspace* own
    cdef Py_ssize_t block
    cdef Sum part
    set_streams(job)
    if job.n * job.k >= RELEASE_GIL:
        return sum_blocks(run_rows, &task, &job.call, blocks,
                          <double>job.n * job.k * COST[SL_LEVEL][column], total)
    job.call = NULL
    own = sl_take_workspace()
    if own == NULL:
        raise MemoryError()
    clear_sum(total)
    for block in range(blocks):
        clear_sum(&part)
        run_rows(&task, block, own.scratch, &part)
        add_sum(total, &part)
    sl_give_workspace(own)
    return 0

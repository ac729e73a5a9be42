"""How many threads a call may use, and the pool that helps with large ones.

A call is cut into blocks whose results do not depend on who computes them; the calling thread works on
them itself, and helpers take blocks as they come. There is no OpenMP: its GNU runtime hangs in a forked
child, and two runtimes in one process clash.
"""

import os
from _thread import allocate_lock  # threading takes as long to import as half of this package
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _checked(count: int, name: str = "num_threads") -> int:
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count < 2**31:
        raise ValueError(f"{name} is {count!r}, not a whole number from 1 to {2**31 - 1}")
    return count


def _initial() -> int:
    setting = os.environ.get("STABLELOSS_NUM_THREADS")
    if not setting:
        return _usable_cpus()
    return _checked(int(setting) if setting.isdecimal() else 0, "STABLELOSS_NUM_THREADS")


class _Pool:
    """The process's settings and its helpers, which are made when first needed."""

    def __init__(self) -> None:
        self.default = _initial()
        self.local: ContextVar[int | None] = ContextVar("stableloss_num_threads", default=None)
        self.forget()

    def forget(self) -> None:
        """Start without helpers: a forked child has none of its parent's threads."""
        self.lock = allocate_lock()
        self.executor: ThreadPoolExecutor | None = None
        self.size = 0

    def get(self, size: int) -> "ThreadPoolExecutor":
        with self.lock:
            if self.executor is None or self.size < size:
                # imported here: it takes longer than the rest of the package
                from concurrent.futures import ThreadPoolExecutor

                if self.executor is not None:
                    self.executor.shutdown(wait=False)
                self.executor = ThreadPoolExecutor(size, thread_name_prefix="stableloss")
                self.size = size
            return self.executor


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)


def get_num_threads() -> int:
    """Number of threads that a call made here may use.

    Returns
    -------
    int
        What `num_threads` says in this context, else what `set_num_threads` said, else the
        environment variable ``STABLELOSS_NUM_THREADS``, else the CPUs that this process may use.

    Examples
    --------
    >>> import stableloss as sl
    >>> with sl.num_threads(1):
    ...     sl.get_num_threads()
    1
    """
    return _pool.local.get() or _pool.default


def set_num_threads(count: int) -> None:
    """Set the number of threads that a call may use, for the whole process.

    Results do not depend on it, to the last bit. Calls too small to gain from it use one thread.

    Parameters
    ----------
    count : int
        At least 1, the calling thread included.

    Raises
    ------
    ValueError
        If `count` is not a whole number of at least 1.

    Examples
    --------
    >>> import stableloss as sl
    >>> before = sl.get_num_threads()
    >>> sl.set_num_threads(2)
    >>> sl.get_num_threads()
    2
    >>> sl.set_num_threads(before)
    """
    _pool.default = _checked(count)


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Set the number of threads for the calls within a ``with`` block, in this thread alone.

    Parameters
    ----------
    count : int
        At least 1, the calling thread included.

    Returns
    -------
    context manager
        Which puts the number back that was in force before.

    Raises
    ------
    ValueError
        If `count` is not a whole number of at least 1.

    Examples
    --------
    >>> import stableloss as sl
    >>> with sl.num_threads(1):
    ...     loss = sl.softmax_ce([[0.0, 0.0]], [0])
    """
    token = _pool.local.set(_checked(count))
    try:
        yield
    finally:
        _pool.local.reset(token)


def work_together(task: Callable[[], None], helpers: int) -> None:
    """Call `task` here and in helper threads until each call has returned.

    The task's calls share its blocks out among themselves, so that a helper that comes too late, or
    not at all, leaves nothing undone.
    """
    futures = []
    # a pool refuses when the interpreter is shutting down, or another thread has just replaced it
    with suppress(RuntimeError):
        for _ in range(helpers):
            futures.append(_pool.get(helpers).submit(task))
    task()
    for future in futures:
        if not future.cancel():
            future.result()

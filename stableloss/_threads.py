"""How many threads a call may use. What they do is in `_kernels/sl_pool.h`."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import index
from typing import SupportsIndex

MOST = 2**31 - 1


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _quota(folder: str) -> float:
    """CPUs that a control group may use, whatever its version."""
    limit, _, period = _read(f"{folder}/cpu.max").strip().partition(" ")
    if not limit:
        limit, period = _read(f"{folder}/cpu.cfs_quota_us"), _read(f"{folder}/cpu.cfs_period_us")
    try:
        cpus = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or none set
        return math.inf
    return cpus if cpus > 0 else math.inf


def _cgroup_cpus(root: str = "") -> float:
    """CPUs that this process's control groups let it use: the least of each group and those around it."""
    groups = {}
    for line in _read(f"{root}/proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "cpu" in controllers.split(","):
            groups[number == "0"] = path
    cpus = math.inf
    for line in _read(f"{root}/proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        unified = kind == "cgroup2"
        if unified not in groups or not (unified or (kind == "cgroup" and "cpu" in options.split(","))):
            continue
        top, folder = mount.split(" ")[3:5]
        # in a container the mount may show less than the whole tree, and the path lead out of it
        path = groups[unified]
        inside = path[len(top) :] if f"{path}/".startswith(f"{top.rstrip('/')}/") else ""
        names = [name for name in inside.split("/") if name]
        for depth in range(len(names) + 1):
            cpus = min(cpus, _quota("/".join([root + folder, *names[:depth]])))
    return cpus


def _checked(count: SupportsIndex, name: str = "num_threads") -> int:
    try:
        number = 0 if isinstance(count, bool) else index(count)
    except TypeError:
        number = 0
    if not 1 <= number <= MOST:
        raise ValueError(f"{name} is {count!r}, not a whole number from 1 to {MOST}")
    return number


def _initial() -> int:
    setting = os.environ.get("STABLELOSS_NUM_THREADS", "").strip()
    if setting:
        number = int(setting) if setting.isdecimal() else 0
        if not 1 <= number <= MOST:
            raise ValueError(f"STABLELOSS_NUM_THREADS is {setting!r}, not a whole number from 1 to {MOST}")
        return number
    # a list has one number for each level of nesting; as the OpenMP runtimes do, what is no number is ignored
    openmp = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    most = int(openmp) if openmp.isdecimal() and int(openmp) > 0 else MOST
    return min(_usable_cpus(), max(1, math.ceil(min(_cgroup_cpus(), MOST))), most)


_default = _initial()
_local: ContextVar[int | None] = ContextVar("stableloss_num_threads", default=None)


def get_num_threads() -> int:
    """Number of threads that a call made here may use.

    Returns
    -------
    int
        What `num_threads` says in this context, else what `set_num_threads` said, else the
        environment variable ``STABLELOSS_NUM_THREADS``, else the least of the CPUs that this process may
        use, those that its control group's quota pays for (rounded up) and, where set, the environment
        variable ``OMP_NUM_THREADS``.

    Examples
    --------
    >>> import stableloss as sl
    >>> with sl.num_threads(1):
    ...     sl.get_num_threads()
    1
    """
    return _local.get() or _default


def set_num_threads(count: SupportsIndex) -> None:
    """Set the number of threads that a call may use, for the whole process.

    Results do not depend on it, to the last bit. Calls too small to gain from it use one thread, none
    uses more than 256, and where the system has no more threads to give, a call does with those it has.

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
    global _default
    _default = _checked(count)


@contextmanager
def num_threads(count: SupportsIndex) -> Iterator[None]:
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
    token = _local.set(_checked(count))
    try:
        yield
    finally:
        _local.reset(token)

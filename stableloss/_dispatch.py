"""Pick the build of the kernels that suits this machine, once, at import.

STABLELOSS_CPU forces a level; a level that is unknown, not built or not supported here is an
ImportError, never a silent fall-back.
"""

import os
from importlib import import_module
from importlib.util import find_spec

from stableloss import _cpu

LEVELS = ("base", "v3", "v4")


def built() -> tuple[str, ...]:
    """The levels that this installation has."""
    return tuple(level for level in LEVELS if find_spec(f"stableloss._{level}") is not None)


def available() -> tuple[str, ...]:
    """The levels that are built and that this machine supports, slowest first."""
    supported = _cpu.supported()
    return tuple(level for level in built() if level in supported)


def _choose() -> str:
    levels = available()
    forced = os.environ.get("STABLELOSS_CPU")
    if not forced:
        return levels[-1]
    if forced in levels:
        return forced
    if forced not in LEVELS:
        reason = f"is not one of {', '.join(LEVELS)}"
    elif forced not in built():
        reason = "was not built"
    else:
        reason = "is not supported by this machine"
    raise ImportError(f"STABLELOSS_CPU={forced} {reason}; available: {', '.join(levels)}")


_level = _choose()
kernels = import_module(f"stableloss._{_level}")


def cpu_level() -> str:
    """Name of the CPU level whose kernels are in use.

    Returns
    -------
    str
        ``"base"``, ``"v3"`` (x86-64-v3: AVX2 and FMA) or ``"v4"`` (x86-64-v4: AVX-512). The best that
        CPU and operating system support is picked at import; the environment variable
        ``STABLELOSS_CPU`` forces one.

    Examples
    --------
    >>> import stableloss as sl
    >>> sl.cpu_level() in ("base", "v3", "v4")
    True
    """
    return _level

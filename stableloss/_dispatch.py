"""Pick the build of the kernels that suits this machine, once, at import.

STABLELOSS_CPU forces a level; a level that is unknown, not built or not supported here is an
ImportError, never a silent fall-back.
"""

import functools
import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from stableloss import _cpu

LEVELS = ("base", "v3", "v4")


def built() -> tuple[str, ...]:
    """The levels that this installation has."""
    from importlib.util import find_spec  # not needed to import the best level, and slow to load

    return tuple(level for level in LEVELS if find_spec(f"stableloss._{level}") is not None)


def available() -> tuple[str, ...]:
    """The levels that are built and that this machine supports, slowest first."""
    supported = _cpu.supported()
    return tuple(level for level in built() if level in supported)


def _load() -> tuple[str, Any]:
    """The best level, or the forced one, and its kernels."""
    forced = os.environ.get("STABLELOSS_CPU")
    for level in reversed(_cpu.supported()):
        if forced in (None, "", level):
            name = f"stableloss._{level}"
            try:
                return level, import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise
    if forced not in LEVELS:
        reason = f"is not one of {', '.join(LEVELS)}"
    elif forced not in built():
        reason = "was not built"
    else:
        reason = "is not supported by this machine"
    raise ImportError(f"STABLELOSS_CPU={forced} {reason}; available: {', '.join(available())}")


if TYPE_CHECKING:
    from stableloss import _base  # every level has the same names

    kernels = _base
    _level: str
else:
    _level, kernels = _load()

Function = TypeVar("Function", bound=Callable[..., Any])


def implemented_by(function: Callable[..., Any]) -> Callable[[Function], Function]:
    """Put a function of the kernels in the place of a declaration, under its name, types and docstring."""

    def named(declared: Function) -> Any:
        return functools.update_wrapper(function, declared)

    return named


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

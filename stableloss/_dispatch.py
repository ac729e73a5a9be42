"""Pick the build of the kernels that suits this machine, once, at import.

STABLELOSS_CPU forces a level; a level that is unknown, not built or not supported here is an
ImportError, never a silent fall-back.
"""

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

LEVELS = ("base", "v3", "v4")


def _without_kernels() -> ImportError:
    """The error of an installation that lacks its compiled modules: which it is, and what to type."""
    from importlib.machinery import EXTENSION_SUFFIXES
    from pathlib import Path

    folder = Path(__file__).resolve().parent
    others = sorted(path.name for path in folder.glob("_base.*") if path.suffix in (".so", ".pyd"))
    if (folder / "_kernels").is_dir():
        what = f"{folder} is the source of stableloss, without compiled kernels"
        fix = f"run `pip install {folder.parent}`, and start Python in another folder than that"
    elif others:
        what = f"the kernels of stableloss in {folder} are for another Python or platform: {others[0]}, not "
        what += f"_base{EXTENSION_SUFFIXES[0]}"
        fix = "with this Python, run `python -m pip install --force-reinstall stableloss`"
    else:
        what = f"stableloss in {folder} has no compiled kernels"
        fix = "run `pip install --force-reinstall --no-cache-dir stableloss`; where it was copied, copy its "
        fix += f"files _cpu, _base, _v3 and _v4 ({EXTENSION_SUFFIXES[-1]}) too"
    return ImportError(f"{what}: {fix}")


try:
    import stableloss._cpu as _cpu
except ModuleNotFoundError as error:
    if error.name != "stableloss._cpu":
        raise
    raise _without_kernels() from None


def built() -> tuple[str, ...]:
    """The levels that this installation has."""
    from importlib.util import find_spec  # not needed to import the best level, and slow to load

    return tuple(level for level in LEVELS if find_spec(f"stableloss._{level}") is not None)


def available() -> tuple[str, ...]:
    """The levels that are built and that this machine supports, slowest first."""
    supported = _cpu.supported()
    return tuple(level for level in built() if level in supported)


def _import(level: str) -> Any:
    """The kernels of a level; the statements are what freezers of applications look for."""
    if level == "v4":
        import stableloss._v4 as of_level
    elif level == "v3":
        import stableloss._v3 as of_level
    else:
        import stableloss._base as of_level
    return of_level


def _load() -> tuple[str, Any]:
    """The best level, or the forced one, and its kernels."""
    forced = os.environ.get("STABLELOSS_CPU")
    for level in reversed(_cpu.supported()):
        if forced in (None, "", level):
            try:
                return level, _import(level)
            except ModuleNotFoundError as error:
                if error.name != f"stableloss._{level}":
                    raise
    if not built():
        raise _without_kernels()
    if not forced:
        raise ImportError(
            f"stableloss has kernels for {', '.join(built())}, and this machine supports "
            f"{', '.join(_cpu.supported())}: run `pip install --force-reinstall stableloss` on it"
        )
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

"""Refusals in the words of an adapter's caller: the names of its arguments, and what mends the call."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from stableloss._arrays import holds_mask
from stableloss.linear import LinearLoss

__all__ = ["explained", "require_loss", "unmasked"]


def require_loss(loss: Any) -> None:
    """Refuse what is no loss object: a class, a name, or a loss of hidden values."""
    if isinstance(loss, type):
        raise TypeError(f"loss is the class {loss.__name__}, not an object of it: {loss.__name__}()")
    if not hasattr(loss, "value_and_grad") or isinstance(loss, LinearLoss):
        raise TypeError(f"loss must be a loss object such as softmax_ce, not {type(loss).__name__}")


def unmasked(value: Any, name: str, instead: str) -> Any:
    """The value, if it is no masked array, whose mask nothing here or in the library would look at."""
    if holds_mask(value):
        raise TypeError(f"{name} is a masked array, whose mask would be lost: pass {instead}")
    return value


def explained(
    error: TypeError | ValueError, x: Any, y: Any, x_name: str, y_name: str, axis: int, classes: bool
) -> TypeError | ValueError:
    """The error to raise where a loss has refused x and y: in these names, and with the fix if `y` does not
    fit `x`.

    The outputs of `x` lie along `axis`. With `classes`, `y` may hold class indices; without, it has the
    shape of `x`. A function of its own for a refused call, so that one that is not pays nothing for it.
    """
    if isinstance(error, TypeError):
        return TypeError(_renamed(str(error), x_name, y_name))
    return ValueError(_mistake(x, y, x_name, y_name, axis, classes) or _renamed(str(error), x_name, y_name))


def _renamed(message: str, x_name: str, y_name: str) -> str:
    """The message of a loss, in the names of the caller's arguments."""
    names = {"logits": x_name, "targets": y_name, "target at": f"{y_name} at"}
    return re.sub(r"\b(logits|targets|target at)\b", lambda match: names[match[1]], message)


def _mistake(x: Any, y: Any, x_name: str, y_name: str, axis: int, classes: bool) -> str | None:
    try:
        shape, target = np.shape(x), np.asarray(y)
    except ValueError:  # rows of different lengths
        return None
    if not shape:
        return None
    axis %= len(shape)
    k, rows = shape[axis], shape[:axis] + shape[axis + 1 :]
    as_indices = classes and target.shape == rows
    if as_indices or target.shape == shape:
        signed = target.size > 0 and bool(((target == 1) | (target == -1)).all())
        if not signed or (as_indices and k != 2):
            return None
        array = y_name if isinstance(y, np.ndarray) else f"np.array({y_name})"
        return f"{y_name} holds -1 and 1 where 0 and 1 are needed: pass ({array} + 1) // 2"
    need = f"class indices of shape {rows} or one-hot targets of shape {shape}" if classes else f"{shape}"
    instead = _instead(target, y_name, axis, shape, rows, classes)
    remedy = f"; pass {instead}" if instead else ""
    return f"{y_name} has shape {target.shape} where {x_name} of shape {shape} needs {need}{remedy}"


def _instead(
    target: np.ndarray, name: str, axis: int, shape: tuple[int, ...], rows: tuple[int, ...], classes: bool
) -> str | None:
    """What to pass for a target that holds the right numbers in another shape."""

    def only_dimensions_of_1_differ(wanted: tuple[int, ...]) -> bool:
        return [n for n in target.shape if n != 1] == [n for n in wanted if n != 1]

    for wanted in (rows, shape) if classes else (shape,):
        flat = classes and target.ndim == 1 and target.size == math.prod(wanted)
        if flat or only_dimensions_of_1_differ(wanted):
            return f"np.reshape({name}, {wanted})"
    if target.shape == shape[::-1]:
        return f"np.transpose({name})"
    if not classes and target.dtype.kind in "iu" and only_dimensions_of_1_differ(rows):
        labels = name if target.shape == rows else f"np.reshape({name}, {rows})"
        return f"np.eye({shape[axis]})[{labels}]" + ("" if axis else ".T")
    return None if target.ndim else f"np.full({rows if classes else shape}, {name})"

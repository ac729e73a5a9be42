"""The input contract: what the kernels are given, and every error that a call can raise.

The kernels take plain arrays of any layout whose shapes agree and whose values are in range, and
return None for anything else, before they write. The call then comes here: other dtypes, byte orders,
array-likes and overlapping memory are turned into what a kernel takes; the rest is refused, with one
wording per error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

WANT_LOSS, WANT_GRAD, WANT_HESS = 1, 2, 4

REDUCTIONS = {"none": 0, "sum": 1, "mean": 2, "batchmean": 3}

Kernel = Callable[..., Any]


def real_array(value: Any, name: str) -> np.ndarray:
    """An array of real numbers that the kernels can read."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, not dtype {array.dtype}")
    plain = array.dtype.kind != "f" or array.dtype.itemsize in (4, 8)
    dtype = array.dtype.newbyteorder("=") if plain else np.dtype(np.float64)
    if array.dtype == dtype and array.dtype.isnative and array.flags.aligned:
        return array
    return np.array(array, dtype=dtype)


def float_array(value: Any, name: str) -> np.ndarray:
    """The same as float32 where it is that already, and as float64 otherwise."""
    array = real_array(value, name)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def require_shape(array: np.ndarray, shape: tuple[int, ...], name: str, logits: np.ndarray) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape} where logits of shape {logits.shape} need {shape}")


def first_false(valid: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmin(valid)), valid.shape))


def require_values(array: np.ndarray, valid: np.ndarray, name: str, demand: str) -> None:
    if not valid.all():
        at = first_false(valid)
        place = f" at {at[0] if len(at) == 1 else at}" if at else ""
        raise ValueError(f"{name}{place} is {array[at]}, {demand}")


def require_class_indices(targets: np.ndarray, k: int) -> None:
    valid = (targets >= 0) & (targets < k)
    if targets.dtype.kind == "f":
        valid &= targets == np.floor(targets)
    require_values(targets, valid, "class index", f"not a whole number from 0 to {k - 1} ({k} classes)")


def require_probabilities(targets: np.ndarray, name: str, top: float) -> None:
    valid = (targets >= 0) & (targets <= top)
    demand = "not in [0, 1]" if top == 1 else "not a non-negative finite number"
    require_values(targets, valid, name, demand)


def weight_array(value: Any, logits: np.ndarray, *, per_element: bool) -> np.ndarray | None:
    """Weights of the shape that the kernel takes: per row, or per element for the sigmoid losses."""
    if value is None:
        return None
    weight = real_array(value, "sample_weight")
    rows = logits.shape[:-1]
    if per_element and weight.shape == rows and logits.ndim:
        weight = np.broadcast_to(weight[..., np.newaxis], logits.shape)
    shape = logits.shape if per_element else rows
    if weight.shape != shape:
        allowed = f"{rows} or {logits.shape}" if per_element else f"{rows}"
        raise ValueError(
            f"sample_weight has shape {weight.shape} where logits of shape {logits.shape} need {allowed}"
        )
    require_probabilities(weight, "sample_weight", np.finfo(np.float64).max)
    return weight


def require_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`out` as a plain array over the same memory."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, not {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"out has dtype {out.dtype.str} where the result has {dtype.str}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape} where the result has {shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    return out.view(np.ndarray)


def buffer_for(out: np.ndarray, inputs: list[np.ndarray]) -> np.ndarray:
    """`out` itself, or memory of its own where writing to it would disturb an input or be misaligned."""
    if out.flags.aligned and not any(np.may_share_memory(out, array) for array in inputs):
        return out
    return np.empty_like(out)


def softmax_targets(targets: Any, logits: np.ndarray) -> np.ndarray:
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits of shape {logits.shape} have no classes along their last axis")
    array = real_array(targets, "targets")
    if array.ndim == logits.ndim:
        require_shape(array, logits.shape, "targets (probabilities)", logits)
        require_probabilities(array, "target probability", np.finfo(np.float64).max)
    else:
        require_shape(array, logits.shape[:-1], "targets (class indices)", logits)
        require_class_indices(array, logits.shape[-1])
    return array


def sigmoid_targets(targets: Any, logits: np.ndarray) -> np.ndarray:
    array = real_array(targets, "targets")
    require_shape(array, logits.shape, "targets", logits)
    require_probabilities(array, "target", 1)
    return array


def prepared_call(
    kernel: Kernel,
    read_targets: Callable[[Any, np.ndarray], np.ndarray],
    logits: Any,
    targets: Any,
    sample_weight: Any,
    outs: tuple[Any, Any],
    want: int,
    reduction: int,
    clip: float,
) -> Any:
    """Run a kernel on arguments that it did not take as they were, or raise."""
    x = float_array(logits, "logits")
    t = read_targets(targets, x)
    weight = weight_array(sample_weight, x, per_element=read_targets is sigmoid_targets)
    inputs = [x, t] if weight is None else [x, t, weight]
    given = [None if out is None else require_out(out, x.shape, x.dtype) for out in outs]
    if given[0] is not None and given[1] is not None and np.may_share_memory(given[0], given[1]):
        raise ValueError("the two arrays of out share memory")
    buffers = [None if out is None else buffer_for(out, inputs) for out in given]
    result = kernel(x, t, weight, buffers[0], buffers[1], want, reduction, clip)
    if not want & WANT_GRAD:
        return result
    for plain, buffer in zip(given, buffers, strict=True):
        if plain is not None and buffer is not None and plain is not buffer:
            np.copyto(plain, buffer)
    if want & WANT_HESS:
        grad, hess = result
        return (grad if outs[0] is None else outs[0]), (hess if outs[1] is None else outs[1])
    loss, grad = result
    return loss, (grad if outs[0] is None else outs[0])


def prepared_activation(
    kernel: Kernel, value: Any, out: Any, axis: int | None, *, keeps_axis: bool = True
) -> Any:
    """Run an activation along an axis (None: element by element), or raise."""
    x = float_array(value, "x")
    if axis is None:
        moved, shape = x, x.shape
    else:
        moved = np.moveaxis(x, axis, -1)
        if moved.shape[-1] == 0:
            raise ValueError(f"x of shape {x.shape} is empty along axis {axis}")
        shape = x.shape if keeps_axis else moved.shape[:-1]
    if out is None:
        result = np.empty_like(x) if keeps_axis else np.empty(shape, x.dtype)
    else:
        result = require_out(out, shape, x.dtype)
    buffer = buffer_for(result, [x])
    if axis is None or not keeps_axis:
        kernel(moved, buffer)
    else:
        kernel(moved, np.moveaxis(buffer, axis, -1))
    if buffer is not result:
        np.copyto(result, buffer)
    return result[()] if out is None else out

"""The input contract: what the kernels are given, and every error that a call can raise.

The kernels take plain arrays of any layout whose shapes agree and whose values are in range, and
return None for anything else, before they write. The call then comes here: other dtypes, byte orders,
array-likes, class axes and overlapping memory are turned into what a kernel takes; the rest is
refused, with one wording per error.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

WANT_LOSS, WANT_GRAD, WANT_HESS, WANT_PRODUCT, WANT_TARGET_GRAD, WANT_STATS = 1, 2, 4, 8, 16, 32

REDUCTIONS = {"none": 0, "sum": 1, "mean": 2, "batchmean": 3}

Kernel = Callable[..., Any]


class Stats(NamedTuple):
    """What a loss finds out on the way, for each row (softmax losses) or element (sigmoid losses).

    Attributes
    ----------
    predicted : ndarray
        The class of the largest logit, the first of several, int64; sigmoid losses: whether the
        activation is above 1/2, bool. Rows that do not count have -1 (False).
    correct : int
        Number of rows (elements) that count and whose prediction is the target; of target
        probabilities the largest, of sigmoid targets whether they are above 1/2.
    logsumexp : ndarray
        Logarithm of the normaliser, ``log(sum(exp(x)))``; sigmoid losses: ``log(1 + exp(x))``. 0 for
        rows that do not count.
    entropy : ndarray
        Entropy of the predicted distribution, in nats. 0 for rows that do not count.
    probabilities : ndarray or None
        The buffer that was passed to be filled with the activations.
    """

    predicted: np.ndarray
    correct: int
    logsumexp: np.ndarray
    entropy: np.ndarray
    probabilities: np.ndarray | None


class Spec:
    """What the arguments of a loss have to agree with."""

    kernel: Kernel
    options: Any
    reduction: str
    rowwise: bool
    axis: int
    ignore_index: int | None
    class_weights: int | None
    pos_weights: int | None
    from_probabilities: bool

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def number(name: str, value: Any, valid: Callable[[float], bool], demand: str) -> float:
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be a number, not {value!r}")
    result = float(array)
    if not valid(result):
        raise ValueError(f"{name} is {value!r}, {demand}")
    return result


def positive(name: str, value: Any) -> float:
    return number(name, value, lambda x: 0 < x < math.inf, "not a positive finite number")


def index(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def is_bfloat16(dtype: np.dtype) -> bool:
    return dtype.name == "bfloat16"


def real_array(value: Any, name: str) -> np.ndarray:
    """An array of real numbers that the kernels can read."""
    array = np.asarray(value)
    if array.dtype.char in "fd" and array.dtype.isnative and array.flags.aligned:
        return array
    if is_bfloat16(array.dtype):
        native = array.dtype.newbyteorder("=")
        return array if array.flags.aligned and array.dtype.isnative else np.array(array, dtype=native)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, not dtype {array.dtype}")
    plain = array.dtype.kind != "f" or array.dtype.itemsize <= 8
    dtype = array.dtype.newbyteorder("=") if plain else np.dtype(np.float64)
    if array.dtype == dtype and array.dtype.isnative and array.flags.aligned:
        return array
    return np.array(array, dtype=dtype)


def float_array(value: Any, name: str) -> np.ndarray:
    """The same as floating point: integers and bool as float64."""
    array = real_array(value, name)
    return array if array.dtype.kind not in "biu" else array.astype(np.float64)


def require_shape(
    array: np.ndarray, shape: tuple[int, ...], name: str, logits: np.ndarray, hint: str = ""
) -> None:
    if array.shape != shape:
        raise ValueError(
            f"{name} has shape {array.shape} where logits of shape {logits.shape} need {shape}{hint}"
        )


def first_false(valid: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmin(valid)), valid.shape))


def require_values(array: np.ndarray, valid: np.ndarray, name: str, demand: str) -> None:
    if not valid.all():
        at = first_false(valid)
        place = f" at {at[0] if len(at) == 1 else at}" if at else ""
        raise ValueError(f"{name}{place} is {array[at]}, {demand}")


def require_class_indices(targets: np.ndarray, k: int, skip: np.ndarray) -> None:
    valid = (targets >= 0) & (targets < k)
    if targets.dtype.kind not in "biu":
        valid &= targets == np.floor(targets)
    demand = f"not a whole number from 0 to {k - 1} ({k} classes)"
    require_values(targets, valid | skip, "class index", demand)


def require_probabilities(targets: np.ndarray, name: str, top: float, skip: Any = False) -> None:
    valid = (targets >= 0) & (targets <= top)
    demand = "not in [0, 1]" if top == 1 else "not a non-negative finite number"
    require_values(targets, valid | skip, name, demand)


def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """What is left of a shape without one of its axes."""
    return shape[:axis] + shape[axis:][1:]


def row_or_element(array: np.ndarray, logits: np.ndarray, name: str, spec: Spec) -> np.ndarray:
    """Weights or a mask in the shape that the kernel takes: per row, or per element for sigmoid losses."""
    rows = without(logits.shape, spec.axis)
    if not spec.rowwise and array.shape == rows and logits.ndim:
        array = np.broadcast_to(array[..., np.newaxis], logits.shape)
    shape = rows if spec.rowwise else logits.shape
    if array.shape != shape:
        allowed = f"{rows}" if spec.rowwise else f"{rows} or {logits.shape}"
        raise ValueError(
            f"{name} has shape {array.shape} where logits of shape {logits.shape} need {allowed}"
        )
    return array


def weight_array(value: Any, logits: np.ndarray, spec: Spec) -> np.ndarray:
    weight = row_or_element(real_array(value, "sample_weight"), logits, "sample_weight", spec)
    require_probabilities(weight, "sample_weight", np.finfo(np.float64).max)
    return weight


def mask_array(value: Any, logits: np.ndarray, spec: Spec) -> np.ndarray:
    mask = np.asarray(value)
    if mask.dtype != np.bool_:
        raise TypeError(f"mask must be bool (True: counts), not dtype {mask.dtype}")
    return row_or_element(mask if mask.flags.aligned else mask.copy(), logits, "mask", spec)


def divisor(value: Any, reduction: str) -> float:
    if reduction not in ("mean", "batchmean"):
        raise ValueError(f"denominator replaces the divisor of a mean, but reduction is {reduction!r}")
    return positive("denominator", value)


def require_out(out: Any, shape: tuple[int, ...], dtype: np.dtype, name: str = "out") -> np.ndarray:
    """`out` as a plain array over the same memory."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, not {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"{name} has dtype {out.dtype.str} where the result has {dtype.str}")
    if out.shape != shape:
        raise ValueError(f"{name} has shape {out.shape} where the result has {shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return out.view(np.ndarray)


def buffer_for(out: np.ndarray, inputs: list[np.ndarray]) -> np.ndarray:
    """`out` itself, or memory of its own where writing to it would disturb an input or be misaligned."""
    if out.flags.aligned and not any(np.may_share_memory(out, array) for array in inputs):
        return out
    return np.empty_like(out)


def last(array: np.ndarray, axis: int) -> np.ndarray:
    """A view with the classes on the last axis; np.moveaxis takes longer than a small loss."""
    if axis == -1:
        return array
    axes = list(range(array.ndim))
    axes.append(axes.pop(axis))
    return array.transpose(axes)


def back(array: np.ndarray, axis: int) -> np.ndarray:
    """A view with the classes, which are on the last axis, where the caller has them."""
    if axis == -1:
        return array
    axes = list(range(array.ndim - 1))
    axes.insert(axis % array.ndim, array.ndim - 1)
    return array.transpose(axes)


def swapped_hint(logits: Any, targets: np.ndarray) -> str:
    if np.asarray(logits).dtype.kind in "biu" and targets.dtype.kind not in "biu":
        return "; integers came first and floats second: the order is (logits, targets)"
    return ""


def softmax_targets(
    spec: Spec, array: np.ndarray, logits: np.ndarray, mask: np.ndarray | None, hint: str
) -> np.ndarray:
    """Class indices, or probabilities with their classes last."""
    rows, k = without(logits.shape, spec.axis), logits.shape[spec.axis]
    if k == 0:
        raise ValueError(f"logits of shape {logits.shape} have no classes along axis {spec.axis}")
    if array.ndim < logits.ndim:
        require_shape(array, rows, "targets (class indices)", logits, hint)
        skip = np.zeros(rows, bool) if mask is None else ~mask
        if spec.ignore_index is not None:
            skip = skip | (array == spec.ignore_index)
        require_class_indices(array, k, skip)
        return array
    if (
        array.ndim == logits.ndim
        and array.shape[spec.axis] == 1 < k
        and without(array.shape, spec.axis) == rows
    ):
        indices = "targets[..., 0]" if spec.axis == -1 else f"targets.squeeze({spec.axis})"
        raise ValueError(
            f"targets have shape {array.shape} where logits of shape {logits.shape} need class indices of "
            f"shape {rows} or probabilities of shape {logits.shape}; for class indices pass {indices}"
        )
    require_shape(array, logits.shape, "targets (probabilities)", logits, hint)
    among_rows = False if mask is None else ~np.expand_dims(mask, spec.axis)
    require_probabilities(array, "target probability", np.finfo(np.float64).max, among_rows)
    return last(array, spec.axis)


def sigmoid_targets(array: np.ndarray, logits: np.ndarray, mask: np.ndarray | None, hint: str) -> np.ndarray:
    require_shape(array, logits.shape, "targets", logits, hint)
    require_probabilities(array, "target", 1, False if mask is None else ~mask)
    return array


def require_options(spec: Spec, logits: np.ndarray, counts: np.ndarray | bool) -> None:
    """That the options of the loss fit these logits, of the rows or elements that count."""
    outputs = logits.shape[spec.axis] if logits.ndim else 1
    for name, length in (("class_weight", spec.class_weights), ("pos_weight", spec.pos_weights)):
        if length is not None and length != outputs:
            raise ValueError(
                f"{name} has length {length} where logits of shape {logits.shape} need {outputs}"
            )
    if spec.from_probabilities:
        with np.errstate(invalid="ignore"):
            valid = ~((logits < 0) | (logits > 1))
        if isinstance(counts, np.ndarray):
            valid |= ~(np.expand_dims(counts, spec.axis) if spec.rowwise else counts)
        require_values(logits, valid, "probability", "not in [0, 1] (from_probabilities=True)")


def prepared_call(
    spec: Spec,
    logits: Any,
    targets: Any,
    sample_weight: Any,
    mask: Any,
    denominator: Any,
    out: Any,
    hess: Any,
    vector: Any,
    probabilities: Any,
    want: int,
) -> Any:
    """Run a kernel on arguments that it did not take as they were, or raise."""
    axis = spec.axis
    given = float_array(logits, "logits")
    if spec.rowwise and not -given.ndim <= axis < given.ndim:
        raise ValueError(f"logits of shape {given.shape} have no axis {axis}")
    m = None if mask is None else mask_array(mask, given, spec)
    t = real_array(targets, "targets")
    hint = swapped_hint(logits, t)
    t = softmax_targets(spec, t, given, m, hint) if spec.rowwise else sigmoid_targets(t, given, m, hint)
    if want & WANT_TARGET_GRAD and t.ndim != given.ndim:
        raise ValueError(
            "target_grad needs target probabilities of the shape of the logits, not class indices"
        )
    w = None if sample_weight is None else weight_array(sample_weight, given, spec)
    counts: np.ndarray | bool = True if m is None else m
    if w is not None:
        counts = counts & (w != 0)
    if spec.ignore_index is not None and t.ndim < given.ndim:
        counts = counts & (t != spec.ignore_index)
    require_options(spec, given, counts)
    total = None if denominator is None else divisor(denominator, spec.reduction)
    v = None
    if want & WANT_PRODUCT:
        v = real_array(vector, "v")
        require_shape(v, given.shape, "v", given)
        v = last(v, axis)
    x = last(given, axis)
    inputs = [array for array in (x, t, w, m, v) if array is not None]
    plain: list[np.ndarray | None] = []
    for name, value in (("out", out), ("out", hess), ("probabilities", probabilities)):
        plain.append(None if value is None else require_out(value, given.shape, given.dtype, name))
        if any(
            np.may_share_memory(plain[-1], other)
            for other in plain[:-1]
            if value is not None and other is not None
        ):
            raise ValueError(f"{name} shares memory with another array to write to")
    moved = [None if array is None else last(array, axis) for array in plain]
    g, h, p = buffers = [None if array is None else buffer_for(array, inputs) for array in moved]
    result = spec.kernel(x, t, w, m, total, g, h, v, p, want, spec.options)
    if result is None:
        raise RuntimeError("the kernel refused a call that had been prepared for it")
    for array, buffer in zip(moved, buffers, strict=True):
        if array is not None and buffer is not None and array is not buffer:
            np.copyto(array, buffer)
    return returned(result, want, axis, out, hess)


def returned(result: Any, want: int, axis: int, out: Any, hess: Any) -> Any:
    """What a kernel returned for classes on the last axis, as the caller is to get it."""

    def arranged(value: Any, original: Any) -> Any:
        if original is not None:
            return original
        return None if value is None else back(value, axis)

    if want & WANT_HESS:
        return arranged(result[0], out), arranged(result[1], hess)
    if want & WANT_STATS:
        loss, grad, measures = result
        return loss, arranged(grad, out), measures
    if want & WANT_LOSS:
        return (result[0], arranged(result[1], out)) if want & WANT_GRAD else result
    return arranged(result, out)


def along(kernel: Kernel, axis: int) -> Kernel:
    """The kernel of a softmax loss for classes on another axis than the last."""

    def call(
        logits: Any,
        targets: Any,
        sample_weight: Any,
        mask: Any,
        denominator: Any,
        out: Any,
        hess: Any,
        vector: Any,
        probabilities: Any,
        want: int,
        options: Any,
    ) -> Any:
        ndim = logits.ndim if isinstance(logits, np.ndarray) else 0
        if not -ndim <= axis < ndim:
            return None

        def moved(value: Any) -> Any:
            return last(value, axis) if isinstance(value, np.ndarray) and value.ndim == ndim else value

        result = kernel(
            moved(logits),
            moved(targets),
            sample_weight,
            mask,
            denominator,
            moved(out),
            moved(hess),
            moved(vector),
            moved(probabilities),
            want,
            options,
        )
        return None if result is None else returned(result, want, axis, out, hess)

    return call


def undisturbed(value: Any, outputs: tuple[Any, ...]) -> Any:
    """An input, or a copy where an output overwrites it, for what reads it after the call."""
    if isinstance(value, np.ndarray) and any(
        isinstance(out, np.ndarray) and np.may_share_memory(out, value) for out in outputs
    ):
        return value.copy()
    return value


def stats_of(
    spec: Spec,
    targets: Any,
    sample_weight: Any,
    mask: Any,
    probabilities: np.ndarray | None,
    measures: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Stats:
    """The statistics of a call from what its kernel measured; the call has been found valid."""
    predicted, logsumexp, entropy = measures
    targets = np.asarray(targets)
    if not spec.rowwise:
        right = predicted == (targets > 0.5)
        for counts in (mask, sample_weight):
            if counts is not None:
                keep = np.asarray(counts) != 0
                right &= keep if keep.shape == right.shape else keep[..., np.newaxis]
    else:
        if targets.ndim > predicted.ndim:
            targets = np.argmax(targets, axis=spec.axis)
        right = (predicted == targets) & (predicted >= 0)
    right &= logsumexp == logsumexp
    return Stats(predicted, int(np.count_nonzero(right)), logsumexp, entropy, probabilities)


def prepared_activation(
    kernel: Kernel, value: Any, out: Any, axis: int | None, *, keeps_axis: bool = True
) -> Any:
    """Run an activation along an axis (None: element by element), or raise."""
    x = float_array(value, "x")
    if axis is None:
        moved, shape = x, x.shape
    else:
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"x of shape {x.shape} has no axis {axis}")
        moved = last(x, axis)
        if moved.shape[-1] == 0:
            raise ValueError(f"x of shape {x.shape} is empty along axis {axis}")
        shape = x.shape if keeps_axis else moved.shape[:-1]
    if out is None:
        result = buffer = np.empty_like(x) if keeps_axis else np.empty(shape, x.dtype)
    else:
        result = require_out(out, shape, x.dtype)
        buffer = buffer_for(result, [x])
    if axis is None or not keeps_axis:
        kernel(moved, buffer)
    else:
        kernel(moved, last(buffer, axis))
    if buffer is not result:
        np.copyto(result, buffer)
    return result[()] if out is None else out

"""The input contract in Python: what the kernels can not read as it is, and the wording of every error.

A call takes arrays of any layout as they are (see _kernels/_call.pxi). Anything else comes here to be
converted; and where the kernels find that the arguments do not fit each other, `refuse` says why.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np


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


# ---- conversion -----------------------------------------------------------------------------------


def holds_mask(value: Any, depth: int = 64) -> bool:
    """Whether numpy would drop a mask on the way from a value to an array: lists are looked into."""
    if not isinstance(value, (list, tuple)):
        return isinstance(value, np.ma.MaskedArray)
    for kind in set(map(type, value)):
        if issubclass(kind, (list, tuple, np.ma.MaskedArray)):
            break
    else:
        return False  # nothing but numbers
    for item in value:
        if depth > 0 and holds_mask(item, depth - 1):
            return True
    return False


def require_no_mask(value: Any, name: str) -> None:
    if holds_mask(value):
        raise TypeError(
            f"{name} is a masked array, and its mask would be dropped: pass np.ma.getdata({name}), and say "
            f"to a loss what counts with mask=~np.ma.getmaskarray({name})"
        )


def any_array(value: Any, name: str) -> np.ndarray:
    """The plain array that numpy makes of a value."""
    if type(value) is np.ndarray:
        return value
    require_no_mask(value, name)
    array = np.asanyarray(value)
    require_no_mask(array, name)  # what `__array__` gave
    return np.asarray(array)


def refuse_dtype(array: np.ndarray, name: str) -> NoReturn:
    raise TypeError(f"{name} must hold real numbers, not dtype {array.dtype}")


def readable_dtype(dtype: np.dtype) -> np.dtype | None:
    """The dtype as which the kernels read one of real numbers; None for others."""
    if dtype.name == "bfloat16":
        return dtype.newbyteorder("=")
    if dtype.kind not in "biuf":
        return None
    return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize > 8 else dtype.newbyteorder("=")


def real_array(value: Any, name: str) -> np.ndarray:
    """A plain array of real numbers that the kernels can read."""
    array = any_array(value, name)
    if array.dtype.char in "fd" and array.dtype.isnative and array.flags.aligned:
        return array
    dtype = readable_dtype(array.dtype)
    if dtype is None:
        refuse_dtype(array, name)
    if array.dtype == dtype and array.dtype.isnative and array.flags.aligned:
        return array
    return np.array(array, dtype=dtype)


def mask_array(value: Any) -> np.ndarray:
    array = any_array(value, "mask")
    if array.dtype != np.bool_:
        raise TypeError(f"mask must be bool (True: counts), not dtype {array.dtype}")
    return array if array.flags.aligned else array.copy()


def require_out(out: Any, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
    """`out` as a plain array over the same memory."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, not {type(out).__name__}")
    require_no_mask(out, name)
    plain = np.asarray(out)
    if plain.dtype != dtype or not plain.dtype.isnative:
        raise TypeError(f"{name} has dtype {plain.dtype.str} where the result has {dtype.str}")
    if plain.shape != shape:
        raise ValueError(f"{name} has shape {plain.shape} where the result has {shape}")
    if not plain.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return plain


def number(name: str, value: Any, valid: Callable[[float], bool], demand: str) -> float:
    given = value
    if not isinstance(value, (int, float)):
        given = any_array(value, name)
        if given.ndim or given.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        result = float(given)
    except OverflowError:  # a Python int
        result = math.inf
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


def require_denominator(value: Any, reduction: str) -> float:
    if reduction not in ("mean", "batchmean"):
        raise ValueError(f"denominator replaces the divisor of a mean, but reduction is {reduction!r}")
    return number("denominator", value, lambda x: 0 <= x < math.inf, "not a positive finite number")


def refuse_denominator(value: Any, divisor: float) -> NoReturn:
    raise ValueError(
        f"denominator is {value!r}, not a positive finite number; 0 is for calls in which nothing counts, but "
        f"the divisor here is {divisor:g}"
    )


def shaped(shape: Any) -> np.ndarray:
    """An array of a shape that takes no memory, in the place of logits that are not looked at."""
    try:
        lengths = tuple(operator.index(length) for length in shape)
    except TypeError:
        raise TypeError(f"shape must be that of the logits, a tuple of integers, not {shape!r}") from None
    if any(length < 0 for length in lengths):
        raise ValueError(f"shape is {shape!r}, which has a negative length")
    return np.broadcast_to(np.zeros((), np.float32), lengths)


# ---- labels ---------------------------------------------------------------------------------------


def is_label(targets: np.ndarray, label: int) -> np.ndarray:
    """Where targets of any real dtype are exactly an integer."""
    if targets.dtype.kind in "iu":
        bounds = np.iinfo(targets.dtype)
        if bounds.min <= label <= bounds.max:
            return targets == targets.dtype.type(label)
    elif int(float(label)) == label:
        return as_numbers(targets) == float(label)
    return np.zeros(targets.shape, bool)


def without_label(targets: np.ndarray, label: int, mask: np.ndarray | None) -> np.ndarray:
    """A mask without the rows that have a label; one of the wrong shape stays as it is, to be refused."""
    if mask is not None and mask.shape != targets.shape:
        return mask
    other = ~is_label(targets, label)
    return other if mask is None else other & mask


def as_numbers(array: np.ndarray) -> np.ndarray:
    """As float64; any byte but 0 is True."""
    return (array.view(np.uint8) != 0 if array.dtype.char == "?" else array).astype(np.float64, copy=False)


# ---- refusals -------------------------------------------------------------------------------------


def place_of(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The indices of an element, counted in C order."""
    place: list[int] = []
    for length in reversed(shape):
        index, i = divmod(index, length)
        place.append(i)
    return tuple(reversed(place))


def refuse_value(array: np.ndarray, place: tuple[int, ...], name: str, demand: str) -> NoReturn:
    where = f" at {place[0] if len(place) == 1 else place}" if place else ""
    raise ValueError(f"{name}{where} is {array[place]}, {demand}")


def refuse_axis(shape: tuple[int, ...], axis: int) -> NoReturn:
    if -len(shape) <= axis < len(shape):
        raise ValueError(f"x of shape {shape} is empty along axis {axis}")
    raise ValueError(f"x of shape {shape} has no axis {axis}")


def require_shape(
    array: np.ndarray, shape: tuple[int, ...], name: str, logits: np.ndarray, hint: str = ""
) -> None:
    if array.shape != shape:
        raise ValueError(
            f"{name} has shape {array.shape} where logits of shape {logits.shape} need {shape}{hint}"
        )


def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """What is left of a shape without one of its axes."""
    return shape[:axis] + shape[axis:][1:]


def require_axis(loss: Any, logits: np.ndarray) -> None:
    if not -logits.ndim <= loss._axis < logits.ndim:
        raise ValueError(f"logits of shape {logits.shape} have no axis {loss._axis}")
    if logits.shape[loss._axis] == 0:
        raise ValueError(f"logits of shape {logits.shape} have no classes along axis {loss._axis}")


def require_weight_shape(array: np.ndarray | None, logits: np.ndarray, name: str, loss: Any) -> None:
    """Weights and masks are per row, or per element of a loss by element."""
    rows = without(logits.shape, loss._axis)
    if array is None or (array.shape == rows and logits.ndim):
        return
    if loss._rowwise or array.shape != logits.shape:
        allowed = f"{rows}" if loss._rowwise else f"{rows} or {logits.shape}"
        raise ValueError(
            f"{name} has shape {array.shape} where logits of shape {logits.shape} need {allowed}"
        )


def require_targets_of_rows(loss: Any, targets: np.ndarray, logits: np.ndarray, hint: str) -> None:
    """Class indices, or probabilities."""
    axis, rows = loss._axis, without(logits.shape, loss._axis)
    if targets.ndim < logits.ndim:
        require_shape(targets, rows, "targets (class indices)", logits, hint)
    elif (
        targets.ndim == logits.ndim
        and targets.shape[axis] == 1 < logits.shape[axis]
        and without(targets.shape, axis) == rows
    ):
        indices = "targets[..., 0]" if axis == -1 else f"targets.squeeze({axis})"
        raise ValueError(
            f"targets have shape {targets.shape} where logits of shape {logits.shape} need class indices of "
            f"shape {rows} or probabilities of shape {logits.shape}; for class indices pass {indices}"
        )
    else:
        require_shape(targets, logits.shape, "targets (probabilities)", logits, hint)


def require_option_lengths(loss: Any, logits: np.ndarray) -> None:
    outputs = logits.shape[loss._axis] if logits.ndim else 1
    for name in ("class_weight", "pos_weight"):
        weight = loss._options.get(name)
        if isinstance(weight, tuple) and len(weight) != outputs:
            raise ValueError(
                f"{name} has length {len(weight)} where logits of shape {logits.shape} need {outputs}"
            )


def refuse_shapes(
    loss: Any,
    logits: np.ndarray,
    targets: np.ndarray,
    sample_weight: np.ndarray | None,
    mask: np.ndarray | None,
    vector: np.ndarray | None,
    by_targets: bool,
    integer_logits: bool,
) -> NoReturn:
    """Raise the error that says why the shapes of a call's arguments do not fit each other."""
    hint = ""
    if integer_logits and targets.dtype.kind not in "biu":
        hint = "; integers came first and floats second: the order is (logits, targets)"
    if loss._rowwise:
        require_axis(loss, logits)
        require_targets_of_rows(loss, targets, logits, hint)
        if by_targets and targets.ndim < logits.ndim:
            raise ValueError(
                "target_grad needs target probabilities of the shape of the logits, not class indices"
            )
    else:
        require_shape(targets, logits.shape, "targets", logits, hint)
    require_weight_shape(sample_weight, logits, "sample_weight", loss)
    require_weight_shape(mask, logits, "mask", loss)
    require_option_lengths(loss, logits)
    if vector is not None:
        require_shape(vector, logits.shape, "v", logits)
    raise RuntimeError("an argument was changed during the call")

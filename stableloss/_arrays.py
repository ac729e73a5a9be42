"""The input contract in Python: what the kernels can not read as it is, and the wording of every error.

A call takes arrays of any layout as they are (see _kernels/_call.pxi). Anything else comes here to be
converted; and where the kernels find that the arguments do not fit each other, `refuse` says why.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, Sized
from contextlib import suppress
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
    nested = [kind for kind in set(map(type, value)) if issubclass(kind, (list, tuple, np.ma.MaskedArray))]
    return bool(nested) and depth > 0 and any([holds_mask(item, depth - 1) for item in value])


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
    kind = type(value).__name__
    if isinstance(value, Mapping):
        # by name, the order is that of the class indices, which only the caller knows
        keys = f"range({len(value)})" if set(value) == set(range(len(value))) else "classes"
        raise TypeError(f"{name} is a {kind}, not an array: pass [{name}[c] for c in {keys}]")
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise TypeError(f"{name} is a sparse {kind}: pass {name}.toarray()")
    try:
        array = np.asanyarray(value)
    except (TypeError, RuntimeError) as error:
        tensor = type(value).__module__.partition(".")[0] == "torch"
        hint = "; the losses of stableloss.adapters.torch take tensors" if tensor else ""
        reason = str(error).rstrip(".")
        raise TypeError(f"{name} is a {kind}, of which numpy makes no array: {reason}{hint}") from None
    except ValueError as error:
        raise ValueError(_uneven(value, name) or f"{name}: {error}") from None
    if not array.ndim and array.dtype.kind == "O" and isinstance(value, Iterable):
        if isinstance(value, Set):
            raise TypeError(f"{name} is a {kind}, which has no order: pass a list")
        raise TypeError(f"{name} is a {kind}, not an array: pass list({name})")
    require_no_mask(array, name)  # what `__array__` gave
    return np.asarray(array)


def _uneven(value: Any, name: str) -> str | None:
    """What is wrong with a list that is no array because its rows differ in length."""
    rows = [row for row in value if isinstance(row, Sized)] if isinstance(value, Sequence) else []
    lengths = sorted(set(map(len, rows)))
    if len(lengths) < 2:
        return None
    return (
        f"the rows of {name} have different lengths, such as {lengths[0]} and {lengths[-1]}: pad them, and "
        "say what counts with mask="
    )


def refuse_dtype(value: Any, array: np.ndarray, name: str) -> NoReturn:
    if not array.ndim and array.item() is None:
        raise TypeError(f"{name} is None, not an array")
    demand = f"{name} must hold real numbers, not dtype {array.dtype}"
    items = list(array.flat) if array.dtype.kind == "O" else []
    strings = [x for x in items or array.ravel()[:1].tolist() if isinstance(x, (str, bytes))]
    given = getattr(value, "dtype", array.dtype)
    if strings:
        instead = _instead_of_strings(value, array, items, name)
        raise TypeError(f"{demand} of strings such as {strings[0]!r}{instead}")
    if not isinstance(given, np.dtype):
        demand += f", which numpy makes of {type(value).__name__} of dtype {given}"
    elif items:
        demand += f" (of {', '.join(sorted({type(item).__name__ for item in items}))})"
    raise TypeError(demand + _instead_of_objects(value, array, items, name))


def _instead_of_strings(value: Any, array: np.ndarray, items: list[Any], name: str) -> str:
    if _as_floats(array) is not None:
        return f": pass np.asarray({name}, float)"
    if not array.ndim:
        count = ": pass len(y) / (k * np.bincount(y)), of k classes"
        return count if array.item() == "balanced" and name == "class_weight" else ""
    if hasattr(value, "select_dtypes"):
        return f': pass {name}.select_dtypes("number")'
    if name not in ("targets", "labels"):
        return ""
    mixed = any(not isinstance(item, (str, bytes)) for item in items)
    labels = f"np.asarray({name}, str)" if mixed else name
    return f": for class indices pass np.unique({labels}, return_inverse=True)[1]"


def _instead_of_objects(value: Any, array: np.ndarray, items: list[Any], name: str) -> str:
    if hasattr(value, "notna") and hasattr(value, "to_numpy"):
        present = value.notna().to_numpy()
        if np.count_nonzero(present) < present.size:
            rows = ".all(axis=1)" if array.ndim > 1 else ""
            return f": pass {name}.to_numpy(float, na_value=0), with mask={name}.notna(){rows}"
    elif hasattr(value, "is_null") and hasattr(value, "fill_null"):
        return f": pass {name}.cast(float).fill_null(0), with mask={name}.is_not_null()"
    if items and _as_floats(array) is not None:
        floats = f"np.asarray({name}, float)"
        if not any(item is None for item in items) or name == "logits":
            return f": pass {floats}"
        if name == "sample_weight":
            return f": pass np.nan_to_num({floats})"
        if name == "labels":  # of boosters, where NaN is missing
            return f": pass {floats}"
        return f": pass {floats}, with mask=~np.isnan({floats})" if name == "targets" else ""
    if items and all(hasattr(item, "toarray") for item in items):
        return f": pass np.vstack([row.toarray() for row in {name}])"
    with suppress(TypeError, ValueError):
        if items and np.stack(items).dtype.kind in "biuf":
            return f": pass np.stack({name})"
    return ""


def _as_floats(array: np.ndarray) -> np.ndarray | None:
    try:
        return array.astype(np.float64)
    except MemoryError:
        raise
    except Exception:  # an object's own __float__ may raise anything
        return None


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
        refuse_dtype(value, array, name)
    if array.dtype == dtype and array.dtype.isnative and array.flags.aligned:
        return array
    return np.array(array, dtype=dtype)


def mask_array(value: Any) -> np.ndarray:
    array = any_array(value, "mask")
    if array.dtype != np.bool_:
        if array.dtype.kind not in "iuf":
            nullable = hasattr(value, "to_numpy") and hasattr(value, "notna")
            fix = "mask.to_numpy(bool, na_value=False)" if nullable else "np.asarray(mask, bool)"
            fix = f": pass {fix}" if array.dtype.kind == "O" else ""
            raise TypeError(f"mask must be bool (True: counts) or 0 and 1, not dtype {array.dtype}{fix}")
        valid = (array == 0) | (array == 1)
        if not valid.all():
            place = place_of(int(np.argmin(valid)), array.shape)
            refuse_value(array, place, "mask", "not 0 or 1: pass mask=np.asarray(mask) != 0")
        return np.asarray(array != 0)
    return array if array.flags.aligned else array.copy()


def require_out(
    out: Any, shape: tuple[int, ...], dtype: np.dtype, name: str, widens: bool = False
) -> np.ndarray:
    """`out` as a plain array over the same memory; where it `widens`, half precision also goes to more."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, not {type(out).__name__}")
    require_no_mask(out, name)
    plain = np.asarray(out)
    wider = widens and dtype.itemsize == 2 and plain.dtype in (np.float32, np.float64)
    if (plain.dtype != dtype and not wider) or not plain.dtype.isnative:
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
        f"denominator is {value!r}, not a positive finite number; 0 is for calls in which nothing counts, "
        f"but the divisor here is {divisor:g}"
    )


def multiply_by_power(array: np.ndarray, exponent: int) -> None:
    """Multiply by a power of two, in place; what that leaves nothing of is 0."""
    with np.errstate(under="ignore"):
        array[...] = np.ldexp(array.astype(np.float64), exponent)


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


def is_any_label(targets: np.ndarray, labels: int | tuple[int, ...] | None) -> np.ndarray:
    """Where targets are one of the labels that do not count."""
    found = np.zeros(targets.shape, bool)
    for label in () if labels is None else labels if isinstance(labels, tuple) else (labels,):
        found |= is_label(targets, label)
    return found


def without_labels(loss: Any, targets: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """A mask without what has an ignored label; one of the wrong shape stays as it is, to be refused."""
    # arithmetic on arrays without dimensions returns scalars
    other = np.asarray(~is_any_label(targets, loss._options["ignore_index"]))
    if mask is None:
        return other
    rows = targets.shape if loss._rowwise else without(targets.shape, loss._axis)
    if mask.shape == rows or (mask.ndim and mask.shape == rows[: mask.ndim]):
        spread = per_row(mask, len(rows)) if loss._rowwise else per_element(mask, targets, loss._axis)
        return np.asarray(other & spread)
    return np.asarray(other & mask) if mask.shape == targets.shape else mask


def rounded_to_bounds(array: np.ndarray, highest: float) -> np.ndarray | None:
    """A copy in which what is outside [0, highest] by at most 16 eps is the bound; None where nothing is."""
    if array.dtype.kind in "biu":
        return None
    reach = 16 * (2.0**-7 if array.dtype.name == "bfloat16" else float(np.finfo(array.dtype).eps))
    values = as_numbers(array)
    below, above = (values < 0) & (values >= -reach), (values > highest) & (values <= highest + reach)
    # not any(): numpy loses a failed allocation in its reductions
    if not (np.count_nonzero(below) or np.count_nonzero(above)):
        return None
    rounded = array.copy(order="K")
    rounded[below] = 0
    rounded[above] = highest
    return rounded


def as_numbers(array: np.ndarray) -> np.ndarray:
    """As float64; any byte but 0 is True."""
    return (array.view(np.uint8) != 0 if array.dtype.char == "?" else array).astype(np.float64, copy=False)


# ---- several axes ---------------------------------------------------------------------------------


def over_axes(
    activation: Callable[..., Any],
    x: Any,
    axis: Any,
    out: Any,
    keepdims: bool = False,
    reduces: bool = False,
) -> Any:
    """An activation over several axes (None: all) as if they were one; `reduces`: the result lacks them."""
    array = real_array(x, "x")
    given = range(array.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = [index("axis", a) for a in given]
    for a in axes or [-1]:
        if not -array.ndim <= a < array.ndim:
            refuse_axis(array.shape, a)
    axes = [a % array.ndim for a in axes]
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"axis is {axis}, which names {'an axis twice' if axes else 'no axis'}")
    last = list(range(-len(axes), 0))
    moved = np.moveaxis(array, axes, last)
    lead = moved.shape[: moved.ndim - len(axes)]
    result = activation(moved.reshape((*lead, math.prod(moved.shape[len(lead) :]))))
    if not reduces:
        result = np.moveaxis(result.reshape(moved.shape), last, axes)
    elif keepdims:
        result = np.expand_dims(result, tuple(axes))
    if out is None:
        return result
    np.copyto(require_out(out, np.shape(result), result.dtype, "out"), result)
    return out


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
    value = array[place]
    hint = ""
    # no reduction but count_nonzero, as above
    if name in ("class index", "target", "target probability") and value != value:
        hint = "; what has no target is left out with mask="
    elif name == "target probability" and value < 0:
        hint = "; a weight of the row that has a sign is its sample_weight"
    elif name == "class index" and f"({value:.0f} classes)" in demand:
        if not np.count_nonzero(as_numbers(array) < 1):
            hint = "; labels that count from 1 are passed as np.asarray(targets) - 1"
    elif name == "target" and value == 255 and np.count_nonzero(array % 255 == 0) == array.size:
        hint = "; pixels of 0 and 255 are passed as np.asarray(targets) / 255"
    raise ValueError(f"{name}{where} is {value}, {demand}{hint}")


def refuse_missing(loss: Any, name: str, **given: Any) -> NoReturn:
    """Raise what Python raises of a function that lacks arguments; `...` stands for those."""
    missing = [repr(argument) for argument, value in given.items() if value is ...]
    named = " and ".join(missing) if len(missing) < 3 else f"{', '.join(missing[:-1])}, and {missing[-1]}"
    name = name if loss is None else f"{type(loss).__name__}.{name}"
    count = f"{len(missing)} required positional argument{'s' if len(missing) > 1 else ''}"
    raise TypeError(f"{name}() missing {count}: {named}")


def refuse_weights(shape: tuple[int, ...], name: str) -> NoReturn:
    """Weights of classes or outputs whose shape is not that of one per class."""
    fix = ""
    if math.prod(shape) == max(shape, default=0) > 0:
        fix = f": pass np.ravel({name})"
    elif not shape:
        fix = f": for one weight of all pass np.full(k, {name})"
    elif len(shape) == 2:
        fix = "; weights of rows are passed as sample_weight, to each call"
    raise ValueError(f"{name} has shape {shape} where k classes need (k,), one number per class{fix}")


def refuse_total(total: float, exponent: int) -> NoReturn:
    scale = f" * 2**{exponent}" if exponent else ""
    raise ValueError(
        f"sample_weight adds up to {total:g}{scale} over the rows that count, which can not divide a mean: "
        'use reduction="sum", or pass denominator='
    )


def sign_hint(targets: np.ndarray, halved: str) -> str:
    """What is added to a refusal of labels that are -1 and 1."""
    values = as_numbers(targets)
    signs = bool(((values == 1) | (values == -1)).all())
    return f"; labels of -1 and 1 are passed as (np.asarray(targets) + 1) {halved} 2" if signs else ""


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


def require_rows(array: np.ndarray, logits: np.ndarray, axis: int, name: str) -> np.ndarray:
    """That an array has one value per row."""
    rows = without(logits.shape, axis)
    if array.shape != rows:
        raise ValueError(
            f"{name} has shape {array.shape} where a shard of shape {logits.shape} has rows of {rows}"
        )
    return array


def per_row(array: np.ndarray, ndim: int) -> np.ndarray:
    """What is given for the first of the dimensions of the rows, as what can be broadcast against them."""
    return array.reshape(array.shape + (1,) * (ndim - array.ndim))


def per_element(array: np.ndarray, logits: np.ndarray, axis: int) -> np.ndarray:
    """What is given per row, as what can be broadcast against the logits."""
    return array if array.ndim == logits.ndim else np.expand_dims(per_row(array, logits.ndim - 1), axis)


def require_axis(loss: Any, logits: np.ndarray) -> None:
    if not -logits.ndim <= loss._axis < logits.ndim:
        raise ValueError(f"logits of shape {logits.shape} have no axis {loss._axis}")
    if loss._rowwise and logits.shape[loss._axis] == 0:
        raise ValueError(f"logits of shape {logits.shape} have no classes along axis {loss._axis}")


def require_weight_shape(array: np.ndarray | None, logits: np.ndarray, name: str, loss: Any) -> None:
    """Weights and masks are per row, for the first of the dimensions of the rows, or per element of a loss by
    element."""
    rows = without(logits.shape, loss._axis)
    if array is None:
        return
    if logits.ndim and (array.shape == rows or (array.ndim and array.shape == rows[: array.ndim])):
        return
    if loss._rowwise or array.shape != logits.shape:
        allowed = f"{rows}" if loss._rowwise else f"{rows} or {logits.shape}"
        first = f", or for the first of the rows' dimensions {rows[:1]}" if len(rows) > 1 else ""
        if not array.ndim:
            first += f"; for one number of all pass np.full({rows}, {name})"
        elif [n for n in array.shape if n != 1] == [n for n in rows if n != 1]:
            first += f"; pass np.reshape({name}, {rows})"
        raise ValueError(
            f"{name} has shape {array.shape} where logits of shape {logits.shape} need {allowed}{first}"
        )


def _on_axis(loss: Any, axis: int) -> str:
    return f"; for classes on axis {axis} take {type(loss).__name__}(axis={axis})"


def require_targets_of_rows(loss: Any, targets: np.ndarray, logits: np.ndarray, hint: str) -> None:
    """Class indices, or probabilities."""
    axis, rows = loss._axis, without(logits.shape, loss._axis)
    if targets.ndim < logits.ndim:
        fitting = [a for a in range(logits.ndim) if without(logits.shape, a) == targets.shape]
        if fitting and targets.shape != rows:
            hint += _on_axis(loss, fitting[0])
        elif not targets.ndim:
            hint += f"; for one label of all pass np.full({rows}, targets)"
        elif targets.ndim == 1 and targets.size == math.prod(rows):
            hint += f"; pass np.reshape(targets, {rows})"
        require_shape(targets, rows, "targets (class indices)", logits, hint)
    elif (
        targets.ndim == logits.ndim
        and targets.shape[axis] == 1 < logits.shape[axis]
        and without(targets.shape, axis) == rows
    ):
        raise ValueError(
            f"targets have shape {targets.shape} where logits of shape {logits.shape} need class indices of "
            f"shape {rows} or probabilities of shape {logits.shape}; for class indices pass "
            f"np.reshape(targets, {rows})"
        )
    else:
        if targets.ndim == logits.ndim and [n for n in targets.shape if n != 1] == [
            n for n in rows if n != 1
        ]:
            hint += f"; for class indices pass np.reshape(targets, {rows})"
        require_shape(targets, logits.shape, "targets (probabilities)", logits, hint)


def require_targets_of_elements(targets: np.ndarray, logits: np.ndarray, hint: str) -> None:
    if targets.ndim == 0 < logits.ndim:
        hint += f"; for one target of all pass np.full({logits.shape}, targets)"
    elif [n for n in targets.shape if n != 1] == [n for n in logits.shape if n != 1]:
        hint += f"; pass np.reshape(targets, {logits.shape})"
    elif targets.dtype.kind in "iu" and targets.shape == logits.shape[:-1]:
        k = logits.shape[-1]
        hint += f"; for classes that exclude each other pass np.eye({k})[targets], or take a softmax loss"
    require_shape(targets, logits.shape, "targets", logits, hint)


def require_option_lengths(loss: Any, logits: np.ndarray) -> None:
    outputs = logits.shape[loss._axis] if logits.ndim else 1
    for name in ("class_weight", "pos_weight"):
        weight = loss._options.get(name)
        one = not loss._rowwise and logits.ndim == 1 and isinstance(weight, tuple) and len(weight) == 1
        if isinstance(weight, tuple) and len(weight) != outputs and not one:
            fitting = [a for a, n in enumerate(logits.shape) if n == len(weight)]
            hint = _on_axis(loss, fitting[0]) if fitting else ""
            if len(weight) == 1:
                hint = f"; for one weight of all pass np.full({outputs}, {weight[0]:g})"
            raise ValueError(
                f"{name} has length {len(weight)} where logits of shape {logits.shape} need {outputs}{hint}"
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
        if loss._axis != -1:
            require_axis(loss, logits)
        require_targets_of_elements(targets, logits, hint)
    require_weight_shape(sample_weight, logits, "sample_weight", loss)
    require_weight_shape(mask, logits, "mask", loss)
    require_option_lengths(loss, logits)
    if vector is not None:
        require_shape(vector, logits.shape, "v", logits)
    raise RuntimeError("an argument was changed during the call")

"""The wrong calls that fuzz.py makes: each kind spoils a right one.

A kind returns the errors that have to come, EITHER where a result is as good, or None where it has nothing
to spoil.
"""

import math
from typing import Any

import bits
import fuzz_calls
import numpy as np

NAN, INF = math.nan, math.inf
EITHER = (TypeError, ValueError, None)
WRONG = (TypeError, ValueError)

JUNK: list[Any] = [
    None, "a", b"b", "1", 1j, object(), {}, {1}, [], [[]], [1, [2, 3]], [None], ["a"], NAN, INF, -INF, -1,
    2**64, 10**400, -(10**400), 1.5, True, np.float16(2), int, len, ..., slice(2), range(3),
    memoryview(b"abcd"), bytearray(b"abcd"), np.array("a"), np.array([1j]), np.array([None]),
    np.array(["2020"], "datetime64[D]"), np.zeros((2, 2), "V4"), np.zeros(3, [("a", "f4")]), np.zeros(0),
    np.zeros((2, 3, 4, 5)),
]  # fmt: skip


class Mutating(int):
    """A number that changes an array when it is looked at."""

    array: np.ndarray

    def __float__(self):
        self.array[...] = 113 if self.array.dtype.kind != "f" else 1e9
        return 3.0

    def __index__(self):
        return int(float(self))


def somewhere(r, array):
    return tuple(r.randrange(n) for n in array.shape)


def cast_to(array, value):
    """A number in the dtype of the array, or None where that has no such number."""
    try:
        with np.errstate(all="ignore"):
            return array.dtype.type(value)
    except OverflowError:
        return None


# ---- of losses -----------------------------------------------------------------------------------


def class_index(r, call):
    targets = call.writable("targets")
    if targets is None or targets.ndim == len(call.shape) or "mask" in call.given:
        return None
    values = [call.k, -1, call.k + 7, 2**31, -(2**31), 2**62, -(2**63), NAN, INF, -INF, 0.5, -0.25, 1e30]
    if targets.dtype.kind in "biu":
        values = values[:7]
    bad = cast_to(targets, r.choice([value for value in values if value not in call.labels]))
    if bad is None or (0 <= bad < call.k and bad == math.floor(bad)):
        return None
    targets[somewhere(r, targets)] = bad
    return ValueError


def dense_target(r, call):
    targets = call.writable("targets")
    if targets is None or targets.ndim != len(call.shape) or "mask" in call.given or targets.dtype == bool:
        return None
    bad = [] if targets.dtype.kind == "u" else [-1]
    if targets.dtype.kind not in "iu":
        bad += [-0.25, NAN, INF, -INF]
    if not call.by_rows:
        bad += [2] if bits.target_max(call.name) < 2 else []
        bad = [value for value in bad if value not in call.labels]
    if not bad:
        return None
    targets[somewhere(r, targets)] = targets.dtype.type(r.choice(bad))
    return ValueError


def weight(r, call):
    array = call.writable("sample_weight")
    if array is None or array.dtype.kind in "biu" or not math.prod(call.units):
        return None
    array[somewhere(r, array)] = r.choice((NAN, INF, -INF))
    return ValueError


def total_of_weights(r, call):
    """What a mean would divide by is negative."""
    divides = call.by_rows and call.reduction == "mean" and call.method != "grad_and_hess"
    weight, counts = -np.ones(call.units), np.ones(call.units, bool)
    if not divides or "denominator" in call.given or "mask" in call.given:
        return None
    if call.ignores(call.plain["targets"]).any() or call.total(weight, counts, call.plain["targets"]) >= 0:
        return None
    call.given["sample_weight"] = weight
    return ValueError


def probability(r, call):
    """Where it counts."""
    logits = call.writable("logits")
    if not call.options.get("from_probabilities") or logits is None or logits.dtype.kind in "bu":
        return None
    if "mask" in call.given or "sample_weight" in call.given or call.ignores(call.plain["targets"]).any():
        return None
    logits[somewhere(r, logits)] = logits.dtype.type(r.choice((-1, 2, -3)))
    return ValueError


def shape(r, call):
    """One argument has a dimension or elements too many or too few."""
    names = ("targets", "sample_weight", "mask", "v", "out", "probabilities")
    names = [name for name in names if isinstance(call.given.get(name), np.ndarray)]
    if not names or not call.shape:
        return None
    name = r.choice(names)
    right = call.given[name].shape
    wrong = r.choice(
        ((*right, 1), (*right, 2), (1, *right), right[1:], tuple(n + 1 for n in right), right[::-1])
    )
    # the other shape that it may have, and that of weights for several rows
    rows = call.shape[:-1]
    prefix = name in ("sample_weight", "mask") and wrong and wrong == rows[: len(wrong)]
    if prefix or wrong in (right, call.given_shape, rows):
        return None
    dtype = {"mask": np.dtype(bool), "targets": np.dtype(np.int64)}.get(name, call.dtype)
    call.given[name] = np.zeros(wrong, dtype)
    return ValueError


def output(r, call):
    """An array that the result cannot be written to."""
    names = [name for name in ("out", "probabilities") if name in call.takes]
    if not names or not math.prod(call.shape):
        return None
    name, array = r.choice(names), call.memory.output(call.given_shape, call.dtype)
    kind = r.choice(("dtype", "read-only", "list", "swapped"))
    if kind == "dtype":
        array = array.astype(
            r.choice((np.int32, np.complex64, np.float32 if call.dtype == np.float64 else np.int8))
        )
    elif kind == "read-only":
        array.flags.writeable = False
    elif kind == "list":
        array = array.tolist()
    elif call.dtype.itemsize == 2:
        return None
    else:
        array = array.astype(call.dtype.newbyteorder())
    if name == "probabilities":
        call.given |= {"with_stats": True, "probabilities": array}
    else:
        call.given["out"] = (
            r.choice(((array, None), (None, array))) if call.method == "grad_and_hess" else array
        )
    return ValueError if kind == "read-only" else TypeError


def same_output_twice(r, call):
    array = call.memory.output(call.given_shape, call.dtype)
    if call.method == "grad_and_hess" and array.size:
        call.given["out"] = array, array
    elif call.method == "value_and_grad" and array.size and "with_stats" in call.takes:
        call.given |= {"with_stats": True, "out": array, "probabilities": array}
    else:
        return None
    return ValueError


def pair_of_outputs(r, call):
    if call.method != "grad_and_hess":
        return None
    array = call.memory.output(call.given_shape, call.dtype)
    call.given["out"] = r.choice(((array,), (array, None, None), "out", {1: 2}, (1, 2)))
    return WRONG


def junk_argument(r, call):
    """Anything in place of anything: some of it may be right where it stands."""
    call.given[r.choice([*call.given, *call.takes])] = r.choice(JUNK)
    return EITHER


def junk_option(r, call):
    """Of this loss, or one that another one has."""
    name = r.choice(list(fuzz_calls.OPTIONS))
    call.options[name] = r.choice(JUNK)
    return EITHER if name in fuzz_calls.DEFAULTS[call.name] else TypeError


def option_for_shape(r, call):
    """One that does not fit these logits."""
    names = [n for n in ("class_weight", "pos_weight", "axis") if n in fuzz_calls.DEFAULTS[call.name]]
    if not names or not call.shape:
        return None
    name, ndim = r.choice(names), len(call.shape)
    wrong_axis = (ndim, -ndim - 1, 99, -(2**63))
    call.options[name] = r.choice(wrong_axis) if name == "axis" else np.ones(call.k + r.choice((1, 2)))
    return ValueError


def denominator(r, call):
    if "denominator" not in call.takes:
        return None
    call.given["denominator"] = r.choice(
        (-1, -2.5, NAN, INF, -INF, "3", [1.0, 2.0], 1j, object(), 10**400, np.zeros(2), np.array("a"))
    )
    return WRONG


def denominator_without_a_mean(r, call):
    if "denominator" not in call.takes or call.reduction in ("mean", "batchmean"):
        return None
    call.given["denominator"] = r.choice((1, 2.0))
    return ValueError


def dtype(r, call):
    name = r.choice([name for name in ("logits", "targets", "sample_weight", "v") if name in call.plain])
    kind = r.choice(
        ("complex64", "complex128", "object", "U3", "S3", "datetime64[s]", "timedelta64[s]", "V4")
    )
    array = np.ones(call.plain[name].shape, np.int64)
    call.given[name] = call.moved(array.astype(kind) if kind != "V4" else np.zeros(array.shape, kind))
    return TypeError


def mask(r, call):
    if not math.prod(call.units):
        return None
    call.given["mask"] = np.full(call.units, r.choice((0.5, 7)), r.choice((np.float64, object, complex)))
    return WRONG


def arguments(r, call):
    """One that there is not, or is missing, or positional."""
    kind = r.choice(("unknown", "missing", "probabilities alone"))
    if kind == "probabilities alone":
        if "probabilities" not in call.takes:
            return None
        call.given.pop("with_stats", None)
        call.given["probabilities"] = np.empty(call.given_shape, call.dtype)
        return ValueError
    if kind == "unknown":
        call.given["weights"] = None
    else:
        del call.given[r.choice(("logits", "targets"))]
    return TypeError


def indices_for_target_grad(r, call):
    if call.method != "target_grad" or not call.by_rows:
        return None
    call.given["targets"] = np.zeros(call.shape[:-1], np.int64)
    return ValueError


def masked_array(r, call):
    """What is masked must not be taken for a number silently."""
    names = ("logits", "targets", "sample_weight", "mask", "v")
    name = r.choice([name for name in names if name in call.plain])
    call.given[name] = np.ma.masked_array(call.moved(np.array(call.plain[name])), mask=False)
    return TypeError


def changes_meanwhile(r, call):
    """An argument whose conversion changes the targets: a result or an error, but nothing out of bounds."""
    targets = call.writable("targets")
    if targets is None or targets.dtype == bool or "denominator" not in call.takes:
        return None
    call.given["denominator"] = number = Mutating(3)
    number.array = targets
    return EITHER


OF_LOSSES = (
    class_index, dense_target, weight, total_of_weights, probability, shape, output, same_output_twice,
    pair_of_outputs, junk_argument, junk_option, option_for_shape, denominator, denominator_without_a_mean,
    dtype, mask, arguments, indices_for_target_grad, masked_array, changes_meanwhile,
)  # fmt: skip


# ---- of activations ------------------------------------------------------------------------------


def junk_x(r, call):
    call.given["x"] = r.choice(JUNK)
    return EITHER


def junk_axis(r, call):
    # None is all axes
    call.given["axis"] = r.choice((*(junk for junk in JUNK if junk is not None), 99, -99))
    return EITHER if call.by_rows else TypeError


def axis_of_no_logits(r, call):
    if not call.by_rows:
        return None
    call.given["axis"] = r.choice((len(call.shape), -len(call.shape) - 1))
    return ValueError


def out_that_cannot_be_used(r, call):
    right = call.result_shape
    array = call.memory.output(right, call.dtype)
    kind = r.choice(("shape", "dtype", "read-only", "junk"))
    if kind == "shape":
        array = np.empty((*right, 2), call.dtype)
    elif kind == "dtype":
        array = np.empty(right, r.choice((np.int32, np.complex64, bool)))
    elif kind == "read-only":
        array.flags.writeable = False
    else:
        array = r.choice([junk for junk in JUNK if junk is not None])
    call.given["out"] = array
    return {"shape": ValueError, "read-only": ValueError, "dtype": TypeError, "junk": WRONG}[kind]


OF_ACTIVATIONS = (junk_x, junk_axis, axis_of_no_logits, out_that_cannot_be_used)

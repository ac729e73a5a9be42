"""The right calls that fuzz.py makes: what is called, with which options, and arrays of every kind.

A call holds its arguments twice: `given`, as a caller might have them, in memory between guard pages and
in any layout and dtype; and `plain`, the contiguous arrays with the classes last that they stand for.
"""

import inspect
import math
import random
import tempfile
from collections.abc import Callable
from typing import Any

import bits
import numpy as np
import oracle
from guards import Arena, strided

import stableloss as sl

try:
    from ml_dtypes import bfloat16
except ImportError:
    HALF = [np.dtype(np.float16)]
else:
    HALF = [np.dtype(np.float16), np.dtype(bfloat16)]

NAN, INF = math.nan, math.inf
# logits from which a call is sure to be shared out among threads
LARGE = 300_000


# ---- random choices ------------------------------------------------------------------------------


class Draw(random.Random):
    """The choices of one call; arrays are cut out of pools of random numbers that the seed alone makes."""

    def __new__(cls, *arguments):
        return super().__new__(cls)  # CPython 3.10's takes but one

    def __init__(self, seed, number, skip=()):
        super().__init__((seed << 40) + number)
        self.pools, self.skip = pools(seed), skip

    def chance(self, p):
        return self.random() < p

    def weighted(self, table):
        """One of the keys of a dict of weights."""
        at, total = self.random() * sum(table.values()), 0
        for key, weight in table.items():
            total += weight
            if at < total:
                return key
        raise AssertionError("random() is below 1")

    def cut(self, name, shape):
        pool, size = self.pools[name], math.prod(shape)
        start = self.randrange(len(pool))
        if start + size <= len(pool):
            return pool[start : start + size].reshape(shape)
        return np.resize(np.roll(pool, -start), shape)

    def normal(self, shape):
        return self.cut("normal", shape)

    def between_0_and_1(self, shape):
        return self.cut("uniform", shape)

    def integers(self, high, shape):
        return np.asarray(self.between_0_and_1(shape) * high).astype(np.int64)


POOLS: dict[int, dict[str, np.ndarray]] = {}


def pools(seed):
    if seed not in POOLS:
        rng = np.random.default_rng(seed)
        POOLS[seed] = {
            "normal": rng.normal(size=1 << 15),
            "uniform": rng.random(1 << 15),
            "bits": rng.integers(0, 2**64, 1 << 15, dtype=np.uint64),
        }
    return POOLS[seed]


# ---- dtypes --------------------------------------------------------------------------------------

INTEGERS = [np.dtype(name) for name in ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]]
FLOATS = [np.dtype(name) for name in ("f4", "f8", "g")] + HALF
REAL = [np.dtype(bool), *INTEGERS, *FLOATS]
# what a list of Python's numbers holds as well, and rounds its numbers no coarser
LISTED = [np.dtype(bool), *INTEGERS, np.dtype("f8")]
OF_LOGITS = {
    np.dtype("f4"): 40,
    np.dtype("f8"): 32,
    **dict.fromkeys([*HALF, np.dtype("g")], 5),
    **dict.fromkeys([np.dtype(bool), *INTEGERS], 1),
}


def result_dtype(dtype):
    """Of derivatives and activations, for logits of that dtype."""
    return dtype if dtype == np.float32 or dtype in HALF else np.dtype(np.float64)


def holds(dtype, whole):
    """Whether an integer is a number of the dtype, and so are those around it."""
    if dtype.kind == "b":
        return whole in (0, 1)
    if dtype.kind in "iu":
        return np.iinfo(dtype).min <= whole <= np.iinfo(dtype).max
    return abs(whole) <= 2 ** min(52, oracle.finfo(dtype).nmant)


def is_label(targets, label):
    """Where targets are exactly that integer."""
    if targets.dtype.kind in "iu" and not holds(targets.dtype, label):
        return np.zeros(targets.shape, bool)
    if targets.dtype.kind in "iu":
        return np.asarray(targets == targets.dtype.type(label))
    return np.asarray((targets.astype(np.float64) == float(label)) & (int(float(label)) == label))


def beyond_bounds(r, values, highest):
    """At times, what is 0 or the highest by a few eps beyond: rounding, which counts as the bound."""
    if values.dtype.kind in "biu" or r.chance(0.9):
        return values
    eps = values.dtype.type(8) * values.dtype.type(oracle.finfo(values.dtype).eps)
    values = np.where(values == highest, values.dtype.type(highest) + eps, values)
    return np.where(values == 0, -eps, values)


def cast(values, dtype):
    """Values in a dtype, those that it does not hold at its ends."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        # the largest float64 that the integer type holds
        top = float(info.max) if dtype.itemsize < 8 else np.nextafter(float(info.max), 0)
        values = np.clip(np.nan_to_num(np.rint(values)), float(info.min), top)
    return np.asarray(values).astype(dtype)


# ---- arrays as callers have them -----------------------------------------------------------------


class Sub(np.ndarray):
    """A subclass that adds nothing."""


class Interface:
    """An object that is an array to numpy alone."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


FLAVOURS = {
    "plain": 60, "read-only": 5, "subclass": 3, "byte-swapped": 4, "misaligned": 5, "list": 3, "tuple": 1,
    "interface": 2, "memory-mapped": 1, "odd-bool": 2,
}  # fmt: skip
SMALL_ARENA, LARGE_ARENA = Arena(24, 1 << 18), Arena(10, 24 << 20)


class Memory:
    """The blocks that the arrays of one call lie in."""

    def __init__(self, r):
        self.r, self.blocks = r, []

    def empty(self, shape, dtype, misaligned=False, constant=()):
        """An array of any strides, 0 along the axes that are `constant`."""
        if math.prod(shape) == 0:
            return np.empty(shape, dtype)
        r, axes = self.r, range(len(shape))
        kind = r.weighted({"C": 55, "F": 12, "any": 33})
        order = list(axes) if kind == "F" else list(axes)[::-1]
        steps, backwards = [1] * len(shape), []
        if kind == "any":
            r.shuffle(order)
            backwards = [axis for axis in axes if r.chance(0.3)]
            if math.prod(shape) < LARGE // 4:
                steps = [r.choice((1, 1, 2, 3)) for _ in axes]
        for axis in constant:
            steps[axis] = 0
        strides, origin, span = strided(shape, dtype.itemsize, order, steps, backwards)
        if span + 256 > LARGE_ARENA.size:
            strides, origin, span = strided(
                shape, dtype.itemsize, order, [min(step, 1) for step in steps], backwards
            )
        arena = SMALL_ARENA if span + 256 <= SMALL_ARENA.size else LARGE_ARENA
        block = arena.block(span, r.chance(0.6), int(misaligned))
        self.blocks.append(block)
        return block.array(shape, dtype, strides, origin)

    def output(self, shape, dtype):
        array = self.empty(shape, dtype, self.r.chance(0.1))
        array[...] = 7
        return array.view(Sub) if self.r.chance(0.05) else array

    def given(self, values, flavour=None):
        """Values as a caller might hold them, and the plain array that they stand for."""
        flavour = flavour or self.r.weighted(FLAVOURS)
        flavour = "plain" if flavour in self.r.skip else flavour
        if flavour in ("list", "tuple") and values.dtype in LISTED and 0 < values.size < 500:
            items = values.tolist()
            if flavour == "tuple" and values.ndim:
                items = tuple(tuple(item) if isinstance(item, list) else item for item in items)
            plain = np.asarray(items)
            # small integers beside some beyond int64 are floats to numpy
            if plain.dtype.kind != "f" or values.dtype.kind == "f":
                return items, plain
        if flavour == "memory-mapped" and values.size and values.ndim:
            return self.memory_mapped(values), values
        swaps = flavour == "byte-swapped" and values.dtype.itemsize > 1 and values.dtype not in HALF[1:]
        dtype = values.dtype.newbyteorder() if swaps else values.dtype
        constant = [axis for axis, n in enumerate(values.shape) if n > 1 and values.strides[axis] == 0]
        array = self.empty(values.shape, dtype, flavour == "misaligned", constant)
        array[...] = values
        if flavour == "odd-bool" and values.dtype == bool:
            array.view(np.uint8)[...] = np.where(values, self.r.choice((2, 128, 255)), 0)
        array = array.view(Sub) if flavour == "subclass" else array
        if flavour == "read-only":
            array.flags.writeable = False
        return (Interface(array) if flavour == "interface" else array), values

    def memory_mapped(self, values):
        with tempfile.TemporaryFile() as file:
            array = np.memmap(file, values.dtype, "w+", shape=values.shape)
        array[...] = values
        return array

    def remember(self):
        for block in self.blocks:
            block.remember()


def sometimes_constant(r, values):
    """The same along an axis, and in memory once."""
    if values.size and values.ndim and r.chance(0.04):
        return np.broadcast_to(values.take([0], r.randrange(values.ndim)), values.shape)
    return values


# ---- values --------------------------------------------------------------------------------------

SIZES = {
    1: 5, 2: 10, 3: 12, 4: 8, 5: 8, 7: 4, 8: 5, 10: 12, 16: 4, 31: 3, 32: 4, 33: 4, 40: 3, 64: 3, 65: 3,
    100: 3, 127: 2, 128: 2, 129: 3, 160: 2, 300: 2, 513: 1, 1000: 1, 2049: 1, 4100: 1,
}  # fmt: skip
ROWS = {1: 12, 2: 8, 3: 10, 5: 10, 8: 6, 13: 5, 31: 4, 32: 4, 33: 5, 40: 4, 65: 3, 100: 2, 0: 2}


def draw_shape(r, by_rows, large):
    """Of logits, with the classes (or outputs) last."""
    if not by_rows and r.chance(0.03):
        return ()
    k = r.weighted(SIZES)
    if large:
        return (-(-LARGE // k), k)
    lead = r.weighted({0: 8, 1: 60, 2: 22, 3: 10})
    rows = [r.choice((1, 2, 3, 4)) for _ in range(lead)]
    if rows:
        rows[0] = min(r.weighted(ROWS), max(1, 6000 // (k * math.prod(rows[1:]))))
        r.shuffle(rows)
    return (*rows, k)


KINDS = {"ordinary": 40, "ties": 10, "confident": 20, "spread": 10, "offset": 8, "bits": 6, "huge": 6}


def logit_values(r, shape, dtype):
    """float64 numbers of every kind, infinities and NaN at times."""
    rows = (*shape[:-1], 1) if shape else ()
    kind = r.weighted(KINDS)
    if kind == "ties":
        x = np.rint(r.normal(shape) * 1.5) * 20.5
    elif kind == "spread":
        x = (r.between_0_and_1(shape) - 0.5) * (220 if dtype == np.float32 else 1520)
    elif kind == "huge":
        x = (r.between_0_and_1(shape) - 0.5) * (6e38 if dtype == np.float32 else 3e308)
    elif kind == "bits":
        x = r.cut("bits", shape).view(np.float64)
        x = np.where(np.isfinite(x), x, 1.0)
    else:
        x = r.normal(shape) * r.choice((0.1, 3, 3, 30))
    if kind == "offset":
        x = x + (r.between_0_and_1(rows) - 0.5) * 10.0 ** r.uniform(0, 30)
    if kind == "confident" and shape:
        lead = np.arange(shape[-1]) == r.integers(shape[-1], rows)
        x = np.where(lead, x + r.choice((5.0, 18.0, 40.0, 90.0, 400.0, 740.0)), x)
    if r.chance(0.15):
        special = r.choice((NAN, INF, -INF, 0.0, -0.0, 5e-324))
        x = np.where(r.between_0_and_1(shape) < r.choice((0.02, 0.3)), special, x)
        if r.chance(0.3):
            x = np.where(r.between_0_and_1(rows) < 0.1, r.choice((NAN, INF, -INF, 7.0)), x)
    return x


def probability_values(r, shape):
    x = r.between_0_and_1(shape)
    if shape and r.chance(0.6):
        x = np.minimum(x / np.maximum(x.sum(axis=-1, keepdims=True), 1e-3), 1)
    if r.chance(0.4):
        x = np.where(r.between_0_and_1(shape) < 0.2, r.choice((0.0, 1.0, 1e-310, 1e-40, 0.5)), x)
    return x


def weight_values(r, shape, dtype):
    """Of few digits, so that every dtype holds them; negative, very large or very small at times."""
    w = np.take([0, 0.25, 0.5, 1, 1.5, 2, 3, 7], r.integers(8, shape))
    if dtype.kind not in "bu" and r.chance(0.25):
        w = np.where(r.between_0_and_1(shape) < r.choice((0.1, 0.5)), -w, w)
    if dtype.kind in "biu":
        return np.rint(w)
    if dtype.itemsize > 2 and r.chance(0.1):
        w = w * 2.0 ** r.choice((-60, 60) if dtype.itemsize == 4 else (-300, -60, 60, 300))
    return w if r.chance(0.95) else w * 0


# ---- options and arguments, by name --------------------------------------------------------------


def class_weights(r, k):
    """One number for each class, some 0, in whatever holds them."""
    values = np.where(r.between_0_and_1((k,)) < 0.2, 0, r.between_0_and_1((k,)) * 4)
    return r.choice((values, values.tolist(), tuple(values.tolist()), values.astype(np.float32)))


def output_weights(r, call):
    """Logits of shape (n,) also take the weight of a single output."""
    return class_weights(r, 1 if len(call.shape) == 1 and not call.by_rows and r.chance(0.5) else call.k)


def labels(r, call):
    """None, one, or several, of classes and of what none is."""
    some = (r.randrange(call.k), -1, 255, -(2**63), 2**64 - 1, -100, 0)
    return r.choice((None, *some, (r.choice(some),), tuple(r.sample(some, 2)), [r.choice(some)]))


def exponents(r, call):
    pair = (r.choice((0, 0.5, 2)), r.choice((0, 1, 3.0)))
    return r.choice((0.25, 0.5, 1, 2.0, 5, *([] if call.by_rows else [pair, list(pair)])))


# Values that are not the default.
OPTIONS: dict[str, Callable] = {
    "reduction": lambda r, call: r.choice(("sum", "batchmean", "none")),
    "class_weight": output_weights,
    "pos_weight": lambda r, call: r.choice((3.5, 0, 1, np.float32(0.25), *[output_weights(r, call)] * 4)),
    "ignore_index": labels,
    "label_smoothing": lambda r, call: r.choice((0.1, 0.5, 0.99)),
    "focal_gamma": exponents,
    "focal_alpha": lambda r, call: r.choice((0.25, 0, 1, 0.9)),
    "z_loss": lambda r, call: r.choice((1e-4, 0.01, 1)),
    "logit_scale": lambda r, call: r.choice((0.3, 2, 14.0)),
    "softcap": lambda r, call: r.choice((2.0, 30.0)),
    "logit_clip": lambda r, call: r.choice((0.5, 3, 30.0)),
    "axis": lambda r, call: r.randrange(-len(call.shape), len(call.shape)) if call.shape else -1,
    "from_probabilities": lambda r, call: True,
}
# What the methods and the activations may be given. A test compares these with their signatures.
METHODS = ("__call__", "value_and_grad", "grad_and_hess", "hessian_vector_product", "target_grad")
ARGUMENTS = (
    "logits", "targets", "v", "sample_weight", "mask", "denominator", "out", "with_stats", "probabilities",
)  # fmt: skip
ACTIVATION_ARGUMENTS = ("x", "axis", "out", "keepdims")


def parameters_of(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


CLASSES = {stem: type(getattr(sl, stem)) for stem in bits.LOSSES}
DEFAULTS = {
    stem: {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    for stem, cls in CLASSES.items()
}
NOT_TAKEN = {stem: () if bits.has_statistics(stem) else ("with_stats", "probabilities") for stem in CLASSES}
TAKES = {
    (stem, method): [name for name in parameters_of(getattr(cls, method)) if name not in NOT_TAKEN[stem]]
    for stem, cls in CLASSES.items()
    for method in METHODS
    if hasattr(cls, method)
}


def draw_options(r, call):
    options = {}
    for name in DEFAULTS[call.name]:
        if r.chance(0.5 if name == "reduction" else 0.12):
            options[name] = OPTIONS[name](r, call)
    if options.get("from_probabilities"):
        for name in ("z_loss", "logit_scale", "softcap", "logit_clip"):
            options.pop(name, None)
    return options


# ---- calls ---------------------------------------------------------------------------------------


class Call:
    """What a call of a loss and one of an activation have in common."""

    def __init__(self, r, name, by_rows, large):
        self.r, self.name, self.by_rows, self.large = r, name, by_rows, large
        self.memory = Memory(r)
        self.shape = self.plain_shape = draw_shape(r, by_rows, large)
        self.axis = -1
        self.dtype = np.dtype(np.float64)  # of results of the shape of the logits
        self.threads = r.choice((1, 2, 3, 5)) if large else r.choice((1, 2))
        self.options: dict[str, Any] = {}
        self.plain: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        self.outputs: dict[str, np.ndarray] = {}  # by the name of the result

    @property
    def units(self):
        """Shape of what has a result of its own: the rows, or the elements."""
        return self.plain_shape[:-1] if self.by_rows else self.plain_shape

    @property
    def k(self):
        return self.plain_shape[-1] if self.plain_shape else 1

    @property
    def given_shape(self):
        """Of the logits, with the classes where the caller has them."""
        if not self.shape:
            return ()
        shape = list(self.shape[:-1])
        shape.insert(self.axis % len(self.shape), self.shape[-1])
        return tuple(shape)

    def moved(self, array):
        """From classes last to where the caller has them."""
        return (
            np.moveaxis(array, -1, self.axis) if self.axis != -1 and array.ndim == len(self.shape) else array
        )

    def last(self, value):
        """Back to classes last."""
        return (
            np.moveaxis(value, self.axis, -1)
            if self.axis != -1 and np.ndim(value) == len(self.shape)
            else value
        )

    def run(self):
        """The results by name, as they are and with the classes last."""
        returned = self.results(self.call(self.given))
        return returned, {name: self.last(value) for name, value in returned.items()}

    def hold(self, name, values):
        """Have an argument as a caller might."""
        flavour = "plain" if self.large and self.r.chance(0.7) else None
        self.given[name], plain = self.memory.given(self.moved(values), flavour)
        if self.axis != -1 and plain.ndim == len(self.shape):
            plain = np.moveaxis(plain, self.axis, -1)
        self.plain[name] = np.array(plain, order="C")

    def writable(self, name):
        """An argument that may be written to element by element, or None."""
        array = self.given.get(name)
        if not isinstance(array, np.ndarray) or not array.flags.writeable or not array.size:
            return None
        return None if 0 in array.strides else array

    def in_place(self, names, shape):
        """An argument that a result can overwrite, at times in another order, or an array of its own."""
        usable = [
            name
            for name in names
            if self.writable(name) is not None
            and self.given[name].dtype == self.dtype
            and self.given[name].shape == shape
            and not isinstance(self.given[name], np.memmap)
        ]
        if not usable or self.r.chance(0.6):
            return self.memory.output(shape, self.dtype)
        array = self.given[self.r.choice(usable)]
        return array[::-1] if array.ndim and self.r.chance(0.4) else array

    def describe(self):
        def text(value):
            if isinstance(value, np.ndarray):
                strides = "" if value.flags.c_contiguous else f" strides {value.strides}"
                return f"{type(value).__name__} {value.dtype.name}{value.shape}{strides}"
            return repr(value)[:80]

        given = ", ".join(f"{name}={text(value)}" for name, value in self.given.items())
        options = ", ".join(f"{name}={text(value)}" for name, value in self.options.items())
        return f"{self.title(options)}({given}), {self.threads} threads"


class ActivationCall(Call):
    def __init__(self, r, large=False):
        name = r.choice(bits.ACTIVATIONS)
        super().__init__(r, name, bits.by_rows(name), large)
        self.axes = None  # several at once
        if self.by_rows and r.chance(0.3):
            self.axis = r.randrange(-len(self.shape), len(self.shape))
        dtype = r.weighted(OF_LOGITS)
        self.hold("x", sometimes_constant(r, cast(logit_values(r, self.shape, dtype), dtype)))
        self.dtype = result_dtype(self.plain["x"].dtype)
        self.plain["x"] = self.plain["x"].astype(self.dtype)
        if self.by_rows and (self.axis != -1 or r.chance(0.2)):
            self.given["axis"] = self.axis
        elif self.by_rows and self.plain["x"].size and r.chance(0.2):
            self.draw_axes()
        if not self.keeps_axis and r.chance(0.2):
            self.given["keepdims"] = True
        if r.chance(0.5):
            shape = self.result_shape
            self.outputs["value"] = self.given["out"] = self.in_place(["x"], shape)
        self.memory.remember()

    def draw_axes(self):
        ndim = len(self.shape)
        self.axes = self.r.sample(range(ndim), self.r.randint(1, ndim))
        self.given["axis"] = tuple(axis - ndim * self.r.choice((0, 1)) for axis in self.axes)
        if len(self.axes) == ndim and self.r.chance(0.5):
            self.axes, self.given["axis"] = list(range(ndim)), None
        self.plain["x"] = self.flattened(self.plain["x"])
        self.plain_shape = self.plain["x"].shape

    def flattened(self, array):
        """With the axes as one, the last."""
        lead = [n for axis, n in enumerate(self.shape) if axis not in self.axes]
        return np.array(
            np.moveaxis(array, self.axes, range(-len(self.axes), 0)).reshape((*lead, -1)), order="C"
        )

    @property
    def keeps_axis(self):
        return self.name != "logsumexp"

    @property
    def result_shape(self):
        if self.keeps_axis:
            return self.given_shape
        if not self.given.get("keepdims"):
            return self.units
        axes = self.axes or [self.axis % len(self.shape)]
        return tuple(1 if axis in axes else n for axis, n in enumerate(self.given_shape))

    def title(self, options):
        return self.name

    def call(self, given):
        return getattr(sl, self.name)(**given)

    def last(self, value):
        if not self.keeps_axis:
            return value.reshape(self.units) if self.given.get("keepdims") else value
        return super().last(value) if self.axes is None else self.flattened(value)

    def run_plain(self):
        return self.results(getattr(sl, self.name)(self.plain["x"]))

    def results(self, returned):
        return {"value": returned}


class LossCall(Call):
    def __init__(self, r, large=False):
        stem = r.choice(bits.LOSSES)
        super().__init__(r, stem, bits.by_rows(stem), large)
        self.method = r.choice([method for method in METHODS if (stem, method) in TAKES])
        self.options = draw_options(r, self)
        self.axis = self.options.get("axis", -1)
        values = {"logits": self.draw_logits(), "targets": self.draw_targets()}
        self.draw_counts(values)
        for name, array in values.items():
            self.hold(name, array)
        self.dtype = result_dtype(self.plain["logits"].dtype)
        self.plain["logits"] = self.plain["logits"].astype(self.dtype)
        self.draw_rest()
        self.draw_outputs()
        self.memory.remember()

    # ---- what it is

    @property
    def takes(self):
        return TAKES[self.name, self.method]

    def option(self, name):
        return self.options.get(name, DEFAULTS[self.name].get(name))

    @property
    def reduction(self):
        return self.option("reduction")

    def loss(self, **changed):
        return CLASSES[self.name](**{**self.options, **changed})

    def plain_loss(self, **changed):
        """The same for classes on the last axis."""
        return self.loss(**({"axis": -1} if "axis" in DEFAULTS[self.name] else {}), **changed)

    def title(self, options):
        return f"{CLASSES[self.name].__name__}({options}).{self.method}"

    # ---- its arguments

    def draw_logits(self):
        dtype = self.r.weighted(OF_LOGITS)
        if self.options.get("from_probabilities"):
            values = beyond_bounds(self.r, cast(probability_values(self.r, self.shape), dtype), 1)
            return sometimes_constant(self.r, values)
        return sometimes_constant(self.r, cast(logit_values(self.r, self.shape, dtype), dtype))

    def draw_targets(self):
        r, kind = self.r, self.r.weighted({"index": 60, "dense": 28, "one-hot": 12})
        if self.by_rows and kind == "index" and self.method != "target_grad":
            return self.draw_indices()
        if self.by_rows and kind == "one-hot":
            t = np.arange(self.k) == r.integers(self.k, (*self.shape[:-1], 1))
        else:
            # of numbers that float32 holds: beside float32 logits, wider ones are rounded to it
            t = r.between_0_and_1(self.shape).astype(np.float32)
        if self.by_rows and kind != "one-hot" and r.chance(0.7):
            t = t / np.maximum(t.sum(axis=-1, keepdims=True), np.float32(1e-3))
        if not self.by_rows and kind != "dense":
            t = np.rint(t)
        whole = kind == "one-hot" or (not self.by_rows and kind != "dense")
        dtype, highest = r.choice(REAL if whole else FLOATS), bits.target_max(self.name)
        if not self.by_rows and highest > 1:
            t = t * np.float64(2.0 ** r.choice((0, 3, 10, 10 if dtype.itemsize < 4 else 40)))
        t = beyond_bounds(r, cast(t, dtype), highest)
        return sometimes_constant(r, t if self.by_rows else self.put_labels(t))

    def draw_indices(self):
        r, dtype = self.r, self.r.choice([*REAL, np.dtype("i8"), np.dtype("i4")])
        if not holds(dtype, self.k - 1) or dtype.kind == "b":
            dtype = np.dtype(np.int64)
        return sometimes_constant(r, self.put_labels(cast(r.integers(self.k, self.shape[:-1]), dtype)))

    @property
    def labels(self):
        """That do not count."""
        label = self.option("ignore_index")
        return () if label is None else tuple(label) if isinstance(label, (tuple, list)) else (label,)

    def put_labels(self, targets):
        for label in self.labels:
            if holds(targets.dtype, label) and self.r.chance(0.4):
                where = self.r.between_0_and_1(targets.shape) < 0.2
                targets = np.where(where, targets.dtype.type(label), targets)
        return targets

    def ignores(self, targets):
        """Which rows (elements) have a label that does not count."""
        found = np.zeros(self.units, bool)
        if targets.shape == self.units:
            for label in self.labels:
                found |= is_label(targets, label)
        return found

    def per_unit(self, array):
        """What is given per row, or for the first dimensions of the rows, for every row (element)."""
        if array.shape == self.units:
            return array
        rows = self.shape[:-1]
        array = np.broadcast_to(array.reshape(array.shape + (1,) * (len(rows) - array.ndim)), rows)
        return array if self.by_rows else np.broadcast_to(array[..., None], self.units)

    def draw_counts(self, values):
        """Mask and weights; what they hide may be anything."""
        r, counts = self.r, ~self.ignores(values["targets"])
        rows = self.shape[:-1]
        shapes = [
            self.units,
            rows if self.shape else (),
            rows[: r.randint(1, len(rows))] if rows else self.units,
        ]
        if r.chance(0.25):
            mask = np.asarray(r.between_0_and_1(r.choice(shapes)) < r.choice((0.8, 0.2, 0, 1)))
            if r.chance(0.2):
                mask = mask.astype(r.choice([*INTEGERS, *FLOATS[:3]]))
            values["mask"] = sometimes_constant(r, mask)
            shown = self.per_unit(values["mask"]) != 0
            counts = counts & shown
            values["targets"] = self.spoil_targets(values["targets"], shown)
        if r.chance(0.3):
            shape, dtype = r.choice(shapes), r.choice(REAL)
            weight = sometimes_constant(r, cast(weight_values(r, shape, dtype), dtype))
            values["sample_weight"] = self.of_positive_total(weight, counts, values)
            counts = counts & (self.per_unit(values["sample_weight"]) != 0)
        logits = values["logits"]
        if logits.dtype.kind not in "biu" and not counts.all() and r.chance(0.5):
            hidden = ~counts[..., None] if self.by_rows else ~counts
            values["logits"] = np.where(hidden, logits.dtype.type(r.choice((NAN, INF, 7.0))), logits)

    def of_positive_total(self, weight, counts, values):
        """Where "mean" divides by the total of the weights, that is to be positive."""
        if not self.by_rows or self.reduction != "mean" or (weight >= 0).all():
            return weight
        total = self.total(self.per_unit(weight).astype(np.float64) * counts, counts, values["targets"])
        return weight if total > 0 else abs(weight)

    def total(self, weight, counts, targets):
        """Of the rows' weights, each times that of its class."""
        classes = self.option("class_weight")
        if classes is not None and targets.ndim < len(self.shape):
            of_class = np.asarray(classes, np.float64)
            weight = weight * of_class[np.where(counts, targets, 0).astype(np.int64)]
        return float(weight.astype(np.longdouble).sum())

    def spoil_targets(self, targets, shown):
        if targets.dtype == bool or self.r.chance(0.5):
            return targets
        bad = (-5, 127, 0) if targets.dtype.kind in "iu" else (NAN, -1.0, 1e30, INF)
        shown = shown if shown.ndim == targets.ndim else shown[..., None]
        return np.where(shown, targets, cast(np.float64(self.r.choice(bad)), targets.dtype))

    def draw_rest(self):
        r = self.r
        if "v" in self.takes:
            if r.chance(0.05) and np.isfinite(self.plain["logits"].astype(np.float64)).all():
                self.given["v"], self.plain["v"] = self.given["logits"], self.plain["logits"]
            else:
                self.hold("v", sometimes_constant(r, cast(r.normal(self.shape) * 2, r.choice(REAL))))
        if "denominator" in self.takes and self.reduction in ("mean", "batchmean") and r.chance(0.2):
            number = r.choice((7.5, 3, np.float32(0.5), True, np.array(2.0), np.int64(9)))
            self.given["denominator"] = self.plain["denominator"] = number
        if "with_stats" in self.takes and r.chance(0.3):
            self.given["with_stats"] = self.plain["with_stats"] = True

    def draw_outputs(self):
        r = self.r
        if "with_stats" in self.given and r.chance(0.5):
            array = self.memory.output(self.given_shape, self.dtype)
            self.outputs["probabilities"] = self.given["probabilities"] = array
        if "out" not in self.takes or r.chance(0.5):
            return
        if self.method == "grad_and_hess":
            pair = [
                self.memory.output(self.given_shape, self.dtype) if r.chance(0.8) else None for _ in range(2)
            ]
            self.outputs |= {n: a for n, a in zip(("grad", "hess"), pair, strict=True) if a is not None}
            self.given["out"] = r.choice((tuple(pair), pair))
        else:
            name = "grad" if self.method == "value_and_grad" else self.method
            array = self.in_place(("logits", "v", "targets"), self.given_shape)
            if self.dtype in HALF and r.chance(0.2):
                # results of half precision may also go to more
                array = self.memory.output(self.given_shape, np.dtype(r.choice(("f4", "f8"))))
                self.plain["out"] = np.empty(self.shape, array.dtype)
            self.outputs[name] = self.given["out"] = array

    # ---- making it

    def call(self, given, loss=None):
        return getattr(loss or self.loss(), self.method)(**given)

    def run_plain(self):
        plain = dict(self.plain)
        if "probabilities" in self.given:
            plain["probabilities"] = np.empty(self.shape, self.dtype)
        return self.results(self.call(plain, self.plain_loss()))

    def results(self, returned):
        """By name."""
        stats = returned[-1] if isinstance(returned, tuple) and isinstance(returned[-1], sl.Stats) else None
        if self.method == "__call__":
            named = {"loss": returned[0] if stats else returned}
        elif self.method == "value_and_grad":
            named = {"loss": returned[0], "grad": returned[1]}
        elif self.method == "grad_and_hess":
            named = {"grad": returned[0], "hess": returned[1]}
        else:
            named = {self.method: returned}
        if stats is not None:
            named |= {name: value for name, value in stats._asdict().items() if value is not None}
        return named

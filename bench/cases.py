"""One call to measure: its loss or activation, dtype, shape, kind of targets, memory layout and options,
and the data for it; and the groups of calls that run.py times.

A new loss is measured once it has its shapes here.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

import stableloss

KEY = ("loss", "dtype", "n", "k", "targets", "layout", "options")
DTYPES = ("float32", "float64")

ROWS = (
    (128, 3), (32768, 3),
    (32, 10), (4096, 10), (65536, 10), (1638400, 10),
    (32, 32), (2048, 32),
    (32, 100), (1024, 100), (163840, 100),
    (64, 1000), (16384, 1000),
    (32, 32000),
    (1, 128256), (128, 128256),
)  # fmt: skip
FEWER_ROWS = (
    (32768, 3), (32, 10), (4096, 10), (65536, 10), (1024, 100), (16384, 1000), (128, 128256),
)  # fmt: skip
ELEMENTS = ((32,), (10**3,), (10**4,), (10**5,), (10**6,), (10**7,))
FEWER_ELEMENTS = ((32,), (10**4,), (10**7,))
# What run.py times, by loss and kind of targets. instructions.py counts smaller shapes of every loss; the
# first that has class indices and the first that has not are counted in more ways.
SHAPES = {
    ("softmax_ce", "indices"): ROWS,
    ("sigmoid_bce", "float"): ELEMENTS,
    ("sigmoid_bce", "bool"): FEWER_ELEMENTS,
    ("sigmoid_bce", "uint8"): FEWER_ELEMENTS,
    ("softmax_mse", "indices"): FEWER_ROWS,
    ("sigmoid_mse", "float"): ELEMENTS,
}
LOSSES = tuple(dict.fromkeys(loss for loss, _ in SHAPES))
BY_ROWS = tuple(loss for loss in LOSSES if (loss, "indices") in SHAPES)
BY_ELEMENTS = tuple(loss for loss in LOSSES if loss not in BY_ROWS)

# What the options are when they are timed; weights and masks are made for each case, and so are targets to
# ignore. `OPTION_CASES` says what goes together.
OPTIONS = {
    "class_weight": None,
    "ignore_index": -100,
    "mask": None,
    "sample_weight": None,
    "label_smoothing": 0.1,
    "logit_scale": 1 / 0.7,
    "softcap": 30.0,
    "z_loss": 1e-4,
    "focal_gamma": 2.0,
    "from_probabilities": True,
    "axis": 1,
}
AT_CALL = ("mask", "sample_weight")
OPTION_CASES = (
    ("one-hot", ()),
    ("soft", ()),
    ("indices", ("label_smoothing",)),
    ("indices", ("class_weight",)),
    ("indices", ("ignore_index",)),
    ("indices", ("mask",)),
    ("indices", ("logit_scale",)),
    ("indices", ("softcap", "z_loss")),
    ("indices", ("focal_gamma",)),
    ("one-hot", ("focal_gamma",)),
    ("indices", ("focal_gamma", "label_smoothing")),
    ("indices", ("from_probabilities",)),
)
OPTION_ROWS = ((4096, 10), (1024, 100), (64, 1000), (8192, 1000))
# with the classes in axis 1
IMAGES = (4, 21, 128, 128)

ELEMENT_ACTIVATIONS = ("sigmoid", "log_sigmoid")
ROW_ACTIVATIONS = ("softmax", "log_softmax", "logsumexp")
ACTIVATIONS = (*ELEMENT_ACTIVATIONS, *ROW_ACTIVATIONS)
# What a library needs beyond options, for targets of the logits' shape and for float16.
DENSE, HALF = "dense targets", "float16"

# Of these shapes, an array is in no cache of one core; of `CACHED` logits, or a row if that is more, it is.
LARGE_ROWS = ((1638400, 10), (163840, 100), (16384, 1000), (512, 32000), (128, 128256))
LARGE_ELEMENTS = ((10**7,),)
CACHED = 32768

SMALL_ROWS = ((1, 3), (1, 10), (32, 10))
SMALL_ELEMENTS = ((1,), (10,), (32,))

# What README shows: few and many classes, in the caches and out of them, each loss once; and options.
HIGHLIGHTS = (
    ("softmax_ce", "float32", "4096x10", ""),
    ("softmax_ce", "float32", "1024x100", ""),
    ("softmax_ce", "float64", "64x1000", ""),
    ("sigmoid_bce", "float32", "1,000,000", ""),
    ("softmax_mse", "float32", "16384x1000", ""),
    ("sigmoid_mse", "float64", "10,000,000", ""),
    ("softmax_ce", "float32", "4096x10", "label_smoothing"),
    ("softmax_ce", "float32", "1024x100", "class_weight"),
    ("softmax_ce", "float32", "64x1000", "soft targets"),
    ("softmax_ce", "float32", "1024x100", "focal_gamma"),
)


@dataclass(frozen=True)
class Case:
    loss: str  # or an activation
    dtype: str
    shape: tuple
    # or one-hot, soft; float, bool, uint8 for the sigmoid losses; none for an activation
    targets: str = "indices"
    layout: str = "C"  # of the logits and the gradient; or F, strided
    options: tuple = ()

    @property
    def n(self):
        return self.logits // self.k

    @property
    def k(self):
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def logits(self):
        return math.prod(self.shape)

    @property
    def key(self):
        options = " + ".join(self.options)
        return (self.loss, self.dtype, str(self.n), str(self.k), self.targets, self.layout, options)

    @property
    def kind(self):
        """What cases that differ in size alone have in common."""
        return (self.loss, self.dtype, self.targets, self.layout, self.options)

    @property
    def is_activation(self):
        return self.targets == "none"

    @property
    def asks(self):
        """What a library has to have beyond the plain loss."""
        dense = {DENSE} if self.targets in ("one-hot", "soft") else set()
        half = {HALF} if self.dtype == "float16" else set()
        return {*self.options, *dense, *half}

    def of_size(self, logits):
        """With fewer rows, of at most so many logits; but not of less than a row."""
        first = max(1, self.shape[0] * logits // self.logits)
        return replace(self, shape=(min(first, self.shape[0]), *self.shape[1:]))

    def data(self):
        """Logits, targets and the value of each option."""
        rng = np.random.default_rng(0)
        dtype = np.dtype(self.dtype)
        drawn = "float32" if dtype.itemsize < 4 else self.dtype
        rows = (self.shape[0], *self.shape[2:])
        logits = rng.standard_normal(self.shape, dtype=drawn)
        logits *= 2
        if self.targets == "none":
            targets = None
        elif self.targets == "indices":
            targets = rng.integers(0, self.k, rows)
        elif self.targets == "one-hot":
            targets = np.zeros(self.shape, self.dtype)
            targets[np.arange(self.n), rng.integers(0, self.k, self.n)] = 1
        elif self.targets == "soft":
            targets = rng.random(self.shape, dtype=self.dtype)
            targets /= targets.sum(axis=1, keepdims=True)
        else:
            dtype_of_targets = self.dtype if self.targets == "float" else self.targets
            targets = rng.integers(0, 2, self.shape).astype(dtype_of_targets)
        given = {name: OPTIONS[name] for name in self.options}
        if "class_weight" in given:
            given["class_weight"] = rng.uniform(0.5, 2, self.k)
        if "mask" in given:
            given["mask"] = rng.random(rows) < 0.9
        if "sample_weight" in given:
            given["sample_weight"] = rng.random(self.shape, dtype=self.dtype)
        if "ignore_index" in given:
            targets[rng.random(rows) < 0.1] = given["ignore_index"]
        if "from_probabilities" in given:
            logits = stableloss.softmax(logits, axis=1)
        return arranged(logits.astype(dtype, copy=False), self.layout), targets, given

    @property
    def function(self):
        return getattr(stableloss, self.loss)

    def with_options(self, given):
        """The loss made with the options, and those that its calls are given."""
        own = {name: value for name, value in given.items() if name not in AT_CALL}
        at_call = {name: value for name, value in given.items() if name in AT_CALL}
        return (type(self.function)(**own) if own else self.function), at_call


def plain_cases():
    return [
        Case(loss, dtype, shape, targets)
        for (loss, targets), dtype in itertools.product(SHAPES, DTYPES)
        for shape in SHAPES[loss, targets]
    ]


def option_cases():
    """The loss that has every option."""
    of_loss = [
        Case("softmax_ce", dtype, shape, targets, options=options)
        for (targets, options), dtype, shape in itertools.product(OPTION_CASES, DTYPES, OPTION_ROWS)
    ]
    half = [Case("softmax_ce", "float16", shape) for shape in OPTION_ROWS]
    images = [Case("softmax_ce", dtype, IMAGES, options=("axis",)) for dtype in DTYPES]
    return of_loss + half + images


def activation_cases():
    by_element = itertools.product(ELEMENT_ACTIVATIONS, DTYPES, ((10**4,), (10**6,)))
    by_row = itertools.product(ROW_ACTIVATIONS, DTYPES, OPTION_ROWS)
    return [Case(*call, "none") for call in (*by_element, *by_row)]


def large_cases():
    """Every loss and activation, and operands that are as large as the logits."""
    kinds = (
        *((loss, targets, ()) for loss in BY_ROWS for targets in ("indices", "soft")),
        *((loss, "float", options) for loss in BY_ELEMENTS for options in ((), ("sample_weight",))),
        *((activation, "none", ()) for activation in ACTIVATIONS),
    )
    return [
        Case(loss, dtype, shape, targets, options=options)
        for (loss, targets, options), dtype in itertools.product(kinds, DTYPES)
        for shape in (LARGE_ELEMENTS if loss in (*BY_ELEMENTS, *ELEMENT_ACTIVATIONS) else LARGE_ROWS)
    ]


def small_cases():
    by_row = itertools.product(BY_ROWS, DTYPES, SMALL_ROWS)
    by_element = itertools.product(BY_ELEMENTS, DTYPES, SMALL_ELEMENTS, ("float",))
    return [Case(*call) for call in (*by_row, *by_element)]


# What run.py times, each in the order of its table.
GROUPS = {
    "plain": plain_cases,
    "options": option_cases,
    "activations": activation_cases,
    "large": large_cases,
    "small": small_cases,
}


def arranged(array, layout):
    """The array with its elements elsewhere in memory."""
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        spread = np.empty((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
        spread[...] = array
        return spread
    return array

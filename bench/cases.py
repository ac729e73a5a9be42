"""One call to measure: its loss, dtype, shape, kind of targets and memory layout, and the data for it.

A new loss is measured once it has its shapes here.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

import stableloss

KEY = ("loss", "dtype", "n", "k", "targets", "layout")
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

# What README shows: few and many classes, in the caches and out of them, each loss once.
HIGHLIGHTS = (
    ("softmax_ce", "float32", "4096x10"),
    ("softmax_ce", "float32", "1024x100"),
    ("softmax_ce", "float64", "64x1000"),
    ("sigmoid_bce", "float32", "1,000,000"),
    ("softmax_mse", "float32", "16384x1000"),
    ("sigmoid_mse", "float64", "10,000,000"),
)


@dataclass(frozen=True)
class Case:
    loss: str
    dtype: str
    shape: tuple
    targets: str = "indices"  # or soft; float, bool, uint8 for the sigmoid losses
    layout: str = "C"  # of the logits and the gradient; or F, strided

    @property
    def n(self):
        return self.shape[0]

    @property
    def k(self):
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def logits(self):
        return math.prod(self.shape)

    @property
    def key(self):
        return (self.loss, self.dtype, str(self.n), str(self.k), self.targets, self.layout)

    @property
    def function(self):
        return getattr(stableloss, self.loss)

    def data(self):
        rng = np.random.default_rng(0)
        logits = rng.standard_normal(self.shape, dtype=self.dtype)
        logits *= 2
        if self.targets == "indices":
            targets = rng.integers(0, self.k, self.n)
        elif self.targets == "soft":
            targets = rng.random(self.shape, dtype=self.dtype)
            targets /= targets.sum(axis=1, keepdims=True)
        else:
            dtype = self.dtype if self.targets == "float" else self.targets
            targets = rng.integers(0, 2, self.shape).astype(dtype)
        return arranged(logits, self.layout), targets


def all_cases(losses=LOSSES, dtypes=DTYPES):
    """What run.py times, in the order of its table."""
    return [
        Case(loss, dtype, shape, targets)
        for (loss, targets), dtype in itertools.product(SHAPES, DTYPES)
        for shape in SHAPES[loss, targets]
        if loss in losses and dtype in dtypes
    ]


def arranged(array, layout):
    """The array with its elements elsewhere in memory."""
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        spread = np.empty((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
        spread[...] = array
        return spread
    return array

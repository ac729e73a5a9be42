"""One call to measure: its loss, dtype, shape, kind of targets and memory layout, and the data for it."""

import math
from dataclasses import dataclass

import numpy as np

import stableloss

KEY = ("loss", "dtype", "n", "k", "targets", "layout")


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


def arranged(array, layout):
    """The array with its elements elsewhere in memory."""
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        spread = np.empty((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
        spread[...] = array
        return spread
    return array

"""The real data sets that networks are trained on: those that come with scikit-learn, scaled and split."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split


class Data(NamedTuple):
    """A row of `x` is a sample; `y` holds a class index per row."""

    x: np.ndarray
    x_test: np.ndarray
    y: np.ndarray
    y_test: np.ndarray


def _split(x, y):
    data = Data(*train_test_split(x, y, random_state=0, stratify=y))
    for array in data:
        array.flags.writeable = False
    return data


@lru_cache(maxsize=1)
def digits() -> Data:
    """Ten classes, 64 pixels in [0, 1]."""
    x, y = load_digits(return_X_y=True)
    return _split(x / x.max(), y)


@lru_cache(maxsize=1)
def breast_cancer() -> Data:
    """Two classes, 30 standardised features."""
    x, y = load_breast_cancer(return_X_y=True)
    return _split((x - x.mean(axis=0)) / x.std(axis=0), y)


def batches(rng, n, size):
    """Index arrays of one epoch of mini-batches."""
    return np.split(rng.permutation(n), range(size, n, size))

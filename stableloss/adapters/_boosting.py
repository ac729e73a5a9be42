"""What the adapters of the two boosting libraries share: how these call an objective or a metric.

A native call is ``f(margins, data)``, where `data` holds labels and weights; a call through the
scikit-learn interface is ``f(labels, margins, weight)``. The last parameter has to be named
`sample_weight` for XGBoost, and to be the third and last for LightGBM. Objectives and metrics are
`functools.partial` objects of functions of a module, so that a model that holds them can be pickled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import stableloss as sl

# Of a library's own objectives (XGBoost's up to 3.2): by what the softmax of k classes multiplies
# p (1 - p), and the least Hessian of a row of weight 1.
CONVENTIONS: dict[str, tuple[Callable[[int], float], float]] = {
    "xgboost": (lambda k: 2.0, 1e-16),
    "lightgbm": (lambda k: k / (k - 1), 0.0),
}


def objective(loss: Any, hessian: str = "exact") -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Objective from a loss, for the native and for the scikit-learn interface.

    Parameters
    ----------
    loss : SoftmaxCE or SigmoidBCE
        With any options; the reduction plays no part. Sample weights are those of the data set or of
        `fit`.
    hessian : {"exact", "xgboost", "lightgbm"}, default: "exact"
        The exact diagonal of the Hessian, or what the objectives of a library use: that of the loss
        without its focal factor, which is p (1 - p) times weights; for softmax losses times 2, and at
        least 1e-16 (XGBoost up to 3.2), or times k / (k - 1) for k classes (LightGBM).

    Returns
    -------
    callable
        Gives gradient and Hessian, of the shape, dtype and memory order of the margins.

    Notes
    -----
    The exact Hessian of a focal loss is negative where the true class is very improbable: for two
    classes and a gamma of 2, below a probability of 0.06. Trees do not split rows whose Hessians add
    up to less than 0. To start from such margins (log odds of a rare class, say), use a library's
    convention, which is never negative.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> labels, margins = np.array([0, 1], np.float32), np.zeros((2, 2), np.float32)
    >>> grad, hess = objective(sl.softmax_ce)(labels, margins)
    >>> grad
    array([[-0.5,  0.5],
           [ 0.5, -0.5]], dtype=float32)
    """
    names = ("exact", *CONVENTIONS)
    if hessian not in names:
        raise ValueError(f"hessian is {hessian!r}, not one of {', '.join(names)}")
    return functools.partial(_derivatives, loss, hessian)


def _derivatives(
    loss: Any, hessian: str, first: Any, second: Any, sample_weight: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    margins, targets, weight = _arguments(loss, first, second, sample_weight)
    grad, hess = loss.grad_and_hess(margins, targets, sample_weight=weight)
    if hessian != "exact":
        options = loss._changed()
        if options.pop("focal_gamma", 0):
            _, hess = type(loss)(**options).grad_and_hess(margins, targets, sample_weight=weight)
        factor, least = CONVENTIONS[hessian]
        if _is_softmax(loss):
            hess *= factor(margins.shape[1])
        np.maximum(hess, least if weight is None else least * weight[:, np.newaxis], out=hess)
    return (grad, hess) if margins.shape[1] > 1 else (grad[:, 0], hess[:, 0])


def value(loss: Any, first: Any, second: Any, sample_weight: Any) -> float:
    """The loss. Weights are scaled to a mean of 1: a sigmoid loss divides by the number of elements."""
    margins, targets, weight = _arguments(loss, first, second, sample_weight)
    return loss(margins, targets, sample_weight=None if weight is None else weight / (weight.mean() or 1))


def is_native(second: Any) -> bool:
    return hasattr(second, "get_label")


def _is_softmax(loss: Any) -> bool:
    return isinstance(loss, (sl.SoftmaxCE, sl.SoftmaxMSE))


def _arguments(
    loss: Any, first: Any, second: Any, sample_weight: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Margins with a column for each output, targets, and weights as float64 or None."""
    if is_native(second):
        margins, labels, sample_weight = first, second.get_label(), second.get_weight()
    else:
        labels, margins = np.asarray(first), second
    if margins.ndim == 1:
        margins = margins[:, np.newaxis]
    if margins.shape[1] == 1 and _is_softmax(loss):
        raise ValueError(f"{loss!r} needs a margin for each class: set num_class, also to 2")
    targets = labels.reshape(margins.shape) if labels.size == margins.size else labels
    if sample_weight is None or len(sample_weight) == 0:
        return margins, targets, None
    return margins, targets, np.asarray(sample_weight, np.float64)

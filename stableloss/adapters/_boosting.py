"""What the adapters of the two boosting libraries share: how these call an objective or a metric.

A native call is ``f(margins, data)``, where `data` holds labels and weights; a call through the
scikit-learn interface is ``f(labels, margins, weight)``. The last parameter has to be named
`sample_weight` for XGBoost, and to be the third and last for LightGBM. Objectives and metrics are
`functools.partial` objects of functions of a module, so that a model that holds them can be pickled.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

import stableloss as sl
from stableloss._arrays import real_array
from stableloss.adapters._arguments import require_loss, unmasked

# Of a library's own objectives (XGBoost's up to 3.2): by what the softmax of k classes multiplies
# p (1 - p), and the least Hessian of a row of weight 1.
CONVENTIONS: dict[str, tuple[Callable[[int], float], float]] = {
    "xgboost": (lambda k: 2.0, 1e-16),
    "lightgbm": (lambda k: k / (k - 1), 0.0),
}
SOFTMAX_LOSSES = (sl.SoftmaxCE, sl.SoftmaxMSE)
LOSSES = (*SOFTMAX_LOSSES, sl.SigmoidBCE, sl.SigmoidMSE)


def objective(loss: Any, hessian: str = "exact") -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Objective from a loss, for the native and for the scikit-learn interface.

    Parameters
    ----------
    loss : SoftmaxCE or SigmoidBCE
        With any options but `from_probabilities`; the reduction plays no part. Sample weights are
        those of the data set or of `fit`.
    hessian : {"exact", "xgboost", "lightgbm"}, default: "exact"
        The exact diagonal of the Hessian, or what the objectives of a library use: that of the loss
        without its focal factor, which is p (1 - p) times weights; for softmax losses times 2, and at
        least 1e-16 (XGBoost up to 3.2), or times k / (k - 1) for k classes (LightGBM).

    Returns
    -------
    callable
        ``f(margins, data)``, for the native interface, and ``f(labels, margins, sample_weight=None)``:
        gradient and Hessian, of the shape, dtype and memory order of the margins.

    Notes
    -----
    A label of NaN is missing: gradient and Hessian are 0 there, as at a weight of 0. For a softmax loss a
    row of label probabilities is missing if one of them is. Neither library keeps NaN among the labels of
    a data set: XGBoost refuses it, and **LightGBM turns it into 0 without a word**. Nor does either keep a
    weight per row and label, nor LightGBM several labels per row. All of these go into a call with labels
    and weights of one's own, of the shape of the margins::

        of_labels = objective(sl.sigmoid_bce)
        data = xgb.DMatrix(X, np.nan_to_num(labels))
        xgb.train(params, data, obj=lambda margins, data: of_labels(labels, margins, weights))

        own = lambda margins, data: of_labels(labels, margins, weights)
        lgb.train({"objective": own, "num_class": labels.shape[1]}, lgb.Dataset(X, np.zeros(len(X))))

    What a data set does keep is the `ignore_index` of a loss, which XGBoost's own metrics refuse
    (``disable_default_eval_metric``).

    The exact Hessian of a focal loss is negative where the true class is very improbable: for two
    classes and a gamma of 2, below a probability of 0.06. Trees do not split rows whose Hessians add
    up to less than 0. To start from such margins (log odds of a rare class, say), use a library's
    convention, which is never negative.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> labels, margins = np.array([0, 1, np.nan], np.float32), np.zeros((3, 2), np.float32)
    >>> grad, hess = objective(sl.softmax_ce)(labels, margins)
    >>> grad
    array([[-0.5,  0.5],
           [ 0.5, -0.5],
           [ 0. ,  0. ]], dtype=float32)
    """
    require_loss(loss)
    names = ("exact", *CONVENTIONS)
    if hessian not in names:
        raise ValueError(f"hessian is {hessian!r}, not one of {', '.join(names)}")
    if getattr(loss, "from_probabilities", False):
        raise ValueError(f"an objective is given margins: {loss!r} is for metrics only")
    return functools.partial(_derivatives, loss, hessian)


def metric(function: Callable[..., Any], loss: Any) -> Callable[..., Any]:
    """Metric from a loss and from the function that a library's adapter evaluates it by."""
    require_loss(loss)
    if loss.reduction == "none":
        raise ValueError(f"a metric is one number: {loss!r} needs reduction='mean' or 'sum'")
    return functools.partial(function, loss)


def unwrapped(given: Any) -> Any:
    """The loss, of what `objective` returns."""
    ours = isinstance(given, functools.partial) and given.func is _derivatives
    return given.args[0] if ours else given


def loss_of(given: Any) -> Any:
    """The loss of a classifier's `objective`: None, a loss, or what `objective` returns."""
    loss = unwrapped(given)
    if loss is None or isinstance(loss, LOSSES):
        return loss
    raise TypeError(
        f"objective is {given!r}, neither a loss of stableloss, such as sl.SoftmaxCE(), nor objective(loss); "
        "the library's own objectives are for its own classifier"
    )


def default_loss(exclusive: bool) -> Any:
    """Of a classifier: for classes of which there are more than two, or else."""
    return sl.softmax_ce if exclusive else sl.sigmoid_bce


def require_plain(X: Any, y: Any, sample_weight: Any) -> None:
    """What a classifier is fitted to; the libraries take NaN in X for a missing value."""
    unmasked(X, "X", "X.filled(np.nan)")
    unmasked(y, "y", "the rows of X and y whose label is not masked")
    if hasattr(y, "toarray"):
        raise TypeError(f"y is a sparse {type(y).__name__}: pass y.toarray()")
    unmasked(sample_weight, "sample_weight", "sample_weight.filled(0)")


def is_native(second: Any) -> bool:
    return hasattr(second, "get_label")


def is_softmax(loss: Any) -> bool:
    return isinstance(loss, SOFTMAX_LOSSES)


def value(loss: Any, first: Any, second: Any, sample_weight: Any) -> float:
    """The loss; a mean of weighted losses is over the total weight of what counts."""
    return value_and_divisor(loss, first, second, sample_weight)[0]


def value_and_divisor(loss: Any, first: Any, second: Any, sample_weight: Any) -> tuple[float, float]:
    """The loss and what it has been divided by; 0 where nothing counts."""
    margins, targets, weight, counts = _arguments(loss, first, second, sample_weight)
    if not len(margins):
        return 0.0, 0.0
    if loss.reduction == "sum":
        return loss(margins, targets, sample_weight=weight, mask=counts), 1.0
    divisor = _divisor(loss, margins, targets, weight, counts)
    result = loss(margins, targets, sample_weight=weight, mask=counts, denominator=divisor or None)
    return result, divisor


# the options that stand between the margins and the activation
LINK = ("logit_clip", "logit_scale", "softcap")


def log_loss(loss: Any, labels: Any, margins: np.ndarray, sample_weight: Any) -> float:
    """Plain cross-entropy of the `probabilities` of a loss."""
    cls = sl.SigmoidBCE if margins.ndim == 1 else sl.SoftmaxCE
    link = {name: getattr(loss, name) for name in LINK if hasattr(loss, name)}
    return value(cls(**link), labels, margins, sample_weight)


def probabilities(loss: Any, margins: np.ndarray) -> np.ndarray:
    """The activations of margins, with a column for either class where there is one margin per row."""
    clip, scale, cap = (getattr(loss, name, None) for name in LINK)
    x = margins if clip is None else np.clip(margins, -clip, clip)
    x = x if scale is None else scale * x
    x = x if cap is None else cap * np.tanh(x / cap)
    if x.ndim == 1:
        return np.column_stack([sl.sigmoid(-x), sl.sigmoid(x)])
    return sl.softmax(x) if is_softmax(loss) else sl.sigmoid(x)


def decisions(loss: Any, margins: np.ndarray) -> np.ndarray:
    """The margins, or for two classes of a softmax loss what the second is ahead."""
    two = is_softmax(loss) and margins.shape[1] == 2
    return margins[:, 1] - margins[:, 0] if two else margins


def _derivatives(
    loss: Any, hessian: str, first: Any, second: Any, sample_weight: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    margins, targets, weight, counts = _arguments(loss, first, second, sample_weight)
    if not len(margins) and is_softmax(loss) and margins.shape[1] == 1:
        raise ValueError(
            "there are no rows, and XGBoost, which wants a gradient of as many columns as there are "
            "classes, does not tell their number: leave no worker without rows to train on"
        )
    grad, hess = loss.grad_and_hess(margins, targets, sample_weight=weight, mask=counts)
    if hessian != "exact":
        if getattr(loss, "focal_gamma", 0):
            plain = _without_focus(loss)
            _, hess = plain.grad_and_hess(margins, targets, sample_weight=weight, mask=counts)
        factor, least = CONVENTIONS[hessian]
        if is_softmax(loss):
            hess *= factor(margins.shape[1])
        floor = np.full((1, 1), least)
        for share in (weight, counts):
            if share is not None:
                floor = floor * _in_columns(share)
        np.maximum(hess, floor, out=hess)
    return (grad, hess) if margins.shape[1] > 1 else (grad[:, 0], hess[:, 0])


def _without_focus(loss: Any) -> Any:
    cls = sl.SoftmaxCE if is_softmax(loss) else sl.SigmoidBCE
    options = {name: getattr(loss, name) for name in inspect.signature(cls).parameters}
    return cls(**{**options, "focal_gamma": 0.0})


def _divisor(
    loss: Any, margins: np.ndarray, targets: np.ndarray, weight: np.ndarray | None, counts: np.ndarray | None
) -> float:
    """Total weight of what counts, where the loss itself divides by a number too."""
    softmax = is_softmax(loss)
    if weight is None or (softmax and loss.reduction == "mean"):
        return float(loss.divisor(margins.shape, targets, sample_weight=weight, mask=counts))
    shape = margins.shape[:1] if softmax else margins.shape
    kept = np.ones(shape, bool) if counts is None else counts
    ignored = getattr(loss, "ignore_index", None)
    if ignored is not None and targets.shape == shape:
        kept = kept & ~np.isin(targets, ignored)
    share = kept * (weight if softmax else _in_columns(weight))
    if not softmax and loss.reduction == "batchmean":
        # the weight of a row is the mean of its elements that count
        share = share.sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    return float(share.sum())


def _in_columns(array: np.ndarray) -> np.ndarray:
    return array if array.ndim == 2 else array[:, np.newaxis]


def _arguments(
    loss: Any, first: Any, second: Any, sample_weight: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Margins with a column for each output, targets of their kind, weights as float64, and what counts."""
    if is_native(second):
        margins, labels, sample_weight = first, second.get_label(), second.get_weight()
    else:
        labels, margins = first, second
    labels = real_array(unmasked(labels, "labels", "labels.filled(np.nan)"), "labels")
    margins = np.asarray(unmasked(margins, "margins", "np.ma.getdata(margins)"))
    if margins.ndim == 1:
        margins = margins[:, np.newaxis]
    _require_margins_for(loss, margins, labels)
    targets = labels.reshape(margins.shape) if labels.size == margins.size else labels
    counts = None
    if targets.dtype.kind == "f":
        missing = np.isnan(targets)
        if missing.any():
            counts = ~(missing.any(axis=1) if is_softmax(loss) and targets.ndim == 2 else missing)
    if sample_weight is None:
        return margins, targets, None, counts
    unmasked(sample_weight, "sample_weight", "sample_weight.filled(0)")
    weight = real_array(sample_weight, "sample_weight").astype(np.float64, copy=False)
    if not weight.size:  # what a data set without weights has
        return margins, targets, None, counts
    if not is_softmax(loss) and weight.size == margins.size:
        weight = weight.reshape(margins.shape)
    return margins, targets, weight, counts


def _require_margins_for(loss: Any, margins: np.ndarray, labels: np.ndarray) -> None:
    """As many as the loss needs; the errors say what to set in which library."""
    outputs = margins.shape[1]
    if not len(margins):
        return
    if is_softmax(loss) and outputs == 1:
        classes = 2
        if labels.dtype.kind in "iuf" and np.isfinite(labels).any():
            classes = max(2, int(np.nanmax(labels)) + 1)
        raise ValueError(
            f"{loss!r} needs a margin for each class, but a row has one. StableLGBMClassifier and "
            "StableXGBClassifier see to it, and return probabilities; elsewhere pass "
            f'num_class={classes}: to LGBMClassifier with metric="None", to XGBClassifier with '
            "disable_default_eval_metric=True, to lightgbm.train and xgboost.train among the parameters"
        )
    if not is_softmax(loss) and outputs > 1 and labels.size == len(margins):
        raise ValueError(
            f"{loss!r} needs a label for each margin, of shape {margins.shape}, not {labels.shape}; for "
            "classes that exclude each other take a softmax loss"
        )

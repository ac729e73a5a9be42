"""scikit-learn's MLPClassifier with the loss and the gradient of its output computed from the logits.

The change in a program that uses MLPClassifier::

    from stableloss.adapters.sklearn import StableMLPClassifier    # was: from sklearn.neural_network ...

    model = StableMLPClassifier((64,), class_weight="balanced")    # was: MLPClassifier((64,))
    model.fit(X, y)

MLPClassifier clips the probabilities of its loss, which therefore cannot exceed -log(eps) per output,
36 in float64: while every row is further off than that, the reported loss stays where it is, and lbfgs
and the stopping rules, which go by it, give up. Needs scikit-learn 1.7 or newer.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.neural_network import MLPClassifier
from sklearn.neural_network._base import DERIVATIVES
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

import stableloss as sl
from stableloss.adapters._arguments import unmasked

__all__ = ["StableMLPClassifier"]


@functools.lru_cache
def _output_loss(activation: str, label_smoothing: float, focal_gamma: float) -> Any:
    cls = sl.SoftmaxCE if activation == "softmax" else sl.SigmoidBCE
    return cls(reduction="sum", label_smoothing=label_smoothing, focal_gamma=focal_gamma)


def _require_no_masks(X: Any, y: Any, sample_weight: Any) -> None:
    for name, value in (("X", X), ("y", y)):
        unmasked(value, name, f"the rows without masked entries, and np.ma.getdata({name}) of them")
    unmasked(sample_weight, "sample_weight", "sample_weight.filled(0)")


class StableMLPClassifier(MLPClassifier):
    """MLPClassifier whose loss and output gradient are exact however confident it is.

    Parameters
    ----------
    hidden_layer_sizes, activation, **options
        All parameters of scikit-learn's MLPClassifier, with its defaults.
    class_weight : dict, list of dict or "balanced", optional
        What `sklearn.utils.class_weight.compute_sample_weight` takes; multiplies `sample_weight`. For
        multilabel targets that is a list of one dict per label, or "balanced". `partial_fit` refuses
        "balanced", for which it would have to see all labels.
    label_smoothing : float, default: 0.0
        As in `stableloss.SoftmaxCE` (two classes and multilabel: `stableloss.SigmoidBCE`).
    focal_gamma : float, default: 0.0
        Exponent of the focal loss, likewise.

    See Also
    --------
    sklearn.neural_network.MLPClassifier : for the other parameters, and the fitted attributes.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = StableMLPClassifier((32,), solver="lbfgs", max_iter=1000, random_state=2).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    """

    # MLPClassifier has no hook for its loss. Of its private parts this class overrides _backprop, and
    # calls _forward_pass, _compute_loss_grad and the DERIVATIVES of the hidden activations as
    # _backprop does. That the output activation is looked up by the name in out_activation_, which
    # is public, gives the logits.

    out_activation_: str

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(hidden_layer_sizes, activation, **options)
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> StableMLPClassifier:
        """Fit to X and y, as MLPClassifier.fit; `sample_weight` must not be negative."""
        _require_no_masks(X, y, sample_weight)
        return super().fit(X, y, sample_weight=self._weighted(self.class_weight, y, sample_weight))

    @available_if(lambda self: hasattr(super(), "partial_fit"))
    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
    ) -> StableMLPClassifier:
        """Go over X and y once, as MLPClassifier.partial_fit."""
        _require_no_masks(X, y, sample_weight)
        weight = self.class_weight
        if isinstance(weight, str):
            raise ValueError("class_weight='balanced' is for fit: partial_fit does not see all labels")
        if isinstance(weight, dict):
            # the classes of this call only: a weight for an absent class is no mistake here
            weight = {label: weight.get(label, 1) for label in np.unique(y).tolist()}
        return super().partial_fit(
            X, y, sample_weight=self._weighted(weight, y, sample_weight), classes=classes
        )

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class; of two classes, neither is 1 minus the other."""
        check_is_fitted(self)
        if self.n_outputs_ > 1:
            return super().predict_proba(X)
        twin = copy.copy(self)
        twin.out_activation_ = "identity"
        logits = super(StableMLPClassifier, twin).predict_proba(X)[:, 1]
        return np.column_stack([sl.sigmoid(-logits), sl.sigmoid(logits)])

    @staticmethod
    def _weighted(class_weight: Any, y: Any, sample_weight: Any) -> Any:
        if class_weight is None or y is None:
            return sample_weight
        check_classification_targets(y)
        weight = compute_sample_weight(class_weight, y if issparse(y) else np.asarray(y))
        return weight if sample_weight is None else weight * np.asarray(sample_weight)

    def _backprop(
        self,
        X: Any,
        y: np.ndarray,
        sample_weight: np.ndarray | None,
        activations: list[Any],
        deltas: list[Any],
        coef_grads: list[np.ndarray],
        intercept_grads: list[np.ndarray],
    ) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
        last = self.n_layers_ - 2
        activation = self.out_activation_
        self.out_activation_ = "identity"
        try:
            logits = self._forward_pass(activations)[-1]
        finally:
            self.out_activation_ = activation
        output_loss = _output_loss(activation, self.label_smoothing, self.focal_gamma)
        loss, deltas[last] = output_loss.value_and_grad(logits, y, sample_weight=sample_weight)

        # a batch of weight 0 is to teach nothing
        total_weight = X.shape[0] if sample_weight is None else sample_weight.sum() or np.inf
        squares = sum(float(np.vdot(coef, coef)) for coef in self.coefs_)
        loss = (loss + 0.5 * self.alpha * squares) / total_weight
        grads = (total_weight, activations, deltas, coef_grads, intercept_grads)
        self._compute_loss_grad(last, *grads)
        for layer in range(last, 0, -1):
            deltas[layer - 1] = safe_sparse_dot(deltas[layer], self.coefs_[layer].T)
            DERIVATIVES[self.activation](activations[layer], deltas[layer - 1])
            self._compute_loss_grad(layer - 1, *grads)
        return loss, coef_grads, intercept_grads


def _signature() -> inspect.Signature:
    """The parameters of MLPClassifier, then those added here."""
    own = inspect.signature(StableMLPClassifier.__init__).parameters
    parent = inspect.signature(MLPClassifier.__init__).parameters
    added = [own[name] for name in ("class_weight", "label_smoothing", "focal_gamma")]
    return inspect.Signature([*parent.values(), *added])


# scikit-learn reads an estimator's parameters from the signature of __init__, where **options says nothing
vars(StableMLPClassifier)["__init__"].__signature__ = _signature()

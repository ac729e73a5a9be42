"""A last layer, or a loss object, for networks that are made of objects.

The gradient is divided as the loss is: by the number of rows (softmax losses) or of elements (sigmoid
losses) with the default ``reduction="mean"``, by nothing with "sum" and "none". A network whose own
layers divide by the number of samples, ``dW = x.T @ dout / N``, needs ``grad_reduction="sum"``: without
it, it learns N times too slowly.

A last layer with ``forward`` and ``backward``, before::

    self.last = SoftmaxWithLoss()
    loss = self.last.forward(logits, t)
    dlogits = self.last.backward()

After::

    from stableloss.adapters.layer import LossLayer
    self.last = LossLayer(stableloss.softmax_ce)
    loss = self.last.forward(logits, t)
    dlogits = self.last.backward()

A loss object with ``loss`` and ``grad``, or one that is called, before::

    loss = SoftmaxCrossEntropy()
    value, grad = loss.loss(logits, t), loss.grad(logits, t)
    criterion = SoftmaxCrossEntropy()
    value, grad = criterion(logits, t), criterion.derivative()

After::

    from stableloss.adapters.layer import LossObject
    loss = LossObject(stableloss.softmax_ce)
    value, grad = loss.loss(logits, t), loss.grad(logits, t)
    criterion = LossObject(stableloss.SoftmaxCE(reduction="none"))
    value, grad = criterion(logits, t), criterion.derivative()

The network keeps no softmax or sigmoid of its own before either: both take logits.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import numpy as np

from stableloss.adapters._arguments import require_loss, unmasked

__all__ = ["LossLayer", "LossObject"]

_MEANS = ("mean", "batchmean")


def _with_reduction(loss: Any, reduction: str) -> Any:
    options = {name: getattr(loss, name) for name in inspect.signature(type(loss)).parameters}
    return type(loss)(**{**options, "reduction": reduction})


class _Call(NamedTuple):
    """A forward call: its loss, its gradient and a copy of its logits."""

    loss: Any
    grad: np.ndarray
    logits: np.ndarray


class _Criterion:
    """What the two classes share: a call that makes the gradient, for later."""

    _call: _Call | None = None

    def __init__(self, loss: Any, grad_reduction: str | None) -> None:
        require_loss(loss)
        if grad_reduction not in (None, "sum", *_MEANS):
            raise ValueError(f"grad_reduction is {grad_reduction!r}, not one of mean, sum, batchmean")
        self._function = self._of_grad = loss
        # the gradient of "none" is that of "sum"
        if grad_reduction is not None and grad_reduction != loss.reduction.replace("none", "sum"):
            self._of_grad = _with_reduction(loss, grad_reduction)

    def _value(self, logits: Any, targets: Any, options: dict[str, Any]) -> Any:
        return self._function(logits, targets, **self._for(self._function, options))

    def _value_and_grad(self, logits: Any, targets: Any, options: dict[str, Any]) -> tuple[Any, np.ndarray]:
        loss, grad = self._of_grad.value_and_grad(logits, targets, **self._for(self._of_grad, options))
        if self._of_grad is not self._function:
            loss = self._divided_anew(loss, logits, targets, options)
        return loss, grad

    def _divided_anew(self, loss: float, logits: Any, targets: Any, options: dict[str, Any]) -> Any:
        """The loss, of what it is over the gradient's divisor: no second pass, where it is one number."""
        if self._function.reduction != "none":
            given = self._divisor(self._of_grad, logits, targets, options)
            wanted = self._divisor(self._function, logits, targets, options)
            result = loss * given / wanted if given > 0 and wanted > 0 else math.nan
            if math.isfinite(result):
                return result
        # nothing counts, a divisor that the loss refuses, a sum that overflows, a loss that is not finite
        return self._value(logits, targets, options)

    @staticmethod
    def _divisor(loss: Any, logits: Any, targets: Any, options: dict[str, Any]) -> float:
        if loss.reduction not in _MEANS:
            return 1.0
        if options.get("denominator") is not None:
            return float(options["denominator"])
        rows = {name: options.get(name) for name in ("sample_weight", "mask")}
        return float(loss.divisor(np.shape(logits), targets, **rows))

    def _for(self, loss: Any, options: dict[str, Any]) -> dict[str, Any]:
        """The options given; where loss and gradient differ in it, a denominator only for a mean."""
        given = {name: value for name, value in options.items() if value is not None}
        if self._of_grad is not self._function and loss.reduction not in _MEANS:
            given.pop("denominator", None)
        return given

    def _forward(self, logits: Any, targets: Any, options: dict[str, Any]) -> Any:
        # a call that fails leaves no gradient of the one before
        self._call = None
        loss, grad = self._value_and_grad(logits, targets, options)
        self._call = _Call(loss, grad, np.array(logits))
        return loss

    def backward(self, dout: Any = 1) -> np.ndarray:
        """Gradient with respect to the logits of the last `forward`, the caller's own to change.

        Parameters
        ----------
        dout : float or array_like, default: 1
            Derivative of what is minimised with respect to this loss: one number, or, with
            ``reduction="none"``, an array of the shape of the loss.

        Returns
        -------
        ndarray
            Of the shape, dtype and memory order of the gradient of the loss, times `dout`.

        Raises
        ------
        RuntimeError
            If there has been no `forward`, or the last one failed.
        TypeError, ValueError
            If `dout` does not hold real numbers, or is neither one number nor of the loss's shape.
        """
        if self._call is None:
            raise RuntimeError("backward comes after forward(logits, targets), of which there is none")
        loss, grad, _ = self._call
        factor = np.asarray(unmasked(dout, "dout", "dout.filled(0)"))
        if factor.dtype.kind not in "biuf":
            raise TypeError(f"dout must hold real numbers, not dtype {factor.dtype}")
        if factor.size == 1:
            # a numpy scalar would turn a float32 gradient into float64
            return grad.copy(order="K") if factor.item() == 1 else grad * float(factor.item())
        if factor.shape != np.shape(loss):
            once = '; one number, or reduction="none" for a loss of each row' if not np.ndim(loss) else ""
            raise ValueError(f"dout has shape {factor.shape} where the loss has {np.shape(loss)}{once}")
        if factor.ndim < grad.ndim:
            factor = np.expand_dims(factor, self._function.axis)
        return (grad * factor).astype(grad.dtype, copy=False)

    @property
    def probabilities(self) -> np.ndarray:
        """Output activation of the last `forward`; computed when asked for, training does not need it."""
        if self._call is None:
            raise AttributeError("probabilities come after forward(logits, targets), of which there is none")
        probabilities = np.empty_like(self._call.grad)
        # targets that no loss ignores
        targets = np.broadcast_to(0.5, probabilities.shape)
        self._function(self._call.logits, targets, with_stats=True, probabilities=probabilities)
        return probabilities


class LossLayer(_Criterion):
    """Output activation and loss as one layer, on the logits; gradient divided as the loss is.

    With ``reduction="mean"``, that is by the number of rows (softmax losses) or of elements (sigmoid
    losses). For a network whose layers divide by the number of samples themselves, `grad_reduction`
    is "sum".

    Parameters
    ----------
    loss : loss object
        One of the losses of stableloss.
    grad_reduction : {"mean", "sum", "batchmean"}, optional
        What the gradient is divided by, if by something else than the loss, as for `reduction` of
        the loss: "sum" is the undivided gradient. With a loss of each row it takes a second pass.

    Attributes
    ----------
    loss : float or ndarray
        The result of the last `forward`.
    probabilities : ndarray
        Output activation of the last `forward`.
    params, grads : list
        Empty, for networks that collect those of all their layers.

    See Also
    --------
    LossObject : for networks that ask a loss for its value and its gradient apart.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> from stableloss.adapters.layer import LossLayer
    >>> layer = LossLayer(sl.softmax_ce)
    >>> round(layer.forward(np.array([[2.0, 0.0], [0.0, 40.0]]), np.array([0, 1])), 6)
    0.063464
    >>> layer.backward()
    array([[-5.96014610e-02,  5.96014610e-02],
           [ 2.12417713e-18, -2.12417713e-18]])
    >>> undivided = LossLayer(sl.softmax_ce, grad_reduction="sum")
    >>> round(undivided(np.array([[2.0, 0.0], [0.0, 40.0]]), np.array([0, 1])), 6)
    0.063464
    >>> undivided.backward()
    array([[-1.19202922e-01,  1.19202922e-01],
           [ 4.24835426e-18, -4.24835426e-18]])
    """

    def __init__(self, loss: Any, *, grad_reduction: str | None = None) -> None:
        super().__init__(loss, grad_reduction)
        self.params: list[Any] = []
        self.grads: list[Any] = []

    def forward(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: float | None = None,
    ) -> Any:
        """Loss of the batch; the gradient for `backward` is made in the same pass.

        Parameters
        ----------
        logits, targets : array_like
            As for the loss.
        sample_weight, mask, denominator
            As for the loss.

        Returns
        -------
        float or ndarray
            As from the loss: an array with ``reduction="none"``.

        Raises
        ------
        TypeError, ValueError
            As for the loss.
        """
        options = {"sample_weight": sample_weight, "mask": mask, "denominator": denominator}
        return self._forward(logits, targets, options)

    __call__ = forward

    @property
    def loss(self) -> Any:
        """The result of the last `forward`."""
        if self._call is None:
            raise AttributeError("loss comes after forward(logits, targets), of which there is none")
        return self._call.loss


class LossObject(_Criterion):
    """Output activation and loss as a loss object, on the logits; gradient divided as the loss is.

    With ``reduction="mean"``, that is by the number of rows (softmax losses) or of elements (sigmoid
    losses); "sum" and "none" leave it undivided, and `grad_reduction` sets it apart from the loss.

    Parameters
    ----------
    loss : loss object
        One of the losses of stableloss. Its reduction makes the loss a mean, a sum, or ("none") one
        value per row or element.
    target_first : bool, default: False
        The order of the arguments of all calls: (prediction, target), or (target, prediction).
    grad_reduction : {"mean", "sum", "batchmean"}, optional
        What the gradient is divided by, if by something else than the loss, as for `reduction` of
        the loss: "sum" is the undivided gradient.

    Attributes
    ----------
    probabilities : ndarray
        Output activation of the last `forward`.

    See Also
    --------
    LossLayer : for networks that treat the loss as a layer.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> from stableloss.adapters.layer import LossObject
    >>> logits, y = np.array([[2.0, 0.0], [0.0, 40.0]]), np.array([[1, 0], [0, 1]])
    >>> loss = LossObject(sl.softmax_ce)
    >>> round(loss.loss(logits, y), 6)
    0.063464
    >>> loss.grad(logits, y)
    array([[-5.96014610e-02,  5.96014610e-02],
           [ 2.12417713e-18, -2.12417713e-18]])
    >>> criterion = LossObject(sl.SoftmaxCE(reduction="none"))
    >>> criterion(logits, y)
    array([1.26928011e-01, 4.24835426e-18])
    >>> criterion.derivative()
    array([[-1.19202922e-01,  1.19202922e-01],
           [ 4.24835426e-18, -4.24835426e-18]])
    >>> total = LossObject(sl.SoftmaxCE(reduction="sum"), target_first=True)
    >>> round(total.loss(y, logits), 6)
    0.126928
    """

    def __init__(self, loss: Any, *, target_first: bool = False, grad_reduction: str | None = None) -> None:
        super().__init__(loss, grad_reduction)
        self._target_first = target_first

    def _ordered(self, first: Any, second: Any) -> tuple[Any, Any]:
        if not self._target_first:
            return first, second
        if np.ndim(first) > np.ndim(second):
            raise ValueError(
                f"the first argument has shape {np.shape(first)} and the second {np.shape(second)}, but with "
                "target_first=True the targets come first"
            )
        return second, first

    def loss(self, first: Any, second: Any, **options: Any) -> Any:
        """The loss alone.

        Parameters
        ----------
        first, second : array_like
            Logits and targets, as for the loss; or targets and logits with `target_first`.
        **options
            `sample_weight`, `mask` and `denominator`, as for the loss.

        Returns
        -------
        float or ndarray
            As from the loss: an array with ``reduction="none"``.

        Raises
        ------
        TypeError, ValueError
            As for the loss.
        """
        return self._value(*self._ordered(first, second), options)

    def grad(self, first: Any, second: Any, **options: Any) -> np.ndarray:
        """Gradient with respect to the logits.

        Parameters
        ----------
        first, second : array_like
            Logits and targets, as for the loss; or targets and logits with `target_first`.
        **options
            `sample_weight`, `mask` and `denominator`, as for the loss.

        Returns
        -------
        ndarray

        Raises
        ------
        TypeError, ValueError
            As for the loss.
        """
        logits, targets = self._ordered(first, second)
        return self._of_grad.value_and_grad(logits, targets, **self._for(self._of_grad, options))[1]

    gradient = grad

    def acc(self, first: Any, second: Any) -> float:
        """Share of rows (sigmoid losses: of elements) that are predicted right.

        Parameters
        ----------
        first, second : array_like
            Logits and targets, as for the loss; or targets and logits with `target_first`.

        Returns
        -------
        float
        """
        _, stats = self._function(*self._ordered(first, second), with_stats=True)
        return stats.correct / max(stats.predicted.size, 1)

    def forward(self, first: Any, second: Any, **options: Any) -> Any:
        """The loss; the gradient for `derivative` or `backward` is made in the same pass.

        Parameters
        ----------
        first, second : array_like
            Logits and targets, as for the loss; or targets and logits with `target_first`.
        **options
            `sample_weight`, `mask` and `denominator`, as for the loss.

        Returns
        -------
        float or ndarray
            As from the loss: an array with ``reduction="none"``.

        Raises
        ------
        TypeError, ValueError
            As for the loss.
        """
        return self._forward(*self._ordered(first, second), options)

    __call__ = forward

    def derivative(self) -> np.ndarray:
        """Gradient with respect to the logits of the last `forward`, as from `backward`."""
        return self.backward()

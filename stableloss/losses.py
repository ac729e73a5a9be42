"""The four losses: callable objects whose options are set once; no arithmetic is done here.

A loss is defined by its formula in the kernel file of its stem and by a class here, whose ready-made
instance carries the stem as its name.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NoReturn

from stableloss import _arrays
from stableloss._arrays import WANT_GRAD, WANT_HESS, WANT_LOSS
from stableloss._dispatch import kernels

__all__ = [
    "SigmoidBCE",
    "SigmoidMSE",
    "SoftmaxCE",
    "SoftmaxMSE",
    "sigmoid_bce",
    "sigmoid_mse",
    "softmax_ce",
    "softmax_mse",
]

LOSS_AND_GRAD = WANT_LOSS | WANT_GRAD
GRAD_AND_HESS = WANT_GRAD | WANT_HESS


def _rebuild(cls: type[_Loss], options: dict[str, Any]) -> _Loss:
    return cls(**options)


class _Loss:
    """What the four losses share: options, calls, identity."""

    __slots__ = ("_clip", "_kernel", "_reduction", "logit_clip", "reduction")

    _stem: ClassVar[str]
    _read_targets: ClassVar[Any]

    reduction: str
    logit_clip: float | None
    _kernel: _arrays.Kernel
    _reduction: int
    _clip: float

    def __init__(self, *, reduction: str = "mean", logit_clip: float | None = None) -> None:
        if reduction not in _arrays.REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}, not one of {', '.join(_arrays.REDUCTIONS)}")
        if logit_clip is not None and not 0 < logit_clip < math.inf:
            raise ValueError(f"logit_clip is {logit_clip!r}, not a positive finite number")
        set_slot = super().__setattr__
        set_slot("reduction", reduction)
        set_slot("logit_clip", None if logit_clip is None else float(logit_clip))
        set_slot("_kernel", getattr(kernels, self._stem))
        set_slot("_reduction", _arrays.REDUCTIONS[reduction])
        set_slot("_clip", math.inf if logit_clip is None else float(logit_clip))

    def __call__(self, logits: Any, targets: Any, *, sample_weight: Any = None) -> Any:
        """Loss of logits against targets.

        Parameters
        ----------
        logits, targets : array_like
            As the class describes them.
        sample_weight : array_like, optional
            Non-negative weights, of shape ``logits.shape[:-1]``, one per row; for the sigmoid losses
            also of the shape of `logits`, one per element. A weight of 0 removes the row or element,
            whatever it holds.

        Returns
        -------
        float or ndarray
            A Python float, summed in float64; with reduction "none" an array of the logits' dtype.

        Raises
        ------
        TypeError
            If an argument does not hold real numbers.
        ValueError
            If shapes do not agree, or a target or weight is out of range.
        """
        result = self._kernel(
            logits, targets, sample_weight, None, None, WANT_LOSS, self._reduction, self._clip
        )
        if result is None:
            return self._prepared(logits, targets, sample_weight, (None, None), WANT_LOSS)
        return result

    def value_and_grad(
        self, logits: Any, targets: Any, *, sample_weight: Any = None, out: Any = None
    ) -> tuple[Any, Any]:
        """Loss and its gradient with respect to the logits, in one pass.

        Parameters
        ----------
        logits, targets, sample_weight : array_like
            As for calling the loss.
        out : ndarray, optional
            Where to write the gradient: an array of its shape and dtype. ``out=logits`` overwrites
            the logits in place.

        Returns
        -------
        loss : float or ndarray
            As from calling the loss.
        grad : ndarray
            Derivative of the reduced loss (with reduction "none": of the sum) with respect to each
            logit, of the shape and memory order of `logits`; float32 for float32 logits, else
            float64. This is `out`, where given.

        Raises
        ------
        TypeError
            If an argument does not hold real numbers, or `out` is not an array of the result's dtype.
        ValueError
            If shapes do not agree, a target or weight is out of range, or `out` is read-only. Nothing
            has been written to `out` then.
        """
        result = self._kernel(
            logits, targets, sample_weight, out, None, LOSS_AND_GRAD, self._reduction, self._clip
        )
        if result is None:
            result = self._prepared(logits, targets, sample_weight, (out, None), LOSS_AND_GRAD)
        return result

    def grad_and_hess(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        out: tuple[Any, Any] | None = None,
    ) -> tuple[Any, Any]:
        """Gradient and exact diagonal of the Hessian with respect to the logits, unreduced.

        Parameters
        ----------
        logits, targets, sample_weight : array_like
            As for calling the loss.
        out : pair of ndarray, optional
            Where to write the two results.

        Returns
        -------
        grad, hess : ndarray
            First and second derivative of each row's (weighted) loss with respect to each of its
            logits, whatever the reduction of this object; shape, dtype and memory order as the
            gradient of `value_and_grad`.

        Raises
        ------
        TypeError, ValueError
            As for `value_and_grad`.
        """
        grad, hess = (None, None) if out is None else out
        result = self._kernel(logits, targets, sample_weight, grad, hess, GRAD_AND_HESS, 0, self._clip)
        if result is None:
            result = self._prepared(logits, targets, sample_weight, (grad, hess), GRAD_AND_HESS)
        return result

    def _prepared(
        self, logits: Any, targets: Any, sample_weight: Any, outs: tuple[Any, Any], want: int
    ) -> Any:
        reduction = 0 if want & WANT_HESS else self._reduction
        return _arrays.prepared_call(
            self._kernel,
            type(self)._read_targets,
            logits,
            targets,
            sample_weight,
            outs,
            want,
            reduction,
            self._clip,
        )

    def _options(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        options: dict[str, Any] = {}
        if self.reduction != "mean":
            options["reduction"] = self.reduction
        if self.logit_clip is not None:
            options["logit_clip"] = self.logit_clip
        return options

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({options})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._options() == other._options()

    def __hash__(self) -> int:
        return hash((type(self), *self._options().items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._options())


class SigmoidBCE(_Loss):
    """Sigmoid activation and binary cross-entropy, from logits.

    With ``a = 1 / (1 + exp(-z))``, the loss of one element is::

        loss = -y log(a) - (1 - y) log(1 - a)
        grad = a - y
        hess = a (1 - a)

    Parameters
    ----------
    reduction : {"mean", "sum", "batchmean", "none"}, default: "mean"
        "mean" divides the sum by the number of elements, "batchmean" by the number of rows (all
        dimensions but the last), weighted or not. "none" keeps one value per element.
    logit_clip : float, optional
        Clamp the logits to [-logit_clip, logit_clip] first; the gradient is the one at the clamped
        logits. Nothing overflows without it.

    Notes
    -----
    Logits have any shape, float32 or float64 (other real dtypes are computed as float64). Targets
    have the same shape: numbers in [0, 1], or bool.

    The loss is ``abs(z) (1 - y if z > 0 else y) + log1p(exp(-abs(z)))`` and the gradient a quotient
    by ``1 + exp(-abs(z))``, neither of which is a difference for y of 0 or 1: both are accurate
    until they underflow. An infinite logit on its target's side has loss and gradient 0, one on the
    other side has loss inf and gradient -1 or 1.

    References
    ----------
    M. Nielsen, Neural Networks and Deep Learning, chapter 3, for the gradient a - y.

    See Also
    --------
    SoftmaxCE : for classes that exclude each other.
    SigmoidMSE : the quadratic cost of the same activation.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> logits = np.array([[2.0, -40.0], [-800.0, 0.0]])
    >>> targets = np.array([[1, 0], [1, 1]])
    >>> loss, grad = sl.sigmoid_bce.value_and_grad(logits, targets)
    >>> round(loss, 6)
    200.205019
    >>> grad
    array([[-2.98007305e-02,  1.06208856e-18],
           [-2.50000000e-01, -1.25000000e-01]])
    """

    __slots__ = ()
    _stem = "sigmoid_bce"
    _read_targets = staticmethod(_arrays.sigmoid_targets)


class SoftmaxCE(_Loss):
    """Softmax activation and cross-entropy, from logits.

    With ``p = softmax(z)``, the loss of one row with target class y, or target probabilities t, is::

        loss = -log(p[y])             -sum_k t[k] log(p[k])
        grad = p[k] - (k == y)        p[k] sum(t) - t[k]
        hess = p[k] (1 - p[k])        p[k] (1 - p[k]) sum(t)

    Parameters
    ----------
    reduction : {"mean", "sum", "batchmean", "none"}, default: "mean"
        "mean" divides the sum by the total weight of the rows (their number, without weights),
        "batchmean" by the number of rows. "none" keeps one value per row.
    logit_clip : float, optional
        Clamp the logits to [-logit_clip, logit_clip] first; the gradient is the one at the clamped
        logits. Nothing overflows without it.

    Notes
    -----
    Logits have shape (..., k) with the classes last, float32 or float64 (other real dtypes are
    computed as float64). Targets are class indices of shape (...), of any integer dtype, bool, or
    whole-number floats; or non-negative numbers of shape (..., k), which need not sum to 1.

    The loss of a row whose target is its maximum is ``log1p`` of the other exponentials' sum, and
    the gradient at the target minus their share: a confident prediction keeps both until they
    underflow. A class of logit -inf has probability and gradient 0; several +inf share the
    probability equally; a row with NaN, or of nothing but -inf, is NaN.

    References
    ----------
    I. Goodfellow, Y. Bengio, A. Courville, Deep Learning, section 6.2.2.3.

    See Also
    --------
    SigmoidBCE : for classes that do not exclude each other.
    SoftmaxMSE : the quadratic cost of the same activation.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> logits = np.array([[40.0, 0.0, 0.0], [1.0, 2.0, 1000.0]])
    >>> loss, grad = sl.softmax_ce.value_and_grad(logits, [0, 1])
    >>> loss
    499.0
    >>> grad[0]
    array([-4.24835426e-18,  2.12417713e-18,  2.12417713e-18])
    """

    __slots__ = ()
    _stem = "softmax_ce"
    _read_targets = staticmethod(_arrays.softmax_targets)


class SigmoidMSE(_Loss):
    """Sigmoid activation and quadratic cost, from logits.

    With ``a = 1 / (1 + exp(-z))``, the loss of one element is::

        loss = (a - y)**2 / 2
        grad = (a - y) a (1 - a)
        hess = a (1 - a) (a (1 - a) + (a - y) (1 - 2 a))

    Parameters
    ----------
    reduction : {"mean", "sum", "batchmean", "none"}, default: "mean"
        "mean" divides the sum by the number of elements, "batchmean" by the number of rows (all
        dimensions but the last), weighted or not. "none" keeps one value per element.
    logit_clip : float, optional
        Clamp the logits to [-logit_clip, logit_clip] first; the gradient is the one at the clamped
        logits. Nothing overflows without it.

    Notes
    -----
    Logits have any shape, float32 or float64 (other real dtypes are computed as float64). Targets
    have the same shape: numbers in [0, 1], or bool. The factor 1/2 is that of the textbooks; PyTorch
    and scikit-learn leave it out.

    The gradient of a confidently wrong element is small by its nature, but never rounds to 0 before
    it underflows. The Hessian may be negative.

    References
    ----------
    M. Nielsen, Neural Networks and Deep Learning, chapter 1, for this cost.

    See Also
    --------
    SigmoidBCE : whose gradient does not vanish for a confidently wrong element.
    SoftmaxMSE : the same cost on a softmax.

    Examples
    --------
    >>> import stableloss as sl
    >>> loss, grad = sl.sigmoid_mse.value_and_grad([40.0], [0.0])
    >>> loss
    0.5
    >>> grad
    array([4.24835426e-18])
    """

    __slots__ = ()
    _stem = "sigmoid_mse"
    _read_targets = staticmethod(_arrays.sigmoid_targets)


class SoftmaxMSE(_Loss):
    """Softmax activation and quadratic cost, from logits.

    With ``p = softmax(z)`` and target probabilities t (one-hot for a class index), the loss of one
    row is::

        d    = p - t
        loss = sum_k d[k]**2 / 2
        grad = p[k] b[k],  b = d - sum(p d)
        hess = p[k] (b[k] (1 - 2 p[k]) + p[k] (1 - 2 p[k] + sum(p**2)))

    Parameters
    ----------
    reduction : {"mean", "sum", "batchmean", "none"}, default: "mean"
        "mean" divides the sum by the total weight of the rows (their number, without weights),
        "batchmean" by the number of rows. "none" keeps one value per row.
    logit_clip : float, optional
        Clamp the logits to [-logit_clip, logit_clip] first; the gradient is the one at the clamped
        logits. Nothing overflows without it.

    Notes
    -----
    Logits and targets as for `SoftmaxCE`. The sum over classes has the factor 1/2 and is not divided
    by the number of classes. The Hessian may be negative.

    References
    ----------
    G. Brier, Verification of forecasts expressed in terms of probability (1950), without the 1/2.

    See Also
    --------
    SoftmaxCE : whose gradient does not vanish for a confidently wrong row.
    SigmoidMSE : the same cost on independent outputs.

    Examples
    --------
    >>> import stableloss as sl
    >>> loss, grad = sl.softmax_mse.value_and_grad([[0.0, 0.0]], [1])
    >>> loss
    0.25
    >>> grad
    array([[ 0.25, -0.25]])
    """

    __slots__ = ()
    _stem = "softmax_mse"
    _read_targets = staticmethod(_arrays.softmax_targets)


sigmoid_bce = SigmoidBCE()
softmax_ce = SoftmaxCE()
sigmoid_mse = SigmoidMSE()
softmax_mse = SoftmaxMSE()

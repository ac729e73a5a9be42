"""The four losses: callable objects whose options are set once; no arithmetic is done here.

A loss is defined by its formula in the kernel file of its stem and by a class here, whose ready-made
instance carries the stem as its name.
"""

import math
from typing import Any, ClassVar, NoReturn

import numpy as np

from stableloss import _arrays
from stableloss._arrays import (
    WANT_GRAD,
    WANT_HESS,
    WANT_LOSS,
    WANT_PRODUCT,
    WANT_STATS,
    WANT_TARGET_GRAD,
    Stats,
    index,
    number,
    positive,
)
from stableloss._dispatch import kernels

__all__ = [
    "SigmoidBCE",
    "SigmoidMSE",
    "SoftmaxCE",
    "SoftmaxMSE",
    "Stats",
    "sigmoid_bce",
    "sigmoid_mse",
    "softmax_ce",
    "softmax_mse",
]

LOSS_AND_GRAD = WANT_LOSS | WANT_GRAD
GRAD_AND_HESS = WANT_GRAD | WANT_HESS


# ---- checks of options ----------------------------------------------------------------------------


def _not_negative(name: str, value: Any) -> float:
    return number(name, value, lambda x: 0 <= x < math.inf, "not a non-negative finite number")


def _smoothing(value: Any) -> float:
    return number("label_smoothing", value, lambda x: 0 <= x < 1, "not in [0, 1)")


def _ignored(value: Any) -> int:
    ignored = index("ignore_index", value)
    if not -(2**63) <= ignored < 2**64:
        raise ValueError("ignore_index is not in the range of any integer dtype")
    return ignored


def _weights(name: str, value: Any) -> tuple[float, ...]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, not dtype {array.dtype}")
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} has shape {array.shape}, not one number per class")
    valid = (array >= 0) & (array < math.inf)
    _arrays.require_values(array, valid, name, "not a non-negative finite number")
    return tuple(array.astype(np.float64).tolist())


def _as_array(weights: float | tuple[float, ...] | None) -> np.ndarray | None:
    return None if weights is None else np.atleast_1d(np.asarray(weights, np.float64))


# ---- the losses -----------------------------------------------------------------------------------


def _rebuild(cls: "type[_Loss]", options: dict[str, Any]) -> "_Loss":
    return cls(**options)


class _Loss:
    """What the losses share: calls and identity."""

    __slots__ = ("_kernel", "_options", "_spec", "logit_clip", "reduction")

    _stem: ClassVar[str]
    _rowwise: ClassVar[bool]
    _defaults: ClassVar[dict[str, Any]] = {"reduction": "mean", "logit_clip": None}

    reduction: str
    logit_clip: float | None
    _kernel: _arrays.Kernel
    _options: Any
    _spec: _arrays.Spec

    def __init__(self, *, reduction: str = "mean", logit_clip: float | None = None) -> None:
        self._configure(
            reduction=reduction,
            logit_clip=None if logit_clip is None else positive("logit_clip", logit_clip),
        )

    def _configure(self, **options: Any) -> None:
        """Keep options that have been checked, and what the kernels make of them."""
        reduction = options["reduction"]
        if reduction not in _arrays.REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}, not one of {', '.join(_arrays.REDUCTIONS)}")
        get = options.get
        set_slot = super().__setattr__
        for name, value in options.items():
            set_slot(name, value)
        ignore, alpha = get("ignore_index"), get("focal_alpha")
        class_weight, pos_weight = _as_array(get("class_weight")), _as_array(get("pos_weight"))
        compiled = kernels.Options(
            _arrays.REDUCTIONS[reduction],
            clip=math.inf if options["logit_clip"] is None else options["logit_clip"],
            scale=get("logit_scale", 1.0),
            cap=get("softcap") or 0.0,
            smoothing=get("label_smoothing", 0.0),
            focal=get("focal_gamma", 0.0),
            z_loss=get("z_loss", 0.0),
            positive=1.0 if alpha is None else alpha,
            negative=1.0 if alpha is None else 1.0 - alpha,
            ignore=ignore,
            class_weight=class_weight,
            positive_weight=pos_weight,
            positive_shared=isinstance(get("pos_weight"), float),
            probabilities=get("from_probabilities", False),
        )
        kernel = getattr(kernels, self._stem)
        axis = get("axis", -1)
        set_slot("_options", compiled)
        set_slot("_kernel", kernel if axis == -1 else _arrays.along(kernel, axis))
        spec = _arrays.Spec(
            kernel=kernel,
            options=compiled,
            reduction=reduction,
            rowwise=self._rowwise,
            axis=axis,
            ignore_index=ignore,
            class_weights=None if class_weight is None else class_weight.size,
            pos_weights=None
            if pos_weight is None or isinstance(get("pos_weight"), float)
            else pos_weight.size,
            from_probabilities=get("from_probabilities", False),
        )
        set_slot("_spec", spec)

    def __call__(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: float | None = None,
        with_stats: bool = False,
        probabilities: np.ndarray | None = None,
    ) -> Any:
        """Loss of logits against targets.

        Parameters
        ----------
        logits, targets : array_like
            As the class describes them.
        sample_weight : array_like, optional
            Non-negative weights, one per row: the shape of `logits` without the class axis; for the
            sigmoid losses also of the shape of `logits`, one per element. A weight of 0 removes the
            row or element, whatever its logits hold.
        mask : array_like of bool, optional
            True where a row (for the sigmoid losses also: an element) counts; shapes as for
            `sample_weight`. Elsewhere logits and targets may be anything, NaN included.
        denominator : float, optional
            Positive number to divide the sum by, in place of the divisor of "mean" or "batchmean":
            for gradients that are accumulated over several calls, or a mean over something else.
        with_stats : bool, default: False
            Also return what the same pass finds out: predicted classes, how many are correct, and
            the logsumexp and entropy of each row. The gradient may differ in its last bit from that
            of a call without.
        probabilities : ndarray, optional
            With `with_stats`, an array of the shape and dtype of `logits` to fill with the activations.

        Returns
        -------
        loss : float or ndarray
            A Python float, summed in float64; with reduction "none" an array of the logits' dtype
            (float32 for half-precision logits).
        stats : Stats
            Only with `with_stats`.

        Raises
        ------
        TypeError
            If an argument does not hold real numbers, or `mask` is not bool.
        ValueError
            If shapes do not agree, or a target, weight or denominator is out of range.
        """
        if with_stats or probabilities is not None:
            loss, _, stats = self._measured(
                WANT_LOSS, logits, targets, sample_weight, mask, denominator, None, probabilities, with_stats
            )
            return loss, stats
        # as in _run, without the time of one more call
        result = self._kernel(
            logits,
            targets,
            sample_weight,
            mask,
            denominator,
            None,
            None,
            None,
            None,
            WANT_LOSS,
            self._options,
        )
        if result is None:
            return self._run(WANT_LOSS, logits, targets, sample_weight, mask, denominator)
        return result

    def value_and_grad(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: float | None = None,
        out: np.ndarray | None = None,
        with_stats: bool = False,
        probabilities: np.ndarray | None = None,
    ) -> Any:
        """Loss and its gradient with respect to the logits, in one pass.

        Parameters
        ----------
        logits, targets, sample_weight, mask : array_like
            As for calling the loss.
        denominator, with_stats, probabilities : float, bool, ndarray
            Likewise.
        out : ndarray, optional
            Where to write the gradient: an array of its shape and dtype. ``out=logits`` overwrites
            the logits in place.

        Returns
        -------
        loss : float or ndarray
            As from calling the loss.
        grad : ndarray
            Derivative of the reduced loss (with reduction "none": of the sum) with respect to each
            logit, of the shape and memory order of `logits`, and of their dtype where that is
            floating point, else float64. This is `out`, where given.
        stats : Stats
            Only with `with_stats`.

        Raises
        ------
        TypeError
            If an argument does not hold real numbers, `mask` is not bool, or `out` is not an array of
            the result's dtype.
        ValueError
            If shapes do not agree, a target, weight or denominator is out of range, or `out` is
            read-only. Nothing has been written to `out` then.
        """
        if with_stats or probabilities is not None:
            return self._measured(
                LOSS_AND_GRAD,
                logits,
                targets,
                sample_weight,
                mask,
                denominator,
                out,
                probabilities,
                with_stats,
            )
        # as in _run, without the time of one more call
        result = self._kernel(
            logits,
            targets,
            sample_weight,
            mask,
            denominator,
            out,
            None,
            None,
            None,
            LOSS_AND_GRAD,
            self._options,
        )
        if result is None:
            return self._run(LOSS_AND_GRAD, logits, targets, sample_weight, mask, denominator, out)
        return result

    def grad_and_hess(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        out: tuple[np.ndarray | None, np.ndarray | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and exact diagonal of the Hessian with respect to the logits, unreduced.

        Parameters
        ----------
        logits, targets, sample_weight, mask : array_like
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
        if out is not None and not (isinstance(out, (tuple, list)) and len(out) == 2):
            raise TypeError(f"out must be a pair of arrays, not {type(out).__name__}")
        grad, hess = (None, None) if out is None else out
        result: tuple[np.ndarray, np.ndarray] = self._run(
            GRAD_AND_HESS, logits, targets, sample_weight, mask, out=grad, hess=hess
        )
        return result

    def hessian_vector_product(
        self,
        logits: Any,
        targets: Any,
        v: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: float | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Product of the Hessian of the reduced loss, with respect to the logits, and a vector.

        It is the derivative of `value_and_grad`'s gradient when the logits move along `v`, and never
        forms a Hessian: what Newton-CG and a second backward pass need.

        Parameters
        ----------
        logits, targets, sample_weight, mask, denominator : array_like, float
            As for calling the loss.
        v : array_like
            Real numbers of the shape of `logits`.
        out : ndarray, optional
            Where to write the result; ``out=logits`` and ``out=v`` work.

        Returns
        -------
        ndarray
            Of the shape, dtype and memory order of the gradient.

        Raises
        ------
        TypeError, ValueError
            As for `value_and_grad`.

        Examples
        --------
        >>> import stableloss as sl
        >>> sl.softmax_ce.hessian_vector_product([[0.0, 0.0]], [1], [[1.0, 0.0]])
        array([[ 0.25, -0.25]])
        """
        result: np.ndarray = self._run(
            WANT_PRODUCT, logits, targets, sample_weight, mask, denominator, out, vector=v
        )
        return result

    def _run(
        self,
        want: int,
        logits: Any,
        targets: Any,
        sample_weight: Any,
        mask: Any,
        denominator: Any = None,
        out: Any = None,
        *,
        hess: Any = None,
        vector: Any = None,
        probabilities: Any = None,
    ) -> Any:
        """Call the kernel; where it does not take the arguments as they are, have them prepared."""
        arguments = (logits, targets, sample_weight, mask, denominator, out, hess, vector, probabilities)
        result = self._kernel(*arguments, want, self._options)
        return _arrays.prepared_call(self._spec, *arguments, want) if result is None else result

    def _measured(
        self,
        want: int,
        logits: Any,
        targets: Any,
        sample_weight: Any,
        mask: Any,
        denominator: Any,
        out: Any,
        probabilities: Any,
        with_stats: bool,
    ) -> tuple[Any, Any, Stats]:
        if not with_stats:
            raise ValueError("probabilities is filled only with with_stats=True")
        outputs = (out, probabilities)
        targets = _arrays.undisturbed(targets, outputs)
        sample_weight = _arrays.undisturbed(sample_weight, outputs)
        mask = _arrays.undisturbed(mask, outputs)
        loss, grad, measures = self._run(
            want | WANT_STATS,
            logits,
            targets,
            sample_weight,
            mask,
            denominator,
            out,
            probabilities=probabilities,
        )
        stats = _arrays.stats_of(self._spec, targets, sample_weight, mask, probabilities, measures)
        return loss, grad, stats

    def _changed(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        values = {name: getattr(self, name) for name in self._defaults}
        return {name: value for name, value in values.items() if value != self._defaults[name]}

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._changed().items())
        return f"{type(self).__name__}({options})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._changed() == other._changed()

    def __hash__(self) -> int:
        return hash((type(self), *self._changed().items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._changed())


class _CrossEntropy(_Loss):
    """What the two cross-entropies share: losses that are linear in their targets."""

    __slots__ = ()

    def target_grad(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: float | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Derivative of the reduced loss with respect to the soft targets.

        For plain options it is ``-log(p)``, or ``log(1 - a) - log(a)`` for a sigmoid, over the
        divisor: as accurate for a confident prediction as the loss.

        Parameters
        ----------
        logits, targets, sample_weight, mask, denominator : array_like, float
            As for calling the loss, with targets of the shape of `logits`.
        out : ndarray, optional
            Where to write the result; ``out=logits`` works.

        Returns
        -------
        ndarray
            Of the shape, dtype and memory order of the gradient.

        Raises
        ------
        TypeError, ValueError
            As for `value_and_grad`; class indices are a ValueError.

        Examples
        --------
        >>> import stableloss as sl
        >>> sl.softmax_ce.target_grad([[40.0, 0.0]], [[0.5, 0.5]])
        array([[4.24835426e-18, 4.00000000e+01]])
        """
        result: np.ndarray = self._run(
            WANT_TARGET_GRAD, logits, targets, sample_weight, mask, denominator, out
        )
        return result

    @staticmethod
    def _refuse_beside_probabilities(from_probabilities: Any, **options: Any) -> bool:
        if from_probabilities not in (True, False):
            raise TypeError(f"from_probabilities must be True or False, not {from_probabilities!r}")
        if from_probabilities:
            for name, changed in options.items():
                if changed:
                    raise ValueError(f"from_probabilities=True leaves no logits for {name} to work on")
        return bool(from_probabilities)


class SigmoidBCE(_CrossEntropy):
    """Sigmoid activation and binary cross-entropy, from logits.

    With ``a = 1 / (1 + exp(-z))``, the loss of one element is::

        loss = -y log(a) - (1 - y) log(1 - a)
        grad = a - y
        hess = a (1 - a)

    With options, of an element of output o with sample weight r::

        x    = softcap tanh(logit_scale clamp(z) / softcap),  a = 1 / (1 + exp(-x))
        t    = y (1 - label_smoothing) + label_smoothing / 2
        loss = r class_weight[o] (A t (1 - a)**focal_gamma (-log(a))
                                  + B (1 - t) a**focal_gamma (-log(1 - a)))

    with ``A = pos_weight[o] focal_alpha`` and ``B = 1 - focal_alpha``, or ``A = pos_weight[o]`` and
    ``B = 1`` without `focal_alpha`. Gradient, Hessian and the rest are the exact derivatives of that.

    Parameters
    ----------
    reduction : {"mean", "sum", "batchmean", "none"}, default: "mean"
        "mean" divides the sum by the number of elements that count, weighted or not, "batchmean" by
        the number of rows (all dimensions but the last) with an element that counts. "none" keeps one
        value per element.
    class_weight : array_like of shape (k,), optional
        Non-negative weight of each output, along the last axis.
    pos_weight : float or array_like of shape (k,), optional
        Non-negative weight of the positive term, for all outputs or for each.
    label_smoothing : float, default: 0.0
        Move the targets towards 1/2 by this share, in [0, 1).
    focal_gamma : float, default: 0.0
        Exponent of the focal loss, not negative; 0 is the plain loss.
    focal_alpha : float, optional
        Weight of the positive term of the focal loss, in [0, 1]; the negative one gets the rest.
    logit_scale : float, default: 1.0
        Positive factor of the logits, the inverse of a temperature.
    softcap : float, optional
        Positive bound C of the logits, ``C tanh(z / C)``; the gradient goes through it.
    logit_clip : float, optional
        Clamp the logits to [-logit_clip, logit_clip] first; the gradient is the one at the clamped
        logits. Nothing overflows without it.
    from_probabilities : bool, default: False
        The first argument holds activations a in [0, 1], not logits. Values below the smallest
        normal number of their dtype (of float32 for half precision), and values whose distance from
        1 is, count as that number. The gradient is still the one by the logits, ``a - y``, without a
        quotient. Not with `logit_scale`, `softcap` or `logit_clip`.

    Notes
    -----
    Logits have any shape, float32 or float64; float16 and bfloat16 are computed in float32, other
    real dtypes as float64. Targets have the same shape: numbers in [0, 1], or bool.

    The loss is ``abs(z) (1 - y if z > 0 else y) + log1p(exp(-abs(z)))`` and the gradient a quotient
    by ``1 + exp(-abs(z))``, neither of which is a difference for y of 0 or 1: both are accurate
    until they underflow. An infinite logit on its target's side has loss and gradient 0, one on the
    other side has loss inf and gradient -1 or 1.

    What `from_probabilities` can not bring back: an activation that has rounded to 1 says nothing
    about its logit beyond 17 (float32) or 37 (float64).

    Accuracy: largest errors found in an element's results, without options, for finite logits: in
    ulps of the exact value or, with soft targets, of the largest term of the difference that it is;
    in parentheses the bound that the tests hold. Results below the smallest normal number may be 0.
    float32 with targets 0 and 1: of all 2**32 logits.

    =======  =======  ========  ========  ========
    dtype    targets  loss      gradient  Hessian
    =======  =======  ========  ========  ========
    float32  hard     1.84 (4)  2.41 (4)  2.38 (4)
    float32  soft     1.96 (4)  2.95 (4)  2.34 (4)
    float64  hard     1.56 (4)  2.41 (4)  2.40 (4)
    float64  soft     1.97 (4)  3.21 (4)  2.42 (4)
    =======  =======  ========  ========  ========

    References
    ----------
    M. Nielsen, Neural Networks and Deep Learning, chapter 3, for the gradient a - y. T.-Y. Lin et al.,
    Focal Loss for Dense Object Detection (2017).

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
    >>> sl.SigmoidBCE(pos_weight=3.0, reduction="none")(logits, targets).round(6)
    array([[3.807840e-01, 0.000000e+00],
           [2.400000e+03, 2.079442e+00]])
    """

    __slots__ = (
        "class_weight",
        "focal_alpha",
        "focal_gamma",
        "from_probabilities",
        "label_smoothing",
        "logit_scale",
        "pos_weight",
        "softcap",
    )
    _stem = "sigmoid_bce"
    _rowwise = False
    _defaults: ClassVar[dict[str, Any]] = {
        "reduction": "mean",
        "class_weight": None,
        "pos_weight": None,
        "label_smoothing": 0.0,
        "focal_gamma": 0.0,
        "focal_alpha": None,
        "logit_scale": 1.0,
        "softcap": None,
        "logit_clip": None,
        "from_probabilities": False,
    }

    class_weight: tuple[float, ...] | None
    pos_weight: float | tuple[float, ...] | None
    label_smoothing: float
    focal_gamma: float
    focal_alpha: float | None
    logit_scale: float
    softcap: float | None
    from_probabilities: bool

    def __init__(
        self,
        *,
        reduction: str = "mean",
        class_weight: Any = None,
        pos_weight: Any = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        focal_alpha: float | None = None,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        logit_clip: float | None = None,
        from_probabilities: bool = False,
    ) -> None:
        if pos_weight is not None:
            scalar = np.ndim(pos_weight) == 0
            pos_weight = (_not_negative if scalar else _weights)("pos_weight", pos_weight)
        if focal_alpha is not None:
            focal_alpha = number("focal_alpha", focal_alpha, lambda x: 0 <= x <= 1, "not in [0, 1]")
        self._configure(
            reduction=reduction,
            class_weight=None if class_weight is None else _weights("class_weight", class_weight),
            pos_weight=pos_weight,
            label_smoothing=_smoothing(label_smoothing),
            focal_gamma=_not_negative("focal_gamma", focal_gamma),
            focal_alpha=focal_alpha,
            logit_scale=positive("logit_scale", logit_scale),
            softcap=None if softcap is None else positive("softcap", softcap),
            logit_clip=None if logit_clip is None else positive("logit_clip", logit_clip),
            from_probabilities=self._refuse_beside_probabilities(
                from_probabilities,
                logit_scale=logit_scale != 1,
                softcap=softcap is not None,
                logit_clip=logit_clip is not None,
            ),
        )


class SoftmaxCE(_CrossEntropy):
    """Softmax activation and cross-entropy, from logits.

    With ``p = softmax(z)``, the loss of one row with target class y, or target probabilities t, is::

        loss = -log(p[y])             -sum_k t[k] log(p[k])
        grad = p[k] - (k == y)        p[k] sum(t) - t[k]
        hess = p[k] (1 - p[k])        p[k] (1 - p[k]) sum(t)

    With options, of a row of sample weight r, t one-hot for a class index::

        x    = softcap tanh(logit_scale clamp(z) / softcap),  p = softmax(x)
        q    = class_weight ((1 - label_smoothing) t + label_smoothing / K)
        loss = r (sum_k q[k] (1 - p[k])**focal_gamma (-log(p[k])) + z_loss logsumexp(x)**2)

    where K counts the classes above -inf, and the others get no smoothing. Gradient, Hessian and the
    rest are the exact derivatives of that.

    Parameters
    ----------
    reduction : {"mean", "sum", "batchmean", "none"}, default: "mean"
        "mean" divides the sum by the total weight of the rows that count: their sample weight, for
        class indices times the weight of their target's class; without weights, their number.
        "batchmean" divides by the number of rows that count, whatever their weight. "none" keeps one
        value per row.
    class_weight : array_like of shape (k,), optional
        Non-negative weight of each class.
    ignore_index : int or None, default: -100
        Class index of rows that do not count.
    label_smoothing : float, default: 0.0
        Share of the target's mass that is spread evenly over the classes, in [0, 1).
    focal_gamma : float, default: 0.0
        Exponent of the focal loss, not negative; 0 is the plain loss.
    z_loss : float, default: 0.0
        Coefficient of the square of the logsumexp, not negative. The weights of classes leave it alone.
    logit_scale : float, default: 1.0
        Positive factor of the logits, the inverse of a temperature.
    softcap : float, optional
        Positive bound C of the logits, ``C tanh(z / C)``; the gradient goes through it. A logit of
        -inf becomes -C, like any other.
    logit_clip : float, optional
        Clamp the logits to [-logit_clip, logit_clip] first; the gradient is the one at the clamped
        logits. Nothing overflows without it.
    axis : int, default: -1
        The axis of the classes. Targets as class indices, weights and results per row have the others.
    from_probabilities : bool, default: False
        The first argument holds probabilities in [0, 1], not logits. Each row is taken relative to its
        sum, and values below the smallest normal number of their dtype (of float32 for half precision)
        count as that number. The gradient is still the one by the logits, ``p - t``, without a
        quotient. Not with `z_loss`, `logit_scale`, `softcap` or `logit_clip`.

    Notes
    -----
    Logits have shape (..., k) with the classes last unless `axis` says otherwise, float32 or float64;
    float16 and bfloat16 are computed in float32, other real dtypes as float64. Targets are class
    indices of shape (...), of any integer dtype, bool, or whole-number floats; or non-negative numbers
    of shape (..., k), which need not sum to 1.

    The loss of a row whose target is its maximum is ``log1p`` of the other exponentials' sum, and
    the gradient at the target minus their share: a confident prediction keeps both until they
    underflow. A class of logit -inf has probability and gradient 0; several +inf share the
    probability equally; a row with NaN, or of nothing but -inf, is NaN.

    What `from_probabilities` can not bring back: a probability that has rounded to 0 says nothing about
    its logit. One that has rounded to 1 is rescued by the others of its row, as long as they have not.

    Accuracy: largest errors found in a row's results, without options, for finite logits: in ulps
    of the exact value or, with soft targets, of the largest term of the difference that it is; in
    parentheses the bound that the tests hold. Results below the smallest normal number may be 0.

    =======  =======  ========  ========  ========
    dtype    targets  loss      gradient  Hessian
    =======  =======  ========  ========  ========
    float32  hard     1.57 (4)  2.27 (4)  3.15 (4)
    float32  soft     1.21 (4)  3.38 (4)  3.44 (4)
    float64  hard     2.29 (4)  2.61 (4)  3.15 (4)
    float64  soft     3.45 (4)  3.88 (4)  3.90 (4)
    =======  =======  ========  ========  ========

    References
    ----------
    I. Goodfellow, Y. Bengio, A. Courville, Deep Learning, section 6.2.2.3. T.-Y. Lin et al., Focal Loss
    for Dense Object Detection (2017), here on the softmax.

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
    >>> loss, grad, stats = sl.softmax_ce.value_and_grad(logits, [0, 1], with_stats=True)
    >>> stats.predicted, stats.correct
    (array([0, 2]), 1)
    >>> round(sl.SoftmaxCE(label_smoothing=0.1, class_weight=[1, 1, 5])(logits, [0, -100]), 6)
    8.0
    """

    __slots__ = (
        "axis",
        "class_weight",
        "focal_gamma",
        "from_probabilities",
        "ignore_index",
        "label_smoothing",
        "logit_scale",
        "softcap",
        "z_loss",
    )
    _stem = "softmax_ce"
    _rowwise = True
    _defaults: ClassVar[dict[str, Any]] = {
        "reduction": "mean",
        "class_weight": None,
        "ignore_index": -100,
        "label_smoothing": 0.0,
        "focal_gamma": 0.0,
        "z_loss": 0.0,
        "logit_scale": 1.0,
        "softcap": None,
        "logit_clip": None,
        "axis": -1,
        "from_probabilities": False,
    }

    class_weight: tuple[float, ...] | None
    ignore_index: int | None
    label_smoothing: float
    focal_gamma: float
    z_loss: float
    logit_scale: float
    softcap: float | None
    axis: int
    from_probabilities: bool

    def __init__(
        self,
        *,
        reduction: str = "mean",
        class_weight: Any = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        logit_clip: float | None = None,
        axis: int = -1,
        from_probabilities: bool = False,
    ) -> None:
        self._configure(
            reduction=reduction,
            class_weight=None if class_weight is None else _weights("class_weight", class_weight),
            ignore_index=None if ignore_index is None else _ignored(ignore_index),
            label_smoothing=_smoothing(label_smoothing),
            focal_gamma=_not_negative("focal_gamma", focal_gamma),
            z_loss=_not_negative("z_loss", z_loss),
            logit_scale=positive("logit_scale", logit_scale),
            softcap=None if softcap is None else positive("softcap", softcap),
            logit_clip=None if logit_clip is None else positive("logit_clip", logit_clip),
            axis=index("axis", axis),
            from_probabilities=self._refuse_beside_probabilities(
                from_probabilities,
                z_loss=z_loss != 0,
                logit_scale=logit_scale != 1,
                softcap=softcap is not None,
                logit_clip=logit_clip is not None,
            ),
        )


class SigmoidMSE(_Loss):
    """Sigmoid activation and quadratic cost, from logits.

    With ``a = 1 / (1 + exp(-z))``, the loss of one element is::

        loss = (a - y)**2 / 2
        grad = (a - y) a (1 - a)
        hess = a (1 - a) (a (1 - a) + (a - y) (1 - 2 a))

    Parameters
    ----------
    reduction : {"mean", "sum", "batchmean", "none"}, default: "mean"
        "mean" divides the sum by the number of elements that count, weighted or not, "batchmean" by
        the number of rows (all dimensions but the last) with an element that counts. "none" keeps one
        value per element.
    logit_clip : float, optional
        Clamp the logits to [-logit_clip, logit_clip] first; the gradient is the one at the clamped
        logits. Nothing overflows without it.

    Notes
    -----
    Logits have any shape, float32 or float64; float16 and bfloat16 are computed in float32, other
    real dtypes as float64. Targets have the same shape: numbers in [0, 1], or bool. The factor 1/2 is
    that of the textbooks; PyTorch and scikit-learn leave it out.

    The gradient of a confidently wrong element is small by its nature, but never rounds to 0 before
    it underflows. The Hessian may be negative.

    Accuracy: largest errors found in an element's results, for finite logits: in ulps of the exact
    value or, for the Hessian and with soft targets, of the largest term of the difference that it
    is; in parentheses the bound that the tests hold. Results below the smallest normal number may
    be 0. float32 with targets 0 and 1: of all 2**32 logits.

    =======  =======  ========  ========  ========
    dtype    targets  loss      gradient  Hessian
    =======  =======  ========  ========  ========
    float32  hard     3.17 (4)  3.17 (4)  3.07 (4)
    float32  soft     2.20 (4)  3.76 (4)  3.40 (4)
    float64  hard     3.32 (4)  3.26 (4)  3.23 (4)
    float64  soft     2.21 (4)  3.45 (4)  3.76 (4)
    =======  =======  ========  ========  ========

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
    _rowwise = False


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
        "batchmean" by the number of rows that are not masked. "none" keeps one value per row.
    logit_clip : float, optional
        Clamp the logits to [-logit_clip, logit_clip] first; the gradient is the one at the clamped
        logits. Nothing overflows without it.
    axis : int, default: -1
        The axis of the classes. Targets as class indices, weights and results per row have the others.

    Notes
    -----
    Logits and targets as for `SoftmaxCE`. The sum over classes has the factor 1/2 and is not divided
    by the number of classes. The Hessian may be negative.

    Accuracy: largest errors found in a row's results, for finite logits, in ulps of the largest
    term of the differences that they are; in parentheses the bound that the tests hold. Results
    below the smallest normal number may be 0.

    =======  =======  ========  ========  ========
    dtype    targets  loss      gradient  Hessian
    =======  =======  ========  ========  ========
    float32  hard     3.03 (4)  3.03 (4)  3.03 (4)
    float32  soft     0.75 (4)  2.38 (4)  3.39 (4)
    float64  hard     3.06 (4)  2.69 (4)  3.77 (4)
    float64  soft     2.27 (4)  3.09 (4)  3.69 (4)
    =======  =======  ========  ========  ========

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

    __slots__ = ("axis",)
    _stem = "softmax_mse"
    _rowwise = True
    _defaults: ClassVar[dict[str, Any]] = {"reduction": "mean", "logit_clip": None, "axis": -1}

    axis: int

    def __init__(self, *, reduction: str = "mean", logit_clip: float | None = None, axis: int = -1) -> None:
        self._configure(
            reduction=reduction,
            logit_clip=None if logit_clip is None else positive("logit_clip", logit_clip),
            axis=index("axis", axis),
        )


sigmoid_bce = SigmoidBCE()
softmax_ce = SoftmaxCE()
sigmoid_mse = SigmoidMSE()
softmax_mse = SoftmaxMSE()

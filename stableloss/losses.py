"""The losses: callable objects whose options are set once; no arithmetic is done here.

A loss is defined by its formula in the kernel file of its stem and by a class here, whose ready-made
instance carries the stem as its name.
"""

import functools
import math
from collections.abc import Callable, Mapping, Set
from copyreg import _slotnames  # type: ignore[attr-defined]
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias, cast, overload

import numpy as np

from stableloss._arrays import Stats, index, number, positive
from stableloss._dispatch import Function, implemented_by, kernels
from stableloss.shards import Part

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

# a reduced loss, or one value per row or element
Value: TypeAlias = float | np.ndarray


# ---- options --------------------------------------------------------------------------------------


def _reduction(name: str, value: Any) -> str:
    known = tuple(kernels.REDUCTIONS)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}, not one of {', '.join(known)}")
    return known[known.index(value)]


def _not_negative(name: str, value: Any) -> float:
    return number(name, value, lambda x: 0 <= x < math.inf, "not a non-negative finite number")


def _exponent(name: str, value: Any) -> float | tuple[float, float]:
    if not isinstance(value, (tuple, list)):
        return _not_negative(name, value)
    if len(value) != 2:
        raise ValueError(f"{name} is {value!r}, not one number or a pair (positive, negative)")
    positives, negatives = (_not_negative(name, item) for item in value)
    return positives if positives == negatives else (positives, negatives)


def _smoothing(name: str, value: Any) -> float:
    return number(name, value, lambda x: 0 <= x < 1, "not in [0, 1)")


def _share(name: str, value: Any) -> float:
    return number(name, value, lambda x: 0 <= x <= 1, "not in [0, 1]")


def _label(name: str, value: Any) -> int:
    label = index(name, value)
    if not -(2**63) <= label < 2**64:
        raise ValueError(f"{name} is not in the range of any integer dtype")
    return label


def _labels(name: str, value: Any) -> int | tuple[int, ...] | None:
    if value is None or isinstance(value, int):
        return None if value is None else _label(name, value)
    if isinstance(value, Set):
        raise TypeError(f"{name} must be an integer or a tuple of integers, not {value!r}")
    return tuple(_label(name, item) for item in value) if np.ndim(value) else _label(name, value)


def _weights(name: str, value: Any) -> tuple[float, ...]:
    labels = getattr(value, "index", None)  # of a pandas Series
    labels = None if labels is None or callable(labels) else list(labels)
    if labels is not None and labels != list(range(len(labels))):
        by_label = "sort_index()" if set(labels) == set(range(len(labels))) else "loc[classes].to_numpy()"
        raise ValueError(
            f"{name} has the index {labels!r}, not 0 ... {len(labels) - 1} in order, and would be "
            f"taken by position: pass {name}.{by_label}"
        )
    numbers: tuple[float, ...] = kernels.weights(name, value)
    return numbers


def _weight_or_weights(name: str, value: Any) -> float | tuple[float, ...]:
    if isinstance(value, (list, tuple)) or (not isinstance(value, (int, float)) and np.ndim(value)):
        return _weights(name, value)
    return _not_negative(name, value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)) and not (type(value) is int and value in (0, 1)):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


# What every option has to be, whatever loss has it. A value that is the default is not looked at.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "reduction": _reduction,
    "class_weight": _weights,
    "pos_weight": _weight_or_weights,
    "ignore_index": _labels,
    "label_smoothing": _smoothing,
    "focal_gamma": _exponent,
    "focal_alpha": _share,
    "z_loss": _not_negative,
    "logit_scale": positive,
    "softcap": positive,
    "logit_clip": positive,
    "axis": index,
    "from_probabilities": _flag,
}
_OF_LOGITS = ("z_loss", "logit_scale", "softcap", "logit_clip")


class _Option:
    """An option of a loss, as its attribute."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, loss: Any, cls: Any) -> Any:
        return self if loss is None else loss._options[self.name]


# ---- the losses -----------------------------------------------------------------------------------


def _rebuild(
    cls: "type[_Loss]",
    options: dict[str, Any],
    extra: Mapping[str, Any] | None = None,
    flushes: bool = False,
) -> "_Loss":
    """A loss from its pickle, also of a class whose `__init__` takes other arguments."""
    if not (isinstance(cls, type) and issubclass(cls, _Loss)):
        raise TypeError(f"{cls!r} is not a class of losses")
    unknown = sorted(options.keys() - cls._defaults.keys())
    if unknown:
        raise TypeError(f"{cls.__name__} has no option {unknown[0]!r}")
    loss = cls.__new__(cls)
    loss._configure(options, flushes)
    for name, value in (extra or {}).items():
        object.__setattr__(loss, name, value)
    return loss


def _takes_options(declared: Function) -> Function:
    """An `__init__` of the options that are declared, which looks at those alone that are given."""

    @functools.wraps(declared)
    def __init__(self: "_Loss", **given: Any) -> None:
        self._configure(given)

    return cast(Function, __init__)


class _Loss(kernels.Loss):
    """What the losses share: calls and identity.

    A class of losses names its kernel (`_stem`), whose unit is the row or the element, and up to what
    number (from 0) its targets go that are no class indices; the arguments of its `__init__` are its options.
    """

    __slots__ = ()

    _stem: ClassVar[str]
    _rowwise: ClassVar[bool]
    _target_max: ClassVar[float]
    _defaults: ClassVar[dict[str, Any]]

    reduction: str
    logit_clip: float | None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "_stem" in vars(cls):
            cls._rowwise = getattr(kernels, cls._stem).rowwise
            declared: Any = cls.__init__
            cls._defaults = dict(declared.__wrapped__.__kwdefaults__)
            for name in cls._defaults:
                setattr(cls, name, _Option(name))

    @_takes_options
    def __init__(self, *, reduction: str = "mean", logit_clip: float | None = None) -> None: ...

    def _configure(self, given: Mapping[str, Any], flushes: bool = False) -> None:
        """Check the options that are given, and hand all to the kernels."""
        defaults = self._defaults
        options = dict(defaults)
        for name, value in given.items():
            if name not in defaults:
                raise TypeError(
                    f"{type(self).__name__}.__init__() got an unexpected keyword argument {name!r}"
                )
            if value is not defaults[name]:
                options[name] = _CHECKS[name](name, value)
        if self._rowwise and isinstance(options.get("focal_gamma"), tuple):
            raise ValueError(f"focal_gamma is {options['focal_gamma']}, but a softmax loss has one exponent")
        if options.get("from_probabilities"):
            for name in _OF_LOGITS:
                if options.get(name) != defaults.get(name):
                    raise ValueError(f"from_probabilities=True leaves no logits for {name} to work on")
        self._set(getattr(kernels, self._stem), options, self._target_max, flushes)

    @overload
    def __call__(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = ...,
        mask: Any = ...,
        denominator: float | None = ...,
        with_stats: Literal[False] = ...,
        probabilities: None = ...,
    ) -> Value: ...
    @overload
    def __call__(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = ...,
        mask: Any = ...,
        denominator: float | None = ...,
        with_stats: Literal[True],
        probabilities: np.ndarray | None = ...,
    ) -> tuple[Value, Stats]: ...
    @overload
    def __call__(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = ...,
        mask: Any = ...,
        denominator: float | None = ...,
        with_stats: bool,
        probabilities: np.ndarray | None = ...,
    ) -> Value | tuple[Value, Stats]: ...
    @implemented_by(kernels.value)
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
            Finite weights, one per row: the shape of `logits` without the class axis; for the
            sigmoid losses also of the shape of `logits`, one per element. They may be negative, as the
            advantages of a policy gradient are; where "mean" divides by their total, that has to be
            positive. A weight of 0 removes the row or element, whatever its logits hold. Only a weight
            over the divisor matters: both may be as large or small as float64 holds.
            Those of the first of the rows' dimensions alone, one per image or sequence, hold for all
            rows of it; nothing else is broadcast.
        mask : array_like of bool, optional
            True, or 1, where a row (for the sigmoid losses also: an element) counts; shapes as for
            `sample_weight`. Elsewhere logits and targets may be anything, NaN included.
        denominator : float, optional
            Positive number to divide the sum by, in place of the divisor of "mean" or "batchmean":
            for gradients that are accumulated over several calls (see `divisor`), or a mean over
            something else. 0 where nothing counts.
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
            If an argument does not hold real numbers or is a masked array.
        ValueError
            If shapes do not agree, a target, weight or denominator is out of range, or the total
            weight of the rows that count, by which "mean" divides, is not positive; or if `with_stats`
            is asked of a loss by element whose targets may exceed 1: no probabilities are behind it.

        Notes
        -----
        Inputs must not change during a call; if they do, results are undefined but nothing is read or
        written outside the arrays. An array must not be resized meanwhile.
        """

    @overload
    def value_and_grad(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = ...,
        mask: Any = ...,
        denominator: float | None = ...,
        out: np.ndarray | None = ...,
        with_stats: Literal[False] = ...,
        probabilities: None = ...,
    ) -> tuple[Value, np.ndarray]: ...
    @overload
    def value_and_grad(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = ...,
        mask: Any = ...,
        denominator: float | None = ...,
        out: np.ndarray | None = ...,
        with_stats: Literal[True],
        probabilities: np.ndarray | None = ...,
    ) -> tuple[Value, np.ndarray, Stats]: ...
    @overload
    def value_and_grad(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = ...,
        mask: Any = ...,
        denominator: float | None = ...,
        out: np.ndarray | None = ...,
        with_stats: bool,
        probabilities: np.ndarray | None = ...,
    ) -> tuple[Value, np.ndarray] | tuple[Value, np.ndarray, Stats]: ...
    @implemented_by(kernels.value_and_grad)
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
            Where to write the gradient: an array of its shape and dtype, or, for half-precision logits,
            float32 or float64, which get it unrounded. ``out=logits`` overwrites the logits in place.

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
            If an argument does not hold real numbers or is a masked array, or `out` is not an array of
            the result's dtype.
        ValueError
            If shapes do not agree, a target, weight or denominator is out of range, or `out` is
            read-only. Nothing has been written to `out` then.

        Notes
        -----
        Neither inputs nor `out` may change during a call, as for calling the loss.
        """

    @implemented_by(kernels.divisor)
    def divisor(self, shape: Any, targets: Any, *, sample_weight: Any = None, mask: Any = None) -> float:
        """What the mean of a call divides by.

        It is additive: rows that are spread over calls, processes or machines have a common mean when each
        call gets the sum of their divisors as its `denominator`. Losses and gradients then add up.

        Parameters
        ----------
        shape : tuple of int
            The shape of the logits, which themselves take no part.
        targets, sample_weight, mask : array_like
            As for calling the loss.

        Returns
        -------
        float
            The divisor of "batchmean" for a loss of that reduction, of "mean" for any other; 0.0 where
            nothing counts, which is a `denominator` then.

        Raises
        ------
        TypeError, ValueError
            As for calling the loss.

        Examples
        --------
        >>> import numpy as np
        >>> import stableloss as sl
        >>> logits, targets = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0]]), np.array([0, -100, 1])
        >>> halves = slice(0, 2), slice(2, 3)
        >>> total = sum(sl.softmax_ce.divisor(logits[half].shape, targets[half]) for half in halves)
        >>> total
        2.0
        >>> parts = [sl.softmax_ce(logits[half], targets[half], denominator=total) for half in halves]
        >>> sum(parts) == sl.softmax_ce(logits, targets)
        True
        """
        raise NotImplementedError

    @implemented_by(kernels.grad_and_hess)
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
        raise NotImplementedError

    @implemented_by(kernels.hessian_vector_product)
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
        raise NotImplementedError

    @property
    def _axis(self) -> int:
        """Where the classes of a softmax loss lie, or the outputs of a sigmoid loss."""
        axis: int = self._options.get("axis", -1)
        return axis

    def _changed(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return {name: value for name, value in self._options.items() if value != self._defaults[name]}

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __repr__(self) -> str:
        try:
            options = ", ".join(f"{name}={value!r}" for name, value in self._changed().items())
        except AttributeError:  # its __init__ has not been called
            return object.__repr__(self)
        return f"{type(self).__name__}({options})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._changed() == other._changed()

    def __hash__(self) -> int:
        return hash((type(self), *self._changed().items()))

    def _extra(self) -> dict[str, Any]:
        """What a subclass has beside the options."""
        extra = dict(getattr(self, "__dict__", {}))
        for name in _slotnames(type(self)):
            if hasattr(self, name):
                extra[name] = getattr(self, name)
        return extra

    def _flushing(self) -> "_Loss":
        """The same loss, but with 0 for results below the smallest normal number."""
        return _rebuild(type(self), self._changed(), self._extra(), flushes=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._changed(), self._extra())


class _CrossEntropy(_Loss):
    """What the two cross-entropies share: losses that are linear in their targets."""

    __slots__ = ()

    @implemented_by(kernels.target_grad)
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
        raise NotImplementedError


class _Softmax(_Loss):
    """What the softmax losses have beside: rows whose classes are in shards.

    Their kernels have to know whether a loss is the quadratic cost.
    """

    __slots__ = ()

    _quadratic: ClassVar[bool] = False

    @implemented_by(kernels.partial)
    def partial(
        self,
        logits: Any,
        targets: Any,
        first_class: int,
        n_classes: int,
        *,
        maximum: Any = None,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> Part:
        """What has to be known of some of the classes, to be merged with the same of the others.

        With the classes of each row spread over arrays, processes or machines: each makes the part of its
        classes, all parts are exchanged and merged, and `finish` gives the loss, and the gradient of the
        shard.

        Parameters
        ----------
        logits : array_like
            Those of the classes ``first_class ... first_class + m - 1``, m along `axis`; m may be 0.
        targets : array_like
            Class indices among all the classes; or probabilities, of the shape of `logits`.
        first_class : int
            The first class of the shard.
        n_classes : int
            The number of all classes, as many as `class_weight` has weights.
        maximum : array_like, optional
            The maximum of the raw logits of each whole row, of the shape of `logits` without the class axis.
            With it, and with shards that are cut at multiples of 2048 classes, losses and gradients have the
            bits of a call with all the classes: but with `label_smoothing`, with the quadratic cost of soft
            targets, and with options where there are no more than 128 classes.
        sample_weight, mask : array_like, optional
            As for calling the loss, one per row.

        Returns
        -------
        Part
            Which refers to `logits` and the other arguments: they must not change before `finish`.

        Raises
        ------
        TypeError
            As for calling the loss.
        ValueError
            As for calling the loss; also if the classes are not among `n_classes`, `maximum` is below a
            logit, or the loss needs more than one exchange: `focal_gamma` with soft or smoothed targets,
            and `from_probabilities`.

        See Also
        --------
        merge : parts of all the classes as one.

        Examples
        --------
        >>> import numpy as np
        >>> import stableloss as sl
        >>> logits, targets = np.array([[40.0, 0.0, 1.0]]), [0]
        >>> a = sl.softmax_ce.partial(logits[:, :1], targets, 0, 3)
        >>> b = sl.softmax_ce.partial(logits[:, 1:], targets, 1, 3)
        >>> sl.softmax_ce.finish(a, sl.merge([a, b]))
        (1.5796578428307375e-17, array([[-1.57965784e-17]]))
        """
        raise NotImplementedError

    @implemented_by(kernels.finish)
    def finish(
        self, part: Part, whole: Part, *, denominator: float | None = None, out: np.ndarray | None = None
    ) -> tuple[Value, np.ndarray]:
        """Loss of rows whose classes are in shards, and its gradient by one of these.

        Parameters
        ----------
        part : Part
            What `partial` returned for the shard.
        whole : Part
            The parts of all the classes, merged.
        denominator : float, optional
            As for calling the loss.
        out : ndarray, optional
            Where to write the gradient, as for `value_and_grad`; the shard's logits may be overwritten.

        Returns
        -------
        loss : float or ndarray
            Of all the classes, the same for every shard: not to be added up over them.
        grad : ndarray
            Its derivative with respect to the shard's logits, of their shape, dtype and memory order.

        Raises
        ------
        TypeError, ValueError
            As for `value_and_grad`; also if `part` has no shard, or `whole` is not of all the classes.

        See Also
        --------
        merge : parts of all the classes as one.
        """
        raise NotImplementedError


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
        the number of rows (all dimensions but `axis`) with an element that counts. "none" keeps one
        value per element.
    class_weight : array_like of shape (k,), optional
        Non-negative weight of each output, along `axis`; logits of shape (n,) also take the one of a
        single output.
    pos_weight : float or array_like of shape (k,), optional
        Non-negative weight of the positive term, for all outputs or, as `class_weight`, for each.
    ignore_index : int, tuple of int or None, default: None
        Targets of this value, or one of these, do not count: -1 for labels that are not known. A NaN
        is no label.
    label_smoothing : float, default: 0.0
        Move the targets towards 1/2 by this share, in [0, 1).
    focal_gamma : float or pair of float, default: 0.0
        Exponent of the focal loss, not negative; 0 is the plain loss. Of a pair, the first is that of
        the positive term, and the second that of the negative one.
    focal_alpha : float, optional
        Weight of the positive term of the focal loss, in [0, 1]; the negative one gets the rest.
    logit_scale : float, default: 1.0
        Positive factor of the logits, the inverse of a temperature.
    softcap : float, optional
        Positive bound C of the logits, ``C tanh(z / C)``; the gradient goes through it.
    logit_clip : float, optional
        Clamp the logits to [-logit_clip, logit_clip] first; the gradient is the one at the clamped
        logits. Nothing overflows without it.
    axis : int, default: -1
        The axis of the outputs: of `class_weight` and `pos_weight`, and the one that weights and masks
        per row do not have.
    from_probabilities : bool, default: False
        The first argument holds activations a in [0, 1], not logits. Values below the smallest
        normal number of their dtype (of float32 for half precision), and values whose distance from
        1 is, count as that number. The gradient is still the one by the logits, ``a - y``, without a
        quotient. Not with `logit_scale`, `softcap` or `logit_clip`.

    Notes
    -----
    Logits have any shape, float32 or float64; float16 and bfloat16 are computed in float32, other
    real dtypes as float64. Targets have the same shape: numbers in [0, 1], or bool. One that
    rounding has carried over its bound, by at most 16 eps of its dtype, counts as the bound.

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

    __slots__ = ()
    _stem = "sigmoid_bce"
    _target_max = 1.0

    class_weight: tuple[float, ...] | None
    pos_weight: float | tuple[float, ...] | None
    ignore_index: int | tuple[int, ...] | None
    label_smoothing: float
    focal_gamma: float | tuple[float, float]
    focal_alpha: float | None
    logit_scale: float
    softcap: float | None
    axis: int
    from_probabilities: bool

    @_takes_options
    def __init__(
        self,
        *,
        reduction: str = "mean",
        class_weight: Any = None,
        pos_weight: Any = None,
        ignore_index: int | tuple[int, ...] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float | tuple[float, float] = 0.0,
        focal_alpha: float | None = None,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        logit_clip: float | None = None,
        axis: int = -1,
        from_probabilities: bool = False,
    ) -> None: ...


class SoftmaxCE(_CrossEntropy, _Softmax):
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
    ignore_index : int, tuple of int or None, default: -100
        Class index, or indices, of rows that do not count.
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
    of shape (..., k), which need not sum to 1; one below 0 by at most 16 eps of its dtype counts as 0.

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
    float32  hard     1.57 (4)  2.29 (4)  3.85 (4)
    float32  soft     1.52 (4)  2.69 (4)  3.44 (4)
    float64  hard     2.29 (4)  2.61 (4)  3.15 (4)
    float64  soft     2.52 (4)  3.25 (4)  3.90 (4)
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

    __slots__ = ()
    _stem = "softmax_ce"
    _target_max = math.inf

    class_weight: tuple[float, ...] | None
    ignore_index: int | tuple[int, ...] | None
    label_smoothing: float
    focal_gamma: float
    z_loss: float
    logit_scale: float
    softcap: float | None
    axis: int
    from_probabilities: bool

    @_takes_options
    def __init__(
        self,
        *,
        reduction: str = "mean",
        class_weight: Any = None,
        ignore_index: int | tuple[int, ...] | None = -100,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        logit_clip: float | None = None,
        axis: int = -1,
        from_probabilities: bool = False,
    ) -> None: ...


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
    _target_max = 1.0


class SoftmaxMSE(_Softmax):
    """Softmax activation and quadratic cost, from logits.

    With ``p = softmax(z)`` and target probabilities t (one-hot for a class index), the loss of one
    row is::

        loss = sum_k (p[k] - t[k])**2 / 2
        grad = p[k] b[k],  b = d - sum(p d),  d = p - t
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
    float32  soft     0.75 (4)  2.41 (4)  3.39 (4)
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

    __slots__ = ()
    _stem = "softmax_mse"
    _quadratic = True
    _target_max = math.inf

    axis: int

    @_takes_options
    def __init__(
        self, *, reduction: str = "mean", logit_clip: float | None = None, axis: int = -1
    ) -> None: ...


sigmoid_bce = SigmoidBCE()
softmax_ce = SoftmaxCE()
sigmoid_mse = SigmoidMSE()
softmax_mse = SoftmaxMSE()

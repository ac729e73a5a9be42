"""The losses as functions of PyTorch tensors on the CPU, which share their memory with numpy.

Before::

    loss = torch.nn.functional.cross_entropy(logits, y)

After::

    from stableloss.adapters.torch import softmax_ce
    loss = softmax_ce(logits, y)

A call that needs the gradient by the logits makes it in the same pass as the value. Soft targets, sample
weights and a denominator have gradients too, and all of them second derivatives: in reverse and in forward
mode, under autocast, and under ``torch.func`` (grad, vjp, jvp, vmap, jacrev, jacfwd, hessian).

The classes of `softmax_ce` and `softmax_mse` are where ``torch.nn.functional.cross_entropy`` has them: on
axis 1 of (N, C), (N, C, d1), ... and on the only axis of (C,). For any other axis see `differentiable`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from stableloss import activations, losses

__all__ = ["differentiable", "sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse"]

SOFTMAX = (losses.SoftmaxCE, losses.SoftmaxMSE)
CROSS_ENTROPY = (losses.SigmoidBCE, losses.SoftmaxCE)
LOSSES = (*SOFTMAX, losses.SigmoidBCE, losses.SigmoidMSE)
HALF = (torch.float16, torch.bfloat16)
FLOAT_MAX = torch.finfo(torch.float32).max
DTYPES = (*HALF, torch.float32, torch.float64)


# ---- tensors and arrays ---------------------------------------------------------------------------


def _numpy(value: Any) -> Any:
    """What a loss takes: tensors as arrays over their memory, the rest as it is."""
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else value


def _tensor(value: Any) -> Any:
    """An argument that a loss has found valid, as a tensor."""
    if isinstance(value, torch.Tensor):
        return value
    array = np.array(value)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _to(x: Any, like: Any) -> Any:
    return None if x is None else x.to(like.dtype)


def _sum(terms: list[Any]) -> Any:
    return sum(terms[1:], terms[0])


def _has_tangent(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None


# ---- a loss and the shape of its logits -----------------------------------------------------------


def _changed(loss: Any, **options: Any) -> Any:
    given = {name: getattr(loss, name) for name in inspect.signature(type(loss)).parameters}
    return type(loss)(**{**given, **options})


class _Plan:
    """A loss for logits of so many dimensions, and how its other arguments lie to them.

    There is one loss for each row (softmax losses) or element (sigmoid losses). Weights and masks have the
    shape of the rows or of their first dimensions, or, for the sigmoid losses, that of the logits; `spread`
    gives them those that they lack.

    Parameters
    ----------
    loss : loss object
    ndim : int
        Dimensions of the logits.
    axis : int
        That of the classes, from 0; for a sigmoid loss the one that weights per row lack.
    doubtful : bool
        Whether target probabilities have to show that their classes are on that axis.
    """

    def __init__(self, loss: Any, ndim: int, axis: int, doubtful: bool) -> None:
        self.ndim, self.axis, self.doubtful = ndim, axis, doubtful
        # -1 is what the losses are fastest at
        self.loss = _changed(loss, axis=-1 if axis >= ndim - 1 else axis) if hasattr(loss, "axis") else loss
        self.softmax = isinstance(loss, SOFTMAX)
        self.reduced = loss.reduction != "none"
        self.linear_in_targets = isinstance(loss, CROSS_ENTROPY)

    @cached_property
    def each(self) -> _Plan:
        """One value for each loss."""
        return _Plan(_changed(self.loss, reduction="none"), self.ndim, self.axis, self.doubtful)

    @cached_property
    def folded(self) -> _Plan:
        """One more dimension in front: that of vmap, over losses that know nothing of each other."""
        # a logit of no dimension is a row of one
        ndim, axis = (self.ndim, self.axis) if self.ndim else (1, 0)
        return _Plan(self.loss, ndim + 1, axis + 1, self.doubtful)

    def spread(self, x: Any) -> Any:
        """Weights or a mask, to go with the losses."""
        if x.ndim < self.ndim:
            x = x.reshape(x.shape + (1,) * (self.ndim - 1 - x.ndim))
        return x if self.softmax or x.ndim == self.ndim else x.unsqueeze(self.axis)

    def over_classes(self, x: Any) -> Any:
        """What there is for each loss, to go with the logits."""
        return x.unsqueeze(self.axis) if self.softmax and x.ndim else x

    def sum_of_classes(self, x: Any) -> Any:
        return x.sum(self.axis) if self.softmax else x

    def along_classes(self, weights: Any) -> Any:
        """Weights of the classes or outputs, to go with the logits."""
        if not isinstance(weights, tuple):
            return 1.0 if weights is None else weights
        shape = [1] * self.ndim
        if shape:
            shape[self.axis] = -1
        return torch.tensor(weights, dtype=torch.float64).reshape(shape)

    def are_indices(self, targets: Any) -> bool:
        return self.softmax and targets.ndim < self.ndim

    def require_classes_on_axis(self, targets: np.ndarray) -> None:
        """Refuse target probabilities whose classes seem to be on the last axis."""
        if not self.doubtful:
            return
        array = np.asarray(targets)
        if array.shape[self.axis] == array.shape[-1] == 1:
            return
        # the first sample alone tells, mostly
        for part in (array[:1], array):
            with np.errstate(all="ignore"):
                sums = part.sum(-1, dtype=np.float64)
            if not part.size or not np.allclose(sums, 1, atol=1e-3):
                return
        raise ValueError(
            f"targets of shape {array.shape} sum to 1 along the last axis, but their classes are taken from "
            f"axis {self.axis}, as in PyTorch; {_advice(self.loss, self.ndim)}"
        )


def _advice(loss: Any, ndim: int) -> str:
    name = type(loss).__name__
    return f"set the axis: {name}(axis=1) for PyTorch's, {name}(axis={ndim - 1}) for the last"


class _Parts:
    """A call taken apart: its result is made of the share of each loss times something for each loss.

    The share is the weight over the divisor. Derivatives by weight and denominator are those of the share.
    """

    def __init__(self, plan: _Plan, logits: Any, targets: Any, weight: Any, total: Any, mask: Any) -> None:
        self.plan, self.logits, self.targets, self.mask = plan, logits, targets, mask
        self.of_weight, self.of_total = weight, total
        self.weight: Any = None
        if weight is not None:
            self.weight = plan.spread(_tensor(weight).double())
            # a weight of 0 removes a loss, whatever its logits hold
            removed = (self.weight == 0) & ~self.each(_Value).isfinite()
            self.mask = ~removed if mask is None else plan.spread(_tensor(mask).bool()) & ~removed
        # the derivative of the divisor by each loss's weight, where it has one
        self.part: Any = None
        self.divisor = None if total is None else _tensor(total).double()
        if total is None and plan.loss.reduction in ("mean", "batchmean"):
            self.divisor = self._divisor(mask)
        if self.divisor is not None:
            # it is 0 where nothing counts, and the results are
            self.divisor = torch.where(self.divisor == 0, torch.inf, self.divisor)
        self.share = self._divided(self.weight)

    def _divisor(self, mask: Any) -> Any:
        plan = self.plan
        if plan.loss.reduction == "mean" and plan.softmax and self.weight is not None:
            self.part = self._counts(self.mask).double() * self._weights_of_classes()
            return (self.part * self.weight).sum()
        counts = self._counts(mask)
        if plan.loss.reduction == "batchmean":
            return (counts if plan.softmax or not plan.ndim else counts.any(plan.axis)).sum().double()
        return (counts.double() * self._weights_of_classes()).sum()

    def _counts(self, mask: Any) -> Any:
        """Whether each loss counts."""
        plan, targets = self.plan, _tensor(self.targets)
        shape = list(self.logits.shape)
        if plan.softmax:
            del shape[plan.axis]
        counts = torch.ones(shape, dtype=torch.bool)
        if mask is not None:
            counts = counts & plan.spread(_tensor(mask).bool())
        if plan.are_indices(targets) or not plan.softmax:
            ignored = getattr(plan.loss, "ignore_index", None)
            for label in ignored if isinstance(ignored, tuple) else (ignored,):
                if label is not None:
                    # as int64: uint8 would take -100 for 156
                    counts = counts & ((targets if targets.is_floating_point() else targets.long()) != label)
        return counts

    def _weights_of_classes(self) -> Any:
        """What a mean counts each loss for beside its sample weight."""
        targets = _tensor(self.targets)
        weights = getattr(self.plan.loss, "class_weight", None)
        if weights is None or not self.plan.are_indices(targets):
            return 1.0
        # those that do not count may be of no class
        valid = torch.where(self._counts(self.mask), targets.long(), 0)
        # flat: vmap does not know an index without dimensions
        return torch.tensor(weights, dtype=torch.float64)[valid.flatten()].reshape(valid.shape)

    def _divided(self, x: Any) -> Any:
        """x, None for 1, over the divisor."""
        if self.divisor is None:
            return x
        return (1.0 if x is None else x) / self.divisor

    def _along(self, share: Any, x: Any) -> Any:
        return self.plan.over_classes(share) if x.ndim == self.plan.ndim else share

    def each(self, function: Any, own: Any = None) -> Any:
        """What a function below returns, before weights and reduction."""
        # the others' own argument is no more than a help
        v = own if function is _Product else None
        result = function.apply(self.plan.each, self.logits, self.targets, None, None, self.mask, v)
        return result[0] if isinstance(result, tuple) else result

    def times(self, x: Any) -> Any:
        """The share times x, which has one entry for each loss or each logit."""
        return x if self.share is None else self._along(self.share, x) * x

    def counted(self, x: Any) -> Any:
        """x, 0 where it does not count."""
        return torch.where(self._along(self._counts(self.mask), x), x, 0.0)

    def change(self, x: Any, weight: Any, total: Any) -> Any:
        """Change of `times(x)` when the weight, the denominator or both change by so much."""
        changes = []
        if weight is not None:
            weight = self.plan.spread(weight.double())
            changes.append(self._divided(weight))
            if self.part is not None:
                changes.append(-self.share * self._divided((self.part * weight).sum()))
        if total is not None:
            changes.append(-self.share * self._divided(total.double()))
        return self._along(_sum(changes), x) * x

    def gradient(self, x: Any, needed: tuple[bool, bool]) -> tuple[Any, Any]:
        """Gradient by weight and denominator of the sum of `times(x)`, with one entry for each loss."""
        by_weight = by_total = None
        if needed[0]:
            by_share = x if self.part is None else x - self.part * (x * self.share).sum()
            by_weight = self._divided(by_share).sum_to_size(self.weight.shape)
            by_weight = _to(by_weight.reshape(self.of_weight.shape), self.of_weight)
        if needed[1]:
            by_total = _to(-self._divided((x * self.share).sum()), self.of_total)
        return by_weight, by_total


class _Slope:
    """How the derivative of each loss by its targets changes with the logits: the matrix, never formed.

    With x what options make of the logits and p its activation, that derivative is a function of p plus
    something that no logit changes.
    """

    def __init__(self, parts: _Parts) -> None:
        self.parts, self.plan = parts, parts.plan
        plan, loss = parts.plan, parts.plan.loss
        x = parts.counted(_last(parts.logits).double())
        if loss.logit_clip is not None:
            x = x.clamp(-loss.logit_clip, loss.logit_clip)
        # the derivative of x, through which a clip lets pass
        self.inner = getattr(loss, "logit_scale", 1.0)
        x = self.inner * x
        cap = getattr(loss, "softcap", None)
        if cap is not None:
            capped = torch.tanh(x / cap)
            x, self.inner = cap * capped, self.inner * (1 - capped * capped)
        if plan.softmax:
            self.p = p = torch.softmax(x, plan.axis)
            # 1 - p of a class ahead of the others, without the difference
            others = torch.where(p > 0.5, 0.0, p).sum(plan.axis, keepdim=True)
            q = torch.where(p > 0.5, others, 1 - p)
        else:
            p, q = torch.sigmoid(x), torch.sigmoid(-x)
        self.outer = self._by_log_p(p, q)

    def _by_log_p(self, p: Any, q: Any) -> Any:
        """Derivative by log(p), for a sigmoid by x, of the derivative by the targets; q is 1 - p."""
        plan, loss = self.plan, self.plan.loss
        if not plan.linear_in_targets:
            return -p if plan.softmax else -p * q
        weight = plan.along_classes(loss.class_weight) * (1 - loss.label_smoothing)
        gamma = loss.focal_gamma if isinstance(loss.focal_gamma, tuple) else (loss.focal_gamma,) * 2
        if plan.softmax:
            return weight * _log_slope(p, q, gamma[0])
        alpha = loss.focal_alpha
        positive = plan.along_classes(loss.pos_weight) * (1.0 if alpha is None else alpha)
        negative = 1.0 if alpha is None else 1.0 - alpha
        positive = positive * q * _log_slope(p, q, gamma[0])
        return weight * (positive + negative * p * _log_slope(q, p, gamma[1]))

    def times(self, v: Any) -> Any:
        """Change of the derivative when the logits move along v, times the shares."""
        v = self.inner * v
        if self.plan.softmax:
            v = v - (self.p * v).sum(self.plan.axis, keepdim=True)
        return self.parts.times(self.parts.counted(self.outer * v))

    def transposed_times(self, u: Any) -> Any:
        """Gradient by the logits of the derivative's inner product with u, times the shares."""
        u = self.outer * u
        if self.plan.softmax:
            u = u - self.p * u.sum(self.plan.axis, keepdim=True)
        return self.parts.times(self.parts.counted(self.inner * u))


def _log_slope(p: Any, q: Any, gamma: float) -> Any:
    """Derivative by log(p) of ``-q**gamma log(p)``, where q is 1 - p."""
    if gamma == 0:
        return -torch.ones_like(p)
    log_p = torch.where(p > 0.5, torch.log1p(-q), torch.log(p))
    # p log(p) / q is a quotient of 0 at both ends
    ratio = torch.where(p == 0, 0.0, p * log_p) / torch.where(q == 0, 1.0, q)
    return q**gamma * (gamma * torch.where(q == 0, -1.0, ratio) - 1)


# ---- functions that PyTorch differentiates --------------------------------------------------------


def _options(weight: Any, total: Any, mask: Any) -> dict[str, Any]:
    return {"sample_weight": _numpy(weight), "denominator": _numpy(total), "mask": _numpy(mask)}


class _Last(torch.autograd.Function):
    """An argument of a second derivative. PyTorch comes to its derivatives only for a third."""

    @staticmethod
    def forward(x: Any) -> Any:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("the third derivative by logits and targets")

    jvp = backward

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any) -> tuple[Any, Any]:
        return _Last.apply(x), in_dims[0]


def _last(x: Any) -> Any:
    return _Last.apply(x) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


class _Function(torch.autograd.Function):
    """What the functions below share.

    Their arguments are a plan, the logits, targets, weight, denominator, mask and one of their own. Their
    core, one call of the loss, does at once what `composed` makes of the parts.
    """

    def __init_subclass__(cls) -> None:
        if "forward" in vars(cls):
            # apply() asks for it at each call, and to find it takes longer than a small loss
            cls.forward.__signature__ = inspect.signature(cls.forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.plan, *args = inputs
        tensors = [x if isinstance(x, torch.Tensor) else None for x in args]
        ctx.others = [None if isinstance(x, torch.Tensor) else x for x in args]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def arguments(ctx: Any) -> list[Any]:
        pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
        return [other if tensor is None else tensor for tensor, other in pairs]

    @classmethod
    @torch.compiler.disable
    def backward(cls, ctx: Any, g: Any, *_: Any) -> Any:
        if g is None:
            return (None,) * 7
        return (None, *cls.gradients(ctx.plan, _Function.arguments(ctx), g, ctx.needs_input_grad[1:]))

    @classmethod
    def jvp(cls, ctx: Any, *changes: Any) -> Any:
        args = _Function.arguments(ctx)
        args = [forward_ad.unpack_dual(x).primal if isinstance(x, torch.Tensor) else x for x in args]
        # PyTorch calls with forward mode off, and the jvp of a jvp would be 0 without a word
        with forward_ad._set_fwd_grad_enabled(True):
            return cls.change(ctx.plan, args, *changes[1:])

    @classmethod
    def composed(cls, plan: _Plan, *args: Any) -> Any:
        parts = _Parts(plan, *args[:5])
        return _to(parts.times(parts.each(cls, args[5])), args[0])

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, plan: _Plan, *args: Any) -> tuple[Any, Any]:
        if plan.reduced or args[2] is not None:
            return torch.vmap(partial(cls.composed, plan), in_dims[1:])(*args), 0
        fronts = []
        for x, dim in zip(args, in_dims[1:], strict=True):
            if x is not None:
                x = _tensor(x)
                x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
                x = x if plan.ndim else x.unsqueeze(-1)
            fronts.append(x)
        result = cls.apply(plan.folded, *fronts)
        if isinstance(result, tuple):
            result, _ = result
        return (result if plan.ndim else result.squeeze(-1)), 0


class _Value(_Function):
    """The loss; with it, where the last argument says so, the gradient by the logits."""

    @staticmethod
    def forward(*args: Any) -> Any:
        plan, logits, targets, *options, wanted = args
        x, t = _numpy(logits), _numpy(targets)
        plan.require_classes_on_axis(t)
        grad = None
        if wanted:
            value, grad = plan.loss.value_and_grad(x, t, **_options(*options))
        else:
            value = plan.loss(x, t, **_options(*options))
        if plan.reduced and abs(value) < FLOAT_MAX:
            # in one step, which refuses to overflow
            value = torch.scalar_tensor(value, dtype=logits.dtype)
        else:
            value = torch.from_numpy(np.asarray(value)).to(logits.dtype)
        return value, None if grad is None else torch.from_numpy(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])
        _Function.setup_context(ctx, (*inputs[:-1], output[1]), output)

    @staticmethod
    def gradients(plan: _Plan, args: Any, g: Any, needed: Any) -> Any:
        *call, grad = args
        by: list[Any] = [None] * 6
        if needed[0]:
            if grad is None or torch.is_grad_enabled() or any(map(_has_tangent, call)):
                grad = _Grad.apply(plan, *args)
            by[0] = plan.over_classes(g) * grad
        if needed[1]:
            by[1] = _to(plan.over_classes(g) * _TargetGrad.apply(plan, *call, None), args[1])
        if needed[2] or needed[3]:
            parts = _Parts(plan, *call)
            by[2:4] = parts.gradient(g * parts.each(_Value).double(), needed[2:4])
        return by

    @staticmethod
    def change(plan: _Plan, args: Any, logits: Any, targets: Any, weight: Any, total: Any, *_: Any) -> Any:
        call, terms = args[:5], []
        if logits is not None:
            terms.append(plan.sum_of_classes(_Grad.apply(plan, *args) * logits))
        if targets is not None:
            terms.append(plan.sum_of_classes(_TargetGrad.apply(plan, *call, None) * targets))
        if weight is not None or total is not None:
            parts = _Parts(plan, *call)
            terms.append(parts.change(parts.each(_Value).double(), weight, total))
        if plan.reduced:
            terms = [term.sum() for term in terms]
        return _to(_sum(terms), args[0]), None

    @classmethod
    def composed(cls, plan: _Plan, *args: Any) -> Any:
        parts = _Parts(plan, *args[:5])
        value = parts.times(parts.each(cls).double())
        return _to(value.sum() if plan.reduced else value, args[0])

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, plan: _Plan, *args: Any) -> tuple[Any, Any]:
        value, _ = super().vmap(info, in_dims, plan, *args[:5], None)
        return (value, None), (0, None)


class _Derivative(_Function):
    """A derivative, of the shape of the logits.

    Of its own derivatives the classes know those by the logits and the targets: `by_logits` and `by_targets`
    are gradients of the inner product with u, `along_logits` and `along_targets` changes along v.
    """

    @classmethod
    def gradients(cls, plan: _Plan, args: Any, u: Any, needed: Any) -> Any:
        *call, own = args
        by: list[Any] = [None] * 6
        if needed[0]:
            by[0] = _to(cls.by_logits(plan, call, u), args[0])
        if needed[1]:
            by[1] = _to(cls.by_targets(plan, call, u), args[1])
        if needed[2] or needed[3]:
            parts = _Parts(plan, *call)
            by[2:4] = parts.gradient(plan.sum_of_classes(u.double() * parts.each(cls, own)), needed[2:4])
        if needed[5]:
            by[5] = _to(_product(plan, call, u), own)
        return by

    @classmethod
    def change(cls, plan: _Plan, args: Any, *changes: Any) -> Any:
        *call, own = args
        logits, targets, weight, total, _, v = changes
        terms = []
        if logits is not None:
            terms.append(cls.along_logits(plan, call, logits))
        if targets is not None:
            terms.append(cls.along_targets(plan, call, targets))
        if weight is not None or total is not None:
            parts = _Parts(plan, *call)
            terms.append(parts.change(parts.each(cls, own), weight, total))
        if v is not None:
            terms.append(_product(plan, call, v))
        # PyTorch takes no None here
        terms = [term for term in terms if term is not None] or [torch.zeros_like(args[0])]
        return _to(_sum(terms), args[0])


class _Grad(_Derivative):
    """The gradient by the logits; the last argument is the result, where it is known."""

    @staticmethod
    def forward(*args: Any) -> Any:
        plan, logits, targets, *options, grad = args
        if grad is None:
            _, array = plan.loss.value_and_grad(_numpy(logits), _numpy(targets), **_options(*options))
            return torch.from_numpy(array)
        return grad.detach()

    @staticmethod
    def by_logits(plan: _Plan, call: Any, u: Any) -> Any:
        return _product(plan, call, u)

    along_logits = by_logits

    @staticmethod
    def by_targets(plan: _Plan, call: Any, u: Any) -> Any:
        return _Slope(_Parts(plan, *call)).times(u)

    @staticmethod
    def along_targets(plan: _Plan, call: Any, v: Any) -> Any:
        return _Slope(_Parts(plan, *call)).transposed_times(v)


class _TargetGrad(_Derivative):
    """The gradient by the targets; no last argument."""

    @staticmethod
    def forward(*args: Any) -> Any:
        plan, logits, targets, *options, _ = args
        x, t = _numpy(logits), _numpy(targets)
        if plan.linear_in_targets:
            return torch.from_numpy(plan.loss.target_grad(x, t, **_options(*options)))
        x, clip = x.astype(np.float64), plan.loss.logit_clip
        x = x if clip is None else x.clip(-clip, clip)
        a = activations.softmax(x, axis=plan.axis) if plan.softmax else activations.sigmoid(x)
        parts = _Parts(plan, *args[1:-1])
        return _to(parts.times(parts.counted(torch.from_numpy(np.asarray(t - a)))), logits)

    @staticmethod
    def by_logits(plan: _Plan, call: Any, u: Any) -> Any:
        return _Slope(_Parts(plan, *call)).transposed_times(u)

    @staticmethod
    def along_logits(plan: _Plan, call: Any, v: Any) -> Any:
        return _Slope(_Parts(plan, *call)).times(v)

    @staticmethod
    def by_targets(plan: _Plan, call: Any, u: Any) -> Any:
        if plan.linear_in_targets:
            return None
        parts = _Parts(plan, *call)
        return parts.times(parts.counted(u))

    along_targets = by_targets


class _Product(_Derivative):
    """The Hessian by the logits times the last argument."""

    @staticmethod
    def forward(*args: Any) -> Any:
        plan, logits, targets, *options, v = args
        product = plan.loss.hessian_vector_product
        return torch.from_numpy(product(_numpy(logits), _numpy(targets), _numpy(v), **_options(*options)))

    @staticmethod
    def by_logits(plan: _Plan, call: Any, u: Any) -> Any:
        """None, so that PyTorch goes on to `_Last`, where it wants the third derivative."""

    by_targets = by_logits


def _product(plan: _Plan, call: Any, v: Any) -> Any:
    logits, targets, *rest = call
    return _Product.apply(plan, _last(logits), _last(targets), *rest, v)


# ---- calls ----------------------------------------------------------------------------------------


def _argument(name: str, value: Any) -> Any:
    """A tensor on which numpy can work, or something other than a tensor for the loss to judge."""
    if value is None:
        return None
    if not isinstance(value, torch.Tensor):
        return np.asarray(value) if isinstance(value, (list, tuple, bool, int, float)) else value
    if not value.is_cpu:
        mend = "it holds no numbers" if value.is_meta else f"pass {name}.cpu()"
        raise NotImplementedError(
            f"{name} is a tensor on the device {value.device}, but stableloss computes on the CPU: {mend}"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name} is a tensor of layout {value.layout}; pass {name}.to_dense()")
    # numpy has no bfloat16 of its own
    return value.float() if value.dtype in HALF else value


class _Differentiable:
    """What `differentiable` returns."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self._plans: dict[Any, _Plan] = {}

    def __repr__(self) -> str:
        return f"differentiable({self.loss!r})"

    def _plan(self, *key: Any) -> _Plan:
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(self.loss, *key)
        return plan

    def _plan_for(self, logits: Any, targets: Any) -> _Plan:
        """Find the class axis: the loss's, or where that is -1 PyTorch's unless the targets contradict."""
        loss, ndim = self.loss, logits.ndim
        softmax = isinstance(loss, SOFTMAX)
        axis: int = getattr(loss, "axis", -1)
        if softmax and axis == 1 == ndim:
            axis = 0
        given = tuple(targets.shape if isinstance(targets, torch.Tensor) else np.shape(targets))
        shape = tuple(logits.shape)
        if (softmax or axis != -1) and not -ndim <= axis < ndim:
            raise ValueError(f"logits of shape {shape} have no axis {axis} for their classes")
        if not softmax:
            # the axis that weights per row lack
            return self._plan(ndim, axis % max(ndim, 1), False)
        if ndim < 3:
            return self._plan(ndim, axis % ndim, False)
        last = given == shape[:-1]
        if axis != -1:
            axis %= ndim
            if last and given != shape[:axis] + shape[axis + 1 :]:
                raise ValueError(
                    f"targets of shape {given} fit logits of shape {shape} with the classes on the last axis,"
                    f" but they are taken from axis {axis}; {_advice(loss, ndim)}"
                )
            return self._plan(ndim, axis, False)
        if last and given == shape[:1] + shape[2:] and shape[1] != 1:
            raise ValueError(
                f"targets of shape {given} fit logits of shape {shape} with the classes on axis 1, as in "
                f"PyTorch, and with the classes on the last; {_advice(loss, ndim)}"
            )
        return self._plan(ndim, ndim - 1 if last else 1, len(given) == ndim)

    # Dynamo can not see through the losses
    @torch.compiler.disable
    def __call__(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: Any = None,
    ) -> Any:
        if not isinstance(logits, torch.Tensor):
            raise TypeError(
                f"logits must be a torch.Tensor, not {type(logits).__name__}; "
                "arrays are for the losses of stableloss itself"
            )
        if logits.dtype not in DTYPES:
            swapped = isinstance(targets, torch.Tensor) and targets.is_floating_point()
            hint = "; the order is (logits, targets)" if swapped else ""
            raise TypeError(f"logits must be float16, bfloat16, float32 or float64, not {logits.dtype}{hint}")
        dtype = logits.dtype
        logits, targets = _argument("logits", logits), _argument("targets", targets)
        weight, mask = _argument("sample_weight", sample_weight), _argument("mask", mask)
        total = _argument("denominator", denominator)
        if isinstance(total, torch.Tensor) and total.ndim:
            raise ValueError(f"denominator is a tensor of shape {tuple(total.shape)}, not one number")
        plan = self._plan_for(logits, targets)
        if isinstance(targets, torch.Tensor) and targets.requires_grad and plan.are_indices(targets):
            raise ValueError(
                f"targets of shape {tuple(targets.shape)} require grad, but class indices have none; "
                f"pass targets.detach(), or probabilities of shape {tuple(logits.shape)}"
            )
        wanted = torch.is_grad_enabled() and logits.requires_grad
        tensors = [x for x in (logits, targets, weight, total) if isinstance(x, torch.Tensor)]
        tracked = (
            wanted
            or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
            or torch._C._are_functorch_transforms_active()
            or any(map(_has_tangent, tensors))
        )
        # apply() takes longer than a small loss
        evaluate = _Value.apply if tracked else _Value.forward
        value, _ = evaluate(plan, logits, targets, weight, total, mask, wanted)
        # as PyTorch's own losses under autocast
        return value if dtype == value.dtype or torch.is_autocast_enabled("cpu") else value.to(dtype)


def differentiable(loss: Any) -> Callable[..., Any]:
    """A loss object as a function of tensors, which PyTorch differentiates like its own.

    Parameters
    ----------
    loss : loss object
        One of the losses of stableloss, with any options but `from_probabilities`.

    Returns
    -------
    callable
        ``f(logits, targets, *, sample_weight=None, mask=None, denominator=None)``, with the arguments of
        the loss. `logits` is a tensor on the CPU, float16, bfloat16, float32 or float64; the others are
        tensors or what else the loss takes. The result is a tensor of the dtype of `logits`, float32 for
        half precision under autocast; of no dimension, or with reduction "none" one value per row or
        element. It can be pickled.

    Raises
    ------
    TypeError
        If `loss` is not a loss object. From the function: if logits are no tensor of these dtypes, a tensor
        is sparse, or as from the loss.
    ValueError
        If `loss` has `from_probabilities`, whose gradient is not the one by its argument. From the
        function: if the class axis is in doubt, class indices require grad, or as from the loss.
    NotImplementedError
        From the function: for tensors on other devices. When differentiating: for the third derivative by
        logits and targets.

    Notes
    -----
    **Class axis.** An axis of the loss other than -1 is taken as it is; 1 is also the only axis of logits of
    shape (C,), as in PyTorch. The default of the losses, -1, is PyTorch's axis 1 here, unless the targets
    contradict: class indices that fit the last axis alone are taken as such; those that fit both, as (N, C)
    does for logits (N, C, C), are a ValueError, and so are probabilities that sum to 1 along the last of
    three or more axes. ``softmax_ce`` is ``differentiable(SoftmaxCE(axis=1))``; for (N, d1, C) write
    ``differentiable(SoftmaxCE(axis=2))``.

    **Derivatives.** By logits, target probabilities, `sample_weight` and `denominator`, wherever they require
    grad or have a tangent; a mean's own divisor counts as the function of the weights that it is. The
    gradient by the logits comes with the value, the second derivative is the exact product of the Hessian
    and a vector; second derivatives in which the targets take part are computed by PyTorch in float64.
    A weight of 0 has a gradient like any other, but 0 where the loss of its row is not finite.

    ``torch.vmap`` makes one call of the loss, not one for each. ``torch.compile`` leaves the graph for the
    call. PyTorch's older vectorization, ``is_grads_batched`` and ``vectorize=True``, stops at first
    derivatives; ``torch.func`` does not.

    Examples
    --------
    >>> import torch
    >>> import stableloss as sl
    >>> from stableloss.adapters.torch import differentiable
    >>> loss = differentiable(sl.SoftmaxCE(label_smoothing=0.1))
    >>> logits = torch.tensor([[3.0, 0.0], [0.0, 0.0]], requires_grad=True)
    >>> loss(logits, torch.tensor([0, 1])).backward()
    >>> logits.grad
    tensor([[ 0.0013, -0.0013],
            [ 0.2250, -0.2250]])

    How the mean loss depends on the weights of the rows:

    >>> weight = torch.ones(2, requires_grad=True)
    >>> loss(logits.detach(), torch.tensor([0, 1]), sample_weight=weight).backward()
    >>> weight.grad
    tensor([-0.1236,  0.1236])

    Gradients of each row by itself:

    >>> torch.vmap(torch.func.grad(loss))(logits.detach(), torch.tensor([0, 1]))
    tensor([[ 0.0026, -0.0026],
            [ 0.4500, -0.4500]])
    """
    if not isinstance(loss, LOSSES):
        raise TypeError(f"differentiable takes a loss object such as stableloss.SoftmaxCE(), not {loss!r}")
    if getattr(loss, "from_probabilities", False):
        raise ValueError(
            "the gradient of a loss with from_probabilities=True is the one by the logits, which PyTorch "
            "would take for one by the probabilities; use a loss of logits"
        )
    return _Differentiable(loss)


softmax_ce = differentiable(losses.SoftmaxCE(axis=1))
sigmoid_bce = differentiable(losses.sigmoid_bce)
softmax_mse = differentiable(losses.SoftmaxMSE(axis=1))
sigmoid_mse = differentiable(losses.sigmoid_mse)

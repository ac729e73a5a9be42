"""The losses as functions of PyTorch tensors on the CPU, which share their memory with numpy.

Before::

    loss = torch.nn.functional.cross_entropy(logits, y)

After::

    from stableloss.adapters.torch import softmax_ce
    loss = softmax_ce(logits, y)

A call that needs the gradient by the logits makes it in the same pass as the value. Soft targets, sample
weights and a denominator that is a tensor have gradients too, all of them second derivatives, in reverse and
in forward mode and under ``torch.func`` (grad, vjp, jvp, vmap, jacrev, jacfwd, hessian).

The class axis is PyTorch's own: 1 from two dimensions up, as for (N, C, d1, ...), not the last one as in
numpy. `differentiable` says how to choose another.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from stableloss import activations, losses

__all__ = ["differentiable", "sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse"]

LOSSES = (losses.SigmoidBCE, losses.SigmoidMSE, losses.SoftmaxCE, losses.SoftmaxMSE)
HALF = (torch.float16, torch.bfloat16)


# ---- tensors and arrays ---------------------------------------------------------------------------


def _numpy(value: Any) -> Any:
    """What the loss takes: tensors as arrays over their memory, the rest as it is."""
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else value


def _tensor(value: Any) -> Any:
    """A constant that a loss has taken, as a tensor."""
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))


def _to(x: Any, like: Any) -> Any:
    return None if x is None else x.to(like.dtype)


def _sum(terms: list[Any]) -> Any:
    return sum(terms[1:], terms[0])


# ---- a loss and the shape of its arguments --------------------------------------------------------


def _changed(loss: Any, **options: Any) -> Any:
    given = {name: getattr(loss, name) for name in inspect.signature(type(loss)).parameters}
    return type(loss)(**{**given, **options})


class _Plan:
    """A loss for logits of a certain number of dimensions, and where their classes are.

    Tensors of weights and masks have the shape of the rows, or of the first of the rows' dimensions, or,
    for the sigmoid losses, that of the logits. They become "spread", with dimensions of size 1 where they
    lack some, to go with the losses of reduction "none". The share of a loss is what it counts for in the
    result: its weight over the divisor.
    """

    def __init__(self, loss: Any, ndim: int, axis: int, doubtful: bool = False) -> None:
        self.softmax = isinstance(loss, (losses.SoftmaxCE, losses.SoftmaxMSE))
        self.axis = axis
        self.ndim = ndim
        self.doubtful = doubtful
        # the last axis is what the losses are fastest at
        last = axis == ndim - 1
        self.loss = _changed(loss, axis=-1 if last else axis) if hasattr(loss, "axis") else loss
        self.reduced = loss.reduction != "none"
        self.linear_in_targets = hasattr(loss, "target_grad")
        self.ignored = getattr(loss, "ignore_index", None)

    @property
    def each(self) -> _Plan:
        """For one value per row or element."""
        return _plan(_changed(self.loss, reduction="none"), self.ndim, self.axis, self.doubtful)

    @property
    def folded(self) -> _Plan:
        """For one more dimension, in front, that is no part of a call."""
        return _plan(self.loss, self.ndim + 1, self.axis + 1, self.doubtful)

    def spread(self, x: Any) -> Any:
        if self.softmax or x.ndim < self.ndim:
            x = x.reshape(x.shape + (1,) * (self.ndim - 1 - x.ndim))
        return x if self.softmax or x.ndim == self.ndim else x.unsqueeze(self.axis)

    def gathered(self, x: Any, like: Any) -> Any:
        """The sum of x, one number per loss, over what `spread` has repeated."""
        return x.sum_to_size(self.spread(like).shape).reshape(like.shape)

    def over_classes(self, x: Any) -> Any:
        """What is one number per loss, to go with the logits."""
        return x.unsqueeze(self.axis) if self.softmax and x is not None and x.ndim else x

    def sum_of_classes(self, x: Any) -> Any:
        return x.sum(self.axis) if self.softmax else x

    def along(self, weights: tuple[float, ...] | float | None, logits: Any) -> Any:
        """Weights of the classes or outputs, to go with the logits."""
        if weights is None or isinstance(weights, float):
            return 1.0 if weights is None else weights
        shape = [1] * self.ndim
        if shape:
            shape[self.axis] = -1
        return torch.tensor(weights, dtype=torch.float64).reshape(shape)

    def are_indices(self, targets: Any) -> bool:
        return self.softmax and targets.ndim < self.ndim

    def require_classes_on_axis(self, targets: Any) -> None:
        """Refuse target probabilities whose classes can as well be on the last axis."""
        if not self.doubtful or np.ndim(targets) != self.ndim:
            return
        array = np.asarray(targets)
        # the first sample alone can tell, mostly
        for part in (array[:1], array):
            if not part.size or not np.allclose(part.sum(-1, dtype=np.float64), 1, atol=1e-3):
                return
        raise ValueError(
            f"targets of shape {tuple(array.shape)} sum to 1 along the last axis, but the classes are taken "
            f"from axis {self.axis}, as PyTorch has them; {_advice(self.loss, self.ndim)}"
        )


@lru_cache(maxsize=256)
def _plan(loss: Any, ndim: int, axis: int, doubtful: bool) -> _Plan:
    return _Plan(loss, ndim, axis, doubtful)


def _advice(loss: Any, ndim: int) -> str:
    name = type(loss).__name__
    return f"set the axis of the loss to say which: {name}(axis=1) or, for the last one, {name}(axis={ndim - 1})"


def _plan_for(loss: Any, logits: Any, targets: Any) -> _Plan:
    """Find the class axis: the loss's where it is set, else PyTorch's unless the targets leave a doubt."""
    ndim = logits.ndim
    if not isinstance(loss, (losses.SoftmaxCE, losses.SoftmaxMSE)):
        # where weights per row lack a dimension
        return _plan(loss, ndim, getattr(loss, "axis", -1) % max(ndim, 1), False)
    axis: int = loss.axis
    if axis == 1 == ndim:
        axis = 0
    if not -ndim <= axis < ndim:
        raise ValueError(f"logits of shape {tuple(logits.shape)} have no axis {axis} for their classes")
    if axis != -1 or ndim < 3:
        return _plan(loss, ndim, axis % ndim, False)
    shape, rows = logits.shape, np.shape(targets)
    first, last = (shape[0], *shape[2:]), tuple(shape[:-1])
    if first == last == tuple(rows):
        raise ValueError(
            f"targets of shape {tuple(rows)} fit logits of shape {tuple(shape)} with the classes on axis 1, "
            f"as PyTorch has them, and with the classes on the last; {_advice(loss, ndim)}"
        )
    return _plan(loss, ndim, ndim - 1 if last == tuple(rows) else 1, len(rows) == ndim)


class _Share:
    """What each loss counts for in the result: its weight over the divisor."""

    def __init__(self, plan: _Plan, logits: Any, targets: Any, weight: Any, total: Any, mask: Any) -> None:
        self.plan, self.given = plan, (weight, total)
        self.weight = None if weight is None else plan.spread(_tensor(weight).double())
        # the derivative of the divisor by each loss's weight
        self.part: Any = None
        if total is not None:
            divisor = _tensor(total).double()
        elif plan.loss.reduction in ("mean", "batchmean"):
            divisor = self._divisor(logits, _tensor(targets), mask)
        else:
            divisor = None
        # 0 where nothing counts, and all results are 0
        self.divisor = None if divisor is None else torch.where(divisor == 0, torch.inf, divisor)
        self.value = self._divided(self.weight)

    def _divided(self, x: Any) -> Any:
        """x, None for 1, over the divisor."""
        if self.divisor is None:
            return x
        return (1.0 if x is None else x) / self.divisor

    def _divisor(self, logits: Any, targets: Any, mask: Any) -> Any:
        plan = self.plan
        shape = list(logits.shape)
        if plan.softmax:
            del shape[plan.axis]
        counts = torch.ones(shape, dtype=torch.bool) if mask is None else plan.spread(_tensor(mask).bool())
        indices = plan.are_indices(targets)
        if indices or not plan.softmax:
            labels = targets if targets.is_floating_point() else targets.long()
            ignored = plan.ignored if isinstance(plan.ignored, tuple) else (plan.ignored,)
            for label in ignored:
                if label is not None:
                    counts = counts & (labels != label)
        counts = counts.expand(shape)
        if plan.loss.reduction == "batchmean":
            rows = counts if plan.softmax or not plan.ndim else counts.any(plan.axis)
            return rows.sum().double()
        if not plan.softmax:
            return counts.sum().double()
        part = counts.double()
        class_weight = getattr(plan.loss, "class_weight", None)
        if class_weight is not None and indices:
            each = torch.tensor(class_weight, dtype=torch.float64)
            part = part * each[torch.where(counts, targets.long(), 0)]
        if self.weight is None:
            return part.sum()
        self.part = part
        return (part * self.weight).sum()


    def _removed(self, x: Any) -> Any:
        """x without the infinite and NaN of weight 0, which removes whatever the logits hold."""
        if self.weight is None:
            return x
        return torch.where((self._along(self.weight, x) == 0) & ~x.isfinite(), 0.0, x)

    def _along(self, share: Any, x: Any) -> Any:
        return self.plan.over_classes(share) if x.ndim == self.plan.ndim else share

    def times(self, x: Any) -> Any:
        """x, which has one entry for each loss or each logit, times the shares."""
        return x if self.value is None else self._along(self.value, x) * self._removed(x)

    def change(self, x: Any, weight: Any, total: Any) -> Any:
        """Change of `times(x)` when the weight, the denominator or both change by so much."""
        changes = []
        if weight is not None:
            weight = self.plan.spread(weight.double())
            changes.append(self._divided(weight))
            if self.part is not None:
                changes.append(-self.value * self._divided((self.part * weight).sum()))
        if total is not None:
            changes.append(-self.value * self._divided(total.double()))
        return self._along(_sum(changes), x) * self._removed(x)

    def gradient(self, x: Any, needed: tuple[bool, bool]) -> tuple[Any, Any]:
        """Gradient by weight and denominator of the sum of `times(x)`, with one entry for each loss."""
        x = self._removed(x)
        weight, total = self.given
        by_weight = by_total = None
        if needed[0]:
            by_weight = x
            if self.part is not None:
                by_weight = by_weight - self.part * (x * self.value).sum()
            by_weight = _to(self.plan.gathered(self._divided(by_weight), weight), weight)
        if needed[1]:
            by_total = _to(-self._divided((x * self.value).sum()), total)
        return by_weight, by_total


class _Slope:
    """How the derivative by the targets, or the activation, changes with the logits: its Jacobian."""

    def __init__(self, plan: _Plan, logits: Any, mask: Any) -> None:
        loss = plan.loss
        x = _last(logits).double()
        self.plan, self.counts = plan, None
        if mask is not None:
            counts = plan.spread(_tensor(mask).bool())
            self.counts = counts.unsqueeze(plan.axis) if plan.softmax else counts
            x = torch.where(self.counts, x, 0.0)
        if loss.logit_clip is not None:
            x = x.clamp(-loss.logit_clip, loss.logit_clip)
        scale, cap = getattr(loss, "logit_scale", 1.0), getattr(loss, "softcap", None)
        x, self.inner = x * scale, scale
        if cap is not None:
            t = torch.tanh(x / cap)
            x, self.inner = cap * t, scale * (1 - t * t)
        if plan.softmax:
            p = self.p = torch.softmax(x, plan.axis)
            # 1 - p of a class ahead of the others, without the difference
            others = torch.where(p > 0.5, 0.0, p).sum(plan.axis, keepdim=True)
            q = torch.where(p > 0.5, others, 1 - p)
        else:
            p, q = torch.sigmoid(x), torch.sigmoid(-x)
        self.outer = self._outer(p, q)

    def _outer(self, p: Any, q: Any) -> Any:
        plan, loss = self.plan, self.plan.loss
        if not plan.linear_in_targets:
            return -p if plan.softmax else -p * q
        weight = plan.along(loss.class_weight, p) * (1 - loss.label_smoothing)
        gamma = loss.focal_gamma if isinstance(loss.focal_gamma, tuple) else (loss.focal_gamma,) * 2
        if plan.softmax:
            return weight * _log_slope(p, q, gamma[0])
        alpha = loss.focal_alpha
        positive = plan.along(loss.pos_weight, p) * (1.0 if alpha is None else alpha)
        negative = 1.0 if alpha is None else 1.0 - alpha
        return weight * (
            positive * q * _log_slope(p, q, gamma[0]) + negative * p * _log_slope(q, p, gamma[1])
        )

    def _counted(self, x: Any) -> Any:
        return x if self.counts is None else torch.where(self.counts, x, 0.0)

    def times(self, v: Any) -> Any:
        """Change of the derivative when the logits move along v."""
        v = self.inner * v
        if self.plan.softmax:
            v = v - (self.p * v).sum(self.plan.axis, keepdim=True)
        return self._counted(self.outer * v)

    def transposed_times(self, u: Any) -> Any:
        """Gradient by the logits of the derivative's product with u."""
        u = self.outer * u
        if self.plan.softmax:
            u = u - self.p * u.sum(self.plan.axis, keepdim=True)
        return self._counted(self.inner * u)


def _log_slope(p: Any, q: Any, gamma: float) -> Any:
    """Derivative of ``-q**gamma log(p)``, where q is 1 - p, by log(p)."""
    if gamma == 0:
        return -torch.ones_like(p)
    log_p = torch.where(p > 0.5, torch.log1p(-q), torch.log(p))
    # its limits at p = 1 and p = 0, where factors are infinite
    ratio = torch.where(q == 0, -1.0, torch.where(p == 0, 0.0, p * log_p) / torch.where(q == 0, 1.0, q))
    return q**gamma * (gamma * ratio - 1)


# ---- functions that PyTorch differentiates --------------------------------------------------------


def _options(weight: Any, total: Any, mask: Any) -> dict[str, Any]:
    return {"sample_weight": _numpy(weight), "denominator": _numpy(total), "mask": _numpy(mask)}


def _front(x: Any, dim: int | None, size: int) -> Any:
    """An argument with the dimension of vmap in front."""
    if x is None:
        return None
    x = _tensor(x)
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


class _Last(torch.autograd.Function):
    """An argument of a second derivative. PyTorch comes here only for a third."""

    @staticmethod
    def forward(x: Any) -> Any:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("the third derivative by the logits or targets")

    jvp = backward

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any) -> tuple[Any, Any]:
        return _Last.apply(x), in_dims[0]


def _last(x: Any) -> Any:
    return _Last.apply(x) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


class _Function(torch.autograd.Function):
    """What the functions below share.

    Their arguments are a plan, the logits, targets, weight, denominator, mask and one of their own. Each
    function is the sum over the losses, or one entry for each, of the share times something that knows
    neither weights nor reduction: that is what `each` returns. The core computes the product at once. The
    derivatives by weight and denominator, and vmap, take it apart.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.plan, *values = inputs
        tensors = [value if isinstance(value, torch.Tensor) else None for value in values]
        ctx.constants = [None if isinstance(value, torch.Tensor) else value for value in values]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def arguments(ctx: Any) -> list[Any]:
        pairs = zip(ctx.saved_tensors, ctx.constants, strict=True)
        return [constant if tensor is None else tensor for tensor, constant in pairs]

    @classmethod
    def jvp(cls, ctx: Any, *changes: Any) -> Any:
        args = _Function.arguments(ctx)
        args = [forward_ad.unpack_dual(x).primal if isinstance(x, torch.Tensor) else x for x in args]
        # PyTorch calls with forward mode off, so that a jvp of a jvp would be 0 without a word
        with forward_ad._set_fwd_grad_enabled(True):
            return cls.change(ctx.plan, args, *changes[1:])

    @classmethod
    def each(cls, plan: _Plan, args: Any) -> Any:
        logits, targets, _, _, mask, own = args
        return cls.apply(plan.each, logits, targets, None, None, mask, own)

    @classmethod
    def composed(cls, plan: _Plan, *args: Any) -> Any:
        """The same as `apply`, from the shares and what there is for each."""
        return _to(_Share(plan, *args[:5]).times(cls.each(plan, args)), args[0])

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, plan: _Plan, *args: Any) -> tuple[Any, Any]:
        if plan.reduced or args[2] is not None:
            return torch.vmap(partial(cls.composed, plan), in_dims[1:])(*args), 0
        fronts = [_front(x, dim, info.batch_size) for x, dim in zip(args, in_dims[1:], strict=True)]
        return cls.apply(plan.folded, *fronts), 0


class _Value(_Function):
    """The loss; with it, where its last argument says so, the gradient by the logits."""

    @staticmethod
    def forward(*args: Any) -> Any:
        plan, logits, targets, *options, wanted = args
        x, t = _numpy(logits), _numpy(targets)
        plan.require_classes_on_axis(t)
        if wanted:
            value, grad = plan.loss.value_and_grad(x, t, **_options(*options))
        else:
            value, grad = plan.loss(x, t, **_options(*options)), np.empty(0)
        return torch.from_numpy(np.asarray(value)).to(logits.dtype), torch.from_numpy(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *values, wanted = inputs
        ctx.mark_non_differentiable(output[1])
        _Function.setup_context(ctx, (*values, output[1] if wanted else None), output)

    @classmethod
    def each(cls, plan: _Plan, args: Any) -> Any:
        logits, targets, _, _, mask, _ = args
        return cls.apply(plan.each, logits, targets, None, None, mask, False)[0].double()

    @staticmethod
    def backward(ctx: Any, g: Any, _: Any) -> Any:
        by: list[Any] = [None] * 7
        if g is None:
            return tuple(by)
        plan, args = ctx.plan, _Function.arguments(ctx)
        needed = ctx.needs_input_grad
        if needed[1]:
            by[1] = plan.over_classes(g) * _Grad.apply(plan, *args)
        if needed[2]:
            by[2] = _to(plan.over_classes(g) * _TargetGrad.apply(plan, *args[:5], None), args[1])
        if needed[3] or needed[4]:
            by[3], by[4] = _Share(plan, *args[:5]).gradient(g * _Value.each(plan, args), needed[3:5])
        return tuple(by)

    @staticmethod
    def change(plan: _Plan, args: Any, logits: Any, targets: Any, weight: Any, total: Any, *_: Any) -> Any:
        terms = []
        if logits is not None:
            terms.append(plan.sum_of_classes(_Grad.apply(plan, *args) * logits))
        if targets is not None:
            terms.append(plan.sum_of_classes(_TargetGrad.apply(plan, *args[:5], None) * targets))
        if weight is not None or total is not None:
            terms.append(_Share(plan, *args[:5]).change(_Value.each(plan, args), weight, total))
        if plan.reduced:
            terms = [term.sum() for term in terms]
        return _to(_sum(terms), args[0]), None

    @classmethod
    def composed(cls, plan: _Plan, *args: Any) -> Any:
        value = _Share(plan, *args[:5]).times(cls.each(plan, args))
        return _to(value.sum() if plan.reduced else value, args[0])

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, plan: _Plan, *args: Any) -> tuple[Any, Any]:
        result, _ = super().vmap(info, in_dims, plan, *args[:5], None)
        value = result[0] if isinstance(result, tuple) else result
        return (value, value.new_empty(0)), (0, None)


class _Derivative(_Function):
    """The derivatives of `_Derivative`s: those by logits and targets are left to the classes.

    The methods `by_logits` and `by_targets` return the gradient of the inner product with u,
    `along_logits` and `along_targets` the change along v.
    """

    @classmethod
    def backward(cls, ctx: Any, u: Any) -> Any:
        by: list[Any] = [None] * 7
        if u is None:
            return tuple(by)
        plan, args = ctx.plan, _Function.arguments(ctx)
        needed = ctx.needs_input_grad
        if needed[1]:
            by[1] = _to(cls.by_logits(plan, args, u), args[0])
        if needed[2]:
            by[2] = _to(cls.by_targets(plan, args, u), args[1])
        if needed[3] or needed[4]:
            each = plan.sum_of_classes(u.double() * cls.each(plan, args))
            by[3], by[4] = _Share(plan, *args[:5]).gradient(each, needed[3:5])
        if needed[6]:
            by[6] = _to(_product(plan, *args[:5], u), args[5])
        return tuple(by)

    @classmethod
    def change(cls, plan: _Plan, args: Any, *changes: Any) -> Any:
        logits, targets, weight, total, _, own = changes
        terms = []
        if logits is not None:
            terms.append(cls.along_logits(plan, args, logits))
        if targets is not None:
            terms.append(cls.along_targets(plan, args, targets))
        if weight is not None or total is not None:
            terms.append(_Share(plan, *args[:5]).change(cls.each(plan, args), weight, total))
        if own is not None:
            terms.append(_product(plan, *args[:5], own))
        # PyTorch takes no None here
        terms = [term for term in terms if term is not None] or [torch.zeros_like(args[0])]
        return _to(_sum(terms), args[0])


def _shared(plan: _Plan, args: Any, x: Any) -> Any:
    return _Share(plan, *args[:5]).times(x)


class _Grad(_Derivative):
    """The gradient by the logits; its last argument is the gradient itself, where that is known."""

    @staticmethod
    def forward(*args: Any) -> Any:
        plan, logits, targets, *options, grad = args
        if grad is None:
            _, array = plan.loss.value_and_grad(_numpy(logits), _numpy(targets), **_options(*options))
            return torch.from_numpy(array)
        return grad.detach()

    @classmethod
    def each(cls, plan: _Plan, args: Any) -> Any:
        return super().each(plan, (*args[:5], None))

    @staticmethod
    def by_logits(plan: _Plan, args: Any, u: Any) -> Any:
        return _product(plan, *args[:5], u)

    @staticmethod
    def by_targets(plan: _Plan, args: Any, u: Any) -> Any:
        return _shared(plan, args, _Slope(plan, args[0], args[4]).times(u))

    along_logits = by_logits

    @staticmethod
    def along_targets(plan: _Plan, args: Any, v: Any) -> Any:
        return _shared(plan, args, _Slope(plan, args[0], args[4]).transposed_times(v))


class _TargetGrad(_Derivative):
    """The gradient by the targets."""

    @staticmethod
    def forward(*args: Any) -> Any:
        plan, logits, targets, *options, _ = args
        x, t = _numpy(logits), _numpy(targets)
        if plan.linear_in_targets:
            return torch.from_numpy(plan.loss.target_grad(x, t, **_options(*options)))
        x = x.astype(np.float64)
        if plan.loss.logit_clip is not None:
            x = x.clip(-plan.loss.logit_clip, plan.loss.logit_clip)
        a = activations.softmax(x, axis=plan.axis) if plan.softmax else activations.sigmoid(x)
        return _to(_shared(plan, args[1:], _counted(plan, options[2], torch.from_numpy(t - a))), logits)

    @staticmethod
    def by_logits(plan: _Plan, args: Any, u: Any) -> Any:
        return _shared(plan, args, _Slope(plan, args[0], args[4]).transposed_times(u))

    @staticmethod
    def by_targets(plan: _Plan, args: Any, u: Any) -> Any:
        if plan.linear_in_targets:
            return None
        return _shared(plan, args, _counted(plan, args[4], u))

    @staticmethod
    def along_logits(plan: _Plan, args: Any, v: Any) -> Any:
        return _shared(plan, args, _Slope(plan, args[0], args[4]).times(v))

    along_targets = by_targets


class _Product(_Derivative):
    """The Hessian by the logits times the last argument."""

    @staticmethod
    def forward(*args: Any) -> Any:
        plan, logits, targets, *options, v = args
        product = plan.loss.hessian_vector_product
        return torch.from_numpy(
            product(_numpy(logits), _numpy(targets), _numpy(v), **_options(*options))
        )

    @staticmethod
    def by_logits(plan: _Plan, args: Any, u: Any) -> Any:
        """Neither by the logits nor by the targets: they are `_last`."""

    by_targets = by_logits


def _product(plan: _Plan, logits: Any, targets: Any, weight: Any, total: Any, mask: Any, v: Any) -> Any:
    return _Product.apply(plan, _last(logits), _last(targets), weight, total, mask, v)


def _counted(plan: _Plan, mask: Any, x: Any) -> Any:
    """x where the mask lets it count, else 0."""
    if mask is None:
        return x
    return torch.where(plan.over_classes(plan.spread(_tensor(mask).bool())), x, 0.0)


# ---- calls ----------------------------------------------------------------------------------------


def _argument(name: str, value: Any) -> Any:
    """A tensor on which numpy can work, or something other than a tensor for the loss to judge."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise NotImplementedError(
                f"{name} is a tensor on the device {value.device}; stableloss computes on the CPU: pass {name}.cpu()"
            )
        if value.layout != torch.strided:
            raise TypeError(f"{name} is a tensor of layout {value.layout}; pass {name}.to_dense()")
        # numpy has no bfloat16 of its own
        return value.float() if value.dtype in HALF else value
    return np.asarray(value) if isinstance(value, (list, tuple, bool, int, float)) else value


def _call(
    loss: Any,
    logits: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    mask: Any = None,
    denominator: Any = None,
) -> Any:
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_call)(
            loss, logits, targets, sample_weight=sample_weight, mask=mask, denominator=denominator
        )
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"logits must be a torch.Tensor, not {type(logits).__name__}; the losses of stableloss itself take arrays"
        )
    if not logits.is_floating_point():
        swapped = isinstance(targets, torch.Tensor) and targets.is_floating_point()
        hint = "; the order is (logits, targets)" if swapped else ""
        raise TypeError(f"logits must be of a floating-point dtype, not {logits.dtype}{hint}")
    dtype = logits.dtype
    logits, targets = _argument("logits", logits), _argument("targets", targets)
    weight, total = _argument("sample_weight", sample_weight), _argument("denominator", denominator)
    mask = _argument("mask", mask)
    plan = _plan_for(loss, logits, targets)
    if isinstance(targets, torch.Tensor) and targets.requires_grad and plan.are_indices(targets):
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} are class indices, which have no gradient, but require one; "
            f"pass targets.detach(), or probabilities of shape {tuple(logits.shape)}"
        )
    wanted = torch.is_grad_enabled() and logits.requires_grad
    value, _ = _Value.apply(plan, logits, targets, weight, total, mask, wanted)
    # as PyTorch's own losses under autocast
    return value if torch.is_autocast_enabled("cpu") else value.to(dtype)


def differentiable(loss: Any) -> Callable[..., Any]:
    """A loss object as a function of tensors.

    Parameters
    ----------
    loss : loss object
        One of the losses of stableloss, with any reduction.

    Returns
    -------
    function
        ``f(logits, targets, *, sample_weight=None, mask=None, denominator=None)``.
    """
    if not isinstance(loss, LOSSES):
        raise TypeError(f"differentiable takes a loss object such as stableloss.SoftmaxCE(), not {loss!r}")
    if getattr(loss, "from_probabilities", False):
        raise ValueError(
            "the gradient of a loss with from_probabilities=True is the one by the logits, which PyTorch would take "
            "for one by the probabilities; pass logits to a loss without"
        )
    return partial(_call, loss)


softmax_ce = differentiable(losses.SoftmaxCE(axis=1))
sigmoid_bce = differentiable(losses.sigmoid_bce)
softmax_mse = differentiable(losses.SoftmaxMSE(axis=1))
sigmoid_mse = differentiable(losses.sigmoid_mse)

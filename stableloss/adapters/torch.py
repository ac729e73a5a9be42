"""The losses as functions of PyTorch tensors on the CPU, which share their memory with numpy.

Before::

    loss = torch.nn.functional.cross_entropy(logits, y)

After::

    from stableloss.adapters.torch import softmax_ce
    loss = softmax_ce(logits, y)

A call that needs a gradient makes it in the same pass as the value. The derivative of the gradient is
the exact product of the Hessian and a vector. The classes are the last axis; for PyTorch's (N, C, d1, ...)
use ``differentiable(stableloss.SoftmaxCE(axis=1))``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from stableloss import losses

__all__ = ["differentiable", "sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse"]


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Any, loss: Any, targets: Any, options: dict[str, Any]) -> Any:
        value, grad = loss.value_and_grad(logits.detach().numpy(), targets, **options)
        ctx.axis = getattr(loss, "axis", None)
        ctx.hessian_times = partial(_hessian_times, loss, targets, options)
        ctx.save_for_backward(logits, torch.from_numpy(grad))
        return _tensor(value)

    @staticmethod
    def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
        logits, grad = ctx.saved_tensors
        grad = _Grad.apply(logits, grad, ctx.hessian_times)
        if 0 < g.ndim < grad.ndim:
            g = g.unsqueeze(ctx.axis)
        return g * grad, None, None, None


class _Grad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Any, grad: Any, hessian_times: Any) -> Any:
        ctx.hessian_times = hessian_times
        ctx.save_for_backward(logits)
        return grad

    @staticmethod
    def backward(ctx: Any, v: Any) -> tuple[Any, ...]:
        return _Product.apply(v, _Last.apply(*ctx.saved_tensors), ctx.hessian_times), None, None


class _Product(torch.autograd.Function):
    """Hessian times v: linear in v, so differentiable by v as often as one likes."""

    @staticmethod
    def forward(ctx: Any, v: Any, logits: Any, hessian_times: Any) -> Any:
        ctx.hessian_times = hessian_times
        ctx.save_for_backward(logits)
        return hessian_times(logits, v)

    @staticmethod
    def backward(ctx: Any, u: Any) -> tuple[Any, ...]:
        return _Product.apply(u, *ctx.saved_tensors, ctx.hessian_times), None, None


class _Last(torch.autograd.Function):
    """The logits of a Hessian. PyTorch comes to its backward only for a third derivative."""

    @staticmethod
    def forward(ctx: Any, logits: Any) -> Any:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("the third derivative by the logits")


def _tensor(value: Any) -> Any:
    return torch.from_numpy(np.asarray(value))


def _hessian_times(loss: Any, targets: Any, options: dict[str, Any], logits: Any, v: Any) -> Any:
    x, v = logits.detach().numpy(), v.detach().numpy()
    return torch.from_numpy(loss.hessian_vector_product(x, targets, v, **options))


def _differentiable_call(loss: Any, logits: Any, targets: Any, **options: Any) -> Any:
    targets = np.asarray(targets)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _Value.apply(logits, loss, targets, options)
    return _tensor(loss(logits.numpy(), targets, **options))


def differentiable(loss: Any) -> Callable[..., Any]:
    """A loss object as a function of a tensor of logits.

    Parameters
    ----------
    loss : loss object
        One of the losses of stableloss, with any reduction.

    Returns
    -------
    function
        ``f(logits, targets, **options)``, where the options are `sample_weight`, `mask` and
        `denominator`; tensors are taken wherever the loss takes arrays. The result is a tensor,
        float64 for a reduced loss, which can be differentiated by the logits twice.

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
    """
    return partial(_differentiable_call, loss)


softmax_ce = differentiable(losses.softmax_ce)
sigmoid_bce = differentiable(losses.sigmoid_bce)
softmax_mse = differentiable(losses.softmax_mse)
sigmoid_mse = differentiable(losses.sigmoid_mse)

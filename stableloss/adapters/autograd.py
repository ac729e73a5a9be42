"""The losses as functions that HIPS autograd differentiates, twice if need be.

Before::

    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    return -np.mean(log_p[np.arange(len(y)), y])

After::

    from stableloss.adapters.autograd import softmax_ce
    return softmax_ce(logits, y)

A traced call makes value and gradient in one pass. The derivative of the gradient is the exact product
of the Hessian and a vector. Other options: ``differentiable(stableloss.SoftmaxCE(label_smoothing=0.1))``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import autograd.numpy as anp
from autograd.extend import defjvp, defvjp, primitive
from autograd.tracer import getval, isbox

from stableloss import losses

__all__ = ["differentiable", "sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse"]


class _Call(NamedTuple):
    """What a call of a loss has besides the logits."""

    loss: Any
    targets: Any
    options: dict[str, Any]


@primitive
def _value(logits: Any, value: Any, grad: Any, call: _Call) -> Any:
    return value


@primitive
def _grad(logits: Any, grad: Any, call: _Call) -> Any:
    return grad


@primitive
def _hessian_times(v: Any, logits: Any, call: _Call) -> Any:
    return call.loss.hessian_vector_product(logits, call.targets, v, **call.options)


def _pull_back(g: Any, grad: Any, call: _Call) -> Any:
    """One number per loss, g, times that loss's gradient."""
    if 0 < anp.ndim(g) < anp.ndim(grad):
        g = anp.expand_dims(g, call.loss.axis)
    elif anp.ndim(g) == 0 and not isbox(g):
        # the float64 of a reduced loss must not turn a float32 gradient into float64
        g = float(g)
    return g * grad


def _push_forward(v: Any, ans: Any, grad: Any, call: _Call) -> Any:
    """Change of each loss when its logits change by v."""
    change = grad * v
    if anp.ndim(ans) == anp.ndim(change):
        return change
    return anp.sum(change, axis=call.loss.axis if anp.ndim(ans) else None)


defvjp(_value, lambda ans, logits, _, grad, call: lambda g: _pull_back(g, _grad(logits, grad, call), call))
defvjp(_grad, lambda ans, logits, _, call: lambda g: _hessian_times(g, logits, call))
defvjp(_hessian_times, lambda ans, v, logits, call: lambda g: _hessian_times(g, logits, call))
defjvp(_value, lambda v, ans, logits, _, grad, call: _push_forward(v, ans, _grad(logits, grad, call), call))
defjvp(_grad, lambda v, ans, logits, _, call: _hessian_times(v, logits, call))
defjvp(_hessian_times, lambda u, ans, v, logits, call: _hessian_times(u, logits, call))


def _differentiable_call(loss: Any, logits: Any, targets: Any, **options: Any) -> Any:
    if not isbox(logits):
        return loss(logits, targets, **options)
    value, grad = loss.value_and_grad(getval(logits), targets, **options)
    return _value(logits, value, grad, _Call(loss, targets, options))


def differentiable(loss: Any) -> Callable[..., Any]:
    """A loss object as a function of the logits that autograd differentiates.

    Parameters
    ----------
    loss : loss object
        One of the losses of stableloss, with any reduction.

    Returns
    -------
    function
        ``f(logits, targets, **options)``, where the options are `sample_weight`, `mask` and
        `denominator`. It is differentiable with respect to the logits, in reverse and forward mode,
        up to the second derivative.

    Examples
    --------
    >>> import autograd
    >>> import numpy as np
    >>> import stableloss as sl
    >>> from stableloss.adapters.autograd import differentiable
    >>> loss = differentiable(sl.SigmoidBCE(reduction="sum"))
    >>> autograd.grad(loss)(np.array([0.0, 40.0]), np.array([1, 1]))
    array([-5.00000000e-01, -4.24835426e-18])
    >>> autograd.hessian(loss)(np.array([0.0, 40.0]), np.array([1, 1]))
    array([[2.50000000e-01, 0.00000000e+00],
           [0.00000000e+00, 4.24835426e-18]])
    """
    return partial(_differentiable_call, loss)


softmax_ce = differentiable(losses.softmax_ce)
sigmoid_bce = differentiable(losses.sigmoid_bce)
softmax_mse = differentiable(losses.softmax_mse)
sigmoid_mse = differentiable(losses.sigmoid_mse)

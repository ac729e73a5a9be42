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
from stableloss.adapters._arguments import require_loss

__all__ = ["differentiable", "sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse"]


class _Call(NamedTuple):
    """What a call of a loss has besides the logits and the targets."""

    loss: Any
    options: dict[str, Any]


# Of these, logits, targets and v are what autograd may have traced. What has no derivative below has none
# by that argument, and autograd says so.


@primitive
def _value(logits: Any, targets: Any, value: Any, grad: Any, call: _Call) -> Any:
    return value


@primitive
def _grad(logits: Any, targets: Any, grad: Any, call: _Call) -> Any:
    return grad


@primitive
def _target_grad(logits: Any, targets: Any, call: _Call) -> Any:
    return call.loss.target_grad(logits, targets, **call.options)


@primitive
def _hessian_times(v: Any, logits: Any, targets: Any, call: _Call) -> Any:
    return call.loss.hessian_vector_product(logits, targets, v, **call.options)


def _pull_back(g: Any, grad: Any, call: _Call) -> Any:
    """One number per loss, g, times that loss's gradient."""
    if 0 < anp.ndim(g) < anp.ndim(grad):
        g = anp.expand_dims(g, call.loss.axis)
    elif anp.ndim(g) == 0 and not isbox(g):
        # the float64 of a reduced loss must not turn a float32 gradient into float64
        g = float(g)
    return g * grad


def _push_forward(v: Any, ans: Any, grad: Any, call: _Call) -> Any:
    """Change of each loss when its logits or targets change by v."""
    change = grad * v
    if anp.ndim(ans) == anp.ndim(change):
        return change
    return anp.sum(change, axis=call.loss.axis if anp.ndim(ans) else None)


defvjp(
    _value,
    lambda ans, z, t, _, grad, call: lambda g: _pull_back(g, _grad(z, t, grad, call), call),
    lambda ans, z, t, _, grad, call: lambda g: _pull_back(g, _target_grad(z, t, call), call),
)
defvjp(_grad, lambda ans, z, t, _, call: lambda g: _hessian_times(g, z, t, call))
defvjp(_hessian_times, lambda ans, v, z, t, call: lambda g: _hessian_times(g, z, t, call))
defjvp(
    _value,
    lambda v, ans, z, t, _, grad, call: _push_forward(v, ans, _grad(z, t, grad, call), call),
    lambda v, ans, z, t, _, grad, call: _push_forward(v, ans, _target_grad(z, t, call), call),
)
defjvp(_grad, lambda v, ans, z, t, _, call: _hessian_times(v, z, t, call))
defjvp(_hessian_times, lambda u, ans, v, z, t, call: _hessian_times(u, z, t, call))


def _plain(x: Any) -> Any:
    """What has been traced, at every level."""
    while isbox(x):
        x = getval(x)
    return x


def _differentiable_call(
    loss: Any,
    logits: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    mask: Any = None,
    denominator: Any = None,
) -> Any:
    options = {"sample_weight": sample_weight, "mask": mask, "denominator": denominator}
    for name, option in options.items():
        if isbox(option):
            raise TypeError(f"{name} is traced by autograd, but has no derivative here: pass getval({name})")
    options = {name: option for name, option in options.items() if option is not None}
    if isbox(targets) and not hasattr(loss, "target_grad"):
        raise TypeError(
            f"targets are traced by autograd, but {loss!r} has no derivative by them: pass getval(targets)"
        )
    if not (isbox(logits) or isbox(targets)):
        return loss(logits, targets, **options)
    value, grad = loss.value_and_grad(_plain(logits), _plain(targets), **options)
    return _value(logits, targets, value, grad, _Call(loss, options))


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
        up to the second derivative; the cross-entropies also with respect to target probabilities, once.

    Raises
    ------
    TypeError
        If `loss` is not a loss object. From the function: if autograd traces an option, or targets by which
        the loss has no derivative, or as from the loss.
    ValueError
        If `loss` has `from_probabilities`, whose gradient is not the one by its argument; or as from the
        loss.
    NotImplementedError
        When differentiating: for the third derivative, and a second one in which the targets take part.

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
    require_loss(loss)
    if getattr(loss, "from_probabilities", False):
        raise ValueError(
            "the gradient of a loss with from_probabilities=True is the one by the logits, which autograd "
            "would take for one by the probabilities; use a loss of logits"
        )
    return partial(_differentiable_call, loss)


softmax_ce = differentiable(losses.softmax_ce)
sigmoid_bce = differentiable(losses.sigmoid_bce)
softmax_mse = differentiable(losses.softmax_mse)
sigmoid_mse = differentiable(losses.sigmoid_mse)

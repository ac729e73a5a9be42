"""Networks with one sample per column, (n_out, m), and code that has only the output y_hat left.

Before, in a network that goes through the derivative of its cost by y_hat::

    cost = -np.sum(Y * np.log(AL) + (1 - Y) * np.log(1 - AL)) / m
    dAL = -(np.divide(Y, AL) - np.divide(1 - Y, 1 - AL))
    dZL = dAL * AL * (1 - AL)

After, with the weighted input ZL of the output layer::

    from stableloss.adapters.columns import sigmoid_cost
    cost, dZL = sigmoid_cost(ZL, Y)

or, where ZL is out of reach, ``cost, dZL = sigmoid_cost_from_output(AL, Y)``. The cost is averaged
over the m samples; dZL is not divided by m, since such networks divide in ``dW = dZ @ A_prev.T / m``.

Where cost and derivative are in different functions, as in the Deep Learning Specialization, each takes
its own of the two: ``compute_cost(AL, Y)`` returns ``sigmoid_cost_from_output(AL, Y)[0]``, and
``L_model_backward(AL, Y, caches)`` begins, in place of dAL and the last layer's backward pass, with::

    linear_cache, ZL = caches[-1]
    dZL = sigmoid_cost(ZL, Y)[1]
    dA_prev, dW, db = linear_backward(dZL, linear_cache)

One column per time step, a vocabulary of V rows and the next character's index, is the case of m = 1:
``step_loss, dy[t] = softmax_cost(y[t], [target[t]])``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stableloss._arrays import any_array
from stableloss.adapters._arguments import explained
from stableloss.losses import SigmoidBCE, SoftmaxCE

__all__ = ["sigmoid_cost", "sigmoid_cost_from_output", "softmax_cost", "softmax_cost_from_output"]

_SIGMOID = SigmoidBCE(reduction="sum")
_SIGMOID_OF_OUTPUT = SigmoidBCE(reduction="sum", from_probabilities=True)
_SOFTMAX = SoftmaxCE(reduction="sum", ignore_index=None, axis=0)
_SOFTMAX_OF_OUTPUT = SoftmaxCE(reduction="sum", ignore_index=None, axis=0, from_probabilities=True)


def _cost(loss: Any, x: Any, y: Any, name: str, classes: bool) -> tuple[float, np.ndarray]:
    x = any_array(x, name)
    shape = x.shape
    if len(shape) != 2:
        one = f": pass np.reshape({name}, (1, -1)) for one output, np.reshape({name}, (-1, 1)) for one sample"
        fix = one if len(shape) < 2 else ""
        raise ValueError(f"{name} has shape {shape}, not (n_out, m) with one sample per column{fix}")
    try:
        total, dz = loss.value_and_grad(x, y)
    except (TypeError, ValueError) as error:
        raise explained(error, x, y, name, "y", 0, classes) from None
    return total / max(shape[1], 1), dz


def sigmoid_cost(z: Any, y: Any) -> tuple[float, np.ndarray]:
    """Binary cross-entropy of a sigmoid layer, and its derivative by the layer's weighted input.

    Parameters
    ----------
    z : ndarray of shape (n_out, m)
        Weighted input of the output layer.
    y : ndarray of shape (n_out, m)
        Targets, 0 or 1.

    Returns
    -------
    cost : float
        Sum over the outputs, averaged over the m samples.
    dz : ndarray of shape (n_out, m)
        sigmoid(z) - y, not divided by m.

    Raises
    ------
    TypeError, ValueError
        If an argument does not hold real numbers, the shapes do not agree, or a target is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.columns import sigmoid_cost
    >>> cost, dz = sigmoid_cost(np.array([[0.0, -1000.0]]), np.array([[1, 1]]))
    >>> round(cost, 6)
    500.346574
    >>> dz
    array([[-0.5, -1. ]])
    """
    return _cost(_SIGMOID, z, y, "z", False)


def sigmoid_cost_from_output(y_hat: Any, y: Any) -> tuple[float, np.ndarray]:
    """The same from the output y_hat of the sigmoid, as exact as y_hat still is.

    Parameters
    ----------
    y_hat : ndarray of shape (n_out, m)
        Output of the sigmoid, in [0, 1].
    y : ndarray of shape (n_out, m)
        Targets, 0 or 1.

    Returns
    -------
    cost : float
        Sum over the outputs, averaged over the m samples.
    dz : ndarray of shape (n_out, m)
        y_hat - y, not divided by m.

    Raises
    ------
    TypeError, ValueError
        If an argument does not hold real numbers, the shapes do not agree, or a target is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.columns import sigmoid_cost_from_output
    >>> cost, dz = sigmoid_cost_from_output(np.array([[0.5, 0.75]]), np.array([[1, 0]]))
    >>> round(cost, 6)
    1.039721
    >>> dz
    array([[-0.5 ,  0.75]])
    """
    return _cost(_SIGMOID_OF_OUTPUT, y_hat, y, "y_hat", False)


def softmax_cost(z: Any, y: Any) -> tuple[float, np.ndarray]:
    """Cross-entropy of a softmax layer, and its derivative by the layer's weighted input.

    Parameters
    ----------
    z : ndarray of shape (n_out, m)
        Weighted input of the output layer.
    y : ndarray of shape (n_out, m) or (m,)
        One-hot columns, or class indices.

    Returns
    -------
    cost : float
        Mean over the m samples.
    dz : ndarray of shape (n_out, m)
        softmax(z) - y, not divided by m.

    Raises
    ------
    TypeError, ValueError
        If an argument does not hold real numbers, the shapes do not agree, or a target is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.columns import softmax_cost
    >>> cost, dz = softmax_cost(np.array([[0.0, 1000.0], [0.0, 0.0]]), np.array([0, 1]))
    >>> round(cost, 6)
    500.346574
    >>> dz
    array([[-0.5,  1. ],
           [ 0.5, -1. ]])
    """
    return _cost(_SOFTMAX, z, y, "z", True)


def softmax_cost_from_output(y_hat: Any, y: Any) -> tuple[float, np.ndarray]:
    """The same from the output y_hat of the softmax, as exact as y_hat still is.

    Parameters
    ----------
    y_hat : ndarray of shape (n_out, m)
        Output of the softmax, in [0, 1].
    y : ndarray of shape (n_out, m) or (m,)
        One-hot columns, or class indices.

    Returns
    -------
    cost : float
        Mean over the m samples.
    dz : ndarray of shape (n_out, m)
        y_hat - y, not divided by m.

    Raises
    ------
    TypeError, ValueError
        If an argument does not hold real numbers, the shapes do not agree, or a target is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.columns import softmax_cost_from_output
    >>> cost, dz = softmax_cost_from_output(np.array([[0.25, 0.5], [0.75, 0.5]]), np.array([1, 0]))
    >>> round(cost, 6)
    0.490415
    >>> dz
    array([[ 0.25, -0.5 ],
           [-0.25,  0.5 ]])
    """
    return _cost(_SOFTMAX_OF_OUTPUT, y_hat, y, "y_hat", True)

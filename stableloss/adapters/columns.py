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
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stableloss.losses import SigmoidBCE, SoftmaxCE

__all__ = ["sigmoid_cost", "sigmoid_cost_from_output", "softmax_cost", "softmax_cost_from_output"]

_SIGMOID = SigmoidBCE(reduction="sum")
_SIGMOID_OF_OUTPUT = SigmoidBCE(reduction="sum", from_probabilities=True)
_SOFTMAX = SoftmaxCE(reduction="sum", ignore_index=None, axis=0)
_SOFTMAX_OF_OUTPUT = SoftmaxCE(reduction="sum", ignore_index=None, axis=0, from_probabilities=True)


def _cost(loss: Any, x: Any, y: Any) -> tuple[float, np.ndarray]:
    total, dz = loss.value_and_grad(x, y)
    return total / max(x.shape[1], 1), dz


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
    return _cost(_SIGMOID, z, y)


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
    return _cost(_SIGMOID_OF_OUTPUT, y_hat, y)


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
    return _cost(_SOFTMAX, z, y)


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
    return _cost(_SOFTMAX_OF_OUTPUT, y_hat, y)

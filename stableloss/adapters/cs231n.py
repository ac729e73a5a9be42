"""The softmax losses of the CS231n assignments.

Before::

    from cs231n.layers import softmax_loss
    from cs231n.rnn_layers import temporal_softmax_loss

After, below the star imports of the file (``from cs231n.layers import *``), which would otherwise put
the course's own functions in place of these without a sign::

    from stableloss.adapters.cs231n import softmax_loss, temporal_softmax_loss
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stableloss._arrays import any_array
from stableloss.adapters._arguments import explained
from stableloss.losses import SoftmaxCE

__all__ = ["softmax_loss", "temporal_softmax_loss"]

_LOSS = SoftmaxCE(ignore_index=None)


def softmax_loss(x: Any, y: Any) -> tuple[float, np.ndarray]:
    """Softmax loss of a batch and its gradient.

    Parameters
    ----------
    x : ndarray of shape (N, C)
        Scores.
    y : ndarray of shape (N,)
        Labels, 0 <= y[i] < C. A negative label is an error; it does not count from the end.

    Returns
    -------
    loss : float
        Mean over the N rows.
    dx : ndarray of shape (N, C)
        Gradient of `loss` with respect to `x`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not hold real numbers, the shapes do not agree, or a label is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.cs231n import softmax_loss
    >>> loss, dx = softmax_loss(np.array([[0.0, 0.0], [0.0, 1000.0]]), np.array([0, 0]))
    >>> round(loss, 6)
    500.346574
    >>> dx
    array([[-0.25,  0.25],
           [-0.5 ,  0.5 ]])
    """
    try:
        loss, dx = _LOSS.value_and_grad(x, y)
    except (TypeError, ValueError) as error:
        raise explained(error, x, y, "x", "y", -1, True) from None
    return float(loss), dx


def temporal_softmax_loss(x: Any, y: Any, mask: Any, verbose: bool = False) -> tuple[float, np.ndarray]:
    """Softmax loss of a batch of sequences, summed over time and averaged over the batch.

    Parameters
    ----------
    x : ndarray of shape (N, T, V)
        Scores of the V words at each of T time steps.
    y : ndarray of shape (N, T)
        Labels; looked at only where `mask` is True.
    mask : ndarray of shape (N, T), bool
        False removes the time step: loss and gradient 0.
    verbose : bool, default: False
        Print the shape of `dx`.

    Returns
    -------
    loss : float
        Sum over the time steps that count, divided by N.
    dx : ndarray of shape (N, T, V)
        Gradient of `loss` with respect to `x`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not hold real numbers, the shapes do not agree, or a label is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.cs231n import temporal_softmax_loss
    >>> mask = np.array([[True, True, False]])
    >>> loss, dx = temporal_softmax_loss(np.zeros((1, 3, 4)), np.array([[0, 3, 0]]), mask)
    >>> round(loss, 6)
    2.772589
    >>> dx[0, :2]
    array([[-0.75,  0.25,  0.25,  0.25],
           [ 0.25,  0.25,  0.25, -0.75]])
    >>> bool(dx[0, 2].any())
    False
    """
    x = any_array(x, "x")
    shape = x.shape
    if len(shape) != 3:
        one = "; for one sequence pass x[np.newaxis], and y and mask likewise" if len(shape) == 2 else ""
        raise ValueError(f"x has shape {shape}, not (N, T, V){one}")
    try:
        loss, dx = _LOSS.value_and_grad(x, y, mask=mask, denominator=max(shape[0], 1))
    except (TypeError, ValueError) as error:
        raise explained(error, x, y, "x", "y", -1, True) from None
    if verbose:
        print("dx:", dx.shape)
    return float(loss), dx

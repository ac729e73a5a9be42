"""A last layer for networks whose layers have ``forward`` and ``backward``.

Before::

    self.last = SoftmaxWithLoss()
    loss = self.last.forward(logits, t)
    dlogits = self.last.backward()

After::

    from stableloss.adapters.layer import LossLayer
    self.last = LossLayer(stableloss.softmax_ce)
    loss = self.last.forward(logits, t)
    dlogits = self.last.backward()
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["LossLayer"]


class LossLayer:
    """Output activation and loss as one layer, on the logits.

    Parameters
    ----------
    loss : loss object
        One of the losses of stableloss, with a reduction other than "none".

    Attributes
    ----------
    loss : float
        The result of the last `forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> from stableloss.adapters.layer import LossLayer
    >>> layer = LossLayer(sl.softmax_ce)
    >>> round(layer.forward(np.array([[2.0, 0.0], [0.0, 40.0]]), np.array([0, 1])), 6)
    0.063464
    >>> layer.backward()
    array([[-5.96014610e-02,  5.96014610e-02],
           [ 2.12417713e-18, -2.12417713e-18]])
    """

    loss: float

    def __init__(self, loss: Any) -> None:
        self._function = loss

    def forward(self, logits: Any, targets: Any, **options: Any) -> float:
        """Loss of the batch; the gradient for `backward` is made in the same pass.

        Parameters
        ----------
        logits, targets : array_like
            As for the loss.
        **options
            `sample_weight`, `mask` and `denominator`, as for the loss.

        Returns
        -------
        float
        """
        self._arguments = logits, targets, options
        self.loss, self._grad = self._function.value_and_grad(logits, targets, **options)
        return self.loss

    def backward(self, dout: float = 1) -> np.ndarray:
        """Gradient with respect to the logits of the last `forward`.

        Parameters
        ----------
        dout : float, default: 1
            Derivative of what is minimised with respect to this loss.

        Returns
        -------
        ndarray
        """
        # a numpy scalar would turn a float32 gradient into float64
        return self._grad if dout == 1 else self._grad * float(dout)

    @property
    def probabilities(self) -> np.ndarray:
        """Output activation of the last `forward`; computed when asked for, training does not need it."""
        logits, targets, options = self._arguments
        probabilities = np.empty_like(self._grad)
        self._function(logits, targets, with_stats=True, probabilities=probabilities, **options)
        return probabilities

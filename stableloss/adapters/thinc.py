"""Loss objects for thinc, which return the cross-entropy itself next to the gradient.

Before::

    from thinc.api import CategoricalCrossentropy
    loss_calc = CategoricalCrossentropy()

After, for a model that ends in ``Softmax``, or, exact for every prediction, in ``Linear``::

    from stableloss.adapters.thinc import CategoricalCrossentropy, Loss
    loss_calc = CategoricalCrossentropy()
    loss_calc = Loss(stableloss.softmax_ce)

In a configuration, once this module is imported, ``@losses`` is one of "stableloss.Loss.v1",
"stableloss.CategoricalCrossentropy.v1" and "stableloss.SequenceCategoricalCrossentropy.v1".
"""

# thinc reads the annotations: no "from __future__ import annotations" here
from collections.abc import Sequence
from typing import Any

import thinc.loss
from thinc.config import registry

from stableloss import losses

__all__ = ["CategoricalCrossentropy", "Loss", "SequenceCategoricalCrossentropy"]

_OF_PROBABILITIES = losses.SoftmaxCE(from_probabilities=True)


class Loss(thinc.loss.Loss):
    """A loss of stableloss with thinc's calls.

    Parameters
    ----------
    loss : loss object
        One of the losses of stableloss. The model returns logits; or probabilities, for a loss with
        ``from_probabilities=True``, where its last layer is thinc's ``Softmax``, whose backward pass
        starts from the gradient by the logits too.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> from stableloss.adapters.thinc import Loss
    >>> grad, loss = Loss(sl.softmax_ce)(np.array([[0.0, 0.0], [0.0, 1000.0]]), np.array([0, 1]))
    >>> grad
    array([[-0.25,  0.25],
           [ 0.  , -0.  ]])
    >>> round(loss, 6)
    0.346574
    """

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def __call__(self, guesses: Any, truths: Any) -> tuple[Any, Any]:
        """Gradient and loss.

        Parameters
        ----------
        guesses, truths : ndarray
            The model's output and the targets, as the loss describes them.

        Returns
        -------
        grad : ndarray
        loss : float
        """
        loss, grad = self.loss.value_and_grad(guesses, truths)
        return grad, loss

    def get_grad(self, guesses: Any, truths: Any) -> Any:
        """The first result of the call."""
        return self(guesses, truths)[0]

    def get_loss(self, guesses: Any, truths: Any) -> Any:
        """The second result of the call."""
        return self(guesses, truths)[1]


@registry.losses("stableloss.Loss.v1")
def _configured(kind: str, options: dict[str, Any] | None = None) -> Loss:
    """`Loss` of the class `kind` ("SoftmaxCE", "SigmoidBCE", ...) with these options."""
    return Loss(getattr(losses, kind)(**options or {}))


@registry.losses("stableloss.CategoricalCrossentropy.v1")
class CategoricalCrossentropy(Loss, thinc.loss.CategoricalCrossentropy):
    """thinc's class of that name, on the output of ``Softmax``, with the true loss.

    Parameters
    ----------
    normalize : bool, default: True
        Divide gradient and loss by the number of rows.
    names : sequence of str, optional
        Names of the classes, for truths that are lists of names.
    missing_value : str or int, optional
        The truth of a row that is left out.
    label_smoothing : float, default: 0.0
        Probability taken from the true class and shared by the others.

    Notes
    -----
    thinc's `neg_prefix` is left out: its gradient is not the derivative of a loss.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.thinc import CategoricalCrossentropy
    >>> loss_calc = CategoricalCrossentropy(names=["cat", "dog"], missing_value="")
    >>> grad, loss = loss_calc(np.array([[0.25, 0.75], [0.5, 0.5]]), ["cat", ""])
    >>> grad[0]
    array([-0.375,  0.375])
    >>> bool(grad[1].any())
    False
    >>> round(loss, 6)
    0.693147
    """

    def __init__(
        self,
        *,
        normalize: bool = True,
        names: Sequence[str] | None = None,
        missing_value: str | int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        thinc.loss.CategoricalCrossentropy.__init__(
            self,
            normalize=normalize,
            names=names,
            missing_value=missing_value,
            label_smoothing=label_smoothing,
        )

    def __call__(self, guesses: Any, truths: Any) -> tuple[Any, Any]:
        """Gradient and loss.

        Parameters
        ----------
        guesses : ndarray of shape (rows, classes)
            Probabilities.
        truths : ndarray or list
            Class indices or names, one per row, or an ndarray of probabilities.

        Returns
        -------
        grad : ndarray of shape (rows, classes)
            guesses - truths, divided by the number of rows where `normalize` is set.
        loss : float
        """
        targets, mask = self.convert_truths(truths, guesses)
        divisor = max(len(guesses), 1) if self.normalize else 1
        loss, grad = _OF_PROBABILITIES.value_and_grad(
            guesses, targets, mask=mask.any(axis=1), denominator=divisor
        )
        return grad, loss


@registry.losses("stableloss.SequenceCategoricalCrossentropy.v1")
class SequenceCategoricalCrossentropy(Loss):
    """`CategoricalCrossentropy` of a list of sequences, each an array of shape (rows, classes).

    Parameters
    ----------
    normalize : bool, default: True
        Divide gradients and loss by the number of sequences.
    names, missing_value, label_smoothing
        As for `CategoricalCrossentropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.thinc import SequenceCategoricalCrossentropy
    >>> guesses = [np.array([[0.5, 0.5]]), np.array([[0.25, 0.75], [0.5, 0.5]])]
    >>> grads, loss = SequenceCategoricalCrossentropy()(guesses, [[0], [1, 1]])
    >>> grads[1]
    array([[ 0.125, -0.125],
           [ 0.25 , -0.25 ]])
    >>> round(loss, 6)
    0.836988
    """

    def __init__(
        self,
        *,
        normalize: bool = True,
        names: Sequence[str] | None = None,
        missing_value: str | int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.normalize = normalize
        self._of_sequence = CategoricalCrossentropy(
            normalize=False, names=names, missing_value=missing_value, label_smoothing=label_smoothing
        )

    def __call__(self, guesses: Any, truths: Any) -> tuple[Any, Any]:
        """Gradients and loss.

        Parameters
        ----------
        guesses : sequence of ndarray
            Probabilities, one array per sequence.
        truths : sequence
            What `CategoricalCrossentropy` takes, one per sequence.

        Returns
        -------
        grads : list of ndarray
        loss : float
        """
        divisor = max(len(guesses), 1) if self.normalize else 1
        results = [self._of_sequence(*pair) for pair in zip(guesses, truths, strict=True)]
        return [grad / divisor for grad, _ in results], sum(loss for _, loss in results) / divisor

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

import numpy as np
import thinc.loss
from thinc.config import registry

from stableloss import losses
from stableloss.adapters._arguments import require_loss, unmasked

__all__ = ["CategoricalCrossentropy", "Loss", "SequenceCategoricalCrossentropy"]

_OF_SOFTMAX = losses.SoftmaxCE(reduction="sum", from_probabilities=True)
_OF_SIGMOIDS = losses.SigmoidBCE(reduction="sum", from_probabilities=True)


def _sums_to_1(rows: Any) -> Any:
    """Of each row, within what single precision leaves of a softmax."""
    return abs(rows.sum(axis=-1, dtype=np.float64) - 1) < 1e-5


class Loss(thinc.loss.Loss):
    """A loss of stableloss with thinc's calls.

    Parameters
    ----------
    loss : loss object
        One of the losses of stableloss. The model returns logits; or probabilities, for a loss with
        ``from_probabilities=True``, where its last layer is thinc's ``Softmax``, whose backward pass
        starts from the gradient by the logits too. ``SoftmaxCE(from_probabilities=True)`` takes each
        row relative to its sum; for rows that are not meant to sum to 1 there is
        ``SigmoidBCE(from_probabilities=True)``, and `CategoricalCrossentropy`.

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
        require_loss(loss)
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
    """thinc's class of that name: its gradient, guesses - truths, and the true loss.

    The gradient is thinc's for everything that thinc accepts, but where a certain guess has rounded to
    1: guess - truth is 0 there, and the other guesses of the row say what is left.

    The loss of a row is the one that has this gradient by the logits: where guesses and truths both
    sum to 1, as those of a softmax do, the cross-entropy, and otherwise (several labels, or none) the
    sum of the binary cross-entropies of its entries that count.

    Parameters
    ----------
    normalize : bool, default: True
        Divide gradient and loss by the number of rows.
    names : sequence of str, optional
        Names of the classes, for truths that are lists of names.
    missing_value : str or int, optional
        The truth of a row that is left out.
    neg_prefix : str, optional
        What a name begins with that is not the row's class. Of such a row nothing else counts.
    label_smoothing : float, default: 0.0
        Probability taken from the true class and shared by the others.

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
    >>> grad, loss = CategoricalCrossentropy()(np.array([[0.9, 0.8]]), np.array([[1.0, 1.0]]))
    >>> grad.round(6)
    array([[-0.1, -0.2]])
    """

    def __init__(
        self,
        *,
        normalize: bool = True,
        names: Sequence[str] | None = None,
        missing_value: str | int | None = None,
        neg_prefix: str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        thinc.loss.CategoricalCrossentropy.__init__(
            self,
            normalize=normalize,
            names=names,
            missing_value=missing_value,
            neg_prefix=neg_prefix,
            label_smoothing=label_smoothing,
        )

    def __call__(self, guesses: Any, truths: Any) -> tuple[Any, Any]:
        """Gradient and loss.

        Parameters
        ----------
        guesses : ndarray of shape (rows, classes)
            Numbers in [0, 1].
        truths : ndarray or list
            Class indices or names, one per row, or an ndarray of numbers in [0, 1] of the shape of
            `guesses`.

        Returns
        -------
        grad : ndarray of shape (rows, classes)
            guesses - truths, divided by the number of rows where `normalize` is set.
        loss : float
        """
        unmasked(truths, "truths", "truths.filled(missing_value), with that missing_value")
        # thinc's own multiplies an array of truths by a mask in place
        own = truths.copy() if isinstance(truths, np.ndarray) else truths
        grad = thinc.loss.CategoricalCrossentropy.get_grad(self, guesses, own)
        targets, mask = self.convert_truths(own, guesses)
        counts = mask != 0
        divisor = max(len(guesses), 1) if self.normalize else 1

        exclusive = counts.all(axis=-1) & _sums_to_1(guesses) & _sums_to_1(targets)
        others = np.where(targets == 1, 0, guesses).sum(axis=-1, keepdims=True, dtype=np.float64)
        rounded = exclusive[..., np.newaxis] & (targets == 1) & (grad == 0)
        # more than that, and the guess was 1 before it was rounded
        rounded &= others < np.finfo(grad.dtype).eps
        grad = np.where(rounded, -others / divisor, grad).astype(grad.dtype)

        loss = _OF_SOFTMAX(guesses, targets, mask=exclusive)
        loss += _OF_SIGMOIDS(guesses, targets, mask=counts & ~exclusive[..., np.newaxis])
        return grad, loss / divisor


@registry.losses("stableloss.SequenceCategoricalCrossentropy.v1")
class SequenceCategoricalCrossentropy(Loss):
    """`CategoricalCrossentropy` of a list of sequences, each an array of shape (rows, classes).

    Parameters
    ----------
    normalize : bool, default: True
        Divide gradients and loss by the number of sequences.
    names, missing_value, neg_prefix, label_smoothing
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
        neg_prefix: str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.normalize = normalize
        self._of_sequence = CategoricalCrossentropy(
            normalize=False,
            names=names,
            missing_value=missing_value,
            neg_prefix=neg_prefix,
            label_smoothing=label_smoothing,
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
        if len(guesses) != len(truths):
            raise ValueError(
                f"{len(guesses)} sequences of guesses cannot be zipped with {len(truths)} of truths"
            )
        divisor = max(len(guesses), 1) if self.normalize else 1
        results = [self._of_sequence(*pair) for pair in zip(guesses, truths, strict=True)]
        return [grad / divisor for grad, _ in results], sum(loss for _, loss in results) / divisor

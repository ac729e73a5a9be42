"""The output classes of "Neural Networks from Scratch in Python" (H. Kinsley, D. Kukiela).

Before::

    loss_activation = Activation_Softmax_Loss_CategoricalCrossentropy()   # the book's class

After::

    from stableloss.adapters.nnfs import Activation_Softmax_Loss_CategoricalCrossentropy
    loss_activation = Activation_Softmax_Loss_CategoricalCrossentropy()

A binary network replaces its ``Activation_Sigmoid`` and ``Loss_BinaryCrossentropy`` by
``Activation_Sigmoid_Loss_BinaryCrossentropy``, which the book does not have, with the same calls. The
book's ``regularization_loss`` is a method of its ``Loss`` and is called on an object of that class.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from stableloss.activations import sigmoid, softmax
from stableloss.losses import SigmoidBCE, SoftmaxCE

__all__ = ["Activation_Sigmoid_Loss_BinaryCrossentropy", "Activation_Softmax_Loss_CategoricalCrossentropy"]


class _ActivationLoss:
    """What the two classes share: the calls of the book."""

    _activation: ClassVar[Any]
    _of_inputs: ClassVar[Any]
    _of_output: ClassVar[Any]

    dinputs: np.ndarray
    output: np.ndarray | None = None

    def forward(self, inputs: Any, y_true: Any) -> float:
        """Set `output` to the activation of the logits and return the mean loss.

        Parameters
        ----------
        inputs : ndarray
            Logits.
        y_true : ndarray
            Targets, as the class describes them.

        Returns
        -------
        float
        """
        self.output, self._y_true = self._activation(inputs), y_true
        loss, self._grad = self._of_inputs.value_and_grad(inputs, y_true)
        return loss

    def backward(self, dvalues: Any, y_true: Any) -> None:
        """Set `dinputs` to the gradient of the mean loss with respect to the logits.

        Parameters
        ----------
        dvalues : ndarray
            `output`, for which `forward` has made the gradient already; or the output of an
            activation elsewhere, as the book's ``Model`` passes it.
        y_true : ndarray
            Targets, as the class describes them.
        """
        if dvalues is self.output and y_true is self._y_true:
            self.dinputs = self._grad
        else:
            self.dinputs = self._of_output.value_and_grad(dvalues, y_true)[1]


class Activation_Softmax_Loss_CategoricalCrossentropy(_ActivationLoss):
    """Softmax and categorical cross-entropy.

    The logits have shape (samples, classes), the targets are class indices of shape (samples,) or
    one-hot rows of shape (samples, classes).

    Attributes
    ----------
    output : ndarray
        Softmax of the logits of the last `forward`.
    dinputs : ndarray
        Gradient made by the last `backward`, divided by the number of samples.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.nnfs import Activation_Softmax_Loss_CategoricalCrossentropy
    >>> loss_activation = Activation_Softmax_Loss_CategoricalCrossentropy()
    >>> y = np.array([0, 1])
    >>> round(loss_activation.forward(np.array([[0.0, 0.0], [0.0, 1000.0]]), y), 6)
    0.346574
    >>> loss_activation.output
    array([[0.5, 0.5],
           [0. , 1. ]])
    >>> loss_activation.backward(loss_activation.output, y)
    >>> loss_activation.dinputs
    array([[-0.25,  0.25],
           [ 0.  , -0.  ]])
    """

    _activation = staticmethod(softmax)
    _of_inputs = SoftmaxCE(ignore_index=None)
    _of_output = SoftmaxCE(ignore_index=None, from_probabilities=True)


class Activation_Sigmoid_Loss_BinaryCrossentropy(_ActivationLoss):
    """Sigmoid and binary cross-entropy.

    Logits and targets (0 or 1) have shape (samples, outputs).

    Attributes
    ----------
    output : ndarray
        Sigmoid of the logits of the last `forward`.
    dinputs : ndarray
        Gradient made by the last `backward`, divided by the number of samples and of outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.nnfs import Activation_Sigmoid_Loss_BinaryCrossentropy
    >>> loss_activation = Activation_Sigmoid_Loss_BinaryCrossentropy()
    >>> y = np.array([[1], [1]])
    >>> round(loss_activation.forward(np.array([[0.0], [-1000.0]]), y), 6)
    500.346574
    >>> loss_activation.backward(loss_activation.output, y)
    >>> loss_activation.dinputs
    array([[-0.25],
           [-0.5 ]])
    """

    _activation = staticmethod(sigmoid)
    _of_inputs = SigmoidBCE()
    _of_output = SigmoidBCE(from_probabilities=True)

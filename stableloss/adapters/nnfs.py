"""The output classes of "Neural Networks from Scratch in Python" (H. Kinsley, D. Kukiela).

After, below the book's classes or with those deleted, which would otherwise undo the import without a
sign::

    from stableloss.adapters.nnfs import Activation_Softmax_Loss_CategoricalCrossentropy
    from stableloss.adapters.nnfs import Loss_BinaryCrossentropy, Loss_CategoricalCrossentropy

From chapter 18 on nothing else changes: a ``Model`` with ``loss=Loss_CategoricalCrossentropy()`` or
``loss=Loss_BinaryCrossentropy()`` keeps the book's activations and layers. The loss finds the output
activation through the layers that ``Model.finalize`` links, and with it the logits, its `inputs`: loss
and gradient are those of the logits, and the activation's `backward` takes the gradient from the loss,
so that an output that has rounded to 0 or 1 still learns.

Without a ``Model``, chapters 16 and 17 name the activation once, ``Loss_BinaryCrossentropy(activation2)``,
and chapters 9 to 15 use ``Activation_Softmax_Loss_CategoricalCrossentropy``, or its twin for sigmoids,
which the book does not have, ``Activation_Sigmoid_Loss_BinaryCrossentropy``.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from stableloss.activations import sigmoid, softmax
from stableloss.adapters._arguments import explained
from stableloss.losses import SigmoidBCE, SoftmaxCE

__all__ = [
    "Activation_Sigmoid_Loss_BinaryCrossentropy",
    "Activation_Softmax_Loss_CategoricalCrossentropy",
    "Loss_BinaryCrossentropy",
    "Loss_CategoricalCrossentropy",
]

# the losses that have an activation, for the combined class, which Model makes without telling it of either
_LINKED: weakref.WeakSet[_Loss] = weakref.WeakSet()


class _Loss:
    """What all classes share: the calls of the book's ``Loss``, and the way to the logits."""

    _activation: ClassVar[Any]
    _mean: ClassVar[Any]
    _each: ClassVar[Any]
    _mean_of_output: ClassVar[Any]
    _each_of_output: ClassVar[Any]
    _classes: ClassVar[bool]

    dinputs: np.ndarray | None = None
    trainable_layers: Sequence[Any] = ()
    # the gradient by the logits: made by `calculate` for (output, y, gradient), and that behind `dinputs`
    _made: tuple[Any, Any, np.ndarray] | None = None
    _by_logits: np.ndarray | None = None

    def __init__(self, activation: Any = None) -> None:
        self._linked: Any = None
        self.new_pass()
        if activation is not None:
            self._link(activation)

    # ---- the way to the logits ----

    def remember_trainable_layers(self, trainable_layers: Sequence[Any]) -> None:
        """Keep the layers for `regularization_loss`, and find the output activation behind the last.

        Parameters
        ----------
        trainable_layers : sequence of layer
            Linked by their `next`, the last one by way of the output activation to this loss.
        """
        self.trainable_layers = trainable_layers
        last = layer = trainable_layers[-1] if len(trainable_layers) else None
        while layer is not None and getattr(layer, "next", None) is not self:
            layer = getattr(layer, "next", None)
        if layer is not None and layer is not last:
            self._link(layer)

    def _link(self, activation: Any) -> None:
        self._linked = activation
        # on this one object, not on its class; the activation's own goes through a factor
        # output (1 - output), which is 0 where the output has rounded
        activation.backward = self._backward_of_activation
        _LINKED.add(self)

    def _backward_of_activation(self, dvalues: Any) -> None:
        activation = self._linked
        if self._by_logits is not None and dvalues is self.dinputs:
            activation.dinputs = self._by_logits.copy()
        else:
            type(activation).backward(activation, dvalues)

    def _logits_of(self, output: Any) -> Any:
        """The logits that an output was made of, or None.

        Only if this loss's activation makes that output of them: another activation, or logits that
        have been overwritten in the meantime, would give another loss.
        """
        if not isinstance(output, np.ndarray) or output.dtype.kind != "f":
            return None
        sources: tuple[Any, ...] = (self, self._linked)
        logits: Any = next((s.inputs for s in sources if getattr(s, "output", None) is output), None)
        if logits is None or np.shape(logits) != output.shape:
            return None
        tolerance = max(1e-5, 4 * float(np.finfo(output.dtype).eps))
        # not "all within", which a NaN in the network would turn into another way of computing
        return None if (abs(self._activation(logits) - output) > tolerance).any() else logits

    def _gradient(self, output: Any, y: Any) -> np.ndarray | None:
        """The gradient by the logits of an output; None where these are not known."""
        if self._made is not None and self._made[0] is output and self._made[1] is y:
            grad, self._made = self._made[2], None
            return grad
        logits = self._logits_of(output)
        if logits is None:
            return None
        result: np.ndarray = self._call(self._mean.value_and_grad, logits, y, "output", "y")[1]
        return result

    def _call(self, function: Any, x: Any, y: Any, x_name: str, y_name: str) -> Any:
        try:
            return function(x, y)
        except (TypeError, ValueError) as error:
            raise explained(error, x, y, x_name, y_name, -1, self._classes) from None

    def _hand_out(self, dinputs: np.ndarray, by_logits: np.ndarray | None) -> None:
        self.dinputs, self._by_logits = dinputs, by_logits
        if by_logits is not None and self._linked is not None:
            # a change in place would not reach what the activation takes from here: it is an error
            dinputs.flags.writeable = False

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays of the last batch: models are saved with their loss."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_made", "_by_logits")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._linked is not None:
            _LINKED.add(self)

    # ---- the calls of the book ----

    def regularization_loss(self, layer: Any = None) -> float:
        """L1 and L2 penalties of the trainable layers; or, as before chapter 18, of one layer.

        Parameters
        ----------
        layer : layer, optional
            With `weights`, `biases` and the book's four regularizers.

        Returns
        -------
        float
        """
        total = 0.0
        for each in self.trainable_layers if layer is None else [layer]:
            for name, values in (("weight", each.weights), ("bias", each.biases)):
                l1, l2 = (getattr(each, f"{name}_regularizer_{norm}", 0) for norm in ("l1", "l2"))
                if l1 > 0:
                    total += l1 * float(np.sum(np.abs(values)))
                if l2 > 0:
                    total += l2 * float(np.sum(values * values))
        return total

    def new_pass(self) -> None:
        """Begin a new epoch, of which `calculate_accumulated` tells."""
        self.accumulated_sum = 0.0
        self.accumulated_count = 0

    def calculate(self, output: Any, y: Any, *, include_regularization: bool = False) -> Any:
        """Mean loss of a batch; the gradient for `backward` is made in the same pass.

        Parameters
        ----------
        output : ndarray
            Output of the output activation.
        y : ndarray
            Targets, as the class describes them.
        include_regularization : bool, default: False
            Return `regularization_loss` too.

        Returns
        -------
        data_loss : float
        regularization_loss : float
            Only with `include_regularization`.

        Raises
        ------
        TypeError, ValueError
            If an argument does not hold real numbers, the shapes do not agree, or a target is out of range.
        """
        self._made = None
        logits = self._logits_of(output)
        if logits is None:
            loss = self._call(self._mean_of_output, output, y, "output", "y")
        else:
            loss, grad = self._call(self._mean.value_and_grad, logits, y, "output", "y")
            self._made = output, y, grad
        self.accumulated_sum += loss * len(output)
        self.accumulated_count += len(output)
        return (loss, self.regularization_loss()) if include_regularization else loss

    def calculate_accumulated(self, *, include_regularization: bool = False) -> Any:
        """Mean loss of all samples since `new_pass`.

        Parameters
        ----------
        include_regularization : bool, default: False
            Return `regularization_loss` too.

        Returns
        -------
        data_loss : float
        regularization_loss : float
            Only with `include_regularization`.
        """
        loss = self.accumulated_sum / max(self.accumulated_count, 1)
        return (loss, self.regularization_loss()) if include_regularization else loss

    def forward(self, y_pred: Any, y_true: Any) -> Any:
        """Loss of each sample.

        Parameters
        ----------
        y_pred : ndarray
            Output of the output activation.
        y_true : ndarray
            Targets, as the class describes them.

        Returns
        -------
        ndarray of shape (samples,)

        Raises
        ------
        TypeError, ValueError
            If an argument does not hold real numbers, the shapes do not agree, or a target is out of range.
        """
        logits = self._logits_of(y_pred)
        each, x = (self._each_of_output, y_pred) if logits is None else (self._each, logits)
        losses = self._call(each, x, y_true, "y_pred", "y_true")
        return losses if losses.ndim == 1 else losses.mean(axis=-1)

    def backward(self, dvalues: Any, y_true: Any) -> None:
        """Set `dinputs` to the derivative of the mean loss by the output.

        The output activation's `backward` makes the gradient by the logits of it: the exact one, where
        this loss knows the logits, and otherwise what the output still holds of it.

        Parameters
        ----------
        dvalues : ndarray
            Output of the output activation.
        y_true : ndarray
            Targets, as the class describes them.

        Raises
        ------
        TypeError, ValueError
            If an argument does not hold real numbers, the shapes do not agree, or a target is out of range.
        """
        by_logits = self._gradient(dvalues, y_true)
        if by_logits is None:
            self._call(self._mean_of_output, dvalues, y_true, "dvalues", "y_true")
        output = np.asarray(dvalues)
        if output.dtype.kind != "f":
            output = output.astype(np.float64)
        # a quotient by less would be infinite, and 0 once the activation has multiplied it by 0
        least = np.finfo(output.dtype).smallest_normal
        self._hand_out(self._by_output(output, np.asarray(y_true), least), by_logits)

    @staticmethod
    def _by_output(output: np.ndarray, y: np.ndarray, least: Any) -> np.ndarray:
        raise NotImplementedError


class Loss_CategoricalCrossentropy(_Loss):
    """Categorical cross-entropy of the output of a softmax, with the gradient of its logits.

    Targets are class indices of shape (samples,) or one-hot rows of shape (samples, classes), to an
    output of shape (samples, classes).

    Parameters
    ----------
    activation : layer, optional
        The output activation, with `inputs` and `output`. A ``Model`` need not be told: the loss finds
        it through the layers.

    Attributes
    ----------
    dinputs : ndarray
        Derivative by the output made by the last `backward`, divided by the number of samples.
        Read-only where the activation goes by the logits.
    accumulated_sum, accumulated_count : float, int
        Of the losses and samples since `new_pass`.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.nnfs import Loss_CategoricalCrossentropy
    >>> loss_function = Loss_CategoricalCrossentropy()
    >>> round(loss_function.calculate(np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1])), 6)
    0.490415
    """

    _activation = staticmethod(softmax)
    _mean = SoftmaxCE(ignore_index=None)
    _each = SoftmaxCE(ignore_index=None, reduction="none")
    _mean_of_output = SoftmaxCE(ignore_index=None, from_probabilities=True)
    _each_of_output = SoftmaxCE(ignore_index=None, from_probabilities=True, reduction="none")
    _classes = True

    @staticmethod
    def _by_output(output: np.ndarray, y: np.ndarray, least: Any) -> np.ndarray:
        if y.ndim < output.ndim:
            y = np.eye(output.shape[-1], dtype=output.dtype)[y.astype(np.intp)]
        divisor = max(len(output), 1)
        return -(y.astype(output.dtype) / np.maximum(output, least)) / divisor


class Loss_BinaryCrossentropy(_Loss):
    """Binary cross-entropy of the outputs of a sigmoid, with the gradient of its logits.

    Outputs and targets (0 or 1) have shape (samples, outputs).

    Parameters
    ----------
    activation : layer, optional
        The output activation, with `inputs` and `output`. A ``Model`` need not be told: the loss finds
        it through the layers.

    Attributes
    ----------
    dinputs : ndarray
        Derivative by the output made by the last `backward`, divided by the number of samples and of
        outputs. Read-only where the activation goes by the logits.
    accumulated_sum, accumulated_count : float, int
        Of the losses and samples since `new_pass`.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.nnfs import Loss_BinaryCrossentropy
    >>> class Activation_Sigmoid:
    ...     def forward(self, inputs):
    ...         self.inputs, self.output = inputs, 1 / (1 + np.exp(-inputs))
    ...
    ...     def backward(self, dvalues):
    ...         self.dinputs = dvalues * (1 - self.output) * self.output
    >>> activation2 = Activation_Sigmoid()
    >>> loss_function = Loss_BinaryCrossentropy(activation2)
    >>> y = np.array([[0], [0]])
    >>> activation2.forward(np.array([[0.0], [40.0]]))
    >>> round(loss_function.calculate(activation2.output, y), 6)
    20.346574
    >>> loss_function.backward(activation2.output, y)
    >>> activation2.backward(loss_function.dinputs)
    >>> activation2.dinputs
    array([[0.25],
           [0.5 ]])
    """

    _activation = staticmethod(sigmoid)
    _mean = SigmoidBCE()
    _each = SigmoidBCE(reduction="none")
    _mean_of_output = SigmoidBCE(from_probabilities=True)
    _each_of_output = SigmoidBCE(from_probabilities=True, reduction="none")
    _classes = False

    @staticmethod
    def _by_output(output: np.ndarray, y: np.ndarray, least: Any) -> np.ndarray:
        y = y.astype(output.dtype)
        divisor = max(output.size, 1)
        return ((1 - y) / np.maximum(1 - output, least) - y / np.maximum(output, least)) / divisor


class _ActivationLoss(_Loss):
    """What the two classes of activation and loss share."""

    inputs: Any = None
    output: np.ndarray | None = None

    @property
    def loss(self) -> _ActivationLoss:
        """This object: chapters 14 and 15 call ``loss_activation.loss.regularization_loss(layer)``."""
        return self

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

        Raises
        ------
        TypeError, ValueError
            If an argument does not hold real numbers, the shapes do not agree, or a target is out of range.
        """
        loss, grad = self._call(self._mean.value_and_grad, inputs, y_true, "inputs", "y_true")
        self.inputs, self.output = inputs, self._activation(inputs)
        self._made = self.output, y_true, grad
        result: float = loss
        return result

    def backward(self, dvalues: Any, y_true: Any) -> None:
        """Set `dinputs` to the gradient of the mean loss with respect to the logits.

        Parameters
        ----------
        dvalues : ndarray
            `output`, for which `forward` has made the gradient already; or the output of an
            activation elsewhere, as the book's ``Model`` passes it: the gradient is the exact one
            where a loss of this module knows its logits, and otherwise what the output still holds.
        y_true : ndarray
            Targets, as the class describes them.

        Raises
        ------
        TypeError, ValueError
            If an argument does not hold real numbers, the shapes do not agree, or a target is out of range.
        """
        grad = self._gradient(dvalues, y_true)
        for loss in tuple(_LINKED):
            if grad is None and type(loss)._activation is self._activation:
                grad = loss._gradient(dvalues, y_true)
        if grad is None:
            function = self._mean_of_output.value_and_grad
            grad = self._call(function, dvalues, y_true, "dvalues", "y_true")[1]
        self._hand_out(grad, grad)


class Activation_Softmax_Loss_CategoricalCrossentropy(_ActivationLoss, Loss_CategoricalCrossentropy):
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


class Activation_Sigmoid_Loss_BinaryCrossentropy(_ActivationLoss, Loss_BinaryCrossentropy):
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

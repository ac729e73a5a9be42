"""The two costs of "Neural Networks and Deep Learning" (M. Nielsen), chapter 3.

Before, in network2.py::

    class QuadraticCost(object): ...
    class CrossEntropyCost(object): ...

After, in their place: the import above the two classes would be undone by them without a sign::

    from stableloss.adapters.nielsen import CrossEntropyCost, QuadraticCost

``Network([784, 30, 10], cost=CrossEntropyCost)`` and everything else stay. Such a network is saved with
the name of its cost and loaded by looking that name up in its own module, where the import has put it.

In network.py of chapter 1, which knows no costs, before::

    delta = self.cost_derivative(activations[-1], y) * sigmoid_prime(zs[-1])

After::

    delta = QuadraticCost.delta(zs[-1], activations[-1], y)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stableloss._arrays import real_array
from stableloss.adapters._arguments import explained
from stableloss.losses import SigmoidBCE, SigmoidMSE

__all__ = ["CrossEntropyCost", "QuadraticCost"]

_BCE = SigmoidBCE(reduction="sum")
_BCE_OF_OUTPUT = SigmoidBCE(reduction="sum", from_probabilities=True)
_MSE = SigmoidMSE(reduction="sum")


def _numbers(value: Any, name: str) -> np.ndarray:
    """As float64, in which no difference of targets wraps around."""
    if type(value) is np.ndarray and value.dtype == np.float64:
        return value
    return real_array(value, name).astype(np.float64)


class CrossEntropyCost:
    """Cross-entropy of sigmoid outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.nielsen import CrossEntropyCost
    >>> z, y = np.array([[-2.0], [40.0]]), np.array([[0.0], [1.0]])
    >>> a = 1 / (1 + np.exp(-z))
    >>> CrossEntropyCost.delta(z, a, y)
    array([[ 1.19202922e-01],
           [-4.24835426e-18]])
    >>> round(CrossEntropyCost.fn(a, y), 6)
    0.126928
    """

    @staticmethod
    def fn(a: Any, y: Any) -> float:
        """Cost of the output `a`, summed over its units.

        Exact for the numbers in `a`. They hold less than z does: an output that has rounded to the
        wrong one of 0 and 1 costs what the smallest normal number costs (708.4 in float64), and one
        that has rounded to the right one costs 0.

        Parameters
        ----------
        a, y : ndarray of shape (n_out, 1)
            Output and target of one sample.

        Returns
        -------
        float

        Raises
        ------
        TypeError, ValueError
            If an argument does not hold real numbers, the shapes differ, or a target is out of range.
        """
        try:
            return float(_BCE_OF_OUTPUT(a, y))
        except (TypeError, ValueError) as error:
            raise explained(error, a, y, "a", "y", 0, False) from None

    @staticmethod
    def delta(z: Any, a: Any, y: Any) -> np.ndarray:
        """Error delta of the output layer, sigmoid(z) - y.

        Parameters
        ----------
        z, a, y : ndarray of shape (n_out, 1)
            Weighted input, output (not looked at) and target of one sample.

        Returns
        -------
        ndarray of shape (n_out, 1)

        Raises
        ------
        TypeError, ValueError
            If an argument does not hold real numbers, the shapes differ, or a target is out of range.
        """
        try:
            return _BCE.value_and_grad(z, y)[1]
        except (TypeError, ValueError) as error:
            raise explained(error, z, y, "z", "y", 0, False) from None


class QuadraticCost:
    """Quadratic cost of sigmoid outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from stableloss.adapters.nielsen import QuadraticCost
    >>> z, y = np.array([[-2.0], [40.0]]), np.array([[0.0], [0.0]])
    >>> a = 1 / (1 + np.exp(-z))
    >>> QuadraticCost.delta(z, a, y)
    array([[1.25155422e-02],
           [4.24835426e-18]])
    >>> round(QuadraticCost.fn(a, y), 6)
    0.507105
    """

    @staticmethod
    def fn(a: Any, y: Any) -> float:
        """Cost of the output `a`, half the squared distance from `y`.

        Parameters
        ----------
        a, y : ndarray of shape (n_out, 1)
            Output and target of one sample.

        Returns
        -------
        float

        Raises
        ------
        TypeError, ValueError
            If an argument does not hold real numbers, or the shapes differ.
        """
        output, target = _numbers(a, "a"), _numbers(y, "y")
        if output.shape != target.shape:
            mismatch = ValueError(f"y has shape {target.shape} where a has {output.shape}")
            raise explained(mismatch, a, y, "a", "y", 0, False)
        distance = output - target
        return 0.5 * float(np.vdot(distance, distance))

    @staticmethod
    def delta(z: Any, a: Any, y: Any) -> np.ndarray:
        """Error delta of the output layer, (sigmoid(z) - y) sigmoid'(z).

        Parameters
        ----------
        z, a, y : ndarray of shape (n_out, 1)
            Weighted input, output (not looked at) and target of one sample.

        Returns
        -------
        ndarray of shape (n_out, 1)

        Raises
        ------
        TypeError, ValueError
            If an argument does not hold real numbers, the shapes differ, or a target is out of range.
        """
        try:
            return _MSE.value_and_grad(z, y)[1]
        except (TypeError, ValueError) as error:
            raise explained(error, z, y, "z", "y", 0, False) from None

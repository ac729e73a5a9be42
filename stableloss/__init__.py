"""Fused losses for numpy networks: loss and gradient from logits in one call, exact at the extremes."""

from stableloss._dispatch import cpu_level
from stableloss.activations import log_sigmoid, log_softmax, logsumexp, sigmoid, softmax
from stableloss.losses import (
    SigmoidBCE,
    SigmoidMSE,
    SoftmaxCE,
    SoftmaxMSE,
    sigmoid_bce,
    sigmoid_mse,
    softmax_ce,
    softmax_mse,
)

__version__ = "0.1.0"

__all__ = [
    "SigmoidBCE",
    "SigmoidMSE",
    "SoftmaxCE",
    "SoftmaxMSE",
    "cpu_level",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "sigmoid",
    "sigmoid_bce",
    "sigmoid_mse",
    "softmax",
    "softmax_ce",
    "softmax_mse",
]

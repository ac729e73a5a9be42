"""Fused losses for numpy networks: loss and gradient from logits in one call, exact at the extremes."""

from stableloss._dispatch import cpu_level
from stableloss._threads import get_num_threads, num_threads, set_num_threads
from stableloss.activations import log_sigmoid, log_softmax, logsumexp, sigmoid, softmax
from stableloss.linear import *  # noqa: F403
from stableloss.linear import __all__ as _linear
from stableloss.losses import *  # noqa: F403
from stableloss.losses import __all__ as _losses
from stableloss.shards import Part, merge

__version__ = "0.2.0"

__all__ = [
    "Part",
    "cpu_level",
    "get_num_threads",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "merge",
    "num_threads",
    "set_num_threads",
    "sigmoid",
    "softmax",
    *_linear,
    *_losses,
]

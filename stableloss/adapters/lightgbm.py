"""LightGBM trained on any loss of stableloss: custom objectives and metrics.

The change in a program that trains with a built-in objective, through either interface::

    from stableloss.adapters.lightgbm import metric, objective

    loss = sl.SoftmaxCE(label_smoothing=0.1)
    booster = lgb.train({"objective": objective(loss), "num_class": 10}, data, feval=metric(loss))
    model = lgb.LGBMClassifier(objective=objective(loss)).fit(X, y, eval_metric=metric(loss))

A softmax loss needs a margin per class: ``num_class`` (which LGBMClassifier sets from 3 classes on).
With a custom objective training starts from margins of 0, not from the class frequencies
(``boost_from_average``), and predictions are margins also from `predict_proba`: `sl.softmax` or `sl.sigmoid`
gives the probabilities. Margins come with their columns contiguous, are read where they lie, and
the derivatives are laid out the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from stableloss.adapters import _boosting
from stableloss.adapters._boosting import objective

__all__ = ["metric", "objective"]


def metric(loss: Any) -> Callable[..., tuple[str, float, bool]]:
    """Metric from a loss: its weighted mean (or sum, by its reduction); less is better.

    Parameters
    ----------
    loss : SoftmaxCE or SigmoidBCE
        As for `objective`. With a built-in objective LightGBM hands probabilities to a metric: give
        a loss with ``from_probabilities=True`` then.

    Returns
    -------
    callable
        For ``lightgbm.train(feval=...)`` and for ``LGBMClassifier.fit(eval_metric=...)``; reported
        under the name of the loss's class.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> name, value, higher_is_better = metric(sl.sigmoid_bce)(np.array([0, 1]), np.array([-2.0, 2.0]))
    >>> name, round(value, 6), higher_is_better
    ('SigmoidBCE', 0.126928, False)
    """
    return functools.partial(_metric, loss)


def _metric(loss: Any, first: Any, second: Any, sample_weight: Any = None) -> tuple[str, float, bool]:
    return type(loss).__name__, _boosting.value(loss, first, second, sample_weight), False

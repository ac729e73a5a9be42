"""XGBoost trained on any loss of stableloss: custom objectives and metrics.

The change in a program that trains with a built-in objective, through either interface::

    from stableloss.adapters.xgboost import metric, objective

    loss = sl.SoftmaxCE(label_smoothing=0.1)
    params = {"objective": "multi:softprob", "num_class": 10}
    booster = xgb.train(params, dtrain, obj=objective(loss), custom_metric=metric(loss))
    model = xgb.XGBClassifier(objective=objective(loss), eval_metric=metric(loss)).fit(X, y)

Leave the built-in objective in `params` ("binary:logistic" for a sigmoid loss): by it `predict` returns
probabilities and `base_score` is one, 0.5 where not given. Without it both are margins, or classes.
XGBClassifier sets it. A softmax loss needs a margin per class: ``num_class``, which XGBClassifier sets from
3 classes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from stableloss.adapters import _boosting
from stableloss.adapters._boosting import objective

__all__ = ["metric", "objective"]


def metric(loss: Any) -> Callable[..., Any]:
    """Metric from a loss: its weighted mean (or sum, by its reduction); less is better.

    Parameters
    ----------
    loss : SoftmaxCE or SigmoidBCE
        As for `objective`. With a built-in objective XGBoost hands probabilities to a metric: give
        a loss with ``from_probabilities=True`` then.

    Returns
    -------
    callable
        For ``xgboost.train(custom_metric=...)`` and for ``XGBClassifier(eval_metric=...)``; reported
        under the name of the loss's class.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> round(metric(sl.sigmoid_bce)(np.array([0, 1]), np.array([-2.0, 2.0])), 6)
    0.126928
    """
    function = functools.partial(_metric, loss)
    function.__name__ = type(loss).__name__  # type: ignore[attr-defined]
    return function


def _metric(loss: Any, first: Any, second: Any, sample_weight: Any = None) -> Any:
    value = _boosting.value(loss, first, second, sample_weight)
    return (type(loss).__name__, value) if _boosting.is_native(second) else value

"""LightGBM trained on any loss of stableloss: custom objectives, metrics, and a classifier.

The change in a program that trains with a built-in objective, through either interface::

    from stableloss.adapters.lightgbm import StableLGBMClassifier, metric, objective

    loss = sl.SoftmaxCE(label_smoothing=0.1)
    booster = lgb.train({"objective": objective(loss), "num_class": 10}, data, feval=metric(loss))
    model = StableLGBMClassifier(objective=loss).fit(X, y)

LGBMClassifier takes ``objective=objective(loss)`` as well, but then returns margins, also from `predict`
and `predict_proba`, so that nothing in scikit-learn can score it: StableLGBMClassifier returns labels and
probabilities. A softmax loss needs a margin per class: ``num_class``, which LGBMClassifier sets from 3
classes on, and StableLGBMClassifier always.

With a custom objective training starts from margins of 0, not from the class frequencies
(``boost_from_average``), and LightGBM's own metrics take margins for probabilities. Margins come with their
columns contiguous, are read where they lie, and the derivatives are laid out the same.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier

from stableloss.adapters import _boosting
from stableloss.adapters._boosting import objective

__all__ = ["StableLGBMClassifier", "metric", "objective"]

LOG_LOSSES = ("logloss", "binary_logloss", "multi_logloss")
# that are the same for margins as for probabilities
OF_MARGINS = ("auc", "auc_mu", "average_precision", "multi_error")
NO_METRIC = ("", "None", "none", "null", "custom", "na")
# which LightGBM ignores with a custom objective, and the values at which that does not matter
WITHOUT_EFFECT = {
    "scale_pos_weight": 1,
    "sigmoid": 1,
    "is_unbalance": False,
    "unbalance": False,
    "unbalanced_sets": False,
}
FIT = inspect.signature(LGBMClassifier.fit)


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
        under the name of the loss's class. Labels of NaN do not count.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> labels, margins = np.array([0, 1, np.nan]), np.array([-2.0, 2.0, 0.0])
    >>> name, value, higher_is_better = metric(sl.sigmoid_bce)(labels, margins)
    >>> name, round(value, 6), higher_is_better
    ('SigmoidBCE', 0.126928, False)
    """
    return _boosting.metric(_metric, loss)


def _metric(loss: Any, first: Any, second: Any, sample_weight: Any = None) -> tuple[str, float, bool]:
    return type(loss).__name__, _boosting.value(loss, first, second, sample_weight), False


def _log_loss(loss: Any, labels: Any, margins: np.ndarray, sample_weight: Any) -> tuple[str, float, bool]:
    name = "binary_logloss" if margins.ndim == 1 else "multi_logloss"
    return name, _boosting.log_loss(loss, labels, margins, sample_weight), False


class StableLGBMClassifier(LGBMClassifier):
    """LGBMClassifier trained on a loss of stableloss, with probabilities from `predict_proba`.

    Parameters
    ----------
    objective : loss or callable, optional
        A loss object, or what ``objective(loss, hessian=...)`` returns. By default `stableloss.sigmoid_bce`
        for two classes and `stableloss.softmax_ce` for more.
    **options
        All other parameters of LGBMClassifier, with its defaults, but for what LightGBM ignores with a
        custom objective: `scale_pos_weight` and `is_unbalance` are the `pos_weight` of
        `stableloss.SigmoidBCE` or `class_weight`, `sigmoid` is its `logit_scale`.

    Notes
    -----
    As LGBMClassifier, with these differences. `predict_proba` applies the sigmoid or the softmax to the
    margins, after the `logit_scale`, `softcap` and `logit_clip` of the loss; `predict` returns labels.
    ``raw_score=True`` and `decision_function` return margins; for two classes of a softmax loss the
    latter is their difference.

    Where neither `eval_metric` nor `metric` says otherwise, evaluation sets are evaluated by the loss,
    under the name of its class, and that of the default as "binary_logloss" or "multi_logloss".
    These two, and "logloss", are computed here, from the probabilities; LightGBM itself computes "auc",
    "average_precision", "auc_mu" and "multi_error". Its other metrics would take margins for
    probabilities, and are refused. Functions are given margins.

    See Also
    --------
    lightgbm.LGBMClassifier : for the other parameters, methods and attributes.
    stableloss.adapters.xgboost.StableXGBClassifier : the same for XGBoost.

    Examples
    --------
    >>> import stableloss as sl
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.model_selection import GridSearchCV
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = StableLGBMClassifier(n_estimators=20, n_jobs=1, verbose=-1)
    >>> losses = [sl.sigmoid_bce, sl.SigmoidBCE(label_smoothing=0.05)]
    >>> search = GridSearchCV(model, {"objective": losses}, scoring="neg_log_loss", cv=3).fit(X, y)
    >>> bool(-0.25 < search.best_score_ < 0)
    True
    """

    # Of LGBMClassifier's private parts this class overrides _process_params, by which it settles the
    # parameters of the booster, and sets _objective there, by which it knows a custom objective. Names of
    # its own must not be an underscore and a parameter of LightGBM: set_params sets those as well.

    @functools.wraps(LGBMClassifier.fit, assigned=())
    def fit(self, *args: Any, **options: Any) -> StableLGBMClassifier:
        """Fit to X and y; all parameters of LGBMClassifier.fit."""
        call = FIT.bind(self, *args, **options)
        _boosting.require_plain(*(call.arguments.get(name) for name in ("X", "y", "sample_weight")))
        call.arguments["eval_metric"] = self._evaluated(call.arguments)
        super().fit(*call.args[1:], **call.kwargs)
        return self

    def _evaluated(self, arguments: Any) -> list[Any]:
        """What to evaluate: functions, and names that LightGBM evaluates as they should be."""
        loss = _boosting.loss_of(self.objective)
        log_loss = functools.partial(_log_loss, loss)
        options = self.get_params()
        asked: list[Any] = []
        for metrics in (
            arguments.get("eval_metric"),
            *(options.get(name) for name in ("metric", "metrics", "metric_types")),
        ):
            if isinstance(metrics, str):
                metrics = metrics.split(",")
            asked += [metrics] if callable(metrics) else metrics or []
        if not asked:
            if arguments.get("eval_set") is None and arguments.get("eval_X") is None:
                return []
            return [log_loss if loss is None else metric(loss)]
        result: list[Any] = []
        for name in asked:
            if name in LOG_LOSSES:
                name = log_loss
            elif name in NO_METRIC:
                continue
            elif not callable(name) and name not in OF_MARGINS:
                raise ValueError(
                    f"eval_metric is {name!r}, for which LightGBM would take margins for probabilities: "
                    "leave it out for the loss itself, or pass metric(loss), a function, or one of "
                    f"{', '.join(LOG_LOSSES + OF_MARGINS)}"
                )
            if name not in result:
                result.append(name)
        return result

    def _process_params(self, stage: str) -> dict[str, Any]:
        if stage != "fit":
            return super()._process_params(stage)
        options = self.get_params()
        for name, neutral in WITHOUT_EFFECT.items():
            if options.get(name) not in (None, neutral):
                raise ValueError(
                    f"{name} does nothing with a custom objective: pass class_weight, or "
                    "objective=sl.SigmoidBCE(...) with pos_weight or logit_scale"
                )
        loss = _boosting.loss_of(self.objective)
        self._fitted_loss = loss or _boosting.default_loss(self._n_classes > 2)
        ours = objective(self._fitted_loss) if self.objective is loss else self.objective
        self._objective = ours
        params: dict[str, Any] = super()._process_params(stage)
        if self._objective is not ours:
            raise TypeError(f"the loss of {type(self).__name__} is its parameter objective, without an alias")
        params["metric"] = []
        # Resetting the objective, which it does to take custom gradients, LightGBM wants at least one
        # feature, and this filter drops all that the least size of a leaf leaves no split.
        params.setdefault("feature_pre_filter", False)
        if _boosting.is_softmax(self._fitted_loss):
            params["num_class"] = max(self._n_classes, 2)
        return params

    def predict(
        self,
        X: Any,
        raw_score: bool = False,
        start_iteration: int = 0,
        num_iteration: int | None = None,
        pred_leaf: bool = False,
        pred_contrib: bool = False,
        validate_features: bool = False,
        **options: Any,
    ) -> Any:
        """Labels; parameters as of LGBMClassifier."""
        result = self.predict_proba(
            X,
            raw_score,
            start_iteration,
            num_iteration,
            pred_leaf,
            pred_contrib,
            validate_features,
            **options,
        )
        return result if raw_score or pred_leaf or pred_contrib else self.classes_[result.argmax(axis=1)]

    def predict_proba(
        self,
        X: Any,
        raw_score: bool = False,
        start_iteration: int = 0,
        num_iteration: int | None = None,
        pred_leaf: bool = False,
        pred_contrib: bool = False,
        validate_features: bool = False,
        **options: Any,
    ) -> Any:
        """Probability of each class; parameters as of LGBMClassifier."""
        asked = raw_score or pred_leaf or pred_contrib
        result = super().predict_proba(
            X,
            raw_score or not asked,
            start_iteration,
            num_iteration,
            pred_leaf,
            pred_contrib,
            validate_features,
            **options,
        )
        return result if asked else _boosting.probabilities(self._fitted_loss, result)

    def decision_function(self, X: Any, **options: Any) -> np.ndarray:
        """Margins, one for two classes; `options` are those of LGBMClassifier.predict."""
        margins = self.predict_proba(X, raw_score=True, **options)
        return _boosting.decisions(self._fitted_loss, margins)

"""XGBoost trained on any loss of stableloss: custom objectives, metrics, and a classifier.

The change in a program that trains with a built-in objective, through either interface::

    from stableloss.adapters.xgboost import StableXGBClassifier, metric, objective

    loss = sl.SoftmaxCE(label_smoothing=0.1)
    params = {"objective": "multi:softprob", "num_class": 10}
    booster = xgb.train(params, dtrain, obj=objective(loss), custom_metric=metric(loss))
    model = xgb.XGBClassifier(objective=objective(loss), eval_metric=metric(loss)).fit(X, y)
    model = StableXGBClassifier(objective=loss).fit(X, y)

Leave the built-in objective in `params` ("binary:logistic" for a sigmoid loss): by it `predict` returns
probabilities and `base_score` is one, 0.5 where not given. Without it both are margins, or classes.
XGBClassifier sets it, for two classes to "binary:logistic", whatever the loss: a softmax loss on two classes
is for StableXGBClassifier. A softmax loss needs a margin per class: ``num_class``, which XGBClassifier sets
from 3 classes on, and StableXGBClassifier always.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from xgboost import XGBClassifier, collective

from stableloss.adapters import _boosting
from stableloss.adapters._boosting import objective

__all__ = ["StableXGBClassifier", "metric", "objective"]


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
        under the name of the loss's class. Labels of NaN do not count.

    Notes
    -----
    XGBoost keeps six decimals of a custom metric. In distributed training each worker adds up its own
    rows, and the metric is of all of them, as in one process.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> round(metric(sl.sigmoid_bce)(np.array([0, 1, np.nan]), np.array([-2.0, 2.0, 0.0])), 6)
    0.126928
    """
    function = _boosting.metric(_metric, loss)
    function.__name__ = type(loss).__name__
    return function


def _metric(loss: Any, first: Any, second: Any, sample_weight: Any = None) -> Any:
    value, divisor = _boosting.value_and_divisor(loss, first, second, sample_weight)
    if collective.get_world_size() > 1:
        # XGBoost takes the plain average of what the workers return, however many rows each has
        total, divisor = collective.allreduce(np.array([value * divisor, divisor]), collective.Op.SUM)
        value = float(total if loss.reduction == "sum" else total / (divisor or 1.0))
    return (type(loss).__name__, value) if _boosting.is_native(second) else value


class StableXGBClassifier(XGBClassifier):
    """XGBClassifier trained on a loss of stableloss, whose labels may be anything.

    Parameters
    ----------
    objective : loss or callable, optional
        A loss object, or what ``objective(loss, hessian=...)`` returns. By default `stableloss.sigmoid_bce`
        for two classes and for several labels per row, and `stableloss.softmax_ce` for more classes.
    **options
        All other parameters of XGBClassifier, with its defaults, but for `scale_pos_weight`: that is the
        `pos_weight` of `stableloss.SigmoidBCE`. Where there is no `eval_metric`, evaluation sets are
        evaluated by the loss, under the name of its class; XGBoost's log loss is that of the default.

    Notes
    -----
    As XGBClassifier, with these differences. `classes_` holds the labels of `y`, strings too, and
    `predict` returns them. `predict_proba` applies the sigmoid or the softmax to the margins, after the
    `logit_scale`, `softcap` and `logit_clip` of the loss, which XGBoost's own metrics know nothing of.
    `decision_function` returns the margins, or for two classes of a softmax loss their difference.
    `fit` leaves `objective` as it is.

    A file of `save_model` holds neither the loss nor the labels; a pickle holds both.

    See Also
    --------
    xgboost.XGBClassifier : for the other parameters, methods and attributes.
    stableloss.adapters.lightgbm.StableLGBMClassifier : the same for LightGBM.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> X = np.repeat([[0.0], [1.0], [2.0]], 20, axis=0)
    >>> y = np.repeat(["low", "middle", "high"], 20)
    >>> model = StableXGBClassifier(objective=sl.SoftmaxCE(label_smoothing=0.1), n_estimators=20).fit(X, y)
    >>> model.predict([[0.0], [2.0]]).tolist()
    ['low', 'high']
    >>> model.classes_.tolist()
    ['high', 'low', 'middle']
    >>> model.predict_proba([[0.0]]).argmax(axis=1).tolist()
    [1]
    """

    # Of XGBClassifier's private parts this class overrides _configure_fit alone, which is given the
    # parameters of the booster after XGBClassifier has settled them.

    objective: Any
    eval_metric: Any

    def __init__(self, *, objective: Any = None, **options: Any) -> None:
        super().__init__(objective=objective, **options)

    @functools.wraps(XGBClassifier.fit, assigned=())
    def fit(self, X: Any, y: Any, **options: Any) -> StableXGBClassifier:
        """Fit to X and y, labels of any kind; all parameters of XGBClassifier.fit."""
        # the native interface works without scikit-learn
        from sklearn.preprocessing import LabelEncoder
        from sklearn.utils.multiclass import check_classification_targets, type_of_target

        _boosting.require_plain(X, y, options.get("sample_weight"))
        given = self.objective, self.eval_metric
        loss = _boosting.loss_of(self.objective)
        self._refuse_what_has_no_effect()
        check_classification_targets(y)
        weight = options.get("sample_weight")
        if weight is not None and not np.asarray(weight).any():
            raise ValueError("sample_weight is zero everywhere: there is nothing to learn from")
        codes, encoder = y, None
        if type_of_target(y).startswith("multilabel"):
            if _boosting.is_softmax(loss):
                raise ValueError(
                    f"y has several labels per row, which {loss!r} is not for: take a sigmoid loss"
                )
        else:
            encoder = LabelEncoder()
            codes = encoder.fit_transform(y)
            if options.get("eval_set") is not None:
                options["eval_set"] = [
                    (valid_x, codes if valid_y is y else encoder.transform(valid_y))
                    for valid_x, valid_y in options["eval_set"]
                ]
        self._fitted_loss = loss or _boosting.default_loss(encoder is not None and len(encoder.classes_) > 2)
        self._fitted_labels = None
        try:
            if self.objective is loss:
                self.objective = objective(self._fitted_loss)
            if self.eval_metric is None and loss is not None and options.get("eval_set") is not None:
                self.eval_metric = metric(loss)
            super().fit(X, codes, **options)
        finally:
            self.objective, self.eval_metric = given
        self._fitted_labels = None if encoder is None else encoder.classes_
        return self

    def _configure_fit(self, booster: Any, params: dict[str, Any], *others: Any) -> Any:
        if self.n_classes_ <= 2 and _boosting.is_softmax(self._fitted_loss):
            params = {**params, "objective": "multi:softprob", "num_class": 2}
        if self.eval_metric is not None:
            params = {**params, "disable_default_eval_metric": True}
        return super()._configure_fit(booster, params, *others)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = not _boosting.is_softmax(_boosting.unwrapped(self.objective))
        return tags

    def _refuse_what_has_no_effect(self) -> None:
        """On a custom objective; XGBoost drops callables that it does not know."""
        if self.scale_pos_weight not in (None, 1):
            raise ValueError(
                "scale_pos_weight does nothing with a custom objective: pass "
                f"objective=sl.SigmoidBCE(pos_weight={self.scale_pos_weight!r})"
            )
        for name, option in (getattr(self, "kwargs", None) or {}).items():
            if callable(option):
                raise TypeError(f"XGBClassifier has no parameter {name}: pass objective={option!r}")

    @property
    def classes_(self) -> np.ndarray:
        """The labels of `y`, in order; of a model loaded from a file, their numbers."""
        labels = getattr(self, "_fitted_labels", None)
        return super().classes_ if labels is None else labels

    def predict(self, X: Any, *, output_margin: bool = False, **options: Any) -> np.ndarray:
        """Labels, or margins where asked for; `options` are those of XGBClassifier.predict."""
        margins = super().predict(X, output_margin=True, **options)
        if output_margin:
            return margins
        probabilities = _boosting.probabilities(self._fitted_loss, margins)
        if margins.ndim == 2 and not _boosting.is_softmax(self._fitted_loss):
            return (probabilities > 0.5).astype(int)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(
        self, X: Any, validate_features: bool = True, base_margin: Any = None, iteration_range: Any = None
    ) -> np.ndarray:
        """Probability of each class, or of each of several labels; parameters as of XGBClassifier."""
        margins = super().predict(
            X,
            output_margin=True,
            validate_features=validate_features,
            base_margin=base_margin,
            iteration_range=iteration_range,
        )
        return _boosting.probabilities(self._fitted_loss, margins)

    def decision_function(self, X: Any, **options: Any) -> np.ndarray:
        """Margins, one for two classes; `options` are those of XGBClassifier.predict."""
        margins = super().predict(X, output_margin=True, **options)
        return _boosting.decisions(self._fitted_loss, margins)

    def load_model(self, fname: Any) -> None:
        """Load a model, as XGBClassifier.load_model; `objective` stays, and says how to predict."""
        given = self.objective
        try:
            super().load_model(fname)
            exclusive = self.objective.startswith("multi:")
        finally:
            self.objective = given
        self._fitted_loss = _boosting.loss_of(given) or _boosting.default_loss(exclusive)
        self._fitted_labels = None

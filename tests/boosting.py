"""What the tests of the two boosting adapters share: losses, weights, sets, and what both classifiers do."""

import copy
import functools
import pickle
from typing import Any, ClassVar

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.metrics import f1_score, get_scorer
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.utils.estimator_checks import check_estimator

import stableloss as sl
from stableloss.adapters._boosting import objective

LOSSES = [
    sl.SoftmaxCE(label_smoothing=0.1, class_weight=np.arange(1, 11)),
    sl.SoftmaxCE(focal_gamma=2.0, class_weight=np.arange(1, 11), reduction="sum"),
    sl.SigmoidBCE(label_smoothing=0.1, pos_weight=5.0),
    sl.SigmoidBCE(focal_gamma=2.0, focal_alpha=0.75),
    sl.SoftmaxMSE(),
]
HESSIANS = ("exact", "xgboost", "lightgbm")


def weights(n):
    return np.random.default_rng(0).uniform(0.1, 3, n)


def is_softmax(loss):
    return type(loss).__name__.startswith("Softmax")


def rows_of(loss):
    """Margins, labels and weights for the loss, whose extremes are for the caller to put in."""
    rng = np.random.default_rng(0)
    margins = rng.normal(scale=4, size=(50, 10) if is_softmax(loss) else 50)
    labels = rng.integers(10 if is_softmax(loss) else 2, size=50).astype(np.float32)
    return margins, labels, weights(50).astype(np.float32)


def plain(loss):
    """The loss without what the libraries' conventions leave out of the Hessian."""
    kept = ("class_weight", "pos_weight", "label_smoothing", "focal_alpha")
    return type(loss)(**{name: getattr(loss, name) for name in kept if hasattr(loss, name)})


def label_sets(share_missing=0.3):
    """Margins, labels of which some are missing, and weights, for four labels per row."""
    rng = np.random.default_rng(1)
    margins = rng.normal(scale=4, size=(60, 4))
    labels = rng.integers(2, size=margins.shape).astype(np.float64)
    labels[rng.random(margins.shape) < share_missing] = np.nan
    return margins, labels, rng.uniform(0.1, 3, margins.shape)


def bits_of_digits():
    """Four labels per row, three tenths of them missing, and the true ones."""
    x, y = load_digits(return_X_y=True)
    bits = np.stack([y >> bit & 1 for bit in range(4)], axis=1)
    missing = np.random.default_rng(0).random(bits.shape) < 0.3
    return x, np.where(missing, np.nan, bits), bits


def rare_digit():
    """Is it an 8? With 40 of them among 1623 other digits."""
    x, y = load_digits(return_X_y=True)
    eights = np.random.default_rng(0).choice(np.flatnonzero(y == 8), 40, replace=False)
    keep = np.r_[np.flatnonzero(y != 8), eights]
    return x[keep], (y[keep] == 8).astype(int)


def rare_digit_scores(predictions):
    """Mean F1 score of cross-entropy and of a focal loss; `predictions(loss, x, y, x_test)` trains."""
    x, y = rare_digit()
    for loss in (sl.sigmoid_bce, sl.SigmoidBCE(focal_gamma=2.0, focal_alpha=0.75)):
        folds = StratifiedKFold(4, shuffle=True, random_state=0).split(x, y)
        yield np.mean(
            [f1_score(y[test], predictions(loss, x[train], y[train], x[test])) for train, test in folds]
        )


# ---- what both classifiers do ----------------------------------------------------------------------


def two_classes():
    x, y = load_breast_cancer(return_X_y=True)
    return x, np.array(["malignant", "benign"])[y]


def three_classes():
    x, y = load_iris(return_X_y=True)
    return x, load_iris().target_names[y]


def failures(model):
    return {
        result["check_name"]
        for result in check_estimator(model, on_fail=None, on_skip=None)
        if result["status"] == "failed"
    }


class ClassifierContract:
    """For a subclass that names a classifier, its parent, and options that make it quick and quiet."""

    cls: type
    parent: type
    options: ClassVar[dict[str, Any]]
    # checks that the parent fails as well, for reasons which a loss does not change
    failed: ClassVar[set[str]]
    # the library's names for them, of two classes and of more
    log_losses: tuple[str, str]
    # what keeps `fit` from printing
    quiet: ClassVar[dict[str, Any]]

    def model(self, loss=None, **options):
        return self.cls(**{**self.options, "objective": loss, **options})

    @staticmethod
    def margins(model, x):
        raise NotImplementedError

    @staticmethod
    def history(model):
        """Of the one evaluation set."""
        raise NotImplementedError

    @staticmethod
    def fit_with_early_stopping(model, x, y, evaluation_set):
        raise NotImplementedError

    @staticmethod
    def fit_with_metric(model, x, y, name):
        raise NotImplementedError

    @pytest.mark.filterwarnings("default")
    def test_estimator_checks(self):
        parent = failures(self.parent(**self.options))
        for loss in (None, sl.SoftmaxCE(label_smoothing=0.1)):
            assert failures(self.model(loss)) <= self.failed & parent

    @pytest.mark.parametrize("name", ["X", "y", "sample_weight"])
    def test_masked_arrays(self, name):
        x, y = two_classes()
        given = {"X": x, "y": y, "sample_weight": np.ones(len(y))}
        given[name] = np.ma.masked_array(given[name], np.zeros(given[name].shape, bool))
        with pytest.raises(TypeError, match=f"^{name} is a masked array, whose mask would be lost: pass "):
            self.model().fit(**given)

    @pytest.mark.parametrize("data", [two_classes, three_classes])
    @pytest.mark.parametrize("hessian", HESSIANS)
    def test_same_trees_as_the_parent_with_the_objective(self, data, hessian):
        x, y = data()
        codes = np.unique(y, return_inverse=True)[1]
        loss = sl.sigmoid_bce if codes.max() == 1 else sl.softmax_ce
        weight = weights(len(y))
        parent = self.parent(**self.options, objective=objective(loss, hessian))
        parent.fit(x, codes, sample_weight=weight)
        for given in (objective(loss, hessian), *((None, loss) if hessian == "exact" else ())):
            model = self.model(given).fit(x, y, sample_weight=weight)
            np.testing.assert_array_equal(self.margins(model, x), self.margins(parent, x))

    @pytest.mark.parametrize("data", [two_classes, three_classes])
    @pytest.mark.parametrize("loss", [None, sl.SoftmaxCE(label_smoothing=0.1)])
    def test_probabilities_and_labels(self, data, loss):
        x, y = data()
        model = self.model(loss).fit(x, y)
        probabilities = model.predict_proba(x)
        margins = self.margins(model, x)
        if margins.ndim == 1:
            np.testing.assert_array_equal(probabilities[:, 1], sl.sigmoid(margins))
            np.testing.assert_array_equal(probabilities[:, 0], sl.sigmoid(-margins))
            np.testing.assert_array_equal(model.decision_function(x), margins)
        else:
            np.testing.assert_array_equal(probabilities, sl.softmax(margins))
            two = margins[:, 1] - margins[:, 0]
            np.testing.assert_array_equal(
                model.decision_function(x), two if margins.shape[1] == 2 else margins
            )
        np.testing.assert_array_equal(model.classes_, np.unique(y))
        np.testing.assert_array_equal(model.predict(x), model.classes_[probabilities.argmax(axis=1)])
        assert model.score(x, y) > 0.95

    def test_two_classes_of_a_softmax_loss_are_those_of_a_sigmoid_loss(self):
        """Margins of ±z / 2 for z, at half the learning rate: gradients and Hessians are the same."""
        x, y = two_classes()
        options = {"reg_lambda": 0.0, "n_estimators": 3}
        two = self.model(sl.softmax_ce, **options, learning_rate=0.1).fit(x, y)
        one = self.model(sl.sigmoid_bce, **options, learning_rate=0.2).fit(x, y)
        np.testing.assert_allclose(two.predict_proba(x), one.predict_proba(x), rtol=1e-5)

    @pytest.mark.parametrize(
        "loss",
        [
            sl.SigmoidBCE(logit_scale=2.0, softcap=1.5, logit_clip=0.9),
            sl.SoftmaxCE(logit_scale=2.0, softcap=1.5, logit_clip=0.9),
        ],
    )
    def test_options_between_margins_and_probabilities(self, loss):
        x, y = two_classes()
        model = self.model(loss, learning_rate=0.5).fit(x, y)
        margins = self.margins(model, x)
        assert np.abs(margins).max() > 0.9
        expected = np.empty_like(margins)
        targets = np.zeros(margins.shape[: 1 if is_softmax(loss) else None], int)
        loss(margins, targets, with_stats=True, probabilities=expected)
        np.testing.assert_allclose(
            model.predict_proba(x)[:, -expected.ndim :].reshape(expected.shape), expected, rtol=1e-6
        )

    @pytest.mark.parametrize("data", [two_classes, three_classes])
    @pytest.mark.parametrize("scoring", ["neg_log_loss", "roc_auc_ovr", "roc_auc"])
    def test_grid_search_scores(self, data, scoring):
        x, y = data()
        exclusive = len(np.unique(y)) > 2
        if exclusive and scoring == "roc_auc":
            scoring = "roc_auc_ovo"
        cls = sl.SoftmaxCE if exclusive else sl.SigmoidBCE
        losses = [None, cls(focal_gamma=2.0), objective(cls(label_smoothing=0.1), "lightgbm")]
        folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(x, y))
        search = GridSearchCV(
            self.model(), {"objective": losses}, scoring=scoring, cv=folds, error_score="raise"
        )
        search.fit(x, y)
        score = get_scorer(scoring)
        for i, loss in enumerate(losses):
            expected = [score(self.model(loss).fit(x[a], y[a]), x[b], y[b]) for a, b in folds]
            np.testing.assert_allclose(
                search.cv_results_["mean_test_score"][i], np.mean(expected), rtol=1e-12
            )
        assert search.best_score_ > (-0.5 if scoring == "neg_log_loss" else 0.95)
        assert np.ptp(search.cv_results_["mean_test_score"]) > 0

    @pytest.mark.parametrize("data", [two_classes, three_classes])
    @pytest.mark.parametrize("given", [False, True])
    def test_early_stopping_on_the_loss(self, data, given):
        """By the loss itself, also of string labels; the library's log loss stands for the default."""
        x, y = data()
        train, valid = next(StratifiedKFold(3, shuffle=True, random_state=0).split(x, y))
        cls = sl.SoftmaxCE if len(np.unique(y)) > 2 else sl.SigmoidBCE
        loss = cls(focal_gamma=1.0) if given else None
        model = self.model(loss, n_estimators=400, learning_rate=0.5)
        self.fit_with_early_stopping(model, x[train], y[train], (x[valid], y[valid]))
        ((name, values),) = self.history(model).items()
        assert name == (cls.__name__ if given else self.log_losses[len(model.classes_) > 2])
        assert len(values) < 400
        best = int(np.argmin(values))
        codes = np.searchsorted(model.classes_, y[valid])
        # predictions are those of the best round
        margins = self.margins(model, x[valid])
        np.testing.assert_allclose((loss or cls())(margins, codes), values[best], rtol=1e-6, atol=1e-6)

    def test_evaluation_on_the_training_set(self):
        x, y = two_classes()
        model = self.model(sl.SigmoidBCE(label_smoothing=0.2))
        model.fit(x, y, eval_set=[(x, y)], **self.quiet)
        values = self.history(model)["SigmoidBCE"]
        assert len(values) == model.n_estimators
        expected = sl.SigmoidBCE(label_smoothing=0.2)(self.margins(model, x), y == "malignant")
        np.testing.assert_allclose(values[-1], expected, rtol=1e-4)

    def test_log_loss_by_name(self):
        x, y = three_classes()
        model = self.model(sl.SoftmaxCE(label_smoothing=0.2))
        self.fit_with_metric(model, x, y, self.log_losses[True])
        values = self.history(model)[self.log_losses[True]]
        np.testing.assert_allclose(values[-1], sklearn_log_loss(y, model.predict_proba(x)), rtol=1e-5)

    def test_objective_stays_as_given(self):
        x, y = three_classes()
        for given in (None, sl.SoftmaxCE(label_smoothing=0.1), objective(sl.softmax_ce, "xgboost")):
            model = self.model(given)
            before = model.get_params()
            assert model.fit(x, y, eval_set=[(x, y)], **self.quiet) is model
            after = model.get_params()
            assert after["objective"] is given
            assert {name: after[name] for name in before} == pytest.approx(before, nan_ok=True)
            assert model.objective is given

    def test_a_failed_fit_leaves_the_parameters_alone(self):
        x, y = three_classes()
        model = self.model(sl.sigmoid_bce)
        with pytest.raises(ValueError, match="take a softmax loss"):
            model.fit(x, y)
        assert model.get_params()["objective"] is sl.sigmoid_bce
        assert model.set_params(objective=sl.softmax_ce).fit(x, y).score(x, y) > 0.95

    def test_fit_again(self):
        x, y = two_classes()
        model = self.model().fit(x, y)
        x, y = three_classes()
        again = model.fit(x, y)
        np.testing.assert_array_equal(again.predict_proba(x), self.model().fit(x, y).predict_proba(x))
        np.testing.assert_array_equal(again.classes_, np.unique(y))

    def test_clone_copy_and_pickle(self):
        x, y = two_classes()
        for given in (
            None,
            sl.SigmoidBCE(focal_gamma=1.0),
            objective(sl.SoftmaxCE(label_smoothing=0.1), "xgboost"),
        ):
            model = self.model(given).fit(x, y)
            expected = model.predict_proba(x)
            for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
                np.testing.assert_array_equal(twin.predict_proba(x), expected)
                np.testing.assert_array_equal(twin.predict(x), model.predict(x))
                np.testing.assert_array_equal(twin.fit(x, y).predict_proba(x), expected)
            twin = clone(model)
            params = twin.get_params()["objective"]
            if isinstance(given, functools.partial):
                assert (params.func, params.args) == (given.func, given.args)
            else:
                assert params == given
            np.testing.assert_array_equal(twin.fit(x, y).predict_proba(x), expected)

    def test_parameters_are_those_of_the_parent(self):
        own, parent = self.cls().get_params(), self.parent().get_params()
        assert own.keys() == parent.keys()
        assert own["objective"] is None

    def test_a_later_objective_does_not_change_predictions(self):
        x, y = two_classes()
        model = self.model(sl.SigmoidBCE(logit_scale=3.0)).fit(x, y)
        expected = model.predict_proba(x)
        for later in (sl.softmax_ce, None):
            model.set_params(objective=later)
            np.testing.assert_array_equal(model.predict_proba(x), expected)

    def test_the_reduction_plays_no_part(self):
        x, y = two_classes()
        model = self.model(sl.SigmoidBCE(reduction="none"))
        expected = self.model(sl.sigmoid_bce).fit(x, y).predict_proba(x)
        np.testing.assert_array_equal(model.fit(x, y).predict_proba(x), expected)
        with pytest.raises(ValueError, match="a metric is one number"):
            model.fit(x, y, eval_set=[(x, y)], **self.quiet)

    def test_weights_in_metadata_routing(self):
        """By the signature of `fit`."""
        x, y = two_classes()
        weight = weights(len(y))
        with sklearn.config_context(enable_metadata_routing=True):
            model = self.model().set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
            search = GridSearchCV(model, {"n_estimators": [5]}, cv=3).fit(x, y, sample_weight=weight)
        expected = self.model(n_estimators=5).fit(x, y, sample_weight=weight).predict_proba(x)
        np.testing.assert_array_equal(search.predict_proba(x), expected)

    @pytest.mark.parametrize("given", ["binary", "binary:logistic", lambda labels, margins: None, 3])
    def test_other_objectives_are_refused(self, given):
        x, y = two_classes()
        with pytest.raises(TypeError, match=r"neither a loss of stableloss.*nor objective"):
            self.model(given).fit(x, y)

    def test_what_a_custom_objective_leaves_without_effect_is_refused(self):
        x, y = two_classes()
        with pytest.raises(ValueError, match=r"scale_pos_weight does nothing.*pos_weight"):
            self.model(scale_pos_weight=5.0).fit(x, y)
        self.model(scale_pos_weight=1.0).fit(x, y)

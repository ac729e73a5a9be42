"""LightGBM trained by the adapter against its own objectives, and what they cannot do."""

import inspect
import pickle
import tracemalloc
from typing import ClassVar

import lightgbm as lgb
import numpy as np
import pytest
from boosting import (
    LOSSES,
    ClassifierContract,
    bits_of_digits,
    plain,
    rare_digit,
    rare_digit_scores,
    rows_of,
    three_classes,
    two_classes,
    weights,
)
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score
from sklearn.utils.class_weight import compute_sample_weight

import stableloss as sl
from stableloss.adapters.lightgbm import StableLGBMClassifier, metric, objective

ROUNDS = 30
PARAMS = {"num_leaves": 15, "num_threads": 1, "verbose": -1, "boost_from_average": False}
CASES = {
    "digits": (load_digits, {"objective": "multiclass", "num_class": 10}, sl.softmax_ce, "multi_logloss"),
    "breast_cancer": (load_breast_cancer, {"objective": "binary"}, sl.sigmoid_bce, "binary_logloss"),
}
ACTIVATIONS = {"digits": sl.softmax, "breast_cancer": sl.sigmoid}


def structure(booster):
    """Every tree's splits, as nested tuples of feature, threshold and children."""

    def node(tree):
        if "split_feature" not in tree:
            return ()
        children = (tree["left_child"], tree["right_child"])
        return (tree["split_feature"], tree["threshold"], *map(node, children))

    return [node(tree["tree_structure"]) for tree in booster.dump_model()["tree_info"]]


@pytest.fixture(params=CASES)
def case(request):
    load, params, loss, name = CASES[request.param]
    return *load(return_X_y=True), {**PARAMS, **params}, loss, name, ACTIVATIONS[request.param]


@pytest.mark.parametrize("weighted", [False, True])
def test_native_matches_built_in_tree_for_tree(case, weighted):
    x, y, params, loss, _, activation = case
    weight = weights(len(y)) if weighted else None
    theirs = lgb.train(params, lgb.Dataset(x, y, weight=weight), ROUNDS)
    params = {**params, "objective": objective(loss, hessian="lightgbm")}
    ours = lgb.train(params, lgb.Dataset(x, y, weight=weight), ROUNDS)
    assert structure(ours) == structure(theirs)
    np.testing.assert_allclose(activation(ours.predict(x)), theirs.predict(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn_matches_built_in(case, weighted):
    x, y, params, loss, _, _ = case
    weight = weights(len(y)) if weighted else None
    options = {**PARAMS, "n_estimators": ROUNDS}
    theirs = lgb.LGBMClassifier(**{**options, "objective": params["objective"]})
    ours = lgb.LGBMClassifier(**{**options, "objective": objective(loss, hessian="lightgbm")})
    for model in (theirs, ours):
        model.fit(x, y, sample_weight=weight)
    assert structure(ours.booster_) == structure(theirs.booster_)
    margins = [model.predict(x, raw_score=True) for model in (ours, theirs)]
    np.testing.assert_allclose(*margins, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
@pytest.mark.parametrize("weighted", [False, True])
def test_metric_matches_built_in(case, weighted):
    """By both interfaces, and from the probabilities that a built-in objective hands out."""
    x, y, params, loss, name, _ = case
    weight = weights(len(y)) if weighted else None

    def history(params, loss):
        data, history = lgb.Dataset(x, y, weight=weight), {}
        callbacks = [lgb.record_evaluation(history)]
        lgb.train(params, data, 5, valid_sets=[data], feval=metric(loss), callbacks=callbacks)
        return history["training"]

    built_in = history({**params, "metric": name}, type(loss)(from_probabilities=True))
    ours = history({**params, "objective": objective(loss, hessian="lightgbm")}, loss)
    for values in (built_in, ours):
        np.testing.assert_allclose(values[type(loss).__name__], built_in[name], rtol=1e-9)

    model = lgb.LGBMClassifier(**{**PARAMS, "n_estimators": 5, "objective": objective(loss, "lightgbm")})
    model.fit(
        x, y, sample_weight=weight, eval_set=[(x, y)], eval_sample_weight=[weight], eval_metric=metric(loss)
    )
    (values,) = model.evals_result_.values()
    np.testing.assert_allclose(values[type(loss).__name__], built_in[name], rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_derivatives(loss, weighted):
    """The exact ones are the loss's own; the convention is k / (k - 1) times the Hessian without focus."""
    margins, labels, weight = rows_of(loss)
    weight = weight if weighted else None
    softmax = margins.ndim == 2
    margins[:3] = -800
    data = lgb.Dataset(np.zeros((50, 1)), labels, weight=weight, params=PARAMS).construct()
    expected = loss.grad_and_hess(margins, labels, sample_weight=weight)

    hess = plain(loss).grad_and_hess(margins, labels, sample_weight=weight)[1]
    bound = np.maximum((10 / 9 if softmax else 1) * hess, 0)
    for call in ((labels, margins, weight), (np.asfortranarray(margins), data)):
        for got, exact in zip(objective(loss)(*call), expected, strict=True):
            np.testing.assert_array_equal(got, exact)
        grad, got = objective(loss, hessian="lightgbm")(*call)
        np.testing.assert_array_equal(grad, expected[0])
        np.testing.assert_allclose(got, bound, rtol=1e-15)


@pytest.mark.parametrize("hessian", ["exact", "lightgbm"])
def test_columns_are_read_and_written_where_they_lie(hessian):
    """Gradient and Hessian apart, a call on column-major margins takes no memory of their size."""
    n, k = 20_000, 10
    margins = np.random.default_rng(0).normal(size=(n * k)).reshape(n, k, order="F")
    labels = np.zeros(n, np.float32)
    function = objective(sl.softmax_ce, hessian=hessian)
    tracemalloc.start()
    grad, hess = function(labels, margins)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.1 * margins.nbytes
    for array in (grad, hess):
        assert array.flags.f_contiguous
        assert np.shares_memory(array.ravel(order="F"), array)


def test_margins_of_minus_110_keep_training():
    x, y = load_digits(return_X_y=True)
    params = {**PARAMS, "objective": objective(sl.softmax_ce), "num_class": 10}
    far = lgb.train(params, lgb.Dataset(x, y, init_score=np.full((len(y), 10), -110.0)), 10)
    near = lgb.train(params, lgb.Dataset(x, y), 10)
    assert np.mean(far.predict(x).argmax(axis=1) == y) > 0.97
    np.testing.assert_allclose(far.predict(x), near.predict(x), rtol=0, atol=1e-4)


def test_focal_on_an_imbalanced_set():
    """It finds more of the rare class than cross-entropy, at a better F1.

    As weights on the rare class do: the threshold moves, the ranking stays much the same.
    """

    def predictions(loss, x, y, x_test):
        model = lgb.LGBMClassifier(**{**PARAMS, "objective": objective(loss), "n_estimators": 60}).fit(x, y)
        return model.predict(x_test, raw_score=True) > 0

    cross_entropy, focal = rare_digit_scores(predictions)
    assert focal > cross_entropy + 0.05


def test_focal_from_the_log_odds_of_a_rare_class():
    """There its exact Hessian is negative for every row of that class, and no tree splits."""
    x, y = rare_digit()
    start = np.full(len(y), np.log(0.02))
    focal = sl.SigmoidBCE(focal_gamma=2.0)
    accuracy = {}
    for hessian in ("exact", "lightgbm"):
        params = {**PARAMS, "objective": objective(focal, hessian=hessian)}
        model = lgb.train(params, lgb.Dataset(x, y, init_score=start), 60)
        accuracy[hessian] = np.mean((model.predict(x) + start > 0) == y)
    assert accuracy["exact"] == np.mean(y == 0)
    assert accuracy["lightgbm"] > 0.99


def test_model_is_pickled():
    x, y = load_breast_cancer(return_X_y=True)
    loss = sl.SigmoidBCE(focal_gamma=1.0)
    model = lgb.LGBMClassifier(**{**PARAMS, "n_estimators": 3, "objective": objective(loss)}).fit(x, y)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict(x, raw_score=True), model.predict(x, raw_score=True))
    assert pickle.loads(pickle.dumps(metric(loss)))(y, np.zeros(len(y)))[0] == "SigmoidBCE"


def test_calls_have_the_three_parameters_that_lightgbm_counts():
    for function in (objective(sl.softmax_ce), metric(sl.softmax_ce)):
        assert list(inspect.signature(function).parameters)[-1] == "sample_weight"
        assert len(inspect.signature(function).parameters) == 3


def test_weights_of_zero():
    assert metric(sl.softmax_ce)(np.zeros(3), np.zeros((3, 2)), np.zeros(3))[1] == 0


# ---- missing labels, and weights per row and label -------------------------------------------------


def test_data_set_turns_missing_labels_into_0():
    """Which the docstring of `objective` warns of."""
    data = lgb.Dataset(np.zeros((3, 1)), [1.0, np.nan, 1.0], params=PARAMS).construct()
    np.testing.assert_array_equal(data.get_label(), [1, 0, 1])


@pytest.mark.parametrize("hessian", ["exact", "xgboost", "lightgbm"])
def test_training_on_labels_of_ones_own(hessian):
    """A missing label is one of weight 0, and what is left is learned."""
    x, labels, truth = bits_of_digits()
    of_labels, of_loss = objective(sl.sigmoid_bce, hessian), metric(sl.sigmoid_bce)
    weight = np.where(np.isnan(labels), 0.0, np.arange(1.0, 5.0))

    def train(labels, weight):
        history = {}
        data = lgb.Dataset(x, np.zeros(len(x)), params=PARAMS)
        params = {
            **PARAMS,
            "num_class": 4,
            "objective": lambda margins, data: of_labels(labels, margins, weight),
        }
        booster = lgb.train(
            params,
            data,
            ROUNDS,
            valid_sets=[data],
            feval=lambda margins, data: of_loss(labels, margins, weight),
            callbacks=[lgb.record_evaluation(history)],
        )
        return booster, history["training"]["SigmoidBCE"]

    missing, values = train(labels, np.broadcast_to(np.arange(1.0, 5.0), labels.shape))
    weighted, expected = train(np.nan_to_num(labels), weight)
    assert structure(missing) == structure(weighted)
    margins = missing.predict(x)
    np.testing.assert_array_equal(margins, weighted.predict(x))
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    elements = sl.SigmoidBCE(reduction="none")(margins, truth)
    np.testing.assert_allclose(values[-1], (elements * weight).sum() / weight.sum(), rtol=1e-12)
    unseen = np.isnan(labels)
    assert np.mean((margins > 0)[unseen] == truth[unseen]) > 0.95


# ---- advice ----------------------------------------------------------------------------------------


def test_advice_on_two_classes_of_a_softmax_loss():
    x, y = two_classes()
    y = (y == "benign").astype(int)
    options = {**PARAMS, "objective": objective(sl.softmax_ce), "n_estimators": 5}
    with pytest.raises(ValueError, match="StableLGBMClassifier") as error:
        lgb.LGBMClassifier(**options).fit(x, y)
    assert 'pass num_class=2: to LGBMClassifier with metric="None"' in str(error.value)
    assert "lightgbm.train" in str(error.value)

    model = lgb.LGBMClassifier(**options, num_class=2, metric="None").fit(x, y)
    margins = model.predict(x, raw_score=True)
    booster = lgb.train({**options, "num_class": 2, "num_iterations": 5}, lgb.Dataset(x, y))
    np.testing.assert_array_equal(booster.predict(x), margins)
    ours = StableLGBMClassifier(**{**options, "objective": sl.softmax_ce}).fit(x, y)
    np.testing.assert_array_equal(ours.predict_proba(x), sl.softmax(margins))


def test_advice_counts_the_classes():
    x, y = load_digits(return_X_y=True)
    with pytest.raises(ValueError, match="num_class=10: "):
        lgb.train({**PARAMS, "objective": objective(sl.softmax_ce)}, lgb.Dataset(x, y), 1)


# ---- the classifier --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
class TestClassifier(ClassifierContract):
    cls = StableLGBMClassifier
    parent = lgb.LGBMClassifier
    options: ClassVar = {"n_estimators": 10, "num_leaves": 15, "n_jobs": 1, "verbosity": -1}
    # the first for `verbosity`
    failed: ClassVar = {"check_no_attributes_set_in_init", "check_all_zero_sample_weights_error"}
    log_losses = ("binary_logloss", "multi_logloss")
    quiet: ClassVar = {}

    @staticmethod
    def margins(model, x):
        return model.predict(x, raw_score=True)

    @staticmethod
    def history(model):
        (values,) = model.evals_result_.values()
        return values

    @staticmethod
    def fit_with_early_stopping(model, x, y, evaluation_set):
        callback = lgb.early_stopping(5, verbose=False)
        model.fit(x, y, eval_set=[evaluation_set], callbacks=[callback])

    @staticmethod
    def fit_with_metric(model, x, y, name):
        model.fit(x, y, eval_set=[(x, y)], eval_metric=name)

    @pytest.mark.parametrize("weight", ["balanced", {"malignant": 3.0, "benign": 0.5}])
    def test_class_weight(self, weight):
        x, y = two_classes()
        own = weights(len(y))
        model = self.model(class_weight=weight).fit(x, y, sample_weight=own)
        plain = self.model().fit(x, y, sample_weight=own * compute_sample_weight(weight, y))
        np.testing.assert_array_equal(model.predict_proba(x), plain.predict_proba(x))

    def test_metrics_by_name(self):
        x, y = two_classes()
        loss = sl.SigmoidBCE(logit_scale=2.0)
        weight = weights(len(y))
        names = ["logloss", "auc", "binary_logloss", "average_precision"]
        model = self.model(loss, metric="auc")
        model.fit(x, y, sample_weight=weight, eval_set=[(x, y)], eval_metric=[*names, metric(loss)])
        assert all(len(values) == 10 for values in self.history(model).values())
        values = {name: last for name, (*_, last) in self.history(model).items()}
        assert values.keys() == {"binary_logloss", "auc", "average_precision", "SigmoidBCE"}
        positive = y == "malignant"
        p = model.predict_proba(x)[:, 1]
        expected = -np.average(np.log(np.where(positive, p, 1 - p)), weights=weight)
        np.testing.assert_allclose(values["binary_logloss"], expected, rtol=1e-9)
        np.testing.assert_allclose(values["SigmoidBCE"], expected, rtol=1e-9)
        np.testing.assert_allclose(values["auc"], roc_auc_score(positive, p, sample_weight=weight))
        expected = average_precision_score(positive, p, sample_weight=weight)
        np.testing.assert_allclose(values["average_precision"], expected, rtol=1e-6)

    def test_error_of_more_classes_by_name(self):
        x, y = three_classes()
        model = self.model(n_estimators=2)
        model.fit(x, y, eval_set=[(x, y)], eval_metric="multi_error")
        ((name, values),) = self.history(model).items()
        assert name == "multi_error"
        np.testing.assert_allclose(values[-1], 1 - accuracy_score(y, model.predict(x)))

    @pytest.mark.parametrize("options", [{"metric": "none"}, {"metric": ["None"]}, {"metrics": "custom"}])
    def test_no_metric(self, options):
        x, y = three_classes()
        assert not self.model(**options).fit(x, y, eval_set=[(x, y)]).evals_result_

    @pytest.mark.parametrize("name", ["binary_error", "error", "cross_entropy", "auc,kldiv"])
    def test_metrics_of_probabilities_are_refused(self, name):
        x, y = two_classes()
        for fit in (
            lambda: self.model().fit(x, y, eval_metric=name),
            lambda: self.model(metric=name).fit(x, y),
        ):
            with pytest.raises(ValueError, match="would take margins for probabilities"):
                fit()

    def test_functions_are_given_margins(self):
        x, y = two_classes()

        def largest(labels, margins):
            return "largest", np.abs(margins).max(), True

        model = self.model().fit(x, y, eval_set=[(x, y)], eval_metric=largest)
        ((name, values),) = self.history(model).items()
        assert name == "largest"
        assert values[-1] == np.abs(self.margins(model, x)).max()

    @pytest.mark.parametrize("option", ["is_unbalance", "unbalance", "sigmoid"])
    def test_other_options_without_effect_are_refused(self, option):
        x, y = two_classes()
        with pytest.raises(ValueError, match=f"{option} does nothing"):
            self.model(**{option: 2.0 if option == "sigmoid" else True}).fit(x, y)

    @pytest.mark.filterwarnings("ignore:Found 'loss' in params")
    def test_aliases_of_objective_are_refused(self):
        x, y = two_classes()
        with pytest.raises(TypeError, match="parameter objective, without an alias"):
            self.cls(**self.options, loss=sl.sigmoid_bce).fit(x, y)

    def test_other_outputs_are_those_of_the_parent(self):
        x, y = three_classes()
        model = self.model().fit(x, y)
        parent = lgb.LGBMClassifier(**self.options, objective=objective(sl.softmax_ce)).fit(x, y)
        for output in ("raw_score", "pred_leaf", "pred_contrib"):
            expected = parent.predict(x, **{output: True})
            np.testing.assert_array_equal(model.predict(x, **{output: True}), expected)
            np.testing.assert_array_equal(model.predict_proba(x, **{output: True}), expected)
        few = sl.softmax(parent.predict(x, raw_score=True, num_iteration=3))
        np.testing.assert_array_equal(model.predict_proba(x, num_iteration=3), few)

    @pytest.mark.parametrize("rows", [12, 30])
    def test_so_few_rows_that_no_feature_can_be_split(self, rows):
        """There LightGBM's own objectives predict the class frequencies, and custom ones raise."""
        x, y = three_classes()
        keep = np.linspace(0, len(y) - 1, rows).astype(int)
        probabilities = self.model().fit(x[keep], y[keep]).predict_proba(x)
        np.testing.assert_allclose(probabilities, 1 / 3, atol=0.02)

"""LightGBM trained by the adapter against its own objectives, and what they cannot do."""

import inspect
import pickle
import tracemalloc

import lightgbm as lgb
import numpy as np
import pytest
from boosting import LOSSES, plain, rare_digit, rare_digit_scores, rows_of, weights
from sklearn.datasets import load_breast_cancer, load_digits

import stableloss as sl
from stableloss.adapters.lightgbm import metric, objective

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

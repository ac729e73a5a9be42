"""XGBoost trained by the adapter against its own objectives, and where these give up."""

import doctest
import itertools
import json
import pickle

import numpy as np
import pytest
import xgboost as xgb
from boosting import LOSSES, plain, rare_digit, rare_digit_scores, rows_of, weights
from sklearn.datasets import load_breast_cancer, load_digits

import stableloss as sl
from stableloss.adapters import _boosting
from stableloss.adapters.xgboost import metric, objective

ROUNDS = 30
SOFTMAX = {"objective": "multi:softprob", "num_class": 10, "base_score": 0.5, "nthread": 1}
SIGMOID = {"objective": "binary:logistic", "base_score": 0.5, "nthread": 1}
CASES = {
    "digits": (load_digits, SOFTMAX, sl.softmax_ce, "mlogloss"),
    "breast_cancer": (load_breast_cancer, SIGMOID, sl.sigmoid_bce, "logloss"),
}


def structure(booster):
    """Every tree's splits, as nested tuples of feature, threshold and children."""

    def node(tree):
        if "leaf" in tree:
            return ()
        return (tree["split"], tree["split_condition"], *map(node, tree["children"]))

    return [node(json.loads(tree)) for tree in booster.get_dump(dump_format="json")]


@pytest.fixture(params=CASES)
def case(request):
    load, params, loss, name = CASES[request.param]
    return *load(return_X_y=True), params, loss, name


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tree_method", ["hist", "exact"])
def test_native_matches_built_in_tree_for_tree(case, weighted, tree_method):
    x, y, params, loss, _ = case
    data = xgb.DMatrix(x, y, weight=weights(len(y)) if weighted else None)
    params = {**params, "tree_method": tree_method}
    theirs = xgb.train(params, data, ROUNDS)
    ours = xgb.train(params, data, ROUNDS, obj=objective(loss, hessian="xgboost"))
    assert structure(ours) == structure(theirs)
    np.testing.assert_allclose(ours.predict(data), theirs.predict(data), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn_matches_built_in(case, weighted):
    x, y, params, loss, _ = case
    weight = weights(len(y)) if weighted else None
    options = {"n_estimators": ROUNDS, "base_score": 0.5, "n_jobs": 1}
    theirs = xgb.XGBClassifier(objective=params["objective"], **options).fit(x, y, sample_weight=weight)
    ours = xgb.XGBClassifier(objective=objective(loss, hessian="xgboost"), **options)
    ours.fit(x, y, sample_weight=weight)
    assert structure(ours.get_booster()) == structure(theirs.get_booster())
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_metric_matches_built_in(case, weighted):
    """By both interfaces, and from the probabilities that a built-in objective hands out."""
    x, y, params, loss, name = case
    weight = weights(len(y)) if weighted else None
    data = xgb.DMatrix(x, y, weight=weight)
    history = {}
    call = {"evals": [(data, "train")], "evals_result": history, "verbose_eval": False}
    xgb.train(
        {**params, "eval_metric": name}, data, 5, obj=objective(loss), custom_metric=metric(loss), **call
    )
    # XGBoost keeps six decimals of a custom metric
    np.testing.assert_allclose(history["train"][type(loss).__name__], history["train"][name], atol=1e-6)

    from_probabilities = type(loss)(from_probabilities=True)
    xgb.train({**params, "eval_metric": name}, data, 5, custom_metric=metric(from_probabilities), **call)
    np.testing.assert_allclose(history["train"][type(loss).__name__], history["train"][name], atol=1e-6)

    model = xgb.XGBClassifier(n_estimators=5, objective=objective(loss), eval_metric=metric(loss))
    sets = {"eval_set": [(x, y)], "sample_weight_eval_set": None if weight is None else [weight]}
    model.fit(x, y, sample_weight=weight, verbose=False, **sets)
    history = model.evals_result()["validation_0"]
    np.testing.assert_allclose(history[type(loss).__name__], history[name], atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_derivatives(loss, weighted):
    """The exact ones are the loss's own; the convention is twice the Hessian without the focal factor."""
    margins, labels, weight = rows_of(loss)
    weight = weight if weighted else None
    softmax = margins.ndim == 2
    margins = margins.astype(np.float32)
    margins[:3] = -110
    margins[3:6] *= 40
    data = xgb.DMatrix(np.zeros((50, 1)), labels, weight=weight)

    expected = loss.grad_and_hess(margins, labels, sample_weight=weight)
    for call in ((labels, margins, weight), (margins, data)):
        for got, exact in zip(objective(loss)(*call), expected, strict=True):
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, exact)

    hess = plain(loss).grad_and_hess(margins, labels, sample_weight=weight)[1].astype(np.float64)
    row = 1.0 if weight is None else weight[:, None] if softmax else weight
    bound = np.maximum((2 if softmax else 1) * hess, 1e-16 * row)
    for call in ((labels, margins, weight), (margins, data)):
        grad, got = objective(loss, hessian="xgboost")(*call)
        np.testing.assert_array_equal(grad, expected[0])
        np.testing.assert_allclose(got, bound, rtol=1e-6)


def test_margins_below_minus_104_keep_training():
    """XGBoost's own softmax takes exp(z - max(z, smallest float32)): with all z below that, 0 / 0."""
    x, y = load_digits(return_X_y=True)
    data = xgb.DMatrix(x, y, base_margin=np.full((len(y), 10), -110.0))
    theirs = xgb.train(SOFTMAX, data, 5)
    ours = xgb.train(SOFTMAX, data, 5, obj=objective(sl.softmax_ce, hessian="xgboost"))
    assert np.mean(theirs.predict(data).argmax(axis=1) == y) < 0.15
    assert np.mean(ours.predict(data).argmax(axis=1) == y) > 0.98

    flat = xgb.DMatrix(x, y)
    started_at_0 = xgb.train(SOFTMAX, flat, 5)
    np.testing.assert_allclose(ours.predict(data), started_at_0.predict(flat), rtol=0, atol=1e-4)


def test_focal_on_an_imbalanced_set():
    """It finds more of the rare class than cross-entropy, at a better F1.

    As weights on the rare class do: the threshold moves, the ranking stays much the same.
    """

    def predictions(loss, x, y, x_test):
        model = xgb.XGBClassifier(n_estimators=60, max_depth=4, objective=objective(loss), n_jobs=1)
        return model.fit(x, y).predict(x_test)

    cross_entropy, focal = rare_digit_scores(predictions)
    assert focal > cross_entropy + 0.05


def test_focal_from_the_log_odds_of_a_rare_class():
    """There its exact Hessian is negative for every row of that class, and no tree splits."""
    x, y = rare_digit()
    params = {**SIGMOID, "base_score": 0.02}
    data = xgb.DMatrix(x, y)
    focal = sl.SigmoidBCE(focal_gamma=2.0)
    exact = xgb.train(params, data, 60, obj=objective(focal))
    bound = xgb.train(params, data, 60, obj=objective(focal, hessian="xgboost"))
    assert np.mean((exact.predict(data) > 0.5) == y) == np.mean(y == 0)
    assert np.mean((bound.predict(data) > 0.5) == y) > 0.999


def test_several_labels_per_row():
    x, y = load_digits(return_X_y=True)
    bits = np.stack([y >> bit & 1 for bit in range(4)], axis=1)
    data = xgb.DMatrix(x, bits)
    theirs = xgb.train(SIGMOID, data, 10)
    ours = xgb.train(SIGMOID, data, 10, obj=objective(sl.sigmoid_bce, hessian="xgboost"))
    np.testing.assert_allclose(ours.predict(data), theirs.predict(data), rtol=0, atol=1e-6)


def test_soft_targets():
    """The softmax fits a matrix of label probabilities."""
    x, y = load_digits(return_X_y=True)
    soft = 0.8 * np.eye(10)[y] + 0.02
    data = xgb.DMatrix(x, soft)
    booster = xgb.train({"num_target": 10, "nthread": 1}, data, 30, obj=objective(sl.softmax_ce))
    probabilities = sl.softmax(booster.predict(data, output_margin=True))
    assert np.mean(probabilities.argmax(axis=1) == y) > 0.99
    assert np.abs(probabilities - soft).mean() < 0.02


def test_model_is_pickled():
    x, y = load_breast_cancer(return_X_y=True)
    loss = sl.SigmoidBCE(focal_gamma=1.0)
    model = xgb.XGBClassifier(n_estimators=3, objective=objective(loss), eval_metric=metric(loss)).fit(x, y)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict_proba(x), model.predict_proba(x))
    copy.fit(x, y, eval_set=[(x, y)], verbose=False)
    assert "SigmoidBCE" in copy.evals_result()["validation_0"]


def test_refused():
    for hessian, margins in itertools.product(("exact", "lightgbm"), (np.zeros(3), np.zeros((3, 1)))):
        with pytest.raises(ValueError, match="num_class"):
            objective(sl.softmax_ce, hessian=hessian)(np.zeros(3), margins)
    with pytest.raises(ValueError, match="'newton', not one of exact, xgboost, lightgbm"):
        objective(sl.softmax_ce, hessian="newton")


def test_docstring_example_of_the_shared_part_runs():
    result = doctest.testmod(_boosting)
    assert result.attempted
    assert not result.failed

"""XGBoost trained by the adapter against its own objectives, and where these give up."""

import doctest
import json
import pickle
from typing import ClassVar

import numpy as np
import pytest
import xgboost as xgb
from boosting import (
    HESSIANS,
    LOSSES,
    ClassifierContract,
    bits_of_digits,
    is_softmax,
    label_sets,
    plain,
    rare_digit,
    rare_digit_scores,
    rows_of,
    three_classes,
    two_classes,
    weights,
)
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_digits

import stableloss as sl
from stableloss.adapters import _boosting
from stableloss.adapters.xgboost import StableXGBClassifier, metric, objective

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
    options: ClassVar = {"n_estimators": ROUNDS, "base_score": 0.5, "n_jobs": 1}
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


# ---- missing labels, and weights per row and label -------------------------------------------------
# objective and value are the same functions for both libraries


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
def test_missing_labels(loss, hessian, weighted):
    """Derivatives of 0 there, and of the others as without them; metrics of the others alone."""
    margins, labels, weight = rows_of(loss)
    weight = weight if weighted else None
    keep = np.arange(50) % 3 != 0
    missing = np.where(keep, labels, np.nan)
    for got, full in zip(
        objective(loss, hessian)(missing, margins, weight),
        objective(loss, hessian)(labels, margins, weight),
        strict=True,
    ):
        np.testing.assert_array_equal(got[keep], full[keep])
        np.testing.assert_array_equal(got[~keep], 0)
    value = metric(loss)(missing, margins, weight)
    rest = metric(loss)(labels[keep], margins[keep], None if weight is None else weight[keep])
    np.testing.assert_allclose(value, rest, rtol=1e-12)


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize(
    "loss", [loss for loss in LOSSES if not is_softmax(loss)] + [sl.SigmoidMSE()], ids=repr
)
def test_missing_labels_of_several(loss, hessian):
    """As labels of weight 0, whose logits and rows are otherwise what they are."""
    margins, labels, weight = label_sets()
    known = ~np.isnan(labels)
    for given in (None, weight[:, 0], weight):
        as_matrix = (
            np.ones(labels.shape) if given is None else np.broadcast_to(given.reshape(60, -1), labels.shape)
        )
        got = objective(loss, hessian)(labels, margins, given)
        expected = objective(loss, hessian)(np.nan_to_num(labels), margins, as_matrix * known)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a[~known], 0)
        assert (got[0][known] != 0).all()
        elements = type(loss)(**{**loss._changed(), "reduction": "none"})(margins, np.nan_to_num(labels))
        expected = np.average(elements[known], weights=as_matrix[known])
        np.testing.assert_allclose(metric(loss)(labels, margins, given), expected, rtol=1e-12)


def test_missing_rows_of_label_probabilities():
    """A row counts only as a whole."""
    rng = np.random.default_rng(0)
    margins, labels = rng.normal(size=(6, 3)), rng.dirichlet(np.ones(3), 6)
    broken = labels.copy()
    broken[1, 2] = broken[4] = np.nan
    keep = [0, 2, 3, 5]
    for hessian in HESSIANS:
        for got, full in zip(
            objective(sl.softmax_ce, hessian)(broken, margins),
            objective(sl.softmax_ce, hessian)(labels, margins),
            strict=True,
        ):
            np.testing.assert_array_equal(got[keep], full[keep])
            np.testing.assert_array_equal(got[[1, 4]], 0)
    expected = sl.softmax_ce(margins[keep], labels[keep])
    np.testing.assert_allclose(metric(sl.softmax_ce)(broken, margins), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2)])
def test_every_label_is_missing(shape):
    labels, margins = np.full(shape, np.nan), np.ones(shape)
    for hessian in HESSIANS:
        for array in objective(sl.sigmoid_bce, hessian)(labels, margins):
            np.testing.assert_array_equal(array, 0)
    for reduction in ("mean", "sum", "batchmean"):
        assert metric(sl.SigmoidBCE(reduction=reduction))(labels, margins) == 0
    assert metric(sl.softmax_ce)(np.full(3, np.nan), np.ones((3, 2)), np.ones(3)) == 0


@pytest.mark.parametrize("loss", [sl.sigmoid_bce, sl.SigmoidBCE(focal_gamma=2.0, pos_weight=3.0)])
@pytest.mark.parametrize("flat", [False, True])
def test_weights_per_row_and_label(loss, flat):
    """They multiply what there is without them, and XGBoost's least Hessian too."""
    margins, labels, weight = label_sets(share_missing=0)
    margins[0] = 800
    weight[1] = 0
    shape = -1 if flat else weight.shape
    for hessian in HESSIANS:
        alone = objective(loss, hessian)(labels, margins)
        weighted = objective(loss, hessian)(labels.reshape(shape), margins, weight.reshape(shape))
        for got, one in zip(weighted, alone, strict=True):
            np.testing.assert_allclose(got, weight * one, rtol=1e-14)
        if hessian == "xgboost":
            np.testing.assert_array_equal(weighted[1][0], 1e-16 * weight[0])


def test_weights_of_the_report():
    """A weight of 0 among them, integer labels and float32 margins."""
    labels, margins = np.array([[0, 1], [1, 1], [0, 0]]), np.zeros((3, 2), np.float32)
    weight = np.array([[1.0, 0.0], [2.0, 1.0], [0.5, 3.0]])
    for hessian in HESSIANS:
        grad, hess = objective(sl.sigmoid_bce, hessian)(labels, margins, weight)
        assert grad.dtype == hess.dtype == np.float32
        np.testing.assert_array_equal(grad, weight * np.array([[0.5, -0.5], [-0.5, -0.5], [0.5, 0.5]]))
        np.testing.assert_array_equal(hess, 0.25 * weight)


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
def test_weighted_metrics(reduction, scale):
    """Means are over the total weight, zeros included, of the rows or of the elements."""
    margins, labels, weight = label_sets(share_missing=0)
    weight *= scale
    weight[::4] = 0
    elements = sl.SigmoidBCE(reduction="none")(margins, labels)
    loss = sl.SigmoidBCE(reduction=reduction)
    rows = np.average(elements, axis=0, weights=weight[:, 0])
    expected = {"mean": rows.mean(), "batchmean": rows.sum(), "sum": weight[:, 0] @ elements.sum(axis=1)}
    got = metric(loss)(labels, margins, weight[:, 0])
    np.testing.assert_allclose(got, expected[reduction], rtol=1e-12)
    got = metric(loss)(labels, margins, np.repeat(weight[:, :1], 4, axis=1))
    np.testing.assert_allclose(got, expected[reduction], rtol=1e-12)

    codes = np.arange(60) % 4
    codes[0] = -100
    loss = sl.SoftmaxCE(reduction=reduction, class_weight=[1, 2, 3, 4])
    rows = sl.SoftmaxCE(reduction="none")(margins, codes)
    share = weight[:, 0] * (codes >= 0)
    total = share @ ((codes + 1) * rows)
    divisor = {"mean": share @ (codes + 1), "batchmean": share.sum(), "sum": 1.0}[reduction]
    np.testing.assert_allclose(metric(loss)(codes, margins, weight[:, 0]), total / divisor, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_labels_of_a_metric(reduction, weighted):
    """They count as missing ones do, as numbers of any dtype and in either shape."""
    margins, labels, weight = label_sets()
    given = {"sample_weight": weight[:, 0]} if weighted else {}
    expected = metric(sl.SigmoidBCE(reduction=reduction))(labels, margins, **given)
    codes = np.nan_to_num(labels, nan=-1)
    ignoring = metric(sl.SigmoidBCE(reduction=reduction, ignore_index=-1))
    for own in (codes, codes.astype(np.float32).ravel(), codes.astype(np.int8)):
        assert ignoring(own, margins, **given) == pytest.approx(expected, rel=1e-14)
    two = np.where(codes == -1, np.where(np.arange(60)[:, np.newaxis] % 2, -1, 7), codes)
    ignoring = metric(sl.SigmoidBCE(reduction=reduction, ignore_index=(-1, 7)))
    assert ignoring(two, margins, **given) == pytest.approx(expected, rel=1e-14)
    assert ignoring(np.full_like(codes, 7), margins, **given) == 0


def test_no_rows():
    """As XGBoost calls them on a worker that has none, whatever the number of classes."""
    none = np.zeros(0, np.float32)
    for hessian in HESSIANS:
        for array in objective(sl.sigmoid_bce, hessian)(none, none):
            assert array.shape == (0,)
        for array in objective(sl.softmax_ce, hessian)(none, none.reshape(0, 3)):
            assert array.shape == (0, 3)
        with pytest.raises(ValueError, match="leave no worker without rows to train on"):
            objective(sl.softmax_ce, hessian)(none, none)
    for loss in (sl.sigmoid_bce, sl.SoftmaxCE(class_weight=[1, 2, 3]), sl.SoftmaxCE(reduction="sum")):
        for weight in (None, none):
            assert metric(loss)(none, none, weight) == 0


def test_data_set_refuses_missing_labels():
    """Which the docstring of `objective` says."""
    with pytest.raises(xgb.core.XGBoostError, match="Label contains NaN"):
        xgb.DMatrix(np.zeros((2, 1)), [1.0, np.nan])


@pytest.mark.parametrize("hessian", HESSIANS)
def test_training_on_labels_of_ones_own(hessian):
    """A missing label is one of weight 0, and what is left is learned."""
    x, labels, truth = bits_of_digits()
    of_labels, of_loss = objective(sl.sigmoid_bce, hessian), metric(sl.sigmoid_bce)
    weight = np.where(np.isnan(labels), 0.0, np.arange(1.0, 5.0))
    data = xgb.DMatrix(x, np.nan_to_num(labels))

    def train(labels, weight):
        history = {}
        booster = xgb.train(
            {**SIGMOID, "disable_default_eval_metric": True},
            data,
            ROUNDS,
            obj=lambda margins, data: of_labels(labels, margins, weight),
            custom_metric=lambda margins, data: ("loss", of_loss(labels, margins, weight)),
            evals=[(data, "train")],
            evals_result=history,
            verbose_eval=False,
        )
        return booster, history["train"]["loss"]

    missing, values = train(labels, np.broadcast_to(np.arange(1.0, 5.0), labels.shape))
    weighted, expected = train(np.nan_to_num(labels), weight)
    assert structure(missing) == structure(weighted)
    np.testing.assert_array_equal(missing.predict(data), weighted.predict(data))
    assert values == expected
    margins = missing.predict(data, output_margin=True)
    elements = sl.SigmoidBCE(reduction="none")(margins, truth)
    np.testing.assert_allclose(values[-1], (elements * weight).sum() / weight.sum(), rtol=0, atol=1e-6)
    unseen = np.isnan(labels)
    assert np.mean((margins > 0)[unseen] == truth[unseen]) > 0.95


# ---- advice ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_a_softmax_loss_needs_a_margin_per_class(hessian, shape):
    with pytest.raises(ValueError, match=r"a row has one.*num_class=2"):
        objective(sl.softmax_ce, hessian=hessian)(np.zeros(3), np.zeros(shape))
    with pytest.raises(ValueError, match=r"a row has one.*num_class=5"):
        metric(sl.softmax_ce)(np.array([0, 4, np.nan]), np.zeros(shape))


def test_advice_on_two_classes_of_a_softmax_loss():
    x, y = two_classes()
    y = (y == "benign").astype(int)
    options: ClassVar = {"n_estimators": 5, "n_jobs": 1, "objective": objective(sl.softmax_ce)}
    options["eval_metric"] = metric(sl.softmax_ce)
    with pytest.raises(ValueError, match="StableXGBClassifier") as error:
        xgb.XGBClassifier(**options).fit(x, y)
    assert "pass num_class=2: " in str(error.value)
    assert "to XGBClassifier with disable_default_eval_metric=True" in str(error.value)
    assert "xgboost.train" in str(error.value)

    model = xgb.XGBClassifier(**options, num_class=2, disable_default_eval_metric=True)
    model.fit(x, y, eval_set=[(x, y)], verbose=False)
    margins = model.predict(x, output_margin=True)
    history = {}
    data = xgb.DMatrix(x, y)
    booster = xgb.train(
        {"num_class": 2, "nthread": 1},
        data,
        5,
        obj=objective(sl.softmax_ce),
        custom_metric=metric(sl.softmax_ce),
        evals=[(data, "validation_0")],
        evals_result=history,
        verbose_eval=False,
    )
    # it starts from 0.5 in place of 0
    np.testing.assert_allclose(booster.predict(data, output_margin=True), margins + 0.5, rtol=0, atol=1e-6)
    values = model.evals_result()["validation_0"]["SoftmaxCE"]
    np.testing.assert_allclose(history["validation_0"]["SoftmaxCE"], values, rtol=0, atol=2e-6)
    ours = StableXGBClassifier(**{**options, "objective": sl.softmax_ce}).fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(x), sl.softmax(margins), rtol=1e-5)


def test_a_sigmoid_loss_needs_a_label_per_margin():
    for labels in (np.zeros(3), np.zeros((3, 1))):
        with pytest.raises(
            ValueError, match=r"a label for each margin, of shape \(3, 2\).*take a softmax loss"
        ):
            objective(sl.sigmoid_bce)(labels, np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "^labels is None, not an array"),
        (
            np.array(["a", "b"]),
            r"strings such as 'a': for class indices pass np.unique\(labels, return_inverse",
        ),
        (np.array([0, None], object), r"\(of NoneType, int\): pass np.asarray\(labels, float\)$"),
        ({0: 1, 1: 0}, r"labels is a dict, not an array: pass \[labels\[c\] for c in range\(2\)\]"),
        (sparse.csr_array(np.eye(2)), r"labels is a sparse csr_array: pass labels.toarray\(\)"),
        (iter([0, 1]), r"labels is a list_iterator, not an array: pass list\(labels\)"),
    ],
)
def test_labels_that_are_not_numbers(labels, message):
    for call in (objective(sl.softmax_ce), metric(sl.softmax_ce)):
        with pytest.raises(TypeError, match=message):
            call(labels, np.zeros((2, 2)))
    # what holds None is missing once it is a number
    grad, _ = objective(sl.softmax_ce)(np.asarray([0, None], float), np.zeros((2, 2)))
    np.testing.assert_array_equal(grad, [[-0.5, 0.5], [0, 0]])


def test_weights_that_are_not_numbers():
    for call in (objective(sl.softmax_ce), metric(sl.softmax_ce)):
        with pytest.raises(TypeError, match="sample_weight must hold real numbers, not dtype <U1 of strings"):
            call([0, 1], np.zeros((2, 2)), ["a", "b"])
        with pytest.raises(
            ValueError, match=r"sample_weight has shape \(\).*pass np.full\(\(2,\), sample_weight\)"
        ):
            call([0, 1], np.zeros((2, 2)), 2.0)


@pytest.mark.parametrize("given", [sl.SoftmaxCE, "softmax_ce", None, sl.LinearLoss(sl.softmax_ce)])
def test_what_is_no_loss_object(given):
    for function in (objective, metric):
        with pytest.raises(TypeError, match=r"loss (is the class|must be a loss object)"):
            function(given)


def test_sparse_labels_of_a_classifier():
    with pytest.raises(TypeError, match=r"^y is a sparse csr_array: pass y.toarray\(\)$"):
        StableXGBClassifier().fit(np.zeros((2, 2)), sparse.csr_array(np.eye(2)))


def test_refused():
    with pytest.raises(ValueError, match="'newton', not one of exact, xgboost, lightgbm"):
        objective(sl.softmax_ce, hessian="newton")
    with pytest.raises(ValueError, match="for metrics only"):
        objective(sl.SigmoidBCE(from_probabilities=True))
    with pytest.raises(ValueError, match="a metric is one number"):
        metric(sl.SigmoidBCE(reduction="none"))
    masked = np.ma.masked_equal([0.0, 1.0, 1.0], 0.0)
    for call in (objective(sl.sigmoid_bce), metric(sl.sigmoid_bce)):
        with pytest.raises(TypeError, match=r"labels is a masked array.*labels.filled\(np.nan\)"):
            call(masked, np.zeros(3))
        with pytest.raises(TypeError, match=r"sample_weight is a masked array.*sample_weight.filled\(0\)"):
            call(np.zeros(3), np.zeros(3), masked)
    with pytest.raises(ValueError, match="sample_weight"):
        objective(sl.softmax_ce, "xgboost")(np.zeros(3), np.zeros((3, 2)), np.ones((3, 2)))


def test_docstring_example_of_the_shared_part_runs():
    result = doctest.testmod(_boosting)
    assert result.attempted
    assert not result.failed


# ---- the classifier --------------------------------------------------------------------------------


class TestClassifier(ClassifierContract):
    cls = StableXGBClassifier
    parent = xgb.XGBClassifier
    options: ClassVar = {"n_estimators": 10, "max_depth": 4, "n_jobs": 1}
    failed: ClassVar = {
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
    }
    log_losses = ("logloss", "mlogloss")
    quiet: ClassVar = {"verbose": False}

    @staticmethod
    def margins(model, x):
        return model.predict(x, output_margin=True)

    @staticmethod
    def history(model):
        return model.evals_result()["validation_0"]

    @staticmethod
    def fit_with_early_stopping(model, x, y, evaluation_set):
        model.set_params(early_stopping_rounds=5).fit(x, y, eval_set=[evaluation_set], verbose=False)

    @staticmethod
    def fit_with_metric(model, x, y, name):
        model.set_params(eval_metric=name).fit(x, y, eval_set=[(x, y)], verbose=False)

    def test_metrics_of_two_classes_of_a_softmax_loss(self):
        x, y = two_classes()
        model = self.model(sl.softmax_ce, eval_metric=["mlogloss", metric(sl.softmax_ce)])
        values = self.history(model.fit(x, y, eval_set=[(x, y)], verbose=False))
        assert values.keys() == {"mlogloss", "SoftmaxCE"}
        expected = sl.softmax_ce(self.margins(model, x), (y == "malignant").astype(int))
        for name in values:
            np.testing.assert_allclose(values[name][-1], expected, rtol=0, atol=1e-5)

    def test_several_labels_per_row(self):
        x, _, bits = bits_of_digits()
        model = self.model(sl.SigmoidBCE(focal_gamma=1.0)).fit(x, bits)
        parent = xgb.XGBClassifier(**self.options, objective=objective(sl.SigmoidBCE(focal_gamma=1.0))).fit(
            x, bits
        )
        np.testing.assert_array_equal(self.margins(model, x), self.margins(parent, x))
        np.testing.assert_array_equal(model.predict_proba(x), sl.sigmoid(self.margins(parent, x)))
        np.testing.assert_array_equal(model.decision_function(x), self.margins(parent, x))
        np.testing.assert_array_equal(model.predict(x), parent.predict(x))
        assert model.predict(x).dtype == bits.dtype
        np.testing.assert_array_equal(self.model().fit(x, bits).predict(x).shape, bits.shape)
        with pytest.raises(ValueError, match="take a sigmoid loss"):
            self.model(sl.softmax_ce).fit(x, bits)

    @pytest.mark.parametrize("data", [two_classes, three_classes])
    @pytest.mark.parametrize("loss", [None, sl.SoftmaxCE(logit_scale=2.0)])
    def test_file(self, data, loss, tmp_path):
        """It holds neither loss nor labels."""
        x, y = data()
        model = self.model(loss).fit(x, y)
        model.save_model(tmp_path / "model.json")
        twin = self.model(loss)
        twin.load_model(tmp_path / "model.json")
        assert twin.objective is loss
        np.testing.assert_array_equal(twin.predict_proba(x), model.predict_proba(x))
        np.testing.assert_array_equal(twin.predict(x), np.searchsorted(model.classes_, model.predict(x)))
        np.testing.assert_array_equal(twin.fit(x, y).predict(x), model.predict(x))

        if loss is not None:
            without = self.cls()
            without.load_model(tmp_path / "model.json")
            np.testing.assert_array_equal(without.predict_proba(x), sl.softmax(self.margins(model, x)))

    def test_other_arguments_reach_the_parent(self):
        x, y = three_classes()
        margin = np.random.default_rng(0).normal(size=(len(y), 3))
        codes = np.unique(y, return_inverse=True)[1]
        parent = xgb.XGBClassifier(**self.options, objective=objective(sl.softmax_ce))
        parent.fit(x, codes, base_margin=margin)
        model = self.model().fit(x, y, base_margin=margin)
        for options in ({"base_margin": margin}, {"iteration_range": (0, 3)}):
            expected = parent.predict(x, output_margin=True, **options)
            np.testing.assert_array_equal(model.predict(x, output_margin=True, **options), expected)
            np.testing.assert_array_equal(model.decision_function(x, **options), expected)
            np.testing.assert_array_equal(model.predict_proba(x, **options), sl.softmax(expected))
            np.testing.assert_array_equal(
                model.predict(x, **options), model.classes_[expected.argmax(axis=1)]
            )
        more = self.model().fit(x, y, xgb_model=model)
        assert more.get_booster().num_boosted_rounds() == 20

    def test_weights_of_zero_are_refused(self):
        x, y = two_classes()
        with pytest.raises(ValueError, match="sample_weight is zero everywhere"):
            self.model().fit(x, y, sample_weight=np.zeros(len(y)))

    def test_a_loss_under_another_name_is_refused(self):
        """XGBClassifier would drop it without a word."""
        x, y = two_classes()
        with pytest.raises(TypeError, match=r"no parameter loss: pass objective=SigmoidBCE\(\)"):
            self.cls(**self.options, loss=sl.sigmoid_bce).fit(x, y)

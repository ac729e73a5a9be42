"""StableMLPClassifier against its parent: the same where both can follow, and where only one can."""

import inspect
import pickle

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.neural_network import MLPClassifier
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import estimator_checks_generator
from threadpoolctl import threadpool_limits

import stableloss as sl
from stableloss.adapters.sklearn import StableMLPClassifier

# training is cut short on purpose
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small train far slower on several threads where the machine is busy."""
    with threadpool_limits(1):
        yield


def multiclass():
    x, y = load_digits(return_X_y=True)
    return x / 16, y


def multilabel():
    x, y = multiclass()
    return x, np.stack([y >> bit & 1 for bit in range(4)], axis=1)


def binary():
    x, y = load_breast_cancer(return_X_y=True)
    return (x - x.mean(axis=0)) / x.std(axis=0), y


def logits_of(model, x):
    """Of a network with tanh in its hidden layers."""
    for coef, intercept in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
        x = np.tanh(x @ coef + intercept)
    return x @ model.coefs_[-1] + model.intercepts_[-1]


DATA = pytest.mark.parametrize("data", [binary, multiclass, multilabel])


def assert_same(ours, theirs, x, tolerance):
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.out_activation_ == theirs.out_activation_
    for got, expected in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(ours.loss_, theirs.loss_, rtol=tolerance)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), rtol=0, atol=tolerance)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


# ---- scikit-learn's own checks ---------------------------------------------------------------------


CHECKS = [
    (estimator, check)
    for model in (
        StableMLPClassifier(max_iter=100),
        StableMLPClassifier(max_iter=100, solver="lbfgs", label_smoothing=0.1, focal_gamma=1.0),
    )
    for estimator, check in estimator_checks_generator(model)
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("estimator", "check"), CHECKS, ids=[f"{e.solver}-{check.func.__name__}" for e, check in CHECKS]
)
def test_estimator_checks(estimator, check):
    check(estimator)


def test_parameters_are_those_of_the_parent_and_three_more():
    own, parent = StableMLPClassifier().get_params(), MLPClassifier().get_params()
    assert own == {**parent, "class_weight": None, "label_smoothing": 0.0, "focal_gamma": 0.0}
    assert inspect.signature(StableMLPClassifier).parameters.keys() >= own.keys()
    with pytest.raises(TypeError, match="batchsize"):
        StableMLPClassifier(batchsize=10)


# ---- the same as the parent ------------------------------------------------------------------------


@DATA
@pytest.mark.parametrize(
    ("dtype", "solver", "activation"),
    [
        (np.float64, "adam", "relu"),
        (np.float64, "sgd", "logistic"),
        (np.float64, "lbfgs", "tanh"),
        (np.float64, "adam", "identity"),
        (np.float32, "adam", "relu"),
        (np.float32, "sgd", "tanh"),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_same_as_parent(data, dtype, solver, activation, weighted):
    x, y = data()
    weight = np.random.default_rng(0).uniform(0, 3, len(x)) if weighted else None
    options = {"solver": solver, "activation": activation, "max_iter": 8, "random_state": 0}
    fitted = [
        cls((20, 10), **options).fit(x.astype(dtype), y, sample_weight=weight)
        for cls in (StableMLPClassifier, MLPClassifier)
    ]
    assert_same(*fitted, x.astype(dtype), 1e-10 if dtype == np.float64 else 1e-5)


@DATA
@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": True, "max_iter": 20, "n_iter_no_change": 2},
        {"warm_start": True, "max_iter": 3},
        {"batch_size": 50, "shuffle": False, "max_iter": 5, "alpha": 1.0},
        {"solver": "sgd", "learning_rate": "adaptive", "max_iter": 5},
    ],
    ids=str,
)
def test_options_as_the_parent_has_them(data, options):
    x, y = data()
    fitted = [cls((20,), random_state=0, **options) for cls in (StableMLPClassifier, MLPClassifier)]
    for model in fitted:
        model.fit(x, y).fit(x, y)
    assert_same(*fitted, x, 1e-10)
    assert fitted[0].validation_scores_ == fitted[1].validation_scores_
    np.testing.assert_allclose(fitted[0].loss_curve_, fitted[1].loss_curve_, rtol=1e-10)


@DATA
def test_partial_fit(data):
    x, y = data()
    weight = np.random.default_rng(0).uniform(0, 3, len(x))
    classes = np.unique(y) if y.ndim == 1 else np.arange(y.shape[1])
    fitted = [cls((20,), random_state=0) for cls in (StableMLPClassifier, MLPClassifier)]
    for model in fitted:
        for start in range(0, 500, 100):
            rows = slice(start, start + 100)
            model.partial_fit(x[rows], y[rows], sample_weight=weight[rows], classes=classes)
    assert_same(*fitted, x, 1e-10)


def test_partial_fit_is_of_the_stochastic_solvers():
    assert hasattr(StableMLPClassifier(), "partial_fit")
    assert not hasattr(StableMLPClassifier(solver="lbfgs"), "partial_fit")


def test_sparse_input_and_string_labels():
    x, y = multiclass()
    names = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])[y]
    fitted = [
        cls((20,), random_state=0, max_iter=5).fit(csr_matrix(x), names)
        for cls in (StableMLPClassifier, MLPClassifier)
    ]
    assert_same(*fitted, csr_matrix(x), 1e-10)


# ---- where the parent saturates --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lbfgs_learns_from_raw_features(dtype, seed):
    """The first outputs are off by thousands; the parent's loss is clipped there, and its search ends."""
    x, y = load_breast_cancer(return_X_y=True)
    x = (10 * x).astype(dtype)
    options = {"solver": "lbfgs", "max_iter": 100, "random_state": seed}
    theirs = MLPClassifier((32,), **options).fit(x, y)
    ours = StableMLPClassifier((32,), **options).fit(x, y)
    assert theirs.n_iter_ <= 2
    assert theirs.score(x, y) < 0.7
    assert ours.n_iter_ > 50
    assert np.isfinite(ours.loss_)
    assert ours.score(x, y) > 0.85


def test_adam_is_not_stopped_by_a_clipped_loss():
    x, y = load_wine(return_X_y=True)
    theirs, ours = (
        cls((32,), random_state=0).fit(100 * x, y) for cls in (MLPClassifier, StableMLPClassifier)
    )
    assert theirs.n_iter_ < 20
    assert theirs.score(100 * x, y) < 0.5
    assert ours.n_iter_ == ours.max_iter
    assert np.isfinite(ours.loss_curve_).all()
    assert ours.loss_ < ours.loss_curve_[0] / 10
    assert ours.score(100 * x, y) > 0.7


def test_probabilities_of_confident_rows():
    """Of two classes, the less probable one keeps its probability, and so its logarithm."""
    x, y = binary()
    model = StableMLPClassifier((8,), activation="tanh", max_iter=20, random_state=0).fit(x, y)
    scale = 500 / np.abs(logits_of(model, x)).max()
    model.coefs_[-1] *= scale
    model.intercepts_[-1] *= scale
    margin = np.abs(logits_of(model, x)[:, 0])
    assert np.any(margin > 100)
    np.testing.assert_allclose(model.predict_proba(x).min(axis=1), sl.sigmoid(-margin), rtol=1e-10)
    np.testing.assert_allclose(model.predict_log_proba(x).min(axis=1), sl.log_sigmoid(-margin), rtol=1e-10)


# ---- the options -----------------------------------------------------------------------------------


@DATA
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0}, {"label_smoothing": 0.2, "focal_gamma": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_minimum_of_the_loss_with_its_options(data, options, class_weight):
    """What lbfgs reports is the loss at its weights, and these are where the derivatives vanish."""
    x, y = (array[:200] for array in data())
    common = {"activation": "tanh", "alpha": 1.0, "class_weight": class_weight, "random_state": 0}
    model = StableMLPClassifier((6,), solver="lbfgs", max_iter=1000, **options, **common)
    model.fit(x, y)
    assert model.n_iter_ < 1000

    weight = np.ones(len(x)) if class_weight is None else compute_sample_weight("balanced", y)
    cls = sl.SoftmaxCE if data is multiclass else sl.SigmoidBCE
    targets = y[:, np.newaxis] if data is binary else y
    loss = cls(reduction="sum", **options)
    squares = sum((coef**2).sum() for coef in model.coefs_)

    def value():
        return (loss(logits_of(model, x), targets, sample_weight=weight) + squares / 2) / weight.sum()

    np.testing.assert_allclose(model.loss_, value(), rtol=1e-12)
    best = value()
    for intercept in model.intercepts_:
        for change in (1e-2, -1e-2):
            intercept += change
            assert value() > best - 1e-6
            intercept -= change


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 1: 0.5}])
def test_class_weight_is_sample_weight(class_weight):
    x, y = binary()
    sample_weight = np.random.default_rng(0).uniform(0.5, 2, len(x))
    options = {"random_state": 0, "max_iter": 5}
    ours = StableMLPClassifier((20,), class_weight=class_weight, **options)
    theirs = MLPClassifier((20,), **options)
    weight = compute_sample_weight(class_weight, y)
    assert_same(ours.fit(x, y), theirs.fit(x, y, sample_weight=weight), x, 1e-10)
    ours.fit(x, y, sample_weight=sample_weight)
    assert_same(ours, theirs.fit(x, y, sample_weight=weight * sample_weight), x, 1e-10)


def test_class_weight_of_several_labels():
    x, y = multilabel()
    class_weight = [{0: 1, 1: 2}, {0: 1, 1: 1}, {0: 3, 1: 1}, {0: 1, 1: 5}]
    options = {"random_state": 0, "max_iter": 5}
    ours = StableMLPClassifier((20,), class_weight=class_weight, **options).fit(x, y)
    weight = compute_sample_weight(class_weight, y)
    assert_same(ours, MLPClassifier((20,), **options).fit(x, y, sample_weight=weight), x, 1e-10)
    sparse = StableMLPClassifier((20,), class_weight=class_weight, **options).fit(x, csr_matrix(y))
    for dense_coef, sparse_coef in zip(ours.coefs_, sparse.coefs_, strict=True):
        np.testing.assert_array_equal(dense_coef, sparse_coef)


def test_class_weight_of_partial_fit():
    """A weight for a class that a call does not see is no error there."""
    x, y = multiclass()
    class_weight = {0: 5.0, 7: 2.0}
    ours = StableMLPClassifier((20,), class_weight=class_weight, random_state=0)
    theirs = MLPClassifier((20,), random_state=0)
    for rows in (y < 5, y >= 5, y == 3):
        weight = np.array([class_weight.get(label, 1.0) for label in y[rows]])
        ours.partial_fit(x[rows], y[rows], classes=range(10))
        theirs.partial_fit(x[rows], y[rows], sample_weight=weight, classes=range(10))
    assert_same(ours, theirs, x, 1e-10)

    with pytest.raises(ValueError, match="balanced"):
        StableMLPClassifier(class_weight="balanced").partial_fit(x, y, classes=range(10))


def test_class_weight_finds_more_of_a_rare_class():
    x, y = multiclass()
    keep = np.r_[np.flatnonzero(y != 8), np.flatnonzero(y == 8)[:20]]
    recall = []
    for class_weight in (None, "balanced"):
        model = StableMLPClassifier((20,), class_weight=class_weight, random_state=0, max_iter=30)
        recall.append(np.mean(model.fit(x[keep], y[keep]).predict(x[y == 8]) == 8))
    assert recall[1] > recall[0] + 0.1


def test_batch_of_weight_zero():
    x, y = binary()
    weight = np.repeat([0.0, 1.0], [200, len(x) - 200])
    model = StableMLPClassifier((5,), shuffle=False, batch_size=100, max_iter=2, random_state=0)
    assert np.isfinite(model.fit(x, y, sample_weight=weight).loss_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 2.0}, "label_smoothing"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
        ({"class_weight": "even"}, "class_weight"),
        ({"class_weight": {77: 2.0}}, "class_weight"),
    ],
)
def test_bad_options_are_named(options, message):
    x, y = binary()
    with pytest.raises(ValueError, match=message):
        StableMLPClassifier((5,), **options).fit(x, y)


@pytest.mark.parametrize("name", ["X", "y", "sample_weight"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_masked_arrays(method, name):
    """scikit-learn would drop the mask without a word."""
    given = {"X": np.eye(4), "y": np.array([0, 1, 0, 1]), "sample_weight": np.ones(4)}
    given[name] = np.ma.masked_array(given[name], np.zeros(given[name].shape, bool))
    with pytest.raises(TypeError, match=f"^{name} is a masked array, whose mask would be lost: pass "):
        getattr(StableMLPClassifier(), method)(**given)


def test_clone_and_pickle():
    x, y = multiclass()
    model = StableMLPClassifier((5,), focal_gamma=1.0, max_iter=3, random_state=0).fit(x, y)
    again = clone(model).fit(x, y)
    assert_same(again, model, x, 0)
    assert_same(pickle.loads(pickle.dumps(model)), model, x, 0)

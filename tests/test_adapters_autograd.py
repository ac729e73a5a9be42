"""First and second derivatives by HIPS autograd, and a network trained with them on digits."""

import autograd
import autograd.numpy as anp
import numpy as np
import oracle
import pytest
from autograd.test_util import check_grads
from cases import assert_same_bits
from real_data import batches, digits

import stableloss as sl
from stableloss.adapters import autograd as adapter

STEMS = ("sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse")
REDUCTIONS = ("mean", "sum", "batchmean", "none")


def batch(dtype=np.float64):
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(6, 4)).astype(dtype)
    return logits, np.eye(4, dtype=dtype)[rng.integers(0, 4, 6)], rng.uniform(0.5, 2, 6)


class Recorder:
    """A loss that counts which of its methods are called."""

    def __init__(self, loss):
        self.loss, self.calls = loss, []

    def __getattr__(self, name):
        return getattr(self.loss, name)

    def __call__(self, *args, **options):
        self.calls.append("call")
        return self.loss(*args, **options)

    def value_and_grad(self, *args, **options):
        self.calls.append("value_and_grad")
        return self.loss.value_and_grad(*args, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("stem", STEMS)
def test_check_grads(stem, reduction):
    """First and second derivatives, in both modes and mixed."""
    np.random.seed(0)  # noqa: NPY002 (check_grads draws its directions from there)
    logits, targets, weight = batch()
    loss = adapter.differentiable(type(getattr(sl, stem))(reduction=reduction))
    check_grads(lambda z: loss(z, targets), order=2)(logits)
    check_grads(lambda z: loss(z, targets, sample_weight=weight), order=2)(logits)
    check_grads(lambda z: anp.sum(loss(anp.tanh(z @ z.T @ z), targets) ** 2), order=2)(logits / 4)


def test_check_grads_with_another_class_axis():
    np.random.seed(0)  # noqa: NPY002
    logits, targets, _ = batch()
    loss = adapter.differentiable(sl.SoftmaxCE(reduction="none", axis=0))
    check_grads(lambda z: loss(z, targets.T), order=2)(logits.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stem", STEMS)
def test_value_and_gradient_are_those_of_the_loss(stem, dtype):
    logits, targets, _ = batch(dtype)
    logits *= 20
    value, grad = getattr(sl, stem).value_and_grad(logits, targets)
    function = getattr(adapter, stem)
    got_value, got_grad = autograd.value_and_grad(function)(logits, targets)
    assert got_value == value == function(logits, targets)
    assert_same_bits(got_grad, grad)


def test_one_pass():
    logits, targets, _ = batch()
    loss = Recorder(sl.softmax_ce)
    function = adapter.differentiable(loss)
    autograd.grad(function)(logits, targets)
    assert loss.calls == ["value_and_grad"]
    function(logits, targets)
    assert loss.calls == ["value_and_grad", "call"]
    autograd.hessian(function)(logits, targets)
    assert loss.calls == ["value_and_grad", "call", "value_and_grad"]


def test_hessian_is_exact():
    """diag(p) - p p^T for the cross-entropy of one row, its rounded-off rest included."""
    logits = np.array([0.0, 40.0, 3.0, -2.0])
    p = oracle.softmax(logits)
    exact = np.diag(p) - np.outer(p, p)
    # at the leading class p - p**2 is p times the others, not a difference
    hessian = autograd.hessian(adapter.softmax_ce)(logits, 1)
    oracle.assert_within(8, hessian, exact, np.float64)


def test_hessian_vector_products_nest():
    logits, targets, _ = batch()
    v = np.random.default_rng(1).normal(size=logits.shape)
    expected = sl.softmax_ce.hessian_vector_product(logits, targets, v)
    product = autograd.hessian_vector_product(adapter.softmax_ce)
    np.testing.assert_allclose(product(logits, targets, v), expected, rtol=1e-13)
    # linear in v: its derivative is the Hessian again
    hessian_times, _ = autograd.make_hvp(adapter.softmax_ce)(logits, targets)
    quadratic = autograd.grad(lambda u: anp.sum(u * hessian_times(u)))
    np.testing.assert_allclose(quadratic(v), 2 * expected, rtol=1e-13)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("cls", [sl.SoftmaxCE, sl.SigmoidBCE])
def test_derivative_by_the_targets(cls, reduction):
    """Alone, and with the logits depending on the same parameters."""
    np.random.seed(0)  # noqa: NPY002
    logits, _, weight = batch()
    soft = sl.softmax(logits[::-1])
    loss = adapter.differentiable(cls(reduction=reduction, label_smoothing=0.1))
    check_grads(lambda t: loss(logits, t, sample_weight=weight), order=1)(soft)
    check_grads(lambda x: loss(2 * x, 1 / (1 + anp.exp(-x[::-1]))), order=1)(logits)
    if reduction == "sum":
        expected = cls(reduction="sum", label_smoothing=0.1).target_grad(logits, soft)
        np.testing.assert_array_equal(autograd.grad(loss, argnum=1)(logits, soft), expected)


def test_derivatives_that_there_are_not():
    """None is 0 without a word: second ones in which the targets take part, and those by options."""
    logits, targets, weight = batch()
    loss = adapter.softmax_ce
    by_both = autograd.grad(lambda t: anp.sum(autograd.grad(loss)(logits, t) ** 2))
    again = autograd.grad(lambda t: anp.sum(autograd.grad(loss, argnum=1)(logits, t) ** 2))
    by_logits = autograd.grad(lambda z: anp.sum(autograd.grad(loss, argnum=1)(z, targets) ** 2))
    both = autograd.hessian(lambda x: loss(x, 1 / (1 + anp.exp(-x))))
    for function, x in ((by_both, targets), (again, targets), (by_logits, logits), (both, logits)):
        with pytest.raises(NotImplementedError):
            function(x)
    for name, given in (("sample_weight", weight), ("denominator", 6.0)):
        with pytest.raises(TypeError, match=rf"^{name} is traced by autograd.*pass getval\({name}\)"):
            autograd.grad(lambda w, name=name: loss(logits, targets, **{name: w}))(given)
    for stem in ("softmax_mse", "sigmoid_mse"):
        with pytest.raises(
            TypeError, match=r"targets are traced by autograd, but S.* has no derivative by them"
        ):
            autograd.grad(getattr(adapter, stem), argnum=1)(logits, targets)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (sl.SoftmaxCE, TypeError, r"loss is the class SoftmaxCE, not an object of it: SoftmaxCE\(\)"),
        ("softmax_ce", TypeError, "loss must be a loss object such as softmax_ce, not str"),
        (sl.LinearLoss(sl.softmax_ce), TypeError, "must be a loss object .*, not LinearLoss"),
        (sl.SoftmaxCE(from_probabilities=True), ValueError, "use a loss of logits"),
    ],
)
def test_losses_that_are_refused(loss, error, message):
    with pytest.raises(error, match=message):
        adapter.differentiable(loss)


def test_no_third_derivative():
    logits, targets, _ = batch()
    second = autograd.elementwise_grad(autograd.grad(adapter.sigmoid_bce))
    third = autograd.grad(lambda z: anp.sum(second(z, targets)))
    with pytest.raises(NotImplementedError):
        third(logits)


def test_net_learns_digits():
    rng = np.random.default_rng(0)
    data = digits()
    params = [rng.normal(0, 0.2, (64, 32)), np.zeros(32), rng.normal(0, 0.2, (32, 10)), np.zeros(10)]

    def logits(params, x):
        w1, b1, w2, b2 = params
        return anp.tanh(x @ w1 + b1) @ w2 + b2

    def objective(params, x, y):
        return adapter.softmax_ce(logits(params, x), y)

    gradient = autograd.grad(objective)
    first = objective(params, data.x, data.y)
    for _ in range(15):
        for rows in batches(rng, len(data.x), 20):
            for parameter, grad in zip(params, gradient(params, data.x[rows], data.y[rows]), strict=True):
                parameter -= 0.3 * grad
    assert objective(params, data.x, data.y) < first / 10
    assert np.mean(logits(params, data.x_test).argmax(axis=1) == data.y_test) > 0.95

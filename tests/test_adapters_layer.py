"""Networks of layers and of loss objects, trained on digits through `LossLayer` and `LossObject`."""

import copy
import pickle

import numpy as np
import oracle
import pytest
from cases import assert_same_bits
from real_data import batches, digits

import stableloss as sl
from stableloss.adapters.layer import LossLayer, LossObject

STEMS = ("sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse")


class Affine:
    def __init__(self, rng, n_in, n_out):
        self.w = rng.normal(0, (2 / n_in) ** 0.5, (n_in, n_out))
        self.b = np.zeros(n_out)

    def forward(self, x):
        self.x = x
        return x @ self.w + self.b

    def backward(self, dout):
        self.dw, self.db = self.x.T @ dout, dout.sum(axis=0)
        return dout @ self.w.T


class Relu:
    def forward(self, x):
        self.on = x > 0
        return x * self.on

    def backward(self, dout):
        return dout * self.on


class Net:
    def __init__(self, rng, sizes, last):
        self.layers = [Affine(rng, sizes[0], sizes[1]), Relu(), Affine(rng, sizes[1], sizes[2])]
        self.last = last

    def predict(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def loss(self, x, t):
        return self.last.forward(self.predict(x), t)

    def backward(self, dout=1):
        dout = self.last.backward(dout)
        for layer in reversed(self.layers):
            dout = layer.backward(dout)
        return dout

    def step(self, eta):
        for layer in self.layers:
            if isinstance(layer, Affine):
                layer.w -= eta * layer.dw
                layer.b -= eta * layer.db


@pytest.mark.parametrize("stem", STEMS)
def test_net_learns_digits(stem):
    rng = np.random.default_rng(0)
    data = digits()
    net = Net(rng, (64, 32, 10), LossLayer(type(getattr(sl, stem))(reduction="batchmean")))
    one_hot = np.eye(10)[data.y]
    first = net.loss(data.x, one_hot)
    for _ in range(15):
        for batch in batches(rng, len(data.x), 20):
            net.loss(data.x[batch], one_hot[batch])
            net.backward()
            net.step(0.5)
    assert net.loss(data.x, one_hot) < first / 5
    assert net.last.loss == net.last.forward(net.predict(data.x), one_hot)
    assert np.mean(net.predict(data.x_test).argmax(axis=1) == data.y_test) > 0.95


def test_backward_through_the_net_is_the_derivative():
    rng = np.random.default_rng(1)
    net = Net(rng, (64, 8, 10), LossLayer(sl.softmax_ce))
    x, y = digits().x[:6], digits().y[:6]
    net.loss(x, y)
    net.backward(3)
    affine, step = net.layers[0], 1e-6
    for at in [(20, 3), (36, 5), (60, 1)]:
        derivative = affine.dw[at]
        affine.w[at] += step
        above = net.loss(x, y)
        affine.w[at] -= 2 * step
        below = net.loss(x, y)
        affine.w[at] += step
        assert derivative == pytest.approx(3 * (above - below) / (2 * step), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_pass_and_the_same_bits(stem, dtype):
    """A `value_and_grad` is all that a forward and a backward call."""
    loss = getattr(sl, stem)
    calls = []

    class Recorder:
        def value_and_grad(self, *args, **options):
            calls.append(options)
            return loss.value_and_grad(*args, **options)

    layer = LossLayer(Recorder())
    logits = np.linspace(-60, 50, 40, dtype=dtype).reshape(4, 10)
    targets = np.eye(10, dtype=dtype)[[0, 9, 3, 5]]
    weight = np.array([1, 0, 2, 3], dtype)
    value, grad = loss.value_and_grad(logits, targets, sample_weight=weight)
    assert layer.forward(logits, targets, sample_weight=weight) == value == layer.loss
    assert_same_bits(layer.backward(), grad)
    assert_same_bits(layer.backward(np.float64(0.5)), grad / 2)
    assert len(calls) == 1


REDUCTIONS = ("mean", "sum", "batchmean", "none")
LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 40.0, 1.0], [-800.0, 0.0, 3.0], [1.0, 1.0, 1.0]])
ONE_HOT = np.eye(3)[[0, 1, 0, 2]]


def exact(stem, reduction):
    """Gradient of the four rows above, divided as a reduction says, exactly."""
    divisor = {"mean": 4 if stem.startswith("softmax") else 12, "batchmean": 4}.get(reduction, 1)
    results = oracle.LOSSES[stem](LOGITS, ONE_HOT)
    return results.grad / divisor, results.grad_term / divisor


def assert_gradient(grad, stem, reduction, factor=1):
    expected, term = exact(stem, reduction)
    oracle.assert_within(4, grad, expected * factor, np.float64, abs(term * factor))


@pytest.mark.parametrize("cls", [LossLayer, LossObject])
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("grad_reduction", [None, "mean", "sum", "batchmean"])
def test_gradient_is_divided_as_told(cls, stem, reduction, grad_reduction):
    """The loss is that of its reduction, whatever the gradient is divided by."""
    loss = type(getattr(sl, stem))(reduction=reduction)
    criterion = cls(loss, grad_reduction=grad_reduction)
    np.testing.assert_array_equal(criterion(LOGITS, ONE_HOT), loss(LOGITS, ONE_HOT))
    assert_gradient(criterion.backward(), stem, grad_reduction or reduction)
    if cls is LossObject:
        assert_gradient(criterion.grad(LOGITS, ONE_HOT), stem, grad_reduction or reduction)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
@pytest.mark.parametrize("grad_reduction", ["mean", "sum", "batchmean"])
@pytest.mark.parametrize("rows", [{}, {"sample_weight": [3.0, 0.0, -1.0, 0.5], "mask": [1, 1, 1, 0]}])
def test_one_pass_where_the_gradient_is_divided_otherwise(stem, reduction, grad_reduction, rows, monkeypatch):
    cls = type(getattr(sl, stem))
    expected = cls(reduction=reduction)(LOGITS, ONE_HOT, **rows)
    monkeypatch.setattr(cls, "__call__", None)
    got = LossLayer(cls(reduction=reduction), grad_reduction=grad_reduction)(LOGITS, ONE_HOT, **rows)
    assert got == pytest.approx(expected, rel=1e-15, abs=0)


def test_losses_whose_divisor_says_nothing():
    """Nothing counts, a loss that is not finite, a sum beyond float64 and a total that cannot divide."""
    undivided = LossLayer(sl.softmax_ce, grad_reduction="sum")
    assert undivided(LOGITS, [-100] * 4) == 0
    assert LossLayer(sl.SoftmaxCE(reduction="sum"), grad_reduction="mean")(LOGITS, [-100] * 4) == 0
    assert undivided(LOGITS, [0] * 4, denominator=0.5) == 2 * sl.SoftmaxCE(reduction="sum")(LOGITS, [0] * 4)
    assert undivided([[np.inf, 0.0]], [1]) == np.inf
    assert np.isnan(undivided([[np.nan, 0.0]], [1]))
    huge = np.array([[1e308, 0.0]] * 4)
    assert undivided(huge, [1] * 4) == sl.softmax_ce(huge, [1] * 4) == 1e308
    with pytest.raises(ValueError, match="sample_weight adds up to -1"):
        undivided(LOGITS, [0] * 4, sample_weight=[1, -1, -1, 0])


def test_options_reach_loss_and_gradient():
    """A denominator divides what is a mean; weights and masks count for both."""
    weight, mask = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, True])
    options = {"sample_weight": weight, "mask": mask, "denominator": 5.0}
    terms = oracle.softmax_ce(LOGITS, ONE_HOT).scaled(weight * mask)
    for cls in (LossLayer, LossObject):
        criterion = cls(sl.SoftmaxCE(), grad_reduction="sum")
        assert criterion.forward(LOGITS, ONE_HOT, **options) == pytest.approx(float(terms.loss.sum() / 5))
        oracle.assert_within(4, criterion.backward(), terms.grad, np.float64)
        criterion = cls(sl.SoftmaxCE(reduction="sum"), grad_reduction="mean")
        assert criterion.forward(LOGITS, ONE_HOT, **options) == pytest.approx(float(terms.loss.sum()))
        oracle.assert_within(4, criterion.backward(), terms.grad / 5, np.float64)
        with pytest.raises(ValueError, match="denominator replaces the divisor of a mean"):
            cls(sl.SoftmaxCE(reduction="sum")).forward(LOGITS, ONE_HOT, denominator=5.0)
    assert LossObject(sl.softmax_ce).loss(LOGITS, ONE_HOT, **options) == pytest.approx(
        float(terms.loss.sum() / 5)
    )
    oracle.assert_within(4, LossObject(sl.softmax_ce).grad(LOGITS, ONE_HOT, **options), terms.grad / 5, float)


class DividingAffine(Affine):
    """As in CMU 11-785, where the loss's derivative is undivided: the parameters' is divided by N."""

    def backward(self, dout):
        self.dw, self.db = self.x.T @ dout / len(dout), dout.mean(axis=0)
        return dout @ self.w.T


def test_layers_that_divide_learn_as_fast():
    """Same steps as the net whose gradient comes divided; with a divided one it would be 20 times slower."""
    nets = []
    for affine, options in ((Affine, {}), (DividingAffine, {"grad_reduction": "sum"})):
        net = Net(np.random.default_rng(0), (64, 32, 10), LossLayer(sl.softmax_ce, **options))
        for layer in net.layers:
            if isinstance(layer, Affine):
                layer.__class__ = affine
        for batch in batches(np.random.default_rng(1), len(digits().x), 20):
            net.loss(digits().x[batch], digits().y[batch])
            net.backward()
            net.step(0.5)
        nets.append(net)
    for plain, dividing in zip(nets[0].layers[::2], nets[1].layers[::2], strict=True):
        np.testing.assert_allclose(dividing.w, plain.w, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(dividing.b, plain.b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_upstream_of_each_loss(stem, dtype):
    """One number per row or element, as many as an unreduced loss has; the gradient keeps its dtype."""
    loss = type(getattr(sl, stem))(reduction="none")
    layer = LossLayer(loss)
    value = layer.forward(LOGITS.astype(dtype), ONE_HOT)
    dout = np.random.default_rng(0).normal(size=value.shape)
    factor = oracle.lift(dout if value.ndim == 2 else dout[:, None])
    grad = layer.backward(dout)
    assert grad.dtype == dtype
    results = oracle.LOSSES[stem](LOGITS.astype(dtype), ONE_HOT)
    oracle.assert_within(4, grad, results.grad * factor, dtype, abs(results.grad_term * factor))
    assert_same_bits(layer.backward(2), layer.backward(np.full(value.shape, 2.0)))


@pytest.mark.parametrize("stem", ["softmax_ce", "softmax_mse"])
def test_upstream_with_classes_on_another_axis(stem):
    cls = type(getattr(sl, stem))
    logits, targets = np.random.default_rng(0).normal(size=(2, 3, 4)), np.array([[0, 1, 2, 0], [2, 2, 1, 0]])
    dout = np.arange(8.0).reshape(2, 4)
    layer, last = LossLayer(cls(reduction="none", axis=1)), LossLayer(cls(reduction="none"))
    layer.forward(logits, targets)
    last.forward(np.moveaxis(logits, 1, 2), targets)
    np.testing.assert_array_equal(np.moveaxis(layer.backward(dout), 1, 2), last.backward(dout))
    np.testing.assert_array_equal(last.backward(dout)[1, 2], 6 * last.backward()[1, 2])


@pytest.mark.parametrize(
    ("reduction", "dout", "error", "message"),
    [
        ("mean", np.ones(4), ValueError, r"dout has shape \(4,\) where the loss has \(\); one number, or"),
        ("none", np.ones(3), ValueError, r"dout has shape \(3,\) where the loss has \(4,\)$"),
        ("none", np.ones((4, 3)), ValueError, r"dout has shape \(4, 3\) where the loss has \(4,\)$"),
        ("mean", None, TypeError, "dout must hold real numbers, not dtype object"),
        ("mean", 1j, TypeError, "dout must hold real numbers, not dtype complex128"),
    ],
)
def test_upstream_that_does_not_fit(reduction, dout, error, message):
    layer = LossLayer(sl.SoftmaxCE(reduction=reduction))
    layer.forward(LOGITS, ONE_HOT)
    with pytest.raises(error, match=message):
        layer.backward(dout)


@pytest.mark.parametrize("one", [0.5, np.float64(0.5), np.array(0.5), np.array([0.5]), np.array([[0.5]])])
def test_one_number_in_any_shape(one):
    """Tapes hand their upstream derivative over as an array with one element."""
    layer = LossLayer(sl.softmax_ce)
    layer.forward(LOGITS.astype(np.float32), ONE_HOT)
    assert_same_bits(layer.backward(one), layer.backward() / 2)


@pytest.mark.parametrize("cls", [LossLayer, LossObject])
def test_gradient_is_the_callers_own(cls):
    criterion = cls(sl.softmax_ce)
    criterion.forward(LOGITS, ONE_HOT)
    first = criterion.backward()
    kept = first.copy()
    first *= 0
    np.testing.assert_array_equal(criterion.backward(), kept)
    assert kept.any()


def test_memory_order_is_kept():
    layer = LossLayer(sl.softmax_ce)
    layer.forward(np.asfortranarray(LOGITS), ONE_HOT)
    assert layer.backward().flags.f_contiguous
    assert layer.backward(2.0).flags.f_contiguous


def test_buffers_that_are_used_again():
    """Gradient and probabilities are those of the call, even where its arrays hold others' numbers now."""
    logits, targets = LOGITS.copy(), ONE_HOT.copy()
    layer = LossLayer(sl.softmax_ce)
    layer.forward(logits, targets)
    logits[:], targets[:] = 7.0, -1.0
    oracle.assert_within(3, layer.probabilities, oracle.softmax(LOGITS), np.float64)
    assert_gradient(layer.backward(), "softmax_ce", "mean")


def test_probabilities_of_all_rows():
    """Also of those that a mask or an index leaves out of the loss."""
    layer = LossLayer(sl.SoftmaxCE(ignore_index=0, reduction="none"))
    layer.forward(LOGITS, [0, 1, 0, 2], mask=np.array([True, False, True, True]))
    oracle.assert_within(3, layer.probabilities, oracle.softmax(LOGITS), np.float64)


@pytest.mark.parametrize("cls", [LossLayer, LossObject])
def test_before_forward(cls):
    criterion = cls(sl.softmax_ce)
    with pytest.raises(RuntimeError, match=r"backward comes after forward\(logits, targets\)"):
        criterion.backward()
    with pytest.raises(AttributeError, match=r"probabilities come after forward"):
        criterion.probabilities  # noqa: B018
    if cls is LossLayer:
        assert not hasattr(criterion, "loss")
        with pytest.raises(AttributeError, match=r"loss comes after forward\(logits, targets\)"):
            criterion.loss  # noqa: B018
    else:
        with pytest.raises(RuntimeError, match="backward comes after forward"):
            criterion.derivative()


@pytest.mark.parametrize("cls", [LossLayer, LossObject])
def test_a_failed_forward_leaves_no_gradient(cls):
    criterion = cls(sl.softmax_ce)
    criterion.forward(LOGITS, ONE_HOT)
    with pytest.raises(ValueError, match="class index at 0 is 9"):
        criterion.forward(LOGITS, [9, 0, 0, 0])
    with pytest.raises(RuntimeError, match="backward comes after forward"):
        criterion.backward()


@pytest.mark.parametrize("cls", [LossLayer, LossObject])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((sl.LinearLoss(sl.softmax_ce),), {}, TypeError, "such as softmax_ce, not LinearLoss"),
        ((sl.SoftmaxCE,), {}, TypeError, r"loss is the class SoftmaxCE, not an object of it: SoftmaxCE\(\)"),
        (("softmax_ce",), {}, TypeError, "loss must be a loss object such as softmax_ce, not str"),
        (
            (sl.softmax_ce,),
            {"grad_reduction": "none"},
            ValueError,
            "grad_reduction is 'none', not one of mean",
        ),
    ],
)
def test_constructor_refuses(cls, arguments, options, error, message):
    with pytest.raises(error, match=message):
        cls(*arguments, **options)


def test_collected_with_the_other_layers():
    """Nets add up the parameters of all layers, the last one's too."""
    first, second = LossLayer(sl.softmax_ce), LossLayer(sl.softmax_ce)
    assert first.params == first.grads == []
    first.params.append(1)
    assert second.params == []


@pytest.mark.parametrize("cls", [LossLayer, LossObject])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(cls, copied):
    criterion = cls(sl.SoftmaxCE(label_smoothing=0.1), grad_reduction="sum")
    criterion.forward(LOGITS, ONE_HOT)
    other = copied(criterion)
    np.testing.assert_array_equal(other.backward(), criterion.backward())
    assert other.forward(LOGITS, ONE_HOT) == criterion.forward(LOGITS, ONE_HOT)


# ---- nets with a loss object ----------------------------------------------------------------------


def train_with(value_and_grad, affine=Affine):
    """One epoch; the reported losses and the parameters."""
    net = Net(np.random.default_rng(0), (64, 32, 10), None)
    for layer in net.layers[::2]:
        layer.__class__ = affine
    one_hot, losses = np.eye(10)[digits().y], []
    for batch in batches(np.random.default_rng(1), len(digits().x), 20):
        loss, grad = value_and_grad(net.predict(digits().x[batch]), one_hot[batch])
        losses.append(loss)
        for layer in reversed(net.layers):
            grad = layer.backward(grad)
        net.step(0.5)
    return np.array(losses), [parameter for layer in net.layers[::2] for parameter in (layer.w, layer.b)]


def textbook(logits, one_hot):
    """In float64, and far from where it would lose anything."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    return -np.sum(one_hot * np.log(p)) / len(p), (p - one_hot) / len(p)


def calls_of_tinynn(logits, y):
    loss = LossObject(sl.softmax_ce)
    return loss.loss(logits, y), loss.grad(logits, y)


def calls_of_joelnet(logits, y):
    """A sum; its learning rate is smaller by the size of the batch."""
    loss = LossObject(sl.SoftmaxCE(reduction="sum"))
    return loss.loss(logits, y) / len(y), loss.grad(logits, y) / len(y)


def calls_of_cmu(logits, y):
    """Losses of the rows; the layers divide."""
    criterion = LossObject(sl.SoftmaxCE(reduction="none"))
    return criterion(logits, y).sum() / len(y), criterion.derivative()


def calls_of_cmu_since_2022(logits, y):
    criterion = LossObject(sl.softmax_ce, grad_reduction="sum")
    return criterion.forward(logits, y), criterion.backward()


def calls_of_numpy_ml(logits, y):
    """Probabilities and the target first; a sum."""
    loss = LossObject(sl.SoftmaxCE(reduction="sum", from_probabilities=True), target_first=True)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return loss(y, p) / len(y), loss.grad(y, p) / len(y)


def calls_of_ml_from_scratch(logits, y):
    loss = LossObject(sl.SoftmaxCE(reduction="none"), target_first=True)
    assert loss.acc(y, logits) == np.mean(logits.argmax(axis=1) == y.argmax(axis=1))
    return np.mean(loss.loss(y, logits)), loss.gradient(y, logits) / len(y)


@pytest.mark.parametrize(
    ("calls", "affine"),
    [
        (calls_of_tinynn, Affine),
        (calls_of_joelnet, Affine),
        (calls_of_cmu, DividingAffine),
        (calls_of_cmu_since_2022, DividingAffine),
        (calls_of_numpy_ml, Affine),
        (calls_of_ml_from_scratch, Affine),
    ],
    ids=lambda value: value.__name__,
)
def test_nets_with_a_loss_object(calls, affine):
    """The losses and the parameters of a net that computes both by the textbook."""
    losses, parameters = train_with(calls, affine)
    expected, reference = train_with(textbook)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for parameter, other in zip(parameters, reference, strict=True):
        np.testing.assert_allclose(parameter, other, rtol=1e-8, atol=1e-11)
    assert expected[-5:].mean() < expected[0] / 4


def test_loss_and_grad_look_at_their_arrays_each_time():
    """A net that checks its gradients changes the logits between the calls."""
    loss, logits = LossObject(sl.softmax_ce), LOGITS.copy()
    loss.loss(logits, ONE_HOT)
    logits[0, 0] = -2.0
    changed = oracle.softmax_ce(logits, ONE_HOT).scaled(0.25)
    oracle.assert_within(4, loss.grad(logits, ONE_HOT), changed.grad, np.float64)
    assert loss.loss(logits, ONE_HOT) == pytest.approx(float(changed.loss.sum()), rel=1e-15)


@pytest.mark.parametrize("stem", STEMS)
def test_target_first(stem):
    cls = type(getattr(sl, stem))
    plain, swapped = LossObject(cls()), LossObject(cls(), target_first=True)
    for name in ("loss", "grad", "gradient", "acc", "forward"):
        got = getattr(swapped, name)(ONE_HOT, LOGITS)
        np.testing.assert_array_equal(got, getattr(plain, name)(LOGITS, ONE_HOT))
    np.testing.assert_array_equal(swapped.derivative(), plain.derivative())


def test_target_first_in_the_wrong_order():
    criterion = LossObject(sl.softmax_ce, target_first=True)
    for call in (criterion, criterion.loss, criterion.grad, criterion.acc):
        with pytest.raises(
            ValueError, match=r"shape \(4, 3\) and the second \(4,\), but with target_first=True"
        ):
            call(LOGITS, np.zeros(4, int))


def test_accuracy():
    assert LossObject(sl.softmax_ce).acc(LOGITS, [0, 1, 2, 2]) == 0.75
    assert LossObject(sl.softmax_ce).acc(LOGITS, np.eye(3)[[1, 1, 2, 2]]) == 0.5
    assert LossObject(sl.sigmoid_bce).acc([[2.0, -1.0], [0.5, -3.0]], [[1, 0], [1, 1]]) == 0.75
    assert LossObject(sl.softmax_ce).acc(np.zeros((0, 3)), np.zeros(0, int)) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities(dtype):
    logits = np.linspace(-60, 50, 40, dtype=dtype).reshape(4, 10)
    softmax = LossLayer(sl.softmax_ce)
    softmax.forward(logits, [0, 1, 2, 3])
    oracle.assert_within(3, softmax.probabilities, oracle.softmax(logits), dtype)
    sigmoid = LossLayer(sl.sigmoid_bce)
    sigmoid.forward(logits, np.zeros((4, 10)))
    oracle.assert_within(3, sigmoid.probabilities, oracle.sigmoid(logits), dtype)

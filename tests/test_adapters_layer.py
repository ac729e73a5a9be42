"""A network of layers with forward and backward, trained on digits through `LossLayer`."""

import numpy as np
import oracle
import pytest
from cases import assert_same_bits
from real_data import batches, digits

import stableloss as sl
from stableloss.adapters.layer import LossLayer

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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities(dtype):
    logits = np.linspace(-60, 50, 40, dtype=dtype).reshape(4, 10)
    softmax = LossLayer(sl.softmax_ce)
    softmax.forward(logits, [0, 1, 2, 3])
    oracle.assert_within(3, softmax.probabilities, oracle.softmax(logits), dtype)
    sigmoid = LossLayer(sl.sigmoid_bce)
    sigmoid.forward(logits, np.zeros((4, 10)))
    oracle.assert_within(3, sigmoid.probabilities, oracle.sigmoid(logits), dtype)

"""The course's conventions: (loss, dx), both divided by N; trained on digits and on real text."""

from itertools import pairwise

import numpy as np
import oracle
import pytest
from real_data import batches, digits
from sklearn.datasets import load_digits

from stableloss.adapters.cs231n import softmax_loss, temporal_softmax_loss


class TwoLayerNet:
    """affine - relu - affine - softmax; `loss(X)` gives scores, `loss(X, y)` loss and gradients."""

    def __init__(self, input_dim, hidden_dim, num_classes, reg, rng):
        self.params = {
            "W1": rng.normal(0, 0.1, (input_dim, hidden_dim)),
            "b1": np.zeros(hidden_dim),
            "W2": rng.normal(0, 0.1, (hidden_dim, num_classes)),
            "b2": np.zeros(num_classes),
        }
        self.reg = reg

    def loss(self, x, y=None):
        p = self.params
        hidden = np.maximum(0, x @ p["W1"] + p["b1"])
        scores = hidden @ p["W2"] + p["b2"]
        if y is None:
            return scores
        loss, dscores = softmax_loss(scores, y)
        loss += 0.5 * self.reg * (np.sum(p["W1"] ** 2) + np.sum(p["W2"] ** 2))
        dhidden = (dscores @ p["W2"].T) * (hidden > 0)
        grads = {
            "W1": x.T @ dhidden + self.reg * p["W1"],
            "b1": dhidden.sum(axis=0),
            "W2": hidden.T @ dscores + self.reg * p["W2"],
            "b2": dscores.sum(axis=0),
        }
        return loss, grads


def test_two_layer_net_learns_digits():
    rng = np.random.default_rng(0)
    data = digits()
    net = TwoLayerNet(64, 50, 10, 1e-4, rng)
    first, _ = net.loss(data.x, data.y)
    for _ in range(15):
        for batch in batches(rng, len(data.x), 20):
            _, grads = net.loss(data.x[batch], data.y[batch])
            for name, grad in grads.items():
                net.params[name] -= 0.3 * grad
    last, _ = net.loss(data.x, data.y)
    assert last < first / 10
    assert np.mean(net.loss(data.x_test).argmax(axis=1) == data.y_test) > 0.95


def test_gradients_of_the_net():
    rng = np.random.default_rng(0)
    net = TwoLayerNet(64, 12, 10, 0.1, rng)
    x, y = digits().x[:7], digits().y[:7]
    _, grads = net.loss(x, y)
    for name, grad in grads.items():
        parameter = net.params[name]
        # the entries with the largest derivatives: others may belong to pixels that are always 0
        for at in np.argsort(abs(grad), axis=None)[-3:]:
            original, values = parameter.flat[at], []
            for step in (1e-6, -1e-6):
                parameter.flat[at] = original + step
                values.append(net.loss(x, y)[0])
            parameter.flat[at] = original
            assert grad.flat[at] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_loss_is_the_mean(dtype):
    """Of 8 rows, so that the exact results are those of the sum with another exponent."""
    x = np.random.default_rng(0).normal(scale=20, size=(8, 5)).astype(dtype)
    y = np.array([0, 1, 2, 3, 4, 0, 1, 2])
    loss, dx = softmax_loss(x, y)
    exact = oracle.softmax_ce(x, y).scaled(0.125)
    assert isinstance(loss, float)
    assert loss == pytest.approx(float(exact.loss.sum()), rel=1e-7 if dtype == np.float32 else 1e-15)
    assert dx.dtype == dtype
    oracle.assert_within(4, dx, exact.grad, dtype)


def test_a_negative_label_does_not_wrap():
    with pytest.raises(ValueError, match="class index at 1 is -1"):
        softmax_loss(np.zeros((2, 3)), np.array([0, -1]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_temporal_loss_divides_by_the_batch(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(scale=20, size=(4, 6, 5)).astype(dtype)
    y = rng.integers(0, 5, (4, 6))
    mask = rng.random((4, 6)) < 0.6
    exact = oracle.softmax_ce(x, y).scaled(mask / 4)
    hidden = ~mask
    x[hidden], y[hidden] = np.nan, 77
    loss, dx = temporal_softmax_loss(x, y, mask)
    assert loss == pytest.approx(float(exact.loss.sum()), rel=1e-7 if dtype == np.float32 else 1e-15)
    oracle.assert_within(4, dx, exact.grad, dtype)
    assert (dx[hidden] == 0).all()


def test_temporal_loss_of_the_course_checks():
    """log(V) for small scores, T log(V) in all, and a share of it under a mask."""
    x, y = np.zeros((100, 10, 10)), np.zeros((100, 10), int)
    assert temporal_softmax_loss(x[:, :1], y[:, :1], np.ones((100, 1), bool))[0] == pytest.approx(np.log(10))
    assert temporal_softmax_loss(x, y, np.ones((100, 10), bool))[0] == pytest.approx(10 * np.log(10))
    mask = np.arange(10) < np.arange(100)[:, None] % 10
    assert temporal_softmax_loss(x, y, mask)[0] == pytest.approx(4.5 * np.log(10))


def test_no_sequences():
    loss, dx = temporal_softmax_loss(np.zeros((0, 3, 4)), np.zeros((0, 3), int), np.ones((0, 3), bool))
    assert loss == 0
    assert dx.shape == (0, 3, 4)


def test_verbose(capsys):
    temporal_softmax_loss(np.zeros((2, 3, 4)), np.zeros((2, 3), int), np.ones((2, 3), bool), verbose=True)
    assert capsys.readouterr().out == "dx: (2, 3, 4)\n"


def test_temporal_loss_learns_text():
    """A model of the next character of real text, against its known optimum.

    Scores W[character] can fit the frequencies of pairs of characters exactly, so the least loss is
    their conditional entropy.
    """
    lines = load_digits().DESCR.split("\n")
    lines = [line for line in lines if len(line) > 1]
    alphabet = sorted(set("".join(lines)))
    length = max(map(len, lines))
    captions = np.array([[alphabet.index(c) for c in line] + [-1] * (length - len(line)) for line in lines])
    captions_in, captions_out = captions[:, :-1], captions[:, 1:]
    mask = captions_out != -1

    pairs = np.zeros((len(alphabet), len(alphabet)))
    np.add.at(pairs, (captions_in[mask], captions_out[mask]), 1)
    seen = pairs > 0
    frequencies = pairs / np.maximum(pairs.sum(axis=1, keepdims=True), 1)
    least = -np.sum(pairs[seen] * np.log(frequencies[seen])) / len(lines)

    w = np.zeros_like(pairs)
    history = []
    for _ in range(300):
        loss, dx = temporal_softmax_loss(w[captions_in], captions_out, mask)
        history.append(loss)
        dw = np.zeros_like(w)
        np.add.at(dw, captions_in, dx)
        # rows in units of how often their character occurs
        w -= 4 * dw * len(lines) / np.maximum(pairs.sum(axis=1, keepdims=True), 1)
    assert history[0] == pytest.approx(mask.sum() * np.log(len(alphabet)) / len(lines))
    assert all(b < a for a, b in pairwise(history))
    assert least < history[-1] < 1.05 * least

    # at the optimum: the loss is the entropy and nothing is left to learn
    w = np.where(seen, np.log(np.where(seen, pairs, 1)), -np.inf)
    loss, dx = temporal_softmax_loss(w[captions_in], captions_out, mask)
    assert loss == pytest.approx(least, rel=1e-13)
    dw = np.zeros_like(w)
    np.add.at(dw, captions_in, dx)
    assert abs(dw).max() < 1e-14

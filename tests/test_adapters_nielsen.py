"""A network with the calls of "Neural Networks and Deep Learning", chapter 3, trained on digits.

Samples are columns (n, 1), one call of `delta` per sample, one of `fn` per sample of an evaluation.
"""

import json
import random
import sys
from itertools import pairwise

import numpy as np
import oracle
import pytest
from real_data import digits

from stableloss.adapters.nielsen import CrossEntropyCost, QuadraticCost

SATURATED = np.array([[-800.0], [-745.2], [-40.0], [-2.5], [0.0], [2.5], [40.0], [800.0]])


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


class Network:
    def __init__(self, sizes, cost=CrossEntropyCost):
        rng = np.random.default_rng(0)
        self.sizes, self.cost = sizes, cost
        self.biases = [rng.standard_normal((n, 1)) for n in sizes[1:]]
        self.weights = [rng.standard_normal((n, m)) / np.sqrt(m) for m, n in pairwise(sizes)]

    def feedforward(self, a):
        for b, w in zip(self.biases, self.weights, strict=True):
            a = sigmoid(w @ a + b)
        return a

    def backprop(self, x, y):
        activations, zs = [x], []
        for b, w in zip(self.biases, self.weights, strict=True):
            zs.append(w @ activations[-1] + b)
            activations.append(sigmoid(zs[-1]))
        delta = self.cost.delta(zs[-1], activations[-1], y)
        nabla_b, nabla_w = [delta], [delta @ activations[-2].T]
        for layer in range(2, len(self.sizes)):
            a = activations[-layer]
            delta = (self.weights[-layer + 1].T @ delta) * a * (1 - a)
            nabla_b.insert(0, delta)
            nabla_w.insert(0, delta @ activations[-layer - 1].T)
        return nabla_b, nabla_w

    def SGD(self, training_data, epochs, mini_batch_size, eta):
        shuffle = random.Random(0).shuffle
        for _ in range(epochs):
            shuffle(training_data)
            for start in range(0, len(training_data), mini_batch_size):
                batch = training_data[start : start + mini_batch_size]
                for x, y in batch:
                    nabla_b, nabla_w = self.backprop(x, y)
                    for b, w, db, dw in zip(self.biases, self.weights, nabla_b, nabla_w, strict=True):
                        b -= eta / len(batch) * db
                        w -= eta / len(batch) * dw

    def accuracy(self, data):
        return np.mean([self.feedforward(x).argmax() == y.argmax() for x, y in data])

    def total_cost(self, data):
        return sum(self.cost.fn(self.feedforward(x), y) / len(data) for x, y in data)

    def save(self, path):
        data = {
            "sizes": self.sizes,
            "weights": [w.tolist() for w in self.weights],
            "biases": [b.tolist() for b in self.biases],
            "cost": self.cost.__name__,
        }
        path.write_text(json.dumps(data))


def load(path):
    data = json.loads(path.read_text())
    net = Network(data["sizes"], cost=getattr(sys.modules[__name__], data["cost"]))
    net.weights = [np.array(w) for w in data["weights"]]
    net.biases = [np.array(b) for b in data["biases"]]
    return net


def columns(x, y):
    return [(row[:, None], np.eye(10)[digit][:, None]) for row, digit in zip(x, y, strict=True)]


@pytest.mark.parametrize(("cost", "eta"), [(CrossEntropyCost, 0.5), (QuadraticCost, 3.0)])
def test_network_learns_digits(cost, eta, tmp_path):
    data = digits()
    training, test = columns(data.x, data.y), columns(data.x_test, data.y_test)
    net = Network([64, 30, 10], cost=cost)
    first = net.total_cost(training)
    net.SGD(training, 6, 10, eta)
    assert net.total_cost(training) < first / 5
    assert net.accuracy(test) > 0.93

    net.save(tmp_path / "net.json")
    loaded = load(tmp_path / "net.json")
    assert loaded.cost is cost
    assert loaded.total_cost(test) == net.total_cost(test)


@pytest.mark.parametrize(
    ("cost", "stem", "limit"), [(CrossEntropyCost, "sigmoid_bce", 4), (QuadraticCost, "sigmoid_mse", 5)]
)
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_delta_is_exact(cost, stem, limit, target):
    z, y = SATURATED, np.full_like(SATURATED, target)
    with np.errstate(over="ignore"):
        a = sigmoid(z)
    delta = cost.delta(z, a, y)
    assert delta.shape == z.shape
    exact = oracle.LOSSES[stem](z, y)
    oracle.assert_within(limit, delta, exact.grad, np.float64, exact.grad_term)


def test_delta_learns_where_the_textbook_stops():
    """Its quadratic cost multiplies by a (1 - a), which is 0 from z = 37 on."""
    z, y = np.array([[40.0]]), np.array([[0.0]])
    a = sigmoid(z)
    assert (a - y) * a * (1 - a) == 0
    assert QuadraticCost.delta(z, a, y) == pytest.approx(4.248354255291589e-18, rel=1e-15)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_cost_is_exact_for_what_the_output_holds(target):
    a = np.array([[1e-300], [1e-20], [0.25], [0.5], [0.75], [1 - 2.0**-53]])
    y = np.full_like(a, target)
    a_exact = oracle.lift(a)
    probability = a_exact if target else 1 - a_exact
    cost = -oracle.log(probability).sum()
    assert CrossEntropyCost.fn(a, y) == pytest.approx(float(cost), rel=4e-16)
    distance = (1 - a_exact if target else a_exact) ** 2
    assert QuadraticCost.fn(a, y) == pytest.approx(float(distance.sum() / 2), rel=4e-16)


def test_cost_of_outputs_that_rounded():
    one, zero = np.array([[1.0]]), np.array([[0.0]])
    assert CrossEntropyCost.fn(one, one) == pytest.approx(0, abs=1e-300)
    assert CrossEntropyCost.fn(zero, zero) == pytest.approx(0, abs=1e-300)
    smallest_normal = -np.log(np.finfo(float).smallest_normal)
    assert CrossEntropyCost.fn(one, zero) == pytest.approx(smallest_normal)
    assert CrossEntropyCost.fn(zero, one) == pytest.approx(smallest_normal)

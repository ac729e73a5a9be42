"""Networks with the calls of "Neural Networks from Scratch in Python", trained on real data."""

import numpy as np
import oracle
import pytest
from real_data import batches, breast_cancer, digits

from stableloss.adapters.nnfs import (
    Activation_Sigmoid_Loss_BinaryCrossentropy,
    Activation_Softmax_Loss_CategoricalCrossentropy,
)


class Layer_Dense:
    def __init__(self, n_inputs, n_neurons, rng):
        self.weights = rng.normal(0, (2 / n_inputs) ** 0.5, (n_inputs, n_neurons)).astype(np.float32)
        self.biases = np.zeros((1, n_neurons), np.float32)

    def forward(self, inputs):
        self.inputs = inputs
        self.output = inputs @ self.weights + self.biases

    def backward(self, dvalues):
        self.dweights = self.inputs.T @ dvalues
        self.dbiases = dvalues.sum(axis=0, keepdims=True)
        self.dinputs = dvalues @ self.weights.T


class Activation_ReLU:
    def forward(self, inputs):
        self.inputs = inputs
        self.output = np.maximum(0, inputs)

    def backward(self, dvalues):
        self.dinputs = np.where(self.inputs > 0, dvalues, 0)


class Optimizer_SGD:
    def __init__(self, learning_rate):
        self.learning_rate = learning_rate

    def update_params(self, layer):
        layer.weights -= self.learning_rate * layer.dweights
        layer.biases -= self.learning_rate * layer.dbiases


def train(loss_activation, x, y, n_outputs, epochs):
    """Return the loss before and after, and the function from inputs to the output activation."""
    rng = np.random.default_rng(0)
    x = x.astype(np.float32)
    dense1, activation1 = Layer_Dense(x.shape[1], 32, rng), Activation_ReLU()
    dense2 = Layer_Dense(32, n_outputs, rng)
    optimizer = Optimizer_SGD(0.3)

    def forward(x, y):
        dense1.forward(x)
        activation1.forward(dense1.output)
        dense2.forward(activation1.output)
        return loss_activation.forward(dense2.output, y)

    first = forward(x, y)
    for _ in range(epochs):
        for batch in batches(rng, len(x), 20):
            x_batch, y_batch = x[batch], y[batch]
            forward(x_batch, y_batch)
            loss_activation.backward(loss_activation.output, y_batch)
            dense2.backward(loss_activation.dinputs)
            activation1.backward(dense2.dinputs)
            dense1.backward(activation1.dinputs)
            optimizer.update_params(dense1)
            optimizer.update_params(dense2)
    assert dense1.dweights.dtype == np.float32

    def output(x, y):
        forward(x.astype(np.float32), y)
        return loss_activation.output

    return first, forward(x, y), output


def test_softmax_network_learns_digits():
    data = digits()
    first, last, output = train(
        Activation_Softmax_Loss_CategoricalCrossentropy(), data.x, data.y, n_outputs=10, epochs=15
    )
    assert last < first / 10
    predictions = np.argmax(output(data.x_test, data.y_test), axis=1)
    assert np.mean(predictions == data.y_test) > 0.95


def test_sigmoid_network_learns_breast_cancer():
    data = breast_cancer()
    y, y_test = data.y[:, None], data.y_test[:, None]
    first, last, output = train(
        Activation_Sigmoid_Loss_BinaryCrossentropy(), data.x, y, n_outputs=1, epochs=15
    )
    assert last < first / 10
    assert np.mean((output(data.x_test, y_test) > 0.5) == y_test) > 0.95


CASES = [
    pytest.param(Activation_Softmax_Loss_CategoricalCrossentropy, "softmax_ce", id="softmax"),
    pytest.param(Activation_Sigmoid_Loss_BinaryCrossentropy, "sigmoid_bce", id="sigmoid"),
]


@pytest.mark.parametrize(("cls", "stem"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_are_exact(cls, stem, dtype):
    """8 samples and 4 outputs: the book's divisors are powers of 2."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=20, size=(8, 4)).astype(dtype)
    y = np.eye(4, dtype=np.int64)[rng.integers(0, 4, 8)]
    divisor = 8 if stem == "softmax_ce" else 32
    exact = oracle.LOSSES[stem](logits, y).scaled(1 / divisor)
    loss_activation = cls()
    loss = loss_activation.forward(logits, y)
    assert loss == pytest.approx(float(exact.loss.sum()), rel=1e-7 if dtype == np.float32 else 1e-15)
    activation = oracle.softmax if stem == "softmax_ce" else oracle.sigmoid
    oracle.assert_within(3, loss_activation.output, activation(logits), dtype)
    loss_activation.backward(loss_activation.output, y)
    oracle.assert_within(4, loss_activation.dinputs, exact.grad, dtype)


def test_class_indices_are_one_hot_rows():
    logits = np.random.default_rng(0).normal(scale=5, size=(8, 10))
    y = np.arange(8)
    results = []
    for y_true in (y, np.eye(10)[y]):
        loss_activation = Activation_Softmax_Loss_CategoricalCrossentropy()
        results.append(loss_activation.forward(logits, y_true))
        loss_activation.backward(loss_activation.output, y_true)
        results.append(loss_activation.dinputs)
    assert results[0] == pytest.approx(results[2], rel=1e-15)
    np.testing.assert_allclose(results[1], results[3], rtol=1e-15)


@pytest.mark.parametrize(("cls", "stem"), CASES)
def test_backward_alone(cls, stem):
    """The book's `Model` has computed the activation itself; the derivative is still the one by the logits.

    It is the exact y_hat - y of the y_hat given, as long as that has not rounded to 0 or 1.
    """
    rng = np.random.default_rng(0)
    y_hat = rng.dirichlet(np.ones(4), 8)
    y = np.eye(4)[rng.integers(0, 4, 8)]
    loss_activation = cls()
    loss_activation.backward(y_hat, y)
    divisor = 8 if stem == "softmax_ce" else 32
    exact = oracle.lift(y_hat)
    if stem == "softmax_ce":
        exact = exact / exact.sum(axis=1, keepdims=True)
    oracle.assert_within(4, loss_activation.dinputs, (exact - oracle.lift(y)) / divisor, np.float64)


@pytest.mark.parametrize(("cls", "stem"), CASES)
def test_backward_with_other_arguments_than_forward(cls, stem):
    """Neither another output nor other targets get the gradient that forward made."""
    logits = np.random.default_rng(0).normal(size=(8, 4))
    y, other = np.eye(4)[[0, 1, 2, 3] * 2], np.eye(4)[[1, 2, 3, 0] * 2]
    expected, loss_activation = cls(), cls()
    expected.forward(logits, other)
    expected.backward(expected.output, other)
    loss_activation.forward(logits, y)
    loss_activation.backward(loss_activation.output, other)
    np.testing.assert_allclose(loss_activation.dinputs, expected.dinputs, rtol=1e-14)
    loss_activation.backward(expected.output.copy(), other)
    np.testing.assert_allclose(loss_activation.dinputs, expected.dinputs, rtol=1e-14)


def test_a_wrong_saturated_unit_learns():
    """From the book's two classes, which clip y_hat to 1 - 1e-7, it gets 0.02 at z = 20 and 0 at z = 40."""
    logits = np.array([[20.0], [40.0]])
    y = np.zeros((2, 1))
    loss_activation = Activation_Sigmoid_Loss_BinaryCrossentropy()
    assert loss_activation.forward(logits, y) == pytest.approx(30)
    loss_activation.backward(loss_activation.output, y)
    np.testing.assert_allclose(loss_activation.dinputs, [[0.5], [0.5]], rtol=1e-8)

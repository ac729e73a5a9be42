"""Networks with one sample per column and the 1/m in the parameters' derivatives, trained on real data."""

import numpy as np
import oracle
import pytest
from real_data import batches, breast_cancer, digits

from stableloss.adapters.columns import (
    sigmoid_cost,
    sigmoid_cost_from_output,
    softmax_cost,
    softmax_cost_from_output,
)


def initialize_parameters(layer_dims, rng):
    parameters = {}
    for layer in range(1, len(layer_dims)):
        n_in, n_out = layer_dims[layer - 1 : layer + 1]
        parameters[f"W{layer}"] = rng.normal(0, (2 / n_in) ** 0.5, (n_out, n_in))
        parameters[f"b{layer}"] = np.zeros((n_out, 1))
    return parameters


def model_forward(X, parameters):
    """Linear and relu layers, the last one linear only; each cache is (A_prev, Z)."""
    A, caches = X, []
    for layer in range(1, len(parameters) // 2 + 1):
        Z = parameters[f"W{layer}"] @ A + parameters[f"b{layer}"]
        caches.append((A, Z))
        A = np.maximum(0, Z)
    return Z, caches


def linear_backward(dZ, A_prev, W):
    m = A_prev.shape[1]
    return W.T @ dZ, dZ @ A_prev.T / m, dZ.sum(axis=1, keepdims=True) / m


def update(parameters, caches, dZ, learning_rate):
    for layer in range(len(caches), 0, -1):
        A_prev, _ = caches[layer - 1]
        dA, dW, db = linear_backward(dZ, A_prev, parameters[f"W{layer}"])
        parameters[f"W{layer}"] -= learning_rate * dW
        parameters[f"b{layer}"] -= learning_rate * db
        if layer > 1:
            dZ = dA * (caches[layer - 2][1] > 0)


def train(cost_and_dz, X, Y, layer_dims, learning_rate, epochs):
    """Return the cost of all samples before and after, and the parameters."""
    rng = np.random.default_rng(0)
    parameters = initialize_parameters(layer_dims, rng)
    first, _ = cost_and_dz(model_forward(X, parameters)[0], Y)
    for _ in range(epochs):
        for batch in batches(rng, X.shape[1], 32):
            ZL, caches = model_forward(X[:, batch], parameters)
            _, dZL = cost_and_dz(ZL, Y[:, batch])
            update(parameters, caches, dZL, learning_rate)
    last, _ = cost_and_dz(model_forward(X, parameters)[0], Y)
    return first, last, parameters


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    e = np.exp(z - z.max(axis=0))
    return e / e.sum(axis=0)


def through_output(activation, cost_from_output):
    return lambda ZL, Y: cost_from_output(activation(ZL), Y)


@pytest.mark.parametrize(
    "cost_and_dz", [sigmoid_cost, through_output(sigmoid, sigmoid_cost_from_output)], ids=["z", "y_hat"]
)
def test_sigmoid_network_learns_breast_cancer(cost_and_dz):
    data = breast_cancer()
    first, last, parameters = train(cost_and_dz, data.x.T, data.y[None, :], [30, 16, 8, 1], 0.1, 20)
    assert last < first / 10
    ZL, _ = model_forward(data.x_test.T, parameters)
    assert np.mean((ZL > 0) == data.y_test) > 0.95


@pytest.mark.parametrize(
    "cost_and_dz", [softmax_cost, through_output(softmax, softmax_cost_from_output)], ids=["z", "y_hat"]
)
def test_softmax_network_learns_digits(cost_and_dz):
    data = digits()
    first, last, parameters = train(cost_and_dz, data.x.T, np.eye(10)[data.y].T, [64, 32, 10], 0.3, 20)
    assert last < first / 10
    ZL, _ = model_forward(data.x_test.T, parameters)
    assert np.mean(ZL.argmax(axis=0) == data.y_test) > 0.95


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("function", "stem"),
    [(sigmoid_cost, "sigmoid_bce"), (softmax_cost, "softmax_ce")],
    ids=["sigmoid", "softmax"],
)
def test_results_are_exact(function, stem, dtype):
    """8 samples: dividing the exact results by m changes the exponent only."""
    rng = np.random.default_rng(0)
    z = rng.normal(scale=20, size=(5, 8)).astype(dtype)
    y = np.eye(5)[rng.integers(0, 5, 8)].T
    exact = oracle.LOSSES[stem](z.T, y.T)
    cost, dz = function(z, y)
    expected = float(exact.loss.sum() / 8)
    assert cost == pytest.approx(expected, rel=1e-7 if dtype == np.float32 else 1e-15)
    oracle.assert_within(4, dz, exact.grad.T, dtype)


def test_class_indices_are_one_hot_columns():
    z = np.random.default_rng(0).normal(scale=5, size=(5, 8))
    y = np.arange(8) % 5
    cost, dz = softmax_cost(z, y)
    expected_cost, expected_dz = softmax_cost(z, np.eye(5)[y].T)
    assert cost == pytest.approx(expected_cost, rel=1e-15)
    np.testing.assert_allclose(dz, expected_dz, rtol=1e-15)


@pytest.mark.parametrize("function", [sigmoid_cost_from_output, softmax_cost_from_output])
def test_from_output_is_exact(function):
    rng = np.random.default_rng(0)
    y_hat = rng.dirichlet(np.full(4, 0.05), 8).T
    y_hat = np.clip(y_hat, 1e-280, 1 - 2.0**-53)
    y = np.eye(4)[rng.integers(0, 4, 8)].T
    exact = oracle.lift(y_hat)
    if function is softmax_cost_from_output:
        exact = exact / exact.sum(axis=0)
        cost = -oracle.times(oracle.lift(y), oracle.log(exact)).sum() / 8
    else:
        cost = -oracle.log(np.where(y == 1, exact, 1 - exact)).sum() / 8
    got, dz = function(y_hat, y)
    assert got == pytest.approx(float(cost), rel=1e-15)
    oracle.assert_within(4, dz, exact - oracle.lift(y), np.float64)


@pytest.mark.parametrize(
    "function", [sigmoid_cost, sigmoid_cost_from_output, softmax_cost, softmax_cost_from_output]
)
def test_no_samples(function):
    cost, dz = function(np.zeros((3, 0)), np.zeros((3, 0)))
    assert cost == 0
    assert dz.shape == (3, 0)


def test_outputs_that_rounded_divide_nothing_by_zero():
    AL, Y = np.array([[1.0, 0.0, 1.0, 0.0]]), np.array([[0, 1, 1, 0]])
    with np.errstate(divide="ignore", invalid="ignore"):
        dAL = -(np.divide(Y, AL) - np.divide(1 - Y, 1 - AL))
        assert not np.isfinite(dAL * AL * (1 - AL)).any()
    cost, dZL = sigmoid_cost_from_output(AL, Y)
    assert np.isfinite(cost)
    np.testing.assert_allclose(dZL, AL - Y, atol=1e-300)

"""Networks with the calls of "Neural Networks from Scratch in Python", trained on real data."""

import copy
import pickle

import numpy as np
import oracle
import pytest
from real_data import batches, breast_cancer, digits

from stableloss.adapters.nnfs import (
    Activation_Sigmoid_Loss_BinaryCrossentropy,
    Activation_Softmax_Loss_CategoricalCrossentropy,
    Loss_BinaryCrossentropy,
    Loss_CategoricalCrossentropy,
)


class Layer_Dense:
    def __init__(self, n_inputs, n_neurons, rng, weight_regularizer_l2=0, bias_regularizer_l1=0):
        self.weights = rng.normal(0, (2 / n_inputs) ** 0.5, (n_inputs, n_neurons)).astype(np.float32)
        self.biases = np.zeros((1, n_neurons), np.float32)
        self.weight_regularizer_l1 = self.bias_regularizer_l2 = 0
        self.weight_regularizer_l2 = weight_regularizer_l2
        self.bias_regularizer_l1 = bias_regularizer_l1

    def forward(self, inputs, training=None):
        self.inputs = inputs
        self.output = inputs @ self.weights + self.biases

    def backward(self, dvalues):
        self.dweights = self.inputs.T @ dvalues + 2 * self.weight_regularizer_l2 * self.weights
        self.dbiases = dvalues.sum(axis=0, keepdims=True) + self.bias_regularizer_l1 * np.sign(self.biases)
        self.dinputs = dvalues @ self.weights.T


class Activation_ReLU:
    def forward(self, inputs, training=None):
        self.inputs = inputs
        self.output = np.maximum(0, inputs)

    def backward(self, dvalues):
        self.dinputs = np.where(self.inputs > 0, dvalues, 0)


class Activation_Softmax:
    def forward(self, inputs, training=None):
        self.inputs = inputs
        exponentials = np.exp(inputs - inputs.max(axis=1, keepdims=True))
        self.output = exponentials / exponentials.sum(axis=1, keepdims=True)

    def backward(self, dvalues):
        along = np.sum(self.output * dvalues, axis=1, keepdims=True)
        self.dinputs = self.output * (dvalues - along)

    def predictions(self, outputs):
        return outputs.argmax(axis=1)


class Activation_Sigmoid:
    def forward(self, inputs, training=None):
        self.inputs = inputs
        with np.errstate(over="ignore"):
            self.output = 1 / (1 + np.exp(-inputs))

    def backward(self, dvalues):
        self.dinputs = dvalues * (1 - self.output) * self.output

    def predictions(self, outputs):
        return (outputs > 0.5) * 1


class Layer_Input:
    def forward(self, inputs, training):
        self.output = inputs


class Optimizer_SGD:
    def __init__(self, learning_rate):
        self.learning_rate = learning_rate

    def update_params(self, layer):
        layer.weights -= self.learning_rate * layer.dweights
        layer.biases -= self.learning_rate * layer.dbiases


class Accuracy:
    """Share of right predictions since `new_pass`."""

    def new_pass(self):
        self.right = self.count = 0

    def calculate(self, predictions, y):
        self.right += np.sum(predictions == y)
        self.count += y.size

    def calculate_accumulated(self):
        return self.right / self.count


class Model:
    """The book's order of calls, chapters 18 to 22, and its links between the layers."""

    def __init__(self):
        self.layers, self.softmax_classifier_output = [], None

    def add(self, layer):
        self.layers.append(layer)

    def set(self, *, loss, optimizer, accuracy):
        self.loss, self.optimizer, self.accuracy = loss, optimizer, accuracy

    def finalize(self):
        self.input_layer = Layer_Input()
        chain = [self.input_layer, *self.layers, self.loss]
        for before, layer, after in zip(chain, chain[1:], chain[2:], strict=False):
            layer.prev, layer.next = before, after
        self.output_layer_activation = self.layers[-1]
        self.trainable_layers = [layer for layer in self.layers if hasattr(layer, "weights")]
        self.loss.remember_trainable_layers(self.trainable_layers)
        if isinstance(self.layers[-1], Activation_Softmax) and isinstance(
            self.loss, Loss_CategoricalCrossentropy
        ):
            self.softmax_classifier_output = Activation_Softmax_Loss_CategoricalCrossentropy()

    def forward(self, X, training):
        self.input_layer.forward(X, training)
        for layer in self.layers:
            layer.forward(layer.prev.output, training)
        return layer.output

    def backward(self, output, y):
        if self.softmax_classifier_output is not None:
            self.softmax_classifier_output.backward(output, y)
            self.layers[-1].dinputs = self.softmax_classifier_output.dinputs
            layers = self.layers[:-1]
        else:
            self.loss.backward(output, y)
            layers = self.layers
        for layer in reversed(layers):
            layer.backward(layer.next.dinputs)

    def train(self, X, y, *, epochs, batch_size):
        """Return data loss, regularization loss and accuracy of each epoch."""
        history = []
        for _ in range(epochs):
            self.loss.new_pass()
            self.accuracy.new_pass()
            for start in range(0, len(X), batch_size):
                batch_X, batch_y = X[start : start + batch_size], y[start : start + batch_size]
                output = self.forward(batch_X, training=True)
                self.loss.calculate(output, batch_y, include_regularization=True)
                self.accuracy.calculate(self.output_layer_activation.predictions(output), batch_y)
                self.backward(output, batch_y)
                for layer in self.trainable_layers:
                    self.optimizer.update_params(layer)
            losses = self.loss.calculate_accumulated(include_regularization=True)
            history.append((*losses, self.accuracy.calculate_accumulated()))
        return history

    def evaluate(self, X, y, *, batch_size):
        self.loss.new_pass()
        self.accuracy.new_pass()
        for start in range(0, len(X), batch_size):
            batch_X, batch_y = X[start : start + batch_size], y[start : start + batch_size]
            output = self.forward(batch_X, training=False)
            self.loss.calculate(output, batch_y)
            self.accuracy.calculate(self.output_layer_activation.predictions(output), batch_y)
        return self.loss.calculate_accumulated(), self.accuracy.calculate_accumulated()

    def save(self):
        model = copy.deepcopy(self)
        model.loss.new_pass()
        model.input_layer.__dict__.pop("output", None)
        model.loss.__dict__.pop("dinputs", None)
        for layer in model.layers:
            for name in ("inputs", "output", "dinputs", "dweights", "dbiases"):
                layer.__dict__.pop(name, None)
        return pickle.dumps(model)


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


# ---- the losses of a Model ------------------------------------------------------------------------

MODELS = [
    pytest.param(Activation_Softmax, Loss_CategoricalCrossentropy, "softmax_ce", id="softmax"),
    pytest.param(Activation_Sigmoid, Loss_BinaryCrossentropy, "sigmoid_bce", id="sigmoid"),
]


def model_of(activation, loss, sizes=(6, 5, 4), seed=0, **options):
    rng = np.random.default_rng(seed)
    model = Model()
    model.add(Layer_Dense(sizes[0], sizes[1], rng, **options))
    model.add(Activation_ReLU())
    model.add(Layer_Dense(sizes[1], sizes[2], rng))
    model.add(activation)
    model.set(loss=loss, optimizer=Optimizer_SGD(0.3), accuracy=Accuracy())
    model.finalize()
    return model


def saturated(model, n=8):
    """Inputs, one-hot targets, and logits (the weights are made so) of which some saturate the output."""
    x = np.random.default_rng(2).normal(size=(n, 6)).astype(np.float32)
    for layer in model.trainable_layers:
        layer.weights *= np.float32(10)
    return x, np.eye(4, dtype=np.int64)[np.random.default_rng(3).integers(0, 4, n)]


def exact_at(model, stem, y):
    """Loss and gradient by the logits of the model's last forward pass, exactly; of 8 samples."""
    return oracle.LOSSES[stem](model.layers[-2].output, y).scaled(1 / 8 if stem == "softmax_ce" else 1 / 32)


@pytest.mark.parametrize(("activation", "loss", "stem"), MODELS)
def test_gradient_of_a_model_is_that_of_its_logits(activation, loss, stem):
    """Loss and gradient, also where the outputs are 0 and 1 to the last bit, with the book's activations."""
    model = model_of(activation(), loss())
    x, y = saturated(model)
    output = model.forward(x, training=True)
    assert ((output == 0) | (output == 1)).any()
    expected = exact_at(model, stem, y)
    assert model.loss.calculate(output, y) == pytest.approx(float(expected.loss.sum()), rel=1e-7)
    model.backward(output, y)
    grad = model.layers[-1].dinputs
    oracle.assert_within(4, grad, expected.grad, np.float32)
    assert grad.dtype == np.float32
    # and it is what the layers before go on from
    np.testing.assert_array_equal(model.layers[-2].dweights, model.layers[-2].inputs.T @ grad)

    losses = oracle.LOSSES[stem](model.layers[-2].output, y).loss
    per_sample = losses if losses.ndim == 1 else losses.mean(axis=1)
    np.testing.assert_allclose(model.loss.forward(output, y), per_sample.astype(float), rtol=5e-7)


@pytest.mark.parametrize(("activation", "loss", "stem"), MODELS)
def test_gradient_of_a_model_without_calculate(activation, loss, stem):
    model = model_of(activation(), loss())
    x, y = saturated(model)
    output = model.forward(x, training=True)
    model.backward(output, y)
    oracle.assert_within(4, model.layers[-1].dinputs, exact_at(model, stem, y).grad, np.float32)


@pytest.mark.parametrize(
    "loss", [Loss_BinaryCrossentropy, Activation_Sigmoid_Loss_BinaryCrossentropy], ids=["loss", "twin"]
)
def test_a_model_moves_off_a_wrong_saturated_output(loss):
    """Through the book's own classes the gradient at z = 40 is 0, and the unit stays where it is."""
    activation = Activation_Sigmoid()
    model = model_of(activation, loss(), sizes=(6, 5, 1))
    model.layers[-2].biases[:] = 40
    model.layers[-2].weights[:] = 0
    x, y = np.ones((4, 6), np.float32), np.zeros((4, 1), np.int64)
    output = model.forward(x, training=True)
    assert (output == 1).all()
    model.loss.calculate(output, y)
    model.backward(output, y)
    np.testing.assert_array_equal(model.layers[-2].dbiases, [[1]])
    model.train(x, y, epochs=200, batch_size=4)
    assert (model.forward(x, training=False) < 0.1).all()


def test_softmax_model_without_the_combined_class():
    """Where the model goes through the softmax's own backward, that gives the gradient by the logits too."""
    model = model_of(Activation_Softmax(), Loss_CategoricalCrossentropy())
    model.softmax_classifier_output = None
    x, y = saturated(model)
    output = model.forward(x, training=True)
    model.loss.calculate(output, y)
    model.backward(output, y)
    oracle.assert_within(4, model.layers[-1].dinputs, exact_at(model, "softmax_ce", y).grad, np.float32)


def test_softmax_model_learns_digits():
    data = digits()
    model = model_of(
        Activation_Softmax(), Loss_CategoricalCrossentropy(), (64, 32, 10), bias_regularizer_l1=1e-3
    )
    x, y = data.x.astype(np.float32), data.y.astype(np.uint8)
    history = model.train(x, y, epochs=12, batch_size=20)
    assert history[-1][0] < history[0][0] / 5
    assert history[-1][2] > 0.98
    loss, accuracy = model.evaluate(data.x_test.astype(np.float32), data.y_test, batch_size=100)
    assert accuracy > 0.94
    output = model.forward(data.x_test.astype(np.float32), training=False).astype(np.float64)
    expected = -np.mean(np.log(output[np.arange(len(output)), data.y_test]))
    assert loss == pytest.approx(expected, rel=1e-5)


def test_sigmoid_model_learns_breast_cancer():
    data = breast_cancer()
    model = model_of(Activation_Sigmoid(), Loss_BinaryCrossentropy(), (30, 16, 1), weight_regularizer_l2=1e-4)
    history = model.train(data.x.astype(np.float32), data.y[:, None], epochs=15, batch_size=20)
    assert history[-1][0] < history[0][0] / 3
    _, accuracy = model.evaluate(data.x_test.astype(np.float32), data.y_test[:, None], batch_size=50)
    assert accuracy > 0.95


@pytest.mark.parametrize(("activation", "loss", "stem"), MODELS)
def test_accumulated_loss_is_the_mean_of_the_samples(activation, loss, stem):
    """Of batches of unequal size, each sample counts once; a new pass begins from nothing."""
    model = model_of(activation(), loss())
    x = np.random.default_rng(1).normal(size=(7, 6)).astype(np.float32)
    y = np.eye(4)[np.arange(7) % 4]
    for _ in range(2):
        model.loss.new_pass()
        assert model.loss.calculate_accumulated() == 0
        losses = []
        for rows in (slice(0, 5), slice(5, 7)):
            output = model.forward(x[rows], training=False)
            model.loss.calculate(output, y[rows])
            exact = oracle.LOSSES[stem](model.layers[-2].output, y[rows]).loss
            losses.extend(exact if exact.ndim == 1 else exact.mean(axis=1))
        assert model.loss.accumulated_count == 7
        assert model.loss.calculate_accumulated() == pytest.approx(float(sum(losses) / 7), rel=1e-6)
        assert model.loss.calculate_accumulated(include_regularization=True)[1] == 0


def test_regularization():
    """Both norms of weights and biases, of all layers or of one."""
    loss = Loss_CategoricalCrossentropy()
    model = model_of(Activation_Softmax(), loss, weight_regularizer_l2=0.5, bias_regularizer_l1=0.25)
    first, last = model.trainable_layers
    first.biases[:], last.biases[:] = -2, 3
    last.weight_regularizer_l1, last.bias_regularizer_l2 = 0.125, 2
    of_first = 0.5 * np.sum(first.weights.astype(float) ** 2) + 0.25 * 5 * 2
    of_last = 0.125 * np.sum(abs(last.weights.astype(float))) + 2 * 4 * 9
    assert loss.regularization_loss() == pytest.approx(of_first + of_last, rel=1e-6)
    assert loss.regularization_loss(first) == pytest.approx(of_first, rel=1e-6)
    # chapters 14 and 15
    combined = Activation_Softmax_Loss_CategoricalCrossentropy()
    assert combined.loss.regularization_loss(last) == pytest.approx(of_last, rel=1e-6)
    output = model.forward(np.ones((2, 6), np.float32), training=True)
    data_loss, penalty = loss.calculate(output, np.array([0, 1]), include_regularization=True)
    assert penalty == loss.regularization_loss()
    assert data_loss == loss.calculate(output, np.array([0, 1]))


@pytest.mark.parametrize(("activation", "loss", "stem"), MODELS)
def test_saved_models(activation, loss, stem):
    """Without the last batch; and the loaded one knows its logits again."""
    model = model_of(activation(), loss())
    x, y = saturated(model)
    empty = len(model.save())
    many, labels = np.tile(x, (500, 1)), np.tile(y, (500, 1))
    output = model.forward(many, training=True)
    model.loss.calculate(output, labels)
    model.loss.backward(output, labels)
    model.loss.calculate(output, labels)
    assert len(model.save()) < empty + 1000
    loaded = pickle.loads(model.save())
    output = loaded.forward(x, training=True)
    loaded.backward(output, y)
    expected = exact_at(loaded, stem, y)
    oracle.assert_within(4, loaded.layers[-1].dinputs, expected.grad, np.float32)
    assert loaded.loss.calculate(output, y) == pytest.approx(float(expected.loss.sum()), rel=1e-7)


def test_several_models():
    """The combined classes, which know of no model, tell their outputs apart."""
    models = [model_of(Activation_Softmax(), Loss_CategoricalCrossentropy(), seed=seed) for seed in range(3)]
    x, y = saturated(models[0])
    for model in models[1:]:
        saturated(model)
    outputs = [model.forward(x, training=True) for model in models]
    for model, output in zip(models, outputs, strict=True):
        model.loss.calculate(output, y)
    for model, output in reversed(list(zip(models, outputs, strict=True))):
        model.backward(output, y)
        grad = model.layers[-1].dinputs
        oracle.assert_within(4, grad, exact_at(model, "softmax_ce", y).grad, np.float32)


@pytest.mark.parametrize(("activation", "loss", "stem"), MODELS)
def test_other_targets_and_other_passes_between(activation, loss, stem):
    """What calculate made is for its own output and targets only."""
    model = model_of(activation(), loss())
    x, y = saturated(model)
    output = model.forward(x, training=True)
    expected = exact_at(model, stem, y)
    model.loss.calculate(output, y[::-1].copy())
    model.backward(output, y)
    oracle.assert_within(4, model.layers[-1].dinputs, expected.grad, np.float32)
    model.loss.calculate(output, y)
    model.forward(-x, training=False)
    model.backward(output, y)
    oracle.assert_within(4, model.layers[-1].dinputs, expected.grad, np.float32)


def of_output(activation, loss, logits, y):
    """Value and gradient by the logits through an activation that the loss does not know, in float64."""
    activation.forward(logits)
    loss.backward(activation.output, y)
    activation.backward(loss.dinputs)
    return loss.calculate(activation.output, y), activation.dinputs


@pytest.mark.parametrize(("activation", "loss", "stem"), MODELS)
def test_without_links(activation, loss, stem):
    """Chapters 5 to 17: exact by way of the named activation; else what the output holds."""
    logits, y = np.random.default_rng(0).normal(size=(8, 4)), np.eye(4, dtype=int)[np.arange(8) % 4]
    exact = oracle.LOSSES[stem](logits, y).scaled(1 / 8 if stem == "softmax_ce" else 1 / 32)
    value, grad = of_output(activation(), loss(), logits, y)
    assert value == pytest.approx(float(exact.loss.sum()), rel=1e-14)
    np.testing.assert_allclose(grad, exact.grad.astype(float), rtol=1e-12, atol=1e-15)
    named = activation()
    value, grad = of_output(named, loss(named), logits * 40, y)
    exact = oracle.LOSSES[stem](logits * 40, y).scaled(1 / 8 if stem == "softmax_ce" else 1 / 32)
    assert value == pytest.approx(float(exact.loss.sum()), rel=1e-15)
    oracle.assert_within(4, grad, exact.grad, np.float64)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (Loss_CategoricalCrossentropy, np.array([0, 1])),
        (Loss_CategoricalCrossentropy, np.array([[1, 0], [0, 1]])),
        (Loss_BinaryCrossentropy, np.array([[0, 1], [1, 0]])),
    ],
)
def test_outputs_that_rounded_have_finite_derivatives(loss, y, dtype):
    """Right and wrong; by the quotient of the smallest normal number in place of 0."""
    output, tiny = np.array([[1, 0], [1, 0]], dtype), float(np.finfo(dtype).smallest_normal)
    function = loss()
    function.backward(output, y)
    one_hot = np.eye(2)[y] if y.ndim == 1 else y
    expected = -one_hot / np.maximum(output.astype(float), tiny) / 2
    if loss is Loss_BinaryCrossentropy:
        expected = (expected + (1 - one_hot) / np.maximum(1 - output.astype(float), tiny) / 2) / 2
    assert function.dinputs.dtype == dtype
    np.testing.assert_allclose(function.dinputs, expected, rtol=2e-3 if dtype == np.float16 else 1e-6)


def test_another_activation_than_the_losss():
    """A binary loss behind a softmax is the loss of that output; its logits are not those of a sigmoid."""
    model = model_of(Activation_Softmax(), Loss_BinaryCrossentropy())
    x, y = np.random.default_rng(2).normal(size=(8, 6)), np.eye(4)[np.arange(8) % 4]
    output = model.forward(x, training=True)
    expected = -np.mean(y * np.log(output) + (1 - y) * np.log(1 - output))
    assert model.loss.calculate(output, y) == pytest.approx(expected, rel=1e-12)
    model.backward(output, y)
    bias, step = model.layers[-2].biases.astype(float), 1e-6
    for k in range(4):
        around = []
        for move in (step, -step):
            model.layers[-2].biases = bias + move * (np.arange(4) == k)
            around.append(model.loss.calculate(model.forward(x, training=True), y))
        assert model.layers[-2].dbiases[0, k] == pytest.approx((around[0] - around[1]) / (2 * step), rel=1e-6)


def test_logits_that_have_been_overwritten():
    """A layer that writes to one buffer: the loss of the output at hand, not of the numbers there now."""
    activation = Activation_Sigmoid()
    loss = Loss_BinaryCrossentropy(activation)
    buffer, y = np.array([[1.0], [-2.0]]), np.array([[0], [1]])
    activation.forward(buffer)
    buffer[:] = 5.0
    exact = oracle.sigmoid_bce(np.array([[1.0], [-2.0]]), y).scaled(0.5)
    assert loss.calculate(activation.output, y) == pytest.approx(float(exact.loss.sum()), rel=1e-15)
    loss.backward(activation.output, y)
    activation.backward(loss.dinputs)
    np.testing.assert_allclose(activation.dinputs, exact.grad.astype(float), rtol=1e-14)


@pytest.mark.parametrize(("cls", "stem"), CASES)
def test_logits_of_the_combined_class_overwritten(cls, stem):
    buffer, y = np.random.default_rng(0).normal(size=(8, 4)), np.eye(4)[np.arange(8) % 4]
    exact = oracle.LOSSES[stem](buffer, y).scaled(1 / 8 if stem == "softmax_ce" else 1 / 32)
    loss_activation = cls()
    loss_activation.forward(buffer, y)
    buffer[:] = 5.0
    for _ in range(2):
        loss_activation.backward(loss_activation.output, y)
        np.testing.assert_allclose(loss_activation.dinputs, exact.grad.astype(float), rtol=1e-13)


@pytest.mark.parametrize(("cls", "stem"), CASES)
def test_gradients_are_the_callers_own(cls, stem):
    """Scaling one in place does not reach the next; behind an activation, which takes it from the loss, it
    is refused."""
    logits, y = np.random.default_rng(0).normal(scale=20, size=(8, 4)), np.eye(4)[np.arange(8) % 4]
    loss_activation = cls()
    loss_activation.forward(logits, y)
    loss_activation.backward(loss_activation.output, y)
    kept = loss_activation.dinputs.copy()
    loss_activation.dinputs *= 0
    loss_activation.backward(loss_activation.output, y)
    np.testing.assert_array_equal(loss_activation.dinputs, kept)
    assert kept.any()

    activation = Activation_Sigmoid() if stem == "sigmoid_bce" else Activation_Softmax()
    loss = (Loss_BinaryCrossentropy if stem == "sigmoid_bce" else Loss_CategoricalCrossentropy)(activation)
    activation.forward(logits)
    loss.backward(activation.output, y)
    with pytest.raises(ValueError, match="read-only"):
        loss.dinputs *= 0
    for _ in range(2):
        activation.backward(loss.dinputs)
        np.testing.assert_array_equal(activation.dinputs, kept)
        activation.dinputs *= 0
    # one that is not the loss's goes through the activation's own backward
    activation.backward(np.zeros((8, 4)))
    assert not activation.dinputs.any()


@pytest.mark.parametrize(("activation", "loss", "stem"), MODELS)
def test_a_sample_that_is_not_a_number(activation, loss, stem):
    """Its row alone is lost, and the others' gradient is still that of the logits."""
    model = model_of(activation(), loss())
    x, y = saturated(model)
    x[3] = np.nan
    output = model.forward(x, training=True)
    assert np.isnan(model.loss.calculate(output, y))
    model.backward(output, y)
    others = np.arange(8) != 3
    grad, expected = model.layers[-1].dinputs, exact_at(model, stem, y).grad
    assert np.isnan(grad[3]).all()
    oracle.assert_within(4, grad[others], expected[others], np.float32)


def test_a_layer_that_is_the_output():
    """No activation between the last trainable layer and the loss: the output is taken as it is."""
    layer, loss = Layer_Dense(2, 2, np.random.default_rng(0)), Loss_BinaryCrossentropy()
    layer.next = loss
    loss.remember_trainable_layers([layer])
    assert "backward" not in layer.__dict__
    assert loss.calculate(np.array([[0.5, 0.25]]), np.array([[1, 0]])) == pytest.approx(
        -(np.log(0.5) + np.log(0.75)) / 2
    )
    loss.remember_trainable_layers([])
    assert loss.regularization_loss() == 0


def test_a_wrong_saturated_unit_learns():
    """From the book's two classes, which clip y_hat to 1 - 1e-7, it gets 0.02 at z = 20 and 0 at z = 40."""
    logits = np.array([[20.0], [40.0]])
    y = np.zeros((2, 1))
    loss_activation = Activation_Sigmoid_Loss_BinaryCrossentropy()
    assert loss_activation.forward(logits, y) == pytest.approx(30)
    loss_activation.backward(loss_activation.output, y)
    np.testing.assert_allclose(loss_activation.dinputs, [[0.5], [0.5]], rtol=1e-8)

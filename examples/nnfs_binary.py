"""A `Model` with the calls of "Neural Networks from Scratch", chapter 18 on, on the breast-cancer data.

The layers, activations and the model are the reader's own; the loss is imported. It takes the gradient
from the logits behind the sigmoid, so that a unit that is certain and wrong keeps it.
"""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from stableloss.adapters.nnfs import Loss_BinaryCrossentropy


class Layer_Input:
    def forward(self, inputs, training):
        self.output = inputs


class Layer_Dense:
    weight_regularizer_l1 = bias_regularizer_l1 = bias_regularizer_l2 = 0

    def __init__(self, n_inputs, n_neurons, weight_regularizer_l2=0):
        self.weights = rng.normal(0, (2 / n_inputs) ** 0.5, (n_inputs, n_neurons))
        self.biases = np.zeros((1, n_neurons))
        self.weight_regularizer_l2 = weight_regularizer_l2

    def forward(self, inputs, training):
        self.inputs, self.output = inputs, inputs @ self.weights + self.biases

    def backward(self, dvalues):
        self.dweights = self.inputs.T @ dvalues + 2 * self.weight_regularizer_l2 * self.weights
        self.dbiases = dvalues.sum(axis=0, keepdims=True)
        self.dinputs = dvalues @ self.weights.T


class Activation_ReLU:
    def forward(self, inputs, training):
        self.output = np.maximum(0, inputs)

    def backward(self, dvalues):
        self.dinputs = dvalues * (self.output > 0)


class Activation_Sigmoid:
    def forward(self, inputs, training):
        self.inputs, self.output = inputs, 1 / (1 + np.exp(-inputs))

    def backward(self, dvalues):
        self.dinputs = dvalues * (1 - self.output) * self.output


class Model:
    def __init__(self, *layers, loss):
        self.layers, self.loss, self.input_layer = layers, loss, Layer_Input()
        chain = [self.input_layer, *layers, loss]
        for before, layer, after in zip(chain[:-2], layers, chain[2:], strict=True):
            layer.prev, layer.next = before, after
        self.trainable_layers = [layer for layer in layers if hasattr(layer, "weights")]
        loss.remember_trainable_layers(self.trainable_layers)

    def forward(self, X, training):
        self.input_layer.forward(X, training)
        for layer in self.layers:
            layer.forward(layer.prev.output, training)
        return layer.output

    def train(self, X, y, epochs, batch_size, learning_rate):
        for _ in (progress := tqdm(range(epochs), unit="epoch")):
            self.loss.new_pass()
            for batch in np.split(rng.permutation(len(X)), range(batch_size, len(X), batch_size)):
                output = self.forward(X[batch], training=True)
                self.loss.calculate(output, y[batch])
                self.loss.backward(output, y[batch])
                for layer in reversed(self.layers):
                    layer.backward(layer.next.dinputs)
                for layer in self.trainable_layers:
                    layer.weights -= learning_rate * layer.dweights
                    layer.biases -= learning_rate * layer.dbiases
            data_loss, penalty = self.loss.calculate_accumulated(include_regularization=True)
            progress.set_postfix(loss=f"{data_loss:.5f}", penalty=f"{penalty:.5f}", refresh=False)


rng = np.random.default_rng(0)
X, X_test, y, y_test = train_test_split(*load_breast_cancer(return_X_y=True), random_state=0)
scaler, y, y_test = StandardScaler().fit(X), y[:, None], y_test[:, None]
hidden = Layer_Dense(30, 16, weight_regularizer_l2=1e-4)
layers = hidden, Activation_ReLU(), Layer_Dense(16, 1), Activation_Sigmoid()
model = Model(*layers, loss=Loss_BinaryCrossentropy())
model.train(scaler.transform(X), y, epochs=40, batch_size=32, learning_rate=0.2)
output = model.forward(scaler.transform(X_test), training=False)
print(f"held-out loss {model.loss.calculate(output, y_test):.4f}", end=", ")
print(f"accuracy {np.mean((output > 0.5) == y_test):.1%}")

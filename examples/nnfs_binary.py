"""A network with the calls of "Neural Networks from Scratch" on scikit-learn's breast-cancer data.

Sigmoid and loss are one object, so that a unit that is certain and wrong keeps its gradient.
"""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from stableloss.adapters.nnfs import Activation_Sigmoid_Loss_BinaryCrossentropy


class Layer_Dense:
    def __init__(self, n_inputs, n_neurons, rng):
        self.weights = rng.normal(0, (2 / n_inputs) ** 0.5, (n_inputs, n_neurons))
        self.biases = np.zeros((1, n_neurons))

    def forward(self, inputs):
        self.inputs, self.output = inputs, inputs @ self.weights + self.biases

    def backward(self, dvalues):
        self.dweights, self.dbiases = self.inputs.T @ dvalues, dvalues.sum(axis=0, keepdims=True)
        self.dinputs = dvalues @ self.weights.T


class Activation_ReLU:
    def forward(self, inputs):
        self.output = np.maximum(0, inputs)

    def backward(self, dvalues):
        self.dinputs = dvalues * (self.output > 0)


rng = np.random.default_rng(0)
X, X_test, y, y_test = train_test_split(*load_breast_cancer(return_X_y=True), random_state=0)
scaler, y, y_test = StandardScaler().fit(X), y[:, None], y_test[:, None]
dense1, activation1, dense2 = Layer_Dense(30, 16, rng), Activation_ReLU(), Layer_Dense(16, 1, rng)
loss_activation = Activation_Sigmoid_Loss_BinaryCrossentropy()


def forward(X, y):
    dense1.forward(scaler.transform(X))
    activation1.forward(dense1.output)
    dense2.forward(activation1.output)
    return loss_activation.forward(dense2.output, y)


for _ in (progress := tqdm(range(200), unit="epoch")):
    progress.set_postfix(loss=f"{forward(X, y):.5f}", refresh=False)
    loss_activation.backward(loss_activation.output, y)
    dense2.backward(loss_activation.dinputs)
    activation1.backward(dense2.dinputs)
    dense1.backward(activation1.dinputs)
    for layer in (dense1, dense2):
        layer.weights -= 0.5 * layer.dweights
        layer.biases -= 0.5 * layer.dbiases
print(f"held-out loss {forward(X_test, y_test):.4f}", end=", ")
print(f"accuracy {np.mean((loss_activation.output > 0.5) == y_test):.1%}")

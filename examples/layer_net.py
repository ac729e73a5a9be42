"""A network of layers on scikit-learn's digits, the last a `LossLayer`; draws the digits of highest loss."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import stableloss as sl
from stableloss.adapters.layer import LossLayer

rng = np.random.default_rng(0)


class Affine:
    def __init__(self, n_in, n_out):
        self.w, self.b = rng.normal(0, n_in**-0.5, (n_in, n_out)), np.zeros(n_out)

    def forward(self, x):
        self.x = x
        return x @ self.w + self.b

    def backward(self, dout):
        dx = dout @ self.w.T
        self.w -= 0.2 * self.x.T @ dout
        self.b -= 0.2 * dout.sum(axis=0)
        return dx


class Tanh:
    def forward(self, x):
        self.y = np.tanh(x)
        return self.y

    def backward(self, dout):
        return dout * (1 - self.y**2)


def logits(x):
    return layers[2].forward(layers[1].forward(layers[0].forward(x)))


x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(x / 16, y, random_state=0)
layers, last = [Affine(64, 64), Tanh(), Affine(64, 10)], LossLayer(sl.softmax_ce)
for _ in (progress := tqdm(range(30), unit="epoch")):
    for batch in np.split(rng.permutation(len(x)), range(20, len(x), 20)):
        progress.set_postfix(loss=f"{last.forward(logits(x[batch]), y[batch]):.4f}", refresh=False)
        layers[0].backward(layers[1].backward(layers[2].backward(last.backward())))

loss, predicted = last.forward(logits(x_test), y_test), last.probabilities.argmax(axis=1)
print(f"held-out loss {loss:.4f}, accuracy {np.mean(predicted == y_test):.1%}")
losses = sl.SoftmaxCE(reduction="none")(logits(x_test), y_test)
figure = Figure(figsize=(9, 1.75), layout="constrained")
for axes, i in zip(figure.subplots(1, 8), np.argsort(-losses), strict=False):
    axes.imshow(x_test[i].reshape(8, 8), cmap="gray_r")
    axes.set(xticks=[], yticks=[], title=f"{y_test[i]}, not {predicted[i]}\nloss {losses[i]:.1f}")
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)

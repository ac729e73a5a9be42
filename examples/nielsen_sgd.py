"""The network of "Neural Networks and Deep Learning", chapter 3, on scikit-learn's digits, with both costs.

Its delta comes from z, so that saturated outputs keep an exact one. What the figure shows is then the
cost itself: from N(0, 1) weights the quadratic cost learns slowly, the cross-entropy at once.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import stableloss as sl
from stableloss.adapters.nielsen import CrossEntropyCost, QuadraticCost


class Network:
    def __init__(self, sizes, cost):
        self.cost, rng = cost, np.random.default_rng(0)
        self.biases = [rng.standard_normal((n, 1)) for n in sizes[1:]]
        self.weights = [rng.standard_normal((n, m)) for m, n in pairwise(sizes)]

    def feedforward(self, a):
        activations = [a]
        for w, b in zip(self.weights, self.biases, strict=True):
            z = w @ activations[-1] + b
            activations.append(sl.sigmoid(z))
        return z, activations

    def update(self, batch, eta):
        for x, y in batch:
            z, activations = self.feedforward(x)
            delta = self.cost.delta(z, activations[-1], y)
            for w, b, a in zip(self.weights[::-1], self.biases[::-1], activations[-2::-1], strict=True):
                step, delta = eta / len(batch) * delta, (w.T @ delta) * a * (1 - a)
                w -= step @ a.T
                b -= step

    def accuracy(self, data):
        return np.mean([self.feedforward(x)[1][-1].argmax() == y.argmax() for x, y in data])


x, y = load_digits(return_X_y=True)
samples = list(zip(x[:, :, None] / 16, np.eye(10)[y][:, :, None], strict=True))
training, test = train_test_split(samples, random_state=0)
axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
for cost in (CrossEntropyCost, QuadraticCost):
    net, rng, accuracies = Network([64, 30, 10], cost), np.random.default_rng(0), []
    for _ in tqdm(range(15), desc=f"{cost.__name__:16}", unit="epoch"):
        for rows in np.split(rng.permutation(len(training)), range(10, len(training), 10)):
            net.update([training[i] for i in rows], eta=0.5)
        accuracies.append(100 * net.accuracy(test))
    print(f"{cost.__name__}: held-out accuracy {accuracies[-1]:.1f}%")
    axes.plot(range(1, 16), accuracies, label=cost.__name__)
axes.set(xlabel="epoch", ylabel="held-out accuracy (%)", ylim=(0, 102))
axes.legend(loc="lower right")
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)

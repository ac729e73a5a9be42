"""The two-layer network of CS231n on scikit-learn's digits, with `softmax_loss`: (loss, dx), divided by N.

The figure shows what each hidden unit looks for, the columns of W1: ink on red is for it, on blue against.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from stableloss.adapters.cs231n import softmax_loss


class TwoLayerNet:
    def __init__(self, input_dim, hidden_dim, num_classes, reg):
        self.reg, rng = reg, np.random.default_rng(0)
        self.params = {
            "W1": rng.normal(0, 0.01, (input_dim, hidden_dim)),
            "b1": np.zeros(hidden_dim),
            "W2": rng.normal(0, 0.01, (hidden_dim, num_classes)),
            "b2": np.zeros(num_classes),
        }

    def loss(self, X, y=None):
        W1, b1, W2, b2 = self.params.values()
        hidden = np.maximum(0, X @ W1 + b1)
        scores = hidden @ W2 + b2
        if y is None:
            return scores
        loss, dscores = softmax_loss(scores, y)
        loss += 0.5 * self.reg * (np.sum(W1 * W1) + np.sum(W2 * W2))
        dhidden = (dscores @ W2.T) * (hidden > 0)
        return loss, {
            "W1": X.T @ dhidden + self.reg * W1,
            "b1": dhidden.sum(axis=0),
            "W2": hidden.T @ dscores + self.reg * W2,
            "b2": dscores.sum(axis=0),
        }


X, y = load_digits(return_X_y=True)
X_train, X_val, y_train, y_val = train_test_split(X / 16 - 0.5, y, random_state=0)
net, rng = TwoLayerNet(64, 40, 10, reg=1e-3), np.random.default_rng(0)
print(f"first loss {net.loss(X_train, y_train)[0]:.4f}, ln 10 = {np.log(10):.4f}")
for _ in (progress := tqdm(range(40), unit="epoch")):
    for batch in np.split(rng.permutation(len(X_train)), range(20, len(X_train), 20)):
        loss, grads = net.loss(X_train[batch], y_train[batch])
        for name, grad in grads.items():
            net.params[name] -= 0.3 * grad
    progress.set_postfix(loss=f"{loss:.4f}")
print(f"validation accuracy {np.mean(net.loss(X_val).argmax(axis=1) == y_val):.1%}")

figure = Figure(figsize=(8, 3.4), layout="constrained")
for axes, w in zip(figure.subplots(4, 10).flat, net.params["W1"].T, strict=True):
    axes.imshow(w.reshape(8, 8), cmap="RdBu_r", vmin=-abs(w).max(), vmax=abs(w).max())
    axes.set_axis_off()
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)

"""Sigmoid and binary cross-entropy on scikit-learn's breast-cancer data, in three arithmetics.

One network in plain numpy is trained three times from the same weights on the same mini-batches:
with the textbook gradient through y_hat (1 - y_hat), with the usual epsilon, and with stableloss.
"""

import time
from functools import partial

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import stableloss as sl

HIDDEN, EPOCHS, BATCH, ETA, SEED = 256, 100, 10, 3.0, 0


def textbook(z, y, epsilon=0.0):
    """Return J and dJ/dz = dJ/dy_hat * dy_hat/dz, averaged over the batch."""
    # log(0), division by 0 and 0 * inf are what this function is here to show.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        y_hat = 1 / (1 + np.exp(-z))
        p = np.clip(y_hat, epsilon, 1 - epsilon)
        loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
        dj_dy_hat = (p - y) / (p * (1 - p)) / len(y)
        return loss, dj_dy_hat * (y_hat * (1 - y_hat))


def forward(params, x):
    w1, b1, w2, b2 = params
    a1 = sl.sigmoid(x @ w1.T + b1)
    return a1, a1 @ w2.T + b2


def train(label, value_and_grad, x, y):
    """Return the trained parameters, the numbers of bad gradient entries and the seconds spent."""
    rng = np.random.default_rng(SEED)
    shapes = [(HIDDEN, x.shape[1]), (HIDDEN,), (1, HIDDEN), (1,)]
    params = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    nonfinite, stalled, seconds = 0, 0, 0.0
    for epoch in tqdm(range(EPOCHS), desc=f"{label:10}", unit="epoch"):
        eta = ETA * (1 - epoch / (1 + EPOCHS))
        order = rng.permutation(len(x))
        for batch in np.split(order, range(BATCH, len(order), BATCH)):
            a1, z2 = forward(params, x[batch])
            start = time.perf_counter()
            _, delta2 = value_and_grad(z2, y[batch])
            seconds += time.perf_counter() - start
            nonfinite += np.count_nonzero(~np.isfinite(delta2))
            stalled += np.count_nonzero((delta2 == 0) & ((z2 > 0) != y[batch]))

            delta1 = (delta2 @ params[2]) * (a1 * (1 - a1))
            grads = (delta1.T @ x[batch], delta1.sum(axis=0), delta2.T @ a1, delta2.sum(axis=0))
            for parameter, gradient in zip(params, grads, strict=True):
                parameter -= eta * gradient
    return params, nonfinite, stalled, seconds


def main():
    x, y = (a.astype(np.float32) for a in load_breast_cancer(return_X_y=True))
    x, x_test, y, y_test = train_test_split(x, y[:, None], random_state=SEED, stratify=y)
    x, x_test = x / x.max(axis=0), x_test / x.max(axis=0)
    variants = {
        "textbook": textbook,
        "epsilon": partial(textbook, epsilon=1e-7),
        "stableloss": sl.sigmoid_bce.value_and_grad,
    }
    runs = {label: train(label, function, x, y) for label, function in variants.items()}
    print(f"\n{'':10} {'exact loss':>10} {'held-out':>9} {'NaN/inf':>8} {'stalled':>8} {'time':>8}")
    for label, (params, nonfinite, stalled, seconds) in runs.items():
        loss = sl.sigmoid_bce(forward(params, x)[1], y)
        accuracy = np.mean((forward(params, x_test)[1] > 0) == y_test)
        print(f"{label:10} {loss:10.4g} {accuracy:9.1%} {nonfinite:8} {stalled:8} {seconds:6.3f} s")
    print("stalled: entries of dJ/dz that are exactly 0 although y_hat is on the wrong side of 1/2")


if __name__ == "__main__":
    main()

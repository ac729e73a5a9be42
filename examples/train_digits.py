"""Train one network on handwritten digits three times; only the arithmetic of the loss differs.

The network is a multilayer perceptron in plain numpy, the data are scikit-learn's. The three runs
start from the same weights and see the same mini-batches at the same learning rates:

textbook     the output activation gives y_hat, the cost gives dJ/dy_hat, and the activation's
             Jacobian turns that into delta_L = dJ/dz_L;
epsilon      the same, with y_hat clipped to [1e-7, 1 - 1e-7] inside the cost, as is usual;
stableloss   loss and delta_L in one call, from the logits z_L.

All three are the same formula on paper. In float32 a confident prediction rounds to y_hat = 0, and
the textbook run divides 0 by 0. The epsilon run divides by 1e-7 instead, then multiplies by the
Jacobian's y_hat, which is far smaller: an example that is confidently wrong stops teaching. The
third run never divides by y_hat. (In float64 the default textbook run survives, the epsilon run
does not. Clipping in the Jacobian as well lets this network train, but the loss still cannot exceed
-ln 1e-7 = 16.1 nats, nor delta_L of a correct example fall below 1e-7.)

    python examples/train_digits.py
    python examples/train_digits.py --loss sigmoid_bce --figure bce.png
    python examples/train_digits.py --loss softmax_mse --activation relu --eta 0.3 --figure mse.png

The quadratic costs (softmax_mse, sigmoid_mse) have no division, and from scaled weights the three
runs agree. Their gradient contains the slope of the output activation and really does vanish where
that saturates, which no arithmetic repairs: --init normal makes all three runs fail.
"""

import argparse
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import stableloss as sl

DTYPE = np.float32
EPSILON = 1e-7

# ------------------------------------------------------------------------------------------------
# The textbook loss: output activation, cost, and the chain rule through y_hat
# ------------------------------------------------------------------------------------------------


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def softmax_backward(y_hat, dj_dy_hat):
    """Multiply dJ/dy_hat by the Jacobian diag(y_hat) - y_hat y_hat^T of each row."""
    return y_hat * (dj_dy_hat - (y_hat * dj_dy_hat).sum(axis=1, keepdims=True))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def sigmoid_backward(y_hat, dj_dy_hat):
    return y_hat * (1 - y_hat) * dj_dy_hat


def cross_entropy(y_hat, y):
    return -(y * np.log(y_hat)).sum(), -y / y_hat


def binary_cross_entropy(y_hat, y):
    cost = -(y * np.log(y_hat) + (1 - y) * np.log(1 - y_hat)).sum()
    return cost, (y_hat - y) / (y_hat * (1 - y_hat))


def quadratic(y_hat, y):
    return 0.5 * ((y_hat - y) ** 2).sum(), y_hat - y


TEXTBOOK = {
    "softmax_ce": (softmax, softmax_backward, cross_entropy),
    "sigmoid_bce": (sigmoid, sigmoid_backward, binary_cross_entropy),
    "softmax_mse": (softmax, softmax_backward, quadratic),
    "sigmoid_mse": (sigmoid, sigmoid_backward, quadratic),
}


def textbook_value_and_grad(loss_name, logits, y, epsilon=0.0):
    """Return J, averaged over the rows, and dJ/dz_L. With epsilon 0 the clip does nothing."""
    activation, activation_backward, cost = TEXTBOOK[loss_name]
    # The infinities and NaNs that arise here are what this run demonstrates; LossMeter counts them.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        y_hat = activation(logits)
        loss, dj_dy_hat = cost(np.clip(y_hat, epsilon, 1 - epsilon), y)
        delta = activation_backward(y_hat, dj_dy_hat)
    return loss / len(y), delta / len(y)


# ------------------------------------------------------------------------------------------------
# The same four losses from stableloss; "batchmean" averages over the rows, as above
# ------------------------------------------------------------------------------------------------

STABLELOSS = {
    "softmax_ce": sl.SoftmaxCE(reduction="batchmean"),
    "sigmoid_bce": sl.SigmoidBCE(reduction="batchmean"),
    "softmax_mse": sl.SoftmaxMSE(reduction="batchmean"),
    "sigmoid_mse": sl.SigmoidMSE(reduction="batchmean"),
}

# ------------------------------------------------------------------------------------------------
# The network
# ------------------------------------------------------------------------------------------------

# Hidden activations sigma and their derivatives sigma', both as functions of z.
HIDDEN = {
    "sigmoid": (sl.sigmoid, lambda z: sl.sigmoid(z) * sl.sigmoid(-z)),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: z > 0),
}

# Standard deviation of a layer's initial weights, from the number of its inputs.
INIT = {
    "normal": lambda n_in: 1.0,
    "scaled": lambda n_in: n_in**-0.5,
}


class Network:
    """Fully connected layers. An example is a row, so z_l = W_l a_{l-1} + b_l reads a @ W.T + b."""

    def __init__(self, sizes, activation, init, rng):
        self.sigma, self.sigma_prime = HIDDEN[activation]
        self.weights = [
            rng.normal(0, INIT[init](n_in), (n_out, n_in)).astype(DTYPE) for n_in, n_out in pairwise(sizes)
        ]
        self.biases = [np.zeros(n_out, DTYPE) for n_out in sizes[1:]]

    def forward(self, x):
        """Return the input and the weighted sum z of every layer; the last z are the logits."""
        inputs, sums = [], []
        a = x
        for w, b in zip(self.weights, self.biases, strict=True):
            inputs.append(a)
            sums.append(a @ w.T + b)
            a = self.sigma(sums[-1])
        return inputs, sums

    def logits(self, x):
        return self.forward(x)[1][-1]

    def backward(self, inputs, sums, delta):
        """Return (dJ/dW_l, dJ/db_l) of every layer, starting from delta = dJ/dz_L.

        delta carries the 1/m of the mean over m examples, so that the sums over the examples
        below are averages already.
        """
        grads = []
        for layer in reversed(range(len(sums))):
            grads.append((delta.T @ inputs[layer], delta.sum(axis=0)))
            if layer > 0:
                delta = (delta @ self.weights[layer]) * self.sigma_prime(sums[layer - 1])
        return grads[::-1]

    def update(self, grads, eta):
        for w, b, (dj_dw, dj_db) in zip(self.weights, self.biases, grads, strict=True):
            w -= eta * dj_dw
            b -= eta * dj_db


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------

# Learning rate of epoch i of N, counted from 0.
SCHEDULE = {
    "constant": lambda eta, i, n: eta,
    "linear": lambda eta, i, n: eta * (1 - i / (1 + n)),
}


class LossMeter:
    """Calls value_and_grad, times it, and counts what is wrong with the gradients it returns."""

    def __init__(self, value_and_grad, decide):
        self.value_and_grad = value_and_grad
        self.decide = decide
        self.seconds = 0.0
        self.entries = self.nonfinite = self.wrong = self.stalled = 0

    def delta(self, logits, y):
        start = time.perf_counter()
        _, delta = self.value_and_grad(logits, y)
        self.seconds += time.perf_counter() - start

        wrong = self.decide(logits) != y
        self.entries += delta.size
        self.nonfinite += np.count_nonzero(~np.isfinite(delta))
        self.wrong += np.count_nonzero(wrong)
        self.stalled += np.count_nonzero(wrong & (delta == 0))
        return delta


def decide_softmax(logits):
    """One-hot of the predicted class."""
    return logits.argmax(axis=1)[:, None] == np.arange(logits.shape[1])


def decide_sigmoid(logits):
    """1 where y_hat > 1/2."""
    return logits > 0


def accuracy(net, x, y):
    return np.mean(net.logits(x).argmax(axis=1) == y.argmax(axis=1))


def train(label, meter, args, x_train, x_test, y_train, y_test):
    """Train a fresh network; return (training loss, test accuracy), initially and by epoch."""
    rng = np.random.default_rng(args.seed)
    sizes = [x_train.shape[1], *args.hidden, y_train.shape[1]]
    net = Network(sizes, args.activation, args.init, rng)

    # Whatever the training used, its progress is measured by the exact loss, so that runs compare.
    def evaluate():
        exact_loss = STABLELOSS[args.loss](net.logits(x_train), y_train)
        return exact_loss, accuracy(net, x_test, y_test)

    history = [evaluate()]
    progress = tqdm(range(args.epochs), desc=f"{label:10}", unit="epoch")
    for i in progress:
        eta = SCHEDULE[args.schedule](args.eta, i, args.epochs)
        order = rng.permutation(len(x_train))
        for start in range(0, len(order), args.batch_size):
            batch = order[start : start + args.batch_size]
            inputs, sums = net.forward(x_train[batch])
            delta = meter.delta(sums[-1], y_train[batch])
            net.update(net.backward(inputs, sums, delta), eta)
        history.append(evaluate())
        progress.set_postfix(loss=f"{history[-1][0]:.3g}", accuracy=f"{history[-1][1]:.1%}")
    return np.array(history)


# ------------------------------------------------------------------------------------------------
# Report
# ------------------------------------------------------------------------------------------------


def print_table(args, meters, histories):
    print(
        f"\n{args.loss}, hidden layers {args.hidden} {args.activation}, {args.init} weights, "
        f"eta {args.eta:g} {args.schedule}, {args.epochs} epochs, seed {args.seed}\n"
    )
    print(f"{'':10} {'final loss':>11} {'accuracy':>9} {'NaN or inf':>18} {'stalled':>16} {'time':>8}")
    for label, meter in meters.items():
        loss, acc = histories[label][-1]
        nonfinite = f"{meter.nonfinite} of {meter.entries}"
        stalled = f"{meter.stalled} of {meter.wrong}"
        print(f"{label:10} {loss:11.4g} {acc:9.1%} {nonfinite:>18} {stalled:>16} {meter.seconds:6.3f} s")
    print(
        "\nfinal loss  mean over the training set, computed by stableloss for all three"
        "\naccuracy    on the held-out quarter of the digits"
        "\nNaN or inf  entries of delta_L that are not finite, of all entries of all batches"
        "\nstalled     entries of delta_L that are exactly 0 where the output is wrong, of all such"
        "\n            (softmax: target and predicted class of a wrongly classified row;"
        "\n            sigmoid: y_hat on the wrong side of 1/2)"
        "\ntime        spent computing loss and delta_L"
    )


# Colours that colour-blind readers can tell apart; the dashes keep coinciding curves visible.
STYLES = {
    "textbook": {"color": "#d55e00", "linewidth": 2.5, "linestyle": (0, (1, 3)), "zorder": 4},
    "epsilon": {"color": "#0072b2", "linewidth": 2.5, "linestyle": (0, (5, 3)), "zorder": 3},
    "stableloss": {"color": "#009e73", "linewidth": 2.5},
}


def save_figure(path, args, histories):
    """Draw training loss and held-out accuracy by epoch; a cross marks the last finite loss."""
    figure = Figure(figsize=(10, 4.6), dpi=150, facecolor="white", layout="constrained")
    figure.suptitle(f"{args.loss} on handwritten digits, {args.init} initial weights, {DTYPE.__name__}")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for label, history in histories.items():
        loss, acc = history.T
        style = STYLES[label]
        loss_axes.plot(loss, label=label, **style)
        accuracy_axes.plot(100 * acc, label=label, **style)
        if np.isnan(loss[-1]):
            last = np.flatnonzero(np.isfinite(loss))[-1]
            cross = {"marker": "X", "markersize": 11, "linestyle": "", "color": style["color"]}
            name = f"{label} turns NaN in epoch {last + 1}"
            loss_axes.plot(last, loss[last], label=name, zorder=5, **cross)

    unit = " (nats)" if args.loss in ("softmax_ce", "sigmoid_bce") else ""
    loss_axes.set(yscale="log", ylabel=f"mean training loss{unit}")
    accuracy_axes.set(ylim=(0, 102), ylabel="held-out accuracy (%)")
    for axes in (loss_axes, accuracy_axes):
        axes.set_xlabel("training time (epochs)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#dddddd")
        axes.legend(handlelength=3)
    figure.savefig(path)


def parse_args():
    parser = argparse.ArgumentParser(
        description="Train one network on digits with three implementations of one loss."
    )
    add = parser.add_argument
    add("--loss", choices=STABLELOSS, default="softmax_ce")
    add("--hidden", type=int, nargs="*", default=[256], help="sizes of the hidden layers")
    add("--activation", choices=HIDDEN, default="sigmoid", help="activation of the hidden layers")
    add("--init", choices=INIT, help="weights N(0, 1) or N(0, 1/n_in); scaled for quadratic costs")
    add("--schedule", choices=SCHEDULE, default="linear", help="eta, or eta * (1 - i / (1 + N))")
    add("--epochs", type=int, default=20, help="passes over the training set, N")
    add("--eta", type=float, help="initial learning rate (3, or 0.5 for quadratic costs)")
    add("--batch-size", type=int, default=10, help="examples per update")
    add("--seed", type=int, default=0, help="seed of the split, the weights and the batches")
    add("--figure", type=Path, default=Path(__file__).with_name("digits.png"))
    args = parser.parse_args()

    quadratic_cost = args.loss.endswith("_mse")
    if args.init is None:
        args.init = "scaled" if quadratic_cost else "normal"
    if args.eta is None:
        args.eta = 0.5 if quadratic_cost else 3.0
    return args


def main():
    args = parse_args()
    pixels, digits = load_digits(return_X_y=True)
    x = (pixels / pixels.max()).astype(DTYPE)
    y = np.eye(10, dtype=DTYPE)[digits]
    data = train_test_split(x, y, test_size=0.25, random_state=args.seed, stratify=digits)

    variants = {
        "textbook": partial(textbook_value_and_grad, args.loss),
        "epsilon": partial(textbook_value_and_grad, args.loss, epsilon=EPSILON),
        "stableloss": STABLELOSS[args.loss].value_and_grad,
    }
    decide = decide_softmax if args.loss.startswith("softmax") else decide_sigmoid
    meters = {label: LossMeter(function, decide) for label, function in variants.items()}
    histories = {label: train(label, meter, args, *data) for label, meter in meters.items()}

    print_table(args, meters, histories)
    save_figure(args.figure, args, histories)
    print(f"\ntraining curves in {args.figure}")


if __name__ == "__main__":
    main()

"""Draws the relative error of loss and true-class gradient against the margin of a prediction.

    python bench/accuracy.py

The margin is the lead of the true class over the strongest other class, for softmax + cross-entropy
over ten classes. The exact value is computed with mpmath from the very logits that every library
receives. Libraries that are not installed are left out. Writes bench/results/accuracy.png.
"""

import importlib.util
import os
import warnings
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import mpmath
import numpy as np

import stableloss

RESULTS = Path(__file__).resolve().parent / "results"
CLASSES = 10
ROWS_PER_MARGIN = 8
MARGINS = np.concatenate([[0], np.geomspace(0.25, 800, 120)])
# Enough for 1 + exp(-800), which needs 350 digits, with 50 to spare.
mpmath.mp.dps = 400


def logits_for(dtype):
    """Random rows whose true class, 0, leads by each margin in turn; shape (margins * rows, k)."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((len(MARGINS), ROWS_PER_MARGIN, CLASSES))
    logits[..., 0] = logits[..., 1:].max(axis=-1) + MARGINS[:, None]
    return logits.reshape(-1, CLASSES).astype(dtype)


def exact(logits):
    """Loss and true-class gradient of every row: log1p(rest) and -rest / (1 + rest)."""
    losses, grads = [], []
    for row in logits.tolist():
        target = mpmath.mpf(row[0])
        rest = mpmath.fsum(mpmath.exp(mpmath.mpf(logit) - target) for logit in row[1:])
        losses.append(mpmath.log1p(rest))
        grads.append(-rest / (1 + rest))
    return losses, grads


def run_stableloss(logits, targets):
    loss = stableloss.SoftmaxCE(reduction="none")
    losses, grad = loss.value_and_grad(logits, targets)
    return losses, grad[:, 0]


def run_textbook(logits, targets):
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = exps / exps.sum(axis=1, keepdims=True)
    return -np.log(probs[:, 0]), probs[:, 0] - 1


def run_scipy(logits, targets):
    from scipy import special

    return -special.log_softmax(logits, axis=1)[:, 0], special.softmax(logits, axis=1)[:, 0] - 1


def run_scikit_learn(logits, targets):
    from sklearn._loss import HalfMultinomialLoss

    loss = HalfMultinomialLoss(n_classes=CLASSES)
    losses, grad = loss.loss_gradient(targets.astype(logits.dtype), logits)
    return losses, grad[:, 0]


def run_torch(logits, targets):
    import torch

    x = torch.from_numpy(logits).requires_grad_()
    losses = torch.nn.functional.cross_entropy(x, torch.from_numpy(targets), reduction="none")
    losses.sum().backward()
    return losses.detach().numpy(), x.grad[:, 0].numpy()


def run_jax(logits, targets):
    import jax

    jax.config.update("jax_enable_x64", True)

    def losses_of(x):
        return jax.nn.logsumexp(x, axis=1) - x[:, 0]

    grad = jax.grad(lambda x: losses_of(x).sum())(logits)
    return np.asarray(losses_of(jax.numpy.asarray(logits))), np.asarray(grad)[:, 0]


# Name in the legend, package it needs, function, colour (Okabe-Ito), dash pattern, width. The wide
# and solid lines come first, so that equal curves show through each other.
LINES = (
    ("textbook formula", "numpy", run_textbook, "#000000", "-", 5.0),
    ("scipy", "scipy", run_scipy, "#56B4E9", "-", 3.6),
    ("scikit-learn", "sklearn", run_scikit_learn, "#009E73", (0, (6, 2)), 2.4),
    ("torch", "torch", run_torch, "#CC79A7", (0, (3, 2)), 2.0),
    ("JAX", "jax", run_jax, "#E69F00", (0, (1, 1.5)), 2.0),
    ("stableloss", "stableloss", run_stableloss, "#D55E00", "-", 2.2),
)


def relative_error(computed, expected):
    """Worst relative error of the rows of each margin; a result of exactly 0 has the error 1."""
    errors = [
        float(abs(mpmath.mpf(float(got)) - want) / abs(want)) if np.isfinite(got) else 1.0
        for got, want in zip(computed, expected, strict=True)
    ]
    return np.reshape(errors, (len(MARGINS), ROWS_PER_MARGIN)).max(axis=1)


def draw(axis, dtype, name, curves):
    eps = float(np.finfo(dtype).eps)
    underflow = -float(np.log(np.finfo(dtype).tiny))
    for (label, _, _, colour, dashes, width), errors in curves:
        # An error of 0 has no place on a logarithmic axis.
        shown = np.maximum(errors, eps / 16)
        axis.plot(MARGINS, shown, label=label, color=colour, linestyle=dashes, linewidth=width)
    axis.axvspan(underflow, MARGINS[-1], color="#eeeeee", zorder=0)
    axis.axhline(4 * eps, color="#888888", linewidth=0.8, linestyle=":")
    axis.annotate("4 eps", (0, 4 * eps), xytext=(2, 2), textcoords="offset points", fontsize=8)
    axis.annotate(
        "beyond: exact result\nbelow the smallest\nnormal number",
        (underflow, eps**0.75),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8,
    )
    axis.set_xscale("symlog", linthresh=1, linscale=0.4)
    axis.set_xticks([0, 1, 10, 100, 800], ["0", "1", "10", "100", "800"])
    axis.set(yscale="log", ylim=(eps / 32, 4), xlim=(0, 800), facecolor="white")
    axis.set_title(f"{name}, {dtype}")
    axis.set_xlabel("margin of the true class (difference of logits)")
    axis.set_ylabel("relative error (result 0: error 1)")
    axis.minorticks_off()
    axis.grid(which="major", color="#dddddd", linewidth=0.6)


def main():
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained", facecolor="white")
    lines = [line for line in LINES if importlib.util.find_spec(line[1])]
    for column, dtype in enumerate(("float32", "float64")):
        logits = logits_for(dtype)
        targets = np.zeros(len(logits), np.int64)
        expected = exact(logits)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            computed = [line[2](logits, targets) for line in lines]
        for row, name in enumerate(("loss", "gradient of the true class")):
            errors = [relative_error(results[row], expected[row]) for results in computed]
            draw(axes[row, column], dtype, name, list(zip(lines, errors, strict=True)))
            for line, values in zip(lines, errors, strict=True):
                lost = MARGINS[np.argmax(values > 0.01)] if (values > 0.01).any() else np.inf
                print(f"{dtype} {name}: {line[0]} is off by 1 % from a margin of {lost:.3g} on")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handlelength=3.5)
    figure.suptitle(
        f"softmax + cross-entropy, {CLASSES} classes, true class ahead by the margin; "
        f"worst of {ROWS_PER_MARGIN} rows"
    )
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "accuracy.png", dpi=130, facecolor="white")


if __name__ == "__main__":
    main()

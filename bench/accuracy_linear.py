"""Draws the error of the gradients of a linear layer against the margin of its predictions.

    python bench/accuracy_linear.py

The layer is followed by softmax + cross-entropy, and its inputs are float32. The margin is the lead of the
true class over the strongest other class. The error is that of a row of the gradient by the hidden values, or
of a class of the gradient by the weight that is some row's target, relative to its length; the
median is drawn. The truth is computed in float64 from the very inputs that every library receives. Libraries
that are not installed are left out. Writes bench/results/accuracy_linear.png.
"""

import harness  # before numpy  # isort: skip

import importlib.util

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import stableloss

ROWS, FEATURES, CLASSES = 256, 256, 16384
MARGINS = np.arange(0, 41, 2.5)
HEAD = stableloss.LinearLoss(stableloss.softmax_ce, max_memory=8 << 20)


def layer_for(margins):
    """Inputs of a layer for each margin, which comes from adding to each row the weight of its target."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((CLASSES, FEATURES))
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    targets = rng.permutation(CLASSES)[:ROWS]
    hidden = rng.standard_normal((ROWS, FEATURES))
    base, along = hidden @ weight.T, weight[targets] @ weight.T
    rows, added = np.arange(ROWS), np.zeros(ROWS)
    for margin in margins:
        # The margin is concave and piecewise linear in what is added, so that Newton's method ends.
        short = np.ones(ROWS)
        while np.abs(short).max() > 1e-6:
            logits = base + added[:, None] * along
            logits[rows, targets] = -np.inf
            second = logits.argmax(axis=1)
            short = margin - (base[rows, targets] + added - logits[rows, second])
            added += short / (1 - along[rows, second])
        shifted = hidden + added[:, None] * weight[targets]
        yield margin, (shifted.astype(np.float32), weight.astype(np.float32), targets)


def exact(hidden, weight, targets):
    hidden, weight = hidden.astype(np.float64), weight.astype(np.float64)
    _, grad = stableloss.softmax_ce.value_and_grad(hidden @ weight.T, targets)
    return grad @ weight, grad.T @ hidden


def run_stableloss(hidden, weight, targets):
    grads = HEAD.value_and_grad(hidden, weight, targets)[1]
    return grads.hidden, grads.weight


def run_textbook(hidden, weight, targets):
    logits = hidden @ weight.T
    grad = np.exp(logits - logits.max(axis=1, keepdims=True))
    grad /= grad.sum(axis=1, keepdims=True)
    grad[np.arange(len(grad)), targets] -= 1
    grad /= np.float32(len(grad))
    return grad @ weight, grad.T @ hidden


def torch_gradients(hidden, weight, targets, loss_of):
    import torch

    arrays = [torch.from_numpy(array).requires_grad_() for array in (hidden, weight)]
    return [grad.numpy() for grad in torch.autograd.grad(loss_of(*arrays, torch.from_numpy(targets)), arrays)]


def run_torch(hidden, weight, targets):
    from torch.nn import functional

    return torch_gradients(hidden, weight, targets, lambda h, w, y: functional.cross_entropy(h @ w.T, y))


def run_torch_chunked(hidden, weight, targets):
    import torch
    from torch.nn import functional

    options = torch.nn.LinearCrossEntropyOptions()
    return torch_gradients(
        hidden, weight, targets, lambda h, w, y: functional.linear_cross_entropy(h, w, y, options=options)
    )


def run_jax(hidden, weight, targets):
    import jax

    def loss_of(h, w):
        logits = h @ w.T
        return (jax.nn.logsumexp(logits, axis=1) - logits[np.arange(len(targets)), targets]).mean()

    return [np.asarray(grad) for grad in jax.jit(jax.grad(loss_of, argnums=(0, 1)))(hidden, weight)]


def available(module):
    name, _, attribute = module.partition(":")
    found = importlib.util.find_spec(name) is not None
    return found and (not attribute or hasattr(importlib.import_module(name), attribute))


# Name in the legend, what it needs, function, colour (Okabe-Ito), dash pattern, width. The wide and solid
# lines come first, so that equal curves show through each other.
LINES = (
    ("textbook formula", "numpy", run_textbook, "#000000", "-", 5.0),
    ("torch", "torch", run_torch, "#CC79A7", "-", 3.0),
    (
        "torch linear_cross_entropy",
        "torch.nn.functional:linear_cross_entropy",
        run_torch_chunked,
        "#0072B2",
        (0, (3, 2)),
        2.2,
    ),
    ("JAX", "jax", run_jax, "#E69F00", (0, (1, 1.5)), 2.0),
    ("stableloss", "stableloss", run_stableloss, "#D55E00", "-", 2.2),
)
PANELS = ("gradient by the hidden values, by row", "gradient by the weight, by class that is a target")


def median_error(got, want):
    """Of the rows, relative to their length; a row of zeros has the error 1."""
    error = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    return float(np.median(error))


def draw(axis, title, curves):
    for (label, _, _, colour, dashes, width), errors in curves:
        axis.plot(MARGINS, errors, label=label, color=colour, linestyle=dashes, linewidth=width)
    axis.axhline(1e-5, color="#888888", linewidth=0.8, linestyle=":")
    axis.set(yscale="log", ylim=(1e-8, 10), xlim=(0, MARGINS[-1]), title=title, facecolor="white")
    axis.set_xlabel("margin of the true class (difference of logits)")
    axis.set_ylabel("median relative error")
    axis.grid(which="major", color="#dddddd", linewidth=0.6)
    axis.minorticks_off()


def main():
    harness.use_cpus(harness.THREADS)
    lines = [line for line in LINES if available(line[1])]
    errors = {line[0]: ([], []) for line in lines}
    for margin, layer in layer_for(MARGINS):
        expected = exact(*layer)
        for name, _, run, *_ in lines:
            for kept, places, got, want in zip(
                errors[name], (slice(None), layer[2]), run(*layer), expected, strict=True
            ):
                kept.append(median_error(got[places], want[places]))
            print(f"margin {margin:4.1f}, {name}: " + ", ".join(f"{kept[-1]:.2g}" for kept in errors[name]))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", facecolor="white")
    for i, (axis, title) in enumerate(zip(axes, PANELS, strict=True)):
        draw(axis, title, [(line, errors[line[0]][i]) for line in lines])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handlelength=3.5)
    figure.suptitle(
        f"linear layer with softmax + cross-entropy, float32: {ROWS} rows, {FEATURES} features, "
        f"{CLASSES} classes"
    )
    figure.savefig(harness.RESULTS / "accuracy_linear.png", dpi=130, facecolor="white")


if __name__ == "__main__":
    main()

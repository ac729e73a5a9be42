"""Times the adapters' calls against the textbook forms that they replace.

    python bench/adapters.py            measure, and write the table in bench/NOTES.md
    python bench/adapters.py --quick    a few rounds; nothing is written

Both sides interleaved in one process, in float64, at the sizes that the courses train with; the times are
medians. What a network has at hand is given to both: its weighted input z, its output a, its targets y.
"""

import harness  # before numpy  # isort: skip

import argparse
import platform
import statistics
from pathlib import Path

import numpy as np

import stableloss
from stableloss.adapters import columns, cs231n, nielsen, nnfs

HEAD = ("| call | size | textbook, µs | adapter, µs | textbook ÷ adapter |", "|---|---|--:|--:|--:|")


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z, axis):
    exps = np.exp(z - np.max(z, axis=axis, keepdims=True))
    return exps / np.sum(exps, axis=axis, keepdims=True)


def case(shape, classes=None):
    """Weighted inputs, and targets: 0 and 1, or class indices for the rows."""
    rng = np.random.default_rng(0)
    z = 2 * rng.standard_normal(shape)
    return z, rng.integers(0, 2, shape) if classes is None else rng.integers(0, classes, shape[:-1])


# ---- the calls of each course, textbook form first ------------------------------------------------


def of_nielsen():
    z, y = case((10, 1))
    a = sigmoid(z)

    def cross_entropy():
        return np.sum(np.nan_to_num(-y * np.log(a) - (1 - y) * np.log(1 - a)))

    def quadratic_delta():
        s = sigmoid(z)
        return (a - y) * s * (1 - s)

    cross, quadratic = nielsen.CrossEntropyCost, nielsen.QuadraticCost
    yield "`nielsen` CrossEntropyCost.fn", z, cross_entropy, lambda: cross.fn(a, y)
    yield "`nielsen` CrossEntropyCost.delta", z, lambda: a - y, lambda: cross.delta(z, a, y)
    yield (
        "`nielsen` QuadraticCost.fn", z, lambda: 0.5 * np.linalg.norm(a - y) ** 2, lambda: quadratic.fn(a, y),
    )  # fmt: skip
    yield "`nielsen` QuadraticCost.delta", z, quadratic_delta, lambda: quadratic.delta(z, a, y)


def of_cs231n():
    def softmax_loss(x, y):
        rows = np.arange(len(x))
        shifted = x - np.max(x, axis=1, keepdims=True)
        total = np.sum(np.exp(shifted), axis=1, keepdims=True)
        log_probs = shifted - np.log(total)
        dx = np.exp(log_probs)
        dx[rows, y] -= 1
        return -np.mean(log_probs[rows, y]), dx / len(x)

    def temporal_softmax_loss(x, y, mask):
        n, t, v = x.shape
        flat, labels, counts = x.reshape(n * t, v), y.reshape(-1), mask.reshape(-1)
        rows = np.arange(n * t)
        probs = softmax(flat, 1)
        loss = -np.sum(counts * np.log(probs[rows, labels])) / n
        probs[rows, labels] -= 1
        return loss, (probs * counts[:, None] / n).reshape(n, t, v)

    x, y = case((100, 10), 10)
    yield "`cs231n` softmax_loss", x, lambda: softmax_loss(x, y), lambda: cs231n.softmax_loss(x, y)
    words, captions = case((25, 16, 1000), 1000)
    mask = np.arange(16) < np.arange(25)[:, None] % 16
    yield (
        "`cs231n` temporal_softmax_loss", words, lambda: temporal_softmax_loss(words, captions, mask),
        lambda: cs231n.temporal_softmax_loss(words, captions, mask),
    )  # fmt: skip


def of_nnfs():
    def categorical(x, y):
        rows = np.arange(len(x))
        output = softmax(x, 1)
        loss = np.mean(-np.log(np.clip(output, 1e-7, 1 - 1e-7)[rows, y]))
        dinputs = output.copy()
        dinputs[rows, y] -= 1
        return loss, dinputs / len(x)

    def binary(x, y):
        output = sigmoid(x)
        clipped = np.clip(output, 1e-7, 1 - 1e-7)
        loss = np.mean(-(y * np.log(clipped) + (1 - y) * np.log(1 - clipped)))
        dvalues = -(y / clipped - (1 - y) / (1 - clipped)) / x.size
        return loss, dvalues * (1 - output) * output

    def both_ways(layer, x, y):
        loss = layer.forward(x, y)
        layer.backward(layer.output, y)
        return loss, layer.dinputs

    x, y = case((300, 3), 3)
    of_softmax = nnfs.Activation_Softmax_Loss_CategoricalCrossentropy()
    yield (
        "`nnfs` softmax, forward and backward", x, lambda: categorical(x, y),
        lambda: both_ways(of_softmax, x, y),
    )  # fmt: skip
    z, t = case((200, 1))
    of_sigmoid = nnfs.Activation_Sigmoid_Loss_BinaryCrossentropy()
    yield (
        "`nnfs` sigmoid, forward and backward", z, lambda: binary(z, t), lambda: both_ways(of_sigmoid, z, t),
    )  # fmt: skip


def of_columns():
    def through_output(z, y):
        a = sigmoid(z)
        cost = -np.sum(y * np.log(a) + (1 - y) * np.log(1 - a)) / y.shape[1]
        da = -(np.divide(y, a) - np.divide(1 - y, 1 - a))
        return cost, da * a * (1 - a)

    def one_hot(z, y):
        a = softmax(z, 0)
        return -np.sum(y * np.log(a)) / y.shape[1], a - y

    z, y = case((1, 200))
    yield "`columns` sigmoid_cost", z, lambda: through_output(z, y), lambda: columns.sigmoid_cost(z, y)
    wide = case((10, 64))[0]
    hot = np.eye(10)[np.arange(64) % 10].T
    yield "`columns` softmax_cost", wide, lambda: one_hot(wide, hot), lambda: columns.softmax_cost(wide, hot)


# ---- the table ------------------------------------------------------------------------------------


def require_agreement(name, textbook, adapter):
    """That both give the same numbers, where neither rounds them away."""
    for expected, got in zip(*(map(np.atleast_1d, side) for side in (textbook, adapter)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-12, err_msg=name)


def pair(result):
    return result if isinstance(result, tuple) else (result,)


def lines(quick):
    for course in (of_nielsen, of_cs231n, of_nnfs, of_columns):
        for name, logits, textbook, adapter in course():
            require_agreement(name, pair(textbook()), pair(adapter()))
            before, after = harness.compare([textbook, adapter], quick)
            ratio = statistics.median(harness.ratios(before, after))
            size = "x".join(map(str, logits.shape))
            yield f"| {name} | {size} | {before.median * 1e6:.2f} | {after.median * 1e6:.2f} | {ratio:.2f} |"


def table(quick):
    where = (
        f"{harness.cpu_model()}, CPU level `{stableloss.cpu_level()}`, one thread, Python "
        f"{platform.python_version()}, numpy {np.__version__}."
    )
    return "\n".join([where, "", *HEAD, *lines(quick)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, no file")
    quick = parser.parse_args().quick
    harness.use_cpus(1)
    measured = table(quick)
    if not quick:
        harness.rewrite_part(Path(__file__).with_name("NOTES.md"), "adapters", measured)
    print(measured)


if __name__ == "__main__":
    main()

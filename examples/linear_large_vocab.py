"""A language model over every word of scikit-learn's source, whose logits would not fit beside it.

The log-bilinear model: the two words before, each by a vector of its own, give the hidden values, and a linear
layer the logits of the next word. `LinearLoss` takes that layer and the cross-entropy in one call, in a few MiB of
logits at a time.
"""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import sklearn
from tqdm import tqdm

import stableloss as sl

CONTEXT, FEATURES, BATCH, STEPS, RATE = 2, 64, 2048, 150, 0.2

files = sorted(Path(sklearn.__file__).parent.rglob("*.py"))
text = "\n".join(path.read_text(encoding="utf-8") for path in files)
words, codes, counts = np.unique(
    re.findall(r"[A-Za-z]+|\d|[^\w\s]|\n", text), return_inverse=True, return_counts=True
)
held_out = range(len(codes) - 4 * BATCH, len(codes))
print(f"{len(codes):,} words of {len(files)} files, {len(words):,} of them different")

rng = np.random.default_rng(0)
vectors = rng.normal(0, 0.1, (CONTEXT, len(words), FEATURES)).astype(np.float32)
weight = rng.normal(0, 0.1, (len(words), FEATURES)).astype(np.float32)
bias = np.log(counts / counts.sum()).astype(np.float32)
squares = [np.full_like(array, 1e-6) for array in (vectors, weight, bias)]
out = sl.LinearGrads(np.empty((BATCH, FEATURES), np.float32), np.empty_like(weight), np.empty_like(bias))
head = sl.LinearLoss(sl.softmax_ce, max_memory=16 << 20)


def context_of(places):
    return [codes[places - 1 - i] for i in range(CONTEXT)]


def hidden_of(places):
    return sum(vectors[i, before] for i, before in enumerate(context_of(places)))


def perplexity():
    places = np.asarray(held_out)
    return np.exp(head(hidden_of(places), weight, codes[places], bias))


def descend(array, square, grad, rows=slice(None)):
    """Adagrad, of the rows that have a gradient."""
    square[rows] += grad * grad
    array[rows] -= RATE * grad / np.sqrt(square[rows])


def all_logits(hidden, targets):
    """The same, by way of the logits."""
    logits = hidden @ weight.T
    logits += bias
    loss, grad = sl.softmax_ce.value_and_grad(logits, targets, out=logits)
    return loss, sl.LinearGrads(grad @ weight, grad.T @ hidden, grad.sum(axis=0))


def peak_memory(function, *arguments):
    """What a call takes at most, its results included."""
    tracemalloc.start()
    function(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return f"{peak / 2**20:.0f} MiB"


batch = rng.integers(CONTEXT, held_out.start, BATCH)
arguments = hidden_of(batch), weight, codes[batch], bias
print(f"a step takes {peak_memory(head.value_and_grad, *arguments)},", end=" ")
print(f"with all the logits {peak_memory(all_logits, arguments[0], codes[batch])}")

print(f"perplexity {perplexity():.0f} before training (that of the words' frequencies)")
for _ in (progress := tqdm(range(STEPS), unit="step")):
    batch = rng.integers(CONTEXT, held_out.start, BATCH)
    loss, grads = head.value_and_grad(hidden_of(batch), weight, codes[batch], bias, out=out)
    for i, before in enumerate(context_of(batch)):
        rows, inverse = np.unique(before, return_inverse=True)
        grad = np.zeros((len(rows), FEATURES), np.float32)
        np.add.at(grad, inverse, grads.hidden)
        descend(vectors[i], squares[0][i], grad, rows)
    descend(weight, squares[1], grads.weight)
    descend(bias, squares[2], grads.bias)
    progress.set_postfix(loss=f"{loss:.3f}")
print(f"perplexity {perplexity():.0f} after it, on {len(held_out)} words that were held out")

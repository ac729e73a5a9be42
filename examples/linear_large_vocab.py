"""A language model over every word of scikit-learn's source, without the logits of its last layer.

The log-bilinear model: the two words before, each by a vector of its own, give the hidden values, and a
linear layer with softmax the next word. `LinearLoss` is that layer and its loss, in a few MiB of logits.
"""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import sklearn
from tqdm import tqdm

import stableloss as sl

CONTEXT, FEATURES, BATCH, STEPS, RATE = 2, 32, 1024, 100, 0.2

files = sorted(Path(sklearn.__file__).parent.rglob("*.py"))
text = "\n".join(path.read_text(encoding="utf-8") for path in files)
words, codes, counts = np.unique(re.findall(r"\w+|[^\w\s]|\n", text), return_inverse=True, return_counts=True)
n_train = len(codes) - 8 * BATCH
print(f"{len(codes):,} words of {len(files)} files, {len(words):,} of them different")

rng = np.random.default_rng(0)
vectors = rng.normal(0, 0.1, (CONTEXT, len(words), FEATURES)).astype(np.float32)
weight = rng.normal(0, 0.1, (len(words), FEATURES)).astype(np.float32)
bias = np.log(counts / counts.sum()).astype(np.float32)
squares = [np.full_like(array, 1e-6) for array in (vectors, weight, bias)]
out = sl.LinearGrads(*map(np.empty_like, (vectors[0, :BATCH], weight, bias)))
head = sl.LinearLoss(sl.softmax_ce, max_memory=8 << 20)


def context_of(places):
    return [codes[places - 1 - i] for i in range(CONTEXT)]


def hidden_of(places):
    return sum(vectors[i, before] for i, before in enumerate(context_of(places)))


def perplexity():
    places = np.arange(n_train, len(codes))
    return np.exp(head(hidden_of(places), weight, codes[places], bias))


def descend(array, square, grad, rows=slice(None)):
    """Adagrad, of the rows that have a gradient."""
    square[rows] += grad * grad
    array[rows] -= RATE * grad / np.sqrt(square[rows])


def by_way_of_all_logits(hidden, targets):
    logits = hidden @ weight.T
    logits += bias
    loss, grad = sl.softmax_ce.value_and_grad(logits, targets, out=logits)
    return loss, sl.LinearGrads(grad @ weight, grad.T @ hidden, grad.sum(axis=0))


def peak_memory(call):
    """MiB that a call takes at most, its results among them."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


batch = rng.integers(CONTEXT, n_train, BATCH)
hidden, targets = hidden_of(batch), codes[batch]
ours = peak_memory(lambda: head.value_and_grad(hidden, weight, targets, bias))
naive = peak_memory(lambda: by_way_of_all_logits(hidden, targets))
print(
    f"memory of a step: {ours:.0f} MiB, of which gradients {sum(g.nbytes for g in out) / 2**20:.0f} MiB;",
    end=" ",
)
print(f"by way of all logits {naive:.0f} MiB")

print(f"perplexity {perplexity():.0f} by the frequencies of words")
for _ in (progress := tqdm(range(STEPS), unit="step")):
    batch = rng.integers(CONTEXT, n_train, BATCH)
    loss, grads = head.value_and_grad(hidden_of(batch), weight, codes[batch], bias, out=out)
    for i, before in enumerate(context_of(batch)):
        rows, inverse = np.unique(before, return_inverse=True)
        grad = np.zeros((len(rows), FEATURES), np.float32)
        np.add.at(grad, inverse, grads.hidden)
        descend(vectors[i], squares[0][i], grad, rows)
    descend(weight, squares[1], grads.weight)
    descend(bias, squares[2], grads.bias)
    progress.set_postfix(loss=f"{loss:.3f}")
print(f"perplexity {perplexity():.0f} by the model, on {len(codes) - n_train:,} words that it has not seen")

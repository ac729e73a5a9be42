"""Multinomial logistic regression on more data than the process may have in memory, with Dask.

The digits of scikit-learn, many times over with noise, lie in a Dask array that is made chunk by chunk when
it is read. `DaskLoss` gives the loss over all of it, and its gradient by the logits in the same chunks; the
chain rule goes on in Dask. The process sets itself a limit below the size of the array.
"""

import resource
import sys

import dask
import dask.array as da
import numpy as np
from dask.diagnostics import ProgressBar
from sklearn.datasets import load_digits

import stableloss as sl
from stableloss.adapters.dask import DaskLoss

COPIES, CHUNK, STEPS, RATE = 2000, 8192, 3, 2.5
MIB = 1 << 20

digits = load_digits()
pixels = (digits.data / 16).astype(np.float32)
k, features = 10, pixels.shape[1] + 1
n = COPIES * len(pixels)


def examples(block_info=None):
    """A chunk of images, each with a 1 for the bias, and its labels as one more column."""
    start, stop = block_info[None]["array-location"][0]
    rng = np.random.default_rng(start)
    source = np.arange(start, stop) % len(pixels)
    images = np.ones((stop - start, features + 1), np.float32)
    noise = rng.standard_normal((stop - start, features - 1), dtype=np.float32)
    images[:, : features - 1] = pixels[source] + 0.3 * noise
    images[:, -1] = digits.target[source]
    return images


chunks = (CHUNK, features + 1)
table = da.map_blocks(examples, chunks=da.core.normalize_chunks(chunks, (n, features + 1)), dtype=np.float32)
images, labels = table[:, :features], table[:, -1].astype(np.int64)

# The limit is on addresses, of which threads and their memory for matrix products reserve some 300 MiB.
if sys.platform.startswith("linux"):
    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    limit = present + table.nbytes * 6 // 10
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    print(
        f"{n:,} images, {table.nbytes / MIB:.0f} MiB, with {(limit - present) / MIB:.0f} MiB of memory left"
    )

loss = DaskLoss(sl.softmax_ce)
weight = np.zeros((features, k), np.float32)
with dask.config.set(scheduler="threads", num_workers=2):
    for step in range(STEPS):
        # every row counts, once: where the divisor is known, no chunk waits for the labels of the others
        value, grad = loss.value_and_grad(images @ weight, labels, denominator=n)
        with ProgressBar():
            value, slope = dask.compute(value, images.T @ grad)
        weight -= RATE * slope
        print(f"step {step}: loss {value:.4f}")

    right = (da.argmax(images @ weight, axis=1) == labels).mean()
    print(f"{right.compute():.1%} right")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(f"resident at most {peak / MIB:.0f} MiB")

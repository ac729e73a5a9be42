"""A softmax over 131,072 classes in the ranks of MPI, as in a language model whose last layer is split.

    mpiexec -n 4 python mpi_vocab_parallel.py

Each rank has the weight of its share of the classes, and makes the logits of these alone. What the ranks
exchange are row maxima, a few sums per row, and in the end the gradient of the layer's inputs. Loss and
gradient have the bits of one process with all the classes, which the first rank computes to compare.
Without mpiexec it is one rank.
"""

import numpy as np
from mpi4py import MPI

import stableloss as sl
from stableloss.adapters.mpi import ClassParallel

ROWS, FEATURES, CLASSES = 64, 32, 131072

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()
# cut where the kernels' own sums are
first, stop = (CLASSES // 2048 * i // size * 2048 for i in (rank, rank + 1))

rng = np.random.default_rng(0)
hidden = rng.standard_normal((ROWS, FEATURES), dtype=np.float32)
targets = rng.integers(0, CLASSES, ROWS)


def weight_of(first, stop):
    """Some classes of the layer, the same numbers whoever makes them."""
    stretches = [
        np.random.default_rng(i).standard_normal((2048, FEATURES), dtype=np.float32)
        for i in range(first // 2048, stop // 2048)
    ]
    return np.concatenate(stretches) if stretches else np.zeros((0, FEATURES), np.float32)


def logits_of(weight):
    # by stretches of one size: a product's bits may depend on its shape
    logits = np.empty((ROWS, len(weight)), np.float32)
    for start in range(0, len(weight), 2048):
        np.matmul(hidden, weight[start : start + 2048].T, out=logits[:, start : start + 2048])
    return logits


weight = weight_of(first, stop)
logits = logits_of(weight)
loss, grad = ClassParallel(sl.softmax_ce, comm).value_and_grad(logits, targets, first, CLASSES, out=logits)
hidden_grad = np.empty_like(hidden)
comm.Allreduce(grad @ weight, hidden_grad)  # the delta of the layer below; grad.T @ hidden stays on its rank

shares = comm.gather(grad, root=0)
if rank == 0:
    everything = logits_of(weight_of(0, CLASSES))
    print(f"{size} ranks, {ROWS} rows, {CLASSES:,} classes: {everything.nbytes / 2**20:.0f} MiB of logits")
    print(f"loss {loss:.6f}")
    expected, whole = sl.softmax_ce.value_and_grad(everything, targets)
    same = loss == expected and np.array_equal(np.concatenate(shares, axis=1), whole)
    print("the bits of one process" if same else "NOT the bits of one process")
    comm.bcast(same, root=0)
else:
    same = comm.bcast(None, root=0)
raise SystemExit(0 if same else 1)

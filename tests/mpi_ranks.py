"""What each rank does in tests/test_adapters_mpi.py: ranks agree with one process that has everything."""

import sys

import numpy as np
from cases import assert_same_bits
from mpi4py import MPI

import stableloss as sl
from stableloss.adapters.mpi import ClassParallel, RowParallel

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.Get_rank(), COMM.Get_size()


def own(n, cuts=None):
    cuts = [n * i // SIZE for i in range(SIZE + 1)] if cuts is None else cuts
    return slice(cuts[RANK], cuts[RANK + 1])


def classes_in_shards():
    rng = np.random.default_rng(0)
    k = 2048 * SIZE
    logits, targets = (rng.normal(size=(6, k)) * 5).astype("f"), rng.integers(0, k, 6)
    logits[1, 3], logits[2, 5], logits[3] = np.nan, np.inf, -np.inf
    targets[4] = -100
    mine = own(k)
    for loss in (
        sl.SoftmaxCE(reduction="none"),
        sl.SoftmaxCE(class_weight=np.linspace(0, 1, k), reduction="none"),
    ):
        value, grad = loss.value_and_grad(logits, targets)
        got, got_grad = ClassParallel(loss, COMM).value_and_grad(logits[:, mine], targets, mine.start, k)
        assert_same_bits(got, value)
        assert_same_bits(got_grad, grad[:, mine])
    finite = logits[[0, 4, 5]].astype("d")
    for loss in (sl.softmax_ce, sl.softmax_mse, sl.SoftmaxCE(label_smoothing=0.1, z_loss=1e-3)):
        for t in (abs(targets[[0, 4, 5]]), rng.random((3, k))):
            value, grad = loss.value_and_grad(finite, t, sample_weight=[1, 2, 3])
            shard = t[:, mine] if t.ndim == 2 else t
            buffer = np.empty((3, k // SIZE))
            got, got_grad = ClassParallel(loss, COMM).value_and_grad(
                finite[:, mine], shard, mine.start, k, sample_weight=[1, 2, 3], out=buffer
            )
            assert got_grad is buffer
            np.testing.assert_allclose(got, value, rtol=1e-14)
            np.testing.assert_allclose(got_grad, grad[:, mine], rtol=1e-11, atol=1e-15)


def uneven_shards():
    """Some ranks with few classes or none, and ranks in another order than their classes."""
    logits, targets = np.random.default_rng(0).normal(size=(5, 7)), [0, 6, 3, 3, 2]
    value, grad = sl.softmax_ce.value_and_grad(logits, targets)
    cuts = sorted([0, 7, *[(3, 3, 5)[i % 3] for i in range(SIZE - 1)]])
    first, stop = cuts[SIZE - 1 - RANK], cuts[SIZE - RANK]
    got, got_grad = ClassParallel(sl.softmax_ce, COMM).value_and_grad(
        logits[:, first:stop], targets, first, 7
    )
    np.testing.assert_allclose(got, value, rtol=1e-14)
    np.testing.assert_allclose(got_grad, grad[:, first:stop], rtol=1e-14)
    empty = np.zeros((0, 7))
    value, grad = ClassParallel(sl.softmax_ce, COMM).value_and_grad(empty[:, first:stop], [], first, 7)
    assert value == 0
    assert grad.shape == (0, stop - first)


def rows_in_shards():
    rng = np.random.default_rng(1)
    logits, targets, weight = rng.normal(size=(9, 20)), rng.integers(0, 20, 9), rng.random(9)
    targets[2] = -100
    mine = own(9, [0] * SIZE + [9] if SIZE > 3 else None)
    for reduction in ("mean", "batchmean", "sum", "none"):
        for loss in (sl.SoftmaxCE(reduction=reduction), sl.SigmoidBCE(reduction=reduction)):
            t = targets if loss._rowwise else (logits > 1).astype("d")
            value, grad = loss.value_and_grad(logits, t, sample_weight=weight)
            got, got_grad = RowParallel(loss, COMM).value_and_grad(
                logits[mine], t[mine], sample_weight=weight[mine]
            )
            np.testing.assert_allclose(got, value[mine] if reduction == "none" else value, rtol=1e-15)
            assert_same_bits(got_grad, grad[mine])
    loss = RowParallel(sl.softmax_ce, COMM)
    assert loss.value_and_grad(logits[mine], np.full(9, -100)[mine])[0] == 0
    expected = sl.softmax_ce(logits, targets, denominator=7)
    assert np.isclose(
        loss.value_and_grad(logits[mine], targets[mine], denominator=7)[0], expected, rtol=1e-15
    )


def raised(call):
    try:
        call()
    except (ValueError, TypeError, RuntimeError) as error:
        return type(error).__name__, str(error)
    return None


def refusals():
    """Nobody waits for a rank whose arguments are refused."""
    logits, good, bad = np.zeros((2, 4)), [0, 1], [0, 99]
    last = RANK == SIZE - 1
    labels = bad if last else good
    k = 4 * SIZE
    shards, rows = ClassParallel(sl.softmax_ce, COMM), RowParallel(sl.softmax_ce, COMM)
    soft = -np.ones((2, 4)) if last else np.ones((2, 4))
    calls = [
        lambda: shards.value_and_grad(logits, labels, 4 * RANK, k),
        lambda: shards.value_and_grad(logits, soft, 4 * RANK, k),
        lambda: shards.value_and_grad(logits, good, 4 * RANK, k if not last else k - 1),
        lambda: shards.value_and_grad(logits, good, 4 * RANK, k, out=np.zeros(2) if last else None),
        lambda: rows.value_and_grad(logits, labels),
        lambda: rows.value_and_grad(logits, good, out=np.zeros(2) if last else None),
        lambda: RowParallel(sl.SoftmaxCE(reduction="none"), COMM).value_and_grad(logits, labels),
    ]
    for call in calls:
        kind, message = raised(call)
        if last:
            assert kind == "ValueError", message
        else:
            assert kind == "RuntimeError"
            assert message == f"the call was refused on rank {SIZE - 1}, which says why"
    n = 3 if last else 2
    if SIZE > 1:
        kind, message = raised(lambda: shards.value_and_grad(np.zeros((n, 4)), [0] * n, 4 * RANK, k))
        assert kind == "ValueError"
        assert message.startswith("ranks have 2, ")


for check in (classes_in_shards, uneven_shards, rows_in_shards, refusals):
    try:
        check()
    except BaseException as error:
        print(f"rank {RANK}, {check.__name__}: {error!r}", file=sys.stderr, flush=True)
        COMM.Abort(1)
        raise
COMM.Barrier()
print(f"rank {RANK} of {SIZE} agrees", flush=True)

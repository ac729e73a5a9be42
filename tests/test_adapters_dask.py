"""Losses of Dask arrays: on threads, processes and a cluster, what one call of the loss gives."""

import numpy as np
import pytest
from cases import assert_same_bits

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

import stableloss as sl  # noqa: E402
from stableloss.adapters.dask import DaskLoss  # noqa: E402

# that a port is taken is no fault of what is tested
pytestmark = pytest.mark.filterwarnings("default")

K = 5000


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def chunked(array, *chunks):
    return da.from_array(array, chunks=chunks)


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=2e-15)


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize("chunks", [(5, -1), (20, 2048), (7, 4096)])
def test_bits_of_one_call(rng, chunks, reduction, dtype):
    """By rows, by classes, or both; and lazily."""
    logits, targets = rng.normal(size=(20, K)).astype(dtype), rng.integers(0, K, 20)
    targets[3] = -100
    loss = sl.SoftmaxCE(reduction=reduction)
    value, grad = loss.value_and_grad(logits, targets)
    for given in (targets, chunked(targets, 3)):
        lazy = DaskLoss(loss).value_and_grad(chunked(logits, *chunks), given)
        assert all(isinstance(result, da.Array) for result in lazy)
        assert lazy[1].chunks == chunked(logits, *chunks).chunks
        got, got_grad = dask.compute(*lazy)
        assert_close(got, value)
        assert_same_bits(got_grad, grad)
        assert lazy[1].dtype == got_grad.dtype
        assert lazy[0].dtype == np.asarray(got).dtype
        assert_close(DaskLoss(loss)(chunked(logits, *chunks), given).compute(), value)


@pytest.mark.parametrize("scheduler", ["threads", "processes", "synchronous"])
def test_schedulers(rng, scheduler):
    logits, targets = rng.normal(size=(12, K)), rng.integers(0, K, 12)
    value, grad = sl.softmax_ce.value_and_grad(logits, targets)
    lazy = DaskLoss(sl.softmax_ce).value_and_grad(chunked(logits, 5, 2048), chunked(targets, 5))
    got, got_grad = dask.compute(*lazy, scheduler=scheduler, num_workers=2)
    assert_close(got, value)
    assert_same_bits(got_grad, grad)


LOSSES = {
    "smoothed, weighted": (sl.SoftmaxCE(label_smoothing=0.1, class_weight=np.arange(1, 31)), True),
    "focal": (sl.SoftmaxCE(focal_gamma=2.0), True),
    "probabilities": (sl.SoftmaxCE(from_probabilities=True), True),
    "quadratic": (sl.SoftmaxMSE(), True),
    "first axis": (sl.SoftmaxCE(axis=0), True),
    "sigmoid": (sl.SigmoidBCE(pos_weight=np.arange(1, 31)), False),
    "sigmoid, by row": (sl.SigmoidMSE(reduction="batchmean"), False),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_options(rng, name, soft, weighted):
    loss, rowwise = LOSSES[name]
    axis = getattr(loss, "axis", -1)
    shape = (30, 4, 6) if axis == 0 else (4, 6, 30)
    chunks = (11, 3, 2) if axis == 0 else (3, 2, 11)
    rows = (4, 6)
    logits = rng.random(shape)
    targets = rng.random(shape) if soft or not rowwise else rng.integers(0, 30, rows)
    options = {"sample_weight": rng.random(4), "mask": rng.random(rows) < 0.8} if weighted else {}
    if name == "focal" and soft:
        with pytest.raises(ValueError, match="needs the probability of every class"):
            DaskLoss(loss)(chunked(logits, *chunks), targets).compute()
        return
    value, grad = loss.value_and_grad(logits, targets, **options)
    lazy = {n: da.from_array(v, chunks=2) for n, v in options.items()}
    got, got_grad = dask.compute(*DaskLoss(loss).value_and_grad(chunked(logits, *chunks), targets, **lazy))
    np.testing.assert_allclose(got, value, rtol=1e-13)
    np.testing.assert_allclose(got_grad, grad, rtol=1e-11, atol=1e-16)
    assert_close(DaskLoss(loss)(chunked(logits, *chunks), targets, **lazy).compute(), got)


def test_denominator_and_nothing_that_counts(rng):
    logits, targets = rng.normal(size=(6, 8)), np.array([1, -100, 2, -100, -100, -100])
    x = chunked(logits, 2, 3)
    assert_close(
        DaskLoss(sl.softmax_ce)(x, targets, denominator=5).compute(),
        sl.softmax_ce(logits, targets, denominator=5),
    )
    value, grad = dask.compute(*DaskLoss(sl.softmax_ce).value_and_grad(x, np.full(6, -100)))
    assert value == 0
    assert not grad.any()
    with pytest.raises(ValueError, match="denominator replaces"):
        DaskLoss(sl.SoftmaxCE(reduction="sum"))(x, targets, denominator=5)


def test_nan_and_infinities(rng):
    logits = rng.normal(size=(6, 9))
    logits[0, 3], logits[1, 8], logits[2, :4], logits[3] = np.nan, np.inf, -np.inf, -np.inf
    loss, targets = sl.SoftmaxCE(reduction="none"), np.array([0, 8, 8, 0, 1, 2])
    value, grad = loss.value_and_grad(logits, targets)
    got, got_grad = dask.compute(*DaskLoss(loss).value_and_grad(chunked(logits, 4, 3), targets))
    np.testing.assert_allclose(got, value, rtol=1e-14)
    np.testing.assert_allclose(got_grad, grad, rtol=1e-14)


def test_rows_of_unknown_number(rng):
    """As from a data frame, or a filter."""
    logits, targets = rng.normal(size=(12, 6)), rng.integers(0, 6, 12)
    keep = rng.random(12) < 0.6
    value, grad = sl.softmax_ce.value_and_grad(logits[keep], targets[keep])
    mask = chunked(keep, 5)
    x, y = chunked(logits, 5, 6)[mask], chunked(targets, 5)[mask]
    got, got_grad = dask.compute(*DaskLoss(sl.softmax_ce).value_and_grad(x, y))
    assert_close(got, value)
    assert_same_bits(got_grad, grad)
    with pytest.raises(ValueError, match="call compute_chunk_sizes"):
        DaskLoss(sl.softmax_ce)(x, targets[keep])


@pytest.mark.parametrize("need", [("hidden", "weight", "bias"), ("weight",), ()])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", [sl.SoftmaxCE, sl.SigmoidBCE])
def test_linear_loss(rng, loss, reduction, need):
    hidden, weight = rng.normal(size=(4, 6, 8)).astype("f"), rng.normal(size=(8, 30)).astype("f").T
    targets = rng.integers(0, 30, (4, 6)) if loss is sl.SoftmaxCE else rng.integers(0, 2, (4, 6, 30))
    mask, bias = rng.random((4, 6)) < 0.7, rng.normal(size=30).astype("f")
    head = sl.LinearLoss(loss(reduction=reduction))
    value, grads = head.value_and_grad(hidden, weight, targets, bias, mask=mask, need=need)
    x = chunked(hidden, 2, 4, 3)
    for w in (weight, chunked(weight, 10, 4)):
        lazy = DaskLoss(head).value_and_grad(x, w, targets, bias, mask=mask, need=need)
        got, got_grads = dask.compute(*lazy)
        np.testing.assert_allclose(got, value, rtol=1e-6)
        for name in sl.LinearGrads._fields:
            a, b = getattr(got_grads, name), getattr(grads, name)
            if b is None:
                assert a is None
                continue
            assert getattr(lazy[1], name).dtype == a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)
    assert np.shape(DaskLoss(head)(x, weight, targets, mask=mask).compute()) == np.shape(value)


def test_refusals(rng):
    x = chunked(rng.normal(size=(6, 8)), 2, 3)
    with pytest.raises(TypeError, match="loss must be a loss object or a LinearLoss"):
        DaskLoss("softmax_ce")
    with pytest.raises(TypeError, match="takes logits and targets, not 1 arrays"):
        DaskLoss(sl.softmax_ce)(x)
    with pytest.raises(TypeError, match="takes hidden, weight, targets and bias, not 2"):
        DaskLoss(sl.LinearLoss(sl.softmax_ce))(x, x)
    with pytest.raises(ValueError, match=r"targets has shape \(5,\) where the chunked logits need \(6,\)"):
        DaskLoss(sl.softmax_ce)(x, np.zeros(5, int))
    with pytest.raises(ValueError, match="class index at 1 is 8"):
        DaskLoss(sl.softmax_ce)(x, np.array([0, 8, 0, 0, 0, 0])).compute(scheduler="synchronous")
    with pytest.raises(ValueError, match="have no axis 3"):
        DaskLoss(sl.SoftmaxCE(axis=3))(x, np.zeros(6, int))
    assert repr(DaskLoss(sl.softmax_ce)) == "DaskLoss(SoftmaxCE())"


# ---- a cluster: last, since whatever is computed while it has a client is computed there -----------


@pytest.fixture(scope="module")
def cluster():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.deployed
def test_cluster_of_two_processes(cluster, rng):
    logits, targets = rng.normal(size=(24, K)).astype("f"), rng.integers(0, K, 24)
    weight = rng.random(24)
    for loss in (sl.softmax_ce, sl.SoftmaxCE(label_smoothing=0.1), sl.softmax_mse):
        value, grad = loss.value_and_grad(logits, targets, sample_weight=weight)
        x = chunked(logits, 8, 2048).persist()
        distributed.wait(x)
        lazy = DaskLoss(loss).value_and_grad(x, targets, sample_weight=weight)
        got, got_grad = dask.compute(*lazy)
        np.testing.assert_allclose(
            got, value, rtol=1e-15 if loss != sl.SoftmaxCE(label_smoothing=0.1) else 1e-7
        )
        np.testing.assert_allclose(got_grad, grad, rtol=1e-6, atol=1e-9)
        if loss == sl.softmax_ce:
            assert_same_bits(got_grad, grad)
    used = cluster.run(lambda: "stableloss.adapters.dask" in __import__("sys").modules)
    assert len(used) == 2
    assert all(used.values())


@pytest.mark.deployed
def test_linear_loss_on_a_cluster(cluster, rng):
    hidden, weight = rng.normal(size=(30, 8)), rng.normal(size=(40, 8))
    targets, bias = rng.integers(0, 40, 30), rng.normal(size=40)
    head = sl.LinearLoss(sl.softmax_ce, max_memory=4096)
    value, grads = head.value_and_grad(hidden, weight, targets, bias)
    got, got_grads = dask.compute(
        *DaskLoss(head).value_and_grad(chunked(hidden, 7, 8), weight, targets, bias)
    )
    assert_close(got, value)
    for a, b in zip(got_grads, grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)

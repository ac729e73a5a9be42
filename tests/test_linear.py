"""LinearLoss: loss and gradients of a linear layer, against those by way of all the logits."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

import stableloss as sl
from stableloss import linear

N, D, K = 41, 7, 19
WEIGHTS = np.linspace(0, 2, K)
REDUCTIONS = ("mean", "sum", "batchmean", "none")
# a row at a time, several rows, everything at once
MEMORIES = (1, 3000, 1 << 27)

HARD = [
    sl.SoftmaxCE,
    sl.SoftmaxMSE,
    lambda **options: sl.SoftmaxCE(class_weight=WEIGHTS, **options),
    lambda **options: sl.SoftmaxCE(label_smoothing=0.1, class_weight=WEIGHTS, **options),
    lambda **options: sl.SoftmaxCE(focal_gamma=2.0, z_loss=1e-3, logit_scale=0.5, **options),
    lambda **options: sl.SoftmaxCE(softcap=3.0, logit_clip=2.0, ignore_index=4, **options),
    lambda **options: sl.SoftmaxCE(ignore_index=(4, -1, 2**60), **options),
]
SIGMOID = [
    sl.SigmoidBCE,
    sl.SigmoidMSE,
    lambda **options: sl.SigmoidBCE(class_weight=WEIGHTS, pos_weight=WEIGHTS + 1, **options),
    lambda **options: sl.SigmoidBCE(label_smoothing=0.1, focal_gamma=1.5, focal_alpha=0.25, **options),
    lambda **options: sl.SigmoidBCE(logit_scale=2.0, softcap=5.0, logit_clip=3.0, **options),
    lambda **options: sl.SigmoidBCE(ignore_index=7, focal_gamma=(0.0, 3.0), **options),
]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# in these the classes are too many to be taken by 4; that they are is checked in real chunks
LARGE = (
    "test_classes",
    "test_memory",
    "test_resident_memory",
    "test_keyboard",
    "test_confident",
    "test_same_bits",
    "test_errors",
)


def pytest_generate_tests(metafunc):
    ways = [False] if metafunc.function.__name__.startswith(LARGE) else [False, True]
    metafunc.parametrize("by_classes", ways, indirect=True, ids=["rows", "classes"][: len(ways)])


@pytest.fixture(autouse=True)
def by_classes(request, monkeypatch):
    """Where it can, a call takes the classes in chunks of 4 for 10 rows, if there is room for them."""
    if request.param:
        monkeypatch.setattr(linear, "PIECE", 4)
        monkeypatch.setattr(linear, "FEW_ROWS", 1 << 30)
        monkeypatch.setattr(linear, "MANY_ROWS", 10)
        monkeypatch.setattr(linear, "SPARE_BYTES", 0)
    return request.param


def layer(rng, n=N, d=D, k=K, dtype=np.float64):
    arrays = rng.standard_normal((n, d)), rng.standard_normal((k, d)), rng.standard_normal(k)
    return tuple(array.astype(dtype) for array in arrays)


def indices(rng, loss, shape=(N,)):
    """Class indices, of which some are ignored where the loss ignores one."""
    targets = rng.integers(0, K, shape)
    ignored = getattr(loss, "ignore_index", None)
    if ignored is not None:
        targets[rng.random(shape) < 0.2] = ignored[-1] if isinstance(ignored, tuple) else ignored
    return targets


def plain(array):
    return np.asarray(array, np.float64)


def reference(loss, hidden, weight, targets, bias=None, **options):
    """Loss and gradients by way of all the logits, in float64."""
    hidden, weight = plain(hidden), plain(weight)
    logits = hidden @ weight.T
    if bias is not None:
        logits += plain(bias)
    value, grad, *stats = loss.value_and_grad(logits, targets, **options)
    rows = grad.reshape(-1, grad.shape[-1])
    # a row that does not count is kept out of the sums, whatever it holds
    inputs = np.where((rows != 0).any(1, keepdims=True), hidden.reshape(len(rows), hidden.shape[-1]), 0)
    grads = sl.LinearGrads(grad @ weight, rows.T @ inputs, None if bias is None else rows.sum(0))
    return value, grads, *stats


def assert_close(result, expected, rtol=1e-11):
    """Loss, gradients and statistics agree, the gradients to so many digits of their largest entry."""
    np.testing.assert_allclose(result[0], expected[0], rtol=rtol, atol=rtol)
    for name, got, want in zip(sl.LinearGrads._fields, result[1], expected[1], strict=True):
        assert (got is None) == (want is None), name
        if want is not None:
            assert got.shape == want.shape
            scale = np.abs(want).max(initial=0)
            np.testing.assert_allclose(plain(got), want, rtol=0, atol=rtol * scale, err_msg=name)
    for got, want in zip(result[2:], expected[2:], strict=True):
        assert got.correct == want.correct
        assert got.probabilities is None
        np.testing.assert_array_equal(got.predicted, want.predicted)
        np.testing.assert_allclose(got.logsumexp, want.logsumexp, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(got.entropy, want.entropy, rtol=rtol, atol=rtol)


def assert_same_bits(result, expected):
    np.testing.assert_array_equal(result[0], expected[0])
    for got, want in zip(result[1], expected[1], strict=True):
        if want is not None:
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)


# ---- every option and reduction ------------------------------------------------------------------


@pytest.mark.parametrize("max_memory", MEMORIES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("make", HARD)
def test_class_indices(rng, by_classes, make, reduction, max_memory):
    loss = make(reduction=reduction)
    hidden, weight, bias = layer(rng)
    targets = indices(rng, loss)
    options = {"sample_weight": rng.integers(0, 4, N) / 2, "mask": rng.random(N) < 0.8}
    head = sl.LinearLoss(loss, max_memory)
    for chosen in ({}, options):
        for with_stats in (False, True):
            result = head.value_and_grad(hidden, weight, targets, bias, with_stats=with_stats, **chosen)
            assert_close(
                result, reference(loss, hidden, weight, targets, bias, with_stats=with_stats, **chosen)
            )
            alone = head(hidden, weight, targets, bias, with_stats=with_stats, **chosen)
            # without a tile for the weight's gradient there is room for other chunks
            rtol = 1e-14 if by_classes else 0
            np.testing.assert_allclose(alone[0] if with_stats else alone, result[0], rtol=rtol)


@pytest.mark.parametrize("max_memory", MEMORIES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("make", HARD)
def test_soft_targets(rng, make, reduction, max_memory):
    loss = make(reduction=reduction)
    hidden, weight, bias = layer(rng)
    targets = rng.random((N, K))
    options = {"sample_weight": rng.integers(0, 4, N) / 2, "mask": rng.random(N) < 0.8}
    targets[~options["mask"]] = np.nan
    head = sl.LinearLoss(loss, max_memory)
    result = head.value_and_grad(hidden, weight, targets, bias, with_stats=True, **options)
    assert_close(result, reference(loss, hidden, weight, targets, bias, with_stats=True, **options))


@pytest.mark.parametrize("by", ["rows", "elements"])
@pytest.mark.parametrize("max_memory", MEMORIES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("make", SIGMOID)
def test_sigmoid_losses(rng, by_classes, make, reduction, max_memory, by):
    """As for extreme multi-label classification: most labels 0, of some rows or elements nothing is known."""
    loss = make(reduction=reduction)
    hidden, weight, bias = layer(rng)
    targets = (rng.random((N, K)) < 0.1).astype(np.int8)
    shape = (N,) if by == "rows" else (N, K)
    mask = rng.random(shape) < 0.5
    mask[:5] = False
    sample_weight = rng.integers(0, 4, shape) / 2
    sample_weight[5:8] = 0
    targets[~mask] = 7
    options = {"sample_weight": sample_weight, "mask": mask}
    head = sl.LinearLoss(loss, max_memory)
    for with_stats in (False, True):
        result = head.value_and_grad(hidden, weight, targets, bias, with_stats=with_stats, **options)
        assert_close(result, reference(loss, hidden, weight, targets, bias, with_stats=with_stats, **options))
    value, stats = head(hidden, weight, targets, bias, with_stats=True, **options)
    np.testing.assert_allclose(value, result[0], rtol=1e-14 if by_classes else 0, atol=1e-300)
    assert stats.correct == result[2].correct


@pytest.mark.parametrize("max_memory", MEMORIES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("make", [sl.SoftmaxCE, sl.SigmoidBCE])
def test_signed_weights(rng, make, reduction, max_memory):
    """As a policy gradient has them; the total of some chunks is negative."""
    loss = make(reduction=reduction)
    hidden, weight, bias = layer(rng)
    targets = rng.random((N, K))
    options = {"sample_weight": np.where(np.arange(N) < 12, -1.5, 1.0)}
    result = sl.LinearLoss(loss, max_memory).value_and_grad(hidden, weight, targets, bias, **options)
    assert_close(result, reference(loss, hidden, weight, targets, bias, **options))


@pytest.mark.parametrize("max_memory", MEMORIES)
@pytest.mark.parametrize("soft", [False, True])
def test_weights_that_can_not_divide(rng, max_memory, soft):
    hidden, weight, bias = layer(rng)
    targets = rng.random((N, K)) if soft else rng.integers(0, K, N)
    for negative, total in ((1.5, -20.5), (1.0, 0.0)):
        options = {"sample_weight": np.where(np.arange(N) < N - 1, -negative, total + negative * (N - 1))}
        with pytest.raises(ValueError, match=r"which can not divide a mean: use reduction=\"sum\""):
            sl.LinearLoss(sl.softmax_ce, max_memory)(hidden, weight, targets, bias, **options)
        with pytest.raises(ValueError, match="denominator is 0"):
            sl.LinearLoss(sl.softmax_ce, max_memory)(hidden, weight, targets, bias, denominator=0, **options)
        options["denominator"] = 3.0
        result = sl.LinearLoss(sl.softmax_ce, max_memory).value_and_grad(
            hidden, weight, targets, bias, **options
        )
        assert_close(result, reference(sl.softmax_ce, hidden, weight, targets, bias, **options))


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e300, 8e306])
@pytest.mark.parametrize("max_memory", MEMORIES)
@pytest.mark.parametrize("soft", [False, True])
def test_weights_whose_sum_is_out_of_range(rng, soft, max_memory, scale):
    """Only their share of it matters."""
    hidden, weight, bias = layer(rng)
    targets = rng.random((N, K)) if soft else rng.integers(0, K, N)
    shares = rng.integers(1, 17, N)
    head = sl.LinearLoss(sl.softmax_ce, max_memory)
    expected = head.value_and_grad(hidden, weight, targets, bias, sample_weight=shares / 16)
    result = head.value_and_grad(hidden, weight, targets, bias, sample_weight=shares * scale)
    assert_close(result, expected, rtol=1e-3 if scale < 1e-308 else 1e-11)
    if not soft:
        classes = np.full(K, scale)
        head = sl.LinearLoss(sl.SoftmaxCE(class_weight=classes), max_memory)
        assert_close(head.value_and_grad(hidden, weight, targets, bias, sample_weight=shares), expected)


@pytest.mark.parametrize("max_memory", MEMORIES)
@pytest.mark.parametrize("loss", [sl.softmax_ce, sl.sigmoid_bce])
def test_weights_and_masks_of_whole_sequences(rng, loss, max_memory):
    """Their shape is the beginning of the rows', or a mask is of 0 and 1."""
    _, weight, bias = layer(rng)
    hidden, targets = rng.standard_normal((4, 3, 5, D)), rng.integers(0, K, (4, 3, 5))
    if loss is sl.sigmoid_bce:
        targets = rng.integers(0, 2, (4, 3, 5, K))
    head = sl.LinearLoss(loss, max_memory)
    for shape in ((4,), (4, 3)):
        options = {"sample_weight": rng.random(shape), "mask": (rng.random(shape) < 0.7).astype(int)}
        result = head.value_and_grad(hidden, weight, targets, bias, with_stats=True, **options)
        assert_close(result, reference(loss, hidden, weight, targets, bias, with_stats=True, **options))


@pytest.mark.parametrize("max_memory", MEMORIES)
@pytest.mark.parametrize("loss", [sl.softmax_ce, sl.sigmoid_bce])
def test_targets_that_rounding_has_carried_over_their_bound(rng, loss, max_memory):
    hidden, weight, bias = layer(rng)
    targets = rng.random((N, K)).astype(np.float32)
    targets[3:7, 2] = -(2**-22)
    targets[30, 1] = 1 + 2**-22
    result = sl.LinearLoss(loss, max_memory).value_and_grad(hidden, weight, targets, bias)
    assert_close(result, reference(loss, hidden, weight, targets, bias))
    targets[37, 5] = -1
    with pytest.raises(ValueError, match=r"target( probability)? at \(37, 5\) is -1.0"):
        sl.LinearLoss(loss, max_memory)(hidden, weight, targets, bias)


@pytest.mark.parametrize("loss", [sl.softmax_ce, sl.SoftmaxCE(reduction="none"), sl.sigmoid_bce])
def test_without_bias(rng, loss):
    hidden, weight, _ = layer(rng)
    targets = rng.integers(0, 2, (N, K)) if loss is sl.sigmoid_bce else indices(rng, loss)
    result = sl.LinearLoss(loss, 2000).value_and_grad(hidden, weight, targets)
    assert result[1].bias is None
    assert_close(result, reference(loss, hidden, weight, targets))


def test_loss_is_the_sum_rounded_once(rng):
    """Of chunks whose losses differ by more digits than float64 has."""
    hidden, weight = np.array([[1e17], [1.0], [1.0], [1.0], [1.0], [-1.0]]), np.array([[0.0], [-1.0]])
    loss = sl.SoftmaxMSE(reduction="sum")
    ce = sl.SoftmaxCE(reduction="sum")
    targets = [1, 0, 0, 0, 0, 1]
    for head in (sl.LinearLoss(ce, 1), sl.LinearLoss(loss, 1)):
        logits = hidden @ weight.T
        assert head(hidden, weight, targets) == head.loss(logits, targets)


# ---- dtypes --------------------------------------------------------------------------------------

DTYPES = ["float16", "bfloat16", "float32", "float64", "longdouble", "int8"]


def dtype_of(name):
    return getattr(pytest.importorskip("ml_dtypes"), name) if name == "bfloat16" else np.dtype(name)


@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, repeat=2)), ids="-".join)
def test_dtypes(rng, dtypes):
    hidden_dtype, weight_dtype = map(dtype_of, dtypes)
    hidden, weight, bias = layer(rng)
    hidden, weight = (2 * hidden).astype(hidden_dtype), (2 * weight).astype(weight_dtype)
    single = all(name in ("float16", "bfloat16", "float32") for name in dtypes)
    bias = bias.astype(weight_dtype)
    loss, targets = sl.softmax_ce, rng.integers(0, K, N)
    expected = reference(loss, hidden, weight, targets, bias)
    half = {"float16": 2**-10, "bfloat16": 2**-7}
    for max_memory in MEMORIES:
        value, grads = sl.LinearLoss(loss, max_memory).value_and_grad(hidden, weight, targets, bias)
        wide = {"int8": "float64", "longdouble": "float64"}
        assert grads.hidden.dtype == dtype_of(wide.get(dtypes[0], dtypes[0]))
        narrow = {"float16": "float32", "bfloat16": "float32"}
        assert grads.weight.dtype == grads.bias.dtype == (wide | narrow).get(dtypes[1], dtypes[1])
        np.testing.assert_allclose(value, expected[0], rtol=1e-6 if single else 1e-13)
        for name, got, want in zip(grads._fields, grads, expected[1], strict=True):
            precision = half.get(dtypes[0], 0) if name == "hidden" else 0
            precision = max(precision, 2e-6 if single or got.dtype == np.float32 else 1e-12)
            np.testing.assert_allclose(
                plain(got), want, rtol=0, atol=precision * np.abs(want).max(), err_msg=name
            )


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_weight_is_converted_by_tiles(rng, name):
    """As many classes as take several tiles; the result is that of the weight converted beforehand."""
    k, d = 5000, 300
    hidden, weight, bias = layer(rng, 8, d, k)
    weight, targets = (weight / 10).astype(dtype_of(name)), rng.integers(0, k, 8)
    head = sl.LinearLoss(sl.softmax_ce)
    hidden = hidden.astype(np.float32)
    value, grads = head.value_and_grad(hidden, weight, targets, bias.astype(np.float32))
    single = head.value_and_grad(hidden, weight.astype(np.float32), targets, bias.astype(np.float32))
    assert_close((value, grads), single, rtol=2e-6)


def test_half_precision_gradient_is_rounded_once(rng):
    hidden, weight, bias = layer(rng, dtype=np.float32)
    hidden = hidden.astype(np.float16)
    targets = rng.integers(0, K, N)
    head = sl.LinearLoss(sl.SoftmaxCE(reduction="sum"))
    grads = head.value_and_grad(hidden, weight, targets, bias)[1]
    single = head.value_and_grad(hidden.astype(np.float32), weight, targets, bias)[1]
    np.testing.assert_array_equal(grads.hidden, single.hidden.astype(np.float16))


def test_gradient_that_leaves_half_precision_overflows_quietly():
    hidden, weight = np.ones((1, 1), np.float16), np.array([[0.0], [1e6]], np.float32)
    with np.errstate(all="raise"):
        grads = sl.LinearLoss(sl.SoftmaxCE(reduction="sum")).value_and_grad(hidden, weight, [0])[1]
    assert grads.hidden == np.inf


# ---- layouts and shapes --------------------------------------------------------------------------


def spread(array):
    wide = np.zeros([2 * length for length in array.shape], array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "spread": spread,
    "reversed": lambda array: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    "part": lambda array: np.hstack([array, array])[:, : array.shape[1]],
    "misaligned": misaligned,
    "swapped": lambda array: array.astype(array.dtype.newbyteorder()),
    "read-only": read_only,
    "list": lambda array: array.tolist(),
}


@pytest.mark.parametrize("weight_layout", LAYOUTS)
@pytest.mark.parametrize("hidden_layout", LAYOUTS)
def test_layouts(rng, hidden_layout, weight_layout):
    hidden, weight, bias = layer(rng)
    targets = indices(rng, sl.softmax_ce)
    expected = reference(sl.softmax_ce, hidden, weight, targets, bias)
    for max_memory in MEMORIES:
        arguments = LAYOUTS[hidden_layout](hidden), LAYOUTS[weight_layout](weight), targets
        assert_close(sl.LinearLoss(sl.softmax_ce, max_memory).value_and_grad(*arguments, bias), expected)


@pytest.mark.parametrize("max_memory", MEMORIES)
def test_memory_order_of_gradients(rng, max_memory):
    """A textbook's (d, k) weight is passed as W.T, and gets its gradient as dW.T."""
    hidden, weight, bias = layer(rng)
    targets = rng.integers(0, K, N)
    head = sl.LinearLoss(sl.softmax_ce, max_memory)
    expected = head.value_and_grad(hidden, weight, targets, bias)
    assert expected[1].weight.flags.c_contiguous
    textbook = np.ascontiguousarray(weight.T)
    grads = head.value_and_grad(np.asfortranarray(hidden), textbook.T, targets, bias)[1]
    assert grads.weight.T.shape == (D, K)
    assert grads.weight.T.flags.c_contiguous
    assert grads.hidden.flags.f_contiguous
    assert_close((expected[0], grads), expected)
    into = np.empty((D, K))
    grads = head.value_and_grad(hidden, textbook.T, targets, bias, out=sl.LinearGrads(weight=into.T))[1]
    assert_close((expected[0], grads), expected)
    np.testing.assert_array_equal(into.T, grads.weight)


@pytest.mark.parametrize("layout", ["spread", "reversed", "part", "misaligned", "F"])
def test_layouts_of_out(rng, layout):
    hidden, weight, bias = layer(rng)
    targets = indices(rng, sl.softmax_ce)
    out = [LAYOUTS[layout](np.zeros((length, D))) for length in (N, K)]
    out = sl.LinearGrads(*out, spread(np.zeros(K)))
    for max_memory in MEMORIES:
        value, grads = sl.LinearLoss(sl.softmax_ce, max_memory).value_and_grad(
            hidden, weight, targets, bias, out=out
        )
        assert all(got is given for got, given in zip(grads, out, strict=True))
        assert_close((value, grads), reference(sl.softmax_ce, hidden, weight, targets, bias))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4), (2, 0, 3)])
@pytest.mark.parametrize("make", [sl.SoftmaxCE, sl.SigmoidBCE])
def test_leading_dimensions(rng, make, shape, reduction, turned):
    loss = make(reduction=reduction)
    _, weight, bias = layer(rng)

    def rows(array):
        """The array, or one of the same values whose rows are not evenly spaced in memory."""
        axes = (*range(len(shape))[::-1], *range(len(shape), np.ndim(array)))
        return np.ascontiguousarray(array.transpose(axes)).transpose(axes) if turned and shape else array

    hidden = rows(rng.standard_normal((*shape, D)))
    soft = make is sl.SigmoidBCE
    targets = rows(rng.random((*shape, K)) if soft else indices(rng, loss, shape))
    options = {"sample_weight": rows(rng.random(shape)), "mask": rows(rng.random(shape) < 0.7)}
    elements = {"sample_weight": rows(rng.random((*shape, K))), "mask": rows(rng.random((*shape, K)) < 0.7)}
    for max_memory in MEMORIES:
        for chosen in ({}, options, elements) if soft else ({}, options):
            head = sl.LinearLoss(loss, max_memory)
            result = head.value_and_grad(hidden, weight, targets, bias, with_stats=True, **chosen)
            expected = reference(loss, hidden, weight, targets, bias, with_stats=True, **chosen)
            assert np.shape(result[0]) == np.shape(expected[0])
            assert type(result[0]) is type(expected[0])
            assert_close(result, expected)


def test_no_features(rng):
    hidden, weight, bias = np.zeros((N, 0)), np.zeros((K, 0)), rng.standard_normal(K)
    targets = rng.integers(0, K, N)
    result = sl.LinearLoss(sl.softmax_ce, 1000).value_and_grad(hidden, weight, targets, bias)
    assert_close(result, reference(sl.softmax_ce, hidden, weight, targets, bias))


# ---- what does not count -------------------------------------------------------------------------


def ways_not_to_count():
    """Loss, targets and keywords of calls in which rows 3, 4 and 9 do not count, by name."""
    gone = np.isin(np.arange(N), (3, 4, 9))
    targets = np.arange(N) % (K - 1)
    one_label = np.zeros((N, K))
    weights = np.append(np.ones(K - 1), 0)
    everywhere = np.repeat(gone[:, None], K, 1)
    yield "mask", sl.softmax_ce, targets, {"mask": ~gone}
    yield "sample_weight", sl.softmax_ce, targets, {"sample_weight": 1.0 - gone}
    yield "ignore_index", sl.softmax_ce, np.where(gone, -100, targets), {}
    yield "class_weight", sl.SoftmaxCE(class_weight=weights), np.where(gone, K - 1, targets), {}
    yield "mse", sl.softmax_mse, targets, {"mask": ~gone}
    yield "soft", sl.softmax_ce, np.where(everywhere, np.nan, 1 / K), {"mask": ~gone}
    yield "labels", sl.sigmoid_bce, one_label, {"mask": ~gone}
    yield "elements", sl.sigmoid_bce, one_label, {"mask": ~everywhere}
    yield "element weights", sl.sigmoid_mse, one_label, {"sample_weight": 1.0 - everywhere}


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("max_memory", MEMORIES)
@pytest.mark.parametrize("case", list(ways_not_to_count()), ids=lambda case: case[0])
def test_rows_that_do_not_count_reach_nothing(rng, case, max_memory, poison):
    _, loss, targets, options = case
    hidden, weight, bias = layer(rng)
    head = sl.LinearLoss(loss, max_memory)
    clean, hidden = hidden, np.where(np.isin(np.arange(N), (3, 4, 9))[:, None], poison, hidden)
    for with_stats in (False, True):
        expected = head.value_and_grad(clean, weight, targets, bias, with_stats=with_stats, **options)
        with np.errstate(all="raise"):
            result = head.value_and_grad(hidden, weight, targets, bias, with_stats=with_stats, **options)
        assert_same_bits(result, expected)
        assert not result[1].hidden[[3, 4, 9]].any()
    with np.errstate(all="ignore"):
        logits = hidden @ weight.T + bias
    value, stats = loss(logits, targets, with_stats=True, **options)
    np.testing.assert_allclose(result[0], value, rtol=1e-12)
    assert result[2].correct == stats.correct
    for name in ("predicted", "logsumexp", "entropy"):
        np.testing.assert_allclose(getattr(result[2], name), getattr(stats, name), rtol=1e-12)


def test_class_weight_of_0_leaves_what_smoothing_adds(rng):
    """Such a row counts, though not for the divisor."""
    loss = sl.SoftmaxCE(class_weight=np.append(np.ones(K - 1), 0), label_smoothing=0.1)
    hidden, weight, bias = layer(rng)
    targets = np.where(np.arange(N) % 3, 2, K - 1)
    result = sl.LinearLoss(loss, 2000).value_and_grad(hidden, weight, targets, bias)
    assert_close(result, reference(loss, hidden, weight, targets, bias))
    assert result[1].hidden.any(1).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("with_stats", [False, True])
def test_nothing_counts(rng, reduction, with_stats):
    hidden, weight, bias = layer(rng)
    hidden[...] = np.nan
    out = sl.LinearGrads(np.ones((N, D)), np.ones((K, D)), np.ones(K))
    head = sl.LinearLoss(sl.SoftmaxCE(reduction=reduction))
    value, _, *stats = head.value_and_grad(
        hidden, weight, np.full(N, -100), bias, out=out, with_stats=with_stats
    )
    np.testing.assert_array_equal(value, np.zeros(N) if reduction == "none" else 0.0)
    assert not any(grad.any() for grad in out)
    for found in stats:
        assert found.correct == 0
        assert (found.predicted == -1).all()


def test_nan_in_a_row_that_counts(rng):
    """It stays in its row of the gradient by hidden, and is everywhere in those that add up rows."""
    hidden, weight, bias = layer(rng)
    hidden[5, 2] = np.nan
    value, grads = sl.LinearLoss(sl.softmax_ce, 2000).value_and_grad(
        hidden, weight, rng.integers(0, K, N), bias
    )
    assert np.isnan(value)
    assert np.isnan(grads.weight).all()
    assert np.isnan(grads.bias).all()
    assert np.isnan(grads.hidden[5]).all()
    assert not np.isnan(np.delete(grads.hidden, 5, 0)).any()


def test_disabled_classes(rng):
    hidden, weight, bias = layer(rng)
    bias[[2, 11]] = -np.inf
    targets = rng.permutation(np.resize(np.delete(np.arange(K), [2, 11]), N))
    value, grads = sl.LinearLoss(sl.softmax_ce, 2000).value_and_grad(hidden, weight, targets, bias)
    assert not grads.weight[[2, 11]].any()
    assert not grads.bias[[2, 11]].any()
    assert_close((value, grads), reference(sl.softmax_ce, hidden, weight, targets, bias))
    targets[7] = 2
    value, grads = sl.LinearLoss(sl.softmax_ce, 2000).value_and_grad(hidden, weight, targets, bias)
    assert value == np.inf
    assert all(np.isfinite(grad).all() for grad in grads)


# ---- denominators --------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_shards_of_the_rows_add_up(rng, reduction):
    """With the sum of the shards' divisors, a shard without a row that counts among them."""
    loss = sl.SoftmaxCE(reduction=reduction, class_weight=WEIGHTS)
    hidden, weight, bias = layer(rng)
    targets, sample_weight = indices(rng, loss), rng.random(N)
    targets[20:30] = -100
    shards = [slice(0, 20), slice(20, 30), slice(30, N)]
    head = sl.LinearLoss(loss, 2000)
    divisors = [
        loss.divisor((*targets[rows].shape, K), targets[rows], sample_weight=sample_weight[rows])
        for rows in shards
    ]
    assert divisors[1] == 0
    parts = [
        head.value_and_grad(
            hidden[rows],
            weight,
            targets[rows],
            bias,
            sample_weight=sample_weight[rows],
            denominator=sum(divisors),
        )
        for rows in shards
    ]
    grads = sl.LinearGrads(
        np.concatenate([grads.hidden for _, grads in parts]),
        sum(grads.weight for _, grads in parts),
        sum(grads.bias for _, grads in parts),
    )
    expected = reference(loss, hidden, weight, targets, bias, sample_weight=sample_weight)
    assert_close((sum(value for value, _ in parts), grads), expected)


def test_denominator_of_0(rng):
    hidden, weight, bias = layer(rng)
    head = sl.LinearLoss(sl.softmax_ce)
    value, grads = head.value_and_grad(hidden, weight, np.full(N, -100), bias, denominator=0)
    assert value == 0
    assert not any(grad.any() for grad in grads)
    with pytest.raises(ValueError, match=r"denominator is 0, not a positive .* but the divisor here is 41"):
        head(hidden, weight, np.zeros(N, int), bias, denominator=0)


# ---- what is needed, and where it goes -----------------------------------------------------------


@pytest.mark.parametrize("max_memory", MEMORIES)
def test_need(rng, max_memory):
    hidden, weight, bias = layer(rng)
    targets = indices(rng, sl.softmax_ce)
    head = sl.LinearLoss(sl.softmax_ce, max_memory)
    every = head.value_and_grad(hidden, weight, targets, bias)
    for size in range(4):
        for need in itertools.combinations(sl.LinearGrads._fields, size):
            value, grads = head.value_and_grad(hidden, weight, targets, bias, need=need)
            assert value == every[0]
            for name in sl.LinearGrads._fields:
                if name in need:
                    np.testing.assert_allclose(
                        getattr(grads, name), getattr(every[1], name), rtol=1e-11, atol=1e-13
                    )
                else:
                    assert getattr(grads, name) is None
    assert head.value_and_grad(hidden, weight, targets, need=("bias",))[1] == (None, None, None)


@pytest.mark.parametrize("max_memory", MEMORIES)
def test_out(rng, max_memory):
    hidden, weight, bias = layer(rng)
    targets = indices(rng, sl.softmax_ce)
    head = sl.LinearLoss(sl.softmax_ce, max_memory)
    expected = head.value_and_grad(hidden, weight, targets, bias)
    out = sl.LinearGrads(*(np.full_like(array, np.nan) for array in (hidden, weight, bias)))
    value, grads = head.value_and_grad(hidden, weight, targets, bias, out=out)
    assert all(got is given for got, given in zip(grads, out, strict=True))
    assert_same_bits((value, grads), expected)
    partial = head.value_and_grad(hidden, weight, targets, bias, out=(None, out.weight, None))
    assert partial[1].weight is out.weight
    assert_same_bits(partial, expected)


@pytest.mark.parametrize("max_memory", MEMORIES)
@pytest.mark.parametrize("layout", ["C", "F", "spread", "reversed"])
def test_hidden_is_overwritten_in_place(rng, layout, max_memory):
    hidden, weight, bias = layer(rng)
    hidden = LAYOUTS[layout](hidden)
    targets = indices(rng, sl.softmax_ce)
    head = sl.LinearLoss(sl.softmax_ce, max_memory)
    expected = head.value_and_grad(hidden, weight, targets, bias)
    value, grads = head.value_and_grad(hidden, weight, targets, bias, out=sl.LinearGrads(hidden=hidden))
    assert grads.hidden is hidden
    assert_same_bits((value, grads), expected)


def test_out_of_the_dtype_computed_in(rng):
    hidden, weight, bias = (array.astype(np.float16) for array in layer(rng))
    targets = rng.integers(0, K, N)
    head = sl.LinearLoss(sl.softmax_ce, 1000)
    expected = head.value_and_grad(hidden, weight, targets, bias)
    out = sl.LinearGrads(hidden=np.empty((N, D), np.float32))
    grads = head.value_and_grad(hidden, weight, targets, bias, out=out)[1]
    np.testing.assert_array_equal(grads.hidden.astype(np.float16), expected[1].hidden)
    assert (grads.hidden != expected[1].hidden).any()
    double = np.zeros((K, D))
    grads = head.value_and_grad(hidden.astype(np.float64), weight, targets, bias, out=(None, double, None))[1]
    assert grads.weight is double
    np.testing.assert_allclose(double, expected[1].weight, rtol=1e-3, atol=1e-5)


def test_gradients_interleaved_in_one_buffer(rng):
    """Neighbours in memory that share none, such as a weight and a bias in one array of parameters."""
    hidden, weight, bias = layer(rng)
    targets = rng.integers(0, K, N)
    parameters, gradient = np.column_stack([weight, bias]), np.zeros((K, D + 1))
    head = sl.LinearLoss(sl.softmax_ce, 1000)
    head.value_and_grad(
        hidden,
        parameters[:, :D],
        targets,
        parameters[:, D],
        out=sl.LinearGrads(weight=gradient[:, :D], bias=gradient[:, D]),
    )
    expected = reference(sl.softmax_ce, hidden, weight, targets, bias)[1]
    np.testing.assert_allclose(
        gradient, np.column_stack([expected.weight, expected.bias]), rtol=1e-10, atol=1e-13
    )


# ---- errors --------------------------------------------------------------------------------------

ERRORS = {
    "hidden is text": ({"hidden": [["a"] * D] * N}, TypeError, "hidden must hold real numbers"),
    "weight is complex": (
        {"weight": np.zeros((K, D), complex)},
        TypeError,
        "weight must hold real .* complex128",
    ),
    "bias is an object": ({"bias": [None] * K}, TypeError, "bias must hold real numbers, not dtype object"),
    "masked array": ({"hidden": np.ma.masked_array(np.zeros((N, D)))}, TypeError, "hidden is a masked array"),
    "weight of one dimension": ({"weight": np.zeros(D)}, ValueError, r"weight has shape \(7,\), not"),
    "weight turned": (
        {"weight": np.zeros((D, K)), "hidden": np.zeros((N, D))},
        ValueError,
        r"hidden has shape \(41, 7\) where weight of shape \(7, 19\) needs \(..., 19\); pass weight.T",
    ),
    "hidden of no dimension": ({"hidden": 1.0}, ValueError, r"hidden has shape \(\)"),
    "bias too long": (
        {"bias": np.zeros(K + 1)},
        ValueError,
        r"bias has shape \(20,\) where .* needs \(19,\)",
    ),
    "bias of two dimensions": ({"bias": np.zeros((1, K))}, ValueError, r"bias has shape \(1, 19\)"),
    "targets too short": (
        {"targets": np.zeros(N - 1, int)},
        ValueError,
        r"targets \(class indices\) has shape \(40,\) where logits of shape \(41, 19\) need \(41,\)",
    ),
    "target out of range": (
        {"targets": np.full(N, K)},
        ValueError,
        r"class index at 0 is 19, not a whole number from 0 to 18 \(19 classes\)",
    ),
    "weights too short": (
        {"sample_weight": np.ones(3)},
        ValueError,
        r"sample_weight has shape \(3,\) where logits of shape \(41, 19\) need \(41,\)",
    ),
    "NaN weight": ({"sample_weight": np.full(N, np.nan)}, ValueError, "sample_weight at 0 is nan"),
    "mask of other numbers": ({"mask": np.full(N, 2)}, ValueError, "mask at 0 is 2, not 0 or 1"),
    "mask of text": ({"mask": ["yes"] * N}, TypeError, "mask must be bool"),
    "mask too short": ({"mask": np.ones(3, bool)}, ValueError, r"mask has shape \(3,\)"),
    "negative denominator": ({"denominator": -1.0}, ValueError, "denominator is -1.0"),
    "denominator is text": ({"denominator": "3"}, TypeError, "denominator must be a number, not '3'"),
    "unknown need": (
        {"need": ("hidden", "w")},
        ValueError,
        "need has 'w', which is not one of hidden, weight, bias",
    ),
    "out is an array": ({"out": np.zeros((N, D))}, TypeError, "out must be LinearGrads.*, not ndarray"),
    "out of two": ({"out": (None, None)}, TypeError, "out must be LinearGrads"),
}


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS)
def test_errors_come_before_anything_is_written(rng, case):
    changed, kind, message = case
    hidden, weight, bias = layer(rng)
    arguments = {"hidden": hidden, "weight": weight, "targets": rng.integers(0, K, N), "bias": bias}
    out = sl.LinearGrads(*(np.full_like(array, 7) for array in (hidden, weight, bias)))
    head = sl.LinearLoss(sl.softmax_ce, 2000)
    with pytest.raises(kind, match=message):
        head.value_and_grad(**{**arguments, "out": out, **changed})
    assert all((array == 7).all() for array in out)
    if not {"need", "out"} & set(changed):
        with pytest.raises(kind, match=message):
            head(**{**arguments, **changed})


OUT_ERRORS = {
    "list": (
        lambda a: {"weight": a.weight.tolist()},
        TypeError,
        "out.weight must be a numpy array, not list",
    ),
    "dtype": (lambda a: {"bias": a.bias.astype("f4")}, TypeError, "out.bias has dtype <f4 where .* has <f8"),
    "shape": (lambda a: {"weight": a.weight.T.copy()}, ValueError, r"out.weight has shape \(7, 19\)"),
    "read-only": (lambda a: {"hidden": read_only(a.hidden)}, ValueError, "out.hidden is read-only"),
    "masked": (lambda a: {"hidden": np.ma.array(a.hidden)}, TypeError, "out.hidden is a masked array"),
    "weight": (lambda a: {"weight": a.weight}, ValueError, "out.weight shares memory with weight"),
    "bias": (lambda a: {"bias": a.bias}, ValueError, "out.bias shares memory with bias"),
    "turned": (lambda a: {"hidden": a.hidden[::-1]}, ValueError, "out.hidden shares memory with hidden"),
    "targets": (lambda a: {"bias": a.hidden[:, 0][:K]}, ValueError, "out.bias shares memory with hidden"),
    "one another": (
        lambda a: {"hidden": (both := np.full((N + K - 1, D), 7.0))[:N], "weight": both[N - 1 :]},
        ValueError,
        "out.weight shares memory with out.hidden",
    ),
}


@pytest.mark.parametrize("case", OUT_ERRORS.values(), ids=OUT_ERRORS)
def test_errors_of_out(rng, case):
    make, kind, message = case
    arrays = sl.LinearGrads(*layer(rng))
    copies = sl.LinearGrads(*(array.copy() for array in arrays))
    untouched = {name: np.full_like(array, 7) for name, array in arrays._asdict().items()}
    changed = make(arrays)
    out = untouched | changed
    with pytest.raises(kind, match=message):
        sl.LinearLoss(sl.softmax_ce).value_and_grad(
            arrays.hidden, arrays.weight, np.zeros(N, int), arrays.bias, out=sl.LinearGrads(**out)
        )
    for name, array in copies._asdict().items():
        np.testing.assert_array_equal(getattr(arrays, name), array)
        assert name in changed or (out[name] == 7).all()


def test_out_that_is_not_needed(rng):
    hidden, weight, bias = layer(rng)
    head, targets = sl.LinearLoss(sl.softmax_ce), np.zeros(N, int)
    out = sl.LinearGrads(bias=np.zeros(K))
    with pytest.raises(ValueError, match=r"out.bias is given, but there is no bias"):
        head.value_and_grad(hidden, weight, targets, out=out)
    with pytest.raises(ValueError, match=r"out.bias is given, but need leaves it out"):
        head.value_and_grad(hidden, weight, targets, bias, need=("weight",), out=out)


def test_errors_of_options():
    with pytest.raises(TypeError, match="loss must be a loss object, such as softmax_ce, not 'ce'"):
        sl.LinearLoss("ce")
    with pytest.raises(TypeError, match="loss must be a loss object"):
        sl.LinearLoss(sl.SoftmaxCE)
    with pytest.raises(ValueError, match=r"SoftmaxCE\(axis=1\) has not its classes on the last axis"):
        sl.LinearLoss(sl.SoftmaxCE(axis=1))
    with pytest.raises(ValueError, match=r"from_probabilities=True\) takes probabilities"):
        sl.LinearLoss(sl.SigmoidBCE(from_probabilities=True))
    for memory, kind in ((0, ValueError), (-1, ValueError), (1.5, TypeError), ("1 GB", TypeError)):
        with pytest.raises(kind, match="max_memory"):
            sl.LinearLoss(sl.softmax_ce, memory)


# ---- the object ----------------------------------------------------------------------------------


def test_object():
    head = sl.LinearLoss(sl.SoftmaxCE(label_smoothing=0.1), max_memory=1 << 20)
    assert repr(head) == "LinearLoss(SoftmaxCE(label_smoothing=0.1), max_memory=1048576)"
    assert repr(sl.LinearLoss(sl.softmax_mse)) == "LinearLoss(SoftmaxMSE())"
    assert eval(repr(head), vars(sl)) == head
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(head, protocol))
        assert again == head
        assert hash(again) == hash(head)
    assert head != sl.LinearLoss(head.loss)
    assert head != sl.LinearLoss(sl.softmax_ce, 1 << 20)
    assert head != head.loss
    for change in (
        lambda: setattr(head, "max_memory", 1),
        lambda: delattr(head, "loss"),
        lambda: setattr(head, "other", 1),
        lambda: head.__init__(sl.softmax_ce),
    ):
        with pytest.raises(AttributeError, match="LinearLoss is immutable"):
            change()
    assert (head.loss, head.max_memory) == (sl.SoftmaxCE(label_smoothing=0.1), 1 << 20)


def test_a_loss_with_attributes_of_its_own(rng):
    class Scaled(sl.SoftmaxCE):
        def __init__(self, factor):
            super().__init__()
            object.__setattr__(self, "factor", factor)

        def value_and_grad(self, *given, **options):
            value, grad = super().value_and_grad(*given, **options)
            grad *= self.factor
            return value * self.factor, grad

    hidden, weight, bias = layer(rng, N, D, K, np.float64)
    targets = rng.integers(0, K, N)
    doubled = sl.LinearLoss(Scaled(2.0)).value_and_grad(hidden, weight, targets, bias)
    once = sl.LinearLoss(sl.softmax_ce).value_and_grad(hidden, weight, targets, bias)
    assert doubled[0] == 2 * once[0]
    for twice, grad in zip(doubled[1], once[1], strict=True):
        np.testing.assert_array_equal(twice, 2 * grad)


def test_grads_can_be_left_out():
    assert sl.LinearGrads(weight=1) == (None, 1, None)


# ---- bits, accuracy, memory, interruption --------------------------------------------------------


def test_same_bits(rng):
    """For one max_memory, whatever the number of threads of the loss; the inputs' layout takes no part."""
    hidden, weight, bias = layer(rng, 300, 16, 4000, np.float32)
    targets = rng.integers(0, 4000, 300)
    head = sl.LinearLoss(sl.softmax_ce, 1 << 20)
    with sl.num_threads(1):
        expected = head.value_and_grad(hidden, weight, targets, bias)
    for threads in (1, 2, 3):
        with sl.num_threads(threads):
            assert_same_bits(head.value_and_grad(hidden, weight, targets, bias), expected)
    assert_same_bits(head.value_and_grad(np.asfortranarray(hidden), weight, targets, bias), expected)


def confident_layer(margin, n, d, k):
    """float32 inputs whose targets are ahead of the strongest other class by about a margin."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((k, d))
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    targets = rng.permutation(k)[:n]
    hidden = rng.standard_normal((n, d))
    base, along = hidden @ weight.T, weight[targets] @ weight.T
    rows = np.arange(n)
    low, high = np.full(n, -100.0), np.full(n, 200.0)
    for _ in range(40):
        middle = (low + high) / 2
        logits = base + middle[:, None] * along
        of_target = logits[rows, targets]
        logits[rows, targets] = -np.inf
        short = of_target - logits.max(1) < margin
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return (hidden + low[:, None] * weight[targets]).astype("f4"), weight.astype("f4"), targets


def row_errors(got, want):
    return np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)


@pytest.mark.parametrize("margin", [0, 5, 10, 20, 30])
def test_confident_predictions_keep_their_digits(margin):
    hidden, weight, targets = confident_layer(margin, 48, 128, 3000)
    grads = sl.LinearLoss(sl.softmax_ce, 1 << 18).value_and_grad(hidden, weight, targets)[1]
    exact = reference(sl.softmax_ce, hidden, weight, targets)[1]
    assert np.median(row_errors(grads.hidden, exact.hidden)) <= 1e-5
    assert np.median(row_errors(grads.weight, exact.weight)) <= 1e-5


@pytest.mark.parametrize("k", [5, 5000])
@pytest.mark.parametrize("loss", [sl.softmax_ce, sl.softmax_mse, sl.SoftmaxCE(z_loss=1e-3)], ids=str)
def test_subnormal_gradients_count_as_0(loss, k):
    """Products with them would take a hundred times as long."""
    logits = np.full((1, k), -200, np.float32)
    logits[0, :4] = 100, 0, 12, 20
    whole = loss.value_and_grad(logits, [1])[1]
    assert np.any((whole != 0) & (abs(whole) < np.finfo(np.float32).smallest_normal))
    grad = sl.LinearLoss(loss, 1).value_and_grad(np.ones((1, 1), np.float32), logits.T, [1])[1].weight.T
    np.testing.assert_array_equal(grad, np.where(abs(whole) < np.finfo(np.float32).smallest_normal, 0, whole))
    np.testing.assert_array_equal(loss.value_and_grad(logits, [1])[1], whole)


def test_classes_in_chunks(rng):
    """By their real numbers: as exact as rows in chunks, within the memory, and by the classes indeed."""
    n, d, k = 300, 16, 40000
    hidden, weight, bias = layer(rng, n, d, k, np.float32)
    targets = rng.integers(0, k, n)
    targets[::5] = -100
    for loss in (sl.softmax_ce, sl.SoftmaxCE(label_smoothing=0.1, z_loss=1e-3), sl.SoftmaxMSE()):
        t = np.abs(targets)
        expected = reference(loss, hidden, weight, t, bias)
        head = sl.LinearLoss(loss, 1 << 20)
        for w in (weight, np.asfortranarray(weight)):
            result = head.value_and_grad(hidden, w, t, bias)
            assert_close(result, expected, rtol=2e-4)
            assert_same_bits(head.value_and_grad(hidden, w, t, bias), result)
            assert np.isclose(head(hidden, w, t, bias), result[0], rtol=1e-14)


@pytest.mark.parametrize("max_memory", [1 << 20, 8 << 20, 32 << 20])
@pytest.mark.parametrize("kind", ["plain", "half", "ignored", "sigmoid", "labels with masks", "none"])
def test_memory(rng, kind, max_memory):
    """What a call allocates beside its results, numpy's arrays included."""
    n, d, k = 700, 32, 16384
    hidden, weight, bias = layer(rng, n, d, k, np.float32)
    loss, targets, options = sl.softmax_ce, rng.integers(0, k, n), {}
    if kind == "half":
        weight = weight.astype(np.float16)
    elif kind == "ignored":
        targets[::2] = -100
    elif kind in ("sigmoid", "labels with masks"):
        loss, targets = sl.sigmoid_bce, np.zeros((n, k), np.int8)
        if kind == "labels with masks":
            options["mask"] = rng.random((n, k)) < 0.5
            options["mask"][::2] = False
            options["sample_weight"] = np.ones(n)
    elif kind == "none":
        loss = sl.SoftmaxCE(reduction="none")
    out = sl.LinearGrads(np.empty_like(hidden), np.empty(weight.shape, "f4"), np.empty_like(bias))
    head = sl.LinearLoss(loss, max_memory)
    tracemalloc.start()
    try:
        head.value_and_grad(hidden, weight, targets, bias, out=out, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= max_memory + (8 << 20)
    # what it may take is used
    assert peak >= min(max_memory, n * k * 4 // 2) * 0.9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory(tmp_path):
    """The same as the system sees it, in a process of its own, BLAS's buffers included."""
    code = """
import sys
import numpy as np
import stableloss as sl

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

n, d, k = 600, 64, 131072
rng = np.random.default_rng(0)
hidden, weight, bias = rng.random((n, d), "f4"), rng.random((k, d), "f4"), rng.random(k, "f4")
targets = rng.integers(0, k, n)
out = sl.LinearGrads(np.ones_like(hidden), np.ones_like(weight), np.ones_like(bias))
for mib in (32, 64, 128):
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    sl.LinearLoss(sl.softmax_ce, mib << 20).value_and_grad(hidden, weight, targets, bias, out=out)
    print(mib, (status("VmHWM") - before) / 1024)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "STABLELOSS_NUM_THREADS": "1"},
    )
    for line in run.stdout.splitlines():
        budget, taken = map(float, line.split())
        assert taken <= budget + 8


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends a signal")
def test_keyboard_interrupt_between_chunks(rng):
    hidden, weight, bias = layer(rng, 6000, 64, 3000, np.float32)
    targets = rng.integers(0, 3000, 6000)
    out = sl.LinearGrads(np.zeros_like(hidden), np.zeros_like(weight), np.zeros_like(bias))
    head = sl.LinearLoss(sl.softmax_ce, 1 << 20)

    def interrupt(*_):
        raise KeyboardInterrupt

    def call_for_ever():
        while True:
            head.value_and_grad(hidden, weight, targets, bias, out=out)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            call_for_ever()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    left = [array.copy() for array in out]
    time.sleep(0.1)
    for array, copy in zip(out, left, strict=True):
        np.testing.assert_array_equal(array, copy)
    value, grads = head.value_and_grad(hidden, weight, targets, bias, out=out)
    assert_close((value, grads), reference(sl.softmax_ce, hidden, weight, targets, bias), rtol=1e-4)

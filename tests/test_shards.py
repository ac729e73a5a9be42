"""Rows whose classes are in shards: parts, merged, give the loss and the gradient of the whole."""

import itertools
import pickle
import re

import numpy as np
import oracle
import pytest
from bounds import assert_exact
from cases import LAYOUTS, assert_same_bits

import stableloss as sl

PIECE = 2048
INDICES, SOFT, ONE_HOT = "class indices", "soft targets", "one-hot"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def shards_of(logits, targets, cuts, axis=-1):
    """Logits and targets of the shards between the cuts, and their first classes."""
    n = logits.shape[axis]
    for a, b in itertools.pairwise([0, *cuts, n]):
        classes = [slice(None)] * logits.ndim
        classes[axis] = slice(a, b)
        yield logits[tuple(classes)], targets[tuple(classes)] if targets.ndim == logits.ndim else targets, a


def parts_of(loss, logits, targets, cuts, given=False, **options):
    axis = getattr(loss, "axis", -1)
    maximum = np.max(logits, axis=axis) if given else None
    return [
        loss.partial(shard, t, first, logits.shape[axis], maximum=maximum, **options)
        for shard, t, first in shards_of(logits, targets, cuts, axis)
    ]


def sharded(loss, logits, targets, cuts, given=False, denominator=None, **options):
    """Value and gradient of the whole, by shards."""
    parts = parts_of(loss, logits, np.asarray(targets), cuts, given, **options)
    whole = sl.merge(parts)
    results = [loss.finish(part, whole, denominator=denominator) for part in parts]
    for value, _ in results[1:]:
        assert_same_bits(value, results[0][0])
    return results[0][0], np.concatenate([grad for _, grad in results], getattr(loss, "axis", -1))


def targets_of(kind, rng, n, k):
    y = rng.integers(0, k, n)
    if kind == INDICES:
        return y
    return np.eye(k)[y] if kind == ONE_HOT else rng.dirichlet(np.full(k, 0.3), n)


# ---- the same bits --------------------------------------------------------------------------------

PLAIN = {
    "ce, z": lambda k, **o: sl.SoftmaxCE(z_loss=1e-3, **o),
    "ce, z, class weights": lambda k, **o: sl.SoftmaxCE(z_loss=1e-3, class_weight=np.arange(k) % 7 / 4, **o),
    "ce, bent": lambda k, **o: sl.SoftmaxCE(softcap=9.0, logit_scale=1.5, **o),
    "ce, focal": lambda k, **o: sl.SoftmaxCE(focal_gamma=2.0, **o),
    "ce": lambda k, **o: sl.SoftmaxCE(**o),
    "ce, class weights": lambda k, **o: sl.SoftmaxCE(class_weight=np.arange(k) % 7 / 4, **o),
    "ce, clipped": lambda k, **o: sl.SoftmaxCE(logit_clip=9.0, ignore_index=3, **o),
    "mse": lambda k, **o: sl.SoftmaxMSE(**o),
    "mse, clipped": lambda k, **o: sl.SoftmaxMSE(logit_clip=9.0, **o),
}
IN_TILES = ("ce, z, class weights",)
CUTS = {
    100: [[]],
    300: [[]],
    4100: [[2048], [4096], [2048, 4096], [0, 2048, 2048, 4096, 4096]],
    131072: [[32768, 65536, 98304], [65536]],
}


def special_rows(logits, targets):
    """Confident, wrong, tied, infinite and undefined rows, their targets in the first and the last shard."""
    k = logits.shape[1]
    logits[0, targets[0]] = 70
    logits[1, [1, k - 1]] = 70
    targets[1] = k - 1
    logits[2, [0, k // 2]] = np.inf
    logits[3, k // 2] = np.nan
    logits[4, : k // 2] = -np.inf
    logits[5] = -np.inf
    logits[6] = 3
    logits[7, : k // 2] = -np.inf
    targets[7] = 0


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", ["e", "f", "d"])
@pytest.mark.parametrize("k", CUTS)
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.filterwarnings("ignore:invalid value|overflow")
def test_bits_of_the_whole(rng, name, k, dtype, reduction):
    if k <= 128 and name in IN_TILES:
        return  # rows are columns there, of which a part has none
    loss = PLAIN[name](k, reduction=reduction)
    n = 40 if k < PIECE else 12
    logits = (rng.normal(size=(n, k)) * 6).astype(dtype)
    targets = rng.integers(0, k, n)
    if reduction == "none":
        special_rows(logits, targets)
    weight, mask = rng.random(n), rng.random(n) < 0.9
    for cuts, options in itertools.product(CUTS[k], [{}, {"sample_weight": weight, "mask": mask}]):
        value, grad = loss.value_and_grad(logits, targets, **options)
        got, got_grad = sharded(loss, logits, targets, cuts, given=True, **options)
        assert_same_bits(got, value)
        assert_same_bits(got_grad, grad)


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("options", [{}, {"z_loss": 1e-3}, {"softcap": 9.0}])
def test_bits_of_the_whole_of_soft_targets(rng, options, dtype):
    loss, k = sl.SoftmaxCE(class_weight=np.arange(5000) % 7 / 4, **options), 5000
    logits = (rng.normal(size=(9, k)) * 6).astype(dtype)
    for targets in (rng.dirichlet(np.full(k, 0.3), 9), np.eye(k)[rng.integers(0, k, 9)].astype(dtype)):
        value, grad = loss.value_and_grad(logits, targets)
        for cuts in CUTS[4100]:
            got, got_grad = sharded(loss, logits, targets, cuts, given=True)
            assert_same_bits(got, value)
            assert_same_bits(got_grad, grad)


def test_bits_do_not_depend_on_threads(rng):
    logits, targets = rng.normal(size=(64, 5000)), rng.integers(0, 5000, 64)
    results = []
    for threads in (1, 3):
        with sl.num_threads(threads):
            results.append(sharded(sl.softmax_ce, logits, targets, [1234, 4000]))
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


# ---- bounds ---------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "class weights": {"class_weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing, class weights, z": {"label_smoothing": 0.2, "class_weight": True, "z_loss": 1e-2},
    "z": {"z_loss": 1e-2},
    "cap, scale": {"softcap": 20.0, "logit_scale": 1.7},
    "clip": {"logit_clip": 5.0},
    "focal": {"focal_gamma": 2.0, "class_weight": True},
}
SHARDS = {
    "few": (33, [13, 30]),
    "one each": (6, [1, 2, 3, 4, 5]),
    "empty": (9, [0, 4, 4, 9]),
    "long": (2100, [2048]),
}


def hard_rows(rng, n, k):
    """Rows of every margin; some with disabled classes."""
    logits = rng.normal(size=(n, k)) * rng.choice([0.1, 3, 20], (n, 1))
    logits[np.arange(n), rng.integers(0, k, n)] += np.linspace(-60, 60, n)
    logits[: n // 4, 1::5] = -np.inf
    return logits


@pytest.mark.parametrize("given", [False, True], ids=["one exchange", "with maximum"])
@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("kind", [INDICES, SOFT, ONE_HOT])
@pytest.mark.parametrize("shape", SHARDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_cross_entropy_within_bounds(rng, name, shape, kind, dtype, given):
    k, cuts = SHARDS[shape]
    n = 6 if k < PIECE else 1
    options = dict(OPTIONS[name])
    if kind != INDICES and "focal_gamma" in options:
        options.pop("focal_gamma")
    if "class_weight" in options:
        options["class_weight"] = rng.random(k)
    logits, targets = hard_rows(rng, n, k).astype(dtype), targets_of(kind, rng, n, k)
    weight = rng.random(n)
    exact = oracle.softmax_ce_options(logits, targets, sample_weight=weight, **options)
    loss = sl.SoftmaxCE(reduction="none", **options)
    value, grad = sharded(loss, logits, targets, cuts, given, sample_weight=weight)
    assert_exact("loss", value, exact.loss, logits.dtype)
    assert_exact("gradient", grad, exact.grad, logits.dtype)


@pytest.mark.parametrize("given", [False, True], ids=["one exchange", "with maximum"])
@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("kind", [INDICES, SOFT, ONE_HOT])
@pytest.mark.parametrize("shape", SHARDS)
def test_quadratic_cost_within_bounds(rng, shape, kind, dtype, given):
    k, cuts = SHARDS[shape]
    n = 12 if k < PIECE else 2
    logits, targets = hard_rows(rng, n, k).astype(dtype), targets_of(kind, rng, n, k)
    exact = oracle.softmax_mse(logits, targets)
    value, grad = sharded(sl.SoftmaxMSE(reduction="none"), logits, targets, cuts, given)
    oracle.assert_within(4, value, exact.loss, dtype, exact.loss_term, "loss")
    oracle.assert_within(4, grad, exact.grad, dtype, exact.grad_term, "gradient")


@pytest.mark.parametrize("kind", [INDICES, SOFT, ONE_HOT])
@pytest.mark.parametrize("cls", [sl.SoftmaxCE, sl.SoftmaxMSE])
def test_far_apart_shards(cls, kind):
    """Maxima that differ by more than the exponential's range, and by less than the spacing of the logits."""
    logits = np.array(
        [[0.0, -1e300, 5, 5], [1e4, 1e4, -1e4, 0], [1e-20, 0, -1e-20, 2e-20], [-740, 0, 1, -739]]
    )
    targets = np.array([3, 0, 2, 0])
    if kind != INDICES:
        targets = np.eye(4)[targets] if kind == ONE_HOT else np.array([[0.4, 0.1, 0.5, 0]] * 4)
    loss = cls(reduction="none")
    exact = getattr(oracle, cls._stem)(logits, targets)
    for cuts in ([1], [2], [1, 2, 3]):
        value, grad = sharded(loss, logits, targets, cuts)
        oracle.assert_within(4, value, exact.loss, "d", exact.loss_term, "loss")
        oracle.assert_within(4, grad, exact.grad, "d", exact.grad_term, "gradient")


# ---- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True], ids=["one exchange", "with maximum"])
@pytest.mark.parametrize("kind", [INDICES, SOFT, ONE_HOT])
@pytest.mark.parametrize(
    "loss",
    [
        sl.SoftmaxCE(reduction="none"),
        sl.SoftmaxCE(reduction="none", z_loss=0.1),
        sl.SoftmaxCE(reduction="none", label_smoothing=0.1),
        sl.SoftmaxCE(reduction="none", focal_gamma=2.0),
        sl.SoftmaxCE(reduction="none", softcap=3.0),
        sl.SoftmaxMSE(reduction="none"),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_infinities_and_nan(loss, kind, given):
    inf, nan = np.inf, np.nan
    logits = np.array(
        [
            [-inf, -inf, 0, 1, 2, -inf],
            [inf, 0, 1, 2, inf, -inf],
            [0, 0, inf, 0, 0, 0],
            [0, 1, nan, 2, 3, 4],
            [inf, nan, 0, 0, 0, 0],
            [-inf] * 6,
            [inf] * 6,
            [-inf, -inf, -inf, -inf, nan, -inf],
            [5, 4, -inf, -inf, -inf, -inf],
        ]
    )
    if getattr(loss, "focal_gamma", 0) and kind != INDICES:
        with pytest.raises(ValueError, match="soft targets needs"):
            sharded(loss, logits, targets_of(kind, np.random.default_rng(0), len(logits), 6), [3])
        return
    for y in range(6):
        targets = np.full(len(logits), y)
        if kind == ONE_HOT:
            targets = np.eye(6)[targets]
        elif kind == SOFT:
            targets = np.tile(np.roll([0.5, 0.25, 0.25, 0, 0, 0], y), (len(logits), 1))
        value, grad = loss.value_and_grad(logits, targets)
        for cuts in ([2, 4], [1, 2, 3, 4, 5], [3], [0, 6]):
            got, got_grad = sharded(loss, logits, targets, cuts, given)
            np.testing.assert_allclose(got, value, rtol=2e-14, atol=1e-15)
            np.testing.assert_allclose(got_grad, grad, rtol=2e-14, atol=1e-15)


def test_rows_that_do_not_count_hold_anything(rng):
    logits, targets = rng.normal(size=(5, 10)), np.array([1, -100, 9, 77, 0])
    logits[1], logits[3], logits[4] = np.nan, np.inf, -np.inf
    options = {"mask": [1, 1, 1, 0, 1], "sample_weight": [1, 1, 0.5, 1, 0]}
    for loss in (sl.softmax_ce, sl.SoftmaxCE(z_loss=1e-3)):
        value, grad = loss.value_and_grad(logits, targets, **options)
        got, got_grad = sharded(loss, logits, targets, [4], **options)
        assert np.isclose(got, value, rtol=1e-15)
        np.testing.assert_allclose(got_grad, grad, rtol=1e-14)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, {"label_smoothing": 0.1}])
def test_a_class_weight_of_zero_takes_nan_out(options):
    loss = sl.SoftmaxCE(class_weight=[1, 0, 2, 1], reduction="none", **options)
    logits, targets = np.array([[1.0, np.nan, 0, 2], [0, 1, 2, 3]]), [1, 2]
    value, grad = loss.value_and_grad(logits, targets)
    got, got_grad = sharded(loss, logits, targets, [2])
    np.testing.assert_allclose(got, value, rtol=1e-14)
    np.testing.assert_allclose(got_grad, grad, rtol=1e-14)


@pytest.mark.parametrize("loss", [sl.softmax_ce, sl.softmax_mse])
def test_no_rows(loss):
    value, grad = sharded(loss, np.zeros((0, 4), np.float32), np.zeros(0, int), [1, 3])
    assert value == 0
    assert grad.shape == (0, 4)
    assert grad.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_weights_far_from_1(rng, scale):
    logits, targets = rng.normal(size=(4, 8)), [1, 2, 3, 7]
    for loss in (sl.softmax_ce, sl.SoftmaxCE(class_weight=np.full(8, scale)), sl.SoftmaxMSE()):
        weight = np.array([1.0, 2, 3, 4]) * scale
        value, grad = loss.value_and_grad(logits, targets, sample_weight=weight)
        got, got_grad = sharded(loss, logits, targets, [3], sample_weight=weight)
        assert np.isclose(got, value, rtol=1e-14)
        np.testing.assert_allclose(got_grad, grad, rtol=1e-14)


# ---- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("cls", [sl.SoftmaxCE, sl.SoftmaxMSE])
def test_axis_and_leading_dimensions(rng, cls, axis):
    logits = rng.normal(size=(3, 4, 5))
    k = logits.shape[axis]
    rows = [n for d, n in enumerate(logits.shape) if d != axis % 3]
    loss = cls(axis=axis, reduction="none")
    for targets in (rng.integers(0, k, rows), rng.random(logits.shape)):
        value, grad = loss.value_and_grad(logits, targets, sample_weight=[0.5] * rows[0])
        got, got_grad = sharded(loss, logits, targets, [2], given=True, sample_weight=[0.5] * rows[0])
        np.testing.assert_allclose(got, value, rtol=1e-14)
        np.testing.assert_allclose(got_grad, grad, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(rng, layout):
    logits, targets = rng.normal(size=(6, 9)), rng.integers(0, 9, 6)
    for loss in (sl.softmax_ce, sl.SoftmaxCE(softcap=3.0), sl.softmax_mse):
        expected = loss.finish(part := loss.partial(logits, targets, 0, 9), part)
        part = loss.partial(LAYOUTS[layout](logits), LAYOUTS[layout](targets), 0, 9)
        for a, b in zip(loss.finish(part, part), expected, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", ["e", "f", "d"])
@pytest.mark.parametrize("loss", [sl.softmax_ce, sl.SoftmaxCE(z_loss=0.1), sl.softmax_mse], ids=repr)
def test_out(rng, loss, dtype):
    logits, targets = rng.normal(size=(6, 3000)).astype(dtype), rng.integers(0, 3000, 6)
    parts = parts_of(loss, logits, targets, [2048])
    whole = sl.merge(parts)
    expected = [loss.finish(part, whole)[1] for part in parts]
    buffer = np.empty((6, 2048), dtype, order="F")
    assert loss.finish(parts[0], whole, out=buffer)[1] is buffer
    assert_same_bits(buffer, expected[0])
    shard = logits[:, :2048].copy()
    part = loss.partial(shard, targets, 0, 3000)
    assert loss.finish(part, whole, out=shard)[1] is shard
    assert_same_bits(shard, expected[0])
    with pytest.raises(ValueError, match="out has shape"):
        loss.finish(parts[1], whole, out=buffer)


def test_lists_and_integers():
    part = sl.softmax_ce.partial([[1, 2]], [2], 0, 4)
    other = sl.softmax_ce.partial([[3, 4]], [2], 2, 4)
    value, grad = sl.softmax_ce.finish(other, sl.merge((part, other)))
    assert value == sl.softmax_ce([[1, 2, 3, 4]], [2])
    assert grad.dtype == np.float64


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize("kind", [INDICES, SOFT])
def test_reductions(rng, reduction, kind):
    logits, targets = rng.normal(size=(7, 12)), targets_of(kind, rng, 7, 12)
    weight = rng.random(7)
    loss = sl.SoftmaxCE(reduction=reduction, class_weight=rng.random(12))
    for denominator in [None] + [4.5] * (reduction in ("mean", "batchmean")):
        options = {} if denominator is None else {"denominator": denominator}
        value, grad = loss.value_and_grad(logits, targets, sample_weight=weight, **options)
        got, got_grad = sharded(loss, logits, targets, [5, 6], denominator=denominator, sample_weight=weight)
        assert type(got) is type(value)
        np.testing.assert_allclose(got, value, rtol=1e-14)
        np.testing.assert_allclose(got_grad, grad, rtol=1e-12, atol=1e-17)


# ---- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", [INDICES, SOFT])
@pytest.mark.parametrize("loss", [sl.softmax_ce, sl.SoftmaxCE(label_smoothing=0.1), sl.softmax_mse], ids=repr)
def test_merge_is_associative(rng, loss, kind, given):
    logits, targets = np.round(rng.normal(size=(20, 6)) * 2), targets_of(kind, rng, 20, 6)
    a, b, c, d = parts = parts_of(loss, logits, targets, [1, 3, 4], given)
    expected = sl.merge(parts).array
    groupings = [
        sl.merge([sl.merge([a, b]), sl.merge([c, d])]),
        sl.merge([a, sl.merge([b, sl.merge([c, d])])]),
        sl.merge([sl.merge([sl.merge([a, b]), c]), d]),
        sl.merge([sl.merge([a, b, c, d])]),
    ]
    for whole in groupings:
        assert_same_bits(whole.array, expected)


def test_pickled_parts_and_arrays(rng):
    logits, targets = rng.normal(size=(3, 5000)).astype("f"), rng.integers(0, 5000, 3)
    parts = parts_of(sl.softmax_ce, logits, targets, [2048])
    expected = sl.softmax_ce.finish(parts[0], sl.merge(parts))
    sent = [pickle.loads(pickle.dumps(part)) for part in parts]
    assert len(pickle.dumps(parts[0])) < 1000
    arrays = [sl.Part(part.array.copy()) for part in parts]
    for copies in (sent, arrays):
        for a, b in zip(sl.softmax_ce.finish(parts[0], sl.merge(copies)), expected, strict=True):
            assert_same_bits(a, b)
        assert (copies[1].first_class, copies[1].stop_class) == (2048, 5000)
    assert repr(parts[1]) == "<Part of classes 2048 to 5000, 3 rows, 15 numbers each>"
    with pytest.raises(ValueError, match="part has no shard"):
        sl.softmax_ce.finish(sent[0], sl.merge(sent))


def test_padded_parts(rng):
    """Pieces that add nothing, for collectives of one size."""
    logits, targets = rng.normal(size=(4, 5000)), rng.integers(0, 5000, 4)
    for loss in (sl.softmax_ce, sl.SoftmaxCE(label_smoothing=0.1), sl.softmax_mse):
        parts = parts_of(loss, logits, targets, [100, 4096], given=True)
        whole = sl.merge(parts)
        padded = sl.merge([sl.Part(part.padded(4)) for part in parts])
        assert padded.array.shape[1] > whole.array.shape[1]
        for part in parts:
            for a, b in zip(loss.finish(part, padded), loss.finish(part, whole), strict=True):
                assert_same_bits(a, b)


def test_bytes_per_row(rng):
    """What docs/larger.md says is exchanged."""
    part = sl.softmax_ce.partial(np.zeros((1, 131072 // 4), np.float32), [0], 0, 131072)
    assert part.array.nbytes == 8 * (9 + 3 * 16)


# ---- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "targets", "message"),
    [
        ({"focal_gamma": 1.0}, [[0.5, 0.5]], "soft targets needs the probability of every class"),
        ({"focal_gamma": 1.0, "label_smoothing": 0.1}, [0], "smoothed targets needs the probability"),
        ({"from_probabilities": True}, [0], "takes probabilities, but shards are of logits"),
        ({"class_weight": [1, 2, 3]}, [0], "class_weight has length 3"),
    ],
)
def test_options_that_shards_do_not_have(options, targets, message):
    with pytest.raises(ValueError, match=message):
        sl.SoftmaxCE(**options).partial([[0.5, 0.5]], targets, 0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": [0, 4]}, r"class index at 1 is 4, not a whole number from 0 to 3 \(4 classes\)"),
        ({"targets": [0]}, "targets .* have shape|targets .* has shape"),
        ({"targets": [[0.1, 0.9, 0], [1, 0, 0]]}, "pass the shard's targets"),
        ({"targets": [[0.1, 0.9], [-1, 2]]}, r"target probability at \(1, 0\) is -1"),
        ({"first_class": 3}, "a shard of 2 classes from there is not within n_classes=4"),
        ({"first_class": -1}, "first_class is -1"),
        ({"n_classes": 0}, "n_classes is 0"),
        ({"maximum": [0.0, 0.0]}, r"maximum at \(0,\) is below the shard's own"),
        ({"maximum": [9.0]}, r"maximum has shape \(1,\)"),
        ({"sample_weight": [1.0]}, "sample_weight has shape"),
        ({"mask": [True]}, "mask has shape"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    arguments = {
        "logits": [[1.0, 2.0], [0.0, -1.0]],
        "targets": [0, 3],
        "first_class": 0,
        "n_classes": 4,
    } | change
    with pytest.raises(ValueError, match=message):
        sl.softmax_ce.partial(**arguments)


def test_arguments_of_the_wrong_type():
    with pytest.raises(TypeError, match="first_class must be an integer"):
        sl.softmax_ce.partial([[0.0]], [0], 0.5, 2)
    with pytest.raises(TypeError, match="logits"):
        sl.softmax_ce.partial([["a"]], [0], 0, 2)
    with pytest.raises(TypeError, match="parts must be Part objects, not ndarray"):
        sl.merge([np.zeros((1, 12))])
    assert not hasattr(sl.sigmoid_bce, "partial")


def test_parts_that_do_not_fit(rng):
    logits, targets = rng.normal(size=(2, 6)), np.array([0, 5])
    a, b, c = parts_of(sl.softmax_ce, logits, targets, [2, 4])
    cases = {
        "there are no parts": [],
        "parts leave out classes between 0 and 1: one ends before class 2, the next begins at 4": [a, c],
        "parts overlap, or are not in the order of their classes, between 0 and 1": [b, a],
        "parts have 2, 1 rows": [a, sl.softmax_ce.partial(logits[:1, 2:], [0], 2, 6)],
        "of different losses": [a, sl.softmax_mse.partial(logits[:, 2:], targets, 2, 6)],
    }
    for message, parts in cases.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            sl.merge(parts)
    whole = sl.merge([a, b, c])
    with pytest.raises(ValueError, match="whole has the classes 0 to 4 of 6, not all 6"):
        sl.softmax_ce.finish(a, sl.merge([a, b]))
    with pytest.raises(ValueError, match="part was made by SoftmaxCE"):
        sl.SoftmaxCE(z_loss=1.0).finish(a, whole)
    with pytest.raises(ValueError, match="whole has 2 rows where part has 1"):
        sl.softmax_ce.finish(sl.softmax_ce.partial(logits[:1, 2:], [0], 2, 6), whole)
    with pytest.raises(TypeError, match="whole must be a Part"):
        sl.softmax_ce.finish(a, whole.array)
    for bad in (np.zeros(3), np.zeros((2, 8)), np.zeros((2, 12)), np.zeros((2, 12), "f")):
        with pytest.raises(ValueError, match=r"not (that|those) of a part"):
            sl.Part(bad)


def test_denominator_without_a_mean(rng):
    loss = sl.SoftmaxCE(reduction="sum")
    part = loss.partial([[0.0, 1.0]], [0], 0, 2)
    with pytest.raises(ValueError, match="denominator replaces"):
        loss.finish(part, part, denominator=2)

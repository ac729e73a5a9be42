"""What a mean divides by, for calls that share one mean; and a denominator of 0 where nothing counts."""

import itertools
import re

import numpy as np
import pytest

import stableloss as sl

N, K = 12, 5
WEIGHTS = np.array([0.0, 1.0, 0.5, 2.0, 1.0])
REDUCTIONS = ("mean", "batchmean", "sum", "none")
SOFTMAX = {
    "plain": sl.SoftmaxCE,
    "ignore_index": lambda **options: sl.SoftmaxCE(ignore_index=2, **options),
    "far ignore_index": lambda **options: sl.SoftmaxCE(ignore_index=2**60 + 1, **options),
    "class_weight": lambda **options: sl.SoftmaxCE(class_weight=WEIGHTS, **options),
    "smoothed class_weight": lambda **options: sl.SoftmaxCE(
        class_weight=WEIGHTS, label_smoothing=0.1, **options
    ),
    "bent": lambda **options: sl.SoftmaxCE(
        focal_gamma=2.0, z_loss=1e-3, softcap=3.0, logit_scale=2.0, logit_clip=1.0, **options
    ),
    "from_probabilities": lambda **options: sl.SoftmaxCE(from_probabilities=True, **options),
    "mse": sl.SoftmaxMSE,
}
SIGMOID = {
    "plain": sl.SigmoidBCE,
    "class_weight": lambda **options: sl.SigmoidBCE(class_weight=WEIGHTS, pos_weight=2.0, **options),
    "focal": lambda **options: sl.SigmoidBCE(focal_gamma=2.0, focal_alpha=0.25, **options),
    "from_probabilities": lambda **options: sl.SigmoidBCE(from_probabilities=True, **options),
    "mse": sl.SigmoidMSE,
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def calls(rng, make, rowwise):
    """Logits, targets and keywords of calls with weights and masks of every kind."""
    logits = rng.random((N, K))
    ignored = getattr(make(), "ignore_index", None)
    hard = rng.integers(0, K, N)
    if ignored is not None:
        hard[rng.random(N) < 0.3] = ignored
    shapes = [(N,)] if rowwise else [(N,), (N, K)]
    targets = [hard, rng.random((N, K))] if rowwise else [rng.integers(0, 2, (N, K))]
    for target, weight, mask in itertools.product(targets, [None, *shapes], [None, *shapes]):
        options = {}
        if weight:
            options["sample_weight"] = rng.integers(0, 4, weight) / 2
        if mask:
            options["mask"] = rng.random(mask) < 0.6
            options["mask"][:2] = False
        yield logits, target, options


CASES = [(name, make, True) for name, make in SOFTMAX.items()]
CASES += [(name, make, False) for name, make in SIGMOID.items()]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{'softmax' if case[2] else 'sigmoid'} {case[0]}")
def test_divisor_is_sum_over_mean(rng, case, reduction):
    """A loss of reduction "sum" or "none" has the divisor of "mean"."""
    _, make, rowwise = case
    loss = make(reduction=reduction)
    mean = loss if reduction == "batchmean" else make(reduction="mean")
    for logits, targets, options in calls(rng, make, rowwise):
        divisor = loss.divisor(logits.shape, targets, **options)
        assert type(divisor) is float
        expected = make(reduction="sum")(logits, targets, **options)
        np.testing.assert_allclose(mean(logits, targets, **options) * divisor, expected, rtol=1e-14)
        # of rows that are spread over calls, in any grouping
        shards = [slice(0, 2), slice(2, 3), slice(3, N)]
        parts = [{name: value[rows] for name, value in options.items()} for rows in shards]
        divisors = [
            loss.divisor(logits[rows].shape, targets[rows], **part)
            for rows, part in zip(shards, parts, strict=True)
        ]
        assert sum(divisors) == divisor
        if mean is loss:
            whole = loss.value_and_grad(logits, targets, **options)
            pieces = [
                loss.value_and_grad(logits[rows], targets[rows], denominator=divisor, **part)
                for rows, part in zip(shards, parts, strict=True)
            ]
            np.testing.assert_allclose(sum(value for value, _ in pieces), whole[0], rtol=1e-14)
            np.testing.assert_array_equal(np.concatenate([grad for _, grad in pieces]), whole[1])


def test_values():
    weighted = sl.SoftmaxCE(class_weight=[1, 2, 4])
    assert sl.softmax_ce.divisor((3, 4), [0, 1, 2]) == 3.0
    assert weighted.divisor((3, 3), [0, 1, 2], sample_weight=[1, 1, 0.5]) == 5.0
    assert weighted.divisor((2, 3), [[0, 0, 1], [0, 1, 0]], sample_weight=[1, 0.5]) == 1.5
    assert sl.SoftmaxCE(reduction="batchmean").divisor((3, 4), [0, -100, 2], sample_weight=[5, 5, 0]) == 2.0
    assert sl.SoftmaxCE(axis=1).divisor((2, 3, 4), np.zeros((2, 4), int)) == 8.0
    assert sl.softmax_ce.divisor((4,), 2) == 1.0
    assert sl.sigmoid_bce.divisor((2, 3), np.zeros((2, 3)), sample_weight=[0, 9]) == 6.0
    assert sl.sigmoid_bce.divisor((2, 3), np.zeros((2, 3)), mask=[True, False]) == 3.0
    assert sl.sigmoid_bce.divisor((), 0.0) == 1.0
    assert sl.SigmoidMSE(reduction="batchmean").divisor((2, 3), np.zeros((2, 3)), mask=[True, False]) == 1.0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_counts(reduction):
    assert sl.SoftmaxCE(reduction=reduction).divisor((2, 3), [-100, -100]) == 0.0
    assert sl.SoftmaxCE(reduction=reduction).divisor((0, 3), np.zeros(0, int)) == 0.0
    assert sl.SigmoidBCE(reduction=reduction).divisor((2, 3), np.zeros((2, 3)), mask=[False, False]) == 0.0
    assert sl.SigmoidBCE(reduction=reduction).divisor((0, 3), np.zeros((0, 3))) == 0.0


def test_logits_take_no_memory():
    """Nor does their number matter, but for what is given for each of them."""
    assert sl.softmax_ce.divisor((1000, 10**12), np.zeros(1000, int)) == 1000.0
    assert sl.SoftmaxCE(from_probabilities=True).divisor((10, 10**12), np.zeros(10, int)) == 10.0


def test_signed_weights():
    """A shard may have any total; that of all shards has to be positive when it divides."""
    weight, targets = np.array([-3.0, 1.0, 2.5, 1.5]), np.array([0, 1, 1, 0])
    shards = slice(0, 2), slice(2, 4)
    divisors = [sl.softmax_ce.divisor((2, 2), targets[s], sample_weight=weight[s]) for s in shards]
    assert divisors == [-2.0, 4.0]
    logits = np.arange(8.0).reshape(4, 2)
    parts = [
        sl.softmax_ce(logits[s], targets[s], sample_weight=weight[s], denominator=sum(divisors))
        for s in shards
    ]
    np.testing.assert_allclose(sum(parts), sl.softmax_ce(logits, targets, sample_weight=weight), rtol=1e-14)
    with pytest.raises(ValueError, match="can not divide a mean"):
        sl.softmax_ce(logits[:2], targets[:2], sample_weight=weight[:2])
    with pytest.raises(ValueError, match="can not divide a mean"):
        sl.softmax_ce(logits[:2], targets[:2], sample_weight=[1.0, -1.0], denominator=0)


ERRORS = {
    "indices": (
        sl.softmax_ce,
        (3, 2),
        [0, 1, 2],
        {},
        "class index at 2 is 2, not a whole number from 0 to 1",
    ),
    "shape": (
        sl.softmax_ce,
        (3, 2),
        [0, 1],
        {},
        r"has shape \(2,\) where logits of shape \(3, 2\) need \(3,\)",
    ),
    "weight": (sl.softmax_ce, (2, 2), [0, 1], {"sample_weight": [1.0]}, r"sample_weight has shape \(1,\)"),
    "mask": (sl.sigmoid_bce, (2, 2), np.eye(2), {"mask": [True]}, r"mask has shape \(1,\)"),
    "target": (sl.sigmoid_bce, (2, 2), 2 * np.eye(2), {}, r"target at \(0, 0\) is 2.0, not in \[0, 1\]"),
    "class_weight": (
        sl.SoftmaxCE(class_weight=[1, 2]),
        (1, 3),
        [0],
        {},
        "class_weight has length 2 where logits of shape",
    ),
    "axis": (sl.SoftmaxCE(axis=2), (2, 3), [0, 1], {}, r"logits of shape \(2, 3\) have no axis 2"),
    "no classes": (sl.softmax_ce, (2, 0), [0, 1], {}, r"logits of shape \(2, 0\) have no classes"),
    "negative": (sl.softmax_ce, (-2, 3), [0, 1], {}, r"shape is \(-2, 3\), which has a negative length"),
}


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS)
def test_errors(case):
    """Those of the call itself."""
    loss, shape, targets, options, message = case
    with pytest.raises(ValueError, match=message):
        loss.divisor(shape, targets, **options)
    if min(shape) >= 0:
        with pytest.raises(ValueError, match=message):
            loss(np.full(shape, 0.5), targets, **options)


@pytest.mark.parametrize("shape", [3, "3", (3, "2"), None, (3.0, 2)])
def test_shape_is_a_tuple_of_integers(shape):
    with pytest.raises(TypeError, match="shape must be that of the logits, a tuple of integers, not"):
        sl.softmax_ce.divisor(shape, [0, 1, 0])


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, np.float32(0)])
@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_denominator_of_0(reduction, zero):
    """Is that of calls in which nothing counts, and of no others."""
    loss, logits = sl.SoftmaxCE(reduction=reduction), np.full((2, 3), np.nan)
    value, grad = loss.value_and_grad(logits, [-100, -100], denominator=zero)
    assert value == 0.0
    assert not grad.any()
    assert loss(logits[:0], np.zeros(0, int), denominator=zero) == 0.0
    out = np.full((2, 3), 7.0)
    message = rf"denominator is {re.escape(repr(zero))}, not a positive .* but the divisor here is 1"
    with pytest.raises(ValueError, match=message):
        loss.value_and_grad(np.zeros((2, 3)), [-100, 1], denominator=zero, out=out)
    assert (out == 7).all()
    labels = sl.SigmoidBCE(reduction=reduction)
    assert labels(logits, np.zeros((2, 3)), mask=np.zeros((2, 3), bool), denominator=zero) == 0.0
    with pytest.raises(ValueError, match=r"the divisor here is [26]"):
        labels(np.zeros((2, 3)), np.zeros((2, 3)), denominator=zero)


def test_denominators_that_are_none():
    for denominator in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"denominator is .*, not a positive finite number"):
            sl.softmax_ce([[0.0, 0.0]], [0], denominator=denominator)
    with pytest.raises(
        ValueError, match="denominator replaces the divisor of a mean, but reduction is 'sum'"
    ):
        sl.SoftmaxCE(reduction="sum")([[0.0, 0.0]], [-100], denominator=0)

"""What users of other libraries bring: weights of any scale and sign, rounded targets, masks of 0 and 1."""

import bits
import mpmath
import numpy as np
import oracle
import pytest

import stableloss as sl

LOSSES = [getattr(sl, stem) for stem in bits.LOSSES]
ROWWISE = [loss for loss in LOSSES if loss._rowwise]
DTYPES = [np.float32, np.float64]
Z = np.array([[1.0, 0.0], [0.0, 2.0], [-1.5, 0.25]])
LABELS = np.array([0, 1, 1])
ONE_HOT = np.eye(2)[LABELS]
RELATIVE = {np.float32: 1e-6, np.float64: 1e-14}


def terms(loss, z, targets):
    """Unweighted losses and gradients of the oracle, in float64."""
    exact = oracle.LOSSES[loss._stem](z, targets)
    return exact.loss.astype(np.float64), exact.grad.astype(np.float64)


def assert_close(got, want, dtype):
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=RELATIVE[dtype], atol=0)


# ---- weights of any scale -------------------------------------------------------------------------

SCALES = [1e-307, 1e-290, 1e-50, 1e-41, 1e-20, 1e-7, 1.0, 1e7, 1e20, 1e39, 1e50, 1e200, 1e288, 1e300]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("loss", ROWWISE, ids=repr)
def test_a_weighted_mean_of_rows_knows_no_scale(loss, hard, dtype, scale):
    weight = np.array([1.0, 3.0, 0.5])
    losses, grads = terms(loss, Z, ONE_HOT)
    value, grad = loss.value_and_grad(
        Z.astype(dtype), LABELS if hard else ONE_HOT, sample_weight=scale * weight
    )
    assert_close(value, weight @ losses / weight.sum(), dtype)
    assert_close(grad, grads * (weight / weight.sum())[:, None], dtype)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_only_weight_over_denominator_matters(loss, dtype, scale):
    weight = np.array([1.0, 3.0, 0.5])
    losses, grads = terms(loss, Z, ONE_HOT)
    targets = ONE_HOT if not loss._rowwise else LABELS
    value, grad = loss.value_and_grad(
        Z.astype(dtype), targets, sample_weight=scale * weight, denominator=4 * scale
    )
    assert_close(value, (weight @ losses).sum() / 4, dtype)
    assert_close(grad, grads * weight[:, None] / 4, dtype)


def test_weights_whose_sum_overflows():
    losses, grads = terms(sl.softmax_ce, Z, ONE_HOT)
    value, grad = sl.softmax_ce.value_and_grad(Z, LABELS, sample_weight=[1.5e308] * 3)
    assert_close(value, losses.mean(), np.float64)
    assert_close(grad, grads / 3, np.float64)


@pytest.mark.parametrize("denominator", [1e-300, 1e280, 1e300])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_denominator_of_any_scale(loss, denominator):
    losses, grads = terms(loss, Z, ONE_HOT)
    targets = ONE_HOT if not loss._rowwise else LABELS
    value, grad = loss.value_and_grad(Z, targets, denominator=denominator)
    assert_close(value, losses.sum() / denominator, np.float64)
    assert_close(grad, grads / denominator, np.float64)


@pytest.mark.parametrize("scale", [1e-200, 1e-50, 1e-10, 1e10, 1e39, 1e50, 1e200])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hard", [True, False])
def test_class_weights_are_offset_by_sample_weights(hard, dtype, scale):
    losses, grads = terms(sl.softmax_ce, Z, ONE_HOT)
    loss = sl.SoftmaxCE(reduction="sum", class_weight=[scale, 2 * scale])
    value, grad = loss.value_and_grad(
        Z.astype(dtype), LABELS if hard else ONE_HOT, sample_weight=[1 / scale] * 3
    )
    weight = np.array([1.0, 2.0, 2.0])
    assert_close(value, weight @ losses, dtype)
    assert_close(grad, grads * weight[:, None], dtype)


def test_products_of_weights_that_differ_by_much():
    losses, grads = terms(sl.softmax_ce, Z, ONE_HOT)
    loss = sl.SoftmaxCE(class_weight=[1e250, 1e-250])
    value, grad = loss.value_and_grad(Z, LABELS, sample_weight=[1e-250, 1e250, 1e250])
    assert_close(value, losses.mean(), np.float64)
    assert_close(grad, grads / 3, np.float64)


@pytest.mark.parametrize("scale", [1e-50, 1e-10, 1e10, 1e39, 1e50])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", ["class_weight", "pos_weight"])
def test_weights_of_outputs_are_offset_by_sample_weights(option, dtype, scale):
    losses, grads = terms(sl.sigmoid_bce, Z, np.ones_like(Z))
    loss = sl.SigmoidBCE(reduction="sum", **{option: [scale, 2 * scale]})
    value, grad = loss.value_and_grad(Z.astype(dtype), np.ones_like(Z), sample_weight=[1 / scale] * 3)
    assert_close(value, (losses * [1, 2]).sum(), dtype)
    assert_close(grad, grads * [1, 2], dtype)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"pos_weight": 1000.0}, {}),
        ({"class_weight": [1000.0]}, {}),
        ({"label_smoothing": 0.5, "pos_weight": 2000.0}, {}),
        ({}, {"sample_weight": [1000.0]}),
        ({}, {"sample_weight": [1e30], "denominator": 1e27}),
    ],
)
def test_a_float32_loss_beyond_float32(options, arguments):
    z = np.array([-3e38], np.float32)
    want = 1000 * -float(z[0]) * (1.5 if "label_smoothing" in options else 1)
    assert sl.SigmoidBCE(**options)(z, [1.0], **arguments) == pytest.approx(want, rel=1e-7)


# ---- signed weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_negative_sample_weights(loss, reduction, dtype):
    advantage = np.array([1.5, -0.5, 2.0])
    kind = type(loss)
    losses, grads = terms(loss, Z, ONE_HOT)
    by_element = not loss._rowwise
    losses = losses * (advantage[:, None] if by_element else advantage)
    divisor = {"mean": 6 if by_element else 3.0, "batchmean": 3}.get(reduction, 1)
    value, grad = kind(reduction=reduction).value_and_grad(
        Z.astype(dtype), ONE_HOT if by_element else LABELS, sample_weight=advantage
    )
    assert_close(value, losses if reduction == "none" else losses.sum() / divisor, dtype)
    assert_close(grad, grads * advantage[:, None] / divisor, dtype)
    _, hess = kind().grad_and_hess(Z.astype(dtype), ONE_HOT if by_element else LABELS)
    _, signed = kind().grad_and_hess(
        Z.astype(dtype), ONE_HOT if by_element else LABELS, sample_weight=advantage
    )
    assert_close(signed, hess.astype(float) * advantage[:, None], dtype)


@pytest.mark.parametrize("n", [3, 40, 300_000])
@pytest.mark.parametrize("weight", [None, 0.25, 1e6])
@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_a_mean_whose_sum_overflows(reduction, weight, n):
    kwargs = {} if weight is None else {"sample_weight": np.full(n, weight)}
    # batchmean does not divide by the weights
    exact = 1e308 if reduction == "mean" or weight is None else 1e308 * weight
    z = np.tile([0.0, 1e308], (n, 1))
    loss = sl.SoftmaxCE(reduction=reduction)
    value, grad = loss.value_and_grad(z, np.zeros(n, int), out=z.copy(), **kwargs)
    assert value == pytest.approx(exact, rel=4e-16)
    assert np.isfinite(grad).all()
    assert (grad[:, 0] < 0).all()
    assert loss(z, np.tile([1.0, 0.0], (n, 1)), **kwargs) == pytest.approx(exact, rel=4e-16)
    z = np.full((n, 1), -1e308)
    loss = sl.SigmoidBCE(reduction=reduction)
    if weight is not None:
        # its mean divides by the number of elements
        exact = 1e308 * weight
        kwargs = {"sample_weight": np.full((n, 1), weight)}
    assert loss.value_and_grad(z, np.ones((n, 1)), out=z, **kwargs)[0] == pytest.approx(exact, rel=4e-16)
    # of a part that overflows and one that does not, and of losses that are infinite
    z = np.concatenate([np.full(n, -1e308), [-1.0]])
    assert sl.sigmoid_bce(z, np.ones(n + 1)) == pytest.approx(1e308 / (n + 1) * n, rel=4e-16)
    z[-1] = -np.inf
    assert sl.sigmoid_bce(z, np.ones(n + 1)) == np.inf
    assert sl.SigmoidBCE(reduction="sum")(z[:-1], np.ones(n)) == np.inf


@pytest.mark.parametrize("n", [7, 100_000])
def test_weights_far_from_1_of_any_number_of_rows(n):
    # the largest exponent may lie in any block
    z, y = np.tile([[0.5, -0.25, 2.0]], (n, 1)), np.zeros(n, int)
    exact = sl.softmax_ce(z[:1], y[:1])
    for place in (0, n // 2, n - 1):
        weight = np.full(n, 1e-320)
        weight[place] = 1e300
        assert sl.softmax_ce(z, y, sample_weight=weight) == pytest.approx(exact, rel=1e-15)


@pytest.mark.parametrize("weight", [[1.0, -1.0, 0.0], [1.0, -2.0, 0.5], [-1e300, 1e299, 0.0]])
@pytest.mark.parametrize("loss", [sl.softmax_ce, sl.softmax_mse])
def test_a_mean_needs_a_positive_total(loss, weight):
    out = np.full_like(Z, 7.0)
    with pytest.raises(ValueError, match=r'sample_weight adds up to .*reduction="sum".*denominator='):
        loss.value_and_grad(Z, LABELS, sample_weight=weight, out=out)
    assert (out == 7).all()
    assert np.isfinite(loss(Z, LABELS, sample_weight=weight, denominator=2.0))


def test_a_total_of_nothing_is_0():
    assert sl.softmax_ce(Z, LABELS, sample_weight=[-1.0, 0, 0], mask=[False, True, True]) == 0.0


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", [sl.sigmoid_mse, sl.softmax_ce])
def test_sample_weights_are_finite(loss, dtype, weight):
    targets = ONE_HOT if loss is sl.sigmoid_mse else LABELS
    with pytest.raises(ValueError, match=f"sample_weight at 1 is {weight}, not a finite number"):
        loss(Z, targets, sample_weight=np.array([1, weight, 1], dtype))


def test_policy_gradient_of_a_confident_row():
    value, grad = sl.SoftmaxCE(reduction="sum").value_and_grad([[40.0, 0.0]], [0], sample_weight=[-2.0])
    p = mpmath.exp(-40) / (1 + mpmath.exp(-40))
    assert value == pytest.approx(float(2 * mpmath.log1p(-p)), rel=1e-14)
    np.testing.assert_allclose(grad, [[float(2 * p), float(-2 * p)]], rtol=1e-14)


# ---- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, *DTYPES])
@pytest.mark.parametrize("loss", [sl.sigmoid_bce, sl.sigmoid_mse, sl.SigmoidBCE(focal_gamma=2.0)])
def test_a_target_just_over_its_bound_is_the_bound(loss, dtype):
    eps = float(np.finfo(dtype).eps)
    z = np.linspace(-2, 2, 4).astype(dtype)
    over = np.array([1 + 16 * eps, -16 * eps, 1 + eps, 0.5], dtype)
    bound = np.array([1, 0, 1, 0.5], dtype)
    given = over.copy()
    got, want = loss.value_and_grad(z, over), loss.value_and_grad(z, bound)
    assert got[0] == want[0]
    assert np.array_equal(got[1], want[1])
    assert np.array_equal(over, given)
    for bad in (1 + 18 * eps, -17 * eps):
        with pytest.raises(ValueError, match="target at 1 is"):
            loss(z, np.array([1 + eps, bad, 0, 0], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", [sl.softmax_ce, sl.softmax_mse])
def test_a_probability_just_below_0_is_0(loss, dtype):
    t = np.array([[1, -np.finfo(dtype).eps], [0, 3]], dtype)
    got, want = (
        loss.value_and_grad(Z[:2].astype(dtype), t),
        loss.value_and_grad(Z[:2].astype(dtype), t.clip(0)),
    )
    assert got[0] == want[0]
    assert np.array_equal(got[1], want[1])
    with pytest.raises(ValueError, match=r"target probability at \(0, 1\) is"):
        loss(Z[:2].astype(dtype), 17 * t)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [sl.SigmoidBCE, sl.SoftmaxCE])
def test_an_activation_just_over_its_bound_is_the_bound(kind, dtype):
    loss = kind(from_probabilities=True)
    p = np.array([[np.nextafter(dtype(1), dtype(2)), -np.finfo(dtype).eps]], dtype)
    t = np.array([[1.0, 0.0]])
    out = p.copy()
    value, grad = loss.value_and_grad(out, t, out=out)
    want, want_grad = loss.value_and_grad(p.clip(0, 1), t)
    assert grad is out
    assert value == want
    assert np.array_equal(grad, want_grad)


def test_votes_that_add_up_to_more_than_1():
    w = np.random.default_rng(0).random((2000, 5))
    votes = (w / w.sum(1, keepdims=True)).sum(1)
    assert (votes > 1).any()
    assert sl.sigmoid_bce(np.zeros(2000), votes) == pytest.approx(np.log(2), rel=1e-15)


# ---- axis, ignore_index and focal_gamma of SigmoidBCE ---------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_on_any_axis(axis, dtype):
    rng = np.random.default_rng(3)
    z = rng.normal(size=(3, 4, 50, 6)).astype(dtype)
    y = (rng.random(z.shape) > 0.5).astype(dtype)
    k = z.shape[axis]
    pos, weight = np.linspace(1, 3, k), np.linspace(0, 2, k)
    loss = sl.SigmoidBCE(axis=axis, pos_weight=pos, class_weight=weight, reduction="batchmean")
    rows = rng.random(np.moveaxis(z, axis, -1).shape[:-1])
    mask = rng.random(z.shape) > 0.9
    value, grad = loss.value_and_grad(z, y, sample_weight=rows, mask=mask)
    last = sl.SigmoidBCE(pos_weight=pos, class_weight=weight, reduction="batchmean")
    want, want_grad = last.value_and_grad(
        *(np.moveaxis(a, axis, -1) for a in (z, y)), sample_weight=rows, mask=np.moveaxis(mask, axis, -1)
    )
    assert value == pytest.approx(want, rel=1e-6)
    np.testing.assert_array_equal(np.moveaxis(grad, axis, -1), want_grad)


def test_pos_weight_per_channel():
    z, y = np.zeros((2, 3, 4, 5)), np.ones((2, 3, 4, 5))
    assert sl.SigmoidBCE(pos_weight=[1.0, 2.0, 3.0], axis=1)(z, y) == pytest.approx(2 * np.log(2), rel=1e-14)
    with pytest.raises(ValueError, match=r"\(6,\) have no axis 1"):
        sl.SigmoidBCE(axis=1)(np.zeros(6), np.zeros(6))


@pytest.mark.parametrize("weights", [{"pos_weight": [3.0]}, {"class_weight": [3.0]}])
def test_the_weight_of_a_single_output(weights):
    assert sl.SigmoidBCE(**weights)(np.zeros(6), np.ones(6)) == pytest.approx(3 * np.log(2), rel=1e-14)
    with pytest.raises(ValueError, match=r"length 1 where logits of shape \(2, 6\) need 6"):
        sl.SigmoidBCE(**weights)(np.zeros((2, 6)), np.ones((2, 6)))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float32])
def test_labels_that_are_not_known(dtype):
    loss = sl.SigmoidBCE(ignore_index=-1)
    y = np.array([[1, -1, 0], [-1, -1, 1]], dtype)
    z = np.array([[0.5, np.nan, 1.0], [np.inf, 2.0, -1.0]])
    known = y != -1
    value, grad = loss.value_and_grad(z, y)
    want, want_grad = sl.sigmoid_bce.value_and_grad(z[known], y[known])
    assert value == want
    np.testing.assert_array_equal(grad[known], want_grad)
    assert not grad[~known].any()
    assert loss(z, y, mask=[False, True]) == sl.sigmoid_bce([-1.0], [1])
    assert loss(z, y, mask=known) == want
    with pytest.raises(ValueError, match="target at 0 is nan"):
        loss([0.0], [np.nan])
    with pytest.raises(ValueError, match="target at 1 is -1"):
        sl.sigmoid_bce([0.3, 0.1], [1, -1])


def test_several_ignored_classes():
    z, y = np.random.default_rng(5).normal(size=(6, 4)), np.array([0, 3, 1, -100, 2, 255])
    loss = sl.SoftmaxCE(ignore_index=(-100, 2, 255))
    assert loss.ignore_index == (-100, 2, 255)
    assert loss == eval(repr(loss), dict(vars(sl)))
    value, grad = loss.value_and_grad(z, y)
    want, want_grad = sl.softmax_ce.value_and_grad(z[:3], y[:3])
    assert value == want
    np.testing.assert_array_equal(grad[:3], want_grad)
    assert not grad[3:].any()
    assert sl.SigmoidBCE(ignore_index=[-1, 2])([0.0, 3.0, 4.0], [1, -1, 2]) == sl.sigmoid_bce([0.0], [1])
    with pytest.raises(ValueError, match="class index at 0 is 7"):
        loss(z[:2], [7, 2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_focal_exponents_of_one_side_keep_the_limits(dtype, gamma):
    # where a side's probability is 0 or 1: an exponent of 0 leaves that side's term as it is
    z = np.array([-np.inf, np.inf], dtype)
    for pair, y, loss, slope in [
        ((gamma, 0.0), 0.0, [0, np.inf], [0, 1]),
        ((gamma, 0.0), 1.0, [np.inf, 0], [-1, 0]),
        ((0.0, gamma), 0.0, [0, np.inf], [0, 1]),
        ((0.0, gamma), 1.0, [np.inf, 0], [-1, 0]),
        ((gamma, 0.0), 0.5, [np.inf, np.inf], [-0.5, 0.5]),
    ]:
        focal = sl.SigmoidBCE(focal_gamma=pair, reduction="none")
        value, grad = focal.value_and_grad(z, np.full(2, y, dtype))
        np.testing.assert_array_equal(value, loss)
        np.testing.assert_array_equal(grad, slope)
        np.testing.assert_array_equal(focal.grad_and_hess(z, np.full(2, y, dtype))[1], 0)
        np.testing.assert_array_equal(focal.target_grad(z, np.full(2, y, dtype)), [np.inf, -np.inf])


@pytest.mark.parametrize("pair", [(0.0, 2.0), (1.5, 0.0), (0.5, 3.0)])
def test_focal_exponents_of_both_sides(pair):
    gamma, other = pair
    z, y = np.array([-3.0, 0.5, 2.0]), np.array([1.0, 0.25, 0.0])
    loss = sl.SigmoidBCE(focal_gamma=pair, reduction="sum")

    def value(x, t):
        a = 1 / (1 + mpmath.exp(-x))
        return -t * (1 - a) ** gamma * mpmath.log(a) - (1 - t) * a**other * mpmath.log(1 - a)

    with mpmath.workdps(40):
        exact = [
            [mpmath.diff(value, (x, t), order) for x, t in zip(z, y, strict=True)]
            for order in ((0, 0), (1, 0), (2, 0), (0, 1))
        ]
    exact = np.array(exact, float)
    total, grad = loss.value_and_grad(z, y)
    assert total == pytest.approx(exact[0].sum(), rel=1e-14)
    np.testing.assert_allclose(grad, exact[1], rtol=1e-13)
    np.testing.assert_allclose(loss.grad_and_hess(z, y)[1], exact[2], rtol=1e-12)
    np.testing.assert_allclose(loss.target_grad(z, y), exact[3], rtol=1e-13)
    np.testing.assert_allclose(loss.hessian_vector_product(z, y, 2 * z), exact[2] * 2 * z, rtol=1e-12)
    assert sl.SigmoidBCE(focal_gamma=(2, 2)) == sl.SigmoidBCE(focal_gamma=2.0)
    with pytest.raises(ValueError, match="focal_gamma is"):
        sl.SoftmaxCE(focal_gamma=(1.0, 2.0))
    with pytest.raises(ValueError, match="focal_gamma is"):
        sl.SigmoidBCE(focal_gamma=(1.0, 2.0, 3.0))


# ---- weights and masks of images, masks of 0 and 1 ------------------------------------------------

IMAGE_LOSSES = LOSSES + [type(loss)(axis=1) for loss in LOSSES if "axis" in loss._options]
IMAGE_LOSSES.append(sl.SoftmaxCE(axis=0, label_smoothing=0.1))
IMAGE_LOSSES.append(sl.SoftmaxCE(ignore_index=(0, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", IMAGE_LOSSES, ids=repr)
def test_one_weight_per_image(loss, dtype):
    rng = np.random.default_rng(7)
    z = rng.normal(size=(2, 3, 4, 5)).astype(dtype)
    rows = tuple(np.delete(z.shape, loss._axis))
    y = rng.integers(0, 2, rows if loss._rowwise else z.shape)
    for n in (1, 2):
        given = rng.random(rows[:n])
        full = np.broadcast_to(given.reshape(given.shape + (1,) * (3 - n)), rows)
        with_stats = bits.has_statistics(loss._stem)
        got = loss.value_and_grad(z, y, sample_weight=given, mask=given > 0.3, with_stats=with_stats)
        want = loss.value_and_grad(z, y, sample_weight=full, mask=full > 0.3, with_stats=with_stats)
        assert got[0] == want[0]
        np.testing.assert_array_equal(got[1], want[1])
        if with_stats:
            assert got[2].correct == want[2].correct
            np.testing.assert_array_equal(got[2].predicted, want[2].predicted)
    for shape in [(), (1,), (2, 1), (2, 1, 1), (5,), (1, *rows)]:
        with pytest.raises(ValueError, match=r"sample_weight has shape .* need "):
            loss(z, y, sample_weight=np.ones(shape))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float16])
def test_masks_of_0_and_1(dtype):
    mask = np.array([1, 0, 1], dtype)
    assert sl.softmax_ce(Z, LABELS, mask=mask) == sl.softmax_ce(Z, LABELS, mask=mask != 0)
    assert sl.sigmoid_bce(Z, ONE_HOT, mask=[1, 0, 1]) == sl.sigmoid_bce(Z, ONE_HOT, mask=mask != 0)
    with pytest.raises(ValueError, match="mask at 1 is 2"):
        sl.softmax_ce(Z, LABELS, mask=np.array([1, 2, 1], dtype))


# ---- wider outputs of half precision --------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [4, 200, 5000])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_wider_gradient_of_half_precision(loss, k, dtype):
    rng = np.random.default_rng(9)
    z = rng.normal(size=(3, k)).astype(np.float16)
    y = rng.integers(0, 2, z.shape if not loss._rowwise else 3)
    for targets in [y] if not loss._rowwise else [y, np.eye(k)[y]]:
        out = np.empty((k, 3), dtype).T
        value, grad = loss.value_and_grad(z, targets, out=out)
        want, want_grad = loss.value_and_grad(z.astype(np.float32), targets)
        assert grad is out
        assert value == want
        np.testing.assert_allclose(grad, want_grad, rtol=5e-7)
        pair = np.empty(z.shape, dtype), np.empty(z.shape, dtype)
        _, hess = loss.grad_and_hess(z, targets, out=pair)
        np.testing.assert_allclose(hess, loss.grad_and_hess(z.astype(np.float32), targets)[1], rtol=5e-7)
    with pytest.raises(TypeError, match="out has dtype"):
        loss.value_and_grad(z.astype(np.float64), y, out=np.empty(z.shape, np.float32))


# ---- axes of activations --------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, (0,), (2, 3), (-1, 0), (1, 3, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_over_several_axes(axis, dtype):
    x = np.random.default_rng(11).normal(size=(2, 3, 4, 5)).astype(dtype)
    e = np.exp(x.astype(float))
    total = e.sum(axis=axis, keepdims=True)
    rtol = 1e-6 if dtype is np.float32 else 1e-14
    np.testing.assert_allclose(sl.softmax(x, axis=axis), e / total, rtol=rtol)
    np.testing.assert_allclose(sl.log_softmax(x, axis=axis), np.log(e / total), rtol=10 * rtol)
    kept = sl.logsumexp(x, axis=axis, keepdims=True)
    assert kept.shape == total.shape
    assert kept.dtype == dtype
    np.testing.assert_allclose(kept, np.log(total), rtol=10 * rtol)
    flat = sl.logsumexp(x, axis=axis)
    assert np.shape(flat) == e.sum(axis=axis).shape
    np.testing.assert_array_equal(flat, kept.reshape(np.shape(flat)))
    out = np.empty_like(kept)
    assert sl.logsumexp(x, axis=axis, keepdims=True, out=out) is out
    np.testing.assert_array_equal(out, kept)
    softmax = sl.softmax(x, axis=axis)
    assert sl.softmax(x, axis=axis, out=x) is x
    np.testing.assert_array_equal(x, softmax)


def test_keepdims_of_one_axis():
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(sl.logsumexp(x, keepdims=True), sl.logsumexp(x)[:, None])
    np.testing.assert_array_equal(sl.logsumexp(x, axis=0, keepdims=True), sl.logsumexp(x, axis=0)[None])


@pytest.mark.parametrize("axis", [(), (0, 0), (0, -2), (0, 2), (-3,)])
def test_axes_that_are_none(axis):
    with pytest.raises(ValueError, match="axis"):
        sl.logsumexp(np.zeros((2, 3)), axis=axis)


# ---- what is refused, and the line that mends it --------------------------------------------------


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (np.array(["a", "b", "c"]), r"strings such as .*np.unique\(targets, return_inverse=True\)\[1\]"),
        (np.array(["a", "b", "c"], object), r"strings such as 'a'"),
        ({0: 1}, r"targets is a dict, not an array: pass \[targets\[c\] for c in range\(1\)\]"),
        (np.array([1, 0, None], object), r"\(of NoneType, int\): pass np.asarray\(targets, float\)"),
        (np.array([1j, 0, 0]), "must hold real numbers, not dtype complex128"),
    ],
)
def test_types_that_are_no_numbers(given, fix):
    for loss, z in [(sl.softmax_ce, np.zeros((3, 3))), (sl.sigmoid_bce, np.zeros(3))]:
        with pytest.raises(TypeError, match=fix):
            loss(z, given)


def test_sparse_targets():
    sparse = pytest.importorskip("scipy.sparse")
    for one_hot in (sparse.csr_array(np.eye(3)), sparse.coo_matrix(np.eye(3))):
        with pytest.raises(TypeError, match=r"targets is a sparse co?[os].*: pass targets.toarray\(\)"):
            sl.softmax_ce(np.zeros((3, 3)), one_hot)
        assert sl.softmax_ce(np.zeros((3, 3)), one_hot.toarray()) > 0


def test_pandas_that_is_no_numbers():
    pd = pytest.importorskip("pandas")
    y = pd.Series([True, None, False], dtype="boolean")
    with pytest.raises(
        TypeError, match=r"Series of dtype boolean.*to_numpy\(float, na_value=0\).*mask=targets.notna\(\)"
    ):
        sl.sigmoid_bce(np.zeros(3), y)
    assert sl.sigmoid_bce(np.zeros(3), y.to_numpy(float, na_value=0), mask=y.notna()) > 0
    with pytest.raises(TypeError, match="strings such as 'a'"):
        sl.softmax_ce(np.zeros((3, 3)), pd.Series(["a", "b", "c"]))
    with pytest.raises(TypeError, match=r"\(of float\): pass np.asarray\(logits, float\)"):
        sl.softmax_ce(pd.DataFrame(np.zeros((3, 3))).astype(object), [0, 1, 2])


class Series:
    """As much of a pandas Series as matters here."""

    def __init__(self, values, index):
        self.values, self.index = values, index

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


@pytest.mark.parametrize("option", ["class_weight", "pos_weight"])
def test_a_series_of_weights_has_its_classes_in_order(option):
    assert getattr(sl.SigmoidBCE(**{option: Series([1.0, 2.0], range(2))}), option) == (1.0, 2.0)
    with pytest.raises(ValueError, match=rf"{option} has the index \[1, 0\].*{option}.sort_index\(\)"):
        sl.SigmoidBCE(**{option: Series([1.0, 2.0], [1, 0])})
    with pytest.raises(ValueError, match=rf"index \['a', 'b'\].*{option}.loc\[classes\].to_numpy\(\)"):
        sl.SigmoidBCE(**{option: Series([1.0, 2.0], ["a", "b"])})
    with pytest.raises(TypeError, match=rf"{option} is a dict.*\[{option}\[c\] for c in range\(2\)\]"):
        sl.SigmoidBCE(**{option: {0: 1.0, 1: 2.0}})


def test_shapes_that_a_line_mends():
    z = np.zeros((5, 3))
    with pytest.raises(ValueError, match=r"\(1, 5\).*for class indices pass targets.reshape\(\(5,\)\)"):
        sl.softmax_ce(z, np.zeros((1, 5), int))
    with pytest.raises(ValueError, match=r"\(5,\).*pass targets.reshape\(\(1, 5\)\)"):
        sl.sigmoid_bce(np.zeros((1, 5)), np.zeros(5))
    with pytest.raises(ValueError, match=r"pass np.full\(\(5, 3\), targets\)"):
        sl.sigmoid_bce(z, 1.0)
    with pytest.raises(ValueError, match=r"target at 1 is -1.*passed as \(targets \+ 1\) / 2"):
        sl.sigmoid_bce(z[:, 0], [1, -1, 1, 1, -1])
    with pytest.raises(ValueError, match=r"class index at 1 is -1.*passed as \(targets \+ 1\) // 2"):
        sl.softmax_ce(z[:, :2], [1, -1, 1, 1, -1])

"""What users of other libraries bring: weights of any scale and sign, targets that rounding has moved, masks of 0 and 1."""

import mpmath
import numpy as np
import pytest

import stableloss as sl

DTYPES = [np.float32, np.float64]
Z = np.array([[1.0, 0.0], [0.0, 2.0], [-1.5, 0.25]])
LABELS = np.array([0, 1, 1])
ONE_HOT = np.eye(2)[LABELS]
RELATIVE = {np.float32: 1e-6, np.float64: 1e-14}


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def terms(stem, z, targets):
    """Unweighted losses and gradients, by the formulas of the textbooks in float64."""
    z = z.astype(np.float64)
    if stem.startswith("softmax"):
        p = softmax(z)
        if stem == "softmax_ce":
            return -(targets * np.log(p)).sum(-1), p - targets
        d = p - targets
        return (d * d).sum(-1) / 2, p * (d - (p * d).sum(-1, keepdims=True))
    a = 1 / (1 + np.exp(-z))
    if stem == "sigmoid_bce":
        return -targets * np.log(a) - (1 - targets) * np.log1p(-a), a - targets
    return (a - targets) ** 2 / 2, (a - targets) * a * (1 - a)


def assert_close(got, want, dtype):
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=RELATIVE[dtype], atol=0)


# ---- weights of any scale -------------------------------------------------------------------------

SCALES = [1e-307, 1e-290, 1e-50, 1e-41, 1e-20, 1e-7, 1.0, 1e7, 1e20, 1e39, 1e50, 1e200, 1e288, 1e300]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("stem", ["softmax_ce", "softmax_mse"])
def test_a_weighted_mean_of_rows_knows_no_scale(stem, hard, dtype, scale):
    weight = np.array([1.0, 3.0, 0.5])
    losses, grads = terms(stem, Z, ONE_HOT)
    value, grad = getattr(sl, stem).value_and_grad(
        Z.astype(dtype), LABELS if hard else ONE_HOT, sample_weight=scale * weight
    )
    assert_close(value, weight @ losses / weight.sum(), dtype)
    assert_close(grad, grads * (weight / weight.sum())[:, None], dtype)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stem", ["sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse"])
def test_only_weight_over_denominator_matters(stem, dtype, scale):
    weight = np.array([1.0, 3.0, 0.5])
    losses, grads = terms(stem, Z, ONE_HOT)
    targets = ONE_HOT if stem.startswith("sigmoid") else LABELS
    value, grad = getattr(sl, stem).value_and_grad(
        Z.astype(dtype), targets, sample_weight=scale * weight, denominator=4 * scale
    )
    assert_close(value, (weight @ losses).sum() / 4, dtype)
    assert_close(grad, grads * weight[:, None] / 4, dtype)


def test_weights_whose_sum_overflows():
    losses, grads = terms("softmax_ce", Z, ONE_HOT)
    value, grad = sl.softmax_ce.value_and_grad(Z, LABELS, sample_weight=[1.5e308] * 3)
    assert_close(value, losses.mean(), np.float64)
    assert_close(grad, grads / 3, np.float64)


@pytest.mark.parametrize("denominator", [1e-300, 1e280])
@pytest.mark.parametrize("stem", ["sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse"])
def test_a_denominator_of_any_scale(stem, denominator):
    losses, grads = terms(stem, Z, ONE_HOT)
    targets = ONE_HOT if stem.startswith("sigmoid") else LABELS
    value, grad = getattr(sl, stem).value_and_grad(Z, targets, denominator=denominator)
    assert_close(value, losses.sum() / denominator, np.float64)
    assert_close(grad, grads / denominator, np.float64)


@pytest.mark.parametrize("scale", [1e-200, 1e-50, 1e-10, 1e10, 1e39, 1e50, 1e200])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hard", [True, False])
def test_class_weights_are_offset_by_sample_weights(hard, dtype, scale):
    losses, grads = terms("softmax_ce", Z, ONE_HOT)
    loss = sl.SoftmaxCE(reduction="sum", class_weight=[scale, 2 * scale])
    value, grad = loss.value_and_grad(Z.astype(dtype), LABELS if hard else ONE_HOT, sample_weight=[1 / scale] * 3)
    weight = np.array([1.0, 2.0, 2.0])
    assert_close(value, weight @ losses, dtype)
    assert_close(grad, grads * weight[:, None], dtype)


def test_products_of_weights_that_differ_by_much():
    losses, grads = terms("softmax_ce", Z, ONE_HOT)
    loss = sl.SoftmaxCE(class_weight=[1e250, 1e-250])
    value, grad = loss.value_and_grad(Z, LABELS, sample_weight=[1e-250, 1e250, 1e250])
    assert_close(value, losses.mean(), np.float64)
    assert_close(grad, grads / 3, np.float64)


@pytest.mark.parametrize("scale", [1e-50, 1e-10, 1e10, 1e39, 1e50])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", ["class_weight", "pos_weight"])
def test_weights_of_outputs_are_offset_by_sample_weights(option, dtype, scale):
    losses, grads = terms("sigmoid_bce", Z, np.ones_like(Z))
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
    want = 1000 * -float(z[0]) * (options.get("label_smoothing", 0) and 1.5 or 1)
    assert sl.SigmoidBCE(**options)(z, [1.0], **arguments) == pytest.approx(want, rel=1e-7)


# ---- signed weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize("stem", ["sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse"])
def test_negative_sample_weights(stem, reduction, dtype):
    advantage = np.array([1.5, -0.5, 2.0])
    kind = type(getattr(sl, stem))
    losses, grads = terms(stem, Z, ONE_HOT)
    by_element = stem.startswith("sigmoid")
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

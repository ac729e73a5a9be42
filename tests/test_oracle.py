"""The oracle itself: derivatives against mpmath.diff, MPFR against mpmath, the ulp count."""

import gmpy2
import mpmath
import numpy as np
import oracle
import pytest

SOFTMAX_TARGETS = {
    "index": 2,
    "index-of-least": 3,
    "soft": [0.125, 0.25, 0.5, 0.125],
    "unnormalised": [0.5, 0.0, 1.5, 0.25],
}
LOGITS = {
    "ordinary": [0.5, -1.25, 2.0, -3.5],
    "confident": [-30.0, -20.0, 12.0, -40.0],
    "ties": [1.0, 1.0, 1.0, 1.0],
}
SIGMOID_LOGITS = [-40.0, -3.0, -0.5, 0.0, 0.75, 5.0, 30.0]


def in_mpmath(values):
    return np.array([mpmath.mpf(v) for v in values], dtype=object)


def agree(a, b):
    """Equal to about 250 decimals; mpmath.diff and MPFR round differently beyond."""
    difference = abs(mpmath.mpf(a) - mpmath.mpf(b))
    return difference <= mpmath.mpf(2) ** -800 * max(abs(mpmath.mpf(b)), mpmath.mpf(2) ** -300)


def to_mpmath(value):
    mantissa, exponent = value.as_mantissa_exp()
    return mpmath.ldexp(mpmath.mpf(int(mantissa)), int(exponent))


@pytest.mark.parametrize("name", ["softmax_ce", "softmax_mse"])
@pytest.mark.parametrize("targets", SOFTMAX_TARGETS.values(), ids=SOFTMAX_TARGETS)
@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_softmax_derivatives(name, targets, logits):
    exact = oracle.LOSSES[name](np.array(logits), np.array(targets))
    dense = in_mpmath([float(t) for t in oracle.dense_targets(np.array(logits), targets)])
    for i in range(len(logits)):

        def loss(z, i=i):
            x = in_mpmath(logits)
            x[i] = z
            return oracle.LOSSES[name](x, dense).loss.item()

        assert agree(to_mpmath(exact.grad[i]), mpmath.diff(loss, logits[i]))
        assert agree(to_mpmath(exact.hess[i]), mpmath.diff(loss, logits[i], 2))


@pytest.mark.parametrize("name", ["sigmoid_bce", "sigmoid_mse"])
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_sigmoid_derivatives(name, target):
    exact = oracle.LOSSES[name](np.array(SIGMOID_LOGITS), np.full(len(SIGMOID_LOGITS), target))
    for i, z in enumerate(SIGMOID_LOGITS):

        def loss(z):
            y = np.array(mpmath.mpf(target), dtype=object)
            return oracle.LOSSES[name](np.array(z, dtype=object), y).loss.item()

        assert agree(to_mpmath(exact.grad[i]), mpmath.diff(loss, z))
        assert agree(to_mpmath(exact.hess[i]), mpmath.diff(loss, z, 2))


def test_mpfr_agrees_with_mpmath():
    """Every function of the oracle, each evaluated by both libraries."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6, 5)) * 20
    targets = rng.dirichlet(np.ones(5), size=6)
    columns = in_mpmath(logits.ravel()).reshape(6, 5), in_mpmath(targets.ravel()).reshape(6, 5)
    for name, loss in oracle.LOSSES.items():
        ours, theirs = loss(logits, targets), loss(*columns)
        for field in ("loss", "grad", "hess"):
            pairs = zip(getattr(ours, field).flat, getattr(theirs, field).flat, strict=True)
            assert all(agree(to_mpmath(a), b) for a, b in pairs), (name, field)


@pytest.mark.parametrize("margin", [0.0, 17.0, 40.0, 300.0, 700.0, 745.0])
def test_confident_values_keep_their_bits(margin):
    """The textbook forms against the closed forms that do not cancel."""
    rest = gmpy2.exp(gmpy2.mpfr(-margin))
    row = oracle.softmax_ce(np.array([margin, 0.0]), np.array(0))
    element = oracle.sigmoid_bce(np.array(margin), np.array(1.0))
    for exact in (row, element):
        loss, grad = exact.loss.item(), exact.grad.flat[0]
        assert abs(loss - gmpy2.log1p(rest)) <= loss * gmpy2.exp2(-200)
        assert abs(grad + rest / (1 + rest)) <= abs(grad) * gmpy2.exp2(-200)


def test_limits_follow_the_rules():
    inf, nan = np.inf, np.nan
    rows = np.array([[inf, 0, inf], [-inf, 1, 1], [-inf, -inf, -inf], [nan, 0, 0]])
    p = oracle.softmax(rows).astype(float)
    np.testing.assert_array_equal(p[:2], [[0.5, 0, 0.5], [0, 0.5, 0.5]])
    assert np.isnan(p[2:]).all()
    exact = oracle.sigmoid_bce(np.array([inf, -inf, inf, -inf, nan]), np.array([1, 0, 0, 1, 1]))
    np.testing.assert_array_equal(exact.loss.astype(float), [0, 0, inf, inf, nan])
    np.testing.assert_array_equal(exact.grad.astype(float), [0, 0, 1, -1, nan])


@pytest.mark.parametrize(
    ("got", "exact", "dtype", "error"),
    [
        (1.0, "1", np.float32, 0),
        (1.0 + 2**-23, "1", np.float32, 1),
        (1.0 - 2**-24, "1", np.float32, 0.5),
        (1.0 + 2**-52, "1", np.float64, 1),
        (3.0 + 2**-22, "3", np.float32, 1),
        (0.0, "1e-39", np.float32, 0),
        (0.0, "1e-37", np.float32, 1e-37 / 2**-146),
        (2**-149, "0", np.float32, 1),
        (5e-324, "0", np.float64, 1),
        (0.0, "1e-310", np.float64, 0),
        (np.inf, "1e39", np.float32, 0),
        (np.inf, "1e38", np.float32, np.inf),
        (np.nan, "1", np.float32, np.inf),
        (np.nan, "nan", np.float64, 0),
        (np.inf, "inf", np.float64, 0),
        (-np.inf, "inf", np.float64, np.inf),
    ],
)
def test_ulp_error(got, exact, dtype, error):
    measured = oracle.ulp_error(got, np.array(gmpy2.mpfr(exact), dtype=object), dtype)
    assert measured == pytest.approx(error, rel=0.1)


def test_ulp_error_in_ulps_of_a_term():
    exact = oracle.lift(2.0**-10)
    assert oracle.ulp_error(2.0**-10 + 2**-52, exact, np.float64, gmpy2.mpfr(1)) == 1


def test_assert_within_names_the_worst_entry():
    exact = oracle.lift([1.0, 2.0, 4.0])
    with pytest.raises(AssertionError, match=r"3\.00 ulp at \(1,\)"):
        oracle.assert_within(2, [1.0, 2.0 + 3 * 2**-51, 4.0], exact, np.float64)

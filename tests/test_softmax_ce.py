"""The contract for softmax_ce, and the rows of its table of edge cases."""

import numpy as np
import oracle
import pytest
from cases import DTYPE_ONLY, assert_same_bits
from contract import SoftmaxContract

import stableloss as sl

INF, NAN = np.inf, np.nan
LN2 = 0.6931471805599453


class TestSoftmaxCE(SoftmaxContract):
    stem = "softmax_ce"
    sigmoid_stem = "sigmoid_bce"
    two_class_factor = 1
    vocabulary = 128256

    def two_class_term(self, z):
        return 0 * z

    @pytest.mark.parametrize(
        ("logits", "target", "loss", "grad", "hess"),
        [
            ([NAN, 0, 0], 1, NAN, [NAN] * 3, [NAN] * 3),
            ([0, -INF, 0], 0, LN2, [-0.5, 0, 0.5], [0.25, 0, 0.25]),
            ([0, -INF, 0], [0.5, 0, 0.5], LN2, [0, 0, 0], [0.25, 0, 0.25]),
            ([0, -INF, 0], 1, INF, [0.5, -1, 0.5], [0.25, 0, 0.25]),
            ([0, -INF, 0], [0.5, 0.5, 0], INF, [0, -0.5, 0.5], [0.25, 0, 0.25]),
            ([0, INF, 0], 0, INF, [-1, 1, 0], [0, 0, 0]),
            ([0, INF, 0], 1, 0, [0, 0, 0], [0, 0, 0]),
            ([INF, INF, 0], 0, LN2, [-0.5, 0.5, 0], [0.25, 0.25, 0]),
            ([INF, INF, 0], 2, INF, [0.5, 0.5, -1], [0.25, 0.25, 0]),
            ([INF, -INF, INF], 2, LN2, [0.5, 0, -0.5], [0.25, 0, 0.25]),
            ([-INF, -INF, -INF], 0, NAN, [NAN] * 3, [NAN] * 3),
            ([-INF, 5, -INF], 1, 0, [0, 0, 0], [0, 0, 0]),
        ],
    )
    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_edge(self, dtype, logits, target, loss, grad, hess):
        got = self.results(np.array(logits, dtype), np.array(target))
        for value, expected in zip(got, (loss, grad, grad, hess), strict=True):
            np.testing.assert_allclose(value, expected, rtol=3e-7, atol=0)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_second_derivative_is_not_negative(self, dtype):
        for scale in (1, 30, 1000):
            logits = np.random.default_rng(3).normal(scale=scale, size=(300, 10)).astype(dtype)
            _, hess = sl.softmax_ce.grad_and_hess(logits, np.arange(300) % 10)
            assert (hess >= 0).all()

    @pytest.mark.parametrize("weight", [1e-30, 1e20, 1e30])
    @pytest.mark.parametrize(("n", "k"), [(3, 10), (33, 10), (2, 200), (2, 2100)])
    @pytest.mark.parametrize("kind", ["hard", "soft"])
    def test_extreme_weights(self, weight, n, k, kind):
        """Beyond what a product with exponentials or their sum leaves of the range of float32."""
        rng = np.random.default_rng(k)
        logits = rng.normal(scale=3, size=(n, k)).astype(np.float32)
        targets = rng.integers(0, k, n) if kind == "hard" else rng.dirichlet(np.ones(k), n).astype(np.float32)
        weights = np.full(n, weight)
        exact = oracle.softmax_ce(logits, targets).scaled(weights)
        loss = sl.SoftmaxCE(reduction="sum")
        grad, hess = loss.grad_and_hess(logits, targets, sample_weight=weights)
        oracle.assert_within(4, grad, exact.grad, np.float32, exact.grad_term, "gradient")
        oracle.assert_within(4, hess, exact.hess, np.float32, exact.hess_term, "Hessian")
        _, grad = loss.value_and_grad(logits, targets, sample_weight=weights)
        oracle.assert_within(4, grad, exact.grad, np.float32, exact.grad_term, "gradient alone")

    @pytest.mark.parametrize("denominator", [1e-300, 1e-45, 1e-39, 1e39])
    @pytest.mark.parametrize(("n", "k"), [(3, 10), (33, 10), (2, 200), (2, 2100)])
    @pytest.mark.parametrize("kind", ["hard", "soft"])
    def test_extreme_denominators(self, denominator, n, k, kind):
        """An entry of 0 stays 0 where the others leave the range of float32."""
        logits = np.full((n, k), -1000, np.float32)
        logits[:, 1] = 0
        targets = np.ones(n, int) if kind == "hard" else np.eye(k, dtype=np.float32)[np.ones(n, int)]
        _, grad = sl.softmax_ce.value_and_grad(logits, targets, denominator=denominator)
        np.testing.assert_array_equal(grad, np.zeros((n, k)))


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("k", [1, 3, 100, 128, 129, 1000, 1023, 2048, 5000])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weight": True}])
@pytest.mark.filterwarnings("ignore:invalid value|overflow")
def test_bits_of_soft_rows_depend_on_nothing_else(options, k, dtype):
    """Neither on the rows beside them, which may be anything, nor on how they lie in memory."""
    if "class_weight" in options:
        options = {"class_weight": np.arange(k) % 7 / 4}
    rng, n = np.random.default_rng(k), 40
    loss = sl.SoftmaxCE(reduction="none", **options)
    logits = (rng.normal(size=(n, k)) * rng.choice([1, 20], (n, 1))).astype(dtype)
    targets = rng.dirichlet(np.full(k, 0.3), n).astype(dtype)
    targets[::3] = np.eye(k)[logits[::3].argmax(axis=1)]
    logits[5], logits[6, -1], logits[7, 0], logits[8, 0] = -INF, INF, NAN, np.finfo(dtype).max
    logits[9, : k // 2], targets[10] = -INF, targets[10] * 1e-30
    value, grad = loss.value_and_grad(logits, targets)
    strided = np.empty((n, 2 * k), dtype)[:, ::2]
    strided[...] = logits
    for other in (strided, np.asfortranarray(logits)):
        got, got_grad = loss.value_and_grad(other, targets)
        assert_same_bits(got, value)
        assert_same_bits(np.ascontiguousarray(got_grad), grad)
    for rows in (slice(0, 1), slice(5, 6), slice(11, 40), slice(3, 12)):
        got, got_grad = loss.value_and_grad(logits[rows], targets[rows])
        assert_same_bits(got, value[rows])
        assert_same_bits(got_grad, grad[rows])
    assert_same_bits(loss(logits, targets), value)

"""The contract for softmax_ce, and the rows of its table of edge cases."""

import numpy as np
import pytest
from cases import DTYPE_ONLY
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

"""The contract for softmax_mse, and the rows of its table of edge cases."""

import numpy as np
import pytest
from cases import DTYPE_ONLY
from contract import SoftmaxContract

import stableloss as sl

INF, NAN = np.inf, np.nan


class TestSoftmaxMSE(SoftmaxContract):
    stem = "softmax_mse"
    sigmoid_stem = "sigmoid_mse"
    # Both classes miss by the same amount, so the sum of the two squares is twice the sigmoid's.
    two_class_factor = 2
    vocabulary = 16384

    def two_class_term(self, z):
        # p (d - p.d), with d = p
        return sl.sigmoid(z) ** 2

    @pytest.mark.parametrize(
        ("logits", "target", "loss", "grad"),
        [
            ([NAN, 0, 0], 1, NAN, [NAN] * 3),
            ([0, -INF, 0], 0, 0.25, [-0.25, 0, 0.25]),
            ([0, -INF, 0], [0.5, 0, 0.5], 0, [0, 0, 0]),
            ([0, -INF, 0], 1, 0.75, [0, 0, 0]),
            ([0, INF, 0], 0, 1, [0, 0, 0]),
            ([0, INF, 0], 1, 0, [0, 0, 0]),
            ([INF, INF, 0], 0, 0.25, [-0.25, 0.25, 0]),
            ([INF, INF, 0], 2, 0.75, [0, 0, 0]),
            ([-INF, -INF, -INF], 0, NAN, [NAN] * 3),
            ([-INF, 5, -INF], 1, 0, [0, 0, 0]),
        ],
    )
    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_edge(self, dtype, logits, target, loss, grad):
        got = self.results(np.array(logits, dtype), np.array(target))
        np.testing.assert_allclose(got.loss, loss, rtol=3e-7, atol=0)
        np.testing.assert_allclose(got.grad, grad, rtol=3e-7, atol=0)

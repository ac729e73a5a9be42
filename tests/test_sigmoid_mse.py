"""The contract for sigmoid_mse, and the rows of its table of edge cases."""

import numpy as np
import pytest
from cases import DTYPE_ONLY
from contract import SigmoidContract

INF, NAN = np.inf, np.nan


class TestSigmoidMSE(SigmoidContract):
    stem = "sigmoid_mse"

    @pytest.mark.parametrize(
        ("logit", "target", "loss"),
        [
            (INF, 1, 0),
            (-INF, 0, 0),
            (INF, 0, 0.5),
            (-INF, 1, 0.5),
            (INF, 0.5, 0.125),
            (1e30, 0, 0.5),
            (-1e30, 0, 0),
        ],
    )
    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_edge(self, dtype, logit, target, loss):
        for n in (1, 40):
            got = self.results(np.full(n, logit, dtype), np.full(n, target))
            np.testing.assert_array_equal(got.loss, np.full(n, loss, dtype))
            np.testing.assert_array_equal(got.grad, np.zeros(n))
            np.testing.assert_array_equal(got.hess, np.zeros(n))

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_only_the_nan_element_is_nan(self, dtype):
        logits = np.linspace(-3, 3, 40).astype(dtype)
        logits[7] = NAN
        for array in self.results(logits, np.ones(40)):
            np.testing.assert_array_equal(np.flatnonzero(np.isnan(array)), [7])

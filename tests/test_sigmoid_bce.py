"""The contract for sigmoid_bce, and the rows of its table of edge cases."""

import numpy as np
import pytest
from cases import DTYPE_ONLY
from contract import SigmoidContract

INF, NAN = np.inf, np.nan


class TestSigmoidBCE(SigmoidContract):
    stem = "sigmoid_bce"

    @pytest.mark.parametrize(
        ("logit", "target", "loss", "grad"),
        [
            (NAN, 1, NAN, NAN),
            (INF, 1, 0, 0),
            (-INF, 0, 0, 0),
            (INF, 0, INF, 1),
            (-INF, 1, INF, -1),
            (INF, 0.25, INF, 0.75),
            (-INF, 0.25, INF, -0.25),
            (1e30, 1, 0, 0),
            (1e30, 0, 1e30, 1),
            (-1e30, 1, 1e30, -1),
        ],
    )
    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_edge(self, dtype, logit, target, loss, grad):
        for n in (1, 40):
            got = self.results(np.full(n, logit, dtype), np.full(n, target))
            np.testing.assert_array_equal(got.loss, np.full(n, loss, dtype))
            np.testing.assert_array_equal(got.grad, np.full(n, grad, dtype))
            np.testing.assert_array_equal(got.hess, np.full(n, NAN if np.isnan(logit) else 0))

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_only_the_nan_element_is_nan(self, dtype):
        logits = np.linspace(-3, 3, 40).astype(dtype)
        logits[7] = NAN
        for array in self.results(logits, np.ones(40)):
            np.testing.assert_array_equal(np.flatnonzero(np.isnan(array)), [7])

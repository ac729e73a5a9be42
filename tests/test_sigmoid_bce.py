"""The contract for sigmoid_bce, and the rows of its table of edge cases."""

import numpy as np
import oracle
import pytest
from cases import DTYPE_ONLY
from contract import SigmoidContract

import stableloss as sl

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

    @pytest.mark.parametrize(("denominator", "least"), [(1e-50, 60), (1e-44, 30), (1e-39, 5), (1e38, -20)])
    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_extreme_denominators(self, dtype, denominator, least):
        """Divisors that float32 does not hold, or not to all of their digits."""
        logits = np.linspace(least, least + 20, 700).astype(dtype)
        exact = oracle.sigmoid_bce(logits, np.ones(700)).scaled(1 / oracle.lift(np.full(700, denominator)))
        _, grad = sl.sigmoid_bce.value_and_grad(logits, np.ones(700), denominator=denominator)
        oracle.assert_within(4, grad, exact.grad, logits.dtype, exact.grad_term)

    @pytest.mark.parametrize("weight", [1e-30, 1e20, 1e30])
    def test_extreme_weights(self, weight):
        logits, weights = np.linspace(-20, 20, 700, dtype=np.float32), np.full(700, weight, np.float32)
        exact = oracle.sigmoid_bce(logits, np.ones(700)).scaled(weights)
        grad, hess = sl.sigmoid_bce.grad_and_hess(logits, np.ones(700), sample_weight=weights)
        oracle.assert_within(4, grad, exact.grad, np.float32, exact.grad_term, "gradient")
        oracle.assert_within(4, hess, exact.hess, np.float32, exact.hess_term, "Hessian")

    def test_negative_zero_is_a_target(self):
        targets = np.where(np.arange(700) % 3, 0.0, -0.0)
        for dtype in (np.float32, np.float64):
            logits = np.linspace(-5, 5, 700).astype(dtype)
            assert sl.sigmoid_bce(logits, targets.astype(dtype)) == sl.sigmoid_bce(
                logits, np.zeros(700, dtype)
            )

    @pytest.mark.parametrize(
        "dtype", ["bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float16"]
    )
    def test_targets_of_any_dtype(self, dtype):
        logits = np.linspace(-5, 5, 700, dtype=np.float32)
        targets = np.arange(700) % 2
        expected = sl.sigmoid_bce.value_and_grad(logits, targets.astype(np.float32))
        value, grad = sl.sigmoid_bce.value_and_grad(logits, targets.astype(dtype))
        assert value == expected[0]
        np.testing.assert_array_equal(grad, expected[1])

    @pytest.mark.parametrize(
        ("dtype", "wrong"),
        [("uint8", 2), ("uint8", 255), ("int8", -1), ("int8", -128), ("int32", -(2**31)), ("int32", 2),
         ("uint32", 2**32 - 1), ("int64", -(2**63)), ("int64", 2**62), ("int64", 2), ("uint64", 2**63),
         ("float32", -2e-6), ("float32", 1.000002), ("float32", NAN), ("float32", -NAN),
         ("float64", -4e-15), ("float64", 1.000000000000004), ("float64", NAN), ("float64", -NAN),
         ("float64", -INF)],
    )  # fmt: skip
    def test_one_target_out_of_range(self, dtype, wrong):
        targets = np.zeros(700, dtype)
        targets[601] = wrong
        with pytest.raises(ValueError, match="601"):
            sl.sigmoid_bce(np.zeros(700), targets)

"""Properties that hold for every input, searched by Hypothesis."""

import math

import bits
import numpy as np
import pytest
from cases import DTYPE_ONLY, DTYPES, assert_same_bits, targets_for
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import stableloss as sl

BY_ROWS = [stem for stem in bits.LOSSES if bits.by_rows(stem)]
BATCH_SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
CE = sl.SoftmaxCE(reduction="none")
BCE = sl.SigmoidBCE(reduction="none")


def finite(dtype):
    width = np.dtype(dtype).itemsize * 8
    return st.floats(width=width, allow_nan=False, allow_infinity=False)


def moderate(dtype, bound):
    return st.floats(-bound, bound, width=np.dtype(dtype).itemsize * 8)


def logits(dtype, elements):
    return hnp.arrays(dtype, BATCH_SHAPES, elements=elements)


def any_index(n, k):
    return np.random.default_rng([n, k]).integers(0, k, n)


def unreduced(stem):
    return type(getattr(sl, stem))(reduction="none")


# Multiples of 2**-8 below 2**7 stay exact when a whole number below 2**9 is added: 24 bits suffice.
EIGHT_BIT_FRACTIONS = hnp.arrays(np.int16, BATCH_SHAPES)
SHIFT = st.integers(-511, 511)


@pytest.mark.parametrize("stem", BY_ROWS)
@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_shift_invariance(stem, dtype):
    """A shift that the format represents exactly changes no bit."""

    @given(EIGHT_BIT_FRACTIONS, SHIFT)
    def check(numerators, shift):
        x = numerators / 256
        targets = any_index(*x.shape)
        loss = unreduced(stem)
        a = loss.value_and_grad(x.astype(dtype), targets)
        b = loss.value_and_grad((x + shift).astype(dtype), targets)
        assert_same_bits(a[0], b[0])
        assert_same_bits(a[1], b[1])
        hess = loss.grad_and_hess(x.astype(dtype), targets)[1]
        assert_same_bits(loss.grad_and_hess((x + shift).astype(dtype), targets)[1], hess)

    check()


@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
def test_permutation_equivariance(dtype, limit):
    """Permuted classes: the same loss and permuted derivatives, each within its own error."""

    @given(logits(dtype, moderate(dtype, 800.0)), st.randoms(use_true_random=False))
    def check(x, random):
        n, k = x.shape
        order = np.array(random.sample(range(k), k))
        targets = any_index(n, k)
        moved = np.argsort(order)[targets]
        loss, grad = CE.value_and_grad(x, targets)
        loss_moved, grad_moved = CE.value_and_grad(x[:, order], moved)
        unit, tiny = 2 * limit * np.finfo(dtype).eps, np.finfo(dtype).smallest_normal
        np.testing.assert_allclose(loss_moved, loss, rtol=unit, atol=tiny)
        np.testing.assert_allclose(grad_moved, grad[:, order], rtol=unit, atol=tiny)
        hess = CE.grad_and_hess(x, targets)[1]
        hess_moved = CE.grad_and_hess(x[:, order], moved)[1]
        np.testing.assert_allclose(hess_moved, hess[:, order], rtol=unit, atol=tiny)

    check()


@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
def test_gradient_of_ce_adds_up_to_zero(dtype, limit):
    """Within the error of its entries: the exact sum is 0. With soft targets an entry is a difference,
    p - t, and its error one of the larger term."""

    @given(logits(dtype, finite(dtype)))
    def check(x):
        n, k = x.shape
        index = any_index(n, k)
        soft = np.random.default_rng([k, n]).dirichlet(np.ones(k), n).astype(dtype)
        for targets, terms in [(index, 0), (soft, np.maximum(sl.softmax(x), soft))]:
            _, grad = CE.value_and_grad(x, targets)
            sizes = np.maximum(abs(grad), terms).sum(axis=1, dtype=np.float64)
            tiny = k * float(np.finfo(dtype).smallest_normal)
            for row, size in zip(grad.tolist(), sizes.tolist(), strict=True):
                assert abs(math.fsum(row)) <= limit * float(np.finfo(dtype).eps) * size + tiny

    check()


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_bce_symmetry(dtype):
    @given(logits(dtype, finite(dtype)))
    def check(x):
        ones, zeros = np.ones(x.shape), np.zeros(x.shape)
        assert_same_bits(BCE(x, ones), BCE(-x, zeros))
        grad, hess = BCE.grad_and_hess(x, ones)
        grad_mirrored, hess_mirrored = BCE.grad_and_hess(-x, zeros)
        assert_same_bits(abs(grad), abs(grad_mirrored))
        assert_same_bits(hess, hess_mirrored)
        assert (grad <= 0).all()
        assert (grad_mirrored >= 0).all()

    check()


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_convexity(dtype):
    @given(logits(dtype, finite(dtype)))
    def check(x):
        assert (CE.grad_and_hess(x, any_index(*x.shape))[1] >= 0).all()
        for y in (0.0, 0.3, 1.0):
            assert (BCE.grad_and_hess(x, np.full(x.shape, y))[1] >= 0).all()

    check()


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_losses_are_not_negative(dtype):
    @given(logits(dtype, finite(dtype)))
    def check(x):
        for stem in BY_ROWS:
            assert (unreduced(stem)(x, any_index(*x.shape)) >= 0).all()
        for stem in set(bits.LOSSES) - set(BY_ROWS):
            for y in (0.0, 0.3, 1.0):
                assert (unreduced(stem)(x, np.full(x.shape, y)) >= 0).all()

    check()


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_bce_is_monotone(dtype):
    """On a grid of step 2**-12, at least 32 float32 ulps of the exact loss."""
    z = np.arange(-80, 128, 2.0**-12).astype(dtype)
    assert (np.diff(BCE(z, np.zeros(z.shape))) >= 0).all()
    assert (np.diff(BCE(-z, np.ones(z.shape))) >= 0).all()


@pytest.mark.parametrize("stem", bits.LOSSES)
@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_nan_never_reaches_another_row(stem, dtype):
    @given(logits(dtype, st.floats(width=np.dtype(dtype).itemsize * 8)))
    def check(x):
        n, k = x.shape
        targets = targets_for(stem, any_index(n, k), k)
        loss, grad = unreduced(stem).value_and_grad(x, targets)
        bad = np.isnan(x).any(axis=1)
        clean_loss, clean_grad = unreduced(stem).value_and_grad(x[~bad], targets[~bad])
        assert_same_bits(loss[~bad], clean_loss)
        assert_same_bits(grad[~bad], clean_grad)
        assert np.isnan(loss.reshape(n, -1)[bad]).any(axis=1).all()
        assert np.isnan(grad[bad]).any(axis=1).all()
        hess = unreduced(stem).grad_and_hess(x, targets)[1]
        assert_same_bits(hess[~bad], unreduced(stem).grad_and_hess(x[~bad], targets[~bad])[1])

    check()


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_probabilities(dtype):
    @given(logits(dtype, finite(dtype)))
    def check(x):
        p = sl.softmax(x)
        assert ((p >= 0) & (p <= 1)).all()
        assert (sl.log_softmax(x) <= 0).all()
        assert (abs(p.sum(axis=1, dtype=np.float64) - 1) <= 4 * float(np.finfo(dtype).eps)).all()
        a = sl.sigmoid(x)
        assert ((a >= 0) & (a <= 1)).all()
        assert (sl.log_sigmoid(x) <= 0).all()

    check()


@pytest.mark.parametrize("stem", bits.LOSSES)
@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_weights_multiply(stem, dtype):
    """A weight that is a power of two multiplies every bit."""

    @given(logits(dtype, moderate(dtype, 30.0)), st.integers(-3, 3))
    def check(x, power):
        n, k = x.shape
        targets = targets_for(stem, any_index(n, k), k)
        weight = np.full(n, 2.0**power)
        plain = unreduced(stem).value_and_grad(x, targets)
        weighted = unreduced(stem).value_and_grad(x, targets, sample_weight=weight)
        # A product that leaves the normal numbers is rounded, or flushed.
        for got, array in zip(weighted, plain, strict=True):
            normal = abs(array) >= 8 * np.finfo(dtype).smallest_normal
            assert_same_bits(got[normal], array[normal] * dtype(2.0**power))

    check()

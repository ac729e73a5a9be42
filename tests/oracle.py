"""Exact references for every loss and activation, and errors counted in ulps.

The formulas are the textbook ones, evaluated with BITS bits. That many bits hold the whole of
`p - 1` for a prediction so confident that the difference is the smallest double (about e**-745,
1075 bits), so no rearrangement is needed and none is shared with the code under test. Numbers are
MPFR numbers (gmpy2) in object arrays; the same formulas accept mpmath numbers, which is how
test_oracle.py checks the derivatives with mpmath.diff and MPFR against mpmath.

Where the result is a true difference, `Exact` also holds the magnitude of its largest term: the ulp
of that term is the unit in which the error is counted. Elsewhere the term is the result itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache

import gmpy2
import mpmath
import numpy as np

BITS = 1400
# enough for callers who know that less cancels in their numbers
LEAST_BITS = 200

gmpy2.get_context().precision = BITS
mpmath.mp.prec = BITS


# Large batches of the tests repeat their logits, and the exponential takes most of the time.
@lru_cache(maxsize=8192)
def _exp_mpfr(x, precision):
    return gmpy2.exp(x)


def _exp(x):
    return _exp_mpfr(x, gmpy2.get_context().precision) if isinstance(x, gmpy2.mpfr) else mpmath.exp(x)


def _log(x):
    return gmpy2.log(x) if isinstance(x, gmpy2.mpfr) else mpmath.log(x)


def _times(a, b):
    """Product in which an absent term (a = 0) of an infinite factor counts as 0."""
    return a * b if a != 0 else a


exp = np.frompyfunc(_exp, 1, 1)
log = np.frompyfunc(_log, 1, 1)
times = np.frompyfunc(_times, 2, 1)
_lift = np.frompyfunc(gmpy2.mpfr, 1, 1)
_frexp = np.frompyfunc(gmpy2.frexp, 1, 2)

# numpy takes the floating-point flags that NaN leaves behind in Python objects for its own.
quiet = np.errstate(all="ignore")


@quiet
def lift(values) -> np.ndarray:
    """The values of an array or list as exact numbers; exact arrays pass through."""
    array = np.asarray(values)
    if array.dtype == object:
        return array
    # Python's own int and float: numpy scalars are not numbers to gmpy2.
    native = array.astype(np.float64 if array.dtype.kind == "f" else object)
    return np.asarray(_lift(native), dtype=object)


@dataclass(frozen=True)
class Exact:
    """Exact unreduced results, and the largest term of the difference behind each."""

    loss: np.ndarray
    grad: np.ndarray
    hess: np.ndarray
    loss_term: np.ndarray
    grad_term: np.ndarray
    hess_term: np.ndarray

    def __post_init__(self):
        # Arithmetic on object arrays without dimensions returns bare numbers.
        for field in fields(self):
            array = np.asarray(getattr(self, field.name), dtype=object)
            object.__setattr__(self, field.name, array)

    @quiet
    def scaled(self, weight) -> Exact:
        """The results multiplied by a weight per row (softmax) or per element (sigmoid)."""
        per_loss = lift(weight)
        per_logit = per_loss if per_loss.ndim in (0, self.grad.ndim) else per_loss[..., None]
        if self.loss.ndim == self.grad.ndim:
            per_loss = per_logit
        return Exact(
            times(per_loss, self.loss),
            times(per_logit, self.grad),
            times(per_logit, self.hess),
            times(per_loss, self.loss_term),
            times(per_logit, self.grad_term),
            times(per_logit, self.hess_term),
        )


# ---- softmax losses ------------------------------------------------------------------------------


def dense_targets(logits: np.ndarray, targets) -> np.ndarray:
    """Targets as exact probabilities of the shape of the logits."""
    targets = np.asarray(targets)
    if targets.ndim == logits.ndim:
        return lift(targets)
    k = logits.shape[-1]
    return lift((targets.astype(np.int64)[..., None] == np.arange(k)).astype(np.int64))


def softmax_limits(logits: np.ndarray) -> np.ndarray:
    """Rows with infinities replaced by rows with the same limit.

    Equal maxima at +inf share the probability, so they become 0 among -inf; a row with a NaN, or
    with nothing but -inf, has no limit and becomes NaN.
    """
    logits = np.asarray(logits)
    if logits.dtype == object:
        return logits
    logits = logits.astype(np.float64)
    positive = np.isposinf(logits)
    shared = np.where(positive, 0.0, -np.inf)
    rows = np.where(positive.any(axis=-1, keepdims=True), shared, logits)
    no_limit = np.isnan(logits).any(-1, keepdims=True) | np.isneginf(logits).all(-1, keepdims=True)
    return np.where(no_limit, np.nan, rows)


def _shifted(logits):
    x = lift(softmax_limits(logits))
    return x - x.max(axis=-1, keepdims=True)


@quiet
def softmax(logits, axis: int = -1):
    e = exp(_shifted(np.moveaxis(np.asarray(logits), axis, -1)))
    return np.moveaxis(e / e.sum(axis=-1, keepdims=True), -1, axis)


@quiet
def log_softmax(logits, axis: int = -1):
    d = _shifted(np.moveaxis(np.asarray(logits), axis, -1))
    return np.moveaxis(d - log(exp(d).sum(axis=-1, keepdims=True)), -1, axis)


@quiet
def logsumexp(logits, axis: int = -1):
    """The exact value, and the larger of its two terms max(x) and log(sum(exp(x - max(x))))."""
    x = lift(np.moveaxis(np.asarray(logits), axis, -1))
    m = x.max(axis=-1, keepdims=True)
    rest = np.asarray(log(exp(x - m).sum(axis=-1)), dtype=object)
    m = m[..., 0]
    value = np.asarray(m + rest, dtype=object)
    cancels = (m < 0) & (rest > 0)
    return value, np.where(cancels, np.maximum(abs(m), rest), abs(value))


def _is_hard(t: np.ndarray) -> np.ndarray:
    """Rows with one target of 1 and 0 elsewhere."""
    return ((t == 0) | (t == 1)).all(-1, keepdims=True) & (t.sum(-1, keepdims=True) == 1)


@quiet
def softmax_ce(logits, targets) -> Exact:
    t = dense_targets(np.asarray(logits), targets)
    d = _shifted(logits)
    e = exp(d)
    normaliser = e.sum(axis=-1, keepdims=True)
    p = e / normaliser
    total = t.sum(axis=-1, keepdims=True)
    # A plain product would turn an absent class at -inf into 0 * inf.
    loss = times(t, log(normaliser) - d).sum(axis=-1)
    grad = p * total - t
    hess = p * (1 - p) * total
    grad_term = np.where(_is_hard(t), abs(grad), np.maximum(p * total, t))
    return Exact(loss, grad, hess, loss, grad_term, hess)


@quiet
def softmax_mse(logits, targets) -> Exact:
    t = dense_targets(np.asarray(logits), targets)
    p = softmax(logits)
    d = p - t
    hard = _is_hard(t)
    squares = (p * p).sum(axis=-1, keepdims=True)
    mean_d = (p * d).sum(axis=-1, keepdims=True)
    loss = (d * d).sum(axis=-1) / 2
    grad = p * (d - mean_d)
    curvature = 1 - 2 * p + squares
    hess = p * ((1 - 2 * p) * (d - mean_d) + p * curvature)

    # The bracket d - p.d. With one hard target y its terms are those of the sums over k != y: none
    # of them is p_y - 1 or contains it, and at y itself the bracket is a sum of like signs.
    at_target = t == 1
    others = np.where(at_target, 0, p)
    of_others = (others * others).sum(axis=-1, keepdims=True)
    of_target = np.where(at_target, p * (1 - p), 0).sum(axis=-1, keepdims=True)
    hard_bracket = np.where(at_target, abs(d - mean_d), np.maximum(abs(d), np.maximum(of_target, of_others)))
    cross = (p * t).sum(axis=-1, keepdims=True)
    soft_bracket = np.maximum(np.maximum(p, t), np.maximum(squares, cross))
    bracket = np.where(hard, hard_bracket, soft_bracket)
    soft_loss = np.maximum(p, t) * abs(d)
    loss_term = np.where(hard[..., 0], loss, soft_loss.sum(axis=-1))
    hess_term = p * np.maximum(np.maximum(2 * p, 1) * bracket, p * curvature)
    return Exact(loss, grad, hess, loss_term, p * bracket, hess_term)


# ---- sigmoid losses ------------------------------------------------------------------------------


@quiet
def sigmoid(logits):
    return np.asarray(1 / (1 + exp(-lift(logits))), dtype=object)


def _softplus(z):
    """log(1 + exp(z)), which tends to z and must not become log(inf) before."""
    return np.where(z > 0, z, 0) + log(1 + exp(-abs(z)))


@quiet
def log_sigmoid(logits):
    return np.asarray(-_softplus(-lift(logits)), dtype=object)


@quiet
def sigmoid_bce(logits, targets) -> Exact:
    z, y = lift(logits), lift(targets)
    a = sigmoid(z)
    loss = times(y, _softplus(-z)) + times(1 - y, _softplus(z))
    grad = a - y
    hess = a * (1 - a)
    hard = (y == 0) | (y == 1)
    grad_term = np.where(hard, abs(grad), np.maximum(a, y))
    return Exact(loss, grad, hess, loss, grad_term, hess)


@quiet
def sigmoid_mse(logits, targets) -> Exact:
    z, y = lift(logits), lift(targets)
    a = sigmoid(z)
    b = 1 - a
    d = a - y
    loss = d * d / 2
    grad = d * a * b
    hess = a * b * (a * b + d * (1 - 2 * a))
    hard = (y == 0) | (y == 1)
    largest = np.maximum(a, y)
    loss_term = np.where(hard, loss, largest * abs(d))
    grad_term = np.where(hard, abs(grad), largest * a * b)
    # With a hard target the second derivative is d**2 * q * (2 - 3 * |d|), q = 1 - |d|: a true
    # difference, 0 at |d| = 2/3.
    hard_hess = a * b * abs(d) * np.maximum(2, 3 * abs(d))
    soft_hess = a * b * np.maximum(a * b, largest * np.maximum(1, 2 * a))
    return Exact(loss, grad, hess, loss_term, grad_term, np.where(hard, hard_hess, soft_hess))


LOSSES: dict[str, Callable[..., Exact]] = {
    "softmax_ce": softmax_ce,
    "softmax_mse": softmax_mse,
    "sigmoid_bce": sigmoid_bce,
    "sigmoid_mse": sigmoid_mse,
}


# ---- errors in ulps ------------------------------------------------------------------------------


def _scaled_to_ulps(difference, magnitude, dtype):
    """The difference in units of the last place that numbers of that magnitude have in `dtype`."""
    info = np.finfo(dtype)
    exponent, mantissa = _frexp(difference)
    unit, _ = _frexp(magnitude)
    unit = np.where(magnitude == 0, info.minexp + 1, unit).astype(np.int64)
    unit = np.maximum(unit, info.minexp + 1) - info.nmant - 1
    # Differences so large or small that they leave float64 are beyond, or below, any limit.
    shift = np.clip(exponent.astype(np.int64) - unit, -2000, 2000)
    return np.ldexp(mantissa.astype(np.float64), shift)


@quiet
def ulp_error(got, exact, dtype, term=None) -> np.ndarray:
    """Error of `got` in ulps of the exact value in the format `dtype`.

    Exact values below the smallest normal number may have been flushed to zero. `term` is the
    largest term of a difference, in whose ulps the error is then counted. A NaN or an infinity must
    be met exactly (error 0, else inf); an exact value beyond the format may be an infinity.
    """
    if gmpy2.get_context().precision < LEAST_BITS:
        raise RuntimeError("the oracle is used in a thread that lacks its precision")
    exact = np.asarray(exact, dtype=object)
    got = np.asarray(got, dtype=np.float64)
    if got.shape != exact.shape:
        raise ValueError(f"got has shape {got.shape}, exact {exact.shape}")
    shape, got, exact = got.shape, got.ravel(), exact.ravel()
    rounded = exact.astype(np.float64).astype(dtype)
    finite = np.isfinite(got) & np.isfinite(rounded)
    agrees = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    flushed = (got == 0) & (abs(rounded) < np.finfo(dtype).smallest_normal)

    target = np.where(finite, exact, 0)
    magnitude = abs(target)
    if term is not None:
        term = np.broadcast_to(np.asarray(term, dtype=object), shape).ravel()
        magnitude = np.maximum(magnitude, np.where(finite, abs(term), 0))
    difference = abs(lift(np.where(finite, got, 0)) - target)
    errors = _scaled_to_ulps(_lift(difference), _lift(magnitude), dtype)
    errors = np.where(flushed, 0, np.where(finite, errors, np.where(agrees, 0, np.inf)))
    return errors.reshape(shape)


def assert_within(limit: float, got, exact, dtype, term=None, what: str = "result") -> None:
    """Fail with the worst entry when an error exceeds `limit` ulps."""
    errors = ulp_error(got, exact, dtype, term)
    if errors.size == 0 or errors.max() <= limit:
        return
    worst = np.unravel_index(errors.argmax(), errors.shape)
    value = np.asarray(got)[worst]
    raise AssertionError(
        f"{what}: {errors[worst]:.2f} ulp at {tuple(map(int, worst))} (limit {limit}): "
        f"got {value!r} = {float(value).hex()}, exact {np.asarray(exact, dtype=object)[worst]:.20e}"
    )

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
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import bits
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


def _tanh(x):
    return gmpy2.tanh(x) if isinstance(x, gmpy2.mpfr) else mpmath.tanh(x)


def _sech(x):
    return gmpy2.sech(x) if isinstance(x, gmpy2.mpfr) else mpmath.sech(x)


def _times(a, b):
    """Product in which an absent term (a = 0) of an infinite factor counts as 0."""
    return a * b if a != 0 else a


exp = np.frompyfunc(_exp, 1, 1)
log = np.frompyfunc(_log, 1, 1)
tanh = np.frompyfunc(_tanh, 1, 1)
sech = np.frompyfunc(_sech, 1, 1)
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
    native = array.astype(object if array.dtype.kind in "biu" else np.float64)
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


def one_hot(targets, k: int) -> np.ndarray:
    return (targets.astype(np.int64)[..., None] == np.arange(k)).astype(np.int64)


def dense_targets(logits: np.ndarray, targets) -> np.ndarray:
    """Targets as exact probabilities of the shape of the logits."""
    targets = np.asarray(targets)
    return lift(targets if targets.ndim == logits.ndim else one_hot(targets, logits.shape[-1]))


@quiet
def softmax_limits(logits: np.ndarray) -> np.ndarray:
    """Rows with infinities replaced by rows with the same limit.

    Equal maxima at +inf share the probability, so they become 0 among -inf; a row with a NaN, or
    with nothing but -inf, has no limit and becomes NaN.
    """
    x = lift(logits)
    value = x.astype(np.float64)
    positive = np.isposinf(value)
    shared = np.where(positive, gmpy2.zero(), gmpy2.inf(-1))
    rows = np.where(positive.any(axis=-1, keepdims=True), shared, x)
    no_limit = np.isnan(value).any(-1, keepdims=True) | np.isneginf(value).all(-1, keepdims=True)
    return np.where(no_limit, gmpy2.nan(), rows)


@quiet
def _shifted(logits):
    x = softmax_limits(logits)
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
    return _maximum_and_rest(m[..., 0], np.asarray(log(exp(x - m).sum(axis=-1)), dtype=object))


def _maximum_and_rest(m, rest):
    """Their sum, and the larger of the two where it is a difference."""
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


@quiet
def softmax_mse_along(logits, targets, direction) -> tuple[np.ndarray, np.ndarray]:
    """Hessian of a row's softmax_mse times a direction, and the largest terms it is a difference of."""
    number = _number_type(np.asarray(logits))
    t = dense_targets(np.asarray(logits), targets)
    u = _numbers(number, direction)
    p = softmax(logits)
    d = p - t
    dp = p * (u - (p * u).sum(axis=-1, keepdims=True))
    bracket = d - (p * d).sum(axis=-1, keepdims=True)
    value = dp * bracket + p * (dp - (dp * (d + p)).sum(axis=-1, keepdims=True))
    reach = p * np.maximum(abs(u), (p * abs(u)).sum(axis=-1, keepdims=True))
    size = np.maximum(p, t)
    mean_size = (p * size).sum(axis=-1, keepdims=True)
    term = reach * np.maximum(size, mean_size) + p * (reach + (reach * (size + p)).sum(-1, keepdims=True))
    return value, term


@quiet
def _element_along(formula, logits, targets, direction) -> tuple[np.ndarray, np.ndarray]:
    exact = formula(logits, targets)
    u = _numbers(_number_type(np.asarray(logits)), direction)
    return times(exact.hess, u), times(exact.hess_term, abs(u))


# ---- the cross-entropies with all their options --------------------------------------------------


class Quantity(NamedTuple):
    """An exact value, the largest term of the difference behind it, and its conditioning.

    `spread` is the first-order change of the value, in units of one relative rounding (eps), when
    what the formula cannot avoid rounding moves by its own ulp: the scaled and capped logits (1 ulp
    for logit_scale, 2 more for softcap), the cap's derivative sech(u / C)**2, whose exponent moves
    with u / C, and gamma log(1 - p), the exponent of the focal factor. It is 0 without these options.
    """

    value: np.ndarray
    term: np.ndarray
    spread: np.ndarray

    @quiet
    def scaled(self, weight) -> Quantity:
        size = abs(np.asarray(weight, dtype=object))
        parts = times(weight, self.value), times(size, self.term), times(size, self.spread)
        return Quantity(*(np.asarray(part, dtype=object) for part in parts))

    def divided(self, divisor) -> Quantity:
        """The quotient; 0 when nothing counts."""
        return self.scaled(1 / divisor if divisor != 0 else divisor)

    def summed(self) -> Quantity:
        return Quantity(*(np.asarray(part.sum(), dtype=object) for part in self))


@dataclass(frozen=True)
class ExactWithOptions:
    """Results per row (softmax) or element (sigmoid), weighted but not divided, and the divisor.

    `counts` says which rows or elements count, `weight` holds their weights. `hvp` is there if a
    direction was given, `target_grad` for targets of the shape of the logits.
    """

    loss: Quantity
    grad: Quantity
    hess: Quantity
    hvp: Quantity | None
    target_grad: Quantity | None
    logsumexp: Quantity
    entropy: Quantity
    probabilities: Quantity
    predicted: np.ndarray
    counts: np.ndarray
    weight: np.ndarray
    divisor: gmpy2.mpfr


def _number_type(array: np.ndarray):
    """The type of the numbers in an object array: options must become the same before they meet."""
    return mpmath.mpf if array.size and isinstance(array.flat[0], mpmath.mpf) else gmpy2.mpfr


def _numbers(number, values) -> np.ndarray:
    """`values` as numbers of that type, those of an exact array as they are."""
    array = np.asarray(values)
    if array.dtype == object:
        return array
    native = array.astype(object if array.dtype.kind in "biu" else np.float64)
    return np.asarray(np.frompyfunc(number, 1, 1)(native), dtype=object)


def _others(values: np.ndarray) -> np.ndarray:
    """Along the last axis, the sum of all entries but one: without a difference."""
    zero = values[..., :1] * 0
    before = np.concatenate([zero, np.add.accumulate(values[..., :-1], axis=-1)], axis=-1)
    backwards = np.add.accumulate(values[..., :0:-1], axis=-1)[..., ::-1]
    return before + np.concatenate([backwards, zero], axis=-1)


def _loss_inputs(logits, number, *, logit_scale, softcap, logit_clip):
    """The numbers x that the loss is taken of, dx/dz, d2x/dz2, and their conditioning.

    The conditioning is the absolute error of x and the relative one of dx/dz, in units of eps.
    """
    u = _numbers(number, logits)
    if logit_clip is not None:
        u = np.where(u > logit_clip, number(logit_clip), np.where(u < -logit_clip, -number(logit_clip), u))
    scale, zero = number(logit_scale), number(0)
    scaled = logit_scale != 1
    u = u * scale if scaled else u
    finite = np.isfinite(u.astype(np.float64))
    if softcap is None:
        everywhere = np.full(u.shape, zero)
        return u, everywhere + scale, everywhere, np.where(finite, scaled * abs(u), zero), everywhere
    cap = number(softcap)
    w = u / cap
    t, h = tanh(w), sech(w)
    slope = scale * h * h
    moved_x, moved_slope = (scaled + 2) * abs(cap * t), (scaled + 1) * 2 * abs(w)
    return cap * t, slope, -2 * scale / cap * t * slope, moved_x, np.where(finite, moved_slope, zero)


def _at_least_tiny(probabilities, tiny):
    return np.where(probabilities < tiny, tiny, probabilities)


def _first_by_logit(by_x: Quantity, slope, moved_slope) -> Quantity:
    """The chain rule from x to z; the slope moves by the factor 1 + moved_slope."""
    grad = by_x.scaled(slope)
    return grad._replace(spread=grad.spread + moved_slope * abs(grad.value))


def _second_by_logit(straight: Quantity, curved: Quantity, moved_slope) -> Quantity:
    """The sum of what the second derivative by x and the one of x by z contribute.

    Both have two factors that move with the slope.
    """
    size = straight.term + curved.term
    return Quantity(
        straight.value + curved.value,
        np.maximum(straight.term, curved.term),
        straight.spread + curved.spread + 2 * moved_slope * size,
    )


def _class_terms(gamma):
    """For f(p) = (1 - p)**gamma (-log p) and a weight q, per class.

    q f, w = q p f', v = q p (p f')', the largest term of v, and their relative conditioning.
    """

    def terms(q, p, c, minus_log, moved, moved_others, moved_by_all):
        if q == 0 or (c == 0 and gamma > 0):
            return q * 0, q * 0, q * 0, q * 0, q * 0
        spread = q * 0
        if c > 0 and p > 0:
            nearness = c * moved + moved_others
            spread = moved + moved_by_all + nearness / minus_log + (gamma + 2) * p * nearness / c
        if gamma == 0:
            return q * minus_log, -q, q * 0, q * 0, spread
        if p == 0:
            return q * minus_log, -q, q * 0, q * 0, spread
        power = c**gamma
        of_log = (1 - gamma * p) * minus_log
        outer = q * gamma * p * power / (c * c)
        return (
            q * power * minus_log,
            -q * (gamma * p * minus_log * power / c + power),
            outer * (2 * c - of_log),
            outer * np.maximum(abs(of_log), 2 * c),
            spread + gamma * abs(_log(c)),
        )

    return np.frompyfunc(terms, 7, 5)


@quiet
def softmax_ce_options(
    logits,
    targets,
    direction=None,
    *,
    reduction="mean",
    class_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    focal_gamma=0.0,
    z_loss=0.0,
    logit_scale=1.0,
    softcap=None,
    logit_clip=None,
    from_probabilities=False,
    sample_weight=None,
    mask=None,
    denominator=None,
) -> ExactWithOptions:
    """The formula in the docstring of SoftmaxCE, for classes along the last axis."""
    logits, targets = np.asarray(logits), np.asarray(targets)
    number = _number_type(logits)
    tiny = number(float(np.finfo(logits.dtype).smallest_normal)) if from_probabilities else None
    rows, k = logits.shape[:-1], logits.shape[-1]
    by_index = targets.ndim < logits.ndim

    counts = np.ones(rows, bool) if mask is None else np.array(mask, bool)
    if by_index:
        targets = targets.astype(np.int64)
        counts &= targets != ignore_index
        targets = np.where(counts, targets, 0)
    else:
        targets = np.where(counts[..., None], targets, 0)
    weight = np.ones(rows) if sample_weight is None else np.asarray(sample_weight)
    weight = np.where(counts, _numbers(number, weight), number(0))
    classes = _numbers(number, np.ones(k) if class_weight is None else class_weight)
    of_target = classes[targets] if by_index else number(1)
    divisor = times(weight, of_target).sum() if reduction == "mean" else number(int(counts.sum()))
    divisor = number(1) if reduction in ("sum", "none") else number(denominator or divisor)

    row, wide = weight, weight[..., None]
    present = np.where(wide != 0, logits, 1)
    if from_probabilities:
        x = log(_at_least_tiny(_numbers(number, present), tiny))
        zero = np.full(x.shape, number(0))
        slope, bend, moved, moved_slope = zero + 1, zero, zero, zero
    else:
        x, slope, bend, moved, moved_slope = _loss_inputs(
            present, number, logit_scale=logit_scale, softcap=softcap, logit_clip=logit_clip
        )
    d = _shifted(x)
    e = exp(d)
    normaliser = e.sum(axis=-1, keepdims=True)
    p, c = e / normaliser, _others(e) / normaliser
    minus_log = log(normaliser) - d
    lse, lse_term = _maximum_and_rest(x.max(axis=-1, keepdims=True), log(normaliser))
    enabled = _numbers(number, ~np.isneginf(x.astype(np.float64)))
    smooth = number(label_smoothing)
    t = _numbers(number, one_hot(targets, k) if by_index else targets)
    q = classes * ((1 - smooth) * t + smooth * enabled / enabled.sum(axis=-1, keepdims=True))

    # Conditioning: each x_k moves by moved_k; then p_k moves by the factor 1 + moved_p_k.
    moved_by_all, moved_others = (p * moved).sum(axis=-1, keepdims=True), _others(p * moved)
    moved_p = moved + moved_by_all
    moved_c = p * (c * moved + moved_others)
    terms = _class_terms(focal_gamma)
    f, w, v, v_term, spread = terms(q, p, c, minus_log, moved, moved_others, moved_by_all)
    size = abs(w)
    total, total_moved = size.sum(axis=-1, keepdims=True), (size * spread).sum(axis=-1, keepdims=True)
    z = 2 * number(z_loss)

    squared, squared_term = (times(z, part[..., 0]) / 2 for part in (lse * lse, abs(lse) * lse_term))
    plain = f.sum(axis=-1)
    loss = Quantity(
        plain + squared,
        plain + squared_term,
        times(f, spread).sum(axis=-1) + times(z, abs(lse) * moved_by_all)[..., 0],
    )

    z_lse, z_lse_term = times(z, times(p, lse)), times(z, times(p, lse_term))
    own, rest = size * c, p * _others(size)
    differs = (own != 0) & (rest != 0)
    grad = Quantity(
        rest - own + z_lse,
        np.maximum(np.where(differs, np.maximum(size, p * total), np.maximum(own, rest)), abs(z_lse_term)),
        own * spread
        + rest * moved_p
        + p * _others(size * spread)
        + abs(z_lse) * moved_p
        + z * p * moved_by_all,
    )

    hess = Quantity(
        v * c * c + p * p * _others(v) + p * c * total + z * p * p + times(c, z_lse),
        np.maximum(
            np.maximum(v_term * c * c, p * p * _others(v_term)),
            np.maximum(p * c * total, np.maximum(z * p * p, times(c, z_lse_term))),
        ),
        2 * spread * v_term * c * c
        + 2 * p * p * (moved_p * _others(v_term) + _others(v_term * spread))
        + p * (c * moved_p + moved_c) * total
        + p * c * total_moved
        + z * p * (2 * p * moved_p + moved_by_all * c)
        + z_lse_term * (c * moved_p + moved_c),
    )

    hvp = None
    if direction is not None:
        along = _numbers(number, direction)
        u = slope * along
        reach = (p * abs(u)).sum(axis=-1, keepdims=True)
        moved_reach = (p * abs(u) * moved_p).sum(axis=-1, keepdims=True)
        mean_u = (p * u).sum(axis=-1, keepdims=True)
        du, du_term = u - mean_u, np.maximum(abs(u), reach)
        a, a_term = v * du, v_term * du_term
        by_x = Quantity(
            a * c - p * _others(a) + p * du * total + z * p * mean_u + du * z_lse,
            np.maximum(
                np.maximum(a_term * c, p * _others(a_term)),
                np.maximum(p * du_term * total, np.maximum(z * p * reach, du_term * z_lse_term)),
            ),
            2 * spread * a_term * c
            + p * (moved_p * _others(a_term) + 2 * _others(a_term * spread))
            + p * du_term * (moved_p * total + total_moved)
            + moved_reach * (v_term * c + p * (_others(v_term) + total + z) + z_lse_term)
            + du_term * (z_lse_term * moved_p + z * p * moved_by_all)
            + z * p * reach * moved_p,
        )
        hvp = _second_by_logit(by_x.scaled(slope), grad.scaled(bend * along), moved_slope).scaled(wide)

    target_grad = None
    if not by_index:
        unit, _, _, _, unit_spread = terms(
            classes * (1 - smooth) + 0 * p, p, c, minus_log, moved, moved_others, moved_by_all
        )
        target_grad = Quantity(unit, unit, times(unit, unit_spread)).scaled(wide)

    surprise = times(p, minus_log)
    entropy = surprise.sum(axis=-1)
    moved_entropy = (surprise * moved_p + p * c * moved + p * moved_others).sum(axis=-1)
    return ExactWithOptions(
        loss=loss.scaled(row),
        grad=_first_by_logit(grad, slope, moved_slope).scaled(wide),
        hess=_second_by_logit(hess.scaled(slope * slope), grad.scaled(bend), moved_slope).scaled(wide),
        hvp=hvp,
        target_grad=target_grad,
        logsumexp=Quantity(lse[..., 0], lse_term[..., 0], moved_by_all[..., 0]),
        entropy=Quantity(entropy, entropy, moved_entropy),
        probabilities=Quantity(p, p, p * moved_p),
        predicted=np.where(weight != 0, x.argmax(axis=-1), -1),
        counts=counts,
        weight=weight,
        divisor=divisor,
    )


def _side_terms(gamma):
    """For weight * b**gamma (-log a), a = sigmoid(x), b = 1 - a.

    The value, its two derivatives by x, the largest term of the second, and the relative conditioning
    of all when x moves by `moved`.
    """

    def terms(weight, a, b, minus_log, moved):
        if weight == 0 or (b == 0 and gamma > 0):
            return (weight * 0,) * 5
        spread = weight * 0
        if moved != 0:
            spread = (gamma + 3) * moved
        if gamma == 0:
            return weight * minus_log, -weight * b, weight * a * b, weight * a * b, spread
        if a == 0:
            return weight * minus_log, -weight, weight * 0, weight * 0, spread
        power = weight * b**gamma
        reach = gamma * minus_log
        return (
            power * minus_log,
            -power * (a * reach + b),
            a * power * ((2 * gamma + 1) * b - reach * (b - gamma * a)),
            a * power * np.maximum((2 * gamma + 1) * b, reach * np.maximum(b, gamma * a)),
            spread + gamma * abs(_log(b)),
        )

    return np.frompyfunc(terms, 5, 5)


@quiet
def sigmoid_bce_options(
    logits,
    targets,
    direction=None,
    *,
    reduction="mean",
    class_weight=None,
    pos_weight=None,
    label_smoothing=0.0,
    focal_gamma=0.0,
    focal_alpha=None,
    logit_scale=1.0,
    softcap=None,
    logit_clip=None,
    from_probabilities=False,
    sample_weight=None,
    mask=None,
    denominator=None,
) -> ExactWithOptions:
    """The formula in the docstring of SigmoidBCE."""
    logits, targets = np.asarray(logits), np.asarray(targets)
    number = _number_type(logits)
    tiny = number(float(np.finfo(logits.dtype).smallest_normal)) if from_probabilities else None

    def per_element(values):
        values = np.asarray(values)
        return np.broadcast_to(values if values.ndim == logits.ndim else values[..., None], logits.shape)

    counts = per_element(True if mask is None else np.asarray(mask, bool))
    weight = np.where(
        counts, _numbers(number, per_element(1 if sample_weight is None else sample_weight)), number(0)
    )
    divisor = {
        "mean": int(counts.sum()),
        "batchmean": int(counts.any(axis=-1).sum()),
        "sum": 1,
        "none": 1,
    }[reduction]
    present = np.where(weight != 0, logits, logits.dtype.type(1))
    y = _numbers(number, np.where(weight != 0, targets, 0))
    smooth = number(label_smoothing)
    y = y * (1 - smooth) + smooth / 2
    if from_probabilities:
        y_hat = _numbers(number, present)
        x = log(_at_least_tiny(y_hat, tiny)) - log(_at_least_tiny(1 - y_hat, tiny))
        zero = np.full(x.shape, number(0))
        slope, bend, moved, moved_slope = zero + 1, zero, zero, zero
    else:
        x, slope, bend, moved, moved_slope = _loss_inputs(
            present, number, logit_scale=logit_scale, softcap=softcap, logit_clip=logit_clip
        )
    a, b = 1 / (1 + exp(-x)), 1 / (1 + exp(x))
    of_one, of_zero = _softplus(-x), _softplus(x)
    classes = _numbers(number, 1 if class_weight is None else class_weight)
    positive = classes * _numbers(number, 1 if pos_weight is None else pos_weight)
    negative = classes
    if focal_alpha is not None:
        positive, negative = positive * number(focal_alpha), negative * (1 - number(focal_alpha))
    of_positives, of_negatives = map(_side_terms, np.broadcast_to(focal_gamma, 2).tolist())
    up, up_1, up_2, up_term, up_spread = of_positives(positive * y, a, b, of_one, moved)
    down, down_1, down_2, down_term, down_spread = of_negatives(negative * (1 - y), b, a, of_zero, moved)
    loss = Quantity(up + down, up + down, times(up, up_spread) + times(down, down_spread))
    grad = Quantity(
        up_1 - down_1,
        np.maximum(abs(up_1), abs(down_1)),
        abs(up_1) * up_spread + abs(down_1) * down_spread,
    )
    hess = Quantity(
        up_2 + down_2, np.maximum(up_term, down_term), up_term * up_spread + down_term * down_spread
    )
    hess = _second_by_logit(hess.scaled(slope * slope), grad.scaled(bend), moved_slope).scaled(weight)
    unit_up, _, _, _, unit_up_spread = of_positives(positive * (1 - smooth) + 0 * y, a, b, of_one, moved)
    unit_down, _, _, _, unit_down_spread = of_negatives(negative * (1 - smooth) + 0 * y, b, a, of_zero, moved)
    target_grad = Quantity(
        unit_up - unit_down,
        np.maximum(unit_up, unit_down),
        times(unit_up, unit_up_spread) + times(unit_down, unit_down_spread),
    )
    entropy = times(a, of_one) + times(b, of_zero)
    return ExactWithOptions(
        loss=loss.scaled(weight),
        grad=_first_by_logit(grad, slope, moved_slope).scaled(weight),
        hess=hess,
        hvp=None if direction is None else hess.scaled(_numbers(number, direction)),
        target_grad=target_grad.scaled(weight),
        logsumexp=Quantity(of_zero, of_zero, a * moved),
        entropy=Quantity(entropy, entropy, entropy * moved * 2),
        probabilities=Quantity(a, a, a * moved),
        predicted=np.asarray((weight != 0) & (x > 0)),
        counts=counts,
        weight=weight,
        divisor=number(denominator or divisor),
    )


# ---- the formulas of the package's losses, by name ------------------------------------------------

LOSSES: dict[str, Callable[..., Exact]] = {stem: globals()[stem] for stem in bits.LOSSES}

# with options beside `reduction` and `logit_clip`
OPTIONS: dict[str, Callable[..., ExactWithOptions]] = {
    stem: globals()[f"{stem}_options"] for stem in LOSSES if f"{stem}_options" in globals()
}

# Hessian times a direction, where no formula with options has it
ALONG = {
    stem: globals()[f"{stem}_along"] if bits.by_rows(stem) else partial(_element_along, formula)
    for stem, formula in LOSSES.items()
    if stem not in OPTIONS
}


# ---- functions of one logit, for sweeps ----------------------------------------------------------

TINY_FLOAT32 = float(np.finfo(np.float32).smallest_normal)
TINY_FLOAT64 = float(np.finfo(np.float64).smallest_normal)
LN2 = float(np.log(2.0))
# Below SMALL, e**-t is 1 - t to float64's last bit; from LARGE on, it is nothing beside 1 and, 2**30
# times below the smallest float32, nothing that a float32 result could show.
SMALL, LARGE = 2.0**-30, 128.0

# no number comes twice in a sweep: without the memory of `exp`
_exp_once = np.frompyfunc(gmpy2.exp, 1, 1)
_log1p = np.frompyfunc(gmpy2.log1p, 1, 1)
_exponent = np.frompyfunc(lambda x: gmpy2.frexp(x)[0] if x else -(10**6), 1, 1)
_power_of_2 = np.frompyfunc(lambda n: gmpy2.exp2(int(n)), 1, 1)


def exp_and_log1p(t):
    """e**-t and log(1 + e**-t) for t >= 0."""
    if t.dtype == object:
        e = _exp_once(-t)
        return e, _log1p(e)
    lowest, highest = t.min(), t.max()
    if highest < SMALL:
        return 1 - t, LN2 - 0.5 * t
    if lowest >= LARGE:
        return np.zeros_like(t), np.zeros_like(t)
    e = np.exp(-t)
    return e, np.log1p(e)


class Value:
    """Exact values, and errors counted in ulps of them or of a larger `term`."""

    def __init__(self, exact, term=None):
        self.exact = exact
        self.magnitude = abs(exact) if term is None else np.maximum(abs(exact), term)

    @cached_property
    def ulps_per_unit(self):
        """Of float32, for float64 values."""
        # A float64 without its fraction bits is the power of two below it.
        power = (self.magnitude.view(np.int64) & (0x7FF << 52)).view(np.float64)
        return 2.0**23 / np.maximum(power, TINY_FLOAT32)

    @cached_property
    def in_ulps(self):
        """MPFR values in ulps of float64, and the exponent of that unit."""
        unit = np.maximum(_exponent(self.magnitude).astype(np.int64), -1021) - 53
        return self.exact * _power_of_2(-unit), unit

    @cached_property
    def may_be_flushed(self):
        tiny = TINY_FLOAT64 if self.exact.dtype == object else TINY_FLOAT32
        below = (abs(self.exact) < tiny).astype(bool)
        return below if below.any() else None

    def errors(self, got, sign=1):
        """Errors of results that are `sign` times the exact values; NaN for NaN."""
        if self.exact.dtype == object:
            exact, unit = self.in_ulps
            errors = abs((np.ldexp(got * sign, (-unit).astype(np.intc)) - exact).astype(np.float64))
        else:
            difference = got - self.exact if sign > 0 else got + self.exact
            errors = abs(difference) * self.ulps_per_unit
        if self.may_be_flushed is not None:
            errors[self.may_be_flushed & (got == 0)] = 0
        return errors


class OneLogit:
    """The functions of one logit, t >= 0 and -t: formed from e = exp(-t) without a difference, so that a
    prediction may be as confident as it likes.

    The losses: loss, |gradient| and Hessian of a prediction on the right side, and on the wrong one;
    a loss of a row is that of two classes, t and 0. The activations: of t and of -t, with the sign.
    """

    def __init__(self, t):
        self.t = t
        self.e, self.tail = exp_and_log1p(t)
        self.larger = 1 / (1 + self.e)
        self.smaller = self.e * self.larger

    @cached_property
    def sigmoid_bce(self):
        hess = Value(self.larger * self.smaller)
        right = {"loss": Value(self.tail), "grad": Value(self.smaller), "hess": hess}
        wrong = {"loss": Value(self.t + self.tail), "grad": Value(self.larger), "hess": hess}
        return right, wrong

    @property
    def softmax_ce(self):
        return self.sigmoid_bce

    def _squared_error(self, miss, rest):
        grad = miss * miss * rest
        # the second derivative is a true difference, 0 at a miss of 2/3
        hess = Value(grad * (2 - 3 * miss), grad * np.maximum(2, 3 * miss))
        return {"loss": Value(miss * miss / 2), "grad": Value(grad), "hess": hess}

    @cached_property
    def sigmoid_mse(self):
        right = self._squared_error(self.smaller, self.larger)
        return right, self._squared_error(self.larger, self.smaller)

    @cached_property
    def sigmoid(self):
        return (Value(self.larger), 1), (Value(self.smaller), 1)

    @cached_property
    def log_sigmoid(self):
        return (Value(self.tail), -1), (Value(self.t + self.tail), -1)


# ---- errors in ulps ------------------------------------------------------------------------------


def finfo(dtype):
    """numpy's, or for bfloat16, which numpy does not know, the one of ml_dtypes."""
    try:
        return np.finfo(dtype)
    except ValueError:
        import ml_dtypes

        return ml_dtypes.finfo(dtype)


def _scaled_to_ulps(difference, magnitude, dtype):
    """The difference in units of the last place that numbers of that magnitude have in `dtype`."""
    info = finfo(dtype)
    exponent, mantissa = _frexp(difference)
    unit, _ = _frexp(magnitude)
    unit = np.where(magnitude == 0, info.minexp + 1, unit).astype(np.int64)
    unit = np.maximum(unit, info.minexp + 1) - info.nmant - 1
    # Differences so large or small that they leave float64 are beyond, or below, any limit.
    shift = np.clip(exponent.astype(np.int64) - unit, -2000, 2000)
    # the only type of exponents that is an int in C everywhere
    return np.ldexp(mantissa.astype(np.float64), shift.astype(np.intc))


@quiet
def ulp_error(got, exact, dtype, term=None, slack=None, flushes=True) -> np.ndarray:
    """Error of `got` in ulps of the exact value in the format `dtype`.

    Exact values below the smallest normal number may have been flushed to zero, unless told
    otherwise. `term` is the largest term of a difference, in whose ulps the error is then counted;
    an error of `slack` does not count. A NaN or an infinity must be met exactly (error 0, else inf);
    an exact value beyond the format may be an infinity.
    """
    if gmpy2.get_context().precision < LEAST_BITS:
        raise RuntimeError("the oracle is used in a thread that lacks its precision")
    exact = np.asarray(exact, dtype=object)
    got = np.asarray(got, dtype=np.float64)
    if got.shape != exact.shape:
        raise ValueError(f"got has shape {got.shape}, exact {exact.shape}")
    shape, got, exact = got.shape, got.ravel(), exact.ravel()
    rounded = exact.astype(np.float64).astype(dtype).astype(np.float64)
    finite = np.isfinite(got) & np.isfinite(rounded)
    agrees = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    flushed = flushes & (got == 0) & (abs(rounded) < float(finfo(dtype).smallest_normal))

    target = np.where(finite, exact, 0)
    magnitude = abs(target)
    if term is not None:
        term = np.broadcast_to(np.asarray(term, dtype=object), shape).ravel()
        magnitude = np.maximum(magnitude, np.where(finite, abs(term), 0))
    difference = abs(lift(np.where(finite, got, 0)) - target)
    if slack is not None:
        slack = np.broadcast_to(np.asarray(slack, dtype=object), shape).ravel()
        difference = np.maximum(difference - np.where(finite, slack, 0), 0)
    errors = _scaled_to_ulps(_lift(difference), _lift(magnitude), dtype)
    errors = np.where(flushed, 0, np.where(finite, errors, np.where(agrees, 0, np.inf)))
    return errors.reshape(shape)


def assert_within(
    limit: float, got, exact, dtype, term=None, what: str = "result", slack=None, flushes=True
) -> None:
    """Fail with the worst entry when an error exceeds `limit` ulps."""
    errors = ulp_error(got, exact, dtype, term, slack, flushes)
    if errors.size == 0 or errors.max() <= limit:
        return
    worst = np.unravel_index(errors.argmax(), errors.shape)
    value = np.asarray(got)[worst]
    raise AssertionError(
        f"{what}: {errors[worst]:.2f} ulp at {tuple(map(int, worst))} (limit {limit}): "
        f"got {value!r} = {float(value).hex()}, exact {np.asarray(exact, dtype=object)[worst]:.20e}"
    )

"""What is promised of each result, options included: bounds in ulps, and what they leave out.

Results are counted in ulps of the largest term of the difference that they are, as in the contract. For
float32 the scaled, capped and focal arithmetic has more digits behind it: 4 ulp, like the plain loss.
float64 has nothing wider behind it. There 4 ulp are allowed too, 5 for the gradient and 8 for second
derivatives, which are sums of products; and the `spread` of the exact value (oracle.Quantity) times eps:
what moving each scaled logit by 1 ulp, each capped one by 2 more, and the exponent gamma log(1 - p) of the
focal factor by 1 changes. float16 and bfloat16 gradients are rounded once from float32: half an ulp of
theirs, and 0.01 for the float32 arithmetic, whose spread counts with the eps of float32. Without fused
multiply-add, on the base level of x86-64, one ulp more is allowed.
"""

from typing import NamedTuple

import bits
import gmpy2
import numpy as np
import oracle


class Bound(NamedTuple):
    """What a dtype of the logits promises: ulps, and the eps of the arithmetic behind the result."""

    ulps: float
    eps: float
    flushes: bool


FLOAT64_ULPS = {
    "gradient": 5,
    "gradient without stats": 5,
    "gradient with Hessian": 5,
    "Hessian": 8,
    "Hessian-vector product": 8,
}


def bound_of(what: str, result: np.dtype, logits: np.dtype) -> Bound:
    """For a result of that dtype, computed from logits of that dtype."""
    wider = not bits.fused()
    if logits == np.float64:
        return Bound(FLOAT64_ULPS.get(what, 4) + wider, 2.0**-52, True)
    if logits == np.float32:
        return Bound(4 + wider, 2.0**-52, True)
    if result == np.float32:
        return Bound(4 + wider, 2.0**-23, True)
    return Bound(0.51, 2.0**-23, False)


def floor_of(logits: np.dtype, from_probabilities: bool) -> float:
    """An absolute error that does not count: multiples of the smallest normal number.

    Where a probability is clipped at that number, or is a number of its own in the float32 arithmetic
    behind a shorter dtype: there one below it may be 0 before anything multiplies it.
    """
    if logits.itemsize == 2 or (from_probabilities and logits == np.float32):
        return 2.0**-118
    return 2.0**-1014 if from_probabilities else 0.0


def assert_exact(what, got, exact: oracle.Quantity, logits: np.dtype, floor=0.0):
    """`floor` is an absolute error that does not count."""
    got = np.asarray(got)
    bound = bound_of(what, got.dtype, logits)
    spread = np.asarray(exact.spread, dtype=object)
    slack = np.where(spread == spread, spread, 0) * oracle.lift(bound.eps) + oracle.lift(floor)
    oracle.assert_within(
        bound.ulps, got, exact.value, got.dtype, exact.term, what, slack=slack, flushes=bound.flushes
    )


def assert_reduced(got, total: oracle.Quantity, logits: np.dtype, floor=0.0):
    """The float that a reduced loss is."""
    assert type(got) is float
    if logits == np.float64:
        assert_exact("reduced loss", np.float64(got), total, logits, floor)
        return
    bound = bound_of("reduced loss", np.dtype(np.float32), logits)
    slack = float(total.spread.item()) * bound.eps if total.spread.item() == total.spread.item() else 0
    value, term = total.value.item(), float(total.term.item())
    if not gmpy2.is_finite(value):
        assert got == float(value)
        return
    assert abs(gmpy2.mpfr(got) - value) <= 2e-7 * term + slack + floor

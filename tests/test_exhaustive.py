"""Every float32 logit, and float64 logits by the million.

Functions of one logit can be checked everywhere: `-m exhaustive` visits all 2**32 float32 logits,
and prints for each quantity the worst error in ulps and the logit that reaches it. The normal run
visits one bit pattern in STRIDE. What the sweeps find is kept in worst_cases.json.

The float32 reference is float64 arithmetic. It forms e = exp(-|z|) once and everything else from e
without a difference that cancels, so its relative error is a few times 2**-53, under 2**-26 of a
float32 ulp; `test_reference_against_mpmath` checks that. The same formulas on MPFR numbers of 200
bits are the float64 reference. Both signs of a logit share its e, and both targets of a sigmoid or
of two classes share all that is formed from it.

Functions of a row of logits are sampled, and compared with the oracle.
"""

from itertools import product

import bits
import gmpy2
import mpmath
import numpy as np
import oracle
import pytest
import worst_cases
from cases import generator

import stableloss as sl

# Small enough for the caches, large enough for numpy's overhead not to count.
CHUNK = 1 << 15
STRIDE = 4099
LARGEST_FLOAT32 = 0x7F7FFFFF  # bits of the largest finite number


# A case yields, for z = t and z = -t: the logits, the target, the quantity, what the package made
# of it, the Value it should have been, and the sign.


def _sides(t):
    """Both signs and both targets, and whether the prediction is on the wrong side of its target."""
    for z, y in product((t, -t), (0, 1)):
        yield z, y, (z is t) == (y == 0)


def of_an_element(unreduced, t, references):
    for z, y, wrong in _sides(t):
        targets = np.full(z.shape, y, z.dtype)
        loss, grad = unreduced.value_and_grad(z, targets)
        _, hess = unreduced.grad_and_hess(z, targets)
        reference = references[wrong]
        yield z, y, "loss", loss, reference["loss"], 1
        yield z, y, "grad", grad, reference["grad"], 1 - 2 * y
        yield z, y, "hess", hess, reference["hess"], 1


def of_two_classes(unreduced, t, references):
    """Logits (z, 0); target 0 is the class of z, a sigmoid's target 1."""
    for z, y, wrong in _sides(t):
        logits = np.stack([z, np.zeros_like(z)], axis=1)
        targets = np.full(z.shape, 1 - y)
        loss, grad = unreduced.value_and_grad(logits, targets)
        # the Hessian does not know the target
        hess = unreduced.grad_and_hess(logits, targets)[1] if y else None
        value = references[wrong]
        yield logits, 1 - y, "loss", loss, value["loss"], 1
        for column in (0, 1):
            sign = (1 - 2 * y) * (1 - 2 * column)
            yield logits, 1 - y, "grad", grad[:, column], value["grad"], sign
            if hess is not None:
                yield logits, 1 - y, "hess", hess[:, column], value["hess"], 1


def of_an_activation(function, t, references):
    for z, (value, sign) in zip((t, -t), references, strict=True):
        yield z, None, "value", function(z), value, sign


CASES = [name for name in (*bits.LOSSES, *bits.ACTIVATIONS) if hasattr(oracle.OneLogit, name)]
by_case = pytest.mark.parametrize("case", CASES)


def results(case, t):
    exact = t.astype(np.float64) if t.dtype == np.float32 else oracle.lift(t)
    references = getattr(oracle.OneLogit(exact), case)
    if case in bits.ACTIVATIONS:
        return of_an_activation(getattr(sl, case), t, references)
    unreduced = type(getattr(sl, case))(reduction="none")
    return (of_two_classes if bits.by_rows(case) else of_an_element)(unreduced, t, references)


def check(case, t, worst):
    """The logits t and -t, t >= 0."""
    with gmpy2.context(gmpy2.get_context(), precision=oracle.LEAST_BITS):
        for logits, y, quantity, got, value, sign in results(case, t):
            worst.update(quantity, value.errors(got, sign), logits, y)


def report(capsys, function, dtype, worst):
    with capsys.disabled():
        print(f"\n{sl.cpu_level()} {np.dtype(dtype)} {function}:\n{worst}", end="")


def float32_of(patterns):
    return patterns.astype(np.uint32).view(np.float32)


@by_case
def test_float32_subset(case):
    worst = worst_cases.Worst()
    patterns = np.arange(0, LARGEST_FLOAT32 + 1, STRIDE)
    for start in range(0, len(patterns), CHUNK):
        check(case, float32_of(patterns[start : start + CHUNK]), worst)
    worst.assert_within_limits(case, np.float32)


@pytest.mark.exhaustive
@by_case
def test_float32_all(case, capsys, update_records):
    worst = worst_cases.Worst()
    for start in range(0, LARGEST_FLOAT32 + 1, CHUNK):
        check(case, float32_of(np.arange(start, start + CHUNK)), worst)
    report(capsys, case, np.float32, worst)
    worst_cases.confirm(case, np.float32, worst, update_records)


# ---- float64 -------------------------------------------------------------------------------------


def adversarial(rng, n):
    """Magnitudes of every kind, and the neighbours of the points where code paths meet."""
    ln2 = np.log(2.0)
    thresholds = [708.396, 709.782, 744.44, 745.133, 354.198, 36.7368, 37.4299, 18.0, 33.3]
    centres = np.concatenate(
        [
            np.arange(1081) * ln2,
            (np.arange(1080) + 0.5) * ln2,
            np.arange(751),
            2.0 ** np.arange(-60, 11),
            thresholds,
            [1e-300, 5e-324],
        ]
    )
    near = rng.choice(centres, n // 4)
    near = (near.view(np.int64) + rng.integers(-4, 5, n // 4)).view(np.float64)
    any_bits = rng.integers(0, 1 << 63, n // 8, dtype=np.uint64).view(np.float64)
    parts = [
        near[near >= 0],
        any_bits[np.isfinite(any_bits)],
        rng.uniform(0, 750, n // 8),
        rng.uniform(0, 40, n // 4),
        rng.normal(size=n // 4),
    ]
    return abs(np.concatenate(parts))


def climb(case, worst, rng, rounds):
    """Search around the worst logits met so far, ever closer."""
    for _ in range(rounds):
        for _, logits, _ in list(worst.found.values()):
            z = np.ravel(logits)[0]
            width = abs(z) * 2.0 ** -rng.uniform(2, 50, 200)
            check(case, abs(z) + width * rng.choice([-1, 1], 200), worst)
            check(case, np.nextafter(abs(z) + width[:50], 0), worst)


@by_case
def test_float64_sample(case):
    worst = worst_cases.Worst()
    check(case, adversarial(generator("float64"), 2000), worst)
    worst.assert_within_limits(case, np.float64)


@pytest.mark.exhaustive
@by_case
def test_float64_million(case, capsys, update_records):
    rng, worst = generator("million"), worst_cases.Worst()
    visited = 0
    while visited < 1_000_000:
        t = adversarial(rng, 20_000)
        check(case, t, worst)
        visited += 2 * len(t)
    climb(case, worst, rng, 40)
    report(capsys, case, np.float64, worst)
    worst_cases.confirm(case, np.float64, worst, update_records)


# ---- rows of several classes, and soft targets ---------------------------------------------------

# of elements with hard targets every logit is visited above, where the oracle has the functions of one logit
ROW_CASES = [
    *((stem, "hard") for stem in bits.LOSSES if bits.by_rows(stem) or stem not in CASES),
    *((stem, "soft") for stem in bits.LOSSES),
    *((name, None) for name in bits.ACTIVATIONS if bits.by_rows(name)),
]
by_row_case = pytest.mark.parametrize(("function", "kind"), ROW_CASES)
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def rows(rng, n, k, dtype):
    """Logits of every spread, some far from 0, some with a class ahead, some with ties."""
    scale = rng.choice([0.1, 1, 5, 30, 100], (n, 1), p=[0.2, 0.3, 0.3, 0.15, 0.05])
    logits = rng.normal(size=(n, k)) * scale
    if k > 1:
        logits += rng.choice([0, 0, 100, 1e6], (n, 1))
    logits[np.arange(n), rng.integers(0, k, n)] += rng.choice([0, 0, 5, 20, 40], n)
    logits = np.where(rng.random((n, 1)) < 0.05, np.rint(logits), logits)
    # rows that the oracle needs as many bits for together
    return logits[np.argsort(worst_cases.spreads(logits))].astype(dtype)


def targets_of(rng, kind, function, logits):
    n, k = logits.shape
    if kind is None:
        return None
    if not bits.by_rows(function):
        if kind == "hard":
            return rng.integers(0, 2, (n, k))
        return rng.choice([1, 0.5, 1e-6], (n, k)).astype(logits.dtype) * rng.random((n, k), logits.dtype)
    if kind == "hard":
        return rng.integers(0, k, n)
    return rng.dirichlet(np.full(k, 0.7), n).astype(logits.dtype)


def check_rows(function, kind, logits, targets, worst):
    step = max(1, 5000 // logits.shape[1])
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        given = None if targets is None else targets[part]
        for quantity, errors in worst_cases.errors(function, logits[part], given).items():
            name = f"soft {quantity}" if kind == "soft" else quantity
            worst.update(name, errors, logits[part], given)


def climb_rows(function, kind, worst, rng, rounds):
    for _ in range(rounds):
        for _, row, target in list(worst.found.values()):
            # as many entries whatever the number of classes
            shape = (max(1, 1000 // len(row)), len(row))
            width = row * 2.0 ** -rng.uniform(2, 50, (shape[0], 1)) * rng.uniform(-1, 1, shape)
            targets = None if target is None else np.repeat(np.asarray(target)[None], shape[0], axis=0)
            check_rows(function, kind, (row + width).astype(row.dtype), targets, worst)


@pytest.mark.exhaustive
@by_dtype
@by_row_case
def test_rows(function, kind, dtype, capsys, update_records):
    """A million entries, in rows of 1 to 1000 classes."""
    rng, worst = generator(function, kind, np.dtype(dtype)), worst_cases.Worst()
    entries = 1_000_000
    class_counts = (2, 3, 10, 100, 1000) if bits.by_rows(function) else (1,)
    for k in class_counts:
        logits = rows(rng, entries // len(class_counts) // k, k, dtype)
        check_rows(function, kind, logits, targets_of(rng, kind, function, logits), worst)
    climb_rows(function, kind, worst, rng, 40)
    report(capsys, function, dtype, worst)
    worst_cases.confirm(function, dtype, worst, update_records)


# ---- the reference itself ------------------------------------------------------------------------


def reference_error(n):
    """Largest relative error of the float64 reference at n float32 logits, against mpmath."""
    rng = generator("reference")
    parts = [
        rng.uniform(0, 104, n // 2),
        abs(rng.normal(size=n // 4)),
        float32_of(rng.integers(0, LARGEST_FLOAT32, n // 4)),
    ]
    t = np.sort(np.concatenate(parts).astype(np.float32)).astype(np.float64)
    largest = 0.0
    # the three ways to form e
    for part in np.split(t, np.searchsorted(t, [oracle.SMALL, oracle.LARGE])):
        ours = oracle.OneLogit(part)
        right, wrong = ours.sigmoid_bce
        for i, value in enumerate(part.tolist()):
            with mpmath.workprec(120):
                e = mpmath.exp(-mpmath.mpf(value))
                tail = mpmath.log1p(e)
                exact = [
                    (ours.larger[i], 1 / (1 + e)),
                    (ours.smaller[i], e / (1 + e)),
                    (right["hess"].exact[i], e / (1 + e) ** 2),
                    (right["loss"].exact[i], tail),
                    (wrong["loss"].exact[i], mpmath.mpf(value) + tail),
                ]
                for got, expected in exact:
                    if expected > 2.0**-184 or got != 0:
                        largest = max(largest, abs(float(got / expected - 1)))
    return largest


def test_reference_against_mpmath():
    assert reference_error(2000) < 2.0**-50


@pytest.mark.exhaustive
def test_reference_against_mpmath_at_many_points():
    assert reference_error(100_000) < 2.0**-50


def test_mpfr_reference_against_oracle():
    """The rearranged formulas at 200 bits against the textbook formulas at 1400."""
    t = adversarial(generator("check"), 200)
    t = t[t < 700]
    with gmpy2.context(gmpy2.get_context(), precision=oracle.LEAST_BITS):
        reference = oracle.OneLogit(oracle.lift(t))
        pairs = {case: getattr(reference, case) for case in CASES if case in bits.LOSSES}
    for stem, sides in pairs.items():
        if bits.by_rows(stem):
            continue
        for wrong, side in enumerate(sides):
            exact = oracle.LOSSES[stem](t, np.full(t.shape, 1 - wrong))
            for quantity, value in side.items():
                ours = value.exact if quantity != "grad" or wrong else -value.exact
                error = abs(ours - getattr(exact, quantity))
                term = getattr(exact, f"{quantity}_term")
                assert (error <= term * gmpy2.exp2(-180)).all(), (stem, quantity)

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

from functools import cached_property
from itertools import product

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
TINY_FLOAT32 = float(np.finfo(np.float32).smallest_normal)
TINY_FLOAT64 = float(np.finfo(np.float64).smallest_normal)
LN2 = float(np.log(2.0))
# Below SMALL, e**-t is 1 - t to float64's last bit; from LARGE on, it is nothing beside 1 and, 2**30
# times below the smallest float32, nothing that a float32 result could show.
SMALL, LARGE = 2.0**-30, 128.0

_exp = np.frompyfunc(gmpy2.exp, 1, 1)
_log1p = np.frompyfunc(gmpy2.log1p, 1, 1)
_exponent = np.frompyfunc(lambda x: gmpy2.frexp(x)[0] if x else -(10**6), 1, 1)
_power_of_2 = np.frompyfunc(lambda n: gmpy2.exp2(int(n)), 1, 1)


def exp_and_log1p(t):
    """e**-t and log(1 + e**-t) for t >= 0."""
    if t.dtype == object:
        e = _exp(-t)
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


class Reference:
    """What depends on sigmoid(t) and sigmoid(-t), t >= 0: formed from e = exp(-t) without a
    difference, so that a prediction may be as confident as it likes."""

    def __init__(self, t):
        self.t = t
        self.e, self.tail = exp_and_log1p(t)
        self.larger = 1 / (1 + self.e)
        self.smaller = self.e * self.larger

    @cached_property
    def cross_entropy(self):
        """Loss, |gradient| and Hessian of a prediction on the right side, and on the wrong one."""
        hess = Value(self.larger * self.smaller)
        right = {"loss": Value(self.tail), "grad": Value(self.smaller), "hess": hess}
        wrong = {"loss": Value(self.t + self.tail), "grad": Value(self.larger), "hess": hess}
        return right, wrong

    def _squared_error(self, miss, rest):
        grad = miss * miss * rest
        # the second derivative is a true difference, 0 at a miss of 2/3
        hess = Value(grad * (2 - 3 * miss), grad * np.maximum(2, 3 * miss))
        return {"loss": Value(miss * miss / 2), "grad": Value(grad), "hess": hess}

    @cached_property
    def squared_error(self):
        right = self._squared_error(self.smaller, self.larger)
        return right, self._squared_error(self.larger, self.smaller)

    @cached_property
    def activations(self):
        return {
            "sigmoid": (Value(self.smaller), Value(self.larger)),
            "log_sigmoid": (Value(self.t + self.tail), Value(self.tail)),
        }


# A case yields, for z = t and z = -t: the logits, the target, the quantity, what the package made
# of it, the Value it should have been, and the sign.


def _sides(t):
    """Both signs and both targets, and whether the prediction is on the wrong side of its target."""
    for z, y in product((t, -t), (0, 1)):
        yield z, y, (z is t) == (y == 0)


def _sigmoid_loss(stem, t, references):
    unreduced = type(getattr(sl, stem))(reduction="none")
    for z, y, wrong in _sides(t):
        targets = np.full(z.shape, y, z.dtype)
        loss, grad = unreduced.value_and_grad(z, targets)
        _, hess = unreduced.grad_and_hess(z, targets)
        reference = references[wrong]
        yield z, y, "loss", loss, reference["loss"], 1
        yield z, y, "grad", grad, reference["grad"], 1 - 2 * y
        yield z, y, "hess", hess, reference["hess"], 1


def sigmoid_bce(t, reference):
    return _sigmoid_loss("sigmoid_bce", t, reference.cross_entropy)


def sigmoid_mse(t, reference):
    return _sigmoid_loss("sigmoid_mse", t, reference.squared_error)


def softmax_ce(t, reference):
    """Two classes with logits (z, 0); target 0 is the class of z, a sigmoid's target 1."""
    unreduced = sl.SoftmaxCE(reduction="none")
    for z, y, wrong in _sides(t):
        logits = np.stack([z, np.zeros_like(z)], axis=1)
        targets = np.full(z.shape, 1 - y)
        loss, grad = unreduced.value_and_grad(logits, targets)
        # the Hessian does not know the target
        hess = unreduced.grad_and_hess(logits, targets)[1] if y else None
        value = reference.cross_entropy[wrong]
        yield logits, 1 - y, "loss", loss, value["loss"], 1
        for column in (0, 1):
            sign = (1 - 2 * y) * (1 - 2 * column)
            yield logits, 1 - y, "grad", grad[:, column], value["grad"], sign
            if hess is not None:
                yield logits, 1 - y, "hess", hess[:, column], value["hess"], 1


def sigmoid(t, reference):
    for z in (t, -t):
        yield z, None, "value", sl.sigmoid(z), reference.activations["sigmoid"][z is t], 1


def log_sigmoid(t, reference):
    for z in (t, -t):
        yield z, None, "value", sl.log_sigmoid(z), reference.activations["log_sigmoid"][z is t], -1


CASES = [sigmoid_bce, sigmoid_mse, softmax_ce, sigmoid, log_sigmoid]
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


def check(case, t, worst):
    """The logits t and -t, t >= 0."""
    single = t.dtype == np.float32
    with gmpy2.context(gmpy2.get_context(), precision=oracle.LEAST_BITS):
        reference = Reference(t.astype(np.float64) if single else oracle.lift(t))
        for logits, y, quantity, got, value, sign in case(t, reference):
            worst.update(quantity, value.errors(got, sign), logits, y)


def report(capsys, function, dtype, worst):
    with capsys.disabled():
        print(f"\n{sl.cpu_level()} {np.dtype(dtype)} {function}:\n{worst}", end="")


def float32_of(bits):
    return bits.astype(np.uint32).view(np.float32)


@by_case
def test_float32_subset(case):
    worst = worst_cases.Worst()
    bits = np.arange(0, LARGEST_FLOAT32 + 1, STRIDE)
    for start in range(0, len(bits), CHUNK):
        check(case, float32_of(bits[start : start + CHUNK]), worst)
    worst.assert_within_limits(case.__name__, np.float32)


@pytest.mark.exhaustive
@by_case
def test_float32_all(case, capsys, update_records):
    worst = worst_cases.Worst()
    for start in range(0, LARGEST_FLOAT32 + 1, CHUNK):
        check(case, float32_of(np.arange(start, start + CHUNK)), worst)
    report(capsys, case.__name__, np.float32, worst)
    worst_cases.confirm(case.__name__, np.float32, worst, update_records)


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
    bits = rng.integers(0, 1 << 63, n // 8, dtype=np.uint64).view(np.float64)
    parts = [
        near[near >= 0],
        bits[np.isfinite(bits)],
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
    worst.assert_within_limits(case.__name__, np.float64)


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
    report(capsys, case.__name__, np.float64, worst)
    worst_cases.confirm(case.__name__, np.float64, worst, update_records)


# ---- rows of several classes, and soft targets ---------------------------------------------------

ROW_CASES = [
    *product(("softmax_ce", "softmax_mse"), ("hard", "soft")),
    *product(("sigmoid_bce", "sigmoid_mse"), ("soft",)),
    *product(("softmax", "log_softmax", "logsumexp"), (None,)),
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
    if kind == "hard":
        return rng.integers(0, k, n)
    if function.startswith("sigmoid"):
        return rng.choice([1, 0.5, 1e-6], (n, k)).astype(logits.dtype) * rng.random((n, k), logits.dtype)
    return rng.dirichlet(np.full(k, 0.7), n).astype(logits.dtype) if kind else None


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
    class_counts = (1,) if function.startswith("sigmoid") else (2, 3, 10, 100, 1000)
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
    for part in np.split(t, np.searchsorted(t, [SMALL, LARGE])):
        ours = Reference(part)
        right, wrong = ours.cross_entropy
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
        reference = Reference(oracle.lift(t))
        pairs = {
            "sigmoid_bce": reference.cross_entropy,
            "sigmoid_mse": reference.squared_error,
        }
    for stem, sides in pairs.items():
        for wrong, side in enumerate(sides):
            exact = oracle.LOSSES[stem](t, np.full(t.shape, 1 - wrong))
            for quantity, value in side.items():
                ours = value.exact if quantity != "grad" or wrong else -value.exact
                error = abs(ours - getattr(exact, quantity))
                term = getattr(exact, f"{quantity}_term")
                assert (error <= term * gmpy2.exp2(-180)).all(), (stem, quantity)

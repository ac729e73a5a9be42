"""Every float32 logit, and float64 logits by the million.

Functions of one logit can be checked everywhere: `-m exhaustive` visits all 2**32 float32 logits,
and prints for each quantity the worst error in ulps and the logit that reaches it. The normal run
visits one bit pattern in STRIDE.

The float32 reference is float64 arithmetic. It forms e = exp(-|z|) once and everything else from e
without a difference that cancels, so its relative error is a few times 2**-53, under 2**-26 of a
float32 ulp; `test_reference_against_mpmath` checks that. The same formulas on MPFR numbers of 200
bits are the float64 reference.
"""

from functools import cached_property

import gmpy2
import mpmath
import numpy as np
import oracle
import pytest
from cases import generator

import stableloss as sl

LIMITS = {"loss": 4, "grad": 4, "hess": 4, "activation": 3}
# where float64 takes more, by stem and quantity: the same as in the contracts
FLOAT64_LIMITS = {
    "softmax_mse": {"loss": 5, "grad": 7, "hess": 8},
}
# Arrays of a chunk stay in cache, and are small enough for their memory to be reused.
CHUNK = 1 << 12
STRIDE = 4099
REFERENCE_BITS = 200

_exp = np.frompyfunc(gmpy2.exp, 1, 1)
_log1p = np.frompyfunc(gmpy2.log1p, 1, 1)


def exp(x):
    return _exp(x) if x.dtype == object else np.exp(x)


def log1p(x):
    return _log1p(x) if x.dtype == object else np.log1p(x)


class Reference:
    """What depends on a = sigmoid(z) and b = sigmoid(-z), from e = exp(-|z|)."""

    def __init__(self, z):
        self.z = z
        self.e = exp(-abs(z))

    @cached_property
    def larger(self):
        return 1 / (1 + self.e)

    @cached_property
    def smaller(self):
        return self.e * self.larger

    @cached_property
    def tail(self):
        return log1p(self.e)

    @property
    def a(self):
        return np.where(self.z >= 0, self.larger, self.smaller)

    @property
    def b(self):
        return np.where(self.z >= 0, self.smaller, self.larger)

    @property
    def ab(self):
        return self.larger * self.smaller

    @property
    def softplus(self):
        return np.maximum(self.z, 0) + self.tail

    @property
    def softplus_minus(self):
        return np.maximum(-self.z, 0) + self.tail

    def miss(self, y):
        """|a - y| for a hard target, and its complement."""
        return (self.b, self.a) if y else (self.a, self.b)

    def cross_entropy(self, y):
        loss = self.softplus_minus if y else self.softplus
        return {"loss": loss, "grad": (-1 if y else 1) * self.miss(y)[0], "hess": self.ab}

    def squared_error(self, y):
        miss, rest = self.miss(y)
        grad = miss * miss * rest
        return {
            "loss": miss * miss / 2,
            "grad": -grad if y else grad,
            "hess": grad * (2 - 3 * miss),
        }

    def largest_term(self, quantity, y):
        """Of the second derivative of the squared error, a true difference at |a - y| = 2/3."""
        miss, rest = self.miss(y)
        return miss * miss * rest * np.maximum(2, 3 * miss) if quantity == "hess" else None


def _loss(stem, reference, z, y):
    unreduced = type(getattr(sl, stem))(reduction="none")
    targets = np.broadcast_to(np.uint8(y), z.shape)
    loss, grad = unreduced.value_and_grad(z, targets)
    _, hess = unreduced.grad_and_hess(z, targets)
    return {"loss": loss, "grad": grad, "hess": hess}


def sigmoid_bce(z, reference, y):
    return _loss("sigmoid_bce", reference, z, y), reference.cross_entropy(y), {}


def sigmoid_mse(z, reference, y):
    got = _loss("sigmoid_mse", reference, z, y)
    return got, reference.squared_error(y), {"hess": reference.largest_term("hess", y)}


def softmax_ce(z, reference, y):
    """Two classes with logits (z, 0); y = 1 is the class of z."""
    logits = np.stack([z, np.zeros_like(z)], axis=1)
    targets = np.broadcast_to(np.uint8(1 - y), z.shape)
    unreduced = sl.SoftmaxCE(reduction="none")
    loss, grad = unreduced.value_and_grad(logits, targets)
    _, hess = unreduced.grad_and_hess(logits, targets)
    expected = reference.cross_entropy(y)
    got = {"loss": loss, "grad": grad[:, 0], "hess": hess[:, 0]}
    got |= {"grad of 0": grad[:, 1], "hess of 0": hess[:, 1]}
    expected |= {"grad of 0": -expected["grad"], "hess of 0": expected["hess"]}
    return got, expected, {}


def sigmoid(z, reference, y):
    return {"activation": sl.sigmoid(z)}, {"activation": reference.a}, {}


def log_sigmoid(z, reference, y):
    return {"activation": sl.log_sigmoid(z)}, {"activation": -reference.softplus_minus}, {}


CASES = [
    pytest.param(sigmoid_bce, 0, id="sigmoid_bce-target-0"),
    pytest.param(sigmoid_bce, 1, id="sigmoid_bce-target-1"),
    pytest.param(sigmoid_mse, 0, id="sigmoid_mse-target-0"),
    pytest.param(sigmoid_mse, 1, id="sigmoid_mse-target-1"),
    pytest.param(softmax_ce, 0, id="softmax_ce-target-0"),
    pytest.param(softmax_ce, 1, id="softmax_ce-target-z"),
    pytest.param(sigmoid, None, id="sigmoid"),
    pytest.param(log_sigmoid, None, id="log_sigmoid"),
]


def errors_in_float32_ulps(got, exact, term):
    """As oracle.ulp_error, for float64 references of float32 results."""
    magnitude = abs(exact) if term is None else np.maximum(abs(exact), term)
    # A float64 without its fraction bits is the power of two below it.
    power = (magnitude.view(np.int64) & (0x7FF << 52)).view(np.float64)
    tiny = np.finfo(np.float32).smallest_normal
    error = abs(got - exact) / (np.maximum(power, tiny) * 2.0**-23)
    return np.where((got == 0) & (abs(exact) < tiny), 0, error)


class Worst:
    """The largest error met per quantity, and where."""

    def __init__(self):
        self.found = {}

    def update(self, quantity, errors, z):
        i = int(errors.argmax())
        if errors[i] > self.found.get(quantity, (-1.0,))[0]:
            self.found[quantity] = (float(errors[i]), z[i])

    def assert_within_limits(self, limits=LIMITS):
        for quantity, (error, z) in self.found.items():
            limit = limits[quantity.split()[0]]
            assert error <= limit, f"{quantity}: {error:.3f} ulp at z = {float(z).hex()}"

    def __str__(self):
        return "".join(
            f"  {quantity}: {error:.4f} ulp at z = {float(z).hex()} ({z!r})\n"
            for quantity, (error, z) in self.found.items()
        )


def check_float32(case, y, z, worst):
    reference = Reference(z.astype(np.float64))
    got, expected, terms = case(z, reference, y)
    for quantity, exact in expected.items():
        errors = errors_in_float32_ulps(got[quantity], exact, terms.get(quantity))
        worst.update(quantity, errors, z)


def float32_of(bits):
    """The finite numbers among bit patterns."""
    z = bits.astype(np.uint32).view(np.float32)
    return z[np.isfinite(z)]


@pytest.mark.parametrize(("case", "y"), CASES)
def test_float32_subset(case, y):
    worst = Worst()
    bits = np.arange(1, 1 << 32, STRIDE, dtype=np.int64)
    for start in range(0, len(bits), CHUNK):
        check_float32(case, y, float32_of(bits[start : start + CHUNK]), worst)
    worst.assert_within_limits()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("case", "y"), CASES)
def test_float32_all(case, y, capsys):
    worst = Worst()
    for start in range(0, 1 << 32, CHUNK):
        z = float32_of(np.arange(start, start + CHUNK, dtype=np.int64))
        if len(z):
            check_float32(case, y, z, worst)
    with capsys.disabled():
        print(f"\n{sl.cpu_level()} float32 {case.__name__}, target {y}:\n{worst}", end="")
    worst.assert_within_limits()


# ---- float64 -------------------------------------------------------------------------------------


def check_float64(case, y, z, worst):
    with gmpy2.context(gmpy2.get_context(), precision=REFERENCE_BITS):
        reference = Reference(oracle.lift(z))
        got, expected, terms = case(z, reference, y)
    for quantity, exact in expected.items():
        errors = oracle.ulp_error(got[quantity], exact, np.float64, terms.get(quantity))
        worst.update(quantity, errors, z)


def adversarial(rng, n):
    """Random logits of every kind, and the neighbours of the points where code paths meet."""
    ln2 = np.log(2.0)
    thresholds = [708.396, 709.782, 744.44, 745.133, 354.198, 36.7368, 37.4299, 18.0, 33.3]
    centres = np.concatenate(
        [
            np.arange(-1080, 1081) * ln2,
            (np.arange(-1080, 1080) + 0.5) * ln2,
            np.arange(-750, 751),
            2.0 ** np.arange(-60, 11),
            thresholds,
            [1e-300, 5e-324],
        ]
    )
    near = rng.choice(centres, n // 4)
    near = (near.view(np.int64) + rng.integers(-4, 5, n // 4)).view(np.float64)
    bits = rng.integers(0, 1 << 64, n // 8, dtype=np.uint64).view(np.float64)
    parts = [
        near,
        bits[np.isfinite(bits)],
        rng.uniform(-750, 750, n // 8),
        rng.uniform(-40, 40, n // 4),
        rng.normal(size=n // 4),
    ]
    z = np.concatenate(parts)
    return z * rng.choice([-1.0, 1.0], len(z))


def climb(case, y, worst, rng, rounds):
    """Search around the worst logits met so far, ever closer."""
    for i in range(rounds):
        for _, z in list(worst.found.values()):
            width = abs(z) * 2.0 ** -rng.uniform(2, 50, 200)
            z = np.where(np.arange(200) % 2, z + width, z - width)
            check_float64(case, y, np.append(z, np.nextafter(z[:50], np.inf * (-1) ** i)), worst)


@pytest.mark.parametrize(("case", "y"), CASES)
def test_float64_sample(case, y):
    worst = Worst()
    check_float64(case, y, adversarial(generator("float64"), 3000), worst)
    worst.assert_within_limits(LIMITS | FLOAT64_LIMITS.get(case.__name__, {}))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("case", "y"), CASES)
def test_float64_million(case, y, capsys):
    rng, worst = generator("million", y), Worst()
    visited = 0
    while visited < 1_000_000:
        z = adversarial(rng, 20_000)
        check_float64(case, y, z, worst)
        visited += len(z)
    climb(case, y, worst, rng, 40)
    with capsys.disabled():
        print(f"\n{sl.cpu_level()} float64 {case.__name__}, target {y}:\n{worst}", end="")
    worst.assert_within_limits(LIMITS | FLOAT64_LIMITS.get(case.__name__, {}))


@pytest.mark.exhaustive
@pytest.mark.parametrize("stem", ["softmax_ce", "softmax_mse"])
@pytest.mark.parametrize("k", [3, 10, 100])
def test_float64_rows(stem, k, capsys):
    """Rows of several classes against the oracle."""
    rng, found = generator("rows", k), {"loss": 0.0, "grad": 0.0, "hess": 0.0}
    unreduced = type(getattr(sl, stem))(reduction="none")
    for _ in range(20):
        n = 10_000 // k
        scale = rng.choice([0.1, 1, 5, 30, 200], (n, 1))
        logits = rng.normal(size=(n, k)) * scale + rng.choice([0, 100, 1e6], (n, 1))
        targets = rng.integers(0, k, n)
        exact = oracle.LOSSES[stem](logits, targets)
        loss, grad = unreduced.value_and_grad(logits, targets)
        _, hess = unreduced.grad_and_hess(logits, targets)
        for quantity, got in [("loss", loss), ("grad", grad), ("hess", hess)]:
            term = getattr(exact, f"{quantity}_term")
            errors = oracle.ulp_error(got, getattr(exact, quantity), np.float64, term)
            found[quantity] = max(found[quantity], float(errors.max()))
    with capsys.disabled():
        print(f"\n{sl.cpu_level()} float64 {stem}, k = {k}: {found}")
    limits = LIMITS | FLOAT64_LIMITS.get(stem, {})
    assert all(error <= limits[quantity] for quantity, error in found.items())


# ---- the reference itself ------------------------------------------------------------------------


def reference_error(n):
    """Largest relative error of the float64 reference at n float32 logits, against mpmath."""
    rng = generator("reference")
    parts = [
        rng.uniform(-104, 104, n // 2),
        rng.normal(size=n // 4),
        float32_of(rng.integers(0, 1 << 32, n // 4)),
    ]
    z = np.concatenate(parts).astype(np.float32)
    reference = Reference(z.astype(np.float64))
    largest = 0.0
    with mpmath.workprec(120):
        for i, value in enumerate(z.tolist()):
            t = mpmath.mpf(value)
            e = mpmath.exp(-abs(t))
            a, b = (1 / (1 + e), e / (1 + e)) if t >= 0 else (e / (1 + e), 1 / (1 + e))
            tail = mpmath.log1p(e)
            exact = {
                "a": a,
                "b": b,
                "ab": a * b,
                "softplus": max(t, 0) + tail,
                "softplus_minus": max(-t, 0) + tail,
            }
            for name, expected in exact.items():
                if expected > 2.0**-1000:
                    error = abs(float(getattr(reference, name)[i] / expected - 1))
                    largest = max(largest, error)
    return largest


def test_reference_against_mpmath():
    assert reference_error(2000) < 2.0**-50


@pytest.mark.exhaustive
def test_reference_against_mpmath_at_many_points():
    assert reference_error(100_000) < 2.0**-50


def test_mpfr_reference_against_oracle():
    """The rearranged formulas at 200 bits against the textbook formulas at 1400."""
    z = adversarial(generator("check"), 200)
    z = z[abs(z) < 700]
    with gmpy2.context(gmpy2.get_context(), precision=REFERENCE_BITS):
        reference = Reference(oracle.lift(z))
        quantities = {y: (reference.cross_entropy(y), reference.squared_error(y)) for y in (0, 1)}
    for y, (cross_entropy, squared_error) in quantities.items():
        for ours, exact in [
            (cross_entropy, oracle.sigmoid_bce(z, np.full(z.shape, y))),
            (squared_error, oracle.sigmoid_mse(z, np.full(z.shape, y))),
        ]:
            for quantity, values in ours.items():
                error = abs(values - getattr(exact, quantity))
                term = getattr(exact, f"{quantity}_term")
                assert (error <= term * gmpy2.exp2(-180)).all(), (quantity, y)

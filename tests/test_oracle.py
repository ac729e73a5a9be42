"""The oracle itself: derivatives against mpmath.diff, MPFR against mpmath, the ulp count."""

import bits
import gmpy2
import mpmath
import numpy as np
import oracle
import pytest

SOFTMAX_TARGETS = {
    "index": 2,
    "index-of-least": 3,
    "soft": [0.125, 0.25, 0.5, 0.125],
    "unnormalised": [0.5, 0.0, 1.5, 0.25],
}
LOGITS = {
    "ordinary": [0.5, -1.25, 2.0, -3.5],
    "confident": [-30.0, -20.0, 12.0, -40.0],
    "ties": [1.0, 1.0, 1.0, 1.0],
}
SIGMOID_LOGITS = [-40.0, -3.0, -0.5, 0.0, 0.75, 5.0, 30.0]


def in_mpmath(values):
    return np.array([mpmath.mpf(v) for v in values], dtype=object)


def agree(a, b):
    """Equal to about 250 decimals; mpmath.diff and MPFR round differently beyond."""
    difference = abs(mpmath.mpf(a) - mpmath.mpf(b))
    return difference <= mpmath.mpf(2) ** -800 * max(abs(mpmath.mpf(b)), mpmath.mpf(2) ** -300)


def to_mpmath(value):
    mantissa, exponent = value.as_mantissa_exp()
    return mpmath.ldexp(mpmath.mpf(int(mantissa)), int(exponent))


@pytest.mark.parametrize("name", [stem for stem in bits.LOSSES if bits.by_rows(stem)])
@pytest.mark.parametrize("targets", SOFTMAX_TARGETS.values(), ids=SOFTMAX_TARGETS)
@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_derivatives_of_rows(name, targets, logits):
    exact = oracle.LOSSES[name](np.array(logits), np.array(targets))
    dense = in_mpmath([float(t) for t in oracle.dense_targets(np.array(logits), targets)])
    for i in range(len(logits)):

        def loss(z, i=i):
            x = in_mpmath(logits)
            x[i] = z
            return oracle.LOSSES[name](x, dense).loss.item()

        assert agree(to_mpmath(exact.grad[i]), mpmath.diff(loss, logits[i]))
        assert agree(to_mpmath(exact.hess[i]), mpmath.diff(loss, logits[i], 2))


@pytest.mark.parametrize("name", [stem for stem in bits.LOSSES if not bits.by_rows(stem)])
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_derivatives_of_elements(name, target):
    exact = oracle.LOSSES[name](np.array(SIGMOID_LOGITS), np.full(len(SIGMOID_LOGITS), target))
    for i, z in enumerate(SIGMOID_LOGITS):

        def loss(z):
            y = np.array(mpmath.mpf(target), dtype=object)
            return oracle.LOSSES[name](np.array(z, dtype=object), y).loss.item()

        assert agree(to_mpmath(exact.grad[i]), mpmath.diff(loss, z))
        assert agree(to_mpmath(exact.hess[i]), mpmath.diff(loss, z, 2))


# ---- the formula with its options ----------------------------------------------------------------

SOFTMAX_OPTIONS = {
    "none": {},
    "class-weight": {"class_weight": [0.5, 2.0, 0.0, 1.25]},
    "smoothing": {"label_smoothing": 0.1},
    "focal-half": {"focal_gamma": 0.5},
    "focal-1": {"focal_gamma": 1.0},
    "focal-2": {"focal_gamma": 2.0},
    "focal-5": {"focal_gamma": 5.0},
    "z-loss": {"z_loss": 0.01},
    "scale": {"logit_scale": 0.3},
    "softcap": {"softcap": 5.0},
    "clip": {"logit_clip": 1.5},
    "all": {
        "class_weight": [0.5, 2.0, 0.75, 1.25],
        "label_smoothing": 0.1,
        "focal_gamma": 1.5,
        "z_loss": 0.01,
        "logit_scale": 1.7,
        "softcap": 3.0,
        "logit_clip": 2.5,
    },
}
SIGMOID_OPTIONS = {
    **{name: SOFTMAX_OPTIONS[name] for name in SOFTMAX_OPTIONS if name not in ("z-loss", "all")},
    "pos-weight": {"pos_weight": [3.0, 0.25, 1.0, 2.0]},
    "alpha": {"focal_gamma": 2.0, "focal_alpha": 0.25},
    "all": {
        "class_weight": [0.5, 2.0, 0.75, 1.25],
        "pos_weight": 3.0,
        "label_smoothing": 0.1,
        "focal_gamma": 1.5,
        "focal_alpha": 0.25,
        "logit_scale": 1.7,
        "softcap": 3.0,
        "logit_clip": 2.5,
    },
}
DIRECTION, OTHER_DIRECTION = [0.75, -1.5, 0.25, 2.0], [1.0, 0.125, -2.5, 0.625]
POINTS = {"ordinary": LOGITS["ordinary"], "confident": [-3.0, 90.0, 4.5, 7.0]}


def capped(z, options):
    u = options.get("logit_scale", 1.0) * z
    cap = options.get("softcap")
    return u if cap is None else cap * mpmath.tanh(u / cap)


def clamped(logits, options):
    """Where the derivatives are taken: the gradient passes straight through the clamp."""
    bound = options.get("logit_clip", np.inf)
    return in_mpmath(np.clip(logits, -bound, bound).tolist())


def softmax_formula(z, t, options):
    """The formula of one row as it is documented, in loops."""
    k = len(z)
    e = [mpmath.exp(capped(z_k, options)) for z_k in z]
    p = [e_k / sum(e) for e_k in e]
    a = mpmath.mpf(options.get("label_smoothing", 0.0))
    loss = options.get("z_loss", 0.0) * mpmath.log(sum(e)) ** 2
    for w, t_k, p_k in zip(options.get("class_weight", [1.0] * k), t, p, strict=True):
        loss += w * ((1 - a) * t_k + a / k) * (1 - p_k) ** options.get("focal_gamma", 0.0) * -mpmath.log(p_k)
    return loss


def sigmoid_formula(z, y, o, options):
    """The formula of one element of output o."""
    a = 1 / (1 + mpmath.exp(-capped(z, options)))
    s, gamma = mpmath.mpf(options.get("label_smoothing", 0.0)), options.get("focal_gamma", 0.0)
    y = y * (1 - s) + s / 2
    positive, negative = np.broadcast_to(options.get("pos_weight", 1.0), 4)[o].item(), 1.0
    if "focal_alpha" in options:
        positive, negative = positive * options["focal_alpha"], 1 - options["focal_alpha"]
    of_one = positive * y * (1 - a) ** gamma * -mpmath.log(a)
    of_zero = negative * (1 - y) * a**gamma * -mpmath.log(1 - a)
    return options.get("class_weight", [1.0] * 4)[o] * (of_one + of_zero)


@pytest.mark.parametrize("options", SOFTMAX_OPTIONS.values(), ids=SOFTMAX_OPTIONS)
@pytest.mark.parametrize("targets", [2, SOFTMAX_TARGETS["unnormalised"]], ids=["index", "probabilities"])
@pytest.mark.parametrize("logits", POINTS.values(), ids=POINTS)
def test_softmax_options(logits, targets, options):
    given = np.array([logits]), np.array([targets])
    exact = oracle.softmax_ce_options(*given, np.array([DIRECTION]), **options)
    t = in_mpmath([float(t) for t in oracle.dense_targets(*given)[0]])
    z, u, v = clamped(logits, options), in_mpmath(OTHER_DIRECTION), in_mpmath(DIRECTION)
    assert agree(to_mpmath(exact.loss.value[0]), softmax_formula(z, t, options))
    mixed = mpmath.diff(lambda h, s: softmax_formula(z + h * u + s * v, t, options), (0, 0), (1, 1))
    assert agree(sum(u * [to_mpmath(entry) for entry in exact.hvp.value[0]]), mixed)
    for i in range(4):
        step = (np.arange(4) == i).astype(int)

        def along(h, step=step):
            return softmax_formula(z + h * step, t, options)

        def of_target(h, step=step):
            return softmax_formula(z, t + h * step, options)

        assert agree(to_mpmath(exact.grad.value[0, i]), mpmath.diff(along, 0))
        assert agree(to_mpmath(exact.hess.value[0, i]), mpmath.diff(along, 0, 2))
        if given[1].ndim == 2:
            assert agree(to_mpmath(exact.target_grad.value[0, i]), mpmath.diff(of_target, 0))


@pytest.mark.parametrize("options", SIGMOID_OPTIONS.values(), ids=SIGMOID_OPTIONS)
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("logits", POINTS.values(), ids=POINTS)
def test_sigmoid_options(logits, target, options):
    exact = oracle.sigmoid_bce_options(
        np.array([logits]), np.full((1, 4), target), np.array([DIRECTION]), **options
    )
    y = mpmath.mpf(target)
    for o, z in enumerate(clamped(logits, options)):

        def loss(x, y=y, o=o):
            return sigmoid_formula(x, y, o, options)

        curvature = mpmath.diff(loss, z, 2)
        assert agree(to_mpmath(exact.loss.value[0, o]), loss(z))
        assert agree(to_mpmath(exact.grad.value[0, o]), mpmath.diff(loss, z))
        assert agree(to_mpmath(exact.hess.value[0, o]), curvature)
        assert agree(to_mpmath(exact.hvp.value[0, o]), curvature * DIRECTION[o])
        by_target = mpmath.diff(lambda y, z=z, loss=loss: loss(z, y), y)
        assert agree(to_mpmath(exact.target_grad.value[0, o]), by_target)


@pytest.mark.parametrize("targets", SOFTMAX_TARGETS.values(), ids=SOFTMAX_TARGETS)
@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_softmax_mse_along(logits, targets):
    value, _ = oracle.softmax_mse_along(np.array(logits), np.array(targets), DIRECTION)
    t = in_mpmath([float(t) for t in oracle.dense_targets(np.array(logits), targets)])
    for i in range(4):

        def gradient(h, i=i):
            z = in_mpmath(logits) + h * in_mpmath(DIRECTION)
            return oracle.softmax_mse(z, t).grad[i]

        assert agree(to_mpmath(value[i]), mpmath.diff(gradient, 0))


SPECIAL = np.random.default_rng(2).choice(
    [np.nan, np.inf, -np.inf, 0.0, 1.5], (60, 4), p=[0.05, 0.2, 0.3, 0.2, 0.25]
)


@pytest.mark.parametrize("targets", ["index", "soft"])
def test_softmax_without_options(targets):
    """The formula with every option at its default against the plain one, special values included."""
    rng = np.random.default_rng(3)
    logits = np.concatenate([SPECIAL, rng.normal(size=(5, 4)) * 20])
    t = rng.integers(0, 4, 65) if targets == "index" else rng.dirichlet(np.ones(4), 65).round(1)
    plain, full = oracle.softmax_ce(logits, t), oracle.softmax_ce_options(logits, t)
    for name in ("loss", "grad", "hess"):
        value, term = getattr(plain, name).astype(float), getattr(plain, f"{name}_term").astype(float)
        assert same_numbers(getattr(full, name).value, value)
        # the term of a difference is not taken where one of the two is 0
        assert (getattr(full, name).term.astype(float) <= term)[~np.isnan(value)].all()
    assert full.divisor == 65


def test_sigmoid_without_options():
    z, y = np.tile(SPECIAL, (3, 1)), np.repeat([[0.0], [0.5], [1.0]], 60, axis=0) * np.ones(4)
    plain, full = oracle.sigmoid_bce(z, y), oracle.sigmoid_bce_options(z, y)
    for name in ("loss", "grad", "hess"):
        assert same_numbers(getattr(full, name).value, getattr(plain, name))
    assert full.divisor == 720


def same_numbers(a, b):
    """Equal in float64, where the rearranged formula has lost bits far beyond."""
    return np.array_equal(a.astype(np.float64), b.astype(np.float64), equal_nan=True)


def test_limits_with_options():
    inf = np.inf
    logits, targets = np.array([[0.0, -inf, 0.0], [0.0, 50.0, -inf], [inf, 0.0, 0.0]]), np.array([0, 1, 0])
    smooth = oracle.softmax_ce_options(logits, targets, label_smoothing=0.5, reduction="sum")
    np.testing.assert_allclose(smooth.grad.value[0].astype(float), [-0.25, 0, 0.25])
    assert float(smooth.loss.value[0]) == pytest.approx(np.log(2))
    assert float(smooth.loss.value[2]) == inf
    focal = oracle.softmax_ce_options(logits, targets, focal_gamma=0.5)
    np.testing.assert_array_equal(focal.grad.value[2].astype(float), [0, 0, 0])
    lost = oracle.softmax_ce_options(logits[:1], np.array([1]), focal_gamma=2.0)
    assert float(lost.loss.value[0]) == inf
    np.testing.assert_array_equal(lost.grad.value[0].astype(float), [0.5, -1, 0.5])


def test_divisors():
    logits, index = np.zeros((4, 3)), np.array([0, 2, -100, 1])
    options = {"class_weight": [1.0, 2.0, 4.0], "sample_weight": np.array([1.0, 0.5, 9.0, 0.0])}
    mask = np.array([True, True, True, False])

    def divisor(targets=index, **given):
        return float(oracle.softmax_ce_options(logits, targets, **given).divisor)

    assert divisor() == 3
    assert divisor(mask=mask) == 2
    assert divisor(class_weight=options["class_weight"]) == 7
    assert divisor(**options) == 3
    assert divisor(**options, reduction="batchmean") == 3
    assert divisor(**options, reduction="sum") == 1
    assert divisor(np.eye(4)[:, :3], **options) == 10.5
    assert divisor(np.eye(4)[:, :3], **options, mask=mask) == 10.5
    assert divisor(**options, denominator=8.0) == 8
    elements = np.array([[True, False, True]] * 3 + [[False] * 3])

    def of_elements(**given):
        return float(oracle.sigmoid_bce_options(logits, logits, **given).divisor)

    assert of_elements(mask=elements, class_weight=options["class_weight"]) == 6
    assert of_elements(mask=elements, reduction="batchmean") == 3
    assert of_elements(mask=mask) == 9


def test_what_does_not_count_is_not_looked_at():
    logits = np.array([[np.nan, 0.0], [0.0, 1.0], [np.inf, np.nan]])
    mask = np.array([False, True, True])
    exact = oracle.softmax_ce_options(logits, np.array([7, 1, -100]), z_loss=1.0, mask=mask)
    np.testing.assert_array_equal(exact.counts, [False, True, False])
    np.testing.assert_array_equal(exact.predicted, [-1, 1, -1])
    for part in (exact.loss, exact.grad, exact.hess):
        assert not part.value[[0, 2]].any()
        assert np.any(part.value[1])


def test_from_probabilities():
    y_hat = np.array([[0.25, 0.5], [0.0, 1.0]])
    exact = oracle.softmax_ce_options(y_hat, np.array([0, 0]), from_probabilities=True, reduction="sum")
    np.testing.assert_allclose(exact.grad.value.astype(float), [[-2 / 3, 2 / 3], [-1, 1]])
    assert float(exact.loss.value[1]) == pytest.approx(-np.log(np.finfo(float).tiny))
    exact = oracle.sigmoid_bce_options(y_hat, np.array([[1.0, 0.0]] * 2), from_probabilities=True)
    np.testing.assert_allclose(exact.grad.value.astype(float), [[-0.75, 0.5], [-1, 1]])
    assert float(exact.loss.value[1, 1]) == pytest.approx(-np.log(np.finfo(float).tiny))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_spread_bounds_the_effect_of_moved_logits(name, softcap, gamma):
    """Every scaled logit moved by a factor 1 + h or 1 - h."""
    rng, h = np.random.default_rng(4), 2.0**-200
    logits = rng.normal(size=(12, 4)) * np.repeat([[1.0], [8.0], [40.0]], 4, axis=0)
    options = {"logit_scale": 1.5, "softcap": softcap, "focal_gamma": gamma, "label_smoothing": 0.1}
    targets, direction = rng.dirichlet(np.ones(4), 12), rng.normal(size=(12, 4))
    if name == "softmax":
        options["z_loss"] = 0.25
    function = oracle.softmax_ce_options if name == "softmax" else oracle.sigmoid_bce_options
    exact = function(logits, targets, direction, **options)
    for _ in range(3):
        signs = rng.choice([-1, 1], logits.shape)
        moved = function(oracle.lift(logits) * (1 + oracle.lift(h * signs)), targets, direction, **options)
        for part in ("loss", "grad", "hess", "hvp", "target_grad"):
            a, b = getattr(moved, part).value, getattr(exact, part)
            assert (abs(a - b.value) <= b.spread * (h * 1.000001)).all(), part


def test_mpfr_agrees_with_mpmath():
    """Every function of the oracle, each evaluated by both libraries."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6, 5)) * 20
    targets = rng.dirichlet(np.ones(5), size=6)
    columns = in_mpmath(logits.ravel()).reshape(6, 5), in_mpmath(targets.ravel()).reshape(6, 5)
    for name, loss in oracle.LOSSES.items():
        ours, theirs = loss(logits, targets), loss(*columns)
        for field in ("loss", "grad", "hess"):
            pairs = zip(getattr(ours, field).flat, getattr(theirs, field).flat, strict=True)
            assert all(agree(to_mpmath(a), b) for a, b in pairs), (name, field)


@pytest.mark.parametrize("margin", [0.0, 17.0, 40.0, 300.0, 700.0, 745.0])
def test_confident_values_keep_their_bits(margin):
    """The textbook forms against the closed forms that do not cancel."""
    rest = gmpy2.exp(gmpy2.mpfr(-margin))
    row = oracle.softmax_ce(np.array([margin, 0.0]), np.array(0))
    element = oracle.sigmoid_bce(np.array(margin), np.array(1.0))
    for exact in (row, element):
        loss, grad = exact.loss.item(), exact.grad.flat[0]
        assert abs(loss - gmpy2.log1p(rest)) <= loss * gmpy2.exp2(-200)
        assert abs(grad + rest / (1 + rest)) <= abs(grad) * gmpy2.exp2(-200)


def test_limits_follow_the_rules():
    inf, nan = np.inf, np.nan
    rows = np.array([[inf, 0, inf], [-inf, 1, 1], [-inf, -inf, -inf], [nan, 0, 0]])
    p = oracle.softmax(rows).astype(float)
    np.testing.assert_array_equal(p[:2], [[0.5, 0, 0.5], [0, 0.5, 0.5]])
    assert np.isnan(p[2:]).all()
    exact = oracle.sigmoid_bce(np.array([inf, -inf, inf, -inf, nan]), np.array([1, 0, 0, 1, 1]))
    np.testing.assert_array_equal(exact.loss.astype(float), [0, 0, inf, inf, nan])
    np.testing.assert_array_equal(exact.grad.astype(float), [0, 0, 1, -1, nan])


@pytest.mark.parametrize(
    ("got", "exact", "dtype", "error"),
    [
        (1.0, "1", np.float32, 0),
        (1.0 + 2**-23, "1", np.float32, 1),
        (1.0 - 2**-24, "1", np.float32, 0.5),
        (1.0 + 2**-52, "1", np.float64, 1),
        (3.0 + 2**-22, "3", np.float32, 1),
        (0.0, "1e-39", np.float32, 0),
        (0.0, "1e-37", np.float32, 1e-37 / 2**-146),
        (2**-149, "0", np.float32, 1),
        (5e-324, "0", np.float64, 1),
        (0.0, "1e-310", np.float64, 0),
        (np.inf, "1e39", np.float32, 0),
        (np.inf, "1e38", np.float32, np.inf),
        (np.nan, "1", np.float32, np.inf),
        (np.nan, "nan", np.float64, 0),
        (np.inf, "inf", np.float64, 0),
        (-np.inf, "inf", np.float64, np.inf),
    ],
)
def test_ulp_error(got, exact, dtype, error):
    measured = oracle.ulp_error(got, np.array(gmpy2.mpfr(exact), dtype=object), dtype)
    assert measured == pytest.approx(error, rel=0.1)


def test_ulp_error_in_ulps_of_a_term():
    exact = oracle.lift(2.0**-10)
    assert oracle.ulp_error(2.0**-10 + 2**-52, exact, np.float64, gmpy2.mpfr(1)) == 1


def test_ulp_error_beyond_a_slack():
    exact = oracle.lift([1.0, 1.0])
    got = [1.0 + 3 * 2**-52, 1.0 + 2**-52]
    errors = oracle.ulp_error(got, exact, np.float64, slack=oracle.lift([2.0**-51, 2.0**-51]))
    np.testing.assert_array_equal(errors, [1, 0])


def test_ulp_error_of_subnormals():
    exact = np.array([gmpy2.mpfr("1.5") * gmpy2.exp2(-24)], dtype=object)
    assert oracle.ulp_error([0.0], exact, np.float16) == 0
    assert oracle.ulp_error([0.0], exact, np.float16, flushes=False) == 1.5


def test_assert_within_names_the_worst_entry():
    exact = oracle.lift([1.0, 2.0, 4.0])
    with pytest.raises(AssertionError, match=r"3\.00 ulp at \(1,\)"):
        oracle.assert_within(2, [1.0, 2.0 + 3 * 2**-51, 4.0], exact, np.float64)

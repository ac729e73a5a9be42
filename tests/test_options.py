"""Every option with every other one, against the exact formula; refusals; the options as values.

bounds.py says how errors are counted and what is allowed.
"""

import copy
import inspect
import math
import pickle
from typing import NamedTuple

import bits
import gmpy2
import numpy as np
import oracle
import pytest
from bounds import assert_exact, assert_reduced, floor_of
from cases import LAYOUTS, assert_all_same_bits, assert_same_bits, generator, targets_for
from pairwise import all_pairs

import stableloss as sl

NAN, INF = np.nan, np.inf
REDUCTIONS = ("mean", "sum", "batchmean", "none")
DTYPES = [np.dtype(name) for name in ("float32", "float64", "float16")]
try:
    import ml_dtypes
except ImportError:
    pass
else:
    DTYPES.append(np.dtype(ml_dtypes.bfloat16))


# ---- inputs --------------------------------------------------------------------------------------


def at_rows(mask, values, fill):
    """`values` with the rows (or elements) outside the mask filled, in their dtype."""
    mask = mask if mask.ndim == values.ndim else mask[..., None]
    return np.where(mask, values, np.asarray(fill).astype(values.dtype))


def spoilt(rng, logits):
    return rng.choice([NAN, INF, -INF], logits.shape)


def some_rows(rng, shape):
    """A mask that hides the first and keeps the second."""
    mask = rng.random(shape) < 0.8
    mask.flat[:2] = False, True
    return mask


def some_weights(rng, shape):
    """Weights, and where they are not 0."""
    weights = rng.integers(0, 9, shape).astype(np.float32) / 4
    weights.flat[1] = 1.25
    return weights, weights > 0


def raw_logits(rng, kind, rows, k, at_target):
    """float64 logits of shape (*rows, k); `at_target` says where a class has a target."""
    if kind == "ties":
        return rng.integers(-1, 2, (*rows, k)) * 20.5
    logits = rng.normal(scale=3, size=(*rows, k))
    if kind == "confident":
        margins = rng.choice([0.25, -2, 9, 30, -60, 90, 110, -200, 400, 800], rows)
        highest = np.where(at_target, -INF, logits).max(axis=-1, keepdims=True)
        logits = np.where(at_target, highest + margins[..., None], logits)
    if kind == "disabled":
        logits[(rng.random(logits.shape) < 0.3) & ~at_target] = -INF
    return logits


def as_probabilities(logits):
    """Numbers in [0, 1], those at the ends included, that need not add up to 1."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return 0.9 * e / e.sum(axis=-1, keepdims=True)


def class_weights(rng, k, kind):
    if kind is None:
        return None
    weights = rng.uniform(0.25, 4, k)
    if kind == "with-zeros":
        weights[2::3] = 0
    return weights


# ---- every entry of one case ---------------------------------------------------------------------


class Inputs(NamedTuple):
    """A loss and the arguments of a call; the arrays with the classes (outputs) last."""

    loss: sl.SoftmaxCE | sl.SigmoidBCE
    options: dict
    logits: np.ndarray
    targets: np.ndarray
    direction: np.ndarray
    at_call: dict

    def exact(self, function) -> oracle.ExactWithOptions:
        logits = self.logits.astype(np.float32) if self.logits.itemsize == 2 else self.logits
        targets = self.targets.astype(np.float64)
        return function(logits, targets, self.direction, **self.options, **self.at_call)


def lay_out(layout, array):
    if layout == "axis-1":
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))
    return LAYOUTS[layout](array) if layout in LAYOUTS else array


def check_entries(case, inputs: Inputs, exact: oracle.ExactWithOptions):
    """Every entry of the loss; returns its stats."""
    dtype, layout = case["dtype"], case["layout"]
    axis = 1 if layout == "axis-1" else -1
    loss, targets = inputs.loss, inputs.targets
    logits, direction = lay_out(layout, inputs.logits), lay_out(layout, inputs.direction)
    by_row = "C" if layout == "axis-1" else layout
    targets = lay_out(layout if targets.ndim == logits.ndim else by_row, targets)
    at_call = {
        name: lay_out(by_row, given) if isinstance(given, np.ndarray) else given
        for name, given in inputs.at_call.items()
    }
    floor = floor_of(dtype, case["from_probabilities"])

    def buffer():
        return np.full_like(logits, 7) if case["buffers"] else None

    def check(what, got, quantity, given=None):
        assert got.dtype == dtype
        assert got.shape == logits.shape
        assert given is None or got is given
        assert_exact(what, np.moveaxis(got, axis, -1), quantity, dtype, floor)

    out, probabilities = buffer(), buffer()
    value, grad, stats = loss.value_and_grad(
        logits, targets, **at_call, out=out, with_stats=True, probabilities=probabilities
    )
    check_loss(case, value, exact, floor)
    check("gradient", grad, exact.grad.divided(exact.divisor), out)
    check_stats(stats, exact, dtype, floor)
    assert stats.probabilities is probabilities
    if probabilities is not None:
        rows = exact.weight != 0
        p = oracle.Quantity(*(part[rows] for part in exact.probabilities))
        assert_exact("probabilities", np.moveaxis(probabilities, axis, -1)[rows], p, dtype, floor)

    # one evaluation, several ways: the same bits; without stats, another kernel may run
    alone, alone_stats = loss(logits, targets, **at_call, with_stats=True)
    assert_same_bits(alone, value)
    assert_all_same_bits(alone_stats[:4], stats[:4])
    value, grad = loss.value_and_grad(logits, targets, **at_call)
    check_loss(case, value, exact, floor)
    check("gradient without stats", grad, exact.grad.divided(exact.divisor))
    assert_same_bits(loss(logits, targets, **at_call), value)
    in_place = np.array(logits, order="K")
    assert loss.value_and_grad(in_place, targets, **at_call, out=in_place)[1] is in_place
    assert_same_bits(in_place, grad)

    unreduced = {name: given for name, given in at_call.items() if name != "denominator"}
    pair = (buffer(), buffer()) if case["buffers"] else None
    grad, hess = loss.grad_and_hess(logits, targets, **unreduced, out=pair)
    check("gradient with Hessian", grad, exact.grad, pair and pair[0])
    check("Hessian", hess, exact.hess, pair and pair[1])

    out = buffer()
    product = loss.hessian_vector_product(logits, targets, direction, **at_call, out=out)
    check("Hessian-vector product", product, exact.hvp.divided(exact.divisor), out)
    if exact.target_grad is not None:
        out = buffer()
        by_target = loss.target_grad(logits, targets, **at_call, out=out)
        check("target gradient", by_target, exact.target_grad.divided(exact.divisor), out)
    return stats


def check_loss(case, value, exact, floor):
    dtype = case["dtype"]
    if case["reduction"] == "none":
        assert value.dtype == (np.float32 if dtype.itemsize == 2 else dtype)
        assert_exact("loss", value, exact.loss, dtype, floor)
    else:
        assert_reduced(value, exact.loss.summed().divided(exact.divisor), dtype, floor)


def check_stats(stats, exact, dtype, floor):
    """Rows of weight 0 do not count, whatever they hold."""
    counts = exact.weight != 0
    np.testing.assert_array_equal(stats.predicted, exact.predicted)
    for name in ("logsumexp", "entropy"):
        got, quantity = getattr(stats, name), getattr(exact, name)
        rows = oracle.Quantity(*(part[counts] for part in quantity))
        assert_exact(name, got[counts], rows, dtype, floor)
        assert not got[~counts].any()


# ---- SoftmaxCE -----------------------------------------------------------------------------------

SOFTMAX_FACTORS = {
    "dtype": DTYPES,
    "classes": [2, 10, 100, 300, 5000],
    "targets": ["index", "float-index", "one-hot", "soft"],
    "logits": ["ordinary", "confident", "ties", "disabled"],
    "layout": ["C", "f-order", "strided", "read-only", "axis-1"],
    "reduction": list(REDUCTIONS),
    "class_weight": [None, "positive", "with-zeros"],
    "ignore_index": [-100, 1],
    "label_smoothing": [0.0, 0.1],
    "focal_gamma": [0.0, 0.5, 1.0, 2.0, 5.0],
    "z_loss": [0.0, 0.01],
    "logit_scale": [1.0, 0.3],
    "softcap": [None, 30.0],
    "logit_clip": [None, 8.0],
    "from_probabilities": [False, True],
    "sample_weight": [False, True],
    "mask": [False, True],
    "denominator": [None, 7.5],
    "buffers": [False, True],
}
OF_LOGITS_ONLY = {"logit_scale": 1.0, "softcap": None, "logit_clip": None, "z_loss": 0.0}


def excluded(pair):
    """Options that refuse each other."""
    if pair.get("from_probabilities"):
        return any(pair.get(name, neutral) != neutral for name, neutral in OF_LOGITS_ONLY.items())
    return pair.get("denominator") is not None and pair.get("reduction") in ("sum", "none")


def identity(case):
    return "-".join(str(value) for value in case.values())


SOFTMAX_CASES = all_pairs(SOFTMAX_FACTORS, excluded)


def softmax_rows(k, layout):
    """Rows enough to fill the lanes of the narrow kernels; as many as the oracle can afford of wide ones."""
    if layout == "axis-1":
        return {2: (3, 4, 3), 10: (3, 4, 3), 100: (2, 1, 3), 300: (2, 2, 1), 5000: (1, 2, 1)}[k]
    return {2: (37,), 10: (5, 7), 100: (6,), 300: (4,), 5000: (2,)}[k]


def softmax_inputs(case) -> Inputs:
    k, layout, dtype = case["classes"], case["layout"], case["dtype"]
    rng = generator(identity(case))
    rows = softmax_rows(k, layout)
    index = rng.integers(0, k, rows)
    index.flat[1] = 0  # a row that counts, whatever is ignored or masked
    at_target = index[..., None] == np.arange(k)
    raw = raw_logits(rng, case["logits"], rows, k, at_target)
    logits = (as_probabilities(raw) if case["from_probabilities"] else raw).astype(dtype)
    if case["targets"] == "soft":
        # in the dtype of the logits, where the rows do not add up to exactly 1
        t = rng.dirichlet(np.ones(k), rows)
        targets = np.where(np.isneginf(raw), 0, t).astype(dtype)
    else:
        targets = {"index": index, "float-index": index.astype(np.float32), "one-hot": at_target}[
            case["targets"]
        ]
    options = {name: case[name] for name in ("reduction", "label_smoothing", "focal_gamma", *OF_LOGITS_ONLY)}
    options["class_weight"] = class_weights(rng, k, case["class_weight"])
    options["ignore_index"] = case["ignore_index"]
    options["from_probabilities"] = case["from_probabilities"]
    if case["ignore_index"] < 0 and targets.ndim == len(rows):
        targets.flat[0] = case["ignore_index"]
    at_call = {"denominator": case["denominator"]}
    if case["sample_weight"]:
        at_call["sample_weight"], present = some_weights(rng, rows)
        logits = at_rows(present, logits, spoilt(rng, logits))
    if case["mask"]:
        at_call["mask"] = mask = some_rows(rng, rows)
        logits = at_rows(mask, logits, spoilt(rng, logits))
        targets = at_rows(mask, targets, 127)
    direction = rng.normal(size=logits.shape).astype(dtype)
    loss = sl.SoftmaxCE(**options, axis=1 if layout == "axis-1" else -1)
    return Inputs(loss, options, logits, targets, direction, at_call)


@pytest.mark.parametrize("case", SOFTMAX_CASES, ids=identity)
def test_softmax_ce(case):
    inputs = softmax_inputs(case)
    exact = inputs.exact(oracle.softmax_ce_options)
    stats = check_entries(case, inputs, exact)
    assert stats.predicted.dtype == np.int64
    by_index = inputs.targets.ndim == exact.counts.ndim
    right = inputs.targets if by_index else inputs.targets.astype(np.float64).argmax(axis=-1)
    assert stats.correct == ((exact.predicted == right) & (exact.weight != 0)).sum()


# ---- SigmoidBCE ----------------------------------------------------------------------------------

SIGMOID_FACTORS = {
    "dtype": DTYPES,
    "outputs": [1, 10, 300],
    "targets": ["integer", "bool", "soft"],
    "logits": ["ordinary", "confident", "infinite"],
    "layout": ["C", "f-order", "strided", "read-only", "swapped-dimensions"],
    "reduction": list(REDUCTIONS),
    "class_weight": [None, "positive", "with-zeros"],
    "pos_weight": [None, "scalar", "per-output"],
    "label_smoothing": [0.0, 0.1],
    "focal_gamma": [0.0, 0.5, 1.0, 2.0, 5.0],
    "focal_alpha": [None, 0.25],
    "logit_scale": [1.0, 0.3],
    "softcap": [None, 30.0],
    "logit_clip": [None, 8.0],
    "from_probabilities": [False, True],
    "sample_weight": [None, "rows", "elements"],
    "mask": [None, "rows", "elements"],
    "denominator": [None, 7.5],
    "buffers": [False, True],
}


def excluded_for_sigmoid(pair):
    return excluded(pair) or (pair.get("from_probabilities") and pair.get("logits") == "infinite")


SIGMOID_CASES = all_pairs(SIGMOID_FACTORS, excluded_for_sigmoid)


def sigmoid_inputs(case) -> Inputs:
    outputs, dtype = case["outputs"], case["dtype"]
    rng = generator(identity(case))
    shape = {1: (41, 1), 10: (3, 4, 10), 300: (2, 300)}[outputs]
    raw = rng.normal(scale=3, size=shape)
    if case["logits"] == "confident":
        raw = rng.choice([-1, 1], shape) * rng.choice([1, 9, 30, 60, 90, 110, 400, 800], shape)
    elif case["logits"] == "infinite":
        raw = rng.choice([0.5, INF, -INF, 5], shape)
    logits = ((1 + np.tanh(raw / 2)) / 2 if case["from_probabilities"] else raw).astype(dtype)
    targets = rng.integers(0, 2, shape)
    if case["targets"] == "bool":
        targets = targets.astype(bool)
    elif case["targets"] == "soft":
        targets = rng.choice([0, 1e-6, 0.25, 0.75, 0.9990234375, 1], shape).astype(dtype)
    names = (
        "reduction",
        "label_smoothing",
        "focal_gamma",
        "focal_alpha",
        "logit_scale",
        "softcap",
        "logit_clip",
    )
    options = {name: case[name] for name in (*names, "from_probabilities")}
    options["class_weight"] = class_weights(rng, outputs, case["class_weight"])
    positive = rng.uniform(0.25, 4, outputs)
    options["pos_weight"] = {None: None, "scalar": 3.5, "per-output": positive}[case["pos_weight"]]
    at_call = {"denominator": case["denominator"]}
    parts = {"rows": shape[:-1], "elements": shape}
    if case["sample_weight"]:
        at_call["sample_weight"], present = some_weights(rng, parts[case["sample_weight"]])
        logits = at_rows(present, logits, spoilt(rng, logits))
    if case["mask"]:
        at_call["mask"] = mask = some_rows(rng, parts[case["mask"]])
        logits = at_rows(mask, logits, spoilt(rng, logits))
        targets = at_rows(mask, targets, 127)
    direction = rng.normal(size=shape).astype(dtype)
    return Inputs(sl.SigmoidBCE(**options), options, logits, targets, direction, at_call)


@pytest.mark.parametrize("case", SIGMOID_CASES, ids=identity)
def test_sigmoid_bce(case):
    inputs = sigmoid_inputs(case)
    exact = inputs.exact(oracle.sigmoid_bce_options)
    stats = check_entries(case, inputs, exact)
    assert stats.predicted.dtype == bool
    right = exact.predicted == (inputs.targets.astype(np.float64) > 0.5)
    assert stats.correct == (right & (exact.weight != 0)).sum()


# ---- the losses without options of their own -----------------------------------------------------

PLAIN_FACTORS = {
    "dtype": DTYPES,
    "stem": list(oracle.ALONG),
    "classes": [3, 200],
    "targets": ["hard", "soft"],
    "layout": ["C", "f-order", "strided"],
    "reduction": list(REDUCTIONS),
    "logit_clip": [None, 2.0],
    "sample_weight": [False, True],
    "mask": [False, True],
    "denominator": [None, 7.5],
}


@pytest.mark.parametrize("case", all_pairs(PLAIN_FACTORS, excluded), ids=identity)
def test_plain_loss(case):
    """What is given at the call, and the Hessian-vector product."""
    dtype, k, stem = case["dtype"], case["classes"], case["stem"]
    rng = generator(identity(case))
    rows = (37,) if k == 3 else (2, 3)
    logits = rng.normal(scale=4, size=(*rows, k)).astype(dtype)
    targets = rng.dirichlet(np.ones(k), rows).astype(dtype)
    if case["targets"] == "hard":
        targets = rng.integers(0, k, rows) if bits.by_rows(stem) else rng.integers(0, 2, (*rows, k))
    direction = rng.normal(size=logits.shape).astype(dtype)
    at_call, weight = {"denominator": case["denominator"]}, np.ones(rows, np.float32)
    if case["sample_weight"]:
        at_call["sample_weight"], present = some_weights(rng, rows)
        weight = at_call["sample_weight"]
        logits = at_rows(present, logits, spoilt(rng, logits))
    if case["mask"]:
        at_call["mask"] = mask = some_rows(rng, rows)
        weight = np.where(mask, weight, 0)
        logits, targets = at_rows(mask, logits, spoilt(rng, logits)), at_rows(mask, targets, 127)

    shown = at_rows(weight > 0, logits, 0.0).astype(np.float64)
    clip = case["logit_clip"] or INF
    shown, t = np.clip(shown, -clip, clip), at_rows(weight > 0, targets, 0)
    t = t.astype(np.float64) if t.ndim == logits.ndim else t
    exact = oracle.LOSSES[stem](shown, t).scaled(weight)
    along, along_term = oracle.ALONG[stem](shown, t, direction)
    counts = np.ones(rows, bool) if not case["mask"] else at_call["mask"]
    total = weight.sum() if case["sample_weight"] else counts.sum()
    mean = total if bits.by_rows(stem) else counts.sum() * k
    divisor = {"mean": mean, "batchmean": counts.sum(), "sum": 1, "none": 1}[case["reduction"]]
    divisor = gmpy2.mpfr(float(case["denominator"] or divisor))

    loss = type(getattr(sl, stem))(reduction=case["reduction"], logit_clip=case["logit_clip"])
    given = [lay_out(case["layout"], array) for array in (logits, targets, direction)]
    value, grad = loss.value_and_grad(*given[:2], **at_call)
    zero = np.zeros(grad.shape)
    quantities = {
        "gradient": (grad, oracle.Quantity(exact.grad, exact.grad_term, zero)),
        "Hessian-vector product": (
            loss.hessian_vector_product(*given, **at_call),
            oracle.Quantity(along, along_term, zero).scaled(weight[..., None]),
        ),
    }
    for what, (got, quantity) in quantities.items():
        assert got.dtype == dtype
        assert_exact(what, got, quantity.divided(divisor), dtype)
    per_loss = oracle.Quantity(exact.loss, exact.loss_term, np.zeros(exact.loss.shape))
    if case["reduction"] == "none":
        assert_exact("loss", value, per_loss, dtype)
    else:
        assert_reduced(value, per_loss.summed().divided(divisor), dtype)
    assert_same_bits(loss(*given[:2], **at_call), value)
    unreduced = {name: array for name, array in at_call.items() if name != "denominator"}
    got_grad, got_hess = loss.grad_and_hess(*given[:2], **unreduced)
    assert_exact("gradient", got_grad, oracle.Quantity(exact.grad, exact.grad_term, zero), dtype)
    assert_exact("Hessian", got_hess, oracle.Quantity(exact.hess, exact.hess_term, zero), dtype)


# ---- extremes ------------------------------------------------------------------------------------

MARGINS = [-800.0, -300, -90, -20, -3, -0.01, 0, 0.01, 1, 5, 17, 37, 90, 105, 300, 700, 745, 800]
GAMMAS = [0.25, 0.5, 1.0, 1.5, 2.0, 5.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("k", [2, 3, 40])
def test_focal_of_confident_rows(dtype, gamma, k):
    """From a prediction that is surely right to one that is surely wrong: exact, so finite."""
    logits = np.zeros((len(MARGINS), k)) - np.arange(k) / 8
    logits[:, 0] += MARGINS
    case = {"dtype": dtype, "layout": "C", "reduction": "none", "from_probabilities": False, "buffers": False}
    options = {"focal_gamma": gamma, "reduction": "none"}
    targets = np.zeros(len(MARGINS), np.int64)
    direction = generator(gamma, k).normal(size=logits.shape).astype(dtype)
    inputs = Inputs(sl.SoftmaxCE(**options), options, logits.astype(dtype), targets, direction, {})
    exact = inputs.exact(oracle.softmax_ce_options)
    assert all(gmpy2.is_finite(number) for part in (exact.loss, exact.hess) for number in part.value.flat)
    check_entries(case, inputs, exact)


@pytest.mark.parametrize("k", [10, 200])
@pytest.mark.parametrize(
    "options",
    [{}, {"focal_gamma": 2.0}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}, {"from_probabilities": True}],
    ids=str,
)
def test_float32_rows_beside_extreme_ones(options, k):
    """A factor that float32 has not all digits of changes how its own row is multiplied, and no other."""
    rng = generator("extreme neighbours", k)
    logits = (rng.normal(size=(33, k)) * 3).astype(np.float32)
    logits[::7, 0] += 60
    if "from_probabilities" in options:
        logits = sl.softmax(logits)
    targets, weight = rng.integers(0, k, 33), rng.uniform(1, 2, 33)
    targets[::7] = 0
    weight[5:9] = 1e-30
    loss = sl.SoftmaxCE(reduction="sum", **options)
    grad = loss.value_and_grad(logits, targets, sample_weight=weight)[1]
    for i in range(33):
        row = slice(i, i + 1)
        alone = loss.value_and_grad(logits[row], targets[row], sample_weight=weight[row])[1]
        assert_same_bits(alone, grad[row])


def focal_of_margin(margin, gamma):
    """Loss, and minus the gradient of the target, by float64 arithmetic without a difference that cancels."""
    odds, right = np.exp(-abs(margin)), margin > 0
    p, rest = np.where(right, 1, odds) / (1 + odds), np.where(right, odds, 1) / (1 + odds)
    entropy = np.where(right, 0, -margin) + np.log1p(odds)
    power = rest**gamma
    return power * entropy, rest * (power + gamma * p * rest ** (gamma - 1) * entropy)


def largest_error(got, exact):
    """In ulps of float32, among normal numbers."""
    normal = exact >= np.finfo(np.float32).tiny
    return (abs(got - exact)[normal] / np.spacing(np.float32(exact[normal]))).max()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 2.5])
def test_float32_focal_of_two_classes(gamma):
    """Every 4099th logit below 128. Up to an exponent of 2 the exponentials are float32's own."""
    size = np.arange(0, 0x43000000, 4099, dtype=np.uint32).view(np.float32)
    logits = np.stack([np.concatenate([size, -size]), np.full(2 * size.size, np.float32(-0.17))], axis=1)
    loss = sl.SoftmaxCE(focal_gamma=gamma, reduction="none")
    for target in (0, 1):
        values, grad = loss.value_and_grad(logits, np.full(len(logits), target))
        margin = np.float64(logits[:, target]) - logits[:, 1 - target]
        exact_loss, exact_grad = focal_of_margin(margin, gamma)
        for got, exact in (
            (values, exact_loss),
            (-grad[:, target], exact_grad),
            (grad[:, 1 - target], exact_grad),
        ):
            assert largest_error(got, exact) <= 4 + (not bits.fused())


GAMMAS_OF_ELEMENTS = [0.5, 1.0, 2.0, 7.0, 8.0, (3.0, 0.5)]


@pytest.mark.parametrize(
    "options", [{"logit_scale": 1.7}, *({"focal_gamma": gamma} for gamma in GAMMAS_OF_ELEMENTS)], ids=str
)
def test_float32_options_of_elements(options):
    """Every 4099th logit below 128."""
    size = np.arange(0, 0x43000000, 4099, dtype=np.uint32).view(np.float32)
    logits = np.concatenate([size, -size])
    loss = sl.SigmoidBCE(reduction="none", **options)
    scale, gamma = options.get("logit_scale", 1.0), options.get("focal_gamma", 0.0)
    for target in (0.0, 1.0):
        values, grad = loss.value_and_grad(logits, np.full_like(logits, target))
        side = 2 * target - 1
        exponent = gamma if np.isscalar(gamma) else gamma[0 if target else 1]
        exact_loss, exact_grad = focal_of_margin(side * scale * np.float64(logits), exponent)
        for got, exact in ((values, exact_loss), (-side * grad, scale * exact_grad)):
            assert largest_error(got, exact) <= 1


@pytest.mark.parametrize("cap", [0.75, 30.0, 1e5])
def test_float32_capped_logits_of_two_classes(cap):
    """Every 4099th logit there is: below the cap they are capped in one way, above it in another, and what is
    beside them does not matter."""
    size = np.arange(0, 0x7F800000, 4099, dtype=np.uint32).view(np.float32)
    logits = np.stack([np.concatenate([size, -size]), np.zeros(2 * size.size, np.float32)], axis=1)
    loss = sl.SoftmaxCE(softcap=cap, reduction="none")
    values, grad = loss.value_and_grad(logits, np.zeros(len(logits), np.int64))
    t = np.float64(logits[:, 0]) / cap
    margin, decay = cap * np.tanh(t), np.exp(-2 * abs(t))
    odds = np.exp(-abs(margin))
    exact_loss = np.where(margin > 0, 0, -margin) + np.log1p(odds)
    exact_grad = np.where(margin > 0, odds, 1) / (1 + odds) * 4 * decay / (1 + decay) ** 2
    for got, exact in ((values, exact_loss), (-grad[:, 0], exact_grad)):
        assert largest_error(got, exact) <= 1
    order = generator("capped", cap).permutation(len(logits))
    shuffled_values, shuffled_grad = loss.value_and_grad(logits[order], np.zeros(len(logits), np.int64))
    assert_same_bits(values[order], shuffled_values)
    assert_same_bits(grad[order], shuffled_grad)


@pytest.mark.parametrize("k", [2, 33, 176, 177, 2049])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_float32_focal_of_equal_logits(gamma, k):
    """All exponentials but the target's have the same error, in columns, in rows and in pieces of them."""
    logits = np.full((34, k), np.float32(-0.1857))
    logits[:, 0] = np.linspace(-3, 12, 34)
    loss = sl.SoftmaxCE(focal_gamma=gamma, reduction="none")
    values, grad = loss.value_and_grad(logits, np.zeros(34, np.int64))
    margin = np.float64(logits[:, 0]) - logits[:, 1] - np.log(k - 1)
    exact_loss, exact_grad = focal_of_margin(margin, gamma)
    for got, exact in ((values, exact_loss), (-grad[:, 0], exact_grad), (grad[:, 1], exact_grad / (k - 1))):
        assert (abs(got - exact) <= (4 + (not bits.fused())) * np.spacing(np.float32(exact))).all()
    assert_same_bits(loss.value_and_grad(logits[5], 0)[1], grad[5])
    assert_same_bits(loss.value_and_grad(np.asfortranarray(logits), np.zeros(34, np.int64))[1], grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target", [0.0, 1.0, 0.25])
def test_focal_of_confident_elements(dtype, gamma, target):
    case = {"dtype": dtype, "layout": "C", "reduction": "none", "from_probabilities": False, "buffers": False}
    options = {"focal_gamma": gamma, "focal_alpha": 0.25, "reduction": "none"}
    logits = np.array(MARGINS)[:, None].astype(dtype)
    inputs = Inputs(
        sl.SigmoidBCE(**options), options, logits, np.full(logits.shape, target), np.ones_like(logits), {}
    )
    check_entries(case, inputs, inputs.exact(oracle.sigmoid_bce_options))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_at_probability_one_and_zero(gamma):
    logits = np.array([[0.0, -INF, -INF], [INF, 0.0, 0.0], [-INF, 0.0, -INF]])
    focal = sl.SoftmaxCE(focal_gamma=gamma, reduction="none")
    loss, grad = focal.value_and_grad(logits, [0, 0, 0])
    np.testing.assert_array_equal(loss, [0, 0, INF])
    np.testing.assert_array_equal(grad, [[0, 0, 0], [0, 0, 0], [-1, 1, 0]])
    np.testing.assert_array_equal(focal.grad_and_hess(logits, [0, 0, 0])[1], np.zeros((3, 3)))
    elements = sl.SigmoidBCE(focal_gamma=gamma, reduction="none")
    loss, grad = elements.value_and_grad([INF, -INF, INF, -INF], [1, 0, 0, 1])
    np.testing.assert_array_equal(loss, [0, 0, INF, INF])
    np.testing.assert_array_equal(grad, [0, 0, 1, -1])
    hess = elements.grad_and_hess([INF, -INF, INF, -INF], [1, 0, 0, 1])[1]
    np.testing.assert_array_equal(hess, [0, 0, 0, 0])


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize == 2], ids=str)
def test_many_classes_of_a_short_dtype(dtype):
    """float16 itself ends at 65,504."""
    logits = np.full((2, 70_000), 3.0).astype(dtype)
    loss, grad = sl.SoftmaxCE(reduction="none").value_and_grad(logits, [0, 69_999])
    np.testing.assert_allclose(loss, np.log(70_000), rtol=1e-7)
    assert grad.dtype == dtype
    assert grad[0, 0] == grad[1, -1] == -1
    np.testing.assert_array_equal(grad[0, 1:], np.full(69_999, 1 / 70_000).astype(dtype))


def test_disabled_classes_get_no_smoothing_mass():
    logits = np.array([[0.0, -INF, 1.0, -INF]])
    smooth = sl.SoftmaxCE(label_smoothing=0.25)
    loss, grad = smooth.value_and_grad(logits, [2])
    kept_loss, kept_grad = smooth.value_and_grad(logits[:, [0, 2]], [1])
    assert loss == pytest.approx(kept_loss, rel=1e-15)
    np.testing.assert_allclose(grad[:, [0, 2]], kept_grad, rtol=1e-15)
    np.testing.assert_array_equal(grad[:, [1, 3]], [[0, 0]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_logits_under_a_cap_or_a_clip(dtype):
    """They are finite numbers then: classes like any other."""
    logits, targets = np.array([[INF, -INF, 0.0]], dtype), [2]
    for options, finite in [({"softcap": 2.0}, [2.0, -2.0, 0.0]), ({"logit_clip": 3.0}, [3.0, -3.0, 0.0])]:
        loss = sl.SoftmaxCE(label_smoothing=0.1, **options)
        plain = sl.SoftmaxCE(label_smoothing=0.1)
        limit = plain(np.array([finite], dtype), targets)
        assert loss(logits, targets) == pytest.approx(limit, rel=1e-15 if dtype == np.float64 else 5e-7)
    assert sl.SoftmaxCE(softcap=2.0).value_and_grad(logits, targets)[1][0, :2].tolist() == [0, 0]


@pytest.mark.parametrize("cls", [sl.SoftmaxCE, sl.SigmoidBCE])
def test_nan_stays_in_its_row(cls):
    options = {"label_smoothing": 0.1, "focal_gamma": 2.0, "logit_scale": 0.5, "softcap": 30.0}
    loss = cls(reduction="none", **options)
    rng = generator(cls.__name__, "nan")
    logits, targets = rng.normal(size=(40, 5)), rng.dirichlet(np.ones(5), 40)
    clean = [*loss.value_and_grad(logits, targets), loss.grad_and_hess(logits, targets)[1]]
    logits[17, 3] = NAN
    others = np.arange(40) != 17
    got = [*loss.value_and_grad(logits, targets), loss.grad_and_hess(logits, targets)[1]]
    assert_all_same_bits(got, clean, part=others, of=others)
    assert all(np.isnan(array[17]).any() for array in got)


@pytest.mark.parametrize("k", [6, 200])
@pytest.mark.parametrize(
    "options", [{}, {"focal_gamma": 2.0}, {"logit_scale": 0.5}, {"softcap": 30.0}], ids=str
)
def test_a_class_weight_of_zero_takes_nan_out(k, options):
    """Where nothing but the target's class gives a row its loss."""
    logits, targets, _ = batch(k=k)
    targets[17] = 1
    weight = np.arange(k) != 1.0
    loss = sl.SoftmaxCE(class_weight=weight, **options)

    def results():
        yield from loss.value_and_grad(logits, targets)
        yield from loss.grad_and_hess(logits, targets)
        yield loss.hessian_vector_product(logits, targets, np.ones_like(logits))
        yield from loss.value_and_grad(logits, targets, with_stats=True)[:2]

    clean = list(results())
    logits[17, 3] = NAN
    assert_all_same_bits(results(), clean)


@pytest.mark.parametrize("denominator", [1e-44, 1e-39])
@pytest.mark.parametrize(
    "options", [{"pos_weight": 2.0}, {"focal_gamma": 1.0}, {"logit_scale": 1.0, "focal_alpha": 0.5}]
)
def test_a_denominator_beyond_float32(denominator, options):
    logits = np.linspace(30, 40, 50, dtype=np.float32)
    loss = sl.SigmoidBCE(**options)
    whole = loss.value_and_grad(logits.astype(np.float64), np.ones(50), denominator=1)[1]
    grad = loss.value_and_grad(logits, np.ones(50), denominator=denominator)[1]
    np.testing.assert_allclose(grad, whole / denominator, rtol=1e-6)


# ---- what the options mean together --------------------------------------------------------------


def batch(n=40, k=6, dtype=np.float64):
    rng = generator("batch", n, k)
    return rng.normal(scale=3, size=(n, k)).astype(dtype), rng.integers(0, k, n), rng


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [3, 128, 129, 5000])
@pytest.mark.parametrize("options", [{}, {"logit_scale": 3.0}, {"logit_clip": 4.0}], ids=str)
def test_smoothed_class_indices_are_smoothed_rows_of_one(k, dtype, options):
    """Class indices have their own way: also where classes are disabled, in rows of one piece and several."""
    rng = np.random.default_rng(k)
    logits = rng.standard_normal((40, k)).astype(dtype) * 3
    logits[1::4, : k // 2] = -INF
    logits[2::9, -1] = INF
    logits[3::9, 1] = NAN
    logits[4::9] = -INF
    targets = rng.integers(k, size=40)
    one_hot = (targets[:, None] == np.arange(k)).astype(dtype)
    loss = sl.SoftmaxCE(label_smoothing=0.2, reduction="none", **options)
    expected, expected_grad = loss.value_and_grad(logits, one_hot)
    tolerance = 20 * np.finfo(dtype).eps
    slack = options.get("logit_scale", 1) * tolerance
    for rows in (slice(None), slice(1, 4)):
        value, grad = loss.value_and_grad(logits[rows], targets[rows])
        np.testing.assert_allclose(value, expected[rows], rtol=tolerance)
        np.testing.assert_allclose(grad, expected_grad[rows], rtol=tolerance, atol=slack)
        in_place = logits[rows].copy()
        loss.value_and_grad(in_place, targets[rows], out=in_place)
        np.testing.assert_array_equal(in_place, grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_are_masked_rows(reduction):
    logits, targets, rng = batch()
    mask = rng.random(40) < 0.7
    loss = sl.SoftmaxCE(reduction=reduction, class_weight=rng.uniform(1, 2, 6), z_loss=0.01)
    masked = loss.value_and_grad(logits, targets, mask=mask)
    ignored = loss.value_and_grad(logits, np.where(mask, targets, -100))
    assert_all_same_bits(masked, ignored)


@pytest.mark.parametrize("stem", bits.LOSSES)
def test_nothing_counts(stem):
    logits, targets, _ = batch()
    targets = targets_for(stem, targets, 6)
    for reduction in REDUCTIONS:
        loss = type(getattr(sl, stem))(reduction=reduction)
        value, grad = loss.value_and_grad(logits, targets, mask=np.zeros(40, bool))
        assert not np.any(value)
        assert not grad.any()
    assert sl.softmax_ce(logits, np.full(40, -100)) == 0.0


@pytest.mark.parametrize("stem", bits.LOSSES)
def test_denominator_makes_accumulation_exact(stem):
    """The gradients of two unequal parts are those of the whole batch, bit for bit."""
    logits, targets, _ = batch()
    targets = targets_for(stem, targets, 6)
    loss = getattr(sl, stem)
    n = 40 if bits.by_rows(stem) else logits.size
    value, grad = loss.value_and_grad(logits, targets)
    parts = [loss.value_and_grad(logits[s], targets[s], denominator=n) for s in (slice(0, 7), slice(7, 40))]
    assert_same_bits(np.concatenate([part[1] for part in parts]), grad)
    assert parts[0][0] + parts[1][0] == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("cls", [sl.SoftmaxCE, sl.SoftmaxMSE])
@pytest.mark.parametrize("entry", ["value_and_grad", "grad_and_hess"])
def test_any_axis(cls, entry):
    rng = generator("axis")
    logits, targets = rng.normal(size=(4, 3, 5, 2)), rng.integers(0, 2, (4, 3, 5, 2))
    for axis in range(-4, 4):
        last = np.moveaxis(logits, axis, -1)
        index = np.take(targets, 0, axis)
        expected = getattr(cls(reduction="none"), entry)(np.ascontiguousarray(last), index)
        got = getattr(cls(reduction="none", axis=axis), entry)(logits, index)
        assert got[-1].shape == logits.shape
        moved = [np.moveaxis(array, axis, -1) if array.ndim == 4 else array for array in got]
        assert_all_same_bits(moved, expected)


def test_one_row():
    """Without a dimension for the rows."""
    logits, targets, _ = batch()
    options = {
        "class_weight": np.arange(1.0, 7.0),
        "focal_gamma": 2.0,
        "label_smoothing": 0.1,
        "softcap": 9.0,
    }
    loss = sl.SoftmaxCE(**options, reduction="sum")
    alone = loss.value_and_grad(logits[3], targets[3], sample_weight=2.0, mask=True)
    many = loss.value_and_grad(logits[3:4], targets[3:4], sample_weight=[2.0], mask=[True])
    assert alone[0] == many[0]
    assert_same_bits(alone[1], many[1][0])


SEVERAL = {
    sl.SoftmaxCE: [
        {"label_smoothing": 0.1, "z_loss": 0.01},
        {"focal_gamma": 2.0, "logit_scale": 0.5},
        {"softcap": 9.0, "logit_clip": 5.0},
        {"z_loss": 0.01},
        {"z_loss": 0.01, "softcap": 9.0, "logit_scale": 2.0},
        {"class_weight": np.linspace(0.5, 2, 10)},
    ],
    sl.SigmoidBCE: [
        {"label_smoothing": 0.1, "pos_weight": 3.0},
        {"focal_gamma": 2.0, "focal_alpha": 0.25, "logit_scale": 0.5},
        {"softcap": 9.0, "logit_clip": 5.0},
        {"class_weight": np.linspace(0.5, 2, 10)},
    ],
}
SEVERAL_CASES = [
    pytest.param(cls, options, id="-".join([cls.__name__, *options]))
    for cls, cases in SEVERAL.items()
    for options in cases
]


def all_results(loss, logits, targets, **at_call):
    """From every entry, each row's own."""
    return [
        *loss.value_and_grad(logits, targets, **at_call),
        *loss.grad_and_hess(logits, targets, **at_call),
        loss.hessian_vector_product(logits, targets, abs(logits), **at_call),
        *loss(logits, targets, **at_call, with_stats=True)[1][2:4],
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cls", "options"), SEVERAL_CASES)
def test_a_row_does_not_depend_on_the_others(cls, options, dtype):
    """The same bits alone, anywhere in a batch, in any layout and for any number of threads."""
    loss = cls(**options, reduction="none")
    logits, targets, _ = batch(n=70, k=10)
    logits, targets = logits.astype(dtype), targets_for(cls._stem, targets, 10)
    weight, mask = np.arange(70.0) % 5, np.arange(70) % 7 > 0
    whole = all_results(loss, logits, targets, sample_weight=weight, mask=mask)
    for rows in (slice(0, 1), slice(33, 34), slice(69, 70), slice(3, 40)):
        alone = {"sample_weight": weight[rows], "mask": mask[rows]}
        assert_all_same_bits(all_results(loss, logits[rows], targets[rows], **alone), whole, of=rows)
    for layout in LAYOUTS.values():
        moved = {"sample_weight": layout(weight), "mask": layout(mask)}
        assert_all_same_bits(all_results(loss, layout(logits), layout(targets), **moved), whole)
    many = [np.concatenate([array] * 400) for array in (logits, targets, weight, mask)]
    results = {}
    for threads in (1, 4):
        with sl.num_threads(threads):
            at_call = {"sample_weight": many[2], "mask": many[3]}
            results[threads] = all_results(loss, *many[:2], **at_call)
            mean = cls(**options)
            results[threads].extend(mean.value_and_grad(*many[:2], **at_call))
    assert_all_same_bits(*results.values())
    assert_all_same_bits(results[4][: len(whole)], whole, part=slice(-70, None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cls", "options"), SEVERAL_CASES)
def test_in_place(cls, options, dtype):
    loss = cls(**options)
    logits, _, rng = batch(k=10)
    logits = logits.astype(dtype)
    soft = rng.dirichlet(np.ones(10), 40).astype(dtype)
    v = rng.normal(size=logits.shape).astype(dtype)
    product = loss.hessian_vector_product(logits, soft, v)
    by_target = loss.target_grad(logits, soft)
    for overwritten in range(3):
        given = [logits.copy(), soft.copy(), v.copy()]
        out = given[overwritten]
        assert loss.hessian_vector_product(*given, out=out) is out
        assert_same_bits(out, product)
    for overwritten in range(2):
        given = [logits.copy(), soft.copy()]
        out = given[overwritten]
        assert loss.target_grad(*given, out=out) is out
        assert_same_bits(out, by_target)


@pytest.mark.parametrize(("cls", "options"), SEVERAL_CASES)
def test_empty_batch(cls, options):
    for shape in [(0, 10), (3, 0, 10)]:
        logits = np.zeros(shape)
        targets = targets_for(cls._stem, np.zeros(shape[:-1], int), 10)
        for reduction in REDUCTIONS[:3]:
            loss = cls(**options, reduction=reduction)
            value, grad, stats = loss.value_and_grad(logits, targets, with_stats=True)
            assert value == 0.0
            assert type(value) is float
            assert grad.shape == shape
            assert stats.correct == 0
            assert stats.predicted.shape == targets.shape


@pytest.mark.parametrize("loss", [sl.sigmoid_bce, sl.sigmoid_mse], ids=lambda loss: loss._stem)
def test_weights_of_no_rows(loss):
    for shape in [(0, 10), (3, 0), (0, 2, 3)]:
        value, grad = loss.value_and_grad(np.zeros(shape), np.zeros(shape), sample_weight=np.zeros(shape[0]))
        assert value == 0
        assert grad.shape == shape


def test_ignore_index_of_any_integer():
    """One that is a class, one that the dtype of the targets barely holds, and none."""
    logits, targets, _ = batch()
    for ignore, dtype in [(2, np.int64), (255, np.uint8), (-128, np.int8), (2**40, np.int64)]:
        hidden = np.where(targets == 2, ignore, targets).astype(dtype)
        loss, grad = sl.SoftmaxCE(ignore_index=ignore).value_and_grad(logits, hidden)
        expected = sl.softmax_ce.value_and_grad(logits, targets, mask=targets != 2)
        assert loss == expected[0]
        np.testing.assert_array_equal(grad, expected[1])
    targets[5] = -100
    with pytest.raises(ValueError, match="-100"):
        sl.SoftmaxCE(ignore_index=None)(logits, targets)


@pytest.mark.parametrize(
    "mask", [True, np.bool_(True), np.array(True), 1, np.uint8(1), np.array(1.0)], ids=repr
)
def test_a_mask_of_one_row(mask):
    """Of logits without another dimension: beside labels that do not count too, and of 0 or 1."""
    z, y = np.linspace(-2, 2, 4), np.array([0, 1, 1, 0])
    for ignored in (0, 255, (0, 255)):
        loss = sl.SigmoidBCE(ignore_index=ignored)
        expected = loss.value_and_grad(z, y)
        got = loss.value_and_grad(z, y, mask=mask)
        assert got[0] == expected[0]
        assert_same_bits(got[1], expected[1])
        assert loss.divisor((4,), y, mask=mask) == loss.divisor((4,), y)
        assert not loss.value_and_grad(z, y, mask=np.logical_not(mask))[1].any()
    row = sl.SoftmaxCE(ignore_index=-(2**63))
    assert row(z, 1, mask=mask) == row(z, 1)
    assert sl.softmax_ce(z, np.array(-100), mask=mask) == 0.0


@pytest.mark.parametrize("target_dtype", ["int8", "uint8", "int16", "uint32", "int64", "uint64", "float32"])
def test_class_indices_of_any_dtype(target_dtype):
    logits, targets, _ = batch()
    loss = sl.SoftmaxCE(label_smoothing=0.1, ignore_index=2)
    expected = loss.value_and_grad(logits, targets)
    got = loss.value_and_grad(logits, targets.astype(target_dtype))
    assert got[0] == expected[0]
    assert_same_bits(got[1], expected[1])


def test_probabilities_give_the_gradient_of_the_logits():
    y_hat = np.array([[0.25, 0.5, 0.25], [0.0, 1.0, 0.0]])
    loss, grad = sl.SoftmaxCE(from_probabilities=True, reduction="none").value_and_grad(y_hat, [0, 0])
    np.testing.assert_allclose(loss, [-np.log(0.25), -np.log(np.finfo(float).tiny)])
    np.testing.assert_allclose(grad, [[-0.75, 0.5, 0.25], [-1, 1, 0]], atol=1e-300)
    loss, grad = sl.SigmoidBCE(from_probabilities=True, reduction="none").value_and_grad(y_hat, 1 - y_hat)
    np.testing.assert_allclose(grad, 2 * y_hat - 1)
    assert np.isfinite(loss).all()


@pytest.mark.parametrize("k", [2, 33, 64, 65, 96, 97, 100, 256, 257, 1000, 2049])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_of_any_number_of_classes(dtype, k):
    """As columns, rows together and rows by themselves: within the bound, and the same bits in any layout,
    for a row alone and beside rows that do not count."""
    rng = generator("probabilities", k)
    raw = np.exp(rng.normal(scale=6, size=(5, k)))
    raw[1, 0], raw[2] = 1e30, rng.random(k)
    p = (raw / raw.sum(axis=1, keepdims=True)).astype(dtype)
    p[3, rng.integers(0, k, k // 2)] = 0
    targets = np.array([k // 2, 0, k - 1, 1, 0])
    loss = sl.SoftmaxCE(from_probabilities=True, reduction="none")
    values, grad = loss.value_and_grad(p, targets)
    exact = oracle.softmax_ce_options(p, targets, from_probabilities=True, reduction="none")
    oracle.assert_within(4 + (not bits.fused()), values, exact.loss.value, dtype, what="loss")
    oracle.assert_within(4 + (not bits.fused()), grad, exact.grad.value, dtype, exact.grad.term, "gradient")
    for layout in LAYOUTS.values():
        assert_all_same_bits(loss.value_and_grad(layout(p), targets), (values, grad))
    for i in range(len(p)):
        alone = loss.value_and_grad(p[i : i + 1], targets[i : i + 1])
        assert_all_same_bits(alone, (values[i : i + 1], grad[i : i + 1]))
    mask = np.arange(40) % 3 > 0
    many = np.where(mask[:, None], np.tile(p, (8, 1)), np.nan)
    got = loss.value_and_grad(many, np.tile(targets, 8), mask=mask, out=many)
    assert_all_same_bits([r[mask] for r in got], [np.tile(values, 8)[mask], np.tile(grad, (8, 1))[mask]])
    assert not got[1][~mask].any()


@pytest.mark.parametrize("stem", bits.LOSSES)
def test_hessian_vector_product_solves_for_newton(stem):
    """The product is linear and its matrix symmetric."""
    logits, targets, rng = batch(n=5)
    targets = targets_for(stem, targets, 6)
    loss = getattr(sl, stem)
    u, v = rng.normal(size=(2, 5, 6))
    of_u, of_v = (loss.hessian_vector_product(logits, targets, w) for w in (u, v))
    assert (v * of_u).sum() == pytest.approx((u * of_v).sum(), rel=1e-12)
    both = loss.hessian_vector_product(logits, targets, 2 * u - v)
    np.testing.assert_allclose(both, 2 * of_u - of_v, rtol=1e-9, atol=1e-15)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 200, 5000])
@pytest.mark.parametrize(
    "loss",
    [
        *(getattr(sl, stem) for stem in bits.LOSSES),
        sl.SoftmaxCE(focal_gamma=2, z_loss=0.1),
        sl.SoftmaxCE(softcap=30, label_smoothing=0.1),
    ],
    ids=str,
)
def test_hessian_vector_product_is_linear_up_to_the_largest_number(loss, k):
    rng = generator("linear", k)
    logits, v = rng.normal(size=(40, k)), rng.uniform(-1, 1, (40, k))
    targets = targets_for(loss._stem, rng.integers(k, size=40), k)
    product = loss.hessian_vector_product(logits, targets, v)
    for power in (590, 620, 800, 1023):
        scaled = loss.hessian_vector_product(logits, targets, v * 2.0**power)
        assert_same_bits(scaled, product * 2.0**power)
    # one large row leaves the others as they are
    v[7] *= 2.0**1000
    mixed = loss.hessian_vector_product(logits, targets, v)
    assert_same_bits(mixed[7], product[7] * 2.0**1000)
    assert_same_bits(np.delete(mixed, 7, 0), np.delete(product, 7, 0))


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_focal_exponent_of_probabilities(target):
    """A rounding of gamma log p would be 32 ulp of the power here."""
    rng = generator("focal exponent", target)
    y_hat = 2.0 ** rng.uniform(-20, -15, 500)
    inputs = y_hat, np.full(500, target)
    options = {"focal_gamma": (2, 3), "from_probabilities": True}
    exact = oracle.sigmoid_bce_options(*inputs, reduction="none", **options)
    loss = sl.SigmoidBCE(reduction="none", **options)
    for result, name in zip(
        (loss(*inputs), *loss.grad_and_hess(*inputs)), ("loss", "grad", "hess"), strict=True
    ):
        assert_exact(name, result, getattr(exact, name), np.dtype(float))


def refused_at_construction():
    """Class, option, value; what the message must name besides the option."""
    both, softmax, sigmoid = (sl.SoftmaxCE, sl.SigmoidBCE), (sl.SoftmaxCE,), (sl.SigmoidBCE,)
    table = [
        (both, "label_smoothing", [-0.1, 1.0, 1.5, NAN, INF], "[0, 1)"),
        (both, "focal_gamma", [-1.0, -1e-9, NAN, INF], "non-negative"),
        (softmax, "z_loss", [-1.0, NAN, INF], "non-negative"),
        (both, "logit_scale", [0.0, -1.0, NAN, INF], "positive"),
        (both, "softcap", [0.0, -3.0, NAN, INF], "positive"),
        (both, "logit_clip", [0.0, -3.0, NAN, INF], "positive"),
        (both, "class_weight", [[1.0, -1.0], [1.0, NAN], [INF, 1.0], -1.0, [[1.0, 2.0]]], ""),
        (sigmoid, "pos_weight", [-1.0, NAN, INF, [1.0, -2.0], [[1.0, 2.0]]], ""),
        (sigmoid, "focal_alpha", [-0.1, 1.1, NAN], "[0, 1]"),
        (softmax, "ignore_index", [1.5, NAN, 2**64, -(2**63) - 1, 10**400], "integer"),
    ]
    for classes, option, values, bound in table:
        for cls in classes:
            for value in values:
                yield pytest.param(cls, option, value, bound, id=f"{cls.__name__}-{option}-{value}")


@pytest.mark.parametrize(("cls", "option", "value", "bound"), list(refused_at_construction()))
def test_option_out_of_range(cls, option, value, bound):
    with pytest.raises((ValueError, TypeError), match=option) as caught:
        cls(**{option: value})
    assert bound in str(caught.value)


@pytest.mark.parametrize("cls", [sl.SoftmaxCE, sl.SigmoidBCE])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("label_smoothing", "a"),
        ("focal_gamma", [1.0, 2.0, 3.0]),
        ("focal_gamma", "2"),
        ("logit_scale", None),
        ("softcap", "30"),
        ("class_weight", ["a", "b"]),
        ("class_weight", [1j, 1.0]),
    ],
    ids=str,
)
def test_option_of_wrong_type(cls, option, value):
    with pytest.raises((ValueError, TypeError), match=option):
        cls(**{option: value})


@pytest.mark.parametrize("axis", [1.5, "last", (0, 1)])
def test_axis_that_is_no_integer(axis):
    with pytest.raises((TypeError, ValueError), match="axis"):
        sl.SoftmaxCE(axis=axis)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [2, 3, 200, 5000])
def test_gradient_of_a_class_with_nearly_all_of_the_mass(dtype, k):
    # where p is 1, the gradient is what the target leaves to the other classes
    rest = 2.0**-10
    targets = np.full((min(k, 30), k), rest / (k - 1), dtype)
    rows = np.arange(len(targets))
    targets[rows, rows] = 1 - rest
    logits = np.full_like(targets, -np.inf)
    logits[rows, rows] = 3
    others = np.array([math.fsum(np.delete(row, i)) for i, row in enumerate(targets.astype(float))])
    for z_loss in (0, 1e-30):
        grad = sl.SoftmaxCE(z_loss=z_loss, reduction="none").value_and_grad(logits, targets)[1]
        np.testing.assert_allclose(grad[rows, rows], others, rtol=2 * np.finfo(dtype).eps)
    # the target is a class that is disabled
    smooth = sl.SoftmaxCE(label_smoothing=1 - rest, reduction="none")
    grad = smooth.value_and_grad(logits, (rows + 1) % k)[1]
    np.testing.assert_allclose(grad[rows, rows], rest, rtol=2 * np.finfo(dtype).eps)


def test_gradient_where_the_logsumexp_is_huge():
    logits = np.array([[1e300, 0.0, 1e300]])
    loss = sl.SoftmaxCE(z_loss=1.0)
    np.testing.assert_allclose(loss.value_and_grad(logits, [0])[1], [[1e300, 0, 1e300]], rtol=1e-15)
    np.testing.assert_allclose(loss.grad_and_hess(logits, [0])[1], [[5e299, 0, 5e299]], rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("z_loss", [1e-9, 1e-4])
def test_z_part_beside_a_confident_row(dtype, gamma, z_loss):
    # p (1 - p + 2 z lse): no digit of z's part is lost beside the 1 that p is there, nor of 1 - p
    logits = np.zeros((40, 5), dtype)
    logits[:, 2] = np.linspace(1, 60, 40)
    loss = sl.SoftmaxCE(z_loss=z_loss, focal_gamma=gamma, reduction="none")
    value, grad = loss.value_and_grad(logits, np.full(40, 2))
    hess = loss.grad_and_hess(logits, np.full(40, 2))[1]
    with gmpy2.context(precision=400):
        for row, found_value, found_grad, found_hess in zip(logits.tolist(), value, grad, hess, strict=True):
            e = [gmpy2.exp(gmpy2.mpfr(x)) for x in row]
            total = sum(e)
            lse = gmpy2.log(total)
            p = e[2] / total
            rest = (total - e[2]) / total
            s = lse - gmpy2.mpfr(row[2])
            focus = rest**gamma
            # by log p, and once more
            first = -focus if gamma == 0 else gamma * rest ** (gamma - 1) * -p * s - focus
            exact = first * rest + 2 * z_loss * lse * p
            larger = max(abs(first * rest), 2 * z_loss * lse * p)
            eps = np.finfo(dtype).eps
            assert abs(
                float(gmpy2.mpfr(float(found_value)) - (focus * s + z_loss * lse**2))
            ) <= 4 * eps * float(focus * s + z_loss * lse**2)
            assert abs(float(gmpy2.mpfr(float(found_grad[2])) - exact)) <= 4 * eps * float(larger)
            if gamma == 0:
                exact = p * rest + 2 * z_loss * (p * p + lse * p * rest)
                assert abs(float(gmpy2.mpfr(float(found_hess[2])) - exact)) <= 4 * eps * float(exact)


@pytest.mark.parametrize("cls", [sl.SoftmaxCE, sl.SigmoidBCE])
@pytest.mark.parametrize("option", ["logit_scale", "softcap", "logit_clip", "z_loss"])
def test_probabilities_have_no_logits(cls, option):
    if cls is sl.SigmoidBCE and option == "z_loss":
        return
    with pytest.raises(ValueError, match="from_probabilities") as caught:
        cls(from_probabilities=True, **{option: 2.0})
    assert option in str(caught.value)


def test_options_of_other_losses():
    classes = [type(getattr(sl, stem)) for stem in bits.LOSSES]
    known = {cls: set(inspect.signature(cls).parameters) for cls in classes}
    for cls in classes:
        for option in set.union(*known.values()) - known[cls]:
            with pytest.raises(TypeError, match=option):
                cls(**{option: 1})


def assert_refused(error, fragments, loss, logits, targets, **at_call):
    """Every entry raises, names each fragment and writes nothing."""
    logits = np.asarray(logits)
    out = np.full(logits.shape, 7, np.result_type(logits, np.float32))
    pair, v = (out.copy(), out.copy()), np.ones_like(out)
    unreduced = {name: given for name, given in at_call.items() if name != "denominator"}
    entries = [
        lambda: loss(logits, targets, **at_call),
        lambda: loss.value_and_grad(logits, targets, out=out, **at_call),
        lambda: loss.hessian_vector_product(logits, targets, v, out=out, **at_call),
    ]
    if "denominator" not in at_call:
        entries.append(lambda: loss.grad_and_hess(logits, targets, out=pair, **unreduced))
    for entry in entries:
        with pytest.raises(error) as caught:
            entry()
        for fragment in fragments:
            assert fragment in str(caught.value), str(caught.value)
        for array in (out, *pair):
            assert (array == 7).all()


def every_loss():
    for stem in bits.LOSSES:
        yield pytest.param(getattr(sl, stem), targets_for(stem, np.arange(3), 4), id=stem)


@pytest.mark.parametrize(("loss", "targets"), list(every_loss()))
@pytest.mark.parametrize("denominator", [0, 0.0, -2.5, NAN, INF, -INF])
def test_denominator_out_of_range(loss, targets, denominator):
    fragments = ["denominator", str(denominator), "positive"]
    assert_refused(ValueError, fragments, loss, np.zeros((3, 4)), targets, denominator=denominator)


@pytest.mark.parametrize(("loss", "targets"), list(every_loss()))
def test_denominator_of_any_type(loss, targets):
    """Like the numbers among the options, for arrays and for lists; True is 1."""
    for arguments in ((np.zeros((3, 4)), targets), (np.zeros((3, 4)).tolist(), targets.tolist())):
        for kind in (bool, np.bool_, int, np.uint8, np.float16, np.longdouble, np.array):
            assert loss(*arguments, denominator=kind(1)) == loss(*arguments, denominator=1.0)
        with pytest.raises(ValueError, match="denominator is False"):
            loss(*arguments, denominator=False)


def test_denominator_beyond_float64():
    with np.errstate(over="ignore"):
        denominator = 2 * np.longdouble(np.finfo(np.float64).max)
    with pytest.raises(ValueError, match="denominator"):
        sl.softmax_ce([[0.0, 1.0]], [1], denominator=denominator)


@pytest.mark.parametrize(("loss", "targets"), list(every_loss()))
def test_denominator_of_the_wrong_type(loss, targets):
    for denominator in ("3", [1.0, 2.0]):
        assert_refused(
            (TypeError, ValueError), ["denominator"], loss, np.zeros((3, 4)), targets, denominator=denominator
        )


@pytest.mark.parametrize(("loss", "targets"), list(every_loss()))
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_denominator_without_a_mean(loss, targets, reduction):
    loss = type(loss)(reduction=reduction)
    fragments = ["denominator", reduction]
    assert_refused(ValueError, fragments, loss, np.zeros((3, 4)), targets, denominator=3.0)


@pytest.mark.parametrize(("loss", "targets"), list(every_loss()))
@pytest.mark.parametrize("dtype", [complex, object])
def test_mask_of_the_wrong_dtype(loss, targets, dtype):
    mask = np.ones(3, dtype)
    assert_refused(TypeError, ["mask", "bool", str(mask.dtype)], loss, np.zeros((3, 4)), targets, mask=mask)


@pytest.mark.parametrize(("loss", "targets"), list(every_loss()))
@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 1), (1, 3), (4, 3), (3, 4, 1)], ids=str)
def test_mask_of_the_wrong_shape(loss, targets, shape):
    fragments = ["mask", str(shape), "(3, 4)"]
    assert_refused(ValueError, fragments, loss, np.zeros((3, 4)), targets, mask=np.ones(shape, bool))


def test_mask_per_element_of_a_softmax():
    mask = np.ones((3, 4), bool)
    for loss in (sl.softmax_ce, sl.softmax_mse):
        assert_refused(ValueError, ["mask", "(3, 4)"], loss, np.zeros((3, 4)), [0, 1, 2], mask=mask)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_weights_of_the_wrong_length(k):
    logits, weight = np.zeros((3, 4)), np.ones(k)
    fragments = [str(k), "4"]
    loss = sl.SoftmaxCE(class_weight=weight)
    assert_refused(ValueError, ["class_weight", *fragments], loss, logits, [0, 1, 2])
    for option in ("class_weight", "pos_weight"):
        loss = sl.SigmoidBCE(**{option: weight})
        assert_refused(ValueError, [option, *fragments], loss, logits, np.zeros((3, 4)))


def test_class_weight_follows_the_axis():
    """Its length is that of the class axis, not of the last one."""
    logits, targets = np.zeros((3, 4)), np.zeros(4, int)
    loss = sl.SoftmaxCE(class_weight=np.ones(3), axis=0)
    assert loss(logits, targets) == pytest.approx(np.log(3))
    wrong = sl.SoftmaxCE(class_weight=np.ones(4), axis=0)
    assert_refused(ValueError, ["class_weight", "3", "4"], wrong, logits, targets)


@pytest.mark.parametrize("cls", [sl.SoftmaxCE, sl.SoftmaxMSE])
def test_outputs_along_an_axis(cls):
    """They are the arrays that were given, filled; the logits themselves too."""
    rng = generator("axis")
    logits, targets = rng.normal(size=(2, 5, 3)), rng.integers(0, 5, (2, 3))
    loss = cls(axis=-2)
    _, grad = loss.value_and_grad(logits, targets)
    exact = loss.grad_and_hess(logits, targets)
    product = loss.hessian_vector_product(logits, targets, grad)
    assert grad.shape == logits.shape
    pair = np.empty_like(logits), np.empty_like(logits)
    for got, given, expected in zip(loss.grad_and_hess(logits, targets, out=pair), pair, exact, strict=True):
        assert got is given
        assert_same_bits(got, expected)
    for inplace in (False, True):
        x, v = logits.copy(), grad.copy()
        out = x if inplace else np.empty_like(x)
        assert loss.value_and_grad(x, targets, out=out)[1] is out
        assert_same_bits(out, grad)
        x = logits.copy()
        out = v if inplace else np.empty_like(x)
        assert loss.hessian_vector_product(x, targets, v, out=out) is out
        assert_same_bits(out, product)
    probabilities = np.empty_like(logits)
    _, stats = loss(logits, targets, with_stats=True, probabilities=probabilities)
    assert stats.probabilities is probabilities
    assert_same_bits(stats.predicted, logits.argmax(axis=1))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("cls", [sl.SoftmaxCE, sl.SoftmaxMSE])
def test_messages_show_the_shape_that_was_given(cls):
    """And places in it, not in what the kernel is handed."""
    logits, targets, one_hot = np.zeros((2, 5, 3)), np.zeros((2, 3), int), np.full((2, 5, 3), 0.2)
    loss, shape = cls(axis=1), "(2, 5, 3)"
    wrong = np.moveaxis(one_hot, 1, -1)
    assert_refused(ValueError, [shape, str(wrong.shape)], loss, logits, wrong)
    assert_refused(ValueError, [shape, "(2, 3)", "(2, 2)"], loss, logits, targets[:, :2])
    weight = np.ones((2, 5))
    for option in ("sample_weight", "mask"):
        given = {option: weight if option == "sample_weight" else weight > 0}
        assert_refused(ValueError, [option, shape, "(2, 3)", "(2, 5)"], loss, logits, targets, **given)
    squeezed = [shape, "(2, 1, 3)", "pass np.reshape(targets, (2, 3))"]
    assert_refused(ValueError, squeezed, loss, logits, targets[:, np.newaxis])
    one_hot[1, 4, 0] = -1
    assert_refused(ValueError, ["(1, 4, 0)"], loss, logits, one_hot)
    one_hot[1, 4, 0] = 0
    with pytest.raises(ValueError, match=r"v has shape \(2, 3, 5\) .*\(2, 5, 3\)"):
        loss.hessian_vector_product(logits, one_hot, wrong)
    with pytest.raises(ValueError, match=r"\(2, 0, 3\) have no classes along axis 1"):
        loss(logits[:, :0], targets)


def test_place_of_a_probability_along_an_axis():
    y_hat, targets = np.full((2, 5, 3), 0.2), np.zeros((2, 3), int)
    y_hat[1, 4, 0] = 2
    loss = sl.SoftmaxCE(axis=1, from_probabilities=True)
    assert_refused(ValueError, ["(1, 4, 0)", "2.0"], loss, y_hat, targets)
    assert np.isfinite(loss(y_hat, targets, mask=np.array([[True] * 3, [False, True, True]])))
    loss = sl.SoftmaxCE(axis=1, class_weight=np.ones(3))
    assert_refused(ValueError, ["class_weight", "(2, 5, 3)"], loss, y_hat, targets)


@pytest.mark.parametrize("axis", [2, -3, 5])
def test_axis_out_of_range(axis):
    loss = sl.SoftmaxCE(axis=axis)
    assert_refused(ValueError, ["axis", str(axis)], loss, np.zeros((3, 4)), [0, 1, 2])


@pytest.mark.parametrize("bad", [-0.25, 1.5, INF])
def test_probabilities_out_of_range(bad):
    for cls, targets in [(sl.SoftmaxCE, np.array([0, 1, 2])), (sl.SigmoidBCE, np.zeros((3, 4)))]:
        for dtype in DTYPES:
            y_hat = np.full((3, 4), 0.25).astype(dtype)
            y_hat[2, 1] = bad
            loss = cls(from_probabilities=True)
            with pytest.raises(ValueError, match=r"\[0, 1\]") as caught:
                loss(y_hat, targets)
            for fragment in ("2", "1", str(bad)):
                assert fragment in str(caught.value)
            # where it does not count, it is not looked at
            assert np.isfinite(loss(y_hat, targets, mask=[True, True, False]))


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.uint8])
@pytest.mark.parametrize("lead", [(3,), (2, 3)], ids=str)
def test_trailing_axis_of_one(dtype, lead):
    """The message shows what to write instead."""
    targets = np.zeros((*lead, 1), dtype)
    fragments = [str(targets.shape), "pass np.reshape(targets, "]
    for loss in (sl.softmax_ce, sl.softmax_mse, sl.SoftmaxCE(class_weight=np.ones(4))):
        assert_refused(ValueError, fragments, loss, np.zeros((*lead, 4)), targets)


def test_swapped_arguments():
    """Integer logits with float targets of another shape: the order is (logits, targets)."""
    logits, targets, _ = batch()
    for loss in (sl.softmax_ce, sl.softmax_mse, sl.SoftmaxCE(label_smoothing=0.1)):
        for entry in (loss, loss.value_and_grad, loss.grad_and_hess):
            with pytest.raises(ValueError, match=r"the order is \(logits, targets\)") as caught:
                entry(targets, logits)
            assert "(40, 6)" in str(caught.value)


@pytest.mark.parametrize("index", [-1, -101, 6, 2**40])
def test_class_index_that_is_not_the_ignored_one(index):
    logits, targets, _ = batch()
    targets[11] = index
    for loss in (sl.softmax_ce, sl.SoftmaxCE(ignore_index=3), sl.SoftmaxCE(focal_gamma=2.0)):
        assert_refused(ValueError, ["11", str(index), "6"], loss, logits, targets)


def test_a_hidden_target_is_not_looked_at():
    logits, targets, _ = batch()
    mask = np.ones(40, bool)
    mask[11] = False
    clean = sl.softmax_ce.value_and_grad(logits, targets, mask=mask)
    targets[11], logits[11] = -7, NAN
    assert_all_same_bits(sl.softmax_ce.value_and_grad(logits, targets, mask=mask), clean)


def test_target_grad_of_class_indices():
    out = np.full((3, 4), 7.0)
    for targets in ([0, 1, 2], np.array([0, 1, 2]), np.array([0, 1, 2], np.float32)):
        with pytest.raises(ValueError, match="class ind"):
            sl.softmax_ce.target_grad(np.zeros((3, 4)), targets, out=out)
        assert (out == 7).all()


@pytest.mark.parametrize("shape", [(4,), (3,), (3, 4, 1), (4, 3)], ids=str)
def test_direction_of_the_wrong_shape(shape):
    for loss, targets in [(sl.softmax_ce, [0, 1, 2]), (sl.sigmoid_mse, np.zeros((3, 4)))]:
        out = np.full((3, 4), 7.0)
        with pytest.raises(ValueError, match="v ") as caught:
            loss.hessian_vector_product(np.zeros((3, 4)), targets, np.ones(shape), out=out)
        assert str(shape) in str(caught.value)
        assert (out == 7).all()


def test_probabilities_buffer_that_cannot_be_used():
    for error, buffer in [(TypeError, np.zeros((3, 4), np.float32)), (ValueError, np.zeros((4, 3)))]:
        before = buffer.copy()
        with pytest.raises(error, match="probabilities"):
            sl.softmax_ce(np.zeros((3, 4)), [0, 1, 2], with_stats=True, probabilities=buffer)
        np.testing.assert_array_equal(buffer, before)


# ---- the options as values -----------------------------------------------------------------------

VALUES = {
    sl.SoftmaxCE: [
        {},
        {"class_weight": [1.0, 2.0]},
        {"class_weight": [2.0, 1.0]},
        {"ignore_index": 0},
        {"label_smoothing": 0.1},
        {"focal_gamma": 2.0},
        {"z_loss": 1e-4},
        {"logit_scale": 0.5},
        {"softcap": 30.0},
        {"axis": 1},
        {"from_probabilities": True},
        {"class_weight": [1.0, 2.0], "label_smoothing": 0.1, "reduction": "none", "axis": 0},
    ],
    sl.SigmoidBCE: [
        {},
        {"class_weight": [1.0, 2.0]},
        {"pos_weight": [1.0, 2.0]},
        {"pos_weight": 3.0},
        {"label_smoothing": 0.1},
        {"focal_gamma": 2.0},
        {"focal_alpha": 0.25},
        {"logit_scale": 0.5},
        {"softcap": 30.0},
        {"from_probabilities": True},
    ],
}


@pytest.mark.parametrize("cls", VALUES)
def test_equality_hash_pickle_and_copy(cls):
    for i, given in enumerate(VALUES[cls]):
        loss = cls(**given)
        for j, other in enumerate(VALUES[cls]):
            assert (loss == cls(**other)) == (i == j)
        twin = cls(**{name: np.array(v) if isinstance(v, list) else v for name, v in given.items()})
        assert twin == loss
        assert hash(twin) == hash(loss)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(loss, protocol))
            assert again == loss
            assert hash(again) == hash(loss)
        assert copy.copy(loss) == copy.deepcopy(loss) == loss
        square = np.array([[0.5, 0.25], [0.75, 0.125]]), np.eye(2)
        np.testing.assert_array_equal(copy.deepcopy(loss)(*square), loss(*square))


def test_defaults_are_the_instances():
    assert sl.SoftmaxCE(
        reduction="mean",
        class_weight=None,
        ignore_index=-100,
        label_smoothing=0,
        focal_gamma=0,
        z_loss=0,
        logit_scale=1,
        softcap=None,
        logit_clip=None,
        axis=-1,
        from_probabilities=False,
    ) == (sl.softmax_ce)
    assert sl.SigmoidBCE(
        reduction="mean",
        class_weight=None,
        pos_weight=None,
        label_smoothing=0,
        focal_gamma=0,
        focal_alpha=None,
        logit_scale=1,
        softcap=None,
        logit_clip=None,
        from_probabilities=False,
    ) == (sl.sigmoid_bce)


@pytest.mark.parametrize("cls", VALUES)
def test_repr_builds_the_loss_again(cls):
    for given in VALUES[cls]:
        loss = cls(**given)
        text = repr(loss)
        assert text.startswith(cls.__name__)
        assert eval(text, {cls.__name__: cls, "array": np.array}) == loss
        for name in given:
            assert f"{name}=" in text


@pytest.mark.parametrize("cls", VALUES)
def test_options_cannot_be_changed(cls):
    weight = np.array([1.0, 2.0])
    loss = cls(class_weight=weight, label_smoothing=0.1)
    before = loss([[0.5, 0.25]], [[1, 0]])
    weight[0] = 5
    assert loss([[0.5, 0.25]], [[1, 0]]) == before
    np.testing.assert_array_equal(loss.class_weight, [1, 2])
    with pytest.raises((ValueError, TypeError)):
        loss.class_weight[0] = 5  # a tuple
    for name in ("label_smoothing", "class_weight", "focal_gamma"):
        with pytest.raises(AttributeError):
            setattr(loss, name, 0.0)
    assert loss.label_smoothing == 0.1


def test_stats_is_a_named_tuple():
    assert sl.Stats._fields == ("predicted", "correct", "logsumexp", "entropy", "probabilities")
    logits, targets, _ = batch()
    for entry in (sl.softmax_ce, sl.softmax_ce.value_and_grad):
        stats = entry(logits, targets, with_stats=True)[-1]
        assert type(stats) is sl.Stats
        assert type(stats.correct) is int
        assert stats.probabilities is None


def test_pairs_are_complete():
    """What the cross product is covered by."""
    for factors, cases, refuses in [
        (SOFTMAX_FACTORS, SOFTMAX_CASES, excluded),
        (SIGMOID_FACTORS, SIGMOID_CASES, excluded_for_sigmoid),
    ]:
        for m in factors:
            for n in factors:
                seen = {(str(case[m]), str(case[n])) for case in cases}
                for a in factors[m]:
                    for b in factors[n]:
                        if m != n and not refuses({m: a, n: b}):
                            assert (str(a), str(b)) in seen
        assert not any(refuses({m: case[m], n: case[n]}) for case in cases for m in case for n in case)

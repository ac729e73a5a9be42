"""thinc's loss objects with the true cross-entropy, trained on digits with thinc's models and optimisers."""

import numpy as np
import oracle
import pytest
import thinc.api
from real_data import digits
from thinc.config import registry

import stableloss as sl
from stableloss.adapters.thinc import CategoricalCrossentropy, Loss, SequenceCategoricalCrossentropy


def guesses(n=8, k=4):
    p = np.random.default_rng(0).dirichlet(np.ones(k), n).astype(np.float32)
    return p, np.arange(n) % k


def cross_entropy(p, y):
    """Exact -log p_y of each row, of rows normalised by their exact sum."""
    exact = oracle.lift(p)
    exact = exact / exact.sum(axis=1, keepdims=True)
    return -oracle.log(exact[np.arange(len(y)), y])


def train(model, loss_calc, y):
    """Return the model's outputs of the held-out digits and the mean losses of the epochs."""
    data = digits()
    x = data.x.astype(np.float32)
    thinc.api.fix_random_seed(0)
    model.initialize(X=x[:5], Y=np.eye(10, dtype=np.float32)[data.y[:5]])
    optimizer = thinc.api.Adam(0.005)
    losses = []
    for _ in range(8):
        total = 0.0
        for x_batch, y_batch in model.ops.multibatch(32, x, y, shuffle=True):
            output, backprop = model.begin_update(x_batch)
            grad, loss = loss_calc(output, y_batch)
            assert grad.dtype == np.float32
            backprop(grad)
            model.finish_update(optimizer)
            total += loss * len(x_batch) / len(x)
        losses.append(total)
    return model.predict(data.x_test.astype(np.float32)), losses


@pytest.mark.parametrize(
    ("last", "loss_calc"),
    [
        (thinc.api.Softmax, CategoricalCrossentropy()),
        (thinc.api.Softmax, Loss(sl.SoftmaxCE(from_probabilities=True))),
        (thinc.api.Linear, Loss(sl.softmax_ce)),
        (thinc.api.Linear, Loss(sl.SigmoidBCE(reduction="batchmean"))),
    ],
    ids=["drop-in", "probabilities", "logits", "sigmoid"],
)
def test_model_learns_digits(last, loss_calc):
    model = thinc.api.chain(thinc.api.Relu(nO=32), last(nO=10))
    y = digits().y
    if isinstance(loss_calc.__dict__.get("loss"), sl.SigmoidBCE):
        y = np.eye(10, dtype=np.float32)[y]
    outputs, losses = train(model, loss_calc, y)
    assert losses[-1] < losses[0] / 5
    assert np.mean(outputs.argmax(axis=1) == digits().y_test) > 0.95


def test_reports_the_cross_entropy():
    """thinc's own class reports the squared length of its gradient."""
    p, y = guesses()
    _, loss = CategoricalCrossentropy()(p, y)
    assert loss == pytest.approx(float(cross_entropy(p, y).sum() / 8), rel=1e-6)
    grad, theirs = thinc.api.CategoricalCrossentropy()(p, y)
    assert theirs == pytest.approx((grad**2).sum())
    assert theirs < loss / 10


NAMES = ["a", "b", "c", "d"]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("options", "truths"),
    [
        ({}, np.arange(8) % 4),
        ({}, [0, 1, 2, 3] * 2),
        ({}, np.eye(4, dtype=np.float32)[np.arange(8) % 4]),
        ({}, np.full((8, 4), 0.25, np.float32)),
        ({"missing_value": 2}, np.arange(8) % 4),
        ({"missing_value": 3}, [0, 1, 2, 3] * 2),
        ({"missing_value": 0}, np.eye(4, dtype=np.float32)[np.arange(8) % 4]),
        ({"names": NAMES}, NAMES * 2),
        ({"names": NAMES, "missing_value": ""}, ["a", "", "c", "d"] * 2),
        ({"label_smoothing": 0.1}, np.arange(8) % 4),
        ({"label_smoothing": 0.1, "names": NAMES}, NAMES * 2),
    ],
)
def test_gradient_is_that_of_thinc(options, truths, normalize):
    p, _ = guesses()
    ours = CategoricalCrossentropy(normalize=normalize, **options)
    expected = thinc.api.CategoricalCrossentropy(normalize=normalize, **options).get_grad(p, truths)
    grad, loss = ours(p, truths)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=2e-7)
    np.testing.assert_array_equal(ours.get_grad(p, truths), grad)
    assert ours.get_loss(p, truths) == loss


def random_case(rng):
    """Options, guesses and truths of any kind that thinc takes; and some that it refuses."""
    k, n = int(rng.integers(1, 6)), int(rng.integers(0, 7))
    names = [f"class {i}" for i in range(k)]
    p = rng.dirichlet(np.full(k, 0.1), n) if rng.random() < 0.5 else rng.random((n, k))
    p = np.minimum(p, 1).astype(rng.choice([np.float32, np.float64]))
    options = {"normalize": bool(rng.random() < 0.5)}
    if rng.random() < 0.3:
        options["label_smoothing"] = 0.1
    kind = rng.choice(["indices", "list", "soft", "several", "names"])
    if kind == "names":
        options |= {"names": names, "neg_prefix": "!", "missing_value": ""}
        prefixes = rng.choice(["", "", "!"], n)
        truths = [prefix + str(rng.choice(names)) for prefix in prefixes]
        truths = [truth if rng.random() < 0.8 else "" for truth in truths]
        return options, p, truths
    if rng.random() < 0.4:
        options["missing_value"] = int(rng.integers(0, k))
    if kind in ("soft", "several"):
        if rng.random() < 0.3:
            options["names"] = names
        p_true = rng.random((n, k)) if kind == "soft" else rng.random((n, k)) < 0.5
        return options, p, p_true.astype(np.float32)
    indices = rng.integers(0, k, n)
    return options, p, indices if kind == "indices" else indices.tolist()


def outcome(loss_calc, p, truths):
    try:
        return loss_calc.get_grad(p, truths.copy())
    except (ValueError, KeyError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("seed", range(20))
def test_gradient_is_that_of_thinc_for_all_it_takes(seed):
    """Bit by bit, but where a guess of 1 leaves its others nothing in thinc; and with its refusals."""
    rng = np.random.default_rng(seed)
    taken = 0
    for _ in range(60):
        options, p, truths = random_case(rng)
        expected = outcome(thinc.api.CategoricalCrossentropy(**options), p, truths)
        got = outcome(CategoricalCrossentropy(**options), p, truths)
        if isinstance(expected, tuple):
            assert got == expected
            continue
        taken += 1
        assert got.dtype == expected.dtype
        same = got == expected
        assert (same | ((expected == 0) & (p == 1) & (abs(got) < np.finfo(got.dtype).eps))).all()
        assert np.isfinite(CategoricalCrossentropy(**options).get_loss(p, truths))
    assert taken > 30


@pytest.mark.parametrize("normalize", [True, False])
def test_several_labels_in_a_row(normalize):
    """Rows that do not sum to 1: guesses - truths, and the loss of which that is the gradient."""
    p = np.array([[0.9, 0.8, 0.1], [0.2, 0.7, 0.25]])
    t = np.array([[1, 1, 0], [0, 0, 0.5]], np.float32)
    divisor = 2 if normalize else 1
    grad, loss = CategoricalCrossentropy(normalize=normalize)(p, t)
    np.testing.assert_allclose(grad, (p - t) / divisor, rtol=1e-15)
    exact, truth = oracle.lift(p), oracle.lift(t)
    terms = -(truth * oracle.log(exact) + (1 - truth) * oracle.log(1 - exact))
    assert loss == pytest.approx(float(terms.sum() / divisor), rel=1e-14)
    # which it is: by the logits of independent outputs
    z, step = np.log(p / (1 - p)), 1e-6
    for at in np.ndindex(p.shape):
        around = []
        for move in (step, -step):
            moved = z.copy()
            moved[at] += move
            around.append(CategoricalCrossentropy(normalize=normalize).get_loss(1 / (1 + np.exp(-moved)), t))
        assert grad[at] == pytest.approx((around[0] - around[1]) / (2 * step), rel=1e-7, abs=1e-9)


def test_names_that_a_row_is_not():
    """Nothing else of the row counts: gradient and loss are those of "not this one"."""
    p = np.array([[0.25, 0.75], [0.5, 0.5], [0.125, 0.875]])
    loss_calc = CategoricalCrossentropy(names=["cat", "dog"], neg_prefix="!", normalize=False)
    grad, loss = loss_calc(p, ["cat", "!dog", "!cat"])
    np.testing.assert_array_equal(grad, [[-0.75, 0.75], [0, 0.5], [0.125, 0]])
    assert loss == pytest.approx(-np.log(0.25) - np.log(0.5) - np.log(0.875), rel=1e-15)
    of_sequences = SequenceCategoricalCrossentropy(names=["cat", "dog"], neg_prefix="!", normalize=False)
    grads, total = of_sequences([p[:2], p[2:]], [["cat", "!dog"], ["!cat"]])
    np.testing.assert_array_equal(np.concatenate(grads), grad)
    assert total == pytest.approx(loss, rel=1e-15)


def test_certain_guesses_have_a_finite_loss():
    """A guess of 0 counts as the smallest normal number."""
    p, t = np.array([[1, 0], [0, 1]], np.float32), np.array([1, 1])
    grad, loss = CategoricalCrossentropy(normalize=False)(p, t)
    np.testing.assert_array_equal(grad, [[1, -1], [0, 0]])
    assert loss == pytest.approx(-np.log(np.finfo(np.float32).smallest_normal), rel=1e-6)
    grad, loss = CategoricalCrossentropy(normalize=False)(p, np.array([[1, 1], [0, 0]], np.float32))
    np.testing.assert_array_equal(grad, [[0, -1], [0, 1]])
    assert loss == pytest.approx(-2 * np.log(np.finfo(np.float32).smallest_normal), rel=1e-6)


def test_truths_are_not_written_to():
    """thinc's own multiplies them by its mask; a read-only array is as good."""
    truths = np.eye(4, dtype=np.float32)
    truths.flags.writeable = False
    grad = CategoricalCrossentropy(names=NAMES).get_grad(np.full((4, 4), 0.25, np.float32), truths)
    np.testing.assert_array_equal(grad, (0.25 - truths) / 4)


def test_losses_that_are_refused():
    with pytest.raises(TypeError, match="loss is the class SoftmaxCE, not an object of it"):
        Loss(sl.SoftmaxCE)
    with pytest.raises(TypeError, match="loss must be a loss object such as softmax_ce, not str"):
        Loss("softmax_ce")


def test_masked_truths():
    masked = np.ma.masked_array([0, 1], [False, True])
    for truths in (masked, [masked[:1], masked[1:]]):
        with pytest.raises(TypeError, match=r"^truths is a masked array, .* pass truths\.filled\(missing"):
            CategoricalCrossentropy()(guesses(2)[0], truths)
    grad, _ = CategoricalCrossentropy(missing_value=3)(guesses(2)[0], masked.filled(3))
    assert not grad[1].any()


def test_missing_rows_cost_nothing():
    p, y = guesses()
    exact = cross_entropy(p, y)
    loss = CategoricalCrossentropy(missing_value=1).get_loss(p, y)
    assert loss == pytest.approx(float(exact[y != 1].sum() / 8), rel=1e-6)


def test_confident_rows_keep_their_gradient():
    """p - 1 has rounded to 0; the other classes still say how far p is from 1."""
    p = np.array([[1.0, 1e-20, 3e-20]], np.float32)
    grad, loss = CategoricalCrossentropy()(p, np.array([0]))
    assert grad[0, 0] == pytest.approx(-4e-20, rel=1e-6)
    assert loss == pytest.approx(4e-20, rel=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_sequences(normalize):
    p, y = guesses()
    parts, truths = [p[:3], p[3:4], p[4:]], [y[:3], y[3:4], y[4:]]
    ours = SequenceCategoricalCrossentropy(normalize=normalize)
    theirs = thinc.api.SequenceCategoricalCrossentropy(normalize=normalize)
    grads, loss = ours(parts, truths)
    for grad, expected in zip(grads, theirs.get_grad(parts, truths), strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=2e-7)
    assert loss == pytest.approx(float(cross_entropy(p, y).sum()) / (3 if normalize else 1), rel=1e-6)
    assert ours.get_loss(parts, truths) == loss
    with pytest.raises(ValueError, match="zip"):
        ours(parts, truths[:2])
    assert ours([], []) == ([], 0)


def test_registry():
    p, y = guesses()
    config = thinc.api.Config().from_str("""
[logits]
@losses = "stableloss.Loss.v1"
kind = "SoftmaxCE"

[logits.options]
reduction = "sum"

[drop_in]
@losses = "stableloss.CategoricalCrossentropy.v1"
normalize = false
names = ["a", "b", "c", "d"]
neg_prefix = "!"

[sequence]
@losses = "stableloss.SequenceCategoricalCrossentropy.v1"
label_smoothing = 0.1
""")
    resolved = registry.resolve(config)
    exact = float(cross_entropy(p, y).sum())
    assert resolved["logits"].get_loss(np.log(p), y) == pytest.approx(exact, rel=1e-6)
    assert resolved["drop_in"].get_loss(p, NAMES * 2) == pytest.approx(exact, rel=1e-6)
    assert resolved["drop_in"].get_loss(p[:1], ["!a"]) == pytest.approx(-np.log1p(-float(p[0, 0])), rel=1e-6)
    assert isinstance(resolved["sequence"], SequenceCategoricalCrossentropy)
    assert isinstance(resolved["drop_in"], thinc.api.CategoricalCrossentropy)

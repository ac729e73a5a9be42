"""Targets in another shape, or of -1 and 1: refused in the caller's words, with what mends the call."""

import contextlib
import re

import numpy as np
import pytest

from stableloss.adapters import columns, cs231n, nielsen, nnfs

Z, ROWS = np.array([[2.0, -1.0, 0.5, 0.0], [0.0, 3.0, -0.5, 1.0], [1.0, 1.0, -2.0, 0.0]]), (4,)
LABELS = np.array([0, 1, 2, 1])
ONE_HOT = np.eye(3)[:, LABELS]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=0)


def bce(z, y):
    return -np.sum(y * np.log(sigmoid(z)) + (1 - y) * np.log(1 - sigmoid(z)))


def ce(z, y):
    return -np.sum(y * np.log(softmax(z)))


def combined(cls, backward):
    """Forward or backward of a class of nnfs on samples in rows."""

    def call(x, y):
        loss_activation = cls()
        if backward:
            loss_activation.backward(x, y)
            return loss_activation.dinputs
        return loss_activation.forward(x, y)

    return call


def model_loss(cls, name):
    def call(x, y):
        loss = cls()
        result = getattr(loss, name)(x, y)
        return loss.dinputs if name == "backward" else result

    return call


# name of each argument, the function of (x, y), x, the right y, the right value
SIGMOID = {
    "columns.sigmoid_cost": ("z", lambda z, y: columns.sigmoid_cost(z, y)[0], Z, bce(Z, ONE_HOT) / 4),
    "columns.sigmoid_cost_from_output": (
        "y_hat",
        lambda a, y: columns.sigmoid_cost_from_output(a, y)[0],
        sigmoid(Z),
        bce(Z, ONE_HOT) / 4,
    ),
    "nnfs.Activation_Sigmoid_Loss_BinaryCrossentropy.forward": (
        "inputs",
        combined(nnfs.Activation_Sigmoid_Loss_BinaryCrossentropy, False),
        Z.T,
        bce(Z, ONE_HOT) / 12,
    ),
    "nnfs.Activation_Sigmoid_Loss_BinaryCrossentropy.backward": (
        "dvalues",
        combined(nnfs.Activation_Sigmoid_Loss_BinaryCrossentropy, True),
        sigmoid(Z.T),
        (sigmoid(Z) - ONE_HOT).T / 12,
    ),
    "nnfs.Loss_BinaryCrossentropy.calculate": (
        "output",
        model_loss(nnfs.Loss_BinaryCrossentropy, "calculate"),
        sigmoid(Z.T),
        bce(Z, ONE_HOT) / 12,
    ),
    "nnfs.Loss_BinaryCrossentropy.backward": (
        "dvalues",
        model_loss(nnfs.Loss_BinaryCrossentropy, "backward"),
        sigmoid(Z.T),
        ((sigmoid(Z) - ONE_HOT) / sigmoid(Z) / (1 - sigmoid(Z))).T / 12,
    ),
}
SOFTMAX = {
    "columns.softmax_cost": ("z", lambda z, y: columns.softmax_cost(z, y)[0], Z, ce(Z, ONE_HOT) / 4),
    "columns.softmax_cost_from_output": (
        "y_hat",
        lambda a, y: columns.softmax_cost_from_output(a, y)[0],
        softmax(Z),
        ce(Z, ONE_HOT) / 4,
    ),
    "cs231n.softmax_loss": ("x", lambda x, y: cs231n.softmax_loss(x, y)[0], Z.T, ce(Z, ONE_HOT) / 4),
    "nnfs.Activation_Softmax_Loss_CategoricalCrossentropy.forward": (
        "inputs",
        combined(nnfs.Activation_Softmax_Loss_CategoricalCrossentropy, False),
        Z.T,
        ce(Z, ONE_HOT) / 4,
    ),
    "nnfs.Activation_Softmax_Loss_CategoricalCrossentropy.backward": (
        "dvalues",
        combined(nnfs.Activation_Softmax_Loss_CategoricalCrossentropy, True),
        softmax(Z).T,
        (softmax(Z) - ONE_HOT).T / 4,
    ),
    "nnfs.Loss_CategoricalCrossentropy.calculate": (
        "output",
        model_loss(nnfs.Loss_CategoricalCrossentropy, "calculate"),
        softmax(Z).T,
        ce(Z, ONE_HOT) / 4,
    ),
    "nnfs.Loss_CategoricalCrossentropy.backward": (
        "dvalues",
        model_loss(nnfs.Loss_CategoricalCrossentropy, "backward"),
        softmax(Z).T,
        (-ONE_HOT / softmax(Z)).T / 4,
    ),
}
COLUMN = {
    "nielsen.CrossEntropyCost.fn": ("a", nielsen.CrossEntropyCost.fn, sigmoid, bce),
    "nielsen.QuadraticCost.fn": (
        "a",
        nielsen.QuadraticCost.fn,
        sigmoid,
        lambda z, y: np.sum((sigmoid(z) - y) ** 2) / 2,
    ),
    "nielsen.CrossEntropyCost.delta": (
        "z",
        lambda z, y: nielsen.CrossEntropyCost.delta(z, None, y),
        np.array,
        lambda z, y: sigmoid(z) - y,
    ),
    "nielsen.QuadraticCost.delta": (
        "z",
        lambda z, y: nielsen.QuadraticCost.delta(z, None, y),
        np.array,
        lambda z, y: (sigmoid(z) - y) * sigmoid(z) * (1 - sigmoid(z)),
    ),
}


FUNCTIONS = {name: row[1::-1] for kind in (SIGMOID, SOFTMAX, COLUMN) for name, row in kind.items()}


def mended(function, x, y, x_name):
    """The result with what the refusal of `y`, an array or a list, says to pass instead of it."""
    results = []
    for given in (y, np.array(y).tolist()):
        with pytest.raises(ValueError, match=r"^y(_true)? (has shape|holds) .* pass [^;]*$") as refusal:
            function(x, given)
        message = str(refusal.value)
        if "has shape" in message:
            assert f"has shape {np.shape(y)} where {x_name} of shape {np.shape(x)} needs" in message
        instead = message.rpartition("pass ")[2]
        results.append(function(x, eval(instead, {"np": np, "y": given, "y_true": given})))
    np.testing.assert_array_equal(*results)
    return results[0]


def by_rows(name):
    return not name.startswith("columns")


@pytest.mark.parametrize("name", SIGMOID)
@pytest.mark.parametrize("shape", ["transposed", "labels", "labels in a row", "signed"])
def test_sigmoid_targets(name, shape):
    x_name, function, x, expected = SIGMOID[name]
    right = ONE_HOT.T if by_rows(name) else ONE_HOT
    np.testing.assert_allclose(function(x, right), expected, rtol=1e-12)
    y = {
        "transposed": right.T,
        "labels": LABELS,
        "labels in a row": LABELS[None, :] if by_rows(name) else LABELS[:, None],
        "signed": 2 * right - 1,
    }[shape]
    np.testing.assert_allclose(mended(function, x, y, x_name), expected, rtol=1e-12)


@pytest.mark.parametrize("name", SIGMOID)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 1), (), (4, 1, 1)])
def test_sigmoid_targets_of_one_output(name, shape):
    """One output in all layouts of its targets; a bare label is that of all samples."""
    x_name, function, x, _ = SIGMOID[name]
    x = x[:, :1] if by_rows(name) else x[:1]
    labels = np.array([1, 1, 1, 1]) if shape == () else np.array([1, 0, 0, 1])
    expected = function(x, labels.reshape(x.shape))
    y = 1 if shape == () else labels.reshape(shape)
    got = function(x, y) if np.shape(y) == x.shape else mended(function, x, y, x_name)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1, 4), "transposed", "signed", "label", "right"])
def test_softmax_targets(name, shape):
    x_name, function, x, expected = SOFTMAX[name]
    right = ONE_HOT.T if by_rows(name) else ONE_HOT
    if shape == "right":
        for y in (right, LABELS, LABELS.tolist(), right.tolist(), LABELS.astype(float)):
            np.testing.assert_allclose(function(x, y), expected, rtol=1e-12)
        return
    if shape == "transposed":
        y = right.T
    elif shape == "signed":
        x, y = (x[:, :2], LABELS % 2 * 2 - 1) if by_rows(name) else (x[:2], LABELS % 2 * 2 - 1)
        expected = function(x, LABELS % 2)
    elif shape == "label":
        y, expected = 2, function(x, [2, 2, 2, 2])
    else:
        y = LABELS.reshape(shape)
    np.testing.assert_allclose(mended(function, x, y, x_name), expected, rtol=1e-12)


@pytest.mark.parametrize("name", COLUMN)
@pytest.mark.parametrize("shape", [(3,), (1, 3), (), "label", "signed"])
def test_column_targets(name, shape):
    """Among them a bare digit, which numpy would subtract from all three outputs."""
    x_name, function, of_z, reference = COLUMN[name]
    z, right = Z[:, :1], np.array([[0], [1], [0]])
    expected = reference(z, right)
    np.testing.assert_allclose(function(of_z(z), right), expected, rtol=1e-12)
    np.testing.assert_allclose(function(of_z(z).tolist(), right.tolist()), expected, rtol=1e-12)
    if shape == "signed":
        y = 2 * right - 1
        if name == "nielsen.QuadraticCost.fn":
            # a distance, which any two numbers have
            assert function(of_z(z), y) == pytest.approx(reference(z, y), rel=1e-14)
            return
    else:
        y = {(): 1, "label": np.array([1])}.get(shape)
        y = right.reshape(shape) if y is None else y
    np.testing.assert_allclose(mended(function, of_z(z), y, x_name), expected, rtol=1e-12)


def test_nothing_is_broadcast():
    """Also where no other shape would do, and both shapes are told."""
    for name, (x_name, function, x, _) in {**SIGMOID, **SOFTMAX}.items():
        for y in (np.zeros((7, 2)), np.zeros((1, 3)), np.zeros((1, 1)), np.zeros((4, 3, 2))):
            with pytest.raises(ValueError, match=r"y(_true)? has shape") as refusal:
                function(x, y)
            assert f"{y.shape} where {x_name} of shape {x.shape} needs" in str(refusal.value), name
    for x_name, function, of_z, _ in COLUMN.values():
        for y in (np.zeros((2, 1)), np.zeros((1, 1)), np.zeros((3, 2)), np.zeros(())):
            with pytest.raises(ValueError, match=rf"y has shape .* where {x_name} of shape \(3, 1\) needs"):
                function(of_z(Z[:, :1]), y)


@pytest.mark.parametrize(
    "function",
    [
        columns.sigmoid_cost,
        columns.sigmoid_cost_from_output,
        columns.softmax_cost,
        columns.softmax_cost_from_output,
    ],
)
def test_columns_take_lists_and_refuse_other_dimensions(function):
    x_name = "y_hat" if function.__name__.endswith("output") else "z"
    x = np.array([[0.25, 0.5, 0.75]])
    expected = function(x, [[1, 1, 1]])
    got = function(x.tolist(), [[1, 1, 1]])
    assert got[0] == expected[0]
    np.testing.assert_array_equal(got[1], expected[1])
    for line, ones in ((x[0], (1, 3)), ([0.25, 0.5, 0.75], (1, 3)), (0.25, (1, 1))):
        with pytest.raises(ValueError, match=rf"{x_name} has shape .*, not \(n_out, m\)") as refusal:
            function(line, np.ones(np.shape(line)))
        one_output, one_sample = re.findall(r"np\.reshape\([^()]*, \([^()]*\)\)", str(refusal.value))
        for text in (one_output, one_sample):
            again = eval(text, {"np": np, x_name: line})
            cost, dz = function(again, np.ones(again.shape))
            assert dz.shape in (ones, ones[::-1])
            assert np.isfinite(cost)
    with pytest.raises(
        ValueError, match=rf"{x_name} has shape \(1, 2, 3\), not \(n_out, m\) with one .* column$"
    ):
        function(np.ones((1, 2, 3)), np.ones((1, 2, 3)))


def test_other_refusals_are_in_the_callers_names():
    """Values out of range, ragged lists and dtypes are told by the losses."""
    with pytest.raises(ValueError, match=r"^y at \(0, 1\) is 2"):
        columns.sigmoid_cost([[0.0, 1.0]], [[1, 2]])
    with pytest.raises(ValueError, match="class index at 1 is 3"):
        cs231n.softmax_loss(np.zeros((2, 3)), [0, 3])
    with pytest.raises(ValueError, match="class index at 1 is -1"):
        cs231n.softmax_loss(np.zeros((2, 3)), [1, -1])
    with pytest.raises(TypeError, match=r"^y must hold real numbers, not dtype complex"):
        columns.sigmoid_cost([[0.0, 1.0]], [[1j, 0]])
    with pytest.raises(ValueError, match=r"^the rows of y have different lengths"):
        cs231n.softmax_loss(np.zeros((2, 3)), [[0], [1, 2]])


def not_arrays(array):
    """What numpy would make an array of and lose something, or not a number, and what the message says."""
    masked = np.ma.masked_array(array, np.zeros(array.shape, bool))
    yield masked, r"is a masked array, and its mask would be dropped: pass np\.ma\.getdata\({}\)"
    yield list(masked), "is a masked array"
    yield array.astype(object), r"must hold real numbers, not dtype object .*: pass np\.asarray\({}, float\)"
    yield array.astype(str), r"must hold real numbers, not dtype <U\d+ of strings"
    yield dict(enumerate(array)), r"is a dict, not an array: pass \[{}\[c\] for c in range\(\d\)\]"
    with contextlib.suppress(ImportError):
        from scipy import sparse

        yield sparse.csr_array(array), r"is a sparse csr_array: pass {}\.toarray\(\)"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_holds_no_plain_numbers(name):
    """Is refused in the names of the caller's arguments, whichever of the two it is."""
    function, x_name = FUNCTIONS[name]
    z, y = np.array([[0.5, 0.25], [0.125, 0.25]]), np.eye(2)
    function(z, y)
    for given, message in not_arrays(z):
        with pytest.raises(TypeError, match=f"^{x_name} {message.format(x_name)}"):
            function(given, y)
    for given, message in not_arrays(y):
        with pytest.raises(TypeError, match=rf"^y(_true)? {message.format('y(_true)?')}"):
            function(z, given)


def test_temporal_loss():
    """Sequences in the course's shapes; a flattened caption is put back, a single one is not guessed."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    y, mask = np.array([[0, 1, 2], [3, 0, 1]]), np.array([[True, True, False], [True, True, True]])
    log_p = x - np.log(np.exp(x).sum(axis=2, keepdims=True))
    expected = -sum(log_p[i, t, y[i, t]] for i in range(2) for t in range(3) if mask[i, t]) / 2

    def function(x, y):
        return cs231n.temporal_softmax_loss(x, y, mask)[0]

    assert function(x, y) == pytest.approx(expected, rel=1e-14)
    assert mended(function, x, y.ravel(), "x") == pytest.approx(expected, rel=1e-14)
    assert mended(function, x, y[:, :, None], "x") == pytest.approx(expected, rel=1e-14)
    with pytest.raises(ValueError, match=r"x has shape \(6, 4\), not \(N, T, V\); .* pass x\[np.newaxis\]"):
        cs231n.temporal_softmax_loss(x.reshape(6, 4), y.ravel(), mask.ravel())
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 3, 4\), not \(N, T, V\)$"):
        cs231n.temporal_softmax_loss(x[None], y[None], mask[None])
    with pytest.raises(ValueError, match="mask has shape"):
        cs231n.temporal_softmax_loss(x, y, mask[:1])


def test_quadratic_cost_of_other_dtypes():
    """Unsigned targets do not wrap around, and nothing that is not a real number is taken for one."""
    a, y = np.array([[0], [3]], np.uint8), np.array([[1], [5]], np.uint8)
    assert nielsen.QuadraticCost.fn(a, y) == 2.5
    assert nielsen.QuadraticCost.fn(a > 1, y > 1) == 0
    half = np.array([[0.5], [1.0]], np.float16)
    assert nielsen.QuadraticCost.fn(half, y) == (0.25 + 16) / 2
    with pytest.raises(TypeError, match="y must hold real numbers, not dtype complex128"):
        nielsen.QuadraticCost.fn(half, half * np.complex128(1j))
    with pytest.raises(TypeError, match="a must hold real numbers, not dtype object"):
        nielsen.QuadraticCost.fn(half.astype(object), half)

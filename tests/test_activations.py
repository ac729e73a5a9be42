"""The activations: accuracy, axes, layouts, limits and errors."""

import numpy as np
import oracle
import pytest
from cases import (
    CLASS_COUNTS,
    DTYPE_ONLY,
    LAYOUTS,
    LOGITS,
    OUT_LAYOUTS,
    assert_same_bits,
    at_offset,
    logits_of,
)

import stableloss as sl

INF, NAN = np.inf, np.nan
ACTIVATION_DTYPES = [
    pytest.param(np.float32, 3, id="float32-3ulp"),
    pytest.param(np.float64, 3, id="float64-3ulp"),
]
ELEMENTWISE = ("sigmoid", "log_sigmoid")
ALONG_AXIS = ("softmax", "log_softmax")
ALL = (*ELEMENTWISE, *ALONG_AXIS, "logsumexp")


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("case", LOGITS)
@pytest.mark.parametrize(("dtype", "limit"), ACTIVATION_DTYPES)
def test_exact_elementwise(name, case, dtype, limit):
    x = logits_of(case, (20, 21), dtype)
    got = getattr(sl, name)(x)
    assert got.dtype == dtype
    oracle.assert_within(limit, got, getattr(oracle, name)(x), dtype)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize(("dtype", "limit"), ACTIVATION_DTYPES)
def test_exact_over_the_range(name, dtype, limit):
    for highest in (1e-6, 1, 40, 800):
        x = np.linspace(-highest, highest, 401).astype(dtype)
        oracle.assert_within(limit, getattr(sl, name)(x), getattr(oracle, name)(x), dtype)


@pytest.mark.parametrize("case", LOGITS)
@pytest.mark.parametrize("k", CLASS_COUNTS)
@pytest.mark.parametrize(("dtype", "limit"), ACTIVATION_DTYPES)
def test_exact_along_axis(case, k, dtype, limit):
    x = logits_of(case, (max(3, 64 // k), k), dtype)
    oracle.assert_within(limit, sl.softmax(x), oracle.softmax(x), dtype, what="softmax")
    oracle.assert_within(limit, sl.log_softmax(x), oracle.log_softmax(x), dtype, what="log_softmax")
    exact, term = oracle.logsumexp(x)
    oracle.assert_within(limit, sl.logsumexp(x), exact, dtype, term, "logsumexp")


@pytest.mark.parametrize("margin", [0, 5, 17, 40, 90, 400, 740])
@pytest.mark.parametrize("k", [2, 10, 100])
@pytest.mark.parametrize(("dtype", "limit"), ACTIVATION_DTYPES)
def test_log_softmax_near_zero(margin, k, dtype, limit):
    x = logits_of("ordinary", (6, k), dtype)
    x[np.arange(6), np.arange(6) % k] = x.max(axis=1) + dtype(margin)
    oracle.assert_within(limit, sl.log_softmax(x), oracle.log_softmax(x), dtype)


@pytest.mark.parametrize("name", [*ALONG_AXIS, "logsumexp"])
@pytest.mark.parametrize("dtype", DTYPE_ONLY)
@pytest.mark.parametrize("shape", [(7,), (5, 40), (3, 4, 5), (2, 3, 4, 5)], ids=str)
def test_axis(name, dtype, shape):
    function = getattr(sl, name)
    x = logits_of("ordinary", shape, dtype)
    assert_same_bits(function(x), function(x, axis=-1))
    for axis in range(-len(shape), len(shape)):
        last = function(np.ascontiguousarray(np.moveaxis(x, axis, -1)))
        expected = last if name == "logsumexp" else np.moveaxis(last, -1, axis)
        assert_same_bits(function(x, axis=axis), expected)


@pytest.mark.parametrize("name", [*ALONG_AXIS, "logsumexp"])
def test_axis_out_of_range(name):
    for axis in (2, -3):
        with pytest.raises(ValueError, match="axis"):
            getattr(sl, name)(np.zeros((2, 3)), axis=axis)


@pytest.mark.parametrize("name", [*ALONG_AXIS, "logsumexp"])
@pytest.mark.parametrize("axis", [1.0, (0, 1.0), "0"], ids=str)
def test_axis_that_is_no_integer(name, axis):
    with pytest.raises(TypeError, match="axis must be an integer"):
        getattr(sl, name)(np.zeros((2, 3)), axis=axis)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", DTYPE_ONLY)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layout(name, dtype, layout):
    function = getattr(sl, name)
    for shape in [(33, 10), (4, 100), (3, 5, 4)]:
        x = logits_of("ordinary", shape, dtype)
        before = x.copy()
        given = layout(x)
        assert_same_bits(function(given), function(x))
        np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_alignment(name, dtype):
    function = getattr(sl, name)
    x = logits_of("ordinary", (37, 11), dtype)
    expected = function(x)
    for offset in range(64):
        assert_same_bits(function(at_offset(x, offset)), expected)


@pytest.mark.parametrize("name", [*ELEMENTWISE, *ALONG_AXIS])
@pytest.mark.parametrize("dtype", DTYPE_ONLY)
@pytest.mark.parametrize("layout", OUT_LAYOUTS.values(), ids=OUT_LAYOUTS)
def test_out(name, dtype, layout):
    function = getattr(sl, name)
    for shape in [(33, 10), (4, 100), (3, 5, 4)]:
        x = logits_of("ordinary", shape, dtype)
        expected = function(x)
        out = layout(np.zeros_like(x))
        assert function(x, out=out) is out
        assert_same_bits(out, expected)
        buffer = layout(x)
        assert function(buffer, out=buffer) is buffer
        assert_same_bits(buffer, expected)
        buffer = x.copy()
        function(buffer, out=buffer[::-1])
        assert_same_bits(buffer[::-1], expected)


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_out_of_logsumexp(dtype):
    x = logits_of("ordinary", (33, 10), dtype)
    for axis, length in [(0, 10), (1, 33)]:
        out = np.zeros(length, dtype)
        assert sl.logsumexp(x, axis=axis, out=out) is out
        assert_same_bits(out, sl.logsumexp(x, axis=axis))


@pytest.mark.parametrize("name", ALL)
def test_out_that_cannot_be_used(name):
    x = np.zeros((3, 4), np.float32)
    shape = (3,) if name == "logsumexp" else (3, 4)
    read_only = np.zeros(shape, np.float32)
    read_only.flags.writeable = False
    for error, out in [
        (TypeError, np.zeros(shape, np.float64)),
        (TypeError, np.zeros(shape).tolist()),
        (ValueError, np.zeros((4, 3), np.float32)),
        (ValueError, read_only),
    ]:
        before = np.array(out)
        with pytest.raises(error):
            getattr(sl, name)(x, out=out)
        np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "longdouble", list])
def test_other_real_input_counts_as_float64(name, dtype):
    function = getattr(sl, name)
    whole = np.array([[1, 0, 1], [0, 0, 1]])
    given = whole.tolist() if dtype is list else whole.astype(dtype)
    assert_same_bits(function(given), function(whole.astype(np.float64)))


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("length", [*range(1, 34), 65536])
def test_every_half(length, step):
    """Each is read and written as numpy does it, in vectors and beside them, in a row and apart."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    x = every[: 65536 // length * length].reshape(-1, length)[:, ::step]
    for function in (sl.sigmoid, sl.log_sigmoid):
        with np.errstate(over="ignore", under="ignore"):
            expected = function(x.astype(np.float32)).astype(np.float16)
        got = function(x)
        nan = np.isnan(x)
        assert_same_bits(got[~nan], expected[~nan])
        assert np.isnan(got[nan]).all()


@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_float32_rounded_once(name):
    function = getattr(sl, name)
    x = np.random.default_rng(5).normal(scale=4, size=(40, 100)).astype(np.float16)
    x[0, :5] = [np.inf, -np.inf, np.nan, 65504, 6e-8]
    for given in (x, np.asfortranarray(x), x[:, :7]):
        assert_same_bits(function(given), function(given.astype(np.float32)).astype(np.float16))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["complex128", "object", "datetime64[s]"])
def test_wrong_dtype(name, dtype):
    with pytest.raises(TypeError, match=dtype.split("[")[0]):
        getattr(sl, name)(np.ones((2, 3), int).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_scalars(dtype):
    for name in ELEMENTWISE:
        got = getattr(sl, name)(dtype(0.5))
        assert np.shape(got) == ()
        assert got == getattr(sl, name)(np.array([0.5], dtype))[0]
    for name in [*ALONG_AXIS, "logsumexp"]:
        with pytest.raises(ValueError, match=r"axis|dimension|shape"):
            getattr(sl, name)(dtype(0.5))
    assert isinstance(sl.logsumexp(np.zeros(3, dtype)), dtype)


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_empty(dtype):
    for name in ALL:
        shape = (0,) if name == "logsumexp" else (0, 3)
        assert getattr(sl, name)(np.zeros((0, 3), dtype)).shape == shape


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_elementwise_limits(dtype):
    x = np.array([-INF, INF, NAN, 0], dtype)
    np.testing.assert_array_equal(sl.sigmoid(x), [0, 1, NAN, 0.5])
    np.testing.assert_allclose(sl.log_sigmoid(x), [-INF, 0, NAN, -np.log(2)], rtol=1e-7)


@pytest.mark.parametrize(
    ("row", "probability", "logarithm", "total"),
    [
        ([0, -INF, 0], [0.5, 0, 0.5], [-np.log(2), -INF, -np.log(2)], np.log(2)),
        ([INF, 1, INF], [0.5, 0, 0.5], [-np.log(2), -INF, -np.log(2)], INF),
        ([INF, 1, -INF], [1, 0, 0], [0, -INF, -INF], INF),
        ([-INF, -INF, -INF], [NAN] * 3, [NAN] * 3, -INF),
        ([NAN, 0, INF], [NAN] * 3, [NAN] * 3, NAN),
    ],
)
@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_limits_along_axis(dtype, row, probability, logarithm, total):
    for n in (1, 40):
        x = np.tile(np.array(row, dtype), (n, 1))
        np.testing.assert_allclose(sl.softmax(x), np.tile(probability, (n, 1)), rtol=1e-6)
        np.testing.assert_allclose(sl.log_softmax(x), np.tile(logarithm, (n, 1)), rtol=1e-6)
        np.testing.assert_allclose(sl.logsumexp(x), np.full(n, total), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
@pytest.mark.parametrize("k", [2, 10, 40])
def test_position_in_batch(dtype, k):
    x = np.concatenate([logits_of(case, (29, k), dtype) for case in LOGITS])
    for name in ALL:
        function = getattr(sl, name)
        whole = function(x)
        for i in range(len(x)):
            assert_same_bits(function(x[i : i + 1])[0], whole[i])

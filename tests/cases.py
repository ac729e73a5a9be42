"""Inputs that every loss is tested on: logits, memory layouts, and the comparison of bits."""

import bits
import numpy as np
import pytest

# The accuracy that is promised, in ulps of the dtype in the same row.
DTYPES = [
    pytest.param(np.float32, 4, id="float32-4ulp"),
    pytest.param(np.float64, 4, id="float64-4ulp"),
]
DTYPE_ONLY = [pytest.param(np.float32, id="float32"), pytest.param(np.float64, id="float64")]

CLASS_COUNTS = (1, 2, 3, 5, 10, 31, 32, 33, 64, 65, 100, 1000)
ROW_COUNTS = (1, 2, 7, 8, 31, 32, 33, 65, 257)


def generator(*key) -> np.random.Generator:
    """A generator that depends only on the case, not on the order of the tests."""
    return np.random.default_rng(list("/".join(map(str, key)).encode()))


def index_targets(rng, n, k):
    return rng.integers(0, k, n)


def targets_for(stem, index, k):
    """Class indices as the loss takes them: as they are or, where its unit is the element, one-hot."""
    return index if bits.by_rows(stem) else (np.arange(k) == index[..., None]).astype(int)


def soft_targets(rng, n, k, dtype):
    return rng.dirichlet(np.ones(k), n).astype(dtype)


# ---- logits --------------------------------------------------------------------------------------


def _ordinary(rng, shape, dtype):
    return rng.normal(scale=3, size=shape)


def _ties(rng, shape, dtype):
    return rng.integers(-1, 2, shape) * 20.5


def _all_equal(rng, shape, dtype):
    return np.broadcast_to(rng.normal(scale=100, size=(*shape[:-1], 1)), shape)


def _spread(rng, shape, dtype):
    """Differences over the whole range in which exp neither saturates nor underflows."""
    return rng.uniform(-760, 760, shape) if dtype == np.float64 else rng.uniform(-110, 110, shape)


def _offset(rng, shape, dtype):
    largest = 300 if dtype == np.float64 else 30
    sign = rng.choice([-1, 1], (*shape[:-1], 1))
    offset = sign * 10.0 ** rng.uniform(0, largest, (*shape[:-1], 1))
    return (offset + rng.normal(scale=20, size=shape)).astype(dtype)


def _moderate_offset(rng, shape, dtype):
    sign = rng.choice([-1, 1], (*shape[:-1], 1))
    return sign * 2.0 ** rng.uniform(3, 22, (*shape[:-1], 1)) + rng.normal(scale=20, size=shape)


def _magnitudes(rng, shape, dtype):
    """Every order of magnitude in one row, subnormal to nearly the largest finite number."""
    info = np.finfo(dtype)
    exponent = rng.uniform(np.log10(float(info.smallest_subnormal)), np.log10(info.max), shape)
    return rng.choice([-1, 1], shape) * 10.0**exponent


def _subnormal(rng, shape, dtype):
    return rng.choice([-1, 1], shape) * rng.uniform(0, float(np.finfo(dtype).tiny), shape)


def _huge(rng, shape, dtype):
    return rng.uniform(-1, 1, shape) * float(np.finfo(dtype).max)


LOGITS = {
    "ordinary": _ordinary,
    "ties": _ties,
    "all-equal": _all_equal,
    "spread": _spread,
    "offset": _offset,
    "moderate-offset": _moderate_offset,
    "magnitudes": _magnitudes,
    "subnormal": _subnormal,
    "huge": _huge,
}


def logits_of(case, shape, dtype):
    rng = generator(case, shape, np.dtype(dtype).name)
    return np.array(LOGITS[case](rng, shape, dtype), dtype=dtype)


def with_margins(rng, n, k, dtype, lowest, highest):
    """Logits whose target leads (or, for a negative margin, trails) the others by a margin."""
    logits = rng.normal(size=(n, k))
    targets = index_targets(rng, n, k)
    rows = np.arange(n)
    others = np.where(np.arange(k) == targets[:, None], -np.inf, logits).max(axis=1)
    leader = np.where(np.isfinite(others), others, 0.0)
    logits[rows, targets] = leader + np.linspace(lowest, highest, n)
    return logits.astype(dtype), targets


# ---- memory layouts ------------------------------------------------------------------------------


def _f_order(a):
    return np.array(a, order="F")


def _strided(a):
    buffer = np.zeros(tuple(2 * s + 1 for s in a.shape), a.dtype)
    view = buffer[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def _row_gap(a):
    buffer = np.zeros((*a.shape[:-1], a.shape[-1] + 3), a.dtype)
    view = buffer[..., : a.shape[-1]]
    view[...] = a
    return view


def _negative_strides(a):
    backwards = tuple(slice(None, None, -1) for _ in a.shape)
    return a[backwards].copy()[backwards]


def _swapped_dimensions(a):
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(a, 0, a.ndim // 2)), 0, a.ndim // 2)


def _read_only(a):
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def _byte_swapped(a):
    return a.astype(a.dtype.newbyteorder())


def at_offset(a, offset):
    """A copy of `a` whose data starts `offset` bytes after a multiple of 64."""
    raw = np.zeros(a.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    view = raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _misaligned(a):
    return at_offset(a, 1)


LAYOUTS = {
    "f-order": _f_order,
    "strided": _strided,
    "row-gap": _row_gap,
    "negative-strides": _negative_strides,
    "swapped-dimensions": _swapped_dimensions,
    "read-only": _read_only,
    "byte-swapped": _byte_swapped,
    "misaligned": _misaligned,
}
OUT_LAYOUTS = {
    name: LAYOUTS[name]
    for name in (
        "f-order",
        "strided",
        "row-gap",
        "negative-strides",
        "swapped-dimensions",
        "misaligned",
    )
}


# ---- bits ----------------------------------------------------------------------------------------


def assert_same_bits(got, expected):
    """Equal dtype, shape and bits; one NaN is as good as another."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    bits = np.dtype(f"u{got.dtype.itemsize}")
    both_nan = np.isnan(got) & np.isnan(expected)
    a = np.where(both_nan, 0, np.ascontiguousarray(got).view(bits).reshape(got.shape))
    b = np.where(both_nan, 0, np.ascontiguousarray(expected).view(bits).reshape(got.shape))
    differ = np.argwhere(a != b)
    assert not len(differ), (
        f"{len(differ)} of {a.size} differ, first at {tuple(map(int, differ[0]))}: "
        f"{got[tuple(differ[0])]!r} != {expected[tuple(differ[0])]!r}"
    )


def assert_all_same_bits(got, expected, part=..., of=...):
    """As many arrays in both, `part` of each of the first with the bits of `of` of its counterpart."""
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(np.asarray(a)[part], np.asarray(b)[of])

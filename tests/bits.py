"""The bits of the results on a fixed set of inputs: their SHA-256 is kept in bits.json.

    python tests/bits.py             compare with bits.json; needs nothing but the package
    python tests/bits.py --update    rewrite it
    python tests/bits.py --save F    write the results themselves to F.npz

The same on every level with fused multiply-add, x86-64 or not. The inputs come from integers, so that
they are the same whatever numpy's random distributions do.
"""

import argparse
import hashlib
import inspect
import json
import platform
import sys
from pathlib import Path

import numpy as np

import stableloss as sl
from stableloss import activations, losses

FILE = Path(__file__).with_name("bits.json")
# the names of the instances in the order of their definition: every list of losses follows from the package
LOSSES = tuple(
    name for name, value in vars(losses).items() if name in losses.__all__ and hasattr(type(value), "_stem")
)
ACTIVATIONS = tuple(name for name in vars(activations) if name in activations.__all__)
DTYPES = ("float32", "float64")
# rows x classes, on both sides of each change of method: rows as lanes, one row, one row in pieces
SHAPES = ((500, 3), (300, 10), (100, 40), (40, 200), (3, 9000))
MANY = (5000, 10)
# Of functions of one logit, every STRIDE-th of all float32 numbers, eight million: prime, so that they
# have both signs, every exponent and fractions of every ending. As many as Bochs takes ten minutes for.
STRIDE = 521
CHUNK = 1 << 18
# each with a way of its own through the kernels of the losses that take it
OPTIONS = {
    "label_smoothing": {"label_smoothing": 0.1},
    "logit_scale": {"logit_scale": 0.7},
    "softcap": {"softcap": 30.0},
    "z_loss": {"z_loss": 0.01},
    "softcap, z_loss": {"softcap": 30.0, "z_loss": 0.01},
    "focal_gamma 2": {"focal_gamma": 2.0},
    "focal_gamma 0.5": {"focal_gamma": 0.5},
    "focal_gamma, label_smoothing": {"focal_gamma": 2.0, "label_smoothing": 0.1},
    "from_probabilities": {"from_probabilities": True},
    "from_probabilities, focal_gamma": {"from_probabilities": True, "focal_gamma": 2.0},
}

EDGES = """0 -0 inf -inf nan 1 -1 0.5 -0.5 1e30 -1e30 0x1p-149 -0x1p-149 0x1p-140 0x1.fffffep+127
    -0x1.fffffep+127 0x1p-126 0x1p-1022 0x1p-1074 -0x1p-1074 0x1.fffffffffffffp+1023 0x1.62e43p-1 17
    -0x1.5d589ep+6 -0x1.6232bdd7abcd2p+9 88.5 -88.5 103.9 -103.9 709.5 -709.5 745 -745 37 -37 256 2048"""


def fused():
    """Whether the level has fused multiply-add: only base on x86-64 does not."""
    return sl.cpu_level() != "base" or platform.machine().lower() not in ("x86_64", "amd64")


def by_rows(name):
    """Whether a loss is one per row (a target may be a class index), or an activation along an axis."""
    value = getattr(sl, name)
    return type(value)._rowwise if name in LOSSES else "axis" in inspect.signature(value).parameters


def target_max(stem):
    """Up to where the targets of a loss go that are no class indices."""
    return type(getattr(sl, stem))._target_max


def has_statistics(stem):
    """Whether the activations of a loss are probabilities."""
    return by_rows(stem) or target_max(stem) <= 1


# ---- inputs --------------------------------------------------------------------------------------


def integers(key, shape):
    """Uniform 64-bit integers: the generator splitmix64 from a start that the key gives."""
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    count = int(np.prod(shape))
    z = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).reshape(shape)


def fractions(key, shape, dtype):
    """Multiples of 2**-24 or 2**-53 in [0, 1)."""
    digits = 24 if dtype == "float32" else 53
    return ((integers(key, shape) >> np.uint64(64 - digits)).astype(np.float64) * 2.0**-digits).astype(dtype)


def ordinary(key, shape, dtype):
    return (fractions(key, shape, dtype) - np.dtype(dtype).type(0.5)) * np.dtype(dtype).type(16)


def spread(key, shape, dtype):
    """Over the whole range in which exp neither saturates nor underflows."""
    return ordinary(key, shape, dtype) * np.dtype(dtype).type(14 if dtype == "float32" else 95)


def offset(key, shape, dtype):
    return ordinary(key, shape, dtype) + np.dtype(dtype).type(4096)


def confident(key, shape, dtype):
    """One class far ahead."""
    logits = ordinary(key, shape, dtype)
    logits[np.arange(shape[0]), np.arange(shape[0]) % shape[1]] += np.dtype(dtype).type(30)
    return logits


def patterns(key, shape, dtype):
    """Bit patterns of finite numbers."""
    bits = integers(key, shape)
    if dtype == "float32":
        logits = (bits >> np.uint64(32)).astype(np.uint32).view(np.float32)
    else:
        logits = bits.view(np.float64)
    return np.where(np.isfinite(logits), logits, np.dtype(dtype).type(1))


def edges(key, shape, dtype):
    with np.errstate(over="ignore", under="ignore"):
        values = np.array([float.fromhex(word) for word in EDGES.split()]).astype(dtype)
    picked = values[(integers(key, shape) >> np.uint64(32)).astype(np.int64) % len(values)]
    # few of them in a row, or nearly all rows would hold a NaN
    rare = integers(key + " where", shape) >> np.uint64(32) < np.uint64(2**32 // shape[1])
    return np.where(rare, picked, ordinary(key, shape, dtype))


KINDS = (ordinary, spread, confident, offset, patterns, edges)


def batch(shape, dtype, kinds=KINDS):
    """Logits whose rows are of every kind in turn."""
    logits = np.empty(shape, dtype)
    for i, kind in enumerate(kinds):
        rows = kind(f"{kind.__name__} {shape}", shape, dtype)
        logits[i :: len(kinds)] = rows[i :: len(kinds)]
    return logits


def index_targets(shape):
    return (integers(f"index {shape}", shape[:1]) >> np.uint64(32)).astype(np.int64) % shape[1]


def hard_targets(stem, shape):
    if by_rows(stem):
        return index_targets(shape)
    return (integers(f"hard {shape}", shape) >> np.uint64(63)).astype(np.uint8)


def soft_targets(stem, shape, dtype):
    """Numbers in [0, 1); of a loss per row, with a sum of about 1."""
    scale = 2.0 ** (1 - shape[1].bit_length()) if by_rows(stem) else 1.0
    return fractions(f"soft {shape}", shape, dtype) * np.dtype(dtype).type(scale)


# ---- results -------------------------------------------------------------------------------------


def loss_name(stem, dtype, shape, kind, quantity):
    return f"{stem} {dtype} {shape[0]}x{shape[1]} {kind} {quantity}"


def activation_name(name, dtype, shape):
    return f"{name} {dtype} {shape[0]}x{shape[1]}"


def loss_arguments(shapes=SHAPES):
    """Stem, dtype, shape, kind of target, logits and targets of every unreduced call."""
    for stem in LOSSES:
        for dtype in DTYPES:
            for shape in shapes:
                logits = batch(shape, dtype)
                yield stem, dtype, shape, "hard", logits, hard_targets(stem, shape)
                yield stem, dtype, shape, "soft", logits, soft_targets(stem, shape, dtype)


def results_with_options():
    """Name and array of every result with options, from each loss that takes them."""
    for stem, dtype, shape, kind, logits, targets in loss_arguments():
        cls = type(getattr(sl, stem))
        for name, options in OPTIONS.items():
            if kind == "soft" or not options.keys() <= inspect.signature(cls).parameters.keys():
                continue
            given = soft_targets(stem, shape, dtype) if "from_probabilities" in options else logits
            value, grad = cls(reduction="none", **options).value_and_grad(given, targets)
            yield loss_name(stem, dtype, shape, name, "loss"), value
            yield loss_name(stem, dtype, shape, name, "grad"), grad


def results():
    """Name and array of every result but the strided."""
    yield from results_with_options()
    for stem, dtype, shape, kind, logits, targets in loss_arguments():
        loss = type(getattr(sl, stem))(reduction="none")
        value, grad = loss.value_and_grad(logits, targets)
        hess = loss.grad_and_hess(logits, targets)[1]
        for quantity, array in (("loss", value), ("grad", grad), ("hess", hess)):
            yield loss_name(stem, dtype, shape, kind, quantity), array
    for dtype in DTYPES:
        logits = batch(MANY, dtype, (ordinary, spread, confident, offset))
        weight = ((integers("weight", MANY[:1]) >> np.uint64(60)) / np.float64(4)).astype(dtype)
        for stem in LOSSES:
            loss = getattr(sl, stem)
            value, grad = loss.value_and_grad(logits, hard_targets(stem, MANY), sample_weight=weight)
            yield f"{stem} {dtype} weighted mean", np.array(value)
            yield f"{stem} {dtype} weighted mean, grad", grad
        for shape in SHAPES:
            for name in ACTIVATIONS:
                value = getattr(sl, name)(batch(shape, dtype))
                yield activation_name(name, dtype, shape), value


def strided(logits):
    """Name and array of every result of the functions of one logit; a row has a second class, 0."""
    for stem in LOSSES:
        loss = type(getattr(sl, stem))(reduction="none")
        rows = np.stack([logits, np.zeros_like(logits)], axis=1) if by_rows(stem) else logits
        for target in (0, 1):
            targets = np.full(logits.shape, target)
            value, grad = loss.value_and_grad(rows, targets)
            hess = loss.grad_and_hess(rows, targets)[1]
            for quantity, array in (("loss", value), ("grad", grad), ("hess", hess)):
                yield f"{stem} float32 strided, target {target} {quantity}", array
    for name in ACTIVATIONS:
        if not by_rows(name):
            yield f"{name} float32 strided", getattr(sl, name)(logits)


def numbers(array):
    """The bytes that are hashed: little-endian, and one NaN is as good as another."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return np.where(np.isnan(array), array.dtype.type(np.nan), array).tobytes()


def table():
    """Name and SHA-256 of every result."""
    hashes = {name: hashlib.sha256(numbers(array)) for name, array in results()}
    for start in range(0, 1 << 32, STRIDE * CHUNK):
        stop = min(start + STRIDE * CHUNK, 1 << 32)
        logits = np.arange(start, stop, STRIDE).astype(np.uint32).view(np.float32)
        for name, array in strided(logits):
            hashes.setdefault(name, hashlib.sha256()).update(numbers(array))
    return {name: sha256.hexdigest() for name, sha256 in hashes.items()}


def read():
    return json.loads(FILE.read_text(encoding="utf-8"))


def write():
    FILE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description="Compare the bits of the results with bits.json.")
    parser.add_argument("--update", action="store_true", help="rewrite bits.json")
    parser.add_argument("--save", metavar="FILE", help="write the results themselves, and compare nothing")
    arguments = parser.parse_args()
    if arguments.save:
        np.savez(arguments.save, **dict(results()))
        return
    if arguments.update:
        write()
    expected, got = read(), table()
    differ = [name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)]
    same = len(expected.keys() - differ)
    print(f"level {sl.cpu_level()}: {same} of {len(expected)} results have the bits of the table")
    for name in sorted(differ):
        print("differs:", name)
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()

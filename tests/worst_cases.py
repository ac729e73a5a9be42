"""The worst errors found, in ulps, and the inputs that reach them: worst_cases.json.

The record is written by the sweeps of test_exhaustive.py with `--update-records`. Whatever states an
error of the package, its documentation included, is compared with it by test_worst_cases.py.
"""

import json
import math
from pathlib import Path

import bits
import gmpy2
import numpy as np
import oracle

import stableloss as sl

FILE = Path(__file__).with_name("worst_cases.json")
ACTIVATIONS = ("sigmoid", "log_sigmoid", "softmax", "log_softmax", "logsumexp")
QUANTITIES = ("loss", "grad", "hess")

# The bounds: 4 ulp for losses and their derivatives and 3 for activations, and where float64 takes more.
# float32 goes through float64 there, which float64 cannot.
FLOAT64_LIMITS = {
    "softmax_ce": {"soft loss": 5, "soft grad": 5, "soft hess": 5},
    "sigmoid_mse": {"grad": 5, "hess": 8, "soft grad": 5, "soft hess": 8},
    "softmax_mse": {"loss": 5, "grad": 7, "hess": 8, "soft loss": 5, "soft grad": 7, "soft hess": 8},
}


def limit(function, dtype, quantity):
    usual = 3 if function in ACTIVATIONS else 4
    return FLOAT64_LIMITS.get(function, {}).get(quantity, usual) if dtype == np.float64 else usual


def rounded_up(ulps):
    return math.ceil(ulps * 1000) / 1000


class Worst:
    """The largest error met per quantity, and where."""

    def __init__(self):
        self.found = {}

    def update(self, quantity, errors, logits, targets):
        """`targets` is one for all logits, or one for each."""
        i = int(errors.argmax())
        # a NaN, which argmax finds before any number, is no error below the largest
        if not errors[i] <= self.found.get(quantity, (-1.0,))[0]:
            target = targets[i] if np.ndim(targets) else targets
            self.found[quantity] = (float(errors[i]), logits[i], target)

    def assert_within_limits(self, function, dtype):
        for quantity, (error, logits, target) in self.found.items():
            text = f"{function} {np.dtype(dtype)} {quantity}: {error:.3f} ulp at {encode(logits)}, {target}"
            assert error <= limit(function, dtype, quantity), text

    def __str__(self):
        return "".join(
            f"  {quantity}: {error:.4f} ulp at {np.array2string(np.asarray(logits), threshold=4)}"
            f" = {encode(np.ravel(logits)[:4])}, target {np.array2string(np.asarray(target), threshold=4)}\n"
            for quantity, (error, logits, target) in self.found.items()
        )


# ---- one input, measured -------------------------------------------------------------------------


def bits_needed(logits):
    """The oracle's formulas lose two bits for every factor of 2 between probabilities. What is left is
    several times float64's precision."""
    spread = float(np.ptp(np.clip(logits, -1500, 1500).astype(np.float64), axis=-1).max())
    return oracle.LEAST_BITS + math.ceil(3 * spread)


def errors(function, logits, targets):
    """Errors of every quantity, the largest of each row, for rows of finite logits."""
    bits = oracle.BITS if function.startswith(("sigmoid", "log_sigmoid")) else bits_needed(logits)
    with gmpy2.context(gmpy2.get_context(), precision=min(bits, oracle.BITS)):
        if function in ACTIVATIONS:
            exact, term = getattr(oracle, function)(logits), None
            if function == "logsumexp":
                exact, term = exact
            got = {"value": getattr(sl, function)(logits)}
            expected = {"value": (exact, term)}
        else:
            loss = type(getattr(sl, function))(reduction="none")
            exact = oracle.LOSSES[function](logits, targets)
            value, grad = loss.value_and_grad(logits, targets)
            got = dict(zip(QUANTITIES, (value, *loss.grad_and_hess(logits, targets)), strict=True))
            assert (grad == got["grad"]).all()
            expected = {q: (getattr(exact, q), getattr(exact, f"{q}_term")) for q in QUANTITIES}
        found = {}
        for quantity, (value, term) in expected.items():
            each = oracle.ulp_error(got[quantity], value, logits.dtype, term)
            found[quantity] = each.reshape(len(logits), -1).max(axis=1)
        return found


# ---- the record ----------------------------------------------------------------------------------


def encode(values):
    """Hexadecimal, of one number or of a row."""
    if values is None or isinstance(values, int):
        return values
    values = np.asarray(values)
    if values.dtype.kind in "iu":
        return int(values)
    return [float(v).hex() for v in values] if values.ndim else float(values).hex()


def decode(values):
    if isinstance(values, list):
        return [float.fromhex(v) for v in values]
    return float.fromhex(values) if isinstance(values, str) else values


def read():
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def write(record):
    FILE.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def entries():
    """Function, dtype, quantity and entry of everything recorded."""
    for function, dtypes in read().items():
        for dtype, quantities in dtypes.items():
            for quantity, entry in quantities.items():
                yield function, dtype, quantity, entry


def confirm(function, dtype, worst, update):
    """What was found is within the bounds, and not worse than what is recorded."""
    worst.assert_within_limits(function, dtype)
    if not bits.fused():
        return
    record = read()
    known = record.setdefault(function, {}).setdefault(np.dtype(dtype).name, {})
    new = {
        quantity: {"ulp": rounded_up(error), "logits": encode(logits), "target": encode(target)}
        for quantity, (error, logits, target) in worst.found.items()
        if rounded_up(error) > known.get(quantity, {"ulp": -1})["ulp"]
    }
    if update:
        known.update(new)
        write(record)
    else:
        assert not new, f"worse than the record; --update-records takes it up: {new}"

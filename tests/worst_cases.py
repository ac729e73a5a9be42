"""The worst errors found, in ulps, and the inputs that reach them: worst_cases.json.

The record is written by the sweeps of test_exhaustive.py with `--update-records`. The kernels'
comments, the docstrings and docs/accuracy.md state its errors; `python tests/worst_cases.py` writes them
there, and test_worst_cases.py compares.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import bits
import gmpy2
import numpy as np
import oracle

import stableloss as sl

FILE = Path(__file__).with_name("worst_cases.json")
QUANTITIES = ("loss", "grad", "hess")


def limit(function):
    """In ulps, with fused multiply-add."""
    return 3 if function in bits.ACTIVATIONS else 4


def limit_here(function):
    """That of the CPU level in use: one more without fused multiply-add."""
    return limit(function) + (not bits.fused())


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
            assert error <= limit_here(function), text

    def __str__(self):
        return "".join(
            f"  {quantity}: {error:.4f} ulp at {np.array2string(np.asarray(logits), threshold=4)}"
            f" = {encode(np.ravel(logits)[:4])}, target {np.array2string(np.asarray(target), threshold=4)}\n"
            for quantity, (error, logits, target) in self.found.items()
        )


# ---- one input, measured -------------------------------------------------------------------------


def spreads(logits):
    """Of each row, and of one logit from the other class's 0."""
    logits = np.clip(logits.astype(np.float64), -1e300, 1e300)
    return abs(logits[:, 0]) if logits.shape[1] == 1 else np.ptp(logits, axis=1)


def bits_needed(logits):
    """The oracle's formulas lose two bits for every factor of 2 between probabilities. What is left is
    several times float64's precision."""
    return min(oracle.LEAST_BITS + math.ceil(3 * min(spreads(logits).max(), 1000)), oracle.BITS)


def errors(function, logits, targets):
    """Errors of every quantity, the largest of each row, for rows of finite logits."""
    with gmpy2.context(gmpy2.get_context(), precision=bits_needed(logits)):
        if function in bits.ACTIVATIONS:
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
        return int(values.item())
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
    record = read()
    known = record.setdefault(function, {}).setdefault(np.dtype(dtype).name, {})
    new = {
        quantity: {"ulp": rounded_up(error), "logits": encode(logits), "target": encode(target)}
        for quantity, (error, logits, target) in worst.found.items()
        if rounded_up(error) > known.get(quantity, {"ulp": -1})["ulp"]
    }
    if update and bits.fused():
        known.update(new)
        write(record)
    worst.assert_within_limits(function, dtype)
    assert update or not bits.fused() or not new, f"worse than the record; see --update-records: {new}"


# ---- where the package states its errors ---------------------------------------------------------

ROOT = FILE.parent.parent
CLASSES = {stem: type(getattr(sl, stem)).__name__ for stem in bits.LOSSES}
DTYPES = ("float32", "float64")
KINDS = {"hard": "", "soft": "soft "}


@dataclass(frozen=True)
class Statement:
    """A text, the file that holds it, and the pattern whose group stands in its place."""

    path: Path
    pattern: str
    text: str

    def _place(self, content):
        place = re.search(self.pattern, content, re.DOTALL)
        assert place, f"{self.path.name} has no place for:\n{self.text}"
        return place

    def check(self):
        assert self._place(self.path.read_text(encoding="utf-8")).group(1) == self.text

    def write(self):
        content = self.path.read_text(encoding="utf-8")
        start, stop = self._place(content).span(1)
        self.path.write_text(content[:start] + self.text + content[stop:], encoding="utf-8")


def _cell(record, function, dtype, quantity):
    """The largest error found, and the bound in parentheses."""
    ulps = math.ceil(record[function][dtype][quantity]["ulp"] * 100) / 100
    return f"{ulps:.2f} ({limit(function)})"


def _markdown(head, rows):
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("|  |", "| |")


def _page(record):
    loss_rows = [
        [f"`{stem}`" + ("" if kind == "hard" else ", soft targets")]
        + [_cell(record, stem, dtype, KINDS[kind] + quantity) for dtype in DTYPES for quantity in QUANTITIES]
        for stem in CLASSES
        for kind in KINDS
    ]
    names = ["loss", "gradient", "Hessian"]
    head = ["", *(f"{dtype} {name}" for dtype in DTYPES for name in names)]
    activations = [
        [f"`{name}`", *(_cell(record, name, dtype, "value") for dtype in DTYPES)] for name in bits.ACTIVATIONS
    ]
    tables = _markdown(head, loss_rows) + "\n" + _markdown(["", *DTYPES], activations)
    begin, end = "<!-- accuracy:begin -->\n", "<!-- accuracy:end -->\n"
    return Statement(ROOT / "docs" / "accuracy.md", f"{begin}(.*){end}", tables)


def _table(record, function):
    """A table in the paragraph on accuracy of a docstring's Notes."""
    if function in bits.ACTIVATIONS:
        head = ["dtype", "error"]
        rows = [[dtype, _cell(record, function, dtype, "value")] for dtype in DTYPES]
    else:
        head = ["dtype", "targets", "loss", "gradient", "Hessian"]
        rows = [
            [dtype, kind, *(_cell(record, function, dtype, prefix + quantity) for quantity in QUANTITIES)]
            for dtype in DTYPES
            for kind, prefix in KINDS.items()
        ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["=" * width for width in widths]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (rule, head, rule, *rows, rule)]
    name, module = CLASSES.get(function, function), "losses" if function in CLASSES else "activations"
    line_of_equals = r"    =[= ]+\n"
    pattern = (
        rf"\n(?:class|def) {name}\(.*?\n    Accuracy: .*?"
        rf"({line_of_equals}[^=]+{line_of_equals}[^=]+{line_of_equals})"
    )
    path = ROOT / "stableloss" / f"{module}.py"
    return Statement(path, pattern, "".join(f"    {line}\n" for line in lines))


def _hex(value):
    return re.sub(r"[.]?0*p", "p", float(value).hex())


def _where(entry):
    """The input of a recorded error, where a line holds it."""
    logits, target = np.atleast_1d(decode(entry["logits"])), decode(entry["target"])
    if len(logits) > 2 or (len(logits) > 1 and isinstance(target, list)):
        return f"in a row of {len(logits)}"
    place = ", ".join(map(_hex, logits))
    if target is None:
        return f"at {place}"
    target = target[0] if isinstance(target, list) else target
    return f"at {place}, target {_hex(target) if isinstance(target, float) else target}"


def _comment(record, function, stem):
    """Above the entry of a kernel file."""
    lines = [
        f"#   {dtype} {quantity} {entry['ulp']:.3f} {_where(entry)}\n"
        for dtype, quantities in sorted(record[function].items())
        for quantity, entry in sorted(quantities.items())
    ]
    head = "# Largest errors found, in ulps; tests/worst_cases.json holds the inputs:\n"
    path = ROOT / "stableloss" / "_kernels" / f"{stem}.pxi"
    pattern = rf"(# Largest errors found[^\n]*\n(?:#[^\n]*\n)*)(?:def )?{function}\b"
    return Statement(path, pattern, head + "".join(lines))


def statements():
    """Every place that states an error."""
    record = read()
    yield _page(record)
    for function in (*CLASSES, *bits.ACTIVATIONS):
        yield _comment(record, function, function if function in CLASSES else "activations")
        yield _table(record, function)


if __name__ == "__main__":
    # after --update-records
    for statement in statements():
        statement.write()

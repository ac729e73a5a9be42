"""Counts instructions per logit with callgrind: a performance guard that load does not disturb.

    python bench/instructions.py             count, and store as bench/results/instructions-<level>.csv
    python bench/instructions.py --check     count, and fail where a stored count has changed

Needs valgrind on Linux. It does not know AVX-512, so that level v3 is counted unless STABLELOSS_CPU names
another one. The count is that of the whole Python call. All cases run in one process under callgrind, which
starts a new profile whenever `os.sched_yield` is called; the count of a call is what 2N calls take beyond
N calls, so that the interpreter's start and everything else that happens once cancel out.
"""

import argparse
import functools
import gc
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness

LEVEL = os.environ.get("STABLELOSS_CPU", "v3")

# Six runs, from other directories, with other hash seeds and environments, agreed within 0.4 % in
# the smallest calls and 0.1 % elsewhere.
TOLERANCE = 0.01
SMALL_CALLS, LARGE_CALLS = 50, 2
SMALL_LOGITS = 2048

COLUMNS = (
    "loss", "dtype", "n", "k", "targets", "layout", "result", "instructions", "per_logit", "level",
    "compiler", "python_version", "numpy_version", "stableloss_version",
)  # fmt: skip
KEY = COLUMNS[:7]
VERSIONS = COLUMNS[9:]
DUMP = "sched_yield"


@dataclass(frozen=True)
class Case:
    """One call: `layout` is that of the logits and of `out`; `result` what is asked for and where it goes."""

    loss: str
    dtype: str
    shape: tuple
    targets: str = "indices"
    layout: str = "C"
    result: str = "out"

    @property
    def k(self):
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def key(self):
        n = str(self.shape[0])
        return (self.loss, self.dtype, n, str(self.k), self.targets, self.layout, self.result)

    @property
    def logits(self):
        return self.shape[0] * self.k

    @property
    def calls(self):
        return SMALL_CALLS if self.logits <= SMALL_LOGITS else LARGE_CALLS


def small(loss, shape, targets):
    return Case(loss, "float32", shape, targets, result="new array")


CASES = (
    *(small("softmax_ce", shape, "indices") for shape in ((1, 3), (1, 10), (32, 10))),
    small("softmax_ce", (32, 10), "soft"),
    small("softmax_mse", (32, 10), "indices"),
    *(small(loss, (32,), "float") for loss in ("sigmoid_bce", "sigmoid_mse")),
    *(
        Case(loss, dtype, shape, targets)
        for loss in ("softmax_ce", "softmax_mse")
        for dtype in ("float32", "float64")
        for shape in ((1024, 10), (128, 100), (16, 1000), (1, 32000))
        for targets in ("indices", "soft")
    ),
    *(
        Case("softmax_ce", "float32", shape, layout=layout)
        for shape in ((1024, 10), (16, 1000))
        for layout in ("strided", "F")
    ),
    *(
        Case(loss, dtype, (16384,), targets)
        for loss in ("sigmoid_bce", "sigmoid_mse")
        for dtype in ("float32", "float64")
        for targets in ("float", "bool")
    ),
    *(Case("sigmoid_bce", "float32", (128, 128), "float", layout) for layout in ("strided", "F")),
    *(Case("softmax_ce", "float32", shape, result="loss only") for shape in ((1024, 10), (16, 1000))),
    Case("sigmoid_bce", "float32", (16384,), "float", result="loss only"),
)


def arranged(array, layout):
    import numpy as np

    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        wide = np.empty((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        view = wide[..., ::2]
        view[...] = array
        return view
    return array


def prepare(case):
    """A callable without arguments that makes the call."""
    import numpy as np

    import stableloss

    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal(case.shape, dtype=case.dtype)
    if case.targets == "indices":
        targets = rng.integers(0, case.k, case.shape[0])
    elif case.targets == "soft":
        targets = rng.random(case.shape, dtype=case.dtype)
        targets /= targets.sum(axis=1, keepdims=True)
    else:
        targets = rng.integers(0, 2, case.shape).astype(bool if case.targets == "bool" else case.dtype)
    logits = arranged(logits, case.layout)
    loss = getattr(stableloss, case.loss)
    if case.result == "loss only":
        return functools.partial(loss, logits, targets)
    if case.result == "new array":
        return functools.partial(loss.value_and_grad, logits, targets)
    return functools.partial(loss.value_and_grad, logits, targets, out=np.empty_like(logits))


def run_cases():
    """In the process under callgrind: three profiles per case, of N calls to warm up, N and 2N."""
    gc.disable()
    for case in CASES:
        call = prepare(case)
        for calls in (case.calls, case.calls, 2 * case.calls):
            os.sched_yield()
            for _ in range(calls):
                call()
        os.sched_yield()


def profiled_totals():
    """Instructions in each profile, in order."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        "STABLELOSS_NUM_THREADS": "1",
        "STABLELOSS_CPU": LEVEL,
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind", "--tool=callgrind", f"--dump-before={DUMP}", f"--callgrind-out-file={folder}/part",
            sys.executable, __file__, "--run-cases",
        ]  # fmt: skip
        subprocess.run(command, env=environment, check=True, stderr=subprocess.PIPE)
        parts = sorted(Path(folder).glob("part.*"), key=lambda path: int(path.suffix[1:]))
        return [int(re.search(r"^totals: (\d+)", part.read_text(), re.MULTILINE)[1]) for part in parts]


def compiler():
    """What the kernels were compiled with, as the compiler noted it in the extension."""
    from importlib.util import find_spec

    binary = Path(find_spec(f"stableloss._{LEVEL}").origin).read_bytes()
    found = re.search(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", binary)
    return found[0].decode() if found else ""


def count():
    totals = profiled_totals()
    versions = {
        "level": LEVEL,
        "compiler": compiler(),
        "python_version": platform.python_version(),
        "numpy_version": importlib.metadata.version("numpy"),
        "stableloss_version": importlib.metadata.version("stableloss"),
    }
    for i, case in enumerate(CASES):
        # each case: the code up to its first profile, then the profiles of N, N and 2N calls
        once, twice = totals[4 * i + 2 : 4 * i + 4]
        instructions = (twice - once) / case.calls
        yield {
            **dict(zip(KEY, case.key, strict=True)),
            "instructions": f"{instructions:.0f}",
            "per_logit": f"{instructions / case.logits:.4g}",
            **versions,
        }


def compare(stored, counted):
    """Prints every case that has changed; returns whether all stayed within the tolerance."""
    stored = {tuple(row[name] for name in KEY): row for row in stored}
    good = True
    for row in counted:
        before = stored.pop(tuple(row[name] for name in KEY), None)
        label = " ".join(row[name] for name in KEY)
        if before is None:
            good = False
            print(f"{label}: {row['per_logit']} per logit, not stored")
            continue
        change = int(row["instructions"]) / int(before["instructions"]) - 1
        if abs(change) > TOLERANCE:
            good = False
            print(f"{label}: {before['per_logit']} -> {row['per_logit']} per logit ({change:+.1%})")
    for key in stored:
        good = False
        print(f"{' '.join(key)}: stored, but no longer counted")
    return good


def warn_of_versions(stored, counted):
    for name in VERSIONS:
        before, now = stored[0][name], counted[0][name]
        if before != now:
            print(f"{name}: the stored counts are for {before}, these for {now}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the stored counts")
    parser.add_argument("--run-cases", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_cases:
        run_cases()
        return
    path = harness.RESULTS / f"instructions-{LEVEL}.csv"
    counted = list(count())
    if options.check:
        stored = harness.read_rows(path)
        warn_of_versions(stored, counted)
        if not compare(stored, counted):
            sys.exit(1)
        print(f"{len(counted)} cases within {TOLERANCE:.0%} of the stored counts")
        return
    harness.write_rows(path, COLUMNS, counted)
    for row in counted:
        print(*(row[name] for name in KEY), row["instructions"], row["per_logit"], sep="\t")


if __name__ == "__main__":
    main()

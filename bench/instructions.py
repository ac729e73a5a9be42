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
import importlib.util
import itertools
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import harness  # before numpy
import numpy as np
from cases import KEY as CASE_KEY
from cases import Case

LEVEL = os.environ.get("STABLELOSS_CPU", "v3")

# Six runs, from other directories, with other hash seeds and environments, agreed within 0.4 % in
# the smallest calls and 0.1 % elsewhere.
TOLERANCE = 0.01
KEY = (*CASE_KEY, "result")
VERSIONS = ("level", "compiler", "python_version", "numpy_version", "stableloss_version")
COLUMNS = (*KEY, "instructions", "per_logit", *VERSIONS)


def cases():
    """Every case, and what is asked for: `out`, the gradient in an array of the caller's."""
    single = functools.partial(Case, "softmax_ce", "float32")
    for shape in ((1, 3), (1, 10), (32, 10)):
        yield single(shape), "new array"
    for case in (
        single((32, 10), "soft"),
        Case("softmax_mse", "float32", (32, 10)),
        Case("sigmoid_bce", "float32", (32,), "float"),
        Case("sigmoid_mse", "float32", (32,), "float"),
    ):
        yield case, "new array"
    for loss, dtype in itertools.product(("softmax_ce", "softmax_mse"), ("float32", "float64")):
        for shape in ((1024, 10), (128, 100), (16, 1000), (1, 32000)):
            for targets in ("indices", "soft"):
                yield Case(loss, dtype, shape, targets), "out"
    for loss, dtype in itertools.product(("sigmoid_bce", "sigmoid_mse"), ("float32", "float64")):
        for targets in ("float", "bool"):
            yield Case(loss, dtype, (16384,), targets), "out"
    for layout in ("strided", "F"):
        yield single((1024, 10), layout=layout), "out"
        yield single((16, 1000), layout=layout), "out"
        yield Case("sigmoid_bce", "float32", (128, 128), "float", layout), "out"
    for case in (
        single((1024, 10)),
        single((16, 1000)),
        Case("sigmoid_bce", "float32", (16384,), "float"),
    ):
        yield case, "loss only"


def calls(case):
    """How many calls to count, about the same work for each case."""
    return 50 if case.logits <= 2048 else 2


def prepare(case, result):
    logits, targets = case.data()
    if result == "loss only":
        return functools.partial(case.function, logits, targets)
    options = {"out": np.empty_like(logits)} if result == "out" else {}
    return functools.partial(case.function.value_and_grad, logits, targets, **options)


def run_cases():
    """In the process under callgrind: three profiles per case, of N calls to warm up, N and 2N."""
    gc.disable()
    for case, result in cases():
        call, once = prepare(case, result), calls(case)
        for repeats in (once, once, 2 * once):
            os.sched_yield()
            for _ in range(repeats):
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
            "valgrind", "-q", "--tool=callgrind", "--dump-before=sched_yield",
            f"--callgrind-out-file={folder}/part", sys.executable, __file__, "--run-cases",
        ]  # fmt: skip
        subprocess.run(command, env=environment, check=True)
        parts = sorted(Path(folder).glob("part.*"), key=lambda path: int(path.suffix[1:]))
        return [int(re.search(r"^totals: (\d+)", part.read_text(), re.MULTILINE)[1]) for part in parts]


def compiler():
    """What the kernels were compiled with, as the compiler noted it in the extension."""
    binary = Path(importlib.util.find_spec(f"stableloss._{LEVEL}").origin).read_bytes()
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
    for i, (case, result) in enumerate(cases()):
        # each case: the code up to its first profile, then the profiles of N, N and 2N calls
        once, twice = totals[4 * i + 2 : 4 * i + 4]
        instructions = (twice - once) / calls(case)
        yield {
            **dict(zip(KEY, (*case.key, result), strict=True)),
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
    stored = harness.read_rows(path)
    if options.check and not stored:
        parser.error(f"{path} has no counts to compare with")
    counted = list(count())
    if options.check:
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

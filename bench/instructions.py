"""Counts instructions per logit with callgrind: a performance guard that load does not disturb.

    python bench/instructions.py             count, and store as bench/results/instructions-<level>.csv
    python bench/instructions.py --check     count, and fail where a stored count has changed; where counts
                                             cannot be compared, say why and pass

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
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import harness  # before numpy
import numpy as np
from cases import BY_ELEMENTS, BY_ROWS, DTYPES, Case
from cases import KEY as CASE_KEY

import stableloss._dispatch

LEVEL = os.environ.get("STABLELOSS_CPU", "v3")

# Six runs, from other directories, with other hash seeds and environments, agreed within 0.4 % in
# the smallest calls and 0.1 % elsewhere.
TOLERANCE = 0.01
KEY = (*CASE_KEY, "result")
# what a count depends on beside stableloss itself
VERSIONS = ("compiler", "python_version", "numpy_version")
COLUMNS = (*KEY, "instructions", "per_logit", "level", *VERSIONS, "stableloss_version")


def cases():
    """Every case, and what is asked for: `out`, the gradient in an array of the caller's."""
    rows = functools.partial(Case, BY_ROWS[0], "float32")
    elements = functools.partial(Case, BY_ELEMENTS[0], "float32", targets="float")
    # in this order: what a new array takes depends a little on what has been freed before
    for case in (
        *(rows(shape) for shape in ((1, 3), (1, 10), (32, 10))),
        rows((32, 10), "soft"),
        *(Case(loss, "float32", (32, 10)) for loss in BY_ROWS[1:]),
        *(Case(loss, "float32", (32,), "float") for loss in BY_ELEMENTS),
    ):
        yield case, "new array"
    for loss, dtype in itertools.product(BY_ROWS, DTYPES):
        for shape in ((1024, 10), (128, 100), (16, 1000), (1, 32000)):
            for targets in ("indices", "soft"):
                yield Case(loss, dtype, shape, targets), "out"
    for loss, dtype in itertools.product(BY_ELEMENTS, DTYPES):
        for targets in ("float", "bool"):
            yield Case(loss, dtype, (16384,), targets), "out"
    for layout in ("strided", "F"):
        yield rows((1024, 10), layout=layout), "out"
        yield rows((16, 1000), layout=layout), "out"
        yield elements((128, 128), layout=layout), "out"
    for case in (rows((1024, 10)), rows((16, 1000)), elements((16384,))):
        yield case, "loss only"


def calls(case):
    """How many calls to count, about the same work for each case."""
    return 50 if case.logits <= 2048 else 2


def prepare(case, result):
    logits, targets, _ = case.data()
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


def versions():
    found = compiler(), platform.python_version(), importlib.metadata.version("numpy")
    return dict(zip(VERSIONS, found, strict=True))


def count():
    totals = profiled_totals()
    here = {"level": LEVEL, **versions(), "stableloss_version": importlib.metadata.version("stableloss")}
    for i, (case, result) in enumerate(cases()):
        # each case: the code up to its first profile, then the profiles of N, N and 2N calls
        once, twice = totals[4 * i + 2 : 4 * i + 4]
        instructions = (twice - once) / calls(case)
        yield {
            **dict(zip(KEY, (*case.key, result), strict=True)),
            "instructions": f"{instructions:.0f}",
            "per_logit": f"{instructions / case.logits:.4g}",
            **here,
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


def obstacles(stored):
    """Why counts made here would not be those that are stored."""
    if not stored:
        yield f"there are no counts of level {LEVEL}"
        return
    if shutil.which("valgrind") is None:
        yield "valgrind is not installed"
    if LEVEL not in stableloss._dispatch.available():
        yield f"level {LEVEL} is not built, or not for this machine"
        return
    for name, now in versions().items():
        if stored[0][name] != now:
            yield f"the stored counts are of {name.removesuffix('_version')} {stored[0][name]}, this is {now}"


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
    if options.check and (reasons := list(obstacles(stored))):
        print("instructions not compared:", "; ".join(reasons))
        return
    counted = list(count())
    if options.check:
        # by the state of the heap, a call that allocates was seen to take 2 to 4 % more: what the code takes
        # is there in the next process as well
        if not compare(stored, counted) and not compare(stored, list(count())):
            sys.exit(1)
        print(f"{len(counted)} cases within {TOLERANCE:.0%} of the stored counts")
        return
    harness.write_rows(path, COLUMNS, counted)
    for row in counted:
        print(*(row[name] for name in KEY), row["instructions"], row["per_logit"], sep="\t")


if __name__ == "__main__":
    main()

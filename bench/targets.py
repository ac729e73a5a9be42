"""Measures the performance targets and writes them, met or missed, into bench/NOTES.md.

    python bench/targets.py                        every target (about 5 minutes)
    python bench/targets.py --only small memory    these alone; the others keep the results that they have
    python bench/targets.py --quick                a few rounds and no large arrays; nothing is written

Ratios are taken as in run.py: both sides interleaved in this process, the median over at least 15
rounds. Measurements are merged target by target into bench/results/targets-<cpu>-<level>.csv; the table
in NOTES.md is made from that file, and from run.py's results for the targets on other libraries. The
adapters have no targets, and a table of their own.
"""

import harness  # before numpy  # isort: skip

import argparse
import functools
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import adapters
import numpy as np
import rivals
import run
from cases import KEY, Case

import stableloss

NOTES = Path(__file__).resolve().parent / "NOTES.md"
MIB = 2**20
COLUMNS = (
    "target", *KEY, "what", "value", "p20", "p80", "rounds", "stableloss_version", "numpy_version",
    "python_version", "level", "cpu",
)  # fmt: skip

WIDE = ((16384, 1000), (512, 32000), (128, 128256))
HUNDRED = (163840, 100)
SMALL = ((1, 3), (1, 10), (32, 10))
IN_CACHE = (64, 1000)
QUICK_LOGITS = 10**6


@dataclass
class Measurement:
    case: Case | None
    what: str
    values: list  # one per round

    @property
    def value(self):
        return statistics.median(self.values)


# ---- what is measured -----------------------------------------------------------------------------
# Each function yields the measurements of one target.


def single(shape, **options):
    return Case("softmax_ce", "float32", shape, **options)


def small_enough(cases, quick):
    return [case for case in cases if not quick or case.logits <= QUICK_LOGITS]


def fused(case, out=True):
    """The call for loss and gradient, and its arrays."""
    logits, targets = case.data()
    options = {"out": np.empty_like(logits)} if out else {}
    return functools.partial(case.function.value_and_grad, logits, targets, **options), logits, targets


def ratio(case, what, call, base, quick):
    timed, reference = harness.compare([call, base], quick)
    return Measurement(case, what, harness.ratios(timed, reference))


def hardware(shapes, quick):
    for case in small_enough(map(single, shapes), quick):
        call, logits, _ = fused(case)
        multiply = functools.partial(np.multiply, logits, np.float32(0.5), out=np.empty_like(logits))
        yield ratio(case, "", call, multiply, quick)


def in_place(quick):
    for case in small_enough(map(single, (HUNDRED, *WIDE)), quick):
        logits, targets = case.data()
        call = functools.partial(case.function.value_and_grad, logits, targets, out=logits)
        # by 1, so that nothing becomes subnormal however often it is repeated
        product = logits.copy()
        multiply = functools.partial(np.multiply, product, np.float32(1), out=product)
        yield ratio(case, "", call, multiply, quick)


def in_cache(quick):
    case = single(IN_CACHE)
    call, logits, _ = fused(case)
    exp = functools.partial(np.exp, logits, out=np.empty_like(logits))
    yield ratio(case, "", call, exp, quick)


def narrow(quick):
    case, wide = single((65536, 10)), single(IN_CACHE)
    found = ratio(case, "", fused(case)[0], fused(wide)[0], quick)
    found.values = [value * wide.logits / case.logits for value in found.values]
    yield found


class AllocatingScikitLearn(rivals.ScikitLearn):
    reuses_outputs = False


class AllocatingNumba(rivals.Numba):
    reuses_outputs = False


def small_against_exp(quick):
    for case in map(single, SMALL):
        call, logits, _ = fused(case, out=False)
        exp = functools.partial(np.exp, logits, out=np.empty_like(logits))
        yield ratio(case, "", call, exp, quick)


def small_against(rival, quick):
    if not rival.available():
        return
    for case in map(single, SMALL):
        call, logits, targets = fused(case, out=False)
        yield ratio(case, "", rival.prepare(case.loss, logits, targets), call, quick)


def with_threads(count, call):
    with stableloss.num_threads(count):
        call()


def threads_against_one(cases, quick):
    """Time of one thread over that of two."""
    for case in small_enough(cases, quick):
        call = fused(case)[0]
        one, two = (functools.partial(with_threads, count, call) for count in (1, 2))
        yield ratio(case, "", one, two, quick)


def two_threads(quick):
    cases = [single((1024, 1000)), single((131072, 10))]
    cases += [Case("sigmoid_bce", "float32", (10**6,), "float")]
    yield from threads_against_one(cases, quick)


def never_slower(quick):
    cases = [single((n, 10)) for n in (32, 1024, 16384, 26240, 32768, 65536, 1638400)]
    cases += [single((n, 1000)) for n in (256, 263, 512, 16384)]
    cases += [single(shape) for shape in ((8, 32000), (16, 32000), (1, 128256), (2, 128256), (128, 128256))]
    cases += [Case("sigmoid_bce", "float32", (n,), "float") for n in (10**4, 262144, 300_000, 10**7)]
    yield from threads_against_one(cases, quick)


def forward(quick):
    cases = [case for case in run.all_cases(run.LOSSES, run.DTYPES) if case.logits >= 64_000]
    for case in small_enough(cases, quick):
        call, logits, targets = fused(case)
        yield ratio(case, case.targets, functools.partial(case.function, logits, targets), call, quick)


def memory_now(name):
    """A line of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def peaks(case, grad):
    """Peak bytes of one call beyond what was there before: by tracemalloc and of resident memory."""
    logits, targets = case.data()
    call = case.function.value_and_grad if grad else case.function
    # what a first call loads and starts is not the call's
    first = Case(case.loss, case.dtype, (2**18 // case.k + 1, *case.shape[1:]), case.targets)
    call(*first.data())
    tracemalloc.start()
    call(logits, targets)
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory_now("VmRSS")
    call(logits, targets)
    return traced, memory_now("VmHWM") - before


def peak_memory(grad, quick):
    """Beyond the gradient, where it is asked for, in MiB; each case in a process of its own."""
    cases = [single(shape, layout=layout) for shape in (HUNDRED, WIDE[0]) for layout in ("C", "strided", "F")]
    cases += [single(WIDE[0], targets="soft"), Case("softmax_mse", "float32", WIDE[0], layout="F")]
    cases += [
        Case("sigmoid_bce", "float32", (4096, 4096), "bool", layout) for layout in ("C", "strided", "F")
    ]
    cases.append(Case("sigmoid_bce", "float32", (2**24, 1), "float"))
    fresh = multiprocessing.get_context("spawn")
    for case in cases[:1] if quick else cases:
        with ProcessPoolExecutor(1, fresh) as pool:
            traced, resident = pool.submit(peaks, case, grad).result()
        size = case.logits * np.dtype(case.dtype).itemsize if grad else 0
        yield Measurement(case, "tracemalloc", [(traced - size) / MIB])
        yield Measurement(case, "resident", [(resident - size) / MIB])


def scale(quick):
    """Half the spread of the time per logit over sizes, relative to the middle, in %."""
    ladder = [10**p for p in range(5, 7 if quick else 9)]
    for k in (10, 1000):
        cases = [single((logits // k, k)) for logits in ladder]
        timed = harness.compare([fused(case)[0] for case in cases], quick)
        costs = [contender.median / case.logits for contender, case in zip(timed, cases, strict=True)]
        spread = 100 * (max(costs) - min(costs)) / (max(costs) + min(costs))
        each = ", ".join(f"{cost * 1e9:.2f}" for cost in costs)
        yield Measurement(None, f"k = {k}: {each} ns", [spread])


def import_time(quick):
    """What `import stableloss` takes where numpy is imported already, in ms."""
    code = "import time, numpy; t = time.perf_counter(); import stableloss; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    # without bytecode it would be the compilation that is timed
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    rounds = harness.QUICK_PAIRS if quick else harness.MANY_PAIRS
    times = []
    for _ in range(rounds + 1):
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent, env=environment
        )
        times.append(1000 * float(done.stdout))
    yield Measurement(None, "", times[1:])  # the first one may write bytecode


def installed_size(quick):
    files = importlib.metadata.files("stableloss")
    yield Measurement(None, "", [sum(file.locate().stat().st_size for file in files) / 1e6])


@dataclass(frozen=True)
class Target:
    name: str
    text: str
    limit: float
    measure: Callable  # of `quick`; yields measurements
    unit: str = ""
    at_least: bool = False

    def meets(self, value):
        """To the two digits that the table shows."""
        value = round(value, 2)
        return value >= self.limit if self.at_least else value <= self.limit

    def demand(self):
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{spaced(self.unit)}"


def spaced(unit):
    return f" {unit}" if unit else ""


# Targets on threads come first: afterwards this process keeps to one CPU.
TARGETS = (
    Target("two-threads", "two threads over one, in cache, ≥ 1 ms", 1.8, two_threads, at_least=True),
    Target("never-slower", "two threads over one, any size", 1, never_slower, at_least=True),
    Target(
        "wide",
        "float32, k ≥ 1000, N·k ≥ 16M, against `np.multiply(x, c, out=g)`",
        1.15,
        functools.partial(hardware, WIDE),
    ),
    Target("hundred", "the same, k = 100", 1.3, functools.partial(hardware, (HUNDRED,))),
    Target("in-place", "the same in place, against `np.multiply(x, c, out=x)`", 1.5, in_place),
    Target("in-cache", "64x1000 float32 against `np.exp(x, out=g)` (stated for v4)", 1.1, in_cache),
    Target("narrow", "k = 10, N = 65536 against k = 1000 in cache, per logit", 2, narrow),
    Target("small", "small calls against `np.exp(x, out=g)`", 3, small_against_exp),
    Target(
        "small-numpy",
        "small calls ahead of the numpy recipe",
        10,
        functools.partial(small_against, rivals.NumpyTextbook()),
        at_least=True,
    ),
    Target(
        "small-sklearn",
        "small calls ahead of scikit-learn, allocating",
        3,
        functools.partial(small_against, AllocatingScikitLearn()),
        at_least=True,
    ),
    Target(
        "small-numba",
        "small calls ahead of numba, allocating",
        3,
        functools.partial(small_against, AllocatingNumba()),
        at_least=True,
    ),
    Target("forward", "loss alone against value + gradient, N·k ≥ 64k", 0.7, forward),
    Target(
        "forward-memory",
        "loss alone: peak allocation",
        1,
        functools.partial(peak_memory, False),
        "MiB",
    ),
    Target("memory", "peak allocation beyond the gradient", 1, functools.partial(peak_memory, True), "MiB"),
    Target("scale", "ns per logit from 1e5 to 1e8 logits: spread", 25, scale, "%"),
    Target("import", "`import stableloss` after numpy", 5, import_time, "ms"),
    Target("size", "installed size", 3, installed_size, "MB"),
)
ON_THREADS = ("two-threads", "never-slower")
# Measured last, for a table of its own.
ADAPTERS = "adapters"
# By how much, in the geometric mean, to be ahead of the best other library.
MEANS = {"softmax_ce": 4, "sigmoid_bce": 5, "softmax_mse": 4, "sigmoid_mse": 4}


# ---- results --------------------------------------------------------------------------------------


def rows_of(target, measurements):
    for found in measurements:
        row = dict.fromkeys(COLUMNS, "")
        if found.case:
            row.update(zip(KEY, found.case.key, strict=True))
        row.update(
            target=target.name,
            what=found.what,
            value=f"{found.value:.4g}",
            rounds=str(len(found.values)),
            stableloss_version=stableloss.__version__,
            numpy_version=np.__version__,
            python_version=platform.python_version(),
            level=stableloss.cpu_level(),
            cpu=harness.cpu_model(),
        )
        if len(found.values) > 1:
            row["p20"], row["p80"] = (f"{p:.4g}" for p in np.percentile(found.values, (20, 80)))
        yield row


def place(row):
    size = f"{row['n']}x{row['k']}" if row["k"] not in ("", "1") else row["n"]
    layout = row["layout"] if row["layout"] != "C" else ""
    parts = (row["loss"], row["dtype"], size, layout, row["what"])
    return " ".join(part for part in parts if part)


def verdict(met):
    if all(met):
        return "yes"
    return "**no**" if not any(met) else f"**no** ({sum(met)} of {len(met)} cells do)"


def target_line(target, rows):
    """One line of the table, with the measurement that is furthest from its target."""
    worst = (min if target.at_least else max)(rows, key=lambda row: float(row["value"]))
    value = f"{float(worst['value']):.2f}{spaced(target.unit)}"
    where = f" ({place(worst)})" if place(worst) else ""
    met = [target.meets(float(row["value"])) for row in rows]
    return target.text, target.demand(), value + where, verdict(met)


def rival_lines(rows, suffix):
    """The targets on other libraries, from what run.py measured."""
    for (loss, dtype), entries in run.margins(rows).items():
        name = f"`{loss}` {dtype}{suffix}, best rival over ours"
        ahead = [margin.ratio > 1 for margin in entries]
        yield f"{name}: every cell", "> 1", str(run.smallest(entries)), verdict(ahead)
        cached = [margin for margin in entries if margin.cached]
        if cached and (loss, dtype) == ("softmax_ce", "float32"):
            ahead = [margin.ratio >= 2 for margin in cached]
            yield f"{name}: cells that fit a cache", "≥ 2", str(run.smallest(cached)), verdict(ahead)
        mean = run.geometric_mean(entries)
        met = "yes" if mean >= MEANS[loss] else "**no**"
        yield f"{name}: geometric mean", f"≥ {MEANS[loss]}", f"{mean:.2f}", met


def table(rows):
    lines = []
    for threads, suffix in ((1, ""), (2, ", two threads each")):
        lines += rival_lines(harness.read_rows(run.results_path(threads)), suffix)
    for target in TARGETS:
        own = [row for row in rows if row["target"] == target.name]
        if own:
            lines.append(target_line(target, own))
    head = ["| case | target | measured, worst cell | met |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])


def report(rows):
    last = rows[-1]
    return (
        f"{last['cpu']}, CPU level `{last['level']}`, one thread unless said, Python "
        f"{last['python_version']}, numpy {last['numpy_version']}.\n\n{table(rows)}"
    )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*(target.name for target in TARGETS), ADAPTERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--quick", action="store_true", help="few rounds, no large arrays, no files")
    return parser.parse_args()


def main():
    options = parse_arguments()
    path = harness.results_path("targets-", stableloss.cpu_level())
    measured = []
    for target in TARGETS:
        if target.name not in options.only:
            continue
        if target.name not in ON_THREADS:
            harness.use_cpus(1)
        rows = list(rows_of(target, target.measure(options.quick)))
        measured += rows
        for row in rows:
            print(target.name, row["value"], place(row), file=sys.stderr, flush=True)
        if not options.quick:
            order = [target.name for target in TARGETS]
            harness.merge_rows(path, COLUMNS, rows, lambda row: row["target"], order)
            harness.rewrite_part(NOTES, "targets", report(harness.read_rows(path)))
    rows = measured if options.quick else harness.read_rows(path)
    if rows:
        print(report(rows))
    if ADAPTERS in options.only:
        harness.use_cpus(1)
        table_of_adapters = adapters.table(options.quick)
        if not options.quick:
            harness.rewrite_part(NOTES, ADAPTERS, table_of_adapters)
        print(f"\n{table_of_adapters}")


if __name__ == "__main__":
    main()

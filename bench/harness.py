"""What the benches share: one setting for threads, interleaved samples, results kept case by case.

To be imported before numpy: OpenBLAS reads its number of threads when numpy loads it.
STABLELOSS_NUM_THREADS, 1 unless set, is the number of threads for every library. `restrict` starts the
program again with every library kept to an instruction set.
"""

import csv
import gc
import math
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if "numpy" in sys.modules:
    raise ImportError("harness must be imported before numpy")
THREADS = int(os.environ.setdefault("STABLELOSS_NUM_THREADS", "1"))
os.environ.update(
    {
        "OMP_NUM_THREADS": str(THREADS),
        "OPENBLAS_NUM_THREADS": str(THREADS),
        "MKL_NUM_THREADS": str(THREADS),
        "NUMBA_NUM_THREADS": str(THREADS),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={str(THREADS > 1).lower()}",
    }
)

# The instruction set that every library is kept to, where there is one. Each reads its setting when it is
# loaded; numpy's names what the CPU has beyond the set, and is for `restrict` to find.
ISA = os.environ.get("BENCH_ISA", "")
ISAS = {
    "avx2": {
        "STABLELOSS_CPU": "v3",
        "ATEN_CPU_CAPABILITY": "avx2",
        # what the compiler behind torch.compile may use beside vectors
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_cpu_max_isa=AVX2",
        "NUMBA_CPU_NAME": "haswell",
        # none beside the named CPU's; left unset, they are those of the CPU at hand
        "NUMBA_CPU_FEATURES": "",
        "OPENBLAS_CORETYPE": "Haswell",
    }
}
# how numpy's names for what lies beyond begin
BEYOND = {"avx2": ("AVX512", "X86_V4")}
os.environ.update(ISAS.get(ISA, {}))

RESULTS = Path(__file__).resolve().parent / "results"

SAMPLE_SECONDS = 2e-3
QUICK_PAIRS = 3
# Enough to see who is worth more rounds.
FEW_ROUNDS = 3
# What every reported ratio rests on at least, and where samples are short.
PAIRS, MANY_PAIRS = 15, 31


@dataclass
class Timed:
    """A call and its samples, in seconds per call, one for every round of measurement."""

    call: Callable
    calls: int = 1
    samples: list = field(default_factory=list)

    @property
    def median(self):
        return statistics.median(self.samples)


def sample(timed):
    """Seconds per call over one sample; short calls are preceded by one to warm the caches."""
    call, calls = timed.call, timed.calls
    if calls > 1:
        call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def calibrate(timed):
    """Set the number of calls that make up a sample."""
    timed.call()
    while True:
        seconds = sample(timed)
        if seconds * timed.calls >= SAMPLE_SECONDS:
            return
        timed.calls = max(2 * timed.calls, math.ceil(1.2 * SAMPLE_SECONDS / seconds))


def measure(contenders, rounds):
    """Take one more sample of every contender in each of so many rounds, in random order."""
    order = random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for timed in order.sample(contenders, len(contenders)):
                timed.samples.append(sample(timed))
    finally:
        gc.enable()


def rounds_for(contenders):
    """Many where a sample is short."""
    seconds = max(timed.samples[-1] * timed.calls for timed in contenders)
    return PAIRS if seconds > 5 * SAMPLE_SECONDS else MANY_PAIRS


def compare(calls, quick=False):
    """Time the calls against each other."""
    contenders = [Timed(call) for call in calls]
    for timed in contenders:
        calibrate(timed)
    measure(contenders, 1)
    measure(contenders, (QUICK_PAIRS if quick else rounds_for(contenders)) - 1)
    return contenders


def ratios(timed, base):
    """Time over the base's, within each round that both took part in."""
    return [a / b for a, b in zip(timed.samples, base.samples, strict=False)]


def restrict(isa):
    """Start this program again, unless that has been done, with every library kept to the instruction set."""
    if not isa or isa == ISA:
        return
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    beyond = [name for name in __cpu_dispatch__ if __cpu_features__[name] and name.startswith(BEYOND[isa])]
    environment = {**os.environ, "BENCH_ISA": isa, "NPY_DISABLE_CPU_FEATURES": " ".join(beyond)}
    sys.stdout.flush()
    os.execve(sys.executable, sys.orig_argv, environment)


def use_cpus(count):
    """Threads that a library starts in spite of the settings then share these CPUs."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def results_path(stem, level, suffix=""):
    """The file for what is measured on this processor at a CPU level."""
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return RESULTS / f"{stem}{cpu}-{level}{suffix}.csv"


def read_rows(path):
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path, columns, rows):
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def merge_rows(path, columns, rows, key, order):
    """Put rows in the place of stored ones of the same key; keep the keys in `order`, drop all others."""
    place = {name: i for i, name in enumerate(order)}
    measured = {key(row) for row in rows}
    kept = [row for row in read_rows(path) if key(row) in place and key(row) not in measured]
    write_rows(path, columns, sorted(kept + rows, key=lambda row: place[key(row)]))


def rewrite_part(path, name, text):
    """Put text between the file's lines <!-- name:begin --> and <!-- name:end -->."""
    part = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    before = path.read_text()
    if not part.search(before):
        raise ValueError(f"{path} lacks <!-- {name}:begin --> ... <!-- {name}:end -->")
    path.write_text(part.sub(lambda found: f"{found[1]}{text}\n{found[2]}", before))

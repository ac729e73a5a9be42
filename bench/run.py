"""Times value + gradient of every loss against other libraries and against a copy, on one thread.

    python bench/run.py                      the whole table (about half an hour)
    python bench/run.py --quick              a few rounds per case, as a smoke test
    python bench/run.py --readme README.md --plot

All contenders of a case run interleaved in this process, in random order in every round. A sample
is enough calls to last 2 ms; ratios are taken within a round, and the median over rounds is
reported. A rival's loss and gradient are compared with stableloss's before it is timed. Results are
merged case by case into bench/results/<cpu>-<level>.csv, from which the README table and the figure
are made.
"""

import argparse
import csv
import functools
import gc
import itertools
import math
import os
import platform
import random
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "STABLELOSS_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", ""),
        "JAX_PLATFORMS": "cpu",
    }
)

import numpy as np
from rivals import LIBRARIES, RIVALS

import stableloss

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = {
    "softmax_ce": ((32, 10), (4096, 10), (65536, 10), (8192, 1000), (128, 128256)),
    "sigmoid_bce": ((10**3,), (10**4,), (10**5,), (10**6,), (10**7,)),
}
SHAPES["softmax_mse"] = SHAPES["softmax_ce"]
SHAPES["sigmoid_mse"] = SHAPES["sigmoid_bce"]
LOSSES = ("softmax_ce", "sigmoid_bce", "softmax_mse", "sigmoid_mse")
DTYPES = ("float32", "float64")

SAMPLE_SECONDS = 2e-3
SLOW_CALL_SECONDS = 0.5

# Rivals add the loss in the working precision and in a few lanes, which was seen to cost 1e-5 in
# float32 and 1e-12 in float64 for 1e7 terms; the tolerance leaves a factor of ten.
LOSS_TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
# A sum of 128256 exponentials is off by up to 1e-5 (float32), and every gradient entry of the row
# inherits that.
GRAD_TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
# p - 1 and 1 - p are rounded to eps of 1, whatever is left of the difference, so that small entries
# are only good to some eps of the largest one.
GRAD_EPS_OF_LARGEST = 16

OURS = "stableloss"
COPY = "np.copyto"
MULTIPLY = "np.multiply"
TIMES = ("ns_per_logit", "ns_p20", "ns_p80")
RATIOS = ("ratio_to_copyto", "ratio_to_multiply", "ratio_to_stableloss")
COLUMNS = (
    "loss", "dtype", "n", "k", "library", "form", *TIMES, *RATIOS, "rounds", "calls_per_sample",
    "status", "loss_error", "grad_error", "library_version", "stableloss_version", "numpy_version",
    "python_version", "level", "cpu",
)  # fmt: skip
README_PART = re.compile(r"(<!-- bench:begin -->).*?(<!-- bench:end -->)", re.DOTALL)


@dataclass(frozen=True)
class Case:
    loss: str
    dtype: str
    shape: tuple

    @property
    def n(self):
        return self.shape[0]

    @property
    def k(self):
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def key(self):
        return (self.loss, self.dtype, str(self.n), str(self.k))

    def data(self):
        rng = np.random.default_rng(0)
        logits = rng.standard_normal(self.shape, dtype=self.dtype)
        logits *= 2
        if len(self.shape) > 1:
            return logits, rng.integers(0, self.k, self.n)
        return logits, rng.integers(0, 2, self.n).astype(self.dtype)


@dataclass
class Contender:
    library: str
    form: str
    version: str
    call: object = None
    status: str = "ok"
    loss_error: float = math.nan
    grad_error: float = math.nan
    calls: int = 1
    rounds: int = 0
    samples: list = None


def cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def use_one_cpu():
    """Threads that a library starts in spite of the settings above then share one CPU."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def error_against(reference, result, dtype):
    """Relative error of the loss, and the gradient's largest error in units of its tolerance."""
    loss, grad = result
    expected_loss, expected = reference
    loss_error = abs(float(loss) - expected_loss) / abs(expected_loss)
    allowed = np.abs(expected) * GRAD_TOLERANCE[dtype]
    allowed += GRAD_EPS_OF_LARGEST * np.finfo(dtype).eps * np.abs(expected).max()
    difference = np.abs(np.asarray(grad) - expected)
    return loss_error, float(np.max(difference / allowed))


def prepare_rival(rival, case, logits, targets, reference):
    contender = Contender(rival.library, rival.form, rival.version())
    # Whatever goes wrong inside a foreign library, a missing compiler included, only takes that
    # rival out.
    try:
        call = rival.prepare(case.loss, logits, targets)
        errors = error_against(reference, call(), case.dtype)
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        contender.status = f"failed: {type(error).__name__}: {reason[:120]}"
        return contender
    contender.loss_error, contender.grad_error = errors
    if errors[0] <= LOSS_TOLERANCE[case.dtype] and errors[1] <= 1:
        contender.call = call
    else:
        contender.status = "disagrees"
    return contender


def prepare(case, rivals):
    logits, targets = case.data()
    loss = getattr(stableloss, case.loss)
    out, copy, product = (np.empty_like(logits) for _ in range(3))
    ours = functools.partial(loss.value_and_grad, logits, targets, out=out)
    value, grad = ours()
    reference = (value, grad.copy())
    contenders = [
        Contender(OURS, "out=", stableloss.__version__, ours),
        Contender(
            COPY, "out=", np.__version__, functools.partial(np.copyto, copy, logits)
        ),
        Contender(
            MULTIPLY, "out=", np.__version__,
            functools.partial(np.multiply, logits, logits.dtype.type(0.5), out=product),
        ),
    ]  # fmt: skip
    for rival in rivals:
        if rival.covers(case.loss, case.dtype):
            contenders.append(prepare_rival(rival, case, logits, targets, reference))
    return contenders


def sample(contender):
    """Seconds per call over one sample; short calls are preceded by one to warm the caches."""
    call, calls = contender.call, contender.calls
    if calls > 1:
        call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def calibrate(contender, quick):
    """Sets the number of calls per sample and the number of rounds."""
    contender.call()
    while True:
        seconds = sample(contender)
        if seconds * contender.calls >= SAMPLE_SECONDS:
            break
        wanted = math.ceil(1.2 * SAMPLE_SECONDS / seconds)
        contender.calls = max(2 * contender.calls, wanted)
    if quick:
        contender.rounds = 3
    elif seconds > SLOW_CALL_SECONDS:
        contender.rounds = 5
    else:
        contender.rounds = 15 if seconds > 10 * SAMPLE_SECONDS else 31


def measure(contenders, quick):
    timed = [contender for contender in contenders if contender.call]
    for contender in timed:
        calibrate(contender, quick)
        contender.samples = []
    # Every slower contender needs a partner in each of its rounds.
    for contender in timed[:3]:
        contender.rounds = max(other.rounds for other in timed)
    order = random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for done in range(max(contender.rounds for contender in timed)):
            for contender in order.sample(timed, len(timed)):
                if done < contender.rounds:
                    contender.samples.append(sample(contender))
    finally:
        gc.enable()


def rows_of(case, contenders):
    ours, copy, multiply = contenders[:3]
    logits = math.prod(case.shape)
    for contender in contenders:
        row = dict.fromkeys(COLUMNS, "")
        row.update(
            loss=case.loss,
            dtype=case.dtype,
            n=case.n,
            k=case.k,
            library=contender.library,
            form=contender.form,
            rounds=contender.rounds,
            calls_per_sample=contender.calls,
            status=contender.status,
            library_version=contender.version,
            stableloss_version=stableloss.__version__,
            numpy_version=np.__version__,
            python_version=platform.python_version(),
            level=stableloss.cpu_level(),
            cpu=cpu_model(),
        )
        if not math.isnan(contender.loss_error):
            row["loss_error"] = f"{contender.loss_error:.2g}"
            row["grad_error"] = f"{contender.grad_error:.2g}"
        if contender.samples:
            times = [seconds / logits * 1e9 for seconds in contender.samples]
            spread = np.percentile(times, (50, 20, 80))
            row.update(zip(TIMES, (f"{t:.4g}" for t in spread), strict=True))
            for name, base in zip(RATIOS, (copy, multiply, ours), strict=True):
                pairs = zip(contender.samples, base.samples, strict=False)
                row[name] = f"{statistics.median(a / b for a, b in pairs):.4g}"
        yield {name: str(value) for name, value in row.items()}


def case_key(row):
    return (row["loss"], row["dtype"], row["n"], row["k"])


def read_results(path):
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_results(path, rows):
    """Keeps the cases in the order in which a full run measures them."""
    order = {case.key: i for i, case in enumerate(all_cases(LOSSES, DTYPES))}
    rows.sort(key=lambda row: order.get(case_key(row), len(order)))
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def all_cases(losses, dtypes):
    pairs = itertools.product(losses, dtypes)
    return [Case(loss, dtype, shape) for loss, dtype in pairs for shape in SHAPES[loss]]


def by_case(rows):
    groups = {}
    for row in rows:
        groups.setdefault(case_key(row), []).append(row)
    return groups


def best_form(rows, library):
    """The fastest timed form of a library in one case, or None."""
    timed = [row for row in rows if row["library"] == library and row["ns_per_logit"]]
    return min(timed, key=lambda row: float(row["ratio_to_stableloss"] or 1), default=None)


def best_rival(rows):
    forms = [best_form(rows, library) for library in LIBRARIES]
    forms = [form for form in forms if form]
    return min(forms, key=lambda row: float(row["ratio_to_stableloss"]), default=None)


def number(text):
    value = float(text)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size_label(n, k):
    return f"{n}x{k}" if int(k) > 1 else f"{int(n):,}"


def cell(rows, library):
    form = best_form(rows, library)
    if form:
        return number(form["ns_per_logit"])
    if any(row["library"] == library and row["status"] == "disagrees" for row in rows):
        return "≠"
    return "-"


def table(rows):
    present = {row["library"] for row in rows}
    libraries = [library for library in LIBRARIES if library in present]
    head = ["loss", "dtype", "rows x classes", f"**{OURS}**", *libraries, f"`{COPY}`"]
    head += [f"÷ `{COPY}`", f"÷ `{MULTIPLY}`", "best rival ÷ ours"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * 3 + "--:|" * (len(head) - 3)]
    for (loss, dtype, n, k), group in by_case(rows).items():
        ours = best_form(group, OURS)
        rival = best_rival(group)
        cells = [f"`{loss}`", dtype, size_label(n, k), f"**{number(ours['ns_per_logit'])}**"]
        cells += [cell(group, library) for library in (*libraries, COPY)]
        cells += [number(ours["ratio_to_copyto"]), number(ours["ratio_to_multiply"])]
        if rival:
            cells.append(f"{number(rival['ratio_to_stableloss'])} ({rival['library']})")
        else:
            cells.append("-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(rows):
    """One line per loss and dtype: geometric mean and worst case of best rival ÷ ours."""
    ratios = {}
    for (loss, dtype, n, k), group in by_case(rows).items():
        rival = best_rival(group)
        if rival:
            entry = (float(rival["ratio_to_stableloss"]), size_label(n, k), rival["library"])
            ratios.setdefault((loss, dtype), []).append(entry)
    lines = []
    for (loss, dtype), entries in ratios.items():
        mean = statistics.geometric_mean(ratio for ratio, _, _ in entries)
        worst, size, library = min(entries)
        lines.append(
            f"- `{loss}` {dtype}: best rival ÷ ours {mean:.2f} (geometric mean), "
            f"smallest {worst:.2f} ({size}, {library})"
        )
    return "\n".join(lines)


def notes(rows):
    """The rivals that were not timed, and why."""
    lines = {}
    for row in rows:
        if row["status"] == "ok":
            continue
        why = row["status"]
        if why == "disagrees":
            why = f"loss off by {row['loss_error']}, gradient by {row['grad_error']} tolerances"
        place = f"{row['loss']} {row['dtype']} {size_label(row['n'], row['k'])}"
        lines.setdefault((row["library"], row["form"], why), []).append(place)
    return "\n".join(
        f"- not timed: {library} ({form}), {why}: "
        + ("; ".join(places) if len(places) <= 3 else f"{len(places)} cases")
        for (library, form, why), places in lines.items()
    )


def versions(rows):
    """Every library with its version or versions, in the order of the table."""
    found = {}
    for row in rows:
        if row["library"] not in (COPY, MULTIPLY, OURS):
            found.setdefault(row["library"], set()).add(row["library_version"])
    return ", ".join(f"{name} {'/'.join(sorted(values))}" for name, values in found.items())


def report(rows):
    last = rows[-1]
    intro = (
        "Value + gradient, reduction `mean`, one thread, ns per logit (lower is better), each "
        f"library at its fastest form. {last['cpu']}, CPU level `{last['level']}`, "
        f"Python {last['python_version']}, {OURS} {last['stableloss_version']}, {versions(rows)}."
    )
    parts = (intro, table(rows), summary(rows), notes(rows))
    return "\n\n".join(part for part in parts if part)


def rewrite_readme(path, text):
    path.write_text(README_PART.sub(lambda part: f"{part[1]}\n{text}\n{part[2]}", path.read_text()))


def plot(rows, path):
    """Time per logit against the number of logits, one panel per loss and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((row["loss"], row["dtype"]) for row in rows))
    losses = list(dict.fromkeys(loss for loss, _ in panels))
    dtypes = list(dict.fromkeys(dtype for _, dtype in panels))
    figure, axes = plt.subplots(
        len(losses), len(dtypes), squeeze=False, sharey="row", layout="constrained",
        figsize=(5.2 * len(dtypes) + 1.6, 3.1 * len(losses)), facecolor="white",
    )  # fmt: skip
    styles = line_styles()
    drawn = {}
    for loss, dtype in panels:
        axis = axes[losses.index(loss), dtypes.index(dtype)]
        groups = [g for key, g in by_case(rows).items() if key[:2] == (loss, dtype)]
        for library, style in styles.items():
            points = [best_form(group, library) for group in groups]
            points = [point for point in points if point]
            if not points:
                continue
            sizes = [int(point["n"]) * int(point["k"]) for point in points]
            times = [float(point["ns_per_logit"]) for point in points]
            drawn[library] = axis.plot(sizes, times, **style)[0]
        label_panel(axis, loss, dtype, groups)
    figure.legend(drawn.values(), drawn.keys(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130, facecolor="white")


def line_styles():
    """Okabe-Ito colours, distinct markers; ours drawn thick and on top, the copy dashed."""
    colours = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#8C564B", "#7F7F7F")
    styles = {OURS: {"color": "#D55E00", "marker": "o", "linewidth": 2.8, "zorder": 5}}
    for library, colour, marker in zip(LIBRARIES, colours, "sv^D<>P", strict=True):
        styles[library] = {"color": colour, "marker": marker, "linewidth": 1.3, "markersize": 5}
    styles[COPY] = {"color": "black", "linestyle": "--", "linewidth": 1.3}
    return styles


def label_panel(axis, loss, dtype, groups):
    axis.set(xscale="log", yscale="log", title=f"{loss}, {dtype}", facecolor="white")
    axis.set_ylabel("ns per logit")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(which="major", color="#dddddd", linewidth=0.6)
    keys = [case_key(group[0])[2:] for group in groups]
    wide = any(int(k) > 1 for _, k in keys)
    axis.set_xlabel("logits (rows x classes)" if wide else "logits (elements)")
    if wide:
        axis.set_xticks(
            [int(n) * int(k) for n, k in keys],
            [f"{n}x{k}" for n, k in keys],
            rotation=25,
            ha="right",
            fontsize=7,
        )
        axis.minorticks_off()


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--libraries", nargs="*", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--quick", action="store_true", help="3 rounds, results kept apart")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="rewrite the table in FILE")
    parser.add_argument("--plot", action="store_true", help="draw bench/results/speed.png")
    options = parser.parse_args()
    if options.readme and not README_PART.search(options.readme.read_text()):
        parser.error(f"{options.readme} lacks <!-- bench:begin --> ... <!-- bench:end -->")
    return options


def main():
    options = parse_arguments()
    use_one_cpu()
    rivals = [r for r in RIVALS if r.library in options.libraries and r.available()]
    suffix = "-quick" if options.quick else ""
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    path = RESULTS / f"{cpu}-{stableloss.cpu_level()}{suffix}.csv"
    measured = []
    for case in all_cases(options.loss, options.dtype):
        started = time.perf_counter()
        contenders = prepare(case, rivals)
        measure(contenders, options.quick)
        rows = list(rows_of(case, contenders))
        measured += rows
        kept = [row for row in read_results(path) if case_key(row) != case.key]
        write_results(path, kept + rows)
        label = f"{case.loss} {case.dtype} {size_label(case.n, case.k)}"
        print(f"{label}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    print(report(measured))
    everything = read_results(path)
    if options.readme:
        rewrite_readme(options.readme, report(everything))
    if options.plot:
        plot(everything, RESULTS / f"speed{suffix}.png")


if __name__ == "__main__":
    main()

"""Times value + gradient of every loss against other libraries and against a copy.

    python bench/run.py --compile            fill torch.compile's cache (10 minutes, on a busy machine too)
    python bench/run.py                      every case (10 minutes then, on a quiet machine)
    python bench/run.py --loss softmax_ce    one loss; the others keep the results that they have
    python bench/run.py --quick              a few small cases and rounds, results kept apart
    python bench/run.py --readme README.md --plot
    STABLELOSS_NUM_THREADS=2 python bench/run.py     two threads for every library, large cases (5 minutes)

All contenders of a case run interleaved in this process, in random order in every round. A sample
is enough calls to last 2 ms; ratios are taken within a round, and the median over rounds is
reported. After three rounds only the rivals within twice the fastest one's time go on, to at least
15 rounds. A rival's loss and gradient are compared with stableloss's before it is timed. Results are
merged case by case into bench/results/<cpu>-<level>.csv, from which the README table and the figure
are made: a run that is cut short loses only the case that it was at. torch.compile keeps what it has
compiled on disk, for each number of threads apart.
"""

import harness  # before numpy  # isort: skip

import argparse
import functools
import itertools
import math
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import KEY, Case
from rivals import LIBRARIES, RIVALS

import stableloss

SOFTMAX_SHAPES = (
    (128, 3), (32768, 3),
    (32, 10), (4096, 10), (65536, 10), (1638400, 10),
    (32, 32), (2048, 32),
    (32, 100), (1024, 100), (163840, 100),
    (64, 1000), (16384, 1000),
    (32, 32000),
    (1, 128256), (128, 128256),
)  # fmt: skip
FEWER_SOFTMAX_SHAPES = (
    (32768, 3), (32, 10), (4096, 10), (65536, 10), (1024, 100), (16384, 1000), (128, 128256),
)  # fmt: skip
SIGMOID_SHAPES = ((32,), (10**3,), (10**4,), (10**5,), (10**6,), (10**7,))
FEWER_SIGMOID_SHAPES = ((32,), (10**4,), (10**7,))
# Shapes by loss and kind of targets.
SHAPES = {
    ("softmax_ce", "indices"): SOFTMAX_SHAPES,
    ("sigmoid_bce", "float"): SIGMOID_SHAPES,
    ("sigmoid_bce", "bool"): FEWER_SIGMOID_SHAPES,
    ("sigmoid_bce", "uint8"): FEWER_SIGMOID_SHAPES,
    ("softmax_mse", "indices"): FEWER_SOFTMAX_SHAPES,
    ("sigmoid_mse", "float"): SIGMOID_SHAPES,
}
QUICK_LOGITS = range(10_000, 70_000)
# From here stableloss shares a call out.
THREADED_LOGITS = 262144
LOSSES = tuple(dict.fromkeys(loss for loss, _ in SHAPES))
DTYPES = ("float32", "float64")

# A rival this much slower than the fastest is not the best one, whatever the noise.
OUT_OF_REACH = 2

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
    *KEY, "library", "form", *TIMES, *RATIOS, "rounds", "calls_per_sample", "status", "loss_error",
    "grad_error", "library_version", "stableloss_version", "numpy_version", "python_version",
    "threads", "level", "cpu",
)  # fmt: skip


@dataclass
class Contender(harness.Timed):
    library: str = ""
    form: str = ""
    version: str = ""
    status: str = "ok"
    loss_error: float = math.nan
    grad_error: float = math.nan


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
    contender = Contender(None, library=rival.library, form=rival.form, version=rival.version())
    if targets.dtype.kind in "bu" and not rival.takes_flags:
        targets = targets.astype(logits.dtype)
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
    """stableloss, the copy and the product; then the rivals."""
    logits, targets = case.data()
    out, copy, product = (np.empty_like(logits) for _ in range(3))
    ours = functools.partial(case.function.value_and_grad, logits, targets, out=out)
    copyto = functools.partial(np.copyto, copy, logits)
    multiply = functools.partial(np.multiply, logits, logits.dtype.type(0.5), out=product)
    value, grad = ours()
    reference = (value, grad.copy())
    contenders = [
        Contender(ours, library=OURS, form="out=", version=stableloss.__version__),
        Contender(copyto, library=COPY, form="out=", version=np.__version__),
        Contender(multiply, library=MULTIPLY, form="out=", version=np.__version__),
    ]
    for rival in rivals:
        if case.loss in rival.losses:
            contenders.append(prepare_rival(rival, case, logits, targets, reference))
    return contenders


def measure(contenders, quick):
    timed = [contender for contender in contenders if contender.call]
    for contender in timed:
        harness.calibrate(contender)
    harness.measure(timed, harness.QUICK_PAIRS if quick else harness.FEW_ROUNDS)
    if not quick:
        fastest = min((contender.median for contender in timed[3:]), default=math.inf)
        near = [contender for contender in timed[3:] if contender.median <= OUT_OF_REACH * fastest]
        chosen = timed[:3] + near
        harness.measure(chosen, harness.rounds_for(chosen) - harness.FEW_ROUNDS)


def rows_of(case, contenders):
    ours, copy, multiply = contenders[:3]
    for contender in contenders:
        row = dict.fromkeys(COLUMNS, "")
        row.update(
            **dict(zip(KEY, case.key, strict=True)),
            library=contender.library,
            form=contender.form,
            rounds=len(contender.samples),
            calls_per_sample=contender.calls,
            status=contender.status,
            library_version=contender.version,
            stableloss_version=stableloss.__version__,
            numpy_version=np.__version__,
            python_version=platform.python_version(),
            threads=harness.THREADS,
            level=stableloss.cpu_level(),
            cpu=harness.cpu_model(),
        )
        if not math.isnan(contender.loss_error):
            row["loss_error"] = f"{contender.loss_error:.2g}"
            row["grad_error"] = f"{contender.grad_error:.2g}"
        if contender.samples:
            times = [seconds / case.logits * 1e9 for seconds in contender.samples]
            spread = np.percentile(times, (50, 20, 80))
            row.update(zip(TIMES, (f"{t:.4g}" for t in spread), strict=True))
            for name, base in zip(RATIOS, (copy, multiply, ours), strict=True):
                row[name] = f"{statistics.median(harness.ratios(contender, base)):.4g}"
        yield {name: str(value) for name, value in row.items()}


def case_key(row):
    return tuple(row[name] for name in KEY)


def all_cases(losses, dtypes):
    return [
        Case(loss, dtype, shape, targets)
        for (loss, targets), dtype in itertools.product(SHAPES, DTYPES)
        for shape in SHAPES[loss, targets]
        if loss in losses and dtype in dtypes
    ]


def is_wanted(case, quick):
    if harness.THREADS > 1 and case.logits < THREADED_LOGITS:
        return False
    return not quick or case.logits in QUICK_LOGITS


def results_path(threads, suffix=""):
    shared = f"-{threads}threads" if threads > 1 else ""
    return harness.results_path("", stableloss.cpu_level(), shared + suffix)


def by_case(rows):
    groups = {}
    for row in rows:
        groups.setdefault(case_key(row), []).append(row)
    return groups


def best_form(rows, library):
    """The fastest timed form of a library in one case, or None."""
    timed = [row for row in rows if row["library"] == library and row["ns_per_logit"]]
    return min(timed, key=lambda row: float(row["ratio_to_stableloss"]), default=None)


def best_rival(rows):
    forms = [best_form(rows, library) for library in LIBRARIES]
    forms = [form for form in forms if form]
    return min(forms, key=lambda row: float(row["ratio_to_stableloss"]), default=None)


def fits_cache(n, k, dtype):
    """Whether logits and gradient take half of the last cache, leaving the rest to whoever shares it."""
    return 2 * int(n) * int(k) * np.dtype(dtype).itemsize <= harness.last_cache_bytes() / 2


@dataclass(frozen=True)
class Margin:
    """By how much stableloss is ahead in one case: the best rival's time over its own."""

    ratio: float
    place: str
    library: str
    cached: bool

    def __str__(self):
        return f"{self.ratio:.2f} ({self.place}, {self.library})"


def margins(rows):
    """The margin of every case, by loss and dtype."""
    found = {}
    for (loss, dtype, n, k, targets, _), group in by_case(rows).items():
        rival = best_rival(group)
        if rival:
            ratio = float(rival["ratio_to_stableloss"])
            place = size_label(n, k, targets)
            margin = Margin(ratio, place, rival["library"], fits_cache(n, k, dtype))
            found.setdefault((loss, dtype), []).append(margin)
    return found


def smallest(entries):
    return min(entries, key=lambda margin: margin.ratio)


def geometric_mean(entries):
    return statistics.geometric_mean(margin.ratio for margin in entries)


def number(text):
    value = float(text)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size_label(n, k, targets):
    if targets == "indices":
        return f"{n}x{k}"
    return f"{int(n):,}" if targets == "float" else f"{int(n):,} {targets}"


def table(rows):
    """One line per loss and size, the dtypes side by side."""
    cells = {}
    for (loss, dtype, n, k, targets, _), group in by_case(rows).items():
        ours, rival = best_form(group, OURS), best_rival(group)
        entry = [f"**{number(ours['ns_per_logit'])}**", "-", "-"]
        if rival:
            entry[1] = f"{number(rival['ns_per_logit'])} {rival['library']}"
            entry[2] = number(rival["ratio_to_stableloss"])
        cells.setdefault((loss, size_label(n, k, targets)), {})[dtype] = entry
    head = ["loss", "size"]
    for dtype in DTYPES:
        head += [dtype, "best rival", "÷ ours"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "--:|" * (len(head) - 2)]
    for (loss, size), entries in cells.items():
        line = [f"`{loss}`", size]
        for dtype in DTYPES:
            line += entries.get(dtype, ["-"] * 3)
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def summary(rows):
    """One line per loss and dtype: geometric mean and worst case of best rival ÷ ours."""
    return "\n".join(
        f"- `{loss}` {dtype}: best rival ÷ ours {geometric_mean(entries):.2f} (geometric mean of "
        f"{len(entries)}), smallest {smallest(entries)}"
        for (loss, dtype), entries in margins(rows).items()
    )


def notes(rows):
    """The rivals that were not timed, and why."""
    lines = {}
    for row in rows:
        if row["status"] == "ok":
            continue
        why = row["status"]
        if why == "disagrees":
            why = f"loss off by {row['loss_error']}, gradient by {row['grad_error']} tolerances"
        place = f"{row['loss']} {row['dtype']} {size_label(row['n'], row['k'], row['targets'])}"
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
    threads = "one thread" if last["threads"] == "1" else f"{last['threads']} threads each"
    intro = (
        f"Value + gradient, reduction `mean`, {threads}, ns per logit (lower is better), beside the "
        f"fastest of the other libraries, each at its fastest form. Sizes are rows x classes, or "
        f"elements. {last['cpu']}, CPU level `{last['level']}`, Python {last['python_version']}, "
        f"{OURS} {last['stableloss_version']}, {versions(rows)}."
    )
    parts = (intro, table(rows), summary(rows), notes(rows))
    return "\n\n".join(part for part in parts if part)


def plot(rows, path):
    """Time per logit of each library at each size, one panel per loss and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((row["loss"], row["dtype"]) for row in rows))
    losses = list(dict.fromkeys(loss for loss, _ in panels))
    dtypes = list(dict.fromkeys(dtype for _, dtype in panels))
    figure, axes = plt.subplots(
        len(losses), len(dtypes), squeeze=False, sharey="row", layout="constrained",
        figsize=(5.6 * len(dtypes) + 1.6, 3.3 * len(losses)), facecolor="white",
    )  # fmt: skip
    drawn = {}
    for loss, dtype in panels:
        axis = axes[losses.index(loss), dtypes.index(dtype)]
        groups = {key: g for key, g in by_case(rows).items() if key[:2] == (loss, dtype)}
        places = positions(groups)
        for library, style in line_styles().items():
            for run in runs_of(groups):
                points = [(places[key], best_form(groups[key], library)) for key in run]
                points = [(at, float(form["ns_per_logit"])) for at, form in points if form]
                if points:
                    drawn[library] = axis.plot(*zip(*points, strict=True), **style)[0]
        label_panel(axis, loss, dtype, places)
    figure.legend(drawn.values(), drawn.keys(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130, facecolor="white")


def runs_of(keys):
    """The cases that a line connects: those of one number of classes and kind of targets."""
    return [list(run) for _, run in itertools.groupby(keys, key=lambda key: key[3:])]


def positions(keys):
    """Where each case stands on the axis: side by side, with a gap between runs."""
    places = {}
    for gap, run in enumerate(runs_of(keys)):
        for key in run:
            places[key] = len(places) + gap
    return places


def line_styles():
    """Okabe-Ito colours, distinct markers; ours drawn thick and on top, the copy dashed."""
    colours = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#8C564B", "#7F7F7F")
    styles = {OURS: {"color": "#D55E00", "marker": "o", "linewidth": 2.8, "zorder": 5}}
    for library, colour, marker in zip(LIBRARIES, colours, "sv^D<>P", strict=True):
        styles[library] = {"color": colour, "marker": marker, "linewidth": 1.3, "markersize": 5}
    styles[COPY] = {"color": "black", "marker": "_", "linestyle": "--", "linewidth": 1.3}
    return styles


def label_panel(axis, loss, dtype, places):
    axis.set(yscale="log", title=f"{loss}, {dtype}", facecolor="white")
    axis.set_ylabel("ns per logit")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(which="major", axis="y", color="#dddddd", linewidth=0.6)
    labels = [size_label(*key[2:5]) for key in places]
    axis.set_xticks(list(places.values()), labels, rotation=40, ha="right", fontsize=7)
    axis.set_xlabel("rows x classes" if loss.startswith("softmax") else "elements")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--libraries", nargs="*", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--compile", action="store_true", help="fill torch.compile's cache, time nothing")
    parser.add_argument("--quick", action="store_true", help="few small cases, results kept apart")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="rewrite the table in FILE")
    parser.add_argument("--plot", action="store_true", help="draw bench/results/speed.png")
    return parser.parse_args()


def main():
    options = parse_arguments()
    harness.use_cpus(harness.THREADS)
    cases = [case for case in all_cases(options.loss, options.dtype) if is_wanted(case, options.quick)]
    rivals = [r for r in RIVALS if r.library in options.libraries and r.available()]
    if options.compile:
        for case in cases:
            prepare(case, [rival for rival in rivals if rival.library == "torch.compile"])
        return
    suffix = "-quick" if options.quick else ""
    path = results_path(harness.THREADS, suffix)
    order = [case.key for case in all_cases(LOSSES, DTYPES)]
    measured = []
    for case in cases:
        started = time.perf_counter()
        contenders = prepare(case, rivals)
        prepared = time.perf_counter()
        measure(contenders, options.quick)
        rows = list(rows_of(case, contenders))
        measured += rows
        harness.merge_rows(path, COLUMNS, rows, case_key, order)
        print(
            f"{' '.join(case.key)}: {prepared - started:.0f} s to prepare and check, "
            f"{time.perf_counter() - prepared:.0f} s to measure",
            file=sys.stderr,
            flush=True,
        )
    if measured:
        print(report(measured))
    everything = harness.read_rows(path)
    if options.readme:
        harness.rewrite_part(options.readme, "bench", report(everything))
    if options.plot:
        plot(everything, harness.RESULTS / f"speed{suffix}.png")


if __name__ == "__main__":
    main()

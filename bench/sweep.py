"""Draws time per logit against the number of classes, and against that of rows or elements: a step shows.

    python bench/sweep.py                        measure, store and draw (on a quiet machine)
    python bench/sweep.py --page docs/speed.md   also put the figure and the largest steps there
    python bench/sweep.py --quick                few sizes and rounds; nothing stored or drawn
    python bench/sweep.py --results STEM ...     stored as STEM.csv and STEM.png in bench/results

Value + gradient into an array that is kept, one thread. All sizes of a curve run interleaved, in random order
in every round. Writes bench/results/sweep-<cpu>-<level>.csv and bench/results/sweep.png.
"""

import harness  # before numpy  # isort: skip

import argparse
import functools
import itertools
from pathlib import Path

import numpy as np
from cases import BY_ELEMENTS, BY_ROWS, DTYPES, Case

import stableloss

ROUNDS = 11
# Along the classes, a call has about so many logits: they stay in the caches, and the call itself is little.
LOGITS = 32768
# Along the rows, these are the classes, and a call has no more logits than that.
CLASSES = (10, 100, 1000)
MOST = 262144
# What a step up is called from which ratio on: the cost per logit of a size over that of the size before.
STEP = 1.25

FIGURE = """:::{container} scroll
```{image} ../bench/results/sweep.png
:alt: Time per logit against the number of classes, and against that of rows or elements
:class: figure
```
:::"""
COLUMNS = (
    "loss", "dtype", "along", "n", "k", "ns_per_logit", "ns_p20", "ns_p80", "rounds", "stableloss_version",
    "level", "cpu",
)  # fmt: skip


def sizes(first, dense, last, factor):
    """Every one up to `dense`; then wider apart, and on both sides of each power of two."""
    spread, size = set(range(first, min(dense, last) + 1)), dense
    while size < last:
        spread.add(size := min(last, max(size + 1, round(size * factor))))
    powers = {2**i + j for i in range(last.bit_length()) for j in (-1, 0, 1)}
    return sorted(size for size in spread | powers if first <= size <= last)


def rows_for(k):
    """As many as make LOGITS; whole groups of 32, where there are that many."""
    n = max(1, LOGITS // k)
    return n - n % 32 if n >= 32 else n


def curves(quick):
    """What each curve runs along, and its cases."""
    by_class = sizes(2, 160, 5000, 1.03)
    if quick:
        by_class = [2, 10, 128, 129, 1000]
    for loss, dtype in itertools.product(BY_ROWS, DTYPES):
        yield "k", [Case(loss, dtype, (rows_for(k), k)) for k in by_class]
        for k in CLASSES:
            by_row = [1, 2, 31, 32, 33] if quick else sizes(1, 66, MOST // k, 1.1)
            yield "n", [Case(loss, dtype, (n, k)) for n in by_row]
    by_element = [1, 2, 31, 32, 33] if quick else sizes(1, 66, MOST, 1.1)
    for loss, dtype in itertools.product(BY_ELEMENTS, DTYPES):
        yield "n", [Case(loss, dtype, (n,), "float") for n in by_element]


def timed(case):
    logits, targets, _ = case.data()
    out = np.empty_like(logits)
    return harness.Timed(functools.partial(case.function.value_and_grad, logits, targets, out=out))


def measure(along, cases, rounds):
    calls = [timed(case) for case in cases]
    for call in calls:
        harness.calibrate(call)
    harness.measure(calls, rounds)
    for case, call in zip(cases, calls, strict=True):
        p20, median, p80 = np.percentile(call.samples, (20, 50, 80)) / case.logits * 1e9
        yield {
            "loss": case.loss,
            "dtype": case.dtype,
            "along": along,
            "n": str(case.n),
            "k": str(case.k),
            "ns_per_logit": f"{median:.4g}",
            "ns_p20": f"{p20:.4g}",
            "ns_p80": f"{p80:.4g}",
            "rounds": rounds,
            "stableloss_version": stableloss.__version__,
            "level": stableloss.cpu_level(),
            "cpu": harness.cpu_model(),
        }


def by_curve(rows):
    """The rows of each curve: of a loss and dtype along the classes, or along the rows of so many classes."""
    found = {}
    for row in rows:
        fixed = row["k"] if row["along"] == "n" else ""
        found.setdefault((row["loss"], row["along"], row["dtype"], fixed), []).append(row)
    return found


def steps(rows):
    """The ratio of every size to the one before, and where that is."""
    for (loss, along, dtype, fixed), curve in by_curve(rows).items():
        for before, row in itertools.pairwise(curve):
            ratio = float(row["ns_per_logit"]) / float(before["ns_per_logit"])
            of_classes = f", k = {fixed}" if int(fixed or 1) > 1 else ""
            yield ratio, f"`{loss}` {dtype}{of_classes}, {along} = {before[along]} to {row[along]}"


def report(rows):
    found = sorted(steps(rows), reverse=True)
    count = sum(ratio > STEP for ratio, _ in found)
    lines = [f"- {ratio:.2f}: {place}" for ratio, place in found[: max(3, min(count, 10))]]
    last = rows[-1]
    intro = (
        f"Value + gradient with `out=`, one thread, in the caches: {last['cpu']}, CPU level "
        f"`{last['level']}`, stableloss {last['stableloss_version']}. Of {len(found)} steps from one size to "
        f"the next, {count} cost more than {STEP} times as much per logit. The largest:"
    )
    return intro + "\n\n" + "\n".join(lines)


def draw(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours, lines = dict(zip(DTYPES, ("#D55E00", "#0072B2"), strict=True)), ("-", "--", ":")
    curves = by_curve(rows)
    panels = list(dict.fromkeys((loss, along) for loss, along, *_ in curves))
    figure, axes = plt.subplots(
        (len(panels) + 1) // 2, 2, squeeze=False, layout="constrained", facecolor="white",
        figsize=(12.8, 3.4 * ((len(panels) + 1) // 2)),
    )  # fmt: skip
    for axis, panel in itertools.zip_longest(axes.flat, panels):
        if panel is None:
            axis.set_axis_off()
            continue
        loss, along = panel
        for (_, _, dtype, fixed), curve in ((key, curves[key]) for key in curves if key[:2] == panel):
            at = [int(row[along]) for row in curve]
            place = CLASSES.index(int(fixed)) if int(fixed or 1) > 1 else 0
            style = {"color": colours[dtype], "linestyle": lines[place], "linewidth": 1.2}
            axis.plot(at, [float(row["ns_per_logit"]) for row in curve], label=legend(dtype, fixed), **style)
            spread = [[float(row[name]) for row in curve] for name in ("ns_p20", "ns_p80")]
            axis.fill_between(at, *spread, color=colours[dtype], alpha=0.15, linewidth=0)
        unit = "classes" if along == "k" else "rows" if loss in BY_ROWS else "elements"
        axis.set(xscale="log", yscale="log", title=loss, facecolor="white")
        axis.set(xlabel=unit, ylabel="ns per logit")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(which="major", color="#dddddd", linewidth=0.6)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130, facecolor="white")


def legend(dtype, fixed):
    return f"{dtype}, {fixed} classes" if int(fixed or 1) > 1 else dtype


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, metavar="FILE", help="rewrite the figure's part in FILE")
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds, nothing stored or drawn")
    parser.add_argument("--results", metavar="STEM", help="where to store, in bench/results")
    options = parser.parse_args()
    harness.use_cpus(1)
    rounds = harness.QUICK_PAIRS if options.quick else ROUNDS
    rows = [row for along, cases in curves(options.quick) for row in measure(along, cases, rounds)]
    print(report(rows))
    if options.results:
        path = harness.RESULTS / f"{options.results}.csv"
        picture = path.with_suffix(".png")
    elif options.quick:
        return
    else:
        path = harness.results_path("sweep-", stableloss.cpu_level())
        picture = path.with_name("sweep.png")
    harness.write_rows(path, COLUMNS, rows)
    draw(rows, picture)
    if options.page:
        harness.rewrite_part(options.page, "sweep", f"### Time against size\n\n{FIGURE}\n\n{report(rows)}")


if __name__ == "__main__":
    main()

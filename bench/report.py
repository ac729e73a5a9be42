"""Writes what run.py measured: the table of all cells, README's six rows, the summary and the figure.

python bench/report.py                       print the report of this machine's results
python bench/report.py --table docs/speed.md  and put it there
python bench/report.py --readme README.md    put six rows of it into README.md
python bench/report.py --plot                and draw bench/results/speed.png
python bench/report.py --results FILE ...    of another file in bench/results
"""

import harness  # before numpy  # isort: skip

import argparse
import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path

from cases import BY_ROWS, DTYPES, HIGHLIGHTS, KEY
from rivals import LIBRARIES

import stableloss

OURS = "stableloss"
COPY = "np.copyto"
MULTIPLY = "np.multiply"
EXP = "np.exp"
# the form of stableloss that the others are compared with
OUT = "out="


def results_path(threads, suffix=""):
    """Where run.py keeps what it measures on this machine."""
    shared = f"-{threads}threads" if threads > 1 else ""
    return harness.results_path("", stableloss.cpu_level(), shared + suffix)


def case_key(row):
    return tuple(row[name] for name in KEY)


def by_case(rows):
    groups = {}
    for row in rows:
        groups.setdefault(case_key(row), []).append(row)
    return groups


def best_form(rows, library):
    """The fastest timed form of a library in one case, or None; of stableloss the one that is compared."""
    timed = [row for row in rows if row["library"] == library and row["ns_per_logit"]]
    if library == OURS:
        timed = [row for row in timed if row["form"] == OUT]
    return min(timed, key=lambda row: float(row["ratio_to_stableloss"]), default=None)


def best_rival(rows):
    forms = [best_form(rows, library) for library in LIBRARIES]
    forms = [form for form in forms if form]
    return min(forms, key=lambda row: float(row["ratio_to_stableloss"]), default=None)


@dataclass(frozen=True)
class Margin:
    """By how much stableloss is ahead in one case: the best rival's time over its own."""

    ratio: float
    place: str
    library: str

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
            found.setdefault((loss, dtype), []).append(Margin(ratio, place, rival["library"]))
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


def other_forms(rows):
    """One line per other form of our own, and the exponential: time over that of the form in the table."""
    found = {}
    for row in rows:
        if row["library"] == EXP or (row["library"] == OURS and row["form"] != OUT):
            name = f"`{EXP}`" if row["library"] == EXP else row["form"]
            found.setdefault(name, []).append(float(row["ratio_to_stableloss"]))
    return "\n".join(
        f"- {name} ÷ ours {statistics.geometric_mean(ratios):.2f} (geometric mean of {len(ratios)}), "
        f"{min(ratios):.2f} to {max(ratios):.2f}"
        for name, ratios in found.items()
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
        if row["library"] not in (COPY, MULTIPLY, EXP, OURS):
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
    parts = (intro, table(rows), summary(rows), other_forms(rows), notes(rows))
    return "\n\n".join(part for part in parts if part)


def highlights(rows):
    """README's rows, with what they were measured on."""
    last = rows[-1]
    lines = ["| loss | size | ns per logit | best rival | times as fast |", "|---|---|--:|--:|--:|"]
    for (loss, dtype, n, k, targets, _), group in by_case(rows).items():
        size = size_label(n, k, targets)
        rival = best_rival(group)
        if (loss, dtype, size) in HIGHLIGHTS and rival:
            cells = [f"`{loss}` {dtype}", size, number(best_form(group, OURS)["ns_per_logit"])]
            cells += [
                f"{number(rival['ns_per_logit'])} {rival['library']}",
                number(rival["ratio_to_stableloss"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    intro = (
        f"Value + gradient in one call, one thread, level `{last['level']}` on {last['cpu']}, version "
        f"{last['stableloss_version']}, beside the fastest of {versions(rows)}:"
    )
    return intro + "\n\n" + "\n".join(lines)


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
    axis.set_xlabel("rows x classes" if loss in BY_ROWS else "elements")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, metavar="FILE", help="of another machine or run")
    parser.add_argument("--table", type=Path, metavar="FILE", help="rewrite the table of all cells in FILE")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="rewrite the few rows in FILE")
    parser.add_argument("--plot", action="store_true", help="draw bench/results/speed.png")
    options = parser.parse_args()
    path = options.results or results_path(harness.THREADS)
    rows = harness.read_rows(path)
    if not rows:
        parser.error(f"{path} has no results")
    print(report(rows))
    if options.table:
        harness.rewrite_part(options.table, "bench", report(rows))
    if options.readme:
        harness.rewrite_part(options.readme, "speed", highlights(rows))
    if options.plot:
        plot(rows, harness.RESULTS / "speed.png")


if __name__ == "__main__":
    main()

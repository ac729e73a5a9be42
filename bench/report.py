"""Writes what run.py measured: the tables of each group, README's rows, the summaries and the figure.

python bench/report.py                       print the reports of this machine's results
python bench/report.py --table docs/speed.md  and put them there
python bench/report.py --readme README.md    put a few rows into README.md
python bench/report.py --plot                and draw bench/results/speed.png
python bench/report.py --results STEM ...    of the files in bench/results that are named STEM.csv,
                                             STEM-options.csv, ...; the figure then is STEM.png
"""

import harness  # before numpy  # isort: skip

import argparse
import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path

from cases import BY_ROWS, DTYPES, GROUPS, HIGHLIGHTS, KEY
from rivals import LIBRARIES

import stableloss

OURS = "stableloss"
COPY = "np.copyto"
MULTIPLY = "np.multiply"
EXP = "np.exp"
# The form of stableloss that the others are compared with; and the other forms that a table shows.
OUT = "out="
NEW_ARRAY = "new array"
LOSS_ALONE = "loss alone"
PLAIN = "plain call"
CACHE = "in cache"
CACHE_ALONE = "loss alone, in cache"
WITH_LIST = "loss alone, list as targets"
WITH_NUMBER = "loss alone, number as target"
BUILDING = "building the loss"

# What a large array may cost over one that is in the caches.
LARGE_LIMIT = 1.25

TITLES = {
    "plain": "Plain calls",
    "options": "With options",
    "activations": "Activations",
    "large": "Large arrays",
    "small": "Small calls",
}
PER_LOGIT = "ns per logit (lower is better)"
BESIDE = "beside the fastest of the other libraries, each at its fastest form."
SIZES = "Sizes are rows x classes, or elements."
INTROS = {
    "plain": f"Value + gradient, reduction `mean`, {{threads}}, {PER_LOGIT}, {BESIDE} {SIZES}",
    "options": f"Value + gradient of `softmax_ce`, reduction `mean`, {{threads}}, {PER_LOGIT}, also over "
    f"that of the plain call with class indices, {BESIDE} {SIZES} The classes in axis 1 are those of images "
    "of shape (4, 21, 128, 128).",
    "activations": f"Activations, {{threads}}, {PER_LOGIT}, {BESIDE} {SIZES}",
    "large": f"Value + gradient, {{threads}}, {PER_LOGIT}: of an array that no cache of one core holds, "
    f"beside the same of as many rows as stay there. {SIZES}",
    "small": "One call, {threads}, µs (lower is better).",
}


def results_path(group, threads, isa=harness.ISA, stem=None):
    """Where run.py keeps what it measures of a group: on this machine, unless a stem is given."""
    suffix = (f"-{threads}threads" if threads > 1 else "") + ("" if group == "plain" else f"-{group}")
    if stem:
        return harness.RESULTS / f"{stem}{suffix}.csv"
    level = f"{harness.ISAS[isa]['STABLELOSS_CPU']}-{isa}" if isa else stableloss.cpu_level()
    return harness.results_path("", level, suffix)


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
    """The margin of every case, by call and dtype."""
    found = {}
    for key, group in by_case(rows).items():
        rival = best_rival(group)
        if rival:
            ratio = float(rival["ratio_to_stableloss"])
            place = size_label(key)
            found.setdefault((call_label(key), key[1]), []).append(Margin(ratio, place, rival["library"]))
    return found


def smallest(entries):
    return min(entries, key=lambda margin: margin.ratio)


def geometric_mean(entries):
    return statistics.geometric_mean(margin.ratio for margin in entries)


def number(text):
    value = float(text)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size_label(key):
    _, _, n, k, targets, *_ = key
    if int(k) > 1:
        return f"{n}x{k}"
    return f"{int(n):,} {targets}" if targets in ("bool", "uint8") else f"{int(n):,}"


def beside_plain(key):
    """What a call has beside the logits and targets of a plain one."""
    _, dtype, _, _, targets, _, options = key
    dense = f"{targets} targets" if targets in ("one-hot", "soft") else ""
    return ", ".join(part for part in (options, dense, dtype if dtype not in DTYPES else "") if part)


def call_label(key):
    return beside_plain(key) or f"`{key[0]}`"


def column(dtype):
    """Where a dtype stands in a table: half precision is computed in float32."""
    return dtype if dtype in DTYPES else DTYPES[0]


def side_by_side(rows, head, entry, label=call_label):
    """One line per call and size, the dtypes side by side, of `entry` cells each."""
    cells = {}
    for key, group in by_case(rows).items():
        cells.setdefault((label(key), size_label(key)), {})[column(key[1])] = entry(group)
    columns = ["call", "size"]
    for dtype in DTYPES:
        columns += [dtype, *head]
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "--:|" * (len(columns) - 2)]
    for place, entries in cells.items():
        line = list(place)
        for dtype in DTYPES:
            line += entries.get(dtype, ["-"] * (1 + len(head)))
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def of_form(rows, form):
    """What was measured of another form of stableloss in one case, or None."""
    return next((row for row in rows if row["library"] == OURS and row["form"] == form), None)


def ratio_of(row):
    return float(row["ratio_to_stableloss"])


def table(rows, over_plain=False):
    """Each call beside the best rival, and over our own plain call."""

    def entry(group):
        ours, rival = best_form(group, OURS), best_rival(group)
        cells = [f"**{number(ours['ns_per_logit'])}**"]
        if over_plain:
            cells.append(number(1 / ratio_of(of_form(group, PLAIN))))
        if rival:
            return [*cells, f"{number(rival['ns_per_logit'])} {rival['library']}", number(ratio_of(rival))]
        return [*cells, "-", "-"]

    return side_by_side(rows, [*(["÷ plain"] if over_plain else []), "best rival", "÷ ours"], entry)


def slowdowns(group):
    """A large array's cost per logit over that in the caches: with the gradient, and of the loss alone."""
    found = [1 / ratio_of(of_form(group, CACHE))]
    if alone := of_form(group, CACHE_ALONE):
        found.append(ratio_of(of_form(group, LOSS_ALONE)) / ratio_of(alone))
    return found


def large_table(rows):
    def entry(group):
        whole, *alone = slowdowns(group)
        times = (of_form(group, form)["ns_per_logit"] for form in (OUT, CACHE))
        return [*map(number, times), number(whole), number(alone[0]) if alone else "-"]

    def label(key):
        return f"`{key[0]}`" + (f", {beside_plain(key)}" if beside_plain(key) else "")

    return side_by_side(rows, ["in cache", "÷", "loss alone ÷"], entry, label)


def large_summary(rows):
    found = [
        (ratio, f"{call_label(key)} {key[1]} {size_label(key)}{alone}")
        for key, group in by_case(rows).items()
        for ratio, alone in zip(slowdowns(group), ("", ", loss alone"), strict=False)
    ]
    beyond = [ratio for ratio, _ in found if ratio > LARGE_LIMIT]
    worst, place = max(found)
    return (
        f"- {len(found) - len(beyond)} of {len(found)} cost at most {LARGE_LIMIT} times as much as in cache; "
        f"the most, {worst:.2f} times as much, {place}"
    )


def small_table(rows):
    """µs per call: of stableloss in several forms, and of the rivals."""
    forms = (OUT, NEW_ARRAY, LOSS_ALONE, WITH_LIST, WITH_NUMBER, BUILDING)
    libraries = [name for name in LIBRARIES if any(row["library"] == name for row in rows)]
    head = ["loss", "size", "dtype", *forms, *libraries]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|" + "--:|" * (len(head) - 3)]
    for key, group in by_case(rows).items():
        timed = [of_form(group, form) for form in forms] + [best_form(group, name) for name in libraries]
        logits = int(key[2]) * int(key[3])
        times = [f"{float(row['ns_per_logit']) * logits / 1000:.2f}" if row else "-" for row in timed]
        lines.append(f"| {' | '.join([f'`{key[0]}`', size_label(key), key[1], *times])} |")
    return "\n".join(lines)


def summary(rows):
    """One line per call and dtype: geometric mean and worst case of best rival ÷ ours."""
    return "\n".join(
        f"- {call} {dtype}: best rival ÷ ours {geometric_mean(entries):.2f} (geometric mean of "
        f"{len(entries)}), smallest {smallest(entries)}"
        for (call, dtype), entries in margins(rows).items()
    )


def other_forms(rows):
    """One line per other form of our own, and the exponential: time over that of the form in the table."""
    found = {}
    for row in rows:
        if row["library"] == EXP or (row["library"] == OURS and row["form"] != OUT):
            name = f"`{EXP}`" if row["library"] == EXP else row["form"]
            found.setdefault(name, []).append(ratio_of(row))
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
        key = case_key(row)
        place = f"{call_label(key).strip('`')} {row['dtype']} {size_label(key)}"
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


def machine(rows):
    """What the rows were measured on, and with."""
    last = rows[-1]
    kept = f", every library kept to {last['isa'].upper()}" if last["isa"] else ""
    others = versions(rows)
    return (
        f"{last['cpu']}, CPU level `{last['level']}`{kept}, Python {last['python_version']}, "
        f"{OURS} {last['stableloss_version']}{', ' + others if others else ''}."
    )


def report(group, rows):
    threads = "one thread" if rows[-1]["threads"] == "1" else f"{rows[-1]['threads']} threads each"
    intro = f"{INTROS[group].format(threads=threads)} {machine(rows)}"
    if group == "large":
        parts = [large_table(rows), large_summary(rows)]
    elif group == "small":
        parts = [small_table(rows)]
    else:
        parts = [table(rows, over_plain=group == "options"), summary(rows), other_forms(rows)]
    return "\n\n".join(part for part in (intro, *parts, notes(rows)) if part)


def page(results):
    """The reports of all that has been measured, each below its title."""
    parts = []
    for group, rows in results:
        kept = f", every library kept to {rows[-1]['isa'].upper()}" if rows[-1]["isa"] else ""
        parts.append(f"### {TITLES[group]}{kept}\n\n:::{{container}} bench\n{report(group, rows)}\n:::")
    return "\n\n".join(parts)


def highlights(results):
    """README's rows, with what they were measured on."""
    lines = ["| loss | size | ns per logit | best rival | times as fast |", "|---|---|--:|--:|--:|"]
    for key, group in itertools.chain.from_iterable(by_case(rows).items() for rows in results):
        loss, dtype = key[:2]
        rival = best_rival(group)
        if (loss, dtype, size_label(key), beside_plain(key)) in HIGHLIGHTS and rival:
            call = f"`{loss}` {dtype}" + (f", {beside_plain(key)}" if beside_plain(key) else "")
            ours = number(best_form(group, OURS)["ns_per_logit"])
            beside = f"{number(rival['ns_per_logit'])} {rival['library']}"
            lines.append(f"| {call} | {size_label(key)} | {ours} | {beside} | {number(ratio_of(rival))} |")
    last = results[0][-1]
    intro = (
        f"Value + gradient in one call, one thread, level `{last['level']}` on {last['cpu']}, version "
        f"{last['stableloss_version']}, beside the fastest of {versions(results[0])}:"
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
    labels = [size_label(key) for key in places]
    axis.set_xticks(list(places.values()), labels, rotation=40, ha="right", fontsize=7)
    axis.set_xlabel("rows x classes" if loss in BY_ROWS else "elements")


def stored(stem, threads):
    """Group and rows of all that has been measured on this machine, or is stored under the stem."""
    return [
        (group, rows)
        for isa, group in itertools.product(("",) if stem else ("", *harness.ISAS), GROUPS)
        if (rows := harness.read_rows(results_path(group, threads, isa, stem)))
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", metavar="STEM", help="of another machine or run, in bench/results")
    parser.add_argument("--table", type=Path, metavar="FILE", help="rewrite the tables in FILE")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="rewrite the few rows in FILE")
    parser.add_argument("--plot", action="store_true", help="draw bench/results/speed.png")
    options = parser.parse_args()
    results = stored(options.results, harness.THREADS)
    plain = results_path("plain", harness.THREADS, stem=options.results)
    # the first of each group: what is kept to an instruction set comes last
    first = {group: rows for group, rows in reversed(results)}
    if "plain" not in first:
        parser.error(f"{plain} has no results")
    print(page(results))
    if options.table:
        harness.rewrite_part(options.table, "bench", page(results))
    if options.readme:
        shown = [first[group] for group in ("plain", "options") if group in first]
        harness.rewrite_part(options.readme, "speed", highlights(shown))
    if options.plot:
        plot(first["plain"], plain.with_suffix(".png") if options.results else plain.with_name("speed.png"))


if __name__ == "__main__":
    main()

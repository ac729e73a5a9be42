"""The tables of the documentation that list the losses, from their classes.

    python tests/tables.py     rewrite them

What a row of docs/options.md is called stands in its first cell; the class's docstring has the rest.
"""

import inspect
import re
import textwrap

import bits
from worst_cases import CLASSES, ROOT, Statement

import stableloss as sl

WIDTH = 120


def classes():
    return [getattr(sl, name) for name in CLASSES.values()]


def table(*rows):
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace("|  |", "| |").replace("|  |", "| |")


def part(page, name, text):
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->\n"
    return Statement(ROOT / "docs" / f"{page}.md", f"{begin}(.*){end}", text)


# ---- of the classes ------------------------------------------------------------------------------


def title(cls):
    """What a loss is, from the first line of its docstring."""
    return inspect.getdoc(cls).splitlines()[0].split(", from ")[0]


def formula(cls):
    """Of one row or element; beside that of a class index, of probabilities."""
    right = re.search(r"^ +loss = (.+)$", inspect.getdoc(cls), re.MULTILINE).group(1)
    return ", or ".join(f"`{form}`" for form in re.split(r" {3,}", right))


def targets(stem):
    if bits.by_rows(stem):
        return "class indices, or probabilities of the logits' shape"
    return f"0 {'to 1' if bits.target_max(stem) == 1 else 'or more'}, of the logits' shape"


def takes(stem, name):
    """Whether a loss has an option, or its calls an argument."""
    cls = type(getattr(sl, stem))
    if name in ("with_stats", "probabilities"):
        return bits.has_statistics(stem)
    return (
        name in inspect.signature(cls).parameters or name in inspect.signature(cls.value_and_grad).parameters
    )


def named(cell):
    """The options or arguments that the first cell of a row names."""
    return [name for group in re.findall(r"\{ref\}`([\w, ]+) <", cell) for name in group.split(", ")]


# ---- the pages -----------------------------------------------------------------------------------


def instances():
    first, *others = (f"`{stem}`" for stem in CLASSES)
    return f"{first.replace('`', '`stableloss.', 1)}, {', '.join(others[:-1])} and {others[-1]}"


def api():
    names = "".join(f"   {name}\n" for name in CLASSES.values())
    listed = f"```{{eval-rst}}\n.. autosummary::\n   :toctree: generated\n\n{names}```\n"
    sentence = f"{instances()} are ready-made instances of these classes, without options."
    return f"{listed}\n{textwrap.fill(sentence, WIDTH)}\n"


def overview():
    rows = [
        [f"`sl.{stem}`", f"{{py:class}}`~stableloss.{name}`", title(cls), targets(stem)]
        for (stem, name), cls in zip(CLASSES.items(), classes(), strict=True)
    ]
    return table(["instance", "class", "activation and cost", "targets"], ["---"] * 4, *rows)


def formulas():
    rows = [
        [f"`{name}`", f"`{stem}`", formula(cls), targets(stem)]
        for (stem, name), cls in zip(CLASSES.items(), classes(), strict=True)
    ]
    return table(["class", "instance", "loss of one row (element)", "targets"], ["---"] * 4, *rows)


def first_cells():
    """Of the table of options, below its head."""
    text = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    lines = re.search(r"<!-- options:begin -->\n(.*)<!-- options:end -->", text, re.DOTALL).group(1)
    return [line.split(" | ")[0].removeprefix("| ") for line in lines.splitlines()[2:]]


def options():
    rows = [
        [cell, *("✓" if named(cell) and all(takes(stem, n) for n in named(cell)) else "" for stem in CLASSES)]
        for cell in first_cells()
    ]
    head = ["given to the class", *(f"`{name}`" for name in CLASSES.values())]
    return table(head, ["---", *(":-:" for _ in CLASSES)], *rows)


def statements():
    yield part("api", "classes", api())
    yield part("start", "losses", overview())
    yield part("start", "formulas", formulas())
    yield part("options", "options", options())


if __name__ == "__main__":
    for statement in statements():
        statement.write()

"""What the kernel files say of themselves: one namespace, in files that name what they use of each other.

    python tests/test_kernel_files.py            show what is wrong
    python tests/test_kernel_files.py --write    rewrite the lines `# uses _file: names` at their heads

setup.py includes the files in the order that these lines give.
"""

import argparse
import graphlib
import re
import sys
import textwrap
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent / "stableloss" / "_kernels"
FILES = sorted(path.stem for path in KERNELS.glob("*.pxi"))
USES = re.compile(r"# uses (\w+): (.+)")
WIDTH = 110
# A function that is longer than a screen, or has more arguments than a reader keeps in mind, is two. What
# Python sees is exempt: its arguments are those of the package.
LINES, PARAMETERS = 60, 8

STRINGS = re.compile(r'""".*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*', re.DOTALL)
NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
# at the start of a line: functions, classes and structs, types of functions, variables
DEFINITION = re.compile(
    r"""(?:
        cdef\ (?:inline\ )?[\w.*\ ]+?[\s*](?P<function>\w+)\(
      | def\ (?P<public>\w+)\(
      | cdef\ (?:class|struct)\ (?P<type>\w+)
      | ctypedef\ (?:fused|struct)\ (?P<fused>\w+)
      | ctypedef\ [\w.*\ ]+\(\*(?P<pointer>\w+)\)
      | cdef\ [\w.\ ]+?\ (?P<variable>\w+)\ =
    )""",
    re.VERBOSE,
)
IMPORT = re.compile(r"^(?:from [\w.]+ )?c?import (?:\(([^)]*)\)|([^\n]*))", re.MULTILINE)


def text_of(stem):
    return (KERNELS / f"{stem}.pxi").read_text(encoding="utf-8")


def code_of(stem):
    """The text without comments and strings, in as many lines."""
    return STRINGS.sub(lambda match: "\n" * match[0].count("\n"), text_of(stem))


def blocks(stem):
    """The functions, structs and other parts that begin at the start of a line."""
    lines = code_of(stem).splitlines()
    starts = [i for i, line in enumerate(lines) if line and not line.startswith((" ", ")"))]
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield "\n".join(lines[start:stop]).rstrip()


def declared(line):
    """What a line of an enum, or of what is said of a header, declares."""
    if "(" in line:
        return re.findall(r"(\w+)\(", line)[:1]
    parts = [part.split("=")[0].split() for part in line.removeprefix("enum: ").split(",")]
    return [words[-1] for words in parts if words]


def definitions(stem):
    """The names that a file adds to the namespace."""
    found = set()
    for block in blocks(stem):
        if match := DEFINITION.match(block):
            found.add(next(filter(None, match.groups())))
        elif re.match(r"cdef (enum|extern)\b", block):
            lines = re.sub(r"\(\s+", "(", block).splitlines()[1:]
            found.update(name for line in lines for name in declared(line.strip()))
    for several, one in IMPORT.findall(code_of(stem)):
        found.update(part.split()[-1] for part in (several or one).split(",") if part.strip())
    return found


DEFINED = {stem: definitions(stem) for stem in FILES}
OWNER = {name: stem for stem in FILES for name in DEFINED[stem]}
# what the first file imports for all, types of fixed width and numpy
COMMON = {"cython", "np"} | {name for name in OWNER if re.fullmatch(r"u?int\d+_t|malloc|free|mem\w+", name)}


def parameters(block):
    head = block[: re.search(r":$", block, re.MULTILINE).start()]
    return [part.strip() for part in head[head.index("(") + 1 : head.rindex(")")].split(",") if part.strip()]


def is_function(block):
    match = DEFINITION.match(block)
    return bool(match and (match["function"] or match["public"]))


def local_names(block):
    """Parameters and variables of a function, fields and methods' parameters of a struct or class."""
    lines = re.findall(r"^ +(?:cdef )?(?!return|if|elif|for|while)[\w.*\[\] ]+$", block, re.MULTILINE)
    lines += re.findall(r"^ +cdef (.*)", block, re.MULTILINE)
    lines += re.findall(r"^ +c?def [^(]*\((.*)\)", block, re.MULTILINE)
    lines += re.findall(r"^ +(?:for )?(\w+)(?: = | in )", block, re.MULTILINE)
    names = [part for line in lines for part in line.split(",")]
    names += parameters(block) if is_function(block) else []
    found = (re.findall(r"\w+", re.split(r"[=\[]", name)[0]) for name in names)
    return {words[-1] for words in found if words}


def uses(stem):
    """The names that a file uses, by the file that defines them."""
    found = {}
    for block in blocks(stem):
        for name in set(NAME.findall(block)) - local_names(block) - COMMON:
            owner = OWNER.get(name, stem)
            if owner != stem:
                found.setdefault(owner, set()).add(name)
    return found


def uses_lines(stem):
    """A line for each file, or as many as its names fill."""
    for owner, names in sorted(uses(stem).items()):
        head = f"# uses {owner}: "
        yield from textwrap.wrap(
            " ".join(sorted(names)), WIDTH, initial_indent=head, subsequent_indent=head
        )  # fmt: skip


def stated(stem):
    return [line for line in text_of(stem).splitlines() if USES.match(line)]


@pytest.mark.parametrize("stem", FILES)
def test_a_file_names_what_it_uses(stem):
    assert stated(stem) == list(uses_lines(stem)), "python tests/test_kernel_files.py --write"


def test_a_name_has_one_file():
    for stem in FILES:
        assert {name for name in DEFINED[stem] if OWNER[name] != stem} == set()


def test_files_build_on_each_other_in_one_order():
    graph = {stem: set(uses(stem)) for stem in FILES}
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(FILES)


@pytest.mark.parametrize("stem", FILES)
def test_functions_are_short(stem):
    for block in blocks(stem):
        match = DEFINITION.match(block)
        if match and match["function"]:
            assert block.count("\n") < LINES, match["function"]
            assert len(parameters(block)) <= PARAMETERS, match["function"]


def rewrite(stem):
    """Put the lines of uses at the end of the first comment."""
    lines = [line for line in text_of(stem).splitlines() if not USES.match(line)]
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    while lines[end - 1] == "#":
        end -= 1
        del lines[end]
    wanted = list(uses_lines(stem))
    if wanted:
        lines[end:end] = ["#", *wanted]
    (KERNELS / f"{stem}.pxi").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description="Compare the kernel files' `# uses` lines with their code.")
    parser.add_argument("--write", action="store_true", help="rewrite them")
    if parser.parse_args().write:
        for stem in FILES:
            rewrite(stem)
        return
    wrong = [stem for stem in FILES if stated(stem) != list(uses_lines(stem))]
    for stem in wrong:
        print(f"{stem}.pxi", *uses_lines(stem), sep="\n    ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

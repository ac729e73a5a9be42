"""The examples of the documentation run, and what its pages take from other files is there."""

import doctest
import math
import re
from pathlib import Path

import mpmath
import numpy as np
import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
# these two have tests of their own
PAGES = sorted(path.stem for path in DOCS.glob("*.md") if path.stem not in ("porting", "boosting-on-dask"))
OPTIONAL = ("autograd", "dask", "lightgbm", "ml_dtypes", "sklearn", "thinc", "torch", "xgboost")

SECTION = re.compile(r"^(?=## )", re.MULTILINE)
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r'^```\{include\} (\S+)\n:start-after: "(.*)"\n:end-before: "(.*)"\n```$', re.MULTILINE)


def read(page):
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def sections():
    """Page and text of each part that has examples: the introduction, and every section with it."""
    for page in PAGES:
        introduction, *parts = SECTION.split(read(page))
        for text in ["", *parts]:
            if EXAMPLE.search(text or introduction):
                heading = text.partition("\n")[0].strip("# ")
                yield pytest.param(introduction + text, id=f"{page}: {heading}" if heading else page)


@pytest.mark.parametrize("text", list(sections()))
def test_examples(text):
    """Examples with prompts return what they show; the others run to their end."""
    for name in OPTIONAL:
        if re.search(rf"^(>>> )?(import|from) {name}\b", text, re.MULTILINE):
            pytest.importorskip(name)
    names, report = {}, []
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    with np.errstate(), np.printoptions(), mpmath.workprec(mpmath.mp.prec):
        for example in EXAMPLE.findall(text):
            if ">>>" in example:
                test = doctest.DocTestParser().get_doctest(example, names, "example", None, 0)
                runner.run(test, out=report.append, clear_globs=False)
                names = test.globs
            else:
                exec(compile(example, "example", "exec"), names)
    assert not report, "".join(report)


@pytest.mark.parametrize("page", PAGES)
def test_included_parts_exist(page):
    """Sphinx would put a warning, or the rest of the file, in their place."""
    text = read(page)
    included = INCLUDE.findall(text)
    assert len(included) == text.count("{include}")
    for path, start, end in included:
        assert end in (DOCS / path).read_text(encoding="utf-8").partition(start)[2]


def test_every_page_is_in_the_table_of_contents():
    tables = re.findall(r"^```\{toctree\}\n(.*?)^```$", read("index"), re.MULTILINE | re.DOTALL)
    entries = {line for table in tables for line in table.splitlines() if not line.startswith(":")}
    assert entries - {""} == {path.stem for path in DOCS.glob("*.md")} - {"index"} | {"porting"}


def test_sizes_from_which_a_call_is_shared():
    """The table of the page on threads, against the figures of the kernels."""
    blocks, job = (
        (DOCS.parent / "stableloss" / "_kernels" / f"{name}.pxi").read_text(encoding="utf-8")
        for name in ("_blocks", "_job")
    )
    work = int(re.search(r"THREAD_WORK = (\d+)$", blocks, re.MULTILINE)[1])
    one_block = int(re.search(r"BLOCK_ITEMS = (\d+) ", job)[1])
    costs = re.findall(r"^ +\[([\d., ]+)\],  +# (\w+)$", blocks, re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| (\d[\d,]+) \| (.*) \| (.*) \| (.*) \|$", read("threads"), re.MULTILINE)
    assert [level for level, *_ in rows] == [level for _, level in costs] == ["base", "v3", "v4"]
    for (_, *sizes), (figures, _) in zip(rows, costs, strict=True):
        at_two = [math.ceil(2 * work / float(figure)) for figure in figures.split(", ")]
        assert [int(size.replace(",", "")) for size in sizes] == [max(size, one_block + 1) for size in at_two]

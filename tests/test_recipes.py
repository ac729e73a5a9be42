"""docs/adapters.md, "Networks that need a few lines": what stands there and what takes its place agree."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "adapters.md"
TITLE = "## Networks that need a few lines\n"
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# what the second block of a pair may have in common with the first: its results
RESULTS = ("loss", "grad", "cost", "delta", "dZ", "dys")

TEXT = PAGE.read_text(encoding="utf-8")
INTRODUCTION = "\n".join(CODE.findall(TEXT.partition("(adapter-layer)=")[0]))
RECIPES = re.split(r"^### (.*)\n", TEXT.partition(TITLE)[2], flags=re.MULTILINE)[1:]


def run(code, names):
    exec(compile(code, str(PAGE), "exec"), names)


@pytest.mark.parametrize(("recipe", "text"), list(zip(RECIPES[::2], RECIPES[1::2], strict=True)))
def test_recipe(recipe, text):
    """Of every pair of blocks, each result: computed twice, and equal."""
    names = {}
    # some recipes go on from the names of the first
    run("\n".join([INTRODUCTION, *CODE.findall(RECIPES[1])]), names)
    blocks = CODE.findall(text)
    assert blocks
    assert len(blocks) % 2 == 0
    for theirs, ours in zip(blocks[::2], blocks[1::2], strict=True):
        results = []
        for block in (theirs, ours):
            for name in RESULTS:
                names.pop(name, None)
            run(block, names)
            results.append({name: names[name] for name in RESULTS if name in names})
        expected, got = results
        assert expected
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-13, atol=1e-15, err_msg=f"{recipe}: {name}")


def test_page_is_read_whole():
    assert len(RECIPES) == 2 * TEXT.count("\n### ")
    assert RECIPES

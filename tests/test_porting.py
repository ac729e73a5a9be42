"""docs/porting.md: both calls of every pair, as they stand on the page."""

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "porting.md"
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# what a section needs, beyond numpy, and how closely its own arithmetic can agree
NEEDS = {
    "PyTorch": (["torch"], 1e-12),
    "optax": (["jax", "optax"], 1e-5),
    "Keras": (["keras"], 1e-5),
    "TensorFlow": (["tensorflow"], 1e-12),
    "The numpy idiom of CS231n": ([], 1e-12),
}


class Pair(NamedTuple):
    section: str
    name: str
    set_up: str
    theirs: str
    ours: str


def sections(text, level):
    """Headings of a level and what stands below each; the text before the first is dropped."""
    parts = re.split(rf"^{'#' * level} (.*)\n", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


TEXT = PAGE.read_text(encoding="utf-8")
ARRAYS = CODE.search(TEXT).group(1)
PAIRS = [
    Pair(section, name, CODE.search(body).group(1), *CODE.findall(pair))
    for section, body in sections(TEXT, 2)
    for name, pair in sections(body, 3)
]


def run(code, names):
    names = dict(names)
    exec(compile(code, str(PAGE), "exec"), names)
    return names


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.section}-{pair.name}")
@pytest.mark.filterwarnings("ignore")  # those of other libraries
def test_pair(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    libraries, tolerance = NEEDS[pair.section]
    for library in libraries:
        pytest.importorskip(library, exc_type=ImportError)
    names = run(ARRAYS, {})
    theirs = run(pair.theirs, run(pair.set_up, names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = run(pair.ours, names)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=tolerance)
    assert ("grad" in ours) == ("grad" in theirs)
    if "grad" in ours:
        atol = tolerance * abs(ours["grad"]).max()
        np.testing.assert_allclose(ours["grad"], theirs["grad"], rtol=tolerance, atol=atol)


def test_page_is_read_whole():
    assert len(PAIRS) * 2 + len(NEEDS) + 1 == len(CODE.findall(TEXT))
    assert {pair.section for pair in PAIRS} == set(NEEDS)

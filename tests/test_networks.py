"""docs/networks: the lines that stand in a network and those that take their place give the same results."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import stableloss.adapters

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(path.stem for path in (DOCS / "networks").glob("*.md"))
SECTION = re.compile(r"^## (.*)\n", re.MULTILINE)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# what a network is asked for: both blocks of a pair assign the same ones
RESULTS = ("loss", "grad", "cost", "delta", "dZ", "dys", "accuracy", "probabilities", "margins")
# what a page needs, beyond numpy, and how closely its own arithmetic can agree where not to rounding
NEEDS = {
    "autograd": (["autograd"], 1e-12),
    "lightgbm": (["lightgbm"], 1e-6),
    "sklearn": (["sklearn"], 1e-9),
    "thinc": (["thinc"], 1e-6),
    "torch": (["torch"], 1e-12),
    "xgboost": (["xgboost"], 1e-5),
}
ADAPTERS = sorted(path.stem for path in Path(stableloss.adapters.__file__).parent.glob("[!_]*.py"))


def read(page):
    return (DOCS / "networks" / f"{page}.md").read_text(encoding="utf-8")


# ---- the modules that the courses and books have their readers write ------------------------------


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_loss(x, y):
    p, rows = softmax(x), np.arange(len(x))
    loss = -np.mean(np.log(p[rows, y]))
    p[rows, y] -= 1
    return loss, p / len(x)


def temporal_softmax_loss(x, y, mask, verbose=False):
    p, counts = softmax(x), mask[..., np.newaxis] / len(x)
    hot = np.eye(x.shape[2])[y]
    return -np.sum(counts * hot * np.log(p)), (p - hot) * counts


class SoftmaxWithLoss:
    def forward(self, x, t):
        self.y, self.t = softmax(x), t
        return -np.mean(np.log(self.y[np.arange(len(t)), t]))

    def backward(self, dout=1):
        return dout * (self.y - np.eye(self.y.shape[1])[self.t]) / len(self.t)


class SigmoidWithLoss:
    def forward(self, x, t):
        self.y, self.t = 1 / (1 + np.exp(-x)), t
        return -np.mean(np.log(np.where(t == 1, self.y, 1 - self.y)))

    def backward(self, dout=1):
        return dout * (self.y - self.t) / len(self.t)


class TimeSoftmaxWithLoss:
    def forward(self, xs, ts):
        self.ys, self.ts, self.counts = softmax(xs), ts, (ts != -1)[..., np.newaxis]
        hot = self.counts * np.eye(xs.shape[2])[ts]
        return -np.sum(hot * np.log(self.ys)) / self.counts.sum()

    def backward(self, dout=1):
        hot = np.eye(self.ys.shape[2])[self.ts]
        return dout * self.counts * (self.ys - hot) / self.counts.sum()


MODULES = {
    "cs231n.layers": [softmax_loss],
    "cs231n.layer_utils": [],
    "cs231n.rnn_layers": [temporal_softmax_loss],
    "common.layers": [SoftmaxWithLoss, SigmoidWithLoss],
    "common.time_layers": [TimeSoftmaxWithLoss],
}


@pytest.fixture
def modules(monkeypatch):
    for name, contents in MODULES.items():
        package = name.partition(".")[0]
        for each in (package, name):
            monkeypatch.setitem(sys.modules, each, ModuleType(each))
        for thing in contents:
            setattr(sys.modules[name], thing.__name__, thing)


# ---- the pages ------------------------------------------------------------------------------------


def taken(names):
    """The results, out of the names that code has assigned."""
    return {name: names.pop(name) for name in RESULTS if name in names}


def assert_same(got, expected, tolerance, where):
    if not isinstance(expected, (list, tuple)):
        got, expected = [got], [expected]
    assert len(got) == len(expected), where
    for one, other in zip(got, expected, strict=True):
        one, other = (getattr(value, "detach", lambda value=value: value)() for value in (one, other))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance / 10, err_msg=where)


@pytest.mark.parametrize("page", PAGES)
def test_page(page, modules):
    """Every block runs; of those that come in pairs, each result is computed twice, and equal."""
    libraries, tolerance = NEEDS.get(page, ([], 1e-13))
    for library in libraries:
        pytest.importorskip(library)
    set_up, *sections = SECTION.split(read(page))
    names, pairs = {}, 0
    exec(compile("".join(CODE.findall(set_up)), f"{page}, set-up", "exec"), names)
    for heading, text in zip(sections[::2], sections[1::2], strict=True):
        blocks = CODE.findall(text)
        for i, block in enumerate(blocks):
            where = f"{page}, {heading}, block {i + 1}"
            exec(compile(block, where, "exec"), names)
            results = taken(names)
            if i % 2 == 0:
                expected = results
                # a last block may stand by itself
                assert expected or i == len(blocks) - 1, where
                continue
            pairs += 1
            assert results.keys() == expected.keys(), where
            for name, value in expected.items():
                assert_same(results[name], value, tolerance, f"{where}: {name}")
            for module in re.findall(r"^from (stableloss\.adapters\.\w+) import", block, re.MULTILINE):
                # nothing that follows an import may undo it
                for name in importlib.import_module(module).__all__:
                    if re.search(rf"^from {re.escape(module)} import .*\b{name}\b", block, re.MULTILINE):
                        assert names[name] is getattr(sys.modules[module], name), where
    assert pairs


@pytest.mark.parametrize("name", ADAPTERS)
def test_everything_public_is_documented(name):
    module = pytest.importorskip(f"stableloss.adapters.{name}", exc_type=ImportError)
    text = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    assert re.search(rf"^\.\. (py:|auto)module:: stableloss\.adapters\.{name}$", text, re.MULTILINE)
    for public in module.__all__:
        assert re.search(rf"\b{public}\b", text), public


def test_index_has_every_page():
    index = (DOCS / "adapters.md").read_text(encoding="utf-8")
    assert {f"networks/{page}" for page in PAGES} == set(re.findall(r"^networks/\S+$", index, re.MULTILINE))
    assert set(re.findall(r"\]\(networks/([\w-]+)\.md\)", index)) == set(PAGES)

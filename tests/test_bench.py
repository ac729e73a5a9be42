"""The benches run: every library's results agree with ours, and tables and figures are made.

No time is looked at.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import bits
import pytest

import stableloss as sl
from stableloss import _dispatch

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
GROUPS = ("plain", "options", "activations", "large", "small")


def run(script, *arguments):
    """What a bench prints; each needs a process of its own, as its harness comes before numpy."""
    command = [sys.executable, str(BENCH / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def tables(text):
    """The first cells and the others of all lines of tables but their heads."""
    lines = re.findall(r"^\| (?!call |loss )(.*) \|$", text, re.MULTILINE)
    return [(name.strip("`"), cells) for name, *cells in (line.split(" | ") for line in lines)]


@pytest.fixture(scope="module")
def beside_numpy(tmp_path_factory):
    """What all groups print, and where their results are."""
    stem = tmp_path_factory.mktemp("bench") / "here"
    return run("run.py", "--quick", "--results", stem, "--group", *GROUPS, "--libraries", "numpy"), stem


# ---- what is measured ----------------------------------------------------------------------------

OPTIONS = {
    "one-hot targets",
    "soft targets",
    "label_smoothing",
    "class_weight",
    "ignore_index",
    "mask",
    "logit_scale",
    "softcap + z_loss",
    "focal_gamma",
    "focal_gamma, one-hot targets",
    "focal_gamma + label_smoothing",
    "from_probabilities",
    "float16",
    "axis",
}


def assert_complete(text, library, groups):
    """Every call has its line, with options the library has too; its results agree with ours."""
    assert "not timed" not in text
    assert text.count("one thread") == len(groups)
    lines = tables(text)
    assert {name for name, _ in lines} >= set(bits.LOSSES)
    if "activations" in groups:
        assert {name for name, _ in lines} >= set(bits.ACTIVATIONS)
    if "options" in groups:
        found = {name: cells for name, cells in lines if name in OPTIONS}
        assert found.keys() == OPTIONS
        for name, cells in found.items():
            assert sum(library in cell for cell in cells) == (1 if name == "float16" else 2), name


def test_groups(beside_numpy):
    assert_complete(beside_numpy[0], "numpy", GROUPS)


@pytest.mark.parametrize(
    ("library", "module", "groups"),
    [
        ("scipy", "scipy", ("plain", "activations")),
        ("scikit-learn", "sklearn", ("plain",)),
        ("numba", "numba", ("plain", "small")),
        ("torch", "torch", ("plain", "options", "activations")),
        ("JAX", "jax", ("plain", "options", "activations")),
    ],
)
def test_libraries(library, module, groups):
    pytest.importorskip(module)
    text = run("run.py", "--quick", "--group", *groups, "--libraries", library)
    assert_complete(text, library, groups)


def test_small_calls_have_every_form(beside_numpy):
    text = beside_numpy[0][beside_numpy[0].rindex("| loss |") :]
    forms = "out=", "new array", "loss alone", "list as targets", "number as target", "building the loss"
    assert all(form in text.splitlines()[0] for form in forms)
    assert len(tables(text)) == 2 * 3 * len(bits.LOSSES)
    for name, (size, _, *times) in tables(text):
        of_one = size.startswith("1x") or size == "1"
        assert times.count("-") == (0 if of_one else 1), (name, size)


def test_a_rival_that_disagrees_is_not_timed():
    """A gradient that is off by a thousandth is refused, and so is a loss."""
    code = """
import harness, numpy as np, run
reference = 2.0, np.array([0.5, -0.25], np.float32)
for loss, factor in ((2.0, 1.0), (2.001, 1.0), (2.0, 1.001)):
    loss_error, grad_error = run.error_against(reference, (loss, reference[1] * factor), "float32")
    print(loss_error <= run.LOSS_TOLERANCE["float32"], grad_error <= 1)
"""
    assert python(code).split("\n") == ["True True", "False True", "True False", ""]


# ---- instruction sets ----------------------------------------------------------------------------


def python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=BENCH, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif("v3" not in _dispatch.available(), reason="AVX2 is level v3")
def test_isa():
    """stableloss and numpy are kept to AVX2; torch and numba too, where they are installed."""
    code = """
import harness
harness.restrict("avx2")
import importlib.util, stableloss
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
print(stableloss.cpu_level(), *(f"numpy:{name}" for name in __cpu_dispatch__ if __cpu_features__[name]))
if importlib.util.find_spec("torch"):
    import torch
    print(f"torch:{torch.backends.cpu.get_cpu_capability()}")
if importlib.util.find_spec("numba"):
    import numba, numpy as np
    add = numba.njit(fastmath=True)(lambda x, y: (x + y).sum())
    add(np.ones(9), np.ones(9))
    code = "".join(add.inspect_asm().values())
    print(*(f"numba:{register}" for register in ("ymm", "zmm") if register in code))
"""
    level, *others = python(code).split()
    assert level == "v3"
    assert not [name for name in others if re.search("AVX512|X86_V4|zmm", name)]


@pytest.mark.skipif("v3" not in _dispatch.available(), reason="AVX2 is level v3")
def test_isa_of_results():
    arguments = "--group", "small", "--loss", bits.LOSSES[0], "--libraries", "numpy"
    text = run("run.py", "--quick", "--isa", "avx2", *arguments)
    assert "CPU level `v3`, every library kept to AVX2" in text


# ---- what is written -----------------------------------------------------------------------------


def test_report(beside_numpy, tmp_path):
    """Every group has its title and table on the page, and README its rows; all else stays."""
    pytest.importorskip("matplotlib")
    stem = beside_numpy[1]
    page, readme = tmp_path / "speed.md", tmp_path / "README.md"
    shutil.copy(ROOT / "docs" / "speed.md", page)
    shutil.copy(ROOT / "README.md", readme)
    before = page.read_text(encoding="utf-8")
    run("report.py", "--results", stem, "--table", page, "--readme", readme, "--plot")
    text = page.read_text(encoding="utf-8")
    for title in ("Plain calls", "With options", "Activations", "Large arrays", "Small calls"):
        assert text.count(f"### {title}\n") == 1
    outside = [re.sub(r"(?s)<!-- bench:begin -->.*<!-- bench:end -->", "", part) for part in (before, text)]
    assert outside[0] == outside[1]
    text = readme.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `softmax_ce` float32, (.*?) \|", text, re.MULTILINE)
    assert rows == ["label_smoothing"]
    assert f"level `{sl.cpu_level()}`" in text
    assert stem.with_suffix(".png").stat().st_size > 10_000


def test_sweep(tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "speed.md"
    shutil.copy(ROOT / "docs" / "speed.md", page)
    text = run("sweep.py", "--quick", "--results", tmp_path / "sweep", "--page", page)
    assert re.search(r"k = 128 to 129|n = 1 to 2|n = 32 to 33", text)
    assert "### Time against size" in page.read_text(encoding="utf-8")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000

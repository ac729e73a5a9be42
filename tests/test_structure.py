"""What the package says of itself: its build, files and docstrings, and no side effects."""

import ast
import ctypes
import ctypes.util
import doctest
import importlib
import inspect
import itertools
import json
import math
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

import stableloss as sl

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
LOSSES = [name for name in sl.__all__ if hasattr(getattr(sl, name), "value_and_grad")]
STEMS = sorted(name for name in LOSSES if not inspect.isclass(getattr(sl, name)))
CLASSES = sorted(type(getattr(sl, stem)).__name__ for stem in STEMS)
FUNCTIONS = sorted(set(sl.__all__) - set(STEMS) - set(CLASSES) - {"Stats", "__version__"})
METHODS = ("__call__", "value_and_grad", "grad_and_hess", "hessian_vector_product")

# All change results behind the code's back, and linking with the first flushes subnormal numbers
# in the whole process.
FAST_MATH = (
    "-ffast-math",
    "-Ofast",
    "-funsafe-math-optimizations",
    "-fassociative-math",
    "-freciprocal-math",
    "-ffinite-math-only",
    "-fno-signed-zeros",
    "-fcx-limited-range",
    "-ffp-contract=fast",
    "-mdaz-ftz",
    "/fp:fast",
)
SPECIAL = np.array([0, 1, -1, 90, -90, 800, -800, 1e38, -1e38, np.inf, -np.inf, np.nan, 2.0**-140])


def use_everything(x):
    """Call every public entry with ordinary, extreme and special values."""
    rows = np.stack([x, np.roll(x, 1), np.roll(x, 5)], axis=1)
    index, hard = np.arange(len(x)) % 3, np.tile([0, 1, 0], (len(x), 1))
    soft = np.full(rows.shape, 0.25, x.dtype)
    for stem in STEMS:
        for targets in (index, hard, soft):
            if targets.ndim == 1 and stem.startswith("sigmoid"):
                continue
            for options in ({}, {"sample_weight": np.arange(len(x)) % 2}):
                getattr(sl, stem)(rows, targets, **options)
                getattr(sl, stem).value_and_grad(rows, targets, **options)
                getattr(sl, stem).grad_and_hess(rows, targets, **options)
    for name in ("sigmoid", "log_sigmoid", "softmax", "log_softmax", "logsumexp"):
        getattr(sl, name)(rows)
        getattr(sl, name)(np.tile(rows, 20))


# ---- the build -----------------------------------------------------------------------------------


def test_no_fast_math_flag():
    tree = ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8"))
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]
    words = {word for string in strings for word in string.split()}
    assert "-ffp-contract=off" in words
    assert not words & set(FAST_MATH)


def test_package_is_the_installed_one():
    """Its folder is the one that the metadata of the installation names."""
    installed = distribution("stableloss")
    assert installed.version == sl.__version__
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        expected = Path(unquote(urlparse(origin["url"]).path)) / "stableloss"
    else:
        expected = Path(installed.locate_file("stableloss"))
    assert Path(sl.__file__).resolve().parent == expected.resolve()


def test_numpy_is_the_only_requirement():
    requires = [r for r in distribution("stableloss").requires or [] if "extra ==" not in r]
    assert [re.match(r"[\w-]+", r).group() for r in requires] == ["numpy"]


def test_typed():
    assert (Path(sl.__file__).parent / "py.typed").exists()


# ---- the files of a loss -------------------------------------------------------------------------


def test_four_losses():
    assert STEMS == ["sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse"]
    assert CLASSES == ["SigmoidBCE", "SigmoidMSE", "SoftmaxCE", "SoftmaxMSE"]


def test_each_stem_has_its_files():
    for stem in STEMS:
        assert (REPOSITORY / "stableloss" / "_kernels" / f"{stem}.pxi").is_file()
        assert (TESTS / f"test_{stem}.py").is_file()
        cls = type(getattr(sl, stem))
        assert cls.__name__.lower() == stem.replace("_", "")
        assert getattr(sl, cls.__name__) is cls


def test_each_kernel_file_is_a_public_name():
    """Shared parts have a leading underscore; every other file is a loss or the activations."""
    for path in (REPOSITORY / "stableloss" / "_kernels").glob("[!_]*.pxi"):
        assert path.stem in STEMS or path.stem == "activations"


def test_all_is_what_exists():
    for name in sl.__all__:
        assert hasattr(sl, name)


# ---- docstrings ----------------------------------------------------------------------------------


def sections(documented):
    """The section titles of a numpydoc docstring, each underlined by its own length."""
    text = inspect.getdoc(documented) or ""
    pairs = itertools.pairwise(text.splitlines())
    return [a for a, b in pairs if a and set(b) == {"-"} and len(a) == len(b)]


def assert_parameters_are_documented(documented, signature_of=None):
    text = inspect.getdoc(documented)
    for name in inspect.signature(signature_of or documented).parameters:
        if name != "self":
            assert re.search(rf"^(.*, )?{name}(, .*)? : ", text, re.MULTILINE), name


@pytest.mark.parametrize("name", CLASSES)
def test_docstring_of_class(name):
    cls = getattr(sl, name)
    assert {"Parameters", "Notes", "See Also", "Examples"} <= set(sections(cls))
    assert_parameters_are_documented(cls, cls)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CLASSES)
def test_docstring_of_method(name, method):
    documented = getattr(getattr(sl, name), method)
    assert {"Parameters", "Returns"} <= set(sections(documented))
    assert_parameters_are_documented(documented)


@pytest.mark.parametrize("name", ["SigmoidBCE", "SoftmaxCE"])
def test_docstring_of_target_grad(name):
    documented = getattr(sl, name).target_grad
    assert {"Parameters", "Returns", "Examples"} <= set(sections(documented))
    assert_parameters_are_documented(documented)


def test_docstring_of_stats():
    assert sections(sl.Stats) == ["Attributes"]
    for name in sl.Stats._fields:
        assert re.search(rf"^{name} : ", inspect.getdoc(sl.Stats), re.MULTILINE), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_of_function(name):
    documented = getattr(sl, name)
    parameters = inspect.signature(documented).parameters
    wanted = {"Examples"} | ({"Parameters"} if parameters else set())
    if inspect.signature(documented).return_annotation != "None":
        wanted.add("Returns")
    assert wanted <= set(sections(documented))
    assert_parameters_are_documented(documented)


def test_docstring_examples_run():
    found = 0
    for module in ("stableloss", "stableloss.losses", "stableloss.activations"):
        result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
        assert result.failed == 0
        found += result.attempted
    assert found >= len(CLASSES) + len(FUNCTIONS)


# ---- no side effects -----------------------------------------------------------------------------


def test_subnormals_survive_import_and_calls(tmp_path):
    """In a new process, so that the import itself is covered."""
    code = """
import numpy as np
def alive():
    small32, small64 = np.full(64, 1e-39, np.float32), np.full(64, 1e-310)
    return (small32 * np.float32(0.5)).all() and (small64 * 0.5).all() and 1e-310 * 0.5 > 0
assert alive()
import stableloss as sl
assert alive()
for dtype in (np.float32, np.float64):
    x = np.linspace(-800, 800, 4000).astype(dtype).reshape(100, 40)
    sl.softmax_ce.value_and_grad(x, np.zeros(100, int))
    sl.sigmoid_bce.value_and_grad(x, np.zeros((100, 40)))
    sl.softmax_mse.grad_and_hess(x, np.zeros(100, int))
    sl.sigmoid_mse.grad_and_hess(x, np.zeros((100, 40)))
    sl.softmax(x)
assert alive()
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_numpy_warning(dtype):
    special = SPECIAL.astype(dtype)
    with np.errstate(all="raise"):
        use_everything(special)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_environment(dtype):
    """The rounding mode and, inexact apart, the exception flags are those of before the call."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    every_flag = 0xFF
    libm.feclearexcept(every_flag)
    math.sqrt(len(STEMS) + 1)
    inexact = libm.fetestexcept(every_flag)
    x = np.linspace(-800, 800, 4000).astype(dtype).reshape(100, 40)
    x[::7, 0] = [np.inf, -np.inf, np.nan] * 5
    index, dense = np.zeros(100, np.int64), np.zeros((100, 40), dtype)
    rounding = libm.fegetround()
    for stem in STEMS:
        loss, targets = getattr(sl, stem), dense if stem.startswith("sigmoid") else index
        for entry in (loss, loss.value_and_grad, loss.grad_and_hess):
            libm.feclearexcept(every_flag)
            entry(x, targets)
            assert libm.fetestexcept(every_flag) & ~inexact == 0, (stem, entry)
    assert libm.fegetround() == rounding


def test_results_do_not_depend_on_print_options_or_error_state():
    x = np.linspace(-3, 3, 12).reshape(4, 3)
    expected = sl.softmax_ce.value_and_grad(x, [0, 1, 2, 0])
    with np.errstate(all="raise"):
        got = sl.softmax_ce.value_and_grad(x, [0, 1, 2, 0])
    assert got[0] == expected[0]
    np.testing.assert_array_equal(got[1], expected[1])

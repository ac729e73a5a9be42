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
import platform
import re
import subprocess
import sys
import tracemalloc
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

import bits
import numpy as np
import pytest
import tables
from cases import LAYOUTS

import stableloss as sl

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
STEMS = bits.LOSSES
CLASSES = [type(getattr(sl, stem)).__name__ for stem in STEMS]
RESULTS = sorted(name for name in sl.__all__ if hasattr(getattr(sl, name), "_fields"))
FUNCTIONS = sorted(set(sl.__all__) - set(STEMS) - set(CLASSES) - set(RESULTS) - {"LinearLoss", "Part"})
METHODS = ("__call__", "value_and_grad", "grad_and_hess", "hessian_vector_product", "divisor")

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
    "-fno-honor-nans",
    "-fno-honor-infinities",
    "-fapprox-func",
    "-fcx-limited-range",
    "-fcx-fortran-rules",
    "-ffp-contract=fast",
    "-ffp-model=fast",
    "-mrecip",
    "-mdaz-ftz",
    "/fp:fast",
)
# what asks for the same inside a source file
FAST_MATH_IN_SOURCE = re.compile(
    r"#\s*pragma(?! GCC unroll)|\boptimize\s*\(|FP_CONTRACT|_MM_SET_(FLUSH|DENORMALS)_"
)
SPECIAL = np.array([0, 1, -1, 90, -90, 800, -800, 1e38, -1e38, np.inf, -np.inf, np.nan, 2.0**-140])


def use_everything(x):
    """Call every public entry with ordinary, extreme and special values."""
    rows = np.stack([x, np.roll(x, 1), np.roll(x, 5)], axis=1)
    index, hard = np.arange(len(x)) % 3, np.tile([0, 1, 0], (len(x), 1))
    soft = np.full(rows.shape, 0.25, x.dtype)
    for stem in STEMS:
        for targets in (index, hard, soft):
            if targets.ndim == 1 and not bits.by_rows(stem):
                continue
            for options in ({}, {"sample_weight": np.arange(len(x)) % 2}):
                getattr(sl, stem)(rows, targets, **options)
                getattr(sl, stem).value_and_grad(rows, targets, **options)
                getattr(sl, stem).grad_and_hess(rows, targets, **options)
    for name in bits.ACTIVATIONS:
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
    assert not [word for word in words if word.startswith(FAST_MATH)]


@pytest.mark.parametrize(
    "pattern",
    ["stableloss/_kernels/*.pxi", "stableloss/_kernels/*.h", "stableloss/*.pyx", "pyproject.toml", ".ci/run"],
)
def test_no_fast_math_elsewhere(pattern):
    for path in REPOSITORY.glob(pattern):
        text = path.read_text(encoding="utf-8")
        assert not FAST_MATH_IN_SOURCE.search(text), path
        assert not [flag for flag in FAST_MATH if flag in text], path


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


# A loss is spelled in these places; every list of losses follows from its class.
PLACES = (
    "stableloss/_kernels/{stem}.pxi",
    "stableloss/losses.py",
    "tests/oracle.py",
    "tests/test_{stem}.py",
    "bench/cases.py",
)
# Elsewhere a loss may be used, but not named in a string; and no more than two in one display, or one in what
# a function decides by: more are a list of losses. The package itself uses none, nor does what builds it.
ELSEWHERE = {
    "stableloss/adapters/": "an adapter offers the losses that its library has",
    "tests/test_adapters_": "what an adapter offers",
    "tests/boosting.py": "what the boosting adapters offer",
    "tests/test_faults_front.py": "calls of several kinds, whose allocations fail one after the other",
    "bench/rivals.py": "each library's own formulas; a loss that it has none for is timed without it",
    ".ci/tools/small_calls.py": "one call, whose instructions are counted",
}
BUILD = ("setup.py", "pyproject.toml", "MANIFEST.in", ".ci/**/*", ".github/**/*", "stableloss/**/*.py[ix]")


STEM_OF = {name: stem for stem, cls in zip(STEMS, CLASSES, strict=True) for name in (stem, cls)}


def losses_in(node):
    """The losses that an expression names by attribute or variable."""
    parts = [part for part in ast.walk(node) if isinstance(part, (ast.Attribute, ast.Name))]
    names = {part.attr if isinstance(part, ast.Attribute) else part.id for part in parts}
    return sorted({STEM_OF[name] for name in names & STEM_OF.keys()})


def spellings(path):
    """Line and text of every place in a Python file that spells a loss as if it knew them all."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in STEM_OF:
            yield node.lineno, node.value
        name = getattr(node, "arg", None) if isinstance(node, ast.keyword) else getattr(node, "name", None)
        if name in STEM_OF:
            yield node.lineno, name
        if isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.Dict)) and len(losses_in(node)) > 2:
            yield node.lineno, ", ".join(losses_in(node))
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            decisions = [part.test for part in ast.walk(node) if isinstance(part, (ast.If, ast.IfExp))]
            decided = {loss for decision in decisions for loss in losses_in(decision)}
            if len(decided) > 1:
                yield node.lineno, "decides by " + ", ".join(sorted(decided))


def uses_of(path):
    """Line and text of every use of a loss in a Python file, outside its strings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Attribute, ast.Name)) and losses_in(node):
            yield node.lineno, ", ".join(losses_in(node))


def test_each_stem_has_its_places():
    for stem in STEMS:
        for place in PLACES:
            assert (REPOSITORY / place.format(stem=stem)).is_file(), (stem, place)
        cls = type(getattr(sl, stem))
        assert cls.__name__.lower() == stem.replace("_", "")
        assert getattr(sl, cls.__name__) is cls


def elsewhere(*patterns):
    """Name and path of the files that are no place of a loss."""
    places = {place.format(stem=stem) for place in PLACES for stem in STEMS}
    for path in sorted({path for pattern in patterns for path in REPOSITORY.glob(pattern)}):
        name = path.relative_to(REPOSITORY).as_posix()
        if path.is_file() and name not in places and not name.startswith(tuple(ELSEWHERE)):
            yield name, path


def test_no_list_of_losses_elsewhere():
    found = []
    for name, path in elsewhere("*.py", "stableloss/**/*.py", "tests/**/*.py", "bench/**/*.py"):
        found += [f"{name}:{line}: {text}" for line, text in spellings(path)]
    for name, path in elsewhere("stableloss/**/*.py"):
        found += [f"{name}:{line}: {text}" for line, text in uses_of(path)]
    assert not found, "\n".join(found)


def test_no_file_of_the_build_knows_a_loss():
    word = re.compile(rf"\b({'|'.join(STEM_OF)})\b")
    for name, path in elsewhere(*BUILD):
        if not name.endswith((".pyc", ".so")):
            assert not word.search(path.read_text(encoding="utf-8")), name


@pytest.mark.parametrize(
    "form",
    [
        "'{}'",
        "dict({}=1)",
        "def {}(): pass",
        "['a', '{}']",
        "[sl.{}, sl.{}, sl.{}]",
        "lambda x: 1 if x is sl.{} else 2 if x is sl.{} else 3",
    ],
)
def test_a_list_of_losses_is_found(form, tmp_path):
    file = tmp_path / "file.py"
    file.write_text(form.format(*STEMS), encoding="utf-8")
    assert list(spellings(file))
    file.write_text(f"sl.{STEMS[0]}", encoding="utf-8")
    assert list(spellings(file)) == []
    assert list(uses_of(file)) == [(1, STEMS[0])]


def test_no_kernel_file_knows_another_loss():
    for path in (REPOSITORY / "stableloss" / "_kernels").iterdir():
        code = re.sub(r'"""(?s:.*?)"""|/\*(?s:.*?)\*/|#.*', "", path.read_text(encoding="utf-8"))
        for stem in STEMS:
            assert path.stem == stem or not re.search(rf"\b{stem}\b", code), (path.name, stem)


def test_documentation_lists_every_loss():
    for statement in tables.statements():
        statement.check()


def test_documentation_lists_every_option():
    rows = {name for cell in tables.first_cells() for name in tables.named(cell)}
    for cls in tables.classes():
        assert set(inspect.signature(cls).parameters) <= rows
        assert set(inspect.signature(cls.value_and_grad).parameters) - {"self", "logits", "targets"} <= rows


def test_each_kernel_file_is_a_public_name():
    """Shared parts have a leading underscore; every other file is a loss, part of one or the activations."""
    for path in (REPOSITORY / "stableloss" / "_kernels").glob("[!_]*.pxi"):
        assert path.stem == "activations" or "_".join(path.stem.split("_")[:2]) in STEMS


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


@pytest.mark.parametrize("name", [*CLASSES, "LinearLoss", "Part"])
def test_docstring_of_class(name):
    cls = getattr(sl, name)
    assert {"Parameters", "Attributes" if name == "Part" else "Notes", "See Also", "Examples"} <= set(
        sections(cls)
    )
    assert_parameters_are_documented(cls, cls)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CLASSES)
def test_docstring_of_method(name, method):
    documented = getattr(getattr(sl, name), method)
    assert {"Parameters", "Returns"} <= set(sections(documented))
    assert_parameters_are_documented(documented)


@pytest.mark.parametrize("method", ["__call__", "value_and_grad"])
def test_docstring_of_method_of_linear_loss(method):
    documented = getattr(sl.LinearLoss, method)
    assert {"Parameters", "Returns", "Raises", "Examples"} <= set(sections(documented))
    assert_parameters_are_documented(documented)


@pytest.mark.parametrize("method", ["partial", "finish"])
def test_docstring_of_method_of_shards(method):
    documented = getattr(sl.SoftmaxCE, method)
    assert {"Parameters", "Returns", "Raises", "See Also"} <= set(sections(documented))
    assert_parameters_are_documented(documented)


@pytest.mark.parametrize("name", [name for name in CLASSES if hasattr(getattr(sl, name), "target_grad")])
def test_docstring_of_target_grad(name):
    documented = getattr(sl, name).target_grad
    assert {"Parameters", "Returns", "Examples"} <= set(sections(documented))
    assert_parameters_are_documented(documented)


@pytest.mark.parametrize("name", RESULTS)
def test_docstring_of_result(name):
    cls = getattr(sl, name)
    assert sections(cls) == ["Attributes"]
    for field in cls._fields:
        assert re.search(rf"^(.*, )?{field}(, .*)? : ", inspect.getdoc(cls), re.MULTILINE), field


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_of_function(name):
    documented = getattr(sl, name)
    parameters = inspect.signature(documented).parameters
    wanted = {"Examples"} | ({"Parameters"} if parameters else set())
    if inspect.signature(documented).return_annotation is not None:
        wanted.add("Returns")
    assert wanted <= set(sections(documented))
    assert_parameters_are_documented(documented)


def test_docstring_examples_run():
    found = 0
    for module in (
        "stableloss",
        "stableloss.losses",
        "stableloss.linear",
        "stableloss.shards",
        "stableloss.activations",
    ):
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


LIBM = ctypes.CDLL(ctypes.util.find_library("m"))
EVERY_FLAG = 0x3D if platform.machine() in ("x86_64", "AMD64") else 0x1F


def environment():
    """Rounding mode, flags, masks, flushing of subnormals: all that fegetenv knows."""
    buffer = ctypes.create_string_buffer(64)
    assert LIBM.fegetenv(buffer) == 0
    return buffer.raw


def entries(dtype):
    """Name and call of every entry, with enough logits for the threads to share them."""
    x = np.linspace(-800, 800, 400_000).astype(dtype).reshape(10_000, 40)
    x[::700, 0] = [np.inf, -np.inf, np.nan] * 5
    index, dense, soft = np.zeros(10_000, np.int64), np.zeros(x.shape, dtype), np.full(x.shape, dtype(0.025))
    out = np.empty_like(x), np.empty_like(x)
    for stem in STEMS:
        loss = getattr(sl, stem)
        for targets in (index if bits.by_rows(stem) else dense, soft):
            yield stem, partial(loss, x, targets)
            yield f"{stem} grad", partial(loss.value_and_grad, x, targets, out=out[0])
            yield f"{stem} hess", partial(loss.grad_and_hess, x, targets, out=out)
    for name in bits.ACTIVATIONS:
        yield name, partial(getattr(sl, name), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_environment(dtype):
    """The exception flags, inexact apart, are those of before the call; so is everything else."""
    LIBM.feclearexcept(EVERY_FLAG)
    math.sqrt(len(STEMS) + 1)
    inexact = LIBM.fetestexcept(EVERY_FLAG)
    for name, entry in entries(dtype):
        LIBM.feclearexcept(EVERY_FLAG)
        before = environment()
        entry()
        assert LIBM.fetestexcept(EVERY_FLAG) & ~inexact == 0, name
        LIBM.feclearexcept(EVERY_FLAG)
        assert environment() == before, name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_flags_are_not_cleared(dtype):
    try:
        for name, entry in entries(dtype):
            # feraiseexcept would raise some of them in the x87 unit alone
            assert LIBM.fesetexceptflag(ctypes.byref(ctypes.c_uint(EVERY_FLAG)), EVERY_FLAG) == 0
            before = environment()
            entry()
            assert environment() == before, name
    finally:
        LIBM.feclearexcept(EVERY_FLAG)


def test_rounding_mode_survives():
    # upwards, downwards, towards 0: the numbers of x86 and of aarch64
    modes = [0x800, 0x400, 0xC00] if EVERY_FLAG == 0x3D else [0x400000, 0x800000, 0xC00000]
    nearest = LIBM.fegetround()
    rows = np.linspace(-30, 30, 400).reshape(40, 10)
    try:
        for mode in modes:
            assert LIBM.fesetround(mode) == 0
            sl.softmax_ce.value_and_grad(rows, np.zeros(40, np.int64))
            sl.sigmoid_bce.grad_and_hess(rows, np.ones(rows.shape))
            got = LIBM.fegetround()
            LIBM.fesetround(nearest)
            assert got == mode
    finally:
        LIBM.fesetround(nearest)


@pytest.mark.parametrize("layout", [np.array, LAYOUTS["f-order"], LAYOUTS["strided"]])
@pytest.mark.parametrize("stem", STEMS)
def test_no_array_beside_the_gradient(stem, layout):
    """A call allocates its gradient and at most a quarter of a MiB more."""
    logits = layout(np.zeros((2048, 1024), np.float32))
    targets = np.zeros(logits.shape[:1] if bits.by_rows(stem) else logits.shape, np.uint8)
    loss = getattr(sl, stem)
    loss.value_and_grad(logits, targets)  # what a first call loads and starts is not the call's
    for call, own in ((loss, 0), (loss.value_and_grad, logits.nbytes)):
        tracemalloc.start()
        try:
            result = call(logits, targets)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        del result
        assert peak - own < 2**18


def test_results_do_not_depend_on_print_options_or_error_state():
    x = np.linspace(-3, 3, 12).reshape(4, 3)
    expected = sl.softmax_ce.value_and_grad(x, [0, 1, 2, 0])
    with np.errstate(all="raise"):
        got = sl.softmax_ce.value_and_grad(x, [0, 1, 2, 0])
    assert got[0] == expected[0]
    np.testing.assert_array_equal(got[1], expected[1])

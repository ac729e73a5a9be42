"""What a type checker sees of the package."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import stableloss as sl
from stableloss._dispatch import kernels

api = pytest.importorskip("mypy.api")

REVEALED = {
    "sl.softmax_ce(x, t)": "float | ndarray",
    "sl.SigmoidMSE()(x, x, sample_weight=[1.0], mask=[True])": "float | ndarray",
    "sl.softmax_ce(x, t, with_stats=False)": "float | ndarray",
    "sl.softmax_ce(x, t, with_stats=True)": "tuple[float | ndarray, Stats]",
    "sl.softmax_ce(x, t, with_stats=True, probabilities=x)": "tuple[float | ndarray, Stats]",
    "sl.softmax_ce(x, t, with_stats=flag)": "float | ndarray | tuple[float | ndarray, Stats]",
    "sl.sigmoid_bce.value_and_grad(x, x)": "tuple[float | ndarray, ndarray]",
    "sl.sigmoid_bce.value_and_grad([0.5], [1], out=x, denominator=3)": "tuple[float | ndarray, ndarray]",
    "sl.sigmoid_bce.value_and_grad(x, x, with_stats=True)": "tuple[float | ndarray, ndarray, Stats]",
    "sl.sigmoid_bce.value_and_grad(x, x, with_stats=flag)": (
        "tuple[float | ndarray, ndarray] | tuple[float | ndarray, ndarray, Stats]"
    ),
    "sl.softmax_mse.grad_and_hess(x, t, out=(x, None))": "tuple[ndarray, ndarray]",
    "sl.sigmoid_mse.hessian_vector_product(x, x, x)": "ndarray",
    "sl.softmax_ce.target_grad(x, x)": "ndarray",
    "sl.softmax_ce.divisor((2, 3), t)": "float",
    "sl.softmax_mse.partial(x, t, 0, 6, maximum=[1, 2])": "Part",
    "sl.merge([sl.softmax_ce.partial(x, t, 0, 6)]).array": "ndarray",
    "sl.softmax_ce.finish(sl.Part(x), sl.Part(x), out=x)": "tuple[float | ndarray, ndarray]",
    "sl.softmax_ce(x, t, with_stats=True)[1].predicted": "ndarray",
    "sl.softmax_ce(x, t, with_stats=True)[1].correct": "int",
    "sl.softmax_ce.reduction": "str",
    "sl.softmax_ce.class_weight": "tuple[float, ...] | None",
    "sl.SigmoidBCE(pos_weight=[1, 2], focal_alpha=0.25).focal_alpha": "float | None",
    "sl.cpu_level()": "str",
}
ERRORS = {
    "loss, grad = sl.softmax_ce.value_and_grad(x, t, with_stats=True)": "[misc]",
    "loss, grad, stats = sl.softmax_ce.value_and_grad(x, t)": "[misc]",
    "sl.softmax_ce(x, t, probabilities=x)": "[call-overload]",
    "sl.softmax_ce(x, t, x)": "[call-overload]",
    "sl.softmax_ce(x, t, weight=x)": "[call-overload]",
    "sl.softmax_ce.grad_and_hess(x, t, x)": "[call-arg]",
    "sl.softmax_ce.grad_and_hess(x, t, out=x)": "[arg-type]",
    "sl.softmax_ce.no_such_method(x)": "[attr-defined]",
    "sl.softmax_mse.target_grad(x, x)": "[attr-defined]",
    "sl.sigmoid_bce.partial(x, x, 0, 6)": "[attr-defined]",
    "sl.merge([x])": "[list-item]",
    "sl.SoftmaxCE(no_such_option=1)": "[call-arg]",
    "sl.SoftmaxCE(label_smoothing='a')": "[arg-type]",
    "sl.no_such_loss": "[attr-defined]",
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What mypy says of each line of a user's file."""
    folder = tmp_path_factory.mktemp("typing")
    head = [
        "import numpy as np",
        "import stableloss as sl",
        "x, t, flag = np.zeros((2, 3)), [0, 1], bool(input())",
    ]
    lines = [*head, *(f"reveal_type({code})" for code in REVEALED), *ERRORS]
    path = folder / "user.py"
    path.write_text("\n".join(lines) + "\n")
    arguments = ["--strict", "--no-error-summary", "--cache-dir", str(folder / "cache"), str(path)]
    output, problems, _ = api.run(arguments)
    assert not problems
    said = {code: "" for code in (*REVEALED, *ERRORS)}
    for number, text in re.findall(r"^\S*user\.py:(\d+): (?:note|error): (.*)$", output, re.MULTILINE):
        index = int(number) - 1
        assert index >= len(head), text
        said[[*REVEALED, *ERRORS][index - len(head)]] += text + "\n"
    return said


def plain(report):
    """A revealed type without the modules of names and numpy's parameters."""
    revealed = re.sub(r"[\w.]+\.(\w)", r"\1", re.search(r'Revealed type is "(.*)"', report)[1])
    revealed = re.sub(r"ndarray\[.*?, dtype\[.*?\]\]", "ndarray", revealed)
    return re.sub(r"tuple\[[^][]*, fallback=(\w+)\]", r"\1", revealed)


@pytest.mark.parametrize("code", REVEALED)
def test_type(reports, code):
    assert plain(reports[code]) == REVEALED[code]


@pytest.mark.parametrize("code", ERRORS)
def test_mistake_is_seen(reports, code):
    assert ERRORS[code] in reports[code]


# ---- declarations and what stands for them ---------------------------------------------------------


def signature(function):
    """Names, kinds and defaults; `...` is the kernels' for what is required (see _call.pxi)."""
    return [
        (p.name, p.kind, inspect.Parameter.empty if p.default is ... else p.default)
        for p in inspect.signature(function, follow_wrapped=False).parameters.values()
    ]


METHODS = [
    value
    for cls in (sl.losses._Loss, sl.losses._CrossEntropy, sl.losses._Softmax)
    for name, value in vars(cls).items()
    if hasattr(value, "__wrapped__") and callable(value) and name != "__init__"
]


@pytest.mark.parametrize("function", [*METHODS, *(getattr(sl, name) for name in sl.activations.__all__)])
def test_functions_take_what_is_declared(function):
    assert signature(function) == signature(function.__wrapped__)
    assert function.__doc__ == function.__wrapped__.__doc__


def test_every_method_is_checked():
    public = {name for name in dir(sl.SoftmaxCE) if name[0] != "_" and callable(getattr(sl.SoftmaxCE, name))}
    assert {method.__name__ for method in METHODS} == {*public, "__call__"}


def test_the_stub_of_the_kernels_names_what_they_have():
    tree = ast.parse((Path(sl.__file__).parent / "_base.pyi").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            assert callable(getattr(kernels, node.name))
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                name = member.target if isinstance(member, ast.AnnAssign) else member
                assert hasattr(getattr(kernels, node.name), getattr(name, "id", None) or name.name)

"""Which build runs, and how STABLELOSS_CPU forces it.

The choice is made at import, so each case is a process of its own.
"""

import importlib.machinery
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stableloss as sl
from stableloss import _dispatch

KNOWN = ("base", "v3", "v4")
INSTALLED = Path(sl.__file__).parent
SOURCE = Path(__file__).resolve().parent.parent / "stableloss"
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
KERNELS = ("_base", "_v3", "_v4")


def python(tmp_path, *arguments, level=None):
    """Run Python outside the repository, so that the installed package is what it imports."""
    environment = {k: v for k, v in os.environ.items() if k != "STABLELOSS_CPU"}
    if level is not None:
        environment["STABLELOSS_CPU"] = level
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_available_levels():
    available = _dispatch.available()
    assert isinstance(available, tuple)
    assert set(available) <= set(KNOWN)
    assert "base" in available
    assert sl.cpu_level() in available


def test_best_level_by_default(tmp_path):
    run = python(tmp_path, "-c", "import stableloss; print(stableloss.cpu_level())")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == max(_dispatch.available(), key=KNOWN.index)


def test_forced_level(tmp_path):
    for level in _dispatch.available():
        code = "import stableloss; print(stableloss.cpu_level())"
        run = python(tmp_path, "-c", code, level=level)
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip() == level


def test_level_that_cannot_run(tmp_path):
    """An unknown name, and every known level that this machine lacks."""
    available = _dispatch.available()
    for level in ["pentium", "V3", "v33", *(set(KNOWN) - set(available))]:
        run = python(tmp_path, "-c", "import stableloss", level=level)
        assert run.returncode != 0
        last = run.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError"), run.stderr
        assert level in last
        for name in available:
            assert name in last


@pytest.mark.parametrize("forced", [False, True], ids=["default", "forced"])
def test_command_line(tmp_path, forced):
    run = python(tmp_path, "-m", "stableloss", level="base" if forced else None)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert sl.__version__ in run.stdout
    assert np.__version__ in run.stdout
    for level in _dispatch.available():
        assert level in run.stdout


def test_command_line_refuses_an_unknown_level(tmp_path):
    run = python(tmp_path, "-m", "stableloss", level="pentium")
    assert run.returncode != 0
    assert "pentium" in run.stderr


# ---- installations that lack their kernels -------------------------------------------------------


def copy(folder, source, without):
    """A package in a folder, without the compiled modules of these names."""

    def left_out(_, names):
        compiled = [name for name in names if name.endswith((".so", ".pyd")) or name == "__pycache__"]
        return [name for name in compiled if name.split(".")[0] in (*without, "__pycache__")]

    return Path(shutil.copytree(source, folder / "stableloss", ignore=left_out))


def import_error(folder, level=None):
    run = python(folder, "-c", "import stableloss", level=level)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "STABLELOSS_CPU" not in last
    assert "During handling" not in run.stderr
    return last


@pytest.mark.parametrize("level", [None, "", "base"])
@pytest.mark.parametrize("without", [KERNELS, (*KERNELS, "_cpu")], ids=["kernels", "all"])
def test_installation_without_kernels(tmp_path, without, level):
    package = copy(tmp_path, INSTALLED, without)
    message = import_error(tmp_path, level)
    assert f"stableloss in {package} has no compiled kernels: run `pip install --force-reinstall" in message


def test_source_folder_without_kernels(tmp_path):
    package = copy(tmp_path, SOURCE, (*KERNELS, "_cpu"))
    message = import_error(tmp_path)
    assert f"{package} is the source of stableloss, without compiled kernels" in message
    assert f"run `pip install {tmp_path}`, and start Python in another folder" in message


@pytest.mark.parametrize("without", [KERNELS, (*KERNELS, "_cpu")], ids=["kernels", "all"])
def test_kernels_of_another_python(tmp_path, without):
    package = copy(tmp_path, INSTALLED, without)
    (package / "_base.cpython-39-riscv64-linux-gnu.so").touch()
    message = import_error(tmp_path)
    assert f"another Python or platform: _base.cpython-39-riscv64-linux-gnu.so, not _base{SUFFIX}" in message
    assert "`python -m pip install --force-reinstall stableloss`" in message


def test_kernels_of_another_machine(monkeypatch):
    def missing(level):
        raise ModuleNotFoundError(f"No module named 'stableloss._{level}'", name=f"stableloss._{level}")

    monkeypatch.delenv("STABLELOSS_CPU", raising=False)
    monkeypatch.setattr(_dispatch, "_import", missing)
    monkeypatch.setattr(_dispatch, "built", lambda: ("v4",))
    monkeypatch.setattr(_dispatch._cpu, "supported", lambda: ("base", "v3"))
    with pytest.raises(ImportError, match="kernels for v4, and this machine supports base, v3: run `pip"):
        _dispatch._load()


def test_damaged_kernels_say_what_is_wrong(tmp_path):
    """An error from inside of a level is not taken for its absence."""
    package = copy(tmp_path, INSTALLED, KERNELS)
    for name in KERNELS:
        (package / f"{name}.py").write_text("import a_module_that_is_missing", encoding="utf-8")
    run = python(tmp_path, "-c", "import stableloss")
    assert run.stderr.strip().endswith("ModuleNotFoundError: No module named 'a_module_that_is_missing'")


# ---- frozen applications -------------------------------------------------------------------------


@pytest.mark.deployed
def test_frozen_application(tmp_path):
    """PyInstaller, without options, finds the kernels of every level."""
    pytest.importorskip("PyInstaller")
    program = tmp_path / "app.py"
    program.write_text(
        "import stableloss as sl\n"
        "from stableloss import _dispatch\n"
        "print(sl.softmax_ce([[0.0, 1.0]], [0]), sl.cpu_level(), *_dispatch.built())\n",
        encoding="utf-8",
    )
    frozen = python(tmp_path, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", str(program))
    assert frozen.returncode == 0, frozen.stderr
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "STABLELOSS_CPU"))}
    application = tmp_path / "dist" / "app" / ("app.exe" if os.name == "nt" else "app")
    run = subprocess.run(
        [application], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    value, *levels = run.stdout.split()
    assert float(value) == pytest.approx(1.3132616875182228, rel=1e-15)
    assert levels == [_dispatch.available()[-1], *_dispatch.built()]

"""Which build runs, and how STABLELOSS_CPU forces it.

The choice is made at import, so each case is a process of its own.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

import stableloss as sl
from stableloss import _dispatch

KNOWN = ("base", "v3", "v4")


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

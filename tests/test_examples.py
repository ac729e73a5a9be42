"""Every script in examples/ runs from beginning to end and draws the figure that it says it draws."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.py"))
# they take half a minute or more
LONG = ("dask_out_of_core", "linear_large_vocab")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.deployed] * (path.stem in LONG), id=path.stem)
        for path in EXAMPLES
    ],
)
def test_example(path, tmp_path):
    """As a copy in a folder of its own, where it puts its figure."""
    source = path.read_text(encoding="utf-8")
    for library in ("torch", "dask", "mpi4py"):
        if re.search(rf"^(import|from) {library}\b", source, re.MULTILINE):
            pytest.importorskip(library)
    if "mpi4py" in source:
        pytest.skip("mpiexec starts it: test_adapters_mpi.py")
    script = shutil.copy(path, tmp_path)
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout
    assert len(list(tmp_path.glob("*.png"))) == ("savefig" in source)


def test_there_are_examples():
    assert EXAMPLES

"""What all adapters have in common: nothing is imported early, and their documented examples run."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import stableloss.adapters

LIBRARIES = ("autograd", "dask", "lightgbm", "mpi4py", "sklearn", "thinc", "torch", "xgboost")
# not what every test environment has
OPTIONAL = {"dask": "dask.array", "torch": "torch"}
MODULES = sorted(path.stem for path in Path(stableloss.adapters.__file__).parent.glob("[!_]*.py"))


def test_no_library_is_imported_early(tmp_path):
    code = f"""
import sys
import stableloss, stableloss.adapters
found = [name for name in {LIBRARIES} + ("scipy",) if name in sys.modules]
assert not found, found
loaded = [name for name in sys.modules if name.startswith("stableloss.adapters.")]
assert not loaded, loaded
from stableloss.adapters import columns, cs231n, layer, nielsen, nnfs
found = [name for name in {LIBRARIES} if name in sys.modules]
assert not found, found
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    assert f"`{name}`" in stableloss.adapters.__doc__
    module = importlib.import_module(f"stableloss.adapters.{name}")
    assert module.__doc__
    for public in module.__all__:
        assert hasattr(module, public)
    if name == "mpi":
        return  # its examples run where mpiexec starts them: test_adapters_mpi.py
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed

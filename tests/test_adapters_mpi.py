"""Losses among the ranks of MPI, which mpiexec starts; what each of them checks is in mpi_ranks.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stableloss as sl

pytest.importorskip("mpi4py")

from stableloss.adapters.mpi import ClassParallel, RowParallel

TESTS = Path(__file__).resolve().parent
MPIEXEC = shutil.which(
    "mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
pytestmark = [
    pytest.mark.deployed,
    pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec"),
]


def run_ranks(n, *command, folder):
    """On few cores and as root too, which Open MPI has to be told, and other MPI libraries need not know."""
    settings = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "STABLELOSS_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS),
    }
    return subprocess.run(
        [MPIEXEC, "-n", str(n), sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.mark.parametrize("n", [1, 2, 4])
def test_ranks_agree_with_one_process(n, tmp_path):
    run = run_ranks(n, TESTS / "mpi_ranks.py", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.splitlines()) == [f"rank {i} of {n} agrees" for i in range(n)]


@pytest.mark.parametrize("n", [2, 4])
def test_example(n, tmp_path):
    run = run_ranks(n, TESTS.parent / "examples" / "mpi_vocab_parallel.py", folder=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "the bits of one process"


def test_examples_of_docstrings(tmp_path):
    code = "from doctest import testmod; from stableloss.adapters import mpi; assert not testmod(mpi).failed"
    run = run_ranks(1, "-c", code, folder=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr


def test_losses_of_another_kind():
    with pytest.raises(TypeError, match="loss must be a softmax loss"):
        ClassParallel(sl.sigmoid_bce, None)
    with pytest.raises(TypeError, match="loss must be a loss object"):
        RowParallel("softmax_ce", None)
    assert repr(RowParallel(sl.sigmoid_bce, None)) == "RowParallel(SigmoidBCE(), None)"

"""The tests of the kernels on every other CPU level of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import stableloss as sl
from stableloss import _dispatch

TESTS = Path(__file__).resolve().parent
# what does not depend on how the kernels were compiled, and takes long
ELSEWHERE = ("test_adapters*.py", "test_examples.py", "test_docs.py", "test_oracle.py", "test_porting.py")


def test_other_levels(tmp_path):
    for level in _dispatch.available():
        if level == sl.cpu_level():
            continue
        command = [sys.executable, "-m", "pytest", str(TESTS), "-q", "-p", "no:cacheprovider"]
        run = subprocess.run(
            [
                *command,
                f"--ignore={Path(__file__).resolve()}",
                *(f"--ignore-glob={TESTS / name}" for name in ELSEWHERE),
            ],
            cwd=tmp_path,
            env={**os.environ, "STABLELOSS_CPU": level},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"level {level}:\n{run.stdout[-8000:]}{run.stderr[-2000:]}"

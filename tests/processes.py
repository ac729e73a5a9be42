"""Python in a process of its own, for what changes or ends a process."""

import os
import subprocess
import sys


def run(python_code, tmp_path, timeout=120, **environment):
    return subprocess.run(
        [sys.executable, "-c", python_code],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )

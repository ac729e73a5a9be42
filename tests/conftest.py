"""Which package is under test, and the settings shared by all test files."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

pytest.register_assert_rewrite("bounds", "contract", "oracle")

import stableloss  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent

# Their means are those of POSIX: fork, signals, guard pages, libm by its name.
if sys.platform == "win32":
    collect_ignore_glob = ["test_faults_*.py", "test_fuzz.py", "test_structure.py", "test_threads.py"]

# The same examples in every run: a failure on one machine is a failure on all.
hypothesis.settings.register_profile("stableloss", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("stableloss")


def pytest_addoption(parser):
    parser.addoption(
        "--update-records", action="store_true", help="rewrite bits.json and worst_cases.json from this run"
    )


@pytest.fixture
def update_records(request):
    return request.config.getoption("--update-records")


def pytest_configure(config):
    package = Path(stableloss.__file__).resolve().parent
    if os.environ.get("CI") and package == REPOSITORY / "stableloss":
        raise pytest.UsageError(
            f"the package under test is the source folder {package}, not an installed one"
        )


def pytest_report_header(config):
    return f"stableloss: {stableloss.__file__}, CPU level {stableloss.cpu_level()}"

"""Which package is under test, and the settings shared by all test files."""

import collections
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
    parser.addoption(
        "--few-packages",
        action="store_true",
        help="leave out the files that need more than pytest, hypothesis, mpmath, gmpy2 and ml_dtypes",
    )


# Not by pytest's --ignore-glob, which takes a pattern as one below the working directory.
MORE_PACKAGES = ("adapters*", "bench", "docs", "examples", "porting", "release")


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--few-packages"):
        # None leaves it to the other settings
        return any(collection_path.match(f"test_{name}.py") for name in MORE_PACKAGES) or None


# `pytest -m quick`: of every test the first case and each SAMPLE-th after it, so that every loss, option,
# dtype, entry and adapter is there, in half a minute. Without those that take most of a second for a case:
# they train networks or boosters, compile, start processes, or ask the oracle for long rows.
SAMPLE = 40
LONG_FILES = {
    "test_adapters_boosting_dask.py",
    "test_bench.py",
    "test_faults_engine.py",
    "test_fuzz.py",
    "test_typing.py",
}
LONG = {
    "test_bits",
    "test_class_indices_that_change",
    "test_classes_in_chunks",
    "test_collector_that_resizes_a_label_array",
    "test_compile",
    "test_environment",
    "test_environment_of_openmp",
    "test_estimator_checks",
    "test_every_allocation_may_fail",
    "test_exact_vocabulary",
    "test_example",
    "test_focal_on_an_imbalanced_set",
    "test_fork_after_a_shared_call",
    "test_func_transforms",
    "test_garbage_for_private_entries",
    "test_grid_search_scores",
    "test_idle_helpers_cost_nothing",
    "test_keyboard_interrupt_between_chunks",
    "test_many_callers_with_helpers_each",
    "test_mean_of_many",
    "test_metric_matches_built_in",
    "test_model_is_pickled",
    "test_native_matches_built_in_tree_for_tree",
    "test_net_learns_digits",
    "test_network_learns_digits",
    "test_no_list_of_losses_elsewhere",
    "test_one_bad_value_among_many",
    "test_permutation_equivariance",
    "test_resident_memory",
    "test_same_divisor_for_any_number",
    "test_samples_of_op",
    "test_scikit_learn_matches_built_in",
    "test_shift_invariance",
    "test_softmax_network_learns_digits",
    "test_temporal_loss_learns_text",
    "test_two_layer_net_learns_digits",
}


def pytest_collection_modifyitems(items):
    cases = collections.Counter()
    for item in items:
        test = item.parent, item.originalname
        long = item.path.name in LONG_FILES or item.originalname in LONG
        long = long or any(map(item.get_closest_marker, ("exhaustive", "deployed")))
        if not long and cases[test] % SAMPLE == 0:
            item.add_marker(pytest.mark.quick)
        cases[test] += 1


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

"""Threads: the number in force, the same bits for any number, fork, interpreter exit."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import bits
import numpy as np
import pytest
from cases import DTYPE_ONLY, LAYOUTS, assert_all_same_bits, assert_same_bits, generator, targets_for

import stableloss as sl
from stableloss import _threads

# Large enough to be shared out, with blocks of one row and of many.
SHAPES = [(100_000, 3), (30_000, 10), (3_000, 100), (300, 1_000), (5, 70_000)]


def batch(shape, dtype):
    """Logits, and class indices of the rows."""
    rng = generator("threads", shape)
    return rng.normal(scale=4, size=shape).astype(dtype), rng.integers(0, shape[-1], shape[:-1])


def batch_for(stem, shape, dtype):
    logits, index = batch(shape, dtype)
    return logits, targets_for(stem, index, shape[-1])


def run(python_code, tmp_path, **environment):
    return subprocess.run(
        [sys.executable, "-c", python_code],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("stem", bits.LOSSES)
@pytest.mark.parametrize("dtype", DTYPE_ONLY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_for_any_number(stem, dtype, shape):
    loss = getattr(sl, stem)
    logits, targets = batch_for(stem, shape, dtype)
    results = {}
    for count in (1, 2, 3, 8):
        with sl.num_threads(count):
            value, grad = loss.value_and_grad(logits, targets)
            assert loss(logits, targets) == value
            results[count] = np.float64(value), grad, *loss.grad_and_hess(logits, targets)
            buffer = logits.copy()
            assert loss.value_and_grad(buffer, targets, out=buffer)[0] == value
            assert_same_bits(buffer, grad)
    for count in (2, 3, 8):
        assert_all_same_bits(results[count], results[1])


@pytest.mark.parametrize("stem", bits.LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_same_bits_for_any_layout(stem, layout):
    loss = getattr(sl, stem)
    logits, targets = batch_for(stem, (30_000, 10), np.float32)
    with sl.num_threads(1):
        expected = loss.value_and_grad(logits, targets)
    with sl.num_threads(3):
        got = loss.value_and_grad(layout(logits), layout(targets))
    assert got[0] == expected[0]
    assert_same_bits(got[1], expected[1])


@pytest.mark.parametrize("name", bits.ACTIVATIONS)
def test_same_bits_for_activations(name):
    for shape in SHAPES:
        logits, _ = batch(shape, np.float32)
        results = []
        for count in (1, 2, 3):
            with sl.num_threads(count):
                results.append(getattr(sl, name)(logits))
        assert_same_bits(results[1], results[0])
        assert_same_bits(results[2], results[0])


def test_many_callers_with_helpers_each():
    """Python threads that call at once, each with a number of its own."""
    logits, targets = batch((30_000, 10), np.float32)
    with sl.num_threads(1):
        expected = sl.softmax_ce.value_and_grad(logits, targets)

    def call(i):
        with sl.num_threads(1 + i % 5):
            return sl.softmax_ce.value_and_grad(logits, targets)

    with ThreadPoolExecutor(6) as callers:
        for value, grad in callers.map(call, range(60)):
            assert value == expected[0]
            assert_same_bits(grad, expected[1])


def test_helpers_are_awaited_when_the_pool_is_replaced(monkeypatch):
    """Another caller may replace the pool between two submissions; what was submitted still counts."""
    started, finished = threading.Event(), threading.Event()

    def task():
        if threading.current_thread() is threading.main_thread():
            started.wait(10)
        else:
            started.set()
            time.sleep(0.2)
            finished.set()

    with ThreadPoolExecutor(1) as executor:

        class Replaced:
            submissions = 0

            def submit(self, work):
                self.submissions += 1
                if self.submissions > 1:
                    raise RuntimeError("cannot schedule new futures after shutdown")
                return executor.submit(work)

        pool = Replaced()
        monkeypatch.setattr(_threads._pool, "get", lambda size: pool)
        _threads.work_together(task, 2)
        assert finished.is_set()


def test_number_in_force():
    before = sl.get_num_threads()
    try:
        sl.set_num_threads(3)
        assert sl.get_num_threads() == 3
        with sl.num_threads(5):
            assert sl.get_num_threads() == 5
            with sl.num_threads(1):
                assert sl.get_num_threads() == 1
            assert sl.get_num_threads() == 5
            with ThreadPoolExecutor(1) as other:
                assert other.submit(sl.get_num_threads).result() == 3
        with pytest.raises(KeyError), sl.num_threads(2):
            raise KeyError
        assert sl.get_num_threads() == 3
    finally:
        sl.set_num_threads(before)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, True, 2**31])
def test_impossible_number(count):
    before = sl.get_num_threads()
    with pytest.raises(ValueError, match="num_threads"):
        sl.set_num_threads(count)
    with pytest.raises(ValueError, match="num_threads"), sl.num_threads(count):
        pass
    assert sl.get_num_threads() == before


def test_environment(tmp_path):
    code = "import stableloss; print(stableloss.get_num_threads())"
    assert run(code, tmp_path, STABLELOSS_NUM_THREADS="3").stdout.strip() == "3"
    assert int(run(code, tmp_path, STABLELOSS_NUM_THREADS="").stdout) >= 1
    for wrong in ("0", "-2", "two"):
        refused = run(code, tmp_path, STABLELOSS_NUM_THREADS=wrong)
        assert refused.returncode != 0
        assert "STABLELOSS_NUM_THREADS" in refused.stderr


def test_fork_after_a_shared_call(tmp_path):
    """The child has none of the parent's helpers, and makes its own."""
    code = """
import os, sys, warnings
import numpy as np
import stableloss as sl
warnings.simplefilter("ignore")
sl.set_num_threads(3)
x, y = np.linspace(-9, 9, 600_000).reshape(60_000, 10), np.zeros(60_000, int)
expected = sl.softmax_ce(x, y)
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        os._exit(0 if sl.softmax_ce(x, y) == expected else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code, tmp_path).returncode == 0


def test_call_at_interpreter_exit(tmp_path):
    """A call from an exit handler works although no thread can be started any more."""
    code = """
import atexit
import numpy as np
import stableloss as sl
sl.set_num_threads(3)
x, y = np.linspace(-9, 9, 600_000).reshape(60_000, 10), np.zeros(60_000, int)
expected = sl.softmax_ce(x, y)
atexit.register(lambda: print(sl.softmax_ce(x, y) == expected))
"""
    finished = run(code, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "True"
    assert finished.stderr == ""

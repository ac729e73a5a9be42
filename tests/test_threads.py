"""Threads: the number in force, the same bits for any number, fork, interpreter exit."""

import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import bits
import numpy as np
import pytest
from cases import DTYPE_ONLY, LAYOUTS, assert_all_same_bits, assert_same_bits, generator, targets_for
from processes import run

import stableloss as sl
from stableloss import _threads

# Large enough to be shared out among several, with blocks of one row and of many.
SHAPES = [(200_000, 3), (60_000, 10), (6_000, 100), (600, 1_000), (9, 70_000)]


def batch(shape, dtype):
    """Logits, and class indices of the rows."""
    rng = generator("threads", shape)
    return rng.normal(scale=4, size=shape).astype(dtype), rng.integers(0, shape[-1], shape[:-1])


def batch_for(stem, shape, dtype):
    logits, index = batch(shape, dtype)
    return logits, targets_for(stem, index, shape[-1])


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


def several_rows(rng, n, k):
    """Everything that a check or a divisor looks at, in enough rows for threads to share those too."""
    logits = np.broadcast_to(rng.normal(size=(1, k)).astype(np.float32), (n, k))
    return logits, rng.integers(0, k, n, dtype=np.int16), rng.random(n), rng.random(n) < 0.9


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_same_divisor_for_any_number(reduction):
    rng = generator("divisor", reduction)
    logits, targets, weight, mask = several_rows(rng, 2_000_000, 2)
    by_row = sl.SoftmaxCE(reduction=reduction, class_weight=[0.3, 1.7], ignore_index=1)
    by_element = sl.SigmoidBCE(reduction=reduction)
    element_mask = rng.random(logits.shape) < 0.5
    with sl.num_threads(1):
        expected = by_row(logits, targets, sample_weight=weight, mask=mask)
        expected_elements = by_element(logits, element_mask, mask=element_mask)
    for count in (2, 5):
        with sl.num_threads(count):
            assert by_row(logits, targets, sample_weight=weight, mask=mask) == expected
            assert by_element(logits, element_mask, mask=element_mask) == expected_elements


@pytest.mark.parametrize("count", [1, 3])
def test_one_bad_value_among_many(count):
    """Whoever comes upon it, the message says where it is, and nothing is written."""
    rng = generator("bad value", count)
    logits, targets, weight, mask = several_rows(rng, 1_500_000, 2)
    out = np.full(logits.shape, 7, np.float32)
    where = 1_234_567
    mask[where] = True
    with sl.num_threads(count):
        for bad_targets, options in (
            (np.where(np.arange(len(targets)) == where, 2, targets), {}),
            (np.where(np.arange(len(targets)) == where, 2, targets), {"mask": mask}),
            (np.where(np.arange(len(targets)) == where, 0.5, targets), {}),
            (targets, {"sample_weight": np.where(np.arange(len(targets)) == where, np.nan, weight)}),
        ):
            with pytest.raises(ValueError, match=str(where)):
                sl.softmax_ce.value_and_grad(logits, bad_targets, out=out, **options)
        probabilities = np.full(logits.shape, 0.5, np.float32)
        probabilities[where, 1] = -0.5
        with pytest.raises(ValueError, match=str(where)):
            sl.SoftmaxCE(from_probabilities=True)(probabilities, targets)
    assert (out == 7).all()


@pytest.mark.parametrize("stem", bits.LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_same_bits_for_any_layout(stem, layout):
    loss = getattr(sl, stem)
    logits, targets = batch_for(stem, (60_000, 10), np.float32)
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
    logits, targets = batch((60_000, 10), np.float32)
    with sl.num_threads(1):
        expected = sl.softmax_ce.value_and_grad(logits, targets)

    def call(i):
        with sl.num_threads(1 + i % 5):
            return sl.softmax_ce.value_and_grad(logits, targets)

    with ThreadPoolExecutor(6) as callers:
        for value, grad in callers.map(call, range(60)):
            assert value == expected[0]
            assert_same_bits(grad, expected[1])


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


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_number_of_helpers(tmp_path):
    """As many as the largest call was allowed, none for a small one; all callers share them."""
    code = """
import os, threading, time
import numpy as np
import stableloss as sl
def helpers():
    return len(os.listdir("/proc/self/task")) - before
before = len(os.listdir("/proc/self/task"))
sl.set_num_threads(5)
small, large = np.zeros((1000, 10), np.float32), np.zeros((200_000, 10), np.float32)
sl.softmax_ce(small, np.zeros(1000, int))
assert helpers() == 0
sl.softmax_ce(large, np.zeros(200_000, int))
assert helpers() == 4
with sl.num_threads(2):
    sl.softmax_ce(large, np.zeros(200_000, int))
assert helpers() == 4
callers = [threading.Thread(target=sl.softmax_ce, args=(large, np.zeros(200_000, int))) for _ in range(6)]
[caller.start() for caller in callers]
[caller.join() for caller in callers]
for _ in range(1000):       # the callers are gone a little after they were waited for
    if helpers() == 4:
        break
    time.sleep(0.01)
assert helpers() == 4
"""
    finished = run(code, tmp_path)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads the time of threads in /proc")
def test_idle_helpers_cost_nothing(tmp_path):
    code = """
import os, time
import numpy as np
import stableloss as sl
sl.set_num_threads(4)
sl.softmax_ce(np.zeros((200_000, 10)), np.zeros(200_000, int))
def switches():
    lines = [open(f"/proc/self/task/{task}/status").read() for task in os.listdir("/proc/self/task")
             if int(task) != os.getpid()]
    return [line for text in lines for line in text.splitlines() if "ctxt_switches" in line]
time.sleep(0.2)
before = switches()
assert len(before) >= 6
time.sleep(1)
assert switches() == before
"""
    finished = run(code, tmp_path)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("count", [np.int64(3), np.uint8(3)])
def test_numbers_of_numpy(count):
    with sl.num_threads(count):
        assert sl.get_num_threads() == 3
        assert type(sl.get_num_threads()) is int


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, True, np.True_, np.float32(2), 2**31])
def test_impossible_number(count):
    before = sl.get_num_threads()
    with pytest.raises(ValueError, match="num_threads"):
        sl.set_num_threads(count)
    with pytest.raises(ValueError, match="num_threads"), sl.num_threads(count):
        pass
    assert sl.get_num_threads() == before


def number_with(tmp_path, **environment):
    """What a process finds that is told nothing but this."""
    unset = {"STABLELOSS_NUM_THREADS": "", "OMP_NUM_THREADS": ""}
    finished = run("import stableloss; print(stableloss.get_num_threads())", tmp_path, **unset | environment)
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout)


def test_environment(tmp_path):
    assert number_with(tmp_path, STABLELOSS_NUM_THREADS="3") == 3
    assert number_with(tmp_path, STABLELOSS_NUM_THREADS=" 77 ", OMP_NUM_THREADS="1") == 77
    for wrong in ("0", "-2", "two", "1.5", str(2**31)):
        refused = run("import stableloss", tmp_path, STABLELOSS_NUM_THREADS=wrong)
        assert refused.returncode != 0
        assert f"STABLELOSS_NUM_THREADS is {wrong!r}, not a whole number" in refused.stderr


def test_environment_of_openmp(tmp_path):
    most = number_with(tmp_path)
    assert most >= 1
    assert number_with(tmp_path, OMP_NUM_THREADS="1") == 1
    assert number_with(tmp_path, OMP_NUM_THREADS="1,8") == 1
    assert number_with(tmp_path, OMP_NUM_THREADS="1000") == most
    for ignored in ("0", "-1", "many", ","):
        assert number_with(tmp_path, OMP_NUM_THREADS=ignored) == most


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_affinity(tmp_path):
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import stableloss
assert stableloss.get_num_threads() == 1
"""
    finished = run(code, tmp_path, STABLELOSS_NUM_THREADS="", OMP_NUM_THREADS="")
    assert finished.returncode == 0, finished.stderr


UNIFIED = {
    "proc/self/cgroup": "0::/user.slice/job\n",
    "proc/self/mountinfo": "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
}
SPLIT = {
    "proc/self/cgroup": "12:memory:/m\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/init\n0::/x\n",
    "proc/self/mountinfo": (
        "30 29 0:26 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
        "31 29 0:27 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        "32 29 0:28 / / rw - overlay overlay rw,lowerdir=/a,cpu\n"
    ),
}
GROUPS = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, math.inf),
        (UNIFIED, math.inf),
        (UNIFIED | {f"{GROUPS}/user.slice/job/cpu.max": "max 100000\n"}, math.inf),
        (UNIFIED | {f"{GROUPS}/user.slice/job/cpu.max": "250000 100000\n"}, 2.5),
        # the least of the group's and of those around it
        (
            UNIFIED
            | {
                f"{GROUPS}/user.slice/job/cpu.max": "400000 100000\n",
                f"{GROUPS}/user.slice/cpu.max": "150000 100000\n",
                f"{GROUPS}/cpu.max": "max 100000\n",
            },
            1.5,
        ),
        (UNIFIED | {f"{GROUPS}/user.slice/job/cpu.max": "nonsense\n"}, math.inf),
        # in a container: the path names what the mount does not show
        (
            UNIFIED | {"proc/self/cgroup": "0::/../other\n", f"{GROUPS}/cpu.max": "50000 100000\n"},
            0.5,
        ),
        (SPLIT, math.inf),
        (
            SPLIT
            | {
                f"{GROUPS}/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                f"{GROUPS}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
        (
            SPLIT
            | {
                f"{GROUPS}/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                f"{GROUPS}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
    ],
)
def test_quota_of_control_groups(tmp_path, files, cpus):
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert _threads._cgroup_cpus(str(tmp_path)) == cpus


def test_quota_bounds_the_default(monkeypatch):
    monkeypatch.setenv("STABLELOSS_NUM_THREADS", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(_threads, "_usable_cpus", lambda: 8)
    for cpus, number in ((0.1, 1), (1, 1), (1.5, 2), (2, 2), (64, 8), (math.inf, 8)):
        monkeypatch.setattr(_threads, "_cgroup_cpus", lambda cpus=cpus: cpus)
        assert _threads._initial() == number


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

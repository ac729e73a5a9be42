"""What a call does where the system gives no thread or no memory, in the middle of other code, after a fork,
at the end of the process, on Ctrl-C and in another floating-point environment; each in a process of its own.

Where time matters, it is that of the machine at its slowest: a call that would last many seconds has to end
within two."""

import platform
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from processes import run

UNIX = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals, and no fork")

COMMON = """
import ctypes, gc, os, signal, sys, threading, time
import numpy as np
import stableloss as sl

def array(n, k, dtype=np.float32):
    return np.random.default_rng(n).normal(scale=4, size=(n, k)).astype(dtype)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

def tasks():
    return len(os.listdir("/proc/self/task"))

def same(a, b):
    return a[0] == b[0] and np.array_equal(a[1], b[1])

# a call that takes long and no memory
LONG = np.broadcast_to(np.zeros((1, 4), np.float32), (400_000_000, 4))
LABEL = np.broadcast_to(np.zeros(1, np.int64), len(LONG))
WIDE = np.broadcast_to(np.zeros((1, 1), np.float32), (1, 1_600_000_000))
"""


def check(tmp_path, *parts, **environment):
    """Run the code of all parts; what it prints, where it ended well and said nothing on stderr."""
    code = "\n".join(textwrap.dedent(part) for part in (COMMON, *parts))
    finished = run(code, tmp_path, **environment)
    assert finished.returncode == 0, (finished.returncode, finished.stdout, finished.stderr)
    assert finished.stderr == ""
    return finished.stdout.strip()


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """The library of faults.c, as what to preload."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("needs a C compiler and glibc")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", source, "-o", library, "-ldl", "-lm"], check=True)
    return {"LD_PRELOAD": str(library), "FAULTS": str(library)}


FAULTS = """
faults = ctypes.CDLL(os.environ["FAULTS"])
faults.refuse_memory_from.argtypes = [ctypes.c_size_t]
faults.refuse_memory_after.argtypes = [ctypes.c_long]
faults.mode_in_force.restype = ctypes.c_ulong
"""


# ---- threads that cannot be had ------------------------------------------------------------------


def test_no_thread_can_be_started(tmp_path, faults):
    """Every call is right and leaves nothing behind; where there are threads again, they are used."""
    code = """
    x, t = array(300_000, 4), np.zeros(300_000, int)
    with sl.num_threads(1):
        want = sl.softmax_ce.value_and_grad(x, t)
    sl.set_num_threads(4)
    faults.refuse_threads(1)
    before = tasks()
    for i in range(60):
        copy = x.copy()
        assert same(sl.softmax_ce.value_and_grad(copy, t), want)
        if i == 10:
            size = resident()
    assert resident() - size < 20
    assert tasks() == before
    faults.refuse_threads(0)
    time.sleep(0.2)
    assert same(sl.softmax_ce.value_and_grad(x, t), want)
    assert tasks() == before + 3
    """
    check(tmp_path, FAULTS, code, **faults)


def test_no_more_threads_than_a_busy_one(tmp_path, faults):
    """The only helper works for another call, and there are no others."""
    code = """
    x, t = array(12, 400_000), np.zeros(12, int)
    with sl.num_threads(1):
        want = sl.softmax_ce.value_and_grad(x, t)
    with sl.num_threads(2):
        sl.softmax_ce(x, t)
    faults.refuse_threads(1)
    sl.set_num_threads(3)
    wrong = []
    def caller():
        out = np.empty_like(x)
        for _ in range(25):
            out[:] = 0
            if not same((sl.softmax_ce.value_and_grad(x, t, out=out)[0], out.copy()), want):
                wrong.append(threading.get_ident())
    faults.refuse_threads(0)
    callers = [threading.Thread(target=caller, daemon=True) for _ in range(3)]
    callers[0].start(), callers[1].start(), callers[2].start(), faults.refuse_threads(1)
    [c.join() for c in callers]
    assert not wrong
    """
    check(tmp_path, FAULTS, code, **faults)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_absurd_number_of_threads(tmp_path):
    code = """
    before = tasks()
    sl.set_num_threads(2**31 - 1)
    x = LONG[:30_000_000]
    assert abs(sl.softmax_ce(x, LABEL[:len(x)]) - np.log(4)) < 1e-7
    assert tasks() - before <= 255
    """
    check(tmp_path, code)


# ---- a call in the middle of another -------------------------------------------------------------


@UNIX
@pytest.mark.parametrize("count", [1, 2, 5])
def test_call_in_a_signal_handler(tmp_path, count):
    """Both are right, in place too, and the outer one has not lost its memory to the inner one."""
    code = f"""
    sl.set_num_threads({count})
    x, t = array(2_000_000, 10), np.arange(2_000_000) % 10
    inner, u = array(300_000, 3, np.float64), np.arange(300_000) % 3
    loss = sl.SoftmaxCE(label_smoothing=0.1, softcap=30.0)
    with sl.num_threads(1):
        want, want_inner = loss.value_and_grad(x, t), sl.softmax_mse.value_and_grad(inner, u)
    calls, busy = 0, False
    def handler(*_):
        global calls, busy
        if not busy:
            busy = True
            assert same(sl.softmax_mse.value_and_grad(inner, u), want_inner)
            calls += 1
            busy = False
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    end = time.time() + 3
    while time.time() < end or calls < 3:
        buffer = x.copy()
        assert same(loss.value_and_grad(buffer, t, out=buffer), want)
    signal.setitimer(signal.ITIMER_REAL, 0)
    """
    check(tmp_path, code)


@UNIX
def test_signals_that_come_faster_than_they_are_handled(tmp_path):
    """Handlers interrupt each other until Python has enough of it; the stack is large enough for that."""
    code = """
    sl.set_num_threads(2)
    x, t = array(100_000, 10), np.zeros(100_000, int)
    depth = deepest = 0
    def handler(*_):
        global depth, deepest
        depth += 1
        deepest = max(depth, deepest)
        end = time.time() + 0.02
        while time.time() < end:
            sl.softmax_ce(x, t)
        depth -= 1
    signal.signal(signal.SIGALRM, handler)
    sys.setrecursionlimit(400)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        while True:
            sl.softmax_ce(LONG[:30_000_000], LABEL[:30_000_000])
    except RecursionError:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert deepest > 100
    """
    check(tmp_path, code)


@UNIX
def test_signals_are_seen_in_the_middle_of_a_call(tmp_path):
    code = """
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(time.time()))
    for count in (1, 2):
        seen.clear()
        with sl.num_threads(count):
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            start = time.time()
            sl.softmax_ce(LONG[:100_000_000], LABEL[:100_000_000])
            end = time.time()
            signal.setitimer(signal.ITIMER_REAL, 0)
        inside = [t for t in seen if start < t < end - 0.01]
        assert len(inside) >= (end - start) / 0.2 - 1, (count, len(inside), end - start)
    """
    check(tmp_path, code)


def test_call_in_a_destructor(tmp_path):
    """The collector may run one anywhere, the first large call of the process included."""
    code = """
    sl.set_num_threads(4)
    x, t = array(300_000, 3), np.zeros(300_000, int)
    values = []
    class Late:
        def __init__(self): self.me = self
        def __del__(self): values.append(sl.softmax_ce(x, t))
    gc.set_threshold(1)
    for _ in range(5):
        Late()
        values.append(sl.softmax_ce(x, t))
    gc.collect()
    assert len(values) == 10 and len(set(values)) == 1
    """
    check(tmp_path, code)


# ---- Ctrl-C --------------------------------------------------------------------------------------

INTERRUPT = """
signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupted(call):
    # how long after Ctrl-C the call ends, and how long it kept others from the GIL
    gaps, stop = [], threading.Event()
    def ticker():
        last = time.perf_counter()
        while not stop.wait(0.005):
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()
    thread = threading.Thread(target=ticker)
    thread.start()
    sent = []
    def send():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    timer = threading.Timer(0.3, send)
    timer.start()
    try:
        call()
    except KeyboardInterrupt:
        late = time.perf_counter() - sent[0]
    else:
        raise SystemExit("the call was not interrupted")
    finally:
        stop.set(), thread.join(), timer.join()
    assert late < 2 and max(gaps) < 2, (late, max(gaps))
"""


# n rows that take a kernel, a check or a divisor many seconds
CALLS = {
    "kernel": "sl.softmax_ce(LONG, LABEL)",
    "weights": "sl.softmax_ce(LONG, LABEL, sample_weight=np.broadcast_to(1.0, len(LONG)))",
    "mask": "sl.softmax_ce(LONG, LABEL, mask=np.broadcast_to(True, len(LONG)))",
    "probabilities": "sl.SoftmaxCE(from_probabilities=True)(LONG + np.float32(0.25), LABEL)",
    "soft targets": "sl.softmax_ce(LONG, LONG, mask=np.broadcast_to(True, len(LONG)))",
    "class weights": "sl.SoftmaxCE(class_weight=np.ones(4))(LONG, LABEL)",
    "batchmean": "sl.SigmoidBCE(reduction='batchmean')(LONG, LONG, mask=np.broadcast_to(True, LONG.shape))",
    "long rows": "sl.SigmoidBCE(reduction='batchmean')(WIDE, WIDE, mask=np.broadcast_to(True, WIDE.shape))",
    "one row": "sl.softmax_ce(WIDE, np.zeros(1, int))",
    "one row of soft targets": "sl.softmax_ce(WIDE, WIDE)",
    "divisor": "sl.softmax_ce.divisor(LONG.shape, LABEL, sample_weight=np.broadcast_to(1.0, len(LONG)))",
    "activation": "sl.logsumexp(LONG)",
}


@UNIX
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_interrupt(tmp_path, call, count):
    code = f"""
    if {"LONG + " in call}:
        LONG = np.broadcast_to(np.full((1, 4), 0.25, np.float32), LONG.shape)
    sl.set_num_threads({count})
    interrupted(lambda: {call.replace("LONG + np.float32(0.25)", "LONG")})
    assert abs(sl.softmax_ce(np.zeros((5, 4)), np.zeros(5, int)) - np.log(4)) < 1e-15
    """
    check(tmp_path, INTERRUPT, code)


@UNIX
def test_nothing_is_written_after_an_interrupt(tmp_path):
    code = """
    sl.set_num_threads(3)
    x, t = array(60, 300_000), np.zeros(60, int)
    out = np.empty_like(x)
    sl.softmax_ce.value_and_grad(x, t, out=out)
    for trial in range(8):
        try:
            # under load, the signal can come before start() is back
            threading.Timer(0.002 + 0.006 * trial, os.kill, (os.getpid(), signal.SIGINT)).start()
            while True:
                sl.softmax_ce.value_and_grad(x, t, out=out)
        except KeyboardInterrupt:
            copy = out.copy()
            time.sleep(0.05)
            assert np.array_equal(copy, out)
    """
    check(tmp_path, INTERRUPT, code)


@UNIX
def test_handler_that_raises(tmp_path):
    """Whatever it raises ends the call; in other threads than the main one nothing is asked."""
    code = """
    class Stop(Exception): pass
    def handler(*_): raise Stop("enough")
    signal.signal(signal.SIGALRM, handler)
    sl.set_num_threads(2)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        sl.softmax_ce(LONG, LABEL)
    except Stop as error:
        assert error.args == ("enough",)
    else:
        raise SystemExit("not stopped")
    values = []
    x, t = LONG[:50_000_000], LABEL[:50_000_000]
    other = threading.Thread(target=lambda: values.append(sl.softmax_ce(x, t)))
    other.start()
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        while True:
            time.sleep(0.01)
    except Stop:
        other.join()
    assert abs(values[0] - np.log(4)) < 1e-7
    """
    check(tmp_path, code)


@pytest.mark.skipif(sys.platform != "linux", reason="sends signals to threads by /proc")
def test_helpers_leave_signals_to_others(tmp_path):
    """A signal that is sent to the process is not taken by a thread that cannot act on it."""
    code = """
    before = set(os.listdir("/proc/self/task"))
    sl.set_num_threads(4)
    sl.softmax_ce(array(300_000, 4), np.zeros(300_000, int))
    helpers = set(os.listdir("/proc/self/task")) - before
    assert len(helpers) == 3
    time.sleep(0.3)             # one that came too late for the call may only just have begun
    for helper in helpers:
        status = open(f"/proc/self/task/{helper}/status").read()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1):
            assert blocked >> (number - 1) & 1
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGPROF):
            assert not blocked >> (number - 1) & 1
    """
    check(tmp_path, code)


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["main thread", "another"])
def test_no_memory_for_a_kernel(tmp_path, faults, where):
    code = f"""
    x, t = array(60, 10), np.zeros(60, int)
    out = np.full_like(x, 7)
    def refused():
        for call in (lambda: sl.softmax_ce(x, t), lambda: sl.sigmoid(x), lambda: sl.sigmoid_bce(x, x > 0),
                     lambda: sl.softmax_mse.value_and_grad(x, t, out=out)):
            faults.refuse_memory_from(200_000)
            try:
                call()
            except MemoryError:
                continue
            finally:
                faults.refuse_memory_from(0)
            raise SystemExit("no MemoryError")
        assert (out == 7).all()
    def in_other_thread():
        thread = threading.Thread(target=refused)
        thread.start(), thread.join()
    refused() if {where == "main thread"} else in_other_thread()
    sl.softmax_mse.value_and_grad(x, t, out=out)
    assert (out != 7).any()
    """
    check(tmp_path, FAULTS, code, **faults)


def test_no_memory_for_what_is_shared(tmp_path, faults):
    """For the helpers: they do not help. For the sums of the blocks: MemoryError, and nothing leaked."""
    code = """
    sl.set_num_threads(3)
    x, t = array(200_000, 10), np.zeros(200_000, int)
    with sl.num_threads(1):
        want = sl.softmax_ce.value_and_grad(x, t)
    out = np.empty_like(x)
    faults.refuse_memory_from(200_000)
    for _ in range(20):
        faults.refuse_memory_from(200_000)
        got = sl.softmax_ce.value_and_grad(x, t, out=out)
        faults.refuse_memory_from(0)
        assert same(got, want)
    faults.refuse_memory_from(200_000)
    # 16 bytes for each block of 32768 logits
    x = t = WIDE[0, :600_000_000]
    for i in range(300):
        try:
            sl.sigmoid_bce(x, t)
        except MemoryError:
            if i == 10:
                size = resident()
        else:
            raise SystemExit("no MemoryError")
    assert resident() - size < 5
    faults.refuse_memory_from(0)
    assert abs(sl.sigmoid_bce(x[:1_000_000], t[:1_000_000]) - np.log(2)) < 1e-7
    """
    check(tmp_path, FAULTS, code, **faults)


@pytest.mark.parametrize("n", [64, 120_000])
def test_any_allocation_may_fail(tmp_path, faults, n):
    """A result or a MemoryError, whichever allocation of a call it is."""
    code = f"""
    sl.set_num_threads(3)
    x, t = array({n}, 10), np.arange({n}) % 10
    w, m = np.ones({n}), np.ones({n}, bool)
    def calls():
        yield lambda: sl.softmax_ce.value_and_grad(x, t)
        yield lambda: sl.softmax_ce.value_and_grad(x, t, sample_weight=w, mask=m)
        yield lambda: sl.SoftmaxCE(class_weight=np.ones(10), ignore_index=3)(x, t)
        yield lambda: sl.softmax_mse.grad_and_hess(x[:, ::-1], t)
        yield lambda: sl.SoftmaxCE(reduction="none", axis=0)(x, np.arange(10))
        yield lambda: sl.SigmoidBCE(focal_gamma=2.0)(x, x > 0)
        yield lambda: sl.softmax(x, axis=0)
        yield lambda: sl.logsumexp(x)
    def bits(result):
        if isinstance(result, tuple):
            return tuple(map(bits, result))
        return result.tobytes() if isinstance(result, np.ndarray) else result
    failed = 0
    for call in calls():
        want = bits(call())
        for allocations in range(500):
            faults.refuse_memory_after(allocations)
            try:
                got = call()
            except MemoryError:
                failed += 1
                got = None
            refused = faults.refused_memory()
            faults.refuse_memory_after(-1)
            assert got is None or bits(got) == want
            if not refused:
                break
        else:
            raise SystemExit("no end of allocations")
    assert failed >= 3, failed
    """
    check(tmp_path, FAULTS, code, **faults)


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory in /proc")
def test_threads_that_have_computed_hold_no_memory(tmp_path):
    """Nor do threads that have not: what is kept is bounded, whatever their number."""
    code = """
    x, t = array(300, 1000), np.zeros(300, int)
    leave, ready = threading.Event(), threading.Semaphore(0)
    def caller():
        sl.softmax_ce(x, t)
        ready.release()
        leave.wait()
    sl.softmax_ce(x, t)
    threading.stack_size(1 << 18)
    before = resident()
    callers = [threading.Thread(target=caller, daemon=True) for _ in range(200)]
    [c.start() for c in callers]
    [ready.acquire() for _ in callers]
    grown = resident() - before
    leave.set()
    [c.join() for c in callers]
    assert grown < 25, grown        # 200 times 256 KiB would be 50 MiB
    """
    check(tmp_path, code, STABLELOSS_NUM_THREADS="1", MALLOC_ARENA_MAX="1")


# ---- the floating-point environment --------------------------------------------------------------

ENVIRONMENT = (
    FAULTS
    + """
LOSSES = [getattr(sl, name) for name in sl.__all__ if hasattr(getattr(sl, name), "value_and_grad")]
LOSSES = [loss for loss in LOSSES if not isinstance(loss, type)]
ACTIVATIONS = [sl.sigmoid, sl.log_sigmoid, sl.softmax, sl.log_softmax, sl.logsumexp]

def results(size, mode):
    # the bits of everything, each call made in a mode; numpy's part in the default one
    def bits(function, *arguments, **options):
        faults.set_mode(mode)
        before = faults.mode_in_force()
        try:
            result = function(*arguments, **options)
        finally:
            after = faults.mode_in_force()
            faults.set_mode(0)
            assert after == before
        return [np.asarray(part).tobytes() for part in (result if isinstance(result, tuple) else (result,))]

    for dtype in (np.float32, np.float64):
        for k in (3, 200) if size < 10_000 else (200,):
            x, t = array(size // k, k, dtype), np.arange(size // k) % k
            soft, weight = np.full(x.shape, 1 / k, dtype), np.full(len(x), 0.3)
            small = x * np.finfo(dtype).tiny
            for loss in LOSSES:
                by_row = type(loss)(reduction="none")
                targets = t if type(loss)._rowwise else soft
                yield bits(loss, x, targets)
                yield bits(by_row.value_and_grad, x, targets)
                yield bits(loss.value_and_grad, x, soft, sample_weight=weight)
                yield bits(by_row.grad_and_hess, small, targets)
            yield bits(sl.SoftmaxCE(label_smoothing=0.1, softcap=30.0).value_and_grad, x, t)
            focal = sl.SoftmaxCE(focal_gamma=2.0, class_weight=np.linspace(0.1, 1, k))
            yield bits(focal.value_and_grad, x, t)
            for activation in ACTIVATIONS:
                yield bits(activation, x)
                yield bits(activation, small)
"""
)


@pytest.mark.parametrize("mode", [1, 2, 3, 4], ids=["upward", "downward", "towards 0", "subnormals are 0"])
def test_environment_of_the_caller(tmp_path, faults, mode):
    """Results have the bits of the default environment, and the caller's is as before; with helpers that were
    started in the caller's, too."""
    code = f"""
    for size, count in ((3_000, 1), (400_000, 3)):
        sl.set_num_threads(count)
        got = list(results(size, {mode}))
        assert got == list(results(size, 0))
        assert len(set(map(str, got))) > 20
    """
    check(tmp_path, FAULTS, ENVIRONMENT, code, **faults)


def test_environment_after_an_error(tmp_path, faults):
    code = """
    x, t = array(200, 3), np.zeros(200, int)
    calls = [
        lambda: sl.softmax_ce(x, t + 3),
        lambda: sl.softmax_ce(x, t + np.nan),
        lambda: sl.softmax_ce(x, t, sample_weight=t + np.nan),
        lambda: sl.sigmoid_bce(x, x),
        lambda: sl.softmax(x, axis=7),
    ]
    for mode in range(5):
        for call in calls:
            faults.set_mode(mode)
            before = faults.mode_in_force()
            try:
                call()
            except (ValueError, IndexError):
                after = faults.mode_in_force()
                faults.set_mode(0)
                assert after == before
            else:
                raise SystemExit("no error")
    """
    check(tmp_path, FAULTS, ENVIRONMENT, code, **faults)


def test_exceptions_that_are_signals(tmp_path, faults):
    """What overflows or is NaN in a kernel or a check does not end a process that traps such things."""
    code = """
    special = np.array([0, 1, -1, 90, -90, 800, -800, 1e38, -1e38, np.inf, -np.inf, np.nan, 1e-40])
    for dtype in (np.float32, np.float64):
        for repeats in (1, 20_000):
            x = np.stack([special, np.roll(special, 1), np.roll(special, 5)], 1).astype(dtype)
            x = np.tile(x, (repeats, 1))
            t, soft = np.arange(len(x)) % 3, np.full(x.shape, 0.25, dtype)
            nan = np.full(len(x), np.nan, dtype)
            mask = np.ones(len(x), bool)
            mask[::3] = False
            hidden = np.where(mask[:, None], soft, dtype(np.nan))
            for count in (1, 2):
                sl.set_num_threads(count)
                faults.set_mode(5)
                for loss in LOSSES:
                    loss.value_and_grad(x, soft)
                    loss.value_and_grad(x, hidden, mask=mask)
                    loss.grad_and_hess(x, soft)
                sl.softmax_ce.value_and_grad(x, t, with_stats=True)
                sl.SoftmaxCE(focal_gamma=2.0, logit_scale=3.0).value_and_grad(x, t)
                for activation in ACTIVATIONS:
                    activation(x)
                try:
                    sl.softmax_ce(x, nan)
                except ValueError:
                    pass
                faults.set_mode(0)
    """
    check(tmp_path, FAULTS, ENVIRONMENT, code, **faults)


# ---- fork ----------------------------------------------------------------------------------------


@UNIX
def test_fork_while_others_compute(tmp_path):
    """Whatever the parent's helpers and callers are at, the child can compute, alone and in threads."""
    code = """
    import warnings
    warnings.simplefilter("ignore")
    sl.set_num_threads(3)
    x, t = array(100_000, 10), np.zeros(100_000, int)
    want, stop = sl.softmax_ce(x, t), False
    def caller():
        while not stop:
            assert sl.softmax_ce(x, t) == want
    callers = [threading.Thread(target=caller, daemon=True) for _ in range(3)]
    [c.start() for c in callers]
    end, codes = time.time() + 4, []
    while time.time() < end:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            good = all(sl.softmax_ce(x, t) == want for _ in range(2))
            if sys.platform == "linux":
                good = good and tasks() == 3
            os._exit(0 if good else 3)
        codes.append(os.waitpid(child, 0)[1])
    stop = True
    [c.join() for c in callers]
    assert len(codes) > 5 and not any(codes), codes
    """
    check(tmp_path, code)


@UNIX
@pytest.mark.parametrize("count", [1, 3])
def test_fork_in_the_middle_of_a_call(tmp_path, count):
    """By a signal's handler: both processes finish the call, in place, with no block done twice or lost."""
    code = f"""
    import warnings
    warnings.simplefilter("ignore")
    sl.set_num_threads({count})
    loss = sl.SoftmaxCE(focal_gamma=2.0, label_smoothing=0.1)
    x, t = array(150_000, 20), np.arange(150_000) % 20
    want = loss.value_and_grad(x, t)
    children, parent = [], os.getpid()
    def handler(*_):
        if os.getpid() == parent and len(children) < 6:
            child = os.fork()
            if child:
                children.append(child)
            else:
                signal.alarm(60)
    signal.signal(signal.SIGALRM, handler)
    signal.signal(signal.SIGUSR1, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    while len(children) < 6:
        buffer = x.copy()
        good = same(loss.value_and_grad(buffer, t, out=buffer), want)
        if os.getpid() != parent:
            signal.alarm(0)
            good = good and same(loss.value_and_grad(x, t), want)
            os._exit(0 if good else 3)
        assert good
    signal.setitimer(signal.ITIMER_REAL, 0)
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert not any(codes), codes
    """
    check(tmp_path, code)


# ---- the end of the process ----------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 0.2])
def test_exit_while_others_compute(tmp_path, seconds):
    """Daemon threads in the middle of calls, and their helpers, do not delay or disturb the end."""
    code = f"""
    sl.set_num_threads(3)
    x, t = array(300, 100_000), np.zeros(300, int)
    small = array(8, 3), np.zeros(8, int)
    def caller(i):
        while True:
            sl.softmax_ce.value_and_grad(*((x, t) if i % 2 else small))
    for i in range(4):
        threading.Thread(target=caller, args=(i,), daemon=True).start()
    time.sleep({seconds})
    print("end", time.time())
    """
    printed = check(tmp_path, code)
    assert time.time() - float(printed.split()[1]) < 5


def test_calls_at_exit(tmp_path):
    """From exit handlers and destructors, with helpers of before and with none yet."""
    code = """
    import atexit
    x, t = array(60_000, 10), np.zeros(60_000, int)
    with sl.num_threads(1):
        want = sl.softmax_ce(x, t)
    sl.set_num_threads(3)
    if len(sys.argv) > 1:
        sl.softmax_ce(x, t)
    atexit.register(lambda: print("atexit", sl.softmax_ce(x, t) == want))
    class Late:
        def __del__(self, call=sl.softmax_ce, x=x, t=t, want=want): print("del", call(x, t) == want)
    late = Late()
    """
    assert check(tmp_path, code).split() == ["atexit", "True", "del", "True"]
    with_helpers = code.replace("if len(sys.argv) > 1:", "if True:")
    assert check(tmp_path, with_helpers).split() == ["atexit", "True", "del", "True"]


# ---- the rest ------------------------------------------------------------------------------------


def test_other_interpreter(tmp_path):
    """One of the same process is told that it cannot have the kernels; the main one goes on."""
    code = """
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    sl.set_num_threads(2)
    x, t = array(100_000, 10), np.zeros(100_000, int)
    want = sl.softmax_ce(x, t)
    other = interpreters.create()
    run = getattr(interpreters, "exec", None) or interpreters.run_string
    run(other, "import sys\\ntry: import stableloss\\nexcept ImportError: print('refused', flush=True)")
    interpreters.destroy(other)
    assert sl.softmax_ce(x, t) == want
    """
    assert check(tmp_path, code) == "refused"


def test_numbers_of_threads_that_change(tmp_path):
    """Large and small calls of many threads, while the number in force changes all the time."""
    code = """
    x, t = array(60_000, 10), np.arange(60_000) % 10
    small, few = array(8, 3), np.zeros(8, int)
    want, want_small = sl.softmax_mse.value_and_grad(x, t), sl.softmax_mse.value_and_grad(small, few)
    stop, wrong = False, []
    def caller(i):
        out = np.empty_like(x)
        while not stop:
            if i % 2:
                good = same(sl.softmax_mse.value_and_grad(x, t, out=out), want)
            else:
                good = all(same(sl.softmax_mse.value_and_grad(small, few), want_small) for _ in range(50))
            if not good:
                wrong.append(i)
    callers = [threading.Thread(target=caller, args=(i,), daemon=True) for i in range(12)]
    [c.start() for c in callers]
    end, i = time.time() + 4, 0
    while time.time() < end:
        i += 1
        sl.set_num_threads(1 + i % 17)
        with sl.num_threads(5):
            assert same(sl.softmax_mse.value_and_grad(x, t), want)
    stop = True
    [c.join() for c in callers]
    assert not wrong
    """
    check(tmp_path, code)


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "float64"])
def test_class_indices_that_change(tmp_path, dtype):
    """Whatever another thread puts there during a call, nothing outside the arrays is read or written."""
    code = f"""
    n, k = 200_000, 10
    x, t = array(n, k), (np.arange(n) % k).astype("{dtype}")
    good, bad, stop = t.copy(), (np.nan if t.dtype.kind == "f" else np.iinfo(t.dtype).max), False
    def flip():
        while not stop:
            t[...] = bad
            t[...] = good
    thread = threading.Thread(target=flip, daemon=True)
    thread.start()
    weights = np.linspace(0.5, 1, k)
    losses = [sl.softmax_ce, sl.SoftmaxCE(class_weight=weights), sl.softmax_mse,
              sl.SoftmaxCE(class_weight=weights, label_smoothing=0.1)]
    end, calls = time.time() + 3, 0
    while time.time() < end:
        for loss in losses:
            for call in (loss, loss.value_and_grad, loss.grad_and_hess):
                calls += 1
                try:
                    call(x, t)
                except (ValueError, RuntimeError):
                    pass
    stop = True
    thread.join()
    assert calls > 10
    """
    check(tmp_path, code)


LARGE = {
    "elements": """
    n = 2**31 + 7
    value = sl.sigmoid_bce(np.broadcast_to(np.float32(1), (n,)), np.broadcast_to(True, (n,)))
    assert abs(value - np.log1p(np.exp(-1.0))) < 1e-7
    """,
    "rows": """
    n = 2**31 + 7
    x, t = np.broadcast_to(np.array([[1, 2]], np.float32), (n, 2)), np.broadcast_to(np.uint8(1), (n,))
    assert abs(sl.softmax_ce(x, t) - np.log1p(np.exp(-1.0))) < 1e-7
    """,
    "classes": """
    k = 2**31 + 9
    x = np.broadcast_to(np.zeros((1, 1), np.float32), (1, k))
    assert abs(sl.softmax_ce(x, np.array([k - 1])) - np.log(k)) < 1e-5
    assert abs(sl.softmax_ce(x, np.array([2**31])) - np.log(k)) < 1e-5
    try:
        sl.softmax_ce(x, np.array([k]))
    except ValueError as error:
        assert str(k) in str(error)
    else:
        raise SystemExit("no error")
    """,
    "weighted rows": """
    n = 2**31 + 7
    x, t = np.broadcast_to(np.array([[1, 2]], np.float32), (n, 2)), np.broadcast_to(np.uint8(1), (n,))
    total = sl.softmax_ce.divisor((n, 2), t, sample_weight=np.broadcast_to(0.5, (n,)))
    assert total == n / 2
    """,
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("code", LARGE.values(), ids=LARGE)
def test_large(tmp_path, code):
    """More rows, classes and elements than 32 bits hold; strides of 0, so that no memory is needed."""
    check(tmp_path, code)

"""The fuzzer knows every option and argument, finds what it is to find, and a short run finds nothing."""

import os
import subprocess
import sys
from pathlib import Path

import bits
import fuzz
import fuzz_calls
import fuzz_wrong
import numpy as np
import pytest
from guards import Arena, strided

import stableloss as sl

FUZZ = Path(fuzz.__file__)
GUARDED = pytest.mark.skipif(sys.platform == "win32", reason="guard pages need mprotect")


def python(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(FUZZ.parent)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def _quiet():
    with np.errstate(all="ignore"):
        yield


# ---- everything is drawn -------------------------------------------------------------------------


def test_every_option_has_values():
    assert set(fuzz_calls.OPTIONS) == {name for names in fuzz_calls.DEFAULTS.values() for name in names}


def test_every_argument_is_known():
    assert set(fuzz_calls.ARGUMENTS) == {name for names in fuzz_calls.TAKES.values() for name in names}
    for name in bits.ACTIVATIONS:
        assert set(fuzz_calls.parameters_of(getattr(sl, name))) <= set(fuzz_calls.ACTIVATION_ARGUMENTS)


def test_every_method_is_known():
    for cls in fuzz_calls.CLASSES.values():
        methods = {name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))}
        # shards of rows have an oracle of their own: test_shards.py
        assert methods - {"divisor", "partial", "finish"} <= set(fuzz_calls.METHODS)


@pytest.mark.usefixtures("_quiet")
def test_everything_is_drawn():
    """In a few hundred calls: each loss, method, option and argument, and each kind of wrong call."""
    seen = set()
    for number in range(1500):
        r = fuzz_calls.Draw(5, number)
        call = fuzz_calls.LossCall(r)
        seen |= {call.name, call.method, *call.options, *call.given, call.dtype}
        kind = r.choice(fuzz_wrong.OF_LOSSES)
        if kind(r, call) is not None:
            seen.add(kind)
    expected = {*bits.LOSSES, *fuzz_calls.METHODS, *fuzz_calls.OPTIONS, *fuzz_calls.ARGUMENTS}
    expected |= {*fuzz_wrong.OF_LOSSES, *fuzz_calls.HALF, np.dtype("f4"), np.dtype("f8")}
    assert expected <= seen


# ---- what is wrong is found ----------------------------------------------------------------------


def fails(calls):
    """The message of the first of these calls that fails."""
    for number in range(calls):
        try:
            fuzz.one_call(9, number)
        except fuzz.Failure as failure:
            return str(failure)
    return None


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("result", ["loss", "grad", "hess", "value"])
def test_wrong_results_are_found(monkeypatch, result):
    """An error of 20 ulp, in the call with plain arrays too."""
    for cls in (fuzz_calls.LossCall, fuzz_calls.ActivationCall):
        original = cls.results

        def spoilt(call, returned, original=original):
            named = original(call, returned)
            value = named.get(result)
            if isinstance(value, np.ndarray):
                value[...] = (value * (1 + 20 * np.finfo(np.float32).eps)).astype(value.dtype)
            elif value is not None:
                named[result] = type(value)(value * (1 + 20 * np.finfo(np.float32).eps))
            return named

        monkeypatch.setattr(cls, "results", spoilt)
    monkeypatch.setattr(fuzz, "ORACLE_SHARE", 1)
    monkeypatch.setattr(fuzz, "WRONG_SHARE", 0)
    found = fails(200)
    assert " ulp " in found or "the sum of all losses" in found


@pytest.mark.usefixtures("_quiet")
def test_a_written_input_is_found(monkeypatch):
    original = fuzz_calls.Call.run

    def writes(call):
        results = original(call)
        for block in call.memory.blocks:
            block.raw[0] ^= 1
        return results

    monkeypatch.setattr(fuzz_calls.Call, "run", writes)
    assert "beside its outputs" in fails(100)


@GUARDED
@pytest.mark.parametrize("at_end", [False, True])
def test_guard_pages_stop_what_leaves_an_array(at_end):
    code = f"""
import numpy as np
from guards import Arena
block = Arena(1, 1 << 16).block(64, {at_end})
block.array((8,), np.float64, (8,), 0)[...] = 1
print("inside", flush=True)
np.ndarray((1,), np.uint8, block.memory, block.start + (64 if {at_end} else -1))[0] = 1
"""
    finished = python("-c", code)
    assert finished.returncode < 0
    assert finished.stdout.strip() == "inside"


def test_canaries_show_what_leaves_an_array():
    strides, origin, span = strided((3, 4), 8, order=(1, 0), steps=(2, 3), backwards=(0,))
    block = Arena(1, 1 << 16).block(span, at_end=True)
    array = block.array((3, 4), np.float64, strides, origin)
    array[...] = np.arange(12).reshape(3, 4)
    block.remember()
    array[1, 2] = -1
    assert block.unchanged(array)
    assert not block.unchanged()
    beside = block.array((1,), np.float64, (8,), 8)
    assert not np.shares_memory(beside, array)
    beside[0] = 0
    assert not block.unchanged(array)
    block.restore()
    assert block.unchanged()


@GUARDED
def test_a_crash_is_named(tmp_path):
    """By the parent of the process that died."""
    script = tmp_path / "crashing.py"
    script.write_text("""
import os, sys
import fuzz
options = fuzz.parse_arguments(["--seed", "3"])
if fuzz.PROGRESS in os.environ:
    fuzz.one_call = lambda seed, number, skip: os.kill(os.getpid(), 11) if number == 3 else None
    sys.exit(fuzz.work(options))
fuzz.__file__ = __file__
sys.exit(fuzz.watch(options))
""")
    finished = python(script)
    assert finished.returncode == 1
    assert "died of signal 11 in call 3: " in finished.stdout
    assert finished.stdout.strip().endswith("python tests/fuzz.py --seed 3 --only 3")


# ---- runs ----------------------------------------------------------------------------------------


def test_short_run():
    """.ci/run makes a longer one."""
    finished = python(FUZZ, "--calls", 400, "--seed", 1)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " 400 calls in " in finished.stdout


def test_threads():
    finished = python(FUZZ, "--calls", 40, "--seed", 1, "--threads", 3)
    assert finished.returncode == 0, finished.stdout + finished.stderr

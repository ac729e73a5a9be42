"""The constants of sl_math.h are those that tests/remez.py computes."""

import re
from pathlib import Path

import numpy as np
import pytest
import remez

HEADER = Path(__file__).resolve().parent.parent / "stableloss" / "_kernels" / "sl_math.h"
TEXT = HEADER.read_text(encoding="utf-8")
DEFINITION = re.compile(
    r"^#define (SL_\w+_(F32|F64)) +(-?0x[0-9a-f.]+p[-+]\d+)f? +/\* (\S+) \*/$", re.MULTILINE
)
DEFINED = {name: float.fromhex(value) for name, _, value, _ in DEFINITION.findall(TEXT)}


@pytest.mark.parametrize("key", remez.FITS, ids="-".join)
def test_coefficients(key):
    """Each to the last bit, no more and no fewer; and the error that the header states."""
    values, error = remez.fitted(*key)
    name, type_name = key
    assert {n: v for n, v in DEFINED.items() if re.fullmatch(rf"SL_{name}\d+_{type_name}", n)} == values
    stated = [float(bits) for bits in re.findall(r"2\*\*(-\d+\.\d)", TEXT)]
    assert min(abs(error - bits) for bits in stated) < 0.1


@pytest.mark.parametrize("type_name", remez.FORMATS)
def test_logarithms(type_name):
    for name, value in remez.logarithms(type_name).items():
        assert DEFINED[name] == value, name


def test_decimals():
    """In the comments: enough digits for the value."""
    found = DEFINITION.findall(TEXT)
    assert len(found) > 40
    for name, type_name, value, decimal in found:
        dtype = np.float32 if type_name == "F32" else np.float64
        assert dtype(decimal) == float.fromhex(value), name

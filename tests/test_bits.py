"""The bits of the results: on every level those of the table, and near them on x86-64's base level."""

import os
import subprocess
import sys

import bits
import gmpy2
import numpy as np
import oracle

from stableloss import _dispatch

# x86-64's base level has no fused multiply-add. The largest difference from the other levels on the
# inputs of the table, in ulps of the result or of the largest term of the difference that it is: 5 for
# the float64 Hessians of the quadratic costs, 4 elsewhere.
BASE_DIFFERS_BY = 5


def test_bits(update_records):
    if not bits.fused():
        return
    if update_records:
        bits.write()
    expected, got = bits.read(), bits.table()
    assert [name for name in expected if got.get(name) != expected[name]] == []
    assert got.keys() == expected.keys()


def test_base_is_near(tmp_path):
    """Wherever there is another level to compare with."""
    if bits.fused() or "v3" not in _dispatch.available():
        return
    file = tmp_path / "v3.npz"
    run = subprocess.run(
        [sys.executable, bits.__file__, "--save", str(file)],
        env={**os.environ, "STABLELOSS_CPU": "v3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    fused, base = np.load(file), dict(bits.results())
    terms = {}
    # wider rows would take the oracle most of the time
    shapes = bits.SHAPES[:3]
    with gmpy2.context(gmpy2.get_context(), precision=oracle.LEAST_BITS):
        for stem, dtype, shape, kind, logits, targets in bits.loss_arguments(shapes):
            exact = oracle.LOSSES[stem](logits, targets)
            for quantity in ("loss", "grad", "hess"):
                name = bits.loss_name(stem, dtype, shape, kind, quantity)
                terms[name] = getattr(exact, f"{quantity}_term")
        for name in bits.ACTIVATIONS:
            for dtype in bits.DTYPES:
                terms |= {bits.activation_name(name, dtype, shape): None for shape in shapes}
        for name, term in terms.items():
            expected = oracle.lift(fused[name])
            oracle.assert_within(BASE_DIFFERS_BY, base[name], expected, base[name].dtype, term, name)

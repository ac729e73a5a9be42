"""The record of the worst errors: still true, and what the documentation states."""

import bits
import numpy as np
import pytest
import worst_cases

RECORDED = [pytest.param(*entry, id=" ".join(entry[:3])) for entry in worst_cases.entries()]


@pytest.mark.parametrize(("function", "dtype", "quantity", "entry"), RECORDED)
def test_recorded_input_reaches_its_error(function, dtype, quantity, entry):
    """Or, without fused multiply-add, stays within the bound."""
    logits = np.atleast_2d(np.array(worst_cases.decode(entry["logits"]), dtype))
    target = worst_cases.decode(entry["target"])
    if target is not None:
        soft = isinstance(target, list)
        target = np.array([target], dtype if soft else np.int64)
        if not bits.by_rows(function):
            target = target.reshape(1, 1)
    error = worst_cases.errors(function, logits, target)[quantity.removeprefix("soft ")].item()
    assert error <= worst_cases.limit_here(function)
    if bits.fused():
        assert error == pytest.approx(entry["ulp"], abs=1.1e-3)


def test_documentation_states_the_record():
    for statement in worst_cases.statements():
        statement.check()


def test_everything_is_recorded():
    losses = {kind + quantity for kind in ("", "soft ") for quantity in worst_cases.QUANTITIES}
    for function in (*worst_cases.CLASSES, *bits.ACTIVATIONS):
        recorded = worst_cases.read()[function]
        assert set(recorded) == set(worst_cases.DTYPES)
        expected = {"value"} if function in bits.ACTIVATIONS else losses
        assert all(set(quantities) == expected for quantities in recorded.values()), function

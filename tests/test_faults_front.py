"""What a call does with arguments that change under it, odd memory, garbage and no memory at all.

Whatever could end the process runs in one of its own: a function of this file, imported there.
"""

import copy
import ctypes
import ctypes.util
import gc
import itertools
import os
import pickle
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import bits
import numpy as np
import pytest
from cases import DTYPE_ONLY, assert_same_bits, generator

import stableloss as sl
from stableloss._dispatch import kernels

LOSSES = [value for value in vars(sl).values() if isinstance(value, sl.losses._Loss)]
ROWWISE = [loss for loss in LOSSES if loss._rowwise]
ELEMENTWISE = [loss for loss in LOSSES if not loss._rowwise]
ALONG_AN_AXIS = [sl.softmax, sl.log_softmax, sl.logsumexp]
ACTIVATIONS = [sl.sigmoid, sl.log_sigmoid, *ALONG_AN_AXIS]
BY_NAME = {"ids": lambda value: getattr(value, "__name__", None) or type(value).__name__}


def run(tmp_path, program, *arguments, **environment):
    """The output of a function of this file, in a process of its own."""
    code = (
        f"import sys; sys.path.insert(0, sys.argv[1]); from {Path(__file__).stem} import {program.__name__}"
    )
    call = f"{program.__name__}(*sys.argv[2:])"
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-c",
            f"{code}; {call}",
            str(Path(__file__).parent),
            *arguments,
        ],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def entries(loss):
    """Every method of a loss, of the arguments that all have."""

    def product(logits, targets, **given):
        return loss.hessian_vector_product(logits, targets, np.ones(np.shape(logits)), **given)

    yield from (loss, loss.value_and_grad, loss.grad_and_hess, product)
    if hasattr(loss, "target_grad"):
        yield loss.target_grad


def targets_of(loss, rows=3, k=4):
    return np.arange(rows) % k if loss._rowwise else np.eye(k)[np.arange(rows) % k]


# ---- arguments that change while the call converts another ----------------------------------------


class Batch:
    """Arguments of a loss, one of which `act` changes."""

    n, k = 5000, 10

    def __init__(self, change, dtype):
        rng = np.random.default_rng(0)
        self.change = change
        self.x, self.t = rng.normal(size=(self.n, self.k)), rng.integers(0, self.k, self.n).astype(dtype)
        self.w, self.m, self.v = np.ones(self.n), np.ones(self.n, bool), np.ones((self.n, self.k))
        self.out = np.zeros((self.n, self.k))
        if change == "unmasked":
            self.m[:], self.t[:] = False, -7

    def act(self):
        if self.change == "label":
            self.t[:] = np.iinfo(self.t.dtype).max
        elif self.change == "near":
            self.t[:] = self.k + 3
        elif self.change == "negative":
            self.t[:] = -5
        elif self.change == "unmasked":
            self.m[:] = True
        elif self.change == "weight":
            self.w[:] = np.nan
        else:
            array = getattr(self, self.change)
            array.resize((1, *array.shape[1:]), refcheck=False)

    def hook(self, method, value, base=object):
        """What stands for a value, and acts when it is asked for it."""

        def act(*_, **__):
            self.act()
            return value.copy() if isinstance(value, np.ndarray) else value

        made = type("Hook", (base,), {method: act})
        return made() if base is object else made(value)


def outcome_of_change(trigger, change, dtype):
    batch = Batch(change, dtype)
    loss = sl.SoftmaxCE(class_weight=np.ones(batch.k), ignore_index=None)
    hooks = {
        "int": lambda: batch.hook("__float__", 3.0, int),
        "float": lambda: batch.hook("__float__", 3.0, float),
        "0-d": lambda: batch.hook("__array__", np.array(3.0)),
        "with_stats": lambda: batch.hook("__bool__", True),
        "sample_weight": lambda: batch.hook("__array__", batch.w),
        "mask": lambda: batch.hook("__array__", batch.m),
        "logits": lambda: batch.hook("__array__", batch.x),
        "targets": lambda: batch.hook("__array__", batch.t),
        "v": lambda: batch.hook("__array__", batch.v),
    }
    given = {
        "logits": batch.x,
        "targets": batch.t,
        "sample_weight": batch.w,
        "mask": batch.m,
        "out": batch.out,
    }
    given["denominator" if trigger in ("int", "float", "0-d") else trigger] = hooks[trigger]()
    method = loss.hessian_vector_product if trigger == "v" else loss.value_and_grad
    try:
        method(**given)
    except (ValueError, RuntimeError) as error:
        return type(error).__name__
    return "done"


def arguments_change(trigger):
    for change in ("label", "near", "negative", "unmasked", "weight", "t", "w", "m", "x", "out"):
        for dtype in ("int64", "int16"):
            print(change, dtype, outcome_of_change(trigger, change, dtype))


# the argument whose change is seen or not, according to when it has been copied
OF_TRIGGER = {
    "logits": ("x",),
    "targets": ("t", "label", "near", "negative"),
    "sample_weight": ("w", "weight"),
    "mask": ("m", "unmasked"),
}


@pytest.mark.parametrize(
    "trigger", ["int", "float", "0-d", "with_stats", "sample_weight", "mask", "v", "logits", "targets"]
)
def test_arguments_that_change_while_another_is_converted(tmp_path, trigger):
    """Labels beyond the classes, weights that are none and arrays that have shrunk are refused."""
    lines = run(tmp_path, arguments_change, trigger).splitlines()
    assert len(lines) == 20
    for line in lines:
        change, _, outcome = line.split()
        allowed = {"ValueError", "done"} if change in OF_TRIGGER.get(trigger, ()) else {"ValueError"}
        assert outcome in allowed, line


def collector_resizes():
    class Cycle:
        def __init__(self, array):
            self.array, self.self = array, self

        def __del__(self):
            self.array.resize(1, refcheck=False)

    x = np.random.default_rng(0).normal(size=(64, 10))
    expected = sl.softmax_ce.value_and_grad(x, np.zeros(64, np.int64))
    for entry in (sl.softmax_ce.value_and_grad, sl.softmax_ce.grad_and_hess):
        for threshold in range(1, 40):
            targets = np.zeros(64, np.int64)
            Cycle(targets)
            gc.set_threshold(threshold)
            with suppress(ValueError):
                entry(x, targets, sample_weight=np.ones(64))
            gc.set_threshold(700)
    gc.collect()
    got = sl.softmax_ce.value_and_grad(x, np.zeros(64, np.int64))
    assert got[0] == expected[0]
    assert (got[1] == expected[1]).all()


def test_collector_that_resizes_a_label_array(tmp_path):
    run(tmp_path, collector_resizes)


@pytest.mark.parametrize("activation", ALONG_AN_AXIS, **BY_NAME)
def test_activation_whose_axis_resizes_its_input(activation):
    x = np.zeros((300, 30))

    class Axis:
        def __index__(self):
            x.resize((2, 2), refcheck=False)
            return 1

    expected = activation(np.zeros((2, 2)))
    np.testing.assert_array_equal(activation(x, Axis()), expected)


# ---- bytes of a bool other than 0 and 1 ------------------------------------------------------------


def odd_bool(array):
    """The same truth values, True as any byte but 0."""
    array = np.asarray(array)
    bytes_ = np.where(array, 2 + np.arange(array.size).reshape(array.shape) % 254, 0)
    return bytes_.astype(np.uint8).view(bool)


@pytest.mark.parametrize("loss", LOSSES, **BY_NAME)
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_odd_bytes_of_a_bool_are_true(loss, strided):
    rng = generator("odd", loss)
    logits = rng.normal(size=(40, 2))
    one_hot = np.eye(2, dtype=bool)[rng.integers(0, 2, 40)]
    rows = rng.random(40) < 0.5

    def laid_out(array):
        return np.repeat(array, 2, axis=0)[::2] if strided else array

    for targets in (one_hot, *([one_hot[:, 1]] if loss._rowwise else [])):
        for role in ("targets", "sample_weight", "mask"):
            given = {"sample_weight": rows, "mask": rows} if role != "targets" else {}
            odd = {name: laid_out(odd_bool(value)) for name, value in given.items()}
            for entry in entries(loss):
                if targets.ndim == 1 and entry == getattr(loss, "target_grad", None):
                    continue
                got = entry(logits, laid_out(odd_bool(targets)), **odd)
                expected = entry(logits, targets, **given)
                assert same(got, expected), entry
        if bits.has_statistics(loss._stem):
            stats = loss(logits, odd_bool(targets), mask=odd_bool(rows), with_stats=True)[1]
            assert stats.correct == loss(logits, targets, mask=rows, with_stats=True)[1].correct


def test_odd_bytes_as_a_class_index():
    """True is class 1, and no class where there is but one."""
    logits = np.array([[0.0, 1.0, 2.0, 3.0]])
    for loss in ROWWISE:
        assert loss(logits, odd_bool([True])) == loss(logits, [1])
        with pytest.raises(ValueError, match="class index at 1 is True"):
            loss(np.zeros((2, 1)), odd_bool([False, True]))


def test_odd_bytes_as_logits_and_weights_of_classes():
    values = np.array([True, False, True])
    for loss in ELEMENTWISE:
        assert loss(odd_bool(values), values) == loss(values.astype(float), values)
    assert sl.SoftmaxCE(class_weight=odd_bool(values)) == sl.SoftmaxCE(class_weight=[1, 0, 1])


# ---- labels beside ignore_index --------------------------------------------------------------------

BEYOND_FLOAT64 = [2**53, 2**53 + 1, 2**60, 2**60 + 1, 2**63 - 1, 2**63, 2**64 - 1]
BEYOND_FLOAT64 += [-(2**53), -(2**63), -(2**63) + 1]


@pytest.mark.parametrize("ignored", [-100, 2**31, *BEYOND_FLOAT64])
def test_ignore_index_is_compared_as_an_integer(ignored):
    loss = sl.SoftmaxCE(ignore_index=ignored)
    logits, out = np.array([[0.5, 1.0], [2.0, -1.0]]), np.full((2, 2), 7.0)
    clean = sl.softmax_ce.value_and_grad(logits, [0, 1], mask=[True, False], with_stats=True)
    for dtype in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64):
        bounds = np.iinfo(dtype)
        for label in (ignored - 1, ignored, ignored + 1):
            if not bounds.min <= label <= bounds.max or label in (0, 1):
                continue
            targets = np.array([0, label], dtype)
            for given in (logits, logits.tolist()):
                if label == ignored:
                    loss_, grad, stats = loss.value_and_grad(given, targets, with_stats=True)
                    assert loss_ == clean[0]
                    assert_same_bits(grad, clean[1])
                    assert stats.predicted[1] == -1
                    assert stats.correct == clean[2].correct
                else:
                    with pytest.raises(ValueError, match=f"class index at 1 is {label}, "):
                        loss.value_and_grad(given, targets, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "longdouble"])
def test_ignore_index_among_floating_labels(dtype):
    """A label is ignored if it is exactly that integer, not if that rounds to it."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    dtype = np.dtype(dtype)
    logits = np.zeros((2, 2))
    for ignored in (-4097, -257, 2**24 + 1, 300, -100, 2**53 + 1, 2**60, 2**60 + 1, -(2**63)):
        loss = sl.SoftmaxCE(ignore_index=ignored)
        with np.errstate(over="ignore"):
            label = np.array(ignored, np.float64).astype(dtype)
        exact = np.isfinite(label) and int(label) == ignored
        targets = np.array([0, label], dtype)
        if exact:
            assert loss(logits, targets) == loss(logits[:1], [0])
        else:
            with pytest.raises(ValueError, match="class index at 1 is"):
                loss(logits, targets)


@pytest.mark.parametrize("ignored", [2**63, 2**53, -(2**63), 1])
def test_ignore_index_among_bool_labels(ignored):
    loss = sl.SoftmaxCE(ignore_index=ignored)
    for logits in (np.array([[0.0, 1.0]]), [[0.0, 1.0]]):
        expected = 0.0 if ignored == 1 else sl.softmax_ce(logits, [1])
        assert loss(logits, np.array([True])) == expected


def test_ignore_index_beyond_float64_with_mask_and_weights():
    rng = generator("far")
    logits, labels = rng.normal(size=(30, 4)), rng.integers(0, 4, 30)
    mask, weight, hidden = rng.random(30) < 0.7, rng.random(30), rng.random(30) < 0.3
    far, near = 2**62 + 1, -100
    results = []
    for ignored in (far, near):
        targets = np.where(hidden, ignored, labels)
        loss = sl.SoftmaxCE(ignore_index=ignored, reduction="batchmean", class_weight=[1, 2, 3, 4])
        results.append(loss.value_and_grad(logits, targets, mask=mask, sample_weight=weight))
    assert results[0][0] == results[1][0]
    assert_same_bits(results[0][1], results[1][1])
    with pytest.raises(ValueError, match=r"mask has shape \(3,\)"):
        sl.SoftmaxCE(ignore_index=far)(logits, labels, mask=[True] * 3)


# ---- masked arrays ---------------------------------------------------------------------------------


class GivesMasked:
    """An array-like that turns into a masked array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.ma.masked_array(self.array, mask=np.zeros(self.array.shape, bool))


def disguises(array):
    array = np.asarray(array)
    masked = np.ma.masked_array(array, mask=np.zeros(array.shape, bool))
    yield masked
    yield GivesMasked(array)
    if array.ndim:
        yield [row if array.ndim > 1 else np.ma.masked for row in masked]
        yield (*masked[:-1].tolist(), masked[-1] if array.ndim > 1 else np.ma.masked)


def assert_mask_refused(call, name):
    with pytest.raises(TypeError, match=f"^{name} is a masked array.*mask="):
        call()


@pytest.mark.parametrize("loss", LOSSES, **BY_NAME)
@pytest.mark.parametrize("role", ["logits", "targets", "sample_weight", "mask"])
def test_masked_arrays_are_refused(loss, role):
    arguments = {
        "logits": np.zeros((3, 4)),
        "targets": targets_of(loss),
        "sample_weight": np.ones(3),
        "mask": np.ones(3, bool),
    }
    for disguised in disguises(arguments[role]):
        given = {**arguments, role: disguised}
        for entry in entries(loss):
            assert_mask_refused(lambda entry=entry, given=given: entry(**given), role)


@pytest.mark.parametrize("loss", LOSSES, **BY_NAME)
def test_masked_arrays_among_the_rest_are_refused(loss):
    x, t = np.zeros((3, 4)), targets_of(loss)
    masked = np.ma.masked_array(np.zeros((3, 4)))
    assert_mask_refused(lambda: loss.hessian_vector_product(x, t, masked), "v")
    assert_mask_refused(lambda: loss.value_and_grad(x, t, out=masked), "out")
    assert_mask_refused(lambda: loss.hessian_vector_product(x, t, x, out=masked), "out")
    for pair in ((masked, None), (None, masked)):
        assert_mask_refused(lambda pair=pair: loss.grad_and_hess(x, t, out=pair), "out")
    if bits.has_statistics(loss._stem):
        call = {"with_stats": True, "probabilities": masked}
        assert_mask_refused(lambda: loss(x, t, **call), "probabilities")
    for number in (np.ma.masked, np.ma.masked_array(3.0)):
        assert_mask_refused(lambda number=number: loss(x, t, denominator=number), "denominator")
        assert_mask_refused(lambda number=number: type(loss)(logit_clip=number), "logit_clip")


def test_masked_options_are_refused():
    masked = np.ma.masked_array([1.0, 2.0], mask=[0, 1])
    for value in (masked, list(masked)):
        assert_mask_refused(lambda value=value: sl.SoftmaxCE(class_weight=value), "class_weight")
        assert_mask_refused(lambda value=value: sl.SigmoidBCE(pos_weight=value), "pos_weight")
    assert_mask_refused(lambda: sl.SigmoidBCE(pos_weight=np.ma.masked), "pos_weight")
    assert_mask_refused(lambda: sl.SoftmaxCE(label_smoothing=np.ma.masked), "label_smoothing")


@pytest.mark.parametrize("activation", ACTIVATIONS, **BY_NAME)
def test_masked_arrays_are_refused_by_activations(activation):
    for disguised in disguises(np.zeros((3, 4))):
        assert_mask_refused(lambda disguised=disguised: activation(disguised), "x")
    shape = 3 if activation is sl.logsumexp else (3, 4)
    assert_mask_refused(lambda: activation(np.zeros((3, 4)), out=np.ma.zeros(shape)), "out")


def test_lists_without_masks_stay_accepted():
    loss = sl.softmax_ce([[0.0, 1.0], (2.0, 3.0)], [0, 1])
    assert loss == sl.softmax_ce(np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([0, 1]))
    rows = [np.array([0.0, 1.0]), np.array([2.0, 3.0])]
    assert loss == sl.softmax_ce(rows, (0, np.int8(1)))


# ---- Python numbers and lists ----------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, **BY_NAME)
def test_lists_are_what_numpy_makes_of_them(loss):
    numbers = [
        [0, 1, 1], (1, 0, 1), [0.0, 1.0, 0.25], [0, 1.0, 0], [True, False, 1], [np.int8(1), 0, 1],
        [2**70, 0, 0], [0.0, 2**70, 1], [-1, 0, 0], [None, 1, 0], ["1", 0, 0], [0, 1], [[0, 1, 1]], [],
        [float("nan"), 0, 1], [0, 1, 10**400],
    ]  # fmt: skip
    logits = np.array([[0.5, 1.0], [2.0, -1.0], [3.0, 0.0]]) if loss._rowwise else np.array([0.5, 1.0, -2.0])
    for given in numbers:
        outcomes = []
        for targets in (given, np.asarray(given)):
            try:
                outcomes.append(loss(logits, targets))
            except (ValueError, TypeError, OverflowError) as error:
                outcomes.append(f"{type(error).__name__}: {error}")
        assert outcomes[0] == outcomes[1], given


def test_scalars_are_what_numpy_makes_of_them():
    logits = np.array([0.5, 1.0, 2.0])
    for given in (1, 1.0, True, np.int8(1), np.float16(1), np.array(1), -1, 3, 0.5, 2**70, "1", None, 1j):
        outcomes = []
        for targets in (given, np.asarray(given)):
            try:
                outcomes.append(sl.softmax_ce.value_and_grad(logits, targets)[0])
            except (ValueError, TypeError) as error:
                outcomes.append(f"{type(error).__name__}: {error}")
        assert outcomes[0] == outcomes[1], given


@pytest.mark.parametrize("denominator", [10**400, -(10**400), 2**63, 2**64, float("inf")])
def test_denominators_that_a_float_hardly_holds(denominator):
    call = {"denominator": denominator}
    if 0 < denominator < 1e300:
        assert sl.softmax_ce([[0.0, 0.0]], [0], **call) == np.log(2) / float(denominator)
    else:
        with pytest.raises(ValueError, match="denominator is "):
            sl.softmax_ce([[0.0, 0.0]], [0], **call)


# ---- the objects -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, **BY_NAME)
def test_a_second_init_is_refused(loss):
    made = type(loss)(reduction="sum")
    before = repr(made), hash(made), made(np.zeros((3, 4)), targets_of(loss))
    for again in (loss, made):
        with pytest.raises(AttributeError, match="immutable"):
            again.__init__(reduction="none")
        with pytest.raises(AttributeError, match="immutable"):
            again.__init__()
    assert (repr(made), hash(made), made(np.zeros((3, 4)), targets_of(loss))) == before
    assert loss.reduction == "mean"


@pytest.mark.parametrize("loss", LOSSES, **BY_NAME)
def test_options_cannot_be_set_behind_its_back(loss):
    for name in (*loss._defaults, "anything", "_options"):
        with pytest.raises(AttributeError):
            object.__setattr__(loss, name, "sum")
        with pytest.raises(AttributeError):
            object.__delattr__(loss, name)
    with pytest.raises(TypeError):
        loss._options["reduction"] = "sum"
    assert loss == type(loss)()


@pytest.mark.parametrize("loss", LOSSES, **BY_NAME)
def test_without_init(loss):
    """Every use says so."""
    bare = type(loss).__new__(type(loss))
    x, t = np.zeros((3, 4)), targets_of(loss)
    uses = [
        lambda: bare(x, t),
        lambda: bare.value_and_grad(x, t, with_stats=True),
        lambda: bare.grad_and_hess(x, t),
        lambda: bare.hessian_vector_product(x, t, x),
        lambda: bare.reduction,
        lambda: hash(bare),
        lambda: bare == type(loss).__new__(type(loss)),
        lambda: pickle.dumps(bare),
    ]
    for use in uses:
        with pytest.raises(AttributeError, match="__init__ has not been called"):
            use()
    assert type(loss).__name__ in repr(bare)
    bare.__init__(reduction="sum")
    assert bare == type(loss)(reduction="sum")


class WithArguments(sl.SoftmaxCE):
    """A subclass whose __init__ takes other arguments, and that has an attribute of its own."""

    def __init__(self, gamma, name="focal"):
        super().__init__(focal_gamma=gamma, class_weight=[1, 2])
        object.__setattr__(self, "name", name)


class WithSlots(sl.SigmoidBCE):
    __slots__ = ("name",)

    def __init__(self, name):
        super().__init__(pos_weight=2)
        object.__setattr__(self, "name", name)


class Plain(sl.SoftmaxMSE):
    pass


@pytest.mark.parametrize("make", [lambda: WithArguments(2, "mine"), lambda: WithSlots("mine"), Plain])
def test_subclasses_are_pickled(make):
    loss = make()
    logits, targets = np.array([[0.5, -1.0], [2.0, 1.0]]), targets_of(loss, 2, 2)
    copies = [pickle.loads(pickle.dumps(loss, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)]
    for again in (*copies, copy.copy(loss), copy.deepcopy(loss)):
        assert type(again) is type(loss)
        assert again == loss
        assert hash(again) == hash(loss)
        assert getattr(again, "name", None) == getattr(loss, "name", None)
        assert again(logits, targets) == loss(logits, targets)
        with pytest.raises(AttributeError):
            again.reduction = "sum"


def test_pickles_of_nonsense_are_refused():
    rebuild = sl.losses._rebuild
    with pytest.raises(ValueError, match="label_smoothing"):
        rebuild(sl.SoftmaxCE, {"label_smoothing": 7})
    with pytest.raises(TypeError, match="nonsense"):
        rebuild(sl.SoftmaxCE, {"nonsense": 7})
    for other in (dict, sl.softmax_ce, None):
        with pytest.raises(TypeError):
            rebuild(other, {"reduction": "sum"})
    assert rebuild(sl.SoftmaxCE, {"reduction": "sum"}) == sl.SoftmaxCE(reduction="sum")


def test_reduction_is_kept_as_a_plain_string():
    class Text(str):
        __slots__ = ()

    class Pretends:
        def __eq__(self, other):
            return other == "sum"

        def __hash__(self):
            return hash("sum")

    assert type(sl.SoftmaxCE(reduction=Text("sum")).reduction) is str
    for value in (Pretends(), ["sum"], np.array("sum"), b"sum", None):
        with pytest.raises(ValueError, match="reduction is"):
            sl.SoftmaxCE(reduction=value)


def test_the_range_of_targets_is_that_of_the_class():
    """Nothing else knows it: a loss by element may take any non-negative target, one by row none above 1."""

    class Counts(sl.losses._Loss):
        __slots__ = ()
        _stem = "sigmoid_mse"
        _target_max = np.inf

    class Shares(sl.losses._Loss):
        __slots__ = ()
        _stem = "softmax_mse"
        _target_max = 1.0

    logits, targets = np.zeros((2, 3)), np.array([[0, 1, 0.5], [0, 7, 0]])
    assert Counts(reduction="sum")(logits, targets) == ((0.5 - targets) ** 2).sum() / 2
    for call in (
        lambda: Counts()(logits, targets, with_stats=True),
        lambda: Counts().value_and_grad(logits, targets, with_stats=True, probabilities=logits),
        lambda: sl.LinearLoss(Counts())(np.eye(2), np.zeros((3, 2)), targets, with_stats=True),
    ):
        with pytest.raises(ValueError, match="Counts has no statistics"):
            call()
    for many in (2**31, 2**32, 2**40):
        counts = np.array([[0, 1, many]] * 2)
        for kind in (np.int64, np.uint64, np.float64):
            assert Counts(reduction="sum")(logits, counts.astype(kind)) == ((0.5 - counts) ** 2).sum() / 2
    for bad in (-1.0, np.inf, np.nan):
        targets[1, 1] = bad
        with pytest.raises(
            ValueError, match=rf"target at \(1, 1\) is {bad}, not a non-negative finite number"
        ):
            Counts()(logits, targets)
    targets[1, 1] = 7
    with pytest.raises(ValueError, match=r"target probability at \(1, 1\) is 7.0, not in \[0, 1\]"):
        Shares()(logits, targets)
    assert (Counts._rowwise, Shares._rowwise) == (False, True)


@pytest.mark.parametrize("value", [np.array([1, 0]), [], None, "yes", 2, 0.5])
def test_a_flag_is_true_or_false(value):
    with pytest.raises(TypeError, match="from_probabilities must be True or False"):
        sl.SoftmaxCE(from_probabilities=value)


# ---- garbage for what is private -------------------------------------------------------------------


def garbage():
    x, t = np.zeros((4, 3)), np.zeros(4, np.int64)
    read_only = np.zeros((4, 3))
    read_only.flags.writeable = False
    bare, hollow = kernels.Loss.__new__(kernels.Loss), kernels.LossKernel.__new__(kernels.LossKernel)
    arrays = [x, t, x[:0], x[:, :0], np.array(1.0), read_only, x.astype("f"), x[:2], np.ma.zeros((4, 3))]
    arrays += [x.astype(object), x.astype(complex), np.zeros((4, 3), ">f8")]
    others = [None, 3, -1, 1.5, "x", [], {}, object(), 2**70, sl.softmax_ce, sl.sigmoid_bce]
    others += [kernels.softmax_ce, kernels.LossKernel, bare, hollow]
    values = [*arrays, *others]
    count = 0

    def attempt(function, *arguments, **options):
        nonlocal count
        count += 1
        with suppress(TypeError, ValueError, AttributeError, KeyError, OverflowError):
            function(*arguments, **options)

    # what the kernels import is Python
    compiled = (kernels.__name__, "stableloss.losses", "stableloss.activations")
    own = [value for value in vars(kernels).values() if getattr(value, "__module__", None) in compiled]
    own = [value for value in own if callable(value)]
    own += [
        value
        for kind in own
        if isinstance(kind, type)
        for name, value in vars(kind).items()
        if callable(value) and name != "__class__"
    ]
    for function in own:
        for n in range(3):
            for arguments in itertools.product(values, repeat=n):
                attempt(function, *arguments)
        for value in values:
            for arguments in ((x, t), (sl.softmax_ce, x), (sl.softmax_ce, x, t), (x, 1), ()):
                attempt(function, *arguments, value)
            attempt(function, sl.softmax_ce, value, t)
            attempt(function, x, value, x)
            attempt(function, value, out=value)
            for name in ("sample_weight", "mask", "denominator", "out", "probabilities"):
                attempt(function, sl.softmax_ce, x, t, **{name: value})
                attempt(function, sl.sigmoid_bce, x, x, **{name: value}, with_stats=True)
        for pair in itertools.product(arrays, repeat=2):
            attempt(function, sl.softmax_ce, x, t, out=pair)
    names = (
        "class_weight",
        "pos_weight",
        "ignore_index",
        "axis",
        "reduction",
        "label_smoothing",
        "focal_alpha",
    )
    for kernel in (kernels.softmax_ce, kernels.sigmoid_mse, hollow, None):
        for value, name in itertools.product(values, names):
            loss = kernels.Loss.__new__(kernels.Loss)
            options = {"reduction": "mean", name: value}
            attempt(loss._set, kernel, options, 1.0)
            attempt(loss._set, kernel, options, 1.0)
            options.clear()
            attempt(kernels.value, loss, x, t)
            attempt(kernels.value_and_grad, loss, x, x, with_stats=True)
            attempt(kernels.target_grad, loss, x, x)
    print(count)


# ---- references -----------------------------------------------------------------------------------


def reference_calls():
    """Every entry, with every way in which an array becomes an argument or holds a result; each returns
    its arguments and results that are objects of its own."""
    x = np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3)
    index, soft, hard = np.arange(4) % 3, np.full((4, 3), 1 / 3, np.float32), np.eye(4, 3)
    over, weight, mask = soft + 2**-20, np.arange(4) + 1.0, np.arange(4) % 2 == 0
    whole, integers, v = np.zeros((4, 3), np.int64), np.arange(12).reshape(4, 3), np.ones((4, 3))
    unaligned = np.zeros(97, np.uint8)[1:].view(np.float64).reshape(4, 3)
    some = {"sample_weight": weight, "mask": mask}
    for loss in (*LOSSES, sl.SoftmaxCE(reduction="none"), sl.SigmoidBCE(reduction="none", ignore_index=0)):
        for targets in (index, soft) if loss._rowwise else (soft, hard):
            out, hess, p = np.empty((3, 4, 3), np.float32)
            wide = np.empty((4, 3))
            arrays = x, targets, weight, mask, out, hess, p, wide, unaligned, integers, v
            yield arrays, lambda a=loss, t=targets: a(x, t, **some)
            yield arrays, lambda a=loss, t=targets, p=p: a(x, t, with_stats=True, probabilities=p)
            yield arrays, lambda a=loss, t=targets: a.value_and_grad(x, t, denominator=2.0)
            yield arrays, lambda a=loss, t=targets, o=out: a.value_and_grad(x, t, out=o, with_stats=True)
            yield arrays, lambda a=loss, t=targets: a.value_and_grad(integers, t, out=unaligned, mask=mask)
            yield arrays, lambda a=loss, t=targets, w=wide: a.value_and_grad(w, t, out=w)
            yield arrays, lambda a=loss, t=targets: a.divisor(x.shape, t, **some)
            yield arrays, lambda a=loss, t=targets: a.grad_and_hess(x, t)
            yield arrays, lambda a=loss, t=targets, o=out, h=hess: a.grad_and_hess(x, t, out=(o, h), **some)
            yield arrays, lambda a=loss, t=targets, o=out: a.hessian_vector_product(x, t, v, out=o)
            yield arrays, lambda a=loss, t=targets: a.value_and_grad(x, t[:3])
            yield arrays, lambda a=loss, t=targets, o=out: a.value_and_grad(x, t - 9, out=o)
            if hasattr(loss, "target_grad"):
                yield arrays, lambda a=loss, t=targets, o=out: a.target_grad(x, t, out=o)
    for loss in ROWWISE:
        for targets in (index, soft, over):
            maximum, out = x.max(axis=1), np.empty((4, 2), np.float32)

            def sharded(loss=loss, t=targets, maximum=maximum, out=out):
                own = (t[:, :2], t[:, 2:]) if t.ndim > 1 else (t, t)
                one = loss.partial(x[:, :2], own[0], 0, 3, maximum=maximum, sample_weight=weight)
                other = loss.partial(x[:, 2:], own[1], 2, 3, maximum=maximum, sample_weight=weight)
                both = sl.merge([one, other])
                return loss.finish(one, both, out=out), loss.finish(other, both)

            yield (x, targets, maximum, weight, out), sharded
    out, row = np.empty((4, 3), np.float32), np.empty(4, np.float32)
    for activation in ACTIVATIONS:
        to = row if activation is sl.logsumexp else out
        yield (x, to), lambda a=activation: a(x)
        yield (x, to), lambda a=activation, o=to: a(x, out=o)
        yield (integers,), lambda a=activation: a(integers)
        yield (x, whole), lambda a=activation: a(x, out=whole)
    yield (unaligned,), lambda: sl.softmax(unaligned, out=unaligned)


def objects_of(result):
    """The arrays of a result."""
    if isinstance(result, np.ndarray):
        return [result]
    return [array for item in result for array in objects_of(item)] if isinstance(result, tuple) else []


@pytest.fixture
def without_collector():
    """What other tests have left is not to be freed meanwhile, and its references to None with it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
def test_references_stay_as_they_were():
    """However often anything is called, refused or not; a result belongs to the caller alone."""

    def outcome(call):
        try:
            return call()
        except (ValueError, TypeError) as error:
            return type(error)

    for number, (arrays, call) in enumerate(reference_calls()):
        fresh = [array for array in objects_of(outcome(call)) if not any(array is other for other in arrays)]
        while fresh:
            array = fresh.pop()
            assert sys.getrefcount(array) == 2, number
        shared = (*arrays, None, True, type(arrays[0]), arrays[0].dtype)
        before = [sys.getrefcount(value) for value in shared]
        for _ in range(1000):
            outcome(call)
        after = [sys.getrefcount(value) for value in shared]
        change = np.subtract(after, before)
        assert not change[: len(arrays)].any(), (number, change)
        # of what all share, numpy and the interpreter keep a few
        assert abs(change).max() < 100, (number, change)


# ---- missing arguments ----------------------------------------------------------------------------

MISSING = {
    "value": (lambda: sl.softmax_ce([[1.0, 2.0]]), "SoftmaxCE.__call__() missing 1", "'targets'"),
    "none": (lambda: sl.sigmoid_bce(), "SigmoidBCE.__call__() missing 2", "'logits' and 'targets'"),
    "keyword": (lambda: sl.sigmoid_bce(targets=[1.0]), "SigmoidBCE.__call__() missing 1", "'logits'"),
    "gradient": (
        lambda: sl.softmax_mse.value_and_grad([[1.0, 2.0]], out=None),
        "SoftmaxMSE.value_and_grad() missing 1",
        "'targets'",
    ),
    "divisor": (lambda: sl.sigmoid_mse.divisor((3,)), "SigmoidMSE.divisor() missing 1", "'targets'"),
    "hessian": (
        lambda: sl.softmax_ce.grad_and_hess(),
        "SoftmaxCE.grad_and_hess() missing 2",
        "'logits' and 'targets'",
    ),
    "product": (
        lambda: sl.softmax_ce.hessian_vector_product([[1.0, 2.0]]),
        "SoftmaxCE.hessian_vector_product() missing 2",
        "'targets' and 'v'",
    ),
    "target_grad": (
        lambda: sl.sigmoid_bce.target_grad([1.0]),
        "SigmoidBCE.target_grad() missing 1",
        "'targets'",
    ),
    "partial": (
        lambda: sl.softmax_ce.partial([[1.0]]),
        "SoftmaxCE.partial() missing 3",
        "'targets', 'first_class', and 'n_classes'",
    ),
    "finish": (lambda: sl.softmax_ce.finish(), "SoftmaxCE.finish() missing 2", "'part' and 'whole'"),
    **{
        activation.__name__: (lambda f=activation: f(), f"{activation.__name__}() missing 1", "'x'")
        for activation in ACTIVATIONS
    },
}


@pytest.mark.parametrize("case", MISSING.values(), ids=MISSING)
def test_missing_arguments_are_named(case):
    call, start, names = case
    with pytest.raises(TypeError) as caught:
        call()
    plural = "s" if "and" in names else ""
    assert str(caught.value) == f"{start} required positional argument{plural}: {names}"


def test_options_that_do_not_exist_are_refused():
    for make in (sl.SoftmaxCE, sl.SigmoidMSE):
        message = rf"^{make.__name__}.__init__\(\) got an unexpected keyword argument 'weight'$"
        with pytest.raises(TypeError, match=message):
            make(weight=[1.0, 2.0])
        with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
            make("sum")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            [[1.0], [2.0]],
            r"has shape \(2, 1\) where k classes need \(k,\), .*: pass np.ravel\(class_weight\)$",
        ),
        (1.0, r"has shape \(\) where .*: for one weight of all pass np.full\(k, class_weight\)$"),
        (np.ones((2, 3)), r"has shape \(2, 3\) where .* are passed as sample_weight, to each call$"),
        ([], r"has shape \(0,\) where k classes need \(k,\), one number per class$"),
    ],
)
def test_weights_of_classes_of_another_shape(weight, message):
    for make in (sl.SoftmaxCE, sl.SigmoidBCE):
        with pytest.raises(ValueError, match=f"class_weight {message}"):
            make(class_weight=weight)
    with pytest.raises(
        ValueError, match=r"length 1 where .* need 3; for one weight of all pass np.full\(3, 2\)"
    ):
        sl.SoftmaxCE(class_weight=[2.0])(np.zeros((2, 3)), [0, 1])


def test_garbage_for_private_entries(tmp_path):
    assert int(run(tmp_path, garbage)) > 10_000


class Liar(np.ndarray):
    """An array that lies about itself to those who ask in Python."""

    shape = property(lambda self: (3000, 3))
    dtype = property(lambda self: np.dtype(np.float64))

    def view(self, *_):
        return np.zeros(2)

    def __array_finalize__(self, _):
        pass


def outputs_lie():
    x, t = np.random.default_rng(0).normal(size=(3000, 3)), np.zeros(3000, int)
    good, per_row = np.ndarray.__new__(Liar, (3000, 3)), np.ndarray.__new__(Liar, (3000,))
    for activation in ACTIVATIONS:
        out = per_row if activation is sl.logsumexp else good
        assert activation(x, out=out) is out
        assert (np.asarray(out) == activation(x)).all()
    assert sl.softmax_ce.value_and_grad(x, t, out=good)[1] is good
    assert (np.asarray(good) == sl.softmax_ce.value_and_grad(x, t)[1]).all()
    for bad in (np.ndarray.__new__(Liar, (2,)), np.ndarray.__new__(Liar, (3000, 3), np.float32)):
        for function, arguments, given in (
            *((activation, (x,), {"out": bad}) for activation in ACTIVATIONS),
            (sl.softmax_ce.value_and_grad, (x, t), {"out": bad}),
            (sl.softmax_ce.grad_and_hess, (x, t), {"out": (None, bad)}),
            (sl.softmax_ce, (x, t), {"with_stats": True, "probabilities": bad}),
        ):
            with pytest.raises((ValueError, TypeError)):
                function(*arguments, **given)


def test_outputs_that_lie_about_themselves(tmp_path):
    run(tmp_path, outputs_lie)


# ---- the axis --------------------------------------------------------------------------------------


def on_axis(array, axis):
    """The same with its last axis elsewhere, in an array of its own layout."""
    return np.ascontiguousarray(np.moveaxis(array, -1, axis))


@pytest.mark.parametrize("dtype", DTYPE_ONLY)
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("loss", ROWWISE, **BY_NAME)
def test_every_result_along_every_axis(loss, axis, dtype):
    """As with the classes last, in the layout that was given; `out` of any layout, in place and beside."""
    rng = generator(loss, axis)
    for k in (3, 40, 200):
        x = rng.normal(scale=3, size=(4, 5, k)).astype(dtype)
        v = rng.normal(size=x.shape).astype(dtype)
        soft = rng.dirichlet(np.ones(k), (4, 5)).astype(dtype)
        weight, mask = rng.random((4, 5)), rng.random((4, 5)) < 0.8
        for targets in (rng.integers(0, k, (4, 5)), soft):
            options = {"reduction": "none"}
            last, other = type(loss)(**options), type(loss)(**options, axis=axis)
            x_axis, v_axis = on_axis(x, axis), on_axis(v, axis)
            t_axis = targets if targets.ndim == 2 else on_axis(targets, axis)
            for layout in (np.array, np.asfortranarray, lambda a: np.repeat(a, 2, axis=-1)[..., ::2]):
                given = {"sample_weight": weight, "mask": mask}
                out, p = layout(np.zeros_like(x_axis)), layout(np.zeros_like(x_axis))
                expected_p = np.zeros_like(x)
                expected = last.value_and_grad(x, targets, **given, with_stats=True, probabilities=expected_p)
                got = other.value_and_grad(
                    layout(x_axis), layout(t_axis), **given, out=out, with_stats=True, probabilities=p
                )
                assert got[1] is out
                assert_same_bits(got[0], expected[0])
                for a, b in ((out, expected[1]), (p, expected_p)):
                    assert_same_bits(np.moveaxis(a, axis, -1), b)
                for a, b in zip(got[2][:4], expected[2][:4], strict=True):
                    assert_same_bits(a, b) if isinstance(a, np.ndarray) else None
                assert got[2].correct == expected[2].correct
                for a, b in zip(
                    other.grad_and_hess(layout(x_axis), layout(t_axis), **given),
                    last.grad_and_hess(x, targets, **given),
                    strict=True,
                ):
                    assert_same_bits(np.moveaxis(a, axis, -1), b)
                in_place = layout(x_axis)
                other.hessian_vector_product(in_place, t_axis, v_axis, **given, out=in_place)
                product = last.hessian_vector_product(x, targets, v, **given)
                assert_same_bits(np.moveaxis(in_place, axis, -1), product)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("activation", ALONG_AN_AXIS, **BY_NAME)
def test_activations_along_every_axis(activation, axis):
    x = generator("activation", axis).normal(size=(4, 5, 7))
    expected = activation(x)
    x_axis = on_axis(x, axis)

    def back(result):
        return result if activation is sl.logsumexp else np.moveaxis(result, axis, -1)

    for layout in (np.array, np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2]):
        assert_same_bits(back(activation(layout(x_axis), axis)), expected)
        out = layout(np.zeros(activation(x_axis, axis).shape))
        assert activation(x_axis, axis, out) is out
        assert_same_bits(back(out), expected)
        if activation is not sl.logsumexp:
            in_place = layout(x_axis)
            assert activation(in_place, axis, out=in_place) is in_place
            assert_same_bits(back(in_place), expected)


@pytest.mark.parametrize("axis", [1.5, "0", 2**70, -(2**70), 2, -3])
def test_axes_that_are_none(axis):
    for activation in ALONG_AN_AXIS:
        with pytest.raises((TypeError, ValueError), match="axis"):
            activation(np.zeros((3, 4)), axis)
    with pytest.raises((TypeError, ValueError), match="axis"):
        sl.SoftmaxCE(axis=axis)(np.zeros((3, 4)), np.zeros(3, int))


def test_integer_logits_keep_their_memory_order():
    for order in "CF":
        x = np.array([[1, 2, 3], [4, 5, 6]], order=order)
        grad = sl.softmax_ce.value_and_grad(x, [0, 1])[1]
        assert grad.strides == np.empty_like(x, np.float64).strides


# ---- floating-point flags --------------------------------------------------------------------------

LIBM = ctypes.CDLL(ctypes.util.find_library("m")) if sys.platform != "win32" else None


@pytest.mark.skipif(LIBM is None, reason="needs fenv.h in a library of its own")
@pytest.mark.parametrize("dtype", DTYPE_ONLY)
def test_checks_leave_no_flag(dtype):
    """NaN that does not count, or is allowed, is looked at by the checks too."""
    x = np.full((600, 4), 0.25, dtype)
    x[5, 2] = np.nan
    mask, weight = np.arange(600) != 5, (np.arange(600) != 5).astype(dtype)
    soft = np.full((600, 4), 0.25, dtype)
    soft[5] = np.nan
    labels = np.where(mask, 1, np.nan).astype(dtype)
    from_probabilities = [cls(from_probabilities=True) for cls in (sl.SoftmaxCE, sl.SigmoidBCE)]
    calls = [
        *((loss, targets_of(loss, 600), {}) for loss in from_probabilities),
        *((loss, targets_of(loss, 600), {"mask": mask}) for loss in from_probabilities),
        *((loss, targets_of(loss, 600), {"sample_weight": weight}) for loss in from_probabilities),
        *((loss, soft, {"mask": mask}) for loss in (*LOSSES, *from_probabilities)),
        *((loss, labels, {"mask": mask}) for loss in (sl.softmax_ce, sl.softmax_mse)),
    ]
    every = 0x3D if platform.machine() in ("x86_64", "AMD64") else 0x1F
    for loss, targets, given in calls:
        for stats in {False, bits.has_statistics(loss._stem)}:
            LIBM.feclearexcept(every)
            loss.value_and_grad(x, targets, **given, with_stats=stats)
            # inexact belongs to any conversion in Python
            assert LIBM.fetestexcept(every) & ~0x20 & ~0x10 == 0, (loss, given)


# ---- memory ----------------------------------------------------------------------------------------

FAILING_MALLOC = r"""
#include <errno.h>
#include <stddef.h>
static volatile long countdown = -1;
void allocations_left(long n) { countdown = n; }
long allocations_to_go(void) { return countdown; }
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);
static int fails(void) {
    if (countdown < 0) return 0;
    if (countdown-- > 0) return 0;
    errno = ENOMEM;
    return 1;
}
void *malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t m, size_t n) { return fails() ? NULL : __libc_calloc(m, n); }
void *realloc(void *p, size_t n) { return fails() ? NULL : __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { return fails() ? NULL : __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { return fails() ? NULL : __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) { return fails() ? ENOMEM : !(*p = __libc_memalign(a, n)); }
"""


class Shim:
    """The library of FAILING_MALLOC, loaded before all others."""

    def __init__(self):
        self.library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self.library.allocations_left.argtypes = [ctypes.c_long]
        self.library.allocations_to_go.restype = ctypes.c_long

    def outcome(self, call, n):
        """Of a call whose allocation after n others fails; whether it took as many."""
        result = reached = None
        try:
            self.library.allocations_left(n)
            result = call()
            reached = self.library.allocations_to_go() < 0
        except MemoryError as error:
            result, reached = error, True
        finally:
            self.library.allocations_left(-1)
        return result, reached


def same(a, b):
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b)


def copied(result):
    if isinstance(result, tuple):
        return tuple(map(copied, result))
    return result.copy() if isinstance(result, np.ndarray) else result


def every_allocation_fails():
    shim = Shim()
    sl.set_num_threads(1)
    x = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    t, y, weight = np.arange(64) % 10, np.abs(x) / 9, [1.0] * 64
    soft, out, hess = np.eye(10)[t], np.empty_like(x), np.empty_like(x)
    shifted, listed = np.zeros((65, 10), np.float32), x[:4].tolist()
    source, over = shifted[1:], shifted[:-1]
    liar = out.view(np.matrix)
    focal = sl.SoftmaxCE(axis=0, reduction="none", focal_gamma=2, class_weight=np.ones(64))
    far = sl.SoftmaxCE(ignore_index=2**60)
    arrays = (x, t, y, soft, out, hess, shifted, liar)
    calls = [
        lambda: sl.softmax_ce(x, t),
        lambda: sl.softmax_ce.value_and_grad(listed, [0, 1, 2, 3], with_stats=True),
        lambda: sl.softmax_ce.value_and_grad(x, t, out=out, with_stats=True, probabilities=hess),
        lambda: sl.softmax_ce.value_and_grad(x, t, out=liar)[0],
        lambda: sl.softmax_ce.value_and_grad(source, t, out=over),
        lambda: sl.sigmoid_bce.value_and_grad(x, y, sample_weight=weight, denominator=np.int8(3)),
        lambda: sl.softmax_mse.grad_and_hess(x, soft, out=(out, hess)),
        lambda: sl.softmax_ce.hessian_vector_product(x, soft, x, mask=[True] * 64, out=out),
        lambda: sl.softmax_ce.target_grad(x, soft),
        lambda: focal(x, np.zeros(10, int)),
        lambda: far.value_and_grad(x, t, sample_weight=weight),
        lambda: hash(sl.SoftmaxCE(class_weight=np.ones(10), focal_gamma=np.float32(2))),
        lambda: sl.softmax(x, axis=0, out=out),
        lambda: sl.logsumexp(listed),
        lambda: sl.sigmoid(0.5),
    ]
    failed = 0
    for number, call in enumerate(calls):
        for n in range(-1, 3000):
            out[...] = hess[...] = 7
            shifted[...] = 7
            source[...] = x
            before = out.copy(), hess.copy(), shifted.copy()
            result = None
            references = [sys.getrefcount(array) for array in arrays]
            result, reached = shim.outcome(call, n)
            if n < 0:
                expected = copied(result)
                finished = out.copy(), hess.copy(), shifted.copy()
                continue
            if isinstance(result, Exception):
                assert isinstance(result, MemoryError), (number, n, result)
                for array, a, b in zip((out, hess, shifted), before, finished, strict=True):
                    assert same(array, a) or same(array, b), (number, n)
            else:
                assert same(result, expected), (number, n, result)
            array = result = None
            gc.collect()  # the error's traceback
            assert [sys.getrefcount(array) for array in arrays] == references, (number, n)
            if not reached:
                break
        assert not reached
        failed += n
    assert failed > 5
    refused = [
        lambda: sl.softmax_ce(x, t + 10),
        lambda: sl.softmax_ce(x, t[:3]),
        lambda: sl.SoftmaxCE(from_probabilities=True)(x, t),
        lambda: sl.softmax_ce(x, t, sample_weight=x[:, 0]),
        lambda: sl.softmax_ce(np.ma.masked_array(x), t),
        lambda: sl.softmax_ce.value_and_grad(x, t, out=soft),
    ]
    for call in refused:
        for n in range(3000):
            try:
                result, reached = shim.outcome(call, n)
            except (ValueError, TypeError):
                break
            assert isinstance(result, MemoryError), result
    print("done")


@pytest.fixture(scope="module")
def failing_malloc(tmp_path_factory):
    """A library whose malloc fails when told to."""
    compiler = os.environ.get("CC", "cc").split()
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or shutil.which(compiler[0]) is None:
        pytest.skip("needs glibc and a C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(FAILING_MALLOC)
    command = [*compiler, "-O1", "-shared", "-fPIC", "-o", str(folder / "shim.so"), str(folder / "shim.c")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "shim.so"


def test_every_allocation_may_fail(tmp_path, failing_malloc):
    """A result or a MemoryError; no reference is kept, and outputs are as they were or finished.

    Of allocations beyond those that Python serves from memory it has: where these fail too, CPython 3.11
    itself crashes or drops an error here and there.
    """
    assert run(tmp_path, every_allocation_fails, LD_PRELOAD=str(failing_malloc)) == "done\n"

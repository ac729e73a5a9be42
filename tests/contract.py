"""What every loss must do. A test file instantiates it by subclassing with the loss's stem."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import bits
import gmpy2
import numpy as np
import oracle
import pytest
from cases import (
    CLASS_COUNTS,
    DTYPE_ONLY,
    DTYPES,
    LAYOUTS,
    LOGITS,
    OUT_LAYOUTS,
    ROW_COUNTS,
    assert_all_same_bits,
    assert_same_bits,
    at_offset,
    generator,
    index_targets,
    logits_of,
    soft_targets,
    with_margins,
)

import stableloss as sl

REDUCTIONS = ("mean", "sum", "batchmean", "none")
INTEGERS = [np.dtype(code).name for code in "bBhHiIlLqQ"]
REAL_WEIGHTS = ["bool", "int8", "uint64", "float16", "float32", "float64", "longdouble"]
NAN, INF = np.nan, np.inf


class Results(NamedTuple):
    """From value_and_grad, and from grad_and_hess."""

    loss: np.ndarray
    grad: np.ndarray
    grad_unreduced: np.ndarray
    hess: np.ndarray


class LossContract:
    """Tests common to all losses. `n` rows and `k` classes; a sigmoid loss has n x k elements.

    Subclasses set `stem`, the name of the instance, and give `targets_for`.
    """

    stem: str

    @property
    def instance(self):
        return getattr(sl, self.stem)

    @property
    def configured(self):
        return type(self.instance)

    @property
    def unreduced(self):
        return self.configured(reduction="none")

    def exact(self, logits, targets):
        return oracle.LOSSES[self.stem](logits, targets)

    def batch(self, dtype, lead=(5,), k=4, key=""):
        """Logits of shape (*lead, k), hard targets, and weights per row, one of which is 0."""
        rng = generator(self.stem, lead, k, key)
        logits = rng.normal(scale=4, size=(*lead, k)).astype(dtype)
        weight = rng.integers(0, 9, lead).astype(dtype) / 4
        return logits, self.targets_for(rng, logits.shape), weight

    def results(self, logits, targets, loss=None, **options):
        loss = loss or self.unreduced
        return Results(
            *loss.value_and_grad(logits, targets, **options),
            *loss.grad_and_hess(logits, targets, **options),
        )

    def check(self, logits, targets, limit, weight=None):
        """Loss, gradient and Hessian against the oracle."""
        exact = self.exact(logits, targets)
        if weight is not None:
            exact = exact.scaled(weight)
        got = self.results(logits, targets, sample_weight=weight)
        dtype = got.grad.dtype
        for what, array, value, term in [
            ("loss", got.loss, exact.loss, exact.loss_term),
            ("gradient", got.grad, exact.grad, exact.grad_term),
            ("gradient with Hessian", got.grad_unreduced, exact.grad, exact.grad_term),
            ("Hessian", got.hess, exact.hess, exact.hess_term),
        ]:
            oracle.assert_within(limit, array, value, dtype, term, what)

    # ---- one evaluation, several ways ------------------------------------------------------------

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_fused_equals_separate(self, reduction, weighted, dtype):
        for lead, k in [((), 3), ((1,), 5), ((70,), 10), ((6,), 100), ((3, 4), 7)]:
            logits, targets, weight = self.batch(dtype, lead, k)
            options = {"sample_weight": weight} if weighted else {}
            loss = self.configured(reduction=reduction)
            alone = loss(logits, targets, **options)
            fused, grad = loss.value_and_grad(logits, targets, **options)
            assert_same_bits(fused, alone)
            assert type(fused) is type(alone)
            if reduction in ("none", "sum"):
                unreduced, _ = loss.grad_and_hess(logits, targets, **options)
                assert_same_bits(grad, unreduced)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("shape", [(1, 3), (33, 10), (5, 100), (4, 3, 6)], ids=str)
    def test_in_place_equals_out_of_place(self, dtype, shape):
        logits, targets, weight = self.batch(dtype, shape[:-1], shape[-1])
        for options in ({}, {"sample_weight": weight}):
            value, grad = self.instance.value_and_grad(logits, targets, **options)
            buffer = logits.copy()
            value_in, grad_in = self.instance.value_and_grad(buffer, targets, out=buffer, **options)
            assert grad_in is buffer
            assert value_in == value
            assert_same_bits(buffer, grad)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("overwritten", [0, 1], ids=["gradient", "Hessian"])
    def test_hessian_in_place(self, dtype, overwritten):
        for lead, k in [((33,), 10), ((5,), 100)]:
            logits, targets, _ = self.batch(dtype, lead, k)
            expected = self.instance.grad_and_hess(logits, targets)
            buffer = logits.copy()
            out = [np.empty_like(logits), np.empty_like(logits)]
            out[overwritten] = buffer
            got = self.instance.grad_and_hess(buffer, targets, out=tuple(out))
            for array, given, value in zip(got, out, expected, strict=True):
                assert array is given
                assert_same_bits(array, value)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("shift", [-1, 1], ids=["before", "after"])
    def test_overlapping_out(self, dtype, shift):
        """`out` may share part of its memory with the logits."""
        for n, k in [(40, 10), (6, 100)]:
            logits, targets, _ = self.batch(dtype, (n,), k)
            buffer = np.zeros((n + 1, k), dtype)
            source, out = (buffer[:-1], buffer[1:]) if shift == 1 else (buffer[1:], buffer[:-1])
            source[...] = logits
            value, grad = self.instance.value_and_grad(source, targets, out=out)
            expected = self.instance.value_and_grad(logits, targets)
            assert grad is out
            assert value == expected[0]
            assert_same_bits(out, expected[1])

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_reversed_out(self, dtype):
        logits, targets, _ = self.batch(dtype, (40,), 10)
        expected = self.instance.value_and_grad(logits, targets)[1]
        buffer = logits.copy()
        self.instance.value_and_grad(buffer, targets, out=buffer[::-1])
        assert_same_bits(buffer[::-1], expected)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("layout", OUT_LAYOUTS.values(), ids=OUT_LAYOUTS)
    def test_layout_of_out(self, dtype, layout):
        for lead, k in [((33,), 10), ((4,), 100), ((3, 2, 5), 4)]:
            logits, targets, _ = self.batch(dtype, lead, k)
            expected = self.results(logits, targets)
            grad, hess = layout(np.full_like(logits, 7)), layout(np.full_like(logits, 7))
            _, returned = self.unreduced.value_and_grad(logits, targets, out=grad)
            assert returned is grad
            assert_same_bits(grad, expected.grad)
            grad[...] = 7
            pair = self.unreduced.grad_and_hess(logits, targets, out=(grad, hess))
            assert pair[0] is grad
            assert pair[1] is hess
            assert_same_bits(grad, expected.grad_unreduced)
            assert_same_bits(hess, expected.hess)

    # ---- inputs ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_layout_of_inputs(self, dtype, layout, reduction):
        loss = self.configured(reduction=reduction)
        for lead, k in [((33,), 10), ((7,), 3), ((4,), 100), ((3, 5), 4), ((2, 3, 2), 5)]:
            arrays = self.batch(dtype, lead, k)
            expected = self.results(*arrays[:2], loss, sample_weight=arrays[2])
            for moved in [(0,), (1,), (2,), (0, 1, 2)]:
                given = [layout(a) if i in moved else a for i, a in enumerate(arrays)]
                got = self.results(*given[:2], loss, sample_weight=given[2])
                assert_all_same_bits(got, expected)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_layout_of_column(self, dtype):
        """The (n, 1) and (n, k) views of a transposed network's output."""
        logits, targets, _ = self.batch(dtype, (50,), 3)
        transposed = np.ascontiguousarray(logits.T).T
        assert_all_same_bits(self.results(transposed, targets), self.results(logits, targets))

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_zero_strides(self, dtype):
        logits, _, _ = self.batch(dtype, (9,), 5)
        targets = self.targets_for(generator(self.stem), (1, 5))
        weight = np.full(1, 0.75, dtype)
        for row in logits:
            given = np.broadcast_to(row, (9, 5)), self.repeat(targets, 9)
            broadcast = np.broadcast_to(weight, 9)
            got = self.results(*given, sample_weight=broadcast)
            expected = self.results(*map(np.array, given), sample_weight=broadcast.copy())
            assert_all_same_bits(got, expected)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_memory_mapped(self, dtype, tmp_path):
        logits, targets, _ = self.batch(dtype, (33,), 10)
        mapped = []
        for i, array in enumerate((logits, targets)):
            path = tmp_path / f"{i}.npy"
            np.save(path, array)
            mapped.append(np.load(path, mmap_mode="r"))
        got, expected = self.results(*mapped), self.results(logits, targets)
        assert {type(array) for array in got} == {np.ndarray}
        assert_all_same_bits(got, expected)

    def test_lists_and_tuples(self):
        logits, targets, weight = self.batch(np.float64, (6,), 4)
        expected = self.results(logits, targets, sample_weight=weight)
        for convert in (list, tuple):

            def nested(array, convert=convert):
                return convert(map(nested, array)) if array.ndim else array.item()

            got = self.results(nested(logits), nested(targets), sample_weight=nested(weight))
            assert_all_same_bits(got, expected)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_memory_order_of_gradient(self, dtype):
        logits, targets, _ = self.batch(dtype, (3, 5), 4)
        for layout in (np.array, *LAYOUTS.values()):
            given = layout(logits)
            expected = np.empty_like(given).strides
            grad = self.instance.value_and_grad(given, targets)[1]
            pair = self.instance.grad_and_hess(given, targets)
            for array in (grad, *pair):
                assert array.strides == expected
                assert array.flags.writeable

    @pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int32", "int64", "uint64", "longdouble"])
    def test_other_real_logits_count_as_float64(self, dtype):
        logits, targets, _ = self.batch(np.float64, (9,), 4)
        other = np.rint(abs(logits)).astype(dtype)
        got = self.results(other, targets)
        assert got.grad.dtype == np.float64
        assert_all_same_bits(got, self.results(other.astype(np.float64), targets))

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_inputs_are_never_written(self, dtype):
        for lead, k in [((33,), 10), ((4,), 100), ((3, 2), 5)]:
            arrays = self.batch(dtype, lead, k)
            clipped = self.configured(logit_clip=0.5)
            for layout in (np.array, *OUT_LAYOUTS.values()):
                given = [layout(a) for a in arrays]
                for loss in (self.instance, clipped):
                    loss(given[0], given[1], sample_weight=given[2])
                    self.results(given[0], given[1], loss, sample_weight=given[2])
                assert_all_same_bits(given, arrays)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("k", [3, 10, 50])
    def test_alignment(self, dtype, k):
        arrays = self.batch(dtype, (37,), k)
        expected = self.results(*arrays[:2], sample_weight=arrays[2])
        for offset in range(64):
            given = [at_offset(a, offset) for a in arrays]
            got = self.results(*given[:2], sample_weight=given[2])
            assert_all_same_bits(got, expected)
            out = at_offset(arrays[0], offset)
            self.unreduced.value_and_grad(*arrays[:2], sample_weight=arrays[2], out=out)
            assert_same_bits(out, expected.grad)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("k", [1, 2, 3, 10, 32, 33, 100])
    def test_position_in_batch(self, dtype, k):
        """A row has the same bits alone, in a batch of any size, and wherever it stands in it."""
        rng = generator(self.stem, k, "position")
        logits = np.concatenate(
            [logits_of(case, (29, k), dtype) for case in LOGITS], dtype=dtype, casting="no"
        )[:257]
        logits[5, 0] = NAN
        logits[70, -1] = INF
        logits[100, 0] = -INF
        targets = self.targets_for(rng, logits.shape)
        whole = self.results(logits, targets)
        for i in range(len(logits)):
            alone = self.results(logits[i : i + 1], targets[i : i + 1])
            assert_all_same_bits(alone, whole, part=0, of=i)
        for n in ROW_COUNTS:
            shifted = slice(257 - n, 257)
            part = self.results(logits[shifted], targets[shifted])
            assert_all_same_bits(part, whole, of=shifted)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_leading_dimensions(self, dtype):
        logits, targets, weight = self.batch(dtype, (24,), 5)
        flat = self.results(logits, targets, sample_weight=weight)
        for lead in [(4, 6), (2, 3, 4), (24, 1), (1, 24)]:
            got = self.results(
                logits.reshape(*lead, 5),
                targets.reshape(lead + targets.shape[1:]),
                sample_weight=weight.reshape(lead),
            )
            assert_all_same_bits(got, [array.reshape(lead + array.shape[1:]) for array in flat])

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_empty_batch(self, dtype):
        for shape in [(0, 5), (0, 100), (3, 0, 4), (0, 0, 2)]:
            logits, targets, weight = self.batch(dtype, shape[:-1], shape[-1])
            for reduction in REDUCTIONS[:3]:
                loss = self.configured(reduction=reduction)
                for options in ({}, {"sample_weight": weight}):
                    value, grad = loss.value_and_grad(logits, targets, **options)
                    assert value == loss(logits, targets, **options) == 0.0
                    assert type(value) is float
                    assert grad.shape == shape
                    assert grad.dtype == dtype
            got = self.results(logits, targets)
            assert got.loss.shape == targets.shape
            assert got.grad.shape == got.hess.shape == shape

    def test_many_python_threads(self):
        batches = [self.batch(np.float32, (200 + i,), 3 + 7 * i, i) for i in range(8)]
        expected = [self.instance.value_and_grad(*b[:2], sample_weight=b[2]) for b in batches]

        def work(i):
            b = batches[i % 8]
            return [self.instance.value_and_grad(*b[:2], sample_weight=b[2]) for _ in range(20)]

        with ThreadPoolExecutor(8) as pool:
            for i, runs in enumerate(pool.map(work, range(32))):
                for value, grad in runs:
                    assert value == expected[i % 8][0]
                    assert_same_bits(grad, expected[i % 8][1])

    # ---- reductions and weights ------------------------------------------------------------------

    def check_reduced(self, value, exact, dtype, limit32=1e-7, limit64=2):
        assert type(value) is float
        if dtype == np.float64:
            oracle.assert_within(limit64, value, np.array(exact, dtype=object), np.float64)
        elif exact == 0:
            assert value == 0
        else:
            assert abs(gmpy2.mpfr(value) - exact) <= limit32 * abs(exact)

    @pytest.mark.parametrize("reduction", REDUCTIONS[:3])
    @pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    @pytest.mark.parametrize("shape", [(4,), (1, 6), (35, 3), (4, 40), (2, 3, 5)], ids=str)
    def test_reductions(self, reduction, weighted, dtype, limit, shape):
        logits, targets, weight = self.batch(dtype, shape[:-1], shape[-1], "reductions")
        if not shape[:-1]:
            weight = np.array(1.25, dtype)
        options = {"sample_weight": weight} if weighted else {}
        exact = self.exact(logits, targets)
        if weighted:
            exact = exact.scaled(weight)
        divisor = self.divisor(reduction, shape, weight if weighted else None)
        loss = self.configured(reduction=reduction)
        value, grad = loss.value_and_grad(logits, targets, **options)
        self.check_reduced(value, exact.loss.sum() / divisor, dtype)
        term = exact.grad_term / divisor
        oracle.assert_within(limit, grad, exact.grad / divisor, dtype, term, "gradient")

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("k", [2, 10, 150])
    def test_mean_of_many(self, dtype, k):
        """Rows drawn from few distinct ones, whose exact mean is cheap."""
        distinct, n = 24, 40_000
        logits, targets, _ = self.batch(dtype, (distinct,), k, "many")
        row = generator(self.stem, k).integers(0, distinct, n)
        exact = self.exact(logits, targets).loss
        per_row = exact if exact.ndim == 1 else exact.sum(axis=1)
        total = (per_row * np.bincount(row, minlength=distinct)).sum()
        value = self.instance(logits[row], targets[row])
        self.check_reduced(value, total / self.divisor("mean", (n, k), None), dtype)

    @pytest.mark.parametrize("weight_dtype", REAL_WEIGHTS)
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_weight_dtypes(self, weight_dtype, dtype, limit):
        logits, targets, _ = self.batch(dtype, (9,), 4)
        weight = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1]).astype(weight_dtype)
        if weight.dtype.kind != "b":
            weight = weight * weight.dtype.type(3)
        assert self.unreduced(logits, targets, sample_weight=weight).dtype == dtype
        self.check(logits, targets, limit, weight)

    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_fractional_weights(self, dtype, limit):
        """Weights that the dtype of the logits holds."""
        logits, targets, _ = self.batch(dtype, (40,), 6)
        weight = generator(self.stem).lognormal(sigma=4, size=40).astype(dtype)
        self.check(logits, targets, limit, weight)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_weight_zero_removes_the_row(self, dtype, value):
        logits, targets, _ = self.batch(dtype, (40,), 5)
        weight = np.ones(40, dtype)
        weight[[3, 38]] = 0
        clean = self.results(logits, targets, sample_weight=weight)
        spoilt = logits.copy()
        spoilt[[3, 38]] = value
        got = self.results(spoilt, targets, sample_weight=weight)
        assert_all_same_bits(got, clean)
        assert not any(array[[3, 38]].any() for array in got)
        for reduction in REDUCTIONS[:3]:
            loss = self.configured(reduction=reduction)
            a = loss.value_and_grad(spoilt, targets, sample_weight=weight)
            b = loss.value_and_grad(logits, targets, sample_weight=weight)
            assert a[0] == b[0] == loss(spoilt, targets, sample_weight=weight)
            assert_same_bits(a[1], b[1])

    @pytest.mark.parametrize("reduction", REDUCTIONS[:3])
    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_all_weights_zero(self, reduction, dtype):
        logits, targets, weight = self.batch(dtype, (6,), 3)
        value, grad = self.configured(reduction=reduction).value_and_grad(
            logits, targets, sample_weight=np.zeros_like(weight)
        )
        assert value == 0.0
        assert type(value) is float
        assert not grad.any()

    # ---- edges -----------------------------------------------------------------------------------

    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    @pytest.mark.parametrize("k", [2, 3, 10, 40])
    def test_infinities_and_nan(self, dtype, limit, k):
        """Every pattern of special values against the oracle's limits."""
        rng = generator(self.stem, k, "special")
        special = np.array([NAN, INF, -INF, INF, -INF, 0.0, 1.5], dtype)
        logits = rng.choice(special, (60, k), p=[0.02, 0.1, 0.3, 0.1, 0.18, 0.1, 0.2])
        logits[:6] = np.array([[INF], [-INF], [NAN], [0.0], [INF], [-INF]], dtype)
        logits[4, 0] = logits[5, 0] = 2.5
        self.check(logits, self.targets_for(rng, logits.shape), limit)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_nan_stays_in_its_row(self, dtype):
        for k in (3, 10, 100):
            logits, targets, _ = self.batch(dtype, (40,), k)
            clean = self.results(logits, targets)
            for i in (0, 17, 39):
                spoilt = logits.copy()
                spoilt[i, i % k] = NAN
                others = np.arange(40) != i
                got = self.results(spoilt, targets)
                assert_all_same_bits(got, clean, part=others, of=others)
                assert all(np.isnan(array[i]).any() for array in got)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("clip", [0.5, 3, 30.0])
    def test_logit_clip(self, dtype, clip):
        """The loss at the clamped logits, its gradient passed straight through."""
        logits, targets, weight = self.batch(dtype, (40,), 5)
        logits = logits * 10
        logits[0, 0], logits[1, 1], logits[2, 2] = INF, -INF, NAN
        for reduction in REDUCTIONS:
            plain = self.configured(reduction=reduction)
            clipped = self.configured(reduction=reduction, logit_clip=clip)
            clamped = np.clip(logits, dtype(-clip), dtype(clip))
            expected = self.results(clamped, targets, plain, sample_weight=weight)
            got = self.results(logits, targets, clipped, sample_weight=weight)
            assert_all_same_bits(got, expected)
            assert_same_bits(clipped(logits, targets, sample_weight=weight), expected.loss)

    # ---- errors ----------------------------------------------------------------------------------

    def assert_rejected(self, error, fragments, logits, targets, **options):
        """All three entries raise, name each fragment, and leave `out` as it was."""
        dtype = np.float32 if logits.dtype == np.float32 else np.float64
        out = np.full(logits.shape, 7, dtype)
        pair = out.copy(), out.copy()
        entries = [
            lambda: self.instance(logits, targets, **options),
            lambda: self.instance.value_and_grad(logits, targets, out=out, **options),
            lambda: self.instance.grad_and_hess(logits, targets, out=pair, **options),
        ]
        for entry in entries:
            with pytest.raises(error) as caught:
                entry()
            for fragment in fragments:
                assert fragment in str(caught.value), str(caught.value)
            for array in (out, *pair):
                assert (array == 7).all()

    @pytest.mark.parametrize(
        ("dtype", "name"),
        [
            ("complex64", "complex64"),
            ("complex128", "complex128"),
            ("object", "object"),
            ("U3", "<U3"),
            ("S3", "S3"),
            ("datetime64[s]", "datetime64"),
            ("timedelta64[s]", "timedelta64"),
        ],
    )
    @pytest.mark.parametrize("role", ["logits", "targets", "sample_weight"])
    def test_wrong_dtype(self, dtype, name, role):
        logits, targets, weight = self.batch(np.float32, (3,), 4)
        arrays = {"logits": logits, "targets": targets, "sample_weight": weight}
        arrays[role] = np.ones(arrays[role].shape, np.int64).astype(dtype)
        self.assert_rejected(TypeError, [name.lstrip("<")], **arrays)

    def test_wrong_shapes(self):
        logits, targets, _ = self.batch(np.float32, (3,), 4)
        for shape in self.wrong_target_shapes:
            wrong = np.zeros(shape, np.int64)
            self.assert_rejected(ValueError, ["(3, 4)", str(shape)], logits, wrong)
        for shape in [(), (1,), (2,), (4,), (3, 1), (1, 3), (4, 3), (3, 4, 1)]:
            wrong = np.ones(shape)
            self.assert_rejected(ValueError, ["(3, 4)", str(shape)], logits, targets, sample_weight=wrong)

    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    def test_wrong_weights(self, bad):
        for lead, position in [((40,), (33,)), ((5, 8), (2, 7))]:
            logits, targets, weight = self.batch(np.float64, lead, 3)
            weight[position] = bad
            fragments = [*(str(i) for i in position), str(bad)]
            self.assert_rejected(ValueError, fragments, logits, targets, sample_weight=weight)

    def test_negative_integer_weight(self):
        logits, targets, _ = self.batch(np.float32, (3,), 4)
        value = self.instance(logits, targets, sample_weight=np.array([1, -2, 4]))
        assert value == self.instance(logits, targets, sample_weight=[1.0, -2.0, 4.0])

    def test_out_that_cannot_be_used(self):
        logits, targets, _ = self.batch(np.float32, (3,), 4)
        read_only = np.zeros((3, 4), np.float32)
        read_only.flags.writeable = False
        swapped = np.zeros((3, 4), np.dtype(np.float32).newbyteorder())
        for error, out in [
            (TypeError, np.zeros((3, 4), np.float64)),
            (TypeError, np.zeros((3, 4), np.int32)),
            (TypeError, swapped),
            (TypeError, [[0.0] * 4] * 3),
            (ValueError, np.zeros((4, 3), np.float32)),
            (ValueError, np.zeros((3, 4, 1), np.float32)),
            (ValueError, np.zeros((1, 4), np.float32)),
            (ValueError, read_only),
        ]:
            before = copy.deepcopy(out)
            with pytest.raises(error):
                self.instance.value_and_grad(logits, targets, out=out)
            for pair in [(out, np.zeros_like(logits)), (np.zeros_like(logits), out)]:
                with pytest.raises(error):
                    self.instance.grad_and_hess(logits, targets, out=pair)
                assert not np.any(pair[0])
                assert not np.any(pair[1])
            np.testing.assert_array_equal(out, before)
        with pytest.raises((TypeError, ValueError)):
            self.instance.grad_and_hess(logits, targets, out=np.zeros_like(logits))
        same = np.zeros_like(logits)
        with pytest.raises(ValueError, match="out"):
            self.instance.grad_and_hess(logits, targets, out=(same, same))
        assert not same.any()

    def test_options_are_keywords(self):
        logits, targets, weight = self.batch(np.float32, (3,), 4)
        for entry in (self.instance, self.instance.value_and_grad, self.instance.grad_and_hess):
            with pytest.raises(TypeError):
                entry(logits, targets, weight)

    # ---- the object ------------------------------------------------------------------------------

    @pytest.mark.parametrize("reduction", ["average", "", None, "MEAN", 1])
    def test_unknown_reduction(self, reduction):
        with pytest.raises(ValueError, match="reduction") as caught:
            self.configured(reduction=reduction)
        for known in REDUCTIONS:
            assert known in str(caught.value)

    @pytest.mark.parametrize("clip", [0, 0.0, -1.0, NAN, INF, -INF])
    def test_unusable_logit_clip(self, clip):
        with pytest.raises(ValueError, match="logit_clip"):
            self.configured(logit_clip=clip)

    def test_equality_hash_and_pickle(self):
        clipped = {"reduction": "none", "logit_clip": 2.5}
        options = [{}, {"reduction": "sum"}, {"logit_clip": 30.0}, clipped]
        for i, given in enumerate(options):
            loss = self.configured(**given)
            for j, other in enumerate(options):
                assert (loss == self.configured(**other)) == (i == j)
                assert (loss != self.configured(**other)) == (i != j)
            assert hash(loss) == hash(self.configured(**given))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                again = pickle.loads(pickle.dumps(loss, protocol))
                assert again == loss
                assert type(again) is type(loss)
            assert copy.deepcopy(loss) == loss
        assert self.configured() == self.instance
        assert self.configured(reduction="mean", logit_clip=None) == self.instance
        assert self.configured(logit_clip=5) == self.configured(logit_clip=5.0)
        assert self.instance != "mean"
        for stem in bits.LOSSES:
            assert (getattr(sl, stem) == self.instance) == (stem == self.stem)

    def test_repr(self):
        name = self.configured.__name__
        assert repr(self.instance) == f"{name}()"
        assert repr(self.configured(reduction="sum")) == f"{name}(reduction='sum')"
        assert repr(self.configured(logit_clip=30.0)) == f"{name}(logit_clip=30.0)"
        both = self.configured(reduction="none", logit_clip=2.5)
        assert repr(both) == f"{name}(reduction='none', logit_clip=2.5)"

    def test_immutable(self):
        loss = self.configured(reduction="sum", logit_clip=3.0)
        for name in ("reduction", "logit_clip", "anything"):
            with pytest.raises(AttributeError):
                setattr(loss, name, "mean")
        for name in ("reduction", "logit_clip"):
            with pytest.raises(AttributeError):
                delattr(loss, name)
        assert (loss.reduction, loss.logit_clip) == ("sum", 3.0)


class SoftmaxContract(LossContract):
    """One loss per row; a target is a class index or a row of probabilities.

    `sigmoid_stem` names the sigmoid loss that two classes reduce to, `two_class_factor` the ratio,
    and `two_class_term(z)` gives the largest term of the gradient, where that is a difference, at
    the class that is not the target and leads by z. `vocabulary` is the number of classes of the
    widest row.
    """

    sigmoid_stem: str
    two_class_factor: int
    vocabulary: int
    wrong_target_shapes = ((), (1,), (2,), (4,), (3, 1), (1, 3), (3, 3), (4, 3), (3, 4, 1))

    def targets_for(self, rng, shape):
        return rng.integers(0, max(shape[-1], 1), shape[:-1])

    def repeat(self, targets, n):
        return np.broadcast_to(targets, (n,))

    def divisor(self, reduction, shape, weight):
        if reduction == "sum":
            return 1
        if reduction == "mean" and weight is not None:
            return oracle.lift(weight).sum()
        return int(np.prod(shape[:-1]))

    # ---- accuracy --------------------------------------------------------------------------------

    @pytest.mark.parametrize("case", LOGITS)
    @pytest.mark.parametrize("k", CLASS_COUNTS)
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_exact(self, dtype, limit, k, case):
        n = max(3, 128 // k)
        targets = index_targets(generator(case, k), n, k)
        self.check(logits_of(case, (n, k), dtype), targets, limit)

    @pytest.mark.parametrize("margins", [(0, 30), (30, 800), (-800, 0)], ids=str)
    @pytest.mark.parametrize("k", CLASS_COUNTS)
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_exact_by_margin(self, dtype, limit, k, margins):
        n = max(4, 128 // k)
        rng = generator(self.stem, k, margins)
        self.check(*with_margins(rng, n, k, dtype, *margins), limit)

    @pytest.mark.parametrize("beyond", [0.5, 2, 6])
    @pytest.mark.parametrize("k", [40, 1000])
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_exact_sum_of_underflowing_terms(self, dtype, limit, k, beyond):
        """Each other class is below the smallest normal number, their sum is above it."""
        logits = np.zeros((3, k), dtype)
        logits[0, 0] = logits[1, 7] = logits[2, k - 1] = beyond - np.log(np.finfo(dtype).tiny)
        self.check(logits, np.array([0, 7, k - 1]), limit)

    @pytest.mark.parametrize("case", LOGITS)
    @pytest.mark.parametrize("k", [1, 2, 5, 33, 100])
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_exact_soft_targets(self, dtype, limit, k, case):
        n = max(3, 128 // k)
        targets = soft_targets(generator(case, k, "soft"), n, k, dtype)
        self.check(logits_of(case, (n, k), dtype), targets, limit)

    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_exact_targets_of_any_total(self, dtype, limit):
        """Probabilities need not add up to 1, and may be 0."""
        rng = generator(self.stem, "total")
        targets = rng.choice([0, 0.25, 1, 3], (30, 6)).astype(dtype)
        self.check(logits_of("ordinary", (30, 6), dtype), targets, limit)

    @pytest.mark.parametrize("target_dtype", ["bool", "uint8", "int64", "float32", "float64"])
    @pytest.mark.parametrize("k", [2, 10, 65])
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_exact_one_hot(self, dtype, limit, k, target_dtype):
        n = 24
        rng = generator(self.stem, k, "one-hot")
        for lowest, highest in [(0, 40), (40, 800), (-800, 0)]:
            logits, index = with_margins(rng, n, k, dtype, lowest, highest)
            self.check(logits, np.eye(k)[index].astype(target_dtype), limit)

    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_exact_vocabulary(self, dtype, limit):
        """One very wide row, of few distinct logits so that the oracle can remember them."""
        rng, k = generator(self.stem, "vocabulary"), self.vocabulary
        distinct = rng.normal(scale=4, size=300).astype(dtype)
        logits = distinct[rng.integers(0, 300, (1, k))]
        logits[0, k // 2] = 25.3
        self.check(logits, np.array([k // 2]), limit)

    # ---- targets ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("target_dtype", [*INTEGERS, "float16", "float32", "float64"])
    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_index_dtypes(self, dtype, target_dtype):
        for k in (3, 10, 100):
            logits, targets, _ = self.batch(dtype, (40,), k)
            expected = self.results(logits, targets.astype(np.int64))
            got = self.results(logits, targets.astype(target_dtype))
            assert_all_same_bits(got, expected)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_boolean_index(self, dtype):
        logits, targets, _ = self.batch(dtype, (40,), 2)
        expected = self.results(logits, targets)
        assert_all_same_bits(self.results(logits, targets.astype(bool)), expected)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    @pytest.mark.parametrize("k", [1, 2, 10, 100])
    def test_single_row(self, dtype, k):
        logits, targets, _ = self.batch(dtype, (1,), k)
        expected = self.results(logits, targets)
        y = int(targets[0])
        for target in (y, np.int32(y), float(y), np.array(y)):
            got = self.results(logits[0], target)
            assert isinstance(got.loss, dtype)
            assert_all_same_bits(got, expected, of=0)
            value, grad = self.instance.value_and_grad(logits[0], target)
            assert type(value) is float
            assert grad.shape == (k,)

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_one_class(self, dtype):
        logits = np.array([[0.0], [-800], [1e30]], dtype)
        for targets in (np.zeros(3, int), np.ones((3, 1))):
            got = self.results(logits, targets)
            for array in got:
                assert not array.any()

    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_two_classes_are_a_sigmoid(self, dtype, limit):
        z = np.linspace(-95, 95, 381).astype(dtype)
        sigmoid = type(getattr(sl, self.sigmoid_stem))(reduction="none")
        unit = 2 * limit * np.finfo(dtype).eps
        for y in (0, 1):
            rows = self.results(np.stack([np.zeros_like(z), z], 1), np.full(z.shape, y))
            value, grad = sigmoid.value_and_grad(z, np.full(z.shape, y))
            value, grad = self.two_class_factor * value, self.two_class_factor * grad
            np.testing.assert_allclose(rows.loss, value, rtol=unit, atol=1e-37)
            at_target, other = (grad, -grad) if y == 1 else (-grad, grad)
            np.testing.assert_allclose(rows.grad[:, y], at_target, rtol=unit, atol=1e-37)
            allowed = unit * np.maximum(abs(other), self.two_class_term(z if y == 0 else -z))
            assert (abs(rows.grad[:, 1 - y] - other) <= allowed + 1e-37).all()

    # ---- errors ----------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("target_dtype", "bad"),
        [
            *((name, 7) for name in INTEGERS),
            ("int8", -1),
            ("int64", -1),
            ("int64", -(2**63)),
            ("int64", 2**63 - 1),
            ("uint64", 2**64 - 1),
            ("float32", 7.0),
            ("float64", -1.0),
            ("float64", 1.5),
            ("float64", 1e30),
            ("float32", NAN),
            ("float64", INF),
            ("float64", -INF),
        ],
    )
    def test_bad_index(self, target_dtype, bad):
        """The message names position, value and number of classes."""
        for lead, position in [((40,), (33,)), ((4, 6), (2, 5))]:
            logits, targets, _ = self.batch(np.float32, lead, 7)
            targets = targets.astype(target_dtype)
            targets[position] = bad
            fragments = [*(str(i) for i in position), str(targets[position]), "7 classes"]
            self.assert_rejected(ValueError, fragments, logits, targets)

    def test_bad_index_of_boolean(self):
        logits = np.zeros((3, 1), np.float32)
        targets = np.array([False, True, False])
        self.assert_rejected(ValueError, ["1"], logits, targets)

    def test_bad_index_of_single_row(self):
        self.assert_rejected(ValueError, ["5", "3"], np.zeros(3, np.float32), 5)

    @pytest.mark.parametrize("bad", [-0.25, NAN, INF, -INF])
    def test_bad_probability(self, bad):
        for lead, position in [((40,), (33, 2)), ((4, 6), (2, 5, 1))]:
            logits, _, _ = self.batch(np.float32, lead, 7)
            targets = np.full(logits.shape, 0.125)
            targets[position] = bad
            fragments = [*(str(i) for i in position), str(bad)]
            self.assert_rejected(ValueError, fragments, logits, targets)

    def test_negative_integer_probability(self):
        targets = np.eye(3, dtype=np.int64)
        targets[1, 2] = -4
        self.assert_rejected(ValueError, ["1", "2", "-4"], np.zeros((3, 3), np.float32), targets)

    def test_no_classes(self):
        for shape in [(0,), (3, 0), (0, 0)]:
            targets = np.zeros(shape[:-1], np.int64)
            self.assert_rejected(ValueError, [str(shape)], np.zeros(shape, np.float32), targets)

    def test_no_dimensions(self):
        for entry in (self.instance, self.instance.value_and_grad, self.instance.grad_and_hess):
            with pytest.raises(ValueError, match=r"\(\)"):
                entry(1.0, 0)


class SigmoidContract(LossContract):
    """One loss per element; the targets have the shape of the logits."""

    wrong_target_shapes = ((), (1,), (3,), (4,), (3, 1), (1, 4), (4, 3), (3, 4, 1), (1, 3, 4))

    def targets_for(self, rng, shape):
        """Whole numbers: 0 and 1, or some more where the loss takes them."""
        return rng.integers(0, 1 + min(bits.target_max(self.stem), 7), shape)

    def repeat(self, targets, n):
        return np.broadcast_to(targets, (n, targets.shape[-1]))

    def divisor(self, reduction, shape, weight):
        return {
            "mean": int(np.prod(shape)),
            "batchmean": int(np.prod(shape[:-1])),
            "sum": 1,
        }[reduction]

    # ---- accuracy --------------------------------------------------------------------------------

    @pytest.mark.parametrize("case", LOGITS)
    @pytest.mark.parametrize("target", ["0", "1", "soft"])
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_exact(self, dtype, limit, target, case):
        logits = logits_of(case, (20, 21), dtype)
        rng = generator(self.stem, case)
        soft = rng.choice([0, 1, 0.5, 0.9375, 1e-6], logits.shape) * rng.uniform(size=logits.shape)
        targets = np.full(logits.shape, float(target)) if target != "soft" else soft.astype(dtype)
        self.check(logits, targets, limit)

    @pytest.mark.parametrize("target", [0, 1])
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_exact_by_margin(self, dtype, limit, target):
        for highest in (1, 20, 100, 800):
            z = np.linspace(-highest, highest, 401).astype(dtype)
            self.check(z, np.full(z.shape, target), limit)

    # ---- targets ---------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "target_dtype", ["bool", *INTEGERS, "float16", "float32", "float64", "longdouble"]
    )
    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_target_dtypes(self, dtype, target_dtype):
        logits, targets, _ = self.batch(dtype, (40,), 7)
        targets = targets.astype(target_dtype)
        expected = self.results(logits, targets.astype(dtype))
        assert_all_same_bits(self.results(logits, targets), expected)

    @pytest.mark.parametrize("shape", [(), (7,), (7, 1), (3, 4, 5)], ids=str)
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_any_shape(self, dtype, limit, shape):
        rng = generator(self.stem, shape)
        logits = rng.normal(scale=4, size=shape).astype(dtype)
        targets = self.targets_for(rng, shape)
        if shape:
            self.check(logits, targets, limit)
        value, grad = self.instance.value_and_grad(logits, targets)
        assert type(value) is float
        assert np.shape(grad) == shape
        assert self.instance(logits, targets) == value
        assert np.shape(self.unreduced(logits, targets)) == shape

    def test_scalars(self):
        value, grad = self.instance.value_and_grad(0.75, 1)
        many = self.instance.value_and_grad(np.array([0.75]), np.array([1]))
        assert value == many[0] == self.instance(0.75, 1)
        assert float(grad) == many[1][0]
        grad, hess = self.instance.grad_and_hess(0.75, 1)
        many = self.instance.grad_and_hess(np.array([0.75]), np.array([1]))
        assert (float(grad), float(hess)) == (many[0][0], many[1][0])

    @pytest.mark.parametrize("dtype", DTYPE_ONLY)
    def test_out_is_targets(self, dtype):
        logits, targets, _ = self.batch(dtype, (40,), 7)
        expected = self.instance.value_and_grad(logits, targets)
        buffer = targets.astype(dtype)
        value, grad = self.instance.value_and_grad(logits, buffer, out=buffer)
        assert grad is buffer
        assert value == expected[0]
        assert_same_bits(buffer, expected[1])

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize(("dtype", "limit"), DTYPES)
    def test_weight_per_element(self, dtype, limit, reduction):
        logits, targets, rows = self.batch(dtype, (9,), 5)
        weight = generator(self.stem, "element").integers(0, 5, logits.shape).astype(dtype)
        exact = self.exact(logits, targets).scaled(weight)
        loss = self.configured(reduction=reduction)
        value, grad = loss.value_and_grad(logits, targets, sample_weight=weight)
        divisor = 1 if reduction == "none" else self.divisor(reduction, logits.shape, weight)
        term = exact.grad_term / divisor
        oracle.assert_within(limit, grad, exact.grad / divisor, dtype, term, "gradient")
        if reduction != "none":
            self.check_reduced(value, exact.loss.sum() / divisor, dtype)
        repeated = np.repeat(rows[:, None], 5, axis=1)
        per_row = self.results(logits, targets, loss, sample_weight=rows)
        per_element = self.results(logits, targets, loss, sample_weight=repeated)
        assert_all_same_bits(per_row, per_element)

    def test_small_losses_of_small_weights(self):
        """Their products are beyond float32, where their mean is not."""
        logits = np.linspace(20, 40, 700, dtype=np.float32)
        weight = 2.0 ** np.linspace(-59, -20, 700).round().astype(np.float32)
        exact = self.exact(logits, np.ones(700)).scaled(weight)
        value, grad = self.instance.value_and_grad(logits, np.ones(700), sample_weight=weight)
        divisor = self.divisor("mean", logits.shape, weight)
        self.check_reduced(value, exact.loss.sum() / divisor, np.float32, limit32=4 * 2.0**-23)
        oracle.assert_within(4, grad, exact.grad / divisor, np.float32, exact.grad_term / divisor, "gradient")

    # ---- errors ----------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("target_dtype", "bad"),
        [
            ("int8", 2),
            ("int8", -1),
            ("uint8", 255),
            ("int64", 2**40),
            ("uint64", 2**63),
            ("float32", 1.5),
            ("float64", 1.00000000000001),
            ("float64", -0.125),
            ("float64", -1e-14),
            ("float32", NAN),
            ("float64", INF),
            ("float64", -INF),
        ],
    )
    def test_bad_target(self, target_dtype, bad):
        """Refused, unless the loss takes targets of any size, which has to be right then."""
        for shape, position in [((40, 3), (33, 1)), ((4, 6, 5), (2, 5, 4)), ((9,), (8,))]:
            logits = np.zeros(shape, np.float32)
            targets = np.zeros(shape, target_dtype)
            targets[position] = bad
            if 0 <= targets[position] <= min(bits.target_max(self.stem), np.finfo(np.float64).max):
                self.check(logits, targets, 4)
                continue
            fragments = [*(str(i) for i in position), str(bad)]
            self.assert_rejected(ValueError, fragments, logits, targets)

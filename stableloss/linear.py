"""A linear layer and the loss of its outputs, in one call that never holds all the logits.

The rows that count are taken in chunks. The logits of a chunk are computed, overwritten with their gradient
by the loss, and multiplied into the gradients by the layer's inputs: three matrix products, as without it.
Where few rows go into memory, classes are taken in chunks too: first for the sums of their exponentials, and
then again for the gradient, with a fourth product.
"""

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, NoReturn, cast, overload

import numpy as np

from stableloss import _arrays
from stableloss._dispatch import kernels
from stableloss.losses import Stats, Value, _Loss, _Softmax
from stableloss.shards import PIECE, Part, inputs_of, merge

__all__ = ["LinearGrads", "LinearLoss"]

DEFAULT_MEMORY = 128 << 20
# Classes are taken in tiles of so many bytes of the weight: enough of them for a matrix product at full
# speed, and few enough for the sum to come from a cache.
TILE_BYTES = 2 << 20
# Up to here tiles, and sums by class, go on top of max_memory: a power of two is to hold as many rows of a
# power of two of classes as it can.
SPARE_BYTES = 5 << 20
# With fewer rows than this at a time it takes less to compute the logits twice, in chunks of classes for many
# rows: the weight, and the sum that is its gradient, go through the processor once for each chunk of rows.
FEW_ROWS = 128
MANY_ROWS = 768
# What the loss may take for a target per element that it has to convert, compare or round first.
CONVERSION_BYTES = 32

Rows = slice | np.ndarray


class LinearGrads(NamedTuple):
    """Gradients of a `LinearLoss` by its inputs, or arrays to write them to.

    Attributes
    ----------
    hidden, weight, bias : ndarray or None
        Of the shape of the input of that name; None where it is not needed.
    """

    hidden: np.ndarray | None = None
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None


NAMES = LinearGrads._fields


# ---- rows -----------------------------------------------------------------------------------------


class _Rows:
    """An array whose leading dimensions are rows, read and written some rows at a time."""

    def __init__(self, array: np.ndarray, shape: tuple[int, ...]) -> None:
        """Its shape begins with that of the rows; or it has one value for many rows, as weights may."""
        if array.ndim < len(shape):
            array = np.broadcast_to(_arrays.per_row(array, len(shape)), shape)
        steps = zip(shape, array.strides[: len(shape)], strict=True)
        long = [(length, stride) for length, stride in steps if length != 1]
        # whether the rows are evenly spaced
        self.flat = array.size == 0 or all(a[1] == b[0] * b[1] for a, b in pairwise(long))
        self.shape = shape
        self.row_shape = array.shape[len(shape) :]
        self.array = array.reshape(math.prod(shape), *self.row_shape) if self.flat else array

    def places(self, rows: Rows) -> Any:
        if self.flat:
            return rows
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return np.unravel_index(numbers, self.shape)

    def __getitem__(self, rows: Rows) -> np.ndarray:
        return self.array[self.places(rows)]

    def __setitem__(self, rows: Rows, values: Any) -> None:
        self.array[self.places(rows)] = values

    def copied_bytes(self, gathered: bool) -> int:
        """What reading a row allocates; rows are `gathered` unless they are neighbours."""
        return math.prod(self.row_shape) * self.array.itemsize if gathered or not self.flat else 0


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _chunks(chosen: np.ndarray | None, total: int, parts: int) -> Iterator[Rows]:
    """So many parts of the rows that have their numbers in `chosen`; slices where they are neighbours."""
    for i in range(parts):
        start, stop = total * i // parts, total * (i + 1) // parts
        if chosen is None:
            yield slice(start, stop)
        elif chosen[stop - 1] - chosen[start] == stop - 1 - start:
            yield slice(int(chosen[start]), int(chosen[stop - 1]) + 1)
        else:
            yield chosen[start:stop]


# ---- arrays ---------------------------------------------------------------------------------------


def _is_half(dtype: np.dtype) -> bool:
    # the name takes longer than a small product; bfloat16 is none of numpy's own
    return (dtype.kind == "f" and dtype.itemsize == 2) or (dtype.kind == "V" and dtype.name == "bfloat16")


def _is_single(dtype: np.dtype) -> bool:
    """Whether float32 holds all its numbers."""
    return (dtype.kind == "f" and dtype.itemsize == 4) or _is_half(dtype)


def _real_array(value: Any, name: str) -> np.ndarray:
    """The array of real numbers that a value is, as it lies in memory."""
    array = _arrays.any_array(value, name)
    if array.dtype.kind not in "biuf" and not _is_half(array.dtype):
        _arrays.refuse_dtype(value, array, name)
    return array


def _gradient_dtype(name: str, dtype: np.dtype) -> np.dtype:
    """Half precision would lose a sum over the rows, but holds what is computed for each."""
    if _is_half(dtype) and name == "hidden":
        return dtype.newbyteorder("=")
    return np.dtype(np.float32 if _is_single(dtype) else np.float64)


def _blas_takes(matrix: np.ndarray) -> bool:
    """Whether numpy hands a matrix to BLAS as it is; else it may multiply in a loop of its own."""
    (_, n), (step, unit) = matrix.shape, matrix.strides
    if abs(step) < abs(unit):
        n, step, unit = matrix.shape[0], unit, step
    return matrix.flags.aligned and unit == matrix.itemsize and step % unit == 0 and step >= n * unit


def _same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.ctypes.data, a.shape, a.strides, a.dtype) == (b.ctypes.data, b.shape, b.strides, b.dtype)


def _require_apart(outputs: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> None:
    """That no output overwrites what is still to be read, nor another output."""
    before: dict[str, np.ndarray] = {}
    for name, array in outputs.items():
        for other, memory in (inputs | before).items():
            # the gradient of a row is written when the row is no longer needed
            in_place = name == other == "hidden" and _same_memory(array, memory)
            if not in_place and np.shares_memory(array, memory):
                raise ValueError(f"out.{name} shares memory with {other}")
        before[f"out.{name}"] = array


# ---- the layer ------------------------------------------------------------------------------------


class _Layer:
    """The linear layer of a call and its matrix products."""

    def __init__(self, hidden: Any, weight: Any, bias: Any) -> None:
        self.hidden = _real_array(hidden, "hidden")
        self.weight = _real_array(weight, "weight")
        self.inputs = {"hidden": self.hidden, "weight": self.weight}
        if bias is not None:
            self.inputs["bias"] = _real_array(bias, "bias")
        self.require_shapes()
        self.rows = self.hidden.shape[:-1]
        self.k, self.d = self.weight.shape
        single = all(_is_single(array.dtype) for array in self.inputs.values())
        self.dtype = np.dtype(np.float32 if single else np.float64)
        self.bias = None if bias is None else self.inputs["bias"].astype(self.dtype, copy=False)
        # otherwise it is converted tile by tile
        self.plain = self.weight.dtype == self.dtype and _blas_takes(self.weight)
        self.everything = slice(0, self.k)
        self.tile = max(1, min(self.k, TILE_BYTES // max(1, self.d * self.dtype.itemsize)))

    def require_shapes(self) -> None:
        hidden, weight, bias = self.hidden, self.weight, self.inputs.get("bias")
        if weight.ndim != 2:
            raise ValueError(f"weight has shape {weight.shape}, not (classes, features)")
        k, d = weight.shape
        if hidden.shape[-1:] != (d,):
            hint = "; pass weight.T" if hidden.shape[-1:] == (k,) else ""
            raise ValueError(
                f"hidden has shape {hidden.shape} where weight of shape {weight.shape} needs (..., {d}){hint}"
            )
        if bias is not None and bias.shape != (k,):
            raise ValueError(f"bias has shape {bias.shape} where weight of shape {weight.shape} needs ({k},)")

    def tiles(self, of: slice) -> Iterator[tuple[slice, slice]]:
        """Tiles of a stretch of classes: their places in it, and among all classes."""
        for tile in _blocks(of.stop - of.start, self.tile):
            yield tile, slice(of.start + tile.start, of.start + tile.stop)

    def logits(self, h: np.ndarray, out: np.ndarray, of: slice) -> None:
        """The logits of a stretch of classes."""
        if self.plain:
            np.matmul(h, self.weight[of].T, out=out)
        else:
            for tile, classes in self.tiles(of):
                np.matmul(h, self.weight[classes].astype(self.dtype, order="C").T, out=out[:, tile])
        if self.bias is not None:
            out += self.bias[of]

    def hidden_grad(self, grad: np.ndarray, out: np.ndarray, of: slice) -> None:
        """What a stretch of classes gives."""
        if self.plain:
            np.matmul(grad, self.weight[of], out=out)
            return
        out[...] = 0
        for tile, classes in self.tiles(of):
            out += grad[:, tile] @ self.weight[classes].astype(self.dtype, order="C")


class _Gradients:
    """The gradients by the layer's inputs, to which each chunk of rows adds its own."""

    def __init__(self, layer: _Layer, to: dict[str, np.ndarray]) -> None:
        self.layer, self.to = layer, to
        self.first = True
        if "hidden" in to:
            self.hidden = _Rows(to["hidden"], layer.rows)
        if "weight" in to:
            step, unit = to["weight"].strides
            order: Literal["C", "F"] = "F" if abs(step) < abs(unit) else "C"
            self.product = np.empty((layer.tile, layer.d), layer.dtype, order)
        if "bias" in to:
            self.bias_sums = np.zeros(layer.k)

    def add(self, rows: Rows, grad: np.ndarray, h: np.ndarray) -> None:
        """Add what rows give, by the gradient of their logits; their hidden values `h` are overwritten."""
        self.add_classes(grad, h, self.layer.everything)
        if "hidden" in self.to:
            self.layer.hidden_grad(grad, h, self.layer.everything)
            self.hidden[rows] = h
        self.first = False

    def add_classes(self, grad: np.ndarray, h: np.ndarray, of: slice) -> None:
        """Add to the gradients that have a line per class, for a stretch of these."""
        if "weight" in self.to:
            self.add_weight(grad, h, of)
        if "bias" in self.to:
            self.bias_sums[of] += grad.sum(axis=0, dtype=np.float64)

    def add_weight(self, grad: np.ndarray, h: np.ndarray, of: slice) -> None:
        weight = self.to["weight"]
        direct = self.first and weight.dtype == grad.dtype and _blas_takes(weight)
        for tile, classes in self.layer.tiles(of):
            to = weight[classes]
            part = np.matmul(grad.T[tile], h, out=to if direct else self.product[: len(to)])
            if not self.first:
                to += part
            elif not direct:
                to[...] = part

    def finish(self, absent: np.ndarray | None) -> None:
        """Write what is not there yet; `absent` are the rows that do not count."""
        if "weight" in self.to and self.first:
            self.to["weight"][...] = 0
        if "bias" in self.to:
            self.to["bias"][...] = self.bias_sums
        if "hidden" in self.to and absent is not None:
            self.hidden[absent] = 0


# ---- the loss -------------------------------------------------------------------------------------


class _Arguments:
    """What a loss is called with beside the logits, of all rows or of some."""

    def __init__(self, loss: _Loss, layer: _Layer, given: dict[str, Any], denominator: Any) -> None:
        self.loss, self.layer, self.denominator = loss, layer, denominator
        self.arrays = {
            name: _arrays.any_array(value, name) for name, value in given.items() if value is not None
        }
        self.n = math.prod(layer.rows)
        self.dense = self.arrays["targets"].ndim > len(layer.rows)

    def look(self, shape: tuple[int, ...], arrays: dict[str, np.ndarray]) -> tuple[Any, ...]:
        found = (arrays.get(name) for name in ("targets", "sample_weight", "mask"))
        return kernels.survey(self.loss, (*shape, self.layer.k), *found)

    def check(self, max_memory: int) -> None:
        """Check everything; find which rows count, and the divisor of their mean."""
        self.survey(max_memory)
        mean = self.loss.reduction == "mean" and self.denominator is None
        if mean and not (self.total == 0 or sys.float_info.min <= abs(self.total) < math.inf):
            self.arrays["sample_weight"] = self.weight_in_range()
            self.survey(max_memory)
        # a mask of rows says nothing when those that do not count have been left out
        self.by_row = {
            name: _Rows(array, self.layer.rows)
            for name, array in self.arrays.items()
            if name != "mask" or array.ndim > len(self.layer.rows)
        }

    def survey(self, max_memory: int) -> None:
        size = max(1, max_memory // (CONVERSION_BYTES * max(1, self.layer.k)))
        if self.dense and size < self.n:
            self.survey_blocks(size)
            return
        found = self.look(self.layer.rows, self.arrays)
        self.total, self.signed, self.counts, self.measured, self.rounded = found

    def survey_blocks(self, size: int) -> None:
        """So many rows at a time."""
        by_row = {name: _Rows(array, self.layer.rows) for name, array in self.arrays.items()}
        totals, marks = [], np.ones(self.n, bool)
        self.signed = self.rounded = False
        for rows in _blocks(self.n, size):
            part = {name: array[rows] for name, array in by_row.items()}
            try:
                total, signed, counts, _, rounded = self.look((rows.stop - rows.start,), part)
            except ValueError:
                self.look(self.layer.rows, self.arrays)  # names the place among all rows
                raise
            totals.append(total)
            marks[rows] = True if counts is None else counts
            self.signed, self.rounded = self.signed or signed, self.rounded or rounded
        self.total = _sum(totals)
        self.counts = self.measured = None if marks.all() else marks

    def weight_in_range(self) -> np.ndarray:
        """The weights, whose sum is no normal number, over a power of two; only their share of it matters."""
        rows = self.layer.rows
        weight = _arrays.as_numbers(self.arrays.get("sample_weight", np.ones(rows)))
        weight = np.broadcast_to(_arrays.per_row(weight, len(rows)), rows)
        sizes = np.abs(weight.reshape(-1) if self.counts is None else weight.reshape(-1)[self.counts])
        exponent = math.frexp(sizes.max())[1]
        of_class = math.frexp(max(self.loss._options.get("class_weight") or (1.0,)))[1]
        # a weight alone must not leave the range either
        return np.ldexp(weight, min(-exponent - of_class, 1000 - exponent))

    def divisor(self) -> float | None:
        """What the loss is told to divide by; None where it does not divide."""
        if self.denominator is not None:
            divisor = _arrays.require_denominator(self.denominator, self.loss.reduction)
            if divisor == 0 and (self.total != 0 or self.signed):
                _arrays.refuse_denominator(self.denominator, self.total)
            return divisor or 1.0
        if self.loss.reduction not in ("mean", "batchmean"):
            return None
        if self.signed and not self.total > 0:
            _arrays.refuse_total(self.total, 0)
        return self.total or 1.0  # where it is 0, so is the sum

    def bytes_per_row(self, gathered: bool) -> int:
        """What a row takes while the loss is computed, beside its logits."""
        taken = sum(rows.copied_bytes(gathered) for rows in self.by_row.values())
        converted = self.rounded or self.loss._options.get("ignore_index") is not None
        readable = all(a.flags.aligned and a.dtype.isnative for a in self.arrays.values())
        if self.dense and (converted or not readable):
            taken += CONVERSION_BYTES * self.layer.k
        return taken

    def of(self, rows: Rows) -> dict[str, Any]:
        return {name: array[rows] for name, array in self.by_row.items()}


# ---- a call ---------------------------------------------------------------------------------------


class _Call:
    """A call of a `LinearLoss`: arguments that have been found valid, and results."""

    def __init__(
        self,
        head: "LinearLoss",
        layer: _Layer,
        arguments: dict[str, Any],
        denominator: Any,
        with_stats: bool,
    ) -> None:
        self.loss, self.max_memory = head.loss, head.max_memory
        self.flushing = head._flushing
        self.layer, self.with_stats = layer, with_stats
        self.arguments = _Arguments(self.loss, layer, arguments, denominator)
        self.arguments.check(self.max_memory)
        self.divisor = self.arguments.divisor()
        counts = self.arguments.counts
        chosen = self.arguments.measured if with_stats else counts
        self.chosen = None if chosen is None else np.flatnonzero(chosen)
        self.total = self.arguments.n if self.chosen is None else self.chosen.size
        self.absent = None if counts is None else np.flatnonzero(~counts)
        # rows that have statistics, and nothing else
        self.measured_only = None if counts is chosen or counts is None else ~counts

    def set_outputs(self, need: Any, out: Any) -> None:
        """Find or make room for the results."""
        layer, inputs = self.layer, self.layer.inputs
        needed, given = _needed(need), _given(out)
        self.to = {}
        for name, array in given.items():
            if name not in needed or name not in inputs:
                why = "need leaves it out" if name not in needed else f"there is no {name}"
                raise ValueError(f"out.{name} is given, but {why}")
            dtype = _gradient_dtype(name, inputs[name].dtype)
            if getattr(array, "dtype", None) == layer.dtype:
                dtype = layer.dtype
            shape = inputs[name].shape
            self.to[name] = _arrays.require_out(array, shape, dtype, f"out.{name}", widens=True)
        _require_apart(self.to, inputs | self.arguments.arrays)
        for name, array in inputs.items():
            if name in needed and name not in self.to:
                dtype = _gradient_dtype(name, array.dtype)
                self.to[name] = np.empty_like(array, dtype=dtype, subok=False)
        self.grads = LinearGrads(**(self.to | given))
        # rows that do not count keep these values
        shape = layer.rows if self.loss._rowwise else (*layer.rows, layer.k)
        self.losses = np.zeros(shape, layer.dtype) if self.loss.reduction == "none" else None
        if self.with_stats:
            predicted = np.full(shape, -1, np.int64) if self.loss._rowwise else np.zeros(shape, bool)
            self.stats = Stats(predicted, 0, np.zeros(shape, layer.dtype), np.zeros(shape, layer.dtype), None)

    def bytes_per_row(self, hidden: _Rows) -> int:
        """What a row of a chunk takes while it is worked on."""
        layer, itemsize, gathered = self.layer, self.layer.dtype.itemsize, self.chosen is not None
        taken = (layer.k + layer.d) * itemsize + hidden.copied_bytes(gathered)
        if "hidden" in self.to and not layer.plain:
            taken += layer.d * itemsize
        if not self.loss._rowwise and self.losses is not None:
            taken += layer.k * itemsize
        if not self.loss._rowwise and self.with_stats:
            taken += layer.k * (2 * itemsize + 1)
        return taken + self.arguments.bytes_per_row(gathered)

    def other_bytes(self) -> int:
        """What is taken beside the rows of a chunk: tiles, and sums by class."""
        layer = self.layer
        tiles = ("weight" in self.to) + (not layer.plain)
        return tiles * layer.tile * layer.d * layer.dtype.itemsize + ("bias" in self.to) * layer.k * 8

    def run(self) -> Value:
        """Go through the rows that count; returns the loss."""
        layer = self.layer
        hidden = _Rows(layer.hidden, layer.rows)
        room = self.max_memory + SPARE_BYTES - self.other_bytes()
        size = max(1, room // max(1, self.bytes_per_row(hidden)))
        with np.errstate(all="ignore"):
            gradients = _Gradients(layer, self.to)
            if size < min(FEW_ROWS, self.total) and self.has_shards():
                values = _ClassChunks(self, hidden, gradients, room).run()
            else:
                values = self.run_rows(hidden, gradients, -(-self.total // size))
            gradients.finish(self.absent)
        return _sum(values) if self.losses is None else self.losses if self.losses.ndim else self.losses[()]

    def run_rows(self, hidden: _Rows, gradients: _Gradients, parts: int) -> list[float]:
        """Rows in so many parts, with all their logits."""
        layer = self.layer
        logits = np.empty((-(-self.total // max(1, parts)), layer.k), layer.dtype)
        values = []
        for rows in _chunks(self.chosen, self.total, parts):
            h = np.array(hidden[rows], layer.dtype, order="C")
            z = logits[: len(h)]
            layer.logits(h, z, layer.everything)
            values.append(self.apply_loss(rows, z))
            if self.measured_only is not None:
                h[self.measured_only[rows]] = 0
            gradients.add(rows, z, h)
        return values

    def has_shards(self) -> bool:
        """Whether the loss can be computed from chunks of the classes, without what needs a row at once."""
        options = self.loss._options
        focal = options.get("focal_gamma") and options.get("label_smoothing")
        return (
            isinstance(self.loss, _Softmax)
            and self.layer.k > 2 * PIECE
            and not (focal or self.with_stats or self.arguments.dense)
        )

    def apply_loss(self, rows: Rows, z: np.ndarray) -> float:
        """The loss of some rows, whose logits are overwritten with their gradient, if one is needed."""
        arguments = self.arguments.of(rows)
        if self.divisor is not None:
            arguments["denominator"] = self.divisor
        if self.with_stats:
            arguments["with_stats"] = True
        if self.to:
            results = self.flushing.value_and_grad(z, out=z, **arguments)
        else:
            results = self.loss(z, **arguments)
        value = results[0] if isinstance(results, tuple) else results
        if self.with_stats:
            stats = results[-1]
            for name in ("predicted", "logsumexp", "entropy"):
                _Rows(getattr(self.stats, name), self.layer.rows)[rows] = getattr(stats, name)
            self.stats = self.stats._replace(correct=self.stats.correct + stats.correct)
        if self.losses is not None:
            _Rows(self.losses, self.layer.rows)[rows] = value
            return 0.0
        return value


class _ClassChunks:
    """A call that takes the classes in chunks, for many rows at a time."""

    def __init__(self, call: _Call, hidden: _Rows, gradients: _Gradients, room: int) -> None:
        self.call, self.hidden, self.gradients = call, hidden, gradients
        self.layer, self.loss = call.layer, cast(_Softmax, call.flushing)
        self.columns = self.loss.partial(np.zeros((1, 1)), [0], 0, self.layer.k).array.shape[1]
        # as few chunks as leave room for many rows
        self.size, self.rows = PIECE, 1
        for pieces in range(1, -(-self.layer.k // PIECE) + 1):
            rows = room // self.bytes_per_row(pieces * PIECE)
            if pieces == 1 or rows >= min(MANY_ROWS, call.total):
                self.size, self.rows = pieces * PIECE, max(1, rows)
        self.chunks = list(_blocks(self.layer.k, self.size))

    def bytes_per_row(self, size: int) -> int:
        """What a row takes, of so many classes at a time; its parts are there twice where they are merged."""
        itemsize, layer, gathered = self.layer.dtype.itemsize, self.layer, self.call.chosen is not None
        chunks = -(-layer.k // size)
        parts = chunks * self.columns * -(-size // PIECE) * 2 * 8
        taken = size * itemsize + 3 * layer.d * itemsize + parts
        return taken + self.hidden.copied_bytes(gathered) + self.call.arguments.bytes_per_row(gathered)

    def run(self) -> list[float]:
        call, layer = self.call, self.layer
        parts = -(-call.total // self.rows)
        rows_at_most = -(-call.total // parts)
        self.memory = np.empty(rows_at_most * min(self.size, layer.k), layer.dtype)
        values = []
        for rows in _chunks(call.chosen, call.total, parts):
            h = np.array(self.hidden[rows], layer.dtype, order="C")
            value = self.run_block(rows, h, call.arguments.of(rows))
            if call.losses is not None:
                _Rows(call.losses, layer.rows)[rows] = value
            values.append(0.0 if call.losses is not None else value)
            self.gradients.first = False
        return values

    def logits(self, h: np.ndarray, classes: slice) -> np.ndarray:
        shape = len(h), classes.stop - classes.start
        z = self.memory[: math.prod(shape)].reshape(shape)
        self.layer.logits(h, z, classes)
        return z

    def run_block(self, rows: Rows, h: np.ndarray, arguments: dict[str, Any]) -> Any:
        """Value of some rows, and what they add to the gradients."""
        call, targets = self.call, arguments.pop("targets")
        parts = []
        for classes in self.chunks:
            z = self.logits(h, classes)
            part = self.loss.partial(z, targets, classes.start, self.layer.k, **arguments)
            parts.append(Part(part.array))
        whole = merge(parts)
        del parts
        given = {} if call.divisor is None else {"denominator": call.divisor}
        weights = arguments.get("sample_weight"), arguments.get("mask")

        def finish(z: np.ndarray, first: int) -> Any:
            inputs = inputs_of(self.loss, z, targets, first, self.layer.k, None, *weights)
            return self.loss.finish(Part.of(whole.array, inputs), whole, out=z, **given)[0]

        value = finish(self.memory[:0].reshape(len(h), 0), 0)
        if not call.to:
            return value
        total = np.zeros_like(h)
        product = np.empty_like(h)
        for classes in self.chunks:
            z = self.logits(h, classes)
            finish(z, classes.start)
            self.gradients.add_classes(z, h, classes)
            if "hidden" in call.to:
                self.layer.hidden_grad(z, product, classes)
                total += product
        if "hidden" in call.to:
            self.gradients.hidden[rows] = total
        return value


def _needed(need: Any) -> set[str]:
    names = [need] if isinstance(need, str) else list(need)
    for name in names:
        if name not in NAMES:
            raise ValueError(f"need has {name!r}, which is not one of {', '.join(NAMES)}")
    return set(names)


def _given(out: Any) -> dict[str, Any]:
    if out is None:
        return {}
    if not isinstance(out, (tuple, list)) or len(out) != len(NAMES):
        raise TypeError(f"out must be LinearGrads({', '.join(NAMES)}), not {type(out).__name__}")
    return {name: array for name, array in zip(NAMES, out, strict=True) if array is not None}


def _sum(values: list[float]) -> float:
    """The sum, rounded once where it is finite."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond the largest number, or inf - inf
        return float(sum(values))


# ---- the public class -----------------------------------------------------------------------------


class LinearLoss:
    """A linear layer and the loss of its outputs, without holding the logits of all rows.

    With a loss object L, it gives the loss of the layer's outputs, and its gradient by the layer's inputs::

        logits       = hidden @ weight.T + bias
        loss         = L(logits, targets)
        G            = gradient of the loss by the logits
        grads.hidden = G @ weight
        grads.weight = G.T @ hidden     (rows as one dimension)
        grads.bias   = sum of G over the rows

    Neither logits nor G exist but for as many rows at a time as go into `max_memory` bytes, and entries of G
    below the smallest normal number count as 0. That is what
    the last layer of a language model, an extreme classifier or a recommender needs, whose logits are much
    larger than all its inputs.

    Parameters
    ----------
    loss : loss object
        The loss, with all its options but `axis` and `from_probabilities`: classes, or outputs, are on
        the last axis of the logits.
    max_memory : int, default: 134217728 (128 MiB)
        Bytes that a call may take beside its results, and up to 8 MiB more; one row at a time is the
        least, whatever its classes take. More rows at a time take less time, up to some hundreds.

    Notes
    -----
    `hidden` has shape (..., d), with any number of leading dimensions, `weight` (k, d) and `bias` (k,). A
    weight of shape (d, k) is passed as ``weight.T``, and its gradient has the same memory order, so that
    ``grads.weight.T`` is the one of the array that was given. Targets, `sample_weight` and `mask` are as for
    the loss, with logits of shape (..., k).

    Everything is computed in float64, or in float32 where no input has more digits; float16 and bfloat16
    are converted, the weight by tiles of classes. The gradient by `hidden` has its dtype; the gradients by
    `weight` and `bias`, which add up over the rows, are float32 for half precision. Integers count as
    float64.

    Rows that do not count, because they are masked, ignored or have weight 0, are left out of all three
    products. They take no time, and NaN in them reaches no result. NaN in a row that counts makes the
    gradient by the weight NaN, as in every matrix product. A class is disabled by a bias of -inf; in a
    weight, -inf makes NaN of ``0 * -inf``.

    Results are the same bits for the same `max_memory` and the same BLAS with its number of threads.

    Accuracy: the gradient of the logits is as exact as the loss gives it, for confident rows as for others.
    What is left are the roundings of the matrix products. With float32 inputs, 256 rows of 256 features and
    16384 classes of which the true one is ahead by a margin, the median error of a row of ``grads.hidden``,
    and of the true classes of ``grads.weight``, is 4e-7 of its length at a margin of 0 and 7e-6 at one of 30.
    A gradient made from ``p - 1`` has no digit left there.

    References
    ----------
    E. Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models (2024), for the problem.

    See Also
    --------
    SoftmaxCE : the loss of logits that are there.
    LinearGrads : what the gradients are returned as.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> hidden = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]])
    >>> weight, bias = np.array([[0.5, 1.0], [-1.0, 0.0]]), np.zeros(2)
    >>> head = sl.LinearLoss(sl.softmax_ce, max_memory=1 << 20)
    >>> loss, grads = head.value_and_grad(hidden, weight, [0, 1, 0], bias)
    >>> round(loss, 6)
    0.11802
    >>> grads.weight.round(6)
    array([[-0.020758, -0.109189],
           [ 0.020758,  0.109189]])
    >>> grads.bias.round(6)
    array([ 0.076214, -0.076214])
    >>> round(sl.softmax_ce(hidden @ weight.T + bias, [0, 1, 0]), 6)
    0.11802
    """

    __slots__ = ("_flushing", "loss", "max_memory")

    _flushing: _Loss
    loss: _Loss
    max_memory: int

    def __init__(self, loss: _Loss, max_memory: int = DEFAULT_MEMORY) -> None:
        if not isinstance(loss, _Loss):
            raise TypeError(f"loss must be a loss object, such as softmax_ce, not {loss!r}")
        if loss._options.get("axis", -1) != -1:
            raise ValueError(f"{loss!r} has not its classes on the last axis, where a linear layer puts them")
        if loss._options.get("from_probabilities"):
            raise ValueError(f"{loss!r} takes probabilities, but a linear layer gives logits")
        memory = _arrays.index("max_memory", max_memory)
        if memory <= 0:
            raise ValueError(f"max_memory is {max_memory!r}, not a positive number of bytes")
        if hasattr(self, "loss"):
            raise AttributeError(f"{type(self).__name__} is immutable: its options cannot be set again")
        # A processor takes a hundred times as long for a product with a number below the smallest normal one.
        # Of such, gradients of confident rows consist, and they add nothing.
        object.__setattr__(self, "_flushing", loss._flushing())
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "max_memory", memory)

    @overload
    def __call__(
        self,
        hidden: Any,
        weight: Any,
        targets: Any,
        bias: Any = ...,
        *,
        sample_weight: Any = ...,
        mask: Any = ...,
        denominator: float | None = ...,
        with_stats: Literal[False] = ...,
    ) -> Value: ...
    @overload
    def __call__(
        self,
        hidden: Any,
        weight: Any,
        targets: Any,
        bias: Any = ...,
        *,
        sample_weight: Any = ...,
        mask: Any = ...,
        denominator: float | None = ...,
        with_stats: Literal[True],
    ) -> tuple[Value, Stats]: ...
    def __call__(
        self,
        hidden: Any,
        weight: Any,
        targets: Any,
        bias: Any = None,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: float | None = None,
        with_stats: bool = False,
    ) -> Any:
        """Loss of the layer's outputs against targets.

        Parameters
        ----------
        hidden : array_like of shape (..., d)
            Inputs of the layer, a row for each of the leading indices.
        weight : array_like of shape (k, d)
            Weight of the layer, a row for each class or output.
        targets : array_like
            As the loss describes them, for logits of shape (..., k).
        bias : array_like of shape (k,), optional
            Added to the logits of each row. -inf disables a class.
        sample_weight, mask : array_like, optional
            As for calling the loss.
        denominator, with_stats : float, bool
            Likewise.

        Returns
        -------
        loss : float or ndarray
            As from calling the loss with the logits.
        stats : Stats
            Only with `with_stats`, without probabilities.

        Raises
        ------
        TypeError
            If an argument does not hold real numbers, or `mask` is not bool.
        ValueError
            If shapes do not agree, or a target, weight or denominator is out of range.

        Examples
        --------
        >>> import numpy as np
        >>> import stableloss as sl
        >>> head = sl.LinearLoss(sl.softmax_ce)
        >>> round(head(np.ones((2, 3)), np.zeros((4, 3)), [0, 3]), 6)
        1.386294
        """
        call = _Call(
            self,
            _Layer(hidden, weight, bias),
            {"targets": targets, "sample_weight": sample_weight, "mask": mask},
            denominator,
            with_stats,
        )
        call.set_outputs(need=(), out=None)
        value = call.run()
        return (value, call.stats) if with_stats else value

    @overload
    def value_and_grad(
        self,
        hidden: Any,
        weight: Any,
        targets: Any,
        bias: Any = ...,
        *,
        sample_weight: Any = ...,
        mask: Any = ...,
        denominator: float | None = ...,
        need: Collection[str] = ...,
        out: Sequence[np.ndarray | None] | None = ...,
        with_stats: Literal[False] = ...,
    ) -> tuple[Value, LinearGrads]: ...
    @overload
    def value_and_grad(
        self,
        hidden: Any,
        weight: Any,
        targets: Any,
        bias: Any = ...,
        *,
        sample_weight: Any = ...,
        mask: Any = ...,
        denominator: float | None = ...,
        need: Collection[str] = ...,
        out: Sequence[np.ndarray | None] | None = ...,
        with_stats: Literal[True],
    ) -> tuple[Value, LinearGrads, Stats]: ...
    def value_and_grad(
        self,
        hidden: Any,
        weight: Any,
        targets: Any,
        bias: Any = None,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: float | None = None,
        need: Collection[str] = NAMES,
        out: Sequence[np.ndarray | None] | None = None,
        with_stats: bool = False,
    ) -> Any:
        """Loss of the layer's outputs and its gradients by the layer's inputs.

        Parameters
        ----------
        hidden, weight, targets, bias : array_like
            As for calling the object.
        sample_weight, mask, denominator, with_stats : array_like, float, bool
            Likewise.
        need : tuple of {"hidden", "weight", "bias"}, default: all three
            The gradients to compute. Without a bias there is no gradient by it.
        out : LinearGrads, optional
            Where to write the gradients: arrays of their shapes, and of their dtypes or of the dtype
            computed in; None for those to be allocated. ``out.hidden`` may be `hidden`, which is
            overwritten then; apart from that no array may share memory with another or with an input.

        Returns
        -------
        loss : float or ndarray
            As from calling the object.
        grads : LinearGrads
            Derivative of the reduced loss (with reduction "none": of the sum) with respect to each
            input, of its shape and memory order; None where it is not needed. Arrays from `out` are
            returned as they are.
        stats : Stats
            Only with `with_stats`, without probabilities.

        Raises
        ------
        TypeError
            If an argument does not hold real numbers, `mask` is not bool, or an array of `out` has
            another dtype than the result.
        ValueError
            If shapes do not agree, a target, weight or denominator is out of range, `need` names
            something else, or an array of `out` is not needed, read-only, or shares memory. Nothing has
            been written to `out` then; after a KeyboardInterrupt its contents are undefined.

        Examples
        --------
        >>> import numpy as np
        >>> import stableloss as sl
        >>> head = sl.LinearLoss(sl.softmax_ce)
        >>> hidden, weight = np.ones((2, 3)), np.zeros((4, 3))
        >>> loss, grads = head.value_and_grad(hidden, weight, [0, 3], need=("hidden",))
        >>> grads.hidden
        array([[0., 0., 0.],
               [0., 0., 0.]])
        >>> grads.weight is None
        True
        """
        call = _Call(
            self,
            _Layer(hidden, weight, bias),
            {"targets": targets, "sample_weight": sample_weight, "mask": mask},
            denominator,
            with_stats,
        )
        call.set_outputs(need, out)
        value = call.run()
        return (value, call.grads, call.stats) if with_stats else (value, call.grads)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __repr__(self) -> str:
        memory = f", max_memory={self.max_memory}" if self.max_memory != DEFAULT_MEMORY else ""
        return f"{type(self).__name__}({self.loss!r}{memory})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.loss == other.loss and self.max_memory == other.max_memory

    def __hash__(self) -> int:
        return hash((type(self), self.loss, self.max_memory))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.loss, self.max_memory)

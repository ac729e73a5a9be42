"""The losses of Dask arrays: logits that are larger than memory, or than a machine.

Before::

    loss, grad = sl.softmax_ce.value_and_grad(logits, targets)

After, with Dask arrays of any chunks::

    from stableloss.adapters.dask import DaskLoss
    loss, grad = DaskLoss(sl.softmax_ce).value_and_grad(logits, targets)

Both are Dask arrays, and nothing is computed before ``compute``. Chunks of rows have the mean of all rows;
for the softmax losses classes may be in chunks too, of which each gives a few sums per row to the others
(see `stableloss.merge`), and never its logits. It works in threads, in processes and on a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import delayed

from stableloss import _arrays
from stableloss.linear import NAMES, LinearGrads, LinearLoss, _gradient_dtype, _is_single
from stableloss.losses import _Loss, _Softmax
from stableloss.shards import Part, inputs_of, merge

__all__ = ["DaskLoss"]

Block = dict[str, Any]


# ---- what workers do ------------------------------------------------------------------------------


def _divisor(loss: _Loss, block: Block, ndim: int, k: int) -> float:
    """What a mean divides by, of one chunk of rows, by its targets."""
    targets, axis = block["targets"], loss._axis % ndim
    rows = np.shape(targets) if np.ndim(targets) < ndim else _arrays.without(np.shape(targets), axis)
    shape = (*rows[:axis], k, *rows[axis:])
    if isinstance(loss, _Softmax) and np.ndim(targets) == ndim:
        targets = np.broadcast_to(0.0, shape)  # soft ones have no part in it, and may be those of a shard
    return loss.divisor(shape, targets, **_weights(block))


def _weights(block: Block) -> Block:
    return {name: block[name] for name in ("sample_weight", "mask") if name in block}


def _options(loss: _Loss, denominator: float | None) -> Block:
    return {} if denominator is None else {"denominator": denominator}


def _total(values: Iterable[float]) -> float:
    values = list(values)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond the largest number, or inf - inf
        return float(sum(values))


def _value(loss: _Loss, logits: np.ndarray, block: Block, denominator: float | None) -> Any:
    return loss(logits, block["targets"], **_weights(block), **_options(loss, denominator))


def _value_and_grad(loss: _Loss, logits: np.ndarray, block: Block, denominator: float | None) -> Any:
    return loss.value_and_grad(logits, block["targets"], **_weights(block), **_options(loss, denominator))


def _maximum(logits: np.ndarray, axis: int) -> np.ndarray:
    """NaN loses: it is found by its class."""
    return np.fmax.reduce(logits, axis=axis, initial=-np.inf)


def _largest(maxima: list[np.ndarray]) -> np.ndarray:
    return np.maximum.reduce(maxima)


def _partial(
    loss: _Softmax, logits: np.ndarray, block: Block, first: int, k: int, maximum: np.ndarray
) -> np.ndarray:
    part = loss.partial(logits, block["targets"], first, k, maximum=maximum, **_weights(block))
    return part.array


def _merge(parts: list[np.ndarray]) -> np.ndarray:
    return merge(Part(array) for array in parts).array


def _finish(
    loss: _Softmax,
    logits: np.ndarray,
    block: Block,
    first: int,
    k: int,
    whole: np.ndarray,
    denominator: float | None,
) -> Any:
    """Value and gradient of a shard, whose part has done its work elsewhere."""
    weights = block.get("sample_weight"), block.get("mask")
    inputs = inputs_of(loss, logits, block["targets"], first, k, None, *weights)
    return loss.finish(Part.of(whole, inputs), Part(whole), **_options(loss, denominator))


def _finish_value(
    loss: _Softmax, maximum: np.ndarray, block: Block, k: int, whole: np.ndarray, denominator: float | None
) -> Any:
    """The value alone, by a shard without classes."""
    axis = loss._axis % (maximum.ndim + 1)
    nothing = np.expand_dims(maximum, axis).take([], axis)
    if np.ndim(block["targets"]) == nothing.ndim:
        block = block | {"targets": nothing}
    return _finish(loss, nothing, block, 0, k, whole, denominator)[0]


def _linear(
    head: LinearLoss, inputs: list[Any], block: Block, denominator: float | None, need: tuple[str, ...]
) -> Any:
    hidden, weight, bias = inputs
    options = _weights(block) | _options(head.loss, denominator)
    if not need:
        return head(hidden, weight, block["targets"], bias, **options), LinearGrads()
    return head.value_and_grad(hidden, weight, block["targets"], bias, need=need, **options)


def _loss_of(results: Any) -> Any:
    return results[0]


def _grad_of(results: Any, name: str | None = None) -> Any:
    return results[1] if name is None else getattr(results[1], name)


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a + b


# ---- graphs ---------------------------------------------------------------------------------------


def _lazy(function: Any, *arguments: Any) -> Any:
    return delayed(function, pure=False)(*arguments)


def _sum_of_arrays(values: list[Any]) -> Any:
    """A tree, so that few of them are in memory at a time."""
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = [_lazy(_add, *pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return values[0]


def _of_blocks(blocks: np.ndarray, chunks: Any, dtype: np.dtype) -> Any:
    """The array that consists of blocks."""
    for index in np.ndindex(blocks.shape):
        sizes = tuple(lengths[i] for lengths, i in zip(chunks, index, strict=True))
        blocks[index] = da.from_delayed(blocks[index], sizes, dtype)
    return da.block(blocks.tolist())


def _dask_array(value: Any) -> Any:
    return value if isinstance(value, da.Array) else da.from_array(np.asarray(value), chunks=-1)


class _Rows:
    """The rows of logits, in chunks, and what a loss is called with beside the logits."""

    def __init__(self, loss: _Loss, chunks: tuple[Any, ...], given: dict[str, Any]) -> None:
        self.loss, self.chunks, self.axis = loss, chunks, loss._axis % len(chunks)
        self.row_chunks: tuple[Any, ...] = _arrays.without(chunks, self.axis)
        self.k = sum(chunks[self.axis])
        self.blocks = {
            name: self.aligned(name, _dask_array(value)).to_delayed()
            for name, value in given.items()
            if value is not None
        }

    def aligned(self, name: str, array: Any) -> Any:
        """An array in the chunks of the logits, of the rows, or of the first of their dimensions."""
        whole = array.ndim == len(self.chunks)
        wanted = self.chunks if whole else self.row_chunks[: array.ndim]
        if any(math.isnan(n) for lengths in (*wanted, *array.chunks) for n in lengths):
            numblocks = tuple(len(lengths) for lengths in wanted)
            if array.numblocks != numblocks:
                raise ValueError(
                    f"{name} has {array.numblocks} chunks where the logits have {numblocks}, of lengths that "
                    "are not known: call compute_chunk_sizes() first"
                )
            return array
        shape = tuple(map(sum, wanted))
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape} where the chunked logits need {shape}")
        return array.rechunk(wanted)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return np.ndindex(*(len(lengths) for lengths in self.row_chunks))

    def place(self, rows: tuple[int, ...], shard: int = 0) -> tuple[int, ...]:
        return (*rows[: self.axis], shard, *rows[self.axis :])

    def block(self, rows: tuple[int, ...], shard: int = 0) -> Block:
        """What belongs to a chunk of the logits."""
        place = self.place(rows, shard)
        return {
            name: blocks[place if blocks.ndim == len(place) else rows[: blocks.ndim]]
            for name, blocks in self.blocks.items()
        }

    def denominator(self, given: float | None) -> Any:
        if given is not None:
            return _arrays.require_denominator(given, self.loss.reduction)
        if self.loss.reduction not in ("mean", "batchmean"):
            return None
        ndim = len(self.chunks)
        return _lazy(_total, [_lazy(_divisor, self.loss, self.block(rows), ndim, self.k) for rows in self])

    def value(self, values: list[Any], dtype: np.dtype) -> Any:
        """The loss of all rows from those of the chunks."""
        if self.loss.reduction != "none":
            return da.from_delayed(_lazy(_total, values), (), np.float64)
        chunks = self.row_chunks if self.loss._rowwise else self.chunks
        blocks = np.empty(tuple(map(len, chunks)), object)
        for rows, value in zip(self, values, strict=True):
            blocks[rows if self.loss._rowwise else self.place(rows)] = value
        return _of_blocks(blocks, chunks, dtype) if blocks.ndim else da.from_delayed(values[0], (), dtype)


def _by_rows(rows: _Rows, logits: Any, denominator: Any, wants_grad: bool) -> tuple[list[Any], Any]:
    """Each chunk of rows is a call."""
    blocks, values = logits.to_delayed(), []
    grads = np.empty(blocks.shape, object)
    for at in rows:
        call = rows.loss, blocks[rows.place(at)], rows.block(at), denominator
        if wants_grad:
            results = _lazy(_value_and_grad, *call)
            values.append(_lazy(_loss_of, results))
            grads[rows.place(at)] = _lazy(_grad_of, results)
        else:
            values.append(_lazy(_value, *call))
    return values, grads


def _by_shards(rows: _Rows, logits: Any, denominator: Any, wants_grad: bool) -> tuple[list[Any], Any]:
    """Each chunk of classes is a shard."""
    loss, k, blocks, values = rows.loss, rows.k, logits.to_delayed(), []
    lengths = logits.chunks[rows.axis]
    firsts = [sum(lengths[:i]) for i in range(len(lengths))]
    grads = np.empty(blocks.shape, object)
    for at in rows:
        shards = [(blocks[rows.place(at, i)], rows.block(at, i), first) for i, first in enumerate(firsts)]
        maximum = _lazy(_largest, [_lazy(_maximum, shard, rows.axis) for shard, _, _ in shards])
        parts = [_lazy(_partial, loss, shard, block, first, k, maximum) for shard, block, first in shards]
        whole = _lazy(_merge, parts)
        values.append(_lazy(_finish_value, loss, maximum, shards[0][1], k, whole, denominator))
        if wants_grad:
            for i, (shard, block, first) in enumerate(shards):
                finished = _lazy(_finish, loss, shard, block, first, k, whole, denominator)
                grads[rows.place(at, i)] = _lazy(_grad_of, finished)
    return values, grads


# ---- the public class -----------------------------------------------------------------------------


class DaskLoss:
    """A loss of Dask arrays.

    Parameters
    ----------
    loss : loss object or LinearLoss
        With all its options, but side outputs. A `LinearLoss` takes hidden values in chunks of rows, and
        weight and bias as one array each.

    Notes
    -----
    With classes in one chunk, each chunk of the logits is a call of the loss with the divisor of all rows.
    With several, which the softmax losses have, the maximum of each row is exchanged first, and then a part
    of each chunk (see `SoftmaxCE.partial`): 24 bytes per 2048 classes of a row and 72 more. Chunks of a
    multiple of 2048 classes give the gradient the bits of a call with all the classes; the loss is a sum of
    those of the chunks of rows. The divisor of a mean needs the targets, weights and masks of all chunks
    before any gradient; where they are made from the same data as the logits, `denominator` spares keeping
    that. The outputs of sigmoid losses are brought into one chunk.

    See Also
    --------
    stableloss.adapters.mpi.ClassParallel : the same among the ranks of MPI.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import stableloss as sl
    >>> from stableloss.adapters.dask import DaskLoss
    >>> logits = da.from_array(np.zeros((4, 6)), chunks=(2, 3))
    >>> targets = da.from_array(np.array([0, 1, 2, 5]), chunks=2)
    >>> loss, grad = DaskLoss(sl.softmax_ce).value_and_grad(logits, targets)
    >>> grad.chunks
    ((2, 2), (3, 3))
    >>> round(float(loss.compute()), 6)
    1.791759
    """

    __slots__ = ("loss",)

    loss: Any

    def __init__(self, loss: _Loss | LinearLoss) -> None:
        if not isinstance(loss, (_Loss, LinearLoss)):
            raise TypeError(f"loss must be a loss object or a LinearLoss, not {loss!r}")
        self.loss = loss

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.loss!r})"

    def __call__(
        self, *arrays: Any, sample_weight: Any = None, mask: Any = None, denominator: float | None = None
    ) -> Any:
        """Loss of logits against targets.

        Parameters
        ----------
        *arrays : dask.array.Array or array_like
            Logits and targets, as for the loss; for a `LinearLoss` hidden values, weight, targets and, if
            there is one, bias.
        sample_weight, mask, denominator : array_like, float
            As for the loss.

        Returns
        -------
        dask.array.Array
            Without dimensions; with reduction "none" one number per row or element.
        """
        if isinstance(self.loss, LinearLoss):
            return self._linear(arrays, sample_weight, mask, denominator, ())[0]
        return self._call(arrays, sample_weight, mask, denominator, False)[0]

    def value_and_grad(
        self,
        *arrays: Any,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: float | None = None,
        need: tuple[str, ...] = NAMES,
    ) -> Any:
        """Loss, and its gradient by the logits or by the inputs of a `LinearLoss`.

        Parameters
        ----------
        *arrays, sample_weight, mask, denominator : array_like, float
            As for calling the object.
        need : tuple of {"hidden", "weight", "bias"}, default: all three
            The gradients of a `LinearLoss` to compute.

        Returns
        -------
        loss : dask.array.Array
            As from calling the object.
        grad : dask.array.Array or LinearGrads of dask.array.Array
            In the chunks of the logits; of a `LinearLoss`, that by `hidden` in its chunks, and those by
            weight and bias, which are sums over all rows, in one chunk each.

        Raises
        ------
        TypeError, ValueError
            As from the loss, some when computed.
        """
        if isinstance(self.loss, LinearLoss):
            return self._linear(arrays, sample_weight, mask, denominator, need)
        return self._call(arrays, sample_weight, mask, denominator, True)

    def _call(
        self, arrays: tuple[Any, ...], weight: Any, mask: Any, denominator: Any, wants_grad: bool
    ) -> Any:
        loss = self.loss
        if len(arrays) != 2:
            raise TypeError(f"{self!r} takes logits and targets, not {len(arrays)} arrays")
        logits = _dask_array(arrays[0])
        if logits.dtype.kind in "biu":
            logits = logits.astype(np.float64)
        if not -logits.ndim <= loss._axis < logits.ndim:
            raise ValueError(f"logits of shape {logits.shape} have no axis {loss._axis}")
        axis = loss._axis % logits.ndim
        if not isinstance(loss, _Softmax) or loss._options.get("from_probabilities"):
            logits = logits.rechunk({axis: -1})
        rows = _Rows(loss, logits.chunks, {"targets": arrays[1], "sample_weight": weight, "mask": mask})
        divisor = rows.denominator(denominator)
        by = _by_shards if logits.numblocks[axis] > 1 else _by_rows
        values, grads = by(rows, logits, divisor, wants_grad)
        double = logits.dtype == np.float64
        value = rows.value(values, np.dtype(np.float64 if double else np.float32))
        return value, _of_blocks(grads, logits.chunks, logits.dtype) if wants_grad else None

    def _linear(self, arrays: tuple[Any, ...], weight: Any, mask: Any, denominator: Any, need: Any) -> Any:
        head = self.loss
        if not 3 <= len(arrays) <= 4:
            raise TypeError(f"{self!r} takes hidden, weight, targets and bias, not {len(arrays)} arrays")
        hidden, matrix, targets, bias = (*arrays, None)[:4]
        hidden = _dask_array(hidden).rechunk({np.ndim(hidden) - 1: -1})
        parameters: list[Any] = [
            None if array is None else _dask_array(array).rechunk(-1) for array in (matrix, bias)
        ]
        pieces = [None if array is None else array.to_delayed().item() for array in parameters]
        chunks = (*hidden.chunks[:-1], (parameters[0].shape[0],))
        rows = _Rows(head.loss, chunks, {"targets": targets, "sample_weight": weight, "mask": mask})
        divisor = rows.denominator(denominator)
        blocks, need = hidden.to_delayed(), tuple(need)
        results = [
            _lazy(_linear, head, [blocks[(*at, 0)], *pieces], rows.block(at), divisor, need) for at in rows
        ]
        given = dict(zip(NAMES, (hidden, *parameters), strict=True))
        single = all(_is_single(array.dtype) for array in given.values() if array is not None)
        value = rows.value(
            [_lazy(_loss_of, r) for r in results], np.dtype(np.float32 if single else np.float64)
        )
        grads = {}
        for name in need:
            if given[name] is not None:
                dtype = _gradient_dtype(name, given[name].dtype)
                parts = [_lazy(_grad_of, result, name) for result in results]
                if name == "hidden":
                    shape = np.empty(blocks.shape, object)
                    shape.ravel()[:] = parts
                    grads[name] = _of_blocks(shape, hidden.chunks, dtype)
                else:
                    grads[name] = da.from_delayed(_sum_of_arrays(parts), given[name].shape, dtype)
        return value, LinearGrads(**grads)

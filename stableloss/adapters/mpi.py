"""The losses among the ranks of MPI: classes, or rows, spread over processes and machines.

Before, on one machine::

    loss, grad = sl.softmax_ce.value_and_grad(logits, targets)

After, with an mpi4py communicator, on every rank::

    from stableloss.adapters.mpi import ClassParallel, RowParallel
    loss, grad = ClassParallel(sl.softmax_ce, comm).value_and_grad(shard, targets, first_class, n_classes)
    loss, grad = RowParallel(sl.softmax_ce, comm).value_and_grad(logits, targets)

With `ClassParallel` each rank has some of the classes of all rows: a last layer that is split by its
outputs. With `RowParallel` each has all classes of some rows, as in data-parallel training, and the mean is
that over all ranks. Both are collective: every rank of the communicator makes the call. If one rank's
arguments are refused, all ranks raise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stableloss import _arrays
from stableloss.losses import SoftmaxMSE, Value, _Loss, _Softmax
from stableloss.shards import PIECE, Part, merge

__all__ = ["ClassParallel", "RowParallel"]


def _agree(comm: Any, error: Exception | None, *numbers: float) -> np.ndarray:
    """Numbers of every rank, a line each; raises on all ranks where one has failed."""
    gathered = np.empty((comm.Get_size(), 1 + len(numbers)))
    comm.Allgather(np.array([error is not None, *numbers], np.float64), gathered)
    if error is not None:
        raise error
    failed = np.flatnonzero(gathered[:, 0])
    if failed.size:
        raise RuntimeError(f"the call was refused on rank {failed[0]}, which says why")
    return gathered[:, 1:]


def _total(numbers: np.ndarray) -> float:
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # beyond the largest number, or inf - inf
        return float(sum(numbers))


class _Parallel:
    __slots__ = ("comm", "loss")

    loss: Any

    def __init__(self, loss: _Loss, comm: Any) -> None:
        self.loss, self.comm = loss, comm

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.loss!r}, {self.comm!r})"


class ClassParallel(_Parallel):
    """A softmax loss of rows whose classes are spread over the ranks.

    Parameters
    ----------
    loss : SoftmaxCE or SoftmaxMSE
        With all the options that shards have (see `SoftmaxCE.partial`).
    comm : mpi4py.MPI.Comm
        The ranks that have the classes. Each row is on all of them.

    Notes
    -----
    A call exchanges 24 bytes per rank, then the maximum of each row (one all-reduce, 8 bytes a row), then
    the parts (one all-gather): for class indices 24 bytes per 2048 classes of a row and 72 per rank, for
    131072 classes on four ranks 1.8 kB a row where its logits take 512 kB in float32. Where the ranks have
    multiples of 2048 classes, loss and gradient have the bits of one process with all of them, with few
    exceptions (see `SoftmaxCE.partial`).

    See Also
    --------
    RowParallel : rows on different ranks.
    stableloss.merge : what it is made of.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> from mpi4py import MPI
    >>> from stableloss.adapters.mpi import ClassParallel
    >>> loss = ClassParallel(sl.softmax_ce, MPI.COMM_SELF)
    >>> value, grad = loss.value_and_grad(np.array([[0.0, 0.0, 40.0]]), [2], 0, 3)
    >>> value
    8.496708510583178e-18
    """

    __slots__ = ()

    def __init__(self, loss: _Softmax, comm: Any) -> None:
        if not isinstance(loss, _Softmax):
            raise TypeError(f"loss must be a softmax loss, such as softmax_ce, not {loss!r}")
        super().__init__(loss, comm)

    def value_and_grad(
        self,
        shard: Any,
        targets: Any,
        first_class: int,
        n_classes: int,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: float | None = None,
        out: np.ndarray | None = None,
    ) -> tuple[Value, np.ndarray]:
        """Loss of the whole rows, and its gradient by this rank's logits.

        Parameters
        ----------
        shard : array_like
            Logits of the classes ``first_class ... first_class + m - 1``; m may be 0.
        targets : array_like
            Class indices among all the classes, the same on every rank; or the shard's probabilities.
        first_class, n_classes : int
            The first class of the shard, and the number of all classes.
        sample_weight, mask : array_like, optional
            One per row, the same on every rank.
        denominator, out : float, ndarray
            As for the loss.

        Returns
        -------
        loss : float or ndarray
            The same on every rank: not to be added up.
        grad : ndarray
            Of the shape of the shard.

        Raises
        ------
        TypeError, ValueError
            As from the loss, where an argument is refused.
        RuntimeError
            On the other ranks then.
        """
        options = {"sample_weight": sample_weight, "mask": mask}
        error: Exception | None = None
        z = np.empty((0, 0))
        rows: tuple[int, ...] = ()
        try:
            z = _floating(shard)
            rows = self._check(z, targets, first_class, n_classes, options)
            if denominator is not None:
                _arrays.require_denominator(denominator, self.loss.reduction)
            if out is not None:
                _arrays.require_out(out, z.shape, z.dtype, "out", widens=True)
        except (TypeError, ValueError) as refused:
            error = refused
        axis = self.loss._axis
        pieces = -(-z.shape[axis] // PIECE) if error is None else 0
        found = _agree(self.comm, error, math.prod(rows), pieces)
        counts = found[:, 0]
        if counts.min() != counts.max():
            raise ValueError(
                f"ranks have {', '.join(f'{n:g}' for n in counts)} rows, but must have the same ones"
            )
        part = self.loss.partial(
            z, targets, first_class, n_classes, maximum=self._maximum(z, axis, rows), **options
        )
        whole = self._gather(part, int(found[:, 1].max()))
        given = {} if denominator is None else {"denominator": denominator}
        return self.loss.finish(part, whole, out=out, **given)

    def _check(
        self, z: np.ndarray, targets: Any, first: int, n: int, options: dict[str, Any]
    ) -> tuple[int, ...]:
        """Refuse what would be refused later, where the other ranks wait; returns the shape of the rows."""
        axis = self.loss._axis
        if not -z.ndim <= axis < z.ndim:
            raise ValueError(f"logits of shape {z.shape} have no axis {axis}")
        index = axis % z.ndim
        nothing = z[(slice(None),) * index + (slice(0, 0),)]
        soft = np.ndim(targets) == z.ndim
        if soft and z.shape[axis]:
            SoftmaxMSE(axis=axis).divisor(z.shape, targets, **options)
        self.loss.partial(nothing, nothing if soft else targets, first, n, **options)
        self.loss.partial(nothing, nothing if soft else targets, first + z.shape[axis], n, **options)
        return _arrays.without(z.shape, index)

    def _maximum(self, z: np.ndarray, axis: int, rows: tuple[int, ...]) -> np.ndarray:
        """Of the whole rows. NaN loses, whose order MPI leaves open: it is found by its class."""
        from mpi4py import MPI

        own = np.fmax.reduce(z, axis=axis, initial=-np.inf)
        maximum = np.empty(rows)
        self.comm.Allreduce(np.ascontiguousarray(own, np.float64), maximum, op=MPI.MAX)
        return maximum

    def _gather(self, part: Part, pieces: int) -> Part:
        mine = np.ascontiguousarray(part.padded(pieces))
        arrays = np.empty((self.comm.Get_size(), *mine.shape))
        self.comm.Allgather(mine, arrays)
        parts = [Part(array) for array in arrays]
        return merge(sorted(parts, key=lambda p: (p.first_class, p.stop_class)))


class RowParallel(_Parallel):
    """A loss of rows that are spread over the ranks.

    Parameters
    ----------
    loss : loss object
        With all its options. For reductions "mean" and "batchmean" the divisor is that of all ranks'
        rows, and "sum" is a sum over all ranks; "none" keeps each rank's own.
    comm : mpi4py.MPI.Comm
        The ranks that have the rows. A rank may have none.

    Notes
    -----
    A call exchanges 32 bytes per rank, however many rows and classes there are. The gradients of the logits
    have the bits of one process with all the rows; what is made from them, such as the gradient of a
    weight, adds up over the ranks to what that process would have.

    See Also
    --------
    ClassParallel : classes on different ranks.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> from mpi4py import MPI
    >>> from stableloss.adapters.mpi import RowParallel
    >>> loss = RowParallel(sl.softmax_ce, MPI.COMM_SELF)
    >>> loss.value_and_grad(np.array([[0.0, 0.0, 40.0]]), [2])[0]
    8.496708510583178e-18
    """

    __slots__ = ()

    def __init__(self, loss: _Loss, comm: Any) -> None:
        if not isinstance(loss, _Loss):
            raise TypeError(f"loss must be a loss object, such as softmax_ce, not {loss!r}")
        super().__init__(loss, comm)

    def value_and_grad(
        self,
        logits: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        denominator: float | None = None,
        out: np.ndarray | None = None,
    ) -> tuple[Value, np.ndarray]:
        """Loss of all ranks' rows, and its gradient by this rank's logits.

        Parameters
        ----------
        logits, targets : array_like
            Of this rank's rows, as for the loss.
        sample_weight, mask : array_like, optional
            Likewise.
        denominator : float, optional
            What to divide by in place of the divisor of all rows, the same on every rank.
        out : ndarray, optional
            Where to write the gradient.

        Returns
        -------
        loss : float or ndarray
            Of all rows, the same on every rank; with reduction "none" one number for each of this rank's
            rows.
        grad : ndarray
            Of the shape of `logits`.

        Raises
        ------
        TypeError, ValueError
            As from the loss, where an argument is refused.
        RuntimeError
            On the other ranks then.
        """
        options = {"sample_weight": sample_weight, "mask": mask}
        mean = self.loss.reduction in ("mean", "batchmean")
        error: Exception | None = None
        if mean and denominator is None:
            divisor = 0.0
            try:
                divisor = self.loss.divisor(np.shape(logits), targets, **options)
            except (TypeError, ValueError) as refused:
                error = refused
            denominator = _total(_agree(self.comm, error, divisor)[:, 0])
        given = {} if denominator is None else {"denominator": denominator}
        value: Value = math.nan
        grad = np.empty(0)
        try:
            value, grad = self.loss.value_and_grad(logits, targets, out=out, **options, **given)
        except (TypeError, ValueError) as refused:
            error = refused
        if self.loss.reduction == "none":
            _agree(self.comm, error)
            return value, grad
        return _total(_agree(self.comm, error, float(value))[:, 0]), grad


def _floating(logits: Any) -> np.ndarray:
    array = np.asarray(logits)
    return array.astype(np.float64) if array.dtype.kind in "biu" else array

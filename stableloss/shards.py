"""Losses of rows whose classes are in shards: what is known of a shard, and of several that are merged.

A part is an array of float64 with one line per row: a head, and for each 2048 classes sums of the
exponentials (see `_kernels/_shards.pxi`). Merging puts the sums of shards one after the other, and adds
nothing up: it is exact, and so is whatever grouping the parts are merged in.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from stableloss import _arrays

__all__ = ["Part", "merge"]

# columns of a part, as in `_kernels/_shards.pxi`
FIRST, STOP, CLASSES, WIDTH, MAXIMUM, OWN, TARGET, OWNED, LIVE, PEAK, PEAK_PIECE = range(11)
HEAD, PEAKED_HEAD, PEAKED_WIDTH = 9, 15, 5
PIECE = 2048


# ---- what a part is made from ---------------------------------------------------------------------


class Inputs(NamedTuple):
    """The arguments of a call of `partial`, for `finish` to go through the shard again."""

    loss: Any
    logits: Any
    targets: Any
    first_class: int
    n_classes: int
    maximum: Any
    sample_weight: Any
    mask: Any

    def require_classes(self, k: int) -> None:
        if self.first_class < 0 or self.first_class + k > self.n_classes:
            raise ValueError(
                f"first_class is {self.first_class}, but a shard of {k} classes from there is not within "
                f"n_classes={self.n_classes}"
            )


def inputs_of(
    loss: Any, logits: Any, targets: Any, first: Any, n: Any, maximum: Any, weight: Any, mask: Any
) -> Inputs:
    first_class, n_classes = _arrays.index("first_class", first), _arrays.index("n_classes", n)
    if n_classes < 1:
        raise ValueError(f"n_classes is {n_classes}, not the number of all classes")
    return Inputs(loss, logits, targets, first_class, n_classes, maximum, weight, mask)


def refuse_option(loss: Any, hard: bool) -> None:
    """What shards of the classes can not give after one exchange."""
    options = loss._options
    if options.get("from_probabilities"):
        raise ValueError(f"{loss!r} takes probabilities, but shards are of logits: pass them as log(p)")
    if options.get("focal_gamma") and (not hard or options.get("label_smoothing")):
        targets = "smoothed" if hard else "soft"
        raise ValueError(
            f"{loss!r} with {targets} targets needs the probability of every class, and with it another "
            "exchange between the shards: use class indices without label_smoothing, or shards of the rows"
        )


# ---- parts ----------------------------------------------------------------------------------------


class Part:
    """What is known of a shard of the classes, or of several that have been merged.

    It is made by a loss's `partial` and by `merge`. The part that `partial` returns refers to its shard as
    well, and `finish` needs it there; pickling, merging and `array` carry the sums alone.

    Parameters
    ----------
    array : ndarray of float64, shape (n, f)
        The array of another part, as received from where it was made.

    Attributes
    ----------
    array : ndarray of float64, shape (n, f)
        The sums of each of the n rows, contiguous, for collectives to send. Of m classes in one shard f is
        9 to 15 + 3 ceil(m / 2048) for class indices, and up to 9 + 20 ceil(m / 2048) for other targets and
        options; of several shards, the columns of their pieces add up.
    first_class, stop_class : int
        Its classes are first_class ... stop_class - 1 (0 and 0 where there are no rows).

    See Also
    --------
    merge : several parts as one.
    SoftmaxCE.partial : where parts come from.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> logits, targets = np.zeros((2, 6)), [0, 5]
    >>> sent = [sl.softmax_ce.partial(logits[:, a : a + 3], targets, a, 6).array for a in (0, 3)]
    >>> whole = sl.merge(sl.Part(array) for array in sent)
    >>> whole.first_class, whole.stop_class
    (0, 6)
    """

    __slots__ = ("_inputs", "array")

    array: np.ndarray
    _inputs: Inputs | None

    def __init__(self, array: np.ndarray) -> None:
        numbers = np.ascontiguousarray(array)
        if numbers.ndim != 2 or numbers.dtype != np.float64:
            raise ValueError(
                f"array has shape {numbers.shape} and dtype {numbers.dtype}, not those of a part's: (n, f), "
                "float64"
            )
        n, columns = numbers.shape
        if n:
            width = numbers[0, WIDTH] if columns > WIDTH else 0
            if not (3 <= width <= 20 and columns >= _head(width) and (columns - _head(width)) % width == 0):
                raise ValueError(f"array of shape {numbers.shape} is not that of a part")
        self.array, self._inputs = numbers, None

    @classmethod
    def of(cls, array: np.ndarray, inputs: Inputs) -> "Part":
        """The part of a shard, from the kernels."""
        if inputs.maximum is not None:
            above = np.flatnonzero(array[:, OWN] > array[:, MAXIMUM])
            if above.size:
                row = above[0]
                place = _arrays.place_of(int(row), np.shape(inputs.maximum))
                raise ValueError(
                    f"maximum at {place} is below the shard's own: it has to be that of the raw logits of "
                    "the whole row, from all shards"
                )
        part = cls(array)
        part._inputs = inputs
        return part

    @property
    def first_class(self) -> int:
        return int(self.array[0, FIRST]) if len(self.array) else 0

    @property
    def stop_class(self) -> int:
        return int(self.array[0, STOP]) if len(self.array) else 0

    def inputs_for(self, loss: Any, whole: "Part") -> Inputs:
        """The shard's inputs, if this is its part, of that loss, and `whole` is of all the classes."""
        inputs = self._inputs
        if inputs is None:
            raise ValueError(
                "part has no shard: it has been merged, pickled or made from an array; finish takes the part "
                "that partial returned"
            )
        if loss != inputs.loss:
            raise ValueError(f"part was made by {inputs.loss!r}, not by {loss!r}")
        if not isinstance(whole, Part):
            raise TypeError(f"whole must be a Part, as merge returns it, not {type(whole).__name__}")
        if len(whole.array) != len(self.array):
            raise ValueError(f"whole has {len(whole.array)} rows where part has {len(self.array)}")
        if len(self.array):
            own, head = self.array[0], whole.array[0]
            if own[WIDTH] != head[WIDTH]:
                raise ValueError("part and whole come from losses or targets of different kinds")
            if head[FIRST] != 0 or head[STOP] != inputs.n_classes or head[CLASSES] != inputs.n_classes:
                raise ValueError(
                    f"whole has the classes {int(head[FIRST])} to {int(head[STOP])} of {int(head[CLASSES])}, "
                    f"not all {inputs.n_classes}: merge the parts of all shards"
                )
        return inputs

    def padded(self, pieces: int) -> np.ndarray:
        """The array with so many pieces, of which the last ones add nothing: for collectives of one size."""
        n, columns = self.array.shape
        if n == 0:
            return self.array
        width = int(self.array[0, WIDTH])
        room = np.zeros((n, _head(width) + pieces * width))
        room[:, :columns] = self.array
        room[:, columns::width] = -np.inf
        return room

    def __repr__(self) -> str:
        n, columns = self.array.shape
        return f"<Part of classes {self.first_class} to {self.stop_class}, {n} rows, {columns} numbers each>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (self.array,)


def _head(width: float) -> int:
    return PEAKED_HEAD if width == PEAKED_WIDTH else HEAD


def _refuse_order(index: int, stop: int, first: int) -> NoReturn:
    what = "leave out classes" if stop < first else "overlap, or are not in the order of their classes,"
    raise ValueError(
        f"parts {what} between {index - 1} and {index}: one ends before class {stop}, the next begins at "
        f"{first}"
    )


def _merged_head(arrays: list[np.ndarray], pieces: list[int], width: int) -> np.ndarray:
    head = arrays[0][:, : _head(width)].copy()
    before = 0
    for array, count in zip(arrays[1:], pieces[:-1], strict=True):
        before += count
        mine = array[:, OWNED] > 0
        head[mine, TARGET] = array[mine, TARGET]
        head[:, OWNED] += array[:, OWNED]
        head[:, LIVE] += array[:, LIVE]
        if width == PEAKED_WIDTH:
            same = (array[:, MAXIMUM] == head[:, MAXIMUM]) & (head[:, PEAK] < 0)
            new = same | (array[:, MAXIMUM] > head[:, MAXIMUM])
            head[new, PEAK:] = array[new, PEAK : _head(width)]
            head[new, PEAK_PIECE] += before
        head[:, MAXIMUM] = np.maximum(head[:, MAXIMUM], array[:, MAXIMUM])
        head[:, OWN] = np.fmax(head[:, OWN], array[:, OWN])
    head[:, STOP] = arrays[-1][0, STOP]
    return head


def merge(parts: Iterable[Part]) -> Part:
    """What is known of several shards together.

    Parameters
    ----------
    parts : iterable of Part
        Of the same rows, in the order of their classes, from one loss. Merged parts may be merged again: the
        result is the same, to the last bit, in whatever grouping.

    Returns
    -------
    Part
        Of their classes together, without a shard. Once it has all of them, each shard's `finish` takes it.

    Raises
    ------
    TypeError
        If something else than parts is merged.
    ValueError
        If there are none, their rows or losses differ, or their classes do not follow each other.

    See Also
    --------
    SoftmaxCE.partial, SoftmaxCE.finish : what comes before and after.

    Examples
    --------
    >>> import numpy as np
    >>> import stableloss as sl
    >>> logits = np.array([[2.0, 1.0, 0.0, 3.0]])
    >>> shards = logits[:, :2], logits[:, 2:]
    >>> parts = [sl.softmax_ce.partial(z, [3], 2 * i, 4) for i, z in enumerate(shards)]
    >>> whole = sl.merge(parts)
    >>> value, grad = sl.softmax_ce.finish(parts[1], whole)
    >>> round(value, 6), grad.round(6)
    (0.44019, array([[ 0.032059, -0.356086]]))
    >>> round(sl.softmax_ce(logits, [3]), 6)
    0.44019
    """
    given = list(parts)
    for part in given:
        if not isinstance(part, Part):
            raise TypeError(f"parts must be Part objects, not {type(part).__name__}")
    if not given:
        raise ValueError("there are no parts to merge")
    arrays = [part.array for part in given]
    rows = [len(array) for array in arrays]
    if min(rows) != max(rows):
        raise ValueError(f"parts have {', '.join(map(str, rows))} rows, but must be of the same rows")
    if rows[0] == 0:
        return Part(arrays[0])
    width = int(arrays[0][0, WIDTH])
    for i, array in enumerate(arrays[1:], 1):
        if array[0, WIDTH] != width or array[0, CLASSES] != arrays[0][0, CLASSES]:
            raise ValueError(f"parts {i - 1} and {i} are of different losses, targets or numbers of classes")
        if array[0, FIRST] != arrays[i - 1][0, STOP]:
            _refuse_order(i, int(arrays[i - 1][0, STOP]), int(array[0, FIRST]))
    pieces = [(array.shape[1] - _head(width)) // width for array in arrays]
    head = _merged_head(arrays, pieces, width)
    return Part(np.hstack([head, *(array[:, _head(width) :] for array in arrays)]))

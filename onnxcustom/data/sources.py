"""What a stream reads: arrays, frames and batches that come from an iterable. Files: :mod:`.files`."""

from __future__ import annotations

import dataclasses
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxcustom.exceptions import InvalidDataError, OnnxCustomError

from .blocks import Block, Key
from .columns import Plan, Selection
from .fingerprints import hash_array, hash_rows
from .frames import UnfitError, as_array, column_getter, column_names, is_frame, slice_rows
from .naming import frame_index
from .owned import owned
from .sparse import SparseRows, is_sparse

__all__ = ["ArraySource", "Axes", "FrameSource", "IterableSource", "Part", "Source", "UnalignedError"]

# Parts of arrays: small enough to mix rows from everywhere, large enough to read at the speed of the disk.
_PART_BYTES = 2**18


#: Where the rows of arrays are that a user hands in: by place and number of dimensions; 0 where nothing is
#: said, and None for what is given once a batch.
Axes = Mapping[Key, Mapping[int, "int | None"]]


class UnalignedError(InvalidDataError):
    """Arrays of other lengths: their rows may be on other axes, which the model tells.

    Attributes
    ----------
    given : dict of Key to ndarray
        The arrays.
    """

    def __init__(self, message: str, given: dict[Key, np.ndarray]) -> None:
        super().__init__(message)
        self.given = given


class Part(NamedTuple):
    """Rows of a source that are read in one go, and in their order.

    Attributes
    ----------
    file : int
        Number of the file.
    start : int
        First row in that file.
    rows : int or None
        How many there are, if that is known before they are read.
    key : object
        What the source finds them by.
    """

    file: int
    start: int
    rows: int | None
    key: Any = None


class Source(ABC):
    """Rows that can be read again and again, part by part.

    Parameters
    ----------
    plan : Plan
        Which columns are read.
    """

    #: Whether rows can be read a second time.
    repeatable = True
    #: Where the rows of arrays are. Those of files and frames come first.
    axes: Axes = {}  # noqa: RUF012 - replaced, never changed

    _selection: Selection | None = None

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    def selection(self) -> Selection | None:
        """The columns that are read; None for arrays, and for batches before the first one is here."""
        return self._selection

    def in_order(self, names: Sequence[str]) -> Source:
        """The same rows with these columns for features, in this order; all of them are there."""
        made = object.__new__(type(self))  # copy.copy asks what would be pickled
        made.__dict__.update(vars(self))
        made.plan = self.plan.in_order(names)
        made._selection = made.plan.select(self._selection.names, self.name) if self._selection else None
        return made

    @property
    @abstractmethod
    def name(self) -> str:
        """What to call it in messages."""

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """The parts in the source's own order."""

    @abstractmethod
    def read(self, part: Part, rows: int, targets_only: bool = False) -> Iterator[Block]:
        """The rows of a part, in blocks of about so many."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """What data it is: text by part, the same from process to process."""

    def place(self, part: Part, row: int) -> str:
        """What to call a row of a part in messages."""
        return f"{self.name}, row {part.start + row}"


def ranges(rows: int, size: int) -> list[Part]:
    """Parts of `size` rows."""
    return [Part(0, start, min(size, rows - start)) for start in range(0, rows, size)]


# -- arrays -------------------------------------------------------------------------------------------


class ArraySource(Source):
    """Arrays in memory, or mapped into it: ``(X, y)`` or ``(X, y, sample_weight)``.

    Parameters
    ----------
    arrays : sequence
        X, an array or a dict of them, and perhaps y and the weights.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        super().__init__(Plan())
        if not 1 <= len(arrays) <= 3:
            raise InvalidDataError(
                f"A tuple of arrays holds X, y and perhaps sample_weight, not {len(arrays)} things."
            )
        self._given = _given(arrays, _ARRAYS)
        self._made: tuple[Axes, Block, list[Part]] | None = None
        counted = (a for key, a in self._given.items() if key == Key("X") or (a.ndim and key.role != "X"))
        sizes = [set(array.shape) for array in counted]
        if sizes and not set.intersection(*sizes):  # on whatever axes the rows are
            self._placed()

    def _placed(self) -> tuple[Block, list[Part]]:
        """The arrays with the rows first, and their parts."""
        if self._made is None or self._made[0] is not self.axes:
            block = _block(self._given, _ARRAYS, self.axes)
            size = sum(a.nbytes for a in block.arrays.values()) // max(1, len(block))
            parts = ranges(len(block), max(1, _PART_BYTES // max(1, size)))
            self._made = self.axes, block, parts
        return self._made[1:]

    @property
    def name(self) -> str:
        return "the arrays"

    def parts(self) -> Sequence[Part]:
        return self._placed()[1]

    def read(self, part: Part, rows: int, targets_only: bool = False) -> Iterator[Block]:
        block, _ = self._placed()
        if targets_only:
            block = Block({key: a for key, a in block.arrays.items() if key.role == "y"})
        assert part.rows is not None
        yield block[part.start : part.start + part.rows].map(_read)

    def fingerprint(self) -> dict[str, str]:
        return {str(key): hash_array(array) for key, array in self._given.items()}


def _read(array: np.ndarray) -> np.ndarray:
    """Rows in memory of their own; pages of a file that is mapped for reading only are given back."""
    mode, base = None, array
    while isinstance(base, np.ndarray) and base.base is not None:
        mode = getattr(base, "mode", mode)
        base = base.base
    if mode != "r" or not isinstance(base, mmap.mmap):
        return array
    made = np.array(array, subok=False)
    if hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
    return made


def _rows(data: Any) -> Any:
    return SparseRows(data) if is_sparse(data) else as_array(data)


_ARRAYS = "The arrays of the stream"


def _given(arrays: Sequence[Any], where: str) -> dict[Key, np.ndarray]:
    """X, y and weights as arrays."""
    made: dict[Key, np.ndarray] = {}
    for role, given in zip(("X", "y", "sample_weight"), arrays, strict=False):
        if given is None:
            continue
        if is_frame(given) and role == "X":
            raise InvalidDataError(f"{where}: give a frame as the source and name its columns with target=.")
        by_name = given.items() if isinstance(given, Mapping) and role != "sample_weight" else [(None, given)]
        for name, array in by_name:
            key = Key(role, None if name is None else str(name))
            try:
                made[key] = _rows(array)
            except (UnfitError, TypeError, ValueError, RuntimeError) as exc:
                several = "; several targets of a loss are a dict by name here" if role == "y" else ""
                hint = several if isinstance(array, (tuple, list)) else ""
                raise InvalidDataError(f"{where}: {key} is no array: {exc}{hint}") from exc
    if not any(key.role == "X" for key in made):
        raise InvalidDataError(f"{where}: there are no features.")
    return made


def _block(given: dict[Key, np.ndarray], where: str, axes: Axes) -> Block:
    """Arrays with their rows first; what is given once a batch is there for every row."""
    places = {key: axes.get(key, {}).get(array.ndim, 0) for key, array in given.items()}
    bare = [key for key, axis in places.items() if axis is not None and given[key].ndim == 0]
    if bare:
        raise UnalignedError(
            f"{where}: {bare[0]} is {given[bare[0]].tolist()!r}, not an array with rows.", given
        )
    counts = {str(key): given[key].shape[axis] for key, axis in places.items() if axis is not None}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{key} has {n}" for key, n in counts.items())
        raise UnalignedError(f"{where} differ in rows: {text}.", given)
    rows = next(iter(counts.values()), 1)
    made = {}
    for key, axis in places.items():
        array = given[key]
        if axis is None:
            made[key] = np.broadcast_to(array, (rows, *array.shape))
        else:
            made[key] = np.moveaxis(array, axis, 0) if axis else array
    return Block(made)


# -- frames -------------------------------------------------------------------------------------------


class FrameSource(Source):
    """A frame of pandas, polars or pyarrow in memory, or a dict of columns.

    Parameters
    ----------
    frame : DataFrame, Table, RecordBatch or dict of str to array_like
        Columns of one length.
    plan : Plan
        Which of them are read.
    rows : int, default=4096
        Rows of a part.
    name : str, optional
        What to call it in messages, such as the file that it was read from.
    """

    _selection: Selection
    _name: str | None = None

    def __init__(self, frame: Any, plan: Plan, rows: int = 4096, name: str | None = None) -> None:
        super().__init__(plan)
        self._frame, self._name = frame, name
        self._selection = plan.select(column_names(frame), self.name, frame_index(frame))
        column = column_getter(frame)
        try:
            lengths = {name: len(column(name)) for name in self._selection.names}
        except TypeError as exc:
            raise InvalidDataError(f"The columns of {self.name} must be arrays or lists: {exc}.") from exc
        if len(set(lengths.values())) > 1:
            raise InvalidDataError(f"The columns of {self.name} differ in length: {lengths}.")
        self._parts = ranges(next(iter(lengths.values())), rows)

    @property
    def name(self) -> str:
        kind = "dict" if isinstance(self._frame, Mapping) else type(self._frame).__name__
        return f"the {kind}" if self._name is None else self._name

    def parts(self) -> Sequence[Part]:
        return self._parts

    def read(self, part: Part, rows: int, targets_only: bool = False) -> Iterator[Block]:
        selection = (
            self.plan.targets.select(column_names(self._frame), self.name)
            if targets_only
            else self._selection
        )
        assert part.rows is not None
        yield from_frame(selection, slice_rows(self._frame, part.start, part.start + part.rows), self, part)

    def fingerprint(self) -> dict[str, str]:
        return hash_rows(block for part in self._parts for block in self.read(part, 1 << 30))


def from_frame(selection: Selection, frame: Any, source: Source, part: Part, row: int = 0) -> Block:
    """The block that columns of a frame make; `row` is that of the part where it begins.

    Raises
    ------
    InvalidDataError
        A value that training cannot use, and where it is.
    """
    try:
        return selection.assemble(column_getter(frame))
    except UnfitError as exc:
        where = source.name if exc.row is None else source.place(part, row + exc.row)
        raise InvalidDataError(f"{where}, column {exc.column!r}: {exc.what}.") from exc


# -- batches ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Progress:
    """How far an iterator is, which can be read once: the same for all that look at it.

    Attributes
    ----------
    begun : bool
        Whether an epoch has begun to read it.
    first : list
        What was looked at before, in the order of the iterator.
    """

    begun: bool = False
    first: list[Any] = dataclasses.field(default_factory=list)


class IterableSource(Source):
    """Batches that somebody else makes.

    Parameters
    ----------
    batches : iterable, iterator or callable
        Yields ``(X,)``, ``(X, y)`` or ``(X, y, sample_weight)``, where X and y may be dicts of arrays, or
        frames whose columns `plan` names. A callable returns a new iterator at every call.
    plan : Plan
        Which columns of frames are read.
    """

    def __init__(self, batches: Any, plan: Plan) -> None:
        super().__init__(plan)
        self._batches = batches
        self.repeatable = callable(batches) or iter(batches) is not batches
        self._progress = _Progress()

    @property
    def name(self) -> str:
        return f"the batches of {_type_name(self._batches)}"

    def parts(self) -> Sequence[Part]:
        return [Part(0, 0, None)]

    def place(self, part: Part, row: int) -> str:
        return f"{self.name}, row {row} of those read"

    def read(self, part: Part, rows: int, targets_only: bool = False) -> Iterator[Block]:
        row = 0
        iterator = self._iterator()
        try:
            for number, batch in enumerate(iterator):
                # Who makes the batches may make the next one in the same memory, while this one waits.
                block = self._as_block(batch, number, part, row, targets_only).map(np.array)
                row += len(block)
                if len(block):
                    yield block
        finally:
            close = getattr(iterator, "close", None)
            if close is not None and self.repeatable:
                close()

    def peek(self, part: Part) -> Block | None:
        """The first block, which the first epoch gets all the same."""
        if self.repeatable:
            blocks = self.read(part, 1)
            try:
                return next(blocks, None)
            finally:
                blocks.close()  # type: ignore[attr-defined]
        if self._progress.begun:
            raise self._spent()
        for number, batch in enumerate(self._progress.first):
            block = self._as_block(batch, number, part, 0)
            if len(block):
                return block
        while True:
            try:
                self._progress.first.append(owned(next(self._batches)))
            except StopIteration:
                return None
            except OnnxCustomError:
                self._progress.begun = True
                raise
            except Exception as exc:
                self._progress.begun = True
                raise InvalidDataError(_failure(self.name, exc)) from exc
            block = self._as_block(self._progress.first[-1], len(self._progress.first) - 1, part, 0)
            if len(block):
                return block

    def _iterator(self) -> Iterator[Any]:
        if self.repeatable:
            return _guarded(self._batches, self.name)
        if self._progress.begun:
            raise self._spent()
        self._progress.begun = True
        return self._rest()

    def _rest(self) -> Iterator[Any]:
        while self._progress.first:
            yield self._progress.first.pop(0)
        yield from _guarded(self._batches, self.name)

    def _spent(self) -> InvalidDataError:
        return InvalidDataError(
            f"{_type_name(self._batches)} is an iterator that was read already, and cannot be read a second "
            "time. For several epochs, or to begin one again, give an iterable that makes new iterators, or "
            "a function that returns one."
        )

    def _as_block(self, batch: Any, number: int, part: Part, row: int, targets_only: bool = False) -> Block:
        block = self._whole_block(batch, number, part, row, targets_only)
        if not targets_only:
            return block
        return Block({key: a for key, a in block.arrays.items() if key.role == "y"})

    def _whole_block(self, batch: Any, number: int, part: Part, row: int, targets_only: bool) -> Block:
        where = f"Batch {number} of {self.name}"
        if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3:
            if self.plan.said:
                raise InvalidDataError(f"{where} is a tuple of arrays, which have no columns to name.")
            given = _given(batch, where)
            if targets_only:  # the rows of features may be elsewhere
                given = {key: array for key, array in given.items() if key.role == "y"}
            block = _block(given, where, self.axes)
            return block.map(lambda a: a[:] if isinstance(a, SparseRows) else a)
        if is_frame(batch) or (isinstance(batch, Mapping) and self.plan.said):
            if self._selection is None:
                self._selection = self.plan.select(column_names(batch), where, frame_index(batch))
            self._selection.check(column_names(batch), where)
            return from_frame(self._selection, batch, self, part, row)
        raise InvalidDataError(
            f"{where} is a {_type_name(batch)}; batches are tuples (X, y) or (X, y, sample_weight), or "
            "frames whose columns target= and columns= name."
        )

    def fingerprint(self) -> dict[str, str]:
        return {"batches of": _type_name(self._batches)}

    def __getstate__(self) -> dict[str, Any]:
        if not self.repeatable:
            raise TypeError(f"{_type_name(self._batches)} is an iterator, which cannot be pickled.")
        return self.__dict__


def _guarded(batches: Any, name: str) -> Iterator[Any]:
    """The batches of one epoch; what goes wrong in them is said to come from there."""
    try:
        yield from batches() if callable(batches) else batches
    except OnnxCustomError:
        raise
    except Exception as exc:
        raise InvalidDataError(_failure(name, exc)) from exc


def _failure(name: str, exc: Exception) -> str:
    return f"Reading {name} failed: {type(exc).__name__}: {exc}"


def _type_name(value: Any) -> str:
    cls = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    module = getattr(cls, "__module__", "")
    return cls.__qualname__ if module in ("builtins", "__main__", None) else f"{module}.{cls.__qualname__}"

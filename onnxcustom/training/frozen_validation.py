"""What the frozen part of a model makes of validation data, computed once."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcustom.data.sources import IterableSource
from onnxcustom.feed.held_out import ArrayValidation, StreamValidation
from onnxcustom.feed.specs import rows_of, some_rows
from onnxcustom.step.frozen import FrozenInputs, Halves, NoFrozenPartError

if TYPE_CHECKING:
    from onnxcustom.step.training_step import TrainingStep

__all__ = ["forget", "keep", "through"]

logger = logging.getLogger("onnxcustom")

# Where an array begins in the file: as far apart as kernels want them in memory.
_ALIGNED = 64


def forget(validation: Any) -> None:
    """Let validation data be what they were: nothing of them is kept."""
    if isinstance(validation, ArrayValidation):
        validation.inputs = dict(validation.inputs)
    elif isinstance(validation, StreamValidation):
        validation.kept = None


def keep(validation: Any, step: TrainingStep, halves: Halves, size: int, room: int) -> None:
    """Keep what the frozen half makes of validation data, if there is room for it.

    Parameters
    ----------
    validation : ArrayValidation, StreamValidation or None
        The data. What is kept of a stream is in a temporary file, from the first validation on.
    step : TrainingStep
        The step whose halves they are.
    halves : Halves
        Its halves.
    size : int
        Rows that go through at once, of data in memory.
    room : int
        Bytes that may be kept.
    """
    if not halves.scorable:
        return
    if isinstance(validation, ArrayValidation):
        _keep_arrays(validation, step, halves, size, room)
    elif isinstance(validation, StreamValidation) and not isinstance(
        validation.stream.source, IterableSource
    ):
        validation.kept = _Blocks(validation, step, halves, room).blocks


def _keep_arrays(
    validation: ArrayValidation, step: TrainingStep, halves: Halves, size: int, room: int
) -> None:
    given, specs = dict(validation.inputs), step.inputs
    rows, fixed = rows_of(given, specs), step.recipe.axes.rows() or 0
    if halves.nbytes(rows) > room or (fixed and rows % size):
        return
    parts = (slice(start, min(start + size, rows)) for start in range(0, rows, size))
    batches = ((_part(given, step, part), part.stop - part.start) for part in parts)
    with contextlib.suppress(NoFrozenPartError):  # rows of another shape
        validation.inputs = FrozenInputs(given, halves, through(halves, batches, rows, given))


def _part(given: Mapping[str, Any], step: TrainingStep, rows: slice) -> dict[str, np.ndarray]:
    """Some rows of the inputs of a model."""
    return {s.name: np.asarray(some_rows(given[s.name], s, rows), order="C") for s in step.inputs}


def through(
    halves: Halves, batches: Iterable[tuple[Mapping[str, Any], int]], rows: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What the trained half takes of all rows, by name: what the frozen one makes of batches, or `given`."""
    rooms = {kept.spec.name: np.empty(kept.shape(rows), kept.like.dtype) for kept in halves.kept}
    start = 0
    for feeds, count in batches:
        for kept, made in zip(halves.kept, halves.compute(feeds), strict=True):
            kept.place(rooms[kept.spec.name], made, start, start + count)
        start += count
    return {spec.name: rooms[spec.name] if spec.name in rooms else given[spec.name] for spec in halves.specs}


class _Kept(NamedTuple):
    """A block in the file: what the trained half takes, expected values, weights, and its rows."""

    made: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    weights: np.ndarray | None
    rows: int


class _Blocks:
    """Blocks of a stream that went through the frozen half, in a temporary file from the first time on.

    Parameters
    ----------
    validation : StreamValidation
        The stream.
    step, halves, room
        As :func:`keep` takes them.
    """

    def __init__(self, validation: StreamValidation, step: TrainingStep, halves: Halves, room: int) -> None:
        self._validation, self._step, self._halves, self._room = validation, step, halves, room
        self._kept: list[_Kept] | None = None  # once all of them are
        self._size = 0
        self._file: Any = None

    def blocks(self) -> Iterator[tuple[Any, Any, Any, int]]:
        """Inputs, expected values, weights and rows of every block, as the stream has them."""
        if not self._step.knows(self._halves) or self._room < 0:
            yield from self._validation.read()
        elif self._kept is not None:
            for made, expected, weights, rows in self._kept:
                yield FrozenInputs({}, self._halves, made), expected, weights, rows
        else:
            yield from self._first()

    def _first(self) -> Iterator[tuple[Any, Any, Any, int]]:
        """The blocks as they are read, written to the file on the way."""
        self._open()
        kept: list[_Kept] = []
        for inputs, expected, weights, rows in self._validation.read():
            if self._room >= 0:
                try:
                    kept.append(self._written(inputs, expected, weights, rows))
                    inputs = FrozenInputs(inputs, self._halves, kept[-1].made)
                except NoFrozenPartError as exc:
                    logger.info("[cache_frozen] Nothing is kept of the validation data: %s.", exc)
                    kept, self._room = [], -1
                    self._file.close()
            yield inputs, expected, weights, rows
        self._kept = kept if self._room >= 0 else None

    def _open(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._size = tempfile.TemporaryFile(), 0  # noqa: SIM115 - lives as long as the training
        weakref.finalize(self, self._file.close)

    def _written(self, inputs: Any, expected: Any, weights: Any, rows: int) -> _Kept:
        """A block, mapped from the file.

        Raises
        ------
        NoFrozenPartError
            There is no room, or rows differ in shape.
        """
        fixed = self._step.recipe.axes.rows() or rows
        if rows % fixed:
            raise NoFrozenPartError(f"a block has {rows} rows, and the model takes {fixed} at a time")
        parts = (slice(start, start + fixed) for start in range(0, rows, fixed))
        batches = ((_part(inputs, self._step, part), fixed) for part in parts)
        made = through(self._halves, batches, rows, inputs)
        return _Kept(
            {name: self._mapped(array) for name, array in made.items()},
            {name: self._mapped(array) for name, array in expected.items()},
            None if weights is None else self._mapped(weights),
            rows,
        )

    def _mapped(self, array: Any) -> np.ndarray:
        """An array, put into the file."""
        array = np.asarray(array, order="C")
        start = -(-self._size // _ALIGNED) * _ALIGNED
        self._size = start + array.nbytes
        if array.dtype.hasobject:
            raise NoFrozenPartError(f"numbers are kept, and there is {array.dtype}")
        if self._size > self._room:
            raise NoFrozenPartError(f"they take more than the {self._room:,} bytes of cache_bytes")
        if not array.size:
            return array
        self._file.seek(start)
        self._file.write(array.tobytes())
        self._file.flush()
        return np.memmap(self._file, array.dtype, "r", start, array.shape)

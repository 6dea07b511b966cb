"""Batches, and the memory that they are made of: arrays of a data set, cut along their rows."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxcustom.data.sparse import SparseRows
from onnxcustom.exceptions import CallOrderError
from onnxcustom.runtime import Device, owned_copy, to_ortvalue

from .specs import TensorSpec

__all__ = ["Batch", "BatchBuffers", "LentBatch", "RowBuffer", "bound"]


class Batch(NamedTuple):
    """One batch.

    Attributes
    ----------
    rows : int
        Number of rows.
    values : tuple of OrtValue
        One C OrtValue for each array: inputs, expected values, weights of the rows.
    """

    rows: int
    values: tuple[Any, ...]

    def copy(self) -> Batch:
        """The batch in memory of its own."""
        return Batch(self.rows, tuple(map(owned_copy, self.values)))


class LentBatch:
    """A batch that callbacks look at: what they keep of its values, or write to, are copies.

    Parameters
    ----------
    batch : Batch
        The batch that is trained on, whose memory a later one overwrites.

    Attributes
    ----------
    rows : int
        Number of rows.
    """

    def __init__(self, batch: Batch) -> None:
        self.rows = batch.rows
        self._batch: Batch | None = batch

    @functools.cached_property
    def values(self) -> tuple[Any, ...]:
        """As those of a :class:`Batch`, in memory of their own; made when they are first asked for.

        Raises
        ------
        RuntimeError
            That is after the batch.
        """
        if self._batch is None:
            raise CallOrderError(
                "The memory of this batch holds another one by now: read batch.values in on_batch_begin or "
                "on_batch_end."
            )
        return self._batch.copy().values

    def take_back(self) -> None:
        """Let nobody read the values from here on who did not before."""
        self._batch = None

    def __iter__(self) -> Iterator[Any]:
        """The number of rows and the values, as of a :class:`Batch`."""
        return iter((self.rows, self.values))


def bound(arrays: Iterable[np.ndarray], device: Device) -> tuple[Any, ...]:
    """C OrtValues of arrays."""
    return tuple(to_ortvalue(array, device)._ortvalue for array in arrays)


class BatchBuffers:
    """Rows of several arrays, and the batches of them.

    Parameters
    ----------
    pairs : iterable of (ndarray or SparseRows, TensorSpec)
        Arrays of the data, in the layout that the model wants, and what they are.
    rows : int or None
        Rows there is room for; None shares the memory of the data.
    device : Device
        Where the OrtValues of batches live.
    """

    def __init__(self, pairs: Iterable[tuple[Any, TensorSpec]], rows: int | None, device: Device) -> None:
        self.buffers = [RowBuffer(array, spec, rows) for array, spec in pairs]
        self.device = device

    @property
    def nbytes(self) -> int:
        """Memory of all."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def fit(self, pairs: Sequence[tuple[Any, TensorSpec]], rows: int) -> bool:
        """Whether as many rows of other arrays have room here."""
        return len(pairs) == len(self.buffers) and all(
            buffer.fits(array, spec, rows) for buffer, (array, spec) in zip(self.buffers, pairs, strict=True)
        )

    def batch(self, start: int, stop: int) -> Batch:
        """The batch of some rows: of the same rows it is in the same memory."""
        return Batch(stop - start, bound((b.part(start, stop) for b in self.buffers), self.device))

    def fill(self, arrays: Iterable[Any], order: np.ndarray | None, rows: int) -> None:
        """Take rows of the data, in this order or in theirs."""
        for source, buffer in zip(arrays, self.buffers, strict=True):
            buffer.fill(source, order, rows)

    def upload(self, batches: Iterable[Batch]) -> None:
        """Copy batches that follow each other from row 0 on to a device with memory of its own."""
        if self.device.type == "cpu":
            return
        start = 0
        for batch in batches:
            for value, buffer in zip(batch.values, self.buffers, strict=True):
                value.update_inplace(buffer.part(start, start + batch.rows))
            start += batch.rows


class RowBuffer:
    """Rows of one array, and what the batches of them are.

    A batch is a part of this memory where the rows are on axis 0, and an array of its own where they are
    elsewhere: what it is bound to has no gaps. What has no rows is the same array for every batch.

    Parameters
    ----------
    source : ndarray or SparseRows
        The data, in the layout that the model wants.
    spec : TensorSpec
        What that is.
    rows : int or None
        Rows there is room for; None shares the memory of the data.
    """

    def __init__(self, source: Any, spec: TensorSpec, rows: int | None = None) -> None:
        self.each = spec.is_each(source)
        self.axis = 0 if self.each else spec.axis
        self._parts: dict[tuple[int, int], np.ndarray] = {}
        self._of_row = source.shape if self.axis is None else _without(source.shape, self.axis)
        self.dtype = source.dtype
        if rows is None or self.axis is None:
            self._memory: np.ndarray | None = source
        elif self.axis == 0:
            self._memory = np.empty((rows, *source.shape[1:]), source.dtype)
        else:
            self._memory = None

    @property
    def nbytes(self) -> int:
        """Memory of it."""
        parts = self._parts.values() if self._memory is None else [self._memory]
        return sum(array.nbytes for array in parts)

    def fits(self, source: Any, spec: TensorSpec, rows: int) -> bool:
        """Whether as many rows of another array have room here."""
        axis = 0 if spec.is_each(source) else spec.axis
        shape = source.shape if axis is None else _without(source.shape, axis)
        room = self.axis != 0 or (self._memory is not None and len(self._memory) >= rows)
        return (
            room
            and (axis, shape, source.dtype) == (self.axis, self._of_row, self.dtype)
            and spec.is_each(source) == self.each
        )

    def part(self, start: int, stop: int) -> np.ndarray:
        """The array of a batch: always the same one for the same rows."""
        if self.axis is None or self.axis == 0:
            assert self._memory is not None
            if self.axis is None:
                return self._memory
            return self._memory[start, ...] if self.each else self._memory[start:stop]
        key = start, stop
        if key not in self._parts:
            shape = (*self._of_row[: self.axis], stop - start, *self._of_row[self.axis :])
            self._parts[key] = np.empty(shape, self.dtype)
        return self._parts[key]

    def fill(self, source: Any, order: np.ndarray | None, rows: int) -> None:
        """Take rows of the data, in this order or in theirs; batches that need more than `rows` are left."""
        if self.axis is None:
            return
        if self._memory is None:
            for (start, stop), array in self._parts.items():
                if stop <= rows:
                    where = slice(start, stop) if order is None else order[start:stop]
                    array[...] = source[(slice(None),) * self.axis + (where,)]
        elif isinstance(source, SparseRows):
            source.take(np.arange(rows) if order is None else order, self._memory[:rows])
        elif order is None:
            self._memory[:rows] = source
        else:  # 'clip' spares numpy the check, and with it a second buffer
            np.take(source, order, axis=0, out=self._memory[:rows], mode="clip")


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])

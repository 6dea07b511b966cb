"""Memory that batches are made of: one array of a data set, cut along its rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcustom.data.sparse import SparseRows

from .specs import TensorSpec

__all__ = ["RowBuffer"]


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

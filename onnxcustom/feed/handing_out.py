"""Batches and data of a loader in memory of their own, for who iterates without counting epochs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxcustom.data.owned import sealed
from onnxcustom.data.sparse import SparseRows
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.runtime import Device, owned_copy, to_ortvalue

from .arrays import dense
from .batch_buffers import Batch

__all__ = ["HandedOut"]


class HandedOut(ABC):
    """Iterators and views of a loader, on top of its numbered epochs.

    Attributes
    ----------
    arrays : dict of str to ndarray or SparseRows
        The data.
    """

    arrays: dict[str, Any]
    batch_size: int
    device: Device
    # The epoch that the next iterator goes through.
    _epoch = 0

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """Number of rows."""

    @abstractmethod
    def order(self, epoch: int) -> np.ndarray | None:
        """Order of the rows in an epoch, None if it is that of the data."""

    @abstractmethod
    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch."""

    @abstractmethod
    def _cut(self, rows: Any) -> list[np.ndarray]:
        """A batch as arrays."""

    def __iter__(self) -> Iterator[Batch]:
        """Copies of the batches of the next epoch."""
        return map(Batch.copy, self._next_epoch())

    def _next_epoch(self) -> Iterator[Batch]:
        epoch = self._epoch
        self._epoch += 1
        return self.epoch(epoch)

    def iter_ortvalue(self) -> Iterator[tuple[Any, ...]]:
        """The next epoch as tuples of C OrtValues, copies: inputs, expected values, weights."""
        for batch in self:
            yield batch.values

    def iter_numpy(self) -> Iterator[tuple[np.ndarray, ...]]:
        """The next epoch as tuples of arrays, copies: inputs, expected values, weights."""
        order = self.order(self._epoch)
        self._epoch += 1
        for start in range(0, self.n_rows, self.batch_size):
            stop = start + self.batch_size
            rows: Any = slice(start, stop) if order is None else order[start:stop]
            yield tuple(np.array(part) for part in self._cut(rows))

    def iter_bind(self, bind: Any, names: Sequence[str]) -> Iterator[int]:
        """Bind the batches of the next epoch to inputs, one after the other.

        Parameters
        ----------
        bind : IOBinding or SessionIOBinding
            What to bind to.
        names : sequence of str
            Inputs for the arrays, in order. Further names, such as that of a learning rate, are left
            to the caller.

        Yields
        ------
        int
            Number of rows of the batch just bound.
        """
        if len(names) < len(self.arrays):
            raise InvalidDataError(
                f"{len(self.arrays)} arrays {list(self.arrays)} need as many names, not {names}."
            )
        target = getattr(bind, "_iobinding", bind)
        for batch in self._next_epoch():
            for name, value in zip(names, batch.values, strict=False):
                target.bind_ortvalue_input(name, value)
            yield batch.rows

    @property
    def data_np(self) -> tuple[np.ndarray, ...]:
        """The data as arrays, read only; sparse rows as :class:`~onnxcustom.data.sparse.SparseRows`."""
        views = {name: a if isinstance(a, SparseRows) else a.view() for name, a in self.arrays.items()}
        return tuple(sealed(views).values())

    @property
    def data_ort(self) -> tuple[Any, ...]:
        """The data as C OrtValues, in memory of their own."""
        arrays = [dense(a, n) if isinstance(a, SparseRows) else a for n, a in self.arrays.items()]
        return tuple(owned_copy(to_ortvalue(array, self.device)) for array in arrays)

    @property
    def desc(self) -> list[tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each array."""
        return [(a.shape, a.dtype) for a in self.arrays.values()]

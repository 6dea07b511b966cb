"""Blocks of rows, and cutting rows into blocks of another size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from onnxcustom.exceptions import InvalidDataError

__all__ = ["Block", "Key", "promoted", "recut", "row_bytes", "row_shapes", "widened"]


class Key(NamedTuple):
    """Place of an array in a block.

    Attributes
    ----------
    role : {'X', 'y', 'sample_weight'}
        What it is for.
    name : str or None
        Its name where the role has several arrays.
    """

    role: str
    name: str | None = None

    def __str__(self) -> str:
        return self.role if self.name is None else f"{self.role}[{self.name!r}]"


class Block:
    """Some rows: features, expected values, weights.

    Parameters
    ----------
    arrays : dict of Key to ndarray
        Arrays of one length.

    Examples
    --------
    >>> block = Block.of(np.zeros((3, 2)), y=np.arange(3))
    >>> len(block), block.X.shape, block.y, block.sample_weight
    (3, (3, 2), array([0, 1, 2]), None)
    """

    __slots__ = ("arrays",)

    def __init__(self, arrays: dict[Key, np.ndarray]) -> None:
        self.arrays = arrays

    @classmethod
    def of(cls, X: Any = None, y: Any = None, sample_weight: Any = None) -> Block:
        """A block of arrays, or dicts of arrays by name."""
        arrays: dict[Key, np.ndarray] = {}
        for role, given in (("X", X), ("y", y), ("sample_weight", sample_weight)):
            if isinstance(given, dict):
                arrays.update({Key(role, str(name)): array for name, array in given.items()})
            elif given is not None:
                arrays[Key(role)] = given
        return cls(arrays)

    def _role(self, role: str) -> Any:
        found = {key.name: array for key, array in self.arrays.items() if key.role == role}
        return found.get(None, found) if found else None

    @property
    def X(self) -> Any:
        """Features: an array of shape (n, ...), a dict of them by name, or None."""
        return self._role("X")

    @property
    def y(self) -> Any:
        """Expected values: an array of shape (n,) or (n, ...), a dict of them by name, or None."""
        return self._role("y")

    @property
    def sample_weight(self) -> np.ndarray | None:
        """Weights of the rows, of shape (n,), or None."""
        return self.arrays.get(Key("sample_weight"))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.arrays.values()), ()))

    def __getitem__(self, rows: Any) -> Block:
        """Some of the rows: a slice, a mask or indices."""
        return Block({key: array[rows] for key, array in self.arrays.items()})

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Block:
        """A block of the results of a function for each array."""
        return Block({key: function(array) for key, array in self.arrays.items()})

    def __repr__(self) -> str:
        parts = ", ".join(f"{key}: {a.dtype} {a.shape}" for key, a in self.arrays.items())
        return f"Block({parts})"


def row_bytes(block: Block) -> int:
    """Memory of a row of a block; text counts as what points at it."""
    return max(1, sum(a.itemsize * int(np.prod(a.shape[1:])) for a in block.arrays.values()))


def row_shapes(block: Block) -> dict[Key, tuple[int, ...]]:
    """Shape of a row in each array."""
    return {key: array.shape[1:] for key, array in block.arrays.items()}


def promoted(key: Key, a: np.dtype, b: np.dtype) -> np.dtype:
    """A dtype that holds what both hold.

    Raises
    ------
    InvalidDataError
        Numbers and text in one place.
    """
    if a == b:
        return a
    if (a.kind in "OUSV") != (b.kind in "OUSV"):
        raise InvalidDataError(f"{key} is {a} in some batches and {b} in others: numbers or text, not both.")
    return np.result_type(a, b)


def widened(key: Key, array: np.ndarray, dtype: np.dtype, filled: int | None = None) -> np.ndarray:
    """An array that can hold values of a dtype as well; only the first `filled` rows mean something."""
    wide = promoted(key, array.dtype, dtype)
    if wide == array.dtype:
        return array
    made = np.empty(array.shape, wide)
    made[:filled] = array[:filled]
    return made


def recut(blocks: Iterable[Block], rows: int, multiple: int = 1) -> Iterator[Block]:
    """Rows in blocks of another size.

    Parameters
    ----------
    blocks : iterable of Block
        Blocks of any size.
    rows : int
        Rows in each block that comes out, but for the last one.
    multiple : int, default=1
        A divisor of `rows`. Where arrays change shape (tokens padded to the longest of a batch), a block
        ends early if it holds a multiple of so many rows.

    Yields
    ------
    Block
        Rows in the order they came; a block that fits already is passed on as it is.

    Raises
    ------
    InvalidDataError
        Blocks that hold other arrays than the first, or arrays whose shape changes in between.

    Examples
    --------
    >>> pieces = [Block.of(np.arange(n)) for n in (3, 1, 4)]
    >>> [block.X.tolist() for block in recut(pieces, 3)]
    [[0, 1, 2], [0, 0, 1], [2, 3]]
    """
    pending = _Pending(rows)
    for block in blocks:
        if pending.filled and not pending.takes(block):
            if pending.filled % multiple:
                raise InvalidDataError(
                    f"Rows change shape from {pending.text()} to {_text(block)} within a batch: pad them to "
                    f"one length, or let every shape come in multiples of {multiple} rows."
                )
            yield pending.release()
        start = 0
        while start < len(block):
            if not pending.filled and len(block) - start >= rows:
                yield block[start : start + rows] if start or len(block) > rows else block
                start += rows
                continue
            start += pending.add(block, start)
            if pending.filled == rows:
                yield pending.release()
    if pending.filled:
        yield pending.release()


# Bytes that are taken at once for rows that may never come.
_ROOM = 2**24


def _lengthened(array: np.ndarray, rows: int, filled: int) -> np.ndarray:
    made = np.empty((rows, *array.shape[1:]), array.dtype)
    made[:filled] = array[:filled]
    return made


class _Pending:
    """A block that is being filled."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.filled = 0
        self.block = Block({})

    def takes(self, block: Block) -> bool:
        """Whether rows of a block fit behind those that are here."""
        return row_shapes(block) == row_shapes(self.block)

    def text(self) -> str:
        return _text(self.block)

    def add(self, block: Block, start: int) -> int:
        """Copy rows from a block, as many as there is room for; how many they were."""
        if not self.filled:
            self.block = block.map(lambda a: np.empty((0, *a.shape[1:]), a.dtype))
        count = min(self.rows - self.filled, len(block) - start)
        self._make_room(self.filled + count)
        for key, source in block.arrays.items():
            array = widened(key, self.block.arrays[key], source.dtype, self.filled)
            array[self.filled : self.filled + count] = source[start : start + count]
            self.block.arrays[key] = array
        self.filled += count
        return count

    def _make_room(self, rows: int) -> None:
        """Have memory for so many rows: for all that it will hold at first, unless that is very much."""
        there = len(self.block)
        if rows > there:
            wanted = min(self.rows, max(rows, 2 * there, _ROOM // row_bytes(self.block)))
            self.block = self.block.map(lambda a: _lengthened(a, wanted, self.filled))

    def release(self) -> Block:
        """What there is; the next block goes into other memory."""
        made = self.block if self.filled == self.rows else self.block[: self.filled]
        self.filled, self.block = 0, Block({})
        return made


def _text(block: Block) -> str:
    return ", ".join(f"{key} {shape}" for key, shape in row_shapes(block).items())

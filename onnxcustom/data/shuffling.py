"""The order of rows: a function of seed, epoch and the source, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from onnxcustom.exceptions import InvalidDataError

from .blocks import Block, row_shapes, widened

__all__ = ["Share", "Windows", "part_order", "row_hash", "shuffled"]

# What numbers are drawn for: no two of these share a sequence of them.
_PARTS, _FIRST, _WITHIN = 1, 2, 3


def _generator(seed: int, epoch: int, purpose: int, index: int = 0) -> np.random.Generator:
    """Random numbers of an epoch: a sequence of its own for each purpose and index."""
    key, counter = np.array([seed, epoch], np.uint64), np.array([0, 0, index, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def part_order(seed: int, epoch: int, parts: int) -> np.ndarray:
    """The order in which the parts of a source are read in an epoch."""
    return _generator(seed, epoch, _PARTS).permutation(parts)


class Windows:
    """Cuts a sequence of rows into windows, each of which is permuted as a whole.

    A sequence of at most `size` rows is one window. Of a longer one the first window has between
    ``size // 2`` and `size` rows, drawn anew in each epoch so that the cuts move, and the others have
    `size`, but for the last one.

    Parameters
    ----------
    seed, epoch : int
        What the order is a function of.
    size : int
        Rows in a window.
    """

    def __init__(self, seed: int, epoch: int, size: int) -> None:
        self.seed, self.epoch, self.size = seed, epoch, size
        low = max(1, size // 2)
        self.first = int(_generator(seed, epoch, _FIRST).integers(low, size + 1))

    def order(self, window: int, rows: int) -> np.ndarray:
        """The order of the rows of a window."""
        return _generator(self.seed, self.epoch, _WITHIN, window).permutation(rows)

    def skipped(self, total: int | None, skip: int) -> tuple[int, int]:
        """Whole windows among the first `skip` rows, and their rows; none if `total` is not known."""
        if total is None or total <= self.size or skip < self.first:
            return 0, 0
        more = (skip - self.first) // self.size
        return 1 + more, self.first + more * self.size


def shuffled(
    blocks: Iterable[Block], windows: Windows, rows: int, skip: int = 0, window: int = 0
) -> Iterator[Block]:
    """Rows in the order of windows, through a buffer that holds one window.

    What leaves the buffer makes room for the next window, so that a block that comes out costs one that is
    read.

    Parameters
    ----------
    blocks : iterable of Block
        The sequence of rows, from the beginning of a window.
    windows : Windows
        The cuts and the order within them.
    rows : int
        Blocks that come out end at multiples of so many rows, and at the end of windows.
    skip : int, default=0
        Leave out so many rows of what would come out.
    window : int, default=0
        Number of the window that the sequence begins with.

    Yields
    ------
    Block

    Raises
    ------
    InvalidDataError
        Rows that differ in shape.
    """
    buffer = _Buffer(blocks, windows.size)
    buffer.fill(np.arange(windows.size))
    position = -skip
    while buffer.waiting:
        slots = buffer.begin(windows.first if window == 0 and buffer.more() else windows.size)
        order = slots[windows.order(window, len(slots))]
        window += 1
        while len(order):
            count = min(len(order), rows - position % rows if position >= 0 else -position)
            if position >= 0:
                yield buffer.take(order[:count])
            buffer.fill(order[:count])
            order, position = order[count:], position + count


class _Buffer:
    """Room for the rows of a window, and which of them hold rows of the next one."""

    def __init__(self, blocks: Iterable[Block], size: int) -> None:
        self._blocks, self._size = iter(blocks), size
        self._next = Block({})  # read, but not in the buffer yet
        self._rows = Block({})
        self._waiting: list[np.ndarray] = []

    @property
    def waiting(self) -> bool:
        """Whether there are rows for another window."""
        return bool(self._waiting)

    def more(self) -> bool:
        """Whether there are rows that are not in the buffer."""
        while not len(self._next):
            block = next(self._blocks, None)
            if block is None:
                return False
            self._next = block
        return True

    def fill(self, slots: np.ndarray) -> None:
        """Put the next rows into slots, until one or the other is used up."""
        while len(slots) and self.more():
            count = min(len(slots), len(self._next))
            self._put(slots[:count], self._next[:count])
            self._waiting.append(slots[:count])
            self._next, slots = self._next[count:], slots[count:]

    def _put(self, slots: np.ndarray, rows: Block) -> None:
        if not self._rows.arrays:  # pages that no row comes to are never touched
            self._rows = rows.map(lambda a: np.empty((self._size, *a.shape[1:]), a.dtype))
        if row_shapes(rows) != row_shapes(self._rows):
            raise InvalidDataError(
                f"Rows that differ in shape cannot be shuffled: some are {_text(self._rows)}, others "
                f"{_text(rows)}. Pad them to one length, or leave their order as it is with shuffle_rows=0."
            )
        for key, source in rows.arrays.items():
            with np.errstate(all="ignore"):  # what was never written may be any number
                array = widened(key, self._rows.arrays[key], source.dtype)
            array[slots] = source
            self._rows.arrays[key] = array

    def begin(self, rows: int) -> np.ndarray:
        """Slots of the next window, of so many rows at most, in the order they came."""
        slots = np.concatenate(self._waiting)
        self._waiting = [slots[rows:]] if len(slots) > rows else []
        return slots[:rows]

    def take(self, slots: np.ndarray) -> Block:
        """Copies of the rows in slots."""
        return self._rows.map(lambda a: np.take(a, slots, axis=0))


def _text(block: Block) -> str:
    return ", ".join(f"{key} {shape}" for key, shape in row_shapes(block).items())


# -- splits -----------------------------------------------------------------------------------------


def row_hash(seed: int, level: int, file: int, start: int, count: int) -> np.ndarray:
    """Numbers that say where rows belong: SplitMix64 of seed, file and number of the row.

    Parameters
    ----------
    seed, level : int
        Seed of the split, and how many splits were made before.
    file, start : int
        Number of the file and of the first row in it.
    count : int
        Number of rows.

    Returns
    -------
    ndarray of shape (count,), uint64

    References
    ----------
    G. L. Steele, D. Lea, C. H. Flood, Fast splittable pseudorandom number generators, 2014,
    https://doi.org/10.1145/2660193.2660195
    """
    state = np.zeros(1, np.uint64)
    for value in (seed, level, file):
        state = _mixed(state ^ np.uint64(value))
    return _mixed(state + np.arange(start, start + count, dtype=np.uint64) * np.uint64(_GAMMA))


_GAMMA = 0x9E3779B97F4A7C15


def _mixed(state: np.ndarray) -> np.ndarray:
    z = state + np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Share(NamedTuple):
    """One side of a split of rows at random.

    Attributes
    ----------
    fraction : float
        Part of the rows that is held out.
    seed, level : int
        What decides which.
    held : bool
        Whether this is the part held out, or what remains.
    """

    fraction: float
    seed: int
    level: int
    held: bool

    def mask(self, file: int, start: int, count: int) -> np.ndarray:
        """Which rows of a file are in this share."""
        limit = np.uint64(min(int(self.fraction * 2.0**64), 2**64 - 1))
        return (row_hash(self.seed, self.level, file, start, count) < limit) == self.held

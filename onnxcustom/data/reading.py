"""The rows of a source that a stream reads: which, how many at once, and in what order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator

import numpy as np

from onnxcustom.exceptions import InvalidDataError

from .blocks import Block, Key, recut, row_bytes
from .shuffling import Share, Windows, part_order, shuffled
from .sources import IterableSource, Part, Source

__all__ = ["SourceRows"]

# Sizes by default: of a block, of the shuffle buffer with 24 bytes a row for the order, and limits in rows.
_BLOCK_BYTES, _BUFFER_BYTES, _ORDER_BYTES = 2**22, 2**26, 24
_MOST_ROWS = 2**16
# More different values than this are no labels.
_MOST_LABELS = 2**16


class SourceRows:
    """Rows of a source: those of some shares, in its own order or shuffled.

    Parameters
    ----------
    source : Source
        What is read.
    block_rows, shuffle_rows, prefetch
        As :func:`~onnxcustom.data.streams.stream` takes them.
    shares : tuple of Share
        Which rows of the source, see :meth:`~onnxcustom.data.streams.Stream.split`.
    """

    def __init__(
        self,
        source: Source,
        *,
        block_rows: int | None = None,
        shuffle_rows: int | None = None,
        prefetch: int = 2,
        shares: tuple[Share, ...] = (),
    ) -> None:
        self.source = source
        self.block_rows, self.shuffle_rows, self.prefetch = block_rows, shuffle_rows, prefetch
        self._shares = shares
        self._row_bytes: int | None = None
        self._rows: tuple[int | None] | None = None

    @property
    def rows(self) -> int | None:
        """Number of rows, None where only reading all of them tells."""
        if self._rows is None:
            counts = [self._count(part) for part in self.source.parts()]
            self._rows = (None if None in counts else sum(n or 0 for n in counts),)
        return self._rows[0]

    def _blocks(
        self, epoch: int, seed: int, shuffle: bool, rows: int | None, multiple: int, skip: int
    ) -> Generator[Block, None, None]:
        parts = list(self.source.parts())
        if shuffle:
            parts = [parts[i] for i in part_order(seed, epoch, len(parts))]
        size, window = self._sizes()
        if size is None:  # of batches nothing is known before the first one is here
            first, blocks = _peeled(self._kept(parts, 1, 0))
            if first is None:
                return
            self._row_bytes = row_bytes(first)
            size, window = self._sizes()
        else:
            blocks = None
        assert size is not None
        assert window is not None
        size = rows or size
        size = max(1, size // multiple) * multiple
        if not shuffle or window <= 1:
            blocks = self._kept(parts, size, skip) if blocks is None else _behind(blocks, skip)
            yield from recut(blocks, size, multiple)
            return
        windows = Windows(seed, epoch, window)
        number, dropped = windows.skipped(self.rows, skip) if blocks is None else (0, 0)
        blocks = self._kept(parts, size, dropped) if blocks is None else blocks
        yield from recut(shuffled(blocks, windows, size, skip - dropped, number), size, multiple)

    def _sizes(self) -> tuple[int | None, int | None]:
        """Rows of a block and of the shuffle buffer; None while the size of a row is not known."""
        if self._row_bytes is None and (self.block_rows is None or self.shuffle_rows is None):
            first = None if isinstance(self.source, IterableSource) else self._first(64)
            if first is None:
                return None, None
            self._row_bytes = row_bytes(first)
        wide = self._row_bytes or 1
        size = min(max(1, _BLOCK_BYTES // wide), _MOST_ROWS) if self.block_rows is None else self.block_rows
        window = self.shuffle_rows
        if window is None:
            window = max(size, _BUFFER_BYTES // (wide + _ORDER_BYTES))
        return size, window

    def _first(self, rows: int) -> Block | None:
        """Some first rows of the source."""
        for part in self.source.parts():
            if isinstance(self.source, IterableSource):
                return self.source.peek(part)
            for block in self.source.read(part, rows):
                if len(block):
                    return block[:rows]
        return None

    def _kept(
        self, parts: list[Part], rows: int, skip: int, targets_only: bool = False
    ) -> Generator[Block, None, None]:
        """The rows of parts that belong to this stream, behind the first `skip` of them."""
        for part in parts:
            count = self._count(part) if skip else None
            if count is not None and count <= skip:
                skip -= count
                continue
            start = part.start
            for block in self.source.read(part, rows, targets_only):
                kept = self._share(block, part.file, start)
                start += len(block)
                if len(kept) > skip:
                    yield kept[skip:] if skip else kept
                skip = max(0, skip - len(kept))

    def _share(self, block: Block, file: int, start: int) -> Block:
        mask = self._mask(file, start, len(block))
        return block if mask is None or mask.all() else block[mask]

    def _mask(self, file: int, start: int, count: int) -> np.ndarray | None:
        """Which of some rows belong to this stream; None for all."""
        masks = [share.mask(file, start, count) for share in self._shares]
        return np.logical_and.reduce(masks) if masks else None

    def _count(self, part: Part) -> int | None:
        """Rows of a part that belong to this stream, if that is known without reading it."""
        if part.rows is None or not self._shares:
            return part.rows
        starts = range(part.start, part.start + part.rows, 2**20)
        ends = [*starts[1:], part.start + part.rows]
        masks = [self._mask(part.file, a, b - a) for a, b in zip(starts, ends, strict=True)]
        return sum(int(np.count_nonzero(mask)) for mask in masks if mask is not None)

    def _counted_labels(self) -> tuple[np.ndarray | None, np.ndarray]:
        """Different values of the target and how often each is there; None if there is none, or several."""
        found: np.ndarray | None = None
        counts = np.zeros(0, np.int64)
        size = self._sizes()[0] or 1
        for block in self._kept(list(self.source.parts()), size, 0, targets_only=True):
            if not isinstance(block.y, np.ndarray):
                break
            values, times = _unique(block.y)
            before = values[:0] if found is None else found
            found, places = np.unique(np.concatenate([before, values]), return_inverse=True)
            counts = np.bincount(places.reshape(-1), np.concatenate([counts, times])).astype(np.int64)
            if len(found) > _MOST_LABELS:
                raise InvalidDataError(
                    f"The target of {self.source.name} holds more than {_MOST_LABELS:,} different values: "
                    "they are no labels. OnnxRegressor predicts numbers."
                )
        return found, counts

    def first_place(self, is_bad: Callable[[Key, np.ndarray], np.ndarray]) -> tuple[str, Key] | None:
        """Where the first row is that something is wrong with, for an error message.

        Parameters
        ----------
        is_bad : callable
            Says for the rows of an array, and for what the array is, which of them are wrong.

        Returns
        -------
        tuple of (str, Key) or None
            The row in its file, and the array. None if there is none or it cannot be told.
        """
        if not self.source.repeatable:
            return None
        size = self._sizes()[0] or 1
        for part in self.source.parts():
            row = 0
            for block in self.source.read(part, size):
                mask = self._mask(part.file, part.start + row, len(block))
                for key, array in block.arrays.items():
                    bad = is_bad(key, array) & (True if mask is None else mask)
                    if bad.any():
                        return self.source.place(part, row + int(np.argmax(bad))), key
                row += len(block)
        return None


def _peeled(blocks: Iterator[Block]) -> tuple[Block | None, Iterator[Block]]:
    """The first block, and all of them."""
    first = next(blocks, None)
    return first, blocks if first is None else itertools.chain([first], blocks)


def _behind(blocks: Iterator[Block], skip: int) -> Iterator[Block]:
    """Blocks without their first `skip` rows."""
    for block in blocks:
        if len(block) > skip:
            yield block[skip:] if skip else block
        skip = max(0, skip - len(block))


def _unique(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different values, sorted, and how often each is there."""
    try:
        if values.dtype.kind == "O":  # sorting text takes far longer than hashing it
            counts = Counter(values.reshape(-1).tolist())
            found = sorted(counts)
            return np.array(found, dtype=object), np.array([counts[v] for v in found], dtype=np.int64)
        return np.unique(values, return_counts=True)
    except TypeError as exc:
        raise InvalidDataError(f"The labels are of several types: {exc}.") from exc

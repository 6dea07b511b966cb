"""Batches of a stream that went through the frozen part of a model, read from a file that is mapped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcustom.data import Block, Stream
from onnxcustom.data.blocks import Key
from onnxcustom.data.sources import IterableSource, Part, Source
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.feed.batch_buffers import Batch
from onnxcustom.feed.specs import TensorSpec, some_rows
from onnxcustom.feed.stream_loader import StreamLoader
from onnxcustom.feed.stream_rows import given_once
from onnxcustom.step.frozen import Halves, NoFrozenPartError
from onnxcustom.step.frozen_rows import refuse

from .frozen_loader import FrozenBatch
from .frozen_validation import forget, keep

if TYPE_CHECKING:
    from onnxcustom.step.training_step import TrainingStep

__all__ = ["FrozenStreamLoader"]

logger = logging.getLogger("onnxcustom")

_FIRST = 8
# What the file is called; what it is of stands in one that ends in .json.
_DATA = "frozen_part.bin"


class FrozenStreamLoader:
    """Batches of a stream, as far as a model has a frozen part with what that makes of them.

    That is computed before the first batch and written to a file: beside the checkpoints, where a training
    that goes on finds it again, or a temporary one. It is removed in the end.

    Parameters
    ----------
    loader : StreamLoader
        The data.
    step : TrainingStep
        What is trained.
    wanted : bool or 'auto'
        Whether it is an error if nothing can be computed once.
    limit : int
        Bytes that the file may take.
    folder : path, optional
        That of the checkpoints.
    validation : ArrayValidation or StreamValidation, optional
        Validation data, for which it is kept as well: in memory, or a temporary file.

    Raises
    ------
    InvalidParameterError
        Nothing can be computed once.
    """

    def __init__(
        self,
        loader: StreamLoader,
        step: TrainingStep,
        wanted: Any,
        limit: int,
        folder: Path | None = None,
        validation: Any = None,
    ) -> None:
        self.loader, self.step, self.wanted, self.limit, self.folder = loader, step, wanted, limit, folder
        self._validation = validation
        self._rows: _Rows | None = None
        self._made: _Cached | None = None
        self._find()

    @property
    def n_rows(self) -> int | None:
        """Rows in an epoch, None if that is not known."""
        return self.loader.n_rows

    @property
    def n_batches(self) -> int | None:
        """Batches in an epoch, None if that is not known."""
        return self.loader.n_batches

    def fingerprint(self) -> dict[str, str]:
        """What data it is."""
        return self.loader.fingerprint()

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of an epoch; see :meth:`StreamLoader.epoch`."""
        if self._halves is not None and not self.step.knows(self._halves):
            self.wanted = "auto"  # training goes on, whatever it was that changed
            self.close()
            self._find()
        if self._halves is not None and self._made is None:
            self._compute(self._halves)
        if self._halves is None or self._made is None:
            yield from self.loader.epoch(epoch, skip)
            return
        halves = self._halves
        for number, made in enumerate(self._made.epoch(epoch, skip), skip):
            yield FrozenBatch(halves, made, functools.partial(self._given, epoch, number))

    def _given(self, epoch: int, number: int) -> Batch:
        """A batch as the model takes it, read again."""
        with contextlib.closing(self.loader.epoch(epoch, number)) as batches:  # type: ignore[type-var]
            return next(batches).copy()

    def close(self, keep: bool = False) -> None:
        """Let go of the file, and remove it unless it is to be kept."""
        if self._rows is not None:
            self._rows.close(keep)
        self._rows = self._made = None

    # -- the frozen part -----------------------------------------------------------------------------

    def _find(self) -> None:
        self._halves: Halves | None = None
        forget(self._validation)
        try:
            if isinstance(self.loader.stream.source, IterableSource):
                raise NoFrozenPartError("batches that an iterable makes may be others in every epoch")
            fixed = self.step.recipe.axes.rows() or 0
            block = self.loader.stream.head(max(_FIRST, 2 * fixed))
            if fixed:
                block = block[: len(block) // fixed * fixed]
            self._halves = self.step.halves(self._inputs(self.loader._convert(block)))
        except NoFrozenPartError as exc:
            refuse(self.wanted, exc)

    def _inputs(self, pairs: Sequence[tuple[Any, TensorSpec]], rows: slice = slice(None)) -> dict[str, Any]:
        """What the model takes of a block, some of its rows."""
        return {
            like.name: np.asarray(given_once(some_rows(array, spec, rows), spec, like), order="C")
            for (array, spec), like in zip(pairs, self.loader.inputs, strict=False)
        }

    def _compute(self, halves: Halves) -> None:
        """Write what the trained half takes of all rows, unless it is there already."""
        about = self._about(halves)
        self._rows = _Rows.found(self.folder, about)
        if self._rows is None:
            try:
                self._rows = self._written(halves, about)
            except NoFrozenPartError as exc:
                self._halves = None
                refuse(self.wanted, exc)
                return
            where = "a temporary file" if self.folder is None else str(self._rows.path)
            logger.info("[cache_frozen] %d rows went through the frozen part, to %s", self._rows.rows, where)
        self._made = _Cached(self.loader, halves, self._rows)
        keep(self._validation, self.step, halves, self.loader.batch_size, self.limit)

    def _about(self, halves: Halves) -> str:
        """What the file is of: data, frozen part, and batches that went through it."""
        found = [self.fingerprint(), halves.fingerprint(), self.loader.batch_size]
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    def _written(self, halves: Halves, about: str) -> _Rows:
        stream = self.loader.stream
        block_rows, window = stream._sizes()
        counting = _Counting(stream.source)
        whole = Stream(
            counting,
            block_rows=block_rows,
            shuffle_rows=window,
            prefetch=stream.prefetch,
            shares=stream._shares,
        )
        writer = _Writer(self.folder, self.limit)
        try:
            for pairs in whole.blocks(multiple=self.loader.batch_size, apply=self.loader._convert):
                writer.write(self._of_block(halves, pairs))
            if not writer.rows:
                raise stream.empty()
            return writer.finish(about, counting.counted)
        except BaseException:
            writer.close()
            raise

    def _of_block(self, halves: Halves, pairs: list[tuple[Any, TensorSpec]]) -> list[np.ndarray]:
        """Arrays with the rows first: what the trained half takes of a block, and what comes with it."""
        rows, size = self.loader._count(pairs), self.loader.batch_size
        rooms = [np.empty(kept.shape(rows), kept.like.dtype) for kept in halves.kept]
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            batch = self._inputs(pairs, slice(start, stop))
            for kept, room, made in zip(halves.kept, rooms, halves.compute(batch), strict=True):
                kept.place(room, made, start, stop)
        found = {
            kept.spec.name: np.broadcast_to(room, (rows, *room.shape))
            if kept.axis is None
            else np.moveaxis(room, kept.axis, 0)
            for kept, room in zip(halves.kept, rooms, strict=True)
        }
        given = {like.name: _rows_first(*pair) for pair, like in zip(pairs, self.loader.inputs, strict=False)}
        rest = [_rows_first(*pair) for pair in pairs[len(self.loader.inputs) :]]
        return [*(found[s.name] if s.name in found else given[s.name] for s in halves.specs), *rest]


def _rows_first(array: Any, spec: TensorSpec) -> np.ndarray:
    return np.asarray(array) if spec.is_each(array) or not spec.axis else np.moveaxis(array, spec.axis, 0)


# -- the file -----------------------------------------------------------------------------------------


class _Writer:
    """Rows, one behind the other, each with all that belongs to it."""

    def __init__(self, folder: Path | None, limit: int) -> None:
        self._limit, self.rows = limit, 0
        self._dtype: np.dtype | None = None
        self._path = None if folder is None else folder / _DATA
        if self._path is None:
            self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _about(self._path).unlink(missing_ok=True)
            self._file = open(self._path, "w+b")  # noqa: SIM115 - lives as long as the training

    def write(self, arrays: Sequence[np.ndarray]) -> None:
        """Append the rows of a block.

        Raises
        ------
        NoFrozenPartError
            They have another shape than those before, or there is no room.
        """
        dtype = np.dtype([(f"{i}", a.dtype, a.shape[1:]) for i, a in enumerate(arrays)])
        self._dtype = self._dtype or dtype
        if dtype != self._dtype or dtype.hasobject:
            raise NoFrozenPartError(f"rows of the stream differ in shape: {self._dtype} and {dtype}")
        block = np.empty(len(arrays[0]), dtype)
        for i, array in enumerate(arrays):
            block[f"{i}"] = array
        size = (self.rows + len(block)) * dtype.itemsize
        if size > self._limit:
            raise NoFrozenPartError(
                f"what it computes takes {dtype.itemsize:,} bytes a row, {size:,} for the first "
                f"{self.rows + len(block):,} rows, more than the {self._limit:,} of cache_bytes: raise that"
            )
        self._file.write(block.tobytes())
        self.rows += len(block)

    def finish(self, about: str, counts: Sequence[int]) -> _Rows:
        """What was written, to be read."""
        self._file.flush()
        assert self._dtype is not None
        if self._path is not None:
            parts = [
                [n, str(self._dtype[n].base), list(self._dtype[n].shape)] for n in self._dtype.names or ()
            ]
            text = {"about": about, "rows": self.rows, "counts": list(counts), "parts": parts}
            _about(self._path).write_text(json.dumps(text), encoding="utf-8")
        return _Rows(self._file, self._path, self._dtype, self.rows, counts)

    def close(self) -> None:
        """Give up."""
        self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class _Rows:
    """The rows of a file, mapped.

    Parameters
    ----------
    file : file object
        Open for reading; the one who reads it owns it.
    path : path or None
        Where it is; None for one without a name.
    dtype : dtype
        Of a row.
    rows : int
        Number of rows.
    counts : sequence of int
        Rows of every part of the source.
    """

    def __init__(
        self, file: Any, path: Path | None, dtype: np.dtype, rows: int, counts: Sequence[int]
    ) -> None:
        self._file, self.path, self._dtype, self.rows, self.counts = file, path, dtype, rows, list(counts)
        self._check()
        self._mapped = np.memmap(file, dtype, "r", shape=(rows,))

    @classmethod
    def found(cls, folder: Path | None, about: str) -> _Rows | None:
        """Those that an earlier run has left, if they are whole and of the same."""
        if folder is None:
            return None
        path, file = folder / _DATA, None
        try:
            text = json.loads(_about(path).read_text(encoding="utf-8"))
            if text["about"] == about:
                dtype = np.dtype([(str(n), np.dtype(d), tuple(shape)) for n, d, shape in text["parts"]])
                file = open(path, "rb")  # noqa: SIM115 - lives as long as the training
                return cls(file, path, dtype, int(text["rows"]), [int(n) for n in text["counts"]])
        except (OSError, ValueError, KeyError, TypeError):  # it is made again
            if file is not None:
                file.close()
        return None

    def _check(self) -> None:
        """Refuse a file that somebody has cut: reading what is not there any more would end the process."""
        size = os.fstat(self._file.fileno()).st_size
        if size < self.rows * self._dtype.itemsize:
            wanted, name = self.rows * self._dtype.itemsize, str(self.path or "The temporary file")
            raise InvalidDataError(
                f"{name!r} holds what the frozen part of the model has made "
                f"of {self.rows:,} rows, {wanted:,} bytes, of which {size:,} are left: something has cut it. "
                "Train again, and let nothing else write to that folder."
            )

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Copies of some rows of every array."""
        self._check()
        block = self._mapped[rows]
        return [np.asarray(block[name]) for name in self._dtype.names or ()]

    def close(self, keep: bool) -> None:
        """Unmap the file; remove it unless it is to be kept."""
        del self._mapped
        self._file.close()
        if self.path is not None and not keep:
            _about(self.path).unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


def _about(path: Path) -> Path:
    return path.with_suffix(".json")


# -- reading it in the order of the stream --------------------------------------------------------------


class _Counting(Source):
    """A source that counts the rows of its parts while it is read."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.plan)
        self._source, self.axes, self._selection = source, source.axes, source.selection
        self._counts: dict[int, int] = {}

    @property
    def counted(self) -> list[int]:
        """Rows of every part, in the order of the source."""
        return [self._counts.get(i, 0) for i in range(len(self._source.parts()))]

    @property
    def name(self) -> str:
        return self._source.name

    def parts(self) -> Sequence[Part]:
        return [part._replace(key=(i, part)) for i, part in enumerate(self._source.parts())]

    def read(self, part: Part, rows: int, targets_only: bool = False) -> Iterator[Block]:
        i, own = part.key
        self._counts[i] = 0
        for block in self._source.read(own, rows, targets_only):
            self._counts[i] += len(block)
            yield block

    def fingerprint(self) -> dict[str, str]:
        return self._source.fingerprint()


class _Numbers(Source):
    """The numbers of rows of a source, in the order in which they would be read."""

    def __init__(self, source: Source, counts: Sequence[int]) -> None:
        super().__init__(source.plan)
        starts = np.cumsum([0, *counts]).tolist()
        self._parts = [
            Part(part.file, part.start, n, start)
            for part, n, start in zip(source.parts(), counts, starts, strict=False)
        ]
        self._name = source.name

    @property
    def name(self) -> str:
        return self._name

    def parts(self) -> Sequence[Part]:
        return self._parts

    def read(self, part: Part, rows: int, targets_only: bool = False) -> Iterator[Block]:
        assert part.rows is not None
        for start in range(0, part.rows, rows):
            numbers = np.arange(start, min(start + rows, part.rows))
            yield Block({Key("X"): numbers + part.key})

    def fingerprint(self) -> dict[str, str]:
        return {}


class _Cached(StreamLoader):
    """Batches of the rows of a file, in the order in which a stream loader has those of its source."""

    def __init__(self, loader: StreamLoader, halves: Halves, rows: _Rows) -> None:
        state = {
            k: v for k, v in vars(loader).items() if k not in ("_turn", "_buffers", "_batches", "_short")
        }
        self.__dict__.update(state)
        given, stream = loader.stream, loader.stream
        block_rows, window = given._sizes()
        self.stream = Stream(
            _Numbers(given.source, rows.counts),
            block_rows=block_rows,
            shuffle_rows=window,
            prefetch=0,
            shares=stream._shares,
        )
        once = {kept.spec.name for kept in halves.kept if kept.axis is None} | {
            spec.name for spec in loader.inputs if spec.axis is None
        }
        self.inputs = list(halves.specs)
        weight = TensorSpec("sample_weight")
        self._like = [
            dataclasses.replace(s, each=True) if s.name in once or s.axis is None else s
            for s in (*self.inputs, *self.targets)
        ] + [weight]
        self._stored = rows
        numbers = [block.arrays[Key("X")] for block in self.stream.blocks()]
        self._slots = np.full(sum(rows.counts), -1)
        self._slots[np.concatenate(numbers)] = np.arange(rows.rows)
        self._forget()

    def _convert(self, block: Block) -> Any:
        arrays = self._stored.take(self._slots[block.arrays[Key("X")]])
        pairs = list(zip(arrays, self._like, strict=False))
        return [(np.moveaxis(a, 0, s.axis) if s.axis else a, s) for a, s in pairs]

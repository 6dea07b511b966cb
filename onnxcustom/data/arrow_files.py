"""Parquet and Arrow files, and pyarrow's datasets, in pieces that don't depend on the size of the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from onnxcustom.exceptions import InvalidDataError, OnnxCustomError

from ._optional import optional
from .blocks import Block
from .columns import Plan, Selection
from .data_file import DataFile
from .naming import index_names
from .sources import Part, Source, from_frame

__all__ = ["ArrowFile", "DatasetSource", "ParquetFile"]

# Bytes of a file held for each column while a row group is read, and for all columns together. Without such
# buffers pyarrow holds a whole column of a row group.
_COLUMN_BUFFER, _ALL_BUFFERS = 2**18, 2**26


@contextlib.contextmanager
def _reading(path: str, kind: str) -> Iterator[None]:
    """What pyarrow cannot read is an error that names the file."""
    try:
        yield
    except OnnxCustomError:
        raise
    except (
        OSError,
        ValueError,
        IndexError,
        KeyError,
        NotImplementedError,
        optional("pyarrow", f"Reading {path}").ArrowException,
    ) as exc:
        raise InvalidDataError(f"{path} cannot be read as {kind}: {exc}") from exc


def _buffer(columns: int) -> int:
    return max(2**12, min(_COLUMN_BUFFER, _ALL_BUFFERS // max(1, columns)))


class ParquetFile(DataFile):
    """A Parquet file: a part is a row group."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq", ".parq")
    _known: Any = None

    def _metadata(self) -> Any:
        if self._known is None:
            parquet = optional("pyarrow.parquet", f"Reading {self.path}")
            with _reading(self.path, "Parquet"):
                self._known = parquet.read_metadata(self.path)
        return self._known

    def names(self) -> list[str]:
        return self._metadata().schema.to_arrow_schema().names

    def index(self) -> list[str]:
        return index_names(self._metadata().metadata)

    def parts(self) -> list[tuple[int | None, Any]]:
        metadata = self._metadata()
        return [(metadata.row_group(i).num_rows, i) for i in range(metadata.num_row_groups)]

    def tables(self, key: Any, rows: int, selection: Selection) -> Iterator[Any]:
        parquet = optional("pyarrow.parquet", f"Reading {self.path}")
        names, metadata = selection.names, self._metadata()
        options = {"buffer_size": _buffer(len(names)), "pre_buffer": False}
        with (
            _reading(self.path, "Parquet"),
            parquet.ParquetFile(self.path, metadata=metadata, **options) as file,
        ):
            yield from file.iter_batches(rows, row_groups=[key], columns=names, use_threads=False)


class ArrowFile(DataFile):
    """An Arrow file, also called Feather version 2: a part is a record batch, or all of a stream."""

    suffixes: ClassVar[tuple[str, ...]] = (".arrow", ".feather", ".ipc", ".arrows")
    _known: list[tuple[int | None, Any]] | None = None
    _names: list[str] | None = None
    _index: list[str]

    @contextlib.contextmanager
    def _reader(self, columns: Sequence[str] = ()) -> Iterator[Any]:
        """A reader of some columns, or of all."""
        pa = optional("pyarrow", f"Reading {self.path}")
        with _reading(self.path, "Arrow"), open(self.path, "rb") as file:
            start = file.read(6)
        if start[:4] == b"FEA1":
            raise InvalidDataError(f"{self.path} is Feather version 1: write it again with version 2.")
        place = {name: i for i, name in enumerate(self.names())} if columns else {}
        fields = [place[name] for name in columns]
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        with _reading(self.path, "Arrow"):
            open_it = pa.ipc.open_file if start == b"ARROW1" else pa.ipc.open_stream
            with pa.OSFile(self.path) as source, open_it(source, options=options) as reader:
                yield reader

    def names(self) -> list[str]:
        if self._names is None:
            with self._reader() as reader:
                self._names, self._index = reader.schema.names, index_names(reader.schema.metadata)
        return self._names

    def index(self) -> list[str]:
        self.names()
        return self._index

    def parts(self) -> list[tuple[int | None, Any]]:
        if self._known is None:
            with self._reader(self.names()[:1]) as reader:
                number = getattr(reader, "num_record_batches", None)
                self._known = [(None, None)]
                if number is not None:
                    self._known = [(reader.get_batch(i).num_rows, i) for i in range(number)]
        return self._known

    def tables(self, key: Any, rows: int, selection: Selection) -> Iterator[Any]:
        # Not mapped into memory: pages behind the end of a file that somebody cuts end the process.
        with self._reader(selection.names) as reader:
            yield from _slices(reader, key, rows)


def _slices(reader: Any, key: int | None, rows: int) -> Iterator[Any]:
    """A record batch, or all of a stream, in pieces; a file may say anything of itself."""
    for batch in iter(reader) if key is None else map(reader.get_batch, [key]):
        batch.validate(full=True)
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def _stamp(fragment: Any) -> Any:
    """Size and time of a fragment's file; None for one that is none."""
    filesystem, path = getattr(fragment, "filesystem", None), getattr(fragment, "path", None)
    if filesystem is None or path is None:
        return None
    info = filesystem.get_file_info(path)
    return info.size, info.mtime_ns


class DatasetSource(Source):
    """A ``pyarrow.dataset.Dataset``: a part is a row group of a Parquet file, or another file.

    Parameters
    ----------
    dataset : pyarrow.dataset.Dataset
        Of files anywhere, with columns of partitions and filters if it has some.
    plan : Plan
        Which columns are read.
    """

    _selection: Selection

    def __init__(self, dataset: Any, plan: Plan) -> None:
        super().__init__(plan)
        self._dataset = dataset
        self._selection = plan.select(dataset.schema.names, self.name, index_names(dataset.schema.metadata))
        self._parts: list[Part] | None = None
        self._seen: dict[int, Any] = {}

    @property
    def name(self) -> str:
        files = getattr(self._dataset, "files", [])
        return f"the dataset of {len(files)} file{'' if len(files) == 1 else 's'}" if files else "the dataset"

    def _fragments(self) -> list[Any]:
        try:
            return list(self._dataset.get_fragments())
        except ValueError:  # filtered: only the whole of it knows which rows
            return [self._dataset]

    def parts(self) -> Sequence[Part]:
        if self._parts is None:
            made = []
            with _reading(self.name, "a dataset"):
                for number, fragment in enumerate(self._fragments()):
                    start = 0
                    for group in getattr(fragment, "row_groups", [None]):
                        rows = None if group is None else group.num_rows
                        made.append(Part(number, start, rows, (fragment, group)))
                        start += rows or 0
                    self._seen[number] = _stamp(fragment)
            self._parts = made
        return self._parts

    def read(self, part: Part, rows: int, targets_only: bool = False) -> Iterator[Block]:
        selection = self._selection
        if targets_only:
            selection = self.plan.targets.select(self._dataset.schema.names, self.name)
        fragment, group = part.key
        row = 0
        with _reading(getattr(fragment, "path", self.name), "part of a dataset"):
            if _stamp(fragment) != self._seen.get(part.file):
                raise InvalidDataError(
                    f"{fragment.path} was changed or replaced while it is in use: make a new stream of it."
                )
        with _reading(getattr(fragment, "path", self.name), "part of a dataset"):
            tables = self._scanned(fragment, selection.names, rows)
            if group is not None:
                tables = self._row_group(fragment, group.id, selection.names, rows)
            for table in tables:
                block = from_frame(selection, table, self, part, row)
                row += len(block)
                if len(block):
                    yield block

    def _row_group(self, fragment: Any, group: int, names: list[str], rows: int) -> Iterator[Any]:
        """A row group of a Parquet file; a scanner would hold all of it."""
        parquet = optional("pyarrow.parquet", f"Reading {self.name}")
        known = optional("pyarrow.dataset", f"Reading {self.name}").get_partition_keys(
            fragment.partition_expression
        )
        there = [name for name in names if name not in known]
        options = {"buffer_size": _buffer(len(there)), "pre_buffer": False}
        with fragment.open() as source, parquet.ParquetFile(source, **options) as file:
            missing = [name for name in there if name not in file.schema_arrow.names]
            if missing:
                raise InvalidDataError(f"{fragment.path} has no column {missing[0]!r}.")
            for batch in file.iter_batches(rows, row_groups=[group], columns=there, use_threads=False):
                columns = {name: batch.column(i) for i, name in enumerate(batch.schema.names)}
                columns.update({n: np.full(batch.num_rows, v) for n, v in known.items() if n in names})
                yield columns

    def _scanned(self, fragment: Any, names: list[str], rows: int) -> Iterator[Any]:
        """A file of another kind, or a dataset with a filter."""
        options = {"columns": names, "batch_size": rows, "use_threads": False}
        options |= {"batch_readahead": 0, "fragment_readahead": 0}
        if fragment is not self._dataset:
            options["schema"] = self._dataset.schema
        yield from fragment.scanner(**options).to_batches()

    def place(self, part: Part, row: int) -> str:
        return f"{getattr(part.key[0], 'path', self.name)}, row {part.start + row}"

    def fingerprint(self) -> dict[str, str]:
        made: dict[str, str] = {}
        for number, fragment in enumerate(self._fragments()):
            path = getattr(fragment, "path", f"part {number}")
            rows = [part.rows for part in self.parts() if part.file == number]
            made[path] = "rows unknown" if None in rows else f"{sum(n or 0 for n in rows)} rows"
            filesystem = getattr(fragment, "filesystem", None)
            if filesystem is not None:
                info = filesystem.get_file_info(path)
                made[path] += f", {info.size} bytes, changed at {info.mtime_ns}"
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None, "_seen": {}}

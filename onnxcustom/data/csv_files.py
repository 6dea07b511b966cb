"""CSV files, read by pyarrow where it is installed; errors name the line, the column and the cell."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import importlib
import itertools
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TextIO

import numpy as np

from onnxcustom.exceptions import InvalidDataError, OnnxCustomError

from .columns import Selection
from .data_file import DataFile
from .frames import slice_rows

__all__ = ["CsvFile"]

# Rows that decide which columns are numbers, and bytes that pyarrow takes at a time: one line must fit.
_LOOK, _CHUNK = 1000, 2**22
_DELIMITERS = ",;\t|"
_TRUTHS = {"true": True, "false": False}


class CsvFile(DataFile):
    """A text file of rows, gzipped or not. The first line names the columns; it has one part."""

    suffixes: ClassVar[tuple[str, ...]] = tuple(s + c for s in (".csv", ".tsv") for c in ("", ".gz", ".bz2"))
    _known: tuple[list[str], str, list[str]] | None = None

    # -- what is in it -------------------------------------------------------------------------------

    def _look(self) -> tuple[list[str], str, list[str]]:
        """Names of the columns, delimiter, and kinds of the columns by the first rows."""
        if self._known is None:
            delimiter = self._delimiter()
            rows = list(itertools.islice(self._records(delimiter), _LOOK + 1))
            if not rows:
                raise InvalidDataError(f"{self.path} is empty.")
            names = rows[0][1]
            if all(_is_number(cell) for cell in names):
                raise InvalidDataError(
                    f"{self.path}, line 1: {', '.join(names[:5])} are numbers; the first line names columns."
                )
            columns = [[cells[i] for _, cells in rows[1:]] for i in range(len(names))]
            self._known = names, delimiter, [_kind(column) for column in columns]
        return self._known

    def names(self) -> list[str]:
        return self._look()[0]

    def parts(self) -> list[tuple[int | None, Any]]:
        return [(None, None)]

    def place(self, row: int) -> str:
        for line, _ in itertools.islice(self._rows(), row, None):
            return f"{self.path}, line {line}"
        return f"{self.path}, row {row}"

    # -- as text ---------------------------------------------------------------------------------------

    def _compression(self) -> str | None:
        lower = self.path.lower()
        return "gzip" if lower.endswith(".gz") else "bz2" if lower.endswith(".bz2") else None

    def _open(self) -> TextIO:
        opened: Any = {"gzip": gzip.open, "bz2": bz2.open}.get(self._compression() or "", open)
        return opened(self.path, "rt", encoding="utf-8-sig", newline="")

    def _delimiter(self) -> str:
        """The one there are most of in the first line, outside quotes."""
        with _reading(self.path), self._open() as file:
            line = re.sub(r'"[^"]*"', "", file.readline())
        return "\t" if ".tsv" in self.path.lower()[-8:] else max(_DELIMITERS, key=line.count)

    def _records(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        """Number of the line and cells of every line that is not empty, names of columns first."""
        width = 0 if self._known is None else len(self._known[0])
        with _reading(self.path), self._open() as file:
            lines = csv.reader(file, delimiter=delimiter)
            for cells in lines:
                if not cells:
                    continue
                width = width or len(cells)
                if len(cells) != width:
                    raise InvalidDataError(
                        f"{self.path}, line {lines.line_num}: the number of cells is {len(cells)}, in the "
                        f"first line it is {width}."
                    )
                yield lines.line_num, cells

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        return itertools.islice(self._records(self._look()[1]), 1, None)

    def _complain(self, selection: Selection, why: Exception | None = None) -> None:
        """Look for the first cell that is not what its column must hold, and raise an error that names it."""
        kinds = self._kinds(selection)
        places = [(i, name) for i, name in enumerate(self.names()) if name in kinds]
        for line, cells in self._rows():
            for i, name in places:
                if not _fits(cells[i], kinds[name]):
                    what = repr(cells[i]) if cells[i] else "an empty cell"
                    wanted = "" if kinds[name] == "text" else _WANTED[kinds[name]]
                    raise InvalidDataError(
                        f"{self.path}, line {line}, column {name!r}: {what}{wanted}."
                    ) from why
        raise InvalidDataError(f"{self.path} cannot be read as CSV: {why}") from why

    # -- as columns ------------------------------------------------------------------------------------

    def _kinds(self, selection: Selection) -> dict[str, str]:
        """What the columns of a selection must hold: features that look like text are no numbers."""
        names, _, kinds = self._look()
        found = dict(zip(names, kinds, strict=True))
        return {
            name: "number" if found[name] == "text" and name in selection.numeric else found[name]
            for name in selection.names
        }

    def tables(self, key: Any, rows: int, selection: Selection) -> Iterator[Any]:
        names, _, found = self._look()
        kinds = self._kinds(selection)
        if any(name in kinds and kinds[name] != kind for name, kind in zip(names, found, strict=True)):
            self._complain(selection)
        labels = {name for name, kind in kinds.items() if kind == "number" and name not in selection.numeric}
        try:
            reader = importlib.import_module("pyarrow.csv")
        except ImportError:
            yield from self._slowly(rows, selection, kinds, labels)
        else:
            yield from self._quickly(reader, rows, selection, kinds, labels)

    def _quickly(
        self, module: Any, rows: int, selection: Selection, kinds: dict[str, str], labels: set[str]
    ) -> Iterator[Any]:
        """Through pyarrow."""
        pa = importlib.import_module("pyarrow")
        types = {"number": pa.float64(), "bool": pa.bool_(), "text": pa.string()}
        convert = module.ConvertOptions(
            column_types={n: pa.string() if n in labels else types[k] for n, k in kinds.items()},
            include_columns=selection.names,
        )
        parse = module.ParseOptions(delimiter=self._look()[1], newlines_in_values=True)
        read = module.ReadOptions(use_threads=False, block_size=_CHUNK)
        try:
            with (
                pa.input_stream(self.path, compression=self._compression()) as source,
                module.open_csv(source, read, parse, convert) as file,
            ):
                for batch in file:
                    columns = {name: batch.column(i) for i, name in enumerate(batch.schema.names)}
                    arrays = {name: _labels(pa, c) if name in labels else c for name, c in columns.items()}
                    if any(_has_null(array, kinds[name]) for name, array in arrays.items()):
                        self._complain(selection)
                    for start in range(0, batch.num_rows, rows):
                        yield {name: slice_rows(array, start, start + rows) for name, array in arrays.items()}
        except OnnxCustomError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError) as exc:
            self._complain(selection, exc)

    def _slowly(
        self, rows: int, selection: Selection, kinds: dict[str, str], labels: set[str]
    ) -> Iterator[Any]:
        """Without pyarrow."""
        place = {name: i for i, name in enumerate(self.names())}
        places = {name: place[name] for name in selection.names}
        lines = self._rows()
        while True:
            cells = [cells for _, cells in itertools.islice(lines, rows)]
            if not cells:
                return
            try:
                yield {n: _column([c[i] for c in cells], kinds[n], n in labels) for n, i in places.items()}
            except ValueError as exc:
                self._complain(selection, exc)


_WANTED = {"number": " is not a number", "bool": " is neither true nor false"}


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """What cannot be read is an error that names the file."""
    try:
        yield
    except OnnxCustomError:
        raise
    except UnicodeDecodeError as exc:
        raise InvalidDataError(
            f"{path} cannot be read as CSV: it is not in UTF-8 (byte {exc.object[exc.start]:#04x}); "
            "save it so."
        ) from exc
    except (OSError, EOFError, csv.Error, zlib.error) as exc:
        raise InvalidDataError(f"{path} cannot be read as CSV: {exc}") from exc


def _is_number(cell: str) -> bool:
    try:
        return "_" not in cell and not math.isnan(float(cell))
    except ValueError:
        return False


def _fits(cell: str, kind: str) -> bool:
    if kind == "number":
        return _is_number(cell)
    return cell.lower() in _TRUTHS if kind == "bool" else bool(cell)


def _kind(cells: Sequence[str]) -> str:
    """What a column holds, by some of its cells."""
    held = [cell for cell in cells if cell]
    return next((kind for kind in ("number", "bool") if all(_fits(cell, kind) for cell in held)), "text")


def _column(cells: list[str], kind: str, label: bool) -> np.ndarray:
    """Cells as an array; what does not fit is a ValueError."""
    if not all(_fits(cell, kind) for cell in cells):
        raise ValueError("a cell is not what its column must hold")
    if kind == "text":
        return np.array(cells, dtype=object)
    if kind == "bool":
        return np.array([_TRUTHS[cell.lower()] for cell in cells])
    if label:
        with contextlib.suppress(ValueError, OverflowError):
            return np.array([int(cell) for cell in cells], dtype=np.int64)
    return np.array([float(cell) for cell in cells])


def _labels(pa: Any, cells: Any) -> Any:
    """Numbers in text as integers, if all of them are."""
    try:
        return cells.cast(pa.int64())
    except pa.ArrowException:
        made = cells.cast(pa.float64())
    if np.isnan(made.to_numpy(zero_copy_only=False)).any():
        raise ValueError("NaN is no label")
    return made


def _has_null(column: Any, kind: str) -> bool:
    """Whether a column of pyarrow holds an empty cell."""
    if kind == "text":
        return bool((column.to_numpy(zero_copy_only=False) == "").any())
    return bool(column.null_count)

"""Predictions as files: CSV, Parquet or NumPy, written row by row where the format allows it."""

from __future__ import annotations

import contextlib
import csv
import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from onnxcustom.data._optional import optional
from onnxcustom.exceptions import InvalidDataError

__all__ = ["ENDINGS", "Writer", "flat_columns", "open_writer"]

ENDINGS = (".csv", ".tsv", ".parquet", ".npy", ".npz")
# A table of more columns is no table; arrays of NumPy have no such limit.
_MOST_COLUMNS = 10_000


class Writer(ABC):
    """Takes tables of columns, one after the other."""

    @abstractmethod
    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        """Write some rows: arrays of one length."""

    def close(self) -> None:  # noqa: B027
        """Write the end."""


def flat_columns(
    arrays: Mapping[str, np.ndarray], headings: Mapping[str, list[str]]
) -> dict[str, np.ndarray]:
    """Arrays as columns of one number a row.

    Parameters
    ----------
    arrays : dict of str to ndarray of shape (n, ...)
        By name.
    headings : dict of str to list of str
        Names of the columns of an array, where its own with numbers behind it will not do.

    Raises
    ------
    InvalidDataError
        Too many columns.

    Examples
    --------
    >>> list(flat_columns({"a": np.zeros((2, 1)), "b": np.zeros((2, 2))}, {}))
    ['a', 'b_0', 'b_1']
    """
    made: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        table = array.reshape(len(array), -1) if array.size else array.reshape(len(array), 0)
        width = table.shape[1]
        if len(made) + width > _MOST_COLUMNS:
            raise InvalidDataError(
                f"{name!r} has {width} numbers a row, too many columns for a table: write .npy or .npz."
            )
        names = headings.get(name) or ([name] if width == 1 else [f"{name}_{i}" for i in range(width)])
        made.update({heading: table[:, i] for i, heading in enumerate(names)})
    return made


@contextlib.contextmanager
def open_writer(target: Path | TextIO, ending: str) -> Iterator[Writer]:
    """A writer for a file, or for text.

    Raises
    ------
    MissingPackageError
        What writes such files is not installed.
    """
    if isinstance(target, io.TextIOBase) or not isinstance(target, Path):
        yield _Csv(target, ",")
        return
    if ending in (".csv", ".tsv"):
        with target.open("w", encoding="utf-8", newline="") as file:
            yield _Csv(file, "," if ending == ".csv" else "\t")
        return
    writer: Writer = _Parquet(target) if ending == ".parquet" else _Numpy(target, ending)
    try:
        yield writer
    finally:
        writer.close()


class _Csv(Writer):
    def __init__(self, file: Any, delimiter: str) -> None:
        self._writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        self._begun = False

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        if not self._begun:
            self._writer.writerow(columns)
            self._begun = True
        # As text NumPy's way: the fewest digits that tell a float32 from its neighbours.
        self._writer.writerows(zip(*(array.astype(str).tolist() for array in columns.values()), strict=True))


class _Parquet(Writer):
    def __init__(self, path: Path) -> None:
        self._parquet = optional("pyarrow.parquet", "Writing Parquet")
        self._pa, self._path = optional("pyarrow", "Writing Parquet"), path
        self._file: Any = None

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        table = self._pa.table(
            {
                name: self._pa.array(array.tolist() if array.dtype.kind in "OU" else array)
                for name, array in columns.items()
            }
        )
        if self._file is None:
            self._file = self._parquet.ParquetWriter(self._path, table.schema)
        self._file.write_table(table)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Numpy(Writer):
    """Keeps everything until the end: the files begin with the number of rows."""

    def __init__(self, path: Path, ending: str) -> None:
        self._path, self._ending = path, ending
        self._parts: list[dict[str, np.ndarray]] = []

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        self._parts.append({name: _plain(array) for name, array in columns.items()})

    def close(self) -> None:
        if not self._parts:
            return
        arrays = {n: np.concatenate([part[n] for part in self._parts]) for n in self._parts[0]}
        if self._ending == ".npy":
            with self._path.open("wb") as file:
                np.save(file, next(iter(arrays.values())), allow_pickle=False)
            return
        # savez takes names for arguments of its own.
        with zipfile.ZipFile(self._path, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)


def _plain(array: np.ndarray) -> np.ndarray:
    """Text as NumPy keeps it without pickles."""
    return array.astype(str) if array.dtype.kind == "O" else array

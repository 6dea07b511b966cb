"""The formats of files, and the files that paths, patterns and folders mean."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from onnxcustom.exceptions import InvalidDataError

from .arrow_files import ArrowFile, ParquetFile
from .csv_files import CsvFile
from .data_file import DataFile

__all__ = ["FORMATS", "find_files"]

#: Known formats; the suffixes of each say which files are of it.
FORMATS: tuple[type[DataFile], ...] = (ParquetFile, ArrowFile, CsvFile)


def find_files(source: Any) -> list[DataFile]:
    """The files that paths, patterns and folders mean.

    Parameters
    ----------
    source : str, path or list of them
        A name with ``*``, ``?`` or ``[`` is a pattern where no file is called like that; ``**`` goes into
        folders. Of a folder, all files of known kinds in it and in folders below it are read, but for those
        whose names begin with ``.`` or ``_``. Patterns and folders give files in the order of their names.

    Raises
    ------
    InvalidDataError
        There is no such file, or none of a kind that can be read.
    """
    given = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    if not given:
        raise InvalidDataError("The list of files is empty.")
    return [_data_file(path) for name in given for path in _expanded(os.fspath(name))]


def _expanded(name: str) -> list[str]:
    if os.path.isdir(name):
        found = sorted(
            str(p) for p in Path(name).rglob("*") if p.is_file() and _is_visible(p, name) and _kind(str(p))
        )
        if not found:
            raise InvalidDataError(f"Folder {name!r} holds no file that can be read: {_known()}.")
        return found
    if os.path.exists(name):
        return [name]
    if glob.has_magic(name):
        found = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
        if not found:
            raise InvalidDataError(f"No file is called like {name!r}.")
        return found
    if "://" in name:
        raise InvalidDataError(f"{name!r} is no path; make a pyarrow.dataset.dataset of it and give that.")
    raise InvalidDataError(f"There is no file {name!r}.")


def _is_visible(path: Path, folder: str) -> bool:
    return not any(part[0] in "._" for part in path.relative_to(folder).parts)


def _kind(path: str) -> type[DataFile] | None:
    lower = path.lower()
    return next((kind for kind in FORMATS if lower.endswith(kind.suffixes)), None)


def _known() -> str:
    return "names end in " + ", ".join(suffix for kind in FORMATS for suffix in kind.suffixes)


def _data_file(path: str) -> DataFile:
    kind = _kind(path)
    if kind is None:
        try:
            with open(path, "rb") as file:
                start = file.read(6)
        except OSError as exc:
            raise InvalidDataError(f"{path} cannot be read: {exc}") from exc
        kind = ParquetFile if start[:4] == b"PAR1" else ArrowFile if start == b"ARROW1" else None
    if kind is None:
        raise InvalidDataError(f"{path!r} is no file of a known kind: {_known()}.")
    return kind(path)

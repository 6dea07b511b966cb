"""Files of rows: which there are, and reading them part by part."""

from __future__ import annotations

import glob
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from onnxcustom.exceptions import InvalidDataError

from .blocks import Block
from .columns import Plan, Selection
from .fingerprints import hash_file
from .sources import Part, Source, from_frame

__all__ = ["DataFile", "FileSource", "find_files"]

_LOGGER = logging.getLogger("onnxcustom")
# What tells a file that was replaced while it is in use: pieces of it, few enough to be read at once.
_PIECE, _WHOLE = 2**14, 2**20


class DataFile(ABC):
    """A file of rows.

    Parameters
    ----------
    path : str
        Where it is.
    """

    #: Endings of names of such files.
    suffixes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def names(self) -> list[str]:
        """Names of its columns."""

    def index(self) -> list[str]:
        """Those of them that are the index of a frame of pandas."""
        return []

    @abstractmethod
    def parts(self) -> list[tuple[int | None, Any]]:
        """Number of rows, if it is known, and key of each part."""

    @abstractmethod
    def tables(self, key: Any, rows: int, selection: Selection) -> Iterator[Any]:
        """The rows of a part as frames of about so many rows that have the columns of a selection."""

    def place(self, row: int) -> str:
        """What to call a row in messages."""
        return f"{self.path}, row {row}"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


class FileSource(Source):
    """Files, one after the other.

    Parameters
    ----------
    files : sequence of DataFile
        At least one; all have the columns that are read of the first one.
    plan : Plan
        Which columns are read.
    """

    _selection: Selection

    def __init__(self, files: Sequence[DataFile], plan: Plan) -> None:
        super().__init__(plan)
        self.files = list(files)
        self._seen: dict[int, tuple[tuple[int, ...], str]] = {}
        self._check_same(0)
        self._selection = plan.select(self.files[0].names(), self.files[0].path, self.files[0].index())
        self._parts: list[Part] | None = None

    @property
    def name(self) -> str:
        first = repr(self.files[0].path)
        return first if len(self.files) == 1 else f"{first} and {len(self.files) - 1} more"

    def parts(self) -> Sequence[Part]:
        if self._parts is None:
            made = []
            for number, file in enumerate(self.files):
                self._check_same(number)
                if number:
                    self._selection.check(file.names(), file.path)
                start = 0
                for rows, key in file.parts():
                    if rows != 0:
                        made.append(Part(number, start, rows, key))
                    start += rows or 0
            self._parts = made
        return self._parts

    def read(self, part: Part, rows: int, targets_only: bool = False) -> Iterator[Block]:
        file = self.files[part.file]
        selection = self.plan.targets.select(file.names(), file.path) if targets_only else self._selection
        row = 0
        self._check_same(part.file)
        for table in file.tables(part.key, rows, selection):
            self._check_same(part.file)
            block = from_frame(selection, table, self, part, row)
            row += len(block)
            yield block

    def _check_same(self, number: int) -> None:
        """A file is the one that it was when it was first looked at.

        Raises
        ------
        InvalidDataError
            It is gone, or another one is in its place.
        """
        path = self.files[number].path
        try:
            status = os.stat(path)
            stamp = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            before, content = self._seen.get(number, (None, ""))
            if stamp == before:
                return
            now = hash_file(path, _PIECE, _WHOLE)
        except OSError as exc:
            raise InvalidDataError(f"{path} cannot be read: {exc}") from exc
        if before is not None and now != content:
            raise InvalidDataError(
                f"{path} was changed or replaced while it is in use: it had {before[2]:,} bytes, and has "
                f"{stamp[2]:,}. Make a new stream of it."
            )
        if before is not None:
            _LOGGER.warning("%s was written again while it is in use; it holds what it held.", path)
        self._seen[number] = stamp, now

    def place(self, part: Part, row: int) -> str:
        return self.files[part.file].place(part.start + row)

    def fingerprint(self) -> dict[str, str]:
        made: dict[str, str] = {}
        for number, file in enumerate(self.files):
            name = Path(file.path).name
            key = name if name not in made else f"{name} ({number})"
            try:
                made[key] = hash_file(file.path)
            except OSError as exc:
                raise InvalidDataError(f"{file.path} cannot be read: {exc}") from exc
            counts = [rows for rows, _ in file.parts()]
            if None not in counts:
                made[key] += f", {sum(n or 0 for n in counts)} rows"
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None, "_seen": {}}


# -- which files ----------------------------------------------------------------------------------------


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


def _kinds() -> list[type[DataFile]]:
    from .arrow_files import ArrowFile, ParquetFile
    from .csv_files import CsvFile

    return [ParquetFile, ArrowFile, CsvFile]


def _kind(path: str) -> type[DataFile] | None:
    lower = path.lower()
    return next((kind for kind in _kinds() if lower.endswith(kind.suffixes)), None)


def _known() -> str:
    return "names end in " + ", ".join(suffix for kind in _kinds() for suffix in kind.suffixes)


def _data_file(path: str) -> DataFile:
    kind = _kind(path)
    if kind is None:
        try:
            with open(path, "rb") as file:
                start = file.read(6)
        except OSError as exc:
            raise InvalidDataError(f"{path} cannot be read: {exc}") from exc
        parquet, arrow, _ = _kinds()
        kind = parquet if start[:4] == b"PAR1" else arrow if start == b"ARROW1" else None
    if kind is None:
        raise InvalidDataError(f"{path!r} is no file of a known kind: {_known()}.")
    return kind(path)

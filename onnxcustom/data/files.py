"""Files of rows, read part by part."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onnxcustom.exceptions import InvalidDataError

from .blocks import Block
from .columns import Plan, Selection
from .data_file import DataFile
from .fingerprints import hash_file
from .formats import find_files
from .sources import Part, Source, from_frame

__all__ = ["DataFile", "FileSource", "find_files"]

_LOGGER = logging.getLogger("onnxcustom")
# What tells a file that was replaced while it is in use: pieces of it, few enough to be read at once.
_PIECE, _WHOLE = 2**14, 2**20


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

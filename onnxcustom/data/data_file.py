"""What a file of rows answers, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from .columns import Selection

__all__ = ["DataFile"]


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

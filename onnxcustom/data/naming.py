"""Columns by name: the same ones in another order are put in order, others are refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from onnxcustom._registry import did_you_mean
from onnxcustom._text import listed
from onnxcustom.exceptions import InvalidDataError

from .frames import column_names, is_frame, library, select_columns, text_names

__all__ = [
    "ColumnCountError",
    "check_names",
    "frame_index",
    "in_order",
    "index_names",
    "naming",
    "without_index",
]


class ColumnCountError(InvalidDataError):
    """Too many columns or too few.

    Attributes
    ----------
    input : str
        The input of the model that takes others.
    """

    input: str = ""


def check_names(found: Sequence[str], wanted: Sequence[str], where: str, way_out: str = "") -> None:
    """Compare names of columns with those that a model takes, whatever their order.

    Parameters
    ----------
    found, wanted : sequence of str
        The table's columns, and the model's.
    where : str
        What to call the table.
    way_out : str, optional
        What to do about columns that are too many.

    Raises
    ------
    InvalidDataError
        Naming those that are missing, those that are not known, and what may be meant.
    """
    missing = [name for name in wanted if name not in found]
    others = [name for name in found if name not in wanted]
    twice = next((name for name in wanted if list(found).count(name) > 1), None)
    if not missing and not others and twice is None:
        return
    told = f"{where}: the model takes the columns {listed(wanted)}"
    if twice is not None:
        raise InvalidDataError(f"{told}; there are several called {twice!r}.")
    parts = [f"{listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"] if missing else []
    parts += [f"{listed(others)} {'is' if len(others) == 1 else 'are'} not among them"] if others else []
    hint = did_you_mean(missing[0], others) if missing else f" {way_out}" if way_out else ""
    raise InvalidDataError(f"{told}; {', '.join(parts)}.{hint}")


def in_order(frame: Any, wanted: Sequence[str], where: str) -> Any:
    """A frame with its columns in the order in which a model takes them.

    Parameters
    ----------
    frame : DataFrame, Table or RecordBatch
        Of pandas, polars or pyarrow. One of pandas whose columns are numbered has no names: it is returned
        as it is.
    wanted : sequence of str
        The model's columns.
    where : str
        What to call the frame in messages.

    Raises
    ------
    InvalidDataError
        It has others.
    """
    found = text_names(frame)
    if found is None or found == list(wanted):
        return frame
    check_names(found, wanted, where, "Leave out what is too many.")
    return select_columns(frame, wanted)


# -- the index of pandas ------------------------------------------------------------------------------


def index_names(metadata: Mapping[bytes, bytes] | None) -> list[str]:
    """Columns of a table of pyarrow that were the index of the frame of pandas it was made of.

    Parameters
    ----------
    metadata : mapping or None
        Of the table's schema. pandas says there what its index was; anything may be there.
    """
    try:
        found = json.loads((metadata or {}).get(b"pandas", b"{}"))["index_columns"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def frame_index(frame: Any) -> list[str]:
    """Columns of a frame of pyarrow that pandas takes for its index; none of others."""
    of_arrow = library(frame) == "pyarrow" and is_frame(frame)
    return index_names(frame.schema.metadata) if of_arrow else []


def without_index(frame: Any) -> Any:
    """A frame of pyarrow without the columns that pandas takes for its index; others as they are."""
    index = frame_index(frame)
    names = column_names(frame) if index else []
    kept = [name for name in names if name not in index]
    return select_columns(frame, kept) if kept and len(kept) < len(names) else frame


# -- where only rows are seen -------------------------------------------------------------------------


@contextlib.contextmanager
def naming(columns: Callable[[str], Sequence[str] | None]) -> Iterator[None]:
    """Let errors about the number of columns say what these are called.

    Parameters
    ----------
    columns : callable
        Names of the columns by input of the model, None if there are none.
    """
    try:
        yield
    except ColumnCountError as exc:
        names = columns(exc.input)
        if not names:
            raise
        raise InvalidDataError(f"{str(exc).removesuffix('.')}: {listed(names)}.") from exc

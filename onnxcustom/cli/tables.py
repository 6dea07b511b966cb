"""Files of rows by name of column, for one model: which columns are which of its inputs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from onnxcustom._registry import did_you_mean
from onnxcustom._text import listed
from onnxcustom.data import Stream
from onnxcustom.data.blocks import Block, Key, row_bytes
from onnxcustom.data.columns import Plan
from onnxcustom.data.files import FileSource, find_files
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.feed.specs import TensorSpec

from .models import Model
from .phrases import assigned, split_names

__all__ = ["IN_MEMORY", "Features", "Table", "checked_head", "features_of", "is_large", "reshaped", "whole"]

#: Rows of more bytes than this are read from the file again and again, not kept.
IN_MEMORY = 1 << 29
_NUMPY = (".npy", ".npz")


class Table:
    """A file of rows, several of them, or a folder.

    Parameters
    ----------
    path : str
        CSV, Parquet, Arrow or NumPy files.

    Raises
    ------
    InvalidDataError
        No such file, or none that can be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._arrays = _numpy_columns(path) if path.lower().endswith(_NUMPY) else None
        if self._arrays is None:
            self._files = find_files(path)
            self.names = self._files[0].names()
        else:
            self.names = list(self._arrays)
        #: Whether its names are those of arrays, which go by position, not those of columns.
        self.by_position = self._arrays is not None
        #: Columns that are the index of a frame of pandas: features only where they are named.
        self.index = self._files[0].index() if self._arrays is None else []

    def files(self) -> list[Path]:
        """The files that are read."""
        return [Path(self.path)] if self._arrays is not None else [Path(f.path) for f in self._files]

    def width(self, names: Sequence[str]) -> int:
        """How many columns of a matrix some of it are."""
        if self._arrays is None:
            return len(names)
        return sum(int(np.prod(self._arrays[name].shape[1:])) for name in names)

    def stream(self, plan: Plan) -> Stream:
        """The rows of a plan."""
        if self._arrays is not None:
            from onnxcustom.data.sources import FrameSource

            return Stream(FrameSource(self._arrays, plan, name=self.path))
        return Stream(FileSource(self._files, plan))

    def require(self, names: Sequence[str], option: str) -> None:
        """Refuse names of columns that there are not.

        Raises
        ------
        InvalidDataError
            Listing those there are.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            meant = did_you_mean(missing[0], self.names)
            raise InvalidDataError(
                f"{option}: {self.path} has no column {missing[0]!r}; it has {listed(self.names)}.{meant}"
            )
        twice = [name for name in names if self.names.count(name) > 1]
        if twice:
            raise InvalidDataError(f"{self.path} has several columns called {twice[0]!r}.")


def _numpy_columns(path: str) -> dict[str, np.ndarray]:
    """Arrays of a NumPy file as columns by name."""
    if not os.path.isfile(path):
        raise InvalidDataError(f"There is no file {path!r}.")
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            arrays = dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {Path(path).stem: found}
    except MemoryError:
        raise
    except Exception as exc:  # whatever half a file makes of readers of headers, archives and streams
        raise InvalidDataError(f"{path} cannot be read as arrays of NumPy: {exc}") from exc
    scalars = [name for name, array in arrays.items() if array.ndim == 0]
    if scalars or not arrays:
        raise InvalidDataError(f"{path}: {scalars[0]!r} has no rows." if scalars else f"{path} is empty.")
    return arrays


@dataclasses.dataclass(frozen=True)
class Features:
    """Columns by input of a model.

    Attributes
    ----------
    columns : dict of str to list of str
        For every input its columns, in order.
    single : bool
        Whether the model has one input: features are then one array, not a dict.
    """

    columns: dict[str, list[str]]
    single: bool

    @property
    def names(self) -> list[str]:
        """All columns."""
        return [name for names in self.columns.values() for name in names]

    def plan(self, target: Any = None, sample_weight: str | None = None) -> Plan:
        """What is read of a file."""
        if self.single:
            (names,) = self.columns.values()
            return Plan(target, names, sample_weight)
        return Plan(target, None, sample_weight, self.columns)


def features_of(
    model: Model, table: Table, columns: Sequence[str], inputs: Sequence[str], others: Sequence[str]
) -> Features:
    """The columns of the features.

    Parameters
    ----------
    model : Model
        Whose inputs they are for.
    table : Table
        The file.
    columns, inputs : sequence of str
        As they were typed for ``--columns`` and ``--input``.
    others : sequence of str
        Columns that are something else.

    Raises
    ------
    click.UsageError
        Options that don't fit together.
    InvalidDataError
        No such column, or the wrong number of them.
    """
    found, option = _columns(model, table, columns, inputs, others)
    for name, names in found.items():
        table.require(names, option or f"input {name!r}")
        if option is not None:
            _refuse_others(names, others, option)
            _refuse_twice(names, option)
    return Features(found, len(model.inputs) == 1)


def _refuse_others(names: Sequence[str], others: Sequence[str], option: str) -> None:
    both = [name for name in names if name in others]
    if both:
        raise click.UsageError(
            f"{option}: column {both[0]!r} cannot be a feature and the target or a weight at once."
        )


def _refuse_twice(names: Sequence[str], option: str) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise click.UsageError(f"{option} names column {twice[0]!r} twice.")


def _columns(
    model: Model, table: Table, columns: Sequence[str], inputs: Sequence[str], others: Sequence[str]
) -> tuple[dict[str, list[str]], str | None]:
    """Columns by input, and the option they come from."""
    specs = model.inputs
    if columns and inputs:
        raise click.UsageError("Give --columns for a model of one input or --input for several, not both.")
    if inputs:
        given = assigned(inputs, [spec.name for spec in specs], "--input")
        missing = [spec.name for spec in specs if spec.name not in given]
        if missing:
            raise click.UsageError(f"--input is missing for {', '.join(map(repr, missing))}.")
        return {s.name: split_names([given[s.name]], table.names) for s in specs}, "--input"
    if columns and len(specs) > 1:
        raise click.UsageError(f"The model has several inputs, {_names(specs)}: give --input for each.")
    if columns:
        return {specs[0].name: split_names(columns, table.names)}, "--columns"
    known = model.columns
    if set(known) == {s.name for s in specs}:
        names = [name for part in known.values() for name in part]
        if all(name in table.names and name not in others for name in names):
            return {s.name: known[s.name] for s in specs}, None
        missing = [name for name in names if name not in table.names]
        if missing and not (table.by_position and len(missing) == len(names)):
            raise InvalidDataError(
                f"The model was trained on column {missing[0]!r}, which {table.path} does not have; it has "
                f"{listed(table.names)}.{did_you_mean(missing[0], table.names)} Name the "
                "columns with --columns or --input, in the model's order."
            )
    if len(specs) > 1:
        return _by_name(specs, table), None
    return {specs[0].name: _rest(model, table, others)}, None


def _rest(model: Model, table: Table, others: Sequence[str]) -> list[str]:
    """All columns but some; not the target of a model that knows what it was, where it is not asked for."""
    rest = [name for name in table.names if name not in others and name not in table.index]
    if model.card is not None and model.card.task:
        without = [name for name in rest if name not in model.card.target]
        if model.inputs[0].width in (None, table.width(without)):
            rest = without or rest
    if not rest:
        raise InvalidDataError(
            f"{table.path} has the columns {listed(table.names)}: none is left for the "
            f"features.{' --columns takes also the index of pandas.' if table.index else ''}"
        )
    return rest


def _by_name(specs: Sequence[TensorSpec], table: Table) -> dict[str, list[str]]:
    missing = [spec.name for spec in specs if spec.name not in table.names]
    if missing:
        raise click.UsageError(
            f"The model has several inputs, {_names(specs)}, and {table.path} has no column {missing[0]!r}: "
            f"say which columns they take, as --input {specs[0].name}=A,B."
        )
    return {spec.name: [spec.name] for spec in specs}


def _names(specs: Sequence[TensorSpec]) -> str:
    return listed(spec.name for spec in specs)


def checked_head(model: Model, table: Table, features: Features, rows: Stream) -> Block:
    """The first rows of a file, which have as many columns as the model takes.

    Raises
    ------
    InvalidDataError
        They have not, or something else is wrong with them.
    """
    try:
        head = rows.head()
    except InvalidDataError:
        # That there are too many columns says more than that one of them holds text.
        model.check_widths({n: len(c) for n, c in features.columns.items()}, table.path, features.columns)
        raise
    X = {model.inputs[0].name: head.X} if features.single else head.X
    widths = {name: int(np.prod(array.shape[1:])) for name, array in X.items()}
    model.check_widths(widths, table.path, features.columns)
    return head


# -- reading ------------------------------------------------------------------------------------------


def is_large(rows: Stream, table: Table) -> bool:
    """Whether rows had better not be kept in memory: by the file alone, the same on every machine."""
    count = rows.rows
    if count is None:
        return sum(_unpacked(path) for path in table.files()) > IN_MEMORY
    return count * row_bytes(rows.head(1)) > IN_MEMORY


def _unpacked(path: Path) -> int:
    """About the bytes of a text file before it was packed."""
    return path.stat().st_size * (5 if path.suffix.lower() in (".gz", ".bz2") else 1)


def whole(rows: Stream, model: Model) -> tuple[Any, Any, np.ndarray | None]:
    """All rows as arrays: features as the model takes them, expected values and weights.

    Raises
    ------
    InvalidDataError
        There are none, or a number is NaN or infinite.
    """
    specs = {Key("X", spec.name): spec for spec in model.inputs}
    if len(model.inputs) == 1:
        specs[Key("X")] = model.inputs[0]

    def fitted(block: Block) -> Block:
        return Block({key: _fitted(array, specs.get(key)) for key, array in block.arrays.items()})

    blocks = list(rows.blocks(apply=fitted))
    if not blocks:
        raise rows.empty()
    if not all(_is_finite(array) for block in blocks for array in block.arrays.values()):
        raise InvalidDataError(f"{rows.where_not_finite() or 'A number is too large for the model'}.")
    made = {key: np.concatenate([b.arrays[key] for b in blocks]) for key in blocks[0].arrays}
    block = Block(made)
    return block.X, block.y, block.sample_weight


def _fitted(array: np.ndarray, spec: TensorSpec | None) -> np.ndarray:
    """An array in the precision and the shape of an input; of expected values as it is."""
    if spec is None:
        return array
    array = reshaped(array, spec)
    if spec.dtype is None or spec.dtype.kind != "f" or array.dtype == spec.dtype:
        return array
    with np.errstate(over="ignore"):
        return array.astype(spec.dtype)


def reshaped(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Columns as pictures, where a model takes those, rows first.

    Raises
    ------
    InvalidDataError
        Another number of columns.
    """
    rest = spec.of_row
    if rest is None or len(rest) == array.ndim - 1:
        return array
    if spec.width is None or spec.width != int(np.prod(array.shape[1:])):
        raise InvalidDataError(f"Rows have the shape {array.shape[1:]}, input {spec} takes others.")
    return array.reshape(len(array), *rest)


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())

"""What the tensors of a model want, and where their rows are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.graph import to_ir
from onnxcustom.graph.analysis.lookups import IndexRange, lookups
from onnxcustom.graph.files.feature_names import read_feature_names

__all__ = [
    "TensorSpec",
    "input_specs",
    "of_batch",
    "row_count",
    "rows_of",
    "shape_text",
    "some_rows",
    "tensor_specs",
    "with_axis",
    "with_limits",
]


@dataclass(frozen=True)
class TensorSpec:
    """What a graph input wants.

    Parameters
    ----------
    name : str
        Its name, for messages.
    dtype : dtype, optional
        Its dtype; None leaves the data's own.
    shape : tuple, optional
        Its dimensions, int where they are fixed; None leaves them free.
    axis : int or None, default=0
        Axis of the rows. Without one, it is given once a batch, as it is.
    each : bool, default=False
        Whether, without such an axis, data may have one of it for each row, along an axis in front:
        where the model takes a single row at a time.
    weighed : bool, default=False
        Whether weights may have its shape rather than one number a row.
    columns : tuple of str, optional
        Names of the columns, if the model knows them: a frame has these, in any order.
    group : str, optional
        The output that several tensors are expected for, of which it is one.
    places : IndexRange, optional
        The integers that it may hold, where they are looked up in a table.
    """

    name: str
    dtype: np.dtype | None = None
    shape: tuple[int | str | None, ...] | None = None
    axis: int | None = 0
    each: bool = False
    weighed: bool = False
    columns: tuple[str, ...] | None = None
    places: IndexRange | None = None
    group: str | None = None

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None if free."""
        return None if self.shape is None else len(self.shape)

    @property
    def rows(self) -> int | None:
        """Number of rows, where the model fixes it."""
        size = self.shape[self.axis] if self.shape and self.axis is not None else None
        return size if isinstance(size, int) else None

    @property
    def of_row(self) -> tuple[int | str | None, ...] | None:
        """Dimensions of what it takes for a row, None if free."""
        return None if self.shape is None else tuple(d for i, d in enumerate(self.shape) if i != self.axis)

    @property
    def width(self) -> int | None:
        """Numbers that it takes for a row, None if any number of them will do."""
        sizes = [None] if self.of_row is None else [d if isinstance(d, int) else None for d in self.of_row]
        return None if None in sizes else math.prod(d for d in sizes if d is not None)

    def __str__(self) -> str:
        return f"{self.name!r} of shape {shape_text(self.shape)}"

    def is_each(self, array: Any) -> bool:
        """Whether an array holds one of it for each row."""
        return self.each and self.rank is not None and array.ndim == self.rank + 1


def with_axis(spec: TensorSpec, axis: int | None, fixed: int | None) -> TensorSpec:
    """A specification with its rows on an axis, of a model that fixes the rows of a batch, or not."""
    return replace(spec, axis=axis, each=axis is None and fixed == 1)


def row_count(array: Any, spec: TensorSpec) -> int | None:
    """Rows of an array, None if it is given once a batch."""
    if spec.is_each(array):
        return len(array)
    return None if spec.axis is None else array.shape[spec.axis]


def rows_of(arrays: Mapping[str, Any], specs: Iterable[TensorSpec]) -> int:
    """Rows of a batch: 1 if none of its arrays has an axis of rows."""
    counts = (row_count(arrays[spec.name], spec) for spec in specs)
    return next((n for n in counts if n is not None), 1)


def some_rows(array: Any, spec: TensorSpec, rows: Any) -> Any:
    """Some of the rows, a slice or indices, of an array; all of what is given once a batch."""
    if spec.is_each(array):
        return array[rows]
    return array if spec.axis is None else array[(slice(None),) * spec.axis + (rows,)]


def of_batch(array: Any, spec: TensorSpec) -> Any:
    """An array of the rows of one batch as the model takes it.

    Raises
    ------
    InvalidDataError
        It holds one of it for each of several rows.
    """
    if not spec.is_each(array):
        return array
    if len(array) != 1:
        raise InvalidDataError(
            f"The model takes one row at a time; {spec.name!r} has {len(array)}: give one row, or call fit."
        )
    return array[0, ...]


def tensor_specs(values: Iterable[ir.Value]) -> list[TensorSpec]:
    """Specifications of graph inputs or outputs."""
    specs = []
    for value in values:
        dtype = None if value.dtype is None or value.dtype == ir.DataType.UNDEFINED else value.dtype.numpy()
        shape = (
            None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
        )
        specs.append(TensorSpec(str(value.name), None if dtype is None else np.dtype(dtype), shape))
    return specs


def input_specs(model: onnx.ModelProto | ir.Model) -> list[TensorSpec]:
    """Specifications of the inputs of a model that are not initializers."""
    made = model if isinstance(model, ir.Model) else to_ir(model)
    specs = tensor_specs(v for v in made.graph.inputs if v.name not in made.graph.initializers)
    return with_limits(specs, read_feature_names(made), lookups(made))


def with_limits(
    specs: Iterable[TensorSpec], names: Mapping[str, tuple[str, ...]], places: Mapping[str, IndexRange]
) -> list[TensorSpec]:
    """Specifications with names of columns and with what is looked up, by tensor."""
    return [replace(s, columns=names.get(s.name), places=places.get(s.name)) for s in specs]


def shape_text(shape: Iterable[int | str | None] | None) -> str:
    """A shape for messages, with question marks for what is not known."""
    return f"({', '.join('?' if d is None else str(d) for d in ((None,) if shape is None else shape))})"

"""Tensors that users hand in: listed, and checked against the declaration of an input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.graph.analysis.lookups import IndexRange

__all__ = ["PlaceError", "as_list", "check_against", "check_places"]

_TYPES = {onnx.TensorProto.DataType.Name(t).lower(): t for t in onnx.TensorProto.DataType.values() if t != 0}


def as_list(values: Any) -> list[Any]:
    """A list of what came in; an OrtValueVector is read element by element."""
    if isinstance(values, np.ndarray) or hasattr(values, "data_ptr"):
        raise InvalidDataError("A list of tensors is expected, not a single tensor: put it into a list.")
    return [values[i] for i in range(len(values))]


def check_against(name: str, value: Any, info: onnx.ValueInfoProto, rank: bool = True) -> None:
    """Dtype, rank and static dimensions of a tensor against a declaration."""
    tensor = info.type.tensor_type
    text = value.data_type()
    got = _TYPES.get(text[7:-1] if text.startswith("tensor(") else "")
    if got != tensor.elem_type:
        wanted = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise InvalidDataError(f"Input {name!r} must be tensor({wanted}), not {text}.")
    if not rank or not tensor.HasField("shape"):
        return
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    shape = list(value.shape())
    if len(shape) != len(dims):
        raise InvalidDataError(f"Input {name!r} must have {len(dims)} dimensions, not {len(shape)}: {shape}.")
    if any(d is not None and d != s for d, s in zip(dims, shape, strict=False)):
        raise InvalidDataError(f"Input {name!r} has shape {shape}; {dims} is expected (None: any).")


class PlaceError(InvalidDataError):
    """An integer that is no place of the table in which it is looked up.

    Attributes
    ----------
    value : int
        The first one.
    row : str
        What the message says of its row.
    input : str
        Name of the input.
    """

    value: int = 0
    row: str = ""
    input: str = ""

    def within(self, place: str) -> PlaceError:
        """The same error with a place in files in place of the row of a block."""
        made = type(self)(f"{place}: {str(self).replace(self.row, '', 1) if self.row else self}")
        made.value, made.input = self.value, self.input
        return made


def check_places(array: np.ndarray, places: IndexRange, name: str, axis: int | None = 0) -> None:
    """Look for integers that are no places of the table in which they are looked up.

    Raises
    ------
    InvalidDataError
        Naming the first one, its row and what is allowed.
    """
    if not array.size or (array.min() >= places.low and array.max() <= places.high):
        return
    first = np.argwhere((array < places.low) | (array > places.high))[0]
    value = int(array[tuple(first)])
    row = "" if axis is None or not len(first) else f" in row {int(first[axis])}"
    error = PlaceError(
        f"Input {name!r} holds {value}{row}, which is looked up in a table of {places.high + 1} "
        f"(node {places.node!r}): numbers from {places.low} to {places.high} are there."
    )
    error.value, error.row, error.input = value, row, name
    raise error

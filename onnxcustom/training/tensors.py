"""Tensors that users hand in: listed, and checked against the declaration of an input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxcustom.exceptions import InvalidDataError

__all__ = ["check_against", "listed"]

_TYPES = {onnx.TensorProto.DataType.Name(t).lower(): t for t in onnx.TensorProto.DataType.values() if t != 0}


def listed(values: Any) -> list[Any]:
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

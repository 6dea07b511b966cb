"""A model without its numbers: what a checker needs to see of it."""

from __future__ import annotations

from typing import Any

import onnx

from onnxcustom.graph.files.limits import data_size

__all__ = ["outline"]

# Bytes of a tensor that are worth leaving out.
_LARGE = 1024


def outline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the data of large initializers, which are said to be empty.

    The checker serializes what it is given and parses it again: two more copies of all weights.

    Parameters
    ----------
    proto : onnx.ModelProto
        The model; it is not changed.

    Returns
    -------
    onnx.ModelProto
    """
    made = onnx.ModelProto()
    _copy_fields(proto, made, but="graph")
    _copy_fields(proto.graph, made.graph, but="initializer")
    for tensor in proto.graph.initializer:
        if tensor.HasField("raw_data") and data_size(tensor) > _LARGE:
            made.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=[0])
        else:
            made.graph.initializer.add().CopyFrom(tensor)
    return made


def _copy_fields(source: Any, target: Any, but: str) -> None:
    """Copy all fields of a message but one."""
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if isinstance(value, (str, bytes, int, float)):
            setattr(target, field.name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            getattr(target, field.name).extend(value)

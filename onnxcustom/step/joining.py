"""Several outputs side by side as one tensor, for losses that are taken on all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError, UnknownNameError
from onnxcustom.graph.analysis.traversal import all_names, sort_nodes
from onnxcustom.graph.building.builder import Builder

__all__ = ["join", "joined_name", "row_shapes"]


def joined_name(outputs: Sequence[str]) -> str:
    """Name of the tensor that holds some outputs side by side."""
    return "|".join(outputs)


def join(model: ir.Model, joins: Iterable[Sequence[str]]) -> ir.Model:
    """Add to a prepared model, in place, a tensor [rows, numbers] for each of some lists of outputs.

    Raises
    ------
    UnknownNameError, InvalidModelError
        An output that the model does not have, or that is no tensor of rows of a known number of numbers.
    """
    joins = list(joins)
    if not joins:
        return model
    graph = model.graph
    values = {str(v.name): v for v in graph.outputs}
    op = Builder(model.opset_imports[""], taken=all_names(graph))
    for outputs in joins:
        sizes = [math.prod(shape) for shape in row_shapes(values, outputs)]
        parts = []
        for x in (op.wrap(values[name]) for name in outputs):
            parts.append(x if x.rank == 2 else op.Unsqueeze(x, [1]) if x.rank == 1 else op.Flatten(x, axis=1))
        made = op.Concat(*parts, axis=1)
        rows = values[outputs[0]].shape
        made.value.name = joined_name(outputs)
        made.value.shape = ir.Shape([None if rows is None else rows[0], sum(sizes)])
        made.value.dtype = values[outputs[0]].dtype
    graph.extend(op.nodes)
    for initializer in op.initializers:
        graph.register_initializer(initializer)
    sort_nodes(graph)
    return model


def row_shapes(values: Mapping[str, ir.Value], outputs: Sequence[str]) -> list[tuple[int, ...]]:
    """What each output has in a row."""
    shapes = []
    for name in outputs:
        if name not in values:
            raise UnknownNameError(f"The model has no output {name!r}; its outputs are {list(values)}.")
        value = values[name]
        shape = None if value.shape is None else list(value.shape)
        if not shape or not all(isinstance(d, int) for d in shape[1:]):
            raise InvalidModelError(
                f"A loss of the outputs {list(outputs)} takes them side by side: output {name!r} must have "
                f"its rows first, and a known number of numbers in each; its shape is {shape}."
            )
        dtype = value.dtype
        if dtype is None or dtype != values[outputs[0]].dtype or not dtype.is_floating_point():
            raise InvalidModelError(
                f"A loss of the outputs {list(outputs)} takes floating-point numbers of one type: output "
                f"{name!r} is of {dtype}."
            )
        shapes.append(tuple(d for d in shape[1:] if isinstance(d, int)))
    return shapes

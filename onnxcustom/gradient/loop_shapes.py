"""Which states of a Loop keep their shape from one iteration to the next, by induction.

What the model declares inside the body is not trusted: exporters put the shapes of the first iteration
there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
import onnx_ir as ir
from onnx import GraphProto

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.shapes.propagation import infer_with_values

from .carried import captured_values

__all__ = ["state_shapes"]

Dims = list[int | str | None]

# Values of constants that a body reads from outside matter to shapes up to this many elements.
_SMALL = 64

# Names that onnx makes up start like this; they mean nothing outside one inference.
_MADE_UP = "unk__"


def state_shapes(node: ir.Node, opsets: Mapping[str, int]) -> tuple[list[Dims | None], set[int]]:
    """Shape that each state of a Loop has at the start of every iteration, as far as it is certain.

    The values of the body get the shapes that follow, and forget all others.

    Parameters
    ----------
    node : onnx_ir.Node
        The Loop.
    opsets : dict of str to int
        Versions of the domains.

    Returns
    -------
    shapes : list of (list of (int, str or None) or None)
        A size is a number or a name if it is the same in all iterations, else None; the whole is None if
        the number of dimensions is unknown.
    reshaped : set of int
        The states whose number of dimensions changes.
    """
    body = node.attributes["body"].as_graph()
    shapes = [_dims(v, f"{node.outputs[0].name}_{i}") for i, v in enumerate(node.inputs[2:])]
    reshaped: set[int] = set()
    proto = _model(node, body, opsets)
    while True:
        # Assumed of the start of an iteration, a shape must follow for the start of the next.
        for value, dims in zip(proto.graph.input[2:], shapes, strict=False):
            _set_dims(value, dims)
            for same in (v for v in proto.graph.output if v.name == value.name):
                same.CopyFrom(value)
        try:
            inferred = infer_with_values(proto).graph
        except onnx.shape_inference.InferenceError:  # then nothing is certain
            return [None] * len(shapes), set()
        ends = [_known(v) for v in inferred.output[1 : 1 + len(shapes)]]
        for i, (start, end) in enumerate(zip(shapes, ends, strict=True)):
            if start is not None and end is not None and len(start) != len(end):
                reshaped.add(i)
        agreed = [_agree(a, b) for a, b in zip(shapes, ends, strict=True)]
        if agreed == shapes:
            break
        shapes = agreed
    _take(body, inferred)
    return shapes, reshaped


def _dims(value: ir.Value | None, name: str) -> Dims | None:
    """Sizes of what a state starts with; those unknown get a name, to be followed through the body."""
    if value is None or value.shape is None:
        return None
    sizes = (d if isinstance(d, int) else d.value for d in value.shape)
    return [f"{name}_{axis}" if d is None else d for axis, d in enumerate(sizes)]


def _agree(start: Dims | None, end: Dims | None) -> Dims | None:
    """What is the same in two shapes."""
    if start is None or end is None or len(start) != len(end):
        return None
    return [a if a == b else None for a, b in zip(start, end, strict=True)]


def _known(value: onnx.ValueInfoProto) -> Dims | None:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    return [
        d.dim_value
        if d.HasField("dim_value")
        else d.dim_param
        if d.dim_param and not d.dim_param.startswith(_MADE_UP)
        else None
        for d in tensor.shape.dim
    ]


def _set_dims(value: onnx.ValueInfoProto, dims: Dims | None) -> None:
    tensor = value.type.tensor_type
    tensor.ClearField("shape")
    if dims is not None:
        tensor.shape.SetInParent()
        for d in dims:
            dim = tensor.shape.dim.add()
            if isinstance(d, int):
                dim.dim_value = d
            elif d is not None:
                dim.dim_param = d


def _model(node: ir.Node, body: ir.Graph, opsets: Mapping[str, int]) -> onnx.ModelProto:
    """The body as a model of its own, without the shapes it declares."""
    graph = ir.to_proto(body)
    _forget(graph)
    for value in captured_values(node):
        array = constant_array(value)
        if array is not None and array.size <= _SMALL and array.dtype.kind not in "OS":
            graph.initializer.append(ir.to_proto(ir.tensor(array, name=value.name)))
        elif value.type is not None:
            graph.input.append(ir.to_proto(value))
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return onnx.helper.make_model(graph, opset_imports=imports)


def _forget(graph: GraphProto) -> None:
    """Drop every declared shape of what nodes compute."""
    del graph.value_info[:]
    _clear(graph.output)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                _clear(inner.input)
                _forget(inner)


def _clear(values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _take(body: ir.Graph, inferred: GraphProto) -> None:
    """Give the values of a body the types and shapes that were inferred."""
    known = {v.name: v for v in (*inferred.output, *inferred.value_info, *inferred.input)}
    for value in (*body.inputs, *(v for node in body for v in node.outputs)):
        found = known.get(value.name or "")
        if value.type is None and found is not None and found.type.tensor_type.elem_type:
            value.type = ir.TensorType(ir.DataType(found.type.tensor_type.elem_type))
        if isinstance(value.type, ir.TensorType):
            dims = None if found is None else _known(found)
            value.shape = None if dims is None else ir.Shape(dims)

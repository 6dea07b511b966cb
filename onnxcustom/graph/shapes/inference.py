"""Shape inference by onnx, and around its faults."""

from __future__ import annotations

import functools

import onnx

from onnxcustom.graph.analysis.operators import normal_domain, operator_schema
from onnxcustom.graph.shapes.propagation import infer_with_values

__all__ = ["infer_shapes"]


def infer_shapes(proto: onnx.ModelProto, strict: bool = False) -> onnx.ModelProto:
    """Types and shapes as onnx infers them.

    Parameters
    ----------
    proto : ModelProto
        The model, small enough for one message.
    strict : bool, default=False
        Whether an operator that contradicts its operands is an error, as it is to onnxruntime.

    Returns
    -------
    ModelProto

    Raises
    ------
    onnx.shape_inference.InferenceError
        Strictly, for what is wrong.
    """
    if not strict:
        return infer_with_values(proto)
    infer = functools.partial(onnx.shape_inference.infer_shapes, check_type=True, strict_mode=True)
    try:
        return infer_with_values(proto, check_type=True, strict_mode=True)
    except Exception as exc:
        if "has unsupported type" in str(exc):  # whether there is a kernel is for the runtime to say
            infer = functools.partial(infer, check_type=False)
        # Two faults of onnx itself, numbers it cannot propagate and attributes left out that the body of a
        # function reads (MeanVarianceNormalization), and one of exporters: shapes declared in between that
        # are not those computed, which onnxruntime corrects as well.
        bare = _undeclared(proto)
        for candidate, result in (
            (proto, proto),
            (_with_defaults(proto), proto),
            (_with_defaults(bare), bare),
        ):
            try:
                infer(candidate)
            except Exception:
                continue
            return infer_with_values(result)
        raise exc from None


def _undeclared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without declared types of what nodes of known operators compute."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    known = {name for node in made.graph.node if not normal_domain(node.domain) for name in node.output}
    kept = [info for info in made.graph.value_info if info.name not in known]
    del made.graph.value_info[:]
    made.graph.value_info.extend(kept)
    return made


def _with_defaults(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which operators that are functions have all their attributes, and bodies declare no shapes.

    The state of a Loop may change its shape.
    """
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    opset = next((i.version for i in made.opset_import if not normal_domain(i.domain)), 1)
    graphs = [made.graph]
    for graph in graphs:
        if graph is not made.graph:
            graph.ClearField("value_info")
            for info in (*graph.input, *graph.output):
                if info.type.HasField("tensor_type"):
                    info.type.tensor_type.ClearField("shape")
        for node in graph.node:
            node.attribute.extend(_defaults(node, opset))
            graphs.extend(a.g for a in node.attribute if a.HasField("g"))
    return made


def _defaults(node: onnx.NodeProto, opset: int) -> list[onnx.AttributeProto]:
    """Attributes that a node which is a function has not, of those that its operator has defaults for."""
    schema = None if normal_domain(node.domain) else operator_schema(node.op_type, opset)
    if schema is None or not (schema.has_function or schema.has_context_dependent_function):
        return []
    has = {attribute.name for attribute in node.attribute}
    defaults = [a.default_value for name, a in schema.attributes.items() if name not in has]
    return [d for d in defaults if d.name]

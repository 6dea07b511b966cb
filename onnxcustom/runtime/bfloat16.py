"""bfloat16, for which onnxruntime has few kernels on CPU: what lacks one is said before a session is made."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import onnx
import onnx_ir as ir

from onnxcustom.exceptions import EvaluationError
from onnxcustom.graph.analysis.traversal import all_nodes
from onnxcustom.graph.files.conversion import represented
from onnxcustom.graph.preparation.passes import InferShapesPass

from .devices import Device, require_runtime

__all__ = ["WAY_OUT", "check_bfloat16"]

WAY_OUT = (
    "Convert the model to float32 (onnxcustom.testing.precision.to_single does it) or to float16, and the "
    "data with it."
)
"""What to do about it."""


def check_bfloat16(model: onnx.ModelProto | bytes | ir.Model, device: Device) -> None:
    """Look for nodes that read or make bfloat16 and have no kernel for it.

    Parameters
    ----------
    model : ModelProto, bytes or onnx_ir.Model
        Bytes are not looked at.
    device : Device
        Where it is to run; only the CPU is known.

    Raises
    ------
    EvaluationError
        Naming the first such node and its tensor.
    """
    if device.type != "cpu" or not isinstance(model, (onnx.ModelProto, ir.Model)):
        return
    if isinstance(model, onnx.ModelProto):
        if not _mentions(model.graph, model.functions):
            return
        model = represented(model, sparse=True)
        InferShapesPass()(model)
    for node in all_nodes(model.graph):
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        found = next((v for v in values if v.dtype == ir.DataType.BFLOAT16), None)
        if found is None or _has_kernel(node, model.opset_imports):
            continue
        raise EvaluationError(
            f"Tensor {found.name!r} of node {node.name or node.op_type!r} ({node.op_type}) is bfloat16, and "
            f"this onnxruntime ({require_runtime().__version__}) has no kernel for that on CPU. {WAY_OUT}"
        )


def _mentions(graph: onnx.GraphProto, functions: Iterable[onnx.FunctionProto] = ()) -> bool:
    """Whether bfloat16 is anywhere in a graph, before types are inferred."""
    wanted = onnx.TensorProto.BFLOAT16
    if any(tensor.data_type == wanted for tensor in graph.initializer):
        return True
    infos = (*graph.input, *graph.output, *graph.value_info)
    if any(info.type.tensor_type.elem_type == wanted for info in infos):
        return True
    bodies = [graph.node, *(function.node for function in functions)]
    return any(_by_attribute(a) for nodes in bodies for node in nodes for a in node.attribute)


def _by_attribute(attribute: onnx.AttributeProto) -> bool:
    if attribute.name in ("to", "dtype") and attribute.i == onnx.TensorProto.BFLOAT16:
        return True
    if attribute.HasField("t") and attribute.t.data_type == onnx.TensorProto.BFLOAT16:
        return True
    return any(map(_mentions, [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]))


def _has_kernel(node: ir.Node, opsets: Any) -> bool:
    """Whether onnxruntime runs a node, alone in a graph; what holds graphs is told by their nodes."""
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return True
    types = [None if v is None else v.dtype for v in (*node.inputs, *node.outputs)]
    if any(v is not None and v.dtype is None for v in (*node.inputs, *node.outputs)):
        return True  # nobody can tell
    proto = ir.to_proto(node)
    proto.ClearField("name")
    inputs = [f"i{k}" if v is not None else "" for k, v in enumerate(node.inputs)]
    outputs = [f"o{k}" for k in range(len(node.outputs))]
    del proto.input[:], proto.output[:], proto.metadata_props[:]
    proto.input.extend(inputs)
    proto.output.extend(outputs)
    versions = tuple(sorted((d, v) for d, v in opsets.items() if d in ("", node.domain)))
    named = zip((*inputs, *outputs), types, strict=True)
    kinds = tuple((name, int(dtype)) for name, dtype in named if name and dtype is not None)
    return _runs(proto.SerializeToString(deterministic=True), kinds, len(outputs), versions)


@functools.lru_cache(maxsize=1024)
def _runs(
    node: bytes, kinds: tuple[tuple[str, int], ...], outputs: int, versions: tuple[tuple[str, int], ...]
) -> bool:
    """Whether a session of a single node can be made, but for reasons that are not kernels."""
    ort = require_runtime()
    infos = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds]
    graph = onnx.helper.make_graph(
        [onnx.NodeProto.FromString(node)],
        "probe",
        infos[: len(infos) - outputs],
        infos[len(infos) - outputs :],
    )
    imports = [onnx.helper.make_opsetid(*version) for version in versions]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        return type(exc).__name__ != "NotImplemented"
    return True

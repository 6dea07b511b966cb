"""Operators that onnxruntime has no CUDA kernel for, as operators that it has one for.

A node without a kernel takes its operands to the host and its results back, in every step.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names, all_nodes
from onnxcustom.graph.building.builder import Builder, Var

__all__ = ["spell_for_cuda"]


def spell_for_cuda(model: ir.Model) -> None:
    """Write the nodes of a graph that stay on the host otherwise in operators of the GPU, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        Any graph; what is computed stays the same, up to rounding.
    """
    found = [node for node in all_nodes(model.graph) if is_op(node, *_FORMS)]
    if not found:
        return
    op = Builder(model.opset_imports[""], prefix="", taken=all_names(model.graph))
    for node in found:
        made = _FORMS[node.op_type](op, node)
        graph = node.graph
        if made is None or graph is None:
            continue
        old, new = node.outputs[0], made.value
        graph.insert_before(node, op.nodes)
        op.nodes.clear()
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    for value in op.initializers:
        model.graph.register_initializer(value)


def _cosh(op: Builder, node: ir.Node) -> Var | None:
    """By the root of the exponential, which is finite wherever the result is."""
    if not _float(node):
        return None
    root = op.Exp(op.Abs(node.inputs[0]) * 0.5)
    return 0.5 * root * root + 0.5 / root / root


def _sinh(op: Builder, node: ir.Node) -> Var | None:
    """As exact near zero as the hyperbolic tangent."""
    other = _cosh(op, node)
    return None if other is None else op.Tanh(node.inputs[0]) * other


def _arg_max(op: Builder, node: ir.Node) -> Var | None:
    """The place of the largest, of several the first; up to onnxruntime 1.19 that is of opsets before 12."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if op.opset < 12 or attributes.get("select_last_index") or not _float(node):
        return None
    axis, one = attributes.get("axis", 0), op.const([1], ir.DataType.INT64)
    _, places = op.node("TopK", node.inputs[0], one, axis=axis, outputs=2)
    return places if attributes.get("keepdims", 1) else op.Squeeze(places, [axis])


def _pad(op: Builder, node: ir.Node) -> Var | None:
    """Whole numbers as float64, which holds those of labels and positions, up to 2**53."""
    given = node.inputs[0]
    if given is None or given.dtype not in (ir.DataType.INT32, ir.DataType.INT64) or op.opset < 11:
        return None
    x, pads, *more = node.inputs
    if more and more[0] is not None:
        more[0] = op.Cast(more[0], to=ir.DataType.DOUBLE).value
    mode = node.attributes.get_string("mode")
    made = op.Pad(op.Cast(x, to=ir.DataType.DOUBLE), pads, *more, mode=mode)
    return op.Cast(made, to=given.dtype)


def _float(node: ir.Node) -> bool:
    return node.inputs[0] is not None and is_float(node.inputs[0], unknown=False)


_FORMS: dict[str, Callable[[Builder, ir.Node], Var | None]] = {
    "ArgMax": _arg_max,
    "Cosh": _cosh,
    "Pad": _pad,
    "Sinh": _sinh,
}

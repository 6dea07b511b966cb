"""What engine ``"onnx"`` does to a graph before and after the walk."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from onnxcustom.graph.analysis.traversal import all_names, all_nodes
from onnxcustom.graph.preparation.passes import InferShapesPass, bypass_identities
from onnxcustom.graph.preparation.unused import RemoveUnusedPass

from .emit import GradientBuilder
from .simplify import simplify

__all__ = ["add", "clean", "name_sizes"]


def name_sizes(model: ir.Model) -> bool:
    """Give sizes that files write as ``-1`` or ``?`` names, one each, in place; True if there were some.

    Exporters mean an unknown size by them; read as ONNX has it, all of them would be the same size.
    """
    graph = model.graph
    if not any(_meaningless(d) for v in graph.inputs if v.shape is not None for d in v.shape):
        return False
    taken = {d.value for v in graph.inputs if v.shape is not None for d in v.shape if not isinstance(d, int)}
    for value in graph.inputs:
        for i, d in enumerate(value.shape or ()):
            if _meaningless(d):
                name = f"{value.name}_{i}"
                while name in taken:
                    name += "_"
                taken.add(name)
                value.shape = ir.Shape([name if k == i else old for k, old in enumerate(value.shape or ())])
    for node in all_nodes(graph):
        for value in node.outputs:
            if value.shape is not None and any(_meaningless(d) for d in value.shape):
                value.shape = ir.Shape([None if _meaningless(d) else d for d in value.shape])
    InferShapesPass()(model)
    return True


def _meaningless(dim: int | ir.SymbolicDim) -> bool:
    return dim < 0 if isinstance(dim, int) else dim.value in ("?", "-1", "None", "")


def add(model: ir.Model, op: GradientBuilder) -> None:
    """Append what a builder made to the graph of a model."""
    graph = model.graph
    for initializer in op.initializers:
        graph.register_initializer(initializer)
    graph.extend(op.nodes)
    for domain, version in op.domains.items():
        graph.opset_imports.setdefault(domain, version)


def clean(model: ir.Model) -> None:
    """Remove what nobody asked for, what is computed twice, and what other nodes make superfluous."""
    names = [v.name for v in model.graph.outputs]
    RemoveUnusedPass()(model)
    CommonSubexpressionEliminationPass()(model)
    op = GradientBuilder(model.opset_imports[""], taken=all_names(model.graph))
    simplify(model.graph, op)
    op.nodes.clear()  # in the graph already
    add(model, op)
    bypass_identities(list(model.graph), rename=True)
    RemoveUnusedPass()(model)
    _restore_outputs(model.graph, names)


def _restore_outputs(graph: ir.Graph, names: Sequence[str | None]) -> None:
    """Outputs that are equal were merged into one: each is a value of its own again."""
    for i, (value, name) in enumerate(zip(graph.outputs, names, strict=True)):
        if value.name != name:
            copy = ir.Value(name=name, type=value.type, shape=value.shape)
            graph.append(ir.node("Identity", [value], outputs=[copy], name=f"{name}_node"))
            graph.outputs[i] = copy

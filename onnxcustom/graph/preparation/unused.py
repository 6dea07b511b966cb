"""What no output of a graph depends on, removed."""

from __future__ import annotations

import functools

import onnx
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import is_computed_beforehand
from onnxcustom.graph.analysis.operators import operator_schema
from onnxcustom.graph.analysis.traversal import all_nodes, subgraphs

__all__ = ["RemoveUnusedPass"]


class RemoveUnusedPass(ir.passes.InPlacePass):
    """Remove nodes that no output depends on, optional outputs and initializers that nobody reads.

    The common pass counts what the subgraphs of a removed node read as read for ever, which keeps the
    nodes it came from; here a removed node lets go of all it read first. Initializers of subgraphs go, too.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove in place."""
        modified = False
        bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        for body in bodies:
            modified |= _Cleaning(body, model.opset_imports.get("", 1)).clean(body)
        return ir.passes.PassResult(model, modified=modified)


class _Cleaning:
    """Removal in one graph and the graphs in it, in one walk from the last node to the first."""

    def __init__(self, graph: ir.Graph | ir.Function, opset: int) -> None:
        self.opset = opset
        self.bodies = {node: found for node in all_nodes(graph) if (found := subgraphs(node))}
        # A branch may hand out a value from around it.
        self.ends = set(graph.outputs)
        self.ends.update(v for bodies in self.bodies.values() for body in bodies for v in body.outputs)

    def clean(self, graph: ir.Graph | ir.Function) -> bool:
        """Remove from a graph; True if there was something."""
        modified, dead = False, []
        ends = self.ends
        for node in reversed(list(graph)):
            outputs = node.outputs
            unused = [i for i, v in enumerate(outputs) if not v.uses() and v not in ends]
            bodies = self.bodies.get(node, ())
            if len(unused) == len(outputs):
                for reader in (node, *(n for body in bodies for n in all_nodes(body))):
                    _let_go(reader)
                dead.append(node)
                continue
            for body in bodies:
                modified |= self.clean(body)
            if unused:
                self._trim_outputs(node, unused)
            _trim_inputs(node)
        graph.remove(dead)  # together: each call looks at all outputs of the graph
        if isinstance(graph, ir.Graph):
            for name, value in list(graph.initializers.items()):
                if not (value in self.ends or value.uses() or value.is_graph_input()):
                    del graph.initializers[name]
                    modified = True
        return modified or bool(dead)

    def _trim_outputs(self, node: ir.Node, unused: list[int]) -> None:
        """Leave out optional outputs."""
        optional = () if node.domain else _optional_outputs(node.op_type, self.opset)
        if not any(optional):
            return
        if node.op_type == "BatchNormalization":
            # With its outputs for training go statistics of the batch, unless they were not used anyway.
            mode = node.attributes.get("training_mode")
            if mode is not None and (mode.is_ref() or mode.value != 0):
                return
            node.attributes.pop("training_mode", None)
        left = [i for i in unused if i < len(optional) and optional[i]]
        last = max(i for i in range(len(node.outputs)) if i not in unused)
        # onnxruntime up to 1.19 computes a node of constants beforehand, and trips over one not there.
        if min(left, default=last) < last and is_computed_beforehand(node):
            left = [i for i in left if i > last]
        for i in left:
            node.outputs[i].name = ""
        count = len(node.outputs)
        while count and not node.outputs[count - 1].name:
            count -= 1
        node.resize_outputs(count)


@functools.cache
def _optional_outputs(op_type: str, opset: int) -> tuple[bool, ...]:
    """Which outputs of an operator may be left out; none where their number says something, or varies."""
    schema = operator_schema(op_type, opset)
    if schema is None or (op_type == "BatchNormalization" and "training_mode" not in schema.attributes):
        return ()
    options = onnx.defs.OpSchema.FormalParameterOption
    if any(output.option == options.Variadic for output in schema.outputs):
        return ()
    return tuple(output.option == options.Optional for output in schema.outputs)


def _trim_inputs(node: ir.Node) -> None:
    """Leave out absent inputs at the end."""
    inputs = node.inputs
    count = len(inputs)
    while count and inputs[count - 1] is None:
        count -= 1
    if count < len(inputs):
        node.resize_inputs(count)


def _let_go(node: ir.Node) -> None:
    """Read nothing any more."""
    for i in range(len(node.inputs)):
        node.replace_input_with(i, None)

"""Gradient graphs of whole models by the reverse walk: the body of engine ``"onnx"``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.builder import Var

from .carried import untype
from .emit import GradientBuilder
from .engine import ReverseWalk
from .expand import expand
from .simplify import fuse_biases, simplify

__all__ = ["add", "clean", "constants", "differentiate", "name_sizes"]


def differentiate(
    model: ir.Model, wrt: Sequence[str], outputs: Sequence[str], name: Callable[[str], str] = "{}_grad".format
) -> ir.Model:
    """Add the gradients of a model to it, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        Model of opset 18 or newer; names of tensors are unique, weights to differentiate by are
        initializers or inputs.
    wrt : sequence of str
        Inputs and initializers to differentiate by; initializers become inputs.
    outputs : sequence of str
        Outputs to differentiate; each gets an input for its gradient.
    name : callable
        Name of the gradient of a tensor.

    Returns
    -------
    onnx_ir.Model
        The model: its inputs are the old ones, the initializers of `wrt`, and a seed for each of
        `outputs`; its outputs are the gradients of `wrt` and then the old outputs.
    """
    graph = model.graph
    wanted = _as_inputs(graph, wrt)
    name_sizes(model)
    ShapeInferencePass(data_prop=True)(model)
    expand(model)
    untype(graph)
    fuse_biases(graph)
    by_name = {v.name: v for v in graph.outputs}
    op = GradientBuilder(model.opset_imports[""], taken=_names(graph))
    seeds = {by_name[o]: _seed(op, name(o), by_name[o]) for o in outputs}
    walk = ReverseWalk(op, model.opset_imports, constants(graph))
    nodes = list(graph)
    found = walk.gradients(nodes, seeds, wanted)
    gradients = [op.Identity(found[v]) if v in found else op.zeros_like(op.wrap(v)) for v in wanted]
    old = list(graph.outputs)
    add(model, op)
    graph.inputs.extend(s.value for s in seeds.values())
    graph.outputs[:] = [
        _called(g, name(str(v.name)), v) for g, v in zip(gradients, wanted, strict=True)
    ] + old
    clean(model)
    return model


def _seed(op: GradientBuilder, name: str, output: ir.Value) -> Var:
    """The input for the gradient of an output."""
    if output.dtype is None:
        raise InvalidModelError(f"The type of output {output.name!r} is unknown.")
    return op.input(name, output.dtype, None if output.shape is None else list(output.shape))


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
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None and any(_meaningless(d) for d in value.shape):
                value.shape = ir.Shape([None if _meaningless(d) else d for d in value.shape])
    ShapeInferencePass(data_prop=True)(model)
    return True


def _meaningless(dim: int | ir.SymbolicDim) -> bool:
    return dim < 0 if isinstance(dim, int) else dim.value in ("?", "-1", "None", "")


def _as_inputs(graph: ir.Graph, wrt: Sequence[str]) -> list[ir.Value]:
    """The values to differentiate by; initializers among them become inputs."""
    inputs = {v.name: v for v in graph.inputs}
    wanted = []
    for name in wrt:
        if name not in inputs:
            value = graph.initializers.pop(name)
            value.const_value = None
            graph.inputs.append(value)
            inputs[name] = value
        wanted.append(inputs[name])
    return wanted


def constants(graph: ir.Graph) -> Callable[[ir.Value], np.ndarray | None]:
    """Value of a tensor that is an initializer or a Constant, None for every other."""

    @functools.cache
    def constant(value: ir.Value) -> np.ndarray | None:
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None or value.is_graph_input() else tensor.numpy()

    return constant


def _called(gradient: Var, name: str, like: ir.Value) -> ir.Value:
    gradient.value.name = name
    gradient.value.shape = like.shape
    gradient.value.type = like.type
    return gradient.value


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
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)
    op = GradientBuilder(model.opset_imports[""], taken=_names(model.graph))
    simplify(model.graph, op)
    op.nodes.clear()  # in the graph already
    add(model, op)
    if not any(node.attributes and _has_graph(node) for node in model.graph):
        # The pass drops an Identity that hands a value of an enclosing graph out of a subgraph.
        IdentityEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    _restore_outputs(model.graph, names)


def _restore_outputs(graph: ir.Graph, names: Sequence[str | None]) -> None:
    """Outputs that are equal were merged into one: each is a value of its own again."""
    for i, (value, name) in enumerate(zip(graph.outputs, names, strict=True)):
        if value.name != name:
            copy = ir.Value(name=name, type=value.type, shape=value.shape)
            graph.append(ir.node("Identity", [value], outputs=[copy], name=f"{name}_node"))
            graph.outputs[i] = copy


def _has_graph(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _names(graph: ir.Graph) -> set[str]:
    taken = {v.name for v in (*graph.inputs, *graph.initializers.values())}
    for node in graph.all_nodes():
        taken.add(node.name)
        taken.update(v.name for v in (*node.outputs, *node.inputs) if v is not None)
    return {name for name in taken if name}

"""The gradient of a bare graph: the walk between what engine "onnx" does before and after it.

Cases go through this rather than ``gradient_graph`` so that nothing is prepared, and names and shapes stay as the
case has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.gradient.carried import untype
from onnxcustom.gradient.emit import GradientBuilder
from onnxcustom.gradient.engine import ReverseWalk
from onnxcustom.gradient.expand import expand
from onnxcustom.gradient.graphs import add, clean, name_sizes
from onnxcustom.gradient.simplify import fuse_biases
from onnxcustom.graph.analysis.traversal import all_names
from onnxcustom.graph.building.builder import Var


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
    op = GradientBuilder(model.opset_imports[""], taken=all_names(graph))
    seeds = {by_name[o]: _seed(op, name(o), by_name[o]) for o in outputs}
    walk = ReverseWalk(op, model.opset_imports)
    nodes = list(graph)
    found = walk.gradients(nodes, seeds, wanted)
    gradients = [op.Identity(found[v]) if v in found else op.zeros_like(op.wrap(v)) for v in wanted]
    old = list(graph.outputs)
    add(model, op)
    graph.sort()  # what replaces a forward node stands behind its readers
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


def _called(gradient: Var, name: str, like: ir.Value) -> ir.Value:
    gradient.value.name = name
    gradient.value.shape = like.shape
    gradient.value.type = like.type
    return gradient.value

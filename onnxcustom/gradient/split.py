"""Cut a gradient graph into the part before the loss and the part after it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError, MissingRuntimeError
from onnxcustom.graph import to_ir, to_proto
from onnxcustom.graph.analysis.traversal import dependents, reads
from onnxcustom.graph.preparation.passes import InferShapesPass
from onnxcustom.runtime import output_types

from .build import tidy
from .names import GradientNames

__all__ = ["SplitGradient", "split_gradient"]


@dataclass(frozen=True)
class SplitGradient:
    """Two graphs that together compute what a gradient graph does.

    Parameters
    ----------
    forward : ModelProto
        Takes the model's inputs and the weights; returns the model's outputs, then the saved tensors.
    backward : ModelProto
        Takes the gradients of the outputs, then those inputs, weights, outputs and saved tensors that it
        reads; returns the gradients.
    saved : tuple of str
        Tensors that the forward graph returns for the backward graph only. All of them have a type, and a
        shape, with symbolic dimensions where sizes are unknown, unless not even the rank can be told.
    backward_inputs : tuple of str
        Inputs of the backward graph after the gradients of the outputs.
    names : GradientNames
        Names of the gradient graph that was cut.
    """

    forward: onnx.ModelProto
    backward: onnx.ModelProto
    saved: tuple[str, ...]
    backward_inputs: tuple[str, ...]
    names: GradientNames

    def evaluation(self) -> onnx.ModelProto:
        """The forward graph without the saved tensors and what only they need."""
        model = to_ir(self.forward, trusted=True)
        own = list(model.graph.outputs)[: len(self.names.outputs)]
        model.graph.outputs.clear()
        model.graph.outputs.extend(own)
        tidy(model)
        return to_proto(model)


def split_gradient(model: onnx.ModelProto | ir.Model) -> SplitGradient:
    """Cut a gradient graph, of any engine, at the gradients of the outputs.

    Parameters
    ----------
    model : ModelProto or onnx_ir.Model
        What :func:`onnxcustom.gradient_graph` returns; it is not changed.

    Returns
    -------
    SplitGradient
        What depends on the gradients coming in is in the backward graph, and so is what only that part
        needs and can compute from the model's inputs and weights or from tensors that are saved anyway.

    Raises
    ------
    InvalidModelError
        If the model is not a gradient graph.

    Examples
    --------
    >>> import onnx
    >>> from onnxcustom.gradient import gradient_graph
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... g (float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {1, 2}> { z = MatMul (x, w) y = Exp (z) }''')
    >>> parts = split_gradient(gradient_graph(model))
    >>> parts.saved, parts.backward_inputs
    ((), ('x', 'w', 'y'))
    """
    names = GradientNames.of(model)
    backward = to_ir(model)
    crossing, moved = _crossing(backward.graph, names)
    own = set(names.outputs)
    saved = tuple(n for n in crossing if n not in own)
    _infer(backward, crossing)
    forward = backward.clone()
    _cut_forward(forward, names, saved)
    _type_outputs(forward, backward, crossing)
    read = _cut_backward(backward, names, crossing, moved)
    return SplitGradient(to_proto(forward), to_proto(backward), saved, read, names)


def _crossing(graph: ir.Graph, names: GradientNames) -> tuple[list[str], set[str]]:
    """Names of the computed tensors that the backward part reads, and names of all its own tensors."""
    seeds = {v for v in graph.inputs if v.name in set(names.seeds.values())}
    late = dependents(graph, seeds)
    ends = list(graph.outputs)
    gradients, own = ends[: len(names.gradients)], ends[len(names.gradients) :]
    needed = _ancestors(own)
    free = {*graph.inputs, *graph.initializers.values()}
    wanted = _inputs_of(graph, late | set(gradients)) - late - free
    # Nodes that only the backward part needs move there if that saves no further tensor.
    candidates = [
        n for n in graph if not any(v in late for v in n.outputs) and not any(v in needed for v in n.outputs)
    ]
    moved: set[ir.Value] = set()
    changed = True
    while changed:
        changed = False
        saved = wanted - moved
        for node in candidates:
            if node.outputs[0] not in moved and all(
                v in free or v in moved or v in saved for v in reads(node) if v not in node.outputs
            ):
                moved.update(node.outputs)
                changed = True
        wanted = _inputs_of(graph, late | set(gradients) | moved) - late - free
    crossing = wanted - moved
    ordered = [v.name or "" for node in graph for v in node.outputs if v in crossing]
    return ordered, {v.name or "" for v in late | moved if v.name}


def _inputs_of(graph: ir.Graph, outputs: set[ir.Value]) -> set[ir.Value]:
    """What the nodes that make these values read, and these values themselves if made elsewhere."""
    found = {v for node in graph if any(o in outputs for o in node.outputs) for v in reads(node)}
    return found


def _ancestors(values: list[ir.Value]) -> set[ir.Value]:
    """Values that others are computed from, themselves included."""
    found: set[ir.Value] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        if value in found:
            continue
        found.add(value)
        producer = value.producer()
        if producer is not None:
            found.update(producer.outputs)
            stack.extend(reads(producer))
    return found


def _infer(model: ir.Model, names: list[str]) -> None:
    """Let onnx say what type and shape the tensors have, if that is not known of all of them."""
    values = {v.name: v for node in model.graph for v in node.outputs}
    if any(values[n].type is None or values[n].shape is None for n in names):
        InferShapesPass()(model)


# Operators of onnxruntime whose outputs are vectors, which itself does not infer.
_VECTORS = frozenset({"BroadcastGradientArgs"})


def _type_outputs(forward: ir.Model, backward: ir.Model, names: list[str]) -> None:
    """Let onnxruntime say it of what is still unknown: outputs of operators that onnx does not know.

    onnxruntime infers types of a graph's outputs, but an input without one is an error, and one without
    a shape ends the process where it is 1.19.2 and a MaxUnpool reads it.
    """
    values = {v.name: v for node in backward.graph for v in node.outputs if v.name in set(names)}
    if all(v.type is not None and v.shape is not None for v in values.values()):
        return
    found = _runtime_types(forward)
    ends = {v.name: v for v in forward.graph.outputs}
    for name, value in values.items():
        proto = found.get(name or "")
        if proto is not None:
            value.type = value.type or ir.serde.deserialize_type_proto_for_type(proto)
            if value.shape is None:
                value.shape = ir.serde.deserialize_type_proto_for_shape(proto)
        node = value.producer()
        if value.shape is None and node is not None and node.op_type in _VECTORS:
            value.shape = ir.Shape([None])
        if value.type is None and node is not None:
            raise InvalidModelError(
                f"The type of {name!r}, output of node {node.name!r} ({node.op_type}), is not known, and the "
                "backward graph reads it."
            )
        ends[name].type, ends[name].shape = value.type, value.shape


def _runtime_types(model: ir.Model) -> dict[str, onnx.TypeProto]:
    try:
        return output_types(model)
    except MissingRuntimeError:
        return {}


def _cut_forward(model: ir.Model, names: GradientNames, saved: tuple[str, ...]) -> None:
    graph = model.graph
    values = {v.name: v for node in graph for v in node.outputs}
    own = list(graph.outputs)[len(names.gradients) :]
    graph.outputs.clear()
    graph.outputs.extend([*own, *(values[n] for n in saved)])
    tidy(model)
    seeds = set(names.seeds.values())
    kept = [v for v in graph.inputs if v.name not in seeds]
    graph.inputs.clear()
    graph.inputs.extend(kept)


def _cut_backward(
    model: ir.Model, names: GradientNames, crossing: list[str], late: set[str]
) -> tuple[str, ...]:
    graph = model.graph
    values = {v.name: v for node in graph for v in node.outputs}
    made = []
    for name in crossing:
        old = values[name]
        new = ir.Value(name=name, type=old.type, shape=old.shape)
        for user, index in list(old.uses()):
            user.replace_input_with(index, new)
        old.name = f"{name}__forward"
        made.append(new)
    gradients = list(graph.outputs)[: len(names.gradients)]
    graph.outputs.clear()
    graph.outputs.extend(gradients)
    seeds = set(names.seeds.values())
    inputs = [v for v in graph.inputs if v.name not in seeds]
    ordered = [v for v in graph.inputs if v.name in seeds]
    graph.inputs.clear()
    graph.inputs.extend([*ordered, *inputs, *made])
    tidy(model)
    read = [v for v in (*inputs, *made) if v.uses()]
    graph.inputs.clear()
    graph.inputs.extend([*ordered, *read])
    return tuple(v.name or "" for v in read)

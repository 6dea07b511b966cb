"""Make a Loop or Scan hand out its states at the start of every iteration, for its gradient.

States of one shape are stacked by a scan output. Others are flattened into one tensor, next to their shapes,
collected in a sequence on the way; no sequence leaves the forward part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from .emit import GradientBuilder

__all__ = ["Packed", "Stacked", "hand_out", "pack_states"]


@dataclasses.dataclass(frozen=True)
class Stacked:
    """A state of every iteration along a new first axis."""

    values: Var

    def at(self, op: GradientBuilder, t: Var) -> Var:
        """The state at the start of iteration t."""
        return op.Gather(self.values, t)


@dataclasses.dataclass(frozen=True)
class Packed:
    """A state of every iteration, flattened one behind another."""

    values: Var
    shapes: Var
    sizes: Var
    ends: Var

    def at(self, op: GradientBuilder, t: Var) -> Var:
        """The state at the start of iteration t."""
        place = op.Unsqueeze(t, op.sizes_vector([0]))
        end = op.Gather(self.ends, place)
        flat = op.slice(self.values, end - op.Gather(self.sizes, place), end, [0])
        return op.Reshape(flat, op.Gather(self.shapes, t), allowzero=1)


def hand_out(op: GradientBuilder, node: ir.Node, values: Sequence[ir.Value]) -> list[Var]:
    """Make a Loop or Scan stack a value of each iteration as a further scan output."""
    body = node.attributes["body"].as_graph()
    made = []
    for value in values:
        copy = ir.Value(name=op.unique(f"{value.name}_start"), type=value.type, shape=value.shape)
        body.append(ir.node("Identity", [value], outputs=[copy], name=op.unique("Identity_node")))
        body.outputs.append(copy)
        position = len(node.outputs)
        node.resize_outputs(position + 1)
        stacked = node.outputs[position]
        stacked.name = op.unique(f"{value.name}_starts")
        stacked.type = value.type
        made.append(op.wrap(stacked))
    return made


def pack_states(op: GradientBuilder, node: ir.Node, states: Sequence[int]) -> tuple[ir.Node, list[Packed]]:
    """A Loop in the place of `node` that packs these states as well.

    The old node reads what it read, but nobody reads its outputs any more.
    """
    body, n = node.attributes["body"].as_graph(), len(node.inputs) - 2
    first, before, after = [], [], []
    inside = GradientBuilder(op.opset, taken=op.taken)
    shapes_sizes: list[ir.Value] = []
    for i in states:
        state = inside.wrap(body.inputs[2 + i])
        assert state.dtype is not None
        kind = ir.SequenceType(ir.TensorType(state.dtype))
        # With one empty piece to begin with there is something to concatenate after no iteration, too.
        first.append(op.SequenceConstruct(op.const(np.zeros(0, state.dtype.numpy()))).value)
        start = op.nodes.pop()
        assert node.graph is not None
        node.graph.insert_before(node, start)
        before.append(ir.Value(name=op.unique(f"{state.value.name}_list")))
        pieces = inside.Reshape(state, inside.sizes_vector([-1]))
        after.append(inside.SequenceInsert(before[-1], pieces).value)
        for value in (first[-1], before[-1], after[-1]):
            value.type, value.shape = kind, None
        shapes_sizes += [inside.Shape(state).value, inside.Size(state).value]
    for value in inside.initializers:
        body.register_initializer(value)
    body.extend(inside.nodes)
    body.inputs.extend(before)
    body.outputs[1 + n : 1 + n] = after
    new = _widened(op, node, n, first)
    stacks = hand_out(op, new, shapes_sizes)
    packed = []
    for k, pieces in enumerate(new.outputs[n : n + len(first)]):
        flat = op.ConcatFromSequence(pieces, axis=0)
        assert pieces.dtype is not None
        flat.value.type, flat.value.shape = ir.TensorType(pieces.dtype), ir.Shape([None])
        shapes, sizes = stacks[2 * k : 2 * k + 2]
        packed.append(Packed(flat, shapes, sizes, op.CumSum(sizes, op.const(0, ir.DataType.INT64))))
    return new, packed


def _widened(op: GradientBuilder, node: ir.Node, n: int, first: Sequence[ir.Value]) -> ir.Node:
    """A Loop with the body of `node` and further states behind its n, in its place."""
    graph, body = node.graph, node.attributes.pop("body").as_graph()
    assert graph is not None
    more = [ir.Value(name=op.unique(f"{node.outputs[0].name}_list"), type=value.type) for value in first]
    outputs = [ir.Value(type=v.type, shape=v.shape) for v in node.outputs]
    new = ir.node(
        "Loop",
        [*node.inputs, *first],
        attributes={"body": body},
        outputs=[*outputs[:n], *more, *outputs[n:]],
        name=op.unique(node.name or "Loop"),
    )
    graph.insert_after(node, new)
    for old, value in zip(node.outputs, outputs, strict=True):
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        if old.name:
            value.name, old.name = old.name, op.unique(f"{old.name}_before")
    return new

"""Where gradients flow: which values reach the outputs, through which edges, and what stands in the way.

Nothing here depends on how an engine builds a gradient, only on its verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxcustom.graph.traversal import subgraphs

from .interface import Engine, Verdict, is_float

__all__ = ["Flow", "Reach", "analyse"]

Obstacle = tuple[ir.Node, Verdict]


@dataclass
class Reach:
    """How a value reaches the outputs that are differentiated."""

    live: bool = False
    """A gradient comes back to it."""
    refusal: Obstacle | None = None
    """The first node found on some way whose gradient is not to be had."""
    blocked: Obstacle | None = None
    """The first node found on some way that is a step function."""

    def merge(self, other: Reach) -> None:
        """Take in what is known of another way."""
        self.live |= other.live
        self.refusal = self.refusal or other.refusal
        self.blocked = self.blocked or other.blocked


@dataclass
class Flow:
    """The result of :func:`analyse`."""

    reach: dict[ir.Value, Reach] = field(default_factory=dict)
    verdicts: dict[tuple[ir.Node, int], Verdict] = field(default_factory=dict)
    """Of every edge that a gradient would come to, by node and operand (-1: captured by a subgraph)."""

    def of(self, value: ir.Value) -> Reach:
        """Reach of a value; all False for one that no target depends on."""
        return self.reach.get(value, Reach())

    def active(self, graph: ir.Graph, sources: Iterable[ir.Value]) -> tuple[list[ir.Node], set[ir.Value]]:
        """Nodes and values between the sources and the targets that carry their gradients."""
        values = {v for v in sources if self.of(v).live}
        nodes = []
        for node in graph:
            if any(self.verdict(node, i).passes for i, v in operands(node) if v in values):
                found = [v for v in node.outputs if is_float(v) and self.of(v).live]
                if found:
                    nodes.append(node)
                    values.update(found)
        return nodes, values

    def verdict(self, node: ir.Node, operand: int) -> Verdict:
        """Verdict on an edge; an edge that no gradient comes to stops it."""
        return self.verdicts.get((node, operand), _NOTHING)


_NOTHING = Verdict("non-differentiable", "no gradient comes in")


def operands(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """All values a node reads, by position; -1 for those that its subgraphs capture."""
    for i, value in enumerate(node.inputs):
        if value is not None:
            yield i, value
    for graph in subgraphs(node):
        for value in captured(graph):
            yield -1, value


def captured(graph: ir.Graph) -> list[ir.Value]:
    """Values of outer scopes that a subgraph reads, nested subgraphs included."""
    own: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    found: dict[ir.Value, None] = {}
    for node in graph:
        for _, value in operands(node):
            if value not in own:
                found[value] = None
        own.update(node.outputs)
    found.update((v, None) for v in graph.outputs if v is not None and v not in own)
    return list(found)


def analyse(model: ir.Model, targets: Iterable[ir.Value], engine: Engine) -> Flow:
    """Walk the graph backwards from the targets, asking the engine about every edge on the way.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared, in topological order.
    targets : iterable of onnx_ir.Value
        The floating-point values that are differentiated.
    engine : Engine
        Whose verdicts count.

    Returns
    -------
    Flow
    """
    flow = Flow({value: Reach(live=True) for value in targets})
    for node in reversed(model.graph):
        after = Reach()
        known = False
        for value in node.outputs:
            if value in flow.reach:
                known = True
                after.merge(flow.reach[value])
        if not known:
            continue
        live = frozenset(
            k
            for k, v in enumerate(node.outputs)
            if v in flow.reach and _carries(flow.reach[v]) and is_float(v)
        )
        beside = ((-1, value) for value in engine.carried(node))
        for position, value in (*operands(node), *beside):
            _edge(model, engine, flow, node, position, value, live, after)
    return flow


def _carries(reach: Reach) -> bool:
    return reach.live or reach.refusal is not None


def _edge(
    model: ir.Model,
    engine: Engine,
    flow: Flow,
    node: ir.Node,
    position: int,
    value: ir.Value,
    live: frozenset[int],
    after: Reach,
) -> None:
    """Note what the node means for one of its operands."""
    reach = flow.reach.setdefault(value, Reach())
    if not is_float(value):
        reach.blocked = reach.blocked or after.blocked or (node, _INTEGER)
        return
    if not live:
        reach.blocked = reach.blocked or after.blocked or (node, _STEP)
        return
    verdict = flow.verdicts.get((node, position))
    if verdict is None:
        verdict = flow.verdicts[node, position] = engine.verdict(model, node, position, live)
    if verdict.passes:
        reach.merge(after)
    elif verdict.stops:
        reach.blocked = reach.blocked or (node, verdict)
    else:
        reach.refusal = reach.refusal or (node, verdict)


_INTEGER = Verdict("non-differentiable", "the operand is not a floating-point tensor")
_STEP = Verdict("non-differentiable", "its output is not a floating-point tensor")

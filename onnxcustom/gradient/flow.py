"""Where gradients flow: which values reach the outputs, and through which edges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.traversal import captured

from .verdict import Verdict

__all__ = ["Flow", "Reach", "operands"]

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
    """The result of :func:`~onnxcustom.gradient.analysis.analyse`."""

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
    for value in captured(node):
        yield -1, value

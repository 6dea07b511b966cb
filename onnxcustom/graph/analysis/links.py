"""Which way values go in a prepared graph, across the borders of If, Loop and Scan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from onnxcustom.graph.analysis.operands import is_opaque
from onnxcustom.graph.analysis.traversal import subgraphs

__all__ = ["Links"]


class Links:
    """The values that are one another inside and outside of control flow, and what depends on data.

    Parameters
    ----------
    graph : onnx_ir.Graph
        Main graph of a prepared model.

    Attributes
    ----------
    ahead, behind : dict of onnx_ir.Value to list of onnx_ir.Value
        From an operand to what a body calls it, from a body's result to that of its node, and back.
    computed : set of onnx_ir.Value
        What depends on the content of the graph's inputs, not on their shapes or on constants alone.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.ahead: dict[ir.Value, list[ir.Value]] = defaultdict(list)
        self.behind: dict[ir.Value, list[ir.Value]] = defaultdict(list)
        self._link(graph)
        self.computed = self._reached(graph.inputs)

    def next(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        """Nodes that read a value, by whatever name, with the operand's position; no control flow."""
        for same in self._alike(value):
            for node, index in same.uses():
                if not subgraphs(node):
                    yield node, index

    def origins(self, value: ir.Value) -> list[ir.Value]:
        """The values that a value is, outside of the bodies it comes out of or goes into."""
        found, queue = dict.fromkeys([value]), [value]
        while queue:
            for source in self.behind.get(queue.pop(), ()):
                if source not in found:
                    found[source] = None
                    queue.append(source)
        return list(found)

    def _alike(self, value: ir.Value) -> Iterable[ir.Value]:
        found, queue = dict.fromkeys([value]), [value]
        while queue:
            for same in self.ahead.get(queue.pop(), ()):
                if same not in found:
                    found[same] = None
                    queue.append(same)
        return found

    def _reached(self, sources: Iterable[ir.Value]) -> set[ir.Value]:
        found, queue = set(sources), list(sources)
        while queue:
            for node, _ in self.next(queue.pop()):
                if is_opaque(node):
                    continue
                for output in node.outputs:
                    if output not in found:
                        found.update(self._alike(output))
                        queue.append(output)
        for value in list(found):
            found.update(self._alike(value))
        return found

    def _link(self, graph: ir.Graph) -> None:
        for node in graph:
            for body in subgraphs(node):
                first = 1 if node.op_type == "Loop" else 0  # the condition
                self._join(zip(body.outputs[first:], node.outputs, strict=False))
                if node.op_type != "If":
                    self._join(zip(node.inputs, body.inputs, strict=False))
                    states = _states(node, body)
                    self._join(
                        zip(body.outputs[first : first + states], body.inputs[2 * first :], strict=False)
                    )
                self._link(body)

    def _join(self, pairs: Iterable[tuple[ir.Value | None, ir.Value]]) -> None:
        for source, value in pairs:
            if source is not None:
                self.ahead[source].append(value)
                self.behind[value].append(source)


def _states(node: ir.Node, body: ir.Graph) -> int:
    """How many results of a body are operands of its next run."""
    if node.op_type == "Loop":
        return max(len(body.inputs) - 2, 0)
    if node.op_type == "Scan":
        return max(len(body.inputs) - node.attributes.get_int("num_scan_inputs", 0), 0)
    return 0

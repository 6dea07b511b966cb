"""Activations computed again in the backward pass in place of being kept for it.

What the backward pass reads of the forward pass lives from one to the other: all layers' at once. Some of it
is cheap to compute from the rest: what element by element operators, activations and normalizations make of
the results of products. Which tensors to keep, so that the others follow from them by cheap operators and
the fewest bytes are kept, is a minimum cut of the graph.

onnxruntime runs a node as soon as it finds it useful, and merges nodes that compute the same. So a copy reads
one of its inputs through a Reshape, which copies nothing, to a shape that is made of the input's own and of
nothing of a gradient: it cannot run before that gradient is there.

References
----------
T. Chen, B. Xu, C. Zhang, C. Guestrin, Training Deep Nets with Sublinear Memory Cost, 2016,
https://arxiv.org/abs/1604.06174
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names, captured, dependents, sort_nodes, subgraphs
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.preparation.unused import RemoveUnusedPass

__all__ = ["recompute"]

# Computed in one pass over their inputs or little more.
_CHEAP = frozenset(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BatchNormalization Cast Ceil Celu Clip Concat "
    "ConstantOfShape Cos Cosh DepthToSpace Div Elu Equal Erf Exp Expand Flatten Floor Gather Gelu Greater "
    "GreaterOrEqual HardSigmoid HardSwish Identity LayerNormalization LeakyRelu Less LessOrEqual Log "
    "LogSoftmax Max Mean Min Mish Mul Neg Not Or Pad Pow PRelu Range Reciprocal ReduceL1 ReduceL2 "
    "ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape Round Selu Shape Shrink "
    "Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum "
    "Tan Tanh ThresholdedRelu Tile Transpose Trilu Unsqueeze Where Xor".split()
)
# What dimensions that are known only when the graph runs count as.
_ROWS = 1024
# Capacities of a cut are integers below 2**31, all together.
_UNITS = 2**28


def recompute(model: ir.Model, seeds: Collection[ir.Value]) -> int:
    """Let the backward pass compute cheap activations again, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        Step graph, sorted.
    seeds : collection of Value
        Where the backward pass begins: the gradients of the outputs.

    Returns
    -------
    int
        Number of nodes that are computed again.
    """
    graph = model.graph
    plan = _Plan(graph, seeds)
    copied = plan.copied()
    if not copied:
        return 0
    op = Builder(model.opset_imports[""], taken=all_names(graph))
    copies = _Copies(op, plan, copied)
    for node in copied:
        copies.copy(node)
    copies.replace()
    graph.extend(op.nodes)
    for value in op.initializers:
        graph.register_initializer(value)
    sort_nodes(graph)
    RemoveUnusedPass()(model)
    return len(copied)


class _Plan:
    """Which nodes are backward, what they read of the others, and what of that is kept."""

    def __init__(self, graph: ir.Graph, seeds: Collection[ir.Value]) -> None:
        self.nodes = list(graph)
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.inner = {node: captured(node) for node in self.nodes if subgraphs(node)}
        # Gradients, and the nodes that compute with them.
        self.gradients = dependents(self.nodes, seeds, self.reads)
        self.backward = {n for n in self.nodes if any(v in self.gradients for v in self.reads(n))}
        self.needed = self._needed(graph)
        self.kept = self._cut(set(graph.outputs)) if self.needed else set()

    def reads(self, node: ir.Node) -> Iterable[ir.Value]:
        """Inputs of a node and what its subgraphs read from outside."""
        yield from (v for v in node.inputs if v is not None)
        yield from self.inner.get(node, ())

    def _needed(self, graph: ir.Graph) -> set[ir.Value]:
        """What backward nodes read of forward ones, subgraphs left out: these are not rewritten."""
        fixed = {v for node in self.inner for v in self.inner[node]}
        read = {v for node in self.backward for v in node.inputs if v is not None}
        return {v for v in read if self._forward(v) and v not in fixed and not v.is_graph_output()}

    def _forward(self, value: ir.Value) -> bool:
        """Whether a forward node makes a value."""
        node = value.producer()
        return node is not None and node in self.order and node not in self.backward

    def _cut(self, outputs: set[ir.Value]) -> set[ir.Value]:
        """The forward tensors to keep: a cheapest set that the others follow from."""
        values, anchors = self._upstream(), self._anchors()
        index = {v: i for i, v in enumerate(values)}
        found = _sizes(self.nodes)
        sizes = [0 if v in outputs else found[v] for v in values]
        unit = max(1, sum(sizes) // _UNITS)
        most = 2 * _UNITS
        source, sink = 2 * len(values), 2 * len(values) + 1
        edges: dict[tuple[int, int], int] = {}
        for v, i in index.items():
            edges[2 * i, 2 * i + 1] = math.ceil(sizes[i] / unit)
            node = v.producer()
            assert node is not None
            if not _cheap(node) or v in anchors:
                edges[source, 2 * i] = most
            else:
                for read in node.inputs:
                    if read in index:
                        edges[2 * index[read] + 1, 2 * i] = most
            if v in self.needed:
                edges[2 * i + 1, sink] = most
        near = _sink_side(edges, source, sink)
        return {v for v, i in index.items() if 2 * i not in near and 2 * i + 1 in near}

    def _anchors(self) -> set[ir.Value]:
        """Tensors that go around operators that are not cheap, as residual connections do.

        What lies behind would be computed again from them, and they from those before: the whole chain
        when the backward pass begins, where it had better been kept.
        """
        depth: dict[ir.Value, int] = {}
        found: set[ir.Value] = set()
        for node in self.nodes:
            if node in self.backward:
                continue
            read = [(v, depth.get(v, 0)) for v in self.reads(node)]
            deepest = max((d for _, d in read), default=0)
            if node.op_type == "Shape":
                deepest = 0
            elif not _cheap(node):
                deepest += 1
            else:
                found.update(v for v, d in read if 0 < d < deepest)
            depth.update(dict.fromkeys(node.outputs, deepest))
        return found

    def _upstream(self) -> list[ir.Value]:
        """What is needed, and the forward tensors that it may be computed from."""
        found = dict.fromkeys(self.needed)
        waiting = list(found)
        while waiting:
            node = waiting.pop().producer()
            assert node is not None
            if not _cheap(node):
                continue
            for v in node.inputs:
                if v is not None and v not in found and self._forward(v):
                    found[v] = None
                    waiting.append(v)
        return sorted(found, key=self._place)

    def _place(self, value: ir.Value) -> tuple[int, int]:
        node = value.producer()
        assert node is not None
        return self.order[node], value.index() or 0

    def copied(self) -> list[ir.Node]:
        """Forward nodes that are computed again, in order."""
        found: set[ir.Node] = set()
        waiting = [v for v in self.needed if v not in self.kept]
        while waiting:
            node = waiting.pop().producer()
            assert node is not None
            if node not in found:
                found.add(node)
                waiting += [
                    v for v in node.inputs if v is not None and self._forward(v) and v not in self.kept
                ]
        return sorted(found, key=self.order.__getitem__)


class _Copies:
    """The copies, held back until the gradients that they are needed with are there."""

    def __init__(self, op: Builder, plan: _Plan, copied: list[ir.Node]) -> None:
        self.op = op
        self.plan = plan
        self.made: dict[ir.Value, ir.Value] = {}
        self.copied = set(copied)
        self._first = self._readers(copied)

    def _readers(self, copied: list[ir.Node]) -> dict[ir.Node, int]:
        """For each node the first backward node that reads what it makes, copies between them or not."""
        first: dict[ir.Node, int] = {}
        order, backward = self.plan.order, self.plan.backward
        for node in reversed(copied):
            again = [v for v in node.outputs if v not in self.plan.kept]
            users = [user for v in again for user, _ in v.uses()]
            places = [order[user] for user in users if user in backward]
            first[node] = min([*places, *(first[user] for user in users if user in first)])
        return first

    def copy(self, node: ir.Node) -> None:
        """Compute a node again; what it reads was copied before, if at all."""
        inputs = [None if v is None else self.made.get(v, v) for v in node.inputs]
        if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
            self._hold_back(inputs, self._gradient(self._first[node]))
        outputs = [
            ir.Value(name=self.op.unique(f"{v.name}_again") if v.name else "", type=v.type, shape=v.shape)
            for v in node.outputs
        ]
        self.op.nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                outputs=outputs,
                name=self.op.unique(f"{node.name}_again"),
            )
        )
        for old, new in zip(node.outputs, outputs, strict=True):
            if old not in self.plan.kept:
                self.made[old] = new

    def _gradient(self, place: int) -> ir.Value:
        """A gradient that the backward node at a place reads."""
        found = (v for v in self.plan.reads(self.plan.nodes[place]) if v in self.plan.gradients)
        return next(found)

    def _hold_back(self, inputs: list[ir.Value | None], gradient: ir.Value) -> None:
        """Let one of the inputs wait for a gradient: a tensor of the forward pass, if there is one."""
        waiting = [i for i, v in enumerate(inputs) if v is not None and v.const_value is None]
        if not waiting:
            return
        i = min(waiting, key=lambda i: inputs[i].producer() is None)  # type: ignore[union-attr]
        value = inputs[i]
        assert value is not None
        inputs[i] = self.op.once(("wait", value, gradient), lambda: self._waiting(value, gradient)).value

    def _waiting(self, value: ir.Value, gradient: ir.Value) -> Var:
        """The same tensor, for who has the gradient."""
        op = self.op
        nothing = op.once(("nothing", gradient), lambda: self._nothing(gradient))
        shape = op.wrap(value).static_shape
        own = op.Shape(value) if shape is None else op.const(np.array(shape, np.int64))
        made = op.Reshape(value, op.Concat(nothing, own, axis=0))
        made.value.shape, made.value.type = value.shape, value.type
        return made

    def _nothing(self, gradient: ir.Value) -> Var:
        """No numbers, of a gradient: int64, shape (0,)."""
        op = self.op
        return op.Cast(op.Slice(op.Reshape(gradient, [-1]), [0], [0]), to=ir.DataType.INT64)

    def replace(self) -> None:
        """Let backward nodes read the copies."""
        for old, new in self.made.items():
            if old not in self.plan.needed:
                continue
            for user, i in list(old.uses()):
                if user in self.plan.backward:
                    user.replace_input_with(i, new)


def _cheap(node: ir.Node) -> bool:
    return is_op(node, *_CHEAP)


def _sizes(nodes: Iterable[ir.Node]) -> dict[ir.Value, int]:
    """Bytes of what nodes make, roughly: where shapes are unknown, those of the largest input."""
    numbers: dict[ir.Value, int] = {}
    found: dict[ir.Value, int] = {}

    def count(value: ir.Value) -> int:
        if value.shape is None:
            return numbers.get(value, 1)
        return math.prod(d if isinstance(d, int) else _ROWS for d in value.shape)

    for node in nodes:
        largest = (
            8 if node.op_type == "Shape" else max((count(v) for v in node.inputs if v is not None), default=1)
        )
        for value in node.outputs:
            numbers[value] = largest
            # A string is a pointer and more; of any length, so of none that could be asked for.
            itemsize = 8 if value.dtype in (None, ir.DataType.STRING) else value.dtype.itemsize
            found[value] = math.ceil(count(value) * itemsize)
    return found


def _sink_side(edges: dict[tuple[int, int], int], source: int, sink: int) -> set[int]:
    """The vertices from which more could flow to the sink: the far side of the minimum cut next to it."""
    n = sink + 1
    rows, columns = np.array(list(edges), dtype=np.int32).T
    capacity = csr_matrix((np.array(list(edges.values()), dtype=np.int32), (rows, columns)), shape=(n, n))
    result = maximum_flow(capacity, source, sink)
    left = capacity - (result.flow if hasattr(result, "flow") else result.residual)
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    reached = breadth_first_order(left.T.tocsr(), sink, return_predecessors=False)
    return set(map(int, reached))

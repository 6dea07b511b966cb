"""Layers of a model: the weights that belong together, in the order in which data flows through them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from onnxcustom.graph.analysis.operands import trainable
from onnxcustom.graph.analysis.traversal import subgraphs
from onnxcustom.graph.files.io import ModelLike, to_ir
from onnxcustom.graph.preparation.prepare import structure
from onnxcustom.graph.preparation.sites import tag
from onnxcustom.graph.trainable.weights import trainable_values

__all__ = ["Layer", "layers"]

# What adds a weight to the result of the operator in front of it, and the operand it is added to.
_ADDITIONS = frozenset("Add Sub BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu FastGelu".split())
_MOVES = frozenset("Identity Cast Reshape Flatten Squeeze Unsqueeze Transpose".split())


@dataclasses.dataclass(frozen=True)
class Layer:
    """An operator that reads weights.

    Attributes
    ----------
    level : int
        Place on the way from the inputs to the outputs, counted from 1: what it reads has passed through
        lower levels only. Layers side by side have the same.
    node : str
        Name of the node.
    operator : str
        Its operator.
    weights : tuple of str
        Its weights, in the order in which the graph reads them.
    """

    level: int
    node: str
    operator: str
    weights: tuple[str, ...]


def layers(model: ModelLike) -> list[Layer]:
    """The layers of a model.

    A layer is one operator with all the weights that it reads, also those that are put together or
    transposed first, and the bias that is added to its result: a dense layer, a convolution, a
    normalization, an embedding, a recurrent cell, an attention of onnxruntime. An attention that is
    written out in products of matrices is as many layers as it has projections.

    The last level holds the layers with no other layer behind them on any way to the outputs, the one
    before it those with one level behind them on the longest way, and so on: the order of nodes in the
    file doesn't matter, and two heads side by side are both last. A weight that several layers share
    belongs to the one nearest to the outputs.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form.

    Returns
    -------
    list of Layer
        By level; within a level as the graph has them. Every weight of
        :func:`onnxcustom.graph.weights` is in exactly one.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 18]>
    ... net (float[N, 2] x) => (float[N, 1] y)
    ... <float[2, 2] w1 = {1, 2, 3, 4}, float[2] b1 = {0, 0}, float[2, 1] w2 = {1, 2}> {
    ...     a = MatMul(x, w1)  b = Add(a, b1)  c = Relu(b)  y = MatMul(c, w2)
    ... }''')
    >>> for layer in layers(model):
    ...     print(layer.level, layer.operator, layer.weights)
    1 MatMul ('w1', 'b1')
    2 MatMul ('w2',)
    """
    made = to_ir(model)
    tag(made)
    structure(made)
    return layers_of(made)


def layers_of(model: ir.Model) -> list[Layer]:
    """:func:`layers` of a model in prepared form."""
    found = _Found(model.graph, trainable_values(model))
    owner: dict[str, _Draft] = {}
    for draft in sorted(found.drafts, key=lambda d: -d.behind):  # stable, the last one prevails
        owner.update(dict.fromkeys(draft.weights, draft))
    owners = set(owner.values())
    kept = [d for d in found.drafts if d in owners]
    levels = {behind: 1 + i for i, behind in enumerate(sorted({d.behind for d in kept}, reverse=True))}
    made = [
        Layer(
            levels[d.behind],
            d.node.name or "",
            d.node.op_type,
            tuple(w for w in d.weights if owner[w] is d),
        )
        for d in kept
    ]
    return sorted(made, key=lambda layer: layer.level)


@dataclasses.dataclass(eq=False)
class _Draft:
    """A layer in the making; `behind` is how many layers are on the longest way to an output."""

    node: ir.Node
    weights: dict[str, None]
    behind: int = 0


class _Found:
    """One walk forward that tells who reads which weight, and one back that counts layers."""

    def __init__(self, graph: ir.Graph, weights: Iterable[ir.Value]) -> None:
        # Weights behind every value that is made of constants alone.
        self._parameters: dict[ir.Value, list[str]] = {v: [] for v in graph.initializers.values()}
        self._parameters.update({v: [v.name or ""] for v in weights})
        self.drafts: list[_Draft] = []
        self._of: dict[ir.Node, _Draft] = {}
        self._depths: dict[ir.Value, int] = {}
        self._forward(graph)
        self._unread(graph)
        self._backward(graph)

    # -- who reads what ------------------------------------------------------------------------

    def _forward(self, graph: ir.Graph) -> None:
        for node in graph:
            bodies = subgraphs(node)
            for body in bodies:
                for operand, inner in _handed(node, body):
                    if operand in self._parameters:
                        self._parameters[inner] = self._parameters[operand]
                self._forward(body)
            if not bodies:
                self._node(node)

    def _node(self, node: ir.Node) -> None:
        inputs = [v for v in node.inputs if v is not None]
        read = {name: None for i, v in enumerate(node.inputs) for name in self._read(node, i, v)}
        if inputs and all(v in self._parameters for v in inputs):
            self._parameters.update({v: list(read) for v in node.outputs})
        elif read:
            draft = self._added_to(node)
            if draft is None:
                draft = _Draft(node, {})
                self.drafts.append(draft)
            draft.weights.update(read)
            self._of[node] = draft

    def _read(self, node: ir.Node, index: int, value: ir.Value | None) -> list[str]:
        if value is None or not trainable(node, index):
            return []
        return self._parameters.get(value, [])

    def _added_to(self, node: ir.Node) -> _Draft | None:
        """The layer whose result `node` adds a bias to."""
        if node.op_type not in _ADDITIONS:
            return None
        data = (v for v in node.inputs[:2] if v is not None and v not in self._parameters)
        value = next(data, None)
        producer = None if value is None else value.producer()
        while producer is not None and producer not in self._of and producer.op_type in _MOVES:
            source = producer.inputs[0]
            producer = None if source is None else source.producer()
        return None if producer is None else self._of.get(producer)

    def _unread(self, graph: ir.Graph) -> None:
        """Weights that meet no data: what the model makes of them alone is an output."""
        read = {name for draft in self.drafts for name in draft.weights}
        for node in graph:
            left = [n for o in node.outputs for n in self._parameters.get(o, ()) if n not in read]
            if left:
                self._of[node] = _Draft(node, dict.fromkeys(left))
                self.drafts.append(self._of[node])
                read.update(left)

    # -- how far from the outputs ----------------------------------------------------------------

    def _backward(self, graph: ir.Graph) -> None:
        heads = {draft.node: draft for draft in self.drafts}
        for node in reversed(graph):
            behind = max((self._depths.get(v, 0) for v in node.outputs), default=0)
            for body in subgraphs(node):
                for output in body.outputs:
                    self._reach(output, behind)
                self._backward(body)
                for operand, inner in _handed(node, body):
                    self._reach(operand, self._depths.get(inner, 0))
            if node in heads:
                heads[node].behind = behind
                behind += 1
            for value in node.inputs:
                if value is not None:
                    self._reach(value, behind)

    def _reach(self, value: ir.Value, behind: int) -> None:
        self._depths[value] = max(self._depths.get(value, 0), behind)


def _handed(node: ir.Node, body: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Operands of a control-flow node with the inputs of the body that they become."""
    for operand, inner in zip(node.inputs, body.inputs, strict=False):
        if operand is not None:
            yield operand, inner

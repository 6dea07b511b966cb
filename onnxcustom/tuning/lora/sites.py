"""Matrices of a model that an adapter can stand beside, and which of them a user means."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxcustom._registry import did_you_mean
from onnxcustom._text import listed
from onnxcustom.exceptions import InvalidModelError, UnknownNameError
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_nodes
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.preparation.sites import own_name
from onnxcustom.graph.trainable.layers import layers_of
from onnxcustom.graph.trainable.selection import Catalog, is_word, matching

__all__ = ["Matrix", "Site", "matrices_of", "targeted"]

#: What a matrix may pass through on its way to the operator that multiplies by it.
_MOVES = ("Identity", "Transpose", "Cast", "DequantizeLinear")
# What data passes through between a projection and the product of queries and keys.
_SHAPES = frozenset(
    "Reshape Transpose Squeeze Unsqueeze Flatten Expand Split Slice Gather Concat Identity Cast Add Mul Div "
    "Sub Neg Where Tile LayerNormalization RMSNormalization SimplifiedLayerNormalization".split()
)
_VIEWS = frozenset("Reshape Transpose Squeeze Unsqueeze Flatten Identity Cast".split())
_ATTENTION = frozenset(("Attention", "MultiHeadAttention", "GroupQueryAttention"))
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Site:
    """A node that multiplies by a matrix.

    Attributes
    ----------
    node : onnx_ir.Node
        MatMul, Gemm or Conv.
    position : int
        Of the matrix among its inputs.
    turned : bool
        Whether what the node reads is the matrix transposed.
    """

    node: ir.Node
    position: int
    turned: bool

    @property
    def rows_are_outputs(self) -> bool:
        """Whether rows of the matrix, as the model holds it, stand for what the node computes.

        Columns then stand for what it reads; else it is the other way round.
        """
        node = self.node
        if node.op_type == "Conv":
            return True
        left = self.position == 0
        flag = node.op_type == "Gemm" and bool(node.attributes.get_int("transA" if left else "transB", 0))
        return left ^ flag ^ self.turned


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A weight that an adapter can stand beside.

    Attributes
    ----------
    value : onnx_ir.Value
        The initializer: of floats, or of integers that are dequantized.
    sites : tuple of Site
        All that read it.
    shape : tuple of int
        Of the matrix: rows and columns, without the sides of a kernel, which are 1.
    """

    value: ir.Value
    sites: tuple[Site, ...]
    shape: tuple[int, int]

    @property
    def name(self) -> str:
        """Name of the weight."""
        return own_name(self.value)

    @property
    def rows_are_outputs(self) -> bool:
        """As :attr:`Site.rows_are_outputs`, which is the same for all of them."""
        return self.sites[0].rows_are_outputs

    @property
    def features(self) -> tuple[int, int]:
        """Numbers that are read and that are computed."""
        return self.shape[::-1] if self.rows_are_outputs else self.shape

    @property
    def is_integer(self) -> bool:
        """Whether it is of integers that stand for floats."""
        return not is_float(self.value)

    @property
    def dtype(self) -> ir.DataType:
        """Dtype that the product is computed in."""
        node, position = self.sites[0].node, self.sites[0].position
        operand = node.inputs[position]
        assert operand is not None
        return operand.dtype or ir.DataType.FLOAT


def matrices_of(model: ir.Model) -> dict[str, Matrix]:
    """Weights of a prepared model that an adapter can stand beside, by name, in graph order.

    They are matrices that MatMul, Gemm or a Conv of kernels of one element multiplies by, and that nothing
    else reads: an embedding that is the head's weight, too, would change in both places.
    """
    found: dict[str, Matrix] = {}
    for node in all_nodes(model.graph):
        for position in _operands(node):
            root = _root(node.inputs[position])
            if root is None or own_name(root) in found:
                continue
            sites = tuple(_sites(root))
            shape = _shape(root)
            alike = len({site.rows_are_outputs for site in sites}) == 1
            if shape is not None and alike and _all_readers(root) == len(sites):
                found[own_name(root)] = Matrix(root, sites, shape)
    return found


def _operands(node: ir.Node) -> tuple[int, ...]:
    """Positions where a node may read a matrix."""
    if is_op(node, "MatMul") or is_op(node, "Gemm"):
        return (0, 1)
    if is_op(node, "Conv") and node.attributes.get_int("group", 1) == 1:
        return (1,)
    return ()


def _root(value: ir.Value | None) -> ir.Value | None:
    """The initializer that a value is, or is made of."""
    while value is not None:
        producer = value.producer()
        if producer is None:
            return value if value.is_initializer() and value.const_value is not None else None
        value = producer.inputs[0] if _moves(producer) else None
    return None


def _moves(node: ir.Node) -> bool:
    """Whether a node hands a matrix on, as it is or turned round."""
    if is_op(node, "Transpose"):
        value = node.inputs[0]
        turned = node.attributes.get_ints("perm", [1, 0])
        return list(turned) == [1, 0] and (value is None or value.shape is None or len(value.shape) == 2)
    return is_op(node, *_MOVES)


def _shape(root: ir.Value) -> tuple[int, int] | None:
    shape = None if root.const_value is None else tuple(root.const_value.shape.numpy())
    if shape is None or len(shape) < 2 or any(d != 1 for d in shape[2:]) or 0 in shape:
        return None
    return int(shape[0]), int(shape[1])


def _sites(root: ir.Value) -> Iterator[Site]:
    """Nodes that multiply by an initializer, as it is or turned round."""
    waiting = [(root, False)]
    for value, turned in waiting:
        for node, position in value.uses():
            if _moves(node) and position == 0:
                waiting.append((node.outputs[0], turned ^ is_op(node, "Transpose")))
            elif position in _operands(node) and _is_matrix(value, node):
                yield Site(node, position, turned)


def _is_matrix(value: ir.Value, node: ir.Node) -> bool:
    rank = 2 if value.shape is None else len(value.shape)
    return is_float(value, unknown=True) and (rank > 2) == (node.op_type == "Conv")


def _all_readers(root: ir.Value) -> int:
    """How many nodes read an initializer, behind what it passes through."""
    readers, waiting = 0, [root]
    for value in waiting:
        for node, position in value.uses():
            if _moves(node) and position == 0:
                waiting.append(node.outputs[0])
            else:
                readers += 1
        readers += value.is_graph_output()
    return readers


# -- which ones -------------------------------------------------------------------------------------------


def targeted(prepared: Prepared, targets: object) -> list[Matrix]:
    """The matrices that a user means.

    Parameters
    ----------
    prepared : Prepared
        The model.
    targets : str, int, tuple of int, or list of these, or None
        As :class:`~onnxcustom.tuning.LoRA` takes them.

    Raises
    ------
    InvalidModelError
        The model has no such matrix at all.
    UnknownNameError
        A target that chooses none; what could be chosen is listed.
    """
    found = matrices_of(prepared.model)
    if not found:
        raise InvalidModelError(
            "The model has no matrix that an adapter can stand beside: no weight of MatMul, Gemm or of a "
            "Conv with kernels of one element that nothing else reads."
        )
    if targets is None:
        return [*found.values()]
    chosen: dict[str, None] = {}
    choice = _Choice(prepared, found)
    for target in targets if isinstance(targets, list) else [targets]:
        names = choice.named(target)
        if not names:
            raise UnknownNameError(choice.nothing(target))
        chosen.update(dict.fromkeys(names))
    return [matrix for name, matrix in found.items() if name in chosen]


class _Choice:
    """Matrices by everything that they can be chosen by."""

    def __init__(self, prepared: Prepared, found: dict[str, Matrix]) -> None:
        self._prepared, self._found = prepared, found

    @functools.cached_property
    def _catalog(self) -> Catalog:
        return Catalog(self._prepared)

    def named(self, target: object) -> list[str]:
        """Names of the matrices that one target means."""
        if isinstance(target, (int, np.integer)) and not isinstance(target, bool):
            layers = [layer for layer in layers_of(self._prepared.model) if layer.level == target]
            return [name for layer in layers for name in layer.weights if name in self._found]
        if isinstance(target, tuple):
            return [name for name, m in self._found.items() if target in (m.shape, m.features)]
        if not isinstance(target, str):
            raise UnknownNameError(
                f"targets names {target!r}: names, patterns, 'attention', 'last:4', the number of a layer or "
                "a shape (inputs, outputs) were expected."
            )
        if target == "attention":
            return [name for name in self._found if name in _attention(self._found)]
        if is_word(target):
            return [name for name in self._catalog.chosen(target) if name in self._found]
        names = {*matching(target, self._found)}
        nodes = {str(s.node.name): n for n, m in self._found.items() for s in m.sites}
        names.update(nodes[node] for node in matching(target, nodes))
        return [name for name in self._found if name in names]

    def nothing(self, target: object) -> str:
        """What to say where a target means nothing."""
        shown = [f"{name} {m.features} of {m.sites[0].node.name}" for name, m in self._found.items()]
        hint = did_you_mean(target, [*self._found]) if isinstance(target, str) else ""
        return (
            f"targets names {target!r}, which means no matrix of the model that an adapter can stand beside."
            f"{hint} There are {listed(shown, _SHOWN, quoted=False)}."
        )


def _attention(found: dict[str, Matrix]) -> set[str]:
    """Matrices that make queries, keys and values, and the one behind their product."""
    sites = {site.node: name for name, matrix in found.items() for site in matrix.sites}
    chosen: set[str] = set()
    for node in {n for s in sites for n in _products_near(s)}:
        for operand in node.inputs[: 3 if node.op_type != "MatMul" else 2]:
            chosen |= {sites[n] for n in _before(operand) if n in sites}
        chosen |= {sites[n] for n in _behind(node) if n in sites}
    return chosen


def _products_near(node: ir.Node) -> Iterator[ir.Node]:
    """Products of data by data, and nodes of attention, in the graph of a node."""
    graph = node.graph
    for other in () if graph is None else graph:
        by_data = is_op(other, "MatMul") and not any(_root(v) for v in other.inputs)
        if by_data or other.op_type in _ATTENTION:
            yield other


def _before(value: ir.Value | None) -> set[ir.Node]:
    """Nodes whose results arrive at a value with nothing but their shape changed, or moved and scaled."""
    found: set[ir.Node] = set()
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        producer = None if value is None or value in seen else value.producer()
        if value is None or producer is None or value in seen:
            continue
        seen.add(value)
        if producer.op_type in _SHAPES:
            waiting += [v for v in producer.inputs if v is not None]
        else:
            found.add(producer)
    return found


def _behind(node: ir.Node) -> set[ir.Node]:
    """Nodes that read what a node computes, with nothing but its shape changed."""
    found: set[ir.Node] = set()
    waiting = [*node.outputs]
    seen: set[ir.Value] = set(waiting)
    while waiting:
        for reader, _ in waiting.pop().uses():
            if reader.op_type in _VIEWS:
                waiting += [v for v in reader.outputs if v not in seen]
                seen.update(reader.outputs)
            else:
                found.add(reader)
    return found

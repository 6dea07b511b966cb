"""Blocks that a model repeats: parts of one structure, one behind the other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.traversal import reads, subgraphs

__all__ = ["Repetition", "find_repetition"]

# What a graph is made of here: nodes, and inputs of the graph.
_Part: TypeAlias = ir.Node | ir.Value
# Constants up to this size, of whole numbers, are shapes and axes: blocks have the same ones.
_SHORT = 64


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Blocks of one structure between tensors of one shape.

    Attributes
    ----------
    cuts : tuple of onnx_ir.Value
        What the first block reads, and what each one computes.
    nodes : tuple of tuple of onnx_ir.Node
        Nodes of each block.
    """

    cuts: tuple[ir.Value, ...]
    nodes: tuple[tuple[ir.Node, ...], ...]


def find_repetition(graph: ir.Graph) -> Repetition | None:
    """The repetition with the most nodes, None if nothing is repeated.

    A block is all that is computed between two tensors through which everything goes that one has to do with
    the other: it reads weights and whatever else there is, such as masks, and nothing but the second tensor
    is read behind it on the way to an output. Blocks repeat each other if they have the same operators,
    attributes and shapes of weights, in any order in the file.
    """
    found: Repetition | None = None
    for output in graph.outputs:
        trunk = _Trunk(graph, output)
        for chain in trunk.chains():
            other = trunk.repetition(chain)
            if other is not None and (found is None or _size(other) > _size(found)):
                found = other
    return found


def _size(found: Repetition) -> int:
    return sum(map(len, found.nodes))


class _Trunk:
    """All that an output is computed by, and the tensors that everything goes through."""

    def __init__(self, graph: ir.Graph, output: ir.Value) -> None:
        self.inputs = {v for v in graph.inputs if v.const_value is None}
        self.order = _computed(graph, output, self.inputs)
        self.place = {part: i for i, part in enumerate(self.order)}
        self.readers = self._find_readers()
        self.next, self.depth = self._find_next()
        self._segments: dict[_Part, tuple[Hashable, tuple[ir.Node, ...]]] = {}
        self._values = {part: self._value(part, output) for part in self.order}

    def _find_readers(self) -> dict[_Part, list[ir.Node]]:
        readers: dict[_Part, list[ir.Node]] = {part: [] for part in self.order}
        for part in self.order:
            if isinstance(part, ir.Node):
                for other in dict.fromkeys(_part(v) for v in reads(part)):
                    if other in readers:
                        readers[other].append(part)
        return readers

    def _find_next(self) -> tuple[dict[_Part, _Part | None], dict[_Part, int]]:
        """Behind each part the first one that all its ways to the output go through (post-dominators)."""
        following: dict[_Part, _Part | None] = {}
        depth: dict[_Part, int] = {}
        for part in reversed(self.order):
            others: list[_Part] = list(self.readers[part])
            common: _Part | None = others[0] if others else None
            for other in others[1:]:
                one: _Part | None = other
                while common is not one:
                    if common is None or one is None:
                        common = one = None
                    elif depth[common] >= depth[one]:
                        common = following[common]
                    else:
                        one = following[one]
            following[part] = common
            depth[part] = 0 if common is None else depth[common] + 1
        return following, depth

    def _value(self, part: _Part, output: ir.Value) -> ir.Value | None:
        """The one tensor of a part that is read on the way to the output."""
        if isinstance(part, ir.Value):
            return part
        read = {v for reader in self.readers[part] for v in reads(reader)} | {output}
        values = [v for v in part.outputs if v in read]
        return values[0] if len(values) == 1 else None

    def chains(self) -> Iterable[list[_Part]]:
        """Ways along the parts that everything goes through, each as long as can be."""
        ends = {part for part in self.next.values() if part is not None}
        for part in self.order:
            if part not in ends:
                chain, at = [], part
                while at is not None:
                    if self._values[at] is not None:
                        chain.append(at)
                    at = self.next[at]  # type: ignore[assignment]
                yield chain

    def repetition(self, chain: Sequence[_Part]) -> Repetition | None:
        """The repetition with the most nodes along a way; of several the one of the shortest blocks."""
        kinds: dict[Hashable, int] = {}
        parts = [self._segment(a, b) for a, b in itertools.pairwise(chain)]
        marks = np.array([kinds.setdefault(kind, len(kinds)) for kind, _ in parts])
        shapes = [None if (v := self._values[part]) is None else _shape(v) for part in chain]
        best: tuple[int, int, int, int] = (0, 0, 0, 0)
        for period in range(1, len(marks) // 2 + 1):
            alike = np.array([_agree(*pair) for pair in zip(shapes, shapes[period:], strict=False)])
            same = (marks[:-period] == marks[period:]) & alike[:-1] & alike[1:]
            for start, length in _runs(same):
                count = length // period + 1
                if count < 2:
                    continue
                # Of the places to begin the last one: blocks end in what they are normalized by.
                first = start + length % period
                inside = parts[first : first + period * count]
                size = sum(len(nodes) for _, nodes in inside)
                if size > best[0] and _holds_weights(n for _, nodes in inside[:period] for n in nodes):
                    best = size, first, period, count
        size, first, period, count = best
        if not size:
            return None
        places = range(first, first + period * count + 1, period)
        cuts = tuple(v for i in places if (v := self._values[chain[i]]) is not None)
        blocks = [parts[i : i + period] for i in places[:-1]]
        return Repetition(cuts, tuple(tuple(n for _, nodes in block for n in nodes) for block in blocks))

    def _segment(self, start: _Part, end: _Part) -> tuple[Hashable, tuple[ir.Node, ...]]:
        """What lies between two neighbours of a way, as something to compare, and its nodes."""
        if start not in self._segments or self._segments[start][1][-1] is not end:
            inside: set[_Part] = set()
            waiting: list[_Part] = [start]
            while waiting:
                for reader in self.readers[waiting.pop()]:
                    if reader not in inside:
                        inside.add(reader)
                        if reader is not end:
                            waiting.append(reader)
            nodes = tuple(n for n in sorted(inside, key=self.place.__getitem__) if isinstance(n, ir.Node))
            value, last = self._values[start], self._values[end]
            assert value is not None
            assert last is not None
            kind = (_form(last, {value: "in"}, set(nodes)), len(nodes))
            self._segments[start] = kind, nodes
        return self._segments[start]


def _part(value: ir.Value) -> _Part:
    return value.producer() or value


def _computed(graph: ir.Graph, output: ir.Value, inputs: set[ir.Value]) -> list[_Part]:
    """What an output is computed by out of the inputs, in the order of the graph; no constants."""
    varying: set[ir.Value] = set(inputs)
    for node in graph:
        if any(v in varying for v in reads(node)):
            varying.update(node.outputs)
    wanted: set[_Part] = set()
    waiting = [output]
    while waiting:
        value = waiting.pop()
        part = _part(value)
        if value in varying and part not in wanted:
            wanted.add(part)
            waiting += reads(part) if isinstance(part, ir.Node) else []
    return [*(v for v in graph.inputs if v in wanted), *(n for n in graph if n in wanted)]


def _runs(same: np.ndarray) -> list[tuple[int, int]]:
    """Where stretches of True begin, and how long they are."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], same.astype(np.int8), [0]))))
    return [(int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _holds_weights(nodes: Iterable[ir.Node]) -> bool:
    """Whether one of some nodes reads constant numbers, more than one."""
    for node in nodes:
        for value in node.inputs:
            sizes = None if value is None or value.dtype is None or _whole(value) else _shape(value)
            if value is not None and _is_constant(value) and sizes and np.prod([s or 1 for s in sizes]) > 1:
                return True
    return False


def _whole(held: ir.Value | ir.TensorProtocol) -> bool:
    return held.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


def _is_constant(value: ir.Value) -> bool:
    """Whether a tensor is the same for every batch: held by the model, or made of what it holds."""
    node = value.producer()
    if node is None:
        return value.const_value is not None
    return all(_is_constant(v) for v in reads(node))


def _shape(value: ir.Value) -> tuple[int | None, ...] | None:
    """Sizes that are known, None for others."""
    held = value.const_value
    if held is None and value.shape is None:
        return None
    sizes = value.shape if held is None else held.shape
    return tuple(d if isinstance(d, int) else None for d in sizes or ())


def _agree(one: tuple[int | None, ...] | None, other: tuple[int | None, ...] | None) -> bool:
    """Whether two shapes may be the same: sizes that are known of both are."""
    if one is None or other is None:
        return True
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or a is None or b is None for a, b in pairs)


def _form(value: ir.Value, forms: dict[ir.Value, Hashable], nodes: set[ir.Node]) -> Hashable:
    """How a tensor is computed by some nodes, whatever names they have."""
    waiting = [value]
    while waiting:  # no recursion: a part may be thousands of nodes deep
        top = waiting[-1]
        node = top.producer()
        if top in forms:
            waiting.pop()
        elif node is None or node not in nodes:
            forms[top] = _outside(top)
            waiting.pop()
        elif missing := [v for v in reads(node) if v not in forms]:
            waiting += missing
        else:
            operands = tuple(None if v is None else forms[v] for v in node.inputs)
            around = tuple(forms[v] for v in reads(node)) if subgraphs(node) else ()
            place = node.outputs.index(top)
            # A number for the whole: of nested tuples a hash takes as long as there are ways through them.
            forms[top] = hash((node.domain, node.op_type, _attributes(node), operands, around, place))
            waiting.pop()
    return forms[value]


def _outside(value: ir.Value) -> Hashable:
    """A tensor that a block reads from around it: what kind of tensor it is, and shapes by their numbers."""
    held, node = value.const_value, value.producer()
    if node is not None and node.op_type == "Constant":
        held = next((a.as_tensor() for n, a in node.attributes.items() if n == "value"), held)
        if held is None:
            return ("constant", _attributes(node))
    if held is None:
        return ("side", value.dtype)
    numbers = tuple(held.numpy().reshape(-1).tolist()) if _whole(held) and held.size <= _SHORT else ()
    return ("constant", held.dtype, tuple(held.shape), numbers)


def _attributes(node: ir.Node) -> Hashable:
    """Attributes in a form to compare; of a subgraph its operators."""
    made: list[Hashable] = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            made.append((name, tensor.dtype, tuple(tensor.shape)))
        else:
            made.append((name, str(attribute.value)))
    inner = tuple(
        (n.domain, n.op_type, _attributes(n), tuple(map(_shape, n.outputs)))
        for g in subgraphs(node)
        for n in g
    )
    return tuple(made), inner

"""Values whose gradient reaches a node through something that carries none itself.

A quantized integer, a sequence and an optional are no tensors of real numbers, so the walk gives them no
gradient. The nodes that make tensors of them again (DequantizeLinear, SequenceAt ...) give theirs
straight to the tensors they were made from, which are found here by following the graph back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.stops import is_stopped
from onnxcustom.graph.analysis.traversal import all_nodes, captured, dependents

from .registry import non_differentiable_reason

__all__ = [
    "Element",
    "active_values",
    "all_reads",
    "captured_values",
    "carried_values",
    "element_at",
    "elements",
    "held",
    "is_holder",
    "quantizer",
    "untype",
]


def carried_values(node: ir.Node) -> list[ir.Value]:
    """The floating-point tensors that a node reads through a quantized, sequence or optional value."""
    if node.domain != "":
        return []
    if node.op_type == "DequantizeLinear":
        source = quantizer(node)
        return [] if source is None else [v for v in source.inputs[:2] if v is not None]
    if node.op_type == "SequenceAt":
        element = element_at(node)
        return [] if element is None else [element.value]
    if node.op_type == "ConcatFromSequence":
        return list(dict.fromkeys(e.value for e in elements(node.inputs[0]) or ()))
    if node.op_type == "OptionalGetElement":
        value = held(node.inputs[0])
        return [] if value is None else [value]
    return []


def captured_values(node: ir.Node) -> list[ir.Value]:
    """Values besides its inputs that a node depends on, each once.

    Those that it reads through integers, sequences and optionals, and those of enclosing graphs that its
    subgraphs read.
    """
    return list(dict.fromkeys((*carried_values(node), *captured(node, carried_values))))


def all_reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads, and what it depends on besides."""
    return [*(v for v in node.inputs if v is not None), *captured_values(node)]


def active_values(nodes: Iterable[ir.Node], wanted: Iterable[ir.Value]) -> set[ir.Value]:
    """`wanted` and every floating-point value that depends differentiably on one of them."""
    smooth = (
        n for n in nodes if non_differentiable_reason(n.op_type, n.domain) is None and not is_stopped(n)
    )
    return dependents(smooth, wanted, all_reads, is_float)


def _input(node: ir.Node, i: int) -> Any:
    """Input i, None if it is absent."""
    return node.inputs[i] if i < len(node.inputs) else None


def _position(value: ir.Value | None) -> int | None:
    """A position in a sequence, None if it is known only when the graph runs or is no single number."""
    array = constant_array(value)
    return int(array.item()) if array is not None and array.size == 1 else None


def quantizer(node: ir.Node) -> ir.Node | None:
    """The node that quantized what a DequantizeLinear reads, None if another one made it."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is None or source.op_type not in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return None
    return source if node.inputs[0] is source.outputs[0] else None


def held(value: ir.Value | None) -> ir.Value | None:
    """What an optional holds, None if that is known only when the graph runs."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Identity":
        value = node.inputs[0]
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == "Optional" and node.inputs else None


@dataclasses.dataclass(frozen=True)
class Element:
    """A tensor in a sequence: `value` itself, or piece `index` of it as SplitToSequence cuts it."""

    value: ir.Value
    split: ir.Node | None = None
    index: int = 0


def elements(value: ir.Value | None) -> list[Element] | None:
    """The tensors of a sequence in order, None if they are known only when the graph runs."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type == "SequenceConstruct":
        return [Element(v) for v in node.inputs if v is not None]
    if node.op_type == "SequenceEmpty":
        return []
    if node.op_type in ("Identity", "Optional"):
        return elements(node.inputs[0]) if node.inputs else None
    if node.op_type == "OptionalGetElement":
        return elements(node.inputs[0])
    if node.op_type == "SplitToSequence":
        n = _pieces(node)
        return None if n is None else [Element(_input(node, 0), node, i) for i in range(n)]
    if node.op_type in ("SequenceInsert", "SequenceErase"):
        return _edited(node)
    return None


def _edited(node: ir.Node) -> list[Element] | None:
    """Elements after an insertion or an erasure."""
    before = elements(node.inputs[0])
    given = _input(node, 2 if node.op_type == "SequenceInsert" else 1)
    position = _position(given)
    if before is None or (given is not None and position is None):
        return None
    inserts, after = node.op_type == "SequenceInsert", list(before)
    if position is None:
        position = len(after) if inserts else -1
    if not -len(after) <= position < len(after) + inserts:
        return None  # an error when the graph runs
    if inserts:
        after.insert(position, Element(_input(node, 1)))
    else:
        del after[position]
    return after


def element_at(node: ir.Node) -> Element | None:
    """What SequenceAt takes, None if that is known only when the graph runs."""
    index = _position(_input(node, 1))
    if index is None:
        return None
    source = _input(node, 0).producer()
    if source is not None and source.op_type == "SplitToSequence" and index >= 0:
        return Element(_input(source, 0), source, index)
    found = elements(node.inputs[0])
    if found is None or not -len(found) <= index < len(found):
        return None
    return found[index]


def _pieces(node: ir.Node) -> int | None:
    """How many pieces SplitToSequence makes."""
    given = _input(node, 1)
    split = constant_array(given)
    if given is not None and split is None:
        return None
    if split is not None and split.ndim:
        return len(split)
    shape = _input(node, 0).shape
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    size = None if shape is None else shape[axis]
    if not isinstance(size, int):
        return None
    return -(-size // (1 if split is None else int(split)))


_HOLDERS = frozenset(
    "Optional SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SequenceMap "
    "SplitToSequence".split()
)


def is_holder(value: ir.Value) -> bool:
    """Whether a value is a sequence or an optional, as far as that can be told without its type."""
    if isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
        return True
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return is_op(node, *_HOLDERS)


def untype(graph: ir.Graph) -> None:
    """Forget the types of sequences and optionals.

    onnx_ir's shape inference takes them for those of tensors, and onnxruntime refuses the model.
    """
    holders: set[ir.Value] = set()
    for node in all_nodes(graph):
        inherits = node.op_type in ("Identity", "OptionalGetElement") and node.inputs[0] in holders
        if node.op_type == "OptionalGetElement" and elements(node.inputs[0]) is None:
            inherits = False
        if node.op_type in _HOLDERS or inherits:
            holders.update(node.outputs)
    for value in holders:
        if isinstance(value.type, ir.TensorType):
            value.type, value.shape = None, None

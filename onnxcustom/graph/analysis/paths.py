"""Where a constant ends up: what reads it, as it is or moved, and what becomes of the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.links import Links
from onnxcustom.graph.analysis.operands import is_float

__all__ = ["MOVES", "End", "Paths", "single"]

# Operands whose numbers are those of the result, in another place.
MOVES: dict[str, tuple[int, ...]] = dict.fromkeys(
    "Identity Cast CastLike Reshape Flatten Squeeze Unsqueeze Transpose Expand Slice Tile Split Pad Trilu "
    "Dropout Gather GatherElements GatherND SplitToSequence SequenceAt ConcatFromSequence".split(),
    (0,),
) | {"Concat": tuple(range(4096)), "SequenceConstruct": tuple(range(4096)), "Where": (1, 2)}
_PICKS = ("Gather", "GatherElements", "GatherND")

# What attention scores go through between the product that makes them and their Softmax.
_SCORES = MOVES | {
    "Add": (0, 1), "Sub": (0,), "Mul": (0, 1), "Div": (0,), "Max": (0, 1), "Min": (0, 1), "Clip": (0,),
    "Tanh": (0,), "Sum": tuple(range(4096)),
}  # fmt: skip
_PRODUCTS = ("MatMul", "Gemm", "Einsum", "FusedMatMul", "TransposeMatMul")


@dataclasses.dataclass(frozen=True)
class End:
    """An operand that a constant is, moved about and perhaps scaled by numbers.

    Attributes
    ----------
    node : onnx_ir.Node
    index : int
    scale, shift : float
        The operand's numbers are ``scale * constant + shift``.
    picked : bool
        Whether indices choose which of the constant's numbers they are: it is a table.
    """

    node: ir.Node
    index: int
    scale: float = 1.0
    shift: float = 0.0
    picked: bool = False


def single(value: ir.Value | None) -> float | None:
    """The number in a floating-point constant of one element."""
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.size != 1 or not is_float(tensor):
        return None
    return float(tensor.numpy().reshape(-1)[0])


class Paths:
    """Ways through a graph, forth from constants and back from what they meet.

    Parameters
    ----------
    graph : onnx_ir.Graph
        Main graph of a prepared model.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.links = Links(graph)

    def ends(self, value: ir.Value) -> list[End]:
        """What reads a constant, past every operator that only moves it or applies numbers to it."""
        found: dict[End, None] = {}
        queue, seen = [(value, 1.0, 0.0, False)], {(value, 1.0, 0.0, False)}
        while queue:
            moved, scale, shift, picked = queue.pop()
            for node, index in self.links.next(moved):
                after = self._moved(node, index, End(node, index, scale, shift, picked))
                if after is None:
                    found[End(node, index, scale, shift, picked)] = None
                    continue
                for output in node.outputs:
                    state = (output, after.scale, after.shift, after.picked)
                    if state not in seen:
                        seen.add(state)
                        queue.append(state)
        return list(found)

    def _moved(self, node: ir.Node, index: int, end: End) -> End | None:
        """`end` behind a node that does nothing but move or scale; None for another."""
        if node.domain != "":
            return None
        if node.op_type in MOVES:
            if index not in MOVES[node.op_type] or self._chooses(node, index):
                return None
            picked = node.op_type in _PICKS and not _one_index(node.inputs[1])
            return dataclasses.replace(end, picked=end.picked or picked)
        if node.op_type == "Neg":
            return dataclasses.replace(end, scale=-end.scale, shift=-end.shift)
        if node.op_type not in ("Add", "Sub", "Mul", "Div"):
            return None
        number = single(node.inputs[1 - index])
        if number is None or (node.op_type == "Div" and (index == 1 or number == 0)):
            return None
        factor = {"Mul": number, "Div": 1 / (number or 1)}.get(node.op_type, 1.0)
        if node.op_type == "Sub" and index == 1:
            factor = -1.0
        term = {"Add": number, "Sub": number if index else -number}.get(node.op_type, 0.0)
        return dataclasses.replace(end, scale=factor * end.scale, shift=factor * end.shift + term)

    def _chooses(self, node: ir.Node, index: int) -> bool:
        """Whether a Where joins the operand with something computed."""
        other = node.inputs[3 - index] if node.op_type == "Where" else None
        return other is not None and other in self.links.computed

    def to_softmax(self, value: ir.Value) -> bool:
        """Whether a value is on its way to a Softmax as attention scores are."""
        queue, seen = [value], {value}
        while queue:
            for node, index in self.links.next(queue.pop()):
                if _is_softmax(node, index):
                    return True
                if node.domain == "" and index in _SCORES.get(node.op_type, ()):
                    queue += [v for v in node.outputs if v not in seen]
                    seen.update(node.outputs)
        return False

    def from_product(self, value: ir.Value | None) -> bool:
        """Whether a value is a product of two computed tensors, scaled, masked or moved since."""
        queue, seen = [value], {value}
        while queue:
            for source in self.sources(queue.pop()):
                node = source.producer()
                if node is None:
                    continue
                if self._is_product(node):
                    return True
                if node.domain == "":
                    before = [node.inputs[i] for i in _SCORES.get(node.op_type, ()) if i < len(node.inputs)]
                    queue += [v for v in before if v not in seen]
                    seen.update(before)
        return False

    def sources(self, value: ir.Value | None) -> list[ir.Value]:
        """A value and what it is in the graphs around its own."""
        return [] if value is None else self.links.origins(value)

    def _is_product(self, node: ir.Node) -> bool:
        if node.op_type in _PRODUCTS:
            return sum(v in self.links.computed for v in node.inputs[:2] if v is not None) == 2
        first = node.inputs[0] if node.op_type == "ReduceSum" else None
        inner = None if first is None else first.producer()
        if inner is None or inner.op_type != "Mul":
            return False
        return all(v in self.links.computed for v in inner.inputs)

    def behind(self, value: ir.Value, moves: frozenset[str], rotated: bool = False) -> Iterator[ir.Value]:
        """A value and all that it is made of by the operators `moves`, by scaling, by rotations if asked."""
        queue, seen = [value], {value}
        while queue:
            for source in self.sources(queue.pop()):
                yield source
                node = source.producer()
                if node is None or node.domain != "":
                    continue
                if node.op_type in moves or _scales(node) or (rotated and _rotates(node)):
                    before = [v for v in node.inputs if v is not None and v not in seen]
                    queue += before
                    seen.update(before)


def _one_index(value: ir.Value | None) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and tensor.size == 1


def _scales(node: ir.Node) -> bool:
    """Whether a node multiplies or divides by one number."""
    if node.op_type not in ("Mul", "Div"):
        return False
    return single(node.inputs[1]) is not None or (
        node.op_type == "Mul" and single(node.inputs[0]) is not None
    )


def _rotates(node: ir.Node) -> bool:
    """Whether a node changes signs, or the places of columns and their signs, by a constant."""
    if node.op_type not in ("Mul", "MatMul"):
        return False
    for value in node.inputs:
        tensor = None if value is None else value.const_value
        if tensor is None or not is_float(tensor):
            continue
        sizes = np.abs(tensor.numpy())
        if node.op_type == "Mul":
            return bool((sizes == 1).all())
        ones = np.isin(sizes, (0, 1)).all() and (sizes.sum(axis=-1) == 1).all()
        return bool(ones and (sizes.sum(axis=-2 if sizes.ndim > 1 else -1) == 1).all())
    return False


def _is_softmax(node: ir.Node, index: int) -> bool:
    """Whether operand `index` enters a Softmax, or the differences to a maximum whose powers are taken."""
    if node.op_type in ("Softmax", "LogSoftmax", "BiasSoftmax"):
        return index == 0
    if node.op_type != "Sub" or index != 0 or node.inputs[1] is None:
        return False
    other = node.inputs[1].producer()
    largest = other is not None and other.op_type == "ReduceMax" and other.inputs[0] is node.inputs[0]
    return largest and any(user.op_type == "Exp" for user, _ in node.outputs[0].uses())

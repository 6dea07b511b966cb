"""Weights as the matrices that operators multiply by: which numbers of a weight make one output.

A weight is followed through transpositions, reshapes, slices and concatenations by what these do to
the positions of its numbers, up to the operator that multiplies by it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from itertools import zip_longest

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.traversal import all_nodes
from onnxcustom.graph.files.limits import current_limits

__all__ = ["Kernel", "Use", "kernels", "uses"]

_COPIES = frozenset({"Identity", "Cast"})
_MOVES = frozenset("Concat Expand Flatten Reshape Slice Split Squeeze Tile Transpose Unsqueeze".split())

# What following a weight through one operator counts as, in bytes.
_LEAST = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """Matrices that an operator multiplies its data by.

    Attributes
    ----------
    index : ndarray of int64, shape (blocks, outputs, inputs)
        Where each number is in the weight, flattened; -1 for one that is not of this weight. Row i of
        a block holds what output i is summed up with.
    fan_in : int
        How many numbers of the data are summed up in one number of the result.
    fan_out : int
        How many numbers of the result one number of the data goes into.
    """

    index: np.ndarray
    fan_in: int
    fan_out: int


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """An operator that reads a weight, or a part of it.

    Attributes
    ----------
    node : onnx_ir.Node
        The operator.
    position : int
        Which of its operands.
    index : ndarray of int64
        Where in the weight, flattened, each number of that operand is; -1 for one that is elsewhere.
    """

    node: ir.Node
    position: int
    index: np.ndarray


def uses(value: ir.Value, opset: int) -> list[Use]:
    """The operators that read a weight, as it is or moved about, in the order in which the graph has them.

    Parameters
    ----------
    value : onnx_ir.Value
        Initializer of a prepared model.
    opset : int
        Version of the model's default domain.

    Returns
    -------
    list of Use
    """
    assert value.const_value is not None
    shape = tuple(value.const_value.shape.numpy())
    room = _Room(current_limits().folded_bytes)
    index = np.arange(value.const_value.size, dtype=np.int64).reshape(shape)
    found: list[Use] = []
    left: list[Use | tuple[ir.Value, np.ndarray]] = [(value, index)]
    while left:
        part = left.pop()
        if isinstance(part, Use):
            found.append(part)
        else:
            left.extend(reversed(list(_following(*part, opset, room))))
    graph = value.graph
    if graph is None or len(found) < 2:
        return found
    order = {node: i for i, node in enumerate(all_nodes(graph))}
    return sorted(found, key=lambda use: order.get(use.node, len(order)))


def _following(
    value: ir.Value, index: np.ndarray, opset: int, room: _Room
) -> Iterator[Use | tuple[ir.Value, np.ndarray]]:
    """Who reads a value, and what is made of it by moving numbers about."""
    for node, position in value.uses():
        standard = node.domain == ""
        if standard and node.op_type in _COPIES and room.take(0):
            yield node.outputs[0], index
        elif (
            standard
            and node.op_type in _MOVES
            and (moved := _moved(node, position, index, opset, room)) is not None
        ):
            yield from zip(node.outputs, moved, strict=False)
        else:
            yield Use(node, position, index)


@dataclasses.dataclass
class _Room:
    """Memory that is left for positions; a weight that is repeated without end is followed so far."""

    left: int

    def take(self, elements: int) -> bool:
        """Take the room of so many positions, if it is there; every operator counts as some thousand."""
        nbytes = max(8 * elements, _LEAST)
        if nbytes > self.left:
            return False
        self.left -= nbytes
        return True


def _moved(
    node: ir.Node, position: int, index: np.ndarray, opset: int, room: _Room
) -> list[np.ndarray] | None:
    """What an operator does to positions; None if that depends on data, or there is no room for them."""
    if position != 0 and node.op_type != "Concat":
        return None
    elements = _elements(node, position, index)
    if elements is None or not room.take(elements):
        return None
    feeds = {}
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        array = (
            index
            if i == position
            else _elsewhere(value)
            if node.op_type == "Concat"
            else constant_array(value)
        )
        if array is None:
            return None
        feeds[value.name or ""] = array
    evaluator = ReferenceEvaluator(ir.to_proto(node), opsets={"": opset})
    return [np.asarray(array) for array in evaluator.run(None, feeds)]


def _elements(node: ir.Node, position: int, index: np.ndarray) -> int | None:
    """How many positions an operator makes of those given; None if that depends on data."""
    if node.op_type == "Concat":
        others = [v.shape for i, v in enumerate(node.inputs) if i != position and v is not None]
        if any(shape is None or not shape.is_static() for shape in others):
            return None
        return index.size + sum(math.prod(shape.numpy()) for shape in others if shape is not None)
    if node.op_type not in ("Expand", "Tile"):
        return index.size
    sizes = constant_array(node.inputs[1])
    if sizes is None or sizes.ndim != 1:
        return None
    wanted = [max(int(n), 1) for n in sizes]
    if node.op_type == "Tile":
        return index.size * math.prod(wanted)
    behind = zip_longest(reversed(index.shape), reversed(wanted), fillvalue=1)
    return math.prod(max(a, b) for a, b in behind)


def _elsewhere(value: ir.Value) -> np.ndarray | None:
    """Positions of what is put beside a weight; None if its shape is not known."""
    array = constant_array(value)
    if array is not None:
        return np.full(array.shape, -1, dtype=np.int64)
    shape = value.shape
    if shape is None or not shape.is_static():
        return None
    return np.full(shape.numpy(), -1, dtype=np.int64)


def kernels(use: Use) -> list[Kernel] | None:
    """The matrices that a weight is to the operator that reads it.

    Parameters
    ----------
    use : Use
        Of :func:`uses`.

    Returns
    -------
    list of Kernel or None
        None where the operator doesn't multiply by the weight, or is not known to.
    """
    build = _KERNELS.get((use.node.domain, use.node.op_type, use.position))
    return None if build is None else build(use.node, use.index)


# -- one function for each kind of operator ----------------------------------------------------


def _kernel(index: np.ndarray, fan_out: int | None = None) -> list[Kernel]:
    return [Kernel(index, index.shape[2], index.shape[1] if fan_out is None else fan_out)]


def _left(node: ir.Node, index: np.ndarray) -> list[Kernel]:
    """A of A @ x, of shape (..., outputs, inputs)."""
    if node.attributes.get_int("transA", 0):
        index = np.swapaxes(index, -1, -2)
    return _kernel(index.reshape(-1, *index.shape[-2:]) if index.ndim > 1 else index.reshape(1, 1, -1))


def _right(node: ir.Node, index: np.ndarray) -> list[Kernel]:
    """B of x @ B, of shape (..., inputs, outputs)."""
    if index.ndim == 1:
        return _kernel(index.reshape(1, 1, -1))
    if not node.attributes.get_int("transB", 0):
        index = np.swapaxes(index, -1, -2)
    return _kernel(index.reshape(-1, *index.shape[-2:]))


def _convolution(node: ir.Node, index: np.ndarray) -> list[Kernel]:
    """W (outputs, inputs / groups, *window): each group is a convolution of its own."""
    groups, outputs = node.attributes.get_int("group", 1), index.shape[0]
    window = int(np.prod(index.shape[2:]))
    index = index.reshape(groups, outputs // groups, -1)
    return _kernel(index, index.shape[1] * window)


def _transposed_convolution(node: ir.Node, index: np.ndarray) -> list[Kernel]:
    """W (inputs, outputs / groups, *window)."""
    groups, outputs = node.attributes.get_int("group", 1), index.shape[1]
    window = int(np.prod(index.shape[2:]))
    index = np.swapaxes(index.reshape(groups, -1, outputs, window), 1, 2).reshape(groups, outputs, -1)
    return _kernel(index, outputs * window)


def _recurrent(gates: int) -> Callable[[ir.Node, np.ndarray], list[Kernel]]:
    """W (directions, gates * hidden, inputs): each gate is a matrix of its own."""
    return lambda node, index: _kernel(index.reshape(index.shape[0] * gates, -1, index.shape[2]))


def _projections(node: ir.Node, index: np.ndarray) -> list[Kernel]:
    """W (inputs, outputs of Q, K and V side by side)."""
    third = index.shape[1] // 3
    sizes = list(node.attributes.get_ints("qkv_hidden_sizes", ())) or [third, third, third]
    parts = np.split(index, np.cumsum(sizes)[:-1], axis=1)
    return [kernel for part in parts for kernel in _kernel(part.T[None])]


def _embedding(node: ir.Node, index: np.ndarray) -> list[Kernel]:
    """A table: as torch.nn.init has it, a row is what counts for fan_in."""
    rows = np.moveaxis(index, node.attributes.get_int("axis", 0), 0)
    return _kernel(rows.reshape(1, len(rows), -1))


def _einsum(operand: int) -> Callable[[ir.Node, np.ndarray], list[Kernel] | None]:
    """Axes of the weight alone are its outputs, those summed over its inputs, the others blocks."""

    def build(node: ir.Node, index: np.ndarray) -> list[Kernel] | None:
        equation = node.attributes.get_string("equation", "").replace(" ", "")
        terms, arrow, result = equation.partition("->")
        mine, *others = (t := terms.split(","))[operand : operand + 1] + t[:operand] + t[operand + 1 :]
        if not arrow or len(set(mine)) != index.ndim or len(mine) != index.ndim:
            return None  # dots, or an axis twice
        inputs = [c for c in mine if c not in result]
        outputs = [c for c in mine if c in result and not any(c in other for other in others)]
        blocks = [c for c in mine if c not in inputs + outputs]
        axes = [[mine.index(c) for c in letters] for letters in (blocks, outputs, inputs)]
        sizes = [int(np.prod([index.shape[a] for a in group])) for group in axes]
        return _kernel(index.transpose([a for group in axes for a in group]).reshape(sizes))

    return build


_Build = Callable[[ir.Node, np.ndarray], list[Kernel] | None]
_KERNELS: dict[tuple[str, str, int], _Build] = {
    **{("", op, 0): _left for op in ("MatMul", "Gemm")},
    **{("", op, 1): _right for op in ("MatMul", "Gemm")},
    **{("", op, 1): _convolution for op in ("Conv", "DeformConv")},
    ("", "ConvTranspose", 1): _transposed_convolution,
    **{("", op, i): _recurrent(n) for op, n in (("RNN", 1), ("GRU", 3), ("LSTM", 4)) for i in (1, 2)},
    ("", "Gather", 0): _embedding,
    **{("", "Einsum", i): _einsum(i) for i in range(8)},
    **{("com.microsoft", op, 0): _left for op in ("FusedMatMul", "FusedGemm", "TransposeMatMul")},
    **{("com.microsoft", op, 1): _right for op in ("FusedMatMul", "FusedGemm", "TransposeMatMul")},
    ("com.microsoft", "FusedConv", 1): _convolution,
    ("com.microsoft", "Attention", 1): _projections,
    **{("com.microsoft", "EmbedLayerNormalization", i): _embedding for i in (2, 3, 4)},
}

"""What follows a layer, and whether it goes with another number of outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["Follower", "Following", "before", "behind", "chooses"]

# Numbers one by one, whatever else is there.
_SINGLE = frozenset(
    "Abs Cast Clip Dropout Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log LogSoftmax Mish Neg "
    "Relu Selu Sigmoid Softmax Softplus Softsign Sqrt Tanh".split()
)
_POOLS = frozenset("AveragePool GlobalAveragePool GlobalMaxPool MaxPool".split())
_TWO = frozenset("Add Div Max Min Mul Pow Sub".split())
_REDUCE = frozenset("ReduceMax ReduceMean ReduceSum".split())
# What a label passes through on its way from the place of the best score, and which operand it is.
_LABEL_MOVES = {
    **dict.fromkeys("Cast Flatten Identity LabelEncoder Reshape Squeeze Unsqueeze Not".split(), 0),
    **dict.fromkeys(("Gather", "ArrayFeatureExtractor"), 1),
}
_COMPARISONS = frozenset("Greater GreaterOrEqual Less LessOrEqual".split())


@dataclasses.dataclass(frozen=True)
class Follower:
    """A node that stays.

    Attributes
    ----------
    node : onnx_ir.Node
        As it was.
    position : int
        Operand that comes from the layer.
    operands : dict of int to ndarray
        Constants that take the place of others.
    """

    node: ir.Node
    position: int
    operands: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


class Following:
    """Nodes behind a layer, one after the other, as far as they fit any number of outputs.

    Parameters
    ----------
    axis, size, count : int, int or None, int
        Axis of what the layer computes that has its outputs, how many there are and how many there will be.

    Attributes
    ----------
    nodes : list of Follower
        Those that stay.
    broken : onnx_ir.Node or None
        The first that does not fit.
    axis : int or None
        Where the outputs are behind those that stay; None if they have no axis of their own.
    """

    def __init__(self, axis: int, size: int | None, count: int) -> None:
        self.axis: int | None = axis
        self.size, self.count = size, count
        self.nodes: list[Follower] = []
        self.broken: ir.Node | None = None

    def follow(self, value: ir.Value, output: ir.Value, stop: str | None) -> None:
        """Go from what a layer computes to an output, or to the scores that it is made of."""
        path = before(output)
        self.axis = None if self.axis is None else _normal(self.axis, value)
        scores: tuple[int, int | None] | None = None
        while value is not output:
            if value.name == stop:
                scores = len(self.nodes), self.axis
            readers = [n for n in dict.fromkeys(use.node for use in value.uses()) if n in path]
            found = self._step(readers[0], value) if len(readers) == 1 else None
            if found is None:
                if scores is None:
                    self.broken = readers[0]
                else:  # a softmax or sigmoid in several nodes, made anew
                    self.axis = scores[1]
                    del self.nodes[scores[0] :]
                return
            follower, self.axis = found
            self.nodes.append(follower)
            value = readers[0].outputs[0]

    def _step(self, node: ir.Node, value: ir.Value) -> tuple[Follower, int | None] | None:
        """The node for another number of outputs, and where these are then; None: it does not fit."""
        kind, position = node.op_type, list(node.inputs).index(value)
        if node.domain not in ("", "ai.onnx"):
            return None
        constants = [v for i, v in enumerate(node.inputs) if i != position and v is not None]
        kept = Follower(node, position)
        if any(v.const_value is None for v in constants):
            return self._computed(kept, value)
        if kind in _TWO:
            fits = len(constants) == 1 and _array(constants[0]).size == 1 and self._keeps_rank(node, value)
            return (kept, self.axis) if fits else None
        if position:
            return None
        if kind in _SINGLE or (kind in _POOLS and self.axis == 1):
            return kept, self.axis
        move = getattr(self, f"_{kind.lower()}", None) if kind in _MOVES else None
        if kind in _REDUCE:
            move = self._reduced
        found = None if move is None else move(kept, value)
        same = move is not None and found is None and self.size == self.count
        return (kept, None) if same else found

    @staticmethod
    def _keeps_rank(node: ir.Node, value: ir.Value) -> bool:
        shapes = (value.shape, node.outputs[0].shape)
        return any(s is None for s in shapes) or len(shapes[0] or ()) == len(shapes[1] or ())

    # -- moves ---------------------------------------------------------------------------------------

    def _transpose(self, kept: Follower, value: ir.Value) -> tuple[Follower, int] | None:
        perm = list(kept.node.attributes.get_ints("perm", ())) or list(reversed(range(_rank(value) or 0)))
        axis = self._place(value)
        return None if axis is None or not perm else (kept, perm.index(axis))

    def _squeeze(self, kept: Follower, value: ir.Value) -> tuple[Follower, int] | None:
        axis, rank = self._place(value), _rank(value)
        axes = _numbers(kept.node, 1, "axes")
        if axis is None or rank is None:
            return None
        if axes is None:
            axes = [i for i, d in enumerate(value.shape or ()) if d == 1]
        gone = {a % rank for a in axes}
        return None if axis in gone else (kept, axis - sum(a < axis for a in gone))

    def _unsqueeze(self, kept: Follower, value: ir.Value) -> tuple[Follower, int] | None:
        axis, rank, axes = self._place(value), _rank(value), _numbers(kept.node, 1, "axes")
        if axis is None or rank is None or axes is None:
            return None
        new = {a % (rank + len(axes)) for a in axes}
        left = [i for i in range(rank + len(axes)) if i not in new]
        return kept, left[axis]

    def _flatten(self, kept: Follower, value: ir.Value) -> tuple[Follower, int] | None:
        axis, rank = self._place(value), _rank(value)
        if axis is None or rank is None:
            return None
        start = kept.node.attributes.get_int("axis", 1) % (rank + 1)
        part = range(start, rank) if axis >= start else range(start)
        alone = all(_size(value, i) == 1 for i in part if i != axis)
        return (kept, int(axis >= start)) if alone else None

    def _reshape(self, kept: Follower, value: ir.Value) -> tuple[Follower, int] | None:
        axis, rank = self._place(value), _rank(value)
        target = _numbers(kept.node, 1, "shape")
        if axis is None or rank is None or target is None:
            return None
        inner = [_size(value, i) for i in range(axis + 1, rank)]
        for place in range(len(target)):
            if not _equal(inner, target[place + 1 :], value, place + 1):
                continue
            size = target[place]
            copied = size == 0 and place == axis
            # What lies before must be as many numbers, or the place of -1 is not that of the outputs alone.
            outer = _equal([_size(value, i) for i in range(axis)], target[:place], value, 0)
            if not (copied or (size == self.size and -1 in target) or (size in (-1, self.size) and outer)):
                continue
            operands = {} if size != self.size else {1: _with(target, place, self.count)}
            return Follower(kept.node, 0, operands), place
        return None

    def _computed(self, kept: Follower, value: ir.Value) -> tuple[Follower, int] | None:
        """A Reshape to computed sizes, and -1 for the outputs, that takes rows apart."""
        node, axis = kept.node, self._place(value)
        target = node.inputs[1] if node.op_type == "Reshape" and not kept.position else None
        maker = None if target is None else target.producer()
        if maker is None or maker.op_type != "Concat" or axis is None:
            return None
        *others, last = maker.inputs
        ends = last is not None and last.const_value is not None and _array(last).tolist() == [-1]
        sizes = [1 if v is None or v.shape is None else _size(v, 0) for v in others]
        whole = all(isinstance(size, int) for size in sizes)
        return (kept, sum(sizes)) if ends and whole and _rank(value) in (None, axis + 1) else None

    def _resize(self, kept: Follower, value: ir.Value) -> tuple[Follower, int] | None:
        axis = self._place(value)
        if axis is None:
            return None
        inputs = list(kept.node.inputs)
        if len(inputs) > 3 and inputs[3] is not None:
            sizes = _array(inputs[3]).tolist()
            fits = axis < len(sizes) and sizes[axis] == self.size
            return (Follower(kept.node, 0, {3: _with(sizes, axis, self.count)}), axis) if fits else None
        scales = _array(inputs[2 if len(inputs) > 2 else 1]).tolist()
        return (kept, axis) if axis < len(scales) and scales[axis] == 1 else None

    def _reduced(self, kept: Follower, value: ir.Value) -> tuple[Follower, int] | None:
        axis, rank, axes = self._place(value), _rank(value), _numbers(kept.node, 1, "axes")
        if axis is None or rank is None or axes is None:
            return None
        gone = {a % rank for a in axes}
        if axis in gone:
            return None
        keep = kept.node.attributes.get_int("keepdims", 1)
        return kept, axis if keep else axis - sum(a < axis for a in gone)

    def _place(self, value: ir.Value) -> int | None:
        """The axis of the outputs, counted from the front."""
        rank = _rank(value)
        if self.axis is None or self.axis >= 0:
            return self.axis
        return None if rank is None else self.axis % rank


_MOVES = frozenset("Flatten Reshape Resize Squeeze Transpose Unsqueeze".split())


def _normal(axis: int, value: ir.Value) -> int:
    rank = _rank(value)
    return axis if rank is None or axis >= 0 else axis % rank


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _size(value: ir.Value, axis: int) -> Any:
    assert value.shape is not None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else dim.value


def _equal(sizes: Sequence[Any], target: Sequence[int], value: ir.Value, start: int) -> bool:
    """Whether dimensions hold as many numbers as those of the shape of a Reshape that begin at a place."""
    wanted = [
        _size(value, start + i) if d == 0 and start + i < (_rank(value) or 0) else d
        for i, d in enumerate(target)
    ]
    left = list(sizes)
    for size in list(wanted):
        if size in left:
            left.remove(size)
            wanted.remove(size)
    if [s for s in wanted if s == -1] and len(left) == 1 and len(wanted) == 1:
        return True  # one dimension, whatever its size
    if any(not isinstance(s, int) or s < 1 for s in (*left, *wanted)):
        return False
    return math.prod(left) == math.prod(wanted)


def _with(numbers: Sequence[int], place: int, number: int) -> np.ndarray:
    return np.array([number if i == place else n for i, n in enumerate(numbers)], np.int64)


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _numbers(node: ir.Node, index: int, attribute: str) -> list[int] | None:
    """Integers of an attribute, or of a constant operand."""
    if attribute in node.attributes:
        return list(node.attributes[attribute].as_ints())
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else _array(value).reshape(-1).tolist()


# -- labels -------------------------------------------------------------------------------------------------


def chooses(value: ir.Value) -> bool:
    """Whether a tensor is the label of the best score: its place, or what stands there in a table."""
    current: ir.Value | None = value
    while current is not None and (node := current.producer()) is not None:
        if node.op_type == "ArgMax" or node.op_type in _COMPARISONS:
            return True
        if node.op_type == "TopK":
            return node.outputs[1] is current and _numbers(node, 1, "k") == [1]
        index = _LABEL_MOVES.get(node.op_type)
        if index is None:
            return False
        if node.op_type == "Gather" and (node.inputs[0] is None or node.inputs[0].const_value is None):
            return False
        current = node.inputs[index]
    return False


def behind(value: ir.Value) -> set[ir.Value]:
    """Values that are computed from a value."""
    seen, waiting = {value}, [value]
    while waiting:
        for use in waiting.pop().uses():
            for output in use.node.outputs:
                if output not in seen:
                    seen.add(output)
                    waiting.append(output)
    return seen


def before(value: ir.Value) -> set[ir.Node]:
    """Nodes that a value is computed by."""
    seen: set[ir.Node] = set()
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [v.producer() for v in node.inputs if v is not None]
    return seen

"""Where rows of a batch are in the tensors of a graph, and which operators make numbers of several rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array

__all__ = ["ROWS", "SIZES", "SOMEWHERE", "RowState", "find_mixing", "row_states"]

#: What the dimension of the rows is called.
ROWS = "rows"
#: Rows are in a tensor, and it is not known where.
SOMEWHERE = -1


@dataclasses.dataclass(frozen=True)
class RowState:
    """What is known of a tensor.

    Attributes
    ----------
    axis : int or None
        Where the rows are; None if it is the same for all batches.
    mixed : str or None
        Operator that made a number out of several rows.
    """

    axis: int | None = None
    mixed: str | None = None


_FREE = RowState()
_Found = int | RowState | None
_Rule = Callable[["_Node"], _Found]


def find_mixing(model: ir.Model) -> str | None:
    """The operator that makes the loss of a row depend on other rows of the batch, None if none is found.

    What cannot be told (control flow, indices that are computed) counts as not mixing.

    Parameters
    ----------
    model : onnx_ir.Model
        From predictions and expected values, rows first, to one loss a row.
    """
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape([ROWS, *value.shape[1:]])
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)).graph
    axes = {v: None if v.shape is not None and not len(v.shape) else 0 for v in graph.inputs}
    states = row_states(graph, axes, model.opset_imports.get("", 18))
    return states.get(graph.outputs[0], _FREE).mixed


def row_states(
    nodes: Iterable[ir.Node], axes: Mapping[ir.Value, int | None], opset: int
) -> dict[ir.Value, RowState]:
    """Where rows are in all that nodes compute.

    Parameters
    ----------
    nodes : iterable of onnx_ir.Node
        In topological order; shapes name the dimension of the rows :data:`ROWS` where they tell.
    axes : mapping of onnx_ir.Value to int or None
        Where rows are in what they read; None, as for all that is left out, without rows.
    opset : int
        Version of the default operator set.

    Returns
    -------
    dict of onnx_ir.Value to RowState
    """
    states = {value: RowState(axis) for value, axis in axes.items()}
    for node in nodes:
        read = [_FREE if v is None else states.get(v, _FREE) for v in node.inputs]
        states.update(dict.fromkeys(node.outputs, _of_node(node, read, opset)))
    return states


def _of_node(node: ir.Node, states: Sequence[RowState], opset: int) -> RowState:
    """What comes out of a node."""
    if node.op_type in SIZES and node.domain == "":
        return _FREE
    mixed = next((s for s in states if s.mixed is not None), None)
    if mixed is not None:
        return mixed
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return RowState(SOMEWHERE)
    if all(s.axis is None for s in states):
        return _FREE
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    found = SOMEWHERE if rule is None else rule(_Node(node, [s.axis for s in states], opset))
    return found if isinstance(found, RowState) else RowState(found)


class _Node:
    """A node, and where the rows are in its inputs."""

    def __init__(self, node: ir.Node, axes: Sequence[int | None], opset: int) -> None:
        self.node, self.axes, self.opset = node, axes, opset
        self.ranks = [None if v is None or v.shape is None else len(v.shape) for v in node.inputs]
        shape = node.outputs[0].shape
        self.rank = None if shape is None else len(shape)
        self.mixed = RowState(mixed=node.op_type)

    @property
    def lost(self) -> bool:
        """Whether it is not known where rows are, or how many dimensions there are."""
        return any(a is not None and (a < 0 or r is None) for a, r in zip(self.axes, self.ranks, strict=True))

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def const(self, i: int) -> list[int] | None:
        """Numbers of an input that is constant."""
        array = constant_array(self.node.inputs[i]) if i < len(self.node.inputs) else None
        return None if array is None else np.atleast_1d(array).tolist()

    def numbers(self, name: str, i: int) -> list[int] | None:
        """Axes that are an attribute, or an input."""
        found = self.get(name)
        return self.const(i) if found is None else list(np.atleast_1d(found))

    def given(self, i: int) -> bool:
        """Whether there is such an input."""
        return i < len(self.node.inputs) and self.node.inputs[i] is not None


# -- rules -------------------------------------------------------------------------------------------


def _elementwise(n: _Node) -> int | RowState | None:
    """Rows that meet rows stay rows; two axes of rows are all pairs of them."""
    pairs = [(a, r) for a, r in zip(n.axes, n.ranks, strict=True) if a is not None]
    if len(n.axes) == 1:
        return n.axes[0]
    if n.lost or any(r is None for r, v in zip(n.ranks, n.node.inputs, strict=True) if v is not None):
        return SOMEWHERE
    behind = {r - a for a, r in pairs if r is not None}
    if len(behind) > 1:
        return n.mixed
    return max(r for r in n.ranks if r is not None) - behind.pop()


def _first(n: _Node) -> int | RowState | None:
    """Rows are where they were in the first input."""
    return n.axes[0] if not any(a is not None for a in n.axes[1:]) else SOMEWHERE


def _reduce(n: _Node) -> int | RowState | None:
    axes = n.numbers("axes", 1)
    if axes is None and not n.given(1):
        return n.axes[0] if n.get("noop_with_empty_axes", 0) else n.mixed
    axis, rank = n.axes[0], n.ranks[0]
    if axes is None or n.lost or axis is None or rank is None:
        return SOMEWHERE
    gone = sorted({a % rank for a in axes})
    if axis in gone:
        return n.mixed
    return axis if n.get("keepdims", 1) else axis - sum(a < axis for a in gone)


def _along(default: int, flat: bool = False, drops: bool = False, at: int | None = None) -> _Rule:
    """Of one axis; what is `flat` treats those behind it as one with it."""

    def rule(n: _Node) -> int | RowState | None:
        axis, rank = n.axes[0], n.ranks[0]
        along = n.const(at) if at is not None else [n.get("axis", default)]
        if n.lost or axis is None or rank is None or along is None:
            return SOMEWHERE
        where = along[0] % rank
        if axis == where or (flat and axis > where):
            return n.mixed
        return axis - (axis > where) if drops and not n.get("keepdims", 1) else axis

    return rule


def _softmax(n: _Node) -> int | RowState | None:
    old = n.opset < 13
    return _along(1 if old else -1, flat=old)(n)


def _transpose(n: _Node) -> int | RowState | None:
    axis, rank = n.axes[0], n.ranks[0]
    if n.lost or axis is None or rank is None:
        return SOMEWHERE
    return list(n.get("perm") or range(rank)[::-1]).index(axis)


def _unsqueeze(n: _Node) -> int | RowState | None:
    axis, rank, axes = n.axes[0], n.ranks[0], n.numbers("axes", 1)
    if n.lost or axis is None or rank is None or axes is None:
        return SOMEWHERE
    added = {a % (rank + len(axes)) for a in axes}
    return [a for a in range(rank + len(axes)) if a not in added][axis]


def _squeeze(n: _Node) -> int | RowState | None:
    axis, rank, axes = n.axes[0], n.ranks[0], n.numbers("axes", 1)
    if n.lost or axis is None or rank is None or axes is None:
        return _named(n)
    gone = {a % rank for a in axes}
    return SOMEWHERE if axis in gone else axis - sum(a < axis for a in gone)


def _named(n: _Node) -> int | RowState | None:
    """Where inference says that the rows are."""
    shape = n.node.outputs[0].shape
    found = [i for i, d in enumerate(shape or ()) if isinstance(d, ir.SymbolicDim) and d.value == ROWS]
    return found[0] if len(found) == 1 else SOMEWHERE


def _reshape(n: _Node) -> int | RowState | None:
    if n.node.op_type == "Flatten" and n.axes[0] == 0 and n.get("axis", 1) == 1:
        return 0
    shape = n.const(1)
    return 0 if n.axes[0] == 0 and shape and shape[0] == 0 and not n.get("allowzero", 0) else _named(n)


def _expand(n: _Node) -> int | RowState | None:
    if n.lost or n.axes[0] is None or n.rank is None or n.ranks[0] is None:
        return SOMEWHERE
    return n.axes[0] + n.rank - n.ranks[0]


def _matmul(n: _Node) -> int | RowState | None:
    (a, b), (ra, rb) = n.axes[:2], n.ranks[:2]
    if n.lost or ra is None or rb is None:
        return SOMEWHERE
    if a == ra - 1 or (b is not None and b == max(rb - 2, 0)):
        return n.mixed  # summed over the rows
    rank = max(ra, rb, 2) - (ra == 1) - (rb == 1)
    found = set()
    if a is not None:  # its last axis is gone, that of the other comes
        found.add(rank - (ra - a) + (rb == 1))
    if b is not None:
        found.add(rank - (rb - b) + (ra == 1 and b != rb - 1))
    return found.pop() if len(found) == 1 else n.mixed


def _gemm(n: _Node) -> int | RowState | None:
    if n.lost:
        return SOMEWHERE
    swapped = (n.get("transA", 0), n.get("transB", 0))
    a, b = (x if x is None else x ^ int(s) for x, s in zip(n.axes[:2], swapped, strict=True))
    if a == 1 or b == 0:
        return n.mixed
    found = {x for x in (a, b) if x is not None}
    if len(n.axes) > 2 and n.axes[2] is not None:
        found.add(2 - (n.ranks[2] or 0) + n.axes[2])
    return found.pop() if len(found) == 1 else n.mixed


def _einsum(n: _Node) -> int | RowState | None:
    left, arrow, right = str(n.get("equation")).replace(" ", "").partition("->")
    if n.lost or "." in left or not arrow:
        return SOMEWHERE
    terms = left.split(",")
    letters = {t[a] for t, a in zip(terms, n.axes, strict=True) if a is not None}
    letter = letters.pop()
    return right.index(letter) if not letters and letter in right else n.mixed


def _gather(n: _Node) -> int | RowState | None:
    (data, index), (rank, indices) = n.axes[:2], n.ranks[:2]
    if n.lost or indices is None or (rank is None and data is not None):
        return SOMEWHERE
    axis = n.get("axis", 0)
    if axis < 0 and rank is None:
        return SOMEWHERE
    axis = axis if axis >= 0 else axis + (rank or 0)
    if data == axis:
        return n.mixed
    if data is not None and index is not None:
        return SOMEWHERE
    if index is not None:
        return axis + index
    assert data is not None
    return data if data < axis else data + indices - 1


def _at_indices(n: _Node) -> int | RowState | None:
    """GatherElements and its like: of tensors of one rank."""
    rank = n.ranks[0]
    found = {a for a in n.axes if a is not None}
    if n.lost or rank is None or len(found) != 1:
        return SOMEWHERE
    axis = found.pop()
    return axis if n.get("axis", 0) % rank != axis else n.mixed if n.axes[0] is not None else SOMEWHERE


def _gather_nd(n: _Node) -> int | RowState | None:
    data, index = n.axes[:2]
    if n.lost or (data is not None and (data != index or data >= n.get("batch_dims", 0))):
        return SOMEWHERE
    return index


def _concat(n: _Node) -> int | RowState | None:
    found = {a for a in n.axes if a is not None}
    return SOMEWHERE if n.lost else found.pop() if len(found) == 1 else n.mixed


def _slice(n: _Node) -> int | RowState | None:
    axis, rank = n.axes[0], n.ranks[0]
    starts, ends = n.numbers("starts", 1), n.numbers("ends", 2)
    if n.lost or axis is None or rank is None:
        return SOMEWHERE
    axes = n.numbers("axes", 3)
    if axes is None and not n.given(3):
        axes = list(range(rank))
    if axes is None:
        return SOMEWHERE
    axes = [a % rank for a in axes]
    if axis not in axes:
        return axis
    if starts is None or ends is None:
        return SOMEWHERE
    i = axes.index(axis)
    steps = n.const(4) if n.given(4) else [1] * len(axes)
    whole = steps is not None and starts[i] == 0 and ends[i] >= 2**31 - 1 and steps[i] == 1
    return axis if whole else n.mixed


def _tile(n: _Node) -> int | RowState | None:
    repeats = n.const(1)
    axis = n.axes[0]
    return axis if not n.lost and axis is not None and repeats and repeats[axis] == 1 else SOMEWHERE


def _one_hot(n: _Node) -> int | RowState | None:
    axis, rank = n.axes[0], n.ranks[0]
    if n.lost or axis is None or rank is None:
        return SOMEWHERE
    return axis + (axis >= n.get("axis", -1) % (rank + 1))


def _class_loss(n: _Node) -> int | RowState | None:
    if n.get("reduction", "mean") != "none":
        return n.mixed
    return 0 if {a for a in n.axes if a is not None} == {0} else SOMEWHERE


def _batch_norm(n: _Node) -> int | RowState | None:
    return n.mixed if n.get("training_mode", 0) and n.axes[0] != 1 else _first(n)


def _images(n: _Node) -> int | RowState | None:
    """Windows over all axes but the first two: each row is a picture."""
    if any(a is not None for a in n.axes[1:]) or n.lost:
        return SOMEWHERE
    return 0 if n.axes[0] == 0 else n.mixed


def _sequences(n: _Node) -> int | RowState | None:
    """Recurrent cells: of time and rows, or of rows and time."""
    time = 1 if n.get("layout", 0) else 0
    return n.mixed if n.axes[0] == time and not n.lost else SOMEWHERE


#: Operators that read no more of a tensor than how large it is.
SIZES = frozenset({"Shape", "Size", "EyeLike", "ConstantOfShape", "RandomNormalLike", "RandomUniformLike"})
_ELEMENTWISE = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast
CastLike Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow
Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh
ThresholdedRelu Where Xor
"""
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
_IMAGES = """
AveragePool Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization
InstanceNormalization LRN LpPool MaxPool SpaceToDepth
"""
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **{f"Reduce{name}": _reduce for name in _REDUCTIONS.split()},
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), _along(0, drops=True)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _along(-1, flat=True)),
    **dict.fromkeys(("Split", "Compress"), _along(0)),
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    **dict.fromkeys(("GatherElements", "ScatterElements"), _at_indices),
    **dict.fromkeys(("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"), _class_loss),
    **dict.fromkeys(("Pad", "Trilu"), _first),
    **dict.fromkeys(_IMAGES.split(), _images),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _sequences),
    "TopK": _along(-1),
    "CumSum": _along(0, at=1),
    "LpNormalization": _along(-1),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Concat": _concat,
    "Slice": _slice,
    "Tile": _tile,
    "OneHot": _one_hot,
    "BatchNormalization": _batch_norm,
}

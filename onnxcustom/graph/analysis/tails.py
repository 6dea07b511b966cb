"""What follows a Softmax or a Sigmoid: what leaves probabilities as they are, what changes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operands import FLOATS
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.spelled import (
    SLACK,
    clip_bounds,
    constant,
    row_sum,
    scalar,
    tells_zeros,
)

__all__ = [
    "TURNS",
    "decisions",
    "divided_by_row_sum",
    "exponential_of_logarithm",
    "kept",
    "there_and_back",
    "unchanged",
]


def decisions(model: ir.Model) -> dict[str, ir.Value]:
    """Outputs that are places of the largest score -> the scores, where a model gives out no real numbers.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model.

    Returns
    -------
    dict of str to onnx_ir.Value
        Nothing for a model that has floating-point outputs, or dictionaries, too.
    """
    outputs = list(model.graph.outputs)
    if any(not isinstance(v.type, ir.TensorType) or v.dtype is None or v.dtype in FLOATS for v in outputs):
        return {}
    found: dict[str, ir.Value] = {}
    for output in outputs:
        value: ir.Value | None = output
        while value is not None and (node := value.producer()) is not None:
            if is_op(node, "ArgMax"):
                scores = node.inputs[0]
                if output.name and scores is not None and scores.dtype in FLOATS and scores.producer():
                    found[output.name] = scores
                break
            if not is_op(node, "Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten", "Reshape"):
                break
            value = node.inputs[0]
    return found


def unchanged(node: ir.Node) -> ir.Value | None:
    """The operand that a node gives on as it is at inference, up to axes of length 1."""
    if not node.inputs:
        return None
    first = node.inputs[0]
    if is_op(node, "Identity", "Dropout") or (node.op_type == "ZipMap" and node.domain == "ai.onnx.ml"):
        return first
    if is_op(node, "Cast"):
        return first if node.attributes.get_int("to", 0) in FLOATS else None
    if is_op(node, "CastLike"):
        like = None if node.inputs[1] is None else node.inputs[1].dtype
        return first if like is not None and like in FLOATS else None
    if is_op(node, "Flatten"):
        rank = None if first is None or first.shape is None else len(first.shape)
        return first if node.attributes.get_int("axis", 1) == 1 and rank == 2 else None
    if is_op(node, "Reshape"):
        return first if _keeps_rows(node) else None
    if is_op(node, "Concat", "Sum"):
        return first if len(node.inputs) == 1 else None
    if is_op(node, "Max", "Min", "Mean"):
        return first if all(v is first for v in node.inputs) else None
    return None


def kept(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """The operand of a node that leaves numbers from 0 to 1 as they are, but for less than 0.001."""
    same = unchanged(node)
    if same is not None or not node.inputs:
        return same
    if is_op(node, "Abs", "Relu", "LeakyRelu", "Elu", "Celu"):
        return node.inputs[0]
    if is_op(node, "DequantizeLinear"):
        return _quantized(node, trained)
    if is_op(node, "Clip"):
        low, high = clip_bounds(node, trained, (1e38, -1e38))
        return node.inputs[0] if low < SLACK and high > 1 - SLACK else None
    if not is_op(node, "Add", "Sub", "Mul", "Div", "Max", "Min"):
        return None
    others = [v for v in node.inputs if constant(v, trained) is None]
    numbers = [scalar(v, trained) for v in node.inputs if v not in others]
    if (
        len(others) != 1
        or others[0] is None
        or (node.op_type in ("Sub", "Div") and others[0] is not node.inputs[0])
    ):
        return None
    harmless = _HARMLESS[node.op_type]
    if not all(n is not None and harmless(n) for n in numbers) or not _same_rank(node, others[0]):
        return None
    return others[0]


_HARMLESS: dict[str, Callable[[float], bool]] = {
    "Add": lambda n: abs(n) < SLACK,
    "Sub": lambda n: abs(n) < SLACK,
    "Mul": lambda n: abs(n - 1) < SLACK,
    "Div": lambda n: abs(n - 1) < SLACK,
    "Max": lambda n: n < SLACK,
    "Min": lambda n: n > 1 - SLACK,
}


def _quantized(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """What DequantizeLinear reads of QuantizeLinear with the same scale, if all of 0 to 1 comes back."""
    below = None if node.inputs[0] is None else node.inputs[0].producer()
    if below is None or not is_op(below, "QuantizeLinear"):
        return None
    first, second = ([scalar(v, trained) for v in n.inputs[1:]] for n in (below, node))
    kind, scale = below.outputs[0].dtype, first[0]
    if scale is None or first != second or kind not in (ir.DataType.UINT8, ir.DataType.INT8):
        return None
    zero = (first[1] or 0.0) if len(first) > 1 else 0.0
    least, most = (0, 255) if kind == ir.DataType.UINT8 else (-128, 127)
    # Nothing but rounding: training passes it straight through.
    return (
        below.inputs[0] if (least - zero) * scale <= 0 and (most - zero) * scale > 1 - 1.5 * scale else None
    )


def _same_rank(node: ir.Node, value: ir.Value) -> bool:
    """Whether constants of one element add no axes to the operand."""
    most = max(0 if (a := constant_array(v)) is None else a.ndim for v in node.inputs)
    return most <= (1 if value.shape is None else len(value.shape))


def _keeps_rows(node: ir.Node) -> bool:
    """Whether a Reshape leaves a matrix as it is, or only drops or adds an axis of length 1 behind it."""
    shape, source = constant_array(node.inputs[1]), node.inputs[0]
    if shape is None or shape.ndim != 1 or source is None or source.shape is None:
        return False
    last = source.shape[-1] if len(source.shape) else None
    columns = last if isinstance(last, int) else None
    wanted = [int(d) for d in shape]
    if len(source.shape) == 1:
        return wanted in ([-1], [0], [-1, 1], [0, 1])
    if len(source.shape) != 2 or columns is None:
        return False
    same = wanted[:1] in ([-1], [0]) and wanted[1:] in ([columns], [0], [-1])
    return (same and wanted != [-1, -1]) or (columns == 1 and wanted in ([-1], [-1, 1], [0, 1]))


def exponential_of_logarithm(node: ir.Node) -> ir.Value | None:
    """Return p of exp(log(p))."""
    value = node.inputs[0] if is_op(node, "Exp") else None
    while value is not None and (below := value.producer()) is not None:
        if is_op(below, "Log"):
            return below.inputs[0]
        value = unchanged(below)
    return None


def divided_by_row_sum(node: ir.Node, trained: Collection[str]) -> tuple[ir.Value, int | None] | None:
    """Return p and the axis of p / sum(p) in any spelling, with or without protection against empty rows."""
    first = node.inputs[0] if node.inputs else None
    if first is None:
        return None
    if (node.op_type, node.domain) == ("Normalizer", "ai.onnx.ml"):
        return (first, -1) if node.attributes.get_string("norm", "MAX") == "L1" else None
    if is_op(node, "LpNormalization"):
        axis = node.attributes.get_int("axis", -1)
        last = first.shape is not None and axis == len(first.shape) - 1
        return (first, -1 if last else axis) if node.attributes.get_int("p", 2) == 1 else None
    found = row_sum(node.inputs[1], trained) if is_op(node, "Div") else None
    if found is None or (summed := found[0].inputs[0]) is None:
        return None
    inner = summed.producer()
    if is_op(inner, "Abs"):
        assert inner is not None
        summed = inner.inputs[0]
    if summed is first:
        return first, found[1]
    # skl2onnx adds 1 to every entry of a row of zeros.
    add = first.producer()
    if summed is None or add is None or not is_op(add, "Add") or summed not in add.inputs:
        return None
    mask = next((v for v in add.inputs if v is not summed), None)
    return (summed, found[1]) if tells_zeros(mask, found[0].outputs[0], trained) else None


# -- there and back --------------------------------------------------------------------------

_SHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
#: What exporters put around a Softmax, to undo it behind.
TURNS = ("Transpose", *_SHAPES)


def there_and_back(
    scores: ir.Value, output: ir.Value, moves: Sequence[ir.Node], axis: int | None = None
) -> tuple[ir.Value, int] | None:
    """The tensor that scores are turned or reshaped from, so that `moves` undo it.

    Parameters
    ----------
    scores, output : onnx_ir.Value
        What a Softmax or a Sigmoid reads, and what becomes of it.
    moves : sequence of onnx_ir.Node
        Between them, the last one first.
    axis : int, optional
        Of the Softmax.

    Returns
    -------
    tuple or None
        With the axis there; None if something else comes out.
    """
    if all(is_op(n, *_SHAPES) for n in moves):
        return _reshaped_from(scores, output, axis)
    rank = 0 if scores.shape is None else len(scores.shape)
    if not rank or not all(is_op(n, "Transpose") for n in moves):
        return None
    behind = list(range(rank))
    for node in reversed(moves):
        perm = _permutation(node, rank)
        behind = [behind[i] for i in perm]
    before, value = list(range(rank)), scores
    while (node_before := value.producer()) is not None and is_op(node_before, "Transpose", "Identity"):
        source = node_before.inputs[0]
        if source is None:
            return None
        if is_op(node_before, "Transpose"):
            perm = _permutation(node_before, rank)
            before = [perm[i] for i in before]
        value = source
        if [before[i] for i in behind] == list(range(rank)):
            place = -1 if axis is None else before[axis % rank]
            return value, -1 if place == rank - 1 else place
    return None


def _permutation(node: ir.Node, rank: int) -> list[int]:
    return list(node.attributes.get_ints("perm", ()) or range(rank)[::-1])


def _reshaped_from(scores: ir.Value, output: ir.Value, axis: int | None) -> tuple[ir.Value, int] | None:
    """The tensor of the output's shape; a Softmax must be that of its last axis."""
    last = None if scores.shape is None or not len(scores.shape) else scores.shape[-1]
    if axis not in (None, -1) or (axis is not None and not isinstance(last, int)):
        return None
    value: ir.Value | None = scores
    while value is not None:
        if _same_shape(value, output):
            assert value.shape is not None
            return (value, -1) if axis is None or value.shape[-1] == last else None
        node = value.producer()
        value = node.inputs[0] if node is not None and is_op(node, "Identity", *_SHAPES) else None
    return None


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Whether shapes are certain to agree; of one axis nothing need be known, as all have as many numbers."""
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape) or not len(one.shape):
        return False
    pairs = list(zip(one.shape, other.shape, strict=True))
    unknown = [p for p in pairs if not all(isinstance(d, int) for d in p) and p[0] != p[1]]
    known = all(p[0] == p[1] for p in pairs if p not in unknown)
    named = [p for p in pairs if p[0] == p[1] and isinstance(p[0], ir.SymbolicDim) and p[0].value is None]
    return known and len(unknown) + len(named) <= 1

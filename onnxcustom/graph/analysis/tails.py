"""What follows a Softmax or a Sigmoid: what leaves probabilities as they are, what changes them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir

from onnxcustom.graph.analysis.operands import FLOATS
from onnxcustom.graph.analysis.spelled import SLACK, constant, is_op, scalar
from onnxcustom.graph.preparation.passes import constant_array

__all__ = ["kept", "origin", "unchanged"]

# Operators whose result holds what their first operand does, elsewhere or of another shape.
_MOVES = frozenset(
    "Cast CastLike Compress DepthToSpace Dropout Expand Flatten Gather GatherElements GatherND Identity Pad "
    "Reshape ReverseSequence Slice SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unsqueeze".split()
)
# Computed element by element of the first operand; a logarithm makes scores of probabilities.
_ELEMENTWISE = frozenset(
    "Abs Celu Ceil Clip Elu Erf Floor Gelu HardSigmoid HardSwish LeakyRelu LpNormalization Mish Neg PRelu "
    "Pow Reciprocal Relu Round Selu Shrink Softplus Softsign Sqrt Swish Tanh ThresholdedRelu".split()
)
_JOINS = frozenset("Add Concat Div Max Mean Min Mul Sub Sum".split())
_REDUCTIONS = frozenset("GlobalAveragePool GlobalMaxPool ReduceMax ReduceMean ReduceMin ReduceSum".split())


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
    if is_op(node, "Clip"):
        low, high = _bounds(node, trained)
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


def _same_rank(node: ir.Node, value: ir.Value) -> bool:
    """Whether constants of one element add no axes to the operand."""
    most = max(0 if (a := constant_array(v)) is None else a.ndim for v in node.inputs)
    return most <= (1 if value.shape is None else len(value.shape))


def _bounds(node: ir.Node, trained: Collection[str]) -> tuple[float, float]:
    """Bounds of a Clip; those that are computed may be anything."""
    found = []
    for index, name, none, unknown in ((1, "min", -1e38, 1e38), (2, "max", 1e38, -1e38)):
        given = node.inputs[index] if index < len(node.inputs) else None
        number = scalar(given, trained)
        if given is None:
            found.append(node.attributes.get_float(name, none))
        else:
            found.append(unknown if number is None else number)
    return found[0], found[1]


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


# -- where probabilities come from -----------------------------------------------------------


def origin(
    output: ir.Value, made_by: Callable[[ir.Node], str | None], trained: Collection[str]
) -> tuple[ir.Node, ir.Node | None] | None:
    """The node that makes the probabilities an output is made of, and the first that changes them.

    Parameters
    ----------
    output : onnx_ir.Value
        Output of the model.
    made_by : callable
        ``'softmax'`` or ``'sigmoid'`` for a node that is one, None for others.
    trained : collection of str
        Weights that are trained: what they are multiplied with or added to is a score again.

    Returns
    -------
    tuple or None
        None if anything but probabilities and constants reaches the output by moving and elementwise
        operators: such as gates, which are sigmoids times something else.
    """
    sources: list[tuple[ir.Node, str]] = []
    moved: ir.Node | None = None
    reduced, enlarged = False, False
    waiting, seen = [output], {output}
    while waiting:
        node = waiting.pop().producer()
        kind = None if node is None else made_by(node)
        if node is None:
            return None
        if kind is not None:
            sources.append((node, kind))
            continue
        below = _operands(node, trained)
        if below is None:
            return None
        reduced = reduced or node.op_type in _REDUCTIONS
        enlarged = enlarged or _enlarges(node, trained)
        moved = node if moved is None and not is_op(node, "Identity") else moved
        waiting.extend(v for v in reversed(below) if v not in seen)
        seen.update(below)
    # Features may be sigmoids, whose mean over positions is a score, as is a multiple: 30 * sigmoid(z / 30).
    if not sources or ((reduced or enlarged) and any(kind == "sigmoid" for _, kind in sources)):
        return None
    return sources[0][0], moved


def _operands(node: ir.Node, trained: Collection[str]) -> list[ir.Value] | None:
    """Operands that a result is moved from or computed of one by one; None for other operators."""
    values: list[ir.Value | None]
    if (node.op_type, node.domain) in (("ZipMap", "ai.onnx.ml"), ("Normalizer", "ai.onnx.ml")):
        values = [node.inputs[0]]
    elif is_op(node, "Cast") and node.attributes.get_int("to", 0) not in FLOATS:
        return None
    elif is_op(node, *_MOVES, *_ELEMENTWISE, *_REDUCTIONS):
        values = [node.inputs[0]]
        if is_op(node, "PRelu") and constant(node.inputs[1], trained) is None:
            return None
    elif is_op(node, *_JOINS):
        values = list(node.inputs)
    elif is_op(node, "Where"):
        values = list(node.inputs[1:])
    else:
        return None
    return [v for v in values if v is not None and constant(v, trained) is None]


def _enlarges(node: ir.Node, trained: Collection[str]) -> bool:
    """Whether a constant makes numbers larger."""
    if not is_op(node, "Mul", "Div"):
        return False
    factors = [a for v in node.inputs if (a := constant(v, trained)) is not None]
    if node.op_type == "Mul":
        return any(float(abs(a).max()) > 1 + SLACK for a in factors)
    return any(float(abs(a).max()) < 1 - SLACK for a in factors)

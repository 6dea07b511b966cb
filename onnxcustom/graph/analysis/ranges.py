"""Between which bounds the numbers of a result lie, whatever the model is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import onnx_ir as ir

from onnxcustom.graph.analysis.spelled import SLACK, clip_bounds, scalar
from onnxcustom.graph.analysis.tails import divided_by_row_sum

__all__ = ["ANY", "JOINS", "MOVES", "UNARY", "Bounds", "bounds_of", "is_unit"]

Bounds = tuple[float, float]
ANY: Bounds = (-math.inf, math.inf)
_UNIT: Bounds = (0.0, 1.0)

# Operators whose result holds what their first operand does, elsewhere or of another shape.
MOVES = frozenset(
    "Cast CastLike Compress DepthToSpace DequantizeLinear Dropout Expand Flatten Gather GatherElements "
    "GatherND Identity Reshape ReverseSequence Slice SpaceToDepth Split Squeeze Tile TopK Transpose "
    "Unsqueeze".split()
)
_ZEROS_BESIDE = frozenset("Pad Trilu".split())
JOINS = frozenset("Add Concat Div Max Mean Min Mul Sub Sum Where".split())
_AVERAGES = frozenset("GlobalAveragePool GlobalMaxPool ReduceMax ReduceMean ReduceMin".split())
_SIZES = frozenset("ReduceL1 ReduceL2 ReduceSumSquare".split())

_FIXED: dict[str, Bounds] = {
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax", "Hardmax"), _UNIT),
    **dict.fromkeys(("Tanh", "Erf", "Softsign", "Sin", "Cos"), (-1.0, 1.0)),
    "Atan": (-math.pi / 2, math.pi / 2),
    "LogSoftmax": (-math.inf, 0.0),
}


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _log(x: float) -> float:
    return -math.inf if x <= 0 else math.log(x)


def _softplus(x: float) -> float:
    return x if x > 30 else math.log1p(_exp(x))


_INCREASING: dict[str, Callable[[float], float]] = {
    "Exp": _exp,
    "Log": _log,
    "Relu": lambda x: max(x, 0.0),
    "Softplus": _softplus,
    "Sqrt": lambda x: math.sqrt(max(x, 0.0)),
}
#: Computed of one operand, element by element.
UNARY = frozenset(
    {*_FIXED, *_INCREASING}
    | set(
        "Abs Celu Ceil Clip Elu Floor Gelu HardSwish LeakyRelu LpNormalization Mish Neg PRelu Pow Reciprocal "
        "Round Selu Shrink Swish ThresholdedRelu".split()
    )
) - {"Exp", "Log"}


def bounds_of(node: ir.Node, found: Sequence[Bounds], trained: Collection[str]) -> Bounds:
    """Bounds of the results of a node from those of its operands, in their order; ANY if nothing is known."""
    try:
        return _bounds(node, found, trained)
    except OverflowError:
        return ANY


def _bounds(node: ir.Node, found: Sequence[Bounds], trained: Collection[str]) -> Bounds:
    op = node.op_type if node.domain == "" else ""
    if op in _FIXED:
        return _FIXED[op]
    if divided_by_row_sum(node, trained) is not None:
        return _UNIT if found and found[0][0] >= 0 else ANY
    if op in MOVES or op in _AVERAGES or op in ("If", "Loop", "Scan"):
        return _hull(found)
    if op in _ZEROS_BESIDE:
        return _hull([*found, (0.0, 0.0)]) if len(node.inputs) < 3 or op == "Trilu" else ANY
    if op in _SIZES:
        return 0.0, math.inf
    if op == "ReduceSum":
        (low, high), *_ = found
        return (0.0 if low >= 0 else -math.inf), (0.0 if high <= 0 else math.inf)
    if op in JOINS:
        return _joined(node, op, found)
    return _of_one(node, op, found[0], trained) if found else ANY


def is_unit(bounds: Bounds) -> bool:
    """Whether numbers lie between 0 and 1."""
    return bounds[0] >= -SLACK and bounds[1] <= 1 + SLACK


# -- one operand -----------------------------------------------------------------------------


def _of_one(node: ir.Node, op: str, bounds: Bounds, trained: Collection[str]) -> Bounds:
    low, high = bounds
    if op in _INCREASING:
        return _INCREASING[op](low), _INCREASING[op](high)
    if op == "Neg":
        return -high, -low
    if op == "Abs":
        return (low, high) if low >= 0 else (max(0.0, -high), max(-low, high))
    if op == "Clip":
        least, most = clip_bounds(node, trained, ANY)
        return min(max(low, least), most), max(min(high, most), least)
    if op == "Reciprocal":
        return _inverse(bounds)
    if op == "Pow":
        return _power(bounds, scalar(node.inputs[1], trained))
    if op in ("Celu", "Elu", "LeakyRelu", "Selu", "Shrink", "ThresholdedRelu", "Ceil", "Round", "Floor"):
        # No sign is turned.
        return (0.0 if low >= 0 else -math.inf), (0.0 if high <= 0 else math.inf)
    return ANY


def _inverse(bounds: Bounds) -> Bounds:
    low, high = bounds
    if low < 0:
        return ANY
    return (0.0 if high == math.inf else 1 / high if high else math.inf), (1 / low if low else math.inf)


def _power(bounds: Bounds, exponent: float | None) -> Bounds:
    low, high = bounds
    if exponent is None:
        return ANY
    if exponent < 0:
        return _power(_inverse(bounds), -exponent) if low >= 0 else ANY
    if exponent % 2 == 0:
        return (low**exponent if low > 0 else 0.0), max(_times(low, low), _times(high, high)) ** (
            exponent / 2
        )
    return (low**exponent, high**exponent) if low >= 0 else ANY


# -- several ---------------------------------------------------------------------------------


def _hull(found: Sequence[Bounds]) -> Bounds:
    return (min(low for low, _ in found), max(high for _, high in found)) if found else ANY


def _joined(node: ir.Node, op: str, found: Sequence[Bounds]) -> Bounds:
    lows, highs = [low for low, _ in found], [high for _, high in found]
    if not found or len(found) < len(node.inputs) - (op == "Where"):
        return ANY
    if op in ("Add", "Sum"):
        return sum(lows), sum(highs)
    if op in ("Concat", "Mean", "Where"):
        return _hull(found)
    if op in ("Max", "Min"):
        best = max if op == "Max" else min
        return best(lows), best(highs)
    if op == "Sub":
        return lows[0] - highs[1], highs[0] - lows[1]
    if op == "Mul" and node.inputs[0] is node.inputs[1]:
        return _power(found[0], 2)
    second = found[1] if op == "Mul" else _inverse(found[1])
    corners = [_times(a, b) for a in found[0] for b in second]
    return min(corners), max(corners)


def _times(a: float, b: float) -> float:
    return 0.0 if 0.0 in (a, b) else a * b

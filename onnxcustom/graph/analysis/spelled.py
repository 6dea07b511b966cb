"""Softmax and sigmoid, as operators and written with others."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operators import is_op

__all__ = [
    "Scaled",
    "clip_bounds",
    "constant",
    "equals",
    "exponential",
    "is_op",
    "kept_axis",
    "log_sigmoid_input",
    "negated",
    "row_sum",
    "scalar",
    "scaled",
    "sigmoid_input",
    "spelled_log_softmax",
    "spelled_softmax",
    "tanh_input",
    "tells_zeros",
]


# Less than this protects a logarithm or a quotient from 0, and says nothing else.
SLACK = 1e-3

# So many sums and products are one expression.
_STEPS = 8


# -- small questions -------------------------------------------------------------------------


def constant(value: ir.Value | None, trained: Collection[str]) -> np.ndarray | None:
    """The numbers of a constant that training leaves alone."""
    below = value
    while below is not None:
        if below.name in trained:
            return None
        node = below.producer()
        below = node.inputs[0] if node is not None and is_op(node, "Identity") else None
    array = constant_array(value)
    return None if array is None or array.size == 0 or array.dtype.kind in "OSUbc" else array


def equals(value: ir.Value | None, number: float, trained: Collection[str]) -> bool:
    """Whether `value` is a constant with all elements `number`, and stays so."""
    array = constant(value, trained)
    return array is not None and bool((array == number).all())


def scalar(value: ir.Value | None, trained: Collection[str]) -> float | None:
    """The one number of a constant that training leaves alone."""
    array = constant(value, trained)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def clip_bounds(
    node: ir.Node, trained: Collection[str], computed: tuple[float, float]
) -> tuple[float, float]:
    """Bounds of a Clip; `computed` for those that are no constants."""
    found = []
    for index, name, none in ((1, "min", -np.inf), (2, "max", np.inf)):
        given = node.inputs[index] if index < len(node.inputs) else None
        number = scalar(given, trained)
        if given is None:
            found.append(node.attributes.get_float(name, none))
        else:
            found.append(computed[index - 1] if number is None else number)
    return found[0], found[1]


def _below(value: ir.Value | None) -> ir.Value | None:
    """What is copied or cast into `value`; Dropout copies at inference."""
    while value is not None and is_op(node := value.producer(), "Identity", "Cast", "Dropout"):
        assert node is not None
        value = node.inputs[0]
    return value


def _producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes `value` if it is one of these operators."""
    below = _below(value)
    node = None if below is None else below.producer()
    return node if is_op(node, *op_types) else None


# -- sigmoid ---------------------------------------------------------------------------------


def sigmoid_input(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """Return z of a sigmoid of z: as operator, with Exp, Tanh or Softplus."""
    if is_op(node, "Sigmoid"):
        return node.inputs[0]
    found = negated(exponential(node, trained), trained) or _quotient(node, trained)
    if found is not None or (half := tanh_input(node, trained)) is None:
        return found or _minus_softplus(node, trained)
    inner = scaled(half, trained)
    return inner.value if inner.factor == 0.5 and inner.offset == 0 else None


def exponential(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """Return u of 1 / (1 + exp(u)) or of the same with Reciprocal."""
    if is_op(node, "Reciprocal") or (is_op(node, "Pow") and equals(node.inputs[1], -1, trained)):
        total = node.inputs[0]
    elif is_op(node, "Div") and equals(node.inputs[0], 1, trained):
        total = node.inputs[1]
    else:
        return None
    exp = _one_plus(total, trained)
    return None if exp is None else exp.inputs[0]


def _one_plus(total: ir.Value | None, trained: Collection[str]) -> ir.Node | None:
    """The Exp of 1 + Exp(u)."""
    add = None if total is None else total.producer()
    if add is None or not is_op(add, "Add"):
        return None
    for one, other in (add.inputs, reversed(add.inputs)):
        exp = None if other is None else other.producer()
        if exp is not None and is_op(exp, "Exp") and equals(one, 1, trained):
            return exp
    return None


def _quotient(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """Return z of exp(z) / (1 + exp(z))."""
    exp = _one_plus(node.inputs[1], trained) if is_op(node, "Div") else None
    above = None if exp is None else _producer(node.inputs[0], "Exp")
    return (
        above.inputs[0]
        if above is not None and exp is not None and above.inputs[0] is exp.inputs[0]
        else None
    )


def _minus_softplus(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """Return z of exp(-softplus(-z))."""
    exponent = _producer(node.inputs[0], "Neg", "Mul", "Sub") if is_op(node, "Exp") else None
    return None if exponent is None else log_sigmoid_input(exponent, trained)


def log_sigmoid_input(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """Return z of -softplus(-z)."""
    plus = _producer(negated(node.outputs[0], trained), "Softplus")
    return None if plus is None else negated(plus.inputs[0], trained)


def negated(value: ir.Value | None, trained: Collection[str]) -> ir.Value | None:
    """Return z if `value` is -z."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if is_op(node, "Neg"):
        return node.inputs[0]
    if is_op(node, "Mul"):
        for factor, other in (node.inputs, reversed(node.inputs)):
            if equals(factor, -1, trained):
                return other
    if is_op(node, "Sub") and equals(node.inputs[0], 0, trained):
        return node.inputs[1]
    return None


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A tensor as factor * value + offset."""

    value: ir.Value
    factor: float = 1.0
    offset: float = 0.0


def scaled(value: ir.Value, trained: Collection[str]) -> Scaled:
    """Follow sums and products with one number down to what they are taken of."""
    factor, offset = 1.0, 0.0
    for _ in range(_STEPS):
        node = value.producer()
        step = None if node is None else _affine(node, trained)
        if step is None:
            break
        # value = a * below + b
        value, offset, factor = step.value, offset + factor * step.offset, factor * step.factor
    return Scaled(value, factor, offset)


def _affine(node: ir.Node, trained: Collection[str]) -> Scaled | None:
    if is_op(node, "Identity", "Neg") and node.inputs[0] is not None:
        return Scaled(node.inputs[0], -1.0 if node.op_type == "Neg" else 1.0)
    if not is_op(node, "Add", "Sub", "Mul", "Div"):
        return None
    first, second = node.inputs
    left, right = scalar(first, trained), scalar(second, trained)
    if first is None or second is None or (left is None) == (right is None):
        return None
    if right is not None:
        made = {
            "Add": (1.0, right),
            "Sub": (1.0, -right),
            "Mul": (right, 0.0),
            "Div": (1 / (right or np.inf), 0.0),
        }
        return Scaled(first, *made[node.op_type])
    assert left is not None
    turned = {"Add": (1.0, left), "Sub": (-1.0, left), "Mul": (left, 0.0)}
    return Scaled(second, *turned[node.op_type]) if node.op_type in turned else None


def tanh_input(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """Return h of (tanh(h) + 1) / 2."""
    if not is_op(node, "Add", "Sub", "Mul", "Div"):
        return None
    made = scaled(node.outputs[0], trained)
    tanh = made.value.producer()
    if tanh is None or not is_op(tanh, "Tanh") or (made.factor, made.offset) != (0.5, 0.5):
        return None
    return tanh.inputs[0]


# -- softmax ---------------------------------------------------------------------------------


def spelled_softmax(node: ir.Node, trained: Collection[str]) -> tuple[ir.Value, int | None] | None:
    """Return z and the axis of exp(z) / sum(exp(z)); the axis is None where it is not a single one.

    The maximum may be taken from z before. What is found is a softmax even with ``None``.
    """
    found = _exp_by_sum(node, trained) or _exp_of_difference(node, trained)
    if found is None:
        return None
    exponent, axis = found
    sub = _producer(exponent, "Sub")
    if sub is not None and sub.inputs[0] is not None:
        largest = _producer(sub.inputs[1], "ReduceMax")
        if largest is not None and largest.inputs[0] is sub.inputs[0] and kept_axis(largest) == axis:
            return sub.inputs[0], axis
    return exponent, axis


def _exp_by_sum(node: ir.Node, trained: Collection[str]) -> tuple[ir.Value, int | None] | None:
    """Return u and the axis of exp(u) / sum(exp(u)), also as a product or an L1 norm."""
    pairs: list[tuple[ir.Value | None, ir.Value | None]] = []
    if is_op(node, "Div"):
        pairs = [(node.inputs[0], node.inputs[1])]
    elif is_op(node, "Mul"):
        for first, second in ((0, 1), (1, 0)):
            inverse = _producer(node.inputs[second], "Reciprocal")
            if inverse is not None:
                pairs.append((node.inputs[first], inverse.inputs[0]))
    elif is_op(node, "LpNormalization") and node.attributes.get_int("p", 2) == 1:
        exp = _producer(node.inputs[0], "Exp")
        if exp is not None and exp.inputs[0] is not None:
            return exp.inputs[0], node.attributes.get_int("axis", -1)
    elif (node.op_type, node.domain) == ("Normalizer", "ai.onnx.ml"):
        exp = _producer(node.inputs[0], "Exp") if node.attributes.get_string("norm", "MAX") == "L1" else None
        if exp is not None and exp.inputs[0] is not None:
            return exp.inputs[0], -1
    for dividend, divisor in pairs:
        exp = _producer(dividend, "Exp")
        if exp is None or exp.inputs[0] is None:
            continue
        summed = _sum_of(divisor, trained)
        if summed is not None and _below(summed[0]) is _below(exp.inputs[0]):
            return summed
    return None


def _exp_of_difference(node: ir.Node, trained: Collection[str]) -> tuple[ir.Value, int | None] | None:
    """Return u and the axis of exp(u - log(sum(exp(u))))."""
    sub = _producer(node.inputs[0], "Sub") if is_op(node, "Exp") else None
    return None if sub is None else spelled_log_softmax(sub, trained)


def spelled_log_softmax(sub: ir.Node, trained: Collection[str]) -> tuple[ir.Value, int | None] | None:
    """Return u and the axis of u - log(sum(exp(u)))."""
    if not is_op(sub, "Sub") or (scores := sub.inputs[0]) is None:
        return None
    shift = sub.inputs[1]
    lifted = _lifted(shift)
    whole = lifted or _producer(shift, "ReduceLogSumExp")
    if whole is not None and is_op(whole, "ReduceLogSumExp") and _below(whole.inputs[0]) is _below(scores):
        return scores, kept_axis(whole) if lifted is None else -1
    add = _producer(shift, "Add")
    for term, largest in [(shift, None)] if add is None else [tuple(add.inputs), tuple(reversed(add.inputs))]:
        log = _producer(term, "Log")
        summed = None if log is None else _sum_of(log.inputs[0], trained)
        if summed is None:
            continue
        inner = None if largest is None else _producer(summed[0], "Sub")
        shifted = inner is not None and inner.inputs[1] is largest and inner.inputs[0] is scores
        if shifted or (largest is None and _below(summed[0]) is _below(scores)):
            return scores, summed[1]
    return None


def _sum_of(value: ir.Value | None, trained: Collection[str]) -> tuple[ir.Value, int | None] | None:
    """Return u and the axis that `value` sums exp(u) over; the axis is None for another sum of it."""
    found = row_sum(value, trained)
    exp = None if found is None else _producer(found[0].inputs[0], "Exp")
    return None if found is None or exp is None or exp.inputs[0] is None else (exp.inputs[0], found[1])


def kept_axis(node: ir.Node) -> int | None:
    """The one axis of a reduction that keeps it with length 1, counted from the end if its rank is known."""
    axes = _axes(node)
    if axes is None or len(axes) != 1 or node.attributes.get_int("keepdims", 1) != 1:
        return None
    source = node.inputs[0]
    shape = next((v.shape for v in (source, node.outputs[0]) if v is not None and v.shape is not None), None)
    return axes[0] if shape is None or axes[0] < 0 else axes[0] - len(shape)


def _axes(node: ir.Node) -> list[int] | None:
    """Axes of a reduction, or those that Unsqueeze makes."""
    axes = node.attributes.get_ints("axes", ())
    if not axes and len(node.inputs) > 1:
        array = constant_array(node.inputs[1])
        axes = () if array is None else [int(a) for a in array.reshape(-1)]
    return list(axes) or None


def _lifted(value: ir.Value | None) -> ir.Node | None:
    """The reduction of the rows of a matrix that `value` holds in a column, by an axis added afterwards."""
    node = _producer(value, "Reshape", "Unsqueeze")
    if node is None or node.inputs[0] is None or (below := node.inputs[0].producer()) is None:
        return None
    matrix = below.inputs[0] if below.inputs else None
    if is_op(node, "Reshape"):
        shape = constant_array(node.inputs[1])
        column = shape is not None and shape.tolist() in ([-1, 1], [0, 1])
    else:
        column = _axes(node) in ([1], [-1])
    whole = below.op_type.startswith("Reduce") and below.attributes.get_int("keepdims", 1) == 0
    flat = matrix is not None and matrix.shape is not None and len(matrix.shape) == 2
    return below if column and whole and flat and _axes(below) in ([1], [-1]) else None


# -- sums that something is divided by -------------------------------------------------------


def row_sum(value: ir.Value | None, trained: Collection[str]) -> tuple[ir.Node, int | None] | None:
    """The reduction whose sums `value` holds, protected against 0 perhaps, and its axis.

    The axis is None if it is not a single one that is kept with length 1, or shapes change afterwards.
    """
    plain = True
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, "ReduceSum", "ReduceL1"):
            return node, kept_axis(node) if plain else None
        if is_op(node, "Identity", "Cast", "Expand"):
            value = node.inputs[0]
        elif (lifted := _lifted(value)) is not None and is_op(lifted, "ReduceSum", "ReduceL1"):
            return lifted, -1 if plain else None
        elif is_op(node, "Unsqueeze", "Squeeze", "Reshape", "Flatten"):
            plain, value = False, node.inputs[0]
        else:
            value = _protected(node, trained)
    return None


def _protected(node: ir.Node, trained: Collection[str]) -> ir.Value | None:
    """The operand of a node that changes it only where it is next to 0."""
    if is_op(node, "Clip"):
        low, high = clip_bounds(node, trained, (np.inf, -np.inf))
        return node.inputs[0] if low < SLACK and high > 1e4 else None
    if is_op(node, "Where"):
        value = next((v for v in node.inputs[1:] if constant(v, trained) is None), None)
        return value if value is not None and tells_zeros(node.inputs[0], value, trained) else None
    if not is_op(node, "Add", "Max"):
        return None
    for value, other in (node.inputs, reversed(node.inputs)) if len(node.inputs) == 2 else ():
        number = scalar(other, trained)
        if (number is not None and abs(number) < SLACK) or tells_zeros(other, value, trained):
            return value
    return None


def tells_zeros(mask: ir.Value | None, value: ir.Value | None, trained: Collection[str]) -> bool:
    """Whether a mask, or a multiple of it as numbers, says where `value` is next to 0."""
    for _ in range(_STEPS):
        node = None if mask is None else mask.producer()
        if node is None:
            return False
        if is_op(node, "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
            others = [v for v in node.inputs if v is not value]
            number = scalar(others[0], trained) if len(others) == 1 else None
            return number is not None and abs(number) < SLACK
        if is_op(node, "Cast") and node.inputs[0] is value:
            return node.attributes.get_int("to", 0) == ir.DataType.BOOL
        factors = [v for v in node.inputs if constant(v, trained) is None]
        if not is_op(node, "Cast", "Not", "Mul", "Identity") or len(factors) != 1:
            return False
        mask = factors[0]
    return False

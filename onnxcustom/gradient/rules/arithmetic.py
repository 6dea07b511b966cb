"""Arithmetic, powers, exponentials, trigonometry, rounding, comparisons and casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import elementwise, non_differentiable, rule

Gradients = list[Var | None]


def quotient(op_type: str, denominator: Callable[..., Any]) -> None:
    """Register an operator of one input whose derivative is 1 / denominator(op, x, y)."""

    def function(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
        return dy / denominator(op, node.inputs[0], node.outputs[0])

    rule(op_type)(function)


# -- arithmetic ------------------------------------------------------------------------------------

elementwise("Add", lambda op, a, b, y: 1, lambda op, a, b, y: 1)
elementwise("Sub", lambda op, a, b, y: 1, lambda op, a, b, y: -1)
elementwise("Mul", lambda op, a, b, y: b, lambda op, a, b, y: a)
elementwise("Neg", lambda op, x, y: -1)
elementwise("Identity", lambda op, x, y: 1)


@rule("Div", broadcasts=True)
def div(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = a / b:  da = dy / b,  db = -da y."""
    da = dy / node.inputs[1]
    return [da, -(da * node.outputs[0]) if node.needs[1] else None]


@rule("Mod", broadcasts=True)
def mod(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = a - n b with a whole number n:  da = dy,  db = -n dy.  The jumps of n have no gradient."""
    a, b = node.inputs
    return [dy, (node.outputs[0] - a) / b * dy if node.needs[1] else None]


@rule("Sum", broadcasts=True)
def sum_(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = Σ xᵢ:  dxᵢ = dy."""
    return [dy] * len(node.inputs)


@rule("Mean", broadcasts=True)
def mean(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = Σ xᵢ / n:  dxᵢ = dy / n."""
    n = len(node.inputs)
    return [dy if n == 1 else dy * (1 / n)] * n


@rule("Max", "Min", broadcasts=True)
def extremum(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = max xᵢ:  dxᵢ = [xᵢ = y] dy / (how many are); ties share evenly, as in PyTorch."""
    if len(node.inputs) == 1:
        return [dy]
    y = node.outputs[0]
    attained = [op.cast_like(op.Equal(x, y), dy) for x in node.inputs]
    share = dy / (attained[0] + attained[1] if len(attained) == 2 else op.Sum(*attained))
    return [share * a for a in attained]


# -- powers, exponentials --------------------------------------------------------------------------


@rule("Pow", broadcasts=True)
def power(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = aᵇ:  da = b aᵇ⁻¹ dy, 0 where b = 0;  db = y log(a) dy, 0 where a = 0 ≤ b (as PyTorch)."""
    return [
        _times(dy, _base_derivative(op, node)) if node.needs[0] else None,
        _exponent_gradient(op, node, dy) if node.needs[1] else None,
    ]


def _times(dy: Var, local: Any) -> Var | None:
    if isinstance(local, (int, float)):
        return None if local == 0 else dy if local == 1 else dy * local
    return dy * local


def _base_derivative(op: GradientBuilder, node: NodeView) -> Any:
    """B aᵇ⁻¹, with few and cheap nodes for the exponents that models have."""
    a, b = node.inputs
    constant = node.constant(1)
    if constant is not None and constant.size == 1:
        c = constant.reshape(()).item()
        if c in (0, 1):
            return c
        if c == 2:
            return a + a
        if c == 0.5:
            return 0.5 / node.outputs[0]
        if c == -1:
            return -(node.outputs[0] * node.outputs[0])
        return (a * a if c == 3 else op.Pow(a, op.const(c - 1, like=a))) * c
    # An exponent of 0 must not become -1: 0 · 0⁻¹ is no number.
    if constant is not None:
        return op.Pow(a, op.const(constant - (constant != 0), like=b)) * op.const(constant, like=a)
    nonzero = op.Cast(op.Cast(b, to=ir.DataType.BOOL), to=b.dtype)
    return op.Pow(a, b - nonzero) * op.cast_like(b, a)


def _exponent_gradient(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """Y log(a) dy, in the dtype of the exponent."""
    a, b = node.inputs
    constant = node.constant(0)
    if constant is not None and constant.size == 1 and constant.item() > 0:
        return op.cast_like(dy * node.outputs[0] * math.log(constant.item()), b)
    # log(1) = 0 in place of log(0), where the power stays 0 whatever the exponent.
    zero = op.And(op.Equal(a, 0), b >= 0)
    return op.cast_like(dy * node.outputs[0] * op.Log(a + op.cast_like(zero, a)), b)


elementwise("Exp", lambda op, x, y: y)
elementwise("Reciprocal", lambda op, x, y: -(y * y))
quotient("Log", lambda op, x, y: x)
quotient("Sqrt", lambda op, x, y: y + y)
elementwise("Erf", lambda op, x, y: op.Exp(-(x * x)) * (2 / math.sqrt(math.pi)))

# -- trigonometric and hyperbolic functions, and their inverses ------------------------------------


def cosine(op: GradientBuilder, x: Var) -> Var:
    """Cos(x); onnxruntime has a float64 kernel of Sin but none of Cos."""
    return op.Sin(x + math.pi / 2) if x.dtype == ir.DataType.DOUBLE else op.Cos(x)


elementwise("Sin", lambda op, x, y: cosine(op, x))
elementwise("Cos", lambda op, x, y: -op.Sin(x))
elementwise("Tan", lambda op, x, y: y * y + 1)
elementwise("Sinh", lambda op, x, y: op.Cosh(x))
elementwise("Cosh", lambda op, x, y: op.Sinh(x))
elementwise("Tanh", lambda op, x, y: 1 - y * y)
quotient("Asin", lambda op, x, y: op.Sqrt(1 - x * x))
quotient("Acos", lambda op, x, y: -op.Sqrt(1 - x * x))
quotient("Atan", lambda op, x, y: x * x + 1)
quotient("Asinh", lambda op, x, y: op.Sqrt(x * x + 1))
quotient("Acosh", lambda op, x, y: op.Sqrt(x * x - 1))
quotient("Atanh", lambda op, x, y: 1 - x * x)

# -- pieces ----------------------------------------------------------------------------------------

# Abs'(0) = 0.
elementwise("Abs", lambda op, x, y: op.Sign(x))

for _step in ("Sign", "Floor", "Ceil", "Round"):
    elementwise(_step, None)  # constant between its jumps: the gradient is zero


@rule("Where", broadcasts=True)
def where(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = c ? a : b:  da = c ? dy : 0,  db = c ? 0 : dy.  A NaN stops at the branch not taken."""
    c = node.inputs[0]
    return [None, op.Where(c, dy, 0), op.Where(c, 0, dy)]


@rule("Clip")
def clip(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = min(max(x, low), high):  dx = [y = x] dy,  dlow = Σ [x < low] dy,  dhigh = Σ [x > high] dy.

    At a bound the gradient goes to x, as in PyTorch.  If low > high, y = high for every x.
    """
    x, low, high = node.inputs[0], node.input(1), node.input(2)
    if low is None and high is None:
        return [dy]
    gradients: Gradients = [dy * op.cast_like(op.Equal(x, node.outputs[0]), dy), None, None]
    if low is not None and node.needs[1]:
        below = x < low if high is None else op.And(x < low, low <= high)
        gradients[1] = _sum_where(op, below, dy, low)
    if high is not None and node.needs[2]:
        above = x > high if low is None else op.Or(x > high, low > high)
        gradients[2] = _sum_where(op, above, dy, high)
    return gradients[: len(node.inputs)]


def _sum_where(op: GradientBuilder, condition: Var, dy: Var, bound: Var) -> Var:
    return op.reshape_like(op.reduce_sum(op.Where(condition, dy, 0), None), bound)


# -- types -----------------------------------------------------------------------------------------


@rule("Cast", "CastLike")
def cast(op: GradientBuilder, node: NodeView, dy: Var) -> Gradients:
    """y = x in another dtype:  dx = dy in the dtype of x."""
    return [op.cast_like(dy, node.inputs[0])] + [None] * (len(node.inputs) - 1)


# -- what has no gradient --------------------------------------------------------------------------

non_differentiable(
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "And",
    "Or",
    "Xor",
    "Not",
    "IsInf",
    "IsNaN",
    reason="its output is a truth value",
)
non_differentiable(
    "BitCast",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    reason="it works on the bits of numbers",
)

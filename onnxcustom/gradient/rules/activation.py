"""Activation functions, each by its local derivative in terms of input and output.

``[condition]`` in a formula is 1 where it holds, else 0. It is multiplied by: on onnxruntime's CPU a
Where takes up to eight times as long.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..gates import Gate
from ..node import NodeView
from ..registry import elementwise, rule

# The slope of a HardSigmoid that is a step: times the smallest normal number of float32 it is 1.
_STEEP = 2.0**126


def positive(op: GradientBuilder, x: Var, negative: bool = True) -> Var:
    """[x > 0] in x's dtype; `negative` says whether x may be less than 0.

    Of float32 by one HardSigmoid, in half the time of a comparison and a Cast on onnxruntime's CPU and a
    third of Sign's: 0 at 0, NaN for NaN, and for denormal numbers the share they have of the step. Sign
    is the fastest of float64; of float16 it hides NaN.
    """
    if x.dtype == ir.DataType.FLOAT:
        return op.HardSigmoid(x, alpha=_STEEP, beta=0.0)
    if negative:
        return op.cast_like(x > 0, x)
    return op.Sign(x) if x.dtype == ir.DataType.DOUBLE else op.cast_like(op.Cast(x, to=ir.DataType.BOOL), x)


def slopes(op: GradientBuilder, x: Var, low: float) -> Var:
    """1 where x > 0, else `low`."""
    if 0 <= low <= 1:
        return op.Max(op.Sign(x) if x.dtype == ir.DataType.DOUBLE else positive(op, x), low)
    return positive(op, x) * (1 - low) + low


# -- piecewise linear ------------------------------------------------------------------------------


@rule("Relu")
def relu(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = max(x, 0):  dx = [y > 0] dy, 0 at x = 0."""
    return dy * positive(op, node.outputs[0], negative=False)


@rule("LeakyRelu")
def leaky_relu(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x > 0 ? x : α x:  dx = (x > 0 ? 1 : α) dy, α at x = 0."""
    return dy * slopes(op, node.inputs[0], node.attr("alpha"))


@rule("PRelu", broadcasts=True)
def prelu(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y = x > 0 ? x : a x:  dx = (x > 0 ? 1 : a) dy,  da = min(x, 0) dy."""
    x, a = node.inputs
    dx = dy * (positive(op, x) * (1 - a) + a) if node.needs[0] else None
    return [dx, op.Min(x, 0) * dy]


@rule("ThresholdedRelu")
def thresholded_relu(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x > α ? x : 0:  dx = [x > α] dy."""
    if node.attr("alpha") >= 0:
        return dy * positive(op, node.outputs[0], negative=False)
    return dy * op.cast_like(node.inputs[0] > node.attr("alpha"), dy)


@rule("Shrink")
def shrink(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x -/+ bias where |x| > λ, else 0:  dx = [|x| > λ] dy."""
    return dy * op.cast_like(op.Abs(node.inputs[0]) > node.attr("lambd"), dy)


@rule("HardSigmoid")
def hard_sigmoid(op: GradientBuilder, node: NodeView, dy: Var) -> Var | None:
    """y = min(max(α x + β, 0), 1):  dx = α [0 < y < 1] dy; none of a step, see :func:`positive`."""
    y, alpha = node.outputs[0], node.attr("alpha")
    if alpha >= _STEEP:
        return None
    return dy * (positive(op, y * (1 - y), negative=False) * alpha)


@rule("HardSwish")
def hard_swish(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x h, h = HardSigmoid(x; 1/6, 1/2):  dx = (h + [|x| < 3] x / 6) dy."""
    x = node.inputs[0]
    inside = op.cast_like(op.Abs(x) < 3, dy)
    return dy * (op.HardSigmoid(x, alpha=1 / 6, beta=0.5) + inside * x * (1 / 6))


# -- exponential on the left -----------------------------------------------------------------------


@rule("Elu")
def elu(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x > 0 ? x : α (eˣ - 1):  dx = (x > 0 ? 1 : y + α) dy, α at x = 0."""
    x, y, alpha = node.inputs[0], node.outputs[0], node.attr("alpha")
    if alpha == 1:
        return dy * (op.Min(y, 0) + 1)
    return dy * op.Where(x > 0, op.const(1, like=y), y + alpha)


@rule("Celu")
def celu(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x > 0 ? x : α (e^{x/α} - 1):  dx = (min(y, 0) / α + 1) dy."""
    alpha, left = node.attr("alpha"), op.Min(node.outputs[0], 0)
    return dy * ((left if alpha == 1 else left * (1 / alpha)) + 1)


@rule("Selu")
def selu(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = γ (x > 0 ? x : α (eˣ - 1)):  dx = (x > 0 ? γ : y + γ α) dy, γ α at x = 0."""
    x, y = node.inputs[0], node.outputs[0]
    gamma = node.attr("gamma")
    return dy * op.Where(x > 0, op.const(gamma, like=y), y + gamma * node.attr("alpha"))


# -- smooth ----------------------------------------------------------------------------------------


def softsign(op: GradientBuilder, x: Var, y: Var) -> Var:
    """y = x / (1 + |x|):  dy/dx = (1 - |y|)²."""
    root = 1 - op.Abs(y)
    return root * root


def mish(op: GradientBuilder, x: Var, y: Var) -> Var:
    """y = x t, t = tanh(softplus(x)):  dy/dx = t + x sigmoid(x) (1 - t²)."""
    t = op.Tanh(op.Softplus(x))
    # In this order: onnxruntime fuses x sigmoid(x) into an operator that has no float64 kernel.
    return t + op.Sigmoid(x) * (1 - t * t) * x


elementwise("Sigmoid", lambda op, x, y: y * (1 - y))
elementwise("Softplus", lambda op, x, y: op.Sigmoid(x))
elementwise("Softsign", softsign)
elementwise("Mish", mish)


@rule("Swish", since=24)
def swish(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x s, s = sigmoid(α x):  dx = (s + α y (1 - s)) dy."""
    return _gate(op, node, dy, normal=False, linear=node.attr("alpha"))


@rule("Gelu")
def gelu(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """y = x Φ(x):  dx = (Φ(x) + x φ(x)) dy, Φ and φ the normal distribution and its density.

    With approximate='tanh', y = x s, s = (1 + tanh u) / 2 = σ(2u), u = √(2/π) (x + 0.044715 x³):
    dx = (s + 2 y (1 - s) u') dy.
    """
    if node.attr("approximate") == "tanh":
        c = 2 * math.sqrt(2 / math.pi)
        return _gate(op, node, dy, normal=False, linear=c, cubic=c * 0.044715)
    return _gate(op, node, dy, normal=True, linear=math.sqrt(0.5))


def _gate(
    op: GradientBuilder, node: NodeView, dy: Var, normal: bool, linear: float, cubic: float = 0.0
) -> Var:
    """The gradient of x times a step of x; y is computed of what that computes, where there are kernels."""
    gate = Gate(node.node, node.inputs[0].value, normal, linear, cubic, 1.0)
    y, dx = gate.gradient(op, dy)
    if gate.runs_apart:
        node.replace_output(0, y)
    return dx


# One of a row is 1, the others 0: constant between the jumps.
elementwise("Hardmax", None)

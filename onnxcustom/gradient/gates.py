"""Activations that exporters spell out, x times a step of x, each differentiated as one.

Gelu by Erf or Tanh, SiLU and their like are five to ten nodes in a file. Node by node their gradient takes
twice as many passes over memory as the derivative of the whole needs. They are known by what they compute, in
whatever order it is written:  y = c x Φ(√2 k x)  or  y = c x σ(p x + q x³), for 1 + tanh v = 2 σ(2 v).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.building.builder import Var

from .emit import GradientBuilder

__all__ = ["Gate", "find_gates"]

# Kernels of 16-bit floats are few; what is spelled out in them stays so.
_DTYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
# Coefficients of 1, x, x² and x³.
Polynomial = tuple[float, float, float, float]
_DEEP = 8
# How far two numbers are apart that a file in float32 takes for the same.
_CLOSE = 1e-6


@dataclasses.dataclass(frozen=True)
class Gate:
    """y = factor x step(linear x + cubic x³), found in a graph.

    Attributes
    ----------
    node : onnx_ir.Node
        What computes y.
    x : onnx_ir.Value
        What it is a function of.
    normal : bool
        Whether the step is the normal distribution Φ, else it is the sigmoid σ.
    linear, cubic, factor : float
        Coefficients.
    """

    node: ir.Node
    x: ir.Value
    normal: bool
    linear: float
    cubic: float
    factor: float

    @property
    def runs_apart(self) -> bool:
        """Whether there are kernels for what a file in this type has as one node."""
        return self.x.dtype in _DTYPES

    def gradient(self, op: GradientBuilder, dy: Var) -> tuple[Var, Var]:
        """y, to be computed like this as it shares s, and dx = c (s + x s') dy."""
        x = op.wrap(self.x)
        s, rest = self._normal(op, x) if self.normal else self._sigmoid(op, x)
        y = x * s
        slope = s + rest(y)
        if self.factor != 1:
            y, slope = y * self.factor, slope * self.factor
        return y, dy * slope

    def _normal(self, op: GradientBuilder, x: Var) -> tuple[Var, Callable[[Var], Var]]:
        """Φ: s = Φ(√2 k x) = (1 + erf(k x)) / 2,  x s' = x k e^{-k² x²} / √π."""
        k = self.linear
        e = op.Erf(x * k)
        # One pass for two: between -1 and 1 a HardSigmoid is a straight line.
        one = x.dtype == ir.DataType.FLOAT
        s = op.HardSigmoid(e, alpha=0.5, beta=0.5) if one else e * 0.5 + 0.5
        return s, lambda _: op.Exp(x * x * (-k * k)) * x * (k / math.sqrt(math.pi))

    def _sigmoid(self, op: GradientBuilder, x: Var) -> tuple[Var, Callable[[Var], Var]]:
        """σ: s = σ(p x + q x³),  x s' = x s (1 - s) (p + 3 q x²), of which x s is y."""
        p, q = self.linear, self.cubic
        if q:
            square = x * x
            s = op.Sigmoid((square * q + p) * x)
            return s, lambda y: (1 - s) * y * (square * (3 * q) + p)
        s = op.Sigmoid(x if p == 1 else x * p)
        return s, lambda y: (1 - s) * y if p == 1 else (1 - s) * y * p


def find_gates(nodes: Sequence[ir.Node], wanted: Collection[ir.Value]) -> dict[ir.Node, Gate]:
    """The gates among nodes, by the node that computes y.

    Parameters
    ----------
    nodes : sequence of onnx_ir.Node
        Of one graph.
    wanted : collection of onnx_ir.Value
        What gradients are asked for: no value inside of a gate is one of them.
    """
    found = (_gate(node, wanted) for node in nodes if is_op(node, "Erf", "Tanh", "Sigmoid"))
    return {gate.node: gate for gate in found if gate is not None}


def _gate(step: ir.Node, wanted: Collection[ir.Value]) -> Gate | None:
    """The gate whose step a node is."""
    v, s = step.inputs[0], step.outputs[0]
    if v is None or s.dtype not in _DTYPES:
        return None
    slope, offset, s = _affine(s, wanted)
    other = _factor_beside(s, wanted)
    if other is None:
        return None
    product, z = other
    factor, end = _scaled(product.outputs[0], wanted)
    for x, c in _candidates(z):
        inner = _polynomial(v, x)
        if inner is None or inner[0] or inner[2] or s.shape is None or x.shape != s.shape:
            continue
        _, p, _, q = inner
        producer = end.producer()
        assert producer is not None
        c *= factor * slope
        if step.op_type == "Sigmoid":
            return None if offset else Gate(producer, x, False, p, q, c)
        if not math.isclose(slope, offset, rel_tol=_CLOSE):
            return None
        if step.op_type == "Tanh":  # c (1 + tanh v) = 2 c σ(2 v)
            return Gate(producer, x, False, 2 * p, 2 * q, _rounded(2 * c))
        return None if q else Gate(producer, x, True, p, 0.0, _rounded(2 * c))
    return None


def _rounded(c: float) -> float:
    """1 where it is meant."""
    return 1.0 if math.isclose(c, 1, rel_tol=_CLOSE) else c


def _affine(s: ir.Value, wanted: Collection[ir.Value]) -> tuple[float, float, ir.Value]:
    """Numbers a step is multiplied by and moved by, and what comes of it: slope · step + offset."""
    slope, offset = 1.0, 0.0
    while (reader := _only_reader(s, wanted)) is not None:
        node, i = reader
        number = _number(node.inputs[1 - i]) if len(node.inputs) == 2 else None
        if number is None or (i == 1 and node.op_type in ("Sub", "Div")):
            break
        if node.op_type in ("Mul", "Div"):
            # Behind the last addition a factor is as well one of the product; both mean the same.
            number = number if node.op_type == "Mul" else 1 / number
            slope, offset = slope * number, offset * number
        elif node.op_type in ("Add", "Sub"):
            offset += number if node.op_type == "Add" else -number
        else:
            break
        s = node.outputs[0]
    return slope, offset, s


def _factor_beside(s: ir.Value, wanted: Collection[ir.Value]) -> tuple[ir.Node, ir.Value] | None:
    """The product that reads s alone, and its other factor; s may be read once more by nothing else."""
    reader = _only_reader(s, wanted)
    if reader is None or reader[0].op_type != "Mul":
        return None
    node, i = reader
    other = node.inputs[1 - i]
    return None if other is None or other is s else (node, other)


def _scaled(y: ir.Value, wanted: Collection[ir.Value]) -> tuple[float, ir.Value]:
    """Numbers the product is multiplied by before anything else reads it."""
    factor = 1.0
    while (reader := _only_reader(y, wanted)) is not None:
        node, i = reader
        number = _number(node.inputs[1 - i]) if len(node.inputs) == 2 else None
        if number is None or not (node.op_type == "Mul" or (node.op_type == "Div" and i == 0)):
            break
        factor *= number if node.op_type == "Mul" else 1 / number
        y = node.outputs[0]
    return factor, y


def _candidates(z: ir.Value) -> Iterator[tuple[ir.Value, float]]:
    """What may be x, and the number z is of it."""
    yield z, 1.0
    node = z.producer()
    if node is not None and is_op(node, "Mul", "Div"):
        for i, value in enumerate(node.inputs):
            number = _number(node.inputs[1 - i])
            if value is not None and number is not None and (i == 0 or node.op_type == "Mul"):
                yield value, number if node.op_type == "Mul" else 1 / number


def _only_reader(value: ir.Value, wanted: Collection[ir.Value]) -> tuple[ir.Node, int] | None:
    """The node that reads a value, and as which operand, if it is the only one and nothing else is asked."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output() or value in wanted:
        return None
    (use,) = uses
    node, i = use
    return (node, i) if node.domain == "" and node.graph is value.graph else None


def _number(value: ir.Value | None) -> float | None:
    """A constant of one element that does not make a tensor's rank larger."""
    array = constant_array(value)
    if array is None or array.size != 1 or array.ndim > 1 or array.dtype.kind != "f":
        return None
    number = float(array.ravel()[0])
    return number if math.isfinite(number) and number else None


def _polynomial(value: ir.Value | None, x: ir.Value, deep: int = _DEEP) -> Polynomial | None:
    """Coefficients of a value as a polynomial of x, None if it is none of third degree at most."""
    if value is x:
        return 0.0, 1.0, 0.0, 0.0
    if value is None or deep == 0:
        return None
    number = _number(value)
    if number is not None:
        return number, 0.0, 0.0, 0.0
    node = value.producer()
    if node is None or not is_op(node, "Add", "Sub", "Mul", "Div", "Neg", "Pow"):
        return None
    operands = [_polynomial(v, x, deep - 1) for v in node.inputs]
    if None in operands:
        return None
    return _combined(node.op_type, [np.array(o) for o in operands])


def _combined(op_type: str, operands: list[np.ndarray]) -> Polynomial | None:
    """The polynomial that an operator makes of those of its operands."""
    a, b = operands[0], operands[-1]
    if op_type in ("Add", "Sub"):
        made = a + b if op_type == "Add" else a - b
    elif op_type == "Neg":
        made = -a
    elif op_type == "Mul":
        made = np.convolve(a, b)
    elif b[1:].any():
        return None
    elif op_type == "Div":
        made = a / b[0]
    else:
        if b[0] not in (1, 2, 3):
            return None
        made = a
        for _ in range(int(b[0]) - 1):
            made = np.convolve(made, a)
    if made[4:].any():
        return None
    c, p, q, r = (float(n) for n in made[:4])
    return c, p, q, r

"""What update rules share, each a function of tensors: clipping, decay, trust ratios, debiasing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnxcustom.graph.building.builder import Builder, Var

__all__ = [
    "Unit",
    "clip",
    "complement",
    "corrected_step",
    "debias",
    "global_norm_factor",
    "is_zero",
    "l2_norm",
    "moving_average",
    "once_key",
    "proximal_l1",
    "scalar",
    "shrink",
    "sign",
    "soft_threshold",
    "sum_square",
    "trust_ratio",
]


# The smallest normal numbers, powers of 2 that have an inverse.
_SMALLEST = {ir.DataType.FLOAT: 2.0**-126, ir.DataType.DOUBLE: 2.0**-1022}


class Unit:
    """The number one, which multiplies a variable without a node."""

    def __mul__(self, other: Any) -> Any:
        return other

    __rmul__ = __mul__


def is_zero(value: Any) -> bool:
    """Whether a hyper-parameter is the number 0, and what it multiplies need not be emitted."""
    return not isinstance(value, Var) and value == 0


def scalar(op: Builder, value: Any, dtype: ir.DataType | None) -> Var:
    """A hyper-parameter, a number or a scalar of the graph, as a scalar of a dtype; cast once."""
    if not isinstance(value, Var):
        return op.const(value, dtype)
    if value.dtype == dtype:
        return value
    return op.once(("cast", value.value, dtype), lambda: op.Cast(value, to=dtype))


def clip(op: Builder, g: Var, limit: float | None) -> Var:
    """Every number of `g` clipped to [-limit, limit]."""
    return g if limit is None else op.Clip(g, -limit, limit)


def sign(op: Builder, x: Var) -> Var:
    """-1, 0 or 1; subnormal numbers of float32 and float64 may come out in between."""
    if op.opset >= 12 and x.dtype in _SMALLEST:
        # On the CPU, onnxruntime's Sign takes four times as long as these two.
        smallest = _SMALLEST[x.dtype]
        return op.Clip(x, -smallest, smallest) * (1 / smallest)
    return op.Sign(x)


def shrink(op: Builder, w: Var, lr: Var, wd: Any) -> Var:
    """Decoupled weight decay, ``w - lr wd w`` [Loshchilov & Hutter 2019, arXiv:1711.05101]."""
    if is_zero(wd):
        return w
    key = ("shrink", lr.value, once_key(wd))
    return op.once(key, lambda: 1 - lr * wd) * w


def soft_threshold(op: Builder, x: Var, limit: Var | float) -> Var:
    """``sign(x) max(|x| - limit, 0)``: towards zero, never across, and exactly zero in between."""
    low = op.once(("minus", limit.value), lambda: -limit) if isinstance(limit, Var) else -limit
    return x - op.Clip(x, low, limit)


def proximal_l1(op: Builder, w: Var, lr: Var, l1: Any) -> Var:
    """Soft thresholding at ``lr l1``.

    The proximal operator of the L1 norm [Parikh & Boyd, Proximal Algorithms, 2014, section 6.5.2].
    """
    if is_zero(l1):
        return w
    return soft_threshold(op, w, op.once(("l1", lr.value, once_key(l1)), lambda: lr * l1))


def moving_average(beta: Any, average: Var, x: Var) -> Var:
    """``beta average + (1 - beta) x``."""
    return beta * average + complement(beta) * x


def complement(value: Any) -> Any:
    """``1 - value`` of a hyper-parameter; of a scalar of the graph, emitted once."""
    if not isinstance(value, Var):
        return 1 - value
    return value.op.once(("complement", value.value), lambda: 1 - value)


def sum_square(op: Builder, x: Var) -> Var:
    """The sum of the squares of all numbers of `x`, a scalar, float32 where `x` is float16."""
    if x.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        x = op.Cast(x, to=ir.DataType.FLOAT)
    total = op.ReduceSumSquare(x, keepdims=0)
    total.value.shape = ir.Shape([])
    return total


def l2_norm(op: Builder, x: Var) -> Var:
    """The Euclidean norm of all numbers of `x`, a scalar, float32 where `x` is float16."""
    return op.Sqrt(sum_square(op, x))


def trust_ratio(op: Builder, numerator: Var, denominator: Var, *norms: Var) -> Var:
    """``numerator / denominator``, two scalars, if all `norms` are positive, else 1."""
    positive = norms[0] > 0
    for norm in norms[1:]:
        positive = op.And(positive, norm > 0)
    # Without a choice between two values, which opset 7 lacks: 1 / 1 where a norm is 0.
    yes = op.Cast(positive, to=numerator.dtype)
    no = 1 - yes
    return (yes * numerator + no) / (yes * denominator + no)


def global_norm_factor(op: Builder, gradients: Sequence[Var], limit: float, dtype: ir.DataType) -> Var:
    """The factor, at most 1, that brings the norm of all gradients together down to `limit`.

    [Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1], as ``optax.clip_by_global_norm`` has it.
    """
    squares = [sum_square(op, scalar(op, g, dtype)) for g in gradients]
    total = op.Sum(*squares) if len(squares) > 1 else squares[0]
    total.value.shape = ir.Shape([])
    norm = op.Sqrt(total)
    # A norm that overflows is NaN here, so that it is noticed, rather than a factor of 0.
    return limit / op.Max(norm, limit) + (norm - norm)


def debias(op: Builder, beta: Any, t: Var, like: Var) -> Var:
    r"""The scalar :math:`1 - \beta^t`, of the dtype of `like`, emitted once in a graph.

    Taken in double precision: in single precision :math:`1 - 0.999` has four digits.
    """

    def emit() -> Var:
        power = op.Pow(scalar(op, beta, ir.DataType.DOUBLE), scalar(op, t, ir.DataType.DOUBLE))
        return scalar(op, 1 - power, like.dtype)

    return op.once(("debias", once_key(beta), t.value, like.dtype), emit)


def corrected_step(op: Builder, lr: Var, t: Var, beta1: Any, beta2: Any, epsilon: float) -> tuple[Var, Var]:
    r"""Step and epsilon with which moments need no correction of their bias.

    With them, ``step * (m / (sqrt(v) + eps))`` is
    :math:`\eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}`: both corrections are
    moved to scalars, so that no pass over memory is spent on them.
    """
    first, second = debias(op, beta1, t, like=lr), debias(op, beta2, t, like=lr)
    root = op.once(("root", second.value), lambda: op.Sqrt(second))
    step = op.once(("step", lr.value, first.value, second.value), lambda: lr * root / first)
    return step, op.once(("times", root.value, epsilon), lambda: epsilon * root)


def once_key(value: Any) -> Any:
    """What names a hyper-parameter, a number or a scalar of the graph, in a key of :meth:`Builder.once`."""
    return value.value if isinstance(value, Var) else value

"""Standard operators put in the place of those that onnxruntime-training gets wrong.

Each function takes the builder, the node of the model and its operands in the graph under
construction, and returns the first output, or None if the node can stay as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.building.builder import Builder, Var

from .operators import attribute, operand, rank, static_shape

__all__ = ["REWRITES", "slices"]

# Behind every end.
_END = np.iinfo(np.int64).max

Operands = Sequence[Var | None]
Rewrite = Callable[[Builder, ir.Node, Operands], Var | None]
REWRITES: dict[str, Rewrite] = {}


def rewrite(*op_types: str) -> Callable[[Rewrite], Rewrite]:
    """Register a function for some operators."""

    def register(function: Rewrite) -> Rewrite:
        REWRITES.update(dict.fromkeys(op_types, function))
        return function

    return register


def _args(operands: Operands) -> list[Var]:
    return [v for v in operands if v is not None]


# -- activations -------------------------------------------------------------------------------
# Relu'(0) = 0 and Clip'(bound) = 1 in onnxruntime-training: the forms below have the usual derivative
# where the pieces meet, and never overflow.


def _negative_part(op: Builder, x: Var) -> Var:
    return op.Clip(x, None, op.const(0.0, like=x))


@rewrite("Elu")
def elu(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """``y = max(x, 0) + α (exp(min(x, 0)) - 1)``."""
    (x,) = _args(operands)
    return op.Relu(x) + attribute(node, "alpha", 1.0) * (op.Exp(_negative_part(op, x)) - 1.0)


@rewrite("Celu")
def celu(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """``y = max(x, 0) + α (exp(min(x, 0) / α) - 1)``."""
    (x,) = _args(operands)
    alpha: Any = attribute(node, "alpha", 1.0)
    return op.Relu(x) + alpha * (op.Exp(_negative_part(op, x) / alpha) - 1.0)


@rewrite("Selu")
def selu(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """``y = γ (max(x, 0) + α (exp(min(x, 0)) - 1))``."""
    (x,) = _args(operands)
    alpha: Any = attribute(node, "alpha", 1.67326319217681884765625)
    gamma: Any = attribute(node, "gamma", 1.05070102214813232421875)
    return gamma * (op.Relu(x) + alpha * (op.Exp(_negative_part(op, x)) - 1.0))


@rewrite("Softplus")
def softplus(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """``y = (x + |x|) / 2 + log(1 + exp(-|x|))``."""
    (x,) = _args(operands)
    size = op.Abs(x)
    return (x + size) * 0.5 + op.Log(op.Exp(-size) + 1.0)


@rewrite("Softsign")
def softsign(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """``y = x / (1 + |x|)``."""
    (x,) = _args(operands)
    return x / (op.Abs(x) + 1.0)


@rewrite("Mish")
def mish(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """``y = x tanh(softplus(x))``."""
    (x,) = _args(operands)
    return x * op.Tanh(softplus(op, node, operands))


def _unit(op: Builder, x: Var) -> Var:
    return op.Clip(x, op.const(0.0, like=x), op.const(1.0, like=x))


@rewrite("HardSigmoid")
def hard_sigmoid(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """``y = clip(α x + β, 0, 1)``."""
    (x,) = _args(operands)
    alpha: Any = attribute(node, "alpha", 0.2)
    beta: Any = attribute(node, "beta", 0.5)
    return _unit(op, x * alpha + beta)


@rewrite("HardSwish")
def hard_swish(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """``y = x clip(x / 6 + 1/2, 0, 1)``."""
    (x,) = _args(operands)
    return x * _unit(op, x * (1.0 / 6.0) + 0.5)


@rewrite("PRelu")
def prelu(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """``y = max(x, 0) - slope max(-x, 0)``."""
    x, slope = _args(operands)
    return op.Relu(x) - slope * op.Relu(-x)


@rewrite("Gelu")
def gelu(op: Builder, node: ir.Node, operands: Operands) -> Var | None:
    """``y = x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2``."""
    (x,) = _args(operands)
    if attribute(node, "approximate", "none") != "tanh":
        return None
    inner = (x + x * x * x * 0.044715) * float(np.sqrt(2.0 / np.pi))
    return x * 0.5 * (op.Tanh(inner) + 1.0)


# -- several operands --------------------------------------------------------------------------


@rewrite("Sum", "Mean")
def add_up(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """Sum and Mean as additions."""
    first, *rest = _args(operands)
    total = op.Identity(first) if not rest else first
    for term in rest:
        total = total + term
    return total * (1.0 / (1 + len(rest))) if node.op_type == "Mean" else total


@rewrite("Pow")
def float_exponent(op: Builder, node: ir.Node, operands: Operands) -> Var | None:
    """The gradient mixes the types of base and exponent."""
    base, exponent = _args(operands)
    if node.inputs[0] is None or node.inputs[1] is None or node.inputs[0].dtype == node.inputs[1].dtype:
        return None
    return op.Pow(base, op.Cast(exponent, to=node.inputs[0].dtype))


@rewrite("Max", "Min")
def distinct(op: Builder, node: ir.Node, operands: Operands) -> Var | None:
    """An operand given twice would get its gradient twice."""
    unique = list({id(v.value): v for v in _args(operands)}.values())
    if len(unique) == len(operands):
        return None
    return op.call(node.op_type, *unique) if len(unique) > 1 else op.Identity(unique[0])


# -- products and pools ------------------------------------------------------------------------


@rewrite("MatMul")
def vectors(op: Builder, node: ir.Node, operands: Operands) -> Var | None:
    """Vectors become matrices of one row or column, and the product loses that axis again."""
    a, b = _args(operands)
    row, column = rank(node.inputs[0]) == 1, rank(node.inputs[1]) == 1
    if not row and not column:
        return None
    if row:
        a = op.Unsqueeze(a, [0])
    if column:
        b = op.Unsqueeze(b, [1])
    axes = [-2] * row + [-1] * column
    return op.Squeeze(op.MatMul(a, b), axes)


@rewrite("Conv")
def explicit_padding(op: Builder, node: ir.Node, operands: Operands) -> Var | None:
    """auto_pad SAME_* as the pads it stands for."""
    pad = attribute(node, "auto_pad", "NOTSET")
    if pad not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    x, w = static_shape(node.inputs[0]), static_shape(node.inputs[1])
    assert x is not None
    assert w is not None
    kernel = list(attribute(node, "kernel_shape", w[2:]))  # type: ignore[call-overload]
    ones = [1] * len(kernel)
    strides: Any = attribute(node, "strides", ones)
    dilations: Any = attribute(node, "dilations", ones)
    begin, end = [], []
    for size, k, s, d in zip(x[2:], kernel, strides, dilations, strict=False):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if pad == "SAME_UPPER" else large)
        end.append(large if pad == "SAME_UPPER" else small)
    return op.Conv(
        *operands,
        kernel_shape=kernel,
        strides=list(strides),
        dilations=list(dilations),
        pads=begin + end,
        group=attribute(node, "group", 1),
    )


@rewrite("MaxPool")
def row_major(op: Builder, node: ir.Node, operands: Operands) -> Var | None:
    """storage_order says how indices are written; the gradient wants them in rows."""
    if not attribute(node, "storage_order", 0):
        return None
    attrs = {k: a.value for k, a in node.attributes.items() if k != "storage_order"}
    return op.MaxPool(*operands, **attrs)


@rewrite("AveragePool")
def average_pool(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """Sum over windows as a convolution of every channel with ones, over the number summed."""
    (x,) = _args(operands)
    kernel: Any = attribute(node, "kernel_shape")
    pads: Any = attribute(node, "pads", [0] * (2 * len(kernel)))
    attrs: dict[str, Any] = {
        "kernel_shape": list(kernel),
        "strides": list(attribute(node, "strides", [1] * len(kernel))),  # type: ignore[call-overload]
        "dilations": list(attribute(node, "dilations", [1] * len(kernel))),  # type: ignore[call-overload]
        "pads": list(pads),
    }
    ones = op.const(np.ones((1, 1, *kernel)), like=x)
    shape = op.Shape(x)
    lead, space = op.Slice(shape, [0], [2]), op.Slice(shape, [2], [99])
    planes = op.Reshape(x, op.Concat(op.const([-1, 1]), space, axis=0))
    sums = op.Conv(planes, ones, **attrs)
    if not any(pads) or attribute(node, "count_include_pad", 0):
        mean = sums * (1.0 / float(np.prod(kernel)))
    else:
        plane = op.ConstantOfShape(
            op.Concat(op.const([1, 1]), space, axis=0), value=ir.tensor([1.0], dtype=x.dtype)
        )
        mean = sums / op.Conv(plane, ones, **attrs)
    size = op.Slice(op.Shape(sums), [2], [99])
    return op.Reshape(mean, op.Concat(lead, size, axis=0))


# -- normalizations ----------------------------------------------------------------------------


@rewrite("Dropout", "Cast")
def identity(op: Builder, node: ir.Node, operands: Operands) -> Var | None:
    """Dropout of a trained model, and a cast to the type a tensor has, change nothing."""
    source = node.inputs[0]
    if node.op_type == "Cast" and (source is None or source.dtype != node.outputs[0].dtype):
        return None
    return op.Identity(operands[0])


@rewrite("BatchNormalization")
def batch_norm(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """``y = (x - mean) scale / sqrt(var + ε) + bias``, statistics being those given."""
    x, *parameters = _args(operands)
    axes = list(range(1, (rank(node.inputs[0]) or 2) - 1))
    epsilon: Any = attribute(node, "epsilon", 1e-5)
    scale, bias, mean, var = parameters
    factor = scale / op.Sqrt(var + epsilon)

    def column(v: Var) -> Var:
        return op.Unsqueeze(v, axes) if axes else v

    return (x - column(mean)) * column(factor) + column(bias)


@rewrite("LayerNormalization")
def layer_norm(op: Builder, node: ir.Node, operands: Operands) -> Var | None:
    """In float64, for which there is no kernel: y = (x - mean) / sqrt(var + ε) scale + bias."""
    x, scale, *bias = _args(operands)
    if x.dtype != ir.DataType.DOUBLE:
        return None
    axis: Any = attribute(node, "axis", -1)
    last = -axis if axis < 0 else (rank(node.inputs[0]) or axis) - axis
    axes = list(range(-last, 0))
    centered = x - op.ReduceMean(x, axes, keepdims=1)
    var = op.ReduceMean(centered * centered, axes, keepdims=1)
    epsilon: Any = attribute(node, "epsilon", 1e-5)
    y = centered / op.Sqrt(var + epsilon) * scale
    return y + bias[0] if bias else y


# -- reductions --------------------------------------------------------------------------------


@rewrite("ReduceL1", "ReduceSumSquare", "ReduceLogSum")
def reduce_sum(op: Builder, node: ir.Node, operands: Operands) -> Var:
    """Reductions that are a sum with something before or after it."""
    x, *rest = _args(operands)
    axes: Any = rest[0] if rest else attribute(node, "axes")
    terms = {"ReduceL1": op.Abs, "ReduceSumSquare": lambda v: v * v}.get(node.op_type, lambda v: v)(x)
    if axes is not None and not isinstance(axes, Var):
        axes = op.const(list(axes), ir.DataType.INT64)
    total = op.ReduceSum(
        terms,
        axes,
        keepdims=attribute(node, "keepdims", 1),
        noop_with_empty_axes=attribute(node, "noop_with_empty_axes", 0) or None,
    )
    return op.Log(total) if node.op_type == "ReduceLogSum" else total


@rewrite("ReduceLogSumExp")
def log_sum_exp(op: Builder, node: ir.Node, operands: Operands) -> Var | None:
    """keepdims=0 as keepdims=1 and Squeeze."""
    if attribute(node, "keepdims", 1):
        return None
    x, *rest = _args(operands)
    attrs: dict[str, Any] = {k: a.value for k, a in node.attributes.items() if k != "keepdims"}
    kept = op.ReduceLogSumExp(x, *rest, keepdims=1, **attrs)
    axes: Any = constant_array(operand(node, 1)) if rest else attribute(node, "axes")
    if axes is None or not np.size(axes):
        if attrs.get("noop_with_empty_axes"):
            return kept
        return op.Reshape(kept, op.const(np.empty(0, np.int64)))
    return op.Squeeze(kept, op.const(np.asarray(axes, np.int64).reshape(-1)))


# -- shapes ------------------------------------------------------------------------------------


@rewrite("Transpose")
def explicit_perm(op: Builder, node: ir.Node, operands: Operands) -> Var | None:
    """The builder fails without perm."""
    n = rank(node.inputs[0])
    if "perm" in node.attributes or n is None:
        return None
    return op.Transpose(operands[0], perm=list(range(n))[::-1])


def slices(
    op: Builder, node: ir.Node, operands: Operands, active: Container[ir.Value]
) -> list[ir.Value | None]:
    """A Split as one Slice for each part that is active, None for the others.

    The builder joins the gradients that come in from the parts, as if those from which none comes were not
    there.
    """
    x, *rest = _args(operands)
    axis: Any = attribute(node, "axis", 0)
    count = len(node.outputs)
    sizes: Any = rest[0] if rest else attribute(node, "split")
    if isinstance(sizes, Var):
        known = constant_array(operand(node, 1))
        sizes = sizes if known is None else known.tolist()
    if sizes is None:
        # Equal parts, the last one with what is left.
        length = op.Slice(op.Shape(x), [axis], [axis + 1 or _END])
        size = op.Div(length + (count - 1), op.const([count], ir.DataType.INT64))
        bounds = [op.Mul(size, op.const([k], ir.DataType.INT64)) for k in range(count + 1)]
    elif isinstance(sizes, Var):
        bounds = [
            op.ReduceSum(op.Slice(sizes, [0], [k]), op.const([0]), keepdims=1) for k in range(count + 1)
        ]
    else:
        ends = np.cumsum([0, *sizes]).tolist()
        bounds = [op.const([end], ir.DataType.INT64) for end in ends]
    return [
        op.Slice(x, bounds[k], bounds[k + 1], [axis]).value if part in active else None
        for k, part in enumerate(node.outputs)
    ]

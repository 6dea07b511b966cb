"""Operators of onnxruntime that its optimizers put in place of standard ones, spelt out again.

They are described in onnxruntime's docs/ContribOperators.md. Some of onnxruntime's normalizations
live in ONNX's own domain, and files written by its optimizers have both spellings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.graph.builder import Var

from ..emit import GradientBuilder
from ..expand import expansion
from ..node import NodeView
from ..registry import rule

__all__: list[str] = []

MICROSOFT = "com.microsoft"


# -- products --------------------------------------------------------------------------------------


@expansion("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(op: GradientBuilder, node: NodeView) -> Var:
    """Y = α a b, each with its last two axes swapped on demand; transBatch first moves axis 0 there."""
    a, b = node.inputs
    sides = [(bool(node.attr(f"trans{k}", 0)), bool(node.attr(f"transBatch{k}", 0))) for k in "AB"]
    alpha = float(node.attr("alpha", 1.0))
    if not any(batch for _, batch in sides) and any(
        swap and (x.rank is None or x.rank < 2) for x, (swap, _) in zip((a, b), sides, strict=True)
    ):
        # An ellipsis stands for any number of batch axes. A vector has nothing to swap.
        if a.rank == 1 or b.rank == 1:
            sides = [(swap and x.rank != 1, batch) for x, (swap, batch) in zip((a, b), sides, strict=True)]
        else:
            first, second = ("ki" if sides[0][0] else "ik"), ("jk" if sides[1][0] else "kj")
            y = op.Einsum(a, b, equation=f"...{first},...{second}->...ij")
            return y if alpha == 1 else y * alpha
    y = op.MatMul(*(_operand(op, node, x, *side) for x, side in zip((a, b), sides, strict=True)))
    return y if alpha == 1 else y * alpha


def _operand(op: GradientBuilder, node: NodeView, x: Var, swap: bool, batch: bool) -> Var:
    if not swap and not batch:
        return x
    n = x.rank
    if n is None:
        raise _refusal(node, "the rank of an input with transBatchA or transBatchB is unknown")
    perm = [*range(1, n - 1), 0, n - 1] if batch else list(range(n))
    if swap:
        perm[-2:] = perm[:-3:-1]
    return op.transpose(x, perm)


@expansion("FusedGemm", domain=MICROSOFT)
def fused_gemm(op: GradientBuilder, node: NodeView) -> Var:
    """Y = f(α a b + β c)."""
    names = ("alpha", "beta", "transA", "transB")
    y = op.Gemm(*node.inputs, **{k: node.attr(k, None) for k in names})
    given = [node.attr(f"activation_{k}", None) for k in ("alpha", "beta", "gamma")]
    return _activated(op, node, y, [v for v in given if v is not None])


@expansion("FusedConv", domain=MICROSOFT)
def fused_conv(op: GradientBuilder, node: NodeView) -> Var:
    """Y = f(conv(x, w) + b + z)."""
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    y = op.Conv(*node.inputs[:3], **{k: node.attr(k, None) for k in names})
    z = node.input(3)
    return _activated(op, node, y if z is None else y + z, node.attr("activation_params", None) or [])


def _activated(op: GradientBuilder, node: NodeView, x: Var, parameters: Sequence[float]) -> Var:
    """The activation that was fused into a node."""
    name = node.attr("activation", None)
    if not name:
        return x
    numbers = [float(v) for v in parameters]
    if name in ("Relu", "Tanh", "Sigmoid"):
        return op.call(name, x)
    if name == "LeakyRelu":
        return op.LeakyRelu(x, alpha=numbers[0] if numbers else None)
    if name == "HardSigmoid":
        alpha, beta = numbers or (None, None)
        return op.HardSigmoid(x, alpha=alpha, beta=beta)
    if name == "Clip" and len(numbers) == 2:
        return op.Clip(x, *numbers)
    raise _refusal(node, f"its activation {name!r} with parameters {numbers} is not known")


# -- activations -----------------------------------------------------------------------------------


@expansion("Gelu", domain=MICROSOFT)
def gelu(op: GradientBuilder, node: NodeView) -> Var:
    """Y = x Φ(x)."""
    return _gelu(op, node.inputs[0])


@expansion("BiasGelu", domain=MICROSOFT)
def bias_gelu(op: GradientBuilder, node: NodeView) -> Var:
    """Y = gelu(a + b)."""
    a, b = node.inputs
    return _gelu(op, a + b)


@expansion("FastGelu", domain=MICROSOFT)
def fast_gelu(op: GradientBuilder, node: NodeView) -> Var:
    """Y = gelu(x + b) by its approximation with tanh."""
    x, bias = node.inputs[0], node.input(1)
    return _gelu(op, x if bias is None else x + bias, "tanh")


@expansion("QuickGelu", domain=MICROSOFT)
def quick_gelu(op: GradientBuilder, node: NodeView) -> Var:
    """Y = x sigmoid(α x)."""
    (x,) = node.inputs
    return x * op.Sigmoid(x * float(node.attr("alpha", 1.702)))


def _gelu(op: GradientBuilder, x: Var, approximate: str = "none") -> Var:
    if op.opset >= 20:  # there it is an operator
        return op.Gelu(x, approximate=approximate)
    if approximate == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * 0.5 * (op.Tanh(inner) + 1)
    return x * 0.5 * (op.Erf(x * math.sqrt(0.5)) + 1)


# -- normalizations --------------------------------------------------------------------------------


@expansion("LayerNormalization", domain=MICROSOFT)
def layer_normalization(op: GradientBuilder, node: NodeView) -> Any:
    """ONNX's own operator."""
    names = ("axis", "epsilon", "stash_type")
    return op.LayerNormalization(
        *node.inputs, outputs=_declared(node), **{k: node.attr(k, None) for k in names}
    )


@expansion("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(op: GradientBuilder, node: NodeView) -> list[Var | None]:
    """S = x + skip + bias,  y = layer_norm(s) γ + β: outputs y, mean, inverse deviation, s."""
    x, skip, gamma = node.inputs[:3]
    beta, bias = node.input(3), node.input(4)
    total = x + skip if bias is None else x + skip + bias
    n = min(len(_declared(node)), 3)
    epsilon = float(node.attr("epsilon", 1e-12))
    made = op.LayerNormalization(total, gamma, beta, outputs=_declared(node)[:n], epsilon=epsilon)
    return [*made, *[None] * (3 - n), total]


@expansion("SimplifiedLayerNormalization", domain=MICROSOFT)
@expansion("SimplifiedLayerNormalization", domain="")
def simplified_layer_normalization(op: GradientBuilder, node: NodeView) -> list[Var]:
    """R = 1 / √(mean x² + ε),  y = x r γ: outputs y, r."""
    x, gamma = node.inputs
    axis = int(node.attr("axis", -1))
    if axis >= 0:
        if x.rank is None:
            raise _refusal(node, f"its axis {axis} counts from the front of an input of unknown rank")
        axis -= x.rank
    return _rms(op, x, gamma, list(range(axis, 0)), float(node.attr("epsilon", 1e-5)))


@expansion("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(op: GradientBuilder, node: NodeView) -> list[Var | None]:
    """S = x + skip + bias,  y = s r γ: outputs y, mean (not written), r, s."""
    x, skip, gamma = node.inputs[:3]
    bias = node.input(3)
    total = x + skip if bias is None else x + skip + bias
    y, r = _rms(op, total, gamma, [-1], float(node.attr("epsilon", 1e-12)))
    return [y, None, r, total]


def _rms(op: GradientBuilder, x: Var, gamma: Var, axes: list[int], epsilon: float) -> list[Var]:
    mean = op.ReduceMean(x * x, axes, keepdims=1)
    r = op.Reciprocal(op.Sqrt(mean + epsilon))
    return [x * r * gamma, r]


def _declared(node: NodeView) -> list[str]:
    """Base names for the outputs of a node, up to the last that is used."""
    used = [i for i, v in enumerate(node.outputs) if v is not None]
    return [f"{node.op_type}_{i}" for i in range(max(used) + 1)]


# -- linear algebra --------------------------------------------------------------------------------


@rule("Inverse", domain=MICROSOFT)
def inverse(op: GradientBuilder, node: NodeView, dy: Var) -> Var:
    """Y = x⁻¹:  dx = -yᵀ dy yᵀ."""
    y = node.outputs[0]
    return -op.Einsum(op.Einsum(y, dy, equation="...ji,...jk->...ik"), y, equation="...ik,...lk->...il")


def _refusal(node: NodeView, why: str) -> GradientNotImplementedError:
    return GradientNotImplementedError(
        f"Node {node.name!r} ({node.op_type}, domain {node.node.domain or 'ai.onnx'}) cannot be "
        f"differentiated: {why}; give the model its shapes, or export it without this optimization.",
        node=node.name,
        op_type=node.op_type,
        domain=node.node.domain,
        opset=node.version,
    )

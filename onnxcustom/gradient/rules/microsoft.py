"""Operators of onnxruntime that its optimizers put in place of standard ones, spelt out again.

They are described in onnxruntime's docs/ContribOperators.md. Some of onnxruntime's normalizations
live in ONNX's own domain, and files written by its optimizers have both spellings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.graph.building.builder import Var

from .. import expand
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
        raise refusal(node, "the rank of an input with transBatchA or transBatchB is unknown")
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
    raise refusal(node, f"its activation {name!r} with parameters {numbers} is not known")


@expansion("FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul_activation(op: GradientBuilder, node: NodeView) -> Var:
    """Y = f(α a b)."""
    given = [node.attr(f"activation_{k}", None) for k in ("alpha", "beta", "gamma")]
    return _activated(op, node, fused_matmul(op, node), [v for v in given if v is not None])


@expansion("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(op: GradientBuilder, node: NodeView) -> Var:
    """Y = gelu(x w + b) by its approximation with tanh."""
    x, w, bias = node.inputs[0], node.inputs[1], node.input(2)
    y = op.MatMul(x, w)
    return _gelu(op, y if bias is None else y + bias, "tanh")


@expansion("NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def nhwc_conv(op: GradientBuilder, node: NodeView) -> Var:
    """Y = f(conv(x, w) + b + z), channels last."""
    x, w, bias, z = node.inputs[0], node.inputs[1], node.input(2), node.input(3)
    n = next((v.rank for v in (x, w) if v.rank is not None), None)
    if n is None:
        raise refusal(node, "the rank of its operands is unknown")
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    first = op.transpose(x, [0, n - 1, *range(1, n - 1)])
    y = op.Conv(first, w, bias, **{k: node.attr(k, None) for k in names})
    y = op.transpose(y, [0, *range(2, n), 1])
    return _activated(op, node, y if z is None else y + z, node.attr("activation_params", None) or [])


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


@expansion("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(op: GradientBuilder, node: NodeView) -> Var:
    """[a b] = x + bias along the last axis,  y = a gelu(b)."""
    x, bias = node.inputs
    a, b = op.call("Split", x + bias, axis=-1, num_outputs=2, outputs=2)
    return a * _gelu(op, b)


@expansion("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(op: GradientBuilder, node: NodeView) -> Var:
    """Y = softmax(x + bias) over all axes from `axis` on."""
    x, bias = node.inputs
    total, axis = x + bias, int(node.attr("axis", 1))
    if axis == -1 or (x.rank is not None and axis == x.rank - 1):
        return op.Softmax(total, axis=-1)
    return op.reshape_like(op.Softmax(op.Flatten(total, axis=axis), axis=-1), x)


@expansion("BiasAdd", domain=MICROSOFT)
def bias_add(op: GradientBuilder, node: NodeView) -> Var:
    """Y = x + bias + skip."""
    x, bias, skip = node.inputs
    return x + bias + skip


@expansion("BiasDropout", domain=MICROSOFT)
def bias_dropout(op: GradientBuilder, node: NodeView) -> list[Var]:
    """Y = dropout(x + bias) + residual: outputs y, mask."""
    x, bias = node.inputs[:2]
    residual, ratio, training = (node.input(i) for i in range(2, 5))
    y, mask = op.Dropout(x + bias, ratio, training, seed=node.attr("seed", None), outputs=2)
    return [y if residual is None else y + residual, mask]


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
            raise refusal(node, f"its axis {axis} counts from the front of an input of unknown rank")
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


@expansion("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(op: GradientBuilder, node: NodeView) -> list[Var | None]:
    """S = word[ids] + position[p] + segment[q],  y = layer_norm(s) γ + β: outputs y, lengths, s."""
    ids, segments, words, places, kinds, gamma, beta = node.inputs[:7]
    mask, positions = node.input(7), node.input(8)
    if positions is None:
        positions = op.Range(0, op.squeeze(op.dim(ids, 1), [0]), 1)
    total = op.Gather(words, ids, axis=0) + op.Gather(places, positions, axis=0)
    if segments is not None and kinds is not None:
        total = total + op.Gather(kinds, segments, axis=0)
    y = op.LayerNormalization(total, gamma, beta, epsilon=float(node.attr("epsilon", 1e-12)))
    lengths = None
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        counted = op.full_like(op.Cast(ids, to=ir.DataType.INT32), 0)
        if mask is not None:
            counted = op.Cast(op.Equal(mask, 1), to=ir.DataType.INT32)
        lengths = op.ReduceSum(counted, np.array([1]), keepdims=0)
    return [y, lengths, total]


@expansion("GroupNorm", domain=MICROSOFT)
def group_norm(op: GradientBuilder, node: NodeView) -> Var:
    """Y = f((x - mean) / √(variance + ε) γ + β), mean and variance over groups of channels."""
    x, gamma, beta = node.inputs
    return _grouped(op, node, x, gamma, beta)


@expansion("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(op: GradientBuilder, node: NodeView) -> list[Var]:
    """S = x + skip + bias, then as GroupNorm: outputs y, s."""
    x, gamma, beta, skip = node.inputs[:4]
    bias, last = node.input(4), bool(node.attr("channels_last", 1))
    if skip.rank is None:
        raise refusal(node, "the rank of its input skip is unknown")
    if skip.rank == 2:
        skip = op.unsqueeze(skip, [1, 2] if last else [2, 3])
    total = x + skip
    if bias is not None:
        total = total + (bias if last else op.unsqueeze(bias, [1, 2]))
    return [_grouped(op, node, total, gamma, beta), total]


def _grouped(op: GradientBuilder, node: NodeView, x: Var, gamma: Var, beta: Var) -> Var:
    last, groups = bool(node.attr("channels_last", 1)), int(node.attr("groups"))
    rank = x.rank or 4
    first = op.transpose(x, [0, rank - 1, *range(1, rank - 1)]) if last else x
    # Groups become the channels of an instance normalization, which has no parameters of its own.
    rows = op.Reshape(first, np.array([0, groups, -1]))
    one = [op.const(np.full(groups, value), like=x) for value in (1.0, 0.0)]
    rows = op.InstanceNormalization(rows, *one, epsilon=float(node.attr("epsilon", 1e-5)))
    y = op.reshape_like(rows, first)
    y = op.transpose(y, [0, *range(2, rank), 1]) if last else y
    scale, shift = (
        op.cast_like(p if last else op.unsqueeze(p, list(range(1, rank - 1))), x) for p in (gamma, beta)
    )
    y = y * scale + shift
    activation = int(node.attr("activation", 0))
    if activation not in (0, 1):
        raise refusal(node, f"its activation {activation} is neither 0, none, nor 1, SiLU")
    return y * op.Sigmoid(y) if activation else y


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


def refusal(node: NodeView, why: str) -> GradientNotImplementedError:
    """The exception that a fused node as it stands is not differentiated."""
    return expand.refusal(node, f"{why}; give the model its shapes, or export it without this optimization")

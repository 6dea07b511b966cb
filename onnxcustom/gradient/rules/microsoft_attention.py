"""onnxruntime's attention operators, spelt out as products, masks and a softmax.

They are described in onnxruntime's docs/ContribOperators.md. Where onnxruntime's providers treat masked
positions differently, this is what its CPU kernels do: a masked score gets ``mask_filter_value`` added,
one of the future is replaced by the lowest number there is.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..expand import expansion
from ..node import NodeView
from ..registry import refuse
from .microsoft import MICROSOFT, refusal

__all__: list[str] = []

_INT64 = ir.DataType.INT64
_FROZEN = "it reads and writes a cache of past keys and values in place, which no training does; "

refuse(
    "GroupQueryAttention",
    "SparseAttention",
    "DecoderMaskedMultiHeadAttention",
    "DecoderMaskedSelfAttention",
    "PagedAttention",
    domain=MICROSOFT,
    reason=_FROZEN + "export the model without a cache",
)
refuse(
    "PackedAttention",
    "PackedMultiHeadAttention",
    "RemovePadding",
    "RestorePadding",
    "LongformerAttention",
    domain=MICROSOFT,
    reason="it exists on GPUs only, in a layout of its own; export the model without this optimization",
)


@expansion("Attention", domain=MICROSOFT)
def attention(op: GradientBuilder, node: NodeView) -> list[Var | None]:
    """[q k v] = x W + b,  y = softmax(s q kᵀ + mask + attention_bias) v, head by head."""
    x, w = node.inputs[:2]
    bias, mask, past, added = (node.input(i) for i in range(2, 6))
    if node.attr("do_rotary", 0) or node.attr("past_present_share_buffer", 0):
        raise refusal(node, "it has do_rotary or past_present_share_buffer set")
    projected = op.MatMul(x, w)
    if bias is not None:
        projected = projected + bias
    sizes = node.attr("qkv_hidden_sizes", None)
    width = projected.shape[-1] if projected.shape else w.shape[-1] if w.shape else None
    if sizes is None and isinstance(width, int):
        sizes = [width // 3] * 3
    if sizes is None:
        parts = op.call("Split", projected, axis=-1, num_outputs=3, outputs=3)
    else:
        parts = op.call("Split", projected, np.array(sizes), axis=-1, outputs=3)
        if projected.shape is not None:
            for part, size in zip(parts, sizes, strict=True):
                part.value.shape = ir.Shape([*projected.shape[:-1], size])
    heads = int(node.attr("num_heads"))
    q, k, v = (_heads(op, part, heads) for part in parts)
    before: int | Var = 0
    if past is not None:
        before = op.size(past, 3)
        k, v = (op.Concat(op.Gather(past, i, axis=0), t, axis=2) for i, t in enumerate((k, v)))
    present = None
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        present = op.Concat(op.unsqueeze(k, [0]), op.unsqueeze(v, [0]), axis=0)
    return [_attend(op, node, q, k, v, mask, added, before), present]


@expansion("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(op: GradientBuilder, node: NodeView) -> list[Var | None]:
    """Y = softmax(s q kᵀ + mask + attention_bias) v, head by head: outputs y, keys, values."""
    bias, mask, added, past_k, past_v = (node.input(i) for i in range(3, 8))
    if any(node.input(i) is not None for i in (8, 9)):
        raise refusal(node, "its past and present share a buffer")
    q, k, v = _queries_keys_values(op, node, bias)
    before: int | Var = 0
    if past_k is not None and past_v is not None:
        before = op.size(past_k, 2)
        k, v = op.Concat(past_k, k, axis=2), op.Concat(past_v, v, axis=2)
    y = _attend(op, node, q, k, v, mask, added, before)
    used = [i for i, value in enumerate(node.outputs) if value is not None]
    if max(used) > 2:
        raise refusal(node, "its output qk is used")
    return [y, k if 1 in used else None, v if 2 in used else None]


def _queries_keys_values(op: GradientBuilder, node: NodeView, bias: Var | None) -> list[Var]:
    """Queries, keys and values as [batch, heads, length, size], from any of the layouts."""
    heads = int(node.attr("num_heads"))
    query, key, value = (node.input(i) for i in range(3))
    assert query is not None
    if key is None or value is None:
        if bias is not None:
            raise refusal(node, "its operands are packed and have a bias")
        if key is None:  # [batch, length, heads, 3, size]
            return _unpacked(op, query, 3)
        return [_heads(op, query, heads), *_unpacked(op, key, 2)]
    if key.rank is None:
        raise refusal(node, "the rank of its keys, which tells their layout, is unknown")
    parts = [query] if key.rank == 4 else [query, key, value]
    if bias is not None:
        at: int | Var = 0
        for i, part in enumerate(parts):
            end = op.size(part, -1)
            end = end if isinstance(at, int) and at == 0 else _plus(op, at, end)
            parts[i] = part + op.slice(bias, at, end, [0])
            at = end
    made = [_heads(op, part, heads) for part in parts]
    return [*made, key, value] if key.rank == 4 else made


def _plus(op: GradientBuilder, a: int | Var, b: int | Var) -> int | Var:
    """The sum of two sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return (op.const([a], _INT64) if isinstance(a, int) else a) + (
        op.const([b], _INT64) if isinstance(b, int) else b
    )


def _unpacked(op: GradientBuilder, x: Var, n: int) -> list[Var]:
    """[batch, length, heads, n, size] as n tensors [batch, heads, length, size]."""
    turned = op.Transpose(x, perm=[3, 0, 2, 1, 4])
    return [op.Gather(turned, i, axis=0) for i in range(n)]


def _heads(op: GradientBuilder, x: Var, heads: int) -> Var:
    """[batch, length, heads · size] as [batch, heads, length, size]."""
    width = None if x.shape is None else x.shape[-1]
    last = width // heads if isinstance(width, int) else -1
    return op.transpose(op.Reshape(x, np.array([0, 0, heads, last])), [0, 2, 1, 3])


def _attend(
    op: GradientBuilder,
    node: NodeView,
    q: Var,
    k: Var,
    v: Var,
    mask: Var | None,
    added: Var | None,
    before: int | Var,
) -> Var:
    """Softmax(s q kᵀ + mask + added) v, heads side by side; `before` keys came from the past."""
    scores = op.MatMul(q * _scale(op, node, q), op.swap_last(k))
    if added is not None:
        scores = scores + added
    if mask is not None:
        scores = scores + _filter(op, node, mask, q, k, before)
    if node.attr("unidirectional", 0):
        rows, columns = _count_up(op, op.size(q, 2)), _count_up(op, op.size(k, 2))
        rows = op.unsqueeze(rows, [1])
        seen = op.LessOrEqual(columns, rows if isinstance(before, int) and before == 0 else rows + before)
        dtype = q.dtype or ir.DataType.FLOAT
        scores = op.Where(seen, scores, op.const(float(dtype.min), dtype))
    y = op.MatMul(op.Softmax(scores, axis=-1), v)
    return op.Reshape(op.transpose(y, [0, 2, 1, 3]), np.array([0, 0, -1]))


def _scale(op: GradientBuilder, node: NodeView, q: Var) -> Var | float:
    given = node.attr("scale", None)
    if given:  # 0 stands for the default
        return float(given)
    size = None if q.shape is None else q.shape[3]
    if isinstance(size, int):
        return 1 / math.sqrt(size)
    return op.Reciprocal(op.Sqrt(op.count(q, [3])))


def _count_up(op: GradientBuilder, n: int | Var) -> Var:
    """0, 1 ... n - 1."""
    if isinstance(n, int):
        return op.count_up(n)
    return op.Range(0, op.squeeze(n, [0]), 1)


def _filter(op: GradientBuilder, node: NodeView, mask: Var, q: Var, k: Var, before: int | Var) -> Var:
    """What a mask adds to the scores: 0, or mask_filter_value where it hides a key."""
    if mask.rank is None:
        raise refusal(node, "the rank of its mask, which tells what it holds, is unknown")
    if mask.rank == 1:
        kept = _within(op, mask, op.size(q, 0), op.size(k, 2))
    elif mask.rank == 4:  # [batch, 1, longest, longest]
        end = _plus(op, before, op.size(q, 2))
        kept = op.slice(op.slice(mask, before, end, [2]), 0, op.size(k, 2), [3])
    else:
        kept = op.unsqueeze(mask, [1, 2] if mask.rank == 2 else [1])
    if kept.dtype != ir.DataType.BOOL:
        kept = op.Greater(kept, 0)
    dtype = q.dtype or ir.DataType.FLOAT
    hidden = float(node.attr("mask_filter_value", -10000.0))
    return op.Where(kept, op.const(0.0, dtype), op.const(hidden, dtype))


def _within(op: GradientBuilder, mask: Var, batch: int | Var, total: int | Var) -> Var:
    """[batch, 1, 1, total], true for the keys that a mask of lengths keeps.

    It holds the end of each sequence; [2 batch] their starts behind; [3 batch + 2] sums of lengths behind,
    which say the same again.
    """
    mask = op.Cast(mask, to=_INT64)
    places = _count_up(op, total)
    kept = op.Less(places, op.unsqueeze(op.slice(mask, 0, batch, [0]), [1, 2, 3]))
    n = None if mask.shape is None else mask.shape[0]
    if isinstance(n, int) and isinstance(batch, int) and n != 2 * batch:
        return kept
    if mask.shape is not None and isinstance(n, str) and isinstance(batch, Var) and _named(batch) == n:
        return kept
    size = op.const([batch], _INT64) if isinstance(batch, int) else batch
    zeros = op.ConstantOfShape(size, value=ir.tensor(np.zeros(1, dtype=np.int64)))
    starts = op.slice(op.Concat(mask, zeros, axis=0), size, size + size, [0])
    starts = starts * op.Cast(op.Equal(op.Shape(mask), size + size), to=_INT64)
    return op.And(kept, op.GreaterOrEqual(places, op.unsqueeze(starts, [1, 2, 3])))


def _named(size: Var) -> int | str | None:
    """The name of a size that was read off a shape."""
    node = size.value.producer()
    if node is None or node.op_type != "Shape" or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    dim = node.inputs[0].shape[node.attributes.get_int("start", 0)]
    return dim if isinstance(dim, int) else dim.value


# -- rotary embedding ------------------------------------------------------------------------------


@expansion("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(op: GradientBuilder, node: NodeView) -> Var:
    """y₁ = x₁ cos - x₂ sin,  y₂ = x₁ sin + x₂ cos, x₁ and x₂ halves of a head, or its even and odd parts."""
    x, positions, cos, sin = node.inputs
    if node.attr("is_packed_batching", 0):
        raise refusal(node, "it has is_packed_batching set")
    if x.rank is None or positions.rank is None:
        raise refusal(node, "the rank of its input or of position_ids, which tells their layout, is unknown")
    rotated = int(node.attr("rotary_embedding_dim", 0))
    heads = int(node.attr("num_heads", 0))
    whole = x
    if x.rank == 3:  # [batch, length, heads · size], of which size is twice a row of cos unless heads is set
        last = op.size(cos, 1)
        size = -1 if heads else 2 * last if isinstance(last, int) else last + last
        parts = [0, 0, heads or -1, size]
        target = op.sizes_vector(parts)
        whole = op.Reshape(x, target)
    axis = 2 if x.rank == 3 else 1
    cos, sin = (op.unsqueeze(_rows(op, t, positions, x), [-2 if axis == 2 else -3]) for t in (cos, sin))
    front, rest = whole, None
    if rotated:
        front = op.slice(whole, 0, rotated, [3])
        rest = op.slice(whole, rotated, 2**62, [3])
    turned = _turned(op, node, front, cos, sin)
    if rest is not None:
        turned = op.Concat(turned, rest, axis=-1)
    return op.reshape_like(turned, x) if x.rank == 3 else turned


def _rows(op: GradientBuilder, table: Var, positions: Var, x: Var) -> Var:
    """Rows of a table: [length, half] if only the first position is given, else [batch, length, half]."""
    if positions.rank == 1:
        positions = positions + _count_up(op, op.size(x, 1 if x.rank == 3 else 2))
    return op.Gather(table, positions, axis=0)


def _turned(op: GradientBuilder, node: NodeView, x: Var, cos: Var, sin: Var) -> Var:
    if node.attr("interleaved", 0):
        one, two = (op.slice(x, i, 2**62, [3], 2) for i in range(2))
        pair = [op.unsqueeze(t, [-1]) for t in (one * cos - two * sin, one * sin + two * cos)]
        return op.Reshape(op.Concat(*pair, axis=-1), np.array([0, 0, 0, -1]))
    one, two = op.call("Split", x, axis=3, num_outputs=2, outputs=2)
    return op.Concat(one * cos - two * sin, one * sin + two * cos, axis=3)

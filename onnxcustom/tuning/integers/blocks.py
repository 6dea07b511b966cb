"""Weights of a few bits, several in a byte, with a scale for each block (MatMulNBits and the like)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from .rewriting import Rewriting, integer
from .steps import unpacked

__all__: list[str] = []

# What the codes of MatMulBnb4 stand for, times the largest absolute value of a block.
_FP4 = np.array([0, 0.005208333, 2 / 3, 1, 1 / 3, 0.5, 1 / 6, 0.25], dtype=np.float32)
_NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=np.float32,
)


def _given(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if i < len(node.inputs) else None


@integer("MatMulNBits")
def matmul_nbits(walk: Rewriting, node: ir.Node) -> Var | None:
    """Y = a bᵀ + bias: each row of b in blocks along it, of integers without sign."""
    a, q, bias = (_given(node, i) for i in (0, 1, 5))
    assert q is not None
    arrays = [walk.constant(_given(node, i)) for i in (1, 2, 3, 4)]
    lost = any(v is None and _given(node, i) is not None for i, v in enumerate(arrays, 1))
    packed, scales, zeros, groups = arrays
    if packed is None or scales is None or lost or not walk.chooses(q):
        return None
    k, n, size = (node.attributes.get_int(name, 0) for name in ("K", "N", "block_size"))
    bits = node.attributes.get_int("bits", 4)
    key = (q, scales.tobytes(), b"" if zeros is None else zeros.tobytes(), bits, size)
    w = walk.weight(q, key, lambda: _matrix(packed, scales, zeros, groups, n, k, bits, size))
    y = walk.op.MatMul(a, w)
    return y if bias is None else y + walk.op.wrap(bias)


def _matrix(
    packed: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    groups: np.ndarray | None,
    n: int,
    k: int,
    bits: int,
    size: int,
) -> np.ndarray:
    """The matrix [k, n] that MatMulNBits multiplies by."""
    count = -(-k // size)
    codes = unpacked(packed.reshape(n, count, -1), bits).reshape(n, -1)[:, :k].astype(np.float32)
    if zeros is None:
        points = np.full((n, count), 2 ** (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        points = unpacked(zeros.reshape(n, -1), bits)[:, :count].astype(np.float32)
    else:
        points = zeros.reshape(n, count).astype(np.float32)
    block = np.arange(k) // size if groups is None else groups[:k]
    w = (codes - points[:, block]) * scales.reshape(n, count)[:, block].astype(np.float32)
    return w.T.astype(scales.dtype)


@integer("MatMulBnb4")
def matmul_bnb4(walk: Rewriting, node: ir.Node) -> Var | None:
    """Y = a bᵀ: b of numbers from a table of 16, times the largest of each block of the flat tensor."""
    a, q = node.inputs[:2]
    assert q is not None
    packed, largest = walk.constant(q), walk.constant(_given(node, 2))
    if packed is None or largest is None or not walk.chooses(q):
        return None
    k, n, size, kind, turned = (
        node.attributes.get_int(name, default)
        for name, default in (("K", 0), ("N", 0), ("block_size", 0), ("quant_type", 1), ("transB", 1))
    )

    def numbers() -> np.ndarray:
        table = _NF4 if kind == 1 else np.concatenate([_FP4, -_FP4])
        halves = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: n * k]  # high bits first
        flat = table[halves] * largest.astype(np.float32)[np.arange(n * k) // size]
        return (flat.reshape(n, k).T if turned else flat.reshape(k, n)).astype(largest.dtype)

    return walk.op.MatMul(a, walk.weight(q, (q, largest.tobytes(), kind, size), numbers))


@integer("GatherBlockQuantized")
def gather_block_quantized(walk: Rewriting, node: ir.Node) -> Var | None:
    """Y = gather(data, indices), data in blocks along an axis."""
    q, indices = node.inputs[:2]
    assert q is not None
    arrays = [walk.constant(_given(node, i)) for i in (0, 2, 3)]
    data, scales, zeros = arrays
    if data is None or scales is None or (zeros is None and _given(node, 3) is not None):
        return None
    if not walk.chooses(q):
        return None
    axis, size = node.attributes.get_int("quantize_axis", 1), node.attributes.get_int("block_size", 128)
    bits = node.attributes.get_int("bits", 4)
    key = (q, scales.tobytes(), b"" if zeros is None else zeros.tobytes(), axis, size)
    table = walk.weight(q, key, lambda: _table(data, scales, zeros, axis, size, bits))
    return walk.op.Gather(table, indices, axis=node.attributes.get_int("gather_axis", 0))


def _table(
    data: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, axis: int, size: int, bits: int
) -> np.ndarray:
    """The table that GatherBlockQuantized takes rows of; bytes hold several numbers along the last axis."""
    packed = data.dtype == np.uint8
    codes = unpacked(data, bits) if packed else data
    codes = codes.astype(np.float32)
    if zeros is not None:
        zeros = unpacked(zeros, bits)[..., : scales.shape[-1]] if packed else zeros
        points = zeros.astype(np.float32)
    else:
        points = np.full(scales.shape, 2 ** (bits - 1) if packed else 0, np.float32)
    block = np.arange(codes.shape[axis]) // size
    return ((codes - points.take(block, axis)) * scales.astype(np.float32).take(block, axis)).astype(
        scales.dtype
    )

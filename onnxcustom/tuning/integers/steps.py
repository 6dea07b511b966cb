"""What integers stand for: the formula of DequantizeLinear, and the ways integers are packed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["BOUNDS", "dequantized", "quantized", "spread", "steps", "unpacked"]

# Lowest and highest number of each type that quantized tensors have.
BOUNDS: dict[ir.DataType, tuple[float, float]] = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-(2**15), 2**15 - 1),
    ir.DataType.UINT16: (0, 2**16 - 1),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
    ir.DataType.FLOAT4E2M1: (-6, 6),
    ir.DataType.FLOAT8E4M3FN: (-448, 448),
    ir.DataType.FLOAT8E4M3FNUZ: (-240, 240),
    ir.DataType.FLOAT8E5M2: (-57344, 57344),
    ir.DataType.FLOAT8E5M2FNUZ: (-57344, 57344),
}
for _name, _ends in {"INT2": (-2, 1), "UINT2": (0, 3)}.items():  # of newer versions of onnx_ir
    if hasattr(ir.DataType, _name):
        BOUNDS[getattr(ir.DataType, _name)] = _ends


def steps(q: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
    """How many steps from zero each number is, in float32; `zero` broadcasts."""
    if q.dtype.kind not in "iu" and "int" not in q.dtype.name:  # float8 and float4 have no zero point
        return q.astype(np.float32)
    whole = q.astype(np.int32)
    return (whole if zero is None else whole - zero.astype(np.int32)).astype(np.float32)


def dequantized(
    q: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None = None,
    axis: int = 1,
    block: int = 0,
    dtype: np.dtype | None = None,
) -> np.ndarray:
    """(q - zero) scale, number for number what onnxruntime's DequantizeLinear computes.

    Parameters
    ----------
    q : ndarray
        Integers, or floats of eight bits and fewer.
    scale, zero : ndarray
        One number, one per index of `axis`, one per block of it, or of a shape that broadcasts.
    axis, block : int
        As of DequantizeLinear.
    dtype : numpy.dtype, optional
        Of the result; by default that of the scale.
    """
    dtype = scale.dtype if dtype is None else dtype
    wide = np.float64 if dtype == np.float64 else np.float32
    offset = None if zero is None else spread(zero, q.shape, axis, block)
    return (steps(q, offset).astype(wide) * spread(scale, q.shape, axis, block).astype(wide)).astype(dtype)


def quantized(
    x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int, dtype: ir.DataType
) -> np.ndarray:
    """round(x / scale) + zero within the range of a type, as QuantizeLinear has it."""
    moved = x / spread(scale, x.shape, axis)
    low, high = BOUNDS[dtype]
    if dtype.is_floating_point():
        return np.clip(moved, low, high).astype(dtype.numpy())
    offset = 0 if zero is None else spread(zero, x.shape, axis).astype(np.int32)
    return np.clip(np.rint(moved) + offset, low, high).astype(dtype.numpy())


def spread(scale: np.ndarray, shape: tuple[int, ...], axis: int = 1, block: int = 0) -> np.ndarray:
    """Scales, or zero points, in a shape that broadcasts against a tensor of `shape`."""
    if scale.size == 1:
        return scale.reshape(())
    if block:
        return np.repeat(scale, block, axis).take(np.arange(shape[axis]), axis)
    if scale.ndim > 1:
        return scale
    along = [1] * len(shape)
    along[axis] = -1
    return scale.reshape(along)


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of `bits` bits without sign, the lowest bits of a byte first, along the last axis."""
    if bits == 8:
        return packed
    if bits in (2, 4):
        each = np.arange(0, 8, bits, dtype=np.uint8)
        parts = (packed[..., None] >> each) & np.uint8(2**bits - 1)
        return parts.reshape(*packed.shape[:-1], -1)
    whole = np.unpackbits(packed, axis=-1, bitorder="little")
    whole = whole[..., : whole.shape[-1] // bits * bits].reshape(*packed.shape[:-1], -1, bits)
    return (whole << np.arange(bits, dtype=np.uint8)).sum(-1).astype(np.uint8)

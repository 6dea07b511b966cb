"""Random numbers that are a function of (seed, step, position), in standard operators.

A resumed run draws what an uninterrupted one would have drawn, on every onnxruntime: the random
operators of ONNX promise neither.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from .builder import Builder, Var

__all__ = ["key", "normal", "uniform"]

# A prime below 2**31, so that products stay below 2**63. Raising to the fifth power permutes the
# residues, since 5 does not divide the prime less one, and is far from linear.
_PRIME = 2147483647
_MULTIPLIERS = (48271, 69621, 630360016)


def key(seed: int, stream: int) -> int:
    """One number for a seed and a stream, scattered, so that neither shows in differences of keys."""
    mixed = pow(seed * _MULTIPLIERS[0] + 1, 5, _PRIME)
    return pow(mixed * _MULTIPLIERS[1] + stream, 5, _PRIME)


def uniform(op: Builder, like: Var, key: int, step: Var, dtype: ir.DataType = ir.DataType.FLOAT) -> Var:
    """Numbers in [0, 1], a hash of (key, step, position).

    Parameters
    ----------
    op : Builder
        Builder of the graph.
    like : Var
        The result has its shape.
    key : int
        See :func:`key`.
    step : Var
        Step, int64 scalar.
    dtype : DataType, default=FLOAT
        Dtype of the numbers.

    Returns
    -------
    Var
    """
    index = op.Range(op.const(0, ir.DataType.INT64), op.Size(like), op.const(1, ir.DataType.INT64))
    state = _scramble(op, _scramble(op, step * _MULTIPLIERS[0] + 1) * _MULTIPLIERS[1] + key)
    mixed = _scramble(op, index * _MULTIPLIERS[1] + state)
    mixed = _scramble(op, mixed * _MULTIPLIERS[2] + state)
    numbers = op.Cast(mixed, to=dtype) / float(_PRIME + 1)
    return op.Reshape(numbers, op.Shape(like), allowzero=1)


def normal(
    op: Builder, like: Var, keys: tuple[int, int], step: Var, dtype: ir.DataType = ir.DataType.FLOAT
) -> Var:
    """Standard normal numbers by the transform of Box and Muller (1958).

    Parameters
    ----------
    op, like, step, dtype
        As for :func:`uniform`.
    keys : tuple of two int
        Different keys, one for the radius and one for the angle.

    Returns
    -------
    Var
    """
    # A number may be 0, whose logarithm is infinite.
    radius = op.Sqrt(-2.0 * op.Log(op.Max(uniform(op, like, keys[0], step, dtype), 2.0**-31)))
    # The sine: onnxruntime has no cosine in double precision.
    return radius * op.Sin(2 * math.pi * uniform(op, like, keys[1], step, dtype))


def _scramble(op: Builder, x: Var) -> Var:
    """The fifth power modulo the prime."""
    x = op.Mod(x, _PRIME)
    square = op.Mod(x * x, _PRIME)
    return op.Mod(op.Mod(square * square, _PRIME) * x, _PRIME)

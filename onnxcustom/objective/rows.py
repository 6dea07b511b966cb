"""Building blocks of losses: shapes that fit, sums over rows, and functions that do not overflow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.graph.building.builder import Builder, Var

__all__ = [
    "is_positive",
    "log_extended",
    "match_shape",
    "scale_rows",
    "shaped",
    "smallest",
    "softplus",
    "sum_rows",
]


def shaped(var: Var, shape: Sequence | None) -> Var:
    """The variable, with the shape we know it to have."""
    var.value.shape = None if shape is None else ir.Shape(shape)
    return var


def match_shape(op: Builder, expected: Var, predicted: Var) -> Var:
    """`expected` in the dtype and shape of `predicted`.

    [N] and [N, 1] in either order must not broadcast to [N, N]: unless the shapes are certain to
    agree, the expected values are reshaped to those predicted.
    """
    if expected.dtype != predicted.dtype:
        expected = op.Cast(expected, to=predicted.dtype)
    given, wanted = expected.shape, predicted.shape
    if given is not None and wanted is not None:
        if len(given) == len(wanted) and all(
            a == b and a is not None for a, b in zip(given[1:], wanted[1:], strict=True)
        ):
            return expected
        if _columns(given) not in (None, _columns(wanted)) and _columns(wanted) is not None:
            raise InvalidDataError(
                f"The expected values have {_columns(given)} numbers a row (shape {given}), the prediction "
                f"{predicted.value.name!r} has {_columns(wanted)} (shape {wanted})."
            )
        if all(isinstance(d, int) for d in wanted[1:]):
            return shaped(op.Reshape(expected, [-1, *wanted[1:]]), wanted)
    return shaped(op.Reshape(expected, op.Shape(predicted)), wanted)


def _columns(shape: Sequence) -> int | None:
    """Numbers in a row, None if unknown."""
    dims = list(shape[1:])
    return int(np.prod(dims, dtype=np.int64)) if all(isinstance(d, int) for d in dims) else None


def sum_rows(op: Builder, x: Var) -> Var:
    """Sum of everything but axis 0: shape [N]."""
    shape = x.shape
    if shape is None:
        return shaped(op.ReduceSum(op.Flatten(x, axis=1), [1], keepdims=0), [None])
    if not shape:
        raise InvalidDataError(
            f"{x.value.name!r} is one number for the whole batch: a loss is taken on tensors with one row "
            "for each observation."
        )
    if len(shape) == 1:
        return x
    axes = list(range(1, len(shape)))
    if all(d == 1 for d in shape[1:]):
        return shaped(op.Squeeze(x, axes), shape[:1])
    return shaped(op.ReduceSum(x, axes, keepdims=0), shape[:1])


def scale_rows(op: Builder, x: Var, weight: Var) -> Var:
    """Each row of `x` times its weight, which has shape [N]."""
    shape = x.shape
    if shape is None:
        rows = op.Flatten(x, axis=1) * op.Unsqueeze(weight, [1])
        return op.Reshape(rows, op.Shape(x))
    if len(shape) > 1:
        weight = shaped(op.Unsqueeze(weight, list(range(1, len(shape)))), [shape[0]] + [1] * (len(shape) - 1))
    return x * weight


def softplus(op: Builder, x: Var) -> Var:
    r""":math:`\log(1 + e^x)` without overflow."""
    if x.dtype != ir.DataType.DOUBLE:
        return op.Softplus(x)
    # onnxruntime's CPU kernel of Softplus is float32 only.
    return op.Relu(x) + op.Log(1 + op.Exp(-op.Abs(x)))


def is_positive(op: Builder, x: Var) -> Var:
    """Where x > 0."""
    mask = x > 0
    mask.value.dtype = ir.DataType.BOOL
    return mask


def smallest(eps: float | None, dtype: ir.DataType | None) -> float:
    """The `eps` of a user, or the machine epsilon of the dtype; 1 / eps is finite."""
    info = np.finfo((dtype or ir.DataType.FLOAT).numpy())
    return float(info.eps) if eps is None else max(float(eps), float(info.tiny))


def log_extended(op: Builder, p: Var, eps: float) -> tuple[Var, Var]:
    """Logarithm continued below `eps` by its tangent, and its derivative.

    Clipping alone would have derivative 0 below `eps`, where a model is the most wrong and has the
    most to learn.
    """
    clipped = op.Max(p, eps)
    return op.Log(clipped) + (p - clipped) / eps, op.Reciprocal(clipped)

"""Tensors of a graph under construction, and what they ask of its builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

__all__ = ["Operand", "Operators", "Var"]


class Operators(Protocol):
    """Where operators are appended: :class:`~onnxcustom.graph.building.builder.Builder`."""

    opset: int

    def wrap(self, value: ir.Value | Var) -> Var:
        """The variable of an existing value."""

    def const(self, value: Any, dtype: ir.DataType | int | None = None, like: Var | None = None) -> Var:
        """A constant; its dtype is `dtype`, else that of `like`, else the array's own."""

    def node(self, op_type: str, *operands: Operand, **attributes: Any) -> Any:
        """Append a node of an operator that the opset has."""

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        """What appends an operator, in the form that the opset has of it."""


class Var:
    """A tensor of the graph under construction, with Python operators.

    Attributes
    ----------
    value : onnx_ir.Value
        The value in the graph.
    op : Builder
        The builder that operators on this variable append to.
    """

    __slots__ = ("op", "value")
    # NumPy scalars on the left must leave the operation to us.
    __array_ufunc__ = None

    def __init__(self, op: Operators, value: ir.Value) -> None:
        self.op = op
        self.value = value

    @property
    def dtype(self) -> ir.DataType | None:
        """Element type, None if unknown."""
        return self.value.dtype

    @property
    def shape(self) -> tuple[int | str | None, ...] | None:
        """Dimensions: int if static, str if symbolic, None if unknown; None for unknown rank."""
        shape = self.value.shape
        if shape is None:
            return None
        return tuple(d if isinstance(d, int) else d.value for d in shape)

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None if unknown."""
        return None if self.value.shape is None else len(self.value.shape)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape when every dimension is known, else None."""
        shape = self.shape
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        return tuple(shape)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Var({self.value.name!r}, {self.dtype}, {self.shape})"

    def __add__(self, other: Operand) -> Var:
        return self.op.Add(self, other)

    def __radd__(self, other: Operand) -> Var:
        return self.op.Add(other, self)

    def __sub__(self, other: Operand) -> Var:
        return self.op.Sub(self, other)

    def __rsub__(self, other: Operand) -> Var:
        return self.op.Sub(other, self)

    def __mul__(self, other: Operand) -> Var:
        return self.op.Mul(self, other)

    def __rmul__(self, other: Operand) -> Var:
        return self.op.Mul(other, self)

    def __truediv__(self, other: Operand) -> Var:
        return self.op.Div(self, other)

    def __rtruediv__(self, other: Operand) -> Var:
        return self.op.Div(other, self)

    def __pow__(self, other: Operand) -> Var:
        return self.op.Pow(self, other)

    def __rpow__(self, other: Operand) -> Var:
        # Base and exponent have type variables of their own: the base takes the exponent's dtype here.
        return self.op.Pow(
            other if isinstance(other, (Var, ir.Value)) else self.op.const(other, like=self), self
        )

    def __matmul__(self, other: Operand) -> Var:
        return self.op.MatMul(self, other)

    def __neg__(self) -> Var:
        return self.op.Neg(self)

    def __lt__(self, other: Operand) -> Var:
        return self.op.Less(self, other)

    def __le__(self, other: Operand) -> Var:
        return self.op.LessOrEqual(self, other)

    def __gt__(self, other: Operand) -> Var:
        return self.op.Greater(self, other)

    def __ge__(self, other: Operand) -> Var:
        return self.op.GreaterOrEqual(self, other)

    def __and__(self, other: Operand) -> Var:
        return self.op.And(self, other)

    def __or__(self, other: Operand) -> Var:
        return self.op.Or(self, other)

    def __invert__(self) -> Var:
        return self.op.Not(self)


Operand = Var | ir.Value | int | float | bool | np.ndarray | np.generic | Sequence | None

"""A node that does not take rows together, what is known of what it reads, and what may be done about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Builder

from .layouts import Layout

__all__ = ["Case", "Known", "Repair"]


@dataclasses.dataclass
class Known:
    """What is known of a value.

    Attributes
    ----------
    kind : {'same', 'sized', 'rows'}
        A constant; what follows from constants and sizes alone; what depends on the rows.
    blocks : list of ndarray
        Of every block of rows alone; one for constants.
    batch : ndarray
        Of all rows together.
    layout : Layout or None
        Where the rows are; None if they are all alike.
    """

    kind: str
    blocks: list[Any]
    batch: Any
    layout: Layout | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape for one block."""
        return tuple(np.shape(self.blocks[0]))


@dataclasses.dataclass(frozen=True)
class Case:
    """A node that does not take any number of rows.

    Attributes
    ----------
    node : onnx_ir.Node
        The node.
    known : dict of onnx_ir.Value to Known
        What it reads.
    results : list of list of ndarray
        By output, what it gives for every block alone.
    block : int
        Rows in a block: those of the file.
    rows : onnx_ir.Value
        Number of rows, a vector of one element.
    opset, taken : int, set of str
        For builders.
    declared : bool
        Whether the file itself says that any number of rows may come: then no results for several may change.
    leading : bool
        Whether rows that are made one with something else are so with the first axis that will do.
    lifting : bool
        Whether a batch axis of one row that is dropped stays in front of the others.
    """

    node: ir.Node
    known: Mapping[ir.Value, Known]
    results: Sequence[Sequence[Any]]
    block: int
    rows: ir.Value
    opset: int
    taken: set[str]
    declared: bool
    leading: bool = False
    lifting: bool = False

    def builder(self) -> Builder:
        """For the nodes of a repair."""
        return Builder(self.opset, prefix="rows_", taken=self.taken)

    def operand(self, index: int) -> tuple[ir.Value, Known] | None:
        """An operand and what is known of it."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return None if value is None else (value, self.known[value])

    def numbers(self, index: int, attribute: str) -> list[int] | None:
        """Integers of an attribute, or of an operand that is constant."""
        if attribute in self.node.attributes:
            return list(self.node.attributes[attribute].as_ints())
        found = self.operand(index)
        if found is None or found[1].kind != "same":
            return None
        return np.asarray(found[1].batch).reshape(-1).tolist()


@dataclasses.dataclass(frozen=True)
class Repair:
    """Nodes in front of a node, and what it then reads or what takes the place of its result."""

    op: Builder
    operands: dict[int, ir.Value] = dataclasses.field(default_factory=dict)
    instead: ir.Value | None = None

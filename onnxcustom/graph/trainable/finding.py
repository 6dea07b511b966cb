"""Which constants of a prepared model are weights, and why the others are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.operands import (
    is_float,
    passes_through,
    single_counts,
    trainable,
)
from onnxcustom.graph.analysis.traversal import subgraphs
from onnxcustom.graph.preparation.ml_operators import ROLE_KEY
from onnxcustom.graph.trainable.untrained import Untrained

__all__ = [
    "Findings",
    "all_finite",
    "array_of",
    "check_finite",
    "find_weights",
    "keep_trained",
    "trainable_values",
    "warn_nonfinite",
]

# On a weight that is trained: it stays one, whatever its numbers are in this copy of the model.
_TRAINED = "onnxcustom.trained"
# Numbers looked at together: a mask of all would be a quarter of the array.
_PIECE = 2**18
_SHOWN = 10  # names in a message


@dataclasses.dataclass(frozen=True)
class Findings:
    """What :func:`find_weights` finds, initializers of the main graph.

    Attributes
    ----------
    weights : list of onnx_ir.Value
        In the order in which the graph reads them.
    left_out : dict of onnx_ir.Value to str
        What is read like a weight and is none, with the reason.
    nonfinite : list of onnx_ir.Value
        Those left out because they hold NaN or infinity.
    live : set of onnx_ir.Value
        What an output depends on.
    """

    weights: list[ir.Value]
    left_out: dict[ir.Value, str]
    nonfinite: list[ir.Value]
    live: set[ir.Value]


def trainable_values(model: ir.Model) -> list[ir.Value]:
    """The weights of a model in prepared form.

    Parameters
    ----------
    model : onnx_ir.Model
        As :func:`onnxcustom.graph.prepare` returns it.

    Returns
    -------
    list of onnx_ir.Value
        Initializers of the main graph, in the order in which the graph reads them.
    """
    return find_weights(model).weights


def find_weights(model: ir.Model) -> Findings:
    """The weights of a model in prepared form, and what is none although it is read like one."""
    reads = _Reads(model.graph)
    untrained = Untrained(model.graph, reads.live)
    weights, left_out, nonfinite = [], {}, []
    for value in reads.in_order():
        if value.meta.get(_TRAINED):
            weights.append(value)
        elif _may_count(value, reads):
            reason = _role(value) or untrained.why(value)
            if reason is None and not all_finite(array_of(value)):
                reason = "it holds NaN or infinity"
                nonfinite.append(value)
            if reason is None:
                weights.append(value)
            else:
                left_out[value] = reason
    # A model of nothing but such a pair is not a scaler in front of a model.
    scaler = {v for v in _written_out_scaler(model.graph) if not v.meta.get(_TRAINED)}
    if any(v not in scaler for v in weights):
        left_out.update({v: "it scales an input of the model" for v in weights if v in scaler})
        weights = [v for v in weights if v not in scaler]
    return Findings(weights, left_out, nonfinite, reads.live)


def keep_trained(value: ir.Value) -> None:
    """Let an initializer be a weight from now on, in this model and its copies, whatever its numbers."""
    value.meta[_TRAINED] = True


def all_finite(array: np.ndarray) -> bool:
    """Whether a floating-point array holds neither NaN nor infinity, in memory of a few pieces of it."""
    if array.size <= _PIECE or not array.flags.c_contiguous:
        return bool(np.isfinite(array).all())
    flat = array.reshape(-1)
    return all(np.isfinite(flat[i : i + _PIECE]).all() for i in range(0, flat.size, _PIECE))


def check_finite(values: Iterable[ir.Value]) -> None:
    """Refuse to train constants that hold NaN or infinity.

    Raises
    ------
    InvalidModelError
        One of them does.
    """
    for value in values:
        if value.const_value is not None and not all_finite(array_of(value)):
            raise InvalidModelError(
                f"Weight {value.name!r} of the model contains NaN or infinity: it cannot be trained. Leave "
                "it out of the list of weights, or put numbers in its place (onnxcustom.replace_weights)."
            )


def warn_nonfinite(values: Iterable[ir.Value]) -> None:
    """Say that constants are not trained because they hold NaN or infinity."""
    names = [value.name for value in values]
    if names:
        shown = ", ".join(map(repr, names[:_SHOWN])) + (" and others" if len(names) > _SHOWN else "")
        warn_user(
            f"NaN or infinity in {shown}: left out, the other weights are trained. Freeze what is meant so "
            "(freeze), or put numbers in its place (onnxcustom.replace_weights).",
            UserWarning,
        )


def _may_count(value: ir.Value, reads: _Reads) -> bool:
    """Whether an initializer read as data is a weight by type and size."""
    tensor = value.const_value
    if tensor is None or not is_float(tensor) or tensor.size == 0:
        return False
    return tensor.size > 1 or value in reads.single


def _role(value: ir.Value) -> str | None:
    return "it scales an input of the model (Scaler)" if value.metadata_props.get(ROLE_KEY) else None


def array_of(value: ir.Value) -> np.ndarray:
    """The numbers of an initializer."""
    assert value.const_value is not None
    return value.const_value.numpy()


class _Reads:
    """Which constants the graph reads as data, by one walk back from the outputs.

    ``live`` are the values whose content reaches an output; ``data`` those read as differentiable
    operands by something alive; ``single`` those read where a single element counts.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.live: set[ir.Value] = set(graph.outputs)
        self.data: set[ir.Value] = set()
        self.single: set[ir.Value] = set()
        self._order: list[ir.Value] = []
        self._walk(graph)

    def in_order(self) -> Iterator[ir.Value]:
        """Initializers read as data, first read first."""
        return iter(dict.fromkeys(v for v in reversed(self._order) if v in self.data))

    def _walk(self, graph: ir.Graph) -> None:
        for node in reversed(graph):
            if any(v in self.live for v in node.outputs):
                if subgraphs(node):
                    self._control_flow(node)
                else:
                    self._node(node)

    def _node(self, node: ir.Node) -> None:
        for index in reversed(range(len(node.inputs))):
            value = node.inputs[index]
            if value is None:
                continue
            if passes_through(node, index):
                self.live.add(value)
            if trainable(node, index):
                self._read(value)
                if single_counts(node, index):
                    self.single.add(value)

    def _read(self, value: ir.Value) -> None:
        self.data.add(value)
        if value.is_initializer():
            self._order.append(value)

    def _control_flow(self, node: ir.Node) -> None:
        """If, Loop, Scan and the like: what the bodies read, then what is handed to them."""
        handed: dict[int, ir.Value] = {}
        for body in reversed(subgraphs(node)):
            first = 1 if node.op_type == "Loop" else 0  # the condition is no data
            self.live.update(body.outputs[first:])
            self._walk(body)
            # Operand i is input i of a body; the operands If and Loop start with are control.
            if node.op_type != "If":
                handed.update(enumerate(body.inputs))
        control = {"If": 1, "Loop": 2}.get(node.op_type, 0)
        for index in reversed(range(control, len(node.inputs))):
            value, inner = node.inputs[index], handed.get(index)
            if value is None or inner is None:
                continue
            if inner in self.live:
                self.live.add(value)
            if inner in self.data:
                self._read(value)
            if inner in self.single:
                self.single.add(value)


def _written_out_scaler(graph: ir.Graph) -> set[ir.Value]:
    """Constants of scalers in front of the model: ``(x - a) * b``, ``(x - a) / b``, ``x * b + a``."""
    found: set[ir.Value] = set()
    for value in graph.inputs:
        chain: list[tuple[bool, ir.Value]] = []
        while len(value.uses()) == 1 and not value.is_graph_output():
            ((node, index),) = value.uses()
            if node.domain != "":
                break
            if node.op_type not in ("Cast", "Identity"):
                if node.op_type not in ("Sub", "Mul", "Div", "Add") or (
                    node.op_type in ("Sub", "Div") and index == 1
                ):
                    break
                constant = node.inputs[1 - index]
                if constant is None or not _one_per_column(constant):
                    break
                chain.append((node.op_type in ("Mul", "Div"), constant))
            value = node.outputs[0]
        sizes = {c.const_value.size for _, c in chain if c.const_value is not None}
        if len(sizes) == 1 and len({scales for scales, _ in chain}) == 2 and not value.is_graph_output():
            found.update(c for _, c in chain)
    return found


def _one_per_column(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        tensor is not None
        and value.is_initializer()
        and len(value.uses()) == 1
        and tensor.size > 1
        and sum(d != 1 for d in tensor.shape) == 1
    )

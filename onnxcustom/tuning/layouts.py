"""The layout of onnxruntime's optimizer undone: blocks of channels, their number rounded up, weights too.

At its highest level the optimizer lays images out as [N, C / b, H, W, b], with b channels beside each other,
and the weights of convolutions likewise. The shapes of tensors say [N, C, H, W] as before, with C rounded up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.integers import NCHWC
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names, all_nodes
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.runtime.layout import channel_block

__all__ = ["undo_layout"]


def undo_layout(model: ir.Model) -> bool:
    """Turn the operators of that layout into those of ONNX, in place; False if there are none.

    Raises
    ------
    InvalidModelError
        Weights that are computed, or an activation that is not known.
    """
    nodes = [node for node in all_nodes(model.graph) if node.domain == NCHWC]
    if nodes:
        _Undoing(model, nodes).run()
    return bool(nodes)


class _Undoing:
    """One model.

    Values in that layout are put into groups of the same channels, so that each knows how many there are.
    """

    def __init__(self, model: ir.Model, nodes: list[ir.Node]) -> None:
        self.model, self.nodes = model, nodes
        self.op = Builder(model.opset_imports[""], taken=all_names(model.graph))
        self.values = self._in_layout()
        # Before nodes are rewritten one by one: whose first operand is in that layout.
        self.inner = {node: node.inputs[0] for node in nodes if node.inputs[0] in self.values}
        self._group: dict[ir.Value, ir.Value] = {v: v for v in self.values}
        self._made: dict[tuple, ir.Value] = {}
        self.block = self._block()
        self.channels = self._count()

    def run(self) -> None:
        """Rewrite all nodes."""
        for node in self.nodes:
            graph = node.graph
            assert isinstance(graph, ir.Graph)
            made = self._rewritten(node)
            nodes, self.op.nodes = self.op.nodes, []
            graph.insert_before(node, nodes)
            old = node.outputs[0]
            if old.is_graph_output():
                self._hand_out(graph, node, old, made)
            for use in list(old.uses()):
                use.node.replace_input_with(use.idx, made.value)
            graph.remove(node, safe=True)
        for value in self.values:
            value.shape = None  # it was that of more channels
        for value in self.op.initializers:
            self.model.graph.register_initializer(value)

    def _hand_out(self, graph: ir.Graph, node: ir.Node, old: ir.Value, made: Var) -> None:
        fresh = made.value
        if is_op(fresh.producer(), "Identity") or fresh.is_graph_output():
            fresh = self.op.Identity(made).value
            nodes, self.op.nodes = self.op.nodes, []
            graph.insert_before(node, nodes)
        name, old.name = old.name, self.op.unique(f"{old.name}_before")
        fresh.name, fresh.type, fresh.shape = name, old.type, old.shape
        graph.outputs[:] = [fresh if v is old else v for v in graph.outputs]

    # -- how many channels there are -------------------------------------------------------------------

    def _in_layout(self) -> dict[ir.Value, None]:
        """Values in that layout: what its nodes compute, and what other nodes compute of that."""
        found: dict[ir.Value, None] = {}
        for node in all_nodes(self.model.graph):
            if node.domain == NCHWC:
                inside = node.op_type != "ReorderOutput"
            else:
                inside = any(v in found for v in node.inputs)
            if inside:
                found.update(dict.fromkeys(node.outputs))
        return found

    def _find(self, value: ir.Value) -> ir.Value:
        while self._group[value] is not value:
            value = self._group[value]
        return value

    def _join(self, *values: ir.Value | None) -> None:
        there = [v for v in values if v is not None and v in self._group]
        for value in there[1:]:
            self._group[self._find(value)] = self._find(there[0])

    def _block(self) -> int:
        """Channels beside each other: of this machine, unless the weights cannot be laid out so."""
        sizes = [self._weight(node).shape[0] for node in self.nodes if node.op_type == "Conv"]
        here = channel_block()
        fitting = [b for b in (here, 16, 8) if b and all(size % b == 0 for size in sizes)]
        if not fitting:
            raise InvalidModelError(
                f"Weights of the model are laid out by onnxruntime for {sorted(set(sizes))} channels, which "
                "are no multiples of 8: the file is damaged."
            )
        return fitting[0]

    def _count(self) -> dict[ir.Value, int]:
        """Channels of each group before they were rounded up."""
        for node in all_nodes(self.model.graph):
            if node.domain != NCHWC:
                if not is_op(node, "Concat"):
                    self._join(*node.inputs, *node.outputs)
            elif node.op_type not in ("Conv", "ReorderOutput", "ReorderInput"):
                self._join(node.inputs[0], node.outputs[0])
            elif node.op_type == "Conv":
                if self._depthwise(node):
                    self._join(node.inputs[0], node.outputs[0])
                self._join(node.outputs[0], node.inputs[3] if len(node.inputs) > 3 else None)
        counted: dict[ir.Value, int] = {}
        for node in self.nodes:
            x = node.inputs[0]
            assert x is not None
            if node.op_type == "ReorderOutput":
                counted[self._find(x)] = node.attributes.get_int("channels", 0)
            elif node.op_type == "ReorderInput":
                axis = -1 if node.attributes.get_int("channels_last", 0) else 1
                size = None if x.shape is None or not len(x.shape) else x.shape[axis]
                if isinstance(size, int):
                    counted.setdefault(self._find(node.outputs[0]), size)
        self._count_by_weights(counted)
        return counted

    def _count_by_weights(self, counted: dict[ir.Value, int]) -> None:
        """Channels that only convolutions know: up to the last that is not 0 throughout."""
        least: dict[ir.Value, int] = {}
        for node in self.nodes:
            if node.op_type != "Conv":
                continue
            w, bias = self._unblocked(node), self._bias(node)
            grouped = node.attributes.get_int("group", 1) > 1 and not self._depthwise(node)
            used = np.abs(w).reshape(w.shape[0], -1).max(1) > 0
            used = used if bias is None else used | (bias != 0)
            sides: list[tuple[ir.Value | None, np.ndarray]]
            sides = [(node.outputs[0], np.ones(w.shape[0], bool) if grouped else used)]
            if node in self.inner and not grouped and not self._depthwise(node):
                sides.append((self.inner[node], np.abs(w).max(tuple({*range(w.ndim)} - {1})) > 0))
            for value, there in sides:
                assert value is not None
                group = self._find(value)
                last = int(np.flatnonzero(there)[-1]) + 1 if there.any() else 1
                least[group] = max(least.get(group, 1), last)
        for group, size in least.items():
            counted.setdefault(group, size)

    def _channels(self, value: ir.Value | None) -> int | None:
        return None if value is None or value not in self._group else self.channels.get(self._find(value))

    # -- weights ---------------------------------------------------------------------------------------

    def _weight(self, node: ir.Node) -> np.ndarray:
        array = constant_array(node.inputs[1])
        if array is None:
            raise InvalidModelError(
                f"Node {node.name!r} (Conv of {NCHWC}) has a weight that is no constant: its layout cannot "
                "be undone."
            )
        return array

    def _bias(self, node: ir.Node) -> np.ndarray | None:
        return constant_array(node.inputs[2]) if len(node.inputs) > 2 else None

    def _depthwise(self, node: ir.Node) -> bool:
        """Whether each channel has a filter of its own."""
        return node.attributes.get_int("group", 1) > 1 and self._weight(node).shape[1] == 1

    def _unblocked(self, node: ir.Node) -> np.ndarray:
        """Weights as [filters, channels, height, width]."""
        w, b = self._weight(node), self.block
        o, i, *kernel = w.shape
        if node in self.inner and not self._depthwise(node):
            parts = w.reshape(o // b, i // b, *kernel, b, b)
            return np.ascontiguousarray(parts.transpose(0, 5, 1, 4, 2, 3)).reshape(w.shape)
        parts = w.reshape(o // b, i, *kernel, b)
        return np.ascontiguousarray(parts.transpose(0, 4, 1, 2, 3)).reshape(w.shape)

    def _constant(self, value: ir.Value, key: tuple, array: Callable[[], np.ndarray]) -> Var:
        if (value, key) not in self._made:
            tensor = ir.tensor(np.ascontiguousarray(array()))
            self._made[value, key] = self.op.initializer(self.op.unique(f"{value.name}_plain"), tensor)
        return self.op.wrap(self._made[value, key])

    # -- operators -------------------------------------------------------------------------------------

    def _rewritten(self, node: ir.Node) -> Var:
        op, x = self.op, node.inputs[0]
        assert x is not None
        given = {name: a.value for name, a in node.attributes.items()}
        if node.op_type == "Conv":
            return self._convolution(node, given)
        if node.op_type == "ReorderInput":
            return op.Transpose(x, perm=[0, 3, 1, 2]) if given.get("channels_last") else op.Identity(x)
        if node.op_type == "ReorderOutput":
            return op.Transpose(x, perm=[0, 2, 3, 1]) if given.get("channels_last") else op.Identity(x)
        if node.op_type == "Upsample":
            return self._resized(op.wrap(x), given)
        return op.call(node.op_type, x, **given)

    def _resized(self, x: Var, given: dict[str, Any]) -> Var:
        op, scales = self.op, np.asarray(given["scales"], dtype=np.float32)
        mode = given.get("mode", "nearest")
        if op.opset < 11:
            return op.call("Resize" if op.opset == 10 else "Upsample", x, scales, mode=mode)
        how = given.get("coordinate_transformation_mode", "asymmetric")
        nearest = {"nearest_mode": "floor"} if mode == "nearest" and how == "asymmetric" else {}
        return op.Resize(x, None, scales, mode=mode, coordinate_transformation_mode=how, **nearest)

    def _convolution(self, node: ir.Node, given: dict[str, Any]) -> Var:
        """Y = f(conv(x, w) + b + sum)."""
        op, (x, w) = self.op, node.inputs[:2]
        assert w is not None
        name, numbers = given.pop("activation", ""), given.pop("activation_params", ())
        out = self._channels(node.outputs[0])
        deep = self._depthwise(node)
        inside = None if deep or given.get("group", 1) > 1 else self._channels(self.inner.get(node))
        weight = self._constant(
            w, ("w", out, inside, node in self.inner, deep), lambda: self._unblocked(node)[:out, :inside]
        )
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and constant_array(bias) is not None:
            array = self._bias(node)
            assert array is not None
            bias = self._constant(bias, ("b", out), lambda: array[:out]).value
        y = op.Conv(x, weight, bias, **({**given, "group": out} if deep else given))
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            y = y + op.wrap(node.inputs[3])
        return self._activated(node, y, name, [float(v) for v in numbers])

    def _activated(self, node: ir.Node, y: Var, name: str, numbers: list[float]) -> Var:
        op = self.op
        if not name:
            return y
        if name in ("Relu", "Sigmoid", "Tanh"):
            return op.call(name, y)
        if name == "LeakyRelu":
            return op.LeakyRelu(y, alpha=numbers[0])
        if name == "Clip":
            return op.Clip(y, *numbers)
        if name == "HardSigmoid":
            return op.HardSigmoid(y, alpha=numbers[0], beta=numbers[1])
        raise InvalidModelError(
            f"Node {node.name!r} (Conv of {NCHWC}): its activation {name!r} is not known."
        )

"""Training modes of BatchNormalization and Dropout, as a rewrite of the prepared model.

Both are spelled out in plain operators, so that the step runs on every onnxruntime and a mask is a
function of (seed, step): a resumed run draws the masks an uninterrupted one would have drawn.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError, UnknownNameError
from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.traversal import all_names, all_nodes, sort_nodes
from onnxcustom.graph.building import random
from onnxcustom.graph.building.builder import Builder, Var

__all__ = ["ModeSettings", "Modes", "idle_modes", "set_modes"]


@dataclasses.dataclass(frozen=True)
class ModeSettings:
    """How BatchNormalization and Dropout behave while a model is trained.

    Parameters
    ----------
    batch_norm : {'frozen', 'update'}, default='frozen'
        'frozen' normalizes by the model's own statistics; 'update' by those of the batch, and moves
        the model's statistics towards them by the node's momentum.
    dropout : {'off', 'on'}, default='off'
        Whether elements are dropped, at the node's own ratio.

    Raises
    ------
    UnknownNameError
        Another mode; the message lists those there are.
    """

    batch_norm: str = "frozen"
    dropout: str = "off"

    def __post_init__(self) -> None:
        for name, allowed in (("batch_norm", ("frozen", "update")), ("dropout", ("off", "on"))):
            value = getattr(self, name)
            if value not in allowed:
                raise UnknownNameError(f"{name} must be one of {allowed}, not {value!r}.")


@dataclasses.dataclass(frozen=True)
class Modes:
    """What a rewritten model needs from whoever runs it.

    Attributes
    ----------
    statistics : dict of str to str
        Running statistic, a graph input from now on -> tensor with its new value.
    step : str or None
        Graph input with the step, int64 scalar, if masks are drawn.
    """

    statistics: dict[str, str]
    step: str | None = None

    @property
    def inputs(self) -> set[str]:
        """Graph inputs that are not the model's own."""
        return {*self.statistics, *([] if self.step is None else [self.step])}


def set_modes(model: ir.Model, settings: ModeSettings, seed: int = 0) -> Modes:
    """Put BatchNormalization and Dropout of a prepared model into the modes wanted, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model.
    settings : ModeSettings
        What is wanted.
    seed : int, default=0
        Of the masks.

    Returns
    -------
    Modes

    Raises
    ------
    InvalidModelError
        A ratio or statistics that are no constants of the model, or a node in a branch or loop whose
        statistics or masks would be needed.
    """
    graph = model.graph
    rewriter = _Rewriter(model, Builder(model.opset_imports[""], taken=all_names(graph)))
    update, on = settings.batch_norm == "update", settings.dropout == "on"
    for node in list(all_nodes(graph)):
        if node.domain != "":
            continue
        if node.op_type == "BatchNormalization":
            if update:
                rewriter.update_statistics(node)
            else:
                freeze_statistics(node)
        elif node.op_type == "Dropout" and (on or node.graph is graph):
            rewriter.dropout(node, on=on, seed=seed)
    return rewriter.finish()


def idle_modes(model: ir.Model, settings: ModeSettings) -> list[str]:
    """What to warn of where a model has no operator that a mode is for.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model; it is not modified.
    settings : ModeSettings
        What is wanted.

    Returns
    -------
    list of str
    """
    wanted = {"BatchNormalization": ("batch_norm", "update"), "Dropout": ("dropout", "on")}
    nodes = all_nodes(model.graph)
    there = {node.op_type for node in nodes if node.domain == ""}
    return [
        f"{name}={value!r} does nothing: there is no {operator} in what the losses are computed from. "
        f"Exporters fold or drop it, as torch.onnx.export does by default; it stays with "
        "torch.onnx.export(..., training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, "
        "dynamo=False) of a model in training mode."
        for operator, (name, value) in wanted.items()
        if getattr(settings, name) == value and operator not in there
    ]


def freeze_statistics(node: ir.Node) -> None:
    """Let a BatchNormalization normalize as at inference, in place."""
    for output, kept in zip(node.outputs[1:], (3, 4, 3, 4), strict=False):
        value = node.inputs[kept]
        assert value is not None
        output.replace_all_uses_with(value, replace_graph_outputs=True)
    node.resize_outputs(1)
    if _attribute(node, "training_mode", 0):
        node.attributes["training_mode"] = ir.AttrInt64("training_mode", 0)


class _Rewriter:
    """Replaces nodes, keeping the names of their outputs."""

    def __init__(self, model: ir.Model, op: Builder) -> None:
        self.graph = model.graph
        self.op = op
        # Running statistic -> its value after this step, so far: one module may be applied several times.
        self.running: dict[ir.Value, Var] = {}
        self.step: Var | None = None
        self.masks = 0

    def _replace(self, node: ir.Node, *results: Var) -> None:
        """Let `results` take the places of a node's outputs, the name of the first included."""
        for old, result in zip(node.outputs[1:], results[1:], strict=False):
            old.replace_all_uses_with(result.value, replace_graph_outputs=True)
        old, result = node.outputs[0], results[0]
        result.value.type, result.value.shape = old.type, old.shape
        name, old.name = old.name, self.op.unique(f"{old.name}_replaced")
        result.value.name = name
        old.replace_all_uses_with(result.value, replace_graph_outputs=True)
        for new in self.op.nodes:
            node.prepend(new)
        self.op.nodes.clear()
        assert node.graph is not None
        for i in range(len(node.inputs)):  # or it would count as a reader of them
            node.replace_input_with(i, None)
        node.graph.remove(node, safe=False)

    def _in_main_graph(self, node: ir.Node, setting: str, otherwise: str) -> None:
        if node.graph is not self.graph:
            raise InvalidModelError(
                f"{node.op_type} {node.name!r} is inside a branch or a loop, where {setting} has no meaning "
                f"that all its runs would agree on. Use {otherwise}."
            )

    def update_statistics(self, node: ir.Node) -> None:
        """Normalize by the statistics of the batch, and move the running ones towards them."""
        self._in_main_graph(node, "batch_norm='update'", "batch_norm='frozen'")
        op = self.op
        x, scale, bias, *running = (op.wrap(v) for v in node.inputs if v is not None)
        result, *batch = self._normalized(node, x, scale, bias, running[0].dtype)
        momentum = _attribute(node, "momentum", 0.9)
        moved = []
        for old, seen in zip(running, batch, strict=True):
            value = old.value
            if value.name not in self.graph.initializers:
                raise InvalidModelError(
                    f"BatchNormalization {node.name!r}: its statistics {value.name!r} are no constants, "
                    "they cannot be updated. Use batch_norm='frozen'."
                )
            seen = op.Reshape(seen, op.const(_shape_of(value), ir.DataType.INT64))
            seen = seen if seen.dtype == old.dtype else op.Cast(seen, to=old.dtype)
            new = momentum * self.running.get(value, old) + (1 - momentum) * seen
            new.value.shape = value.shape
            self.running[value] = new
            moved.append(new)
        self._replace(node, result, *moved, *batch)

    def _normalized(
        self, node: ir.Node, x: Var, scale: Var, bias: Var, precision: ir.DataType | None
    ) -> tuple[Var, Var, Var]:
        """The data, normalized; mean and variance of the batch, broadcast along it."""
        op, given = self.op, x
        rank = given.rank
        if rank is None:  # all positions are alike
            x, rank = op.Reshape(x, op.const([0, 0, -1], ir.DataType.INT64)), 3
        if precision is not None and x.dtype != precision:
            # Half precision with statistics in single: the sums are for those to hold.
            x = op.Cast(x, to=precision)
        axes = [i for i in range(rank) if i != 1]
        column = op.const([1, -1, *[1] * (rank - 2)], ir.DataType.INT64)

        def broadcast(var: Var) -> Var:
            var = op.Reshape(var, column)
            return var if var.dtype == x.dtype else op.Cast(var, to=x.dtype)

        mean = op.ReduceMean(x, axes, keepdims=1)
        centred = x - mean
        variance = op.ReduceMean(centred * centred, axes, keepdims=1)
        factor = broadcast(scale) / op.Sqrt(variance + _attribute(node, "epsilon", 1e-5))
        result = centred * factor + broadcast(bias)
        if given.rank is None:
            result = op.Reshape(result, op.Shape(given))
        if result.dtype != given.dtype:
            result = op.Cast(result, to=given.dtype)
        return result, mean, variance

    def dropout(self, node: ir.Node, on: bool, seed: int) -> None:
        """Drop elements by a mask of (seed, step), or none."""
        op = self.op
        (x,) = (op.wrap(v) for v in node.inputs[:1] if v is not None)
        ratio = self._ratio(node)
        if not on or ratio == 0:
            self._replace(node, op.Identity(x))
            return
        self._in_main_graph(node, "dropout='on'", "dropout='off'")
        self.masks += 1
        if self.step is None:
            self.step = op.input(op.unique("step_count"), ir.DataType.INT64, [])
        kept = random.uniform(op, x, random.key(seed, self.masks), self.step) >= ratio
        scaled = op.Cast(kept, to=x.dtype) * (1 / (1 - ratio))
        self._replace(node, x * scaled)

    def _ratio(self, node: ir.Node) -> float:
        if len(node.inputs) < 2 or node.inputs[1] is None:
            return float(_attribute(node, "ratio", 0.5))
        array = constant_array(node.inputs[1])
        if array is None:
            raise InvalidModelError(f"Dropout {node.name!r}: its ratio is computed, it must be a constant.")
        ratio = float(array.reshape(-1)[0])
        if not 0 <= ratio < 1:
            raise InvalidModelError(f"Dropout {node.name!r}: its ratio is {ratio}, it must be in [0, 1).")
        return ratio

    def finish(self) -> Modes:
        for initializer in self.op.initializers:
            self.graph.register_initializer(initializer)
        if self.step is not None:
            self.graph.inputs.append(self.step.value)
        for value in self.running:
            # From here on no pass may take for a constant what every step changes.
            self.graph.initializers.pop(str(value.name))
            value.const_value = None
            self.graph.inputs.append(value)
        sort_nodes(self.graph)
        statistics = {str(old.name): str(new.value.name) for old, new in self.running.items()}
        return Modes(statistics, None if self.step is None else self.step.value.name)


def _shape_of(value: ir.Value) -> list[int]:
    assert value.const_value is not None
    return list(value.const_value.shape.numpy())


def _attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else np.asarray(attribute.value).item()

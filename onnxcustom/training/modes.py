"""Training modes of BatchNormalization and Dropout, as a rewrite of the prepared model.

Both are spelled out in plain operators, so that the step runs on every onnxruntime and a mask is a
function of (seed, step): a resumed run draws the masks an uninterrupted one would have drawn.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError, UnknownNameError
from onnxcustom.graph import random
from onnxcustom.graph.builder import Builder, Var
from onnxcustom.graph.traversal import all_names

__all__ = ["ModeSettings", "Modes", "set_modes"]


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
    seed : int, default=0
        Seed of the masks.

    Raises
    ------
    UnknownNameError
        Another mode; the message lists those there are.
    """

    batch_norm: str = "frozen"
    dropout: str = "off"
    seed: int = 0

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
        Running statistic (an initializer) -> tensor with its new value.
    step : str or None
        Graph input with the step, int64 scalar, if masks are drawn.
    """

    statistics: dict[str, str]
    step: str | None = None


def set_modes(model: ir.Model, settings: ModeSettings) -> Modes:
    """Put BatchNormalization and Dropout of a prepared model into the modes wanted, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model.
    settings : ModeSettings
        What is wanted.

    Returns
    -------
    Modes

    Raises
    ------
    InvalidModelError
        A ratio or statistics that are no constants of the model.
    """
    graph = model.graph
    rewriter = _Rewriter(model, Builder(model.opset_imports[""], taken=all_names(graph)))
    for node in list(graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "BatchNormalization":
            rewriter.batch_normalization(node, update=settings.batch_norm == "update")
        elif node.op_type == "Dropout":
            rewriter.dropout(node, on=settings.dropout == "on", seed=settings.seed)
    return rewriter.finish()


class _Rewriter:
    """Replaces nodes, keeping the names of their outputs."""

    def __init__(self, model: ir.Model, op: Builder) -> None:
        self.graph = model.graph
        self.op = op
        self.statistics: dict[str, str] = {}
        self.step: Var | None = None
        self.masks = 0

    def _replace(self, node: ir.Node, result: Var) -> None:
        """Let `result` take the place of a node's first output, name included."""
        old = node.outputs[0]
        result.value.type, result.value.shape = old.type, old.shape
        name, old.name = old.name, self.op.unique(f"{old.name}_replaced")
        result.value.name = name
        old.replace_all_uses_with(result.value, replace_graph_outputs=True)
        for new in self.op.nodes:
            node.prepend(new)
        self.op.nodes.clear()
        self.graph.remove(node, safe=False)

    def batch_normalization(self, node: ir.Node, update: bool) -> None:
        """Normalize by the statistics of the batch, or as at inference."""
        if not update:
            if _attribute(node, "training_mode", 0):
                node.attributes["training_mode"] = ir.AttrInt64("training_mode", 0)
                node.resize_outputs(1)
            return
        op = self.op
        x, scale, bias, mean, var = (op.wrap(v) for v in node.inputs if v is not None)
        if x.rank is None:
            raise InvalidModelError(f"BatchNormalization {node.name!r} reads a tensor of unknown rank.")
        axes = [i for i in range(x.rank) if i != 1]
        column = [1, -1] + [1] * (x.rank - 2)
        batch_mean = op.ReduceMean(x, axes, keepdims=1)
        centred = x - batch_mean
        batch_var = op.ReduceMean(centred * centred, axes, keepdims=1)
        factor = op.Reshape(scale, column) / op.Sqrt(batch_var + _attribute(node, "epsilon", 1e-5))
        result = centred * factor + op.Reshape(bias, column)
        momentum = _attribute(node, "momentum", 0.9)
        for running, batch in ((mean, batch_mean), (var, batch_var)):
            name = str(running.value.name)
            if name not in self.graph.initializers:
                raise InvalidModelError(
                    f"BatchNormalization {node.name!r}: its statistics {name!r} are no constants, "
                    "they cannot be updated. Use batch_norm='frozen'."
                )
            new = momentum * running + (1 - momentum) * op.Reshape(batch, [-1])
            new.value.shape = running.value.shape
            self.statistics[name] = str(new.value.name)
        self._replace(node, result)

    def dropout(self, node: ir.Node, on: bool, seed: int) -> None:
        """Drop elements by a mask of (seed, step), or none."""
        op = self.op
        (x,) = (op.wrap(v) for v in node.inputs[:1] if v is not None)
        ratio = self._ratio(node)
        if not on or ratio == 0:
            self._replace(node, op.Identity(x))
            return
        self.masks += 1
        if self.step is None:
            self.step = op.input(op.unique("step_count"), ir.DataType.INT64, [])
        kept = random.uniform(op, x, random.key(seed, self.masks), self.step) >= ratio
        scaled = op.Cast(kept, to=x.dtype) * (1 / (1 - ratio))
        self._replace(node, x * scaled)

    def _ratio(self, node: ir.Node) -> float:
        if len(node.inputs) < 2 or node.inputs[1] is None:
            return float(_attribute(node, "ratio", 0.5))
        tensor = ir.convenience.get_const_tensor(node.inputs[1])
        if tensor is None:
            raise InvalidModelError(f"Dropout {node.name!r}: its ratio is computed, it must be a constant.")
        ratio = float(tensor.numpy().reshape(-1)[0])
        if not 0 <= ratio < 1:
            raise InvalidModelError(f"Dropout {node.name!r}: its ratio is {ratio}, it must be in [0, 1).")
        return ratio

    def finish(self) -> Modes:
        for initializer in self.op.initializers:
            self.graph.register_initializer(initializer)
        if self.step is not None:
            self.graph.inputs.append(self.step.value)
        self.graph.sort()
        return Modes(self.statistics, None if self.step is None else self.step.value.name)


def _attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else np.asarray(attribute.value).item()

"""Which node of a graph computes predictions, the loss, a gradient or a new weight.

Graphs that this library makes say in their metadata what their inputs and outputs are; the rest follows
from who reads whom. Passes move updates into the products that gradients come from: such a node is both, and
counts as an update.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.gradient.names import METADATA_KEY as GRADIENT_KEY
from onnxcustom.gradient.names import GradientNames
from onnxcustom.graph.analysis.traversal import reads

__all__ = ["PHASES", "Phase", "Roles", "node_phases"]

Phase = Literal["forward", "loss", "backward", "update"]
PHASES: tuple[Phase, ...] = ("forward", "loss", "backward", "update")

_STEP_KEY = "onnxcustom.step"


@dataclasses.dataclass(frozen=True)
class Roles:
    """What the inputs and outputs of a graph are, as its metadata has it.

    Attributes
    ----------
    kind : {'model', 'gradient', 'step'}
        An inference model, what :func:`onnxcustom.gradient_graph` makes, or the graph of a
        :class:`onnxcustom.TrainingStep`.
    kept : dict of str to list of str
        Weight -> graph inputs with it and its optimizer state.
    made : dict of str to list of str
        Weight -> graph outputs with its gradient, or with its new value and new state.
    scalars : tuple of str
        Learning rate, step and the like.
    predictions : tuple of str
        Tensors of the forward pass that the loss reads, or the model's outputs.
    loss : str or None
        Graph output.
    batch, expected : tuple of str
        Graph inputs that come with every batch, and those of them that only the loss reads.
    statistics : dict of str to str
        Running statistic -> graph output with its new value.
    """

    kind: Literal["model", "gradient", "step"]
    kept: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    made: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    scalars: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()
    loss: str | None = None
    batch: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    statistics: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model) -> Roles:
        """Read the metadata of a model.

        Raises
        ------
        InvalidModelError
            If it is no description of a gradient or a step.
        """
        found = model.metadata_props
        try:
            if _STEP_KEY in found:
                return cls._step(json.loads(found[_STEP_KEY]))._checked()
            if GRADIENT_KEY in found:
                return cls._gradient(GradientNames.of(model))._checked()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            key = _STEP_KEY if _STEP_KEY in found else GRADIENT_KEY
            raise InvalidModelError(
                f"The metadata entry {key!r} is not what this library writes ({type(error).__name__}: "
                f"{error}); delete it to have the graph drawn as any other model."
            ) from error
        return cls("model", predictions=tuple(_names(model.graph.outputs)))

    def _checked(self) -> Roles:
        """Names are text, whatever the metadata may say."""
        lists = [
            *self.kept.values(),
            *self.made.values(),
            self.scalars,
            self.predictions,
            self.batch,
            self.expected,
        ]
        names = [name for names in lists for name in names] + [*self.kept, *self.made, *self.statistics]
        names += [*self.statistics.values(), *([] if self.loss is None else [self.loss])]
        wrong = [name for name in names if not isinstance(name, str)]
        if wrong:
            raise TypeError(f"{wrong[0]!r:.40} is no name")
        return self

    @classmethod
    def _gradient(cls, names: GradientNames) -> Roles:
        made = {w: [names.gradients[w]] for w in names.weights if w in names.gradients}
        return cls("gradient", {w: [w] for w in names.weights}, made, predictions=names.outputs)

    @classmethod
    def _step(cls, says: Mapping[str, Any]) -> Roles:
        kept: dict[str, list[str]] = {w: [w] for w in says["weights"] or says["accumulated"]}
        made: dict[str, list[str]] = {w: [new] for w, new in says["weights"].items()}
        pairs = [(w, old, new) for w, states in says["state"].items() for old, new in states.values()]
        pairs += [(w, old, new) for w, (old, new) in says["accumulated"].items()]
        pairs += [(pack, pack, new) for pack, (new, _) in says["packs"].items()]
        pairs += [(w, None, rows) for w, rows in says["rows"].items()]
        for w, old, new in pairs:
            kept.setdefault(w, []).extend([old] if old is not None else [])
            made.setdefault(w, []).extend([new] if new is not None else [])
        scalars = [says["learning_rate"], says["step"], *says["hyper"].values(), says["share"]]
        expected = [*says["expected"].values(), says["sample_weight"]]
        expected = [name for name in expected if name is not None]
        return cls(
            "step",
            kept,
            made,
            tuple(s for s in scalars if s is not None),
            tuple(says.get("predicted", {}).values()),
            says["loss"],
            (*says["inputs"], *expected),
            tuple(expected),
            dict(says["statistics"]),
        )


def node_phases(model: ir.Model, roles: Roles) -> dict[ir.Node, Phase]:
    """Say of each node of the main graph what it is there for.

    Parameters
    ----------
    model : onnx_ir.Model
        Any model.
    roles : Roles
        Of that model.

    Returns
    -------
    dict of onnx_ir.Node to {'forward', 'loss', 'backward', 'update'}
        In the order of the graph.
    """
    flow = _Flow(model.graph)
    if roles.kind == "model":
        return dict.fromkeys(flow.nodes, "forward")
    forward, loss = _forward_and_loss(flow, roles)
    if roles.kind == "gradient":
        return {node: "forward" if node in forward else "backward" for node in flow.nodes}
    rest = [node for node in flow.nodes if node not in forward and node not in loss]
    phases: dict[ir.Node, Phase] = dict.fromkeys(flow.nodes, "backward")
    phases.update(dict.fromkeys(_updates(flow, roles, rest), "update"))
    phases.update(dict.fromkeys(forward, "forward"))
    phases.update(dict.fromkeys(loss, "loss"))
    return phases


class _Flow:
    """Who reads whom in the main graph, what subgraphs read included."""

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes = list(graph)
        self.before: dict[ir.Node, set[ir.Node]] = {}
        self.after: dict[ir.Node, set[ir.Node]] = {node: set() for node in self.nodes}
        self.readers: dict[str, set[ir.Node]] = {}
        self.makers: dict[str, ir.Node] = {}
        for node in self.nodes:
            self.makers.update((v.name, node) for v in node.outputs if v.name)
            values = reads(node)
            self.before[node] = {p for v in values if (p := v.producer()) in self.after}
            for maker in self.before[node]:
                self.after[maker].add(node)
            for value in values:
                self.readers.setdefault(value.name or "", set()).add(node)

    def up(self, names: Iterable[str]) -> set[ir.Node]:
        """The nodes that tensors are computed by."""
        return _closure((self.makers[n] for n in names if n in self.makers), self.before)

    def down(self, names: Iterable[str]) -> set[ir.Node]:
        """The nodes that depend on tensors."""
        return _closure((node for n in names for node in self.readers.get(n, ())), self.after)


def _closure(start: Iterable[ir.Node], step: Mapping[ir.Node, set[ir.Node]]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    todo = list(start)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(step[node])
    return found


def _forward_and_loss(flow: _Flow, roles: Roles) -> tuple[set[ir.Node], set[ir.Node]]:
    needed = flow.up([] if roles.loss is None else [roles.loss])
    known = [name for name in roles.predictions if name in flow.makers]
    if known or roles.kind == "gradient":
        forward = flow.up(known)
    else:
        # A step that does not name its predictions: what the loss needs and no expected value is part of.
        forward = needed - flow.down([*roles.expected, *roles.scalars])
    return forward, needed - forward


def _updates(flow: _Flow, roles: Roles, rest: list[ir.Node]) -> set[ir.Node]:
    """Of the nodes that are neither forward nor loss, those between gradients and new weights."""
    inside = set(rest)
    results = {name for names in roles.made.values() for name in names}
    named = _gradients(rest)
    gradients: list[str] = []
    update: set[ir.Node] = set()
    for weight, kept in roles.kept.items():
        found = named.get(weight, [])
        gradients += found
        if not found:
            # The gradient was folded into its update: what reads the old value on the way to the new one.
            old = [node for name in kept for node in flow.readers.get(name, ()) if node in inside]
            update |= _closure(old, flow.after) & flow.up(roles.made.get(weight, ()))
    states = [name for kept in roles.kept.values() for name in kept[1:]]
    update |= flow.down([*gradients, *states])
    update |= flow.up(roles.statistics.values()) - flow.up([*gradients, *results])
    update &= inside
    # What is left is backward, but for factors of an update that see no data, such as powers of the step.
    left = inside - update
    backward = left & (flow.down(roles.batch) | flow.up(gradients))
    backward |= left & _closure(backward, flow.before)
    return update | (left - backward)


def _gradients(nodes: Iterable[ir.Node]) -> dict[str, list[str]]:
    """Weight -> tensors with its gradient, by the names that differentiation gave them."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        for value in node.outputs:
            match = re.fullmatch(r"(.+)_grad(_\d+)?", value.name or "", re.DOTALL)
            if match:
                found.setdefault(match[1], []).append(match[0])
    return found


def _names(values: Iterable[ir.Value]) -> list[str]:
    return [v.name for v in values if v.name]

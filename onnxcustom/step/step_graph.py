"""A step graph and what its inputs and outputs are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection

import onnx_ir as ir

from onnxcustom.step.passes.scalars import ScalarPlan
from onnxcustom.step.passes.showing import shown_in

__all__ = ["METADATA_KEY", "ComposedStep"]

METADATA_KEY = "onnxcustom.step"


@dataclasses.dataclass
class ComposedStep:
    """A step graph and the names of its inputs and outputs.

    Attributes
    ----------
    model : onnx_ir.Model
        The graph.
    inputs : list of str
        Inputs of the user's model.
    predicted : dict of str to str
        Output of the user's model -> tensor of the graph that its loss is taken on.
    expected : dict of str to str
        Output of the user's model -> graph input with its expected values.
    sample_weight : str or None
        Graph input with one weight per row, if the step is weighted.
    learning_rate, step : str
        Scalar graph inputs.
    hyper : dict of str to str
        Hyper-parameter with a schedule -> scalar graph input.
    share : str or None
        Scalar graph input with the share of this batch's rows in those accumulated, if gradients are.
    counts : dict of str to str
        Output of the user's model -> scalar graph input with what its loss is divided by: the labels that
        count, or rows; those of them that the graph does not count by itself.
    loss : str
        Scalar graph output.
    heads : str or None
        Graph output with the loss of every output of the user's model, without its factor, if several are
        trained.
    finite : str or None
        Graph output with one number for each of :attr:`checked`: 0, or NaN if its gradient holds NaN or
        infinity. None where the graph does not look for it.
    checked : list of str
        Weights.
    weights : dict of str to str
        Weight (graph input) -> graph output with its new value, empty if the step only accumulates.
    state : dict of str to dict
        Weight -> state name -> (graph input, graph output).
    packs : dict of str to (str, list of str)
        Graph input with several small weights, or one state of each, side by side -> graph output with
        their new values, and the names of what lies in it. Weights in it are inputs by themselves too;
        their states are not, and none of them has an output of its own.
    statistics : dict of str to str
        Running statistic of a BatchNormalization (graph input) -> graph output with its new value.
    accumulated : dict of str to (str, str or None)
        Weight -> graph input with the mean gradient so far, graph output with the new one.
    rows : dict of str to str
        Weight updated by rows -> graph output with their indices. For it, :attr:`weights` and
        :attr:`state` name outputs that hold these rows only.
    ones : dict of str to int
        Graph input with a one for each row of the batch -> its rank: (rows,) or (1, rows).
    batch_axis : dict of str to int or None
        Graph input that comes with every batch -> axis of its rows; None if it is given once a batch.
    gradients : dict of str to str
        Weight -> graph output with its gradient, or graph input for it, if the step is one part of an update.
    more : dict of str to str
        Expected values beside the first of an output whose loss takes several -> graph input.
    scalars : ScalarPlan
        What scalar inputs are, and how the loss becomes of what the graph hands out as such.
    shown : collection of str
        Graph inputs, states or packs of them, whose new values are finite if the new weights are.
    """

    model: ir.Model
    inputs: list[str]
    predicted: dict[str, str]
    expected: dict[str, str]
    sample_weight: str | None
    learning_rate: str
    step: str
    hyper: dict[str, str]
    share: str | None
    loss: str
    heads: str | None
    finite: str | None
    checked: list[str]
    weights: dict[str, str]
    state: dict[str, dict[str, tuple[str, str | None]]]
    packs: dict[str, tuple[str, list[str]]]
    statistics: dict[str, str]
    accumulated: dict[str, tuple[str, str | None]]
    rows: dict[str, str]
    ones: dict[str, int]
    scalars: ScalarPlan
    batch_axis: dict[str, int | None] = dataclasses.field(default_factory=dict)
    gradients: dict[str, str] = dataclasses.field(default_factory=dict)
    counts: dict[str, str] = dataclasses.field(default_factory=dict)
    more: dict[str, str] = dataclasses.field(default_factory=dict)
    shown: Collection[str] = ()

    @property
    def counted(self) -> tuple[int, int] | None:
        """What tells the rows of a batch: place in :attr:`batch` and axis; None where it is always one."""
        axes = (self.batch_axis[name] for name in self.inputs)
        return next(((i, axis) for i, axis in enumerate(axes) if axis is not None), None)

    @property
    def whole(self) -> dict[str, str]:
        """What is rewritten as a whole, weights, states and packs: graph input -> graph output."""
        weights = {w: new for w, new in self.weights.items() if w not in self.rows}
        states = (pairs for w, pairs in self.state.items() if w not in self.rows)
        made = {old: new for pairs in states for old, new in pairs.values() if new is not None}
        return {**weights, **made, **{old: new for old, (new, _) in self.packs.items()}}

    def look_at_weights(self) -> None:
        """Find out which states are finite if the weights are."""
        weights = {name for name in self.weights if name not in self.rows}
        weights |= {old for old, (_, members) in self.packs.items() if set(members) <= set(self.state)}
        whole = self.whole
        states = {old: new for old, new in whole.items() if old not in weights}
        self.shown = shown_in(self.model, states, [whole[w] for w in weights if w in whole])

    @property
    def rewritten(self) -> set[str]:
        """Graph outputs that are bound to memory of the state's."""
        sums = {new for _, new in self.accumulated.values() if new is not None}
        return {*self.whole.values(), *self.statistics.values(), *sums}

    @property
    def by_rows(self) -> dict[str, dict[str, str]]:
        """For each weight updated by rows, weight and states: graph input -> graph output of the rows."""
        made = {w: {old: new for old, new in self.state[w].values() if new is not None} for w in self.rows}
        return {w: {w: self.weights[w], **states} for w, states in made.items()}

    @property
    def batch(self) -> list[str]:
        """Graph inputs that come with every batch, in order."""
        rows = [] if self.sample_weight is None else [self.sample_weight]
        return [*self.inputs, *self.given, *rows]

    @property
    def given(self) -> list[str]:
        """Graph inputs with expected values, in order."""
        return [*self.expected.values(), *self.more.values()]

    def describe(self) -> None:
        """Say in the model's metadata, in JSON, what its inputs and outputs are."""
        private = (
            "model",
            "ones",
            "scalars",
            "shown",
            *(n for n in ("gradients", "counts", "more") if not getattr(self, n)),
        )
        description = {k: v for k, v in vars(self).items() if k not in private}
        self.model.metadata_props[METADATA_KEY] = json.dumps(description)

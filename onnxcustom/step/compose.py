"""Composition of training steps: models go in, one model comes out, nothing is run.

A training step is forward, loss, penalty, backward and update in ONE graph; running it is the
business of :mod:`onnxcustom.step.program`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxcustom.gradient.build import differentiate
from onnxcustom.gradient.interface import Engine
from onnxcustom.graph.building.builder import Var
from onnxcustom.graph.preparation.passes import BypassReshapePass, NameRowsPass
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.graph.trainable.roles import Role, weight_roles
from onnxcustom.objective import BaseLearningPenalty
from onnxcustom.optim import BaseLearningRate
from onnxcustom.step.passes.folding import fold_updates
from onnxcustom.step.passes.products import bias_products
from onnxcustom.step.passes.recompute import recompute
from onnxcustom.step.passes.scalars import plan_scalars
from onnxcustom.step.passes.sparse import CutTable, cut_tables, gather_only

from .assembling import assemble, scalar_sources
from .batch import Weighted
from .cut import Cut, Phase, cut_at_gradients
from .forward import compose_forward, compose_scores, trunk
from .gradients import Gradients
from .modes import ModeSettings, set_modes
from .step_graph import ComposedStep
from .targets import Target
from .updates import Scalars, Updates, compose_updates

__all__ = [
    "ComposedStep",
    "Phase",
    "StepOptions",
    "Weighted",
    "compose_forward",
    "compose_scores",
    "compose_step",
    "trunk",
]


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step graph does what it does.

    Parameters
    ----------
    weighted : bool or 'labels'
        Whether the graph takes one weight per row, or one per label.
    phase : {'update', 'gradient', 'accumulate', 'apply'}
        Whether the step updates the weights; or is what of this lies before the cut at the gradients, which
        it hands out, or adds to those accumulated; or what lies behind it, without a batch: it takes the
        gradients, or those accumulated. Penalties have their gradient behind the cut.
    axes : BatchAxes, optional
        Where the rows of the inputs are, by default what the model itself tells.
    modes : ModeSettings
        How BatchNormalization and Dropout behave.
    born : mapping of str to int
        Updates done when a weight joined, where it was not there from the beginning.
    check : bool
        Whether the graph says if the gradients are finite.
    fold : bool
        Whether the graph is simplified, and the learning rate goes into the seeds and updates into the
        products of matrices, where the optimizer allows it.
    lean : bool
        Whether small weights are updated together where the optimizer allows it, and who runs the graph does
        arithmetic of scalars beside it and feeds it what only depends on the number of rows: it is then not
        to be read without :attr:`ComposedStep.plan`.
    again : bool
        Whether the backward pass computes cheap activations again in place of keeping them.
    """

    weighted: Weighted = False
    phase: Phase = "update"
    axes: BatchAxes | None = None
    modes: ModeSettings = ModeSettings()  # noqa: RUF009 - frozen
    born: Mapping[str, int] = dataclasses.field(default_factory=dict)
    check: bool = False
    fold: bool = True
    lean: bool = False
    again: bool = False


def compose_step(
    model: ir.Model,
    engine: Engine,
    targets: Sequence[Target],
    weights: Sequence[str],
    optimizer: BaseLearningRate,
    penalties: Mapping[str, BaseLearningPenalty],
    options: StepOptions = StepOptions(),
) -> ComposedStep:
    """Join everything one training step does into one graph.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model (see :func:`onnxcustom.graph.prepare`); consumed.
    engine, targets, weights, optimizer, penalties
        Gradient engine, outputs and their losses, names of the weights to train, update rule, and the
        penalty of those weights that have one.
    options : StepOptions
        How.

    Returns
    -------
    ComposedStep
        The graph: inputs are the model's inputs, the expected values, the row weights, the
        weights, the state, the running statistics and scalars; outputs are the loss, the new weights,
        the new state and the new statistics.
    """
    part, roles = _gradients(model, engine, targets, weights, optimizer, penalties, options)
    part.objective(targets)
    extra = part.add_penalties(penalties)
    if optimizer.accumulate == 1 and options.phase == "update":
        part.gradients.update(Cut(part.gradients).plus(part, extra))
        extra = {}
    if options.phase == "apply":
        part.without_batch()
    elif options.check:
        part.look_for_nan()
    cut = cut_at_gradients(part, optimizer, options.phase)
    updated, hyper = Updates(), dict[str, Var]()
    if options.phase in ("update", "apply"):
        hyper = {name: part.op.input(part.op.unique(name), part.dtype, []) for name in optimizer.scheduled}
        updated = _updates(part, cut.plus(part, extra), hyper, optimizer, roles, options)
    return _rewritten(assemble(part, cut, updated, hyper), part, scalar_sources(part, cut, hyper), options)


def _gradients(
    model: ir.Model,
    engine: Engine,
    targets: Sequence[Target],
    weights: Sequence[str],
    optimizer: BaseLearningRate,
    penalties: Mapping[str, BaseLearningPenalty],
    options: StepOptions,
) -> tuple[Gradients, Mapping[str, Role]]:
    """The gradient graph of a model, to be given an objective, and what its weights are."""
    values = list(dict.fromkeys(t.value for t in targets))
    axes = options.axes or BatchAxes(model)
    if options.fold:
        if axes.carrier is not None:
            NameRowsPass(axes.carrier, axes.inputs[axes.carrier] or 0)(model)
        BypassReshapePass()(model)
    rewritten = set_modes(trunk(model, values), options.modes)
    roles = weight_roles(model, weights)
    made = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.extend(made[new] for new in rewritten.statistics.values())
    whole = optimizer.accumulate == 1 and options.phase == "update"
    tables: dict[str, CutTable] = {}
    if whole and optimizer.by_rows and getattr(optimizer, "lazy_update", False):
        # A penalty has a gradient of its own in every row.
        tables = cut_tables(model, gather_only(model, [w for w in weights if w not in penalties]))
    dense = [w for w in weights if w not in tables]
    rows = [rows for table in tables.values() for _, rows in table.reads]
    gradient = differentiate(model, engine, dense, rows, values)
    prescaled = whole and options.fold and optimizer.prescalable
    return (
        Gradients(gradient, options.weighted, axes, rewritten, weights, tables, prescaled, options.lean),
        roles,
    )


def _updates(
    part: Gradients,
    gradients: Mapping[str, Var],
    hyper: dict[str, Var],
    optimizer: BaseLearningRate,
    roles: Mapping[str, Role],
    options: StepOptions,
) -> Updates:
    """New weight and new state of every weight."""
    scalars = Scalars(part.learning_rate, part.step, hyper)
    return compose_updates(
        part.op,
        optimizer,
        part.weights,
        gradients,
        part.sparse,
        roles,
        scalars,
        options.born,
        part.prescaled,
        options.lean,
    )


def _rewritten(
    composed: ComposedStep, part: Gradients, sources: Mapping[str, str], options: StepOptions
) -> ComposedStep:
    """A step as it should run."""
    reads_batch = options.phase != "apply"
    if options.again and reads_batch:
        recompute(composed.model, part.seeds)
    if options.lean and reads_batch:
        composed.ones = bias_products(composed.model, part.batch_rows, part.dtype, part.op.unique)
    if options.fold:
        fold_updates(composed.model)
    composed.plan = plan_scalars(composed.model, composed.loss, sources, hoist=options.lean)
    composed.describe()
    return composed

"""Composition of training steps: models go in, one model comes out, nothing is run.

A training step is forward, loss, penalty, backward and update in ONE graph; running it is the
business of :mod:`onnxcustom.step.program`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxcustom.gradient.build import differentiate
from onnxcustom.gradient.cuda_forms import spell_for_cuda
from onnxcustom.gradient.host import HERE, Host
from onnxcustom.gradient.interface import Engine
from onnxcustom.graph.building.builder import Var
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.objective import BaseLearningPenalty
from onnxcustom.step.passes.blocks import in_blocks
from onnxcustom.step.passes.folding import fold_updates
from onnxcustom.step.passes.products import bias_products
from onnxcustom.step.passes.ranks import widen_scalars
from onnxcustom.step.passes.recompute import recompute
from onnxcustom.step.passes.scalars import plan_scalars
from onnxcustom.step.passes.sparse import cut_tables
from onnxcustom.tuning.changes import Term

from .assembling import assemble, scalar_sources
from .batch import Weighted
from .counting import counts_fed
from .cut import Cut, Phase, cut_at_gradients
from .forward import compose_forward, compose_scores, trunk
from .gradients import Gradients
from .modes import ModeSettings, set_modes
from .plan import Plan
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
    """Which step graph is meant, and how it does what it does.

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
    seed : int
        Of the masks.
    fold : bool
        Whether the graph is simplified, and updates go into the products of matrices, where the optimizer
        allows it.
    again : bool
        Whether the backward pass computes cheap activations again in place of keeping them.
    host : Host
        Where the graph is going to run.
    terms : sequence of Term
        Tensors of the model that are a part of the objective beside the losses.
    """

    weighted: Weighted = False
    phase: Phase = "update"
    axes: BatchAxes | None = None
    modes: ModeSettings = ModeSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    fold: bool = True
    again: bool = False
    host: Host = HERE
    terms: Sequence[Term] = ()


def compose_step(
    model: ir.Model,
    engine: Engine,
    targets: Sequence[Target],
    penalties: Mapping[str, BaseLearningPenalty],
    plan: Plan,
    options: StepOptions = StepOptions(),
) -> ComposedStep:
    """Join everything one training step does into one graph.

    Parameters
    ----------
    model : onnx_ir.Model
        What the targets are computed from, prepared (see :func:`trunk`); consumed.
    engine, targets, penalties
        Gradient engine, outputs and their losses, and the penalty of those weights that have one.
    plan : Plan
        What is trained, and how it is updated.
    options : StepOptions
        Which graph.

    Returns
    -------
    ComposedStep
        The graph: inputs are the model's inputs, the expected values, the row weights, the
        weights, the state, the running statistics and scalars; outputs are the loss, the new weights,
        the new state and the new statistics.
    """
    optimizer, phase = plan.rule, options.phase
    whole = optimizer.accumulate == 1 and phase == "update"
    plan = plan if whole else plan.apart()
    part = _gradients(model, engine, targets, plan, options)
    part.objective(targets, options.terms)
    extra = part.add_penalties(penalties)
    if whole:
        part.gradients.update(Cut(part.gradients).plus(part, extra))
        extra = {}
    if phase == "apply":
        part.without_batch()
    elif plan.checked:
        part.look_for_nan()
    cut = cut_at_gradients(part, optimizer, phase)
    updated, hyper = Updates(), dict[str, Var]()
    if phase in ("update", "apply"):
        hyper = {name: part.op.input(part.op.unique(name), part.dtype, []) for name in optimizer.scheduled}
        scalars = Scalars(part.learning_rate, part.step, hyper)
        updated = compose_updates(part.op, plan, part.weights, cut.plus(part, extra), part.sparse, scalars)
    composed = assemble(part, cut, updated, hyper)
    return _rewritten(composed, part, scalar_sources(part, cut, hyper), plan, options)


def _gradients(
    model: ir.Model, engine: Engine, targets: Sequence[Target], plan: Plan, options: StepOptions
) -> Gradients:
    """The gradient graph of a model, to be given an objective."""
    axes = options.axes or BatchAxes(model)
    rewritten = set_modes(model, options.modes, options.seed)
    made = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.extend(made[new] for new in rewritten.statistics.values())
    tables = cut_tables(model, plan.by_rows, plan.weights, options.host)
    dense = [w for w in plan.weights if w not in tables]
    rows = [rows for table in tables.values() for _, rows in table.reads]
    values = list(dict.fromkeys([t.value for t in targets] + [t.value for t in options.terms]))
    gradient = differentiate(model, engine, dense, rows, values, options.host)
    fed = counts_fed(targets, plan.rule.accumulate, options.phase, plan.outside)
    return Gradients(gradient, options.weighted, axes, rewritten, plan, tables, fed)


def _rewritten(
    composed: ComposedStep, part: Gradients, sources: Mapping[str, str], plan: Plan, options: StepOptions
) -> ComposedStep:
    """A step as it should run."""
    reads_batch = options.phase != "apply"
    if options.again and reads_batch:
        recompute(composed.model, part.seeds)
    if plan.outside and reads_batch:
        composed.ones = bias_products(composed.model, part.batch_rows, part.dtype, part.op.unique)
    if options.fold:
        fold_updates(composed.model, composed.rewritten if plan.outside else ())
    if options.host.device == "cuda":
        spell_for_cuda(composed.model)
    composed.scalars = plan_scalars(composed.model, composed.loss, sources, hoist=plan.outside)
    if plan.outside:
        composed.look_at_weights()
        in_blocks(composed.model, composed.rewritten)
    if options.fold:
        widen_scalars(composed.model, composed.scalars.names if plan.outside else ())
    composed.describe()
    return composed

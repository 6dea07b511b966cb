"""What is trained, on what and how: everything about a training step that no step changes."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxcustom._garbage import collected_later
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import (
    InvalidDataError,
    InvalidModelError,
    NoTrainableWeightError,
    RowsWarning,
    UnknownNameError,
)
from onnxcustom.feed.specs import TensorSpec, tensor_specs, with_axis, with_limits
from onnxcustom.gradient.choice import select_engine
from onnxcustom.gradient.cuda_forms import spell_for_cuda
from onnxcustom.gradient.host import Host
from onnxcustom.gradient.interface import Engine, form_of
from onnxcustom.graph import Prepared, Selection, constants, to_ir, with_constants, written
from onnxcustom.graph.analysis.lookups import lookups
from onnxcustom.graph.building.builder import Builder
from onnxcustom.graph.files.feature_names import read_feature_names
from onnxcustom.graph.preparation.passes import BypassReshapePass, NameRowsPass
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.graph.trainable.finding import array_of
from onnxcustom.graph.trainable.selection import Catalog, is_word
from onnxcustom.objective import BaseLearningPenalty, select_penalties
from onnxcustom.optim import BaseLearningRate
from onnxcustom.optim.averaging import AVERAGE, Average
from onnxcustom.runtime.bfloat16 import WAY_OUT, check_bfloat16
from onnxcustom.runtime.devices import parse_device
from onnxcustom.tuning.changes import Change, Changed, Term, changed

from .compose import (
    Phase,
    StepOptions,
    Weighted,
    compose_forward,
    compose_scores,
    compose_step,
    trunk,
)
from .heads import Heads, heads_of
from .inference import runnable, without_numbers
from .joining import join
from .layout import Layout
from .modes import ModeSettings, idle_modes
from .plan import BEGINNING, Origin, Plan, make_plan
from .rows import doubtful_rows
from .step_graph import ComposedStep
from .targets import Target, prediction_tensors, select_targets

__all__ = ["Recipe", "check_types", "make_recipe"]


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """What a training step is made from.

    It gives the graphs, and what the data has to be for them. It holds no session and nothing that training
    changes, so it can be pickled, and be shared by whoever runs it. What is derived is derived once.

    Parameters
    ----------
    prepared : Prepared
        The user's model.
    weights : tuple of str
        What is trained.
    targets : tuple of Target
        Outputs and their losses.
    rule : BaseLearningRate
        Update rule; its clock is none of the recipe's business.
    penalties : mapping of str to BaseLearningPenalty
        By weight.
    engine : Engine
        Gradient engine.
    modes : ModeSettings
        How BatchNormalization and Dropout behave.
    batch_axis : mapping of str to int or None, optional
        Axes of the rows that the user has named.
    passes, recompute : bool
        Whether graphs are rewritten to run faster, and to keep less.
    weighted : bool
        Whether the graph that training begins with takes weights of rows.
    host : bool
        Whether tensors live in host memory: only there a part of one can be seen as another.
    moved : mapping of str to ndarray
        Constants of the model that another step has handed on, so that they are no longer the user's.
    columns : mapping of str to tuple of str
        Names of columns by input, where they are not the model's own.
    average : Average or None
        The moving average that is kept of every weight.
    joins : tuple of tuple of str
        Outputs that a loss takes side by side.
    penalty : optional
        Penalties as the user has said them, for weights that join later.
    joined : tuple of str
        Those of the weights that have joined in the middle of training.
    changes : tuple of Changed
        How `prepared` came about, where it is not the user's model itself.
    terms : tuple of Term
        What these have in the objective beside the losses.
    """

    prepared: Prepared
    weights: tuple[str, ...]
    targets: tuple[Target, ...]
    rule: BaseLearningRate
    penalties: Mapping[str, BaseLearningPenalty]
    engine: Engine
    modes: ModeSettings = ModeSettings()  # noqa: RUF009 - frozen
    batch_axis: Mapping[str, int | None] | None = None
    passes: bool = True
    recompute: bool = False
    weighted: bool = False
    host: bool = True
    moved: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    average: Average | None = None
    joins: tuple[tuple[str, ...], ...] = ()
    penalty: Any = None
    joined: tuple[str, ...] = ()
    changes: tuple[Changed, ...] = ()
    terms: tuple[Term, ...] = ()

    #: Where graphs are kept from one process to the next; not part of what is pickled.
    built: ClassVar[Any] = None

    #: Where the training counts from, of a recipe that an older version has written, which had this in it.
    older_origin = BEGINNING

    # -- another one ---------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Recipe:
        """A recipe that differs in these fields, and goes on using what does not depend on them."""
        made = dataclasses.replace(self, **changes)
        kept = [name for name, fields in _DERIVED_FROM.items() if not fields & set(changes)] + ["built"]
        made._derived().update({k: v for k, v in vars(self).items() if k in kept})
        return made

    def _derived(self) -> dict[str, Any]:
        """Where :func:`functools.cached_property` keeps what was derived."""
        return vars(self)

    def __getstate__(self) -> dict[str, Any]:
        state = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        state["changes"] = tuple(made.change for made in self.changes)  # which are made again
        del state["prepared"]
        return {"proto": self.source.proto, **state}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        source = Prepared.of(state["proto"])
        changes = changed(source, state.get("changes", ()), state["targets"])
        prepared = changes[-1].prepared if changes else source
        state = {**state, "prepared": prepared, "changes": changes}
        if not isinstance(state["moved"], Mapping):  # of an older version, whose model has them already
            state["moved"] = constants(state["prepared"], state["moved"])
        vars(self).update({f.name: state[f.name] for f in dataclasses.fields(self) if f.name in state})
        if "born" in state:
            vars(self)["older_origin"] = Origin.of(state["born"], vars(state["modes"])["seed"])

    # -- the model -----------------------------------------------------------------------------------

    @property
    def source(self) -> Prepared:
        """The user's own model."""
        return self.changes[0].source if self.changes else self.prepared

    @property
    def choices(self) -> Prepared:
        """The model that weights are chosen from."""
        return self.changes[-1].choices if self.changes else self.prepared

    @functools.cached_property
    def model(self) -> Prepared:
        """The model with the constants that were handed on."""
        return with_constants(self.prepared, self.moved) if self.moved else self.prepared

    @functools.cached_property
    def base(self) -> ir.Model:
        """The model, prepared, without the numbers in weights that are trained; not to be changed."""
        return without_numbers(join(self.model.take(), self.joins), self.weights)

    @property
    def constants(self) -> frozenset[str]:
        """Names of the constants, weights among them, that can be written back into the user's model."""
        return frozenset(written(self.prepared))

    def check_variances(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Refuse variances of BatchNormalization that are negative.

        Raises
        ------
        InvalidDataError
            Which one, by its name among `tensors`.
        """
        for node in ir.traversal.RecursiveGraphIterator(self.base.graph):
            if node.op_type != "BatchNormalization" or node.domain or len(node.inputs) < 5:
                continue
            name = "" if node.inputs[4] is None else str(node.inputs[4].name)
            if name in tensors and (np.asarray(tensors[name]) < 0).any():
                raise InvalidDataError(f"The variance {name!r} has negative numbers.")

    @functools.cached_property
    def settled(self) -> bool:
        """Whether it is certain which axis of every prediction holds the classes."""
        return all(target.settled for target in self.targets)

    def output_axis(self, name: str) -> int | None:
        """Axis of the rows in an output that is predicted, None if it has none."""
        return self.axes.of(self.predicted.get(name, name), name)

    @functools.cached_property
    def axes(self) -> BatchAxes:
        """Where the rows of inputs and outputs are."""
        return BatchAxes(self.base, self.batch_axis)

    @functools.cached_property
    def trunk(self) -> Prepared:
        """Of the model what the losses are computed from."""
        return _trunk(self.base, self.targets, self.terms, self.axes, self.passes)

    # -- graphs --------------------------------------------------------------------------------------

    def plan(self, origin: Origin) -> Plan:
        """How weights are updated: see :func:`~onnxcustom.step.plan.make_plan`."""
        model = self.trunk.model
        about = (self.weights, self.rule, self.penalties, origin)
        return make_plan(model, *about, average=self.average, fast=self.passes, host=self.host)

    def first_state(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        """What is kept of a weight that was never updated: the rule's state, and its average."""
        average = {} if self.average is None else {AVERAGE: self.average.first(weight)}
        return {**self.rule.create_state(weight), **average}

    @collected_later()
    def compose(
        self,
        weighted: Weighted,
        phase: Phase = "update",
        lean: bool = True,
        origin: Origin = BEGINNING,
        masked: bool = True,
    ) -> ComposedStep:
        """A graph of the step.

        Parameters
        ----------
        weighted : bool or 'labels'
            Whether it takes one weight per row, or one per label.
        phase : {'update', 'gradient', 'accumulate', 'apply'}
            What it does: see :func:`~onnxcustom.step.compose.compose_step`.
        lean : bool, default=True
            Whether it may be one that is read with its plan of scalars only.
        origin : Origin, optional
            Where the training counts from, by default from its first step.
        masked : bool, default=True
            Whether it looks for labels that are ignored; a batch without any needs no mask.
        """
        plan = self.plan(origin)
        targets = self.targets if masked else tuple(target.of_all() for target in self.targets)
        host = Host("cpu" if self.host else "cuda")
        options = StepOptions(
            weighted, phase, self.axes, self.modes, origin.seed, self.passes, self.recompute, host, self.terms
        )
        model = form_of(self.trunk, self.engine)
        return compose_step(
            model, self.engine, targets, self.penalties, plan if lean else plan.plain(), options
        )

    @functools.cached_property
    def _graphs(self) -> dict[tuple[Weighted, Phase, bool], tuple[Origin, ComposedStep]]:
        return {}

    def graph(
        self,
        weighted: Weighted | None = None,
        phase: Phase = "update",
        origin: Origin | None = None,
        masked: bool = False,
    ) -> ComposedStep:
        """:meth:`compose`, once; by default the graph that training begins with.

        Without an origin it is one of any: what comes with a batch does not depend on it.
        """
        key = (self.weighted if weighted is None else weighted, phase, masked)
        found = self._graphs.get(key)
        if found is None or origin not in (None, found[0]):
            origin = origin or BEGINNING
            compose = functools.partial(self.compose, *key[:2], origin=origin, masked=masked)
            made = compose() if self.built is None else self.built.graph(self, (key, origin), compose)
            found = self._graphs[key] = (origin, made)
        return found[1]

    def scores(self, weighted: Weighted) -> ir.Model:
        """The graph of one loss per row: see :func:`~onnxcustom.step.compose.compose_scores`."""
        model = form_of(self.trunk, self.engine)
        scores = compose_scores(model, self.targets, self.changed, weighted=weighted, terms=self.terms)
        if not self.host:
            spell_for_cuda(scores)
        return scores

    def forward(self) -> ir.Model:
        """The graph of what a user predicts: the tensors of :attr:`predicted`."""
        return compose_forward(runnable(Prepared(self.base)), list(self.predicted.values()), self.changed)

    @property
    def changed(self) -> list[str]:
        """Tensors of the model that training changes: weights and running statistics."""
        return [*self.weights, *self.graph().statistics]

    @functools.cached_property
    def predicted(self) -> dict[str, str]:
        """Outputs of the model that can be predicted, and the tensor that stands for each."""
        added = {term.value for term in self.terms}
        return {name: value for name, value in prediction_tensors(self.base).items() if name not in added}

    # -- data ----------------------------------------------------------------------------------------

    @functools.cached_property
    def inputs(self) -> list[TensorSpec]:
        """What the model's inputs want."""
        names = {**read_feature_names(self.prepared.proto), **self.columns}
        return with_limits(self._specs(self.graph().inputs), names, lookups(self.base))

    @functools.cached_property
    def expected(self) -> list[TensorSpec]:
        """What the losses want, named like the model's outputs; behind that what some want beside."""
        graph = self.graph()
        specs = self._specs(list(graph.expected.values()))
        made = []
        for target, spec in zip(self.targets, specs, strict=True):
            weighed = len(specs) == 1 and target.counts_labels and not target.soft
            group = None if target.loss.several is None else target.output
            made.append(dataclasses.replace(spec, name=target.expects[0], weighed=weighed, group=group))
        names = [(name, target.output) for target in self.targets for name in target.expects[1:]]
        more = zip(self._specs(list(graph.more.values())), names, strict=True)
        return made + [dataclasses.replace(spec, name=n, group=output) for spec, (n, output) in more]

    @functools.cached_property
    def scalar_dtype(self) -> np.dtype:
        """Dtype of row weights and of the learning rate: float64 if any weight is, else float32."""
        graph = self.graph()
        (spec,) = tensor_specs(v for v in graph.model.graph.inputs if v.name == graph.step)
        assert spec.dtype is not None
        return spec.dtype

    def mixing(self, target: Target) -> str | None:
        """The operator by which the loss of a target mixes rows of a batch, None if none is found."""
        if target.rows is None:
            return None
        graph = self.base.graph
        values = (*graph.inputs, *(v for node in graph for v in node.outputs))
        dtype = next(v.dtype for v in values if v.name == target.value)
        op = Builder(target.loss.opset)
        predicted = op.input("predicted", dtype or ir.DataType.FLOAT, target.shape)
        return target.loss.mixes_rows(predicted.dtype, Layout(op, target, predicted).moved.shape)

    def _specs(self, names: Sequence[str]) -> list[TensorSpec]:
        """Specifications of graph inputs that come with every batch."""
        graph = self.graph()
        values = {v.name: v for v in graph.model.graph.inputs}
        fixed = self.axes.rows()
        specs = tensor_specs(values[name] for name in names)
        return [with_axis(spec, graph.batch_axis[spec.name], fixed) for spec in specs]


#: Fields that derived attributes depend on: those that no change touches are handed on.
_DERIVED_FROM: Mapping[str, frozenset[str]] = {
    "model": frozenset({"prepared", "moved"}),
    "base": frozenset({"prepared", "moved", "weights", "joins"}),
    "axes": frozenset({"prepared", "weights", "batch_axis"}),
    "predicted": frozenset({"prepared", "weights"}),
    "trunk": frozenset({"prepared", "moved", "weights", "targets", "terms", "batch_axis", "passes"}),
    "_graphs": frozenset(f.name for f in dataclasses.fields(Recipe))
    - {"columns", "penalty", "joined", "changes"},
}


@collected_later()
def make_recipe(
    prepared: Prepared,
    loss: Any,
    rule: BaseLearningRate,
    engine: str | Engine,
    *,
    weights: Selection = None,
    freeze: Selection = None,
    penalty: Any = None,
    loss_weights: Mapping[str, float] | Sequence[float] | None = None,
    batch_axis: Mapping[str, int | None] | None = None,
    changes: Sequence[Change] = (),
    built: Any = None,
    **settings: Any,
) -> tuple[Recipe, dict[str, np.ndarray]]:
    """The recipe that a user's arguments mean, and the weights to begin with.

    Arguments, errors and warnings are those of :class:`~onnxcustom.TrainingStep`; `rule` is of the step's
    own, and `settings` are fields of :class:`Recipe` that need no model to be understood.
    """
    if not prepared.model.graph.inputs:
        raise InvalidModelError("The model has no inputs: there is nothing to train it on.")
    source = prepared.take()
    heads = heads_of(source, loss, loss_weights)
    made = _changed(prepared, changes, source, heads, batch_axis)
    if made:
        prepared = made[-1].prepared
        weights = _chosen_by(made) if weights is None else weights
    model = prepared.take() if made else source
    if settings.get("host", True):
        check_bfloat16(model, parse_device("cpu"))
    catalog = Catalog(made[-1].choices if made else prepared)
    initial = _choose_weights(catalog, model, prepared, weights, freeze)
    apart = catalog.integers_apart(list(initial)) if weights is None else ""
    if apart:
        warn_user(apart, UserWarning)
    initial.update({name: array_of(model.graph.initializers[name]) for c in made for name in c.also})
    initial = _without_frozen(rule, initial, catalog)
    join(model, heads.joins.values())
    axes = BatchAxes(model, batch_axis)
    targets = select_targets(model, heads.loss, heads.factors, initial, axes, heads.joins)
    check_types(model, initial, [target.output for target in targets])
    share, terms = math.prod(c.share for c in made), tuple(term for c in made for term in c.terms)
    targets = [dataclasses.replace(t, weight=t.weight * share) for t in targets] if made else targets
    base = without_numbers(model, initial)
    penalties = select_penalties(penalty, model, initial, [*catalog.names, *catalog.others])
    trunk = _trunk(base, targets, terms, axes, settings.get("passes", True))
    recipe = Recipe(
        prepared,
        tuple(initial),
        tuple(targets),
        rule,
        penalties,
        select_engine(engine, trunk),
        batch_axis={**batch_axis} if batch_axis else None,
        joins=tuple(heads.joins.values()),
        penalty=penalty,
        changes=made,
        terms=terms,
        **settings,
    )
    recipe._derived().update(base=base, axes=axes, trunk=trunk, built=built)
    _warn(recipe)
    return recipe, initial


def _chosen_by(made: Sequence[Changed]) -> list[str] | None:
    """What changes leave to be trained: a later one takes up nothing that an earlier one has frozen."""
    chosen: list[str] | None = None
    for change in made:
        if change.weights is None:
            continue
        frozen = set(change.source.model.graph.initializers).difference(chosen or ()) if chosen else ()
        chosen = [name for name in change.weights if name not in frozen]
    return chosen


def _changed(
    prepared: Prepared,
    changes: Sequence[Change],
    model: ir.Model,
    heads: Heads,
    batch_axis: Mapping[str, int | None] | None,
) -> tuple[Changed, ...]:
    """The model with what is to be done to it, which may depend on its losses."""
    if not changes:
        return ()
    axes = BatchAxes(model, batch_axis)
    join(model, heads.joins.values())
    targets = select_targets(model, heads.loss, heads.factors, (), axes, heads.joins)
    return changed(prepared, changes, targets)


def _warn(recipe: Recipe) -> None:
    """Say of a model what would be trained otherwise than it looks."""
    doubt = doubtful_rows(recipe.axes, {target.output: target.value for target in recipe.targets})
    if doubt is not None:
        warn_user(doubt, RowsWarning)
    for text in idle_modes(recipe.trunk.model, recipe.modes):
        warn_user(text, UserWarning)


def _trunk(
    base: ir.Model, targets: Sequence[Target], terms: Sequence[Term], axes: BatchAxes, passes: bool
) -> Prepared:
    model = to_ir(base)
    if passes:
        if axes.carrier is not None:
            NameRowsPass(axes.carrier, axes.inputs[axes.carrier] or 0)(model)
        BypassReshapePass()(model)
    return Prepared(trunk(model, list(dict.fromkeys([t.value for t in targets] + [t.value for t in terms]))))


def _choose_weights(
    catalog: Catalog, model: ir.Model, prepared: Prepared, weights: Selection, freeze: Selection
) -> dict[str, np.ndarray]:
    """The weights to train, checked."""
    names = catalog.select(weights, freeze)
    if isinstance(weights, (list, tuple)) and set(names) <= set(weights):
        names = [name for name in weights if name in names]  # a list of names keeps its order
    constants(prepared, [name for name in names if name in catalog.others])  # they can be written back
    values = model.graph.initializers
    return {name: array_of(values[name]) for name in names}


def check_types(model: ir.Model, weights: Collection[str], trained: Sequence[str]) -> None:
    """Refuse bfloat16 where NumPy and onnxruntime hand numbers to each other."""
    graph = model.graph
    outputs = [v for v in graph.outputs if v.name in trained]
    values = {"Input": graph.inputs, "Weight": [graph.initializers[n] for n in weights], "Output": outputs}
    for what, found in values.items():
        name = next((v.name for v in found if v.dtype == ir.DataType.BFLOAT16), None)
        if name is not None:
            raise InvalidModelError(
                f"{what} {name!r} is bfloat16, which onnxruntime takes from no array: a training step cannot "
                f"feed or update it. {WAY_OUT}{' Or freeze it.' if what == 'Weight' else ''}"
            )


def _without_frozen(
    rule: BaseLearningRate, weights: dict[str, np.ndarray], catalog: Catalog
) -> dict[str, np.ndarray]:
    """The weights that the rule updates; its options may only name weights that there are.

    What words mean, such as ``'first:1'``, may be frozen for now.
    """
    rule.bind_words(catalog)
    for option in ("frozen", "lr_mult", "wd_mult"):
        for pattern in getattr(rule, option) or ():
            if isinstance(pattern, numbers.Integral):
                known = 0 <= int(pattern) < len(weights)
            else:
                there = catalog.names if is_word(pattern) else weights
                known = any(rule.means(pattern, name) for name in there)
            if not known:
                raise UnknownNameError(
                    f"{option} names {pattern!r}, which is none of the trained weights {list(weights)}."
                )
    kept = {name: array for name, array in weights.items() if not rule.is_frozen(name)}
    if not kept:
        raise NoTrainableWeightError(f"Every weight is frozen: {list(weights)}.")
    return kept

"""One training step as one ONNX graph, run through IO binding on double-buffered weights."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._parameters import check_flag, own_parameters
from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.data.blocks import Key
from onnxcustom.exceptions import (
    ConvergenceError,
    InvalidDataError,
    InvalidModelError,
    NoTrainableWeightError,
    UnknownNameError,
)
from onnxcustom.gradient.build import prepared
from onnxcustom.gradient.interface import select_engine
from onnxcustom.graph import (
    Selection,
    constants,
    prepare,
    replace_constants,
    replace_weights,
    to_proto,
)
from onnxcustom.graph import weights as graph_weights
from onnxcustom.graph.batch_axis import BatchAxes
from onnxcustom.graph.builder import Builder
from onnxcustom.graph.feature_names import read_feature_names, write_feature_names
from onnxcustom.graph.finding import array_of
from onnxcustom.graph.io import load_own
from onnxcustom.graph.lookups import lookups
from onnxcustom.graph.selection import Catalog
from onnxcustom.objective import select_penalties
from onnxcustom.optim import BaseLearningRate, select_optimizer
from onnxcustom.runtime import (
    Device,
    ForkLock,
    options_from,
    options_state,
    parse_device,
    require_runtime,
    to_ortvalue,
)

from .buffers import DoubleBuffer
from .compose import ComposedStep, Phase, Weighted, compose_forward, compose_scores, compose_step, trunk
from .inference import Forward, loadable, runnable, without_numbers
from .layout import Layout
from .modes import ModeSettings
from .program import Program
from .step_state import export_state, import_state, shared_constants
from .stream_rows import axes_of
from .targets import (
    Target,
    divided_as,
    has_positions,
    part_shape,
    prediction_tensors,
    select_targets,
    settled,
)
from .validation import (
    TensorSpec,
    as_inputs,
    as_targets,
    of_batch,
    rows_of,
    some_rows,
    tensor_specs,
    weights_of,
    with_axis,
    with_limits,
)

__all__ = ["TrainingStep"]


class TrainingStep:
    r"""Forward, loss, penalty, backward and weight update of a model, in one run of one graph.

    The objective of a step is :math:`\frac{1}{n} \sum_i w_i \ell_i + penalty` over the n rows of
    the batch; where a cross-entropy has several labels a row (tokens, pixels), over the n labels.
    Rows are where the symbolic dimension is that most inputs begin with, wherever a tensor has it.
    Weights and optimizer state live on the device in two sets of buffers: a run reads one and writes
    the other, so nothing is copied between steps.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        Inference model to train. It is not modified.
    loss : str, BaseLearningLoss, ONNX model, callable or dict, default='squared_error'
        Loss of the model's first floating-point output, or a dict from output name to loss.
    optimizer : str or BaseLearningRate, default='sgd'
        Update rule.
    weights : str or list of str, optional
        Weights to train, by default everything :func:`onnxcustom.weights` finds: names, patterns, or
        words such as ``'last:2'`` and ``'biases'`` (:func:`onnxcustom.graph.select_weights`).
    penalty : str, BaseLearningPenalty or dict, optional
        Penalty on every weight, or a dict from weight name to penalty.
    engine : {'auto', 'ort', 'onnx'}, default='auto'
        Gradient engine.
    device : str, default='cpu'
        ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
    learning_rate : float, schedule or BaseLearningRate, optional
        Overrides the optimizer's learning rate; None keeps it.
    loss_weights : dict of str to float, optional
        Factors of the losses, by output name; 1 by default.
    sample_weight : bool, default=False
        Whether :attr:`model` takes one weight per row. :meth:`run` accepts weights either way; the
        weighted graph is built when it first sees some.
    threads : int, optional
        Threads of onnxruntime, by default every processor this process may use.
    batch_norm : {'frozen', 'update'}, default='frozen'
        Whether BatchNormalization goes by the model's own statistics, or by those of the batch,
        towards which the model's move.
    dropout : {'off', 'on'}, default='off'
        Whether Dropout drops, by masks that are a function of (seed, step).
    seed : int, default=0
        Seed of the masks.
    freeze : str or list of str, optional
        What is left out of `weights`, said in the same way. Frozen weights are constants of the graph:
        no gradient is computed for them, nor for what is needed for them alone.
    passes : bool, default=True
        Whether the graph is rewritten to run faster: learning rate and updates go into the products of
        matrices that gradients come from, and small weights are updated together. Results differ in
        rounding only.
    recompute : bool, default=False
        Whether activations that are cheap to compute are computed again where the backward pass needs
        them, rather than kept: less memory, more time.
    batch_axis : dict of str to int or None, optional
        Where the rows of an input or output are, by name, if that is not what the model's dimensions say;
        None for a tensor without rows: such an input is given once a batch, such an output is one row.
    sess_options : onnxruntime.SessionOptions, optional
        Settings of the session that trains, used as they are, in place of `threads` and of those that
        the documentation explains under "Speed and memory". Pickles keep all but entries of its
        configuration, which onnxruntime does not list.

    Attributes
    ----------
    iteration : int
        Number of weight updates done.
    skipped : int
        Number of batches left out because a gradient was not finite (``skip_nonfinite``).
    optimizer : BaseLearningRate
        The update rule, with its clock.

    Raises
    ------
    InvalidModelError, UnknownNameError, NoTrainableWeightError, DifferentiationError, ProviderError
        Before anything is built: what is wrong, and where.
    ValueError
        A learning rate, a factor of a loss or a number of threads that is none.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... line (float[N,1] x) => (float[N,1] y) <float[1,1] w = {0}> { y = MatMul(x, w) }''')
    >>> step = TrainingStep(model, "squared_error", "sgd", learning_rate=0.5)
    >>> x = np.array([[1], [-1]], dtype=np.float32)
    >>> step.run(x, 3 * x)
    4.5
    >>> step.weights()
    {'w': array([[1.5]], dtype=float32)}
    """

    def __init__(
        self,
        model: Any,
        loss: Any = "squared_error",
        optimizer: Any = "sgd",
        weights: Selection = None,
        penalty: Any = None,
        engine: str = "auto",
        device: Any = "cpu",
        *,
        learning_rate: Any = None,
        loss_weights: Mapping[str, float] | None = None,
        sample_weight: bool = False,
        threads: int | None = None,
        batch_norm: str = "frozen",
        dropout: str = "off",
        seed: int = 0,
        freeze: Selection = None,
        passes: bool = True,
        recompute: bool = False,
        batch_axis: Mapping[str, int | None] | None = None,
        sess_options: Any = None,
    ) -> None:
        if threads is not None and not threads >= 1:
            raise ValueError(f"threads must be at least 1, not {threads!r}.")
        for name, value in {"sample_weight": sample_weight, "passes": passes, "recompute": recompute}.items():
            check_flag(name, value)
        self.modes = ModeSettings(batch_norm, dropout, seed)
        self.passes = bool(passes)
        self.recompute = bool(recompute)
        self._sess_options = sess_options
        self._proto = load_own(model)
        loss, penalty = own_parameters(loss), own_parameters(penalty)
        self.device: Device = parse_device(device)
        self.threads = threads
        self.optimizer = select_optimizer(optimizer, learning_rate).init_learning_rate()
        self._options = _options(self.optimizer)
        model = prepare(self._proto)
        if not model.graph.inputs:
            raise InvalidModelError("The model has no inputs: there is nothing to train it on.")
        catalog = Catalog(model)
        initial = _choose_weights(catalog, model, self._proto, weights, freeze)
        initial = _without_frozen(self.optimizer, initial, catalog)
        axes = BatchAxes(model, batch_axis)
        self._batch_axis = {**batch_axis} if batch_axis else None
        self.targets: list[Target] = select_targets(model, loss, loss_weights, initial, axes)
        self._forget_sessions()
        self._base = without_numbers(model, initial)
        self._penalties = select_penalties(penalty, model, list(initial))
        values = list(dict.fromkeys(t.value for t in self.targets))
        self.engine = select_engine(engine, trunk(self._base.clone(), values))
        self.iteration = self.skipped = 0
        self._born: dict[str, int] = {}
        self._pending = self._pending_rows = 0
        self._weighted = bool(sample_weight)
        self._weights = list(initial)
        graph = self._graph(self._weighted)
        self._n_batch = len(graph.inputs) + len(graph.expected)
        statistics = constants(self._proto, graph.statistics)
        state = _initial_state(graph, self.optimizer, initial)
        self._allocate(graph, {**initial, **state}, statistics)

    def _allocate(
        self,
        graph: ComposedStep,
        tensors: Mapping[str, np.ndarray],
        statistics: Mapping[str, np.ndarray],
        accumulated: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Put everything the step keeps on the device."""
        in_place = [old for updates in graph.by_rows.values() for old in updates]
        packs = {name: members for name, (_, members) in graph.packs.items()}
        self._buffers = DoubleBuffer(tensors, self.device, in_place, packs)
        self._statistics = DoubleBuffer(statistics, self.device)
        if accumulated is None:
            values = {v.name: v for v in graph.model.graph.inputs}
            specs = tensor_specs(values[old] for old, _ in graph.accumulated.values())
            accumulated = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in specs}  # type: ignore[arg-type]
        self._accumulated = DoubleBuffer(accumulated, self.device)

    _graphs: dict[tuple[Weighted, Phase], ComposedStep]
    _programs: dict[tuple[Weighted, Phase], Program]
    _scores: dict[Weighted, Forward]
    _axes: BatchAxes | None
    _forward: Forward | None
    _base: ir.Model | None
    _sess_options: Any = None
    # The program that ran last on a batch.
    _ran: Program | None = None
    _batch_axis: Mapping[str, int | None] | None = None
    # Names of columns by input, where they are not the model's own.
    _columns: Mapping[str, tuple[str, ...]] = {}
    # Constants of the model that other steps have handed on, so that they are no longer the user's.
    _moved: frozenset[str] = frozenset()

    # -- graphs --------------------------------------------------------------------------------

    @property
    def model(self) -> onnx.ModelProto:
        """The step as one ONNX graph.

        Inputs are the model's own, ``<output>_expected`` for each loss, ``sample_weight`` if
        there is one, the weights, the optimizer's state, ``learning_rate`` and ``step``. Outputs
        are the loss, the new weights and the new state. The metadata entry ``onnxcustom.step``
        says in JSON which is which.
        """
        return to_proto(self._composed(self._weighted, "update", packed=False).model)

    def _model(self) -> ir.Model:
        """The model, prepared, without the numbers in weights that are trained: the buffers have them."""
        if self._base is None:
            self._base = without_numbers(prepare(self._proto), self._weights)
        return self._base

    def batch_axes(self) -> BatchAxes:
        """Where the rows of inputs and outputs are."""
        if self._axes is None:
            self._axes = BatchAxes(self._model(), self._batch_axis)
        return self._axes

    def _graph(self, weighted: Weighted, phase: Phase = "update") -> ComposedStep:
        if (weighted, phase) not in self._graphs:
            # Views of a part of a tensor can be made in host memory only.
            packed = self.passes and self.device.type == "cpu"
            self._graphs[weighted, phase] = self._composed(weighted, phase, packed)
        return self._graphs[weighted, phase]

    def _composed(self, weighted: Weighted, phase: Phase, packed: bool) -> ComposedStep:
        return compose_step(
            prepared(self._model(), self.engine),
            self.engine,
            self.targets,
            self._weights,
            self.optimizer,
            self._penalties,
            weighted=weighted,
            axes=self.batch_axes(),
            modes=self.modes,
            phase=phase,
            check=self.optimizer.hides_nonfinite or self.device.type != "cpu",
            born=self._born,
            fold=self.passes,
            packed=packed,
            fed=packed,
            again=self.recompute,
        )

    def _program(self, weighted: Weighted, phase: Phase) -> Program:
        if (weighted, phase) not in self._programs:
            self._programs[weighted, phase] = Program(
                self._graph(weighted, phase),
                self._buffers,
                self._statistics,
                self._accumulated,
                self.scalar_dtype,
                self.device,
                self.threads,
                self._sess_options,
            )
        return self._programs[weighted, phase]

    # -- training ------------------------------------------------------------------------------

    def run(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Do one step on one batch.

        Parameters
        ----------
        X : array_like of shape (n, ...) or dict of str to array_like
            Batch; a dict when the model has several inputs.
        y : array_like of shape (n, ...) or dict of str to array_like
            Expected values; a dict when there are several losses.
        sample_weight : array_like of shape (n,), optional
            One weight per row; or, where a cross-entropy has several labels a row, one per label.

        Returns
        -------
        float
            The objective before the update.

        Raises
        ------
        InvalidDataError
            The batch does not fit the model.
        ConvergenceError
            The objective is not finite; the weights stay as they were.
        """
        feeds = self.feeds(X, y, sample_weight)
        return self.run_batch([to_ortvalue(v, self.device) for v in feeds.values()])

    def run_batch(self, values: Sequence[Any]) -> float:
        """Do one step on OrtValues that fit: inputs, expected values, and weights of the rows if any.

        An optimizer that accumulates gradients updates the weights at every so many calls.
        """
        optimizer = self.optimizer
        if optimizer.t != self.iteration + 1 + optimizer.begin_num_update:
            self._set_clock()
        updating = self._pending + 1 >= optimizer.accumulate
        if self._unsettled:
            self._settle([tuple(v.shape()) for v in values])
        program = self._program(self._weighting(values), "update" if updating else "accumulate")
        rows, share = 0, 1.0
        if optimizer.accumulate > 1:
            rows = self._counted(program, values)
            share = rows / max(1, self._pending_rows + rows)
        self._ran = program
        loss = program.run(values, optimizer.values, optimizer.t, share)
        unfit = program.nonfinite() or (self._buffers if updating else self._accumulated).unfit()
        if unfit or not math.isfinite(loss):
            return self._refuse(loss, unfit)
        self._statistics.swap()
        if not updating:
            self._accumulated.swap()
            self._pending, self._pending_rows = self._pending + 1, self._pending_rows + rows
            return loss
        self._updated(program)
        return loss

    def _updated(self, program: Program) -> None:
        """Go on to the next step: the program has written new weights."""
        self._buffers.swap()
        program.write_rows()
        self._pending = self._pending_rows = 0
        self.iteration += 1
        self.optimizer.advance(self.iteration)

    def _set_clock(self) -> None:
        self._check_options()
        self.optimizer.update_learning_rate(self.iteration)  # a schedule that knows no such step says so

    @property
    def pending(self) -> int:
        """Number of batches whose gradients were accumulated since the last update."""
        return self._pending

    def apply_accumulated(self) -> bool:
        """Update the weights by what is accumulated, though it is of fewer batches than ``accumulate`` says.

        Returns
        -------
        bool
            Whether there was anything.

        Raises
        ------
        ConvergenceError
            The update is not finite; the weights stay as they were.
        """
        if not self._pending:
            return False
        optimizer = self.optimizer
        if optimizer.t != self.iteration + 1 + optimizer.begin_num_update:
            self._set_clock()
        program = self._program(self._weighted, "apply")
        program.run([], optimizer.values, optimizer.t, 0.0)
        unfit = self._buffers.unfit()
        if unfit:
            self._refuse(0.0, unfit)
            self._pending = self._pending_rows = 0  # left out, as a batch would be
        else:
            self._updated(program)
        return True

    @property
    def head_losses(self) -> dict[str, float]:
        """Loss of every output in the last step, by name and without its factor, if several are trained."""
        return {} if self._ran is None else self._ran.heads()

    def _weighting(self, values: Sequence[Any]) -> Weighted:
        """Whether a batch has weights, and of what."""
        if len(values) <= self._n_batch:
            return False
        graph = self._graph(self._weighted)
        if not any(spec.weighed for spec in self.expected):
            return True
        rows = 1 if graph.counted is None else values[graph.counted[0]].shape()[graph.counted[1]]
        return True if list(values[-1].shape()) == [rows] else "labels"

    def _counted(self, program: Program, values: Sequence[Any]) -> int:
        """What the objective of a batch is divided by, for its share of what is accumulated."""
        if len(self.targets) == 1 and self.expected[0].weighed:
            return math.prod(values[len(self.inputs)].shape())
        return program.rows(values)

    def _check_options(self) -> None:
        """The options of the optimizer are part of the graphs: they may not change under them."""
        if _options(self.optimizer) != self._options:
            raise RuntimeError(
                f"The options of the optimizer have changed since this step was made: it is now "
                f"{self.optimizer!r}. Make another TrainingStep with it and let it take_over() this one."
            )

    def _refuse(self, loss: float, unfit: Sequence[str]) -> float:
        """Leave a step out: an error, or one more skipped. Nothing was changed."""
        if self.optimizer.skip_nonfinite:
            self.skipped += 1
            return loss
        rate = self.optimizer.value
        if not math.isfinite(loss):
            what = f"The objective is {loss}"
        else:
            weights = [name for name in unfit if name in self._weights] or unfit
            names = ", ".join(map(repr, weights))
            what = f"The objective is {loss:g}, but the gradient or update of {names} holds NaN or infinity"
        raise ConvergenceError(
            f"{what} at step {self.optimizer.t} (learning rate {rate:g}); the weights before that step are "
            "kept. Lower the learning rate, scale the data, clip the gradient, or skip such steps with the "
            "optimizer's skip_nonfinite=True."
        )

    # -- data ------------------------------------------------------------------------------------

    @functools.cached_property
    def inputs(self) -> list[TensorSpec]:
        """What the model's inputs want."""
        graph = self._graph(self._weighted)
        names = {**read_feature_names(self._proto), **self._columns}
        return with_limits(self._specs(graph, graph.inputs), names, lookups(self._model()))

    def name_columns(self, names: Mapping[str, Sequence[str]]) -> None:
        """Keep names of columns, which frames must then have, in any order; the trained model says them.

        Parameters
        ----------
        names : dict of str to sequence of str
            By input of the model, in its order. They stand in the metadata entry ``feature_names_in``.
        """
        self._columns = {name: tuple(columns) for name, columns in names.items()}
        self.__dict__.pop("inputs", None)

    def _specs(self, graph: ComposedStep, names: Sequence[str]) -> list[TensorSpec]:
        """Specifications of graph inputs that come with every batch."""
        values = {v.name: v for v in graph.model.graph.inputs}
        fixed = self.batch_axes().rows()
        specs = tensor_specs(values[name] for name in names)
        return [with_axis(spec, graph.batch_axis[spec.name], fixed) for spec in specs]

    @functools.cached_property
    def expected(self) -> list[TensorSpec]:
        """What the losses want, named like the model's outputs."""
        graph = self._graph(self._weighted)
        specs = self._specs(graph, list(graph.expected.values()))
        made = []
        for target, spec in zip(self.targets, specs, strict=True):
            weighed = len(specs) == 1 and target.counts_positions and has_positions(target)
            made.append(dataclasses.replace(spec, name=target.output, weighed=weighed))
        return made

    @functools.cached_property
    def scalar_dtype(self) -> np.dtype:
        """Dtype of row weights and of the learning rate: float64 if any weight is, else float32."""
        graph = self._graph(self._weighted)
        (spec,) = tensor_specs(v for v in graph.model.graph.inputs if v.name == graph.step)
        assert spec.dtype is not None
        return spec.dtype

    def check_expected(self, expected: Mapping[str, np.ndarray]) -> None:
        """Check expected values by output name, converted already, against what the losses allow.

        Raises
        ------
        InvalidDataError
            A label that is no class of the model, a count that is negative, ...
        """
        for target in self.targets:
            target.loss.check_expected(expected[target.output], target.columns)

    def feeds(self, X: Any, y: Any, sample_weight: Any = None) -> dict[str, np.ndarray]:
        """Checked and converted arrays of a batch by graph input: inputs, expected values, row weights."""
        feeds, specs, _ = self._converted(X, y, sample_weight)
        return {name: of_batch(array, specs[name]) for name, array in feeds.items()}

    def _converted(
        self, X: Any, y: Any, sample_weight: Any
    ) -> tuple[dict[str, np.ndarray], dict[str, TensorSpec], Weighted]:
        """Arrays of any number of rows by graph input, what each is to be, and what the weights are of."""
        self.settle(X, y)
        feeds = as_inputs(X, self.inputs)
        specs = {spec.name: spec for spec in self.inputs}
        rows = rows_of(feeds, self.inputs)
        expected = as_targets(y, self.expected, rows)
        self.check_expected(expected)
        weighted: Weighted = sample_weight is not None
        if weighted:
            weights, like = weights_of(sample_weight, rows, self.scalar_dtype, self.expected, expected)
            weighted = "labels" if like.weighed else True
        graph = self._graph(weighted)
        names = {spec.name: graph.expected[spec.name] for spec in self.expected}
        feeds.update({names[name]: array for name, array in expected.items()})
        specs.update({names[spec.name]: spec for spec in self.expected})
        if graph.sample_weight is not None:
            feeds[graph.sample_weight], specs[graph.sample_weight] = weights, like
        return feeds, specs, weighted

    def data_axes(self) -> dict[Key, dict[int, int | None]]:
        """Where the rows of data as a user gives it are, as :meth:`onnxcustom.data.Stream.place` takes it."""
        axes = axes_of(self.inputs, self.expected)
        for target, spec in zip(self.targets, self.expected, strict=True):
            rank = None if target.shape is None else len(target.shape)
            if axes and rank is not None and rank != spec.rank and not spec.each:
                axes[Key("y", spec.name)][rank] = target.rows  # one-hot
        return axes

    def mixing(self, target: Target) -> str | None:
        """The operator by which the loss of a target mixes rows of a batch, None if none is found."""
        if target.rows is None:
            return None
        value = _tensor(self._model(), target.value)
        op = Builder(target.loss.opset)
        predicted = op.input("predicted", value.dtype or ir.DataType.FLOAT, target.shape)
        moved = Layout(op, target, predicted).moved
        return target.loss.mixes_rows(predicted.dtype, moved.shape)

    def settle(self, X: Any, y: Any) -> None:
        """Let the shape of labels decide which axis of a prediction holds the classes, if nothing else does.

        Parameters
        ----------
        X, y
            Data as :meth:`run` takes it.
        """
        if self._unsettled:
            inputs = [part_shape(X, spec.name) for spec in self.inputs]
            self._settle(inputs + [part_shape(y, t.output) for t in self.targets])

    @property
    def _unsettled(self) -> bool:
        return not all(t.settled for t in self.targets)

    def _settle(self, shapes: Sequence[tuple[int, ...] | None]) -> None:
        """Decide by the shapes of inputs and expected values, in the order of a batch."""
        n = len(self.inputs)
        targets = settled(self.targets, self.inputs, shapes[:n], shapes[n : n + len(self.targets)])
        self._retarget(targets)

    def _retarget(self, targets: list[Target]) -> None:
        """Take the losses in another way: the graphs are made again, what is trained stays."""
        if targets == self.targets:
            return
        self.targets = targets
        self._forget_sessions()
        for name in ("inputs", "expected", "scalar_dtype"):
            self.__dict__.pop(name, None)

    # -- looking without touching ----------------------------------------------------------------

    def scores(self, X: Any, y: Any, sample_weight: Any = None) -> np.ndarray:
        """Loss of every row with the present weights, without the penalty: shape (n,).

        Their mean is the objective of these rows. So where every label counts as a row, the loss of a row is
        the mean over its labels; a model whose outputs are one row for the whole batch has one loss for it.
        """
        return self._scored(X, y, sample_weight)[0]

    def head_scores(self, X: Any, y: Any, sample_weight: Any = None) -> dict[str, np.ndarray]:
        """Loss of every row for every output that is trained, without its factor: shape (n,) each."""
        found = self._scored(X, y, sample_weight)
        names = [target.output for target in self.targets]
        return dict(zip(names, found[1:] if len(names) > 1 else found, strict=True))

    def penalty(self) -> float:
        """The penalty on the present weights, which every objective contains."""
        if not self._penalties:
            return 0.0
        weights, zero = self.weights(), np.zeros((), self.scalar_dtype)
        terms = [p.penalty_loss(None, zero, weights[name]) for name, p in self._penalties.items()]
        return sum(float(term.numpy()) for term in terms)

    def _scored(self, X: Any, y: Any, sample_weight: Any) -> list[np.ndarray]:
        feeds, specs, weighted = self._converted(X, y, sample_weight)
        with self._lock:
            if weighted not in self._scores:
                graph = compose_scores(
                    prepared(self._model(), self.engine), self.targets, self._inputs, weighted=weighted
                )
                self._scores[weighted] = Forward(graph, self.device, self.threads)
            # The two graphs may call their inputs differently, where a tensor of the model has the name.
            step, scores = self._graph(weighted), self._scores[weighted]
        asked = step.batch[len(step.inputs) :]
        renamed = dict(zip(asked, scores.inputs[-len(asked) :], strict=True))
        feeds = {renamed.get(name, name): array for name, array in feeds.items()}
        specs = {renamed.get(name, name): spec for name, spec in specs.items()}
        return self._run(scores, feeds, specs, [0] * (1 if len(self.targets) == 1 else 1 + len(self.targets)))

    def predict(self, X: Any) -> dict[str, np.ndarray]:
        """Floating-point outputs of the model with the present weights, by name.

        What a classifier's ZipMap reads stands for the list of dicts it makes of it.
        """
        with self._lock:
            forward = self._forward
            if forward is None:
                model = runnable(self._model())
                tensors = prediction_tensors(model)
                self._predicted = list(tensors)
                graph = compose_forward(model, list(tensors.values()), self._inputs)
                forward = self._forward = Forward(graph, self.device, self.threads)
        feeds = as_inputs(X, self.inputs)
        axes = [self.output_axis(name) for name in self._predicted]
        outputs = self._run(forward, feeds, {spec.name: spec for spec in self.inputs}, axes)
        return dict(zip(self._predicted, outputs, strict=True))

    def output_axis(self, name: str) -> int | None:
        """Axis of the rows in an output that :meth:`predict` gives, None if it has none."""
        tensor = prediction_tensors(self._model()).get(name, name)
        return self.batch_axes().of(tensor, name)

    def _run(
        self,
        forward: Forward,
        feeds: Mapping[str, np.ndarray],
        specs: Mapping[str, TensorSpec],
        axes: Sequence[int | None],
    ) -> list[np.ndarray]:
        """Outputs for a batch of any size with the present weights, also where the model fixes its size.

        `axes` are those of the rows in the outputs; of several batches, outputs without one are stacked.
        """
        size = next((spec.rows for spec in self.inputs if spec.rows is not None), None)
        rows = rows_of(feeds, [specs[name] for name in feeds])
        if size is None or rows == size:
            whole = {name: of_batch(array, specs[name]) for name, array in feeds.items()}
            return forward.run({**whole, **self._front()})
        if rows % size:
            raise InvalidDataError(
                f"The model takes {size} rows at a time, the data has {rows}: give a multiple, or make that "
                "dimension of the model's inputs dynamic."
            )
        parts = []
        for i in range(0, rows, size):
            part = {n: some_rows(a, specs[n], slice(i, i + size)) for n, a in feeds.items()}
            part = {n: np.ascontiguousarray(of_batch(a, specs[n])) for n, a in part.items()}
            parts.append(forward.run({**part, **self._front()}))
        return [
            np.stack(arrays) if axis is None else np.concatenate(arrays, axis)
            for axis, arrays in zip(axes, zip(*parts, strict=True), strict=True)
        ]

    @property
    def _inputs(self) -> list[str]:
        """Tensors of the model that the step changes: weights and running statistics."""
        return [*self._weights, *self._graph(self._weighted).statistics]

    def _front(self) -> dict[str, Any]:
        fronts = (b.values[b.front] for b in (self._buffers, self._statistics))
        return {name: value for values in fronts for name, value in values.items()}

    # -- weights and state -----------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the present weights, by name."""
        return dict(zip(self._weights, self._buffers.read(self._weights), strict=True))

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """Copies of the optimizer's state: weight name -> state name -> array."""
        names = self._graph(self._weighted).state
        return {
            w: dict(zip(states, self._buffers.read(old for old, _ in states.values()), strict=True))
            for w, states in names.items()
        }

    def statistics(self) -> dict[str, np.ndarray]:
        """Copies of the running statistics that the step updates, by name."""
        names = list(self._graph(self._weighted).statistics)
        return dict(zip(names, self._statistics.read(names), strict=True))

    def set_statistics(self, statistics: Mapping[str, np.ndarray]) -> None:
        """Overwrite running statistics; those that this step does not update become part of its model."""
        known = self.statistics()
        self._proto = replace_constants(self._proto, statistics)
        self._moved |= {name for name in statistics if name not in known}
        self._forget_sessions()
        self._statistics.write({name: array for name, array in statistics.items() if name in known})

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Overwrite some or all weights.

        Raises
        ------
        UnknownNameError, InvalidDataError
            A name that is not trained, or an array of another shape or dtype; nothing is changed.
        """
        present = self.weights()
        unknown = [name for name in weights if name not in present]
        if unknown:
            raise UnknownNameError(f"{unknown} are not among the trained weights {list(present)}.")
        for name, array in weights.items():
            _same_kind(f"weight {name!r}", array, present[name])
        self._buffers.write(weights)

    def set_state(self, state: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Overwrite the optimizer's state of some or all weights; errors as :meth:`set_weights`."""
        names, present = self._graph(self._weighted).state, self.state()
        arrays = {}
        for weight, states in state.items():
            for key, array in states.items():
                if key not in present.get(weight, {}):
                    raise UnknownNameError(
                        f"The optimizer {self.optimizer!r} keeps no state {key!r} for weight {weight!r}."
                    )
                _same_kind(f"state {key!r} of weight {weight!r}", array, present[weight][key])
                arrays[names[weight][key][0]] = array
        self._buffers.write(arrays)

    def start_from(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over weights of the model, also of those that are not trained here.

        Parameters
        ----------
        weights : dict of str to ndarray
            Some or all of what :func:`onnxcustom.weights` finds in the model.
        """
        before = constants(self._proto, weights)
        self._proto = replace_weights(self._proto, weights)
        self._moved |= {
            n for n, a in weights.items() if n not in self._weights and not _same_bits(a, before[n])
        }
        self._forget_sessions()  # what is not trained is part of the graphs
        self.set_weights({name: array for name, array in weights.items() if name in self._weights})

    def take_over(self, other: TrainingStep) -> None:
        """Go on where another step of this model is.

        That is its weights, its statistics and, if the optimizer is the same, its clock and the state
        of the weights that both train; a weight that joins begins at its own first step.
        """
        present = {**graph_weights(other.trained_model()), **other.weights()}
        known = {*graph_weights(self._proto), *self._weights, *shared_constants(self._proto, other._weights)}
        self.start_from({name: array for name, array in present.items() if name in known})
        self.set_statistics(other.statistics())
        self.name_columns(other._columns)
        self._divide_as(other)
        if not self.optimizer.continues(other.optimizer):
            return
        self.optimizer.take_clock(other.optimizer)
        self.iteration, self.skipped = other.iteration, other.skipped
        kept = {w: states for w, states in other.state().items() if w in self._weights}
        self._born = {w: other._born.get(w, 0) if w in kept else other.iteration for w in self._weights}
        self._forget_sessions()  # the age of a weight is part of the graphs, and of what is updated as one
        self._allocate(self._graph(self._weighted), *self._read())
        self.set_state(kept)
        if self.optimizer.accumulate == other.optimizer.accumulate and self._weights == other._weights:
            self._pending, self._pending_rows = other._pending, other._pending_rows
            names = self._accumulated.names
            self._accumulated.write(dict(zip(names, other._accumulated.read(names), strict=True)))

    def _divide_as(self, other: TrainingStep) -> None:
        """Count labels, or rows, as another step did whose losses are the same."""
        before = {t.output: t for t in other.targets if t.loss.counts_positions}
        counted = {
            t.output: before[t.output].positions if t.output in before else t.positions for t in self.targets
        }
        self._retarget(divided_as(self.targets, counted))

    def trained_model(self) -> onnx.ModelProto:
        """The user's model with the present weights and statistics."""
        trained = replace_constants(replace_weights(self._proto, self.weights()), self.statistics())
        if self._columns:
            write_feature_names(trained, {**read_feature_names(trained), **self._columns})
        return loadable(trained)

    # -- checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything that training goes on from, to the same bits: copies, and what JSON can hold.

        Returns
        -------
        tuple of (dict of str to ndarray, dict)
            Tensors: ``weights/<weight>``, ``state/<weight>/<name>``, ``statistics/<name>``,
            ``accumulated/<weight>``, and ``constants/<name>`` for what :meth:`take_over` has changed
            of the model beside them. State: the optimizer's clock and the counts of the step.
        """
        return export_state(self)

    def load_state_dict(self, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Go on where a step that was made with the same arguments was.

        The learning rate and the seed of the masks become what they were there.

        Parameters
        ----------
        tensors, state
            What :meth:`state_dict` returned.

        Raises
        ------
        CheckpointError
            What was saved does not fit this step; the message says what differs, and nothing is
            changed.
        """
        import_state(self, tensors, state)

    # -- pickling --------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        present = vars(self).copy()  # other threads may be about to predict
        state = {k: v for k, v in present.items() if k not in _REBUILT}
        state["_saved"] = self._read()
        state["_sess_options"] = options_state(self._sess_options)
        return stamp_version(state)

    def _read(self) -> list[dict[str, np.ndarray]]:
        """Everything the step keeps on the device, as :meth:`_allocate` takes it."""
        buffers = (self._buffers, self._statistics, self._accumulated)
        return [dict(zip(b.names, b.read(b.names), strict=True)) for b in buffers]

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = check_version(state, self)
        saved = state.pop("_saved")
        self.__dict__.update(state)
        self._sess_options = options_from(state.get("_sess_options"), require_runtime().SessionOptions)
        self._forget_sessions()
        self._allocate(self._graph(self._weighted), *saved)

    def _forget_sessions(self) -> None:
        self._lock = ForkLock()
        self._graphs = {}
        self._programs = {}
        self._ran = None
        self._scores = {}
        self._forward = None
        self._base = None
        self._axes = None

    def __repr__(self) -> str:
        targets = ", ".join(map(str, self.targets))
        axes = {**self.batch_axes().inputs, **{t.output: t.rows for t in self.targets}}
        return (
            f"TrainingStep({targets}, optimizer={self.optimizer!r}, weights={len(self._weights)}, "
            f"batch_axis={axes}, "
            f"engine={self.engine.name!r}, device={self.device.name!r}, iteration={self.iteration})"
        )


# What holds sessions or device memory: left out of pickles, made again when needed.
_REBUILT = frozenset(
    {
        "_lock",
        "_sess_options",
        "_axes",
        "_base",
        "_graphs",
        "_programs",
        "_scores",
        "_forward",
        "_buffers",
        "_statistics",
        "_accumulated",
        "_ran",
    }
)


def _tensor(model: ir.Model, name: str) -> ir.Value:
    values = (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))
    return next(v for v in values if v.name == name)


def _options(optimizer: BaseLearningRate) -> dict[str, Any]:
    """The options that graphs are made with, as they are now: the learning rate is fed to them."""
    options = {k: v for k, v in optimizer.get_params().items() if k not in ("learning_rate", "eta0")}
    return {k: copy.copy(v) if isinstance(v, (dict, list, set)) else v for k, v in options.items()}


def _without_frozen(
    optimizer: BaseLearningRate, weights: dict[str, np.ndarray], catalog: Catalog
) -> dict[str, np.ndarray]:
    """The weights that the optimizer updates; its options may only name weights that there are."""
    optimizer.bind_words(catalog)
    for option in ("frozen", "lr_mult", "wd_mult"):
        for pattern in getattr(optimizer, option) or ():
            if isinstance(pattern, numbers.Integral):
                known = 0 <= int(pattern) < len(weights)
            else:
                known = any(optimizer.means(pattern, name) for name in weights)
            if not known:
                raise UnknownNameError(
                    f"{option} names {pattern!r}, which is none of the trained weights {list(weights)}."
                )
    kept = {name: array for name, array in weights.items() if not optimizer.is_frozen(name)}
    if not kept:
        raise NoTrainableWeightError(f"Every weight is frozen: {list(weights)}.")
    return kept


def _choose_weights(
    catalog: Catalog, model: ir.Model, proto: onnx.ModelProto, weights: Selection, freeze: Selection
) -> dict[str, np.ndarray]:
    """The weights to train, checked."""
    names = catalog.select(weights, freeze)
    if isinstance(weights, (list, tuple)) and set(names) <= set(weights):
        names = [name for name in weights if name in names]  # a list of names keeps its order
    constants(proto, [name for name in names if name in catalog.others])  # they can be written back
    values = model.graph.initializers
    return {name: array_of(values[name]) for name in names}


def _initial_state(
    graph: ComposedStep, optimizer: Any, weights: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The optimizer's first state, by graph input."""
    tensors = {}
    for name, states in graph.state.items():
        initial = optimizer.create_state(weights[name])
        tensors.update({old: initial[s] for s, (old, _) in states.items()})
    return tensors


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def _same_kind(what: str, array: Any, present: np.ndarray) -> None:
    array = np.asarray(array)
    if array.shape != present.shape or array.dtype != present.dtype:
        raise InvalidDataError(
            f"The {what} has shape {present.shape} and dtype {present.dtype}, not {array.shape} and "
            f"{array.dtype}."
        )
    if not np.isfinite(array.astype(np.float64)).all():
        raise InvalidDataError(f"The {what} contains NaN or infinity.")

"""One training step as one ONNX graph, run through IO binding on double-buffered weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxcustom._parameters import check_flag, check_number, own_parameters
from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.data.blocks import Key
from onnxcustom.exceptions import ConvergenceError, EvaluationError, InvalidDataError, UnknownNameError
from onnxcustom.feed.specs import TensorSpec, some_rows
from onnxcustom.feed.validation import as_inputs
from onnxcustom.gradient.interface import Engine
from onnxcustom.graph import Prepared, Selection, replace_constants, to_proto
from onnxcustom.graph.files.feature_names import read_feature_names, write_feature_names
from onnxcustom.graph.shapes.batch_axis import BatchAxes
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

from .carrying import placed, taken_over
from .checkpoint import COUNT, export_state, import_state
from .compose import ComposedStep, Phase, Weighted
from .feeds import Feeds, check_expected, data_axes, feeds_of, settled_by, settled_by_shapes
from .inference import Forward, loadable, run_in_parts
from .modes import ModeSettings
from .older_pickles import as_written_now
from .program import Program
from .recipe import Recipe, make_recipe
from .state import State
from .targets import Target, has_positions

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
    model : path, bytes, onnx.ModelProto, onnx_ir.Model or Prepared
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
        One behind a Softmax or Sigmoid whose scores the loss is taken on has no part in the loss.
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
        The update rule, with the clock of this step: what is asked or set there is asked or set here.

    Raises
    ------
    InvalidModelError, UnknownNameError, NoTrainableWeightError, DifferentiationError, ProviderError
        Before anything is built: what is wrong, and where.
    ValueError, TypeError
        A learning rate, a factor of a loss, a seed or a number of threads that is none.

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
        if threads is not None:
            check_number("threads", threads, "[1, inf)", integral=True)
        for name, value in {"sample_weight": sample_weight, "passes": passes, "recompute": recompute}.items():
            check_flag(name, value)
        self.device: Device = parse_device(device)
        self.threads = threads
        self._sess_options = sess_options
        modes = ModeSettings(batch_norm, dropout, seed)
        self._recipe, first = make_recipe(
            Prepared.of(model),
            own_parameters(loss),
            select_optimizer(optimizer, learning_rate).formula(),
            engine,
            weights=weights,
            freeze=freeze,
            penalty=own_parameters(penalty),
            loss_weights=loss_weights,
            batch_axis=batch_axis,
            modes=modes,
            passes=bool(passes),
            recompute=bool(recompute),
            weighted=bool(sample_weight),
            host=self.device.type == "cpu",
        )
        self._forget_sessions()
        self._state = State.begin(self._recipe, self.device, first)
        self._optimizer = self._recipe.rule.on(self._state.clock)

    _programs: dict[tuple[Weighted, Phase], Program]
    _scores: dict[Weighted, Forward]
    _forward: Forward | None
    # The program that ran last on a batch.
    _ran: Program | None

    # -- what it is made of ----------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """What is trained, on what and how."""
        return self._recipe

    @property
    def optimizer(self) -> BaseLearningRate:
        """The update rule, with the clock of this step."""
        return self._optimizer

    @property
    def targets(self) -> list[Target]:
        """Outputs and their losses."""
        return list(self._recipe.targets)

    @property
    def engine(self) -> Engine:
        """The gradient engine."""
        return self._recipe.engine

    @property
    def modes(self) -> ModeSettings:
        """How BatchNormalization and Dropout behave."""
        return self._recipe.modes

    @property
    def passes(self) -> bool:
        """Whether the graph is rewritten to run faster."""
        return self._recipe.passes

    @property
    def recompute(self) -> bool:
        """Whether cheap activations are computed again."""
        return self._recipe.recompute

    @property
    def iteration(self) -> int:
        """Number of weight updates done; may be set, with the state that belongs to it."""
        return self._state.iteration

    @iteration.setter
    def iteration(self, value: int) -> None:
        check_number("iteration", value, COUNT, integral=True)
        self._state.iteration = int(value)

    @property
    def skipped(self) -> int:
        """Number of batches left out because a gradient was not finite (``skip_nonfinite``)."""
        return self._state.skipped

    @property
    def pending(self) -> int:
        """Number of batches whose gradients were accumulated since the last update."""
        return self._state.pending

    @property
    def model(self) -> onnx.ModelProto:
        """The step as one ONNX graph.

        Inputs are the model's own, ``<output>_expected`` for each loss, ``sample_weight`` if
        there is one, the weights, the optimizer's state, ``learning_rate`` and ``step``. Outputs
        are the loss, the new weights and the new state. The metadata entry ``onnxcustom.step``
        says in JSON which is which.
        """
        return to_proto(self._recipe.compose(self._recipe.weighted, lean=False).model)

    def batch_axes(self) -> BatchAxes:
        """Where the rows of inputs and outputs are."""
        return self._recipe.axes

    def _graph(self, weighted: Weighted | None = None) -> ComposedStep:
        return self._recipe.graph(weighted)

    def _program(self, weighted: Weighted, phase: Phase) -> Program:
        if (weighted, phase) not in self._programs:
            self._check_options()
            self._programs[weighted, phase] = Program(
                self._recipe.graph(weighted, phase),
                self._state,
                self.scalar_dtype,
                self.threads,
                self._sess_options,
            )
        return self._programs[weighted, phase]

    def _become(self, recipe: Recipe, state: State) -> None:
        """Go on with another recipe or state: programs of the old ones are forgotten."""
        if recipe is self._recipe and state is self._state:
            return
        self._recipe, self._state = recipe, state
        self._optimizer.follow(state.clock)
        self._forget_sessions()

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

        Raises
        ------
        InvalidDataError
            There are more or fewer values than the step reads.
        ConvergenceError
            As for :meth:`run`.
        """
        state, accumulate = self._state, self._recipe.rule.accumulate
        clock = state.clock
        if not clock.is_after(state.iteration):
            self._set_clock()
        updating = state.pending + 1 >= accumulate
        if self._unsettled:
            self._retarget(settled_by_shapes(self._recipe, [tuple(v.shape()) for v in values]))
        program = self._program(self._weighting(values), "update" if updating else "accumulate")
        units, share = [0], 1.0
        if accumulate > 1:
            units = self._counted(program, values)
            share = self._share(units, program.rows(values))
        self._ran = program
        loss = program.run(values, clock.values, clock.t, share)
        unfit = program.nonfinite() or (state.kept if updating else state.accumulated).unfit()
        if unfit or not math.isfinite(loss):
            return self._refuse(loss, unfit)
        state.statistics.swap()
        if updating:
            self._updated(program)
        else:
            state.accumulated_batch(units)
        return loss

    def _updated(self, program: Program) -> None:
        """Go on to the next step: the program has written new weights."""
        self._state.updated()
        program.write_rows()
        self._state.clock.advance(self._state.iteration)

    def _set_clock(self) -> None:
        self._check_options()
        self._state.clock.update(self.iteration)  # a schedule that knows no such step says so

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
        state = self._state
        if not state.pending:
            return False
        if not state.clock.is_after(state.iteration):
            self._set_clock()
        program = self._program(self._recipe.weighted, "apply")
        program.run([], state.clock.values, state.clock.t, 0.0)
        unfit = state.kept.unfit()
        if unfit:
            self._refuse(None, unfit)
            state.forget_accumulated()  # left out, as a batch would be
        else:
            self._updated(program)
        return True

    @property
    def head_losses(self) -> dict[str, float]:
        """Loss of every output in the last step, by name and without its factor, if several are trained."""
        return {} if self._ran is None else self._ran.heads()

    def _weighting(self, values: Sequence[Any]) -> Weighted:
        """Whether a batch has weights, and of what."""
        graph = self._graph()
        more = len(values) - len(graph.inputs) - len(graph.expected)
        if more not in (0, 1):
            wanted = [*graph.inputs, *graph.expected.values()]
            raise InvalidDataError(
                f"A batch of this step is {len(wanted)} values, {wanted}, and weights of the rows if there "
                f"are some; {len(values)} were given."
            )
        if not more:
            return False
        if not any(spec.weighed for spec in self.expected):
            return True
        rows = 1 if graph.counted is None else values[graph.counted[0]].shape()[graph.counted[1]]
        return True if list(values[-1].shape()) == [rows] else "labels"

    def _counted(self, program: Program, values: Sequence[Any]) -> list[int]:
        """What the loss of every output is divided by in a batch: its labels, or the rows."""
        rows, first = program.rows(values), len(self.inputs)
        return [
            math.prod(values[first + i].shape()) if t.counts_positions and has_positions(t) else rows
            for i, t in enumerate(self.targets)
        ]

    def _share(self, units: Sequence[int], rows: int) -> float:
        """Share of a batch in what is accumulated: one for all outputs, since their gradients are added.

        Raises
        ------
        InvalidDataError
            A batch with other numbers of labels in a row, where outputs differ in that.
        """
        state = self._state
        before = state.pending_units or [0] * len(units)
        if state.pending and state.pending_units is None:  # from an older version, which counted rows alone
            rows = units[0] if len(units) == 1 else rows
            return rows / max(1, state.pending_rows + rows)
        totals = [p + u for p, u in zip(before, units, strict=True)]
        for target, unit, total in zip(self.targets, units, totals, strict=True):
            if unit * totals[0] != units[0] * total:
                raise InvalidDataError(
                    f"accumulate adds up batches, and the losses of {self.targets[0].output!r} and "
                    f"{target.output!r} are means over {units[0]} and {unit} labels or rows in this batch, "
                    f"{totals[0] - units[0]} and {total - unit} in those before: no factor of the batch is "
                    "right for both. Pad labels to one length, or use accumulate=1 and larger batches."
                )
        return units[0] / max(1, totals[0])

    def _check_options(self) -> None:
        """The options of the optimizer are part of the graphs: they may not change under them."""
        if _options(self._optimizer) != _options(self._recipe.rule):
            raise RuntimeError(
                f"The options of the optimizer have changed since this step was made: it is now "
                f"{self.optimizer!r}. Make another TrainingStep with it and let it take_over() this one."
            )

    def _refuse(self, loss: float | None, unfit: Sequence[str]) -> float:
        """Leave a step out: an error, or one more skipped. Nothing was changed; without a batch no loss."""
        if self._recipe.rule.skip_nonfinite:
            self._state.skipped += 1
            return math.nan if loss is None else loss
        rate = self.optimizer.value
        weights = [name for name in unfit if name in self._recipe.weights] or unfit
        what = f"the gradient or update of {', '.join(map(repr, weights))} holds NaN or infinity"
        if loss is None:
            what = what[0].upper() + what[1:]
        elif math.isfinite(loss):
            what = f"The objective is {loss:g}, but {what}"
        else:
            what = f"The objective is {loss}"
        raise ConvergenceError(
            f"{what} at step {self.optimizer.t} (learning rate {rate:g}); the weights before that step are "
            "kept. Lower the learning rate, scale the data, clip the gradient, or skip such steps with the "
            "optimizer's skip_nonfinite=True."
        )

    # -- data ------------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[TensorSpec]:
        """What the model's inputs want."""
        return self._recipe.inputs

    def name_columns(self, names: Mapping[str, Sequence[str]]) -> None:
        """Keep names of columns, which frames must then have, in any order; the trained model says them.

        Parameters
        ----------
        names : dict of str to sequence of str
            By input of the model, in its order. They stand in the metadata entry ``feature_names_in``.
        """
        columns = {name: tuple(columns) for name, columns in names.items()}
        self._recipe = self._recipe.replace(columns=columns)

    @property
    def expected(self) -> list[TensorSpec]:
        """What the losses want, named like the model's outputs."""
        return self._recipe.expected

    @property
    def scalar_dtype(self) -> np.dtype:
        """Dtype of row weights and of the learning rate: float64 if any weight is, else float32."""
        return self._recipe.scalar_dtype

    def check_expected(self, expected: Mapping[str, np.ndarray]) -> None:
        """Check expected values by output name, converted already, against what the losses allow.

        Raises
        ------
        InvalidDataError
            A label that is no class of the model, a count that is negative, ...
        """
        check_expected(self._recipe, expected)

    def feeds(self, X: Any, y: Any, sample_weight: Any = None) -> dict[str, np.ndarray]:
        """Checked and converted arrays of a batch by graph input: inputs, expected values, row weights."""
        return self._feeds(X, y, sample_weight).of_batch()

    def _feeds(self, X: Any, y: Any, sample_weight: Any) -> Feeds:
        self.settle(X, y)
        try:
            return feeds_of(self._recipe, X, y, sample_weight)
        except InvalidDataError:
            self.check_declared(X)
            raise

    def data_axes(self) -> dict[Key, dict[int, int | None]]:
        """Where the rows of data as a user gives it are, as :meth:`onnxcustom.data.Stream.place` takes it."""
        return data_axes(self._recipe)

    def check_declared(self, X: Any) -> None:
        """Look at what the model makes of some rows, where expected values do not fit.

        Raises
        ------
        InvalidDataError
            An output has not as many dimensions as the file declares.
        """
        size = next((spec.rows for spec in self.inputs if spec.rows is not None), 1)
        try:
            feeds = as_inputs(X, self.inputs)
            found = self.predict({s.name: some_rows(feeds[s.name], s, slice(size)) for s in self.inputs})
        except (EvaluationError, InvalidDataError):
            return  # what is wrong is something else
        for target in self.targets:
            made = found.get(target.output)
            if made is None or target.shape is None or target.value != target.output:
                continue
            if made.ndim != len(target.shape):
                raise InvalidDataError(
                    f"The file declares that output {target.output!r} has the dimensions {target.shape}, but "
                    f"for {size} of these rows its shape is {made.shape}. Declare it as it is, with "
                    f"{made.ndim} dimensions (onnx.helper.make_tensor_value_info), and say with "
                    f"batch_axis={{{target.output!r}: ...}} which of them holds the rows, if that is not the "
                    "first one."
                )

    def settle(self, X: Any, y: Any) -> None:
        """Let the shape of labels decide which axis of a prediction holds the classes, if nothing else does.

        Parameters
        ----------
        X, y
            Data as :meth:`run` takes it.
        """
        if self._unsettled:
            self._retarget(settled_by(self._recipe, X, y))

    @property
    def _unsettled(self) -> bool:
        return not all(t.settled for t in self._recipe.targets)

    def _retarget(self, targets: Sequence[Target]) -> None:
        """Take the losses in another way: the graphs are made again, what is trained stays."""
        if tuple(targets) != self._recipe.targets:
            self._become(self._recipe.replace(targets=tuple(targets)), self._state)

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
        penalties = self._recipe.penalties
        if not penalties:
            return 0.0
        weights, zero = self.weights(), np.zeros((), self.scalar_dtype)
        terms = [p.penalty_loss(None, zero, weights[name]) for name, p in penalties.items()]
        return sum(float(term.numpy()) for term in terms)

    def _scored(self, X: Any, y: Any, sample_weight: Any) -> list[np.ndarray]:
        feeds = self._feeds(X, y, sample_weight)
        weighted = feeds.weighted
        with self._lock:
            if weighted not in self._scores:
                self._scores[weighted] = Forward(self._recipe.scores(weighted), self.device, self.threads)
            # The two graphs may call their inputs differently, where a tensor of the model has the name.
            step, scores = self._graph(weighted), self._scores[weighted]
        asked = step.batch[len(step.inputs) :]
        feeds = feeds.renamed(dict(zip(asked, scores.inputs[-len(asked) :], strict=True)))
        axes = [0] * (1 if len(self.targets) == 1 else 1 + len(self.targets))
        return run_in_parts(scores, feeds.arrays, feeds.specs, self._state.front(), axes)

    def predict(self, X: Any) -> dict[str, np.ndarray]:
        """Floating-point outputs of the model with the present weights, by name.

        What a classifier's ZipMap reads stands for the list of dicts it makes of it.
        """
        with self._lock:
            forward = self._forward
            if forward is None:
                forward = self._forward = Forward(self._recipe.forward(), self.device, self.threads)
        names = list(self._recipe.predicted)
        specs = {spec.name: spec for spec in self.inputs}
        axes = [self.output_axis(name) for name in names]
        outputs = run_in_parts(forward, as_inputs(X, self.inputs), specs, self._state.front(), axes)
        return dict(zip(names, outputs, strict=True))

    def output_axis(self, name: str) -> int | None:
        """Axis of the rows in an output that :meth:`predict` gives, None if it has none."""
        return self._recipe.axes.of(self._recipe.predicted.get(name, name), name)

    # -- weights and state -----------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the present weights, by name."""
        return self._state.weights()

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """Copies of the optimizer's state: weight name -> state name -> array."""
        return self._state.of_rule()

    def statistics(self) -> dict[str, np.ndarray]:
        """Copies of the running statistics that the step updates, by name."""
        return self._state.running()

    def set_statistics(self, statistics: Mapping[str, np.ndarray]) -> None:
        """Overwrite running statistics; those that this step does not update become part of its model.

        Raises
        ------
        UnknownNameError, InvalidDataError
            A name that the model does not have or that is trained; an array of another shape or dtype, with
            NaN, infinity or a negative variance; nothing is changed.
        """
        if trained := [name for name in statistics if name in self._recipe.weights]:
            raise UnknownNameError(f"{trained} are trained weights, not statistics: use set_weights().")
        self._become(placed(self._recipe, self._state, statistics), self._state)

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Overwrite some or all weights.

        Raises
        ------
        UnknownNameError, InvalidDataError
            A name that is not trained, or an array of another shape or dtype; nothing is changed.
        """
        self._state.set_weights(weights)

    def set_state(self, state: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Overwrite the optimizer's state of some or all weights; errors as :meth:`set_weights`."""
        self._state.set_of_rule(state, self.optimizer)

    def start_from(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over weights of the model, also of those that are not trained here.

        Parameters
        ----------
        weights : dict of str to ndarray
            Some or all of what :func:`onnxcustom.weights` finds in the model.
        """
        self._become(placed(self._recipe, self._state, weights), self._state)

    def take_over(self, other: TrainingStep) -> None:
        """Go on where another step of this model is.

        That is its weights, its statistics and, if the optimizer is the same, its clock and the state
        of the weights that both train; a weight that joins begins at its own first step. What the other
        one has accumulated goes on as well if both train the same weights and accumulate alike.

        Raises
        ------
        UnknownNameError, InvalidDataError
            The other one is a step of another model, or none; nothing is changed.

        Warns
        -----
        UserWarning
            Batches that the other one has accumulated are left out.
        """
        if not isinstance(other, TrainingStep):
            raise InvalidDataError(f"take_over() takes a TrainingStep, not {other!r:.60}.")
        self._become(*taken_over(self._recipe, self._state, other._recipe, other._state))

    def trained_model(self) -> onnx.ModelProto:
        """The user's model with the present weights and statistics."""
        recipe, columns = self._recipe, self._recipe.columns
        tensors = {**recipe.moved, **self.weights(), **self.statistics()}
        trained = replace_constants(recipe.prepared.proto, tensors)
        if columns:
            write_feature_names(trained, {**read_feature_names(trained), **columns})
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
        return export_state(self._recipe, self._state)

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
        self._become(*import_state(self._recipe, self._state, tensors, state))
        self._optimizer.follow(self._state.clock)

    # -- pickling --------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = self._state
        kept = {
            "recipe": self._recipe,
            "arrays": state.read(),
            "counts": (state.iteration, state.skipped, state.pending, state.pending_rows),
            "units": state.pending_units,
            "clock": state.clock,
            "device": self.device,
            "threads": self.threads,
            "sess_options": options_state(self._sess_options),
        }
        return stamp_version(kept)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = check_version(state, self)
        if "recipe" not in state:
            state = as_written_now(state)
        self.device, self.threads = state["device"], state["threads"]
        self._sess_options = options_from(state["sess_options"], require_runtime().SessionOptions)
        self._recipe, clock = state["recipe"], state.get("clock")
        if clock is None:  # from an older version, where the rule had it
            clock = self._recipe.rule.clock
            self._recipe = self._recipe.replace(rule=self._recipe.rule.formula())
        self._forget_sessions()
        made = self._state = State(self._recipe, self.device, state["arrays"], clock)
        made.iteration, made.skipped, made.pending, made.pending_rows = state["counts"]
        made.pending_units = state.get("units")
        self._optimizer = self._recipe.rule.on(clock)

    def _forget_sessions(self) -> None:
        self._lock = ForkLock()
        self._programs = {}
        self._ran = None
        self._scores = {}
        self._forward = None

    def __repr__(self) -> str:
        targets = ", ".join(map(str, self.targets))
        axes = {**self.batch_axes().inputs, **{t.output: t.rows for t in self.targets}}
        return (
            f"TrainingStep({targets}, optimizer={self.optimizer!r}, weights={len(self._recipe.weights)}, "
            f"batch_axis={axes}, "
            f"engine={self.engine.name!r}, device={self.device.name!r}, iteration={self.iteration})"
        )


def _options(optimizer: BaseLearningRate) -> dict[str, Any]:
    """The options that graphs are made with, as they are now: the learning rate is fed to them."""
    return {k: v for k, v in optimizer.get_params().items() if k not in ("learning_rate", "eta0")}

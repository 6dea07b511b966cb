"""The training ladder: ``fit -> partial_fit -> fit_loop -> run_epoch -> train_step``.

Each rung does one thing and calls the next, so that a subclass overrides the one it wants to
change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from onnxcustom._parameters import check_count
from onnxcustom._warnings import warn_user
from onnxcustom.data import Block, Stream
from onnxcustom.data.naming import naming
from onnxcustom.data.owned import sealed
from onnxcustom.data.sources import UnalignedError
from onnxcustom.exceptions import ConvergenceError, EvaluationError, InvalidDataError, RowsWarning
from onnxcustom.feed.data_loader import Batch, LentBatch, OrtDataLoader, draw_seed
from onnxcustom.feed.held_out import score_stream
from onnxcustom.feed.splitting import check_fraction, hold_out
from onnxcustom.graph import Prepared
from onnxcustom.graph.files.feature_names import read_feature_names
from onnxcustom.step.training_step import TrainingStep

from .callbacks import Callback, Callbacks, Checkpoint, PrintLog, ProgressBar
from .columns import check_columns, first_columns, in_order
from .loading import Reading, make_loader, make_validation
from .plan import Begun, Given, Plan, Resumed
from .results import Results
from .resuming import capture, checked, restore_callbacks, take_place
from .run import Run, deferred_interrupt

__all__ = ["Trainer"]


class Trainer(Results):
    """Base of the estimators: everything about training that does not depend on the task.

    A subclass stores its parameters in its constructor, writes :meth:`make_step` and may change the
    expected values before training in :meth:`encode`.

    Attributes
    ----------
    step_ : TrainingStep
        The training step, with weights and optimizer state.
    weights_ : dict of str to ndarray
        Copies of the trained weights, by name.
    history_ : dict of str to list of float
        ``'loss'``, the mean objective over the rows, ``'val_loss'`` if there is validation data, the same of
        every output as ``'<output>_loss'`` and ``'val_<output>_loss'`` if several are trained, and what
        callbacks measure: lists of one number an epoch, NaN where it was not measured. Outputs whose names
        begin with ``val``, ``train`` or ``neg``, as those of other measures do, have
        ``'output_<output>_loss'``.
    n_iter_ : int
        Epochs done.
    callbacks_ : list of Callback
        The copies of the callbacks that looked at the last training.
    stop_reason_ : str or None
        Why it ended before its last epoch, if it did.
    """

    batch_size: int
    max_iter: int
    warm_start: bool
    verbose: int
    random_state: Any = None
    shuffle: bool | None = None
    callbacks: Any = None
    checkpoint_dir: Any = None
    validation_fraction: float | None = None

    # -- what a subclass writes ------------------------------------------------------------------

    @property
    def shuffles(self) -> bool:
        """Whether each epoch takes the rows in another order: unless :attr:`shuffle` is False."""
        return self.shuffle is None or bool(self.shuffle)

    @abstractmethod
    def make_step(self, X: Any, y: Any) -> TrainingStep:
        """A new training step at the model's own weights, for data as the user gave it."""

    def encode(self, y: Any, step: TrainingStep) -> Any:
        """The expected values as the step wants them."""
        return y

    def weigher(self, X: Any, y: Any) -> Callable[[Any, Any], Any] | None:
        """Makes weights of rows, of expected values and weights as the user gave them; None: the latter.

        `X` and `y` are the data to train on. The same function weighs the validation data.
        """
        return None

    def sample(self, stream: Stream) -> tuple[Any, Any]:
        """Features and expected values to make a step for, of data that is not in memory."""
        try:
            head = stream.head()
        except UnalignedError as exc:  # the model will tell where the rows are
            head = Block(exc.given)
        return head.X, head.y

    # -- the ladder --------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        sample_weight_val: Any = None,
    ) -> Any:
        """Train from the weights in the model, or with ``warm_start`` from those of the last fit.

        Parameters
        ----------
        X : array_like of shape (n, ...), DataFrame, dict of str to array_like, or Stream
            Features; a dict when the model has several inputs. :func:`onnxcustom.data.stream` brings
            features, expected values and weights of the rows, as does an iterable of batches.
        y : array_like of shape (n,) or (n, ...), or dict of str to array_like, optional
            Expected values; a dict when there are several losses. None for a stream.
        sample_weight : array_like of shape (n,), optional
            One weight per row.
        X_val, y_val : like `X` and `y`, optional
            Validation data: the objective over it is computed after every epoch.
        sample_weight_val : like `sample_weight`, optional
            Weights of the rows of the validation data. Rows that ``validation_fraction`` holds out have
            theirs from `sample_weight`.

        Returns
        -------
        self

        Raises
        ------
        OnnxCustomError
            Bad data, a bad parameter or a model that cannot be trained: before anything of this
            estimator changes.
        ConvergenceError
            The loss stopped being finite; :attr:`weights_` holds the last finite weights.
        """
        self._check_idle()
        check_count("max_iter", self.max_iter)
        self._check_flags()
        checkpoint = self._checkpoint()
        before = self._results()
        try:
            with contextlib.ExitStack() as stack:
                resumed = None
                if checkpoint is not None:
                    store, saved = stack.enter_context(checkpoint.opened())
                    resumed = Resumed(checkpoint, store, checked(saved))
                if not self.warm_start:
                    self._replace_results({})
                plan = Plan(self.max_iter, whole=True, resumed=resumed)
                # Older overrides of partial_fit do not know it.
                more = {} if sample_weight_val is None else {"sample_weight_val": sample_weight_val}
                return self.partial_fit(X, y, sample_weight, X_val, y_val, epochs=plan, **more)
        except BaseException:
            if not self.__sklearn_is_fitted__():  # training never began: as if fit had not been called
                self._replace_results(before)
            raise

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        epochs: int = 1,
        sample_weight_val: Any = None,
    ) -> Any:
        """Train for some more epochs from wherever training is.

        Parameters
        ----------
        X, y, sample_weight, X_val, y_val, sample_weight_val
            As :meth:`fit` takes them.
        epochs : int, default=1
            How many. Overrides hand on what they get: that of :meth:`fit` is a :class:`Plan`.

        Returns
        -------
        self
        """
        return self._train(Given(X, y, sample_weight, X_val, y_val, sample_weight_val), epochs)

    def _train(self, given: Given, epochs: int, classes: Any = None) -> Any:
        """Find everything out, then train; `classes` are the labels, where somebody says which."""
        self._check_idle()
        check_count("epochs", epochs)
        self._check_flags()
        plan = epochs if isinstance(epochs, Plan) else Plan(epochs)
        begun = self._begin(given, plan, classes)
        before = self._results()
        self._adopt(begun, plan)
        run, done = begun.run, begun.step.iteration
        run.rate = run.rate or begun.step.optimizer.make_schedule()
        try:
            with naming(begun.names_of):
                self._supervise(run, plan)
        except BaseException as exc:
            # Data may not fit in a way that only shows when it is read or run.
            unfit = isinstance(exc, (EvaluationError, InvalidDataError)) and begun.step.iteration == done
            if unfit or not run.begun:
                self._replace_results(before)
            raise
        return self

    def _supervise(self, run: Run, plan: Plan) -> None:
        """Run the epochs that are left, between the first and the last word of the callbacks."""
        self._run = run
        self.callbacks_, self.stop_reason_ = run.callbacks.items, None
        try:
            run.callbacks.begin(self)
            if plan.saved is not None:
                restore_callbacks(plan.saved, self, run)
            run.begun = True
            left = run.epochs - self.n_iter_
            if left > 0 and run.stop_reason is None:
                with contextlib.nullcontext() if run.store is None else deferred_interrupt(run):
                    self.fit_loop(run.loader, run.validation, left)
            if plan.whole and not run.diverged:
                self._apply_accumulated(run)
        except BaseException as exc:
            run.error = exc
            raise
        finally:
            self.stop_reason_ = run.stop_reason
            try:
                run.callbacks.end(self)
            finally:
                del self._run

    def _apply_accumulated(self, run: Run) -> None:
        """Update the weights by what is left of ``accumulate``; a checkpoint keeps it, for a longer run."""
        if not self.step_.pending:
            return
        for callback in run.callbacks.items:
            if isinstance(callback, Checkpoint):
                callback.on_train_end(self)
        with self._told_of_divergence(run, f"After epoch {self.n_iter_}"):
            self.step_.apply_accumulated()

    @contextlib.contextmanager
    def _told_of_divergence(self, run: Run, when: str) -> Iterator[None]:
        """Let callbacks say whether an objective or an update that is not finite is an error."""
        try:
            yield
        except ConvergenceError as exc:
            run.diverged = True
            error = ConvergenceError(f"{when}: {exc}")
            if not run.callbacks.accept(self, error):
                raise error from exc

    def fit_loop(self, loader: OrtDataLoader, validation: Any = None, epochs: int = 1) -> None:
        """Run epochs on data that was checked, keeping the history."""
        run = self.run
        for _ in range(epochs):
            if not run.batches:
                run.callbacks.call("on_epoch_begin", self)
            with self._told_of_divergence(run, f"Epoch {self.n_iter_ + 1}"):
                loss = self.run_epoch(loader)
                if run.cut:
                    break
                self._end_epoch(run, loss, validation)
                run.callbacks.call("on_epoch_end", self)
            if run.stop_reason is not None or run.diverged:
                break

    def _end_epoch(self, run: Run, loss: float, validation: Any) -> None:
        """Count an epoch that is through and write down what is known of it."""
        self.n_iter_ += 1
        heads = run.head_losses
        run.begin_epoch()
        for name in {**self.history_, **dict.fromkeys(run.measures)}:
            self.record(name, math.nan)
        self.record("loss", loss)
        curves = {target.output: target.curve for target in self.step_.targets}
        for name, value in heads.items():
            self.record(curves[name], value)
        if validation is not None and self.validation_due():
            means = np.atleast_1d(validation.mean_loss(self._validated))
            for name, value in zip(["loss", *curves.values()], means.tolist(), strict=False):
                self.record(f"val_{name}", value)
        if self.step_.optimizer.report_epoch(loss):
            run.stop("the schedule of the learning rate sees no use in going on")

    def run_epoch(self, loader: OrtDataLoader) -> float:
        """Train once on every row, or on those that are left; the mean objective over the rows."""
        run = self.run
        observed, several = bool(run.callbacks.of_batches), len(self.step_.targets) > 1
        overridden = type(self).train_step is not Trainer.train_step
        total, rows, batches = run.total, run.rows, run.batches
        for batch in loader.epoch(self.n_iter_, batches):
            if overridden:
                batch = batch.copy()
            if observed:
                lent = LentBatch(batch)
                run.callbacks.begin_batch(self, lent)
            loss = self.train_step(batch)
            batches += 1
            if math.isfinite(loss):  # else the step was skipped
                total, rows = total + batch.rows * loss, rows + batch.rows
                if several:
                    run.add_heads(self.step_.head_losses, batch.rows)
            if observed:
                run.batches, run.total, run.rows = batches, total, rows
                run.callbacks.end_batch(self, lent, loss)
                lent.take_back()
            if run.stop_reason is not None and batches != loader.n_batches:
                run.batches, run.total, run.rows = batches, total, rows
                run.cut = True
                break
        if not rows and not run.cut:
            raise ConvergenceError("the objective of every batch is NaN or infinite; all were skipped.")
        return total / rows if rows else math.nan

    def train_step(self, batch: Batch) -> float:
        """Train on one batch; its objective before the update."""
        return self.step_.run_batch(batch.values)

    def validation_due(self) -> bool:
        """Whether a validation follows the epoch just ended: always, unless a subclass says otherwise."""
        return True

    def validate(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The objective over validation data: arrays by name of input and of output, weights of the rows."""
        scores = self.step_.scores(X, y, sample_weight)
        return float(np.mean(scores, dtype=np.float64)) + self.step_.penalty()

    def _validated(self, X: Any, y: Any, *weights: Any) -> Any:
        """What :meth:`validate` says, and the mean loss of every output behind it, if several are trained."""
        loss = self.validate(X, y, *weights)  # overrides of older programs know nothing of weights
        if len(self.step_.targets) < 2:
            return loss
        heads = self.step_.head_scores(X, y, *weights)
        return np.array([loss, *(np.mean(scores, dtype=np.float64) for scores in heads.values())])

    @property
    def run(self) -> Run:
        """The training that goes on.

        Raises
        ------
        AttributeError
            None does.
        """
        if self._run is None:
            raise AttributeError(f"This {type(self).__name__} is not training: run is there during fit only.")
        return self._run

    def record(self, name: str, value: float) -> None:
        """Write a number of the epoch just ended into the history."""
        values = self.history_.setdefault(name, [])
        value = float(value)
        del values[self.n_iter_ - 1 :]
        values += [math.nan] * (self.n_iter_ - 1 - len(values)) + [value]

    # -- before training ---------------------------------------------------------------------------

    def _check_idle(self) -> None:
        if self._run is not None:
            raise RuntimeError(f"This {type(self).__name__} is training: a callback may fit a clone of it.")

    def _checkpoint(self) -> Checkpoint | None:
        """Who saves the run: :attr:`checkpoint_dir`, or the one among the callbacks."""
        found = [c for c in Callbacks(self.callbacks).items if isinstance(c, Checkpoint)]
        if self.checkpoint_dir is not None:
            found.append(Checkpoint(self.checkpoint_dir))
        if len(found) > 1:
            raise ValueError(f"A training has one folder for its checkpoints, not those of {found}.")
        if found and self.warm_start:
            raise ValueError(
                "warm_start=True goes on from the last fit, a run with checkpoints from the last of them: "
                "use one of the two."
            )
        return found[0] if found else None

    def _begin(self, given: Given, plan: Plan, classes: Any) -> Begun:
        """Everything of a training, checked, before anything of this estimator changes."""
        data, fitted = given.owned(bool(self.callbacks) or not _is_ours(self)), self.__sklearn_is_fitted__()
        going_on = fitted and self._changed() <= self._live_parameters
        prepared = None if going_on or self._model is None else Prepared.of(self._model)
        if isinstance(data.X, Stream):
            data = dataclasses.replace(data, X=in_order(data.X, self._known_columns(prepared)))
        with naming(data.names_of):
            if going_on:
                step, meaning = self.step_, self._meaning
            else:
                step, meaning = self._new_step(prepared, data, classes)
            if fitted and not going_on:
                step.take_over(self.step_)
            for stream in data.streams:
                stream.place(step.data_axes())
            columns = {} if fitted else first_columns(self, data.X, step)
            if fitted:
                self._check_features(data.X, step)
            run = self._prepare(step, meaning, columns, data, plan)
        return Begun(step, meaning, columns, run, data.names_of)

    def _known_columns(self, prepared: Prepared | None) -> tuple[str, ...] | None:
        """Names of the columns that are trained on, in the model's order, as far as they are known."""
        if self.__sklearn_is_fitted__():
            return self.step_.inputs[0].columns
        names = {} if prepared is None else read_feature_names(prepared.model)
        return next(iter(names.values()), None)

    def _new_step(self, prepared: Prepared | None, data: Given, classes: Any) -> tuple[TrainingStep, Any]:
        """A step, and what its predictions mean."""
        X, y = data.X, data.y
        if isinstance(X, Stream):
            X, y = self._sample(X, prepared)
        step = self._make_step(prepared, X, y)
        return step, self._meaning_of(prepared, step, dataclasses.replace(data, y=y), X, classes)

    def try_step(self, X: Any, y: Any) -> None:
        """Find out whether a step can be made for data in memory, and what its predictions mean.

        Raises
        ------
        OnnxCustomError
            What :meth:`fit` would say.
        """
        prepared = None if self._model is None else Prepared.of(self._model)
        self._new_step(prepared, Given(X, y), None)

    # What the public methods of the same names do, by what is known already.

    def _sample(self, stream: Stream, prepared: Prepared | None) -> tuple[Any, Any]:
        return self.sample(stream)

    def _make_step(self, prepared: Prepared | None, X: Any, y: Any) -> TrainingStep:
        return self.make_step(X, y)

    def _encode(self, y: Any, step: TrainingStep, meaning: Any) -> Any:
        return self.encode(y, step)

    def _weigher(self, X: Any, y: Any, meaning: Any) -> Callable[[Any, Any], Any] | None:
        return self.weigher(X, y)

    def _meaning_of(
        self, prepared: Prepared | None, step: TrainingStep, data: Given, X: Any, classes: Any
    ) -> Any:
        """What predictions of a step mean; `X` are features in memory, all of the data or their head."""
        return None

    def _prepare(
        self, step: TrainingStep, meaning: Any, columns: dict[str, Any], data: Given, plan: Plan
    ) -> Run:
        """A training that can begin."""
        data.check_epochs(plan)
        seed = self._seed_for(plan)
        data = self._held_out(step, data, seed)
        weigh = self._weigher(data.X, data.y, meaning)
        reading = Reading(step, lambda y: self._encode(y, step, meaning), weigh)
        loader = make_loader(reading, data, self.batch_size, self.shuffles, seed)
        if isinstance(data.X_val, Stream):
            data = dataclasses.replace(data, X_val=in_order(data.X_val, step.inputs[0].columns))
        if data.X_val is not None and "n_features_in_" in (columns or vars(self)):
            check_columns(self, data.X_val, step, "feature_names_in_" not in (columns or vars(self)), columns)
        validation = make_validation(reading, data)
        shown = (sealed(data.X), sealed(data.y), sealed(data.X_val), sealed(data.y_val))
        run = Run(*shown, loader, validation, self._all_callbacks(plan), seed=seed)
        run.sample_weight, run.sample_weight_val = sealed(data.sample_weight), sealed(data.sample_weight_val)
        run.epochs = getattr(self, "n_iter_", 0) + plan
        if self.shuffle is None:
            _warn_of_mixing(step)
        run.on_the_way = ["loss", *(t.curve for t in step.targets if len(step.targets) > 1)]
        held_out = [] if validation is None else [f"val_{name}" for name in run.on_the_way]
        run.callbacks.prepare(run, run.on_the_way + held_out)
        if plan.resumed is not None:
            take_place(plan.resumed, self, step, run)
        return run

    def _seed_for(self, plan: Plan) -> int:
        """The seed of the order of rows: that of the training that goes on, else a new one."""
        known = self._seed if plan.saved is None else plan.saved.state["seed"]
        drawn = isinstance(self.random_state, (np.random.RandomState, np.random.Generator))
        if known is None or not drawn:  # what is no seed is refused all the same
            seed = draw_seed(self.random_state)
        return seed if known is None else known

    def _all_callbacks(self, plan: Plan) -> Callbacks:
        """The user's and those that parameters stand for; the checkpoint last, when all have their state."""
        shown: list[Callback] = []
        if self.verbose:
            shown.append(ProgressBar() if self.verbose == 1 else PrintLog())
        callbacks = Callbacks(self.callbacks, *shown)
        others = [c for c in callbacks.items if not isinstance(c, Checkpoint)]
        return Callbacks(others, *([] if plan.resumed is None else [plan.resumed.checkpoint]))

    def _held_out(self, step: TrainingStep, data: Given, seed: int) -> Given:
        """The data, part of them held out for validation if the parameters say so and there are none."""
        fraction = self.validation_fraction
        if fraction is not None:
            check_fraction(fraction)
        if fraction is None or data.X_val is not None or data.y_val is not None:
            return data
        if isinstance(data.X, Stream):
            kept, held = data.X.split(fraction, seed)
            return Given(kept, None, data.sample_weight, held)
        strata, axes = self._strata(data.y), step.data_axes()
        return Given(*hold_out(data.X, data.y, data.sample_weight, fraction, seed, strata, axes))

    def _strata(self, y: Any) -> np.ndarray | None:
        """What both parts of the data are to hold in the same shares."""
        return None

    def _adopt(self, begun: Begun, plan: Plan) -> None:
        """Everything was checked: training is about to begin with this step."""
        step = begun.step
        if not self.__sklearn_is_fitted__():
            self.history_, self.n_iter_ = {"loss": []}, 0
        elif step is self.step_:
            self._change(step, self._changed())
        if plan.saved is not None:
            self.n_iter_, self.history_ = plan.saved.state["n_iter"], plan.saved.state["history"]
        self.step_, self._seed, self._meaning = step, begun.run.seed, begun.meaning
        self._made_from = self._as_made()
        for name, value in begun.columns.items():
            setattr(self, name, value)

    def _change(self, step: TrainingStep, parameters: set[str]) -> None:
        """Make a step follow those of :attr:`_live_parameters` that were set since it was made."""

    def checkpoint_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a checkpoint of the training that goes on holds: tensors, and what JSON holds."""
        return capture(self, self.run)

    def score_with(
        self, scorer: Any, X: Any, y: Any, sample_weight: Any = None, *, weighs: bool = False
    ) -> Any:
        """What a scorer ``(estimator, X, y) -> float`` says of the present weights; `X` may be a stream.

        With `weighs` it is given the weights of the rows, if there are some; those of a stream are its own.
        """
        if isinstance(X, Stream):
            return score_stream(scorer, self, X, weighs)
        given = {"sample_weight": sample_weight} if weighs and sample_weight is not None else {}
        return scorer(self, X, y, **given)


def _is_ours(thing: Any) -> bool:
    """Whether an object's class is one of this library."""
    return type(thing).__module__.partition(".")[0] == __name__.partition(".")[0]


def _warn_of_mixing(step: TrainingStep) -> None:
    """Say of losses that depend on the order of the rows that nobody has said anything about that."""
    for target in step.targets:
        operator = step.recipe.mixing(target)
        if operator is not None:
            warn_user(
                f"The loss {target.loss!r} of output {target.output!r} mixes rows: by its {operator}, the "
                "loss of a row depends on the other rows of the batch, and each epoch takes the rows in "
                "another order. Say which is meant: shuffle=False keeps the order of the data, shuffle=True "
                "accepts other rows in every batch.",
                RowsWarning,
            )

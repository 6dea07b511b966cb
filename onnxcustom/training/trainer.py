"""The training ladder: ``fit -> partial_fit -> fit_loop -> run_epoch -> train_step``.

Each rung does one thing and calls the next, so that a subclass overrides the one it wants to
change.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxcustom._parameters import check_count
from onnxcustom.data import Stream
from onnxcustom.data.naming import naming
from onnxcustom.exceptions import CallOrderError, ConvergenceError, EvaluationError, InvalidDataError
from onnxcustom.feed.batch_buffers import Batch, LentBatch
from onnxcustom.feed.data_loader import OrtDataLoader
from onnxcustom.feed.held_out import score_stream

from .beginning import Beginning
from .callbacks import Checkpoint, Score
from .frozen_loader import FrozenBatch
from .frozen_stream import FrozenStreamLoader
from .plan import Begun, Given, Plan, Resumed
from .resuming import capture, checked, restore_callbacks
from .run import Run, deferred_interrupt
from .several_heads import apart, weighing
from .windows import counts_differ, in_windows, leave_out_cut, one_label_a_row

__all__ = ["Trainer"]


class Trainer(Beginning):
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
        return self._fit(Given(X, y, sample_weight, X_val, y_val, sample_weight_val))

    def _fit(self, given: Given) -> Any:
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
                *data, weight = (getattr(given, field.name) for field in dataclasses.fields(given))
                # Older overrides of partial_fit do not know it.
                more = {} if weight is None else {"sample_weight_val": weight}
                return self.partial_fit(*data, epochs=plan, **more)
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

    def _check_idle(self) -> None:
        if self._run is not None:
            raise CallOrderError(f"This {type(self).__name__} is training: a callback may fit a clone of it.")

    def _train(self, given: Given, epochs: int, classes: Any = None) -> Any:
        """Find everything out, then train; `classes` are the labels, where somebody says which."""
        self._check_idle()
        check_count("epochs", epochs)
        self._check_flags()
        plan = epochs if isinstance(epochs, Plan) else Plan(epochs)
        begun = self._begin(given, plan, classes)
        with deferred_interrupt(begun.run), naming(begun.names_of):
            self._run_through(begun, plan)
        return self

    def _run_through(self, begun: Begun, plan: Plan) -> None:
        """Train by what was found out; what never began leaves everything as it was."""
        before, rule = self._results(), begun.step.optimizer
        clock, rate = copy.copy(rule.clock), rule.learning_rate
        self._adopt(begun, plan)
        run, done = begun.run, begun.step.iteration
        run.rate = run.rate or rule.make_schedule()
        try:
            self._supervise(run, plan)
        except BaseException as exc:
            # Data may not fit in a way that only shows when it is read or run.
            unfit = isinstance(exc, (EvaluationError, InvalidDataError)) and begun.step.iteration == done
            if unfit or not run.begun:
                self._replace_results(before)
                rule.use_rate(rate)  # another one may have been set, for the training that never was
                rule.clock.become(clock)
            raise

    def _supervise(self, run: Run, plan: Plan) -> None:
        """Run the epochs that are left, between the first and the last word of the callbacks."""
        self._run = run
        self.callbacks_, self.stop_reason_ = run.callbacks.items, None
        try:
            run.callbacks.begin(self)
            if plan.saved is not None:
                restore_callbacks(plan.saved, self, run)
            run.check_interrupted()
            run.begun = True
            left = run.epochs - self.n_iter_
            if left > 0 and run.stop_reason is None:
                self.fit_loop(run.loader, run.validation, left)
            run.check_interrupted()
            if plan.whole and not run.diverged and self._apply_accumulated(run):
                self._measure_again(run)
        except BaseException as exc:
            run.error = exc
            raise
        finally:
            self.stop_reason_ = run.stop_reason
            if isinstance(run.loader, FrozenStreamLoader):
                ended = run.error is None and (run.stop_reason is None or run.final)
                run.loader.close(keep=not ended)
            try:
                run.callbacks.end(self)
            finally:
                del self._run

    def _apply_accumulated(self, run: Run) -> bool:
        """Update the weights by what is left of ``accumulate``; a checkpoint keeps it, for a longer run."""
        if not self.step_.pending:
            return False
        for callback in run.callbacks.items:
            if isinstance(callback, Checkpoint):
                callback.on_train_end(self)
        leave_out_cut(self.step_)
        with self._told_of_divergence(run, f"After epoch {self.n_iter_}"):
            return self.step_.apply_accumulated()
        return False

    def _measure_again(self, run: Run) -> None:
        """What was measured after the last epoch was before that update: its weights are others now."""
        if run.cut:
            return
        if run.validation is not None and math.isfinite(self.history_.get("val_loss", [math.nan])[-1]):
            self._record_validation(run.validation)
        for callback in run.callbacks.items:
            if isinstance(callback, Score):
                callback.on_epoch_end(self)

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
        heads = run.head_losses if len(self.step_.targets) > 1 else {}
        run.begin_epoch()
        for name in {**self.history_, **dict.fromkeys(run.measures)}:
            self.record(name, math.nan)
        self.record("loss", loss)
        curves = {target.output: target.curve for target in self.step_.targets}
        for name, value in heads.items():
            self.record(curves[name], value)
        if validation is not None and self.validation_due():
            self._record_validation(validation)
        if self.step_.optimizer.report_epoch(loss):
            run.stop("the schedule of the learning rate sees no use in going on")

    def _record_validation(self, validation: Any) -> None:
        """Write down what the present weights are worth on validation data."""
        means = np.atleast_1d(validation.mean_loss(self._validated, weighing(self.step_)))
        means[0] += apart(self.step_, means[1:])
        curves = [target.curve for target in self.step_.targets]
        for name, value in zip(["loss", *curves], means.tolist(), strict=False):
            self.record(f"val_{name}", value)

    def run_epoch(self, loader: OrtDataLoader) -> float:
        """Train once on every row, or on those that are left; the mean objective over the rows."""
        run = self.run
        observed, several = bool(run.callbacks.of_batches), len(self.step_.targets) > 1
        run.by_rows = one_label_a_row(self.step_, loader)
        counted = self.step_.counts_labels and not run.by_rows
        overridden = type(self).train_step is not Trainer.train_step
        total, rows, batches = run.total, run.rows, run.batches
        given = loader.epoch(self.n_iter_, batches)
        if counts_differ(self.step_, loader):
            given = in_windows(self.step_, given, batches)
        for batch in given:
            if overridden:
                batch = batch.copy()
            if observed:
                lent = LentBatch(batch)
                run.callbacks.begin_batch(self, lent)
            loss = self.train_step(batch)
            batches += 1
            if math.isfinite(loss):  # else the step was skipped
                rest = run.add_counted(loss, self.step_, batch.rows) if counted else loss
                total, rows = total + batch.rows * rest, rows + batch.rows
                if several and not counted:
                    run.add_heads(self.step_.head_losses, self.step_.head_units)
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
        if not rows:
            return math.nan
        return total / rows + run.counted_loss(self.step_) if counted else total / rows

    def train_step(self, batch: Batch) -> float:
        """Train on one batch; its objective before the update."""
        return (
            batch.train(self.step_)
            if isinstance(batch, FrozenBatch)
            else self.step_.run_checked(batch.values, by_rows=self.run.by_rows)
        )

    def validation_due(self) -> bool:
        """Whether a validation follows the epoch just ended: always, unless a subclass says otherwise."""
        return True

    def validate(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The objective over validation data: arrays by name of input and of output, weights of the rows."""
        scores = self.step_.scores(X, y, sample_weight)
        return float(np.mean(scores, dtype=np.float64)) + self.step_.penalty()

    def _measures_otherwise(self) -> bool:
        """Whether a subclass has a validation of its own."""
        return type(self).validate is not Trainer.validate

    def _validated(self, X: Any, y: Any, *weights: Any) -> Any:
        """What :meth:`validate` says, and the mean loss of every output behind it, if several are trained."""
        loss = self.validate(X, y, *weights)  # overrides of older programs know nothing of weights
        if len(self.step_.targets) < 2:
            return loss
        scores = self.step_.head_scores(X, y, *weights)
        heads = [np.mean(scores, dtype=np.float64) for scores in scores.values()]
        return np.array([loss - apart(self.step_, heads), *heads])

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

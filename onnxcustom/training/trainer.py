"""The training ladder: ``fit -> partial_fit -> fit_loop -> run_epoch -> train_step``.

Each rung does one thing and calls the next, so that a subclass overrides the one it wants to
change.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import validate_data

from onnxcustom._parameters import check_count, check_flag
from onnxcustom._versioning import check_version, stamp_version
from onnxcustom._warnings import warn_user
from onnxcustom.data import Block, Stream
from onnxcustom.data.frames import is_frame, text_names
from onnxcustom.data.given import as_data
from onnxcustom.data.naming import naming
from onnxcustom.data.owned import owned_parts, sealed
from onnxcustom.data.sources import UnalignedError
from onnxcustom.exceptions import (
    CheckpointError,
    ConvergenceError,
    EvaluationError,
    InvalidDataError,
    RowsWarning,
)
from onnxcustom.feed.arrays import dimensions, is_named, ordered
from onnxcustom.feed.data_loader import Batch, LentBatch, OrtDataLoader, draw_seed
from onnxcustom.feed.held_out import ArrayValidation, StreamValidation, score_stream
from onnxcustom.feed.specs import rows_of
from onnxcustom.feed.splitting import check_fraction, hold_out
from onnxcustom.feed.stream_loader import StreamLoader
from onnxcustom.feed.validation import as_inputs, as_targets, weights_of
from onnxcustom.graph import load
from onnxcustom.graph.files.feature_names import read_feature_names
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.checkpoints.checkpoint import CheckpointStore, Saved

from .callbacks import Callback, Callbacks, Checkpoint, PrintLog, ProgressBar
from .resuming import capture, check_same, checked, fingerprint, restore, restore_callbacks
from .run import Run, deferred_interrupt

__all__ = ["Trainer"]


class _Resumed(NamedTuple):
    """The checkpoints of a fit: who writes them, where, and the last one there is."""

    checkpoint: Checkpoint
    store: CheckpointStore
    saved: Saved | None


class _Fit(NamedTuple):
    """A call of ``fit`` on its way to ``partial_fit``."""

    trainer: Trainer
    resumed: _Resumed | None


# What fit() hands down to partial_fit(), whose parameters are the user's; each thread has its own.
_FIT: ContextVar[_Fit | None] = ContextVar("onnxcustom_fit", default=None)


class Trainer(BaseEstimator):
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

    _run: Run | None = None

    # What a step is made of: with warm_start, a change of one of these makes a new step.
    _step_parameters: tuple[str, ...] = ()
    # Those that are True or False.
    _flags: tuple[str, ...] = ("shuffle", "warm_start")
    # Those that may change without a new step.
    _live_parameters: frozenset[str] = frozenset()

    step_: TrainingStep
    history_: dict[str, list[float]]
    n_iter_: int

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
        if self._run is not None:
            raise RuntimeError(f"This {type(self).__name__} is training: a callback may fit a clone of it.")
        check_count("max_iter", self.max_iter)
        self._check_flags()
        checkpoint = self._checkpoint()
        kept = {} if self.warm_start else self._forget()
        try:
            with contextlib.ExitStack() as stack:
                resumed = None
                if checkpoint is not None:
                    store, saved = stack.enter_context(checkpoint.opened())
                    resumed = _Resumed(checkpoint, store, checked(saved))
                token = _FIT.set(_Fit(self, resumed))
                stack.callback(_FIT.reset, token)
                # Older overrides of partial_fit do not know it.
                more = {} if sample_weight_val is None else {"sample_weight_val": sample_weight_val}
                return self.partial_fit(X, y, sample_weight, X_val, y_val, epochs=self.max_iter, **more)
        except BaseException:
            if not self.__sklearn_is_fitted__():  # training never began: as if fit had not been called
                self.__dict__.update(kept)
            raise

    @property
    def _fit(self) -> _Fit | None:
        """The call of :meth:`fit` that this is part of."""
        fit = _FIT.get()
        return fit if fit is not None and fit.trainer is self else None

    @property
    def _resumed(self) -> _Resumed | None:
        return None if self._fit is None else self._fit.resumed

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
            How many.

        Returns
        -------
        self
        """
        if self._run is not None:
            raise RuntimeError(f"This {type(self).__name__} is training: a callback may fit a clone of it.")
        check_count("epochs", epochs)
        self._check_flags()
        before = dict(self.__dict__)
        saved = None if self._resumed is None else self._resumed.saved
        try:
            X, X_val = as_data(X, y), None if X_val is None else as_data(X_val, y_val)
            given = X, y, sample_weight, X_val, y_val, sample_weight_val
            own = owned_parts(given, watched=bool(self.callbacks) or not _is_ours(self))
            X, y, sample_weight, X_val, y_val, sample_weight_val = own
            if isinstance(X, Stream):
                X = _in_order(X, self._known_columns())
            with naming(functools.partial(_columns_of, X)):
                step = self._step_for(X, y)
                for data in (X, X_val):
                    if isinstance(data, Stream):
                        data.place(step.data_axes())
                run = self._prepare(step, X, y, sample_weight, X_val, y_val, sample_weight_val, epochs)
            self._adopt(step, run.seed)
            run.rate = run.rate or step.optimizer.make_schedule()
        except BaseException:  # what was found out about a model that isn't trained is forgotten
            self._become(before)
            raise
        if saved is not None:
            self.n_iter_, self.history_ = saved.state["n_iter"], saved.state["history"]
        done = step.iteration
        try:
            with naming(functools.partial(_columns_of, X)):
                self._supervise(run, saved)
        except BaseException as exc:
            # Data may not fit in a way that only shows when it is read or run.
            unfit = isinstance(exc, (EvaluationError, InvalidDataError)) and step.iteration == done
            if unfit or not run.begun:
                self._become(before)
            raise
        return self

    def _supervise(self, run: Run, saved: Saved | None) -> None:
        """Run the epochs that are left, between the first and the last word of the callbacks."""
        self._run = run
        self.callbacks_, self.stop_reason_ = run.callbacks.items, None
        try:
            run.callbacks.begin(self)
            if saved is not None:
                restore_callbacks(saved, self, run)
            run.begun = True
            left = run.epochs - self.n_iter_
            if left > 0 and run.stop_reason is None:
                with contextlib.nullcontext() if run.store is None else deferred_interrupt(run):
                    self.fit_loop(run.loader, run.validation, left)
            if self._fit is not None and not run.diverged:
                self._apply_accumulated(run)
        except BaseException as exc:
            run.error = exc
            raise
        finally:
            self.stop_reason_ = run.stop_reason
            try:
                run.callbacks.end(self)
            finally:
                self.__dict__.pop("_run", None)

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
    def weights_(self) -> dict[str, np.ndarray]:
        """Copies of the trained weights, by name."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"This {type(self).__name__} is not fitted yet: it has no weights_.")
        return self.step_.weights()

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

    def _check_flags(self) -> None:
        """Refuse words that Python would take for True."""
        for name in self._flags:
            value = getattr(self, name)
            if name != "shuffle" or value is not None:
                check_flag(name, value)
        if not isinstance(self.verbose, (int, np.integer, np.bool_)) or self.verbose < 0:
            raise ValueError(f"verbose must be 0, 1 or 2, not {self.verbose!r}.")

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

    def _prepare(
        self,
        step: TrainingStep,
        X: Any,
        y: Any,
        sample_weight: Any,
        X_val: Any,
        y_val: Any,
        sample_weight_val: Any,
        epochs: int,
    ) -> Run:
        """Everything of a training, checked, before anything of this estimator changes."""
        resumed = self._resumed
        self._check_features(X, step)
        for data in (X, X_val):
            if epochs > 1 and isinstance(data, Stream) and not data.source.repeatable:
                raise InvalidDataError(
                    f"{data.source.name} gives its rows once, and {epochs} epochs need them {epochs} times: "
                    "give an iterable that makes new iterators, a function that returns one, or max_iter=1."
                )
        seed = getattr(self, "_seed", None)
        if resumed is not None and resumed.saved is not None:
            seed = resumed.saved.state["seed"]
        seed = draw_seed(self.random_state) if seed is None else seed
        if self.validation_fraction is not None:
            check_fraction(self.validation_fraction)
        if self.validation_fraction is not None and X_val is None and y_val is None:
            parts = self._hold_out(step, X, y, sample_weight, seed)
            X, y, sample_weight, X_val, y_val, sample_weight_val = parts
        weigh = self.weigher(X, y)
        loader = self._loader(step, X, y, sample_weight, seed, weigh)
        validation = self._validation(step, X_val, y_val, sample_weight_val, weigh)
        callbacks, shown = self._all_callbacks(), (sealed(X), sealed(y), sealed(X_val), sealed(y_val))
        run = Run(*shown, loader, validation, callbacks, seed=seed)
        run.sample_weight, run.sample_weight_val = sealed(sample_weight), sealed(sample_weight_val)
        run.epochs = getattr(self, "n_iter_", 0) + epochs
        if self.shuffle is None:
            _warn_of_mixing(step)
        run.on_the_way = ["loss", *(t.curve for t in step.targets if len(step.targets) > 1)]
        held_out = [] if validation is None else [f"val_{name}" for name in run.on_the_way]
        run.callbacks.prepare(run, run.on_the_way + held_out)
        if resumed is not None:
            self._take_place(resumed, step, run)
        return run

    def _all_callbacks(self) -> Callbacks:
        """The user's and those that parameters stand for; the checkpoint last, when all have their state."""
        shown: list[Callback] = []
        if self.verbose:
            shown.append(ProgressBar() if self.verbose == 1 else PrintLog())
        callbacks = Callbacks(self.callbacks, *shown)
        others = [c for c in callbacks.items if not isinstance(c, Checkpoint)]
        return Callbacks(others, *([] if self._resumed is None else [self._resumed.checkpoint]))

    def _take_place(self, resumed: _Resumed, step: TrainingStep, run: Run) -> None:
        """Be where the last checkpoint is."""
        run.store, saved = resumed.store, resumed.saved
        run.fingerprint = fingerprint(self, run)
        if saved is None:
            return
        check_same(saved.state["fingerprint"], run, resumed.checkpoint.folder)
        done = saved.state["n_iter"]
        if done > run.epochs:
            raise CheckpointError(
                f"The checkpoint {str(saved.path)!r} is {done} epochs into training, beyond max_iter="
                f"{run.epochs}. Raise max_iter, or give another folder."
            )
        run.rate = step.optimizer.make_schedule()
        restore(saved, step, run)
        if run.loader.n_batches is not None and run.batches > run.loader.n_batches:
            raise CheckpointError(
                f"The checkpoint {str(saved.path)!r} is {run.batches} batches into an epoch of "
                f"{run.loader.n_batches}."
            )

    def _hold_out(self, step: TrainingStep, X: Any, y: Any, sample_weight: Any, seed: int) -> tuple[Any, ...]:
        """Part of the rows for validation."""
        fraction = self.validation_fraction
        assert fraction is not None
        if isinstance(X, Stream):
            kept, held = X.split(fraction, seed)
            return kept, None, sample_weight, held, None, None
        return hold_out(X, y, sample_weight, fraction, seed, axes=step.data_axes())

    # -- data --------------------------------------------------------------------------------------

    def _loader(
        self,
        step: TrainingStep,
        X: Any,
        y: Any,
        sample_weight: Any,
        seed: int,
        weigh: Callable[[Any, Any], Any] | None,
    ) -> OrtDataLoader | StreamLoader:
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "device": step.device,
            "shuffle": self.shuffles,
            "inputs": step.inputs,
            "targets": step.expected,
            "weight_dtype": step.scalar_dtype,
        }
        if isinstance(X, Stream):
            _check_brings_weights(sample_weight)
            return StreamLoader(
                X,
                seed=seed,
                encode=lambda y: self.encode(y, step),
                check=step.check_expected,
                weigh=weigh,
                **options,
            )
        weights = sample_weight if weigh is None else weigh(y, sample_weight)
        try:
            loader = OrtDataLoader(X, self.encode(y, step), weights, random_state=seed, copy=False, **options)
        except InvalidDataError:
            step.check_declared(X)
            raise
        n = len(step.inputs)
        names = [spec.name for spec in step.expected]
        step.check_expected(dict(zip(names, list(loader.arrays.values())[n:], strict=False)))
        return loader

    def _check_features(self, X: Any, step: TrainingStep | None = None, first: bool = True) -> None:
        """Compare columns and their names with those of the first fit, or at a first fit keep them.

        Sets `n_features_in_`, and `feature_names_in_` if `X` is a frame, as scikit-learn does. The step
        keeps the names of the columns of a table of any kind, in their order.
        """
        first = first and not self.__sklearn_is_fitted__()
        step = self.step_ if step is None else step
        names = X.columns() if isinstance(X, Stream) else None
        if isinstance(X, Stream):
            X = X.head(1).X
        if len(step.inputs) > 1 or is_named(X) or dimensions(X) != 2 or step.inputs[0].axis != 0:
            return
        spec = step.inputs[0]
        if is_frame(X):
            X = ordered(X, spec)
            names = text_names(X)
        if not first and (self._is_plain(X) or (spec.columns is not None and names is not None)):
            return
        try:
            validate_data(self, X, reset=first, skip_check_array=True)
        except ValueError as exc:
            raise InvalidDataError(f"Input {spec.name!r}: {exc}") from exc
        if first and names is not None and len(set(names)) == len(names):
            step.name_columns({spec.name: names})
            if is_frame(X):  # also of packages that scikit-learn does not know
                self.feature_names_in_ = np.array(names, dtype=object)

    def _is_plain(self, X: Any) -> bool:
        """Whether rows are an array as wide as at the first fit, and there is nothing to say of names.

        Looking for names takes longer than predicting a row; what is scored in training was looked at before.
        """
        silent = self._run is not None or not hasattr(self, "feature_names_in_")
        return silent and type(X) is np.ndarray and getattr(self, "n_features_in_", None) == X.shape[1]

    @property
    def _given_model(self) -> Any:
        """The model as it was given, if there is one."""
        return None

    def _known_columns(self) -> tuple[str, ...] | None:
        """Names of the columns that are trained on, in the model's order, as far as they are known."""
        if self.__sklearn_is_fitted__():
            return self.step_.inputs[0].columns
        model = self._given_model
        names = {} if model is None else read_feature_names(load(model))
        return next(iter(names.values()), None)

    def _validation(
        self,
        step: TrainingStep,
        X: Any,
        y: Any,
        sample_weight: Any,
        weigh: Callable[[Any, Any], Any] | None,
    ) -> Any:
        """Validation data, checked and converted now rather than after every epoch."""
        if X is None and y is None:
            if sample_weight is not None:
                raise InvalidDataError("sample_weight_val weighs validation data, and there is none.")
            return None
        if isinstance(X, Stream):
            X = _in_order(X, step.inputs[0].columns)
        if X is not None and hasattr(self, "n_features_in_"):
            self._check_features(X, step, first=False)
        if isinstance(X, Stream):
            _check_brings_weights(sample_weight)
            with naming(functools.partial(_columns_of, X)):
                return StreamValidation(
                    X,
                    step.inputs,
                    step.expected,
                    lambda y: self.encode(y, step),
                    step.check_expected,
                    step.scalar_dtype,
                    weigh,
                )
        if X is None or y is None:
            raise InvalidDataError("Validation takes both X_val and y_val; one of them is None.")
        inputs = as_inputs(X, step.inputs)
        rows = rows_of(inputs, step.inputs)
        expected = as_targets(self.encode(y, step), step.expected, rows)
        step.check_expected(expected)
        weights = sample_weight if weigh is None else weigh(y, sample_weight)
        if weights is not None:
            weights, _ = weights_of(weights, rows, step.scalar_dtype, step.expected, expected, part=True)
        return ArrayValidation(inputs, expected, weights)

    # -- state -------------------------------------------------------------------------------------

    def _become(self, attributes: dict[str, Any]) -> None:
        self.__dict__.clear()
        self.__dict__.update(attributes)

    def _forget(self) -> dict[str, Any]:
        """Remove everything a fit has left; it is returned."""
        names = [n for n in self.__dict__ if n.endswith("_") or n in ("_seed", "_made_from")]
        return {name: self.__dict__.pop(name) for name in names}

    def _changed(self) -> set[str]:
        """Parameters of the step that were set since it was made."""
        return {n for n in self._step_parameters if not _same(self._made_from[n], _frozen(getattr(self, n)))}

    def _step_for(self, X: Any, y: Any) -> TrainingStep:
        """A new step, or the one to go on with: at the present weights if its parameters have changed."""
        fitted = self.__sklearn_is_fitted__()
        if fitted and self._changed() <= self._live_parameters:
            return self.step_
        step = self.make_step(*(self.sample(X) if isinstance(X, Stream) else (X, y)))
        if fitted:
            step.take_over(self.step_)
        return step

    def _adopt(self, step: TrainingStep, seed: int) -> None:
        """Everything was checked: training is about to begin with this step."""
        if not self.__sklearn_is_fitted__():
            self.history_ = {"loss": []}
            self.n_iter_ = 0
        elif step is self.step_:
            self._change(step, self._changed())
        self.step_ = step
        self._seed = seed
        self._made_from = {name: _frozen(getattr(self, name)) for name in self._step_parameters}

    def _change(self, step: TrainingStep, parameters: set[str]) -> None:
        """Make a step follow those of :attr:`_live_parameters` that were set since it was made."""

    def get_trained_onnx(self) -> onnx.ModelProto:
        """The user's model with the trained weights; names, inputs, outputs and metadata are kept.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        """
        self._check_fitted()
        return self.step_.trained_model()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "step_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"This {type(self).__name__} is not fitted yet: call fit first.")

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

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in super().__getstate__().items() if k != "_run"}
        return stamp_version(kept)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(check_version(state, self))

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        # scikit-learn's own would print whole models.
        parameters = inspect.signature(type(self).__init__).parameters
        given = {n: getattr(self, n) for n in parameters if n in self._get_param_names()}
        changed = {n: v for n, v in given.items() if not _same(parameters[n].default, v)}
        return f"{type(self).__name__}({', '.join(f'{n}={_short(v)}' for n, v in changed.items())})"

    def _get_params_html(self, *args: Any, **kwargs: Any) -> Any:
        # What scikit-learn (>= 1.7) shows in notebooks.
        shown = super()._get_params_html(*args, **kwargs)
        models = {n: v for n, v in shown.items() if isinstance(v, (bytes, onnx.ModelProto, ir.Model))}
        for name, value in models.items():
            shown[name] = _Text(_short(value))
        return shown


def _is_ours(thing: Any) -> bool:
    """Whether an object's class is one of this library."""
    return type(thing).__module__.partition(".")[0] == __name__.partition(".")[0]


def _in_order(stream: Stream, columns: Sequence[str] | None) -> Stream:
    """A stream with its columns as the model takes them, if their names are known."""
    return stream if columns is None else stream.in_order(columns)


def _columns_of(data: Any, name: str) -> list[str] | None:
    """Names of the columns of a stream for an input of the model."""
    return data.columns(name) if isinstance(data, Stream) else None


def _check_brings_weights(sample_weight: Any) -> None:
    if sample_weight is not None:
        raise InvalidDataError(
            "A stream brings the weights of its rows: name their column in stream(..., sample_weight='w')."
        )


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


def _frozen(value: Any) -> Any:
    """What a parameter is now: objects with parameters of their own may be changed in place."""
    if hasattr(value, "get_params") and not isinstance(value, type):
        return type(value), {k: _frozen(v) for k, v in value.get_params(deep=False).items()}
    if isinstance(value, Mapping):
        return {k: _frozen(v) for k, v in value.items()}
    return [*value] if isinstance(value, list) else value


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # arrays and models compare in ways of their own
        return False


class _Text(str):
    """Text that stands for something else: without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _short(value: Any) -> str:
    """A representation that stays on a line, also of models."""
    if isinstance(value, (onnx.ModelProto, ir.Model)):
        return f"<model {value.graph.name!r}>"
    if isinstance(value, bytes):
        return f"<model of {len(value)} bytes>"
    text = ", ".join(f"{k!r}: {_short(v)}" for k, v in value.items()) if isinstance(value, Mapping) else ""
    return f"{{{text}}}" if text else repr(value)

"""The training ladder: ``fit -> partial_fit -> fit_loop -> run_epoch -> train_step``.

Each rung does one thing and calls the next, so that a subclass overrides the one it wants to
change.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from tqdm import tqdm

from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.exceptions import ConvergenceError, EvaluationError, InvalidDataError

from .data_loader import Batch, OrtDataLoader, draw_seed
from .step import TrainingStep
from .validation import as_inputs, as_targets

__all__ = ["Trainer"]


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
        ``'loss'``, the mean objective over the rows, and ``'val_loss'`` if there is validation data:
        one number an epoch.
    n_iter_ : int
        Epochs done.
    """

    batch_size: int
    max_iter: int
    warm_start: bool
    verbose: int
    random_state: Any = None
    shuffle: bool = True

    # What a step is made of: with warm_start, a change of one of these makes a new step.
    _step_parameters: tuple[str, ...] = ()
    # Those that may change without a new step.
    _live_parameters: frozenset[str] = frozenset()

    step_: TrainingStep

    # -- what a subclass writes ------------------------------------------------------------------

    @abstractmethod
    def make_step(self, X: Any, y: Any) -> TrainingStep:
        """A new training step at the model's own weights, for data as the user gave it."""

    def encode(self, y: Any, step: TrainingStep) -> Any:
        """The expected values as the step wants them."""
        return y

    # -- the ladder --------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None, X_val: Any = None, y_val: Any = None) -> Any:
        """Train from the weights in the model, or with ``warm_start`` from those of the last fit.

        Parameters
        ----------
        X : array_like of shape (n, ...), DataFrame, or dict of str to array_like
            Features; a dict when the model has several inputs.
        y : array_like of shape (n,) or (n, ...), or dict of str to array_like
            Expected values; a dict when there are several losses.
        sample_weight : array_like of shape (n,), optional
            One weight per row.
        X_val, y_val : like `X` and `y`, optional
            Validation data: its mean loss is computed after every epoch.

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
        if not _is_count(self.max_iter):
            raise ValueError(f"max_iter must be an integer of at least 1, not {self.max_iter!r}.")
        kept = {} if self.warm_start else self._forget()
        try:
            return self.partial_fit(X, y, sample_weight, X_val, y_val, epochs=self.max_iter)
        except BaseException:
            if not self.__sklearn_is_fitted__():  # training never began: as if fit had not been called
                self.__dict__.update(kept)
            raise

    def partial_fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        epochs: int = 1,
    ) -> Any:
        """Train for some more epochs from wherever training is.

        Parameters
        ----------
        X, y, sample_weight, X_val, y_val
            As :meth:`fit` takes them.
        epochs : int, default=1
            How many.

        Returns
        -------
        self
        """
        if not _is_count(epochs):
            raise ValueError(f"epochs must be an integer of at least 1, not {epochs!r}.")
        before = dict(self.__dict__)
        try:
            step = self._resume(X, y) if self.__sklearn_is_fitted__() else self.make_step(X, y)
            seed = getattr(self, "_seed", None)
            seed = draw_seed(self.random_state) if seed is None else seed
            loader = self._loader(step, X, y, sample_weight, seed)
            validation = self._validation(step, X_val, y_val)
            self._adopt(step, seed)
        except BaseException:  # what was found out about a model that isn't trained is forgotten
            self._become(before)
            raise
        done = step.iteration
        try:
            self.fit_loop(loader, validation, epochs)
        except EvaluationError:
            if step.iteration == done:  # the data does not fit in a way that only shows when it runs
                self._become(before)
            raise
        return self

    def fit_loop(
        self, loader: OrtDataLoader, validation: tuple[Any, Any] | None = None, epochs: int = 1
    ) -> None:
        """Run epochs on data that was checked, keeping the history."""
        step = self.step_
        try:
            with tqdm(total=epochs, unit="epoch", disable=not self.verbose) as progress:
                for _ in range(epochs):
                    loss = self.run_epoch(loader)
                    self.n_iter_ += 1
                    self._record("loss", loss)
                    if validation is not None and self.validation_due():
                        self._record("val_loss", self.validate(*validation))
                    progress.set_postfix(
                        {k: f"{v[-1]:.4g}" for k, v in self.history_.items() if v}, refresh=False
                    )
                    progress.update()
                    if step.optimizer.report_epoch(loss):
                        break
        except ConvergenceError as exc:
            raise ConvergenceError(f"Epoch {self.n_iter_ + 1}: {exc}") from exc

    def run_epoch(self, loader: OrtDataLoader) -> float:
        """Train once on every row; the mean objective over the rows."""
        total, rows = 0.0, 0
        for batch in loader.epoch(self.n_iter_):
            loss = self.train_step(batch)
            if math.isfinite(loss):  # else the step was skipped
                total, rows = total + batch.rows * loss, rows + batch.rows
        if not rows:
            raise ConvergenceError("the objective of every batch is NaN or infinite; all were skipped.")
        return total / rows

    def train_step(self, batch: Batch) -> float:
        """Train on one batch; its objective before the update."""
        return self.step_.run_batch(batch.values)

    def validation_due(self) -> bool:
        """Whether a validation follows the epoch just ended: always, unless a subclass says otherwise."""
        return True

    def validate(self, X: Any, y: Any) -> float:
        """Mean loss over validation data: arrays by name of input and of output."""
        return float(np.mean(self.step_.scores(X, y), dtype=np.float64))

    @property
    def weights_(self) -> dict[str, np.ndarray]:
        """Copies of the trained weights, by name."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"This {type(self).__name__} is not fitted yet: it has no weights_.")
        return self.step_.weights()

    # -- data --------------------------------------------------------------------------------------

    def _loader(self, step: TrainingStep, X: Any, y: Any, sample_weight: Any, seed: int) -> OrtDataLoader:
        loader = OrtDataLoader(
            X,
            self.encode(y, step),
            sample_weight,
            batch_size=self.batch_size,
            device=step.device,
            shuffle=self.shuffle,
            random_state=seed,
            inputs=step.inputs,
            targets=step.expected,
            weight_dtype=step.scalar_dtype,
        )
        n = len(step.inputs)
        names = [spec.name for spec in step.expected]
        step.check_expected(dict(zip(names, list(loader.arrays.values())[n:], strict=False)))
        return loader

    def _validation(self, step: TrainingStep, X: Any, y: Any) -> tuple[Any, Any] | None:
        """Validation data, checked and converted now rather than after every epoch."""
        if X is None and y is None:
            return None
        if X is None or y is None:
            raise InvalidDataError("Validation takes both X_val and y_val; one of them is None.")
        inputs = as_inputs(X, step.inputs)
        expected = as_targets(self.encode(y, step), step.expected, len(next(iter(inputs.values()))))
        step.check_expected(expected)
        return inputs, expected

    # -- state -------------------------------------------------------------------------------------

    def _record(self, key: str, value: float) -> None:
        self.history_.setdefault(key, []).append(value)

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

    def _resume(self, X: Any, y: Any) -> TrainingStep:
        """The step to go on with: a new one at the present weights if its parameters have changed."""
        if self._changed() <= self._live_parameters:
            return self.step_
        step = self.make_step(X, y)
        step.take_over(self.step_)
        return step

    def _adopt(self, step: TrainingStep, seed: int) -> None:
        """Everything was checked: training is about to begin with this step."""
        if not self.__sklearn_is_fitted__():
            self.history_: dict[str, list[float]] = {"loss": []}
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

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "step_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"This {type(self).__name__} is not fitted yet: call fit first.")

    def __getstate__(self) -> dict[str, Any]:
        return stamp_version(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(check_version(state, self))

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        # scikit-learn's own would print whole models.
        parameters = inspect.signature(type(self).__init__).parameters
        given = {n: getattr(self, n) for n in parameters if n in self._get_param_names()}
        changed = {n: v for n, v in given.items() if not _same(parameters[n].default, v)}
        return f"{type(self).__name__}({', '.join(f'{n}={_short(v)}' for n, v in changed.items())})"


def _is_count(value: Any) -> bool:
    return bool(isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1)


def _frozen(value: Any) -> Any:
    """What a parameter is now: objects with parameters of their own may be changed in place."""
    if hasattr(value, "get_params") and not isinstance(value, type):
        return type(value), {k: _frozen(v) for k, v in value.get_params(deep=False).items()}
    return {k: _frozen(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # arrays and models compare in ways of their own
        return False


def _short(value: Any) -> str:
    """A representation that stays on a line, also of models."""
    if isinstance(value, (onnx.ModelProto, ir.Model)):
        return f"<model {value.graph.name!r}>"
    if isinstance(value, bytes):
        return f"<model of {len(value)} bytes>"
    text = ", ".join(f"{k!r}: {_short(v)}" for k, v in value.items()) if isinstance(value, Mapping) else ""
    return f"{{{text}}}" if text else repr(value)

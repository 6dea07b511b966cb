"""The estimator of older versions, on the training ladder of this one."""

from __future__ import annotations

import logging
import numbers
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import onnx

from onnxcustom._parameters import flag
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import (
    ConvergenceError,
    ConvergenceWarning,
    InvalidDataError,
    InvalidParameterError,
    UnknownNameError,
)
from onnxcustom.feed.data_loader import OrtDataLoader
from onnxcustom.feed.validation import check_in_memory
from onnxcustom.gradient.forward_backward.graph_files import save_graphs
from onnxcustom.graph import Prepared, load, replace_weights
from onnxcustom.optim import BaseLearningRate
from onnxcustom.optim.base import rate_named
from onnxcustom.runtime import owned_copy
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.declaring import documented, of_step

from .trained_session import TrainedSession

logger = logging.getLogger("onnxcustom")

__all__ = ["OrtGradientForwardBackwardOptimizer"]


@documented
@dataclass(repr=False, eq=False)
class OrtGradientForwardBackwardOptimizer(TrainedSession):
    """Trains an ONNX model by stochastic gradient descent.

    The constructor only stores; everything is checked by :meth:`fit`. New code is better served by
    :class:`~onnxcustom.OnnxRegressor` and :class:`~onnxcustom.OnnxClassifier`.

    Parameters
    ----------
    model_onnx : path, bytes, onnx.ModelProto or onnx_ir.Model
        Inference model; it is not modified.
    weights_to_train : list of str
        Names of the weights, by default everything :func:`onnxcustom.weights` finds.
    loss_output_name : str
        Kept for old calls: the loss is an output of no graph of the user's.
    training_optimizer_name : {'SGDOptimizer'}
        Kept for old calls; `learning_rate` is the update rule.
    learning_rate : number, str or BaseLearningRate
        Update rule, as :meth:`BaseLearningRate.select` takes it.
    validation_every : int or float
        Epochs between two validations; below 1, as a fraction of `max_iter`.
    learning_loss : str or BaseLearningLoss
        Loss of the model's first floating-point output.
    enable_logging : bool
        Whether epochs are logged to logger ``onnxcustom`` (level info).
    weight_name : str
        Kept for old calls: :meth:`fit` takes sample weights either way.
    learning_penalty : str or BaseLearningPenalty
        Penalty on the weights.
    exc : bool
        Whether a loss that is not finite is a :class:`ConvergenceError`; if not, a
        :class:`ConvergenceWarning`, and the last finite weights are kept.

    Attributes
    ----------
    train_losses_ : list of float
        Mean objective of every epoch.
    validation_losses_ : list of float or None
        Mean loss on validation data, None without any.
    trained_coef_ : dict of str to ndarray
        Trained weights, by name.
    train_session_ : OrtGradientForwardBackward
        Forward and backward graphs of the trained model.
    train_function_ : OrtGradientForwardBackwardFunction
        An instance of them.
    input_names_, output_names_ : list of str
        What its ``forward`` takes, what its ``backward`` returns.
    """

    model_onnx: Any = of_step()
    weights_to_train: Any = of_step(None)
    loss_output_name: str = "loss"
    max_iter: int = 100
    training_optimizer_name: str = "SGDOptimizer"
    batch_size: int = 10
    learning_rate: Any = of_step("SGD")
    device: Any = of_step("cpu")
    warm_start: bool = flag(False)
    verbose: int = 0
    validation_every: float = 0.1
    learning_loss: Any = of_step("square_error")
    enable_logging: bool = flag(False)
    weight_name: str | None = None
    learning_penalty: Any = of_step(None)
    exc: bool = flag(True)
    _: KW_ONLY
    shuffle: bool | None = flag(None)
    random_state: Any = None
    engine: str = of_step("auto")

    model_parameter: ClassVar[str] = "model_onnx"

    # -- the ladder ------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        use_numpy: bool = False,
        *,
        sample_weight_val: Any = None,
    ) -> Any:
        """Train from the weights in the model, or with `warm_start` from those of the last fit.

        Parameters
        ----------
        X, y, sample_weight, X_val, y_val, sample_weight_val
            As :meth:`Trainer.fit` takes them.
        use_numpy : bool, default=False
            Kept for old calls: there is one way to train.

        Returns
        -------
        self
        """
        every = self.validation_every
        if isinstance(every, bool) or not isinstance(every, numbers.Real) or not every > 0:
            raise InvalidParameterError(
                f"validation_every must be a number of epochs, or a fraction of max_iter, not {every!r}."
            )
        return super().fit(X, y, sample_weight, X_val, y_val, sample_weight_val=sample_weight_val)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False  # the model's own weights predict, too
        tags.target_tags.multi_output = True
        return tags

    def make_step(self, X: Any, y: Any) -> TrainingStep:
        """A new training step at the model's own weights."""
        return self._step_of(self.model_onnx)

    def _make_step(self, prepared: Prepared | None, X: Any, y: Any) -> TrainingStep:
        if prepared is None or type(self).make_step is not OrtGradientForwardBackwardOptimizer.make_step:
            return super()._make_step(prepared, X, y)
        return self._step_of(prepared)

    def _step_of(self, model: Any) -> TrainingStep:
        if self.training_optimizer_name != "SGDOptimizer":
            raise UnknownNameError(
                f"training_optimizer_name must be 'SGDOptimizer', not {self.training_optimizer_name!r}: the "
                "update rule is chosen by learning_rate."
            )
        rate = self.learning_rate
        return TrainingStep(
            model,
            self.learning_loss,
            rate_named(rate) if isinstance(rate, str) else BaseLearningRate.select(rate),
            self.weights_to_train,
            self.learning_penalty,
            self.engine,
            self.device,
        )

    def fit_loop(self, loader: OrtDataLoader, validation: Any = None, epochs: int = 1) -> None:
        """Run epochs; without `exc` a loss that is not finite ends them with a warning."""
        self._forget_session()  # it holds the weights of before
        try:
            super().fit_loop(loader, validation, epochs)
        except ConvergenceError as exc:
            if self.exc:
                raise
            warn_user(str(exc), ConvergenceWarning)

    def run_epoch(self, loader: OrtDataLoader) -> float:
        """Train once on every row; the mean objective over the rows."""
        loss = super().run_epoch(loader)
        if self.enable_logging:
            logger.info("[%s.run_epoch] epoch=%d loss=%r", type(self).__name__, self.n_iter_ + 1, loss)
        return loss

    def validation_due(self) -> bool:
        """Whether the epoch just ended is followed by a validation."""
        every = self.validation_every
        period = max(1, int(self.max_iter * every)) if every < 1 else int(every)
        return self.n_iter_ % period == 0

    # -- results -----------------------------------------------------------------------------------

    @property
    def train_losses_(self) -> list[float]:
        """Mean objective of every epoch."""
        return self._fitted().history_["loss"]

    @property
    def validation_losses_(self) -> list[float] | None:
        """Mean loss on validation data, None without any."""
        losses = self._fitted().history_.get("val_loss")
        return None if losses is None else [loss for loss in losses if loss == loss]

    @property
    def trained_coef_(self) -> dict[str, np.ndarray]:
        """Trained weights, by name."""
        return self._fitted().step_.weights()

    def get_state(self, kind: str = "weight") -> list[Any]:
        """Trained weights, or the optimizer's state.

        Parameters
        ----------
        kind : {'weight', 'grad'}
            Weights, or what the update rule keeps of past gradients (none for plain descent).

        Returns
        -------
        list of OrtValue
            In the order of the weights.

        Raises
        ------
        AttributeError
            Before :meth:`fit`.
        """
        step = self._fitted().step_
        if _kind(kind) == "weight":
            return [owned_copy(w) for w in step.weights().values()]
        return [owned_copy(s) for states in step.state().values() for s in states.values()]

    def set_state(self, state: Sequence[Any], check_trained: bool = True, kind: str = "weight") -> None:
        """Overwrite weights or optimizer state with what :meth:`get_state` returned.

        Parameters
        ----------
        state : list of OrtValue or ndarray
            One tensor for each that :meth:`get_state` returns.
        check_trained : bool, default=True
            Kept for old calls.
        kind : {'weight', 'grad'}
            What to overwrite.

        Raises
        ------
        AttributeError
            Before :meth:`fit`.
        InvalidDataError
            Another number of tensors, another shape or dtype; nothing is changed.
        """
        step = self._fitted().step_
        arrays = _as_arrays(state)
        if _kind(kind) == "weight":
            _same_length(arrays, step.weights())
            step.set_weights(dict(zip(step.weights(), arrays, strict=True)))
            self._forget_session()
        else:
            keys = [(w, s) for w, states in step.state().items() for s in states]
            _same_length(arrays, keys)
            nested: dict[str, dict[str, np.ndarray]] = {}
            for (weight, name), array in zip(keys, arrays, strict=True):
                nested.setdefault(weight, {})[name] = array
            step.set_state(nested)

    def get_trained_onnx(self, model: Any = None) -> onnx.ModelProto:
        """A model with the trained weights.

        Parameters
        ----------
        model : path, bytes, onnx.ModelProto or onnx_ir.Model, optional
            A model with weights of the same names; by default the one that was trained.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        """
        self._check_fitted()
        return self.step_.trained_model() if model is None else replace_weights(model, self.step_.weights())

    def save_onnx_graph(
        self, folder: str | os.PathLike | type[bytes], prefix: str | None = None, suffix: str | None = None
    ) -> dict[str, Any]:
        """Write every graph; before :meth:`fit`, those of the model's own weights.

        Parameters
        ----------
        folder : str, path or the type bytes
            An existing folder; ``bytes`` returns the graphs and writes nothing.
        prefix, suffix : str, optional
            Around the class's name in ``<prefix><Class><suffix>.<attribute>.onnx``.

        Returns
        -------
        dict
            Attribute to file name or bytes; for parts to such a dict.

        Raises
        ------
        FileNotFoundError
            If the folder does not exist.
        """
        graphs = {"model_onnx": load(self.model_onnx)}
        step = self._current_step(None)
        if self.__sklearn_is_fitted__():
            graphs["trained_onnx"] = self.get_trained_onnx()
        graphs["step_"] = step.model
        saved = save_graphs(graphs, type(self).__name__, folder, prefix, suffix)
        session = self.train_session_ if self.__sklearn_is_fitted__() else self._session_of(step)
        saved["train_session_"] = session.save_onnx_graph(folder, prefix, suffix)
        return saved

    # -- predictions -------------------------------------------------------------------------------

    def _current_step(self, X: Any, y: Any = None) -> TrainingStep:
        """The trained step; before :meth:`fit`, one at the model's own weights."""
        return self.step_ if self.__sklearn_is_fitted__() else self.make_step(X, y)

    def predict(self, X: Any) -> np.ndarray:
        """Output of the trained model; before :meth:`fit`, of the model as it is."""
        check_in_memory(X)
        step = self._current_step(X)
        if self.__sklearn_is_fitted__():
            self._check_features(X)
        return step.predict(X)[step.targets[0].output]

    def losses(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """Loss of every row, in order; before :meth:`fit`, with the model's own weights."""
        check_in_memory(X)
        step = self._current_step(X, y)
        if self.__sklearn_is_fitted__():
            self._check_features(X)
        return step.scores(X, y, sample_weight)

    #: The name of :meth:`losses` in older versions.
    scores = losses

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Negative mean loss over the rows: higher is better."""
        return -float(np.mean(self.losses(X, y, sample_weight), dtype=np.float64))


def _as_arrays(state: Any) -> list[np.ndarray]:
    """The arrays of a list of tensors."""
    if not isinstance(state, (list, tuple)):
        raise InvalidDataError(f"state must be a list of tensors, not a {type(state).__name__}.")
    wrong = [v for v in state if not (isinstance(v, np.ndarray) or hasattr(v, "numpy"))]
    if wrong:
        raise InvalidDataError(f"state must be a list of arrays or OrtValues, and holds {wrong[0]!r:.40}.")
    return [v if isinstance(v, np.ndarray) else v.numpy() for v in state]


def _kind(kind: str) -> str:
    if kind not in ("weight", "grad"):
        raise UnknownNameError(f"kind must be 'weight' or 'grad', not {kind!r}.")
    return kind


def _same_length(given: Sequence[Any], wanted: Any) -> None:
    if len(given) != len(wanted):
        raise InvalidDataError(f"{len(given)} tensors for {len(wanted)}: {list(wanted)}.")

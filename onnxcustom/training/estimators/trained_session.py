"""Forward and backward graphs of the model that an estimator trains."""

from __future__ import annotations

from typing import Any

from onnxcustom.gradient.forward_backward import OrtGradientForwardBackward
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.trainer import Trainer

__all__ = ["TrainedSession"]


class TrainedSession(Trainer):
    """An estimator that hands out forward and backward of its trained model."""

    engine: str

    # Made when somebody asks for them, for the weights of that moment.
    _session: OrtGradientForwardBackward | None = None
    _function: Any = None

    def _fitted(self) -> Any:
        """The estimator, if it is fitted."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"This {type(self).__name__} is not fitted yet: call fit first.")
        return self

    @property
    def train_session_(self) -> OrtGradientForwardBackward:
        """Forward and backward graphs of the trained model, made at first sight."""
        if self._session is None:
            self._session = self._session_of(self._fitted().step_)
        return self._session

    def _session_of(self, step: TrainingStep) -> OrtGradientForwardBackward:
        return OrtGradientForwardBackward(
            step.trained_model(), list(step.weights()), providers=step.device.name, engine=self.engine
        )

    def _forget_session(self) -> None:
        self._session = self._function = None

    @property
    def train_function_(self) -> Any:
        """An instance of :attr:`train_session_`, the same until the weights change."""
        session = self.train_session_
        if self._function is None:
            self._function = session.new_instance()
        return self._function

    @property
    def input_names_(self) -> list[str]:
        """What ``forward`` of :attr:`train_function_` takes."""
        return list(self.train_session_.cls_type_._grad_input_names)

    @property
    def output_names_(self) -> list[str]:
        """What ``backward`` of :attr:`train_function_` returns."""
        return list(self.train_session_.cls_type_._bw_fetches_names)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k not in ("_session", "_function")}

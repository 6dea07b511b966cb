"""What regressor and classifier share: their parameters, and the step these make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxcustom.data import Block, Stream
from onnxcustom.data.sources import ArraySource, IterableSource
from onnxcustom.feed.data_loader import draw_seed
from onnxcustom.feed.specs import input_specs, with_axis
from onnxcustom.feed.stream_rows import axes_of, features
from onnxcustom.graph import to_ir
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.optim import select_optimizer
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.trainer import Trainer

__all__ = ["OnnxEstimator"]


class OnnxEstimator(Trainer):
    """Parameters and step that regressor and classifier share."""

    _step_parameters = (
        "model",
        "weights_to_train",
        "loss",
        "penalty",
        "optimizer",
        "learning_rate",
        "engine",
        "device",
        "loss_weights",
        "batch_norm",
        "dropout",
        "freeze",
        "threads",
        "batch_axis",
    )

    @property
    def _live_parameters(self) -> frozenset[str]:  # type: ignore[override]
        # Without an optimizer, the learning rate says which update rule it is.
        return frozenset() if self.optimizer is None else frozenset({"learning_rate"})

    def __init__(
        self,
        model: Any,
        *,
        weights_to_train: list[str] | None = None,
        loss: Any = None,
        penalty: Any = None,
        optimizer: Any = "sgd",
        learning_rate: Any = None,
        batch_size: int = 32,
        max_iter: int = 20,
        shuffle: bool | None = None,
        random_state: Any = None,
        warm_start: bool = False,
        engine: str = "auto",
        device: Any = "cpu",
        verbose: int = 0,
        loss_weights: Mapping[str, float] | None = None,
        batch_norm: str = "frozen",
        dropout: str = "off",
        freeze: Any = None,
        threads: int | None = None,
        callbacks: Any = None,
        checkpoint_dir: Any = None,
        validation_fraction: float | None = None,
        batch_axis: Mapping[str, int | None] | None = None,
    ) -> None:
        self.model = model
        self.weights_to_train = weights_to_train
        self.loss = loss
        self.penalty = penalty
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.warm_start = warm_start
        self.engine = engine
        self.device = device
        self.verbose = verbose
        self.loss_weights = loss_weights
        self.batch_norm = batch_norm
        self.dropout = dropout
        self.freeze = freeze
        self.threads = threads
        self.callbacks = callbacks
        self.checkpoint_dir = checkpoint_dir
        self.validation_fraction = validation_fraction
        self.batch_axis = batch_axis

    @property
    def _given_model(self) -> Any:
        return self.model

    def sample(self, stream: Stream) -> tuple[Any, Any]:
        """Features and expected values to make a step for, of data that is not in memory."""
        X, y = super().sample(stream)
        if not isinstance(stream.source, (ArraySource, IterableSource)):  # a table: rows first, always
            specs = input_specs(to_ir(self.model))
            axes = BatchAxes(to_ir(self.model), self.batch_axis)
            specs = [with_axis(spec, axes.inputs[spec.name], None) for spec in specs]
            X = features(Block.of(X), axes_of(specs, []), specs)
        return X, y

    def _make(self, model: Any, loss: Any, X: Any, y: Any) -> TrainingStep:
        step = TrainingStep(
            model,
            loss,
            self.optimizer,
            self.weights_to_train,
            self.penalty,
            self.engine,
            self.device,
            learning_rate=self.learning_rate,
            loss_weights=self.loss_weights,
            batch_norm=self.batch_norm,
            dropout=self.dropout,
            freeze=self.freeze,
            threads=self.threads,
            seed=draw_seed(self.random_state) if self.dropout == "on" else 0,
            batch_axis=self.batch_axis,
        )
        step.settle(X, y)
        return step

    def _change(self, step: TrainingStep, parameters: set[str]) -> None:
        """Another learning rate changes nothing else: not the state, not the clock."""
        if "learning_rate" in parameters:
            chosen = select_optimizer(self.optimizer, self.learning_rate)
            step.optimizer.set_learning_rate(chosen.make_schedule())

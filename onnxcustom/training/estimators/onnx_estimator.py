"""What regressor and classifier share: their parameters, and the step these make."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from onnxcustom._parameters import flag
from onnxcustom.data import Block, Stream
from onnxcustom.data.sources import ArraySource, IterableSource
from onnxcustom.feed.order import draw_seed
from onnxcustom.feed.specs import input_specs, with_axis
from onnxcustom.feed.stream_rows import axes_of, features
from onnxcustom.graph import Prepared
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.optim import select_optimizer
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.declaring import of_step
from onnxcustom.training.plan import Given
from onnxcustom.training.trainer import Trainer

from .new_head import check_head, with_head

__all__ = ["OnnxEstimator"]


@dataclass(repr=False, eq=False)
class OnnxEstimator(Trainer):
    """Parameters and step that regressor and classifier share.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        Inference model; it is not modified.
    weights_to_train : str or list of str
        What is trained: names, patterns, ``'last:2'``, ``'biases'``, see
        :func:`onnxcustom.graph.select_weights`; by default everything :func:`onnxcustom.weights` finds.
    penalty : str, BaseLearningPenalty or dict from weight name to penalty
        Penalty on the weights.
    optimizer : str or BaseLearningRate
        Update rule.
    learning_rate : float, schedule or BaseLearningRate
        Overrides the learning rate of the optimizer; None keeps it.
    loss_weights : dict of str to float, or list of float
        Factors of the losses when there are several, by output name or in their order.
    batch_norm : {'frozen', 'update'}
        Whether BatchNormalization goes by the model's own statistics, or by those of the batch,
        towards which the model's move.
    dropout : {'off', 'on'}
        Whether Dropout drops while training; the masks come from `random_state`.
    freeze : str or list of str
        Weights that are not trained, in the words of `weights_to_train`.
    threads : int
        Threads of onnxruntime, by default every processor this process may use.
    batch_axis : dict of str to int or None
        Where the rows of an input or output are, by name, if that is not what the model's dimensions say;
        None for a tensor without rows: such an input is given once a batch, such an output is one row.
    average : {None, 'ema'} or tuning.Average
        Moving average of the weights, taken after every update: it is what validation, callbacks, predictions
        and :meth:`get_trained_onnx` go by, while training goes on with the weights themselves.
    lora : None, int, str or tuning.LoRA
        Adapters beside frozen weights, of that rank: they alone are trained. The trained model has them in
        its weights; ``get_trained_onnx(merge=False)`` keeps them apart.
    quantize : None, str or tuning.Quantization
        Weights and what is computed are rounded to integers in training, ``'int8'`` or ``'int4'``, and the
        trained model holds those. Ranges are measured on the first rows of the data.
    teacher : None, model or tuning.Distillation
        A model of the same outputs that this one learns from, beside the labels.
    head : 'auto', int, list of int or str, or None
        A new last layer, as :func:`onnxcustom.tuning.replace_head` makes it of these outputs, with
        `random_state` for its seed if that is an integer. ``'auto'``: where the data has other classes, or
        another number of columns, than the model; a warning says so. None: the model's own.
    cache_dir : path
        Folder in which the prepared model and the graphs of steps are kept, so that the next process which
        trains this model in this way starts sooner: see :class:`~onnxcustom.TrainingStep`.
    """

    model: Any = of_step()
    _: KW_ONLY
    weights_to_train: Any = of_step(None)
    loss: Any = of_step(None)
    penalty: Any = of_step(None)
    optimizer: Any = of_step("sgd")
    learning_rate: Any = of_step(None)
    batch_size: int = 32
    max_iter: int = 20
    shuffle: bool | None = flag(None)
    random_state: Any = None
    warm_start: bool = flag(False)
    engine: str = of_step("auto")
    device: Any = of_step("cpu")
    verbose: int = 0
    loss_weights: Mapping[str, float] | Sequence[float] | None = of_step(None)
    batch_norm: str = of_step("frozen")
    dropout: str = of_step("off")
    freeze: Any = of_step(None)
    threads: int | None = of_step(None)
    callbacks: Any = None
    checkpoint_dir: Any = None
    validation_fraction: float | None = None
    batch_axis: Mapping[str, int | None] | None = of_step(None)
    head: Any = of_step(None)
    cache_frozen: Any = False
    cache_bytes: float = 2**30
    average: Any = of_step(None)
    lora: Any = of_step(None)
    quantize: Any = of_step(None)
    teacher: Any = of_step(None)
    pairs: Any = None
    m_per_class: int | None = None
    cache_dir: Any = None

    # Whether expected values are labels whatever their shape.
    _takes_labels: ClassVar[bool] = False

    @property
    def _live_parameters(self) -> frozenset[str]:
        # Without an optimizer, the learning rate says which update rule it is.
        return frozenset() if self.optimizer is None else frozenset({"learning_rate"})

    def sample(self, stream: Stream) -> tuple[Any, Any]:
        """Features and expected values to make a step for, of data that is not in memory."""
        return self._head(stream, self._prepared())

    def _sample(self, stream: Stream, prepared: Prepared | None) -> tuple[Any, Any]:
        if prepared is None or type(self).sample is not OnnxEstimator.sample:
            return super()._sample(stream, prepared)
        return self._head(stream, prepared)

    def _head(self, stream: Stream, prepared: Prepared) -> tuple[Any, Any]:
        X, y = super().sample(stream)
        if not isinstance(stream.source, (ArraySource, IterableSource)):  # a table: rows first, always
            axes = BatchAxes(prepared.model, self.batch_axis)
            specs = [with_axis(spec, axes.inputs[spec.name], None) for spec in input_specs(prepared.model)]
            X = features(Block.of(X), axes_of(specs, []), specs)
        return X, y

    def _with_head(self, prepared: Prepared, data: Given, X: Any, classes: Any) -> Prepared:
        """The model with the last layer that :attr:`head` says; a model that was given one is that."""
        check_head(self.head)
        if self.head is None:
            return prepared
        if not isinstance(self.head, str):
            output = self._head_output(prepared)
            return with_head(prepared, self.head, output, self.random_state, cache_dir=self.cache_dir)
        found = self._other_outputs(prepared, data, X, classes)
        if found is None:
            return prepared
        output = self._head_output(prepared)
        return with_head(prepared, found[0], output, self.random_state, found[1], self.cache_dir)

    @abstractmethod
    def _head_output(self, prepared: Prepared) -> str:
        """The output that a new last layer is for."""

    @abstractmethod
    def _other_outputs(self, prepared: Prepared, data: Given, X: Any, classes: Any) -> tuple[Any, str] | None:
        """Outputs that the data wants in place of the model's own, and why; None if these will do."""

    def _step_of(self, prepared: Prepared, loss: Any, X: Any, y: Any) -> TrainingStep:
        """A step at the model's own weights."""
        step = TrainingStep(
            prepared,
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
            average=self.average,
            lora=self.lora,
            quantize=self.quantize,
            teacher=self.teacher,
            cache_dir=self.cache_dir,
        )
        step.settle(X, y, labels=self._takes_labels)
        return step

    def _change(self, step: TrainingStep, parameters: set[str]) -> None:
        """Another learning rate changes nothing else: not the state, not the clock."""
        if "learning_rate" in parameters:
            chosen = select_optimizer(self.optimizer, self.learning_rate)
            step.optimizer.set_learning_rate(chosen.make_schedule())

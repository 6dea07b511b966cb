"""scikit-learn estimators that hold an ONNX model: a regressor and a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import r2_score

from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.graph import class_labels, load, prepare
from onnxcustom.objective import BaseLearningLoss
from onnxcustom.optim import select_optimizer
from onnxcustom.runtime import parse_device

from .compose import compose_forward
from .data_loader import draw_seed
from .inference import Forward, runnable
from .labels import (
    FITTING_NAMES,
    are_independent,
    as_labels,
    fitting_loss,
    from_one_hot,
    label_indices,
    labels_of,
    link_of,
    probability_output,
    some,
)
from .step import TrainingStep
from .targets import prediction_tensors
from .trainer import Trainer
from .validation import as_inputs, input_specs

__all__ = ["OnnxClassifier", "OnnxRegressor"]


class _OnnxEstimator(Trainer):
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
        shuffle: bool = True,
        random_state: Any = None,
        warm_start: bool = False,
        engine: str = "auto",
        device: Any = "cpu",
        verbose: int = 0,
        loss_weights: Mapping[str, float] | None = None,
        batch_norm: str = "frozen",
        dropout: str = "off",
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

    def _make(self, loss: Any) -> TrainingStep:
        return TrainingStep(
            self.model,
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
            seed=draw_seed(self.random_state) if self.dropout == "on" else 0,
        )

    def _change(self, step: TrainingStep, parameters: set[str]) -> None:
        """Another learning rate changes nothing else: not the state, not the clock."""
        if "learning_rate" in parameters:
            chosen = select_optimizer(self.optimizer, self.learning_rate)
            step.optimizer.set_learning_rate(chosen.make_schedule())

    def _adopt(self, step: TrainingStep, seed: int) -> None:
        super()._adopt(step, seed)
        shape = step.inputs[0].shape
        if len(step.inputs) == 1 and shape is not None and len(shape) == 2 and isinstance(shape[1], int):
            self.n_features_in_ = shape[1]


class OnnxRegressor(RegressorMixin, _OnnxEstimator):
    """Trains the numbers an ONNX model computes.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        Inference model; it is not modified.
    weights_to_train : list of str, optional
        Names of the weights to train, by default everything :func:`onnxcustom.weights` finds.
    loss : str, BaseLearningLoss, ONNX model, callable or dict, optional
        Loss of the model's first floating-point output, by default the squared error; or a dict from
        output name to loss.
    penalty : str, BaseLearningPenalty or dict from weight name to penalty, optional
        Penalty on the weights.
    optimizer : str or BaseLearningRate, default='sgd'
        Update rule.
    learning_rate : float, schedule or BaseLearningRate, optional
        Overrides the learning rate of the optimizer; None keeps it.
    batch_size : int, default=32
        Rows in a batch; the last one of an epoch may be shorter.
    max_iter : int, default=20
        Epochs of :meth:`fit`.
    shuffle : bool, default=True
        Whether each epoch takes the rows in another order.
    random_state : int, RandomState or None, default=None
        Seed of that order.
    warm_start : bool, default=False
        Whether :meth:`fit` goes on from the last fit, optimizer state included.
    engine : {'auto', 'ort', 'onnx'}, default='auto'
        Gradient engine.
    device : str, default='cpu'
        ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
    verbose : int, default=0
        1 shows a progress bar.
    loss_weights : dict of str to float, optional
        Factors of the losses when there are several, by output name.
    batch_norm : {'frozen', 'update'}, default='frozen'
        Whether BatchNormalization goes by the model's own statistics, or by those of the batch,
        towards which the model's move.
    dropout : {'off', 'on'}, default='off'
        Whether Dropout drops while training; the masks come from `random_state`.

    Attributes
    ----------
    weights_ : dict of str to ndarray
        Trained weights, by name.
    history_ : dict of str to list of float
        ``'loss'`` and, with validation data, ``'val_loss'``: one number an epoch.
    n_iter_ : int
        Epochs done.
    step_ : TrainingStep
        The training step.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... line (float[N,2] x) => (float[N,1] y) <float[2,1] w = {0, 0}> { y = MatMul(x, w) }''')
    >>> X = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    >>> reg = OnnxRegressor(model, learning_rate=0.1, max_iter=50, random_state=0).fit(X, X @ [1.0, -2.0])
    >>> reg.weights_["w"].round(3).tolist()
    [[1.0], [-2.0]]
    """

    def make_step(self, X: Any, y: Any) -> TrainingStep:
        """A new training step at the model's own weights."""
        self._flat = not isinstance(y, Mapping) and np.ndim(y) == 1
        return self._make("squared_error" if self.loss is None else self.loss)

    def predict(self, X: Any) -> Any:
        """Predictions with the trained weights.

        Parameters
        ----------
        X : array_like of shape (n, ...) or dict of str to array_like
            Features.

        Returns
        -------
        ndarray of shape (n,) or (n, ...), or dict of str to ndarray
            The trained output, of shape (n,) if `y` was in :meth:`fit` and the output is one column;
            a dict by name if several are trained.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        """
        self._check_fitted()
        outputs = self.step_.predict(X)
        trained = [t.output for t in self.step_.targets]
        if len(trained) > 1:
            return {name: outputs[name] for name in trained}
        predicted = outputs[trained[0]]
        return predicted.reshape(-1) if self._flat and predicted.shape[1:] in ((), (1,)) else predicted

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R², the mean over the outputs if several are trained."""
        predicted = self.predict(X)
        pairs = [(y[n], p) for n, p in predicted.items()] if isinstance(predicted, dict) else [(y, predicted)]
        scores = [
            r2_score(np.reshape(e, (len(p), -1)), p.reshape(len(p), -1), sample_weight=sample_weight)
            for e, p in pairs
        ]
        return float(np.mean(scores))


class OnnxClassifier(ClassifierMixin, _OnnxEstimator):
    """Trains an ONNX model to tell classes apart.

    The model computes one score or probability per class, or a single one for two classes. A final
    Sigmoid or Softmax is recognised and the loss taken on what it reads. Outputs that end in neither
    are raw scores, unless they are probabilities by their values.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        Inference model; it is not modified.
    weights_to_train : list of str, optional
        Names of the weights to train, by default everything :func:`onnxcustom.weights` finds.
    loss : str, BaseLearningLoss, ONNX model, callable or dict, optional
        By default the cross-entropy that fits the model's output, binary or softmax; ``'log_loss'``
        means the same. A dict of one entry chooses the output.
    penalty : str, BaseLearningPenalty or dict from weight name to penalty, optional
        Penalty on the weights.
    optimizer : str or BaseLearningRate, default='sgd'
        Update rule.
    learning_rate : float, schedule or BaseLearningRate, optional
        Overrides the learning rate of the optimizer; None keeps it.
    batch_size : int, default=32
        Rows in a batch; the last one of an epoch may be shorter.
    max_iter : int, default=20
        Epochs of :meth:`fit`.
    shuffle : bool, default=True
        Whether each epoch takes the rows in another order.
    random_state : int, RandomState or None, default=None
        Seed of that order.
    warm_start : bool, default=False
        Whether :meth:`fit` goes on from the last fit, optimizer state included.
    engine : {'auto', 'ort', 'onnx'}, default='auto'
        Gradient engine.
    device : str, default='cpu'
        ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
    verbose : int, default=0
        1 shows a progress bar.
    loss_weights : dict of str to float, optional
        Factor of the loss, by output name.
    batch_norm : {'frozen', 'update'}, default='frozen'
        Whether BatchNormalization goes by the model's own statistics, or by those of the batch,
        towards which the model's move.
    dropout : {'off', 'on'}, default='off'
        Whether Dropout drops while training; the masks come from `random_state`.

    Attributes
    ----------
    classes_ : ndarray
        Labels in the order of the model's columns: those the graph itself holds, else those of `y`,
        sorted.
    weights_, history_, n_iter_, step_
        As those of :class:`OnnxRegressor`.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... line (float[N,1] x) => (float[N,1] p) <float[1,1] w = {0}> { z = MatMul(x, w) p = Sigmoid(z) }''')
    >>> X = np.linspace(-1, 1, 50, dtype=np.float32).reshape(-1, 1)
    >>> y = np.where(X[:, 0] > 0, "up", "down")
    >>> clf = OnnxClassifier(model, learning_rate=0.5, random_state=0).fit(X, y)
    >>> clf.predict([[-0.5], [0.5]]).tolist(), clf.score(X, y)
    (['down', 'up'], 1.0)
    """

    def partial_fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        epochs: int = 1,
        classes: Any = None,
    ) -> Any:
        """Train for some more epochs from wherever training is.

        Parameters
        ----------
        X, y, sample_weight, X_val, y_val
            As :meth:`fit` takes them.
        epochs : int, default=1
            How many.
        classes : array_like, optional
            All labels, sorted; needed at the first call if `y` does not hold them all and neither the
            graph nor their being 0, 1, ... tells.

        Returns
        -------
        self
        """
        if classes is not None:
            self._classes = np.unique(classes)
        try:
            return super().partial_fit(X, y, sample_weight, X_val, y_val, epochs=epochs)
        finally:
            self.__dict__.pop("_classes", None)

    def make_step(self, X: Any, y: Any) -> TrainingStep:
        """A new training step at the model's own weights, with the loss that fits the model."""
        y = as_labels(y)
        model = prepare(load(self.model))
        output, loss = self._choose_loss(model, X)
        step = self._make({output: loss})
        self._link = link_of(model, output, step)
        self._multilabel = y.ndim == 2 and y.shape[1] > 1 and are_independent(model, output, step)
        self._labels = self._find_labels(model, step, X, y)
        return step

    def _choose_loss(self, model: ir.Model, X: Any) -> tuple[str, Any]:
        """The output to train and its loss."""
        loss = self.loss
        if isinstance(loss, Mapping):
            if len(loss) != 1:
                raise InvalidModelError(
                    f"OnnxClassifier trains one output, loss names {list(loss)}; TrainingStep trains several."
                )
            output, loss = next(iter(loss.items()))
            if output not in prediction_tensors(model):
                raise UnknownNameError(
                    f"The model has no output {output!r} with scores; those it has are "
                    f"{list(prediction_tensors(model))}."
                )
        else:
            output = probability_output(model)
        if loss is None or (isinstance(loss, str) and loss.lower() in FITTING_NAMES):
            loss = fitting_loss(model, output, lambda: self._first_scores(model, output, X))
        return output, BaseLearningLoss.select(loss)

    def _first_scores(self, model: ir.Model, output: str, X: Any) -> np.ndarray:
        """What the untrained model says to the first rows of the data."""
        specs = input_specs(model)
        feeds = as_inputs(X, specs)
        rows = next((spec.rows for spec in specs if spec.rows is not None), 32)
        fresh = runnable(load(self.model))
        graph = compose_forward(fresh, [prediction_tensors(fresh)[output]], [])
        return Forward(graph, parse_device(self.device)).run({k: v[:rows] for k, v in feeds.items()})[0]

    def _find_labels(self, model: ir.Model, step: TrainingStep, X: Any, y: np.ndarray) -> np.ndarray:
        """Labels in the order of the model's columns."""
        target = step.targets[0]
        columns = target.columns
        if columns is None:
            columns = (*self._first_scores(model, target.output, X).shape, 1)[1]
        if self._multilabel:
            return np.arange(columns)
        labels = class_labels(model)
        if labels is None:  # those given now, or else those of a training that goes on
            labels = getattr(self, "classes_", None) if self._classes is None else self._classes
        if labels is None:
            labels = labels_of(y, max(columns, 2))
        if len(labels) != max(columns, 2):
            raise InvalidModelError(
                f"There are {len(labels)} classes, {some(labels)}, and output {target.output!r} has "
                f"{columns} column{'s' if columns > 1 else ''}: choose another output, as "
                "loss={'name': 'log_loss'}."
            )
        return labels

    def encode(self, y: Any, step: TrainingStep) -> Any:
        """Labels as the loss wants them: indices, a column of 0 and 1, or a column for each class."""
        y = as_labels(y)
        if self._multilabel:
            return y
        spec = step.expected[0]
        rank, axis = spec.rank or 1, step.targets[0].axis
        if spec.dtype is not None and spec.dtype.kind in "iu":
            if y.ndim == rank + 1:
                y = y.squeeze(axis) if y.shape[axis] == 1 else from_one_hot(y, axis, self._labels)
            if y.ndim != rank:
                raise InvalidDataError(f"y wants {rank} dimensions, labels of that shape; it has {y.ndim}.")
            return label_indices(y, self._labels)
        columns = spec.shape[1] if spec.shape is not None and len(spec.shape) > 1 else None
        if rank != 2 or columns in (1, None):
            return label_indices(y, self._labels)
        if y.ndim == 2 and y.shape[1] > 1:
            return y  # probabilities: as many columns as the model has
        return np.eye(len(self._labels))[label_indices(y.reshape(-1), self._labels)]

    def _adopt(self, step: TrainingStep, seed: int) -> None:
        super()._adopt(step, seed)
        self.classes_ = self._labels

    _classes: np.ndarray | None = None

    # -- predictions -----------------------------------------------------------------------------

    def _outputs(self, X: Any) -> tuple[np.ndarray, int]:
        """Scores or probabilities of shape (n, columns), or as the model has them, and the classes' axis."""
        self._check_fitted()
        target = self.step_.targets[0]
        scores = self.step_.predict(X)[target.output]
        return (scores, target.axis) if scores.ndim > 2 else (scores.reshape(len(scores), -1), 1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities with the trained weights, in the order of `classes_`.

        Parameters
        ----------
        X : array_like of shape (n, ...) or dict of str to array_like
            Features.

        Returns
        -------
        ndarray of shape (n, classes)
            Each column on its own if several labels may belong to a row. For outputs of more than two
            dimensions of their shape: (n, tokens, classes), (n, classes, height, width).

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        AttributeError
            The loss trains scores that are no probabilities, such as hinge.
        """
        scores, axis = self._outputs(X)
        if self._link == "scores":
            raise AttributeError(
                f"predict_proba is not available: {self.step_.targets[0].loss!r} trains scores."
            )
        if self._link == "softmax":
            return softmax(scores, axis=axis)
        proba = expit(scores) if self._link == "sigmoid" else scores
        return np.concatenate([1 - proba, proba], axis=axis) if proba.shape[axis] == 1 else proba

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of every row.

        Parameters
        ----------
        X : array_like of shape (n, ...) or dict of str to array_like
            Features.

        Returns
        -------
        ndarray of shape (n,)
            Labels. For several labels a row, as `y` was in :meth:`fit`, 0 and 1 of shape (n, classes);
            for outputs of more than two dimensions their shape without the axis of the classes.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        """
        scores, axis = self._outputs(X)
        threshold = 0.5 if self._link is None else 0
        if self._multilabel:
            return (scores > threshold).astype(np.int64)
        if scores.shape[axis] > 1:
            return self.classes_[np.argmax(scores, axis=axis)]
        return self.classes_[(scores.take(0, axis=axis) > threshold).astype(np.int64)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy: the part of the rows whose label, or labels, are predicted.

        With several labels along further axes (tokens, pixels), the mean over the rows of the part that is.
        """
        predicted = self.predict(X)
        if predicted.ndim == 1 or self._multilabel:
            return float(super().score(X, y, sample_weight))
        hits = predicted == np.asarray(y).reshape(predicted.shape)
        return float(np.average(hits.reshape(len(hits), -1).mean(axis=1), weights=sample_weight))

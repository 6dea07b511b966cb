"""A scikit-learn classifier that holds an ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.metaestimators import available_if

from onnxcustom._warnings import warn_user
from onnxcustom.data import Stream
from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.feed.arrays import check_not_masked
from onnxcustom.feed.specs import TensorSpec, input_specs, of_batch, some_rows, with_axis
from onnxcustom.feed.splitting import hold_out
from onnxcustom.feed.validation import as_inputs, check_in_memory
from onnxcustom.graph import Prepared, class_labels
from onnxcustom.graph.analysis.decision import Decision
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.objective import BaseLearningLoss
from onnxcustom.runtime import parse_device
from onnxcustom.step.compose import compose_forward
from onnxcustom.step.inference import Forward, runnable
from onnxcustom.step.targets import prediction_tensors
from onnxcustom.step.training_step import TrainingStep

from .labels import (
    FITTING_NAMES,
    are_independent,
    are_numbered,
    as_labels,
    class_factors,
    declared_columns,
    fitting_loss,
    from_one_hot,
    label_indices,
    labels_of,
    link_of,
    probability_output,
    some,
)
from .onnx_estimator import OnnxEstimator

__all__ = ["OnnxClassifier"]


# The words that scikit-learn's own estimators have for it.
_COLUMN = (
    "A column-vector y was passed when a 1d array was expected. Please change the shape of y to "
    "(n_samples,), for example using ravel()."
)


class OnnxClassifier(ClassifierMixin, OnnxEstimator):
    """Trains an ONNX model to tell classes apart.

    The model computes one score or probability per class, or a single one for two classes. A final
    Sigmoid or Softmax is recognised and the loss taken on what it reads. Outputs that end in neither
    are raw scores, unless they are probabilities by their values.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        Inference model; it is not modified.
    weights_to_train : str or list of str, optional
        What is trained: names, patterns, ``'last:2'``, ``'biases'``, see
        :func:`onnxcustom.graph.select_weights`; by default everything :func:`onnxcustom.weights` finds.
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
    shuffle : bool, optional
        Whether each epoch takes the rows in another order. By default it does, with a warning if the loss
        of a row depends on other rows of its batch.
    random_state : int, RandomState or None, default=None
        Seed of that order.
    warm_start : bool, default=False
        Whether :meth:`fit` goes on from the last fit, optimizer state included.
    engine : {'auto', 'ort', 'onnx'}, default='auto'
        Gradient engine.
    device : str, default='cpu'
        ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
    verbose : int, default=0
        1 shows a progress bar in terminals and notebooks, 2 prints a line an epoch.
    loss_weights : dict of str to float, optional
        Factor of the loss, by output name.
    batch_norm : {'frozen', 'update'}, default='frozen'
        Whether BatchNormalization goes by the model's own statistics, or by those of the batch,
        towards which the model's move.
    dropout : {'off', 'on'}, default='off'
        Whether Dropout drops while training; the masks come from `random_state`.
    freeze : str or list of str, optional
        Weights that are not trained, in the words of `weights_to_train`.
    threads : int, optional
        Threads of onnxruntime, by default every processor this process may use.
    callbacks : Callback, function or list of them, optional
        What looks at the training and may end it, see :mod:`onnxcustom.training.callbacks`.
    checkpoint_dir : str or path, optional
        Folder for checkpoints of :meth:`fit`, one training each. If it holds some of this training, killed
        or finished, ``fit`` goes on from the last one and ends on the same bits as if nothing had happened.
    validation_fraction : float, optional
        Part of the rows, in (0, 1), that is held out as validation data where none is given. The
        classes keep their shares.
    batch_axis : dict of str to int or None, optional
        Where the rows of an input or output are, by name, if that is not what the model's dimensions say;
        None for a tensor without rows: such an input is given once a batch, such an output is one row.
    class_weight : dict of label to float, 'balanced' or None, default=None
        Weights of the classes, times those of the rows. Where a row has several labels (tokens, pixels),
        each has the weight of its class.

    Attributes
    ----------
    classes_ : ndarray
        Labels in the order of the model's columns: those the graph itself holds, else those of `y`,
        sorted.
    weights_, history_, n_iter_, step_
        As those of :class:`OnnxRegressor`.

    Notes
    -----
    Ensembles of scikit-learn number the labels 0, 1, ..., k-1 in sorted order before they train a
    classifier. To a model that names its classes otherwise, these are the places of its sorted names, said
    in a ``DataConversionWarning``; where a number is missing, or the names are not sorted, or are integers
    of which some are among the numbers, it is an error.

    A fitted estimator predicts in any number of threads at once, and in forked processes.

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
        class_weight: Mapping[Any, float] | str | None = None,
    ) -> None:
        super().__init__(
            model,
            weights_to_train=weights_to_train,
            loss=loss,
            penalty=penalty,
            optimizer=optimizer,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            warm_start=warm_start,
            engine=engine,
            device=device,
            verbose=verbose,
            loss_weights=loss_weights,
            batch_norm=batch_norm,
            dropout=dropout,
            freeze=freeze,
            threads=threads,
            callbacks=callbacks,
            checkpoint_dir=checkpoint_dir,
            validation_fraction=validation_fraction,
            batch_axis=batch_axis,
        )
        self.class_weight = class_weight

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
        classes: Any = None,
    ) -> Any:
        """Train for some more epochs from wherever training is.

        Parameters
        ----------
        X, y, sample_weight, X_val, y_val, sample_weight_val
            As :meth:`fit` takes them.
        epochs : int, default=1
            How many.
        classes : array_like, optional
            All labels, in any order; needed at the first call if `y` does not hold them all and neither the
            graph nor their being 0, 1, ... tells. Later calls may only repeat them.

        Returns
        -------
        self

        Raises
        ------
        InvalidDataError
            Other classes than the classifier has, ``class_weight='balanced'``, which needs all labels at
            once, and as :meth:`fit`.
        """
        if self._fit is None and isinstance(self.class_weight, str) and self.class_weight == "balanced":
            raise InvalidDataError(
                "class_weight='balanced' is not for partial_fit, which sees a part of the rows at a time: "
                "give a dict, such as sklearn.utils.class_weight.compute_class_weight('balanced', "
                "classes=classes, y=y) gives of all labels."
            )
        if classes is not None:
            classes = np.unique(as_labels(classes))
            if self.__sklearn_is_fitted__():
                _check_same(classes, self.classes_)
            self._classes = classes
        try:
            return super().partial_fit(
                X, y, sample_weight, X_val, y_val, epochs=epochs, sample_weight_val=sample_weight_val
            )
        finally:
            self.__dict__.pop("_classes", None)

    def sample(self, stream: Stream) -> tuple[Any, Any]:
        """Features, and every label there is, of data that is not in memory."""
        X, y = super().sample(stream)
        labels = self._classes is None and np.ndim(y) == 1 and stream.source.repeatable
        return X, stream.labels() if labels else y

    def make_step(self, X: Any, y: Any) -> TrainingStep:
        """A new training step at the model's own weights, with the loss that fits the model."""
        y = as_labels(y)
        prepared = Prepared.of(self.model)
        model = prepared.model
        output, loss = self._choose_loss(prepared, X)
        step = self._make(prepared, {output: loss}, X, y)
        self._link = link_of(model, output, step)
        self._labelled = step.expected[0]
        self._multilabel = y.ndim == 2 and y.shape[1] > 1 and are_independent(model, output, step)
        self._labels = self._find_labels(prepared, step, X, y)
        if y.ndim == 2 and y.shape[1] == 1 and _has_rows_only(step.expected[0]):
            warn_user(_COLUMN, DataConversionWarning)
        return step

    def weigher(self, X: Any, y: Any) -> Callable[[Any, Any], Any] | None:
        """Weights of the rows times those of their classes, which are those of the training data."""
        if self.class_weight is None:
            return None
        factors = class_factors(
            self.class_weight, X.label_counts if isinstance(X, Stream) else y, self._labels
        )

        def weigh(y: Any, sample_weight: Any) -> Any:
            labels = as_labels(y)
            several = labels.size > len(labels)
            if self._multilabel or (several and not self._by_label(labels)):
                raise InvalidDataError("class_weight needs one label a row: give sample_weight instead.")
            found, places = np.unique(labels.reshape(-1), return_inverse=True)
            weights = np.array([factors.get(label, 1.0) for label in found.tolist()])[places.reshape(-1)]
            if several:
                weights = weights.reshape(labels.shape)
            return weights if sample_weight is None else weights * self._spread(sample_weight, labels)

        return weigh

    def _by_label(self, labels: np.ndarray) -> bool:
        """Whether labels, several a row, may have a weight each."""
        return self._labelled.weighed and labels.ndim in (self._labelled.rank, (self._labelled.rank or 0) + 1)

    def _spread(self, weights: Any, labels: np.ndarray) -> np.ndarray:
        """Weights of rows as broadcast over their labels."""
        given = np.asarray(weights)
        if labels.size == len(labels):
            return given.reshape(-1)
        if given.shape == labels.shape:
            return given
        axis = 0 if self._labelled.is_each(labels) else self._labelled.axis
        return (
            given.mean()
            if axis is None
            else given.reshape([-1 if a == axis else 1 for a in range(labels.ndim)])
        )

    def _hold_out(self, step: TrainingStep, X: Any, y: Any, sample_weight: Any, seed: int) -> tuple[Any, ...]:
        if isinstance(X, Stream):
            return super()._hold_out(step, X, y, sample_weight, seed)
        labels = as_labels(y)
        assert self.validation_fraction is not None
        strata = labels.reshape(-1) if labels.size == len(labels) else None
        return hold_out(X, y, sample_weight, self.validation_fraction, seed, strata, step.data_axes())

    def _choose_loss(self, prepared: Prepared, X: Any) -> tuple[str, Any]:
        """The output to train and its loss."""
        model = prepared.model
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
            loss = fitting_loss(model, output, lambda: self._first_scores(prepared, output, X))
        return output, BaseLearningLoss.select(loss)

    def _first_scores(self, prepared: Prepared, output: str, X: Any) -> np.ndarray:
        """What the untrained model says to the first rows of the data."""
        model = prepared.model
        axes = BatchAxes(model, self.batch_axis)
        specs = [with_axis(spec, axes.inputs[spec.name], axes.rows()) for spec in input_specs(model)]
        rows = slice(0, axes.rows() or 32)
        feeds = {
            spec.name: np.ascontiguousarray(of_batch(some_rows(array, spec, rows), spec))
            for spec, array in zip(specs, as_inputs(X, specs).values(), strict=True)
        }
        fresh = runnable(prepared)
        graph = compose_forward(fresh, [prediction_tensors(fresh)[output]], [])
        return Forward(graph, parse_device(self.device)).run(feeds)[0]

    def _find_labels(self, prepared: Prepared, step: TrainingStep, X: Any, y: np.ndarray) -> np.ndarray:
        """Labels in the order of the model's columns."""
        target = step.targets[0]
        columns = target.columns
        if columns is None:
            shape = self._first_scores(prepared, target.output, X).shape
            columns = shape[target.axis] if target.axis < len(shape) else 1
        if self._multilabel:
            return np.arange(columns)
        labels = class_labels(prepared.model)
        if labels is not None:
            labels = self._named_labels(labels, y)
        elif self.__sklearn_is_fitted__():
            labels = self.classes_
        elif self._classes is not None and len(self._classes) == max(columns, 2):
            labels = self._classes
        else:
            labels = labels_of(y if self._classes is None else self._classes, max(columns, 2))
        if len(labels) != max(columns, 2):
            raise InvalidModelError(
                f"There are {len(labels)} classes, {some(labels)}, and output {target.output!r} has "
                f"{columns} column{'s' if columns > 1 else ''}: choose another output, as "
                "loss={'name': 'log_loss'}."
            )
        return labels

    def _named_labels(self, labels: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The labels of the graph, or their places if that is what `y` holds."""
        numbers = np.arange(len(labels))
        if self.__sklearn_is_fitted__() and np.array_equal(self.classes_, numbers):
            return numbers  # as when training began
        if are_numbered(labels, y if self._classes is None else self._classes):
            warn_user(
                f"The model names its classes {some(labels)}, y holds 0 to {len(labels) - 1}: taken for the "
                "places of these names, in this order, as scikit-learn's ensembles number labels. classes_ "
                "and predictions are these numbers; the trained model keeps its names.",
                DataConversionWarning,
            )
            return numbers
        if self._classes is not None:
            _check_same(self._classes, labels)
        return labels

    def encode(self, y: Any, step: TrainingStep) -> Any:
        """Labels as the loss wants them: indices, a column of 0 and 1, or a column for each class."""
        y = as_labels(y)
        if self._multilabel:
            return y
        spec = step.expected[0]
        rank, axis = spec.rank or 1, step.targets[0].axis
        if spec.dtype is not None and spec.dtype.kind in "iu":
            if spec.axis is None and y.ndim == rank + 1 and _are_known(y, self._labels):
                rank += 1  # one of it for each row
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        output = next(iter(self.loss), None) if isinstance(self.loss, Mapping) else None
        columns = declared_columns(self.model, output)
        tags.classifier_tags.multi_class = columns is None or columns > 2
        return tags

    @property
    def _decision(self) -> Decision:
        """What the scores of the trained output mean."""
        return Decision(self._link, bool(self._multilabel))

    def _outputs(self, X: Any) -> tuple[np.ndarray, int]:
        """Scores or probabilities of shape (n, columns), or as the model has them, and the classes' axis."""
        self._check_fitted()
        target = self.step_.targets[0]
        check_in_memory(X)
        self._check_features(X)
        scores = self.step_.predict(X)[target.output]
        rank = scores.ndim if target.shape is None else len(target.shape)
        axis = target.axis + scores.ndim - rank  # batches of one row may lie in front
        if scores.ndim > 2 or (target.rows is None and scores.ndim == 2):
            return scores, axis
        if scores.ndim == 2 and target.rows == 1:
            return np.ascontiguousarray(scores.T), 1
        return scores.reshape(1 if target.rows is None else len(scores), -1), 1

    def _has_probabilities(self) -> bool:
        if getattr(self, "_link", None) == "scores":
            raise AttributeError(
                f"predict_proba is not available: {self.step_.targets[0].loss!r} trains scores; there is "
                "decision_function."
            )
        return True

    @available_if(_has_probabilities)
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
        found = self._decision.probabilities(scores, axis)
        assert found is not None
        return found

    def _has_scores(self) -> bool:
        if getattr(self, "_link", None) is None:
            raise AttributeError(
                "decision_function is not available: the model computes probabilities, or is not fitted yet."
            )
        return True

    @available_if(_has_scores)
    def decision_function(self, X: Any) -> np.ndarray:
        """Scores with the trained weights, of a model that computes scores rather than probabilities.

        Parameters
        ----------
        X : array_like of shape (n, ...) or dict of str to array_like
            Features.

        Returns
        -------
        ndarray of shape (n,) or (n, classes)
            The largest score is the label predicted. Of two classes the score of the second one less that
            of the first. For outputs of more than two dimensions of their shape.

        Raises
        ------
        AttributeError
            Before :meth:`fit`, or the model computes probabilities.
        """
        scores, axis = self._outputs(X)
        return self._decision.margins(scores, axis)

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
        return self._decision.labels(scores, axis, self.classes_)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy: the part of the rows whose label, or labels, are predicted.

        With several labels along further axes (tokens, pixels), the mean over the rows of the part that is.
        """
        check_in_memory(X)
        if y is None:
            raise InvalidDataError("score compares with expected labels, and y is None: give them.")
        check_not_masked(y, "y")
        check_not_masked(sample_weight, "sample_weight")
        predicted = self.predict(X)
        if predicted.ndim == 1 or self._multilabel:
            return float(super().score(X, y, sample_weight))
        hits = predicted == np.asarray(y).reshape(predicted.shape)
        axis = self._labelled.axis
        if axis is None and hits.ndim == self._labelled.rank:
            return float(hits.mean())
        hits = np.moveaxis(hits, axis or 0, 0).reshape(hits.shape[axis or 0], -1)
        return float(np.average(hits.mean(axis=1), weights=sample_weight))


def _are_known(y: np.ndarray, labels: np.ndarray) -> bool:
    return bool(np.isin(y, labels).all())


def _has_rows_only(spec: TensorSpec) -> bool:
    """Whether a loss takes one label a row: there are no tokens or pixels."""
    labels = spec.dtype is not None and spec.dtype.kind in "iu"
    return spec.rank is None or spec.rank <= (1 if labels else 2)


def _check_same(classes: np.ndarray, labels: np.ndarray) -> None:
    """Compare the classes that are given with those that a classifier has."""
    given, known = set(classes.tolist()), labels.tolist()
    # Numbers from 0 on are labels in the order of the columns, also where some of them are missing.
    if given != set(known) and not (given <= set(known) and known == list(range(len(known)))):
        raise InvalidDataError(
            f"classes={some(classes)} is not the same as the labels that the classifier has: {some(labels)}."
        )

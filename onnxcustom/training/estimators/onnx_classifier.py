"""A scikit-learn classifier that holds an ONNX model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.metaestimators import available_if

from onnxcustom._warnings import warn_user
from onnxcustom.data import Stream
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.feed.validation import check_in_memory
from onnxcustom.graph import Prepared, find_logits
from onnxcustom.graph.analysis.decision import Decision
from onnxcustom.objective import Loss
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.declaring import documented
from onnxcustom.training.plan import Given, Plan

from .accuracy import accuracy
from .label_coding import LabelCoding, class_weigher, find_labels, ignored_label
from .labels import as_labels, check_same, distinct
from .new_head import other_classes
from .onnx_estimator import OnnxEstimator
from .outputs import choose_loss, decision_of, declared_columns, first_scores, probability_output

__all__ = ["OnnxClassifier"]


# The words that scikit-learn's own estimators have for it.
_COLUMN = (
    "A column-vector y was passed when a 1d array was expected. Please change the shape of y to "
    "(n_samples,), for example using ravel()."
)


@documented
@dataclasses.dataclass(repr=False, eq=False)
class OnnxClassifier(ClassifierMixin, OnnxEstimator):
    """Trains an ONNX model to tell classes apart.

    The model computes one score or probability per class, or a single one for two classes. A final
    Sigmoid or Softmax is recognised and the loss taken on what it reads. Outputs that end in neither
    are raw scores, unless they are probabilities by their values.

    Parameters
    ----------
    loss : str, BaseLearningLoss, ONNX model, callable or dict
        By default the cross-entropy that fits the model's output, binary or softmax; ``'log_loss'``
        means the same. A dict of one entry chooses the output.
    class_weight : dict of label to float, 'balanced' or None
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

    class_weight: Mapping[Any, float] | str | None = dataclasses.field(default=None, kw_only=True)

    _takes_labels = True

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
        whole = isinstance(epochs, Plan) and epochs.whole
        if not whole and isinstance(self.class_weight, str) and self.class_weight == "balanced":
            raise InvalidDataError(
                "class_weight='balanced' is not for partial_fit, which sees a part of the rows at a time: "
                "give a dict, such as sklearn.utils.class_weight.compute_class_weight('balanced', "
                "classes=classes, y=y) gives of all labels."
            )
        if classes is not None:
            classes = distinct(as_labels(classes))
            if self.__sklearn_is_fitted__():
                check_same(classes, self.classes_)
        return self._train(Given(X, y, sample_weight, X_val, y_val, sample_weight_val), epochs, classes)

    def make_step(self, X: Any, y: Any) -> TrainingStep:
        """A new training step at the model's own weights, with the loss that fits the model."""
        prepared = self._with_head(self._prepared(), Given(X, y), X, None)
        return self._chosen_step(prepared, X, y)

    def _head_output(self, prepared: Prepared) -> str:
        if isinstance(self.loss, Mapping) and len(self.loss) == 1:
            return str(next(iter(self.loss)))
        return probability_output(prepared.model)

    def _other_outputs(self, prepared: Prepared, data: Given, X: Any, classes: Any) -> tuple[Any, str] | None:
        output = self._head_output(prepared)
        shape: tuple[Any, ...] = tuple(self._scores(prepared, output, X).shape)
        logits, y = find_logits(prepared.model, output), as_labels(data.y)
        axis = -1 if logits is None else logits.axis
        if logits is None and len(shape) > 2:  # the one whose removal gives the labels' shape
            fits = [a for a in range(1, len(shape)) if (*shape[1:a], *shape[a + 1 :]) == y.shape[1:]]
            axis = (fits or [1])[0]
        known = self.classes_ if self.__sklearn_is_fitted__() else classes
        if known is None and isinstance(data.X, Stream) and y.ndim == 1 and data.X.source.repeatable:
            known = data.X.labels()
        return other_classes(prepared, shape, axis, y, self.loss, known)

    def _make_step(self, prepared: Prepared | None, X: Any, y: Any) -> TrainingStep:
        if prepared is None or type(self).make_step is not OnnxClassifier.make_step:
            return super()._make_step(prepared, X, y)
        return self._chosen_step(prepared, X, y)

    def _chosen_step(self, prepared: Prepared, X: Any, y: Any) -> TrainingStep:
        losses = self.loss.values() if isinstance(self.loss, Mapping) else [self.loss]
        if any(isinstance(loss, Loss) and loss.several is not None for loss in losses):
            raise InvalidParameterError(
                "OnnxClassifier takes labels: a loss of several targets is trained by OnnxRegressor or a "
                "TrainingStep."
            )
        y = as_labels(y)
        output, loss = choose_loss(prepared, self.loss, lambda output: self._scores(prepared, output, X))
        return self._step_of(prepared, {output: loss}, X, y)

    def _scores(self, prepared: Prepared, output: str, X: Any) -> np.ndarray:
        return first_scores(prepared, output, X, self.batch_axis, self.device)

    def _meaning_of(
        self, prepared: Prepared | None, step: TrainingStep, data: Given, X: Any, classes: Any
    ) -> LabelCoding:
        """The labels, from the graph, the training that goes on, the user's word or the data."""
        prepared = step.recipe.prepared if prepared is None else prepared
        target, y = step.targets[0], as_labels(data.y)
        several = y.ndim == 2 and y.shape[1] > 1
        decision = decision_of(prepared.model, target.output, target.loss, several)

        def columns() -> int:
            shape = self._scores(prepared, target.output, X).shape
            return shape[target.axis] if target.axis < len(shape) else 1

        if decision.multilabel:
            labels = np.arange(columns() if target.columns is None else target.columns)
        else:
            stream = data.X
            if isinstance(stream, Stream) and classes is None and y.ndim == 1 and stream.source.repeatable:
                y = stream.labels()  # every one that there is, not only those of the first rows
            known = self.classes_ if self.__sklearn_is_fitted__() else None
            labels = find_labels(prepared, target, columns, y, known, classes)
        ignored = None if decision.multilabel else ignored_label(target.loss, labels)
        coding = LabelCoding(labels, decision, step.expected[0], ignored)
        if y.ndim == 2 and y.shape[1] == 1 and coding.takes_one:
            warn_user(_COLUMN, DataConversionWarning)
        return coding

    def _told_by(self, meaning: Any) -> dict[str, Any]:
        return {"classes_": meaning.labels}

    def encode(self, y: Any, step: TrainingStep) -> Any:
        """Labels as the loss wants them: indices, a column of 0 and 1, or a column for each class."""
        coding = self._meaning
        if coding is None or step is not self.step_:  # of a step in the making, by what `y` says
            coding = self._meaning_of(None, step, Given(None, y), None, None)
        return coding.encode(y, step)

    def _encode(self, y: Any, step: TrainingStep, meaning: Any) -> Any:
        if type(self).encode is not OnnxClassifier.encode:
            return super()._encode(y, step, meaning)
        return meaning.encode(y, step)

    def weigher(self, X: Any, y: Any) -> Callable[[Any, Any], Any] | None:
        """Weights of the rows times those of their classes, which are those of the training data."""
        if self.class_weight is not None:  # of the labels that training found
            self._check_fitted()
        return class_weigher(self.class_weight, X, y, self._meaning)

    def _weigher(self, X: Any, y: Any, step: TrainingStep, meaning: Any) -> Callable[[Any, Any], Any] | None:
        if type(self).weigher is not OnnxClassifier.weigher:
            return super()._weigher(X, y, step, meaning)
        return class_weigher(self.class_weight, X, y, meaning)

    def _strata(self, y: Any) -> np.ndarray | None:
        labels = as_labels(y)
        one = labels.size == len(labels)
        return distinct(labels.reshape(-1), return_inverse=True)[1].reshape(-1) if one else None

    # -- predictions -----------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        output = next(iter(self.loss), None) if isinstance(self.loss, Mapping) else None
        columns = declared_columns(self.model, output) if self.head is None else None
        tags.classifier_tags.multi_class = columns is None or columns > 2
        return tags

    @property
    def decision(self) -> Decision:
        """What the scores of the trained output mean: their link, and whether labels are several a row."""
        self._check_fitted()
        assert self._meaning is not None
        return self._meaning.decision

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
        if self._meaning is not None and self._meaning.decision.link == "scores":
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
        found = self.decision.probabilities(scores, axis)
        assert found is not None
        return found

    def _has_scores(self) -> bool:
        if self._meaning is None or self._meaning.decision.link is None:
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
        return self.decision.margins(scores, axis)

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
        return self.decision.labels(scores, axis, self.classes_)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy: the part of the rows whose label, or labels, are predicted.

        With several labels along further axes (tokens, pixels), the mean over the rows of the part that is,
        or, of a weight for each label, the mean over the labels. Labels that the loss ignores are left out;
        where there are some, it is the mean over those that count.

        Raises
        ------
        InvalidDataError
            No labels, or weights that :meth:`fit` would refuse.
        """
        check_in_memory(X)
        if y is None:
            raise InvalidDataError("score compares with expected labels, and y is None: give them.")
        return accuracy(self.predict(X), as_labels(y), self._meaning, self.classes_, sample_weight)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        own = self.__dict__
        if "_labelled" in own:  # a pickle of an earlier version
            decision = Decision(own.pop("_link"), bool(own.pop("_multilabel")))
            self._meaning = LabelCoding(own.pop("_labels"), decision, own.pop("_labelled"))

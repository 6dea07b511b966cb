"""A scikit-learn regressor that holds an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from onnxcustom.exceptions import InvalidModelError, InvalidParameterError
from onnxcustom.feed.arrays import dimensions
from onnxcustom.feed.specs import rows_of
from onnxcustom.feed.validation import as_inputs, as_targets, check_in_memory, weights_of
from onnxcustom.graph import Prepared
from onnxcustom.objective import BaseLearningLoss
from onnxcustom.step.targets import prediction_tensors
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.declaring import documented
from onnxcustom.training.plan import Given

from .onnx_estimator import OnnxEstimator
from .outputs import first_scores

__all__ = ["OnnxRegressor"]


@documented
class OnnxRegressor(RegressorMixin, OnnxEstimator):
    """Trains the numbers an ONNX model computes.

    Parameters
    ----------
    loss : str, BaseLearningLoss, ONNX model, callable, dict or list
        Loss of the model's first floating-point output, by default the squared error; or a dict from
        output name to loss, or a list with one for each output.

    Attributes
    ----------
    weights_ : dict of str to ndarray
        Trained weights, by name.
    history_ : dict of str to list of float
        ``'loss'``, with validation data ``'val_loss'``, and what callbacks measure: lists of one number an
        epoch, NaN where it was not measured.
    n_iter_ : int
        Epochs done.
    step_ : TrainingStep
        The training step.

    Notes
    -----
    A fitted estimator predicts in any number of threads at once, and in forked processes.

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
        prepared = self._with_head(self._prepared(), Given(X, y), X, None)
        return self._step_of(prepared, self._loss, X, y)

    def _head_output(self, prepared: Prepared) -> str:
        if isinstance(self.loss, Mapping) and len(self.loss) == 1:
            return str(next(iter(self.loss)))
        names = list(prediction_tensors(prepared.model))
        if not names:
            raise InvalidModelError(
                "No output of the model holds floating-point numbers: there is none to train."
            )
        return names[0]

    def _other_outputs(self, prepared: Prepared, data: Given, X: Any, classes: Any) -> tuple[Any, str] | None:
        several = isinstance(data.y, Mapping) or (isinstance(self.loss, Mapping) and len(self.loss) > 1)
        if data.y is None or several:
            return None
        output = self._head_output(prepared)
        shape = next(v.shape for v in prepared.model.graph.outputs if v.name == output)
        columns: Any = None if shape is None or len(shape) != 2 else shape[1]
        if not isinstance(columns, int) and (shape is None or len(shape) == 2):
            found = first_scores(prepared, output, X, self.batch_axis, self.device).shape
            columns = found[1] if len(found) == 2 else None
        loss = next(iter(self.loss.values())) if isinstance(self.loss, Mapping) else self._loss
        if dimensions(data.y) == 1 and BaseLearningLoss.select(loss).of_classes:
            raise InvalidParameterError(
                f"head='auto' of OnnxRegressor has an output for each column of y, and loss={loss!r} takes y "
                "for labels of classes, which are not counted: OnnxClassifier(head='auto') makes an output "
                "for each class; or say how many there are, such as head=10."
            )
        wanted = np.shape(data.y)[1] if dimensions(data.y) == 2 else 1
        if dimensions(data.y) > 2 or not isinstance(columns, int) or wanted == columns:
            return None
        return wanted, f"y has {wanted} column{'s' if wanted > 1 else ''} and output {output!r} has {columns}"

    def _make_step(self, prepared: Prepared | None, X: Any, y: Any) -> TrainingStep:
        if prepared is None or type(self).make_step is not OnnxRegressor.make_step:
            return super()._make_step(prepared, X, y)
        return self._step_of(prepared, self._loss, X, y)

    @property
    def _loss(self) -> Any:
        return "squared_error" if self.loss is None else self.loss

    def _meaning_of(
        self, prepared: Prepared | None, step: TrainingStep, data: Given, X: Any, classes: Any
    ) -> bool:
        """Whether a column that is predicted has no dimension of its own, as the expected values had none."""
        return not isinstance(data.y, Mapping) and dimensions(data.y) == 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_flat" in self.__dict__:  # a pickle of an earlier version
            self._meaning = self.__dict__.pop("_flat")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

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
        check_in_memory(X)
        self._check_features(X)
        outputs = self.step_.predict(X)
        trained = [t.output for t in self.step_.targets]
        if len(trained) > 1:
            return {name: outputs[name] for name in trained}
        predicted = outputs[trained[0]]
        axis = self.step_.output_axis(trained[0])
        column = axis is not None and predicted.ndim > 0 and predicted.size == predicted.shape[axis]
        return predicted.reshape(-1) if self._meaning and column else predicted

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Coefficient of determination R²; minus the mean loss if several outputs are trained.

        Several losses have no R² in common: their weighted sum, as in training, is what can be compared. So
        can a loss that takes several targets.

        Raises
        ------
        InvalidDataError
            Expected values or weights that :meth:`fit` would refuse; a stream, whose blocks can be scored.
        """
        self._check_fitted()
        check_in_memory(X)
        self._check_features(X)
        if len(self.step_.expected) > 1:
            return -float(np.mean(self.step_.scores(X, y, sample_weight), dtype=np.float64))
        specs, output = self.step_.expected, self.step_.targets[0].output
        rows = rows_of(as_inputs(X, self.step_.inputs, sparse=True), self.step_.inputs)
        converted = as_targets(y, specs, rows)
        given = np.asarray(next(iter(y.values())) if isinstance(y, Mapping) else y)
        # In the precision of the data, where it is numbers.
        expected = given if given.dtype.kind in "biuf" else converted[output]
        p, axis = self.predict(X), self.step_.output_axis(output)
        e, by_row = _by_row(expected.reshape(p.shape), axis), _by_row(p, axis)
        if sample_weight is None:
            return float(r2_score(e, by_row))
        weights, like = weights_of(sample_weight, rows, np.float64, specs, converted)
        if like.weighed:  # a weight for each expected value
            w = _by_row(weights.reshape(p.shape), axis).T
            return float(
                np.mean([r2_score(a, b, sample_weight=c) for a, b, c in zip(e.T, by_row.T, w, strict=True)])
            )
        # An output that is one row for the whole batch has no weights of rows.
        return float(r2_score(e, by_row, sample_weight=weights if len(by_row) == len(weights) else None))


def _by_row(array: np.ndarray, axis: int | None) -> np.ndarray:
    """A row for each of the data; each number of an output that is one row is one."""
    if axis is None or array.ndim < 2:
        return array.reshape(-1, 1)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)

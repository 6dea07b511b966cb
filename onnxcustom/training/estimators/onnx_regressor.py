"""A scikit-learn regressor that holds an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from onnxcustom.feed.arrays import dimensions
from onnxcustom.feed.specs import rows_of
from onnxcustom.feed.validation import as_inputs, as_targets, check_in_memory, weights_of
from onnxcustom.step.training_step import TrainingStep

from .onnx_estimator import OnnxEstimator

__all__ = ["OnnxRegressor"]


class OnnxRegressor(RegressorMixin, OnnxEstimator):
    """Trains the numbers an ONNX model computes.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        Inference model; it is not modified.
    weights_to_train : str or list of str, optional
        What is trained: names, patterns, ``'last:2'``, ``'biases'``, see
        :func:`onnxcustom.graph.select_weights`; by default everything :func:`onnxcustom.weights` finds.
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
        Factors of the losses when there are several, by output name.
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
        Part of the rows, in (0, 1), that is held out as validation data where none is given.
    batch_axis : dict of str to int or None, optional
        Where the rows of an input or output are, by name, if that is not what the model's dimensions say;
        None for a tensor without rows: such an input is given once a batch, such an output is one row.

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
        self._flat = not isinstance(y, Mapping) and dimensions(y) == 1
        return self._make(self.model, "squared_error" if self.loss is None else self.loss, X, y)

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
        return predicted.reshape(-1) if self._flat and column and predicted.ndim <= 2 else predicted

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Coefficient of determination R²; minus the mean loss if several outputs are trained.

        Several losses have no R² in common: their weighted sum, as in training, is what can be compared.

        Raises
        ------
        InvalidDataError
            Expected values or weights that :meth:`fit` would refuse; a stream, whose blocks can be scored.
        """
        self._check_fitted()
        check_in_memory(X)
        self._check_features(X)
        if len(self.step_.targets) > 1:
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

"""What the data of a training step has to be, and what its model makes of it: nothing here trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcustom.data.blocks import Key
from onnxcustom.exceptions import InvalidDataError, UnknownNameError
from onnxcustom.feed.specs import TensorSpec
from onnxcustom.feed.validation import as_inputs

from .calibrating import measured, rounded_by
from .carrying import placed
from .counting import Counting
from .feeds import Feeds, check_expected, data_axes, feeds_of, settled_by, softened_by
from .frozen import FrozenInputs, Halves
from .stored import StoredStep
from .targets import Target

__all__ = ["FedStep"]


class FedStep(StoredStep):
    """A recipe and a state that data is given to: the part of a step that leaves them as they are."""

    # -- data ------------------------------------------------------------------------------------

    @property
    def counts_labels(self) -> bool:
        """Whether a loss is a mean over labels that count, rather than over the rows of the batch."""
        return any(target.counted for target in self._recipe.targets)

    def counts(self, expected: Mapping[str, np.ndarray], rows: int) -> dict[str, int]:
        """What the loss of every output is a mean over: labels that count, or rows.

        Parameters
        ----------
        expected : dict of str to ndarray
            Expected values by output, converted already.
        rows : int
            Rows of the batch.
        """
        targets = self._recipe.targets
        found, _ = Counting(targets).of(lambda i: np.asarray(expected[targets[i].output]), rows)
        return {target.output: count for target, count in zip(targets, found, strict=True)}

    @property
    def inputs(self) -> list[TensorSpec]:
        """What the model's inputs want."""
        return self._recipe.inputs

    def name_columns(self, names: Mapping[str, Sequence[str]]) -> None:
        """Keep names of columns, which frames must then have, in any order; the trained model says them.

        Parameters
        ----------
        names : dict of str to sequence of str
            By input of the model, in its order. They stand in the metadata entry ``feature_names_in``.
        """
        columns = {name: tuple(columns) for name, columns in names.items()}
        self._recipe = self._recipe.replace(columns=columns)

    @property
    def expected(self) -> list[TensorSpec]:
        """What the losses want, named like the model's outputs."""
        return self._recipe.expected

    @property
    def scalar_dtype(self) -> np.dtype:
        """Dtype of row weights and of the learning rate: float64 if any weight is, else float32."""
        return self._recipe.scalar_dtype

    def check_expected(self, expected: Mapping[str, np.ndarray]) -> None:
        """Check expected values by output name, converted already, against what the losses allow.

        Raises
        ------
        InvalidDataError
            A label that is no class of the model, a count that is negative, ...
        """
        check_expected(self._recipe, expected)

    def feeds(self, X: Any, y: Any, sample_weight: Any = None) -> dict[str, np.ndarray]:
        """Checked and converted arrays of a batch by graph input: inputs, expected values, row weights."""
        return self._feeds(X, y, sample_weight).of_batch()

    def _feeds(self, X: Any, y: Any, sample_weight: Any) -> Feeds:
        self.settle(X, y)
        try:
            return feeds_of(self._recipe, X, y, sample_weight)
        except InvalidDataError:
            self.check_declared(X)
            raise

    def data_axes(self) -> dict[Key, dict[int, int | None]]:
        """Where the rows of data as a user gives it are, as :meth:`onnxcustom.data.Stream.place` takes it."""
        return data_axes(self._recipe)

    def check_declared(self, X: Any) -> None:
        """Look at what the model makes of some rows, where expected values do not fit.

        Raises
        ------
        InvalidDataError
            An output has not as many dimensions as the file declares, or not as many rows as the inputs.
        """
        self._evaluator.check_declared(as_inputs(X, self.inputs))

    def settle(self, X: Any, y: Any, labels: bool = False) -> None:
        """Let the shape of labels decide which axis of a prediction holds the classes, if nothing else does.

        Of the shape of the prediction they are probabilities of the classes.

        Parameters
        ----------
        X, y
            Data as :meth:`run` takes it.
        labels : bool, default=False
            Whether they are labels whatever their shape.
        """
        if not self._calibrated:
            self.calibrate(X)
        if not self._recipe.settled:
            self._retarget(settled_by(self._recipe, X, y))
        if not labels and any(target.loss.takes_probabilities for target in self._recipe.targets):
            self._retarget(softened_by(self._recipe, y))

    def calibrate(self, X: Any) -> None:
        """Measure the ranges of what is rounded to integers, on rows of the data with the present weights.

        A step that quantizes does so by itself with the first data that it sees.

        Parameters
        ----------
        X : array_like of shape (n, ...) or dict of str to array_like
            As :meth:`run` takes it; :class:`onnxcustom.tuning.Quantization` says how many rows are used.

        Raises
        ------
        InvalidDataError
            Data that do not fit, no rows, or numbers that are not finite; nothing is changed.
        UnknownNameError
            The step rounds nothing whose range would have to be measured.
        """
        change = rounded_by(self._recipe)
        if change is None:
            raise UnknownNameError(
                "There are no ranges to measure: make the step, or estimator, with quantize='int8', say."
            )
        arrays = as_inputs(X, self.inputs)
        found = measured(self._recipe, change, self._tensors(), arrays, self.device)
        self._become(placed(self._recipe, self._state, found), self._state)
        self._calibrated = True  # of scales that are trained, the state has them

    def _retarget(self, targets: Sequence[Target]) -> None:
        """Take the losses in another way: the graphs are made again, what is trained stays."""
        if tuple(targets) != self._recipe.targets:
            self._become(self._recipe.replace(targets=tuple(targets)), self._state)

    # -- looking without touching ----------------------------------------------------------------

    def scores(self, X: Any, y: Any, sample_weight: Any = None) -> np.ndarray:
        """Loss of every row with the present weights, without the penalty: shape (n,).

        Their mean is the objective of these rows. So where every label counts as a row, the loss of a row is
        the mean over its labels; a model whose outputs are one row for the whole batch has one loss for it.
        """
        return self._scores(X, y, sample_weight)[0]

    def knows(self, halves: Halves) -> bool:
        """Whether these are halves of the step as it is now."""
        return any(known is halves for known in self._halves.values())

    def _scores(self, X: Any, y: Any, sample_weight: Any) -> list[np.ndarray]:
        if isinstance(X, FrozenInputs) and self.knows(X.halves):
            return X.halves.scores(X, y, sample_weight)
        feeds = self._feeds(X, y, sample_weight)  # first: labels may settle what the evaluator computes
        return self._evaluator.scores(feeds)

    def head_scores(self, X: Any, y: Any, sample_weight: Any = None) -> dict[str, np.ndarray]:
        """Loss of every row for every output that is trained, without its factor: shape (n,) each."""
        found = self._scores(X, y, sample_weight)
        names = [target.output for target in self.targets]
        return dict(zip(names, found[1:] if len(names) > 1 else found, strict=True))

    def penalty(self) -> float:
        """The penalty on the present weights, which every objective contains."""
        return self._evaluator.penalty()

    def predict(self, X: Any) -> dict[str, np.ndarray]:
        """Floating-point outputs of the model with the present weights, by name.

        What a classifier's ZipMap reads stands for the list of dicts it makes of it.
        Where all that comes out is places of largest scores (ArgMax), the scores stand for them.
        """
        return self._evaluator.predict(as_inputs(X, self.inputs))

    def output_axis(self, name: str) -> int | None:
        """Axis of the rows in an output that :meth:`predict` gives, None if it has none."""
        return self._recipe.output_axis(name)

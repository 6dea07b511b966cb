"""Looking at a model in training: predictions, losses and the penalty with the present weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcustom._text import count
from onnxcustom.exceptions import EvaluationError, InvalidDataError
from onnxcustom.feed.specs import rows_of, some_rows
from onnxcustom.runtime import Device, ForkLock

from .compose import Weighted
from .counting import labels_a_row
from .feeds import Feeds
from .inference import Forward, run_in_parts
from .recipe import Recipe
from .state import State

__all__ = ["Evaluator"]


class Evaluator:
    """Forward graphs of a recipe on a state, which they leave as it is.

    It may be used from several threads at once.

    Parameters
    ----------
    recipe : Recipe
        What is trained.
    state : State
        Its weights and statistics are read.
    threads : int, optional
        Threads of onnxruntime.
    """

    def __init__(self, recipe: Recipe, state: State, threads: int | None) -> None:
        self.recipe, self.state = recipe, state
        self._settings: tuple[Device, int | None] = (state.device, threads)
        self._lock = ForkLock()
        self._scores: dict[Weighted, Forward] = {}
        self._predict: list[Forward] = []

    def predict(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, for arrays by input that were checked."""
        recipe = self.recipe
        with self._lock:
            if not self._predict:
                self._predict.append(Forward(recipe.forward(), *self._settings))
        names = list(recipe.predicted)
        specs = {spec.name: spec for spec in recipe.inputs}
        axes = [recipe.output_axis(name) for name in names]
        outputs = run_in_parts(self._predict[0], arrays, specs, self.state.front(), axes)
        return dict(zip(names, outputs, strict=True))

    def scores(self, feeds: Feeds) -> list[np.ndarray]:
        """Loss of every row, and of every row for every output if there are several."""
        weighted = feeds.weighted
        with self._lock:
            if weighted not in self._scores:
                self._scores[weighted] = Forward(self.recipe.scores(weighted), *self._settings)
            # The two graphs may call their inputs differently, where a tensor of the model has the name.
            step, scores = self.recipe.graph(weighted), self._scores[weighted]
        asked, targets = step.batch[len(step.inputs) :], self.recipe.targets
        first = len(scores.inputs) - len(asked)
        rows = rows_of(feeds.arrays, [feeds.specs[name] for name in step.inputs])
        counts = labels_a_row(targets, lambda output: feeds.expected(step.expected[output]), rows)
        names = scores.inputs[first - len(counts) : first]
        others = {n: np.array(c, self.recipe.scalar_dtype) for n, c in zip(names, counts, strict=True)}
        feeds = feeds.renamed(dict(zip(asked, scores.inputs[first:], strict=True)))
        axes = [0] * (1 if len(targets) == 1 else 1 + len(targets))
        return run_in_parts(scores, feeds.arrays, feeds.specs, {**self.state.front(), **others}, axes)

    def penalty(self) -> float:
        """The penalty on the present weights."""
        penalties = self.recipe.penalties
        if not penalties:
            return 0.0
        weights, zero = self.state.predicting(), np.zeros((), self.recipe.scalar_dtype)
        terms = [p.penalty_loss(None, zero, weights[name]) for name, p in penalties.items()]
        return sum(float(term.numpy()) for term in terms)

    def check_declared(self, arrays: Mapping[str, np.ndarray]) -> None:
        """See :meth:`~onnxcustom.TrainingStep.check_declared`."""
        fixed = next((spec.rows for spec in self.recipe.inputs if spec.rows is not None), None)
        # One row suits every model; of one row Squeeze leaves a number, of two a column.
        for size in (1, 2) if fixed is None else (fixed,):
            self._check_made({s.name: some_rows(arrays[s.name], s, slice(size)) for s in self.recipe.inputs})

    def _check_made(self, some: Mapping[str, np.ndarray]) -> None:
        """Compare what the model makes of these rows with what the file declares."""
        recipe = self.recipe
        try:
            found = self.predict(some)
        except (EvaluationError, InvalidDataError):
            return  # what is wrong is something else
        size = rows_of(some, recipe.inputs)
        for target in recipe.targets:
            made = found.get(target.output)
            if made is None or target.shape is None or target.value != target.output:
                continue
            if made.ndim != len(target.shape):
                raise InvalidDataError(
                    f"The file declares that output {target.output!r} has the dimensions {target.shape}, but "
                    f"for {size} of these rows its shape is {made.shape}. Declare it as it is, with "
                    f"{count(made.ndim, 'dimension')} (onnx.helper.make_tensor_value_info), and say with "
                    f"batch_axis={{{target.output!r}: ...}} which of them holds the rows, if that is not the "
                    "first one."
                )
            if target.rows is not None and size and made.shape[target.rows] != size:
                raise InvalidDataError(
                    f"For {count(size, 'row')} output {target.output!r} has the shape {made.shape}: its axis "
                    f"{target.rows}, taken to hold the rows, has {made.shape[target.rows]}. Say with "
                    f"batch_axis={{{target.output!r}: ...}} which axis holds them, or None if all of it "
                    "is one result for the whole batch."
                )

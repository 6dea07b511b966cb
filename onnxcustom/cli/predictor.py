"""Predictions of a model file, block by block, whether it was trained here or not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxcustom.data.columns import Plan
from onnxcustom.exceptions import EvaluationError, InvalidDataError, InvalidModelError
from onnxcustom.feed.specs import TensorSpec
from onnxcustom.feed.stream_rows import placed
from onnxcustom.graph import find_logits
from onnxcustom.graph.analysis.decision import Decision
from onnxcustom.runtime import create_session
from onnxcustom.runtime.binding import run_error
from onnxcustom.runtime.tensors import PlaceError, check_places
from onnxcustom.step.inference import guarded

from .models import Model, of_file, of_text
from .tables import Features, Table, checked_head, reshaped

__all__ = ["Answers", "Predictor", "Rows", "read_rows"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows as a model takes them.

    Attributes
    ----------
    feeds : dict of str to ndarray
        By input, rows first.
    y, weights : ndarray or None
        Expected values and weights, if they were asked for.
    """

    feeds: dict[str, np.ndarray]
    y: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.feeds.values())))


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model says to some rows.

    Attributes
    ----------
    outputs : dict of str to ndarray
        Its outputs, rows first; maps became columns.
    values : dict of str to ndarray
        Predictions of a regressor by output; empty for a classifier.
    labels : ndarray or None
        Predictions of a classifier: (n,); (n, ...) of as many labels a row (tokens, pixels); or (n, classes)
        of 0 and 1.
    probabilities, scores : ndarray of shape (n, ..., classes), or None
        If there are such.
    classes : list
        Labels in their order.
    decision : Decision
        What the scores mean.
    """

    outputs: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    scores: np.ndarray | None = None
    classes: Sequence[Any] = ()
    decision: Decision = Decision("scores")  # noqa: RUF009 - frozen

    @property
    def multilabel(self) -> bool:
        """Whether labels are 0 and 1 for each of the classes."""
        return self.decision.multilabel


def read_rows(
    model: Model,
    table: Table,
    features: Features,
    target: str | list[str] | None = None,
    sample_weight: str | None = None,
) -> Iterator[Rows]:
    """The rows of a file, in its order.

    Raises
    ------
    InvalidDataError
        What cannot be read, and where it is.
    """
    specs = {spec.name: spec for spec in model.inputs}
    text = {name for name, spec in specs.items() if of_text(spec)}
    # Text is read in the role of labels, the only one that may hold some.
    wanted: dict[str, Any] = {c: c for name in text for c in features.columns[name]}
    goal = _unused(wanted)
    if target is not None:
        wanted[goal] = target
    numeric = {name: names for name, names in features.columns.items() if name not in text}
    plan = Plan(wanted or None, None, sample_weight, numeric) if numeric else Plan(wanted).targets
    if not numeric and sample_weight is not None:
        raise InvalidDataError("Weights of rows need a model with an input of numbers.")
    rows = table.stream(plan)
    if not text:
        checked_head(model, table, dataclasses.replace(features, single=False), rows)
    for block in rows.blocks():
        feeds = {}
        for name, spec in specs.items():
            if name in text:
                columns = np.stack([_texts(block.y[c]) for c in features.columns[name]], axis=1)
            else:
                columns = block.X[name]
            feeds[name] = _as_input(columns, spec, table.path)
            if spec.places is not None:
                try:
                    check_places(feeds[name], spec.places, name)
                except PlaceError as exc:
                    raise placed(exc, rows) from exc
        yield Rows(feeds, None if target is None else block.y[goal], block.sample_weight)


def _unused(names: dict[str, Any]) -> str:
    name = "target"
    while name in names:
        name += "_"
    return name


def _texts(array: np.ndarray) -> np.ndarray:
    return np.array([str(v) for v in array.tolist()], dtype=object)


def _as_input(array: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    """Columns as an input takes them."""
    array = reshaped(array, spec)
    assert spec.dtype is not None
    if of_text(spec) or array.dtype == spec.dtype:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.ascontiguousarray(array.astype(spec.dtype))
    if spec.dtype.kind not in "f" and (cast != array).any():
        bad = array[cast != array].flat[0]
        raise InvalidDataError(f"{where}: input {spec.name!r} takes {spec.dtype}, which {bad!s} is not.")
    return cast


def _runs(once: list[np.ndarray], count: int) -> list[tuple[int, int]]:
    """Runs of rows, from and to, with the same of what the model takes once for all of them."""
    cuts = {0, count}
    for array in once:
        flat = array.reshape(count, -1)
        cuts.update((1 + np.flatnonzero((flat[1:] != flat[:-1]).any(axis=1))).tolist())
    return list(itertools.pairwise(sorted(cuts))) or [(0, 0)]


def _placed(array: np.ndarray, axis: int | None) -> np.ndarray:
    """An array with its rows where the model has them."""
    if axis is None:
        return array[0, ...]
    return np.ascontiguousarray(np.moveaxis(array, 0, axis)) if axis else array


class Predictor:
    """A model in a session.

    Parameters
    ----------
    model : Model
        The model.
    task : str
        ``'classification'`` or ``'regression'``.
    device : str
        Where it runs.
    threads : int, optional
        Threads of onnxruntime.
    """

    def __init__(self, model: Model, task: str, device: str = "cpu", threads: int | None = None) -> None:
        self.model, self.task = model, task
        with of_file(model.path):
            self._session = create_session(guarded(model.proto), device, threads=threads)
        self._names = [output.name for output in self._session.get_outputs()]
        # The model takes so many rows and no other number.
        self._rows = model.axes.rows() or None
        self._axes = {name: model.output_axis(name) for name in self._names}
        self._classes: list[Any] | None = None

    def __call__(self, rows: Rows) -> Answers:
        """What the model says to some rows.

        Raises
        ------
        EvaluationError
            onnxruntime failed.
        InvalidModelError
            An output that does not have a row for each row of the data.
        """
        outputs = self._run(rows.feeds)
        if self.task == "regression":
            return Answers(outputs, self._values(outputs))
        return self._classified(outputs)

    # -- running ---------------------------------------------------------------------------------------

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs, rows first, for feeds that have them first."""
        count = len(next(iter(feeds.values())))
        size = self._rows or count
        once = [feeds[spec.name] for spec in self.model.inputs if spec.axis is None]
        parts = []
        for start, stop in _runs(once, count):
            for begin in range(start, stop, size) if size else [start]:
                part = {name: array[begin : min(begin + size, stop)] for name, array in feeds.items()}
                real = len(next(iter(part.values())))
                if self._rows is not None:  # the last ones are filled up
                    part = {n: np.resize(array, (size, *array.shape[1:])) for n, array in part.items()}
                found = self._once(part, self._rows or real)
                parts.append({name: array[:real] for name, array in found.items()})
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _once(self, feeds: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        """Outputs, rows first, of one run."""
        axes = {spec.name: spec.axis for spec in self.model.inputs}
        placed = {name: _placed(array, axes[name]) for name, array in feeds.items()}
        try:
            found = self._session.run(None, placed)
        except Exception as exc:
            raise EvaluationError(f"{self.model.path}: {run_error(self._session, exc)}") from exc
        return {
            name: self._rows_first(name, value, count) for name, value in zip(self._names, found, strict=True)
        }

    def _rows_first(self, name: str, value: Any, count: int) -> np.ndarray:
        array = self._columns_of(value) if isinstance(value, list) else np.asarray(value)
        axis = 0 if isinstance(value, list) else self._axes[name]
        if axis is None and self._rows == 1:
            return array[None]
        # Files may declare other sizes than outputs have: those with as many rows in front are taken.
        axis = axis or 0
        if array.ndim <= axis or array.shape[axis] != count:
            raise InvalidModelError(
                f"{self.model.path}: output {name!r} has shape {array.shape} for {count} rows: predictions "
                "need one row for each. If another of its axes holds the rows, or one of the inputs', say "
                f"so: --batch-axis {name}=AXIS."
            )
        return np.moveaxis(array, axis, 0)

    def _columns_of(self, maps: list[Any]) -> np.ndarray:
        """The maps of a ZipMap, or other sequences, as columns."""
        if not maps or not isinstance(maps[0], dict):
            raise InvalidModelError(f"{self.model.path}: an output is a sequence of no maps.")
        if self._classes is None:
            self._classes = list(maps[0])
        return np.array([[m[c] for c in self._classes] for m in maps], dtype=np.float32)

    # -- what it means ---------------------------------------------------------------------------------

    def _values(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Numbers of a regressor: of the output that was trained, or of all."""
        card = self.model.card
        if card is not None and card.task == "regression" and card.output in outputs:
            return {card.output: outputs[card.output]}
        numbers = {name: a for name, a in outputs.items() if a.dtype.kind == "f"}
        return numbers or outputs

    def _classified(self, outputs: dict[str, np.ndarray]) -> Answers:
        model = self.model
        scores = None if model.score_output is None else outputs.get(model.score_output)
        label = None if model.label_output is None else outputs[model.label_output]
        if label is not None and label.ndim == 2 and label.shape[1] == 1:
            label = label.reshape(-1)
        if scores is None:
            if label is None:
                raise InvalidModelError(f"{model.path}: no output holds scores or labels.")
            return Answers(outputs, {}, label)
        deep = scores.ndim > 2
        if deep:
            axis = self._class_axis(scores.ndim)
            if axis is None:
                return self._deep(outputs, scores, label)
            scores, label = np.moveaxis(scores, axis, -1), None
        else:
            scores = scores.reshape(len(scores), -1)
        classes = self._known_classes(max(scores.shape[-1], 2))
        decision = model.decision
        if deep or scores.shape[-1] == 1:  # one answer to each question
            decision = dataclasses.replace(decision, multilabel=False)
        probabilities = decision.probabilities(scores, -1)
        if decision.multilabel or label is None or label.ndim != 1 or model.graph_classes is None:
            label = decision.labels(scores, -1, np.array(classes))
        return Answers(outputs, {}, label, probabilities, scores, classes, decision)

    def _class_axis(self, rank: int) -> int | None:
        """Axis of the classes in scores, rows first, of several labels a row; None if unknown."""
        name = self.model.score_output
        assert name is not None
        rows, card = self._axes[name], self.model.card
        said = None if card is None or card.output != name else card.class_axis
        if said is None:
            logits = find_logits(self.model.prepared, name)
            said = logits.axis if logits is not None and logits.kind == "softmax" else None
        if said is None:
            return None
        own = rank - (rows is None)  # what has no rows was stacked
        axis = said % own
        return axis + 1 if rows is None or axis < rows else axis

    def _deep(self, outputs: dict[str, np.ndarray], scores: np.ndarray, label: np.ndarray | None) -> Answers:
        """Several labels a row: tokens, pixels."""
        if label is None or label.ndim != scores.ndim - 1:
            raise InvalidModelError(
                f"{self.model.path}: output {self.model.score_output!r} has shape {scores.shape}, several "
                "labels a row: --raw writes outputs as they are."
            )
        return Answers(outputs, {}, label)

    def _known_classes(self, count: int) -> list[Any]:
        known = self._classes or self.model.classes
        return list(known) if known is not None and len(known) == count else list(range(count))

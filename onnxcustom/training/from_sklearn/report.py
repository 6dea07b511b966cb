"""What became of the steps of a scikit-learn estimator: a table, kept in the metadata of the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import Pipeline

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import load, select_weights
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor

__all__ = ["ConversionReport", "StepRow", "describe_conversion", "write_steps"]

_KEY = "onnxcustom.conversion"


@dataclasses.dataclass(frozen=True)
class StepRow:
    """What became of one step.

    Attributes
    ----------
    step, kind : str
        Its name and its class.
    place : {'graph', 'scikit-learn'}
        Where it is now.
    shapes : dict of str to tuple of int
        Its weights, by the names that :func:`onnxcustom.weights` gives them.
    why : str
        Why it is not trained, or not all of it; empty if it is.
    trained : tuple of str
        The weights that are trained.
    """

    step: str
    kind: str
    place: str
    shapes: dict[str, tuple[int, ...]]
    why: str = ""
    trained: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What became of every step of a scikit-learn estimator; ``str()`` is a table.

    Attributes
    ----------
    rows : tuple of StepRow
        One for each step, in order.
    dtype : str
        Of the graph.
    loss : str
        What it is trained by.
    notes : tuple of str
        What was left behind.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from onnxcustom.training.from_sklearn import from_sklearn
    >>> X, y = load_iris(return_X_y=True)
    >>> fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    >>> print(describe_conversion(from_sklearn(fitted, X)))
    Converted from scikit-learn, float32, loss cross-entropy
      step                class               where  weights                    numbers  state
      standardscaler      StandardScaler      graph                                   0  frozen: ...
      logisticregression  LogisticRegression  graph  coef (3x4), intercept (3)       15  trained
    """

    rows: tuple[StepRow, ...]
    dtype: str
    loss: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        titles = ("step", "class", "where", "weights", "numbers", "state")
        cells = [
            (r.step or "-", r.kind, r.place, _listed(r), f"{_numbers(r.shapes.values()):,}", _state(r))
            for r in self.rows
        ]
        sizes = [max(len(row[k]) for row in (titles, *cells)) for k in range(len(titles))]
        lines = [f"Converted from scikit-learn, {self.dtype}, loss {self.loss}"]
        for row in (titles, *cells):
            padded = [
                f"{c:>{n}}" if t == "numbers" else f"{c:{n}}"
                for c, n, t in zip(row, sizes, titles, strict=True)
            ]
            lines.append(f"  {'  '.join(padded)}".rstrip())
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _listed(row: StepRow) -> str:
    """Weights with their shapes, or how many if that is too long."""
    prefix = f"{row.step}."
    texts = [f"{n.removeprefix(prefix)} ({'x'.join(map(str, s))})" for n, s in row.shapes.items()]
    text = ", ".join(texts)
    return text if len(text) <= 72 else f"{len(texts)} weights"


def _numbers(shapes: Any) -> int:
    return int(sum(np.prod(shape, dtype=np.int64) for shape in shapes))


def _state(row: StepRow) -> str:
    if not row.trained:
        return f"frozen: {row.why}" if row.why else "frozen"
    if len(row.trained) == len(row.shapes):
        return "trained"
    held = [n.removeprefix(f"{row.step}.") for n in row.shapes if n not in row.trained]
    return f"trained, but not {', '.join(held[:3])}{' ...' if len(held) > 3 else ''}"


def write_steps(
    model: onnx.ModelProto, rows: Sequence[StepRow], dtype: np.dtype, notes: Sequence[str]
) -> None:
    """Leave what became of the steps in the model, where copies, pickles and files keep it."""
    data = {
        "dtype": dtype.name,
        "notes": list(notes),
        "steps": [[r.step, r.kind, r.place, {n: list(s) for n, s in r.shapes.items()}, r.why] for r in rows],
    }
    entry = model.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(data)


def describe_conversion(estimator: Any) -> ConversionReport:
    """What became of the steps of a scikit-learn estimator, and what of them is trained.

    Parameters
    ----------
    estimator : OnnxClassifier, OnnxRegressor, Pipeline or TransformedTargetRegressor
        What :func:`from_sklearn` returned, also after changes of ``weights_to_train`` and ``freeze``,
        after ``clone``, ``fit`` or pickling.

    Returns
    -------
    ConversionReport

    Raises
    ------
    InvalidModelError
        The model does not come from :func:`from_sklearn`.
    """
    while not isinstance(estimator, (OnnxClassifier, OnnxRegressor)):
        if isinstance(estimator, Pipeline):
            estimator = estimator.steps[-1][1]
        elif isinstance(estimator, TransformedTargetRegressor):
            estimator = estimator.regressor
        else:
            raise InvalidModelError(f"{type(estimator).__name__} is nothing that from_sklearn returns.")
    model = load(estimator.model)
    found = {p.key: p.value for p in model.metadata_props}
    if _KEY not in found:
        raise InvalidModelError("The model was not made by from_sklearn: it doesn't say what its steps were.")
    data = _read(found[_KEY])
    chosen = select_weights(model, estimator.weights_to_train, getattr(estimator, "freeze", None))
    rows = [
        StepRow(
            step,
            kind,
            place,
            shapes := {n: tuple(s) for n, s in own.items()},
            why,
            tuple(n for n in shapes if n in chosen),
        )
        for step, kind, place, own, why in data["steps"]
    ]
    loss = _named(estimator)
    return ConversionReport(tuple(rows), data["dtype"], loss, tuple(data["notes"]))


def _read(text: str) -> dict[str, Any]:
    """What :func:`_write` wrote; a model may come from anywhere, and anything may be there."""
    try:
        data = json.loads(text)
        np.dtype(data["dtype"])
        rows = [(step, kind, place, why, dict(own)) for step, kind, place, own, why in data["steps"]]
        texts = [data["dtype"], *data["notes"], *(t for row in rows for t in (*row[:4], *row[4]))]
        sizes = [size for row in rows for shape in row[4].values() for size in shape]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as exc:
        raise _unread() from exc
    if not all(isinstance(t, str) for t in texts) or not all(isinstance(n, int) for n in sizes):
        raise _unread()
    return data


def _unread() -> InvalidModelError:
    return InvalidModelError(
        f"The metadata entry {_KEY!r} of the model is not what from_sklearn writes: convert the model again."
    )


def _named(estimator: Any) -> str:
    """The loss in words."""
    if estimator.loss is not None:
        return str(estimator.loss)
    return "cross-entropy" if isinstance(estimator, OnnxClassifier) else "squared error"

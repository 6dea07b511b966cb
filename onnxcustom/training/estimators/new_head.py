"""A new last layer for an estimator whose model has other outputs than its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcustom._parameters import check_count
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.graph import Prepared, class_labels
from onnxcustom.objective import BaseLearningLoss
from onnxcustom.objective.labels import IGNORED
from onnxcustom.step.built import prepared_in
from onnxcustom.tuning import replace_head

from .label_coding import ignored_label, that_count
from .labels import are_numbered, distinct, labels_of, some

__all__ = ["check_head", "other_classes", "with_head"]


def check_head(head: Any) -> None:
    """Refuse what is no way to make a head.

    Raises
    ------
    InvalidParameterError
        Something else than None, 'auto', a number of outputs or a list of labels.
    """
    if (
        head is None
        or isinstance(head, (list, tuple, np.ndarray))
        or (isinstance(head, str) and head == "auto")
    ):
        return
    if isinstance(head, (str, Mapping)):
        raise InvalidParameterError(
            f"head must be None, 'auto', a number of outputs or a list of labels, not {head!r}."
        )
    check_count("head", head, 1)


def with_head(
    prepared: Prepared, outputs: Any, output: str, seed: Any, why: str = "", cache_dir: Any = None
) -> Prepared:
    """The model with a new last layer.

    Parameters
    ----------
    prepared : Prepared
        The model.
    outputs : int or list
        As :func:`onnxcustom.tuning.replace_head` takes them.
    output : str
        The output that is trained.
    seed : int or anything
        What is no integer counts as 0: the same layer, whatever was drawn before.
    why : str, optional
        The beginning of a warning that a new layer is made.
    cache_dir : path, optional
        Where the model is kept, prepared.
    """
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    given = outputs.tolist() if isinstance(outputs, np.ndarray) else outputs
    made = replace_head(prepared, given, output=output, seed=int(seed) % 2**32 if whole else 0)
    if why:
        count = outputs if isinstance(outputs, int) else len(outputs)
        warn_user(
            f"{why}: a new last layer of {count} outputs, drawn at random, takes the place of the model's "
            "own, as head='auto' says.",
            UserWarning,
        )
    return prepared_in(cache_dir, made)


def other_classes(
    prepared: Prepared,
    shape: tuple[int | None, ...],
    axis: int,
    y: np.ndarray,
    loss: Any,
    given: np.ndarray | None,
) -> tuple[Any, str] | None:
    """Outputs of a new head, and why there must be one; None if the model's classes are those of the data.

    Parameters
    ----------
    prepared : Prepared
        The model.
    shape : tuple of int or None
        Shape of the output that is trained.
    axis : int
        Axis of its classes.
    y : ndarray
        Labels.
    loss : Any
        As the classifier was given it.
    given : ndarray or None
        All labels there are, if they are known.
    """
    columns = shape[axis] if len(shape) > 1 else 1
    rank = max(len(shape), 2)
    if given is None and y.ndim == rank and y.shape[axis] > 1 and _are_flags(y):
        count = y.shape[axis]
        if count == columns:
            return None
        return count, f"y has {count} columns of 0 and 1, and the model {columns}"
    counted = that_count(y, _ignored(loss)) if y.ndim > 1 else y
    labels = distinct(counted.reshape(-1)) if given is None else given
    named = class_labels(prepared.model)
    if named is not None:
        if set(labels.tolist()) <= set(named.tolist()) or _numbered(named, labels):
            return None
        has = f"the model tells {some(named)} apart"
    else:
        has = f"the model has {columns} column{'s' if columns != 1 else ''}"
        try:
            labels_of(labels, max(columns or 1, 2))
            return None
        except InvalidDataError:
            pass
    outputs: Any = labels.tolist()
    if labels.dtype.kind not in "iuUSO" or len(labels) < 2 or not _are_names(outputs):
        outputs = max(2, len(labels))
    return outputs, f"y has {len(labels)} classes, {some(labels)}, and {has}"


def _are_names(labels: list[Any]) -> bool:
    return all(isinstance(v, str) for v in labels) or all(isinstance(v, int) for v in labels)


def _numbered(named: np.ndarray, labels: np.ndarray) -> bool:
    try:
        return are_numbered(named, labels)
    except InvalidDataError:
        return False


def _are_flags(y: np.ndarray) -> bool:
    return y.dtype.kind in "biuf" and bool(np.isin(y, (0, 1)).all())


def _ignored(loss: Any) -> int | None:
    chosen = next(iter(loss.values()), None) if isinstance(loss, Mapping) else loss
    if isinstance(chosen, BaseLearningLoss):
        return ignored_label(chosen, None)
    return IGNORED

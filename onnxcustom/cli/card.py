"""What a trained model file says of its training data, so that predictions find columns and classes again.

It is JSON in the model's metadata. Other programs need not know of it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import onnx

__all__ = ["KEY", "Card", "read_card", "write_card"]

KEY = "onnxcustom.card"
_VERSION, _LONGEST = 1, 1 << 22
_TASKS, _LINKS = ("classification", "regression"), (None, "softmax", "sigmoid", "scores")


@dataclasses.dataclass(frozen=True)
class Card:
    """What a model was trained for.

    Attributes
    ----------
    task : str
        ``'classification'`` or ``'regression'``.
    columns : dict of str to list of str
        Columns of the features, by input of the model.
    target : list of str
        Columns of the expected values.
    output : str
        The output that was trained.
    classes : list of str, int, float or bool, or None
        Labels in the order of its columns.
    link : str or None
        What makes probabilities of it: ``'softmax'`` or ``'sigmoid'``, ``'scores'`` if nothing does, None if
        it holds them.
    multilabel : bool
        Whether each column is a question of its own.
    batch_axis : dict of str to int or None
        Where the rows of inputs and outputs are, as far as their dimensions do not say.
    class_axis : int or None
        Axis of the classes of an output with several labels a row.
    """

    task: str
    columns: dict[str, list[str]]
    target: list[str]
    output: str
    classes: list[Any] | None = None
    link: str | None = None
    multilabel: bool = False
    batch_axis: dict[str, int | None] = dataclasses.field(default_factory=dict)
    class_axis: int | None = None


def write_card(model: onnx.ModelProto, card: Card) -> None:
    """Put a card into the metadata of a model, in place of one that is there."""
    fields = dataclasses.asdict(card)
    # Programs of before know no axes, and need none for most models.
    known = {k: v for k, v in fields.items() if not (k.endswith("_axis") and v in ({}, None))}
    text = json.dumps({"version": _VERSION, **known})
    kept = {p.key: p.value for p in model.metadata_props if p.key != KEY}
    onnx.helper.set_model_props(model, {**kept, KEY: text})


def read_card(model: onnx.ModelProto) -> Card | None:
    """The card of a model; None if it has none that this version understands.

    Examples
    --------
    >>> model = onnx.ModelProto()
    >>> write_card(model, Card("classification", {"x": ["a", "b"]}, ["y"], "p", ["no", "yes"]))
    >>> read_card(model).classes
    ['no', 'yes']
    """
    text = next((p.value for p in model.metadata_props if p.key == KEY), "")
    if not text or len(text) > _LONGEST:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.pop("version", None) != _VERSION:
        return None
    try:
        card = Card(**found)
    except TypeError:
        return None
    return card if _is_sound(card) else None


def _is_sound(card: Card) -> bool:
    classes = [] if card.classes is None else card.classes
    return (
        card.task in _TASKS
        and isinstance(card.columns, dict)
        and all(map(_are_texts, card.columns.values()))
        and _are_texts(card.target)
        and isinstance(card.output, str)
        and isinstance(classes, list)
        and len({type(c) for c in classes}) <= 1
        and all(isinstance(c, (str, int)) or (isinstance(c, float) and math.isfinite(c)) for c in classes)
        and len(set(classes)) == len(classes)
        and (card.link is None or card.link in _LINKS)
        and isinstance(card.multilabel, bool)
        and isinstance(card.batch_axis, dict)
        and all(map(_is_axis, (card.class_axis, *card.batch_axis.values())))
    )


def _is_axis(value: Any) -> bool:
    return value is None or type(value) is int


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)

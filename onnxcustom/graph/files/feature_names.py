"""Names of the columns that a model was trained on, in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

__all__ = ["FEATURE_NAMES", "read_feature_names", "write_feature_names"]

FEATURE_NAMES = "feature_names_in"
"""Key of the entry: a JSON list of names for a model of one input, an object of such lists for others."""

_LONGEST = 1 << 22


def read_feature_names(model: onnx.ModelProto | ir.Model) -> dict[str, tuple[str, ...]]:
    """Names of the columns by input of the model; of those inputs that have some.

    Parameters
    ----------
    model : ModelProto or onnx_ir.Model
        Any model: an entry that is not as :func:`write_feature_names` writes it counts as none.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... g (float[N, 2] x) => (float[N, 2] y) { y = Neg(x) }''')
    >>> write_feature_names(model, {"x": ["area", "rooms"]})
    >>> model.metadata_props[0].key, model.metadata_props[0].value
    ('feature_names_in', '["area", "rooms"]')
    >>> read_feature_names(model)
    {'x': ('area', 'rooms')}
    """
    if isinstance(model, ir.Model):
        text = model.metadata_props.get(FEATURE_NAMES, "")
    else:
        text = next((p.value for p in model.metadata_props if p.key == FEATURE_NAMES), "")
    if not text or len(text) > _LONGEST:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    inputs = _inputs(model)
    if isinstance(found, list) and len(inputs) == 1:
        found = {inputs[0]: found}
    if not isinstance(found, dict):
        return {}
    return {name: tuple(found[name]) for name in inputs if _are_names(found.get(name))}


def write_feature_names(model: onnx.ModelProto, names: Mapping[str, Sequence[str]]) -> None:
    """Put names of columns by input into the metadata of a model, in place of those that are there."""
    inputs = _inputs(model)
    found: Any = {name: list(names[name]) for name in inputs if name in names}
    text = json.dumps(found[inputs[0]] if len(inputs) == 1 and found else found)
    kept = {p.key: p.value for p in model.metadata_props if p.key != FEATURE_NAMES}
    onnx.helper.set_model_props(model, {**kept, FEATURE_NAMES: text} if found else kept)


def _inputs(model: onnx.ModelProto | ir.Model) -> list[str]:
    """Inputs that are no initializers."""
    if isinstance(model, ir.Model):
        return [str(v.name) for v in model.graph.inputs if v.name not in model.graph.initializers]
    constants = {t.name for t in model.graph.initializer}
    return [v.name for v in model.graph.input if v.name not in constants]


def _are_names(found: Any) -> bool:
    """Whether something is a list of different names."""
    return (
        isinstance(found, list)
        and len(found) > 0
        and all(isinstance(name, str) for name in found)
        and len(set(found)) == len(found)
    )

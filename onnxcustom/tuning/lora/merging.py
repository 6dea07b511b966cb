"""Adapters taken into the weights of a model, and put together."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxcustom._text import listed
from onnxcustom.exceptions import InvalidDataError, InvalidModelError, InvalidParameterError
from onnxcustom.graph.files.io import ModelLike
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.trainable.weights import replace_constants

from .adapter import Adapter, digests, of_array, ranks_last
from .attach import delta, names_of
from .files import load_adapter, version_of
from .sites import Matrix, matrices_of

__all__ = ["combine_adapters", "merge_adapter", "record"]

_KEY = "onnxcustom.adapters"


def merge_adapter(
    model: ModelLike, adapter: Adapter | Mapping[str, np.ndarray] | str | os.PathLike[str]
) -> onnx.ModelProto:
    """A model with an adapter taken into its weights.

    The metadata of the result say which adapters are in it and what its weights were, so that others of the
    same base can follow and none is taken in twice.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model that the adapter was trained beside.
    adapter : Adapter, mapping of str to ndarray, str or PathLike
        What :func:`load_adapter` returns, or its file; of arrays alone only names and shapes are compared.

    Returns
    -------
    onnx.ModelProto
        With the names, nodes, inputs and outputs of `model`.

    Raises
    ------
    InvalidModelError
        The adapter is of another model, it is in this one already, or the weights are integers.
    """
    own = _adapter(adapter)
    prepared = Prepared.of(model)
    found = _placed(prepared, own)
    seen = _recorded(prepared.proto)
    if own.identity in seen["merged"]:
        raise InvalidModelError(
            "This adapter is in the weights of the model already: merge it into the model without it."
        )
    _check_base(found, own, seen["base"], digests(prepared.model))
    tensors = {
        name: merged(matrix, matrix.value.const_value.numpy(), *own.factors(name), 1.0)  # type: ignore[union-attr]
        for name, matrix in found.items()
    }
    made = replace_constants(prepared.proto, tensors)
    record(made, own, found)
    return made


def merged(matrix: Matrix, old: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """A weight with an adapter in it, added in double precision."""
    return (old.astype(np.float64) + delta(matrix, a, b, scale)).astype(old.dtype)


def combine_adapters(
    adapters: Sequence[Adapter | Mapping[str, np.ndarray] | str | os.PathLike[str]],
    weights: Sequence[float] | None = None,
) -> Adapter:
    """One adapter that does what several do together, each times a number.

    Nothing is approximated: factors are put side by side, and ranks add up.

    Parameters
    ----------
    adapters : sequence of Adapter, mapping or path
        Of one base.
    weights : sequence of float, optional
        A number for each; by default they are averaged.

    Raises
    ------
    InvalidParameterError
        No adapters, or another number of weights.
    InvalidDataError
        Adapters of different models.
    """
    given = [_adapter(adapter) for adapter in adapters]
    shares = [1 / len(given)] * len(given) if weights is None and given else list(weights or ())
    if not given or len(shares) != len(given) or not np.isfinite(shares).all():
        raise InvalidParameterError(
            f"combine_adapters needs adapters and a finite number for each: {len(given)} adapters and "
            f"weights={weights!r} were given."
        )
    base: dict[str, str] = {}
    for one in given:
        other = [name for name, told in one.base.items() if base.get(name, told) != told]
        if other:
            raise InvalidDataError(
                f"The adapters are of different models: weights {listed(other, 3)} were not the same when "
                "they were trained."
            )
        base.update(one.base)
    tensors: dict[str, np.ndarray] = {}
    for weight in dict.fromkeys(name for one in given for name in one.weights):
        parts = [
            (one.factors(weight), share)
            for one, share in zip(given, shares, strict=True)
            if weight in one.weights
        ]
        tensors.update(zip(names_of(weight), _side_by_side(weight, parts), strict=True))
    return Adapter(tensors, base)


def _side_by_side(
    weight: str, parts: Sequence[tuple[tuple[np.ndarray, np.ndarray], float]]
) -> tuple[np.ndarray, np.ndarray]:
    (first, second), _ = parts[0]
    axis = ranks_last(first)
    for (a, b), _ in parts:
        if a.shape[1 - axis] != first.shape[1 - axis] or b.shape[axis] != second.shape[axis]:
            raise InvalidDataError(
                f"The adapters are of different models: for {weight!r} there are shapes "
                f"{[p[0].shape for p, _ in parts]} and {[p[1].shape for p, _ in parts]}."
            )
    scaled = [(b.astype(np.float64) * share).astype(b.dtype) for (_, b), share in parts]
    return np.concatenate([a for (a, _), _ in parts], axis), np.concatenate(scaled, 1 - axis)


def _adapter(given: Any) -> Adapter:
    if isinstance(given, Adapter):
        return given
    if isinstance(given, Mapping):
        return Adapter({str(name): np.asarray(array) for name, array in given.items()})
    if isinstance(given, (str, os.PathLike)):
        return load_adapter(given)
    raise InvalidParameterError(
        f"An adapter, its arrays by name or its file was expected, not {type(given).__name__}."
    )


def _placed(prepared: Prepared, adapter: Adapter) -> dict[str, Matrix]:
    """The matrices that an adapter changes.

    Raises
    ------
    InvalidModelError
        The model has no such matrix, or of another shape, or of integers.
    """
    found = matrices_of(prepared.model)
    chosen = {}
    for name in adapter.weights:
        a, b = adapter.factors(name)
        matrix = found.get(name)
        sides = (a.shape[1 - ranks_last(a)], b.shape[ranks_last(b)])
        if matrix is None or matrix.features != sides:
            there = "no such matrix" if matrix is None else f"one of {matrix.features}"
            raise InvalidModelError(
                f"The adapter is for another base: it changes {name!r} of {sides} (inputs, outputs), and the "
                f"model has {there}."
            )
        if matrix.is_integer:
            raise InvalidModelError(
                f"Weight {name!r} is of integers, which an adapter cannot be taken into: hand it to the "
                "model of get_trained_onnx(merge=False) as inputs, or make floats of the integers by "
                "tuning.dequantize."
            )
        chosen[name] = matrix
    return chosen


def _check_base(
    found: Mapping[str, Matrix],
    adapter: Adapter,
    before: Mapping[str, Sequence[str]],
    now: Mapping[str, str],
) -> None:
    """Refuse an adapter of a model with other numbers in its weights, those as well that it leaves alone."""
    own = {name: of_array(m.value.const_value.numpy()) for name, m in found.items()}  # type: ignore[union-attr]
    known = {name: [*before.get(name, ()), told] for name, told in {**now, **own}.items()}
    number = adapter.base.get("")
    if number is not None:
        oldest = version_of({n: known[n][0] for n in found})
        newest = version_of({n: known[n][-1] for n in found})
        other = [] if int(number) in (0, 1, oldest, newest) else [*found]
    else:
        other = [n for n, told in known.items() if adapter.base.get(n, told[-1]) not in told]
    if other:
        raise InvalidModelError(
            f"The adapter is for another base: weights {listed(other, 3)} are not those that it was trained "
            "beside, by their fingerprint."
        )


def _recorded(model: onnx.ModelProto) -> dict[str, Any]:
    """Which adapters are in a model, and what its weights were told by before each."""
    text = next((p.value for p in model.metadata_props if p.key == _KEY), "{}")
    try:
        found = json.loads(text)
        return {"merged": [*found.get("merged", ())], "base": {**found.get("base", {})}}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {"merged": [], "base": {}}


def record(model: onnx.ModelProto, adapter: Adapter, found: Mapping[str, Matrix]) -> None:
    """Put down in a model's metadata that an adapter was taken into these weights."""
    seen = _recorded(model)
    seen["merged"].append(adapter.identity)
    for name, matrix in found.items():
        assert matrix.value.const_value is not None
        told = seen["base"].setdefault(name, [])
        now = of_array(matrix.value.const_value.numpy())
        if now not in told:
            told.append(now)
    entry = next((p for p in model.metadata_props if p.key == _KEY), None)
    if entry is None:
        entry = model.metadata_props.add(key=_KEY)
    entry.value = json.dumps(seen)

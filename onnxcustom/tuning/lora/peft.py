"""Adapters under the names that PEFT, of PyTorch, gives them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from onnxcustom._text import listed
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, UnknownNameError
from onnxcustom.graph.files.io import ModelLike
from onnxcustom.graph.preparation.prepare import Prepared

from .adapter import Adapter, digests
from .attach import names_of
from .sites import Matrix, matrices_of

__all__ = ["from_peft", "to_peft"]

_PREFIX = "base_model.model."
_PARTS = (".lora_A.weight", ".lora_B.weight")
_CONFIG = "adapter_config.json"
_FILE = "adapter_model.safetensors"


def from_peft(
    folder: str | os.PathLike[str],
    model: ModelLike,
    base: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None,
) -> Adapter:
    """Read an adapter that PEFT has written, for the ONNX export of its base.

    Parameters
    ----------
    folder : str or PathLike
        With ``adapter_model.safetensors`` and ``adapter_config.json``.
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The export.
    base : str, PathLike or mapping of str to ndarray, optional
        The base's weights under PyTorch's names, or its file of safetensors: exporters rename weights, which
        are then told by their numbers. Without it they are told by their names.

    Raises
    ------
    UnknownNameError
        It cannot be told which weight of the export is meant.
    InvalidDataError
        The files hold something else.
    """
    source = Path(folder)
    config = _config(source / _CONFIG)
    tensors = _tensors(source / _FILE)
    strange = [name for name in tensors if not name.startswith(_PREFIX) or not name.endswith(_PARTS)]
    if strange or not tensors:
        raise InvalidDataError(
            f"{_FILE} of {source.name} holds {listed(strange, 3)}: {_PREFIX}<name>.lora_A.weight and "
            "lora_B.weight were expected, of layers without magnitudes or embeddings."
        )
    layers = dict.fromkeys(name[len(_PREFIX) : -len(_PARTS[0])] for name in tensors)
    prepared = Prepared.of(model)
    meant = _Meant(matrices_of(prepared.model), _weights(base))
    made: dict[str, np.ndarray] = {}
    for layer in layers:
        a, b = (tensors.get(f"{_PREFIX}{layer}{part}") for part in _PARTS)
        if a is None or b is None:
            raise InvalidDataError(f"{_FILE} of {source.name} has A or B of {layer!r} only.")
        matrix = meant.matrix(layer, (int(a.shape[1]), int(b.shape[0])))
        scale = _scale(config, layer, int(a.shape[0]))
        made.update(zip(names_of(matrix.name), _ours(matrix, a, b, scale), strict=True))
    return Adapter(made, digests(prepared.model), float(config["lora_alpha"]))


def to_peft(
    adapter: Adapter,
    folder: str | os.PathLike[str],
    model: ModelLike,
    base: str | os.PathLike[str] | Mapping[str, np.ndarray],
) -> None:
    """Write an adapter as PEFT reads it, for the PyTorch model that `model` is an export of.

    Parameters
    ----------
    adapter : Adapter
        What :func:`load_adapter` returns.
    folder : str or PathLike
        Where ``adapter_model.safetensors`` and ``adapter_config.json`` are written; made if need be.
    model, base
        As for :func:`from_peft`; names are PyTorch's.

    Raises
    ------
    UnknownNameError
        It cannot be told what PyTorch calls a weight.
    InvalidParameterError
        Ranks differ, which the files have no room for.
    """
    known, found = _weights(base), matrices_of(Prepared.of(model).model)
    if known is None:
        raise InvalidParameterError(
            "to_peft needs base, PyTorch's weights by name: they say what layers are called."
        )
    meant = _Meant(found, known)
    names: dict[str, list[str]] = {}
    for name in known:
        if name.endswith(".weight") and known[name].ndim >= 2:
            layer = name.removesuffix(".weight")
            for matrix in meant.candidates(layer):
                names.setdefault(matrix.name, []).append(layer)
    tensors: dict[str, np.ndarray] = {}
    ranks = set()
    for weight in adapter.weights:
        layers = names.get(weight, [])
        if len(layers) != 1:
            raise UnknownNameError(
                f"It cannot be told what PyTorch calls weight {weight!r}: its numbers are those of "
                f"{listed(layers, 3) if layers else 'no weight of the base'}."
            )
        a, b = adapter.factors(weight)
        if a.ndim == 2:
            a, b = a.T, b.T
        ranks.add(int(a.shape[0]))
        tensors.update(
            {f"{_PREFIX}{layers[0]}{p}": np.ascontiguousarray(f) for p, f in zip(_PARTS, (a, b), strict=True)}
        )
    if len(ranks) > 1:
        raise InvalidParameterError(
            f"PEFT has one rank for all weights; those of this adapter are {sorted(ranks)}."
        )
    rank = ranks.pop()
    modules = sorted({name[len(_PREFIX) : -len(_PARTS[0])] for name in tensors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules, "bias": "none"}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _written(target / _FILE, safetensors.numpy.save(tensors, {"format": "pt"}))
    _written(target / _CONFIG, json.dumps(config, indent=1).encode())


def _written(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class _Meant:
    """Matrices of an export by what PyTorch calls them."""

    def __init__(self, found: Mapping[str, Matrix], base: Mapping[str, np.ndarray] | None) -> None:
        self._found, self._base = found, base

    def matrix(self, layer: str, features: tuple[int, int]) -> Matrix:
        """The one that is a layer's weight."""
        chosen = [m for m in self.candidates(layer) if m.features == features]
        if len(chosen) == 1:
            return chosen[0]
        told = "its name" if self._base is None else "its numbers"
        hint = " Give base, the weights that it was exported from." if self._base is None else ""
        there = "none is" if not chosen else f"{listed([m.name for m in chosen], 3)} are"
        raise UnknownNameError(
            f"It cannot be told by {told} which weight {layer!r} of {features} (inputs, outputs) is: {there} "
            f"like it.{hint}"
        )

    def candidates(self, layer: str) -> list[Matrix]:
        """Those that have the numbers of a layer's weight, or its name if the numbers are not known."""
        name = f"{layer}.weight"
        if self._base is None:
            return [m for n, m in self._found.items() if n == name or n.endswith(f".{name}")]
        values = self._base.get(name)
        return [] if values is None else [m for m in self._found.values() if _same(m, values)]


def _same(matrix: Matrix, values: np.ndarray) -> bool:
    if matrix.is_integer or matrix.value.const_value is None or values.size != math.prod(matrix.shape):
        return False
    own = matrix.value.const_value.numpy().reshape(matrix.shape)
    own = own if matrix.rows_are_outputs else own.T
    values = values.reshape(values.shape[:2])
    return own.shape == values.shape and bool((own == values.astype(own.dtype)).all())


def _ours(matrix: Matrix, a: np.ndarray, b: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    b = (b.astype(np.float64) * scale).astype(b.dtype)
    sides = [1] * (len(matrix.value.shape or ()) - 2)
    if sides:
        return a.reshape([*a.shape[:2], *sides]), b.reshape([*b.shape[:2], *sides])
    return np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _config(path: Path) -> dict[str, Any]:
    """What PEFT says of an adapter, if it is one that is only a product."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError) as exc:
        raise InvalidDataError(f"{path.name} is no configuration of a LoRA adapter: {exc}") from exc
    other = [
        key for key in ("use_dora", "fan_in_fan_out", "alpha_pattern", "modules_to_save") if config.get(key)
    ]
    if config.get("peft_type", "LORA") != "LORA" or other or config.get("bias", "none") != "none":
        raise InvalidDataError(
            f"{path.name} asks for more than products of two matrices: "
            f"{listed([*other, config.get('peft_type'), config.get('bias')], 5)}."
        )
    return dict(config)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return dict(sorted(safetensors.numpy.load(path.read_bytes()).items()))
    except (safetensors.SafetensorError, ValueError, KeyError) as exc:
        raise InvalidDataError(f"{path.name} is no file of safetensors: {exc}") from exc


def _weights(base: Any) -> Mapping[str, np.ndarray] | None:
    return _tensors(Path(base)) if isinstance(base, (str, os.PathLike)) else base

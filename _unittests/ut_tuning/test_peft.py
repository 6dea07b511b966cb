"""Adapters under PEFT's names: PyTorch's formula in NumPy, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from onnxcustom import weights
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, UnknownNameError
from onnxcustom.graph import rename_weights
from onnxcustom.tuning import Adapter, from_peft, merge_adapter, to_peft

from .test_lora import network

LAYERS = {"w1": "encoder.first", "w2": "encoder.second", "k": "head.conv"}


def base() -> dict[str, np.ndarray]:
    """Weights of the network as PyTorch has them: outputs first."""
    own = weights(network())
    return {f"{LAYERS[n]}.weight": own[n].T.copy() if n == "w1" else own[n] for n in LAYERS}


def written(folder: Path, **config: object) -> dict[str, np.ndarray]:
    """An adapter as PEFT writes it, and the tensors of its file."""
    rng, tensors = np.random.default_rng(0), {}
    for name, weight in base().items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        sides = weight.shape[2:]
        tensors[f"{key}.lora_A.weight"] = rng.normal(size=(2, weight.shape[1], *sides)).astype(np.float32)
        tensors[f"{key}.lora_B.weight"] = rng.normal(size=(weight.shape[0], 2, *sides)).astype(np.float32)
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    made = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(made))
    return tensors


@pytest.mark.parametrize("rslora", [False, True])
def test_numbers_tell_what_is_meant(rslora: bool, tmp_path: Path) -> None:
    tensors = written(tmp_path, use_rslora=rslora)
    adapter = from_peft(tmp_path, network(), base())
    merged = weights(merge_adapter(network(), adapter))
    scale = 6 / np.sqrt(2) if rslora else 3
    for own, layer in LAYERS.items():
        a, b = (tensors[f"base_model.model.{layer}.lora_{f}.weight"] for f in "AB")
        change = scale * b.reshape(b.shape[:2]) @ a.reshape(a.shape[:2])
        old = base()[f"{layer}.weight"]
        expected = old + change.reshape(old.shape)
        np.testing.assert_allclose(merged[own], expected.T if own == "w1" else expected, rtol=1e-5, atol=1e-5)
    to_peft(adapter, tmp_path / "again", network(), base())
    again = from_peft(tmp_path / "again", network(), base())
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in tmp_path.glob("adapter_*")}
    for name, array in adapter.items():
        np.testing.assert_allclose(again[name], array, rtol=1e-6)
    stored = safetensors.numpy.load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert {n: t.shape for n, t in stored.items()} == {n: t.shape for n, t in tensors.items()}


def test_names_tell_it_as_well(tmp_path: Path) -> None:
    written(tmp_path)
    named = rename_weights(network(), {own: f"{layer}.weight" for own, layer in LAYERS.items()})
    by_name, by_value = from_peft(tmp_path, named), from_peft(tmp_path, named, base())
    assert set(by_name) == set(by_value)
    assert all((by_name[n] == by_value[n]).all() for n in by_name)


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(UnknownNameError, match=r"by its name.*'encoder.first'.*Give base"):
        from_peft(tmp_path, network())
    other = {name: weight + 1 for name, weight in base().items()}
    with pytest.raises(UnknownNameError, match="by its numbers"):
        from_peft(tmp_path, network(), other)
    adapter = from_peft(tmp_path, network(), base())
    with pytest.raises(UnknownNameError, match="what PyTorch calls weight"):
        to_peft(adapter, tmp_path / "again", network(), other)
    factors = {n: a for n, a in adapter.items() if n.startswith("w1")}
    factors["w1.lora_A"], factors["w1.lora_B"] = factors["w1.lora_A"][:, :1], factors["w1.lora_B"][:1]
    with pytest.raises(InvalidParameterError, match="one rank"):
        to_peft(Adapter({**adapter, **factors}), tmp_path / "again", network(), base())
    written(tmp_path, use_dora=True)
    with pytest.raises(InvalidDataError, match="use_dora"):
        from_peft(tmp_path, network(), base())

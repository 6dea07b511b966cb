"""What works, and what is said, where packages are missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest

from onnxcustom import weights

IRIS = ("train", "iris.onnx", "iris.csv", "--target", "species", "--epochs", "2")


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)


def test_csv_needs_no_pyarrow(folder: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    command(*IRIS, "-o", "with.onnx")
    told = command("predict", "with.onnx", "iris.csv").output
    without(monkeypatch, "pyarrow")
    command(*IRIS, "-o", "without.onnx")
    for a, b in zip(weights("with.onnx").values(), weights("without.onnx").values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert command("predict", "without.onnx", "iris.csv").output == told


def test_parquet_without_pyarrow(folder: Path, fails, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "pyarrow")
    line = fails("train", "house.onnx", "house.parquet", "--target", "price", code=1)
    assert "onnxcustom[data]" in line
    line = fails("predict", "iris.onnx", "flowers.csv", "-o", "out.parquet", code=1)
    assert "onnxcustom[data]" in line
    assert not Path("out.parquet").exists()


def test_plot_without_matplotlib(folder: Path, fails, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "matplotlib")
    line = fails(*IRIS, "--plot", "loss.png", code=1)
    assert "onnxcustom[plot]" in line
    assert not Path("iris_trained.onnx").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "house.onnx", "house.parquet", "--target", "price"),
        ("predict", "iris.onnx", "flowers.csv"),
        ("evaluate", "iris.onnx", "iris.csv", "--target", "species"),
        ("demo", "--quiet"),
    ],
    ids=lambda a: a[0],
)
def test_without_onnxruntime(arguments: tuple[str, ...], folder: Path, fails, monkeypatch) -> None:
    without(monkeypatch, "onnxruntime")
    before = {p.name for p in folder.iterdir()}
    assert "onnxcustom[cpu]" in fails(*arguments, code=1)
    assert {p.name for p in folder.iterdir()} == before


def test_inspect_and_gradient_need_no_onnxruntime(folder: Path, command, monkeypatch) -> None:
    commands = [("inspect", "house.onnx"), ("gradient", "house.onnx", "-o", "with.onnx")]
    told = [command(*arguments).output for arguments in commands]
    without(monkeypatch, "onnxruntime")
    assert command(*commands[0]).output == told[0]
    assert len(told[0].splitlines()) > 5
    command("gradient", "house.onnx", "-o", "without.onnx")
    made, other = (onnx.load(name).graph for name in ("with.onnx", "without.onnx"))
    assert [v.name for v in made.output] == [v.name for v in other.output]
    assert any(v.name.endswith("_grad") for v in other.output)


def test_a_full_disk(folder: Path, fails, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcustom.cli import training

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "house_trained.onnx")

    monkeypatch.setattr(training, "save", full)
    line = fails("train", "house.onnx", "house.parquet", "--target", "price", "--quiet", code=1)
    assert line == "Error: No space left on device: house_trained.onnx"


def test_rows_of_arrow_and_feather(folder: Path, command) -> None:
    pd.read_parquet("house.parquet").to_feather("house.feather")
    command("train", "house.onnx", "house.feather", "--target", "price", "--epochs", 1, "-o", "a.onnx")
    command("train", "house.onnx", "house.parquet", "--target", "price", "--epochs", 1, "-o", "b.onnx")
    for a, b in zip(weights("a.onnx").values(), weights("b.onnx").values(), strict=True):
        np.testing.assert_array_equal(a, b)

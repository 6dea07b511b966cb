"""``python -m onnxcustom demo``: as good as scikit-learn, and no file but its own."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from onnxcustom.__main__ import main
from onnxcustom.demo import run_demo, train_digits

FILES = {"digits_trained.onnx", "training_step.onnx", "loss.png"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("demo")
    (folder / "notes.txt").write_text("mine")
    (folder / "loss.png").write_bytes(b"an older one")
    return folder, run_demo(folder, quiet=True)


def test_reaches_scikit_learn(demo) -> None:
    digits, diabetes = demo[1]
    assert digits.trained[0] >= digits.reference[0] - 0.01
    assert digits.trained[0] > digits.before[0]
    assert digits.trained[1] < digits.before[1]
    assert diabetes.trained[0] >= diabetes.reference[0] - 0.01
    assert diabetes.trained[1] < diabetes.before[1]


@pytest.mark.parametrize(("part", "factor"), [(0, 1), (1, 2)])
def test_curves_end_at_the_numbers_of_the_table(demo, part: int, factor: int) -> None:
    """Both are of the same rows: what the table says before and after are the ends of the curves."""
    found = demo[1][part]
    for name, last in (("onnxcustom", found.trained), ("scikit-learn", found.reference)):
        curve = found.curves[name]["val_loss"]
        assert factor * curve[0] == pytest.approx(found.before[1], rel=1e-5)
        assert factor * curve[-1] == pytest.approx(last[1], rel=1e-4)
    assert f"on {found.rows} rows held out" in str(found)
    assert found.rows == (450, 111)[part]


def test_writes_its_files_only(demo) -> None:
    folder = demo[0]
    expected = FILES | {"notes.txt"}
    assert {p.name for p in folder.iterdir()} == expected
    assert (folder / "notes.txt").read_text() == "mine"
    if has_matplotlib():
        assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


@pytest.mark.parametrize("name", ["digits_trained.onnx", "training_step.onnx"])
def test_models_are_valid(demo, name: str) -> None:
    import onnxruntime

    path = demo[0] / name
    onnx.checker.check_model(onnx.load(path))
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_trained_model_is_the_estimators(demo) -> None:
    import numpy as np
    import onnxruntime
    from sklearn.datasets import load_digits

    X = (load_digits().data / 16).astype(np.float32)
    session = onnxruntime.InferenceSession(
        demo[0] / "digits_trained.onnx", providers=["CPUExecutionProvider"]
    )
    labels = session.run(None, {session.get_inputs()[0].name: X})[0]
    np.testing.assert_array_equal(labels, demo[1][0].estimator.predict(X))


def test_command_prints_both_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnxcustom.demo.train_digits", lambda verbose: train_digits(1, verbose))
    done = CliRunner().invoke(main, ["demo", "--output", os.path.join("some", "folder")])
    assert done.exit_code == 0, done.output
    for word in ("Digits", "Diabetes", "accuracy", "log-loss", "before", "onnxcustom", "scikit-learn"):
        assert word in done.output
    assert re.search(r"digits_trained\.onnx", done.output)
    assert os.listdir(tmp_path) == ["some"]


def test_quiet_prints_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("onnxcustom.demo.train_digits", lambda verbose: train_digits(1, verbose))
    done = CliRunner().invoke(main, ["demo", "--quiet", "--output", str(tmp_path)])
    assert done.exit_code == 0
    assert done.output == ""
    assert capfd.readouterr() == ("", "")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("onnxcustom.demo.train_digits", lambda verbose: train_digits(1, verbose))
    run_demo(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == FILES - {"loss.png"}
    assert "matplotlib is missing" in capsys.readouterr().out


def test_without_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = CliRunner().invoke(main, ["demo", "--output", str(tmp_path)])
    assert done.exit_code != 0
    assert "onnxcustom[cpu]" in done.output
    assert not list(tmp_path.iterdir())


def test_help_and_version() -> None:
    import onnxcustom

    assert onnxcustom.__version__ in CliRunner().invoke(main, ["--version"]).output
    assert "--quiet" in CliRunner().invoke(main, ["demo", "--help"]).output

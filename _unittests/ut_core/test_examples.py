"""The examples of the documentation run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "_doc" / "examples").glob("plot_*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("onnxruntime")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    assert runpy.run_path(str(path))["plt"].get_fignums()
    matplotlib.pyplot.close("all")

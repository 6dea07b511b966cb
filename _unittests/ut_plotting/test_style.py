"""What pictures share: no global state, colours that are told apart, names as they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onnxcustom._text import shorten
from onnxcustom.exceptions import MissingPackageError
from onnxcustom.plotting.style import COLORS, plain

DRAW = """
import sys
import onnxcustom.plotting as p
assert "matplotlib" not in sys.modules and "graphviz" not in sys.modules, "imported before it is needed"
import matplotlib
before = dict(dict.items(matplotlib.rcParams))
p.plot_history({"a": {"loss": [1.0, 0.5], "val_accuracy": [0.1, 0.2]}, "b": {"loss": [1.0]}}, smooth=0.5)
p.plot_weight_changes({"w": [1.0, 2.0]}, {"w": [1.0, 3.0]})
assert "matplotlib.pyplot" not in sys.modules, "the state of pyplot is not ours"
assert dict(dict.items(matplotlib.rcParams)) == before
assert "onnxruntime" not in sys.modules
"""


def test_no_global_state() -> None:
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRAW], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcustom.plotting import plot_history, plot_weight_changes

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (
        lambda: plot_history({"loss": [1.0]}),
        lambda: plot_weight_changes({"w": [1.0]}, {"w": [2.0]}),
    ):
        with pytest.raises(MissingPackageError, match=r'pip install "onnxcustom\[plot\]"') as caught:
            draw()
        assert isinstance(caught.value, ImportError)


def test_colours_differ_for_colour_blind_readers() -> None:
    """Simulated by the matrices of Viénot, Brettel and Mollon (1999), colours stay apart in CIE Lab."""
    import numpy as np

    def linear(color: str) -> np.ndarray:
        c = np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)

    to_lms = np.array(
        [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
    )
    protan = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    deutan = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

    def lab(rgb: np.ndarray) -> np.ndarray:
        x, y, z = np.cbrt(np.maximum(to_xyz @ rgb / to_xyz.sum(axis=1), 1e-9))
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    for loss in (np.eye(3), protan, deutan):
        seen = [lab(np.linalg.inv(to_lms) @ loss @ to_lms @ linear(color)) for color in COLORS]
        apart = [np.linalg.norm(a - b) for k, a in enumerate(seen) for b in seen[:k]]
        assert min(apart) > 10


@pytest.mark.parametrize(
    ("name", "text"),
    [("sgd", "sgd"), ("a$b$c", r"a\$b\$c"), ("two\nlines", "two lines"), ("_hidden", "\u200b_hidden")],
)
def test_plain(name: str, text: str) -> None:
    assert plain(name) == text


@pytest.mark.parametrize("size", [0, 1, 29, 30, 31, 100])
def test_shorten(size: int) -> None:
    name = "".join(chr(ord("a") + k % 26) for k in range(size))
    short = shorten(name)
    assert len(short) == min(size, 30)
    if size > 30:
        start, end = short.split("…")
        assert name.startswith(start)
        assert name.endswith(end)
        assert min(len(start), len(end)) >= 14

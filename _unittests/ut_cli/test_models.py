"""What a model is to a command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom.cli.models import Model
from onnxcustom.exceptions import InvalidDataError, InvalidModelError

HEAD = '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>'
MODELS = {
    "softmax": ("g (float[N,3] x) => (float[N,3] p) { p = Softmax(x) }", "classification", "p", None, True),
    "sigmoid": ("g (float[N,1] x) => (float[N,1] p) { p = Sigmoid(x) }", "classification", "p", None, True),
    "numbers": ("g (float[N,3] x) => (float[N,3] y) { y = Tanh(x) }", "regression", "y", None, False),
    "zipmap": (
        """g (float[N,2] x) => (string[N] l, seq(map(string, float)) p) { q = Softmax(x)
        k = ArgMax<axis=1,keepdims=0>(q) t = Constant<value_strings=["a","b"]>() l = Gather(t, k)
        p = ai.onnx.ml.ZipMap<classlabels_strings=["a","b"]>(q) }""",
        "classification",
        "p",
        ["a", "b"],
        True,
    ),
    "scores and labels": (
        """g (float[N,2] x) => (int64[N] l, float[N,2] s) { s = Neg(x) k = ArgMax<axis=1,keepdims=0>(s)
        t = Constant<value_ints=[5,7]>() l = Gather(t, k) }""",
        "classification",
        "s",
        [5, 7],
        False,
    ),
    "labels": (
        "g (float[N,2] x) => (int64[N] l) { l = ArgMax<axis=1,keepdims=0>(x) }",
        "classification",
        None,
        None,
        False,
    ),
}


def write(folder: Path, text: str) -> Model:
    path = folder / "m.onnx"
    path.write_bytes(onnx.parser.parse_model(f"{HEAD} {text}").SerializeToString())
    return Model(path)


@pytest.mark.parametrize("name", MODELS)
def test_kinds(name: str, tmp_path: Path) -> None:
    text, task, output, classes, probabilities = MODELS[name]
    found = write(tmp_path, text)
    assert found.task[0] == task
    assert found.choose_task("regression")[0] == "regression"
    assert found.score_output == output
    assert found.classes == classes
    assert (found.decision.link is None) == probabilities


@pytest.mark.parametrize(
    ("dims", "width"),
    [("N,3", 3), ("N", 1), ("3", 1), ("N,M", None), ("N,2,3", 6), ("N,?,3", None), ("N,1", 1)],
)
def test_widths(dims: str, width: int | None, tmp_path: Path) -> None:
    found = write(tmp_path, f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Neg(x) }}")
    assert found.inputs[0].width == width
    assert found.inputs[0].dtype == np.float32


def test_wrong_number_of_columns(tmp_path: Path) -> None:
    found = write(tmp_path, MODELS["softmax"][0])
    found.check_widths({"x": 3}, "d.csv", {"x": ["a", "b", "c"]})
    with pytest.raises(
        InvalidDataError, match=r"takes 3 columns, and d.csv has 2 for it: 'a', 'b'.*--columns"
    ):
        found.check_widths({"x": 2}, "d.csv", {"x": ["a", "b"]})


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08"])
def test_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"bad\.onnx"):
        Model(path)


def test_initializers_are_no_inputs(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        f"{HEAD} g (float[N,2] x, float[2] w) => (float[N,2] y) <float[2] w = {{1,2}}> {{ y = Mul(x, w) }}"
    )
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert [spec.name for spec in Model(tmp_path / "m.onnx").inputs] == ["x"]

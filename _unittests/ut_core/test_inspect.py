"""``python -m onnxcustom inspect``: what it says is what happens, and its exit code says it too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper

from onnxcustom import gradient_graph, weights
from onnxcustom.__main__ import main
from onnxcustom.exceptions import DifferentiationError
from onnxcustom.gradient import ENGINES, gradient_report
from onnxcustom.graph import layers
from onnxcustom.inspect import describe

HEAD = '<ir_version: 8, opset_import: ["": 18, "my.domain": 1, "ai.onnx.ml": 3]>\n'
MODELS = {
    "mlp": """g (float[N,2] x) => (float[N,1] y) <float[2,2] w1 = {1, 2, 3, 4}, float[2] b1 = {5, 6},
        float[2,1] w2 = {7, 8}> { a = MatMul(x, w1) b = Add(a, b1) c = Relu(b) y = MatMul(c, w2) }""",
    "function": """g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> {
        z = Mul(x, w) y = MeanVarianceNormalization <axes = [1]> (z) }""",
    "branches": """g (float[N] x, bool flag) => (float[N] y) <float[2] v = {1, 2}> {
        z = Mul(x, v)
        y = If (flag) <then_branch = t () => (float[N] a) { a = Tanh(z) },
                       else_branch = e () => (float[N] b) { b = Exp(z) }> }""",
    "classifier": """g (float[N,2] x) => (int64[N] k, seq(map(int64, float)) p)
        <float[2,3] w = {1, 2, 3, 4, 5, 6}> { z = MatMul(x, w)  k = ArgMax <axis = 1, keepdims = 0> (z)
        q = Softmax(z)  p = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2]> (q) }""",
}
UNTRAINABLE = {
    "unknown": (
        """g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}, float[2] b = {3, 4}> {
        z = Mul(x, w)  m = my.domain.Magic(z)  y = Add(m, b) }""",
        ["my.domain.Magic", "1 of 2 weights cannot be trained", "onnxcustom.gradient.rule"],
    ),
    "stopped": (
        """g (float[N,2] x) => (int64[N,1] k) <float[2,3] w = {1, 2, 3, 4, 5, 6}> {
        z = MatMul(x, w)  k = ArgMin <axis = 1> (z) }""",
        ["1 of 1 weight cannot be trained", "no floating-point output"],
    ),
    "no weight": ("g (float[N] x) => (float[N] y) { y = Tanh(x) }", ["no weight"]),
}


def write(folder: Path, text: str) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(onnx.parser.parse_model(HEAD + text).SerializeToString())
    return path


def inspect(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("name", MODELS)
def test_trainable(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, MODELS[name])
    result = inspect(path)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("model.onnx\n")
    assert result.output.endswith("Every weight can be trained.\n")
    assert "Refused" not in result.output
    found = weights(path)
    levels = {w: str(layer.level) for layer in layers(path) for w in layer.weights}
    for weight, array in found.items():
        (line,) = [s for s in result.output.splitlines() if s.split()[:1] == [weight]]
        shape = "x".join(map(str, array.shape))
        assert line.split() == [weight, shape, str(array.dtype), str(array.size), levels[weight], "trained"]
    total = sum(a.size for a in found.values())
    assert f"{len(found)} weight{'s' * (len(found) > 1)}, {total} numbers" in result.output


def test_operators(tmp_path: Path) -> None:
    lines = [line.split() for line in inspect(write(tmp_path, MODELS["mlp"])).output.splitlines()]
    assert ["MatMul", "18", "2", "rule"] in lines
    assert ["Relu", "18", "1", "rule"] in lines
    lines = [line.split() for line in inspect(write(tmp_path, MODELS["classifier"])).output.splitlines()]
    assert "ai.onnx.ml.ZipMap 3 1 none comes here".split() in lines


def test_engine(tmp_path: Path) -> None:
    path = write(tmp_path, MODELS["mlp"])
    assert "Engine 'onnx': the first choice" in inspect(path).output
    assert "Engine 'onnx': as asked for" in inspect(path, "--engine", "onnx").output
    result = inspect(write(tmp_path, MODELS["branches"]), "--engine", "ort")
    assert result.exit_code == 1
    assert "Refused\n  If ('" in result.output


@pytest.mark.ort
def test_engine_ort(tmp_path: Path) -> None:
    result = inspect(write(tmp_path, MODELS["mlp"]), "--engine", "ort")
    assert result.exit_code == 0
    assert "Engine 'ort': as asked for" in result.output


def test_engine_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(ENGINES["ort"]), "unavailable", lambda self: "not on this machine")
    result = inspect(write(tmp_path, MODELS["mlp"]), "--engine", "ort")
    assert result.exit_code == 1
    assert "Engine 'ort': not available: not on this machine" in result.output


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_not_trainable(tmp_path: Path, name: str) -> None:
    text, words = UNTRAINABLE[name]
    path = write(tmp_path, text)
    result = inspect(path)
    assert result.exit_code == 1, result.output
    joined = " ".join(result.output.split())
    for word in words:
        assert word in joined
    if name != "no weight":
        with pytest.raises(DifferentiationError):
            gradient_graph(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no model at all", "not an ONNX model"),
        (b"", "model.onnx"),
        (onnx.parser.parse_model(HEAD + MODELS["mlp"]).SerializeToString()[:-20], "model.onnx"),
    ],
    ids=["text", "empty", "truncated"],
)
def test_bad_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    result = inspect(path)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
    assert words in result.output
    assert "Traceback" not in result.output


def test_bad_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, MODELS["mlp"])
    for arguments, words in [
        ((tmp_path / "missing.onnx",), "does not exist"),
        ((tmp_path,), "is a directory"),
        ((path, "--engine", "jax"), "'jax' is not one of 'auto', 'onnx', 'ort'"),
        ((), "Missing argument"),
    ]:
        result = inspect(*arguments)
        assert result.exit_code == 2
        assert words in result.output


def test_engines_are_those_there_are() -> None:
    (option,) = [p for p in main.commands["inspect"].params if p.name == "engine"]
    assert list(option.type.choices) == ["auto", *ENGINES]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_width(width: int) -> None:
    """Long names are shortened in the middle, long reasons wrapped."""
    names = [f"a/rather/deep/path/of/modules/that/ends/in/a/number/{i:04}/weight" for i in range(2)]
    nodes = [
        helper.make_node("Mul", ["x", names[0]], ["z"], name="first"),
        helper.make_node("Magic", ["z"], ["m"], name="m" * 30, domain="a.domain.of.some.length"),
        helper.make_node("Mul", ["m", names[1]], ["y"], name="last"),
    ]
    tensors = [numpy_helper.from_array(np.ones((2, 3), np.float32), name) for name in names]
    ends = [helper.make_tensor_value_info(name, 1, ["N", 2, 3]) for name in "xy"]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("a.domain.of.some.length", 1)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    text = describe(gradient_report(helper.make_model(graph, opset_imports=opsets, ir_version=8)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "number/0000/weight" in text if width == 120 else "…" in text
    assert "0001/weight" in text


LOSSES = {
    "probabilities": ("p = Softmax(z)", "p: softmax_crossentropy on logits 'z' (before Softmax)"),
    "sigmoid": ("p = Sigmoid(z)", "p: binary_crossentropy on logits 'z' (before Sigmoid)"),
    "scores": ("p = Tanh(z)", "p: squared_error on 'p'"),
    "logarithms": ("p = LogSoftmax(z)", "p: softmax_crossentropy on 'p'"),
    "moved": (
        "s = Softmax(z)  p = Transpose(s)",
        "p: no loss on scores, since it comes from node 'Softmax' (Softmax) and is then changed by node",
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_which_tensor_a_loss_is_taken_on(tmp_path: Path, name: str) -> None:
    end, words = LOSSES[name]
    text = "g (float[N,2] x) => (float[A,B] p) <float[2,3] w = {1, 2, 3, 4, 5, 6}> { z = MatMul(x, w) END }"
    assert words in " ".join(inspect(write(tmp_path, text.replace("END", end))).output.split())


def test_rows(tmp_path: Path) -> None:
    result = inspect(
        write(
            tmp_path,
            """g (float[N,T,2] x, float[2,N,2] h, float r) => (float[T,N,2] y, float s)
            <float[2] w = {1, 2}> { i = Constant <value = int64 {0}> ()
            k = Gather <axis = 0> (h, i)  j = Constant <value = int64[1] {1}> ()
            u = Unsqueeze (k, j)  a = Add (x, u)  b = Mul (a, w)  c = Mul (b, r)
            y = Transpose <perm = [1, 0, 2]> (c)  s = ReduceSum <keepdims = 0> (b) }""",
        )
    )
    text = " ".join(result.output.split())
    assert "Rows of a batch x: axis 0 (N) h: axis 1 (N) r: none, it is given once a batch as it is" in text
    assert "y: axis 1 (N) s: none, it is one row for the whole batch" in text
    assert "Warning" not in text


def test_rows_in_doubt(tmp_path: Path) -> None:
    result = inspect(
        write(
            tmp_path,
            """g (float[T,N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> {
            i = Constant <value = int64[1] {0}> ()  a = ReduceSum <keepdims = 0> (x, i)
            y = MatMul (a, w) }""",
        )
    )
    text = " ".join(result.output.split())
    assert result.exit_code == 0
    assert "x: axis 0 (T) y: none, it is one row for the whole batch Warning: The rows of a batch" in text
    assert "say --batch-axis x=1;" in text

# ruff: noqa: E501 - a node of ONNX text stays on its line
"""What reports say beside the weights: what was left out and why, who reads one, what is tied by chance."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

import onnxcustom
from onnxcustom import gradient_report
from onnxcustom.exceptions import (
    GradientNotImplementedError,
    NonDifferentiableError,
    NoTrainableWeightError,
    UnknownNameError,
)
from onnxcustom.inspect import describe

NORM = """net (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1},
  float[4] mean = {0, 1, 2, 3}, float[4] var = {1, 1, 2, 1}, float[4] power = {1, 2, 1, 2}> {
    a = MatMul(x, w)  n = BatchNormalization(a, one, zero, mean, var)
    b = MatMul(n, w)  o = BatchNormalization(b, one, zero, mean, var)
    p = Pow(o, power)  y = Mul(p, hole) }"""


def made(producer: str, one: float = 1.0) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {NORM}')
    for name, array in {
        "one": np.full(4, one),
        "zero": np.zeros(4),
        "hole": np.array([1, 1, np.nan, 1]),
    }.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    model.producer_name = producer
    return model


def test_left_out_and_readers() -> None:
    report = gradient_report(made("somebody"))
    assert {w.name: w.readers for w in report.weights} == {"w": 2, "one": 2, "zero": 2}
    assert {row.name: row.reason for row in report.left_out} == {
        "mean": "a mean of BatchNormalization",
        "var": "a variance of BatchNormalization",
        "power": "an exponent",
        "hole": "it holds NaN or infinity",
    }
    assert [(row.shape, row.dtype) for row in report.left_out] == [((4,), "float32")] * 4
    assert report.trainable
    for text in (str(report), describe(report)):
        assert "an exponent" in text
        assert "2 nodes read" in text or "read by 2 nodes" in text
        assert "arning" not in text


@pytest.mark.parametrize(
    ("producer", "one", "tied"),
    [("pytorch", 1.0, ["one", "zero"]), ("pytorch", 0.5, ["zero"]), ("tf2onnx", 1.0, [])],
)
def test_tied_by_the_exporter(producer: str, one: float, tied: list[str]) -> None:
    report = gradient_report(made(producer, one))
    assert len(report.warnings) == bool(tied)
    for text in (*report.warnings, *([str(report), describe(report)] if tied else [])):
        text = " ".join(text.split())
        assert all(word in text for word in ("tuning.untie", "dynamo=True, optimize=False"))
        start = text[text.index("several nodes read") :][:40]
        assert [name for name in ("one", "zero", "w") if repr(name) in start] == tied


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about itself
def test_the_exporters_way_out(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    nn = torch.nn
    module = nn.Sequential(
        nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 4), nn.LayerNorm(4)
    ).eval()
    found = {}
    for optimize in (True, False):
        path = tmp_path / f"{optimize}.onnx"
        torch.onnx.export(module, (torch.randn(3, 4),), path, dynamo=True, optimize=optimize, verbose=False)
        found[optimize] = gradient_report(path)
    assert len(found[False].weights) == len(list(module.parameters())) == 8
    assert not found[False].warnings
    assert len(found[True].weights) < 8
    assert found[True].warnings


def quantized(op_type: str) -> onnx.ModelProto:
    integers = numpy_helper.from_array(np.ones((4, 4), np.int8), "q")
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")
    if op_type == "DequantizeLinear":
        nodes = [
            helper.make_node(op_type, ["q", "s", "z"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ]
    else:
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["i", "si", "zi"]),
            helper.make_node(op_type, ["i", "q", "zi", "z"], ["o"]),
            helper.make_node("Cast", ["o"], ["f"], to=1),
            helper.make_node("Mul", ["f", "s"], ["y"]),
        ]
    ends = [helper.make_tensor_value_info(name, 1, ["N", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [integers, scale, zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("op_type", ["DequantizeLinear", "MatMulInteger"])
def test_quantized(op_type: str) -> None:
    model = quantized(op_type)
    # A string has no size in bytes to ask for, and is no weight: classes in words, say.
    model.graph.initializer.append(numpy_helper.from_array(np.array(["a", "b"], object), "words"))
    report = gradient_report(model)
    assert not report.trainable
    assert [(row.name, row.dtype) for row in report.left_out] == [("q", "int8")]
    assert "quantized" in report.why
    assert "covers" not in report.why
    assert "quantized" in describe(report)
    remedy = "onnxcustom.tuning.dequantize"
    assert remedy in report.why
    assert remedy in report.untrainable
    for train in (
        onnxcustom.TrainingStep,
        onnxcustom.OrtGradientForwardBackward,
        lambda m: onnxcustom.OnnxRegressor(m).fit(np.ones((2, 4), np.float32), np.ones((2, 4), np.float32)),
    ):
        with pytest.raises(NoTrainableWeightError, match=rf"\['q'\] hold integers\. {remedy}"):
            train(model)
    with pytest.raises(UnknownNameError, match=remedy):
        onnxcustom.TrainingStep(model, weights="q")


WITHIN = {
    "MatMulInteger": "i, si, zi = DynamicQuantizeLinear(a)  o = MatMulInteger(i, q, zi)  f = Cast<to = 1>(o)  y = Mul(f, si)",
    "QLinearMatMul": "i = QuantizeLinear(a, s, z)  o = QLinearMatMul(i, s, z, q, s, z, s, z)  y = DequantizeLinear(o, s, z)",
    "QLinearAdd": "i = QuantizeLinear(a, s, z)  o = com.microsoft.QLinearAdd(i, s, z, q, s, z, s, z)  y = DequantizeLinear(o, s, z)",
    "MatMulNBits": "y = com.microsoft.MatMulNBits<K = 4, N = 4, block_size = 16>(a, b, t)",
    "DynamicQuantizeMatMul": "y = com.microsoft.DynamicQuantizeMatMul(a, q, s, z)",
    "ReorderInput": "r = com.microsoft.nchwc.ReorderInput(a)  y = com.microsoft.nchwc.ReorderOutput(r)",
    "moved": "i = QuantizeLinear(a, s, z)  o = Transpose(i)  y = DequantizeLinear(o, s, z)",
}


@pytest.mark.parametrize("op_type", WITHIN)
def test_weights_in_front_of_integers(op_type: str) -> None:
    """No gradient of theirs comes through: refused, with what to do about it."""
    domains = '"": 18, "com.microsoft": 1, "com.microsoft.nchwc": 1'
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: [{domains}]>
        net (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}},
        float s = {{0.1}}, uint8 z = {{0}}, float[4] t = {{1, 1, 1, 1}}> {{ a = MatMul(x, w)  {WITHIN[op_type]} }}""")
    for name, size in (("q", (4, 4)), ("b", (4, 1, 8))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(size, np.uint8), name))
    report = gradient_report(model)
    assert not report.trainable
    assert "onnxcustom.tuning.dequantize" in report.why
    assert "covers the model" not in report.why
    with pytest.raises((NonDifferentiableError, GradientNotImplementedError), match=r"tuning\.dequantize"):
        onnxcustom.TrainingStep(model, weights="w")


def test_warned_of_integers_beside_weights() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        net (float[N, 2] x) => (float[N, 2] y) <float[2] b = {1, 2}, int8[2, 2] q = {1, 2, 3, 4}, float s = {0.1}> {
            w = DequantizeLinear(q, s)  a = MatMul(x, w)  y = Add(a, b) }""")
    report = gradient_report(model)
    assert report.trainable
    (text,) = report.warnings
    assert "'q'" in text
    assert "onnxcustom.tuning.dequantize" in text


def test_held_weights_are_why() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 0, 0, 1}> { a = MatMul(x, w) i = Cast<to = 7>(a) y = Cast<to = 1>(i) }"
    report = gradient_report(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}'))
    assert not report.trainable
    assert "'w'" in report.why
    assert "covers" not in report.why

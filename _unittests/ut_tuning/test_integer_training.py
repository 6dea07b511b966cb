# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Quantized models train once they are models of floating-point weights, with the gradients of PyTorch's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))

from quantized_models import batch, original, quantized, run

import onnxcustom
from onnxcustom import TrainingStep
from onnxcustom.tuning import dequantize

STEPS = [
    pytest.param(kind, how, activations, marks=[] if (kind in often) else [pytest.mark.exhaustive])
    for activations, often in (("clip", ("cnn", "lstm", "transformer")), ("keep", ("cnn",)))
    for kind in ("mlp", "cnn", "lstm", "transformer")
    for how in ("dynamic", "QDQ", "QOperator")
]


@pytest.mark.parametrize(("kind", "how", "activations"), STEPS)
def test_ten_steps(kind: str, how: str, activations: str) -> None:
    options = {"weight_type": "QUInt8"} | ({} if how == "dynamic" else {"activation_type": "QUInt8"})
    model, feeds = quantized(kind, how, **options), batch(kind)
    target = run(original(kind), feeds)[0]
    target = target * 0.5 + np.random.default_rng(3).normal(size=target.shape).astype(np.float32) * 0.1
    step = TrainingStep(dequantize(model, activations=activations), optimizer="adam", learning_rate=0.01)
    losses = [step.run(feeds, target) for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]
    assert all(np.isfinite(w).all() for w in step.weights().values())


SCALES = {"x": (0.05, 120), "h": (0.04, 0), "y": (0.03, 128)}
PAIRS = """<ir_version: 8, opset_import: ["": 17]>
m (float[N, 4] x) => (float[N, 3] y) {
    xq = QuantizeLinear(x, x_scale, x_zero)  xd = DequantizeLinear(xq, x_scale, x_zero)
    w = DequantizeLinear<axis = 1>(w_quantized, w_scale, w_zero)
    h = MatMul(xd, w)
    hq = QuantizeLinear(h, h_scale, h_zero)  hd = DequantizeLinear(hq, h_scale, h_zero)
    v = DequantizeLinear<axis = 0>(v_quantized, v_scale, v_zero)
    z = MatMul(hd, v)
    yq = QuantizeLinear(z, y_scale, y_zero)  y = DequantizeLinear(yq, y_scale, y_zero) }"""


def pairs() -> onnx.ModelProto:
    """Two layers; the range of the first begins at 0, so that there is a Relu in it."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(PAIRS)
    arrays: dict[str, np.ndarray] = {}
    for name, (scale, zero) in SCALES.items():
        arrays |= {f"{name}_scale": np.float32(scale), f"{name}_zero": np.uint8(zero)}
    for name, shape, count in (("w", (4, 5), 5), ("v", (5, 3), 5)):
        arrays |= {f"{name}_quantized": rng.integers(-127, 128, shape).astype(np.int8)}
        arrays |= {
            f"{name}_scale": np.float32(rng.uniform(0.005, 0.02, count)),
            f"{name}_zero": np.zeros(count, np.int8),
        }
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


@pytest.mark.oracle
@pytest.mark.parametrize("activations", ["keep", "clip"])
def test_gradients_of_pytorch(activations: str) -> None:
    """Of fake quantization; without the rounding they are those of the clipped model."""
    torch = pytest.importorskip("torch")
    model = dequantize(pairs(), activations=activations)
    weights = onnxcustom.weights(model)
    assert list(weights) == ["w", "v"]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(16, 4)).astype(np.float32) * 3
    target = rng.normal(size=(16, 3)).astype(np.float32)

    def fake(value, name):
        scale, zero = SCALES[name]
        if activations == "keep":
            return torch.fake_quantize_per_tensor_affine(value, scale, zero, 0, 255)
        return value.clamp(float(np.float32(scale)) * -zero, float(np.float32(scale)) * (255 - zero))

    parameters = {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.01)
    step = TrainingStep(model, optimizer="sgd", learning_rate=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        h = fake(fake(torch.tensor(x), "x") @ parameters["w"], "h")
        y = fake(h @ parameters["v"], "y")
        loss = 0.5 * ((y - torch.tensor(target)) ** 2).sum() / len(x)
        loss.backward()
        optimizer.step()
        assert step.run(x, target) == pytest.approx(loss.item(), rel=2e-3)
    for name, found in step.weights().items():
        np.testing.assert_allclose(found, parameters[name].detach().numpy(), rtol=1e-3, atol=1e-3)


def test_exported_from_pytorch() -> None:
    """Its exporter bounds the integers of 7 bits (quant_max=127) with a Clip of integers."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N, 2] x) => (float[N, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, float s = {0.5}, uint8 z = {10}, uint8 low = {0}, uint8 high = {127}> {
            h = MatMul(x, w)  q = QuantizeLinear(h, s, z)  c = Clip(q, low, high)  y = DequantizeLinear(c, s, z) }""")
    floats = dequantize(model)
    assert {n.op_type for n in floats.graph.node} == {"MatMul", "Clip"}
    x = np.float32([[1, 2], [30, -30], [-5, 0.1]])
    assert np.abs(run(floats, {"x": x})[0] - run(model, {"x": x})[0]).max() <= 0.25
    assert onnxcustom.gradient_report(floats).trainable


WRITTEN = {
    "cast, mul": "a = Cast<to = 1>(q)  w = Mul(a, s)",
    "cast, sub, mul": "a = Cast<to = 1>(q)  b = Sub(a, z)  w = Mul(s, b)",
    "zero of integers": "a = Cast<to = 1>(q)  c = Cast<to = 1>(p)  b = Sub(a, c)  w = Mul(b, s)",
}


@pytest.mark.parametrize("how", WRITTEN)
def test_written_out(how: str) -> None:
    """What other quantizers write for DequantizeLinear."""
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        m (float[N, 2] x) => (float[N, 2] y) <uint8[2, 2] q = {{1, 2, 3, 4}}, float[2] s = {{0.5, 0.25}}, float z = {{3}}, uint8 p = {{3}}> {{
            {WRITTEN[how]}  y = MatMul(x, w) }}""")
    floats = dequantize(model)
    expected = (np.float32([[1, 2], [3, 4]]) - (0 if how == "cast, mul" else 3)) * np.float32([0.5, 0.25])
    np.testing.assert_array_equal(onnxcustom.weights(floats)["q"], expected)
    assert [n.op_type for n in floats.graph.node] == ["MatMul"]


def test_in_branches() -> None:
    """Pairs and weights in the branches of If; what both read is one weight."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N, 2] x, bool c) => (float[N, 2] y)
        <int8[2, 2] w_quantized = {1, 2, 3, 4}, float s = {0.5}, int8 z = {0}, float t = {0.01}> {
            q = QuantizeLinear(x, t, z)
            y = If (c) <
                then_branch = yes () => (float[N, 2] u) {
                    a = DequantizeLinear(q, t, z)  w = DequantizeLinear(w_quantized, s, z)  u = MatMul(a, w) },
                else_branch = no () => (float[N, 2] v) {
                    b = DequantizeLinear(w_quantized, s, z)  v = MatMul(x, b) }
            > }""")
    floats = dequantize(model)
    assert list(onnxcustom.weights(floats)) == ["w"]
    onnx.checker.check_model(floats)
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    for flag in (True, False):
        feeds = {"x": x, "c": np.array(flag)}
        rounding = 0.005 * np.abs(onnxcustom.weights(floats)["w"]).sum(0) * 1.01
        assert (np.abs(run(floats, feeds)[0] - run(model, feeds)[0]) <= rounding + 1e-6).all()
    assert onnxcustom.gradient_report(floats).trainable


def test_contributed_pairs() -> None:
    """QuantizeLinear of onnxruntime's own domain, of 16 bits where ONNX has none yet."""
    for kind in ("uint16", "int8"):
        model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
            m (float[N, 2] x) => (float[N, 2] y) <{kind}[2, 2] w_quantized = {{1, 2, 3, 4}}, float s = {{0.5}}, {kind} z = {{2}}, float t = {{0.01}}> {{
                q = com.microsoft.QuantizeLinear(x, t, z)  a = com.microsoft.DequantizeLinear(q, t, z)
                w = com.microsoft.DequantizeLinear(w_quantized, s, z)  y = MatMul(a, w) }}""")
        x = np.random.default_rng(0).uniform(0, 1, (5, 2)).astype(np.float32)
        for how in ("clip", "keep", "remove"):
            floats = dequantize(model, activations=how)
            assert not any(n.domain for n in floats.graph.node)
            assert onnxcustom.gradient_report(floats).trainable
            difference = np.abs(run(floats, {"x": x})[0] - run(model, {"x": x})[0]).max()
            assert difference <= (0 if (how, kind) == ("keep", "int8") else 0.011)

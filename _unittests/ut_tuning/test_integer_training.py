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
from onnxcustom import OnnxRegressor, TrainingStep
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


PRODUCTS = {
    "one scale": "q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, z, p)  c = Cast<to = 1>(i)  k = Mul(s, t)  y = Mul(c, k)",
    "other order": "q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, z, p)  c = Cast<to = 1>(i)  k = Mul(t, s)  y = Mul(k, c)",
    "columns": "q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, z, p)  c = Cast<to = 1>(i)  k = Mul(s, row)  y = Mul(c, k)",
    "later": "q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, z, p)  c = Cast<to = 1>(i)  r = Relu(c)  k = Mul(s, t)  y = Mul(r, k)",
    "constant": "q = QuantizeLinear(x, t, p)  i = MatMulInteger(q, w, p, p)  c = Cast<to = 1>(i)  y = Mul(c, row)",
    "no zero point": "q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, z)  c = Cast<to = 1>(i)  k = Mul(s, t)  y = Mul(c, k)",
    "on the left": "h = Transpose(x)  q, s, z = DynamicQuantizeLinear(h)  g = Transpose(w)  i = MatMulInteger(left, q, p, z)  c = Cast<to = 1>(i)  k = Mul(s, t)  f = Mul(c, k)  y = Transpose(f)",
    "moved": "q, s, z = DynamicQuantizeLinear(x)  g = Reshape(q, shape)  i = MatMulInteger(g, w, z, p)  c = Cast<to = 1>(i)  k = Mul(s, t)  y = Mul(c, k)",
    "of both": "q, s, z = DynamicQuantizeLinear(x)  m = MatMul(x, v)  a, b, d = DynamicQuantizeLinear(m)  g = Transpose(a)  i = MatMulInteger(q, g, z, d)  c = Cast<to = 1>(i)  k = Mul(s, b)  n = Mul(c, k)  y = MatMul(n, x)",
}


@pytest.mark.parametrize("way", PRODUCTS)
def test_products(way: str) -> None:
    """Ways in which products of integers are made numbers of."""
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        m (float[N, 3] x) => (float[N, M] y)
        <uint8[3, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}, uint8[3, 3] left = {{9, 8, 7, 6, 5, 4, 3, 2, 1}}, uint8 p = {{4}}, float t = {{0.02}},
         float[3] row = {{0.02, 0.01, 0.04}}, int64[2] shape = {{-1, 3}}, float[3, 3] v = {{1, 0, 0, 0, 1, 0, 0, 0, 1}}> {{ {PRODUCTS[way]} }}""")
    x = np.random.default_rng(0).uniform(0, 2, size=(4, 3)).astype(np.float32)
    expected = run(model, {"x": x})[0]
    for activations, near in (("clip", 0.03), ("keep", 1e-5)):
        floats = dequantize(model, activations=activations)
        assert not any("Integer" in n.op_type for n in floats.graph.node)
        np.testing.assert_allclose(run(floats, {"x": x})[0], expected, atol=near * np.abs(expected).max())
        assert onnxcustom.gradient_report(floats).trainable
        assert onnxcustom.weights(floats)


@pytest.mark.parametrize("kind", ["products", "cnn", "transformer"])
@pytest.mark.parametrize("how", ["dynamic", "QOperator"])
def test_some_of_them(kind: str, how: str) -> None:
    """The weights that are named train; what lies before them and the other weights stay integers."""
    options = {"weight_type": "QUInt8"} | ({} if how == "dynamic" else {"activation_type": "QUInt8"})
    model, feeds = quantized(kind, how, **options), batch(kind)
    floats = dequantize(model, "w1_quantized", activations="keep")
    assert "w1" in onnxcustom.weights(floats)
    assert "w2" not in onnxcustom.weights(floats)
    integers = run(model, feeds)[0]
    np.testing.assert_allclose(run(floats, feeds)[0], integers, atol=0.02 * np.abs(integers).max())
    step = TrainingStep(floats, weights=["w1"], optimizer="adam", learning_rate=0.003)
    losses = [step.run(feeds, integers * 0.5) for _ in range(10)]
    assert losses[-1] < losses[0]


def test_of_float16() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float16[N, 2] x) => (float16[N, 2] y) <uint8[2, 2] w = {1, 2, 3, 4}, uint8 p = {4}, float t = {0.02}> {
            f = Cast<to = 1>(x)  q, s, z = DynamicQuantizeLinear(f)  i = MatMulInteger(q, w, z, p)
            c = Cast<to = 10>(i)  k = Mul(s, t)  h = Cast<to = 10>(k)  y = Mul(c, h) }""")
    floats = dequantize(model)
    assert onnxcustom.weights(floats)["w"].dtype == np.float16
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float16)
    np.testing.assert_allclose(run(floats, {"x": x})[0], run(model, {"x": x})[0], atol=2e-3)


def test_of_an_early_opset() -> None:
    """QLinearConv is of opset 10, where Clip has attributes."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model("""<ir_version: 5, opset_import: ["": 10]>
        m (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) <float s = {0.1}, uint8 z = {128}, uint8 z0 = {0}, float t = {0.05}, float ws = {0.01}, uint8 wz = {120}> {
            q = QuantizeLinear(x, s, z)  c = QLinearConv<pads = [1, 1, 1, 1]>(q, s, z, w_quantized, ws, wz, t, z0, b_quantized)
            y = DequantizeLinear(c, t, z0) }""")
    model.graph.initializer.append(
        numpy_helper.from_array(rng.integers(0, 255, (2, 3, 3, 3)).astype(np.uint8), "w_quantized")
    )
    model.graph.initializer.append(numpy_helper.from_array(np.int32([300, -900]), "b_quantized"))
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    kept, floats = (dequantize(model, activations=how) for how in ("keep", "clip"))
    np.testing.assert_array_equal(
        onnxcustom.weights(floats)["b"], np.float32([300, -900]) * (np.float32(0.1) * np.float32(0.01))
    )
    np.testing.assert_allclose(run(kept, {"x": x})[0], run(model, {"x": x})[0], atol=0.051)
    rounding = 0.05 * np.abs(onnxcustom.weights(floats)["w"]).sum((1, 2, 3)).max() + 0.025
    assert np.abs(run(floats, {"x": x})[0] - run(model, {"x": x})[0]).max() <= rounding * 1.01
    step = TrainingStep(floats, optimizer="adam", learning_rate=0.01)
    losses = [step.run(x, np.ones((2, 2, 4, 4))) for _ in range(10)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("axis", [1, -2])
def test_ranges_by_channel(axis: int) -> None:
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        m (float[N, 2, 3] x) => (float[N, 2, 3] y) <float[2] s = {{0.01, 0.02}}, uint8[2] z = {{100, 0}}, float[3, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}> {{
            a = MatMul(x, w)  q = QuantizeLinear<axis = {axis}>(a, s, z)  y = DequantizeLinear<axis = {axis}>(q, s, z) }}""")
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    floats = dequantize(model)
    assert not any("uantizeLinear" in n.op_type for n in floats.graph.node)
    assert (
        np.abs(run(floats, {"x": x})[0] - run(model, {"x": x})[0]) <= np.float32([[0.0051], [0.0101]])
    ).all()
    assert onnxcustom.gradient_report(floats).trainable


def test_an_output_of_integers_stays() -> None:
    """What hands integers out goes on doing so, and what is handed out keeps its name."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N, 2] x) => (float[N, 2] a, uint8[N, 2] q, float[N, 2] y) <float s = {0.1}, uint8 z = {128}, int8[2, 2] w = {1, 2, 3, 4}> {
            q = QuantizeLinear(x, s, z)  a = DequantizeLinear(q, s, z)  d = DequantizeLinear(w, s)  y = MatMul(a, d) }""")
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    floats = dequantize(model)
    assert [o.name for o in floats.graph.output] == ["a", "q", "y"]
    found, expected = run(floats, {"x": x}), run(model, {"x": x})
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=0.051)


def test_quantized_sizes() -> None:
    """Sizes that are computed with quantized numbers are what they were: their rounding stays."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N, 2, 3] x) => (float[N, M] y) <int8[6, 2] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float s = {0.1}, uint8 k = {200}, float h = {0.009999},
        float t = {0.0235295}, uint8 z = {0}, float a = {0.05}, uint8 p = {128}, int64[1] last = {-1}, int64 one = {1}, int64 two = {2}> {
            shape = Shape(x)  i = Gather(shape, one)  j = Gather(shape, two)  f = Cast<to = 1>(j)  d = DequantizeLinear(k, h)
            g = Mul(f, d)  q = QuantizeLinear(g, t, z)  r = DequantizeLinear(q, t, z)  c = Cast<to = 7>(r)  e = Unsqueeze(c, zero)
            sizes = Concat<axis = 0>(last, e)  v = Reshape(x, sizes)  vq = QuantizeLinear(v, a, p)  vd = DequantizeLinear(vq, a, p)
            m = DequantizeLinear(w, s)  y = MatMul(vd, m) }""")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    expected = run(model, {"x": x})[0]
    assert expected.shape == (4, 2)
    for activations in ("clip", "remove"):
        floats = dequantize(model, activations=activations)
        assert list(onnxcustom.weights(floats)) == ["w"]
        assert [t.dims for t in floats.graph.initializer if t.name == "k"] == [[]]  # a number stays one
        np.testing.assert_allclose(run(floats, {"x": x})[0], expected, atol=0.2)


def test_a_weight_quantized_twice_stays_one() -> None:
    """Weights that an exporter has tied by Identity are quantized again where they are read again."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N, 2] x) => (float[N, 2] y) <int8[2] w_quantized = {50, 127}, float s = {0.01}, float t = {0.005}, uint8 z = {0}> {
            a = DequantizeLinear(w_quantized, s)  b = Identity(a)  n = LayerNormalization(x, a)
            q = QuantizeLinear(b, t, z)  c = DequantizeLinear(q, t, z)  y = LayerNormalization(n, c) }""")
    for activations in ("clip", "remove"):
        floats = dequantize(model, activations=activations)
        assert list(onnxcustom.weights(floats)) == ["w"]
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    np.testing.assert_allclose(run(floats, {"x": x})[0], run(model, {"x": x})[0], atol=0.01)


def test_what_little_is_trained_of_integers_is_said():
    """Scales and biases in floating point train; whoever did not name them is told what does not."""
    mixed = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 3] x) => (float[N, 2] y)
        <int8[3, 2] q = {1, 2, 3, 4, 5, 6}, float s = {0.1}, int8 z = {0}, float[2] b = {0, 0}> {
            w = DequantizeLinear(q, s, z)
            h = MatMul(x, w)
            y = Add(h, b)
        }""")
    X, y = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
    with pytest.warns(UserWarning, match=r"\['q'\] hold integers.*\['b'\] are trained.*tuning.dequantize"):
        OnnxRegressor(mixed, max_iter=1).fit(X, y)
    OnnxRegressor(mixed, weights_to_train="b", max_iter=1).fit(X, y)
    OnnxRegressor(dequantize(mixed), max_iter=1).fit(X, y)

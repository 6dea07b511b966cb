"""The layout of onnxruntime's optimizer, undone to the last bit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))

from quantized_models import optimized, run

import onnxcustom
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.runtime.layout import channel_block
from onnxcustom.tuning import dequantize, layouts

NCHWC = "com.microsoft.nchwc"
# Convolutions of few and of many channels, that are no multiples of anything; with an activation and a sum;
# depthwise, in groups; pools; concatenation; images twice as large.
IMAGES = """<ir_version: 8, opset_import: ["": 17]>
m (float[N, 3, 12, 12] x) => (float[N, 5] y, float[N, 20, 6, 6] e) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)  r = Relu(a)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
    d = Conv<pads = [1, 1, 1, 1], group = 20>(p, w2, b2)  s = Clip(d, low, high)  e = Add(s, p)
    f = Conv(e, w3, b3)  g = Conv(f, w4)  h = LeakyRelu<alpha = 0.1>(g)
    n = BatchNormalization(h, scale, shift, mean, variance)
    i = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(n)
    j = Conv(i, w5)  k = Conv(i, w6)  l = Concat<axis = 1>(j, k)
    u = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">
        (l, none, twice)
    v = Conv<group = 3, pads = [1, 1, 1, 1]>(u, w7)  t = Conv(v, w8)  q = Add(t, v)  o = HardSigmoid(q)
    z = GlobalAveragePool(o)  c = Flatten(z)  y = Gemm(c, w9) }"""
SIZES = {
    **{"w1": (20, 3, 3, 3), "b1": (20,), "w2": (20, 1, 3, 3), "b2": (20,), "w3": (13, 20, 1, 1), "b3": (13,)},
    **{"w4": (20, 13, 1, 1), "scale": (20,), "shift": (20,), "mean": (20,), "w5": (16, 20, 1, 1)},
    **{"w6": (32, 20, 1, 1), "w7": (48, 16, 3, 3), "w8": (48, 48, 1, 1), "w9": (48, 5)},
}


def images() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(IMAGES)
    arrays = {name: rng.normal(size=s) / np.prod(s[1:]) ** 0.5 for name, s in SIZES.items()}
    arrays |= {"variance": np.linspace(1, 2, 20), "low": np.float32(0), "high": np.float32(6)}
    arrays |= {"none": np.zeros(0), "twice": np.array([1, 1, 2, 2])}
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
    return model


def test_undone() -> None:
    model = images()
    laid_out = optimized(model)
    if channel_block() is not None:
        assert sum(n.domain == NCHWC for n in laid_out.graph.node) > 10
    plain = dequantize(laid_out)
    assert not any(n.domain == NCHWC for n in plain.graph.node)
    x = {"x": np.random.default_rng(1).normal(size=(3, 3, 12, 12)).astype(np.float32)}
    for expected, found in zip(run(model, x), run(plain, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    given = [w for name, w in onnxcustom.weights(model).items() if w.ndim == 4]
    found = [w for w in onnxcustom.weights(plain).values() if w.ndim == 4]
    assert [w.shape for w in found] == [w.shape for w in given]
    for one, other in zip(given, found, strict=True):
        np.testing.assert_array_equal(other, one)
    assert onnxcustom.gradient_report(plain).trainable


def blocked(w: np.ndarray, b: int, inside: bool) -> np.ndarray:
    """Weights in that layout, element by element."""
    o, i, *kernel = w.shape
    pixels = w.reshape(o, i, -1)
    up = -(-o // b) * b, (-(-i // b) * b if inside else i)
    padded = np.zeros((*up, pixels.shape[2]), np.float32)
    padded[:o, :i] = pixels
    flat = []
    for first in range(0, up[0], b):
        for part in range(0, up[1], b) if inside else [0]:
            for k in range(pixels.shape[2]):
                if inside:
                    flat += [padded[first + m, part + n, k] for n in range(b) for m in range(b)]
        if not inside:
            for n in range(i):
                for k in range(pixels.shape[2]):
                    flat += [padded[first + m, n, k] for m in range(b)]
    return np.array(flat, np.float32).reshape(*up, *kernel)


def by_hand(w1: np.ndarray, w2: np.ndarray, bias: np.ndarray, b: int) -> onnx.ModelProto:
    """Two convolutions in that layout, channels last outside."""
    padded = np.zeros(-(-len(bias) // b) * b, np.float32)
    padded[: len(bias)] = bias
    tensors = {"w1": blocked(w1, b, False), "w2": blocked(w2, b, True), "b": padded}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], domain=NCHWC),
        helper.make_node(
            "Conv", ["a", "w2", "b"], ["c"], domain=NCHWC, activation="LeakyRelu", activation_params=[0.1]
        ),
        helper.make_node("ReorderOutput", ["c"], ["y"], domain=NCHWC, channels=len(bias), channels_last=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", 1, ["N", None, None, len(bias)])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(NCHWC, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize("block", [8, 16])
def test_weights_of_other_machines(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    w1, w2, bias = (rng.normal(size=s).astype(np.float32) for s in ((21, 3, 3, 3), (10, 21, 1, 1), (10,)))
    model = by_hand(w1, w2, bias, block)
    for here in (block, None) if block == 16 else (8, 16):
        monkeypatch.setattr(layouts, "channel_block", lambda here=here: here)
        plain = dequantize(model)
        first, second, third = onnxcustom.weights(plain).values()
        np.testing.assert_array_equal(first, w1)
        np.testing.assert_array_equal(second, w2)
        np.testing.assert_array_equal(third, bias)
    if channel_block() == block:
        x = {"x": rng.normal(size=(2, 3, 4, 4)).astype(np.float32)}
        np.testing.assert_allclose(run(plain, x)[0], run(model, x)[0], rtol=1e-5, atol=1e-5)


def test_computed_weights_are_refused() -> None:
    model = by_hand(np.ones((8, 3, 1, 1)), np.ones((8, 8, 1, 1)), np.ones(8), 8)
    model.graph.node.insert(0, helper.make_node("Neg", ["w1"], ["n"]))
    model.graph.node[1].input[1] = "n"
    with pytest.raises(InvalidModelError, match="no constant"):
        dequantize(model)

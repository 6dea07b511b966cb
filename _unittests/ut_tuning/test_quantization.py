"""Training with rounding to integers: the formulas in NumPy, and the integers by a bare onnxruntime."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from onnxcustom import OnnxClassifier, TrainingStep
from onnxcustom.exceptions import InvalidDataError, InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.tuning import Quantization


def dense(opset: int = 17) -> onnx.ModelProto:
    """A product with a bias and a Tanh, and a product."""
    rng = np.random.default_rng(0)
    tensors = {"w1": rng.normal(size=(4, 6)), "b1": rng.normal(size=6), "w2": rng.normal(size=(3, 6))}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Tanh", ["b"], ["h"]),
        helper.make_node("Gemm", ["h", "w2"], ["y"], name="second", transB=1),
    ]
    return model_of(nodes, tensors, [4], [3], opset)


def model_of(
    nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], x: list[int], y: list[int], opset: int = 17
) -> onnx.ModelProto:
    """A model of one input and one output, in floats."""
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *x])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", *y])],
        [numpy_helper.from_array(np.asarray(v, dtype=np.float32), n) for n, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def network(opset: int = 17) -> onnx.ModelProto:
    """Convolutions with a normalization, pooling and a last layer."""
    rng = np.random.default_rng(1)
    tensors = {
        "k1": rng.normal(size=(4, 1, 3, 3)) * 0.4,
        "scale": rng.uniform(0.5, 1.5, 4),
        "shift": rng.normal(size=4) * 0.1,
        "mean": rng.normal(size=4) * 0.1,
        "var": rng.uniform(0.5, 2, 4),
        "k2": rng.normal(size=(6, 4, 3, 3)) * 0.2,
        "b2": rng.normal(size=6) * 0.1,
        "w": rng.normal(size=(24, 3)) * 0.3,
        "b": rng.normal(size=3) * 0.1,
    }
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "k2", "b2"], ["d"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], name="last"),
    ]
    return model_of(nodes, tensors, [1, 4, 4], [3], opset)


def tensors_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Initializers of a model."""
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def run(model: onnx.ModelProto, x: np.ndarray, optimize: bool = False) -> np.ndarray:
    """The first output by a bare onnxruntime."""
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


X = np.random.default_rng(2).normal(size=(40, 4)).astype(np.float32)
Y = np.random.default_rng(3).normal(size=(40, 3)).astype(np.float32)
IMAGES = np.random.default_rng(4).normal(size=(40, 1, 4, 4)).astype(np.float32)
LABELS = np.arange(40) % 3


def rounded(w: np.ndarray, axis: int | None, high: int) -> np.ndarray:
    """A weight rounded to symmetric steps, the largest number being the highest of them."""
    others = tuple(a for a in range(w.ndim) if a != axis)
    scale = np.abs(w).max(axis=others, keepdims=True) / np.float32(high)
    return np.clip(np.rint(w / scale), -high, high) * scale


def grid(a: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A tensor rounded to unsigned steps over its own range, and where it lies inside."""
    low, high = min(a.min(), 0.0), max(a.max(), 0.0)
    scale = np.float32((high - low) / (2**bits - 1))
    zero = np.rint(-low / scale)
    steps = np.rint(a / scale) + zero
    return (np.clip(steps, 0, 2**bits - 1) - zero) * scale, (steps >= 0) & (steps <= 2**bits - 1)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weights_are_rounded_straight_through(bits: int, per_channel: bool) -> None:
    """Value and gradient of weights only: those of the rounded weights, as if they were the weights."""
    made = Quantization(f"int{bits}", activations=None, per_channel=per_channel)
    step = TrainingStep(dense(), "squared_error", "sgd", learning_rate=1.0, quantize=made)
    t, high = tensors_of(dense()), 2 ** (bits - 1) - 1
    w1 = rounded(t["w1"], 1 if per_channel else None, high)
    w2 = rounded(t["w2"], 0 if per_channel else None, high)
    h = np.tanh(X @ w1 + t["b1"])
    d = (h @ w2.T - Y) / len(X)
    inner = (d @ w2) * (1 - h**2)
    assert step.run(X, Y) == pytest.approx(float(np.mean(np.sum((h @ w2.T - Y) ** 2, axis=1)) / 2), rel=1e-5)
    np.testing.assert_allclose(t["w2"] - step.weights()["w2"], d.T @ h, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(t["w1"] - step.weights()["w1"], X.T @ inner, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_computed_is_rounded_and_clipped(bits: int) -> None:
    """Steps over the range that was measured; the gradient is 0 beyond it."""
    made = Quantization("int8", activations=f"uint{bits}", rows=20)
    step = TrainingStep(dense(), "squared_error", "sgd", learning_rate=1.0, quantize=made)
    step.calibrate(X[:20])
    t = tensors_of(dense())
    w1, w2 = rounded(t["w1"], 1, 127), rounded(t["w2"], 0, 127)
    known = {}
    for name, array in {
        "x": X[:20],
        "a": X[:20] @ t["w1"],
        "h": np.tanh(X[:20] @ t["w1"] + t["b1"]),
    }.items():
        low, high = min(array.min(), 0.0), max(array.max(), 0.0)
        scale = np.float32((high - low) / (2**bits - 1))
        known[name] = scale, np.rint(-low / scale)

    def fake(name: str, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale, zero = known[name]
        steps = np.rint(array / scale) + zero
        inside = (steps >= 0) & (steps <= 2**bits - 1)
        return (np.clip(steps, 0, 2**bits - 1) - zero) * scale, inside

    x, _ = fake("x", X)
    a, kept = fake("a", x @ w1)
    tanh = np.tanh(a + t["b1"])
    h, within = fake("h", tanh)
    d = (h @ w2.T - Y) / len(X)
    inner = (d @ w2) * within * (1 - tanh**2) * kept
    assert not kept.all()
    assert step.run(X, Y) == pytest.approx(float(np.mean(np.sum((h @ w2.T - Y) ** 2, axis=1)) / 2), rel=1e-4)
    np.testing.assert_allclose(t["w2"] - step.weights()["w2"], d.T @ h, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(t["w1"] - step.weights()["w1"], x.T @ inner, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 3])
def test_learned_scales_have_the_gradient_of_lsq(bits: int) -> None:
    """ds = round(w/s) - w/s within, the lowest and highest step beyond, times 1/sqrt(count high)."""
    made = Quantization(f"int{bits}", activations=None, learned_scales=True, exclude="first")
    step = TrainingStep(dense(), "squared_error", "sgd", learning_rate=1.0, quantize=made)
    t, high = tensors_of(dense()), 2 ** (bits - 1) - 1
    low = -128 if bits == 8 else -high
    (name,) = (n for n in step.weights() if n.endswith("_scale"))
    factor = np.sqrt(1 / np.sqrt(6 * high))
    scale = (step.weights()[name] * factor)[:, None]
    np.testing.assert_allclose(scale[:, 0], 2 * np.abs(t["w2"]).mean(axis=1) / np.sqrt(high), rtol=1e-5)
    steps = t["w2"] / scale
    w2 = np.clip(np.rint(steps), low, high) * scale
    h = np.tanh(X @ t["w1"] + t["b1"])
    d = (h @ w2.T - Y) / len(X)
    slope = d.T @ h
    own = np.where(steps < low, low, np.where(steps > high, high, np.rint(steps) - steps))
    before = step.weights()[name]
    step.run(X, Y)
    moved = (before - step.weights()[name]) * factor
    np.testing.assert_allclose(moved, factor**2 * (slope * own).sum(axis=1), rtol=2e-3, atol=1e-5)


SETTINGS = {
    "int8": Quantization(),
    "symmetric": Quantization("int8", "int8", calibration="mse"),
    "few": Quantization("int3", "uint4"),
    "learned": Quantization("int4", "uint8", learned_scales=True),
    "tensor": Quantization(per_channel=False, calibration="percentile", reduce_range=True),
}


@pytest.mark.filterwarnings("ignore:Weights of four bits or fewer are handed out as bytes")
@pytest.mark.parametrize("name", SETTINGS)
def test_the_integers_compute_what_was_trained(name: str) -> None:
    options = SETTINGS[name]
    step = TrainingStep(network(), "cross_entropy", "adam", learning_rate=0.02, quantize=options)
    losses = [step.run(IMAGES, LABELS) for _ in range(10)]
    assert losses[-1] < losses[0]
    model = step.trained_model()
    onnx.checker.check_model(model)
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}
    stored = {n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    held = {i.name: i for i in model.graph.initializer}
    integers = (onnx.TensorProto.INT8, onnx.TensorProto.INT4)
    assert sum(held[s].data_type in integers for s in stored if s in held) == 3
    expected = step.predict(IMAGES)["y"]
    spread = np.ptp(expected)
    apart = np.abs(run(model, IMAGES) - expected)
    # A step of an inner tensor may fall the other way where biases are integers, too.
    assert apart.max() < 0.05 * spread
    assert np.median(apart) < 0.01 * spread
    if options.reduce_range:  # products of bytes saturate on some processors otherwise
        assert np.abs(run(model, IMAGES, optimize=True) - expected).max() < 0.05 * spread


@pytest.mark.filterwarnings("ignore:Weights of four bits or fewer are handed out as bytes")
@pytest.mark.parametrize("weights", ["int8", "int5", "int2"])
def test_weights_alone_are_the_same_numbers(weights: str) -> None:
    options = Quantization(weights, activations=None)
    step = TrainingStep(network(), "cross_entropy", "adam", learning_rate=0.02, quantize=options)
    for _ in range(3):
        step.run(IMAGES, LABELS)
    np.testing.assert_allclose(
        run(step.trained_model(), IMAGES), step.predict(IMAGES)["y"], rtol=0, atol=1e-6
    )


def test_state_goes_on_with_the_same_bits() -> None:
    step = TrainingStep(network(), "cross_entropy", "adam", quantize="int8:learned_scales=true")
    step.run(IMAGES, LABELS)
    other = pickle.loads(pickle.dumps(step))
    third = TrainingStep(network(), "cross_entropy", "adam", quantize="int8:learned_scales=true")
    third.calibrate(IMAGES[::-1])
    third.load_state_dict(*step.state_dict())
    expected = [step.run(IMAGES, LABELS) for _ in range(3)]
    assert [other.run(IMAGES, LABELS) for _ in range(3)] == expected
    assert [third.run(IMAGES, LABELS) for _ in range(3)] == expected


def test_estimators_quantize() -> None:
    clf = OnnxClassifier(
        network(), quantize="int8", optimizer="adam", max_iter=2, random_state=0, loss="cross_entropy"
    )
    clf.fit(IMAGES, LABELS)
    assert np.array_equal(run(clf.get_trained_onnx(), IMAGES).argmax(axis=1), clf.predict(IMAGES))


def test_exclusions() -> None:
    step = TrainingStep(network(), "cross_entropy", quantize=Quantization(exclude=["conv1", "last:1"]))
    step.calibrate(IMAGES)
    held = {i.name: i for i in step.trained_model().graph.initializer}
    integers = [
        n for n, i in held.items() if i.data_type == onnx.TensorProto.INT8 and n.endswith("quantized")
    ]
    assert integers == ["k2_quantized"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="weights of Quantization must be 'int8' to 'int2'"):
        Quantization("uint8")
    with pytest.raises(InvalidParameterError, match="quantize must be None"):
        TrainingStep(dense(), quantize="float8")
    with pytest.raises(UnknownNameError, match=r"exclude names 'nothing'.*'w1'"):
        TrainingStep(dense(), quantize=Quantization(exclude="nothing"))
    with pytest.raises(UnknownNameError, match="no ranges to measure"):
        TrainingStep(dense()).calibrate(X)
    step = TrainingStep(dense(), quantize="int8")
    with pytest.raises(InvalidDataError, match="call calibrate"):
        step.trained_model()
    with pytest.raises(InvalidDataError, match="0 sample"):
        step.calibrate(X[:0])
    plain = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }""")
    with pytest.raises(InvalidModelError, match="no product to quantize"):
        TrainingStep(plain, quantize="int8")

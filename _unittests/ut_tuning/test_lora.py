"""Low-rank adapters: gradients by the chain rule in NumPy, training, the way back to the user's model."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from sklearn.base import clone

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep, weights
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.tuning import LoRA


def network(dtype: type = np.float32) -> onnx.ModelProto:
    """MatMul, Gemm by a matrix turned round, a product from the left; in floats a Conv of one element."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 10), "b1": (10,), "w2": (5, 10), "left": (4, 5), "k": (3, 4, 1)}
    tensors = {n: rng.normal(size=s).astype(dtype) for n, s in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Tanh", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w2"], ["d"], name="second", transB=1, alpha=0.5),
        helper.make_node("Unsqueeze", ["d", "axis"], ["e"]),
        helper.make_node("MatMul", ["left", "e"], ["f"], name="third"),
        helper.make_node("Conv", ["f", "k"], ["g"], name="fourth"),
        helper.make_node("Squeeze", ["g", "axis"], ["y"]),
    ]
    if dtype is np.float64:  # which onnxruntime has no Conv for
        del nodes[6], tensors["k"]
        nodes[6].input[0] = "f"
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, ["N", 6])],
        [helper.make_tensor_value_info("y", kind, ["N", None])],
        [numpy_helper.from_array(v, n) for n, v in tensors.items()]
        + [numpy_helper.from_array(np.array([2]), "axis")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rows(dtype: type = np.float32, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Features and expected values."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, 6)).astype(dtype), rng.normal(size=(n, 3)).astype(dtype)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    """The first output by a bare onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # of initializers that are inputs
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def product(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What an adapter adds to a weight of :func:`network`, in the weight's layout."""
    if name == "k":
        return (b[:, :, 0] @ a[:, :, 0])[..., None]
    return a @ b if name == "w1" else (a @ b).T


def started(step: TrainingStep) -> dict[str, np.ndarray]:
    """Give the second factors numbers that are not 0."""
    rng = np.random.default_rng(2)
    made = {n: rng.normal(size=w.shape).astype(w.dtype) for n, w in step.weights().items()}
    step.set_weights(made)
    return made


@pytest.mark.parametrize("rslora", [False, True])
def test_gradients_are_the_full_ones_projected(rslora: bool) -> None:
    """dA = s dW Bᵀ and dB = s Aᵀ dW, in double precision: what the step without adapters says of dW."""
    model, (x, y) = network(np.float64), rows(np.float64)
    y = np.hstack([y, y[:, :1]])
    lora = LoRA(2, alpha=3, rslora=rslora)
    step = TrainingStep(model, optimizer="sgd", learning_rate=1.0, lora=lora)
    before = started(step)
    scale = 3 / np.sqrt(2) if rslora else 3 / 2
    merged = {
        n: w + scale * product(n, before[f"{n}.lora_A"], before[f"{n}.lora_B"])
        for n, w in weights(model).items()
        if n != "b1"
    }
    full = TrainingStep(model, optimizer="sgd", learning_rate=1.0)
    full.set_weights(merged)
    assert step.run(x, y) == pytest.approx(full.run(x, y), rel=1e-12)
    for name, weight in merged.items():
        a, b = before[f"{name}.lora_A"], before[f"{name}.lora_B"]
        slope = weight - full.weights()[name]
        got = [before[n] - step.weights()[n] for n in (f"{name}.lora_A", f"{name}.lora_B")]
        if name != "w1":
            slope = slope.T
        np.testing.assert_allclose(got[0], scale * slope @ b.T, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(got[1], scale * a.T @ slope, rtol=1e-10, atol=1e-12)


def test_training_begins_at_the_model_and_changes_adapters_only() -> None:
    model, (x, y) = network(), rows()
    step = TrainingStep(model, optimizer="adam", learning_rate=0.02, lora=2)
    assert set(step.weights()) == {f"{n}.lora_{f}" for n in ("w1", "w2", "left", "k") for f in "AB"}
    np.testing.assert_allclose(step.predict(x)["y"], run(model, x=x), rtol=1e-5, atol=1e-6)
    losses = [step.run(x, y) for _ in range(10)]
    assert losses == sorted(losses, reverse=True)
    apart = step.trained_model(merge=False)
    np.testing.assert_allclose(run(apart, x=x), run(model, x=x), rtol=1e-6, atol=1e-6)
    assert {i.name: i for i in apart.graph.initializer}["w1"] == {i.name: i for i in model.graph.initializer}[
        "w1"
    ]


def test_merged_and_apart_compute_what_is_trained() -> None:
    model, (x, y) = network(), rows()
    step = TrainingStep(model, optimizer="adam", learning_rate=0.02, lora=LoRA(2, alpha=4))
    started(step)
    for _ in range(3):
        step.run(x, y)
    expected = step.predict(x)["y"]
    merged = step.trained_model()
    assert [n.op_type for n in merged.graph.node] == [n.op_type for n in model.graph.node]
    np.testing.assert_allclose(run(merged, x=x), expected, rtol=1e-4, atol=1e-4)
    apart = run(step.trained_model(merge=False), x=x, **step.adapter())
    np.testing.assert_allclose(apart, expected, rtol=1e-4, atol=1e-4)


def test_pickles_and_state_go_on_with_the_same_bits() -> None:
    x, y = rows()
    step = TrainingStep(network(), optimizer="adam", lora=LoRA(2, seed=3))
    step.run(x, y)
    other = pickle.loads(pickle.dumps(step))
    third = TrainingStep(network(), optimizer="adam", lora=LoRA(2, seed=3))
    third.load_state_dict(*step.state_dict())
    assert [step.run(x, y) for _ in range(3)] == [other.run(x, y) for _ in range(3)]
    third.run(x, y), third.run(x, y), third.run(x, y)
    assert all((third.weights()[n] == w).all() for n, w in step.weights().items())


def test_estimators_train_by_them() -> None:
    x, y = rows()
    reg = OnnxRegressor(network(), lora=2, max_iter=3, random_state=0, optimizer="adam").fit(x, y)
    assert all(".lora_" in name for name in reg.weights_)
    np.testing.assert_allclose(run(reg.get_trained_onnx(), x=x), reg.predict(x), rtol=1e-4, atol=1e-5)
    assert clone(reg).lora == 2
    with pytest.raises(UnknownNameError, match="no adapters"):
        TrainingStep(network()).adapter()
    labels = np.arange(len(x)) % 3
    phrase = "lora:rank=1,targets=first,train=biases"
    clf = OnnxClassifier(network(), lora=phrase, max_iter=1, loss="cross_entropy")
    clf.fit(x, labels)
    assert set(clf.weights_) == {"b1", "w1.lora_A", "w1.lora_B"}


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        ("w1", {"w1"}),
        ("se*", {"w2"}),
        ("last:1", {"k"}),
        (["first:1", "third"], {"w1", "left"}),
        (2, {"w2"}),
        ((10, 5), {"w2"}),
        ((5, 10), {"w2"}),
    ],
)
def test_targets(targets: object, chosen: set[str]) -> None:
    made = LoRA(1, targets=targets)
    step = TrainingStep(network(), lora=made)
    assert {name.split(".")[0] for name in step.weights()} == chosen


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"'w9'.*w1 \(6, 10\) of first"):
        TrainingStep(network(), lora=LoRA(1, targets="w9"))
    with pytest.raises(InvalidParameterError, match="rank=4 is above that of weight 'k'"):
        TrainingStep(network(), lora=LoRA(4, targets="k"))
    with pytest.raises(InvalidParameterError, match="rank of LoRA"):
        LoRA(0)
    with pytest.raises(InvalidParameterError, match="lora must be"):
        TrainingStep(network(), lora="adapter")
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }""")
    with pytest.raises(InvalidModelError, match="no matrix"):
        TrainingStep(model, lora=1)


def test_a_weight_that_something_else_reads_has_none() -> None:
    """An embedding that is the head's weight, too."""
    table = numpy_helper.from_array(np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32), "table")
    perm = helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0])
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["h"]),
        perm,
        helper.make_node("MatMul", ["h", "turned"], ["y"]),
    ]
    inner = numpy_helper.from_array(np.eye(4, dtype=np.float32) + 1, "w")
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 7])],
        [table, inner],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert {n.split(".")[0] for n in TrainingStep(model, lora=2).weights()} == {"w"}

"""A model that learns from another one, against the formulas in NumPy and finite differences."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.tuning import Distillation, LoRA


def network(
    width: int, seed: int, end: str | None = "Softmax", dtype: type = np.float64, columns: int = 3
) -> onnx.ModelProto:
    """Two layers with a normalization between them."""
    rng = np.random.default_rng(seed)
    tensors = {
        "w1": rng.normal(size=(4, width)),
        "scale": rng.uniform(0.5, 1.5, size=width),
        "shift": rng.normal(size=width),
        "mean": rng.normal(size=width),
        "var": rng.uniform(0.5, 2, size=width),
        "w2": rng.normal(size=(width, columns)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Tanh", ["n"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["z"]),
    ]
    if end is not None:
        nodes.append(helper.make_node(end, ["z"], ["p"]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    output = helper.make_tensor_value_info("z" if end is None else "p", kind, ["N", columns])
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, ["N", 4])],
        [output],
        [numpy_helper.from_array(v.astype(dtype), n) for n, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensors_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Initializers of a model."""
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def hidden(t: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The hidden layer of :func:`network`."""
    n = (x @ t["w1"] - t["mean"]) / np.sqrt(t["var"] + 1e-5) * t["scale"] + t["shift"]
    return np.tanh(n)


def softmax(z: np.ndarray) -> np.ndarray:
    """Probabilities of scores."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    """Probability of a score."""
    return 1 / (1 + np.exp(-z))


X = np.random.default_rng(5).normal(size=(7, 4))
LABELS = np.arange(7) % 3


def objective(
    t: dict[str, np.ndarray], teacher: dict[str, np.ndarray], kind: str, weight: np.ndarray
) -> float:
    """What is trained with T = 3 and alpha = 0.7: the formulas of the docstring."""
    z, zt = hidden(t, X) @ t["w2"], hidden(teacher, X) @ teacher["w2"]
    if kind == "softmax":
        p, q = softmax(z / 3), softmax(zt / 3)
        taught = 9 * (q * (np.log(q) - np.log(p))).sum(axis=1)
        loss = -np.log(softmax(z)[np.arange(7), LABELS])
    elif kind == "sigmoid":
        p, q = sigmoid(z / 3), sigmoid(zt / 3)
        taught = 9 * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).sum(axis=1)
        y = np.eye(3)[LABELS]
        loss = -(y * np.log(sigmoid(z)) + (1 - y) * np.log(1 - sigmoid(z))).sum(axis=1)
    else:
        taught = ((z - zt) ** 2).sum(axis=1) / 2
        loss = ((z - np.eye(3)[LABELS]) ** 2).sum(axis=1) / 2
    return float(np.mean(weight * (0.3 * loss + 0.7 * taught)))


CASES = {
    "softmax": ("Softmax", "cross_entropy", LABELS),
    "sigmoid": ("Sigmoid", "binary_crossentropy", np.eye(3)[LABELS]),
    "output": (None, "squared_error", np.eye(3)[LABELS]),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_value_and_gradient(kind: str, weighted: bool) -> None:
    end, loss, y = CASES[kind]
    student, teacher = network(5, 0, end), network(8, 1, None if kind == "softmax" else end)
    weight = np.random.default_rng(2).uniform(0.5, 2, size=7) if weighted else np.ones(7)
    made = Distillation(teacher, temperature=3, alpha=0.7)
    step = TrainingStep(student, loss, "sgd", learning_rate=1.0, teacher=made)
    t, other = tensors_of(student), tensors_of(teacher)
    given = [weight] if weighted else []
    expected = objective(t, other, kind, weight)
    assert float(np.mean(step.scores(X, y, *given))) == pytest.approx(expected, rel=1e-12)
    before = step.weights()
    assert step.run(X, y, *given) == pytest.approx(expected, rel=1e-12)
    for name in ("w1", "w2", "scale"):
        slope = before[name] - step.weights()[name]
        index = tuple(0 for _ in slope.shape)
        sides = []
        for h in (1e-6, -1e-6):
            moved = {n: a.copy() for n, a in t.items()}
            moved[name][index] += h
            sides.append(objective(moved, other, kind, weight))
        assert slope[index] == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("how", ["squared", "cosine"])
def test_tensors_are_matched(how: str) -> None:
    """Through a matrix where their widths differ, which learns and is left out of the trained model."""
    student, teacher = network(5, 0), network(8, 1)
    made = Distillation(teacher, alpha=0, match={"h": "h"}, match_loss=how, match_weight=2.0)
    step = TrainingStep(student, "cross_entropy", "sgd", learning_rate=0.1, teacher=made)
    t, other = tensors_of(student), tensors_of(teacher)
    own, taught = hidden(t, X) @ step.weights()["h_projection"], hidden(other, X)
    if how == "squared":
        apart = np.mean((own - taught) ** 2)
    else:
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(taught, axis=1)
        apart = np.mean(1 - (own * taught).sum(axis=1) / lengths)
    loss = -np.mean(np.log(softmax(hidden(t, X) @ t["w2"])[np.arange(7), LABELS]))
    losses = [step.run(X, LABELS) for _ in range(10)]
    assert losses[0] == pytest.approx(loss + 2 * apart, rel=1e-10)
    assert losses[-1] < losses[0]
    trained = step.trained_model()
    assert set(tensors_of(trained)) == set(t)
    assert [n.op_type for n in trained.graph.node] == [n.op_type for n in student.graph.node]
    assert set(step.predict(X)) == {"p"}


def test_the_teacher_stays_as_it_predicts() -> None:
    """Its normalization goes by its own statistics, whatever the mode of the step is."""
    student, teacher = network(5, 0, dtype=np.float32), network(8, 1, dtype=np.float32)
    x = X.astype(np.float32)
    made = Distillation(teacher, alpha=1.0)
    step = TrainingStep(student, "cross_entropy", "adam", batch_norm="update", teacher=made)
    losses = [step.run(x, LABELS) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert set(step.statistics()) == {"mean", "var"}
    assert not [name for name in step.weights() if "teacher" in name]
    other = pickle.loads(pickle.dumps(step))
    assert [other.run(x, LABELS) for _ in range(3)] == [step.run(x, LABELS) for _ in range(3)]
    third = TrainingStep(student, "cross_entropy", "adam", batch_norm="update", teacher=made)
    third.load_state_dict(*step.state_dict())
    assert third.run(x, LABELS) == step.run(x, LABELS)


def test_estimators_learn_from_a_teacher() -> None:
    student, teacher = network(5, 0, dtype=np.float32), network(8, 1, dtype=np.float32)
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    y = np.arange(60) % 3
    settings = {"optimizer": "adam", "max_iter": 3, "random_state": 0, "teacher": teacher}
    plain = OnnxClassifier(student, **settings).fit(x, y)
    cached = OnnxClassifier(student, cache_frozen=True, **settings).fit(x, y)
    assert cached.history_["loss"] == pytest.approx(plain.history_["loss"], rel=1e-5)
    adapted = OnnxClassifier(student, lora=LoRA(2), **settings).fit(x, y)
    assert set(adapted.weights_) == {f"{w}.lora_{f}" for w in ("w1", "w2") for f in "AB"}
    last = OnnxClassifier(student, weights_to_train="last:1", **settings).fit(x, y)
    assert set(last.weights_) == {"w2"}
    reg = OnnxRegressor(network(5, 0, None, np.float32), max_iter=1, teacher=network(8, 1, None, np.float32))
    assert reg.fit(x, np.eye(3, dtype=np.float32)[y]).predict(x).shape == (60, 3)


def test_a_model_may_teach_itself() -> None:
    student = network(5, 0)
    step = TrainingStep(student, "cross_entropy", "sgd", teacher=Distillation(student, alpha=1.0))
    assert step.run(X, LABELS) == pytest.approx(0, abs=1e-12)


def two_heads(names: tuple[str, str, str, str]) -> onnx.ModelProto:
    """A difference of two inputs, and two outputs of it."""
    a, b, p, r = names
    weight = ", ".join(str(v) for v in np.random.default_rng(0).normal(size=12))
    return onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        heads (double[N, 4] {a}, double[N, 4] {b}) => (double[N, 3] {p}, double[N, 3] {r})
        <double[4, 3] w = {{{weight}}}, double[3] v = {{1, 2, 3}}> {{
            s = Sub({a}, {b})  z = MatMul(s, w)  {p} = Softmax(z)  {r} = Mul(z, v)
        }}""")


@pytest.mark.parametrize("names", [("a", "b", "p", "r"), ("c", "d", "q", "t"), ("a", "c", "p", "t")])
def test_inputs_and_outputs_meet_by_name_or_place(names: tuple[str, str, str, str]) -> None:
    """The same model under any names teaches what is known already."""
    losses = {"p": "cross_entropy", "r": "squared_error"}
    made = Distillation(two_heads(names), alpha=1.0)
    step = TrainingStep(two_heads(("a", "b", "p", "r")), losses, teacher=made)
    loss = step.run({"a": X, "b": X + 1}, {"p": LABELS, "r": np.eye(3)[LABELS]})
    assert loss == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("own", [np.float16, np.float32, np.float64])
def test_other_floats_are_cast(own: type) -> None:
    student, teacher = network(5, 0, dtype=own), network(8, 1, dtype=np.float32)
    step = TrainingStep(student, "cross_entropy", teacher=Distillation(teacher, temperature=3, alpha=0.7))
    expected = objective(tensors_of(student), tensors_of(teacher), "softmax", np.ones(7))
    assert step.run(X.astype(own), LABELS) == pytest.approx(expected, rel=1e-2 if own == np.float16 else 1e-5)


def test_a_classifier_of_scikit_learn_teaches() -> None:
    """Its labels are the first output, its probabilities are in dictionaries."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    skl2onnx = pytest.importorskip("skl2onnx")
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    fitted = linear_model.LogisticRegression().fit(x, x[:, :3].argmax(axis=1))
    teacher = skl2onnx.to_onnx(fitted, x[:1], target_opset=17)
    student = network(5, 0, dtype=np.float32)
    step = TrainingStep(student, "cross_entropy", teacher=Distillation(teacher, temperature=1, alpha=1.0))
    own = {name: array.astype(np.float64) for name, array in tensors_of(student).items()}
    p, q = softmax(hidden(own, x) @ own["w2"]), fitted.predict_proba(x)
    expected = np.mean((q * np.log(q / p)).sum(axis=1))
    assert step.run(x, x[:, :3].argmax(axis=1)) == pytest.approx(expected, rel=1e-4)


def test_probabilities_are_no_scores() -> None:
    """Where the teacher's scores cannot be had it is refused."""
    student, teacher = network(5, 0, dtype=np.float32), network(8, 1, dtype=np.float32)
    del teacher.graph.node[-1]
    teacher.graph.node.append(helper.make_node("Softmax", ["z"], ["q"]))
    teacher.graph.node.append(helper.make_node("Mul", ["q", "half"], ["p"]))
    teacher.graph.initializer.append(numpy_helper.from_array(np.full(3, 0.5, np.float32), "half"))
    with pytest.raises(InvalidModelError, match="of the teacher holds probabilities"):
        TrainingStep(student, "cross_entropy", teacher=teacher)


@pytest.mark.skipif(not hasattr(onnx, "mapping") and onnxruntime.__version__ < "1.18", reason="its quantizer")
def test_integers_of_a_last_softmax_are_looked_behind(tmp_path: Path) -> None:
    """QLinearSoftmax is no tensor of scores: without it the teacher is the float one, to its rounding."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    student, teacher = network(5, 0, dtype=np.float32), network(8, 1, dtype=np.float32)
    x = X.astype(np.float32)

    class Rows(quantization.CalibrationDataReader):
        rows = iter([{"x": x}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    onnx.save(teacher, tmp_path / "teacher.onnx")
    form = quantization.QuantFormat.QOperator
    quantization.quantize_static(tmp_path / "teacher.onnx", tmp_path / "q.onnx", Rows(), quant_format=form)
    assert "QLinearSoftmax" in {n.op_type for n in onnx.load(tmp_path / "q.onnx").graph.node}
    losses = [
        TrainingStep(student, "cross_entropy", teacher=Distillation(model, alpha=1.0)).run(x, LABELS)
        for model in (teacher, tmp_path / "q.onnx")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_what_does_not_fit_is_refused() -> None:
    student = network(5, 0)
    with pytest.raises(InvalidModelError, match=r"has the outputs of the model it teaches"):
        TrainingStep(student, "cross_entropy", teacher=network(8, 1, columns=4))
    with pytest.raises(InvalidModelError, match="ends in a Sigmoid"):
        TrainingStep(student, "cross_entropy", teacher=network(8, 1, "Sigmoid"))
    other = network(8, 1)
    other.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    other.graph.node[0].input[0] = "cast"
    other.graph.node.insert(0, helper.make_node("Cast", ["x"], ["cast"], to=onnx.TensorProto.DOUBLE))
    with pytest.raises(InvalidModelError, match="both have to take the same rows"):
        TrainingStep(student, "cross_entropy", teacher=other)
    with pytest.raises(UnknownNameError, match="The teacher has no tensor 'g'"):
        TrainingStep(student, "cross_entropy", teacher=Distillation(network(8, 1), match={"h": "g"}))
    with pytest.raises(InvalidParameterError, match="alpha of Distillation"):
        Distillation(student, alpha=2)
    with pytest.raises(InvalidParameterError, match="match must be a dict"):
        Distillation(student, match=["h"])

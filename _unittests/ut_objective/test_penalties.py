"""Penalties: value, gradient, choice of weights."""

import copy
import pickle

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcustom import TrainingStep
from onnxcustom.exceptions import InvalidParameterError, UnknownNameError
from onnxcustom.graph.building.builder import Builder
from onnxcustom.objective import (
    BaseLearningPenalty,
    ElasticLearningPenalty,
    L1LearningPenalty,
    L2LearningPenalty,
    L2StartLearningPenalty,
    NoLearningPenalty,
    Penalty,
    PerWeightLearningPenalty,
    register_penalty,
    select_penalties,
)
from onnxcustom.objective.penalties import PENALTIES

onnxruntime = pytest.importorskip("onnxruntime")

CASES = [
    (NoLearningPenalty(), lambda w: 0.0),
    (L1LearningPenalty(0.3), lambda w: 0.3 * abs(w).sum()),
    (L2LearningPenalty(0.3), lambda w: 0.3 * (w**2).sum()),
    (L2StartLearningPenalty(0.3, start=0.0), lambda w: 0.3 * (w**2).sum()),
    (ElasticLearningPenalty(), lambda w: 0.5 * abs(w).sum() + 0.5 * (w**2).sum()),
    (ElasticLearningPenalty(0.1, 0.9), lambda w: 0.1 * abs(w).sum() + 0.9 * (w**2).sum()),
    (ElasticLearningPenalty(0, 0.9), lambda w: 0.9 * (w**2).sum()),
    (ElasticLearningPenalty(0.1, 0), lambda w: 0.1 * abs(w).sum()),
    (PerWeightLearningPenalty({"weight": "l1"}), lambda w: 0.5 * abs(w).sum()),
]
IDS = [f"{i}-{type(p).__name__}" for i, (p, _) in enumerate(CASES)]


def run(penalty, w, opset=13):
    model = penalty.to_onnx(w.dtype, w.ndim, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"weight": w} if session.get_inputs() else {})


def test_every_registered_penalty_has_a_case():
    assert set(PENALTIES.classes()) == {type(penalty) for penalty, _ in CASES}


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 2, 2)])
@pytest.mark.parametrize(("penalty", "formula"), CASES, ids=IDS)
def test_value_and_gradient(penalty, formula, shape):
    rng = np.random.default_rng(0)
    w, direction = rng.normal(size=shape), rng.normal(size=shape)
    value, gradient = run(penalty, np.asarray(w))
    assert value.shape == ()
    assert gradient.shape == w.shape
    np.testing.assert_allclose(value, formula(w), rtol=1e-12)
    h = 1e-6
    measured = (formula(w + h * direction) - formula(w - h * direction)) / (2 * h)
    np.testing.assert_allclose(np.sum(gradient * direction), measured, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize(("penalty", "formula"), CASES, ids=IDS)
def test_dtypes_and_opsets(penalty, formula, opset, dtype):
    if opset > 20:
        pytest.importorskip("onnxruntime", minversion="1.18")
    w = np.array([[1, -2], [0, 3]], dtype=dtype)
    value, gradient = run(penalty, w, opset)
    assert value.dtype == gradient.dtype == dtype
    assert value == pytest.approx(formula(w.astype(float)), rel=2e-3)
    assert gradient[1, 0] == 0


@pytest.mark.parametrize(("penalty", "formula"), CASES[:-1], ids=IDS[:-1])
def test_penalty_loss_adds_to_the_loss(penalty, formula):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    loss = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(5, dtype=np.float32))
    total = penalty.penalty_loss("cpu", loss, a, b).numpy()
    assert total.dtype == np.float32
    assert total == pytest.approx(5 + formula(a) + formula(b), rel=1e-5)
    assert loss.numpy() == 5


def test_update_weights_goes_down_the_penalty():
    w = np.array([[1, -2]], dtype=np.float32)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(w.copy())
    penalty = ElasticLearningPenalty(l1=0.1, l2=0.25)
    penalty.build_onnx_function(15, "cpu", 1)
    onnx.checker.check_model(penalty.penalty_onnx_)
    assert penalty.update_weights(0, "cpu", value) is value
    np.testing.assert_allclose(value.numpy(), w - 0.5 * w - 0.1 * np.sign(w), rtol=1e-6)
    new = penalty.update_weights(0, "cpu", w, learning_rate=0.5)
    np.testing.assert_allclose(new.numpy(), w - 0.25 * w - 0.05 * np.sign(w), rtol=1e-6)
    np.testing.assert_array_equal(w, [[1, -2]])
    nothing = NoLearningPenalty()
    assert nothing.update_weights(0, "cpu", value) is value
    assert nothing.penalty_loss("cpu", value) is value


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        (None, NoLearningPenalty),
        ("", NoLearningPenalty),
        ("none", NoLearningPenalty),
        ("elastic", ElasticLearningPenalty),
        ("l1l2", ElasticLearningPenalty),
        ("ElasticLearningPenalty", ElasticLearningPenalty),
        ("L1", L1LearningPenalty),
        ("l2", L2LearningPenalty),
        ({"*": "l2"}, PerWeightLearningPenalty),
        (L2LearningPenalty, L2LearningPenalty),
    ],
)
def test_select(name, cls):
    assert type(BaseLearningPenalty.select(name)) is cls


def test_select_keeps_instances_and_passes_parameters():
    penalty = L2LearningPenalty()
    assert Penalty.select(penalty) is penalty
    assert Penalty.select("elastic", l1=3, biases=False).get_params() == {
        "l1": 3,
        "l2": 0.5,
        "weights": None,
        "biases": False,
    }
    with pytest.raises(UnknownNameError, match=r"'l3' is no penalty.*'elastic'.*dict"):
        Penalty.select("l3")


@pytest.mark.parametrize(("penalty", "formula"), CASES, ids=IDS)
def test_pickle_copy_and_repr(penalty, formula):
    if not isinstance(penalty, PerWeightLearningPenalty):
        penalty.penalty_loss("cpu", np.array(0.0), np.ones(2))
    for other in (pickle.loads(pickle.dumps(penalty)), copy.deepcopy(penalty)):
        assert repr(other) == repr(penalty)
        assert "_sessions" not in other.__dict__


@pytest.mark.parametrize(
    "penalty", [ElasticLearningPenalty(-1), L1LearningPenalty(np.inf), L2LearningPenalty(np.nan)]
)
def test_bad_parameters_are_refused_when_used(penalty):
    with pytest.raises(ValueError, match=r"l[12] must be in"):
        penalty.resolve(["w"])
    with pytest.raises(ValueError, match=r"l[12] must be in"):
        penalty.to_onnx()


def test_users_register_their_own():
    @register_penalty("fourth_power")
    class FourthPower(Penalty):
        def build(self, op, weight):
            cube = weight * weight * weight
            return op.ReduceSum(cube * weight, keepdims=0), 4 * cube

    try:
        value, gradient = Penalty.select("fourth_power").build(Builder(17), Builder(17).input("w", 1, [2]))
        assert value.dtype == gradient.dtype
    finally:
        for name in ("fourth_power", "fourthpower"):
            del PENALTIES._classes[name]


# -- which weights -----------------------------------------------------------------------------

NAMES = ["a.weight", "a.bias", "b.weight", "b.bias", "odd[0]"]
BIASES = ["a.bias", "b.bias"]


def test_all_weights_by_default():
    penalty = L2LearningPenalty()
    assert penalty.resolve(NAMES, BIASES) == dict.fromkeys(NAMES, penalty)


@pytest.mark.parametrize(
    ("weights", "biases", "expected"),
    [
        (None, False, ["a.weight", "b.weight", "odd[0]"]),
        ("a.*", True, ["a.weight", "a.bias"]),
        (["b.*", "a.weight"], False, ["a.weight", "b.weight"]),
        ("odd[0]", True, ["odd[0]"]),
        ([], True, []),
    ],
)
def test_weights_by_name_pattern_and_kind(weights, biases, expected):
    assert list(L1LearningPenalty(1, weights, biases).resolve(NAMES, BIASES)) == expected


def test_per_weight():
    l1, l2 = L1LearningPenalty(), L2LearningPenalty(biases=False)
    penalty = PerWeightLearningPenalty({"a.*": l1, "b.weight": None, "*": l2, "a.weight": "elastic"})
    found = penalty.resolve(NAMES, BIASES)
    assert {k: type(v) for k, v in found.items()} == {
        "a.weight": ElasticLearningPenalty,
        "a.bias": L1LearningPenalty,
        "odd[0]": L2LearningPenalty,
    }
    assert list(found) == ["a.weight", "a.bias", "odd[0]"]
    assert PerWeightLearningPenalty({"b.*": "l2"}).resolve(NAMES).keys() == {"b.weight", "b.bias"}


def test_per_weight_needs_names():
    with pytest.raises(UnknownNameError, match="resolve"):
        PerWeightLearningPenalty({"*": "l2"}).penalty_loss("cpu", np.array(0.0), np.ones(2))


@pytest.mark.parametrize("penalty", [L2LearningPenalty(weights="c.*"), {"c.*": "l2"}, {"c": None}])
def test_a_pattern_without_weights_is_refused(penalty):
    with pytest.raises(UnknownNameError, match=r"'c.*a\.weight"):
        Penalty.select(penalty).resolve(NAMES)


MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[N,2] x) => (float[N,1] y)
<float[2,3] w1 = {1,2,3,4,5,6}, float[1,3] b1 = {1,2,3}, float[3,1] w2 = {1,2,3}, float[1] b2 = {1},
 float[1,1] scale = {2}, float[1,1] both = {2}>
{
  h0 = MatMul(x, w1)
  h1 = Add(h0, b1)
  h2 = Relu(h1)
  h3 = Gemm(h2, w2, b2)
  h4 = Mul(h3, scale)
  h5 = Add(h4, both)
  y = Mul(h5, both)
}"""


def test_biases_are_what_is_only_added():
    model = ir.from_proto(onnx.parser.parse_model(MODEL))
    names = ["w1", "b1", "w2", "b2", "scale", "both"]
    chosen = select_penalties(ElasticLearningPenalty(biases=False), model, names)
    assert list(chosen) == ["w1", "w2", "scale", "both"]
    assert select_penalties(None, model, names) == {}
    assert list(select_penalties({"w?": "l1"}, model, names)) == ["w1", "w2"]
    with pytest.raises(ValueError, match="l2"):
        select_penalties("l2", model, names) and select_penalties(L2LearningPenalty(-1), model, names)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_towards_the_starting_weights(optimizer):
    """Ten steps against PyTorch: with the penalty in its objective, and the weights as they were."""
    torch = pytest.importorskip("torch")
    text = """<ir_version: 8, opset_import: ["": 17]>
    m (double[N, 3] x) => (double[N, 2] y) <double[3, 2] w = {1, -2, 3, 0.5, 0, 1}, double[2] b = {1, 2}> {
        z = MatMul(x, w)  y = Add(z, b) }"""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    penalty = L2StartLearningPenalty(0.3, biases=False)
    step = TrainingStep(
        onnx.parser.parse_model(text), "square_error", optimizer, None, penalty, learning_rate=0.05
    )
    start = {name: torch.tensor(value) for name, value in step.weights().items()}
    w = {name: value.clone().requires_grad_() for name, value in start.items()}
    rule = (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)(w.values(), lr=0.05)
    for k in range(10):
        rule.zero_grad()
        away = ((w["w"] - start["w"]) ** 2).sum()
        assert step.penalty() == pytest.approx(0.3 * away.item(), rel=1e-9, abs=1e-12)
        loss = ((torch.tensor(X) @ w["w"] + w["b"] - torch.tensor(y)) ** 2).sum() / 2 / 8 + 0.3 * away
        loss.backward()
        rule.step()
        assert step.run(X, y) == pytest.approx(loss.item(), rel=1e-9)
        if k == 4:
            step = pickle.loads(pickle.dumps(step))
    for name, value in step.weights().items():
        np.testing.assert_allclose(value, w[name].detach(), rtol=1e-7, atol=1e-9)


def test_starting_weights_are_those_of_the_model():
    alone = L2StartLearningPenalty()
    with pytest.raises(InvalidParameterError, match="needs start="):
        alone.to_onnx()
    assert "<array of shape (2, 3)>" in repr(alone.starting_at(np.ones((2, 3))))
    assert alone.start is None
    with pytest.raises(InvalidParameterError, match=r"shape \(2,\), the weight \(3,\)"):
        L2StartLearningPenalty(start=np.ones(2)).starting_at(np.ones(3))


def test_old_import_path():
    from onnxcustom.training import sgd_learning_penalty as old

    assert old.BaseLearningPenalty.select("elastic", l1=0, l2=1e-4).l2 == 1e-4

"""Every registered loss: value, gradient, shapes, dtypes, weights, opsets."""

import copy
import pickle

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, xlogy
from sklearn.base import clone

from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.graph.building.builder import Builder
from onnxcustom.objective import (
    AbsoluteLearningLoss,
    BaseLearningLoss,
    BinaryCrossEntropyLearningLoss,
    CosineLearningLoss,
    CustomLoss,
    DiceLearningLoss,
    ElasticLearningLoss,
    HingeLearningLoss,
    HuberLearningLoss,
    Loss,
    NegLogLearningLoss,
    PoissonLearningLoss,
    QuantileLearningLoss,
    SoftmaxCrossEntropyLearningLoss,
    SquareLearningLoss,
    register_loss,
)
from onnxcustom.objective.base import LOSSES

from .label_cases import LABEL_CASES
from .task_cases import TASK_CASES

onnxruntime = pytest.importorskip("onnxruntime")

SHAPES = [(5,), (5, 1), (4, 3), (3, 2, 2)]
CLASS_SHAPES = [(5, 3), (4, 2), (3, 4, 2), (2, 3, 2, 2)]


def values(rng, shape):
    return rng.normal(size=shape) * 2, rng.normal(size=shape) * 2


def counts(rng, shape):
    return rng.poisson(2, size=shape).astype(float), rng.normal(size=shape)


def means(rng, shape):
    return rng.poisson(2, size=shape).astype(float), rng.uniform(0.1, 4, size=shape)


def bits(rng, shape):
    return rng.integers(0, 2, size=shape).astype(float), rng.normal(size=shape) * 3


def soft_bits(rng, shape):
    return rng.uniform(size=shape), rng.normal(size=shape) * 3


def unit(rng, shape):
    return rng.uniform(size=shape), rng.uniform(0.05, 0.95, size=shape)


def labels(rng, shape):
    return rng.integers(0, shape[1], size=(shape[0], *shape[2:])), rng.normal(size=shape) * 3


def soft_labels(rng, shape):
    return rng.dirichlet(np.ones(shape[1]), size=(shape[0], *shape[2:])).swapaxes(1, -1), rng.normal(
        size=shape
    )


def simplex(rng, shape):
    return labels(rng, shape)[0], soft_labels(rng, shape)[0] * 0.9 + 0.05


def picked(y, p):
    return np.take_along_axis(p, np.expand_dims(y, 1), axis=1)


def crammer_singer(y, z):
    index = np.expand_dims(y, 1)
    rivals = np.array(z)
    np.put_along_axis(rivals, index, -np.inf, axis=1)
    return np.maximum(0, 1 - picked(y, z) + rivals.max(axis=1, keepdims=True))


def binary(y, p):
    return -(xlogy(y, p) + xlogy(1 - y, 1 - p))


def softplus(z):
    return np.logaddexp(0, z)


def fourth(op, predicted, expected):
    d = predicted - expected
    return d * d * d * d, 4 * d * d * d


# Loss, data, shapes, and the published formula in NumPy: losses of any shape with rows first.
CASES = [
    (SquareLearningLoss(), values, SHAPES, lambda y, p: (p - y) ** 2 / 2),
    (AbsoluteLearningLoss(), values, SHAPES, lambda y, p: abs(p - y)),
    (ElasticLearningLoss(), values, SHAPES, lambda y, p: 0.5 * abs(p - y) + 0.5 * (p - y) ** 2),
    (ElasticLearningLoss(0.1, 0.9), values, SHAPES, lambda y, p: 0.1 * abs(p - y) + 0.9 * (p - y) ** 2),
    (
        HuberLearningLoss(1.5),
        values,
        SHAPES,
        lambda y, p: np.where(abs(p - y) <= 1.5, (p - y) ** 2 / 2, 1.5 * (abs(p - y) - 0.75)),
    ),
    (QuantileLearningLoss(0.2), values, SHAPES, lambda y, p: np.where(p <= y, 0.2 * (y - p), 0.8 * (p - y))),
    (PoissonLearningLoss(), counts, SHAPES, lambda y, z: np.exp(z) - y * z),
    (PoissonLearningLoss(deviance=True), counts, SHAPES, lambda y, z: np.exp(z) - y * z + xlogy(y, y) - y),
    (PoissonLearningLoss("identity"), means, SHAPES, lambda y, m: m - y * np.log(m)),
    (PoissonLearningLoss("identity", True), means, SHAPES, lambda y, m: m - xlogy(y, m) + xlogy(y, y) - y),
    (BinaryCrossEntropyLearningLoss(), bits, SHAPES, lambda y, z: softplus(z) - y * z),
    (BinaryCrossEntropyLearningLoss(), soft_bits, SHAPES, lambda y, z: softplus(z) - y * z),
    (BinaryCrossEntropyLearningLoss(from_logits=False), unit, SHAPES, binary),
    (SoftmaxCrossEntropyLearningLoss(), labels, CLASS_SHAPES, lambda y, z: -picked(y, log_softmax(z, 1))),
    (SoftmaxCrossEntropyLearningLoss(), soft_labels, CLASS_SHAPES, lambda y, z: -y * log_softmax(z, axis=1)),
    (SoftmaxCrossEntropyLearningLoss(False), simplex, CLASS_SHAPES, lambda y, p: -np.log(picked(y, p))),
    (NegLogLearningLoss(), bits, SHAPES, lambda y, z: binary(y, expit(z))),
    (NegLogLearningLoss(probability_function=None), unit, SHAPES[:2], binary),
    (
        NegLogLearningLoss(probability_function="softmax"),
        labels,
        CLASS_SHAPES,
        lambda y, z: -picked(y, log_softmax(z, axis=1)),
    ),
    (HingeLearningLoss(), bits, SHAPES, lambda y, z: np.maximum(0, 1 - (2 * y - 1) * z)),
    (HingeLearningLoss(squared=True), bits, SHAPES, lambda y, z: np.maximum(0, 1 - (2 * y - 1) * z) ** 2),
    (HingeLearningLoss(), labels, CLASS_SHAPES, crammer_singer),
    (HingeLearningLoss(squared=True), labels, CLASS_SHAPES, lambda y, z: crammer_singer(y, z) ** 2),
    (CustomLoss(fourth), values, SHAPES, lambda y, p: (p - y) ** 4),
    *LABEL_CASES,
    *TASK_CASES,
]
PARAMS = [
    pytest.param(loss, data, shape, formula, id=f"{i}-{type(loss).__name__}-{'x'.join(map(str, shape))}")
    for i, (loss, data, shapes, formula) in enumerate(CASES)
    for shape in shapes
]
LOSS_PARAMS = [
    pytest.param(loss, data, shapes[-1], id=f"{i}-{type(loss).__name__}")
    for i, (loss, data, shapes, _) in enumerate(CASES)
]
# Where the number of columns is unknown, the expected values must be what `target` says.
TARGET_PARAMS = [
    param
    for param in LOSS_PARAMS
    if (type(param.values[0]), param.values[1].__name__)
    not in [
        (SoftmaxCrossEntropyLearningLoss, "soft_labels"),
        (HingeLearningLoss, "labels"),
        (DiceLearningLoss, "labels"),
        (CosineLearningLoss, "pairs"),
    ]
]


def rows(losses):
    return losses.reshape(len(losses), -1).sum(axis=1)


def run(loss, y, p, w=None):
    value, gradient = loss.loss_gradient("cpu", y, p, w)
    return value.numpy(), gradient.numpy()


def slope_error(loss, y, p, w, direction, h=1e-6):
    """How far the gradient is from a finite difference along a direction, relatively."""
    up, _ = run(loss, y, p + h * direction, w)
    down, _ = run(loss, y, p - h * direction, w)
    measured = (up - down) / (2 * h)
    told = np.sum(run(loss, y, p, w)[1] * direction)
    return abs(told - measured) / (1e-2 + abs(measured))


def test_every_registered_loss_has_a_case():
    shipped = {cls for cls in LOSSES.classes() if cls.__module__.startswith("onnxcustom.")}
    assert shipped == {type(loss) for loss, *_ in CASES}


@pytest.mark.parametrize(("loss", "data", "shape", "formula"), PARAMS)
def test_value_and_scores_are_those_of_the_formula(loss, data, shape, formula):
    rng = np.random.default_rng(0)
    y, p = data(rng, shape)
    expected = rows(formula(y, p))
    scores = loss.loss_scores("cpu", y, p).numpy()
    assert scores.shape == (shape[0],)
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    value, gradient = run(loss, y, p)
    assert value.shape == ()
    assert gradient.shape == p.shape
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-9)
    w = rng.uniform(0, 2, size=shape[0])
    np.testing.assert_allclose(loss.loss_scores("cpu", y, p, w).numpy(), w * expected, rtol=1e-9)
    np.testing.assert_allclose(run(loss, y, p, w)[0], np.sum(w * expected), rtol=1e-9)


@pytest.mark.parametrize(("loss", "data", "shape", "formula"), PARAMS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_gradient_is_that_of_the_loss(loss, data, shape, formula, weighted):
    rng = np.random.default_rng(1)
    y, p = data(rng, shape)
    w = rng.uniform(0.1, 2, size=shape[0]) if weighted else None
    for _ in range(3):
        direction = rng.normal(size=shape)
        assert slope_error(loss, y, p, w, direction / np.linalg.norm(direction)) < 1e-6


def test_a_gradient_wrong_by_a_thousandth_is_noticed():
    class Wrong(SquareLearningLoss):
        def terms(self, op, predicted, expected):
            losses, gradient = super().terms(op, predicted, expected)
            return losses, 1.001 * gradient

        def total(self, op, losses, gradient):
            return op.ReduceSum(losses, keepdims=0)

    rng = np.random.default_rng(2)
    y, p = values(rng, (4, 3))
    assert slope_error(Wrong(), y, p, None, p - y) > 5e-4


@pytest.mark.parametrize(("loss", "data", "shape"), LOSS_PARAMS)
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float16, 2e-2), (np.float32, 2e-5)])
def test_dtype_is_that_of_the_prediction(loss, data, shape, dtype, rtol):
    y, p = data(np.random.default_rng(3), shape)
    p = p.astype(dtype)
    if y.dtype.kind == "f":
        y = y.astype(dtype).astype(np.float64)
    value, gradient = run(loss, y, p)
    exact_value, exact = run(loss, y, p.astype(np.float64))
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(value, exact_value, rtol=rtol)
    np.testing.assert_allclose(gradient, exact, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("loss", "data", "shape"), TARGET_PARAMS)
@pytest.mark.parametrize("opset", [13, 15, 18, 21])
def test_graph_is_valid_standard_onnx(loss, data, shape, opset):
    if opset > 20:
        pytest.importorskip("onnxruntime", minversion="1.18")
    outputs = ["loss", "gradient", "scores"]
    model = loss.to_onnx(np.float32, len(shape), weighted=True, outputs=outputs, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, p = data(np.random.default_rng(4), shape)
    y = y if y.dtype.kind == "i" else y.astype(np.float32)
    feeds = {"expected": y, "predicted": p.astype(np.float32), "weight": np.ones(len(p), np.float32)}
    value, gradient, scores = session.run(None, feeds)
    assert gradient.shape == p.shape
    np.testing.assert_allclose(value, scores.sum(), rtol=1e-5)


@pytest.mark.parametrize(("loss", "data", "shape"), TARGET_PARAMS)
def test_unknown_rank_gives_the_same(loss, data, shape):
    y, p = (v.astype(np.float32) if v.dtype.kind == "f" else v for v in data(np.random.default_rng(5), shape))
    op = Builder(17)
    e = op.input("expected", ir.DataType.from_numpy(y.dtype), ["N"] + [None] * (y.ndim - 1))
    q = op.input("predicted", ir.DataType.FLOAT, None)
    w = op.input("weight", ir.DataType.FLOAT, ["N"])
    terms = loss.build(op, q, e, w)
    graph = op.graph([e, q, w], [terms.loss, terms.gradient, terms.scores])
    for value in graph.outputs:
        value.dtype = ir.DataType.FLOAT
    model = ir.to_proto(ir.Model(graph, ir_version=8))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    weight = np.linspace(0.5, 1, len(p), dtype=np.float32)
    value, gradient, scores = session.run(None, {"expected": y, "predicted": p, "weight": weight})
    known = run(loss, y, p, weight)
    np.testing.assert_allclose(value, known[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, known[1], rtol=1e-6)
    np.testing.assert_allclose(scores, loss.loss_scores("cpu", y, p, weight).numpy(), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 5),
    flat_y=st.booleans(),
    flat_p=st.booleans(),
    column_w=st.booleans(),
    index=st.integers(0, len(CASES) - 1),
)
def test_vectors_and_columns_never_broadcast(n, flat_y, flat_p, column_w, index):
    loss, data, shapes, formula = CASES[index]
    if len(shapes[0]) > 1:
        return  # neither vectors nor columns
    rng = np.random.default_rng(n)
    y, p = data(rng, (n,))
    w = rng.uniform(size=n)
    value, gradient = run(
        loss,
        y if flat_y else y[:, None],
        p if flat_p else p[:, None],
        w[:, None] if column_w else w,
    )
    np.testing.assert_allclose(value, np.sum(w * formula(y, p)), rtol=1e-9)
    assert gradient.shape == ((n,) if flat_p else (n, 1))


@settings(max_examples=20, deadline=None)
@given(shape=st.lists(st.integers(1, 3), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_any_shape(shape, seed):
    rng = np.random.default_rng(seed)
    y, p = values(rng, tuple(shape))
    np.testing.assert_allclose(
        SQUARE.loss_scores("cpu", y, p).numpy(), rows((p - y) ** 2 / 2), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(run(SQUARE, y, p)[1], p - y)


SQUARE = SquareLearningLoss()


def test_dynamic_batch_is_one_session():
    loss = SquareLearningLoss()
    for n in (1, 2, 7):
        run(loss, np.zeros((n, 2)), np.ones((n, 2)))
    assert len(loss._sessions) == 1


def test_empty_batch():
    value, gradient = run(SQUARE, np.zeros((0, 2)), np.zeros((0, 2)))
    assert value == 0
    assert gradient.shape == (0, 2)


@pytest.mark.parametrize("loss", [loss for loss, *_ in CASES], ids=lambda x: type(x).__name__)
def test_pickle_copy_clone_and_repr(loss):
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss), clone(loss)):
        assert type(other) is type(loss)
        assert repr(other) == repr(loss)
        assert "_sessions" not in other.__dict__
    assert repr(loss).startswith(type(loss).__name__ + "(")
    assert set(loss.get_params()) == set(type(loss)._parameter_names())


def test_sessions_are_not_pickled_but_rebuilt():
    loss = SquareLearningLoss()
    y, p = np.zeros((2, 1)), np.ones((2, 1))
    before = run(loss, y, p)
    again = pickle.loads(pickle.dumps(loss))
    assert again.__dict__ == {}
    assert run(again, y, p)[0] == before[0]


def test_changed_parameters_count():
    loss = ElasticLearningLoss(1, 0)
    y, p = np.zeros((1, 1)), np.full((1, 1), 3.0)
    assert run(loss, y, p)[0] == 3
    loss.l2_weight = 1
    assert run(loss, y, p)[0] == 12
    assert run(loss.set_params(l1_weight=0), y, p)[0] == 9
    with pytest.raises(UnknownNameError, match=r"\['l3'\].*l1_weight"):
        loss.set_params(l3=1)


def test_ortvalues_of_python_and_c():
    y, p = np.float32([[1], [2]]), np.float32([[2], [4]])
    make = onnxruntime.OrtValue.ortvalue_from_numpy
    value, gradient = SQUARE.loss_gradient("cpu", make(y), make(p))
    assert value.numpy() == 2.5
    c_values = [make(y)._ortvalue, make(p)._ortvalue]
    from onnxruntime.capi._pybind_state import OrtDevice

    cpu = OrtDevice(OrtDevice.cpu(), OrtDevice.default_memory(), 0)
    value, gradient = SQUARE.loss_gradient(cpu, *c_values)
    assert value.numpy() == 2.5
    np.testing.assert_array_equal(gradient.numpy(), [[1], [2]])


@pytest.mark.parametrize("strided", [False, True])
def test_other_dtypes_and_strides(strided):
    y, p = np.arange(8).reshape(4, 2), np.arange(8, dtype=np.float32).reshape(2, 4).T
    y = y[:, ::-1] if strided else y
    np.testing.assert_array_equal(run(SQUARE, y, p)[1], p - y)


@pytest.mark.parametrize(
    ("y", "p", "w", "words"),
    [
        (np.zeros((3, 1)), np.zeros((2, 1)), None, "rows"),
        (np.zeros((2, 3)), np.zeros((2, 2)), None, r"\[2, 3\].*\[2, 2\]"),
        (np.zeros((2, 1)), np.zeros((2, 1)), np.ones(3), "rows"),
        (np.zeros((2, 1)), np.zeros((2, 1)), np.ones((2, 2)), "one weight"),
        (np.zeros((2, 1)), np.zeros((2, 1), dtype=np.int64), None, "floating-point"),
        (np.zeros(()), np.zeros(()), None, "scalar"),
        (np.array(["a", "b"]), np.zeros(2), None, "dtype"),
    ],
)
def test_bad_data_is_refused(y, p, w, words):
    with pytest.raises(InvalidDataError, match=words):
        SquareLearningLoss().loss_gradient("cpu", y, p, w)


def test_integer_prediction_is_refused_at_build_time():
    op = Builder(17)
    p = op.input("label", ir.DataType.INT64, ["N"])
    with pytest.raises(InvalidModelError, match=r"label.*floating-point"):
        SQUARE.build(op, p, p)


def test_static_shapes_that_disagree_are_refused_at_build_time():
    op = Builder(17)
    p, y = op.input("p", ir.DataType.FLOAT, ["N", 2]), op.input("y", ir.DataType.FLOAT, ["N", 3])
    with pytest.raises(InvalidDataError, match=r"3 numbers a row.*'p' has 2"):
        SQUARE.build(op, p, y)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("square_error", SquareLearningLoss),
        ("squared_error", SquareLearningLoss),
        ("square", SquareLearningLoss),
        ("SquareLearningLoss", SquareLearningLoss),
        ("absolute_error", AbsoluteLearningLoss),
        ("absolute", AbsoluteLearningLoss),
        ("elastic_error", ElasticLearningLoss),
        ("elastic", ElasticLearningLoss),
        ("log", NegLogLearningLoss),
        ("neglog", NegLogLearningLoss),
        ("logloss", NegLogLearningLoss),
        ("LOG_LOSS", NegLogLearningLoss),
        ("huber", HuberLearningLoss),
        ("quantile", QuantileLearningLoss),
        ("poisson", PoissonLearningLoss),
        ("binary_crossentropy", BinaryCrossEntropyLearningLoss),
        ("softmax_crossentropy", SoftmaxCrossEntropyLearningLoss),
        ("hinge", HingeLearningLoss),
    ],
)
def test_select(name, cls):
    assert type(BaseLearningLoss.select(name)) is cls


def test_select_takes_instances_classes_and_parameters():
    loss = ElasticLearningLoss()
    assert Loss.select(loss) is loss
    assert Loss.select(ElasticLearningLoss, l1_weight=1).l1_weight == 1
    assert Loss.select("elastic", l1_weight=2).l1_weight == 2
    assert isinstance(Loss.select(fourth), CustomLoss)


@pytest.mark.parametrize("name", ["nothing", 3, None])
def test_unknown_name_lists_those_there_are(name):
    with pytest.raises(UnknownNameError, match=r"square_error.*hinge.*function of the builder"):
        Loss.select(name)


def test_users_register_their_own():
    @register_loss("half_absolute")
    class HalfAbsolute(Loss):
        def terms(self, op, predicted, expected):
            d = predicted - expected
            return op.Abs(d) / 2, op.Sign(d) / 2

    try:
        assert run(Loss.select("half_absolute"), np.zeros(2), np.ones(2))[0] == 1
    finally:
        for name in ("half_absolute", "halfabsolute"):
            del LOSSES._classes[name]


def test_old_import_paths_and_calls():
    from onnxcustom.training import sgd_learning_loss as old

    loss = old.BaseLearningLoss.select("elastic_error", l1_weight=0.1, l2_weight=0.9)
    loss.build_onnx_function(15, "cpu", "weight")
    onnx.checker.check_model(loss.loss_grad_onnx_)
    onnx.checker.check_model(loss.loss_score_onnx_)
    y, p, w = np.float32([[0], [0]]), np.float32([[1], [-2]]), np.float32([[1], [3]])
    value, gradient = loss.loss_gradient("cpu", y, p, weight=w)
    assert value.numpy() == pytest.approx(0.1 + 0.9 + 3 * (0.2 + 3.6))
    np.testing.assert_allclose(gradient.numpy(), [[1.9], [3 * (-0.1 - 3.6)]], rtol=1e-6)
    assert "loss_grad_onnx_" not in pickle.loads(pickle.dumps(loss)).__dict__


def node_types(loss, shape, weighted=False, expected=None, outputs=("loss", "gradient")):
    from onnxcustom.objective.standalone import loss_model

    number = ir.DataType.FLOAT
    target = loss.target(number, len(shape), shape)
    model = loss_model(
        loss,
        (number, list(shape)),
        (target.dtype, expected or target.shape),
        (number, [None]) if weighted else None,
        outputs=outputs,
    )
    return [n.op_type for n in model.graph.node]


def test_few_nodes():
    assert node_types(SQUARE, ("N", 1)) == ["Sub", "ReduceSumSquare", "Mul"]
    assert node_types(QuantileLearningLoss(), ("N", 1)) == ["Sub", "Greater", "Where", "Mul", "ReduceSum"]
    assert len(node_types(BinaryCrossEntropyLearningLoss(), ("N", 1))) == 6
    assert "OneHot" not in node_types(SoftmaxCrossEntropyLearningLoss(), ("N", 10))
    assert node_types(SQUARE, ("N", 1), outputs=["gradient"]) == ["Sub"]
    assert node_types(SQUARE, ("N", 1), expected=[None], outputs=["gradient"]) == ["Reshape", "Sub"]

"""Losses of several targets, on one output and on several: ten steps against PyTorch and NumPy."""

import pickle

import numpy as np
import onnx.parser
import pytest

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.data import stream
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, RowsWarning, UnknownNameError
from onnxcustom.gradient import ENGINES
from onnxcustom.objective import CustomLoss

RNG = np.random.default_rng(0)
MODEL = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
g (double[N, 3] x) => (double[N, 4] box, double[N, 5] kind) {
    box = MatMul(x, w)
    kind = MatMul(x, v)
}""")
W0, V0 = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 5))
MODEL.graph.initializer.extend([onnx.numpy_helper.from_array(W0, "w"), onnx.numpy_helper.from_array(V0, "v")])
X, BOX, KIND = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 4)), RNG.integers(0, 5, 6)
PAIR = [("float64", ["N", 4]), ("int64", ["N"])]
ENGINE = [name for name, engine in ENGINES.items() if engine.unavailable() is None]


def detection(op, predicted, expected):
    """Squares of corners, and the class's surprise."""
    (box, kind), (corners, label) = predicted, expected
    d = box - corners
    chosen = op.GatherElements(op.LogSoftmax(kind, axis=1), op.Unsqueeze(label, [1]), axis=1)
    return op.ReduceSum(d * d, [1], keepdims=0) - op.Squeeze(chosen, [1])


def named(op, predicted, expected):
    return detection(op, predicted, [expected["corners"], expected["label"]])


def weighed(op, predicted, expected):
    """Squares times numbers of the rows, with their gradient."""
    values, factors = expected
    d, factor = predicted - values, op.Unsqueeze(factors, [1])
    return d * d * factor, 2.0 * d * factor


def mixing(op, predicted, expected):
    d = predicted - op.ReduceMean(predicted, [0], keepdims=1) - expected[0]
    return op.ReduceSum(d * d, [1], keepdims=0) * expected[1]


LOSS = CustomLoss(detection, target=PAIR)
BY_NAME = CustomLoss(named, target={"corners": PAIR[0], "label": PAIR[1]})
BOTH = ("box", "kind")


def estimator(loss=LOSS, **options):
    settings = {"optimizer": "sgd", "learning_rate": 0.05, "max_iter": 3, "batch_size": 2, "random_state": 0}
    return OnnxRegressor(MODEL, loss={BOTH: loss}, **{**settings, **options})


@pytest.mark.parametrize("engine", ENGINE)
def test_ten_steps_against_pytorch(engine):
    torch = pytest.importorskip("torch")
    step = TrainingStep(MODEL, {BOTH: LOSS}, "sgd", learning_rate=0.05, engine=engine)
    w, v = torch.tensor(W0, requires_grad=True), torch.tensor(V0, requires_grad=True)
    x, label = torch.tensor(X), torch.tensor(KIND)
    for _ in range(10):
        squares = ((x @ w - torch.tensor(BOX)) ** 2).sum(1)
        loss = (squares + torch.nn.functional.cross_entropy(x @ v, label, reduction="none")).mean()
        loss.backward()
        assert step.run(X, (BOX, KIND)) == pytest.approx(loss.item(), rel=1e-9)
        with torch.no_grad():
            for parameter in (w, v):
                parameter -= 0.05 * parameter.grad
                parameter.grad = None
    for name, parameter in {"w": w, "v": v}.items():
        np.testing.assert_allclose(step.weights()[name], parameter.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_names_and_order_are_the_same():
    steps = [TrainingStep(MODEL, {BOTH: loss}, "adam") for loss in (LOSS, LOSS, BY_NAME, BY_NAME)]
    given = [
        (BOX, KIND),
        {"box.0": BOX, "box.1": KIND},
        [BOX, KIND.tolist()],
        {"label": KIND, "corners": BOX},
    ]
    losses = [[step.run(X, y) for _ in range(3)] for step, y in zip(steps, given, strict=True)]
    assert losses[1:] == losses[:-1]
    assert [spec.name for spec in steps[2].expected] == ["corners", "label"]
    again = pickle.loads(pickle.dumps(steps[2]))
    assert again.run(X, given[2]) == steps[2].run(X, given[2])
    scores = steps[2].scores(X, given[2], np.arange(6.0))
    np.testing.assert_allclose(scores, np.arange(6) * steps[2].scores(X, given[2]), rtol=1e-12)


def test_beside_another_loss_with_a_gradient_of_its_own():
    """Against NumPy; the tuple stands at the output's name."""
    targets = [("float64", ["N", 5]), ("float64", ["N"])]
    losses = {"box": "square_error", "kind": CustomLoss(weighed, target=targets)}
    step = TrainingStep(MODEL, losses, "sgd", learning_rate=0.05, loss_weights={"kind": 0.5})
    values, factors = RNG.normal(size=(6, 5)), RNG.uniform(size=6)
    w, v = W0.copy(), V0.copy()
    for _ in range(10):
        a, b = X @ w - BOX, X @ v - values
        loss = (a * a).sum() / 12 + 0.5 * (b * b * factors[:, None]).sum() / 6
        assert step.run(X, {"box": BOX, "kind": (values, factors)}) == pytest.approx(loss, rel=1e-9)
        w -= 0.05 * X.T @ a / 6
        v -= 0.05 * X.T @ (b * factors[:, None]) / 6
    np.testing.assert_allclose(step.weights()["v"], v, rtol=1e-9)
    heads = step.head_scores(X, {"box": BOX, "kind": (values, factors)})
    np.testing.assert_allclose(heads["kind"], ((X @ v - values) ** 2 * factors[:, None]).sum(1), rtol=1e-9)


def test_fit_of_arrays_streams_and_frames(tmp_path):
    options = {"shuffle": False, "X_val": X, "y_val": (BOX, KIND)}
    data = {"X_val": options.pop("X_val"), "y_val": options.pop("y_val")}
    fitted = estimator(**options).fit(X, (BOX, KIND), **data)
    parts = [slice(0, 4), slice(4, 6)]
    blocks = stream([(X[p], {"box.0": BOX[p], "box.1": KIND[p]}) for p in parts])
    streamed = estimator(**options).fit(blocks, X_val=blocks)
    assert streamed.history_["loss"] == fitted.history_["loss"]
    assert streamed.history_["val_loss"] == pytest.approx(fitted.history_["val_loss"], rel=1e-12)
    assert fitted.score(X, [BOX, KIND]) == pytest.approx(-fitted.history_["val_loss"][-1], rel=1e-12)
    pandas = pytest.importorskip("pandas")
    columns = {**{f"x{i}": X[:, i] for i in range(3)}, **{f"b{i}": BOX[:, i] for i in range(4)}, "k": KIND}
    target = {"box.0": [f"b{i}" for i in range(4)], "box.1": "k"}
    frame = stream(pandas.DataFrame(columns), target=target)
    assert estimator(**options).fit(frame).history_["loss"] == fitted.history_["loss"]
    held = estimator(validation_fraction=0.34).fit(X, (BOX, KIND))
    assert len(held.history_["val_loss"]) == 3
    estimator(checkpoint_dir=tmp_path).fit(X, (BOX, KIND))
    resumed = estimator(checkpoint_dir=tmp_path, max_iter=5).fit(X, (BOX, KIND))
    assert resumed.history_["loss"] == estimator(max_iter=5).fit(X, (BOX, KIND)).history_["loss"]


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (BOX, InvalidDataError, "2 targets"),
        ((BOX, KIND, KIND), InvalidDataError, "y holds 3"),
        ((BOX, KIND[:4]), InvalidDataError, "'box.1' has 4 rows"),
        ((BOX[:, :3], KIND), InvalidDataError, "wants 4 columns"),
        ((BOX, KIND + 0.5), InvalidDataError, "int64"),
        ({"corners": BOX, "box.1": KIND}, UnknownNameError, "box.0"),
    ],
)
def test_what_does_not_fit(y, error, message):
    with pytest.raises(error, match=message):
        estimator().fit(X, y)


def test_what_cannot_be_said():
    for target in ([], {}, [("int64",)], {"a": 3}, {1: ("int64", ["N"])}):
        with pytest.raises(InvalidParameterError, match="target must"):
            TrainingStep(MODEL, {"box": CustomLoss(weighed, target=target)})
    loss = CustomLoss(weighed, target={"a": PAIR[0], "b": PAIR[1]})
    with pytest.raises(InvalidParameterError, match="called 'a'"):
        TrainingStep(MODEL, {"box": loss, "kind": loss})
    with pytest.raises(InvalidParameterError, match="several targets"):
        LOSS.loss_gradient("cpu", BOX, BOX)
    with pytest.raises(InvalidParameterError, match="OnnxRegressor"):
        OnnxClassifier(MODEL, loss={BOTH: LOSS}).fit(X, (BOX, KIND))
    with pytest.raises(InvalidDataError, match="dict by name"):
        estimator().fit(stream([(X, (BOX, KIND))]))


def test_a_loss_that_mixes_rows_says_so():
    loss = CustomLoss(mixing, target=[("float64", ["N", 4]), ("float64", ["N"])])
    model = OnnxRegressor(MODEL, loss={"box": loss}, max_iter=1, batch_size=3)
    with pytest.warns(RowsWarning, match="mixes rows"):
        model.fit(X, (BOX, np.ones(6)))

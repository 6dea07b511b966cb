"""What a step is divided by: labels that count, on any axis, and what means over epochs are made of."""

from __future__ import annotations

import io
import itertools
import pickle

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from scipy.special import log_softmax

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.data import stream
from onnxcustom.exceptions import InvalidDataError, InvalidModelError
from onnxcustom.gradient import ENGINES
from onnxcustom.graph import to_proto
from onnxcustom.objective import FocalLearningLoss, NLLLearningLoss, SoftmaxCrossEntropyLearningLoss
from onnxcustom.optim import create
from onnxcustom.training.callbacks import Callback, Checkpoint

Entropy = SoftmaxCrossEntropyLearningLoss
WEIGHTS = [0.5, 2.0, 0.25, 1.0]


def tokens(dims="N, L", tail="Identity(Z)", dtype="double", classes=4, opset=17):
    """Four numbers a token times a weight; classes last."""
    weight = np.random.default_rng(0).normal(size=(4, classes)) * 0.3
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> '
        f"m ({dtype}[{dims}, 4] X) => ({dtype}[{dims}, {classes}] Y) {{ Z = MatMul(X, W) Y = {tail} }}"
    )
    kind = {"double": np.float64, "float": np.float32, "float16": np.float16}[dtype]
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(kind), "W"))
    return model


def pixels(dims="H, V"):
    """The same for every pixel; classes on axis 1."""
    model = tokens()
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"m (double[N, 4, {dims}] X) => (double[N, 4, {dims}] Y) {{ T = Transpose <perm = [0, 2, 3, 1]> (X) "
        "Z = MatMul(T, W) Y = Transpose <perm = [0, 3, 1, 2]> (Z) }"
    )
    made.graph.initializer.extend(model.graph.initializer)
    return made


def data(shape, ignored=-100, seed=1):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, size=shape)
    y[rng.uniform(size=shape) < 0.4] = ignored
    return rng.normal(size=(*shape, 4)), y


def torch_steps(loss, X, y, w, steps, axis, options):
    """Objective and weight of steps of SGD by PyTorch, divided by what the contract says."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    weight = torch.tensor(np.random.default_rng(0).normal(size=(4, 4)) * 0.3, requires_grad=True)
    X, y = torch.tensor(X), torch.tensor(y)
    by_row = None if w is None else torch.tensor(w).reshape(-1, *[1] * (y.ndim - 1))
    seen = []
    for _ in range(steps):
        z = X @ weight if axis == -1 else torch.movedim(torch.movedim(X, 1, -1) @ weight, -1, 1)
        z = torch.movedim(z, -1, 1) if axis == -1 and z.ndim > 2 else z
        if loss is Entropy:
            losses = f.cross_entropy(z, y, reduction="none", **options)
        else:
            losses = f.nll_loss(z.log_softmax(1), y, reduction="none", **options)
        losses = losses if by_row is None else losses * by_row
        objective = losses.sum() / max(1, (y != options.get("ignore_index", -100)).sum().item())
        seen.append(objective.item())
        (g,) = torch.autograd.grad(objective, weight)
        weight = (weight - 0.5 * g).detach().requires_grad_()
    return seen, weight.detach().numpy()


CASES = [
    # dimensions, axis of the classes, shape of the labels, options
    ("N", -1, (6,), {}),
    ("N", -1, (6,), {"class_weight": WEIGHTS, "label_smoothing": 0.2}),
    ("N, L", -1, (3, 5), {"class_weight": WEIGHTS}),
    ("N, 5", -1, (3, 5), {"ignore_index": 3, "label_smoothing": 0.1}),
    ("H, V", 1, (3, 2, 5), {"class_weight": WEIGHTS, "label_smoothing": 0.3}),
    ("2, 5", 1, (3, 2, 5), {}),
]


@pytest.mark.parametrize("engine", ["onnx", "ort"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dims", "axis", "shape", "options"), CASES)
def test_ten_steps_are_those_of_torch(dims, axis, shape, options, weighted, engine):
    X, y = data(shape, options.get("ignore_index", -100))
    X = X if axis == -1 else np.moveaxis(X, -1, 1).copy()
    w = np.linspace(0.5, 2, len(y)) if weighted else None
    theirs = {"weight" if k == "class_weight" else k: v for k, v in options.items()}
    if "weight" in theirs:
        torch = pytest.importorskip("torch")
        theirs["weight"] = torch.tensor(theirs["weight"], dtype=torch.float64)
    seen, weight = torch_steps(Entropy, X, y, w, 10, axis, theirs)
    model = tokens(dims) if axis == -1 else pixels(dims)
    if ENGINES[engine].unavailable() is not None:
        pytest.skip(ENGINES[engine].unavailable())
    step = TrainingStep(model, Entropy(class_axis=axis, **options), engine=engine, learning_rate=0.5)
    ours = [step.run(X, y, w) for _ in range(10)]
    np.testing.assert_allclose(ours, seen, rtol=1e-9)
    np.testing.assert_allclose(step.weights()["W"], weight, rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("dims", "axis", "shape"), [("N", -1, (6,)), ("N, L", -1, (3, 5)), ("H, V", 1, (3, 2, 5))]
)
def test_probabilities_in_place_of_labels(dims, axis, shape, weighted):
    """As PyTorch's probabilities, smoothed and weighed; labels may come next."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    X, q = rng.normal(size=(*shape, 4)), rng.dirichlet(np.ones(4), size=shape)
    w = np.linspace(0.5, 2, len(X)) if weighted else None
    loss = Entropy(class_axis=axis, class_weight=WEIGHTS, label_smoothing=0.2)
    step = TrainingStep(tokens(dims) if axis == -1 else pixels(dims), loss, learning_rate=0.5)
    given = (X, q) if axis == -1 else (np.moveaxis(X, -1, 1).copy(), np.moveaxis(q, -1, 1).copy())
    weight = torch.tensor(np.random.default_rng(0).normal(size=(4, 4)) * 0.3, requires_grad=True)
    options = {
        "weight": torch.tensor(WEIGHTS, dtype=torch.float64),
        "label_smoothing": 0.2,
        "reduction": "none",
    }
    by_row = torch.ones(len(X)) if w is None else torch.tensor(w)
    for _ in range(10):
        z = torch.movedim(torch.tensor(X) @ weight, -1, 1)
        losses = torch.nn.functional.cross_entropy(z, torch.movedim(torch.tensor(q), -1, 1), **options)
        objective = (losses.reshape(len(X), -1).sum(1) * by_row).sum() / losses.numel()
        assert step.run(*given, w) == pytest.approx(objective.item(), rel=1e-9)
        (g,) = torch.autograd.grad(objective, weight)
        weight = (weight - 0.5 * g).detach().requires_grad_()
    np.testing.assert_allclose(step.weights()["W"], weight.detach().numpy(), rtol=1e-9)
    hard = rng.integers(0, 4, size=shape)
    onehot = np.eye(4)[hard]
    scores = step.scores(given[0], onehot if axis == -1 else np.moveaxis(onehot, -1, 1), w)
    np.testing.assert_allclose(step.scores(given[0], hard, w), scores, rtol=1e-9)


def test_nll_and_focal_count_as_cross_entropy_does():
    X, y = data((3, 5))
    ends = []
    for loss, tail in [
        (Entropy(class_axis=2, class_weight=WEIGHTS), "Identity(Z)"),
        (NLLLearningLoss(class_weight=WEIGHTS), "LogSoftmax<axis=-1>(Z)"),
        (FocalLearningLoss(0, WEIGHTS, class_axis=-1), "Identity(Z)"),
    ]:
        step = TrainingStep(tokens(tail=tail), loss, learning_rate=0.5)
        losses = [step.run(X, y) for _ in range(3)]
        assert step.head_units == {"Y": (y != -100).sum()}
        ends.append((losses, step.weights()["W"]))
    for losses, weight in ends[1:]:
        np.testing.assert_allclose(losses, ends[0][0], rtol=1e-9)
        np.testing.assert_allclose(weight, ends[0][1], rtol=1e-9)


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_where_nothing_counts(passes, shape):
    """Loss and gradient are 0: plain SGD stays where it is, and a penalty goes on."""
    X, y = data(shape)
    model = tokens(", ".join("NL"[: len(shape)]))
    step = TrainingStep(model, Entropy(class_axis=-1), passes=passes)
    before = step.weights()["W"]
    assert step.run(np.full_like(X, 1e200), np.full_like(y, -100)) == 0
    np.testing.assert_array_equal(step.weights()["W"], before)
    assert not step.scores(X, np.full_like(y, -100)).any()
    decayed = TrainingStep(model, Entropy(class_axis=-1), penalty="l2", passes=passes)
    assert decayed.run(X, np.full_like(y, -100)) == pytest.approx((before**2).sum() / 2)
    assert (abs(decayed.weights()["W"]) < abs(before)).all()


def test_scores_are_shares_of_the_objective():
    X, y = data((5, 3))
    y[2] = -100
    step = TrainingStep(tokens(), Entropy(class_axis=-1))
    scores = step.scores(X, y)
    assert scores[2] == 0
    assert scores.mean() == pytest.approx(step.run(X, y), rel=1e-12)
    fixed = tokens("1, L")
    one = TrainingStep(fixed, Entropy(class_axis=-1))
    np.testing.assert_allclose(one.scores(X, y), scores, rtol=1e-12)  # five runs of one row


def test_exported_steps_count_by_themselves():
    X, y = data((5, 3))
    step = TrainingStep(tokens(dtype="float"), Entropy(class_axis=-1), learning_rate=0.5)
    graph = step.recipe.compose(False, lean=False)
    assert not graph.counts
    session = ort.InferenceSession(to_proto(graph.model).SerializeToString())
    feeds = {"X": X.astype(np.float32), graph.expected["Y"]: y, "W": step.weights()["W"]}
    feeds |= {graph.learning_rate: np.array(0.5, np.float32), graph.step: np.array(1, np.float32)}
    known = {i.name for i in session.get_inputs()}
    names = [graph.loss, graph.weights["W"]]
    loss, new = session.run(names, {k: v for k, v in feeds.items() if k in known})
    assert step.run(X.astype(np.float32), y) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(step.weights()["W"], new, rtol=1e-6)


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("dtype", ["float16", "float"])
def test_precisions_and_opsets(dtype, opset):
    kind = {"float16": np.float16, "float": np.float32}[dtype]
    X, y = data((4, 3))
    exact = TrainingStep(tokens(), Entropy(class_axis=-1, class_weight=WEIGHTS), learning_rate=0.5)
    step = TrainingStep(tokens(dtype=dtype, opset=opset), exact.targets[0].loss, learning_rate=0.5)
    for _ in range(3):
        assert step.run(X.astype(kind), y) == pytest.approx(exact.run(X, y), rel=1e-2)


def test_accumulated_batches_are_one_batch():
    X, y = data((8, 3))
    y[:2] = -100  # the first window begins with nothing
    loss = Entropy(class_axis=-1, class_weight=WEIGHTS)
    parts = TrainingStep(tokens(), loss, optimizer=create("sgd", accumulate=4, learning_rate=0.5))
    whole = TrainingStep(tokens(), loss, optimizer=create("sgd", learning_rate=0.5))
    for _ in range(3):
        whole.run(X, y)
        for i in range(0, 8, 2):
            parts.run(X[i : i + 2], y[i : i + 2])
        np.testing.assert_allclose(parts.weights()["W"], whole.weights()["W"], rtol=1e-12)
    assert parts.iteration == 3


# -- means over epochs -----------------------------------------------------------------------------------


def mean_loss(weight, X, y):
    """The mean over all labels that count."""
    log_p = log_softmax(X @ weight, axis=-1)
    picked = np.take_along_axis(log_p, np.where(y < 0, 0, y)[..., None], axis=-1)[..., 0]
    return -picked[y != -100].mean()


@pytest.mark.parametrize("kind", [OnnxClassifier, OnnxRegressor])
@pytest.mark.parametrize("streamed", [False, True])
def test_history_weighs_by_labels(kind, streamed):
    X, y = data((9, 3))
    X_val, y_val = data((7, 3), seed=2)
    y[3:6], y_val[:2] = -100, -100
    X, X_val = X.astype(np.float32), X_val.astype(np.float32)
    given = {"loss": Entropy(class_axis=-1), "learning_rate": 0.0, "max_iter": 2, "batch_size": 2}
    net = kind(tokens(dtype="float"), random_state=0, **given)
    if streamed:
        source = stream((X, y), block_rows=4), None
        held = {"X_val": stream((X_val, y_val), block_rows=2)}
    else:
        source, held = (X, y), {"X_val": X_val, "y_val": y_val}
    more = {"classes": range(4)} if kind is OnnxClassifier else {}
    net.partial_fit(*source, epochs=2, **held, **more)
    weight = net.weights_["W"]
    np.testing.assert_allclose(net.history_["loss"], mean_loss(weight, X, y), rtol=1e-5)
    np.testing.assert_allclose(net.history_["val_loss"], mean_loss(weight, X_val, y_val), rtol=1e-5)


def two_heads(dtype="double"):
    """Classes of tokens, and a number for each row."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"m ({dtype}[N, L, 4] X, {dtype}[N, 4] V) => ({dtype}[N, L, 4] words, {dtype}[N, 1] size) "
        "{ words = MatMul(X, W) s = MatMul(V, W) size = ReduceSum <keepdims = 1> (s, ax) }"
    )
    kind = np.float64 if dtype == "double" else np.float32
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(kind) * kind(0.3)
    model.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "ax"))
    return model


HEADS = {"words": Entropy(class_axis=-1), "size": "squared_error"}
FACTORS = {"words": 2.0, "size": 0.5}


def heads_data(rows, seed=3):
    X, y = data((rows, 3), seed=seed)
    V = np.random.default_rng(seed).normal(size=(rows, 4))
    return {"X": X, "V": V}, {"words": y, "size": V[:, :1]}


def heads_loss(weight, X, y):
    size = ((X["V"] @ weight).sum(axis=1) - y["size"][:, 0]) ** 2 / 2
    return mean_loss(weight, X["X"], y["words"]), size.mean()


@pytest.mark.parametrize("penalty", [None, "l2"])
def test_history_of_several_outputs(penalty):
    X, y = heads_data(9)
    X_val, y_val = heads_data(5, seed=4)
    y["words"][4:7] = -100
    net = OnnxRegressor(
        two_heads(),
        loss=HEADS,
        loss_weights=FACTORS,
        penalty=penalty,
        learning_rate=0.0,
        max_iter=1,
        batch_size=2,
    )
    net.fit(X, y, X_val=X_val, y_val=y_val)
    weight = net.weights_["W"]
    extra = (weight**2).sum() / 2 if penalty else 0
    for before, wanted in [("", heads_loss(weight, X, y)), ("val_", heads_loss(weight, X_val, y_val))]:
        history = net.history_
        np.testing.assert_allclose(history[f"{before}words_loss"], wanted[0])
        np.testing.assert_allclose(history[f"{before}size_loss"], wanted[1])
        np.testing.assert_allclose(history[f"{before}loss"], 2 * wanted[0] + 0.5 * wanted[1] + extra)
    assert net.score(X, y) == pytest.approx(
        -(2 * heads_loss(weight, X, y)[0] + 0.5 * heads_loss(weight, X, y)[1])
    )


# -- classifiers -----------------------------------------------------------------------------------------


def test_a_classifier_does_not_score_what_it_ignores():
    X, y = data((6, 3))
    net = OnnxClassifier(
        tokens(dtype="float"), loss=Entropy(class_axis=-1), learning_rate=0.5, max_iter=20, random_state=0
    )
    net.fit(X.astype(np.float32), y)
    assert net.classes_.tolist() == [0, 1, 2, 3]
    predicted = net.predict(X.astype(np.float32))
    kept = y != -100
    assert net.score(X.astype(np.float32), y) == pytest.approx((predicted == y)[kept].mean())
    flat = OnnxClassifier(tokens("N", dtype="float"), loss="cross_entropy", max_iter=20, random_state=0)
    rows, labels = X.reshape(-1, 4).astype(np.float32), y.reshape(-1)
    flat.fit(rows, labels)
    kept = labels != -100
    assert flat.score(rows, labels) == pytest.approx((flat.predict(rows) == labels)[kept].mean())
    names = np.array([["a", "b", "c", "d"][i] for i in labels[kept]])
    assert OnnxClassifier(tokens("N", dtype="float")).fit(rows[kept], names).classes_.tolist() == [*"abcd"]


def test_balanced_weights_leave_out_what_is_ignored():
    X, y = data((6, 3))
    X = X.astype(np.float32)
    net = OnnxClassifier(
        tokens(dtype="float"), loss=Entropy(class_axis=-1), class_weight="balanced", max_iter=1
    ).fit(X, y)
    labels, counts = np.unique(y[y != -100], return_counts=True)
    factors = dict(zip(labels.tolist(), (counts.sum() / (4 * counts)).tolist(), strict=True))
    w = np.vectorize(lambda label: factors.get(label, 1.0))(y)
    step = TrainingStep(tokens(dtype="float"), Entropy(class_axis=-1))
    assert net.history_["loss"][0] == pytest.approx(step.run(X, y, w.astype(np.float32)), rel=1e-5)


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "tail", "words"),
    [
        (
            Entropy(class_axis=1),
            "Softmax<axis=-1>(Z)",
            "class_axis=1, but the model ends in a Softmax over axis 2",
        ),
        (Entropy(class_axis=0), "Identity(Z)", "no axis of classes .* with the rows along axis 0"),
        (Entropy(class_axis=3), "Identity(Z)", "no axis of classes"),
    ],
)
def test_axes_that_are_none(loss, tail, words):
    with pytest.raises(InvalidModelError, match=words):
        TrainingStep(tokens(tail=tail), loss)


def test_labels_that_are_none():
    X, y = data((3, 5))
    step = TrainingStep(tokens(), Entropy(class_axis=-1, ignore_index=None))
    with pytest.raises(InvalidDataError, match="go from -100"):
        step.run(X, y)
    step = TrainingStep(tokens(), Entropy(class_axis=-1, class_weight=[1, 2]))
    with pytest.raises(InvalidDataError, match="2 weights, but there are 4 classes"):
        step.run(X, y)


def test_pickles_of_losses_that_ignored_nothing():
    loss = Entropy()
    state = {"from_logits": True, "eps": None}
    vars(loss).clear()
    vars(loss).update(state)
    old = pickle.load(io.BytesIO(pickle.dumps(loss)))
    assert not old.ignores
    assert old.get_params() == {**Entropy(ignore_index=None).get_params()}


# -- accumulation of outputs that count differently ------------------------------------------------------


def uneven(rows=12):
    X, y = heads_data(rows)
    y["words"][1:3] = -100
    y["words"][rows - 1, 1:] = -100
    return X, y


def part(values, rows):
    return {name: array[rows] for name, array in values.items()}


def heads_step(accumulate=1, **options):
    rule = create("adam", learning_rate=0.1, accumulate=accumulate, **options)
    return TrainingStep(two_heads(), HEADS, rule, loss_weights=FACTORS, penalty="l2")


@pytest.mark.parametrize("cuts", [[0, 4, 8, 12], [0, 1, 3, 12], [0, 3, 12]])
def test_announced_batches_are_one_batch(cuts):
    X, y = uneven()
    whole, parts = heads_step(), heads_step(3)
    pieces = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    for _ in range(5):
        whole.run(X, y)
        parts.announce(*(part(y, rows) for rows in pieces))
        for rows in pieces:
            alone = TrainingStep(two_heads(), HEADS, loss_weights=FACTORS, penalty="l2")
            alone.set_weights(parts.weights())
            wanted = alone.run(part(X, rows), part(y, rows))
            parts = pickle.loads(pickle.dumps(parts))
            assert parts.run(part(X, rows), part(y, rows)) == pytest.approx(wanted)
            assert parts.head_losses == pytest.approx(alone.head_losses)
        if len(pieces) < 3:
            assert parts.apply_accumulated()
        np.testing.assert_allclose(parts.weights()["W"], whole.weights()["W"], rtol=1e-9)
    assert parts.iteration == 5


def test_what_was_not_announced():
    X, y = uneven()
    step = heads_step(3)
    step.run(part(X, slice(4)), part(y, slice(4)))
    with pytest.raises(InvalidDataError, match=r"Say with announce\(\) beforehand"):
        step.run(part(X, slice(4, 8)), part(y, slice(4, 8)))
    with pytest.raises(InvalidDataError, match="1 batches are accumulated already"):
        step.announce(y)
    step.forget_accumulated()
    with pytest.raises(InvalidDataError, match="4 batches are announced, and an update is of 1 to 3"):
        step.announce(y, y, y, y)
    step.announce(part(y, slice(4)), part(y, slice(4, 8)))
    step.run(part(X, slice(4)), part(y, slice(4)))
    with pytest.raises(InvalidDataError, match="Of 2 batches that were announced 1 were given"):
        step.apply_accumulated()
    with pytest.raises(InvalidDataError, match="give the batches that were announced"):
        step.run(part(X, slice(7, 12)), part(y, slice(7, 12)))
    step.run(part(X, slice(4, 8)), part(y, slice(4, 8)))
    with pytest.raises(InvalidDataError, match="that were announced are through"):
        step.run(part(X, slice(4)), part(y, slice(4)))
    assert step.apply_accumulated()
    assert step.iteration == 1


def fitted(X, y, batch_size, accumulate, epochs=3, **options):
    net = OnnxRegressor(
        two_heads(),
        loss=HEADS,
        loss_weights=FACTORS,
        optimizer=create("adam", learning_rate=0.1, accumulate=accumulate),
        batch_size=batch_size,
        max_iter=epochs,
        shuffle=False,
        **options,
    )
    return net.fit(X, y)


@pytest.mark.parametrize("rows", [12, 11])
def test_fit_announces(rows):
    """Four batches of three are one of twelve; the last update of an epoch is of what is left."""
    X, y = uneven(rows)
    one, several = fitted(X, y, rows, 1), fitted(X, y, 3, 5)
    np.testing.assert_allclose(several.weights_["W"], one.weights_["W"], rtol=1e-9)
    np.testing.assert_allclose(several.history_["loss"], one.history_["loss"], rtol=1e-9)
    assert several.step_.iteration == one.step_.iteration == 3


def test_streams_announce():
    X, y = uneven()
    one = fitted(X, y, 12, 1)
    rows = stream([({n: X[n][i : i + 4] for n in X}, {n: y[n][i : i + 4] for n in y}) for i in (0, 4, 8)])
    net = OnnxRegressor(
        two_heads(),
        loss=HEADS,
        loss_weights=FACTORS,
        optimizer=create("adam", learning_rate=0.1, accumulate=4),
        batch_size=3,
        max_iter=3,
        shuffle=False,
    ).fit(rows)
    np.testing.assert_allclose(net.weights_["W"], one.weights_["W"], rtol=1e-9)


def test_fit_goes_on_within_a_window(tmp_path):
    X, y = uneven()

    class Stop(Callback):
        def on_batch_end(self, trainer, batch, loss):
            if trainer.n_iter_ == 1 and trainer.run.batches == 2:
                trainer.run.stop("enough", final=False)

    through = fitted(X, y, 2, 4)
    with pytest.warns(UserWarning, match="before the last 2 of the batches of an update"):
        fitted(X, y, 2, 4, callbacks=[Stop(), Checkpoint(tmp_path)])
    resumed = fitted(X, y, 2, 4, callbacks=[Checkpoint(tmp_path)])
    np.testing.assert_array_equal(resumed.weights_["W"], through.weights_["W"])
    assert resumed.history_["loss"] == through.history_["loss"]

"""Metrics by name: in training, on streams, from the command line, in a grid search."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from sklearn.model_selection import GridSearchCV

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.data import stream
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, UnknownNameError
from onnxcustom.metrics import (
    Metric,
    beam_search,
    best_path,
    character_error_rate,
    get_scorer,
    mean_iou,
    recall_at_k,
    register_metric,
    scorer_names,
    token_accuracy,
    word_error_rate,
)
from onnxcustom.metrics import scorers as registry
from onnxcustom.optim import ReduceOnPlateau
from onnxcustom.training.callbacks import EarlyStopping, LearningRate, Score

FRAMES = """<ir_version: 8, opset_import: ["": 17]>
m ({inputs} x) => ({outputs} y) <float[3, 4] w, float[4] b = {{0, 0, 0, 0}}> {{
    z = MatMul(x, w)
    y = Add(z, b)
}}"""
PIXELS = """<ir_version: 8, opset_import: ["": 17]>
m (float[N, 3, H, W] x) => (float[N, 4, H, W] y) <float[4, 3, 1, 1] w> {
    z = Conv(x, w)
    y = Softmax<axis = 1>(z)
}"""
EMBED = """<ir_version: 8, opset_import: ["": 17]>
m (float[N, 3] x) => (float[N, 4] e, float[N, 4] other) <float[3, 4] w> {
    e = MatMul(x, w)
    other = Tanh(e)
}"""
rng = np.random.default_rng(0)


def model(text: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(text)
    for info in proto.graph.value_info:  # weights, whose values do not matter
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        array = np.random.default_rng(7).normal(size=dims).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del proto.graph.value_info[:]
    return proto


def run(proto: onnx.ModelProto, X: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def frames(time_first: bool) -> onnx.ModelProto:
    dims = "T, N" if time_first else "N, T"
    return model(FRAMES.format(inputs=f"float[{dims}, 3]", outputs=f"float[{dims}, 4]"))


def axes(time_first: bool) -> dict[str, int] | None:
    return {"x": 1, "y": 1} if time_first else None


X = rng.normal(size=(9, 6, 3)).astype(np.float32)
SAID = np.full((9, 3), -1)
for row in SAID:
    row[: rng.integers(1, 4)] = 1
    row[row > 0] = rng.integers(1, 4, (row > 0).sum())
WEIGHTS = rng.uniform(0.5, 2, 9)


@pytest.mark.parametrize("time_first", [False, True])
def test_error_rates_while_training(time_first: bool) -> None:
    data = np.moveaxis(X, 0, 1) if time_first else X
    names = ["character_error_rate", "wer:space=3,beam=20", "neg_cer"]
    scores = [Score(name, on="train") for name in names]
    net = OnnxRegressor(frames(time_first), loss="ctc", max_iter=2, random_state=0, learning_rate=0.1)
    net.set_params(callbacks=scores, batch_axis=axes(time_first))
    net.fit(data, SAID)
    logits = run(net.get_trained_onnx(), data)
    logits = np.moveaxis(logits, 1, 0) if time_first else logits
    path, beam = best_path(logits), beam_search(logits, 20)
    assert net.history_[names[0]][-1] == character_error_rate(SAID, path) > 0
    assert net.history_[names[1]][-1] == word_error_rate(SAID, beam, 3) > 0
    assert net.history_[names[2]][-1] == -net.history_[names[0]][-1]
    weighed = get_scorer("cer")(net, data, SAID, WEIGHTS)
    assert weighed == pytest.approx(character_error_rate(SAID, path, WEIGHTS))
    net.fit(data, SAID, sample_weight=WEIGHTS)
    logits = run(net.get_trained_onnx(), data)
    path = best_path(np.moveaxis(logits, 1, 0) if time_first else logits)
    assert net.history_[names[0]][-1] == pytest.approx(character_error_rate(SAID, path, WEIGHTS))


@pytest.mark.parametrize("time_first", [False, True])
def test_error_rates_on_a_stream(time_first: bool) -> None:
    data = np.moveaxis(X, 0, 1) if time_first else X
    net = OnnxRegressor(frames(time_first), loss="ctc", max_iter=1, random_state=0, shuffle=False)
    net.set_params(callbacks=Score("cer", on="train"), batch_axis=axes(time_first))
    net.fit(stream((data, SAID), block_rows=4))
    logits = run(net.get_trained_onnx(), data)
    path = best_path(np.moveaxis(logits, 1, 0) if time_first else logits)
    assert net.history_["cer"] == [character_error_rate(SAID, path)]


@pytest.mark.parametrize("layout", ["NLC", "LNC", "NCHW"])
def test_labels_of_tokens_and_pixels(layout: str) -> None:
    if layout == "NCHW":
        proto, data, axis = model(PIXELS), rng.normal(size=(5, 3, 4, 4)).astype(np.float32), 1
    else:
        proto, data, axis = frames(layout == "LNC"), np.moveaxis(X[:5], 0, int(layout == "LNC")), -1
    y = rng.integers(0, 4, np.delete(data.shape, axis))
    rows = 1 if layout == "LNC" else 0
    options = {"max_iter": 1, "random_state": 0, "batch_axis": axes(layout == "LNC")}
    reg = OnnxRegressor(proto, loss="cross_entropy", **options).fit(data, y)
    clf = OnnxClassifier(proto, **options).fit(data, y)
    ignored = np.where(rng.random(y.shape) < 0.3, -100, y)
    weights = WEIGHTS[:5]
    spread = np.broadcast_to(weights.reshape([-1 if a == rows else 1 for a in range(y.ndim)]), y.shape)
    for net in (reg, clf):
        labels = run(net.get_trained_onnx(), data).argmax(axis=axis)
        assert get_scorer("token_accuracy")(net, data, ignored) == token_accuracy(ignored, labels)
        assert get_scorer("mean_iou")(net, data, ignored) == mean_iou(ignored, labels)
        found = get_scorer("token_accuracy:ignore_index=2")(net, data, y, weights)
        assert found == pytest.approx(token_accuracy(y, labels, 2, spread))
    clf.set_params(callbacks=[Score("miou", on="train"), EarlyStopping("miou")]).fit(data, y)
    labels = run(clf.get_trained_onnx(), data).argmax(axis=axis)
    assert clf.history_["miou"] == [mean_iou(y, labels)]


def test_of_a_training_step() -> None:
    """It predicts all outputs; that which is trained is meant."""
    data, pairs = rng.normal(size=(20, 3)).astype(np.float32), np.arange(20) // 2
    step = TrainingStep(model(EMBED), {"e": "contrastive"})
    assert get_scorer("recall:k=3")(step, data, pairs) == recall_at_k(run(model(EMBED), data), pairs, 3)
    other = recall_at_k(np.tanh(run(model(EMBED), data)), pairs, 3)
    assert get_scorer("recall:k=3,output=other")(step, data, pairs) == other


def test_labels_that_training_ignores() -> None:
    y = rng.integers(0, 4, (9, 6))
    ignored = np.where(rng.random(y.shape) < 0.3, -100, y)
    callbacks = [Score("token_accuracy", on="train"), Score("mean_iou", on="train")]
    net = OnnxClassifier(frames(False), loss="cross_entropy", max_iter=1, random_state=0, callbacks=callbacks)
    net.fit(X, ignored)
    labels = run(net.get_trained_onnx(), X).argmax(axis=2)
    assert net.history_["token_accuracy"] == [token_accuracy(ignored, labels)]
    assert net.history_["mean_iou"] == [mean_iou(ignored, labels)]


def test_recall_of_embeddings() -> None:
    data, pairs = rng.normal(size=(20, 3)).astype(np.float32), np.arange(20) // 2
    net = OnnxRegressor(model(EMBED), loss={"e": "contrastive"}, max_iter=1, random_state=0, batch_size=20)
    net.set_params(callbacks=[Score("recall:k=3", on="train"), Score("recall_at_k", on="train")])
    net.fit(data, pairs)
    made = run(net.get_trained_onnx(), data)
    assert net.history_["recall:k=3"] == [recall_at_k(made, pairs, 3)]
    assert net.history_["recall_at_k"] == [recall_at_k(made, pairs)]
    both = OnnxRegressor(model(EMBED), loss=dict.fromkeys(("e", "other"), "contrastive"), max_iter=1)
    both.fit(data, dict.fromkeys(("e", "other"), pairs))
    scorer = get_scorer("recall:k=2,output=e")
    assert scorer(both, data, pairs) == scorer(both, data, {"e": pairs, "other": pairs})
    with pytest.raises(UnknownNameError, match=r"output= one of \['e', 'other'\]"):
        get_scorer("recall:k=2")(both, data, pairs)
    rows = stream((data, {"e": pairs, "other": pairs}))
    assert both.score_with(scorer, rows, None) == scorer(both, data, pairs)


def test_less_of_an_error_is_better() -> None:
    """Early stopping knows it, whatever the measure is called; schedules are told."""
    values = iter([0.5, 0.25, 0.75, 0.5])

    class Told(Metric):
        greater_is_better = False

        def value(self, predicted, y, weights):
            return next(values)

    stop = EarlyStopping("mine", patience=1)
    net = OnnxRegressor(frames(False), loss="ctc", max_iter=4, random_state=0)
    net.set_params(callbacks=[Score(Told(), on="train", name="mine"), stop]).fit(X, SAID)
    (kept,) = [c for c in net.callbacks_ if isinstance(c, EarlyStopping)]
    assert (kept.best_, kept.best_epoch_, net.n_iter_) == (0.25, 2, 4)
    rate = LearningRate(ReduceOnPlateau(0.1), "cer")
    net.set_params(callbacks=[Score("cer", on="train"), rate]).fit(X, SAID)
    rate = LearningRate(ReduceOnPlateau(0.1), "neg_cer")
    with pytest.raises(InvalidDataError, match="more is better"):
        net.set_params(callbacks=[Score("neg_cer", on="train"), rate]).fit(X, SAID)


def test_in_a_grid_search() -> None:
    search = GridSearchCV(
        OnnxRegressor(frames(False), loss="ctc", max_iter=1, random_state=0),
        {"learning_rate": [1e-6, 0.1]},
        scoring=get_scorer("neg_character_error_rate"),
        cv=2,
    ).fit(X, SAID)
    scores = search.cv_results_["mean_test_score"]
    assert (scores <= 0).all()
    assert search.best_score_ == scores.max()


def test_names() -> None:
    assert {"character_error_rate", "wer", "mean_iou", "recall_at_k", "accuracy"} <= set(scorer_names())
    assert get_scorer("recall")._score_func.__name__ == "recall_score"  # scikit-learn's
    assert (
        repr(get_scorer("neg_WER:space=1")) == "minus WordErrorRate(space=1, blank=0, beam=None, output=None)"
    )
    assert pickle.loads(pickle.dumps(get_scorer("recall:k=5"))).k == 5
    with pytest.raises(UnknownNameError, match="Did you mean 'mean_iou'"):
        get_scorer("mean_iuo")
    for name in ("neg_mean_iou", "cer:beem=3", "wer", "accuracy:k=3", "recall:", "recall:distance=l1"):
        with pytest.raises(UnknownNameError):
            get_scorer(name)
    for name in ("recall:k=0", "cer:beam=0.5", "cer:blank=-1", "token_accuracy:ignore_index=a"):
        with pytest.raises(InvalidParameterError):
            get_scorer(name)


def test_one_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.METRICS, "_classes", dict(registry.METRICS._classes))

    @register_metric("mean_norm")
    class MeanNorm(Metric):
        def value(self, predicted, y, weights):
            return np.linalg.norm(predicted.rows_first(), axis=1).mean()

    net = OnnxRegressor(model(EMBED), loss={"e": "contrastive"}, max_iter=1, random_state=0)
    net.set_params(callbacks=Score("mean_norm", on="train")).fit(X[:, 0], np.arange(9) // 2)
    assert net.history_["mean_norm"][-1] > 0

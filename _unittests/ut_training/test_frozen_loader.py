"""The frozen part of a model is computed once: training is the same without."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse

from onnxcustom import TrainingStep, weights
from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.gradient.interface import get_engine
from onnxcustom.optim import SGD, Adam
from onnxcustom.training.callbacks import Callback, Checkpoint, EarlyStopping
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor

from .frozen_cases import CASES, REFUSED, model, parsed

InferenceSession = pytest.importorskip("onnxruntime").InferenceSession


def make(name, **options):
    defaults = {"learning_rate": 0.05, "batch_size": 5, "max_iter": 5, "random_state": 0, "optimizer": "adam"}
    case = CASES.get(name) or REFUSED[name]
    return OnnxRegressor(model(name), **{**defaults, "weights_to_train": "w", **case[-1], **options})


def close(one, other):
    assert one.weights_.keys() == other.weights_.keys()
    for name, array in one.weights_.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(other.weights_[name], array, rtol=0, atol=1e-6 * scale)
    for name, values in one.history_.items():
        np.testing.assert_allclose(other.history_[name], values, rtol=1e-5)


@pytest.fixture
def counted(monkeypatch):
    """Rows that went through frozen parts."""
    from onnxcustom.step.frozen import Halves

    seen, compute = [], Halves.compute

    def counting(self, batch):
        seen.append(compute(self, batch))
        return seen[-1]

    monkeypatch.setattr(Halves, "compute", counting)
    return seen


def rows_of(y):
    return len(y["y"] if isinstance(y, dict) else y)


@pytest.mark.parametrize("name", CASES)
def test_training_is_the_same(name, counted):
    _, X, y, _ = CASES[name]
    held_out = {} if name == "one_row" else {"X_val": X, "y_val": y}
    plain = make(name).fit(X, y, **held_out)
    assert not counted
    cached = make(name, cache_frozen=True).fit(X, y, **held_out)
    # Every row once, in five epochs; those of validation as well.
    assert len(counted) == (1 + bool(held_out)) * -(-rows_of(y) // cached.batch_size)
    close(plain, cached)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_computed_once(name, caplog):
    X, y = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32), np.ones((23, 1), np.float32)
    with pytest.raises(InvalidParameterError, match=REFUSED[name][1]):
        make(name, cache_frozen=True).fit(X, y)
    with caplog.at_level("INFO", "onnxcustom"):
        auto = make(name, cache_frozen="auto").fit(X, y)
    assert "[cache_frozen] The frozen part runs in every step: " in caplog.text
    for weight, array in make(name).fit(X, y).weights_.items():
        if name != "random":
            np.testing.assert_array_equal(array, auto.weights_[weight])


def test_by_default_nothing_is_kept(counted):
    _, X, y, _ = CASES["dense"]
    assert make("dense").cache_frozen is False
    make("dense").fit(X, y)
    assert not counted


def test_auto_leaves_a_single_epoch_alone(counted):
    _, X, y, _ = CASES["dense"]
    make("dense", cache_frozen="auto").partial_fit(X, y)
    assert not counted
    make("dense", cache_frozen=True).partial_fit(X, y)
    assert len(counted) == 5


def test_memory_has_a_bound(counted, caplog):
    _, X, y, _ = CASES["dense"]
    said = r"takes 460 bytes \('h' 20 bytes a row\), more than the 459 of cache_bytes"
    with pytest.raises(InvalidParameterError, match=said):
        make("dense", cache_frozen=True, cache_bytes=459).fit(X, y)
    with caplog.at_level("INFO", "onnxcustom"):
        make("dense", cache_frozen="auto", cache_bytes=459).fit(X, y)
    assert "460 bytes" in caplog.text
    assert not counted
    make("dense", cache_frozen=True, cache_bytes=460).fit(X, y, X_val=X, y_val=y)  # validation runs whole
    assert len(counted) == 5


@pytest.mark.parametrize("wrong", [{"cache_frozen": "yes"}, {"cache_frozen": 1}, {"cache_bytes": -1}])
def test_parameters(wrong):
    with pytest.raises(InvalidParameterError, match=next(iter(wrong))):
        make("dense", **wrong).fit(*CASES["dense"][1:3])


SETTINGS = {
    "momentum": {"optimizer": SGD(momentum=0.9)},
    "accumulated": {"optimizer": SGD(momentum=0.9, accumulate=2)},
    "penalty": {"penalty": "l2"},
    "in_order": {"shuffle": False},
    "clipped": {"optimizer": Adam(clip_global_norm=0.1)},
    "held_out": {"validation_fraction": 0.3, "callbacks": EarlyStopping(patience=1)},
    "engine_ort": {"engine": "ort"},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting):
    options = SETTINGS[setting]
    if options.get("engine") == "ort" and get_engine("ort").unavailable():
        pytest.skip("no onnxruntime-training")
    _, X, y, _ = CASES["skip"]
    weights = np.linspace(0.5, 2, 23)
    close(*(make("skip", cache_frozen=c, **options).fit(X, y, weights) for c in (False, True)))


def test_trained_model_and_predictions():
    _, X, y, _ = CASES["reshaped_behind_the_cut"]
    cached = make("reshaped_behind_the_cut", cache_frozen=True).fit(X, y)
    trained = cached.get_trained_onnx()
    session = InferenceSession(trained.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": X})[0], cached.predict(X), rtol=1e-5)
    again = pickle.loads(pickle.dumps(cached)).partial_fit(X, y)
    same = cached.partial_fit(X, y)
    for name, array in same.weights_.items():
        np.testing.assert_array_equal(again.weights_[name], array)


class Watching(Callback):
    """Adds up what it sees of batches."""

    def on_train_begin(self, trainer):
        self.seen = []

    def on_batch_end(self, trainer, batch, loss):
        self.seen.append(([v.numpy().tolist() for v in batch.values], batch.rows, round(loss, 5)))


def test_callbacks_see_the_batches_of_the_model():
    _, X, y, _ = CASES["around"]
    one, other = (make("around", cache_frozen=c, callbacks=Watching()).fit(X, y) for c in (False, True))
    assert one.callbacks_[0].seen == other.callbacks_[0].seen


class Own(OnnxRegressor):
    """Looks at the batches that it trains on."""

    def train_step(self, batch):
        assert batch.values[0].shape()[1] == 4
        return super().train_step(batch)


def test_an_own_train_step_gets_the_batches_of_the_model():
    _, X, y, _ = CASES["dense"]
    options = {"learning_rate": 0.05, "random_state": 0, "max_iter": 3, "weights_to_train": "w"}
    own = Own(model("dense"), cache_frozen=True, **options).fit(X, y)
    close(OnnxRegressor(model("dense"), **options).fit(X, y), own)


def test_weights_that_are_set_meanwhile():
    """What a callback does to frozen constants counts, as without."""

    def change(trainer):
        if trainer.n_iter_ == 2:
            a = weights(model("dense"))["a"]
            trainer.step_.start_from({"a": 2 * a})

    _, X, y, _ = CASES["dense"]
    close(
        *(make("dense", cache_frozen=c, callbacks=change).fit(X, y, X_val=X, y_val=y) for c in (False, True))
    )


def test_sparse_rows_and_labels():
    text = """g (float[N, 4] x) => (float[N, 3] p) <float[4, 5] a = {}, float[5, 3] w = {}> {
        m = MatMul(x, a) h = Tanh(m) s = MatMul(h, w) p = Softmax(s) }"""
    X = scipy.sparse.random_array((40, 4), density=0.5, rng=np.random.default_rng(0), dtype=np.float32)
    y = np.random.default_rng(0).integers(0, 3, 40)
    options = {"weights_to_train": "w", "learning_rate": 0.1, "random_state": 0, "batch_size": 7}
    close(*(OnnxClassifier(parsed(text), cache_frozen=c, **options).fit(X, y) for c in (False, True)))


class Killed(Exception):
    """What stands for a power cut."""


class Kill(Callback):
    """Ends training in the middle of its third epoch."""

    def on_batch_end(self, trainer, batch, loss):
        if trainer.n_iter_ == 2 and trainer.run.batches == 2:
            raise Killed


def test_resumed(tmp_path):
    _, X, y, _ = CASES["skip"]
    options = {"cache_frozen": True, "optimizer": "adam"}
    whole = make("skip", **options).fit(X, y)
    saving = {"callbacks": [Kill(), Checkpoint(tmp_path, batches=1)]}
    with pytest.raises(Killed):
        make("skip", **options, **saving).fit(X, y)
    resumed = make("skip", **options, checkpoint_dir=tmp_path).fit(X, y)
    for name, array in whole.weights_.items():
        np.testing.assert_array_equal(resumed.weights_[name], array)
    assert resumed.history_ == whole.history_


# -- a step of its own ----------------------------------------------------------------------------------


def batch_of(part, X):
    """Rows of the data of a case, along the axis on which its model has them."""
    if isinstance(X, dict):
        return {name: array if np.ndim(array) == 0 else array[part] for name, array in X.items()}
    return X[:, part] if X.shape[1] == 23 else X[part]


@pytest.mark.parametrize("name", [n for n in CASES if n != "head_without_weights"])
def test_a_step_finds_rows_again_by_their_content(name, counted):
    _, X, y, options = CASES[name]
    options = {"weights": options.get("weights_to_train", "w"), **options}
    size = options.get("batch_size", 5)
    kept = ("weights", "loss", "batch_axis", "freeze")
    options = {k: v for k, v in options.items() if k in kept}
    options |= {"weights": None} if "freeze" in options else {}
    steps = [TrainingStep(model(name), optimizer="adam", cache_frozen=c, **options) for c in (False, True)]
    rng, rows = np.random.default_rng(0), rows_of(y)
    for epoch in range(4):
        order = rng.permutation(rows)[: rows // size * size]
        for start in range(0, len(order), size):
            part = order[start : start + size]
            losses = [step.run(batch_of(part, X), batch_of(part, y)) for step in steps]
            np.testing.assert_allclose(*losses, rtol=1e-5)
        if epoch == 1:
            steps[1] = pickle.loads(pickle.dumps(steps[1]))
    seen = len(counted)
    for name_, array in steps[0].weights().items():
        np.testing.assert_allclose(steps[1].weights()[name_], array, rtol=0, atol=1e-6 * np.abs(array).max())
    steps[1].run(batch_of(part, X), batch_of(part, y))
    assert len(counted) == seen


def test_a_step_has_its_bounds(counted):
    _, X, y, _ = CASES["dense"]
    step = TrainingStep(model("dense"), weights="w", cache_frozen=True, cache_bytes=0)
    for _ in range(3):
        step.run(X, y)
    assert len(counted) == 3
    assert step.unfreeze("a") == ["a"]
    with pytest.raises(InvalidParameterError, match="meets the data as they are"):
        TrainingStep(model("dense"), cache_frozen=True).run(X, y)
    TrainingStep(model("dense"), cache_frozen="auto").run(X, y)
    with pytest.raises(InvalidParameterError, match="cache_frozen must be"):
        TrainingStep(model("dense"), cache_frozen="always")

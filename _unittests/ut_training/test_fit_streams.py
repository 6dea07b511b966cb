"""Estimators that train on streams: the same as on rows in memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from onnxcustom.data import stream
from onnxcustom.data.reader import running
from onnxcustom.exceptions import CheckpointError, InvalidDataError
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.callbacks import Callback, Checkpoint, Score
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor

pytest.importorskip("onnxruntime")


def data(n=53, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)).astype(np.float32)
    return X, (X @ [1.0, 2.0, 3.0] + 0.5).astype(np.float32)


@pytest.fixture
def make(mlp_model):
    def made(**options):
        options = {"learning_rate": 0.05, "batch_size": 5, "max_iter": 3, "random_state": 0, **options}
        return OnnxRegressor(mlp_model([3, 4, 1]), **options)

    return made


def same(one, other):
    for name, array in one.weights_.items():
        np.testing.assert_array_equal(array, other.weights_[name])
    assert one.history_ == other.history_


def parquet(tmp_path, X, y, w):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(X, columns=list("abc")).assign(y=y, w=w)
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=7)
    return stream(tmp_path / "rows.parquet", target="y", sample_weight="w")


def csv(tmp_path, X, y, w):
    frame = pd.DataFrame(X, columns=list("abc")).assign(y=y, w=w)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    return stream(tmp_path / "rows.csv", target="y", sample_weight="w")


def mapped(tmp_path, X, y, w):
    for name, array in (("X", X), ("y", y), ("w", w)):
        np.save(tmp_path / name, array)
    return stream(tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "Xyw"))


def batches(tmp_path, X, y, w):
    def made():
        for start in range(0, len(X), 8):
            rows = slice(start, start + 8)
            yield X[rows], y[rows], w[rows]

    return made  # what fit makes a stream of


class Sized:
    """Like a DataLoader: as often as asked for."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return self.make()


def iterable(tmp_path, X, y, w):
    return Sized(batches(tmp_path, X, y, w))


SOURCES = [parquet, csv, mapped, batches, iterable]


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_bits_as_in_memory(make, source, tmp_path):
    X, y = data()
    w = np.linspace(0.5, 2, len(y)).astype(np.float32)
    streamed = make(shuffle=False).fit(source(tmp_path, X, y, w))
    same(streamed, make(shuffle=False).fit(X, y, w))
    assert streamed.n_features_in_ == 3
    assert not running()


@pytest.mark.parametrize("source", SOURCES)
def test_every_row_comes_once_an_epoch(mlp_model, source, tmp_path):
    seen = []

    class Spy(OnnxRegressor):
        def train_step(self, batch):
            seen.append(batch.values[0].numpy()[:, 0].copy())
            return super().train_step(batch)

    X, y = data()
    rows = source(tmp_path, X, y, np.ones(len(y), np.float32))
    Spy(mlp_model([3, 4, 1]), batch_size=5, max_iter=2, random_state=0).fit(rows)
    assert [len(b) for b in seen] == 2 * ([5] * 10 + [3])
    one, other = np.concatenate(seen[:11]), np.concatenate(seen[11:])
    np.testing.assert_array_equal(np.sort(one), np.sort(X[:, 0]))
    np.testing.assert_array_equal(np.sort(other), np.sort(X[:, 0]))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("batches", [1, 11, 15])
def test_interrupted_and_resumed(make, source, batches, tmp_path):
    class Kill(Callback):
        def on_batch_end(self, trainer, batch, loss):
            if trainer.step_.iteration == batches:
                raise KeyError

    X, y = data()
    rows = source(tmp_path, X, y, np.ones(len(y), np.float32))
    alone = make().fit(rows)
    saved = Checkpoint(tmp_path / "run", batches=1)
    with pytest.raises(KeyError):
        make(callbacks=[Kill(), saved]).fit(rows)
    same(make(callbacks=[saved]).fit(rows), alone)


def test_validation_of_a_stream(make):
    X, y = data(200)
    rows = stream((X, y), block_rows=13)
    score = Score("r2", on="both")
    reg = make(validation_fraction=0.25, callbacks=score).fit(rows)
    kept, held = rows.split(0.25, seed=0)
    blocks = [(b.X, b.y) for b in held.blocks()]
    X_val, y_val = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    assert reg.history_["val_loss"][-1] == pytest.approx(reg.step_.scores(X_val, y_val).mean(), rel=1e-6)
    assert reg.history_["val_r2"][-1] == pytest.approx(reg.score(X_val, y_val), rel=1e-6)
    assert reg.step_.iteration == 3 * -(-kept.rows // 5)
    again = make(callbacks=score).fit(kept, X_val=held)
    same(again, reg)


def test_labels_of_a_stream(mlp_model):
    """Also those that come late."""
    X, y = data(90)
    labels = np.where(y > y.mean(), "high", "low").astype(object)
    order = np.argsort(labels, kind="stable")
    X, labels = X[order], labels[order]
    rows = stream((X, labels), block_rows=10)
    options = {"learning_rate": 0.5, "shuffle": False, "random_state": 0, "max_iter": 3}
    clf = OnnxClassifier(mlp_model([3, 4, 1], end="Sigmoid"), **options).fit(rows)
    assert list(clf.classes_) == ["high", "low"]
    same(clf, OnnxClassifier(mlp_model([3, 4, 1], end="Sigmoid"), **options).fit(X, labels))
    scored = OnnxClassifier(
        mlp_model([3, 4, 1], end="Sigmoid"), callbacks=Score("roc_auc", on="train"), **options
    ).fit(rows)
    assert 0.5 < scored.history_["roc_auc"][-1] <= 1


def test_one_iterator_is_one_epoch(make):
    X, y = data()

    def made():
        yield X, y

    reg = make()
    with pytest.raises(InvalidDataError, match="gives its rows once, and 3 epochs"):
        reg.fit(made())
    assert not hasattr(reg, "step_")
    same(make(max_iter=1, shuffle=False).fit(made()), make(max_iter=1, shuffle=False).fit(X, y))


def test_errors_on_the_way_keep_what_was_trained(make):
    X, y = data(150)

    def made():
        yield X, y
        raise OSError("the disk is gone")

    reg = make(shuffle=False)
    with pytest.raises(Exception, match="the disk is gone"):
        reg.fit(stream(made, block_rows=10, prefetch=0))
    assert reg.step_.iteration >= 20
    step = TrainingStep(reg.model, learning_rate=0.05)
    for i in range(0, 5 * reg.step_.iteration, 5):
        step.run(X[i : i + 5], y[i : i + 5])
    for name, array in step.weights().items():
        np.testing.assert_array_equal(reg.weights_[name], array)


def test_a_bad_row_leaves_the_fit_before_as_it_was(make):
    X, y = data(150)
    reg = make().fit(X, y)
    weights, epochs = reg.weights_, reg.n_iter_
    bad = X.copy()
    bad[140, 1] = np.nan
    with pytest.raises(InvalidDataError, match=r"row 140|row 141"):
        reg.fit(stream((bad, y)))
    assert reg.n_iter_ == epochs
    for name, array in weights.items():
        np.testing.assert_array_equal(reg.weights_[name], array)


def test_labels_are_read_once(mlp_model):
    class Counting:
        def __init__(self):
            self.times = 0

        def __iter__(self):
            self.times += 1
            yield X, (y > 0).astype(np.int64)

    X, y = data()
    rows = Counting()
    clf = OnnxClassifier(mlp_model([3, 4, 1], end="Sigmoid"), random_state=0)
    clf.partial_fit(stream(rows))
    first = rows.times
    clf.partial_fit(stream(rows))
    assert rows.times < 2 * first


@pytest.mark.parametrize("fraction", [0, 1.0, 2, True, "a"])
def test_a_bad_fraction_is_the_same_error(make, fraction):
    X, y = data()
    for rows in ((X, y), (stream((X, y)), None)):
        with pytest.raises(InvalidDataError, match="validation_fraction must be in"):
            make(validation_fraction=fraction).fit(*rows)


def test_what_does_not_go_with_streams(make, mlp_model):
    X, y = data()
    rows = stream((X, y))
    with pytest.raises(InvalidDataError, match="target='y'"):
        make().fit(rows, y)
    with pytest.raises(InvalidDataError, match="sample_weight='w'"):
        make().fit(rows, sample_weight=np.ones(len(y)))
    labels = (y > 0).astype(np.int64)
    clf = OnnxClassifier(mlp_model([3, 4, 1], end="Sigmoid"), class_weight={2: 1.0})
    with pytest.raises(InvalidDataError, match=r"class_weight names \[2\]"):
        clf.fit(stream((X, labels)))
    with pytest.raises(InvalidDataError, match="target y is None"):
        make().fit(X)


def test_another_stream_is_another_run(make, tmp_path):
    X, y = data()
    make(checkpoint_dir=tmp_path / "run").fit(stream((X, y)))
    with pytest.raises(CheckpointError, match="another run: data"):
        make(checkpoint_dir=tmp_path / "run").fit(stream((X + 1, y)))

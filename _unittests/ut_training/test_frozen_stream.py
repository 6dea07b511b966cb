"""The frozen part of a model is computed once for the rows of a stream: in a file that is mapped."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest

from onnxcustom.data import stream
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.training.callbacks import Callback, Checkpoint
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor
from onnxcustom.training.frozen_stream import _Rows

from .frozen_cases import CASES, model, parsed

pytest.importorskip("onnxruntime")


def data(n=53):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4)).astype(np.float32)
    return X, np.sin(X.sum(axis=1)), rng.uniform(0.5, 2, n).astype(np.float32)


def csv(tmp_path):
    X, y, w = data()
    path = tmp_path / "rows.csv"
    pd.DataFrame(X, columns=list("abcd")).assign(y=y, w=w).to_csv(path, index=False)
    return stream(path, target="y", sample_weight="w", shuffle_rows=20, block_rows=7)


def parquet(tmp_path):
    pytest.importorskip("pyarrow")
    X, y, w = data()
    frame = pd.DataFrame(X, columns=list("abcd")).assign(y=y, w=w)
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=11)
    return stream(tmp_path / "rows.parquet", target="y", sample_weight="w")


def arrays(tmp_path):
    return stream(data(), shuffle_rows=16, block_rows=6)


def make(**options):
    defaults = {"learning_rate": 0.05, "batch_size": 5, "max_iter": 4, "random_state": 0, "optimizer": "adam"}
    return OnnxRegressor(model("dense"), **{**defaults, "weights_to_train": "w", **options})


def close(one, other):
    for name, array in one.weights_.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(other.weights_[name], array, rtol=0, atol=1e-6 * scale)
    for name, values in one.history_.items():
        np.testing.assert_allclose(other.history_[name], values, rtol=1e-5)


@pytest.mark.parametrize("source", [csv, parquet, arrays])
@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"validation_fraction": 0.3}])
def test_the_same_as_without(source, options, tmp_path, caplog):
    rows = source(tmp_path)
    plain = make(**options).fit(rows)
    with caplog.at_level("INFO", "onnxcustom"):
        cached = make(cache_frozen=True, **options).fit(rows)
    assert caplog.text.count("to a temporary file") == 1
    close(plain, cached)


@pytest.mark.parametrize(
    "name", ["around", "sequences_time_first", "rows_fixed", "one_row", "heads", "words"]
)
def test_models_of_all_kinds(name):
    _, X, y, more = CASES[name]
    options = {"learning_rate": 0.05, "batch_size": 5, "max_iter": 3, "random_state": 0}
    options |= {"weights_to_train": "w", **more}
    made = [OnnxRegressor(model(name), cache_frozen=c, **options).fit(stream((X, y))) for c in (False, True)]
    close(*made)


def test_labels_and_callbacks():
    text = """g (float[N, 4] x) => (float[N, 3] p) <float[4, 5] a = {}, float[5, 3] w = {}> {
        m = MatMul(x, a) h = Tanh(m) s = MatMul(h, w) p = Softmax(s) }"""
    X, y, _ = data()
    labels = np.array(["low", "middle", "high"])[np.digitize(y, [-0.5, 0.5])]

    class Watching(Callback):
        def on_train_begin(self, trainer):
            self.seen = []

        def on_batch_end(self, trainer, batch, loss):
            self.seen.append([v.numpy().tolist() for v in batch.values])

    options = {"weights_to_train": "w", "learning_rate": 0.1, "random_state": 0, "callbacks": Watching()}
    made = [
        OnnxClassifier(parsed(text), cache_frozen=c, max_iter=2, **options).fit(stream((X, labels)))
        for c in (False, True)
    ]
    close(*made)
    assert made[0].callbacks_[0].seen == made[1].callbacks_[0].seen


class Killed(Exception):
    """What stands for a power cut."""


class Kill(Callback):
    """Ends training in the middle of its second epoch."""

    def on_batch_end(self, trainer, batch, loss):
        if (trainer.n_iter_, trainer.run.batches) == (1, 3):
            raise Killed


def test_a_training_that_goes_on_finds_the_file(tmp_path, caplog):
    rows, folder = arrays(tmp_path), tmp_path / "run"
    whole = make(cache_frozen=True).fit(rows)
    with pytest.raises(Killed):
        make(cache_frozen=True, callbacks=[Kill(), Checkpoint(folder, batches=1)]).fit(rows)
    assert (folder / "frozen_part.bin").stat().st_size == 53 * (5 + 1 + 1) * 4
    caplog.clear()
    with caplog.at_level("INFO", "onnxcustom"):
        resumed = make(cache_frozen=True, checkpoint_dir=folder).fit(rows)
    assert "rows went through" not in caplog.text
    for name, array in whole.weights_.items():
        np.testing.assert_array_equal(resumed.weights_[name], array)
    assert not list(folder.glob("frozen_part*"))  # removed in the end


@pytest.mark.parametrize("harm", ["cut", "removed", "of_another_model", "no_json"])
def test_a_file_that_is_not_what_it_was(tmp_path, harm, caplog):
    rows, folder = arrays(tmp_path), tmp_path / "run"
    with pytest.raises(Killed):
        make(cache_frozen=True, callbacks=[Kill(), Checkpoint(folder, batches=1)]).fit(rows)
    path, about = folder / "frozen_part.bin", folder / "frozen_part.json"
    if harm == "cut":
        os.truncate(path, 100)
    elif harm == "removed":
        path.unlink()
    elif harm == "no_json":
        about.write_text("{")
    else:
        about.write_text(about.read_text().replace('"about": "', '"about": "0'))
    with caplog.at_level("INFO", "onnxcustom"):
        resumed = make(cache_frozen=True, checkpoint_dir=folder).fit(rows)
    assert "53 rows went through" in caplog.text
    close(make().fit(rows), resumed)


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    """An error, not the end of the process."""
    folder = tmp_path / "run"

    def cut(trainer):
        os.truncate(folder / "frozen_part.bin", 64)

    with pytest.raises(InvalidDataError, match="something has cut it"):
        make(cache_frozen=True, callbacks=cut, checkpoint_dir=folder).fit(arrays(tmp_path))
    assert _Rows.found(folder, "") is None


def test_refused(tmp_path, caplog):
    X, y, _ = data()
    batches = stream(lambda: iter([(X[:20], y[:20]), (X[20:], y[20:])]))
    with pytest.raises(InvalidParameterError, match="batches that an iterable makes may be others"):
        make(cache_frozen=True).fit(batches)
    close(make().fit(batches), make(cache_frozen="auto").fit(batches))
    said = "takes 28 bytes a row, .* more than the 300 of cache_bytes"
    with pytest.raises(InvalidParameterError, match=said):
        make(cache_frozen=True, cache_bytes=300, checkpoint_dir=tmp_path / "run").fit(arrays(tmp_path))
    assert not list((tmp_path / "run").glob("frozen_part*"))
    with caplog.at_level("INFO", "onnxcustom"):
        auto = make(cache_frozen="auto", cache_bytes=300).fit(arrays(tmp_path))
    assert "28 bytes a row" in caplog.text
    close(make().fit(arrays(tmp_path)), auto)

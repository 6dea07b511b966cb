"""Histories from estimators, dicts and files: the numbers that were in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.exceptions import InvalidDataError, OnnxCustomError, UnknownNameError
from onnxcustom.plotting.history_data import chosen_metrics, read_runs

NAN = float("nan")
HISTORY = {
    "loss": [0.9, 0.5, 0.4],
    "val_loss": [NAN, 0.6, 0.7],
    "val_accuracy": [0.1, NAN, 0.3],
    "train_f1": [0.2, 0.3, 0.4],
    "learning_rate": [0.1, 0.1, 0.05],
    "seconds": [1.0, 1.0, 1.0],
}


def check(run, epochs=(1, 2, 3)):
    for key, values in HISTORY.items():
        known = ~np.isnan(values)
        np.testing.assert_array_equal(run.series[key].values, np.array(values)[known])
        np.testing.assert_array_equal(run.series[key].epochs, np.array(epochs, float)[known])
    assert (run.series["val_accuracy"].quantity, run.series["val_accuracy"].validation) == ("accuracy", True)
    assert (run.series["train_f1"].quantity, run.series["train_f1"].validation) == ("f1", False)


class Fitted:
    history_ = HISTORY

    def get_params(self):
        return {}


def csv_of(history):
    rows = [["" if v != v else v for v in row] for row in zip(*history.values(), strict=True)]
    return "\n".join([",".join(history), *(",".join(map(str, row)) for row in rows)]) + "\n"


@pytest.mark.parametrize("form", ["dict", "arrays", "estimator", "csv", "json", "csv with epochs", "windows"])
def test_forms(tmp_path, form):
    epochs = (1, 2, 3)
    if form == "dict":
        given = HISTORY
    elif form == "arrays":
        given = {k: np.array(v, np.float32) for k, v in HISTORY.items()}
        given = {k: v.astype(np.float64).round(6) for k, v in given.items()}
    elif form == "estimator":
        given = Fitted()
    elif form == "json":
        given = tmp_path / "h.json"
        given.write_text(json.dumps({k: [None if x != x else x for x in v] for k, v in HISTORY.items()}))
    else:
        given = tmp_path / "h.csv"
        epochs = (5, 6, 7) if form == "csv with epochs" else epochs
        text = csv_of({"epoch": list(epochs), **HISTORY} if form == "csv with epochs" else HISTORY)
        if form == "windows":
            text = "\ufeff" + text.replace("\n", "\r\n")
        given.write_bytes(text.encode())
    (run,) = read_runs(given)
    assert run.name == ""
    check(run, epochs)


def test_several(tmp_path):
    path = tmp_path / "h.csv"
    path.write_text(csv_of(HISTORY))
    runs = read_runs({"dict": HISTORY, "file": str(path), "net": Fitted(), 4: HISTORY})
    assert [run.name for run in runs] == ["dict", "file", "net", "4"]
    for run in runs:
        check(run)


def test_what_the_callback_writes(tmp_path, small_model):
    """The files of HistoryFile hold what the estimator's history_ does."""
    pytest.importorskip("onnxruntime")
    from onnxcustom import OnnxRegressor
    from onnxcustom.training.callbacks import HistoryFile

    X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    paths = [tmp_path / "h.csv", tmp_path / "h.json"]
    net = OnnxRegressor(small_model("mlp"), max_iter=3, callbacks=[HistoryFile(path) for path in paths])
    net.fit(X, X[:, :2], X_val=X, y_val=X[:, :2])
    for path in paths:
        (run,) = read_runs(path)
        assert {"learning_rate", "seconds"} <= set(run.series)
        for key, values in net.history_.items():
            np.testing.assert_allclose(run.series[key].values, values)
            np.testing.assert_array_equal(run.series[key].epochs, [1, 2, 3])


def test_best():
    (run,) = read_runs(HISTORY)
    series, i = run.best()
    assert (series.quantity, series.validation, series.epochs[i], series.values[i]) == ("loss", True, 2, 0.6)
    (run,) = read_runs({"loss": [0.9, 0.4, 0.5], "val_loss": [NAN] * 3})
    series, i = run.best()
    assert (series.validation, series.epochs[i]) == (False, 2)
    assert read_runs({"loss": [NAN, float("inf")]})[0].best() is None
    assert read_runs({})[0].best() is None


@pytest.mark.parametrize(
    ("metrics", "keys"),
    [
        (None, ["val_accuracy", "train_f1"]),
        ([], []),
        ("accuracy", ["val_accuracy"]),
        (["train_f1", "val_accuracy"], ["train_f1", "val_accuracy"]),
        (["f1", "learning_rate"], ["train_f1", "learning_rate"]),
    ],
)
def test_metrics(metrics, keys):
    assert chosen_metrics(read_runs(HISTORY), metrics) == keys


@pytest.mark.parametrize("wrong", ["precision", ["accuracy", "val_f1"], "loss"])
def test_metrics_that_were_not_measured(wrong):
    with pytest.raises(UnknownNameError, match="val_accuracy"):
        chosen_metrics(read_runs(HISTORY), wrong)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (3, "fitted estimator"),
        ([0.3, 0.2], "fitted estimator"),
        ({"a": HISTORY, "b": 3}, "'b'"),
        ({"loss": [[1.0, 2.0]]}, "shape"),
        ({"loss": ["low"]}, "'loss'"),
        ({"loss": [1.0], "val_loss": 0.5}, "'loss'|'val_loss'"),
    ],
)
def test_no_history(given, match):
    with pytest.raises(InvalidDataError, match=match):
        read_runs(given)


def test_not_fitted():
    from sklearn.exceptions import NotFittedError
    from sklearn.linear_model import SGDRegressor

    with pytest.raises(NotFittedError, match="SGDRegressor"):
        read_runs(SGDRegressor())


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("h.csv", "", "empty"),
        ("h.csv", "epoch,loss\n1,0.5\n2\n", "row 3 has 1 columns"),
        ("h.csv", "epoch,loss\n1,low\n", "'low' in column 'loss'"),
        ("h.json", "[1, 2]", "dict of lists"),
        ("h.json", '{"loss": [1', "cannot be read"),
        ("h.json", '{"loss": {"a": 1}}', "'loss'"),
        ("h.json", "[" * 10**5, "cannot be read"),
        ("h.txt", "loss\n1\n", "from 'h.txt'"),
    ],
)
def test_torn_files(tmp_path, name, text, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidDataError, match=match):
        read_runs(tmp_path / name)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_runs(tmp_path / "h.csv")


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@given(
    data=st.binary(max_size=80)
    | st.text('{}[]",:\n\r0123456789.eE-+nulNaIfity ', max_size=80).map(str.encode)
)
def test_any_bytes(tmp_path_factory, suffix, data):
    """A foreign file is read or refused, never a crash."""
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    try:
        runs = read_runs(path)
    except OnnxCustomError:
        return
    assert all(np.isfinite(s.values).all() for run in runs for s in run.series.values())

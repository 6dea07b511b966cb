"""``onnxcustom train`` with another last layer, and rows that are in one batch together."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxcustom import OnnxClassifier, save, weights

NET = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 3] p)
    <float[2, 3] w = {1, -1, 0, 0.5, 2, -1}> { z = MatMul(x, w) p = Softmax(z) }"""
SET = {"max_iter": 2, "batch_size": 4, "random_state": 0, "shuffle": True}
TYPED = ("--target", "y", "--epochs", 2, "--batch-size", 4, "--shuffle", "-o", "new.onnx")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A model and a table in the working folder: features, four classes, and who belongs together."""
    monkeypatch.chdir(tmp_path)
    save(onnx.parser.parse_model(NET), "net.onnx")
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(16, 2)).astype(np.float32), np.array(list("abcd"))[np.arange(16) % 4]
    group = rng.permutation(np.arange(16) // 2)
    with open("rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["u", "v", "y", "pair"])
        writer.writerows(
            [*map(repr, map(float, r)), label, int(g)] for r, label, g in zip(X, y, group, strict=True)
        )
    return X, y, group


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("--head", "auto"), {"head": "auto"}),
        (("--head", "4"), {"head": 4}),
        (("--head", "a,b,c,d"), {"head": ["a", "b", "c", "d"]}),
        (("--head", "4", "--m-per-class", 2), {"head": 4, "m_per_class": 2}),
        (("--head", "4", "--pairs", 2), {"head": 4, "pairs": 2}),
        (("--head", "4", "--pairs", "pair"), {"head": 4, "pairs": "pair"}),
    ],
)
@pytest.mark.filterwarnings("ignore:y has 4 classes", "ignore:The target has 4 classes")
def test_they_mean_what_they_mean_to_estimators(typed, meant, rows, command):
    X, y, group = rows
    command("train", "net.onnx", "rows.csv", "--columns", "u,v", *typed, *TYPED)
    if meant.get("pairs") == "pair":
        meant = {**meant, "pairs": group}
    expected = OnnxClassifier(onnx.parser.parse_model(NET), **SET, **meant).fit(X, y).weights_
    found = weights("new.onnx")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_column_of_pairs_is_no_feature(rows, command):
    command("train", "net.onnx", "rows.csv", "--head", "4", "--pairs", "pair", *TYPED)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("--head", "many"), "a number of outputs, or labels"),
        (("--pairs", "partner"), "has no column 'partner'"),
        (("--pairs", "pair", "--m-per-class", 2), "give one"),
        (("--pairs", "pair", "--validation", 0.25), "give a file"),
        (("--pairs", "pair", "--stream"), "--no-stream"),
        (("--head", "4", "--m-per-class", 3), "no multiple of 3"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(typed, told, rows, fails):
    assert told in fails("train", "net.onnx", "rows.csv", "--columns", "u,v", *typed, *TYPED)
    assert not Path("new.onnx").exists()


def test_labels_that_losses_ignore_are_left_out(rows, command, fails):
    X, _, _ = rows
    y = np.arange(16) % 3
    y[::4] = -100
    with open("ignored.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["u", "v", "y"])
        writer.writerows([*map(repr, map(float, r)), label] for r, label in zip(X, y, strict=True))
    z = X @ weights("net.onnx")["w"]
    hits = (z.argmax(axis=1) == y)[y >= 0].mean()
    told = command("evaluate", "net.onnx", "ignored.csv", "--target", "y", "--metric", "accuracy")
    assert f"accuracy  {hits:.6g}" in told.stdout
    assert not told.stderr
    Path("none.csv").write_text("u,v,y\n1,2,-100\n")
    assert "-100" in fails("evaluate", "net.onnx", "none.csv", "--target", "y")

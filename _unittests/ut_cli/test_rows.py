"""Rows on any axis: ``train``, ``predict`` and ``evaluate`` say what the library and NumPy say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pandas as pd
import pytest
from sklearn.metrics import r2_score

from onnxcustom import OnnxClassifier, OnnxRegressor, load, weights
from onnxcustom.cli.card import read_card

HEAD = '<ir_version: 8, opset_import: ["": 17]> g '
W = "<float[2,3] w = {0.1, -0.2, 0.3, 0.4, 0.5, -0.6}>"
W0 = np.array([[0.1, -0.2, 0.3], [0.4, 0.5, -0.6]])
GOAL = np.array([[1.0, 2, -1], [0, 1, 1]])
ROWS, TIME = 24, 5
SAID = {"seq": 1, "z": 1}
SAY = ["--batch-axis", "seq=1", "--batch-axis", "z=1"]

# Name -> model, axes that have to be said, dimensions of a row, axis of the rows in the output.
MODELS = {
    "said": (f"(float[T,N,2] seq) => (float[T,N,3] z) {W} {{ z = MatMul(seq, w) }}", SAID, (TIME, 2), 1),
    "by its name": (
        f"(float[T,N,2] seq, float[N,2] h) => (float[T,N,3] z) {W} {{ a = Add(seq, h) z = MatMul(a, w) }}",
        {"seq": 1, "z": 1},
        (TIME, 2),
        1,
    ),
    "out of the first": (
        f"(float[N,T,2] seq) => (float[T,N,3] z) {W} "
        "{ a = MatMul(seq, w) z = Transpose<perm = [1, 0, 2]>(a) }",
        {},
        (TIME, 2),
        1,
    ),
    "the batch last": (
        f"(float[N,2] seq) => (float[3,N] z) {W} {{ a = MatMul(seq, w) z = Transpose(a) }}",
        {},
        (2,),
        1,
    ),
    "four at a time": (
        f"(float[5,4,2] seq) => (float[5,4,3] z) {W} {{ z = MatMul(seq, w) }}",
        SAID,
        (TIME, 2),
        1,
    ),
}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(text: str) -> str:
    onnx.save(onnx.parser.parse_model(HEAD + text), "net.onnx")
    return text


def options(axes: dict[str, int | None]) -> list[str]:
    return [part for name, axis in axes.items() for part in ("--batch-axis", f"{name}={axis}")]


def rows_of(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features by input and expected values, rows first."""
    rng = np.random.default_rng(0)
    X = {"seq": rng.normal(size=(ROWS, *MODELS[name][2])).astype(np.float32)}
    x = X["seq"]
    if "h" in MODELS[name][0].partition("=>")[0]:
        X["h"] = rng.normal(size=(ROWS, 2)).astype(np.float32)
        x = x + X["h"][:, None]
    return X, (x @ GOAL).astype(np.float32)


def forward(w: np.ndarray, X: dict[str, np.ndarray]) -> np.ndarray:
    x = X["seq"] + X["h"][:, None] if "h" in X else X["seq"]
    return x @ w


def placed(X: dict[str, np.ndarray], name: str) -> np.ndarray | dict[str, np.ndarray]:
    """Features as the model has them."""
    axis = MODELS[name][1].get("seq", 0)
    made = {n: np.moveaxis(a, 0, axis) if n == "seq" else a for n, a in X.items()}
    return made if len(made) > 1 else made["seq"]


@pytest.mark.parametrize("name", MODELS)
def test_a_regressor(name: str, empty: Path, command) -> None:
    text, axes, _, place = MODELS[name]
    saved(text)
    X, y = rows_of(name)
    np.savez("rows.npz", **X, y=y)
    command("train", "net.onnx", "rows.npz", "--target", "y", "--epochs", 10, "--batch-size", 4, "--lr", 0.1,
            "--no-shuffle", "--quiet", "-o", "new.onnx", *options(axes))  # fmt: skip
    found = weights(load("new.onnx"))["w"]

    # By NumPy: half the squares of the rows of a batch over their number.
    w = W0
    for _ in range(10):
        for start in range(0, ROWS, 4):
            part = {n: a[start : start + 4] for n, a in X.items()}
            x = part["seq"] + part["h"][:, None] if "h" in part else part["seq"]
            z = forward(w, part) - y[start : start + 4]
            w = w - 0.1 * np.tensordot(x, z, (range(x.ndim - 1), range(x.ndim - 1))) / 4
    np.testing.assert_allclose(found, w, rtol=1e-4, atol=1e-5)

    # By the library.
    reg = OnnxRegressor("net.onnx", max_iter=10, batch_size=4, learning_rate=0.1, shuffle=False,
                        batch_axis=axes or None)  # fmt: skip
    reg.fit(placed(X, name), np.moveaxis(y, 0, place))
    np.testing.assert_allclose(found, reg.weights_["w"], rtol=1e-5)

    # The trained model needs no word.
    assert read_card(load("new.onnx")).batch_axis == axes
    rows = slice(0, 23)
    np.savez("rows.npz", **{n: a[rows] for n, a in X.items()}, y=y[rows])
    command("predict", "new.onnx", "rows.npz", "-o", "out.npy")
    predicted = np.load("out.npy")
    np.testing.assert_allclose(predicted, forward(w, X)[rows], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        predicted, np.moveaxis(reg.predict(placed(X, name)), place, 0)[rows], rtol=1e-4, atol=1e-4
    )
    scores = json.loads(command("evaluate", "new.onnx", "rows.npz", "--json").output)
    wanted = r2_score(y[rows].reshape(23, -1), forward(w, X)[rows].reshape(23, -1))
    assert scores["metrics"]["r2"] == pytest.approx(wanted, rel=1e-4)
    assert scores["rows"] == 23
    # A model that was not trained here is told.
    command("predict", "net.onnx", "rows.npz", "-o", "before.npy", *options(axes),
            *(["--input", "seq=seq", "--input", "h=h"] if "h" in X else ["--columns", "seq"]))  # fmt: skip
    np.testing.assert_allclose(np.load("before.npy"), forward(W0, X)[rows], rtol=1e-4, atol=1e-5)


TOKENS = {
    "scores": ("float[T,N,2] seq", "z = MatMul(seq, w)", SAID, 1),
    "probabilities": ("float[T,N,2] seq", "a = MatMul(seq, w) z = Softmax<axis = -1>(a)", SAID, 1),
    "rows first": ("float[N,T,2] seq", "a = MatMul(seq, w) z = Softmax<axis = -1>(a)", {}, 0),
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_classifier_of_tokens(name: str, empty: Path, command) -> None:
    given, nodes, axes, place = TOKENS[name]
    saved(f"({given}) => (float[{'T,N' if axes else 'N,T'},3] z) {W} {{ {nodes} }}")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, TIME, 2)).astype(np.float32)
    y = np.array(["ant", "bee", "cow"])[(x @ GOAL).argmax(axis=-1)]
    np.savez("rows.npz", seq=x, y=y)
    command("train", "net.onnx", "rows.npz", "--target", "y", "--task", "classification", "--epochs", 30,
            "--batch-size", 4, "--lr", 0.5, "--no-shuffle", "--quiet", "-o", "new.onnx", "--loss",
            "softmax_crossentropy", *options(axes))  # fmt: skip
    w = weights(load("new.onnx"))["w"]
    clf = OnnxClassifier("net.onnx", loss="softmax_crossentropy", max_iter=30, batch_size=4,
                         learning_rate=0.5, shuffle=False, batch_axis=axes or None)  # fmt: skip
    clf.fit(np.moveaxis(x, 0, place), np.moveaxis(y, 0, place))
    np.testing.assert_allclose(w, clf.weights_["w"], rtol=1e-5)
    command("predict", "new.onnx", "rows.npz", "--proba", "-o", "out.npz")
    with np.load("out.npz") as file:
        found = dict(file)
    e = np.exp(x @ w)
    np.testing.assert_allclose(found["probability"], e / e.sum(axis=-1, keepdims=True), rtol=1e-4)
    labels = np.array(["ant", "bee", "cow"])[(x @ w).argmax(axis=-1)]
    np.testing.assert_array_equal(found["prediction"], labels)
    moved = np.moveaxis(x, 0, place)
    np.testing.assert_array_equal(np.moveaxis(found["prediction"], 0, place), clf.predict(moved))
    scores = json.loads(command("evaluate", "new.onnx", "rows.npz", "--json").output)["metrics"]
    assert scores["accuracy"] == pytest.approx((labels == y).mean())
    assert scores["accuracy"] == pytest.approx(clf.score(moved, np.moveaxis(y, 0, place)))
    assert scores["accuracy"] > 0.9
    table = pd.read_csv(io.StringIO(command("predict", "new.onnx", "rows.npz", "--proba").output))
    assert list(table)[:6] == [*(f"prediction_{i}" for i in range(TIME)), "probability_0_ant"]
    np.testing.assert_allclose(table["probability_2_cow"], found["probability"][:, 2, 2], rtol=1e-5)


@pytest.mark.parametrize(
    ("dims", "said"), [(("5,N,2", "5,N,3"), SAY), (("N,5,2", "N,5,3"), ["--stream"])], ids=["second", "first"]
)
def test_columns_of_a_table(dims: tuple[str, str], said: list[str], empty: Path, command) -> None:
    """A table has a column for each number of a row: time is of a fixed length."""
    saved(f"(float[{dims[0]}] seq) => (float[{dims[1]}] z) {W} {{ z = MatMul(seq, w) }}")
    X, y = rows_of("said")
    frame = pd.DataFrame(X["seq"].reshape(ROWS, -1)).add_prefix("x")
    frame = frame.join(pd.DataFrame(y.reshape(ROWS, -1)).add_prefix("y"))
    frame.to_csv("rows.csv", index=False)
    features, target = (",".join(f"{c}{i}" for i in range(n)) for c, n in (("x", 10), ("y", 15)))
    told = [] if "--stream" in said else said
    command("predict", "net.onnx", "rows.csv", "--columns", features, "-o", "out.npy", *told)
    np.testing.assert_allclose(np.load("out.npy"), X["seq"] @ W0, rtol=1e-4, atol=1e-5)
    found = command("evaluate", "net.onnx", "rows.csv", "--target", target, "--json", *told).output
    wanted = r2_score(y.reshape(ROWS, -1), (X["seq"] @ W0).reshape(ROWS, -1))
    assert json.loads(found)["metrics"]["r2"] == pytest.approx(wanted, rel=1e-4)
    command("train", "net.onnx", "rows.csv", "--target", target, "--epochs", 10, "--batch-size", 24, "--lr",
            0.05, "-o", "new.onnx", "--quiet", *said)  # fmt: skip
    w = W0
    for _ in range(10):
        w = w - 0.05 * np.tensordot(X["seq"], X["seq"] @ w - y, ((0, 1), (0, 1))) / ROWS
    np.testing.assert_allclose(weights(load("new.onnx"))["w"], w, rtol=1e-4, atol=1e-5)
    command("predict", "new.onnx", "rows.csv", "-o", "new.npy")
    np.testing.assert_allclose(np.load("new.npy"), X["seq"] @ w, rtol=1e-3, atol=1e-3)


def test_what_is_given_once_a_batch(empty: Path, command, fails) -> None:
    saved(f"(float[T,N,2] seq, float r) => (float[T,N,3] z) {W} {{ a = Mul(seq, r) z = MatMul(a, w) }}")
    X, _ = rows_of("said")
    r = np.array([0.5, 2.0, 2.0, 3.0], np.float32).repeat(ROWS // 4)
    np.savez("rows.npz", seq=X["seq"], r=r)
    command("predict", "net.onnx", "rows.npz", "-o", "out.npy", *SAY)
    np.testing.assert_allclose(np.load("out.npy"), (X["seq"] * r[:, None, None]) @ W0, rtol=1e-4, atol=1e-5)


def test_a_model_of_one_row_at_a_time(empty: Path, command) -> None:
    saved(
        f"(float[1,T,2] seq) => (float[T,3] z) {W} "
        "{ a = MatMul(seq, w) ax = Constant<value = int64[1] {0}>() b = Squeeze(a, ax) "
        "z = Softmax<axis = -1>(b) }"
    )
    x = rows_of("said")[0]["seq"]
    np.savez("rows.npz", seq=x)
    command("predict", "net.onnx", "rows.npz", "-o", "out.npy")
    np.testing.assert_array_equal(np.load("out.npy"), (x @ W0).argmax(axis=-1))


def test_what_is_wrong_is_said(empty: Path, fails) -> None:
    saved(MODELS["said"][0])
    X, y = rows_of("said")
    np.savez("rows.npz", **X, y=y)
    for name in ("predict", "evaluate"):
        rest = ["--target", "y"] if name == "evaluate" else ["--columns", "seq"]
        text = fails(name, "net.onnx", "rows.npz", *rest, "--batch-axis", "q=1")
        assert "--batch-axis 'q=1': NAME=VALUE was expected" in text
        text = fails(name, "net.onnx", "rows.npz", *rest, "--batch-axis", "seq=x")
        assert "an axis or none" in text
        text = fails(name, "net.onnx", "rows.npz", *rest, "--batch-axis", "seq=3", code=None)
        assert "--batch-axis of 'seq' is 3; it has 3 dimensions" in text
        text = fails(name, "net.onnx", "rows.npz", *rest, *SAY[:2], "--batch-axis", "z=2", code=None)
        assert "--batch-axis z=AXIS" in text

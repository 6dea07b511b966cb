"""``onnxcustom evaluate``: the numbers of scikit-learn's own metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx.parser
import pandas as pd
import pytest
from sklearn import metrics

from onnxcustom.metrics import beam_search, best_path, character_error_rate, recall_at_k, word_error_rate

NAMES = ("accuracy", "balanced_accuracy", "neg_log_loss", "f1_macro", "roc_auc_ovr", "matthews_corrcoef")


def model(path: str, text: str) -> None:
    head = '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>'
    Path(path).write_bytes(onnx.parser.parse_model(f"{head} {text}").SerializeToString())


def scores(command, *arguments: object) -> dict[str, float]:
    result = command("evaluate", *arguments, "--json")
    return json.loads(result.output)["metrics"]


def session(path: str, X: np.ndarray) -> list:
    import onnxruntime

    made = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return made.run(None, {made.get_inputs()[0].name: X})


def test_classifier(folder: Path, command) -> None:
    frame = pd.read_csv("iris.csv")
    y = frame.pop("species")
    labels, maps = session("iris.onnx", frame.to_numpy(np.float32))
    probabilities = pd.DataFrame(maps)[["setosa", "versicolor", "virginica"]].to_numpy(np.float64)
    options = [option for name in NAMES for option in ("--metric", name)]
    found = scores(command, "iris.onnx", "iris.csv", "--target", "species", *options)
    assert list(found) == list(NAMES)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, labels))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, labels))
    assert found["f1_macro"] == pytest.approx(metrics.f1_score(y, labels, average="macro"))
    assert found["matthews_corrcoef"] == pytest.approx(metrics.matthews_corrcoef(y, labels))
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)  # of float32 till then
    assert found["neg_log_loss"] == pytest.approx(-metrics.log_loss(y, probabilities), rel=1e-5)
    area = metrics.roc_auc_score(y, probabilities, multi_class="ovr")
    assert found["roc_auc_ovr"] == pytest.approx(area, rel=1e-5)


def test_regressor_with_weights(folder: Path, command) -> None:
    frame = pd.read_parquet("house.parquet")
    frame["w"] = np.random.default_rng(0).uniform(0, 2, len(frame))
    frame.to_parquet("w.parquet")
    predicted = session("house.onnx", frame.iloc[:, :3].to_numpy(np.float32))[0].reshape(-1)
    found = scores(command, "house.onnx", "w.parquet", "--target", "price", "--sample-weight", "w")
    y, w = frame["price"], frame["w"]
    assert found["r2"] == pytest.approx(metrics.r2_score(y, predicted, sample_weight=w))
    rmse = metrics.root_mean_squared_error(y, predicted, sample_weight=w)
    assert found["neg_root_mean_squared_error"] == pytest.approx(-rmse)


def test_binary_with_names_in_any_order(tmp_path, monkeypatch, command) -> None:
    """Scores belong to the second class of the model, which need not be the second in the alphabet."""
    monkeypatch.chdir(tmp_path)
    x = np.linspace(-2, 2, 41)
    y = np.where(x + np.sin(9 * x) > 0, "a", "z")
    pd.DataFrame({"x": x, "y": y}).to_csv("d.csv", index=False)
    model(
        "m.onnx",
        """g (float[N,1] x) => (string[N] label, float[N,2] p) {
        one = Constant<value_float = 1.0>()  s = Sigmoid(x)  r = Sub(one, s)  p = Concat<axis=1>(r, s)
        k = ArgMax<axis=1,keepdims=0>(p)  names = Constant<value_strings=["z", "a"]>()
        label = Gather(names, k) }""",
    )
    names = ["roc_auc", "neg_log_loss", "accuracy", "neg_brier_score", "average_precision"]
    options = [option for name in names for option in ("--metric", name)]
    found = scores(command, "m.onnx", "d.csv", "--target", "y", *options[:6])
    p = 1 / (1 + np.exp(-x))
    assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(y == "a", p))
    assert found["accuracy"] == pytest.approx(np.mean((p > 0.5) == (y == "a")))
    assert found["neg_log_loss"] == pytest.approx(-metrics.log_loss(y == "a", p), rel=1e-5)


def test_classes_that_no_row_has(folder: Path, command) -> None:
    frame = pd.read_csv("iris.csv")
    frame[frame["species"] != "setosa"].to_csv("two.csv", index=False)
    found = scores(command, "iris.onnx", "two.csv", "--target", "species")
    assert set(found) == {"accuracy", "balanced_accuracy", "neg_log_loss"}


def test_table(folder: Path, command) -> None:
    lines = command("evaluate", "house.onnx", "house.parquet", "--target", "price").output.splitlines()
    assert lines[0].startswith("house.onnx on house.parquet: 200 rows, regression")
    assert [line.split()[0] for line in lines[1:]] == [
        "r2",
        "neg_root_mean_squared_error",
        "neg_mean_absolute_error",
    ]


def test_a_trained_model_knows_its_target(folder: Path, command) -> None:
    command(
        "train",
        "iris.onnx",
        "iris.csv",
        "--target",
        "species",
        "--epochs",
        2,
        "--metric",
        "accuracy",
        "-o",
        "t.onnx",
    )
    found = scores(command, "t.onnx", "iris.csv", "--metric", "accuracy")
    history = command(
        *("train", "iris.onnx", "iris.csv", "--target", "species", "--epochs", 2, "--metric", "accuracy"),
        *("-o", "u.onnx", "--history", "h.json", "--quiet"),
    )
    assert history.output == ""
    assert found["accuracy"] == pytest.approx(json.loads(Path("h.json").read_text())["accuracy"][-1])


def test_several_targets(tmp_path, monkeypatch, command, fails) -> None:
    monkeypatch.chdir(tmp_path)
    model("m.onnx", "g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }")
    X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    pd.DataFrame(X, columns=list("abcd")).to_csv("d.csv", index=False)
    found = scores(command, "m.onnx", "d.csv", "--target", "c,d", "--metric", "r2")
    assert found["r2"] == pytest.approx(metrics.r2_score(X[:, 2:], -X[:, :2]), rel=1e-5)
    assert "predicts 2 numbers a row, the target has 1" in fails(
        "evaluate", "m.onnx", "d.csv", "--target", "c", "--columns", "a,b"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("iris.csv",), "Missing option '--target'"),
        (("iris.csv", "--target", "nope"), "has no column 'nope'"),
        (("iris.csv", "--target", "species", "--metric", "nope"), "no score 'nope'"),
        (("iris.csv", "--target", "species", "--metric", "r2"), "'r2' cannot be computed here"),
        (("iris.csv", "--target", "species", "--task", "regression"), "cannot"),
        (("iris.csv", "--target", "petal width (cm)", "--columns", "species"), "takes 4 columns"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_refused(arguments: tuple[str, ...], words: str, folder: Path, fails) -> None:
    if "regression" in arguments:
        fails("evaluate", "iris.onnx", *arguments)
    else:
        assert words in fails("evaluate", "iris.onnx", *arguments)


@pytest.mark.parametrize("labels", [[0, 1, 2], [3, 5, 4], ["x", "z", "y"]], ids=str)
def test_labels_of_all_kinds(labels: list, tmp_path, monkeypatch, command) -> None:
    """What is measured while training is what is measured of the file afterwards."""
    monkeypatch.chdir(tmp_path)
    text = "g (float[N,2] x) => (float[N,3] s) <float[2,3] w = {0,0,0,0,0,0}> { s = MatMul(x, w) }"
    model("m.onnx", text)
    X = np.random.default_rng(0).normal(size=(60, 2))
    y = np.array(labels)[np.argmax(np.c_[X, -X.sum(axis=1)], axis=1)]
    pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": y}).to_csv("d.csv", index=False)
    command(
        *("train", "m.onnx", "d.csv", "--target", "y", "--task", "classification", "--lr", "0.5"),
        *("--metric", "accuracy", "--metric", "neg_log_loss", "--history", "h.json"),
    )
    found = scores(command, "m_trained.onnx", "d.csv")
    history = json.loads(Path("h.json").read_text())
    assert history["accuracy"][-1] > 0.8
    assert found["accuracy"] == pytest.approx(history["accuracy"][-1])
    assert found["neg_log_loss"] == pytest.approx(history["neg_log_loss"][-1], rel=1e-4)


@pytest.mark.filterwarnings("default")
def test_labels_that_the_model_does_not_have(folder: Path, command, fails) -> None:
    Path("rosa.csv").write_text(Path("iris.csv").read_text().replace("setosa", "rosa"))
    arguments = ("evaluate", "iris.onnx", "rosa.csv", "--target", "species")
    result = command(*arguments)
    assert result.stderr == "Warning: The target holds labels that iris.onnx does not have: 'rosa'.\n"
    assert "accuracy" in result.stdout
    assert "neg_log_loss" not in result.stdout


def test_one_column_for_each_class(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    model("m.onnx", "g (float[N,2] x) => (float[N,2] p) { p = Softmax(x) }")
    Path("d.csv").write_text("a,b,no,yes\n1,2,0,1\n3,1,1,0\n0,1,1,0\n")
    found = scores(command, "m.onnx", "d.csv", "--target", "no,yes", "--metric", "accuracy")
    assert found["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("labels", [[0, 1], ["b", "a"]], ids=str)
def test_two_raw_scores_rank_by_their_difference(labels: list, tmp_path, monkeypatch, command) -> None:
    """The second one alone ranks rows otherwise where both vary."""
    monkeypatch.chdir(tmp_path)
    names = str(labels).replace("'", '"')[1:-1]
    kind, value = ("string", "value_strings") if isinstance(labels[0], str) else ("int64", "value_ints")
    model(
        "m.onnx",
        f"""g (float[N, 2] x) => ({kind}[N] l, float[N, 2] z) {{
        z = Identity(x)  i = ArgMax <axis = 1, keepdims = 0> (x)
        n = Constant <{value} = [{names}]> ()  l = Gather(n, i) }}""",
    )
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2)).astype(np.float32) * [3, 1]
    y = np.array(labels)[((X[:, 1] - X[:, 0]) + rng.normal(size=60) > 0).astype(int)]
    pd.DataFrame({"u": X[:, 0], "v": X[:, 1], "y": y}).to_csv("rows.csv", index=False)
    found = scores(command, "m.onnx", "rows.csv", "--target", "y", "--metric", "roc_auc")
    expected = metrics.roc_auc_score(y == labels[1], X[:, 1] - X[:, 0])
    assert found["roc_auc"] == pytest.approx(expected)
    assert abs(metrics.roc_auc_score(y == labels[1], X[:, 1]) - expected) > 0.02


@pytest.mark.parametrize("end", ["z = MatMul(x, w) y = Identity(z)", "z = MatMul(x, w) y = Softmax(z)"])
def test_rows_of_any_shape(end: str, tmp_path, monkeypatch, command, fails) -> None:
    """Scores of frames, and labels of another length than there are frames."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    weights = ", ".join(f"{v:.3f}" for v in rng.normal(size=12))
    model("m.onnx", f"g (float[N,6,3] x) => (float[N,6,4] y) <float[3,4] w = {{{weights}}}> {{ {end} }}")
    x, labels, ids = rng.normal(size=(8, 6, 3)), rng.integers(1, 4, (8, 3)), np.arange(8) // 2
    weight, tokens = rng.uniform(1, 2, 8), rng.integers(0, 4, (8, 6))
    labels[::3, 1:], tokens[:, 4:] = -1, -100
    np.savez("d.npz", x=x, labels=labels, weight=weight, tokens=tokens, ids=ids)
    (made,) = session("m.onnx", x.astype(np.float32))
    data = ("m.onnx", "d.npz", "--columns", "x", "--target")
    options = ["--sample-weight", "weight", "--metric", "cer:beam=5", "--metric", "wer:space=1"]
    found = scores(command, *data, "labels", *options)
    expected = character_error_rate(labels, beam_search(made, 5), weight)
    assert found["cer:beam=5"] == pytest.approx(expected)
    assert found["wer:space=1"] == pytest.approx(word_error_rate(labels, best_path(made), 1, weight))
    options = ["--metric", "token_accuracy", "--metric", "mean_iou"]
    found = scores(command, *data, "tokens", *options)
    kept = tokens != -100
    labels = made.argmax(axis=2)
    assert found["token_accuracy"] == pytest.approx(metrics.accuracy_score(tokens[kept], labels[kept]))
    area = metrics.jaccard_score(tokens[kept], labels[kept], average="macro")
    assert found["mean_iou"] == pytest.approx(area)
    error = fails("evaluate", *data, "ids", "--metric", "recall:k=2")
    assert "embeddings (rows, columns)" in error


def test_embeddings(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    model("m.onnx", "g (float[N,3] x) => (float[N,3] e) { e = Tanh(x) }")
    x, ids = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) // 3
    pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "id": ids}).to_csv("d.csv", index=False)
    found = scores(command, "m.onnx", "d.csv", "--target", "id", "--metric", "recall:k=2")
    assert found["recall:k=2"] == pytest.approx(recall_at_k(np.tanh(x), ids, 2))

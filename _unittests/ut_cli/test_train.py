"""``onnxcustom train``: the same as the estimators do, and files that say so."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning

from onnxcustom import OnnxClassifier, OnnxRegressor, load, weights
from onnxcustom.cli.card import read_card
from onnxcustom.cli.last_good import LastGood
from onnxcustom.optim import Exp
from onnxcustom.tuning import Average

IRIS = ("train", "iris.onnx", "iris.csv", "--target", "species", "--epochs", "3")
HOUSE = ("train", "house.onnx", "house.parquet", "--target", "price", "--epochs", "3")
FEATURES = ["area", "rooms", "age"]


def trained(path: str) -> dict[str, np.ndarray]:
    return weights(path)


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def house() -> tuple[np.ndarray, np.ndarray]:
    frame = pd.read_parquet("house.parquet")
    return frame[FEATURES].to_numpy(np.float32), frame["price"].to_numpy()


def iris() -> tuple[np.ndarray, np.ndarray]:
    frame = pd.read_csv("iris.csv")
    return frame.iloc[:, :4].to_numpy(np.float32), frame["species"].to_numpy()


def model(path: str, text: str) -> None:
    head = '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>'
    Path(path).write_bytes(onnx.parser.parse_model(f"{head} {text}").SerializeToString())


# -- the estimators --------------------------------------------------------------------------------


def test_regression_is_that_of_the_estimator(folder: Path, command) -> None:
    options = ["--optimizer", "adam:wd=0.01", "--lr", "0.01", "--batch-size", "16", "--seed", "3"]
    more = ["--penalty", "l2:0.001", "--loss", "huber:delta=2", "--weights", "last:1", "--threads", "1"]
    command(*HOUSE, *options, *more, "-o", "out.onnx")
    from onnxcustom.objective import HuberLearningLoss, L2LearningPenalty
    from onnxcustom.optim import Adam

    net = OnnxRegressor(
        "house.onnx",
        optimizer=Adam(0.01, wd=0.01),
        batch_size=16,
        random_state=3,
        penalty=L2LearningPenalty(0.001),
        loss=HuberLearningLoss(2),
        weights_to_train="last:1",
        max_iter=3,
        threads=1,
    ).fit(*house())
    same(trained("out.onnx"), trained_by(net))
    assert any(
        (a != b).any()
        for a, b in zip(trained("out.onnx").values(), trained("house.onnx").values(), strict=True)
    )


def test_a_head_on_what_is_computed_once_and_its_average(folder: Path, command) -> None:
    options = ["--weights", "last:1", "--cache-frozen", "yes", "--average", "ema:decay=0.9", "--threads", "1"]
    command(*HOUSE, *options, "-o", "out.onnx")
    given = {"weights_to_train": "last:1", "max_iter": 3, "threads": 1, "random_state": 0}
    net = OnnxRegressor("house.onnx", cache_frozen=True, average=Average(0.9), **given).fit(*house())
    same(trained("out.onnx"), trained_by(net))
    result = command(*HOUSE, *options, "--cache-bytes", "1", "-o", "other.onnx", code=2)
    assert "more than the 1 of --cache-bytes" in result.stderr
    assert "--cache-frozen" in result.stderr


def test_options_of_cross_entropy(folder: Path, command, fails) -> None:
    command(*IRIS, "--loss", "cross_entropy:label_smoothing=0.1,class_weight=[1,2,1]", "-o", "out.onnx")
    from onnxcustom.objective import SoftmaxCrossEntropyLearningLoss

    loss = SoftmaxCrossEntropyLearningLoss(label_smoothing=0.1, class_weight=[1, 2, 1])
    net = OnnxClassifier("iris.onnx", loss=loss, max_iter=3, random_state=0).fit(*iris())
    same(trained("out.onnx"), trained_by(net))
    plain = OnnxClassifier("iris.onnx", loss="cross_entropy", max_iter=3, random_state=0).fit(*iris())
    with pytest.raises(AssertionError):
        same(trained("out.onnx"), trained_by(plain))
    for option, word in [("label_smoothing=2", "label_smoothing"), ("class_weight=[1,2]", "3 classes")]:
        line = fails(*IRIS, "--loss", f"cross_entropy:{option}", "-o", "bad.onnx", code=None)
        assert word in line
        assert not Path("bad.onnx").exists()


def trained_by(estimator) -> dict[str, np.ndarray]:
    return weights(estimator.get_trained_onnx())


def test_classification_is_that_of_the_estimator(folder: Path, command) -> None:
    result = command(*IRIS, "--class-weight", "setosa=2,virginica=0.5", "--validation", "0.2", "--no-shuffle")
    assert "classification ('species' holds labels)" in result.output
    net = OnnxClassifier(
        "iris.onnx",
        class_weight={"setosa": 2.0, "virginica": 0.5},
        validation_fraction=0.2,
        shuffle=False,
        random_state=0,
        max_iter=3,
    ).fit(*iris())
    same(trained("iris_trained.onnx"), trained_by(net))
    assert f"val_loss {net.history_['val_loss'][-1]:.5g}" in result.output


def test_weights_of_rows(folder: Path, command) -> None:
    X, y = house()
    w = np.random.default_rng(0).uniform(0.5, 2, len(y))
    pd.DataFrame({**dict(zip(FEATURES, X.T, strict=True)), "price": y, "w": w}).to_parquet("weighted.parquet")
    command(
        "train", "house.onnx", "weighted.parquet", "--target", "price", "--sample-weight", "w", "--epochs", 2
    )
    net = OnnxRegressor("house.onnx", max_iter=2, random_state=0).fit(X, y, sample_weight=w)
    same(trained("house_trained.onnx"), trained_by(net))
    plain = trained_by(OnnxRegressor("house.onnx", max_iter=2, random_state=0).fit(X, y))
    assert any((plain[name] != array).any() for name, array in trained_by(net).items())


@pytest.mark.parametrize("arguments", [IRIS, HOUSE], ids=["iris", "house"])
def test_streams_train_too(arguments: tuple[str, ...], folder: Path, command) -> None:
    told = command(
        *arguments, "--stream", "--validation", "0.2", "--metric", score(arguments), "-o", "s.onnx"
    )
    assert "read in blocks" in told.output
    assert f"val_{score(arguments)}" in told.output
    command(*arguments, "--stream", "--no-shuffle", "-o", "a.onnx")
    command(*arguments, "--no-stream", "--no-shuffle", "-o", "b.onnx")
    for a, b in zip(trained("a.onnx").values(), trained("b.onnx").values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def score(arguments: tuple[str, ...]) -> str:
    return "accuracy" if "iris.onnx" in arguments else "r2"


def test_large_files_are_streams(folder: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcustom.cli import tables

    for size, words in [(10, "read in blocks"), (1 << 29, "rows in memory")]:
        monkeypatch.setattr(tables, "IN_MEMORY", size)
        assert words in command(*HOUSE, "--force").output
        assert words in command(*IRIS, "--force").output


def test_validation_file(folder: Path, command) -> None:
    frame = pd.read_csv("iris.csv")
    frame.iloc[:30, ::-1].to_csv("other.csv", index=False)  # another order of columns
    result = command(*IRIS, "--validation", "other.csv")
    X, y = iris()
    net = OnnxClassifier("iris.onnx", random_state=0, max_iter=3).fit(X, y, X_val=X[:30], y_val=y[:30])
    assert f"val_loss {net.history_['val_loss'][-1]:.5g}" in result.output
    assert "val_loss" in command(*IRIS, "--validation", "other.csv", "--stream", "--force").output


# -- what is inferred ----------------------------------------------------------------------------------


def test_task_by_the_target(folder: Path, command) -> None:
    model(
        "raw.onnx",
        "g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {0,0,0,0,0,0,0,0,0,0,0,0}> { y = MatMul(x, w) }",
    )
    assert "classification" in command("train", "raw.onnx", "iris.csv", "--target", "species").output


@pytest.mark.parametrize(
    ("text", "y", "options", "words"),
    [
        ("p = Sigmoid(z)", [0, 1], (), "classification (the model ends in a Sigmoid)"),
        ("p = Sigmoid(z)", [0.25, 0.5], (), "regression ('y' holds fractions)"),
        ("p = Tanh(z)", [0, 1], (), "regression (the model ends in numbers"),
        ("p = Identity(z)", [0, 1], ("--loss", "bce"), "classification (the loss is one of labels)"),
        ("p = Identity(z)", [0, 1], ("--task", "classification"), "classification (as asked for)"),
        ("p = Sigmoid(z)", [0, 1], ("--task", "regression"), "regression (as asked for)"),
        ("p = Sigmoid(z)", [0, 1], ("--loss", "mae"), "regression (the loss is one of numbers)"),
        ("p = Identity(z)", ["true", "false"], (), "classification ('y' holds labels)"),
    ],
)
def test_task(
    text: str, y: list, options: tuple[str, ...], words: str, tmp_path, monkeypatch, command
) -> None:
    monkeypatch.chdir(tmp_path)
    model(
        "m.onnx", f"g (float[N,1] x) => (float[N,1] p) <float[1,1] w = {{0.5}}> {{ z = MatMul(x, w) {text} }}"
    )
    Path("d.csv").write_text("x,y\n" + "".join(f"{i},{y[i % 2]}\n" for i in range(20)))
    result = command("train", "m.onnx", "d.csv", "--target", "y", "--epochs", 2, *options)
    assert words in result.output
    card = read_card(load("m_trained.onnx"))
    assert card is not None
    assert card.task == words.split()[0]


def test_several_inputs_by_name_and_by_option(tmp_path, monkeypatch, command, fails) -> None:
    monkeypatch.chdir(tmp_path)
    model(
        "m.onnx",
        """g (float[N,1] a, float[N,2] b) => (float[N,1] y) <float[1,1] v = {0}, float[2,1] w = {0,0}> {
        s = MatMul(a, v)  t = MatMul(b, w)  y = Add(s, t) }""",
    )
    X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    frame = pd.DataFrame(
        {"a": X[:, 0], "b": list(X[:, 1:]), "y": X @ [1.0, 2.0, 3.0], "b0": X[:, 1], "b, 1": X[:, 2]}
    )
    frame.to_parquet("d.parquet")
    command("train", "m.onnx", "d.parquet", "--target", "y", "--epochs", 2, "-o", "one.onnx")
    command(
        *("train", "m.onnx", "d.parquet", "--target", "y", "--epochs", 2, "-o", "two.onnx"),
        *("--input", "a=a", "--input", 'b=b0,"b, 1"'),
    )
    same(trained("one.onnx"), trained("two.onnx"))
    net = OnnxRegressor("m.onnx", max_iter=2, random_state=0).fit({"a": X[:, :1], "b": X[:, 1:]}, frame["y"])
    same(trained("one.onnx"), trained_by(net))
    assert "--input is missing for 'b'" in fails(
        "train", "m.onnx", "d.parquet", "--target", "y", "--input", "a=a"
    )
    assert "give --input" in fails("train", "m.onnx", "d.parquet", "--target", "y", "--columns", "a")
    frame.drop(columns="b").to_parquet("e.parquet")
    assert "no column 'b'" in fails("train", "m.onnx", "e.parquet", "--target", "y")


def test_pictures_from_columns(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    model(
        "m.onnx",
        """g (float[N,1,2,2] x) => (float[N,1] y) <float[1,1,2,2] w = {1,2,3,4}> {
        c = Conv(x, w)  y = Flatten(c) }""",
    )
    X = np.random.default_rng(0).normal(size=(12, 4))
    pd.DataFrame(X, columns=list("abcd")).assign(y=X.sum(axis=1)).to_csv("d.csv", index=False)
    command("train", "m.onnx", "d.csv", "--target", "y", "--epochs", 2)
    pictures = X.reshape(-1, 1, 2, 2).astype(np.float32)
    net = OnnxRegressor("m.onnx", max_iter=2, random_state=0).fit(pictures, X.sum(axis=1))
    same(trained("m_trained.onnx"), trained_by(net))
    np.savez("d.npz", x=pictures, y=X.sum(axis=1))
    command("train", "m.onnx", "d.npz", "--target", "y", "--epochs", 2, "-o", "npz.onnx")
    same(trained("npz.onnx"), trained_by(net))


def test_several_targets(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    model("m.onnx", "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }")
    X = np.random.default_rng(0).normal(size=(12, 4))
    pd.DataFrame(X, columns=["a", "y,1", "b", "y2"]).to_csv("d.csv", index=False)
    command("train", "m.onnx", "d.csv", "--target", "y,1", "--target", "y2", "--epochs", 2)
    inputs = X[:, [0, 2]].astype(np.float32)
    net = OnnxRegressor("m.onnx", max_iter=2, random_state=0).fit(inputs, X[:, [1, 3]])
    same(trained("m_trained.onnx"), trained_by(net))
    assert "r2" in command("evaluate", "m_trained.onnx", "d.csv").output


def test_a_model_goes_on_with_the_columns_it_knows(folder: Path, command) -> None:
    command(*HOUSE, "-o", "one.onnx")
    result = command(
        "train", "one.onnx", "town.parquet", "--target", "price", "--epochs", "1", "-o", "two.onnx"
    )
    assert "columns 3 -> 'X'" in result.output
    # Another target, which was a feature before: no model learns from its own answer.
    command("train", "one.onnx", "house.parquet", "--target", "area", "--epochs", "1", "-o", "three.onnx")
    card = read_card(load("three.onnx"))
    assert card is not None
    assert card.columns == {"X": ["rooms", "age", "price"]}
    assert card.target == ["area"]


def test_card(folder: Path, command) -> None:
    command(*IRIS)
    card = read_card(load("iris_trained.onnx"))
    assert card is not None
    assert card.classes == ["setosa", "versicolor", "virginica"]
    assert card.target == ["species"]
    assert list(card.columns.values()) == [list(pd.read_csv("iris.csv", nrows=1))[:4]]


# -- what is told and left -----------------------------------------------------------------------------


def test_history_plot_and_summary(folder: Path, command) -> None:
    result = command(
        *(*IRIS, "--epochs", "4", "--metric", "accuracy", "--validation", "0.2"),
        *("--history", "h.csv", "--plot", "p.svg", "-o", "m.onnx"),
    )
    with open("h.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert set(rows[0]) == {"epoch", "loss", "val_loss", "val_accuracy", "learning_rate", "seconds"}
    lines = result.output.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/4", "2/4", "3/4", "4/4"]
    (summary,) = [line for line in lines if line.startswith("4 epochs in")]
    assert f"val_accuracy {float(rows[-1]['val_accuracy']):.5g}" in summary
    assert lines[-2:] == ["Model: m.onnx", "Also: p.svg, h.csv"]
    assert "<svg" in Path("p.svg").read_text(encoding="utf-8")
    left = {p.name for p in folder.iterdir()}
    assert not [name for name in left if "part" in name]


def test_history_as_json_of_a_training_that_is_through(folder: Path, command) -> None:
    command(*HOUSE, "--checkpoint", "run", "-o", "a.onnx", "--history", "a.json")
    command(*HOUSE, "--checkpoint", "run", "-o", "b.onnx", "--history", "b.json")
    a, b = (json.loads(Path(name).read_text(encoding="utf-8")) for name in ("a.json", "b.json"))
    assert a["loss"] == b["loss"]
    assert a["epoch"] == b["epoch"] == [1, 2, 3]


def test_quiet(folder: Path, command) -> None:
    assert command(*HOUSE, "--quiet", "--history", "h.csv", "--plot", "p.png").output == ""
    assert Path("house_trained.onnx").exists()


def test_early_stopping_keeps_the_best(folder: Path, command) -> None:
    result = command(
        *("train", "house.onnx", "house.parquet", "--target", "price", "--validation", "0.3"),
        *("--epochs", "60", "--early-stopping", "2", "--lr", "0.2", "--history", "h.json"),
    )
    history = json.loads(Path("h.json").read_text(encoding="utf-8"))
    best = int(np.argmin(history["val_loss"])) + 1
    assert len(history["loss"]) < 60
    assert "stopped: val_loss has not improved" in result.output
    assert f"weights of epoch {best}, the best" in result.output
    assert f"val_loss {min(history['val_loss']):.5g}\n" in result.output


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping_after_as_many_epochs_as_it_says(patience: int, folder: Path, command) -> None:
    result = command(
        *("train", "house.onnx", "house.parquet", "--target", "price", "--epochs", "30", "--lr", "0"),
        *("--early-stopping", patience, "--history", "h.json", "--validation", "0.3"),
    )
    assert len(json.loads(Path("h.json").read_text(encoding="utf-8"))["loss"]) == 1 + patience
    assert f"(epoch 1) for {patience} epoch" in result.output


def test_monitor_a_score(folder: Path, command, fails) -> None:
    command(
        *IRIS,
        "--validation",
        "0.2",
        "--metric",
        "accuracy",
        "--early-stopping",
        "1",
        "--monitor",
        "val_accuracy",
    )
    assert "val_f1" in fails(*IRIS, "--early-stopping", "1", "--monitor", "val_f1", "--force")
    assert "--monitor is for" in fails(*IRIS, "--monitor", "loss", "--force")


def test_schedules(folder: Path, command) -> None:
    command(
        *HOUSE, "--epochs", "4", "--lr", "0.1", "--schedule", "linear", "--history", "h.json", "-o", "a.onnx"
    )
    assert json.loads(Path("h.json").read_text())["learning_rate"] == pytest.approx([0.075, 0.05, 0.025, 0.0])
    options = ("--schedule", "plateau:patience=0,factor=0.5", "--monitor", "loss", "--lr", "0.02")
    command(*HOUSE, *options, "-o", "b.onnx")


def test_time_budget(folder: Path, command) -> None:
    options = ("--epochs", "100000", "--time-budget", "0.3", "--checkpoint", "run", "-o", "m.onnx")
    result = command("train", "house.onnx", "house.parquet", "--target", "price", *options)
    assert "time budget" in result.output
    assert "To go on: onnxcustom train house.onnx" in result.output
    assert result.output.splitlines()[-1].endswith("--force")
    assert Path("m.onnx").exists()


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "nope"), "has no column 'nope'; it has 'area', 'rooms', 'age', 'price'"),
        (("--columns", "area,nope"), "--columns: house.parquet has no column 'nope'"),
        (("--columns", "area,rooms"), "takes 3 columns, and house.parquet has 2 for it: 'area', 'rooms'"),
        (("--columns", "area,rooms,price"), "column 'price' cannot be a feature and the target"),
        (("--columns", "area,area,age"), "names column 'area' twice"),
        (("--input", "Z=area"), "--input 'Z=area': NAME=VALUE was expected, where NAME is one of ['X']"),
        (("--sample-weight", "nope"), "--sample-weight: house.parquet has no column 'nope'"),
        (("--optimizer", "adamm"), "--optimizer 'adamm': 'adamm' is no update rule"),
        (("--optimizer", "adam:beta9=1"), "has no option ['beta9']"),
        (("--optimizer", "adam:beta1=x"), "beta1"),
        (("--lr", "-1"), "--lr"),
        (("--lr", "nan"), "--lr"),
        (("--schedule", "nope"), "--schedule 'nope' is none of"),
        (("--schedule", "step"), "step_size"),
        (("--schedule", "plateau", "--warmup", "1"), "--warmup does not go with"),
        (("--loss", "nope"), "--loss 'nope': 'nope' is no loss"),
        (("--loss", "huber:delta=-1"), "delta"),
        (("--penalty", "l3:1"), "--penalty 'l3:1'"),
        (("--penalty", "l2:-1"), "l2"),
        (("--weights", "nope"), "nope"),
        (("--freeze", "last:9"), "asks for more layers"),
        (("--metric", "nope"), "no score 'nope'"),
        (("--validation", "1.5"), "a part is in (0, 1)"),
        (("--validation", "missing.csv"), "There is no file 'missing.csv'"),
        (("--class-weight", "balanced"), "--class-weight is for classification"),
        (("--batch-size", "0"), "0"),
        (("--output-name", "nope"), "no output 'nope'"),
        (("--plot", "p.docx"), "--plot 'p.docx': its name must end in .png or .svg"),
        (("--history", "h.txt"), "must end in .csv or .json"),
        (("-o", "m.h5"), "must end in .onnx"),
        (("-o", "no/m.onnx"), "there is no folder"),
        (("-o", "house.onnx"), "is a file that is read"),
        (("--history", "house_trained.onnx"), "must end in"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_refused_before_anything_is_written(
    arguments: tuple[str, ...], words: str, folder: Path, fails
) -> None:
    before = {p.name for p in folder.iterdir()}
    given = list(HOUSE)
    if arguments[0] == "--target":
        given[given.index("--target") : given.index("--target") + 2] = []
    assert words in fails(*given, *arguments)
    assert {p.name for p in folder.iterdir()} == before


def test_what_cannot_be_trained(folder: Path, fails) -> None:
    model("none.onnx", "g (float[N,3] x) => (float[N,3] y) { y = Tanh(x) }")
    assert "no trainable weight" in fails(*HOUSE[:1], "none.onnx", *HOUSE[2:], code=1)
    assert "is not a device" in fails(*HOUSE, "--device", "abacus", code=1)


def test_no_model(folder: Path, fails) -> None:
    Path("bad.onnx").write_bytes(b"no model")
    assert "bad.onnx" in fails("train", "bad.onnx", "house.parquet", "--target", "price")


@pytest.mark.filterwarnings("default")
def test_loss_that_is_infinite(folder: Path, fails, command) -> None:
    line = fails(*HOUSE, "--lr", "1e30", "--quiet", "--history", "h.csv", code=1)
    assert "Epoch" in line
    assert not list(folder.glob("*part*"))
    assert not Path("house_trained.onnx").exists()
    result = command(*HOUSE, "--lr", "1e30", "--nonfinite", "stop", "--quiet")
    assert result.stderr.startswith("Warning: ")
    assert all(np.isfinite(w).all() for w in trained("house_trained.onnx").values())


def test_good_weights_are_kept_in_checkpoints(tmp_path) -> None:
    """A training that goes on where it was, and then diverges, ends on the weights of one in one go."""
    x = np.linspace(0.5, 1.5, 8, dtype=np.float32)[:, None]
    y = (x + 0.1 * (-1) ** np.arange(8)[:, None]).astype(np.float32)
    text = "g (float[N,1] x) => (float[N,1] y) <float[1,1] w = {0.5}> { y = MatMul(x, w) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    found = []
    for name, lengths in (("one", (40,)), ("two", (3, 40)), ("late", (5, 40))):
        for epochs in lengths:
            net = OnnxRegressor(
                proto,
                learning_rate=Exp(0.02, gamma=4.0),
                batch_size=1,
                random_state=0,
                max_iter=epochs,
                callbacks=[LastGood()],
                checkpoint_dir=tmp_path / name,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                net.fit(x, y)
        found.append((float(net.weights_["w"][0, 0]), net.callbacks_[0].told_))
    assert found[0] == found[1] == found[2]
    assert "at the beginning of epoch" in found[0][1]
    assert 0.6 < found[0][0] < 1.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--lr 0.25", "learning rate 0.25;"),
        ("--lr 0.25 --schedule cosine", "learning rate 0.25 at first, by cosine;"),
        (
            "--lr 0.25 --schedule exponential:gamma=0.5",
            "learning rate 0.125 at first, by exponential:gamma=0.5 from 0.25;",
        ),
        ("--lr 0.75 --warmup 2", "learning rate 0.25 at first, rising to 0.75 over 2 epochs;"),
        (
            "--lr 0.75 --schedule cosine --warmup 1",
            "learning rate 0.25 at first, rising to 0.75 over 1 epoch, then by cosine;",
        ),
    ],
)
def test_the_rate_is_explained(options: str, words: str, folder: Path, command) -> None:
    said = command(*HOUSE, "--epochs", "1", "--loss", "huber", *options.split(), "-o", "m.onnx").stdout
    assert words in said


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("rate", [0.02, 1e15], ids=["slowly", "in the first epoch"])
@pytest.mark.parametrize("validation", [False, True], ids=["loss", "val_loss"])
def test_weights_of_before_it_diverged(rate: float, validation: bool, tmp_path, monkeypatch, command) -> None:
    """Weights grow long before they are infinite: those of the epoch of the lowest loss are written."""
    monkeypatch.chdir(tmp_path)
    model("m.onnx", "g (float[N,1] x) => (float[N,1] y) <float[1,1] w = {0.5}> { y = MatMul(x, w) }")
    x = np.linspace(0.5, 1.5, 8)
    y = x + 0.1 * (-1) ** np.arange(8)
    pd.DataFrame({"x": x, "y": y}).to_csv("d.csv", index=False)
    options = ("--lr", rate, "--schedule", "exponential:gamma=4", "--epochs", "40", "--batch-size", "1")
    held = ("--validation", "d.csv") if validation else ()
    result = command(
        "train", "m.onnx", "d.csv", "--target", "y", *options, "--no-shuffle", "--nonfinite", "stop", *held
    )
    w = float(trained("m_trained.onnx")["w"][0, 0])
    # By hand: weights before and after every epoch, its mean loss, and that of all rows after it.
    epochs, now = [], 0.5
    for k in range(40):
        begin, losses = now, []
        for a, b in zip(x, y, strict=True):
            losses.append((a * now - b) ** 2)
            now -= rate * 4 ** (k + 1) * (a * now - b) * a  # half a squared error
        if max(losses) > 1e38:
            break
        epochs.append((begin, now, np.mean(losses), np.mean((x * now - y) ** 2)))
    if rate > 1:
        assert not epochs
        assert w == 0.5
        assert "weights as before training" in result.stderr
        assert "weights as before training" in result.stdout
        return
    best = min(epochs, key=lambda e: e[3] if validation else e[2])
    assert best is not epochs[0]
    assert max(e[2] for e in epochs) > 1e6
    assert w == pytest.approx(best[1] if validation else best[0], rel=1e-4)
    words = "after epoch" if validation else "at the beginning of epoch"
    assert f"weights {words} {epochs.index(best) + 1}, whose" in result.stderr
    assert f"diverged, weights {words} {epochs.index(best) + 1}, whose" in result.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("area,rooms,age,price\n1,2,3,4\n1,x,3,4\n", "d.csv, line 3, column 'rooms': 'x'"),
        ("area,rooms,age,price\n1,2,3,4\n1,,3,4\n", "line 3, column 'rooms'"),
        ("area,rooms,age,price\n1,2,3,4\n1,nan,3,4\n", "line 3"),
        ("area,rooms,age,price\n1,2,3,4\n1,1e99,3,4\n", "too large"),
        ("area,rooms,age,price\n1,2,3,4\n1,2,3\n", "line 3"),
        ("area,rooms,age,price\n", "There are no rows"),
        ("", "d.csv is empty"),
        ("1,2,3,4\n1,2,3,4\n", "the first line names"),
        ("area,rooms,age,area,price\n1,2,3,4,5\n", "several columns called 'area'"),
    ],
)
def test_bad_files_of_rows(text: str, words: str, folder: Path, fails) -> None:
    Path("d.csv").write_text(text)
    assert words in fails("train", "house.onnx", "d.csv", "--target", "price")


def test_labels_that_the_model_does_not_have(folder: Path, fails) -> None:
    text = Path("iris.csv").read_text().replace("setosa", "rosa")
    Path("rosa.csv").write_text(text)
    assert "'rosa'" in fails("train", "iris.onnx", "rosa.csv", "--target", "species")


# -- names of all kinds --------------------------------------------------------------------------------


def test_spaces_and_other_letters(folder: Path, command) -> None:
    place = folder / "мой dossier"
    place.mkdir()
    frame = pd.read_parquet("house.parquet")
    frame.columns = ["Fläche, m²", "部屋 数", "age=1", "prix €"]
    frame.to_csv(place / "maisons été.csv", index=False)
    out = place / "entraîné 1.onnx"
    command(
        *("train", folder / "house.onnx", place / "maisons été.csv", "--target", "prix €"),
        *("--columns", "Fläche, m²", "--columns", "部屋 数,age=1", "-o", out, "--history", place / "h é.csv"),
        *("--checkpoint", place / "run 1", "--plot", place / "p é.png", "--epochs", "2"),
    )
    assert {p.name for p in place.iterdir()} == {
        "maisons été.csv",
        "entraîné 1.onnx",
        "h é.csv",
        "p é.png",
        "run 1",
    }
    assert command("predict", out, place / "maisons été.csv").output.startswith("prediction\n")


def test_what_a_stranger_mistypes(folder: Path, fails) -> None:
    Path("latin.csv").write_bytes("gr\xf6\xdfe,rooms,age,price\n1,2,3,4\n".encode("latin-1"))
    assert "latin.csv cannot be read as CSV: it is not in UTF-8 (byte 0xf6)" in fails(
        "train", "house.onnx", "latin.csv", "--target", "price"
    )
    np.savez("rows.npz", x=np.ones((10, 3), np.float32), price=np.ones(9))
    said = fails("train", "house.onnx", "rows.npz", "--target", "price")
    assert "The columns of rows.npz differ in length" in said
    assert "Did you mean 'cosine'?" in fails(*HOUSE, "--schedule", "cosin")
    assert "Did you mean 'f1_macro' or" in fails(*HOUSE, "--metric", "f1_makro")

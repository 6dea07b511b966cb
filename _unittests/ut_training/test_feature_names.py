"""Columns by name: in another order they are put in order, with others they are refused."""

from __future__ import annotations

import importlib
import json
import pickle

import numpy as np
import onnx.parser
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep, load, save
from onnxcustom.cli import main
from onnxcustom.data import stream
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.graph.files.feature_names import read_feature_names, write_feature_names
from onnxcustom.training.from_sklearn import from_sklearn
from onnxcustom.training.optimizers_partial import OrtGradientForwardBackwardOptimizer

pytest.importorskip("onnxruntime")

NAMES = ["area", "rooms", "age"]
MIXED = ["age", "area", "rooms"]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype(np.float32)
Y = (X @ [1.0, -2.0, 3.0]).astype(np.float32)
LABELS = np.where(Y > 0, "dear", "cheap")
LINE = """<ir_version: 8, opset_import: ["": 17]>
line (float[N, 3] x) => (float[N, 1] y) <float[3, 1] w = {0, 0, 0}> { y = MatMul(x, w) }"""
OPTIONS = {"learning_rate": 0.1, "max_iter": 5, "random_state": 0}


def line():
    return onnx.parser.parse_model(LINE)


def regressor(model=None, **options):
    return OnnxRegressor(line() if model is None else model, **{**OPTIONS, **options})


def table(kind, names=NAMES, **more):
    frame = pd.DataFrame(X, columns=NAMES)[list(names)].assign(**more)
    if kind == "pandas":
        return frame
    columns = {name: frame[name].to_numpy() for name in frame}
    if kind == "polars":
        return pytest.importorskip("polars").DataFrame(columns)
    pa = pytest.importorskip("pyarrow")
    return pa.table(columns) if kind == "table" else pa.RecordBatch.from_pydict(columns)


KINDS = pytest.mark.parametrize("kind", ["pandas", "polars", "table", "batch"])


@pytest.fixture
def expected():
    return regressor().fit(X, Y)


@KINDS
def test_another_order_is_the_same(kind, expected):
    net = regressor().fit(table(kind), Y)
    assert net.feature_names_in_.tolist() == NAMES
    np.testing.assert_array_equal(net.weights_["w"], expected.weights_["w"])
    mixed = table(kind, MIXED)
    np.testing.assert_array_equal(net.predict(mixed), expected.predict(X))
    assert net.score(mixed, Y) == net.score(table(kind), Y)
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(again.predict(mixed), expected.predict(X))
    net.partial_fit(mixed, Y)
    other = regressor().fit(X, Y).partial_fit(X, Y)
    np.testing.assert_array_equal(net.weights_["w"], other.weights_["w"])
    np.testing.assert_array_equal(again.partial_fit(mixed, Y).weights_["w"], other.weights_["w"])


@KINDS
def test_validation_in_another_order(kind):
    expected = regressor().fit(X, Y, X_val=X, y_val=Y)
    net = regressor().fit(table(kind), Y, X_val=table(kind, MIXED), y_val=Y)
    assert net.history_ == expected.history_


@KINDS
@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["area", "room", "age"], r"'rooms' is missing, 'room' is not among them. Did you mean 'room'\?"),
        (["area", "rooms"], "'age' is missing"),
    ],
)
def test_other_columns_are_refused(kind, names, told):
    frame = table(kind, NAMES)
    given = table(kind, NAMES[: len(names)])
    if kind == "pandas":
        given.columns = names
    else:
        given = (
            given.rename(dict(zip(NAMES, names, strict=False)))
            if kind == "polars"
            else given.rename_columns(names)
        )
    net = regressor().fit(frame, Y)
    before = net.weights_["w"]
    calls = [
        lambda: net.predict(given),
        lambda: net.score(given, Y),
        lambda: net.partial_fit(given, Y),
        lambda: net.partial_fit(frame, Y, X_val=given, y_val=Y),
    ]
    for call in calls:
        with pytest.raises(InvalidDataError, match=told):
            call()
    np.testing.assert_array_equal(net.weights_["w"], before)


@KINDS
def test_a_column_too_many_is_named(kind):
    wide = table(kind, NAMES, colour=1.0)
    with pytest.raises(InvalidDataError, match=r"wants 3 columns, the data has 4: 'area', .*'colour'"):
        regressor().fit(wide, Y)
    with pytest.raises(InvalidDataError, match=r"wants 3 columns, the data has 4: .*'colour'"):
        TrainingStep(line()).run(wide, Y)
    net = regressor().fit(table(kind), Y)
    with pytest.raises(InvalidDataError, match="'colour' is not among them"):
        net.predict(wide)


def test_the_trained_model_knows_them(tmp_path):
    net = regressor().fit(table("pandas"), Y)
    trained = net.get_trained_onnx()
    entry = {p.key: p.value for p in trained.metadata_props}["feature_names_in"]
    assert json.loads(entry) == NAMES
    save(trained, tmp_path / "m.onnx")
    again = regressor(tmp_path / "m.onnx").fit(table("pandas", MIXED), Y)
    assert again.feature_names_in_.tolist() == NAMES
    wanted = regressor(trained).fit(X, Y)
    np.testing.assert_array_equal(again.weights_["w"], wanted.weights_["w"])
    np.testing.assert_array_equal(wanted.predict(table("pandas", MIXED)), again.predict(table("pandas")))
    with pytest.raises(InvalidDataError, match="'a', 'b', 'c' are not among them"):
        regressor(trained).fit(pd.DataFrame(X, columns=list("abc")), Y)
    step = TrainingStep(load(tmp_path / "m.onnx"), learning_rate=0.1)
    loss = step.run(table("pandas", MIXED), Y)
    assert loss == TrainingStep(trained, learning_rate=0.1).run(X, Y)
    assert read_feature_names(step.trained_model()) == {"x": tuple(NAMES)}


def test_frames_of_numbered_columns_have_no_names(expected):
    net = regressor().fit(pd.DataFrame(X), Y)
    assert not hasattr(net, "feature_names_in_")
    np.testing.assert_array_equal(net.predict(pd.DataFrame(X)), expected.predict(X))
    assert not read_feature_names(net.get_trained_onnx())


def test_parameters_that_change_keep_them():
    net = regressor(warm_start=True).fit(table("pandas"), Y).set_params(penalty="l2")
    net.fit(table("pandas", MIXED), Y)
    assert read_feature_names(net.get_trained_onnx()) == {"x": tuple(NAMES)}
    with pytest.raises(InvalidDataError, match="are missing"):
        net.set_params(penalty="l1").fit(pd.DataFrame(X, columns=list("abc")), Y)


def test_the_partial_optimizer():
    net = OrtGradientForwardBackwardOptimizer(line(), max_iter=3, random_state=0).fit(table("pandas"), Y)
    np.testing.assert_array_equal(net.predict(table("pandas", MIXED)), net.predict(table("pandas")))
    np.testing.assert_array_equal(net.losses(table("pandas", MIXED), Y), net.losses(table("pandas"), Y))
    assert read_feature_names(net.get_trained_onnx()) == {"x": tuple(NAMES)}


# -- streams ------------------------------------------------------------------------------------------


def write(frame, kind, folder):
    if kind in ("parquet", "feather"):
        pytest.importorskip("pyarrow")
    path = folder / f"rows.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind in ("parquet", "feather"):
        getattr(frame, f"to_{kind}")(path)
    return path


def source(frame, kind, folder):
    if kind == "frame":
        return frame
    if kind == "batches":
        return lambda: iter([frame.iloc[:40], frame.iloc[40:]])
    if kind == "iterator":
        return iter([frame.iloc[:40], frame.iloc[40:]])
    if kind == "dataset":
        return pytest.importorskip("pyarrow.dataset").dataset(write(frame, "parquet", folder))
    return write(frame, kind, folder)


STREAMS = pytest.mark.parametrize(
    "kind", ["frame", "csv", "parquet", "feather", "dataset", "batches", "iterator"]
)


@STREAMS
def test_streams_in_another_order(kind, tmp_path):
    options = {"shuffle": False} | ({"max_iter": 1} if kind == "iterator" else {})
    wanted = regressor(**options).fit(X, Y)
    model = line()
    write_feature_names(model, {"x": NAMES})
    mixed = table("pandas", ["age", "area", "rooms"], price=Y)
    rows = stream(source(mixed, kind, tmp_path), target="price")
    net = regressor(model, **options).fit(rows)
    np.testing.assert_allclose(net.weights_["w"], wanted.weights_["w"], rtol=1e-5)
    np.testing.assert_array_equal(net.predict(table("pandas", MIXED)), net.predict(X))
    # Without names in the model it is the order of the first table that counts.
    rows = stream(source(mixed, kind, tmp_path), target="price")
    net = regressor(**options).fit(rows)
    assert read_feature_names(net.get_trained_onnx()) == {"x": tuple(MIXED)}
    ordered = stream(source(table("pandas", NAMES, price=Y), kind, tmp_path), target="price")
    expected = regressor(**options).fit(X[:, [2, 0, 1]], Y).partial_fit(X[:, [2, 0, 1]], Y)
    np.testing.assert_allclose(net.partial_fit(ordered).weights_["w"], expected.weights_["w"], rtol=1e-5)


@STREAMS
def test_streams_of_other_columns(kind, tmp_path):
    net = regressor(max_iter=1).fit(table("pandas"), Y)
    before = net.weights_["w"]
    odd = table("pandas", NAMES, price=Y).rename(columns={"rooms": "room"})
    rows = stream(source(odd, kind, tmp_path), target="price")
    with pytest.raises(InvalidDataError, match=r"'rooms' is missing.*Did you mean 'room'\?"):
        net.partial_fit(rows)
    rows = stream(source(table("pandas", NAMES, price=Y, colour=Y), kind, tmp_path), target="price")
    with pytest.raises(InvalidDataError, match=r"'colour' is not among them.*columns="):
        net.partial_fit(rows)
    rows = stream(source(table("pandas", NAMES, price=Y, colour=Y), kind, tmp_path), target="price")
    with pytest.raises(InvalidDataError, match=r"wants 3 columns, the data has 4: 'area', .*'colour'"):
        regressor(max_iter=1).fit(rows)
    np.testing.assert_array_equal(net.weights_["w"], before)


def test_validation_streams(tmp_path):
    rows = stream(table("pandas", NAMES, price=Y), target="price")
    mixed = stream(table("pandas", MIXED, price=Y), target="price")
    net = regressor(shuffle=False).fit(rows, X_val=mixed)
    assert net.history_["val_loss"] == pytest.approx(
        regressor(shuffle=False).fit(rows, X_val=rows).history_["val_loss"]
    )
    wide = stream(table("pandas", NAMES, price=Y, colour=Y), target="price")
    with pytest.raises(InvalidDataError, match="'colour' is not among them"):
        regressor().fit(rows, X_val=wide)


# -- from scikit-learn --------------------------------------------------------------------------------

ESTIMATORS = {
    "logistic": lambda: LogisticRegression(),
    "pipeline": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "perceptron": lambda: MLPClassifier(max_iter=5, random_state=0),
    "regression": lambda: LinearRegression(),
    "columns": lambda: make_pipeline(
        make_column_transformer((StandardScaler(), ["age", "area"]), remainder="passthrough"),
        LogisticRegression(),
    ),
    "kept": lambda: make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:.*The format of the columns of the 'remainder':FutureWarning")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_from_sklearn(name, tmp_path):
    y = Y if name == "regression" else LABELS
    frame, mixed = table("pandas"), table("pandas", MIXED)
    fitted = ESTIMATORS[name]().fit(frame, y)
    made = from_sklearn(fitted, mixed, learning_rate=1e-9, max_iter=1)
    method = "predict" if name == "regression" else "predict_proba"
    made.fit(mixed, y)
    for net in (made, pickle.loads(pickle.dumps(made))):
        found = getattr(net, method)(mixed)
        np.testing.assert_array_equal(found, getattr(net, method)(frame))
        np.testing.assert_allclose(found, getattr(fitted, method)(frame), rtol=1e-4, atol=1e-5)
    if name == "kept":
        return
    trained = made.get_trained_onnx()
    assert read_feature_names(trained) == {trained.graph.input[0].name: tuple(NAMES)}
    assert made.feature_names_in_.tolist() == NAMES
    with pytest.raises(InvalidDataError, match="'rooms' is missing"):
        made.predict(frame[["area", "age"]])
    save(trained, tmp_path / "m.onnx")
    kind = type(made)
    again = kind(tmp_path / "m.onnx", learning_rate=1e-9, max_iter=1).fit(mixed, y)
    np.testing.assert_allclose(getattr(again, method)(mixed), found, rtol=1e-5)


def test_estimators_fitted_on_arrays_take_any_names():
    made = from_sklearn(LogisticRegression().fit(X, LABELS), X, max_iter=1)
    made.fit(X, LABELS)
    assert not read_feature_names(made.get_trained_onnx())


# -- command line -------------------------------------------------------------------------------------


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code, capsys.readouterr()


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = regressor().fit(table("pandas"), Y)
    save(net.get_trained_onnx(), "m.onnx")
    table("pandas", MIXED, price=Y).to_csv("mixed.csv", index=False)
    table("pandas", MIXED, price=Y).rename(columns={"rooms": "room"}).to_csv("odd.csv", index=False)
    code, said = run(capsys, "predict", "m.onnx", "mixed.csv")
    assert code == 0, said.err
    found = np.array(said.out.split()[1:], dtype=np.float32)
    np.testing.assert_allclose(found, net.predict(table("pandas")), rtol=1e-5, atol=1e-6)
    code, said = run(capsys, "evaluate", "m.onnx", "mixed.csv", "--target", "price", "--json")
    assert code == 0, said.err
    assert json.loads(said.out)["metrics"]["r2"] == pytest.approx(net.score(table("pandas"), Y), rel=1e-4)
    code, said = run(capsys, "predict", "m.onnx", "odd.csv")
    assert code != 0
    assert "Did you mean 'room'?" in said.err
    code, said = run(
        capsys,
        "train",
        "m.onnx",
        "mixed.csv",
        "--target",
        "price",
        "-o",
        "t.onnx",
        "--no-shuffle",
        "--epochs",
        1,
    )
    assert code == 0, said.err
    assert read_feature_names(load("t.onnx")) == {"x": tuple(NAMES)}
    for option in ("--stream", "--no-stream"):
        code, said = run(
            capsys, "train", "m.onnx", "odd.csv", "--target", "price", "--columns", "area,room,age", "-o",
            "o.onnx", "--force", "--epochs", 1, option,
        )  # fmt: skip
        assert code == 0, said.err
        assert read_feature_names(load("o.onnx")) == {"x": ("area", "room", "age")}


# -- what is in files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "[1]", '["a", "a"]', '{"z": ["a"]}', "[" * 100000, '{"x": 1}', '"x"', "null"]
)
def test_entries_that_are_none(text):
    model = line()
    entry = model.metadata_props.add()
    entry.key, entry.value = "feature_names_in", text
    assert read_feature_names(model) == {}
    regressor(model, max_iter=1).fit(table("pandas"), Y)


def test_several_inputs():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 2] a, float[N, 2] b) => (float[N, 1] y) <float[2, 1] w = {1, 2}> {
        s = Add(a, b) y = MatMul(s, w) }""")
    write_feature_names(model, {"a": ["p", "q"], "b": ["r", "s"]})
    assert read_feature_names(model) == {"a": ("p", "q"), "b": ("r", "s")}
    a, b = X[:, :2], X[:, 1:]
    mixed = {"a": pd.DataFrame(a, columns=["p", "q"])[["q", "p"]], "b": b}
    step, other = TrainingStep(model), TrainingStep(model)
    assert step.run(mixed, Y) == other.run({"a": a, "b": b}, Y)


# -- the index of pandas ------------------------------------------------------------------------------

INDEXES = {
    "no name": pd.Index(np.arange(60) * 7 + 1),
    "a name": pd.Index(np.arange(60) * 7 + 1, name="key"),
    "two": pd.MultiIndex.from_arrays([np.arange(60) + 5, np.arange(60) * 2], names=["key", "day"]),
    "none": pd.RangeIndex(60),
}


@pytest.mark.parametrize("how", ["file", "dataset", "table", "array"])
@pytest.mark.parametrize("name", INDEXES)
def test_the_index_of_pandas_is_no_feature(name, how, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    frame = table("pandas", NAMES, price=Y).set_index(INDEXES[name])
    frame.to_parquet(tmp_path / "rows.parquet")
    assert list(pd.read_parquet(tmp_path / "rows.parquet")) == [*NAMES, "price"]
    net = regressor(shuffle=False)
    if how == "array":
        net.fit(pq.read_table(tmp_path / "rows.parquet").drop_columns(["price"]), Y)
    else:
        given = tmp_path / "rows.parquet"
        if how == "dataset":
            given = pytest.importorskip("pyarrow.dataset").dataset(given)
        elif how == "table":
            given = pq.read_table(given)
        net.fit(stream(given, target="price"))
    np.testing.assert_allclose(net.weights_["w"], regressor(shuffle=False).fit(X, Y).weights_["w"], rtol=1e-5)
    assert read_feature_names(net.get_trained_onnx()) == {"x": tuple(NAMES)}


def test_an_index_that_is_meant(tmp_path):
    pytest.importorskip("pyarrow")
    frame = table("pandas", NAMES, price=Y).set_index("age")
    frame.to_parquet(tmp_path / "rows.parquet")
    net = regressor(shuffle=False).fit(stream(tmp_path / "rows.parquet", target="price", columns=NAMES))
    np.testing.assert_allclose(net.weights_["w"], regressor(shuffle=False).fit(X, Y).weights_["w"], rtol=1e-5)
    frame[["price"]].to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(InvalidDataError, match="'age' is the index of pandas: name it with columns="):
        stream(tmp_path / "bare.parquet", target="price")


def test_the_index_of_pandas_on_the_command_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    save(line(), "m.onnx")
    frame = table("pandas", NAMES, price=Y).set_index(INDEXES["a name"])
    frame.to_parquet("rows.parquet")
    code, said = run(
        capsys, "train", "m.onnx", "rows.parquet", "--target", "price", "-o", "t.onnx", "--epochs", 1
    )
    assert code == 0, said.err
    frame.drop(columns="price").to_parquet("new.parquet")
    code, said = run(capsys, "predict", "m.onnx", "new.parquet")
    assert code == 0, said.err


def test_classes_and_columns():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x) => (float[N, 2] p) <float[3, 2] w = {0, 0, 0, 0, 0, 0}> {
        z = MatMul(x, w) p = Softmax(z) }""")
    frame, mixed = table("pandas"), table("pandas", MIXED)
    net = OnnxClassifier(model, **OPTIONS).fit(frame, LABELS)
    np.testing.assert_array_equal(net.predict_proba(mixed), net.predict_proba(frame))
    assert net.score(mixed, LABELS) == net.score(frame, LABELS)


def test_a_stream_of_a_table_has_names_as_the_table_has(tmp_path):
    table("pandas", MIXED, price=Y).to_csv(tmp_path / "rows.csv", index=False)
    net = regressor(shuffle=False).fit(stream(tmp_path / "rows.csv", target="price"))
    frame = regressor(shuffle=False).fit(table("pandas", MIXED), Y)
    assert net.feature_names_in_.tolist() == frame.feature_names_in_.tolist() == MIXED
    assert net.n_features_in_ == 3
    # Blocks of a stream are arrays: they need no names, but tables have to have these.
    np.testing.assert_array_equal(net.predict(X), net.predict(pd.DataFrame(X, columns=MIXED)))
    with pytest.raises(InvalidDataError, match="'colour' is not among them"):
        net.predict(table("pandas", MIXED).rename(columns={"age": "colour"}))
    assert not hasattr(regressor().fit(stream((X, Y))), "feature_names_in_")


def test_fit_loads_the_model_once_and_prepares_it_once(tmp_path, monkeypatch):
    path = tmp_path / "line.onnx"
    save(line(), path)
    module, made = importlib.import_module("onnxcustom.graph.preparation.prepare"), []
    monkeypatch.setattr(module, "load_both", lambda m, own=module.load_both: (made.append(m), own(m))[1])
    reading = importlib.import_module("onnxcustom.graph.files.io")
    monkeypatch.setattr(reading, "_read", lambda *a, own=reading._read: (made.append("file"), own(*a))[1])
    for rows in (stream(table("pandas", NAMES, price=Y), target="price"), stream((X, Y))):
        made.clear()
        regressor(path).fit(rows)
        assert made.count(path) == 1


def test_an_iterator_of_ones_own_keeps_its_columns():
    """What reads it in the model's order is another stream; that it was read, both know."""
    frame = pd.DataFrame(X, columns=NAMES)
    net = OnnxRegressor(line(), **OPTIONS).fit(frame, Y)
    rows = stream(iter([frame[MIXED].assign(y=Y), frame[MIXED].assign(y=Y)]), target="y")
    assert rows.columns() == MIXED
    plan = rows.source.plan
    again = OnnxRegressor(line(), **OPTIONS).fit(frame, Y)
    net.partial_fit(rows)
    again.partial_fit(stream([frame.assign(y=Y), frame.assign(y=Y)], target="y"))
    np.testing.assert_array_equal(net.weights_["w"], again.weights_["w"])
    assert rows.columns() == MIXED
    assert rows.source.plan is plan
    with pytest.raises(InvalidDataError, match="read already"):
        rows.head()

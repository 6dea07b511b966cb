"""``onnxcustom predict``: what onnxruntime and the estimators say, in files of all kinds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx.parser
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from onnxcustom import OnnxClassifier, OnnxRegressor

NAMES = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]


def model(path: str, text: str) -> None:
    head = '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>'
    Path(path).write_bytes(onnx.parser.parse_model(f"{head} {text}").SerializeToString())


def session(path: str, feeds: dict[str, np.ndarray]) -> list:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


def read(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))


def test_labels_and_probabilities(folder: Path, command) -> None:
    frame = pd.read_csv("flowers.csv")
    labels, maps = session("iris.onnx", {"X": frame.to_numpy(np.float32)})
    found = read(command("predict", "iris.onnx", "flowers.csv", "--proba").output)
    assert found["prediction"].tolist() == labels.tolist()
    wanted = pd.DataFrame(maps).add_prefix("probability_")
    pd.testing.assert_frame_equal(found.iloc[:, 1:], wanted, check_dtype=False, rtol=1e-6)
    assert list(read(command("predict", "iris.onnx", "flowers.csv").output)) == ["prediction"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "npy", "npz"])
@pytest.mark.parametrize("proba", [False, True])
def test_formats(ending: str, proba: bool, folder: Path, command) -> None:
    path = folder / f"out.{ending}"
    result = command("predict", "iris.onnx", "flowers.csv", "-o", path, *(["--proba"] if proba else []))
    assert result.stdout == ""
    assert "150 predictions" in result.stderr
    labels, maps = session("iris.onnx", {"X": pd.read_csv("flowers.csv").to_numpy(np.float32)})
    probabilities = pd.DataFrame(maps).to_numpy(np.float32)
    if ending in ("csv", "tsv", "parquet"):
        reader = {"csv": pd.read_csv, "tsv": lambda p: pd.read_csv(p, sep="\t"), "parquet": pd.read_parquet}
        frame = reader[ending](path)
        assert frame["prediction"].tolist() == labels.tolist()
        assert frame.shape[1] == (4 if proba else 1)
        if proba:
            np.testing.assert_allclose(frame.iloc[:, 1:].to_numpy(), probabilities, rtol=1e-6)
    elif ending == "npy":
        found = np.load(path)
        wanted = probabilities if proba else labels.astype(str)
        np.testing.assert_array_equal(found, wanted)
    else:
        with np.load(path) as arrays:
            np.testing.assert_array_equal(arrays["prediction"], labels.astype(str))
            assert ("probability" in arrays) == proba


def test_numbers(folder: Path, command) -> None:
    frame = pd.read_parquet("town.parquet")
    wanted = session("house.onnx", {"X": frame[["area", "rooms", "age"]].to_numpy(np.float32)})[0]
    text = command("predict", "house.onnx", "town.parquet", "--columns", "area,rooms,age").output
    np.testing.assert_array_equal(read(text)["prediction"].to_numpy(np.float32), wanted.reshape(-1))
    other = command("predict", "house.onnx", "town.parquet", "--columns", "age,area,rooms").output
    assert other != text


def test_small_blocks_are_as_one(folder: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = command("predict", "iris.onnx", "flowers.csv", "--proba").output
    from onnxcustom.data import reading

    monkeypatch.setattr(reading, "_BLOCK_BYTES", 300)
    parts = command("predict", "iris.onnx", "flowers.csv", "--proba").output
    pd.testing.assert_frame_equal(read(parts), read(whole), rtol=1e-5)


def test_a_trained_model_knows_its_columns_and_classes(folder: Path, command) -> None:
    """A model of raw scores without labels predicts the labels that it was trained with."""
    model(
        "raw.onnx",
        "g (float[N,4] x) => (float[N,3] s) <float[4,3] w = {0,0,0,0,0,0,0,0,0,0,0,0}> { s = MatMul(x, w) }",
    )
    command("train", "raw.onnx", "iris.csv", "--target", "species", "-o", "t.onnx", "--epochs", 5)
    frame = pd.read_csv("iris.csv")
    X, y = frame[NAMES].to_numpy(np.float32), frame["species"]
    net = OnnxClassifier("raw.onnx", max_iter=5, random_state=0).fit(X, y)
    frame[["species", *NAMES[::-1]]].to_csv("mixed.csv", index=False)
    for name in ("iris.csv", "mixed.csv"):
        found = read(command("predict", "t.onnx", name, "--proba").output)
        assert found["prediction"].tolist() == net.predict(X).tolist()
        assert list(found)[1:] == [f"probability_{c}" for c in net.classes_]
        np.testing.assert_allclose(found.iloc[:, 1:].to_numpy(), net.predict_proba(X), rtol=1e-4, atol=1e-6)


def test_one_sigmoid(tmp_path, monkeypatch, command, fails) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d.csv").write_text("x,y\n" + "".join(f"{v},{'yes' if v > 0 else 'no'}\n" for v in range(-5, 6)))
    for end in ("Sigmoid", "Identity"):
        model(
            "m.onnx",
            f"g (float[N,1] x) => (float[N,1] p) <float[1,1] w = {{0}}> {{ z = MatMul(x, w) p = {end}(z) }}",
        )
        command(
            "train", "m.onnx", "d.csv", "--target", "y", "--lr", 1, "--loss", "bce", "--epochs", 30, "--force"
        )
        found = read(command("predict", "m_trained.onnx", "d.csv", "--proba").output)
        assert list(found) == ["prediction", "probability_no", "probability_yes"]
        wanted = np.where(found["probability_yes"] > 0.5, "yes", "no")
        assert found["prediction"].tolist() == wanted.tolist()
        np.testing.assert_allclose(found.iloc[:, 1] + found.iloc[:, 2], 1, rtol=1e-6)
    # Before training nobody knows the names.
    Path("x.csv").write_text("x\n1\n")
    model(
        "m.onnx",
        "g (float[N,1] x) => (float[N,1] p) <float[1,1] w = {2}> { z = MatMul(x, w) p = Sigmoid(z) }",
    )
    assert command("predict", "m.onnx", "x.csv").output == "prediction\n1\n"
    assert "--proba is for classifiers" in fails(
        "predict", "m.onnx", "x.csv", "--proba", "--task", "regression"
    )


def test_several_labels_a_row(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    model(
        "m.onnx",
        "g (float[N,2] x) => (float[N,2] p) <float[2,2] w = {1,0,0,1}> { z = MatMul(x, w) p = Sigmoid(z) }",
    )
    Path("d.csv").write_text("a,b\n1,-1\n2,3\n-1,-1\n")
    assert command("predict", "m.onnx", "d.csv").output == "prediction_0,prediction_1\n1,0\n1,1\n0,0\n"


def test_all_outputs_as_they_are(tmp_path, monkeypatch, command, fails) -> None:
    monkeypatch.chdir(tmp_path)
    model(
        "m.onnx",
        """g (float[N,2] x) => (float[N,2] a, float[N,2,1] b, int64[N] k) {
        a = Neg(x)  s = Constant<value_ints=[0,2,1]>()  b = Reshape(x, s)
        k = ArgMax<axis=1,keepdims=0>(x) }""",
    )
    Path("d.csv").write_text("u,v\n1,2\n4,3\n")
    assert (
        command("predict", "m.onnx", "d.csv", "--raw").output
        == "a_0,a_1,b_0,b_1,k\n-1.0,-2.0,1.0,2.0,1\n-4.0,-3.0,4.0,3.0,0\n"
    )
    command("predict", "m.onnx", "d.csv", "--raw", "-o", "o.npz")
    with np.load("o.npz") as arrays:
        assert arrays["b"].shape == (2, 2, 1)
    assert "write .npz" in fails("predict", "m.onnx", "d.csv", "--raw", "-o", "o.npy")
    assert not Path("o.npy").exists()


# scikit-learn 1.6 warns of what 1.7 changed.
@pytest.mark.filterwarnings(r"ignore:\s*The format of the columns of the .remainder.:FutureWarning")
def test_text_features(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(
        {"colour": ["red", "green", "red", "blue"] * 5, "size": np.arange(20.0), "code": ["1", "2"] * 10}
    )
    y = np.where(frame["colour"] == "red", 2.0, 0.0) + frame["size"]
    pipeline = make_pipeline(
        ColumnTransformer([("c", OneHotEncoder(), ["colour", "code"])], remainder="passthrough"),
        LinearRegression(),
    ).fit(frame, y)
    types = [
        ("colour", StringTensorType([None, 1])),
        ("size", FloatTensorType([None, 1])),
        ("code", StringTensorType([None, 1])),
    ]
    Path("m.onnx").write_bytes(to_onnx(pipeline, initial_types=types).SerializeToString())
    frame.assign(y=y).to_csv("d.csv", index=False)
    found = read(command("predict", "m.onnx", "d.csv").output)
    np.testing.assert_allclose(found["prediction"], pipeline.predict(frame), rtol=1e-4)
    assert "r2  1" in command("evaluate", "m.onnx", "d.csv", "--target", "y", "--metric", "r2").output


def test_a_model_that_takes_four_rows(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    model("m.onnx", "g (float[4,1] x) => (float[4,1] y) { y = Neg(x) }")
    Path("d.csv").write_text("x\n" + "".join(f"{i}\n" for i in range(10)))
    found = read(command("predict", "m.onnx", "d.csv").output)
    np.testing.assert_array_equal(found["prediction"], -np.arange(10))


def test_arrays_of_numpy(folder: Path, command) -> None:
    frame = pd.read_csv("flowers.csv")
    np.save("x.npy", frame.to_numpy())
    np.savez("x.npz", data=frame.to_numpy(), other=np.zeros(150))
    wanted = command("predict", "iris.onnx", "flowers.csv").output
    assert command("predict", "iris.onnx", "x.npy").output == wanted
    assert command("predict", "iris.onnx", "x.npz", "--columns", "data").output == wanted


def test_folders_and_patterns(folder: Path, command) -> None:
    frame = pd.read_csv("flowers.csv")
    (folder / "many").mkdir()
    for i in range(3):
        frame.iloc[50 * i : 50 * i + 50].to_parquet(folder / "many" / f"part-{i}.parquet")
    wanted = command("predict", "iris.onnx", "flowers.csv").output
    assert command("predict", "iris.onnx", "many").output == wanted
    assert command("predict", "iris.onnx", "many/part-*.parquet").output == wanted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("iris.csv",), "takes 4 columns, and iris.csv has 5 for it"),
        (("nope.csv",), "There is no file 'nope.csv'"),
        (("flowers.csv", "--columns", "a,b,c,d"), "has no column 'a'"),
        (("flowers.csv", "-o", "out.xlsx"), "must end in .csv or .tsv or .parquet or .npy or .npz"),
        (("flowers.csv", "-o", "iris.csv"), "exists: give another name, or --force"),
        (("flowers.csv", "-o", "flowers.csv", "--force"), "is a file that is read"),
        (("flowers.csv", "--proba", "--raw"), "not both"),
        (("flowers.csv", "--device", "abacus"), "abacus"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_refused(arguments: tuple[str, ...], words: str, folder: Path, command) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    result = command("predict", "iris.onnx", *arguments, code=None)
    assert result.exit_code == (1 if "abacus" in arguments else 2)
    assert words in result.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_an_error_in_the_middle_leaves_the_old_file(folder: Path, fails) -> None:
    Path("bad.csv").write_text("a,b,c,d\n" + "1,2,3,4\n" * 200_000 + "1,2,x,4\n")
    Path("out.csv").write_text("old")
    assert "line 200002" in fails("predict", "iris.onnx", "bad.csv", "-o", "out.csv", "--force")
    assert Path("out.csv").read_text() == "old"
    assert not list(folder.glob(".*"))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 2), min_size=1, max_size=6
    )
)
def test_numbers_survive_the_way_through_csv(rows, tmp_path_factory, command) -> None:
    """Every float32 is written with enough digits to be itself again."""
    folder = tmp_path_factory.mktemp("f")
    model(str(folder / "m.onnx"), "g (float[N,2] x) => (float[N,2] y) { y = Identity(x) }")
    array = np.array(rows, dtype=np.float32)
    np.save(folder / "x.npy", array)
    found = read(command("predict", folder / "m.onnx", folder / "x.npy").output)
    np.testing.assert_array_equal(found.to_numpy(np.float64).astype(np.float32), array)


def test_probabilities_of_scores_that_are_none(tmp_path, monkeypatch, command, fails) -> None:
    monkeypatch.chdir(tmp_path)
    model("m.onnx", "g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }")
    Path("d.csv").write_text("a,b\n1,2\n4,3\n")
    arguments = ("predict", "m.onnx", "d.csv", "--task", "classification")
    assert command(*arguments).output == "prediction\n0\n1\n"
    assert "no probabilities" in fails(*arguments, "--proba")


def test_binary_classifier_of_scikit_learn(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    X = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    net = LogisticRegression().fit(X, X[:, 0] > 0)
    for zipmap in (True, False):
        Path("m.onnx").write_bytes(to_onnx(net, X[:1], options={"zipmap": zipmap}).SerializeToString())
        np.save("x.npy", X)
        found = read(command("predict", "m.onnx", "x.npy", "--proba").output)
        assert found["prediction"].tolist() == net.predict(X).astype(int).tolist()
        np.testing.assert_allclose(found.iloc[:, 2], net.predict_proba(X)[:, 1], rtol=1e-4)


@pytest.mark.parametrize("named", ["card", "metadata"])
def test_arrays_of_numpy_files_go_by_position(named: str, folder: Path, command, fails) -> None:
    X = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    frame = pd.DataFrame(X, columns=["a", "b"]).assign(y=X @ np.float32([1, 2]))
    frame.to_csv("d.csv", index=False)
    model("line.onnx", "g (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }")
    if named == "card":
        command("train", "line.onnx", "d.csv", "--target", "y", "--lr", "0.1", "-o", "m.onnx")
    else:
        net = OnnxRegressor("line.onnx", max_iter=1).fit(frame[["a", "b"]], frame["y"])
        Path("m.onnx").write_bytes(net.get_trained_onnx().SerializeToString())
    frame[["b", "a"]].to_csv("mixed.csv", index=False)
    wanted = command("predict", "m.onnx", "mixed.csv").output
    np.save("x.npy", X)
    np.savez("x.npz", x=X)
    np.savez("columns.npz", first=X[:, 0], second=X[:, 1])
    np.savez("names.npz", b=X[:, 1], a=X[:, 0])
    for path in ("x.npy", "x.npz", "columns.npz", "names.npz"):
        assert command("predict", "m.onnx", path).output == wanted
    np.savez("both.npz", x=X, y=frame["y"].to_numpy())
    if named == "card":  # it knows what the target was
        assert command("predict", "m.onnx", "both.npz").output == wanted
    assert "has 3 for it" in fails("predict", "m.onnx", _saved(np.ones((3, 3))))
    np.savez("odd.npz", a=X[:, 0], c=X[:, 1])
    frame.rename(columns={"b": "c"}).to_csv("odd.csv", index=False)
    for path in ("odd.npz", "odd.csv"):
        assert "was trained on column 'b'" in fails("predict", "m.onnx", path)


def _saved(array: np.ndarray) -> str:
    np.savez("w.npz", x=array)
    return "w.npz"

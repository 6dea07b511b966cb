"""Which columns are which of a model's inputs."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import onnx.parser
import pytest

from onnxcustom.cli.card import Card, write_card
from onnxcustom.cli.models import Model
from onnxcustom.cli.tables import Table, features_of, is_large, whole
from onnxcustom.exceptions import InvalidDataError

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
ONE = "g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }"
TWO = "g (float[N,1] a, float[N,1] b) => (float[N,1] y) { y = Add(a, b) }"
ANY = "g (float[N,M] x) => (float[N,M] y) { y = Neg(x) }"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    path = tmp_path / "d.csv"
    path.write_text('a,b,"c,d",y\n1,2,3,4\n5,6,7,8\n')
    return Table(str(path))


def model(folder: Path, text: str, card: Card | None = None) -> Model:
    proto = onnx.parser.parse_model(f"{HEAD} {text}")
    if card is not None:
        write_card(proto, card)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return Model(folder / "m.onnx")


@pytest.mark.parametrize(
    ("text", "columns", "inputs", "others", "wanted"),
    [
        (ONE, (), (), ["y", "c,d"], {"x": ["a", "b"]}),
        (ONE, ("b,a",), (), ["y"], {"x": ["b", "a"]}),
        (ONE, ("c,d", "a"), (), ["y"], {"x": ["c,d", "a"]}),
        (ONE, (), ('x="c,d",b',), ["y"], {"x": ["c,d", "b"]}),
        (ANY, (), (), ["y"], {"x": ["a", "b", "c,d"]}),
        (TWO, (), (), ["y"], {"a": ["a"], "b": ["b"]}),
        (TWO, (), ("b=a", "a=c,d"), ["y"], {"a": ["c,d"], "b": ["a"]}),
    ],
)
def test_features(text, columns, inputs, others, wanted, table: Table, tmp_path: Path) -> None:
    found = features_of(model(tmp_path, text), table, columns, inputs, others)
    assert found.columns == wanted
    assert found.single == (len(wanted) == 1)


@pytest.mark.parametrize(
    ("text", "columns", "inputs", "words"),
    [
        (ONE, ("a,z",), (), "has no column 'z'; it has 'a', 'b', 'c,d', 'y'"),
        (ONE, ("a,y",), (), "cannot be a feature and the target"),
        (ONE, ("a,a",), (), "names column 'a' twice"),
        (ONE, ("a",), ("x=a",), "not both"),
        (TWO, ("a,b",), (), "give --input for each"),
        (TWO, (), ("a=a",), "--input is missing for 'b'"),
    ],
)
def test_refused(text, columns, inputs, words: str, table: Table, tmp_path: Path) -> None:
    with pytest.raises((click.UsageError, InvalidDataError)) as caught:
        features_of(model(tmp_path, text), table, columns, inputs, ["y"])
    message = caught.value
    assert words in (message.format_message() if isinstance(message, click.UsageError) else str(message))


def test_a_card_names_columns(table: Table, tmp_path: Path) -> None:
    card = Card("regression", {"x": ["b", "a"]}, ["y"], "y")
    assert features_of(model(tmp_path, ONE, card), table, (), (), []).columns == {"x": ["b", "a"]}
    card = Card("regression", {"x": ["b", "z"]}, ["y"], "y")
    with pytest.raises(InvalidDataError, match="trained on column 'z'"):
        features_of(model(tmp_path, ANY, card), table, (), (), [])
    card = Card("regression", {"x": ["A", "z"]}, ["y"], "y")
    with pytest.raises(InvalidDataError, match=r"trained on column 'A'.*Did you mean 'a'\?.*--columns"):
        features_of(model(tmp_path, ANY, card), table, (), (), [])
    assert features_of(model(tmp_path, ANY, card), table, ("a,b",), (), []).columns == {"x": ["a", "b"]}
    # For another target it is no help.
    card = Card("regression", {"x": ["b", "a"]}, ["c,d"], "y")
    found = features_of(model(tmp_path, ANY, card), table, (), (), ["b"])
    assert found.columns == {"x": ["a", "y"]}


def test_whole(table: Table, tmp_path: Path) -> None:
    made = model(tmp_path, ONE)
    rows = table.stream(features_of(made, table, ("a,b",), (), ["y"]).plan("y", "c,d"))
    X, y, weights = whole(rows, made)
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, [[1, 2], [5, 6]])
    np.testing.assert_array_equal(y, [4, 8])
    np.testing.assert_array_equal(weights, [3, 7])


def test_is_large(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the size of a text file, by the rows of others."""
    np.savez(tmp_path / "d.npz", a=np.zeros(1000), b=np.zeros(1000), y=np.zeros(1000))
    made, arrays = model(tmp_path, ONE), Table(str(tmp_path / "d.npz"))
    for source, size in [(table, Path(table.path).stat().st_size), (arrays, 24000)]:
        rows = source.stream(features_of(made, source, ("a,b",), (), ["y"]).plan("y"))
        monkeypatch.setattr("onnxcustom.cli.tables.IN_MEMORY", size)
        assert not is_large(rows, source)
        monkeypatch.setattr("onnxcustom.cli.tables.IN_MEMORY", size - 1)
        assert is_large(rows, source)


@pytest.mark.parametrize("content", [b"", b"no arrays", b"PK\x03\x04 half a zip"])
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_arrays_that_are_none(content: bytes, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"d.{ending}"
    path.write_bytes(content)
    with pytest.raises(InvalidDataError, match="cannot be read"):
        Table(str(path))


def test_arrays_never_run_code(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidDataError, match="cannot be read"):
        Table(str(tmp_path / "d.npy"))
    np.savez(tmp_path / "s.npz", n=np.float64(3))
    with pytest.raises(InvalidDataError, match="'n' has no rows"):
        Table(str(tmp_path / "s.npz"))
    with pytest.raises(InvalidDataError, match="There is no file"):
        Table(str(tmp_path / "none.npz"))

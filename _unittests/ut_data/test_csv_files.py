from __future__ import annotations

import bz2
import gzip
import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.data import csv_files, stream
from onnxcustom.exceptions import InvalidDataError

READERS = ["pyarrow", "python"]


@pytest.fixture(params=READERS)
def reader(request, monkeypatch):
    """With pyarrow, and as if it were not installed."""
    if request.param == "pyarrow":
        pytest.importorskip("pyarrow")
        return
    hide_pyarrow(monkeypatch)


def hide_pyarrow(patch):
    original = csv_files.importlib.import_module

    def import_module(name):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name)

    patch.setattr(csv_files.importlib, "import_module", import_module)


@pytest.fixture
def write(tmp_path):
    def to_file(text, name="rows.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return to_file


def read(path, **words):
    (block,) = stream(path, target="y", block_rows=1000, **words).blocks()
    return block


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("text", "X", "y"),
    [
        ("a,b,y\n1,2.5,3\n4,5,6\n", [[1, 2.5], [4, 5]], [3, 6]),
        ("a,y\n1e3,0.5\n-2.5e-3,1\n", [[1000], [-0.0025]], [0.5, 1]),
        ("a,y\r\n1,2\r\n3,4\r\n", [[1], [3]], [2, 4]),
        ("\ufeffa,y\n1,2\n", [[1]], [2]),
        ("a,y\n\n1,2\n\n3,4\n", [[1], [3]], [2, 4]),
        ("a,y\n1,2", [[1]], [2]),
        ('"a","y"\n"1","no, never"\n', [[1]], ["no, never"]),
        ('a,y\n1,"two\nlines"\n3,"say ""so"""\n', [[1], [3]], ["two\nlines", 'say "so"']),
        ("a;y\n1;2\n", [[1]], [2]),
        ("a\ty\n1\t2\n", [[1]], [2]),
        ("a|y\n1|2\n", [[1]], [2]),
        ("a,y\ntrue,x\nFalse,y\n", [[1], [0]], ["x", "y"]),
        ("a,y\n1,true\n2,false\n", [[1], [2]], [True, False]),
        ("a,y\n1,NA\n2,none\n", [[1], [2]], ["NA", "none"]),
        ("größe,y\n1,é\n", [[1]], ["é"]),
    ],
)
def test_what_a_file_says(write, text, X, y):
    block = read(write(text))
    assert block.X.tolist() == X
    assert block.y.tolist() == y
    assert block.y.dtype == (object if isinstance(y[0], str) else np.array(y).dtype)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.CSV.GZ", "rows.csv.bz2"])
def test_compressed_files(write, name):
    pack = bz2.compress if name.endswith("bz2") else gzip.compress
    assert read(write(pack(b"a,y\n1,2\n"), name)).X.tolist() == [[1]]


@pytest.mark.usefixtures("reader")
def test_labels_that_turn_out_to_be_fractions(write, monkeypatch):
    """Whole numbers are whole only while all of them are."""
    monkeypatch.setattr(csv_files, "_LOOK", 10)
    path = write("a,y\n" + "1,2\n" * 5000 + "1,0.5\n")
    y = np.concatenate([b.y for b in stream(path, target="y", block_rows=1000).blocks()])
    assert (y[:5000] == 2).all()
    assert y[5000] == 0.5


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n1,2\nx,4\n", "rows.csv, line 3, column 'a': 'x' is not a number"),
        ("city,y\nParis,2\nRome,4\n", "line 2, column 'city': 'Paris' is not a number"),
        ("a,y\n1,2\n,4\n", "line 3, column 'a': an empty cell is not a number"),
        ("a,y\n1,2\nnan,4\n", "line 3, column 'a': 'nan' is not a number"),
        ("a,y\n1,2\nNA,4\n", "line 3, column 'a': 'NA' is not a number"),
        ("a,y\n1,2\n1_000,4\n", "line 3, column 'a': '1_000' is not a number"),
        ("a,y\n\n1,2\n\n\nx,4\n", "line 6, column 'a': 'x'"),
        ('a,y\n1,"two\nlines"\nx,b\n', "line 4, column 'a': 'x'"),
        ("a,y\n1,\n2,4\n", "line 2, column 'y': an empty cell"),
        ("a,y\n1,b\n2,\n", "line 3, column 'y': an empty cell"),
        ("a,y\n1,2\n1,2,3\n", "line 3: the number of cells is 3, in the first line it is 2"),
        ("a,y\n1,2\n1\n", "line 3: the number of cells is 1, "),
        ("", "rows.csv is empty"),
        ("\n\n", "rows.csv is empty"),
        ("1,2\n3,4\n", "line 1: 1, 2 are numbers; the first line names columns"),
        ("a,b\n1,2\n", "rows.csv has no column 'y'; it has 'a', 'b'"),
        ("a,a,y\n1,2,3\n", "several columns called 'a'"),
        (b"a,y\n1,\xff\xfe\n", "rows.csv cannot be read as CSV"),
    ],
)
def test_what_no_file_may_say(write, text, message):
    with pytest.raises(InvalidDataError, match=message):
        read(write(text))


FAR = "a,b,y\n" + "1,true,no\n" * 3000


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("oops,true,no", "line 3002, column 'a': 'oops' is not a number"),
        (",true,no", "line 3002, column 'a': an empty cell is not a number"),
        ("1,maybe,no", "line 3002, column 'b': 'maybe' is neither true nor false"),
        ("1,true,", "line 3002, column 'y': an empty cell"),
        ("1,true", "line 3002: the number of cells is 2"),
        ("1,true,no,4", "line 3002: the number of cells is 4"),
    ],
)
def test_errors_far_behind_what_decides_the_kinds(write, line, message, shuffle):
    rows = stream(write(FAR + line + "\n" + "1,true,no\n" * 10), target="y", block_rows=100, shuffle_rows=500)
    with pytest.raises(InvalidDataError, match=message):
        list(rows.blocks(shuffle=shuffle))


@pytest.mark.usefixtures("reader")
def test_labels_that_turn_out_to_be_text(write, monkeypatch):
    monkeypatch.setattr(csv_files, "_LOOK", 10)
    path = write("a,y\n" + "1,2\n" * 50 + "1,x\n")
    with pytest.raises(InvalidDataError, match="line 52, column 'y': 'x' is not a number"):
        read(path)
    with pytest.raises(InvalidDataError, match="line 52, column 'y': 'nan' is not a number"):
        read(write("a,y\n" + "1,2\n" * 50 + "1,nan\n"))


@pytest.mark.usefixtures("reader")
def test_a_file_of_names_only(write):
    path = write("a,y\n")
    assert list(stream(path, target="y").blocks()) == []
    assert [len(b) for b in stream([path, write("a,y\n1,2\n", "b.csv")], target="y").blocks()] == [1]


@pytest.mark.usefixtures("reader")
def test_a_file_that_is_no_gzip(write):
    with pytest.raises(InvalidDataError, match=r"rows.csv.gz cannot be read as CSV"):
        stream(write("a,y\n1,2\n", "rows.csv.gz"), target="y")
    cut = gzip.compress(b"a,y\n" + b"1.5,2\n" * 50_000)[:-200]
    with pytest.raises(InvalidDataError, match=r"cut.csv.gz cannot be read as CSV"):
        list(stream(write(cut, "cut.csv.gz"), target="y").blocks())


@pytest.mark.usefixtures("reader")
def test_only_columns_that_are_named_must_be_numbers(write):
    path = write("id,a,y\nabc,1,2\n,3,4\n")
    assert read(path, columns=["a"]).X.tolist() == [[1], [3]]


@pytest.mark.usefixtures("reader")
def test_blocks_of_the_size_asked_for(write):
    path = write("a,y\n" + "".join(f"{i},{i}\n" for i in range(100)))
    assert [len(b) for b in stream(path, target="y", block_rows=30).blocks()] == [30, 30, 30, 10]


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
@given(
    values=st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-(2**53), 2**53),
            st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_both_readers_read_the_same(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("both") / "rows.csv"
    lines = []
    for a, b, c in values:
        text = c.replace('"', '""')
        lines.append(f'{a!r},{b},"_{text}"')
    path.write_bytes(("a,b,y\n" + "\n".join(lines) + "\n").encode())
    quick = read(path)
    with pytest.MonkeyPatch.context() as patch:
        hide_pyarrow(patch)
        slow = read(path)
    np.testing.assert_array_equal(quick.X, slow.X)
    np.testing.assert_array_equal(quick.X, [[a, b] for a, b, _ in values])
    assert quick.y.tolist() == slow.y.tolist() == [f"_{c}" for _, _, c in values]

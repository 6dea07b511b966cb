from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxcustom.data import stream
from onnxcustom.data.arrow_files import ArrowFile, ParquetFile
from onnxcustom.data.csv_files import CsvFile
from onnxcustom.data.files import find_files
from onnxcustom.exceptions import InvalidDataError


def names(source):
    return [Path(file.path).name for file in find_files(source)]


@pytest.fixture
def folder(tmp_path):
    for name in (
        "b.csv",
        "a.csv",
        "c.csv.gz",
        "d.parquet",
        "e.arrow",
        "notes.txt",
        "_hidden.csv",
        ".dot.csv",
    ):
        (tmp_path / name).write_text("x\n1\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "f.csv").write_text("x\n1\n")
    return tmp_path


def test_paths(folder):
    assert names(folder / "b.csv") == names(str(folder / "b.csv")) == ["b.csv"]
    assert names([folder / "b.csv", str(folder / "a.csv")]) == ["b.csv", "a.csv"]


def test_patterns(folder):
    assert names(str(folder / "?.csv")) == ["a.csv", "b.csv"]
    assert names(str(folder / "**" / "f.csv")) == ["f.csv"]
    assert names([str(folder / "*.gz"), folder / "a.csv"]) == ["c.csv.gz", "a.csv"]


def test_folders(folder):
    assert names(folder) == ["a.csv", "b.csv", "c.csv.gz", "d.parquet", "f.csv", "e.arrow"]


def test_a_file_with_the_name_of_a_pattern(tmp_path):
    (tmp_path / "rows[1].csv").write_text("x\n1\n")
    (tmp_path / "rows1.csv").write_text("x\n1\n")
    assert names(str(tmp_path / "rows[1].csv")) == ["rows[1].csv"]


def test_kinds(folder):
    kinds = {Path(f.path).name: type(f) for f in find_files(folder)}
    assert kinds["d.parquet"] is ParquetFile
    assert kinds["e.arrow"] is ArrowFile
    assert kinds["c.csv.gz"] is CsvFile
    assert isinstance(find_files(folder / "B.CSV" if os.name == "nt" else folder / "b.csv")[0], CsvFile)


def test_kinds_by_content(tmp_path):
    for name, start, kind in (("p", b"PAR1....", ParquetFile), ("a", b"ARROW1..", ArrowFile)):
        (tmp_path / name).write_bytes(start)
        assert type(find_files(tmp_path / name)[0]) is kind


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.csv", "There is no file '.*missing.csv'"),
        ("*.nothing", r"No file is called like '.*\*.nothing'"),
        ("notes.txt", "is no file of a known kind: names end in .parquet"),
        ("empty", "holds no file that can be read"),
    ],
)
def test_no_such_files(folder, source, message):
    (folder / "empty").mkdir()
    with pytest.raises(InvalidDataError, match=message):
        find_files(str(folder / source))


def test_addresses_are_no_paths():
    with pytest.raises(InvalidDataError, match=r"make a pyarrow.dataset.dataset of it"):
        find_files("s3://bucket/rows.parquet")


def test_no_files():
    with pytest.raises(InvalidDataError, match="list of files is empty"):
        find_files([])


def test_later_files_have_the_columns_of_the_first(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("y,z,x\n4,5,3\n")
    (tmp_path / "c.csv").write_text("y\n4\n")
    rows = stream([tmp_path / "a.csv", tmp_path / "b.csv"], target="y")
    assert [(b.X.tolist(), b.y.tolist()) for b in rows.blocks()] == [([[1], [3]], [2, 4])]
    with pytest.raises(InvalidDataError, match=r"c.csv has no column 'x'; it has 'y'"):
        list(stream([tmp_path / "a.csv", tmp_path / "c.csv"], target="y").blocks())


def test_files_of_several_kinds(tmp_path):
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    parquet.write_table(pa.table({"x": [3], "y": [4]}), tmp_path / "b.parquet")
    rows = stream(tmp_path, target="y")
    assert [b.X.tolist() for b in rows.blocks()] == [[[1], [3]]]
    assert rows.rows is None
    assert set(rows.fingerprint()) >= {"a.csv", "b.parquet"}


def test_files_of_one_name_in_two_folders(tmp_path):
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.csv").write_text(f"x\n{value}\n")
    assert set(stream(tmp_path).fingerprint()) >= {"rows.csv", "rows.csv (1)"}


def test_a_file_that_is_gone(tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n")
    rows = stream(tmp_path / "a.csv")
    (tmp_path / "a.csv").unlink()
    with pytest.raises(InvalidDataError, match=r"a\.csv cannot be read"):
        rows.fingerprint()
    with pytest.raises(InvalidDataError, match=r"a\.csv cannot be read"):
        list(rows.blocks())


def test_a_stream_of_files_has_a_name(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text("x\n1\n")
    assert repr(stream(tmp_path / "a.csv")).endswith("a.csv'>")
    assert repr(stream(tmp_path)).endswith("a.csv' and 2 more>")

from __future__ import annotations

import datetime
import os
import subprocess
import sys

import numpy as np
import pytest

from onnxcustom.data import stream
from onnxcustom.data.arrow_files import _buffer
from onnxcustom.exceptions import InvalidDataError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
dataset = pytest.importorskip("pyarrow.dataset")


def write(path, table, **options):
    if path.suffix == ".parquet":
        parquet.write_table(table, path, **options)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, **options)
    return path


SUFFIXES = ["parquet", "arrow"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, 2.0, None, 4.0], r"row 2, column 'x': there is no value \(null\)"),
        ([[1, 2], [3, 4], [5], [6, 7]], r"row 2, column 'x': 1 value where row 0 has 2"),
        ([[1, 2], [3, None], [5, 6], [6, 7]], r"row 1, column 'x': there is no value"),
        (["a", "b", "c", "d"], r"row 0, column 'x': 'a' is no number: encode the column, or leave it out"),
        (
            [datetime.date(2020, 1, 1)] * 4,
            r"rows\.\w+', column 'x': date32.* is no type for numbers or text",
        ),
    ],
)
def test_values_that_training_cannot_use(tmp_path, suffix, column, message):
    path = write(tmp_path / f"rows.{suffix}", pa.table({"x": column, "y": [1, 2, 3, 4]}))
    with pytest.raises(InvalidDataError, match=message):
        list(stream(path, target="y").blocks())
    assert len(next(stream(path, columns=["y"]).blocks())) == 4


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_in_messages_are_those_of_the_file(tmp_path, suffix, shuffle):
    values = [float(i) for i in range(100)]
    values[67] = None
    size = {"row_group_size": 10} if suffix == "parquet" else {"max_chunksize": 10}
    table = pa.table({"x": values, "y": range(100)})
    good = write(tmp_path / f"a.{suffix}", pa.table({"x": [0.0], "y": [0]}))
    bad = write(tmp_path / f"b.{suffix}", table, **size)
    with pytest.raises(InvalidDataError, match=rf"b\.{suffix}, row 67, column 'x'"):
        list(stream([good, bad], target="y", block_rows=3).blocks(shuffle=shuffle))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_target(tmp_path, suffix):
    path = write(tmp_path / f"rows.{suffix}", pa.table({"x": [1.0, 2.0], "y": ["a", None]}))
    with pytest.raises(InvalidDataError, match="row 1, column 'y': there is no value"):
        list(stream(path, target="y").blocks())
    with pytest.raises(InvalidDataError, match="row 1, column 'y'"):
        stream(path, target="y").labels()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_column_is_said_at_once(tmp_path, suffix):
    path = write(tmp_path / f"rows.{suffix}", pa.table({"x": [1.0], "y": [1]}))
    with pytest.raises(InvalidDataError, match=rf"rows\.{suffix} has no column 'z'; it has 'x', 'y'"):
        stream(path, target="z")


@pytest.mark.parametrize("suffix", [*SUFFIXES, "feather", "ipc"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"ARROW1\0\0", b"PAR1" * 20, b"FEA1" * 20])
def test_files_that_are_none(tmp_path, suffix, content):
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InvalidDataError, match=rf"rows\.{suffix} (cannot be read as|is Feather version 1)"):
        stream(path, target="y")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_that_are_damaged_inside(tmp_path, suffix):
    table = pa.table({"x": np.random.default_rng(0).normal(size=50_000), "y": np.arange(50_000)})
    path = write(tmp_path / f"rows.{suffix}", table)
    content = bytearray(path.read_bytes())
    cut = path.with_name(f"cut.{suffix}")
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidDataError, match="cannot be read"):
        list(stream(cut, target="y").blocks())
    if suffix == "parquet":
        content[4:2000] = bytes(1996)  # the header of the first page
        path.write_bytes(content)
        with pytest.raises(InvalidDataError, match="cannot be read as Parquet") as caught:
            list(stream(path, target="y").blocks())
        assert caught.value.__cause__ is not None


def test_columns_with_dots_and_odd_names(tmp_path):
    path = write(
        tmp_path / "rows.parquet", pa.table({"sepal.length": [1.0], "sepal.width": [2.0], "a b": [3]})
    )
    assert stream(path, columns=["sepal.width", "a b"]).head().X.tolist() == [[2, 3]]


def test_only_columns_that_are_named_are_read(tmp_path):
    table = pa.table({"x": [1.0], "y": [1], "other": [None]})
    for suffix in SUFFIXES:
        rows = stream(write(tmp_path / f"rows.{suffix}", table), target="y", columns=["x"])
        assert rows.head().X.tolist() == [[1.0]]


def test_pictures(tmp_path):
    pictures = np.arange(48, dtype=np.uint8).reshape(4, 3, 4)
    lists = pa.table({"image": pictures.tolist(), "y": range(4)})
    tensors = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(pictures), "y": range(4)})
    for suffix in SUFFIXES:
        for table in (lists, tensors):
            rows = stream(write(tmp_path / f"rows.{suffix}", table), target="y", block_rows=3)
            np.testing.assert_array_equal(np.concatenate([b.X for b in rows.blocks()]), pictures)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_lists_whose_length_changes_from_part_to_part(tmp_path, suffix):
    size = {"row_group_size": 2} if suffix == "parquet" else {"max_chunksize": 2}
    table = pa.table({"x": [[1, 2]] * 2 + [[1, 2, 3]] * 2, "y": range(4)})
    rows = stream(write(tmp_path / f"rows.{suffix}", table, **size), target="y")
    with pytest.raises(InvalidDataError, match=r"Rows change shape from X \(2,\), y \(\) to X \(3,\)"):
        list(rows.blocks(multiple=3))
    with pytest.raises(InvalidDataError, match="differ in shape"):
        list(rows.blocks(shuffle=True))


def test_empty_files(tmp_path):
    for suffix in SUFFIXES:
        table = pa.table({"x": pa.array([], pa.float64()), "y": pa.array([], pa.int64())})
        path = write(tmp_path / f"none.{suffix}", table)
        assert list(stream(path, target="y").blocks()) == []
        full = write(tmp_path / f"some.{suffix}", pa.table({"x": [1.0], "y": [1]}))
        assert [len(b) for b in stream([path, full, path], target="y").blocks()] == [1]


def test_buffers_do_not_grow_with_the_number_of_columns():
    assert _buffer(1) == 2**18
    assert 10_000 * _buffer(10_000) <= 2**26


# -- datasets ------------------------------------------------------------------------------------------


@pytest.fixture
def partitioned(tmp_path):
    table = pa.table({"x": np.arange(20.0), "y": np.arange(20), "year": [2020] * 12 + [2021] * 8})
    options = {"partitioning": dataset.partitioning(pa.schema([("year", pa.int64())]), flavor="hive")}
    dataset.write_dataset(
        table, tmp_path, format="parquet", **options, max_rows_per_group=5, max_rows_per_file=5
    )
    return dataset.dataset(tmp_path, partitioning="hive")


def test_columns_of_partitions(partitioned):
    rows = stream(partitioned, target="y", shuffle_rows=0)
    assert rows.rows == 20
    block = next(rows.blocks())
    assert block.X.shape == (20, 2)
    assert sorted(block.X[:, 1]) == [2020] * 12 + [2021] * 8
    order = next(rows.blocks(shuffle=True)).y
    assert sorted(order) == list(range(20)) != order.tolist()
    assert rows.labels().tolist() == list(range(20))


def test_filters(partitioned):
    rows = stream(partitioned.filter(dataset.field("x") > 15), target="y")
    assert rows.rows is None
    assert sorted(next(rows.blocks()).y) == [16, 17, 18, 19]
    assert sorted(next(rows.blocks(shuffle=True)).y) == [16, 17, 18, 19]


def test_datasets_of_csv(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4\n")
    rows = stream(dataset.dataset(tmp_path, format="csv"), target="y")
    assert next(rows.blocks()).X.tolist() == [[1], [3]]
    assert rows.rows is None


def test_datasets_in_memory():
    rows = stream(dataset.dataset(pa.table({"x": [1, 2], "y": [3, 4]})), target="y")
    assert next(rows.blocks()).y.tolist() == [3, 4]


def test_errors_name_the_file_of_a_dataset(partitioned, tmp_path):
    write(tmp_path / "year=2021" / "part-9.parquet", pa.table({"x": [1.0, None], "y": [0, 1]}))
    rows = stream(dataset.dataset(tmp_path, partitioning="hive"), target="y")
    with pytest.raises(InvalidDataError, match=r"part-9.parquet, row 1, column 'x': there is no value"):
        list(rows.blocks())
    with pytest.raises(InvalidDataError, match=r"the dataset of \d files has no column 'z'"):
        stream(dataset.dataset(tmp_path, partitioning="hive"), target="z")


def test_what_needs_pyarrow_names_the_extra(tmp_path):
    path = write(tmp_path / "rows.parquet", pa.table({"x": [1.0]}))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['pyarrow'] = None\n"
            "from onnxcustom.data import stream\n"
            f"try: stream({str(path)!r})\n"
            "except ImportError as exc: print(exc)",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "needs pyarrow" in done.stdout, done.stderr
    assert 'pip install "onnxcustom[data]"' in done.stdout


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_that_lie_raise_errors_of_ours_only(tmp_path, suffix):
    """In a process of its own: what Arrow takes at its word can end it."""
    table = pa.table({"x": np.arange(30.0), "l": [[1.0, 2.0]] * 30, "y": ["a", "bc"] * 15})
    size = {"row_group_size": 10} if suffix == "parquet" else {"max_chunksize": 10}
    path = write(tmp_path / f"rows.{suffix}", table, **size)
    done = subprocess.run(
        [sys.executable, "-c", LIES, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    fit, unfit = map(int, done.stdout.split())
    assert fit + unfit == 300
    assert unfit > 30


LIES = """
import random, sys
from onnxcustom.data import stream
from onnxcustom.exceptions import OnnxCustomError

path = sys.argv[1]
content, rng, counts = open(path, "rb").read(), random.Random(0), [0, 0]
for _ in range(300):
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    open(path, "wb").write(changed)
    try:
        rows = stream(path, target="y", block_rows=7, prefetch=0)
        rows.labels(), list(rows.blocks(shuffle=True))
        counts[0] += 1
    except OnnxCustomError:
        counts[1] += 1
print(*counts)
"""


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("kind", ["file", "dictionary", "compressed", "stream", "batches"])
def test_a_file_that_is_cut_while_it_is_read(tmp_path, kind, prefetch):
    """Reading stops with an error; what came before it is what was in the file."""
    rows = 20_000
    text = pa.array([str(i % 7) for i in range(rows)])
    table = pa.table(
        {
            "x": np.arange(rows, dtype=np.float64),
            "pair": pa.FixedSizeListArray.from_arrays(np.arange(2.0 * rows), 2),
            "y": text.dictionary_encode() if kind == "dictionary" else text,
        }
    )
    options = pa.ipc.IpcWriteOptions(compression="lz4" if kind == "compressed" else None)
    make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    path = tmp_path / ("rows.arrows" if kind == "stream" else "rows.arrow")
    with make(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=500 if kind == "batches" else None)
    kept = []

    def read():
        for block in stream(path, target="y", prefetch=prefetch, block_rows=100).blocks():
            kept.append(block)
            if len(kept) == 3:
                os.truncate(path, 4096)

    with pytest.raises(InvalidDataError, match=r"rows.arrows? (was changed or replaced|cannot be read)"):
        read()
    found = np.concatenate([block.X for block in kept])
    assert 300 <= len(found) < rows
    assert (found[:, 0] == np.arange(len(found))).all()
    assert (found[:, 2] == 2 * found[:, 0] + 1).all()
    assert [y for block in kept for y in block.y] == [str(i % 7) for i in range(len(found))]

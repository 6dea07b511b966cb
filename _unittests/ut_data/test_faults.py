"""Files that change while they are read, and tables as wide as nobody thought of."""

import os
import sys

import numpy as np
import onnx.parser
import pytest

from onnxcustom import OnnxRegressor
from onnxcustom.data import stream
from onnxcustom.data.columns import Plan
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.training.callbacks import Callback

pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")

MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {0, 0}> { y = MatMul(x, w) }"""


def write(path, rows=4000, value=1.0):
    columns = {name: np.full(rows, value, np.float32) for name in "aby"}
    if path.name.endswith(".csv"):
        line = ",".join(f"{value:.3f}" for _ in columns) + "\n"
        path.write_text("a,b,y\n" + line * rows)
    elif path.name.endswith(".parquet"):
        parquet.write_table(pa.table(columns), path, row_group_size=500)
    else:
        feather.write_feather(pa.table(columns), path, compression="uncompressed", chunksize=500)


class AtBatch(Callback):
    """Does something after so many batches."""

    def __init__(self, number, action):
        self.number, self.action = number, action

    def on_batch_end(self, trainer, batch, loss):
        if trainer.step_.iteration == self.number:
            self.action()


def fit(path, action, source=None, batch=10):
    rows = stream(path if source is None else source, target="y", block_rows=100, prefetch=0)
    model, callback = onnx.parser.parse_model(MODEL), AtBatch(batch, action)
    estimator = OnnxRegressor(model, max_iter=3, random_state=0, batch_size=100, callbacks=callback)
    return estimator.fit(rows)


KINDS = ["rows.csv", "rows.parquet", "rows.feather"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [3, 30, 45])
def test_a_file_that_is_deleted(kind, batch, tmp_path):
    path = tmp_path / kind
    write(path)
    with pytest.raises(InvalidDataError, match=kind):
        fit(path, lambda: os.remove(path), batch=batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [4000, 100, 9000])
def test_a_file_that_is_replaced(kind, rows, tmp_path):
    path, other = tmp_path / kind, tmp_path / f"other_{kind}"
    write(path)
    write(other, rows, value=2.0)
    with pytest.raises(InvalidDataError, match="changed or replaced while it is in use"):
        fit(path, lambda: os.replace(other, path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_other_columns(kind, tmp_path):
    path = tmp_path / kind
    write(path)

    def replace():
        if kind.endswith(".csv"):
            path.write_text("a,b\n1,2\n" * 3)
        else:
            writer = parquet.write_table if kind.endswith(".parquet") else feather.write_feather
            writer(pa.table({"c": [1.0, 2.0]}), path)

    with pytest.raises(InvalidDataError, match=kind):
        fit(path, replace)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_written_again_as_it_was(kind, tmp_path, caplog):
    path, other = tmp_path / kind, tmp_path / f"other_{kind}"
    write(path)
    write(other)
    fit(path, lambda: os.replace(other, path))
    assert "was written again while it is in use" in caplog.text


def test_a_dataset_whose_file_is_replaced(tmp_path):
    dataset = pytest.importorskip("pyarrow.dataset")
    path, other = tmp_path / "rows.parquet", tmp_path / "other.parquet"
    write(path)
    write(other, 100, value=2.0)
    source = dataset.dataset([str(path)])
    with pytest.raises(InvalidDataError, match="changed or replaced while it is in use"):
        fit(path, lambda: os.replace(other, path), source)


def test_another_file_of_several_is_replaced(tmp_path):
    for name in ("1.csv", "2.csv"):
        write(tmp_path / name, 1000)
    with pytest.raises(InvalidDataError, match=r"2\.csv was changed or replaced"):
        fit(tmp_path, lambda: write(tmp_path / "2.csv", 1000, value=2.0), batch=3)


def test_a_stream_goes_on_in_another_process(tmp_path):
    """What a file was is forgotten by a pickle: the other process may have another one."""
    import pickle

    path = tmp_path / "rows.csv"
    write(path, 100)
    copy = pickle.loads(pickle.dumps(stream(path, target="y")))
    write(path, 50, value=2.0)
    assert sum(len(block) for block in copy.blocks()) == 50


# -- width ---------------------------------------------------------------------------------------------


class Counted(str):
    """A name that counts comparisons."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other):
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.parametrize("columns", [None, "all"])
def test_columns_are_compared_once_each(columns):
    names = [Counted(f"c{i}") for i in range(3000)]
    plan = Plan(target="y", columns=None if columns is None else [f"c{i}" for i in range(3000)])
    Counted.compared = 0
    selection = plan.select([*names, "y"], "the table")
    for _ in range(100):
        assert len(selection.names) == 3001
        assert len(selection.numeric) == 3000
    assert Counted.compared < 10 * 3000


def calls(function):
    """Calls of Python and C functions that a function makes."""
    count = 0

    def note(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("quick", [True, False])
def test_the_work_on_a_csv_file_grows_with_its_width(quick, tmp_path, monkeypatch):
    if not quick:
        from onnxcustom.data import csv_files

        original = csv_files.importlib.import_module

        def without(name, *words):
            if name.startswith("pyarrow"):
                raise ImportError(name)
            return original(name, *words)

        monkeypatch.setattr(csv_files.importlib, "import_module", without)

    def read(width):
        path = tmp_path / f"{width}.csv"
        path.write_text(",".join(f"c{i}" for i in range(width)) + ",y\n" + ",".join("1" * (width + 1)) + "\n")
        rows = stream(path, target="y", prefetch=0)
        assert rows.head().X.shape == (1, width)
        assert [len(block) for block in rows.blocks()] == [1]

    read(10)  # what is imported and cached
    few, many = calls(lambda: read(200)), calls(lambda: read(1600))
    assert many < 10 * few

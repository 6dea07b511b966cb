"""Predictions in files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from onnxcustom.cli.writers import ENDINGS, flat_columns, open_writer
from onnxcustom.exceptions import InvalidDataError

COLUMNS = {
    "a,b": np.array(["x", 'say "no"', "é\n"], dtype=object),
    "file": np.array([0.1, -1e-30, 3e38], dtype=np.float32),
    "n": np.array([1, -2, 2**62]),
}


def written(path: Path, parts: int) -> None:
    with open_writer(path, path.suffix) as writer:
        for part in np.array_split(np.arange(3), parts):
            writer.write({name: array[part] for name, array in COLUMNS.items()})


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("ending", ENDINGS)
def test_there_and_back(ending: str, parts: int, tmp_path: Path) -> None:
    path = tmp_path / f"out{ending}"
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    written(path, parts)
    if ending == ".npy":
        np.testing.assert_array_equal(np.load(path), COLUMNS["a,b"].astype(str))
        return
    if ending == ".npz":
        with np.load(path) as arrays:
            found = dict(arrays)
    else:
        frame = (
            pd.read_parquet(path) if ending == ".parquet" else pd.read_csv(path, sep=",\t"[ending == ".tsv"])
        )
        found = {name: frame[name].to_numpy() for name in frame}
    assert list(found) == list(COLUMNS)
    for name, array in COLUMNS.items():
        np.testing.assert_array_equal(found[name].astype(array.dtype), array)


def test_to_a_stream() -> None:
    text = io.StringIO()
    with open_writer(text, ".csv") as writer:
        writer.write({"a": np.array([1.5, 2])})
        writer.write({"a": np.array([3.0])})
    assert text.getvalue() == "a\n1.5\n2.0\n3.0\n"


def test_flat_columns() -> None:
    arrays = {"a": np.zeros(3), "b": np.zeros((3, 2, 2)), "c": np.zeros((3, 2))}
    found = flat_columns(arrays, {"c": ["c_no", "c_yes"]})
    assert list(found) == ["a", "b_0", "b_1", "b_2", "b_3", "c_no", "c_yes"]
    assert all(column.shape == (3,) for column in found.values())
    with pytest.raises(InvalidDataError, match="too many columns"):
        flat_columns({"a": np.zeros((1, 10_001))}, {})

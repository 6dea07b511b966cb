"""One data set in every form that a stream reads."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROWS = 53
NAMES = ["a", "b", "c"]


def table():
    """The data as arrays: three features, a target, weights, labels, tokens."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, 3)).astype(np.float32)
    return SimpleNamespace(
        X=X,
        y=np.arange(ROWS) * 0.5,
        w=rng.integers(1, 9, ROWS) / 4,
        label=np.array(["no", "yes", "perhaps"], object)[rng.integers(0, 3, ROWS)],
        tokens=rng.integers(0, 100, (ROWS, 4)),
    )


def columns(lists=True):
    """The same by column, as lists."""
    data = table()
    made = {name: data.X[:, i].tolist() for i, name in enumerate(NAMES)}
    made |= {"y": data.y.tolist(), "w": data.w.tolist(), "label": data.label.tolist()}
    return made | ({"tokens": data.tokens.tolist()} if lists else {})


def arrow_table():
    """The same as a table of pyarrow."""
    pa = pytest.importorskip("pyarrow")
    made = pa.table(columns())
    for i, name in enumerate(NAMES):
        made = made.set_column(i, name, pa.array(table().X[:, i]))
    return made


def csv_text(delimiter=","):
    """The same as CSV, without tokens."""
    names = list(columns(lists=False))
    cells = zip(*columns(lists=False).values(), strict=True)
    return "\n".join([delimiter.join(names), *(delimiter.join(map(str, row)) for row in cells), ""])


def write(folder: Path, kind: str):
    """Write the data in one way and return what a stream takes for it."""
    if kind.startswith("csv"):
        return _csv(folder, kind)
    if kind.startswith("parquet"):
        return _parquet(folder, kind)
    pa = pytest.importorskip("pyarrow")
    path = str(folder / f"rows.{kind}")
    make = {"arrow": pa.ipc.new_file, "arrows": pa.ipc.new_stream}
    if kind in make:
        with make[kind](path, arrow_table().schema) as writer:
            writer.write_table(arrow_table(), max_chunksize=11)
        return path
    if kind == "feather":
        from pyarrow import feather

        feather.write_feather(arrow_table(), path, compression="zstd", chunksize=20)
        return path
    from pyarrow import dataset

    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow_table()[:20], folder / "a.parquet", row_group_size=8)
    parquet.write_table(arrow_table()[20:], folder / "b.parquet", row_group_size=8)
    return dataset.dataset(str(folder))


def _csv(folder, kind):
    if kind == "csv.gz":
        path = folder / "rows.csv.gz"
        path.write_bytes(gzip.compress(csv_text().encode()))
    else:
        path = folder / ("rows.csv" if kind != "csv of tabs" else "rows.tsv")
        path.write_text(csv_text({"csv": ",", "csv of tabs": "\t", "csv of semicolons": ";"}[kind]))
    return path


def _parquet(folder, kind):
    parquet = pytest.importorskip("pyarrow.parquet")
    if kind == "parquet":
        parquet.write_table(arrow_table(), folder / "rows.parquet", row_group_size=7)
        return folder / "rows.parquet"
    for number, (start, stop) in enumerate([(0, 20), (20, 21), (21, ROWS)]):
        path = folder / f"rows-{number}.parquet"
        parquet.write_table(arrow_table()[start:stop], path, row_group_size=10, compression="gzip")
    found = sorted(map(str, folder.glob("rows-*.parquet")))
    return {
        "parquet files": found,
        "parquet pattern": str(folder / "rows-?.parquet"),
        "parquet folder": folder,
    }[kind]


FILES = [
    "csv", "csv.gz", "csv of tabs", "csv of semicolons", "parquet", "parquet files", "parquet pattern",
    "parquet folder", "arrow", "arrows", "feather", "dataset",
]  # fmt: skip


class Batches:
    """An iterable of batches of different sizes, as a ``DataLoader`` is one."""

    def __init__(self, parts, size=9):
        self.parts, self.size = parts, size
        self.begun = self.ended = 0

    def __iter__(self):
        self.begun += 1
        try:
            for start in range(0, ROWS, self.size):
                yield [part[start : start + self.size] for part in self.parts]
        finally:
            self.ended += 1


class Tensor:
    """What has ``__array__`` and not much else."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __len__(self):
        return len(self.array)


def memory(kind, folder):
    """What a stream takes for the data in memory, with weights; and options."""
    data = table()
    parts = (data.X, data.y, data.w)
    named = {"target": "y", "columns": NAMES, "sample_weight": "w"}
    if kind == "arrays":
        return parts, {}
    if kind == "mapped":
        for name, part in zip("Xyw", parts, strict=True):
            np.save(folder / f"{name}.npy", part)
        return tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in "Xyw"), {}
    if kind == "sparse":
        sparse = pytest.importorskip("scipy.sparse")
        return (sparse.csc_matrix(data.X), data.y, data.w), {}
    if kind == "dict":
        return {**columns(), **{n: data.X[:, i] for i, n in enumerate(NAMES)}}, named
    if kind in ("pandas", "polars"):
        frame = pytest.importorskip(kind).DataFrame(columns())
        if kind == "pandas":
            return frame.astype(dict.fromkeys(NAMES, np.float32)), named
        return frame.cast(dict.fromkeys(NAMES, pytest.importorskip("polars").Float32)), named
    if kind == "pyarrow":
        return arrow_table(), named
    if kind == "batches":
        return Batches(parts), {}
    if kind == "list of batches":
        return [tuple(batch) for batch in Batches(parts)], {}
    if kind == "function":
        return lambda: iter(Batches(parts)), {}
    if kind == "iterator":
        return iter(Batches(parts)), {}
    if kind == "tensors":
        return [tuple(map(Tensor, batch)) for batch in Batches(parts)], {}
    assert kind == "frames in batches"
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(columns()).astype(dict.fromkeys(NAMES, np.float32))
    return [frame.iloc[i : i + 9] for i in range(0, ROWS, 9)], named


MEMORY = [
    "arrays", "mapped", "sparse", "dict", "pandas", "polars", "pyarrow", "batches", "list of batches",
    "function", "iterator", "tensors", "frames in batches",
]  # fmt: skip

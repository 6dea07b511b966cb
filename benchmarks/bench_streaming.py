"""Training on a Parquet file that is streamed: peak memory against the size of the file, and rows a second.

A file of 50 features and a target, float32, is written for each size; then a perceptron 50-64-64-1 is trained
on it for an epoch by SGD in batches of 256, each contender in a process of its own: "stream" is StreamLoader
and TrainingStep, shuffled with the buffer it has by default; "memory" is OrtDataLoader and TrainingStep on
the same rows in memory, whose reading is not timed; "PyTorch" is a loop over the batches of 65,536 rows that
pyarrow reads, each permuted and split. "peak" is that of the process, "training" how much of it lies above
what the process held before: libraries, after a tiny model was trained on a tiny file. The file has just
been written: what is measured is not the disk.

    python -m benchmarks.bench_streaming
    python -m benchmarks.bench_streaming --gigabytes 1 10 --only stream
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import common
from .bench_memory import Hidden
from .common import Result

COLUMNS, HIDDEN, BATCH = 50, 64, 256
ROW_BYTES = 4 * (COLUMNS + 1)
SIZES = [0.1, 0.3, 1.0]
QUICK = [0.0005]
# Rows in memory beyond which that contender is left out, in gigabytes.
FITS = 2.0
GROUP = 200_000


# -- the file -------------------------------------------------------------------------------------------


def write(path: Path, gigabytes: float, lists: bool) -> int:
    """Write a file of about that size; its rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = max(BATCH, round(gigabytes * 1e9 / ROW_BYTES))
    names = [f"x{i}" for i in range(COLUMNS)]
    features = [("x", pa.list_(pa.float32(), COLUMNS))] if lists else [(n, pa.float32()) for n in names]
    schema, rng = pa.schema([*features, ("y", pa.float32())]), np.random.default_rng(0)
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, GROUP):
            X = rng.standard_normal((min(GROUP, rows - start), COLUMNS), dtype=np.float32)
            y = np.tanh(X[:, :5].sum(axis=1))
            columns = [np.ascontiguousarray(X[:, i]) for i in range(COLUMNS)]
            made = [pa.FixedSizeListArray.from_arrays(X.reshape(-1), COLUMNS)] if lists else columns
            writer.write_table(pa.table([*made, y], schema=schema))
    return rows


# -- contenders: an epoch on a file; rows, seconds and the mean loss ---------------------------------------


def _step() -> Any:
    from onnxcustom import TrainingStep

    model = common.mlp(common.mlp_weights([COLUMNS, HIDDEN, HIDDEN, 1]))
    return TrainingStep(model, "squared_error", "sgd", learning_rate=0.01, threads=common.processors())


def _epoch(loader: Any, step: Any) -> tuple[int, float, float]:
    rows, total, begin = 0, 0.0, time.perf_counter()
    for batch in loader.epoch(0):
        total += step.run_batch(batch.values) * batch.rows
        rows += batch.rows
    return rows, time.perf_counter() - begin, total / rows


def train_stream(path: str) -> tuple[int, float, float]:
    from onnxcustom.data import stream
    from onnxcustom.feed.stream_loader import StreamLoader

    step = _step()
    return _epoch(StreamLoader(stream(path, target="y"), step.inputs, step.expected, batch_size=BATCH), step)


def train_memory(path: str) -> tuple[int, float, float]:
    import numpy as np

    from onnxcustom.data import stream
    from onnxcustom.feed.data_loader import OrtDataLoader

    rows = stream(path, target="y")
    X, y = np.empty((rows.rows, COLUMNS), np.float32), np.empty(rows.rows, np.float32)
    start = 0
    for block in rows.blocks():
        X[start : start + len(block)], y[start : start + len(block)] = block.X, block.y
        start += len(block)
    step = _step()
    options: dict[str, Any] = {"batch_size": BATCH, "random_state": 0, "inputs": step.inputs}
    return _epoch(OrtDataLoader(X, y, targets=step.expected, **options), step)


def _tensors(path: str, rows: int) -> Iterator[Any]:
    """Features and targets of the batches pyarrow reads, as tensors."""
    import numpy as np
    import pyarrow.parquet as parquet

    torch = common.imported_torch()
    with parquet.ParquetFile(path, buffer_size=2**18, pre_buffer=False) as file:
        for batch in file.iter_batches(rows, use_threads=False):
            first = batch.column(0)
            if hasattr(first, "flatten") and batch.num_columns == 2:
                X = first.flatten().to_numpy().reshape(-1, COLUMNS)
            else:
                X = np.stack([batch.column(i).to_numpy() for i in range(COLUMNS)], axis=1)
            y = batch.column(batch.num_columns - 1).to_numpy()
            yield torch.from_numpy(X.copy()), torch.from_numpy(y.copy()).reshape(-1, 1)


def train_torch(path: str) -> tuple[int, float, float]:
    torch = common.imported_torch()
    network = common.torch_mlp(common.mlp_weights([COLUMNS, HIDDEN, HIDDEN, 1]))
    rule = torch.optim.SGD(network.parameters(), lr=0.01)
    rows, total, begin = 0, 0.0, time.perf_counter()
    for X, y in _tensors(path, 65_536):
        for index in torch.randperm(len(X)).split(BATCH):
            rule.zero_grad()
            loss = ((network(X[index]) - y[index]) ** 2).mean() / 2
            loss.backward()
            rule.step()
            rows, total = rows + len(index), total + loss.item() * len(index)
    return rows, time.perf_counter() - begin, total / rows


TRAIN = {"stream": train_stream, "memory": train_memory, "PyTorch": train_torch}


# -- processes ------------------------------------------------------------------------------------------


def worker(name: str, tiny: str, path: str) -> None:
    """Train in this process and print what was found as JSON."""
    if name != "PyTorch":
        sys.meta_path.insert(0, Hidden("torch"))
    TRAIN[name](tiny)
    before = common.forget_peak()
    rows, seconds, loss = TRAIN[name](path)
    peak = common.peak_megabytes()
    found = {"peak": peak, "training": peak - before, "loss": loss, "rows_per_second": rows / seconds}
    print(json.dumps({"rows": rows, **found}))


def measured(name: str, tiny: Path, path: Path) -> dict[str, Any]:
    """What a contender needs, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_streaming", "--worker", str(common.processors())]
    command += [name, str(tiny), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=common.ROOT)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run(options: argparse.Namespace, result: Result) -> None:
    """A line for each size and contender."""
    if importlib.util.find_spec("pyarrow") is None:
        result.skipped["streaming"] = "pyarrow is not installed"
        return
    names = [n for n in TRAIN if not options.only or n in options.only]
    why = common.missing("torch")
    if why and "PyTorch" in names:
        names.remove("PyTorch")
        result.skipped["PyTorch"] = why
    result.say("an epoch on a Parquet file; MB: of the process, and what training adds to libraries")
    heads = [
        ("file, MB", 10),
        ("rows", 12),
        ("", 10),
        ("peak", 8),
        ("training", 10),
        ("rows/s", 12),
        ("loss", 9),
    ]
    result.say("".join(f"{text:>{width}}" for text, width in heads))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        tiny, path = Path(folder) / "tiny.parquet", Path(folder) / "rows.parquet"
        write(tiny, 0.001, options.lists)
        for gigabytes in options.gigabytes or (QUICK if options.quick else SIZES):
            if shutil.disk_usage(folder).free < 1.1e9 * gigabytes:
                result.skipped[f"{gigabytes} GB"] = "the disk has no room"
                continue
            write(path, gigabytes, options.lists)
            _measure(result, names, tiny, path)


def _measure(result: Result, names: list[str], tiny: Path, path: Path) -> None:
    size = path.stat().st_size / 1e6
    losses = []
    for name in names:
        if name == "memory" and size > 1000 * FITS:
            result.skipped[f"memory, {size:.0f} MB"] = f"more than {FITS:g} GB"
            continue
        found = measured(name, tiny, path)
        losses.append(found["loss"])
        result.rows.append({"case": f"{size:.0f} MB", "megabytes": size, "contender": name, **found})
        cells = [f"{size:>10.0f}", f"{found['rows']:>12,}", f"{name:>10}", f"{found['peak']:>8.0f}"]
        cells += [
            f"{found['training']:>10.0f}",
            f"{found['rows_per_second']:>12,.0f}",
            f"{found['loss']:>9.4f}",
        ]
        result.say("".join(cells))
    # The losses of an epoch in other orders are near to each other, or else something else was trained.
    for loss in losses:
        assert math.isclose(loss, losses[0], rel_tol=0.2), f"the contenders train something else: {losses}"


def parser() -> argparse.ArgumentParser:
    made = common.parser(__doc__)
    made.add_argument("--gigabytes", type=float, nargs="+", help=f"sizes of files [default: {SIZES}]")
    made.add_argument("--only", nargs="+", choices=list(TRAIN), help="some contenders")
    made.add_argument("--lists", action="store_true", help="features in one column of lists, not in 50")
    made.add_argument("--folder", type=Path, help="where files are written [default: the system's]")
    made.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    asked = parser().parse_args().worker
    if asked:
        common.pin(int(asked[0]))
        worker(*asked[1:])
    else:
        common.main(run, parser())

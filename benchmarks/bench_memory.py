"""Peak memory of fit() against a PyTorch loop for the same model, rows and batch.

Each runs two epochs of SGD in a process of its own: OnnxRegressor.fit, and forward, backward,
optimizer.step on batches of a shuffled index. Float32. "peak" is that of the whole process, as
``/usr/bin/time -v`` has it; "training" is how much of it lies above what the process held before: libraries
and data, after a tiny model was trained, so that nothing is imported later. Ours runs as if PyTorch were not
installed, which the training build of onnxruntime imports where it is.

    python -m benchmarks.bench_memory
"""

from __future__ import annotations

import argparse
import importlib.abc
import json
import subprocess
import sys
from typing import Any

from . import common
from .common import Result

# Columns, hidden units, rows of a batch, rows.
CASES = [
    (10, 10, 10, 10_000),
    (100, 200, 200, 20_000),
    (784, 512, 128, 20_000),
    (784, 512, 8192, 20_000),
    (1024, 2048, 512, 5_000),
]
QUICK = [(3, 4, 5, 20)]
EPOCHS = 2


def train_ours(optimizer: str, sizes: list[int], batch: int, X: Any, y: Any) -> None:
    from onnxcustom import OnnxRegressor

    model = common.mlp(common.mlp_weights(sizes))
    OnnxRegressor(
        model,
        optimizer=optimizer.lower(),
        learning_rate=1e-4,
        batch_size=batch,
        max_iter=EPOCHS,
        random_state=0,
    ).fit(X, y)


def train_torch(optimizer: str, sizes: list[int], batch: int, X: Any, y: Any) -> None:
    torch = common.imported_torch()
    network = common.torch_mlp(common.mlp_weights(sizes))
    rule = getattr(torch.optim, optimizer)(network.parameters(), lr=1e-4)
    rows, targets = torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(rows)).split(batch):
            rule.zero_grad()
            loss = ((network(rows[index]) - targets[index]) ** 2).mean() / 2
            loss.backward()
            rule.step()
            loss.item()


TRAIN = {"onnxcustom": train_ours, "PyTorch": train_torch}


class Hidden(importlib.abc.MetaPathFinder):
    """Makes a package look as if it were not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.split(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def worker(name: str, optimizer: str, sizes: list[int], batch: int, rows: int) -> None:
    """Train in this process and print megabytes as JSON."""
    if name == "onnxcustom":
        sys.meta_path.insert(0, Hidden("torch"))
    TRAIN[name](optimizer, [3, 4, 1], 5, *common.regression(20, 3))
    X, y = common.regression(rows, sizes[0])
    before = common.forget_peak()
    TRAIN[name](optimizer, sizes, batch, X, y)
    peak = common.peak_megabytes()
    print(json.dumps({"peak": peak, "training": peak - before}))


def measured(
    name: str, sizes: tuple[int, ...], batch: int, rows: int, optimizer: str = "SGD"
) -> dict[str, float]:
    """Megabytes of a training in a process of its own."""
    arguments = [common.processors(), name, optimizer, batch, rows, *sizes]
    command = [sys.executable, "-m", "benchmarks.bench_memory", "--worker", *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=common.ROOT).stdout
    return json.loads(output.splitlines()[-1])


def run(options: argparse.Namespace, result: Result) -> None:
    """One line for each model."""
    names = ["onnxcustom"]
    why = common.missing("torch")
    if why:
        result.skipped["PyTorch"] = why
    else:
        names.append("PyTorch")
    result.say("peak memory, MB: of the process, and what training adds to libraries and data")
    heads = "".join(f"{n + ', peak':>18}{'training':>10}" for n in names)
    result.say(f"{'':<30}{'rows':>7}{'data':>7}{heads}{'ratio':>8}")
    for columns, hidden, batch, rows in QUICK if options.quick else CASES:
        case = f"{columns}-{hidden}-{hidden}-1, batch {batch}"
        found = {n: measured(n, (columns, hidden, hidden, 1), batch, rows) for n in names}
        data = 4 * rows * (columns + 1) / 2**20
        for name, numbers in found.items():
            result.rows.append({"case": case, "rows": rows, "data": data, "contender": name, **numbers})
        line = "".join(f"{v['peak']:>18.0f}{v['training']:>10.1f}" for v in found.values())
        ratio = "-"
        if "PyTorch" in found:
            ratio = f"{found['PyTorch']['training'] / max(found['onnxcustom']['training'], 0.1):.2f}"
        result.say(f"{case:<30}{rows:>7}{data:>7.1f}{line}{ratio:>8}")


def parser() -> argparse.ArgumentParser:
    made = common.parser(__doc__)
    made.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    asked = parser().parse_args().worker
    if asked:
        common.pin(int(asked[0]))
        worker(*asked[1:3], [int(n) for n in asked[5:]], int(asked[3]), int(asked[4]))
    else:
        common.main(run, parser())

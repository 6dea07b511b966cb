"""Cost against work: time and memory as rows, batch, width, depth and number of weights grow by 10 and 100.

Float32, Adam, from the same model grown along one axis. Time is that of a step (run_batch on prepared
OrtValues), or of a warm epoch of fit() for rows; the points of an axis and PyTorch's eager step or epoch take
turns. "growth" is time / that of the point before. Memory is what training adds to the peak of a process
that does nothing else, see bench_memory. "weights" splits 10,000 numbers into 1, 10 and 100 tensors, which
the model joins before it uses them.

    python -m benchmarks.bench_growth
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from . import bench_memory, common
from .common import Contender, Result

RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Point:
    """A model and its data, or, where `tensors` is given, weights in so many tensors."""

    axis: str
    value: int
    sizes: tuple[int, ...] = ()
    batch: int = 32
    rows: int = 0
    tensors: int = 0


def points() -> dict[str, list[Point]]:
    """By axis, each ten times the one before."""
    tens = (1, 10, 100)
    return {
        "rows": [Point("rows", 1000 * n, (20, 20, 20, 1), batch=100, rows=1000 * n) for n in tens],
        "batch": [Point("batch", 10 * n, (100, 100, 100, 1), batch=10 * n) for n in tens],
        "width": [Point("width", 10 * n, (32, 10 * n, 10 * n, 1)) for n in tens],
        "depth": [Point("depth", n, (32,) * (n + 1) + (1,)) for n in tens],
        "weights": [Point("weights", n, batch=1, tensors=n) for n in tens],
    }


def quick_points() -> dict[str, list[Point]]:
    """The same, tiny."""
    return {
        "rows": [Point("rows", 10, (2, 3, 1), batch=5, rows=10)],
        "weights": [Point("weights", n, batch=1, tensors=n) for n in (1, 10)],
    }


def joined(tensors: int) -> Any:
    """A model of 10,000 numbers in so many tensors."""
    import numpy as np
    import onnx.numpy_helper
    import onnx.parser

    names = [f"w{i}" for i in range(tensors)]
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        "joined (float[N, 100] x) => (float[N, 1] y) <int64[2] shape = {100, 100}, int64[1] axes = {1}> {"
        f" all = Concat <axis = 0> ({', '.join(names)}) w = Reshape(all, shape) h = MatMul(x, w)"
        " y = ReduceSum(h, axes) }"
    )
    values = np.random.default_rng(0).normal(0, 0.1, 10_000).astype(np.float32)
    for name, part in zip(names, np.split(values, tensors), strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(part, name))
    return model


def torch_joined(tensors: int) -> tuple[list[Any], Callable[[Any], Any]]:
    """The same in PyTorch: parameters and forward."""
    torch = common.imported_torch()
    parameters = [torch.nn.Parameter(0.1 * torch.randn(10_000 // tensors)) for _ in range(tensors)]
    return parameters, lambda x: (x @ torch.cat(parameters).reshape(100, 100)).sum(1, keepdim=True)


def ours(point: Point, X: Any, y: Any) -> Contender:
    """A step, or an epoch of fit() where the rows grow."""
    from onnxcustom import OnnxRegressor, TrainingStep
    from onnxcustom.runtime import to_ortvalue

    model = joined(point.tensors) if point.tensors else common.mlp(common.mlp_weights(point.sizes))
    if point.rows:
        estimator = OnnxRegressor(
            model,
            optimizer="adam",
            learning_rate=RATE,
            batch_size=point.batch,
            max_iter=1,
            warm_start=True,
            random_state=0,
        )
        return Contender(lambda: estimator.fit(X, y).history_["loss"][-1:], 1)
    step = TrainingStep(model, optimizer="adam", learning_rate=RATE)
    values = [to_ortvalue(X), to_ortvalue(y)]
    return Contender(lambda: [step.run_batch(values)], 1)


def theirs(point: Point, X: Any, y: Any) -> Contender:
    """The same in PyTorch eager."""
    torch = common.imported_torch()
    if point.tensors:
        parameters, network = torch_joined(point.tensors)
    else:
        network = common.torch_mlp(common.mlp_weights(point.sizes))
        parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    rows, targets = torch.from_numpy(X), torch.from_numpy(y)

    def step(x: Any, t: Any) -> float:
        optimizer.zero_grad()
        loss = ((network(x) - t) ** 2).mean() / 2
        loss.backward()
        optimizer.step()
        return loss.item()

    def epoch() -> list[float]:
        return [step(rows[i], targets[i]) for i in torch.randperm(len(rows)).split(point.batch)]

    return Contender(epoch if point.rows else lambda: [step(rows, targets)], 1)


def run(options: argparse.Namespace, result: Result) -> None:
    """A table for each axis."""
    peers = ["onnxcustom"]
    why = common.missing("torch")
    if why:
        result.skipped["PyTorch"] = why
    else:
        peers.append("PyTorch")
    result.say(
        f"cost against work, Adam, {common.processors()} threads; time of a step, of an epoch for rows"
    )
    heads = "".join(f"{text:>12}" for text in ("µs", "growth", "made in, ms", "memory, MB", "growth"))
    result.say(f"{'axis':<9}{'':>8}{heads}{'PyTorch / ours':>16}{'memory':>9}")
    ours(Point("", 0, (3, 1), 5), *common.regression(5, 3)).run()  # imports are no part of making a model
    for axis, along in (quick_points() if options.quick else points()).items():
        contenders, made = {}, {}
        for point in along:
            X, y = common.regression(point.rows or point.batch, point.sizes[0] if point.sizes else 100)
            begin = time.perf_counter()
            contenders["onnxcustom", point.value] = ours(point, X, y)
            contenders["onnxcustom", point.value].run()
            made[point.value] = time.perf_counter() - begin
            if "PyTorch" in peers:
                contenders["PyTorch", point.value] = theirs(point, X, y)
        times = common.measure(contenders, options.seconds)  # type: ignore[arg-type]
        before: dict[str, Any] = {}
        for point in along:
            for name in peers:
                found = {
                    "axis": axis,
                    "value": point.value,
                    "contender": name,
                    "threads": common.processors(),
                }
                found["microseconds"] = 1e6 * statistics.median(times[name, point.value])  # type: ignore[index]
                if point.sizes and not options.quick:  # processes of their own
                    rows = point.rows or 4 * point.batch
                    numbers = bench_memory.measured(name, point.sizes, point.batch, rows, "Adam")
                    found["megabytes"] = numbers["training"]
                if name == "onnxcustom":
                    found["made_in_seconds"] = made[point.value]
                else:
                    found["ratio_to_ours"] = common.ratios(
                        times,
                        (name, point.value),
                        ("onnxcustom", point.value),  # type: ignore[arg-type]
                    )
                result.rows.append(found)
            before = say(result, result.rows[-len(peers) :], before)


def say(result: Result, rows: list[dict[str, Any]], before: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    mine, peer = rows[0], rows[1] if len(rows) > 1 else None

    def growth(key: str) -> str:
        return f"{mine[key] / max(before[key], 0.1):.2f}" if key in before and key in mine else "-"

    memory = f"{mine['megabytes']:.1f}" if "megabytes" in mine else "-"
    line = f"{mine['axis']:<9}{mine['value']:>8}{mine['microseconds']:>12.1f}{growth('microseconds'):>12}"
    line += f"{1000 * mine['made_in_seconds']:>12.0f}{memory:>12}{growth('megabytes'):>12}"
    if peer is not None:
        line += f"{peer['ratio_to_ours']['median']:>16.2f}"
        line += f"{peer['megabytes']:>9.1f}" if "megabytes" in peer else f"{'-':>9}"
    result.say(line)
    return mine


if __name__ == "__main__":
    common.main(run, common.parser(__doc__))

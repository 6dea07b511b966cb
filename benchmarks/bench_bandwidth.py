"""Updates of big weights against copying as many bytes.

An update must read weights, gradients and state and write weights and state: n numbers each. The least time
for that is about the time in which ``numpy.copyto`` moves as many bytes, half of them read, half written.
"factor" is how many times as long the update takes; "moved" is what the nodes of its graph read and write,
in units of what it must: temporary results that fit into caches are cheaper than that.

One weight, float32, gradients given, the graph and the buffers of a training step, taken in turns with the
copy. In a training step, plain SGD and momentum on matrices are part of the product that gives the gradient:
"in the product" is Gemm(A, B, W), the update included, against Gemm(A, B) alone, on 1000 rows.

    python -m benchmarks.bench_bandwidth --threads 1
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any

from . import common
from .common import Contender, Result, cells

SIZES = [2_000_000, 5_000_000, 20_000_000]
QUICK = [1000]
ROWS = 1000
# Rule, options, arrays read and written.
RULES: dict[str, tuple[str, dict[str, Any], int]] = {
    "SGD": ("SGD", {}, 3),
    "momentum": ("SGD", {"momentum": 0.9}, 5),
    "Adam": ("Adam", {}, 7),
}


def update(rule: str, size: int) -> tuple[Contender, float]:
    """An update of one weight, and the numbers that its nodes read and write by number of the weight."""
    from onnxcustom import optim

    from .bench_optim import Ours, problem

    name, options, _ = RULES[rule]
    ours = Ours(optim.create(name, learning_rate=1e-3, **options), *problem(size, 1))

    def count(value: Any) -> int:
        shape = getattr(value, "shape", None)
        return 0 if shape is None or not len(shape) else math.prod(shape)

    moved = sum(count(v) for node in ours.model.graph for v in (*node.inputs, *node.outputs))

    def run() -> list[float]:
        ours()
        return []

    return Contender(run, 1), moved / size


def copying(numbers: int) -> Contender:
    """Copy so many float32, read and written."""
    import numpy as np

    source, target = np.ones(numbers // 2, np.float32), np.empty(numbers // 2, np.float32)

    def run() -> list[float]:
        np.copyto(target, source)
        return []

    return Contender(run, 1)


def product(size: int, with_update: bool) -> Contender:
    """The gradient of a square matrix of so many numbers, and its update if that is part of it."""
    import numpy as np
    import onnx.parser

    from onnxcustom.runtime import Binding, create_session, to_ortvalue

    n = math.isqrt(size)
    operands = "a, b, w" if with_update else "a, b"
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[{ROWS}, {n}] a, float[{ROWS}, {n}] b, float[{n}, {n}] w) => (float[{n}, {n}] y) {{
            y = Gemm <alpha = -1.0, transA = 1> ({operands}) }}"""
    )
    binding = Binding(create_session(model, threads=common.processors()))
    rng = np.random.default_rng(0)
    for name, shape in (("a", (ROWS, n)), ("b", (ROWS, n)), ("w", (n, n))):
        binding.bind_input(name, rng.standard_normal(shape, dtype=np.float32))
    binding.bind_output("y", to_ortvalue(np.zeros((n, n), np.float32)))

    def run() -> list[float]:
        binding.execute()
        return []

    return Contender(run, 1)


def run(options: argparse.Namespace, result: Result) -> None:
    """One line for each size and rule."""
    result.say(f"an update against a copy of the bytes it must move, {common.processors()} threads, float32")
    result.say(f"{'':<26}{cells(('update, ms', 'copy, ms', 'factor', 'moved'), 12)}")
    for size in QUICK if options.quick else SIZES:
        for rule, (_, _, arrays) in RULES.items():
            made, moved = update(rule, size)
            times = common.measure({"update": made, "copy": copying(arrays * size)}, options.seconds)
            factor = common.ratios(times, "update", "copy")
            add(result, rule, size, times, factor, moved / arrays)
        pair: dict[str, Callable[[], Contender]] = {
            "update": lambda size=size: product(size, True),
            "copy": lambda size=size: product(size, False),
        }
        times = common.measure({name: make() for name, make in pair.items()}, options.seconds)
        add(result, "SGD in the product", size, times, common.ratios(times, "update", "copy"), None)


def add(
    result: Result,
    name: str,
    size: int,
    times: dict[str, list[float]],
    factor: dict[str, float],
    moved: float | None,
) -> None:
    """One row and one line."""
    row = {
        "rule": name,
        "size": size,
        "threads": common.processors(),
        "seconds": statistics.median(times["update"]),
        "copy_seconds": statistics.median(times["copy"]),
        "factor": factor,
        "moved": moved,
    }
    result.rows.append(row)
    texts = (
        f"{1e3 * row['seconds']:.2f}",
        f"{1e3 * row['copy_seconds']:.2f}",
        f"{factor['median']:.2f}",
        "-" if moved is None else f"{moved:.2f}",
    )
    result.say(f"{name + f', {size:,}':<26}{cells(texts, 12)}")


if __name__ == "__main__":
    common.main(run, common.parser(__doc__))

"""Where the time of a training step goes: onnxruntime's own profile, node by node.

TrainingStep.run_batch on prepared OrtValues of the networks of bench_step. "share" is of the time that the
nodes take by onnxruntime's clock, which ticks in microseconds and takes time itself: for the smallest network
it says more of which nodes there are than of how long they take. "outside" is what a step takes beside its
session, "between" what the session takes beside the nodes, both without the profiler.

    python -m benchmarks.bench_profile --only 784 --optimizer SGD
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import common
from .bench_loop import Inside
from .bench_step import CASES, QUICK, RATE, Case
from .common import Result

KINDS = {
    "products": ("Gemm", "MatMul", "FusedGemm", "FusedMatMul", "Conv"),
    "sums": ("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceMax"),
}


def kind_of(op_type: str) -> str:
    """Products, sums, or what works number by number."""
    return next((kind for kind, names in KINDS.items() if op_type in names), "number by number")


def step_of(case: Case, optimizer: str, options: Any = None) -> tuple[Any, list[Any]]:
    """A step and a batch."""
    from onnxcustom import TrainingStep
    from onnxcustom.runtime import to_ortvalue

    model = common.mlp(common.mlp_weights((case.columns, case.hidden, case.hidden, 1)))
    step = TrainingStep(model, optimizer=optimizer.lower(), learning_rate=RATE, sess_options=options)
    X, y = common.regression(case.batch, case.columns)
    return step, [to_ortvalue(X), to_ortvalue(y)]


def profiled(
    make: Callable[[Any], tuple[Any, list[Any]]], rounds: int, seconds: float = 0.0
) -> list[dict[str, Any]]:
    """Microseconds of each node in a run, by onnxruntime's profiler, in the order they run.

    `make` gets options of a session and gives a step and its batch; at least `rounds` steps are looked at.
    """
    from onnxcustom.runtime import session_options

    with tempfile.TemporaryDirectory() as folder:
        options = session_options(common.processors())
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "step")
        step, values = make(options)
        for _ in range(5):
            step.run_batch(values)
        # The profiler holds a million events, two or so for each node.
        runs, end = 0, time.perf_counter() + seconds
        while runs < rounds or (time.perf_counter() < end and runs < 10_000):
            step.run_batch(values)
            runs += 1
        path = step._runs.program(False, "update")._session.end_profiling()
        events = json.loads(Path(path).read_text())
    times: dict[str, list[float]] = collections.defaultdict(list)
    operators: dict[str, str] = {}
    shapes: dict[str, list[list[int]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name, about = event["name"].removesuffix("_kernel_time"), event["args"]
            operators[name] = about["op_name"]
            shapes[name] = [s for typed in about.get("input_type_shape", []) for s in typed.values()]
            times[name].append(event["dur"])
    # Of many runs the mean: the clock ticks in microseconds.
    return [
        {
            "node": name,
            "op_type": operators[name],
            "microseconds": statistics.fmean(found[5:]),
            "least": min(found[5:]),
            "shapes": shapes[name],
        }
        for name, found in times.items()
    ]


def whole(case: Case, optimizer: str, seconds: float) -> tuple[float, float]:
    """Microseconds of a step, and of its session, without the profiler."""
    step, values = step_of(case, optimizer)
    totals, insides = [], []
    with Inside() as inside:
        for _ in range(20):
            step.run_batch(values)
        cost, end = inside.cost(), time.perf_counter() + seconds
        while len(totals) < 10 or time.perf_counter() < end:
            inside.seconds, begin = 0.0, time.perf_counter()
            calls = 20 if case.hidden < 300 else 2
            for _ in range(calls):
                step.run_batch(values)
            totals.append(1e6 * ((time.perf_counter() - begin) / calls - cost))
            insides.append(1e6 * inside.seconds / calls)
    return statistics.median(totals), statistics.median(insides)


def run(options: argparse.Namespace, result: Result) -> None:
    """Nodes of each network, then what they add up to."""
    cases = QUICK if options.quick else CASES
    for case in cases:
        if options.only and str(case.columns) not in options.only:
            continue
        for optimizer in options.optimizer:
            total, inside = whole(case, optimizer, options.seconds / 4)
            make = functools.partial(step_of, case, optimizer)
            nodes = profiled(make, 10, options.seconds / 4)
            summed = sum(node["microseconds"] for node in nodes)
            result.say(f"\n{case.name}, {optimizer}, {common.processors()} threads: {len(nodes)} nodes")
            result.say(f"{'node':<30}{'operator':<18}{'µs':>9}{'share':>8}")
            for node in nodes if len(nodes) <= options.nodes else sorted_by_time(nodes)[: options.nodes]:
                share = f"{node['microseconds'] / summed:.1%}"
                result.say(
                    f"{node['node']:<30.29}{node['op_type']:<18}{node['microseconds']:>9.2f}{share:>8}"
                )
            kinds = collections.Counter()
            for node in nodes:
                kinds[kind_of(node["op_type"])] += node["microseconds"] / summed
            line = ", ".join(f"{kind} {share:.0%}" for kind, share in kinds.most_common())
            result.say(f"of the nodes: {line}")
            result.say(
                f"a step {total:.1f} µs: outside {total - inside:.1f}, session {inside:.1f}"
                + (f", of which between {max(inside - summed, 0):.1f}" if inside > 100 else "")
            )
            result.rows.append(
                {
                    "case": case.name,
                    "optimizer": optimizer,
                    "threads": common.processors(),
                    "microseconds": total,
                    "inside": inside,
                    "nodes": nodes,
                    "kinds": dict(kinds),
                }
            )


def sorted_by_time(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(nodes, key=lambda node: -node["microseconds"])


def parser() -> argparse.ArgumentParser:
    made = common.parser(__doc__)
    made.add_argument("--only", nargs="*", help="columns of the networks to look at: 10 100 784")
    made.add_argument("--optimizer", nargs="*", default=["SGD", "Adam"], help="SGD, Adam")
    made.add_argument("--nodes", type=int, default=24, help="lines of a table; of more nodes the slowest")
    return made


if __name__ == "__main__":
    common.main(run, parser())

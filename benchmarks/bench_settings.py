"""Settings of onnxruntime's session for a training step: time and memory against those of TrainingStep.

TrainingStep.run_batch on prepared OrtValues, SGD, float32, of MLPs d-h-h-1; the settings take turns, each a
step of its own with ``sess_options`` that differ from TrainingStep's own in one thing. A number is how many
times as long as with these a step takes; "megabytes", for the largest batch, are what the first steps add to
the memory of a process, the session included, each in a process of its own.

    python -m benchmarks.bench_settings --threads 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from . import common
from .common import Contender, Result, cells

RATE = 1e-5
MEASURED = ("default", "memory pattern", "no pattern", "no arena")
# Columns, hidden units, rows of a batch.
CASES = [(10, 10, 10), (100, 100, 32), (100, 200, 200), (784, 512, 128), (784, 512, 8192)]
QUICK = [(3, 4, 5)]
ENTRIES = {
    "no spinning": ("session.intra_op.allow_spinning", "0"),
    "no prepacking": ("session.disable_prepacking", "1"),
    "no denormals": ("session.set_denormal_as_zero", "1"),
}


def _pattern(options: Any) -> None:
    options.enable_mem_pattern = True


def _no_pattern(options: Any) -> None:
    options.enable_mem_pattern = False


def _no_arena(options: Any) -> None:
    options.enable_cpu_mem_arena = False


def _parallel(options: Any) -> None:
    import onnxruntime

    options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.inter_op_num_threads = common.processors()


def _basic(options: Any) -> None:
    import onnxruntime

    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC


CHANGES: dict[str, Callable[[Any], None]] = {
    "default": lambda options: None,
    "memory pattern": _pattern,
    "no pattern": _no_pattern,
    "no arena": _no_arena,
    **{
        name: lambda options, entry=entry: options.add_session_config_entry(*entry)
        for name, entry in ENTRIES.items()
    },
    "parallel": _parallel,
    "few rewrites": _basic,
}


def contender(case: tuple[int, int, int], change: str) -> Contender:
    """A step with settings of its own."""
    from onnxcustom import TrainingStep
    from onnxcustom.runtime import session_options, to_ortvalue

    columns, hidden, batch = case
    model = common.mlp(common.mlp_weights((columns, hidden, hidden, 1)))
    options = None
    if change != "default":
        options = session_options(common.processors(), memory_pattern=batch * hidden < 10_000)
        CHANGES[change](options)
    step = TrainingStep(model, learning_rate=RATE, sess_options=options)
    X, y = common.regression(batch, columns)
    values = [to_ortvalue(X), to_ortvalue(y)]
    calls = max(1, min(100, 2_000_000 // (batch * hidden * (columns + hidden))))

    def run() -> list[float]:
        return [step.run_batch(values) for _ in range(calls)]

    return Contender(run, calls)


def worker(case: tuple[int, int, int], change: str) -> None:
    """Print the megabytes that steps add."""
    found = contender(case, change)
    before = common.forget_peak()
    for _ in range(3):
        found.run()
    print(json.dumps(common.peak_megabytes() - before))


def megabytes(case: tuple[int, int, int], change: str) -> float:
    """What steps add, in a process of its own."""
    arguments = [common.processors(), *case, change]
    command = [sys.executable, "-m", "benchmarks.bench_settings", "--worker", *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=common.ROOT).stdout
    return float(json.loads(output.splitlines()[-1]))


def run(options: argparse.Namespace, result: Result) -> None:
    """One line for each model, and one for its memory."""
    result.say(f"time of a step, {common.processors()} threads: times that with TrainingStep's own settings")
    result.say(f"{'':<26}{'µs':>10}{cells(list(CHANGES)[1:], 16)}")
    for case in QUICK if options.quick else CASES:
        columns, hidden, batch = case
        name = f"{columns}-{hidden}-{hidden}-1, batch {batch}"
        times = common.measure({c: contender(case, c) for c in CHANGES}, options.seconds)
        row: dict[str, Any] = {"case": name, "threads": common.processors()}
        row["microseconds"] = 1e6 * statistics.median(times["default"])
        row["ratios"] = {c: common.ratios(times, c, "default") for c in list(CHANGES)[1:]}
        line = cells((f"{row['ratios'][c]['median']:.2f}" for c in list(CHANGES)[1:]), 16)
        result.say(f"{name:<26}{row['microseconds']:>10.1f}{line}")
        if batch > 1000 or options.quick:
            row["megabytes"] = {c: megabytes(case, c) for c in MEASURED[: 1 if options.quick else None]}
            line = ", ".join(f"{c} {m:.1f}" for c, m in row["megabytes"].items())
            result.say(f"{'':<26}megabytes: {line}")
        result.rows.append(row)


def parser() -> argparse.ArgumentParser:
    made = common.parser(__doc__)
    made.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    asked = parser().parse_args().worker
    if asked:
        common.pin(int(asked[0]))
        columns, hidden, batch = (int(n) for n in asked[1:4])
        worker((columns, hidden, batch), asked[4])
    else:
        common.main(run, parser())

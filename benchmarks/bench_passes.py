"""TrainingStep with and without the rewriting of its graph: nodes that run, and time of a step.

TrainingStep.run_batch on prepared OrtValues, float32, ``passes=True`` and ``passes=False`` in turns. Nodes
are those of the graph as onnxruntime runs it, after its own optimizations. The losses of the first steps are
compared.

    python -m benchmarks.bench_passes --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from . import common
from .bench_step import CASES, QUICK
from .common import Contender, Result, cells

STEPS = 4
RATE = 1e-7
NETWORKS = ("lenet", "transformer")


def models(options: argparse.Namespace) -> dict[str, tuple[Any, Any, Any]]:
    """Model, rows and expected values by name."""
    import numpy as np

    found = {}
    for case in QUICK if options.quick else CASES:
        X, y = common.regression(case.batch, case.columns)
        weights = common.mlp_weights((case.columns, case.hidden, case.hidden, 1))
        found[case.name] = (common.mlp(weights), X, y)
    for key in () if options.quick else NETWORKS:
        from onnxcustom import TrainingStep

        from .bench_gradient import NETWORKS as others

        network = others[key]()
        y = TrainingStep(network.model).predict(network.batch)["y"]
        found[network.name] = (network.model, network.batch["x"], np.tanh(y))
    return found


def contender(model: Any, X: Any, y: Any, optimizer: str, passes: bool) -> tuple[Contender, int]:
    """A step, and how many nodes run."""
    import onnx

    from onnxcustom import TrainingStep
    from onnxcustom.runtime import session_options, to_ortvalue

    with tempfile.TemporaryDirectory() as folder:
        options = session_options(1)
        options.optimized_model_filepath = path = str(Path(folder) / "step.onnx")
        made = TrainingStep(
            model, optimizer=optimizer, learning_rate=RATE, passes=passes, sess_options=options
        )
        made.run(X, y)
        nodes = len(onnx.load(path).graph.node)
    step = TrainingStep(model, optimizer=optimizer, learning_rate=RATE, passes=passes)
    values = [to_ortvalue(X), to_ortvalue(y)]
    first = step.weights()

    def run() -> list[float]:
        return [step.run_batch(values) for _ in range(STEPS)]

    return Contender(run, STEPS, lambda: step.set_weights(first)), nodes


def run(options: argparse.Namespace, result: Result) -> None:
    """One line for each model and optimizer."""
    import numpy as np

    result.say(f"a step as it is composed and rewritten, {common.processors()} threads")
    result.say(f"{'':<50}{cells(('nodes', 'rewritten', 'µs', 'rewritten', 'ratio'), 11)}")
    for name, (model, X, y) in models(options).items():
        for optimizer in ("sgd", "adam"):
            found = {passes: contender(model, X, y, optimizer, passes) for passes in (False, True)}
            losses = [made.run() for made, _ in found.values()]
            if not np.allclose(*losses, rtol=1e-3):
                raise AssertionError(f"{name}, {optimizer}: losses differ: {losses}")
            times = common.measure({str(p): made for p, (made, _) in found.items()}, options.seconds)
            row = {
                "case": name,
                "optimizer": optimizer,
                "threads": common.processors(),
                "nodes": [nodes for _, nodes in found.values()],
                "microseconds": [1e6 * statistics.median(times[str(p)]) for p in found],
                "ratio": common.ratios(times, "False", "True"),
            }
            result.rows.append(row)
            texts = [
                *map(str, row["nodes"]),
                *(f"{t:.1f}" for t in row["microseconds"]),
                f"{row['ratio']['median']:.2f}",
            ]
            result.say(
                f"{optimizer.upper() if optimizer == 'sgd' else 'Adam':<5}{name:<45}{cells(texts, 11)}"
            )


if __name__ == "__main__":
    common.main(run, common.parser(__doc__))

"""Logistic regression, one epoch over many rows, against scikit-learn's SGDClassifier.

Both fit the same float32 rows once, in an order of their own, with a constant learning rate and no penalty:
OnnxClassifier.fit of a model Gemm, Sigmoid with batches of 256 rows, SGDClassifier.fit, compiled, one update
a row. Making sessions, checking and shuffling the data are part of the time. They take turns, each fit from
zero weights; the table has medians and what share of 20,000 other rows each gets right.

    python -m benchmarks.bench_logistic --rows 1000000
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from typing import Any

from . import common
from .common import Contender, Result

COLUMNS, BATCH, TESTED = 100, 256, 20_000


def problem(rows: int) -> tuple[Any, Any]:
    """Rows and labels, of which a tenth cannot be known."""
    import numpy as np

    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, COLUMNS), dtype=np.float32)
    direction = rng.standard_normal(COLUMNS, dtype=np.float32)
    scores = X @ direction + 3 * rng.standard_normal(rows, dtype=np.float32)
    return X, (scores > 0).astype(np.int64)


def run(options: argparse.Namespace, result: Result) -> None:
    """One line for each."""
    import numpy as np
    from sklearn.linear_model import SGDClassifier

    from onnxcustom import OnnxClassifier

    rows = 2000 if options.quick else options.rows
    X, y = problem(rows + TESTED)
    train, tested = (X[:rows], y[:rows]), (X[rows:], y[rows:])
    zeros = [np.zeros((COLUMNS, 1), np.float32), np.zeros(1, np.float32)]
    model = common.mlp(zeros)
    model.graph.node[0].output[0] = "score"
    model.graph.node.add(op_type="Sigmoid", input=["score"], output=["y"])
    ours = OnnxClassifier(model, learning_rate=0.1, batch_size=BATCH, max_iter=1, random_state=0)
    theirs = SGDClassifier(
        "log_loss", penalty=None, learning_rate="constant", eta0=1e-3, max_iter=1, tol=None, random_state=0
    )

    def fit_theirs() -> list[float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one epoch
            theirs.fit(*train)
        return []

    contenders = {
        "OnnxClassifier": Contender(lambda: ours.fit(*train).history_["loss"], 1),
        "SGDClassifier": Contender(fit_theirs, 1),
    }
    times = common.measure(contenders, 2 * options.seconds)
    result.say(f"{rows} rows x {COLUMNS}, one epoch, {common.processors()} threads, float32")
    result.say(f"{'':<16}{'seconds':>9}{'ratio':>7}{'aim':>5}{'right':>8}")
    for name, estimator in {"OnnxClassifier": ours, "SGDClassifier": theirs}.items():
        found = {
            "contender": name,
            "rows": rows,
            "columns": COLUMNS,
            "batch": BATCH if estimator is ours else 1,
            "threads": common.processors(),
            "seconds": statistics.median(times[name]),
            "ratio_to_ours": common.ratios(times, name, "OnnxClassifier"),
            "aim": None if estimator is ours else 1.0,
            "accuracy": float(estimator.score(*tested)),
            "rounds": len(times[name]),
        }
        result.rows.append(found)
        aim = "-" if found["aim"] is None else format(found["aim"], "g")
        result.say(
            f"{name:<16}{found['seconds']:>9.3f}{found['ratio_to_ours']['median']:>7.2f}{aim:>5}"
            f"{found['accuracy']:>8.1%}"
        )


def parser() -> argparse.ArgumentParser:
    made = common.parser(__doc__)
    made.add_argument("--rows", type=int, default=1_000_000, help="rows to train on")
    return made


if __name__ == "__main__":
    common.main(run, parser())

"""The share of fit() that is not onnxruntime: shuffling, binding batches, scalars, checks, history.

OnnxRegressor.fit of 20 epochs on an MLP d-h-h-1, SGD, float32, rows shuffled every epoch, sessions made
before (warm_start). The time inside ``run_with_iobinding`` is taken by a wrapper, whose own cost is measured
and subtracted. "first fit" is one that also makes the sessions, of one epoch.

    python -m benchmarks.bench_loop
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from . import common
from .common import Result

EPOCHS = 20  # the default of fit()
# Columns, hidden units, rows of a batch, batches, aim.
CASES = [
    (10, 10, 10, 100, 0.20),
    (100, 100, 32, 100, None),
    (100, 200, 200, 50, None),
    (784, 512, 128, 10, 0.03),
]
QUICK = [(3, 4, 5, 4, None)]


class Inside:
    """Seconds spent in ``run_with_iobinding``, by every session made while this is installed."""

    def __init__(self) -> None:
        from onnxruntime.capi import _pybind_state

        self.seconds, self.calls, clock = 0.0, 0, time.perf_counter
        self._class = _pybind_state.InferenceSession
        self._method = method = self._class.run_with_iobinding

        def wrapped(session: Any, *arguments: Any) -> Any:
            begin = clock()
            result = method(session, *arguments)
            self.seconds += clock() - begin
            self.calls += 1
            return result

        self._wrapped = wrapped

    def __enter__(self) -> Inside:
        self._class.run_with_iobinding = self._wrapped
        return self

    def __exit__(self, *_: object) -> None:
        self._class.run_with_iobinding = self._method

    def cost(self) -> float:
        """Seconds that the wrapper adds to a call, outside of what it measures."""
        method, self._class.run_with_iobinding = self._class.run_with_iobinding, self._method
        clock, seconds, calls = time.perf_counter, 0.0, 0

        def nothing(*_: object) -> None:
            return None

        def wrapped(session: Any, *arguments: Any) -> Any:
            nonlocal seconds, calls
            begin = clock()
            result = nothing(session, *arguments)
            seconds += clock() - begin
            calls += 1
            return result

        spent = []
        for function in (wrapped, nothing) * 5:
            begin, before = clock(), seconds
            for _ in range(20_000):
                function(self, None, None)
            inside = seconds - before
            spent.append((clock() - begin - inside) / 20_000)
        self._class.run_with_iobinding = method
        return statistics.median(spent[0::2]) - statistics.median(spent[1::2])


def run(options: argparse.Namespace, result: Result) -> None:
    """One line for each model."""
    from onnxcustom import OnnxRegressor

    result.say(
        f"fit(), {common.processors()} threads, SGD, shuffled: what is not spent in run_with_iobinding"
    )
    result.say(
        f"{'':<24}{'µs a step':>10}{'inside':>10}{'outside':>9}{'share':>8}{'aim':>7}{'first fit, ms':>15}"
    )
    for columns, hidden, batch, batches, aim in QUICK if options.quick else CASES:
        X, y = common.regression(batch * batches, columns)
        weights = common.mlp_weights((columns, hidden, hidden, 1))
        estimator = OnnxRegressor(
            common.mlp(weights),
            learning_rate=1e-3,
            batch_size=batch,
            max_iter=1,
            random_state=0,
            warm_start=True,
        )
        with Inside() as inside:
            begin = time.perf_counter()
            estimator.fit(X, y)
            first = time.perf_counter() - begin
            estimator.set_params(max_iter=EPOCHS)
            estimator.fit(X, y)
            cost, shares, totals, insides = inside.cost(), [], [], []
            end = time.perf_counter() + options.seconds / 2
            while len(shares) < 5 or time.perf_counter() < end:
                inside.seconds, inside.calls = 0.0, 0
                begin = time.perf_counter()
                estimator.fit(X, y)
                total = time.perf_counter() - begin - cost * inside.calls
                shares.append(1 - inside.seconds / total)
                totals.append(1e6 * total / (EPOCHS * batches))
                insides.append(1e6 * inside.seconds / (EPOCHS * batches))
        share, total, within = map(statistics.median, (shares, totals, insides))
        case = f"{columns}-{hidden}-{hidden}-1, batch {batch}"
        result.rows.append(
            {
                "case": case,
                "threads": common.processors(),
                "microseconds": total,
                "inside": within,
                "share_outside": share,
                "aim": aim,
                "first_fit_seconds": first,
                "rounds": len(shares),
            }
        )
        result.say(
            f"{case:<24}{total:>10.1f}{within:>10.1f}{total - within:>9.1f}{share:>8.1%}"
            f"{'-' if aim is None else format(aim, '.0%'):>7}{1000 * first:>15.0f}"
        )


if __name__ == "__main__":
    common.main(run, common.parser(__doc__))

"""Differentiate every model of the tests in every way, and look whether a process ends.

``python _unittests/ut_fuzz/run_sweep.py --engine onnx --table`` runs each operator of the tables and whole
models through forward and backward, ``gradient_graph`` and ``TrainingStep``, on the onnxruntime of the
interpreter, in child processes. It prints how many came to which end, and every signal and every exception
that is not ours by name.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from fuzz_runner import Result, run_cases  # noqa: E402
from sweep_cases import SHAPES, WAYS, Sweep, subjects  # noqa: E402

ENDS = ("ok", "refused", "foreign", "signal", "late")


def end_of(result: Result) -> str:
    """One of ENDS, or 'none' where there was no model."""
    if result.ended:
        return "late" if result.outcome == "timeout" else "signal"
    return "foreign" if result.bad else result.outcome.split()[0]


def main() -> int:
    """Run the cases, print what became of them; 1 if something happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["onnx", "ort"], default="onnx")
    parser.add_argument("--table", action="store_true", help="print a row an operator")
    parser.add_argument("--refused", action="store_true", help="print what was refused, and why")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES, help="what is known of inputs")
    parser.add_argument("--every", type=int, default=1, help="one model of so many")
    parser.add_argument("--first", type=int, default=0, help="number of the first model")
    parser.add_argument("--only", default="", help="models whose names hold this text")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no case after so long")
    parser.add_argument("--here", action="store_true", help="in this process")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    found = [s for s in subjects(given.shapes) if given.only in s.name][given.first :: given.every]
    sweep = Sweep(found, given.engine)
    if given.here:
        for number in range(len(sweep)):
            print(sweep.subject(number).name, sweep.way(number), sweep(number), flush=True)
        return 0
    start, counts = time.perf_counter(), defaultdict[tuple[str, str], Counter[str]](Counter)
    for result in run_cases(sweep, range(len(sweep)), seconds=120, batch=300):
        subject, way, end = sweep.subject(result.number), sweep.way(result.number), end_of(result)
        counts[subject.operator, way][end] += 1
        if result.bad:
            print(f"-- {end}: {subject.name} by {way}\n{result.detail}", flush=True)
        elif given.refused and end == "refused":
            print(f"   {subject.name} by {way}: {result.outcome}", flush=True)
        if time.perf_counter() - start > 60 * given.minutes:
            print(f"{result.number + 1} of {len(sweep)} runs", flush=True)
            break
    if given.table:
        print(table(counts))
    return int(summary(counts, given.engine, time.perf_counter() - start))


def table(counts: Mapping[tuple[str, str], Counter[str]]) -> str:
    """A row an operator, a column a way: ok / refused / foreign / signal / late."""
    width = max(len(operator) for operator, _ in counts)
    lines = [" ".join([f"{'operator':{width}}", *(f"{way:>20}" for way in WAYS)])]
    for operator in sorted({operator for operator, _ in counts}):
        cells = ["/".join(str(counts[operator, way][end]) for end in ENDS) for way in WAYS]
        lines.append(" ".join([f"{operator:{width}}", *(f"{cell:>20}" for cell in cells)]))
    return "\n".join(lines)


def summary(counts: Mapping[tuple[str, str], Counter[str]], engine: str, seconds: float) -> bool:
    """Print the counts of all operators; True if something happened that must not."""
    import onnxruntime

    every = Counter[str]()
    print(f"engine {engine}, onnxruntime {onnxruntime.__version__}, {' / '.join(ENDS)}:")
    for way in WAYS:
        found = sum((c for (_, w), c in counts.items() if w == way), Counter[str]())
        every += found
        print(f"{way:>20}: {' / '.join(str(found[end]) for end in ENDS)}")
    print(f"{sum(every[end] for end in ENDS)} runs in {seconds:.0f} s")
    return bool(every["foreign"] or every["signal"] or every["late"])


if __name__ == "__main__":
    sys.exit(main())

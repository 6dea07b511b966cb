"""Mutate models and files of rows, and look what happens.

``python _unittests/ut_fuzz/run_fuzz.py models --cases 5000 --seed 0`` runs cases in child processes and
prints how many came to what end. Every case is a function of the seed and its number: ``--only 17`` runs one
of them in this process, ``--save FOLDER`` writes what something happened to.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from fuzz_cases import Fuzz  # noqa: E402
from fuzz_runner import Result, run_cases  # noqa: E402


def main() -> int:
    """Run the cases, print what became of them; 1 if something happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["models", "operators", "data", "checkpoints"])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run this case in this process")
    parser.add_argument("--batch", type=int, default=20, help="cases in one process")
    parser.add_argument("--save", type=Path, help="folder for what something happened to")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = Fuzz(given.kind, given.seed)
    if given.only is not None:
        if given.save:
            (given.save / f"{given.kind}_{given.seed}_{given.only}").write_bytes(cases.content(given.only))
        print(cases.name(given.only), cases(given.only))
        return 0
    start, counts, bad = time.perf_counter(), Counter[str](), list[Result]()
    for result in run_cases(cases, range(given.first, given.first + given.cases), batch=given.batch):
        counts.update(result.outcome.split())
        if not result.bad:
            continue
        bad.append(result)
        name = cases.name(result.number)
        print(f"-- case {result.number} ({name}): {result.outcome}\n{result.detail}", flush=True)
        if given.save:
            path = given.save / f"{given.kind}_{given.seed}_{result.number}"
            path.write_bytes(cases.content(result.number))
    for outcome, count in sorted(counts.items()):
        print(f"{count:7d}  {outcome}")
    print(f"{given.cases} cases, {len(bad)} bad, {time.perf_counter() - start:.0f} s")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

"""Mutate models and look what happens: ``python _unittests/ut_fuzz/run_fuzz.py --cases 5000 --seed 0``.

Every case is a function of the seed and its number; ``--only 17`` runs one of them in this process.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from fuzz_models import MODELS, model
from model_mutations import mutate
from model_targets import run_model
from runner import Result, run_cases

__all__ = ["model_case"]


def models(which: str) -> dict[str, bytes]:
    """Valid models by name: 'small' ones, or one for each case of every 'operators' table."""
    if which == "small":
        return {name: model(name) for name in MODELS}
    from operator_models import operator_models

    return operator_models()


def model_case(seeds: dict[str, bytes], seed: int, number: int) -> bytes:
    """A mutated model."""
    random, names = Random(f"{seed}:{number}"), list(seeds)
    return mutate(seeds[names[number % len(names)]], random, seeds[random.choice(names)])


def main() -> int:
    """Run the cases, print what became of them; 1 if something happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", choices=["small", "operators"], default="small")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run this case in this process")
    parser.add_argument("--batch", type=int, default=20, help="cases in one process")
    parser.add_argument("--save", type=Path, help="folder for the models that something happened to")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    seeds = models(given.models)
    names = list(seeds)
    if given.only is not None:
        content = model_case(seeds, given.seed, given.only)
        if given.save:
            (given.save / f"{given.seed}_{given.only}.onnx").write_bytes(content)
        print(names[given.only % len(names)], run_model(content))
        return 0

    def case(number: int) -> str:
        return " ".join(f"{k}:{v}" for k, v in run_model(model_case(seeds, given.seed, number)).items())

    start, counts, bad = time.perf_counter(), Counter[str](), list[Result]()
    for result in run_cases(case, range(given.first, given.first + given.cases), batch=given.batch):
        counts.update(result.outcome.split())
        if result.bad:
            bad.append(result)
            name = names[result.number % len(names)]
            print(f"-- case {result.number} ({name}): {result.outcome}\n{result.detail}", flush=True)
            if given.save:
                (given.save / f"{given.seed}_{result.number}.onnx").write_bytes(
                    model_case(seeds, given.seed, result.number)
                )
    for outcome, count in sorted(counts.items()):
        print(f"{count:7d}  {outcome}")
    print(f"{given.cases} cases, {len(bad)} bad, {time.perf_counter() - start:.0f} s")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

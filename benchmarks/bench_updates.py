"""Updates of one weight by its shape, against torch.optim's: what blocks and scalars of its rank are worth.

One graph updates one weight, bound to buffers that are kept twice, the gradient given. 'whole' is the same
graph without blocks, and with plain scalars, where it differs. They run in turns, in float32, from the same
weight and gradient; the first steps compare the numbers. Times are the least of all rounds, of the processor;
ratios are to ours.

    python benchmarks/bench_updates.py --threads 1
    python benchmarks/bench_updates.py --threads 1 --only Adam --shapes 512x512x1x1 10000000
"""

from __future__ import annotations

import argparse
import math
import os
from typing import Any

import numpy as np

try:
    from .bench_optim import RATE, RULES, ByTorch, Ours, compare, measure, processors, versions
except ImportError:  # run as a file
    from bench_optim import RATE, RULES, ByTorch, Ours, compare, measure, processors, versions

SHAPES = ["10000", "512x512x1x1", "1000x1000", "1000000", "512x512x3x3", "10000000"]
DEFAULT = ["SGD", "Adam", "AdamW", "RMSProp", "AdaGrad", "Lion"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="processors to use, on Linux [default: all]")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of turns [default: %(default)s]")
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="time for each contestant [default: %(default)s]"
    )
    parser.add_argument("--only", nargs="*", default=DEFAULT, choices=list(RULES), help="rules to measure")
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="such as 512x512x3x3")
    arguments = parser.parse_args()
    arguments.cpu = True
    return arguments


def contestants(key: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Our update, the same without the passes that this is about, and torch's."""
    from onnxcustom import optim

    name, options, other, other_options = RULES[key]
    rng = np.random.default_rng(0)
    weights, gradients = ({"w": rng.standard_normal(shape).astype(np.float32)} for _ in range(2))
    found: dict[str, Any] = {}
    for way, passes in (("step", True), ("whole", False)):
        rule = optim.create(name, learning_rate=RATE, **options)
        found[way] = Ours(rule, weights, gradients, passes=passes)
    graphs = [[node.op_type for node in ours.model.graph] for ours in found.values()]
    if graphs[0] == graphs[1]:
        del found["whole"]  # they are one graph
    for way in ("foreach", "fused") if other else ():
        try:
            found[way] = ByTorch(other, {**other_options, way: True}, weights, gradients)
        except (TypeError, RuntimeError, ImportError, AttributeError):  # it has none, or is not installed
            continue
    compare(key, found)
    return found


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        # Before any library is imported: each sizes its pool by what the process may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    ways = ("whole", "foreach", "fused")
    print(f"{processors()} threads, {versions()}; milliseconds of ours, and ratios to it\n")
    print(f"{'rule':<9}{'shape':>14}{'numbers':>10}{'ours, ms':>10}" + "".join(f"{way:>9}" for way in ways))
    for key in arguments.only:
        for text in arguments.shapes:
            shape = tuple(map(int, text.split("x")))
            times = {way: min(found) for way, found in measure(contestants(key, shape), arguments).items()}
            ours = times["step"]
            ratios = "".join(f"{times[way] / ours:>9.2f}" if way in times else f"{'-':>9}" for way in ways)
            print(f"{key:<9}{text:>14}{math.prod(shape):>10}{1e3 * ours:>10.3f}{ratios}", flush=True)


if __name__ == "__main__":
    main()

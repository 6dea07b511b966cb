"""A training step of thirteen architectures against PyTorch eager, and compiled.

Everyone has the same weights, batch and loss (mean cross-entropy), float32, one batch over and over;
statistics of BatchNorm stay and Dropout passes on (benchmarks/architectures.py). The losses of the first
three steps are compared before anything is timed. Images are 64 or 224 pixels wide, batches of 8 and of 4;
models of tokens have one size. Ours is TrainingStep.run_batch on prepared OrtValues; theirs zero_grad,
forward, backward, optimizer.step and loss.item(). Ratios are theirs by ours.

With one thread all take turns in one process, a step each, and the minimum of each counts; --clock cpu
counts the time of the process rather than that of the wall, for a machine that is busy. With more threads
pools of one library spin while the other works: then whole processes take turns, and --clock is the wall.

build: seconds from the model's bytes to the end of the first step. memory: megabytes that making the step
and three steps add at their peak to a process that has libraries, model and batch, each in a process of its
own.

    python -m benchmarks.bench_architectures --models resnet18 --optimizers SGD --px 64 --rounds 5
    python -m benchmarks.bench_architectures --px 64 224 --optimizers SGD Adam --compile --memory
    python -m benchmarks.bench_architectures --models bert --profile
"""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import functools
import importlib
import json
import logging
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import architectures, common
from .architectures import ARCHITECTURES, Problem
from .bench_profile import profiled
from .common import Result, cells

RATES = {"SGD": 1e-5, "Adam": 1e-5}
BATCHES = {64: 8, 224: 4}
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
QUICK = ["unet", "lstm"]
COMPARED = 3  # steps
TURNS = 3  # of processes
Step = Callable[[], float]


# -- contenders -----------------------------------------------------------------------------------------


def ours(problem: Problem, optimizer: str, options: Any = None) -> tuple[Any, list[Any]]:
    """A step, and the batch as it takes it."""
    from onnxcustom import TrainingStep
    from onnxcustom.runtime import to_ortvalue

    step = TrainingStep(
        problem.onnx,
        "cross_entropy",
        optimizer.lower(),
        learning_rate=RATES[optimizer],
        threads=common.processors(),
        sess_options=options,
    )
    return step, [to_ortvalue(problem.X), to_ortvalue(problem.y)]


def theirs(problem: Problem, optimizer: str, compiled: bool = False) -> Step:
    torch = common.imported_torch()
    module, (X, y) = problem.module, (torch.from_numpy(a) for a in (problem.X, problem.y))
    rule = getattr(torch.optim, optimizer)(module.parameters(), lr=RATES[optimizer])
    update = rule.step

    def loss_of(x: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(module(x), labels)

    if compiled:
        torch._logging.set_logs(all=logging.ERROR)  # it tells what it ignores
        loss_of, update = torch.compile(loss_of), torch.compile(rule.step)

    def run() -> float:
        rule.zero_grad()
        loss = loss_of(X, y)
        loss.backward()
        update()
        return loss.item()

    return run


def contender(way: str, problem: Problem, optimizer: str) -> Step:
    """Ours, eager or compile, on weights of its own."""
    if way == "ours":
        step, values = ours(problem, optimizer)
        return lambda: step.run_batch(values)
    own = dataclasses.replace(problem, module=copy.deepcopy(problem.module))
    return theirs(own, optimizer, way == "compile")


# -- one thread: turns in one process ---------------------------------------------------------------------


def in_turns(
    problem: Problem, optimizer: str, ways: Sequence[str], rounds: int
) -> tuple[dict[str, dict[str, float]], float]:
    """Least seconds of a step of each by each clock; and how long ours took to be built."""
    begin = time.perf_counter()
    steps = {"ours": contender("ours", problem, optimizer)}
    losses = {"ours": [steps["ours"]()]}
    build = time.perf_counter() - begin
    for way in ways[1:]:
        steps[way], losses[way] = contender(way, problem, optimizer), []
    for way, step in steps.items():
        losses[way] += [step() for _ in range(COMPARED - len(losses[way]))]
    compare(losses)
    least: dict[str, dict[str, float]] = {way: {} for way in ways}
    for _ in range(rounds):
        for way in ways:
            least[way] = at_least(least[way], timed(steps[way]))
    return least, build


def at_least(seconds: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    return {clock: min(found, seconds.get(clock, found)) for clock, found in others.items()}


def timed(step: Step) -> dict[str, float]:
    """Seconds of one call by each clock."""
    before = {name: clock() for name, clock in CLOCKS.items()}
    step()
    return {name: clock() - before[name] for name, clock in CLOCKS.items()}


def compare(losses: Mapping[str, Sequence[float]]) -> None:
    """Everyone's losses are ours."""
    for way, found in losses.items():
        if not all(math.isclose(a, b, rel_tol=2e-3) for a, b in zip(found, losses["ours"], strict=True)):
            raise AssertionError(f"losses differ: {dict(losses)} ({way})")


# -- several threads, and memory: a process for each --------------------------------------------------------


def in_process(problem: Problem, way: str, optimizer: str, task: str, rounds: int = 1) -> dict[str, Any]:
    """What :func:`worker` finds in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        if way == "ours":
            Path(folder, "model.onnx").write_bytes(problem.onnx)
            np = importlib.import_module("numpy")
            np.savez(Path(folder, "batch.npz"), X=problem.X, y=problem.y)
        asked = [problem.name, problem.px, len(problem.X), folder, way, optimizer, task, common.processors()]
        command = [sys.executable, "-m", "benchmarks.bench_architectures", "--worker", *map(str, asked)]
        command.append(str(rounds))
        done = subprocess.run(command, capture_output=True, text=True, cwd=common.ROOT)
    if done.returncode:
        raise RuntimeError(f"{problem.name}, {way}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def worker(
    name: str,
    px: str,
    batch: str,
    folder: str,
    way: str,
    optimizer: str,
    task: str,
    threads: str,
    rounds: str,
) -> None:
    """Print losses and least seconds of one, or the memory it takes."""
    common.pin(int(threads))
    if way == "ours":  # without PyTorch in the process
        np = importlib.import_module("numpy")
        importlib.import_module("onnxcustom").TrainingStep  # noqa: B018
        importlib.import_module("onnxruntime")
        with np.load(Path(folder, "batch.npz")) as kept:
            X, y = kept["X"], kept["y"]
        problem = Problem(name, int(px), None, Path(folder, "model.onnx").read_bytes(), X, y)
        make = functools.partial(contender, way, problem, optimizer)
    else:
        problem = architectures.problem(name, int(px), int(batch), export=False)
        make = functools.partial(theirs, problem, optimizer, way == "compile")
    before = common.forget_peak()
    begin = time.perf_counter()
    step = make()
    losses = [step()]
    found: dict[str, Any] = {"build": time.perf_counter() - begin}
    losses += [step() for _ in range(COMPARED - 1)]
    found |= {"losses": losses, "memory": common.peak_megabytes() - before, "seconds": {}}
    for _ in range(int(rounds) if task == "time" else 0):
        found["seconds"] = at_least(found["seconds"], timed(step))
    print(json.dumps(found))


def by_processes(
    problem: Problem, optimizer: str, ways: Sequence[str], rounds: int
) -> tuple[dict[str, dict[str, float]], float]:
    """As :func:`in_turns`, in turns of whole processes."""
    least: dict[str, dict[str, float]] = {way: {} for way in ways}
    build = math.inf
    for _ in range(TURNS):
        found = {way: in_process(problem, way, optimizer, "time", rounds) for way in ways}
        compare({way: one["losses"] for way, one in found.items()})
        least = {way: at_least(least[way], one["seconds"]) for way, one in found.items()}
        build = min(build, found["ours"]["build"])
    return least, build


# -- profile --------------------------------------------------------------------------------------------


def profile(problem: Problem, optimizer: str, options: argparse.Namespace, result: Result) -> None:
    """Where the time of ours goes: by operator, and by operator and shapes, the least of each node."""
    nodes = profiled(lambda settings: ours(problem, optimizer, settings), options.rounds)
    total = sum(node["least"] for node in nodes)
    result.say(f"\n{problem.name}, {optimizer}: {len(nodes)} nodes, {total / 1e3:.2f} ms by their own clock")
    for shown, key in ((16, lambda node: node["op_type"]), (options.nodes, with_shapes)):
        spent: collections.Counter[str] = collections.Counter()
        numbers = collections.Counter(map(key, nodes))
        for node in nodes:
            spent[key(node)] += node["least"]
        for name, microseconds in spent.most_common(shown):
            share = f"{microseconds / total:.1%}"
            result.say(f"{numbers[name]:>6} {microseconds / 1e3:>9.3f} ms{share:>7}  {name}")
        result.say()


def with_shapes(node: Mapping[str, Any]) -> str:
    return " ".join([node["op_type"], *("x".join(map(str, shape)) or "()" for shape in node["shapes"])])


# -- rows -----------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, result: Result) -> None:
    """One line for each model, optimizer and size."""
    clock = options.clock if common.processors() == 1 else "wall"
    ways = ("ours", "eager", "compile")[: 3 if options.compile else 2]
    if options.quick:
        options.models, options.rounds = QUICK, 1
    heads = [f"{way}, ms" for way in ways] + [f"{way} / ours" for way in ways[1:]] + ["build, s"]
    heads += [f"{way}, MB" for way in ways[:2]] if options.memory else []
    result.say(f"{common.processors()} threads, {clock} time, least of {options.rounds} rounds")
    result.say(f"{'':<38}{cells(heads, 16)}")
    for px in options.px:
        for name in options.models:
            kind = ARCHITECTURES[name]
            if why := common.missing("torch", *kind.needs):
                result.skipped[name] = why
                continue
            if kind.tokens and px != options.px[0]:
                continue  # has one size
            problem = architectures.problem(name, px, BATCHES.get(px, 8))
            for optimizer in options.optimizers:
                if options.profile:
                    profile(problem, optimizer, options, result)
                else:
                    result.rows.append(row(problem, optimizer, ways, clock, options))
                    result.say(line(result.rows[-1], ways))
    means(result)


def row(
    problem: Problem, optimizer: str, ways: Sequence[str], clock: str, options: argparse.Namespace
) -> dict[str, Any]:
    measure = in_turns if common.processors() == 1 else by_processes
    least, build = measure(problem, optimizer, ways, options.rounds)
    found = {
        "model": problem.name,
        "optimizer": optimizer,
        "px": None if ARCHITECTURES[problem.name].tokens else problem.px,
        "batch": len(problem.X),
        "threads": common.processors(),
        "clock": clock,
        "seconds": {way: times[clock] for way, times in least.items()},
        "ratios": {
            way: {name: least[way][name] / least["ours"][name] for name in CLOCKS} for way in ways[1:]
        },
        "build": build,
    }
    if options.memory:
        found["memory"] = {w: in_process(problem, w, optimizer, "memory")["memory"] for w in ways[:2]}
    return found


def line(found: dict[str, Any], ways: Sequence[str]) -> str:
    size = "" if found["px"] is None else f", {found['px']} px"
    texts = [f"{1e3 * seconds:.2f}" for seconds in found["seconds"].values()]
    texts += [f"{found['ratios'][way][found['clock']]:.2f}" for way in ways[1:]]
    texts += [f"{found['build']:.2f}", *(f"{m:.0f}" for m in found.get("memory", {}).values())]
    return f"{found['model'] + size + ', ' + found['optimizer']:<38}{cells(texts, 16)}"


def means(result: Result) -> None:
    """Geometric means of the ratios."""
    groups: dict[tuple[Any, ...], list[float]] = collections.defaultdict(list)
    for found in result.rows:
        for way, by_clock in found["ratios"].items():
            groups[found["optimizer"], found["px"] or 64, way].append(by_clock[found["clock"]])
    for (optimizer, px, way), ratios in groups.items():
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        result.say(f"geometric mean of {len(ratios)}, {optimizer}, {px} px, {way}: {mean:.2f}")


def parser() -> argparse.ArgumentParser:
    made = common.parser(__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    names = list(ARCHITECTURES)
    made.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL", help=str(names))
    made.add_argument("--optimizers", nargs="+", choices=list(RATES), default=["SGD"])
    made.add_argument("--px", nargs="+", type=int, default=[64], help="width of images: 64 224")
    made.add_argument("--rounds", type=int, default=7, help="steps of each, taken in turns")
    made.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    made.add_argument("--compile", action="store_true", help="torch.compile, too")
    made.add_argument("--memory", action="store_true", help="peaks of memory, too")
    made.add_argument("--profile", action="store_true", help="onnxruntime's profile of ours instead")
    made.add_argument("--nodes", type=int, default=24, help="of a profile, lines")
    made.add_argument("--worker", nargs=9, help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    made = parser()
    asked = made.parse_args()
    if asked.worker:
        worker(*asked.worker)
    else:
        common.main(run, made)

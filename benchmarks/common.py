"""What the benchmarks of training share: processors, versions, turns, medians of ratios, results."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = (
    "onnxcustom onnxruntime-training-cpu onnxruntime-training onnxruntime onnxruntime-gpu onnx onnx-ir numpy "
    "scipy scikit-learn torch jax jaxlib optax matplotlib"
).split()
ROOT = Path(__file__).resolve().parents[1]
# One turn takes at least so long, or else the clock and the caches are what is measured.
TURN = 0.004


# -- processors -----------------------------------------------------------------------------------


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pin(threads: int | None) -> None:
    """Give this process so many processors, before any library sizes its pool by them.

    It is the only setting that all contenders follow: JAX has none for its threads.
    """
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, quietest()[:threads])
    if threads:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(min(threads, processors()))


def quietest() -> list[int]:
    """Processors this process may use, those first that did the least in the last half second."""

    def idle() -> dict[int, int]:
        lines = [s.split() for s in Path("/proc/stat").read_text().splitlines()]
        return {int(s[0][3:]): int(s[4]) for s in lines if s[0][:3] == "cpu" and s[0] != "cpu"}

    own = sorted(os.sched_getaffinity(0))
    if len(own) == 1 or not Path("/proc/stat").is_file():
        return own
    before = idle()
    time.sleep(0.5)
    after = idle()
    return sorted(own, key=lambda n: before.get(n, 0) - after.get(n, 0))


def machine() -> dict[str, Any]:
    """The computer, and how busy it is."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            s.split(":")[1].strip() for s in cpuinfo.read_text().splitlines() if s.startswith("model name")
        ]
        name = names[0] if names else name
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": name,
        "processors": os.cpu_count(),
        "load": load,
    }


def versions() -> dict[str, str]:
    """Of everything that is compared and is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# -- peers, which are optional -------------------------------------------------------------------


def missing(*modules: str) -> str | None:
    """Why a peer cannot run: the first of its modules that is not installed."""
    return next((f"{m} is not installed" for m in modules if importlib.util.find_spec(m) is None), None)


def imported_torch() -> Any:
    """PyTorch with as many threads as this process has processors."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(processors())
    return torch


# -- measuring ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Contender:
    """One of those that take turns.

    Attributes
    ----------
    run : callable
        Does `steps` steps and returns their losses, or those of epochs.
    steps : int
        Steps in a call.
    reset : callable
        Back to the first weights; not timed.
    """

    run: Callable[[], Sequence[float]]
    steps: int
    reset: Callable[[], object] = lambda: None


def measure(
    contenders: Mapping[str, Contender], seconds: float, rounds: tuple[int, int] = (5, 301)
) -> dict[str, list[float]]:
    """Seconds a step of each, by round: all take their turn in a round, and begin one after the other.

    A turn starts at the first weights, so that every round is the same work, and lasts 4 ms or one call.
    With several threads the pool of the last one may still spin: a pause and a call that is not timed.
    """
    several = processors() > 1
    repeats = {}
    for name, contender in contenders.items():
        contender.reset()
        contender.run()
        begin = time.perf_counter()
        contender.run()
        repeats[name] = max(1, round(TURN / max(time.perf_counter() - begin, 1e-7)))
    names, times = list(contenders), {name: [] for name in contenders}  # type: dict[str, list[float]]
    end = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    try:
        while len(times[names[0]]) < rounds[0] or (
            time.perf_counter() < end and len(times[names[0]]) < rounds[1]
        ):
            for name in names:
                contender = contenders[name]
                contender.reset()
                if several:
                    time.sleep(0.02)
                    contender.run()
                calls = range(repeats[name])
                begin = time.perf_counter()
                for _ in calls:
                    contender.run()
                times[name].append((time.perf_counter() - begin) / repeats[name] / contender.steps)
            names = names[1:] + names[:1]
    finally:
        gc.enable()
    return times


def ratios(times: Mapping[str, list[float]], name: str, ours: str) -> dict[str, float]:
    """How many times as long as ours it took: median and quartiles over the rounds."""
    found = [a / b for a, b in zip(times[name], times[ours], strict=True)]
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


# -- models and data -----------------------------------------------------------------------------


def mlp(weights: Sequence[Any]) -> Any:
    """An ONNX model of layers ``Gemm`` with ``Relu`` between them: arrays W0 (in, out), b0 (out,), W1, ..."""
    import onnx.numpy_helper
    import onnx.parser

    layers, last, lines = len(weights) // 2, "x", []
    for i in range(layers):
        result = "y" if i == layers - 1 else f"h{i}"
        lines.append(f"{result} = Gemm({last}, W{i}, b{i})")
        last = result
        if i < layers - 1:
            lines.append(f"r{i} = Relu(h{i})")
            last = f"r{i}"
    columns, outputs = weights[0].shape[0], weights[-1].shape[0]
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        f"mlp (float[N, {columns}] x) => (float[N, {outputs}] y) {{ {' '.join(lines)} }}"
    )
    for i, array in enumerate(weights):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{'Wb'[i % 2]}{i // 2}"))
    return model


def mlp_weights(sizes: Sequence[int]) -> list[Any]:
    """First weights of layers of these sizes, float32: W0, b0, W1, ..."""
    import numpy as np

    rng, made = np.random.default_rng(0), []
    for fan_in, fan_out in itertools.pairwise(sizes):
        made.append(rng.normal(0, np.sqrt(1 / fan_in), (fan_in, fan_out)).astype(np.float32))
        made.append(np.zeros(fan_out, np.float32))
    return made


def regression(rows: int, columns: int) -> tuple[Any, Any]:
    """Rows and expected values of shape (rows, 1), float32."""
    import numpy as np

    rng = np.random.default_rng(1)
    X = rng.standard_normal((rows, columns), dtype=np.float32)
    noise = rng.standard_normal(rows, dtype=np.float32)
    return X, (np.tanh(X[:, :5].sum(axis=1)) + 0.1 * noise).reshape(-1, 1)


def torch_mlp(weights: Sequence[Any]) -> Any:
    """The same layers as a ``torch.nn.Sequential``."""
    torch = imported_torch()
    layers: list[Any] = []
    for w, b in zip(weights[::2], weights[1::2], strict=True):
        layer = torch.nn.Linear(*w.shape)
        layer.weight.data, layer.bias.data = torch.from_numpy(w.T.copy()), torch.from_numpy(b.copy())
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


# -- memory ---------------------------------------------------------------------------------------


def peak_megabytes() -> float:
    """The most memory this process has held since :func:`forget_peak`, or since it began."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the parent held when it started this process
        line = next((s for s in status.read_text().splitlines() if s.startswith("VmHWM")), None)
        if line:
            return int(line.split()[1]) / 1024
    import resource
    import sys

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def forget_peak() -> float:
    """Begin to look for the peak anew, where the system can; what the process holds now, in megabytes."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_megabytes()


# -- results and command line --------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    """What a subject found: rows for JSON, what was left out and why, and lines to print."""

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def say(self, line: str = "") -> None:
        """Print now: a benchmark is watched."""
        print(line, flush=True)


def parser(description: str) -> argparse.ArgumentParser:
    """The options every subject has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--threads", type=int, default=1, help="processors this process may use, on Linux")
    made.add_argument("--seconds", type=float, default=8, help="time for the turns of one line of a table")
    made.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    made.add_argument("--json", type=Path, help="file to write the numbers to")
    return made


def main(run: Callable[[argparse.Namespace, Result], None], made: argparse.ArgumentParser) -> None:
    """Run a subject by itself and write its JSON."""
    options = made.parse_args()
    if options.quick:
        options.seconds = 0.05
    pin(options.threads)
    result = Result()
    if options.threads > 1 and (machine()["load"] or 0) > 0.5:
        result.say(
            f"the machine is busy (load {machine()['load']:.1f}): threads that wait for one another suffer"
        )
    run(options, result)
    for name, why in result.skipped.items():
        result.say(f"left out: {name}: {why}")
    if options.json:
        save(options.json, {"threads": processors(), "rows": result.rows, "skipped": result.skipped})


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n")


def cells(texts: Iterable[str], width: int) -> str:
    """Right-aligned columns."""
    return "".join(f"{text:>{width}}" for text in texts)

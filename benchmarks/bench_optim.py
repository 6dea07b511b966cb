"""Update rules against torch.optim: time of a step and bytes of state, and row-sparse updates.

The update runs as in a training step: one graph for all weights, bound to buffers that are kept twice, the
gradients given. 'Updater' is one call for all weights that runs a graph for each. They run in turns, in
float32, from the same weights and gradients; the first steps compare the numbers. Tables show medians: of our
microseconds, and of the ratios of each round, which are how many times as long as ours each took. '-' means
that there is none, or that it is not installed.

    python benchmarks/bench_optim.py --threads 1
    python benchmarks/bench_optim.py --rows
    python benchmarks/bench_optim.py --profile Adam 2000000 1
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

SIZES = [10_000, 100_000, 2_000_000]
TENSORS = [1, 100]
# Our rule and options, torch's and options.
RULES: dict[str, tuple[str, dict[str, Any], str | None, dict[str, Any]]] = {
    "SGD": ("SGD", {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
    "Adam": ("Adam", {}, "Adam", {}),
    "AdamW": ("AdamW", {}, "AdamW", {}),
    "AMSGrad": ("AMSGrad", {}, "Adam", {"amsgrad": True}),
    # Epsilon is inside the root here and outside there: almost none, so that numbers can be compared.
    "RMSProp": ("RMSProp", {"epsilon": 1e-20}, "RMSprop", {"alpha": 0.9, "eps": 1e-10}),
    "AdaGrad": ("AdaGrad", {"eps": 1e-20}, "Adagrad", {"eps": 1e-10}),
    "Lion": ("Lion", {}, None, {}),
    "Ftrl": ("Ftrl", {}, None, {}),
}
ROWS = [1_000, 10_000, 100_000, 1_000_000]
BATCH, READ, WIDTH = 32, 5, 16
# Our rule and options, torch's for the table where its gradient is sparse, and where it is dense.
ROW_RULES: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "SGD": ({}, "SGD", "SGD"),
    # SparseAdam adds epsilon to the root of the biased moment: almost none.
    "Adam": ({"epsilon": 1e-20}, "SparseAdam", "Adam"),
    "AdaGrad": ({"eps": 1e-20}, "Adagrad", "Adagrad"),
    "Ftrl": ({}, None, None),
}
RATE = 1e-3


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="processors to use, on Linux [default: all]")
    parser.add_argument("--rounds", type=int, default=11, help="rounds of turns [default: %(default)s]")
    parser.add_argument(
        "--seconds", type=float, default=1, help="time for each contestant [default: %(default)s]"
    )
    parser.add_argument("--only", nargs="*", help="names of rules to measure [default: all]")
    parser.add_argument("--sizes", type=int, nargs="*", help="numbers of parameters, or of rows")
    parser.add_argument("--cpu", action="store_true", help="processor time of all threads, not time")
    parser.add_argument("--rows", action="store_true", help="row-sparse updates instead")
    parser.add_argument(
        "--profile", nargs=3, metavar=("RULE", "SIZE", "TENSORS"), help="our time by operator instead"
    )
    return parser.parse_args()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def imported_torch() -> Any:
    """PyTorch, None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(processors())
    return torch


def versions() -> str:
    """What is compared."""
    import onnxruntime

    import onnxcustom

    torch = imported_torch()
    found = {"onnxcustom": onnxcustom, "onnxruntime": onnxruntime, "torch": torch, "numpy": np}
    return ", ".join(f"{name} {module.__version__}" for name, module in found.items() if module)


# -- measuring --------------------------------------------------------------------------------


def measure(
    functions: Mapping[str, Callable[[], object]], arguments: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of one call of each, by round."""
    clock = time.process_time if arguments.cpu else time.perf_counter
    repeats = {}
    for name, function in functions.items():
        function()
        begin = time.perf_counter()
        for _ in range(3):
            function()
        once = (time.perf_counter() - begin) / 3
        repeats[name] = max(1, int(arguments.seconds / arguments.rounds / max(once, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(arguments.rounds):
        names = list(functions)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            function = functions[name]
            function()  # what was in the caches is the last one's
            begin = clock()
            for _ in range(repeats[name]):
                function()
            times[name].append((clock() - begin) / repeats[name])
    return times


def ratio(times: Mapping[str, list[float]], name: str, ours: str) -> str:
    """Median of how many times as long as ours it took, round by round."""
    if name not in times:
        return "-"
    return f"{statistics.median(a / b for a, b in zip(times[name], times[ours], strict=True)):.2f}"


# -- contestants: whole updates -----------------------------------------------------------------


class Ours:
    """All weights' updates as one graph, run as a training step runs it, with gradients given."""

    def __init__(
        self,
        rule: Any,
        weights: dict[str, np.ndarray],
        gradients: dict[str, np.ndarray],
        profile: bool = False,
        passes: bool = True,
    ) -> None:
        from onnxcustom.graph.building.builder import Builder
        from onnxcustom.optim.base import BaseLearningRate
        from onnxcustom.runtime import create_session, parse_device
        from onnxcustom.step.buffers import DoubleBuffer, Scalar
        from onnxcustom.step.passes.blocks import in_blocks
        from onnxcustom.step.passes.packing import plan_packs
        from onnxcustom.step.passes.ranks import widen_scalars
        from onnxcustom.step.plan import Plan
        from onnxcustom.step.updates import Scalars, compose_updates

        self.rule: BaseLearningRate = rule.init_learning_rate()
        op, kind = Builder(18), ir.DataType.FLOAT
        w = {name: op.input(name, kind, array.shape) for name, array in weights.items()}
        g = {name: op.input(f"{name}_gradient", kind, array.shape) for name, array in gradients.items()}
        rate, step = op.input("learning_rate", kind, []), op.input("step", kind, [])
        sizes = {name: ir.tensor(array) for name, array in weights.items()}
        own = plan_packs(rule, sizes, {}, {}, {name: k for k, name in enumerate(weights)})
        plan = Plan(tuple(weights), rule, packs=tuple(map(tuple, own)))
        updates = compose_updates(op, plan, w, g, {}, Scalars(rate, step, {}))
        tensors, packs = dict(weights), {}
        self.outputs = {}
        inputs, outputs = [*w.values(), *g.values()], []

        def hand_out(old: Any, new: Any) -> None:
            new.value.name = f"{old.value.name}_new"
            self.outputs[str(old.value.name)] = new.value.name
            outputs.append(new)

        for name, new in updates.weights.items():
            hand_out(w[name], new)
        for name, states in updates.state.items():
            initial = rule.create_state(weights[name])
            for state, (old, new) in states.items():
                tensors[str(old.value.name)] = initial[state]
                if new is not None:
                    inputs.append(old)
                    hand_out(old, new)
        for old, new, members in updates.packs:
            packs[str(old.value.name)] = members
            inputs.append(old)
            hand_out(old, new)
        graph = op.graph([*inputs, rate, step], outputs)
        graph.sort()
        self.model = ir.Model(graph, ir_version=8)
        if passes:
            in_blocks(self.model, set(self.outputs.values()))
            widen_scalars(self.model)
        self._front = 0
        self.buffer = DoubleBuffer(tensors, parse_device("cpu"), packs=packs, front=lambda: self._front)
        self.state_bytes = sum(a.nbytes for n, a in tensors.items() if n not in weights)
        self.rate, self.step = Scalar(np.dtype(np.float32)), Scalar(np.dtype(np.float32))
        options = None
        if profile:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(tempfile.gettempdir()) / "bench_optim")
            options.intra_op_num_threads = processors()
        self.session = create_session(self.model, sess_options=options)
        self.names, self.gradients = list(weights), gradients
        self.bindings = [self._bind(), None]
        self._front = 1
        self.bindings[1] = self._bind()
        self._front = 0

    def _bind(self) -> Any:
        from onnxcustom.runtime import Binding, to_ortvalue

        binding, front = Binding(self.session), self.buffer.front
        asked = {i.name for i in self.session.get_inputs()}
        shapes = {o.name: o.shape for o in self.session.get_outputs()}
        for name, value in self.buffer.values[front].items():
            if name in asked:
                binding.bind_input(name, value)
            if name in self.outputs:
                new = self.outputs[name]
                binding.bind_output(new, self.buffer.back(name, shapes[new]))
        for name, array in self.gradients.items():
            binding.bind_input(f"{name}_gradient", to_ortvalue(array))
        binding.bind_input("learning_rate", self.rate.ortvalue)
        binding.bind_input("step", self.step.ortvalue)
        return binding

    def __call__(self) -> None:
        rule = self.rule
        self.rate.set(rule.values["learning_rate"])
        self.step.set(rule.t)
        self.bindings[self.buffer.front].execute()
        self._front = 1 - self._front
        rule.update_learning_rate(rule.t)

    def weights(self) -> list[np.ndarray]:
        return self.buffer.read(self.names)


class ByUpdater:
    """One call of an updater for all weights."""

    def __init__(self, rule: Any, weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> None:
        from onnxcustom.optim import Updater

        self.updater = Updater(rule)
        self.arrays, self.gradients = [a.copy() for a in weights.values()], list(gradients.values())
        self.indices = list(range(len(weights)))

    def __call__(self) -> None:
        self.updater(self.indices, self.gradients, self.arrays)

    def weights(self) -> list[np.ndarray]:
        return [a.copy() for a in self.arrays]


class ByTorch:
    """torch.optim, gradients given."""

    def __init__(
        self, name: str, options: dict, weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray]
    ) -> None:
        torch = imported_torch()
        self.tensors = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in weights.values()]
        for tensor, g in zip(self.tensors, gradients.values(), strict=True):
            tensor.grad = torch.from_numpy(g)
        self.optimizer = getattr(torch.optim, name)(self.tensors, lr=RATE, **options)

    def __call__(self) -> None:
        self.optimizer.step()

    def weights(self) -> list[np.ndarray]:
        return [t.detach().numpy().copy() for t in self.tensors]

    @property
    def state_bytes(self) -> int:
        states = (
            s for state in self.optimizer.state.values() for s in state.values() if hasattr(s, "nbytes")
        )
        return sum(s.nbytes for s in states)


def problem(size: int, tensors: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights and gradients."""
    rng = np.random.default_rng(0)
    shape = (size // tensors,) if size // tensors % 10 else (10, size // tensors // 10)
    made = [
        {f"w{i}": rng.standard_normal(shape).astype(np.float32) for i in range(tensors)} for _ in range(2)
    ]
    return made[0], made[1]


def contestants(key: str, size: int, tensors: int) -> dict[str, Any]:
    """Everything that has the rule."""
    from onnxcustom import optim

    name, options, other, other_options = RULES[key]
    weights, gradients = problem(size, tensors)
    found: dict[str, Any] = {
        "step": Ours(optim.create(name, learning_rate=RATE, **options), weights, gradients),
        "Updater": ByUpdater(optim.create(name, learning_rate=RATE, **options), weights, gradients),
    }
    if other and imported_torch():
        for way in ("default", "foreach", "fused"):
            more = {} if way == "default" else {way: True}
            try:
                found[way] = ByTorch(other, {**other_options, **more}, weights, gradients)
            except (TypeError, RuntimeError):  # older ones, and rules that have no such kernel
                continue
    compare(key, found)
    return found


def compare(key: str, found: Mapping[str, Any]) -> None:
    """Three steps, after which all must agree."""
    for contestant in found.values():
        for _ in range(3):
            contestant()
    first = found["step"].weights()
    for name, contestant in found.items():
        for a, b in zip(first, contestant.weights(), strict=True):
            worst = float(np.abs(a - b).max())
            assert worst <= 2e-6 * max(1.0, float(np.abs(a).max())), f"{key}: {name} disagrees by {worst}"


def size_table(arguments: argparse.Namespace) -> None:
    """Whole updates, by rule, size and number of tensors."""
    ways = ("default", "foreach", "fused")
    head = "".join(f"{way:>9}" for way in ways)
    print(f"{processors()} threads, {versions()}; ratios to ours of one Updater call and of torch.optim\n")
    print(
        f"{'rule':<9}{'parameters':>11}{'tensors':>8}{'nodes':>7}{'ours, µs':>10}{'Updater':>9}{head}"
        f"{'state, MB':>11}{'torch, MB':>11}"
    )
    for key in arguments.only or RULES:
        for size in arguments.sizes or SIZES:
            for tensors in TENSORS:
                found = contestants(key, size, tensors)
                times = measure(found, arguments)
                peer = found.get("default")
                state = "-" if peer is None else f"{peer.state_bytes / 1e6:.3f}"
                ratios = "".join(f"{ratio(times, way, 'step'):>9}" for way in ("Updater", *ways))
                print(
                    f"{key:<9}{size:>11}{tensors:>8}{len(found['step'].model.graph):>7}"
                    f"{1e6 * statistics.median(times['step']):>10.1f}{ratios}"
                    f"{found['step'].state_bytes / 1e6:>11.3f}{state:>11}",
                    flush=True,
                )


def profile_table(arguments: argparse.Namespace) -> None:
    """Our update, by operator, as onnxruntime's profiler sees it."""
    from onnxcustom import optim

    key, size, tensors = arguments.profile[0], int(arguments.profile[1]), int(arguments.profile[2])
    name, options, _, _ = RULES[key]
    ours = Ours(optim.create(name, learning_rate=RATE, **options), *problem(size, tensors), profile=True)
    # The profiler holds a million events, some for each node.
    runs = max(10, min(int(2e7 / size), int(2e5 / len(ours.model.graph))))
    for _ in range(runs):
        ours()
    path = ours.session.end_profiling()
    with open(path, encoding="utf-8") as file:
        events = json.load(file)
    os.remove(path)
    made = {str(node.name): str(node.outputs[0].name) for node in ours.model.graph}
    durations: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            value = made.get(event["name"].removesuffix("_kernel_time"), "") if tensors == 1 else ""
            durations[event["args"]["op_name"], value].append(event["dur"])
    print(f"{'operator':<10}{'output':<20}{'a step':>8}{'µs, median':>12}")
    for (operator, value), found in sorted(durations.items(), key=lambda item: -statistics.median(item[1])):
        print(f"{operator:<10}{value:<20}{len(found) / runs:>8.0f}{statistics.median(found):>12.1f}")


# -- contestants: updates by rows -----------------------------------------------------------------


def embedding(rows: int, table: np.ndarray, w: np.ndarray) -> onnx.ModelProto:
    """The mean of some rows of a table, times a matrix."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> net (int64[N, {READ}] i) => (float[N, 1] y) {{
        rows = Gather(table, i)  m = ReduceMean <axes = [1], keepdims = 0> (rows)  y = MatMul(m, w) }}"""
    )
    for name, array in {"table": table, "w": w}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


class OurRows:
    """A training step of ours, the batches in turn."""

    def __init__(self, model: onnx.ModelProto, rule: Any, batches: list) -> None:
        from onnxcustom import TrainingStep
        from onnxcustom.runtime import to_ortvalue

        self.training = TrainingStep(model, "squared_error", rule)
        self.batches = [[to_ortvalue(a) for a in batch] for batch in batches]
        self.n = 0

    def __call__(self) -> None:
        self.training.run_batch(self.batches[self.n % len(self.batches)])
        self.n += 1

    def table(self) -> np.ndarray:
        return self.training.weights()["table"]


class TorchRows:
    """The same in PyTorch."""

    def __init__(
        self, rule: str, sparse: bool, options: dict, table: np.ndarray, w: np.ndarray, batches: list
    ) -> None:
        torch = imported_torch()
        self.embedding = torch.nn.Embedding(*table.shape, sparse=sparse)
        self.embedding.weight.data = torch.from_numpy(table.copy())
        self.w = torch.nn.Parameter(torch.from_numpy(w.copy()))
        groups = [[self.embedding.weight], [self.w]]
        if rule == "SparseAdam":  # takes sparse gradients only
            made = [
                getattr(torch.optim, name)(group, lr=RATE, **options)
                for name, group in zip((rule, "Adam"), groups, strict=True)
            ]
        else:
            made = [getattr(torch.optim, rule)(groups[0] + groups[1], lr=RATE, **options)]
        self.optimizers = made
        self.batches = [[torch.from_numpy(a) for a in batch] for batch in batches]
        self.n = 0

    def __call__(self) -> None:
        i, y = self.batches[self.n % len(self.batches)]
        self.n += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = 0.5 * ((self.embedding(i).mean(1) @ self.w - y) ** 2).mean()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        loss.item()

    def table(self) -> np.ndarray:
        return self.embedding.weight.detach().numpy().copy()


def row_contestants(key: str, rows: int) -> dict[str, Any]:
    """Steps by rows and dense, ours and PyTorch's."""
    from onnxcustom import optim

    options, sparse, dense = ROW_RULES[key]
    rng = np.random.default_rng(0)
    table = rng.standard_normal((rows, WIDTH)).astype(np.float32)
    w = rng.standard_normal((WIDTH, 1)).astype(np.float32)
    batches = [
        (rng.integers(0, rows, (BATCH, READ)), rng.standard_normal((BATCH, 1)).astype(np.float32))
        for _ in range(16)
    ]
    model = embedding(rows, table, w)
    found: dict[str, Any] = {
        name: OurRows(model, optim.create(key, learning_rate=RATE, lazy_update=lazy, **options), batches)
        for name, lazy in (("rows", True), ("dense", False))
    }
    if imported_torch():
        more = {"Adam": {"eps": 1e-20}, "AdaGrad": {"eps": 1e-10}}.get(key, {})
        if sparse:
            found["torch sparse"] = TorchRows(sparse, True, more, table, w, batches)
        if dense:
            found["torch dense"] = TorchRows(dense, False, more, table, w, batches)
    compare_rows(key, found)
    return found


def compare_rows(key: str, found: Mapping[str, Any]) -> None:
    """Sparse ones must agree after three steps, and so must dense ones."""
    for contestant in found.values():
        for _ in range(3):
            contestant()
    for ours, theirs in (("rows", "torch sparse"), ("dense", "torch dense")):
        if theirs in found:
            worst = float(np.abs(found[ours].table() - found[theirs].table()).max())
            assert worst < 1e-5, f"{key}: {theirs} disagrees by {worst}"


def row_table(arguments: argparse.Namespace) -> None:
    """Steps of an embedding model, by rule and number of rows."""
    others = ("dense", "torch sparse", "torch dense")
    print(
        f"{processors()} threads, {versions()}; a step of a batch of {BATCH} x {READ} rows of {WIDTH} "
        "numbers, and ratios to it\n"
    )
    print(f"{'rule':<9}{'table rows':>11}{'by rows, µs':>13}" + "".join(f"{o:>14}" for o in others))
    for key in arguments.only or ROW_RULES:
        for rows in arguments.sizes or ROWS:
            times = measure(row_contestants(key, rows), arguments)
            ratios = "".join(f"{ratio(times, other, 'rows'):>14}" for other in others)
            print(f"{key:<9}{rows:>11}{1e6 * statistics.median(times['rows']):>13.1f}{ratios}", flush=True)


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        # Before any library is imported: each sizes its pool by what the process may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    if arguments.profile:
        profile_table(arguments)
    elif arguments.rows:
        row_table(arguments)
    else:
        size_table(arguments)


if __name__ == "__main__":
    main()

"""One training step of an MLP d-h-h-1 against PyTorch, JAX and scikit-learn.

All train the same network from the same weights on the same batches in the same order: Relu, float32, half
the mean squared error, SGD without momentum or Adam, a constant learning rate, no penalty. The process is
pinned to as many processors as there are threads. Everyone's loss of every step arrives in Python: after each
step, or, where one call does an epoch (scan) or several (fit), with its end. Before anything is timed the
losses of the first epoch are compared.

    run_batch       TrainingStep.run_batch on prepared OrtValues
    run             TrainingStep.run on arrays: their numbers are checked, too
    fit             OnnxRegressor.fit of some epochs, warm_start, not shuffled, by step: checks of the data,
                    batches and history are part of it, making the session is not
    eager, fused    PyTorch: zero_grad, forward, backward, optimizer.step, loss.item(); optimizer as it comes,
                    and with fused=True
    compile         PyTorch: the same with model and loss, and optimizer.step, through torch.compile
    jit             JAX: one jitted call a step with optax, weights donated; float(loss)
    scan            JAX: lax.scan over the epoch in one jitted call, weights donated; an array of losses
    partial_fit     scikit-learn: MLPRegressor.partial_fit of one batch
    sklearn fit     scikit-learn: MLPRegressor.fit of the same epochs as fit, warm_start, not shuffled

    python -m benchmarks.bench_step --threads 1
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shutil
import statistics
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from . import common
from .common import Contender, Result, cells

RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and how many steps are one call."""

    columns: int
    hidden: int
    batch: int
    batches: int
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.columns}-{self.hidden}-{self.hidden}-1, batch {self.batch}"


CASES = [
    Case(10, 10, 10, batches=64, epochs=10),
    Case(100, 100, 32, batches=32, epochs=10),
    Case(100, 200, 200, batches=16, epochs=4),
    Case(784, 512, 128, batches=6, epochs=2),
]
QUICK = [Case(3, 4, 5, batches=4, epochs=2)]
# What peer's time / ours should be: optimizer and peer, and by case. A whole fit() against a whole fit(),
# a loop over batches with a loop over batches.
COMPARED = [("SGD", "eager"), ("SGD", "jit"), ("SGD", "scan"), ("Adam", "eager"), ("SGD", "sklearn fit")]
AGAINST = {"sklearn fit": "fit"}
AIMS = {
    CASES[0]: (30, 6, 1.0, 15, 8),
    CASES[1]: (8, 2, 1.1, 5, 3),
    CASES[2]: (1.2, 1.1, 1.0, 1.2, 1.2),
    CASES[3]: (1.1, 1.0, 1.0, 1.0, 1.2),
}


@dataclasses.dataclass
class Problem:
    """What all contenders are given."""

    case: Case
    optimizer: str
    weights: list[Any]
    X: Any
    y: Any

    @property
    def batches(self) -> list[tuple[Any, Any]]:
        size = self.case.batch
        return [(self.X[i : i + size], self.y[i : i + size]) for i in range(0, len(self.X), size)]


# -- ours -----------------------------------------------------------------------------------------


def restart(step: Any, problem: Problem) -> None:
    """First weights and state; only the clock goes on."""
    step.set_weights({f"{'Wb'[i % 2]}{i // 2}": array for i, array in enumerate(problem.weights)})
    step.set_state({w: {k: 0 * a for k, a in states.items()} for w, states in step.state().items()})


def run_batch(problem: Problem, arrays: bool = False) -> Contender:
    from onnxcustom import TrainingStep
    from onnxcustom.runtime import to_ortvalue

    model = common.mlp(problem.weights)
    step = TrainingStep(model, optimizer=problem.optimizer.lower(), learning_rate=RATE)
    given = problem.batches
    batches = [[to_ortvalue(x), to_ortvalue(y)] for x, y in given]

    def run() -> list[float]:
        if arrays:
            return [step.run(x, y) for x, y in given]
        return [step.run_batch(values) for values in batches]

    return Contender(run, len(batches), lambda: restart(step, problem))


def fit(problem: Problem) -> Contender:
    from onnxcustom import OnnxRegressor

    case = problem.case
    estimator = OnnxRegressor(
        common.mlp(problem.weights),
        optimizer=problem.optimizer.lower(),
        learning_rate=RATE,
        batch_size=case.batch,
        max_iter=case.epochs,
        shuffle=False,
        random_state=0,
        warm_start=True,
    )

    def run() -> list[float]:
        return estimator.fit(problem.X, problem.y).history_["loss"][-case.epochs :]

    def reset() -> None:
        if hasattr(estimator, "step_"):
            restart(estimator.step_, problem)

    return Contender(run, case.epochs * case.batches, reset)


# -- PyTorch ----------------------------------------------------------------------------------------


def torch_step(problem: Problem, way: str = "eager") -> Contender:
    torch = common.imported_torch()
    network = common.torch_mlp(problem.weights)
    fused = {"fused": True} if way == "fused" else {}
    optimizer = getattr(torch.optim, problem.optimizer)(network.parameters(), lr=RATE, **fused)
    batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in problem.batches]
    first = [p.detach().clone() for p in network.parameters()]

    def loss_of(x: Any, y: Any) -> Any:
        return ((network(x) - y) ** 2).mean() / 2

    update = optimizer.step
    if way == "compile":
        torch._logging.set_logs(all=logging.ERROR)  # it tells what it ignores
        loss_of, update = torch.compile(loss_of), torch.compile(optimizer.step)

    def run() -> list[float]:
        losses = []
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_of(x, y)
            loss.backward()
            update()
            losses.append(loss.item())
        return losses

    def reset() -> None:
        with torch.no_grad():
            for parameter, array in zip(network.parameters(), first, strict=True):
                parameter.copy_(array)
            # In place: a compiled step has this state's tensors.
            for state in optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()

    return Contender(run, len(batches), reset)


# -- JAX --------------------------------------------------------------------------------------------


def jax_step(problem: Problem, way: str = "jit") -> Contender:
    import jax
    import jax.numpy as jnp
    import optax

    rule = {"SGD": optax.sgd, "Adam": optax.adam}[problem.optimizer](RATE)
    layers = len(problem.weights) // 2

    def loss_of(weights: list[Any], x: Any, y: Any) -> Any:
        for i in range(layers):
            x = x @ weights[2 * i] + weights[2 * i + 1]
            x = jax.nn.relu(x) if i < layers - 1 else x
        return ((x - y) ** 2).mean() / 2

    def step(weights: list[Any], state: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
        loss, gradient = jax.value_and_grad(loss_of)(weights, x, y)
        updates, state = rule.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    def epoch(weights: list[Any], state: Any, X: Any, Y: Any) -> tuple[Any, Any, Any]:
        def body(carry: tuple[Any, Any], batch: tuple[Any, Any]) -> tuple[tuple[Any, Any], Any]:
            weights, state, loss = step(*carry, *batch)
            return (weights, state), loss

        (weights, state), losses = jax.lax.scan(body, (weights, state), (X, Y))
        return weights, state, losses

    batches = [(jnp.asarray(x), jnp.asarray(y)) for x, y in problem.batches]
    stacked = jnp.stack([x for x, _ in batches]), jnp.stack([y for _, y in batches])
    held: list[Any] = []

    def reset() -> None:
        weights = [jnp.array(array) for array in problem.weights]
        held[:] = [weights, rule.init(weights)]

    jitted, scanned = jax.jit(step, donate_argnums=(0, 1)), jax.jit(epoch, donate_argnums=(0, 1))

    def run() -> list[float]:
        weights, state = held
        losses = []
        for x, y in batches:
            weights, state, loss = jitted(weights, state, x, y)
            losses.append(float(loss))
        held[:] = [weights, state]
        return losses

    def run_scan() -> Any:
        held[0], held[1], losses = scanned(*held, *stacked)
        return jax.device_get(losses)

    reset()
    return Contender(run if way == "jit" else run_scan, len(batches), reset)


# -- scikit-learn -------------------------------------------------------------------------------------


def sklearn_step(problem: Problem, way: str = "partial_fit") -> Contender:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    case = problem.case
    epochs = case.epochs
    network = MLPRegressor(
        hidden_layer_sizes=(case.hidden, case.hidden),
        solver=problem.optimizer.lower(),
        alpha=0,
        batch_size=case.batch,
        learning_rate_init=RATE,
        momentum=0,
        nesterovs_momentum=False,
        shuffle=False,
        tol=0,
        n_iter_no_change=10**9,
        max_iter=epochs,
        warm_start=True,
    )
    batches = [(x, y.ravel()) for x, y in problem.batches]
    network.partial_fit(*batches[0])
    X, y = problem.X, problem.y.ravel()

    def reset() -> None:
        for arrays, first in (
            (network.coefs_, problem.weights[::2]),
            (network.intercepts_, problem.weights[1::2]),
        ):
            for array, start in zip(arrays, first, strict=True):
                array[...] = start
        vars(network).pop("_optimizer", None)
        network.loss_curve_ = []

    def run() -> list[float]:
        return [network.partial_fit(x, y).loss_ for x, y in batches]

    def run_fit() -> list[float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # so few epochs
            network._no_improvement_count = 0
            return network.fit(X, y).loss_curve_[-epochs:]

    reset()
    if way == "partial_fit":
        return Contender(run, len(batches), reset)
    return Contender(run_fit, len(batches) * epochs, reset)


# -- the table ------------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Problem], Contender]] = {
    "run_batch": run_batch,
    "run": lambda problem: run_batch(problem, arrays=True),
    "fit": fit,
    "eager": torch_step,
    "fused": lambda problem: torch_step(problem, "fused"),
    "compile": lambda problem: torch_step(problem, "compile"),
    "jit": jax_step,
    "scan": lambda problem: jax_step(problem, "scan"),
    "partial_fit": sklearn_step,
    "sklearn fit": lambda problem: sklearn_step(problem, "sklearn fit"),
}
NEEDS = {"eager": ["torch"], "fused": ["torch"], "compile": ["torch"]}
NEEDS |= {"jit": ["jax", "optax"], "scan": ["jax", "optax"]}


def left_out(name: str, options: argparse.Namespace) -> str | None:
    """Why a contender does not take part."""
    if name == "compile" and (options.quick or not options.compile):
        return "not asked for: it compiles for seconds"
    if name == "compile" and not (shutil.which("g++") or shutil.which("clang++")):
        return "torch.compile has no C++ compiler"
    return common.missing(*NEEDS.get(name, []))


def contenders(problem: Problem, options: argparse.Namespace, result: Result) -> dict[str, Contender]:
    """All that can take part; the losses of the first epoch must be the same."""
    import numpy as np

    found: dict[str, Contender] = {}
    wanted: Any = None
    for name, make in MAKERS.items():
        why = left_out(name, options)
        if why is None:
            try:
                contender = make(problem)
                contender.reset()
                losses = np.asarray(contender.run())
            except Exception as exc:  # a peer that fails here is no reason to show nothing
                if name in ("run_batch", "fit"):
                    raise
                why = f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
        if why is not None:
            result.skipped[name] = why
            continue
        wanted = losses if wanted is None else wanted
        by_epoch = len(losses) != contender.steps
        expected = wanted.mean(keepdims=True) if by_epoch else wanted
        if not np.allclose(losses[: len(expected)], expected, rtol=5e-3, atol=1e-5):
            raise AssertionError(
                f"{problem.case.name}, {problem.optimizer}: {name} trains something else: its losses are "
                f"{losses[: len(expected)]}, not {expected}"
            )
        found[name] = contender
    return found


def row(problem: Problem, name: str, times: Mapping[str, list[float]]) -> dict[str, Any]:
    """One contender in the JSON."""
    case = problem.case
    compared = (problem.optimizer, name)
    aim = AIMS[case][COMPARED.index(compared)] if case in AIMS and compared in COMPARED else None
    return {
        "case": case.name,
        "optimizer": problem.optimizer,
        "threads": common.processors(),
        "contender": name,
        "microseconds": 1e6 * statistics.median(times[name]),
        "ratio_to_run_batch": common.ratios(times, name, "run_batch"),
        "ratio_to_fit": common.ratios(times, name, "fit"),
        "against": AGAINST.get(name, "run_batch"),
        "aim": aim,
        "rounds": len(times[name]),
    }


def run(options: argparse.Namespace, result: Result) -> None:
    """Microseconds of everyone, then the ratios that have an aim."""
    cases = QUICK if options.quick else CASES if common.processors() == 1 else CASES[2:]
    cases = [case for case in cases if options.only is None or str(case.columns) in options.only]
    result.say(
        f"microseconds a step, {common.processors()} threads, medians; turns of every contender in a round"
    )
    result.say(f"{'':<29}{cells(MAKERS, 12)}{'rounds':>8}")
    for case in cases:
        X, y = common.regression(case.batch * case.batches, case.columns)
        weights = common.mlp_weights((case.columns, case.hidden, case.hidden, 1))
        for optimizer in ("SGD", "Adam"):
            problem = Problem(case, optimizer, weights, X, y)
            times = common.measure(contenders(problem, options, result), options.seconds)
            rows = [row(problem, name, times) for name in times]
            result.rows += rows
            texts = {r["contender"]: f"{r['microseconds']:.1f}" for r in rows}
            line = cells((texts.get(name, "-") for name in MAKERS), 12)
            result.say(f"{optimizer:<5}{case.name:<24}{line}{rows[0]['rounds']:>8}")
    result.say("\npeer's time / ours, medians of the ratios of each round (aim; * it is missed)")
    heads = [f"{optimizer}, {name}" for optimizer, name in COMPARED]
    result.say(f"{'':<24}{cells(heads, 19)}")
    result.say(f"{'   ours is':<24}{cells((AGAINST.get(name, 'run_batch') for _, name in COMPARED), 19)}")
    for case in cases:
        rows = {(r["optimizer"], r["contender"]): r for r in result.rows if r["case"] == case.name}
        texts = (ratio_text(rows[pair]) if pair in rows else "-" for pair in COMPARED)
        result.say(f"{case.name:<24}{cells(texts, 19)}")


def ratio_text(row: dict[str, Any]) -> str:
    """Like compared with like, and the aim."""
    ratio, aim = row[f"ratio_to_{row['against']}"]["median"], row["aim"]
    if aim is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} ({aim:g}{'*' if ratio < aim else ''})"


def parser() -> argparse.ArgumentParser:
    made = common.parser(__doc__)
    made.add_argument("--only", nargs="*", help="columns of the networks to measure: 10 100 784")
    made.add_argument("--compile", action="store_true", help="torch.compile too, which takes a minute")
    return made


if __name__ == "__main__":
    common.main(run, parser())

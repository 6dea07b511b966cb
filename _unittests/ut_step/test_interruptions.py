"""Ctrl-C in the middle of a step: what it leaves is the state before that step or the one after it."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

import onnxcustom.step
from onnxcustom import TrainingStep, optim

pytest.importorskip("onnxruntime")
STEP = str(Path(onnxcustom.step.__file__).parent)
CLOCK = sys.modules[optim.BaseLearningRate.__module__].__file__.replace("base.py", "clock.py")  # type: ignore[union-attr]
# Where the state changes, every bytecode counts; elsewhere every line.
COMMITTED = (str(Path(STEP, "state.py")), CLOCK)

NET = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x) => (float[N, 1] y) <float[3] scale = {1, 2, 1}, float[3] bias = {0, 1, 0},
    float[3] mean = {0.5, 0, 1}, float[3] var = {1, 2, 1}, float[3, 1] w = {1, -1, 2}> {
        n = BatchNormalization (x, scale, bias, mean, var) h = Tanh (n) y = MatMul (h, w) }"""
TABLE = """<ir_version: 8, opset_import: ["": 17]>
    g (int64[N, 2] x) => (float[N, 1] y) <
    float[5, 2] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, float[2, 1] w = {1, -1}> {
        rows = Gather (table, x) m = ReduceMean <axes = [1], keepdims = 0> (rows) y = MatMul (m, w) }"""


def numbers(i: int, broken: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(i)
    x, y = rng.normal(size=(2 + i % 3, 3)), rng.normal(size=(2 + i % 3, 1))
    return x.astype(np.float32), (y * (1e30 if broken and i % 4 == 1 else 1)).astype(np.float32)


def indices(i: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(i)
    return rng.integers(0, 5, (3, 2)), rng.normal(size=(3, 1)).astype(np.float32)


def run(step: TrainingStep, i: int, make: Any = numbers) -> None:
    step.run(*make(i))


def announced(step: TrainingStep, i: int) -> None:
    """Two batches are an update, which is called for."""
    kind = i % 4
    if kind == 0:
        step.announce(numbers(i)[1], numbers(i + 1)[1])
    elif kind == 3:
        step.apply_accumulated()
    else:
        step.run(*numbers(i - 1))


CASES: dict[str, tuple[Any, Any]] = {
    "adam": (lambda: TrainingStep(onnx.parser.parse_model(NET), "squared_error", "adam"), run),
    "schedule": (
        lambda: TrainingStep(
            onnx.parser.parse_model(NET), "squared_error", "sgd", learning_rate=optim.Exp(0.1)
        ),
        run,
    ),
    "statistics": (
        lambda: TrainingStep(
            onnx.parser.parse_model(NET), "squared_error", "nag", batch_norm="update", average="ema"
        ),
        run,
    ),
    "accumulate": (
        lambda: TrainingStep(
            onnx.parser.parse_model(NET),
            "squared_error",
            optim.SGD(0.1, momentum=0.5, accumulate=2),
            penalty="l2",
        ),
        run,
    ),
    "announced": (
        lambda: TrainingStep(
            onnx.parser.parse_model(NET), "squared_error", optim.Adam(0.1, accumulate=3), batch_norm="update"
        ),
        announced,
    ),
    "skipped": (
        lambda: TrainingStep(
            onnx.parser.parse_model(NET), "squared_error", optim.Adam(0.1, skip_nonfinite=True)
        ),
        lambda step, i: run(step, i, lambda j: numbers(j, broken=True)),
    ),
    "rows": (
        lambda: TrainingStep(
            onnx.parser.parse_model(TABLE), "squared_error", optim.Adam(0.1, lazy_update=True)
        ),
        lambda step, i: run(step, i, indices),
    ),
    "rows by schedule": (
        lambda: TrainingStep(onnx.parser.parse_model(TABLE), "squared_error", optim.AdaGrad(optim.Exp(0.1))),
        lambda step, i: run(step, i, indices),
    ),
    "cached": (
        lambda: TrainingStep(
            onnx.parser.parse_model(NET), "squared_error", "adam", weights=["w"], cache_frozen=True
        ),
        run,
    ),
}

# So many steps in turn are of different kinds.
PERIODS = {"accumulate": 2, "announced": 4, "skipped": 4}


def everything(step: TrainingStep) -> dict[str, Any]:
    """All that goes on from here, and what users see of it."""
    tensors, data = step.state_dict()
    found = {name: array.tobytes() for name, array in tensors.items()}
    seen = (
        step.iteration,
        step.skipped,
        step.pending,
        step.announced,
        step.optimizer.t,
        step.optimizer.value,
    )
    weights = {name: array.tobytes() for name, array in step.weights().items()}
    return {**found, "data": data, "seen": seen, "weights": weights}


def stopped(call: Any, *args: Any, after: int) -> bool:
    """Call and raise KeyboardInterrupt after so many events within steps; whether it came to that."""
    left = after

    def traced(frame: Any, event: str, arg: Any) -> Any:
        nonlocal left
        file = frame.f_code.co_filename
        if file != CLOCK and not file.startswith(STEP):
            return None
        frame.f_trace_opcodes = file in COMMITTED
        if event == ("opcode" if file in COMMITTED else "line"):
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        call(*args)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("name", CASES)
def test_wherever_it_is_interrupted_a_step_is_done_or_not(name):
    """At every place in turn; a step that was not done is done again."""
    make, do = CASES[name]
    period = PERIODS.get(name, 1)
    step, twin, begun = make(), make(), 0

    def forward(n: int) -> None:
        nonlocal begun
        for i in range(begun, begun + n):
            do(step, i)
            do(twin, i)
        begun += n

    forward(24)  # sessions are there, and what is bound to them
    for _ in range(period):
        before, outcomes = everything(step), set()
        do(twin, begun)
        after = everything(twin)
        for number in itertools.count():
            came = stopped(do, step, begun, after=number)
            found = everything(step)
            assert found in (before, after), (number, {k: v for k, v in found.items() if before[k] != v})
            outcomes.add((came, found == after))
            if found == after:
                begun += 1
                if not came:
                    break
                forward(period - 1)
                before = after if period == 1 else everything(step)
                do(twin, begun)
                after = everything(twin)
        assert outcomes == {(True, False), (True, True), (False, True)}
    forward(3)
    assert everything(step) == everything(twin)


@pytest.mark.parametrize("name", ["adam", "rows"])
def test_the_first_step_can_be_interrupted_while_its_graphs_are_made(name):
    make, do = CASES[name]
    twin, blank = make(), pickle.dumps(make())
    do(twin, 0)
    for number in itertools.count(step=401):
        step = pickle.loads(blank)
        came = stopped(do, step, 0, after=number)
        if step.iteration == 0:
            do(step, 0)
        assert everything(step) == everything(twin)
        if not came:
            break


def test_labels_that_settle_the_axis_of_classes_do_so_at_once():
    """The step goes on with other targets: never with those and graphs that were made for the old ones."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 3] x) => (float[N, 3, 3] y) <float[3, 3] w = {1, 0, 2, 0, 1, 0, 1, 1, 1}> {
            y = MatMul (x, w) }"""
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3, 3)).astype(np.float32), rng.dirichlet(np.ones(3), size=(4, 3))
    y = y.transpose(0, 2, 1).astype(np.float32)  # of the shape of the prediction: probabilities
    blank = pickle.dumps(TrainingStep(model, "cross_entropy"))
    twin = pickle.loads(blank)
    losses = [twin.run(x, y) for _ in range(2)]
    for number in itertools.count(step=401):
        step = pickle.loads(blank)
        came = stopped(step.run, x, y, after=number)
        if step.iteration == 0:
            assert step.run(x, y) == losses[0]
        assert step.run(x, y) == losses[1]
        if not came:
            break


def test_a_copy_has_a_clock_of_its_own():
    step = TrainingStep(onnx.parser.parse_model(NET), "squared_error", "adam")
    step.run(*numbers(0))
    copied = copy.copy(step)
    copied.run(*numbers(1))
    assert (step.iteration, step.optimizer.t) == (1, 2)
    assert (copied.iteration, copied.optimizer.t) == (2, 3)
    step.run(*numbers(1))
    assert everything(step) == everything(copied)

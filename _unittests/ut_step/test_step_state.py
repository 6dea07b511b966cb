"""The state of a step: one that takes it over goes on to the same bits, and what does not fit is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from onnxcustom import TrainingStep, optim
from onnxcustom.exceptions import CheckpointError

pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = (X @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.3).astype(np.float32)
INDICES = RNG.integers(-2, 5, size=(40, 3))

HEADER = '<ir_version: 8, opset_import: ["": 18]>'
NET = (
    HEADER
    + """
net (float[N, 3] x) => (float[N, 1] y) <float[3, 4] w0 = {1, 2, 3, 4, -1, -2, -3, -4, 0.5, 1, 0, 1},
    float[4] b0 = {0, 1, 0, 1}, float[4, 1] w1 = {1, -1, 1, -1}, float[1] b1 = {0}> {
    z = MatMul (x, w0)  a = Add (z, b0)  h = Tanh (a)  p = MatMul (h, w1)  y = Add (p, b1) }"""
)
MODES = (
    HEADER
    + """
net (float[N, 3] x) => (float[N, 1] y) <float[3] s = {1, 2, 3}, float[3] b = {0, 1, 2},
    float[3] mean = {0.5, 0.25, 1}, float[3] var = {1, 2, 3}, float[3, 1] w = {1, 1, 1}, float r = {0.5}> {
    n = BatchNormalization <momentum = 0.75> (x, s, b, mean, var)  d = Dropout (n, r)  y = MatMul (d, w) }"""
)
TABLE = (
    HEADER
    + """
net (int64[N, 3] x) => (float[N, 1] y) <float[7, 2] table = {1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7},
    float[2, 1] w = {1, -1}, int64[1] axis = {1}> {
    r = Gather (table, x)  m = ReduceMean <keepdims = 0> (r, axis)  y = MatMul (m, w) }"""
)
ROOT = (
    HEADER
    + """
net (float[N, 3] x) => (float[N, 1] y) <float[3, 1] w = {1, 1, 1}, float[1] b = {0}> {
    a = Mul (x, x)  z = MatMul (a, w)  r = Sqrt (z)  y = Add (r, b) }"""
)


def parsed(text: str, dtype: Any = np.float32) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    if dtype is not np.float32:
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model


class Drive:
    """Runs steps on batches of the data, and tells the schedules of epochs."""

    def __init__(self, data: np.ndarray = X, every: int = 3) -> None:
        self.data, self.every = data, every

    def run(self, step: TrainingStep, first: int, last: int) -> list[float]:
        losses = []
        for k in range(first, last):
            # A batch that is short now and then.
            rows = slice(4 * k % 40, 4 * k % 40 + 4 - k % 2)
            x = self.data[rows].copy()
            if k % 5 == 3 and x.dtype == np.float32:
                x[0] = 0  # where ROOT has no gradient
            losses.append(step.run(x, Y[rows]))
            if (k + 1) % self.every == 0:
                step.optimizer.report_epoch(1.0 + k % 2 / 10)
        return losses


def bits(step: TrainingStep) -> tuple[dict[str, bytes], str]:
    tensors, state = step.state_dict()
    return {name: array.tobytes() for name, array in tensors.items()}, json.dumps(state)


def through_a_file(saved: tuple[dict[str, np.ndarray], dict[str, Any]]) -> tuple[dict[str, np.ndarray], Any]:
    """Copies of the tensors, and of the state as JSON gives it back."""
    tensors, state = saved
    return {name: array.copy() for name, array in tensors.items()}, json.loads(json.dumps(state))


Make = Callable[[], TrainingStep]


def net(optimizer: Any, **options: Any) -> Make:
    return lambda: TrainingStep(parsed(NET), optimizer=copy.deepcopy(optimizer), **options)


def modes(optimizer: Any, **options: Any) -> Make:
    return lambda: TrainingStep(
        parsed(MODES), optimizer=copy.deepcopy(optimizer), batch_norm="update", dropout="on", **options
    )


class Momentum(optim.SGD):
    """A rule of the user's, not registered."""


class Halves(optim.Schedule):
    """A schedule of the user's, with a memory of its own."""

    def __init__(self) -> None:
        self.told = 0

    def value(self, t: int, epoch: int) -> float:
        return 0.1 / 2**self.told

    def report_epoch(self, loss: float) -> bool:
        self.told += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"told": self.told}

    def load_state_dict(self, state: Any) -> None:
        self.told = state["told"]


CASES: dict[str, tuple[Make, Drive]] = {
    **{f"net {name}": (net(optim.create(name)), Drive()) for name in optim.rule_names()},
    "plateau": (net(optim.SGD(optim.ReduceOnPlateau(0.1, factor=0.5, patience=0, cooldown=1))), Drive()),
    "adaptive": (net(optim.SGD(optim.Adaptive(0.1, n_iter_no_change=1), momentum=0.5)), Drive(every=2)),
    "restarts": (net(optim.Adam(optim.CosineRestarts(0.1, period=2), wd=optim.Exp(0.1))), Drive()),
    "warm": (net(optim.Adam(optim.Warmup(optim.ReduceOnPlateau(0.1, patience=0), 5))), Drive()),
    "function": (net(optim.Adam(lambda t: 0.1 / t, beta1=lambda t: 1 - 1 / (t + 1))), Drive()),
    "own schedule": (net(optim.Adam(Halves())), Drive()),
    "own rule": (net(Momentum(0.1, momentum=0.9)), Drive()),
    "begun": (net(optim.Adam(optim.InverseScaling(0.1), begin_num_update=7)), Drive()),
    "accumulated": (net(optim.Adam(0.1, accumulate=3)), Drive()),
    "not packed": (net(optim.Adam(0.1), passes=False), Drive()),
    "dropped": (modes(optim.NAG(1e-3, momentum=0.5)), Drive()),
    "dropped, accumulated": (modes(optim.Adam(0.05, accumulate=2), seed=2**63 + 1), Drive()),
    "rows": (
        lambda: TrainingStep(parsed(TABLE), optimizer=optim.Adam(0.1, wd=0.1)),
        Drive(INDICES),
    ),
    "rows, accumulated": (
        lambda: TrainingStep(parsed(TABLE), optimizer=optim.SGD(0.1, momentum=0.9, accumulate=4)),
        Drive(INDICES),
    ),
    "half": (
        lambda: TrainingStep(parsed(NET, np.float16), optimizer=optim.Adam(0.01, multi_precision=True)),
        Drive(X.astype(np.float16)),
    ),
    "double": (
        lambda: TrainingStep(parsed(NET, np.float64), optimizer=optim.Nadam(0.01)),
        Drive(X.astype(np.float64)),
    ),
    "skipped": (
        lambda: TrainingStep(parsed(ROOT), optimizer=optim.Adam(0.1, skip_nonfinite=True, accumulate=2)),
        Drive(),
    ),
    "noise": (net(optim.SGLD(0.001, seed=5)), Drive()),
    "some": (net(optim.Adam(0.1, frozen=["w1"]), weights=["w0", "w1", "b1"], penalty="l2"), Drive()),
}


def test_every_rule_is_tried():
    assert {name for name in CASES if name.startswith("net ")} == {f"net {n}" for n in optim.rule_names()}


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_to_the_same_bits(case):
    make, drive = CASES[case]
    whole, saved, losses, cuts = make(), {}, [], (0, 4, 7)
    for cut in cuts:
        losses += drive.run(whole, len(losses), cut)
        clock = whole.optimizer.t, dict(whole.optimizer.values)
        saved[cut] = through_a_file(whole.state_dict()), bits(whole), clock
    losses += drive.run(whole, len(losses), 12)
    other = make()
    drive.run(other, 3, 4)  # what it did before does not matter, neither here nor at later cuts
    for cut, (state, wanted, clock) in saved.items():
        other.load_state_dict(*state)
        assert bits(other) == wanted
        assert (other.optimizer.t, other.optimizer.values) == clock
        assert drive.run(other, cut, 12) == losses[cut:]
        assert bits(other) == bits(whole)
        assert bits(whole)[0] != wanted[0]
    if case == "skipped":
        assert whole.skipped > 0


def test_the_state_is_named_by_what_it_is():
    step = TrainingStep(
        parsed(MODES), optimizer=optim.Adam(0.1, accumulate=2), weights=["w"], batch_norm="update"
    )
    tensors, state = step.state_dict()
    names = ["weights/w", "state/w/m", "state/w/v", "statistics/mean", "statistics/var", "accumulated/w"]
    assert sorted(tensors) == sorted(names)
    np.testing.assert_array_equal(tensors["weights/w"], np.ones((3, 1), np.float32))
    assert (state["optimizer"], state["iteration"], state["skipped"]) == ("Adam", 0, 0)


def test_what_is_handed_out_is_a_copy():
    step = net("adam")()
    before = bits(step)
    for array in step.state_dict()[0].values():
        array += 1
    tensors, state = step.state_dict()
    step.load_state_dict(tensors, state)
    for array in tensors.values():
        array += 1
    assert bits(step) == before


def test_a_rate_set_in_mid_training_is_kept():
    one, other, drive = net(optim.Adam(0.1))(), net(optim.Adam(0.1))(), Drive()
    drive.run(one, 0, 2)
    one.optimizer.set_learning_rate(optim.Exp(0.05, 0.5, decay_on_iteration=True))
    drive.run(one, 2, 4)
    other.load_state_dict(*through_a_file(one.state_dict()))
    assert drive.run(other, 4, 8) == drive.run(one, 4, 8)
    assert bits(other) == bits(one)


def test_a_seed_that_was_drawn_goes_with_the_state():
    one, other, drive = modes("sgd", seed=11)(), modes("sgd", seed=12)(), Drive()
    drive.run(one, 0, 2)
    drive.run(other, 0, 2)
    other.load_state_dict(*one.state_dict())
    assert drive.run(other, 2, 5) == drive.run(one, 2, 5)
    assert other.state_dict()[1]["modes"]["seed"] == 11


def test_weights_that_are_not_trained_and_were_changed_are_part_of_it():
    """A weight that joined late, one that is frozen by now, and the age of each."""
    drive = Drive()
    first = net(optim.Adam(0.1), weights=["w0", "b0", "w1"])()
    drive.run(first, 0, 3)
    second = net(optim.Adam(0.1), weights=["w1", "b1"])()
    second.take_over(first)
    drive.run(second, 3, 5)
    tensors, state = through_a_file(second.state_dict())
    assert {name for name in tensors if name.startswith("constants/")} == {"constants/w0", "constants/b0"}
    other = net(optim.Adam(0.1), weights=["w1", "b1"])()
    drive.run(other, 0, 1)
    other.load_state_dict(tensors, state)
    assert bits(other) == bits(second)
    assert drive.run(other, 5, 9) == drive.run(second, 5, 9)
    assert bits(other) == bits(second)
    assert other.trained_model() == second.trained_model()
    # The constants stay what they are when the state is taken once more.
    other.load_state_dict(tensors, state)
    assert bits(other)[0] == {name: array.tobytes() for name, array in tensors.items()}


def test_ages_belong_to_the_state():
    drive = Drive()
    old = net(optim.Adam(0.1, frozen=["w0"]))()
    drive.run(old, 0, 3)
    joined = net(optim.Adam(0.1))()
    joined.take_over(old)
    drive.run(joined, 3, 4)
    other = net(optim.Adam(0.1))()
    other.load_state_dict(*through_a_file(joined.state_dict()))
    assert drive.run(other, 4, 8) == drive.run(joined, 4, 8)
    assert bits(other) == bits(joined)
    fresh = net(optim.Adam(0.1))()
    joined.load_state_dict(*fresh.state_dict())
    assert drive.run(joined, 0, 4) == drive.run(fresh, 0, 4)
    assert bits(joined) == bits(fresh)


def test_statistics_that_are_not_updated_are_part_of_it():
    drive = Drive()
    one = modes("sgd")()
    drive.run(one, 0, 3)
    make = lambda: TrainingStep(parsed(MODES), optimizer="sgd")  # noqa: E731
    frozen = make()
    frozen.take_over(one)
    other = make()
    other.load_state_dict(*through_a_file(frozen.state_dict()))
    assert drive.run(other, 3, 6) == drive.run(frozen, 3, 6)
    assert bits(other) == bits(frozen)


# -- what does not fit ---------------------------------------------------------------------------------

Change = Callable[[dict[str, np.ndarray], dict[str, Any]], Any]


def put(*path: Any, value: Any) -> Change:
    def change(tensors: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        inner: Any = state
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def array(name: str, value: Any) -> Change:
    return lambda tensors, state: tensors.update({name: value})


MEMORY = {"rate": None, "best": None, "bad_epochs": -1, "cooling": 0}
BAD: dict[str, tuple[Change, str]] = {
    "no weight": (lambda t, s: t.pop("weights/w0"), "it has no 'weights/w0'"),
    "no state": (lambda t, s: t.pop("state/b0/v"), "it has no 'state/b0/v'"),
    "more": (array("state/w0/x", np.zeros(1)), "it has 'state/w0/x', which this step does not keep"),
    "shape": (
        array("weights/b0", np.zeros(5, np.float32)),
        r"'weights/b0' has shape \(5,\).*\(4,\) and float32",
    ),
    "dtype": (array("weights/b0", np.zeros(4)), r"'weights/b0'.*dtype float64 there"),
    "nan": (array("weights/b0", np.full(4, np.nan, np.float32)), "'weights/b0' holds NaN or infinity"),
    "constant": (array("constants/x", np.zeros(4)), "constants that the model does not have.*'x'"),
    "missing": (lambda t, s: s.pop("skipped"), "the state of a step has"),
    "unknown": (put("more", value=1), "the state of a step has"),
    "rule": (put("optimizer", value="SGD"), "its optimizer is 'SGD', that of this step is 'Adam'"),
    "iteration": (put("iteration", value=-1), r"iteration must be in \[0, 9e15\], not -1"),
    "iteration text": (put("iteration", value="1"), "iteration must be an integer"),
    "iteration large": (put("iteration", value=10**400), "does not fit"),
    "skipped": (put("skipped", value=True), "skipped must be an integer"),
    "pending": (put("pending", value=2), "accumulated 2 batches, this step accumulates 2"),
    "rows": (put("pending_rows", value=0.5), "pending_rows must be an integer"),
    "born": (put("born", value={}), "'born' must have a number for each of the weights"),
    "born late": (put("born", "w0", value=9), r"'w0' joined must be in \[0, 3\]"),
    "modes": (put("modes", value=None), "'modes' must have"),
    "dropout": (put("modes", "dropout", value="on"), "trained with dropout='on', this step has 'off'"),
    "seed": (put("modes", "seed", value=None), "seed must be an integer"),
    "clock": (put("clock", value=None), "its clock was not started"),
    "clock list": (put("clock", value=[1]), "clock of Adam must have"),
    "clock t": (put("clock", "t", value=0), r"t of the clock of Adam must be in \[1"),
    "clock epoch": (put("clock", "epoch", value=math.nan), "epoch of the clock of Adam must be"),
    "memory": (put("clock", "schedules", "learning_rate", value=MEMORY), "bad_epochs in the state of Reduce"),
    "no memory": (put("clock", "schedules", value={}), "holds nothing of its learning_rate"),
    "other memory": (put("clock", "schedules", value={"beta1": {}}), r"schedules for \['learning_rate'\]"),
    "rate": (put("learning_rate", value={"value": -1.0}), "saved learning rate of Adam cannot be read"),
    "rate list": (put("learning_rate", value=[3]), "saved learning rate of Adam cannot be read"),
    "rate code": (put("learning_rate", value={}), "was a Python function or class"),
    "schedule": (
        put("learning_rate", value={"value": {"schedule": "os", "fields": {}}}),
        "no schedule 'os'",
    ),
}


def trained() -> TrainingStep:
    step = net(optim.Adam(optim.ReduceOnPlateau(0.1), accumulate=2))()
    Drive().run(step, 0, 7)
    return step


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    step, other = trained(), trained()
    tensors, state = through_a_file(step.state_dict())
    change(tensors, state)
    Drive().run(step, 7, 10)
    Drive().run(other, 7, 10)
    before = bits(step)
    with pytest.raises(CheckpointError, match=message):
        step.load_state_dict(tensors, state)
    assert bits(step) == before
    assert Drive().run(step, 10, 14) == Drive().run(other, 10, 14)


@pytest.mark.parametrize("state", [None, [], "x", {1: 2}])
def test_a_state_of_another_kind(state):
    step = trained()
    with pytest.raises(CheckpointError, match="the state of a step has"):
        step.load_state_dict(step.state_dict()[0], state)


def test_the_state_of_another_rule_of_the_same_name_of_other_options():
    one, other = net(optim.SGD(0.1, momentum=0.5))(), net(optim.SGD(0.1))()
    with pytest.raises(CheckpointError, match=r"'state/b0/.*which this step does not keep"):
        other.load_state_dict(*one.state_dict())
    with pytest.raises(CheckpointError, match="it has no 'state/"):
        one.load_state_dict(*other.state_dict())


def test_constants_that_were_changed_are_the_models_own_again():
    first, second = net("sgd")(), net("sgd", weights=["w1"])()
    Drive().run(first, 0, 2)
    fresh = through_a_file(second.state_dict())
    second.take_over(first)
    assert {"constants/b0", "constants/b1", "constants/w0"} <= second.state_dict()[0].keys()
    second.load_state_dict(*fresh)
    assert second.state_dict()[0].keys() == fresh[0].keys()
    third = net("sgd", weights=["w1"])()
    for step in (second, third):
        Drive().run(step, 0, 2)
    assert bits(second) == bits(third)

"""A rule is the formula and its options; how far training is, is a clock's business."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxcustom import OnnxRegressor, TrainingStep, optim
from onnxcustom.optim import SGD, Adam, BaseLearningRate, Exp, LearningRateSGD, ReduceOnPlateau, Updater

from .older_rules import update

pytest.importorskip("onnxruntime")
WRITTEN = Path(__file__).with_name("older_rules.pickle")

LINE = """<ir_version: 8, opset_import: ["": 17]> line (float[N, 2] x) => (float[N, 1] y)
<float[2, 1] w = {1, 2}, float[1] b = {0}> { z = MatMul(x, w)  y = Add(z, b) }"""
RULES = {
    "adam": Adam(Exp(0.1, 0.5, True)),
    "plateau": SGD(ReduceOnPlateau(0.1, patience=0), momentum=Exp(0.9, 0.9, True)),
    "function": LearningRateSGD(learning_rate=lambda t: 0.1 / t),
    "multipliers": Adam(0.1, lr_mult={"w": 0.5}, begin_num_update=3),
    "accumulate": optim.NAG(0.1, momentum=0.9, accumulate=2),
}


def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(LINE)


def batches(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(4, 2)).astype("f"), rng.normal(size=(4, 1)).astype("f")) for _ in range(10)]


def train(step: TrainingStep, k: int, batch: tuple[np.ndarray, np.ndarray]) -> None:
    loss = step.run(*batch)
    if k % 3 == 2:
        step.optimizer.report_epoch(loss)


@pytest.mark.parametrize("name", RULES)
def test_one_rule_for_two_steps(name: str) -> None:
    """Trained in turns they are where each is that trains alone; the rule given is at no step at all."""
    rule = RULES[name]
    options = rule.get_params()
    alone = []
    for seed in (0, 1):
        step = TrainingStep(model(), optimizer=copy.deepcopy(rule))
        for k, batch in enumerate(batches(seed)):
            train(step, k, batch)
        alone.append(step)
    both = [TrainingStep(model(), optimizer=rule) for _ in range(2)]
    for k, pairs in enumerate(zip(batches(0), batches(1), strict=True)):
        for step, batch in zip(both, pairs, strict=True):
            train(step, k, batch)
    for one, other in zip(both, alone, strict=True):
        for found, wanted in zip(one.state_dict(), other.state_dict(), strict=True):
            assert found.keys() == wanted.keys()
            for key in wanted:
                np.testing.assert_equal(found[key], wanted[key])
    assert rule.get_params() == options
    assert not rule.clock.started
    assert both[0].recipe.rule.clock is not both[0].optimizer.clock


def test_one_rule_for_two_estimators() -> None:
    rule = Adam(Exp(0.1, 0.5))
    X, y = batches(0)[0]

    def made(rule: BaseLearningRate) -> OnnxRegressor:
        return OnnxRegressor(model(), optimizer=rule, max_iter=2, shuffle=False)

    alone = [made(copy.deepcopy(rule)) for _ in range(2)]
    for k, estimator in enumerate(alone):
        for _ in range(3):
            estimator.partial_fit(X, (1 + k) * y)
    both = [made(rule) for _ in range(2)]
    for _ in range(3):
        for k, estimator in enumerate(both):
            estimator.partial_fit(X, (1 + k) * y)
    for one, other in zip(both, alone, strict=True):
        assert one.step_.optimizer.value == other.step_.optimizer.value
        for name, array in other.step_.weights().items():
            np.testing.assert_array_equal(one.step_.weights()[name], array)


def test_one_rule_in_a_step_and_in_an_updater() -> None:
    rule = SGD(Exp(1.0, 0.5, True))
    updater, step, w = Updater(rule), TrainingStep(model(), optimizer=rule), np.zeros(1)
    for _ in range(3):
        updater(0, np.ones(1), w)
        step.run(*batches(0)[0])
    assert w == -0.875
    step.optimizer.set_learning_rate(0.25)
    updater(0, np.ones(1), w)
    assert (w[0], step.optimizer.value, rule.value) == (-0.9375, 0.25, 0.0625)


def test_the_optimizer_of_a_step_has_its_clock() -> None:
    """Whatever becomes of the step: what is set there holds, what is read there is where the step is."""
    first = TrainingStep(model(), optimizer=SGD(0.5))
    optimizer = first.optimizer
    first.run(*batches(0)[0])
    assert first.optimizer is optimizer
    assert optimizer.t == 2
    saved = first.state_dict()
    optimizer.set_learning_rate(Exp(0.25, 0.5, True))
    first.run(*batches(0)[1])
    assert (optimizer.t, optimizer.value, first.recipe.rule.learning_rate) == (3, 0.03125, 0.5)
    again = pickle.loads(pickle.dumps(first))
    assert (again.optimizer.value, again.optimizer.learning_rate) == (0.03125, optimizer.learning_rate)
    first.load_state_dict(*saved)
    assert (optimizer.t, optimizer.value, optimizer.learning_rate) == (2, 0.5, 0.5)
    first.take_over(again)
    assert (optimizer.t, first.optimizer) == (3, optimizer)
    first.iteration = 7
    first.run(*batches(0)[2])
    assert optimizer.t == 9
    mine = copy.deepcopy(optimizer)
    mine.set_learning_rate(0.0)
    assert optimizer.value == 0.5


def test_a_rule_changed_by_its_giver_changes_no_step() -> None:
    factors = {"w": 0.5}
    rule = SGD(0.5, lr_mult=factors)
    step, other = (TrainingStep(model(), optimizer=r) for r in (rule, SGD(0.5, lr_mult={"w": 0.5})))
    for k, batch in enumerate(batches(0)):
        step.run(*batch, sample_weight=np.ones(4) if k > 2 else None)
        other.run(*batch, sample_weight=np.ones(4) if k > 2 else None)
        rule.set_params(momentum=0.9, learning_rate=0.1)
        factors["w"] = 0.0
    np.testing.assert_array_equal(step.weights()["w"], other.weights()["w"])


@pytest.mark.parametrize("name", ["plain", "plateau", "changed", "indexed", "updater", "begun"])
def test_pickles_of_the_version_before(name: str) -> None:
    """Rules that were written with the parts of their clock go on where they were."""
    written, t, value, wanted = pickle.loads(WRITTEN.read_bytes())[name]
    tool = pickle.loads(written)
    rule = tool if isinstance(tool, BaseLearningRate) else tool.optimizer
    assert (rule.t, rule.value) == (t, value)
    again = pickle.loads(pickle.dumps(rule))
    assert (again.t, again.value) == (t, value)
    np.testing.assert_allclose(update(tool), wanted, rtol=1e-12)

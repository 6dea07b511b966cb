"""Every registered rule against a float64 NumPy transcription of its published formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcustom import optim
from onnxcustom.optim import BaseLearningRate
from onnxcustom.optim.base import RULES

# One generator per rule: it is sent gradients and yields weights, from the learning rate of each step.
Formula = Callable[[np.ndarray, Callable[[int], float], dict[str, Any]], Iterator[np.ndarray]]


def sgd(w, lr, o):
    t = 0
    while True:
        g = yield w
        t += 1
        w = w - lr(t) * g


def sgd_momentum(w, lr, o):
    m, t = np.zeros_like(w), 0
    while True:
        g = yield w
        t += 1
        m = o["momentum"] * m + lr(t) * g
        w = w - m


def sgd_velocity(w, lr, o):
    v, t = np.zeros_like(w), 0
    while True:
        g = yield w
        t += 1
        v = o["momentum"] * v - lr(t) * g
        w = w + o["momentum"] * v - lr(t) * g if o["nesterov"] else w + v


def nag(w, lr, o):
    m, t = np.zeros_like(w), 0
    while True:
        g = yield w
        t += 1
        m = o["momentum"] * m + g
        w = w - lr(t) * (g + o["momentum"] * m)


def adam(w, lr, o):
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = yield w
        t += 1
        m = o["beta1"] * m + (1 - o["beta1"]) * g
        v = o["beta2"] * v + (1 - o["beta2"]) * g**2
        m_hat = m / (1 - o["beta1"] ** t)
        v_hat = v / (1 - o["beta2"] ** t)
        w = w - lr(t) * m_hat / (np.sqrt(v_hat) + o["epsilon"])


@dataclass
class Case:
    name: str
    formula: Formula
    options: dict[str, Any] = field(default_factory=dict)
    rate: Callable[[int], float] | float = 0.01

    @property
    def id(self) -> str:
        options = (f"{k}={'function' if callable(v) else v}" for k, v in self.options.items())
        return "-".join([self.name, *options])

    def rule(self) -> BaseLearningRate:
        return optim.create(self.name, **self.options)

    def reference(self, w: np.ndarray, gradients: list[np.ndarray]) -> Iterator[np.ndarray]:
        rate = self.rate if callable(self.rate) else lambda t: self.rate
        steps = self.formula(w, rate, self.rule().get_params())
        next(steps)
        return (steps.send(g) for g in gradients)


CASES = [
    Case("LearningRateSGD", sgd, {}, lambda t: 0.01 / t**0.25),
    Case("LearningRateSGD", sgd, {"eta0": 0.3, "learning_rate": "constant"}, 0.3),
    Case("LearningRateSGD", sgd, {"eta0": 0.3, "power_t": 0.7}, lambda t: 0.3 / t**0.7),
    Case("LearningRateSGDNesterov", sgd_velocity, {}, lambda t: 0.01 / t**0.25),
    Case(
        "LearningRateSGDNesterov",
        sgd_velocity,
        {"eta0": 0.1, "learning_rate": "constant", "momentum": 0.5, "nesterov": False},
        0.1,
    ),
    Case("LearningRateSGDNesterov", sgd_velocity, {"momentum": 0.0, "learning_rate": "constant"}, 0.01),
    Case("SGD", sgd),
    Case("SGD", sgd_momentum, {"learning_rate": 0.1, "momentum": 0.9}, 0.1),
    Case("SGD", sgd_momentum, {"learning_rate": lambda t: 0.5 / t, "momentum": 0.9}, lambda t: 0.5 / t),
    Case("NAG", sgd),
    Case("NAG", nag, {"learning_rate": 0.1, "momentum": 0.7}, 0.1),
    Case("Adam", adam, {}, 0.001),
    Case("Adam", adam, {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.8, "epsilon": 1e-3}, 0.1),
    Case("Adam", adam, {"learning_rate": 0.1, "beta1": 0.0, "epsilon": 1e-6}, 0.1),
]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
SHAPES = [(), (1,), (0,), (3,), (2, 3), (2, 1, 3, 2), (2, 0)]


def trajectory(rule: BaseLearningRate, w: np.ndarray, gradients: list[np.ndarray], **kw: Any):
    """Weights after each step, every step through update_weights."""
    rule.init_learning_rate()
    w = w.copy()
    state = list(rule.init_state(w).values()) or None
    for t, g in enumerate(gradients, 1):
        rule.update_weights(0, "cpu", w, g, kw.get("batch_size", 1), state)
        rule.update_learning_rate(t)
        yield w.copy()


def data(shape: tuple[int, ...], dtype: Any, seed: int = 0, steps: int = 10):
    rng = np.random.default_rng(seed)
    w = np.array(rng.normal(size=shape), dtype)
    return w, [np.array(rng.normal(size=shape), dtype) for _ in range(steps)]


def test_every_rule_has_a_case():
    assert {type(c.rule()) for c in CASES} == set(RULES.classes())


@EACH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tol"), [(np.float64, 1e-12), (np.float32, 1e-6)], ids=["f64", "f32"])
def test_ten_steps_follow_the_formula(case: Case, shape, dtype, tol):
    w, gradients = data(shape, dtype)
    expected = case.reference(w.astype(np.float64), [g.astype(np.float64) for g in gradients])
    for got, wanted in zip(trajectory(case.rule(), w, gradients), expected, strict=True):
        assert got.dtype == dtype
        assert got.shape == shape
        np.testing.assert_allclose(got, wanted, rtol=tol, atol=tol)


@EACH
def test_batch_size_divides_the_gradient(case: Case):
    w, gradients = data((2, 3), np.float64)
    alone = list(trajectory(case.rule(), w, gradients))
    batch = list(trajectory(case.rule(), w, [7 * g for g in gradients], batch_size=7))
    np.testing.assert_allclose(batch, alone, rtol=1e-12)


@EACH
@pytest.mark.parametrize("opset", [7, 13, 18, 21])
def test_update_model_is_valid_and_typed(case: Case, opset):
    rule = case.rule()
    model = rule.update_model(np.float64, shape=(2, 3), opset=opset)
    onnx.checker.check_model(model, full_check=True)
    assert [v.name for v in model.graph.input] == [
        "weight",
        "gradient",
        *rule.state,
        "learning_rate",
        "t",
        "batch_size",
    ]
    assert [v.name for v in model.graph.output] == ["new_weight", *(f"new_{s}" for s in rule.state)]
    assert {v.type.tensor_type.elem_type for v in model.graph.output} == {onnx.TensorProto.DOUBLE}
    # No learning rate is baked in: only hyper-parameters of the update itself are constants.
    assert model.opset_import[0].version == opset


@EACH
def test_update_model_agrees_with_the_reference_evaluator(case: Case):
    from onnx.reference import ReferenceEvaluator

    rule = case.rule().init_learning_rate()
    w, (g,) = data((2, 3), np.float64, steps=1)
    feeds = {
        "weight": w,
        "gradient": 4 * g,
        **rule.init_state(w),
        "learning_rate": np.array(rule.value),
        "t": np.array(1.0),
        "batch_size": np.array(4.0),
    }
    got = ReferenceEvaluator(rule.update_model(np.float64)).run(None, feeds)[0]
    np.testing.assert_allclose(got, next(case.reference(w, [g])), rtol=1e-12)


@EACH
def test_needs_grad_is_having_state(case: Case):
    rule = case.rule()
    assert rule.needs_grad is bool(rule.state)
    assert list(rule.init_state(np.zeros((2, 3), np.float32))) == list(rule.state)


@EACH
def test_no_session_is_made_after_the_first_step(case: Case, monkeypatch):
    rule = case.rule().init_learning_rate()
    w, gradients = data((2, 3), np.float32)
    state = list(rule.init_state(w).values()) or None
    rule.update_weights(0, "cpu", w, gradients[0], 1, state)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a session was made after the first step")

    monkeypatch.setattr("onnxcustom.optim.function.create_session", refuse)
    rule.set_learning_rate(lambda t: 1 / t)
    for t, g in enumerate(gradients, 1):
        rule.update_learning_rate(t)
        rule.update_weights(0, "cpu", w, g, 1, state)
    assert np.isfinite(w).all()


TORCH = [
    ("SGD", {"learning_rate": 0.1}, "SGD", {"lr": 0.1}),
    ("SGD", {"learning_rate": 0.1, "momentum": 0.9}, "SGD", {"lr": 0.1, "momentum": 0.9}),
    ("NAG", {"learning_rate": 0.1, "momentum": 0.9}, "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (
        "LearningRateSGDNesterov",
        {"eta0": 0.1, "learning_rate": "constant"},
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    ("Adam", {"learning_rate": 0.1}, "Adam", {"lr": 0.1}),
    (
        "Adam",
        {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.8, "epsilon": 1e-3},
        "Adam",
        {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-3},
    ),
]


@pytest.mark.parametrize(("name", "options", "torch_name", "torch_options"), TORCH)
def test_ten_steps_follow_torch(name, options, torch_name, torch_options):
    torch = pytest.importorskip("torch")
    w, gradients = data((3, 2), np.float64)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = getattr(torch.optim, torch_name)([parameter], **torch_options)
    for got, g in zip(trajectory(optim.create(name, **options), w, gradients), gradients, strict=True):
        parameter.grad = torch.from_numpy(g)
        optimizer.step()
        np.testing.assert_allclose(got, parameter.detach().numpy(), rtol=1e-12, atol=1e-14)

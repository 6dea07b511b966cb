"""What the case tables of update rules are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxcustom import optim
from onnxcustom.optim import BaseLearningRate
from onnxcustom.optim.function import build_update

# One generator per rule: it is sent gradients and yields weights, from the learning rate of each step
# and the options of the rule. It is a transcription of the published formula, in NumPy.
Formula = Callable[[np.ndarray, Callable[[int], float], dict[str, Any]], Iterator[np.ndarray]]


@dataclass
class Case:
    name: str
    formula: Formula
    options: dict[str, Any] = field(default_factory=dict)
    rate: Callable[[int], float] | float = 0.01
    opset: int = 7  # the first that has the operators

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


def at(value: Any, t: int) -> float:
    """A hyper-parameter at a step: a number, or a function of the step."""
    return value(t) if callable(value) else value


def clip(g: np.ndarray, limit: float | None) -> np.ndarray:
    return g if limit is None else np.clip(g, -limit, limit)


def rescale_clip_decay(g: np.ndarray, w: np.ndarray, o: dict[str, Any]) -> np.ndarray:
    return clip(o["rescale_grad"] * g, o["clip_gradient"]) + o["wd"] * w


def rescale_decay_clip(g: np.ndarray, w: np.ndarray, o: dict[str, Any]) -> np.ndarray:
    return clip(o["rescale_grad"] * g + o["wd"] * w, o["clip_gradient"])


def clip_rescale_decay(g: np.ndarray, w: np.ndarray, o: dict[str, Any]) -> np.ndarray:
    return o["rescale_grad"] * clip(g, o["clip_gradient"]) + o["wd"] * w


# Shared options that all matter: to be given to a case of every rule.
SHARED = {"wd": 0.03, "rescale_grad": 0.7, "clip_gradient": 0.9}


def one_update(
    rule: BaseLearningRate, w: np.ndarray, g: np.ndarray, opset: int = 18, **target: Any
) -> np.ndarray:
    """The weight after the first step, as a weight of that name, role or index is updated."""
    rule.init_learning_rate()
    model = ir.to_proto(build_update(rule, w.dtype, w.shape, opset, **target))
    values = {f"{name}_value": np.array(rule.values[name], w.dtype) for name in rule.scheduled}
    rate = {"learning_rate": np.array(rule.value, w.dtype), "t": np.array(float(rule.t))}
    feeds = {"weight": w, "gradient": g, **rule.create_state(w), **rate, **values}
    return ReferenceEvaluator(model).run(None, feeds)[0]


def adam(w, gradients, lr=0.001, beta1=0.9, beta2=0.999, eps=1e-8):
    """Algorithm 1 of Kingma & Ba (2015); `lr` is a number or one for each step."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    rates = [lr] * len(gradients) if np.isscalar(lr) else lr
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - rate * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w


def draws(n: int, shape: tuple[int, ...] = (2,), seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(n, *shape)))

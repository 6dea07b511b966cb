"""Cases of the rules in onnxcustom/optim/sgd.py."""

from __future__ import annotations

import itertools

import numpy as np

from .rule_cases import SHARED, Case, at, clip, clip_rescale_decay, rescale_clip_decay


def learning_rate_sgd(w, lr, o):
    for t in itertools.count(1):
        g = rescale_clip_decay((yield w), w, o)
        w = w - lr(t) * g


def learning_rate_sgd_nesterov(w, lr, o):
    v = np.zeros_like(w)
    for t in itertools.count(1):
        g, mu = rescale_clip_decay((yield w), w, o), at(o["momentum"], t)
        v = mu * v - lr(t) * g
        w = w + mu * v - lr(t) * g if o["nesterov"] else w + v


def sgd(w, lr, o):
    m = np.zeros_like(w)
    for t in itertools.count(1):
        g = yield w
        decay = at(o["wd"], t)
        if o["decoupled_weight_decay"]:
            w, decay = w - lr(t) * decay * w, 0
        m = at(o["momentum"], t) * m + lr(t) * clip_rescale_decay(g, w, {**o, "wd": decay})
        w = w - m


def nag(w, lr, o):
    m = np.zeros_like(w)
    for t in itertools.count(1):
        g, mu = rescale_clip_decay((yield w), w, o), at(o["momentum"], t)
        m = mu * m + g
        w = w - lr(t) * (g + mu * m)


def adding(w, lr, o):
    while True:
        g = yield w
        w = w + clip(o["rescale_grad"] * g, o["clip_gradient"]) - o["wd"] * w


FALLING = {"learning_rate": lambda t: 0.5 / t, "momentum": lambda t: 1 - 0.5 / t}
FAST = {"learning_rate": 0.1, "momentum": 0.7}

CASES = [
    Case("LearningRateSGD", learning_rate_sgd, {}, lambda t: 0.01 / t**0.25),
    Case("LearningRateSGD", learning_rate_sgd, {"eta0": 0.3, "learning_rate": "constant"}, 0.3),
    Case("LearningRateSGD", learning_rate_sgd, {"eta0": 0.3, "power_t": 0.7}, lambda t: 0.3 / t**0.7),
    Case("LearningRateSGD", learning_rate_sgd, {"learning_rate": "constant", **SHARED}, 0.01),
    Case("LearningRateSGDNesterov", learning_rate_sgd_nesterov, {}, lambda t: 0.01 / t**0.25),
    Case(
        "LearningRateSGDNesterov",
        learning_rate_sgd_nesterov,
        {"eta0": 0.1, "learning_rate": "constant", "momentum": 0.5, "nesterov": False},
        0.1,
    ),
    Case(
        "LearningRateSGDNesterov",
        learning_rate_sgd_nesterov,
        {"momentum": 0.0, "learning_rate": "constant"},
        0.01,
    ),
    Case("LearningRateSGDNesterov", learning_rate_sgd_nesterov, {**FALLING, **SHARED}, lambda t: 0.5 / t),
    Case("SGD", sgd),
    Case("SGD", sgd, {"learning_rate": 0.1, "momentum": 0.9}, 0.1),
    Case("SGD", sgd, FALLING, lambda t: 0.5 / t),
    Case("SGD", sgd, {"learning_rate": 0.1, "wd": lambda t: 0.1 / t, "lazy_update": False}, 0.1),
    Case("SGD", sgd, {**FAST, **SHARED}, 0.1),
    Case("SGD", sgd, {**FAST, **SHARED, "decoupled_weight_decay": True}, 0.1),
    Case("NAG", nag),
    Case("NAG", nag, FAST, 0.1),
    Case("NAG", nag, FALLING, lambda t: 0.5 / t),
    Case("NAG", nag, {**FAST, **SHARED}, 0.1),
    Case("Test", adding),
    Case("Test", adding, {"learning_rate": 0.5, "rescale_grad": -0.3}, 0.5),
    Case("Test", adding, SHARED),
]

# Rule and options, torch.optim class and options that do the same.
TORCH = [
    ("SGD", {"learning_rate": 0.1}, "SGD", {"lr": 0.1}),
    ("SGD", {"learning_rate": 0.1, "momentum": 0.9}, "SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {**FAST, "wd": 0.2}, "SGD", {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.2}),
    ("NAG", {"learning_rate": 0.1, "momentum": 0.9}, "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("NAG", {**FAST, "wd": 0.2}, "SGD", {"lr": 0.1, "momentum": 0.7, "nesterov": True, "weight_decay": 0.2}),
    (
        "LearningRateSGDNesterov",
        {"eta0": 0.1, "learning_rate": "constant"},
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
]

# The same of optax.
OPTAX = [
    ("SGD", FAST, "sgd", {"learning_rate": 0.1, "momentum": 0.7}),
    ("NAG", FAST, "sgd", {"learning_rate": 0.1, "momentum": 0.7, "nesterov": True}),
]

"""Cases of the rules in onnxcustom/optim/adaptive.py."""

from __future__ import annotations

import numpy as np

from .rule_cases import SHARED, Case, at, clip, rescale_clip_decay, rescale_decay_clip


def adagrad(w, lr, o):
    history, t = np.zeros_like(w), 0
    while True:
        g = rescale_clip_decay((yield w), w, {**o, "wd": 0.0})
        t += 1
        history = history + g**2
        w = w - lr(t) * (g / np.sqrt(history + o["eps"]) + at(o["wd"], t) * w)


def adagrad_l2(w, lr, o):
    history, t = np.zeros_like(w), 0
    while True:
        g = rescale_clip_decay((yield w), w, o)
        t += 1
        history = history + g**2
        w = w - lr(t) * g / np.sqrt(history + o["eps"])


def adadelta(w, lr, o):
    acc_grad, acc_delta, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = rescale_decay_clip((yield w), w, o)
        t += 1
        rho = at(o["rho"], t)
        acc_grad = rho * acc_grad + (1 - rho) * g**2
        delta = np.sqrt(acc_delta + o["epsilon"]) / np.sqrt(acc_grad + o["epsilon"]) * g
        acc_delta = rho * acc_delta + (1 - rho) * delta**2
        w = w - lr(t) * delta


def rmsprop(w, lr, o):
    n, t = np.zeros_like(w), 0
    while True:
        g = rescale_decay_clip((yield w), w, o)
        t += 1
        gamma1 = at(o["gamma1"], t)
        n = gamma1 * n + (1 - gamma1) * g**2
        w = clip(w - lr(t) * g / np.sqrt(n + o["epsilon"]), o["clip_weights"])


def rmsprop_graves(w, lr, o):
    n, mean, delta, t = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = rescale_decay_clip((yield w), w, o)
        t += 1
        gamma1, gamma2 = at(o["gamma1"], t), at(o["gamma2"], t)
        n = gamma1 * n + (1 - gamma1) * g**2
        mean = gamma1 * mean + (1 - gamma1) * g
        delta = gamma2 * delta - lr(t) * g / np.sqrt(n - mean**2 + o["epsilon"])
        w = clip(w + delta, o["clip_weights"])


RMS = {"learning_rate": 0.1, "gamma1": 0.7, "epsilon": 1e-3}
GRAVES = {**RMS, "gamma2": 0.4, "centered": True}

CASES = [
    Case("AdaGrad", adagrad),
    Case("AdaGrad", adagrad, {"learning_rate": 0.1, "eps": 0.5, **SHARED}, 0.1),
    Case("AdaGrad", adagrad, {"learning_rate": 0.1, "wd": lambda t: 0.2 * t}, 0.1),
    Case("AdaGrad", adagrad_l2, {"learning_rate": 0.1, "decoupled_weight_decay": False, **SHARED}, 0.1),
    Case("AdaDelta", adadelta, {}, 1.0),
    Case("AdaDelta", adadelta, {"learning_rate": 0.5, "rho": 0.6, "epsilon": 1e-3, **SHARED}, 0.5),
    Case("AdaDelta", adadelta, {"rho": lambda t: 1 - 1 / (t + 1)}, 1.0),
    Case("RMSProp", rmsprop, {}, 0.001),
    Case("RMSProp", rmsprop, {**RMS, **SHARED, "clip_weights": 0.5}, 0.1),
    Case("RMSProp", rmsprop, {"learning_rate": lambda t: 0.1 / t, "gamma1": 0.0}, lambda t: 0.1 / t),
    Case("RMSProp", rmsprop_graves, {"centered": True}, 0.001),
    Case("RMSProp", rmsprop_graves, {**GRAVES, **SHARED, "clip_weights": 0.5}, 0.1),
    Case(
        "RMSProp",
        rmsprop_graves,
        {**GRAVES, "gamma1": lambda t: 0.9 - 0.4 / t, "gamma2": lambda t: 0.5 / t},
        0.1,
    ),
]

# Rule and options, torch.optim class and options that do the same: where epsilon is makes no difference
# when there is next to none.
TORCH = [
    ("AdaDelta", {"epsilon": 1e-6}, "Adadelta", {}),
    (
        "AdaDelta",
        {"learning_rate": 0.5, "rho": 0.6, "epsilon": 1e-3, "wd": 0.3},
        "Adadelta",
        {"lr": 0.5, "rho": 0.6, "eps": 1e-3, "weight_decay": 0.3},
    ),
    ("AdaGrad", {"eps": 1e-300}, "Adagrad", {"eps": 1e-300}),
    (
        "AdaGrad",
        {"learning_rate": 0.1, "eps": 1e-300, "wd": 0.3, "decoupled_weight_decay": False},
        "Adagrad",
        {"lr": 0.1, "eps": 1e-300, "weight_decay": 0.3},
    ),
    (
        "RMSProp",
        {**RMS, "epsilon": 1e-300, "wd": 0.3},
        "RMSprop",
        {"lr": 0.1, "alpha": 0.7, "eps": 1e-300, "weight_decay": 0.3},
    ),
]

# Rule and options, optax function and options that do the same.
OPTAX = [
    ("AdaGrad", {}, "adagrad", {"learning_rate": 0.01, "initial_accumulator_value": 0.0}),
    (
        "AdaGrad",
        {"learning_rate": 0.1, "eps": 0.5},
        "adagrad",
        {"learning_rate": 0.1, "initial_accumulator_value": 0.0, "eps": 0.5},
    ),
    (
        "AdaDelta",
        {"learning_rate": 0.5, "rho": 0.6, "epsilon": 1e-3},
        "adadelta",
        {"learning_rate": 0.5, "rho": 0.6, "eps": 1e-3},
    ),
    ("RMSProp", {}, "rmsprop", {"learning_rate": 0.001}),
    ("RMSProp", RMS, "rmsprop", {"learning_rate": 0.1, "decay": 0.7, "eps": 1e-3}),
    (
        "RMSProp",
        GRAVES,
        "rmsprop",
        {"learning_rate": 0.1, "decay": 0.7, "eps": 1e-3, "momentum": 0.4, "centered": True},
    ),
]

"""Cases of the rules in onnxcustom/optim/adam.py."""

from __future__ import annotations

import numpy as np

from .rule_cases import SHARED, Case, at, rescale_clip_decay, rescale_decay_clip


def adam(w, lr, o):
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = rescale_decay_clip((yield w), w, o)
        t += 1
        beta1, beta2 = at(o["beta1"], t), at(o["beta2"], t)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        w = w - lr(t) * m_hat / (np.sqrt(v_hat) + o["epsilon"])


def decoupled_adam(w, lr, o):
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = rescale_clip_decay((yield w), w, {**o, "wd": 0.0})
        t += 1
        m = o["beta1"] * m + (1 - o["beta1"]) * g
        v = o["beta2"] * v + (1 - o["beta2"]) * g**2
        m_hat = m / (1 - o["beta1"] ** t)
        v_hat = v / (1 - o["beta2"] ** t)
        w = w - lr(t) * (m_hat / (np.sqrt(v_hat) + o["epsilon"]) + at(o["wd"], t) * w)


def adam_l2(w, lr, o):
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = rescale_clip_decay((yield w), w, o)
        t += 1
        m = o["beta1"] * m + (1 - o["beta1"]) * g
        v = o["beta2"] * v + (1 - o["beta2"]) * g**2
        w = w - lr(t) * m / (1 - o["beta1"] ** t) / (np.sqrt(v / (1 - o["beta2"] ** t)) + o["epsilon"])


def amsgrad(w, lr, o):
    m, v, v_max, t = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = rescale_clip_decay((yield w), w, o)
        t += 1
        m = o["beta1"] * m + (1 - o["beta1"]) * g
        v = o["beta2"] * v + (1 - o["beta2"]) * g**2
        v_max = np.maximum(v_max, v)
        denominator = np.sqrt(v_max / (1 - o["beta2"] ** t)) + o["epsilon"]
        w = w - lr(t) * m / (1 - o["beta1"] ** t) / denominator


def radam(w, lr, o):
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = rescale_clip_decay((yield w), w, o)
        t += 1
        beta1, beta2 = at(o["beta1"], t), at(o["beta2"], t)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 5:
            length = np.sqrt(1 - beta2**t) / (np.sqrt(v) + o["epsilon"])
            r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            w = w - lr(t) * m_hat * r * length
        else:
            w = w - lr(t) * m_hat


def nadam(w, lr, o):
    m, v, product, t = np.zeros_like(w), np.zeros_like(w), 1.0, 0
    while True:
        g = rescale_decay_clip((yield w), w, o)
        t += 1
        beta1 = at(o["beta1"], t)
        mu = beta1 * (1 - 0.5 * 0.96 ** (t * o["schedule_decay"]))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * o["schedule_decay"]))
        product *= mu
        m = beta1 * m + (1 - beta1) * g
        v = o["beta2"] * v + (1 - o["beta2"]) * g**2
        m_hat = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
        v_hat = v / (1 - o["beta2"] ** t)
        w = w - lr(t) * m_hat / (np.sqrt(v_hat) + o["epsilon"])


def adamax(w, lr, o):
    m, u, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = rescale_decay_clip((yield w), w, o)
        t += 1
        m = o["beta1"] * m + (1 - o["beta1"]) * g
        u = np.maximum(o["beta2"] * u, np.abs(g))
        w = w - lr(t) / (1 - o["beta1"] ** t) * m / (u + o["epsilon"])


OTHER = {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.8, "epsilon": 1e-3}


def warming(t):
    return 0.9 - 0.4 / t


CASES = [
    Case("Adam", adam, {}, 0.001),
    Case("Adam", adam, OTHER, 0.1),
    Case("Adam", adam, {"learning_rate": 0.1, "beta1": 0.0, "epsilon": 1e-6}, 0.1),
    Case("Adam", adam, SHARED, 0.001),
    Case("Adam", adam, {"learning_rate": lambda t: 0.1 / t, "beta1": warming}, lambda t: 0.1 / t),
    Case("Adam", adam, {"learning_rate": 0.1, "beta2": warming}, 0.1),
    Case("Adam", decoupled_adam, {"learning_rate": 0.1, "wd": 0.3, "decoupled_weight_decay": True}, 0.1),
    Case("AdamW", decoupled_adam, {}, 0.001),
    Case("AdamW", decoupled_adam, {**OTHER, **SHARED}, 0.1),
    Case("AdamW", decoupled_adam, {"learning_rate": 0.1, "wd": lambda t: 0.1 * t}, 0.1),
    Case("AdamW", adam_l2, {**SHARED, "learning_rate": 0.1, "decoupled_weight_decay": False}, 0.1),
    Case("AMSGrad", amsgrad, {}, 0.001),
    Case("AMSGrad", amsgrad, {**OTHER, **SHARED}, 0.1),
    Case("RAdam", radam, {}, 0.001),
    Case("RAdam", radam, {**OTHER, **SHARED}, 0.1),
    # No step is rectified, or divides by zero on the way.
    Case("RAdam", radam, {"learning_rate": 0.1, "beta2": 0.6}, 0.1),
    Case("RAdam", radam, {"learning_rate": 0.1, "beta2": 0.0}, 0.1),
    Case("RAdam", radam, {"learning_rate": 0.1, "beta1": warming, "beta2": lambda t: 1 - 0.01 / t}, 0.1),
    Case("Nadam", nadam, {}, 0.001),
    Case("Nadam", nadam, {**OTHER, **SHARED, "schedule_decay": 0.5}, 0.1),
    Case("Nadam", nadam, {"learning_rate": 0.1, "beta1": warming}, 0.1),
    Case("Adamax", adamax, {}, 0.002),
    Case("Adamax", adamax, {**OTHER, **SHARED}, 0.1),
]

TORCH_OTHER = {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-3}
DECAY, TORCH_DECAY = {"wd": 0.3}, {"weight_decay": 0.3}

# Rule and options, torch.optim class and options that do the same.
TORCH = [
    ("Adam", {"learning_rate": 0.1}, "Adam", {"lr": 0.1}),
    ("Adam", {**OTHER, **DECAY}, "Adam", {**TORCH_OTHER, **TORCH_DECAY}),
    ("AdamW", {}, "AdamW", {}),
    ("AdamW", {**OTHER, **DECAY}, "AdamW", {**TORCH_OTHER, **TORCH_DECAY}),
    ("AMSGrad", {}, "Adam", {"amsgrad": True}),
    ("AMSGrad", {**OTHER, **DECAY}, "Adam", {**TORCH_OTHER, **TORCH_DECAY, "amsgrad": True}),
    ("RAdam", {}, "RAdam", {}),
    ("RAdam", {**OTHER, **DECAY}, "RAdam", {**TORCH_OTHER, **TORCH_DECAY}),
    ("Nadam", {"learning_rate": 0.002}, "NAdam", {}),
    (
        "NAdam",
        {**OTHER, **DECAY, "momentum_decay": 0.5},
        "NAdam",
        {**TORCH_OTHER, **TORCH_DECAY, "momentum_decay": 0.5},
    ),
    # Where epsilon is makes no difference when there is next to none.
    ("Adamax", {"epsilon": 1e-300}, "Adamax", {"eps": 1e-300}),
    (
        "Adamax",
        {**OTHER, **DECAY, "epsilon": 1e-300},
        "Adamax",
        {**TORCH_OTHER, **TORCH_DECAY, "eps": 1e-300},
    ),
]

OPTAX_OTHER = {"learning_rate": 0.1, "b1": 0.5, "b2": 0.8, "eps": 1e-3}

# Rule and options, optax function and options that do the same.
OPTAX = [
    ("Adam", {}, "adam", {"learning_rate": 0.001}),
    ("Adam", OTHER, "adam", OPTAX_OTHER),
    ("AdamW", {"wd": 1e-4}, "adamw", {"learning_rate": 0.001}),
    ("AdamW", {**OTHER, **DECAY}, "adamw", {**OPTAX_OTHER, **TORCH_DECAY}),
    ("RAdam", {"epsilon": 1e-300}, "radam", {"learning_rate": 0.001, "eps": 1e-300}),
    ("RAdam", {**OTHER, "epsilon": 1e-300}, "radam", {**OPTAX_OTHER, "eps": 1e-300}),
    ("Adamax", {"epsilon": 1e-300}, "adamax", {"learning_rate": 0.002, "eps": 1e-300}),
    ("Adamax", {**OTHER, "epsilon": 1e-300}, "adamax", {**OPTAX_OTHER, "eps": 1e-300}),
]

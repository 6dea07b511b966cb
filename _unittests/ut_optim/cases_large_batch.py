"""Cases of the rules in onnxcustom/optim/large_batch.py."""

from __future__ import annotations

import itertools

import numpy as np

from .rule_cases import SHARED, Case, at, clip


def lars(w, lr, o):
    v = np.zeros_like(w)
    for t in itertools.count(1):
        g = o["rescale_grad"] * clip((yield w), o["clip_gradient"])
        w_norm, g_norm, ratio = np.linalg.norm(w.ravel()), np.linalg.norm(g.ravel()), 1.0
        if w_norm > 0 and g_norm > 0:
            ratio = o["eta"] * w_norm / (g_norm + o["wd"] * w_norm + o["eps"])
        if o["momentum_correction"]:
            v = at(o["momentum"], t) * v + ratio * (g + o["wd"] * w)
            w = w - lr(t) * v
        else:
            v = at(o["momentum"], t) * v + lr(t) * ratio * (g + o["wd"] * w)
            w = w - v


def lbsgd(w, lr, o):
    m = np.zeros_like(w)
    for t in itertools.count(1):
        g = o["rescale_grad"] * clip((yield w), o["clip_gradient"])
        w2, g2 = np.sum(w**2), np.sum(g**2)
        steps = o["warmup_epochs"] * o["updates_per_epoch"]
        part = min((t + o["begin_epoch"] * o["updates_per_epoch"]) / steps, 1)
        if o["warmup_strategy"] == "lars":
            factor = min(max(np.sqrt(w2 / (g2 + o["wd"] * w2 + 1e-18)), 0.01), 100)
        else:
            power = {"linear": 1, "power2": 2, "sqrt": 0.5}[o["warmup_strategy"]]
            factor = 1 + (o["batch_scale"] - 1) * part**power
        m = at(o["momentum"], t) * m + lr(t) * factor * (g + o["wd"] * w)
        w = w - m


def lamb(w, lr, o):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in itertools.count(1):
        g = clip(o["rescale_grad"] * (yield w), o["clip_gradient"])
        beta1, beta2 = at(o["beta1"], t), at(o["beta2"], t)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = (m / (1 - beta1**t), v / (1 - beta2**t)) if o["bias_correction"] else (m, v)
        u = m_hat / (np.sqrt(v_hat) + o["epsilon"]) + o["wd"] * w
        phi, norm = np.linalg.norm(w.ravel()), np.linalg.norm(u.ravel())
        phi = phi if o["lower_bound"] is None else max(phi, o["lower_bound"])
        phi = phi if o["upper_bound"] is None else min(phi, o["upper_bound"])
        w = w - lr(t) * (phi / norm if phi > 0 and norm > 0 else 1.0) * u


WARM = {"warmup_epochs": 2, "updates_per_epoch": 4, "batch_scale": 3, "learning_rate": 0.05}
LAMB = {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.8, "epsilon": 1e-3}

CASES = [
    Case("LARS", lars),
    Case("LARS", lars, {"learning_rate": 0.5, "eta": 0.3, "eps": 0.2, "wd": 0.4}, 0.5),
    Case("LARS", lars, {"learning_rate": lambda t: 1 / t, "momentum": 0.9, "eta": 0.1}, lambda t: 1 / t),
    Case(
        "LARS",
        lars,
        {"learning_rate": lambda t: 1 / t, "momentum": 0.9, "eta": 0.1, "momentum_correction": False},
        lambda t: 1 / t,
    ),
    Case("LARS", lars, {"momentum": lambda t: 0.5 / t, "eta": 1.0, **SHARED}),
    Case("LBSGD", lbsgd),
    Case("LBSGD", lbsgd, {**WARM, "momentum": 0.9}, 0.05),
    Case("LBSGD", lbsgd, {**WARM, "begin_epoch": 1, "num_epochs": 2}, 0.05),
    Case("LBSGD", lbsgd, {**WARM, "warmup_strategy": "power2", "warmup_epochs": 1.5}, 0.05),
    Case(
        "LBSGD",
        lbsgd,
        {**WARM, "warmup_strategy": "sqrt", "learning_rate": lambda t: 0.1 / t},
        lambda t: 0.1 / t,
    ),
    Case("LBSGD", lbsgd, {"warmup_strategy": "lars", "wd": 0.4, "momentum": 0.5}),
    Case("LBSGD", lbsgd, {"warmup_strategy": "lars", "rescale_grad": 1e-4}),
    Case("LBSGD", lbsgd, {"warmup_strategy": "lars", "rescale_grad": 1e3, "learning_rate": 1e-3}, 1e-3),
    Case("LBSGD", lbsgd, {**WARM, "momentum": lambda t: 0.5 / t, **SHARED}, 0.05),
    Case("LAMB", lamb, {}, 0.001),
    Case("LAMB", lamb, LAMB, 0.1),
    Case("LAMB", lamb, {**LAMB, "bias_correction": False, "lower_bound": 0.5, "wd": 0.3}, 0.1),
    Case("LAMB", lamb, {**LAMB, "lower_bound": 0.1, "upper_bound": 0.7}, 0.1),
    Case("LAMB", lamb, {**LAMB, "beta1": lambda t: 0.5 / t, "beta2": lambda t: 1 - 0.5 / t, **SHARED}, 0.1),
]

# torch.optim has none of them.
TORCH: list[tuple] = []

# Rule and options, function of optax and options that do the same.
OPTAX = [
    ("LAMB", LAMB, "lamb", {"learning_rate": 0.1, "b1": 0.5, "b2": 0.8, "eps": 1e-3}),
    ("LAMB", {"wd": 0.3}, "lamb", {"learning_rate": 0.001, "weight_decay": 0.3}),
    (
        "LARS",
        {"learning_rate": 0.5, "eta": 0.3, "momentum": 0.9, "momentum_correction": False},
        "lars",
        {"learning_rate": 0.5, "trust_coefficient": 0.3, "weight_decay": 0.0, "momentum": 0.9},
    ),
]

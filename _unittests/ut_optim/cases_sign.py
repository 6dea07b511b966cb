"""Cases of the rules in onnxcustom/optim/sign.py."""

from __future__ import annotations

import itertools

import numpy as np

from .rule_cases import SHARED, Case, at, clip, clip_rescale_decay, rescale_clip_decay


def signum(w, lr, o):
    m = np.zeros_like(w)
    for t in itertools.count(1):
        g, mu = clip_rescale_decay((yield w), w, o), at(o["momentum"], t)
        m = mu * m + (1 - mu) * g
        w = (1 - lr(t) * at(o["wd_lh"], t)) * w - lr(t) * np.sign(m)


def sign_sgd(w, lr, o):
    b = None
    for t in itertools.count(1):
        g, mu = (yield w), at(o["momentum"], t)
        g = clip(o["rescale_grad"] * g, o["clip_gradient"]) * (-1 if o["maximize"] else 1) + o["wd"] * w
        if mu != 0:
            b = g if b is None else mu * b + (1 - o["dampening"]) * g
            g = g + mu * b if o["nesterov"] else b
        w = w - lr(t) * np.sign(g)


def lion(w, lr, o):
    m = np.zeros_like(w)
    for t in itertools.count(1):
        decoupled = o["wd"] if o["decoupled_weight_decay"] else 0
        g = rescale_clip_decay((yield w), w, {**o, "wd": o["wd"] - decoupled})
        beta1, beta2 = at(o["beta1"], t), at(o["beta2"], t)
        update = np.sign(beta1 * m + (1 - beta1) * g)
        w = w - lr(t) * (update + decoupled * w)
        m = beta2 * m + (1 - beta2) * g


CASES = [
    Case("Signum", signum),
    Case("Signum", signum, {"learning_rate": 0.1, "momentum": 0.5, "wd_lh": 0.3}, 0.1),
    Case("Signum", signum, {"momentum": 0.0, "wd_lh": lambda t: 1 / t}),
    Case("Signum", signum, {"momentum": lambda t: 0.5 / t, **SHARED}),
    Case("SignSGD", sign_sgd),
    Case("SignSGD", sign_sgd, {"learning_rate": 0.1, "momentum": 0.9, "dampening": 0.7}, 0.1),
    Case("SignSGD", sign_sgd, {"momentum": 0.6, "nesterov": True}),
    Case("SignSGD", sign_sgd, {"momentum": lambda t: 1 - 0.5 / t, "nesterov": True, "maximize": True}),
    Case("SignSGD", sign_sgd, {"learning_rate": 0.2, "wd": 2.0, "maximize": True}, 0.2),
    Case("SignSGD", sign_sgd, {"momentum": 0.9, "dampening": 0.4, **SHARED, "wd": 1.5}),
    Case("Lion", lion, {}, 0.0001),
    Case("Lion", lion, {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.7, "wd": 0.8}, 0.1),
    Case(
        "Lion", lion, {"learning_rate": 0.1, "beta1": lambda t: 0.5 / t, "beta2": lambda t: 1 / (1 + t)}, 0.1
    ),
    Case("Lion", lion, {"learning_rate": 0.1, **SHARED}, 0.1),
    Case("Lion", lion, {"learning_rate": 0.1, **SHARED, "wd": 0.8, "decoupled_weight_decay": False}, 0.1),
]

# No rule of torch.optim steps by signs.
TORCH: list[tuple] = []

# Rule and options, function of optax and options that do the same.
OPTAX = [
    ("SignSGD", {"learning_rate": 0.1}, "sign_sgd", {"learning_rate": 0.1}),
    (
        "Lion",
        {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.7},
        "lion",
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.7, "weight_decay": 0.0},
    ),
    ("Lion", {"learning_rate": 0.1, "wd": 0.8}, "lion", {"learning_rate": 0.1, "weight_decay": 0.8}),
]

"""Cases of the rules in onnxcustom/optim/follow_the_leader.py."""

from __future__ import annotations

import numpy as np

from .rule_cases import SHARED, Case, at, rescale_clip_decay, rescale_decay_clip


def ftrl(w, lr, o):
    z, n, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = rescale_clip_decay((yield w), w, {**o, "wd": 0.0})
        t += 1
        z = z + g - (np.sqrt(n + g**2) - np.sqrt(n)) * w / lr(t)
        n = n + g**2
        denominator = (o["beta"] + np.sqrt(n)) / lr(t) + at(o["wd"], t)
        w = (np.sign(z) * o["lamda1"] - z) / denominator * (np.abs(z) > o["lamda1"])


def ftml(w, lr, o):
    v, d, z, t = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = rescale_decay_clip((yield w), w, o)
        t += 1
        beta1, beta2 = at(o["beta1"], t), at(o["beta2"], t)
        v = beta2 * v + (1 - beta2) * g**2
        before, d = d, (1 - beta1**t) / lr(t) * (np.sqrt(v / (1 - beta2**t)) + o["epsilon"])
        z = beta1 * z + (1 - beta1) * g - (d - beta1 * before) * w
        w = -z / d


def falling(t):
    return 0.3 / t


CASES = [
    Case("Ftrl", ftrl, {}, 0.1),
    Case("Ftrl", ftrl, {"learning_rate": 0.3, "lamda1": 1.5, "beta": 0.4, **SHARED}, 0.3),
    Case("Ftrl", ftrl, {"learning_rate": falling, "lamda1": 0.0, "wd": lambda t: 0.1 * t}, falling),
    Case("FTML", ftml),
    Case("FTML", ftml, {"learning_rate": 0.1, "beta1": 0.3, "beta2": 0.7, "epsilon": 1e-3, **SHARED}, 0.1),
    Case("FTML", ftml, {"learning_rate": falling, "beta1": lambda t: 0.9 - 0.4 / t}, falling),
]
# Neither has these rules.
TORCH = []
OPTAX = []

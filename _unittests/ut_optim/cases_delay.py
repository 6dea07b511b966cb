"""Cases of the rules in onnxcustom/optim/delay.py."""

from __future__ import annotations

import itertools

import numpy as np

from .rule_cases import SHARED, Case, at, clip


def dcasgd(w, lr, o):
    m, previous = np.zeros_like(w), w
    for t in itertools.count(1):
        g = clip(o["rescale_grad"] * (yield w), o["clip_gradient"])
        compensated = g + at(o["lamda"], t) * g * g * (w - previous)
        m = at(o["momentum"], t) * m - lr(t) * (compensated + o["wd"] * w)
        previous, w = w, w + m


CASES = [
    Case("DCASGD", dcasgd),
    Case("DCASGD", dcasgd, {"learning_rate": 0.1, "lamda": 2.0}, 0.1),
    Case("DCASGD", dcasgd, {"learning_rate": 0.1, "momentum": 0.9, "lamda": 0.5}, 0.1),
    Case("DCASGD", dcasgd, {"momentum": lambda t: 0.5 / t, "lamda": lambda t: 3 / t, **SHARED}),
]

# Neither PyTorch nor optax has any of them.
TORCH: list[tuple] = []

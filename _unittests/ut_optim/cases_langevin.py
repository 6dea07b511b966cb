"""Cases of the rules in onnxcustom/optim/langevin.py."""

from __future__ import annotations

import itertools
import math

import numpy as np

from .rule_cases import SHARED, Case, rescale_clip_decay

PRIME = 2**31 - 1


def scramble(x: int) -> int:
    return pow(x, 5, PRIME)


def uniform(seed: int, stream: int, step: int, n: int) -> np.ndarray:
    key = scramble(scramble(seed * 48271 + 1) * 69621 + stream)
    state = scramble(scramble(step * 48271 + 1) * 69621 + key)
    return np.array([scramble(scramble(i * 69621 + state) * 630360016 + state) / 2**31 for i in range(n)])


def noise(seed: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers for the first weight."""
    n = math.prod(shape)
    radius = np.sqrt(-2 * np.log(uniform(seed, 0, step, n)))
    return (radius * np.sin(2 * np.pi * uniform(seed, 1, step, n))).reshape(shape)


def sgld(w, lr, o):
    for t in itertools.count(1):
        g = rescale_clip_decay((yield w), w, o)
        w = w - lr(t) / 2 * g + np.sqrt(lr(t)) * noise(o["seed"], t, w.shape)


CASES = [
    Case("SGLD", sgld, {}, 0.01, opset=9),
    Case("SGLD", sgld, {"learning_rate": lambda t: 0.1 / t, "seed": 12345}, lambda t: 0.1 / t, opset=9),
    Case("SGLD", sgld, {"learning_rate": 0.1, "seed": 2**40, **SHARED}, 0.1, opset=9),
]

# Neither PyTorch nor optax has any of them.
TORCH: list[tuple] = []

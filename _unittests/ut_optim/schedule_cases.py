"""Schedules of every kind, and losses to tell them."""

from __future__ import annotations

from onnxcustom import optim
from onnxcustom.optim import (
    Cosine,
    CosineRestarts,
    Exp,
    Fixed,
    Inv,
    MultiStep,
    Null,
    OneCycle,
    Polynomial,
    ReduceOnPlateau,
    Step,
    Warmup,
)

__all__ = ["LOSSES", "SCHEDULES"]

SCHEDULES = [
    Fixed(0.3),
    Null(),
    Exp(0.3, 0.5),
    Exp(0.3, 0.5, decay_on_iteration=True),
    Inv(0.3, 0.9, 0.4, True),
    optim.InverseScaling(0.3, 0.7),
    optim.Optimal(0.3, 0.1),
    optim.Adaptive(0.3, n_iter_no_change=2),
    Step(0.3, step_size=2),
    MultiStep(0.3, milestones=(2, 4)),
    Polynomial(0.3, total=7),
    Cosine(0.3, total=7),
    CosineRestarts(0.3, period=3),
    OneCycle(0.3, total=9),
    ReduceOnPlateau(0.3, factor=0.5, patience=0, cooldown=1),
    Warmup(ReduceOnPlateau(0.3, factor=0.5, patience=1), steps=3),
]

LOSSES = [3.0, 2.0, 2.0, 2.0, 2.0, 2.5, 2.5, 2.5, 2.5, 2.5]

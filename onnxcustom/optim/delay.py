"""Gradient descent that corrects gradients for the delay they come with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcustom._parameters import number
from onnxcustom.graph.building.builder import Builder, Var

from .base import BaseLearningRate
from .function import State
from .registry import register
from .transforms import is_zero

__all__ = ["DCASGD"]


@register
@dataclass(repr=False, eq=False)
class DCASGD(BaseLearningRate):
    r"""Delay-compensated gradient descent.

    .. math::

        m &\leftarrow \mu m - \eta_t\,\big(g + wd\,w + \lambda\, g^2 (w - w_{prev})\big) \\
        w_{prev} &\leftarrow w \\
        w &\leftarrow w + m

    The diagonal of :math:`g g^\top` stands for the Hessian. The previous weight starts at the weight.

    Variant: MXNet's, the paper's rule with a constant :math:`\lambda` (DC-ASGD-c), momentum and decay;
    the weight before the last update stands for the one that the gradient was taken at.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    momentum : float, Schedule or callable, default=0.0
        :math:`\mu`, in [0, 1]; with 0 only the previous weight is kept.
    lamda : float, Schedule or callable, default=0.04
        :math:`\lambda`, strength of the compensation, in [0, inf).

    References
    ----------
    S. Zheng et al., Asynchronous Stochastic Gradient Descent with Delay Compensation, 2017,
    https://arxiv.org/abs/1609.08326, Algorithm 2
    """

    learning_rate: Any = 0.01
    momentum: Any = number(0.0, "[0, 1]", scheduled=True)
    lamda: Any = number(0.04, "[0, inf)", scheduled=True)

    order = ("rescale", "clip")

    @property
    def state(self) -> tuple[str, ...]:
        return ("previous",) if is_zero(self.momentum) else ("momentum", "previous")

    def init_state(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        return {**super().init_state(weight), "previous": np.array(weight)}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        direction = g + self.lamda * (g * g * (w - s.previous))
        if not is_zero(self.wd):
            direction = direction + self.wd * w
        step = lr * direction
        if is_zero(self.momentum):
            return w - step, {"previous": w}
        m = self.momentum * s.momentum - step
        return w + m, {"momentum": m, "previous": w}

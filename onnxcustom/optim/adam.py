"""Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxcustom._parameters import number
from onnxcustom.graph.builder import Builder, Var

from .base import BaseLearningRate, register
from .function import State

__all__ = ["Adam", "debias"]


@register
@dataclass(repr=False, eq=False)
class Adam(BaseLearningRate):
    r"""Adam, with epsilon outside the root of the debiased second moment.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \eta_t \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Algorithm 1 of the paper, as in PyTorch and optax. TensorFlow and MXNet add epsilon to the root of
    the biased moment, the paper's :math:`\hat\epsilon`.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.001
        Number in [0, inf), schedule, or function of the step.
    beta1, beta2 : float, default=0.9 and 0.999
        Decay of the moments, in [0, 1).
    epsilon : float, default=1e-8
        Keeps the denominator from 0, in (0, inf).

    References
    ----------
    D. Kingma, J. Ba, Adam: A Method for Stochastic Optimization, 2015, https://arxiv.org/abs/1412.6980
    """

    learning_rate: Any = 0.001
    beta1: float = number(0.9, "[0, 1)")
    beta2: float = number(0.999, "[0, 1)")
    epsilon: float = number(1e-8, "(0, inf)")

    state = ("m", "v")

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        m = self.beta1 * s.m + (1 - self.beta1) * g
        v = self.beta2 * s.v + (1 - self.beta2) * (g * g)
        # Both corrections are moved to scalars, so that no pass over memory is spent on them.
        root = op.Sqrt(debias(op, self.beta2, t, like=w))
        step = lr * root / debias(op, self.beta1, t, like=w)
        return w - step * (m / (op.Sqrt(v) + self.epsilon * root)), {"m": m, "v": v}


def debias(op: Builder, beta: float, t: Var, like: Var) -> Var:
    r"""The scalar :math:`1 - \beta^t`, of the dtype of `like`.

    Taken in double precision: in single precision :math:`1 - 0.999` has four digits.
    """
    t = t if t.dtype == ir.DataType.DOUBLE else op.Cast(t, to=ir.DataType.DOUBLE)
    factor = 1 - op.Pow(op.const(beta, ir.DataType.DOUBLE), t)
    return factor if like.dtype == ir.DataType.DOUBLE else op.Cast(factor, to=like.dtype)

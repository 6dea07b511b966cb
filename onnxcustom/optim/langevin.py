"""Stochastic gradient Langevin dynamics: sampling rather than minimizing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxcustom._parameters import integer
from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.graph.building import random
from onnxcustom.graph.building.builder import Builder, Var

from .base import BaseLearningRate
from .function import State
from .registry import register
from .transforms import scalar

__all__ = ["SGLD"]

# Range, which counts the numbers of a tensor.
_SINCE = 9


@register
@dataclass(repr=False, eq=False)
class SGLD(BaseLearningRate):
    r"""Stochastic gradient Langevin dynamics: half a step down and noise whose variance is a step.

    .. math:: w \leftarrow w - \tfrac{1}{2}\eta_t (g + wd\,w) + \sqrt{\eta_t}\,\xi,
        \qquad \xi \sim \mathcal{N}(0, I)

    The noise is a function of (seed, step, weight, position), so that a resumed run draws what an
    uninterrupted one would have drawn, on any device.

    Variant: Welling & Teh's equation 4, as in MXNet, where the mean gradient stands for that of the
    whole data set's log posterior: give ``rescale_grad`` the number of its rows. ``optax.noisy_sgd``
    scales its noise otherwise.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    seed : int, default=0
        What the noise is made from, in [0, inf).

    Raises
    ------
    ValueError
        Where the update is emitted for an opset below 9.

    References
    ----------
    M. Welling, Y. W. Teh, Bayesian Learning via Stochastic Gradient Langevin Dynamics, 2011,
    https://www.stats.ox.ac.uk/~teh/research/compstats/WelTeh2011a.pdf, equation 4
    S. Patterson, Y. W. Teh, Stochastic Gradient Riemannian Langevin Dynamics on the Probability
    Simplex, 2013,
    https://papers.nips.cc/paper/4883-stochastic-gradient-riemannian-langevin-dynamics-on-the-probability-simplex
    """

    learning_rate: Any = 0.01
    seed: int = integer(0, "[0, inf)")

    stochastic = True

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        if op.opset < _SINCE:
            raise InvalidParameterError(
                f"The noise of SGLD needs opset {_SINCE} or later, not {op.opset}: convert the model with "
                "onnx.version_converter."
            )
        half = op.once(("half", lr.value), lambda: 0.5 * lr)
        deviation = op.once(("deviation", lr.value), lambda: op.Sqrt(lr))
        return w - half * g + deviation * self._noise(op, w, t), {}

    def _noise(self, op: Builder, w: Var, t: Var) -> Var:
        """Standard normal numbers, of no less than single precision before they are rounded."""
        keys = (random.key(self.seed, 2 * self.stream), random.key(self.seed, 2 * self.stream + 1))
        precise = ir.DataType.DOUBLE if w.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
        noise = random.normal(op, w, keys, scalar(op, t, ir.DataType.INT64), precise)
        return noise if w.dtype == precise else op.Cast(noise, to=w.dtype)

"""Rules that follow the leader, the weight that would have been best so far: Ftrl, FTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from onnxcustom._parameters import flag, number
from onnxcustom.graph.building.builder import Builder, Var

from .base import BaseLearningRate
from .function import State
from .registry import register
from .transforms import corrected_step, is_zero, moving_average, once_key, soft_threshold

__all__ = ["FTML", "Ftrl"]


@register
@dataclass(repr=False, eq=False)
class Ftrl(BaseLearningRate):
    r"""Follow the regularized leader, with a learning rate per number and exact zeros.

    .. math::

        z &\leftarrow z + g - \frac{\sqrt{n + g^2} - \sqrt n}{\eta_t} w \\
        n &\leftarrow n + g^2 \\
        w &\leftarrow \begin{cases} 0 & \text{if } |z| \le \lambda_1 \\
        \frac{\operatorname{sign}(z) \lambda_1 - z}{(\beta + \sqrt n) / \eta_t + \lambda_2}
        & \text{else} \end{cases}

    with the weight decay :math:`\lambda_2`.

    The weight is made anew of :math:`z` and :math:`n` in every step: what it was before the first one
    counts for little, and a change of the learning rate scales it. With a learning rate of 0, by which
    the formula cannot divide, the weight stays, and :math:`z` and :math:`n` collect the gradient.

    Variant: the paper's Algorithm 1, as in MXNet. TensorFlow has a power in place of the root, and two
    times :math:`\lambda_2`.

    Parameters
    ----------
    lamda1 : float, default=0.01
        L1 regularization :math:`\lambda_1`, in [0, inf).
    learning_rate : float, Schedule or callable, default=0.1
        Number in [0, inf), schedule, or function of the step.
    beta : float, default=1.0
        The larger, the slower the learning rates fall, in (0, inf).
    lazy_update : bool, default=True
        In a training step, update only the rows of the batch of a weight that the model reads
        through Gather alone.
    wd : float, Schedule or callable, default=0.0
        Weight decay :math:`\lambda_2`, in [0, inf).

    References
    ----------
    H. B. McMahan et al., Ad Click Prediction: a View from the Trenches, 2013,
    https://dl.acm.org/doi/10.1145/2487575.2488200, Algorithm 1
    """

    lamda1: float = number(0.01, "[0, inf)")
    learning_rate: Any = 0.1
    beta: float = number(1.0, "(0, inf)")
    lazy_update: bool = flag(True)

    by_rows = True

    state = ("z", "n")
    order: ClassVar[tuple[str, ...]] = ("rescale", "clip")
    aliases: ClassVar[dict[str, str]] = {"lambda1": "lamda1"}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        # 1 where the learning rate is 0, else 0; and one over the rate, or 0.
        stays = op.once(("zero", lr.value), lambda: 1 - op.Cast(lr > 0, to=lr.dtype))
        inverse = op.once(("inverse", lr.value), lambda: (1 - stays) / (lr + stays))
        n = s.n + g * g
        root = op.Sqrt(n)
        z = s.z + (g - inverse * ((root - op.Sqrt(s.n)) * w))
        shrunk = z if self.lamda1 == 0 else soft_threshold(op, z, self.lamda1)
        return stays * w - lr * shrunk / (root + self._offset(op, lr)), {"z": z, "n": n}

    def _offset(self, op: Builder, lr: Var) -> Any:
        """What is added to the root of n when numerator and denominator are multiplied by the rate."""
        if is_zero(self.wd):
            return self.beta
        return op.once(("ftrl", lr.value, once_key(self.wd), self.beta), lambda: self.beta + lr * self.wd)


@register
@dataclass(repr=False, eq=False)
class FTML(BaseLearningRate):
    r"""Follow the moving leader: the best weight so far, for recent batches above all.

    .. math::

        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        d_t &= \frac{1 - \beta_1^t}{\eta_t} \left(\sqrt{\frac{v}{1 - \beta_2^t}} + \epsilon\right) \\
        z_t &= \beta_1 z_{t-1} + (1 - \beta_1) g - (d_t - \beta_1 d_{t-1}) w \\
        w &\leftarrow -z_t / d_t

    Since every step leaves :math:`z = -d w`, it is computed as
    :math:`w \leftarrow w - (1 - \beta_1) g / d_t`, with :math:`v` as its only state and no division by the
    learning rate, which may be 0. The gradient is clipped once decay is in it.

    Variant: the paper's Algorithm 1, as in MXNet.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    beta1, beta2 : float, Schedule or callable, default=0.6 and 0.999
        How much the past counts, and decay of the mean square, in [0, 1).
    epsilon : float, default=1e-8
        Keeps the denominator from 0, in (0, inf).

    References
    ----------
    S. Zheng, J. Kwok, Follow the Moving Leader in Deep Learning, 2017,
    http://proceedings.mlr.press/v70/zheng17a/zheng17a.pdf, Algorithm 1
    """

    learning_rate: Any = 0.01
    beta1: Any = number(0.6, "[0, 1)", scheduled=True)
    beta2: Any = number(0.999, "[0, 1)", scheduled=True)
    epsilon: float = number(1e-8, "(0, inf)")

    state = ("v",)
    order: ClassVar[tuple[str, ...]] = ("rescale", "decay", "clip")
    aliases: ClassVar[dict[str, str]] = {"eps": "epsilon"}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        v = moving_average(self.beta2, s.v, g * g)
        step, epsilon = corrected_step(op, lr, t, self.beta1, self.beta2, self.epsilon)
        beta1 = self.beta1
        step = op.once(("ftml", step.value, once_key(beta1)), lambda: (1 - beta1) * step)
        return w - step * (g / (op.Sqrt(v) + epsilon)), {"v": v}

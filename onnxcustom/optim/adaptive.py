"""Rules that divide the gradient by its size in the past: AdaGrad, AdaDelta, RMSProp."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from onnxcustom._parameters import flag, number, optional
from onnxcustom.graph.building.builder import Builder, Var

from .base import BaseLearningRate
from .function import State
from .registry import register
from .transforms import clip, complement, moving_average

__all__ = ["AdaDelta", "AdaGrad", "RMSProp"]


@register
@dataclass(repr=False, eq=False)
class AdaGrad(BaseLearningRate):
    r"""Gradient descent, each number divided by the root of the sum of all squared gradients.

    .. math::

        h &\leftarrow h + g^2 \\
        w &\leftarrow w - \eta_t \left(\frac{g}{\sqrt{h + \epsilon}} + \lambda w\right)

    Variant: epsilon inside the root, the history starting at 0 and the decay not divided, as in MXNet;
    optax has epsilon there too, and a history that starts at 0.1 unless told otherwise. PyTorch adds
    epsilon to the root and decay to the gradient.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    eps : float, default=1e-7
        Keeps the denominator from 0, in (0, inf).
    lazy_update : bool, default=True
        In a training step, update only the rows of the batch of a weight that the model reads
        through Gather alone: other rows do not decay.
    wd : float, Schedule or callable, default=0.0
        Weight decay :math:`\lambda`, in [0, inf).
    decoupled_weight_decay : bool, default=True
        False adds the decay to the gradient instead (L2).

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization, 2011, http://www.jmlr.org/papers/volume12/duchi11a/duchi11a.pdf, section 1.1
    """

    learning_rate: Any = 0.01
    eps: float = number(1e-7, "(0, inf)")
    lazy_update: bool = flag(True)
    _: KW_ONLY
    decoupled_weight_decay: bool = flag(True)

    by_rows = True
    state = ("history",)
    aliases: ClassVar[dict[str, str]] = {"epsilon": "eps"}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        history = s.history + g * g
        return w - lr * (g / op.Sqrt(history + self.eps)), {"history": history}


@register
@dataclass(repr=False, eq=False)
class AdaDelta(BaseLearningRate):
    r"""Gradients divided by their root mean square, times that of the steps: needs no learning rate.

    .. math::

        a &\leftarrow \rho a + (1 - \rho) g^2 \\
        \delta &= \frac{\sqrt{d + \epsilon}}{\sqrt{a + \epsilon}} g \\
        d &\leftarrow \rho d + (1 - \rho) \delta^2 \\
        w &\leftarrow w - \eta_t \delta

    Decay is in the gradient, once, and the gradient is clipped after that.

    Variant: the paper's, times a learning rate that is 1 by default, as in PyTorch and optax, whose
    epsilon is 1e-6. MXNet adds decay to the step once more.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=1.0
        Number in [0, inf), schedule, or function of the step.
    rho : float, Schedule or callable, default=0.9
        Decay of both mean squares, in [0, 1).
    epsilon : float, default=1e-5
        Keeps the denominator from 0, and the first step too, in (0, inf).

    References
    ----------
    M. Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012, https://arxiv.org/abs/1212.5701,
    Algorithm 1
    """

    learning_rate: Any = 1.0
    rho: Any = number(0.9, "[0, 1)", scheduled=True)
    epsilon: float = number(1e-5, "(0, inf)")

    state = ("acc_grad", "acc_delta")
    order: ClassVar[tuple[str, ...]] = ("rescale", "decay", "clip")
    aliases: ClassVar[dict[str, str]] = {"eps": "epsilon"}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        acc_grad = moving_average(self.rho, s.acc_grad, g * g)
        delta = op.Sqrt((s.acc_delta + self.epsilon) / (acc_grad + self.epsilon)) * g
        acc_delta = moving_average(self.rho, s.acc_delta, delta * delta)
        return w - lr * delta, {"acc_grad": acc_grad, "acc_delta": acc_delta}


@register
@dataclass(repr=False, eq=False)
class RMSProp(BaseLearningRate):
    r"""Gradients divided by their root mean square, or their standard deviation.

    .. math::

        n &\leftarrow \gamma_1 n + (1 - \gamma_1) g^2 \\
        w &\leftarrow w - \eta_t \frac{g}{\sqrt{n + \epsilon}}

    and with ``centered=True``

    .. math::

        \bar g &\leftarrow \gamma_1 \bar g + (1 - \gamma_1) g \\
        \Delta &\leftarrow \gamma_2 \Delta - \eta_t \frac{g}{\sqrt{n - \bar g^2 + \epsilon}} \\
        w &\leftarrow w + \Delta

    Of this the difference :math:`n - \bar g^2` is kept rather than :math:`n`: it follows a rule of its
    own, which cannot turn it negative. The gradient is clipped once decay is in it.

    Variant: epsilon inside the root, as in MXNet, Graves' (38)-(45) and optax with ``eps_in_sqrt=True``;
    PyTorch adds it to the root.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.001
        Number in [0, inf), schedule, or function of the step.
    gamma1 : float, Schedule or callable, default=0.9
        Decay of the mean square and of the mean, in [0, 1).
    gamma2 : float, Schedule or callable, default=0.9
        Momentum, in [0, 1), with ``centered=True`` only.
    epsilon : float, default=1e-8
        Keeps the denominator from 0, in (0, inf).
    centered : bool, default=False
        Graves' version rather than Tieleman's and Hinton's.
    clip_weights : float, optional
        Bound, in (0, inf): every number of the new weight is clipped to [-clip_weights, clip_weights].

    References
    ----------
    T. Tieleman, G. Hinton, Neural Networks for Machine Learning, lecture 6.5, 2012,
    http://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf
    A. Graves, Generating Sequences With Recurrent Neural Networks, 2013,
    https://arxiv.org/abs/1308.0850, equations 38 to 45
    """

    learning_rate: Any = 0.001
    gamma1: Any = number(0.9, "[0, 1)", scheduled=True)
    gamma2: Any = number(0.9, "[0, 1)", scheduled=True)
    epsilon: float = number(1e-8, "(0, inf)")
    centered: bool = flag(False)
    clip_weights: float | None = optional("(0, inf)")

    order: ClassVar[tuple[str, ...]] = ("rescale", "decay", "clip")
    aliases: ClassVar[dict[str, str]] = {"eps": "epsilon", "alpha": "gamma1", "rho": "gamma1"}

    @property
    def state(self) -> tuple[str, ...]:
        return ("variance", "mean", "delta") if self.centered else ("n",)

    @property
    def hides_nonfinite(self) -> bool:
        return super().hides_nonfinite or self.clip_weights is not None

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        if not self.centered:
            n = moving_average(self.gamma1, s.n, g * g)
            new = w - lr * (g / op.Sqrt(n + self.epsilon))
            return clip(op, new, self.clip_weights), {"n": n}
        # n - mean², without the cancellation: Welford's update, with weights that fade.
        off = g - s.mean
        move = complement(self.gamma1) * off
        variance = self.gamma1 * (s.variance + move * off)
        delta = self.gamma2 * s.delta - lr * (g / op.Sqrt(variance + self.epsilon))
        state = {"variance": variance, "mean": s.mean + move, "delta": delta}
        return clip(op, w + delta, self.clip_weights), state

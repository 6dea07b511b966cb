"""Rules that step by the sign of a direction, every number of a weight by the same amount."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxcustom._parameters import flag, number
from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.graph.building.builder import Builder, Var

from .base import BaseLearningRate
from .function import State
from .registry import register
from .transforms import is_zero, moving_average, shrink, sign

__all__ = ["Lion", "SignSGD", "Signum"]


@register
@dataclass(repr=False, eq=False)
class Signum(BaseLearningRate):
    r"""Steps by the sign of a moving average of the gradient.

    .. math::

        m &\leftarrow \mu m + (1 - \mu)(g + wd\,w) \\
        w &\leftarrow (1 - \eta_t\,wd_{lh})\,w - \eta_t\,\mathrm{sign}(m)

    The gradient is clipped before it is rescaled, and decay comes last:
    :math:`g = rescale\_grad \cdot \mathrm{clip}(\nabla)`. With momentum 0 it is signSGD.

    Variant: MXNet's, Algorithm 2 of the paper with decay; :class:`SignSGD` adds gradients up instead of
    averaging them.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    momentum : float, Schedule or callable, default=0.9
        :math:`\mu`, in [0, 1); with 0 no state is kept.
    wd_lh : float, Schedule or callable, default=0.0
        Decoupled weight decay (Loshchilov & Hutter 2019), in [0, inf); multiplied by `wd_mult` like
        any other decay.

    References
    ----------
    J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, signSGD: Compressed Optimisation for
    Non-Convex Problems, 2018, https://arxiv.org/abs/1802.04434, Algorithm 2
    I. Loshchilov, F. Hutter, Decoupled Weight Decay Regularization, 2019,
    https://arxiv.org/abs/1711.05101
    """

    learning_rate: Any = 0.01
    momentum: Any = number(0.9, "[0, 1)", scheduled=True)
    wd_lh: Any = number(0.0, "[0, inf)", scheduled=True)

    swallows_nan = True
    order = ("clip", "rescale", "decay")
    decays = ("wd", "l1", "wd_lh")

    @property
    def state(self) -> tuple[str, ...]:
        return () if is_zero(self.momentum) else ("momentum",)

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        m = g if is_zero(self.momentum) else moving_average(self.momentum, s.momentum, g)
        new = shrink(op, w, lr, self.wd_lh) - lr * sign(op, m)
        return new, {} if is_zero(self.momentum) else {"momentum": m}


@register
@dataclass(repr=False, eq=False)
class SignSGD(BaseLearningRate):
    r"""Steps by the sign of what gradient descent with momentum would step by.

    .. math::

        b &\leftarrow \mu b + (1 - \tau)(g + wd\,w) \\
        w &\leftarrow w - \eta_t\,\mathrm{sign}(b)
        \quad\text{or, with Nesterov's,}\quad w - \eta_t\,\mathrm{sign}(g + wd\,w + \mu b)

    At the first step :math:`b = g + wd\,w`, without dampening.

    Variant: Intel Neural Compressor's (AutoRound), ``torch.optim.SGD`` with a sign, which its page
    leaves out; ``optax.sign_sgd`` is the case without momentum. To maximize, the gradient is
    negated, so that decay shrinks the weight all the same.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    momentum : float, Schedule or callable, default=0.0
        :math:`\mu`, in [0, 1]; with 0 no state is kept.
    dampening : float, default=0.0
        :math:`\tau`, in [0, 1].
    nesterov : bool, default=False
        Look one step ahead; needs momentum, and no dampening.
    maximize : bool, default=False
        Ascend rather than descend.

    Raises
    ------
    ValueError
        A number out of its range, or `nesterov` without momentum or with dampening.

    References
    ----------
    J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, signSGD: Compressed Optimisation for
    Non-Convex Problems, 2018, https://arxiv.org/abs/1802.04434, Algorithm 1
    W. Cheng et al., Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs,
    2023, https://arxiv.org/abs/2309.05516
    """

    learning_rate: Any = 0.01
    momentum: Any = number(0.0, "[0, 1]", scheduled=True)
    dampening: float = number(0.0, "[0, 1]")
    nesterov: bool = flag(False)
    maximize: bool = flag(False)

    swallows_nan = True
    order = ("rescale", "clip")

    def check_options(self) -> None:
        super().check_options()
        if self.nesterov and (is_zero(self.momentum) or self.dampening != 0):
            raise InvalidParameterError(
                "nesterov of SignSGD needs momentum in (0, 1] and dampening 0, not "
                f"momentum={self.momentum!r} and dampening={self.dampening!r}."
            )

    @property
    def state(self) -> tuple[str, ...]:
        return () if is_zero(self.momentum) else ("momentum",)

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        if self.maximize:
            g = -g
        if not is_zero(self.wd):
            g = g + self.wd * w
        if is_zero(self.momentum):
            return w - lr * sign(op, g), {}
        b = self.momentum * s.momentum + self._dampened(op, g, t)
        return w - lr * sign(op, g + self.momentum * b if self.nesterov else b), {"momentum": b}

    def _dampened(self, op: Builder, g: Var, t: Var) -> Var:
        """The gradient times one less the dampening, from the second step on."""
        if self.dampening == 0:
            return g

        def factor() -> Var:
            later = op.Cast(t > self.begin_num_update + 1, to=g.dtype)
            return 1 - self.dampening * later

        return op.once(("dampening", t.value, g.dtype), factor) * g


@register
@dataclass(repr=False, eq=False)
class Lion(BaseLearningRate):
    r"""Lion, the sign of an interpolation between gradient and momentum.

    .. math::

        w &\leftarrow w - \eta_t\,\big(\mathrm{sign}(\beta_1 m + (1 - \beta_1) g) + wd\,w\big) \\
        m &\leftarrow \beta_2 m + (1 - \beta_2) g

    Variant: Algorithm 2 of the paper, as in ``optax.lion``, whose decay is 1e-3 by default.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.0001
        Number in [0, inf), schedule, or function of the step.
    beta1, beta2 : float, Schedule or callable, default=0.9 and 0.99
        Share of the momentum in the direction, and its decay, in [0, 1).
    decoupled_weight_decay : bool, default=True
        Shrink the weight by :math:`\eta_t\,wd` rather than add :math:`wd\,w` to the gradient.

    References
    ----------
    X. Chen et al., Symbolic Discovery of Optimization Algorithms, 2023,
    https://arxiv.org/abs/2302.06675, Algorithm 2
    """

    learning_rate: Any = 0.0001
    beta1: Any = number(0.9, "[0, 1)", scheduled=True)
    beta2: Any = number(0.99, "[0, 1)", scheduled=True)
    decoupled_weight_decay: bool = flag(True, kw_only=True)

    swallows_nan = True
    state = ("m",)

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        direction = sign(op, self._direction(s.m, g))
        return w - lr * direction, {"m": moving_average(self.beta2, s.m, g)}

    def _direction(self, m: Var, g: Var) -> Var:
        """What has the sign of ``beta1 m + (1 - beta1) g``."""
        beta1 = self.beta1
        if isinstance(beta1, Var) or beta1 > 0.999:
            return moving_average(beta1, m, g)
        # Divided by 1 - beta1, which no dtype overflows by: a pass over memory less.
        return beta1 / (1 - beta1) * m + g

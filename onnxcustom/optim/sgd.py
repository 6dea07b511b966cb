"""Stochastic gradient descent and its momentum variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from onnxcustom._parameters import flag, number
from onnxcustom.graph.builder import Builder, Var

from .base import BaseLearningRate, register
from .function import State
from .schedules import Adaptive, Fixed, InverseScaling, Optimal, Schedule

__all__ = ["NAG", "SGD", "LearningRateSGD", "LearningRateSGDNesterov"]


@register(select=("SGD",))
@dataclass(repr=False, eq=False)
class LearningRateSGD(BaseLearningRate):
    r"""Stochastic gradient descent with the schedules of ``sklearn.linear_model.SGDRegressor``.

    .. math:: w \leftarrow w - \eta_t g

    Parameters
    ----------
    eta0 : float, default=0.01
        First learning rate, in [0, inf).
    alpha : float, default=0.0001
        Used by ``'optimal'`` only, in [0, inf).
    power_t : float, default=0.25
        Exponent of ``'invscaling'``, in [0, inf).
    learning_rate : str, float, Schedule or callable, default='invscaling'
        With :math:`t` = 1, 2, 3 ... the step:

        - ``'constant'``: :math:`\eta_t = \eta_0`;
        - ``'invscaling'``: :math:`\eta_t = \eta_0 / t^{power\_t}`;
        - ``'optimal'``: :class:`~onnxcustom.optim.schedules.Optimal`;
        - ``'adaptive'``: :class:`~onnxcustom.optim.schedules.Adaptive`;
        - a number, schedule or function of the step, in place of `eta0`.

    Raises
    ------
    ValueError
        A number out of its range, or another name of a schedule.

    Examples
    --------
    >>> import numpy as np
    >>> rule = LearningRateSGD(0.5, learning_rate="constant").init_learning_rate()
    >>> rule.update_weights(0, "cpu", np.zeros(2), np.array([1.0, -1.0]), batch_size=1)
    array([-0.5,  0.5])

    References
    ----------
    L. Bottou, Stochastic Gradient Descent Tricks, 2012.
    """

    eta0: float = number(0.01, "[0, inf)")
    alpha: float = number(0.0001, "[0, inf)")
    power_t: float = number(0.25, "[0, inf)")
    learning_rate: Any = "invscaling"

    aliases: ClassVar[dict[str, str]] = {"lr": "eta0"}

    def make_schedule(self) -> Schedule:
        if not isinstance(self.learning_rate, str):
            return super().make_schedule()
        if self.learning_rate == "constant":
            return Fixed(self.eta0)
        if self.learning_rate == "invscaling":
            return InverseScaling(self.eta0, self.power_t)
        if self.learning_rate == "optimal":
            return Optimal(self.eta0, self.alpha)
        if self.learning_rate == "adaptive":
            return Adaptive(self.eta0)
        raise ValueError(
            f"There is no schedule {self.learning_rate!r}; there are 'adaptive', 'constant', 'invscaling' "
            "and 'optimal', numbers, schedules and functions of the step."
        )

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        return w - lr * g, {}


@register("SGDNesterov", "Nesterov")
@dataclass(repr=False, eq=False)
class LearningRateSGDNesterov(LearningRateSGD):
    r"""Gradient descent with momentum, classical or Nesterov's, as scikit-learn's MLPs have it.

    .. math::

        v &\leftarrow \mu v - \eta_t g \\
        w &\leftarrow w + v \quad\text{or, with Nesterov's,}\quad w + \mu v - \eta_t g

    The velocity includes the learning rate, as in ``sklearn.neural_network.MLPRegressor``, Keras and
    MXNet's SGD; PyTorch keeps it out.

    Parameters
    ----------
    eta0, alpha, power_t, learning_rate
        As for :class:`LearningRateSGD`.
    momentum : float, default=0.9
        :math:`\mu`, in [0, 1].
    nesterov : bool, default=True
        Look one step ahead.

    References
    ----------
    Y. Nesterov, A method of solving a convex programming problem with convergence rate O(1/k²), 1983.
    I. Sutskever et al., On the importance of initialization and momentum in deep learning, 2013,
    https://proceedings.mlr.press/v28/sutskever13.html
    """

    momentum: float = number(0.9, "[0, 1]")
    nesterov: bool = flag(True)

    state = ("velocity",)

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        step = lr * g
        v = self.momentum * s.velocity - step
        return (w + (self.momentum * v - step) if self.nesterov else w + v), {"velocity": v}


@register
@dataclass(repr=False, eq=False)
class SGD(BaseLearningRate):
    r"""Stochastic gradient descent, with classical momentum on request.

    .. math::

        m &\leftarrow \mu m + \eta_t g \\
        w &\leftarrow w - m

    The velocity includes the learning rate [MXNet, Keras, Sutskever et al. 2013]; PyTorch's is
    :math:`m \leftarrow \mu m + g`, :math:`w \leftarrow w - \eta_t m`, the same while the learning
    rate is constant.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    momentum : float, default=0.0
        :math:`\mu`, in [0, 1]; with 0 no state is kept.

    References
    ----------
    B. Polyak, Some methods of speeding up the convergence of iteration methods, 1964.
    """

    learning_rate: Any = 0.01
    momentum: float = number(0.0, "[0, 1]")

    @property
    def state(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        if not self.momentum:
            return w - lr * g, {}
        m = self.momentum * s.momentum + lr * g
        return w - m, {"momentum": m}


@register
@dataclass(repr=False, eq=False)
class NAG(BaseLearningRate):
    r"""Nesterov's accelerated gradient.

    .. math::

        m &\leftarrow \mu m + g \\
        w &\leftarrow w - \eta_t (g + \mu m)

    The velocity leaves the learning rate out [MXNet, ``torch.optim.SGD(nesterov=True)``];
    :class:`LearningRateSGDNesterov` has it in.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    momentum : float, default=0.0
        :math:`\mu`, in [0, 1]; with 0, plain gradient descent, no state is kept.

    References
    ----------
    Y. Nesterov, A method of solving a convex programming problem with convergence rate O(1/k²), 1983.
    """

    learning_rate: Any = 0.01
    momentum: float = number(0.0, "[0, 1]")

    @property
    def state(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        if not self.momentum:
            return w - lr * g, {}
        m = self.momentum * s.momentum + g
        return w - lr * (g + self.momentum * m), {"momentum": m}

"""Stochastic gradient descent, its momentum variants, and the rule to test others with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxcustom._parameters import flag, number
from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.graph.building.builder import Builder, Var

from .base import BaseLearningRate
from .function import State
from .registry import register
from .schedules import Adaptive, Fixed, InverseScaling, Optimal, Schedule
from .transforms import is_zero

__all__ = ["NAG", "SGD", "LearningRateSGD", "LearningRateSGDNesterov", "Test", "ccSGD"]


@register(select=("SGD",))
@dataclass(repr=False, eq=False)
class LearningRateSGD(BaseLearningRate):
    r"""Stochastic gradient descent with the schedules of ``sklearn.linear_model.SGDRegressor``.

    .. math:: w \leftarrow w - \eta_t g

    Variant: ``sklearn.linear_model.SGDRegressor`` without penalty, step for step when it is given one
    row at a time; ``'optimal'`` differs, its first rate is `eta0` here.

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
    L. Bottou, Stochastic Gradient Descent Tricks, 2012,
    https://www.microsoft.com/en-us/research/publication/stochastic-gradient-tricks/
    """

    eta0: float = number(0.01, "[0, inf)")
    alpha: float = number(0.0001, "[0, inf)")
    power_t: float = number(0.25, "[0, inf)")
    learning_rate: Any = "invscaling"

    aliases: ClassVar[dict[str, str]] = {"lr": "eta0"}
    proportional = True

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
        raise InvalidParameterError(
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

    Variant: the velocity includes the learning rate, as in ``sklearn.neural_network.MLPRegressor``,
    Keras and Sutskever et al. 2013; PyTorch and :class:`NAG` leave it out, which is the same while the
    learning rate is constant.

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

    momentum: Any = number(0.9, "[0, 1]", scheduled=True)
    nesterov: bool = flag(True)

    state = ("velocity",)

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        step = lr * g
        v = self.momentum * s.velocity - step
        return (w + (self.momentum * v - step) if self.nesterov else w + v), {"velocity": v}


@register("ccSGD")
@dataclass(repr=False, eq=False)
class SGD(BaseLearningRate):
    r"""Stochastic gradient descent, with classical momentum on request.

    .. math::

        m &\leftarrow \mu m + \eta_t (g + wd\,w) \\
        w &\leftarrow w - m

    The gradient is clipped before it is rescaled, and decay comes last:
    :math:`g = rescale\_grad \cdot \mathrm{clip}(\nabla)`.

    Variant: the velocity includes the learning rate [MXNet, Keras, Sutskever et al. 2013]; PyTorch's
    and optax's is :math:`m \leftarrow \mu m + g`, :math:`w \leftarrow w - \eta_t m`, the same while the
    learning rate is constant.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    momentum : float, Schedule or callable, default=0.0
        :math:`\mu`, in [0, 1]; with 0 no state is kept.
    lazy_update : bool, default=True
        Whether a training step may update only the rows of the batch in a weight that the model
        reads through Gather alone, momentum included; other rows are left as they are.

    References
    ----------
    B. Polyak, Some methods of speeding up the convergence of iteration methods, 1964,
    https://doi.org/10.1016/0041-5553(64)90137-5
    """

    learning_rate: Any = 0.01
    momentum: Any = number(0.0, "[0, 1]", scheduled=True)
    lazy_update: bool = flag(True)

    by_rows = True
    proportional = True

    order = ("clip", "rescale", "decay")

    @property
    def state(self) -> tuple[str, ...]:
        return () if is_zero(self.momentum) else ("momentum",)

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        if is_zero(self.momentum):
            return w - lr * g, {}
        m = self.momentum * s.momentum + lr * g
        return w - m, {"momentum": m}


#: What MXNet called another implementation of the same.
ccSGD = SGD


@register
@dataclass(repr=False, eq=False)
class NAG(BaseLearningRate):
    r"""Nesterov's accelerated gradient.

    .. math::

        m &\leftarrow \mu m + g \\
        w &\leftarrow w - \eta_t (g + \mu m)

    Variant: the velocity leaves the learning rate out [MXNet, ``torch.optim.SGD(nesterov=True)``,
    ``optax.sgd(nesterov=True)``]; :class:`LearningRateSGDNesterov` has it in. Weight decay is part of
    both :math:`g`, as in PyTorch.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    momentum : float, Schedule or callable, default=0.0
        :math:`\mu`, in [0, 1]; with 0, plain gradient descent, no state is kept.

    References
    ----------
    Y. Nesterov, A method of solving a convex programming problem with convergence rate O(1/k²), 1983.
    I. Sutskever et al., On the importance of initialization and momentum in deep learning, 2013,
    https://proceedings.mlr.press/v28/sutskever13.html
    """

    learning_rate: Any = 0.01
    momentum: Any = number(0.0, "[0, 1]", scheduled=True)

    @property
    def state(self) -> tuple[str, ...]:
        return () if is_zero(self.momentum) else ("momentum",)

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        if is_zero(self.momentum):
            return w - lr * g, {}
        m = self.momentum * s.momentum + g
        return w - lr * (g + self.momentum * m), {"momentum": m}


@register
@dataclass(repr=False, eq=False)
class Test(BaseLearningRate):
    r"""The rule to test updaters with: the gradient is added, and the state repeats the weight.

    .. math::

        w &\leftarrow w + lr\_mult\,(g - wd\,w) \\
        c &\leftarrow w

    Where no other option is given, this is :math:`w + rescale\_grad \cdot \nabla`: the rate is 1, and
    `lr_mult` multiplies it as any other. The learning rate is used by `l1` and decoupled decay only.

    Variant: MXNet's, which knows no option but `rescale_grad`.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.

    References
    ----------
    T. Chen et al., MXNet: A Flexible and Efficient Machine Learning Library for Heterogeneous
    Distributed Systems, 2015, https://arxiv.org/abs/1512.01274
    """

    learning_rate: Any = 0.01

    __test__ = False  # for pytest, which takes a class of this name for tests
    order = ("rescale", "clip")
    state = ("copy",)
    bound_lr_mult = 1.0

    def init_state(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        return {"copy": np.array(weight)}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        change = g if is_zero(self.wd) else g - self.wd * w
        new = w + (change if self.bound_lr_mult == 1 else self.bound_lr_mult * change)
        return new, {"copy": new}

"""Rules for large batches: a learning rate of each weight's own, from the norms of weight and gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from onnxcustom._parameters import choice, flag, integer, number, optional
from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.graph.building.builder import Builder, Var

from .base import BaseLearningRate
from .function import State
from .registry import register
from .schedules import Schedule, needed
from .transforms import debias, is_zero, l2_norm, moving_average, scalar, sum_square, trust_ratio

__all__ = ["LAMB", "LARS", "LBSGD", "LargeBatchWarmup"]


@register
@dataclass(repr=False, eq=False)
class LARS(BaseLearningRate):
    r"""Layer-wise adaptive rate scaling: SGD whose steps are in proportion to the weight's norm.

    .. math::

        r &= \frac{\eta\,\|w\|}{\|g\| + wd\,\|w\| + \epsilon}
            \quad\text{if both norms are positive, else } 1 \\
        v &\leftarrow \mu v + r\,(g + wd\,w) \\
        w &\leftarrow w - lr_t\,v

    Without momentum correction, the velocity includes the global learning rate:
    :math:`v \leftarrow \mu v + lr_t\,r\,(g + wd\,w)` and :math:`w \leftarrow w - v`. The two are the same
    while the learning rate is constant; the correction of Goyal et al. 2017 is to leave it out, or,
    what is the same, to scale the velocity by each change of it. Biases and parameters of
    normalizations have :math:`r = 1`, as in :class:`SGD`. The gradient is clipped before it is rescaled,
    and both come before the norm.

    Variant: MXNet's; the paper's velocity includes the learning rate, and so does that of
    ``optax.lars``, which divides by the norm of :math:`g + wd\,w` and leaves no weight out by itself.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Global learning rate :math:`lr_t`: number in [0, inf), schedule, or function of the step.
    momentum : float, Schedule or callable, default=0.0
        :math:`\mu`, in [0, 1]; with 0 no state is kept.
    lazy_update : bool, default=True
        Taken for MXNet's sake: a norm needs the whole weight, so that all rows are updated.
    eta : float, default=0.001
        Trust coefficient :math:`\eta`, in (0, inf).
    eps : float, default=0.0
        :math:`\epsilon`, in [0, inf).
    momentum_correction : bool, default=True
        Whether the velocity leaves the learning rate out.

    References
    ----------
    Y. You, I. Gitman, B. Ginsburg, Large Batch Training of Convolutional Networks, 2017,
    https://arxiv.org/abs/1708.03888, Algorithm 1
    P. Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017,
    https://arxiv.org/abs/1706.02677, section 3
    """

    learning_rate: Any = 0.01
    momentum: Any = number(0.0, "[0, 1]", scheduled=True)
    lazy_update: bool = flag(True)
    eta: float = number(0.001, "(0, inf)")
    eps: float = number(0.0, "[0, inf)")
    momentum_correction: bool = flag(True)

    aliases: ClassVar[dict[str, str]] = {"lars_eta": "eta", "lars_epsilon": "eps", "epsilon": "eps"}
    order = ("clip", "rescale")

    @property
    def state(self) -> tuple[str, ...]:
        return () if is_zero(self.momentum) else ("momentum",)

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        ratio = None if self.role in ("bias", "normalization") else self._ratio(op, w, g)
        if not is_zero(self.wd):
            g = g + self.wd * w
        if is_zero(self.momentum):
            return w - (lr if ratio is None else lr * ratio) * g, {}
        if not self.momentum_correction:
            v = self.momentum * s.momentum + (lr if ratio is None else lr * ratio) * g
            return w - v, {"momentum": v}
        v = self.momentum * s.momentum + (g if ratio is None else ratio * g)
        return w - lr * v, {"momentum": v}

    def _ratio(self, op: Builder, w: Var, g: Var) -> Var:
        """The factor of the learning rate, a scalar."""
        w_norm, g_norm = l2_norm(op, w), l2_norm(op, g)
        denominator = g_norm
        if not is_zero(self.wd):
            denominator = denominator + scalar(op, self.wd, w_norm.dtype) * w_norm
        if self.eps:
            denominator = denominator + self.eps
        return scalar(op, trust_ratio(op, self.eta * w_norm, denominator, w_norm, g_norm), w.dtype)


@dataclass(frozen=True)
class LargeBatchWarmup(Schedule):
    r"""A schedule times a factor that rises from 1, :math:`\eta_t = (1 + (s - 1) f(n/N))\,\hat\eta_t`.

    Here :math:`n` is the step, :math:`N` the length of the warm-up, and :math:`f(x)` is :math:`x`,
    :math:`x^2` or :math:`\sqrt{x}`; from :math:`n = N` on the factor is :math:`s`.

    Parameters
    ----------
    schedule : Schedule
        The schedule, which goes on during the warm-up.
    scale : float
        Last factor :math:`s`, in [1, inf).
    steps : float
        Updates of warm-up :math:`N`, in [0, inf).
    begin : int, default=0
        Updates done before the first one, in [0, inf): :math:`n = t + begin`.
    strategy : {'linear', 'power2', 'sqrt'}
        :math:`f`.

    Examples
    --------
    >>> from onnxcustom.optim import Fixed
    >>> schedule = LargeBatchWarmup(Fixed(0.5), scale=5.0, steps=4)
    >>> [schedule.value(t, epoch=1) for t in range(1, 7)]
    [1.0, 1.5, 2.0, 2.5, 2.5, 2.5]
    """

    schedule: Schedule
    scale: float = needed("[1, inf)")
    steps: float = needed("[0, inf)")
    begin: int = integer(0, "[0, inf)")
    strategy: str = choice("linear", "power2", "sqrt")

    base_field = "schedule"

    def value(self, t: int, epoch: int) -> float:
        rate, n = self.schedule.value(t, epoch), t + self.begin
        if n >= self.steps:
            return self.scale * rate
        part = n / self.steps
        if self.strategy == "power2":
            part *= part
        elif self.strategy == "sqrt":
            part = math.sqrt(part)
        return (1 + (self.scale - 1) * part) * rate

    def report_epoch(self, loss: float) -> bool:
        return self.schedule.report_epoch(loss)

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.schedule.load_state_dict(state)


@register
@dataclass(repr=False, eq=False)
class LBSGD(BaseLearningRate):
    r"""SGD for large batches: the learning rate warms up, or follows the norms as in LARS.

    .. math::

        m &\leftarrow \mu m + \eta_t k_t (g + wd\,w) \\
        w &\leftarrow w - m

    With the strategies ``'linear'``, ``'power2'`` and ``'sqrt'`` the factor :math:`k_t` is 1 + (`batch_scale`
    - 1) times :math:`x`, :math:`x^2` or :math:`\sqrt{x}`, where :math:`x = n/N` rises to 1 during the
    :math:`N` = `warmup_epochs` · `updates_per_epoch` updates of the warm-up; :math:`n` is the step plus
    `begin_epoch` · `updates_per_epoch`. With ``'lars'`` it is :math:`\sqrt{\|w\|^2 / (\|g\|^2 +
    wd\,\|w\|^2 + 10^{-18})}`, clipped to [0.01, 100], for each weight. The gradient is clipped before it is
    rescaled, and both come before the norm.

    Variant: MXNet's factors, and decay as in its SGD: its page leaves decay outside the learning rate.
    MXNet adds up the gradients of `batch_scale` batches too; here that is the option `accumulate`.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.01
        Number in [0, inf), schedule, or function of the step.
    momentum : float, Schedule or callable, default=0.0
        :math:`\mu`, in [0, 1]; with 0 no state is kept.
    warmup_strategy : {'linear', 'power2', 'sqrt', 'lars'}
        What the factor follows.
    warmup_epochs : float, default=5
        Length of the warm-up, in [0, inf).
    batch_scale : float, default=1
        Factor after the warm-up, in [1, inf): how many times larger the batch is than the one that
        the learning rate was chosen for.
    updates_per_epoch : int, default=32
        Updates in an epoch, in [1, inf).
    begin_epoch : int, default=0
        Epochs done before the first step, in [0, inf).
    num_epochs : int, default=60
        Taken for MXNet's sake, in [1, inf); it is used for nothing, there as here.

    References
    ----------
    P. Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017,
    https://arxiv.org/abs/1706.02677, section 2
    Y. You, I. Gitman, B. Ginsburg, Large Batch Training of Convolutional Networks, 2017,
    https://arxiv.org/abs/1708.03888
    """

    learning_rate: Any = 0.01
    momentum: Any = number(0.0, "[0, 1]", scheduled=True)
    warmup_strategy: str = choice("linear", "power2", "sqrt", "lars")
    warmup_epochs: float = number(5, "[0, inf)")
    batch_scale: float = number(1, "[1, inf)")
    updates_per_epoch: int = integer(32, "[1, inf)")
    begin_epoch: int = integer(0, "[0, inf)")
    num_epochs: int = integer(60, "[1, inf)")

    order = ("clip", "rescale")

    @property
    def state(self) -> tuple[str, ...]:
        return () if is_zero(self.momentum) else ("momentum",)

    def make_schedule(self) -> Schedule:
        schedule = super().make_schedule()
        if self.warmup_strategy == "lars":
            return schedule
        return LargeBatchWarmup(
            schedule,
            self.batch_scale,
            self.warmup_epochs * self.updates_per_epoch,
            self.begin_epoch * self.updates_per_epoch,
            self.warmup_strategy,
        )

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        if self.warmup_strategy == "lars":
            lr = lr * self._ratio(op, w, g)
        if not is_zero(self.wd):
            g = g + self.wd * w
        if is_zero(self.momentum):
            return w - lr * g, {}
        m = self.momentum * s.momentum + lr * g
        return w - m, {"momentum": m}

    def _ratio(self, op: Builder, w: Var, g: Var) -> Var:
        """The factor of the learning rate, a scalar."""
        w_square, denominator = sum_square(op, w), sum_square(op, g)
        if not is_zero(self.wd):
            denominator = denominator + scalar(op, self.wd, w_square.dtype) * w_square
        ratio = op.Sqrt(w_square / (denominator + 1e-18))
        return scalar(op, op.Min(op.Max(ratio, 0.01), 100.0), w.dtype)


@register
@dataclass(repr=False, eq=False)
class LAMB(BaseLearningRate):
    r"""Adam whose steps are in proportion to the weight's norm, layer by layer.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        u &= \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + wd\,w \\
        w &\leftarrow w - \eta_t \frac{\phi(\|w\|)}{\|u\|} u

    :math:`\phi` brings the norm into [`lower_bound`, `upper_bound`]; the ratio of norms is 1 where one of
    them is 0. Without bias correction :math:`m` and :math:`v` are not divided.

    Variant: Algorithm 2 of the paper with decay inside the norm, as in MXNet, ``optax.lamb`` and TensorFlow
    Addons; the bounds are MXNet's.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.001
        Number in [0, inf), schedule, or function of the step.
    beta1, beta2 : float, Schedule or callable, default=0.9 and 0.999
        Decay of the moments, in [0, 1).
    epsilon : float, default=1e-6
        Keeps the denominator from 0, in (0, inf).
    lower_bound, upper_bound : float, optional
        Bounds on the norm of the weight, in [0, inf) and (0, inf).
    bias_correction : bool, default=True
        Whether the moments are divided by what they lack in the first steps.

    Raises
    ------
    ValueError
        A number out of its range, or `lower_bound` above `upper_bound`.

    References
    ----------
    Y. You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, 2020,
    https://arxiv.org/abs/1904.00962, Algorithm 2
    """

    learning_rate: Any = 0.001
    beta1: Any = number(0.9, "[0, 1)", scheduled=True)
    beta2: Any = number(0.999, "[0, 1)", scheduled=True)
    epsilon: float = number(1e-6, "(0, inf)")
    lower_bound: float | None = optional("[0, inf)")
    upper_bound: float | None = optional("(0, inf)")
    bias_correction: bool = flag(True)

    aliases: ClassVar[dict[str, str]] = {"eps": "epsilon"}
    order = ("rescale", "clip")
    state = ("m", "v")

    def check_options(self) -> None:
        super().check_options()
        low, high = self.lower_bound, self.upper_bound
        if low is not None and high is not None and low > high:
            raise InvalidParameterError(
                f"lower_bound of LAMB must be in [0, upper_bound], not {low!r} with {high!r}."
            )

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        m = moving_average(self.beta1, s.m, g)
        v = moving_average(self.beta2, s.v, g * g)
        # As in Adam, corrections are moved to scalars: u is the scale times the direction.
        root, scale = self._corrections(op, w, t)
        direction = m / (op.Sqrt(v) + self.epsilon * root)
        if not is_zero(self.wd):
            direction = direction + (self.wd / scale) * w
        ratio = self._ratio(op, w, direction, scale)
        return w - (lr * scale * ratio) * direction, {"m": m, "v": v}

    def _corrections(self, op: Builder, w: Var, t: Var) -> tuple[Any, Var]:
        """Root of the correction of the second moment, and that root over the one of the first."""
        if not self.bias_correction:
            return 1.0, op.const(1.0, w.dtype)
        first, second = debias(op, self.beta1, t, like=w), debias(op, self.beta2, t, like=w)
        root = op.once(("sqrt", second.value), lambda: op.Sqrt(second))
        return root, op.once(("over", root.value, first.value), lambda: root / first)

    def _ratio(self, op: Builder, w: Var, direction: Var, scale: Var) -> Var:
        """The norm of the weight, within its bounds, over that of the update; 1 if one is 0."""
        w_norm, norm = l2_norm(op, w), l2_norm(op, direction)
        norm = scalar(op, scale, norm.dtype) * norm
        if self.lower_bound is not None:
            w_norm = op.Max(w_norm, self.lower_bound)
        if self.upper_bound is not None:
            w_norm = op.Min(w_norm, self.upper_bound)
        return scalar(op, trust_ratio(op, w_norm, norm, w_norm, norm), w.dtype)

"""Adam and its variants: AdamW, AMSGrad, RAdam, Nadam, Adamax."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxcustom._parameters import flag, number
from onnxcustom.graph.building.builder import Builder, Var

from .base import BaseLearningRate
from .function import State
from .registry import register
from .transforms import complement, corrected_step, debias, moving_average, once_key, scalar

__all__ = ["AMSGrad", "Adam", "AdamW", "Adamax", "Nadam", "RAdam"]

_DOUBLE = ir.DataType.DOUBLE


def _moments(beta1: Any, beta2: Any, s: State, g: Var) -> tuple[Var, Var]:
    """The moving averages of gradients and of their squares."""
    return moving_average(beta1, s.m, g), moving_average(beta2, s.v, g * g)


@register
@dataclass(repr=False, eq=False)
class Adam(BaseLearningRate):
    r"""Adam: a step of momentum, divided by the root of the mean square of the gradients.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \eta_t \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    The gradient is clipped once decay is in it.

    Variant: Algorithm 1 of the paper, epsilon added to the root of the debiased moment; PyTorch and
    optax have the same. TensorFlow and MXNet add epsilon to the root of the biased moment, the
    paper's :math:`\hat\epsilon`.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.001
        Number in [0, inf), schedule, or function of the step.
    beta1, beta2 : float, Schedule or callable, default=0.9 and 0.999
        Decay of the moments, in [0, 1).
    epsilon : float, default=1e-8
        Keeps the denominator from 0, in (0, inf).
    lazy_update : bool, default=True
        In a training step, update only the rows of the batch of a weight that the model reads
        through Gather alone; moments of other rows stay as they are.

    References
    ----------
    D. Kingma, J. Ba, Adam: A Method for Stochastic Optimization, 2015, https://arxiv.org/abs/1412.6980,
    Algorithm 1
    """

    learning_rate: Any = 0.001
    beta1: Any = number(0.9, "[0, 1)", scheduled=True)
    beta2: Any = number(0.999, "[0, 1)", scheduled=True)
    epsilon: float = number(1e-8, "(0, inf)")
    lazy_update: bool = flag(True)

    by_rows = True

    state = ("m", "v")
    order: ClassVar[tuple[str, ...]] = ("rescale", "decay", "clip")
    aliases: ClassVar[dict[str, str]] = {"eps": "epsilon"}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        m, v = _moments(self.beta1, self.beta2, s, g)
        step, epsilon = corrected_step(op, lr, t, self.beta1, self.beta2, self.epsilon)
        return w - step * (m / (op.Sqrt(v) + epsilon)), {"m": m, "v": v}


@register
@dataclass(repr=False, eq=False)
class AdamW(BaseLearningRate):
    r"""Adam with decoupled weight decay.

    .. math::

        w &\leftarrow w - \eta_t \lambda w \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \eta_t \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Variant: the weight shrinks by the learning rate times the decay, by default 0.01, as in PyTorch;
    optax is the same with a default of 1e-4. In the paper the decay is multiplied by a schedule without
    the base learning rate.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.001
        Number in [0, inf), schedule, or function of the step.
    beta1, beta2 : float, Schedule or callable, default=0.9 and 0.999
        Decay of the moments, in [0, 1).
    epsilon : float, default=1e-8
        Keeps the denominator from 0, in (0, inf).
    wd : float, Schedule or callable, default=0.01
        Weight decay :math:`\lambda`, in [0, inf).
    decoupled_weight_decay : bool, default=True
        False adds the decay to the gradient instead (L2).

    References
    ----------
    I. Loshchilov, F. Hutter, Decoupled Weight Decay Regularization, 2019,
    https://arxiv.org/abs/1711.05101, Algorithm 2
    """

    learning_rate: Any = 0.001
    beta1: Any = number(0.9, "[0, 1)", scheduled=True)
    beta2: Any = number(0.999, "[0, 1)", scheduled=True)
    epsilon: float = number(1e-8, "(0, inf)")
    _: KW_ONLY
    wd: Any = number(0.01, "[0, inf)", scheduled=True)
    decoupled_weight_decay: bool = flag(True)

    state = ("m", "v")
    aliases: ClassVar[dict[str, str]] = {"eps": "epsilon"}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        m, v = _moments(self.beta1, self.beta2, s, g)
        step, epsilon = corrected_step(op, lr, t, self.beta1, self.beta2, self.epsilon)
        return w - step * (m / (op.Sqrt(v) + epsilon)), {"m": m, "v": v}


@register
@dataclass(repr=False, eq=False)
class AMSGrad(BaseLearningRate):
    r"""Adam whose second moment never falls.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \hat v &\leftarrow \max(\hat v, v) \\
        w &\leftarrow w - \eta_t \frac{m / (1 - \beta_1^t)}{\sqrt{\hat v / (1 - \beta_2^t)} + \epsilon}

    Variant: the maximum is over the biased moments and is debiased afterwards, as in PyTorch,
    ``Adam(amsgrad=True)``; optax takes the maximum of the debiased moments. The paper debiases nothing
    and has no epsilon.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.001
        Number in [0, inf), schedule, or function of the step.
    beta1, beta2 : float, Schedule or callable, default=0.9 and 0.999
        Decay of the moments, in [0, 1).
    epsilon : float, default=1e-8
        Keeps the denominator from 0, in (0, inf).

    References
    ----------
    S. Reddi, S. Kale, S. Kumar, On the Convergence of Adam and Beyond, 2018,
    https://arxiv.org/abs/1904.09237, Algorithm 2
    """

    learning_rate: Any = 0.001
    beta1: Any = number(0.9, "[0, 1)", scheduled=True)
    beta2: Any = number(0.999, "[0, 1)", scheduled=True)
    epsilon: float = number(1e-8, "(0, inf)")

    state = ("m", "v", "v_max")
    aliases: ClassVar[dict[str, str]] = {"eps": "epsilon"}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        m, v = _moments(self.beta1, self.beta2, s, g)
        v_max = op.Max(s.v_max, v)
        step, epsilon = corrected_step(op, lr, t, self.beta1, self.beta2, self.epsilon)
        return w - step * (m / (op.Sqrt(v_max) + epsilon)), {"m": m, "v": v, "v_max": v_max}


@register
@dataclass(repr=False, eq=False)
class RAdam(BaseLearningRate):
    r"""Adam with a rectified step, and without denominator while too few gradients were seen for one.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \rho &= \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \quad
        \rho_\infty = \frac{2}{1 - \beta_2} - 1 \\
        w &\leftarrow w - \eta_t \frac{m}{1 - \beta_1^t} \cdot \begin{cases}
        \sqrt{\frac{(\rho - 4)(\rho - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho}}
        \frac{\sqrt{1 - \beta_2^t}}{\sqrt v + \epsilon} & \text{if } \rho > 5 \\
        1 & \text{else} \end{cases}

    Variant: rectified if :math:`\rho > 5`, and epsilon added to the root of the biased moment, as in
    PyTorch; optax rectifies if :math:`\rho \ge 5` and adds epsilon to the root of the debiased moment.
    The paper rectifies if :math:`\rho > 4` and has no epsilon.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.001
        Number in [0, inf), schedule, or function of the step.
    beta1, beta2 : float, Schedule or callable, default=0.9 and 0.999
        Decay of the moments, in [0, 1); with `beta2` up to 2/3 no step is rectified.
    epsilon : float, default=1e-8
        Keeps the denominator from 0, in (0, inf).

    References
    ----------
    L. Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020,
    https://arxiv.org/abs/1908.03265, Algorithm 2
    """

    learning_rate: Any = 0.001
    beta1: Any = number(0.9, "[0, 1)", scheduled=True)
    beta2: Any = number(0.999, "[0, 1)", scheduled=True)
    epsilon: float = number(1e-8, "(0, inf)")

    state = ("m", "v")
    aliases: ClassVar[dict[str, str]] = {"eps": "epsilon"}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        m, v = _moments(self.beta1, self.beta2, s, g)
        factor, rectified = _rectification(op, self.beta2, t)
        # Which of the two it is: 0 or 1, so that the denominator is either root or one. Not written as
        # 1 + (epsilon - 1) on, which is 0 in single precision.
        on = scalar(op, rectified, w.dtype)
        shift = op.once(("shift", on.value, self.epsilon), lambda: (1 - on) + self.epsilon * on)
        first, rate = debias(op, self.beta1, t, like=w), scalar(op, factor, w.dtype)
        step = op.once(("radam step", lr.value, first.value, rate.value), lambda: lr * rate / first)
        return w - step * (m / (on * op.Sqrt(v) + shift)), {"m": m, "v": v}


def _rectification(op: Builder, beta2: Any, t: Var) -> tuple[Var, Var]:
    """Factor of RAdam's step, and 1 where it is a rectified one, else 0.

    Scalars in double precision, since they come from differences of nearly equal numbers.
    """
    key = ("radam", once_key(beta2), t.value)
    beta2, t = scalar(op, beta2, _DOUBLE), scalar(op, t, _DOUBLE)
    power = op.once((*key, "power"), lambda: beta2**t)
    rho_inf = op.once((*key, "rho_inf"), lambda: 2 / (1 - beta2) - 1)
    rho = op.once((*key, "rho"), lambda: rho_inf - 2 * t * power / (1 - power))
    rectified = op.once((*key, "rectified"), lambda: op.Cast(rho > 5.0, to=_DOUBLE))

    def factor() -> Var:
        # Where nothing is rectified, numbers with which the formula has a value as well.
        r, r_inf = op.Max(rho, 5.0), op.Max(rho_inf, 5.0)
        square = (r - 4) * (r - 2) * r_inf / ((r_inf - 4) * (r_inf - 2) * r)
        return 1 + rectified * (op.Sqrt(square * (1 - power)) - 1)

    return op.once((*key, "factor"), factor), rectified


@register
@dataclass(repr=False, eq=False)
class Nadam(BaseLearningRate):
    r"""Adam with Nesterov's momentum, the momentum warming up.

    .. math::

        \mu_t &= \beta_1 (1 - \tfrac12 0.96^{t \psi}) \qquad \Pi \leftarrow \Pi \mu_t \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \eta_t \frac{\frac{\mu_{t+1} m}{1 - \Pi \mu_{t+1}} + \frac{(1 - \mu_t) g}{1 - \Pi}}
        {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    :math:`\Pi`, the product of all momenta so far, starts at 1. The gradient is clipped once decay is in
    it.

    Variant: as in PyTorch, where :math:`\psi` is ``momentum_decay``. MXNet is the same but for the product,
    which there is shared by all weights and grows with each of them. Keras has :math:`\psi = 1`; optax
    has no :math:`\mu_t` but :math:`\beta_1` itself.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.001
        Number in [0, inf), schedule, or function of the step.
    beta1, beta2 : float, Schedule or callable, default=0.9 and 0.999
        Decay of the moments, in [0, 1).
    epsilon : float, default=1e-8
        Keeps the denominator from 0, in (0, inf).
    schedule_decay : float, default=0.004
        :math:`\psi`, in [0, inf): how fast the momentum warms up.

    References
    ----------
    T. Dozat, Incorporating Nesterov Momentum into Adam, 2016,
    https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
    """

    learning_rate: Any = 0.001
    beta1: Any = number(0.9, "[0, 1)", scheduled=True)
    beta2: Any = number(0.999, "[0, 1)", scheduled=True)
    epsilon: float = number(1e-8, "(0, inf)")
    schedule_decay: float = number(0.004, "[0, inf)")

    state = ("m", "v", "product")
    order: ClassVar[tuple[str, ...]] = ("rescale", "decay", "clip")
    aliases: ClassVar[dict[str, str]] = {"eps": "epsilon", "momentum_decay": "schedule_decay"}

    def init_state(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        # A number per weight: double precision costs nothing.
        return {**super().init_state(weight), "product": np.ones((), np.float64)}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        m, v = _moments(self.beta1, self.beta2, s, g)
        mu, ahead = self._momentum(op, t, 0), self._momentum(op, t, 1)
        product = s.product * mu
        second = debias(op, self.beta2, t, like=w)
        root = op.once(("root", second.value), lambda: op.Sqrt(second))
        step = op.once(("times", lr.value, root.value), lambda: lr * root)
        of_m = step * scalar(op, ahead / (1 - product * ahead), w.dtype)
        of_g = step * scalar(op, complement(mu) / (1 - product), w.dtype)
        epsilon = op.once(("times", root.value, self.epsilon), lambda: self.epsilon * root)
        new = w - (of_m * m + of_g * g) / (op.Sqrt(v) + epsilon)
        return new, {"m": m, "v": v, "product": product}

    def _momentum(self, op: Builder, t: Var, ahead: int) -> Var:
        """The momentum of this step, or of one ahead of it, in double precision."""
        decay, step = 0.96**self.schedule_decay, scalar(op, t, _DOUBLE)

        def emit() -> Var:
            power = op.Pow(op.const(decay, _DOUBLE), step + ahead if ahead else step)
            return scalar(op, self.beta1, _DOUBLE) * (1 - 0.5 * power)

        return op.once(("nadam", once_key(self.beta1), decay, t.value, ahead), emit)


@register
@dataclass(repr=False, eq=False)
class Adamax(BaseLearningRate):
    r"""Adam with the infinity norm: divided by the largest gradient of late.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        u &\leftarrow \max(\beta_2 u, |g|) \\
        w &\leftarrow w - \frac{\eta_t}{1 - \beta_1^t} \frac{m}{u + \epsilon}

    The gradient is clipped once decay is in it.

    Variant: epsilon is added to the denominator, as in Keras; PyTorch and optax have
    :math:`u \leftarrow \max(\beta_2 u, |g| + \epsilon)`. The paper and MXNet have none.

    Parameters
    ----------
    learning_rate : float, Schedule or callable, default=0.002
        Number in [0, inf), schedule, or function of the step.
    beta1, beta2 : float, Schedule or callable, default=0.9 and 0.999
        Decay of the moment and of the norm, in [0, 1).
    epsilon : float, default=1e-8
        Keeps the denominator from 0, in (0, inf).

    References
    ----------
    D. Kingma, J. Ba, Adam: A Method for Stochastic Optimization, 2015, https://arxiv.org/abs/1412.6980,
    section 7.1, Algorithm 2
    """

    learning_rate: Any = 0.002
    beta1: Any = number(0.9, "[0, 1)", scheduled=True)
    beta2: Any = number(0.999, "[0, 1)", scheduled=True)
    epsilon: float = number(1e-8, "(0, inf)")

    state = ("m", "u")
    order: ClassVar[tuple[str, ...]] = ("rescale", "decay", "clip")
    aliases: ClassVar[dict[str, str]] = {"eps": "epsilon"}

    def update(self, op: Builder, w: Var, g: Var, s: State, lr: Var, t: Var) -> tuple[Var, dict[str, Var]]:
        m = moving_average(self.beta1, s.m, g)
        u = op.Max(self.beta2 * s.u, op.Abs(g))
        first = debias(op, self.beta1, t, like=w)
        step = op.once(("adamax", lr.value, first.value), lambda: lr / first)
        return w - step * (m / (u + self.epsilon)), {"m": m, "u": u}

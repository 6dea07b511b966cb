"""Losses for regression."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.graph.building.builder import Builder, Var

from .base import Loss, register_loss
from .rows import is_positive, log_extended, smallest

__all__ = [
    "AbsoluteLearningLoss",
    "ElasticLearningLoss",
    "HuberLearningLoss",
    "LogCoshLearningLoss",
    "PoissonLearningLoss",
    "QuantileLearningLoss",
    "SmoothL1LearningLoss",
    "SquareLearningLoss",
]


@register_loss("square_error", "squared_error", "square", "mse")
class SquareLearningLoss(Loss):
    r"""Squared error :math:`\frac{1}{2} \sum w (p - y)^2`, gradient :math:`w (p - y)`.

    Half the squared error, as in scikit-learn's ``SGDRegressor`` and ``MLPRegressor``; PyTorch's
    ``MSELoss`` has no half and is a mean.

    Examples
    --------
    >>> import numpy as np
    >>> loss, gradient = SquareLearningLoss().loss_gradient(
    ...     "cpu", np.array([1, 2], dtype=np.float32), np.array([2, 4], dtype=np.float32))
    >>> loss.numpy().tolist(), gradient.numpy().tolist()
    (2.5, [1.0, 2.0])
    """

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        d = predicted - expected
        return d * (0.5 * d), d

    def total(self, op: Builder, losses: Var, gradient: Var) -> Var:
        return 0.5 * op.ReduceSumSquare(gradient, keepdims=0)


@register_loss("absolute_error", "absolute", "mae")
class AbsoluteLearningLoss(Loss):
    r"""Absolute error :math:`\sum w |p - y|`, gradient :math:`w\,sign(p - y)`, 0 where p = y."""

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        d = predicted - expected
        return op.Abs(d), op.Sign(d)


@register_loss("elastic_error", "elastic")
class ElasticLearningLoss(Loss):
    r"""Absolute and squared error: :math:`\sum w (l_1 |p - y| + l_2 (p - y)^2)`.

    The gradient is :math:`w (l_1 sign(p - y) + 2 l_2 (p - y))`. The square has no half here.

    Parameters
    ----------
    l1_weight : float, default=0.5
        Factor :math:`l_1 \ge 0` of the absolute error.
    l2_weight : float, default=0.5
        Factor :math:`l_2 \ge 0` of the squared error.
    """

    def __init__(self, l1_weight: float = 0.5, l2_weight: float = 0.5) -> None:
        self.l1_weight = l1_weight
        self.l2_weight = l2_weight

    def check(self) -> None:
        """Check the parameters."""
        for name in ("l1_weight", "l2_weight"):
            check_number(name, getattr(self, name), "[0, inf)")

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        d = predicted - expected
        square = self.l2_weight * d
        both = self.l1_weight * op.Sign(d) + square
        return d * both, both + square


@register_loss("huber", "huber_error")
class HuberLearningLoss(Loss):
    r"""Huber's loss: a parabola near 0, a line beyond.

    With d = p - y: :math:`\frac{1}{2} d^2` if :math:`|d| \le δ`, else :math:`δ (|d| - δ / 2)`. The gradient
    is d clipped to [-δ, δ]. As PyTorch's ``HuberLoss`` and scikit-learn's gradient boosting.

    Parameters
    ----------
    delta : float, default=1.0
        Where the parabola becomes a line, :math:`δ > 0`, in units of y.

    References
    ----------
    P. J. Huber, Robust Estimation of a Location Parameter, Annals of Mathematical Statistics 35,
    1964, https://doi.org/10.1214/aoms/1177703732
    """

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = delta

    def check(self) -> None:
        """Check the parameters."""
        check_number("delta", self.delta, "(0, inf)")

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        d = predicted - expected
        g = op.Clip(d, -self.delta, self.delta)
        # g (d - g/2) is d²/2 where g = d and δ(|d| - δ/2) where g = ±δ.
        return g * (d - 0.5 * g), g


@register_loss("smooth_l1", "smooth_l1_loss")
class SmoothL1LearningLoss(Loss):
    r"""Huber's loss over its own bend: a parabola of curvature :math:`1 / β` near 0, lines of slope 1 beyond.

    With d = p - y: :math:`d^2 / (2 β)` if :math:`|d| < β`, else :math:`|d| - β / 2`, summed over columns. As
    PyTorch's ``SmoothL1Loss`` (with ``reduction='sum'``); :class:`HuberLearningLoss` is β times this.

    Parameters
    ----------
    beta : float, default=1.0
        Where the parabola becomes a line, :math:`β \ge 0`, in units of y. With 0 it is the absolute error.

    References
    ----------
    R. Girshick, Fast R-CNN, ICCV 2015, section 2.3, https://arxiv.org/abs/1504.08083
    """

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

    def check(self) -> None:
        """Check the parameters."""
        check_number("beta", self.beta, "[0, inf)")

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        d = predicted - expected
        if not self.beta:
            return op.Abs(d), op.Sign(d)
        g = op.Clip(d / self.beta, -1.0, 1.0)
        # g (d - βg/2) is d²/(2β) where g = d/β and |d| - β/2 where g = ±1.
        return g * (d - (0.5 * self.beta) * g), g


@register_loss("log_cosh", "logcosh")
class LogCoshLearningLoss(Loss):
    r"""Logarithm of the hyperbolic cosine of the error: :math:`\sum w \log \cosh(p - y)`.

    Nearly :math:`d^2 / 2` for small errors d and :math:`|d| - \log 2` for large ones, with the gradient
    :math:`w \tanh(p - y)`. Nothing overflows, and small errors keep their digits. As Keras's ``LogCosh``,
    which is a mean.
    """

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        d = predicted - expected
        size = op.Abs(d)
        far = size + (op.Log(1 + op.Exp(-2 * size)) - float(np.log(2)))
        # Below a tenth what cancels there is taken from the series, whose next term is less than 1e-15.
        small = op.Min(size, 0.1)
        s = small * small
        near = s * (1 / 2 + s * (-1 / 12 + s * (1 / 45 + s * (-17 / 2520 + s * (31 / 14175)))))
        return op.Where(is_positive(op, size - 0.1), far, near), op.Tanh(d)


@register_loss("quantile", "quantile_error", "pinball")
class QuantileLearningLoss(Loss):
    r"""Pinball loss, which is least for a quantile of y.

    :math:`q (y - p)` if :math:`p \le y`, else :math:`(1 - q)(p - y)`. At p = y the
    gradient is -q, as in scikit-learn.

    Parameters
    ----------
    quantile : float, default=0.5
        The quantile q to predict, in (0, 1); 0.5 is the median, and half the absolute error.

    References
    ----------
    R. Koenker and G. Bassett, Regression Quantiles, Econometrica 46, 1978,
    https://doi.org/10.2307/1913643
    """

    def __init__(self, quantile: float = 0.5) -> None:
        self.quantile = quantile

    def check(self) -> None:
        """Check the parameters."""
        check_number("quantile", self.quantile, "(0, 1)")

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        d = predicted - expected
        above, below = (op.const(v, like=d) for v in (1 - self.quantile, -self.quantile))
        slope = op.Where(is_positive(op, d), above, below)
        return slope * d, slope


@register_loss("poisson", "poisson_nll", "poisson_deviance")
class PoissonLearningLoss(Loss):
    r"""Poisson regression: negative log-likelihood of counts, half the deviance up to a constant.

    With ``link='log'`` the prediction z is the logarithm of the mean: :math:`e^z - y z`, gradient
    :math:`e^z - y`: scikit-learn's ``HalfPoissonLoss`` (``PoissonRegressor``) and PyTorch's
    ``PoissonNLLLoss``. With ``link='identity'`` it is the mean m itself, as for a model that ends in
    Exp (scikit-learn's ``PoissonRegressor`` and ``MLPRegressor(loss='poisson')``):
    :math:`m - y \log m`, gradient :math:`1 - y / m`.

    Parameters
    ----------
    link : {'log', 'identity'}, default='log'
        What the prediction is.
    deviance : bool, default=False
        Add the constant :math:`y \log y - y`, so that twice the loss is the Poisson deviance and
        a perfect prediction has loss 0. The gradient is the same.
    eps : float, optional
        With ``link='identity'``: below `eps` the logarithm is continued by its tangent. None is the
        machine epsilon of the dtype.

    Notes
    -----
    :math:`e^z` is infinite above z = 88.7 in float32 (11.1 in float16, 709.8 in float64).
    """

    def __init__(self, link: str = "log", deviance: bool = False, eps: float | None = None) -> None:
        self.link = link
        self.deviance = deviance
        self.eps = eps

    @property
    def not_behind(self) -> Mapping[str, str]:  # type: ignore[override]
        """What ends in Exp or Softplus is the mean, not its logarithm."""
        return dict.fromkeys(("Exp", "Softplus"), "link='identity'") if self.link == "log" else {}

    def check(self) -> None:
        """Check the parameters."""
        if self.link not in ("log", "identity"):
            raise InvalidParameterError(f"link must be 'log' or 'identity', not {self.link!r}.")
        check_eps(self.eps)

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Counts are not negative."""
        if expected.size and not np.all(expected >= 0):
            raise InvalidDataError(
                f"The Poisson loss takes counts >= 0; the smallest expected value is {expected.min()}."
            )

    def terms(self, op: Builder, predicted: Var, expected: Var) -> tuple[Var, Var]:
        if self.link == "log":
            mean = op.Exp(predicted)
            losses, gradient = mean - expected * predicted, mean - expected
        else:
            log, slope = log_extended(op, predicted, smallest(self.eps, predicted.dtype))
            losses, gradient = predicted - expected * log, 1 - expected * slope
        if self.deviance:
            # 0 log 0 = 0: the logarithm only has to be finite there.
            tiny = float(np.finfo((expected.dtype or ir.DataType.FLOAT).numpy()).tiny)
            losses = losses + expected * (op.Log(op.Max(expected, tiny)) - 1)
        return losses, gradient


def check_eps(eps: float | None) -> None:
    """Check an `eps`."""
    if eps is not None:
        check_number("eps", eps, "(0, 0.5)")

"""A schedule that watches the loss: reduce the rate on a plateau."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcustom._parameters import choice, integer, number

from .schedules import Schedule, check_loss, memory

__all__ = ["ReduceOnPlateau"]


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    r"""Multiply the rate when the loss has stopped improving: PyTorch's ``ReduceLROnPlateau``.

    A loss :math:`\ell` improves on the best one :math:`\ell^*` if :math:`\ell < \ell^* (1 - \theta)`,
    or :math:`\ell < \ell^* - \theta` with an absolute threshold; where more is better, if
    :math:`\ell > \ell^* (1 + \theta)` or :math:`\ell > \ell^* + \theta`. After more than `patience` epochs in
    a row that didn't, :math:`\eta \leftarrow \max(f \eta, \eta_{min})`, and the `cooldown` epochs that
    follow are not held against the rate.

    Parameters
    ----------
    eta0 : float, default=0.01
        First rate, in [0, inf).
    factor : float, default=0.1
        Factor :math:`f`, in [0, 1).
    patience : int, default=10
        Epochs without improvement that are put up with, in [0, inf).
    threshold : float, default=1e-4
        Smallest improvement that counts :math:`\theta`, in [0, inf).
    threshold_mode : {'rel', 'abs'}, default='rel'
        Whether the threshold is relative to the best value.
    cooldown : int, default=0
        Epochs after a reduction that don't count, in [0, inf).
    min_rate : float, default=0.0
        Smallest rate :math:`\eta_{min}`, in [0, inf).
    eps : float, default=1e-8
        A reduction by no more than this is left out, in [0, inf).
    mode : {'min', 'max'}, default='min'
        Whether less or more is better.

    Examples
    --------
    >>> schedule, rates = ReduceOnPlateau(1.0, factor=0.5, patience=1), []
    >>> for epoch, loss in enumerate([3.0, 2.0, 2.0, 2.0, 1.0], start=1):
    ...     rates.append(schedule.value(t=1, epoch=epoch))
    ...     stop = schedule.report_epoch(loss)
    >>> rates
    [1.0, 1.0, 1.0, 1.0, 0.5]
    """

    eta0: float = number(0.01, "[0, inf)")
    factor: float = number(0.1, "[0, 1)")
    patience: int = integer(10, "[0, inf)")
    threshold: float = number(1e-4, "[0, inf)")
    threshold_mode: str = choice("rel", "abs")
    cooldown: int = integer(0, "[0, inf)")
    min_rate: float = number(0.0, "[0, inf)")
    eps: float = number(1e-8, "[0, inf)")
    mode: str = choice("min", "max")
    _rate: float | None = memory(None, "[0, inf)")
    _best: float | None = memory(None, "(-inf, inf)")
    _bad_epochs: int = memory(0, "[0, inf)", integral=True)
    _cooling: int = memory(0, "[0, inf)", integral=True)

    def value(self, t: int, epoch: int) -> float:
        return self.eta0 if self._rate is None else self._rate

    def report_epoch(self, loss: float) -> bool:
        loss = check_loss(loss)
        rate, best, bad, cooling = self._rate, self._best, self._bad_epochs + 1, self._cooling
        if self._improves(loss):
            best, bad = loss, 0
        if cooling:
            cooling, bad = cooling - 1, 0
        if bad > self.patience:
            rate, bad, cooling = self._reduced(), 0, self.cooldown
        self._remember(rate=rate, best=best, bad_epochs=bad, cooling=cooling)
        return False

    def _improves(self, loss: float) -> bool:
        if self._best is None:
            return True
        sign = 1.0 if self.mode == "max" else -1.0
        bound = self._best + sign * self.threshold
        if self.threshold_mode == "rel":
            bound = self._best * (1 + sign * self.threshold)
        return loss > bound if self.mode == "max" else loss < bound

    def _reduced(self) -> float:
        rate = self.value(0, 0)
        lower = max(rate * self.factor, self.min_rate)
        return lower if rate - lower > self.eps else rate

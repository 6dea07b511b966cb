"""The update rule that an estimator's ``optimizer`` and ``learning_rate`` mean together."""

from __future__ import annotations

import copy
import numbers
from typing import Any

from onnxcustom.exceptions import InvalidParameterError

from .base import BaseLearningRate, rate_named
from .registry import create
from .sgd import LearningRateSGD

__all__ = ["select_optimizer"]

# Schedules by scikit-learn's names.
_NAMES = ("adaptive", "constant", "invscaling", "optimal")


def select_optimizer(optimizer: Any = None, learning_rate: Any = None) -> BaseLearningRate:
    """The update rule meant by an estimator's ``optimizer`` and ``learning_rate``.

    Parameters
    ----------
    optimizer : str, BaseLearningRate or class, optional
        Rule or name of one, perhaps with options as in ``'adam:beta1=0.8'``; ``'sgd'`` is
        :class:`~onnxcustom.optim.SGD`.
    learning_rate : float, Schedule, callable, str or BaseLearningRate, optional
        Overrides the rule's own; None keeps it. Of a rule without state, such as
        :class:`~onnxcustom.optim.LearningRateSGD`, the schedule is taken. The names ``'constant'``,
        ``'invscaling'``, ``'adaptive'`` and ``'optimal'`` are schedules of that rule that begin at the
        rate of `optimizer`. Without `optimizer`, it is what :meth:`BaseLearningRate.select` takes, or one
        of these names for plain descent.

    Returns
    -------
    BaseLearningRate
        A rule of the caller's own: instances given are copied, with their clock.

    Raises
    ------
    UnknownNameError
        No such rule.
    ValueError
        A learning rate that cannot be one.

    Examples
    --------
    >>> from onnxcustom.optim import LearningRateSGD
    >>> select_optimizer("adam", 0.1)
    Adam(learning_rate=0.1, beta1=0.9, beta2=0.999, epsilon=1e-08, lazy_update=True)
    >>> select_optimizer("adam", LearningRateSGD(0.1)).learning_rate
    InverseScaling(eta0=0.1, power_t=0.25)
    >>> select_optimizer("adam", "invscaling").learning_rate
    InverseScaling(eta0=0.001, power_t=0.25)
    """
    named = isinstance(learning_rate, str) and learning_rate in _NAMES
    if optimizer is None:
        return _by_rate(learning_rate)
    if isinstance(optimizer, BaseLearningRate):
        rule = copy.deepcopy(optimizer)
    elif isinstance(optimizer, type) and issubclass(optimizer, BaseLearningRate):
        rule = optimizer()
    else:
        rule = create(optimizer)
    if named:
        learning_rate = LearningRateSGD(_base_rate(rule, learning_rate), learning_rate=learning_rate)
    return rule if learning_rate is None else rule.set_learning_rate(learning_rate)


def _by_rate(learning_rate: Any) -> BaseLearningRate:
    """The rule that a learning rate means alone."""
    if isinstance(learning_rate, str):
        return (
            LearningRateSGD(learning_rate=learning_rate)
            if learning_rate in _NAMES
            else rate_named(learning_rate)
        )
    return copy.deepcopy(create("sgd") if learning_rate is None else BaseLearningRate.select(learning_rate))


def _base_rate(rule: BaseLearningRate, name: str) -> float:
    """The number that is the rate of a rule, or what its schedule begins with."""
    rate = rule.learning_rate
    if isinstance(rate, str):
        rate = getattr(rule, "eta0", rate)
    if not isinstance(rate, numbers.Real):
        raise InvalidParameterError(
            f"learning_rate={name!r} begins at the rate of the optimizer, whose own is {rate!r}: give that "
            "one alone, or an optimizer whose learning_rate is a number."
        )
    return float(rate)

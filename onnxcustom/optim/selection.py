"""The update rule that an estimator's ``optimizer`` and ``learning_rate`` mean together."""

from __future__ import annotations

import copy
from typing import Any

from .base import BaseLearningRate
from .registry import create

__all__ = ["select_optimizer"]


def select_optimizer(optimizer: Any = None, learning_rate: Any = None) -> BaseLearningRate:
    """The update rule meant by an estimator's ``optimizer`` and ``learning_rate``.

    Parameters
    ----------
    optimizer : str, BaseLearningRate or class, optional
        Rule or name of one, where ``'sgd'`` is :class:`~onnxcustom.optim.SGD`.
    learning_rate : float, Schedule, callable, str or BaseLearningRate, optional
        Overrides the rule's own; None keeps it. Of a rule without state, such as
        :class:`~onnxcustom.optim.LearningRateSGD`, the schedule is taken. Without `optimizer`, it is
        what :meth:`BaseLearningRate.select` takes.

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
    """
    if optimizer is None:
        chosen = create("sgd") if learning_rate is None else BaseLearningRate.select(learning_rate)
        return copy.deepcopy(chosen)
    if isinstance(optimizer, BaseLearningRate):
        rule = copy.deepcopy(optimizer)
    elif isinstance(optimizer, type) and issubclass(optimizer, BaseLearningRate):
        rule = optimizer()
    else:
        rule = create(optimizer)
    return rule if learning_rate is None else rule.set_learning_rate(learning_rate)

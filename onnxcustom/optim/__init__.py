"""Update rules and learning rate schedules: each rule is one ONNX function.

``create("adam", learning_rate=0.01)`` makes a rule by name; :func:`select_optimizer` understands what
estimators take.
"""

from __future__ import annotations

from onnxcustom._parameters import flag, integer, number

from .adam import Adam
from .base import BaseLearningRate, UnknownOptionError, create, register, rule_names
from .function import State
from .schedules import Adaptive, Fixed, Function, InverseScaling, Optimal, Schedule
from .selection import select_optimizer
from .sgd import NAG, SGD, LearningRateSGD, LearningRateSGDNesterov

#: What most libraries call the base of their update rules.
Optimizer = BaseLearningRate

__all__ = [
    "NAG",
    "SGD",
    "Adam",
    "Adaptive",
    "BaseLearningRate",
    "Fixed",
    "Function",
    "InverseScaling",
    "LearningRateSGD",
    "LearningRateSGDNesterov",
    "Optimal",
    "Optimizer",
    "Schedule",
    "State",
    "UnknownOptionError",
    "create",
    "flag",
    "integer",
    "number",
    "register",
    "rule_names",
    "select_optimizer",
]

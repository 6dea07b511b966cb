"""Update rules and learning rate schedules: each rule is one ONNX function.

``create("adam", learning_rate=0.01)`` makes a rule by name; :func:`select_optimizer` understands what
estimators take.
"""

from __future__ import annotations

from onnxcustom._parameters import choice, flag, integer, number, optional

from .adam import Adam, Adamax, AdamW, AMSGrad, Nadam, RAdam
from .adaptive import AdaDelta, AdaGrad, RMSProp
from .annealing import Cosine, CosineRestarts, MultiStep, OneCycle, Polynomial, Step, Warmup
from .base import BaseLearningRate
from .delay import DCASGD
from .follow_the_leader import FTML, Ftrl
from .function import State, onnx_function, update_model
from .langevin import SGLD
from .large_batch import LAMB, LARS, LBSGD
from .optimization_state import OptimizationState, get_learning_rate, get_momentum, normalized_gradient
from .options import SharedOptions
from .plateau import ReduceOnPlateau
from .registry import UnknownOptionError, create, register, rule_names
from .schedules import (
    Adaptive,
    Exp,
    Fixed,
    Function,
    Inv,
    InverseScaling,
    Null,
    Optimal,
    Schedule,
    with_rate,
)
from .selection import select_optimizer
from .sgd import NAG, SGD, LearningRateSGD, LearningRateSGDNesterov, Test, ccSGD
from .sign import Lion, SignSGD, Signum
from .updater import Updater, get_updater

#: What most libraries call the base of their update rules.
Optimizer = BaseLearningRate

__all__ = [
    "DCASGD",
    "FTML",
    "LAMB",
    "LARS",
    "LBSGD",
    "NAG",
    "SGD",
    "SGLD",
    "AMSGrad",
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adaptive",
    "BaseLearningRate",
    "Cosine",
    "CosineRestarts",
    "Exp",
    "Fixed",
    "Ftrl",
    "Function",
    "Inv",
    "InverseScaling",
    "LearningRateSGD",
    "LearningRateSGDNesterov",
    "Lion",
    "MultiStep",
    "Nadam",
    "Null",
    "OneCycle",
    "Optimal",
    "OptimizationState",
    "Optimizer",
    "Polynomial",
    "RAdam",
    "RMSProp",
    "ReduceOnPlateau",
    "Schedule",
    "SharedOptions",
    "SignSGD",
    "Signum",
    "State",
    "Step",
    "Test",
    "UnknownOptionError",
    "Updater",
    "Warmup",
    "ccSGD",
    "choice",
    "create",
    "flag",
    "get_learning_rate",
    "get_momentum",
    "get_updater",
    "integer",
    "normalized_gradient",
    "number",
    "onnx_function",
    "optional",
    "register",
    "rule_names",
    "select_optimizer",
    "update_model",
    "with_rate",
]

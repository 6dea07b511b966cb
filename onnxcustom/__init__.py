"""Train ONNX models with onnxruntime: an inference model goes in, a trained inference model comes out.

Names are imported on first use, so that ``import onnxcustom`` is quick and works without a runtime.

Examples
--------
>>> import onnxcustom
>>> "OnnxClassifier" in dir(onnxcustom)
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnxcustom._hooks import ask_for_types
from onnxcustom._lazy import import_submodule, submodule_names
from onnxcustom._version import __version__
from onnxcustom.exceptions import (
    CallOrderError,
    CheckpointError,
    ConvergenceError,
    ConvergenceWarning,
    DifferentiationError,
    EvaluationError,
    GradientNotImplementedError,
    InvalidDataError,
    InvalidModelError,
    InvalidParameterError,
    MissingPackageError,
    MissingRuntimeError,
    NonDifferentiableError,
    NoTrainableWeightError,
    OnnxCustomError,
    ProviderError,
    RowsWarning,
    UnknownNameError,
    UnknownOperatorError,
)

if TYPE_CHECKING:
    from onnxcustom.gradient import gradient_graph, gradient_report
    from onnxcustom.graph import load, replace_weights, save, weights
    from onnxcustom.step.training_step import TrainingStep
    from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor
    from onnxcustom.training.ortgradient import OrtGradientForwardBackward

__all__ = [
    "CallOrderError",
    "CheckpointError",
    "ConvergenceError",
    "ConvergenceWarning",
    "DifferentiationError",
    "EvaluationError",
    "GradientNotImplementedError",
    "InvalidDataError",
    "InvalidModelError",
    "InvalidParameterError",
    "MissingPackageError",
    "MissingRuntimeError",
    "NoTrainableWeightError",
    "NonDifferentiableError",
    "OnnxClassifier",
    "OnnxCustomError",
    "OnnxRegressor",
    "OrtGradientForwardBackward",
    "ProviderError",
    "RowsWarning",
    "TrainingStep",
    "UnknownNameError",
    "UnknownOperatorError",
    "__version__",
    "gradient_graph",
    "gradient_report",
    "load",
    "replace_weights",
    "save",
    "weights",
]

# The imports under TYPE_CHECKING, done one name at a time.
_LAZY = {
    "OnnxClassifier": "training.estimators",
    "OnnxRegressor": "training.estimators",
    "OrtGradientForwardBackward": "training.ortgradient",
    "TrainingStep": "step.training_step",
    "gradient_graph": "gradient",
    "gradient_report": "gradient",
    "load": "graph",
    "replace_weights": "graph",
    "save": "graph",
    "weights": "graph",
}


def _output_types(model: Any) -> dict[str, Any]:
    """What a model's outputs are, of onnxruntime."""
    from onnxcustom.runtime.sessions import output_types

    return output_types(model)


ask_for_types(_output_types)


def __getattr__(name: str) -> Any:
    """Import a public name or a module the first time it is asked for [PEP 562]."""
    if name not in _LAZY:
        return import_submodule(__name__, name)
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *submodule_names(__path__)})

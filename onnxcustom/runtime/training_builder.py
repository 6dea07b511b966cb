"""Thin wrappers of the graph builder that only onnxruntime-training has.

``onnxruntime.training`` is never imported: it needs torch. The builder lives in the C extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxcustom.exceptions import DifferentiationError, MissingRuntimeError

from .devices import require_runtime

__all__ = ["build_gradient_model", "training_available"]


def _pybind() -> Any:
    require_runtime()
    from onnxruntime.capi import _pybind_state

    return _pybind_state


def training_available() -> bool:
    """Whether the installed onnxruntime is a training build.

    Returns
    -------
    bool
        False as well when no onnxruntime is installed.
    """
    try:
        return hasattr(_pybind(), "OrtModuleGraphBuilder")
    except MissingRuntimeError:
        return False


def build_gradient_model(model: bytes, inputs: Sequence[str], weights: Sequence[str]) -> bytes:
    """Let onnxruntime-training differentiate a model.

    The builder **aborts the process** on graphs it was not made for (control flow, operators without
    gradient): only :mod:`onnxcustom.gradient.ort` calls it, after it has looked at every node.

    Parameters
    ----------
    model : bytes
        Serialized model; its weights are initializers.
    inputs, weights : sequence of str
        Names of the inputs and the initializers to differentiate with respect to, all of them
        reachable from the outputs.

    Returns
    -------
    bytes
        Serialized training model, with the weights as inputs and a ``YieldOp`` node that takes the
        outputs of the model and returns the gradients coming in.

    Raises
    ------
    MissingRuntimeError
        Without a training build.
    DifferentiationError
        If the builder refuses the model.
    """
    pybind = _pybind()
    if not hasattr(pybind, "OrtModuleGraphBuilder"):
        raise MissingRuntimeError(
            "The installed onnxruntime is not a training build; the engine 'ort' needs "
            "onnxruntime-training-cpu 1.19.2: 'python -m pip install \"onnxcustom[cpu]\"', "
            "on Python 3.10 to 3.12."
        )
    config = pybind.OrtModuleGraphBuilderConfiguration()
    config.initializer_names = list(weights)
    config.initializer_names_to_train = list(weights)
    config.input_names_require_grad = list(inputs)
    config.build_gradient_graph = True
    config.loglevel = pybind.Severity.ERROR
    builder = pybind.OrtModuleGraphBuilder()
    transformers = pybind.TrainingGraphTransformerConfiguration()
    # Approximations and recomputation would change the numbers or the time behind the user's back.
    transformers.enable_gelu_approximation = False
    try:
        builder.initialize(model, config)
        builder.build(transformers)
        return builder.get_gradient_model()
    except Exception as exc:
        # pybind translates statuses to RuntimeError, IndexError and classes of its own.
        raise DifferentiationError(f"onnxruntime-training cannot differentiate the model: {exc}") from exc

"""The whole error hierarchy: every exception the library raises on purpose.

Each class also derives from the built-in exception that users of scikit-learn and onnxruntime
would expect in its place, so ``except ValueError`` goes on working.
"""

from __future__ import annotations

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
    "OnnxCustomError",
    "ProviderError",
    "RowsWarning",
    "UnknownNameError",
    "UnknownOperatorError",
]


class OnnxCustomError(Exception):
    """Base of every error of this library."""


class InvalidModelError(OnnxCustomError, ValueError):
    """The model is not ONNX, is truncated, or breaks the rules of the ONNX specification."""


class NoTrainableWeightError(OnnxCustomError, RuntimeError):
    """The model holds no weight that could be trained."""


class UnknownNameError(OnnxCustomError, ValueError):
    """A weight, input, output, loss, optimizer or engine of that name does not exist.

    The message lists the names that do.
    """


class InvalidDataError(OnnxCustomError, ValueError):
    """Training data that does not fit the model: shape, dtype, length or values."""


class InvalidParameterError(OnnxCustomError, ValueError, TypeError):
    """A parameter outside its range, or of another type: one class for both, as in scikit-learn."""


class CallOrderError(OnnxCustomError, RuntimeError):
    """A call at the wrong time: another one has to come before it, or it came too late."""


class MissingRuntimeError(OnnxCustomError, ImportError):
    """No suitable onnxruntime is installed; the message names the extra that brings one."""


class MissingPackageError(OnnxCustomError, ImportError):
    """An optional package or program is not installed; the message names the extra that brings it."""


class ProviderError(OnnxCustomError, RuntimeError, ValueError):
    """The device or execution provider asked for is not in this onnxruntime."""


class DifferentiationError(OnnxCustomError, RuntimeError):
    """A graph cannot be differentiated.

    Parameters
    ----------
    message : str
        What is wrong and what to do about it.
    node, op_type, domain : str, optional
        The node at fault, when there is one.
    opset : int, optional
        Version of the operator's domain in the model.
    """

    def __init__(
        self,
        message: str,
        *,
        node: str | None = None,
        op_type: str | None = None,
        domain: str = "",
        opset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.node = node
        self.op_type = op_type
        self.domain = domain
        self.opset = opset

    def __reduce__(self) -> tuple:
        # Exceptions pickle through their positional arguments alone; the rest travels as state.
        return type(self), self.args, self.__dict__


class NonDifferentiableError(DifferentiationError):
    """The operator is a step function of its input: no gradient exists to be had."""


class GradientNotImplementedError(DifferentiationError, NotImplementedError):
    """The gradient exists, but the chosen engine has no rule for it."""


class UnknownOperatorError(DifferentiationError):
    """The operator is in no schema known to this library, so nothing is known of its gradient."""


class EvaluationError(OnnxCustomError, RuntimeError):
    """onnxruntime failed while it ran a graph."""


class ConvergenceError(OnnxCustomError, RuntimeError):
    """The loss or a weight stopped being finite; the last finite weights are kept."""


class ConvergenceWarning(UserWarning):
    """The loss or a weight stopped being finite and training ended early."""


class RowsWarning(UserWarning):
    """What the rows of a batch are is in doubt, or which of them meet is left to chance.

    A dimension that no trained output has is taken for the rows, or the loss of a row depends on others.
    """


class CheckpointError(OnnxCustomError, ValueError):
    """A saved state is torn, foreign, or was written by an incompatible version."""

"""What every gradient engine answers, and the engines by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import onnx_ir as ir

from onnxcustom.exceptions import (
    DifferentiationError,
    GradientNotImplementedError,
    NonDifferentiableError,
    UnknownNameError,
    UnknownOperatorError,
)
from onnxcustom.graph import Prepared

from .flow import Flow
from .host import Host
from .verdict import Verdict, of_weight

__all__ = [
    "ENGINES",
    "Engine",
    "Verdict",
    "form_of",
    "get_engine",
    "look_at",
    "refusal_error",
    "register_engine",
]


class Engine(ABC):
    """Builds gradients. Nothing changes it: one instance serves everybody.

    Attributes
    ----------
    name : str
        What users call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why the engine cannot be used here, None if it can."""

    def limits(self) -> tuple[int | None, int | None]:
        """Newest opset and IR version the engine reads, None for no limit."""
        return None, None

    def min_opset(self, model: ir.Model) -> int:
        """Oldest opset in which the engine can differentiate the model."""
        return 13

    @abstractmethod
    def verdict(self, model: ir.Model, node: ir.Node, operand: int, outputs: frozenset[int]) -> Verdict:
        """How the gradient from some outputs of a node to one of its operands is treated.

        Parameters
        ----------
        model : onnx_ir.Model
            The prepared model.
        node : onnx_ir.Node
            A node of its graph.
        operand : int
            Position among the node's inputs, or -1 for what its subgraphs capture.
        outputs : frozenset of int
            Positions of the outputs that a gradient comes in from.
        """

    def on(self, host: Host) -> Engine:
        """The engine whose graphs run on a host; by default they are the same for all."""
        return self

    def forms(self, model: ir.Model, node: ir.Node) -> Mapping[str, str]:
        """Forms that forward and gradients of a node take by what is known of its shapes, for reports."""
        return {}

    def carried(self, node: ir.Node) -> Sequence[ir.Value]:
        """Floating-point values that a node's gradient reaches though it reads them through others.

        Such as what a DequantizeLinear reads through integers, or a SequenceAt through a sequence.
        """
        return ()

    @abstractmethod
    def differentiate(
        self,
        model: ir.Model,
        sources: Sequence[ir.Value],
        seeds: Mapping[ir.Value, ir.Value],
        flow: Flow,
    ) -> dict[ir.Value, ir.Value]:
        """Add the nodes of the gradient to the model's graph.

        Parameters
        ----------
        model : onnx_ir.Model
            Prepared, inputs and weights being graph inputs; changed in place. Its outputs, its inputs
            and every value but those of nodes that become unused keep their names and meaning.
        sources : sequence of onnx_ir.Value
            Graph inputs to differentiate with respect to, each live in `flow`.
        seeds : mapping of onnx_ir.Value to onnx_ir.Value
            For every target the value holding the gradient of the loss with respect to it.
        flow : Flow
            Which edges the gradient takes, all of them passed by :meth:`verdict`.

        Returns
        -------
        dict of onnx_ir.Value to onnx_ir.Value
            The gradient of every source.
        """

    def finish(self, model: ir.Model) -> None:  # noqa: B027
        """Last check of the assembled gradient model; raises if it could not be run."""


ENGINES: dict[str, Engine] = {}
"""All engines by name; ``engine="auto"`` prefers the earlier."""


def register_engine(engine: Engine) -> Engine:
    """Add an engine to :data:`ENGINES`."""
    ENGINES[engine.name] = engine
    return engine


def get_engine(name: str) -> Engine:
    """The engine of that name, available or not.

    Raises
    ------
    UnknownNameError
        If there is none.
    """
    if name not in ENGINES:
        raise UnknownNameError(
            f"There is no gradient engine {name!r}; there are 'auto', {', '.join(map(repr, ENGINES))}."
        )
    return ENGINES[name]


def form_of(model: Prepared, engine: Engine) -> ir.Model:
    """A copy of a model in versions that an engine reads."""
    max_opset, max_ir = engine.limits()
    return model.take(engine.min_opset(model.model), max_opset, max_ir)


def look_at(model: Prepared, engine: Engine) -> ir.Model:
    """A model in versions that an engine reads, not to be changed."""
    return model.form(engine.min_opset(model.model), engine.limits()[0])


def refusal_error(
    what: str, node: ir.Node, verdict: Verdict, model: ir.Model, engine: str
) -> DifferentiationError:
    """The exception for a node that stands between `what` and the outputs."""
    opset = model.opset_imports.get(node.domain)
    operator = node.op_type if not node.domain else f"{node.domain}.{node.op_type}"
    message = (
        f"No gradient with respect to {what}: node {node.name!r} ({operator}, opset {opset}) "
        f"{_KINDS[verdict.how][1]} with the engine {engine!r}: "
        f"{of_weight(verdict) if what.startswith('weight ') else verdict.reason}"
    )
    return _KINDS[verdict.how][0](
        message, node=node.name, op_type=node.op_type, domain=node.domain, opset=opset
    )


_KINDS: dict[str, tuple[type[DifferentiationError], str]] = {
    "non-differentiable": (NonDifferentiableError, "is not differentiable"),
    "refused": (GradientNotImplementedError, "cannot be differentiated"),
    "unknown": (UnknownOperatorError, "is an unknown operator"),
}

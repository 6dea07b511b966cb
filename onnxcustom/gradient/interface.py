"""What every gradient engine answers, and the choice between engines."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import onnx_ir as ir

from onnxcustom.exceptions import (
    DifferentiationError,
    GradientNotImplementedError,
    MissingRuntimeError,
    NonDifferentiableError,
    UnknownNameError,
    UnknownOperatorError,
)
from onnxcustom.graph import ModelLike, Prepared
from onnxcustom.graph.operands import FLOATS

if TYPE_CHECKING:
    from .flow import Flow
    from .report import GradientReport

__all__ = ["ENGINES", "Choice", "Engine", "Verdict", "choose_engine", "register_engine", "select_engine"]

logger = logging.getLogger("onnxcustom")


@dataclass(frozen=True)
class Verdict:
    """How an engine treats one operand of one node.

    Parameters
    ----------
    how : {'rule', 'function', 'non-differentiable', 'refused', 'unknown'}
        'rule': by a rule of the engine; 'function': by standard operators put in its place;
        'non-differentiable': the output is a step function of the operand, whose gradient stops here;
        'refused': a gradient exists but the engine has none, or a wrong one; 'unknown': the operator is
        in no schema.
    reason : str
        Why, and what to do about it; empty if there is nothing to say.
    """

    how: str
    reason: str = ""

    @property
    def passes(self) -> bool:
        """Whether a gradient flows through."""
        return self.how in ("rule", "function")

    @property
    def stops(self) -> bool:
        """Whether the gradient certainly ends here."""
        return self.how == "non-differentiable"


RULE = Verdict("rule")


def is_float(value: ir.Value | None) -> bool:
    """Whether a value can carry a gradient; one of unknown type is taken as such."""
    return value is not None and (value.dtype is None or value.dtype in FLOATS)


class Engine(ABC):
    """Builds gradients. Stateless: one instance serves everybody.

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


def select_engine(name: str | Engine, model: ModelLike | Prepared | None = None) -> Engine:
    """The engine for a model.

    Parameters
    ----------
    name : str or Engine
        The name of an engine, or ``'auto'`` for the first one that is available and differentiates
        the whole model; which one it is and why goes to the logger ``onnxcustom``. The choice
        depends on the graph alone.
    model : optional
        Anything :func:`onnxcustom.graph.load` takes, or a :class:`onnxcustom.graph.Prepared`. Without
        it ``'auto'`` means the first available.

    Returns
    -------
    Engine

    Raises
    ------
    UnknownNameError
        If there is no such engine.
    MissingRuntimeError
        If the engine, or every engine, is unavailable (an ImportError).
    """
    if isinstance(name, Engine):
        return name
    if name != "auto":
        engine = get_engine(name)
        reason = engine.unavailable()
        if reason is not None:
            raise MissingRuntimeError(f"The gradient engine {name!r} is not available: {reason}")
        return engine
    choice = choose_engine(model)
    logger.info("[gradient] engine 'auto' is %r: %s", choice.engine.name, choice.why)
    return choice.engine


class Choice(NamedTuple):
    """What ``engine="auto"`` takes."""

    engine: Engine
    why: str
    report: GradientReport | None = None
    """Of the engine on the model, None without a model."""


def choose_engine(model: ModelLike | Prepared | None = None) -> Choice:
    """The engine that ``'auto'`` takes for a model, and why: see :func:`select_engine`."""
    from .report import engine_report

    prepared = None if model is None else Prepared.of(model)
    problems: dict[str, str] = {}
    fallback: Choice | None = None
    for engine in ENGINES.values():
        reason, report = engine.unavailable(), None
        if reason is None and prepared is not None:
            report = engine_report(prepared, engine)
            if report.refused:
                first = report.refused[0]
                reason = f"it refuses node {first.node!r} ({first.op_type}): {first.reason}"
                # A part of the model may be all that is asked for; if not, this engine says what is missing.
                fallback = fallback or Choice(engine, f"no engine covers the whole model; {reason}", report)
        if reason is None:
            why = "; ".join(f"not {k!r}: {v}" for k, v in problems.items())
            return Choice(engine, why or "the first choice, and it covers the model", report)
        problems[engine.name] = reason
    if fallback is not None:
        return fallback
    raise MissingRuntimeError(
        "No gradient engine is available: " + "; ".join(f"{k!r}: {v}" for k, v in problems.items())
    )


def refusal_error(
    what: str, node: ir.Node, verdict: Verdict, model: ir.Model, engine: str
) -> DifferentiationError:
    """The exception for a node that stands between `what` and the outputs."""
    opset = model.opset_imports.get(node.domain)
    operator = node.op_type if not node.domain else f"{node.domain}.{node.op_type}"
    message = (
        f"No gradient with respect to {what}: node {node.name!r} ({operator}, opset {opset}) "
        f"{_KINDS[verdict.how][1]} with the engine {engine!r}: {verdict.reason}"
    )
    return _KINDS[verdict.how][0](
        message, node=node.name, op_type=node.op_type, domain=node.domain, opset=opset
    )


_KINDS: dict[str, tuple[type[DifferentiationError], str]] = {
    "non-differentiable": (NonDifferentiableError, "is not differentiable"),
    "refused": (GradientNotImplementedError, "cannot be differentiated"),
    "unknown": (UnknownOperatorError, "is an unknown operator"),
}

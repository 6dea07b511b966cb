"""The choice between engines, from the graph alone."""

from __future__ import annotations

import logging
from typing import NamedTuple

from onnxcustom.exceptions import MissingRuntimeError
from onnxcustom.graph import ModelLike, Prepared

from .engine_report import GradientReport, engine_report
from .interface import ENGINES, Engine, get_engine

__all__ = ["Choice", "choose_engine", "select_engine"]

logger = logging.getLogger("onnxcustom")


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

"""What is typed for losses, penalties, optimizers and schedules, as the objects that are meant."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import click

from onnxcustom import optim
from onnxcustom._registry import did_you_mean
from onnxcustom.exceptions import OnnxCustomError
from onnxcustom.objective import (
    BaseLearningLoss,
    BaseLearningPenalty,
    PerWeightLearningPenalty,
)
from onnxcustom.objective.base import LOSSES

from .phrases import parse_phrase

__all__ = [
    "SCHEDULES",
    "classifies",
    "loss_name",
    "make_loss",
    "make_optimizer",
    "make_penalty",
    "make_schedule",
]

SCHEDULES: dict[str, type[optim.Schedule]] = {
    "adaptive": optim.Adaptive,
    "constant": optim.Fixed,
    "cosine": optim.Cosine,
    "exponential": optim.Exp,
    "inverse": optim.Inv,
    "invscaling": optim.InverseScaling,
    "linear": optim.Polynomial,
    "milestones": optim.MultiStep,
    "onecycle": optim.OneCycle,
    "optimal": optim.Optimal,
    "plateau": optim.ReduceOnPlateau,
    "polynomial": optim.Polynomial,
    "restarts": optim.CosineRestarts,
    "step": optim.Step,
}
_FITTING = ("log", "log_loss", "logloss", "neglog")


@contextlib.contextmanager
def _option(name: str, text: str) -> Iterator[None]:
    """Let what is wrong with an option name it."""
    try:
        yield
    except click.UsageError:
        raise
    except (OnnxCustomError, TypeError, ValueError) as exc:
        raise click.UsageError(f"{name} {text!r}: {exc}") from exc


def make_loss(text: str, option: str = "--loss") -> Any:
    """A loss by name, with options, or an ONNX model of one; a name that fits any model stays one."""
    if text.lower().endswith(".onnx"):
        return text
    name, options = parse_phrase(text, option)
    if name.lower() in _FITTING and not options:
        return name.lower()
    with _option(option, text):
        loss = BaseLearningLoss.select(name, **options)
        loss.check()
        return loss


def loss_name(loss: Any) -> str:
    """What a loss is called on the command line.

    Examples
    --------
    >>> from onnxcustom.objective import SoftmaxCrossEntropyLearningLoss
    >>> loss_name(SoftmaxCrossEntropyLearningLoss())
    'softmax_crossentropy'
    """
    names = [name for name in LOSSES.names() if LOSSES.find(name) is type(loss)]
    return min(names, key=lambda name: name != "squared_error") if names else repr(loss)


def classifies(loss: Any) -> bool | None:
    """Whether a loss is one of labels; None if that cannot be told."""
    if isinstance(loss, str):
        return True if loss in _FITTING else None
    return bool(getattr(loss, "of_classes", False))


def make_penalty(texts: Sequence[str]) -> Any:
    """A penalty, or one for each of some patterns of weights: ``l2:0.01`` or ``dense*=l2:l2=0.01``."""
    made: dict[str, Any] = {}
    for text in texts:
        pattern, equals, phrase = _pattern(text)
        if pattern in made:
            raise click.UsageError(f"--penalty is there twice for {pattern!r}.")
        with _option("--penalty", text):
            penalty = BaseLearningPenalty.select(phrase)
            penalty.check()
        if not equals and len(texts) == 1:
            return penalty
        made[pattern] = penalty
    return PerWeightLearningPenalty(made) if made else None


def _pattern(text: str) -> tuple[str, bool, str]:
    """Pattern of weights, whether there was one, and the rest."""
    before, colon, _ = text.partition(":")
    pattern, equals, _ = before.rpartition("=")
    return (pattern, True, text[len(pattern) + 1 :]) if equals and colon else ("*", False, text)


def make_optimizer(text: str, rate: Any = None) -> optim.BaseLearningRate:
    """An update rule by name, with options, at a learning rate or with a schedule of it."""
    with _option("--optimizer", text):
        rule = optim.create(text)
    if rate is None:
        return rule
    with _option("--lr", str(rate)):
        return optim.select_optimizer(rule, rate)


def make_schedule(text: str | None, rate: float | None, warmup: int, epochs: int, rule: Any) -> Any:
    """The learning rate over the epochs: None, a number or a schedule.

    Parameters
    ----------
    text : str, optional
        ``--schedule``: a name of :data:`SCHEDULES` with options. Lengths are in epochs, and where there is a
        `total` it is all of them.
    rate : float, optional
        ``--lr``, by default that of the rule.
    warmup : int
        Epochs of warm-up before.
    epochs : int
        How long training is.
    rule : BaseLearningRate
        The update rule.
    """
    if text is None and not warmup:
        return rate
    base = _base_rate(rule) if rate is None else rate
    if text is None:
        return optim.Warmup(base, warmup, decay_on_iteration=False)
    name, options = parse_phrase(text, "--schedule")
    cls = SCHEDULES.get(name.lower())
    if cls is None:
        raise click.UsageError(
            f"--schedule {name!r} is none of {', '.join(SCHEDULES)}.{did_you_mean(name, SCHEDULES)}"
        )
    if warmup and cls is optim.ReduceOnPlateau:
        raise click.UsageError("--warmup does not go with --schedule plateau.")
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    options.setdefault(cls.base_field, base)
    if "total" in fields:
        options.setdefault("total", max(1, epochs - warmup))
    if "decay_on_iteration" in fields:
        options.setdefault("decay_on_iteration", False)
    with _option("--schedule", text):
        schedule = cls(**options)
        return optim.Warmup(schedule, warmup, decay_on_iteration=False) if warmup else schedule


def _base_rate(rule: Any) -> float:
    rate = rule.make_schedule()
    value = getattr(rate, rate.base_field, None)
    if not isinstance(value, (int, float)):
        raise click.UsageError("--schedule needs --lr with this optimizer.")
    return float(value)

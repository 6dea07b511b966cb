"""Which outputs a user's losses and their factors are of: by name, in order, or several outputs at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxcustom.exceptions import InvalidParameterError, UnknownNameError
from onnxcustom.objective import BaseLearningLoss

from .targets import float_outputs, prediction_tensors

__all__ = ["Heads", "heads_of"]


@dataclasses.dataclass
class Heads:
    """Losses as they were meant.

    Attributes
    ----------
    loss : anything BaseLearningLoss.select takes, or dict from output name to it
        Of a loss that is taken on several outputs the first is named.
    factors : dict of str to float
        By output.
    joins : dict of str to tuple of str
        The first output of a loss that is taken on several -> all of them.
    """

    loss: Any
    factors: Any
    joins: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def heads_of(model: ir.Model, loss: Any, loss_weights: Any = None) -> Heads:
    """The losses and factors that are meant by lists, and by names of several outputs.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model.
    loss : loss, list of losses, or dict
        A list has one for each output that may be trained, in their order, None for those that are not. A
        key of a dict may be a tuple of outputs; a loss by itself that needs several takes the first ones.
    loss_weights : dict or sequence of float, optional
        A sequence has one for each loss.

    Raises
    ------
    ValueError
        A list of another length.
    UnknownNameError
        Two losses of one output.
    """
    if isinstance(loss, (list, tuple)):
        loss = _in_order(model, loss)
    elif not isinstance(loss, Mapping):
        loss = _on_several(model, loss)
    if not isinstance(loss, Mapping):
        if isinstance(loss_weights, (list, tuple)):
            raise InvalidParameterError(
                "loss_weights must be factors by the name of an output, or one for each loss where there are "
                f"several; there is one, not {loss_weights!r}."
            )
        return Heads(loss, loss_weights)
    if isinstance(loss_weights, (list, tuple)):
        if len(loss_weights) != len(loss):
            raise InvalidParameterError(
                f"loss_weights has {len(loss_weights)} factors, and there are losses of {list(loss)}."
            )
        loss_weights = dict(zip(loss, loss_weights, strict=True))
    keys = {key: key[0] if isinstance(key, tuple) and key else key for key in loss}
    twice = [name for name in keys.values() if [*keys.values()].count(name) > 1]
    if twice:
        raise UnknownNameError(f"Output {twice[0]!r} has several losses, {list(loss)}: one is possible.")
    if isinstance(loss_weights, Mapping):
        loss_weights = {keys.get(key, key): factor for key, factor in loss_weights.items()}
    joins = {keys[key]: key for key in loss if isinstance(key, tuple) and len(key) > 1}
    return Heads({keys[key]: spec for key, spec in loss.items()}, loss_weights, joins)


def _in_order(model: ir.Model, losses: Sequence[Any]) -> dict[str, Any]:
    """Losses by the outputs whose places they have."""
    names = list(prediction_tensors(model))
    names = [str(v.name) for v in model.graph.outputs if v.name in names]
    if len(losses) != len(names):
        raise InvalidParameterError(
            f"loss is a list of {len(losses)}, the model has {len(names)} outputs that may be trained, "
            f"{names}: give one for each, None for those that are not trained, or a dict by name."
        )
    return {name: spec for name, spec in zip(names, losses, strict=True) if spec is not None}


def _on_several(model: ir.Model, spec: Any) -> Any:
    """A loss by the outputs it takes, if it needs several and the first ones are alike."""
    loss = BaseLearningLoss.select(spec)
    names = float_outputs(model)[: loss.outputs]
    values = {v.name: v for v in model.graph.outputs}
    shapes = [None if (s := values[n].shape) is None else tuple(s)[1:] for n in names]
    if loss.outputs < 2 or len(names) < loss.outputs or None in shapes or len(set(map(str, shapes))) > 1:
        return spec
    return {tuple(names): loss}

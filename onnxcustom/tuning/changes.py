"""Changes of a model that last for a training: what is trained in its place, and the way back."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.trainable.weights import replace_constants

__all__ = ["Change", "Changed", "Term", "changed", "trained"]


@dataclasses.dataclass(frozen=True)
class Term:
    """A tensor of the model that is a part of the objective.

    Attributes
    ----------
    value : str
        Its name: one number for each row of a batch, or one in all.
    weight : float
        Factor of its mean.
    """

    value: str
    weight: float


class Change(ABC):
    """What is to be done to a model before it is trained: options, without a model."""

    @abstractmethod
    def apply(self, prepared: Prepared, targets: Sequence[Any] = ()) -> Changed:
        """The model that is trained in place of `prepared`; the same each time it is asked.

        Parameters
        ----------
        prepared : Prepared
            The model so far.
        targets : sequence of Target
            Outputs that are trained, and their losses.

        Raises
        ------
        InvalidModelError, UnknownNameError
            The model cannot be changed so; why.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Changed:
    """A model that was changed, and the way back to the user's.

    Attributes
    ----------
    change : Change
        What was done.
    source : Prepared
        The model before.
    prepared : Prepared
        The model that is trained.
    weights : tuple of str or None
        What of it is trained where the user does not say; None leaves that to what was before.
    terms : tuple of Term
        What it adds to the objective.
    share : float
        Factor of the losses in the objective.
    also : tuple of str
        What is trained whatever the user says.
    """

    change: Change
    source: Prepared
    prepared: Prepared
    weights: tuple[str, ...] | None = None
    terms: tuple[Term, ...] = ()
    share: float = 1.0
    also: tuple[str, ...] = ()

    @property
    def choices(self) -> Prepared:
        """The model that weights are chosen from."""
        return self.prepared

    def back(self, tensors: Mapping[str, np.ndarray], merge: bool = True) -> dict[str, np.ndarray]:
        """Constants of :attr:`source` that follow from those of :attr:`prepared`.

        Parameters
        ----------
        tensors : mapping of str to ndarray
            Tensors of :attr:`prepared` that training has changed, by name.
        merge : bool, default=True
            Whether what can be handed out apart is taken into the weights.
        """
        return {**tensors}

    def finish(
        self, model: onnx.ModelProto, tensors: Mapping[str, np.ndarray], merge: bool = True
    ) -> onnx.ModelProto:
        """The model to hand out, of :attr:`source` with the constants of :meth:`back` in it."""
        return model


def changed(
    prepared: Prepared, changes: Iterable[Change], targets: Sequence[Any] = ()
) -> tuple[Changed, ...]:
    """What each of some changes makes of what the one before has made, beginning with `prepared`."""
    made: list[Changed] = []
    for change in changes:
        made.append(change.apply(made[-1].prepared if made else prepared, targets))
    return tuple(made)


def trained(
    prepared: Prepared, steps: Sequence[Changed], tensors: Mapping[str, np.ndarray], merge: bool = True
) -> onnx.ModelProto:
    """The user's model with what training has found.

    Parameters
    ----------
    prepared : Prepared
        The model that was trained.
    steps : sequence of Changed
        How it came about, none if it is the user's own.
    tensors : mapping of str to ndarray
        Its tensors that have changed.
    merge : bool, default=True
        As for :meth:`Changed.back`.
    """
    own = []
    for step in reversed(steps):
        own.append(tensors)
        tensors = step.back(tensors, merge)
    model = replace_constants((steps[0].source if steps else prepared).proto, tensors)
    for step, had in zip(steps, reversed(own), strict=True):
        model = step.finish(model, had, merge)
    return model

"""Where a step graph is cut, at the gradients: what the part before hands on to the part behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from onnxcustom.graph.building.builder import Var
from onnxcustom.optim import BaseLearningRate

from .batch import cast
from .gradients import Gradients
from .updates import compose_accumulation

__all__ = ["Cut", "Phase", "cut_at_gradients"]

Phase = Literal["update", "gradient", "accumulate", "apply"]


@dataclasses.dataclass
class Cut:
    """What is at the cut.

    Attributes
    ----------
    gradients : mapping of str to Var
        What an update reads, by weight.
    given, taken : dict of str to Var
        Gradients that the graph hands out, or takes in.
    accumulated : dict of str to (Var, Var or None)
        Mean gradient so far, and the new one if the graph hands it out.
    share : Var or None
        Share of the batch in those accumulated.
    """

    gradients: Mapping[str, Var]
    given: dict[str, Var] = dataclasses.field(default_factory=dict)
    taken: dict[str, Var] = dataclasses.field(default_factory=dict)
    accumulated: dict[str, tuple[Var, Var | None]] = dataclasses.field(default_factory=dict)
    share: Var | None = None

    def plus(self, part: Gradients, others: Mapping[str, Var]) -> Mapping[str, Var]:
        """What an update reads, with the gradients of penalties, which no batch has a share in."""
        sums = {w: self.gradients[w] + cast(part.op, g, self.gradients[w].dtype) for w, g in others.items()}
        return {**self.gradients, **sums}


def cut_at_gradients(part: Gradients, optimizer: BaseLearningRate, phase: Phase) -> Cut:
    """Cut a graph at the gradients, or let it accumulate them there: always those of whole weights.

    Parameters
    ----------
    part : Gradients
        From the batch to the gradients.
    optimizer : BaseLearningRate
        Says whether batches are accumulated.
    phase : {'update', 'gradient', 'accumulate', 'apply'}
        Of the graph: see :func:`~onnxcustom.step.compose.compose_step`.
    """
    op, gradients = part.op, part.gradients
    if phase == "gradient":
        return Cut({}, given=dict(gradients))
    if optimizer.accumulate == 1:
        if phase != "apply":
            return Cut(gradients)
        taken = {}
        for name, g in gradients.items():
            assert g.dtype is not None
            taken[name] = op.input(op.unique(f"{name}_gradient"), g.dtype, g.shape)
        return Cut(taken, taken=taken)
    share = op.input(op.unique("share"), part.dtype, [])
    means = compose_accumulation(op, optimizer, gradients, share)
    before: dict[str, tuple[Var, Var | None]] = {w: (old, None) for w, (old, _) in means.items()}
    if phase == "apply":
        return Cut({w: old for w, (old, _) in means.items()}, accumulated=before)
    if phase == "accumulate":
        return Cut({}, accumulated={**means}, share=share)
    return Cut({w: new for w, (_, new) in means.items()}, accumulated=before, share=share)

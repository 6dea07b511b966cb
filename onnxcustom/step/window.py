"""Batches that one update is made of, where what their losses are means over is known beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from onnxcustom._parameters import is_count
from onnxcustom.exceptions import InvalidDataError

__all__ = ["Window"]


@dataclasses.dataclass(frozen=True)
class Window:
    """Batches whose gradients are added up, each loss divided by what it counts in all of them.

    Attributes
    ----------
    batches : int
        How many there are.
    counts : list of int
        What the loss of each output is a mean over in all of them.
    seen : int
        Batches that came.
    found : list of int
        What the losses counted in those.
    """

    batches: int
    counts: list[int]
    seen: int = 0
    found: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", self.found or [0] * len(self.counts))

    @classmethod
    def of(cls, counts: Sequence[Sequence[int]]) -> Window:
        """The window of batches that count so much each."""
        return cls(len(counts), [sum(column) for column in zip(*counts, strict=True)])

    @classmethod
    def load(cls, data: Any, outputs: int) -> Window | None:
        """What :func:`dataclasses.asdict` made of it; None if it is something else."""
        fields = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(data, Mapping) or sorted(data) != sorted(fields):
            return None
        lists = [data["counts"], data["found"]]
        if not all(isinstance(v, list) and len(v) == outputs and all(map(is_count, v)) for v in lists):
            return None
        if not is_count(data["batches"]) or not is_count(data["seen"]) or data["seen"] > data["batches"]:
            return None
        return cls(data["batches"], list(data["counts"]), data["seen"], list(data["found"]))

    def divisors(self) -> list[float]:
        """What losses of a batch are divided by, so that the mean over the batches is that over labels."""
        return [count / self.batches or 1.0 for count in self.counts]

    def check(self, units: Sequence[int]) -> None:
        """Refuse a batch that was not announced.

        Raises
        ------
        InvalidDataError
            There are more of them, or they count something else.
        """
        if self.seen == self.batches:
            raise InvalidDataError(
                f"The {self.batches} batches that were announced are through: call apply_accumulated(), or "
                "announce the next ones."
            )
        left = [
            count - found - unit for count, found, unit in zip(self.counts, self.found, units, strict=True)
        ]
        if any(n < 0 for n in left) or (self.seen + 1 == self.batches and any(left)):
            counted = [f + u for f, u in zip(self.found, units, strict=True)]
            raise InvalidDataError(
                f"The losses of the {self.batches} batches that were announced are means over {self.counts} "
                f"labels or rows; with this one, number {self.seen + 1}, it is {counted}: give the batches "
                "that were announced."
            )

    def taken(self, units: Sequence[int]) -> Window:
        """The window after a batch, trained on or left out."""
        found = [f + u for f, u in zip(self.found, units, strict=True)]
        return dataclasses.replace(self, seen=self.seen + 1, found=found)

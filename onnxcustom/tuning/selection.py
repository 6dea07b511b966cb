"""Changes of a model that parameters of a training step stand for."""

from __future__ import annotations

import dataclasses
from typing import Any

from .changes import Change
from .distillation import select_teacher
from .lora.options import select_lora
from .quantization.options import select_quantize

__all__ = ["select_changes"]


def select_changes(lora: Any = None, quantize: Any = None, teacher: Any = None) -> tuple[Change, ...]:
    """The changes that parameters mean, in the order in which they are made.

    Raises
    ------
    InvalidParameterError
        A parameter that means none.
    """
    adapters, rounding = select_lora(lora), select_quantize(quantize)
    if adapters is not None and rounding is not None:
        adapters = dataclasses.replace(
            adapters, summed=True
        )  # what is rounded is the weight with its adapter
    made = [adapters, rounding, select_teacher(teacher)]
    return tuple(change for change in made if change is not None)

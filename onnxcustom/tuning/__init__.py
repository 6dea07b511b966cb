"""Changes to a model before it is trained: models go in, models come out."""

from __future__ import annotations

import importlib
from typing import Any

from onnxcustom.optim.averaging import Average

from .dequantizing import dequantize
from .distillation import Distillation
from .dropping import drop_layers
from .dynamic import make_dynamic
from .heads import replace_head
from .lora import Adapter, LoRA, combine_adapters, from_peft, load_adapter, merge_adapter, to_peft
from .quantization import Quantization
from .ties import untie

__all__ = [
    "Adapter",
    "Average",
    "Distillation",
    "LoRA",
    "Quantization",
    "combine_adapters",
    "dequantize",
    "drop_layers",
    "from_peft",
    "load_adapter",
    "make_dynamic",
    "merge_adapter",
    "quantize",
    "replace_head",
    "to_peft",
    "untie",
]


def __getattr__(name: str) -> Any:
    if name != "quantize":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # It takes a step to measure ranges, and steps are above this folder.
    return importlib.import_module("onnxcustom.step.quantizing").quantize

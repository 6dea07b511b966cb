"""Changes to a model before it is trained: models go in, models come out."""

from __future__ import annotations

from onnxcustom.optim.averaging import Average

from .dequantizing import dequantize
from .distillation import Distillation
from .dynamic import make_dynamic
from .heads import replace_head
from .lora import LoRA
from .quantization import Quantization
from .ties import untie

__all__ = [
    "Average",
    "Distillation",
    "LoRA",
    "Quantization",
    "dequantize",
    "make_dynamic",
    "replace_head",
    "untie",
]

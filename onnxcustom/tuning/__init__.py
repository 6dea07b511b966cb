"""Changes to a model before it is trained: models go in, models come out."""

from __future__ import annotations

from onnxcustom.optim.averaging import Average

from .dequantizing import dequantize
from .distillation import Distillation
from .dropping import drop_layers
from .dynamic import make_dynamic
from .heads import replace_head
from .lora import Adapter, LoRA, combine_adapters, from_peft, load_adapter, merge_adapter, to_peft
from .quantization import Quantization
from .quantizing import quantize
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

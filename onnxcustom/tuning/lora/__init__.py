"""Low-rank adapters beside frozen weights."""

from __future__ import annotations

from .adapter import Adapter
from .files import load_adapter
from .merging import combine_adapters, merge_adapter
from .options import LoRA
from .peft import from_peft, to_peft

__all__ = ["Adapter", "LoRA", "combine_adapters", "from_peft", "load_adapter", "merge_adapter", "to_peft"]

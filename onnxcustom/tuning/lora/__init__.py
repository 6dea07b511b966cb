"""Low-rank adapters beside frozen weights."""

from __future__ import annotations

from .adapter import Adapter
from .files import load_adapter
from .merging import combine_adapters, merge_adapter
from .options import LoRA

__all__ = ["Adapter", "LoRA", "combine_adapters", "load_adapter", "merge_adapter"]

"""Low-rank adapters beside frozen weights."""

from __future__ import annotations

from .options import LoRA

__all__ = ["LoRA"]

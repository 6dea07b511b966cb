"""Training in the knowledge that numbers will be rounded to integers, and the integers afterwards."""

from __future__ import annotations

from .options import Quantization

__all__ = ["Quantization"]

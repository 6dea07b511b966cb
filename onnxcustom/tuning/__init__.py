"""Changes to a model before it is trained: models go in, models come out."""

from __future__ import annotations

from .ties import untie

__all__ = ["untie"]

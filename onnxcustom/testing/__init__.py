"""Checks for those who add gradient rules, models or engines."""

from __future__ import annotations

from .gradient import Checked, GradientCheck, check_gradient, random_feeds
from .precision import to_double

__all__ = ["Checked", "GradientCheck", "check_gradient", "random_feeds", "to_double"]

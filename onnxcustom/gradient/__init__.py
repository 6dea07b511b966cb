"""Gradients of ONNX graphs, as ONNX graphs."""

from __future__ import annotations

from . import ort as _ort  # registers the engine
from .build import gradient_graph
from .interface import ENGINES, Engine, Verdict, register_engine, select_engine
from .names import METADATA_KEY, GradientNames
from .report import GradientReport, gradient_report
from .split import SplitGradient, split_gradient

__all__ = [
    "ENGINES",
    "METADATA_KEY",
    "Engine",
    "GradientNames",
    "GradientReport",
    "SplitGradient",
    "Verdict",
    "gradient_graph",
    "gradient_report",
    "register_engine",
    "select_engine",
    "split_gradient",
]

del _ort

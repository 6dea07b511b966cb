"""Gradients of ONNX graphs, as ONNX graphs."""

from __future__ import annotations

from types import ModuleType

from onnxcustom._lazy import import_submodule

from . import onnx_engine as _onnx  # registers the engine; the first is what 'auto' prefers
from .build import gradient_graph
from .choice import select_engine
from .emit import GradientBuilder
from .interface import ENGINES, Engine, register_engine
from .names import METADATA_KEY, GradientNames
from .node import NodeView
from .ort import engine as _ort
from .registry import elementwise, non_differentiable, refuse, rule
from .report import GradientReport, gradient_report
from .split import SplitGradient, split_gradient
from .verdict import Verdict

__all__ = [
    "ENGINES",
    "METADATA_KEY",
    "Engine",
    "GradientBuilder",
    "GradientNames",
    "GradientReport",
    "NodeView",
    "SplitGradient",
    "Verdict",
    "elementwise",
    "gradient_graph",
    "gradient_report",
    "non_differentiable",
    "refuse",
    "register_engine",
    "rule",
    "select_engine",
    "split_gradient",
]

del _onnx, _ort


def __getattr__(name: str) -> ModuleType:
    return import_submodule(__name__, name)

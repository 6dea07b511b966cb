"""ONNX in, ONNX out: load, check, prepare, find the weights, replace them, save."""

from __future__ import annotations

from onnxcustom.graph.builder import Builder, Var
from onnxcustom.graph.classifier import Logits, class_labels, find_logits
from onnxcustom.graph.io import ModelLike, load, save, to_ir, to_proto
from onnxcustom.graph.prepare import prepare
from onnxcustom.graph.roles import Role, weight_roles
from onnxcustom.graph.weights import (
    constants,
    rename_weights,
    replace_constants,
    replace_weights,
    trainable_values,
    weights,
)

__all__ = [
    "Builder",
    "Logits",
    "ModelLike",
    "Role",
    "Var",
    "class_labels",
    "constants",
    "find_logits",
    "load",
    "prepare",
    "rename_weights",
    "replace_constants",
    "replace_weights",
    "save",
    "to_ir",
    "to_proto",
    "trainable_values",
    "weight_roles",
    "weights",
]

"""ONNX in, ONNX out: load, check, prepare, find the weights, replace them, save."""

from __future__ import annotations

from onnxcustom.graph.analysis.class_labels import class_labels
from onnxcustom.graph.analysis.classifier import Logits, class_axis, find_logits, hidden_logits, last_operator
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.files.io import ModelLike, load, save, to_ir, to_proto
from onnxcustom.graph.files.limits import Limits, use_limits
from onnxcustom.graph.preparation.prepare import Prepared, prepare
from onnxcustom.graph.trainable.initialize import initialize_weights
from onnxcustom.graph.trainable.layers import Layer, layers
from onnxcustom.graph.trainable.roles import Role, weight_roles
from onnxcustom.graph.trainable.selection import Selection, select_weights
from onnxcustom.graph.trainable.weights import (
    constants,
    rename_weights,
    replace_constants,
    replace_weights,
    trainable_values,
    weights,
    with_constants,
    written,
)

__all__ = [
    "Builder",
    "Layer",
    "Limits",
    "Logits",
    "ModelLike",
    "Prepared",
    "Role",
    "Selection",
    "Var",
    "class_axis",
    "class_labels",
    "constants",
    "find_logits",
    "hidden_logits",
    "initialize_weights",
    "last_operator",
    "layers",
    "load",
    "prepare",
    "rename_weights",
    "replace_constants",
    "replace_weights",
    "save",
    "select_weights",
    "to_ir",
    "to_proto",
    "trainable_values",
    "use_limits",
    "weight_roles",
    "weights",
    "with_constants",
    "written",
]

"""The training information of a user's model: carried along, and renamed with the weights it is about.

``onnx_ir`` has no place for ``ModelProto.training_info``: it travels serialized in the model's ``meta``.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx.external_data_helper import uses_external_data

from onnxcustom.graph.files.external import read_external
from onnxcustom.graph.files.limits import survey

__all__ = ["drop", "hand_on", "rename", "restore", "take"]

_KEY = "onnxcustom.training_info"


def take(proto: onnx.ModelProto, model: ir.Model, folder: str | None, label: str) -> None:
    """Remember the training information of `proto` with `model`, external data included."""
    if not proto.training_info:
        return
    holder = onnx.ModelProto()
    holder.training_info.extend(proto.training_info)
    external = [t for t in survey(holder, label).tensors if uses_external_data(t)]
    if external:
        assert folder is not None
        read_external(external, folder, label)
    model.meta[_KEY] = tuple(info.SerializeToString() for info in holder.training_info)


def hand_on(source: ir.Model, model: ir.Model) -> None:
    """Let a copy of `source` have its training information."""
    if _KEY in source.meta:
        model.meta[_KEY] = source.meta[_KEY]


def drop(model: ir.Model) -> None:
    """Forget it: what is made of the model is no longer the model that the information is about."""
    model.meta.pop(_KEY, None)


def restore(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Write the training information of `model` to `proto`."""
    for content in model.meta.get(_KEY, ()):
        proto.training_info.add().ParseFromString(content)


def rename(model: ir.Model, names: Mapping[str, str]) -> None:
    """Let the training information know initializers by their new names."""
    made = []
    for content in model.meta.get(_KEY, ()):
        info = onnx.TrainingInfoProto.FromString(content)
        for binding in (*info.initialization_binding, *info.update_binding):
            binding.key = names.get(binding.key, binding.key)
        # The algorithm reads what the inference graph has, unless a name is its own.
        _rename_reads(info.algorithm, names)
        made.append(info.SerializeToString())
    if made:
        model.meta[_KEY] = tuple(made)


def _rename_reads(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    own = {t.name for t in graph.initializer} | {i.name for i in graph.input}
    own.update(name for node in graph.node for name in node.output)
    left = {old: new for old, new in names.items() if old not in own}
    for node in graph.node:
        node.input[:] = [left.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                _rename_reads(inner, left)

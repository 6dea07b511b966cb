"""Between protobuf and ``onnx_ir``: what one of them has no place for travels beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.operators import normal_domain
from onnxcustom.graph.analysis.traversal import all_nodes
from onnxcustom.graph.files import training_info
from onnxcustom.graph.files.limits import shown

__all__ = ["PROTOBUF_LIMIT", "copied", "represented", "to_proto"]

# Protobuf refuses messages of 2 GiB; what is not a tensor must fit beside them.
PROTOBUF_LIMIT = 2**31 - 2**24

# onnx_ir has no maps, which is what ZipMap gives: such a type travels beside the value, serialized.
_TYPE_KEY = "onnxcustom.type"

# Bytes from which a tensor of a model that is kept anyway has no array of its own.
_LARGE = 2**14


class _ReadTensor(ir.LazyTensor):
    """A tensor whose numbers are those of another one, read when they are asked for and not kept."""

    def __init__(self, source: ir.TensorProtocol, name: str | None) -> None:
        shape = ir.Shape(source.shape.numpy())
        super().__init__(lambda: source, dtype=source.dtype, shape=shape, name=name)
        self.source = source


def copied(model: ir.Model) -> ir.Model:
    """A copy whose graphs, nodes, values and tensor names are its own; arrays are shared."""
    made = _clone(model)
    training_info.hand_on(model, made)
    _own_tensors(made)
    return made


def represented(
    proto: onnx.ModelProto,
    folder: str | None = None,
    label: str = "the model",
    sparse: bool = False,
    kept: bool = False,
) -> ir.Model:
    """A model of ``onnx_ir``, its graphs and names its own, of a checked one in `folder`.

    One that is `kept`, and not changed as long as the result is used, goes on holding the large tensors.
    """
    own = proto
    try:
        if sparse:
            own = _without_sparse(own)
        own, maps = _without_maps(own)
        made = ir.from_proto(own)
        _spell_domains(made)
        _forget_negative_sizes(made)
    except InvalidModelError:
        raise
    except Exception as exc:
        reason: BaseException = exc
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise InvalidModelError(f"The model holds something that onnx_ir cannot represent: {reason}") from exc
    for value in (*made.graph.inputs, *made.graph.outputs):
        if value.name in maps:
            value.meta[_TYPE_KEY] = maps[value.name]
    if folder is not None:
        ir.external_data.set_base_dir(made.graph, folder)
    training_info.take(own, made, folder, label)
    _own_tensors(made, kept and own is proto)
    return made


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Turn a ``onnx_ir.Model`` into a ModelProto that holds all its data.

    Use it rather than ``onnx_ir.to_proto``, which leaves out external data and the types of the
    maps that ``ZipMap`` gives.

    Parameters
    ----------
    model : onnx_ir.Model
        Left unchanged.

    Returns
    -------
    onnx.ModelProto
    """
    initializers = (v for graph in model.graphs() for v in graph.initializers.values())
    source = model
    if any(isinstance(v.const_value, ir.ExternalTensor) for v in initializers):
        model = model.clone()
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, ir.ExternalTensor):
                    value.const_value = ir.Tensor(
                        _external_array(tensor), dtype=tensor.dtype, name=value.name
                    )
    proto = ir.to_proto(model)
    infos = [*proto.graph.input, *proto.graph.output]
    for info, value in zip(infos, [*model.graph.inputs, *model.graph.outputs], strict=True):
        if _TYPE_KEY in value.meta:
            info.type.ParseFromString(value.meta[_TYPE_KEY])
    training_info.restore(source, proto)
    return proto


def _clone(model: ir.Model) -> ir.Model:
    """A copy, its nodes in an order in which they can be computed."""
    try:
        return model.clone()
    except Exception:  # what it raises for nodes out of order depends on its version
        made = ir.from_proto(ir.to_proto(model))
        try:
            return TopologicalSortPass()(made).model
        except Exception as exc:
            raise InvalidModelError(
                "The nodes of the model cannot be put into an order: some form a cycle."
            ) from exc


_TENSOR = ir.AttributeType.TENSOR


def _own_tensors(model: ir.Model, kept: bool = False) -> None:
    """Give `model` tensor objects of its own, so that renaming one never reaches the caller's."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _own_tensor(value.const_value, value.name, kept)
                # Lifted out of the graph's inputs an initializer has only this to tell its type.
                value.type = value.type or ir.TensorType(value.const_value.dtype)
                value.shape = value.shape or ir.Shape(value.const_value.shape.numpy())
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in all_nodes(body):
            for name, attribute in list(node.attributes.data.items()):  # of many nodes: no view of a UserDict
                if attribute.type == _TENSOR and not attribute.is_ref():
                    tensor = attribute.value  # as_tensor() looks whether it has all that a tensor has
                    if isinstance(tensor, ir.ExternalTensor):
                        tensor = ir.Tensor(_external_array(tensor), dtype=tensor.dtype, name=tensor.name)
                    node.attributes[name] = ir.AttrTensor(name, _own_tensor(tensor, tensor.name, kept))


def _own_tensor(tensor: ir.TensorProtocol, name: str | None, kept: bool = False) -> ir.TensorProtocol:
    """Another tensor on the same array; a TensorProto's data is copied out of it, unless that is kept."""
    doc, props = tensor.doc_string, dict(tensor.metadata_props)
    shape = ir.Shape(tensor.shape.numpy())
    made: ir.TensorProtocol
    if isinstance(tensor, ir.ExternalTensor):
        made = ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype,
            shape=shape, name=name or "", base_dir=tensor.base_dir,
        )  # fmt: skip
    elif tensor.dtype == ir.DataType.STRING:
        made = ir.StringTensor(list(tensor.string_data()), shape=shape, name=name)  # type: ignore[attr-defined]
    elif isinstance(tensor, _ReadTensor):
        made = _ReadTensor(tensor.source, name)
    elif kept and tensor.nbytes >= _LARGE and _is_raw(tensor):
        made = _ReadTensor(tensor, name)
    else:
        made = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    made.doc_string = doc
    made.metadata_props.update(props)
    return made


def _is_raw(tensor: ir.TensorProtocol) -> bool:
    """Whether the numbers of a tensor are bytes of a TensorProto, which are read at once."""
    proto = getattr(tensor, "raw", None)
    return isinstance(proto, onnx.TensorProto) and proto.HasField("raw_data")


def _spell_domains(model: ir.Model) -> None:
    """Imports of the default domain under its other name, which nodes of ``onnx_ir`` do not have."""
    for imports in (model.opset_imports, *(f.opset_imports for f in model.functions.values())):
        for domain in [d for d in imports if normal_domain(d) != d]:
            imports[normal_domain(domain)] = max(imports.pop(domain), imports.get(normal_domain(domain), 0))


def _forget_negative_sizes(model: ir.Model) -> None:
    """Sizes that are unknown are written as -1 by some exporters, which others would compute with."""
    for graph in model.graphs():
        for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
            if value.shape is not None and any(isinstance(d, int) and d < 0 for d in value.shape):
                value.shape = ir.Shape([None if isinstance(d, int) and d < 0 else d for d in value.shape])


def _external_array(tensor: ir.ExternalTensor) -> np.ndarray:
    """The data of an external tensor, in memory."""
    try:
        return np.array(tensor.numpy())
    except (OSError, ValueError) as exc:
        raise InvalidModelError(f"External data of tensor {tensor.name!r} cannot be read: {exc}") from exc


def _without_maps(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, bytes]]:
    """The model without types that are or hold maps, and these types by name of the value."""
    infos = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    maps = {info.name: info.type.SerializeToString() for info in infos if _holds_map(info.type)}
    if not maps:
        return proto, {}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for info in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        if info.name in maps:
            info.ClearField("type")
    return copy, maps


def _holds_map(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _holds_map(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return _holds_map(kind.optional_type.elem_type)
    return kind.HasField("map_type")


def _without_sparse(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with dense tensors in place of sparse ones, which onnx_ir does not know."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in [copy.graph, *copy.functions]:
        _densify(graph)
    return copy


def _densify(graph: Any) -> None:
    for sparse in getattr(graph, "sparse_initializer", ()):
        graph.initializer.append(_dense(sparse))
    if hasattr(graph, "sparse_initializer"):
        graph.ClearField("sparse_initializer")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                dense = onnx.helper.make_attribute("value", _dense(attribute.sparse_tensor))
                attribute.CopyFrom(dense)
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _densify(inner)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    sizes = [math.prod(sparse.dims)] if indices.ndim == 1 else list(sparse.dims)
    if (indices < 0).any() or (indices.reshape(-1, len(sizes)) >= sizes).any():
        raise InvalidModelError(
            f"Sparse tensor {shown(sparse.values.name)} has an index beyond its shape {list(sparse.dims)}."
        )
    array = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:  # positions in the flattened tensor
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(array, name=sparse.values.name)

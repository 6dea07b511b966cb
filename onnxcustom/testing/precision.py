"""Models and arrays in another precision: float64, or float32 in the place of 16 bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnxcustom.graph.analysis.operators import normal_domain

__all__ = ["feeds_as", "is_float", "to_double", "to_single"]

_HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_FLOAT = _HALF | {TensorProto.FLOAT}

# Attributes that name the type of a result; where it is absent, these operators make float32.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype"})
_DEFAULT_FLOAT = {
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
    "SequenceEmpty": "dtype",
    "BlackmanWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
}


def to_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model with float64 in the place of float16, bfloat16 and float32.

    Parameters
    ----------
    model : ModelProto
        The model; it is not changed.

    Returns
    -------
    ModelProto
        Inputs, outputs, initializers, constants, casts and random numbers are all float64, in
        subgraphs and functions as well. Whether there are kernels is another question.

    Examples
    --------
    >>> import onnx
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... g (float16[N] x) => (float[N] y) { y = Cast <to = 1> (x) }''')
    >>> print(onnx.printer.to_text(to_double(model).graph))
    g (double[N] x) => (double[N] y)
    {
       y = Cast <to: int = 11> (x)
    }
    """
    return _Converter(_FLOAT, TensorProto.DOUBLE).model(model)


def to_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with float32 in the place of float16 and bfloat16."""
    return _Converter(_HALF, TensorProto.FLOAT).model(model)


def is_float(dtype: np.dtype) -> bool:
    """Whether numbers of this type are real; NumPy doesn't know what bfloat16 is."""
    return np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"


def feeds_as(feeds: Mapping[str, np.ndarray], dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    """Arrays with real numbers in the types given for their names, the others as they are."""
    return {
        name: value.astype(dtypes[name]) if name in dtypes and is_float(value.dtype) else value
        for name, value in feeds.items()
    }


class _Converter:
    """Puts one floating-point type in the place of others."""

    def __init__(self, sources: frozenset[int], target: int) -> None:
        self.sources, self.target = sources, target
        self.dtype = helper.tensor_dtype_to_np_dtype(target)

    def model(self, model: onnx.ModelProto) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(model)
        self.graph(made.graph)
        for function in made.functions:
            del function.value_info[:]
            self.nodes(function.node)
            for attribute in function.attribute_proto:
                self.attribute(attribute)
        return made

    def graph(self, graph: GraphProto) -> None:
        for info in (*graph.input, *graph.output):
            self.type(info.type)
        del graph.value_info[:]
        for tensor in graph.initializer:
            self.tensor(tensor)
        for sparse in graph.sparse_initializer:
            self.tensor(sparse.values)
        self.nodes(graph.node)

    def type(self, kind: onnx.TypeProto) -> None:
        which = kind.WhichOneof("value")
        if which in ("sequence_type", "optional_type"):
            self.type(getattr(kind, which).elem_type)
        elif which in ("tensor_type", "sparse_tensor_type"):
            tensor = getattr(kind, which)
            if tensor.elem_type in self.sources:
                tensor.elem_type = self.target

    def tensor(self, tensor: TensorProto) -> None:
        if tensor.data_type in self.sources:
            array = numpy_helper.to_array(tensor).astype(self.dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def nodes(self, nodes: Iterable[NodeProto]) -> None:
        """Convert a repeated field of nodes in place."""
        casts = []
        for i, node in enumerate(nodes):
            for attribute in node.attribute:
                self.attribute(attribute)
            if TensorProto.FLOAT not in self.sources or normal_domain(node.domain):
                continue
            given = {attribute.name for attribute in node.attribute}
            if node.op_type in _DEFAULT_FLOAT and _DEFAULT_FLOAT[node.op_type] not in given:
                node.attribute.append(helper.make_attribute(_DEFAULT_FLOAT[node.op_type], self.target))
            if node.op_type == "ConstantOfShape" and "value" not in given:
                zero = numpy_helper.from_array(np.zeros(1, self.dtype))
                node.attribute.append(helper.make_attribute("value", zero))
            if node.op_type == "Constant" and self.constant(node):
                casts.append((i, node))
        for i, node in reversed(casts):
            made = helper.make_node("Cast", [f"{node.output[0]}__float"], list(node.output), to=self.target)
            node.output[0] = made.input[0]
            nodes.insert(i + 1, made)  # type: ignore[attr-defined]

    def attribute(self, attribute: AttributeProto) -> None:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i in self.sources:
            attribute.i = self.target
        for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else ())):
            self.tensor(tensor)
        if attribute.HasField("sparse_tensor"):
            self.tensor(attribute.sparse_tensor.values)
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            self.graph(graph)

    def constant(self, node: NodeProto) -> bool:
        """Constants written as numbers are float32 by definition; True for a function's argument."""
        for attribute in list(node.attribute):
            if attribute.name not in ("value_float", "value_floats"):
                continue
            if attribute.ref_attr_name:
                return True
            array = np.array(helper.get_attribute_value(attribute), self.dtype)
            node.attribute.remove(attribute)
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(array)))
        return False

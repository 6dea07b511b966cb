"""How large a model may be, and whether it is what it says: asked before anything is built from it.

A model file is input like any other and may come from anywhere. What is written in it is compared with the
bytes that are there, and with :class:`Limits`, before memory is taken or a recursive algorithm sees it.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import onnx
from onnx import TensorProto

from onnxcustom.exceptions import InvalidModelError, InvalidParameterError
from onnxcustom.graph.analysis.operators import normal_domain

__all__ = [
    "Contents",
    "Limits",
    "check_values",
    "current_limits",
    "data_size",
    "shown",
    "size_of",
    "survey",
    "use_limits",
]

# NumPy below version 2 has no more dimensions.
_LARGEST_RANK = 32
_STANDARD = ("", "ai.onnx.ml")
# Operators that hand over to Python or to compiled code in the model; nothing that is trained has them.
_RUN_CODE = frozenset(
    [("com.microsoft", n) for n in ("PythonOp", "PythonOpGrad", "TritonOp", "EPContext")]
    + [("org.pytorch.aten", "ATen"), ("ai.onnx.contrib", "PyOp")]
)
# What recursive algorithms, those of others included, get through on any stack.
_DEEPEST = 100
# A name may be of any length; a message may not.
_SHOWN = 200


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest model that is read.

    Parameters
    ----------
    nodes : int, default=100,000
        Nodes of all graphs, every call of a function counted as the nodes that it stands for.
    nesting : int, default=64
        Graphs within graphs, function calls within calls and sequences of sequences; 100 at most.
    tensor_bytes : int, default=2**34 (16 GiB)
        Bytes of one tensor: of a weight, and of any value whose shape is known beforehand.
    total_bytes : int, default=2**36 (64 GiB)
        Bytes of all tensors that the model holds, sparse ones as dense ones of that shape.
    folded_bytes : int, default=2**31 (2 GiB)
        Bytes of all tensors together that are computed beforehand: ``ConstantOfShape`` of a known shape
        is taken for a weight. Beyond that such a node stays a node.

    Examples
    --------
    >>> Limits(nodes=1000).nesting
    64
    """

    nodes: int = 100_000
    nesting: int = 64
    tensor_bytes: int = 2**34
    total_bytes: int = 2**36
    folded_bytes: int = 2**31

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidParameterError(f"{field.name}={value!r}: a positive integer was expected.")
        if self.nesting > _DEEPEST:
            raise InvalidParameterError(f"nesting={self.nesting}: {_DEEPEST} at most can be walked safely.")


_CURRENT: contextvars.ContextVar[Limits] = contextvars.ContextVar("limits", default=Limits())  # noqa: B039


def current_limits() -> Limits:
    """The limits that hold here: the defaults, or those of :func:`use_limits`."""
    return _CURRENT.get()


@contextlib.contextmanager
def use_limits(limits: Limits) -> Iterator[None]:
    """Other limits for every model that is read inside a ``with`` block, by whatever function.

    They hold in the thread, or the asynchronous task, that they are set in.

    Parameters
    ----------
    limits : Limits
        The limits.

    Examples
    --------
    >>> import onnx.parser, onnxcustom
    >>> from onnxcustom.graph import Limits, use_limits
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 18]>
    ... g (float[N, 2] x) => (float[N, 2] y) { z = Relu(x)  y = Tanh(z) }''')
    >>> with use_limits(Limits(nodes=1)):
    ...     onnxcustom.gradient_report(model)
    Traceback (most recent call last):
    ...
    onnxcustom.exceptions.InvalidModelError: The model has more than 1 nodes: ...
    """
    if not isinstance(limits, Limits):
        raise InvalidParameterError(f"limits must be a Limits, not {type(limits).__name__}.")
    token = _CURRENT.set(limits)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def shown(text: object) -> str:
    """A name as it may stand in a message: quoted, control characters escaped, not endless."""
    made = repr(text)
    return made if len(made) <= _SHOWN else f"{made[: _SHOWN - 4]}...{made[0]}"


# -- the survey --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Contents:
    """What a walk over a model found.

    Attributes
    ----------
    tensors : list of TensorProto
        Dense tensors, in initializers and attributes of all graphs and functions.
    sparse : list of SparseTensorProto
        Sparse ones.
    """

    tensors: list[TensorProto] = dataclasses.field(default_factory=list)
    sparse: list[onnx.SparseTensorProto] = dataclasses.field(default_factory=list)


_Call = tuple[str, str, str]


@dataclasses.dataclass
class _Body:
    """Size of a graph or a function, what it calls aside."""

    label: str
    nodes: int = 0
    depth: int = 0
    nbytes: int = 0
    parameters: frozenset[str] = frozenset()
    calls: dict[_Call, list[int]] = dataclasses.field(default_factory=dict)  # how often, how deep


def survey(proto: onnx.ModelProto, label: str, limits: Limits | None = None) -> Contents:
    """Walk over a model once: it is within the limits, and its tensors have the bytes that they claim.

    Parameters
    ----------
    proto : ModelProto
        The model; external data is not looked at.
    label : str
        What messages call the model.
    limits : Limits, optional
        By default :func:`current_limits`.

    Returns
    -------
    Contents

    Raises
    ------
    InvalidModelError
        It is not.
    """
    return _Surveyor(label, limits or current_limits()).model(proto)


def check_values(infos: Iterable[onnx.ValueInfoProto], label: str) -> None:
    """Compare the values of a model, whose shapes are inferred, with ``Limits.tensor_bytes``.

    Parameters
    ----------
    infos : iterable of ValueInfoProto
        The values.
    label : str
        What messages call the model.

    Raises
    ------
    InvalidModelError
        A value is larger.
    """
    surveyor = _Surveyor(label, current_limits())
    for info in infos:
        surveyor.info(info)


class _Surveyor:
    def __init__(self, label: str, limits: Limits) -> None:
        self.label, self.limits = label, limits
        self.contents = Contents()
        self._functions: dict[_Call, _Body] = {}
        self._nodes = 0

    def refuse(self, what: str) -> NoReturn:
        start = self.label[:1].upper() + self.label[1:]
        raise InvalidModelError(f"{start} {what}.")

    def too_large(self, what: str, limit: str) -> NoReturn:
        value = getattr(self.limits, limit)
        self.refuse(f"{what}: refused, Limits.{limit} is {value:,} (see onnxcustom.graph.use_limits)")

    def model(self, proto: onnx.ModelProto) -> Contents:
        functions = proto.functions
        self._functions = {_identity(f.domain, f.name, f.overload): _Body(shown(f.name)) for f in functions}
        self._entries("metadata", proto.metadata_props)
        names = (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
        self._texts("metadata", [names, [i.domain for i in proto.opset_import]])
        if len(self._functions) < len(proto.functions):
            self.refuse("has two functions of the same name")
        for function, body in zip(proto.functions, self._functions.values(), strict=True):
            self._function(function, body)
        main = _Body("the graph")
        self._graph(proto.graph, main)
        for info in proto.training_info:
            for graph in (info.initialization, info.algorithm):
                self._graph(graph, _Body("a graph for training"))
        self._expanded(main)
        return self.contents

    # -- graphs ------------------------------------------------------------------------------------

    def _function(self, function: onnx.FunctionProto, body: _Body) -> None:
        where = f"function {body.label}"
        self._texts(where, [(function.name, function.domain, function.overload, function.doc_string)])
        self._texts(where, [function.input, function.output, function.attribute])
        self._entries(where, function.metadata_props)
        for info in function.value_info:
            self.info(info)
        body.parameters = frozenset((*function.attribute, *(a.name for a in function.attribute_proto)))
        stack: list[tuple[Any, int]] = []
        for attribute in function.attribute_proto:
            self._attribute(attribute, body, 1, stack)
        self._nodes_of(function.node, body, 1, stack)
        self._subgraphs(stack, body)

    def _graph(self, graph: onnx.GraphProto, body: _Body) -> None:
        self._subgraphs([(graph, 1)], body)

    def _subgraphs(self, stack: list[tuple[Any, int]], body: _Body) -> None:
        """Walk without recursion: a model in memory may be nested deeper than the interpreter's stack."""
        while stack:
            graph, depth = stack.pop()
            if depth > self.limits.nesting:
                self.too_large(f"has graphs within graphs more than {self.limits.nesting} deep", "nesting")
            self._texts("a graph", [(graph.name, graph.doc_string)])
            self._entries("a graph", graph.metadata_props)
            for tensor in graph.initializer:
                body.nbytes += self._tensor(tensor)
            for sparse in graph.sparse_initializer:
                body.nbytes += self._sparse(sparse)
            for info in (*graph.input, *graph.output, *graph.value_info):
                self.info(info)
            self._nodes_of(graph.node, body, depth, stack)

    def _nodes_of(self, nodes: Any, body: _Body, depth: int, stack: list[tuple[Any, int]]) -> None:
        body.depth = max(body.depth, depth)
        body.nodes += len(nodes)
        self._nodes += len(nodes)
        if self._nodes > self.limits.nodes:
            self.too_large(f"has more than {self.limits.nodes:,} nodes", "nodes")
        for node in nodes:
            call = _identity(node.domain, node.op_type, node.overload)
            # A text that is no UTF-8 comes as bytes.
            if bytes in set(map(type, (*call, node.name, node.doc_string, *node.input, *node.output))):
                self._not_text("a node")
            self._entries("a node", node.metadata_props)
            if call[:2] in _RUN_CODE and call not in self._functions:
                self.refuse(f"has operator {call[1]} of {call[0]}, which runs code of its own")
            if call in self._functions:
                count, deepest = body.calls.get(call, (0, 0))
                body.calls[call] = [count + 1, max(deepest, depth)]
            for attribute in node.attribute:
                self._attribute(attribute, body, depth, stack)
                if call[0] in _STANDARD:
                    self._strings(attribute)

    def _strings(self, attribute: Any) -> None:
        """Strings of standard operators are text; others may hold anything."""
        try:
            if attribute.type == onnx.AttributeProto.STRING:
                attribute.s.decode()
            elif attribute.type == onnx.AttributeProto.STRINGS:
                b" ".join(attribute.strings).decode()
        except UnicodeDecodeError:
            self._not_text(f"attribute {shown(attribute.name)}")

    def _attribute(self, attribute: Any, body: _Body, depth: int, stack: list[tuple[Any, int]]) -> None:
        if bytes in (type(attribute.name), type(attribute.ref_attr_name), type(attribute.doc_string)):
            self._not_text("an attribute")
        if attribute.ref_attr_name and attribute.ref_attr_name not in body.parameters:
            named = f"{shown(attribute.ref_attr_name)}, which {body.label} has not"
            self.refuse(f"has attribute {shown(attribute.name)} that refers to an attribute {named}")
        if attribute.HasField("t"):
            body.nbytes += self._tensor(attribute.t)
        for tensor in attribute.tensors:
            body.nbytes += self._tensor(tensor)
        if attribute.HasField("sparse_tensor"):
            body.nbytes += self._sparse(attribute.sparse_tensor)
        for sparse in attribute.sparse_tensors:
            body.nbytes += self._sparse(sparse)
        if attribute.HasField("g"):
            stack.append((attribute.g, depth + 1))
        stack.extend((graph, depth + 1) for graph in attribute.graphs)
        for kind in (*([attribute.tp] if attribute.HasField("tp") else ()), *attribute.type_protos):
            self._type(kind, attribute.name)

    def _expanded(self, main: _Body) -> None:
        """Sizes with every call written out: functions that call others twice double at every level."""
        known: dict[_Call, tuple[int, int, int]] = {}

        def size(body: _Body) -> tuple[int, int, int]:
            nodes, depth, nbytes = body.nodes, body.depth, body.nbytes
            for call, (count, deep) in body.calls.items():
                inner = known[call]
                nodes += count * inner[0]
                depth = max(depth, deep + inner[1])
                nbytes += count * inner[2]
            if nodes > self.limits.nodes:
                self.too_large(
                    f"stands for more than {self.limits.nodes:,} nodes, functions inlined", "nodes"
                )
            if depth > self.limits.nesting:
                self.too_large(f"has calls and graphs more than {self.limits.nesting} deep", "nesting")
            if nbytes > self.limits.total_bytes:
                self.too_large(f"holds tensors of {nbytes:,} bytes", "total_bytes")
            return nodes, depth, nbytes

        open_calls: dict[_Call, None] = {}
        for root in list(self._functions):
            stack = [root]
            while stack:
                call = stack[-1]
                body = self._functions[call]
                missing = [c for c in body.calls if c not in known]
                if call in known or not missing:
                    stack.pop()
                    open_calls.pop(call, None)
                    known.setdefault(call, size(body))
                    continue
                open_calls[call] = None
                again = next((c for c in missing if c in open_calls), None)
                if again is not None:
                    self.refuse(f"has a function that calls itself: {self._functions[again].label}")
                stack.append(missing[0])
        size(main)

    # -- what it is made of ------------------------------------------------------------------------

    def _texts(self, where: str, groups: Iterable[Iterable[Any]]) -> None:
        for group in groups:
            if any(isinstance(text, bytes) for text in group):
                self._not_text(where)

    def _entries(self, where: str, entries: Iterable[Any]) -> None:
        self._texts(where, [(entry.key, entry.value) for entry in entries])

    def _not_text(self, where: str) -> NoReturn:
        self.refuse(f"has a name or text in {where} that is not UTF-8")

    def info(self, info: onnx.ValueInfoProto) -> None:
        self._texts("a value", [(info.name, info.doc_string)])
        self._entries("a value", info.metadata_props)
        self._type(info.type, info.name)

    def _type(self, kind: Any, name: str) -> None:
        for _ in range(self.limits.nesting):
            field = kind.WhichOneof("value")
            if field in ("tensor_type", "sparse_tensor_type"):
                self._shape(getattr(kind, field), name)
                return
            if field == "map_type":
                kind = kind.map_type.value_type
            elif field in ("sequence_type", "optional_type"):
                kind = getattr(kind, field).elem_type
            else:
                return
        self.too_large(f"has a type within types more than {self.limits.nesting} deep", "nesting")

    def _shape(self, kind: Any, name: str) -> None:
        if kind.elem_type not in _BITS and kind.elem_type not in _OTHER_TYPES:
            self.refuse(f"has value {shown(name)} of element type {kind.elem_type}, which does not exist")
        if len(kind.shape.dim) > _LARGEST_RANK:
            self.refuse(f"has value {shown(name)} of more than {_LARGEST_RANK} dimensions")
        dims = []
        for dim in kind.shape.dim:
            if dim.WhichOneof("value") == "dim_value":
                dims.append(dim.dim_value)
            elif isinstance(dim.dim_param, bytes):
                self._not_text("a shape")
        # Exporters write -1 for a size that is unknown.
        nbytes = math.prod(d for d in dims if d > 0) * _BITS.get(kind.elem_type, 8) // 8
        if nbytes > self.limits.tensor_bytes:
            self.too_large(f"has value {shown(name)} of {nbytes:,} bytes", "tensor_bytes")

    def _tensor(self, tensor: TensorProto) -> int:
        """Bytes of a tensor, which it has, too, unless they are in another file."""
        self._texts("a tensor", [(tensor.name, tensor.doc_string)])
        self._entries("a tensor", tensor.external_data)
        self._entries("a tensor", tensor.metadata_props)
        nbytes = self._checked_size(tensor.dims, tensor.data_type, tensor.name)
        problem = None
        if tensor.data_location == TensorProto.EXTERNAL:
            if tensor.data_type == TensorProto.STRING:
                problem = "holds text, which cannot be in another file"
        else:
            problem = _mismatch(tensor, nbytes)
        if problem:
            self.refuse(f"has tensor {shown(tensor.name)} that {problem}")
        self.contents.tensors.append(tensor)
        return nbytes

    def _checked_size(self, dims: Iterable[int], kind: int, name: str) -> int:
        dims = list(dims)
        if kind not in _BITS and kind != TensorProto.STRING:
            self.refuse(f"has tensor {shown(name)} of element type {kind}, which does not exist")
        if any(d < 0 for d in dims) or len(dims) > _LARGEST_RANK:
            self.refuse(f"has tensor {shown(name)} of shape {shown(dims)}, which is impossible")
        # An array of no elements has strides as well.
        nbytes = size_of([max(d, 1) for d in dims], kind)
        if nbytes > self.limits.tensor_bytes:
            self.too_large(f"has tensor {shown(name)} of {nbytes:,} bytes", "tensor_bytes")
        return size_of(dims, kind)

    def _sparse(self, sparse: onnx.SparseTensorProto) -> int:
        """Bytes of a sparse tensor written out as a dense one."""
        name, count = sparse.values.name, math.prod(sparse.values.dims)
        for part in (sparse.values, sparse.indices):
            self._tensor(part)
            del self.contents.tensors[-1]
            if part.data_location == TensorProto.EXTERNAL:
                self.refuse(f"has sparse tensor {shown(name)} with data in another file")
        if sparse.values.data_type == TensorProto.STRING or sparse.indices.data_type != TensorProto.INT64:
            self.refuse(f"has sparse tensor {shown(name)} of text, or with indices that are not int64")
        shapes = ([count], [count, len(sparse.dims)])
        if len(sparse.values.dims) != 1 or list(sparse.indices.dims) not in shapes:
            self.refuse(f"has sparse tensor {shown(name)} whose indices do not fit its values")
        self.contents.sparse.append(sparse)
        return self._checked_size(sparse.dims, sparse.values.data_type, name)


def _identity(domain: str, name: str, overload: str) -> _Call:
    """What a call finds its function by."""
    return normal_domain(domain), name, overload


# -- sizes -------------------------------------------------------------------------------------------


def data_size(tensor: TensorProto) -> int:
    """Bytes of a tensor's data, from its shape: reading the field itself would copy it."""
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    return size_of(tensor.dims, tensor.data_type)


def size_of(dims: Iterable[int], kind: int) -> int:
    """Bytes of a tensor of a shape; of text, the references to it."""
    return (math.prod(dims) * _BITS.get(kind, 64) + 7) // 8


def _mismatch(tensor: TensorProto, nbytes: int) -> str | None:
    """What is wrong with the data of a tensor that claims so many bytes."""
    if tensor.HasField("segment"):
        return "is a segment of another one, which nothing reads"
    if tensor.HasField("raw_data"):
        if tensor.data_type == TensorProto.STRING:
            return "holds text as raw data"
        has, wanted, unit = len(tensor.raw_data), nbytes, "bytes"
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        has, wanted, unit = len(getattr(tensor, field)), _entries(tensor), f"entries of {field}"
    if has != wanted:
        return f"has {has:,} {unit} where its shape {shown(list(tensor.dims))} asks for {wanted:,}"
    return None


def _entries(tensor: TensorProto) -> int:
    """How many numbers a tensor has in a field of numbers."""
    count, bits = math.prod(tensor.dims), _BITS.get(tensor.data_type, 64)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    return (count * bits + 7) // 8 if bits in (2, 4) else count


def _bits() -> dict[int, int]:
    """Bits of an element by type, of the types that the installed onnx has."""
    sizes = {
        64: "INT64 UINT64 DOUBLE COMPLEX64",
        32: "FLOAT INT32 UINT32",
        16: "INT16 UINT16 FLOAT16 BFLOAT16",
        8: "INT8 UINT8 BOOL FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0",
        6: "FLOAT6E2M3 FLOAT6E3M2",
        4: "INT4 UINT4 FLOAT4E2M1",
        2: "INT2 UINT2",
        128: "COMPLEX128",
    }
    known = dict(TensorProto.DataType.items())
    return {known[n]: bits for bits, names in sizes.items() for n in names.split() if n in known}


_BITS = _bits()
_OTHER_TYPES = (TensorProto.UNDEFINED, TensorProto.STRING)

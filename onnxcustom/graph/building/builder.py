"""The builder every rule, loss and update function is written against.

``op.Add(x, y)`` appends a node and returns a :class:`Var`; variables take Python operators,
numbers become constants of the dtype of the operand beside them, and names are deterministic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.graph.analysis.operators import normal_domain, operator_schema

from .forms import stand_in, written
from .variables import Operand, Var

__all__ = ["Builder", "Operand", "Var"]


class Builder:
    """Appends nodes to a list, to be put into a graph by its owner.

    Parameters
    ----------
    opset : int
        Version of the default ONNX domain; output types are inferred from its schemas.
    prefix : str
        Put before every generated name.
    taken : iterable of str
        Names that must not be generated. The set is shared when a ``set`` is given, so that
        several builders of one graph never collide.

    Attributes
    ----------
    nodes : list of onnx_ir.Node
        Nodes in order of creation, which is a topological order.
    initializers : list of onnx_ir.Value
        Constants met on the way, one per distinct dtype, shape and content.
    domains : dict of str to int
        Versions of the other domains in use.

    Examples
    --------
    >>> import onnx_ir as ir
    >>> op = Builder(opset=18)
    >>> x = op.input("x", ir.DataType.DOUBLE, ["N"])
    >>> y = 1 / (1 + op.Exp(-x))
    >>> [node.op_type for node in op.nodes]
    ['Neg', 'Exp', 'Add', 'Div']
    >>> y.dtype
    DOUBLE
    """

    def __init__(self, opset: int, prefix: str = "", taken: Iterable[str] = ()) -> None:
        self.opset = opset
        self.prefix = prefix
        self.taken: set[str] = taken if isinstance(taken, set) else set(taken)
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.domains: dict[str, int] = {}
        self._constants: dict[tuple, Var] = {}
        self._made: dict[Hashable, Var] = {}
        self._counters: dict[str, int] = {}

    # -- names ---------------------------------------------------------------------------------

    def unique(self, base: str) -> str:
        """A name not used so far: `base` itself if free, else with a number behind it."""
        name = f"{self.prefix}{base}"
        while name in self.taken:
            self._counters[base] = self._counters.get(base, 0) + 1
            name = f"{self.prefix}{base}_{self._counters[base]}"
        self.taken.add(name)
        return name

    # -- variables -----------------------------------------------------------------------------

    def wrap(self, value: ir.Value | Var) -> Var:
        """The variable of an existing value."""
        return value if isinstance(value, Var) else Var(self, value)

    def input(self, name: str, dtype: ir.DataType | int, shape: Sequence | None = None) -> Var:
        """A new graph input called `name` exactly (the owner lists it in the graph)."""
        self.taken.add(name)
        return Var(self, _value(name, ir.DataType(dtype), shape))

    def const(self, value: Any, dtype: ir.DataType | int | None = None, like: Var | None = None) -> Var:
        """A constant; its dtype is `dtype`, else that of `like`, else the array's own.

        Python integers without a dtype become int64 and Python floats float32.
        """
        if dtype is None and like is not None:
            dtype = like.dtype
        array = np.asarray(value)
        if dtype is not None:
            array = array.astype(ir.DataType(dtype).numpy())
        elif not isinstance(value, (np.ndarray, np.generic)) and array.dtype == np.float64:
            array = array.astype(np.float32)
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = self.unique("const")
            tensor = ir.Tensor(array, name=name)  # ir.tensor() asks what it is given, slowly
            self._constants[key] = Var(self, self.initializer(name, tensor))
        return self._constants[key]

    def once(self, key: Hashable, make: Callable[[], Var]) -> Var:
        """What `make` emits, the first time only: later calls with the key get the same variable."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer called `name` exactly."""
        self.taken.add(name)
        value = _value(name, tensor.dtype, list(tensor.shape))
        value.const_value = tensor
        self.initializers.append(value)
        return value

    # -- nodes ---------------------------------------------------------------------------------

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return functools.partial(self.call, op_type)

    def call(
        self,
        op_type: str,
        *operands: Operand,
        domain: str = "",
        version: int = 1,
        outputs: int | Sequence[str] = 1,
        **attributes: Any,
    ) -> Any:
        """Append a node, in the form that the opset has of the operator.

        Parameters
        ----------
        op_type : str
            Operator.
        operands : Var, onnx_ir.Value, number, array or None
            Numbers and arrays become constants of the dtype the schema asks for: that of the
            first typed operand bound to the same type variable, else the schema's own.
        domain, version : str, int
            Domain of the operator and, unless it is ONNX's own, its version.
        outputs : int or list of str
            Number of outputs, or their base names.
        attributes
            Attributes by name; None is left out. A ``onnx_ir.Graph`` makes a subgraph.

        Returns
        -------
        Var or tuple of Var
            One variable, or a tuple if `outputs` is not 1.
        """
        if normal_domain(domain) == "" and (emit := stand_in(self, op_type)) is not None:
            return emit(self, *operands, **{k: v for k, v in attributes.items() if v is not None})
        return self.node(op_type, *operands, domain=domain, version=version, outputs=outputs, **attributes)

    def node(
        self,
        op_type: str,
        *operands: Operand,
        domain: str = "",
        version: int = 1,
        outputs: int | Sequence[str] = 1,
        **attributes: Any,
    ) -> Any:
        """Append a node of that operator: :meth:`call` of one that the opset has."""
        domain = normal_domain(domain)
        if domain:
            self.domains[domain] = version
        given, attrs = list(operands), {k: v for k, v in attributes.items() if v is not None}
        if domain == "":
            version = self.opset
            given, attrs = written(op_type, version, given, attrs)
        schema = operator_schema(op_type, version, domain)
        inputs = self._operands(schema, given)
        names = [op_type] * outputs if isinstance(outputs, int) else list(outputs)
        types = _output_types(schema, inputs, attrs, len(names))
        values = [
            _value(self.unique(name), dtype, _output_shape(op_type, inputs) if i == 0 else None)
            for i, (name, dtype) in enumerate(zip(names, types, strict=False))
        ]
        node = ir.node(
            op_type,
            [None if v is None else v.value for v in inputs],
            attributes={k: _attribute(k, v) for k, v in attrs.items()},
            domain=domain,
            outputs=values,
            name=self.unique(f"{op_type}_node"),
        )
        self.nodes.append(node)
        made = tuple(Var(self, v) for v in values)
        return made[0] if len(made) == 1 and not isinstance(outputs, (list, tuple)) else made

    def _operands(self, schema: onnx.defs.OpSchema | None, operands: Sequence[Operand]) -> list[Var | None]:
        """Variables for all operands, constants typed by the operator's type variables."""
        known: dict[str, ir.DataType] = {}
        for i, operand in enumerate(operands):
            if isinstance(operand, (Var, ir.Value)) and operand.dtype is not None:
                known.setdefault(_type_str(schema, i), operand.dtype)
        made: list[Var | None] = []
        for i, operand in enumerate(operands):
            if operand is None:
                made.append(None)
            elif isinstance(operand, (Var, ir.Value)):
                made.append(self.wrap(operand))
            else:
                type_str = _type_str(schema, i)
                made.append(self.const(operand, known.get(type_str) or _fixed_type(schema, type_str)))
        while made and made[-1] is None:
            made.pop()
        return made

    # -- results -------------------------------------------------------------------------------

    def opset_imports(self) -> dict[str, int]:
        """Versions of all domains in use."""
        return {"": self.opset, **self.domains}

    def graph(self, inputs: Sequence[Var], outputs: Sequence[Var], name: str = "graph") -> ir.Graph:
        """A graph of everything appended so far."""
        return ir.Graph(
            [v.value for v in inputs],
            [v.value for v in outputs],
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports=self.opset_imports(),
            name=name,
        )


# Type variables whose constants are indices wherever ONNX has them, though int32 is allowed too.
_INDICES = frozenset({"Tind", "Tidx", "Tindices"})


# Operators whose output has the broadcast shape of their inputs: enough to keep shapes through
# the arithmetic that rules are made of.
_BROADCAST = frozenset(
    "Add Sub Mul Div Pow Min Max Neg Exp Log Sqrt Reciprocal Abs Sign Relu Sigmoid Tanh Erf Softplus "
    "Sin Cos Where Less LessOrEqual Greater GreaterOrEqual Equal And Or Not Cast Identity Clip "
    "Softmax LogSoftmax Floor Ceil".split()
)


def _value(name: str, dtype: ir.DataType | None, shape: Sequence | None) -> ir.Value:
    return ir.Value(
        name=name,
        type=None if dtype is None else ir.TensorType(dtype),
        shape=None if shape is None else ir.Shape(shape),
    )


def _attribute(name: str, value: Any) -> Any:
    """What makes an attribute: integers as one already, as onnx_ir would ask lists for protocols first."""
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        return ir.AttrInt64s(name, value)
    return value


def _type_str(schema: onnx.defs.OpSchema | None, i: int) -> str:
    """Type variable (or fixed type) of operand i; operators without schema have one variable."""
    if schema is None or not schema.inputs:
        return "T"
    return schema.inputs[min(i, len(schema.inputs) - 1)].type_str


def _fixed_type(schema: onnx.defs.OpSchema | None, type_str: str) -> ir.DataType | None:
    """The dtype that a type variable stands for whatever the operands are, None if it varies."""
    if type_str in _INDICES:
        return ir.DataType.INT64
    allowed = _allowed_types(schema.name, schema.since_version, schema.domain, type_str) if schema else ()
    return _DTYPES.get(allowed[0]) if len(allowed) == 1 else None


@functools.cache
def _allowed_types(op_type: str, version: int, domain: str, type_str: str) -> tuple[str, ...]:
    schema = operator_schema(op_type, version, domain)
    for constraint in schema.type_constraints:
        if constraint.type_param_str == type_str:
            return tuple(constraint.allowed_type_strs)
    return (type_str,)


_DTYPES = {
    "tensor(int64)": ir.DataType.INT64,
    "tensor(int32)": ir.DataType.INT32,
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(string)": ir.DataType.STRING,
    "tensor(uint8)": ir.DataType.UINT8,
    "tensor(int8)": ir.DataType.INT8,
}


def _output_types(
    schema: onnx.defs.OpSchema | None, inputs: Sequence[Var | None], attrs: dict[str, Any], n: int
) -> list[ir.DataType | None]:
    known: dict[str, ir.DataType] = {}
    for i, var in enumerate(inputs):
        if var is not None and var.dtype is not None:
            known.setdefault(_type_str(schema, i), var.dtype)
    if schema is None:
        return [known.get("T")] * n
    types: list[ir.DataType | None] = []
    for i in range(n):
        type_str = schema.outputs[min(i, len(schema.outputs) - 1)].type_str
        types.append(known.get(type_str) or _fixed_type(schema, type_str))
    if types and types[0] is None:
        types[0] = _type_from_attributes(attrs)
    if schema.name in ("Cast", "ConstantOfShape", "EyeLike", "Constant"):
        types[0] = _type_from_attributes(attrs) or types[0] or ir.DataType.FLOAT
    return types


def _type_from_attributes(attrs: dict[str, Any]) -> ir.DataType | None:
    for key in ("to", "dtype", "output_dtype"):
        if key in attrs:
            return ir.DataType(attrs[key])
    value = attrs.get("value")
    return value.dtype if isinstance(value, ir.TensorProtocol) else None


def _output_shape(op_type: str, inputs: Sequence[Var | None]) -> list[int | str | None] | None:
    """Broadcast shape of an elementwise operator, None where it is not certain."""
    if op_type not in _BROADCAST:
        return None
    shapes = [v.shape if v is not None else () for v in inputs]
    if op_type in ("Clip", "Cast"):
        shapes = shapes[:1]
    if any(s is None for s in shapes):
        return None
    rank = max((len(s) for s in shapes if s is not None), default=0)
    result: list[int | str | None] = []
    for axis in range(-rank, 0):
        dims = {s[axis] for s in shapes if s is not None and len(s) >= -axis} - {1}
        if len(dims) > 1:
            static = [d for d in dims if isinstance(d, int)]
            dims = {static[0]} if len(static) == 1 else {None}
        result.append(dims.pop() if dims else 1)
    return result

"""Which tensors of a model are weights, and putting new ones in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidDataError, UnknownNameError
from onnxcustom.graph import training_info
from onnxcustom.graph.io import ModelLike, to_ir, to_proto
from onnxcustom.graph.ml_operators import ROLE_KEY
from onnxcustom.graph.operands import FLOATS, is_bias_add, passes_through, single_counts, trainable
from onnxcustom.graph.passes import SeparateOutputsPass
from onnxcustom.graph.prepare import structure
from onnxcustom.graph.sites import site_of, tag
from onnxcustom.graph.statistics import separated
from onnxcustom.graph.traversal import subgraphs, value_names

__all__ = [
    "constants",
    "rename_weights",
    "replace_constants",
    "replace_weights",
    "trainable_values",
    "weights",
]


# -- public functions ------------------------------------------------------------------------


def weights(model: ModelLike) -> dict[str, np.ndarray]:
    """Find what can be trained in a model.

    A weight is a floating-point tensor of more than one element, in an initializer or a constant,
    that the model reads as a differentiable data operand: also behind ``Identity``, in branches of
    If, Loop and Scan, in functions, and the coefficients of LinearRegressor and LinearClassifier.
    A tensor of one element is one only as operand of Conv, Gemm, MatMul, a normalization, or as a
    bias added to one of these. Never: bounds, exponents, scales of Resize or of quantization,
    statistics of BatchNormalization, what feeds shapes only, masks of zeros and minus infinity, and
    the constants of a scaler in front of the model, be it a ``Scaler`` or written out (one constant
    for each column subtracted from a model input, another multiplied or divided by).

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form.

    Returns
    -------
    dict of str to ndarray
        Copies of the weights in their own dtype, in the order in which the graph reads them. Names are
        the model's own. Where it has none, or two branches have the same, names are made up, the same
        for the model, its prepared form and the trained model.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 18]>
    ...     g (float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {1, 2}, float[1] b = {3}> {
    ...         y = Gemm(x, w, b)
    ...     }''')
    >>> for name, array in weights(model).items():
    ...     print(name, array.shape)
    w (2, 1)
    b (1,)
    """
    prepared = to_ir(model)
    tag(prepared)
    structure(prepared)
    return {_name(v): np.array(_array(v)) for v in trainable_values(prepared)}


def replace_weights(model: ModelLike, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Put other weights into a model.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form; left unchanged.
    weights : mapping of str to array
        New values for some or all of the weights, of the same shape and dtype.

    Returns
    -------
    onnx.ModelProto
        The model in its own form: a weight that was in a ``Constant``, a branch or an attribute of
        ``LinearClassifier`` is written there. Everything else is as it was.

    Raises
    ------
    UnknownNameError
        A name that is no weight of the model; the message lists those that are.
    InvalidDataError
        Wrong shape or dtype, or values that are not finite.

    Examples
    --------
    >>> import numpy as np, onnx.parser
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 18]>
    ...     g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }''')
    >>> changed = replace_weights(model, {"w": np.zeros(2, dtype=np.float32)})
    >>> onnx.numpy_helper.to_array(changed.graph.initializer[0])
    array([0., 0.], dtype=float32)
    """
    return _replace(model, weights)


def constants(model: ModelLike, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Constant tensors of a model's main graph, weights or not, under the names they have when prepared.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form.
    names : iterable of str
        Which ones.

    Returns
    -------
    dict of str to ndarray
        Copies.

    Raises
    ------
    UnknownNameError
        The model has no such constant.
    """
    names = list(names)
    if not names:
        return {}
    _, found = _located(model, every=True)
    _check_known(dict.fromkeys(names), found)
    return {name: np.array(_array(found[name])) for name in names}


def replace_constants(model: ModelLike, tensors: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """:func:`replace_weights` for any constant tensor, such as the statistics of BatchNormalization."""
    return _replace(model, tensors, every=True)


def _replace(model: ModelLike, tensors: Mapping[str, np.ndarray], every: bool = False) -> onnx.ModelProto:
    if not isinstance(tensors, Mapping):
        raise InvalidDataError(
            f"weights: a mapping of names to arrays was expected, not {type(tensors).__name__}."
        )
    own, found = _located(model, every)
    _check_known(tensors, found)
    arrays = {name: _checked(name, array, found[name]) for name, array in tensors.items()}
    apart = separated(next(iter(found.values())).graph, arrays) if arrays else ()
    for value in apart:  # one tensor with one of these in the user's model, but no longer
        found[_name(value)], arrays[_name(value)] = value, np.array(_array(value))
    for name, array in arrays.items():
        site = site_of(found[name])
        assert site is not None
        site.write(array)
    return to_proto(own)


def rename_weights(model: ModelLike, names: Mapping[str, str]) -> onnx.ModelProto:
    """Give weights of a model other names.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form; left unchanged.
    names : mapping of str to str
        New names of some or all of the weights.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    UnknownNameError
        A name that is no weight of the model, or a new one that is empty, given twice or taken by
        another value.
    """
    own, found = _located(model)
    _check_known(names, found)
    kept = value_names(own) - set(names) | (set(found) - set(names))
    for old, new in names.items():
        if not isinstance(new, str) or not new:
            raise UnknownNameError(
                f"New name of weight {old!r}: a non-empty string was expected, not {new!r}."
            )
        if new in kept:
            raise UnknownNameError(
                f"Weight {old!r} cannot be called {new!r}: the model has that name already."
            )
        kept.add(new)
    if set(names) & {f"{v.name}_value" for v in own.graph.outputs}:
        SeparateOutputsPass()(own)  # the model's outputs keep their names
    # Two steps, so that names can be exchanged.
    for step in ({old: f"{new}\0" for old, new in names.items()}, names):
        for old, new in step.items():
            site = site_of(found[old])
            assert site is not None
            site.rename(new)
    training_info.rename(own, names)
    return to_proto(own)


# -- finding ---------------------------------------------------------------------------------


def trainable_values(model: ir.Model) -> list[ir.Value]:
    """The weights of a model in prepared form.

    Parameters
    ----------
    model : onnx_ir.Model
        As :func:`onnxcustom.graph.prepare` returns it.

    Returns
    -------
    list of onnx_ir.Value
        Initializers of the main graph, in the order in which the graph reads them.
    """
    reads = _Reads(model.graph)
    found = [v for v in reads.in_order() if _counts(v, reads)]
    scaler = _written_out_scaler(model.graph)
    # A model of nothing but such a pair is not a scaler in front of a model.
    return [v for v in found if v not in scaler] if any(v not in scaler for v in found) else found


class _Reads:
    """Which constants the graph reads as data, by one walk back from the outputs.

    ``live`` are the values whose content reaches an output; ``data`` those read as differentiable
    operands by something alive; ``single`` those read where a single element counts.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.live: set[ir.Value] = set(graph.outputs)
        self.data: set[ir.Value] = set()
        self.single: set[ir.Value] = set()
        self.added: set[ir.Value] = set()
        self._order: list[ir.Value] = []
        self._walk(graph)

    def in_order(self) -> Iterator[ir.Value]:
        """Initializers read as data, first read first."""
        return iter(dict.fromkeys(v for v in reversed(self._order) if v in self.data))

    def _walk(self, graph: ir.Graph) -> None:
        for node in reversed(graph):
            if any(v in self.live for v in node.outputs):
                if any(True for _ in subgraphs(node)):
                    self._control_flow(node)
                else:
                    self._node(node)

    def _node(self, node: ir.Node) -> None:
        for index in reversed(range(len(node.inputs))):
            value = node.inputs[index]
            if value is None:
                continue
            if passes_through(node, index):
                self.live.add(value)
            if trainable(node, index):
                self._read(value)
                if single_counts(node, index):
                    self.single.add(value)
                if node.op_type in ("Add", "Where", "Sub") and not is_bias_add(node, index):
                    self.added.add(value)

    def _read(self, value: ir.Value) -> None:
        self.data.add(value)
        if value.is_initializer():
            self._order.append(value)

    def _control_flow(self, node: ir.Node) -> None:
        """If, Loop, Scan and the like: what the bodies read, then what is handed to them."""
        handed: dict[int, ir.Value] = {}
        for body in reversed(list(subgraphs(node))):
            first = 1 if node.op_type == "Loop" else 0  # the condition is no data
            self.live.update(body.outputs[first:])
            self._walk(body)
            # Operand i is input i of a body; the operands If and Loop start with are control.
            if node.op_type != "If":
                handed.update(enumerate(body.inputs))
        control = {"If": 1, "Loop": 2}.get(node.op_type, 0)
        for index in reversed(range(control, len(node.inputs))):
            value, inner = node.inputs[index], handed.get(index)
            if value is None or inner is None:
                continue
            if inner in self.live:
                self.live.add(value)
            if inner in self.data:
                self._read(value)
            if inner in self.single:
                self.single.add(value)


def _counts(value: ir.Value, reads: _Reads) -> bool:
    """Whether an initializer read as data is a weight."""
    tensor = value.const_value
    if tensor is None or tensor.dtype not in FLOATS or tensor.size == 0:
        return False
    if tensor.size == 1:
        return value in reads.single
    if value.metadata_props.get(ROLE_KEY):
        return False
    return value not in reads.added or not _is_mask(_array(value))


def _is_mask(array: np.ndarray) -> bool:
    """Whether an addend only blocks: zeros and minus infinity, the latter at least once."""
    blocked = array == -np.inf
    return bool(blocked.any()) and not bool(array[~blocked].any())


def _written_out_scaler(graph: ir.Graph) -> set[ir.Value]:
    """Constants of scalers in front of the model: ``(x - a) * b``, ``(x - a) / b``, ``x * b + a``."""
    found: set[ir.Value] = set()
    for value in graph.inputs:
        chain: list[tuple[bool, ir.Value]] = []
        while len(value.uses()) == 1 and not value.is_graph_output():
            ((node, index),) = value.uses()
            if node.domain not in ("", "ai.onnx"):
                break
            if node.op_type not in ("Cast", "Identity"):
                if node.op_type not in ("Sub", "Mul", "Div", "Add") or (
                    node.op_type in ("Sub", "Div") and index == 1
                ):
                    break
                constant = node.inputs[1 - index]
                if constant is None or not _one_per_column(constant):
                    break
                chain.append((node.op_type in ("Mul", "Div"), constant))
            value = node.outputs[0]
        sizes = {c.const_value.size for _, c in chain if c.const_value is not None}
        if len(sizes) == 1 and len({scales for scales, _ in chain}) == 2 and not value.is_graph_output():
            found.update(c for _, c in chain)
    return found


def _one_per_column(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        tensor is not None
        and value.is_initializer()
        and len(value.uses()) == 1
        and tensor.size > 1
        and sum(d != 1 for d in tensor.shape) == 1
    )


# -- replacing -------------------------------------------------------------------------------


def _located(model: ModelLike, every: bool = False) -> tuple[ir.Model, dict[str, ir.Value]]:
    """The user's model and its weights (or every constant) by name, each with its site in that model."""
    own = to_ir(model)
    tag(own)
    prepared = own.clone()
    structure(prepared)
    values = prepared.graph.initializers.values() if every else trainable_values(prepared)
    return own, {_name(v): v for v in values if site_of(v) is not None}


def _check_known(names: Mapping[str, object], found: Mapping[str, ir.Value]) -> None:
    unknown = [n for n in names if n not in found]
    if unknown:
        raise UnknownNameError(
            f"No weight of the model is called {', '.join(map(repr, unknown))}; its weights are "
            f"{', '.join(map(repr, found)) or 'none'}."
        )


def _checked(name: str, array: np.ndarray, value: ir.Value) -> np.ndarray:
    """The new value of a weight, if it fits."""
    old = value.const_value
    assert old is not None
    new = np.asarray(array)
    dtype, shape = old.dtype.numpy(), tuple(old.shape.numpy())
    if new.dtype != dtype:
        raise InvalidDataError(
            f"Weight {name!r} is of dtype {dtype}, the new one of {new.dtype}: convert it first."
        )
    if new.shape != shape:
        raise InvalidDataError(f"Weight {name!r} has shape {shape}, the new one {new.shape}.")
    bad = int(new.size - np.isfinite(new).sum())
    if bad:
        raise InvalidDataError(f"The new weight {name!r} has {bad} values that are NaN or infinite.")
    return np.array(new)  # the caller's array may change later


def _name(value: ir.Value) -> str:
    assert value.name
    return value.name


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()

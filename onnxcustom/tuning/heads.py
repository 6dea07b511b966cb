"""Another last layer: other classes, or another number of outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._parameters import check_count
from onnxcustom._registry import did_you_mean
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.graph.analysis.classifier import class_axis, find_logits
from onnxcustom.graph.analysis.kernels import uses
from onnxcustom.graph.analysis.traversal import all_names
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.files.io import ModelLike, to_proto
from onnxcustom.graph.preparation.passes import InferShapesPass
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.trainable.finding import trainable_values
from onnxcustom.graph.trainable.initialize import initialize_weights

__all__ = ["replace_head"]

# Layers that a head may be, and where their weight is.
_LAYERS = {"Gemm": (1,), "MatMul": (0, 1), "Conv": (1,)}
# What may follow a layer whatever its number of outputs is, if it has no other operand of that size.
_KEPT = frozenset(
    "Abs AveragePool Cast Clip Dropout Elu Erf Exp Flatten Gelu GlobalAveragePool GlobalMaxPool HardSigmoid "
    "HardSwish Identity LeakyRelu Log LogSoftmax MaxPool Mish Neg ReduceMax ReduceMean ReduceSum Relu "
    "Reshape Resize Selu Sigmoid Softmax Softplus Softsign Sqrt Squeeze Tanh Transpose Unsqueeze".split()
)
_SHAPELESS = ("Shape", "Size")
_ACTIVATIONS = ("auto", "none", "sigmoid", "softmax")


@dataclasses.dataclass(frozen=True)
class _Head:
    """The layer that is replaced."""

    node: ir.Node
    position: int  # of its weight
    result: ir.Value  # what it computes, its bias added
    features: ir.Value

    @property
    def axis(self) -> int:
        """Axis of what it computes that has its outputs."""
        if self.node.op_type == "Conv":
            return 1
        return -2 if self.node.op_type == "MatMul" and self.position == 0 else -1


def replace_head(
    model: ModelLike,
    outputs: int | Sequence[Any],
    *,
    at: str | None = None,
    seed: int = 0,
    activation: str = "auto",
) -> onnx.ModelProto:
    """Put a new last layer in place of a model's own, to train it for other classes or values.

    The new layer has the form of the old one (Gemm, MatMul with a bias, or Conv) and reads the same
    features; its weight starts at random, its bias at 0. They are called ``head_weight`` and
    ``head_bias``. What follows the layer (activations, poolings, reshapes) stays if it fits any number of
    outputs. If a node does not, a warning names it: what follows the new layer is removed, and the output
    is the layer's own, with the activation.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form. It is not changed.
    outputs : int or list of int or str
        Number of outputs, or the labels of the classes, one output each. An output of the model that
        holds labels, picked by the best score, is made anew with these (0, 1, 2, ... for a number).
    at : str, optional
        The layer to replace, by the name of its node or of the tensor that it computes. By default the last
        one with a weight before the model's first output of numbers.
    seed : int, default=0
        Of the new weight, drawn as by ``initialize_weights(method="lecun")``.
    activation : {'auto', 'softmax', 'sigmoid', 'none'}, default='auto'
        What makes probabilities of the scores. 'auto': what the model has; for one output a sigmoid where it
        has a softmax, and for several a softmax where it has a sigmoid of one column or rows that it divides
        by their sum.

    Returns
    -------
    onnx.ModelProto
        In prepared form: functions inlined, constants in initializers.

    Raises
    ------
    InvalidModelError
        There is no such layer, or several are last.
    UnknownNameError
        `at` is no name of a layer; no such activation.
    InvalidParameterError
        `outputs` is no number from 1 on and no list of different labels.

    Examples
    --------
    >>> import onnx.parser
    >>> import onnxcustom
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     m (float[N, 2] x) => (float[N, 2] p) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {0, 0}> {
    ...         z = Gemm(x, w, b)
    ...         p = Softmax(z)
    ...     }''')
    >>> new = replace_head(model, 5)
    >>> [(name, array.shape) for name, array in onnxcustom.weights(new).items()]
    [('head_weight', (2, 5)), ('head_bias', (5,))]
    """
    count, labels = _counted(outputs)
    if activation not in _ACTIVATIONS:
        raise UnknownNameError(f"activation must be one of {list(_ACTIVATIONS)}, not {activation!r}.")
    edited = Prepared.of(model).take()
    InferShapesPass()(edited)
    layers = _layers(edited)
    output = _first_of_numbers(edited)
    head = _last(output, layers) if at is None else _at(edited, at, layers)
    op = Builder(edited.opset_imports[""], taken=all_names(edited.graph))
    weight, scores = _new_layer(op, head, count)
    _Tail(edited, op, head, output, labels).put(scores, count, activation)
    _finish(edited, op)
    return initialize_weights(to_proto(edited), weight, "lecun", seed=seed)


def _counted(outputs: Any) -> tuple[int, list[Any] | None]:
    """Number of outputs, and labels of classes."""
    if isinstance(outputs, (list, tuple, np.ndarray)):
        labels = list(outputs)
        text = all(isinstance(v, str) for v in labels)
        whole = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in labels)
        if len(labels) < 2 or not (text or whole) or len(set(labels)) < len(labels):
            raise InvalidParameterError(
                "outputs must be a number of outputs, or at least two different labels, texts or whole "
                f"numbers, not {outputs!r}."
            )
        return len(labels), labels
    check_count("outputs", outputs, 1)
    return int(outputs), None


# -- which layer ------------------------------------------------------------------------------------------


def _layers(model: ir.Model) -> dict[ir.Node, int]:
    """Layers that multiply by a weight, and which operand that is."""
    found: dict[ir.Node, int] = {}
    for value in trainable_values(model):
        for use in uses(value, model.opset_imports[""]):
            if use.node.graph is model.graph and use.position in _LAYERS.get(use.node.op_type, ()):
                found[use.node] = use.position
    return found


def _first_of_numbers(model: ir.Model) -> ir.Value:
    """The output that a layer is looked for before."""
    for value in model.graph.outputs:
        producer = value.producer()
        if producer is not None and producer.op_type == "ZipMap" and producer.inputs[0] is not None:
            return producer.inputs[0]
        if value.dtype is not None and value.dtype.is_floating_point() and producer is not None:
            return value
    raise InvalidModelError(
        "No output of the model holds floating-point numbers: there is no layer to replace."
    )


def _last(output: ir.Value, layers: dict[ir.Node, int]) -> _Head:
    """The one layer that no other one stands behind."""
    found: dict[ir.Node, None] = {}
    seen: set[ir.Node] = set()
    waiting = [output.producer()]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node.op_type in _SHAPELESS:
            continue
        seen.add(node)
        if node in layers:
            found[node] = None
        else:
            waiting += [v.producer() for v in node.inputs if v is not None]
    if len(found) != 1:
        names = [node.name for node in found]
        raise InvalidModelError(
            f"Before output {output.name!r} there is no layer with a weight (Gemm, MatMul or Conv)."
            if not found
            else f"Several layers are last before output {output.name!r}: say which one to replace, at= one "
            f"of {names}."
        )
    (node,) = found
    return _head(node, layers[node])


def _at(model: ir.Model, at: str, layers: dict[ir.Node, int]) -> _Head:
    """The layer of that name, or that computes the tensor of that name."""
    heads = [_head(node, position) for node, position in layers.items()]
    for head in heads:
        if at in (head.node.name, head.node.outputs[0].name, head.result.name):
            return head
    names = [str(head.node.name) for head in heads]
    raise UnknownNameError(
        f"The model has no layer {at!r} with a weight.{did_you_mean(at, names)} Layers are {names}."
    )


def _head(node: ir.Node, position: int) -> _Head:
    features = node.inputs[1 - position if node.op_type == "MatMul" else 0]
    assert features is not None
    result = node.outputs[0]
    readers = [use.node for use in result.uses()]
    if node.op_type == "MatMul" and len(readers) == 1 and readers[0].op_type == "Add":
        others = [v for v in readers[0].inputs if v is not result]
        if len(others) == 1 and others[0] is not None and others[0].const_value is not None:
            result = readers[0].outputs[0]
    return _Head(node, position, result, features)


# -- the new layer ----------------------------------------------------------------------------------------


def _new_layer(op: Builder, head: _Head, count: int) -> tuple[str, Var]:
    """Emit it: the name of its weight, and what it computes."""
    node, position = head.node, head.position
    old = node.inputs[position]
    shape = [] if old is None or old.shape is None else [d for d in old.shape if isinstance(d, int)]
    if old is None or old.shape is None or len(shape) < len(old.shape):
        raise InvalidModelError(f"Node {node.name!r} ({node.op_type}): the shape of its weight is unknown.")
    dtype = old.dtype or ir.DataType.FLOAT
    x = op.wrap(head.features)
    sizes, attributes = _sizes(node, position, shape, count)
    weight, bias = (
        op.wrap(op.initializer(op.unique(f"head_{what}"), ir.tensor(np.zeros(size, dtype.numpy()))))
        for what, size in (("weight", sizes), ("bias", [count, 1] if head.axis == -2 else [count]))
    )
    name = str(weight.value.name)
    if node.op_type == "Conv":
        return name, op.Conv(x, weight, bias, **attributes)
    if node.op_type == "Gemm":
        return name, op.Gemm(x, weight, bias, **attributes)
    product = op.MatMul(weight, x) if position == 0 else op.MatMul(x, weight)
    return name, product + bias


def _sizes(node: ir.Node, position: int, shape: list[int], count: int) -> tuple[list[int], dict[str, Any]]:
    """Shape of the new weight, and attributes of the new node."""
    if node.op_type == "Conv":
        attributes = {k: a.value for k, a in node.attributes.items()}
        groups = attributes.get("group", 1)
        if count % groups:
            raise InvalidModelError(
                f"Node {node.name!r} (Conv) has {groups} groups: the number of outputs must be a multiple of "
                f"that, not {count}."
            )
        return [count, *shape[1:]], attributes
    if node.op_type == "Gemm":
        turned = node.attributes.get_int("transA", 0)
        inner = shape[1] if node.attributes.get_int("transB", 0) else shape[0]
        return [inner, count], {"transA": turned} if turned else {}
    if len(shape) > 2:
        raise InvalidModelError(
            f"Node {node.name!r} (MatMul) multiplies by a weight of shape {shape}, one matrix for each part "
            "of the data: name another layer with at=."
        )
    return ([count, shape[-1]] if position == 0 else [shape[0], count]), {}


# -- what follows it --------------------------------------------------------------------------------------


class _Tail:
    """What stands between a head and the outputs."""

    def __init__(
        self, model: ir.Model, op: Builder, head: _Head, output: ir.Value, labels: list[Any] | None
    ) -> None:
        self.model, self.op, self.head, self.output, self.labels = model, op, head, output, labels
        shape = head.result.shape
        size = None if shape is None else shape[head.axis]
        self.size = size if isinstance(size, int) else None
        self.broken: ir.Node | None = None
        self.axis = head.axis
        # The label of an output may be gone with ZipMap: its input stands for it.
        logits = find_logits(model, self._declared(), ()) if self._declared() else None
        self.logits = logits
        self.logarithms = class_axis(model, self._declared()) if self._declared() else None

    def _declared(self) -> str:
        """Name of the graph output that the numbers come out of."""
        for value in self.model.graph.outputs:
            producer = value.producer()
            through = (
                producer is not None and producer.op_type == "ZipMap" and producer.inputs[0] is self.output
            )
            if value is self.output or through:
                return str(value.name)
        return ""

    def put(self, scores: Var, count: int, activation: str) -> None:
        """Let the outputs come from the new scores."""
        kept, self.broken = self._follow()
        self.axis = self._axis(kept)
        wanted = self._activation(count, activation)
        made, known = scores, self.logits is not None or self.logarithms is not None
        for node in kept:
            if known and node.op_type in ("Softmax", "Sigmoid", "LogSoftmax"):
                continue  # made anew below
            made = self._again(node, made)
        made = self._activated(made, wanted)
        dependent = _behind(self.head.result)
        if self.broken is not None:
            where = f"Node {self.broken.name!r} ({self.broken.op_type})"
            warn_user(
                f"{where} does not go with {count} outputs in place of {self.size}: what follows the new "
                f"layer is removed, and output {self._declared()!r} is its own.",
                UserWarning,
            )
        self._outputs(made, count, dependent)

    def _follow(self) -> tuple[list[ir.Node], ir.Node | None]:
        """Nodes behind the head that fit any number of outputs; if one does not, none, and that one."""
        kept: list[ir.Node] = []
        value = self.head.result
        path = _before(self.output)
        while value is not self.output:
            readers = [n for n in dict.fromkeys(use.node for use in value.uses()) if n in path]
            if self.logits is not None and value.name == self.logits.name and readers[0].op_type not in _KEPT:
                return kept, None  # a softmax or sigmoid in several nodes, made anew
            if len(readers) != 1 or not self._fits(readers[0], value):
                return [], readers[0]
            kept.append(readers[0])
            value = readers[0].outputs[0]
        return kept, None

    def _fits(self, node: ir.Node, value: ir.Value) -> bool:
        if node.op_type not in _KEPT or node.domain not in ("", "ai.onnx") or node.inputs[0] is not value:
            return False
        for other in node.inputs[1:]:
            if other is None:
                continue
            if other.const_value is None:
                return False
            array = other.const_value.numpy()
            # Sizes and axes are no problem unless the old number of outputs is among the former.
            if node.op_type == "Reshape" and self.size is not None and self.size in array.tolist()[1:]:
                return False
        return True

    def _again(self, node: ir.Node, value: Var) -> Var:
        """The same node behind another value."""
        others = [None if v is None else self.op.wrap(v) for v in node.inputs[1:]]
        return self.op.node(node.op_type, value, *others, **{k: a.value for k, a in node.attributes.items()})

    def _activation(self, count: int, activation: str) -> str:
        """What makes probabilities of the new scores."""
        if activation != "auto":
            return activation
        if self.logits is None:
            return "none" if self.logarithms is None else "logarithms"
        kind = self.logits.kind
        if count == 1:
            return "sigmoid"
        return "softmax" if kind == "softmax" or self.logits.normalized or self.logits.columns == 1 else kind

    def _axis(self, kept: list[ir.Node]) -> int:
        """Axis of the classes in the output."""
        if self.broken is None and self.logits is not None and self.logits.kind == "softmax":
            return self.logits.axis
        if self.broken is None and self.logarithms is not None:
            return self.logarithms
        moved = any(node.op_type in ("Flatten", "Reshape", "Squeeze", "Transpose") for node in kept)
        return -1 if moved else self.head.axis

    def _activated(self, scores: Var, activation: str) -> Var:
        op, axis = self.op, self.axis
        if activation == "softmax":
            return op.Softmax(scores, axis=axis)
        if activation == "logarithms":
            return op.LogSoftmax(scores, axis=axis)
        return op.Sigmoid(scores) if activation == "sigmoid" else scores

    def _shape(self, count: int) -> ir.Shape | None:
        """Shape of the output, if it is known how many dimensions it has."""
        like = self.head.result.shape if self.broken else self.output.shape
        if like is None:
            return None
        dims = list(like)
        dims[self.axis] = count
        return ir.Shape(dims)

    def _outputs(self, made: Var, count: int, dependent: set[ir.Value]) -> None:
        """Give the outputs that came from the old head new ones, or none."""
        graph, found, removed = self.model.graph, [], []
        for value in graph.outputs:
            name, dtype = str(value.name), value.dtype
            if value is self.output or name == self._declared():
                fresh = self.op.Identity(made).value
                fresh.name, value.name = name, self.op.unique(f"{name}_before")
                fresh.dtype, fresh.shape = self.output.dtype, self._shape(count)
                found.append(fresh)
            elif value not in dependent:
                found.append(value)
            elif dtype in (ir.DataType.INT64, ir.DataType.STRING):
                fresh = self._label(made, count).value
                fresh.shape = value.shape
                fresh.name, value.name = name, self.op.unique(f"{name}_before")
                found.append(fresh)
            else:
                removed.append(name)
        if removed:
            warn_user(
                f"Outputs {removed} came from the layer that is replaced: they are removed.", UserWarning
            )
        graph.outputs[:] = found

    def _label(self, made: Var, count: int) -> Var:
        """The label of the best score."""
        op = self.op
        labels: list[Any] = list(range(max(2, count))) if self.labels is None else self.labels
        if count == 1:
            best = op.Cast(made > 0.5, to=ir.DataType.INT64)
            best = op.Squeeze(best, [self.axis])
        else:
            best = op.ArgMax(made, axis=self.axis, keepdims=0)
        if isinstance(labels[0], str):
            tensor: Any = ir.StringTensor([label.encode() for label in labels], shape=ir.Shape([len(labels)]))
        else:
            tensor = ir.tensor(np.array(labels, dtype=np.int64))
        return op.Gather(op.wrap(op.initializer(op.unique("head_labels"), tensor)), best, axis=0)


def _behind(value: ir.Value) -> set[ir.Value]:
    """Values that are computed from a value."""
    seen, waiting = {value}, [value]
    while waiting:
        for use in waiting.pop().uses():
            for output in use.node.outputs:
                if output not in seen:
                    seen.add(output)
                    waiting.append(output)
    return seen


def _before(value: ir.Value) -> set[ir.Node]:
    """Nodes that a value is computed by."""
    seen: set[ir.Node] = set()
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [v.producer() for v in node.inputs if v is not None]
    return seen


def _finish(model: ir.Model, op: Builder) -> None:
    """Put what was emitted into the graph, and drop what nothing reads any more."""
    graph = model.graph
    graph.extend(op.nodes)
    for value in op.initializers:
        if value.uses():
            graph.register_initializer(value)
    RemoveUnusedPass()(model)
    ir.passes.common.TopologicalSortPass()(model)

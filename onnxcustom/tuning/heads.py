"""Another last layer: other classes, or another number of outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._parameters import check_count
from onnxcustom._registry import did_you_mean
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.graph.analysis.classifier import class_axis, find_logits
from onnxcustom.graph.analysis.integers import FUSED, REMEDY, computes_integers
from onnxcustom.graph.analysis.kernels import uses
from onnxcustom.graph.analysis.traversal import all_names, subgraphs
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.files.io import ModelLike, to_proto
from onnxcustom.graph.preparation.passes import InferShapesPass
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.trainable.finding import trainable_values
from onnxcustom.graph.trainable.initialize import initialize_weights

from .class_names import rename_classes
from .following import Follower, Following, behind, chooses

__all__ = ["replace_head"]

# Layers that a head may be, and where their weight is.
_LAYERS = {"Gemm": (1,), "MatMul": (0, 1), "Conv": (1,), "ConvTranspose": (1,)}
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_SHAPELESS = ("Shape", "Size")
# What makes probabilities, or their logarithms, and what it is called here.
_LINKS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "logarithms"}
_LABELS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.STRING)
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
        if self.node.op_type in _CONVOLUTIONS:
            return 1
        if self.node.op_type == "Gemm":
            return 1
        return -2 if self.position == 0 else -1


def replace_head(
    model: ModelLike | Prepared,
    outputs: int | Sequence[Any],
    *,
    at: str | None = None,
    output: str | None = None,
    seed: int = 0,
    activation: str = "auto",
) -> onnx.ModelProto:
    """Put a new last layer in place of a model's own, to train it for other classes or values.

    The new layer has the form of the old one (Gemm, MatMul with a bias, Conv, ConvTranspose) and reads the
    same features; its weight starts at random, its bias at 0. They are called ``head_weight`` and
    ``head_bias``. What follows the layer (activations, poolings, reshapes) stays if it fits any number of
    outputs. If a node does not, a warning names it: what follows the new layer is removed, and the output
    is the layer's own, with the activation.

    Labels (the place of the best score, or what stands there in a table), the labels of ZipMap and names of
    classes in the metadata are made anew. Other outputs that came from the layer, such as the places of
    the five best scores, are removed, and so are names where no new ones are given; a warning names them.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form. It is not changed.
    outputs : int or list of int or str
        Number of outputs, or the labels of the classes, one output each. An output of the model that
        holds labels, picked by the best score, is made anew with these (0, 1, 2, ... for a number).
    at : str, optional
        The layer to replace, by the name of its node or of the tensor that it computes. By default the last
        one with a weight before `output`.
    output : str, optional
        The output that is made anew. By default the model's first one of numbers, of those that come from
        the layer if that is named.
    seed : int, default=0
        Of the new weight: normal, of variance 1 / (numbers summed up in an output), LeCun's initialization,
        as ``initialize_weights(method="lecun")`` draws.
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
        There is no such layer, several are last, or what is last computes with integers.
    UnknownNameError
        `at` is no name of a layer, `output` none of an output; no such activation.
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
    if at is None:
        result = _output(edited, output)
        head = _last(result, layers)
    else:
        head = _at(at, layers)
        result = _output(edited, output, behind(head.result))
    op = Builder(edited.opset_imports[""], taken=all_names(edited.graph))
    weight, scores = _new_layer(op, head, count)
    tail = _Tail(edited, op, head, result, labels)
    tail.put(scores, count, activation)
    dropped = rename_classes(edited.metadata_props, tail.size, labels)
    if dropped:
        warn_user(f"Metadata {dropped} name the classes of the layer that is replaced: removed.", UserWarning)
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


def _output(model: ir.Model, name: str | None, among: Collection[ir.Value] | None = None) -> ir.Value:
    """The output of that name, or the first one of floating-point numbers."""
    names = [v.name for v in model.graph.outputs]
    if name is not None and name not in names:
        raise UnknownNameError(f"The model has no output {name!r}; its outputs are {names}.")
    outputs = [v for v in model.graph.outputs if name in (None, v.name)]
    for value in outputs:
        producer = value.producer()
        if producer is None or (among is not None and value not in among):
            continue
        if producer.op_type == "ZipMap" and producer.inputs[0] is not None:
            return producer.inputs[0]
        if value.dtype is not None and value.dtype.is_floating_point():
            return value
    raise InvalidModelError(
        f"None of the outputs {[v.name for v in outputs]} holds floating-point numbers"
        f"{'' if among is None else ' that come from that layer'}: there is no layer to replace."
    )


def _last(output: ir.Value, layers: dict[ir.Node, int]) -> _Head:
    """The one layer that no other one stands behind."""
    found: dict[ir.Node, None] = {}
    seen: set[ir.Node] = set()
    waiting = [output.producer()]
    inside = False
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node.op_type in _SHAPELESS:
            continue
        seen.add(node)
        if node in layers:
            found[node] = None
            continue
        if computes_integers(node) or node.op_type in FUSED:
            raise InvalidModelError(
                f"Node {node.name!r} ({node.op_type}), before output {output.name!r}, computes with "
                f"integers: there is no layer to replace yet. {REMEDY}."
            )
        inside = inside or bool(subgraphs(node))
        waiting += [v.producer() for v in node.inputs if v is not None]
    if len(found) != 1:
        names = [str(node.name) for node in found]
        raise InvalidModelError(
            f"Before output {output.name!r} there is no layer with a weight (Gemm, MatMul, Conv or "
            f"ConvTranspose){' outside of the graphs of If, Loop and Scan' if inside else ''}."
            if not found
            else f"Several layers are last before output {output.name!r}: say which one to replace, at= one "
            f"of {names}."
        )
    (node,) = found
    return _head(node, layers[node])


def _at(at: str, layers: dict[ir.Node, int]) -> _Head:
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
    if node.op_type in _CONVOLUTIONS:
        return name, op.node(node.op_type, x, weight, bias, **attributes)
    if node.op_type == "Gemm":
        return name, op.Gemm(x, weight, bias, **attributes)
    product = op.MatMul(weight, x) if position == 0 else op.MatMul(x, weight)
    return name, product + bias


def _outputs_of(head: _Head) -> int | None:
    """How many outputs the layer has had."""
    node, weight = head.node, head.node.inputs[head.position]
    if weight is None or weight.shape is None:
        return None
    if node.op_type == "ConvTranspose":
        size = weight.shape[1]
        return size * node.attributes.get_int("group", 1) if isinstance(size, int) else None
    rows = node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0)) or head.axis == -2
    size = weight.shape[0 if rows else -1]
    return size if isinstance(size, int) else None


def _sizes(node: ir.Node, position: int, shape: list[int], count: int) -> tuple[list[int], dict[str, Any]]:
    """Shape of the new weight, and attributes of the new node."""
    if node.op_type in _CONVOLUTIONS:
        attributes = {k: a.value for k, a in node.attributes.items()}
        groups = attributes.get("group", 1)
        if count % groups:
            raise InvalidModelError(
                f"Node {node.name!r} ({node.op_type}) has {groups} groups: the number of outputs must be "
                f"a multiple of that, not {count}."
            )
        if node.op_type == "ConvTranspose":
            return [shape[0], count // groups, *shape[2:]], attributes
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
        self.size = _outputs_of(head)
        self.declared = _declared(model, output)
        name = str(self.declared.name)
        logits = find_logits(model, name, ())
        on_path = logits is not None and any(v.name == logits.name for v in behind(head.result))
        self.logits = logits if on_path else None
        self.logarithms = class_axis(model, name)
        self.axis: int | None = head.axis
        self.last = False
        self.removed: list[str] = []

    def put(self, scores: Var, count: int, activation: str) -> None:
        """Let the outputs come from the new scores."""
        head = self.head
        found = Following(head.axis, self.size, count)
        found.follow(head.result, self.output, None if self.logits is None else self.logits.name)
        broken = found.broken
        kind = self._kind(found)
        wanted = self._activation(count, activation, kind)
        # Behind a node that does not fit nothing stays, in front of it what makes no probabilities.
        kept = [] if broken is not None else found.nodes
        self.axis = head.axis if broken is not None else found.axis
        shape = head.result.shape if broken is not None else self.output.shape
        self.last = shape is not None and self.axis == len(shape) - 1
        made = scores
        for follower in kept:
            if kind is not None and follower.node.op_type in _LINKS:
                continue  # made anew below
            made = self._again(follower, made)
        made = self._activated(made, wanted)
        dependent = behind(head.result)
        if broken is not None:
            warn_user(
                f"Node {broken.name!r} ({broken.op_type}) does not go with {count} outputs in place of "
                f"{self.size}: what follows the new layer is removed, and output {self.declared.name!r} is "
                "its own.",
                UserWarning,
            )
        self._outputs(made, count, dependent, broken is not None)
        if self.removed:
            warn_user(
                f"Outputs {self.removed} came from the layer that is replaced: they are removed.", UserWarning
            )

    def _kind(self, found: Following) -> str | None:
        """What made probabilities of the old scores, or logarithms of them."""
        if self.logits is not None:
            return self.logits.kind
        if self.logarithms is not None:
            return "logarithms"
        links = [f.node.op_type for f in found.nodes if f.node.op_type in _LINKS]
        if found.broken is None:
            return None
        if links:
            return _LINKS[links[0]]
        return "softmax" if _divides_exponentials(self.output.producer()) else None

    def _again(self, follower: Follower, value: Var) -> Var:
        """The same node behind another value."""
        node = follower.node
        operands: list[Any] = [None if v is None else self.op.wrap(v) for v in node.inputs]
        operands[follower.position] = value
        for index, array in follower.operands.items():
            operands[index] = array
        return self.op.node(node.op_type, *operands, **{k: a.value for k, a in node.attributes.items()})

    def _activation(self, count: int, activation: str, kind: str | None) -> str:
        """What makes probabilities of the new scores."""
        if activation != "auto":
            return activation
        if kind is None or kind == "logarithms":
            return kind or "none"
        if count == 1:
            return "sigmoid"
        normalized = self.logits is not None and self.logits.normalized
        one = self.size == 1 or (self.logits is not None and self.logits.columns == 1)
        return "softmax" if normalized or one else kind

    def _activated(self, scores: Var, activation: str) -> Var:
        op, axis = self.op, -1 if self.axis is None else self.axis
        if self.last:
            axis = -1  # one operator in every opset
        if activation == "softmax":
            return op.Softmax(scores, axis=axis)
        if activation == "logarithms":
            return op.LogSoftmax(scores, axis=axis)
        return op.Sigmoid(scores) if activation == "sigmoid" else scores

    def _shape(self, count: int, broken: bool) -> ir.Shape | None:
        """Shape of the output, if it is known how many dimensions it has."""
        like = self.head.result.shape if broken else self.output.shape
        if like is None:
            return None
        dims = list(like)
        if self.axis is not None:
            dims[self.axis] = count
        return ir.Shape(dims)

    def _outputs(self, made: Var, count: int, dependent: set[ir.Value], broken: bool) -> None:
        """Give the outputs that came from the old head new ones, or none."""
        graph, found = self.model.graph, []
        shape = self._shape(count, broken)
        for value in graph.outputs:
            if value is self.declared:
                fresh = self._declared(made, count)
                if value is self.output:
                    fresh.shape = shape
                    fresh.type = made.value.type if broken and made.dtype is not None else self.output.type
            elif value not in dependent:
                found.append(value)
                continue
            elif value.dtype in _LABELS and chooses(value) and self.axis is not None:
                fresh = self._label(made, count, value, None if shape is None else len(shape)).value
                fresh.shape = value.shape
            else:
                self.removed.append(str(value.name))
                continue
            name = str(value.name)
            fresh.name, value.name = name, self.op.unique(f"{name}_before")
            found.append(fresh)
        graph.outputs[:] = found

    def _declared(self, made: Var, count: int) -> ir.Value:
        """The output itself: a tensor, or what ZipMap makes of it."""
        node = self.declared.producer()
        if self.declared is self.output or node is None or count < 2:
            return self.op.Identity(made).value
        labels = self._names(count)
        name = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s"
        fresh = self.op.node("ZipMap", made, domain=node.domain, version=1, **{name: labels}).value
        fresh.type, fresh.shape = None, None
        return fresh

    def _names(self, count: int) -> list[Any]:
        return list(range(max(2, count))) if self.labels is None else self.labels

    def _label(self, made: Var, count: int, like: ir.Value, rank: int | None) -> Var:
        """The label of the best score."""
        op, labels, axis = self.op, self._names(count), self.axis
        assert axis is not None
        keep = int(like.shape is not None and len(like.shape) == rank)
        if count == 1:
            best = op.Cast(made > 0.5, to=ir.DataType.INT64)
            best = best if keep else op.Squeeze(best, [axis])
        else:
            best = op.ArgMax(made, axis=axis, keepdims=keep)
        if isinstance(labels[0], str):
            tensor: Any = ir.StringTensor([label.encode() for label in labels], shape=ir.Shape([len(labels)]))
        else:
            dtype = np.int32 if like.dtype == ir.DataType.INT32 else np.int64
            tensor = ir.tensor(np.array(labels, dtype=dtype))
        return op.Gather(op.wrap(op.initializer(op.unique("head_labels"), tensor)), best, axis=0)


def _declared(model: ir.Model, output: ir.Value) -> ir.Value:
    """The graph output that the numbers come out of."""
    for value in model.graph.outputs:
        producer = value.producer()
        zipped = producer is not None and producer.op_type == "ZipMap" and producer.inputs[0] is output
        if value is output or zipped:
            return value
    raise AssertionError(output)


def _divides_exponentials(node: ir.Node | None) -> bool:
    """Whether a node is the last one of a softmax in several nodes."""
    if node is None or node.op_type != "Div" or node.inputs[0] is None:
        return False
    maker = node.inputs[0].producer()
    return maker is not None and maker.op_type == "Exp"


def _finish(model: ir.Model, op: Builder) -> None:
    """Put what was emitted into the graph, and drop what nothing reads any more."""
    graph = model.graph
    graph.extend(op.nodes)
    for value in op.initializers:
        if value.uses():
            graph.register_initializer(value)
    RemoveUnusedPass()(model)
    ir.passes.common.TopologicalSortPass()(model)
    if any(value.shape is None for value in graph.outputs):
        InferShapesPass()(model)

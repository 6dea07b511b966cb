"""What runtimes take on trust: attributes that they divide by, tensors that they read one number of.

onnx's checker and its shape inference find most of what is wrong with a graph, and onnxruntime refuses most
of the rest. What is here gets past all of them, and ends or stops the process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operators import is_op, operator_schema
from onnxcustom.graph.analysis.traversal import all_nodes
from onnxcustom.graph.files.limits import current_limits, shown, size_of
from onnxcustom.graph.preparation.ml_checks import ML_CHECKS, ngrams_problem

__all__ = ["check_arity", "check_attributes", "check_made", "check_operands", "check_sizes"]

_LARGEST = 2**31 - 1
_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")

# Attributes that are sizes: divided by, counted to, allocated.
_SIZES = frozenset(
    "kernel_shape strides dilations group groups offset_group blocksize num_outputs hidden_size num_groups "
    "num_scan_inputs size output_height output_width pooled_shape sample_size n_targets targets".split()
)
# Those that may be 0, for "none" or "as the data has it".
_COUNTS = frozenset(
    "batch_dims batch_axis time_axis block_size num_heads kv_num_heads q_num_heads rotary_embedding_dim "
    "sampling_ratio min_gram_length max_gram_length max_skip_count ngram_counts ngram_indexes".split()
)
# They may be negative, but not so large that sums overflow.
_OFFSETS = frozenset(
    "pads output_padding output_shape axis axes perm split k scan_input_axes scan_output_axes "
    # switches
    "allowzero ceil_mode count_include_pad exclude_outside exclusive inverse keepdims largest layout "
    "noop_with_empty_axes onesided reverse select_last_index sorted storage_order training_mode transA "
    "transB upper".split()
)
# Heads, each of which costs a loop, and bins and groups, each of which is an element of a constant.
_MANY = 2**16
_HIGHEST = dict.fromkeys(
    "num_heads kv_num_heads q_num_heads groups num_groups output_height output_width pooled_shape "
    "sampling_ratio".split(),
    _MANY,
)
_LOWEST = {**dict.fromkeys(_SIZES, 1), **dict.fromkeys(_COUNTS, 0), **dict.fromkeys(_OFFSETS, -_LARGEST)}

# Operands of which one number is read, whatever their shape.
_SCALARS: dict[str, tuple[int, ...]] = {
    "BlackmanWindow": (0,),
    "Clip": (1, 2),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "If": (0,),
    "Loop": (0, 1),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (2,),
    "Range": (0, 1, 2),
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "TopK": (1,),
    "Trilu": (1,),
}
# Operands whose rank kernels take for granted.
_RANKS: dict[str, dict[int, int]] = {
    **{op: {1: 1} for op in ("Reshape", "Expand", "Tile")},
    "ConstantOfShape": {0: 1},
    "Pad": {1: 1, 3: 1},
    "Resize": {1: 1, 2: 1, 3: 1},
    "Slice": {1: 1, 2: 1, 3: 1, 4: 1},
    **{op: {0: 3, 1: 3, 2: 3, 3: 2, 4: 1, 5: 3, 6: 3, 7: 2} for op in ("RNN", "GRU", "LSTM")},
}
# Matrices of a cell side by side.
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
# Attributes of windows that have so many numbers for each dimension.
_PER_DIMENSION = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 2, "output_padding": 1}
# Positions beyond are turned into integers that overflow.
_FARTHEST = 2**20
# What is no equation stops onnx's shape inference for ever.
_EQUATION = re.compile(r"(?:[A-Za-z ,]|\.\.\.)*(?:->(?:[A-Za-z ]|\.\.\.)*)?")
# A Loop that counts to here takes hours at best.
_FOR_EVER = 2**31


def check_attributes(model: ir.Model) -> None:
    """Check numbers of operands and attributes that are sizes, in the graph and in those inside it.

    Parameters
    ----------
    model : onnx_ir.Model
        Without functions: what onnx's checker says of their bodies holds for complete calls only.

    Raises
    ------
    InvalidModelError
        Naming the node.
    """
    _check_all_attributes(model.graph, model.opset_imports)


def check_made(nodes: Iterable[ir.Node], opsets: Mapping[str, int]) -> None:
    """Check nodes that were made for others: what these have may be such that theirs would end a runtime.

    Parameters
    ----------
    nodes : iterable of Node
        Those, and the ones inside them; nodes of a model that came in were checked then.
    opsets : mapping of str to int
        Versions of the domains.

    Raises
    ------
    InvalidModelError
        Naming the node.
    """
    made = list(nodes)
    _check_all_attributes(made, opsets)
    check_operands(made)


def _check_all_attributes(nodes: Iterable[ir.Node], opsets: Mapping[str, int]) -> None:
    for node in all_nodes(nodes):
        if node.domain in _DOMAINS:
            check_arity(node, opsets.get(node.domain, 1))
            _check_attributes(node)


def check_operands(graph: Iterable[ir.Node]) -> None:
    """Check operands of the nodes of a graph, or of some, and of those inside, as far as shapes are known.

    Raises
    ------
    InvalidModelError
        Naming the node.
    """
    for node in all_nodes(graph):
        if node.domain == "ai.onnx.ml" and node.op_type in ML_CHECKS:
            problem = ML_CHECKS[node.op_type](node)
            if problem:
                _refuse(node, problem)
        if node.domain != "":
            continue
        for i in _SCALARS.get(node.op_type, ()):
            _check_scalar(node, i)
        for i, rank in _RANKS.get(node.op_type, {}).items():
            _check_rank(node, i, rank)
        check = _CHECKS.get(node.op_type)
        if check is not None:
            check(node)


def check_sizes(graph: ir.Graph) -> None:
    """Compare values whose shape is known with ``Limits.tensor_bytes``.

    Raises
    ------
    InvalidModelError
        Naming the value.
    """
    limits = current_limits()
    for node in all_nodes(graph):
        for value in node.outputs:
            if value.shape is None:
                continue
            dims = [d for d in value.shape if isinstance(d, int)]
            if any(d < 0 for d in dims):
                _refuse(node, f"output {shown(value.name)} has the impossible shape {value.shape}")
            nbytes = size_of(dims, int(value.dtype or 1))
            if nbytes > limits.tensor_bytes:
                _refuse(
                    node,
                    f"output {shown(value.name)} takes {nbytes:,} bytes: refused, Limits.tensor_bytes is "
                    f"{limits.tensor_bytes:,} (see onnxcustom.graph.use_limits)",
                )


def _refuse(node: ir.Node, what: str) -> NoReturn:
    name = node.name or (node.outputs[0].name if node.outputs else "")
    raise InvalidModelError(f"Node {shown(name)} ({node.op_type}) is not valid: {what}.")


def check_arity(node: ir.Node, version: int) -> None:
    """Check that every operand that is not optional is there, and that there are not too many.

    Raises
    ------
    InvalidModelError
        Naming the node.
    """
    schema = operator_schema(node.op_type, version, node.domain)
    if schema is None:
        return
    count, made = len(node.inputs), len(node.outputs)
    if not (schema.min_input <= count <= schema.max_input and schema.min_output <= made <= schema.max_output):
        _refuse(node, f"it has {count} operands and {made} results")
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for i, (value, wanted) in enumerate(zip(node.inputs, schema.inputs, strict=False)):
        if value is None and wanted.option == single:
            _refuse(node, f"operand {i}, {wanted.name}, is missing")


# -- attributes ----------------------------------------------------------------------------------------


def _check_attributes(node: ir.Node) -> None:
    if is_op(node, "Einsum"):
        equation = node.attributes.get_string("equation", "") or ""
        if not _EQUATION.fullmatch(equation):
            _refuse(node, f"equation {shown(equation)} is none")
    if is_op(node, "Split"):
        split = node.attributes.get_ints("split", None)
        count = node.attributes.get_int("num_outputs", None) if split is None else len(split)
        if count is not None and count != len(node.outputs):
            _refuse(node, f"it splits into {count} parts and has {len(node.outputs)} results")
    for name, attribute in node.attributes.items():
        low = _LOWEST.get(name)
        if low is None or attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.INT:
            numbers = [attribute.value]
        elif attribute.type == ir.AttributeType.INTS:
            numbers = list(attribute.value)
        else:
            continue
        high = _HIGHEST.get(name, _LARGEST)
        if not all(low <= number <= high for number in numbers):
            _refuse(node, f"attribute {name} is {shown(numbers)}, not from {low:,} to {high:,}")
        if name == "kernel_shape" and math.prod(numbers) > _LARGEST:
            _refuse(node, f"attribute {name} is {shown(numbers)}: more than {_LARGEST:,} elements")


# -- operands ------------------------------------------------------------------------------------------


def _operand(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if i < len(node.inputs) else None


def _check_scalar(node: ir.Node, i: int) -> None:
    value = _operand(node, i)
    if value is None:
        return
    shape = value.const_value.shape if value.const_value is not None else value.shape
    if shape is None:
        return
    if 0 in shape or any(isinstance(d, int) and d != 1 for d in shape):
        _refuse(node, f"operand {i}, {shown(value.name)}, has shape {shape} where one number is read")


def _check_rank(node: ir.Node, i: int, rank: int) -> None:
    """An input of unknown rank has the one that its reader asks for: other data is then refused."""
    value = _operand(node, i)
    if value is None:
        return
    if value.shape is None and value.is_graph_input():
        value.shape = ir.Shape([None] * rank)
    elif value.shape is not None and len(value.shape) != rank:
        _refuse(node, f"operand {i}, {shown(value.name)}, has shape {value.shape}, not {rank} dimensions")


# -- operators -----------------------------------------------------------------------------------------


def _check_unpool(node: ir.Node) -> None:
    """Indices of a known rank: onnxruntime looks at their shape whether there is one or not."""
    data, indices = _operand(node, 0), _operand(node, 1)
    _check_window(0, None)(node)
    if data is None or data.shape is None or indices is None:
        _refuse(node, "the shape of its data is unknown")
    _check_rank(node, 1, len(data.shape))
    producer = indices.producer()
    if indices.shape is None and (producer is None or producer.op_type != "MaxPool"):
        _refuse(node, f"the shape of its indices, {shown(indices.name)}, is unknown")


def _check_loop(node: ir.Node) -> None:
    """A Loop ends."""
    body = node.attributes["body"].as_graph()
    trips, go = _operand(node, 0), _operand(node, 1)
    if trips is not None:
        count = constant_array(trips)
        if count is None or count.size != 1 or int(count.reshape(-1)[0]) < _FOR_EVER:
            return
    if len(body.inputs) < 2 or not body.outputs:
        _refuse(node, "its body lacks the iteration or the condition")
    if _always(go, None) and _always(body.outputs[0], body.inputs[1]):
        _refuse(node, "it has no number of iterations, and its condition is always true: it would not end")


def _always(value: ir.Value | None, condition: ir.Value | None) -> bool:
    """Whether a condition is true, or as it was before."""
    while value is not None:
        if value is condition:
            return True
        constant = constant_array(value)
        if constant is not None:
            return bool(constant.size and constant.reshape(-1)[0])
        node = value.producer()
        if node is None or not is_op(node, "Identity"):
            return False
        value = node.inputs[0]
    return condition is None  # a Loop without a condition goes on


def _check_window(data: int, kernel: int | None) -> Callable[[ir.Node], None]:
    """A convolution or pooling whose operands and attributes have the same number of dimensions."""

    def check(node: ir.Node) -> None:
        x, w = _operand(node, data), None if kernel is None else _operand(node, kernel)
        shapes = [v.shape for v in (x, w) if v is not None and v.shape is not None]
        given = {
            name: list(attribute.value)
            for name, attribute in node.attributes.items()
            if name in _PER_DIMENSION and attribute.type == ir.AttributeType.INTS
        }
        ranks = {len(shape) - 2 for shape in shapes}
        ranks |= {len(numbers) // _PER_DIMENSION[name] for name, numbers in given.items() if numbers}
        odd = [name for name, numbers in given.items() if len(numbers) % _PER_DIMENSION[name]]
        if len(ranks) > 1 or odd or min(ranks, default=1) < 1:
            attributes = ", ".join(f"{name} {numbers}" for name, numbers in given.items())
            what = " and ".join(map(str, shapes)) or "unknown shapes"
            _refuse(node, f"operands of {what} do not go with each other or with {attributes or 'a window'}")
        if w is None or w.shape is None or not given.get("kernel_shape"):
            return
        for size, wanted in zip(w.shape[2:], given["kernel_shape"], strict=True):
            if isinstance(size, int) and size != wanted:
                _refuse(node, f"kernel_shape is {given['kernel_shape']}, and the kernel has shape {w.shape}")

    return check


def _check_recurrent(node: ir.Node) -> None:
    """A recurrent layer whose weights have the shapes that its sizes ask for: kernels pack them unseen."""
    direction = node.attributes.get_string("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        _refuse(node, f"attribute direction is {shown(direction)}")
    directions, gates = 1 + (direction == "bidirectional"), _GATES[node.op_type]
    rows = node.attributes.get_int("layout", 0) == 1
    hidden = node.attributes.get_int("hidden_size", None)
    if hidden is None:
        hidden = _size(node, 2, 2)
    batch, features = _size(node, 0, 0 if rows else 1), _size(node, 0, 2)
    several = None if hidden is None else gates * hidden
    state = [batch, directions, hidden] if rows else [directions, batch, hidden]
    wanted: dict[int, list[int | None]] = {
        1: [directions, several, features],
        2: [directions, several, hidden],
        3: [directions, None if several is None else 2 * several],
        4: [batch],
        5: state,
        6: state,
        7: [directions, None if hidden is None else 3 * hidden],
    }
    for i, sizes in wanted.items():
        for axis, size in enumerate(sizes):
            found = _size(node, i, axis)
            if None not in (size, found) and size != found:
                value = _operand(node, i)
                assert value is not None
                _refuse(
                    node,
                    f"operand {i}, {shown(value.name)}, has shape {value.shape}; with {directions} "
                    f"direction(s) and hidden_size {hidden} dimension {axis} has to be {size}",
                )


def _size(node: ir.Node, i: int, axis: int) -> int | None:
    """One size of an operand, if it is known."""
    value = _operand(node, i)
    if value is None or value.shape is None or len(value.shape) <= axis:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _check_einsum(node: ir.Node) -> None:
    """Operands of the ranks that the equation has, and that hold something: kernels divide by sizes."""
    equation = node.attributes.get_string("equation", "") or ""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    for i, value in enumerate(node.inputs):
        if i < len(terms) and "." not in terms[i]:
            _check_rank(node, i, len(terms[i]))
        if value is not None and value.const_value is not None and 0 in value.const_value.shape:
            _refuse(node, f"operand {i}, {shown(value.name)}, is an empty constant")


def _check_product(node: ir.Node) -> None:
    """A sum over nothing only where both operands have nothing: kernels compare sizes that are not 0."""
    a, b = _operand(node, 0), _operand(node, 1)
    if a is None or b is None or not a.shape or not b.shape:
        return
    columns, rows = a.shape[-1], b.shape[-2 if len(b.shape) > 1 else -1]
    for value, size, other in ((a, columns, rows), (b, rows, columns)):
        if value.const_value is not None and size == 0 and other != 0:
            _refuse(node, f"operand {shown(value.name)}, an empty constant, is multiplied by {other} columns")


def _check_layer_normalization(node: ir.Node) -> None:
    """Scale and bias can be broadcast to the data, and hold something."""
    data = _operand(node, 0)
    known = None if data is None or data.shape is None else list(data.shape)
    for i in (1, 2):
        value = _operand(node, i)
        if value is None or value.shape is None:
            continue
        sizes = list(value.shape)
        fits = known is None or len(sizes) <= len(known)
        if fits and known is not None:
            pairs = zip(reversed(sizes), reversed(known), strict=False)
            fits = all(a == b or a == 1 for a, b in pairs if isinstance(a, int) and isinstance(b, int))
        if not fits or (0 in sizes and known is not None and 0 not in known):
            _refuse(node, f"operand {i}, {shown(value.name)}, of shape {value.shape} does not fit {known}")


def _check_dft(node: ir.Node) -> None:
    """A length that can be divided by."""
    length = constant_array(_operand(node, 1))
    if length is not None and length.size and int(length.reshape(-1)[0]) < 1:
        _refuse(node, f"its length is {int(length.reshape(-1)[0])}")


def _check_pad(node: ir.Node) -> None:
    """What is reflected is there."""
    data, pads = _operand(node, 0), constant_array(_operand(node, 1))
    if node.attributes.get_string("mode", "constant") != "reflect" or pads is None:
        return
    axes = constant_array(_operand(node, 3))
    rank = None if data is None or data.shape is None else len(data.shape)
    if axes is None and _operand(node, 3) is not None:
        return
    chosen = list(range(pads.size // 2)) if axes is None else axes.reshape(-1).tolist()
    if pads.size != 2 * len(chosen) or (axes is None and rank not in (None, len(chosen))):
        _refuse(
            node, f"{pads.size} pads are not two for each of {len(chosen) if rank is None else rank} axes"
        )
    for axis, before, after in zip(chosen, pads[: len(chosen)], pads[len(chosen) :], strict=True):
        size = None if rank is None or not -rank <= axis < rank else _size(node, 0, axis % rank)
        if size is not None and max(before, after) >= max(size, 1):
            _refuse(node, f"pads {shown(pads.tolist())} reflect more than the {size} elements of axis {axis}")


def _check_ngrams(node: ir.Node) -> None:
    """Tables that fit each other."""
    problem = ngrams_problem(node)
    if problem:
        _refuse(node, problem)


def _check_grid(node: ir.Node) -> None:
    """Where to sample, as constants: numbers that fit into an integer."""
    grid = constant_array(_operand(node, 1))
    if grid is not None and not (np.abs(grid.astype(np.float64)) < _FARTHEST).all():
        _refuse(node, f"its grid holds NaN, infinity, or numbers beyond {_FARTHEST:,}")


_CHECKS: dict[str, Callable[[ir.Node], None]] = {
    "AveragePool": _check_window(0, None),
    "Conv": _check_window(0, 1),
    "ConvInteger": _check_window(0, 1),
    "ConvTranspose": _check_window(0, 1),
    "DFT": _check_dft,
    "DeformConv": _check_window(0, 1),
    "Einsum": _check_einsum,
    "GRU": _check_recurrent,
    "GridSample": _check_grid,
    "LSTM": _check_recurrent,
    "LayerNormalization": _check_layer_normalization,
    "Loop": _check_loop,
    "LpPool": _check_window(0, None),
    "MatMul": _check_product,
    "MaxPool": _check_window(0, None),
    "MaxUnpool": _check_unpool,
    "Pad": _check_pad,
    "QLinearConv": _check_window(0, 3),
    "RNN": _check_recurrent,
    "TfIdfVectorizer": _check_ngrams,
}

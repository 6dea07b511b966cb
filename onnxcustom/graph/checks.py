"""What runtimes take on trust: attributes that they divide by, tensors that they read one number of.

onnx's checker and its shape inference find most of what is wrong with a graph, and onnxruntime refuses most
of the rest. What is here gets past all of them, and ends or stops the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NoReturn

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.limits import current_limits, shown, size_of
from onnxcustom.graph.passes import constant_array
from onnxcustom.graph.traversal import subgraphs

__all__ = ["check_attributes", "check_operands", "check_sizes"]

_LARGEST = 2**31 - 1
_STANDARD = ("", "ai.onnx")
_DOMAINS = (*_STANDARD, "ai.onnx.ml", "com.microsoft")

# Attributes that are sizes: divided by, counted to, allocated.
_SIZES = frozenset(
    "kernel_shape strides dilations group offset_group blocksize num_outputs hidden_size num_groups "
    "num_scan_inputs size output_height output_width pooled_shape sample_size n_targets targets".split()
)
# Those that may be 0, for "none" or "as the data has it".
_COUNTS = frozenset(
    "batch_dims batch_axis time_axis block_size num_heads kv_num_heads q_num_heads rotary_embedding_dim "
    "sampling_ratio min_gram_length max_gram_length max_skip_count ngram_counts ngram_indexes".split()
)
# They may be negative, but not so large that sums overflow.
_OFFSETS = frozenset(
    "pads output_padding output_shape axis axes perm split k scan_input_axes scan_output_axes".split()
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
_RANKS: dict[str, dict[int, int]] = {op: {0: 3} for op in ("RNN", "GRU", "LSTM")}
# Attributes of windows that have so many numbers for each dimension.
_PER_DIMENSION = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 2, "output_padding": 1}
# Positions beyond are turned into integers that overflow.
_FARTHEST = 2**20
# A Loop that counts to here takes hours at best.
_FOR_EVER = 2**31


def check_attributes(graph: ir.Graph) -> None:
    """Check attributes that are sizes, in a graph and in those inside it.

    Raises
    ------
    InvalidModelError
        Naming the node.
    """
    for node in _nodes(graph):
        if node.domain in _DOMAINS:
            _check_attributes(node)


def check_operands(graph: ir.Graph) -> None:
    """Check operands of the nodes of a graph and of those inside it, as far as shapes are known.

    Raises
    ------
    InvalidModelError
        Naming the node.
    """
    for node in _nodes(graph):
        if node.domain not in _STANDARD:
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
    for node in _nodes(graph):
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


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for inner in subgraphs(node):
            yield from _nodes(inner)


def _refuse(node: ir.Node, what: str) -> NoReturn:
    name = node.name or (node.outputs[0].name if node.outputs else "")
    raise InvalidModelError(f"Node {shown(name)} ({node.op_type}) is not valid: {what}.")


# -- attributes ----------------------------------------------------------------------------------------


def _check_attributes(node: ir.Node) -> None:
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
        for number in numbers:
            if not low <= number <= _LARGEST:
                _refuse(node, f"attribute {name} is {shown(numbers)}, not from {low:,} to {_LARGEST:,}")
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
        if node is None or node.op_type != "Identity" or node.domain not in _STANDARD:
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


def _check_einsum(node: ir.Node) -> None:
    """Operands of the ranks that the equation has, and that hold something: kernels divide by sizes."""
    equation = node.attributes.get_string("equation", "") or ""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    for i, value in enumerate(node.inputs):
        if i < len(terms) and "." not in terms[i]:
            _check_rank(node, i, len(terms[i]))
        if value is not None and value.const_value is not None and 0 in value.const_value.shape:
            _refuse(node, f"operand {i}, {shown(value.name)}, is an empty constant")


def _check_dft(node: ir.Node) -> None:
    """A length that can be divided by."""
    length = constant_array(_operand(node, 1))
    if length is not None and length.size and int(length.reshape(-1)[0]) < 1:
        _refuse(node, f"its length is {int(length.reshape(-1)[0])}")


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
    "GridSample": _check_grid,
    "Loop": _check_loop,
    "LpPool": _check_window(0, None),
    "MaxPool": _check_window(0, None),
    "MaxUnpool": _check_window(0, None),
    "QLinearConv": _check_window(0, 3),
}

"""Models of integers become models of floating-point weights, which can be trained."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from onnxcustom._registry import did_you_mean
from onnxcustom._text import listed
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import UnknownNameError
from onnxcustom.graph.analysis.integers import HOLDS
from onnxcustom.graph.analysis.traversal import all_nodes, sort_nodes
from onnxcustom.graph.files.io import ModelLike, to_proto
from onnxcustom.graph.preparation.passes import InferShapesPass
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.preparation.sites import own_name
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.trainable.left_out import quantized

from .integers import blocks, fused, pairs, products, qlinear  # noqa: F401
from .integers.rewriting import ACTIVATIONS, Rewriting
from .integers.steps import BOUNDS
from .layouts import undo_layout

__all__ = ["dequantize"]

_SHOWN = 5  # nodes named in a warning


def dequantize(
    model: ModelLike, weights: str | Iterable[str] | None = None, *, activations: str = "clip"
) -> onnx.ModelProto:
    """Turn a model of integers, as quantizers write them, into one of floating-point weights.

    Integers behind DequantizeLinear become the numbers that it makes of them, and operators on integers
    (QLinearConv, MatMulInteger, MatMulNBits ...) the operators they were made from. The weights are those
    that the integers stand for: where nothing but weights is quantized, the model computes what it did.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form. It is not changed.
    weights : str or list of str, optional
        Names of the integer tensors to turn into weights, as :func:`onnxcustom.gradient_report` lists them
        among what is left out. None: all. What does not depend on them stays as it is.
    activations : {'clip', 'keep', 'remove'}, default='clip'
        What becomes of the rounding of what the model computes. 'clip': it goes, and the range of the
        integers stays, since quantizers take Relu and Clip into it; results differ by the rounding, and
        gradients are those that pass straight through it, 0 outside of the range. 'keep': QuantizeLinear
        and DequantizeLinear remain around the operators, whose results are rounded in training as they were
        (fake quantization). 'remove': the ranges go, too, but for an end at 0.

    Returns
    -------
    onnx.ModelProto
        In prepared form: functions inlined, constants in initializers. Weights are called as the integers
        were, without what quantizers put behind their names.

    Raises
    ------
    InvalidModelError
        As :func:`onnxcustom.load`.
    UnknownNameError
        The model has no integers of that name; no such word for `activations`.

    Notes
    -----
    'clip' is the default because the result is a model like any other: every operator has a gradient in both
    engines, nothing is lost of what the integers computed but their rounding, and quantizers take it again.
    What DynamicQuantizeLinear computes fits its data, so that there nothing clips and nothing stays.

    Examples
    --------
    >>> import onnx.parser
    >>> import onnxcustom
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     m (float[N, 2] x) => (float[N, 2] y)
    ...     <int8[2, 2] w_quantized = {1, 2, 3, 4}, float w_scale = {0.5}, int8 w_zero_point = {1}> {
    ...         w = DequantizeLinear(w_quantized, w_scale, w_zero_point)
    ...         y = MatMul(x, w)
    ...     }''')
    >>> onnxcustom.weights(model)
    {}
    >>> onnxcustom.weights(dequantize(model))
    {'w': array([[0. , 0.5],
           [1. , 1.5]], dtype=float32)}
    """
    if activations not in ACTIVATIONS:
        raise UnknownNameError(f"activations must be one of {list(ACTIVATIONS)}, not {activations!r}.")
    edited = Prepared.of(model).take()
    chosen = None if weights is None else _chosen(edited, [weights] if isinstance(weights, str) else weights)
    InferShapesPass()(edited)
    if undo_layout(edited):
        InferShapesPass()(edited)
    Rewriting(edited, chosen, activations).run()
    RemoveUnusedPass()(edited)
    sort_nodes(edited.graph)
    if chosen is None:
        _warn_of_rest(edited)
    InferShapesPass()(edited)
    return to_proto(edited)


def _warn_of_rest(model: ir.Model) -> None:
    """Name the nodes that go on computing with integers."""
    left = [
        f"{node.name!r} ({node.op_type})"
        for node in all_nodes(model.graph)
        if node.op_type in HOLDS and any(quantized(v) for v in node.inputs if v is not None)
    ]
    if left:
        warn_user(
            f"Integers are left of {listed(left, _SHOWN, quoted=False)}: not all they read is constant.",
            UserWarning,
        )


def _chosen(model: ir.Model, names: Iterable[str]) -> set[ir.Value]:
    """Constant integers of these names."""
    integers = {
        name: value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.size > 1 and value.const_value.dtype in BOUNDS
        for name in (str(value.name), own_name(value))
    }
    for name in names:
        if name not in integers:
            raise UnknownNameError(
                f"The model has no integers {name!r}.{did_you_mean(name, list(integers))} "
                f"It has {sorted(own_name(v) for v in set(integers.values()))}."
            )
    return {integers[name] for name in names}

"""What the gradient builder of onnxruntime-training 1.19.2 can be trusted with, operator by operator.

The builder aborts or crashes the process on some graphs, and for some attributes it returns gradients
that are wrong without a word. So nothing reaches it that is not in :data:`OPERATORS`, and every entry
there was compared with finite differences, at opsets 13 to 21, in float32 and float64, with static
shapes, symbolic dimensions and unknown ranks. ``_unittests/ut_gradient`` asks the builder again.

Found wrong, crashing or without a CPU kernel in 1.19.2, and therefore refused, or done by standard
operators (:mod:`.rewrites`, :mod:`.kernels`):

===================== ==============================================================================
AveragePool           wrong in 3-D, with dilations or auto_pad; wrong size with a symbolic dimension;
                      segmentation fault with unknown rank. *Done by Conv.*
BatchNormalization    inference differentiated as training: wrong. *Done by Mul and Add.*
Cast                  to its own type: invalid graph. *Identity.*
Clip                  no gradient of the bounds, none before opset 12
Conv                  auto_pad SAME: reads beyond the end. *Padding made explicit if shapes are known.*
ConvTranspose, Resize no CPU kernel of the gradient
Dropout               inference differentiated as training: wrong. *Identity.*
Gelu                  approximate="tanh" gets the gradient of the exact function. *Done by Tanh.*
LayerNormalization    needs its optional outputs and a bias. *Added.*
MatMul                wrong or no gradient for vectors. *Made matrices.*
MaxPool               segmentation fault unless all dimensions are static; wrong with storage_order=1;
                      no float64 kernel. *Gradient done by ScatterElements.*
Max, Min              an operand given twice gets its gradient twice. *Given once.*
Pad                   fails with axes or another mode than constant
Pow                   no gradient of the exponent; wrong size if the exponent is the larger operand. *Expand.*
ReduceL2              wrong
ReduceLogSumExp       keepdims=0 fails for some axes. *Done with keepdims=1.*
ScatterElements/ND    wrong with a reduction; no float64 for the gradient of data
Slice                 fails with negative steps
Where                 does not sum over broadcast dimensions. *Expand.*
Add, Sub, Mul, ...    wrong sums if two different symbolic dimensions meet. *Shape taken at run time.*
===================== ==============================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operators import operator_schema

from ..verdict import RULE, Verdict

__all__ = ["OPERATORS", "STEP_OPERANDS", "STEP_OPERATORS", "Support", "judge"]

SINGLE = frozenset({ir.DataType.FLOAT})
BOTH = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
USE_ONNX = "leave it out of the gradient, or use another engine."


@dataclass(frozen=True)
class Support:
    """What is known of one operator.

    Parameters
    ----------
    operands : tuple of int or None
        Operands that have a gradient; None: all.
    dtypes : frozenset of onnx_ir.DataType
        Types that all kernels involved exist for.
    check : callable, optional
        From the node to the reason why this one is refused, or None.
    how : {'rule', 'function'}
        Whether the builder sees the operator itself or what is put in its place.
    outputs : tuple of int
        Outputs that a gradient may come in from.
    """

    operands: tuple[int, ...] | None = (0,)
    dtypes: frozenset[ir.DataType] = BOTH
    check: Callable[[ir.Node], str | None] | None = None
    how: str = "rule"
    outputs: tuple[int, ...] | None = (0,)


# -- questions about a node --------------------------------------------------------------------


def attribute(node: ir.Node, name: str, default: object = None) -> object:
    """The value of an attribute, or the default."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, if known."""
    return None if value is None or value.shape is None else len(value.shape)


def static_shape(value: ir.Value | None) -> list[int] | None:
    """The dimensions, if all are known."""
    if value is None or value.shape is None or not all(isinstance(d, int) for d in value.shape):
        return None
    return [int(d) for d in value.shape]  # type: ignore[arg-type]


def operand(node: ir.Node, k: int) -> ir.Value | None:
    """Operand k, None if it is left out."""
    return node.inputs[k] if k < len(node.inputs) else None


# -- conditions --------------------------------------------------------------------------------


def _known_rank(*positions: int) -> Callable[[ir.Node], str | None]:
    def check(node: ir.Node) -> str | None:
        for k in positions:
            if rank(operand(node, k)) is None:
                return f"the rank of its operand {k} is unknown; declare the shapes of the inputs."
        return None

    return check


def _conv(node: ir.Node) -> str | None:
    pad = attribute(node, "auto_pad", "NOTSET")
    if pad not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    if all(static_shape(operand(node, k)) is not None for k in (0, 1)):
        return None
    return f"auto_pad={pad} gives wrong gradients; give pads instead, or declare all dimensions."


def _average_pool(node: ir.Node) -> str | None:
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "auto_pad gives wrong gradients; give pads instead."
    if attribute(node, "ceil_mode", 0):
        return f"ceil_mode=1 gives wrong gradients; {USE_ONNX}"
    return None


def _max_pool(node: ir.Node) -> str | None:
    if len(node.outputs) > 1 and attribute(node, "storage_order", 0) and node.outputs[1].uses():
        return "storage_order=1 gives wrong gradients; set it to 0."
    return None


def _batch_norm(node: ir.Node) -> str | None:
    if attribute(node, "training_mode", 0):
        return "training_mode=1 updates statistics, which this engine does not do; set it to 0."
    return _known_rank(0)(node)


def _layer_norm(node: ir.Node) -> str | None:
    if attribute(node, "axis", -1) >= 0 and rank(node.inputs[0]) is None:  # type: ignore[operator]
        return _known_rank(0)(node)
    if operand(node, 2) is None and static_shape(operand(node, 1)) is None:
        return "without a bias the shape of the scale must be known."
    return None


def _dropout(node: ir.Node) -> str | None:
    mode = operand(node, 2)
    if mode is not None:
        known = constant_array(mode)
        if known is None or bool(np.asarray(known).any()):
            return "its training_mode is not the constant false; set it to false."
    return None


def _positive_steps(node: ir.Node) -> str | None:
    steps = operand(node, 4)
    if steps is None:
        return None
    known = constant_array(steps)
    if known is None or np.asarray(known).min(initial=1) < 1:
        return f"its steps are not positive constants; {USE_ONNX}"
    return None


def _no_reduction(node: ir.Node) -> str | None:
    reduction = attribute(node, "reduction", "none")
    return None if reduction == "none" else f"reduction={reduction!r} gives wrong gradients; {USE_ONNX}"


def _pad(node: ir.Node) -> str | None:
    mode = attribute(node, "mode", "constant")
    if mode != "constant":
        return f"mode={mode!r} has no gradient; {USE_ONNX}"
    return None if operand(node, 3) is None else "its axes are an operand; give pads for all axes."


def _where(node: ir.Node) -> str | None:
    return None if len(node.inputs) == 3 else "it does not have three operands."


def _log_sum_exp(node: ir.Node) -> str | None:
    if not attribute(node, "keepdims", 1) and len(node.inputs) > 1 and constant_array(node.inputs[1]) is None:
        return "keepdims=0 needs constant axes; set keepdims=1."
    return None


# -- the table ---------------------------------------------------------------------------------

_FUNCTION = "function"

OPERATORS: dict[str, Support] = {
    # Elementwise.
    **{n: Support() for n in "Abs Exp Identity Log Neg Reciprocal Relu Sigmoid Sqrt Tanh".split()},
    **{n: Support(dtypes=SINGLE) for n in "Cos Erf LeakyRelu Sin".split()},
    **{n: Support(operands=(0, 1)) for n in "Add Div Mul Sub".split()},
    "Cast": Support(),
    "Clip": Support(),
    "Max": Support(operands=None),
    "Min": Support(operands=None),
    "Pow": Support(),
    "Where": Support(operands=(1, 2), check=_where),
    # Products and pools.
    "MatMul": Support(operands=(0, 1), check=_known_rank(0, 1)),
    "Gemm": Support(operands=(0, 1, 2)),
    "Conv": Support(operands=(0, 1, 2), dtypes=SINGLE, check=_conv),
    "MaxPool": Support(check=_max_pool),
    "GlobalAveragePool": Support(dtypes=SINGLE),
    # Normalizations.
    "LayerNormalization": Support(operands=(0, 1, 2), check=_layer_norm),
    "LogSoftmax": Support(),
    "Softmax": Support(),
    # Reductions.
    "ReduceLogSumExp": Support(check=_log_sum_exp),
    "ReduceMean": Support(),
    "ReduceSum": Support(),
    "TopK": Support(),
    # Shapes and indices.
    **{n: Support() for n in "Expand Flatten Gather GatherElements GatherND Reshape Squeeze".split()},
    **{n: Support() for n in "Tile Transpose Trilu Unsqueeze".split()},
    "Concat": Support(operands=None),
    "Pad": Support(check=_pad),
    "ScatterElements": Support(operands=(0, 2), dtypes=SINGLE, check=_no_reduction),
    "ScatterND": Support(operands=(0, 2), dtypes=SINGLE, check=_no_reduction),
    "Slice": Support(check=_positive_steps),
    "Split": Support(outputs=None),
    # Done by other operators.
    "AveragePool": Support(dtypes=SINGLE, check=_average_pool, how=_FUNCTION),
    "BatchNormalization": Support(operands=(0, 1, 2, 3, 4), check=_batch_norm, how=_FUNCTION),
    "Dropout": Support(check=_dropout, how=_FUNCTION),
    "Gelu": Support(dtypes=SINGLE),
    **{
        n: Support(how=_FUNCTION)
        for n in "Celu Elu HardSigmoid HardSwish Mish Selu Softplus Softsign".split()
    },
    "PRelu": Support(operands=(0, 1), how=_FUNCTION),
    **{n: Support(how=_FUNCTION) for n in "ReduceL1 ReduceLogSum ReduceSumSquare".split()},
    "Mean": Support(operands=None, how=_FUNCTION),
    "Sum": Support(operands=None, how=_FUNCTION),
}
"""Every operator of ai.onnx that the engine differentiates."""

STEP_OPERATORS = frozenset(
    "ArgMax ArgMin Bernoulli Ceil ConstantOfShape EyeLike Floor IsInf IsNaN Multinomial NonMaxSuppression "
    "NonZero QuantizeLinear DynamicQuantizeLinear RandomNormalLike RandomUniformLike Round Shape Sign "
    "Size And Or Xor Not Equal Less LessOrEqual Greater GreaterOrEqual".split()
)
"""Operators that are step functions of all their operands, or do not depend on their values."""

STEP_OPERANDS: dict[str, frozenset[int]] = {
    "Dropout": frozenset({1}),
    "OneHot": frozenset({0, 1}),
    "Resize": frozenset({1, 2}),
    "Upsample": frozenset({1}),
}
"""Floating-point operands that choose what is computed rather than take part in it."""

_STEP_ML = frozenset(
    "Binarizer LabelEncoder TreeEnsembleClassifier TreeEnsembleRegressor TreeEnsemble".split()
)


def judge(model: ir.Model, node: ir.Node, position: int, outputs: frozenset[int]) -> Verdict:
    """How the gradient from some outputs of a node to one of its operands is treated."""
    opset = model.opset_imports.get(node.domain)
    if node.domain != "":
        return _foreign(node, opset)
    if node.op_type in STEP_OPERATORS or position in STEP_OPERANDS.get(node.op_type, ()):
        return Verdict("non-differentiable", "the output is a step function of this operand.")
    support = OPERATORS.get(node.op_type)
    if support is None:
        if operator_schema(node.op_type, opset or 1, node.domain) is None:
            return Verdict("unknown", f"opset {opset} has no operator of that name.")
        return Verdict("refused", f"onnxruntime-training has no gradient for it; {USE_ONNX}")
    reason = _reason(support, node, position, outputs)
    if reason is not None:
        return Verdict("refused", reason)
    return RULE if support.how == "rule" else Verdict(support.how)


def _reason(support: Support, node: ir.Node, position: int, outputs: frozenset[int]) -> str | None:
    """Why an operator that is supported in general is not so here."""
    if position == -1 or (support.operands is not None and position not in support.operands):
        return f"its operand {position} has no gradient in onnxruntime-training; {USE_ONNX}"
    if support.outputs is not None and not outputs <= set(support.outputs):
        extra = sorted(outputs - set(support.outputs))
        return f"a gradient comes in from its output {extra[0]}, which is not supported; {USE_ONNX}"
    for value in (node.inputs[position], *(node.outputs[k] for k in outputs)):
        if value is None or value.dtype not in support.dtypes:
            dtype = "of unknown type" if value is None or value.dtype is None else str(value.dtype).lower()
            have = " and ".join(sorted(str(d).lower() for d in support.dtypes))
            return f"the tensors are {dtype}, and there are kernels for {have} only; convert the model."
    return None if support.check is None else support.check(node)


def _foreign(node: ir.Node, opset: int | None) -> Verdict:
    if node.domain == "ai.onnx.ml" and node.op_type in _STEP_ML:
        return Verdict("non-differentiable", "the output is a step function of this operand.")
    if operator_schema(node.op_type, opset or 1, node.domain) is None:
        return Verdict(
            "unknown", f"no schema of an operator {node.domain}.{node.op_type} is known; replace the node."
        )
    return Verdict("refused", f"onnxruntime-training has no gradient for it; {USE_ONNX}")

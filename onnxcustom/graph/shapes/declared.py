"""What the declared shape of an output says of the tensors it is computed from."""

from __future__ import annotations

import onnx_ir as ir

from onnxcustom.graph.analysis.tails import kept

__all__ = ["DeclaredShapesPass"]

# Operators whose result has the shape of their first operand.
_KEEP_SHAPE = frozenset(
    "Abs Cast Ceil Clip Dropout Elu Erf Exp Floor HardSigmoid Identity LeakyRelu Log LogSoftmax "
    "LpNormalization Neg Reciprocal Relu Selu Sigmoid Softmax Softplus Softsign Sqrt Tanh "
    "ThresholdedRelu".split()
)


class DeclaredShapesPass(ir.passes.InPlacePass):
    """Give tensors whose rank could not be inferred the shape of what is computed of them one by one.

    Up to opset 12 Softmax means something else for every rank, and a Reshape to a computed shape hides it;
    the output behind it has a declared one.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Complete shapes in place, from the outputs backwards."""
        modified = False
        for node in reversed(model.graph):
            if node.domain != "" or not node.inputs:
                continue
            x = node.inputs[0] if node.op_type in _KEEP_SHAPE else kept(node, ())
            y = node.outputs[0]
            if x is None or x.shape is not None or y.shape is None or x.producer() is None:
                continue
            x.shape = ir.Shape(list(y.shape))
            modified = True
        return ir.passes.PassResult(model, modified=modified)

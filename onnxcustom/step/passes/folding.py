"""Folding updates into the products that gradients come from.

Each rewrite removes passes over memory the size of a weight: ``Gemm`` adds a third operand to what it
computes, so the gradient of a matrix needs no memory of its own where plain descent or momentum is all
that becomes of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from onnxcustom.runtime import ForkLock

__all__ = ["FOLDING", "fold_updates"]


class _Fold(pattern.RewriteRuleClassBase):
    """A product of two matrices, and what it is added to or taken from."""

    sign = 1.0

    def check(  # type: ignore[override]
        self, context: Any, x: ir.Value, product: ir.Value, total: ir.Value, **_: Any
    ) -> bool:
        """The other operand is a matrix of the result's shape: Gemm broadcasts in one direction only."""
        node = product.producer()
        if node is None or len([v for v in node.inputs if v is not None]) != 2 or not _read_once(product):
            return False
        if x.shape is None or total.shape is None or x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            return False
        return len(x.shape) == 2 and x.shape.is_static() and list(x.shape) == list(total.shape)

    def rewrite(self, op: Any, x: ir.Value, product: ir.Value, a: ir.Value, b: ir.Value, **_: Any) -> Any:
        """Let the product add it."""
        node = product.producer()
        assert node is not None
        attributes = _attributes(node)
        attributes["alpha"] *= self.sign
        return op.Gemm(a, b, x, **{**attributes, "beta": 1.0})


class DescentInGemm(_Fold):
    """``x - alpha A B`` as one Gemm: plain descent."""

    sign = -1.0

    def pattern(self, op: Any, x: Any, a: Any, b: Any) -> Any:
        """What is looked for."""
        product = op.Gemm(a, b, _allow_other_attributes=True, _outputs=["product"])
        return op.Sub(x, product, _outputs=["total"])


class SumInGemm(_Fold):
    """``x + alpha A B`` as one Gemm: momentum."""

    def pattern(self, op: Any, x: Any, a: Any, b: Any) -> Any:
        """What is looked for."""
        product = op.Gemm(a, b, _allow_other_attributes=True, _outputs=["product"])
        return op.Add(x, product, _outputs=["total"])


class FactorInGemm(pattern.RewriteRuleClassBase):
    """``alpha A B + beta (k C)`` with a constant k: the decay of a momentum."""

    def pattern(self, op: Any, k: Any, c: Any, a: Any, b: Any) -> Any:
        """What is looked for."""
        scaled = op.Mul(k, c)
        return op.Gemm(a, b, scaled, _allow_other_attributes=True, _outputs=["total"])

    def check(  # type: ignore[override]
        self, context: Any, k: ir.Value, c: ir.Value, total: ir.Value, **_: Any
    ) -> bool:
        """The factor is one number that stays."""
        tensor, node = k.const_value, total.producer()
        if tensor is None or k.is_graph_input() or tensor.size != 1 or c.shape is None or total.shape is None:
            return False
        if node is None or node.inputs[2] is None or not _read_once(node.inputs[2]):
            return False
        factor = tensor.numpy().reshape(-1)[0]
        # Attributes are in single precision, whatever the operands are.
        # A bias stays a vector where the product is a row.
        fits = list(c.shape) in (list(total.shape), list(total.shape)[1:])
        return fits and factor == np.asarray(factor, np.float32)

    def rewrite(
        self, op: Any, k: ir.Value, c: ir.Value, a: ir.Value, b: ir.Value, total: ir.Value, **_: Any
    ) -> Any:
        """Let the product scale it."""
        node = total.producer()
        assert node is not None
        assert k.const_value is not None
        attributes = _attributes(node)
        attributes["beta"] *= float(k.const_value.numpy().reshape(-1)[0])
        return op.Gemm(a, b, c, **attributes)


def _read_once(value: ir.Value) -> bool:
    """Whether the node of the pattern is all that reads a value: one may be both of its operands."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of a Gemm, defaults included."""
    found = node.attributes
    return {
        "alpha": found.get_float("alpha", 1.0),
        "beta": found.get_float("beta", 1.0),
        "transA": found.get_int("transA", 0),
        "transB": found.get_int("transB", 0),
    }


#: In this order: the second makes what the third looks for.
FOLDING = pattern.RewriteRuleSet([DescentInGemm.rule(), SumInGemm.rule(), FactorInGemm.rule()])
# A rule keeps what it has matched so far.
_LOCK = ForkLock()


def fold_updates(model: ir.Model) -> None:
    """Apply the rules, in place; models of several threads one after the other."""
    with _LOCK:
        FOLDING.apply_to_model(model)

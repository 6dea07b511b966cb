"""How an engine treats one operand of one node."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcustom.graph.analysis.integers import REMEDY

__all__ = ["INTEGERS", "RULE", "STEP", "Verdict", "of_weight"]


@dataclass(frozen=True)
class Verdict:
    """How an engine treats one operand of one node.

    Parameters
    ----------
    how : {'rule', 'function', 'non-differentiable', 'refused', 'unknown'}
        'rule': by a rule of the engine; 'function': by standard operators put in its place;
        'non-differentiable': the output is a step function of the operand, whose gradient stops here;
        'refused': a gradient exists but the engine has none, or a wrong one; 'unknown': the operator is
        in no schema.
    reason : str
        Why, and what to do about it; empty if there is nothing to say.
    """

    how: str
    reason: str = ""

    @property
    def passes(self) -> bool:
        """Whether a gradient flows through."""
        return self.how in ("rule", "function")

    @property
    def stops(self) -> bool:
        """Whether the gradient certainly ends here."""
        return self.how == "non-differentiable"


RULE = Verdict("rule")
STEP = Verdict(
    "non-differentiable",
    "only places, labels or truth values come of the operand, which have no gradient",
)

INTEGERS = Verdict("non-differentiable", f"integers come of the operand; {REMEDY}")


def of_weight(verdict: Verdict) -> str:
    """The reason of a verdict, where it keeps a weight from being trained."""
    if verdict != STEP:
        return verdict.reason
    return (
        f"{verdict.reason}. Constants that are compared only, as the rows that nearest neighbours are looked "
        "for among, are no weights that a gradient could move; linear models and neural networks have some."
    )

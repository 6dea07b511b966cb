"""Which rule differentiates which operator: the table the reverse walk reads.

Rules register themselves when their module is imported::

    elementwise("Tanh", lambda op, x, y: 1 - y * y)

    @rule("MatMul")
    def matmul(op, node, dy): ...

A lookup gives the rule of the operator's version: ``since`` and ``until`` are opsets of its
domain, both inclusive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.graph.analysis.operators import normal_domain

__all__ = [
    "Rule",
    "elementwise",
    "find_rule",
    "non_differentiable",
    "non_differentiable_reason",
    "refusals",
    "refuse",
    "refused_reason",
    "registered",
    "rule",
]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one operator is differentiated.

    Attributes
    ----------
    op_type, domain : str
        The operator.
    since, until : int, int or None
        Opsets of the domain the rule is for, both inclusive; None has no end.
    function : callable
        ``function(op, node, *dys)`` -> gradients of the node's inputs. `op` is the builder,
        `node` a :class:`~onnxcustom.gradient.node.NodeView`, `dys` the gradient of each output of
        the node, None where none flows. It returns one entry per input, None where the input
        carries no gradient; a single variable stands for the first input.
    broadcasts : bool
        Whether gradients have the shape of the output rather than of the input: the engine then
        sums them to the input's shape.
    forms : callable, optional
        ``forms(op, node)`` -> for reports, which form forward and gradients have, where that depends on
        shapes. What it emits through `op` is thrown away.
    """

    op_type: str
    domain: str
    since: int
    until: int | None
    function: Callable[..., Any]
    broadcasts: bool = False
    forms: Callable[..., Mapping[str, str]] | None = None

    def serves(self, version: int) -> bool:
        """Whether the rule is for that version of its domain."""
        return self.since <= version and (self.until is None or version <= self.until)


_RULES: dict[tuple[str, str], list[Rule]] = {}
_NON_DIFFERENTIABLE: dict[tuple[str, str], str] = {}
_REFUSED: dict[tuple[str, str], str] = {}


def _key(op_type: str, domain: str) -> tuple[str, str]:
    return normal_domain(domain), op_type


def _register(new: Rule) -> None:
    rules = _RULES.setdefault(_key(new.op_type, new.domain), [])
    for old in rules:
        if old.serves(new.since) or new.serves(old.since):
            raise InvalidParameterError(
                f"{new.op_type} (domain {new.domain!r}) has a rule for opsets {old.since} to "
                f"{old.until or 'the newest'} already; give the new one a range of its own."
            )
    rules.append(new)


def rule(
    *op_types: str,
    domain: str = "",
    since: int = 1,
    until: int | None = None,
    broadcasts: bool = False,
    forms: Callable[..., Mapping[str, str]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the rule of one or several operators.

    Parameters
    ----------
    op_types : str
        Operators.
    domain : str, default=''
        Their domain; the default is ONNX's own.
    since, until : int, optional
        First and last opset of the domain that the rule is for.
    broadcasts : bool, default=False
        The gradients have the output's shape and are to be summed to the inputs'.
    forms : callable, optional
        Says of a node, for reports, in which form it emits what: see :class:`Rule`.

    Examples
    --------
    >>> @rule("Cube", domain="my.domain")
    ... def cube(op, node, dy):
    ...     '''y = x³:  dx = 3 x² dy.'''
    ...     (x,) = node.inputs
    ...     return 3 * x * x * dy
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for op_type in op_types:
            _register(Rule(op_type, domain, since, until, function, broadcasts, forms))
        return function

    return decorate


def elementwise(
    op_type: str,
    *derivatives: Callable[..., Any] | None,
    domain: str = "",
    since: int = 1,
    until: int | None = None,
) -> None:
    """Register an operator that works element by element, by its local derivatives.

    Parameters
    ----------
    op_type : str
        Operator.
    derivatives : callable or None
        One per input: ``derivative(op, *inputs, y)`` -> ∂y/∂input, a variable or a number; None
        for an input without gradient. The engine multiplies by the incoming gradient and sums to
        the input's shape. A derivative of 1 or -1 costs no multiplication.
    """

    def function(op: Any, node: Any, dy: Any, *_: Any) -> Sequence[Any]:
        gradients: list[Any] = []
        for i, derivative in enumerate(derivatives):
            if derivative is None or not node.needs[i]:
                gradients.append(None)
                continue
            local = derivative(op, *node.inputs, node.outputs[0])
            gradients.append(_times(dy, local))
        return gradients + [None] * (len(node.inputs) - len(gradients))

    _register(Rule(op_type, domain, since, until, function, broadcasts=len(derivatives) > 1))


def _times(dy: Any, local: Any) -> Any:
    if isinstance(local, (int, float)):
        if local == 1:
            return dy
        if local == -1:
            return -dy
    return dy * local


def non_differentiable(*op_types: str, reason: str, domain: str = "") -> None:
    """Declare operators through which no gradient flows: their outputs are steps or no numbers."""
    for op_type in op_types:
        _NON_DIFFERENTIABLE[_key(op_type, domain)] = reason


def refuse(*op_types: str, reason: str, domain: str = "") -> None:
    """Declare operators that have a gradient this library does not know, and why."""
    for op_type in op_types:
        _REFUSED[_key(op_type, domain)] = reason


def find_rule(op_type: str, domain: str, version: int) -> Rule | None:
    """The rule of an operator in a version of its domain, None if there is none."""
    for candidate in _RULES.get(_key(op_type, domain), ()):
        if candidate.serves(version):
            return candidate
    return None


def non_differentiable_reason(op_type: str, domain: str) -> str | None:
    """Why no gradient flows through an operator, None if one may."""
    return _NON_DIFFERENTIABLE.get(_key(op_type, domain))


def refused_reason(op_type: str, domain: str) -> str | None:
    """Why an operator is refused, None if it is not."""
    return _REFUSED.get(_key(op_type, domain))


def refusals() -> Iterator[tuple[str, str]]:
    """Domain and type of every operator that is refused."""
    yield from _REFUSED


def registered() -> Iterator[Rule]:
    """Every rule."""
    for rules in _RULES.values():
        yield from rules

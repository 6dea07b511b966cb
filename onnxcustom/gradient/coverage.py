"""How every operator of ONNX is differentiated: the table in the documentation."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from . import rules  # noqa: F401 - registers every rule
from .expand import expandable, expansions
from .registry import find_rule, non_differentiable_reason, refusals, refused_reason, registered

__all__ = ["HOWS", "NEWEST_OPSET", "Coverage", "coverage", "coverage_rst"]

NEWEST_OPSET = 23
"""Newest opset that rules were written for."""

HOWS = ("rule", "function", "non-differentiable", "refused")
"""What may become of an operator, as in :func:`onnxcustom.gradient.gradient_report`."""


@dataclass(frozen=True)
class Coverage:
    """One operator.

    Parameters
    ----------
    op_type, domain : str
        The operator.
    since : int
        Its newest version up to the opset asked for.
    how : str
        One of :data:`HOWS`, or 'unknown' where nothing was said.
    detail : str
        The formula of a rule, or why there is none.
    """

    op_type: str
    domain: str
    since: int
    how: str
    detail: str = ""


def coverage(opset: int = NEWEST_OPSET) -> list[Coverage]:
    """How engine ``"onnx"`` differentiates the operators of ONNX's own domain, and others it knows.

    Parameters
    ----------
    opset : int, default=23
        Version of ONNX's domain.

    Returns
    -------
    list of Coverage
        By name, ONNX's own first.

    Examples
    --------
    >>> rows = {row.op_type: row for row in coverage()}
    >>> rows["Tanh"].how, rows["ArgMax"].how
    ('rule', 'non-differentiable')
    """
    newest: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= opset:
            newest[schema.name] = max(newest.get(schema.name, 0), schema.since_version)
    rows = [_row(name, "", since, opset) for name, since in sorted(newest.items())]
    known = {(r.domain, r.op_type) for r in registered()} | set(expansions()) | set(refusals())
    return rows + [_row(op_type, domain, 1, 1) for domain, op_type in sorted(known) if domain]


def _row(op_type: str, domain: str, since: int, version: int) -> Coverage:
    rule = find_rule(op_type, domain, version)
    if rule is not None:
        return Coverage(op_type, domain, since, "rule", _formula(rule.function))
    if not domain and onnx.defs.get_schema(op_type, version).deprecated:
        detail = "the operator that replaced it; models of the opsets that had it are converted"
        return Coverage(op_type, domain, since, "function", detail)
    for how, reason in (
        ("non-differentiable", non_differentiable_reason(op_type, domain)),
        ("refused", refused_reason(op_type, domain)),
    ):
        if reason is not None:
            return Coverage(op_type, domain, since, how, reason)
    way = expandable(op_type, domain, version)
    if way is not None:
        detail = "ONNX's function body" if way == "function" else "the standard operators it stands for"
        return Coverage(op_type, domain, since, "function", detail)
    return Coverage(op_type, domain, since, "unknown")


def _formula(function: object) -> str:
    """The first paragraph of a rule's docstring; elementwise rules are their own formula."""
    text = (getattr(function, "__doc__", None) or "").strip()
    return " ".join(text.split("\n\n")[0].split()) or "element by element"


def coverage_rst(opset: int = NEWEST_OPSET) -> str:
    """The table as reStructuredText, a ``list-table`` per way.

    Parameters
    ----------
    opset : int, default=23
        Version of ONNX's domain.

    Returns
    -------
    str
    """
    rows = coverage(opset)
    titles = {
        "rule": "By a rule",
        "function": "By the operators it stands for",
        "non-differentiable": "Not differentiable",
        "refused": "Refused",
    }
    lines = []
    for how, title in titles.items():
        found = [row for row in rows if row.how == how]
        lines += [title, "~" * len(title), ""]
        if not found:
            lines += ["None.", ""]
            continue
        lines += [".. list-table::", "   :header-rows: 1", "   :widths: 30 10 60", ""]
        lines += [
            "   * - Operator",
            "     - Since",
            f"     - {'Gradient' if how == 'rule' else 'How or why'}",
        ]
        for row in found:
            name = f"{row.domain}.{row.op_type}" if row.domain else row.op_type
            since = "" if row.domain else str(row.since)
            # Formulas are full of characters that mean something in reStructuredText.
            detail = f"``{row.detail}``" if how == "rule" else row.detail
            lines += [f"   * - {name}", f"     - {since}".rstrip(), f"     - {detail}"]
        lines.append("")
    return "\n".join(lines)

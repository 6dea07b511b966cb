"""Nothing is forgotten: every operator of ONNX is in exactly one list, and every rule in a test."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
from case_registry import operators_with_cases

from onnxcustom.gradient.coverage import HOWS, NEWEST_OPSET, coverage, coverage_rst
from onnxcustom.gradient.expand import expandable, expansions
from onnxcustom.gradient.registry import find_rule, non_differentiable_reason, refused_reason, registered

OPERATORS = sorted(
    {
        s.name
        for s in onnx.defs.get_all_schemas_with_history()
        if s.domain == "" and s.since_version <= NEWEST_OPSET
    }
)


@pytest.mark.parametrize("opset", range(18, NEWEST_OPSET + 1))
def test_every_operator_is_in_exactly_one_list(opset: int) -> None:
    wrong = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain or schema.since_version > opset:
            continue
        name = schema.name
        lists = [find_rule(name, "", opset), non_differentiable_reason(name, ""), refused_reason(name, "")]
        ways = sum(entry is not None for entry in lists)
        if ways != 1 and (ways or expandable(name, "", opset) is None):
            wrong[name] = ways
    assert not wrong


def test_table_is_complete() -> None:
    rows = [row for row in coverage() if not row.domain]
    assert [row.op_type for row in rows] == OPERATORS
    assert {row.how for row in coverage()} <= set(HOWS)
    assert all(row.detail for row in coverage())


def test_none_is_refused() -> None:
    """Of ONNX's own; the README says so."""
    counts = Counter(row.how for row in coverage() if not row.domain)
    assert counts["refused"] == counts["unknown"] == 0
    assert counts["rule"] >= 135


def test_refused_operators_of_other_domains_are_listed() -> None:
    refused = {(row.domain, row.op_type) for row in coverage() if row.how == "refused"}
    assert ("com.microsoft", "GroupQueryAttention") in refused


def test_reasons_say_what_to_do() -> None:
    for row in coverage():
        if row.how in ("refused", "non-differentiable"):
            assert len(row.detail) > 10, row


def test_table_is_valid_rst() -> None:
    text = coverage_rst()
    for row in coverage():
        name = f"{row.domain}.{row.op_type}" if row.domain else row.op_type
        assert f"   * - {name}\n" in text
    core = pytest.importorskip("docutils.core")
    core.publish_doctree(text, settings_overrides={"halt_level": 2, "report_level": 5})


def test_every_rule_is_tested() -> None:
    """The tables of cases hold what has a rule, and nothing that the library does not know.

    Rules of others that a test registered are none of these; test_expand.py compares expansions with its tables.
    """
    cases = operators_with_cases()
    rules = {(r.domain, r.op_type) for r in registered() if r.function.__module__.startswith("onnxcustom.")}
    assert len(rules) > 140
    assert rules - cases == set()
    without = {case for case in cases if non_differentiable_reason(case[1], case[0])}
    functions = {(domain, name) for domain, name in cases if expandable(name, domain, NEWEST_OPSET)}
    older = {("", "Scatter"), ("", "Upsample")}  # converted to younger operators first
    ours = {("my.domain", "Cube")}
    assert cases - rules - set(expansions()) - without - functions == older | ours


def test_rules_say_what_they_compute() -> None:
    for rule in registered():
        made_by_function = (
            "<locals>" in rule.function.__qualname__
        )  # of elementwise, by its local derivatives
        if rule.function.__module__.startswith("onnxcustom.gradient.rules") and not made_by_function:
            assert rule.function.__doc__, rule.op_type

"""Looking rules up by operator, domain and version."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnxcustom.gradient import registry
from onnxcustom.gradient.emit import GradientBuilder
from onnxcustom.gradient.node import NodeView
from onnxcustom.gradient.registry import (
    elementwise,
    find_rule,
    non_differentiable,
    non_differentiable_reason,
    refuse,
    refused_reason,
    registered,
    rule,
)


@pytest.fixture(autouse=True)
def _own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_RULES", "_NON_DIFFERENTIABLE", "_REFUSED"):
        monkeypatch.setattr(registry, name, {})


def nothing(op: object, node: object, dy: object) -> None:
    return None


def test_versions() -> None:
    rule("Op", until=12)(nothing)

    @rule("Op", since=13, until=17)
    def later(op: object, node: object, dy: object) -> None:
        return None

    assert find_rule("Op", "", 7).function is nothing
    assert find_rule("Op", "", 12).function is nothing
    assert find_rule("Op", "", 13).function is later
    assert find_rule("Op", "", 18) is None
    assert {r.function for r in registered()} == {nothing, later}


@pytest.mark.parametrize(("since", "until"), [(1, None), (12, None), (1, 3), (5, 20)])
def test_ranges_may_not_overlap(since: int, until: int | None) -> None:
    rule("Op", since=3, until=12)(nothing)
    with pytest.raises(ValueError, match=r"Op.*already"):
        rule("Op", since=since, until=until)(nothing)
    assert len(list(registered())) == 1


def test_several_operators_share_a_rule() -> None:
    rule("A", "B", domain="d")(nothing)
    assert find_rule("A", "d", 1).function is find_rule("B", "d", 1).function
    assert find_rule("A", "", 18) is None


def test_domains() -> None:
    rule("Op")(nothing)
    assert find_rule("Op", "ai.onnx", 18) is find_rule("Op", "", 18)
    assert find_rule("Op", "my.domain", 18) is None


def test_negatives() -> None:
    non_differentiable("Step", reason="it jumps")
    refuse("Hard", reason="nobody knows", domain="d")
    assert non_differentiable_reason("Step", "ai.onnx") == "it jumps"
    assert non_differentiable_reason("Hard", "d") is None
    assert refused_reason("Hard", "d") == "nobody knows"
    assert refused_reason("Hard", "") is None


def emitted(op_type: str, n: int, needs: tuple[bool, ...]) -> tuple[list[str], object]:
    """What a rule emits for a node of n inputs."""
    op = GradientBuilder(18)
    inputs = [op.input(f"x{i}", ir.DataType.FLOAT, [2]).value for i in range(n)]
    node = ir.node(op_type, inputs, domain="d")
    node.outputs[0].name = "y"
    dy = op.input("dy", ir.DataType.FLOAT, [2])
    found = find_rule(op_type, "d", 1)
    result = found.function(op, NodeView(op, node, 1, needs), dy)
    return [n.op_type for n in op.nodes], result


def test_elementwise_multiplies() -> None:
    elementwise("Op", lambda op, x, y: y, domain="d")
    ops, _ = emitted("Op", 1, (True,))
    assert ops == ["Mul"]


@pytest.mark.parametrize(("local", "ops"), [(1, []), (-1, ["Neg"]), (2.0, ["Mul"])])
def test_elementwise_with_numbers(local: float, ops: list[str]) -> None:
    elementwise("Op", lambda op, x, y: local, domain="d")
    assert emitted("Op", 1, (True,))[0] == ops


def test_elementwise_skips_what_nobody_needs() -> None:
    elementwise("Op", lambda op, a, b, y: a * a, lambda op, a, b, y: b, domain="d")
    ops, result = emitted("Op", 2, (False, True))
    assert ops == ["Mul"]
    assert result[0] is None
    assert find_rule("Op", "d", 1).broadcasts


def test_elementwise_without_derivative() -> None:
    elementwise("Op", None, domain="d")
    ops, result = emitted("Op", 1, (True,))
    assert (ops, result) == ([], [None])

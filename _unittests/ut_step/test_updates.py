"""The update part of a step graph."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from onnxcustom import optim
from onnxcustom.graph.building.builder import Builder
from onnxcustom.step.plan import Plan
from onnxcustom.step.updates import Scalars, compose_updates

# Trust ratios, products of momenta, random numbers: what is each weight's own.
OWN = {"lamb": 19, "lars": 17, "nadam": 10, "sgld": 4}


def nodes(rule: optim.BaseLearningRate, n_weights: int) -> list[ir.Node]:
    """What is emitted for some weights of one shape."""
    op, kind = Builder(18), ir.DataType.FLOAT
    weights = {f"w{i}": op.input(f"w{i}", kind, [3, 4]) for i in range(n_weights)}
    gradients = {name: op.input(f"{name}_g", kind, [3, 4]) for name in weights}
    hyper = {name: op.input(f"{name}_now", kind, []) for name in rule.scheduled}
    scalars = Scalars(op.input("rate", kind, []), op.input("t", kind, []), hyper)
    compose_updates(op, Plan(tuple(weights), rule), weights, gradients, {}, scalars)
    return op.nodes


def scalars_of(found: list[ir.Node]) -> int:
    return sum(node.outputs[0].shape is not None and len(node.outputs[0].shape) == 0 for node in found)


def schedules(name: str) -> dict[str, object]:
    """A schedule for everything that may have one."""
    kind = type(optim.create(name))
    found = {f.name for f in dataclasses.fields(kind) if f.metadata.get("scheduled")}
    return dict.fromkeys(found, lambda t: 0.5)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("name", optim.rule_names())
def test_scalars_are_computed_once_for_all_weights(name, scheduled):
    options = schedules(name) | {"lr_mult": {"w*": 0.5}, "wd_mult": {"w*": 0.3}} if scheduled else {}
    rule = optim.create(name, **options).init_learning_rate()
    one, three = scalars_of(nodes(rule, 1)), scalars_of(nodes(rule, 3))
    assert three - one <= 2 * OWN.get(name, 0)


def test_what_adam_costs():
    """Twelve passes over memory for each weight."""
    rule = optim.Adam().init_learning_rate()
    assert len(nodes(rule, 2)) - len(nodes(rule, 1)) == 12

"""Gradients of gradient graphs, against finite differences of the first gradient."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from bare_gradient import differentiate
from rule_cases import STEP, Case

__all__ = ["check_second_order"]


def check_second_order(case: Case, shapes: str = "dynamic") -> None:
    """Differentiate the gradient graph of a case by its floating-point inputs and by the seeds."""
    rng = np.random.default_rng(1)
    names = case.differentiable()
    first = case.gradient(shapes, names)
    feeds = case.feeds()
    feeds = _seeded(case, first, feeds)
    outputs = dict(zip([o.name for o in first.graph.output], case.evaluate(first, feeds), strict=True))
    wrt = [i.name for i in first.graph.input if feeds[i.name].dtype.kind == "f"]
    gradients = [f"{name}_grad" for name in names]
    second = ir.to_proto(differentiate(ir.from_proto(first), wrt, gradients, name="{}_grad2".format))
    seeds = {f"{g}_grad2": np.asarray(rng.normal(size=outputs[g].shape), dtype=case.dtype) for g in gradients}
    found = case.evaluate(second, {k: v for k, v in {**feeds, **seeds}.items() if k in _inputs(second)})
    forward = case.evaluator(first)
    for name, value in zip(wrt, found, strict=False):  # the outputs of the graph follow
        direction = np.asarray(rng.normal(size=feeds[name].shape), dtype=case.dtype)
        sides = [
            sum(
                np.sum(seeds[f"{g}_grad2"] * moved)
                for g, moved in zip(
                    gradients,
                    forward({**feeds, name: np.asarray(feeds[name] + s * direction)}),
                    strict=False,  # the outputs of the node follow
                )
            )
            for s in (STEP, -STEP)
        ]
        expected = (sides[0] - sides[1]) / (2 * STEP)
        along = np.sum(direction * value)
        scale = max(abs(expected), np.linalg.norm(np.ravel(value)), 1e-3)
        assert abs(along - expected) <= 1e-5 * scale, (str(case), name, along, expected)


def _inputs(model) -> set[str]:
    return {i.name for i in model.graph.input}


def _seeded(case: Case, first, feeds: dict) -> dict:
    """Feeds with a seed for each output of the node."""
    forward = ir.to_proto(ir.from_proto(case.model()))
    values = case.evaluate(forward, case.feeds())
    rng = np.random.default_rng(2)
    seeds = {
        f"{o.name}_grad": np.asarray(rng.normal(size=np.shape(v)), dtype=case.dtype)
        for o, v in zip(forward.graph.output, values, strict=True)
    }
    return {k: v for k, v in {**feeds, **seeds}.items() if k in _inputs(first)}

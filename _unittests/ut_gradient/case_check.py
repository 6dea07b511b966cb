"""Compare an engine's gradient of every case of the case table with finite differences.

Run as a script, ``case_check.py ENGINE START``, so that an engine that aborts the process fails one test:
prints a JSON line before and after every check, from number START on. ``case_check.py ENGINE variants START``
does so for the variants of the cases.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun
from operator_cases import CASES, FLOATS, Case, variants

from onnxcustom.exceptions import DifferentiationError
from onnxcustom.gradient import gradient_graph
from onnxcustom.runtime import create_session

STEP = 1e-6
VARIANTS = [variant for case in CASES for variant in variants(case)]
TOLERANCE = {"float64": 1e-6, "float32": 2e-4}


class Erf(OpRun):
    """The reference evaluator computes Erf in float32."""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """Likewise."""

    def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
        if approximate == "tanh":
            return (x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
        return (x * 0.5 * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / np.sqrt(2))),)


def runner(model: onnx.ModelProto) -> Any:
    """A function from feeds to outputs: onnxruntime's, else the reference evaluator's."""
    try:
        session = create_session(model, threads=1, optimize=False)
        return lambda feeds: session.run(None, feeds)
    except Exception:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model, new_ops=[Erf, Gelu])
        return lambda feeds: evaluator.run(None, feeds)


class Forward:
    """The outputs of a case, and how it is evaluated in float64; raises where it cannot be evaluated."""

    def __init__(self, case: Case, opset: int, dtype: Any, shapes: str) -> None:
        self.model, self.feeds = case.model(opset, dtype, shapes), case.inputs(dtype, shapes)
        # The reference evaluator computes in types that ONNX does not allow, such as Celu in float64.
        onnx.shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True)
        self.outputs = runner(self.model)(self.feeds)
        self._exact = functools.partial(case.model, opset, np.float64, shapes)

    @functools.cached_property
    def exact(self) -> Any:
        """A function from feeds to outputs."""
        return runner(self._exact())


# The next check often is of other operands of the same.
LAST: dict[tuple[str, int, str, str], Forward] = {}


def forward(case: Case, opset: int, dtype: Any, shapes: str) -> Forward:
    """The forward pass of a check."""
    key = (case.id, opset, np.dtype(dtype).name, shapes)
    if key not in LAST:
        LAST.clear()
        LAST[key] = Forward(case, opset, dtype, shapes)
    return LAST[key]


def check(
    engine: str, case: Case, opset: int, dtype: Any, shapes: str, diff: tuple[int, ...]
) -> tuple[str, str]:
    """('ok' | 'refused' | 'wrong' | 'failed' | 'noforward', detail)."""
    try:
        found = forward(case, opset, dtype, shapes)
    except Exception as exc:
        return "noforward", str(exc)[-200:]
    model, feeds, outputs = found.model, found.feeds, found.outputs
    floats = [o.name for o in model.graph.output if o.type.tensor_type.elem_type in (1, 11)]
    try:
        gradient = gradient_graph(model, wrt=[], inputs=[f"x{i}" for i in diff], engine=engine)
    except DifferentiationError as exc:
        if exc.op_type != case.op:
            return "failed", f"the error does not name the operator: {exc}"
        return "refused", str(exc)
    rng = np.random.default_rng(0)
    position = {o.name: k for k, o in enumerate(model.graph.output)}
    seeds = {name: rng.normal(size=np.shape(outputs[position[name]])) for name in floats}
    fed = dict(feeds)
    for name, seed in seeds.items():
        fed[f"{name}_grad"] = seed.astype(outputs[position[name]].dtype)
    session = create_session(gradient, threads=1)
    got = dict(zip([o.name for o in session.get_outputs()], session.run(None, fed), strict=False))
    for name, k in position.items():
        if not np.allclose(got[name], outputs[k], rtol=1e-4, atol=1e-5):
            return "wrong", f"output {name} changed"
    step = _step(case)
    for i in diff:
        name = f"x{i}"
        grad = got[f"{name}_grad"]
        if grad.shape != feeds[name].shape or grad.dtype != feeds[name].dtype:
            return "wrong", f"{name}: {grad.dtype}{grad.shape}"
        direction = rng.normal(size=grad.shape)
        values = []
        for sign in (1, -1):
            moved = case.inputs(np.float64, shapes)
            moved[name] = np.asarray(moved[name] + sign * step * direction)
            values.append(found.exact(moved))
        numeric = 0.0
        for out, seed in seeds.items():
            change = np.asarray(values[0][position[out]], np.float64) - np.asarray(values[1][position[out]])
            numeric += float(np.sum(change / (2 * step) * seed))
        terms = grad.astype(np.float64) * direction
        analytic, scale = float(np.sum(terms)), float(np.sum(np.abs(terms))) + abs(numeric)
        tolerance = TOLERANCE[
            "float32" if "float32" in (str(outputs[0].dtype), str(grad.dtype)) else "float64"
        ]
        if not abs(numeric - analytic) <= tolerance * max(scale, 1e-2):
            return "wrong", f"{name}: {analytic} is not {numeric}"
    return "ok", ""


def _step(case: Case) -> float:
    """Float32 leaves nothing of a small step: what is cast to it, statistics that are in it."""
    if case.op == "Cast" and case.attrs["to"] == 1:
        return 1e-2
    return 3e-3 if case.op == "LayerNormalization" and case.outputs == 3 else STEP


def checks() -> Iterator[tuple[int, int, Any, str, tuple[int, ...]]]:
    """Every (case number, opset, dtype, shapes, operands)."""
    for number, case in enumerate(CASES):
        newest = max(case.opsets(oldest=13), default=0)
        for opset in case.opsets(oldest=13):
            # What depends on one of opset, type and shapes does not depend on the others as well.
            for dtype in FLOATS if opset == newest else FLOATS[:1]:
                whole = opset == newest and dtype == FLOATS[0]
                kinds = ("static", "dynamic", "unknown") if whole else ("static",)
                for shapes in kinds:
                    alone = [(i,) for i in case.diff] if shapes == "static" and opset == newest else []
                    for diff in sorted({case.diff, *alone}):
                        yield number, opset, dtype, shapes, diff


def variant_checks() -> Iterator[tuple[int, int, Any, str, tuple[int, ...]]]:
    """Every (number of a variant, opset, dtype, shapes, operands)."""
    for number, case in enumerate(VARIANTS):
        for opset in list(case.opsets(oldest=13))[-1:]:
            for shapes in ("static", "dynamic", "unknown"):
                yield number, opset, np.float32, shapes, case.diff


def main(engine: str, start: int, cases: list[Case], asked: Iterator[Any]) -> None:
    """Do all checks from number `start` on."""
    warnings.simplefilter("ignore")
    for k, (number, opset, dtype, shapes, diff) in enumerate(asked):
        if k < start:
            continue
        key = [k, number, opset, np.dtype(dtype).name, shapes, list(diff)]
        print(json.dumps(["begin", *key]), flush=True)
        try:
            status, detail = check(engine, cases[number], opset, dtype, shapes, diff)
        except Exception as exc:
            status, detail = "failed", f"{type(exc).__name__}: {exc}"
        print(json.dumps([status, *key, detail]), flush=True)


if __name__ == "__main__":
    chosen = (VARIANTS, variant_checks()) if "variants" in sys.argv else (CASES, checks())
    main(sys.argv[1], int(sys.argv[-1]), *chosen)

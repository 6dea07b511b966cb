"""Ask onnxruntime-training's builder about every case of the case table, in a process it may abort.

Run as a script with the number of the first question: prints one JSON line per probe, ``begin`` lines
before each so that the caller knows what was being probed when the process died. Where there is ``fork`` a
child asks, and the next one goes on behind the question that ended it.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from operator_cases import CASES, Case

from onnxcustom.runtime import build_gradient_model

EPS = 1e-6


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A quiet session."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )


def runner(model: onnx.ModelProto) -> Any:
    """A function from feeds to outputs."""
    try:
        made = session(model)
        return lambda feeds: made.run(None, feeds)
    except Exception:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        return lambda feeds: evaluator.run(None, feeds)


def runnable(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[tuple[int, str]]]:
    """The training model without its YieldOp, and its (output number, seed name) pairs."""
    node = next(n for n in model.graph.node if n.op_type == "YieldOp")
    skip = next((list(a.ints) for a in node.attribute if a.name == "non_differentiable_outputs"), [])
    kept = [i for i in range(len(node.input)) if i not in skip]
    types = {v.name: v.type for v in model.graph.value_info}
    pairs = list(zip(kept, node.output, strict=False))
    for _, name in pairs:
        model.graph.input.append(onnx.ValueInfoProto(name=name, type=types[name]))
    rest = [n for n in model.graph.node if n.op_type != "YieldOp"]
    del model.graph.node[:]
    model.graph.node.extend(rest)
    used = {"", *(n.domain for n in rest)}
    imports = [o for o in model.opset_import if o.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return model, pairs


def probe(case: Case, opset: int, dtype: Any, shapes: str, diff: tuple[int, ...]) -> tuple[str, str]:
    """Status and detail: ok, nobuild, nokernel, norun, wrong, noforward."""
    try:
        model = case.model(opset, dtype, shapes)
        feeds = case.inputs(dtype, shapes)
        outputs = runner(model)(feeds)
    except Exception as exc:
        return "noforward", str(exc)[-200:]
    try:
        data = build_gradient_model(model.SerializeToString(), [f"x{i}" for i in diff], [])
        gradient, pairs = runnable(onnx.load_model_from_string(data))
    except Exception as exc:
        return "nobuild", str(exc)[-200:]
    try:
        made = session(gradient)
    except Exception as exc:
        return "nokernel", str(exc)[-200:]
    rng = np.random.default_rng(0)
    seeds = {k: rng.normal(size=outputs[k].shape) for k, _ in pairs}
    wanted = {i.name for i in made.get_inputs()}
    fed = {k: v for k, v in feeds.items() if k in wanted}
    fed.update({name: seeds[k].astype(outputs[k].dtype) for k, name in pairs if name in wanted})
    try:
        got = dict(zip([o.name for o in made.get_outputs()], made.run(None, fed), strict=False))
    except Exception as exc:
        return "norun", str(exc)[-200:]
    exact = runner(case.model(opset, np.float64, shapes))
    tolerance = 1e-5 if dtype == np.float64 and outputs[0].dtype == np.float64 else 2e-3
    step = 1e-2 if case.op == "Cast" and case.attrs["to"] == 1 else EPS
    for i in diff:
        name = f"x{i}"
        grad = got.get(f"{name}_grad")
        if grad is None or grad.shape != feeds[name].shape:
            return "wrong", f"{name}: shape {None if grad is None else grad.shape}"
        direction = rng.normal(size=grad.shape)
        values = []
        for sign in (1, -1):
            moved = case.inputs(np.float64, shapes)
            moved[name] = np.asarray(moved[name] + sign * step * direction)
            values.append(exact(moved))
        numeric = sum(
            float(np.sum((np.float64(values[0][k]) - np.float64(values[1][k])) / (2 * step) * s))
            for k, s in seeds.items()
        )
        analytic = float(np.sum(grad.astype(np.float64) * direction))
        scale = float(np.sum(np.abs(grad.astype(np.float64) * direction))) + abs(numeric)
        if not abs(numeric - analytic) <= tolerance * max(scale, 1e-2):
            return "wrong", f"{name}: {analytic} is not {numeric}"
    return "ok", ""


def probes() -> Iterator[tuple[int, int, Any, str, tuple[int, ...]]]:
    """Every (case number, opset, dtype, shapes, operands) to ask about."""
    for number, case in enumerate(CASES):
        for opset in list(case.opsets(oldest=13))[-1:]:
            for shapes in ("static", "dynamic"):
                yield number, opset, np.float32, shapes, case.diff


def main(start: int) -> None:
    """Ask all questions from number `start` on."""
    warnings.simplefilter("ignore")
    asked = list(probes())
    at = mmap.mmap(-1, 8)  # what a child is at, also after it died
    while start < len(asked):
        child = os.fork() if hasattr(os, "fork") else 0
        if not child:
            ask(asked, start, at)
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not status:
            return
        k = int.from_bytes(at[:], "little")
        print(json.dumps(["crashed", *key(k, asked[k]), str(status)]), flush=True)
        start = k + 1


def ask(asked: list[Any], start: int, at: mmap.mmap) -> None:
    """Questions from number `start` on, as long as the process lives."""
    for k in range(start, len(asked)):
        at[:] = k.to_bytes(8, "little")
        print(json.dumps(["begin", *key(k, asked[k])]), flush=True)
        number, *rest = asked[k]
        status, detail = probe(CASES[number], *rest)
        print(json.dumps([status, *key(k, asked[k]), detail]), flush=True)


def key(k: int, question: tuple[int, int, Any, str, tuple[int, ...]]) -> list[Any]:
    """What a line says of a question."""
    number, opset, dtype, shapes, diff = question
    return [k, number, opset, np.dtype(dtype).name, shapes, list(diff)]


if __name__ == "__main__":
    main(int(sys.argv[1]))

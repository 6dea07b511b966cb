"""Models of one node, run by onnxruntime or onnx, and the check of what an expansion makes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from bare_gradient import differentiate
from onnx.reference import ReferenceEvaluator

from onnxcustom.gradient.expand import expand

__all__ = ["MS", "check_gradient", "expanded", "node_model", "reference", "run"]

MS = "com.microsoft"


def node_model(
    op_type: str, inputs: list, attributes: dict, outputs: list[str], domain: str = "", opset: int = 18,
    dtype: type = np.float32, shapes: str = "static", integers: Collection[str] = (),
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:  # fmt: skip
    """A model of one node and its feeds; of its outputs, those named in `integers` are int32."""
    arrays = [a if a is None or a.dtype.kind != "f" else a.astype(dtype) for a in inputs]
    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    feeds = {n: a for n, a in zip(names, arrays, strict=False) if n}
    node = onnx.helper.make_node(op_type, names, outputs, domain=domain, name="node", **attributes)
    elem = onnx.helper.np_dtype_to_tensor_dtype
    shape = {
        "static": lambda n, a: a.shape,
        "dynamic": lambda n, a: [f"{n}_{k}" for k in range(a.ndim)],
        "unranked": lambda n, a: None,
    }[shapes]
    infos = [onnx.helper.make_tensor_value_info(n, elem(a.dtype), shape(n, a)) for n, a in feeds.items()]
    types = {o: np.int32 if o in integers else dtype for o in outputs if o}
    made = [onnx.helper.make_tensor_value_info(o, elem(np.dtype(t)), None) for o, t in types.items()]
    graph = onnx.helper.make_graph([node], "g", infos, made)
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(MS, 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=9), feeds


def run(model: onnx.ModelProto, feeds: dict, optimize: bool = False) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = {i.name for i in session.get_inputs()}
    values = session.run(None, {k: v for k, v in feeds.items() if k in names})
    return dict(zip([o.name for o in session.get_outputs()], values, strict=False))


def reference(model: onnx.ModelProto, feeds: dict) -> dict[str, np.ndarray]:
    evaluator = ReferenceEvaluator(model)
    values = evaluator.run(None, {k: v for k, v in feeds.items() if k in evaluator.input_names})
    return dict(zip(evaluator.output_names, values, strict=False))


def expanded(model: onnx.ModelProto) -> ir.Model:
    made = ir.from_proto(model)
    assert expand(made)
    return made


def check_gradient(
    model: onnx.ModelProto, made: ir.Model, feeds: dict, evaluate: Callable, tolerance: float, step: float
) -> None:
    """The gradient of the expanded model against finite differences of the model itself."""
    names = [n for n, a in feeds.items() if a.dtype.kind == "f"]
    outputs = [o.name for o in model.graph.output]
    gradient = ir.to_proto(differentiate(made, names, outputs))
    generator = np.random.default_rng(1)
    values = evaluate(model, feeds)
    seeds = {f"{o}_grad": generator.normal(size=v.shape).astype(v.dtype) for o, v in values.items()}
    found = evaluate(gradient, {**feeds, **seeds})
    for name in names:
        direction = generator.normal(size=feeds[name].shape).astype(feeds[name].dtype)
        sides = []
        for sign in (step, -step):
            moved = evaluate(model, {**feeds, name: (feeds[name] + sign * direction).astype(direction.dtype)})
            sides.append(sum(np.sum(np.float64(seeds[f"{o}_grad"]) * moved[o]) for o in outputs))
        expected = (sides[0] - sides[1]) / (2 * step)
        value = found[f"{name}_grad"]
        assert value.shape == feeds[name].shape
        scale = max(abs(expected), np.linalg.norm(value), 1e-2)
        assert abs(np.sum(np.float64(direction) * value) - expected) < tolerance * scale, name

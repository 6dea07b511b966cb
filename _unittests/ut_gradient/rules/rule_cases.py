"""Cases of gradient rules and the one way they are all checked.

A case is one node and its inputs. :func:`check_case` compares the gradient graph with directional
finite differences in float64, with static and with erased shapes, for subsets of inputs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from bare_gradient import differentiate
from onnx.reference import ReferenceEvaluator

__all__ = ["Case", "check_case"]

STEP = 1e-5


@dataclasses.dataclass
class Case:
    """One node to differentiate.

    Parameters
    ----------
    op_type : str
        Operator.
    inputs : list of ndarray or None
        Values; floating-point ones are differentiated by. None is an absent optional input.
    attributes : dict
        Attributes of the node.
    label : str
        What is special about it.
    outputs : int
        Number of outputs of the node.
    opset, domain : int, str
        Version of ONNX's domain; domain of the operator.
    wrt : list of int, optional
        Indices of the inputs to differentiate by, by default all floating-point ones.
    constant : list of int
        Indices of inputs that are initializers of the model: what rules may look at beforehand.
    rtol : float
        Tolerance relative to the size of the derivative.
    dtype : numpy dtype
        float64 unless no kernel has it; float32 loosens the tolerance to 1e-2.
    runtime : {'auto', 'ort', 'reference'}
        What evaluates the forward graph and the gradient graph.
    dynamic : bool
        Whether the case is repeated with erased dimensions and with unknown ranks.
    """

    op_type: str
    inputs: Sequence[np.ndarray | None]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    label: str = ""
    outputs: int = 1
    opset: int = 18
    domain: str = ""
    wrt: Sequence[int] | None = None
    constant: Sequence[int] = ()
    rtol: float = 1e-5
    dtype: Any = np.float64
    runtime: str = "auto"
    dynamic: bool = True

    def __str__(self) -> str:
        return "-".join(x for x in (self.op_type, self.label, str(self.opset)) if x)

    # -- graphs --------------------------------------------------------------------------------

    def model(self, shapes: str = "static") -> onnx.ModelProto:
        """The node as a model; `shapes` is 'static', 'dynamic' (symbols) or 'unranked'."""
        names = ["" if v is None else f"x{i}" for i, v in enumerate(self.inputs)]
        node = onnx.helper.make_node(
            self.op_type, names, [f"y{i}" for i in range(self.outputs)], domain=self.domain, **self.attributes
        )
        inputs, initializers = [], []
        for i, (name, array) in enumerate(zip(names, self.arrays(), strict=False)):
            if array is None:
                continue
            if i in self.constant:
                initializers.append(onnx.numpy_helper.from_array(array, name))
                continue
            elem = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            shape = {
                "static": list(array.shape),
                "dynamic": [f"d{i}_{k}" for k in range(array.ndim)],
                "unranked": None,
            }[shapes]
            inputs.append(onnx.helper.make_tensor_value_info(name, elem, shape))
        outputs = [onnx.helper.make_empty_tensor_value_info(o) for o in node.output]
        graph = onnx.helper.make_graph([node], "case", inputs, outputs, initializers)
        imports = [onnx.helper.make_opsetid("", self.opset)]
        if self.domain:
            imports.append(onnx.helper.make_opsetid(self.domain, 1))
        # The lowest, for onnxruntime 1.17 and 1.18.
        ir_version = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
        return self._typed(model)

    def _typed(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Outputs need types: inferred where onnx can, else those of what the reference returns."""
        inferred = onnx.shape_inference.infer_shapes(model)
        for i, output in enumerate(inferred.graph.output):
            if not output.type.tensor_type.elem_type:
                value = self.evaluate(model, self.feeds())[i]
                elem = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(value).dtype)
                output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, elem, None))
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)
        return model

    def gradient(self, shapes: str, wrt: Sequence[str]) -> onnx.ModelProto:
        """The gradient graph of all floating-point outputs."""
        model = ir.from_proto(self.model(shapes))
        outputs = [v.name for v in model.graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
        return ir.to_proto(differentiate(model, list(wrt), outputs))

    # -- values --------------------------------------------------------------------------------

    def arrays(self) -> list[np.ndarray | None]:
        """Inputs, floating-point ones in the case's dtype."""
        return [
            None if v is None else v.astype(self.dtype) if v.dtype.kind == "f" else v
            for v in map(_array, self.inputs)
        ]

    def feeds(self) -> dict[str, np.ndarray]:
        """Inputs by name, without the constant ones."""
        return {f"x{i}": v for i, v in enumerate(self.arrays()) if v is not None and i not in self.constant}

    def differentiable(self) -> list[str]:
        """Names of the inputs to differentiate by."""
        chosen = range(len(self.inputs)) if self.wrt is None else self.wrt
        return [
            f"x{i}" for i in chosen if f"x{i}" in self.feeds() and self.feeds()[f"x{i}"].dtype.kind == "f"
        ]

    def evaluator(self, model: onnx.ModelProto) -> Any:
        """A function from feeds to outputs."""
        if self.runtime in ("auto", "ort"):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            try:
                session = onnxruntime.InferenceSession(
                    model.SerializeToString(),
                    options,
                    providers=["CPUExecutionProvider"],
                    # Up to 1.18 it ends the process on a LayerNormalization without bias.
                    disabled_optimizers=["AttentionFusion"],
                )
                return lambda feeds: session.run(None, feeds)
            except Exception:
                if self.runtime == "ort":
                    raise
        evaluator = ReferenceEvaluator(model)
        return lambda feeds: evaluator.run(None, feeds)

    def evaluate(self, model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of a model."""
        return self.evaluator(model)(feeds)


def _array(value: Any) -> np.ndarray | None:
    return None if value is None else np.asarray(value)


def check_case(case: Case) -> None:
    """Gradients against finite differences: static, dynamic, unranked, and subsets of inputs."""
    feeds, names = case.feeds(), case.differentiable()
    rng = np.random.default_rng(0)
    forward = case.evaluator(case.model())
    outputs = forward(feeds)
    model = ir.from_proto(case.model())
    floats = [o for o in range(len(outputs)) if np.asarray(outputs[o]).dtype.kind == "f"]
    seeds = {
        f"{model.graph.outputs[o].name}_grad": np.asarray(
            rng.normal(size=np.shape(outputs[o])), dtype=outputs[o].dtype
        )
        for o in floats
    }
    expected = _finite_differences(
        case, forward, feeds, names, [(o, s) for o, s in zip(floats, seeds.values(), strict=False)], rng
    )
    gradients = None
    for shapes in ("static", "dynamic", "unranked") if case.dynamic else ("static",):
        proto = case.gradient(shapes, names)
        if _ranked(proto):  # onnx.checker wants ranks, onnxruntime does not
            onnx.checker.check_model(proto, full_check=not case.domain)
        run = case.evaluator(proto)
        needed = {i.name for i in proto.graph.input}
        result = run({k: v for k, v in {**feeds, **seeds}.items() if k in needed})
        found = dict(zip(names, result, strict=False))
        for name in names:
            assert found[name].shape == feeds[name].shape, (shapes, name, found[name].shape)
            assert found[name].dtype == feeds[name].dtype, (shapes, name, found[name].dtype)
        _compare(case, shapes, expected, found)
        gradients = gradients or found
        for a, b in zip(gradients.values(), found.values(), strict=False):
            np.testing.assert_allclose(
                b, a, rtol=1e-4 if case.dtype == np.float32 else 1e-9, atol=1e-6, err_msg=shapes
            )
    _check_subsets(case, {**feeds, **seeds}, names, gradients)


def _ranked(proto: onnx.ModelProto) -> bool:
    """Whether every input and output of a model has a rank."""
    return all(v.type.tensor_type.HasField("shape") for v in (*proto.graph.input, *proto.graph.output))


def _finite_differences(
    case: Case, forward: Any, feeds: dict, names: list[str], seeds: list[tuple[int, np.ndarray]], rng: Any
) -> dict[str, tuple[np.ndarray, float]]:
    """Per input, a random direction and the derivative of <seed, output> along it."""
    step = STEP if case.dtype == np.float64 else 1e-2
    found = {}
    for name in names:
        direction = np.asarray(rng.normal(size=feeds[name].shape), dtype=case.dtype)
        sides = []
        for sign in (1, -1):
            moved = forward(
                {**feeds, name: np.asarray(feeds[name] + sign * step * direction, dtype=case.dtype)}
            )
            sides.append(sum(np.sum(np.float64(s) * np.float64(moved[o])) for o, s in seeds))
        found[name] = (direction, (sides[0] - sides[1]) / (2 * step))
    return found


def _compare(case: Case, shapes: str, expected: dict, found: dict[str, np.ndarray]) -> None:
    rtol = max(case.rtol, 1e-2 if case.dtype == np.float32 else 0.0)
    for name, (direction, derivative) in expected.items():
        along = np.sum(np.float64(direction) * np.float64(found[name]))
        scale = max(abs(derivative), np.linalg.norm(np.float64(found[name]).ravel()), 1e-3)
        assert abs(along - derivative) <= rtol * scale, (
            f"{case} ({shapes}), input {name}: gradient says {along!r}, finite differences {derivative!r}"
        )


def _check_subsets(
    case: Case, feeds: dict, names: list[str], gradients: dict[str, np.ndarray] | None
) -> None:
    """Asking for fewer gradients changes none of them; of more than three, for one, and for all but one."""
    assert gradients is not None
    for size in range(1, len(names)) if len(names) <= 3 else (1, len(names) - 1):
        for subset in itertools.combinations(names, size):
            proto = case.gradient("static", subset)
            needed = {i.name for i in proto.graph.input}
            result = case.evaluate(proto, {k: v for k, v in feeds.items() if k in needed})
            for name, value in zip(subset, result, strict=False):
                np.testing.assert_allclose(
                    value, gradients[name], rtol=1e-9 if case.dtype == np.float64 else 1e-4, atol=1e-7
                )

"""The engine ``"ort"``: gradients built by onnxruntime-training.

Only the nodes that carry gradients are shown to the builder, as a model of their own in which all else
is an input. Control flow, integer arithmetic and operators without gradient may therefore be anywhere
else in the model, names cannot collide, and weights are never copied into a message.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import DifferentiationError, EvaluationError, InvalidModelError
from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.preparation.guards import GuardKernelsPass
from onnxcustom.graph.preparation.passes import InferShapesPass
from onnxcustom.runtime import build_gradient_model, create_session, ort_limits, training_available

from ..build import tidy
from ..flow import Flow
from ..interface import Engine, register_engine
from ..names import GradientNames
from ..verdict import Verdict
from .broadcast import hide_ambiguous_shapes
from .kernels import KERNELS
from .operators import attribute, judge
from .rewrites import REWRITES, slices

__all__ = ["OrtEngine"]

logger = logging.getLogger("onnxcustom")

# Constants that operators want to see (axes, shapes, bounds); larger ones come in as inputs.
_SMALL = 1024


class OrtEngine(Engine):
    """Gradients by ``OrtModuleGraphBuilder`` of onnxruntime-training."""

    name = "ort"

    def unavailable(self) -> str | None:
        """Why onnxruntime-training cannot be used here, None if it can."""
        if training_available():
            return None
        return (
            "it needs onnxruntime-training 1.19.2, which has wheels for Python 3.10 to 3.12 only: "
            "'python -m pip install \"onnxcustom[cpu]\"' in a fresh environment."
        )

    def limits(self) -> tuple[int | None, int | None]:
        """Newest opset and IR version that the installed onnxruntime reads."""
        return ort_limits() if self.unavailable() is None else (21, 10)

    def min_opset(self, model: ir.Model) -> int:
        """13, or 16 if there is a MaxPool, whose gradient is a ScatterElements that adds."""
        return 16 if any(node.op_type == "MaxPool" for node in model.graph) else 13

    def verdict(self, model: ir.Model, node: ir.Node, operand: int, outputs: frozenset[int]) -> Verdict:
        """What :mod:`.operators` knows of the node."""
        return judge(model, node, operand, outputs)

    def differentiate(
        self,
        model: ir.Model,
        sources: Sequence[ir.Value],
        seeds: Mapping[ir.Value, ir.Value],
        flow: Flow,
    ) -> dict[ir.Value, ir.Value]:
        """Build the gradient of the active nodes and put it in their place."""
        nodes, active = flow.active(model.graph, sources)
        targets = [v for v in seeds if v in active]
        part = _Part(model, flow, sources, nodes, active, targets)
        data = build_gradient_model(part.serialized(), part.source_names, [])
        built = ir.from_proto(onnx.load_model_from_string(data))
        if any(is_op(node, "Div") for node in built.graph):
            # That of ReduceMean divides numbers of elements: 0 / 0 of nothing would end the process.
            InferShapesPass()(built)
            GuardKernelsPass()(built)
        return _Import(model, part, built, seeds).run()

    def finish(self, model: ir.Model) -> None:
        """Load the gradient graph once: a missing kernel must not come to light in the user's hands."""
        try:
            create_session(model, threads=1, optimize=False)
        except (InvalidModelError, EvaluationError) as exc:
            try:
                create_session(_forward_only(model), threads=1, optimize=False)
            except (InvalidModelError, EvaluationError):
                # The model itself cannot be run here: that is for whoever runs it to say.
                logger.warning("[gradient] the model cannot be run by this onnxruntime: %s", exc)
                return
            raise DifferentiationError(
                f"onnxruntime-training built a gradient that onnxruntime cannot run: {exc}"
            ) from exc


def _forward_only(model: ir.Model) -> ir.Model:
    """The model without its gradients."""
    made = model.clone()
    own = list(made.graph.outputs)[len(GradientNames.of(model).gradients) :]
    made.graph.outputs.clear()
    made.graph.outputs.extend(own)
    tidy(made)
    return made


class _Part:
    """The active nodes as a model of their own, with names of ours."""

    def __init__(
        self,
        model: ir.Model,
        flow: Flow,
        sources: Sequence[ir.Value],
        nodes: Sequence[ir.Node],
        active: set[ir.Value],
        targets: Sequence[ir.Value],
    ) -> None:
        self.op = Builder(opset=model.opset_imports[""])
        self.flow = flow
        self.targets = targets
        # Both ways between the values of the model and those of the part.
        self.inside: dict[ir.Value, ir.Value] = {}
        self.outside: dict[str, ir.Value] = {}
        self.inputs: list[ir.Value] = []
        self.constants: list[ir.Value] = []
        self._detached: dict[ir.Value, ir.Value] = {}
        for value in sources:
            self._input(value)
        self.source_names = [v.name or "" for v in self.inputs]
        for node in nodes:
            self._add(node, active)
        outputs = [self._output(v) for v in targets]
        self.graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.op.nodes,
            initializers=[*self.op.initializers, *self.constants],
            opset_imports=self.op.opset_imports(),
            name="part",
        )
        self.added = hide_ambiguous_shapes(self.graph, self.op)
        self._separate()

    def serialized(self) -> bytes:
        """The part as bytes."""
        made = ir.Model(self.graph, ir_version=9)
        return ir.to_proto(made).SerializeToString()

    def _separate(self) -> None:
        """Two names for an input that a node reads twice: the builder would make one gradient twice."""
        inputs = set(self.inputs)
        for node in list(self.graph):
            seen: set[ir.Value] = set()
            for k, value in enumerate(node.inputs):
                if value in seen:
                    op = Builder(opset=self.op.opset, taken=self.op.taken)
                    node.replace_input_with(k, op.Identity(value).value)
                    self.graph.insert_before(node, op.nodes)
                elif value in inputs:
                    seen.add(value)

    def _new(self, value: ir.Value, hint: str) -> ir.Value:
        shape = None if value.shape is None else ir.Shape(list(value.shape))
        return ir.Value(name=self.op.unique(hint), type=value.type, shape=shape)

    def _input(self, value: ir.Value) -> ir.Value:
        made = self._new(value, "in")
        self.inputs.append(made)
        self.outside[made.name or ""] = value
        self.inside.setdefault(value, made)
        return made

    def _external(self, value: ir.Value, detached: bool) -> ir.Value:
        """A value that carries no gradient: a constant of the part, or one of its inputs."""
        known = self._detached if detached else self.inside
        if value in known:
            return known[value]
        tensor = constant_array(value)
        if tensor is not None and tensor.size <= _SMALL:
            made = self._new(value, "fixed")
            made.type, made.shape = (
                ir.TensorType(ir.DataType.from_numpy(tensor.dtype)),
                ir.Shape(tensor.shape),
            )
            made.const_value = ir.tensor(tensor, name=made.name)
            self.constants.append(made)
            self.outside[made.name or ""] = value
        else:
            made = self._new(value, "in")
            self.inputs.append(made)
            self.outside[made.name or ""] = value
        known[value] = made
        return made

    def _add(self, node: ir.Node, active: set[ir.Value]) -> None:
        """Copy a node, or what is put in its place."""
        operands: list[Var | None] = []
        for i, value in enumerate(node.inputs):
            if value is None:
                operands.append(None)
            elif value in active and self.flow.verdict(node, i).passes:
                operands.append(self.op.wrap(self.inside[value]))
            else:
                operands.append(self.op.wrap(self._external(value, detached=value in active)))
        function = REWRITES.get(node.op_type)
        first = function(self.op, node, operands) if function is not None else None
        results: Sequence[ir.Value | None]
        if first is not None:
            results = [first.value]
        elif node.op_type == "LayerNormalization":
            results = self._layer_norm(node, operands)
        elif node.op_type == "Split" and not active.issuperset(node.outputs):
            results = slices(self.op, node, operands, active)
        else:
            results = self._copy(node, operands)
        for value, made in zip(node.outputs, results, strict=False):
            if made is None:  # nothing reads it
                continue
            made.type = value.type
            if made.shape is None and value.shape is not None:
                made.shape = ir.Shape(list(value.shape))
            self.inside[value] = made
            self.outside[made.name or ""] = value

    def _copy(self, node: ir.Node, operands: Sequence[Var | None], extra: int = 0) -> list[ir.Value]:
        attrs = {k: a.value for k, a in node.attributes.items()}
        count = len(node.outputs) + extra
        made = self.op.call(node.op_type, *operands, outputs=["out"] * count, **attrs)
        results = [v.value for v in made]
        for value, result in zip(node.outputs, results, strict=False):
            result.dtype = value.dtype
        return results

    def _layer_norm(self, node: ir.Node, operands: Sequence[Var | None]) -> list[ir.Value]:
        """The builder reads mean and deviation, which must be declared, and a bias, which must be there."""
        x, scale, *bias = operands
        if not bias or bias[0] is None:
            assert scale is not None
            zeros = np.zeros(scale.static_shape or 1)
            bias = [self.op.const(zeros, like=scale)]
        return self._copy(node, [x, scale, bias[0]], extra=3 - len(node.outputs))

    def _output(self, value: ir.Value) -> ir.Value:
        """The part's output for a target, always one of its own: the builder loses track of others."""
        made = self.op.Identity(self.inside[value]).value
        made.dtype = value.dtype
        return made


class _Import:
    """Puts what the builder returned into the model."""

    def __init__(
        self, model: ir.Model, part: _Part, result: ir.Model, seeds: Mapping[ir.Value, ir.Value]
    ) -> None:
        self.model = model
        self.graph = model.graph
        self.part = part
        self.result = result.graph
        self.seeds = seeds
        self.op = Builder(opset=model.opset_imports[""], prefix="", taken=all_names(model.graph))
        self.op.taken.update(v.name or "" for v in seeds.values())

    def run(self) -> dict[ir.Value, ir.Value]:
        """Do it; return the gradients of the sources."""
        graph, part = self.graph, self.part
        here: dict[ir.Value, ir.Value] = {}
        for value in self.result.inputs:
            name = value.name or ""
            here[value] = (
                part.outside[name] if name in part.outside else self.op.const(part.added[name]).value
            )
        yield_node = next(n for n in self.result if n.op_type == "YieldOp")
        self._seeds(yield_node, here)
        for value in list(self.result.initializers.values()):
            here[value] = self._initializer(value)
        old = {v.name: v for v in self.result.outputs}
        forward: list[tuple[ir.Value, ir.Value]] = []
        for node in list(self.result):
            if node is not yield_node:
                self._node(node, here, forward)
        forward.extend(
            (target, here[made])
            for target, made in zip(part.targets, yield_node.inputs, strict=False)
            if made is not None and here[made] is not target
        )
        graph.extend(self.op.nodes)
        for value in self.op.initializers:
            graph.register_initializer(value)
        for original, made in forward:
            self._replace(original, made)
        for domain, version in self.op.domains.items():
            graph.opset_imports.setdefault(domain, version)
        return {part.outside[name]: here[old[f"{name}_grad"]] for name in part.source_names}

    def _seeds(self, yield_node: ir.Node, here: dict[ir.Value, ir.Value]) -> None:
        skip = attribute(yield_node, "non_differentiable_outputs", ())
        wanted = [t for k, t in enumerate(self.part.targets) if k not in skip]  # type: ignore[operator]
        if len(wanted) != len(yield_node.outputs):
            raise DifferentiationError("onnxruntime-training left some outputs out of the gradient.")
        for target, made in zip(wanted, yield_node.outputs, strict=False):
            here[made] = self.seeds[target]

    def _initializer(self, value: ir.Value) -> ir.Value:
        known = self.part.outside.get(value.name or "")
        if known is not None:
            return known
        tensor = value.const_value
        assert tensor is not None
        return self.op.const(tensor.numpy(), tensor.dtype).value

    def _node(
        self,
        node: ir.Node,
        here: dict[ir.Value, ir.Value],
        forward: list[tuple[ir.Value, ir.Value]],
    ) -> None:
        """Copy a node of the result, under names of the model."""
        operands = [None if v is None else self.op.wrap(here[v]) for v in node.inputs]
        outputs: list[ir.Value] | None = None
        kernel = KERNELS.get(node.op_type)
        if kernel is not None:
            made = kernel(self.op, node, [v for v in operands if v is not None])
            outputs = None if made is None else [v.value for v in made]
        if outputs is None:
            attrs = {k: a.value for k, a in node.attributes.items()}
            names = [self._hint(v) for v in node.outputs]
            made = self.op.call(node.op_type, *operands, domain=node.domain, outputs=names, **attrs)
            outputs = [v.value for v in made]
        for value, new in zip(node.outputs, outputs, strict=False):
            if value.dtype is not None:
                new.dtype = value.dtype
            elif node.domain:  # the second output may be of any type
                new.type = None
            if value.shape is not None and new.dtype is not None:
                new.shape = ir.Shape(list(value.shape))
            here[value] = new
            original = self.part.outside.get(value.name or "")
            if original is not None:
                forward.append((original, new))

    def _hint(self, value: ir.Value) -> str:
        """A readable name: after the tensor of the model it is, or is the gradient of."""
        name = value.name or ""
        base, _, tail = name.partition("_grad")
        original = self.part.outside.get(base)
        if original is not None and original.name:
            return f"{original.name}_grad{tail}" if tail or name != base else original.name
        return name.rpartition("/")[2] or "value"

    def _replace(self, original: ir.Value, made: ir.Value) -> None:
        """Let the new value be the old one for all who read it, name included."""
        if original.producer() is None:
            return
        made.shape = None if original.shape is None else ir.Shape(list(original.shape))
        made.type = original.type or made.type
        for user, index in list(original.uses()):
            user.replace_input_with(index, made)
        for k, value in enumerate(self.graph.outputs):
            if value is original:
                self.graph.outputs[k] = made
        name, original.name = original.name, self.op.unique(f"{original.name}_unused")
        made.name = name


register_engine(OrtEngine())

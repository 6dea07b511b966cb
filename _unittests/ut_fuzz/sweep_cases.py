"""Every model of the tests, by every way of differentiating it, as cases for child processes.

A case is a number; what became of it is 'ok', or 'refused' and the name of one of our errors. Any other
exception is a fault, and so is a process that ends.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fuzz_models import MODELS, model
from operator_models import Made, filled, operator_rows

from onnxcustom import OrtGradientForwardBackward, TrainingStep, gradient_graph, weights
from onnxcustom.exceptions import EvaluationError, InvalidDataError, InvalidModelError, OnnxCustomError
from onnxcustom.gradient import GradientNames
from onnxcustom.graph import to_proto
from onnxcustom.runtime import create_session, run_values, session_options, to_ortvalue
from onnxcustom.step.inference import runnable

__all__ = ["SHAPES", "WAYS", "Subject", "Sweep", "subjects"]

SHAPES = ("static", "dynamic", "unranked")
_WEIGHT = "sweep_weight"
_GRADIENT = Path(__file__).parents[1] / "ut_gradient"
Feeds = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to differentiate.

    Attributes
    ----------
    name : str
        Where it comes from.
    operator : str
        What it is about; 'models' for whole ones.
    make : callable
        The model and its feeds.
    """

    name: str
    operator: str
    make: Callable[[], Made]


# -- models ------------------------------------------------------------------------------------------


def subjects(shapes: Sequence[str] = SHAPES) -> list[Subject]:
    """Every row of the tables of operators, its inputs known in so many ways, and whole models.

    The first of each operator come first, then the second: any number of them is about all operators.
    """
    made = [
        Subject(f"{row.name}-{kind}", row.operator, functools.partial(_weighted, row.make, kind))
        for row in operator_rows()
        for kind in shapes
    ]
    seen = Counter[str]()
    places = []
    for subject in (every := made + _whole()):
        places.append(seen[subject.operator])
        seen[subject.operator] += 1
    return [subject for _, subject in sorted(zip(places, every, strict=True), key=lambda pair: pair[0])]


def _weighted(make: Callable[[str], Made], shapes: str) -> Made:
    """The model, its first floating-point input times a weight: there is one, and the operand is computed."""
    model, feeds = make(shapes)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    first = next((i for i in model.graph.input if i.type.tensor_type.elem_type in floats), None)
    if first is None:
        return model, feeds
    array = feeds[first.name]
    scale = np.full((1,) * min(array.ndim, 1), 1.01, array.dtype)
    for node in model.graph.node:
        _read_instead(node, first.name, f"{first.name}_scaled")
    node = onnx.helper.make_node("Mul", [first.name, _WEIGHT], [f"{first.name}_scaled"], name="sweep")
    model.graph.node.insert(0, node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(scale, _WEIGHT))
    return model, feeds


def _read_instead(node: onnx.NodeProto, name: str, other: str) -> None:
    """Let a node and its bodies read another value."""
    for k, read in enumerate(node.input):
        if read == name:
            node.input[k] = other
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _read_instead(inner, name, other)


def _whole() -> list[Subject]:
    """Whole models of the tests of gradients, and those that are mutated beside this file."""
    sys.path[:0] = [str(folder) for folder in (_GRADIENT / "rules", _GRADIENT, _GRADIENT.parent)]
    from random_graphs import random_graph

    made = {f"fuzz-{name}": functools.partial(_fuzzed, name) for name in MODELS}
    for seed in range(20):
        made[f"random-{seed}"] = lambda seed=seed: filled(random_graph(seed).model())
    models = importlib.import_module("test_models")
    for opset in (13, 17, 21):
        made[f"lenet-{opset}"] = lambda opset=opset: filled(models.lenet("N", opset))
    made["attention"] = lambda: filled(models.attention())
    networks = importlib.import_module("test_engines_agree").NETWORKS
    for name, network in networks.items():
        for batch in ("dynamic", "static"):
            make = functools.partial(_network, network, batch)
            made[f"network-{name}-{batch}"] = make
    light = importlib.import_module("test_light_models")
    for name, size in light.SIZES.items():
        made[f"light-{name}"] = functools.partial(_light, light, name, size)
    return [Subject(name, "models", make) for name, make in made.items()]


def _fuzzed(name: str) -> Made:
    return filled(onnx.load_model_from_string(model(name)))


def _network(network: Any, batch: str) -> Made:
    return filled(network.model(np.float32, batch))


def _light(module: Any, name: str, size: int) -> Made:
    return filled(module.shrunk(onnx.load(module.FOLDER / f"light_{name}.onnx"), size))


# -- ways --------------------------------------------------------------------------------------------


class Given:
    """A model, its feeds, and what every way asks of it: computed when first asked for."""

    def __init__(self, model: onnx.ModelProto, feeds: Feeds) -> None:
        self.content, self.feeds = model.SerializeToString(), feeds

    @property
    def model(self) -> onnx.ModelProto:
        """A copy of the model."""
        return onnx.load_model_from_string(self.content)

    @functools.cached_property
    def names(self) -> list[str]:
        """The weights to train."""
        return _names(self.model)

    @functools.cached_property
    def outputs(self) -> dict[str, np.ndarray]:
        """What the model computes."""
        return {name: value.numpy() for name, value in _outputs(self.model, self.feeds).items()}


def _names(model: onnx.ModelProto) -> list[str]:
    """The weights to train: those that look like some, and the one put before an operator."""
    own = [_WEIGHT] if any(t.name == _WEIGHT for t in model.graph.initializer) else []
    return list(dict.fromkeys([*weights(model), *own]))


def _outputs(model: onnx.ModelProto, feeds: Feeds) -> dict[str, Any]:
    """What the model computes, prepared; of a ZipMap, which makes lists of dicts, the scores it reads."""
    made = to_proto(runnable(model))
    maps = {n.output[0]: n.input[0] for n in made.graph.node if n.op_type == "ZipMap"}
    kept = [o for o in made.graph.output if o.name not in maps]
    del made.graph.output[:]
    made.graph.output.extend(kept)
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in maps.values())
    session = create_session(made, threads=1)
    names = [o.name for o in model.graph.output]
    places = [maps.get(name, name) for name in names]
    return dict(zip(names, run_values(session, _values(session, feeds), places), strict=True))


def _values(session: Any, feeds: Feeds) -> dict[str, Any]:
    return {i.name: to_ortvalue(feeds[i.name]) for i in session.get_inputs()}


def forward_backward(given: Given, engine: str) -> None:
    """Both halves of the gradient."""
    feeds = given.feeds
    made = OrtGradientForwardBackward(
        given.model, given.names, engine=engine, sess_options=session_options(1)
    )
    function = made.new_instance()
    inputs = [feeds[n] for n in made.input_names] + [made.get_initializer(n) for n in made.weights_to_train]
    outputs = function.forward(inputs, training=True)
    gradients = made.cls_type_._split.names.seeds
    values = dict(zip(made.output_names, outputs, strict=True))
    function.backward([np.ones_like(values[n].numpy()) for n in made.output_names if n in gradients])


def graph(given: Given, engine: str) -> None:
    """The gradient graph, as it is, by a session of somebody else's."""
    import onnxruntime

    model = given.model
    made = gradient_graph(model, wrt=given.names, engine=engine)
    names = GradientNames.of(made)
    found = weights(model) if names.weights else {}
    feeds = {**given.feeds, **{n: _initializer(model, n, found) for n in names.weights}}
    feeds |= {seed: np.ones_like(given.outputs[output]) for output, seed in names.seeds.items()}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    try:
        session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    except Exception as error:
        if all(array.size for array in feeds.values()):
            raise
        raise EvaluationError(f"onnxruntime computes nothing of nothing: {error}") from error


def _initializer(model: onnx.ModelProto, name: str, found: Feeds) -> np.ndarray:
    if name in found:
        return found[name]
    return next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def step(given: Given, engine: str) -> None:
    """Three steps of training, and the model that comes of them."""
    model, feeds, outputs = given.model, given.feeds, given.outputs
    options = {"weights": given.names, "engine": engine, "threads": 1, "learning_rate": 1e-3}
    try:
        made = TrainingStep(model, **options)
        _train(made, feeds, outputs)
    except (
        EvaluationError,
        InvalidDataError,
        InvalidModelError,
    ):  # no rows that can be told: all of it is one
        made = TrainingStep(model, batch_axis=dict.fromkeys([*feeds, *outputs]), **options)
        _train(made, feeds, outputs)
    made.trained_model()


def _train(made: TrainingStep, feeds: Feeds, outputs: Feeds) -> None:
    x = {spec.name: feeds[spec.name] for spec in made.inputs}
    y = {t.output: np.zeros_like(outputs[t.output]) for t in made.targets}
    for _ in range(3):
        made.run(x, y)


WAYS: dict[str, Callable[[Given, str], None]] = {
    "forward/backward": forward_backward,
    "gradient_graph": graph,
    "TrainingStep": step,
}


class Sweep:
    """Cases by number: every subject in every way.

    Parameters
    ----------
    found : list of Subject
        What is differentiated.
    engine : str
        By which engine.
    """

    def __init__(self, found: Sequence[Subject], engine: str) -> None:
        self.subjects, self.engine = found, engine
        self._at: tuple[int, Given] | None = None

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.subjects) * len(WAYS)

    def subject(self, number: int) -> Subject:
        """The model of a case."""
        return self.subjects[number // len(WAYS)]

    def way(self, number: int) -> str:
        """What is done with it."""
        return list(WAYS)[number % len(WAYS)]

    def __call__(self, number: int) -> str:
        """Do a case: 'ok', 'refused ...' or 'none' where the table has no such model."""
        warnings.simplefilter("ignore")
        try:
            given = self._given(number // len(WAYS))
        except Exception:
            return "none"
        try:
            WAYS[self.way(number)](given, self.engine)
        except OnnxCustomError as error:
            return f"refused {type(error).__name__}: {str(error)[:300]}"
        return "ok"

    def _given(self, subject: int) -> Given:
        """The model of a subject, made once for the ways that follow each other."""
        if self._at is None or self._at[0] != subject:
            self._at = None
            self._at = subject, Given(*self.subjects[subject].make())
        return self._at[1]

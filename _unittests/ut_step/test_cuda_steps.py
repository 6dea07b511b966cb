"""Training steps that are made for a GPU: none of their nodes takes the batch or a weight to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxcustom.graph import Prepared, to_proto
from onnxcustom.objective import HingeLearningLoss
from onnxcustom.objective.base import LOSSES
from onnxcustom.optim import SGD, AdaGrad, Adam, create, rule_names
from onnxcustom.optim.averaging import Average
from onnxcustom.runtime import create_session
from onnxcustom.step.modes import ModeSettings
from onnxcustom.step.recipe import Recipe, make_recipe

from ..cuda_kernels import missing, releases

LINEAR = """g (float[N, 4] x) => (float[N, 2] y) { m = MatMul (x, w)  y = Add (m, b) }"""
FRAMES = """g (float[N, 5, 4] x) => (float[N, 5, 2] y) { m = MatMul (x, w)  y = Add (m, b) }"""
TABLE = """g (int64[N, 5] k) => (float[N, 2] y) {
    h = Gather (e, k)  m = ReduceMean <axes = [1], keepdims = 0> (h)  z = MatMul (m, w)  y = Add (z, b) }"""
IMAGES = """g (float[N, 3, 8, 8] x) => (float[N, 2] y) {
    h = Conv <pads = [1, 1, 1, 1]> (x, c)  n = BatchNormalization (h, s, t, mean, var)  r = Relu (n)
    p = MaxPool <kernel_shape = [4, 4], strides = [4, 4]> (r)  d = Dropout (p)  f = Flatten (d)
    z = MatMul (f, v)  y = Add (z, b) }"""
SHAPES = {"w": (4, 2), "b": (2,), "e": (9, 4), "c": (4, 3, 3, 3), "s": (4,), "t": (4,), "mean": (4,)}
SHAPES |= {"var": (4,), "v": (16, 2)}


def model(text: str, opset: int = 17) -> onnx.ModelProto:
    """The model of a text, its weights drawn."""
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}'.replace("  ", " "))
    read = {name for node in made.graph.node for name in node.input}
    random = np.random.default_rng(0)
    for name in sorted(read & {*SHAPES}):
        array = random.uniform(0.5, 1.5, SHAPES[name]).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


def recipe(text: str, loss: Any, rule: Any, host: bool = False, **settings: Any) -> Recipe:
    return make_recipe(Prepared.of(model(text)), loss, rule.formula(), "onnx", host=host, **settings)[0]


def crossing(made: Recipe) -> set[str]:
    """Why nodes of the graphs of a step have no kernel."""
    phases = ("update",) if made.rule.accumulate == 1 else ("accumulate", "apply")
    graphs = [made.compose(weighted, phase).model for weighted in (False, True) for phase in phases]
    graphs.append(made.scores(False))
    return {why for graph in graphs for r in releases() for _, why in missing(to_proto(graph), r)}


OPTIONS = [
    {"wd": 0.1, "l1": 0.01, "clip_gradient": 1.0},
    {"accumulate": 2, "clip_global_norm": 1.0, "skip_nonfinite": True},
]


@pytest.mark.parametrize("name", rule_names())
def test_every_node_of_a_rule_has_a_kernel(name: str) -> None:
    for options in OPTIONS:
        assert not crossing(recipe(LINEAR, "squared_error", create(name, **options), average=Average()))
    assert not crossing(recipe(TABLE, "squared_error", create(name)))


@pytest.mark.parametrize(
    "loss",
    [c for c in LOSSES.classes() if c.__module__.startswith("onnxcustom.") and c.__name__ != "CustomLoss"],
)
def test_every_node_of_a_loss_has_a_kernel(loss: type) -> None:
    text = FRAMES if loss.__name__ == "CTCLearningLoss" else LINEAR
    assert not crossing(recipe(text, loss(), SGD()))


@pytest.mark.parametrize("penalty", ["l1", "l2", "elastic"])
def test_every_node_of_a_net_has_a_kernel(penalty: str) -> None:
    modes = ModeSettings("update", "on")
    assert not crossing(recipe(IMAGES, "cross_entropy", Adam(), modes=modes, penalty=penalty))


# -- and they compute the same ------------------------------------------------------------------------


def outcome(made: Recipe, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the graph of a step gives, on a CPU."""
    graph = made.compose(False, lean=False)
    proto = to_proto(graph.model)
    session = create_session(proto, threads=1)
    random = np.random.default_rng(1)
    given = {}
    for value in session.get_inputs():
        shape = [n if isinstance(n, int) else 6 for n in value.shape]
        if value.name in feeds:
            given[value.name] = feeds[value.name]
        elif value.type == "tensor(int64)":
            given[value.name] = np.ones(shape, np.int64)
        else:
            given[value.name] = random.uniform(0.1, 1, shape).astype(np.float32)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


CASES = {
    "hinge of classes": (LINEAR, HingeLearningLoss(), SGD(0.1)),
    "rows, SGD": (TABLE, "cross_entropy", SGD(0.1, momentum=0.9)),
    "rows, Adam": (TABLE, "cross_entropy", Adam(0.1)),
    "rows, AdaGrad": (TABLE, "cross_entropy", AdaGrad(0.1)),
    "images": (IMAGES, "cross_entropy", SGD(0.1)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_steps_are_the_same(name: str) -> None:
    text, loss, rule = CASES[name]
    feeds = {
        "k": np.array([[0, -1, 3, 3, 8]] * 3 + [[2, 2, 2, -9, 1]] * 3),
        "expected_y": np.array([0, 1] * 3),
    }
    here, there = (outcome(recipe(text, loss, rule, host), feeds) for host in (True, False))
    shared = here.keys() & there.keys()
    assert any(n.startswith(("w", "v")) or "new" in n for n in shared)
    for output in shared:
        np.testing.assert_allclose(there[output], here[output], rtol=2e-5, atol=1e-6, err_msg=output)

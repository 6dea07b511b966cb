"""Some of the blocks of a model that repeats itself, against models that were built of these alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcustom import TrainingStep, weights
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError
from onnxcustom.tuning import Distillation, drop_layers

FLOAT = TensorProto.FLOAT
WIDTH, HEADS = 4, 2


class Writer:
    """Nodes and tensors of a transformer, block after block."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}

    def node(self, kind: str, *inputs: str, name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}_node", **attributes))
        return name

    def tensor(self, name: str, array: np.ndarray) -> str:
        self.tensors[name] = array
        return name

    def linear(self, x: str, name: str, width: int = WIDTH, before: int = WIDTH) -> str:
        w = self.tensor(f"{name}.w", self.rng.normal(size=(before, width)).astype(np.float32) / 2)
        b = self.tensor(f"{name}.b", self.rng.normal(size=width).astype(np.float32))
        return self.node("Add", self.node("MatMul", x, w, name=f"{name}.p"), b, name=f"{name}.y")

    def norm(self, x: str, name: str) -> str:
        g = self.tensor(f"{name}.g", self.rng.uniform(0.5, 1.5, WIDTH).astype(np.float32))
        b = self.tensor(f"{name}.b", self.rng.normal(size=WIDTH).astype(np.float32))
        return self.node("LayerNormalization", x, g, b, name=f"{name}.n")

    def heads(self, x: str, name: str, perm: Sequence[int]) -> str:
        shape = self.tensor("split", np.array([0, -1, HEADS, WIDTH // HEADS]))
        split = self.node("Reshape", x, shape, name=f"{name}.r")
        return self.node("Transpose", split, name=f"{name}.t", perm=perm)

    def attention(self, x: str, mask: str, name: str) -> str:
        q = self.heads(self.linear(x, f"{name}.q"), f"{name}.q", [0, 2, 1, 3])
        k = self.heads(self.linear(x, f"{name}.k"), f"{name}.k", [0, 2, 3, 1])
        v = self.heads(self.linear(x, f"{name}.v"), f"{name}.v", [0, 2, 1, 3])
        scores = self.node("MatMul", q, k, name=f"{name}.scores")
        masked = self.node("Add", scores, mask, name=f"{name}.masked")
        mixed = self.node("MatMul", self.node("Softmax", masked, name=f"{name}.s"), v, name=f"{name}.mixed")
        back = self.node("Transpose", mixed, name=f"{name}.back", perm=[0, 2, 1, 3])
        joined = self.node("Reshape", back, self.tensor("join", np.array([0, -1, WIDTH])), name=f"{name}.j")
        return self.linear(joined, f"{name}.o")

    def block(self, x: str, mask: str, name: str, before: bool) -> str:
        """One layer, normalized before or behind its parts."""
        inner = self.norm(x, f"{name}.1") if before else x
        a = self.node("Add", x, self.attention(inner, mask, f"{name}.att"), name=f"{name}.a")
        a = a if before else self.norm(a, f"{name}.1")
        inner = self.norm(a, f"{name}.2") if before else a
        h = self.node("Relu", self.linear(inner, f"{name}.up", 6), name=f"{name}.h")
        y = self.node("Add", a, self.linear(h, f"{name}.down", WIDTH, 6), name=f"{name}.f")
        return y if before else self.norm(y, f"{name}.2")


def encoder(blocks: Sequence[int], before: bool = True, shown: bool = False) -> onnx.ModelProto:
    """Some blocks of a transformer with the weights of their numbers, after a normalization and a mask."""
    writer = Writer()
    one = writer.tensor("one", np.float32([1]))
    far = writer.tensor("far", np.float32([-1e4]))
    axes = writer.tensor("axes", np.array([1, 2]))
    open_ = writer.node("Unsqueeze", "mask", axes, name="open")
    mask = writer.node("Mul", writer.node("Sub", one, open_, name="closed"), far, name="bias")
    x = writer.norm(writer.linear("x", "embed"), "embed")
    hidden = [x]
    for i in blocks:
        writer.rng = np.random.default_rng(100 + i)
        hidden.append(writer.block(hidden[-1], mask, f"layer{i}", before))
    writer.rng = np.random.default_rng(7)
    end = writer.norm(hidden[-1], "final") if before else hidden[-1]
    writer.linear(end, "head", 3)
    outputs = ["head.y", *(hidden[1:] if shown else [])]
    graph = helper.make_graph(
        writer.nodes,
        "encoder",
        [
            helper.make_tensor_value_info("x", FLOAT, ["N", "L", WIDTH]),
            helper.make_tensor_value_info("mask", FLOAT, ["N", "L"]),
        ],
        [helper.make_tensor_value_info(n, FLOAT, ["N", "L", None]) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in writer.tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


RNG = np.random.default_rng(3)
FED = {
    "x": RNG.normal(size=(2, 5, WIDTH)).astype(np.float32),
    "mask": np.float32([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
}


def computed(model: onnx.ModelProto, fed: dict[str, np.ndarray] = FED) -> list[np.ndarray]:
    """What onnxruntime makes of it."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: fed[i.name] for i in session.get_inputs()})


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("keep", "left"),
    [([0, 2], [0, 2]), ([1], [1]), ([-1, 0], [0, 3]), (2, [0, 3]), (3, [0, 2, 3]), (4, range(4))],
)
def test_what_is_left_is_a_model_of_these_blocks(
    before: bool, keep: int | list[int], left: Sequence[int]
) -> None:
    """With a residual stream, and a mask that all blocks read."""
    made = drop_layers(encoder(range(4), before), keep)
    expected = encoder(left, before)
    np.testing.assert_allclose(computed(made)[0], computed(expected)[0], rtol=1e-5, atol=1e-6)
    assert list(weights(made)) == list(weights(expected))
    assert len(made.graph.node) == len(expected.graph.node)


def test_hidden_states_of_blocks_that_go_go_with_them() -> None:
    """That of the last one is what comes out of all of them."""
    made = drop_layers(encoder(range(4), shown=True), [0, 2])
    assert [o.name for o in made.graph.output] == ["head.y", "layer0.f", "layer2.f", "layer3.f"]
    own, expected = computed(made), computed(encoder([0, 2], shown=True))
    for one, other in zip(own, [*expected, expected[-1]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def stack(
    nodes: Sequence[onnx.NodeProto], inputs: dict, outputs: dict, **tensors: np.ndarray
) -> onnx.ModelProto:
    """A model of some nodes."""
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_last_block_is_the_output() -> None:
    """Which keeps its name when another block ends in it."""
    rng = np.random.default_rng(0)
    w = {f"w{i}": rng.normal(size=(3, 3)) for i in range(3)}
    nodes, at = [], "x"
    for i in range(3):
        nodes.append(helper.make_node("MatMul", [at, f"w{i}"], [f"a{i}"]))
        at = "y" if i == 2 else f"h{i}"
        nodes.append(helper.make_node("Tanh", [f"a{i}"], [at]))
    model = stack(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, **w)
    made = drop_layers(model, [0, 1])
    onnx.checker.check_model(made, full_check=True)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    expected = np.tanh(np.tanh(x @ w["w0"].astype(np.float32)) @ w["w1"].astype(np.float32))
    np.testing.assert_allclose(computed(made, {"x": x})[0], expected, rtol=1e-5)
    assert [o.name for o in made.graph.output] == ["y"]
    assert list(weights(made)) == ["w0", "w1"]


def test_inputs_and_outputs_of_a_block_go_with_it() -> None:
    """As the keys and values of a decoder, past and present."""
    nodes, at = [], "x"
    for i in range(3):
        nodes += [
            helper.make_node("MatMul", [at, f"w{i}"], [f"k{i}"]),
            helper.make_node("Add", [f"k{i}", f"past{i}"], [f"present{i}"]),
            helper.make_node("Add", [at, f"present{i}"], [f"h{i}"]),
        ]
        at = f"h{i}"
    nodes.append(helper.make_node("Relu", [at], ["y"]))
    shape = ["N", 3]
    inputs = {"x": shape, **{f"past{i}": shape for i in range(3)}}
    outputs = {"y": shape, **{f"present{i}": shape for i in range(3)}}
    w = {f"w{i}": np.random.default_rng(i).normal(size=(3, 3)) for i in range(3)}
    made = drop_layers(stack(nodes, inputs, outputs, **w), [0, 2])
    assert [i.name for i in made.graph.input] == ["x", "past0", "past2"]
    assert [o.name for o in made.graph.output] == ["y", "present0", "present2"]
    assert [i.name for i in made.graph.initializer] == ["w0", "w2"]


def test_a_student_of_blocks_learns_from_the_whole() -> None:
    model = encoder(range(4))
    student = drop_layers(model, 2)
    made = Distillation(model, alpha=1.0, match={"layer3.f": "layer3.f"})
    step = TrainingStep(student, "squared_error", "adam", learning_rate=0.01, teacher=made)
    y = np.zeros((2, 5, 3), np.float32)
    losses = [step.run(FED, y) for _ in range(10)]
    assert losses[-1] < losses[0]


def test_what_cannot_be_dropped_is_said() -> None:
    model = encoder(range(3))
    for keep in (4, [3], [-4]):
        with pytest.raises(
            InvalidParameterError, match=r"The model has 3 blocks of \d+ nodes, from 'embed.n'"
        ):
            drop_layers(model, keep)
    with pytest.raises(InvalidParameterError, match="each can be kept once"):
        drop_layers(model, [0, -3])
    for keep in (0, -1, [], "ab", 1.5, True, None):
        with pytest.raises(InvalidParameterError, match="keep must be a number of blocks"):
            drop_layers(model, keep)
    with pytest.raises(InvalidModelError, match="Nothing is repeated in this model"):
        drop_layers(encoder([0]), 1)


def test_blocks_that_others_read_across_are_none() -> None:
    """A stride makes another shape, and a tensor that is read far behind belongs to no block."""
    nodes = []
    for i in range(3):
        nodes.append(
            helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], strides=[2, 2], pads=[1, 1, 1, 1])
        )
    w = {f"w{i}": np.ones((2, 2, 3, 3)) for i in range(3)}
    model = stack(nodes, {"x0": ["N", 2, 32, 32]}, {"x3": ["N", 2, 4, 4]}, **w)
    with pytest.raises(InvalidModelError, match="Nothing is repeated"):
        drop_layers(model, 1)
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(3)]
    nodes.append(helper.make_node("Concat", ["x1", "x2", "x3"], ["y"], axis=1))
    w = {f"w{i}": np.ones((3, 3)) for i in range(3)}
    with pytest.raises(InvalidModelError, match="Nothing is repeated"):
        drop_layers(stack(nodes, {"x0": ["N", 3]}, {"y": ["N", 9]}, **w), 1)

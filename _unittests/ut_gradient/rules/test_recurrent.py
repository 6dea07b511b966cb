"""Rules of RNN, GRU and LSTM.

onnxruntime has their kernels in float32 only, so the gradient graph is run in float64 with the
node cut out and its outputs fed from a NumPy transcription of the specification, which is compared
with onnxruntime's kernel on its own. The gradient graph of an LSTM holds no such node and runs whole.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from bare_gradient import differentiate
from recurrent_reference import FUNCTIONS, TAKES, recurrent

import onnxcustom.gradient.rules.activation
import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.control_flow
import onnxcustom.gradient.rules.gru
import onnxcustom.gradient.rules.indexing
import onnxcustom.gradient.rules.linear
import onnxcustom.gradient.rules.lstm
import onnxcustom.gradient.rules.recurrent
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.shaping
import onnxcustom.gradient.rules.slicing  # noqa: F401
from onnxcustom.exceptions import GradientNotImplementedError

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
T, N, I, H = 4, 3, 2, 3
NAMES = ["x", "w", "r", "b", "lengths", "h0", "c0", "p"]
OUTPUTS = ["y", "y_h", "y_c"]


@dataclasses.dataclass
class Recurrent:
    """A recurrent node: which optional inputs and outputs it has, and its attributes."""

    op_type: str
    label: str
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: str = "b"
    lengths: list[int] | None = None
    outputs: str = "y"
    opset: int = 18
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.op_type}-{self.label}-{self.opset}"

    def arrays(self) -> list[np.ndarray | None]:
        rng = np.random.default_rng(7)
        g, d = GATES[self.op_type], 2 if self.attributes.get("direction") == "bidirectional" else 1
        swap = 1 if self.attributes.get("layout") else 0
        state = (N, d, H) if swap else (d, N, H)
        wanted = set(self.inputs.split())

        def make(name: str, *shape: int) -> np.ndarray | None:
            value = rng.normal(size=shape) * self.scale
            return value if name in wanted or name in "xwr" else None

        made = [
            make("x", *((N, T, I) if swap else (T, N, I))), make("w", d, g * H, I), make("r", d, g * H, H),
            make("b", d, 2 * g * H), None if self.lengths is None else np.array(self.lengths, dtype=np.int32),
            make("h0", *state), make("c0", *state), make("p", d, 3 * H),
        ]  # fmt: skip
        return made if self.op_type == "LSTM" else made[:6]

    def model(self, dtype: Any, shapes: str = "static", outputs: list[str] | None = None) -> onnx.ModelProto:
        arrays = self.arrays()
        outputs = outputs or self.outputs.split()
        names = [n if a is not None else "" for n, a in zip(NAMES, arrays, strict=False)]
        while not names[-1]:
            names.pop()
        declared = [o if o in outputs else "" for o in OUTPUTS[: 3 if self.op_type == "LSTM" else 2]]
        while not declared[-1]:
            declared.pop()
        node = onnx.helper.make_node(self.op_type, names, declared, hidden_size=H, **self.attributes)
        elem = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

        def shape(name: str, array: np.ndarray) -> list | None:
            dims = [f"{name}{k}" for k in range(array.ndim)]
            return {"static": list(array.shape), "dynamic": dims, "unranked": None}[shapes]

        inputs = [
            onnx.helper.make_tensor_value_info(
                n, elem if a.dtype.kind == "f" else onnx.TensorProto.INT32, shape(n, a)
            )
            for n, a in zip(NAMES, arrays, strict=False)
            if a is not None
        ]
        ranks = {"y": 4, "y_h": 3, "y_c": 3}
        infos = [
            onnx.helper.make_tensor_value_info(o, elem, [f"{o}{k}" for k in range(ranks[o])]) for o in outputs
        ]
        graph = onnx.helper.make_graph([node], "g", inputs, infos)
        return onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)], ir_version=9
        )

    def feeds(self, dtype: Any) -> dict[str, np.ndarray]:
        return {
            n: a.astype(dtype) if a.dtype.kind == "f" else a
            for n, a in zip(NAMES, self.arrays(), strict=False)
            if a is not None
        }

    def differentiable(self) -> list[str]:
        return [n for n, a in self.feeds(np.float64).items() if a.dtype.kind == "f"]

    def reference(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = recurrent(self.op_type, [feeds.get(n) for n in NAMES], self.attributes)
        return dict(zip(OUTPUTS, values, strict=False))


ALL = {"RNN": "b h0", "GRU": "b h0", "LSTM": "b h0 c0 p"}
OUT = {"RNN": "y y_h", "GRU": "y y_h", "LSTM": "y y_h y_c"}
CASES = []
for kind in GATES:
    every, out = ALL[kind], OUT[kind]
    # GRU's two forms have rules of their own.
    for extra in ({}, {"linear_before_reset": 1}) if kind == "GRU" else ({},):
        tag = "-linear" if extra else ""
        CASES += [
            Recurrent(kind, f"weights only{tag}", extra, inputs=""),
            Recurrent(kind, f"bias{tag}", extra),
            Recurrent(kind, f"last state only{tag}", extra, inputs=every, outputs="y_h"),
            Recurrent(kind, f"all outputs{tag}", extra, inputs=every, outputs=out),
            Recurrent(kind, f"initial state{tag}", extra, inputs="h0"),
            Recurrent(kind, f"reverse{tag}", {"direction": "reverse", **extra}, inputs=every, outputs=out),
            Recurrent(kind, f"reverse no state{tag}", {"direction": "reverse", **extra}, outputs=out),
            Recurrent(kind, f"bidirectional{tag}", {"direction": "bidirectional", **extra}, inputs=every, outputs=out),
            Recurrent(kind, f"bidirectional weights{tag}", {"direction": "bidirectional", **extra}, inputs=""),
            Recurrent(kind, f"lengths{tag}", extra, inputs=every, outputs=out, lengths=[2, 4, 1]),
            Recurrent(kind, f"lengths empty{tag}", extra, inputs=every, outputs=out, lengths=[0, 4, 1]),
            Recurrent(kind, f"lengths short{tag}", extra, inputs="b", outputs=out, lengths=[2, 3, 1]),
            Recurrent(kind, f"lengths reverse{tag}", {"direction": "reverse", **extra}, inputs=every, outputs=out,
                      lengths=[2, 4, 1]),
            Recurrent(kind, f"lengths reverse no state{tag}", {"direction": "reverse", **extra}, outputs=out,
                      lengths=[2, 4, 1]),
            Recurrent(kind, f"lengths bidirectional{tag}", {"direction": "bidirectional", **extra}, inputs=every,
                      outputs=out, lengths=[3, 0, 4]),
            Recurrent(kind, f"lengths last state{tag}", extra, inputs=every, outputs="y_h", lengths=[2, 4, 1]),
            Recurrent(kind, f"clip{tag}", {"clip": 0.7, **extra}, inputs=every, outputs=out),
            Recurrent(kind, f"layout{tag}", {"layout": 1, **extra}, inputs=every, outputs=out),
            Recurrent(kind, f"layout bidirectional{tag}", {"layout": 1, "direction": "bidirectional", **extra},
                      inputs=every, outputs=out),
            Recurrent(kind, f"layout lengths{tag}", {"layout": 1, "direction": "reverse", **extra}, inputs=every,
                      outputs=out, lengths=[2, 4, 1]),
        ]  # fmt: skip
    CASES += [Recurrent(kind, "", inputs=every, outputs=out, opset=opset) for opset in (19, 20, 21)]
CASES += [
    Recurrent("LSTM", "last cell only", inputs="b h0 c0 p", outputs="y_c"),
    Recurrent("LSTM", "last state and cell", inputs="b h0 c0", outputs="y_h y_c"),
    Recurrent("LSTM", "no peepholes", inputs="b h0 c0", outputs="y y_c"),
    Recurrent("LSTM", "peepholes no state", inputs="p", outputs="y y_c"),
    Recurrent("LSTM", "peepholes clip", {"clip": 0.6}, inputs="b p", outputs="y y_c"),
    Recurrent("LSTM", "coupled", {"input_forget": 1}, inputs="b h0 c0", outputs="y y_h y_c"),
    Recurrent("LSTM", "coupled peepholes", {"input_forget": 1}, inputs="b h0 c0 p", outputs="y y_h y_c"),
    Recurrent("LSTM", "coupled peepholes lengths", {"input_forget": 1, "direction": "bidirectional"},
              inputs="b h0 c0 p", outputs="y y_h y_c", lengths=[2, 0, 4]),
    Recurrent("LSTM", "lengths no peepholes", inputs="b h0 c0", outputs="y y_h y_c", lengths=[2, 4, 1]),
    Recurrent("LSTM", "lengths reverse no peepholes", {"direction": "reverse"}, inputs="b h0 c0",
              outputs="y y_h y_c", lengths=[2, 4, 1]),
    Recurrent("RNN", "bidirectional activations", {"direction": "bidirectional", "activations": ["HardSigmoid", "ScaledTanh"],
              "activation_alpha": [0.3, 1.2], "activation_beta": [0.4, 0.8]}, inputs="b h0", outputs="y y_h"),
    Recurrent("GRU", "defaults", {"activations": ["HardSigmoid", "LeakyRelu"]}),
    Recurrent("LSTM", "defaults", {"activations": ["HardSigmoid", "Elu", "Tanh"]}, inputs="b h0 c0 p", scale=0.5),
    Recurrent("GRU", "some values", {"activations": ["Sigmoid", "Elu"], "activation_alpha": [0.5]}),
]  # fmt: skip
VALUES = {"Affine": (0.6, 0.2), "LeakyRelu": (0.3,), "ThresholdedRelu": (0.2,), "ScaledTanh": (1.3, 0.7),
          "HardSigmoid": (0.3, 0.4), "Elu": (0.8,)}  # fmt: skip
for name in FUNCTIONS:
    values = [VALUES.get(name, ()) for _ in range(3)]
    given = {
        f"activation_{k}": [v[j] for v in values]
        for j, k in enumerate(("alpha", "beta"))
        if TAKES.get(name, 0) > j
    }
    for kind, number in (("RNN", 1), ("GRU", 2), ("LSTM", 3)):
        shortened = {k: v[:number] for k, v in given.items()}
        for extra in ({}, {"linear_before_reset": 1}) if kind == "GRU" else ({},):
            CASES.append(
                Recurrent(
                    kind,
                    f"{name}{'-linear' if extra else ''}",
                    {"activations": [name] * number, **shortened, **extra},
                    inputs=ALL[kind],
                    outputs=OUT[kind],
                    scale=0.5,
                )
            )


def cut(gradient: onnx.ModelProto, op_type: str, suffix: str = "_grad") -> onnx.ModelProto:
    """The gradient graph without the node: its outputs become inputs. An LSTM is replaced already."""
    cut = onnx.ModelProto()
    cut.CopyFrom(gradient)
    nodes = [n for n in cut.graph.node if n.op_type == op_type]
    assert len(nodes) == (op_type != "LSTM")
    if not nodes:
        cut.metadata_props.add(key="outputs", value="")
        return cut
    (node,) = nodes
    cut.graph.node.remove(node)
    elem = gradient.graph.input[0].type.tensor_type.elem_type
    present = [(i, o) for i, o in enumerate(node.output) if o]
    for _, o in present:
        cut.graph.input.append(onnx.helper.make_tensor_value_info(o, elem, None))
    cut.metadata_props.add(key="outputs", value=",".join(f"{i}:{o}" for i, o in present))
    kept = [o for o in cut.graph.output if o.name.endswith(suffix)]
    del cut.graph.output[:]
    cut.graph.output.extend(kept)
    return cut


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = {i.name for i in session.get_inputs()}
    values = session.run(None, {k: v for k, v in feeds.items() if k in names})
    return dict(zip([o.name for o in session.get_outputs()], values, strict=False))


def gradient_graph(case: Recurrent, dtype: Any, shapes: str, wrt: list[str]) -> onnx.ModelProto:
    model = ir.from_proto(case.model(dtype, shapes))
    return ir.to_proto(differentiate(model, wrt, case.outputs.split()))


def seeds(case: Recurrent, dtype: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {k: v.shape for k, v in case.reference(case.feeds(np.float64)).items()}
    return {f"{o}_grad": rng.normal(size=shapes[o]).astype(dtype) for o in case.outputs.split()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient(case: Recurrent, request: pytest.FixtureRequest) -> None:
    """With known, symbolic and unknown shapes; those of the table of activations with unknown ones only,
    unless ``--exhaustive`` is given.
    """
    feeds, given = case.feeds(np.float64), seeds(case, np.float64)
    names = case.differentiable()
    outputs = case.reference(feeds)
    rng = np.random.default_rng(5)
    expected = {}
    for name in names:
        direction = rng.normal(size=feeds[name].shape)
        sides = []
        for sign in (1e-6, -1e-6):
            moved = case.reference({**feeds, name: feeds[name] + sign * direction})
            sides.append(sum(np.sum(given[f"{o}_grad"] * moved[o]) for o in case.outputs.split()))
        expected[name] = (direction, (sides[0] - sides[1]) / 2e-6)
    every = case.label.split("-")[0] not in FUNCTIONS or request.config.getoption("--exhaustive")
    for shapes in ("static", "dynamic", "unranked") if every else ("dynamic",):
        gradient = gradient_graph(case, np.float64, shapes, names)
        if shapes != "unranked":
            onnx.checker.check_model(gradient, full_check=True)
        without = cut(gradient, case.op_type)
        found = run(without, {**feeds, **given, **states(without, outputs)})
        if case.op_type == "LSTM":  # computed in place of the node; attributes are float32
            for name in case.outputs.split():
                np.testing.assert_allclose(found[name], outputs[name], rtol=1e-6, atol=1e-7, err_msg=name)
        for name, (direction, derivative) in expected.items():
            value = found[f"{name}_grad"]
            assert value.shape == feeds[name].shape
            scale = max(np.linalg.norm(value), abs(derivative), 1e-3)
            assert abs(np.sum(direction * value) - derivative) < 1e-6 * scale, (shapes, name)


# The kernels refuse layout 1, and RNN's leaves the state of an empty sequence unwritten.
ORT = [
    c for c in CASES if not c.attributes.get("layout") and not (c.op_type == "RNN" and 0 in (c.lengths or []))
]


@pytest.mark.parametrize("case", ORT, ids=str)
def test_float32_on_onnxruntime(case: Recurrent) -> None:
    """The transcription agrees with the kernel, and the whole gradient graph with its float64 twin."""
    feeds, names = case.feeds(np.float64), case.differentiable()
    outputs = case.reference(feeds)
    feeds32, seeds32 = case.feeds(np.float32), seeds(case, np.float32)
    for name, value in run(case.model(np.float32), feeds32).items():
        np.testing.assert_allclose(value, outputs[name], rtol=1e-4, atol=1e-4)
    found = run(gradient_graph(case, np.float32, "dynamic", names), {**feeds32, **seeds32})
    without = cut(gradient_graph(case, np.float64, "static", names), case.op_type)
    exact = run(without, {**feeds, **seeds(case, np.float64), **states(without, outputs)})
    for name in names:
        np.testing.assert_allclose(
            found[f"{name}_grad"], exact[f"{name}_grad"], rtol=2e-3, atol=2e-3, err_msg=name
        )


def states(without: onnx.ModelProto, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the node that was cut out handed out."""
    pairs = (part.split(":") for part in without.metadata_props[0].value.split(",") if part)
    return {name: outputs[OUTPUTS[int(position)]] for position, name in pairs}


@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("op_type", GATES)
def test_second_derivative(op_type: str, linear: int) -> None:
    extra = {"linear_before_reset": 1} if linear and op_type == "GRU" else {}
    direction = "reverse" if linear else "forward"
    case = Recurrent(op_type, "", {"direction": direction, **extra}, ALL[op_type], outputs=OUT[op_type])
    names = case.differentiable()
    first = gradient_graph(case, np.float64, "dynamic", names)
    feeds = {**case.feeds(np.float64), **seeds(case, np.float64)}
    gradients = [f"{n}_grad" for n in names]
    wrt = [*names, *seeds(case, np.float64)]
    second = ir.to_proto(differentiate(ir.from_proto(first), wrt, gradients, "{}_grad2".format))
    rng = np.random.default_rng(11)
    without = cut(first, op_type)

    def gradient(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return run(without, {**feeds, **states(without, case.reference(feeds))})

    given = {f"{g}_grad2": rng.normal(size=v.shape) for g, v in gradient(feeds).items()}
    cut_second = cut(second, op_type, "_grad2")
    found = run(cut_second, {**feeds, **given, **states(cut_second, case.reference(feeds))})
    for name in wrt:
        direction = rng.normal(size=feeds[name].shape)
        sides = []
        for sign in (1e-5, -1e-5):
            moved = gradient({**feeds, name: feeds[name] + sign * direction})
            sides.append(sum(np.sum(given[f"{g}_grad2"] * moved[g]) for g in gradients))
        expected = (sides[0] - sides[1]) / 2e-5
        value = found[f"{name}_grad2"]
        scale = max(np.linalg.norm(value), abs(expected), 1e-3)
        assert abs(np.sum(direction * value) - expected) < 1e-6 * scale, name


def test_lstm_among_other_nodes() -> None:
    """Readers of a replaced LSTM, in a branch as well, read what takes its place; names stay."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[5, 2, 4] x, bool c, float[1, 16, 4] w, float[1, 16, 4] r) => (
            float[5, 1, 2, 4] y, float[5, 1, 2, 4] z) {
            y, "", last = LSTM <hidden_size = 4> (x, w, r)
            z = If (c) <
                then_branch = inside () => (float[5, 1, 2, 4] a) {
                    p = LSTM <hidden_size = 4> (x, w, r)  a = Mul (p, y) },
                else_branch = outside () => (float[5, 1, 2, 4] b) { b = Mul (y, last) }> }""")
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("x", (5, 2, 4)), ("w", (1, 16, 4)), ("r", (1, 16, 4)))
    }
    given = {f"{o}_grad": rng.normal(size=(5, 1, 2, 4)).astype(np.float32) for o in "yz"}
    gradient = ir.to_proto(differentiate(ir.from_proto(model), ["x", "w", "r"], ["y", "z"]))
    onnx.checker.check_model(gradient, full_check=True)
    assert "LSTM" not in [n.op_type for n in gradient.graph.node]
    for condition in (True, False):
        feeds["c"] = np.array(condition)
        found = run(gradient, {**feeds, **given})
        for name, value in run(model, feeds).items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
        for name in "xwr":
            direction = rng.normal(size=feeds[name].shape).astype(np.float32)
            sides = []
            for sign in (1e-2, -1e-2):
                moved = run(model, {**feeds, name: feeds[name] + np.float32(sign) * direction})
                sides.append(sum(np.sum(given[f"{o}_grad"] * moved[o].astype(np.float64)) for o in "yz"))
            expected = (sides[0] - sides[1]) / 2e-2
            np.testing.assert_allclose(
                np.sum(found[f"{name}_grad"] * direction), expected, rtol=1e-2, atol=1e-2
            )


@pytest.mark.parametrize("op_type", GATES)
def test_subsets(op_type: str) -> None:
    """Asking for fewer gradients changes none."""
    case = Recurrent(op_type, "", {"direction": "bidirectional"}, ALL[op_type], [2, 4, 3], OUT[op_type])
    feeds = {**case.feeds(np.float32), **seeds(case, np.float32)}
    everything = run(gradient_graph(case, np.float32, "static", case.differentiable()), feeds)
    for name in case.differentiable():
        found = run(gradient_graph(case, np.float32, "static", [name]), feeds)
        np.testing.assert_allclose(found[f"{name}_grad"], everything[f"{name}_grad"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op_type", GATES)
def test_padding_does_not_count(op_type: str) -> None:
    """NaN behind the end of a sequence."""
    case = Recurrent(op_type, "", {}, ALL[op_type], [2, 4, 1], OUT[op_type])
    feeds = {**case.feeds(np.float32), **seeds(case, np.float32)}
    gradient = gradient_graph(case, np.float32, "static", case.differentiable())
    expected = run(gradient, feeds)
    feeds["x"][2:, 0] = np.nan
    for name, value in run(gradient, feeds).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    ("op_type", "activations"),
    [
        ("GRU", ["Affine", "Tanh"]),
        ("GRU", ["Tanh", "ScaledTanh"]),
        ("GRU", ["ThresholdedRelu", "Tanh"]),
        ("RNN", ["Elu"]),
    ],
)
def test_values_that_differ_between_runtimes_are_refused(op_type: str, activations: list[str]) -> None:
    case = Recurrent(op_type, "", {"activations": activations})
    with pytest.raises(GradientNotImplementedError, match="activation_alpha"):
        gradient_graph(case, np.float32, "static", ["x"])


def test_unknown_activation() -> None:
    with pytest.raises(GradientNotImplementedError, match="Cosine"):
        gradient_graph(Recurrent("RNN", "", {"activations": ["Cosine"]}), np.float32, "static", ["x"])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("op_type", GATES)
def test_torch(op_type: str, bidirectional: bool) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = getattr(torch.nn, op_type)(I, H, bidirectional=bidirectional)
    attributes = {"direction": "bidirectional"} if bidirectional else {}
    if op_type == "GRU":
        attributes["linear_before_reset"] = 1
    inputs = "b h0 c0" if op_type == "LSTM" else "b h0"
    case = Recurrent(op_type, "torch", attributes, inputs, outputs=OUT[op_type])
    feeds = case.feeds(np.float32)
    # Gates in PyTorch's order: i f g o, r z n.
    order = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 2, 3, 1]}[op_type]

    def reorder(v: np.ndarray) -> np.ndarray:
        blocks = np.split(v, GATES[op_type])
        return np.concatenate([blocks[k] for k in order])

    suffixes = ["", "_reverse"][: 2 if bidirectional else 1]
    with torch.no_grad():
        for d, suffix in enumerate(suffixes):
            wb, rb = np.split(feeds["b"][d], 2)
            for name, value in (
                ("weight_ih", feeds["w"][d]),
                ("weight_hh", feeds["r"][d]),
                ("bias_ih", wb),
                ("bias_hh", rb),
            ):
                getattr(module, f"{name}_l0{suffix}").copy_(torch.from_numpy(reorder(value)))
    x, h0 = (torch.from_numpy(feeds[k]).requires_grad_() for k in ("x", "h0"))
    c0 = torch.from_numpy(feeds["c0"]).requires_grad_() if op_type == "LSTM" else None
    y, last = module(x, h0 if c0 is None else (h0, c0))
    given = seeds(case, np.float32)
    loss = (y.reshape(T, N, len(suffixes), H).transpose(1, 2) * torch.from_numpy(given["y_grad"])).sum()
    for value, name in zip([last] if c0 is None else last, ("y_h", "y_c"), strict=False):
        loss = loss + (value * torch.from_numpy(given[f"{name}_grad"])).sum()
    loss.backward()
    found = run(gradient_graph(case, np.float32, "static", case.differentiable()), {**feeds, **given})
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(found["x_grad"], x.grad.numpy(), **close)
    np.testing.assert_allclose(found["h0_grad"], h0.grad.numpy(), **close)
    if c0 is not None:
        np.testing.assert_allclose(found["c0_grad"], c0.grad.numpy(), **close)
    for d, suffix in enumerate(suffixes):
        wb, rb = np.split(found["b_grad"][d], 2)
        for name, value in (
            ("weight_ih", found["w_grad"][d]),
            ("weight_hh", found["r_grad"][d]),
            ("bias_ih", wb),
            ("bias_hh", rb),
        ):
            expected = getattr(module, f"{name}_l0{suffix}").grad.numpy()
            np.testing.assert_allclose(reorder(value), expected, **close)

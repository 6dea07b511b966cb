"""Gelu, SiLU and their like as exporters spell them: one derivative, whatever the order."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom import TrainingStep
from onnxcustom.gradient import gradient_graph
from onnxcustom.testing import check_gradient

NUMBERS = (
    "float r = {1.4142135}, float i = {0.70710678}, float one = {1}, float half = {0.5}, float[1] two = {2}, "
    "float k = {0.79788456}, float c = {0.044715}, float three = {3}, float q = {1.702}"
)
# What stands between h and a.
SPELLINGS = {
    "gelu": [
        "u = Div(h, r) e = Erf(u) p = Add(e, one) m = Mul(h, p) a = Mul(m, half)",
        "g = Mul(half, h) u = Mul(h, i) e = Erf(u) p = Add(one, e) a = Mul(g, p)",
        "u = Div(h, r) e = Erf(u) p = Add(one, e) s = Mul(half, p) a = Mul(s, h)",
        "u = Mul(i, h) e = Erf(u) t = Div(e, two) s = Add(t, half) a = Mul(h, s)",
        "u = Div(h, r) e = Erf(u) p = Add(one, e) m = Mul(p, h) a = Div(m, two)",
    ],
    "gelu_tanh": [
        "g = Mul(h, half) x3 = Pow(h, three) t = Mul(x3, c) s = Add(h, t) u = Mul(s, k) e = Tanh(u)"
        " p = Add(e, one) a = Mul(g, p)",
        "x2 = Mul(h, h) x3 = Mul(x2, h) t = Mul(c, x3) s = Add(t, h) u = Mul(k, s) e = Tanh(u)"
        " p = Add(one, e) m = Mul(h, p) a = Mul(half, m)",
        "x2 = Mul(h, h) t = Mul(x2, c) f = Add(one, t) n = Mul(h, k) u = Mul(n, f) e = Tanh(u)"
        " p = Add(e, one) b = Mul(p, half) a = Mul(b, h)",
    ],
    "silu": ["s = Sigmoid(h) a = Mul(h, s)", "s = Sigmoid(h) a = Mul(s, h)"],
    "quick_gelu": ["n = Mul(h, q) s = Sigmoid(n) a = Mul(h, s)"],
}
# These are none, or have an end in the middle.
OTHERS = {
    "other offset": "s = Sigmoid(h) m = Add(s, one) a = Mul(h, m)",
    "other factor": "s = Sigmoid(h) o = Exp(h) a = Mul(o, s)",
    "odd one": "u = Mul(h, i) e = Erf(u) p = Add(e, half) a = Mul(h, p)",
    "even": "x2 = Mul(h, h) s = Tanh(x2) p = Add(s, one) a = Mul(h, p)",
    "read twice": "s = Sigmoid(h) m = Mul(h, s) a = Add(m, s)",
    "square": "s = Sigmoid(h) a = Mul(s, s)",
}


def model(between: str, opset: int = 18, floats: str = "float") -> onnx.ModelProto:
    numbers = NUMBERS.replace("float", floats)
    made = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": {opset}]>
        net ({floats}[N, 3] x) => ({floats}[N, 2] y) <{numbers}> {{
            h = MatMul(x, w) {between} y = MatMul(a, v) }}""")
    rng = np.random.default_rng(0)
    for name, shape in (("w", (3, 4)), ("v", (4, 2))):
        array = rng.standard_normal(shape).astype(np.float32 if floats == "float" else np.float64)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


ALL = [
    pytest.param(name, text, id=f"{name}-{k}")
    for name, texts in SPELLINGS.items()
    for k, text in enumerate(texts)
]


def products(made: onnx.ModelProto) -> int:
    """Passes over memory that multiply."""
    return sum(node.op_type in ("Mul", "Div") for node in made.graph.node)


@pytest.mark.parametrize(("name", "text"), ALL)
def test_gradients_are_right(name: str, text: str) -> None:
    check_gradient(model(text))


@pytest.mark.parametrize(("name", "text"), ALL)
def test_all_spellings_have_one_gradient(name: str, text: str) -> None:
    one = gradient_graph(model(text), engine="onnx")
    first = gradient_graph(model(SPELLINGS[name][0]), engine="onnx")
    assert [n.op_type for n in one.graph.node] == [n.op_type for n in first.graph.node]
    assert products(one) <= {"gelu": 7, "gelu_tanh": 8, "silu": 3, "quick_gelu": 5}[name]


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_gate_goes_node_by_node(text: str) -> None:
    check_gradient(model(text))


def test_a_value_inside_may_be_an_output() -> None:
    made = model(SPELLINGS["gelu"][0])
    made.graph.output.append(onnx.helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, ["N", 4]))
    check_gradient(made)


def test_trained_numbers_are_no_constants() -> None:
    made = model(SPELLINGS["quick_gelu"][0])
    graph = gradient_graph(made, wrt=["q", "w"], engine="onnx")
    assert {"q_grad", "w_grad"} <= {v.name for v in graph.graph.output}
    check_gradient(made, wrt=["q", "w"])


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_opsets(opset: int) -> None:
    for texts in SPELLINGS.values():
        check_gradient(model(texts[0], opset))


def test_float64_without_kernels_of_float32() -> None:
    for texts in SPELLINGS.values():
        graph = gradient_graph(model(texts[0], floats="double"), engine="onnx")
        assert "HardSigmoid" not in {node.op_type for node in graph.graph.node}
    for name in ("gelu_tanh", "silu", "quick_gelu"):
        check = check_gradient(model(SPELLINGS[name][0], floats="double"))
        assert check.precision == "float64"


@pytest.mark.parametrize("name", SPELLINGS)
def test_ten_steps_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    functions = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda h: torch.nn.functional.gelu(h, approximate="tanh"),
        "silu": torch.nn.functional.silu,
        "quick_gelu": lambda h: h * torch.sigmoid(1.702 * h),
    }
    made = model(SPELLINGS[name][-1])
    w, v = (
        torch.tensor(onnx.numpy_helper.to_array(i), requires_grad=True) for i in made.graph.initializer[-2:]
    )
    rng = np.random.default_rng(1)
    # From far below to far above the step.
    X = (3 * rng.standard_normal((64, 3))).astype(np.float32)
    Y = rng.standard_normal((64, 2)).astype(np.float32)
    step = TrainingStep(made, "squared_error", "sgd", learning_rate=0.01, weights=["w", "v"], engine="onnx")
    rule = torch.optim.SGD([w, v], lr=0.01)
    for _ in range(10):
        rule.zero_grad()
        difference = functions[name](torch.from_numpy(X) @ w) @ v - torch.from_numpy(Y)
        loss = (difference**2).sum() / (2 * len(X))
        loss.backward()
        rule.step()
        assert step.run(X, Y) == pytest.approx(loss.item(), rel=1e-4)
    for key, tensor in (("w", w), ("v", v)):
        np.testing.assert_allclose(step.weights()[key], tensor.detach().numpy(), rtol=1e-4, atol=1e-5)

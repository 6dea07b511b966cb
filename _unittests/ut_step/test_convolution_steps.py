"""Training steps of convolutions in every form, against the sums written out in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom import OrtGradientForwardBackward, TrainingStep, gradient_graph, gradient_report
from onnxcustom.exceptions import ProviderError
from onnxcustom.gradient import GradientNames
from onnxcustom.inspect import describe
from onnxcustom.optim import LearningRateSGD, LearningRateSGDNesterov
from onnxcustom.runtime import create_session, parse_device

# Sizes of the image, of the weight, options: what the tables of forms take another form for.
LAYERS = {
    "the operators": ((5, 5), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "columns": ((3, 3), (256, 128, 3, 3), {"pads": [1, 1, 1, 1]}),
    "columns, strides": ((4, 5), (128, 256, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 2]}),
    "columns of gradients": ((5, 4), (256, 128, 3, 3), {"pads": [1, 1, 1, 1]}),
    "columns, groups": ((2, 2), (512, 64, 3, 3), {"pads": [1, 1, 1, 1], "group": 4}),
    "columns, 1-D": ((8,), (256, 128, 3), {"pads": [2, 0]}),
    "columns, 1x1": ((2, 2), (256, 128, 1, 1), {}),
    "turned and shifts": ((1024,), (16, 16, 3), {"pads": [1, 1]}),
    "turned and images": ((64,), (16, 24, 1), {}),
    "1x1 strides": ((6, 6), (16, 24, 1, 1), {"strides": [2, 2]}),
}
OPERATORS = ("Conv", "ConvTranspose")


def model(layer: str, operator: str, bias: bool = True) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Each channel times a number, the convolution, and its response as a row."""
    sizes, weight, options = LAYERS[layer]
    group, n = options.get("group", 1), len(sizes)
    given, made = weight[1] * group, weight[0]
    if operator == "ConvTranspose":
        given, made = made, given
    attributes = ", ".join(f"{k} = {v}" for k, v in {"kernel_shape": list(weight[2:]), **options}.items())
    parsed = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[N, {given}, {", ".join(map(str, sizes))}] x) => (float[N, M] y) {{
            h = Mul (x, scale)
            c = {operator} <{attributes}> (h, w{", b" if bias else ""})
            y = Flatten (c)
        }}"""
    )
    random = np.random.default_rng(1)
    arrays = {
        "scale": random.uniform(0.5, 1.5, (given, *[1] * n)),
        "w": random.standard_normal(weight) / np.sqrt(np.prod(weight[1:])),
    }
    if bias:
        arrays["b"] = random.standard_normal(made)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    parsed.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())
    return parsed, arrays


class Sums:
    """Response and gradients, written out window by window in float64."""

    def __init__(self, layer: str, operator: str) -> None:
        self.sizes, self.weight, options = LAYERS[layer]
        self.transposed = operator == "ConvTranspose"
        n = len(self.sizes)
        self.group, strides = options.get("group", 1), options.get("strides", [1] * n)
        pads, self.kernel = options.get("pads", [0] * (2 * n)), self.weight[2:]
        begin, end = pads[:n], pads[n:]
        axes = list(zip(self.sizes, begin, end, self.kernel, strides, strict=True))
        if self.transposed:
            self.image = tuple((i - 1) * s + k - b - e for i, b, e, k, s in axes)
            self.response = self.sizes
        else:
            self.image = self.sizes
            self.response = tuple((i + b + e - k) // s + 1 for i, b, e, k, s in axes)
        self.pads, self.strides = list(zip(begin, end, strict=True)), strides

    def _windows(self):
        """Of each position of the kernel, where the padded image is read."""
        for k in np.ndindex(*self.kernel):
            axes = zip(k, self.response, self.strides, strict=True)
            yield (..., *k), (..., *(slice(j, j + (o - 1) * s + 1, s) for j, o, s in axes))

    def _grouped(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(len(array), self.group, -1, *array.shape[2:])

    def respond(self, image: np.ndarray, w: np.ndarray) -> np.ndarray:
        padded = self._grouped(np.pad(image, [(0, 0), (0, 0), *self.pads]))
        w = w.reshape(self.group, -1, *w.shape[1:])
        return sum(
            np.einsum("goi,ngi...->ngo...", w[k], padded[place]) for k, place in self._windows()
        ).reshape(len(image), -1, *self.response)

    def back(self, response: np.ndarray, w: np.ndarray) -> np.ndarray:
        wide = [i + b + e for i, (b, e) in zip(self.image, self.pads, strict=True)]
        image = np.zeros((len(response), self.group, self.weight[1], *wide))
        w, response = w.reshape(self.group, -1, *w.shape[1:]), self._grouped(response)
        for k, place in self._windows():
            image[place] += np.einsum("goi,ngo...->ngi...", w[k], response)
        inner = (slice(b, b + i) for i, (b, _) in zip(self.image, self.pads, strict=True))
        image = image[(..., *inner)]
        return image.reshape(len(image), -1, *self.image)

    def weigh(self, image: np.ndarray, response: np.ndarray) -> np.ndarray:
        padded = self._grouped(np.pad(image, [(0, 0), (0, 0), *self.pads]))
        response, found = self._grouped(response), np.zeros(self.weight)
        for k, place in self._windows():
            flat = (a.reshape(*a.shape[:3], -1) for a in (response, padded[place]))
            found[k] = np.einsum("ngop,ngip->goi", *flat).reshape(self.weight[:2])
        return found

    def forward(self, h: np.ndarray, w: np.ndarray) -> np.ndarray:
        return self.back(h, w) if self.transposed else self.respond(h, w)

    def gradients(self, h: np.ndarray, w: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.transposed:
            return self.respond(dy, w), self.weigh(dy, h)
        return self.back(dy, w), self.weigh(h, dy)


def sgd(
    layer: str, operator: str, arrays: dict, batches: list, rate: float, momentum: float = 0
) -> tuple[list, dict]:
    """Descent on half the sum of squares of a row, averaged over rows."""
    sums = Sums(layer, operator)
    held = {name: array.astype(np.float64) for name, array in arrays.items()}
    losses, velocity = [], {name: np.zeros_like(array) for name, array in held.items()}
    for X, target in batches:
        h = X * held["scale"]
        c = sums.forward(h, held["w"])
        over = (0, *range(2, c.ndim))
        c = c + held["b"].reshape(-1, *[1] * (c.ndim - 2)) if "b" in held else c
        difference = c.reshape(len(X), -1) - target
        losses.append((difference**2).sum() / 2 / len(X))
        dy = (difference / len(X)).reshape(c.shape)
        dh, dw = sums.gradients(h, held["w"], dy)
        gradients = {"scale": (dh * X).sum(over).reshape(held["scale"].shape), "w": dw, "b": dy.sum(over)}
        for name in held:
            velocity[name] = momentum * velocity[name] - rate * gradients[name]
            held[name] += velocity[name]
    return losses, held


def data(layer: str, operator: str, rows: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    sums = Sums(layer, operator)
    channels = (sums.weight[1] * sums.group, sums.weight[0])
    given, made = channels[:: -1 if sums.transposed else 1]
    columns = made * int(np.prod(sums.image if sums.transposed else sums.response))
    random = np.random.default_rng(0)
    return [
        (
            random.standard_normal((n, given, *sums.sizes)).astype(np.float32),
            random.standard_normal((n, columns)).astype(np.float32),
        )
        for n in rows
    ]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("layer", LAYERS)
def test_ten_steps_of_batches_of_several_sizes(layer, operator):
    parsed, arrays = model(layer, operator)
    batches = data(layer, operator, [2, 2, 1, 3, 2, 2, 1, 2, 2, 2])
    step = TrainingStep(parsed, loss="squared_error", optimizer="SGD", learning_rate=1e-3)
    losses = [step.run(X, y) for X, y in batches]
    wanted, held = sgd(layer, operator, arrays, batches, 1e-3)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    for name, array in step.weights().items():
        np.testing.assert_allclose(array, held[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("layer", ["columns, strides", "columns, 1-D", "1x1 strides"])
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_descent_is_part_of_the_product(layer, momentum):
    """The weight, or its velocity, is the matrix that the product gives, in the memory it has."""
    parsed, arrays = model(layer, "Conv")
    batches = data(layer, "Conv", [2, 3, 1] * 3)
    outer, inner, *kernel = LAYERS[layer][1]
    constant = {"eta0": 1e-3, "learning_rate": "constant"}
    rule = LearningRateSGD(**constant)
    if momentum:
        rule = LearningRateSGDNesterov(**constant, momentum=momentum, nesterov=False)
    step = TrainingStep(parsed, "squared_error", rule)
    graph = step.recipe.graph(False)
    made = {v.name: v for v in graph.model.graph.outputs}
    product = made[graph.state["w"]["velocity"][1] if momentum else graph.weights["w"]].producer()
    assert (product.op_type, len(product.inputs)) == ("Gemm", 3)
    assert list(product.outputs[0].shape) == [outer, inner * np.prod(kernel)]
    # Who runs the graph elsewhere gets the weight as it is.
    shape = next(o for o in step.model.graph.output if o.name == graph.weights["w"]).type.tensor_type.shape
    assert [d.dim_value for d in shape.dim] == [outer, inner, *kernel]
    losses = [step.run(X, y) for X, y in batches]
    wanted, held = sgd(layer, "Conv", arrays, batches, 1e-3, momentum)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    np.testing.assert_allclose(step.weights()["w"], held["w"], atol=2e-5)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    "layer", ["columns, strides", "columns, groups", "columns, 1-D", "turned and shifts"]
)
def test_gradients_have_gradients(layer, operator):
    """Both gradients are linear in image, weight and what comes in, so that differences are exact."""
    parsed, arrays = model(layer, operator, bias=False)
    del parsed.graph.initializer[0], arrays["scale"]
    parsed.graph.node[0].op_type, parsed.graph.node[0].input[:] = "Identity", ["x"]
    once = gradient_graph(parsed, wrt=["w"], inputs=["x"])
    twice = gradient_graph(once, wrt=[], inputs=["x", "w"], outputs=["x_grad", "w_grad"])
    names = {i.name: i for i in twice.graph.input}
    ((X, dy),) = data(layer, operator, [2])
    random = np.random.default_rng(2)
    feeds = {"x": X, "w": arrays["w"], "y_grad": dy}
    first, second = (create_session(m, parse_device("cpu")) for m in (once, twice))
    outputs = [o.name for o in first.get_outputs()]
    base = dict(zip(outputs, first.run(None, feeds), strict=True))
    seeds = {
        name: random.standard_normal(base[name].shape).astype(np.float32) for name in ("x_grad", "w_grad")
    }
    seeds_of = GradientNames.of(twice).seeds
    found = second.run(None, {**feeds, **{seeds_of[name]: seed for name, seed in seeds.items()}})
    gradients = dict(zip([o.name for o in twice.graph.output], found, strict=True))
    for name in ("x", "w"):
        move = random.standard_normal(feeds[name].shape).astype(np.float32)
        moved = dict(zip(outputs, first.run(None, {**feeds, name: feeds[name] + move}), strict=True))
        difference = sum((seeds[g].astype(np.float64) * (moved[g] - base[g])).sum() for g in seeds)
        made = gradients[GradientNames.of(twice).gradients[name]].astype(np.float64)
        assert (made * move).sum() == pytest.approx(difference, rel=2e-3, abs=1.0), name
    assert set(feeds) <= set(names)


REPORTED = {
    ("the operators", "Conv"): ("Conv", "ConvTranspose", "rows"),
    ("columns, 1-D", "Conv"): ("columns", "columns", "columns"),
    ("columns, strides", "ConvTranspose"): ("columns", "Conv", "columns"),
    ("turned and shifts", "ConvTranspose"): ("turned", "Conv", "shifts"),
    ("1x1 strides", "Conv"): ("Conv", "ConvTranspose", "columns"),
}


@pytest.mark.parametrize(("layer", "operator"), REPORTED)
def test_reports_say_which_form_a_node_gets(layer, operator):
    report = gradient_report(model(layer, operator)[0])
    (row,) = [row for row in report if row.forms]
    assert (row.forms["forward"], row.forms["dX"], row.forms["dW"]) == REPORTED[layer, operator]
    assert f"forward: {row.forms['forward']}, dX: {row.forms['dX']}" in str(report)
    assert row.node in describe(report).partition("Convolutions")[2]


def test_reports_without_convolutions_do_not_mention_them(mlp_model):
    report = gradient_report(mlp_model([3, 2, 1]))
    assert not any(row.forms for row in report)
    assert "Convolutions" not in describe(report)


@pytest.mark.parametrize(
    ("host", "operators"),
    [
        ({}, {"Gemm", "Col2Im"}),
        ({"portable": True}, {"Gemm", "ConvTranspose"}),
        ({"device": "cuda"}, {"Conv", "ConvTranspose", "Gemm"}),
        ({"device": "cuda:1", "portable": True}, {"Conv", "ConvTranspose", "Gemm"}),
    ],
)
def test_gradients_are_made_for_where_they_run(host, operators):
    graph = gradient_graph(model("columns", "Conv")[0], **host).graph
    products = {"Conv", "ConvTranspose", "Gemm", "Col2Im", "MatMul"}
    assert {node.op_type for node in graph.node} & products == operators
    with pytest.raises(ProviderError, match="'tpu' is no device that a gradient is made for"):
        gradient_graph(model("columns", "Conv")[0], device="tpu")


@pytest.mark.parametrize("operator", OPERATORS)
def test_forward_and_backward_apart(operator):
    """The columns that both read are handed on, or made again."""
    parsed, arrays = model("columns, strides", operator, bias=False)
    ((X, dy),) = data("columns, strides", operator, [3])
    both = OrtGradientForwardBackward(parsed, engine="onnx")
    function, names = both.new_instance(), both.weights_to_train
    (y,) = function.forward([X, *(arrays[name] for name in names)], training=True)
    gradients = dict(zip(["x", *names], function.backward([dy]), strict=True))
    sums = Sums("columns, strides", operator)
    h = X.astype(np.float64) * arrays["scale"]
    made = sums.forward(h, arrays["w"])
    np.testing.assert_allclose(y.numpy(), made.reshape(len(X), -1), atol=1e-4)
    _, dw = sums.gradients(h, arrays["w"].astype(np.float64), dy.reshape(made.shape))
    np.testing.assert_allclose(gradients["w"].numpy(), dw, atol=1e-3)

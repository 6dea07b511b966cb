"""Rounding against PyTorch's fake quantization: numbers, gradients and ten steps of a small network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcustom import TrainingStep
from onnxcustom.tuning import Quantization

from .test_quantization import IMAGES, LABELS, X, Y, dense, network

torch = pytest.importorskip("torch")


def weight_by(w: Any, axis: int, high: int) -> Any:
    """A weight by symmetric steps of each index of an axis, after the largest number there is."""
    others = tuple(a for a in range(w.ndim) if a != axis)
    scale = w.detach().abs().amax(dim=others) / high
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(w, scale, zero, axis, -high, high)


def grid_of(array: Any, high: int) -> tuple[float, int]:
    """Scale and zero point of unsigned steps over the range of some numbers."""
    bottom, top = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    scale = float(np.float32((top - bottom) / high))
    return scale, int(np.rint(-bottom / scale))


def tensors_of(model: Any) -> dict[str, Any]:
    """Initializers as leaves of PyTorch."""
    return {i.name: torch.tensor(numpy_helper.to_array(i)) for i in model.graph.initializer}


@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 8), (3, 4), (2, 2)])
def test_values_and_gradients(weights: int, activations: int) -> None:
    """One step of gradient descent moves weights by the gradients that PyTorch has, also beyond the range."""
    options = Quantization(f"int{weights}", f"uint{activations}", rows=20)
    step = TrainingStep(dense(), "squared_error", "sgd", learning_rate=1.0, quantize=options)
    step.calibrate(X[:20])
    t = {name: array.requires_grad_() for name, array in tensors_of(dense()).items()}
    high, top, x = 2 ** (weights - 1) - 1, 2**activations - 1, torch.tensor(X)
    with torch.no_grad():
        seen = {"x": x[:20], "a": x[:20] @ t["w1"]}
        seen["h"] = torch.tanh(seen["a"] + t["b1"])
    grids = {name: grid_of(array, top) for name, array in seen.items()}

    def rounded(name: str, array: Any) -> Any:
        return torch.fake_quantize_per_tensor_affine(array, *grids[name], 0, top)

    a = rounded("a", rounded("x", x) @ weight_by(t["w1"], 1, high))
    h = rounded("h", torch.tanh(a + t["b1"]))
    loss = ((h @ weight_by(t["w2"], 0, high).T - torch.tensor(Y)) ** 2).sum(dim=1).mean() / 2
    loss.backward()
    assert step.run(X, Y) == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, array in t.items():
        moved = array.detach().numpy() - step.weights()[name]
        np.testing.assert_allclose(moved, array.grad.numpy(), rtol=2e-3, atol=2e-4, err_msg=name)


def folded(t: dict[str, Any]) -> tuple[Any, Any]:
    """The first convolution with the normalization behind it."""
    factor = t["scale"] / torch.sqrt(t["var"] + 1e-5)
    return t["k1"] * factor[:, None, None, None], t["shift"] - t["mean"] * factor


@pytest.mark.parametrize("bits", [8, 4])
def test_ten_steps_of_adam(bits: int) -> None:
    """A network of convolutions, its normalization folded, with a loop written in PyTorch."""
    options = Quantization(f"int{bits}", "uint8")
    step = TrainingStep(network(), "cross_entropy", "adam", learning_rate=0.01, quantize=options)
    t, high = tensors_of(network()), 2 ** (bits - 1) - 1
    t["k1"], t["b1"] = folded(t)
    trained = [t[name].requires_grad_() for name in ("k1", "b1", "k2", "b2", "w", "b")]
    functions = torch.nn.functional

    def forward(weight: Any, act: Any) -> Any:
        x = act("x", torch.tensor(IMAGES))
        x = act("r", torch.relu(functions.conv2d(x, weight(t["k1"], 0), t["b1"], padding=1)))
        x = functions.max_pool2d(x, 2)
        x = act("e", torch.relu(functions.conv2d(x, weight(t["k2"], 0), t["b2"], padding=1)))
        return x.flatten(1) @ weight(t["w"], 1) + t["b"]

    grids = {}

    def look(name: str, array: Any) -> Any:
        grids[name] = grid_of(array, 255)
        return array

    with torch.no_grad():
        forward(lambda w, axis: w, look)
    adam = torch.optim.Adam(trained, lr=0.01)
    for _ in range(10):
        scores = forward(
            lambda w, axis: weight_by(w, axis, high),
            lambda n, a: torch.fake_quantize_per_tensor_affine(a, *grids[n], 0, 255),
        )
        loss = functions.cross_entropy(scores, torch.tensor(LABELS))
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert step.run(IMAGES, LABELS) == pytest.approx(float(loss.detach()), rel=5e-3)

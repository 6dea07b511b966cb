"""The nine architectures in onnx's backend test data, with smaller images where they allow it.

Their weights are ConstantOfShape nodes; folded, they are weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from whole_models import Differentiated

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
# Sizes of images, the smallest that leave every window something to look at.
SIZES = {
    "bvlc_alexnet": 67,
    "densenet121": 32,
    "inception_v1": 64,
    "inception_v2": 32,
    "resnet50": 32,
    "shufflenet": 32,
    "squeezenet": 32,
    "vgg19": 32,
    "zfnet512": 65,
}


def shrunk(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """The model for smaller images: the last average and the first dense layer take what is left."""
    model.ir_version = 8  # from 4 on, initializers need not be inputs
    graph = model.graph
    initial = {i.name: i for i in graph.initializer}
    image = next(i for i in graph.input if i.name not in initial)
    for i, value in enumerate((1, 3, size, size)):
        image.type.tensor_type.shape.dim[i].dim_value = value
    for node in graph.node:
        kernel = [list(a.ints) for a in node.attribute if a.name == "kernel_shape"]
        if node.op_type == "AveragePool" and kernel == [[7, 7]]:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
    for info in (*graph.output, *graph.value_info):
        info.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    for tensor in (initial[n.input[1]] for n in graph.node if n.op_type == "Reshape"):
        target = onnx.numpy_helper.to_array(tensor)
        if target.size > 3 and target[-1] % 7 == 0:
            smaller = np.array(
                [*target[:-2], *(target[-2:] * size // 224)]
            )  # of a Reshape: channels are shuffled
            tensor.CopyFrom(onnx.numpy_helper.from_array(smaller, tensor.name))
    _widen(model)
    return model


def _widen(model: onnx.ModelProto) -> None:
    """Give the first dense layer as many inputs as there are features now."""
    graph = model.graph
    made = {o: n for n in graph.node for o in n.output}
    dense = next((n for n in graph.node if n.op_type == "Gemm"), None)
    if dense is None:
        return
    flat, weight = (made[name] for name in dense.input[:2])
    shapes = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    features = int(np.prod([d.dim_value for d in shapes[flat.input[0]].type.tensor_type.shape.dim[1:]]))
    if weight.op_type == "Reshape":
        return  # its average is over all positions, whatever their number
    (rows,) = (d.dim_value for d in shapes[dense.output[0]].type.tensor_type.shape.dim[1:])
    for name, value in (("flat_shape", [1, features]), ("weight_shape", [rows, features])):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    flat.input[1], weight.input[0] = "flat_shape", "weight_shape"


def random_weights(made: Differentiated, image: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights that keep the size of what flows through, and probabilities away from 0 and 1."""
    scales = {n.input[1] for n in made.gradient.graph.node if n.op_type == "BatchNormalization"}
    found = {}
    for name, w in made.weights.items():
        values = made.rng.standard_normal(w.shape, dtype=np.float32)
        if name in scales:  # the variance is 0.02
            found[name] = np.float32(0.14) * (1 + np.float32(0.1) * values)
        elif w.ndim > 1:
            found[name] = values * np.float32(np.sqrt(2 / np.prod(w.shape[1:])))
        else:
            found[name] = values * np.float32(0.1)
    last = [name for name, w in found.items() if w.ndim > 1][-1]
    while made.model.graph.node[-1].op_type == "Softmax":
        (probabilities,) = made.float32.run(None, {**found, **image})
        if probabilities.max() < 0.1:
            break
        found[last] = found[last] / 4
    return found


@pytest.mark.parametrize("name", SIZES)
def test_gradients(name: str) -> None:
    model = shrunk(onnx.load(FOLDER / f"light_{name}.onnx"), SIZES[name])
    made = Differentiated(model)
    filled = {n.output[0] for n in model.graph.node if n.op_type == "ConstantOfShape"}
    statistics = {name for n in model.graph.node if n.op_type == "BatchNormalization" for name in n.input[3:]}
    assert filled - statistics <= set(made.weights)
    assert not statistics.intersection(made.weights)
    image = next(n for n in made.names.inputs if n in made.names.gradients)
    assert set(made.names.gradients) == {image, *made.weights}
    given = {image: made.rng.standard_normal((1, 3, SIZES[name], SIZES[name]), dtype=np.float32)}
    made.weights = random_weights(made, given)
    gradients, _ = made.check(given, largest=1_000_000)
    assert all(gradient.any() for gradient in gradients.values())

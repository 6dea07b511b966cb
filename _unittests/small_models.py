"""Small models that tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper


def _linear(
    columns: int = 2, outputs: int = 1, dtype: type = np.float32, end: str | None = None, seed: int | None = 0
) -> onnx.ModelProto:
    """Return y = x @ w + b, weights ``w`` and ``b``; zeros without a seed."""
    return _mlp([columns, outputs], dtype=dtype, end=end, seed=seed, names=[("w", "b")])


def _mlp(
    sizes: Sequence[int],
    activation: str = "Tanh",
    dtype: type = np.float32,
    end: str | None = None,
    seed: int | None = 0,
    names: Sequence[tuple[str, str]] | None = None,
) -> onnx.ModelProto:
    """Return a multi-layer perceptron from ``x`` to ``y``, weights ``w0``, ``b0``, ``w1`` ..."""
    rng = np.random.default_rng(seed)
    scale = 0.0 if seed is None else 1.0
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = names or [(f"w{i}", f"b{i}") for i in range(len(sizes) - 1)]
    nodes, tensors, last = [], [], "x"
    for i, ((w, b), rows, columns) in enumerate(zip(names, sizes, sizes[1:], strict=False)):
        for name, shape in ((w, (rows, columns)), (b, (columns,))):
            array = scale * rng.normal(size=shape) / np.sqrt(rows)
            tensors.append(numpy_helper.from_array(array.astype(dtype), name))
        final = i == len(sizes) - 2
        out = ("z" if end else "y") if final else f"z{i}"
        nodes += [
            helper.make_node("MatMul", [last, w], [f"m{i}"], name=f"matmul{i}"),
            helper.make_node("Add", [f"m{i}", b], [out], name=f"add{i}"),
        ]
        if not final:
            nodes.append(helper.make_node(activation, [out], [f"h{i}"], name=f"act{i}"))
        last = f"h{i}"
    if end:
        nodes.append(helper.make_node(end, ["z"], ["y"], name="end"))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", number, ["N", sizes[0]])],
        [helper.make_tensor_value_info("y", number, ["N", sizes[-1]])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="session")
def linear_model() -> Callable[..., onnx.ModelProto]:
    """Make a linear model."""
    return _linear


@pytest.fixture(scope="session")
def mlp_model() -> Callable[..., onnx.ModelProto]:
    """Make a multi-layer perceptron."""
    return _mlp

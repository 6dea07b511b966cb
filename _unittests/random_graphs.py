"""Random models beside their functions in NumPy: shared weights, values read twice, outputs in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["RandomGraph", "random_graph"]

ROWS, WIDTH, TABLE = 3, 4, 5
Values = dict[str, np.ndarray]


@dataclasses.dataclass
class RandomGraph:
    """A model of smooth operators.

    Attributes
    ----------
    nodes : list of NodeProto
        What it computes.
    steps : list of callable
        The same in NumPy: each adds the values of a node to those there are.
    weights, constants : dict of str to ndarray
        Float64.
    outputs : dict of str to list
        Name to dimensions, the first of which is the batch unless the output is a weight.
    """

    nodes: list[onnx.NodeProto]
    steps: list[Callable[[Values], None]]
    weights: Values
    constants: Values
    outputs: dict[str, list[Any]]

    def model(self, dtype: type = np.float32, batch: Any = "N") -> onnx.ModelProto:
        """The model, for a batch of any size or of one size."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        tensors = [numpy_helper.from_array(a.astype(dtype), name) for name, a in self.weights.items()]
        tensors += [numpy_helper.from_array(a, name) for name, a in self.constants.items()]
        inputs = [
            helper.make_tensor_value_info("x", kind, [batch, WIDTH]),
            helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [batch]),
        ]
        outputs = [
            helper.make_tensor_value_info(name, kind, [batch if d == "N" else d for d in shape])
            for name, shape in self.outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "random", inputs, outputs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def values(self, feeds: Values, weights: Values) -> Values:
        """Outputs in NumPy."""
        found = {**feeds, **self.constants, **weights}
        for step in self.steps:
            step(found)
        return {name: found[name] for name in self.outputs}


class _Maker:
    """Draws nodes."""

    def __init__(self, random: Random) -> None:
        self.random = random
        numbers = np.random.default_rng(random.randrange(2**32))
        draw = numbers.normal
        self.weights: Values = {
            "w": draw(0, 0.5, (WIDTH, WIDTH)),
            "u": draw(0, 0.5, (WIDTH, WIDTH)),
            "b": draw(0, 0.5, WIDTH),
            "E": draw(0, 0.5, (TABLE, WIDTH)),
        }
        self.constants: Values = {"parts": np.array([1, 1, WIDTH - 2]), "places": np.array([2, 0, 2])}
        self.nodes: list[onnx.NodeProto] = []
        self.steps: list[Callable[[Values], None]] = []
        # Values of shape (rows, width), which any operator takes.
        self.whole = ["x"]
        self.count = 0

    def add(
        self,
        op_type: str,
        inputs: list[str],
        function: Callable[..., Any],
        outputs: int = 1,
        **attributes: Any,
    ) -> list[str]:
        """Append a node; `function` gives its outputs, one or a list."""
        names = [f"v{self.count}_{k}" if outputs > 1 else f"v{self.count}" for k in range(outputs)]
        self.count += 1
        # Nodes of one name are found in the wild.
        name = "layer" if self.random.random() < 0.05 and len(self.nodes) == 0 else f"n{self.count}"
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, **attributes))

        def step(values: Values) -> None:
            made = function(*(values[name] for name in inputs))
            values.update(zip(names, made if outputs > 1 else [made], strict=True))

        self.steps.append(step)
        return names

    def any(self) -> str:
        """A value there is, the latest most often."""
        return self.whole[-1] if self.random.random() < 0.5 else self.random.choice(self.whole)

    def draw(self) -> None:
        """Append one operator, or a few that belong together."""
        kinds = (
            "unary unary binary binary product product transposed gemm square split concat embedding "
            "embedding norm dropout softmax mean columns bias topk same"
        )
        kind = self.random.choice(kinds.split())
        self.whole.append(getattr(self, f"_{kind}")())

    def _unary(self) -> str:
        kinds: dict[str, Callable[[Any], Any]] = {
            "Tanh": np.tanh,
            "Sigmoid": lambda a: 1 / (1 + np.exp(-a)),
            "Neg": np.negative,
            "Softplus": lambda a: np.log1p(np.exp(-np.abs(a))) + np.maximum(a, 0),
            "Identity": lambda a: a,
        }
        kind = self.random.choice(list(kinds))
        return self.add(kind, [self.any()], kinds[kind])[0]

    def _binary(self) -> str:
        kind, function = self.random.choice([("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply)])
        return self.add("Tanh", self.add(kind, [self.any(), self.any()], function), np.tanh)[0]

    def _product(self) -> str:
        return self.add("MatMul", [self.any(), self.random.choice("wu")], np.matmul)[0]

    def _transposed(self) -> str:
        turned = self.add("Transpose", [self.random.choice("wu")], np.transpose, perm=[1, 0])[0]
        return self.add("MatMul", [self.any(), turned], np.matmul)[0]

    def _square(self) -> str:
        names = [self.random.choice("wu"), self.random.choice("wu")]
        product = self.add("MatMul", names, np.matmul)[0]
        return self.add("MatMul", [self.any(), product], np.matmul)[0]

    def _gemm(self) -> str:
        turned, alpha = self.random.randrange(2), self.random.choice([1.0, 0.5])
        inputs = [self.any(), self.random.choice("wu"), "b"]
        return self.add(
            "Gemm", inputs, lambda a, w, b: alpha * a @ (w.T if turned else w) + b, transB=turned, alpha=alpha
        )[0]

    def _bias(self) -> str:
        kind, function = self.random.choice([("Add", np.add), ("Mul", np.multiply)])
        return self.add(kind, [self.any(), "b"], function)[0]

    def _split(self) -> str:
        parts = self.add(
            "Split", [self.any(), "parts"], lambda a, p: np.split(a, np.cumsum(p)[:-1], axis=1), 3, axis=1
        )
        kept = self.random.choice([[0, 1, 2], [2, 2], [1, 0, 2], [1, 1, 1, 1], [0, 2, 0], [0, 0, 0, 0]])
        return self._joined([parts[k] for k in kept])

    def _joined(self, names: list[str]) -> str:
        return self.add("Concat", names, lambda *a: np.concatenate(a, axis=1), axis=1)[0]

    def _concat(self) -> str:
        wide = self._joined([self.any(), self.any()])
        self.constants["half"] = np.array([0, WIDTH, 1, WIDTH + 2])
        return self.add("Gather", [wide, "half"], lambda a, i: np.take(a, i, axis=1), axis=1)[0]

    def _columns(self) -> str:
        three = self.add("Gather", [self.any(), "places"], lambda a, i: np.take(a, i, axis=1), axis=1)[0]
        one = self.add("ReduceMean", [self.any()], lambda a: a.mean(1, keepdims=True), axes=[1], keepdims=1)[
            0
        ]
        return self._joined([three, one])

    def _embedding(self) -> str:
        return self.add("Gather", ["E", "ids"], lambda e, i: e[i], axis=0)[0]

    def _norm(self) -> str:
        outputs = self.random.choice([1, 3])

        def normalized(a: np.ndarray, w: np.ndarray, b: np.ndarray) -> Any:
            mean = a.mean(1, keepdims=True)
            inverse = 1 / np.sqrt(((a - mean) ** 2).mean(1, keepdims=True) + 1.0)
            y = (a - mean) * inverse * w + b
            return [y, mean, inverse] if outputs == 3 else y

        return self.add("LayerNormalization", [self.any(), "b", "b"], normalized, outputs, epsilon=1.0)[0]

    def _dropout(self) -> str:
        return self.add("Dropout", [self.any()], lambda a: [a, np.ones_like(a, bool)], 2)[0]

    def _softmax(self) -> str:
        def softmax(a: np.ndarray) -> np.ndarray:
            e = np.exp(a - a.max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)

        return self.add("Softmax", [self.any()], softmax, axis=1)[0]

    def _mean(self) -> str:
        mean = self.add("ReduceMean", [self.any()], lambda a: a.mean(0, keepdims=True), axes=[0], keepdims=1)[
            0
        ]
        return self.add("Add", [self.any(), mean], np.add)[0]

    def _topk(self) -> str:
        self.constants["all"] = np.array([WIDTH])
        # Distinct numbers: sorted differently, they would have a kink.
        return self.add(
            "TopK",
            [self.any(), "all"],
            lambda a, _: [-np.sort(-a, axis=1), np.argsort(-a, axis=1)],
            2,
            axis=1,
        )[0]

    def _same(self) -> str:
        value = self.any()
        kind, function = self.random.choice([("Add", np.add), ("Mul", np.multiply), ("Max", np.maximum)])
        return self.add(kind, [value, value], function)[0]


def random_graph(seed: int) -> RandomGraph:
    """The model of a seed."""
    random = Random(seed)
    maker = _Maker(random)
    maker.whole.append(maker._product())  # so that there is a weight
    for _ in range(random.randint(1, 8)):
        maker.draw()
    made = [name for name in maker.whole if name != "x"]
    # The last value and some on the way: gathered rows, or what other nodes read as well.
    chosen = {made[-1], *random.sample(made, min(len(made), random.randrange(3)))}
    outputs = {name: ["N", WIDTH] for name in made if name in chosen}
    read = {name for node in maker.nodes for name in node.input}
    weights = {name: array for name, array in maker.weights.items() if name in read}
    constants = {name: array for name, array in maker.constants.items() if name in read}
    return RandomGraph(maker.nodes, maker.steps, weights, constants, outputs)

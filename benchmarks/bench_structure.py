"""What a fit goes through, how long a step takes to make, and the shape of the code.

Counted, so the same on every machine: preparations of the model and shape inferences in one ``fit`` of a
classifier of three nodes, files of the package that it enters and calls from one file into another; lines
by folder, circles of imports, the longest classes and functions. Timed, each as a ratio in the same run:
importing the package against importing NumPy, making a step (first run included) against onnxruntime
opening a session of the model alone and running it.

    python -m benchmarks.bench_structure
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from . import common
from .common import Result

PACKAGE = common.ROOT / "onnxcustom"


# -- one fit ------------------------------------------------------------------------------------


def classifier() -> Any:
    """A model of three nodes."""
    import onnx.parser

    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 2] x) => (float[N, 3] p)'
        "<float[2, 3] w = {1, 0, -1, 0, 1, 1}, float[3] b = {0, 0, 0}>"
        "{ a = MatMul(x, w) z = Add(a, b) p = Softmax<axis = 1>(z) }"
    )


def traced_fit() -> dict[str, int]:
    """Counts of one ``fit``, after another one has imported everything."""
    import numpy as np

    from onnxcustom import OnnxClassifier

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(64, 2)).astype(np.float32), rng.integers(0, 3, 64)
    model = classifier()
    OnnxClassifier(model, max_iter=1).fit(X, y)
    counts, entered, calls = Counter[str](), set[str](), 0

    def ours(frame: types.FrameType | None) -> str | None:
        name = frame.f_code.co_filename if frame else ""
        return name if name.startswith(str(PACKAGE)) else None

    def look(frame: types.FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        if event != "call":
            return
        code, file = frame.f_code, ours(frame)
        if code.co_name == "infer_shapes" and code.co_filename.endswith("shape_inference.py"):
            counts["shape inferences"] += 1
        if file is None:
            return
        entered.add(file)
        calls += (ours(frame.f_back) or file) != file
        if code.co_name == "structure" and file.endswith("prepare.py"):
            counts["preparations"] += 1

    sys.setprofile(look)
    try:
        OnnxClassifier(model, max_iter=1).fit(X, y)
    finally:
        sys.setprofile(None)
    return {**counts, "files entered": len(entered), "calls between files": calls}


# -- times -----------------------------------------------------------------------------------------


def import_seconds(module: str) -> float:
    """Seconds to import a module in a process of its own, the best of five."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    runs = [subprocess.check_output([sys.executable, "-c", code], cwd=common.ROOT) for _ in range(5)]
    return min(float(run) for run in runs)


def models(quick: bool) -> dict[str, tuple[Any, Callable[[], tuple[Any, Any]]]]:
    """Models by name, each with one batch for it."""
    return {
        "MLP 100-100-100-1": (
            common.mlp(common.mlp_weights((100, 100, 100, 1))),
            lambda: common.regression(32, 100),
        ),
        "LeNet": (lenet(), lambda: images(8, 1, 28, 10)),
        "ResNet-18": (resnet(1 if quick else 4, 4 if quick else 64), lambda: images(2, 3, 32, 10)),
        "chain": (chain(100 if quick else 10_000), lambda: common.regression(4, 4)),
    }


def images(rows: int, channels: int, size: int, classes: int) -> tuple[Any, Any]:
    """Noise, and numbers for its classes."""
    import numpy as np

    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, channels, size, size), dtype=np.float32)
    return X, rng.standard_normal((rows, classes), dtype=np.float32)


class Net:
    """Nodes and weights of a model that grows node by node."""

    def __init__(self) -> None:
        import numpy as np

        self.rng, self.nodes, self.tensors, self.count = np.random.default_rng(0), [], [], 0
        self.float32 = np.float32

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; the name of its output."""
        from onnx import helper

        self.count += 1
        name = f"v{self.count}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def weight(self, *shape: int, value: float | None = None) -> str:
        """Append an initializer, small noise or one number; its name."""
        import numpy as np
        from onnx import numpy_helper

        self.count += 1
        array = self.rng.normal(0, 0.1, shape) if value is None else np.full(shape, value)
        self.tensors.append(numpy_helper.from_array(array.astype(self.float32), f"w{self.count}"))
        return f"w{self.count}"

    def conv(self, x: str, channels: tuple[int, int], kernel: int, stride: int = 1) -> str:
        """Convolution without bias, batch normalization behind it."""
        fan_in, fan_out = channels
        pads = [kernel // 2] * 4
        y = self.add("Conv", x, self.weight(fan_out, fan_in, kernel, kernel), pads=pads, strides=[stride] * 2)
        scale, var = (self.weight(fan_out, value=1) for _ in range(2))
        bias, mean = (self.weight(fan_out, value=0) for _ in range(2))
        return self.add("BatchNormalization", y, scale, bias, mean, var)

    def model(self, x: list[Any], y: str, columns: int) -> Any:
        """The model from input ``x`` to `y`."""
        from onnx import TensorProto, helper

        self.nodes.append(helper.make_node("Identity", [y], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", columns])],
            self.tensors,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def lenet() -> Any:
    """Two convolutions and three dense layers."""
    net = Net()
    x, pool = "x", {"kernel_shape": [2, 2], "strides": [2, 2]}
    for fan_in, fan_out, pads in ((1, 6, [2] * 4), (6, 16, [0] * 4)):
        x = net.add("Conv", x, net.weight(fan_out, fan_in, 5, 5), net.weight(fan_out), pads=pads)
        x = net.add("MaxPool", net.add("Relu", x), **pool)
    x = net.add("Flatten", x)
    for i, (fan_in, fan_out) in enumerate(((400, 120), (120, 84), (84, 10))):
        x = net.add("Gemm", x, net.weight(fan_in, fan_out), net.weight(fan_out))
        x = net.add("Relu", x) if i < 2 else x
    return net.model(["N", 1, 28, 28], x, 10)


def resnet(stages: int, width: int) -> Any:
    """Two basic blocks a stage, as ResNet-18 has four of them."""
    net = Net()
    x = net.add("Relu", net.conv("x", (3, width), 7, 2))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    last = width
    for stage in range(stages):
        now = width * 2**stage
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = net.add("Relu", net.conv(x, (last, now), 3, stride))
            y = net.conv(y, (now, now), 3)
            side = x if stride == 1 and last == now else net.conv(x, (last, now), 1, stride)
            x, last = net.add("Relu", net.add("Add", y, side)), now
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.model(["N", 3, 32, 32], net.add("Gemm", x, net.weight(last, 10), net.weight(10)), 10)


def chain(nodes: int) -> Any:
    """Activations one after the other, between two products."""
    net = Net()
    x = net.add("MatMul", "x", net.weight(4, 4))
    for _ in range(nodes // 2):
        x = net.add("Tanh", net.add("Neg", x))
    return net.model(["N", 4], net.add("MatMul", x, net.weight(4, 1)), 1)


def making(model: Any, batch: tuple[Any, Any], rounds: int) -> tuple[float, float, float]:
    """Seconds to make a step and run it once, where it was built before, and times a bare session."""
    import onnxruntime

    from onnxcustom import TrainingStep

    content, ours, kept, ratios = model.SerializeToString(), [], [], []
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = common.processors()
    with tempfile.TemporaryDirectory() as folder:
        TrainingStep(model, "squared_error", cache_dir=folder)
        for _ in range(rounds):
            begin = time.perf_counter()
            TrainingStep(model, "squared_error").run(*batch)
            middle = time.perf_counter()
            TrainingStep(model, "squared_error", cache_dir=folder).run(*batch)
            after = time.perf_counter()
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            session.run(None, {"x": batch[0]})
            ours.append(middle - begin)
            kept.append(after - middle)
            ratios.append(ours[-1] / (time.perf_counter() - after))
    return statistics.median(ours), statistics.median(kept), statistics.median(ratios)


# -- the code -------------------------------------------------------------------------------------


def trees() -> dict[str, ast.Module]:
    """Syntax trees of the package's files by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts)] = ast.parse(path.read_text())
    return found


def lines_by_folder() -> Counter[str]:
    """Lines of code, comments and blanks by folder of the package."""
    counts = Counter[str]()
    for path in PACKAGE.rglob("*.py"):
        inner = path.relative_to(PACKAGE).parts
        counts[inner[0] if len(inner) > 1 else "."] += len(path.read_text().splitlines())
    return counts


def imported(name: str, tree: ast.Module, modules: set[str]) -> Iterator[str]:
    """Files of the package that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f for a in node.names if (f := _file(a.name, modules)))
        elif isinstance(node, ast.ImportFrom):
            package = name.removesuffix(".__init__") if name.endswith("__init__") else name.rpartition(".")[0]
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                file = _file(f"{base}.{alias.name}", modules) or _file(base, modules)
                if file:
                    yield file


def _file(module: str, modules: set[str]) -> str | None:
    return next((m for m in (module, f"{module}.__init__") if m in modules), None)


def arrows(found: dict[str, ast.Module]) -> dict[str, set[str]]:
    """What each file imports of the package: inside of functions, and for type checkers only, too."""
    return {name: set(imported(name, tree, set(found))) for name, tree in found.items()}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Sets of files each of which imports all the others, by way of others of the set."""
    reach: dict[str, set[str]] = {}
    for start in arrows:
        seen, todo = set[str](), [start]
        while todo:
            for other in arrows.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        reach[start] = seen
    found = {frozenset(b for b in reach[a] if a in reach[b]) for a in arrows if a in reach[a]}
    return sorted(sorted(circle) for circle in found)


def longest(found: dict[str, ast.Module], kinds: tuple[type, ...]) -> list[tuple[int, str]]:
    """Lines of classes or functions and their names, the longest first."""
    sizes = []
    for name, tree in found.items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                lines = int(node.end_lineno or 0) - int(node.lineno) + 1  # type: ignore[attr-defined]
                sizes.append((lines, f"{name}.{node.name}"))  # type: ignore[attr-defined]
    return sorted(sizes, reverse=True)


# -- report ----------------------------------------------------------------------------------------


def run(options: argparse.Namespace, result: Result) -> None:
    """Print the four tables."""
    for name, number in traced_fit().items():
        result.say(f"{name + ' in a fit':<40}{number:>8}")
        result.rows.append({"what": name, "number": number})
    base = import_seconds("numpy")
    for module in ("onnxcustom", "onnxcustom.training.estimators"):
        seconds = import_seconds(module)
        result.say(f"{'import ' + module + ', s, / numpy':<40}{seconds:>8.2f}{seconds / base:>8.1f}")
        result.rows.append({"what": f"import {module}", "seconds": seconds, "ratio": seconds / base})
    heads = f"{'cache_dir':>20}{'/ bare session':>16}"
    result.say(f"\n{'making a step and running it, s':<40}{heads}")
    for name, (model, batch) in models(options.quick).items():
        seconds, kept, ratio = making(model, batch(), 1 if options.quick else 3)
        result.say(f"{name:<40}{seconds:>8.2f}{kept:>12.2f}{ratio:>16.1f}")
        result.rows.append({"what": f"make {name}", "seconds": seconds, "kept": kept, "ratio": ratio})
    shape(result)


def shape(result: Result) -> None:
    """Print what the code looks like."""
    counts, found = lines_by_folder(), trees()
    result.say(f"\n{'lines':<40}{counts.total():>8}")
    for folder, lines in counts.most_common():
        result.say(f"  {folder:<38}{lines:>8}")
    rings = circles(arrows(found))
    result.say(f"{'circles of imports':<40}{len(rings):>8}")
    result.rows += [{"what": "lines", **counts}, {"what": "circles", "files": rings}]
    for kinds, limit in (((ast.ClassDef,), 350), ((ast.FunctionDef, ast.AsyncFunctionDef), 50)):
        sizes = longest(found, kinds)
        over = sum(lines > limit for lines, _ in sizes)
        what = "classes" if ast.ClassDef in kinds else "functions"
        result.say(f"{f'{what} over {limit} lines':<40}{over:>8}   longest {sizes[0][0]}: {sizes[0][1]}")
        result.rows.append({"what": what, "over": over, "longest": sizes[:5]})


if __name__ == "__main__":
    common.main(run, common.parser(__doc__))

"""Forward and backward of one batch: engine 'onnx' against engine 'ort' and PyTorch autograd.

All compute the same gradients with respect to every weight, from the same weights and the same batch in
float32; the first run compares the numbers. They run in turns; the tables show medians and, as ratio, how
many times as long as engine 'onnx' each took. '-' means that the contestant cannot differentiate the model
or is not installed.

    python benchmarks/bench_gradient.py --threads 1
    python benchmarks/bench_gradient.py --nodes
    python benchmarks/bench_gradient.py --build
    python benchmarks/bench_gradient.py --memory
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser

HEADER = '<ir_version: 8, opset_import: ["": 18]>'


@dataclasses.dataclass
class Network:
    """A model, a batch, and the same model for PyTorch."""

    name: str
    model: onnx.ModelProto
    batch: dict[str, np.ndarray]
    torch: Callable[[dict, dict], object]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="processors to use, on Linux [default: all]")
    parser.add_argument(
        "--seconds", type=float, default=2, help="time for each contestant [default: %(default)s]"
    )
    parser.add_argument("--only", nargs="*", help="names of networks to measure [default: all]")
    parser.add_argument("--nodes", action="store_true", help="count nodes, of any and of one batch, instead")
    parser.add_argument("--build", action="store_true", help="measure how long graphs take to build instead")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- networks ---------------------------------------------------------------------------------


def with_weights(text: str, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A model in ONNX text with random initializers."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(HEADER + text)
    for name, shape in shapes.items():
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = rng.standard_normal(shape) / np.sqrt(max(fan, 1))
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return model


def mlp(sizes: tuple[int, ...], batch: int) -> Network:
    """Layers of Gemm-like products with Relu between them."""
    lines, shapes, last = [], {}, "x"
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"w{i}": (fan_in, fan_out), f"b{i}": (fan_out,)}
        lines += [f"p{i} = MatMul({last}, w{i})", f"h{i} = Add(p{i}, b{i})"]
        last = f"h{i}"
        if i < len(sizes) - 2:
            lines.append(f"r{i} = Relu(h{i})")
            last = f"r{i}"
    body = " ".join(lines)
    text = f"net (float[N, {sizes[0]}] x) => (float[N, {sizes[-1]}] y) {{ {body} y = Identity({last}) }}"

    def forward(x: dict, w: dict) -> object:
        import torch

        h = x["x"]
        for i in range(len(sizes) - 1):
            h = torch.addmm(w[f"b{i}"], h, w[f"w{i}"])
            h = torch.relu(h) if i < len(sizes) - 2 else h
        return h

    x = np.random.default_rng(1).standard_normal((batch, sizes[0])).astype(np.float32)
    return Network(
        f"MLP {'-'.join(map(str, sizes))}, batch {batch}", with_weights(text, shapes), {"x": x}, forward
    )


def lenet() -> Network:
    """LeNet-5 on 28x28 images."""
    text = """net (float[N, 1, 28, 28] x) => (float[N, 10] y) {
        c1 = Conv <pads = [2, 2, 2, 2]> (x, k1, a1)  r1 = Relu(c1)
        m1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
        c2 = Conv (m1, k2, a2)  r2 = Relu(c2)
        m2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
        f = Flatten (m2)
        g1 = Gemm (f, w1, b1)  t1 = Relu(g1)  g2 = Gemm (t1, w2, b2)  t2 = Relu(g2)
        y = Gemm (t2, w3, b3) }"""
    shapes = {
        "k1": (6, 1, 5, 5), "a1": (6,), "k2": (16, 6, 5, 5), "a2": (16,), "w1": (400, 120), "b1": (120,),
        "w2": (120, 84), "b2": (84,), "w3": (84, 10), "b3": (10,),
    }  # fmt: skip

    def forward(x: dict, w: dict) -> object:
        import torch.nn.functional as F

        h = F.max_pool2d(F.relu(F.conv2d(x["x"], w["k1"], w["a1"], padding=2)), 2)
        h = F.max_pool2d(F.relu(F.conv2d(h, w["k2"], w["a2"])), 2).flatten(1)
        h = F.relu(h @ w["w1"] + w["b1"])
        return F.relu(h @ w["w2"] + w["b2"]) @ w["w3"] + w["b3"]

    x = np.random.default_rng(1).standard_normal((32, 1, 28, 28)).astype(np.float32)
    return Network("LeNet 28x28, batch 32", with_weights(text, shapes), {"x": x}, forward)


def residual() -> Network:
    """A residual block of two convolutions with 64 channels on 28x28."""
    text = """net (float[N, 64, 28, 28] x) => (float[N, 64, 28, 28] y) {
        c1 = Conv <pads = [1, 1, 1, 1]> (x, k1, a1)  r1 = Relu(c1)
        c2 = Conv <pads = [1, 1, 1, 1]> (r1, k2, a2)  s = Add(c2, x)  y = Relu(s) }"""
    shapes = {"k1": (64, 64, 3, 3), "a1": (64,), "k2": (64, 64, 3, 3), "a2": (64,)}

    def forward(x: dict, w: dict) -> object:
        import torch.nn.functional as F

        h = F.relu(F.conv2d(x["x"], w["k1"], w["a1"], padding=1))
        return F.relu(F.conv2d(h, w["k2"], w["a2"], padding=1) + x["x"])

    x = np.random.default_rng(1).standard_normal((8, 64, 28, 28)).astype(np.float32)
    return Network("residual block 64x28x28, batch 8", with_weights(text, shapes), {"x": x}, forward)


def lstm(batch: int) -> Network:
    """One LSTM of 128 units over 64 steps."""
    steps, size = 64, 128
    text = f"""net (float[{steps}, {batch}, {size}] x) => (float[{steps}, 1, {batch}, {size}] y) {{
        y = LSTM <hidden_size = {size}> (x, w, r, b) }}"""
    shapes = {"w": (1, 4 * size, size), "r": (1, 4 * size, size), "b": (1, 8 * size)}

    def forward(x: dict, w: dict) -> object:
        import torch

        # ONNX orders gates i, o, f, c; PyTorch i, f, g, o.
        def gates(v: torch.Tensor) -> torch.Tensor:
            i, o, f, c = v.chunk(4)
            return torch.cat([i, f, c, o])

        bias = w["b"][0].chunk(2)
        weights = [gates(w["w"][0]), gates(w["r"][0]), gates(bias[0]), gates(bias[1])]
        zero = torch.zeros(1, batch, size)
        y = torch._VF.lstm(x["x"], (zero, zero), weights, True, 1, 0.0, False, False, False)[0]
        return y.unsqueeze(1)

    x = np.random.default_rng(1).standard_normal((steps, batch, size)).astype(np.float32)
    name = f"LSTM 64 steps, 128 units, batch {batch}"
    return Network(name, with_weights(text, shapes), {"x": x}, forward)


def transformer() -> Network:
    """A transformer block: width 256, 4 heads, 128 tokens, batch 8."""
    b, t, d, h = 8, 128, 256, 4
    text = f"""net (float[B, {t}, {d}] x) => (float[B, {t}, {d}] y) <
        int64[4] split = {{0, {t}, {h}, {d // h}}}, int64[3] join = {{0, {t}, {d}}},
        float scale = {{{(d // h) ** -0.5}}}> {{
        n1 = LayerNormalization (x, g1, e1)
        q = MatMul(n1, wq)  k = MatMul(n1, wk)  v = MatMul(n1, wv)
        q4 = Reshape(q, split)  k4 = Reshape(k, split)  v4 = Reshape(v, split)
        qt = Transpose <perm = [0, 2, 1, 3]> (q4)  kt = Transpose <perm = [0, 2, 3, 1]> (k4)
        vt = Transpose <perm = [0, 2, 1, 3]> (v4)
        qk = MatMul(qt, kt)  s = Mul(qk, scale)  p = Softmax <axis = -1> (s)
        a = MatMul(p, vt)  at = Transpose <perm = [0, 2, 1, 3]> (a)  aj = Reshape(at, join)
        o = MatMul(aj, wo)  x1 = Add(x, o)
        n2 = LayerNormalization (x1, g2, e2)
        u = MatMul(n2, wu)  ub = Add(u, bu)  f = Relu(ub)
        w = MatMul(f, wd)  wb = Add(w, bd)  y = Add(x1, wb) }}"""
    shapes = {
        "g1": (d,), "e1": (d,), "wq": (d, d), "wk": (d, d), "wv": (d, d), "wo": (d, d),
        "g2": (d,), "e2": (d,),
        "wu": (d, 4 * d), "bu": (4 * d,), "wd": (4 * d, d), "bd": (d,),
    }  # fmt: skip

    def forward(x: dict, w: dict) -> object:
        import torch.nn.functional as F

        def heads(v: object) -> object:
            return v.reshape(b, t, h, d // h).transpose(1, 2)

        n = F.layer_norm(x["x"], (d,), w["g1"], w["e1"])
        q, k, v = heads(n @ w["wq"]), heads(n @ w["wk"]), heads(n @ w["wv"])
        p = F.softmax(q @ k.transpose(-1, -2) * (d // h) ** -0.5, dim=-1)
        x1 = x["x"] + (p @ v).transpose(1, 2).reshape(b, t, d) @ w["wo"]
        n = F.layer_norm(x1, (d,), w["g2"], w["e2"])
        return x1 + F.relu(n @ w["wu"] + w["bu"]) @ w["wd"] + w["bd"]

    x = np.random.default_rng(1).standard_normal((b, t, d)).astype(np.float32)
    return Network(
        "transformer block 256, 128 tokens, batch 8", with_weights(text, shapes), {"x": x}, forward
    )


NETWORKS = {
    "mlp-small": lambda: mlp((10, 10, 10, 1), 10),
    "mlp-middle": lambda: mlp((100, 100, 100, 1), 32),
    "mlp-wide": lambda: mlp((100, 200, 200, 1), 200),
    "mlp-large": lambda: mlp((784, 1024, 1024, 1), 512),
    "lenet": lenet,
    "residual": residual,
    "lstm": lambda: lstm(8),
    "lstm-32": lambda: lstm(32),
    "transformer": transformer,
}


# -- contestants ------------------------------------------------------------------------------


def seed_of(network: Network) -> np.ndarray:
    """The gradient coming in."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        network.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    y = session.run(None, network.batch)[0]
    return np.random.default_rng(2).standard_normal(y.shape).astype(np.float32)


def by_engine(network: Network, engine: str) -> tuple[Callable[[], list[np.ndarray]], int] | None:
    """Forward and backward as one graph with IO binding, and its number of nodes."""
    from onnxcustom import gradient_graph, weights
    from onnxcustom.exceptions import OnnxCustomError
    from onnxcustom.gradient import GradientNames
    from onnxcustom.runtime import Binding, create_session, to_ortvalue

    found = weights(network.model)
    try:
        graph = gradient_graph(network.model, wrt=list(found), inputs=[], engine=engine)
    except OnnxCustomError:
        return None
    names = GradientNames.of(graph)
    binding = Binding(create_session(graph))
    for name, value in {**network.batch, **found, next(iter(names.seeds.values())): seed_of(network)}.items():
        binding.bind_input(name, value)
    gradients = [np.empty_like(found[name]) for name in names.gradients]
    for name, gradient in zip(names.gradients.values(), gradients, strict=True):
        binding.bind_output(name, to_ortvalue(gradient))

    def run() -> list[np.ndarray]:
        binding.execute()
        return gradients

    return run, len(graph.graph.node)


def by_torch(network: Network) -> Callable[[], list[np.ndarray]] | None:
    """PyTorch autograd; None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    from onnxcustom import weights

    torch.set_num_threads(processors())
    x = {k: torch.from_numpy(v) for k, v in network.batch.items()}
    w = {k: torch.tensor(v, requires_grad=True) for k, v in weights(network.model).items()}
    seed = torch.from_numpy(seed_of(network))

    def run() -> list[np.ndarray]:
        y = network.torch(x, w)
        return [g.numpy() for g in torch.autograd.grad(y, list(w.values()), seed)]

    return run


def contestant(network: Network, name: str) -> Callable[[], object] | None:
    """One contestant by name."""
    if name == "PyTorch":
        return by_torch(network)
    found = by_engine(network, name)
    return found and found[0]


def print_peak(key: str, name: str) -> None:
    """Megabytes by which the first run raises the peak of this process; to be called in a fresh one."""
    function = contestant(NETWORKS[key](), name)
    if function is not None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def memory_table(arguments: argparse.Namespace) -> None:
    """Peak memory of one forward and backward run, each in a process of its own."""
    names = ("onnx", "ort", "PyTorch")
    head = "".join(f"{name:>10}" for name in names)
    print(f"MB by which the first run raises the peak\n\n{'network':<44}{head}")
    for key in arguments.only or NETWORKS:
        line = f"{NETWORKS[key]().name:<44}"
        for name in names:
            command = [sys.executable, __file__, "--peak", key, name]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            line += f"{float(found[-1]):>10.1f}" if found else f"{'-':>10}"
        print(line)


def measure(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of one run of each, taken in turns."""
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    repeats = {}
    for name, function in functions.items():
        function()
        begin = time.perf_counter()
        function()
        repeats[name] = max(1, int(seconds / 10 / max(time.perf_counter() - begin, 1e-7)))
    for _ in range(10):
        for name, function in functions.items():
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                function()
            rounds[name].append((time.perf_counter() - begin) / repeats[name])
    return {name: statistics.median(times) for name, times in rounds.items()}


def compare(network: Network, functions: dict[str, Callable[[], list[np.ndarray]]]) -> None:
    """All contestants must agree before they are timed."""
    results = {name: [np.array(g) for g in function()] for name, function in functions.items()}
    first = next(iter(results.values()))
    for name, result in results.items():
        for a, b in zip(first, result, strict=True):
            # In the norm: rounding may put single numbers on the other side of a Relu.
            assert np.linalg.norm(a - b) <= 5e-3 * np.linalg.norm(a) + 1e-6, (
                f"{network.name}: {name} disagrees"
            )


def table(arguments: argparse.Namespace) -> None:
    """Time and nodes of every network."""
    head = f"{'network':<44}{'onnx, ms':>10}{'nodes':>7}{'ort, ratio':>12}{'nodes':>7}{'PyTorch, ratio':>16}"
    print(f"{processors()} threads, float32, medians of 10 rounds\n\n{head}")
    for key in arguments.only or NETWORKS:
        network = NETWORKS[key]()
        ours, theirs, eager = by_engine(network, "onnx"), by_engine(network, "ort"), by_torch(network)
        assert ours is not None
        functions = {"onnx": ours[0]}
        functions |= {"ort": theirs[0]} if theirs else {}
        functions |= {"PyTorch": eager} if eager else {}
        compare(network, functions)
        times = measure(functions, arguments.seconds)
        ratios = {n: f"{times[n] / times['onnx']:.2f}" if n in times else "-" for n in ("ort", "PyTorch")}
        print(
            f"{network.name:<44}{1000 * times['onnx']:>10.3f}{ours[1]:>7}{ratios['ort']:>12}"
            f"{theirs[1] if theirs else '-':>7}{ratios['PyTorch']:>16}"
        )


def count_nodes(network: Network, engine: str, batch: int | None) -> int | None:
    """Nodes of the gradient by all weights, for a batch of any size or of one."""
    from onnxcustom import gradient_graph
    from onnxcustom.exceptions import OnnxCustomError

    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if batch is not None and first.dim_param:
            first.dim_value = batch
    try:
        return len(gradient_graph(model, inputs=[], engine=engine).graph.node)
    except OnnxCustomError:
        return None


def node_table(arguments: argparse.Namespace) -> None:
    """Nodes of every network's gradient, the forward part included."""
    engines = ("onnx", "ort")
    head = "".join(f"{f'{engine}, {batch}':>14}" for batch in ("any", "one") for engine in engines)
    print(f"Nodes, for a batch of any size and of one\n\n{'network':<44}{'model':>7}{head}")
    for key in arguments.only or NETWORKS:
        network = NETWORKS[key]()
        size = len(next(iter(network.batch.values())))
        counts = [count_nodes(network, engine, batch) for batch in (None, size) for engine in engines]
        line = "".join(f"{'-' if count is None else count:>14}" for count in counts)
        print(f"{network.name:<44}{len(network.model.graph.node):>7}{line}")


def build_table() -> None:
    """How long it takes to build gradient graphs of ever longer models."""
    from onnxcustom import gradient_graph

    print(f"{'nodes':>7}{'seconds':>9}{'ms a node':>11}")
    for layers in (33, 100, 333, 1000, 3333):
        model = mlp((4,) * (layers + 1), 2).model
        begin = time.perf_counter()
        gradient_graph(model, engine="onnx")
        seconds = time.perf_counter() - begin
        nodes = len(model.graph.node)
        print(f"{nodes:>7}{seconds:>9.2f}{1000 * seconds / nodes:>11.3f}")


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        # Before any library is imported: each sizes its pool by what the process may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    if arguments.peak:
        print_peak(*arguments.peak)
    elif arguments.memory:
        memory_table(arguments)
    elif arguments.nodes:
        node_table(arguments)
    elif arguments.build:
        build_table()
    else:
        table(arguments)


if __name__ == "__main__":
    main()

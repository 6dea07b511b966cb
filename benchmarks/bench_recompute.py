"""Memory and time of TrainingStep(recompute=True) on models with many activations.

Peak memory that the first steps add to a process that has the model and the data, each in a process of its
own; time of a step, taken in turns in one process. SGD, float32, the same batches. The losses of the first
steps are compared.

    python -m benchmarks.bench_recompute
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from . import common
from .common import Contender, Result, cells

STEPS = 3
RATE = 1e-4


def _parsed(text: str, shapes: dict[str, tuple[int, ...]], scale: float = 0.05) -> Any:
    """A model of ONNX text and of weights of these shapes: ones where a name begins with g, else normal."""
    import numpy as np
    import onnx.numpy_helper
    import onnx.parser

    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')
    for name, shape in shapes.items():
        array = np.ones(shape) if name[0] == "g" else rng.normal(0, scale, shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return model


def mlp(rows: int, columns: int, hidden: int, layers: int) -> tuple[Any, Any, Any]:
    """Layers of a product, a gelu as PyTorch exports it, and a gate x sigmoid(x)."""
    lines, shapes, last = [], {}, "x"
    for k in range(layers):
        shapes |= {f"w{k}": (columns if k == 0 else hidden, hidden), f"b{k}": (hidden,)}
        lines += [
            f"z{k} = Gemm({last}, w{k}, b{k}) q{k} = Div(z{k}, root) e{k} = Erf(q{k}) o{k} = Add(e{k}, one)",
            f"m{k} = Mul(z{k}, o{k}) n{k} = Mul(m{k}, half) s{k} = Sigmoid(n{k}) a{k} = Mul(n{k}, s{k})",
        ]
        last = f"a{k}"
    shapes["v"] = (hidden, 1)
    text = f"""net (float[N, {columns}] x) => (float[N, 1] y)
        <float root = {{1.4142135}}, float one = {{1}}, float half = {{0.5}}> {{ {" ".join(lines)}
        y = MatMul({last}, v) }}"""
    X, y = common.regression(rows, columns)
    return _parsed(text, shapes), X, y


def transformer(rows: int, tokens: int, width: int, layers: int) -> tuple[Any, Any, Any]:
    """Blocks of attention and a layer of four times the width, with normalizations, gelu and dropout."""
    import numpy as np

    heads = 4
    size = width // heads
    lines: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    last = "x"
    for k in range(layers):
        shapes |= {f"{n}{k}": (width, width) for n in ("q", "k", "v", "o")}
        shapes |= {f"u{k}": (width, 4 * width), f"d{k}": (4 * width, width), f"b{k}": (4 * width,)}
        shapes |= {f"g{k}": (width,), f"e{k}": (width,), f"gg{k}": (width,), f"ee{k}": (width,)}
        lines.append(f"""
            n{k} = LayerNormalization({last}, g{k}, e{k})
            qa{k} = MatMul(n{k}, q{k}) ka{k} = MatMul(n{k}, k{k}) va{k} = MatMul(n{k}, v{k})
            qb{k} = Reshape(qa{k}, split) kb{k} = Reshape(ka{k}, split) vb{k} = Reshape(va{k}, split)
            qc{k} = Transpose <perm = [0, 2, 1, 3]> (qb{k}) kc{k} = Transpose <perm = [0, 2, 3, 1]> (kb{k})
            vc{k} = Transpose <perm = [0, 2, 1, 3]> (vb{k})
            sa{k} = MatMul(qc{k}, kc{k}) sb{k} = Mul(sa{k}, scale) sc{k} = Softmax <axis = -1> (sb{k})
            sd{k} = Dropout(sc{k}, ratio)
            aa{k} = MatMul(sd{k}, vc{k}) ab{k} = Transpose <perm = [0, 2, 1, 3]> (aa{k})
            ac{k} = Reshape(ab{k}, join) ad{k} = MatMul(ac{k}, o{k}) ae{k} = Dropout(ad{k}, ratio)
            ra{k} = Add({last}, ae{k})
            na{k} = LayerNormalization(ra{k}, gg{k}, ee{k})
            fa{k} = MatMul(na{k}, u{k}) fb{k} = Add(fa{k}, b{k}) fc{k} = Div(fb{k}, root) fd{k} = Erf(fc{k})
            fe{k} = Add(fd{k}, one) ff{k} = Mul(fb{k}, fe{k}) fg{k} = Mul(ff{k}, half)
            fh{k} = MatMul(fg{k}, d{k}) fi{k} = Dropout(fh{k}, ratio)
            rb{k} = Add(ra{k}, fi{k})""")
        last = f"rb{k}"
    text = f"""net (float[N, {tokens}, {width}] x) => (float[N, {tokens}, {width}] y) <
        int64[4] split = {{0, {tokens}, {heads}, {size}}}, int64[3] join = {{0, {tokens}, {width}}},
        float scale = {{{size**-0.5}}}, float ratio = {{0.1}}, float root = {{1.4142135}}, float one = {{1}},
        float half = {{0.5}}> {{ {" ".join(lines)} y = Identity({last}) }}"""
    X = np.random.default_rng(1).standard_normal((rows, tokens, width)).astype(np.float32)
    return _parsed(text, shapes), X, np.tanh(X)


def residual(rows: int, channels: int, side: int, blocks: int) -> tuple[Any, Any, Any]:
    """Residual blocks of two convolutions, each with BatchNormalization, and Relu."""
    import numpy as np

    lines: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    last = "x"
    for k in range(blocks):
        for i in "ab":
            shapes |= {f"k{i}{k}": (channels, channels, 3, 3), f"g{i}{k}": (channels,)}
            shapes |= {f"e{i}{k}": (channels,), f"m{i}{k}": (channels,), f"gv{i}{k}": (channels,)}
        lines.append(f"""
            ca{k} = Conv <pads = [1, 1, 1, 1]> ({last}, ka{k})
            ba{k} = BatchNormalization(ca{k}, ga{k}, ea{k}, ma{k}, gva{k}) ra{k} = Relu(ba{k})
            cb{k} = Conv <pads = [1, 1, 1, 1]> (ra{k}, kb{k})
            bb{k} = BatchNormalization(cb{k}, gb{k}, eb{k}, mb{k}, gvb{k})
            s{k} = Add(bb{k}, {last}) rb{k} = Relu(s{k})""")
        last = f"rb{k}"
    shape = f"float[N, {channels}, {side}, {side}]"
    text = f"net ({shape} x) => ({shape} y) {{ {' '.join(lines)} y = Identity({last}) }}"
    X = np.random.default_rng(1).standard_normal((rows, channels, side, side)).astype(np.float32)
    return _parsed(text, shapes), X, np.tanh(X)


# Model and data, options of the step.
CASES: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], dict[str, Any]]] = {
    "MLP 784-512 x 6, gelu and gates, batch 4096": (lambda: mlp(4096, 784, 512, 6), {}),
    "transformer 128 x 4, 64 tokens, dropout, batch 16": (
        lambda: transformer(16, 64, 128, 4),
        {"dropout": "on"},
    ),
    "residual CNN 16 x 8, 28x28, batch 16": (lambda: residual(16, 16, 28, 4), {}),
    "residual CNN, statistics of the batch": (lambda: residual(16, 16, 28, 4), {"batch_norm": "update"}),
}
QUICK: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], dict[str, Any]]] = {
    "transformer": (lambda: transformer(2, 3, 8, 1), {"dropout": "on"}),
}
WAYS = {"kept": False, "recomputed": True}


def contender(case: str, way: str) -> tuple[Contender, int]:
    """A step, and how many nodes its graph has."""
    from onnxcustom import TrainingStep
    from onnxcustom.runtime import to_ortvalue

    make, options = (CASES | QUICK)[case]
    model, X, y = make()
    step = TrainingStep(model, learning_rate=RATE, recompute=WAYS[way], **options)
    values = [to_ortvalue(X), to_ortvalue(y)]
    first = {name: array.copy() for name, array in step.weights().items()}

    def run() -> list[float]:
        return [step.run_batch(values) for _ in range(STEPS)]

    return Contender(run, STEPS, lambda: step.set_weights(first)), len(step.recipe.graph(False).model.graph)


def worker(case: str, way: str) -> None:
    """Print the megabytes that steps add."""
    found, _ = contender(case, way)
    before = common.forget_peak()
    found.run()
    print(json.dumps(common.peak_megabytes() - before))


def megabytes(case: str, way: str) -> float:
    """What steps add, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_recompute", "--worker"]
    command += [str(common.processors()), case, way]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=common.ROOT).stdout
    return float(json.loads(output.splitlines()[-1]))


def run(options: argparse.Namespace, result: Result) -> None:
    """One line for each model."""
    import numpy as np

    result.say(
        f"a step that keeps activations and one that computes them again, {common.processors()} threads"
    )
    heads = ("nodes", "nodes", "MB", "MB", "ratio", "ms", "time ratio")
    result.say(f"{'':<52}{cells(heads, 11)}")
    for case in QUICK if options.quick else CASES:
        found = {way: contender(case, way) for way in WAYS}
        losses = {way: np.asarray(made.run()) for way, (made, _) in found.items()}
        if not np.allclose(losses["kept"], losses["recomputed"], rtol=1e-4):
            raise AssertionError(f"{case}: losses differ: {losses}")
        times = common.measure({way: made for way, (made, _) in found.items()}, options.seconds)
        memory = {way: megabytes(case, way) for way in WAYS}
        row = {
            "case": case,
            "threads": common.processors(),
            "nodes": {way: nodes for way, (_, nodes) in found.items()},
            "megabytes": memory,
            "seconds": {way: statistics.median(times[way]) for way in WAYS},
            "time_ratio": common.ratios(times, "recomputed", "kept"),
        }
        result.rows.append(row)
        texts = [
            *map(str, row["nodes"].values()),
            *(f"{m:.1f}" for m in memory.values()),
            f"{memory['recomputed'] / max(memory['kept'], 0.1):.2f}",
            f"{1e3 * row['seconds']['kept']:.2f}",
            f"{row['time_ratio']['median']:.2f}",
        ]
        result.say(f"{case:<52}{cells(texts, 11)}")


def parser() -> argparse.ArgumentParser:
    made = common.parser(__doc__)
    made.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return made


if __name__ == "__main__":
    asked = parser().parse_args().worker
    if asked:
        common.pin(int(asked[0]))
        worker(*asked[1:3])
    else:
        common.main(run, parser())

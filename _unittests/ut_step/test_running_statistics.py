"""Running statistics against NumPy and PyTorch: over opsets, shapes, engines, pickles and shared tensors."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper as oh
from onnx import numpy_helper as nh

from onnxcustom import TrainingStep, load, save, weights
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.runtime import create_session

ENGINES = ["onnx", pytest.param("ort", marks=pytest.mark.ort)]
OPSETS = range(7, min(23, onnx.defs.onnx_opset_version()) + 1)
RATE = 0.05


def start(width: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Operands of two normalizations, of which no two are equal."""
    rng = np.random.default_rng(seed)
    low = {"mean": -1.0, "var": 0.5, "scale": 0.5, "bias": -1.0}
    return {
        f"{name}{k}": rng.uniform(low[name], 2, size=width).astype(np.float32) for k in (1, 2) for name in low
    }


def network(tensors: dict[str, np.ndarray], shape: list, momentum: float, opset: int) -> onnx.ModelProto:
    """Normalization, Tanh, normalization."""
    info = [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    names = ("scale", "bias", "mean", "var")
    nodes = [
        oh.make_node("BatchNormalization", ["x", *(f"{n}1" for n in names)], ["h"], momentum=momentum),
        oh.make_node("Tanh", ["h"], ["t"]),
        oh.make_node("BatchNormalization", ["t", *(f"{n}2" for n in names)], ["y"], momentum=momentum),
    ]
    graph = oh.make_graph(nodes, "two", info[:1], info[1:], [nh.from_array(a, n) for n, a in tensors.items()])
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=min(8, 3 + opset // 3))


def batches(shape: tuple[int, ...], n: int = 10) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        (rng.normal(5, 3, size=shape).astype(np.float32), rng.normal(size=shape).astype(np.float32))
        for _ in range(n)
    ]


class Reference:
    """The same network in float64 NumPy; its gradients are written out."""

    def __init__(self, tensors: dict[str, np.ndarray], momentum: float) -> None:
        self.momentum = momentum
        self.tensors = {name: array.astype(np.float64) for name, array in tensors.items()}

    def step(self, x: np.ndarray, y: np.ndarray, rate: float = RATE) -> float:
        first = self._forward(x.astype(np.float64), 1)
        t = np.tanh(first[0])
        second = self._forward(t, 2)
        loss = 0.5 * np.sum((second[0] - y) ** 2) / len(x)
        grads: dict[str, np.ndarray] = {}
        dt = self._backward((second[0] - y) / len(x), 2, second, grads)
        self._backward(dt * (1 - t * t), 1, first, grads)
        for name, gradient in grads.items():
            self.tensors[name] = self.tensors[name] - rate * gradient
        return float(loss)

    def _forward(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        axes = tuple(i for i in range(x.ndim) if i != 1)
        column = (-1, *[1] * (x.ndim - 2))
        mean, var = x.mean(axes), x.var(axes)
        for name, seen in (("mean", mean), ("var", var)):
            old = self.tensors[f"{name}{k}"]
            self.tensors[f"{name}{k}"] = self.momentum * old + (1 - self.momentum) * seen
        deviation = np.sqrt(var + 1e-5).reshape(column)
        normal = (x - mean.reshape(column)) / deviation
        scale, bias = self.tensors[f"scale{k}"], self.tensors[f"bias{k}"]
        return normal * scale.reshape(column) + bias.reshape(column), normal, deviation

    def _backward(self, dy: np.ndarray, k: int, made: tuple, grads: dict[str, np.ndarray]) -> np.ndarray:
        _, normal, deviation = made
        axes = tuple(i for i in range(dy.ndim) if i != 1)
        grads[f"bias{k}"], grads[f"scale{k}"] = dy.sum(axes), (dy * normal).sum(axes)
        dn = dy * self.tensors[f"scale{k}"].reshape(-1, *[1] * (dy.ndim - 2))
        mean = dn.mean(axes, keepdims=True) + normal * (dn * normal).mean(axes, keepdims=True)
        return (dn - mean) / deviation


def compare(step: TrainingStep, tensors: dict[str, np.ndarray], **tolerance: float) -> None:
    found = {**step.weights(), **step.statistics()}
    assert set(found) == set(tensors)
    for name, array in found.items():
        np.testing.assert_allclose(
            array, tensors[name], err_msg=name, **{"rtol": 2e-4, "atol": 2e-5, **tolerance}
        )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("opset", OPSETS)
def test_ten_steps(opset: int, engine: str) -> None:
    momentum = [0.5, 0.9, 1.0, 0.75][opset % 4]
    # Two of four ranks, others at the next opset and with the other engine.
    for rank in (2, 4) if (opset + (engine == "ort")) % 2 else (3, 5):
        width = [1, 2, 3, 17, 64][(opset + rank) % 5]
        shape = (12, width, *range(2, rank))
        tensors = start(width, opset)
        model = network(tensors, ["N", width, *([None] * (rank - 2))], momentum, opset)
        step = TrainingStep(
            model, "squared_error", "sgd", learning_rate=RATE, batch_norm="update", engine=engine
        )
        reference = Reference(tensors, momentum)
        for x, y in batches(shape):
            np.testing.assert_allclose(step.run(x, y), reference.step(x, y), rtol=1e-3)
            compare(step, reference.tensors)


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_trained_model_has_them(optimizer, passes, tmp_path):
    tensors = start(3)
    model = network(tensors, ["N", 3, 4], 0.5, 15)
    step = TrainingStep(model, optimizer=optimizer, learning_rate=RATE, batch_norm="update", passes=passes)
    for x, y in batches((8, 3, 4)):
        step.run(x, y)
    save(step.trained_model(), tmp_path / "trained.onnx")
    trained = load(tmp_path / "trained.onnx")
    found = {t.name: nh.to_array(t) for t in trained.graph.initializer}
    for name, array in {**step.weights(), **step.statistics()}.items():
        np.testing.assert_array_equal(found[name], array)
        assert not np.array_equal(array, tensors[name])
    wanted = create_session(trained).run(None, {"x": x})[0]
    np.testing.assert_allclose(step.predict(x)["y"], wanted, rtol=1e-5, atol=1e-5)
    again = TrainingStep(trained, optimizer=optimizer, learning_rate=RATE, batch_norm="frozen")
    np.testing.assert_allclose(again.predict(x)["y"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["pickle", "checkpoint", "take_over"])
def test_going_on_in_mid_run(how):
    def make() -> TrainingStep:
        model = network(start(3), ["N", 3], 0.5, 17)
        return TrainingStep(model, optimizer="adam", learning_rate=RATE, batch_norm="update")

    step, reference = make(), make()
    for x, y in batches((8, 3))[:4]:
        step.run(x, y)
        reference.run(x, y)
    if how == "pickle":
        step = pickle.loads(pickle.dumps(step))
    else:
        other, step = step, make()
        if how == "checkpoint":
            step.load_state_dict(*other.state_dict())
        else:
            step.take_over(other)
    for x, y in batches((8, 3))[4:]:
        assert step.run(x, y) == reference.run(x, y)
    for name, array in reference.statistics().items():
        np.testing.assert_array_equal(step.statistics()[name], array)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_batch_counts_where_gradients_are_accumulated(engine):
    from onnxcustom.optim import create

    tensors = start(4)
    model = network(tensors, ["N", 4], 0.75, 13)
    step = TrainingStep(
        model, optimizer=create("sgd", accumulate=3), learning_rate=RATE, batch_norm="update", engine=engine
    )
    reference = Reference(tensors, 0.75)
    for x, y in batches((6, 4))[:2]:  # no update yet
        step.run(x, y)
        reference.step(x, y, rate=0)
        compare(step, reference.tensors)


def test_a_batch_that_is_left_out_moves_nothing():
    from onnxcustom.optim import create

    tensors = start(2)
    model = network(tensors, ["N", 2], 0.5, 17)
    step = TrainingStep(model, optimizer=create("sgd", skip_nonfinite=True), batch_norm="update")
    step.run(np.eye(4, 2, dtype=np.float32), np.full((4, 2), 3e38, np.float32))
    assert step.skipped == 1
    compare(step, tensors, rtol=0, atol=0)


def test_unknown_rank():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 2, 3] x) => (float[N, 2, 3] y) <float[2] s = {1, 2}, float[2] b = {0, 1},
        float[2] mean = {0, 0}, float[2] var = {1, 1}, bool[3] all = {1, 1, 1}> {
        f = Shape (x)  t = Compress <axis = 0> (f, all)  r = Reshape (x, t)
        y = BatchNormalization <momentum = 0.5> (r, s, b, mean, var) }""")
    step = TrainingStep(model, learning_rate=0.0, batch_norm="update")
    x = np.random.default_rng(0).normal(2, 3, size=(5, 2, 3)).astype(np.float32)
    mean, var = x.mean((0, 2)), x.var((0, 2))
    normal = (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5) * np.array([[1], [2]]) + np.array([[0], [1]])
    loss = step.run(x, np.zeros_like(x))
    np.testing.assert_allclose(loss, 0.5 * np.sum(normal**2) / 5, rtol=1e-4)
    np.testing.assert_allclose(step.statistics()["mean"], 0.5 * mean, rtol=1e-4)
    np.testing.assert_allclose(step.statistics()["var"], 0.5 + 0.5 * var, rtol=1e-4)


# -- tensors that are shared -------------------------------------------------------------------------


def shared(opset: int = 17, identity: bool = False) -> onnx.ModelProto:
    """What PyTorch's exporters write of two normalizations that were never trained."""
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
    g (float[N, 3] x) => (float[N, 3] y) <float[3] one = {{1, 1, 1}}, float[3] zero = {{0, 0, 0}}> {{
        h = BatchNormalization <momentum = 0.5> (x, one, zero, MEAN1, VAR1)  t = Tanh (h)
        y = BatchNormalization <momentum = 0.5> (t, one, zero, MEAN2, VAR2) }}"""
    for k in (1, 2):
        if identity:
            copies = f"mean{k} = Identity (zero)  var{k} = Identity (one) h = "
            text = text.replace("h = ", copies, 1)
        text = text.replace(f"MEAN{k}", f"mean{k}" if identity else "zero")
        text = text.replace(f"VAR{k}", f"var{k}" if identity else "one")
    return onnx.parser.parse_model(text)


def apart() -> onnx.ModelProto:
    """The same with statistics of their own."""
    return onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x) => (float[N, 3] y) <float[3] one = {1, 1, 1}, float[3] zero = {0, 0, 0},
        float[3] m1 = {0, 0, 0}, float[3] v1 = {1, 1, 1}, float[3] m2 = {0, 0, 0}, float[3] v2 = {1, 1, 1}> {
        h = BatchNormalization <momentum = 0.5> (x, one, zero, m1, v1)  t = Tanh (h)
        y = BatchNormalization <momentum = 0.5> (t, one, zero, m2, v2) }""")


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("mode", ["frozen", "update"])
@pytest.mark.parametrize("engine", ENGINES)
def test_scale_and_variance_are_one_tensor_in_the_file(mode, identity, engine):
    steps = [
        TrainingStep(model, learning_rate=0.1, batch_norm=mode, engine=engine)
        for model in (shared(identity=identity), apart())
    ]
    for x, y in batches((6, 3)):
        losses = [step.run(x, y) for step in steps]
        assert losses[0] == losses[1]
    assert list(steps[0].weights()) == ["one", "zero"]
    for a, b in zip(steps[0].statistics().values(), steps[1].statistics().values(), strict=True):
        np.testing.assert_array_equal(a, b)
    trained = [step.trained_model() for step in steps]
    outputs = [create_session(model).run(None, {"x": x})[0] for model in trained]
    np.testing.assert_array_equal(*outputs)
    np.testing.assert_allclose(steps[0].predict(x)["y"], outputs[0], rtol=1e-5, atol=1e-5)
    # The trained model has them under the same names, and goes on as it was.
    again = TrainingStep(trained[0], learning_rate=0.1, batch_norm=mode, engine=engine)
    for name, array in steps[0].statistics().items():
        np.testing.assert_array_equal(again.statistics()[name], array)
    if mode == "update":
        moved = {name: array + 1 for name, array in steps[0].statistics().items()}
        steps[0].set_statistics(moved)
        for name, array in moved.items():
            np.testing.assert_array_equal(steps[0].statistics()[name], array)
        steps[0].run(x, y)


def test_a_frozen_scale_stays_where_its_variance_moves():
    step = TrainingStep(shared(), weights=["zero"], learning_rate=0.1, batch_norm="update")
    for x, y in batches((6, 3)):
        step.run(x, y)
    np.testing.assert_array_equal(weights(step.trained_model())["one"], np.ones(3, np.float32))


def test_a_module_applied_twice_has_one_statistic():
    """The second call starts from where the first one left it, as in PyTorch."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 2] x) => (float[N, 2] y) <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 0.5},
        float[2] v = {1, 2}> {
        h = BatchNormalization <momentum = 0.75> (x, s, b, m, v)
        y = BatchNormalization <momentum = 0.75> (h, s, b, m, v) }""")
    step = TrainingStep(model, learning_rate=0.0, batch_norm="update")
    mean, var = np.array([0, 0.5]), np.array([1.0, 2.0])
    for x, y in batches((6, 2)):
        step.run(x, y)
        for _ in range(2):
            seen = x.mean(0), x.var(0)
            mean, var = 0.75 * mean + 0.25 * seen[0], 0.75 * var + 0.25 * seen[1]
            x = (x - seen[0]) / np.sqrt(seen[1] + 1e-5) * np.array([1, 2]) + np.array([0, 1])
        np.testing.assert_allclose(step.statistics()["m"], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(step.statistics()["v"], var, rtol=1e-4)
    assert len(step.trained_model().graph.initializer) == 4


def test_statistics_in_constants_and_functions():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "f": 1]>
    g (float[N, 2] x) => (float[N, 2] y) <float[2] s = {1, 2}, float[2] b = {0, 1}> {
        h = f.Norm (x, s, b)  t = Tanh (h)  y = f.Norm (t, s, b) }
    <domain: "f", opset_import: ["": 17]>
    Norm (x, s, b) => (y) {
        m0 = Constant <value = float[2] {0, 0}> ()  v = Constant <value = float[2] {1, 1}> ()
        m = Identity (m0)
        y = BatchNormalization <momentum = 0.5> (x, s, b, m, v) }""")
    step = TrainingStep(model, learning_rate=0.0, batch_norm="update")
    mean, var = np.zeros(2), np.ones(2)
    for x, y in batches((6, 2), 3):
        step.run(x, y)
        normal = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * np.array([1, 2]) + np.array([0, 1])
        for data in (x, np.tanh(normal)):
            mean, var = 0.5 * mean + 0.5 * data.mean(0), 0.5 * var + 0.5 * data.var(0)
    (found_mean, found_var) = step.statistics().values()
    np.testing.assert_allclose(found_mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found_var, var, rtol=1e-4)
    trained = step.trained_model()
    assert [f.name for f in trained.functions] == ["Norm"]
    wanted = create_session(trained).run(None, {"x": x})[0]
    np.testing.assert_allclose(step.predict(x)["y"], wanted, rtol=1e-4, atol=1e-5)


# -- other forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["frozen", "update"])
def test_outputs_of_a_node_that_trains_by_itself(mode):
    """The running statistics it hands out are read by others."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 2] x) => (float[N, 2] y) <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 0.5},
        float[2] v = {1, 2}> {
        h, rm, rv = BatchNormalization <momentum = 0.75, training_mode = 1> (x, s, b, m, v)
        y = Add (h, rm) }""")
    step = TrainingStep(model, learning_rate=0.0, batch_norm=mode)
    x, y = batches((6, 2))[0]
    mean, var = np.array([0, 0.5]), np.array([1.0, 2.0])
    if mode == "update":
        seen = x.mean(0), x.var(0)
        out = (x - seen[0]) / np.sqrt(seen[1] + 1e-5) * np.array([1, 2]) + np.array([0, 1])
        out = out + 0.75 * mean + 0.25 * seen[0]
    else:
        out = (x - mean) / np.sqrt(var + 1e-5) * np.array([1, 2]) + np.array([0, 1]) + mean
    np.testing.assert_allclose(step.run(x, y), 0.5 * np.sum((out - y) ** 2) / 6, rtol=1e-4)


def test_half_precision_beside_statistics_in_single():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 2] x) => (float[N, 2] y) <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 0.5},
        float[2] v = {1, 2}> {
        a = Cast <to = 10> (x)  c = Cast <to = 10> (s)  d = Cast <to = 10> (b)
        h = BatchNormalization <momentum = 0.75> (a, c, d, m, v)  y = Cast <to = 1> (h) }""")
    step = TrainingStep(model, learning_rate=0.0, batch_norm="update")
    mean = np.array([0, 0.5])
    for x, y in batches((6, 2)):
        step.run(x, y)
        mean = 0.75 * mean + 0.25 * x.mean(0)
    np.testing.assert_allclose(step.statistics()["m"], mean, rtol=1e-3)


@pytest.mark.parametrize(
    ("setting", "node"),
    [
        ({"batch_norm": "update"}, "BatchNormalization (x, s, b, m, v)"),
        ({"dropout": "on"}, "Dropout (x)"),
    ],
)
def test_inside_a_branch_is_an_error_that_says_so(setting, node):
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 2] x, bool c) => (float[N, 2] y) <float[2] s = {{1, 2}}, float[2] b = {{0, 1}},
        float[2] m = {{0, 0.5}}, float[2] v = {{1, 2}}> {{
        h = If (c) <then_branch = then () => (float[N, 2] t) {{ t = {node} }},
            else_branch = other () => (float[N, 2] e) {{ e = Mul (x, s) }}>
        y = Add (h, b) }}""")
    TrainingStep(model)
    with pytest.raises(InvalidModelError, match=r"inside a branch or a loop"):
        TrainingStep(model, **setting)


# -- PyTorch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("momentum", [0.5, 0.9, 1.0])
def test_against_torch(momentum, rank, engine):
    torch = pytest.importorskip("torch")
    kind = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}
    kind = kind.get(rank, torch.nn.BatchNorm3d)
    tensors = start(3)
    modules = [kind(3, momentum=1 - momentum) for _ in range(2)]
    with torch.no_grad():
        for k, module in enumerate(modules, 1):
            parts = {"mean": "running_mean", "var": "running_var", "scale": "weight", "bias": "bias"}
            for name, part in parts.items():
                getattr(module, part).copy_(torch.tensor(tensors[f"{name}{k}"]))
    net = torch.nn.Sequential(modules[0], torch.nn.Tanh(), modules[1])
    sgd = torch.optim.SGD(net.parameters(), lr=RATE)
    shape = (8, 3, *range(2, rank))
    model = network(tensors, ["N", *shape[1:]], momentum, 17)
    step = TrainingStep(model, learning_rate=RATE, batch_norm="update", engine=engine)
    n = int(np.prod(shape)) // 3
    for k, (x, y) in enumerate(batches(shape), 1):
        sgd.zero_grad()
        loss = 0.5 * ((net(torch.tensor(x)) - torch.tensor(y)) ** 2).sum() / len(x)
        loss.backward()
        sgd.step()
        np.testing.assert_allclose(step.run(x, y), loss.item(), rtol=1e-4)
        wanted = {}
        for i, module in enumerate(modules, 1):
            wanted |= {f"scale{i}": module.weight, f"bias{i}": module.bias, f"mean{i}": module.running_mean}
            # PyTorch's running variance is that of the sample, n / (n - 1) times the batch's.
            kept = momentum**k * tensors[f"var{i}"]
            wanted[f"var{i}"] = kept + (module.running_var.numpy() - kept) * (n - 1) / n
        wanted = {n: a if isinstance(a, np.ndarray) else a.detach().numpy() for n, a in wanted.items()}
        compare(step, wanted)

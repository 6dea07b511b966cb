"""A step of a model of every opset, with everything that is emitted into it: valid, and the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from onnxcustom import TrainingStep
from onnxcustom.graph import prepare, to_proto
from onnxcustom.objective.base import LOSSES
from onnxcustom.optim import create
from onnxcustom.optim.registry import RULES
from onnxcustom.runtime import create_session
from onnxcustom.step.modes import ModeSettings, set_modes

ENGINES = ["onnx", pytest.param("ort", marks=pytest.mark.ort)]
OPSETS = range(7, min(23, onnx.defs.onnx_opset_version()) + 1)
# Those that brought other forms of what is in a step. Updates and losses alone are tested in all of them.
FORMS = (7, 9, 11, 12, 13, 14, 17, 20, 23)
# Engine "ort" takes every model to one of opsets 13 to 18 first.
FEW = (7, 13, 17, 20)
RNG = np.random.default_rng(0)
TENSORS = {
    "w": RNG.normal(size=(4, 5)),
    "c": RNG.normal(size=5),
    "s": RNG.uniform(0.5, 2, size=5),
    "b": RNG.normal(size=5),
    "mean": RNG.normal(size=5),
    "var": RNG.uniform(0.5, 2, size=5),
    "v": RNG.normal(size=(5, 3)),
}
X, Y = RNG.normal(size=(6, 4)).astype(np.float32), RNG.integers(0, 3, size=6)


def network(opset: int, end: str | None = "Softmax", dims: tuple[int, ...] = (3,)) -> onnx.ModelProto:
    """Gemm, normalization, Dropout, Tanh, product, and perhaps a Softmax of the opset or other dimensions."""
    ratio = {"ratio": 0.25} if opset < 12 else {}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "c"], ["g"]),
        helper.make_node("BatchNormalization", ["g", "s", "b", "mean", "var"], ["n"], momentum=0.5),
        helper.make_node("Dropout", ["n", "r"] if opset >= 12 else ["n"], ["d"], **ratio),
        helper.make_node("Tanh", ["d"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["z" if end else "p"]),
    ]
    if end == "Reshape":
        nodes.append(helper.make_node(end, ["z", "dims"], ["p"]))
    elif end:
        nodes.append(helper.make_node(end, ["z"], ["p"], **({} if end == "Sigmoid" else {"axis": 1})))
    arrays = {**TENSORS, "v": np.resize(TENSORS["v"], (5, int(np.prod(dims))))}
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    if end == "Reshape":
        tensors.append(numpy_helper.from_array(np.array([-1, *dims]), "dims"))
    if opset >= 12:
        tensors.append(numpy_helper.from_array(np.float32(0.25), "r"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("p", 1, ["N", *dims])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def trained(opset: int, end: str | None = "Softmax", steps: int = 3, y=Y, w=None, dims=(3,), **options):
    """Losses and what was trained, of a step whose graph is valid."""
    step = TrainingStep(network(opset, end, dims), **options)
    onnx.checker.check_model(step.model, full_check=True)
    losses = [step.run(X, y, w) for _ in range(steps)]
    return [np.array(losses), step.scores(X, y), *step.weights().values(), *step.statistics().values()]


SETTINGS = {
    "plain": {},
    "modes": {"batch_norm": "update", "dropout": "on"},
    "again": {"recompute": True, "batch_norm": "update", "dropout": "on"},
    "no passes": {"passes": False, "penalty": "elastic"},
    "accumulated": {"optimizer": lambda: create("adam", accumulate=2), "penalty": "l1"},
    "checked": {"optimizer": lambda: create("sgd", skip_nonfinite=True, clip_global_norm=0.5)},
    "weighted": {"w": np.linspace(0.5, 2, 6).astype(np.float32)},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("engine", ENGINES)
def test_settings(request, engine, setting):
    """Of engine "ort" in some opsets, in all of them with ``--exhaustive``."""

    def run(opset: int):
        options = {k: v() if callable(v) else v for k, v in SETTINGS[setting].items()}
        return trained(opset, loss="softmax_crossentropy", engine=engine, learning_rate=0.1, **options)

    reference = run(18)
    opsets = OPSETS if setting == "plain" else sorted({*FORMS} & {*OPSETS})
    if engine == "ort" and not request.config.getoption("--exhaustive"):
        opsets = FEW
    for opset in opsets:
        for found, wanted in zip(run(opset), reference, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=f"opset {opset}")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", sorted({cls.__name__ for cls in RULES.classes()}))
def test_rules(request, rule, engine):
    """Forms differ between opsets 13 and 18, where graphs of engine 'ort' may be.

    Updates alone are tested in every opset; here the newest is one of them with ``--exhaustive``.
    """
    more = (20,) if request.config.getoption("--exhaustive") else ()

    def run(opset: int):
        return trained(opset, loss="softmax_crossentropy", engine=engine, optimizer=create(rule))

    reference = run(18)
    for opset in (7, 13, *more) if engine == "onnx" else (13, *more):
        for found, wanted in zip(run(opset), reference, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=f"opset {opset}")


ONE_HOT = (Y[:, None] == np.arange(3)).astype(np.float32)
# How the network ends for a loss, what is expected, and its own dimensions; all others take values of [N, 3].
TAKEN = {
    "BinaryCrossEntropyLearningLoss": ("Sigmoid", ONE_HOT),
    "CTCLearningLoss": ("Reshape", np.array([[1, 2], [2, -1]] * 3), (4, 3)),
    "ContrastiveLearningLoss": (None, Y),
    "DiceLearningLoss": ("Sigmoid", ONE_HOT),
    "FocalLearningLoss": ("Softmax", Y),
    "GaussianLearningLoss": ("Reshape", ONE_HOT[:, :2], (4,)),
    "HingeLearningLoss": (None, Y),
    "KLDivergenceLearningLoss": ("Softmax", ONE_HOT),
    "NLLLearningLoss": ("LogSoftmax", Y),
    "NegLogLearningLoss": ("Sigmoid", ONE_HOT.astype(np.int64)),
    "SoftmaxCrossEntropyLearningLoss": ("Softmax", Y),
    "TripletLearningLoss": (None, Y),
}
OPTIONS = {"GaussianLearningLoss": {"eps": 1.0}}  # far from where it is steep


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", sorted({cls.__name__ for cls in LOSSES.classes()} - {"CustomLoss"}))
def test_losses(request, loss, engine):
    """What a loss is made of may be newer than the model, which is converted then.

    More opsets, between which forms differ, with ``--exhaustive``.
    """
    end, y, *dims = TAKEN.get(loss, (None, ONE_HOT))

    def run(opset: int):
        made = LOSSES.find(loss)(**OPTIONS.get(loss, {}))
        more = {"dims": dims[0]} if dims else {}
        return trained(opset, end, y=y, loss=made, engine=engine, learning_rate=0.05, **more)

    reference = run(18)
    more = (12, 20) if request.config.getoption("--exhaustive") else ()
    for opset in (7, 13, *more) if engine == "onnx" else (7, *more[1:]):
        for found, wanted in zip(run(opset), reference, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=f"opset {opset}")


@pytest.mark.parametrize("setting", [{"batch_norm": "update"}, {"dropout": "on"}, {}], ids=str)
def test_modes_in_models_of_every_opset(setting):
    """The rewrite alone, in the model's own opset."""
    made = {}
    for opset in OPSETS:
        if setting.get("dropout") == "on" and opset < 9:
            continue  # Range is not to be had
        model = prepare(network(opset))
        modes = set_modes(model, ModeSettings(**setting))
        proto = to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        feeds = {"x": X, **{n: TENSORS[n].astype(np.float32) for n in modes.statistics}}
        if modes.step is not None:
            feeds[modes.step] = np.array(2)
        try:
            session = create_session(proto)
        except Exception:
            if opset > 20:  # more than this onnxruntime reads
                continue
            raise
        made[opset] = session.run(["p"], feeds)[0]
    for opset, found in made.items():
        np.testing.assert_allclose(found, made[18], rtol=1e-5, atol=1e-6, err_msg=f"opset {opset}")

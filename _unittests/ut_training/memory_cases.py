"""Every public call that takes or gives arrays, for the test that overwrites them."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.data import Block, Stream, stream
from onnxcustom.feed.batch_buffers import LentBatch
from onnxcustom.feed.data_loader import OrtDataLoader
from onnxcustom.objective import BaseLearningLoss, L2LearningPenalty
from onnxcustom.optim import Adam, Updater
from onnxcustom.runtime import to_ortvalue
from onnxcustom.training.optimizers_partial import OrtGradientForwardBackwardOptimizer

# -- looking at things and overwriting them --------------------------------------------------------


def is_ortvalue(thing: Any) -> bool:
    return hasattr(thing, "data_ptr") and hasattr(thing, "update_inplace")


def snapshot(thing: Any) -> Any:
    """What can be compared later, in memory of its own."""
    if isinstance(thing, (onnx.ModelProto, ir.Model)):
        proto = thing if isinstance(thing, onnx.ModelProto) else ir.to_proto(thing)
        return proto.SerializeToString(deterministic=True)
    if is_ortvalue(thing):
        return np.array(thing.numpy())
    if isinstance(thing, np.ndarray):
        return np.array(thing)
    if isinstance(thing, Mapping):
        return {str(k): snapshot(v) for k, v in thing.items()}
    if isinstance(thing, Block):
        return snapshot(thing.arrays)
    if hasattr(thing, "toarray"):
        return thing.toarray()
    if isinstance(thing, (list, tuple, LentBatch)):
        return [snapshot(v) for v in thing]
    return thing if isinstance(thing, (bool, int, float, str, bytes, type(None))) else repr(thing)


def same(one: Any, other: Any) -> None:
    """Both to the same bits."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other or (one != one and other != other)


def overwrite(thing: Any) -> None:
    """Fill every array in it with NaN, or with numbers that mean nothing; empty dicts and lists."""
    if isinstance(thing, np.ndarray):
        if thing.flags.writeable:
            thing[...] = {"f": np.nan, "O": None, "U": "", "S": b""}.get(thing.dtype.kind, 77)
    elif is_ortvalue(thing):
        array = np.array(thing.numpy())
        overwrite(array)
        thing.update_inplace(array)
    elif isinstance(thing, onnx.ModelProto):
        for tensor in thing.graph.initializer:
            tensor.raw_data = bytes(len(tensor.raw_data))
        thing.Clear()
    elif isinstance(thing, ir.Model):
        for value in thing.graph.initializers.values():
            overwrite(value.const_value.numpy())
    elif isinstance(thing, Block):
        overwrite(thing.arrays)
    elif hasattr(thing, "toarray"):
        overwrite(thing.data)
    elif isinstance(thing, Mapping):
        overwrite(list(thing.values()))
        if isinstance(thing, dict):
            thing.clear()
    elif isinstance(thing, (list, tuple, LentBatch)):
        for item in thing:
            overwrite(item)
        if isinstance(thing, list) and not all(dataclasses.is_dataclass(item) for item in thing):
            thing.clear()


# -- models and data -------------------------------------------------------------------------------


def parsed(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def numbers(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def mlp() -> onnx.ModelProto:
    return parsed(
        """m (float[N,3] x) => (float[N,2] y) {
        h = MatMul(x, w0) t = Tanh(h) m = MatMul(t, w1) y = Add(m, b1) }""",
        w0=numbers(3, 4),
        w1=numbers(4, 2, seed=1),
        b1=numbers(2, seed=2),
    )


def table() -> onnx.ModelProto:
    """An embedding, whose rows are updated in place."""
    return parsed(
        "m (int64[N] x) => (float[N,2] y) { e = Gather(e0, x) y = MatMul(e, w1) }",
        e0=numbers(50, 4),
        w1=numbers(4, 2, seed=1),
    )


def normed() -> onnx.ModelProto:
    """A batch normalization, whose statistics move."""
    return parsed(
        """m (float[N,3] x) => (float[N,2] y) {
        n = BatchNormalization(x, s, b, mean, var) y = MatMul(n, w1) }""",
        s=np.ones(3, np.float32),
        b=np.zeros(3, np.float32),
        mean=np.zeros(3, np.float32),
        var=np.ones(3, np.float32),
        w1=numbers(3, 2, seed=1),
    )


def handing_on() -> onnx.ModelProto:
    """Outputs that are an input, a weight, and either under another name or shape."""
    return parsed(
        """m (float[N,3] x) => (float[N,2] y, float[N,3] x2, float[N,3] x3, float[2,3] r, float[3,2] w2) {
        y = MatMul(x, w) x2 = Identity(x) shape = Constant <value_ints: ints = [-1, 3]> ()
        x3 = Reshape(x, shape) r = Reshape(w, shape) w2 = Identity(w) }""",
        w=numbers(3, 2),
    )


def rows(columns: int = 3, n: int = 12, seed: int = 5) -> dict[str, Any]:
    return {"X": numbers(n, columns, seed=seed), "y": numbers(n, 2, seed=seed + 1)}


def weighted_rows(seed: int = 5) -> dict[str, Any]:
    return {**rows(seed=seed), "sample_weight": np.linspace(0.5, 1.5, 12).astype(np.float32)}


# -- calls -----------------------------------------------------------------------------------------


def nothing() -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Call:
    """A public call: what it is given, and how it is made.

    Without `function`, the attribute is read, or called with what is given.
    """

    given: Callable[[], dict[str, Any]] = nothing
    function: Callable[[Any, dict[str, Any]], Any] | None = None

    def make(self, subject: Any, name: str, given: dict[str, Any]) -> Any:
        if self.function is not None:
            return self.function(subject, given)
        found = getattr(subject, name)
        return found(**given) if callable(found) else found


@dataclasses.dataclass(frozen=True)
class Subject:
    """A class: how to make an instance, its calls, and what else it is asked afterwards."""

    cls: type
    makers: Mapping[str, Callable[[], Any]]
    calls: Mapping[str, Call]
    probe: Callable[[Any], Any]
    without_arrays: frozenset[str] = frozenset()
    #: Calls of all makers but the first; by default all.
    some: frozenset[str] = frozenset()


def reborn(thing: Any, other: Any) -> None:
    """Make a thing another one: what its constructor was given is not borrowed either."""
    vars(thing).clear()
    vars(thing).update(vars(other))


def names(*text: str) -> frozenset[str]:
    return frozenset(name for part in text for name in part.split())


# -- TrainingStep ----------------------------------------------------------------------------------


def step_of(
    model: Callable[[], Any] = mlp, rule: Mapping[str, Any] | None = None, **options: Any
) -> Callable[[], TrainingStep]:
    def make() -> TrainingStep:
        step = TrainingStep(model(), optimizer=Adam(0.1, **(rule or {})), threads=1, **options)
        step.run(**data_of(step))
        return step

    return make


def data_of(step: TrainingStep, seed: int = 5) -> dict[str, Any]:
    if step.inputs[0].dtype == np.int64:
        return {"X": np.arange(12, dtype=np.int64) % 5 + seed, "y": numbers(12, 2, seed=seed)}
    return rows(seed=seed)


def probe_step(step: TrainingStep) -> Any:
    made = []
    for seed in (11, 12, 13):
        data = data_of(step, seed)
        if step.targets[0].loss.counts_positions:
            data["y"] = np.arange(12) % 2
        made += [step.run(**data), snapshot(step.predict(data["X"])), snapshot(step.scores(**data))]
        made += [snapshot(step.weights()), snapshot(step.state()), snapshot(step.statistics())]
    made += [snapshot(step.trained_model()), snapshot(step.state_dict())]
    return [*made, snapshot(pickle.loads(pickle.dumps(step)).weights())]


def as_ortvalues(step: TrainingStep, given: dict[str, Any]) -> float:
    feeds = step.feeds(**given)
    return step.run_batch([to_ortvalue(v) for v in feeds.values()])


def checked(step: TrainingStep, given: dict[str, Any]) -> float:
    return step.run_checked([to_ortvalue(v) for v in step.feeds(**given).values()])


def of_another(name: str, **options: Any) -> Callable[[Any, dict[str, Any]], Any]:
    """A call of a step that was made with these options."""

    def call(step: TrainingStep, given: dict[str, Any]) -> Any:
        other = TrainingStep(mlp(), optimizer=Adam(0.1), threads=1, **options)
        if name != "calibrate":
            other.run(**rows())
        made = getattr(other, name)(**given)
        reborn(step, other)
        return made

    return call


def other_step(of: str) -> Callable[[Any, dict[str, Any]], Any]:
    """Hand a step what another one, further on, has."""

    def call(step: TrainingStep, given: dict[str, Any]) -> Any:
        other = pickle.loads(pickle.dumps(step))
        for seed in (3, 4, 5):
            other.run(**data_of(other, seed))
        if of == "take_over":
            return step.take_over(other)
        if of == "load_state_dict":
            given["tensors"], given["state"] = other.state_dict()
            return step.load_state_dict(**given)
        given["given"] = other.statistics() if of == "set_statistics" else other.weights()
        given["given"] = other.state() if of == "set_state" else given["given"]
        given["given"] = other.averages() if of == "set_averages" else given["given"]
        return getattr(step, of)(given["given"])

    return call


def made_of() -> dict[str, Any]:
    """Arguments of a step that hold arrays, or dicts and lists that somebody may change."""
    return {
        "model": mlp(),
        "loss": {"y": BaseLearningLoss.select("softmax_crossentropy")},
        "optimizer": Adam(0.1, lr_mult={"w0": 0.5}, wd=0.1, wd_mult={"w1": 2.0}, frozen=["b1"]),
        "weights": ["w1", "w0", "b1"],
        "penalty": {"w0": L2LearningPenalty(0.1)},
        "loss_weights": {"y": 2.0},
        "batch_axis": {"x": 0, "y": 0},
    }


def constructed(step: TrainingStep, given: dict[str, Any]) -> None:
    """Make the step anew; what it is made of is overwritten afterwards, down to options of the rule."""
    reborn(step, TrainingStep(**given, threads=1))
    rule = given["optimizer"]
    given["options"] = [rule.lr_mult, rule.wd_mult, rule.frozen]
    vars(given["penalty"]["w0"])["l2"] = 7.0


def as_model(kind: type) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        given = made_of()
        if kind is ir.Model:
            model = ir.from_proto(given["model"])
            for value in model.graph.initializers.values():
                value.const_value = ir.Tensor(np.array(value.const_value.numpy()), name=value.name)
            given["model"] = model
        return given

    return make


STEP = Subject(
    TrainingStep,
    {
        "mlp": step_of(),
        "accumulate": step_of(rule={"accumulate": 3}),
        "weighted": step_of(sample_weight=True, penalty="l2"),
        "table": step_of(table),
        "lazy": step_of(table, rule={"lazy_update": True}),
        "normed": step_of(normed, batch_norm="update"),
        "handing_on": step_of(handing_on, loss={"y": "squared_error"}),
        "no passes": step_of(passes=False),
        "averaged": step_of(average="ema"),
    },
    {
        "__init__": Call(as_model(onnx.ModelProto), constructed),
        "__init__ of an ir.Model": Call(as_model(ir.Model), constructed),
        "run": Call(weighted_rows),
        "run_batch": Call(weighted_rows, as_ortvalues),
        "run_checked": Call(weighted_rows, checked),
        "calibrate": Call(lambda: {"X": rows()["X"]}, of_another("calibrate", quantize="int8")),
        "adapter": Call(nothing, of_another("adapter", lora=1)),
        "feeds": Call(weighted_rows),
        "check_declared": Call(lambda: {"X": rows()["X"]}),
        "check_expected": Call(lambda: {"expected": {"y": numbers(12, 2)}}),
        "settle": Call(rows),
        "scores": Call(weighted_rows),
        "head_scores": Call(weighted_rows),
        "predict": Call(lambda: {"X": numbers(12, 3, seed=5)}),
        "weights": Call(),
        "state": Call(),
        "statistics": Call(),
        "averages": Call(),
        "predicting_weights": Call(),
        "frozen_weights": Call(nothing, lambda step, given: step.frozen_weights(list(step.weights()))),
        "set_averages": Call(nothing, other_step("set_averages")),
        "state_dict": Call(),
        "trained_model": Call(),
        "model": Call(),
        "penalty": Call(),
        "head_losses": Call(),
        "head_units": Call(),
        "apply_accumulated": Call(),
        "set_weights": Call(nothing, other_step("set_weights")),
        "set_state": Call(nothing, other_step("set_state")),
        "set_statistics": Call(nothing, other_step("set_statistics")),
        "start_from": Call(nothing, other_step("start_from")),
        "load_state_dict": Call(nothing, other_step("load_state_dict")),
        "take_over": Call(nothing, other_step("take_over")),
        "data_axes": Call(),
        "inputs": Call(),
        "expected": Call(),
    },
    probe_step,
    names(
        # numbers, words and objects
        "batch_axes output_axis scalar_dtype pending engine iteration modes optimizer passes recipe",
        "recompute skipped targets check_unfreeze unfreeze halves knows run_half",
        "counts counts_labels announce announced announce_batches forget_accumulated",
        # a dict of texts, a path
        "name_columns save_adapter",
    ),
    names("run run_batch predict scores weights state statistics state_dict load_state_dict take_over"),
)


# -- estimators ------------------------------------------------------------------------------------


def fitted(cls: type, model: Callable[[], Any], **options: Any) -> Callable[[], Any]:
    labels = cls is OnnxClassifier

    def make() -> Any:
        net = cls(model(), batch_size=5, max_iter=2, random_state=0, **options)
        return net.fit(**data_for(labels, 1))

    return make


def data_for(labels: bool, seed: int, validated: bool = False) -> dict[str, Any]:
    data = weighted_rows(seed)
    data["y"] = np.arange(12) % 2 if labels else data["y"]
    if validated:
        held = data_for(labels, seed + 20)
        data.update(X_val=held["X"], y_val=held["y"], sample_weight_val=held["sample_weight"])
    return data


def probe_estimator(net: Any) -> Any:
    labels = isinstance(net, OnnxClassifier)
    made = []
    for seed in (11, 12):
        data = data_for(labels, seed)
        net.partial_fit(**data, epochs=2)
        made += [snapshot(net.predict(data["X"])), net.score(data["X"], data["y"])]
        made += [snapshot(net.weights_), snapshot(net.history_)]
    made += [snapshot(net.step_.state_dict()), snapshot(net.get_trained_onnx())]
    return [*made, snapshot(pickle.loads(pickle.dumps(net)).weights_)]


def estimator(cls: type, model: Callable[[], Any], calls: Mapping[str, Call], without: str) -> Subject:
    labels = cls is OnnxClassifier
    of_model = "model_onnx" if cls is OrtGradientForwardBackwardOptimizer else "model"

    def features() -> dict[str, Any]:
        return {"X": numbers(12, 3, seed=5)}

    def constructed(net: Any, given: dict[str, Any]) -> None:
        reborn(net, cls(**given, batch_size=5, max_iter=2, random_state=0).fit(**data_for(labels, 1)))

    shared = {
        "__init__": Call(lambda: {of_model: model()}, constructed),
        "fit": Call(lambda: data_for(labels, 5, validated=True), _returning_nothing("fit")),
        "partial_fit": Call(lambda: data_for(labels, 5, validated=True), _returning_nothing("partial_fit")),
        "predict": Call(features),
        "score": Call(lambda: data_for(labels, 5)),
        "score_with": Call(
            lambda: {**data_for(labels, 5), "sample_weight": None},
            lambda net, given: net.score_with(lambda e, X, y: e.score(X, y), given["X"], given["y"]),
        ),
        "validate": Call(
            lambda: (
                {"X": features(), "y": {"y": numbers(12, 2)}}
                if not labels
                else {"X": features(), "y": {"y": np.arange(12) % 2}}
            ),
            lambda net, given: net.validate(given["X"]["X"], given["y"]["y"]),
        ),
        "weights_": Call(),
        "get_trained_onnx": Call(),
        "encode": Call(
            lambda: {"y": data_for(labels, 5)["y"]}, lambda net, given: net.encode(given["y"], net.step_)
        ),
        "sample": Call(
            lambda: {"arrays": tuple(data_for(labels, 5).values())},
            lambda net, given: net.sample(stream(given["arrays"])),
        ),
        "make_step": Call(
            lambda: data_for(labels, 5),
            lambda net, given: net.make_step(given["X"], given["y"]).weights(),
        ),
        "weigher": Call(lambda: data_for(labels, 5), _weighed),
        "try_step": Call(
            lambda: data_for(labels, 5), lambda net, given: net.try_step(given["X"], given["y"])
        ),
    }
    return Subject(
        cls,
        {"plain": fitted(cls, model)},
        {**shared, **calls},
        probe_estimator,
        names(
            # numbers, words and objects: every parameter with a default is an attribute of the class
            *(field.name for field in dataclasses.fields(cls) if hasattr(cls, field.name)),
            "callbacks checkpoint_dir validation_fraction cache_frozen cache_bytes pairs m_per_class",
            "model_parameter shuffles record validation_due save_adapter",
            # scikit-learn's
            "get_params set_params get_metadata_routing",
            "set_fit_request set_partial_fit_request set_score_request",
            # there while training lasts: test_overwriting_while_it_trains
            "run fit_loop run_epoch train_step checkpoint_state",
            without,
        ),
    )


def _returning_nothing(name: str) -> Callable[[Any, dict[str, Any]], None]:
    def call(net: Any, given: dict[str, Any]) -> None:
        assert getattr(net, name)(**given) is net

    return call


def _weighed(net: Any, given: dict[str, Any]) -> Any:
    weigh = net.weigher(given["X"], given["y"])
    return None if weigh is None else weigh(given["y"], given["sample_weight"])


REGRESSOR = estimator(OnnxRegressor, mlp, {}, "")
CLASSIFIER = estimator(
    OnnxClassifier,
    mlp,
    {
        "predict_proba": Call(lambda: {"X": numbers(12, 3, seed=5)}),
        "decision": Call(),
        "decision_function": Call(lambda: {"X": numbers(12, 3, seed=5)}),
    },
    "",
)
OLD = estimator(
    OrtGradientForwardBackwardOptimizer,
    mlp,
    {
        "losses": Call(lambda: data_for(False, 5)),
        "scores": Call(lambda: data_for(False, 5)),
        "get_state": Call(),
        "set_state": Call(
            lambda: {"state": [numbers(3, 4, seed=8), numbers(4, 2, seed=9), numbers(2, seed=10)]},
            lambda net, given: net.set_state(given["state"]),
        ),
        "trained_coef_": Call(),
        "save_onnx_graph": Call(nothing, lambda net, given: net.save_onnx_graph(bytes)),
    },
    "input_names_ output_names_ train_function_ train_losses_ train_session_ validation_losses_",
)


# -- data ------------------------------------------------------------------------------------------


def loader(**options: Any) -> Callable[[], OrtDataLoader]:
    return lambda: OrtDataLoader(**weighted_rows(1), batch_size=5, random_state=0, **options)


def probe_loader(data: OrtDataLoader) -> Any:
    made = [[snapshot(batch.copy()) for batch in data.epoch(e)] for e in (3, 4)]
    return [
        *made,
        data.fingerprint(),
        snapshot(list(data.iter_numpy())),
        snapshot(pickle.loads(pickle.dumps(data)).data_np),
    ]


def constructed_loader(data: OrtDataLoader, given: dict[str, Any]) -> None:
    reborn(data, OrtDataLoader(**given, batch_size=5, random_state=0))


LOADER = Subject(
    OrtDataLoader,
    {"shuffled": loader(), "in order": loader(shuffle=False), "blocks": loader(block_bytes=60)},
    {
        "__init__": Call(weighted_rows, constructed_loader),
        "__iter__": Call(nothing, lambda data, given: list(data)),
        "iter_ortvalue": Call(nothing, lambda data, given: list(data.iter_ortvalue())),
        "iter_numpy": Call(nothing, lambda data, given: list(data.iter_numpy())),
        "data_np": Call(),
        "data_ort": Call(),
        "desc": Call(),
        "fingerprint": Call(),
        "order": Call(lambda: {"epoch": 1}),
    },
    probe_loader,
    # epoch() and iter_bind() lend their batches, one after the other, as they say; other loaders share memory
    names("epoch iter_bind n_batches n_rows cut inputs in_sequence with_inputs groups grouped"),
)


def streamed(**options: Any) -> Callable[[], Stream]:
    return lambda: stream(tuple(weighted_rows(1).values()), **options)


def framed() -> Stream:
    return stream({"a": numbers(9), "b": numbers(9, seed=1), "y": np.arange(9)}, target="y")


def probe_stream(rows: Stream) -> Any:
    made = [snapshot(list(rows.blocks(e, shuffle=True, rows=5))) for e in (0, 1)]
    return [*made, snapshot(list(rows.blocks(rows=12))), rows.fingerprint()]


def constructed_stream(rows: Stream, given: dict[str, Any]) -> None:
    reborn(rows, stream(tuple(given.values())))


STREAM = Subject(
    Stream,
    {"whole": streamed(prefetch=0), "ahead": streamed(block_rows=5)},
    {
        "__init__": Call(weighted_rows, constructed_stream),
        "blocks": Call(nothing, lambda rows, given: list(rows.blocks())),
        "head": Call(),
        "split": Call(nothing, lambda rows, given: [part.head() for part in rows.split(0.4)]),
        "label_counts": Call(
            nothing, lambda rows, given: stream((numbers(9, 2), np.arange(9) % 3)).label_counts()
        ),
        "labels": Call(nothing, lambda rows, given: stream((numbers(9, 2), np.arange(9) % 3)).labels()),
        "fingerprint": Call(),
        "columns": Call(nothing, lambda rows, given: framed().columns()),
        "in_order": Call(
            lambda: {"names": ["b", "a"]}, lambda rows, given: framed().in_order(given["names"]).head()
        ),
    },
    probe_stream,
    # first_place() lends a function the arrays, one after the other
    names("empty place rows where_not_finite first_place"),
)


# -- update rules ----------------------------------------------------------------------------------


def updater(**options: Any) -> Callable[[], Updater]:
    def make() -> Updater:
        made = Updater(Adam(0.1, **options))
        made("w", numbers(3, 2), numbers(3, 2, seed=1))
        return made

    return make


def probe_updater(made: Updater) -> Any:
    weight = numbers(3, 2, seed=1)
    seen = [np.array(made("w", numbers(3, 2, seed=s), weight)) for s in range(2, 6)]
    return [*seen, snapshot(made.states), made.get_states()]


def called(made: Updater, given: dict[str, Any]) -> Any:
    return made(given["index"], given["gradient"], given["weight"])


def restored(made: Updater, given: dict[str, Any]) -> None:
    made.set_states(memoryview(given["states"]))


UPDATER = Subject(
    Updater,
    {"plain": updater(), "accumulate": updater(accumulate=2), "clipped": updater(clip_global_norm=0.5)},
    {
        "__call__": Call(
            lambda: {"index": "w", "gradient": numbers(3, 2, seed=7), "weight": numbers(3, 2, seed=8)}, called
        ),
        "__call__ on a new index": Call(
            lambda: {"index": ["v"], "gradient": [numbers(2, seed=7)], "weight": [numbers(2, seed=8)]}, called
        ),
        "get_states": Call(),
        "set_states": Call(
            lambda: {"states": np.frombuffer(updater()().get_states(), np.uint8).copy()}, restored
        ),
        "sync_state_context": Call(
            lambda: {"state": {"m": numbers(3, 2)}},
            lambda made, given: made.sync_state_context(given["state"], "cpu"),
        ),
    },
    probe_updater,
    names("optimizer"),
)

SUBJECTS = [STEP, REGRESSOR, CLASSIFIER, OLD, LOADER, STREAM, UPDATER]

"""OrtGradientForwardBackward: the contract, and the calls of those who used the older package."""

from __future__ import annotations

import copy
import logging
import pickle
import threading

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi._pybind_state import OrtDevice, OrtMemType, OrtValueVector
from onnxruntime.capi._pybind_state import OrtValue as C_OrtValue
from skl2onnx import to_onnx
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPRegressor

from onnxcustom.exceptions import CheckpointError, InvalidDataError, NonDifferentiableError, UnknownNameError
from onnxcustom.gradient.forward_backward import session
from onnxcustom.graph import weights
from onnxcustom.runtime import to_vector
from onnxcustom.training.ortgradient import (
    OrtGradientForwardBackward,
    OrtGradientForwardBackwardFunction,
)

from ..processes import in_child, needs_fork

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
DENSE = """dense (double[N,3] x) => (double[N,2] y) <double[3,2] w = {1,2,3,-4,1,2}, double[2] b = {1, 2}> {
    h = MatMul(x, w)  a = Add(h, b)  y = Tanh(a) }"""
CPU = OrtDevice(OrtDevice.cpu(), OrtMemType.DEFAULT, 0)
RNG = np.random.default_rng(0)


def parse(text):
    return onnx.parser.parse_model(HEAD + text)


@pytest.fixture(scope="module")
def dense():
    return OrtGradientForwardBackward(parse(DENSE))


@pytest.fixture(scope="module")
def linear():
    x, y = make_regression(50, n_features=4, bias=2, random_state=0)
    x, y = x.astype(np.float32), y.astype(np.float32)
    model = LinearRegression().fit(x, y)
    model.coef_ = model.coef_.reshape((1, -1))
    return to_onnx(model, x, target_opset=15, black_op={"LinearRegressor"}), model, x, y


def vector(*arrays):
    made = OrtValueVector()
    for array in arrays:
        made.push_back(C_OrtValue.ortvalue_from_numpy(array, CPU))
    return made


def c_values(*arrays):
    return [C_OrtValue.ortvalue_from_numpy(a, CPU) for a in arrays]


def python_values(*arrays):
    return [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in arrays]


# -- the older package's calls -----------------------------------------------------------------


def test_class_attributes(linear):
    onx, _, _, _ = linear
    forback = OrtGradientForwardBackward(onx, debug=True, enable_logging=True)
    assert repr(forback) == "OrtGradientForwardBackward(...)"
    cls = forback.cls_type_
    assert issubclass(cls, OrtGradientForwardBackwardFunction)
    assert cls._onx_inp == ["X", "coef", "intercept"]
    assert cls._onx_out == ["X_grad", "coef_grad", "intercept_grad"]
    assert cls._weights_to_train == ["coef", "intercept"]
    assert cls._grad_input_names == ["X", "coef", "intercept"]
    assert cls._input_names == ["X"]
    assert cls._bw_fetches_names == ["X_grad", "coef_grad", "intercept_grad"]
    assert cls._output_names == ["variable"]
    assert [i.name for i in cls._sess_eval.get_inputs()] == ["X", "coef", "intercept"]
    assert isinstance(cls._trained_onnx, onnx.ModelProto)
    names = [i.name for i in cls._optimized_pre_grad_model.graph.input]
    assert names == ["X", "coef", "intercept"]


@pytest.mark.parametrize("copied", [lambda v: v, lambda v: pickle.loads(pickle.dumps(v)), copy.deepcopy])
@pytest.mark.parametrize("pack", [vector, c_values, python_values, lambda *a: list(a)])
def test_linear_regression_with_every_kind_of_tensor(linear, copied, pack):
    onx, model, x, y = linear
    forback = copied(OrtGradientForwardBackward(onx, debug=True))
    coef, intercept = forback.get_initializer("coef"), forback.get_initializer("intercept")
    function = forback.new_instance()
    for batch in (x[:1], x):
        for training in (False, True):
            got = function.forward(pack(batch, coef, intercept), training=training)
            assert len(got) == 1
            np.testing.assert_allclose(
                got[0].numpy().ravel(), model.predict(batch).ravel(), rtol=1e-4, atol=1e-3
            )
        # A row where the output is a column, as the older package took it.
        seed = y[: batch.shape[0]].reshape((1, -1)).copy()
        gradients = function.backward(pack(seed))
        values = [g.numpy() for g in gradients]
        assert [v.shape for v in values] == [batch.shape, coef.shape, intercept.shape]
        np.testing.assert_allclose(values[1], batch.T @ seed.T, rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(values[2], [seed.sum()], rtol=1e-4, atol=1e-2)


def test_logistic_regression():
    x, y = make_classification(60, n_features=5, n_classes=3, n_informative=4, n_redundant=0, random_state=0)
    model = LogisticRegression().fit(x, y)
    onx = to_onnx(model, x.astype(np.float32), target_opset=15, options={"zipmap": False})
    forback = OrtGradientForwardBackward(onx)
    function = forback.new_instance()
    arrays = [forback.get_initializer(n) for n in forback.weights_to_train]
    label, proba = function.forward([x.astype(np.float32), *arrays], training=True)
    np.testing.assert_array_equal(label.numpy(), model.predict(x))
    np.testing.assert_allclose(proba.numpy(), model.predict_proba(x), atol=1e-4)
    seed = RNG.normal(size=proba.numpy().shape).astype(np.float32)
    for given in ([seed], [None, seed], [np.zeros(60, np.int64), seed]):
        gradients = function.backward(given)
        assert [g.numpy().shape for g in gradients] == [x.shape, *(a.shape for a in arrays)]


@pytest.mark.parametrize("providers", [None, "cpu", ["CPUExecutionProvider"], CPU, ["cpu"]])
def test_providers(providers):
    forback = OrtGradientForwardBackward(parse(DENSE), providers=providers)
    assert forback.cls_type_._sess.get_providers() == ["CPUExecutionProvider"]
    pickle.loads(pickle.dumps(forback)).new_instance()


@pytest.mark.parametrize("providers", ["NONE", ["NONE"], 3])
def test_unknown_providers(providers):
    with pytest.raises(ValueError, match="CPUExecutionProvider"):
        OrtGradientForwardBackward(parse(DENSE), providers=providers)


def test_logging(caplog):
    with caplog.at_level(logging.INFO, logger="onnxcustom"):
        OrtGradientForwardBackward(parse(DENSE), enable_logging=True)
    text = caplog.text
    assert "[OrtGradientForwardBackward]" in text
    assert "weights_to_train=['w', 'b']" in text


# -- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["w", "b"], ["b", "w"], ["b"]])
def test_any_order_of_weights(names):
    forback = OrtGradientForwardBackward(parse(DENSE), weights_to_train=names)
    assert forback.cls_type_._grad_input_names == ["x", *names]
    assert forback.cls_type_._bw_fetches_names == ["x_grad", *(f"{n}_grad" for n in names)]
    values = weights(parse(DENSE))
    function = forback.new_instance()
    x, seed = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 2))
    (y,) = function.forward([x, *(values[n] for n in names)], training=True)
    local = seed * (1 - y.numpy() ** 2)
    expected = {"x": local @ values["w"].T, "w": x.T @ local, "b": local.sum(axis=0)}
    for name, got in zip(["x", *names], function.backward([seed]), strict=True):
        np.testing.assert_allclose(got.numpy(), expected[name], rtol=1e-10)


@pytest.mark.parametrize(
    ("names", "match"), [(["nope"], r"'nope'.*'w', 'b'"), (["w", "w"], "twice: 'w'"), ("w", "list")]
)
def test_bad_weight_names(names, match):
    with pytest.raises(ValueError, match=match):
        OrtGradientForwardBackward(parse(DENSE), weights_to_train=names)


@pytest.mark.parametrize("names", [None, []])
def test_no_weight(names):
    model = parse("g (float[N] x) => (float[N] y) { y = Tanh(x) }")
    with pytest.raises(RuntimeError, match=r"no trainable weight|list of weights is empty"):
        OrtGradientForwardBackward(model, weights_to_train=names)


@pytest.mark.parametrize("arguments", [{"input_names": ["z"]}, {"output_names": ["z"]}])
def test_bad_names_of_inputs_and_outputs(arguments):
    with pytest.raises(ValueError, match="'z'"):
        OrtGradientForwardBackward(parse(DENSE), **arguments)


def test_get_initializer(dense):
    np.testing.assert_array_equal(dense.get_initializer("b"), [1, 2])
    assert dense.get_initializer("nope", exc=False) is None
    with pytest.raises(RuntimeError, match=r"'nope'.*'w', 'b'") as caught:
        dense.get_initializer("nope")
    assert isinstance(caught.value, UnknownNameError)


def test_weights_of_nodes_are_looked_for_once(monkeypatch):
    nodes = "".join(
        f"w{k} = Constant <value = float[2] {{{k}, 1}}> () v{k} = Add (v{k - 1}, w{k}) " for k in (1, 2)
    )
    made = OrtGradientForwardBackward(parse(f"m (float[N, 2] v0) => (float[N, 2] v2) {{ {nodes} }}"))
    for k in (1, 2):
        monkeypatch.setattr(session, "weights", weights if k == 1 else None)
        found = made.get_initializer(f"w{k}")
        np.testing.assert_array_equal(found, [k, 1])
        found[:] = 9
        np.testing.assert_array_equal(made.get_initializer(f"w{k}"), [k, 1])
    copied = pickle.loads(pickle.dumps(made))
    monkeypatch.undo()
    np.testing.assert_array_equal(copied.get_initializer("w2"), [2, 1])


def test_deterministic_names():
    first, second = (OrtGradientForwardBackward(parse(DENSE)).cls_type_ for _ in range(2))
    assert first is not second
    assert first.__name__ == second.__name__ == "OrtGradientForwardBackwardFunction_dense"
    named = OrtGradientForwardBackward(parse(DENSE), class_name="Mine")
    assert named.cls_type_.__name__ == "Mine"


# -- forward and backward ----------------------------------------------------------------------


def arrays():
    values = weights(parse(DENSE))
    return [RNG.normal(size=(4, 3)), values["w"], values["b"]]


def test_gradients_are_sums_over_the_batch(dense):
    function = dense.new_instance()
    x, w, b = arrays()
    seed = RNG.normal(size=(4, 2))
    function.forward([x, w, b], training=True)
    whole = [g.numpy() for g in function.backward([seed])]
    total = 0
    for k in range(4):
        function.forward([x[k : k + 1], w, b], training=True)
        total = total + function.backward([seed[k : k + 1]])[1].numpy()
    np.testing.assert_allclose(whole[1], total)


def test_strided_arrays_and_results_of_their_own(dense):
    function = dense.new_instance()
    x, w, b = arrays()
    wide = np.zeros((8, 6))
    wide[::2, ::2] = x
    first = function.forward([wide[::2, ::2], np.asfortranarray(w), b], training=True)
    expected = np.tanh(x @ w + b)
    second = function.forward([x * 2, w, b], training=True)
    np.testing.assert_allclose(first[0].numpy(), expected)
    assert not np.allclose(second[0].numpy(), expected)
    assert [v.numpy().shape for v in first] == [(4, 2)]


def test_backward_may_be_called_again(dense):
    function = dense.new_instance()
    function.forward(arrays(), training=True)
    seed = RNG.normal(size=(4, 2))
    first, second = (function.backward([seed])[1].numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)


EMPTY = {
    "dense": (DENSE, (0, 3)),
    "convolution": (
        """g (double[N,1,4,4] x) => (double[N,2] y, double[N,1,8,8] z)
        <double[2,1,4,4] w = {WEIGHTS}, float[4] s = {1.0, 1.0, 2.0, 2.0}> {
            a = Cast <to = 1> (x)  v = Cast <to = 1> (w)  h = Conv(a, v)  f = Flatten(h)
            y = Cast <to = 11> (f)  r = Resize <mode = "linear"> (a, "", s)
            z = Cast <to = 11> (r) }""".replace("WEIGHTS", ", ".join("1" * 32)),
        (0, 1, 4, 4),
    ),
}


@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_batch_has_zeros_for_gradients(case):
    """As in PyTorch: a sum over no rows."""
    text, shape = EMPTY[case]
    model = parse(text)
    function = OrtGradientForwardBackward(model, engine="onnx").new_instance()
    values = [np.zeros(shape), *weights(model).values()]
    outputs = [v.numpy() for v in function.forward(values, training=True)]
    assert {y.shape[0] for y in outputs} == {0}
    found = [v.numpy() for v in function.backward([np.zeros(y.shape) for y in outputs])]
    assert [(g.shape, g.dtype) for g in found] == [(v.shape, v.dtype) for v in values]
    assert not any(g.any() for g in found)


def test_without_training_nothing_is_kept(dense):
    function = dense.new_instance()
    function.forward(arrays())
    with pytest.raises(RuntimeError, match="training=True"):
        function.backward([np.zeros((4, 2))])
    with pytest.raises(RuntimeError, match="saved"):
        _ = function.saved_tensors


def test_saved_tensors(dense):
    function = dense.new_instance()
    values = arrays()
    function.forward(values, training=True)
    for value, saved in zip(values, function.saved_tensors, strict=True):
        np.testing.assert_array_equal(saved.numpy(), value)
    mine = [1, 2]
    function.save_for_backward(mine)
    assert function.saved_tensors == mine
    assert function.saved_tensors is not mine


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x, w, b: [x, w], "3 inputs are expected"),
        (lambda x, w, b: [x, w, b, b], "3 inputs are expected"),
        (lambda x, w, b: [x.astype(np.float32), w, b], r"'x'.*double.*float"),
        (lambda x, w, b: [x, w, b.astype(np.int64)], r"'b'.*double.*int64"),
        (lambda x, w, b: [x.ravel(), w, b], r"'x'.*2 dimensions"),
        (lambda x, w, b: [x[:, :2], w, b], r"'x'.*shape \[4, 2\]"),
        (lambda x, w, b: [x, w.T.copy(), b], r"'w'.*shape \[2, 3\]"),
        (lambda x, w, b: [x, w, np.array(["a", "b"])], "'b'"),
        (lambda x, w, b: x, "list of tensors"),
    ],
)
def test_bad_inputs_are_named(dense, change, match):
    with pytest.raises(InvalidDataError, match=match):
        dense.new_instance().forward(change(*arrays()))


@pytest.mark.parametrize(
    ("seeds", "error", "match"),
    [
        ([], InvalidDataError, "1 gradients are expected"),
        ([None], NotImplementedError, "'y' is None"),
        ([np.zeros((4, 2), np.float32)], InvalidDataError, "double"),
        ([np.zeros((2, 4))], InvalidDataError, r"shape of the output, \[4, 2\]"),
        ([np.zeros((5, 2))], InvalidDataError, r"\[5, 2\]"),
    ],
)
def test_bad_gradients_are_named(dense, seeds, error, match):
    function = dense.new_instance()
    function.forward(arrays(), training=True)
    with pytest.raises(error, match=match):
        function.backward(seeds)


SEVERAL = """g (double[N,2] x, int64[N] k, double[N,2] u) => (double[N,2] y, int64[N,1] a, double[N,2] x)
    <double[2,2] w = {1,2,3,4}> { t = MatMul(x, w)  s = Mul(t, u) y = Tanh(s)  a = ArgMax<axis=1>(y) }"""


def test_several_inputs_and_outputs():
    forback = OrtGradientForwardBackward(parse(SEVERAL))
    function = forback.new_instance()
    assert forback.cls_type_._grad_input_names == ["x", "k", "u", "w"]
    x, u, w = RNG.normal(size=(3, 2)), RNG.normal(size=(3, 2)), weights(parse(SEVERAL))["w"]
    y, a, same = function.forward([x, np.zeros(3, np.int64), u, w], training=True)
    np.testing.assert_array_equal(same.numpy(), x)
    dy, dx = RNG.normal(size=(2, 3, 2))
    got = [g.numpy() for g in function.backward([dy, a, dx])]
    local = dy * (1 - y.numpy() ** 2)
    np.testing.assert_allclose(got[0], (local * u) @ w.T + dx)
    np.testing.assert_allclose(got[1], local * (x @ w))
    np.testing.assert_allclose(got[2], x.T @ (local * u))
    before = same.numpy().copy()
    x[:] = 0
    np.testing.assert_array_equal(same.numpy(), before)


def test_two_instances_in_two_threads(dense):
    errors = []

    def work(seed):
        rng = np.random.default_rng(seed)
        function = dense.new_instance()
        _, w, b = arrays()
        for _ in range(20):
            x, dy = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
            (y,) = function.forward([x, w, b], training=True)
            got = function.backward([dy])[1].numpy()
            if not np.allclose(got, x.T @ (dy * (1 - y.numpy() ** 2))):
                errors.append(seed)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_an_mlp_of_scikit_learn_learns():
    x, y = make_regression(60, n_features=4, noise=0.1, random_state=0)
    y = y / np.abs(y).max()
    model = MLPRegressor(hidden_layer_sizes=(8,), max_iter=1, random_state=0)
    with pytest.warns(match="Maximum iterations"):
        model.fit(x, y)
    forback = OrtGradientForwardBackward(to_onnx(model, x[:1], target_opset=15))
    function = forback.new_instance()
    state = [forback.get_initializer(n) for n in forback.weights_to_train]
    losses = []
    for _ in range(60):
        (got,) = function.forward([x, *state], training=True)
        error = got.numpy() - y.reshape(-1, 1)
        losses.append(float((error**2).mean()))
        gradients = function.backward([error])
        state = [w - 0.1 / len(x) * g.numpy() for w, g in zip(state, gradients[1:], strict=True)]
    assert losses[-1] < 0.5 * losses[0]


# -- pickling, files, helpers ------------------------------------------------------------------


def test_pickle_keeps_options_and_results():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    first = OrtGradientForwardBackward(parse(DENSE), weights_to_train=["b", "w"], sess_options=options)
    for second in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert second.sess_options.intra_op_num_threads == 1
        assert second.cls_type_.__name__ == first.cls_type_.__name__
        x, w, b = arrays()
        seed = RNG.normal(size=(4, 2))
        results = []
        for forback in (first, second):
            function = forback.new_instance()
            function.forward([x, b, w], training=True)
            results.append([g.numpy() for g in function.backward([seed])])
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)


def test_save_onnx_graph(dense, tmp_path):
    saved = dense.new_instance().save_onnx_graph(tmp_path, prefix="p_", suffix="_s")
    name = dense.cls_type_.__name__
    assert saved["_trained_onnx"] == str(tmp_path / f"p_{name}_s._trained_onnx.onnx")
    for path in saved.values():
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="overwritten"):
        dense.cls_type_.save_onnx_graph(tmp_path, prefix="p_", suffix="_s")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        dense.cls_type_.save_onnx_graph(str(tmp_path / "nowhere"))
    in_memory = dense.save_onnx_graph(bytes)
    assert onnx.load_model_from_string(in_memory["onnx_model"]).graph.name == "dense"
    assert set(in_memory["cls_type_"]) == set(saved)


def test_helpers(dense):
    function = dense.new_instance()
    assert function.device_name("cpu") == function.device_name(CPU) == "Cpu"
    made = function.input_to_ort([np.ones(3), np.zeros((2, 2), np.float32)], [CPU, CPU], False)
    assert isinstance(made, OrtValueVector)
    assert [made[0].numpy().tolist(), made[1].numpy().tolist()] == [[1, 1, 1], [[0, 0], [0, 0]]]
    with pytest.raises(InvalidDataError, match="1 devices"):
        function.input_to_ort([np.ones(3), np.ones(3)], [CPU])
    assert dense._provider_name_to_device_type("CPUExecutionProvider") == "cpu"
    assert dense._select_initializer_names(parse(DENSE)) == ["w", "b"]
    assert "device_index=0" in dense._repr_helper_(dense)


def test_a_gradient_reshaped_from_a_copy_stays_alive(dense):
    function = OrtGradientForwardBackward(
        parse("g (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }")
    ).new_instance()
    x = np.ones((5000, 2), np.float32)
    function.forward([x, np.ones((2, 1), np.float32)], training=True)
    flat = np.arange(10000, dtype=np.float32)[::2]
    (seed,) = function._checked_gradients([flat]).values()
    np.full(5000, 7, np.float32)
    np.testing.assert_array_equal(seed.numpy().ravel(), flat)


def test_an_output_of_dictionaries_beside_one_that_is_differentiated():
    X, y = make_classification(60, n_features=4, n_informative=3, n_redundant=0, n_classes=3, random_state=0)
    X = X.astype(np.float32)
    model = to_onnx(LogisticRegression().fit(X, y), X, target_opset=17)  # ends in ZipMap
    with pytest.raises(NonDifferentiableError, match="zipmap"):
        OrtGradientForwardBackward(model)
    (zipmap,) = [node for node in model.graph.node if node.op_type == "ZipMap"]
    scores = onnx.helper.make_tensor_value_info(zipmap.input[0], onnx.TensorProto.FLOAT, [None, 3])
    model.graph.output.append(scores)
    function = OrtGradientForwardBackward(model).new_instance()
    outputs = function.forward([X, *weights(model).values()], training=True)
    assert len(outputs) == 3
    gradients = function.backward([None, None, np.ones((60, 3), np.float32)])
    assert [g.numpy().shape for g in gradients] == [(60, 4), (3, 4), (3,)]


def test_pickle_of_another_version_is_refused(dense):
    state = {**dense.__getstate__(), "onnxcustom_pickle_format": 0}
    with pytest.raises(CheckpointError, match="OrtGradientForwardBackward has format 0"):
        copy.copy(dense).__setstate__(state)


# -- memory of the caller ----------------------------------------------------------------------

TANH = """g (double[N,2] x) => (double[N,2] y) <double[2,2] w = {1, 2, 3, 4}, double[2] b = {1, -1}> {
    h = MatMul(x, w) a = Add(h, b) y = Tanh(a) }"""


@pytest.mark.parametrize("engine", ["onnx", "auto"])
@pytest.mark.parametrize("values", ["arrays", "ortvalues", "vector"])
def test_what_came_in_and_went_out_may_be_overwritten_before_backward(engine, values):
    """Ten batches through the same arrays: gradients are those of the batch that forward saw."""
    function = OrtGradientForwardBackward(parse(TANH), engine=engine).new_instance()
    x, w, b = np.empty((3, 2)), np.empty((2, 2)), np.empty(2)
    for _ in range(10):
        for array in (x, w, b):
            array[...] = RNG.normal(size=array.shape)
        y, dy = np.tanh(x @ w + b), RNG.normal(size=(3, 2))
        da = dy * (1 - y**2)
        expected = [da @ w.T, x.T @ da, da.sum(axis=0)]
        before = [x.copy(), w.copy(), b.copy()]
        given = [x, w, b]
        if values != "arrays":
            given = [onnxruntime.OrtValue.ortvalue_from_numpy(v) for v in given]
        if values == "vector":
            given = to_vector(given)
        outputs = function.forward(given, training=True)
        np.testing.assert_allclose(outputs[0].numpy(), y)
        outputs[0].update_inplace(np.full((3, 2), 7.0))
        for array in (x, w, b):
            array[...] = 1e6
        for saved, old in zip(function.saved_tensors, before, strict=True):
            np.testing.assert_array_equal(saved.numpy(), old)
        found = function.backward([dy])
        kept = [g.numpy() for g in found]
        for one, other in zip(kept, expected, strict=True):
            np.testing.assert_allclose(one, other)
        for gradient in found:  # nor is what was handed back read, or written, later
            gradient.update_inplace(np.zeros(gradient.shape()))
        for one, other in zip(function.backward([dy]), expected, strict=True):
            np.testing.assert_allclose(one.numpy(), other)


def test_results_stay_when_others_are_computed():
    function = OrtGradientForwardBackward(parse(TANH)).new_instance()
    w, b = np.eye(2), np.zeros(2)
    first = function.forward([np.ones((3, 2)), w, b], training=True)
    gradients = function.backward([np.ones((3, 2))])
    before = [v.numpy().copy() for v in (*first, *gradients)]
    function.forward([np.zeros((3, 2)), w, b], training=True)
    function.backward([np.full((3, 2), 5.0)])
    for value, old in zip((*first, *gradients), before, strict=True):
        np.testing.assert_array_equal(value.numpy(), old)


def test_forward_without_training_forgets_what_was_saved():
    function = OrtGradientForwardBackward(parse(TANH)).new_instance()
    values = [np.ones((3, 2)), np.eye(2), np.zeros(2)]
    function.forward(values, training=True)
    function.forward(values)
    with pytest.raises(RuntimeError, match="training=True"):
        function.backward([np.ones((3, 2))])
    with pytest.raises(RuntimeError, match="No tensors"):
        _ = function.saved_tensors


def test_pickles_keep_settings_that_are_enumerations():
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    first = OrtGradientForwardBackward(parse(TANH), sess_options=options)
    again = pickle.loads(pickle.dumps(first)).sess_options
    assert again.graph_optimization_level == options.graph_optimization_level
    assert again.execution_mode == options.execution_mode


@needs_fork
def test_einsum_of_no_rows():
    """onnxruntime up to 1.23 ends the process; a newer one has the outputs."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 3] y)
        <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { y = Einsum <equation = "ij,jk->ik"> (x, w) }"""
    )

    def work():
        function = OrtGradientForwardBackward(model, engine="onnx").new_instance()
        w = np.ones((2, 3), np.float32)
        shapes = []
        for rows in (0, 4):
            try:
                shapes.append(function.forward([np.ones((rows, 2), np.float32), w], training=True)[0].shape())
            except InvalidDataError as exc:
                shapes.append(str(exc))
        return shapes

    none, some = in_child(work)
    assert some == [4, 3]
    assert none == [0, 3] or "no rows" in none

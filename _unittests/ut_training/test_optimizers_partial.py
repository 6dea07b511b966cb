from __future__ import annotations

import copy
import inspect
import logging
import pickle
import warnings

import numpy as np
import onnx
import pytest
from skl2onnx import to_onnx
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, SGDClassifier, SGDRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor

from onnxcustom.exceptions import ConvergenceError, ConvergenceWarning, InvalidDataError, UnknownNameError
from onnxcustom.graph import weights
from onnxcustom.training import optimizers_partial
from onnxcustom.training.estimators import OnnxRegressor
from onnxcustom.training.optimizers_partial import OrtGradientForwardBackwardOptimizer
from onnxcustom.training.ortgradient import OrtGradientForwardBackward
from onnxcustom.training.sgd_learning_loss import NegLogLearningLoss, SquareLearningLoss
from onnxcustom.training.sgd_learning_rate import LearningRateSGD, LearningRateSGDNesterov

pytest.importorskip("onnxruntime")

OPSETS = {"": 18, "ai.onnx.ml": 3}


def data(n=40, columns=3):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, columns)).astype(np.float32)
    return X, (X @ np.arange(1, columns + 1) + 0.5).astype(np.float32)


@pytest.fixture
def make(linear_model):
    def made(**options):
        options = {"max_iter": 10, "random_state": 0, **options}
        return OrtGradientForwardBackwardOptimizer(linear_model(3), **options)

    return made


# -- the contract ------------------------------------------------------------------------------


def test_the_signature():
    names = inspect.signature(OrtGradientForwardBackwardOptimizer.__init__).parameters
    positional = [(n, p.default) for n, p in names.items() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    assert positional == [
        ("model_onnx", inspect.Parameter.empty),
        ("weights_to_train", None),
        ("loss_output_name", "loss"),
        ("max_iter", 100),
        ("training_optimizer_name", "SGDOptimizer"),
        ("batch_size", 10),
        ("learning_rate", "SGD"),
        ("device", "cpu"),
        ("warm_start", False),
        ("verbose", 0),
        ("validation_every", 0.1),
        ("learning_loss", "square_error"),
        ("enable_logging", False),
        ("weight_name", None),
        ("learning_penalty", None),
        ("exc", True),
    ]
    assert {n for n, p in names.items() if p.kind is p.KEYWORD_ONLY} == {"shuffle", "random_state", "engine"}


def test_the_constructor_only_stores():
    model = OrtGradientForwardBackwardOptimizer("no file", ["no weight"], batch_size=-1, learning_rate="none")
    assert model.batch_size == -1
    assert clone(model).get_params() == model.get_params()


def test_it_is_onnx_regressor_by_another_name(make):
    X, y = data()
    model = make(learning_rate=LearningRateSGD(0.1), batch_size=8).fit(X, y)
    reg = OnnxRegressor(
        model.model_onnx, optimizer=LearningRateSGD(0.1), batch_size=8, max_iter=10, random_state=0
    ).fit(X, y)
    for name, array in reg.weights_.items():
        np.testing.assert_array_equal(model.trained_coef_[name], array)
    assert model.train_losses_ == reg.history_["loss"]


@pytest.mark.parametrize("rate", [0.1, 1, np.float32(0.1), "SGD", "nesterov", "adam", LearningRateSGD(0.1)])
@pytest.mark.parametrize("penalty", [None, "elastic"])
def test_learning_rates_and_penalties(make, rate, penalty):
    X, y = data()
    model = make(learning_rate=rate, learning_penalty=penalty)
    before = repr(rate)
    model.fit(X, y)
    assert model.train_losses_[-1] < model.train_losses_[0]
    assert repr(rate) == before  # the instance given is not used up


def test_the_trained_coefficients(make):
    X, y = data()
    model = make(learning_rate=0.3, max_iter=60).fit(X, y.reshape(-1, 1))
    np.testing.assert_allclose(model.trained_coef_["w"][:, 0], [1, 2, 3], atol=0.05)
    assert list(model.trained_coef_) == ["w", "b"]
    np.testing.assert_array_equal(weights(model.get_trained_onnx())["w"], model.trained_coef_["w"])


def test_predict_score_losses(make):
    X, y = data()
    w = np.arange(1.0, 41)
    model = make()
    for fitted in (False, True):
        predicted = model.predict(X)
        assert predicted.shape == (40, 1)
        expected = (predicted[:, 0] - y) ** 2 / 2
        np.testing.assert_allclose(model.losses(X, y), expected, rtol=1e-5)
        np.testing.assert_allclose(model.losses(X, y, w), w * expected, rtol=1e-5)
        np.testing.assert_array_equal(model.scores(X, y), model.losses(X, y))
        assert model.score(X, y) == pytest.approx(-expected.mean(), rel=1e-5)
        assert model.score(X, y, w) == pytest.approx(-(w * expected).mean(), rel=1e-5)
        if not fitted:
            assert not hasattr(model, "step_")
            model.fit(X, y)


@pytest.mark.parametrize(
    ("every", "max_iter", "count"), [(0.1, 10, 10), (0.25, 8, 4), (1, 6, 6), (3, 6, 2), (0.5, 1, 1)]
)
def test_validation_every(make, every, max_iter, count):
    X, y = data()
    model = make(validation_every=every, max_iter=max_iter).fit(X, y, X_val=X[:5], y_val=y[:5])
    assert len(model.train_losses_) == max_iter
    assert len(model.validation_losses_) == count
    assert model.validation_losses_[-1] == pytest.approx(-model.score(X[:5], y[:5]), rel=1e-6)
    assert model.fit(X, y).validation_losses_ is None


@pytest.mark.parametrize("bad", [0, -1, "a", True, np.nan, None])
def test_bad_validation_every(make, bad):
    X, y = data()
    with pytest.raises(ValueError, match="validation_every must be"):
        make(validation_every=bad).fit(X, y)


@pytest.mark.parametrize("kind", ["weight", "grad"])
def test_get_state_and_set_state(make, kind):
    X, y = data()
    model = make(learning_rate="nesterov", warm_start=True)
    for call in (model.get_state, lambda: model.set_state([]), lambda: model.trained_coef_):
        with pytest.raises(AttributeError, match="not fitted"):
            call()
    model.fit(X, y)
    before = model.get_state(kind)
    assert [tuple(v.shape()) for v in before] == [(3, 1), (1,)]
    other = make(learning_rate="nesterov", warm_start=True).fit(X, 2 * y)
    other.set_state(before, kind=kind)
    for one, wanted in zip(other.get_state(kind), before, strict=True):
        np.testing.assert_array_equal(one.numpy(), wanted.numpy())
    other.set_state([v.numpy() for v in before], kind=kind)
    with pytest.raises(InvalidDataError, match=r"1 tensors for 2"):
        other.set_state(before[:1], kind=kind)
    with pytest.raises(InvalidDataError, match=r"shape"):
        other.set_state(before[::-1], kind=kind)
    with pytest.raises(UnknownNameError, match="'weight' or 'grad'"):
        other.get_state("velocity")


@pytest.mark.parametrize("bad", [None, 3, "ab", [1, 2], [None, None], {"w": 1}], ids=repr)
def test_set_state_takes_tensors(make, bad):
    model = make().fit(*data())
    before = model.trained_coef_
    with pytest.raises(InvalidDataError, match="state must be a list of"):
        model.set_state(bad)
    for name, array in model.trained_coef_.items():
        np.testing.assert_array_equal(array, before[name])


def test_state_there_and_back_is_a_resumed_training(make):
    X, y = data()
    one, other = (make(learning_rate="nesterov", warm_start=True).fit(X, y) for _ in range(2))
    state = [[v.numpy().copy() for v in one.get_state(kind)] for kind in ("weight", "grad")]
    one.fit(X, y)
    one.set_state(state[0])
    one.set_state(state[1], kind="grad")
    np.testing.assert_array_equal(one.predict(X), other.predict(X))
    assert make(learning_rate=0.1).fit(X, y).get_state("grad") == []


def test_get_trained_onnx_of_another_model(make, linear_model):
    X, y = data()
    model = make().fit(X, y)
    other = model.get_trained_onnx(linear_model(3, end="Sigmoid", seed=None))
    np.testing.assert_array_equal(weights(other)["w"], model.trained_coef_["w"])
    assert other.graph.node[-1].op_type == "Sigmoid"


def test_forward_and_backward_of_the_trained_model(make):
    X, y = data()
    model = make(learning_rate=LearningRateSGD(0.1)).fit(X, y)
    assert isinstance(model.train_session_, OrtGradientForwardBackward)
    assert model.input_names_ == ["x", "w", "b"]
    assert model.output_names_ == ["x_grad", "w_grad", "b_grad"]
    function = model.train_function_
    (out,) = function.forward([X, *(v.numpy() for v in model.get_state())], training=True)
    np.testing.assert_allclose(out.numpy(), model.predict(X), rtol=1e-6)
    _, dw, _ = function.backward([(out.numpy() - y[:, None]).astype(np.float32)])
    np.testing.assert_allclose(dw.numpy(), X.T @ (out.numpy() - y[:, None]), rtol=1e-4, atol=1e-4)
    first = model.train_session_
    assert model.train_session_ is first
    np.testing.assert_array_equal(first.get_initializer("w"), model.trained_coef_["w"])
    model.fit(X, 3 * y)
    np.testing.assert_array_equal(model.train_session_.get_initializer("w"), model.trained_coef_["w"])


def test_one_function_for_forward_and_backward(make):
    X, y = data()
    model = make().fit(X, y)
    function = model.train_function_
    assert model.train_function_ is function
    assert isinstance(function, model.train_session_.cls_type_)
    model.train_function_.forward([X, *model.get_state()], training=True)
    expected = model.train_function_.backward([np.ones((len(X), 1), np.float32)])
    np.testing.assert_allclose(expected[1].numpy(), X.sum(axis=0).reshape(-1, 1), rtol=1e-5)
    copied = pickle.loads(pickle.dumps(model))
    assert copied.train_function_ is copied.train_function_ is not function
    model.set_state(model.get_state())
    assert model.train_function_ is not function
    assert isinstance(model.train_function_, model.train_session_.cls_type_)


def test_save_onnx_graph(make, tmp_path):
    X, y = data()
    fresh = make().save_onnx_graph(bytes)
    assert list(fresh) == ["model_onnx", "step_", "train_session_"]
    model = make().fit(X, y)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.save_onnx_graph(tmp_path / "nowhere")
    saved = model.save_onnx_graph(tmp_path, prefix="a_", suffix="_b")

    def files(found):
        return [f for v in found.values() for f in (files(v) if isinstance(v, dict) else [v])]

    assert saved["step_"].endswith("a_OrtGradientForwardBackwardOptimizer_b.step_.onnx")
    for path in files(saved):
        onnx.checker.check_model(onnx.load(path))
    inside = model.save_onnx_graph(bytes)
    assert list(inside) == list(saved) == ["model_onnx", "trained_onnx", "step_", "train_session_"]
    onnx.checker.check_model(onnx.load_model_from_string(inside["trained_onnx"]))
    with pytest.warns(UserWarning, match="exists and is overwritten"):
        model.save_onnx_graph(tmp_path, prefix="a_", suffix="_b")


# -- divergence --------------------------------------------------------------------------------


def test_divergence_is_an_error(make):
    X, y = data()
    model = make(learning_rate=1e20)
    with pytest.raises(ConvergenceError):
        model.fit(X, y)
    assert len(model.train_losses_) < 2
    assert len(model.get_state()) == 2
    assert all(np.isfinite(v.numpy()).all() for v in model.get_state())


def test_divergence_is_a_warning_on_request(make):
    X, y = data()
    model = make(learning_rate=1e20, exc=False)
    with pytest.warns(ConvergenceWarning, match="Epoch 1.*Lower the learning rate") as caught:
        assert model.fit(X, y) is model
    assert caught[0].filename == __file__
    assert all(np.isfinite(a).all() for a in model.trained_coef_.values())
    assert np.isfinite(model.predict(X)).all()


def test_other_training_optimizers_do_not_exist(make):
    X, y = data()
    with pytest.raises(UnknownNameError, match=r"'SGDOptimizer', not 'AdamOptimizer'.*learning_rate"):
        make(training_optimizer_name="AdamOptimizer").fit(X, y)


# -- copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(make, copied):
    X, y = data()
    model = copied(make(learning_rate="nesterov", warm_start=True))
    model.fit(X, y)
    assert model.train_session_ is not None  # sessions don't get into pickles
    other = copied(model)
    assert other.train_losses_ == model.train_losses_
    other.fit(X, y), model.fit(X, y)
    assert other.train_losses_ == model.train_losses_
    for name, array in model.trained_coef_.items():
        np.testing.assert_array_equal(array, other.trained_coef_[name])


# -- calls of old ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted():
    """A linear regression as older code converts it: weights ``coef`` and ``intercept``."""
    X, y = data(60, 10)
    reg = LinearRegression().fit(X, y)
    reg.coef_ = reg.coef_.reshape((1, -1))
    model = to_onnx(reg, X, target_opset=OPSETS, black_op={"LinearRegressor"})
    onnx.helper.set_model_props(model, {"info": "unit test"})
    assert list(weights(model)) == ["coef", "intercept"]
    return model, X, y


@pytest.mark.parametrize("use_numpy", [True, False])
def test_old_fit(converted, use_numpy):
    model, X, y = converted
    train_session = OrtGradientForwardBackwardOptimizer(model, ["coef", "intercept"], max_iter=10)
    with pytest.raises(AttributeError):
        train_session.get_state()
    train_session.fit(X, y, X_val=X[:5], y_val=y[:5], use_numpy=use_numpy)
    assert len(train_session.get_state()) == 2
    assert repr(train_session).startswith("OrtGradientForwardBackwardOptimizer(model_onnx=")
    assert len(train_session.train_losses_) > 1
    assert not np.isnan(train_session.train_losses_).any()
    assert len(train_session.validation_losses_) > 1


def test_old_repr_names_the_schedule(converted):
    model, X, y = converted
    rate = LearningRateSGD(learning_rate="optimal")
    train_session = OrtGradientForwardBackwardOptimizer(model, max_iter=3, learning_rate=rate).fit(X, y)
    assert "learning_rate='optimal'" in repr(train_session)


def test_old_logging(converted, caplog):
    model, X, y = converted
    with caplog.at_level(logging.DEBUG, logger="onnxcustom"):
        train_session = OrtGradientForwardBackwardOptimizer(model, max_iter=3, enable_logging=True)
        assert train_session.fit(X, y, use_numpy=True) is train_session
    lines = [r.getMessage() for r in caplog.records if "run_epoch" in r.getMessage()]
    assert len(lines) == 3
    assert lines[0].startswith("[OrtGradientForwardBackwardOptimizer.run_epoch] epoch=1 loss=")


def test_old_mlp():
    X, y = data(40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reg = MLPRegressor(hidden_layer_sizes=(3, 5), max_iter=5, solver="sgd", batch_size=7).fit(X, y)
    model = to_onnx(reg, X, target_opset=OPSETS)
    session = OrtGradientForwardBackwardOptimizer(model, learning_rate=1e-4, max_iter=5).fit(X, y)
    assert len(session.get_state()) == 6


def test_old_grid_of_rates():
    X = np.arange(60).astype(np.float32).reshape((-1, 3))
    y = np.arange(X.shape[0]).astype(np.float32).reshape((-1, 1))
    reg = SGDRegressor(max_iter=20, eta0=1e-4, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reg.fit(X, y.ravel())
    model = to_onnx(reg, X, target_opset=OPSETS, black_op={"LinearRegressor"})
    grid = GridSearchCV(
        OrtGradientForwardBackwardOptimizer(
            model,
            list(weights(model)),
            learning_rate=LearningRateSGD(1e-4),
            learning_loss=SquareLearningLoss(),
            warm_start=False,
            max_iter=20,
            batch_size=10,
            enable_logging=False,
            exc=False,
            random_state=0,
        ),
        param_grid={"learning_rate": [LearningRateSGD(v) for v in (1e-6, 1e-5, 1e-1)]},
        cv=3,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the largest rate diverges
        grid.fit(X, y)
    assert isinstance(grid.best_params_["learning_rate"], LearningRateSGD)
    assert grid.best_params_["learning_rate"].eta0 < 0.1
    assert grid.best_estimator_.get_params()["device"] == "cpu"


@pytest.mark.parametrize("weighted", [False, True])
def test_old_classifier_on_raw_scores(weighted):
    X, y = data(60)
    y = (y > 0).astype(np.int64)
    w = np.linspace(1, 2, 60).astype(np.float32)
    reg = SGDClassifier(loss="log_loss", random_state=0).fit(X, y)
    model = to_onnx(
        reg,
        X,
        target_opset=OPSETS,
        black_op={"LinearClassifier"},
        options={"zipmap": False, "raw_scores": True},
    )
    train_session = OrtGradientForwardBackwardOptimizer(
        _keep(model, "score"),
        ["coef", "intercept"],
        weight_name="weight" if weighted else None,
        learning_rate=LearningRateSGDNesterov(1e-4, nesterov=False, momentum=0.9),
        learning_loss=NegLogLearningLoss(),
        warm_start=False,
        max_iter=20,
        batch_size=10,
    )
    assert train_session.learning_loss.eps == 1e-5
    train_session.fit(X, y.reshape((-1, 1)), *([w.reshape((-1, 1))] if weighted else []))
    assert train_session.train_losses_[-1] < train_session.train_losses_[0]
    assert list(train_session.save_onnx_graph(bytes))


def _keep(model, name):
    """The model up to one of its tensors."""
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    del kept.graph.output[:]
    kept.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 1]))
    needed, nodes = {name}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.insert(0, node)
            needed |= set(node.input)
    del kept.graph.node[:]
    kept.graph.node.extend(nodes)
    inits = [t for t in model.graph.initializer if t.name in needed]
    del kept.graph.initializer[:]
    kept.graph.initializer.extend(inits)
    return kept


def test_nothing_else_is_public():
    assert optimizers_partial.__all__ == ["OrtGradientForwardBackwardOptimizer"]


def test_state_outlives_what_it_was_made_from(linear_model):
    X = np.arange(60, dtype=np.float32).reshape(-1, 3) / 60
    opt = OrtGradientForwardBackwardOptimizer(
        linear_model(3), learning_rate=LearningRateSGDNesterov(1e-2), max_iter=2, random_state=0
    ).fit(X, X.sum(axis=1))
    for kind, wanted in (("weight", opt.step_.weights().values()), ("grad", None)):
        found = [value.numpy().copy() for value in opt.get_state(kind)]
        views = [value.numpy() for value in opt.get_state(kind)]
        junk = [np.full(view.shape, np.nan, dtype=view.dtype) for view in views for _ in range(50)]
        for a, b in zip(found, views, strict=True):
            np.testing.assert_array_equal(a, b)
        assert junk
        if wanted is not None:
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b)

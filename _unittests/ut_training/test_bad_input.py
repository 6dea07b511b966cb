"""Bad input: a clear error, of the right type, and nothing has changed."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import onnx
import pytest
from sklearn.exceptions import NotFittedError

from onnxcustom.exceptions import (
    CheckpointError,
    ConvergenceError,
    DifferentiationError,
    InvalidDataError,
    InvalidModelError,
    InvalidParameterError,
    NoTrainableWeightError,
    OnnxCustomError,
    ProviderError,
    UnknownNameError,
)
from onnxcustom.optim import create
from onnxcustom.step.training_step import TrainingStep
from onnxcustom.training.estimators import OnnxClassifier, OnnxRegressor
from onnxcustom.training.optimizers_partial import OrtGradientForwardBackwardOptimizer

ort = pytest.importorskip("onnxruntime")


def data(n=20):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3)).astype(np.float32)
    return X, (X @ [1, 2, 3]).astype(np.float32)


def parse(text):
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')


def picture(estimator, X):
    """Everything a user can see of an estimator."""
    return (
        {n: a.tolist() for n, a in estimator.weights_.items()},
        {w: {k: a.tolist() for k, a in s.items()} for w, s in estimator.step_.state().items()},
        copy.deepcopy(estimator.history_),
        estimator.n_iter_,
        estimator.step_.iteration,
        estimator.step_.optimizer.value,
        estimator.predict(X).tolist(),
        estimator.get_trained_onnx().SerializeToString(deterministic=True),
        getattr(estimator, "classes_", np.empty(0)).tolist(),
        getattr(estimator, "n_features_in_", None),
    )


class Untouched:
    """Estimators that refuse and don't change: a new one, and one that was fitted, warm start or not."""

    def __init__(self, make, labels=None):
        self.make = make
        self.X, y = data()
        self.y = y if labels is None else np.asarray(labels)[(y > 0).astype(int)]
        self.fit()

    def fit(self):
        """The fitted estimator that all tests share, since none of them changes it."""
        self.fitted = self.make().set_params(optimizer="adam").fit(self.X, self.y)
        self.before = picture(self.fitted, self.X)
        self.params = self.fitted.get_params(deep=False)

    def refuses(self, error, message, params=None, fit=None):
        params, arguments = params or {}, {"X": self.X, "y": self.y, **(fit or {})}
        fresh = self.make().set_params(**params)
        attributes = dict(vars(fresh))
        with pytest.raises(error, match=message) as caught:
            fresh.fit(**arguments)
        assert isinstance(caught.value, OnnxCustomError)  # as the pages say
        assert vars(fresh) == attributes
        assert not hasattr(fresh, "weights_")
        try:
            for warm in (False, True):
                self.fitted.set_params(**{"warm_start": warm, **params})
                calls = [self.fitted.fit] + ([self.fitted.partial_fit] if "max_iter" not in params else [])
                for call in calls:
                    with pytest.raises(error, match=message):
                        call(**arguments)
            self.fitted.set_params(**self.params)
            assert picture(self.fitted, self.X) == self.before
        except BaseException:
            self.fit()
            raise


@pytest.fixture(scope="module")
def regressor(mlp_model):
    model = mlp_model([3, 2, 1])
    made = Untouched(lambda: OnnxRegressor(model, batch_size=8, max_iter=2, random_state=0))
    yield made
    # After all that it goes on as if nothing had been asked.
    other = made.make().set_params(optimizer="adam").fit(made.X, made.y)
    assert picture(made.fitted.partial_fit(made.X, made.y), made.X) == picture(
        other.partial_fit(made.X, made.y), made.X
    )


@pytest.fixture(scope="module")
def classifier(mlp_model):
    model = mlp_model([3, 2, 1], end="Sigmoid")
    return Untouched(
        lambda: OnnxClassifier(model, batch_size=8, max_iter=2, random_state=0), labels=("no", "yes")
    )


# -- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"no model at all", b"", "missing.onnx", 3, None])
def test_not_an_onnx_file(regressor, bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    regressor.refuses(InvalidModelError, r"(?i)onnx|model|file", {"model": bad})


def test_a_truncated_file(regressor, mlp_model, tmp_path):
    path = tmp_path / "torn.onnx"
    path.write_bytes(mlp_model([3, 8, 1]).SerializeToString()[:-40])
    regressor.refuses(InvalidModelError, r"torn\.onnx", {"model": str(path)})


def test_a_model_without_weights(regressor):
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Tanh(x) }")
    regressor.refuses(NoTrainableWeightError, r"no trainable weight", {"model": model})


def test_a_model_with_weights_that_are_not_finite(regressor, linear_model):
    model = linear_model(3)
    model.graph.initializer[0].raw_data = np.full(3, np.inf, np.float32).tobytes()
    regressor.refuses(
        InvalidModelError, r"'w'.* NaN or infinity", {"model": model, "weights_to_train": ["w"]}
    )


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["w0", "w9"], UnknownNameError, r"\['w9'\].*\['w0', 'b0', 'w1', 'b1'\]"),
        (["w0", "w0"], UnknownNameError, r"repeats \['w0'\]"),
        ([], NoTrainableWeightError, r"empty; the model has \['w0', 'b0', 'w1', 'b1'\]"),
        ("w9", UnknownNameError, r"\['w9'\].*A list holds names, patterns"),
        (5, UnknownNameError, r"\[5\]"),
        ("last:3", UnknownNameError, r"more layers than the 2 of the model"),
        ([0], UnknownNameError, r"\[0\]"),
    ],
)
def test_names_of_weights(regressor, names, error, message):
    regressor.refuses(error, message, {"weights_to_train": names})


def test_an_integer_output(regressor):
    model = parse("""g (float[N,3] x) => (int64[N] best, float[N,1] y) <float[3,1] w = {1, 2, 3}>
        { y = MatMul(x, w) best = ArgMax <axis = 1, keepdims = 0> (x) }""")
    message = r"'best' is not a floating-point tensor.*\['y'\]"
    regressor.refuses(InvalidModelError, message, {"model": model, "loss": {"best": "squared_error"}})
    model = parse(
        "g (float[N,3] x) => (int64[N] best) <float[3,2] w = {1, 2, 3, 4, 5, 6}> "
        "{ y = MatMul(x, w) best = ArgMin <axis = 1, keepdims = 0> (y) }"
    )
    regressor.refuses(InvalidModelError, r"outputs \['best'\].* floating-point", {"model": model})


def test_an_operator_without_gradient(regressor):
    model = parse(
        "g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {1,0,0,0,1,0,0,0,1}> "
        "{ [mul] z = MatMul(x, w) [where] d = NonZero(z) "
        "f = Cast <to = 1> (d) t = Transpose(f) s = ReduceSum <keepdims = 0> (t) y = Add(x, s) }"
    )
    with pytest.raises(DifferentiationError) as caught:
        OnnxRegressor(model).fit(*data())
    assert caught.value.op_type in ("NonZero", "Cast")
    assert caught.value.op_type in str(caught.value)
    regressor.refuses(DifferentiationError, r"NonZero|Cast", {"model": model})


def test_an_unknown_operator(regressor):
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18, "my.domain": 1]>
        g (float[N,3] x) => (float[N,1] y) <float[3,1] w = {1, 2, 3}>
        { z = MatMul(x, w) [mine] y = my.domain.Twist(z) }""")
    with pytest.raises(OnnxCustomError, match="Twist"):
        OnnxRegressor(model).fit(*data())


# -- data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fit", "error", "message"),
    [
        ({"y": np.zeros(19)}, InvalidDataError, r"X has 20 rows.*y has 19 rows"),
        ({"X": np.zeros((20, 4))}, InvalidDataError, r"Input 'x'.* 3 (columns|features)"),
        ({"X": np.zeros(20)}, InvalidDataError, r"'x'.*1D array"),
        ({"X": np.zeros((20, 3, 1))}, InvalidDataError, r"'x' wants 2 dimensions.*has 3"),
        ({"y": np.zeros((20, 2))}, InvalidDataError, r"y wants 1 columns?, the data has 2"),
        ({"X": np.full((20, 3), np.nan)}, InvalidDataError, r"'x'.*NaN"),
        ({"X": np.full((20, 3), np.inf)}, InvalidDataError, r"'x'.*infinity"),
        ({"X": np.full((20, 3), 1e300)}, InvalidDataError, r"'x'.*infinity|too large"),
        ({"y": np.full(20, np.nan)}, InvalidDataError, r"(?i)y.*NaN"),
        ({"y": np.full(20, -np.inf)}, InvalidDataError, r"(?i)y.*infinity"),
        ({"X": np.zeros((0, 3)), "y": np.zeros(0)}, InvalidDataError, r"'x'.*0 sample"),
        ({"X": [["a", "b", "c"]] * 20}, InvalidDataError, r"'x'"),
        ({"X": None}, InvalidDataError, r"'x'"),
        ({"y": None}, InvalidDataError, r"y to be passed, but the target y is None"),
        ({"y": ["a"] * 20}, InvalidDataError, r"(?i)y"),
        ({"X": np.full((20, 3), "1.5")}, InvalidDataError, r"'x' is text, such as '1.5'"),
        ({"X": [["1.5", "2", "3"]] * 20}, InvalidDataError, r"'x' is text, such as '1.5'"),
        ({"y": np.full(20, b"1.5")}, InvalidDataError, r"(?i)y is text"),
        ({"sample_weight": np.full(20, "1")}, InvalidDataError, r"(?i)sample_weight is text, such as '1'"),
        (
            {"X": {"z": np.zeros((20, 3))}},
            UnknownNameError,
            r"\['x'\] missing; \['z'\] unknown",
        ),
        ({"y": {"z": np.zeros(20)}}, UnknownNameError, r"\['z'\].*\['y'\]"),
        (
            {"sample_weight": -np.ones(20)},
            InvalidDataError,
            r"sample_weight must not be negative: row 0 has -1",
        ),
        ({"sample_weight": np.zeros(20)}, InvalidDataError, r"sample_weight is zero for every row"),
        ({"sample_weight": np.full(20, np.nan)}, InvalidDataError, r"(?i)sample_weight.*NaN"),
        ({"sample_weight": np.full(20, np.inf)}, InvalidDataError, r"(?i)sample_weight.*infinity"),
        ({"sample_weight": np.ones(19)}, InvalidDataError, r"X has 20 rows, sample_weight has 19 rows"),
        ({"sample_weight": np.ones((20, 2))}, InvalidDataError, r"(?i)sample_weight wants 1 dimension"),
        ({"X_val": np.zeros((5, 3))}, InvalidDataError, r"both X_val and y_val; one of them is None"),
        ({"y_val": np.zeros(5)}, InvalidDataError, r"both X_val and y_val"),
        (
            {"X_val": np.zeros((5, 2)), "y_val": np.zeros(5)},
            InvalidDataError,
            r"'x'.* 3 (columns|features)|'x': X has 2 features",
        ),
        ({"X_val": np.zeros((5, 3)), "y_val": np.zeros(4)}, InvalidDataError, r"X has 5 rows.*y has 4 rows"),
    ],
)
def test_data(regressor, fit, error, message):
    regressor.refuses(error, message, fit=fit)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["no", "yes", "perhaps"] * 6 + ["no"] * 2, r"3 .*'no', 'perhaps', 'yes'|\['perhaps'\]"),
        ([None, "no"] * 10, r"None or NaN"),
        ([np.nan, 1.0] * 10, r"NaN"),
        ([np.inf, 1.0] * 10, r"infinity"),
        (None, r"y to be passed, but the target y is None"),
        (["no", 3] * 10, r"several types|\[3\]|labels"),
        (["no"] * 19 + ["yes"] * 2, r"X has 20 rows.*y has 21 rows"),
    ],
)
def test_labels(classifier, y, message):
    y = y if y is None else np.array(y, dtype=object) if None in y or 3 in y else np.array(y)
    classifier.refuses(InvalidDataError, message, fit={"y": y})


def test_an_output_with_too_few_columns_for_the_labels_of_the_graph(classifier):
    model = parse("""g (float[N,3] x) => (int64[N] label, float[N,2] p)
        <float[3,2] w = {1, 2, 3, 4, 5, 6}, int64[3] names = {4, 5, 6}>
        { z = MatMul(x, w) p = Softmax(z) best = ArgMax <axis = 1, keepdims = 0> (p)
          label = Gather(names, best) }""")
    classifier.refuses(
        InvalidModelError, r"3 classes, \[4, 5, 6\], and output 'p' has 2 columns", {"model": model}
    )


# -- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, r"batch_size must be an integer of at least 1, not 0"),
        ({"batch_size": -3}, ValueError, r"batch_size .* not -3"),
        ({"batch_size": 1.5}, ValueError, r"batch_size .* not 1\.5"),
        ({"batch_size": True}, ValueError, r"batch_size .* not True"),
        ({"max_iter": 0}, ValueError, r"max_iter must be an integer of at least 1, not 0"),
        ({"max_iter": 2.5}, ValueError, r"max_iter .* not 2\.5"),
        ({"max_iter": None}, ValueError, r"max_iter .* not None"),
        ({"loss": "nope"}, UnknownNameError, r"'nope'.*squared_error"),
        ({"loss": {"nope": "square"}}, UnknownNameError, r"no output 'nope'; its outputs are \['y'\]"),
        ({"loss": {}}, UnknownNameError, r"No loss given.*\['y'\]"),
        ({"loss_weights": {"nope": 2}}, UnknownNameError, r"no output 'nope'"),
        ({"loss_weights": {"y": np.nan}}, ValueError, r"loss_weights.*'y'.*nan"),
        ({"loss_weights": {"y": "a"}}, (ValueError, TypeError), r"loss_weights.*'y'"),
        ({"optimizer": "nope"}, UnknownNameError, r"'nope'.*adam"),
        ({"optimizer": 3}, UnknownNameError, r"3.*adam"),
        ({"penalty": "nope"}, UnknownNameError, r"'nope'.*elastic"),
        ({"penalty": {"nope": "l1"}}, UnknownNameError, r"'nope'.*'w0', 'b0', 'w1', 'b1'"),
        ({"learning_rate": -0.1}, ValueError, r"learning_rate.*-0\.1"),
        ({"learning_rate": np.nan}, ValueError, r"learning_rate.*nan"),
        ({"learning_rate": "nope"}, UnknownNameError, r"'nope'"),
        ({"device": "tpu"}, ProviderError, r"tpu.*(?i:cpu)"),
        ({"device": 3}, ProviderError, r"3.*(?i:cpu)"),
        ({"engine": "nope"}, UnknownNameError, r"engine 'nope'; there are 'auto', "),
        ({"random_state": -1}, ValueError, r"random_state"),
        ({"random_state": "seed"}, ValueError, r"random_state"),
        ({"shuffle": "maybe"}, ValueError, r"shuffle must be True or False, not 'maybe'"),
        ({"warm_start": "maybe"}, ValueError, r"warm_start must be True or False, not 'maybe'"),
        ({"verbose": "maybe"}, ValueError, r"verbose .* not 'maybe'"),
    ],
)
def test_parameters(regressor, params, error, message):
    regressor.refuses(error, message, params)


def test_a_bad_parameter_is_one_error_whatever_is_bad_of_it(regressor):
    for params in (
        {"batch_size": 1.5},
        {"max_iter": 0},
        {"shuffle": "no"},
        {"verbose": -1},
        {"callbacks": 3},
    ):
        with pytest.raises(InvalidParameterError) as caught:
            regressor.make().set_params(**params).fit(regressor.X, regressor.y)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, TypeError)
    for options in ({"lr_mult": [1]}, {"beta1": 2}, {"learning_rate": [1]}, {"skip_nonfinite": "no"}):
        with pytest.raises(InvalidParameterError):
            create("adam", **options)


WEIGHTS = np.ones(20)
ODD = {
    "X": [np.zeros((0, 3)), 1.0, None, {1}, (v for v in "ab"), memoryview(b"ab")],
    "y": [np.zeros(19), np.zeros(22), np.zeros((1, 20)), None, 1.0, [], [[1], [1, 2]]],
    "sample_weight": [
        *(
            WEIGHTS[:19],
            np.ones(22),
            WEIGHTS[None],
            np.ones((20, 2)),
            -WEIGHTS,
            WEIGHTS * 0,
            [],
            {},
            ["1"] * 20,
        ),
        *(np.ma.masked_array(WEIGHTS, WEIGHTS > 0), WEIGHTS.astype(complex), [[1], [1, 2]]),
    ],
}


@pytest.mark.parametrize(("part", "bad"), [(part, bad) for part, all in ODD.items() for bad in all])
def test_what_else_is_done_with_data_refuses_what_is_refused_without(regressor, classifier, part, bad):
    for net, params in (
        (regressor, {"validation_fraction": 0.25}),
        (classifier, {"validation_fraction": 0.25}),
        (classifier, {"class_weight": {"no": 2.0}}),
    ):
        if part != "X" or net is regressor:
            net.refuses(InvalidDataError, r"(?s)^.{,400}$", params, {part: bad})


@pytest.mark.parametrize("way", [{}, {"validation_fraction": 0.25}, {"class_weight": {"no": 2.0}}])
def test_one_weight_for_all_rows(classifier, way):
    curves = [
        classifier.make().set_params(**way).fit(classifier.X, classifier.y, weight).history_
        for weight in (2 * WEIGHTS, 2, np.float32(2), np.array(2.0))
    ]
    assert all(curve == curves[0] for curve in curves)


def test_numbers_beyond_the_dtype_are_an_error_without_a_warning(regressor):
    regressor.refuses(
        InvalidDataError, r"^y: Input y contains infinity", fit={"X": np.ones((2, 3)), "y": [1e300, -1e300]}
    )


@pytest.mark.parametrize("weights", [-np.ones(20), np.full(20, np.nan), np.ones(19), np.full(20, "1")])
def test_weights_of_scores_are_those_of_fit(regressor, classifier, weights):
    for made in (regressor, classifier):
        with pytest.raises(InvalidDataError, match=r"(?i)sample_weight"):
            made.fitted.score(made.X, made.y, sample_weight=weights)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="there is CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "gpu"])
def test_cuda_where_there_is_none(regressor, device):
    regressor.refuses(ProviderError, r"(?i)(cuda|gpu).*CPUExecutionProvider", {"device": device})


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True])
def test_epochs_of_partial_fit(regressor, epochs):
    reg = regressor.make().fit(regressor.X, regressor.y)
    before = picture(reg, regressor.X)
    with pytest.raises(ValueError, match=r"epochs must be an integer of at least 1"):
        reg.partial_fit(regressor.X, regressor.y, epochs=epochs)
    assert picture(reg, regressor.X) == before


def test_a_loss_that_does_not_belong_to_the_end_of_the_model(classifier, mlp_model):
    model = mlp_model([3, 2], end="Softmax")
    message = r"BinaryCrossEntropy.*sigmoid.*'y' ends in a softmax"
    classifier.refuses(InvalidModelError, message, {"model": model, "loss": "binary_crossentropy"})


# -- training ----------------------------------------------------------------------------------


def test_nan_in_epoch_3_keeps_the_last_finite_weights(regressor):
    class Poisoned(OnnxRegressor):
        def run_epoch(self, loader):
            if self.n_iter_ == 2:
                loader.arrays["x"][:] = np.nan
            return super().run_epoch(loader)

    X, y = data()
    good = regressor.make().fit(X, y)
    reg = Poisoned(**regressor.make().set_params(max_iter=9).get_params(deep=False))
    with pytest.raises(ConvergenceError, match=r"Epoch 3.*nan.*step 7.*learning rate"):
        reg.fit(X.copy(), y)
    assert picture(reg, X)[:5] == picture(good, X)[:5]
    onnx.checker.check_model(reg.get_trained_onnx())


def test_predict_before_fit(regressor, classifier):
    for made in (regressor, classifier):
        with pytest.raises(NotFittedError, match="call fit"):
            made.make().predict(made.X)
    older = OrtGradientForwardBackwardOptimizer(regressor.make().model)
    assert older.predict(regressor.X).shape == (20, 1)  # the model's own weights, as documented


@pytest.mark.parametrize("bad", [np.zeros((2, 4)), np.full((2, 3), np.nan), np.zeros((0, 3)), None])
def test_bad_features_of_predict(regressor, bad):
    reg = regressor.make().fit(regressor.X, regressor.y)
    before = picture(reg, regressor.X)
    with pytest.raises(InvalidDataError, match="'x'"):
        reg.predict(bad)
    assert picture(reg, regressor.X) == before


def test_a_pickle_of_another_version(regressor, monkeypatch):
    reg = regressor.make().fit(regressor.X, regressor.y)
    for thing in (reg, reg.step_):
        monkeypatch.setattr("onnxcustom._versioning.PICKLE_FORMAT", 77)
        old = pickle.dumps(thing)
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match=r"format 77; this version .* reads format 1"):
            pickle.loads(old)


# -- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.zeros((2, 4)), np.zeros(2)), r"'x' wants 3 columns, the data has 4"),
        ((np.zeros((2, 3)), np.zeros(3)), r"X has 2 rows.*y has 3 rows"),
        ((np.zeros((2, 3)), np.zeros(2), [1, -1]), r"negative: row 1"),
        ((np.full((2, 3), np.nan), np.zeros(2)), r"NaN"),
    ],
)
def test_a_step_refuses_bad_batches(linear_model, batch, message):
    step = TrainingStep(linear_model(3))
    before = step.weights()
    with pytest.raises(InvalidDataError, match=message):
        step.run(*batch)
    assert step.iteration == 0
    for name, array in step.weights().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "nope"}, UnknownNameError, r"'nope'"),
        ({"optimizer": "nope"}, UnknownNameError, r"'nope'"),
        ({"engine": "nope"}, UnknownNameError, r"'nope'"),
        ({"device": "nope"}, ProviderError, r"nope"),
        ({"weights": ["nope"]}, UnknownNameError, r"'nope'.*\['w', 'b'\]"),
        ({"penalty": "nope"}, UnknownNameError, r"'nope'"),
        ({"threads": 0}, ValueError, r"threads.* 0"),
        ({"passes": "maybe"}, ValueError, r"passes must be True or False, not 'maybe'"),
        ({"recompute": "maybe"}, ValueError, r"recompute must be True or False"),
    ],
)
def test_a_step_refuses_bad_parameters(linear_model, options, error, message):
    with pytest.raises(error, match=message):
        TrainingStep(linear_model(3), **options)


@pytest.mark.parametrize("rows", [3, 5])
def test_a_model_of_a_fixed_batch(rows):
    model = parse("g (float[2,3] x) => (float[2,1] y) <float[3,1] w = {1, 2, 3}> { y = MatMul(x, w) }")
    X, y = data(rows)
    with pytest.raises(InvalidDataError, match=rf"'x' takes batches of exactly 2 rows.*{rows} rows"):
        OnnxRegressor(model, batch_size=2).fit(X, y)

"""Sessions: options, errors, large models, limits."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxcustom.exceptions import EvaluationError, InvalidModelError, ProviderError
from onnxcustom.runtime import (
    check_providers,
    create_session,
    default_threads,
    ort_limits,
    session_options,
    sessions,
)

TEXT = """<ir_version: 8, opset_import: ["": 17]>
    add_one (float[N] x) => (float[N] y) <float[1] one = {1}> { y = Add(x, one) }"""


@pytest.fixture
def model():
    return onnx.parser.parse_model(TEXT)


def run(session):
    return session.run(None, {"x": np.array([1, 2], np.float32)})[0].tolist()


@pytest.mark.parametrize("convert", [lambda m: m, lambda m: m.SerializeToString(), ir.from_proto])
def test_models_of_every_form(model, convert):
    assert run(create_session(convert(model))) == [2, 3]


def test_threads(model):
    assert create_session(model).get_session_options().intra_op_num_threads == default_threads()
    assert create_session(model, threads=3).get_session_options().intra_op_num_threads == 3
    with pytest.raises(ValueError, match="0"):
        create_session(model, threads=0)


def test_own_options_are_left_alone(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = create_session(model, sess_options=options, providers=["CPUExecutionProvider"])
    assert session.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("bad", [b"", b"no model", b"\x08\x08"])
def test_not_a_model(bad):
    with pytest.raises(InvalidModelError):
        create_session(bad)


def test_invalid_graph_is_named(model):
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(InvalidModelError, match=r"onnxruntime \d.*accept graph .add_one.*exported anew"):
        create_session(model)


def test_missing_kernel_is_an_evaluation_error():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (double[N] x) => (double[N] y) { y = Erf(x) }"""
    )
    with pytest.raises(EvaluationError, match="kernel"):
        create_session(model)


def test_unknown_provider(model):
    with pytest.raises(ProviderError, match="CPUExecutionProvider"):
        create_session(model, providers=["NONE"])
    with pytest.raises(ProviderError):
        check_providers([])


def test_external_data_for_large_models(model, monkeypatch):
    monkeypatch.setattr(sessions, "PROTOBUF_LIMIT", 0)
    made = ir.from_proto(model)
    tensor = made.graph.initializers["one"].const_value
    assert run(create_session(made)) == [2, 3]
    assert made.graph.initializers["one"].const_value is tensor
    assert run(create_session(model)) == [2, 3]


def test_double_transpose_and_product():
    # onnxruntime 1.19.2 fuses these into an operator that has no double kernel.
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (double[2,3] x) => (double[3,3] y) {
        t = Transpose <perm = [1, 0]> (x) y = MatMul(t, x) }"""
    )
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(create_session(model).run(None, {"x": x})[0], x.T @ x)


def test_double_sigmoid_times_what_it_is_of():
    # onnxruntime 1.19.2 makes a QuickGelu of it, which has no double kernel.
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (double[3] x) => (double[3] y) {
        s = Sigmoid(x) y = Mul(x, s) }"""
    )
    x = np.arange(3.0)
    np.testing.assert_allclose(create_session(model).run(None, {"x": x})[0], x / (1 + np.exp(-x)))


def test_settings():
    made = session_options(2, optimize=False, memory_pattern=False)
    assert (made.intra_op_num_threads, made.inter_op_num_threads) == (2, 1)
    assert not made.enable_mem_pattern
    assert made.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    default = session_options()
    assert default.enable_mem_pattern
    assert default.enable_cpu_mem_arena
    with pytest.raises(ValueError, match="threads"):
        session_options(0)


class OldRuntime:
    """An onnxruntime whose optimizations make operators that it has no kernels for."""

    def __init__(self, version, missing):
        self.__version__, self.missing, self.tried = version, missing, []

    def InferenceSession(self, source, *, disabled_optimizers, **_):
        self.tried.append(sorted(disabled_optimizers))
        for operator, optimization in self.missing.items():
            if optimization not in disabled_optimizers:
                raise RuntimeError(f"Failed to find kernel for com.microsoft.{operator}(1)")
        return source


@pytest.mark.parametrize(
    ("version", "always"),
    [
        ("1.17.3", ["AttentionFusion", "ConstantSharing"]),
        ("1.18.1", ["AttentionFusion"]),
        ("1.19.2", []),
        ("1.31.0", []),
    ],
)
def test_optimizations_to_what_has_no_kernel_are_left_out(version, always):
    missing = {"FusedMatMul": "MatmulTransposeFusion", "FusedGemm": "GemmActivationFusion"}
    old = OldRuntime(version, missing)
    assert sessions._session(old, b"model", None, [], None) == b"model"
    assert old.tried == [
        always,
        sorted([*always, "MatmulTransposeFusion"]),
        sorted([*always, *missing.values()]),
    ]


def test_another_missing_kernel_is_an_error():
    old = OldRuntime("1.19.2", {"Erf": "NoSuchFusion"})
    with pytest.raises(RuntimeError, match="Erf"):
        sessions._session(old, b"model", None, [], None)
    assert old.tried == [[]]


def test_limits_are_those_of_the_runtime(model):
    opset, ir_version = ort_limits()
    assert opset >= 17
    model.opset_import[0].version, model.ir_version = opset, ir_version
    assert run(create_session(model)) == [2, 3]
    if onnxruntime.__version__.startswith("1.19."):
        assert (opset, ir_version) == (21, 10)

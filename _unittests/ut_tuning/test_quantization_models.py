"""Rounding in models of every kind: the integers against what was trained, by a bare onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from onnxcustom import TrainingStep
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.tuning import Quantization, quantize

from .test_quantization import run

FOUR_BITS = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 19)
RNG = np.random.default_rng(5)
X = RNG.normal(size=(20, 4)).astype(np.float32)
IMAGES = RNG.normal(size=(20, 4, 4, 4)).astype(np.float32)


def made(text: str, opset: int = 17, dtype: type = np.float32, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A model of a text, with random tensors of some shapes."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    if opset > 20:
        model.ir_version = 10
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = rng.normal(size=shape) * 0.5
        positive = name.startswith("var")
        array = np.abs(array) + 0.2 if positive else array
        model.graph.initializer.append(numpy_helper.from_array(array.astype(dtype), name))
    return model


BN = {"s": (4,), "t": (4,), "m": (4,), "var": (4,)}
MODELS = {
    "shared along both axes": (
        made("m (float[N,4] x) => (float[N,4] y) {a=MatMul(x,w) r=Relu(a) y=Gemm<transB=1>(r,w)}", w=(4, 4)),
        X,
    ),
    "shared, one folded": (
        made(
            """m (float[N,4,4,4] x) => (float[N,4] y) {a=Conv<pads=[1,1,1,1]>(x,w)
            n=BatchNormalization(a,s,t,m,var) r=Relu(n) q=Conv<pads=[1,1,1,1]>(r,w) p=GlobalAveragePool(q)
            y=Flatten(p)}""",
            w=(4, 4, 3, 3),
            **BN,
        ),
        IMAGES,
    ),
    "groups": (
        made(
            """m (float[N,4,4,4] x) => (float[N,4] y) {a=ConvTranspose<group=2>(x,w,b)
            c=Conv<group=4>(a,v) n=BatchNormalization(c,s,t,m,var) p=GlobalAveragePool(n) y=Flatten(p)}""",
            w=(4, 2, 3, 3),
            b=(4,),
            v=(4, 1, 3, 3),
            **BN,
        ),
        IMAGES,
    ),
    "stacks of matrices": (
        made("m (float[N,4,4,4] x) => (float[N,4,4,3] y) {y=MatMul(x,w)}", w=(4, 4, 3)),
        IMAGES,
    ),
    "computed weights": (
        made(
            "m (float[N,4] x) => (float[N,3] y) {t=Transpose<perm=[1,0]>(w) a=MatMul(x,t) y=Relu(a)}",
            w=(3, 4),
        ),
        X,
    ),
    "factors": (
        made(
            """m (float[N,4] x) => (float[N,3] y) {a=Gemm<alpha=0.5,beta=2.0>(x,w,b) r=Relu(a)
            c=Concat<axis=1>(r,x) y=MatMul(c,v)}""",
            w=(4, 5),
            b=(5,),
            v=(9, 3),
        ),
        X,
    ),
    "attention": (
        made(
            """m (float[N,4,4] x) => (float[N,4,3] y) {q=MatMul(x,wq) k=MatMul(x,wk)
            u=Transpose<perm=[0,2,1]>(k) s=MatMul(q,u) p=Softmax(s) c=MatMul(p,x) r=Add(c,x)
            y=MatMul(r,w2)}""",
            wq=(4, 4),
            wk=(4, 4),
            w2=(4, 3),
        ),
        IMAGES[:, 0],
    ),
    "double": (
        made(
            "m (double[N,4] x) => (double[N,3] y) {a=Gemm(x,w,b) r=Mul(a,a) y=MatMul(r,v)}",
            dtype=np.float64,
            w=(4, 5),
            b=(5,),
            v=(5, 3),
        ),
        X.astype(np.float64),
    ),
    "half": (
        made(
            "m (float16[N,4] x) => (float16[N,3] y) {a=MatMul(x,w) r=Relu(a) y=MatMul(r,v)}",
            dtype=np.float16,
            w=(4, 5),
            v=(5, 3),
        ),
        X.astype(np.float16),
    ),
    "always 0": (
        made(
            "m (float[N,4] x) => (float[N,3] y) {a=MatMul(x,w) r=Relu(a)"
            " z=Sub(r,r) q=MatMul(z,v) y=Add(q,b)}",
            w=(4, 5),
            v=(5, 3),
            b=(3,),
        ),
        X,
    ),
}
OPTIONS = {
    "bytes": Quantization("int8", "int8", calibration="mse"),
    "few": Quantization("int3", None, learned_scales=True),
}


@pytest.mark.filterwarnings("ignore:Weights of four bits or fewer are handed out as bytes")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_integers_of_models_of_every_kind(name: str, options: str) -> None:
    model, x = MODELS[name]
    step = TrainingStep(model, "squared_error", "adam", learning_rate=0.01, quantize=OPTIONS[options])
    losses = [step.run(x, 0.5 * run(model, x)) for _ in range(10)]
    assert min(losses[1:]) < losses[0] or name == "always 0"
    found = step.trained_model()
    onnx.checker.check_model(found)
    expected = step.predict(x)["y"].astype(np.float64)
    apart = np.abs(run(found, x) - expected).max() / max(np.ptp(expected), 1e-3)
    exact = 1e-3 if name == "half" else 1e-5
    assert apart < (exact if options == "few" else 0.05)
    assert run(found, x, optimize=True).shape == expected.shape  # kernels of integers take it


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_opsets(opset: int) -> None:
    if opset == 21 and not FOUR_BITS:
        pytest.skip("this onnxruntime does not read opset 21")
    text = "m (float[N,4] x) => (float[N,3] y) {a=MatMul(x,w) r=Relu(a) y=Gemm(r,v,b)}"
    step = TrainingStep(
        made(text, opset, w=(4, 5), v=(5, 3), b=(3,)),
        "squared_error",
        quantize=Quantization(reduce_range=True),
    )
    step.calibrate(X)
    found, expected = step.trained_model(), step.predict(X)["y"]
    for optimize in (False, True):
        assert np.abs(run(found, X, optimize) - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_four_bits_are_stored_as_such(opset: int) -> None:
    """INT4 of opset 21 where onnxruntime reads it, else bytes, with a warning that says which does."""
    if opset == 21 and not FOUR_BITS:
        pytest.skip("this onnxruntime does not read opset 21")
    text = "m (float[N,4] x) => (float[N,3] y) {a=MatMul(x,w) r=Relu(a) y=MatMul(r,v)}"
    model = made(text, opset, w=(4, 64), v=(64, 3))
    step = TrainingStep(model, "squared_error", quantize="int4")
    if FOUR_BITS:
        found = step.trained_model()
    else:
        with pytest.warns(UserWarning, match=r"does not read INT4. Releases from 1\.19 on do"):
            found = step.trained_model()
    types = {i.name: i.data_type for i in found.graph.initializer}
    few = onnx.TensorProto.INT4 if FOUR_BITS else onnx.TensorProto.INT8
    assert types["w_quantized"] == types["v_quantized"] == few
    sizes = {i.name: len(i.raw_data) for i in found.graph.initializer}
    assert sizes["w_quantized"] == (128 if FOUR_BITS else 256)
    np.testing.assert_allclose(run(found, X), step.predict(X)["y"], rtol=0, atol=1e-6)


def test_quantize_without_training() -> None:
    """What a step hands out that was calibrated, and takes no step."""
    model, x = MODELS["factors"]
    step = TrainingStep(model, quantize="int8")
    step.calibrate(x)
    assert quantize(model, x) == step.trained_model()
    with pytest.raises(InvalidParameterError, match="needs the integers"):
        quantize(model, x, None)
    with pytest.raises(InvalidDataError, match="0 sample"):
        quantize(model, x[:0])

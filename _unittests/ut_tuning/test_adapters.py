"""Adapters in files, taken into models and put together; oracles are NumPy and a bare onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
from onnx import helper, numpy_helper

from onnxcustom import OnnxRegressor, TrainingStep, replace_weights, weights
from onnxcustom.exceptions import (
    InvalidDataError,
    InvalidModelError,
    InvalidParameterError,
    MissingRuntimeError,
    UnknownNameError,
)
from onnxcustom.tuning import Adapter, LoRA, combine_adapters, dequantize, load_adapter, merge_adapter

from .test_lora import network, product, rows, run
from .test_quantization import dense

HAS_FORMAT = hasattr(onnxruntime, "AdapterFormat")


def plain(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    """The first output of the nodes as they are: newer runtimes fuse products by integers, and round more."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def adapted(seed: int = 0, **options: object) -> TrainingStep:
    """A step after ten batches."""
    x, y = rows()
    step = TrainingStep(network(), optimizer="adam", learning_rate=0.02, lora=LoRA(2, seed=seed, **options))
    for _ in range(10):
        step.run(x, y)
    return step


def test_a_file_holds_what_was_trained(tmp_path: Path) -> None:
    step, (x, _) = adapted(alpha=4), rows()
    path = tmp_path / "adapter.safetensors"
    step.save_adapter(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    read = load_adapter(path)
    stored = safetensors.numpy.load_file(path)
    assert (read.rank, read.alpha, set(read)) == (2, 4, set(stored))
    for name, array in step.adapter().items():
        np.testing.assert_array_equal(read[name], array)
        scale = 2 if name.endswith("_B") else 1
        np.testing.assert_allclose(stored[name], scale * step.weights()[name], rtol=1e-6)
    merged = merge_adapter(network(), path)
    for name, weight in weights(network()).items():
        if name != "b1":
            weight = weight + product(name, read[f"{name}.lora_A"], read[f"{name}.lora_B"])
        np.testing.assert_allclose(weights(merged)[name], weight, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(run(merged, x=x), run(step.trained_model(), x=x), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not HAS_FORMAT, reason="onnxruntime before 1.20 has no such files")
def test_onnxruntime_applies_its_own_files(tmp_path: Path) -> None:
    step, (x, _) = adapted(alpha=3), rows()
    path = tmp_path / "adapter.onnx_adapter"
    step.save_adapter(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        step.trained_model(merge=False).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    adapter, run_options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    adapter.Load(str(path))
    base = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(base, run(network(), x=x), rtol=1e-6, atol=1e-6)
    run_options.add_active_adapter(adapter)
    expected = run(step.trained_model(), x=x)
    np.testing.assert_allclose(session.run(None, {"x": x}, run_options)[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(merge_adapter(network(), path), x=x), expected, rtol=1e-6, atol=1e-6)
    other = replace_weights(network(), {"w1": weights(network())["w1"] + 1})
    with pytest.raises(InvalidModelError, match="another base"):
        merge_adapter(other, path)
    path.write_bytes(b"nothing")
    with pytest.raises(InvalidDataError, match="no adapter of onnxruntime"):
        load_adapter(path)


@pytest.mark.skipif(HAS_FORMAT, reason="onnxruntime from 1.20 has such files")
def test_older_runtimes_have_no_files_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "adapter.onnx_adapter"
    with pytest.raises(MissingRuntimeError, match=r"1\.20 or newer.*\.safetensors"):
        adapted().save_adapter(path)
    with pytest.raises(MissingRuntimeError, match=r"1\.20 or newer"):
        load_adapter(path)
    assert not list(tmp_path.iterdir())


def test_adapters_follow_each_other_but_none_comes_twice(tmp_path: Path) -> None:
    steps = [adapted(seed) for seed in (0, 1)]
    files = [tmp_path / f"{k}.safetensors" for k in range(2)]
    for step, file in zip(steps, files, strict=True):
        step.save_adapter(file)
    first = merge_adapter(network(), files[0])
    both = merge_adapter(first, files[1])
    with pytest.raises(InvalidModelError, match="already"):
        merge_adapter(both, files[0])
    with pytest.raises(InvalidModelError, match="already"):
        merge_adapter(steps[0].trained_model(), files[0])
    summed = merge_adapter(network(), combine_adapters(files, [1, 1]))
    for name, weight in weights(both).items():
        np.testing.assert_allclose(weights(summed)[name], weight, rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidModelError, match="another base: weights 'w1'"):
        merge_adapter(replace_weights(network(), {"w1": weights(network())["w1"] * 2}), files[0])


def test_combined_adapters_are_exact() -> None:
    """Ranks add up: what is computed is the weighted sum of the changes, by inputs of any rank as well."""
    x, _ = rows()
    steps = [adapted(0), adapted(1, targets=["w1", "k"]), adapted(2)]
    given = [step.adapter() for step in steps]
    mixed = combine_adapters(given, [0.5, -1, 2])
    assert mixed.rank == 6
    merged = weights(merge_adapter(network(), mixed))
    for name, weight in weights(network()).items():
        parts = [
            share * product(name, one[f"{name}.lora_A"].astype(float), one[f"{name}.lora_B"].astype(float))
            for share, one in zip([0.5, -1, 2], given, strict=True)
            if f"{name}.lora_A" in one
        ]
        np.testing.assert_allclose(merged[name], weight + sum(parts), rtol=1e-5, atol=1e-6)
    apart = run(steps[0].trained_model(merge=False), x=x, **mixed)
    np.testing.assert_allclose(apart, run(merge_adapter(network(), mixed), x=x), rtol=1e-4, atol=1e-5)
    half = combine_adapters(given[:1] * 2)
    np.testing.assert_allclose(
        half["w1.lora_A"] @ half["w1.lora_B"],
        given[0]["w1.lora_A"] @ given[0]["w1.lora_B"],
        rtol=1e-5,
        atol=1e-6,
    )


def test_weights_trained_beside_do_not_count_for_the_base(tmp_path: Path) -> None:
    x, y = rows()
    reg = OnnxRegressor(network(), lora=LoRA(2, targets="w1", train="last:1"), max_iter=2, random_state=0)
    reg.fit(x, y).save_adapter(tmp_path / "a.safetensors")
    merged = merge_adapter(reg.get_trained_onnx(merge=False), tmp_path / "a.safetensors")
    np.testing.assert_allclose(run(merged, x=x), reg.predict(x), rtol=1e-4, atol=1e-5)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    step = adapted()
    with pytest.raises(InvalidParameterError, match=r"\.onnx_adapter or \.safetensors"):
        step.save_adapter(tmp_path / "adapter.bin")
    with pytest.raises(UnknownNameError, match="no adapters"):
        TrainingStep(network()).save_adapter(tmp_path / "a.safetensors")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"torn")
    with pytest.raises(InvalidDataError, match="no file of safetensors"):
        load_adapter(torn)
    with pytest.raises(FileNotFoundError):
        load_adapter(tmp_path / "none.safetensors")
    one = {"w1.lora_A": np.ones((6, 1), np.float32), "w1.lora_B": np.ones((1, 9), np.float32)}
    with pytest.raises(InvalidModelError, match=r"another base: it changes 'w1' of \(6, 9\)"):
        merge_adapter(network(), one)
    with pytest.raises(InvalidDataError, match=r"has no 'w1\.lora_B'"):
        Adapter({"w1.lora_A": one["w1.lora_A"]})
    with pytest.raises(InvalidDataError, match="different models"):
        combine_adapters([one, step.adapter()])
    with pytest.raises(InvalidParameterError, match="a finite number for each"):
        combine_adapters([one], [1, 2])


def test_sum_and_products_are_the_same() -> None:
    x, y = rows()
    steps = [
        TrainingStep(network(), optimizer="sgd", learning_rate=0.01, lora=LoRA(2, alpha=4, summed=summed))
        for summed in (False, True)
    ]
    for _ in range(10):
        losses = [step.run(x, y) for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, weight in weights(steps[0].trained_model()).items():
        np.testing.assert_allclose(weights(steps[1].trained_model())[name], weight, rtol=1e-3, atol=1e-4)
    with pytest.raises(InvalidParameterError, match="merge=False"):
        steps[1].trained_model(merge=False)


@pytest.mark.filterwarnings("ignore:Weights of four bits or fewer are handed out as bytes")
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_what_is_rounded_is_the_sum(bits: str) -> None:
    """Integers of the trained model are those of W + s AB, computed by NumPy."""
    x, y = rows()
    step = TrainingStep(
        dense(),
        optimizer="adam",
        learning_rate=0.02,
        lora=LoRA(2, alpha=4),
        quantize=f"{bits}:activations=none",
    )
    assert set(step.weights()) == {f"{w}.lora_{f}" for w in ("w1", "w2") for f in "AB"}
    losses = [step.run(x[:, :4], y) for _ in range(10)]
    assert losses[-1] < losses[0]
    model, levels = step.trained_model(), {"int8": 127, "int4": 7}[bits]
    made = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    old, adapter = weights(dense()), step.adapter()
    for name, axis in (("w1", 0), ("w2", 1)):
        change = adapter[f"{name}.lora_A"] @ adapter[f"{name}.lora_B"]
        total = old[name] + (change if name == "w1" else change.T)
        scale = np.abs(total).max(axis=axis, keepdims=True) / levels
        got = next(v for n, v in made.items() if n.startswith(name) and n.endswith("_quantized"))
        assert np.abs(got - np.rint(total / scale)).max() <= 1  # ties
        assert (got == np.rint(total / scale)).mean() > 0.9
    np.testing.assert_allclose(plain(model, x=x[:, :4]), step.predict(x[:, :4])["y"], rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidParameterError, match="merge=False"):
        step.trained_model(merge=False)


def integers(blockwise: bool) -> onnx.ModelProto:
    """Products by integers that stand for floats: by column or in blocks, and by one scale, turned round."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.05, 0.1, size=(2, 10) if blockwise else 10).astype(np.float32)
    tensors = {
        "w1": rng.integers(-7, 8, size=(8, 10)).astype(np.int8),
        "w2": rng.integers(-7, 8, size=(3, 10)).astype(np.int8),
        "s1": scales,
        "s2": np.float32(0.05),
    }
    options = {"axis": 0, "block_size": 4} if blockwise else {"axis": 1}
    nodes = [
        helper.make_node("DequantizeLinear", ["w1", "s1"], ["d1"], **options),
        helper.make_node("MatMul", ["x", "d1"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("DequantizeLinear", ["w2", "s2"], ["d2"]),
        helper.make_node("Gemm", ["b", "d2"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in tensors.items()],
    )
    opset, version = (21, 10) if blockwise else (17, 8)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)


RELEASE = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


@pytest.mark.parametrize(
    "blockwise",
    [False, pytest.param(True, marks=pytest.mark.skipif(RELEASE < (1, 18), reason="no opset 21"))],
)
def test_adapters_beside_integers(blockwise: bool, tmp_path: Path) -> None:
    """What ten steps make of them is what they make beside the floats that the integers stand for."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 8)).astype(np.float32), rng.normal(size=(20, 3)).astype(np.float32)
    model = integers(blockwise)
    settings = {"optimizer": "adam", "learning_rate": 0.02, "lora": LoRA(2, alpha=4)}
    step, floats = TrainingStep(model, **settings), TrainingStep(dequantize(model), **settings)
    for _ in range(10):
        assert step.run(x, y) == pytest.approx(floats.run(x, y), rel=1e-5)
    expected = step.predict(x)["y"]
    trained = step.trained_model()
    made = {i.name: i for i in trained.graph.initializer}
    kept = {i.name: i for i in model.graph.initializer}
    for name in ("w1", "w2"):
        np.testing.assert_array_equal(numpy_helper.to_array(made[name]), numpy_helper.to_array(kept[name]))
    assert [i.name for i in trained.graph.input] == ["x"]
    np.testing.assert_allclose(plain(trained, x=x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain(floats.trained_model(), x=x), expected, rtol=1e-4, atol=1e-4)
    apart = step.trained_model(merge=False)
    np.testing.assert_allclose(plain(apart, x=x), plain(model, x=x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(plain(apart, x=x, **step.adapter()), expected, rtol=1e-4, atol=1e-5)
    step.save_adapter(tmp_path / "a.safetensors")
    with pytest.raises(InvalidModelError, match="'w1' is of integers"):
        merge_adapter(model, tmp_path / "a.safetensors")
    with pytest.raises(InvalidModelError, match="'w1' is of integers"):
        TrainingStep(model, lora=LoRA(2, summed=True))
    assert {n.split(".")[0] for n in TrainingStep(model, lora=LoRA(2, targets="w1")).weights()} == {"w1"}

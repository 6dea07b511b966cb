"""``onnxcustom edit``: what the library's transforms do, in the order that the help says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom import load, save, weights
from onnxcustom.cli.card import KEY
from onnxcustom.tuning import drop_layers, make_dynamic, replace_head, untie

TIED = """<ir_version: 8, opset_import: ["": 17]> m (float[1, 2, 3] x) => (float[1, 2] p)
    <float[6] s = {1, 1, 1, 1, 1, 1},
     float[6, 2] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, int64[2] t = {1, 6}>
    {
        f = Reshape(x, t) a = LayerNormalization(f, s) h = LayerNormalization(a, s)
        z = MatMul(h, w) p = Softmax(z)
    }"""


@pytest.fixture
def tied(folder: Path) -> Path:
    model = onnx.parser.parse_model(TIED)
    onnx.helper.set_model_props(model, {KEY: "{}"})
    save(model, "tied.onnx")
    return Path("tied.onnx")


def test_all_at_once(tied: Path, command) -> None:
    told = command("edit", "tied.onnx", "--head", "5", "--dynamic-batch", "--untie", "-o", "new.onnx").output
    made = load("new.onnx")
    assert made.graph == replace_head(make_dynamic(untie("tied.onnx")), 5).graph
    assert not made.metadata_props
    assert "untied: 1 new weights (s_1), 3 in all" in told
    assert "takes any number of rows, N" in told
    assert "a new last layer: head_weight [6, 5], head_bias [5]" in told
    assert "float[N, 2, 3]" in told
    assert "float[N, 5]" in told


@pytest.mark.parametrize(
    ("options", "shape", "classes"),
    [
        (("--head", "a,b,c"), (6, 3), None),
        (("--head", "7,8", "--seed", "3", "--activation", "sigmoid"), (6, 2), None),
        (("--head", "1", "--at", "z"), (6, 1), None),
    ],
)
def test_heads(options: tuple[str, ...], shape: tuple[int, ...], classes, tied: Path, command) -> None:
    command("edit", "tied.onnx", *options)
    held = weights("tied_edited.onnx")
    assert held["head_weight"].shape == shape


def test_a_seed_is_that_of_the_library(tied: Path, command) -> None:
    command("edit", "tied.onnx", "--head", "3", "--seed", "7", "-o", "new.onnx")
    expected = weights(replace_head("tied.onnx", 3, seed=7))["head_weight"]
    np.testing.assert_array_equal(weights("new.onnx")["head_weight"], expected)


def test_some_of_the_layers(tied: Path, command) -> None:
    told = command("edit", "tied.onnx", "--keep-layers", "1,", "-o", "new.onnx").output
    assert load("new.onnx").graph == drop_layers("tied.onnx", [1]).graph
    assert "4 nodes of 5 and 18 numbers of 18 in weights are left" in told


def test_integers(tied: Path, command) -> None:
    given = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N, 2] x) => (float[N, 2] y)
        <int8[2, 2] q = {1, 2, 3, 4}, float s = {0.5}> { w = DequantizeLinear(q, s) y = MatMul(x, w) }""")
    save(given, "integers.onnx")
    told = command("edit", "integers.onnx", "--dequantize", "-o", "new.onnx").output
    assert "dequantized: 1 new weights" in told
    np.testing.assert_array_equal(next(iter(weights("new.onnx").values())), [[0.5, 1], [1.5, 2]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "Say what to change"),
        (("--untie", "--at", "z"), "--at and --activation are for --head"),
        (("--head", "one"), "a number of outputs, or labels"),
        (("--head", "0"), "outputs must be"),
        (("--head", "3", "--at", "zz"), "no layer 'zz'"),
        (("--head", "3", "-o", "tied.onnx"), "is a file that is read"),
        (("--dynamic-batch", "--batch-axis", "x=7"), "batch_axis of 'x'|--batch-axis"),
    ],
)
def test_what_is_wrong(options: tuple[str, ...], words: str, tied: Path, command) -> None:
    import re

    result = command("edit", "tied.onnx", *options, code=2)
    assert re.search(words, result.stderr)
    assert not Path("tied_edited.onnx").exists()


def test_nothing_is_overwritten(tied: Path, command) -> None:
    Path("new.onnx").write_text("kept")
    assert "--force" in command("edit", "tied.onnx", "--untie", "-o", "new.onnx", code=2).stderr
    assert Path("new.onnx").read_text() == "kept"
    command("edit", "tied.onnx", "--untie", "-o", "new.onnx", "--force")
    assert len(weights("new.onnx")) == 3


def test_scores_in_dicts_leave_no_shape_without_a_type(folder: Path, command, caplog) -> None:
    """A ZipMap's input has no declared type: a shape alone cannot be written."""
    pytest.importorskip("skl2onnx")
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    fitted = LogisticRegression().fit(X, np.array(["a", "b", "c"])[np.arange(30) % 3])
    save(to_onnx(fitted, X[:1], target_opset=17), "zip.onnx")
    command("edit", "zip.onnx", "--head", "5", "--dynamic-batch", "-o", "new.onnx")
    assert not caplog.records or all("not known" not in r.getMessage() for r in caplog.records)
    assert weights("new.onnx")["head_weight"].shape == (4, 5)

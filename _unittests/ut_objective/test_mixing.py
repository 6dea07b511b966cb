"""Which losses make the loss of a row depend on other rows: told from the graph, seen with NumPy's eyes."""

from __future__ import annotations

import pickle

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcustom import OnnxRegressor, RowsWarning
from onnxcustom.data import stream
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.row_mixing import find_mixing
from onnxcustom.objective import CustomLoss, Loss
from onnxcustom.objective.base import LOSSES

pytest.importorskip("onnxruntime")
FLOAT = ir.DataType.FLOAT


def pairs(op, p, y):
    """Each row is compared with the next one."""
    first, second = op.Slice(p, [0], [-1], [0]), op.Slice(p, [1], [2**31], [0])
    d = op.Concat(first - second, op.Slice(p, [-1], [2**31], [0]), axis=0)
    return d * d * y


def info_nce(op, p, y):
    """Rows against all rows."""
    normed = p / op.ReduceL2(p, [1], keepdims=1)
    similar = op.MatMul(normed, op.Transpose(y, perm=[1, 0])) / 0.1
    diagonal = op.ReduceSum(normed * y, [1], keepdims=1) / 0.1
    return op.ReduceLogSumExp(similar, [1], keepdims=1) - diagonal


def normalised(op, p, y):
    """What is usual in a batch is taken out."""
    return op.Abs((p - op.ReduceMean(p, [0], keepdims=1)) - y)


def all_distances(op, p, y):
    """Every row with every row by broadcasting."""
    d = op.Unsqueeze(p, [1]) - op.Unsqueeze(y, [0])
    return op.ReduceMin(op.ReduceSum(d * d, [2], keepdims=0), [1], keepdims=1)


def softmax_of_rows(op, p, y):
    return op.Softmax(p, axis=0) * y


def permuted(op, p, y):
    return op.Abs(p - op.Gather(y, np.array([1, 0]), axis=0))


def running(op, p, y):
    return op.Abs(op.CumSum(p, np.array(0)) - y)


def whole(op, p, y):
    return (p - y) * op.ReduceMean(op.Abs(p - y), keepdims=0)


def gram(op, p, y):
    return op.ReduceSum(op.Einsum(p, p, equation="ik,jk->ij"), [1], keepdims=1) * y


def flattened(op, p, y):
    return op.Abs(p - y) / op.ReduceMax(op.Reshape(p, [-1]), keepdims=0)


def best_rows(op, p, y):
    best, _ = op.TopK(p, np.array([1]), axis=0, outputs=2)
    return op.Abs(best - y)


def columns_turned(op, p, y):
    return op.Transpose(op.Softmax(op.Transpose(p, perm=[1, 0]), axis=1), perm=[1, 0]) * y


MIXING = [
    *(pairs, info_nce, normalised, all_distances, softmax_of_rows, permuted, running, whole, gram),
    *(flattened, best_rows, columns_turned),
]


def squares(op, p, y):
    d = p - y
    return d * d


def over_classes(op, p, y):
    return -(op.LogSoftmax(p, axis=1) * y)


def over_last(op, p, y):
    top = op.ReduceMax(p, [-1], keepdims=1)
    return op.ReduceLogSumExp(p - top, [1], keepdims=1) + top - op.ReduceSum(p * y, [1], keepdims=1)


def cosine(op, p, y):
    up = op.ReduceSum(p * y, [1], keepdims=0)
    return 1 - up / (op.ReduceL2(p, [1], keepdims=0) * op.ReduceL2(y, [1], keepdims=0))


def of_columns(op, p, y):
    first, second = op.Split(p, np.array([1, 2]), axis=1, outputs=2)
    return op.Abs(first - op.Slice(y, [0], [1], [1])) + op.ReduceSum(op.Abs(second), [1], keepdims=1)


def projected(op, p, y):
    w = np.eye(3, dtype=np.float32)
    return op.Abs(op.Gemm(p, w, transB=1) - op.MatMul(y, w))


def turned_and_back(op, p, y):
    turned = op.Transpose(p, perm=[1, 0])
    return op.Abs(op.Transpose(turned * 2.0, perm=[1, 0]) - y)


def by_number_of_rows(op, p, y):
    rows = op.Cast(op.Gather(op.Shape(p), np.array(0)), to=FLOAT)
    return op.Abs(p - y) * rows / rows


def reshaped(op, p, y):
    return op.Abs(op.Reshape(p, [-1, 3, 1]) - op.Reshape(y, op.Shape(op.Unsqueeze(p, [2]))))


def batched_products(op, p, y):
    return op.MatMul(op.Unsqueeze(p, [1]), op.Unsqueeze(y, [2]))


def summed_by_einsum(op, p, y):
    return op.Einsum(p, y, equation="ik,ik->i")


def picked(op, p, y):
    best = op.ArgMax(y, axis=1, keepdims=1)
    return -op.GatherElements(op.LogSoftmax(p), best, axis=1)


def weighed_by_class(op, p, y):
    weights = op.Gather(op.const(np.float32([1, 2, 3])), op.ArgMax(y, axis=1, keepdims=0))
    return op.ReduceSum(op.Abs(p - y), [1], keepdims=0) * weights


def running_columns(op, p, y):
    return op.Abs(op.CumSum(p, np.array(1)) - op.CumSum(y, np.array(1)))


def normalised_rows(op, p, y):
    one, zero = np.ones(3, dtype=np.float32), np.zeros(3, dtype=np.float32)
    return op.Abs(op.LayerNormalization(p, one, zero) - y)


def with_gradient(op, p, y):
    return op.Abs(p - y), op.Sign(p - y)


SEPARATE = [
    *(squares, over_classes, over_last, cosine, of_columns, projected, turned_and_back, by_number_of_rows),
    *(
        reshaped,
        batched_products,
        summed_by_einsum,
        picked,
        weighed_by_class,
        running_columns,
        normalised_rows,
    ),
    with_gradient,
]


def depends(loss: Loss) -> bool:
    """Whether changing one row changes the loss of the other: the oracle."""
    rng = np.random.default_rng(0)
    p, y = rng.uniform(0.1, 1, (2, 2, 3)).astype(np.float32)
    before = loss.loss_scores("cpu", y, p).numpy()
    for row in (0, 1):
        q, z = p.copy(), y.copy()
        q[row], z[row] = rng.uniform(2, 3, (2, 3))
        after = loss.loss_scores("cpu", z, q).numpy()
        if abs(before[1 - row] - after[1 - row]) > 1e-5:
            return True
    return False


@pytest.mark.parametrize("function", MIXING)
def test_losses_that_mix_rows(function):
    loss = CustomLoss(function)
    assert depends(loss)
    assert loss.mixes_rows(FLOAT, [None, 3]) is not None


@pytest.mark.parametrize("function", SEPARATE)
def test_losses_that_do_not(function):
    loss = CustomLoss(function)
    assert not depends(loss)
    for shape in ([None, 3], ["N", 3], ["N", "C"], [2, 3]):
        assert loss.mixes_rows(FLOAT, shape) is None


SHAPES = [[None, 3], [None, "C"], [None, 3, "T"], [None, 3, 4, 5], None]


@pytest.mark.parametrize("cls", [c for c in LOSSES.classes() if c.__module__.startswith("onnxcustom.")])
def test_losses_of_the_library_do_not(cls):
    """Those of whole batches want their rows in any order."""
    for shape in SHAPES if cls is not CustomLoss else []:
        try:
            cls().target(FLOAT, None if shape is None else len(shape), shape)
        except InvalidModelError:
            continue  # predictions that it is not taken on
        assert cls().mixes_rows(FLOAT, shape) is None


ROWS = """<ir_version: 8, opset_import: ["": 18, "own": 1]>
loss (float[N, 3] predicted, float[N, 3] expected) => ({out}) {{ {body} }}
<domain: "own", opset_import: ["": 18]> centred (x) => (y) {{
    i = Constant<value = int64[1] {{0}}>()
    m = ReduceMean<keepdims = 1>(x, i)
    y = Sub(x, m) }}"""


@pytest.mark.parametrize(
    ("body", "mixes"),
    [
        ("d = Sub(predicted, expected) l = Abs(d)", None),
        ("c = own.centred(predicted) l = Mul(c, expected)", "ReduceMean"),
        ("s = Shape(predicted) e = ConstantOfShape(s) l = Add(predicted, e)", None),
        ("t = Transpose(expected) l = MatMul(predicted, t)", "MatMul"),
        ("b, c, d = Split<axis = 1, num_outputs = 3>(predicted) l = Abs(c)", None),
        ("b, c = Split<axis = 0, num_outputs = 2>(predicted) l = Concat<axis = 0>(c, b)", "Split"),
    ],
)
def test_models_as_losses(body, mixes):
    model = onnx.parser.parse_model(ROWS.format(out="float[N, M] l", body=body))
    assert CustomLoss(model).mixes_rows(FLOAT, [None, 3]) == mixes


@pytest.mark.parametrize(
    ("text", "mixes"),
    [
        ("e = Einsum<equation = \"ij,kj->ik\">(p, p) s = ReduceSum<keepdims = 0>(e, one)", "Einsum"),
        ("s = SoftmaxCrossEntropyLoss<reduction = \"none\">(p, l)", None),
        ("s = SoftmaxCrossEntropyLoss<reduction = \"mean\">(p, l)", "SoftmaxCrossEntropyLoss"),
        ("o = Unsqueeze(l, one) g = GatherND<batch_dims = 1>(p, o) s = Neg(g)", None),
        ("g = Gather<axis = 0>(p, l) s = ReduceSum<keepdims = 0>(g, one)", "Gather"),
        ("e = GatherElements<axis = 0>(p, k) s = ReduceSum<keepdims = 0>(e, one)", "GatherElements"),
        ("z = Sub(p, p) q = Reshape(z, all) m = ReduceMax<keepdims = 0>(q) r = Add(p, m) "
         "s = ReduceSum<keepdims = 0>(r, one)", "ReduceMax"),
        ("n = NonZero(p) f = Cast<to = 1>(n) s = ReduceSum<keepdims = 0>(f, one)", None),  # cannot be told
    ],
)  # fmt: skip
def test_operators(text, mixes):
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 3] p, int64[N] l, int64[N, 3] k) => (float[M] s)
        <int64[1] one = {{1}}, int64[1] all = {{-1}}> {{ {text} }}"""
    )
    assert find_mixing(ir.from_proto(model)) == mixes


# -- while training ----------------------------------------------------------------------------------

NET = """<ir_version: 8, opset_import: ["": 18]> net (float[N, 3] x) => (float[N, 3] z, float[N, 3] k)
<float[3, 3] w = {1, 0, 0, 0, 1, 0, 0, 0, 1}> { z = MatMul(x, w) k = Relu(z) }"""


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "loss", [pairs, {"z": "squared_error", "k": CustomLoss(info_nce)}], ids=["one", "the second of two"]
)
def test_shuffling_such_a_loss_is_said(loss, streamed):
    X = np.random.default_rng(0).uniform(0.1, 1, (12, 3)).astype(np.float32)
    y = dict.fromkeys(loss, X) if isinstance(loss, dict) else X
    data = (stream(lambda: iter([(X, y)])),) if streamed else (X, y)
    net = OnnxRegressor(onnx.parser.parse_model(NET), loss=loss, batch_size=4, max_iter=1, random_state=0)
    with pytest.warns(
        RowsWarning, match=r"loss CustomLoss\((pairs|info_nce).*output '[zk]' mixes rows.*shuffle=False"
    ):
        net.fit(*data)
    shuffled = net.weights_["w"]
    net.set_params(shuffle=True).fit(*data)  # as before, and nothing is said
    np.testing.assert_array_equal(net.weights_["w"], shuffled)
    net.set_params(shuffle=False).fit(*data)
    assert (net.weights_["w"] != shuffled).any()
    assert pickle.loads(pickle.dumps(net)).shuffle is False
    with pytest.raises(ValueError, match="shuffle"):
        net.set_params(shuffle="maybe").fit(*data)


@pytest.mark.parametrize("loss", ["squared_error", "huber", over_classes, cosine])
def test_nothing_is_said_of_others(loss):
    X = np.random.default_rng(0).uniform(0.1, 1, (12, 3)).astype(np.float32)
    net = OnnxRegressor(onnx.parser.parse_model(NET), loss=loss, max_iter=1, random_state=0).fit(X, X)
    assert net.shuffle is None


class AllPairs(Loss):
    """Wants its rows in any order, and says so."""

    def terms(self, op, predicted, expected):
        d = predicted - op.ReduceMean(predicted, [0], keepdims=1)
        return op.Abs(d), op.Sign(d)

    def mixes_rows(self, dtype, shape):
        return None


def test_a_loss_may_say_itself():
    X = np.random.default_rng(0).uniform(0.1, 1, (12, 3)).astype(np.float32)
    OnnxRegressor(onnx.parser.parse_model(NET), loss=AllPairs(), max_iter=1, random_state=0).fit(X, X)

# ruff: noqa: E501 - a node of ONNX text stays on its line
"""The table of differentiable operands against the operators that ONNX defines."""

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcustom.graph.analysis import operands

LAST_OPSET = 25

# Operators without any differentiable operand, so that a new operator has to be thought about.
NONE = frozenset(
    """And ArgMax ArgMin Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Ceil
    Constant ConstantOfShape ConvInteger DequantizeLinear DynamicQuantizeLinear Equal EyeLike Floor Greater
    GreaterOrEqual HammingWindow HannWindow Hardmax If ImageDecoder IsInf IsNaN Less LessOrEqual Loop
    MatMulInteger MelWeightMatrix Multinomial NonMaxSuppression NonZero Not OptionalHasElement Or QLinearConv
    QLinearMatMul RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range RegexFullMatch Round Scan
    SequenceEmpty SequenceErase SequenceLength Shape Sign Size StringConcat StringNormalizer StringSplit
    TfIdfVectorizer Unique Xor""".split()
)


def schemas():
    found = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= LAST_OPSET:
            found[schema.name] = max(found.get(schema.name, schema), schema, key=lambda s: s.since_version)
    return found


def test_every_operator_is_in_one_place():
    known = set(schemas())
    assert known >= NONE
    assert set(operands._ONNX) & NONE == set()
    assert set(operands._ONNX) | NONE == known
    assert known >= operands._OPAQUE


def node(op_type, n, domain="", **attributes):
    return ir.node(op_type, [ir.Value(name=f"i{i}") for i in range(n)], attributes=attributes, domain=domain)


@pytest.mark.parametrize("name", sorted(operands._ONNX))
def test_positions_exist(name):
    schema = schemas()[name]
    variadic = schema.inputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    assert operands._ONNX[name]
    assert variadic or max(operands._ONNX[name]) < len(schema.inputs)


@pytest.mark.parametrize("name", sorted(operands._ONNX))
def test_agrees_with_the_schema(name):
    """Where ONNX calls an operand non-differentiable, only these are taken all the same, for a reason."""
    schema = schemas()[name]
    category = onnx.defs.OpSchema.DifferentiationCategory.NonDifferentiable
    taken = {
        f"{name}.{p.name}" for i, p in enumerate(schema.inputs)
        if p.differentiation_category == category and operands.trainable(node(name, i + 1, to=1), i)
    }  # fmt: skip
    assert taken <= {
        "AffineGrid.theta", "GridSample.grid", "RNN.initial_h", "GRU.initial_h", "LSTM.initial_h",
        "LSTM.initial_c", "OneHot.values", "DFT.input", "STFT.signal",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("op_type", "index", "expected"),
    [
        ("Conv", 1, True), ("Conv", 2, True), ("BatchNormalization", 1, True), ("BatchNormalization", 2, True),
        ("BatchNormalization", 3, False), ("BatchNormalization", 4, False), ("Pow", 0, True), ("Pow", 1, False),
        ("Clip", 0, True), ("Clip", 1, False), ("Clip", 2, False), ("Resize", 1, False), ("Resize", 2, False),
        ("Upsample", 1, False), ("QuantizeLinear", 0, True), ("QuantizeLinear", 1, False), ("Where", 0, False),
        ("DequantizeLinear", 1, False), ("Gather", 0, True), ("Gather", 1, False), ("Pad", 2, False),
        ("Dropout", 1, False), ("Concat", 9, True), ("NoSuchOperator", 0, False), ("GroupNormalization", 2, True),
        ("LSTM", 7, True), ("LSTM", 4, False),
    ],
)  # fmt: skip
def test_trainable(op_type, index, expected):
    assert operands.trainable(node(op_type, index + 1), index) is expected


def test_cast_to_integers_is_no_data():
    assert operands.trainable(node("Cast", 1, to=int(ir.DataType.DOUBLE)), 0)
    assert not operands.trainable(node("Cast", 1, to=int(ir.DataType.INT64)), 0)


@pytest.mark.parametrize(
    ("op_type", "domain", "index", "expected"),
    [
        ("Reshape", "", 1, False), ("Shape", "", 0, False), ("ConstantOfShape", "", 0, False), ("Pow", "", 1, True),
        ("ArgMax", "", 0, True), ("Floor", "", 0, True), ("Anything", "my.domain", 3, True), ("Where", "", 0, False),
        ("FusedMatMul", "com.microsoft", 1, True), ("Resize", "ai.onnx", 2, False),
    ],
)  # fmt: skip
def test_passes_through(op_type, domain, index, expected):
    assert operands.passes_through(node(op_type, index + 1, domain), index) is expected


def test_unknown_domain_has_no_weights():
    assert not operands.trainable(node("Conv", 2, "my.domain"), 1)
    assert operands.trainable(node("FusedMatMul", 2, "com.microsoft"), 1)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("m = MatMul(x, w)  y = Add(m, b)", True),
        ("m = MatMul(x, w)  y = Add(b, m)", True),
        ("m = MatMul(x, w)  r = Identity(m)  y = Add(r, b)", True),
        ("m = Relu(x)  y = Add(m, b)", False),
        ("y = Add(x, b)", False),
        ("m = MatMul(x, w)  y = Sub(m, b)", False),
    ],
)
def test_bias_add(body, expected):
    model = ir.from_proto(onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (float[N, 1] x, float[1, 1] w, float[1] b) => (float[N, 1] y) {{ {body} }}'
    ))  # fmt: skip
    last = model.graph.node(-1)
    index = [v.name for v in last.inputs].index("b")
    assert operands.is_bias_add(last, index) is expected
    assert operands.single_counts(last, index) is expected

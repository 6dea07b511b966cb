"""Changes to a valid model, each drawn from a ``random.Random``: from single bits to whole graphs.

Hypothesis' ``randoms()`` gives such an object as well, and shrinks what it drew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, TypeProto, helper

__all__ = ["mutate"]

INTEGERS = (
    *(0, 1, 2, 3, 4, 5, 7, 16, 64, 255, 1000, -1, -2, -3, -7, -128),
    *(
        2**15,
        2**20,
        2**27,
        2**31 - 1,
        2**31,
        2**32,
        2**33 + 1,
        2**62,
        2**63 - 1,
        -(2**31),
        -(2**62),
        -(2**63),
    ),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-7, 1e7, 3e38, -3e38, float("inf"), -float("inf"), float("nan"))
TEXTS = (
    *(
        "",
        "x",
        "y",
        "w",
        "NOTSET",
        "VALID",
        "SAME_UPPER",
        "linear",
        "cubic",
        "forward",
        "reverse",
        "ij,jk->ik",
    ),
    *(
        "a\0b",
        "line\nbreak",
        "\x1b[31mred",
        "é",
        "名前",
        "../../etc/passwd",
        "%s %d {0} {x}",
        "x" * 5000,
        '"',
        "'",
    ),
    *("...ij->...ji", "ai.onnx", "sum", "max", "tanh", "SOFTMAX", "PROBIT", "L1", "\ufeff", "\U0001f4a9"),
)
KEYS = (
    "onnxcustom.gradient",
    "onnxcustom.step",
    "onnxcustom.card",
    "onnxcustom.role",
    "onnxcustom.from_sklearn",
)
JSON = (
    "",
    "{}",
    "[]",
    "null",
    "1",
    "{",
    '{"inputs": 3}',
    '{"inputs": [[]], "weights": null}',
    "[" * 5000,
    '{"version": 1}',
)

Mutation = Callable[[onnx.ModelProto, Random], None]
MUTATIONS: list[Mutation] = []
WEIGHTS: list[int] = []


def mutate(content: bytes, random: Random, other: bytes | None = None) -> bytes:
    """A changed copy of a model.

    Parameters
    ----------
    content : bytes
        A valid model.
    random : random.Random
        What is drawn from.
    other : bytes, optional
        Another one, pieces of which may come in.

    Returns
    -------
    bytes
    """
    if random.random() < 0.15:
        return _bytes(content, random, other or content)
    model = onnx.ModelProto.FromString(content)
    for _ in range(random.choice((1, 1, 1, 1, 2, 2, 3, 5))):
        (mutation,) = random.choices(MUTATIONS, WEIGHTS)
        try:
            mutation(model, random)
        except Exception:  # of what an earlier one made there is no such tensor, or no copy
            continue
    made = model.SerializeToString()
    return _bytes(made, random, other or content) if random.random() < 0.03 else made


def mutation(weight: int) -> Callable[[Mutation], Mutation]:
    """Register a change, drawn as often as `weight` says."""

    def add(function: Mutation) -> Mutation:
        MUTATIONS.append(function)
        WEIGHTS.append(weight)
        return function

    return add


# -- bytes -----------------------------------------------------------------------------------------


def _bytes(content: bytes, random: Random, other: bytes) -> bytes:
    """Bits flipped, pieces cut out, doubled, overwritten, put in from elsewhere; truncation."""
    made = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not made:
            break
        start = random.randrange(len(made))
        end = min(len(made), start + random.choice((1, 1, 2, 4, 8, 64)))
        how = random.randrange(7)
        if how <= 1:
            made[start] ^= 1 << random.randrange(8)
        elif how == 2:
            made[start] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif how == 3:
            del made[start:end]
        elif how == 4:
            made[start:start] = made[start:end]
        elif how == 5:
            there = random.randrange(len(other))
            made[start:start] = other[there : there + end - start]
        else:
            del made[start:]
    return bytes(made)


# -- parts of a model --------------------------------------------------------------------------------


def _graphs(model: onnx.ModelProto) -> list[Any]:
    """Graphs and functions, branches included."""
    found: list[Any] = [model.graph, *model.functions]
    for graph in found:
        for node in graph.node:
            for attribute in node.attribute:
                found += [attribute.g] if attribute.HasField("g") else []
                found += attribute.graphs
    return found


def _graph(model: onnx.ModelProto, random: Random) -> Any:
    return random.choice(_graphs(model))


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for graph in _graphs(model) for node in graph.node]


def _one(items: Any, random: Random) -> Any:
    items = list(items)
    return random.choice(items) if items else None


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _infos(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [
        info
        for graph in _graphs(model)
        if isinstance(graph, onnx.GraphProto)
        for info in (*graph.input, *graph.output, *graph.value_info)
    ]


def _names(model: onnx.ModelProto) -> list[str]:
    names = {name: None for node in _nodes(model) for name in (*node.input, *node.output)}
    names |= {tensor.name: None for tensor in _tensors(model)}
    return [*names, "", "nobody"]


@functools.cache
def _operators() -> list[tuple[str, str]]:
    found = {(s.domain, s.name) for s in onnx.defs.get_all_schemas() if s.domain in ("", "ai.onnx.ml")}
    ours = "Attention FusedMatMul FusedGemm FusedConv BiasGelu SkipLayerNormalization Gelu QuickGelu PythonOp"
    return sorted(found) + [("com.microsoft", name) for name in ours.split()]


# -- nodes -------------------------------------------------------------------------------------------


@mutation(4)
def operator(model: onnx.ModelProto, random: Random) -> None:
    """Another operator, one with the same number of operands if possible."""
    node = _one(_nodes(model), random)
    if node is not None:
        node.domain, node.op_type = random.choice(_operators())
        if random.random() < 0.3:
            node.op_type = random.choice([n.op_type for n in _nodes(model)])
        imports = {i.domain for i in model.opset_import}
        if node.domain not in imports and random.random() < 0.8:
            model.opset_import.append(helper.make_opsetid(node.domain, 1))


@mutation(1)
def domain(model: onnx.ModelProto, random: Random) -> None:
    """Another domain."""
    node = _one(_nodes(model), random)
    if node is not None:
        node.domain = random.choice(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "local", "\0", "x" * 1000))


@mutation(3)
def drop_node(model: onnx.ModelProto, random: Random) -> None:
    """A node less."""
    graph = _graph(model, random)
    if graph.node:
        del graph.node[random.randrange(len(graph.node))]


@mutation(2)
def duplicate_node(model: onnx.ModelProto, random: Random) -> None:
    """A node twice, its outputs under new names or not."""
    graph = _graph(model, random)
    if graph.node:
        node = graph.node.add()
        node.CopyFrom(random.choice(graph.node))
        if random.random() < 0.7:
            for i, name in enumerate(node.output):
                node.output[i] = f"{name}_again"


@mutation(2)
def shuffle_nodes(model: onnx.ModelProto, random: Random) -> None:
    """Nodes in another order."""
    graph = _graph(model, random)
    nodes = list(graph.node)
    random.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


@mutation(2)
def move_node(model: onnx.ModelProto, random: Random) -> None:
    """A node in another graph."""
    source, target = _graph(model, random), _graph(model, random)
    if source.node:
        node = onnx.NodeProto()
        node.CopyFrom(random.choice(source.node))
        target.node.insert(random.randrange(len(target.node) + 1), node)


@mutation(1)
def cycle(model: onnx.ModelProto, random: Random) -> None:
    """A node reads what comes of it."""
    graph = _graph(model, random)
    if graph.node:
        i = random.randrange(len(graph.node))
        j = random.randrange(i, len(graph.node))
        if graph.node[i].input and graph.node[j].output:
            graph.node[i].input[random.randrange(len(graph.node[i].input))] = graph.node[j].output[0]


@mutation(6)
def operand(model: onnx.ModelProto, random: Random) -> None:
    """An operand or result renamed, left out, doubled, dropped, exchanged."""
    node = _one(_nodes(model), random)
    if node is None:
        return
    names = node.input if random.random() < 0.75 else node.output
    how = random.randrange(6)
    if how == 0 or not names:
        names.append(random.choice(_names(model)))
    elif how == 1:
        del names[random.randrange(len(names))]
    elif how == 2:
        names[random.randrange(len(names))] = ""
    elif how == 3 and len(names) > 1:
        i, j = random.sample(range(len(names)), 2)
        names[i], names[j] = names[j], names[i]
    else:
        names[random.randrange(len(names))] = random.choice(_names(model))


@mutation(2)
def many_operands(model: onnx.ModelProto, random: Random) -> None:
    """Far too many operands or results."""
    node = _one(_nodes(model), random)
    if node is not None:
        count = random.choice((5, 20, 300))
        if random.random() < 0.5:
            node.input.extend(random.choice(_names(model)) for _ in range(count))
        else:
            node.output.extend(f"more{random.randrange(10**9)}" for _ in range(count))


# -- attributes ----------------------------------------------------------------------------------------


def _attribute(model: onnx.ModelProto, random: Random) -> AttributeProto | None:
    return _one((a for node in _nodes(model) for a in node.attribute), random)


@mutation(10)
def attribute_value(model: onnx.ModelProto, random: Random) -> None:
    """Another value of an attribute."""
    attribute = _attribute(model, random)
    if attribute is None:
        return
    kind = attribute.type
    if kind == AttributeProto.INT:
        attribute.i = random.choice(INTEGERS)
    elif kind == AttributeProto.FLOAT:
        attribute.f = random.choice(FLOATS)
    elif kind == AttributeProto.STRING:
        attribute.s = random.choice(TEXTS).encode() if random.random() < 0.8 else b"\xff\xfe\x80"
    elif kind in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS):
        field = {
            AttributeProto.INTS: "ints",
            AttributeProto.FLOATS: "floats",
            AttributeProto.STRINGS: "strings",
        }[kind]
        _numbers(getattr(attribute, field), field, random)


def _numbers(values: Any, field: str, random: Random) -> None:
    choices: Any = {"ints": INTEGERS, "floats": FLOATS, "strings": [t.encode() for t in TEXTS]}[field]
    how = random.randrange(5)
    if how == 0 or not values:
        values.extend(random.choice(choices) for _ in range(random.choice((1, 1, 2, 8))))
    elif how == 1:
        del values[random.randrange(len(values))]
    elif how == 2:
        del values[:]
    else:
        values[random.randrange(len(values))] = random.choice(choices)


@mutation(4)
def known_attribute(model: onnx.ModelProto, random: Random) -> None:
    """An attribute that the operator has, added or replaced, of its own type with some value."""
    node = _one(_nodes(model), random)
    if node is None:
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, 22, node.domain)
    except Exception:
        return
    name = _one(sorted(schema.attributes), random)
    if name is None:
        return
    for i, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[i]
            break
    kind = int(schema.attributes[name].type)
    made = node.attribute.add(name=name, type=kind)
    if kind == AttributeProto.INT:
        made.i = random.choice(INTEGERS)
    elif kind == AttributeProto.FLOAT:
        made.f = random.choice(FLOATS)
    elif kind == AttributeProto.STRING:
        made.s = random.choice(TEXTS).encode()
    elif kind == AttributeProto.INTS:
        made.ints.extend(random.choice(INTEGERS) for _ in range(random.randrange(5)))
    elif kind == AttributeProto.FLOATS:
        made.floats.extend(random.choice(FLOATS) for _ in range(random.randrange(5)))
    elif kind == AttributeProto.STRINGS:
        made.strings.extend(random.choice(TEXTS).encode() for _ in range(random.randrange(5)))
    elif kind == AttributeProto.TENSOR:
        made.t.CopyFrom(_some_tensor(random))


@mutation(3)
def attribute_type(model: onnx.ModelProto, random: Random) -> None:
    """Another type, a reference to an attribute of the function, another name, doubled, dropped."""
    node = _one((n for n in _nodes(model) if n.attribute), random)
    if node is None:
        return
    i = random.randrange(len(node.attribute))
    attribute = node.attribute[i]
    how = random.randrange(6)
    if how == 0:
        attribute.type = random.choice(list(range(15)))
    elif how == 1:
        attribute.ref_attr_name = random.choice(("alpha", "", "nobody", attribute.name))
    elif how == 2:
        attribute.name = random.choice(("", "alpha", "axis", "axes", "to", "value", "body", "x" * 1000))
    elif how == 3:
        node.attribute.add().CopyFrom(attribute)
    elif how == 4:
        del node.attribute[i]
    else:
        made = random.choice(_graphs(model))
        attribute.type = AttributeProto.GRAPH
        if isinstance(made, onnx.GraphProto):
            copy = onnx.GraphProto()
            copy.CopyFrom(made)
            attribute.g.CopyFrom(copy)


@mutation(1)
def nest(model: onnx.ModelProto, random: Random) -> None:
    """The graph inside an If inside an If ..."""
    inner = onnx.GraphProto()
    inner.CopyFrom(model.graph)
    if inner.ByteSize() > 20000:
        return
    del inner.input[:]
    for _ in range(random.choice((1, 2, 20, 40))):
        outer = onnx.GraphProto(name="outer")
        outer.output.extend(inner.output)
        node = outer.node.add(op_type="If", input=["go"], output=[o.name for o in inner.output])
        for name in ("then_branch", "else_branch") if inner.ByteSize() < 5000 else ("then_branch",):
            node.attribute.add(name=name, type=AttributeProto.GRAPH).g.CopyFrom(inner)
        inner = outer
        if inner.ByteSize() > 200000:
            break
    inner.input.extend(model.graph.input)
    inner.input.append(helper.make_tensor_value_info("go", TensorProto.BOOL, []))
    try:
        inner.SerializeToString()
    except Exception:
        return
    model.graph.CopyFrom(inner)


# -- tensors -------------------------------------------------------------------------------------------


def _some_tensor(random: Random) -> TensorProto:
    tensor = TensorProto(name=random.choice(TEXTS), data_type=random.choice((1, 1, 1, 6, 7, 7, 9, 11)))
    tensor.dims.extend(random.choice((0, 1, 1, 2, 3, -1, 2**40)) for _ in range(random.randrange(4)))
    tensor.raw_data = bytes(random.choice((0, 1, 4, 8, 16, 24, 32)))
    return tensor


@mutation(5)
def tensor_shape(model: onnx.ModelProto, random: Random) -> None:
    """Other dimensions than there is data for."""
    tensor = _one(_tensors(model), random)
    if tensor is None:
        return
    how = random.randrange(5)
    if how == 0:
        tensor.dims.append(random.choice((1, 1, *INTEGERS)))
    elif how == 1 and tensor.dims:
        del tensor.dims[random.randrange(len(tensor.dims))]
    elif how == 2:
        dims = list(tensor.dims)
        random.shuffle(dims)
        tensor.dims[:] = dims
    elif how == 3:
        tensor.dims[:] = [random.choice(INTEGERS) for _ in range(random.choice((1, 2, 4, 70)))]
    elif tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(INTEGERS)


@mutation(3)
def consistent_shape(model: onnx.ModelProto, random: Random) -> None:
    """Another shape with data to fill it: the tensor is valid, its readers may not think so."""
    tensor = _one((t for t in _tensors(model) if t.data_type in (1, 7)), random)
    if tensor is None:
        return
    dims = [random.choice((0, 1, 1, 2, 3, 4, 6)) for _ in range(random.randrange(6))]
    size = 1
    for d in dims:
        size *= d
    wide = {1: 4, 7: 8}[tensor.data_type]
    tensor.ClearField("float_data")
    tensor.ClearField("int64_data")
    tensor.dims[:] = dims
    tensor.raw_data = bytes(
        random.choice((0, 1, 63, 255)) if i % wide == 0 else 0 for i in range(size * wide)
    )


@mutation(4)
def tensor_type(model: onnx.ModelProto, random: Random) -> None:
    """Another element type."""
    tensor = _one(_tensors(model), random)
    if tensor is not None:
        tensor.data_type = random.choice((*range(27), 99, -1))


@mutation(5)
def tensor_data(model: onnx.ModelProto, random: Random) -> None:
    """Other data: too short, too long, elsewhere, other integers."""
    tensor = _one(_tensors(model), random)
    if tensor is None:
        return
    how = random.randrange(7)
    if how == 0:
        tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data) + 1)]
    elif how == 1:
        tensor.raw_data = tensor.raw_data + bytes(random.choice((1, 4, 1000)))
    elif how == 2:
        tensor.float_data.extend(random.choice(FLOATS) for _ in range(random.choice((1, 4))))
    elif how == 3:
        tensor.data_location = TensorProto.EXTERNAL
        places = ("w.bin", "/etc/passwd", "../x", "", "/dev/zero", "http://localhost/w", "\0", ".")
        tensor.external_data.add(key="location", value=random.choice(places))
        if random.random() < 0.5:
            tensor.external_data.add(
                key=random.choice(("offset", "length", "checksum", "")),
                value=random.choice(("-1", "0", "8", "x", "9" * 30)),
            )
    elif tensor.data_type == TensorProto.INT64:
        try:
            values = onnx.numpy_helper.to_array(tensor).reshape(-1).tolist()
        except Exception:
            return
        if values:
            values[random.randrange(len(values))] = random.choice(INTEGERS)
            tensor.ClearField("raw_data")
            tensor.int64_data[:] = values
    else:
        tensor.raw_data = bytes(random.randrange(256) for _ in range(len(tensor.raw_data)))


@mutation(2)
def sparse(model: onnx.ModelProto, random: Random) -> None:
    """Dimensions and indices of sparse tensors."""
    found = [s for graph in _graphs(model) for s in getattr(graph, "sparse_initializer", ())]
    found += [
        a.sparse_tensor for node in _nodes(model) for a in node.attribute if a.HasField("sparse_tensor")
    ]
    chosen = _one(found, random)
    if chosen is None:
        return
    if random.random() < 0.5:
        chosen.dims[:] = [random.choice(INTEGERS) for _ in range(random.choice((0, 1, 2, 3)))]
    elif chosen.indices.int64_data or chosen.indices.raw_data:
        values = onnx.numpy_helper.to_array(chosen.indices).reshape(-1).tolist()
        values[random.randrange(len(values))] = random.choice(INTEGERS)
        chosen.indices.ClearField("raw_data")
        chosen.indices.int64_data[:] = values


@mutation(2)
def initializers(model: onnx.ModelProto, random: Random) -> None:
    """An initializer less, twice, under another name, or an input as well."""
    graph = model.graph
    if not graph.initializer:
        return
    i = random.randrange(len(graph.initializer))
    how = random.randrange(4)
    if how == 0:
        del graph.initializer[i]
    elif how == 1:
        graph.initializer.add().CopyFrom(graph.initializer[i])
    elif how == 2:
        graph.initializer[i].name = random.choice((*_names(model), *TEXTS))
    else:
        graph.input.append(
            helper.make_tensor_value_info(graph.initializer[i].name, random.choice((1, 7)), ["K"])
        )


# -- inputs and outputs ------------------------------------------------------------------------------


@mutation(4)
def info_shape(model: onnx.ModelProto, random: Random) -> None:
    """Other declared dimensions."""
    info = _one(_infos(model), random)
    if info is None or not info.type.HasField("tensor_type"):
        return
    shape = info.type.tensor_type.shape
    how = random.randrange(5)
    if how == 0:
        info.type.tensor_type.ClearField("shape")
    elif how == 1:
        shape.dim.add().dim_value = random.choice(INTEGERS)
    elif how == 2 and shape.dim:
        del shape.dim[random.randrange(len(shape.dim))]
    elif shape.dim:
        dim = random.choice(shape.dim)
        if random.random() < 0.5:
            dim.dim_value = random.choice(INTEGERS)
        else:
            dim.dim_param = random.choice(("N", "M", "", "x\0", "N+1", "1"))


@mutation(4)
def info_type(model: onnx.ModelProto, random: Random) -> None:
    """Another declared type."""
    info = _one(_infos(model), random)
    if info is None:
        return
    how = random.randrange(7)
    if how <= 2:
        info.type.tensor_type.elem_type = random.choice((*range(27), 99))
        return
    inner = TypeProto()
    inner.CopyFrom(info.type)
    info.ClearField("type")
    if how == 3:
        info.type.sequence_type.elem_type.CopyFrom(inner)
    elif how == 4:
        info.type.optional_type.elem_type.CopyFrom(inner)
    elif how == 5:
        info.type.map_type.key_type = random.choice((1, 7, 8))
        info.type.map_type.value_type.CopyFrom(inner)


@mutation(2)
def deep_type(model: onnx.ModelProto, random: Random) -> None:
    """A sequence of sequences of sequences ..."""
    info = _one(_infos(model), random)
    if info is not None:
        kind = info.type
        for _ in range(random.choice((2, 10, 45))):
            kind.sequence_type.SetInParent()
            kind = kind.sequence_type.elem_type
        kind.tensor_type.elem_type = 1


@mutation(4)
def interface(model: onnx.ModelProto, random: Random) -> None:
    """Inputs and outputs of a graph: one less, twice, of another name, of something else."""
    graph = _graph(model, random)
    infos = graph.output if random.random() < 0.6 else graph.input
    how = random.randrange(4)
    if not isinstance(graph, onnx.GraphProto):
        if infos:
            infos[random.randrange(len(infos))] = random.choice(_names(model))
    elif how == 0 and infos:
        del infos[random.randrange(len(infos))]
    elif how == 1 and infos:
        infos.add().CopyFrom(random.choice(infos))
    elif how == 2 and infos:
        random.choice(infos).name = random.choice((*_names(model), *TEXTS))
    else:
        infos.add().CopyFrom(helper.make_tensor_value_info(random.choice(_names(model)), 1, ["N", 3]))


# -- the model as a whole ----------------------------------------------------------------------------


@mutation(3)
def opset(model: onnx.ModelProto, random: Random) -> None:
    """Versions of operators and of the file format."""
    imports = model.opset_import
    how = random.randrange(6)
    if how <= 2 and imports:
        random.choice(imports).version = random.choice((*range(1, 30), *INTEGERS))
    elif how == 3 and imports:
        del imports[random.randrange(len(imports))]
    elif how == 4:
        imports.append(
            helper.make_opsetid(
                random.choice(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "\0")), random.choice(INTEGERS)
            )
        )
    else:
        model.ir_version = random.choice((*range(1, 16), *INTEGERS[-12:]))


@mutation(2)
def function(model: onnx.ModelProto, random: Random) -> None:
    """Functions: one that calls itself, one in place of an operator, one less, another name."""
    how = random.randrange(5)
    if how == 0 and model.functions:
        target = random.choice(model.functions)
        target.node.add(op_type=target.name, domain=target.domain, input=target.input, output=["again"])
    elif how == 1 and model.functions:
        del model.functions[random.randrange(len(model.functions))]
    elif how == 2 and model.functions:
        random.choice(model.functions).name = random.choice(TEXTS)
    elif how == 3:
        node = _one(_nodes(model), random)
        if node is not None:
            made = model.functions.add(name=node.op_type, domain=node.domain, input=["a"], output=["b"])
            made.opset_import.extend(model.opset_import)
            made.node.add(op_type=random.choice(("Identity", "Relu", "Nobody")), input=["a"], output=["b"])
    else:
        _laughs(model, random.choice((3, 6, 40)))


def _laughs(model: onnx.ModelProto, depth: int) -> None:
    """Functions that call the one before twice."""
    for i in range(depth):
        made = model.functions.add(name=f"f{i}", domain="laugh", input=["a"], output=["c"])
        made.opset_import.extend([helper.make_opsetid("", 17), helper.make_opsetid("laugh", 1)])
        name, where = (f"f{i - 1}", "laugh") if i else ("Neg", "")
        made.node.add(op_type=name, domain=where, input=["a"], output=["b"])
        made.node.add(op_type=name, domain=where, input=["b"], output=["c"])
    model.opset_import.append(helper.make_opsetid("laugh", 1))
    floats = [i.name for i in model.graph.input if i.type.tensor_type.elem_type == TensorProto.FLOAT]
    if floats:
        model.graph.node.add(op_type=f"f{depth - 1}", domain="laugh", input=floats[:1], output=["laughter"])
        model.graph.output.append(helper.make_tensor_value_info("laughter", 1, None))


@mutation(2)
def names(model: onnx.ModelProto, random: Random) -> None:
    """One name replaced everywhere by another."""
    old, new = random.choice(_names(model)), random.choice((*_names(model), *TEXTS))
    for node in _nodes(model):
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                if name == old:
                    field[i] = new
    for item in (*_tensors(model), *_infos(model)):
        if item.name == old:
            item.name = new


@mutation(1)
def labels(model: onnx.ModelProto, random: Random) -> None:
    """Names of nodes and graphs, which mean nothing."""
    item = random.choice([*_nodes(model), *_graphs(model)])
    item.name = random.choice(TEXTS)
    item.doc_string = random.choice(TEXTS)


@mutation(1)
def metadata(model: onnx.ModelProto, random: Random) -> None:
    """Entries that this library reads, of other content."""
    target = random.choice([model, model.graph, *_nodes(model)])
    target.metadata_props.add(key=random.choice(KEYS), value=random.choice(JSON))

"""Which operators onnxruntime has CUDA kernels for, and which nodes of a graph it has none for.

The facts are in ``cuda_kernels.txt``, one kernel a line: releases, domain, operator, opsets, types of every
parameter. They are those of the page ``docs/OperatorKernels.md`` of onnxruntime's repository; to read them
again::

    python _unittests/cuda_kernels.py 1.19.2=one/OperatorKernels.md 1.25.0=another/OperatorKernels.md
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import TensorProto

FILE = Path(__file__).with_name("cuda_kernels.txt")
#: Types that training meets, by the letter or letters that the file has for them.
CODES = {
    **{"f": "float", "d": "double", "h": "float16", "g": "bfloat16", "b": "bool", "s": "string"},
    **{f"i{n}": f"int{n}" for n in (8, 16, 32, 64)},
    **{f"u{n}": f"uint{n}" for n in (8, 16, 32, 64)},
}
_ELEMENTS = {getattr(TensorProto, name.upper()): code for code, name in CODES.items()}


class Kernel(NamedTuple):
    """A row of the table."""

    domain: str
    op: str
    since: int
    until: int
    types: Mapping[str, frozenset[str]]
    """Of each type variable, or parameter, the codes of what it may be."""


# -- from the page to the file ----------------------------------------------------------------------


def kernels_of_page(text: str) -> Iterator[str]:
    """The CUDA kernels of a page, as lines of the file without the release."""
    section = text.split("## Operators implemented by CUDAExecutionProvider")[1].split("\n## ")[0]
    domain = op = ""
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        found = re.search(r"\*\*Operator Domain:\*\* \*(.*?)\*", line)
        if found:
            domain = found[1]
        versions = re.search(r"\|(\d+)\+\||\|\[(\d+), (\d+)\]\||\|(\d+)\|", line)
        if found or not versions or "tensor(" not in cells[-1]:
            continue
        op = cells[0] if not line.startswith("|||") else op
        if versions[1]:
            opsets = f"{versions[1]}-"
        else:
            opsets = f"{versions[2] or versions[4]}-{versions[3] or versions[4]}"
        yield f"{domain} {op} {opsets} {_types(cells[-1])}"


def _types(cell: str) -> str:
    names = {name: code for code, name in CODES.items()}
    made = []
    for part in cell.split("<br/>"):
        variable, kinds = re.fullmatch(r"\s*\*\*(.*?)\*\* = (.*)", part.strip()).groups()  # type: ignore[union-attr]
        known = [names[k] for k in re.findall(r"(?<![(\w])tensor\((\w+)\)", kinds) if k in names]
        made.append(f"{variable}={','.join(sorted(known))}")
    return " ".join(made)


def write(pages: Mapping[str, str]) -> None:
    """Write the file from the pages of two releases."""
    rows: dict[str, list[str]] = {}
    for release, text in pages.items():
        for row in dict.fromkeys(kernels_of_page(text)):
            rows.setdefault(row, []).append(release)
    lines = sorted(f"{'all' if len(found) == len(pages) else found[0]} {row}" for row, found in rows.items())
    lines.sort(key=lambda line: line.split(" ")[1:])
    FILE.write_text("\n".join([f"releases {' '.join(pages)}", *lines, ""]), encoding="utf-8")


# -- from the file to a graph -----------------------------------------------------------------------


def releases() -> list[str]:
    """The releases that the file is of."""
    with FILE.open(encoding="utf-8") as file:
        return file.readline().split()[1:]


@functools.cache
def kernels(release: str) -> dict[tuple[str, str], list[Kernel]]:
    """The table of a release, by domain and operator."""
    table: dict[tuple[str, str], list[Kernel]] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines()[1:]:
        found, domain, op, opsets, *types = line.split(" ")
        if found in ("all", release):
            domain = "" if domain == "ai.onnx" else domain
            since, until = opsets.split("-")
            sets = {k: frozenset(v.split(",")) for k, v in (part.split("=") for part in types)}
            row = Kernel(domain, op, int(since), int(until or 999), sets)
            table.setdefault((domain, op), []).append(row)
    return table


def missing(model: onnx.ModelProto, release: str) -> Iterator[tuple[onnx.NodeProto, str]]:
    """The nodes of a graph that no kernel takes, and why: the operator, its opset or a type.

    What a node computes from sizes alone is left out: onnxruntime keeps that on the host.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    opsets = {imported.domain: imported.version for imported in typed.opset_import}
    data = {v.name for v in typed.graph.input}
    yield from _missing(typed.graph, kernels(release), opsets, {}, data)


def _missing(
    graph: onnx.GraphProto,
    table: Mapping[tuple[str, str], list[Kernel]],
    opsets: Mapping[str, int],
    outer: Mapping[str, str],
    data: set[str],
) -> Iterator[tuple[onnx.NodeProto, str]]:
    infos = (*graph.input, *graph.output, *graph.value_info)
    types = {**outer, **{v.name: _ELEMENTS.get(v.type.tensor_type.elem_type, "") for v in infos}}
    types |= {t.name: _ELEMENTS.get(t.data_type, "") for t in graph.initializer}
    for node in graph.node:
        bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        if not data & {*node.input, *(name for body in bodies for name in _read(body))}:
            continue  # constants, and what is computed from sizes
        if node.op_type not in ("Shape", "Size"):
            data |= {*node.output}
        reason = _reason(node, table, opsets, types)
        if reason:
            yield node, reason
        for body in bodies:
            inside = data | {v.name for v in body.input}
            yield from _missing(body, table, opsets, types, inside)


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _read(attribute.g)


def _reason(
    node: onnx.NodeProto,
    table: Mapping[tuple[str, str], list[Kernel]],
    opsets: Mapping[str, int],
    types: Mapping[str, str],
) -> str:
    rows = table.get((node.domain, node.op_type))
    if rows is None:
        return f"{node.op_type}: no kernel"
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except onnx.defs.SchemaError:
        return ""  # an operator of onnxruntime's own, which has one
    rows = [row for row in rows if row.since <= schema.since_version <= row.until]
    if not rows:
        return f"{node.op_type}: none of opset {schema.since_version}"
    asked = [*_named(schema.inputs, node.input, types), *_named(schema.outputs, node.output, types)]
    for row in rows:
        if all(code in row.types.get(v, row.types.get(n, {code})) for v, n, code in asked):
            return ""
    return f"{node.op_type}: none of {','.join(sorted({f'{v}={code}' for v, _, code in asked}))}"


def _named(parameters: object, names: object, types: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Type variable, name and type of every tensor whose type is known."""
    parameters = list(parameters)  # type: ignore[call-overload]
    for i, name in enumerate(names):  # type: ignore[arg-type, var-annotated]
        if types.get(name):
            parameter = parameters[min(i, len(parameters) - 1)]
            yield parameter.type_str, parameter.name, types[name]


if __name__ == "__main__":
    write({r: Path(p).read_text(encoding="utf-8") for r, p in (a.split("=") for a in sys.argv[1:])})

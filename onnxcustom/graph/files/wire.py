"""How many parts a serialized model has, found without parsing it.

Two bytes of a file are enough for an empty node, of which a parser makes two hundred in memory. Parts are
counted on the bytes themselves before anything is allocated.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import onnx

__all__ = ["count_parts"]

# A run of numbers, of which an attribute may hold millions: a field of 4 or 8 bytes, or one varint, whose
# number is below 16, over and over. They take no more memory than bytes of the file.
_NUMBERS = re.compile(
    rb"(?:[\x0d\x15\x1d\x25\x2d\x35\x3d\x45\x4d\x55\x5d\x65\x6d\x75\x7d](?s:.){4}"
    rb"|[\x09\x11\x19\x21\x29\x31\x39\x41\x49\x51\x59\x61\x69\x71\x79](?s:.){8}"
    rb"|[\x08\x10\x18\x20\x28\x30\x38\x40\x48\x50\x58\x60\x68\x70\x78][\x80-\xff]{0,9}[\x00-\x7f])+"
)
_LENGTH = 2
_FIXED = {1: 8, 5: 4}


def count_parts(content: bytes, limit: int) -> int:
    """Number of messages and texts in a serialized ``ModelProto``.

    Parameters
    ----------
    content : bytes
        The model, or anything else.
    limit : int
        Counting ends beyond it.

    Returns
    -------
    int
        What of `content` is not in protobuf's format is not counted: a parser refuses it.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 18]>'
    ...     'g (float[N] x) => (float[N] y) { y = Relu(x) }')
    >>> count_parts(model.SerializeToString(), 1000)
    23
    """
    count = 0
    stack = [(0, len(content), _fields(onnx.ModelProto.DESCRIPTOR))]
    while stack:
        at, end, fields = stack.pop()
        while at < end and count <= limit:
            numbers = _NUMBERS.match(content, at, end)
            if numbers:
                at = numbers.end()
                continue
            tag, at = _varint(content, at, end)
            kind = tag & 7
            if kind == _LENGTH:
                size, at = _varint(content, at, end)
                count += 1
                inner = fields.get(tag >> 3)
                if inner is not None and size:
                    stack.append((at, min(at + size, end), inner()))
                at += size
            elif kind == 0:
                _, at = _varint(content, at, end)
            elif kind in _FIXED:
                at += _FIXED[kind]
            else:
                break  # groups, which ONNX has none of, or no protobuf
    return count


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """A number and where it ends; beyond `end` if it does not."""
    result = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = content[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
    return 0, end


@functools.cache
def _fields(descriptor: Any) -> dict[int, Any]:
    """Fields of a message that are messages themselves, and how to get at the fields of those."""
    return {
        field.number: functools.partial(_fields, field.message_type)
        for field in descriptor.fields
        if field.message_type is not None
    }

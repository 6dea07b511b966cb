"""Names with options in a text: ``huber:delta=2``."""

from __future__ import annotations

import ast
from typing import Any

from onnxcustom.exceptions import UnknownNameError

__all__ = ["parse_phrase", "parse_value"]

_WORDS = {"true": True, "false": False, "none": None}
_LONGEST = 10_000  # no option of a rule, a loss or a schedule is as long


def parse_value(text: str) -> Any:
    """A number, a list of numbers, true, false, none, or text.

    Examples
    --------
    >>> [parse_value(t) for t in ("0.1", "1e-3", "true", "[1, 2]", "cos")]
    [0.1, 0.001, True, [1, 2], 'cos']
    """
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def parse_phrase(text: str) -> tuple[str, dict[str, Any]]:
    """``name:option=value,option=value`` as a name and its options.

    Raises
    ------
    UnknownNameError
        Something else.

    Examples
    --------
    >>> parse_phrase("adamw:wd=0.01,beta1=0.8")
    ('adamw', {'wd': 0.01, 'beta1': 0.8})
    >>> parse_phrase("steps:at=[5,10]")
    ('steps', {'at': [5, 10]})
    """
    name, colon, rest = text.partition(":")
    options: dict[str, Any] = {}
    parts = _parts(rest) if rest.strip() and len(rest) < _LONGEST else []
    for part in parts:
        key, equals, value = part.partition("=")
        if not (equals and key.strip().isidentifier()) or key.strip() in options:
            parts = []
            break
        options[key.strip()] = parse_value(value)
    if not name.strip() or (colon and not parts):
        raise UnknownNameError(f"{text!r}: NAME or NAME:option=value,option=value was expected.")
    return name.strip(), options


def _parts(text: str) -> list[str]:
    """Text cut at commas that are not within brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]

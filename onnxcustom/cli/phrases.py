"""What is typed for an option: lists of names, ``NAME=value`` and ``name:option=value,option=value``."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterable, Sequence
from typing import Any

import click

__all__ = ["assigned", "parse_phrase", "parse_value", "split_names"]

_WORDS = {"true": True, "false": False, "none": None}
_LONGEST = 10_000  # no option of a rule, a loss or a schedule is as long


def split_names(texts: Iterable[str], known: Sequence[str]) -> list[str]:
    """Names that are typed with commas between them, or one at a time.

    Parameters
    ----------
    texts : iterable of str
        A text that is one of the known names is that name, commas and all. In any other, names are
        separated by commas, and those that hold some are quoted as in a CSV file.
    known : sequence of str
        The names there are.

    Returns
    -------
    list of str
        Known ones or not.

    Examples
    --------
    >>> split_names(["a,b", "weight, kg"], ["a", "b", "weight, kg"])
    ['a', 'b', 'weight, kg']
    >>> split_names(['"weight, kg",a'], ["a", "weight, kg"])
    ['weight, kg', 'a']
    """
    found: list[str] = []
    for text in texts:
        if text in known:
            found.append(text)
            continue
        for cell in next(csv.reader([text], skipinitialspace=True), []):
            found.append(cell if cell in known else cell.strip())
    return found


def assigned(texts: Iterable[str], names: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=value`` as a dict; names may hold ``=`` themselves.

    Parameters
    ----------
    texts : iterable of str
        What was typed.
    names : sequence of str
        The names there are.
    option : str
        For messages.

    Raises
    ------
    click.UsageError
        Not such a text, no such name, or one twice.

    Examples
    --------
    >>> assigned(["x=a,b", "x=1=c"], ["x", "x=1"], "--input")
    {'x': 'a,b', 'x=1': 'c'}
    """
    made: dict[str, str] = {}
    for text in texts:
        fits = [name for name in names if text.startswith(f"{name}=")]
        if not fits:
            raise click.UsageError(
                f"{option} {text!r}: NAME=VALUE was expected, where NAME is one of {list(names)}."
            )
        name = max(fits, key=len)
        if name in made:
            raise click.UsageError(f"{option} names {name!r} twice.")
        made[name] = text[len(name) + 1 :]
    return made


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


def parse_phrase(text: str, option: str) -> tuple[str, dict[str, Any]]:
    """``name:option=value,option=value`` as a name and its options.

    Raises
    ------
    click.UsageError
        Something else.

    Examples
    --------
    >>> parse_phrase("adamw:wd=0.01,beta1=0.8", "--optimizer")
    ('adamw', {'wd': 0.01, 'beta1': 0.8})
    >>> parse_phrase("steps:at=[5,10]", "--schedule")
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
        raise click.UsageError(f"{option} {text!r}: NAME or NAME:option=value,option=value was expected.")
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

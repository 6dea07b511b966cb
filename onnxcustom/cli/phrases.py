"""What is typed for an option: lists of names, ``NAME=value`` and ``name:option=value,option=value``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import Any

import click

from onnxcustom import _phrases
from onnxcustom._phrases import parse_value
from onnxcustom.exceptions import UnknownNameError

__all__ = ["assigned", "parse_outputs", "parse_phrase", "parse_places", "parse_value", "split_names"]


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
    """
    try:
        return _phrases.parse_phrase(text)
    except UnknownNameError as exc:
        raise click.UsageError(f"{option} {exc}") from exc


def parse_places(text: str) -> int | list[int]:
    """A number of blocks, or places with commas between them, or behind the only one.

    Examples
    --------
    >>> parse_places("3"), parse_places("0,2,-1"), parse_places("2,")
    (3, [0, 2, -1], [2])
    """
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        raise click.UsageError(
            f"--keep-layers {text!r}: a number of blocks, or places from 0 with commas between them."
        ) from None
    return numbers if "," in text else numbers[0]


def parse_outputs(text: str) -> int | list[Any]:
    """A number of outputs, or labels with commas between them: numbers if all are.

    Examples
    --------
    >>> parse_outputs("5"), parse_outputs("3,7"), parse_outputs("red, green")
    (5, [3, 7], ['red', 'green'])
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        numbers: list[Any] = [int(part) for part in parts]
    except ValueError:
        numbers = list(parts)
        if len(parts) < 2 or not all(parts):
            raise click.UsageError(
                f"--head {text!r}: a number of outputs, or labels with commas between them."
            ) from None
    return numbers[0] if len(parts) == 1 else numbers

"""Words of messages and reports: numbers of things, names in a row, tables of a given width."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

__all__ = ["capital", "count", "listed", "shorten", "table", "wrap"]


def capital(text: str) -> str:
    """A text that begins a sentence; names of parameters stay what they are.

    Examples
    --------
    >>> capital("input 'x'"), capital("y of 'a'"), capital("sample_weight")
    ("Input 'x'", "y of 'a'", 'sample_weight')
    """
    first = text.partition(" ")[0]
    return text if len(first) == 1 or "_" in first else f"{text[:1].upper()}{text[1:]}"


def count(number: int, noun: str) -> str:
    """A number of things, in words.

    Examples
    --------
    >>> count(1, "row"), count(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[object], most: int = 20, quoted: bool = True) -> str:
    """The first names, and how many more there are.

    Examples
    --------
    >>> listed(["a", "b", "c"], 2), listed([], 2)
    ("'a', 'b' and 1 more", 'none')
    """
    texts = [repr(name) if quoted else str(name) for name in names]
    more = len(texts) - most
    return (", ".join(texts[:most]) + (f" and {more:,} more" if more > 0 else "")) or "none"


def shorten(text: str, longest: int = 30) -> str:
    """A name, its middle left out if it is long.

    Examples
    --------
    >>> shorten("classifier", 6)
    'cl…ier'
    """
    if len(text) <= longest:
        return text
    left = (longest - 1) // 2
    return f"{text[:left]}…{text[len(text) - (longest - 1 - left) :]}"


def wrap(text: str, width: int, indent: int = 0) -> list[str]:
    """Lines of a text, the first at an indent, the others two columns further."""
    space = " " * indent
    return textwrap.wrap(
        text, width, initial_indent=space, subsequent_indent=f"{space}  ", break_on_hyphens=False
    )


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], align: str, width: int) -> list[str]:
    r"""Lines of a table: the first column is shortened in the middle, the last wrapped, to fit `width`.

    Examples
    --------
    >>> print("\n".join(table(["name", "size"], [["w", "10"], ["bias", "5"]], "<>", 60)))
      name  size
      ----  ----
      w     10
      bias  5
    """
    rows = list(rows)
    sizes = [max(len(row[k]) for row in (titles, *rows)) for k in range(len(titles))]
    rest = width - 2 - sum(sizes[1:-1]) - 2 * (len(sizes) - 1)
    sizes[-1] = min(sizes[-1], max(rest - sizes[0], 24))
    sizes[0] = min(sizes[0], max(rest - sizes[-1], 16))
    lines = []
    for row in (titles, ["-" * size for size in sizes], *rows):
        cells = [shorten(row[0], sizes[0]), *row[1:-1]]
        start = "  " + "  ".join(f"{c:{a}{n}}" for c, a, n in zip(cells, align, sizes, strict=False))
        wrapped = textwrap.wrap(row[-1], sizes[-1], break_on_hyphens=False) or [""]
        lines.append(f"{start}  {wrapped[0]}".rstrip())
        lines += [" " * (len(start) + 2) + line for line in wrapped[1:]]
    return lines

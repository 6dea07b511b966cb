"""A diagram in the language of Graphviz, and the program that lays it out."""

from __future__ import annotations

import html
import itertools
import re
import shutil
import subprocess
import sysconfig
import unicodedata
from collections.abc import Iterator

from onnxcustom.exceptions import MissingPackageError, OnnxCustomError

from .diagram import Arrow, Box, Diagram, Part
from .style import PHASE_COLORS, PHASE_FILLS

__all__ = ["dot_text", "find_program", "fit_text", "run_program"]

_FONT = "Helvetica"
_GRAY = "#555555"


def dot_text(diagram: Diagram) -> str:
    """Write a diagram in the DOT language.

    Parameters
    ----------
    diagram : Diagram
        What is drawn.

    Returns
    -------
    str
    """
    graph = _attributes(fontname=_FONT, fontsize=11, nodesep=0.2, ranksep=0.3, pad=0.15)
    node = _attributes(fontname=_FONT, fontsize=11, margin="0.09,0.045", style="rounded,filled", shape="box")
    lines = [
        "digraph {",
        f'  graph [{graph}, labelloc=t, labeljust=l, bgcolor=white, tooltip=" ", label={_legend(diagram)}]',
        f"  node [{node}, width=0.5, height=0.28, penwidth=0.9]",
        "  edge [arrowsize=0.55, penwidth=0.9]",
    ]
    numbers = itertools.count()
    for part in diagram.parts:
        lines += _part(part, "  ", numbers)
    boxes = {box.key: box for box in diagram.boxes}
    lines += [_arrow(arrow, boxes[arrow.head]) for arrow in diagram.arrows]
    return "\n".join([*lines, "}", ""])


def _part(part: Part, indent: str, numbers: Iterator[int]) -> list[str]:
    if isinstance(part, Box):
        return [f"{indent}{_quoted(part.key)} [{_box(part)}]"]
    style = _attributes(color=PHASE_COLORS[part.phase], fontcolor=_GRAY, fontsize=10, label=part.title)
    lines = [
        f"{indent}subgraph cluster_{next(numbers)} {{",
        f'{indent}  graph [style="rounded", tooltip=" ", {style}]',
    ]
    for inner in part.parts:
        lines += _part(inner, indent + "  ", numbers)
    return [*lines, f"{indent}}}"]


def _box(box: Box) -> str:
    text = _markup(box.title) if box.data else f"<B>{_markup(box.title)}</B>"
    for line in box.lines:
        text += f'<BR/><FONT POINT-SIZE="9">{_markup(line)}</FONT>'
    fill, color = PHASE_FILLS[box.phase], PHASE_COLORS[box.phase]
    if box.data:
        fill, color = "#FFFFFF", _GRAY
    look = f"{_attributes(fillcolor=fill, color=color)}, {_tooltip(box.tooltip or box.title)}"
    return f"label=<{text}>, {look}" + (", penwidth=1.2, style=filled" if box.data else "")


def _arrow(arrow: Arrow, head: Box) -> str:
    color = _GRAY if head.data else PHASE_COLORS[arrow.phase]
    look = f"{_attributes(color=color)}, {_tooltip(chr(10).join(arrow.names))}"
    if arrow.up:
        return f"  {_quoted(arrow.head)} -> {_quoted(arrow.tail)} [{look}, dir=back]"
    return f"  {_quoted(arrow.tail)} -> {_quoted(arrow.head)} [{look}]"


def _legend(diagram: Diagram) -> str:
    """Title, what the colours mean, and what was left out, as an HTML-like label."""
    phases = diagram.phases if len(diagram.phases) > 1 else []
    span = f'COLSPAN="{len(phases) + 1}" ALIGN="LEFT"'
    rows = [f"<TR><TD {span}><B>{_markup(diagram.title)}</B></TD></TR>"]
    cells = "".join(
        f'<TD BORDER="1" COLOR="{PHASE_COLORS[p]}" BGCOLOR="{PHASE_FILLS[p]}" STYLE="rounded">{p}</TD>'
        for p in phases
    )
    rows += [f"<TR>{cells}<TD></TD></TR>"] if cells else []
    rows += [f"<TR><TD {span}>{_markup(diagram.note)}</TD></TR>"] if diagram.note else []
    return f'<<TABLE BORDER="0" CELLSPACING="5" CELLPADDING="3">{"".join(rows)}</TABLE>>'


# -- quoting ----------------------------------------------------------------------------------------


def _attributes(**values: object) -> str:
    return ", ".join(f"{name}={_quoted(str(value))}" for name, value in values.items())


def _quoted(text: str) -> str:
    """A string of the DOT language: quotes end it, backslashes begin an escape sequence, & an entity."""
    text = _clean(text).replace("&", "&amp;")
    return '"' + text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'


def _tooltip(text: str) -> str:
    """Text in which Graphviz replaces escape sequences twice."""
    return f"tooltip={_quoted(text.replace(chr(92), 2 * chr(92)))}"


def _markup(text: str) -> str:
    """Text of an HTML-like label, where backslashes count too and nothing at all is a syntax error."""
    return html.escape(_clean(text).replace("\n", " "), quote=False).replace("\\", r"\\") or "&#160;"


def _clean(text: str) -> str:
    """Text without what XML forbids: control characters, halves of surrogate pairs."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs", "Cn") else "�" for c in text)


# -- the program ------------------------------------------------------------------------------------


def find_program() -> str | None:
    """Find Graphviz: ``dot`` on the path, else what the package graphviz-pure installs.

    Returns
    -------
    str or None
        The program's path, None if there is none.
    """
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("dot") or shutil.which("graphviz-pure")
    return found or shutil.which("graphviz-pure", path=scripts)


def run_program(text: str, form: str, dpi: int | None = None) -> bytes:
    """Lay out and draw what :func:`dot_text` wrote.

    Parameters
    ----------
    text : str
        A graph in the DOT language.
    form : {'svg', 'png'}
        What is wanted.
    dpi : int, optional
        Pixels in an inch of a PNG.

    Returns
    -------
    bytes

    Raises
    ------
    MissingPackageError
        Graphviz is not installed.
    OnnxCustomError
        It fails.
    """
    program = find_program()
    if program is None:
        raise MissingPackageError(
            "Graphs are laid out by Graphviz, whose program 'dot' is not on the path. Package managers "
            "have it as 'graphviz'; the extra onnxcustom[plot] brings one, too. A .dot file "
            "can be written without it."
        )
    options = [f"-T{form}", *([f"-Gdpi={dpi}"] if dpi is not None else [])]
    done = subprocess.run([program, *options], input=text.encode(), capture_output=True, check=False)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise OnnxCustomError(
            f"{program} failed with exit code {done.returncode}: {' '.join(reason[:3]) or 'it said nothing'}"
        )
    return done.stdout


# -- text in any font -------------------------------------------------------------------------------

_SHAPE_OR_TEXT = re.compile(
    r'<(?:path|polygon)\b[^>]*? (?:d|points)="(?P<outline>[^"]*)"'
    r'|text-anchor="start" x="(?P<x>[-.\d]+)" y="(?P<y>[-.\d]+)"'
)


def fit_text(svg: str) -> str:
    """Make text as wide as Graphviz took it to be: who looks at the picture may have another font.

    Parameters
    ----------
    svg : str
        What Graphviz made of :func:`dot_text`. Lines are centred in their boxes, which gives their width.

    Returns
    -------
    str
    """
    box = (0.0, 0.0, 0.0, 0.0)
    page = True

    def fitted(match: re.Match[str]) -> str:
        nonlocal box, page
        if match["outline"] is not None:
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", match["outline"])]
            # The first is the page.
            box = box if page or len(numbers) < 4 else _extent(numbers)
            page = False
            return match[0]
        x, y = float(match["x"]), float(match["y"])
        left, right, top, bottom = box
        middle = (left + right) / 2
        if not (left < x < middle and top < y < bottom):
            return match[0]
        length = f'textLength="{2 * (middle - x):.2f}" lengthAdjust="spacingAndGlyphs"'
        return f'text-anchor="middle" x="{middle:.2f}" y="{match["y"]}" {length}'

    return _SHAPE_OR_TEXT.sub(fitted, svg)


def _extent(numbers: list[float]) -> tuple[float, float, float, float]:
    across, down = numbers[::2], numbers[1::2]
    return min(across), max(across), min(down), max(down)

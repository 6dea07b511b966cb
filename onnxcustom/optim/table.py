"""What the documentation says of update rules, schedules and options: read from their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import annealing, plateau, schedules
from .base import BaseLearningRate
from .options import SharedOptions
from .registry import RULES
from .schedules import Schedule

__all__ = ["RuleEntry", "options_rst", "rule_entries", "rule_entry", "rules_rst", "schedules_rst"]

_INITIALS = r"(?:[A-Z]\.[- ]?)+"


@dataclasses.dataclass(frozen=True)
class RuleEntry:
    """What there is to say of an update rule; all text is reStructuredText.

    Parameters
    ----------
    cls : type
        Its class.
    summary : str
        One line.
    formula : str
        The formula, with the paragraphs around it.
    variant : str
        Which variant it is, and who else has this one.
    references : tuple of str
        Papers, the rule's own first.
    state : str
        Tensors kept for each weight, also where an option changes them.
    decay : str
        What becomes of weight decay.
    order : str
        What is done to the gradient before the formula, in order.
    """

    cls: type[BaseLearningRate]
    summary: str
    formula: str
    variant: str
    references: tuple[str, ...]
    state: str
    decay: str
    order: str

    @property
    def paper(self) -> str:
        """Authors and year of the first reference, linked if it has an address."""
        parts = self.references[0].split(", ")
        authors = [p for p in parts if re.fullmatch(rf"{_INITIALS}[^\d]+?( et al\.)?", p)]
        names = [re.sub(rf"^{_INITIALS}", "", author) for author in authors]
        year = next(p.strip(".") for p in parts if re.fullmatch(r"\d{4}\.?", p))
        text = f"{' & '.join(names) if len(names) < 3 else f'{names[0]} et al.'} {year}"
        link = re.search(r"https?://[^\s,]+", self.references[0])
        return f"`{text} <{link[0]}>`__" if link else text


def rule_entry(cls: type[BaseLearningRate]) -> RuleEntry:
    """Read what there is to say of a rule from its class.

    Parameters
    ----------
    cls : type
        Class of the rule, with a docstring: one line, a ``.. math::`` block, one paragraph that begins with
        ``Variant:``, and a section of references that name author and year.

    Returns
    -------
    RuleEntry

    Raises
    ------
    ValueError
        The docstring lacks one of these; the message says which.

    Examples
    --------
    >>> from onnxcustom.optim import Nadam
    >>> entry = rule_entry(Nadam)
    >>> entry.paper
    '`Dozat 2016 <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`__'
    >>> entry.state
    '``m``, ``v``, ``product`` (a scalar)'
    """
    paragraphs, sections = _parse(cls)
    variants = [p for p in paragraphs if p.startswith("Variant:")]
    references = tuple(_references(sections.get("References", "")))
    entry = RuleEntry(
        cls,
        paragraphs[0],
        "\n\n".join(p for p in paragraphs[1:] if p not in variants),
        _sentence(" ".join(variants).removeprefix("Variant:").strip()),
        references,
        _state(cls),
        _decay(cls),
        _order(cls),
    )
    _check_entry(entry, len(variants))
    return entry


def _check_entry(entry: RuleEntry, variants: int) -> None:
    """Refuse a rule whose docstring lacks something."""
    there = {
        "a first line": bool(re.fullmatch(r"[^\n]+", entry.summary)),
        "a '.. math::' block": ".. math::" in entry.formula,
        "exactly one paragraph that begins with 'Variant:'": variants == 1 and bool(entry.variant),
        "References with author and year": bool(entry.references)
        and all(re.match(_INITIALS, r) and re.search(r", \d{4}\b", r) for r in entry.references),
    }
    if lacks := [what for what, found in there.items() if not found]:
        raise ValueError(f"The docstring of {entry.cls.__name__} lacks {', and '.join(lacks)}.")


def rule_entries() -> list[RuleEntry]:
    """Entries of all registered rules, in order of registration.

    Returns
    -------
    list of RuleEntry

    Raises
    ------
    ValueError
        A docstring lacks something.
    """
    return [rule_entry(cls) for cls in RULES.classes()]


def rules_rst() -> str:
    """All update rules: a table of links, then a table for each, those of a module together.

    Returns
    -------
    str
        reStructuredText for Sphinx, with titles of levels ``~`` and ``^``.
    """
    entries = rule_entries()
    rows = [
        [f"`{e.cls.__name__}`_", e.summary.rstrip("."), e.state.split(";")[0], e.paper]
        for e in sorted(entries, key=lambda e: e.cls.__name__.lower())
    ]
    lines = [*_table(["Rule", "What it does", "State by default", "Paper"], rows, "18 42 18 22"), ""]
    families = dict.fromkeys(e.cls.__module__ for e in entries)
    for family in families:
        title = re.split(r"[:,\n]", sys.modules[family].__doc__ or family)[0].rstrip(".")
        lines += ["", title, "~" * len(title), ""]
        for entry in entries:
            if entry.cls.__module__ == family:
                lines += _rule_section(entry)
    return "\n".join(lines) + "\n"


def _rule_section(entry: RuleEntry) -> list[str]:
    cls, name = entry.cls, entry.cls.__name__
    names = [n for n in RULES.names() if RULES.find(n) is cls]
    created = " or ".join(f'``create("{n}")``' for n in names)
    rows = [
        ["Formula", entry.formula],
        ["State", entry.state],
        ["Decay", entry.decay],
        ["Order", entry.order],
        ["Variant", entry.variant],
        # Escaped, or the initials would be the numbers of a list.
        ["Paper", "\n\n".join(rf"\{reference}" for reference in entry.references)],
        ["Options", f":class:`~{cls.__module__}.{name}`, {created}"],
    ]
    table = _table([], rows, "12 88")
    return [name, "^" * len(name), "", entry.summary, "", *table, ""]


def schedules_rst() -> str:
    """All schedules: name, formula, and what they count.

    Returns
    -------
    str
        reStructuredText for Sphinx.
    """
    rows = [
        [f":class:`~{cls.__module__}.{cls.__name__}`", "\n\n".join(_parse(cls)[0]), _counted(cls)]
        for cls in _schedules()
    ]
    return "\n".join(_table(["Schedule", "Rate", "Counted by"], rows, "18 62 20")) + "\n"


def options_rst() -> str:
    """The options that all rules share, and their other names.

    Returns
    -------
    str
        reStructuredText for Sphinx.
    """
    text = _parse(SharedOptions)[1]["Parameters"]
    rows = []
    for entry in re.split(r"\n(?=\S)", text):
        head, _, meaning = entry.partition("\n")
        names, _, kind = head.partition(" : ")
        names = ", ".join(f"``{n}``" for n in names.split(", "))
        rows.append([names, kind.replace(", default=", "; "), inspect.cleandoc(meaning)])
    others = ", ".join(f"``{alias}`` for ``{name}``" for alias, name in BaseLearningRate.aliases.items())
    return "\n".join(
        [*_table(["Option", "Type; default", "Meaning"], rows, "22 20 58"), "", f"Other names: {others}.", ""]
    )


def _table(header: list[str], rows: list[list[str]], widths: str) -> list[str]:
    """A list-table; without header, the first column has the titles."""
    option = "   :header-rows: 1" if header else "   :stub-columns: 1"
    lines = [".. list-table::", option, f"   :widths: {widths}", ""]
    for row in [header, *rows] if header else rows:
        for k, cell in enumerate(row):
            first, *rest = cell.split("\n")
            lines.append(f"   {'*' if k == 0 else ' '} - {first}")
            lines += [f"       {line}".rstrip() for line in rest]
    return lines


def _parse(cls: type) -> tuple[list[str], dict[str, str]]:
    """Paragraphs of a docstring, and its sections by title."""
    text = inspect.cleandoc(cls.__doc__ or "")
    head, *rest = re.split(r"\n*^(\w[\w ]*)\n-+\n", text, flags=re.MULTILINE)
    sections = {title: body.strip("\n") for title, body in zip(rest[::2], rest[1::2], strict=True)}
    return re.split(r"\n{2,}", head.strip("\n")), sections


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _references(text: str) -> Iterator[str]:
    """References, one after the other; each begins with initials, on a line of its own."""
    found: list[str] = []
    for line in text.split("\n"):
        if found and not (re.match(_INITIALS, line) and not found[-1].endswith(",")):
            found[-1] = f"{found[-1]} {line}"
        elif line:
            found.append(line)
    yield from found


def _state(cls: type[BaseLearningRate]) -> str:
    """State by default, and after each change of one option that changes it."""
    usual = _state_names(cls())
    shared = {f.name for f in dataclasses.fields(SharedOptions)}
    texts = [usual]
    for field in dataclasses.fields(cls):
        if field.name in shared or field.name == "learning_rate":
            continue
        value, said = _other_value(field)
        try:
            changed = _state_names(cls(**{field.name: value}))
        except (TypeError, ValueError):
            continue  # not alone, or not for this option
        if changed != usual:
            texts.append(f"with ``{said}``: {changed}")
    return "; ".join(texts)


def _other_value(field: dataclasses.Field[Any]) -> tuple[Any, str]:
    """Another value of an option, and how to write that it is given."""
    if field.metadata.get("flag"):
        return not field.default, f"{field.name}={not field.default}"
    if field.default == 0:
        return 0.5, field.name
    return 0, f"{field.name}=0"


def _state_names(rule: BaseLearningRate) -> str:
    state = rule.init_state(np.zeros((2, 3), np.float32))
    names = [f"``{name}``{'' if value.shape else ' (a scalar)'}" for name, value in state.items()]
    return ", ".join(names) or "none"


def _decay(cls: type[BaseLearningRate]) -> str:
    rule = cls()
    if rule.decoupled_weight_decay:
        text = r"decoupled, :math:`w \leftarrow w - \eta_t\,wd\,w`"
    else:
        text = "added to the gradient (L2)" if "decay" in rule.order else "as the formula has it"
    return text if rule.wd == 0 else f"{text}; {rule.wd} by default"


def _order(cls: type[BaseLearningRate]) -> str:
    rule = cls()
    steps = [step for step in rule.order if step != "decay" or not rule.decoupled_weight_decay]
    return ", ".join(steps)


def _schedules() -> list[type[Schedule]]:
    """Classes of schedules, but for abstract ones."""
    found = [getattr(module, name) for module in (schedules, annealing, plateau) for name in module.__all__]
    return [
        cls
        for cls in found
        if inspect.isclass(cls) and issubclass(cls, Schedule) and not inspect.isabstract(cls)
    ]


def _counted(cls: type[Schedule]) -> str:
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if "decay_on_iteration" in fields:
        iterations = bool(fields["decay_on_iteration"].default)
        usual, other = ("iteration", "epoch") if iterations else ("epoch", "iteration")
        return f"{usual}; {other} with ``decay_on_iteration={not iterations}``"
    if cls.report_epoch is not Schedule.report_epoch:
        return "epoch, by its loss"
    schedule = cls()
    return "nothing" if schedule.value(1, 1) == schedule.value(9, 1) else "iteration"

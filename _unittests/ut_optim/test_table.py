"""What the documentation says of rules, schedules and options is found in their docstrings."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import re
from pathlib import Path

import pytest

from onnxcustom import optim
from onnxcustom.optim.options import SharedOptions
from onnxcustom.optim.registry import RULES
from onnxcustom.optim.table import options_rst, rule_entries, rule_entry, rules_rst, schedules_rst

DOC = Path(__file__).parents[2] / "_doc"

COMPLETE = """A rule.

.. math:: w \\leftarrow w - \\eta_t g

Variant: the only one.

References
----------
A. Cauchy, Méthode générale, 1847, https://gallica.bnf.fr/
"""


def rule_with(doc: str) -> type[optim.BaseLearningRate]:
    return type("Documented", (optim.LearningRateSGD,), {"__doc__": doc})


@pytest.mark.parametrize("cls", RULES.classes(), ids=lambda cls: cls.__name__)
def test_every_part_is_found(cls):
    entry = rule_entry(cls)
    assert entry.summary.endswith(".")
    assert re.search(r"^\.\. math::", entry.formula, re.MULTILINE)
    assert "Variant:" not in entry.formula
    assert len(entry.variant) > 20
    assert all(re.search(r", \d{4}[,.]", reference) for reference in entry.references)
    assert any("https://" in r or "http://" in r for r in entry.references)
    assert re.search(r"[A-Z][a-z]+.* \d{4}", entry.paper)
    assert entry.state
    assert entry.decay
    assert entry.order


def test_a_complete_docstring_is_taken():
    entry = rule_entry(rule_with(COMPLETE))
    assert entry.variant == "The only one."
    assert entry.paper == "`Cauchy 1847 <https://gallica.bnf.fr/>`__"


@pytest.mark.parametrize(
    ("part", "instead", "lacks"),
    [
        ("A rule.\n", "A rule\nof two lines.\n", "a first line"),
        (".. math:: w", "w", "a '.. math::' block"),
        ("Variant:", "Kind:", "exactly one paragraph that begins with 'Variant:'"),
        ("Variant: the only one.", "Variant: one.\n\nVariant: two.", "exactly one paragraph"),
        ("References", "See Also", "References with author and year"),
        ("1847, ", "", "References with author and year"),
        ("A. Cauchy, ", "", "References with author and year"),
    ],
)
def test_what_a_docstring_lacks_is_said(part, instead, lacks):
    assert part in COMPLETE
    with pytest.raises(ValueError, match=f"The docstring of Documented lacks {re.escape(lacks)}"):
        rule_entry(rule_with(COMPLETE.replace(part, instead)))


@pytest.mark.parametrize(
    ("name", "state", "decay", "order", "paper"),
    [
        ("SGD", "none; with ``momentum``: ``momentum``", "added", "clip, rescale, decay", "Polyak 1964"),
        (
            "Signum",
            "``momentum``; with ``momentum=0``: none",
            "added",
            "clip, rescale, decay",
            "Bernstein et",
        ),
        ("RMSProp", "``n``; with ``centered=True``: ", "added", "rescale, decay, clip", "Tieleman & Hinton"),
        ("Nadam", "``m``, ``v``, ``product`` (a scalar)", "added", "rescale, decay, clip", "Dozat 2016"),
        ("AdamW", "``m``, ``v``", "decoupled", "rescale, clip", "Loshchilov & Hutter 2019"),
        ("LAMB", "``m``, ``v``", "as the formula has it", "rescale, clip", "You et al. 2020"),
        (
            "DCASGD",
            "``previous``; with ``momentum``: ",
            "as the formula",
            "rescale, clip",
            "Zheng et al. 2017",
        ),
    ],
)
def test_what_is_said_of_some(name, state, decay, order, paper):
    entry = rule_entry(RULES.find(name))
    assert entry.state.startswith(state)
    assert entry.decay.startswith(decay)
    assert entry.order == order
    assert paper in entry.paper


def test_references_are_told_apart():
    entry = rule_entry(optim.RMSProp)
    assert [reference.split(",")[0] for reference in entry.references] == ["T. Tieleman", "A. Graves"]
    assert entry.references[1].endswith("equations 38 to 45")


def test_rules_have_a_section_and_a_line_each():
    text = rules_rst()
    for entry in rule_entries():
        name = entry.cls.__name__
        assert f"   * - `{name}`_\n" in text
        assert f"\n{name}\n{'^' * len(name)}\n" in text
        assert f":class:`~{entry.cls.__module__}.{name}`" in text
        assert entry.paper in text
    assert '``create("learningratesgdnesterov")`` or ``create("sgdnesterov")`` or' in text
    assert ':class:`~onnxcustom.optim.sgd.SGD`, ``create("sgd")`` or ``create("ccsgd")``\n' in text


def test_every_schedule_is_there():
    text = schedules_rst()
    for name in optim.__all__:
        cls = getattr(optim, name)
        if inspect.isclass(cls) and issubclass(cls, optim.Schedule) and not inspect.isabstract(cls):
            assert f":class:`~{cls.__module__}.{name}`" in text
    rows = [row.split("\n     - ") for row in text.split("\n   * - ")[2:]]
    cells = {re.sub(r".*\.|`", "", name): counted.strip() for name, _, counted in rows}
    assert cells["Exp"] == "epoch; iteration with ``decay_on_iteration=True``"
    assert cells["Warmup"] == "iteration; epoch with ``decay_on_iteration=False``"
    assert cells["ReduceOnPlateau"] == "epoch, by its loss"
    assert cells["InverseScaling"] == "iteration"
    assert cells["Fixed"] == "nothing"


def test_every_shared_option_is_there():
    text = options_rst()
    for field in dataclasses.fields(SharedOptions):
        assert f"``{field.name}``" in text
    assert "``lr`` for ``learning_rate``" in text


@pytest.mark.parametrize(
    "text", [rules_rst(), schedules_rst(), options_rst()], ids=["rules", "schedules", "options"]
)
def test_tables_are_valid_rst(text):
    core = pytest.importorskip("docutils.core")
    text = re.sub(r":(class|func|meth|ref|doc):`", ":literal:`", text)  # roles of Sphinx
    core.publish_doctree(text, settings_overrides={"halt_level": 2, "report_level": 5})


def test_every_public_name_is_in_the_documentation():
    text = (DOC / "api.rst").read_text(encoding="utf-8") + rules_rst() + schedules_rst()
    said = set(re.findall(r":(?:class|func|data):`~?[\w.]*?(\w+)`", text))
    others = {"Optimizer": "BaseLearningRate", "ccSGD": "SGD"}  # other names of the same
    assert {others.get(name, name) for name in optim.__all__} - said == set()
    for other, name in others.items():
        assert getattr(optim, other) is getattr(optim, name)


def test_examples_of_the_page():
    page = DOC / "optimizers.rst"
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testfile(str(page), module_relative=False, optionflags=flags, encoding="utf-8")
    assert result.attempted > 20
    assert result.failed == 0

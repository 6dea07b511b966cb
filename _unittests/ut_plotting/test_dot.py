"""The DOT language: names of any kind survive, and what Graphviz makes of them is XML."""

from __future__ import annotations

import itertools
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from onnxcustom.exceptions import MissingPackageError, OnnxCustomError
from onnxcustom.graph import to_ir
from onnxcustom.plotting import dot
from onnxcustom.plotting.diagram import Arrow, Box, Diagram, draw_diagram
from onnxcustom.plotting.dot import dot_text, find_program, fit_text, run_program
from onnxcustom.plotting.style import PHASE_COLORS, PHASE_FILLS

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    '<b>&"',
    "back\\",
    "\\N\\G\\E",
    "&lt;",
    "&#x41;",
    'line"]; evil [',
    "</TABLE>>",
    '<IMG SRC="/etc/passwd"/>',
    "{a|b}",
    "%s",
    "名前 é 🙂",
    '\\"',
    "it's",
    "->",
    "//",
    "/*",
    "#",
]


def chain(names):
    """A model whose tensors, nodes and weights have these names."""
    nodes, tensors = [], []
    for before, name in itertools.pairwise(names):
        tensors.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), f"w {name}"))
        nodes.append(oh.make_node("Add", [before, f"w {name}"], [name], name=name))
    value = [
        oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in (names[0], names[-1])
    ]
    graph = oh.make_graph(nodes, names[0], value[:1], value[1:], tensors)
    return to_ir(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))


def texts(svg):
    return ["".join(t.itertext()) for t in ET.fromstring(svg).iter(f"{SVG}text")]


def unquoted(text):
    """What a string of the DOT language holds, by its grammar: only quotes are escaped in it."""
    assert text[0] == text[-1] == '"'
    inner = text[1:-1]
    assert '"' not in inner.replace('\\"', "")
    assert not (len(inner) - len(inner.rstrip("\\"))) % 2, "the last quote is escaped"
    return inner.replace('\\"', '"')


# -- text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_quoted(name):
    escapes = unquoted(dot._quoted(name))
    assert escapes.replace("\\\\", "\\").replace("&amp;", "&") == name


@pytest.mark.parametrize("name", HOSTILE)
def test_markup(name):
    """HTML-like labels are XML."""
    assert ET.fromstring(f"<B>{dot._markup(name)}</B>").text == name.replace("\\", "\\\\")


@pytest.mark.parametrize("name", ["a\x00b", "a\x1bb", "a\ud800b", "a\ufffeb"])
def test_what_xml_forbids(name):
    assert ET.fromstring(f"<B>{dot._markup(name)}</B>").text == "a�b"
    dot._quoted(name).encode()


def test_colours_say_which_phase(small_model):
    boxes = [Box(phase, phase, f"a {phase}") for phase in PHASE_COLORS]
    arrows = [
        Arrow("forward", "loss", "loss", ["y: float N"], False),
        Arrow("loss", "backward", "backward", ["d"], True),
    ]
    lines = dot_text(Diagram("title", "a note", "full", boxes, arrows)).splitlines()
    for phase, color in PHASE_COLORS.items():
        (line,) = [line for line in lines if f"a {phase}<" in line]
        assert color in line
        assert PHASE_FILLS[phase] in line
        assert f'BGCOLOR="{PHASE_FILLS[phase]}" STYLE="rounded">{phase}<' in lines[1]  # the legend
    assert any(line.startswith('  "forward" -> "loss" [') and "dir=back" not in line for line in lines)
    assert any(line.startswith('  "backward" -> "loss" [') and "dir=back" in line for line in lines)
    assert "a note" in lines[1]


def test_one_phase_needs_no_legend(small_model):
    assert "BGCOLOR" not in dot_text(draw_diagram(to_ir(small_model("mlp"))))


def test_phases_differ_in_lightness_too():
    """Neighbouring fills are told apart from the text on them, in print and without colours."""

    def luminance(color):
        channels = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    for phase, fill in PHASE_FILLS.items():
        assert (luminance(fill) + 0.05) / 0.05 > 7, "black text [WCAG 2.2, 1.4.6]"
        assert (luminance(fill) + 0.05) / (luminance(PHASE_COLORS[phase]) + 0.05) > 2.5
    assert len(set(PHASE_FILLS.values())) == len(PHASE_FILLS)


# -- program ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("needs_graphviz")
def test_names_survive():
    svg = run_program(dot_text(draw_diagram(chain(HOSTILE))), "svg").decode()
    found = texts(svg)
    assert HOSTILE[0] in found
    assert HOSTILE[-1] in found
    for name in HOSTILE[1:]:
        assert f"w {name} (3)" in found
    titles = [a.get("{http://www.w3.org/1999/xlink}title") for a in ET.fromstring(svg).iter(f"{SVG}a")]
    for before, name in itertools.pairwise(HOSTILE):
        assert any(t and t.startswith(f"Add {name}\nforward\n{before}, w {name} → {name}") for t in titles), (
            name
        )
        assert f"{before}: float N×3" in titles or before in titles, before


@pytest.mark.usefixtures("needs_graphviz")
def test_empty_names():
    diagram = Diagram("", "", "full", [Box("", "forward", ""), Box("a", "forward", " ", [""])], [])
    assert len(list(ET.fromstring(run_program(dot_text(diagram), "svg")).iter(f"{SVG}g"))) >= 3


@pytest.mark.usefixtures("needs_graphviz")
@pytest.mark.parametrize("kind", ["full", "outline", "summary"])
def test_svg_has_a_shape_for_each_box(any_model, kind):
    diagram = draw_diagram(to_ir(any_model), kind)
    root = ET.fromstring(run_program(dot_text(diagram), "svg"))
    groups = [g.get("class") for g in root.iter(f"{SVG}g")]
    assert groups.count("node") == len(diagram.boxes)
    assert groups.count("edge") == len(diagram.arrows)


@pytest.mark.usefixtures("needs_graphviz")
def test_png():
    data = run_program("digraph { a -> b }", "png", 72)
    assert data.startswith(b"\x89PNG")
    assert len(run_program("digraph { a -> b }", "png", 300)) > len(data)


@pytest.mark.usefixtures("needs_graphviz")
def test_a_program_that_fails():
    with pytest.raises(OnnxCustomError, match="failed with exit code"):
        run_program("digraph { a -> ", "svg")


def test_a_program_that_says_nothing(monkeypatch):
    monkeypatch.setattr(dot, "find_program", lambda: "dot")
    done = subprocess.CompletedProcess([], 0, b"", b"")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: done)
    with pytest.raises(OnnxCustomError, match="it said nothing"):
        run_program("digraph {}", "svg")


def test_without_graphviz(monkeypatch):
    monkeypatch.setattr(dot.shutil, "which", lambda *args, **options: None)
    assert find_program() is None
    with pytest.raises(MissingPackageError, match=r"onnxcustom\[plot\]") as caught:
        run_program("digraph {}", "svg")
    assert isinstance(caught.value, ImportError)


def test_dot_comes_first(monkeypatch):
    there = {"dot": "/bin/dot", "graphviz-pure": "/bin/graphviz-pure"}
    monkeypatch.setattr(dot.shutil, "which", lambda name, path=None: there.get(name))
    assert find_program() == "/bin/dot"
    del there["dot"]
    assert find_program() == "/bin/graphviz-pure"
    # An environment that is not activated: its scripts are not on the path.
    monkeypatch.setattr(dot.shutil, "which", lambda name, path=None: f"{path}/{name}" if path else None)
    assert find_program().endswith("graphviz-pure")


# -- text in any font ---------------------------------------------------------------------------------

BOXES = """<svg><polygon points="0,0 0,100 200,100 200,0 0,0"/>
<text text-anchor="start" x="8" y="12">title</text>
<path d="M20,20C20,20 80,20 80,40 80,40 20,40 20,40"/>
<text text-anchor="start" x="30" y="30">in a box</text>
<text text-anchor="start" x="5" y="30">beside it</text>
<text text-anchor="start" x="30" y="60">below</text>
<text text-anchor="middle" x="50" y="30">centred</text>
<polygon points="100,20 100,40 140,40 140,20 100,20"/>
<text text-anchor="start" x="104.5" y="30">in another</text></svg>"""


def test_fit_text():
    """Text in a box is as wide as it was taken to be and in its middle; other text stays."""
    found = {t.text: t.attrib for t in ET.fromstring(fit_text(BOXES)).iter("text")}
    was = {t.text: t.attrib for t in ET.fromstring(BOXES).iter("text")}
    for text, middle, width in (("in a box", 50, 40), ("in another", 120, 31)):
        new = found.pop(text)
        assert (new["text-anchor"], float(new["x"]), float(new["textLength"])) == ("middle", middle, width)
        assert new["y"] == was.pop(text)["y"]
    assert found == was


@pytest.mark.usefixtures("needs_graphviz")
def test_fit_text_of_graphviz(any_model):
    """Every line in a box is found, whichever program made it, and none is wider than its box."""
    diagram = draw_diagram(to_ir(any_model))
    svg = run_program(dot_text(diagram), "svg").decode()
    fitted = fit_text(svg)
    assert texts(fitted) == texts(svg)
    lines = sum(1 + len(box.lines) for box in diagram.boxes)
    assert fitted.count("textLength") == lines
    assert fit_text(fitted) == fitted

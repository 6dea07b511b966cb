"""Boxes and arrows: counted against the graph."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcustom import TrainingStep, gradient_graph
from onnxcustom.graph import to_ir
from onnxcustom.optim import create
from onnxcustom.plotting.diagram import DETAILS, Frame, draw_diagram
from onnxcustom.plotting.phases import Roles, node_phases

pytest.importorskip("onnxruntime")


def step_of(proto, optimizer="sgd", **arguments):
    return to_ir(TrainingStep(proto, optimizer=optimizer, **arguments).model)


def all_nodes(model):
    return [n for n in ir.traversal.RecursiveGraphIterator(model.graph) if n.op_type != "Constant"]


def box(diagram, title):
    (found,) = [b for b in diagram.boxes if b.title == title]
    return found


# -- everything -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "gradient", "step"])
def test_one_box_a_node(any_model, kind):
    make = {"model": to_ir, "gradient": lambda m: to_ir(gradient_graph(m)), "step": step_of}
    model = make[kind](any_model)
    diagram = draw_diagram(model)
    nodes = [b for b in diagram.boxes if not b.data]
    assert sorted(b.title for b in nodes) == sorted(n.op_type for n in all_nodes(model))
    assert len({b.key for b in diagram.boxes}) == len(diagram.boxes)
    assert diagram.detail == "full"
    assert not diagram.note
    phases = list(node_phases(model, Roles.of(model)).items())
    for part, (node, phase) in zip(
        [p for p in diagram.parts if not getattr(p, "data", 0)], phases, strict=True
    ):
        assert part.phase == phase
        assert isinstance(part, Frame) or part.title == node.op_type


def test_one_arrow_for_each_pair_of_boxes(small_model):
    diagram = draw_diagram(to_ir(small_model("mlp")))
    titles = {b.key: b.title for b in diagram.boxes}
    arrows = [(titles[a.tail], titles[a.head]) for a in diagram.arrows]
    assert arrows == [
        ("x", "MatMul"),
        ("MatMul", "Add"),
        ("Add", "Tanh"),
        ("Tanh", "MatMul"),
        ("MatMul", "Add"),
        ("Add", "y"),
    ]
    twice = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> m (float[N] x) => (float[N] y) { y = Mul(x, x) }'
    )
    assert len(draw_diagram(to_ir(twice)).arrows) == 2


def test_what_boxes_say(small_model):
    diagram = draw_diagram(step_of(small_model("mlp")))
    lines = {line for b in diagram.boxes for line in b.lines}
    assert {"w0 (3×4)", "b0 (4)", "→ w0_new", "→ b1_new", "learning_rate", "0.5", "N×3"} <= lines
    assert not any(line.startswith("const") for line in lines)
    plain = draw_diagram(step_of(small_model("mlp")), weights=False)
    assert not any(b.lines for b in plain.boxes)
    assert [b.key for b in plain.boxes] == [b.key for b in diagram.boxes]


def test_weights_state_and_scalars_are_no_boxes(small_model):
    diagram = draw_diagram(step_of(small_model("mlp"), "adam"))
    assert [b.title for b in diagram.boxes if b.data] == ["x", "y_expected", "loss"]
    gradient = draw_diagram(to_ir(gradient_graph(small_model("mlp"))))
    assert [b.title for b in gradient.boxes if b.data] == ["x", "y_grad", "x_grad", "y"]


def test_gradients_go_up_beside_the_forward_pass(small_model):
    """With these arrows turned round, nothing of the forward pass lies below what needs it."""
    diagram = draw_diagram(step_of(small_model("mlp")))
    phases = {b.key: b.phase for b in diagram.boxes}
    for arrow in diagram.arrows:
        assert arrow.up == (phases[arrow.head] in ("backward", "update") and phases[arrow.tail] != "forward")
    above = {}
    for arrow in diagram.arrows:
        tail, head = (arrow.head, arrow.tail) if arrow.up else (arrow.tail, arrow.head)
        above.setdefault(tail, set()).add(head)
    seen, done = set(), set()

    def visit(key):
        assert key not in seen or key in done, "a cycle"
        seen.add(key)
        for below in above.get(key, ()):
            if below not in done:
                visit(below)
        done.add(key)

    for key in phases:
        if key not in done:
            visit(key)


# -- subgraphs ----------------------------------------------------------------------------------------


def test_subgraphs_are_frames(small_model):
    diagram = draw_diagram(to_ir(small_model("branches")))
    frames = [part for part in diagram.parts if isinstance(part, Frame)]
    assert [frame.parts[0].title for frame in frames] == ["If", "Loop"]
    assert [p.title for p in frames[0].parts[1:]] == ["then_branch", "else_branch"]
    assert frames[1].title == "body"
    titles = {b.key: b.title for b in diagram.boxes}
    arrows = [(titles[a.tail], titles[a.head]) for a in diagram.arrows]
    assert ("deep", "If") in arrows  # the condition
    assert ("MatMul", "MatMul") in arrows  # a tensor from outside, to who reads it
    assert {("Relu", "Loop"), ("Tanh", "Loop")} <= set(arrows)  # what either branch gives
    assert ("Loop", "MatMul") in arrows  # the state within the loop
    assert ("Sigmoid", "y") in arrows  # its last value


# -- less ---------------------------------------------------------------------------------------------


def test_outline(small_model):
    model = step_of(small_model("mlp"), "adam")
    full, diagram = draw_diagram(model, "full"), draw_diagram(model, "outline")
    updates = [b for b in diagram.boxes if b.phase == "update" and not b.data]
    assert [b.title for b in updates] == [f"Update of {w}" for w in ("w0", "b0", "w1", "b1")]
    assert {sum(b.count.values()) for b in updates} == {12}
    others = [b.title for b in full.boxes if b.phase != "update"]
    assert [b.title for b in diagram.boxes if b.phase != "update"] == others
    assert f"{len(all_nodes(model))} nodes" in diagram.note
    tails = {b.key for b in updates}
    assert all(a.tail not in tails for a in diagram.arrows)


def test_outline_of_updates_that_need_each_other(small_model):
    """The norm of all gradients is in a box of its own, which every update reads."""
    diagram = draw_diagram(step_of(small_model("mlp"), create("Adam", clip_global_norm=1.0)), "outline")
    norm = box(diagram, "Update of 4 weights")
    assert norm.count["ReduceSumSquare"] == 4
    heads = {a.head for a in diagram.arrows if a.tail == norm.key}
    assert heads == {box(diagram, f"Update of {w}").key for w in ("w0", "b0", "w1", "b1")}


def test_outline_of_subgraphs(small_model):
    diagram = draw_diagram(to_ir(small_model("branches")), "outline")
    assert not any(isinstance(part, Frame) for part in diagram.parts)
    assert box(diagram, "If").lines == ["3 nodes inside", "v (2×2)"]
    titles = {b.key: b.title for b in diagram.boxes}
    assert ("If", "Loop") in [(titles[a.tail], titles[a.head]) for a in diagram.arrows]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_summary(any_model, optimizer):
    model = step_of(any_model, optimizer)
    diagram = draw_diagram(model, "summary")
    nodes = [b for b in diagram.boxes if not b.data]
    assert sorted(b.title for b in nodes) == ["Backward", "Forward", "Loss", "Update"]
    assert sum(sum(b.count.values()) for b in nodes) == len(all_nodes(model))
    assert all(len(b.lines) <= 10 for b in nodes)


@pytest.mark.parametrize(
    ("at_most", "detail"), [(78, "full"), (77, "outline"), (23, "outline"), (22, "summary")]
)
def test_as_much_as_fits(small_model, at_most, detail):
    model = step_of(small_model("mlp"), "adam")
    assert len(all_nodes(model)) == 78
    diagram = draw_diagram(model, max_nodes=at_most)
    assert diagram.detail == detail
    if detail != "summary":
        assert sum(not b.data for b in diagram.boxes) <= at_most


@pytest.mark.parametrize("detail", DETAILS)
def test_arrows_lead_to_boxes(any_model, detail):
    diagram = draw_diagram(step_of(any_model, "adam"), detail)
    keys = {b.key for b in diagram.boxes}
    assert all({a.tail, a.head} <= keys and a.tail != a.head for a in diagram.arrows)


def test_long_names_are_shortened(small_model):
    text = '<ir_version: 8, opset_import: ["": 17]> m (float[N] x) => (float[N] {0}) {{ {0} = Neg(x) }}'
    name = "a" * 50 + "b" * 50
    diagram = draw_diagram(
        to_ir(onnx.parser.parse_model(text.replace("{0}", name).replace("{{", "{").replace("}}", "}")))
    )
    output = diagram.boxes[-1]
    assert len(output.title) <= 30
    assert output.title[0] + output.title[-1] == "ab"
    assert name in output.tooltip


def test_constants_are_no_boxes():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> m (float[N] x) => (float[N] y) {
        c = Constant <value_float = 2.5> ()
        y = Mul(x, c)
    }"""
    )
    diagram = draw_diagram(to_ir(model))
    assert [b.title for b in diagram.boxes] == ["x", "Mul", "y"]
    assert diagram.boxes[1].lines == ["2.5"]


def test_weights_of_one_number_have_their_names():
    """A factor is shown by its value, a weight and a bias by name, whatever their size."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 1] x) => (float[N, 1] y) <float[1, 1] w = {0.5}, float[1] b = {0.25}, float two = {2}> {
            m = MatMul(x, w)  a = Add(m, b)  y = Mul(a, two) }""")
    diagram = draw_diagram(to_ir(model))
    assert box(diagram, "MatMul").lines == ["w (1×1)"]
    assert box(diagram, "Add").lines == ["b (1)"]
    assert box(diagram, "Mul").lines == ["2"]

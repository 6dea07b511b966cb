"""Graphs within graphs: refused where onnxruntime would double its time with every level, and only there."""

import onnx
import onnx.helper as h
import pytest

from onnxcustom import OnnxRegressor, TrainingStep, gradient_graph
from onnxcustom.exceptions import EvaluationError
from onnxcustom.graph import Limits, to_ir, use_limits
from onnxcustom.runtime import create_session, nesting, sessions

ort = pytest.importorskip("onnxruntime")


def nested(depth, kind="If"):
    """A chain of conditions, or of loops."""
    info = h.make_tensor_value_info

    def inside(level):
        out = "y" if level == 0 else f"o{level}"
        if level == depth:
            return [h.make_node("Mul", ["x", "w"], [out])]
        body = h.make_graph(inside(level + 1), "b", [], [info(f"o{level + 1}", 1, ["N", 2])])
        if kind == "If":
            leaf = h.make_graph(
                [h.make_node("Neg", ["x"], [f"e{level}"])], "e", [], [info(f"e{level}", 1, ["N", 2])]
            )
            return [h.make_node("If", ["c"], [out], then_branch=body, else_branch=leaf)]
        names = {"i": 7, "c": 9, "s": 1}
        body.input.extend(info(f"{n}{level}", t, ["N", 2] if t == 1 else []) for n, t in names.items())
        body.node.append(h.make_node("Identity", [f"c{level}"], [f"d{level}"]))
        body.output.insert(0, info(f"d{level}", 9, []))
        return [h.make_node("Loop", ["t", "", "x"], [out], body=body)]

    constants = [
        h.make_tensor("t", 7, [], [2]),
        h.make_tensor("w", 1, [2], [1, 2]),
        h.make_tensor("c", 9, [], [True]),
    ]
    graph = h.make_graph(inside(0), "g", [info("x", 1, ["N", 2])], [info("y", 1, ["N", 2])], constants)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


DOUBLES = sessions._version(ort) < sessions._LINEAR


@pytest.mark.parametrize("kind", ["If", "Loop"])
@pytest.mark.parametrize("form", [lambda m: m, lambda m: m.SerializeToString(), to_ir])
def test_visits_are_counted(kind, form):
    nodes, visits, depth = nesting._visits(form(nested(3, kind)))
    # At level k an If beside the Neg of the level above, or a Loop beside the Identity of its own.
    assert (nodes, depth) == (7, 3)
    assert visits == (1 + 2 * 2 + 2 * 4 + 2 * 8)


@pytest.mark.parametrize("kind", ["If", "Loop"])
@pytest.mark.parametrize("form", [lambda m: m, lambda m: m.SerializeToString(), to_ir])
def test_deep_graphs(kind, form):
    made = form(nested(24, kind))
    if DOUBLES:
        with pytest.raises(EvaluationError, match=r"24 deep.*2\*\*25 visits for 49 nodes.*Limits.nodes"):
            create_session(made)
    else:
        create_session(made)


def test_training_of_deep_graphs():
    made = nested(24)
    gradient_graph(made, engine="onnx")  # is made of as many nodes as the model has
    batch = [[1.0, 2.0], [3.0, 4.0]]
    if DOUBLES:
        with pytest.raises(EvaluationError, match=r"Limits\.nodes"):
            TrainingStep(made).run(batch, batch)
        with pytest.raises(EvaluationError, match=r"Limits\.nodes"):
            OnnxRegressor(made).fit(batch, batch)
    else:
        assert TrainingStep(made).run(batch, batch) >= 0


def test_the_limit_is_that_of_nodes(monkeypatch):
    monkeypatch.setattr(sessions, "_LINEAR", (99,))
    made = nested(6)
    create_session(made)
    with use_limits(Limits(nodes=31)), pytest.raises(EvaluationError, match=r"Limits\.nodes = 31"):
        create_session(made)
    with use_limits(Limits(nodes=32)):
        create_session(made)


def test_gradients_do_not_double():
    def count(graph):
        return sum(
            1 + sum(count(a.g) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
            for node in graph.node
        )

    for kind in ("If", "Loop"):
        few, many = (count(gradient_graph(nested(d, kind), engine="onnx").graph) for d in (4, 12))
        assert many < 4 * few


def test_what_is_no_model_is_for_onnxruntime_to_say():
    assert nesting._visits(b"\xff\xff") == (0, 0, 0)

"""plot_graph: everything that holds a graph, every file it is written to."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from onnxcustom import OnnxRegressor, OrtGradientForwardBackward, TrainingStep, gradient_graph
from onnxcustom.exceptions import InvalidModelError, MissingPackageError, UnknownNameError
from onnxcustom.graph import to_ir
from onnxcustom.plotting import GraphPicture, dot, graphs, plot_graph
from onnxcustom.training.optimizers_partial import OrtGradientForwardBackwardOptimizer

pytest.importorskip("onnxruntime")

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = X[:, :2]


def forms(proto, folder):
    path = folder / "model.onnx"
    onnx.save(proto, path)
    yield "path", path
    yield "str", str(path)
    yield "bytes", proto.SerializeToString()
    yield "ir", to_ir(proto)
    yield "proto", proto


def test_forms_of_a_model(small_model, tmp_path):
    pictures = {name: plot_graph(model).dot for name, model in forms(small_model("mlp"), tmp_path)}
    assert len(set(pictures.values())) == 1
    assert "Tanh" in pictures["proto"]


def test_a_step_is_its_graph(small_model):
    step = TrainingStep(small_model("mlp"))
    assert plot_graph(step).dot == plot_graph(step.model).dot


def test_estimators(small_model):
    proto = small_model("mlp")
    for net in (OnnxRegressor(proto, max_iter=1), OrtGradientForwardBackwardOptimizer(proto, max_iter=1)):
        assert plot_graph(net).dot == plot_graph(proto).dot
        net.fit(X, Y)
        assert plot_graph(net).dot == plot_graph(net.step_.model).dot


def test_forward_backward(small_model):
    proto = small_model("mlp")
    function = OrtGradientForwardBackward(proto)
    assert plot_graph(function).dot == plot_graph(function.cls_type_._trained_onnx).dot
    assert plot_graph(function).dot == plot_graph(gradient_graph(proto, inputs=["x"])).dot


@pytest.mark.parametrize("suffix", [".dot", ".gv", ".DOT"])
def test_dot_file(small_model, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(graphs, "run_program", None)  # no Graphviz needed
    path = tmp_path / f"graph{suffix}"
    path.write_text("an older one, longer than the new one" * 1000)
    picture = plot_graph(small_model("mlp"), path)
    assert path.read_text(encoding="utf-8") == picture.dot
    assert picture.dot.startswith("digraph {")


@pytest.mark.usefixtures("needs_graphviz")
def test_svg_and_png_files(small_model, tmp_path):
    picture = plot_graph(TrainingStep(small_model("mlp")), str(tmp_path / "graph.svg"))
    root = ET.parse(tmp_path / "graph.svg").getroot()
    words = {"".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Training step of net", "forward", "loss", "backward", "update", "Gemm", "w0 (3×4)"} <= words
    assert picture._repr_svg_() == (tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert picture.save(tmp_path / "graph.png", dpi=50) == tmp_path / "graph.png"
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    assert picture.save(os.fspath(tmp_path / "other.svg")).is_file()


@pytest.mark.usefixtures("needs_graphviz")
def test_in_threads(small_model):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: plot_graph(small_model(name)).svg(), ["mlp", "tied"] * 4))
    assert len(set(found)) == 2


def test_notebooks_without_graphviz(small_model, monkeypatch, tmp_path):
    monkeypatch.setattr(dot.shutil, "which", lambda *args, **options: None)
    picture = plot_graph(small_model("mlp"))
    assert picture._repr_svg_() is None
    for suffix in (".svg", ".png"):
        with pytest.raises(MissingPackageError, match="dot"):
            picture.save(tmp_path / f"graph{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["graph.pdf", "graph", "svg", "graph.svg.gz"])
def test_formats_there_are(small_model, tmp_path, name, monkeypatch):
    with pytest.raises(UnknownNameError, match=r"\.svg, \.png, \.dot, \.gv"):
        GraphPicture("digraph {}").save(tmp_path / name)
    monkeypatch.setattr(graphs, "draw_diagram", None)  # it is refused before anything is drawn
    with pytest.raises(UnknownNameError):
        plot_graph(small_model("mlp"), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_nodes": 0}, ValueError),
        ({"max_nodes": 1.5}, TypeError),
        ({"detail": "most"}, UnknownNameError),
    ],
)
def test_options(small_model, options, error):
    with pytest.raises(error, match=next(iter(options))):
        plot_graph(small_model("mlp"), **options)


def test_resolution():
    with pytest.raises(ValueError, match="dpi"):
        GraphPicture("digraph {}").png(5)


@pytest.mark.parametrize("wrong", [b"", b"nonsense", "missing.onnx", 3, None])
def test_no_model(wrong):
    with pytest.raises((InvalidModelError, TypeError)):
        plot_graph(wrong)


def test_options_reach_the_picture(small_model):
    step = TrainingStep(small_model("mlp"), optimizer="adam")
    assert "w0 (3×4)" not in plot_graph(step, weights=False).dot
    assert "each part is one box" in plot_graph(step, max_nodes=4).dot
    assert "Update of w0" in plot_graph(step, detail="outline").dot
    assert len(plot_graph(step, detail="full", max_nodes=1).dot) > len(plot_graph(step, detail="outline").dot)

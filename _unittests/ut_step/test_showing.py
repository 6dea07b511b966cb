"""States that nobody looks at: their NaN is seen in the weight."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcustom import TrainingStep, optim
from onnxcustom.optim.function import build_update
from onnxcustom.runtime import create_session, parse_device
from onnxcustom.step.buffers import DoubleBuffer
from onnxcustom.step.passes.showing import shown_in

from .test_blocks import model_of

pytest.importorskip("onnxruntime")


def shown(rule: optim.BaseLearningRate) -> set[str]:
    model = build_update(rule, np.float32, (4,), 18)
    states = {s: f"new_{s}" for s in rule.create_state(np.zeros(4, np.float32))}
    return shown_in(model, states, ["new_weight"])


@pytest.mark.parametrize("name", optim.rule_names())
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_shown_is_seen(name, bad):
    """For every rule: a new state that is not finite is a new weight that is not."""
    rule = optim.create(name)
    found = shown(rule)
    if not found:
        return
    session = create_session(build_update(rule, np.float32, (4,), 18))
    w = np.ones(4, np.float32)
    feeds = {"weight": w, "gradient": w, "learning_rate": np.array(0.0, np.float32), "t": np.array(3.0)}
    first = rule.create_state(w)
    for state in found:
        broken = {s: np.array(a) for s, a in first.items()}
        broken[state][..., -1] = bad
        given = {**feeds, **broken}
        asked = {i.name for i in session.get_inputs()}
        names = [o.name for o in session.get_outputs()]
        new = dict(zip(names, session.run(None, {k: v for k, v in given.items() if k in asked}), strict=True))
        kept = np.isfinite(new[f"new_{state}"])
        assert not np.isfinite(new["new_weight"][~kept]).any()


@pytest.mark.parametrize(("name", "wanted"), [("adam", {"m"}), ("amsgrad", {"m"}), ("adagrad", set())])
def test_which_are(name, wanted):
    assert shown(optim.create(name)) == wanted
    assert shown(optim.SGD(momentum=0.9)) == {"momentum"}


def test_of_a_step():
    for large in (False, True):
        shape = (200, 200) if large else (3,)  # in a pack, or not
        step = TrainingStep(model_of({"a": shape, "b": shape}), "squared_error", "adam", weights=["a", "b"])
        graph = step.recipe.graph()
        assert len(graph.shown) == (2 if large else 1)
        assert all(name.endswith("_m") for name in graph.shown)


def test_buffers_look_at_the_others():
    arrays = {"w": np.zeros(3), "m": np.zeros(3), "v": np.zeros(3)}
    for packs, left_out in ({}, "m"), ({"pack": ["m"]}, "pack"):
        buffer = DoubleBuffer(arrays, parse_device("cpu"), packs=packs, shown={left_out})
        back = buffer.values[1]
        for name, seen in {"m": [], "v": ["m", "v"], "w": ["w", "m", "v"]}.items():
            back[name].update_inplace(np.array([0.0, 0.0, np.nan]))
            assert sorted(buffer.unfit()) == sorted(seen)

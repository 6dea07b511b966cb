"""DCASGD: where its state starts and what momentum leaves of it."""

from __future__ import annotations

import numpy as np

from onnxcustom import optim

from .rule_cases import one_update


def test_the_previous_weight_starts_at_the_weight():
    w = np.array([1.0, -2.0])
    for momentum, names in ((0.0, ["previous"]), (0.5, ["momentum", "previous"])):
        rule = optim.DCASGD(momentum=momentum)
        state = rule.init_state(w)
        assert list(state) == list(rule.state) == names
        np.testing.assert_array_equal(state["previous"], w)
        assert state["previous"] is not w
        # There is nothing to compensate for yet.
        np.testing.assert_allclose(one_update(rule, w, np.ones(2)), one_update(optim.SGD(), w, np.ones(2)))


def test_the_master_copy_is_what_is_compared_with():
    w = np.array([1.0, -2.0], np.float16)
    state = optim.DCASGD(multi_precision=True).create_state(w)
    assert {name: value.dtype for name, value in state.items()} == {
        "previous": np.float32,
        "master": np.float32,
    }
    np.testing.assert_array_equal(state["previous"], w)

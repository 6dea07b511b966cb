"""The registry behind the names of rules, losses and penalties."""

from __future__ import annotations

import pytest

from onnxcustom._registry import Registry
from onnxcustom.exceptions import UnknownNameError


@pytest.fixture
def registry():
    made = Registry("animal")

    @made.register("hound", "Wolf")
    class Dog:
        pass

    @made.register()
    class Cat:
        pass

    return made, Dog, Cat


def test_names_are_case_insensitive(registry):
    made, Dog, Cat = registry
    assert made.find("HOUND") is made.find("wolf") is made.find("dog") is Dog
    assert made.find("Cat") is Cat
    assert "DOG" in made
    assert "cow" not in made
    assert made.classes() == [Dog, Cat]


def test_a_class_with_other_names_is_listed_under_these(registry):
    assert registry[0].names() == ["hound", "wolf", "cat"]


@pytest.mark.parametrize("name", ["cow", None, 3])
def test_unknown_names_list_the_others(registry, name):
    with pytest.raises(UnknownNameError, match=r"is no animal.*'hound', 'wolf', 'cat', or a plant"):
        registry[0].find(name, ["a plant"])


def test_a_taken_name_is_refused_and_nothing_registered(registry):
    made, Dog, _ = registry
    with pytest.raises(ValueError, match=r"'hound' belongs to .*Dog"):
        made.register("puppy", "hound")(type("Other", (), {}))
    assert "puppy" not in made
    assert made.find("hound") is Dog


def test_a_class_defined_again_replaces_itself(registry):
    made, Dog, _ = registry
    again = type("Dog", (), {"__module__": Dog.__module__, "__qualname__": Dog.__qualname__})
    made.register("hound")(again)
    assert made.find("hound") is again

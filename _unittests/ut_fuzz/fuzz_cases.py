"""Cases by number: each is a function of a seed and its number, whatever was run before."""

from __future__ import annotations

from random import Random

from data_cases import FILES, mutate_data, read_data
from folder_cases import FOLDERS, mutate_folder, resume
from fuzz_models import MODELS, model
from model_mutations import mutate
from model_targets import run_model

from onnxcustom.exceptions import OnnxCustomError

__all__ = ["Fuzz"]


class Fuzz:
    """What is mutated, and what is done with it.

    Parameters
    ----------
    kind : {'models', 'operators', 'data', 'checkpoints'}
        Small models of all kinds; one model for each case of the tables of operators; files of rows;
        folders of checkpoints, and systems that fail on them.
    seed : int
        Of all cases.
    """

    def __init__(self, kind: str, seed: int = 0) -> None:
        self.kind, self.seed = kind, seed
        self._models: dict[str, bytes] = {}
        if kind == "models":
            self._models = {name: model(name) for name in MODELS}
        elif kind == "operators":
            from operator_models import operator_models

            self._models = operator_models()
        files = {"data": FILES, "checkpoints": FOLDERS}
        self.names = list(files.get(kind, self._models))

    def name(self, number: int) -> str:
        """What a case is made of."""
        return self.names[number % len(self.names)]

    def content(self, number: int) -> bytes:
        """The bytes of a case."""
        random = self._random(number)
        if self.kind == "data":
            return mutate_data(self.name(number), random)
        if self.kind == "checkpoints":
            return mutate_folder(self.name(number), random)
        return mutate(self._models[self.name(number)], random, self._models[random.choice(self.names)])

    def __call__(self, number: int) -> str:
        """Do a case and say what became of it, in words separated by spaces."""
        content = self.content(number)
        if self._models:
            return " ".join(f"{target}:{outcome}" for target, outcome in run_model(content).items())
        try:
            use = read_data if self.kind == "data" else resume
            use(self.name(number), content, self._random(-number - 1))
        except OnnxCustomError as error:
            str(error)
            return type(error).__name__
        return "done"

    def _random(self, number: int) -> Random:
        return Random(f"{self.seed}:{number}")
